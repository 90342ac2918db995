"""The parts of a sitting in order of worth, and the goals that its measurements are held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Name = Literal["tests", "checkpoints", "waits", "steps", "ddp", "decoding", "compiled", "small", "barrier", "searches"]
Status = Literal["done", "stopped", "failed", "crashed", "not run"]


@dataclass(frozen=True)
class Finding:
    """One measurement of a part: words for its line, and numbers for the file and the goals."""

    text: str
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How one part ended, with the findings that it made until then."""

    part: str
    status: Status
    detail: str = ""
    findings: Sequence[Finding] = ()
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """All numbers of the part."""
        return {name: value for finding in self.findings for name, value in finding.values.items()}

    def __str__(self) -> str:
        """The part's one line."""
        reason = f": {self.detail}" if self.detail else ""
        time = f" ({self.seconds:.0f} s)" if self.seconds else ""
        found = "; ".join(finding.text for finding in self.findings)
        return f"{self.part}: {self.status}{reason}{time}{' | ' if found else ''}{found}"


@dataclass(frozen=True)
class Part:
    """One part of a sitting."""

    name: Name
    share: float
    """Of the whole budget, at most."""
    title: str


PARTS = (
    Part("tests", 0.5, "tests/gpu: masks, pruning, sparsity under autocast, resume, comparisons"),
    Part("checkpoints", 0.15, "comparison of two checkpoints from files, the network on the device"),
    Part("waits", 0.2, "waits for the device in 40 steps of the real loop"),
    Part("steps", 0.4, "step rates of ResNet-50 at 224: plain, lrr, aws"),
    Part("ddp", 0.2, "DistributedDataParallel of one process in four settings"),
    Part("decoding", 0.15, "decoding JPEG on 16 threads and by nvJPEG"),
    Part("compiled", 0.6, "step rates of ResNet-50 under torch.compile"),
    Part("small", 0.6, "small networks at 32×32 against the published scripts' way"),
    Part("barrier", 0.3, "barrier of 11 α on ResNet-50 against the plain way"),
    Part("searches", 1.0, "two searches at once on Fashion-MNIST"),
)
NAMES: tuple[Name, ...] = tuple(part.name for part in PARTS)


@dataclass(frozen=True)
class Goal:
    """What a measured value should be on one H200, in bf16."""

    part: str
    value: str
    """Its name among the values of the part."""
    least: float | None = None
    most: float | None = None

    def asked(self) -> str:
        """The bound in words."""
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"

    def verdict(self, measured: float | None) -> str:
        """Whether it is met."""
        if measured is None:
            return "not measured"
        met = (self.least is None or measured >= self.least) and (self.most is None or measured <= self.most)
        return "met" if met else "MISSED"


RATIO = 0.98
"""AWS must keep at least this share of the plain step's rate."""
GOALS = (
    Goal("tests", "failed tests", most=0),
    Goal("tests", "tests without a result", most=0),
    Goal("checkpoints", "images apart from the CPU", most=2),
    Goal("waits", "waits", most=0),
    Goal("steps", "aws, batch 256 [images/s]", least=4000),
    Goal("steps", "aws, batch 32 [images/s]", least=3500),
    *(Goal("steps", f"aws / plain, batch {batch}", least=RATIO) for batch in (256, 128, 64, 32)),
    Goal("compiled", "aws, reduce-overhead, batch 32 [images/s]", least=3500),
    Goal("compiled", "aws / plain, reduce-overhead, batch 32", least=RATIO),
    Goal("compiled", "graphs compiled anew, reduce-overhead, batch 32", most=0),
    Goal("compiled", "aws, default, batch 256 [images/s]", least=5500),
    Goal("compiled", "aws / plain, default, batch 256", least=RATIO),
    Goal("compiled", "graphs compiled anew, default, batch 256", most=0),
    Goal("small", "aws by CUDA graphs / published way, resnet20", least=5),
    Goal("small", "aws by CUDA graphs / published way, mobilenet_v2_cifar", least=5),
    Goal("barrier", "ours / plain", least=1),
)


def judged(outcomes: Iterable[Outcome], on_gpu: bool) -> list[dict[str, str | float | None]]:
    """Hold the goals against what was measured; a run on the CPU measures none of them."""
    values = {outcome.part: outcome.values for outcome in outcomes} if on_gpu else {}
    rows: list[dict[str, str | float | None]] = []
    for goal in GOALS:
        measured = values.get(goal.part, {}).get(goal.value)
        row = {"part": goal.part, "value": goal.value, "goal": goal.asked(), "measured": measured}
        rows.append(row | {"verdict": goal.verdict(measured)})
    return rows
