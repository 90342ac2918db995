"""The settings of a ticket's use: its final training, and how two networks are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config.parts import Precision, require, require_minutes
from harness.config.search import NETWORKS_OWN

UnprunedSigns = Literal["both", "biases", "classifier", "none"]
SignsTaken = Literal["trained", "pruned"]
Kind = Literal[
    "dense",
    "retrain",
    "signed_mask",
    "mask",
    "signed_mask_norm",
    "signed_mask_norm_const",
    "random_signs",
    "random_mask",
]


@dataclass(frozen=True)
class TicketConfig:
    """One final training: which signed mask, used how, on which fresh initialisation."""

    ticket: str
    """Run ID of a logged level (a unique beginning of it is enough)."""
    kind: Kind = "signed_mask"
    """What is taken from the ticket."""
    init_seed: int = 2
    """Draws the fresh θ_init; never the search's own unless --same-init."""
    sgd_seed: int = 1
    """Draws the noise u of this training."""
    same_init: bool = False
    """Allow the search's own init_seed."""
    initialisation: str = NETWORKS_OWN
    """What the fresh θ_init is: network (its own), kaiming_normal, constant, or a trained network: a run ID or file."""
    signs: SignsTaken = "trained"
    """Take θ_T after training under m_T, or right after pruning: sign₀(θ_{T−1} ⊙ m_T), as Algorithm 1 prints it."""
    epochs: int | None = None
    """Instead of the epochs recorded with the ticket's search."""
    unpruned_signs: UnprunedSigns = "both"
    """Transfer the signs of biases and of the classifier too, as the authors' scripts do, or of one, or of neither."""
    data: str | None = None
    """Another data set to train on, with a new classifier: the ticket's own is left behind with its signs."""
    data_directory: Path | None = None
    """Instead of the data directory recorded with the ticket's search."""
    loader: Literal["ffcv", "memory"] | None = None
    """Instead of the loader recorded with the ticket's search."""
    precision: Precision | None = None
    """Instead of the mixed precision recorded with the ticket's search (auto: bf16 where the CUDA device has it)."""
    stuck_after: float = 8
    """Minutes without progress after which a launch of several processes is ended (0: never). The first step of each
    training and all work between trainings are not watched. Waiting for gradients is limited to ten minutes anyway."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs alone and send nothing to MLflow now."""

    def __post_init__(self) -> None:
        require_minutes("stuck_after", self.stuck_after)


@dataclass(frozen=True)
class ComparisonConfig:
    """How two trained networks are compared along the line between them."""

    num_alphas: int = 11
    """Points of the grid α = 0 … 1, ends included."""
    bn_convention: Literal["cumulative", "ema", "none"] = "cumulative"
    """How BatchNorm statistics of an interpolated network are made: as a mean over batches; as a moving average that
    starts from mean 0 and variance 1 (the authors' scripts); or interpolated with the rest."""
    bn_images: int | Literal["all"] = 10_000
    """Training images they are estimated from (all if the set is smaller)."""

    def __post_init__(self) -> None:
        ok = self.bn_images == "all" or self.bn_images >= 1
        require(ok, f"bn_images is {self.bn_images}; it must be all, or 1 or more")
        require(self.num_alphas >= 2, f"num_alphas is {self.num_alphas}; the two ends make at least 2")

    @property
    def ema_start(self) -> dict[str, str]:
        """Where statistics of ema start: older comparisons lack it, and started from the interpolated ones."""
        return {"ema_start": "mean 0, variance 1"} if self.bn_convention == "ema" else {}

    @property
    def alphas(self) -> tuple[float, ...]:
        """The grid itself."""
        return tuple(index / (self.num_alphas - 1) for index in range(self.num_alphas))

    def num_bn_images(self, num_train: int) -> int:
        """How many of `num_train` images the statistics come from."""
        if self.bn_convention == "none":
            return 0
        # ema is one whole training pass, as in the authors' scripts
        return num_train if self.bn_convention == "ema" or self.bn_images == "all" else min(self.bn_images, num_train)
