"""Test stores of the previous version, which initialised some networks differently.

Its runs load and verify. Lists and pages mark them, and new searches do not reuse them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import pytest

from harness.cli.lineage.printing import print_node, print_nodes
from harness.common.digest import sha256_tensors
from harness.config import REDRAWN, ComparisonConfig, ModelConfig, Schedule
from harness.experiment.comparison import Comparison, compare, compare_signed_init
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.browse.find import family, find_node
from harness.lineage.page.picture import picture_of
from harness.lineage.proof.records import settings
from harness.lineage.tracking.description import describe
from harness.models import MODELS, ModelSpec
from harness.models.mobilenet_v2 import mobilenet_v2_cifar
from harness.runs.run import FinishedRun
from tests.pruning.searching import proved, resolved, tag

pytestmark = pytest.mark.long  # the searches take seconds

NAME = "mobilenet_v2_cifar"
WAY = "drawn the other way: its weights from Kaiming normal over fan_in"
EMA = ComparisonConfig(num_alphas=2, bn_convention="ema")


class Made(NamedTuple):
    found: SearchResult
    finals: list[FinishedRun]
    pair: Comparison

    @property
    def root(self) -> str:
        """Return the key of the search."""
        return self.found.ticket.record.nested_under


@contextmanager
def the_version_before() -> Iterator[None]:
    """Simulate the previous version during a `with` block.

    It initialised with Kaiming normal. Its keys, records and tags lack the fields added later.
    """
    spec = ModelSpec(partial(mobilenet_v2_cifar, former=True), classifier="fc")
    with patch.dict(REDRAWN), patch.dict(MODELS, {NAME: spec}), patch.object(ComparisonConfig, "ema_start", {}):
        del REDRAWN[NAME]
        yield


def untrained(experiment: Experiment) -> Experiment:
    """Return an experiment on the network NAME with trainings of 0 epochs."""
    lengths = {"num_levels": 1, "warmup_epochs": 0, "level_epochs": 0, "final": Schedule(0, "constant")}
    return experiment.beside(replace(experiment.config, model=ModelConfig(NAME, width=2), **lengths))


def made(experiment: Experiment) -> Made:
    """Run a search, three final trainings and a comparison."""
    own = untrained(experiment)
    found = search(own)
    trials = [Trial("signed_mask", 2, 1), Trial("signed_mask", 2, 2), Trial("retrain", 2, 1)]
    finals = [final_training(own, trial, found.ticket) for trial in trials]
    pair = compare(own, *finals[:2], "stability", EMA)
    assert pair is not None
    return Made(found, finals, pair)


@pytest.fixture(scope="module")
def old(experiment: Experiment) -> Made:
    with the_version_before():
        return made(experiment)


@pytest.fixture(scope="module")
def new(experiment: Experiment, old: Made) -> Made:
    return made(experiment)


def keys(one: Made) -> set[str]:
    return {run.key for run in (*one.found.levels, *one.finals)} | {one.root, one.pair.key}


def test_old_runs_verify_and_are_marked(experiment: Experiment, old: Made) -> None:
    findings = proved(experiment, old.found.ticket)
    assert findings.problems == [] and findings.num_nodes == 7
    assert (findings.checked["theta_init"], findings.checked["start"]) == (2, 5)
    named = {note.key: note.what for note in findings.notes}
    assert named.keys() == {old.root, old.finals[0].key, old.finals[1].key, old.pair.key}, "retrain draws no θ_init"
    assert all(WAY in named[key] for key in named if key != old.pair.key)
    assert "ema statistics started the other way: from the interpolated ones" in named[old.pair.key]


def test_new_runs_share_no_key_with_old_ones(experiment: Experiment, old: Made, new: Made) -> None:
    assert keys(old).isdisjoint(keys(new))
    assert old.found.theta_init.digest != new.found.theta_init.digest
    findings = proved(experiment, new.found.ticket)
    assert findings.problems == [] and findings.notes == [] and findings.num_nodes == 7
    assert proved(experiment, old.found.ticket).problems == [], "new runs in the same store must not matter"
    settings = [{run.record.tags["settings"] for run in (*one.found.levels, *one.finals[2:])} for one in (old, new)]
    assert len(settings[0]) == len(settings[1]) == 1 and settings[0] != settings[1], "pages must not average over both"


def test_an_old_comparison_is_reused_except_with_ema(experiment: Experiment, old: Made) -> None:
    own = untrained(experiment)
    usual = replace(EMA, bn_convention="cumulative")
    with the_version_before():
        before = compare(own, *old.finals[:2], "stability", usual)
    now, other = (compare(own, *old.finals[:2], "stability", config) for config in (usual, EMA))
    assert before is not None and now is not None and other is not None
    assert now.key == before.key and other.key != old.pair.key
    assert experiment.store.local.load(other.key).tags["ema_start"] == "mean 0, variance 1"


@pytest.mark.parametrize(
    ("entry", "kept_by"), [("ema_start", "tags"), ("initial_weights", "config")], ids=["ema", "draw"]
)
def test_a_comparison_that_claims_the_old_rule_is_found(
    experiment: Experiment, old: Made, entry: str, kept_by: str
) -> None:
    """Check that verification finds a record that contradicts its key.

    A field is removed from the record, which then claims the old rule. The compared copy has the signs of an old
    ticket on a θ_init drawn by the current rule.
    """
    one = compare_signed_init(untrained(experiment), old.found.ticket, 2, EMA)
    assert one is not None
    record = experiment.store.local.load(one.key)
    directory = experiment.store.local.directory / f"analysis-{one.key[:16]}"
    determinants = json.loads((directory / "determinants.json").read_text())
    said = {kept_by: {name: value for name, value in getattr(record, kept_by).items() if name != entry}}
    for found, wrong in ((record, []), (replace(record, **said), [entry])):
        config = json.loads(json.dumps(found.config))
        problems = [finding for finding in settings(found, config, determinants) if not finding.holds]
        assert [problem.what.split()[0] for problem in problems] == wrong


def test_theta_init_of_an_old_search_is_loaded_not_drawn(experiment: Experiment, old: Made) -> None:
    own, root = untrained(experiment), old.root
    with pytest.raises(ValueError, match=f"drew its θ_init differently .* --initialisation {root[:16]} uses"):
        final_training(own, Trial("mask", 1, 1), old.found.ticket, same_init=True)
    trial = Trial("mask", 1, 1, initialisation=resolved(own, root))
    masked = final_training(own, trial, old.found.ticket, same_init=True)
    expected = {name: tensor.clone() for name, tensor in old.found.theta_init.params.items()}
    old.found.ticket.mask.apply_(expected)
    assert tag(masked, "start_digest") == sha256_tensors(expected)


def test_lists_pages_and_descriptions_mark_old_runs(experiment: Experiment, old: Made, new: Made, capsys) -> None:
    nodes = {}
    for title, one in (("old", old), ("new", new)):
        root = find_node(experiment.store, one.root)
        nodes[title] = family(experiment.store, root)
        print_node(root, [], [])
        assert (WAY in capsys.readouterr().out) == (title == "old")
        print_nodes(nodes[title], {})
        assert ("θ_init drawn the other way: " in capsys.readouterr().out) == (title == "old")
        told = [WAY in describe(node, []) for node in nodes[title] if node.kind in ("search", "training")]
        assert sum(told) == (3 if title == "old" else 0), "marked are the search and two of three final trainings"
    boxes = [box for box in picture_of([*nodes["old"], *nodes["new"]]).boxes if box.kind == "theta_init"]
    assert len(boxes) == 4, "both have a θ_init of seed 1 and one of seed 2"
    assert sorted(len(box.lines) for box in boxes) == [2, 2, 3, 3] and boxes[0].lines != boxes[2].lines
