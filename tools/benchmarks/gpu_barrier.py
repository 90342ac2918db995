"""Time of a barrier of eleven points on ResNet-50 on a GPU: the harness's, all α in one data pass, and the plain way.

Random uint8 images lie on the device, so that no disk is timed; 10,000 of them for BatchNorm and 10,000 to test on.

* plain: for each α a new network, and every batch read and normalised anew;
* ours, `harness.analysis.barrier.barrier_curve`: batches read and normalised once, then one pass for each α;
* one pass: a network for each α, all of them on the device, and every batch given to all before the next is read. It
  reads data once however much there is of it, for eleven times the parameters.

All must find the same errors. What the networks are does not matter to their time: two random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.analysis.interpolate import interpolate, interpolate_into
from harness.data import DataSpec, normalize
from harness.models import build_model
from harness.training.batchnorm import batchnorm_layers
from harness.training.world import World
from tools.benchmarks.gpu_case import open_gpu_world, random_spec
from tools.benchmarks.row import Row
from tools.benchmarks.ways import Case, now, rate_row

CASES = (
    Case("resnet50", batch_size=250, image_size=224, num_classes=1000, steps=40, rounds=3),
    Case("resnet50_cifar", batch_size=250, image_size=32, num_classes=100, steps=40, rounds=3),
)
QUICK = Case("resnet8", batch_size=8, image_size=16, num_classes=10, steps=3, rounds=2)
State = Mapping[str, Tensor]


def rows(quick: bool) -> list[Row]:
    """Measure on the GPU; quick: a small network and three α, wherever it is."""
    cases = (QUICK,) if quick else CASES
    world = open_gpu_world(cases[0], quick)
    return [row for case in cases for row in _rows(case, world, (0.0, 0.5, 1.0) if quick else ALPHAS)]


@dataclass(frozen=True)
class Question:
    """Two networks, the points between them, and the images as they lie on the device."""

    spec: DataSpec
    model: nn.Module
    state_a: State
    state_b: State
    alphas: Sequence[float]
    bn_NHWC: list[Tensor]
    test_NHWC: list[Tensor]
    labels_N: list[Tensor]

    def read(self, images_NHWC: Tensor) -> Tensor:
        """Normalise one batch."""
        return normalize(images_NHWC, self.spec, True)

    @torch.inference_mode()
    def ours(self) -> list[float]:
        """The harness's own."""
        curve = barrier_curve(
            self.model,
            self.state_a,
            self.state_b,
            bn_batches=[self.read(images) for images in self.bn_NHWC],
            test_batches=[(self.read(images), y) for images, y in zip(self.test_NHWC, self.labels_N, strict=True)],
            alphas=self.alphas,
            recorded_error_percent=(0.0, 0.0),  # known from training, as in a comparison of two runs
        )
        return list(curve.error_percent)

    @torch.no_grad()
    def plain(self) -> list[float]:
        """What one writes first."""
        errors = []
        for alpha in self.alphas:
            model = copy.deepcopy(self.model)
            model.load_state_dict(interpolate(self.state_a, self.state_b, alpha))
            _forget_statistics(model)
            for images in self.bn_NHWC:
                model(self.read(images))
            model.eval()
            wrong = sum(
                int((model(self.read(images)).argmax(1) != labels).sum())
                for images, labels in zip(self.test_NHWC, self.labels_N, strict=True)
            )
            errors.append(self._percent(wrong))
        return errors

    @torch.inference_mode()
    def one_pass(self) -> list[float]:
        """Every batch goes through the networks of all α."""
        models = [copy.deepcopy(self.model) for _ in self.alphas]
        for model, alpha in zip(models, self.alphas, strict=True):
            interpolate_into(model.state_dict(), self.state_a, self.state_b, alpha)
            _forget_statistics(model)
        for images in self.bn_NHWC:
            images_NCHW = self.read(images)
            for model in models:
                model(images_NCHW)
        wrong = torch.zeros(len(models), dtype=torch.int64, device=self.labels_N[0].device)
        for model in models:
            model.eval()
        for images, labels in zip(self.test_NHWC, self.labels_N, strict=True):
            images_NCHW = self.read(images)
            wrong += torch.stack([(model(images_NCHW).argmax(1) != labels).sum() for model in models])
        return [self._percent(count) for count in wrong.tolist()]

    @property
    def num_images(self) -> int:
        """Test images; as many again give the BatchNorm statistics."""
        return sum(len(labels) for labels in self.labels_N)

    def _percent(self, wrong: int) -> float:
        return 100.0 * wrong / self.num_images


def _forget_statistics(model: nn.Module) -> None:
    model.train()
    for layer in batchnorm_layers(model):
        layer.reset_running_stats()
        layer.momentum = None


def question(case: Case, device: torch.device, alphas: Sequence[float]) -> Question:
    """Make two random networks, and images, on the device."""
    torch.manual_seed(0)
    model, other = (
        build_model(case.model, num_classes=case.num_classes, channels=3, image_size=case.image_size).to(device)
        for _ in range(2)
    )
    state_a, state_b = (
        {name: tensor.detach().clone() for name, tensor in network.state_dict().items()} for network in (model, other)
    )
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    bn_NHWC, test_NHWC = (
        [torch.randint(256, shape, dtype=torch.uint8).to(device) for _ in range(case.steps)] for _ in range(2)
    )
    labels_N = [torch.randint(case.num_classes, (case.batch_size,)).to(device) for _ in range(case.steps)]
    model = model.to(memory_format=torch.channels_last)
    return Question(random_spec(case, padding=0), model, state_a, state_b, alphas, bn_NHWC, test_NHWC, labels_N)


def _rows(case: Case, world: World, alphas: Sequence[float]) -> list[Row]:
    asked = question(case, world.device, alphas)
    ways: dict[str, Callable[[], list[float]]] = {
        "ours": asked.ours,
        "one pass": asked.one_pass,
        "plain": asked.plain,
    }
    errors = [way() for way in ways.values()]  # also warms up
    apart = max(abs(x - y) for one, other in pairwise(errors) for x, y in zip(one, other, strict=True))
    # kernels may be chosen anew for each network: an image on a border between classes can fall on either side
    if apart > 100.0 * max(2.0, 1e-3 * asked.num_images) / asked.num_images:
        raise RuntimeError(f"the ways find different errors: {errors}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(case.rounds):
        for name, way in ways.items():
            started = now(world.device)
            way()
            seconds[name].append(now(world.device) - started)
    rates = {name: [1 / value for value in values] for name, values in seconds.items()}
    mark = f"barrier of {case.model} at {case.image_size}², {len(alphas)} α [1/s]"
    note = f"{world.device_name}, {asked.num_images:,} images for BatchNorm and to test each, {apart:.3f} points apart"
    return [
        rate_row(f"ours / plain, {mark}", rates["ours"], rates["plain"], goal=1.0, note=note),
        rate_row(f"all α in one data pass / ours, {mark}", rates["one pass"], rates["ours"], goal=None),
    ]
