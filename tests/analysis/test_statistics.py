"""Test intervals, p-values and verdicts against scipy, statsmodels and explicit counts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from harness.analysis import statistics
from harness.analysis.statistics import (
    Claim,
    Contrast,
    bca_interval,
    equivalence_p,
    family_in_words,
    judge,
    needed_trials,
    not_worse_p,
    sign_flip_p,
    smallest_p,
)

pytestmark = pytest.mark.long  # thousands of resamples take seconds

TRIALS = {
    "normal": np.random.default_rng(0).normal(1.0, 2.0, size=10),
    "skewed": np.random.default_rng(1).exponential(3.0, size=12),
    "an outlier": np.array([0.1, 0.3, 0.2, 0.25, 9.0, 0.15, 0.2, 0.4]),
    "ties": np.array([0.2, 0.2, -0.4, 0.6, 0.2, 0.0, -0.4, 0.2]),
}
TRIALS = {name: np.round(values * 64) / 64 for name, values in TRIALS.items()}
"""Multiples of 1/64, whose sums are exact, because scipy compares means without a tolerance."""


def made_up_images(rng: np.random.Generator, trials: int, images: int, shift: float = 0.0) -> np.ndarray:
    """Return random differences −1, 0 or 1 of shape [T, N].

    They have effects of the trial and of the image. Their mean is 0 if `shift` is 0.
    """
    effects = rng.normal(0, 0.03, size=(trials, 1)) + rng.normal(0, 0.1, size=(1, images))
    values = shift + effects + rng.normal(0, 0.3, size=(trials, images))
    return np.where(values > 0.3, 1.0, np.where(values < -0.3, -1.0, 0.0))


@pytest.mark.parametrize("differences", TRIALS.values(), ids=list(TRIALS))
def test_an_interval_over_trials_is_scipys(differences: np.ndarray):
    reference = stats.bootstrap(
        (differences,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(5), vectorized=True
    )
    low, high = reference.confidence_interval
    influences = [differences - differences.mean()]
    ours = bca_interval(differences.mean(), reference.bootstrap_distribution, influences)
    assert ours == pytest.approx((low, high), rel=1e-6)  # from the same resamples
    contrast = Contrast.of(differences)
    own = contrast._resampled_means()
    assert contrast.interval == bca_interval(contrast.mean, own, influences)
    assert stats.ks_2samp(own, reference.bootstrap_distribution).pvalue > 0.01  # from our own resamples
    if len({*differences}) == len(differences):  # with ties, the means of resamples form distant clusters
        assert contrast.interval == pytest.approx((low, high), abs=0.03 * (high - low))


def test_the_acceleration_of_two_samples_is_scipys():
    rng = np.random.default_rng(2)
    first, second = (np.round(64 * one) / 64 for one in (rng.exponential(size=8), rng.normal(size=32) ** 2))
    reference = stats.bootstrap(
        (first, second), lambda a, b, axis: a.mean(axis=axis) + b.mean(axis=axis), method="BCa", rng=rng
    )
    ours = bca_interval(
        first.mean() + second.mean(),
        reference.bootstrap_distribution,
        [first - first.mean(), second - second.mean()],
    )
    assert ours == pytest.approx(tuple(reference.confidence_interval), rel=1e-6)


def test_trials_and_images_are_resampled_as_a_literal_loop_does():
    images = made_up_images(np.random.default_rng(3), 6, 40, 0.05)
    rng = np.random.default_rng(4)
    literal = np.array(
        [100 * images[np.ix_(rng.integers(6, size=6), rng.integers(40, size=40))].mean() for _ in range(10_000)]
    )
    ours = Contrast.of_images(images)._resampled_means()
    assert ours.mean() == pytest.approx(literal.mean(), abs=0.2) and ours.shape == literal.shape
    quantiles = [0.025, 0.16, 0.5, 0.84, 0.975]
    assert np.quantile(ours, quantiles) == pytest.approx(np.quantile(literal, quantiles), abs=0.06 * literal.std())
    # exact variance of Σ wᵢ dᵢⱼ vⱼ, whose counts w and v have mean 1 and covariance I − 11ᵀ/n
    moments = [np.eye(n) - 1 / n + np.ones((n, n)) for n in images.shape]
    second = np.einsum("ij,jk,lk,li->", images, moments[1], images, moments[0]) / images.size**2
    assert ours.std() == pytest.approx(100 * np.sqrt(second - images.mean() ** 2), rel=0.03)


def test_images_of_several_densities_count_in_fractions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 1_000)  # resample in several portions
    rng = np.random.default_rng(6)
    images = np.mean([made_up_images(rng, 5, 30, 0.1) for _ in range(3)], axis=0)
    contrast = Contrast.of_images(images)
    assert contrast.differences == pytest.approx(100 * images.mean(axis=1))
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=10_000)
    trials = rng.multinomial(5, np.full(5, 1 / 5), size=10_000)
    literal = 100 * np.einsum("ri,ij,rj->r", trials, images, counts) / 150
    assert contrast._resampled_means().std() == pytest.approx(literal.std(), rel=0.05)


def test_intervals_have_their_nominal_coverage(monkeypatch: pytest.MonkeyPatch):
    """Count how often a 95 % interval contains the true mean.

    Each time, trials and images are new. Intervals over trials alone are too narrow, because all trials share the same
    images.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(7)
    sets = [made_up_images(rng, 10, 250) for _ in range(150)]

    def share(contrasts: list[Contrast]) -> float:
        return np.mean([low <= 0 <= high for low, high in (one.interval for one in contrasts)])

    assert share([Contrast.of_images(one) for one in sets]) >= 0.93
    assert share([Contrast.of(100 * one.mean(axis=1)) for one in sets]) < 0.93


def test_intervals_of_degenerate_samples():
    assert Contrast.of([1.5]).interval is None and Contrast.of_images(np.ones((1, 9))).interval is None
    assert Contrast.of([0.1 + 0.2, 0.3, 0.3]).interval == pytest.approx((0.3, 0.3))
    assert Contrast.of_images(np.zeros((3, 50))).interval == (0.0, 0.0)
    assert Contrast.of_images(np.eye(3)[:, :1]).interval is not None  # a single image
    images = made_up_images(np.random.default_rng(8), 4, 20)
    assert Contrast.of_images(images).interval == Contrast.of_images(images).interval  # the same seed
    low, high = Contrast.of_images(images).interval
    assert Contrast.of_images(-images).interval == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    "differences",
    [*TRIALS.values(), np.array([0.0, 0.0, 0.0]), np.array([2.5]), np.array([0.1, 0.2, -0.3]), np.zeros(1)],
)
def test_sign_flips_are_counted_exactly(differences: np.ndarray):
    flips = np.array(list(product([1, -1], repeat=len(differences))))
    means = (flips * differences).mean(axis=1)
    observed = differences.mean()
    literal = np.mean(np.abs(means) >= abs(observed) - 1e-12)
    assert sign_flip_p(differences) == literal == sign_flip_p(-differences)
    assert not_worse_p(differences, 0.5) == np.mean(
        (flips * (differences + 0.5)).mean(axis=1) >= observed + 0.5 - 1e-12
    )
    if len(differences) > 1:
        reference = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flip_p(differences) == pytest.approx(reference.pvalue)


def test_float_noise_breaks_no_tie():
    """Count sign flips with equal sums as ties, despite rounding.

    In floats 0.1 + 0.2 ≠ 0.3.
    """
    exact = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, -9.0, 10.0])
    assert {sign_flip_p(exact * scale) for scale in (1.0, 0.1, 1e-3, 0.7, 1e6)} == {sign_flip_p(exact)}
    noise = np.full(10, 1e-14)  # a difference of 0, and one exactly at the margin, up to rounding
    assert sign_flip_p(noise) == 1 and equivalence_p(noise - 1, 1.0) == 1 and equivalence_p(1 - noise, 1.0) == 1


def test_twenty_trials_are_exact_and_forty_quick():
    differences = np.random.default_rng(9).normal(0.4, 1.0, size=20)
    sums = np.zeros(1)
    for one in differences:
        sums = np.concatenate([sums + one, sums - one])
    assert sign_flip_p(differences) == np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(np.ones(40)) == 2 / 2**40


def test_equivalence_is_near_that_of_student():
    from statsmodels.stats.weightstats import DescrStatsW

    rng = np.random.default_rng(10)
    for mean in (0.0, 0.3, 0.7, 1.0, -1.5):
        differences = rng.normal(mean, 0.8, size=12)
        reference = DescrStatsW(differences).ttost_mean(-1.0, 1.0)
        assert equivalence_p(differences, 1.0) == pytest.approx(reference[0], abs=0.03)
        both = (not_worse_p(differences, 1.0), not_worse_p(-differences, 1.0))
        assert equivalence_p(differences, 1.0) == max(both)


def test_claims_of_a_page_are_corrected_together():
    rng = np.random.default_rng(11)
    claims = [Claim(Contrast.of(rng.normal(mean, 1.0, size=10)), "differs") for mean in (2.0, 1.0, 0.5, 0.1)]
    raw = [claim.p for claim in claims]
    order, literal, largest = np.argsort(raw), {}, 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[place]))
        literal[place] = largest
    verdicts = judge(claims)
    assert [one.holm_p for one in verdicts] == pytest.approx([literal[place] for place in range(4)])
    assert [one.p for one in verdicts] == raw and {one.tested for one in verdicts} == {4}
    assert verdicts[0].word == "shown" and judge([]) == []


BETTER, NEAR, NOISE = np.linspace(1, 3, 10), np.linspace(-0.2, 0.3, 10), np.array([3.0, -3.5] * 5)


@pytest.mark.parametrize(
    ("differences", "expects", "margin", "word"),
    [
        (BETTER, "greater", None, "shown"),
        (-BETTER, "greater", None, "not shown"),
        (-BETTER, "less", None, "shown"),
        (BETTER, "less", None, "not shown"),
        (BETTER, "differs", None, "shown"),
        (-BETTER, "differs", None, "shown"),
        (NOISE, "differs", None, "not shown"),
        (NOISE, "greater", None, "not shown"),
        (NEAR, "equal", 1.0, "equal within 1"),
        (NEAR, "equal", 0.5, "equal within 0.5"),
        (NEAR, "equal", 0.05, "not shown"),
        (BETTER, "equal", 1.0, "not shown"),
        (-BETTER, "equal", 1.0, "not shown"),
        (NOISE, "equal", 1.0, "not shown"),
        (BETTER, "not_worse", 1.0, "shown"),
        (NEAR, "not_worse", 1.0, "shown"),
        (-BETTER, "not_worse", 1.0, "not shown"),
        (NOISE, "not_worse", 1.0, "not shown"),
    ],
)
def test_verdicts_follow_the_claim(differences, expects, margin, word):
    (verdict,) = judge([Claim(Contrast.of(differences), expects, margin)])
    assert (verdict.word, verdict.trials, verdict.by_images) == (word, 10, False)
    sure_but_opposite = word == "not shown" and expects in ("greater", "less") and differences is not NOISE
    assert verdict.reason == ("the difference has the opposite sign" if sure_but_opposite else "")


def test_an_interval_that_reaches_the_margin_says_so():
    """Widen the interval beyond the margin while p stays small.

    Half of the differing images differ each way. p is over trials alone.
    """
    images = np.zeros((10, 500))
    images[:, :20], images[:, 20:40] = 1, -1
    for expects, margin, reason in (("equal", 1.0, "the interval reaches the margin"), ("equal", 5.0, "")):
        (verdict,) = judge([Claim(Contrast.of_images(images), expects, margin)])
        assert verdict.holm_p < 0.05 and verdict.reason == reason


def test_too_few_trials_show_nothing():
    """Check the number of trials needed per contrast.

    It is 8 for up to six claims, and 10 or more for further claims. With as many trials, p can reach 0.05 after Holm's
    correction.
    """
    assert [needed_trials(tested) for tested in (1, 6, 7, 25, 26, 100)] == [8, 8, 10, 10, 11, 12]
    # with enough trials every claim can be shown; Holm multiplies equal p-values by their number
    for tested in (1, 2, 6, 7, 25, 26, 100):
        most = Contrast.of(np.ones(needed_trials(tested)))
        assert {one.word for one in judge([Claim(most, "greater")] * tested)} == {"shown"}
    for expects, margin in (("greater", None), ("differs", None), ("equal", 2.0), ("not_worse", 2.0)):
        (verdict,) = judge([Claim(Contrast.of(np.ones(7)), expects, margin)])
        assert verdict.word == "not shown" and verdict.reason.startswith("too few trials, p ≥ 0.0")
        assert verdict.p == verdict.smallest_p == smallest_p(7, expects) == (1 if margin else 2) / 2**7


def test_a_family_of_claims_in_words():
    few, enough = Contrast.of(np.ones(3)), Contrast.of(np.ones(8))
    assert family_in_words([]) == "No claim was tested."
    words = family_in_words(judge([Claim(few, "greater"), Claim(enough, "greater")]))
    assert words == (
        "2 claims were tested. The smallest two-sided p of a sign-flip test, before Holm's correction: 0.25 with "
        "3 trials, 0.00781 with 8 trials. Each contrast needs 8 trials. Contrasts of 3 trials have too few. "
        "Intervals over so few trials are too narrow."
    )
    assert "No contrast has enough" in family_in_words(judge([Claim(few, "less")]))
    assert "needs" not in family_in_words(judge([Claim(enough, "less")]))


def test_invalid_contrasts_and_claims_are_refused():
    for differences in ([], [[1.0]], np.ones(41)):
        with pytest.raises(ValueError, match="1 to 40 trials"):
            Contrast.of(differences)
    with pytest.raises(ValueError, match="finite"):
        Contrast.of([1.0, np.nan])
    with pytest.raises(ValueError, match="a row of images each"):
        Contrast(np.ones(2), np.ones((3, 5)))
    with pytest.raises(ValueError, match="not those of the trials"):
        Contrast(np.ones(2), np.ones((2, 5)))
    contrast = Contrast.of([1.0, 2.0])
    for expects, margin in (("equal", None), ("not_worse", 0.0), ("equal", -1.0), ("equal", np.inf)):
        with pytest.raises(ValueError, match="needs a margin above 0"):
            Claim(contrast, expects, margin)
    with pytest.raises(ValueError, match="has no margin"):
        Claim(contrast, "greater", 1.0)
