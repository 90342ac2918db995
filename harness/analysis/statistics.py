"""Claims about paired trials: intervals, exact p-values, and the rule for "shown".

A trial is one repetition of an experiment with its own seeds. Both sides of a contrast share these seeds and are
compared within the trial. Densities of one search are not trials. Average over them first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.common.optional import require

Expectation = Literal["greater", "less", "differs", "equal", "not_worse"]
"""Of a − b. Two have a margin m: "equal" lies between −m and m, "not_worse" above −m."""

SIGNIFICANCE = 0.05
"""Largest p of a shown claim, after Holm's correction."""
RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_250_424
MOST_TRIALS = 40
"""Limit of the exact test, which counts all sign flips."""
_WITH_MARGIN = ("equal", "not_worse")
_TIE = 1e-9
"""Tolerance for ties: smaller differences are float noise, absolute in points or relative to larger values."""
_DRAWS_AT_ONCE = 4_000_000
"""Limits the memory of a bootstrap to about 100 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Differences of accuracy a − b by trial [T], and optionally by test image [T, N].

    `differences` are percentage points. `images` holds (a correct) − (b correct): −1, 0 or 1, or a mean of these over
    densities. 100 × its row means equal `differences`.

    Raises:
        ValueError: There is no trial, a number is not finite, or `images` does not fit `differences`.
    """

    differences: Floats
    images: Floats | None = None

    def __post_init__(self) -> None:
        if self.differences.ndim != 1 or not 1 <= self.trials <= MOST_TRIALS:
            raise ValueError(f"a contrast has 1 to {MOST_TRIALS} trials, got shape {self.differences.shape}")
        if not np.isfinite(self.differences).all():
            raise ValueError(f"differences must be finite numbers, got {self.differences}")
        if self.images is not None:
            if self.images.ndim != 2 or len(self.images) != self.trials:
                raise ValueError(f"{self.trials} trials need a row of images each, got shape {self.images.shape}")
            if not np.allclose(100 * self.images.mean(axis=1), self.differences, atol=1e-6):
                raise ValueError("the images' mean differences are not those of the trials")

    @classmethod
    def of(cls, differences: ArrayLike) -> Self:
        """Return the contrast of differences by trial [T], percentage points."""
        return cls(np.asarray(differences, dtype=np.float64))

    @classmethod
    def of_images(cls, images: ArrayLike) -> Self:
        """Return the contrast of per-image differences [T, N], from −1 to 1."""
        images = np.asarray(images, dtype=np.float64)
        return cls(100 * images.mean(axis=-1), images)

    @property
    def trials(self) -> int:
        """Number of trials, T."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """Mean difference over trials, percentage points."""
        return float(self.differences.mean())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, percentage points; None for a single trial.

        This is a two-way BCa bootstrap over trials and images, or over trials only without images. Both are too narrow
        for few trials. For normal differences the one over trials covers the true mean in 73 % of cases with 3 trials,
        88 % with 8 and 92 % with 10. Verdicts therefore also need an exact p-value.
        """
        return None if self.trials < 2 else bca_interval(self.mean, self._resampled_means(), self._influences())

    def _resampled_means(self) -> Floats:
        """Return the mean difference of each resample, percentage points [RESAMPLES].

        Trials and images are drawn independently, with replacement (Owen's pigeonhole bootstrap).
        """
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        trial_counts = rng.multinomial(self.trials, np.full(self.trials, 1 / self.trials), size=RESAMPLES)
        if self.images is None:
            return trial_counts @ self.differences / self.trials
        # Images on which a and b never differ add 0, so only draws among the others are simulated.
        differing = self.images[:, self.images.any(axis=0)]
        total, count = self.images.shape[1], differing.shape[1]
        draws = rng.binomial(total, count / total, size=RESAMPLES)
        means = np.zeros(RESAMPLES)
        step = max(1, _DRAWS_AT_ONCE // total)
        for first in range(0, RESAMPLES if count else 0, step):
            sizes = draws[first : first + step]
            places = np.repeat(np.arange(len(sizes)) * count, sizes) + rng.integers(count, size=sizes.sum())
            image_counts = np.bincount(places, minlength=len(sizes) * count).reshape(-1, count)
            sums = image_counts @ differing.T  # [resamples, T]
            means[first : first + step] = (trial_counts[first : first + step] * sums).sum(axis=1)
        return 100 * means / (self.trials * total)

    def _influences(self) -> list[Floats]:
        """Return the jackknife influence of each trial and each image: its distance from the mean."""
        rows = [self.differences]
        if self.images is not None and self.images.shape[1] > 1:
            rows.append(100 * self.images.mean(axis=0))
        return [row - row.mean() for row in rows]


def bca_interval(estimate: float, resampled: Floats, influences: Sequence[Floats]) -> tuple[float, float]:
    """Return the bias-corrected and accelerated (BCa) 95 % interval (Efron 1987).

    Args:
        estimate: The statistic of the data.
        resampled: The statistic of each bootstrap resample.
        influences: Jackknife influences, one array for each sample that is resampled independently. The acceleration
            of several samples follows Davison & Hinkley (1997, section 5.3.2), as in `scipy.stats.bootstrap`.
    """
    require("scipy", "a confidence interval")
    from scipy.special import ndtr, ndtri

    # Bias: the rank of the estimate among the resamples, with ties counted half.
    tie = _TIE * max(1.0, float(np.abs(resampled).max()))
    below = float(np.mean((resampled < estimate - tie) + 0.5 * (np.abs(resampled - estimate) <= tie)))
    bias = ndtri(below)
    # Acceleration: skewness of the influences.
    squares = sum(float((one**2).sum()) / len(one) ** 2 for one in influences)
    cubes = sum(float((one**3).sum()) / len(one) ** 3 for one in influences)
    acceleration = cubes / (6 * squares**1.5) if squares > tie**2 else 0.0
    shifted = bias + ndtri([0.025, 0.975])
    low, high = np.quantile(resampled, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def sign_flip_p(differences: Floats) -> float:
    """Return the exact two-sided p of "the mean is 0", by sign flips.

    It is the share of all 2^T sign flips with at least this |mean|. The only assumption is that, under the null
    hypothesis, differences are symmetric about 0.
    """
    return min(1.0, 2 * _share_as_large(differences, abs(float(differences.sum()))))


def not_worse_p(differences: Floats, margin: float) -> float:
    """Return the exact one-sided p of "the mean is at most −margin" (non-inferiority), by sign flips."""
    shifted = differences + margin
    return _share_as_large(shifted, float(shifted.sum()))


def equivalence_p(differences: Floats, margin: float) -> float:
    """Return the exact p of "|mean| is at least margin": the larger p of two one-sided tests (TOST)."""
    return max(not_worse_p(differences, margin), not_worse_p(-differences, margin))


def _share_as_large(values: Floats, least: float) -> float:
    """Return the share of the 2^T sign flips of `values` [T] whose sum is at least `least`.

    The sums of the two halves are computed separately and matched by binary search: 2^(T/2) numbers, not 2^T.
    """
    half = len(values) // 2
    left, right = _flipped_sums(values[:half]), np.sort(_flipped_sums(values[half:]))
    tie = _TIE * float(np.maximum(1.0, np.abs(values)).sum())
    bound = least - tie - left
    return float((len(right) - np.searchsorted(right, bound)).sum()) / 2 ** len(values)


def _flipped_sums(values: Floats) -> Floats:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_p(trials: int, expects: Expectation = "differs") -> float:
    """Return the smallest p that sign flips of T trials can reach: 2/2^T, or 1/2^T for a margin."""
    return 2.0**-trials if expects in _WITH_MARGIN else 2.0 ** (1 - trials)


def needed_trials(tested: int) -> int:
    """Return the trials that each contrast needs on a page with `tested` claims.

    It is 8 for up to 6 claims, else 10. Above 25 claims Holm's correction needs more trials to be reachable.
    """
    reachable = math.ceil(math.log2(2 * max(1, tested) / SIGNIFICANCE))
    return max(8 if tested <= 6 else 10, reachable)


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim about a contrast, made before it is measured; `margin` is in percentage points."""

    contrast: Contrast
    expects: Expectation
    margin: float | None = None

    def __post_init__(self) -> None:
        check_margin(self.expects, self.margin)

    @property
    def p(self) -> float:
        """p of the null hypothesis, uncorrected."""
        if self.margin is not None:
            test = equivalence_p if self.expects == "equal" else not_worse_p
            return test(self.contrast.differences, self.margin)
        return sign_flip_p(self.contrast.differences)

    def holds_in(self, interval: tuple[float, float] | None) -> bool:
        """Return whether the claim holds for every difference in an interval, percentage points."""
        if interval is None:
            return False
        low, high = interval
        if self.margin is not None:
            return low > -self.margin and (self.expects == "not_worse" or high < self.margin)
        return not low <= 0 <= high

    @property
    def against(self) -> bool:
        """Whether the difference has the opposite sign of the claimed one."""
        mean = self.contrast.mean
        return (self.expects == "greater" and mean <= 0) or (self.expects == "less" and mean >= 0)


def check_margin(expects: Expectation, margin: float | None) -> None:
    """Raise ValueError if "equal" or "not_worse" lacks a margin above 0, or another claim has one."""
    if expects in _WITH_MARGIN:
        if margin is None or not 0 < margin < math.inf:
            raise ValueError(f"a claim {expects!r} needs a margin above 0, in percentage points, got {margin}")
    elif margin is not None:
        raise ValueError(f"a claim {expects!r} has no margin, got {margin}")


def in_symbols(expects: Expectation, margin: float | None, a: str = "a", b: str = "b") -> str:
    """Return a claim about two sides as a formula, in percentage points."""
    return {
        "greater": f"{a} > {b}",
        "less": f"{a} < {b}",
        "differs": f"{a} ≠ {b}",
        "equal": f"|{a} − {b}| < {margin or 0:g}",
        "not_worse": f"{a} > {b} − {margin or 0:g}",
    }[expects]


@dataclass(frozen=True)
class Verdict:
    """The result of testing a claim."""

    word: str
    """"shown", "not shown" or "equal within m" (m in percentage points)."""
    reason: str
    """Reason for "not shown" other than a large p; else empty."""
    difference: float
    """Mean of a − b, percentage points."""
    interval: tuple[float, float] | None
    """95 %, percentage points; None for a single trial."""
    trials: int
    by_images: bool
    """Whether the interval is over trials and test images, not over trials only."""
    p: float
    holm_p: float
    """Corrected for all claims of the page."""
    tested: int
    """Number of claims of the page."""
    smallest_p: float
    """Smallest p that the trials can reach, uncorrected."""


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """Return the verdict of each claim; pass all claims of a page together, for Holm's correction.

    A shown claim has a corrected p of at most 0.05, the claimed direction, and enough trials (`needed_trials`). Its
    interval excludes the opposite.
    """
    if not claims:
        return []
    require("statsmodels", "the verdict on a claim")
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests([claim.p for claim in claims], method="holm")[1]
    return [_verdict(claim, float(holm_p), len(claims)) for claim, holm_p in zip(claims, corrected, strict=True)]


def _verdict(claim: Claim, holm_p: float, tested: int) -> Verdict:
    # A small p is necessary; direction and interval must agree.
    contrast, word, reason = claim.contrast, "not shown", ""
    best = smallest_p(contrast.trials, claim.expects)
    if contrast.trials < needed_trials(tested):
        reason = f"too few trials, p ≥ {p_text(best)}"
    elif holm_p <= SIGNIFICANCE and claim.against:
        reason = "the difference has the opposite sign"
    elif holm_p <= SIGNIFICANCE and not claim.holds_in(contrast.interval):
        reason = "the interval includes 0" if claim.margin is None else "the interval reaches the margin"
    elif holm_p <= SIGNIFICANCE:
        word = f"equal within {claim.margin:g}" if claim.expects == "equal" else "shown"
    return Verdict(
        word=word,
        reason=reason,
        difference=contrast.mean,
        interval=contrast.interval,
        trials=contrast.trials,
        by_images=contrast.images is not None,
        p=claim.p,
        holm_p=holm_p,
        tested=tested,
        smallest_p=best,
    )


def family_in_words(verdicts: Sequence[Verdict]) -> str:
    """Summarise the tests below a page's verdicts: claims, smallest p, needed trials."""
    if not verdicts:
        return "No claim was tested."
    tested = verdicts[0].tested
    counts = sorted({one.trials for one in verdicts})
    best = ", ".join(f"{p_text(smallest_p(count))} with {_trials_text(count)}" for count in counts)
    words = [
        "1 claim was tested." if tested == 1 else f"{tested} claims were tested.",
        f"The smallest two-sided p of a sign-flip test, before Holm's correction: {best}.",
    ]
    needed = needed_trials(tested)
    if short := [count for count in counts if count < needed]:
        many = "No contrast has enough" if short == counts else f"Contrasts of {_trials_text(short[-1])} have too few"
        words.append(f"Each contrast needs {needed} trials. {many}.")
        words.append("Intervals over so few trials are too narrow.")
    return " ".join(words)


def p_text(p: float) -> str:
    """Format a p-value."""
    return f"{p:.3g}"


def _trials_text(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
