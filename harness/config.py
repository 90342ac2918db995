"""The settings of a run: frozen dataclasses that hold every default once. No torch here.

What determines a level's bits is chosen in `harness.search.level_determinants`; paths, worker counts and logging never
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from math import cos, pi
from pathlib import Path
from typing import Any, Literal, get_args

FORMAT = "harness.config/1"

LrSchedule = Literal["constant", "step", "cosine"]
Precision = Literal["no", "fp16", "bf16"]
SaveUnit = Literal["minutes", "epochs", "steps"]
Scope = Literal["global", "layer"]
Order = Literal["default", "paper"]
RewindUnit = Literal["epochs", "steps"]
UnprunedSigns = Literal["both", "biases", "classifier", "none"]
SignsTaken = Literal["trained", "pruned"]
NETWORKS_OWN = "network"
"""The initialisation that a network comes with."""
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


def known(what: str, name: str, names: Sequence[str]) -> str:
    """Return `name` if it is one of `names`; else raise a ValueError that lists them and the nearest."""
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint}; known: {', '.join(sorted(names))}")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is read."""

    name: str
    """A name of harness.data.DATASETS, e.g. digits, cifar100, imagenet."""
    directory: Path = Path("data")
    """Where tools/prepare_data.py put it."""
    loader: Literal["ffcv", "memory"] = "ffcv"
    """ffcv reads the .beton files; memory keeps small raw sets on the device. Both give the same batches."""
    num_workers: int = 1
    """Loader threads per process; -1 shares the cores out over the processes. No influence on the numbers."""

    def __post_init__(self) -> None:
        workers = self.num_workers
        _require(workers == -1 or workers >= 1, f"data.num_workers is {workers}; it must be -1, or 1 or more")


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str
    """A name of harness.models.MODELS, e.g. resnet20, resnet50_cifar, mlp_mixer."""
    width: int | None = None
    """Channels of the first stage where the family can be widened; the family's own if not given."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, new at every level."""

    name: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    """Learning rate before the schedule."""
    momentum: float = 0.9
    """SGD only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam only."""
    weight_decay: float = 5e-4
    """Coupled L2 on all parameters, as in the paper."""
    max_grad_norm: float | None = None
    """Clip the gradient of the remaining parameters to this 2-norm; no clipping if not given."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optim.lr is {self.lr}; it must be positive")
        _require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        _require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must lie in [0, 1)")
        _require(all(0 <= beta < 1 for beta in self.betas), f"optim.betas are {self.betas}; each must lie in [0, 1)")
        clip = self.max_grad_norm
        _require(clip is None or clip > 0, f"optim.max_grad_norm is {clip}; it must be positive")

    def determinants(self) -> dict[str, Any]:
        """What determines a training's bits: not the settings of an optimizer that is not used."""
        unused = {"sgd": ("betas",), "adam": ("momentum",)}[self.name]
        return {name: value for name, value in asdict(self).items() if name not in unused}


@dataclass(frozen=True)
class Schedule:
    """How long one training lasts and how its learning rate falls, in steps of one epoch."""

    epochs: int
    lr_schedule: LrSchedule
    """constant; step: ×0.1 at each milestone; cosine: to 0.001 of the start."""
    lr_milestones_epochs: tuple[int, ...] | None = None
    """Milestones of step; E//2 and (E//4)·3 if not given."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, f"epochs is {self.epochs}; it must not be negative")
        known("lr_schedule", self.lr_schedule, get_args(LrSchedule))
        if (milestones := self.lr_milestones_epochs) is not None:
            allowed = self.lr_schedule == "step" and all(milestone > 0 for milestone in milestones)
            _require(allowed, f"lr_milestones_epochs is {milestones}; it takes positive epochs, with lr_schedule step")

    def determinants(self) -> dict[str, Any]:
        """What determines a training's bits: no milestones where they are the schedule's own."""
        own = {"epochs": self.epochs, "lr_schedule": self.lr_schedule}
        given = self.lr_milestones_epochs
        return own if given is None else own | {"lr_milestones_epochs": list(given)}

    def lr_factor(self, epoch: int) -> float:
        """Return what the learning rate is multiplied by in `epoch` (0-based)."""
        if self.lr_schedule == "constant":
            return 1.0
        if self.lr_schedule == "step":
            milestones = self.lr_milestones_epochs or (self.epochs // 2, self.epochs // 4 * 3)
            # below four epochs a milestone is 0: no training starts with a reduced learning rate
            return float(0.1 ** sum(epoch >= milestone > 0 for milestone in milestones))
        floor = 1e-3
        return floor + (1 - floor) * (1 + cos(pi * epoch / self.epochs)) / 2


@dataclass(frozen=True)
class GemMinerConfig:
    """Gem-Miner only: scores trained by SGD with a cosine schedule, then fine-tuning (the authors' ResNet-32)."""

    score_epochs: int = 150
    """E, epochs of training the scores."""
    lr: float = 0.1
    """Learning rate of the scores."""
    penalty: float = 1e-5
    """λ of the loss's λ‖p‖²."""
    freeze_every_epochs: int = 5
    """The lowest scores are frozen this often, but not after the last epoch."""
    finetune: Schedule = Schedule(150, "step", (80, 120))
    """Schedule of fine-tuning."""
    finetune_lr: float = 0.01
    """Learning rate of fine-tuning."""
    finetune_weight_decay: float = 1e-4
    """Weight decay of fine-tuning."""
    momentum: float = 0.9
    """Of both."""

    def __post_init__(self) -> None:
        enough = self.score_epochs > self.freeze_every_epochs >= 1
        _require(
            enough,
            f"gem_miner.score_epochs is {self.score_epochs} and freeze_every_epochs {self.freeze_every_epochs}; "
            "it takes at least one epoch more than that, so that something is pruned",
        )
        _require(self.penalty >= 0, f"gem_miner.penalty is {self.penalty}; it must not be negative")

    def scoring(self) -> tuple[OptimConfig, Schedule]:
        """Optimizer and schedule of the scores; λ‖p‖² is coupled weight decay of 2λ."""
        optim = OptimConfig("sgd", lr=self.lr, momentum=self.momentum, weight_decay=2 * self.penalty)
        return optim, Schedule(self.score_epochs, "cosine")

    def finetuning(self) -> tuple[OptimConfig, Schedule]:
        """Optimizer and schedule of fine-tuning."""
        optim = OptimConfig("sgd", lr=self.finetune_lr, momentum=self.momentum, weight_decay=self.finetune_weight_decay)
        return optim, self.finetune


@dataclass(frozen=True)
class SearchConfig:
    """One search for a signed mask (Algorithm 1) and the schedule of the final trainings that use it."""

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    final: Schedule
    """Schedule of every final training."""
    warmup_epochs: int
    """Level 0: dense warm-up, at constant learning rate."""
    level_epochs: int
    """Each pruning level, at constant learning rate."""
    num_levels: int
    """T, the number of prunings; density after them is (1 − pruning_fraction)^T, or the T-th of densities."""
    global_batch_size: int
    """Images per optimizer step over all processes and accumulated micro-batches."""
    method: str = "aws"
    """How the mask is found: a name of harness.pruning.METHODS, e.g. aws, lrr, imp, wr, random, dense."""
    pruning_fraction: float = 0.2
    """Share of the live prunable weights removed at each level."""
    densities: tuple[float, ...] | None = None
    """Density of each level from the first on, instead of the pruning fraction."""
    pruning_scope: Scope = "global"
    """Whether weights are compared over all layers together, or each layer is pruned by the same share."""
    one_shot: bool = False
    """Prune the dense network once, to the density of level T, instead of level by level."""
    order: Order = "default"
    """paper: Algorithm 1 as printed; level 0 is the warm-up and one level more, and level T is pruned, not trained."""
    rewind_to: int = 1
    """wr only: k, the epoch or step that parameters, schedule and data order are rewound to."""
    rewind_unit: RewindUnit = "epochs"
    """wr only: what rewind_to counts."""
    gem_miner: GemMinerConfig = GemMinerConfig()
    """gem_miner only: its own schedules, instead of warm-up and level epochs."""
    init_seed: int = 1
    """Draws the search's θ_init."""
    initialisation: str = NETWORKS_OWN
    """What θ_init is: network (its own), kaiming_normal, constant, or a trained network, by its run ID or file."""
    sgd_seed: int = 1
    """Draws the noise u: data order, augmentation, α."""
    precision: Precision = "no"
    """Mixed precision."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes' images instead of each one's share; needs GPUs."""
    deterministic: bool = False
    """Ask CUDA for deterministic algorithms; CPU runs are deterministic anyway."""
    checkpoint_every: float = 10
    """The state inside a level is saved this often (0: never), and when the launch is asked to stop."""
    checkpoint_unit: SaveUnit = "minutes"
    """What checkpoint_every counts."""
    runs: Path = Path("runs")
    """Where finished levels are kept before and after MLflow gets them."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Send nothing to MLflow now; `python tools/lineage.py sync` does it later."""

    def __post_init__(self) -> None:
        _require(self.num_levels >= 0, f"num_levels is {self.num_levels}; it must not be negative")
        _require(0 < self.pruning_fraction < 1, f"pruning_fraction is {self.pruning_fraction}; it must lie in (0, 1)")
        self._check_densities()
        _require(self.rewind_to >= 0, f"rewind_to is {self.rewind_to}; it must not be negative")
        _require(self.checkpoint_every >= 0, f"checkpoint_every is {self.checkpoint_every}; it must not be negative")
        _require(self.accumulation_steps >= 1, f"accumulation_steps is {self.accumulation_steps}; it must be 1 or more")
        _require(self.global_batch_size >= 1, f"global_batch_size is {self.global_batch_size}; it must be 1 or more")
        _require(self.warmup_epochs >= 0 and self.level_epochs >= 0, "epochs must not be negative")

    def _check_densities(self) -> None:
        if (densities := self.densities) is None:
            return
        falling = all(before > after for before, after in zip((1.0, *densities), densities, strict=False))
        ok = falling and all(0 < density < 1 for density in densities)
        _require(ok, f"densities are {densities}; they must fall from level to level, within (0, 1)")
        _require(
            self.num_levels <= len(densities),
            f"densities are given for {len(densities)} levels and num_levels is {self.num_levels}; "
            f"give --num-levels {len(densities)} or fewer",
        )


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
    """Instead of the mixed precision recorded with the ticket's search."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs alone and send nothing to MLflow now."""


@dataclass(frozen=True)
class ComparisonConfig:
    """How two trained networks are compared along the line between them."""

    num_alphas: int = 11
    """Points of the grid α = 0 … 1, ends included."""
    bn_convention: Literal["cumulative", "ema", "none"] = "cumulative"
    """How BatchNorm statistics of an interpolated network are made."""
    bn_images: int | Literal["all"] = 10_000
    """Training images they are estimated from (all if the set is smaller)."""

    def __post_init__(self) -> None:
        ok = self.bn_images == "all" or self.bn_images >= 1
        _require(ok, f"bn_images is {self.bn_images}; it must be all, or 1 or more")
        _require(self.num_alphas >= 2, f"num_alphas is {self.num_alphas}; the two ends make at least 2")

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


def to_json(config: Any) -> dict[str, Any]:
    """Return a config dataclass as JSON-ready values (paths as text, tuples as lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return dict(plain(asdict(config)))


def search_from_json(values: dict[str, Any]) -> SearchConfig:
    """Rebuild the SearchConfig that `to_json` wrote; a missing or unknown field is a ValueError naming it."""
    nested = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "final": Schedule}
    try:
        parts: dict[str, Any] = {name: kind(**values[name]) for name, kind in nested.items()}
        if "gem_miner" in values:  # older records have none
            gem = dict(values["gem_miner"])
            parts["gem_miner"] = GemMinerConfig(**gem | {"finetune": _schedule(Schedule(**gem["finetune"]))})
        rest = {name: value for name, value in values.items() if name not in parts}
        config = SearchConfig(**parts, **rest)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this search config was written by another version of the harness: {error}") from error
    return _with_types(config)


def _with_types(config: SearchConfig) -> SearchConfig:
    data = replace(config.data, directory=Path(config.data.directory))
    optim = replace(config.optim, betas=(config.optim.betas[0], config.optim.betas[1]))
    final = _schedule(config.final)
    densities = None if config.densities is None else tuple(config.densities)
    return replace(config, data=data, optim=optim, final=final, densities=densities, runs=Path(config.runs))


def _schedule(schedule: Schedule) -> Schedule:
    milestones = schedule.lr_milestones_epochs
    return replace(schedule, lr_milestones_epochs=None if milestones is None else tuple(milestones))
