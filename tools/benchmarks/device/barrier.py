"""A barrier of eleven points on ResNet-50: the harness's against the plain way.

Random uint8 images lie on the device, so that no disk is timed: the same number for BatchNorm and to test on.

* plain: for each α a new network, and every batch read and normalised anew;
* ours, `harness.analysis.barrier.barrier_curve`: batches read and normalised once, then one pass for each α.

Both must find the same errors. The time does not depend on what the networks are: two random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.analysis.interpolate import interpolate
from harness.data import DataSpec
from harness.distributed.world import World
from harness.models import build_model
from harness.training.batchnorm import batchnorm_layers
from harness.training.feed import normalize
from tools.benchmarks.device.feeds import random_spec
from tools.benchmarks.device.parts import Finding
from tools.benchmarks.device.ways import Case, now

State = Mapping[str, Tensor]
ON_GPU = Case("resnet50", batch_size=250, image_size=224, num_classes=1000, steps=4, rounds=3)
ON_CPU = Case("resnet8", batch_size=8, image_size=16, num_classes=10, steps=2, rounds=2)


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
        """Return the errors by the harness's own way."""
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
        """Return the errors by the way that one writes first."""
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
            errors.append(100.0 * wrong / self.num_images)
        return errors

    @property
    def num_images(self) -> int:
        """Test images; as many again give the BatchNorm statistics."""
        return sum(len(labels) for labels in self.labels_N)


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
        [torch.randint(256, shape, dtype=torch.uint8, device=device) for _ in range(case.steps)] for _ in range(2)
    )
    labels_N = [torch.randint(case.num_classes, (case.batch_size,), device=device) for _ in range(case.steps)]
    model = model.to(memory_format=torch.channels_last)
    return Question(random_spec(case), model, state_a, state_b, alphas, bn_NHWC, test_NHWC, labels_N)


def barrier(world: World) -> Iterator[Finding]:
    """Time both ways in turns."""
    case = ON_GPU if world.device.type == "cuda" else ON_CPU
    asked = question(case, world.device, ALPHAS)
    ways, found = {"ours": asked.ours, "plain": asked.plain}, {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(case.rounds + 1):
        for name in sorted(ways, reverse=bool(number % 2)):
            started = now(world.device)
            found[name] = ways[name]()
            if number > 0:  # the first round warms up
                seconds[name].append(now(world.device) - started)
    apart = max(abs(x - y) for x, y in zip(found["ours"], found["plain"], strict=True)) / 100 * asked.num_images
    # kernels may be chosen anew for each network: an image on a border between classes can fall on either side
    if apart > max(2.0, 1e-3 * asked.num_images):
        raise RuntimeError(f"the ways find different errors: {found}")
    ours, plain = median(seconds["ours"]), median(seconds["plain"])
    ratio = median(theirs / mine for mine, theirs in zip(seconds["ours"], seconds["plain"], strict=True))
    yield Finding(
        f"{case.model}, {asked.num_images} + {asked.num_images} images: ours {ours:.2f} s, plain {plain:.2f} s, "
        f"ours {ratio:.2f} × as fast",
        {"ours [s]": ours, "plain [s]": plain, "ours / plain": ratio},
    )
