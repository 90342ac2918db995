"""Error along the line between two networks, and its barrier (method section 6).

ε(θ, θ') = sup over α of error(αθ + (1 − α)θ') − (error(θ) + error(θ'))/2, in percentage points of test error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from harness.analysis.interpolate import check_same_tensors, interpolate_into
from harness.distributed.ranks import ONE_PROCESS, Ranks, joined_over_ranks
from harness.training.batchnorm import BatchNormConvention, reestimate_batchnorm

BarrierConvention = BatchNormConvention | Literal["none"]
CONVENTIONS: tuple[str, ...] = (*get_args(BatchNormConvention), "none")

ALPHAS = tuple(i / 10 for i in range(11))
"""The paper's grid."""


@dataclass(frozen=True)
class BarrierCurve:
    """Test error at points αa + (1 − α)b, all evaluated under one BatchNorm convention.

    α rises from 0 (network b) to 1 (network a), both included; errors are percent. Raises ValueError otherwise.
    """

    alphas: tuple[float, ...]
    error_percent: tuple[float, ...]
    recorded_error_a_percent: float
    """Error of a with the BatchNorm statistics it was recorded with."""
    recorded_error_b_percent: float
    convention: str
    """How BatchNorm statistics were re-estimated: "cumulative", "ema", or "none" (interpolated buffers)."""
    bn_images: int
    """Training images used for that, at each point; 0 under "none" and for networks without BatchNorm."""
    test_images: int
    correct_AN: Tensor | None = field(default=None, compare=False, repr=False)
    """Which of N test images were right at each of A points, bool on the CPU; None for a curve from plain values."""

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
        """The paper's ε(a, b), percentage points; the sup includes the ends, so it is never below `floor`."""
        return max(self.error_percent) - (self.error_a_percent + self.error_b_percent) / 2

    @property
    def barrier_by_alpha(self) -> tuple[float, ...]:
        """The paper's E_α(a, b) (equation 1) at each α: error_α − (error(a) + error(b))/2, percentage points."""
        middle = (self.error_a_percent + self.error_b_percent) / 2
        return tuple(error - middle for error in self.error_percent)

    @property
    def error_difference(self) -> float:
        """error(b) − error(a), percentage points."""
        return self.error_b_percent - self.error_a_percent

    @property
    def floor(self) -> float:
        """|error(a) − error(b)| / 2: the barrier if no point between the ends is worse than they are."""
        return abs(self.error_a_percent - self.error_b_percent) / 2

    @property
    def barrier_above_line(self) -> float:
        """sup over α of error_α − (α·error(a) + (1 − α)·error(b)), percentage points; 0 at least."""
        return max(
            error - (alpha * self.error_a_percent + (1 - alpha) * self.error_b_percent)
            for alpha, error in zip(self.alphas, self.error_percent, strict=True)
        )

    def reversed(self) -> BarrierCurve:
        """Return the same line with a and b exchanged."""
        return replace(
            self,
            alphas=_mirrored(self.alphas),
            error_percent=self.error_percent[::-1],
            recorded_error_a_percent=self.recorded_error_b_percent,
            recorded_error_b_percent=self.recorded_error_a_percent,
            correct_AN=None if self.correct_AN is None else self.correct_AN.flip(0),
        )

    def connected(self, epsilon: float) -> bool:
        """Whether a and b are linearly mode-connected: barrier ≤ ε, the sd of the dense network's error over seeds."""
        return self.barrier <= epsilon

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the fields but for single images, and the barriers derived from them."""
        values = {name: getattr(self, name) for name in (*self._figures(), *_DERIVED)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the curve that gave `values`; ValueError if a field is missing, unknown, or contradicts the others."""
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
    def _figures(cls) -> list[str]:
        return [each.name for each in fields(cls) if each.compare]


def _mirrored(alphas: tuple[float, ...]) -> tuple[float, ...]:
    """Return 1 − α in rising order; an even grid is its own mirror image, to the last bit."""
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
    """Measure the test error at each point αa + (1 − α)b, with BatchNorm re-estimated at each.

    Every float tensor is interpolated. Several `ranks` call this together, and all get the curve; its images are those
    of rank 0, then those of rank 1, and so on. A barrier between networks with different masks compares unlike things:
    the caller checks that the masks are equal.

    Args:
        model: Scratch space of the right architecture, which decides the device. Its state and memory format are
            overwritten; its training flags stay.
        state_a: Network at α = 1; like b it may lie on another device, as a checkpoint from a file does.
        state_b: Network at α = 0.
        bn_batches: Normalised training images (float NCHW) on the model's device; unused under "none" and without
            BatchNorm. Like the test batches, they are gone through once for every α and must be the same each time:
            give lists, if they fit in memory. A rank gives every W-th of `num_bn_batches` batches.
        test_batches: Normalised test images with labels, on the model's device; a rank gives images that no other has.
        alphas: Points of the line, rising from 0 to 1.
        convention: How BatchNorm statistics are re-estimated (`reestimate_batchnorm`); none: interpolated buffers.
        recorded_error_percent: Errors of a and b with their own BatchNorm statistics; None: they are measured here.
        ranks: The processes that share the images.
        num_bn_batches: Batches of all ranks together.
        before_each: Called before each α by every rank, so that ranks can agree there.

    Raises:
        ValueError: α that do not rise from 0 to 1, an unknown convention, no images, or states that do not fit.
    """
    _check_alphas(alphas)
    _check_convention(convention)
    check_same_tensors(state_a, state_b, ("state_a", "state_b"))
    check_same_tensors(state_a, model.state_dict(), ("state_a", "the model"))
    model = model.to(memory_format=torch.channels_last)  # 1.3 times faster on CPU for a ResNet-20, and on tensor cores
    target = model.state_dict()  # shares memory with the model
    # once, not for each α: checkpoints from a file lie on the CPU
    state_a, state_b = ranks.on_all(lambda: (_beside(target, state_a), _beside(target, state_b)))
    own = _OwnImages(model, bn_batches, test_batches)

    def correct_at(alpha: float, reestimate: bool) -> Tensor:
        """Return which test images are right, of all ranks."""
        before_each()
        interpolate_into(target, state_a, state_b, alpha)
        # entered anew for each α: autocast may keep its copies of the weights for as long as it lasts
        with ranks.autocast():
            if reestimate and convention != "none":
                reestimate_batchnorm(model, own.bn(), convention, ranks=ranks, num_batches=num_bn_batches)
            # no rank enters the sum before all can, so none is left waiting there
            correct_N = joined_over_ranks(ranks, ranks.on_all(own.correct))
        if len(correct_N) == 0:
            raise ValueError("test_batches gave no images; a barrier needs some")
        return correct_N

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
    """The images of this process, which must be the same at every α: a spent iterator is refused."""

    def __init__(
        self, model: nn.Module, bn_batches: Iterable[Tensor], test_batches: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self.model, self.bn_batches, self.test_batches = model, bn_batches, test_batches
        self.device = next(iter(model.state_dict().values())).device
        self.num_bn: int | None = None
        self.num_test: int | None = None

    def bn(self) -> Iterator[Tensor]:
        """Give the images for BatchNorm, and count them."""
        num_images = 0
        for images_NCHW in self.bn_batches:
            num_images += len(images_NCHW)
            yield images_NCHW
        self.num_bn = self._same("bn_batches", self.num_bn, num_images)

    def correct(self) -> Tensor:
        """Test; return which images are right, bool on the CPU."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        correct = [torch.zeros(0, dtype=torch.bool, device=self.device)]
        for images_NCHW, labels_N in self.test_batches:
            correct.append(self.model(images_NCHW).argmax(1) == labels_N)
        for module, training in modes:
            module.training = training
        correct_N = torch.cat(correct).cpu()  # one wait for the device, not one a batch
        self.num_test = self._same("test_batches", self.num_test, len(correct_N))
        return correct_N

    @staticmethod
    def _same(name: str, before: int | None, now: int) -> int:
        if before not in (None, now):
            raise ValueError(
                f"{name} gave {before} images at one α and {now} at the next; "
                "every α must see the same images: give a list, or an object that can be gone through again"
            )
        return now


def _check_alphas(alphas: Sequence[float]) -> None:
    rising = all(low < high for low, high in zip(alphas, alphas[1:], strict=False))
    if len(alphas) < 2 or alphas[0] != 0.0 or alphas[-1] != 1.0 or not rising:
        raise ValueError(f"α must rise from 0 to 1, both included (the ends are part of the sup), got {list(alphas)}")


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown BatchNorm convention {convention!r}; known: {', '.join(CONVENTIONS)}")
