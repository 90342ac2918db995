"""Networks whose initialisation changed, and the mark of new runs.

This module does not import torch, so that lists of runs can show how θ_init was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INITIAL_WEIGHTS = "initial_weights"
"""Name of the determinant, configuration field and tag that only runs with the new initialisation have."""


@dataclass(frozen=True)
class Redrawn:
    """A network whose θ_init older runs drew differently."""

    determinants: Mapping[str, Any]
    """Inputs to the keys of its new runs. Older runs have none of them."""
    before: str
    """How older runs drew it, in words."""
    besides: str = ""
    """What of it holds also if a scheme of the user drew the weights."""


_TORCH = {INITIAL_WEIGHTS: "torch_default"}

REDRAWN: dict[str, Redrawn] = {
    "resnet50_cifar": Redrawn(_TORCH, "its stem from Kaiming normal over fan_out"),
    "mobilenet_v2_cifar": Redrawn(_TORCH, "its weights from Kaiming normal over fan_in"),
    "shufflenet_cifar": Redrawn(_TORCH, "its weights from Kaiming normal over fan_in"),
    "efficientnet_b0_cifar": Redrawn(
        _TORCH | {"drop_connect": 0.0},
        "its convolutions from Kaiming normal over fan_out, their biases 0; trained with drop-connect 0.2",
        besides="the biases of its convolutions 0; trained with drop-connect 0.2",
    ),
}
"""Changed networks by name. Layers now use torch's default initialisation, as the paper's scripts do."""


def drawn_before(network: str, said: Mapping[str, Any], *, by_scheme: bool = False) -> str | None:
    """Return how an old run drew its network, in words.

    Args:
        network: Name in harness.models.MODELS.
        said: Determinants, configuration or tags of the run.
        by_scheme: Whether the user chose the distribution of the weights.

    Returns:
        The description, or None if the run drew its network as this version does.
    """
    one = REDRAWN.get(network)
    if one is None or INITIAL_WEIGHTS in said:
        return None
    return (one.besides or None) if by_scheme else one.before
