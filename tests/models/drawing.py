"""Draw built-in networks as the product does."""

from __future__ import annotations

from torch import nn

from harness.config import ModelConfig
from harness.models.network import Definition, Network


def draw_model(
    name: str,
    *,
    init_seed: int,
    num_classes: int,
    channels: int,
    image_size: int,
    width: int | None = None,
    former: bool = False,
    scheme: str = "network",
) -> nn.Module:
    """Return a built-in network at θ_init(`init_seed`), with `former` as older versions drew it."""
    definition = Definition.of(ModelConfig(name, width))
    return Network(definition, num_classes, channels, image_size, former).draw(init_seed, scheme)
