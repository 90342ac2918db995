"""Decoding of JPEGs as ImageNet has them: on 16 threads of the CPU, and by nvJPEG."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.distributed.world import World
from tools.benchmarks.device.parts import Finding
from tools.benchmarks.device.ways import now

THREADS, QUALITY = 16, 90
HEIGHT, WIDTH = 375, 500
"""A usual size in ImageNet."""


def photo() -> Tensor:
    """Return an image (H, W, 3) as smooth as a photograph, uint8."""
    noise_1CHW = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(0))
    smooth_1CHW = F.interpolate(noise_1CHW, (HEIGHT, WIDTH), mode="bicubic")
    return (255 * smooth_1CHW[0].clamp(0, 1)).to(torch.uint8).permute(1, 2, 0).contiguous()


def encoded(image_HWC: Tensor) -> bytes:
    """Return it as JPEG, by Pillow or else by torchvision."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        from torchvision.io import encode_jpeg

        return bytes(encode_jpeg(image_HWC.permute(2, 0, 1), QUALITY).tolist())
    file = io.BytesIO()
    Image.fromarray(image_HWC.numpy()).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def decoding(world: World) -> Iterator[Finding]:
    """Count images a second of each decoder; a missing package costs its own row."""
    jpeg = encoded(photo())
    number = 2048 if world.device.type == "cuda" else 32
    for name, decoder in (("torchvision", _torchvision), ("Pillow", _pillow), ("nvJPEG", _nvjpeg)):
        try:
            rate = decoder(jpeg, number, world)
        except ModuleNotFoundError as error:
            yield Finding(f"{name}: not run: needs {(error.name or '?').split('.')[0]}")
            continue
        if rate is None:
            yield Finding(f"{name}: not run: needs a CUDA device")
        else:
            yield Finding(f"{name} {rate:,.0f} images/s", {f"{name} [images/s]": rate})


def _torchvision(jpeg: bytes, number: int, world: World) -> float:
    from torchvision.io import decode_jpeg

    data = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
    return _on_threads(lambda: decode_jpeg(data), number)


def _pillow(jpeg: bytes, number: int, world: World) -> float:
    from PIL import Image

    return _on_threads(lambda: Image.open(io.BytesIO(jpeg)).convert("RGB").load(), number)


def _on_threads(decode: Callable[[], object], number: int) -> float:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: decode(), range(THREADS)))
        started = time.perf_counter()
        list(pool.map(lambda _: decode(), range(number)))
    return number / (time.perf_counter() - started)


def _nvjpeg(jpeg: bytes, number: int, world: World) -> float | None:
    from torchvision.io import decode_jpeg

    if world.device.type != "cuda":
        return None
    batch = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)] * 256
    decode_jpeg(batch, device="cuda")
    started = now(world.device)
    for _ in range(number // len(batch)):
        decode_jpeg(batch, device="cuda")
    return number / (now(world.device) - started)
