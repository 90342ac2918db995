"""Time of a barrier curve on Fashion-MNIST with ResNet-20, loading included, against the plain way.

The plain way is what one writes first: for every α a new network with the interpolated state, a whole pass over the
training set in training mode for BatchNorm (the same convention), then the test set, each read and normalised anew.
Both sides read from the in-memory loader, so that the difference is not the loader's. Ours goes before and after it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.analysis.interpolate import interpolate
from harness.common.seeds import SgdNoise
from harness.data import DataSource, open_data
from harness.data.prepare import prepare
from harness.models import build_model
from harness.training.feed import normalize
from tools.benchmarks.row import Row

DATA = "fashion_mnist"
BATCH, BN_IMAGES = 128, 10_000
MIN_SPEED_UP, MAX_DIFFERENCE_POINTS = 3.0, 0.3

State = Mapping[str, Tensor]


def rows(quick: bool) -> list[Row]:
    """Measure the barrier rows: ResNet-20 and eleven α (half an hour on one core); quick: ResNet-8 and three α."""
    return measure("resnet8", (0.0, 0.5, 1.0), 60) if quick else measure("resnet20", ALPHAS, 150)


def measure(name: str, alphas: Sequence[float], train_steps: int) -> list[Row]:
    """Train two networks for `train_steps` steps of 128 images each, and take their barrier both ways."""
    with tempfile.TemporaryDirectory() as directory:
        prepare(DATA, Path(directory), None)
        source = open_data(DATA, Path(directory), "memory")
        state_a, state_b = _two_trainings_of_one_start(name, source, train_steps)
        seconds, barriers = [], []
        for way in (_ours, _plain, _ours):
            start = time.perf_counter()
            barriers.append(way(name, Path(directory), state_a, state_b, alphas))
            seconds.append(time.perf_counter() - start)
    note = f"{torch.get_num_threads()} thread(s); ours with {BN_IMAGES:,} BatchNorm images, plain with all"
    what = f"{name}, {len(alphas)} α"
    return [
        _speed_row(f"barrier of {what}, seconds", [seconds[0], seconds[2]], seconds[1], note),
        _difference_row(f"barrier of {what}, points", barriers[0], barriers[1], note),
    ]


def _speed_row(name: str, ours: Sequence[float], plain: float, note: str) -> Row:
    ratios = [plain / mine for mine in ours]
    ratio = median(ratios)
    goal = f"≥ {MIN_SPEED_UP:g}× faster"
    return Row(name, median(ours), plain, ratio, goal, ratio >= MIN_SPEED_UP, min(ratios), max(ratios), note)


def _difference_row(name: str, ours: float, plain: float, note: str) -> Row:
    difference = abs(ours - plain)
    goal = f"within {MAX_DIFFERENCE_POINTS} points"
    reached = difference <= MAX_DIFFERENCE_POINTS
    return Row(name, ours, plain, difference, goal, reached, difference, difference, f"difference; {note}")


def _ours(name: str, directory: Path, state_a: State, state_b: State, alphas: Sequence[float]) -> float:
    source = open_data(DATA, directory, "memory")
    train = source.train_loader(global_batch_size=BATCH)
    batches = train.epoch(SgdNoise(0, ("barrier",)), 0, num_steps=-(-BN_IMAGES // BATCH))
    test = source.test_loader(batch_size=BATCH)
    curve = barrier_curve(
        _network(name, source),
        state_a,
        state_b,
        bn_batches=[normalize(batch.images_NHWC, source.spec, False) for batch in batches],
        test_batches=[(normalize(batch.images_NHWC, source.spec, False), batch.labels_N) for batch in test],
        alphas=alphas,
    )
    return curve.barrier


def _plain(name: str, directory: Path, state_a: State, state_b: State, alphas: Sequence[float]) -> float:
    source = open_data(DATA, directory, "memory")
    train, test = source.train_loader(global_batch_size=BATCH), source.test_loader(batch_size=BATCH)
    errors = []
    for alpha in alphas:
        model = _network(name, source)
        model.load_state_dict(interpolate(state_a, state_b, alpha))
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            model.train()
            for batch in train.epoch(SgdNoise(0, ("barrier",)), 0):
                model(normalize(batch.images_NHWC, source.spec, False))
            model.eval()
            wrong = [
                int((model(normalize(batch.images_NHWC, source.spec, False)).argmax(1) != batch.labels_N).sum())
                for batch in test
            ]
        errors.append(100 * sum(wrong) / source.num_test)
    return max(errors) - (errors[0] + errors[-1]) / 2


def _network(name: str, source: DataSource) -> nn.Module:
    spec = source.spec
    return build_model(name, num_classes=spec.num_classes, channels=spec.channels, image_size=spec.image_size)


def _two_trainings_of_one_start(name: str, source: DataSource, steps: int) -> tuple[State, State]:
    """Two networks under different noise from one warm start, so that there is a barrier to measure."""
    torch.manual_seed(0)
    model = _network(name, source)
    _train(model, source, SgdNoise(0, ("warm-up",)), steps // 3)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    ends = []
    for sgd_seed in (1, 2):
        model.load_state_dict(start)
        _train(model, source, SgdNoise(sgd_seed, ("final",)), steps)
        ends.append({key: tensor.clone() for key, tensor in model.state_dict().items()})
    return ends[0], ends[1]


def _train(model: nn.Module, source: DataSource, noise: SgdNoise, steps: int) -> None:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
    for batch in source.train_loader(global_batch_size=BATCH).epoch(noise, 0, num_steps=steps):
        optimizer.zero_grad()
        F.cross_entropy(model(normalize(batch.images_NHWC, source.spec, False)), batch.labels_N).backward()
        optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ResNet-8 and three α")
    for row in rows(parser.parse_args().quick):
        print(json.dumps(asdict(row), ensure_ascii=False))
