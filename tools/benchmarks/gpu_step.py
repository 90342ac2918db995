"""A training step of ResNet-50 on 224×224 images on a GPU: plain, ours, and the published scripts' way.

Random images lie on the device in channels-last, so that no loader is timed. Ours is the whole of the real loop,
`harness.training.loop.train`, with `lrr` and with `aws`. Each is timed eager and under torch.compile, in turns; graphs
that are compiled anew while α changes are counted. `--quick` tries all this on a small network, on the CPU if need be.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from harness.training.world import World
from tools.benchmarks.gpu_case import case_rows, open_gpu_world
from tools.benchmarks.row import Row
from tools.benchmarks.ways import BatchesOf, Case

CASE = Case("resnet50", batch_size=256, image_size=224, num_classes=1000, steps=30, rounds=7)
QUICK = Case("resnet8", batch_size=4, image_size=16, num_classes=10, steps=3, rounds=2)

GOAL_PUBLISHED = 2.0
GOAL_RATE = 3000.0
"""Images a second of `aws` on an H200, eager or compiled."""


def rows(quick: bool) -> list[Row]:
    """Measure on the GPU; quick: a small network wherever it is, traced but not compiled."""
    case = QUICK if quick else CASE
    world = open_gpu_world(case, quick)
    batches = resident(case, world)
    found = [
        case_rows(case, world, batches, compiled, goal_published=GOAL_PUBLISHED)
        for compiled in ("", "eager" if quick else "default")
    ]
    return [row for rows in found for row in rows.values()] + [_rate(world, [rows["aws/plain"].ours for rows in found])]


def resident(case: Case, world: World) -> BatchesOf:
    """Return the one random batch, on the device, as often as asked."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, generator=generator)
    images_NCHW = images.to(world.device, memory_format=torch.channels_last)
    labels_N = torch.randint(case.num_classes, (case.batch_size,), generator=generator).to(world.device)

    def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            yield images_NCHW, labels_N

    return batches


def _rate(world: World, rates: list[float]) -> Row:
    best, asked = max(rates), "H200" in world.device_name
    return Row(
        name="aws, the faster of no compile and compile [images/s]",
        ours=best,
        reference=GOAL_RATE,
        ratio=best / GOAL_RATE,
        goal="≥ 1× on an H200" if asked else "–",
        reached=not asked or best >= GOAL_RATE,
        low=min(rates) / GOAL_RATE,
        high=best / GOAL_RATE,
        note=f"{world.device_name}; median of both {median(rates):,.0f}",
    )
