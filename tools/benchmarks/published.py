"""Search like the paper's published scripts: plain PyTorch, a DataLoader with PIL transforms, and a model on float32.

python tools/benchmarks/published.py data/cifar100 --levels 2

It stands in for those scripts in benchmarks. Each epoch ends with a pass over the whole test set. Each level prunes,
trains one epoch with a new optimizer, and saves one checkpoint, as safetensors. The network is MobileNetV2 for CIFAR.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from harness.models import build_model, partition_of

NETWORK, BATCH = "mobilenet_v2_cifar", 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def masked(layer: Any, mask: Tensor, input: Tensor) -> Tensor:
    """Apply a convolution or linear layer with the masked weight w * m."""
    weight = layer.weight * mask
    convolves = isinstance(layer, nn.Conv2d)
    return layer._conv_forward(input, weight, layer.bias) if convolves else F.linear(input, weight, layer.bias)


def blended(norm: Any, draw: Callable[[], float], initial: list[Tensor], input: Tensor) -> Tensor:
    """Apply BatchNorm: with αψ + (1−α)ψ_init and a newly drawn α in training, and with ψ in evaluation."""
    weight, bias = norm.weight, norm.bias
    if norm.training:
        alpha = draw()
        weight, bias = (alpha * own + (1 - alpha) * old for own, old in zip((weight, bias), initial, strict=True))
        norm.num_batches_tracked.add_(1)
    running = norm.running_mean, norm.running_var
    return F.batch_norm(input, *running, weight, bias, norm.training, norm.momentum, norm.eps)


def publish(model: nn.Module, masks: Mapping[str, Tensor], initial: Mapping[str, Tensor], draw: Any) -> None:
    """Replace the forward of all pruned and all BatchNorm layers by `masked` and `blended`, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            start = [initial[f"{name}.{kind}"] for kind in ("weight", "bias")]
            module.forward = partial(blended, module, draw, start)  # type: ignore[method-assign]
        elif (mask := masks.get(f"{name}.weight")) is not None:
            module.forward = partial(masked, module, mask)


class Images(Dataset[tuple[Tensor, int]]):
    """A split in memory. PIL transforms each image, as in torchvision's CIFAR100."""

    def __init__(self, path: Path, transform: Callable[[Any], Tensor]) -> None:
        tensors = load_file(path)
        self.images_NHWC, self.labels, self.transform = tensors["images_NHWC"].numpy(), tensors["labels"], transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images_NHWC[index])), int(self.labels[index])


def run_epoch(model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer | None) -> float:
    """Train one epoch, or without an optimizer evaluate. Return the accuracy in percent."""
    model.train(optimizer is not None)
    loss_sum, num_correct, seen = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for images_NCHW, labels_N in loader:
            logits_NK = model(images_NCHW)
            loss = F.cross_entropy(logits_NK, labels_N)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item()
            num_correct += int((logits_NK.argmax(1) == labels_N).sum().item())
            seen += len(labels_N)
    print(f"loss {loss_sum / len(loader):.3f}, accuracy {100 * num_correct / seen:.2f} %", flush=True)
    return 100 * num_correct / seen


def prune_(model: nn.Module, masks: Mapping[str, Tensor], fraction: float = 0.2) -> None:
    """Prune the live weights of smallest magnitude over all layers, by one sort. Weights and masks change in place."""
    params = dict(model.named_parameters())
    with torch.no_grad():
        live = torch.cat([params[name][mask.bool()].abs() for name, mask in masks.items()])
        threshold = live.sort().values[int(fraction * len(live))]
        for name, mask in masks.items():
            mask.mul_(params[name].abs() >= threshold)
            params[name].mul_(mask)


def main(directory: Path, levels: int) -> None:
    """Train the dense network for an epoch, then prune and train `levels` times."""
    from torchvision import transforms

    # Phase: data
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augmented = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain])
    train = DataLoader(Images(directory / "train.safetensors", augmented), BATCH, shuffle=True)
    test = DataLoader(Images(directory / "test.safetensors", transforms.Compose(plain)), BATCH)

    # Phase: network, masks and ψ_init
    torch.manual_seed(1)
    model = build_model(NETWORK, num_classes=100, channels=3, image_size=32)
    partition, params = partition_of(NETWORK, model), dict(model.named_parameters())
    masks = {name: torch.ones_like(params[name], requires_grad=False) for name in partition.prunable}
    publish(model, masks, {name: params[name].detach().clone() for name in partition.norm}, random.Random(1).random)

    # Phase: levels
    for level in range(1 + levels):
        if level:
            prune_(model, masks)
        run_epoch(model, train, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4))
        run_epoch(model, test, None)
        kept = {f"mask.{name}": mask for name, mask in masks.items()}
        save_file(dict(model.state_dict()) | kept, f"level-{level}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="prepared data set")
    parser.add_argument("--levels", type=int, default=2, help="number of prunings (default: 2)")
    given = parser.parse_args()
    main(given.directory, given.levels)
