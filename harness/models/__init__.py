"""The built-in networks. To add one, write a module here and add an entry to MODELS.

`harness.models.network` resolves their names, and those of networks from elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from harness.common.machine import memory_bytes
from harness.config import known
from harness.models.efficientnet import DROP_CONNECT, efficientnet_b0_cifar
from harness.models.mlp_mixer import mlp_mixer, mlp_mixer_small, mlp_mixer_wide
from harness.models.mobilenet_v2 import mobilenet_v2, mobilenet_v2_cifar
from harness.models.partition import ParamPartition
from harness.models.resnet50 import resnet50, resnet50_cifar
from harness.models.resnet_cifar import resnet_cifar
from harness.models.resnet_normfree import resnet_skipinit
from harness.models.shufflenet import shufflenet_cifar
from harness.models.vgg import vgg11_bn_cifar
from harness.models.vit import vit_tiny

__all__ = [
    "MODELS",
    "ModelSpec",
    "ParamPartition",
    "build_model",
    "classifier_of",
    "partition_of",
    "width_of",
]


_FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelSpec:
    """The builder of a network, and the name of its classifier.

    The classifier is never pruned. `build` takes num_classes, channels and image_size as keyword arguments. Networks of
    adjustable width also take `width`, whose default is in the signature.
    """

    build: Callable[..., nn.Module]
    classifier: str
    former: Callable[..., nn.Module] | None = None
    """Builds the network as older runs initialised it, if that changed (see `harness.config.redrawn`)."""


MODELS: dict[str, ModelSpec] = {
    "resnet8": ModelSpec(partial(resnet_cifar, 8), classifier="fc"),
    "resnet14": ModelSpec(partial(resnet_cifar, 14), classifier="fc"),
    "resnet20": ModelSpec(partial(resnet_cifar, 20), classifier="fc"),
    "resnet32": ModelSpec(partial(resnet_cifar, 32), classifier="fc"),
    "resnet56": ModelSpec(partial(resnet_cifar, 56), classifier="fc"),
    "resnet110": ModelSpec(partial(resnet_cifar, 110), classifier="fc"),
    "resnet50": ModelSpec(resnet50, classifier="fc"),
    "resnet50_cifar": ModelSpec(resnet50_cifar, "fc", former=partial(resnet50_cifar, former=True)),
    "resnet20_skipinit": ModelSpec(partial(resnet_skipinit, 20), classifier="fc"),
    "mobilenet_v2": ModelSpec(mobilenet_v2, classifier="classifier.1"),
    "mobilenet_v2_cifar": ModelSpec(mobilenet_v2_cifar, "fc", former=partial(mobilenet_v2_cifar, former=True)),
    "shufflenet_cifar": ModelSpec(shufflenet_cifar, "fc", former=partial(shufflenet_cifar, former=True)),
    "efficientnet_b0_cifar": ModelSpec(
        efficientnet_b0_cifar,
        classifier="classifier.1",
        former=partial(efficientnet_b0_cifar, drop_connect=DROP_CONNECT, former=True),
    ),
    "efficientnet_b0_cifar_drop_connect": ModelSpec(
        partial(efficientnet_b0_cifar, drop_connect=DROP_CONNECT), classifier="classifier.1"
    ),
    "vgg11_bn_cifar": ModelSpec(vgg11_bn_cifar, classifier="fc"),
    "vit_tiny": ModelSpec(vit_tiny, classifier="heads.head"),
    "mlp_mixer": ModelSpec(mlp_mixer, classifier="head"),
    "mlp_mixer_wide": ModelSpec(mlp_mixer_wide, classifier="head"),
    "mlp_mixer_small": ModelSpec(mlp_mixer_small, classifier="head"),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    width: int | None = None,
    former: bool = False,
) -> nn.Module:
    """Build a network on the CPU.

    torch's global generator draws the weights, so seed it first. The network maps float images (N, channels,
    image_size, image_size) to logits (N, num_classes).

    Args:
        name: Name in MODELS.
        num_classes: Outputs of the classifier.
        channels: Channels of an image.
        image_size: Height and width of an image, in pixels.
        width: Channels of the first stage, or as the network's builder defines it. None: its default.
        former: Whether to use the initialisation of older runs, where it changed (`harness.config.redrawn`).

    Raises:
        ValueError: The name is unknown, a size is not positive, or the network's width is fixed or too large.

    Example:
        >>> build_model("resnet20", num_classes=10, channels=3, image_size=32).fc.out_features
        10
    """
    # Check width and sizes, then build.
    spec = _spec(name)
    sizes = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    if width is not None:
        if "width" not in inspect.signature(spec.build).parameters:
            raise ValueError(f"the width of {name} cannot be set (got {width}); leave it out")
        sizes["width"] = width
    for size, value in sizes.items():
        if value < 1:
            raise ValueError(f"{size} of {name} must be at least 1, got {value}")
    build = spec.former if former and spec.former is not None else spec.build
    if width is not None and width > (width_of(name, None) or 0):
        _check_memory(name, build, sizes)
    return build(**sizes)


def _check_memory(name: str, build: Callable[..., nn.Module], sizes: dict[str, int]) -> None:
    """Raise ValueError for a width whose network cannot be trained in this machine's memory.

    A training holds θ_init, the network, its gradient and the optimizer's state.
    """
    memory, width = memory_bytes(), sizes["width"]
    too_wide = f"width {width} of {name} is too large"
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # shapes without values
            numel = sum(param.numel() for param in build(**sizes).parameters())
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(f"{too_wide}: {str(error).splitlines()[0]:.120}; give a smaller --model.width") from None
    if 4 * _FLOAT_BYTES * numel > memory:
        raise ValueError(
            f"{too_wide}: {numel:,} parameters need {4 * _FLOAT_BYTES * numel:,} bytes in training, this machine has "
            f"{memory:,}; give a smaller --model.width"
        )


def classifier_of(name: str) -> str:
    """Return the dotted name of a network's classifier. Its parameters are never pruned."""
    return _spec(name).classifier


def partition_of(name: str, model: nn.Module) -> ParamPartition:
    """Partition the parameters of `model`, a network built under this name."""
    return ParamPartition.of(model, _spec(name).classifier)


def width_of(name: str, width: int | None) -> int | None:
    """Return `width`, or the network's default if it is None.

    The default is None if the network's width is fixed.
    """
    parameter = inspect.signature(_spec(name).build).parameters.get("width")
    return width if width is not None or parameter is None else int(parameter.default)


def _spec(name: str) -> ModelSpec:
    return MODELS[known("network", name, list(MODELS))]
