"""Step rates: ResNet-50 at 224 eager, in DistributedDataParallel and compiled; small networks at 32×32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from harness.distributed.world import World
from tools.benchmarks.device.feeds import augmented, from_uint8, normalised
from tools.benchmarks.device.parts import Finding
from tools.benchmarks.device.ways import (
    BatchesOf,
    Case,
    Network,
    Seconds,
    Timed,
    compile_,
    in_turns,
    our_way,
    plain_way,
    published_way,
)

BATCHES = (256, 32, 128, 64)
"""In order of worth: one GPU alone, then the share of each of 8 GPUs of the paper's 256."""
DDP: dict[str, dict[str, Any] | None] = {
    "no DDP": None,
    "find_unused_parameters": {"find_unused_parameters": True},
    "… broadcast_buffers=False": {"find_unused_parameters": True, "broadcast_buffers": False},
    "lean": {"broadcast_buffers": False, "gradient_as_bucket_view": True},
}
"""Settings of DistributedDataParallel; lean keeps no unused parameters in mind."""


def large(world: World, batch_size: int) -> Case:
    """Return ResNet-50 on ImageNet's images; on a CPU something that runs in no time."""
    if world.device.type == "cpu":
        return Case("resnet8", batch_size=2 + (batch_size == 256), image_size=16, num_classes=10, steps=1, rounds=1)
    steps = 10 if batch_size >= 128 else 20
    return Case("resnet50", batch_size=batch_size, image_size=224, num_classes=1000, steps=steps, rounds=3)


def way(network: Network, world: World, method: str, batches: BatchesOf, compiled: str = "") -> Seconds:
    """Return one way to train the network: "plain" or a pruning method."""
    model = network.model()
    compile_(model, compiled if not compiled or world.device.type == "cuda" else "eager")
    return plain_way(model, world, batches) if method == "plain" else our_way(network, model, world, method, batches)


def steps(world: World) -> Iterator[Finding]:
    """Time plain, lrr and aws at each batch size, from normalised and from uint8 images, then cudnn.benchmark."""
    network = Network(large(world, 256), world.device)
    for batch_size in BATCHES:
        case = large(world, batch_size)
        ways: dict[str, Seconds] = {}
        feeds = {"": normalised(case, world.device), " from uint8": from_uint8(case, world.device)}
        for source, batches in feeds.items():
            ways |= {method + source: way(network, world, method, batches) for method in ("plain", "lrr", "aws")}
        yield _rates(in_turns(case, ways), f", batch {batch_size}", feeds)
    torch.backends.cudnn.benchmark = True
    for batch_size in (256, 32):
        case = large(world, batch_size)
        batches = normalised(case, world.device)
        timed = in_turns(case, {method: way(network, world, method, batches) for method in ("plain", "aws")})
        yield _rates(timed, f", cudnn.benchmark, batch {batch_size}")


def compiled(world: World) -> Iterator[Finding]:
    """Time plain and aws by CUDA graphs at batch 32, by the default compiler at 256; count graphs made anew."""
    network = Network(large(world, 256), world.device)
    for how, batch_size in (("reduce-overhead", 32), ("default", 256)):
        torch._dynamo.reset()
        case = large(world, batch_size)
        batches = normalised(case, world.device)
        timed = in_turns(case, {method: way(network, world, method, batches, how) for method in ("plain", "aws")})
        mark = f", {how}, batch {batch_size}"
        found, graphs = _rates(timed, mark), timed["aws"].graphs
        values = {**found.values, f"graphs compiled anew{mark}": graphs}
        yield Finding(f"{found.text}, {graphs} graphs compiled anew while α changed", values)


def _rates(timed: Mapping[str, Timed], mark: str, sources: Iterable[str] = ("",)) -> Finding:
    values = {f"{name}{mark} [images/s]": found.rate for name, found in timed.items()}
    texts = []
    for source in sources:
        rates = {method: timed[method + source] for method in ("plain", "lrr", "aws") if method + source in timed}
        ratio = rates["aws"].ratio(rates["plain"])
        values[f"aws / plain{source}{mark}"] = ratio
        words = ", ".join(f"{method} {found.rate:,.0f}" for method, found in rates.items())
        texts.append(f"{words} images/s{source}, aws / plain {ratio:.3f}")
    return Finding(f"{mark.removeprefix(', ')}: {', '.join(texts)}", values)


def ddp(world: World) -> Iterator[Finding]:
    """Time a plain step within DistributedDataParallel of a world of one, in ms."""
    import torch.distributed as dist

    case = large(world, 32)
    network, batches = Network(case, world.device), normalised(case, world.device)
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)  # on a free port
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        models = {
            name: network.model() if options is None else DistributedDataParallel(network.model(), **options)
            for name, options in DDP.items()
        }
        timed = in_turns(case, {name: plain_way(model, world, batches) for name, model in models.items()})
    finally:
        dist.destroy_process_group()
    for name, found in timed.items():
        milliseconds = 1e3 * case.batch_size / found.rate
        yield Finding(f"{name} {milliseconds:.2f} ms a step", {f"{name} [ms a step]": milliseconds})


def small(world: World) -> Iterator[Finding]:
    """Time aws on 32×32 images, eager and by CUDA graphs, against the published scripts' way."""
    for name in ("resnet20", "mobilenet_v2_cifar"):
        if world.device.type == "cpu":
            case = Case(name, batch_size=2, image_size=16, num_classes=10, steps=1, rounds=1)
        else:
            case = Case(name, batch_size=128, image_size=32, num_classes=100, steps=60, rounds=3)
        network = Network(case, world.device)
        batches = augmented(case, world.device, num_images=64 if world.device.type == "cpu" else 50_000)
        for how, words in (("", "eager"), ("reduce-overhead", "by CUDA graphs")):
            torch._dynamo.reset()
            ways = {"aws": way(network, world, "aws", batches, how), "published": published_way(network, batches, "")}
            timed = in_turns(case, ways)
            ratio, aws, published = timed["aws"].ratio(timed["published"]), timed["aws"].rate, timed["published"].rate
            yield Finding(
                f"{name}: aws {words} {aws:,.0f}, published way {published:,.0f} images/s, {ratio:.2f} ×",
                {
                    f"aws {words} / published way, {name}": ratio,
                    f"aws {words}, {name} [images/s]": aws,
                    f"published way beside aws {words}, {name} [images/s]": published,
                    f"graphs compiled anew, aws {words}, {name}": timed["aws"].graphs,
                },
            )
