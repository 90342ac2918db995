"""Test launches with --compile: the number of graphs, the keys, and equal bits after an interruption.

All scripts run in this process, which keeps compiled graphs.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo

from harness.cli.launch import launch
from harness.config import search_from_json
from harness.distributed.world import StopRequest
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK
from harness.training.compiled import num_graphs
from tests.recipes.launching import LIGHT, REPOSITORY, elsewhere, nodes

pytestmark = pytest.mark.long  # compiles C++

SEARCH = (*LIGHT, "--model.name", "resnet8", "--model.width", "2", "--warmup-epochs", "1", "--level-epochs", "1")
SEARCH += ("--num-levels", "2", "--final.epochs", "4", "--final.lr-schedule", "step", "--global-batch-size", "256")
SEARCH += ("--compile", "default", "--checkpoint-every", "1", "--checkpoint-unit", "steps", "--offline")
GRAPHS = 2
"""A training graph, and one for the evaluation of the 500 test images. BatchNorm is re-estimated uncompiled."""


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    """Forget the graphs of other tests: equal networks would use them."""
    torch._dynamo.reset()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a script in this process."""

    def run(name: str, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *options])
        runpy.run_path(str(REPOSITORY / name), run_name="__main__")

    return run


def test_a_compiled_launch_compiles_two_graphs_and_resumes_to_the_same_bits(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script, capsys
) -> None:
    # Phase: a search of two levels, two final trainings, and a comparison
    where = elsewhere(prepared, tmp_path / "whole", tables=False)
    monkeypatch.chdir(where)
    before = num_graphs()
    script("recipes/aws_digits.py", *SEARCH, "--verbosity", "verbose")
    said = capsys.readouterr().err
    assert num_graphs() - before == GRAPHS and f"compiled {num_graphs()} graphs" in said
    assert "0/5 steps  compiling: " in said
    (ticket,) = (record for record in nodes(where, "level").values() if record["config"]["level"] == 2)
    for seed in ("1", "2"):
        script("recipes/train_ticket.py", "--ticket", ticket["key"], "--sgd-seed", seed, "--offline")
    trained = nodes(where, "training")
    keys = [record["key"] for record in trained.values()]
    script("tools/stability.py", *keys, "--bn-images", "512", "--num-alphas", "3", "--offline")
    assert num_graphs() - before == GRAPHS, "α, masks, learning rates and new networks compile nothing"

    # Phase: the setting is recorded, and inherited by final trainings and comparisons
    for kind in ("search", "level", "training", "analysis"):
        assert nodes(where, kind) and all(
            record["config"]["search"]["compile"] == "default" for record in nodes(where, kind).values()
        )
    (compared,) = nodes(where, "analysis").values()
    assert compared["tags"]["compile"] == "default"
    config = search_from_json(ticket["config"]["search"])
    with launch(config) as experiment:
        assert experiment.common.determinants["compile"] == "default"
        names = dict(experiment.network().named_parameters())
        assert names.keys() == dict(experiment.blank.named_parameters()).keys()
        assert experiment.network() is experiment.using("lrr").network() is experiment.network(trains=False)

    # Phase: a search that stops twice has the same bits
    other = elsewhere(prepared, tmp_path / "stopped", tables=False)
    monkeypatch.chdir(other)
    for _ in range(2):
        asked = iter(range(10_000))
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "reason", property(lambda self, n=asked: "SIGTERM" if next(n) > 2 else None))
            with pytest.raises(SystemExit):
                script("recipes/aws_digits.py", *SEARCH)
    script("recipes/aws_digits.py", *SEARCH)
    assert "resumes at epoch" in capsys.readouterr().err
    levels = [nodes(place, "level") for place in (where, other)]
    for file in (CHECKPOINT, SIGNED_MASK, CORRECT):
        whole, resumed = ({name: one["files"][file] for name, one in found.items()} for found in levels)
        assert whole == resumed and len(whole) == 3
    assert num_graphs() - before == GRAPHS


def test_a_missing_compiler_is_one_line_before_the_first_step(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script, capsys
) -> None:
    from torch._inductor import cpp_builder, exc

    from harness.training.compiled import require_compiler

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.chdir(elsewhere(prepared, tmp_path, tables=False))
    require_compiler.cache_clear()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(SystemExit):
        script("recipes/aws_digits.py", *SEARCH)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "apt-get install g++ python3-dev" in line and "--compile no" in line


FEW = ("--warmup-epochs", "1", "--level-epochs", "1", "--num-levels", "1", "--final.epochs", "1", "--offline")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aws_digits.py", ("--global-batch-size", "256", *LIGHT)),
        ("aws_fashion_mnist.py", ("--data.name", "digits", "--global-batch-size", "256", *LIGHT)),
        ("aws_cifar10.py", ("--global-batch-size", "4")),
        ("aws_cifar100.py", ("--global-batch-size", "4")),
        ("aws_tiny_imagenet.py", ("--global-batch-size", "4")),
        ("aws_imagenet.py", ("--global-batch-size", "4")),
    ],
)
def test_each_recipe_compiles_two_graphs(
    prepared: Path, full_size: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script, name: str, options
) -> None:
    """Train a search of two levels with the recipe's own network and precision on a few images."""
    monkeypatch.chdir(elsewhere(prepared if LIGHT[0] in options else full_size, tmp_path, tables=False))
    before = num_graphs()
    script(f"recipes/{name}", *options, *FEW, "--compile", "default")
    assert num_graphs() - before == GRAPHS and len(nodes(tmp_path, "level")) == 2
