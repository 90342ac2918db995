"""Test all loaders against each other and against plain implementations.

Also test several ranks and workers, resumed epochs, and epochs that end early.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.data import Batch, DataSource, open_data
from harness.data.ffcv.beton import read_raw
from harness.training.feed import normalize
from tests.data.keyed_reference import box, draw

NOISE = SgdNoise(5, ("search", 2))
LOADERS = ["ffcv", "memory", "torch"]
CROPPED = ["digits", "small_rgb"]
SETS = [*CROPPED, "tiny_imagenet"]
BY_FILE = ("by_file", "torch")
"""A data set of a user's file, with random transforms of torchvision. Only the torch loader reads it."""


@pytest.fixture(scope="session")
def directories(
    digits_directory: Path, rgb_directory: Path, tiny_directory: Path, file_directory: Path
) -> dict[str, Path]:
    sets = {"digits": digits_directory, "small_rgb": rgb_directory, "tiny_imagenet": tiny_directory}
    return sets | {"by_file": file_directory}


@pytest.fixture(scope="session")
def sources(directories: dict[str, Path]) -> dict[tuple[str, str], DataSource]:
    return {
        (name, loader): open_data(name, directories[name], loader)
        for name, loader in (*product(SETS, LOADERS), BY_FILE)
    }


def same(a: Iterable[Batch], b: Iterable[Batch]) -> int:
    """Assert that two streams of batches are bit-identical.

    Returns:
        Number of batches.
    """
    count = 0
    for left, right in zip(a, b, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)
        count += 1
    return count


@pytest.mark.long
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("other", ["memory", "torch"])
@pytest.mark.parametrize("augment", [True, False])
def test_all_loaders_give_the_same_bits(sources: dict, name: str, augment: bool, other: str) -> None:
    ffcv, memory = (sources[name, loader] for loader in ("ffcv", other))
    assert ffcv.content_digest == memory.content_digest
    assert (ffcv.num_train, ffcv.num_test) == (memory.num_train, memory.num_test)
    loaders = [source.train_loader(global_batch_size=16, num_workers=1) for source in (ffcv, memory)]
    for epoch in (0, 1):
        streams = [loader.epoch(NOISE, epoch, augment=augment) for loader in loaders]
        assert same(*streams) == ffcv.num_train // 16 == loaders[0].steps_per_epoch
    assert same(*(source.test_loader(batch_size=7, num_workers=1) for source in (ffcv, memory))) > 1


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", CROPPED)
def test_crop_and_flip_are_the_documented_formula(sources: dict, directories: dict, name: str, loader: str) -> None:
    """Compare with NumPy, one sample at a time.

    The reference pads with black, crops at the drawn position, and flips if drawn.
    """
    source = sources[name, loader]
    raw_NHWC, raw_labels = read_raw(directories[name] / name / "train.beton")
    augmentation, key = source.spec.augmentation, NOISE.key("augment", 4)
    padding, size = augmentation.padding, source.spec.image_size
    train = source.train_loader(global_batch_size=10, num_workers=1)
    images, labels, indices = next(train.epoch(NOISE, 4))
    assert indices.tolist() == NOISE.permutation(4, source.num_train)[:10].tolist()
    for image, label, index in zip(images.numpy(), labels.tolist(), indices.tolist(), strict=True):
        padded = np.pad(raw_NHWC[index], ((padding, padding), (padding, padding), (0, 0)))
        places = 2 * padding + 1
        top, left = ((draw(key, index, number) >> 32) * places >> 32 for number in (0, 1))
        expected = padded[top : top + size, left : left + size, : source.spec.channels]
        if augmentation.flip and draw(key, index, 2) % 2:
            expected = expected[:, ::-1]
        assert (image == expected).all()
        assert label == raw_labels[index]


@pytest.mark.long
@pytest.mark.parametrize("loader", LOADERS)
def test_zoom_and_flip_are_the_documented_formula(sources: dict, directories: dict, loader: str) -> None:
    """Compare with boxes in plain Python, enlarged with exact fractions.

    The reference must also equal OpenCV's bilinear resize, up to ±1 for OpenCV's rounding.
    """
    source = sources["tiny_imagenet", loader]
    raw_NHWC, raw_labels = read_raw(directories["tiny_imagenet"] / "tiny_imagenet" / "train.beton")
    augmentation, key = source.spec.augmentation, NOISE.key("augment", 3)
    images, labels, indices = next(source.train_loader(global_batch_size=70, num_workers=1).epoch(NOISE, 3))
    sides = set()
    for image, label, index in zip(images.numpy(), labels.tolist(), indices.tolist(), strict=True):
        top, left, height, width = box(key, index, 64, 64, augmentation.scale, augmentation.ratio)
        crop = raw_NHWC[index, top : top + height, left : left + width]
        expected = enlarged(crop, 64)
        assert np.abs(expected.astype(int) - cv2.resize(crop, (64, 64), interpolation=cv2.INTER_LINEAR)).max() <= 1
        if draw(key, index, 2) % 2:
            expected = expected[:, ::-1]
        assert (image == expected).all()
        assert label == raw_labels[index]
        sides |= {height, width}
    assert len(sides) > 15


def enlarged(crop: np.ndarray, size: int) -> np.ndarray:
    """Resize an image bilinearly to `size` × `size` pixels with exact arithmetic.

    Pixel centres lie at half-integer coordinates. Halves are rounded up.
    """

    def weights(side: int) -> np.ndarray:
        matrix = np.zeros((size, side), dtype=object)
        for place in range(size):
            x = min(max(Fraction((2 * place + 1) * side - size, 2 * size), Fraction(0)), Fraction(side - 1))
            matrix[place, math.floor(x)] += 1 - x % 1
            matrix[place, math.ceil(x)] += x % 1
        return (2 * size * matrix).astype(np.int64)  # integers, since x is a multiple of 1 / (2·size)

    rows, columns = weights(crop.shape[0]), weights(crop.shape[1])
    sums = np.einsum("ih,hwc,jw->ijc", rows, crop.astype(np.int64), columns, optimize=True)
    return np.floor(sums / (2 * size) ** 2 + 0.5).astype(np.uint8)


@pytest.mark.long
@pytest.mark.parametrize(("name", "loader"), [*product(["small_rgb", "tiny_imagenet"], LOADERS), BY_FILE])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 2), (3, 1), (4, 1)])
def test_ranks_and_workers_make_the_same_global_batches(
    sources: dict, name: str, loader: str, world_size: int, num_workers: int
) -> None:
    """Check that all ranks together have the batches of one process.

    Samples, their augmentation and their order must be equal at each step.
    """
    source = sources[name, loader]
    alone = source.train_loader(global_batch_size=12, num_workers=1)
    shape = {"world_size": world_size, "num_workers": num_workers}
    ranks = [
        source.train_loader(global_batch_size=12, rank=rank, **shape).epoch(NOISE, 0) for rank in range(world_size)
    ]
    for whole, *shares in zip(alone.epoch(NOISE, 0), *ranks, strict=True):
        for a, *parts in zip(whole, *shares, strict=True):
            assert torch.equal(a, torch.cat(parts))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_epoch_is_bit_identical(sources: dict, loader: str) -> None:
    train = sources["digits", loader].train_loader(global_batch_size=64, num_workers=2)
    whole = list(train.epoch(NOISE, 1))
    assert same(whole[3:8], train.epoch(NOISE, 1, skip_steps=3, num_steps=5)) == 5
    assert same(whole[3:8:2], train.epoch(NOISE, 1, skip_steps=3, num_steps=5, every=2)) == 3
    assert same(whole[19:], train.epoch(NOISE, 1, skip_steps=19)) == 1
    assert list(train.epoch(NOISE, 1, skip_steps=20)) == []


def test_a_resumed_epoch_of_a_users_file_is_bit_identical(sources: dict) -> None:
    train, other = (sources[BY_FILE].train_loader(global_batch_size=8, num_workers=workers) for workers in (1, 2))
    whole = list(train.epoch(NOISE, 1))
    assert same(whole[3:7:2], other.epoch(NOISE, 1, skip_steps=3, num_steps=4, every=2)) == 2
    assert same(whole[7:], train.epoch(NOISE, 1, skip_steps=7)) == 1


@pytest.mark.parametrize(("name", "loader"), [("small_rgb", "ffcv"), BY_FILE])
def test_noise_determines_the_augmentation(sources: dict, name: str, loader: str) -> None:
    """Check that augmentation depends on epoch, level and seed only.

    Another epoch, level or seed must augment the same sample differently.
    """
    source = sources[name, loader]
    train = source.train_loader(global_batch_size=source.num_train, num_workers=1 + (loader == "ffcv"))

    def by_index(noise: SgdNoise, epoch: int) -> torch.Tensor:
        images, _, indices = next(train.epoch(noise, epoch))
        return images[indices.argsort()]

    base = by_index(NOISE, 0)
    assert torch.equal(base, by_index(SgdNoise(5, ("search", 2)), 0))
    for noise, epoch in ((NOISE, 1), (SgdNoise(5, ("search", 3)), 0), (SgdNoise(6, ("search", 2)), 0)):
        differing = (by_index(noise, epoch) != base).flatten(1).any(1)
        assert differing.float().mean() > 0.9


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_test_image_is_counted_once(sources: dict, directories: dict, loader: str, world_size: int) -> None:
    source = sources["digits", loader]
    raw_NHWC, raw_labels = read_raw(directories["digits"] / "digits" / "test.beton")
    seen: list[int] = []
    for rank in range(world_size):
        test = source.test_loader(batch_size=64, rank=rank, world_size=world_size, num_workers=1)
        assert test.num_samples == 500
        for images, labels, indices in test:
            assert (images.numpy() == raw_NHWC[indices, ..., :1]).all()
            assert (labels.numpy() == raw_labels[indices]).all()
            seen += indices.tolist()
    assert sorted(seen) == list(range(500))


@pytest.mark.parametrize("loader", LOADERS)
def test_more_ranks_than_images_are_allowed(sources: dict, loader: str) -> None:
    source = sources["small_rgb", loader]
    counts = [
        sum(len(batch.labels_N) for batch in source.test_loader(batch_size=4, rank=rank, world_size=13, num_workers=1))
        for rank in range(13)
    ]
    assert sum(counts) == 11
    assert set(counts) == {0, 1}


@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_batches_do_not_change_later(sources: dict, loader: str) -> None:
    """Check that batches do not change later.

    FFCV reuses its buffers after a few batches, so the loader must copy them.
    """
    train = sources["digits", loader].train_loader(global_batch_size=32, num_workers=1)
    kept = list(train.epoch(NOISE, 0))
    assert same(kept, train.epoch(NOISE, 0)) == 40


@pytest.mark.parametrize("batches_taken", [0, 1, 3, 38])
def test_leaving_an_epoch_early_leaves_no_thread(sources: dict, batches_taken: int) -> None:
    train = sources["digits", "ffcv"].train_loader(global_batch_size=32, num_workers=1)
    before = threading.active_count()
    epoch = train.epoch(NOISE, 0)
    for _ in range(batches_taken):
        next(epoch)
    start = time.monotonic()
    epoch.close()
    assert time.monotonic() - start < 5
    assert threading.active_count() == before
    assert len(list(train.epoch(NOISE, 0))) == 40


@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_two_epochs_may_be_open_at_once(sources: dict, loader: str) -> None:
    """Run an evaluation in the middle of a training epoch.

    Both use the same compiled reader, with other batch sizes.
    """
    source = sources["digits", loader]
    train = source.train_loader(global_batch_size=100, num_workers=2)
    other = source.train_loader(global_batch_size=7, num_workers=2)
    alone = list(train.epoch(NOISE, 0))
    outer = train.epoch(NOISE, 0)
    first = next(outer)
    assert len(list(other.epoch(NOISE, 1))) == 1297 // 7
    assert len(list(source.test_loader(batch_size=50, num_workers=2))) == 10
    assert same(alone, [first, *outer]) == 12


def test_the_number_of_torch_threads_is_unchanged(sources: dict) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else before - 1)
    try:
        expected = torch.get_num_threads()
        for num_workers in (1, 2):
            for _ in (
                sources["small_rgb", "ffcv"].train_loader(global_batch_size=8, num_workers=num_workers).epoch(NOISE, 0)
            ):
                assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("loader", LOADERS)
def test_an_empty_batch_is_refused(sources: dict, loader: str) -> None:
    with pytest.raises(ValueError, match="test batch size is 0"):
        sources["digits", loader].test_loader(batch_size=0)


@pytest.mark.parametrize("num_workers", [0, -2, 1000])
def test_invalid_numbers_of_workers_are_refused(sources: dict, num_workers: int) -> None:
    with pytest.raises(ValueError, match=f"num_workers is {num_workers}"):
        sources["digits", "ffcv"].train_loader(global_batch_size=8, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [None, -1])
def test_workers_on_all_cores_are_the_default(sources: dict, num_workers: int | None) -> None:
    train = sources["digits", "ffcv"].train_loader(global_batch_size=8, num_workers=num_workers)
    assert next(train.epoch(NOISE, 0)).images_NHWC.shape == (8, 8, 8, 1)


def test_a_dead_reader_thread_raises_an_error(
    rgb_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from ffcv.loader.epoch_iterator import EpochIterator

    def fail(*args: object) -> None:
        raise MemoryError("no more")

    train = open_data("small_rgb", rgb_directory, "ffcv").train_loader(global_batch_size=8, num_workers=1)
    monkeypatch.setattr(EpochIterator, "run_pipeline", fail)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with pytest.raises(RuntimeError, match="thread died"):
        next(train.epoch(NOISE, 0))


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalize(sources: dict, channels_last: bool) -> None:
    source = sources["small_rgb", "memory"]
    images = next(iter(source.test_loader(batch_size=4))).images_NHWC
    result = normalize(images, source.spec, channels_last)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (source.spec.mean, source.spec.std))
    expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=memory_format)
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, 3\)"):
        normalize(images[..., :1], source.spec, channels_last)


def test_recorded_statistics_are_those_of_the_images(sources: dict, directories: dict) -> None:
    pixels = read_raw(directories["digits"] / "digits" / "train.beton")[0] / 255
    spec = sources["digits", "memory"].spec
    assert abs(pixels.mean() - spec.mean[0]) < 0.002
    assert abs(pixels.std() - spec.std[0]) < 0.002


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["small_rgb", "tiny_imagenet"])
@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_batches_on_cuda_equal_those_on_cpu(sources: dict, name: str, loader: str) -> None:
    """Compare while the device is busy.

    A copy without synchronisation would then give wrong values.
    """
    source = sources[name, loader]
    on_cpu, on_cuda = (
        source.train_loader(global_batch_size=10, num_workers=1, device=device) for device in ("cpu", "cuda")
    )
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        kept = []
        for batch in on_cuda.epoch(NOISE, 0):
            busy @ busy
            kept.append(batch)
        for here, there in zip(on_cpu.epoch(NOISE, 0), kept, strict=True):
            assert all(b.is_cuda and torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


@pytest.mark.long
def test_memory_loader_needs_none_of_the_heavy_libraries(digits_directory: Path) -> None:
    program = f"""
import sys
for name in ("ffcv", "numba", "mlflow", "datasets", "accelerate", "torchvision", "sklearn", "cv2", "PIL"):
    sys.modules[name] = None
from pathlib import Path
from harness.data import open_data
from harness.common.seeds import SgdNoise
source = open_data("digits", Path({str(digits_directory)!r}), "memory")
assert sum(1 for _ in source.train_loader(global_batch_size=100).epoch(SgdNoise(1, ("final",)), 0)) == 12
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ffcv_copies_one_batch_ahead_and_reuses_a_buffer_only_after_its_copy(sources: dict, monkeypatch) -> None:
    """Check the order of reads and copies.

    On CUDA a copy runs while the device computes. FFCV overwrites a buffer after the next read, so the copy must
    finish first.
    """
    # Phase: record every read, and the begin and end of every copy
    from harness.data.ffcv import loader as ffcv_loader

    said: list[str] = []
    read, copy = ffcv_loader._next, ffcv_loader._Copy

    class Copy(copy):
        def __init__(self, *args):
            super().__init__(*args)
            self.number = sum(word.startswith("begin") for word in said)
            said.append(f"begin {self.number}")

        def finish(self):
            said.append(f"finish {self.number}")

    monkeypatch.setattr(ffcv_loader, "_Copy", Copy)
    monkeypatch.setattr(ffcv_loader, "_next", lambda stream: said.append("read") or read(stream))
    # Phase: a complete epoch of three steps
    loader = sources["digits", "ffcv"].train_loader(global_batch_size=64, num_workers=1)
    for number, _ in enumerate(loader.epoch(NOISE, 0, num_steps=3)):
        said.append(f"take {number}")
    assert said == [
        *("read", "begin 0", "finish 0", "read", "begin 1", "take 0"),
        *("finish 1", "read", "begin 2", "take 1", "take 2", "finish 2"),
    ]
    # Phase: an epoch that is closed after one batch
    said.clear()
    left = loader.epoch(NOISE, 0, num_steps=3)
    next(left)
    left.close()
    assert said == ["read", "begin 0", "finish 0", "read", "begin 1", "finish 1"]
