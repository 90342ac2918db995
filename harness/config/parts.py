"""Settings that every launch has: data, network, optimizer, schedule."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import cos, inf, isfinite, pi
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

LrSchedule = Literal["constant", "step", "cosine"]
NetworkKind = Literal["built-in", "timm", "torchvision", "file"]
Precision = Literal["no", "fp16", "bf16", "auto"]
MatmulPrecision = Literal["highest", "high", "medium"]
CompileMode = Literal["no", "default", "reduce-overhead"]


def known(what: str, name: str, names: Sequence[str]) -> str:
    """Return `name` if it is one of `names`.

    Args:
        what: The kind of name, for the message.
        name: The name to check.
        names: All valid names.

    Raises:
        ValueError: `name` is unknown. The message lists the valid names and suggests the closest one.
    """
    if name in names:
        return name
    near = get_close_matches(name, names, n=1) if isinstance(name, str) else []  # Python gives any object
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {what} {name!r:.200}{hint}; known: {', '.join(sorted(names))}")


def require(ok: bool, message: str) -> None:
    """Raise a ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def require_minutes(name: str, minutes: float) -> None:
    """Raise a ValueError unless `minutes` is finite and not negative."""
    require(0 <= minutes < inf, f"{name} is {minutes}; it must be a finite number of minutes, and not negative")


def require_finite(config: Any, prefix: str = "") -> None:
    """Raise a ValueError that names the first field of a config that is infinite, NaN, or no text in UTF-8.

    Args:
        config: A dataclass of settings. Their JSON form has no such numbers, and no such names of files.
        prefix: The name of the config in options, e.g. "optim.".
    """
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            require(
                not isinstance(number, float) or isfinite(number),
                f"{prefix}{field.name} is {value}; it must be a finite number",
            )
        # Python marks each byte of a path that is not UTF-8 by a surrogate.
        texts = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, str | Path)]
        lossy = any("\ud800" <= letter <= "\udfff" for text in texts for letter in str(text))
        require(not lossy, f"{prefix}{field.name} is {str(value)!r}; it must be text in UTF-8: rename the path")


@dataclass(frozen=True)
class DataConfig:
    """The data set and its loader."""

    name: str
    """Name of a prepared data set, also of your own (`tools/prepare_data.py --name`)."""
    directory: Path = Path("data")
    """Directory of prepared data sets, the --out of tools/prepare_data.py. Change it if the data are elsewhere."""
    loader: Literal["auto", "ffcv", "memory", "torch"] = "auto"
    """ffcv reads .beton files. memory keeps small data sets uncompressed on the device. torch is a DataLoader, the slow
    and general way, and the one for data sets of your own Python file. All give the same batches and keys. auto: ffcv
    where it is installed, else memory, or torch for data over 4 GiB. torch for data sets of your own Python file."""
    num_workers: int = 1
    """Loader threads per process, or processes for torch. -1: one fewer than the process's share of the cores. Raise it
    if the GPU waits for images. Results do not depend on it."""

    def __post_init__(self) -> None:
        require_finite(self, "data.")
        workers = self.num_workers
        require(workers == -1 or workers >= 1, f"data.num_workers is {workers}; it must be -1, or 1 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str
    """Network: a built-in name, timm:NAME, torchvision:NAME, or FILE.py:FUNCTION, whose function takes num_classes,
    channels and image_size."""
    width: int | None = None
    """Channels of the first stage, for built-in networks of adjustable width. Use it to compare widths, as Figure 4
    does. Default: the network's own."""
    args: tuple[str, ...] = ()
    """Constructor options of a network that is not built in. Values are JSON, such as 64, 0.1, false, or else text."""
    classifier: str | None = None
    """Module that is never pruned, of a network that is not built in. A comma separates several. Default: the one that
    timm names, else the last linear layer with one output per class."""

    def __post_init__(self) -> None:
        width = self.width
        require(width is None or width >= 1, f"model.width is {width}; it must be 1 or more")
        require_finite(self, "model.")
        if self.kind in ("timm", "torchvision"):
            plain = self.name.partition(":")[2]
            require(
                re.fullmatch(r"[A-Za-z0-9_.]+", plain) is not None,
                f"model.name is {self.name!r}; expected {self.kind}:NAME with a name that {self.kind} lists; names of "
                "a hub are not allowed, because nothing is downloaded",
            )
        if self.kind == "file":
            file, _, function = self.name.rpartition(":")
            ok = file.endswith(".py") and function.isidentifier()
            require(ok, f"model.name is {self.name!r}; expected FILE.py:FUNCTION, such as net.py:build")
        named = [] if self.classifier is None else self.classifier.split(",")
        require(
            all(one and one == one.strip() for one in named) and len(set(named)) == len(named),
            f"model.classifier is {self.classifier!r}; expected one module, or several with commas and without spaces",
        )
        _ = self.options

    @property
    def kind(self) -> NetworkKind:
        """Return the origin of the network that the name tells."""
        before = self.name.partition(":")[0]
        if before in ("timm", "torchvision"):
            return "timm" if before == "timm" else "torchvision"
        is_file = self.name.endswith(".py") or ".py:" in self.name
        require(
            is_file or ":" not in self.name,
            f"model.name is {self.name!r}; expected a built-in name, timm:NAME, torchvision:NAME or FILE.py:FUNCTION",
        )
        return "file" if is_file else "built-in"

    @property
    def label(self) -> str:
        """Return the name in keys and tags. The name of a file has no folder, so that the file can move."""
        path, _, function = self.name.rpartition(":")
        return f"{PurePath(path).name}:{function}" if self.kind == "file" else self.name

    @property
    def options(self) -> dict[str, Any]:
        """Return `args` by name, with their values.

        Raises:
            ValueError: A word is not NAME=VALUE, or two have one name.
        """
        found: dict[str, Any] = {}
        for word in self.args:
            name, equals, text = word.partition("=")
            require(
                bool(equals) and name.isidentifier(),
                f"model.args has {word!r}; expected NAME=VALUE, such as img_size=64",
            )
            require(name not in found, f"model.args has {name} twice; give it once")
            python = {"True": "true", "False": "false", "None": "null"}.get(text)
            require(python is None, f"model.args has {word!r}; values are JSON: write {name}={python}")
            try:
                value = json.loads(text, parse_constant=_no_number)
            except ValueError:
                value = text
            require(not isinstance(value, float) or isfinite(value), f"model.args has {word!r}; give a finite number")
            found[name] = value
        return found


def _no_number(text: str) -> Any:
    raise ValueError(text)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. Every level creates a new one."""

    name: Literal["sgd", "adam"] = "sgd"
    """Algorithm. The paper uses adam for ResNet-50 and MLP-Mixer on ImageNet, and sgd otherwise."""
    lr: float = 0.1
    """Learning rate before the schedule. Lower it if the loss becomes non-finite."""
    momentum: float = 0.9
    """sgd only: momentum, in [0, 1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam only: decay rates of the two moving averages, in [0, 1)."""
    weight_decay: float = 5e-4
    """Coupled L2 penalty on all parameters, as in the paper. Lower it for short schedules on small data sets."""
    max_grad_norm: float | None = None
    """Clip the gradient of the kept parameters to this 2-norm. Try 1 if training diverges. Default: no clipping."""

    def __post_init__(self) -> None:
        require_finite(self, "optim.")
        require(self.lr > 0, f"optim.lr is {self.lr}; it must be positive")
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must lie in [0, 1)")
        require(all(0 <= beta < 1 for beta in self.betas), f"optim.betas are {self.betas}; each must lie in [0, 1)")
        clip = self.max_grad_norm
        require(clip is None or clip > 0, f"optim.max_grad_norm is {clip}; it must be positive")

    def determinants(self) -> dict[str, Any]:
        """Return the settings that determine a training's bits. Excludes those that the optimizer ignores."""
        unused = {"sgd": ("betas",), "adam": ("momentum",)}[self.name]
        return {name: value for name, value in asdict(self).items() if name not in unused}


@dataclass(frozen=True)
class Schedule:
    """Length and learning-rate schedule of one training. The rate changes once per epoch."""

    epochs: int
    """Epochs of the training. Fewer epochs favour methods that converge fast."""
    lr_schedule: LrSchedule
    """constant. step: ×0.1 at each milestone. cosine: falls towards 0.001 of the initial rate."""
    lr_milestones_epochs: tuple[int, ...] | None = None
    """Milestones of step, in epochs. Default for E epochs: E//2 and (E//4)·3."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"epochs is {self.epochs}; it must not be negative")
        known("lr_schedule", self.lr_schedule, get_args(LrSchedule))
        if (milestones := self.lr_milestones_epochs) is not None:
            allowed = self.lr_schedule == "step" and all(milestone > 0 for milestone in milestones)
            require(allowed, f"lr_milestones_epochs is {milestones}; they must be positive and need lr_schedule step")

    def determinants(self) -> dict[str, Any]:
        """Return the settings that determine a training's bits. Excludes default milestones."""
        own = {"epochs": self.epochs, "lr_schedule": self.lr_schedule}
        given = self.lr_milestones_epochs
        return own if given is None else own | {"lr_milestones_epochs": list(given)}

    def of_length(self, epochs: int) -> Schedule:
        """Return this schedule with another length. Given milestones move in proportion, rounded.

        >>> Schedule(160, "step", (80, 120)).of_length(20).lr_milestones_epochs
        (10, 15)
        """
        given = self.lr_milestones_epochs if self.epochs else None
        # A milestone of 0 is refused, and would start the training with a reduced rate.
        moved = None if given is None else tuple(max(1, round(one * epochs / self.epochs)) for one in given)
        return replace(self, epochs=epochs, lr_milestones_epochs=moved)

    def lr_factor(self, epoch: int) -> float:
        """Return the factor on the learning rate in `epoch` (0-based)."""
        if self.lr_schedule == "constant":
            return 1.0
        if self.lr_schedule == "step":
            milestones = self.lr_milestones_epochs or (self.epochs // 2, self.epochs // 4 * 3)
            # With fewer than four epochs a default milestone is 0. It is ignored, so the rate never starts reduced.
            return float(0.1 ** sum(epoch >= milestone > 0 for milestone in milestones))
        if self.lr_schedule == "cosine":
            floor = 1e-3
            return floor + (1 - floor) * (1 + cos(pi * epoch / self.epochs)) / 2
        raise ValueError(f"lr_schedule {self.lr_schedule!r} has no formula; add one to Schedule.lr_factor")


MOST_NAME_CHARACTERS = 256
"""Length of an experiment's name that every database of MLflow can store."""


def require_experiment_name(name: str) -> None:
    """Raise ValueError for the name of an MLflow experiment that MLflow or a terminal does not accept."""
    require(bool(name.strip()), f"experiment is {name!r}; it must not be empty: leave it out to use the default")
    require(
        len(name) <= MOST_NAME_CHARACTERS,
        f"experiment has {len(name)} characters ({name[:20]!r}…); at most {MOST_NAME_CHARACTERS} are allowed",
    )
    require(name.isprintable(), f"experiment is {name!r}; control characters are not allowed")


def readable_experiment_name(recorded: str) -> str:
    """Return a recorded name, or an allowed one in place of a name that would be refused today."""
    try:
        require_experiment_name(recorded)
    except ValueError:
        return "".join(filter(str.isprintable, recorded))[:MOST_NAME_CHARACTERS].strip() or "unnamed"
    return recorded
