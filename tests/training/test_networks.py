"""Train every network for a few steps of AWS under a mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed.world import World
from harness.masks import Mask, SignedMask
from harness.models import MODELS, ParamPartition, build_model, partition_of
from harness.pruning import METHODS, NormState
from harness.training.loop import train

STEPS, BATCH = 3, 4
# small widths and images, so that a step is fast
WIDTHS = {"mlp_mixer": 32, "mlp_mixer_wide": 32, "shufflenet_cifar": 36, "vit_tiny": 16}
WIDTHS |= dict.fromkeys(("mobilenet_v2_cifar", "vgg11_bn_cifar"), 8)
WIDTHS |= dict.fromkeys(("efficientnet_b0_cifar", "efficientnet_b0_cifar_drop_connect"), 8)
IMAGE_SIZES = {"resnet50": 16, "resnet50_cifar": 8}


class Photos:
    """Yield square crops of scikit-learn's two photographs; the label is the photograph."""

    steps_per_epoch = STEPS

    def __init__(self, size: int) -> None:
        from sklearn.datasets import load_sample_images

        photos = torch.stack([torch.tensor(photo) for photo in load_sample_images().images]).permute(0, 3, 1, 2)
        tiles = photos.unfold(2, size, 100).unfold(3, size, 100).flatten(2, 3)[:, :, : STEPS * BATCH // 2]
        self.images = (tiles.movedim(2, 1).flatten(0, 1) / 255 - 0.45) / 0.25
        self.labels = torch.arange(2).repeat_interleave(STEPS * BATCH // 2)

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in noise.permutation(epoch, STEPS * BATCH).reshape(STEPS, BATCH)[skip_steps:]:
            yield self.images[indices], self.labels[indices]


def trained(name: str, world: World, method: str = "aws") -> tuple[torch.nn.Module, Mask, ParamPartition]:
    """Train a network under a random mask of half its weights.

    Check that every parameter changed.
    """
    # Phase: a new network with a random mask
    torch.manual_seed(0)
    size = IMAGE_SIZES.get(name, 32)
    model = build_model(name, num_classes=2, channels=3, image_size=size, width=WIDTHS.get(name))
    partition = partition_of(name, model)
    params = dict(model.named_parameters())
    start = {parameter: value.detach().clone() for parameter, value in params.items()}
    # a random mask, because pruning by magnitude would remove whole layers of these narrow networks
    mask = Mask({parameter: torch.rand(start[parameter].shape) < 0.5 for parameter in sorted(partition.prunable)})
    norm = sorted(partition.norm)
    state = NormState([params[n] for n in norm], [start[n] for n in norm])
    # Phase: train
    train(
        model.to(memory_format=torch.channels_last),
        world=world,
        batches=Photos(size),
        noise=SgdNoise(1, ("search", 1)),
        optim=OptimConfig(lr=0.01),
        schedule=Schedule(1, "constant"),
        mask=mask,
        view=METHODS[method].view(state),
        label=name,
        on_epoch=lambda report: None,
    )
    # Phase: every parameter is finite and has changed
    mask.apply_(start)
    for parameter, value in params.items():
        assert value.isfinite().all()
        assert not torch.equal(value, start[parameter]), f"{parameter} was not trained"
    return model, mask, partition


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MODELS))
def test_aws_trains_it_under_a_mask_and_again_with_the_same_bits(name, world, tmp_path):
    model, mask, partition = trained(name, world)
    params = dict(model.named_parameters())
    for parameter, kept in mask.tensors.items():
        assert not params[parameter][~kept].any()
    again, _, _ = trained(name, world)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    signed = SignedMask.of(params, mask, norm=partition.norm)
    signed.save(tmp_path / "signed_mask.safetensors", {})
    loaded = SignedMask.load(tmp_path / "signed_mask.safetensors")
    assert all(torch.equal(loaded.signs[parameter], params[parameter].sign()) for parameter in params)


@pytest.mark.long
def test_without_normalisation_layers_aws_is_lrr(world):
    aws, lrr = (trained("resnet20_skipinit", world, method)[0].state_dict() for method in ("aws", "lrr"))
    assert all(torch.equal(aws[name], lrr[name]) for name in aws)
    aws, lrr = (trained("resnet20", world, method)[0].state_dict() for method in ("aws", "lrr"))
    assert not torch.equal(aws["fc.weight"], lrr["fc.weight"])
