"""Test Gem-Miner's two trainings as runs: their starts, settings, results and verification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.common.seeds import SgdNoise
from harness.config import GemMinerConfig, OptimConfig, Schedule, search_from_json
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.models import classifier_of
from harness.pruning import METHODS, LevelContext
from harness.pruning.gem_miner import SCORES, choose_images, draw_scores
from harness.pruning.method import StoredLevel
from harness.runs.run import FinishedRun
from harness.training.feed import TrainFeed
from harness.training.loop import train
from tests.pruning.searching import is_loaded, proved, tag

GEM = GemMinerConfig(score_epochs=5, freeze_every_epochs=2, finetune=Schedule(2, "step"))


@pytest.fixture(scope="module")
def own(experiment: Experiment) -> Experiment:
    return experiment.using("gem_miner", gem_miner=GEM, num_levels=4)


@pytest.fixture(scope="module")
def found(own: Experiment) -> SearchResult:
    return search(own)


@pytest.fixture(scope="module")
def scores_run(own: Experiment, found: SearchResult) -> FinishedRun:
    assert found.ticket.record is not None
    return own.archive.load(found.ticket.record.parents[0].key)


def test_its_lineage_is_proved(own: Experiment, found: SearchResult) -> None:
    finals = [
        final_training(own, Trial(kind, 2, 1), found.ticket) for kind in ("signed_mask", "retrain", "random_mask")
    ]
    assert all(is_loaded(own, run) for run in (*found.levels, *finals))
    findings = proved(own, found.ticket)
    assert findings.problems == [] and findings.notes == [], "a note would mark an old rule"
    assert findings.num_nodes == 6
    assert (findings.checked["start"], findings.checked["pruned"], findings.checked["count"]) == (5, 1, 1)


def test_weights_are_signed_constants_and_scores_drawn(
    own: Experiment, found: SearchResult, scores_run: FinishedRun
) -> None:
    network = own.theta_init(1).params
    for name in own.partition.prunable:
        assert torch.equal(found.theta_init.params[name].sign(), network[name].sign())
        assert found.theta_init.params[name].abs().unique().numel() == 1
    scored = sorted([*own.partition.prunable, f"{classifier_of('resnet8')}.weight"])
    begun = found.theta_init.params | draw_scores({name: network[name].shape for name in scored}, 1)
    begun["fc.bias"] = torch.zeros(10)
    assert tag(scores_run, "start_digest") == sha256_tensors(begun)


def test_fine_tuning_trains_only_the_kept_weights(
    found: SearchResult, scores_run: FinishedRun, own: Experiment
) -> None:
    ticket, theta_init = found.ticket, found.theta_init.params
    start = {name: tensor.clone() for name, tensor in theta_init.items()}
    start["fc.bias"].zero_()
    ticket.mask.apply_(start)
    assert tag(ticket, "start_digest") == sha256_tensors(start)
    assert ticket.mask.equal(scores_run.mask)
    for name, tensor in ticket.checkpoint.params.items():
        if name in ticket.mask.tensors:
            assert not torch.equal(tensor, start[name])
        else:
            assert torch.equal(tensor, start[name]), "biases and norm parameters must not be trained"


def test_both_trainings_have_the_settings_of_gem_miner(own: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check optimizer, schedule, noise and trained parameters of both trainings.

    The search's own optimizer is ignored. Only weights are trained, including the classifier's.
    """
    seen: list[tuple[object, ...]] = []

    def watched(model: torch.nn.Module, **options: object) -> None:
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        seen.append((options["optim"], options["schedule"], options["noise"], trained))
        train(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("harness.experiment.trainer.train", watched)
    search(own.using("gem_miner", sgd_seed=5))
    weights = own.partition.prunable | {"fc.weight"}
    scoring, tuning = (OptimConfig("sgd", lr, 0.9, weight_decay=decay) for lr, decay in ((0.1, 2e-5), (0.01, 1e-4)))
    assert seen == [
        (scoring, Schedule(5, "cosine"), SgdNoise(5, ("search", 4, "scores")), weights),
        (tuning, Schedule(2, "step"), SgdNoise(5, ("search", 4, "finetune")), weights),
    ]


def test_both_trainings_use_only_the_chosen_images(own: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that only the selected images are used.

    Both trainings and the BatchNorm statistics of the evaluation must use the same images. The selection depends only
    on sgd_seed, so it is the same at every density.
    """
    # Phase: record the images of every epoch of a search
    chosen: list[list[int]] = []
    epoch = TrainFeed.epoch

    def watched(feed: TrainFeed, noise: SgdNoise, *where: Any, **options: Any) -> Iterator[Any]:
        seen = feed.loader.order.indices(noise, where[0], 0, None)
        assert (seen.reshape(-1)[:, None] == feed.loader.order.chosen).any(1).all()
        chosen.append(sorted(feed.loader.order.chosen.tolist()))
        return epoch(feed, noise, *where, **options)

    monkeypatch.setattr(TrainFeed, "epoch", watched)
    few = replace(GEM, num_train=600)
    found = search(own.using("gem_miner", gem_miner=few, num_levels=3))
    assert len(chosen) == 5 + 1 + 2 and all(one == chosen[0] for one in chosen)  # scores, their evaluation, fine-tuning
    assert len(set(chosen[0])) == 600 and max(chosen[0]) > 1200 and chosen[0] != [*range(600)]
    # Phase: the number of images is recorded and in the key
    scores = own.archive.load(found.ticket.record.parents[0].key)
    for run in (scores, found.ticket):
        written = json.loads(own.store.local.open_file(run.key, DETERMINANTS).read_bytes())
        assert written["num_train"] == run.record.config["search"]["gem_miner"]["num_train"] == 600
    assert proved(own, found.ticket).problems == []
    # Phase: the seed determines the selection, and bad numbers are refused
    again, other = (choose_images(600, seed, 1297).tolist() for seed in (1, 2))
    assert again == chosen[0] != other
    with pytest.raises(ValueError, match="num_train is 2000; the training set has 1297 images"):
        search(own.using("gem_miner", gem_miner=replace(GEM, num_train=2000)))
    with pytest.raises(ValueError, match=r"gem_miner\.num_train is 0; it must be 1 or more"):
        GemMinerConfig(num_train=0)


def test_the_freezing_rule_is_in_the_key_unless_it_is_the_older_one(own: Experiment, found: SearchResult) -> None:
    older = search(own.using("gem_miner", gem_miner=replace(GEM, freezing="exact")))

    def written(run: FinishedRun) -> dict[str, Any]:
        determinants: dict[str, Any] = json.loads(own.store.local.open_file(run.key, DETERMINANTS).read_bytes())
        return determinants

    for result, freezing in ((found, {"freezing": "authors"}), (older, {})):
        scores = written(own.archive.load(result.ticket.record.parents[0].key))
        assert {name: scores[name] for name in scores if name in ("freezing", "num_train")} == freezing
        assert "freezing" not in written(result.ticket)
    findings = proved(own, older.ticket)
    assert findings.problems == []
    assert {
        note.what for note in findings.notes if note.key in (older.ticket.key, older.ticket.record.parents[0].key)
    } == {"its scores were frozen one epoch earlier than in the authors' code, with exact counts despite ties"}
    record = older.ticket.record.config["search"]
    assert search_from_json(record).gem_miner.freezing == "exact"
    del record["gem_miner"]["freezing"]
    assert search_from_json(record).gem_miner.freezing == "exact", "a record without this field is an older one"


def test_both_densities_are_reported(own: Experiment, found: SearchResult) -> None:
    numel = found.ticket.mask.numel
    assert "fc.weight" in found.ticket.mask.tensors
    assert found.ticket.metric("density") == pytest.approx(0.8**4, abs=2 / numel)
    head = found.ticket.mask.tensors["fc.weight"]
    rest = (found.ticket.mask.num_remaining - int(head.sum())) / (numel - head.numel())
    assert found.ticket.metric("density_without_classifier") == pytest.approx(rest)
    listed = search(own.using("gem_miner", densities=(0.5, 0.8**4), num_levels=2))
    assert listed.ticket.mask.num_remaining == found.ticket.mask.num_remaining


def test_a_network_that_contradicts_its_scores_is_found(
    own: Experiment, found: SearchResult, scores_run: FinishedRun
) -> None:
    scores = own.archive.network(scores_run.key, SCORES)
    assert scores_run.record is not None
    config, signed_mask = search_from_json(scores_run.record.config["search"]), scores_run.signed_mask
    theta_init, phase = found.theta_init, tag(scores_run, "phase")
    ctx = LevelContext(
        config, 4, signed_mask.mask, signed_mask.norm, theta_init, theta_init, lambda name: theta_init, phase
    )
    whole = StoredLevel(ctx, scores_run.checkpoint, {SCORES: scores}, None)

    def wrong(stored: StoredLevel) -> set[str]:
        statements = METHODS["gem_miner"].statements(stored)
        assert statements is not None
        return {statement.check for statement in statements if not statement.holds}

    assert wrong(whole) == set()
    others = {name: 1 - score for name, score in scores.params.items()}
    assert wrong(replace(whole, networks={SCORES: Checkpoint(others, {}, 0, 0, "")})) == {"pruned"}
    moved = scores_run.checkpoint.params | {"bn1.weight": torch.full((2,), 1.1)}
    assert wrong(replace(whole, checkpoint=replace(scores_run.checkpoint, params=moved))) == {"pruned"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_levels": 0}, "num_levels, which must be 1 or more"),
        ({"order": "paper", "one_shot": True}, "remove order, one_shot"),
        ({"initialisation": "kaiming_normal"}, "signed constants"),
    ],
)
def test_unsupported_options_are_refused(own: Experiment, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(own.using("gem_miner", **options))
    with pytest.raises(ValueError, match=r"gem_miner\.score_epochs is 5 and freeze_every_epochs is 5"):
        GemMinerConfig(score_epochs=5)
