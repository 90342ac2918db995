"""Images per second of the FFCV loader with keyed augmentation, and of JPEG decoders alone.

Every loader ends in the same thing, normalised float32 NCHW batches on the CPU, with the same number of workers. The
images are crops of scikit-learn's two photographs.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from harness.common.seeds import SgdNoise
from harness.data import DATASETS, DataSpec, normalize, open_data
from harness.data.spec import CropFlip, RawSource
from harness.distributed.world import World
from tools.benchmarks.measure import Goal, Row, compared, in_turns, seconds
from tools.benchmarks.networks import now

WORKERS, NUM_LARGE, THREADS, HEIGHT, WIDTH = 1, 512, 16, 375, 500  # the usual size of an image in ImageNet


class Augmented(Sequence[tuple[Any, int]]):
    """Images through torchvision transforms, as everyone writes it."""

    def __init__(self, read: Callable[[Any], Any], images: Sequence[Any], spec: DataSpec, *transforms: Any) -> None:
        from torchvision import transforms as T

        normalise = [T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(spec.mean, spec.std)]
        self.read, self.images, self.transform = read, images, T.Compose([*transforms, *normalise])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.transform(self.read(self.images[index])), 0


def loaders(quick: bool) -> Iterator[Row]:
    """Time ours against torch's DataLoader and stock FFCV: 32×32 crops and flips, and 224 crops of JPEGs."""
    from PIL import Image
    from torchvision import transforms as T

    from harness.data.prepare import ImageOptions, prepare

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # normalisation must not borrow cores that the other side does not get
    try:
        with tempfile.TemporaryDirectory() as directory:
            place, rounds, number = Path(directory), 3 if quick else 5, 2_000 if quick else 20_000
            spec = replace(DATASETS["imagenet"], name="bench_photos", image_size=32, raw=RawSource(default=""))
            spec = DATASETS[spec.name] = replace(spec, augmentation=CropFlip(padding=4, flip=True))
            images = [np.ascontiguousarray(crop) for crop in crops(number, 32, 32)]
            save(images, place / "small", "png", 10)
            prepare(spec.name, place, str(place / "small"))
            theirs = Augmented(Image.fromarray, images[10:], spec, T.RandomCrop(32, padding=4))
            ways = {"ours": our_epochs(spec, place, 128), "reference": torch_epochs(theirs, 128)}
            timed = in_turns({name: partial(next, epochs) for name, epochs in ways.items()}, rounds)
            note = f"{WORKERS} worker(s) each, batch 128, {number} images an epoch"
            name = "32×32 crop + flip, images/s against DataLoader"
            yield compared(name, timed["ours"], timed["reference"], Goal(least=10), note)

            spec, folder, read = DATASETS["imagenet"], place / "large", lambda path: Image.open(path).convert("RGB")
            save(list(crops(NUM_LARGE, HEIGHT, WIDTH)), folder, "jpg", 1)
            theirs = Augmented(read, sorted((folder / "train").rglob("*.jpg")), spec, T.RandomResizedCrop(224))
            reference = torch_epochs(theirs, 64)
            note = f"{WORKERS} worker(s) each, batch 64, the same {NUM_LARGE} JPEGs of {WIDTH}×{HEIGHT}"
            goals: dict[Any, float] = {"jpg": 0.95, "proportion": 1.25, "raw": 1.8}
            for mode, goal in goals.items():
                prepare(spec.name, place / mode, str(folder), ImageOptions(write_mode=mode, keep_jpeg=True))
                stock = stock_epochs(spec, place / mode / spec.name / "train.beton")
                ways = {"DataLoader": reference, "ours": our_epochs(spec, place / mode, 64), "stock FFCV": stock}
                timed = in_turns({name: partial(next, epochs) for name, epochs in ways.items()}, rounds)
                for name, least in (("DataLoader", goal), ("stock FFCV", 0.95)):
                    what = f"224 random resized crop, {mode}, images/s against {name}"
                    yield compared(what, timed["ours"], timed[name], Goal(least=least), note)
    finally:
        torch.set_num_threads(torch_threads)


def crops(number: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield crops of two photographs."""
    from sklearn.datasets import load_sample_images

    photos, generator = load_sample_images().images, np.random.Generator(np.random.Philox(key=0))
    for index in range(number):
        photo = photos[index % len(photos)]
        top, left = (
            generator.integers(size - part + 1) for size, part in zip(photo.shape, (height, width), strict=False)
        )
        yield photo[top : top + height, left : left + width]


def save(images: Sequence[np.ndarray], folder: Path, ending: str, num_test: int) -> None:
    """Write images as folders of splits and classes, the first `num_test` into the test split."""
    from PIL import Image

    for index, image in enumerate(images):
        path = folder / (("test" if ending == "png" else "val") if index < num_test else "train") / "photo"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{index:05}.{ending}", quality=90, compress_level=1)


def speed(batches: Iterable[Tensor]) -> float:
    """Return the images a second of an epoch."""
    started = time.perf_counter()
    return sum(map(len, batches)) / (time.perf_counter() - started)


def our_epochs(spec: DataSpec, directory: Path, batch_size: int) -> Iterator[float]:
    """Time epochs of the harness's loader."""
    loader = open_data(spec.name, directory, "ffcv").train_loader(global_batch_size=batch_size, num_workers=WORKERS)
    for epoch in count():
        batches = loader.epoch(SgdNoise(1, ("final",)), epoch)
        yield speed(normalize(batch.images_NHWC, spec, channels_last=False) for batch in batches)


def torch_epochs(dataset: Any, batch_size: int) -> Iterator[float]:
    """Time epochs of a DataLoader, which keeps its workers between them."""
    loader = DataLoader(dataset, batch_size, True, num_workers=WORKERS, drop_last=True, persistent_workers=True)
    while True:
        yield speed(images for images, _ in loader)


def stock_epochs(spec: DataSpec, path: Path) -> Iterator[float]:
    """Time FFCV's own decoder and flip, as in its ImageNet example, up to uint8 batches; then our normalisation."""
    import ffcv
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]
    settings = {"os_cache": True, "order": ffcv.loader.OrderOption.RANDOM, "seed": 1}
    pipelines = {"image": image, "label": [IntDecoder(), ToTensor()]}
    loader = ffcv.Loader(str(path), batch_size=64, num_workers=WORKERS, pipelines=pipelines, **settings)
    while True:
        yield speed(normalize(images, spec, channels_last=False) for images, _ in loader)


def decoding(world: World) -> Iterator[Row]:
    """Count images a second of JPEG decoders on threads of the CPU, and of nvJPEG; a missing package costs its row."""
    noise_1CHW = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(0))
    smooth_CHW = F.interpolate(noise_1CHW, (HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1)  # as a photograph is
    image_CHW, number = (255 * smooth_CHW).to(torch.uint8), 2048 if world.device.type == "cuda" else 32

    def on_threads(decode: Callable[[], object]) -> float:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda _: decode(), range(THREADS)))
            return number / seconds(lambda: list(pool.map(lambda _: decode(), range(number))))

    def torchvision() -> float:
        from torchvision.io import decode_jpeg, encode_jpeg

        jpeg = encode_jpeg(image_CHW, 90)
        return on_threads(lambda: decode_jpeg(jpeg))

    def pillow() -> float:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
        return on_threads(lambda: Image.open(io.BytesIO(file.getvalue())).convert("RGB").load())

    def nvjpeg() -> float:
        from torchvision.io import decode_jpeg, encode_jpeg

        batch = [encode_jpeg(image_CHW, 90)] * 256
        decode_jpeg(batch, device="cuda")
        started = now(world.device)
        for _ in range(number // len(batch)):
            decode_jpeg(batch, device="cuda")
        return number / (now(world.device) - started)

    decoders, missing = {"torchvision": torchvision, "Pillow": pillow}, []
    for name, decoder in (decoders | ({"nvJPEG": nvjpeg} if world.device.type == "cuda" else {})).items():
        try:
            yield Row(f"{name} [images/s]", decoder())
        except ModuleNotFoundError as error:
            missing.append(error)
    if missing:
        raise missing[0]
