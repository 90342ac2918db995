"""Run the end-to-end scenarios of tests/gpu/story.py on simulated CUDA.

No operation may mix devices, and no training step may wait for the device.
"""

from __future__ import annotations

from typing import get_args

import pytest

from harness.config import Kind, OptimConfig
from harness.pruning import METHODS
from tests.gpu import story
from tests.simulated_cuda.label import Record, listing
from tests.simulated_cuda.passes import EVALUATION, TRAINING, Passes, watched

pytestmark = pytest.mark.long

WAYS = get_args(story.Way)
PRECISIONS = ("no", "bf16", "fp16")
FULL = sorted(name for name in METHODS if "final" in METHODS[name].heeds)
GLOBAL = ("synflow",)
"""Methods that refuse to prune layer by layer."""


def assert_no_waits(passes: Passes, precision: str) -> None:
    """Assert that no pass over training or test batches waits.

    Under fp16, GradScaler may wait once per training batch.
    """
    waits = passes.waits(TRAINING)
    if precision == "fp16":
        of_scaler = [wait for wait in waits if "grad_scaler.py" in wait.place]
        assert len(of_scaler) <= passes.batches, listing(of_scaler)
        waits = [wait for wait in waits if wait not in of_scaler]
    assert not waits, listing(waits)
    assert not passes.waits(EVALUATION), listing(passes.waits(EVALUATION))
    assert passes.batches > 0


def told(chapter: story.Chapter, where, record: Record) -> None:
    with watched(record) as passes:
        story.tell(chapter, where)
    assert_no_waits(passes, chapter.precision)


def test_the_scenarios_cover_every_method_kind_and_precision():
    assert {method for chapter in story.CHAPTERS for method in chapter.methods} == set(METHODS)
    assert {kind for chapter in story.CHAPTERS for kind in chapter.kinds} == set(get_args(Kind))
    launches = [(chapter.precision, chapter.way) for chapter in story.CHAPTERS]
    assert sorted(launches) == sorted((precision, way) for precision in PRECISIONS for way in WAYS)


@pytest.mark.parametrize("chapter", story.CHAPTERS, ids=str)
def test_every_scenario(chapter, cuda, tmp_path):
    told(chapter, tmp_path, cuda)


@pytest.mark.parametrize(("precision", "way", "method"), [("fp16", "alone", "aws"), ("no", "accelerate", "wr")])
def test_a_search_interrupted_inside_a_level_ends_with_the_same_bits(precision, way, method, cuda, tmp_path):
    with watched(cuda) as passes:
        again, whole = story.interrupted_and_whole(tmp_path, way, 6, precision=precision, method=method)
    assert again.key == whole.key and again.checkpoint.digest == whole.checkpoint.digest
    assert_no_waits(passes, precision)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim": OptimConfig("adam", lr=0.01), "accumulation_steps": 2},
        {"optim": OptimConfig("sgd", lr=0.05, max_grad_norm=0.5), "pruning_scope": "layer"},
        {"optim": OptimConfig("sgd", lr=0.05, momentum=0.0), "order": "paper"},
    ],
    ids=["plain", "adam-accumulated", "clipped-layerwise", "paper"],
)
def test_every_method_in_every_setting(method, changes, precision, way, cuda, tmp_path):
    """Run every kind of final training and all comparisons."""
    if METHODS[method].searches_one_density:
        changes = {name: value for name, value in changes.items() if name not in ("pruning_scope", "order")}
    if method in GLOBAL:
        changes = {name: value for name, value in changes.items() if name != "pruning_scope"}
    if method in FULL:
        changes = {name: value for name, value in changes.items() if name != "order"}
    kinds = sorted(get_args(Kind), key=lambda kind: kind not in ("signed_mask", "mask"))
    told(story.Chapter(precision, way, (method,), tuple(kinds), compares=True, changes=changes), tmp_path, cuda)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after_steps", [1, 6])
def test_every_method_is_resumed(method, after_steps, precision, way, cuda, tmp_path):
    again, whole = story.interrupted_and_whole(tmp_path, way, after_steps, precision=precision, method=method)
    assert again.key == whole.key and again.checkpoint.digest == whole.checkpoint.digest
