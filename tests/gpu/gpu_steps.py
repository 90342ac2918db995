"""Run a few steps of the training loop on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed.world import World
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, NormState, prune
from harness.training.loop import train
from harness.training.resume import SavesStates

NUM_CLASSES = 10


class Repeated:
    """The same random batch at every step, kept on the device.

    Args:
        steps: Steps per epoch.
        batch_size: Number of images.
        image_size: Side of the images in pixels.
        device: Device of the images and labels.
    """

    def __init__(self, steps: int, batch_size: int, image_size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        self.images_NCHW = images.to(device, memory_format=torch.channels_last)
        self.labels_N = torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)
        self.steps_per_epoch = steps

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.steps_per_epoch - skip_steps):
            yield self.images_NCHW, self.labels_N


def fresh(name: str, image_size: int, device: torch.device) -> torch.nn.Module:
    """Draw a network with seed 0 on the CPU and move it."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=NUM_CLASSES, channels=3, image_size=image_size)
    return model.to(device, memory_format=torch.channels_last)


def sparse_mask(name: str, model: torch.nn.Module) -> Mask:
    """Return a mask that keeps half of the prunable weights by magnitude."""
    params = dict(model.named_parameters())
    dense = Mask.dense({key: param.detach().cpu() for key, param in params.items()}, partition_of(name, model).prunable)
    return prune(params, dense, 0.5)


def take_steps(
    world: World,
    name: str,
    *,
    method: str,
    optimizer: str = "sgd",
    steps: int = 3,
    batch_size: int = 8,
    image_size: int = 32,
    accumulation_steps: int = 1,
    noise: SgdNoise | None = None,
    saver: SavesStates | None = None,
    batches: Repeated | None = None,
) -> dict[str, torch.Tensor]:
    """Train a network of density 0.5 for some steps.

    Args:
        world: The world, which determines device and precision.
        name: Name of the network, drawn with seed 0.
        method: Pruning method, whose view of ψ is used.
        optimizer: "sgd" or "adam".
        steps: Number of steps, unless `batches` is given.
        batch_size: Number of images, unless `batches` is given.
        image_size: Side of the images in pixels.
        accumulation_steps: Micro-batches per step.
        noise: Random streams of the training.
        saver: Receives the training states, if any.
        batches: The batches, instead of `Repeated`.

    Returns:
        The state dict on the CPU.
    """
    # Phase: network, mask and initial values of ψ
    model = fresh(name, image_size, world.device)
    mask, norm = sparse_mask(name, model), sorted(partition_of(name, model).norm)
    params = dict(model.named_parameters())
    # ψ_init differs from the first ψ, so that α has an effect from the first step on
    initial = [params[key].detach() + 0.5 for key in norm]
    # Phase: train
    train(
        model,
        world=world,
        batches=batches or Repeated(steps, batch_size, image_size, world.device),
        noise=noise or SgdNoise(1, ("search", 1)),
        optim=OptimConfig(name="sgd" if optimizer == "sgd" else "adam", lr=0.01, max_grad_norm=1.0),
        schedule=Schedule(1, "constant"),
        mask=mask,
        view=METHODS[method].view(NormState([params[key] for key in norm], initial)),
        accumulation_steps=accumulation_steps,
        label="test",
        on_epoch=lambda report: None,
        saver=saver,
    )
    return {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that are not bit-identical."""
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]
