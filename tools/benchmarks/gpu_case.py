"""The rows of one network on a GPU: the harness's loop against plain PyTorch and against the published scripts' way."""

from __future__ import annotations

import torch

from harness.data.spec import CropFlip, DataSpec, RawSource
from harness.training.world import World
from tools.benchmarks.roofline import count
from tools.benchmarks.row import Row
from tools.benchmarks.ways import BatchesOf, Case, Network, Timed, in_turns, rate_row, ways_of

GOAL_PLAIN = 0.98


def open_gpu_world(case: Case, quick: bool) -> World:
    """Open the benchmark's one process, on a GPU unless it is but a try; ValueError without one."""
    if not quick and not torch.cuda.is_available():
        raise ValueError("this benchmark needs a CUDA device; --quick tries it on the CPU with small networks")
    return World(case.precision)


def random_spec(case: Case, padding: int) -> DataSpec:
    """Return the entry of made-up RGB images that are cropped out of `padding` pixels and flipped."""
    return DataSpec(
        name="random",
        num_classes=case.num_classes,
        channels=3,
        image_size=case.image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=CropFlip(padding, flip=True),
        raw=RawSource("random"),
    )


def case_rows(
    case: Case, world: World, batches: BatchesOf, compiled: str, *, goal_published: float | None
) -> dict[str, Row]:
    """Time all ways of one case in turns, under torch.compile if `compiled` says how; rows by a short name."""
    torch._dynamo.reset()
    network = Network(case, world.device)
    timed = in_turns(case, ways_of(case, network, world, batches, compiled))
    mark = f"{case.model} at {case.image_size}², batch {case.batch_size}, {compiled or 'no compile'}"
    aws, lrr, plain, published = (timed[name].rates for name in ("aws", "lrr", "plain", "published"))
    rows = {
        "aws/plain": rate_row(
            f"aws / plain, {mark} [images/s]", aws, plain, goal=GOAL_PLAIN, note=_note(case, world, timed)
        ),
        "lrr/plain": rate_row(f"lrr / plain, {mark} [images/s]", lrr, plain, goal=GOAL_PLAIN),
        "aws/published": rate_row(
            f"aws / published way, {mark} [images/s]",
            aws,
            published,
            goal=goal_published,
            note=f"published way in float32, cuDNN TF32 {'on' if torch.backends.cudnn.allow_tf32 else 'off'}",
        ),
    }
    if "published, compiled" in timed:
        rates = timed["published, compiled"].rates
        rows["aws/published, compiled"] = rate_row(
            f"aws / published way compiled too, {mark} [images/s]", aws, rates, goal=None
        )
    if compiled:
        rows["recompiled"] = _recompiled(mark, timed)
    return rows


def _note(case: Case, world: World, timed: dict[str, Timed]) -> str:
    work = count(
        case.model,
        batch_size=case.batch_size,
        image_size=case.image_size,
        channels=3,
        num_classes=case.num_classes,
        bf16=case.precision == "bf16",
    )
    return (
        f"{world.device_name}, {case.precision}, median of {len(timed['aws'].rates)} rounds of {case.steps} steps; "
        f"forward and backward: {work.describe(world.device_name)}"
    )


def _recompiled(mark: str, timed: dict[str, Timed]) -> Row:
    graphs = timed["aws"].graphs
    others = ", ".join(f"{name} {found.graphs}" for name, found in timed.items() if name != "aws")
    return Row(
        name=f"graphs compiled while α changes, {mark}",
        ours=graphs,
        reference=0,
        ratio=graphs,
        goal="0",
        reached=graphs == 0,
        low=graphs,
        high=graphs,
        note=f"the others: {others}",
    )
