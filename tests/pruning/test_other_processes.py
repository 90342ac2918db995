"""Continue a search that another number of processes began.

Most tests simulate the first launch: this process computes, and key and record name two processes.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import ComparisonConfig, search_from_json, to_json
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.experiment import describe
from harness.experiment.comparison import compare
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.nodes.local_files import RECORD, SUMS, read_record
from harness.lineage.proof import verify
from harness.lineage.store import open_store
from harness.runs.run import FinishedRun
from tests.pruning.searching import proved
from tests.warm import torchrun

NAMED = " 2→1 processes"


@contextmanager
def named_as(size: int) -> Iterator[None]:
    """Let keys and records name `size` processes, though this one computes alone."""
    usual = describe.common

    def common(experiment: Experiment) -> describe.CommonDescription:
        own, launched = usual(experiment), describe.of_processes(experiment.config, size)
        launch = own.config["launch"] | {"world_size": size}
        return replace(own, determinants=own.determinants | launched, config=own.config | {"launch": launch})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(describe, "common", common)
        yield


@pytest.fixture
def fresh(experiment: Experiment, tmp_path: Path) -> Experiment:
    """Return the experiment with a store of its own."""
    config = replace(experiment.config, runs=tmp_path / "runs", method="lrr")
    return Experiment(experiment.world, open_store(config.runs, offline=True), config)


def sizes(found: SearchResult) -> list[int]:
    """Return the recorded number of processes of every level."""
    return [run.record.config["launch"]["world_size"] for run in found.levels if run.record]


def begun_by_two(fresh: Experiment, **settings: object) -> SearchResult:
    with named_as(2):
        return search(fresh.using(**{"num_levels": 1} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["wr", "snip"])
def test_finished_levels_are_continued_and_recorded(fresh: Experiment, caplog, method: str) -> None:
    # Phase: two processes make levels 0 and 1, and one process continues
    caplog.set_level(logging.INFO)
    first = begun_by_two(fresh, method=method)
    continued = fresh.using(method, num_levels=2, earlier_processes=(2,))
    found = search(continued)
    assert [run.key for run in found.levels[:2]] == [run.key for run in first.levels] and sizes(found) == [2, 2, 1]
    assert caplog.text.count("made by 2 processes, loaded from") == 2
    record = found.ticket.record
    assert record is not None and record.name.endswith(NAMED) and record.tags["parent_world_size"] == "2"
    assert record.parents[0].key == first.ticket.key and record.nested_under == first.ticket.record.nested_under  # type: ignore[union-attr]
    assert proved(fresh, found.ticket).problems == []

    # Phase: a third launch finds all levels, and continues those of both numbers
    again = search(fresh.using(method, num_levels=2, earlier_processes=(2,)))
    assert [run.key for run in again.levels] == [run.key for run in found.levels]
    with named_as(4):
        longer = search(fresh.using(method, num_levels=3, earlier_processes=(2, 1)))
    assert sizes(longer) == [2, 2, 1, 4] and [run.key for run in longer.levels[:3]] == [run.key for run in found.levels]


def test_gem_miner_continues_after_its_score_training(fresh: Experiment) -> None:
    gem = replace(fresh.config.gem_miner, score_epochs=2, freeze_every_epochs=1)
    gem = replace(gem, finetune=replace(gem.finetune, epochs=1, lr_milestones_epochs=None))
    miner = fresh.using("gem_miner", num_levels=1, gem_miner=gem)
    first = begun_by_two(miner)
    shutil.rmtree(fresh.config.runs / f"level-{first.ticket.key[:16]}")  # keep the score training
    found = search(miner.using(earlier_processes=(2,)))
    record = found.ticket.record
    assert sizes(found) == [1] and record is not None and record.name.endswith(NAMED)
    assert record.parents == first.ticket.record.parents  # type: ignore[union-attr]
    assert proved(fresh, found.ticket).problems == []


def test_the_printed_order_is_continued(fresh: Experiment) -> None:
    first = begun_by_two(fresh, order="paper", num_levels=1)
    shutil.rmtree(fresh.config.runs / f"level-{first.ticket.key[:16]}")  # keep both trainings of level 0
    found = search(fresh.using(order="paper", num_levels=1, earlier_processes=(2,)))
    assert sizes(found) == [2, 1] and proved(fresh, found.ticket).problems == []


def test_a_search_is_refused_if_that_number_of_processes_began_none(fresh: Experiment) -> None:
    # Phase: no search at all, then one by another number
    with pytest.raises(ValueError, match="begun by 16 processes; nor is there one by any other number"):
        search(fresh.using(earlier_processes=(16,)))
    begun_by_two(fresh)
    with pytest.raises(ValueError, match=r"begun by 16 processes; there is one by 2$"):
        search(fresh.using(earlier_processes=(16, 2)))
    with pytest.raises(ValueError, match="each number must be 1 or more"):
        fresh.using(earlier_processes=(0,))
    # Phase: the number of this launch may stand first, so that one command fits every launch
    found = search(fresh.using(num_levels=0, earlier_processes=(1, 2)))
    assert [run.key for run in found.levels] == [run.key for run in search(fresh.using(num_levels=0)).levels]


def test_levels_of_another_number_are_named_once_a_new_search_begins(fresh: Experiment, caplog) -> None:
    caplog.set_level(logging.INFO)
    search(fresh.using("wr", num_levels=0))  # another search
    assert "--earlier-processes" not in caplog.text
    begun_by_two(fresh, num_levels=0)
    own = search(fresh.using(num_levels=0))
    hint = "note: 2 processes made levels of this search. This launch has 1 process and begins its own; "
    assert caplog.text.count(hint + "--earlier-processes 2 continues the finished levels") == 1
    assert sizes(own) == [1]
    search(fresh.using(num_levels=1))  # it has a level of its own now
    assert caplog.text.count(hint) == 1


def test_a_state_of_another_number_is_named_and_not_taken(fresh: Experiment, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    begun_by_two(fresh, num_levels=0)
    with named_as(2), pytest.raises(StoppedError), monkeypatch.context() as patch:
        patch.setattr("harness.experiment.search.Search._pruned_start", _stopped)
        search(fresh.using(num_levels=1))
    found = search(fresh.using(num_levels=1, earlier_processes=(2,)))
    assert sizes(found) == [2, 1]
    assert "is unfinished and has 2 processes. This launch has 1 process. It does not take over" in caplog.text


def _stopped(*args: object) -> None:
    raise StoppedError("a test")


@pytest.mark.parametrize("told", [None, "8"])
def test_a_wrong_tag_is_a_problem(fresh: Experiment, told: str | None) -> None:
    begun_by_two(fresh, num_levels=0)
    ticket = search(fresh.using(num_levels=1, earlier_processes=(2,))).ticket
    _edit_tag(fresh.config.runs / f"level-{ticket.key[:16]}", told)
    (problem,) = proved(fresh, ticket).problems
    assert "tag parent_world_size of a run of 1 processes" in str(problem) and "its parent gives '2'" in str(problem)


def _edit_tag(directory: Path, told: str | None) -> None:
    """Change or remove the tag, and correct the digest of the record."""
    path, before = directory / RECORD, (directory / SUMS).read_text()
    content, old = json.loads(path.read_bytes()), before.split(f"  {RECORD}")[0][-64:]
    content["tags"].pop("parent_world_size")
    content["tags"] |= {} if told is None else {"parent_world_size": told}
    path.write_text(json.dumps(content))
    from harness.common.digest import sha256_file

    (directory / SUMS).write_text(before.replace(old, sha256_file(path)))
    assert read_record(directory).tags.get("parent_world_size") == told


def test_the_option_is_in_no_key_and_survives_a_record(fresh: Experiment) -> None:
    other = fresh.using(earlier_processes=(1, 2))
    assert other.common.determinants == fresh.common.determinants
    assert other.common.tags == fresh.common.tags
    read = search_from_json(json.loads(json.dumps(to_json(other.config))))
    assert read == other.config and hash(read) == hash(other.config)


@pytest.mark.long
def test_two_processes_continue_a_search_of_one(fresh: Experiment) -> None:
    """Continue, train and compare in a real launch of two processes. Then go back to one."""
    # Phase: one process makes levels 0 and 1, and a final training
    first = search(fresh.using(num_levels=1))
    final = final_training(fresh, Trial("signed_mask", 2, 1), first.ticket)
    settings = to_json(replace(fresh.config, num_levels=2, earlier_processes=(1,)))
    done = torchrun(2, Path.cwd(), __file__, json.dumps(settings), first.ticket.key, final.key)
    assert done.returncode == 0, done.stderr
    assert sum("made by 1 process, loaded from" in line for line in done.stderr.splitlines()) == 2

    # Phase: the runs of two processes are sound, and one process loads and compares them
    found = search(fresh.using(num_levels=2, earlier_processes=(1, 2)))
    assert sizes(found) == [1, 1, 2] and found.ticket.record is not None
    assert found.ticket.record.name.endswith(" 1→2 processes")
    assert len(list(fresh.config.runs.glob("analysis-*"))) == 1
    findings = verify(open_store(fresh.config.runs, offline=True))
    assert findings.problems == [] and findings.num_nodes == 7


def _continue(settings: str, ticket: str, final: str) -> None:
    """Search in one of several processes. Then train an earlier ticket and compare it with the earlier training."""
    world, config = World("no"), search_from_json(json.loads(settings))
    logging.basicConfig(level=logging.INFO if world.is_main else logging.ERROR)
    experiment = Experiment(world, open_store(config.runs, offline=True), config)
    search(experiment)
    own: FinishedRun = final_training(experiment, Trial("signed_mask", 2, 2), experiment.archive.load(ticket))
    compare(experiment, experiment.archive.load(final), own, "stability", ComparisonConfig(num_alphas=3, bn_images=64))
    world.close()


if __name__ == "__main__":
    _continue(*sys.argv[1:])
