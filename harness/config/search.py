"""Settings of a search for a signed mask, and their JSON form."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from harness.config.parts import (
    CompileMode,
    DataConfig,
    MatmulPrecision,
    ModelConfig,
    OptimConfig,
    Precision,
    Schedule,
    known,
    readable_experiment_name,
    require,
    require_experiment_name,
    require_finite,
    require_minutes,
)

SaveUnit = Literal["minutes", "epochs", "steps"]
Scope = Literal["global", "layer"]
Order = Literal["default", "paper"]
RewindUnit = Literal["epochs", "steps"]
AlphaDistribution = Literal["uniform", "zero", "bernoulli", "half_to_one"]
"""Distribution of AWS's α. uniform: U(0, 1). zero: always 0. bernoulli: 0 or 1 with equal probability. half_to_one:
U(½, 1)."""
CountRule = Literal["exact", "float"]
Freezing = Literal["authors", "exact"]
MOST_LEVELS = 10_000
NETWORKS_OWN = "network"
"""Name of a network's own initialisation."""


@dataclass(frozen=True)
class GemMinerConfig:
    """Settings of Gem-Miner: training of the scores, then fine-tuning.

    Defaults are those of its authors' ResNet-32. One difference: our cosine schedule ends at 0.001 of the learning
    rate, theirs at 0.
    """

    score_epochs: int = 150
    """E, the epochs of training the scores."""
    lr: float = 0.1
    """Learning rate of the scores."""
    penalty: float = 1e-5
    """λ of the penalty λ‖p‖² in the loss."""
    freeze_every_epochs: int = 5
    """n, the epochs between two freezings of the lowest scores. The first follows epoch n + 1."""
    freezing: Freezing = "authors"
    """authors: freeze after epochs n + 1, 2n + 1, …. Equal scores are frozen together, so fewer weights than planned
    can remain. exact: freeze after epochs n, 2n, …, exactly the planned number, as older runs did."""
    num_train: int | None = None
    """Training images used by both trainings, drawn by sgd_seed. Default: all."""
    finetune: Schedule = Schedule(150, "step", (80, 120))
    """Schedule of fine-tuning."""
    finetune_lr: float = 0.01
    """Learning rate of fine-tuning."""
    finetune_weight_decay: float = 1e-4
    """Weight decay of fine-tuning."""
    momentum: float = 0.9
    """Momentum of both trainings."""

    def __post_init__(self) -> None:
        require_finite(self, "gem_miner.")
        require(self.lr > 0 and self.finetune_lr > 0, "gem_miner.lr and gem_miner.finetune_lr must be positive")
        enough = self.score_epochs > self.freeze_every_epochs >= 1
        require(
            enough,
            f"gem_miner.score_epochs is {self.score_epochs} and freeze_every_epochs is {self.freeze_every_epochs}; "
            "score_epochs must be larger, or no weight is pruned",
        )
        # Check both trainings now, and not when the second one begins.
        require(0 <= self.momentum < 1, f"gem_miner.momentum is {self.momentum}; it must lie in [0, 1)")
        decay = self.finetune_weight_decay
        require(decay >= 0, f"gem_miner.finetune_weight_decay is {decay}; it must not be negative")
        require(self.penalty >= 0, f"gem_miner.penalty is {self.penalty}; it must not be negative")
        known("gem_miner.freezing", self.freezing, get_args(Freezing))
        num_train = self.num_train
        require(num_train is None or num_train >= 1, f"gem_miner.num_train is {num_train}; it must be 1 or more")

    def scoring(self) -> tuple[OptimConfig, Schedule]:
        """Return optimizer and schedule of the scores. Weight decay 2λ implements λ‖p‖²."""
        optim = OptimConfig("sgd", lr=self.lr, momentum=self.momentum, weight_decay=2 * self.penalty)
        return optim, Schedule(self.score_epochs, "cosine")

    def finetuning(self) -> tuple[OptimConfig, Schedule]:
        """Return optimizer and schedule of fine-tuning."""
        optim = OptimConfig("sgd", lr=self.finetune_lr, momentum=self.momentum, weight_decay=self.finetune_weight_decay)
        return optim, self.finetune


@dataclass(frozen=True)
class SearchConfig:
    """A search for a signed mask (Algorithm 1).

    It includes the schedule of the final trainings.
    """

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    final: Schedule
    """Schedule of every final training."""
    warmup_epochs: int
    """Epochs of level 0, the dense warm-up, at a constant learning rate."""
    level_epochs: int
    """Epochs of each pruning level, at a constant learning rate."""
    num_levels: int
    """T, the number of prunings. The final density is (1 − --pruning-fraction)^T, or the T-th of --densities."""
    global_batch_size: int
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    method: str = "aws"
    """Pruning method. aws is the paper's, lrr its main baseline."""
    pruning_fraction: float = 0.2
    """Share of the remaining prunable weights that each level removes, 0..1. Larger steps need fewer levels."""
    densities: tuple[float, ...] | None = None
    """Density of each level from level 1 on. Replaces --pruning-fraction."""
    count_rule: CountRule = "exact"
    """How --pruning-fraction f gives the number of weights that n live ones leave. exact: ⌊(1 − f)·n⌋ for f as written.
    float: int((1 - f) * n) in floating point, as in older versions. It can keep one weight too few, e.g. for 0.8."""
    pruning_scope: Scope = "global"
    """global compares weights across all layers. layer prunes the same share of each layer."""
    one_shot: bool = False
    """Prune the dense network once, directly to the density of level T."""
    order: Order = "default"
    """paper: Algorithm 1 as printed. Level 0 is the warm-up plus one level, and level T is pruned but not trained."""
    alpha: AlphaDistribution = "uniform"
    """aws only: distribution of α. Forward passes see αψ + (1−α)ψ_init instead of the normalisation parameters ψ, whose
    initial values are ψ_init. uniform: U(0, 1), as in the paper. zero: no forward pass of the search uses ψ.
    bernoulli: 0 or 1. half_to_one: U(½, 1)."""
    rewind_to: int = 1
    """wr only: k, the epoch or step to which parameters, schedule and data order rewind."""
    rewind_unit: RewindUnit = "epochs"
    """wr only: the unit of --rewind-to."""
    gem_miner: GemMinerConfig = GemMinerConfig()
    """gem_miner only: its own schedules. They replace warm-up and level epochs."""
    init_seed: int = 1
    """Seed of θ_init, the initial parameters of the search. Change it for another trial."""
    initialisation: str = NETWORKS_OWN
    """Initialisation of θ_init: network (its own), kaiming_normal, constant, or a trained network (run ID or file)."""
    sgd_seed: int = 1
    """Seed of the noise u: data order, augmentation, and AWS's α (--alpha). Change it for another trial."""
    precision: Precision = "no"
    """Mixed precision. auto selects bf16 on a CUDA device that supports it, else no. Runs record the selection."""
    float32_matmul_precision: MatmulPrecision = "highest"
    """Precision of float32 matrix products. high and medium are faster but less exact (TF32, bf16) on some devices."""
    compile: CompileMode = "no"
    """Compile the network with torch.compile. Use it for long runs, since the first step compiles for up to minutes.
    default: fused kernels. reduce-overhead: also CUDA graphs, for small networks or batches; on a CPU, as default."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step. Raise it if a batch does not fit into the device's memory."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over the images of all processes. Needs GPUs."""
    deterministic: bool = False
    """Use deterministic CUDA algorithms, for equal bits on every repetition. CPU runs are always deterministic."""
    earlier_processes: tuple[int, ...] = ()
    """Numbers of processes of earlier launches, first the one that began the search. Their finished levels are
    continued instead of trained again. Use it after a preemption, if fewer or more processes are available."""
    evaluate_every: int = 0
    """Epochs between two measurements of the test error within a training (0: never). Use it to watch a long training.
    No bit of a result depends on it."""
    checkpoint_every: float = 10
    """Interval between checkpoints within a level (0: never). A stop request also saves a checkpoint."""
    checkpoint_unit: SaveUnit = "minutes"
    """Unit of --checkpoint-every."""
    probe: bool = True
    """Measure before the first training whether the ffcv loader or the device is the limit, and log both rates. Turn it
    off to start two seconds earlier."""
    stuck_after: float = 8
    """Minutes without progress after which a launch of several processes is ended (0: never). The first step of a
    training, evaluations and the work between trainings are exempt. Gradient exchange has a separate timeout of ten
    minutes."""
    runs: Path = Path("runs")
    """Directory of local runs. They stay there after delivery to MLflow. Use one per project."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Deliver nothing to MLflow during this launch, for example without a network. `python tools/lineage.py sync`
    delivers later."""
    trust_code: bool = False
    """Execute the Python file of a prepared data set, also if you have named it in no command. Read its copy source.py
    in the data set's directory first."""

    def __post_init__(self) -> None:
        # Phase: levels and densities.
        require(self.num_levels >= 0, f"num_levels is {self.num_levels}; it must not be negative")
        most = MOST_LEVELS
        require(self.num_levels <= most, f"num_levels is {self.num_levels}; at most {most:,} are allowed")
        fraction = self.pruning_fraction
        require(0 < fraction < 1, f"--pruning-fraction {fraction}: must be above 0 and below 1")
        known("count_rule", self.count_rule, get_args(CountRule))
        self._check_densities()

        # Phase: the launch.
        require(self.rewind_to >= 0, f"rewind_to is {self.rewind_to}; it must not be negative")
        require(self.evaluate_every >= 0, f"evaluate_every is {self.evaluate_every}; it must not be negative")
        require(self.checkpoint_every >= 0, f"checkpoint_every is {self.checkpoint_every}; it must not be negative")
        require_minutes("stuck_after", self.stuck_after)
        require(
            all(size >= 1 for size in self.earlier_processes),
            f"--earlier-processes {' '.join(map(str, self.earlier_processes))}: each number must be 1 or more",
        )
        require_experiment_name(self.experiment)

        # Phase: compiling, batches and epochs.
        known("compile", self.compile, get_args(CompileMode))
        require(
            self.compile != "reduce-overhead" or self.accumulation_steps == 1,
            f"compile is reduce-overhead and accumulation_steps is {self.accumulation_steps}; CUDA graphs overwrite "
            "the gradients of earlier micro-batches: choose --compile default, or --accumulation-steps 1",
        )
        require(self.accumulation_steps >= 1, f"accumulation_steps is {self.accumulation_steps}; it must be 1 or more")
        require(self.global_batch_size >= 1, f"global_batch_size is {self.global_batch_size}; it must be 1 or more")
        require(self.warmup_epochs >= 0 and self.level_epochs >= 0, "epochs must not be negative")
        require_finite(self)

    @property
    def counts_by(self) -> dict[str, str]:
        """Return the entry of keys and records that names the rule of the counts.

        It is empty where both rules give equal counts, and for the older rule. So old keys and records stay valid.
        """
        by_fraction = self.densities is None and self.count_rule == "exact"
        return {"count_rule": "exact"} if by_fraction and count_rules_differ(self.pruning_fraction) else {}

    def _check_densities(self) -> None:
        if (densities := self.densities) is None:
            return
        falling = all(before > after for before, after in zip((1.0, *densities), densities, strict=False))
        given = f"--densities {' '.join(map(str, densities))}"
        require(all(0 < density < 1 for density in densities), f"{given}: each density must be above 0 and below 1")
        require(falling, f"{given}: densities must fall from level to level")
        require(
            self.num_levels <= len(densities),
            f"densities has {len(densities)} levels, but num_levels is {self.num_levels}; "
            f"give --num-levels {len(densities)} or fewer",
        )


@cache
def count_rules_differ(fraction: float) -> bool:
    """Return whether int((1 − f)·n) in floating point can differ from the exact ⌊(1 − f)·n⌋.

    Let D be the double 1 − f, and E = p/q the exact value for f as written. Products are rounded to the nearest double.
    For n·q < 2⁵² the rounding cannot lift a product to the next integer. So the rules can only differ where E·n is an
    integer and the double D·n lies below it: this happens for some n if and only if E − D > 2⁻⁵⁴·E. With
    q ≤ 2²⁰ (six decimals) this covers all n < 2³². For longer fractions the answer is True.
    """
    exact = 1 - Fraction(str(fraction))
    return exact.denominator > 2**20 or exact - Fraction(1 - fraction) > exact / 2**54


def to_json(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to JSON values. Paths become strings and tuples become lists.

    A search's `count_rule` appears only where it matters (`SearchConfig.counts_by`), options of a network only if it is
    not built in, `probe` and `trust_code` never.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    values = asdict(config)
    if isinstance(config, SearchConfig):
        del values["probe"], values["trust_code"]
        if not config.counts_by:
            del values["count_rule"]
        if config.model.kind == "built-in":  # as older records have it
            del values["model"]["args"], values["model"]["classifier"]
    return dict(plain(values))


def search_from_json(values: dict[str, Any]) -> SearchConfig:
    """Rebuild a SearchConfig from the output of `to_json`.

    Raises:
        ValueError: A field is unknown, or a field without a default is missing.
    """
    nested = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "final": Schedule}
    try:
        parts: dict[str, Any] = {name: kind(**values[name]) for name, kind in nested.items()}
        if "gem_miner" in values:  # missing in older records
            gem = {"freezing": "exact"} | values["gem_miner"]  # older records without this field used exact
            parts["gem_miner"] = GemMinerConfig(**gem | {"finetune": _schedule(Schedule(**gem["finetune"]))})
        # A record must not decide that its own code is trusted.
        rest = {name: value for name, value in values.items() if name not in {*parts, "trust_code"}}
        with contextlib.suppress(KeyError):
            rest["experiment"] = readable_experiment_name(rest["experiment"])
        config = SearchConfig(**parts, **rest)
        if "count_rule" not in values and config.counts_by:  # a record of an older version
            config = replace(config, count_rule="float")
        return _with_types(config)
    except ValueError:
        raise
    except Exception as error:  # a record can hold anything
        raise ValueError(f"this search config was written by another version of the harness: {error!r:.200}") from error


def _with_types(config: SearchConfig) -> SearchConfig:
    data = replace(config.data, directory=Path(config.data.directory))
    optim = replace(config.optim, betas=(config.optim.betas[0], config.optim.betas[1]))
    final = _schedule(config.final)
    densities = None if config.densities is None else tuple(config.densities)
    model = replace(config.model, args=tuple(config.model.args))
    config = replace(config, earlier_processes=tuple(config.earlier_processes))
    return replace(
        config, data=data, model=model, optim=optim, final=final, densities=densities, runs=Path(config.runs)
    )


def _schedule(schedule: Schedule) -> Schedule:
    milestones = schedule.lr_milestones_epochs
    return replace(schedule, lr_milestones_epochs=None if milestones is None else tuple(milestones))
