"""Test that loaders give bit-identical batches on CUDA and on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.common.seeds import SgdNoise
from harness.data.loaders import EvalLoader, TrainLoader, TrainOrder
from harness.data.memory_loader import memory_readers
from harness.data.spec import DATASETS, DataSpec
from harness.training.feed import normalize

pytestmark = pytest.mark.gpu
NOISE = SgdNoise(5, ("search", 2))
NUM = {"train": 70, "test": 21}


@pytest.fixture
def spec() -> DataSpec:
    return DATASETS["fashion_mnist"]


@pytest.fixture
def paths(tmp_path: Path, spec: DataSpec) -> dict[str, Path]:
    generator = np.random.default_rng(0)
    for split, number in NUM.items():
        shape = (number, spec.image_size, spec.image_size, spec.channels)
        images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
        labels = torch.from_numpy(generator.integers(0, spec.num_classes, number))
        save_file({"images_NHWC": images, "labels": labels}, tmp_path / f"{split}.safetensors")
    return {split: tmp_path / f"{split}.safetensors" for split in NUM}


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("skip_steps", [0, 2])
def test_the_memory_loader_gives_the_same_batches_as_on_the_cpu(device, spec, paths, augment, skip_steps):
    reader = memory_readers(spec, paths)
    order = TrainOrder(NUM["train"], global_batch_size=16, rank=0, world_size=1)
    there, here = (TrainLoader(reader("train", None, where), order) for where in (device, "cpu"))
    count = 0
    for epoch in (0, 1):
        streams = (loader.epoch(NOISE, epoch, skip_steps=skip_steps, augment=augment) for loader in (there, here))
        count += same_batches(*streams, spec, device)
    assert count == 2 * (4 - skip_steps)
    tests = (EvalLoader(reader("test", None, where), range(NUM["test"]), batch_size=8) for where in (device, "cpu"))
    assert same_batches(*tests, spec, device) == 3


def same_batches(there, here, spec: DataSpec, device: torch.device) -> int:
    """Assert that two streams of batches are bit-identical, also after normalisation.

    Args:
        there: Batches on `device`.
        here: Batches on the CPU.
        spec: Specification of the data set.
        device: The device under test.

    Returns:
        Number of batches.
    """
    count = 0
    for ours, theirs in zip(there, here, strict=True):
        assert all(tensor.device.type == device.type for tensor in ours)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.cpu(), b)
        a, b = (normalize(batch.images_NHWC, spec, True) for batch in (ours, theirs))
        assert torch.equal(a.cpu(), b) and a.is_contiguous(memory_format=torch.channels_last)
        count += 1
    return count


def test_ffcv_gives_the_same_batches(device, on_real_device, tmp_path):
    pytest.importorskip("ffcv")
    from harness.data import open_data
    from harness.data.prepare import prepare

    prepare("digits", tmp_path)
    sources = [open_data("digits", tmp_path, loader) for loader in ("ffcv", "memory")]
    loaders = [source.train_loader(global_batch_size=64, num_workers=1, device=device) for source in sources]
    batches = zip(*(loader.epoch(NOISE, 0, num_steps=6) for loader in loaders), strict=True)
    kept = [(ours, theirs) for ours, theirs in batches]  # keeping all batches shows whether a buffer is overwritten
    assert len(kept) == 6
    for ours, theirs in kept:
        for a, b in zip(ours, theirs, strict=True):
            assert a.device.type == device.type and torch.equal(a, b)
