"""Time training steps and barriers, and count waits for the GPU."""

from __future__ import annotations

import copy
import random
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.analysis.interpolate import interpolate
from harness.common.seeds import SgdNoise
from harness.config import CompileMode, OptimConfig, Schedule
from harness.data import TrainLoader, open_data
from harness.data.loaders import TrainOrder
from harness.data.memory_loader import ResidentSplit
from harness.data.spec import CropFlip, DataSpec, RawSource
from harness.distributed.world import World
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, NormState, prune
from harness.training.batchnorm import batchnorm_layers
from harness.training.compiled import compile_
from harness.training.feed import ImageBatch, TrainFeed, normalize
from harness.training.loop import Batches, build_optimizer, train
from tools.benchmarks.measure import ROOT, Goal, Row, compared, in_turns, now, seconds
from tools.benchmarks.published import publish

WARM_UP_STEPS = 3
OPTIM = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
NOISE = SgdNoise(1, ("search", 1))
Step = Callable[[Tensor, Tensor], None]
BatchesOf = Callable[[int], Iterator[ImageBatch]]  # takes the number of steps; normalised batches on the device
State = Mapping[str, Tensor]
Read = Callable[[], Iterable[ImageBatch]]  # returns all batches, normalised
BATCHES = (256, 32, 128, 64)  # most important first: the paper's batch on one GPU, then its share on each of 8 GPUs
DDP: dict[str, dict[str, Any]] = {
    "find_unused_parameters": {"find_unused_parameters": True},
    "… broadcast_buffers=False": {"find_unused_parameters": True, "broadcast_buffers": False},
    "lean": {"broadcast_buffers": False, "gradient_as_bucket_view": True},  # does not search for unused parameters
}
OWN = tuple(f"{ROOT / folder}/" for folder in ("harness", "tools", "tests"))
WATCHED, SKIPPED = 40, WARM_UP_STEPS + 2  # skip the wait after the warm-up steps, where the clock starts
MEETING = "hold"  # function of the training loop that synchronises all ranks; its waits are rare and intended
DATA, BATCH, BN_IMAGES = "fashion_mnist", 128, 10_000


@dataclass(frozen=True)
class Case:
    """One network at one batch size, with steps and rounds to time."""

    model: str
    batch_size: int
    image_size: int
    num_classes: int
    steps: int
    rounds: int

    def build(self) -> nn.Module:
        """Build the network."""
        return build_model(self.model, num_classes=self.num_classes, channels=3, image_size=self.image_size)

    def spec(self, padding: int = 0) -> DataSpec:
        """Return the specification of random RGB images.

        They are augmented by flips, and crops with `padding` pixels.
        """
        half, crop = (0.5, 0.5, 0.5), CropFlip(padding, flip=True)
        return DataSpec("random", self.num_classes, 3, self.image_size, half, half, crop, RawSource("random"))

    def images(self, device: torch.device, number: int) -> ImageBatch:
        """Return random (uint8 images_NHWC, labels_N) on the device."""
        shape = number, self.image_size, self.image_size, 3
        images_NHWC = torch.randint(256, shape, dtype=torch.uint8, device=device)
        return images_NHWC, torch.randint(self.num_classes, (number,), device=device)

    def batches(self, device: torch.device, *, from_uint8: bool = False) -> BatchesOf:
        """Return a source that repeats one batch.

        It is normalised once, or with `from_uint8` at every step.
        """
        images_NHWC, labels_N = self.images(device, self.batch_size)
        anew = partial(normalize, images_NHWC, self.spec())
        once_NCHW = anew()
        return lambda steps: ((anew() if from_uint8 else once_NCHW, labels_N) for _ in range(steps))

    def augmented(self, device: torch.device, num_images: int) -> BatchesOf:
        """Return a source of shuffled and augmented batches.

        They come from the memory loader, cropped, flipped and normalised.
        """
        images_NHWC, labels_N = self.images(device, num_images)
        padding, spec = self.image_size // 8, self.spec(self.image_size // 8)
        split = ResidentSplit(spec, F.pad(images_NHWC, (0, 0, *4 * [padding])), labels_N)
        feed = TrainFeed(TrainLoader(split, TrainOrder(num_images, self.batch_size, 0, 1)), spec, device)

        def batches(steps: int) -> Iterator[ImageBatch]:
            for epoch, done in enumerate(range(0, steps, feed.steps_per_epoch)):
                yield from feed.epoch(NOISE, epoch, num_steps=min(steps - done, feed.steps_per_epoch))

        return batches


class SparseNetwork:
    """A pruned network with its mask and ψ_init.

    It is the same in every process. Its ψ differs from ψ_init, as in a trained network.
    """

    def __init__(self, case: Case, world: World) -> None:
        torch.manual_seed(0)
        self.case, self.world, self._model = case, world, case.build().train()
        partition = partition_of(case.model, self._model)
        params = {name: param.detach() for name, param in self._model.named_parameters()}
        self.initial = {name: params[name].clone().to(world.device) for name in sorted(partition.norm)}
        self.mask: Mask = prune(params, Mask.dense(params, partition.prunable), 0.8)
        self.mask.apply_(params)
        for name in self.initial:
            params[name].add_(0.1 * torch.randn(params[name].shape))

    def model(self, layout: torch.memory_format = torch.channels_last) -> nn.Module:
        """Return a copy of the network on the device."""
        return copy.deepcopy(self._model).to(self.world.device).to(memory_format=layout)

    def train(self, model: nn.Module, method: str, batches: Batches) -> None:
        """Train one epoch with the harness's complete training loop."""
        params = dict(model.named_parameters())
        norm = NormState([params[name] for name in self.initial], list(self.initial.values()))
        settings: dict[str, Any] = {"noise": NOISE, "optim": OPTIM, "schedule": Schedule(1, "constant")}
        settings |= {"mask": self.mask, "view": METHODS[method].view(norm), "label": "benchmark"}
        train(model, world=self.world, batches=batches, on_epoch=lambda report: None, **settings)

    def way(
        self, method: str, batches: BatchesOf, compiled: CompileMode = "no", case: Case | None = None
    ) -> Callable[[], float]:
        """Return a function that trains and returns images/s.

        It trains for the steps of a case, after untimed warm-up steps.

        Args:
            method: A pruning method, which uses the harness's loop, or "plain" or "published".
            batches: Source of batches.
            compiled: The product's --compile. On a CPU the network is only traced.
            case: Batch size and number of steps, by default those of the network.
        """
        # Phase: network and step function
        case, model = case or self.case, self.model()
        compile_(model, compiled, "inductor" if self.world.device.type == "cuda" else "eager")
        work: Callable[[Clocked], object] = partial(self.train, model, method)
        if method in ("plain", "published"):
            published = method == "published"
            step = PublishedStep(self, random.Random(0).random) if published else plain_step(model, self.world)
            work = partial(Clocked.run, step=step)

        # Phase: timing
        def rate() -> float:
            clocked = Clocked(batches, case.steps)
            work(clocked)
            return case.batch_size * case.steps / clocked.seconds

        return rate


@dataclass
class Clocked:
    """Batches that time the loop that consumes them.

    The clock runs from the first batch after the warm-up to the end.
    """

    batches: BatchesOf
    steps: int
    seconds: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps, including the warm-up."""
        return WARM_UP_STEPS + self.steps

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[ImageBatch]:
        """Yield all batches and set `seconds`.

        The arguments are those of `TrainFeed.epoch` and are ignored.
        """
        started = 0.0
        for index, batch in enumerate(self.batches(self.steps_per_epoch)):
            started = now() if index == WARM_UP_STEPS else started
            yield batch
        self.seconds = now() - started

    def run(self, step: Step) -> float:
        """Call `step` with every batch and return the seconds."""
        for batch in self.epoch(NOISE, 0):
            step(*batch)
        return self.seconds


def plain_step(model: nn.Module, world: World) -> Step:
    """Return a plain dense training step.

    It has autocast, forward, backward, and the same fused optimizer as the harness.
    """
    optimizer = build_optimizer(model.parameters(), OPTIM, fused=world.device.type == "cuda")

    def step(images_NCHW: Tensor, labels_N: Tensor) -> None:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=world.precision == "bf16"):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()
        # Last, as in the harness's loop. Otherwise gradients stay allocated while the other side is timed.
        optimizer.zero_grad()

    return step


class PublishedStep:
    """Training step like that of the paper's published scripts.

    Layers multiply weights by their mask, and each normalisation layer blends ψ with ψ_init by its own α. The step uses
    float32 (cuDNN: TF32) and contiguous images. It fetches loss and correct predictions from the device at every step.
    """

    def __init__(self, network: SparseNetwork, draw: Callable[[], float]) -> None:
        self.model, self.loss_sum, self.num_correct = network.model(torch.contiguous_format), 0.0, 0
        masks = {name: mask.to(network.world.device).float() for name, mask in network.mask.tensors.items()}
        publish(self.model, masks, network.initial, draw)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def __call__(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        logits_NK = self.model(images_NCHW.contiguous())
        loss = F.cross_entropy(logits_NK, labels_N)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        self.num_correct += int((logits_NK.argmax(1) == labels_N).sum().item())


def step(quick: bool) -> Iterator[Row]:
    """Compare an AWS step of the harness with a plain step."""
    world = World()
    for name, batch_size, rounds in (("resnet20", 128, 20), ("resnet50_cifar", 16, 10)):
        case = Case(name, batch_size, 32, 100, steps=2 if quick else 10, rounds=2 if quick else rounds)
        network, batches = SparseNetwork(case, world), case.batches(world.device)
        timed = in_turns({method: network.way(method, batches) for method in ("aws", "plain")}, case.rounds)
        ours, theirs = ([batch_size / rate for rate in rates] for rates in timed.values())
        note = f"{case.rounds} turns of {case.steps} steps each; density {network.mask.density:.2f}, channels_last"
        what = f"AWS step / plain step, {name} at 32×32, batch {batch_size} [s]"
        yield compared(what, ours, theirs, Goal(most=1.03), note)


def loop(quick: bool) -> Iterator[Row]:
    """Compare the harness's whole loop with plain PyTorch at a tiny batch, where Python takes most of the time."""
    world, threads = World(), torch.get_num_threads()
    case = Case("resnet20", 2, 8, 10, steps=20 if quick else 40, rounds=2 if quick else 60)
    network, batches = SparseNetwork(case, world), case.augmented(world.device, 400)
    torch.set_num_threads(1)
    timed = in_turns({way: network.way(way, batches) for way in ("aws", "lrr", "plain")}, case.rounds)
    torch.set_num_threads(threads)
    note = f"{case.rounds} turns of {case.steps} steps each, memory loader included; density {network.mask.density:.2f}"
    for method in ("lrr", "aws"):
        name = f"{method} loop / plain loop, resnet20 at 8×8, batch 2, one thread [images/s]"
        yield compared(name, timed[method], timed["plain"], Goal(least=0.95), note)


def large(world: World, batch_size: int) -> Case:
    """Return ResNet-50 with ImageNet-sized images, or a tiny case on a CPU."""
    if world.device.type == "cpu":
        return Case("resnet8", batch_size=2 + (batch_size == 256), image_size=16, num_classes=10, steps=1, rounds=1)
    return Case("resnet50", batch_size, 224, num_classes=1000, steps=10 if batch_size >= 128 else 20, rounds=3)


def steps(world: World) -> Iterator[Row]:
    """Time plain, lrr and aws at each batch size.

    Images are normalised or uint8. Some sizes are timed again with cudnn.benchmark.
    """
    network = SparseNetwork(large(world, 256), world)
    torch.backends.cudnn.benchmark = False
    for batch_size in BATCHES:
        yield from rates(network, batch_size, "", ("plain", "lrr", "aws"))
        yield from rates(network, batch_size, " from uint8", ("plain", "lrr", "aws"))
    torch.backends.cudnn.benchmark = True
    for batch_size in (256, 32):
        yield from rates(network, batch_size, ", cudnn.benchmark", ("plain", "aws"))


def compiled(world: World) -> Iterator[Row]:
    """Time plain and aws with torch.compile, and count recompilations.

    CUDA graphs are used at batch 32, and the default mode at 256.
    """
    network = SparseNetwork(large(world, 256), world)
    ways: tuple[tuple[CompileMode, int], ...] = (("reduce-overhead", 32), ("default", 256))
    for how, batch_size in ways:
        torch._dynamo.reset()
        yield from rates(network, batch_size, f", {how}", ("plain", "aws"), how)


def rates(
    network: SparseNetwork, batch_size: int, mark: str, methods: Sequence[str], how: CompileMode = "no"
) -> Iterator[Row]:
    """Time methods alternately; yield images/s, and aws / plain.

    Args:
        network: The network to train.
        batch_size: Images per step.
        mark: Suffix of the row names. With "uint8" in it, every step normalises its images.
        methods: Methods to time, with aws and plain.
        how: The product's --compile.
    """
    case, mark = large(network.world, batch_size), f"{mark}, batch {batch_size}"
    batches = case.batches(network.world.device, from_uint8="uint8" in mark)
    ways = {method: network.way(method, batches, how, case) for method in methods}
    timed, graphs = counted_in_turns(ways, case.rounds)
    yield from (Row(f"{method}{mark} [images/s]", median(found)) for method, found in timed.items())
    yield compared(f"aws / plain{mark}", timed["aws"], timed["plain"])
    if how != "no":
        yield Row(f"graphs compiled anew{mark}", graphs)


def counted_in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], int]:
    """Time as `in_turns` does, and count graphs compiled after the warm-up.

    The count should be 0.
    """
    before: list[int] = []
    timed = in_turns(ways, rounds, lambda: before.append(counters["stats"]["unique_graphs"]))
    return timed, counters["stats"]["unique_graphs"] - before[0]


def ddp(world: World) -> Iterator[Row]:
    """Time a plain step in DistributedDataParallel with world size 1."""
    case = large(world, 32)
    network, clocked = SparseNetwork(case, world), Clocked(case.batches(world.device), case.steps)
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)  # port 0 chooses a free port
    dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    models = {name: nn.parallel.DistributedDataParallel(network.model(), **settings) for name, settings in DDP.items()}
    steps = {name: plain_step(model, world) for name, model in ({"no DDP": network.model()} | models).items()}
    timed = in_turns({name: partial(clocked.run, step) for name, step in steps.items()}, case.rounds)
    dist.destroy_process_group()
    yield from (Row(f"{name} [ms a step]", 1e3 * median(found) / case.steps) for name, found in timed.items())


def small(world: World) -> Iterator[Row]:
    """Compare aws with the published scripts' step on 32×32 images, in images/s.

    aws runs eagerly and with CUDA graphs.
    """
    on_cpu = world.device.type == "cpu"
    for name in ("resnet20", "mobilenet_v2_cifar"):
        case = Case(name, 2, 16, 10, steps=1, rounds=1) if on_cpu else Case(name, 128, 32, 100, steps=60, rounds=3)
        network, batches = SparseNetwork(case, world), case.augmented(world.device, 64 if on_cpu else 50_000)
        hows: tuple[tuple[CompileMode, str], ...] = (("no", "eager"), ("reduce-overhead", "by CUDA graphs"))
        for how, words in hows:
            torch._dynamo.reset()
            ways = {"aws": network.way("aws", batches, how), "published": network.way("published", batches)}
            timed, graphs = counted_in_turns(ways, case.rounds)
            yield compared(f"aws {words} / published way, {name}", timed["aws"], timed["published"])
            yield Row(f"graphs compiled anew, aws {words}, {name}", graphs)


def waits(world: World) -> Iterator[Row]:
    """Count host waits for the device in 40 steps of aws.

    They are counted by file and line, with augmented batches.
    """
    on_gpu = world.device.type == "cuda"
    sizes, steps = ("resnet20", 128, 32) if on_gpu else ("resnet8", 4, 16), WATCHED + SKIPPED - WARM_UP_STEPS
    case, seen = Case(*sizes, num_classes=10, steps=steps, rounds=1), Counter[str]()
    network, batches = SparseNetwork(case, world), case.augmented(world.device, 50_000 if on_gpu else 64)
    network.way("aws", batches)()  # warm-up, so that kernels are selected
    network.way("aws", watched(batches, seen))()
    meetings = seen.pop(MEETING, 0)
    if on_gpu:  # there are no waits on a CPU
        yield Row("waits", seen.total(), note=", ".join(f"{times} × {place}" for place, times in seen.most_common(8)))
    yield Row("waits in meetings", meetings)


def watched(batches: BatchesOf, seen: Counter[str], skipped: int = SKIPPED, steps: int = WATCHED) -> BatchesOf:
    """Wrap a source of batches so that it counts device waits.

    PyTorch's synchronisation warnings tell the waits.

    Args:
        batches: The source.
        seen: Counts by nearest source line of this repository, or under MEETING. Updated in place.
        skipped: Steps before counting starts.
        steps: Steps during which waits are counted.
    """

    # Phase: handler of PyTorch's synchronisation warnings
    def note(message: Warning | str, *where: object, **more: object) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        own = [frame for frame in stack if frame.filename.startswith(OWN)] or stack
        if "synchronizing" in str(message):
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            seen[MEETING if any(frame.name == MEETING for frame in own) else place] += 1

    # Phase: batches with warnings enabled in between
    def batches_watched(number: int) -> Iterator[ImageBatch]:
        stream = batches(number)
        tell: Any = torch.cuda.set_sync_debug_mode if torch.cuda.is_available() else lambda mode: None
        yield from islice(stream, skipped)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            tell("warn")
            try:
                yield from islice(stream, steps)
            finally:
                tell("default")
        yield from stream

    return batches_watched


@dataclass(frozen=True)
class Question:
    """Inputs to a barrier: two networks, the α, and image sources."""

    model: nn.Module
    states: tuple[State, State]
    alphas: Sequence[float]
    bn: Read
    plain_bn: Read
    test: Read
    recorded: tuple[float, float] | None = None  # errors at both ends in percent, if known from training

    def ours(self) -> list[float]:
        """Return the errors in percent by α, computed by the harness."""
        settings: dict[str, Any] = {"alphas": self.alphas, "recorded_error_percent": self.recorded}
        settings |= {"bn_batches": [images for images, _ in self.bn()], "test_batches": list(self.test())}
        return list(barrier_curve(self.model, *self.states, **settings).error_percent)

    @torch.no_grad()
    def plain(self) -> list[float]:
        """Return the same, computed by a simple implementation.

        For each α it makes a new network, a full BatchNorm pass, and a pass over the test set.
        """
        errors = []
        for alpha in self.alphas:
            model = copy.deepcopy(self.model).train()
            model.load_state_dict(interpolate(*self.states, alpha))
            for layer in batchnorm_layers(model):
                layer.reset_running_stats()
                layer.momentum = None
            for images_NCHW, _ in self.plain_bn():
                model(images_NCHW)
            model.eval()
            wrong = torch.cat([model(images_NCHW).argmax(1) != labels_N for images_NCHW, labels_N in self.test()])
            errors.append(100.0 * int(wrong.sum()) / len(wrong))
        return errors


def barrier(quick: bool) -> Iterator[Row]:
    """Compare a ResNet-20 barrier on Fashion-MNIST with a simple implementation.

    The barrier has eleven α. Both read from the memory loader. The harness is timed before and after the other, to
    average out drift.
    """
    from harness.data.prepare import prepare

    name, alphas, steps = ("resnet8", (0.0, 0.5, 1.0), 60) if quick else ("resnet20", ALPHAS, 150)
    with tempfile.TemporaryDirectory() as directory:
        prepare(DATA, Path(directory), None)

        # Phase: two trainings with different SGD noise from one warm start, so that there is a barrier to measure
        def read(scope: str = "", seed: int = 0, steps: int | None = None) -> Iterator[ImageBatch]:
            """Yield test batches, or with a scope at most `steps` training batches."""
            source = open_data(DATA, Path(directory), "memory")
            train = source.train_loader(global_batch_size=BATCH).epoch(SgdNoise(seed, (scope,)), 0, num_steps=steps)
            for batch in train if scope else source.test_loader(batch_size=BATCH):
                yield normalize(batch.images_NHWC, source.spec, channels_last=False), batch.labels_N

        torch.manual_seed(0)
        model = build_model(name, num_classes=10, channels=1, image_size=28)
        warm = trained(model, read("warm-up", 0, steps // 3), model.state_dict())
        states = trained(model, read("final", 1, steps), warm), trained(model, read("final", 2, steps), warm)

        # Phase: timing
        part = partial(read, "barrier", steps=-(-BN_IMAGES // BATCH))
        asked, found = Question(model, states, alphas, part, partial(read, "barrier"), read), list[list[float]]()
        took = [seconds(lambda: found.append(way())) for way in (asked.ours, asked.plain, asked.ours)]  # noqa: B023
    ours, plain = (max(errors) - (errors[0] + errors[-1]) / 2 for errors in found[:2])
    note = f"{torch.get_num_threads()} thread(s); ours with {BN_IMAGES:,} BatchNorm images, plain with all"
    what = f"barrier of {name}, {len(alphas)} α"
    yield compared(f"{what}, seconds", [took[0], took[2]], [took[1]] * 2, Goal(least=3), note, faster=True)
    yield Row(f"{what}, points apart", abs(ours - plain), Goal(most=0.3), note, ours=ours, reference=plain)


def trained(model: nn.Module, batches: Iterable[ImageBatch], start: State) -> State:
    """Train from `start` on all batches; return the new state."""
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
    for images_NCHW, labels_N in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images_NCHW), labels_N).backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def question(case: Case, device: torch.device, alphas: Sequence[float]) -> Question:
    """Return the inputs to a barrier between two random networks.

    The images are on the device. The time does not depend on the parameters.
    """
    torch.manual_seed(0)
    model, other = (case.build().to(device) for _ in range(2))
    bn, test = ([case.images(device, case.batch_size) for _ in range(case.steps)] for _ in range(2))

    def read(batches: list[ImageBatch]) -> Read:
        return lambda: ((normalize(images_NHWC, case.spec()), labels_N) for images_NHWC, labels_N in batches)

    states = copy.deepcopy(model.state_dict()), other.state_dict()
    model = model.to(memory_format=torch.channels_last)
    return Question(model, states, alphas, read(bn), read(bn), read(test), (0.0, 0.0))


def barrier_on_device(world: World) -> Iterator[Row]:
    """Compare a ResNet-50 barrier with a simple implementation, in seconds.

    The barrier has eleven α. Both use as many images for BatchNorm as for the test.
    """
    on_gpu = world.device.type == "cuda"
    case = Case("resnet50", 250, 224, 1000, steps=4, rounds=3) if on_gpu else Case("resnet8", 8, 16, 10, 2, 2)
    asked, found = question(case, world.device, ALPHAS), dict[str, list[float]]()

    def timed(name: str, way: Callable[[], list[float]]) -> float:
        return seconds(lambda: found.update({name: way()}))

    took = in_turns({way.__name__: partial(timed, way.__name__, way) for way in (asked.ours, asked.plain)}, case.rounds)
    # Tolerate a few images: other kernels may be selected for each network, and rounding can change a close decision.
    number = case.steps * case.batch_size
    apart = max(abs(x - y) for x, y in zip(found["ours"], found["plain"], strict=True)) / 100 * number
    if apart > max(2.0, 1e-3 * number):
        raise RuntimeError(f"the two implementations give different errors: {found}")
    yield compared("ours / plain", took["ours"], took["plain"], note=f"{number} + {number} images", faster=True)
