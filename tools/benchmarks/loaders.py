"""Time data loaders with one worker, and JPEG decoders.

Loaders are timed up to normalised float32 NCHW batches on the CPU.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.common.seeds import SgdNoise
from harness.data import DATASETS, DataSpec, open_data
from harness.data.spec import CropFlip, RawSource
from harness.distributed.world import World
from harness.training.feed import normalize
from tools.benchmarks.measure import Goal, Row, compared, in_turns, now, seconds

NUM_LARGE, THREADS, HEIGHT, WIDTH = 512, 16, 375, 500  # 375×500 is a typical size of an ImageNet image
GOALS: dict[Any, float] = {"jpg": 0.95, "proportion": 1.25, "raw": 1.8}  # speed relative to DataLoader, by write mode


def loaders(quick: bool) -> Iterator[Row]:
    """Compare the harness's loader with torch's DataLoader and unmodified FFCV.

    The first part reads 32×32 images with crops and flips, the second one JPEGs with random 224×224 crops.
    """
    from PIL import Image
    from torchvision import transforms

    from harness.data.prepare import ImageOptions, prepare

    def timed(**ways: Iterator[float]) -> dict[str, list[float]]:
        return in_turns({name: partial(next, way) for name, way in ways.items()}, 3 if quick else 5)

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the DataLoader normalises on one core, so limit the other loaders to one, too
    with tempfile.TemporaryDirectory() as directory:
        place, number = Path(directory), 2_000 if quick else 20_000
        # Phase: small images
        spec = replace(DATASETS["imagenet"], name="bench_photos", image_size=32, raw=RawSource(default=""))
        spec = DATASETS[spec.name] = replace(spec, augmentation=CropFlip(padding=4, flip=True))
        save(place / "small", number, 32, 32, "png", "test", 10)
        prepare(spec.name, place, str(place / "small"), allow_missing_classes=True)
        small = [Image.open(path).copy() for path in sorted((place / "small" / "train").rglob("*.png"))]
        theirs = torch_epochs(small, lambda image: image, spec, 128, transforms.RandomCrop(32, padding=4))
        found = timed(ours=our_epochs(spec, place, 128), DataLoader=theirs)
        name, note = "32×32 crop + flip, images/s against DataLoader", f"batch 128, {number} images an epoch"
        yield compared(name, found["ours"], found["DataLoader"], Goal(least=10), note)

        # Phase: JPEGs, in each write mode
        spec, folder = DATASETS["imagenet"], place / "large"
        save(folder, NUM_LARGE, HEIGHT, WIDTH, "jpg", "val", 1)
        paths, crop = sorted((folder / "train").rglob("*.jpg")), transforms.RandomResizedCrop(224)
        theirs = torch_epochs(paths, lambda path: Image.open(path).convert("RGB"), spec, 64, crop)
        note = f"batch 64, the same {NUM_LARGE} JPEGs of {WIDTH}×{HEIGHT}"
        for mode, goal in GOALS.items():
            prepare(
                spec.name,
                place / mode,
                str(folder),
                ImageOptions(write_mode=mode, keep_jpeg=True),
                allow_missing_classes=True,
            )
            stock = stock_epochs(spec, place / mode / spec.name / "train.beton")
            found = timed(ours=our_epochs(spec, place / mode, 64), DataLoader=theirs, stock=stock)
            name = f"224 random resized crop, {mode}, images/s against"
            yield compared(f"{name} DataLoader", found["ours"], found["DataLoader"], Goal(least=goal), note)
            yield compared(f"{name} stock FFCV", found["ours"], found["stock"], Goal(least=0.95), note)
    torch.set_num_threads(torch_threads)


def save(folder: Path, number: int, height: int, width: int, ending: str, test: str, num_test: int) -> None:
    """Write random crops of two photographs as an image folder.

    The photographs come with scikit-learn. There is one class.

    Args:
        folder: Directory to write to.
        number: Number of images.
        height: Height in pixels.
        width: Width in pixels.
        ending: File name extension, which sets the format.
        test: Directory name of the test split.
        num_test: Number of images in the test split, out of `number`.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, generator = load_sample_images().images, np.random.Generator(np.random.Philox(key=0))
    for index in range(number):
        photo, path = photos[index % len(photos)], folder / (test if index < num_test else "train") / "photo"
        top, left = generator.integers(photo.shape[0] - height + 1), generator.integers(photo.shape[1] - width + 1)
        path.mkdir(parents=True, exist_ok=True)
        crop = Image.fromarray(photo[top : top + height, left : left + width])
        crop.save(path / f"{index:05}.{ending}", quality=90, compress_level=1)


def speed(batches: Iterable[Tensor]) -> float:
    """Return images per second of one epoch."""
    started = now()
    return sum(map(len, batches)) / (now() - started)


def our_epochs(spec: DataSpec, directory: Path, batch_size: int) -> Iterator[float]:
    """Yield images per second of each epoch of the harness's loader."""
    loader = open_data(spec.name, directory, "ffcv").train_loader(global_batch_size=batch_size, num_workers=1)
    for epoch in count():
        batches = loader.epoch(SgdNoise(1, ("final",)), epoch)
        yield speed(normalize(batch.images_NHWC, spec, channels_last=False) for batch in batches)


def torch_epochs(images: Sequence[Any], read: Any, spec: DataSpec, batch_size: int, crop: Any) -> Iterator[float]:
    """Yield images per second of each epoch of a DataLoader.

    It has one persistent worker and torchvision's transforms.
    """
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor

    augment = Compose([crop, RandomHorizontalFlip(), ToTensor(), Normalize(spec.mean, spec.std)])
    settings: dict[str, Any] = {"num_workers": 1, "drop_last": True, "persistent_workers": True}
    settings["collate_fn"] = lambda batch: torch.stack([augment(read(image)) for image in batch])
    loader = torch.utils.data.DataLoader[Any](images, batch_size, True, **settings)  # type: ignore[arg-type]
    while True:
        yield speed(loader)


def stock_epochs(spec: DataSpec, path: Path) -> Iterator[float]:
    """Yield images per second of each epoch of unmodified FFCV.

    The pipeline is that of FFCV's ImageNet example up to uint8 batches. The harness then normalises them.
    """
    import ffcv
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]
    settings = {"os_cache": True, "order": ffcv.loader.OrderOption.RANDOM, "seed": 1}
    pipelines = {"image": image, "label": [IntDecoder(), ToTensor()]}
    loader = ffcv.Loader(str(path), batch_size=64, num_workers=1, pipelines=pipelines, **settings)
    while True:
        yield speed(normalize(images, spec, channels_last=False) for images, _ in loader)


def decoding(world: World) -> Iterator[Row]:
    """Measure JPEG decoders in images per second.

    These are torchvision and Pillow on CPU threads, and nvJPEG.
    """
    from torchvision.io import decode_jpeg, encode_jpeg

    on_gpu = world.device.type == "cuda"
    noise_1CHW = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(0))
    smooth_1CHW = torch.nn.functional.interpolate(noise_1CHW, (HEIGHT, WIDTH), mode="bicubic")  # smooth like a photo
    jpeg, number = encode_jpeg((255 * smooth_1CHW[0].clamp(0, 1)).to(torch.uint8), 90), 2048 if on_gpu else 32

    def rate(name: str, decode: Callable[[int], object], threads: int = THREADS, images: int = 1) -> Row:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, range(threads)))
            took = seconds(lambda: list(pool.map(decode, range(number // images))))
        return Row(f"{name} [images/s]", number / took)

    yield rate("torchvision", lambda _: decode_jpeg(jpeg))
    if on_gpu:
        yield rate("nvJPEG", lambda _: decode_jpeg([jpeg] * 256, device="cuda"), threads=1, images=256)
    from PIL import Image  # imported last, so that the other rows need no Pillow

    yield rate("Pillow", lambda _: Image.open(io.BytesIO(jpeg.numpy())).convert("RGB").load())
