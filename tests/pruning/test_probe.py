"""Test the comparison of loader and device at the start of a launch, which changes no bit."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.config import search_from_json, to_json
from harness.experiment import probe
from harness.experiment.experiment import Experiment
from harness.experiment.probe import Probe, verdict
from harness.experiment.search import search
from harness.lineage.store import open_store
from tests.pruning.test_evaluate_every import results, states
from tests.thread_ranks import ThreadRank, on_ranks

LINE = r"loader [\d,.]+ images/s with 1 thread; training needs [\d,.]+: the (device|loader) is the limit"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.05)
    caplog.set_level(logging.INFO, "harness")


@pytest.mark.parametrize(
    ("loaded", "needed", "threads", "most", "raw", "ending"),
    [
        (3104, 2396, 7, 7, False, "loader 3,100 images/s with 7 threads; training needs 2,400: the device is the "
         "limit"),
        (775, 775, 1, 0, False, "loader 780 images/s with 1 thread; training needs 780: the device is the limit"),
        (0.42, 0, 1, 1, False, "0.42 images/s with 1 thread; compare it with the steps/s of training times the images "
         "of a process's batch"),
        (775, 4000, 1, 7, False, "4,000: the loader is the limit; use num_workers -1 for 7 threads, or prepare the "
         "data with --write-mode raw, or with a smaller --proportion"),
        (5400, 6000, 7, 7, False, "give each process more cores, or prepare the data with --write-mode raw, or with a "
         "smaller --proportion"),
        (9000, 12000, 7, 7, True, "training needs 12,000: the loader is the limit; give each process more cores"),
    ],
)  # fmt: skip
def test_the_line_names_the_limit_and_the_remedy(
    loaded: float, needed: float, threads: int, most: int, raw: bool, ending: str
) -> None:
    assert verdict(loaded, needed, threads, most, raw=raw).endswith(ending)


def test_it_runs_once_a_launch_and_changes_no_bit_or_generator(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe takes any loader. Only the ffcv loader gets one by default."""
    found, seen = [], []
    measure = Probe.run

    def watched(self: Probe, *arguments: Any) -> None:
        before = states()
        measure(self, *arguments)
        seen.append(states() == before)

    monkeypatch.setattr(Probe, "run", watched)
    for due in (False, True):
        config = replace(experiment.config, runs=tmp_path / str(due), num_levels=1, accumulation_steps=2)
        own = Experiment(experiment.world, open_store(config.runs, offline=True), config)
        assert own.probe.due is False  # the memory loader
        own.probe.due = due
        found.append([results(level) for level in search(own).levels])
        assert len(re.findall(LINE, caplog.text)) == due
    assert found[0] == found[1] and len(found[0]) == 2 and seen == [True]


def test_the_ffcv_loader_is_probed_unless_the_option_says_otherwise(experiment: Experiment) -> None:
    """The option is recorded nowhere."""
    config = replace(experiment.config, data=replace(experiment.config.data, loader="ffcv"))
    for chosen in (True, False):
        own = replace(config, probe=chosen)
        assert Experiment(experiment.world, experiment.store, own).probe.due is chosen
        assert "probe" not in to_json(own) and search_from_json(to_json(own)).probe


@pytest.mark.parametrize("quiet", [False, True])
def test_ranks_report_the_slowest_and_quiet_launches_measure_nothing(
    quiet: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rank(ThreadRank):
        local_size = 2

        @property
        def is_main(self) -> bool:
            return self.rank == 0

        def main_says(self, work: Any) -> bool:
            return bool(self._from_all(self.is_main and work())[0])

        def min(self, tensor: torch.Tensor) -> torch.Tensor:
            return torch.stack(self._from_all(tensor)).amin(0)

    # Rank 1 has the slower loader, rank 0 the slower device.
    monkeypatch.setattr(probe, "is_quiet", lambda: quiet)
    monkeypatch.setattr(probe, "loading_rate", lambda rank, *_: (3000 - 1000 * rank, None))
    monkeypatch.setattr(probe, "training_rate", lambda experiment, rank, batch: 1000 + 500 * rank)

    def work(world: Rank) -> None:
        named = Rank(world.rank, world.size, world.board, world.barrier)
        about = {"loader_threads": 3, "source": SimpleNamespace(options={}), "config": SimpleNamespace(compile="no")}
        Probe(True).run(SimpleNamespace(world=named, **about), world.rank, SgdNoise(1, ("search", 0)))  # type: ignore[arg-type]

    assert on_ranks(2, work) == [None, None]
    line = "slowest of 2 processes: loader 2,000 images/s with 3 threads; training needs 1,000: the device is the limit"
    assert caplog.messages == ([] if quiet else [line])
