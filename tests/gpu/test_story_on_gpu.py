"""Run the scenarios of tests/gpu/story.py on a real device.

They cover every method, every kind of final training, a resume, and comparisons from disk.
"""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("tyro", reason="a launch needs tyro to parse its options")

from tests.gpu import story  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("chapter", story.CHAPTERS, ids=str)
def test_every_scenario(chapter, on_real_device, tmp_path):
    """Run one scenario. tests/simulated_cuda/test_story.py does the same on simulated CUDA, and counts waits."""
    if chapter.way == "accelerate" and importlib.util.find_spec("accelerate") is None:
        chapter = story.alone(chapter)
    story.tell(chapter, tmp_path)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_search_interrupted_inside_a_level_ends_with_the_same_bits(
    precision, on_real_device, deterministic, tmp_path
):
    again, whole = story.interrupted_and_whole(tmp_path, "alone", 6, precision=precision, deterministic=True)
    assert again.key == whole.key and again.checkpoint.digest == whole.checkpoint.digest


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_training_step_waits_for_the_device(precision, on_cuda, tmp_path):
    """Use torch's sync debug mode, whose traceback names the line that waits."""
    with story.refused_waits() as steps:
        story.tell(story.Chapter(precision, "alone", ("aws",), ("signed_mask",)), tmp_path)
    assert len(steps) > 3 * story.STEPS
