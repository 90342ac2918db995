"""Networks that older runs drew otherwise: what tells their runs apart, and how a run says which it is.

No torch here, so that a list of runs can say how θ_init was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INITIAL_WEIGHTS = "initial_weights"
"""Determinant, field of the configuration, and tag of the runs that draw such a network as today."""


@dataclass(frozen=True)
class Redrawn:
    """A network whose θ_init older runs drew otherwise."""

    determinants: Mapping[str, Any]
    """Inputs to the keys of its runs today; older runs have none of them."""
    before: str
    """How older runs drew it, in words."""


_TORCH = {INITIAL_WEIGHTS: "torch_default"}

REDRAWN: dict[str, Redrawn] = {
    "resnet50_cifar": Redrawn(_TORCH, "its stem from Kaiming normal over fan_out"),
    "mobilenet_v2_cifar": Redrawn(_TORCH, "its weights from Kaiming normal over fan_in"),
    "shufflenet_cifar": Redrawn(_TORCH, "its weights from Kaiming normal over fan_in"),
    "efficientnet_b0_cifar": Redrawn(
        _TORCH | {"drop_connect": 0.0},
        "its convolutions from Kaiming normal over fan_out, their biases 0; trained with drop-connect 0.2",
    ),
}
"""By name. Today their layers start from torch's default draw, as in the paper's scripts."""


def drawn_before(network: str, said: Mapping[str, Any]) -> str | None:
    """Return in words how a run drew its network, if that was otherwise than today; else None.

    Args:
        network: A name of harness.models.MODELS.
        said: The determinants, configuration or tags of the run.
    """
    one = REDRAWN.get(network)
    return None if one is None or INITIAL_WEIGHTS in said else one.before
