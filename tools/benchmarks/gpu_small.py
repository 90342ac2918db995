"""Training steps on 32×32 images on a GPU, where starting kernels costs more than running them.

ResNet-50 and MobileNetV2 with the stem for small images, and ResNet-20, at batch 128; the whole data set lies on the
device as uint8 and is cropped, flipped and normalised there, keyed as everywhere in the harness; that is timed too, the
same for every way. No compile, torch.compile, and torch.compile with CUDA graphs ("reduce-overhead").
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config import known
from harness.data.loader import TrainOrder
from harness.data.memory_loader import MemoryTrainLoader, ResidentSplit
from harness.seeds import SgdNoise
from harness.training.feed import TrainFeed
from harness.training.world import World
from tools.benchmarks.gpu_case import case_rows, open_gpu_world, random_spec
from tools.benchmarks.row import Row
from tools.benchmarks.ways import BatchesOf, Case

CASES = (
    Case("resnet50_cifar", batch_size=128, image_size=32, num_classes=100, steps=60, rounds=7),
    Case("mobilenet_v2_cifar", batch_size=128, image_size=32, num_classes=100, steps=100, rounds=7),
    Case("resnet20", batch_size=128, image_size=32, num_classes=100, steps=200, rounds=7),
)
QUICK = Case("resnet8", batch_size=8, image_size=16, num_classes=10, steps=3, rounds=2)
GOAL_PUBLISHED = {"resnet20": 5.0, "mobilenet_v2_cifar": 5.0}
"""Reached by the fastest way to compile, or by none: it is asked of CUDA graphs alone."""


def rows(quick: bool, networks: Collection[str] = ()) -> list[Row]:
    """Measure on the GPU, `networks` or all; quick: a small one wherever it is, traced but not compiled."""
    names = [known("network", name, [case.model for case in CASES]) for name in networks]
    cases = (QUICK,) if quick else tuple(case for case in CASES if not names or case.model in names)
    world = open_gpu_world(cases[0], quick)
    found: list[Row] = []
    for case in cases:
        batches = keyed_on_device(case, world, num_images=256 if quick else 50_000)
        for compiled in ("", "eager") if quick else ("", "default", "reduce-overhead"):
            goal = GOAL_PUBLISHED.get(case.model) if compiled == "reduce-overhead" else None
            found += case_rows(case, world, batches, compiled, goal_published=goal).values()
    return found


def keyed_on_device(case: Case, world: World, num_images: int) -> BatchesOf:
    """Return augmented batches of random images that lie on the device, through the harness's own loader."""
    generator = torch.Generator().manual_seed(0)
    size, padding = case.image_size, case.image_size // 8
    images_NHWC = torch.randint(256, (num_images, size, size, 3), dtype=torch.uint8, generator=generator)
    padded = F.pad(images_NHWC, (0, 0, padding, padding, padding, padding)).to(world.device)
    labels = torch.randint(case.num_classes, (num_images,), generator=generator).to(world.device)
    spec = random_spec(case, padding)
    order = TrainOrder(num_images, case.batch_size, rank=0, world_size=1)
    loader = MemoryTrainLoader(spec, ResidentSplit(padded, labels, padding), order)
    feed = TrainFeed(loader, spec, world.device)

    def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while steps > 0:
            part = min(steps, feed.steps_per_epoch)
            yield from feed.epoch(SgdNoise(1, ("benchmark",)), epoch, num_steps=part)
            steps, epoch = steps - part, epoch + 1

    return batches
