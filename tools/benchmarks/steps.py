"""Time training steps: against plain PyTorch on a CPU, and on a GPU eager, compiled and in DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from harness.distributed.world import World
from tools.benchmarks.measure import Goal, Row, compared, in_turns
from tools.benchmarks.networks import Case, Clocked, SparseNetwork, plain_step

BATCHES = (256, 32, 128, 64)
"""In order of worth: one GPU alone, then the share of each of 8 GPUs of the paper's 256."""
DDP: dict[str, dict[str, Any]] = {
    "find_unused_parameters": {"find_unused_parameters": True},
    "… broadcast_buffers=False": {"find_unused_parameters": True, "broadcast_buffers": False},
    "lean": {"broadcast_buffers": False, "gradient_as_bucket_view": True},
}
"""Settings of DistributedDataParallel; lean keeps no unused parameters in mind."""


def step(quick: bool) -> Iterator[Row]:
    """Time AWS, all of the real loop, against forward, backward and update of plain PyTorch."""
    world = World()
    for name, batch_size, rounds in (("resnet20", 128, 20), ("resnet50_cifar", 16, 10)):
        case = Case(name, batch_size, 32, 100, steps=2 if quick else 10, rounds=2 if quick else rounds)
        network, batches = SparseNetwork(case, world), case.batches(world.device)
        timed = in_turns({method: network.way(method, batches) for method in ("aws", "plain")}, case.rounds)
        ours, theirs = ([batch_size / rate for rate in timed[method]] for method in ("aws", "plain"))
        what = f"AWS step / plain step, {name} at 32×32, batch {batch_size} [s]"
        note = f"{case.rounds} turns of {case.steps} steps each; density {network.mask.density:.2f}, channels_last"
        yield compared(what, ours, theirs, Goal(most=1.03), note)


def large(world: World, batch_size: int) -> Case:
    """Return ResNet-50 on ImageNet's images; on a CPU something that runs in no time."""
    if world.device.type == "cpu":
        return Case("resnet8", batch_size=2 + (batch_size == 256), image_size=16, num_classes=10, steps=1, rounds=1)
    steps = 10 if batch_size >= 128 else 20
    return Case("resnet50", batch_size=batch_size, image_size=224, num_classes=1000, steps=steps, rounds=3)


def steps(world: World) -> Iterator[Row]:
    """Time plain, lrr and aws at each batch size, from normalised and from uint8 images, then cudnn.benchmark."""
    network = SparseNetwork(large(world, 256), world)
    torch.backends.cudnn.benchmark = False
    for batch_size in BATCHES:
        yield from rates(network, batch_size, "", ("plain", "lrr", "aws"))
        yield from rates(network, batch_size, " from uint8", ("plain", "lrr", "aws"))
    torch.backends.cudnn.benchmark = True
    for batch_size in (256, 32):
        yield from rates(network, batch_size, ", cudnn.benchmark", ("plain", "aws"))


def compiled(world: World) -> Iterator[Row]:
    """Time plain and aws by CUDA graphs at batch 32, by the default compiler at 256; count graphs made anew."""
    network = SparseNetwork(large(world, 256), world)
    for how, batch_size in (("reduce-overhead", 32), ("default", 256)):
        torch._dynamo.reset()
        yield from rates(network, batch_size, f", {how}", ("plain", "aws"), how)


def rates(
    network: SparseNetwork, batch_size: int, mark: str, methods: Sequence[str], compiled: str = ""
) -> Iterator[Row]:
    """Time the methods in turns; yield images/s, and aws as a share of plain."""
    case, mark = large(network.world, batch_size), f"{mark}, batch {batch_size}"
    batches = case.batches(network.world.device, from_uint8="uint8" in mark)
    ways = {method: CountingWay(network.way(method, batches, compiled, case)) for method in methods}
    timed = in_turns(ways, case.rounds)
    yield from (Row(f"{method}{mark} [images/s]", median(found)) for method, found in timed.items())
    yield Row(f"aws / plain{mark}", median_ratio(timed["aws"], timed["plain"]))
    if compiled:
        yield Row(f"graphs compiled anew{mark}", sum(ways["aws"].graphs[1:]))


@dataclass
class CountingWay:
    """A way that counts the graphs which torch.compile makes at each call; the first call has to make some."""

    way: Callable[[], float]
    graphs: list[int] = field(default_factory=list)

    def __call__(self) -> float:
        """Go the way."""
        from torch._dynamo.utils import counters

        before = counters["stats"]["unique_graphs"]
        found = self.way()
        self.graphs.append(int(counters["stats"]["unique_graphs"] - before))
        return found


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times as fast ours is: the median over the rounds, in which each had its turn."""
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def ddp(world: World) -> Iterator[Row]:
    """Time a plain step within DistributedDataParallel of a world of one, in ms."""
    import torch.distributed as dist

    case = large(world, 32)
    network, clocked = SparseNetwork(case, world), Clocked(case.batches(world.device), case.steps, world.device)
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)  # on a free port
    dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        models = {name: DistributedDataParallel(network.model(), **settings) for name, settings in DDP.items()}
        steps = {name: plain_step(model, world) for name, model in ({"no DDP": network.model()} | models).items()}
        timed = in_turns({name: partial(clocked.run, step) for name, step in steps.items()}, case.rounds)
    finally:
        dist.destroy_process_group()
    yield from (Row(f"{name} [ms a step]", 1e3 * median(found) / case.steps) for name, found in timed.items())


def small(world: World) -> Iterator[Row]:
    """Time aws on 32×32 images, eager and by CUDA graphs, against the published scripts' way."""
    on_cpu = world.device.type == "cpu"
    for name in ("resnet20", "mobilenet_v2_cifar"):
        case = Case(name, 2, 16, 10, steps=1, rounds=1) if on_cpu else Case(name, 128, 32, 100, steps=60, rounds=3)
        network, batches = SparseNetwork(case, world), case.augmented(world.device, 64 if on_cpu else 50_000)
        for how, words in (("", "eager"), ("reduce-overhead", "by CUDA graphs")):
            torch._dynamo.reset()
            aws = CountingWay(network.way("aws", batches, how))
            timed = in_turns({"aws": aws, "published": network.way("published", batches)}, case.rounds)
            yield Row(f"aws {words} / published way, {name}", median_ratio(timed["aws"], timed["published"]))
            yield Row(f"aws {words}, {name} [images/s]", median(timed["aws"]))
            yield Row(f"published way beside aws {words}, {name} [images/s]", median(timed["published"]))
            yield Row(f"graphs compiled anew, aws {words}, {name}", sum(aws.graphs[1:]))
