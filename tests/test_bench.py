"""tools/bench.py: a quick run as a user starts it, and what it says when goals are missed or a benchmark breaks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.config import Schedule
from harness.distributed.world import World
from harness.training.loop import train
from tools.benchmarks.device.barrier import question
from tools.benchmarks.device.published import PublishedStep, convert_
from tools.benchmarks.device.roofline import count
from tools.benchmarks.device.ways import OPTIM, Case, Network, in_turns
from tools.benchmarks.row import Row
from tools.benchmarks.step import median_interval

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tool", REPOSITORY / "tools" / "bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_a_quick_run_prints_the_table_and_writes_json(tmp_path):
    written = tmp_path / "bench.json"
    command = [sys.executable, "tools/bench.py", "--quick", "--only", "mask_size", "prune", "--json", str(written)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(written.read_text())
    by_name = {row["name"]: row for row in result["rows"]}
    assert [row["benchmark"] for row in result["rows"]] == ["mask_size", "mask_size", "prune", "prune"]
    for name, row in by_name.items():
        assert name in done.stdout
        assert row["note"] in done.stdout
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
    # bytes do not depend on the machine, so here the goal itself is tested
    sizes = [row for row in result["rows"] if row["benchmark"] == "mask_size"]
    assert all(row["reached"] and row["ours"] <= row["reference"] for row in sizes)
    for about in ("date", "hardware", "versions", "code"):
        assert f"{about:9} {result[about]}" in done.stdout
    assert "cores" in result["hardware"]
    assert "torch 2" in result["versions"]
    assert "quick" in result["run"]


def test_a_missed_goal_is_marked_and_no_error(bench, monkeypatch, capsys):
    missed = Row("slow thing", 2.0, 1.0, 2.0, "≤ 1×", False, 1.9, 2.1, "a note")
    reached = Row("fast thing", 1.0, 2.0, 0.5, "≤ 1×", True, 0.4, 0.6, "")
    monkeypatch.setattr(bench, "_rows", lambda *options: [missed, reached])
    assert bench.main(bench.Arguments(only=("prune",))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("slow thing", "fast thing"))] == [
        "MISSED",
        "reached",
    ]
    assert "1 of 2 goals reached" in lines


def test_a_benchmark_that_breaks_is_named_and_the_others_go_on(bench, monkeypatch, capsys):
    def rows(name: str, *options: object) -> list[Row]:
        if name == "prune":
            raise RuntimeError("not exact")
        return [Row("other thing", 1.0, 1.0, 1.0, "≤ 1×", True, 1.0, 1.0, "")]

    monkeypatch.setattr(bench, "_rows", rows)
    assert bench.main(bench.Arguments(only=("prune", "step"))) == 1
    out = capsys.readouterr().out
    assert "BROKEN  prune: RuntimeError: not exact" in out
    assert "other thing" in out


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.lognormal(size=(300, 51))  # its median is 1
    covered = sum(low <= 1.0 <= high for low, high in (median_interval(draw, 500) for draw in draws))
    assert 0.91 <= covered / len(draws) <= 0.99


def test_the_published_way_learns_what_ours_does():
    """With one α for all layers: the masked weights and ψ after three steps are those of the harness's loop."""
    case = Case("resnet8", batch_size=8, image_size=16, num_classes=10, steps=1, rounds=1, precision="no")
    network, world = Network(case, torch.device("cpu")), World()
    for value in network.initial.values():
        value.add_(0.3)  # biases begin at 0, which would hide that they are interpolated
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)) for _ in range(3)]
    ours = network.model()
    noise = SgdNoise(1, ("search", 1))

    class Fixed:
        steps_per_epoch = len(batches)

        def epoch(self, noise, epoch, skip_steps=0):
            return iter(batches)

    settings = {"optim": OPTIM, "schedule": Schedule(1, "constant"), "mask": network.mask, "label": "test"}
    view = network.view(ours, "aws")
    train(ours, world=world, batches=Fixed(), noise=noise, view=view, on_epoch=lambda report: None, **settings)
    theirs = convert_(network.model(channels_last=False), network.mask.tensors, network.initial)
    optimizer = torch.optim.SGD(theirs.parameters(), OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay)
    alphas = iter(noise.alphas(0, 3))

    class OneForAll:
        left = 0

        def random(self) -> float:
            if self.left == 0:
                self.left, self.alpha = len(step.norms), float(next(alphas))
            self.left -= 1
            return self.alpha

    step = PublishedStep(theirs, optimizer, OneForAll())
    for images, labels in batches:
        step(images, labels)
    learnt = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        kept = network.mask.tensors.get(name, torch.ones_like(param))
        assert torch.allclose(param, learnt[name] * kept, atol=1e-5), name
        assert not torch.equal(param, network.model().get_parameter(name))


def test_graphs_compiled_while_a_way_is_timed_are_counted():
    case = Case("none", batch_size=1, image_size=1, num_classes=1, steps=1, rounds=3)

    sizes, every_size_anew = iter(range(2, 9)), torch.compile(lambda x: x + 1, backend="eager", dynamic=False)

    def compiles_anew(steps: int) -> float:
        every_size_anew(torch.ones(next(sizes)))
        return 1.0

    compiled_once = torch.compile(lambda x: x * 2, backend="eager")
    timed = in_turns(case, {"anew": compiles_anew, "once": lambda steps: float(compiled_once(torch.ones(1)))})
    assert (timed["anew"].graphs, timed["once"].graphs) == (3, 0)
    assert timed["once"].rates == [0.5] * 3


@pytest.mark.long
def test_the_operations_of_resnet50_are_the_known_ones():
    """4.089 G multiply-adds forward, twice that backward but for the gradient of the images."""
    work = count("resnet50", batch_size=2, image_size=224, channels=3, num_classes=1000, bf16=True)
    first_layer = 64 * 112 * 112 * 3 * 7 * 7
    assert work.operations / 2 == pytest.approx(2 * (3 * 4.089e9 - first_layer), rel=1e-3)
    float32 = count("resnet50", batch_size=2, image_size=224, channels=3, num_classes=1000, bf16=False)
    assert float32.operations == work.operations
    assert 1.3 < float32.bytes_moved / work.bytes_moved < 2
    assert work.images_per_second_at_best("H100")[0] == pytest.approx(2 * 989e12 / work.operations)


def test_both_ways_to_a_barrier_find_the_same_errors():
    asked = question(Case("resnet8", 64, 16, 10, steps=4, rounds=1), torch.device("cpu"), (0.0, 0.3, 1.0))
    errors = asked.ours()
    assert asked.plain() == errors
    assert len(set(errors)) == 3
