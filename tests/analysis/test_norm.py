"""Test the summary of norm parameters ψ by hand."""

from __future__ import annotations

import pytest
import torch

from harness.analysis.norm import NormParameters


def test_an_example_by_hand():
    initial = {"n.weight": torch.ones(2), "m.weight": torch.ones(2), "n.bias": torch.tensor([0.0, 1.0])}
    params = {"n.weight": torch.tensor([0.5, 0.7]), "m.weight": torch.tensor([-0.1, 0.9])}
    params |= {"n.bias": torch.tensor([0.3, 0.9]), "fc.weight": torch.tensor([100.0]), "fc.bias": torch.tensor([100.0])}
    found = NormParameters.of(params, initial, initial.keys())
    assert found.scale_mean == pytest.approx(0.5) and found.initial_scale_mean == 1.0
    assert found.scale_sd == pytest.approx(((0.0 + 0.04 + 0.36 + 0.16) / 4) ** 0.5)
    assert found.negative_percent == 25.0 and found.shift == pytest.approx((0.3 + 0.1) / 2)


def test_a_network_without_normalisation_layers_is_refused():
    with pytest.raises(ValueError, match="no scales"):
        NormParameters.of({}, {}, [])
