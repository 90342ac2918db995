"""What every launch has settings for: data, network, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from math import cos, inf, pi
from pathlib import Path
from typing import Any, Literal, get_args

LrSchedule = Literal["constant", "step", "cosine"]
Precision = Literal["no", "fp16", "bf16", "auto"]
MatmulPrecision = Literal["highest", "high", "medium"]


def known(what: str, name: str, names: Sequence[str]) -> str:
    """Return `name` if it is one of `names`; else raise a ValueError that lists them and the nearest."""
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint}; known: {', '.join(sorted(names))}")


def require(ok: bool, message: str) -> None:
    """Raise a ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def require_minutes(name: str, minutes: float) -> None:
    """Raise a ValueError unless `minutes` can be waited for."""
    require(0 <= minutes < inf, f"{name} is {minutes}; it must be a finite number of minutes, and not negative")


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
        require(workers == -1 or workers >= 1, f"data.num_workers is {workers}; it must be -1, or 1 or more")


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
        require(self.lr > 0, f"optim.lr is {self.lr}; it must be positive")
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must lie in [0, 1)")
        require(all(0 <= beta < 1 for beta in self.betas), f"optim.betas are {self.betas}; each must lie in [0, 1)")
        clip = self.max_grad_norm
        require(clip is None or clip > 0, f"optim.max_grad_norm is {clip}; it must be positive")

    def determinants(self) -> dict[str, Any]:
        """What determines a training's bits: not the settings of an optimizer that is not used."""
        unused = {"sgd": ("betas",), "adam": ("momentum",)}[self.name]
        return {name: value for name, value in asdict(self).items() if name not in unused}


@dataclass(frozen=True)
class Schedule:
    """How long one training lasts and how its learning rate falls, in steps of one epoch."""

    epochs: int
    lr_schedule: LrSchedule
    """constant; step: ×0.1 at each milestone; cosine: falls towards 0.001 of the start."""
    lr_milestones_epochs: tuple[int, ...] | None = None
    """Milestones of step; E//2 and (E//4)·3 if not given."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"epochs is {self.epochs}; it must not be negative")
        known("lr_schedule", self.lr_schedule, get_args(LrSchedule))
        if (milestones := self.lr_milestones_epochs) is not None:
            allowed = self.lr_schedule == "step" and all(milestone > 0 for milestone in milestones)
            require(allowed, f"lr_milestones_epochs is {milestones}; it takes positive epochs, with lr_schedule step")

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
        if self.lr_schedule == "cosine":
            floor = 1e-3
            return floor + (1 - floor) * (1 + cos(pi * epoch / self.epochs)) / 2
        raise ValueError(f"lr_schedule {self.lr_schedule!r} has no formula here; write one beside its name")
