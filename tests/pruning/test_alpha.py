"""Test distributions of α other than the paper's.

Such a search has its own key. The distribution is recorded, and `verify` checks it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.config import ComparisonConfig
from harness.experiment.comparison import compare_initial_norm
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from tests.pruning.searching import proved, tag

pytestmark = pytest.mark.long  # the searches take seconds


def test_alpha_zero_never_trains_the_norm_parameters(experiment: Experiment):
    """Check that ψ stays exactly at ψ_init if α is always 0.

    This holds without weight decay. LRR changes ψ with the same settings.
    """
    plain = experiment.using(num_levels=1, optim=replace(experiment.config.optim, weight_decay=0.0))
    found = search(plain.using("aws", alpha="zero"))
    moved = search(plain.using("lrr"))
    for name in experiment.partition.norm:
        assert torch.equal(found.ticket.checkpoint.params[name], found.theta_init.params[name])
    assert any(
        not torch.equal(moved.ticket.checkpoint.params[name], moved.theta_init.params[name])
        for name in experiment.partition.norm
    )


@pytest.mark.parametrize("alpha", ["zero", "bernoulli", "half_to_one"])
def test_another_distribution_is_another_search(experiment: Experiment, alpha: str):
    usual = search(experiment.using("aws", num_levels=1))
    other = experiment.using("aws", num_levels=1, alpha=alpha)
    found = search(other)
    final = final_training(other, Trial("signed_mask", 2, 1), found.ticket)
    assert usual.ticket.key != found.ticket.key
    assert tag(usual.ticket, "settings") != tag(found.ticket, "settings")
    for run in (found.ticket, final):
        assert tag(run, "alpha") == alpha and run.record is not None and f"aws α={alpha}" in run.record.name
    means = [metric.value for metric in found.ticket.record.metrics if metric.name == "alpha_mean"]  # type: ignore[union-attr]
    assert all(mean == 0 if alpha == "zero" else mean >= 0.5 or alpha == "bernoulli" for mean in means) and means
    pair = compare_initial_norm(other, found.ticket, ComparisonConfig(num_alphas=2, bn_images=64))
    compared = experiment.store.local.load(pair.key)  # type: ignore[union-attr]
    assert compared.tags["alpha"] == alpha and f"aws α={alpha}" in compared.name
    findings = proved(experiment, found.ticket)
    assert not findings.problems and findings.checked["alpha"]


def test_a_record_with_a_wrong_distribution_is_found(experiment: Experiment):
    """Check that verification finds a wrong distribution in the record.

    It draws α again from the seed. Here α was drawn from U(0, 1), and the record claims a Bernoulli distribution.
    """
    from harness.lineage.proof.records import alpha

    record = search(experiment.using("aws", num_levels=1)).ticket.record
    assert record is not None
    changed = {**record.config, "search": {**record.config["search"], "alpha": "bernoulli"}}
    findings = alpha(replace(record, config=changed), record.config["schedule"]["epochs"])
    assert findings is not None and not all(finding.holds for finding in findings)


def test_a_method_without_alpha_refuses_a_distribution(experiment: Experiment):
    with pytest.raises(ValueError, match="lrr uses no α: remove alpha=zero"):
        search(experiment.using("lrr", alpha="zero"))
