"""Test the documented properties of every method in tiny searches."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from harness.common.digest import sha256_tensors
from harness.common.seeds import SgdNoise
from harness.config import Schedule
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.experiment.trainer import Trainer
from harness.masks import Mask, SignedMask
from harness.pruning import METHODS, StartPoint, prune
from harness.pruning.lrr_full import FullLRR
from harness.pruning.wr import THETA_K
from harness.runs.run import Measurements, RunDescription
from tests.pruning.searching import STEPS, is_loaded, proved, tag

pytestmark = pytest.mark.long  # a search for each method

Params = Mapping[str, torch.Tensor]
BY_OTHER_RANKINGS = ("magnitude_increase", "snip", "synflow")
"""IMP with other rankings. Their references are in test_importance.py. The last two prune an untrained network."""


def started(params: Params, mask: Mask) -> str:
    """Return the digest of θ ⊙ m."""
    masked = {name: tensor.clone() for name, tensor in params.items()}
    mask.apply_(masked)
    return sha256_tensors(masked)


@pytest.fixture(scope="session", params=[name for name in METHODS if not METHODS[name].searches_one_density])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def found(experiment: Experiment, method: str) -> SearchResult:
    return search(experiment.using(method))


def origin(experiment: Experiment, found: SearchResult, method: str) -> Params:
    if method == "wr":
        return experiment.archive.network(found.levels[0].key, THETA_K).params
    return found.theta_init.params


def test_its_lineage_is_proved(experiment: Experiment, found: SearchResult) -> None:
    findings = proved(experiment, found.ticket)
    assert findings.problems == [] and findings.notes == []
    assert findings.checked["start"] >= 3 and findings.checked["count"] >= 3 and findings.checked["nested"] >= 2
    assert all(is_loaded(experiment, level) for level in found.levels)


def test_levels_start_from_the_documented_parameters(experiment: Experiment, found: SearchResult, method: str) -> None:
    """Compare the starts of all levels with the table in docs/methods.md."""
    theta_0 = origin(experiment, found, method)
    for before, node in zip(found.levels, found.levels[1:], strict=False):
        parent = before.checkpoint.params
        expected = {
            **dict.fromkeys(("imp", "wr", *BY_OTHER_RANKINGS), theta_0),
            "lrr_bn_rewind": {name: (theta_0 if name in node.signed_mask.norm else parent)[name] for name in parent},
        }.get(method, parent)
        assert tag(node, "start_digest") == started(expected, node.mask)


def test_masks_are_those_of_magnitude_pruning(found: SearchResult, method: str) -> None:
    before, node = found.levels[:2]
    expected = prune(before.checkpoint.params, before.mask, 0.2)
    if method == "dense":
        assert [level.signed_mask.density for level in found.levels] == [1, 1, 1]
    elif method == "random":
        assert node.mask.issubset(before.mask) and node.mask.num_remaining == expected.num_remaining
        kept = node.mask.num_remaining / node.mask.numel
        overlap = sum(int((kept_a & expected.tensors[n]).sum()) for n, kept_a in node.mask.tensors.items())
        assert overlap / node.mask.num_remaining == pytest.approx(kept, abs=0.05), "not by magnitude"
    elif method in BY_OTHER_RANKINGS:
        assert node.mask.issubset(before.mask) and node.mask.num_remaining == expected.num_remaining
        assert not node.mask.equal(expected)
    else:
        assert node.mask.equal(expected)


def test_levels_have_the_documented_length_and_schedule(
    experiment: Experiment, found: SearchResult, method: str
) -> None:
    epochs = [node.checkpoint.epochs for node in found.levels]
    full = dict.fromkeys(("imp", "lrr_full", "aws_full", "magnitude_increase"), [2, 4, 6])
    full |= {"wr": [2, 3, 4], "snip": [0, 2, 4], "synflow": [0, 2, 4]}  # wr rewinds to k = 1 epoch
    assert epochs == full.get(method, [1, 2, 3])
    assert found.ticket.record is not None
    rates = [metric.value for metric in found.ticket.record.metrics if metric.name == "lr"]
    decaying = dict.fromkeys(full, [0.1, 0.01]) | {"wr": [0.01]}
    assert rates == pytest.approx(decaying.get(method, [0.1])), "only full methods use the final schedule"


def test_the_data_order_rewinds_with_the_parameters(
    experiment: Experiment, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str | int, ...]] = []
    train = Trainer.train

    def watched(*args: object, noise: SgdNoise, **options: object) -> object:
        seen.append(noise.scope)
        return train(*args, noise=noise, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", watched)
    search(experiment.using(method, sgd_seed=77, num_levels=1, warmup_epochs=0, level_epochs=0))
    assert len(set(seen)) == (1 if method in ("imp", "wr", *BY_OTHER_RANKINGS) else 2)


def test_retrain_of_a_full_method_is_its_own_run(experiment: Experiment, found: SearchResult, method: str) -> None:
    own = isinstance(METHODS[method], FullLRR)
    trained = final_training(experiment.using(method), Trial("retrain", 2, 1), found.ticket)
    assert (trained.key == found.ticket.key) == own
    if own:
        with pytest.raises(ValueError, match="is the run .* itself, trained with sgd_seed 1, not 2"):
            final_training(experiment.using(method), Trial("retrain", 2, 2), found.ticket)


def test_wr_stores_the_network_of_step_k(experiment: Experiment) -> None:
    """Compare θ_k with a training that ends at step k.

    Also compare `wr` at k = 0 with `imp`.
    """
    found = search(experiment.using("wr"))
    theta_init = experiment.theta_init(1)
    mask = Mask.dense(theta_init.params, experiment.partition.prunable)
    reference = Trainer(experiment).train(
        RunDescription({}, "level", "reference", (), {}, {}),
        _NoStates(),  # type: ignore[arg-type]
        StartPoint(theta_init.params, theta_init.buffers, mask),
        schedule=Schedule(1, "constant"),
        noise=SgdNoise(1, ("search",)),
        psi_init=theta_init.params,
    )
    held = experiment.archive.network(found.levels[0].key, THETA_K)
    assert held.digest == reference.checkpoint.digest
    in_steps = search(experiment.using("wr", rewind_to=STEPS, rewind_unit="steps"))
    assert [node.key for node in in_steps.levels] == [node.key for node in found.levels]
    from_the_start, imp = search(experiment.using("wr", rewind_to=0)), search(experiment.using("imp"))
    assert from_the_start.ticket.checkpoint.digest == imp.ticket.checkpoint.digest
    with pytest.raises(ValueError, match="rewind_to is 2 epochs, but a training has 2 epochs of 5 steps"):
        search(experiment.using("wr", rewind_to=2))


class _NoStates:
    most_steps = None

    def __init__(self) -> None:
        self.measured = Measurements()

    def due(self, epoch: int, steps: int) -> bool:
        return False

    def load(self) -> None:
        return None


def test_lrr_full_with_a_constant_rate_is_lrr(experiment: Experiment) -> None:
    full = search(experiment.using("lrr_full", final=Schedule(1, "constant")))
    short = search(experiment.using("lrr"))
    assert [n.checkpoint.digest for n in full.levels] == [n.checkpoint.digest for n in short.levels]


def test_aws_full_with_a_constant_rate_is_aws(experiment: Experiment) -> None:
    """Compare checkpoints level by level. The keys differ, because they include the method."""
    full = search(experiment.using("aws_full", final=Schedule(1, "constant")))
    short = search(experiment.using("aws"))
    assert [n.checkpoint.digest for n in full.levels] == [n.checkpoint.digest for n in short.levels]
    assert not {n.key for n in full.levels} & {n.key for n in short.levels}
    usual = search(experiment.using("aws_full"))
    other = search(experiment.using("aws_full", alpha="zero"))
    assert other.levels[0].key != usual.levels[0].key


# ---------------------------------------------------------------------- options


def test_another_search_in_the_same_launch_changes_only_its_settings(experiment: Experiment) -> None:
    other = experiment.using("imp", init_seed=None, sgd_seed=3, num_levels=None).config
    assert (other.method, other.init_seed, other.sgd_seed, other.num_levels) == ("imp", 1, 3, 2), "None changes nothing"
    with pytest.raises(ValueError, match="global_batch_size cannot change within a launch"):
        experiment.using(global_batch_size=8)


def test_an_explicit_list_of_densities_is_reached(experiment: Experiment) -> None:
    found = search(experiment.using("lrr", densities=(0.5, 0.1)))
    numel = found.ticket.mask.numel
    assert [n.mask.num_remaining for n in found.levels] == [numel, round(0.5 * numel), round(0.1 * numel)]
    assert proved(experiment, found.ticket).problems == []
    with pytest.raises(ValueError, match="densities has 1 levels, but num_levels is 2"):
        experiment.using("lrr", densities=(0.5,))
    with pytest.raises(ValueError, match="must fall"):
        experiment.using("lrr", densities=(0.5, 0.6))


def test_layerwise_pruning_removes_the_same_share_of_each_layer(experiment: Experiment) -> None:
    found = search(experiment.using("lrr", pruning_scope="layer"))
    before, node = found.levels[:2]
    for name, kept in node.mask.tensors.items():
        assert int(kept.sum()) == int(0.8 * kept.numel())
        magnitude = before.checkpoint.params[name].abs()
        assert magnitude[kept].min() >= magnitude[~kept].max()
    assert proved(experiment, found.ticket).problems == []


def test_one_shot_reaches_the_same_density_from_level_0(experiment: Experiment) -> None:
    once, step_by_step = search(experiment.using("lrr", one_shot=True)), search(experiment.using("lrr"))
    assert [node.checkpoint.level for node in once.levels] == [0, 2]
    assert once.levels[0].key == step_by_step.levels[0].key, "they share the warm-up"
    assert once.ticket.mask.num_remaining == step_by_step.ticket.mask.num_remaining
    assert not once.ticket.mask.equal(step_by_step.ticket.mask)
    assert proved(experiment, once.ticket).problems == []


@pytest.mark.parametrize("name", ["lrr", "aws"])
def test_the_order_of_algorithm_1_as_printed(experiment: Experiment, name: str) -> None:
    """Check the order of Algorithm 1: a warm-up, then T times train and prune.

    The signs s_T = sign₀(θ_{T−1} ⊙ m_T) are taken before any training under m_T.
    """
    found, usual = search(experiment.using(name, order="paper")), search(experiment.using(name))
    assert [node.checkpoint.level for node in found.levels] == [0, 1, 2]
    assert [node.checkpoint.epochs for node in found.levels] == [2, 3, 3], "level 0 is warm-up and one training"
    assert found.levels[0].record is not None
    assert [node.record.tags.get("phase") for node in found.levels if node.record] == ["again", None, "untrained"]
    (warm_up,) = found.levels[0].record.parents
    assert (warm_up.key, warm_up.relation) == (usual.levels[0].key, "trained-from")
    assert tag(found.levels[0], "start_digest") == sha256_tensors(usual.levels[0].checkpoint.params)
    theta = found.levels[1].checkpoint.params
    mask = prune(theta, found.levels[1].mask, 0.2)
    assert found.ticket.mask.equal(mask)
    signs = SignedMask.of(theta, mask).signs
    assert all(torch.equal(sign, found.ticket.signed_mask.signs[n]) for n, sign in signs.items())
    assert proved(experiment, found.ticket).problems == []


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("imp", {"order": "paper"}, "order=paper needs short levels, but the levels of imp are full trainings"),
        ("aws_full", {"order": "paper"}, "order=paper needs short levels, but the levels of aws_full are"),
        ("lrr", {"order": "paper", "num_levels": 0}, "order=paper takes the signs of a pruned network"),
        ("lrr", {"one_shot": True, "num_levels": 0}, "one_shot prunes to the density of level num_levels"),
        ("dense", {"one_shot": True}, "dense prunes nothing"),
    ],
)
def test_contradicting_options_are_refused(experiment, method, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        search(experiment.using(method, **options))
