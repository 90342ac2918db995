"""Images per second of the FFCV loader with keyed augmentation, against torch's DataLoader and stock FFCV.

Every contestant ends in the same thing, normalised float32 NCHW batches on the CPU, with the same number of workers.
The images are crops of scikit-learn's two photographs. The DataLoader keeps its workers between epochs and starts them
before the clock does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from harness.common.seeds import SgdNoise
from harness.data import DATASETS, DataSpec, open_data
from harness.data.prepare import ImageOptions, WriteMode, prepare
from harness.data.spec import CropFlip, RawSource
from harness.training.feed import normalize
from tools.benchmarks.row import Row, ratio_row

SMALL_BATCH, LARGE_BATCH = 128, 64
NUM_LARGE = 512


class PilDataset(Dataset[tuple[Any, int]]):
    """Images from arrays or files through torchvision transforms, as everyone writes it."""

    def __init__(self, images: np.ndarray | list[Path], labels: list[int], transform: Callable[[Any], Any]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one transformed image and its label."""
        image = self.images[index]
        opened = Image.open(image).convert("RGB") if isinstance(image, Path) else Image.fromarray(image)
        return self.transform(opened), self.labels[index]


def rows(quick: bool, num_workers: int = 1) -> list[Row]:
    """Measure the loader rows of the table with `num_workers` workers on either side."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # normalisation must not borrow cores that the other side does not get
    try:
        with tempfile.TemporaryDirectory() as directory:
            return _small_rows(Path(directory), quick, num_workers) + _large_rows(Path(directory), quick, num_workers)
    finally:
        torch.set_num_threads(torch_threads)


def _small_rows(directory: Path, quick: bool, num_workers: int) -> list[Row]:
    """32×32: crop with padding 4 and flip."""
    from torchvision import transforms

    repeats, num_images = (3, 2_000) if quick else (5, 20_000)
    crops = list(_photo_crops(num_images, 32, 32))
    spec = _small_spec()
    DATASETS[spec.name] = spec
    folder = directory / "small"
    for index, image in enumerate(crops):
        _save(image, folder / ("test" if index < 10 else "train") / "photo" / f"{index:05}.png")
    prepare(spec.name, directory, str(folder))
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    images = np.stack(crops[10:])
    reference = _torch_epochs(PilDataset(images, [0] * len(images), augment), SMALL_BATCH, num_workers)
    ours = _our_epochs(spec, directory, SMALL_BATCH, num_workers)
    mine, other = _in_turns(repeats, ours, reference)
    note = f"{num_workers} worker(s) each, batch {SMALL_BATCH}, {num_images} images an epoch"
    return [ratio_row("32×32 crop + flip, images/s against DataLoader", mine, other, at_least=10, note=note)]


def _large_rows(directory: Path, quick: bool, num_workers: int) -> list[Row]:
    """224: random resized crop and flip from 500×375 JPEGs, stored three ways."""
    from torchvision import transforms

    repeats = 2 if quick else 5
    folder = directory / "jpegs"
    for index, image in enumerate(_photo_crops(NUM_LARGE, 375, 500)):
        _save(image, folder / "train" / "photo" / f"{index:05}.jpg")
    _save(image, folder / "val" / "photo" / "0.jpg")
    spec = DATASETS["imagenet"]
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    files = sorted((folder / "train").rglob("*.jpg"))
    reference = _torch_epochs(PilDataset(files, [0] * len(files), augment), LARGE_BATCH, num_workers)
    result = []
    goals: tuple[tuple[WriteMode, float], ...] = (("jpg", 0.95), ("proportion", 1.25), ("raw", 1.8))
    for write_mode, goal in goals:
        home = directory / write_mode
        prepare(spec.name, home, str(folder), ImageOptions(write_mode=write_mode, keep_jpeg=True))
        ours = _our_epochs(spec, home, LARGE_BATCH, num_workers)
        stock = _stock_epochs(spec, home / spec.name / "train.beton", num_workers)
        mine, other, ffcv = _in_turns(repeats, ours, reference, stock)
        note = f"{num_workers} worker(s) each, batch {LARGE_BATCH}, the same {NUM_LARGE} JPEGs of 500×375"
        name = f"224 random resized crop, {write_mode}, images/s against"
        result.append(ratio_row(f"{name} DataLoader", mine, other, at_least=goal, note=note))
        result.append(ratio_row(f"{name} stock FFCV", mine, ffcv, at_least=0.95, note=note))
    return result


def _in_turns(repeats: int, *contestants: Iterator[float]) -> list[list[float]]:
    """Run every contestant once untimed, then in turns; return images/s of each turn per contestant."""
    for contestant in contestants:
        next(contestant)
    turns = [[next(contestant) for contestant in contestants] for _ in range(repeats)]
    return [list(speeds) for speeds in zip(*turns, strict=True)]


def _speed(batches: Iterable[torch.Tensor]) -> float:
    start, seen = time.perf_counter(), 0
    for images in batches:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def _our_epochs(spec: DataSpec, directory: Path, batch_size: int, num_workers: int) -> Iterator[float]:
    noise = SgdNoise(1, ("final",))
    loader = open_data(spec.name, directory, "ffcv").train_loader(global_batch_size=batch_size, num_workers=num_workers)
    for epoch in count():
        yield _speed(normalize(batch.images_NHWC, spec, channels_last=False) for batch in loader.epoch(noise, epoch))


def _torch_epochs(dataset: PilDataset, batch_size: int, num_workers: int) -> Iterator[float]:
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=num_workers, drop_last=True, persistent_workers=num_workers > 0
    )
    while True:
        yield _speed(images for images, _ in loader)


def _stock_epochs(spec: DataSpec, path: Path, num_workers: int) -> Iterator[float]:
    """FFCV's own decoder and flip, as in its ImageNet example, up to uint8 batches; then our normalisation."""
    import ffcv
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    loader = ffcv.Loader(
        str(path),
        batch_size=LARGE_BATCH,
        num_workers=num_workers,
        os_cache=True,
        order=ffcv.loader.OrderOption.RANDOM,
        seed=1,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    while True:
        yield _speed(normalize(images, spec, channels_last=False) for images, _ in loader)


def _small_spec() -> DataSpec:
    return replace(
        DATASETS["imagenet"],
        name="bench_photos",
        image_size=32,
        augmentation=CropFlip(padding=4, flip=True),
        raw=RawSource(default=""),
    )


def _photo_crops(number: int, height: int, width: int) -> Iterator[np.ndarray]:
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    generator = np.random.Generator(np.random.Philox(key=0))
    for index in range(number):
        photo = photos[index % len(photos)]
        top = generator.integers(photo.shape[0] - height + 1)
        left = generator.integers(photo.shape[1] - width + 1)
        yield photo[top : top + height, left : left + width]


def _save(image: np.ndarray, path: Path) -> None:
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    if path.suffix == ".jpg":
        Image.fromarray(image).save(path, quality=90)
    else:
        Image.fromarray(image).save(path, compress_level=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--num-workers", type=int, default=1)
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for row in rows(chosen.quick, chosen.num_workers):
        print(json.dumps(asdict(row), ensure_ascii=False))
