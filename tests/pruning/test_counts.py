"""Test how many weights a level keeps: exact counts, the older rule, their keys, and layers without weights."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from fractions import Fraction
from unittest.mock import patch

import pytest
import torch

from harness.config import count_rules_differ, search_from_json, to_json
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.masks import Mask
from harness.pruning import PruningSchedule, prune
from harness.pruning.gem_miner import ScoreTraining
from harness.runs.run import FinishedRun
from recipes.presets.small import digits
from tests.pruning.searching import proved, tag

HUNDREDTHS = [number / 100 for number in range(1, 100)]
FRACTIONS = [*HUNDREDTHS, 0.001, 0.005, 0.125, 0.333, 0.6667, 0.995, 0.999, 1e-05, 0.123456]
ROUNDING = [0.06, 0.07, 0.3, 0.31, 0.32, 0.33, 0.34, 0.53, 0.54, 0.55, 0.56, 0.65, 0.66, 0.67, 0.68]
ROUNDING += [0.77, 0.78, 0.79, 0.8, 0.81, 0.89, 0.9, 0.91, 0.92, 0.93]
"""The hundredths for which floating point keeps a weight too few of some numbers."""


class Layer(torch.Tensor):
    """Stands for a mask's tensor with `live` kept weights, of which only the numbers are asked."""

    live: int

    @classmethod
    def of(cls, live: int) -> Layer:
        layer = torch.empty(0, dtype=torch.bool).as_subclass(cls)
        layer.live = live
        return layer

    def sum(self) -> int:
        return self.live

    numel = sum


def num_kept(live: int, fraction: float, rule: str = "exact") -> int:
    return PruningSchedule(fraction, count_rule=rule).counts(1, Mask({"w": Layer.of(live)}))[""]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_counts_are_exact(fraction):
    exact = Fraction(str(fraction))
    for live in range(1, 2001):
        assert num_kept(live, fraction) == ((1 - exact) * live).__floor__()


def test_a_search_uses_the_exact_counts():
    ten = Mask({"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(5, dtype=torch.bool)})
    assert PruningSchedule(0.8).counts(1, ten) == {"": 3}
    assert PruningSchedule(0.8, scope="layer").counts(1, ten) == {"a": 2, "b": 1}
    assert PruningSchedule(0.9, one_shot=True).counts(2, Mask({"a": torch.ones(1000, dtype=torch.bool)})) == {"": 10}
    assert PruningSchedule(0.8, count_rule="float").counts(1, ten) == {"": int((1 - 0.8) * 15)} == {"": 2}
    assert prune({"a": torch.arange(10.0)}, Mask({"a": ten.tensors["a"]}), 0.8).num_remaining == 2


@pytest.mark.parametrize("density", HUNDREDTHS)
def test_densities_give_a_nearest_count(density):
    for numel in range(1, 500):
        (count,) = PruningSchedule(0.2, (density,)).counts(1, Mask({"w": Layer.of(numel)})).values()
        assert abs(count - Fraction(str(density)) * numel) <= Fraction(1, 2)


def test_the_rules_differ_where_the_criterion_says_so():
    """Compare it with the counts themselves: of numbers up to 2000, and of large ones near powers of two."""
    large = [2**power // 100 * 100 + 100 * step for power in range(12, 32) for step in range(-5, 6)]
    numbers = [*range(5, 501, 5), *(number for number in large if number < 2**32)]
    found = [f for f in HUNDREDTHS if any(num_kept(n, f) != num_kept(n, f, "float") for n in numbers)]
    assert [f for f in HUNDREDTHS if count_rules_differ(f)] == ROUNDING
    assert set(found) <= set(ROUNDING) and {0.3, 0.8, 0.9, 0.55} <= set(found)
    assert count_rules_differ(0.3333333333333333), "too many digits to tell"
    assert not any(count_rules_differ(f) for f in (0.2, 0.5, 0.95, 0.98, 0.99, 0.1, 0.4, 0.7))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_keys_and_records_change_only_where_the_rules_differ(fraction):
    config, differ = replace(digits(), pruning_fraction=fraction), count_rules_differ(fraction)
    written = json.loads(json.dumps(to_json(config)))
    assert written.get("count_rule") == ("exact" if differ else None)
    assert search_from_json(written) == config
    assert PruningSchedule.of(config).determinants(1) == ({"pruning": {"count_rule": "exact"}} if differ else {})
    assert PruningSchedule.of(config).determinants(0) == {}
    # A record of an older version has no such field. It keeps its rule, also when it is written again.
    written.pop("count_rule", None)
    older = search_from_json(written)
    assert older.count_rule == ("float" if differ else "exact")
    assert json.loads(json.dumps(to_json(older))) == written
    assert PruningSchedule.of(older).determinants(1) == {}
    by_density = replace(config, densities=(0.5,), num_levels=1)
    assert "count_rule" not in to_json(by_density)
    assert PruningSchedule.of(by_density).determinants(1) == {"pruning": {"density": 0.5}}


def untrained(experiment: Experiment, **settings: object) -> Experiment:
    """Return an experiment whose search takes no step."""
    method = settings.pop("method", "lrr")
    return experiment.using(str(method), warmup_epochs=0, level_epochs=0, **settings)


@pytest.fixture(scope="module")
def older(experiment: Experiment) -> SearchResult:
    """Make a search as an older version did, with floating-point counts."""
    return search(untrained(experiment, pruning_fraction=0.8, count_rule="float", init_seed=21))


def test_an_older_search_is_verified_but_not_continued(experiment: Experiment, older: SearchResult, caplog) -> None:
    # Phase: the older search is like one of an older version, and it verifies by its own rule.
    first = older.levels[1]
    written = json.loads(experiment.store.local.open_file(first.key, DETERMINANTS).read_bytes())
    assert "pruning" not in written and "count_rule" not in first.record.config["search"]
    before = older.levels[0].mask.num_remaining
    findings = proved(experiment, older.ticket)
    assert findings.problems == [] and findings.checked["count"] == 3
    noted = [note.what for note in findings.notes]
    assert noted == ["it keeps int((1 - 0.8) * n) of n weights in floating point; current versions count exactly"] * 2

    # Phase: the same command makes new levels and says so once.
    with caplog.at_level(logging.INFO, logger="harness"):
        new = search(untrained(experiment, pruning_fraction=0.8, init_seed=21))
    assert new.levels[0].key == older.levels[0].key
    assert {run.key for run in new.levels[1:]}.isdisjoint(run.key for run in older.levels)
    said = [record.message for record in caplog.records if "is made again" in record.message]
    assert len(said) == 1 and first.key[:16] in said[0] and "--count-rule float continues it" in said[0]
    assert new.levels[1].mask.num_remaining == before // 5
    assert tag(new.ticket, "settings") != tag(older.ticket, "settings")
    assert proved(experiment, new.ticket).problems == []

    # Phase: an explicit rule continues the older search, and its tickets are used as before.
    longer = search(untrained(experiment, pruning_fraction=0.8, count_rule="float", init_seed=21, num_levels=3))
    assert [run.key for run in longer.levels[:3]] == [run.key for run in older.levels]


def test_verification_finds_a_count_of_the_other_rule(experiment: Experiment) -> None:
    usual = PruningSchedule.counts
    with patch.object(PruningSchedule, "counts", lambda *given: {n: count - 1 for n, count in usual(*given).items()}):
        made = search(untrained(experiment, pruning_fraction=0.8, init_seed=22))
    problems = [(problem.check, problem.what) for problem in proved(experiment, made.ticket).problems]
    assert [check for check, _ in problems] == ["count", "pruned"] * 2 and "must remain" in problems[0][1]


# Layers without weights.


def empty_layers(run: FinishedRun) -> list[str]:
    return [name.removesuffix(".weight") for name, kept in run.mask.tensors.items() if not kept.any()]


@pytest.mark.parametrize(
    "settings",
    [
        {"densities": (0.01,), "pruning_scope": "layer", "num_levels": 1},
        {"densities": (0.01,), "pruning_scope": "layer", "num_levels": 1, "one_shot": True},
        {"pruning_fraction": 0.95, "pruning_scope": "layer", "method": "imp"},
    ],
    ids=["densities", "one shot", "fraction"],
)
def test_layers_without_weights_are_named_once_and_tagged(experiment: Experiment, caplog, settings) -> None:
    own = untrained(experiment, init_seed=23, **settings)
    own.archive._said_empty.clear()
    with caplog.at_level(logging.WARNING, logger="harness"):
        found = search(own)
        empty = empty_layers(found.ticket)
        said = [record.message for record in caplog.records if "keeps no weight in" in record.message]
        assert "conv1" in empty and ", ".join(empty) in said[-1]
        assert len(said) == len({tuple(empty_layers(run)) for run in found.levels} - {()})
        assert tag(found.ticket, "empty_layers") == ", ".join(empty)
        assert "empty_layers" not in found.levels[0].record.tags
        caplog.clear()
        own.archive._said_empty.clear()  # as in a later launch
        assert search(own).ticket.key == found.ticket.key
        short = own.using(final=replace(own.config.final, epochs=0, lr_schedule="constant"))
        final = final_training(short, Trial("mask", 2, 1), found.ticket)
        assert tag(final, "empty_layers") == ", ".join(empty)
    assert [", ".join(empty) in record.message for record in caplog.records].count(True) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"densities": (1e-6,), "num_levels": 1},
        {"densities": (0.5, 1e-6), "num_levels": 2},
        {"densities": (1e-6,), "num_levels": 1, "pruning_scope": "layer"},
        {"pruning_fraction": 0.999, "num_levels": 2},
        {"pruning_fraction": 0.9, "num_levels": 9, "one_shot": True},
    ],
    ids=str,
)
def test_a_network_without_weights_is_refused_before_training(experiment: Experiment, settings) -> None:
    own = untrained(experiment, init_seed=24, **settings)
    before = len(experiment.store.local.records())
    with pytest.raises(ValueError, match=r"level [0-9] keeps none of the [0-9,]+ prunable weights at .*; a network"):
        search(own)
    assert len(experiment.store.local.records()) == before


def test_an_empty_ticket_and_empty_scores_are_refused(experiment: Experiment) -> None:
    none = Mask({"w": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="'x' keeps none of the 3 prunable weights: choose a ticket of higher density"):
        experiment.archive.check_weights("x", none)
    experiment.archive.check_weights("x", Mask({}))
    gem = replace(experiment.config.gem_miner, score_epochs=2, freeze_every_epochs=1)
    for freezing in ("exact", "authors"):
        with pytest.raises(ValueError, match="gem_miner keeps none of 3 weights at density 0.01"):
            ScoreTraining({"w": torch.ones(3)}, ["w"], 0.01, replace(gem, freezing=freezing))
