"""Test waits outside training steps: evaluation, BatchNorm statistics, barriers, ends of epochs, and loaders.

Their number must not grow with the number of layers or batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

from harness.analysis.barrier import barrier_curve
from harness.common.seeds import SgdNoise
from harness.config import Schedule
from harness.data.loaders import EvalLoader, TrainLoader, TrainOrder
from harness.data.memory_loader import memory_readers
from harness.data.spec import CropFlip, DataSpec, RawSource, ZoomFlip
from harness.experiment.final import Trial, final_training
from harness.models import build_model
from harness.training.batchnorm import batchnorm_layers, reestimate_batchnorm
from harness.training.evaluate import evaluate
from tests.gpu import story
from tests.simulated_cuda.label import DEVICE, Record, Wait, listing
from tests.training.small_training import open_world


def waits_of(record: Record, work: Callable[[], object]) -> list[Wait]:
    """Run a function and return its waits."""
    record.clear()
    work()
    return list(record.waits)


def more(many: list[Wait], few: list[Wait]) -> list[Wait]:
    """Return the waits of `many` that are not in `few`."""
    counts = Counter(many)
    counts.subtract(few)
    return list(counts.elements())


def batches(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(4, 3, 8, 8, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE))] * number


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", num_classes=10, channels=3, image_size=8, width=2).to(DEVICE)


@pytest.mark.parametrize("convention", ["cumulative", "ema"])
def test_batchnorm_reestimation_never_waits(convention, cuda):
    model, images = network(), [images for images, _ in batches(3)]
    assert len(batchnorm_layers(model)) > 3
    waits = waits_of(cuda, lambda: reestimate_batchnorm(model, images, convention))
    assert not waits, listing(waits)


def test_an_evaluation_waits_only_at_its_end(cuda):
    model = network()
    with contextmanager(open_world)("no") as world:
        few, many = (waits_of(cuda, lambda n=n: evaluate(model, batches(n), world, num_images=4 * n)) for n in (1, 4))
    assert not more(many, few), listing(more(many, few))
    assert len(many) == 1, listing(many)


def test_a_barrier_waits_at_most_once_for_each_alpha(cuda):
    a, b = ({name: tensor.cpu() for name, tensor in network().state_dict().items()} for _ in range(2))
    model = network()

    def curve(num_batches: int, num_alphas: int) -> list[Wait]:
        alphas = [index / (num_alphas - 1) for index in range(num_alphas)]
        bn, test = [images for images, _ in batches(num_batches)], batches(num_batches)
        return waits_of(cuda, lambda: barrier_curve(model, a, b, bn_batches=bn, test_batches=test, alphas=alphas))

    few, longer, finer = curve(1, 3), curve(4, 3), curve(1, 6)
    assert not more(longer, few), listing(more(longer, few))
    assert len(more(finer, few)) <= 3, listing(more(finer, few))


def test_the_end_of_an_epoch_copies_no_weights(cuda, tmp_path):
    """Check that the end of an epoch waits exactly once, besides its last meeting.

    It waits for the number of flipped signs. More layers cause no further waits.
    """
    trained = []
    for epochs in (1, 4):
        settings = story.config(tmp_path, final=Schedule(epochs, "constant"), num_levels=1, warmup_epochs=0)
        with story.opened(settings, "alone") as experiment:
            trial = Trial("dense", init_seed=2, sgd_seed=1)
            waits = waits_of(cuda, lambda e=experiment, t=trial: final_training(e, t, None))
            trained.append([wait for wait in waits if "_Meeting.hold" not in wait.callers])
    grown = more(trained[1], trained[0])
    assert {wait.operation for wait in grown} == {"item"}, listing(grown)
    assert len(grown) == 3, listing(grown)


@pytest.mark.parametrize(
    "augmentation", [CropFlip(padding=1, flip=True), ZoomFlip((0.3, 1.0), (0.75, 1.33), flip=True)]
)
@pytest.mark.parametrize("augment", [True, False])
def test_the_memory_loader_copies_an_epochs_draws_without_waiting(augmentation, augment, cuda, tmp_path):
    story.make_up_data(tmp_path)
    spec = DataSpec("digits", 10, 1, 8, (0.3,), (0.4,), augmentation, RawSource(default="made up"))
    paths = {split: tmp_path / "digits" / f"{split}.safetensors" for split in ("train", "test")}
    readers = [memory_readers(spec, paths)(split, None, DEVICE) for split in ("train", "test")]
    train = TrainLoader(readers[0], TrainOrder(readers[0].num_samples, global_batch_size=16, rank=0, world_size=1))
    test = EvalLoader(readers[1], range(readers[1].num_samples), batch_size=16)
    waits = waits_of(cuda, lambda: list(train.epoch(SgdNoise(1, ("final",)), 0, augment=augment)))
    assert not waits, listing(waits)
    waits = waits_of(cuda, lambda: [batch.labels_N for batch in test])
    assert not waits, listing(waits)
