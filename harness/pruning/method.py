"""The base class of pruning methods: a method overrides the hooks in which it differs from LRR."""

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
"""Takes α; returns a context that covers forward and backward of one optimizer step."""


class NotHereError(LookupError):
    """A network, or its gradients, that a hook asked for cannot be had here; the message names it."""


class _HasCheckpoint(Protocol):
    @property
    def checkpoint(self) -> Checkpoint: ...


Run = TypeVar("Run", bound=_HasCheckpoint)


@dataclass(frozen=True)
class NormState:
    """ψ of the network in training and ψ_init, its values in θ_init, in the same order."""

    params: list[torch.Tensor]
    initial: list[torch.Tensor]


@dataclass(frozen=True)
class StartPoint:
    """The state a training starts from: θ ⊙ m, buffers, and the epochs behind it."""

    params: dict[str, torch.Tensor]
    """On the CPU; pruned weights are +0.0."""
    buffers: dict[str, torch.Tensor]
    mask: Mask
    epochs: int = 0
    """Epochs that the search has trained already."""
    epochs_spent: int | None = None
    """Epochs that led to this start in all, where that is another number."""
    begin_steps: int = 0
    """Schedule and u begin after so many of their steps."""
    keeps: Mapping[str, Params] = field(default_factory=dict)
    """Tensors to keep beside the trained network, by file name."""
    weights: Params | None = None
    """The weights whose signs are compared with the trained ones, where `params` are not weights."""

    @classmethod
    def masked(cls, params: Params, buffers: Params, mask: Mask, **more: Any) -> StartPoint:
        """Copy θ and apply m to the copy."""
        copy = {name: tensor.clone() for name, tensor in params.items()}
        mask.apply_(copy)
        return cls(copy, dict(buffers), mask, **more)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of θ ⊙ m: equal starts are provably equal."""
        return sha256_tensors(self.params)


class TrainingHook:
    """An object that goes along with one training; the state it is resumed from holds its state too."""

    def attach(self, model: nn.Module) -> None:
        """Take the network before the first step."""

    def after_step(self, epoch: int, steps: int) -> None:
        """Note that `steps` steps of `epoch` are done, the last one's update and mask included."""

    def after_epoch(self, epoch: int) -> None:
        """Note that all steps of `epoch` are done."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors to resume from, on the CPU; none shares memory with the training."""
        return {}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Resume from the tensors that `state` returned."""

    def finish(self, mask: Mask) -> Mask:
        """End the training: leave in the network the weights to keep, and return their mask."""
        return mask

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return more networks to keep beside the `trained` one, by file name."""
        return {}


@dataclass(frozen=True)
class LevelContext:
    """All that a method may look at when it makes a level."""

    config: SearchConfig
    level: int
    mask: Mask
    """mₜ₋₁ while the next mask is chosen, then mₜ; `mask.tensors` has a bool tensor for each prunable weight."""
    norm: frozenset[str]
    """Names of the normalisation parameters ψ."""
    theta_init: Checkpoint
    """θ₀, the initialisation of the search."""
    parent: Checkpoint
    """θₜ₋₁, the network of the level before; θ_init for level 0."""
    read: Callable[[str], Checkpoint]
    """Reads a file that level 0 keeps; NotHereError if it cannot be had."""
    phase: str = ""
    """Sets several trainings of one level apart."""
    steps_per_epoch: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(channels, height, width)."""
    new_model: Callable[[], nn.Module] | None = None
    """Builds the network, with any values, in float32 on the CPU. None if it is not known: then raise NotHereError."""
    gradients: Callable[[Params, Mask], Params] | None = None
    """Takes θ and m; returns the gradients of the loss at θ ⊙ m by name, on the CPU, of one training batch: always the
    same one for an sgd_seed. None where no data are open (`verify`): then raise NotHereError."""


class Statement(NamedTuple):
    """A fact that a method claims of a finished level, and whether it holds."""

    check: str
    holds: bool
    message: str


@dataclass(frozen=True)
class StoredLevel:
    """A finished level as `verify` finds it: networks read from their files, None where they are not here."""

    context: LevelContext
    checkpoint: Checkpoint | None
    networks: Mapping[str, Checkpoint]
    """Further networks of the level, by file name."""
    parent_mask: Mask | None


class Method:
    """One way to find a mask: the hooks of a search, and facts about its levels.

    A method derives from LRR (`lrr.py`), or from one that it shares more with, and overrides the hooks in which it
    differs. `METHODS` holds one object for each name. Hooks must not keep state.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    """Fields of EpochReport that its levels log beside the usual ones."""
    importance_file: ClassVar[str | None] = None
    """A file name, by custom importance.safetensors, if its importance needs data: the scores are kept in it with the
    level, for `verify` to check the mask."""
    masks_classifier: ClassVar[bool] = False
    """Whether its masks may cover the classifier, too."""
    reestimates_batchnorm: ClassVar[bool] = True
    """Whether a level is evaluated with fresh BatchNorm statistics: an AWS level's own are not those of ψ."""
    drawn_arrow: ClassVar[str] = ""
    """Word on the arrow that pictures draw to a level from the state it is rewound to; "" for none."""
    drawn_file: ClassVar[str] = ""
    """File of level 0 that keeps that state; "" for θ_init."""
    heeds: ClassVar[tuple[str, ...]] = ("warmup_epochs", "level_epochs")
    """Further settings that its levels depend on: fields of SearchConfig."""
    searches_one_density: ClassVar[bool] = False
    """Whether each search makes the ticket of one density, not of all levels on the way."""

    # ---- the search as a whole

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for options that contradict one another."""
        if config.order == "paper" and config.num_levels == 0:
            raise ValueError("order=paper takes the signs of a pruned network; num_levels must be 1 or more")
        if config.alpha != "uniform" and "alpha" not in self.heeds:
            raise ValueError(f"alpha={config.alpha} is of method aws; {config.method} draws no α")
        if config.one_shot and config.num_levels == 0:
            raise ValueError("one_shot prunes to the density of level num_levels; it must be 1 or more")

    def initialisation(self, config: SearchConfig) -> str:
        """Return the name of the initialisation that θ_init is drawn by."""
        return config.initialisation

    def search(self, search: SearchHandle) -> list[Any] | None:
        """Make the levels in another way than Algorithm 1 and return their runs; None: Algorithm 1."""
        return None

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return epochs and learning rate of a level; Schedule(0, "constant") for one that is not trained."""
        raise NotImplementedError

    def search_epochs(self, config: SearchConfig, levels: int) -> int:
        """Return the epochs that a search of so many levels trains."""
        return sum(self.schedule(config, level).epochs for level in range(levels + 1))

    def determinants(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return further inputs to a level's key; {} for none."""
        return {}

    def own_settings(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return the settings that this method alone has; levels of equal ones are trials of one setting."""
        return self.determinants(config, steps_per_epoch)

    # ---- Algorithm 1, line 8: the next mask

    def pruning(self, config: SearchConfig) -> PruningSchedule | None:
        """Return how many weights each level keeps; None: nothing is pruned."""
        return PruningSchedule.of(config)

    def importance(self, ctx: LevelContext) -> Params:
        """Return the importance of every prunable weight: of the weights in `ctx.mask` the largest are kept.

        The values of weights that are pruned already do not matter.
        """
        raise NotImplementedError

    # ---- Algorithm 1, lines 2–7: the training of a level, and where it starts

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return the point that level t trains from."""
        raise NotImplementedError

    def noise(self, config: SearchConfig, level: int, *, again: bool = False) -> SgdNoise:
        """Return the noise u of a level: data order, augmentation, α. `again` is the continued warm-up."""
        raise NotImplementedError

    def view(self, norm: NormState) -> ForwardView:
        """Return the view of each optimizer step: what the forward pass sees of ψ."""
        return plain_view

    def training_hook(self, ctx: LevelContext) -> TrainingHook | None:
        """Return an object that goes along with the training of a level."""
        return None

    # ---- after the search

    def retraining(self, ticket: Run) -> Run | None:
        """Return the ticket itself if its level was trained already as `retrain` would train it; full trainings do."""
        return None

    def statements(self, stored: StoredLevel) -> Iterator[Statement] | None:
        """Check a level in another way than `verify` does with `importance` and `pruning`; None: as `verify` does."""
        return None

    def recorded_settings(self, config: SearchConfig, phase: str) -> dict[str, Any]:
        """Return inputs to a level's key that follow from the settings, so that `verify` can compare them.

        None for one that the key must not have.
        """
        return {}

    def departure(self, config: SearchConfig) -> str | None:
        """Return in words how older levels depart from the method of today, for `verify` to note; None: not at all."""
        return None


class SearchHandle(Protocol):
    """A search in progress, as a method that makes its levels itself sees it."""

    @property
    def config(self) -> SearchConfig: ...
    @property
    def root(self) -> str:
        """Key of the search."""

    @property
    def theta_init(self) -> Checkpoint: ...
    @property
    def norm(self) -> frozenset[str]: ...
    @property
    def prunable(self) -> frozenset[str]: ...
    @property
    def classifier(self) -> str:
        """Name of the classifier's module."""

    def context(self, level: int, mask: Mask, phase: str = "") -> LevelContext:
        """Return the context of a level."""

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
        """Train one level, or load it if it is finished; see `harness.experiment.search.Search.train`."""


def plain_view(alpha: float) -> AbstractContextManager[None]:
    """Let the forward pass see θ itself."""
    return nullcontext()
