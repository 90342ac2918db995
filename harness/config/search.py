"""The settings of a search for a signed mask, and their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from harness.config.parts import (
    DataConfig,
    MatmulPrecision,
    ModelConfig,
    OptimConfig,
    Precision,
    Schedule,
    known,
    require,
    require_minutes,
)

SaveUnit = Literal["minutes", "epochs", "steps"]
Scope = Literal["global", "layer"]
Order = Literal["default", "paper"]
RewindUnit = Literal["epochs", "steps"]
AlphaDistribution = Literal["uniform", "zero", "bernoulli", "half_to_one"]
"""Of AWS's α: U(0, 1); always 0; 0 or 1, each half the time; U(½, 1)."""
Freezing = Literal["authors", "exact"]
NETWORKS_OWN = "network"
"""The initialisation that a network comes with."""


@dataclass(frozen=True)
class GemMinerConfig:
    """Gem-Miner only: scores trained by SGD, then fine-tuning, as its authors' ResNet-32.

    The cosine schedule of the scores ends at 0.001 of the learning rate, as all of ours do; theirs at 0.
    """

    score_epochs: int = 150
    """E, epochs of training the scores."""
    lr: float = 0.1
    """Learning rate of the scores."""
    penalty: float = 1e-5
    """λ of the loss's λ‖p‖²."""
    freeze_every_epochs: int = 5
    """n: the lowest scores are frozen this often, first after epoch n + 1."""
    freezing: Freezing = "authors"
    """authors: after epochs n + 1, 2n + 1, …, and equal scores together, so that fewer weights than planned can stay;
    exact: after n, 2n, …, the planned number, as older runs did."""
    num_train: int | None = None
    """Training images of both trainings, drawn by the search's sgd_seed; all if not given."""
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
        require(
            enough,
            f"gem_miner.score_epochs is {self.score_epochs} and freeze_every_epochs {self.freeze_every_epochs}; "
            "it takes at least one epoch more than that, so that something is pruned",
        )
        require(self.penalty >= 0, f"gem_miner.penalty is {self.penalty}; it must not be negative")
        known("gem_miner.freezing", self.freezing, get_args(Freezing))
        num_train = self.num_train
        require(num_train is None or num_train >= 1, f"gem_miner.num_train is {num_train}; it must be 1 or more")

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
    alpha: AlphaDistribution = "uniform"
    """aws only: the distribution of α. uniform, U(0, 1), is the paper's; zero: ψ never enters a forward pass of the
    search; bernoulli: 0 or 1; half_to_one: U(½, 1)."""
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
    """Mixed precision. auto is bf16 on a CUDA device that has it, and no on every other device; runs record which."""
    float32_matmul_precision: MatmulPrecision = "highest"
    """How float32 matrix products are computed; high and medium are faster and coarser (TF32, bf16) on some devices."""
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
    stuck_after: float = 8
    """Minutes without progress after which a launch of several processes is ended (0: never). The first step of each
    training and all work between trainings are not watched. Waiting for gradients is limited to ten minutes anyway."""
    runs: Path = Path("runs")
    """Where finished levels are kept before and after MLflow gets them."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Send nothing to MLflow now; `python tools/lineage.py sync` does it later."""

    def __post_init__(self) -> None:
        require(self.num_levels >= 0, f"num_levels is {self.num_levels}; it must not be negative")
        require(0 < self.pruning_fraction < 1, f"pruning_fraction is {self.pruning_fraction}; it must lie in (0, 1)")
        self._check_densities()
        require(self.rewind_to >= 0, f"rewind_to is {self.rewind_to}; it must not be negative")
        require(self.checkpoint_every >= 0, f"checkpoint_every is {self.checkpoint_every}; it must not be negative")
        require_minutes("stuck_after", self.stuck_after)
        require(self.accumulation_steps >= 1, f"accumulation_steps is {self.accumulation_steps}; it must be 1 or more")
        require(self.global_batch_size >= 1, f"global_batch_size is {self.global_batch_size}; it must be 1 or more")
        require(self.warmup_epochs >= 0 and self.level_epochs >= 0, "epochs must not be negative")

    def _check_densities(self) -> None:
        if (densities := self.densities) is None:
            return
        falling = all(before > after for before, after in zip((1.0, *densities), densities, strict=False))
        ok = falling and all(0 < density < 1 for density in densities)
        require(ok, f"densities are {densities}; they must fall from level to level, within (0, 1)")
        require(
            self.num_levels <= len(densities),
            f"densities are given for {len(densities)} levels and num_levels is {self.num_levels}; "
            f"give --num-levels {len(densities)} or fewer",
        )


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
    """Rebuild the SearchConfig that `to_json` wrote; an unknown field, or a missing one without default: ValueError."""
    nested = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "final": Schedule}
    try:
        parts: dict[str, Any] = {name: kind(**values[name]) for name, kind in nested.items()}
        if "gem_miner" in values:  # older records have none
            gem = {"freezing": "exact"} | values["gem_miner"]  # those that have no freezing froze exact counts
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
