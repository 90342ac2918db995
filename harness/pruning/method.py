"""Base class of pruning methods, and the types that its hooks receive and return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.common.seeds import SgdNoise
from harness.config import Schedule, SearchConfig
from harness.masks import Mask
from harness.pruning.magnitude import PruningSchedule

if TYPE_CHECKING:
    from torch import nn

Params = Mapping[str, torch.Tensor]
ForwardView = Callable[[float], AbstractContextManager[None]]
"""Takes α and returns a context manager around the forward and backward passes of one optimizer step."""


ARCHITECTURE = "the network's architecture"
"""What is missing if the network cannot be built."""


class NotHereError(LookupError):
    """A hook needs a network or gradients that are not available in this process. The message names them."""


class _HasCheckpoint(Protocol):
    @property
    def checkpoint(self) -> Checkpoint: ...


Run = TypeVar("Run", bound=_HasCheckpoint)


@dataclass(frozen=True)
class NormState:
    """ψ of the network in training, and ψ_init, in the same order."""

    params: list[torch.Tensor]
    initial: list[torch.Tensor]


@dataclass(frozen=True)
class StartPoint:
    """The state that a training starts from."""

    params: dict[str, torch.Tensor]
    """θ ⊙ m on the CPU. Pruned weights are +0.0."""
    buffers: dict[str, torch.Tensor]
    mask: Mask
    epochs: int = 0
    """Epochs that the search has trained before this run."""
    epochs_spent: int | None = None
    """Total epochs spent to reach this start. None: equal to `epochs`."""
    begin_steps: int = 0
    """Number of steps by which the schedule and u are advanced at the start."""
    keeps: Mapping[str, Params] = field(default_factory=dict)
    """Further tensors to store in the run, by file name."""
    weights: Params | None = None
    """Weights to compare the trained signs with. None: `params`. Set it where `params` hold something else."""

    @classmethod
    def masked(cls, params: Params, buffers: Params, mask: Mask, **more: Any) -> StartPoint:
        """Build a start point from a copy of θ with m applied."""
        copy = {name: tensor.clone() for name, tensor in params.items()}
        mask.apply_(copy)
        return cls(copy, dict(buffers), mask, **more)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of θ ⊙ m, which proves that two starts are equal."""
        return sha256_tensors(self.params)


class TrainingHook:
    """Callbacks during one training. Their state is saved and restored with the training's state."""

    def attach(self, model: nn.Module) -> None:
        """Receive the network before the first step."""

    def after_step(self, epoch: int, steps: int) -> None:
        """Run after `steps` steps of `epoch`, when the last update and mask are applied."""

    def after_epoch(self, epoch: int) -> None:
        """Run after the last step of `epoch`."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save, on the CPU. They must not share memory with the training."""
        return {}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the tensors that `state` returned, when a training resumes."""

    def finish(self, mask: Mask) -> Mask:
        """Run after the last epoch. Put the final weights into the network and return their mask."""
        return mask

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return further checkpoints to store beside `trained`, by file name."""
        return {}


@dataclass(frozen=True)
class LevelContext:
    """The inputs from which a method computes a level."""

    config: SearchConfig
    level: int
    mask: Mask
    """mₜ₋₁ for `importance`, mₜ for `start`. `mask.tensors` has one bool tensor for each prunable parameter."""
    norm: frozenset[str]
    """Names of the normalisation parameters ψ."""
    theta_init: Checkpoint
    """θ₀, the initialisation of the search."""
    parent: Checkpoint
    """θₜ₋₁, the network of the previous level. For level 0: θ_init."""
    read: Callable[[str], Checkpoint]
    """Reads a file of the run of level 0 by name. Raises NotHereError if the file is not available."""
    phase: str = ""
    """Distinguishes several trainings of one level."""
    steps_per_epoch: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(channels, height, width)."""
    new_model: Callable[[], nn.Module] | None = None
    """Builds the network with arbitrary weights, in float32 on the CPU.

    None if the architecture is unknown. A hook that needs it then raises NotHereError.
    """
    gradients: Callable[[Params, Mask], Params] | None = None
    """Takes θ and m, and returns the gradients of the loss at θ ⊙ m by name, on the CPU.

    They belong to one training batch, which depends on sgd_seed alone. None if no data are open (as in `verify`). A
    hook that needs gradients then raises NotHereError.
    """


class Statement(NamedTuple):
    """The result of one check of a finished level."""

    check: str
    """Name of the check."""
    holds: bool
    message: str
    """Reported if the check fails."""


@dataclass(frozen=True)
class StoredLevel:
    """A finished level as `verify` reads it from its files."""

    context: LevelContext
    checkpoint: Checkpoint | None
    """None if the file is not local."""
    networks: Mapping[str, Checkpoint]
    """Further checkpoints of the level that are local, by file name."""
    parent_mask: Mask | None
    """None if the parent's files are not local."""


class Method:
    """The hooks by which a pruning method defines its search.

    Most methods derive from LRR (`lrr.py`) or from a closer method, and override the hooks in which they differ.
    `METHODS` holds one instance per name, shared by all searches. So hooks must not keep state.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    """Fields of EpochReport that its levels log in addition to the usual ones."""
    importance_file: ClassVar[str | None] = None
    """File in the run that stores the importance, if computing it needs data. None: it is not stored.

    `verify` reads it to check the mask. The conventional name is importance.safetensors.
    """
    masks_classifier: ClassVar[bool] = False
    """Whether its masks may also cover the classifier."""
    reestimates_batchnorm: ClassVar[bool] = True
    """Whether levels are evaluated with re-estimated BatchNorm statistics.

    AWS needs this: its running statistics belong to the interpolated ψ, not to ψ.
    """
    drawn_arrow: ClassVar[str] = ""
    """Label of the arrow to a level from the state that it is rewound to, in pictures of the lineage. "": no arrow."""
    drawn_file: ClassVar[str] = ""
    """File in the run of level 0 that stores this state. "": the state is θ_init."""
    heeds: ClassVar[tuple[str, ...]] = ("warmup_epochs", "level_epochs")
    """Fields of SearchConfig on which this method's levels depend, besides those that matter for all methods."""
    searches_one_density: ClassVar[bool] = False
    """Whether one search makes the ticket of one density only, without levels of higher density."""

    # ---- the search as a whole

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for options that contradict one another."""
        if config.order == "paper" and config.num_levels == 0:
            raise ValueError("order=paper takes the signs of a pruned network; num_levels must be 1 or more")
        if config.alpha != "uniform" and "alpha" not in self.heeds:
            raise ValueError(f"method {config.method} uses no α: remove alpha={config.alpha}, or choose method aws")
        if config.one_shot and config.num_levels == 0:
            raise ValueError("one_shot prunes to the density of level num_levels, which must be 1 or more")

    def initialisation(self, config: SearchConfig) -> str:
        """Return the name of the scheme that draws θ_init."""
        return config.initialisation

    def search(self, search: SearchHandle) -> list[Any] | None:
        """Run a search that does not follow Algorithm 1, and return its runs.

        Returns:
            The finished runs, or None to let the caller run Algorithm 1.
        """
        return None

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return epochs and learning-rate schedule of a level. An untrained level has Schedule(0, "constant")."""
        raise NotImplementedError

    def search_epochs(self, config: SearchConfig, levels: int) -> int:
        """Return the total epochs of a search of level 0 and `levels` pruned levels."""
        return sum(self.schedule(config, level).epochs for level in range(levels + 1))

    def determinants(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return the inputs to a level's key that only this method has."""
        return {}

    def own_settings(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return the settings that only this method has. Figures group levels with equal settings as trials."""
        return self.determinants(config, steps_per_epoch)

    # ---- Algorithm 1, line 8: the next mask

    def pruning(self, config: SearchConfig) -> PruningSchedule | None:
        """Return the number of weights that each level keeps, as a schedule; None to prune nothing."""
        return PruningSchedule.of(config)

    def importance(self, ctx: LevelContext) -> Params:
        """Return the importance of every prunable weight, by parameter name.

        The weights of `ctx.mask` with the largest importance are kept. Values at already pruned weights are ignored.
        """
        raise NotImplementedError

    # ---- Algorithm 1, lines 2–7: the start and the training of a level

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return the state from which level t trains."""
        raise NotImplementedError

    def noise(self, config: SearchConfig, level: int, *, again: bool = False) -> SgdNoise:
        """Return the noise u of a level: data order, augmentation, dropout and α.

        Args:
            again: Whether the training continues the warm-up at level 0 (order=paper), so that its u must differ.
        """
        raise NotImplementedError

    def view(self, norm: NormState) -> ForwardView:
        """Return the view of each optimizer step, which may replace ψ during forward and backward passes."""
        return plain_view

    def training_hook(self, ctx: LevelContext) -> TrainingHook | None:
        """Return the callbacks for the training of a level, or None."""
        return None

    # ---- after the search

    def retraining(self, ticket: Run) -> Run | None:
        """Return the ticket if its level already equals the final training `retrain`; else None.

        This holds for methods whose levels use the final schedule. `retrain` then reuses the level.
        """
        return None

    def statements(self, stored: StoredLevel) -> Iterator[Statement] | None:
        """Check a stored level for `verify`.

        Returns:
            The results, or None to let `verify` recompute the mask from `importance` and `pruning`.
        """
        return None

    def recorded_settings(self, config: SearchConfig, phase: str) -> dict[str, Any]:
        """Return the inputs to a level's key that follow from the settings, for `verify` to compare.

        A value of None means that the key must not contain this input.
        """
        return {}

    def departure(self, config: SearchConfig) -> str | None:
        """Describe how a level made by an older version differs from the current method; None if it does not.

        `verify` reports it as a note.
        """
        return None


class SearchHandle(Protocol):
    """The interface of a running search for methods that override `Method.search`."""

    @property
    def config(self) -> SearchConfig: ...
    @property
    def root(self) -> str:
        """Return the key of the search run."""

    @property
    def theta_init(self) -> Checkpoint: ...
    @property
    def norm(self) -> frozenset[str]: ...
    @property
    def prunable(self) -> frozenset[str]: ...
    @property
    def classifier(self) -> tuple[str, ...]:
        """Return the names of the classifier's modules."""

    def context(self, level: int, mask: Mask, phase: str = "") -> LevelContext:
        """Return the context of a level under `mask`."""

    def train(
        self,
        ctx: LevelContext,
        density: float,
        schedule: Schedule,
        *,
        parent: tuple[str, str],
        start: Callable[[], StartPoint],
        noise: SgdNoise,
        determinants: Mapping[str, Any],
        recorded: Mapping[str, Any],
        **how: Any,
    ) -> Any:
        """Train one level, or load its finished run. See `harness.experiment.search.Search.train`."""


def plain_view(alpha: float) -> AbstractContextManager[None]:
    """Return a context manager that does nothing: the forward pass uses θ itself."""
    return nullcontext()
