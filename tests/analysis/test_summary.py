"""Test means, sample standard deviations and counts."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis.summary import Summary, epsilon_from_dense

ERRORS = [8.8, 9.3, 9.1]


def test_agrees_with_numpy():
    one = Summary.of(ERRORS)
    assert one.mean == pytest.approx(np.mean(ERRORS))
    assert one.sd == pytest.approx(np.std(ERRORS, ddof=1))
    assert one.count == 3
    assert epsilon_from_dense(ERRORS) == pytest.approx(np.std(ERRORS, ddof=1))


def test_by_hand():
    assert Summary.of([1.0, 3.0]) == Summary(2.0, 2.0**0.5, 2)
    assert str(Summary.of([1.0, 3.0])) == "2.00 ± 1.41 (n=2)"


def test_one_trial_has_no_spread():
    assert Summary.of([5.0]) == Summary(5.0, None, 1)
    assert str(Summary.of([5.0])) == "5.00 (n=1)"


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="no mean"):
        Summary.of([])
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        epsilon_from_dense([9.0])
