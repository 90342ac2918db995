"""Settings of final trainings and of comparisons of two networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config.parts import (
    CompileMode,
    Precision,
    require,
    require_experiment_name,
    require_finite,
    require_minutes,
)
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
    """One final training of a ticket from a fresh initialisation."""

    ticket: str
    """Run ID of a level, or a unique prefix of it."""
    kind: Kind = "signed_mask"
    """Start of the final training. θ_init means fresh initial parameters, ψ the parameters of normalisation layers.
    dense: θ_init without a ticket. retrain: parameters and mask of the ticket. signed_mask: mask and signs, magnitudes
    of θ_init. mask: mask and θ_init. signed_mask_norm: signed_mask with ψ of the ticket. signed_mask_norm_const:
    signed_mask with constant ψ. random_signs: mask and random signs. random_mask: θ_init and a random mask of equal
    density per layer."""
    init_seed: int = 2
    """Seed of the fresh θ_init. Must differ from the search's own unless --same-init is given."""
    sgd_seed: int = 1
    """Seed of the noise u of this training: data order and augmentation."""
    same_init: bool = False
    """Allow the search's own init_seed."""
    initialisation: str = NETWORKS_OWN
    """Initialisation of the fresh θ_init: network (its own), kaiming_normal, constant, or a trained network (run ID or
    file)."""
    signs: SignsTaken = "trained"
    """Signs of the ticket, level T with parameters θ_T and mask m_T. trained: signs of θ_T, after training under m_T.
    pruned: sign₀(θ_{T−1} ⊙ m_T), the signs right after pruning level T−1 and 0 where pruned, as Algorithm 1 prints it.
    """
    epochs: int | None = None
    """Number of epochs. Default: as recorded with the ticket's search. Recorded milestones move in proportion."""
    unpruned_signs: UnprunedSigns = "both"
    """Parameters outside the mask whose signs are also transferred. Default: both, as in the authors' scripts."""
    data: str | None = None
    """Another data set to train on. The classifier is then new, and its signs are not transferred."""
    data_directory: Path | None = None
    """Directory of prepared data sets. Default: as recorded with the ticket's search."""
    loader: Literal["ffcv", "memory", "torch"] | None = None
    """Data loader. Default: as recorded with the ticket's search."""
    precision: Precision | None = None
    """Mixed precision. auto selects bf16 where the CUDA device supports it. Default: as recorded with the ticket's
    search."""
    compile: CompileMode | None = None
    """Compile the network with torch.compile. Use it for long trainings. Default: as recorded with the ticket's
    search."""
    evaluate_every: int | None = None
    """Epochs between two measurements of the test error within the training (0: never). Use it to watch a long
    training. Default: as recorded with the ticket's search."""
    probe: bool = True
    """Measure before the first training whether the ffcv loader or the device is the limit, and log both rates. Turn it
    off to start two seconds earlier."""
    stuck_after: float = 8
    """Minutes without progress after which a launch of several processes is ended (0: never). The first step of a
    training, evaluations and the work between trainings are exempt. Gradient exchange has a separate timeout of ten
    minutes."""
    runs: Path = Path("runs")
    """Directory of local runs."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use only local runs, and deliver nothing to MLflow during this launch."""
    trust_code: bool = False
    """Execute the Python file that defines the run's network or data, also if you have named it in no command. Read its
    copy first: network.py in the run's directory, source.py in the data set's."""

    def __post_init__(self) -> None:
        every = self.evaluate_every
        require(every is None or every >= 0, f"evaluate_every is {every}; it must not be negative")
        require_minutes("stuck_after", self.stuck_after)
        require_experiment_name(self.experiment)
        require_finite(self)


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings for comparing two trained networks along the line between them."""

    num_alphas: int = 11
    """Points of the grid α = 0 … 1, including both ends."""
    bn_convention: Literal["cumulative", "ema", "none"] = "cumulative"
    """BatchNorm statistics of interpolated networks. cumulative: the mean over batches. ema: a moving average that
    starts from mean 0 and variance 1, as in the authors' scripts. none: statistics are interpolated like all other
    tensors."""
    bn_images: int | Literal["all"] = 10_000
    """Training images for estimating these statistics under cumulative. All images if the set has fewer. ema always
    uses all, and none uses no images."""

    def __post_init__(self) -> None:
        ok = self.bn_images == "all" or self.bn_images >= 1
        require(ok, f"bn_images is {self.bn_images}; it must be all, or at least 1")
        unheeded = self.bn_convention == "none" or (self.bn_convention == "ema" and self.bn_images != "all")
        require(
            not unheeded or self.bn_images == ComparisonConfig.bn_images,
            f"bn_images {self.bn_images} has no effect with bn_convention {self.bn_convention}, which uses "
            f"{'all training images' if self.bn_convention == 'ema' else 'no images'}; remove --bn-images, or give "
            "--bn-convention cumulative",
        )
        require(self.num_alphas >= 2, f"num_alphas is {self.num_alphas}; it must be at least 2, for the two ends")

    @property
    def ema_start(self) -> dict[str, str]:
        """Return the determinant that tells how ema statistics start.

        It is empty for other conventions. Older comparisons lack it. They started from the interpolated statistics.
        """
        return {"ema_start": "mean 0, variance 1"} if self.bn_convention == "ema" else {}

    @property
    def alphas(self) -> tuple[float, ...]:
        """Return the grid of α."""
        return tuple(index / (self.num_alphas - 1) for index in range(self.num_alphas))

    def num_bn_images(self, num_train: int) -> int:
        """Return how many of `num_train` images the statistics use."""
        if self.bn_convention == "none":
            return 0
        # ema uses one full pass over the training set, as in the authors' scripts.
        return num_train if self.bn_convention == "ema" or self.bn_images == "all" else min(self.bn_images, num_train)
