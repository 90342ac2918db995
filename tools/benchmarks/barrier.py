"""Barriers between two networks: ours against the plain way, on a CPU and on a GPU.

The plain way is the first one that comes to mind. For every α it takes a new network with the interpolated state, a
whole pass over the training set in training mode for BatchNorm (the same convention), then the test set.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.analysis.interpolate import interpolate
from harness.common.seeds import SgdNoise
from harness.data import open_data
from harness.distributed.world import World
from harness.models import build_model
from harness.training.batchnorm import batchnorm_layers
from harness.training.feed import ImageBatch, normalize
from tools.benchmarks.measure import Goal, Row, compared, in_turns, seconds
from tools.benchmarks.steps import Case

DATA, BATCH, BN_IMAGES = "fashion_mnist", 128, 10_000
State = Mapping[str, Tensor]
Read = Callable[[], Iterable[ImageBatch]]
"""Reads and normalises batches of (images_NCHW, labels_N)."""


@dataclass(frozen=True)
class Question:
    """Two networks, the points between them, and images that are read anew at each call."""

    model: nn.Module
    states: tuple[State, State]
    alphas: Sequence[float]
    bn: Read
    plain_bn: Read
    test: Read
    recorded: tuple[float, float] | None = None
    """Errors that are known from training, as in a comparison of two runs."""

    def ours(self) -> list[float]:
        """Find the errors by the harness's own way."""
        settings: dict[str, Any] = {"alphas": self.alphas, "recorded_error_percent": self.recorded}
        settings |= {"bn_batches": [images for images, _ in self.bn()], "test_batches": list(self.test())}
        return list(barrier_curve(self.model, *self.states, **settings).error_percent)

    @torch.no_grad()
    def plain(self) -> list[float]:
        """Find the errors by the plain way."""
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
    """Time a curve of eleven α with ResNet-20 on Fashion-MNIST, loading included; quick: ResNet-8 and three α.

    Both sides read from the in-memory loader, so that the difference is not the loader's. Ours goes before and after.
    """
    from harness.data.prepare import prepare

    name, alphas, steps = ("resnet8", (0.0, 0.5, 1.0), 60) if quick else ("resnet20", ALPHAS, 150)
    with tempfile.TemporaryDirectory() as directory:
        prepare(DATA, Path(directory), None)

        def read(scope: str = "", seed: int = 0, steps: int | None = None) -> Iterator[ImageBatch]:
            """Yield test batches, or those of a training: at most `steps`."""
            source = open_data(DATA, Path(directory), "memory")
            train = source.train_loader(global_batch_size=BATCH).epoch(SgdNoise(seed, (scope,)), 0, num_steps=steps)
            for batch in train if scope else source.test_loader(batch_size=BATCH):
                yield normalize(batch.images_NHWC, source.spec, channels_last=False), batch.labels_N

        # two trainings under different noise from one warm start, so that there is a barrier to measure
        torch.manual_seed(0)
        model = build_model(name, num_classes=10, channels=1, image_size=28)
        warm = trained(model, read("warm-up", 0, steps // 3), model.state_dict())
        states = trained(model, read("final", 1, steps), warm), trained(model, read("final", 2, steps), warm)
        part = partial(read, "barrier", steps=-(-BN_IMAGES // BATCH))
        asked, found = Question(model, states, alphas, part, partial(read, "barrier"), read), list[list[float]]()
        took = [seconds(lambda: found.append(way())) for way in (asked.ours, asked.plain, asked.ours)]  # noqa: B023
    ours, plain = (max(errors) - (errors[0] + errors[-1]) / 2 for errors in found[:2])
    note = f"{torch.get_num_threads()} thread(s); ours with {BN_IMAGES:,} BatchNorm images, plain with all"
    what = f"barrier of {name}, {len(alphas)} α"
    yield compared(f"{what}, seconds", [took[0], took[2]], [took[1]] * 2, Goal(least=3), note, faster=True)
    yield Row(f"{what}, points apart", abs(ours - plain), Goal(most=0.3), note, ours=ours, reference=plain)


def trained(model: nn.Module, batches: Iterable[ImageBatch], start: State) -> State:
    """Train for the steps of the batches, from `start`; return a copy of the state."""
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
    for images_NCHW, labels_N in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images_NCHW), labels_N).backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def question(case: Case, device: torch.device, alphas: Sequence[float]) -> Question:
    """Ask about two random networks: the time does not depend on what they are. The images lie on the device."""
    torch.manual_seed(0)
    model, other = (case.build().to(device) for _ in range(2))
    bn, test = ([case.images(device, case.batch_size) for _ in range(case.steps)] for _ in range(2))

    def read(batches: list[ImageBatch]) -> Iterator[ImageBatch]:
        return ((normalize(images_NHWC, case.spec()), labels_N) for images_NHWC, labels_N in batches)

    states = copy.deepcopy(model.state_dict()), other.state_dict()
    model, images = model.to(memory_format=torch.channels_last), partial(read, bn)
    return Question(model, states, alphas, images, images, partial(read, test), (0.0, 0.0))


def barrier_on_device(world: World) -> Iterator[Row]:
    """Time eleven α of ResNet-50 both ways in turns, in seconds, with as many images for BatchNorm as for the test."""
    on_gpu = world.device.type == "cuda"
    case = Case("resnet50", 250, 224, 1000, steps=4, rounds=3) if on_gpu else Case("resnet8", 8, 16, 10, 2, 2)
    asked, found = question(case, world.device, ALPHAS), dict[str, list[float]]()

    def timed(name: str, way: Callable[[], list[float]]) -> float:
        return seconds(lambda: found.update({name: way()}))

    took = in_turns({way.__name__: partial(timed, way.__name__, way) for way in (asked.ours, asked.plain)}, case.rounds)
    # kernels may be chosen anew for each network: an image on a border between classes can fall on either side
    number = case.steps * case.batch_size
    apart = max(abs(x - y) for x, y in zip(found["ours"], found["plain"], strict=True)) / 100 * number
    if apart > max(2.0, 1e-3 * number):
        raise RuntimeError(f"the ways find different errors: {found}")
    yield compared("ours / plain", took["ours"], took["plain"], note=f"{number} + {number} images", faster=True)
