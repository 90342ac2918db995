"""Test error on the line between two networks, and its barrier (method section 6).

ε(θ, θ') = sup over α of error(αθ + (1 − α)θ') − (error(θ) + error(θ'))/2, in percentage points of test error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from harness.analysis.interpolate import check_same_tensors, interpolate_into
from harness.common.files import read_json
from harness.distributed.ranks import ONE_PROCESS, Ranks, joined_over_ranks
from harness.training.batchnorm import BatchNormConvention, reestimate_batchnorm

BarrierConvention = BatchNormConvention | Literal["none"]
CONVENTIONS: tuple[str, ...] = (*get_args(BatchNormConvention), "none")

ALPHAS = tuple(i / 10 for i in range(11))
"""The paper's grid."""


@dataclass(frozen=True)
class BarrierCurve:
    """Test error at points αa + (1 − α)b, all under one BatchNorm convention.

    α rises from 0 (network b) to 1 (network a), both included. Errors are percentages.

    Raises:
        ValueError: α does not rise from 0 to 1, the number of errors differs, or the convention is unknown.
    """

    alphas: tuple[float, ...]
    error_percent: tuple[float, ...]
    recorded_error_a_percent: float
    """Error of a with its recorded BatchNorm statistics."""
    recorded_error_b_percent: float
    convention: str
    """Re-estimation of BatchNorm statistics: "cumulative", "ema", or "none" (interpolated buffers)."""
    bn_images: int
    """Training images for the re-estimation at each point; 0 under "none" and without BatchNorm."""
    test_images: int
    correct_AN: Tensor | None = field(default=None, compare=False, repr=False)
    """Whether each of N test images is correct at each of A points (bool, CPU); None for a curve read from JSON."""

    def __post_init__(self) -> None:
        _check_alphas(self.alphas)
        if len(self.error_percent) != len(self.alphas):
            raise ValueError(f"{len(self.alphas)} α but {len(self.error_percent)} errors; give one for each")
        _check_convention(self.convention)

    @property
    def error_a_percent(self) -> float:
        """Error at α = 1."""
        return self.error_percent[-1]

    @property
    def error_b_percent(self) -> float:
        """Error at α = 0."""
        return self.error_percent[0]

    @property
    def barrier(self) -> float:
        """The paper's ε(a, b), percentage points; at least `floor`, since the sup includes the ends."""
        return max(self.error_percent) - (self.error_a_percent + self.error_b_percent) / 2

    @property
    def barrier_by_alpha(self) -> tuple[float, ...]:
        """The paper's E_α(a, b) at each α (equation 1): error_α − (error(a) + error(b))/2, percentage points."""
        middle = (self.error_a_percent + self.error_b_percent) / 2
        return tuple(error - middle for error in self.error_percent)

    @property
    def error_difference(self) -> float:
        """error(b) − error(a), percentage points."""
        return self.error_b_percent - self.error_a_percent

    @property
    def floor(self) -> float:
        """|error(a) − error(b)| / 2: the barrier of a curve that never exceeds its worse end."""
        return abs(self.error_a_percent - self.error_b_percent) / 2

    @property
    def barrier_above_line(self) -> float:
        """sup over α of error_α − (α·error(a) + (1 − α)·error(b)), percentage points; never below 0."""
        return max(
            error - (alpha * self.error_a_percent + (1 - alpha) * self.error_b_percent)
            for alpha, error in zip(self.alphas, self.error_percent, strict=True)
        )

    def reversed(self) -> BarrierCurve:
        """Return the curve with a and b exchanged."""
        return replace(
            self,
            alphas=_mirrored(self.alphas),
            error_percent=self.error_percent[::-1],
            recorded_error_a_percent=self.recorded_error_b_percent,
            recorded_error_b_percent=self.recorded_error_a_percent,
            correct_AN=None if self.correct_AN is None else self.correct_AN.flip(0),
        )

    def connected(self, epsilon: float) -> bool:
        """Return whether a and b are linearly mode-connected: barrier ≤ ε.

        The paper's ε is the sd of the dense network's error over seeds.
        """
        return self.barrier <= epsilon

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: all fields except `correct_AN`, and the barriers."""
        values = {name: getattr(self, name) for name in (*self._figures(), *_DERIVED)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the curve that `to_dict` wrote.

        Raises ValueError if a field is missing or unknown, or if a barrier contradicts the errors.
        """
        own = set(cls._figures())
        missing, unknown = own - values.keys(), values.keys() - own - set(_DERIVED)
        if missing or unknown:
            raise ValueError(f"not a barrier curve: missing {sorted(missing)}, unknown {sorted(unknown)}")
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v := values[name], list) else v for name in own}
        curve = cls(**arguments)
        for name in _DERIVED:
            if name in values and values[name] != getattr(curve, name):
                raise ValueError(f"{name} is recorded as {values[name]}, but the errors give {getattr(curve, name)}")
        return curve

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the curve in a JSON file; ValueError with the file's name if it is invalid."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except Exception as error:
            raise ValueError(f"{path} holds no barrier curve: {error!r:.200}") from error

    @classmethod
    def _figures(cls) -> list[str]:
        return [each.name for each in fields(cls) if each.compare]


def _mirrored(alphas: tuple[float, ...]) -> tuple[float, ...]:
    """Return 1 − α in rising order; an evenly spaced grid comes back bit for bit."""
    mirrored = tuple(1 - alpha for alpha in reversed(alphas))
    even = all(abs(one - other) < 1e-9 for one, other in zip(alphas, mirrored, strict=True))
    return alphas if even else mirrored


_DERIVED = ("barrier", "floor", "barrier_above_line")


def barrier_curve(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    *,
    bn_batches: Iterable[Tensor],
    test_batches: Iterable[tuple[Tensor, Tensor]],
    alphas: Sequence[float] = ALPHAS,
    convention: BarrierConvention = "cumulative",
    recorded_error_percent: tuple[float, float] | None = None,
    ranks: Ranks = ONE_PROCESS,
    num_bn_batches: int | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> BarrierCurve:
    """Measure the test error at each αa + (1 − α)b, with BatchNorm re-estimated.

    Every float tensor is interpolated. All `ranks` call this together, and all get the curve. Its images are in rank
    order. The caller checks that both networks have equal masks.

    Args:
        model: Scratch model of the same architecture; it sets the device. Its state and memory format are
            overwritten. Its training flags stay.
        state_a: Network at α = 1, on any device.
        state_b: Network at α = 0, on any device.
        bn_batches: Normalised training images (float NCHW) on the model's device. Unused under "none" and without
            BatchNorm. Rank r of W gives every W-th of the `num_bn_batches` batches. Both kinds of batches are iterated
            once for every α and must be the same each time. Give lists if they fit in memory.
        test_batches: Normalised test images with labels, on the model's device. Each rank gives its own images.
        alphas: Points of the line, rising from 0 to 1.
        convention: Re-estimation of BatchNorm statistics (`reestimate_batchnorm`); "none" interpolates the buffers.
        recorded_error_percent: Errors of a and b with their own BatchNorm statistics. By default they are measured.
        ranks: The processes that share the images.
        num_bn_batches: Total over all ranks.
        before_each: Called by every rank before each α, so that ranks can agree to stop.

    Raises:
        ValueError: α does not rise from 0 to 1, the convention is unknown, there are no images, or the states do not
            fit.
    """
    # Phase: check the inputs and move both states to the device.
    _check_alphas(alphas)
    _check_convention(convention)
    check_same_tensors(state_a, state_b, ("state_a", "state_b"))
    check_same_tensors(state_a, model.state_dict(), ("state_a", "the model"))
    model = model.to(memory_format=torch.channels_last)  # faster on CPUs and on tensor cores
    target = model.state_dict()  # shares memory with the model
    state_a, state_b = ranks.on_all(lambda: (_beside(target, state_a), _beside(target, state_b)))
    own = _OwnImages(model, bn_batches, test_batches)

    def correct_at(alpha: float, reestimate: bool) -> Tensor:
        """Return whether each test image of all ranks is correct."""
        before_each()
        interpolate_into(target, state_a, state_b, alpha)
        # Autocast caches casts of the weights until it exits, so each α needs its own.
        with ranks.autocast():
            if reestimate and convention != "none":
                reestimate_batchnorm(model, own.bn(), convention, ranks=ranks, num_batches=num_bn_batches)
            # `on_all` first: a rank that fails must not leave the others in the collective.
            correct_N = joined_over_ranks(ranks, ranks.on_all(own.correct))
        if len(correct_N) == 0:
            raise ValueError("test_batches gave no images; a barrier needs some")
        return correct_N

    # Phase: measure the two ends and all points.
    with torch.inference_mode():
        ends = [] if recorded_error_percent else [correct_at(alpha, reestimate=False) for alpha in (1.0, 0.0)]
        points = [correct_at(alpha, reestimate=True) for alpha in alphas]
        num_bn = int(ranks.sum(torch.tensor(own.num_bn or 0)))
    recorded = recorded_error_percent or tuple(_error_percent(ends))
    return BarrierCurve(
        alphas=tuple(alphas),
        error_percent=tuple(_error_percent(points)),
        recorded_error_a_percent=recorded[0],
        recorded_error_b_percent=recorded[1],
        convention=convention,
        bn_images=num_bn,
        test_images=len(points[-1]),
        correct_AN=torch.stack(points),
    )


def _beside(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(target[name].device) for name, tensor in state.items()}


def _error_percent(points: Iterable[Tensor]) -> Iterator[float]:
    return (100.0 * int((~correct_N).sum()) / len(correct_N) for correct_N in points)


class _OwnImages:
    """The images of one rank; every α must see the same, so an exhausted iterator is an error."""

    def __init__(
        self, model: nn.Module, bn_batches: Iterable[Tensor], test_batches: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self.model, self.bn_batches, self.test_batches = model, bn_batches, test_batches
        self.device = next(iter(model.state_dict().values())).device
        self.num_bn: int | None = None
        self.num_test: int | None = None

    def bn(self) -> Iterator[Tensor]:
        """Yield the images for BatchNorm and count them."""
        num_images = 0
        for images_NCHW in self.bn_batches:
            num_images += len(images_NCHW)
            yield images_NCHW
        self.num_bn = self._same("bn_batches", self.num_bn, num_images)

    def correct(self) -> Tensor:
        """Return whether each test image is correct (bool, CPU)."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        correct = [torch.zeros(0, dtype=torch.bool, device=self.device)]
        for images_NCHW, labels_N in self.test_batches:
            correct.append(self.model(images_NCHW).argmax(1) == labels_N)
        for module, training in modes:
            module.training = training
        correct_N = torch.cat(correct).cpu()  # one device synchronization for all batches
        self.num_test = self._same("test_batches", self.num_test, len(correct_N))
        return correct_N

    @staticmethod
    def _same(name: str, before: int | None, now: int) -> int:
        if before not in (None, now):
            raise ValueError(
                f"{name} gave {before} images at one α and {now} at the next. "
                "Every α must see the same images: pass a list or another re-iterable object"
            )
        return now


def _check_alphas(alphas: Sequence[float]) -> None:
    rising = all(low < high for low, high in zip(alphas, alphas[1:], strict=False))
    if len(alphas) < 2 or alphas[0] != 0.0 or alphas[-1] != 1.0 or not rising:
        raise ValueError(f"α must rise from 0 to 1, both included, got {list(alphas)}")


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown BatchNorm convention {convention!r}; known: {', '.join(CONVENTIONS)}")
