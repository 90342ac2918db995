"""Prove this build: train with the harness and with plain PyTorch, and compare every number.

    python tools/selfcheck.py                  AWS and LRR, about a minute on one core
    python tools/selfcheck.py --method aws     one of them, in half the time

The harness searches with ResNet-8 on scikit-learn's digits: a warm-up and two pruning levels. It measures the barrier
between the ticket and its copy with ψ_init, and trains the signed mask on another θ_init. Then
tools/selfcheck_reference.py does the same: about 110 lines of plain PyTorch that import nothing of the harness. Both
get the same θ_init, data order, crops and α. Both compute in float64, where two correct programs agree to 1e-13. In
float32 they drift apart within 40 steps.

The harness computes in torch's default dtype. This tool sets it to float64; nothing else should. Data and runs lie in a
temporary directory, the runs have keys of their own, and nothing is sent.

Exit code 0: equal to 1e-10. 1: a difference, with its stage and tensor. 2: no answer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
# With libopencv-dev installed, numba prefers TBB, and then FFCV's writer never exits.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")

from harness.cli.parser import parse_command  # noqa: E402


@dataclass(frozen=True)
class SelfCheck:
    """What is trained."""

    method: Literal["both", "aws", "lrr"] = "both"
    """How masks are found."""
    epochs: int = 2
    """Epochs of the warm-up and of each level. The final training has twice as many, and at least four."""
    width: int = 16
    """Channels of ResNet-8's first stage."""
    batch_size: int = 64
    """Images of an optimizer step."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Pruning methods to check."""
        return ("aws", "lrr") if self.method == "both" else (self.method,)

    @property
    def seconds(self) -> int:
        """Approximate duration on one core at the default width and batch size."""
        return 4 + len(self.methods) * (5 + 8 * self.epochs)

    def settings(self, where: Path) -> SearchConfig:
        """Return the settings, with data and runs below `where`."""
        return SearchConfig(
            data=DataConfig("digits", directory=where / "data", loader="memory"),
            model=ModelConfig("resnet8", width=self.width),
            optim=OptimConfig("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
            final=Schedule(max(4, 2 * self.epochs), "step"),  # two milestones need at least 4 epochs
            warmup_epochs=self.epochs,
            level_epochs=self.epochs,
            num_levels=2,
            global_batch_size=self.batch_size,
            init_seed=SEARCH_SEED,
            sgd_seed=SEARCH_SEED,
            checkpoint_every=0,
            runs=where / "runs",
            offline=True,
        )


if __name__ == "__main__":
    asked = parse_command(SelfCheck, description=__doc__)  # before the slow imports

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import harness  # noqa: E402
from harness.cli.errors import EXIT_STOPPED, interrupted  # noqa: E402
from harness.cli.resolve import resolve_initialisation  # noqa: E402
from harness.common.launched import launcher_number  # noqa: E402
from harness.common.logging import show_messages  # noqa: E402
from harness.common.seeds import SgdNoise  # noqa: E402
from harness.common.tables import print_table  # noqa: E402
from harness.config import ComparisonConfig, DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig  # noqa: E402
from harness.data.augment import crop_flips  # noqa: E402
from harness.data.prepare import prepare  # noqa: E402
from harness.data.spec import CropFlip  # noqa: E402
from harness.distributed.stop import StoppedError  # noqa: E402
from harness.experiment.comparison import compare_initial_norm  # noqa: E402
from harness.experiment.experiment import Experiment  # noqa: E402
from harness.runs.run import FinishedRun  # noqa: E402
from tools.selfcheck_reference import Draws, Purpose, Reference, Stage, Tensors  # noqa: E402

TOLERANCE = 1e-10
"""Largest allowed deviation, relative for values above 1 and absolute below. Masks and signs must be equal."""
EXACT = ("masks", "signs")
"""Quantities that must be equal."""
SEARCH_SEED, FINAL_SEED, BARRIER_SEED = 1, 2, 0
BARRIER = ComparisonConfig(num_alphas=5)


@dataclass
class Deviation:
    """Deviations of one quantity over all stages and tensors."""

    largest: float = -1.0
    where: str = ""
    """Stage and tensor of the largest deviation, or "" if it is 0."""
    numbers: int = 0
    """Number of compared elements."""
    beyond: list[str] = field(default_factory=list)
    """Stage and tensor of each deviation above the limit, in order of training."""


@contextmanager
def in_float64() -> Iterator[None]:
    """Set torch's default dtype to float64 and use one thread.

    Such small networks do not run faster on several threads.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


@contextmanager
def opened(asked: SelfCheck, where: Path) -> Iterator[Experiment]:
    """Prepare the digits and yield an experiment below `where`, in float64."""
    prepare("digits", where / "data")
    with in_float64(), harness.launch(asked.settings(where)) as experiment:
        yield experiment


def theta_init(experiment: Experiment, seed: int) -> Tensors:
    """Return the network's default initial parameters, but with random ψ.

    By default ψ = (1, 0) in every network. These values would hide a wrong ψ_init or a wrong sign of ψ.
    """
    params, generator = dict(experiment.theta_init(seed).params), np.random.default_rng(seed)
    for name in sorted(experiment.partition.norm):
        low, high = (0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)
        params[name] = torch.from_numpy(generator.uniform(low, high, tuple(params[name].shape)))
    return params


def by_harness(experiment: Experiment, method: str) -> Iterator[tuple[str, Stage]]:
    """Yield (name, stage) of each stage, computed by the harness.

    The stages are the levels, the barrier and the final training.
    """
    # Phase: search
    begun = []
    for seed in (SEARCH_SEED, FINAL_SEED):
        path = experiment.config.runs / f"theta_init_{seed}.safetensors"
        save_file(theta_init(experiment, seed) | experiment.theta_init(seed).buffers, path)
        begun.append(resolve_initialisation(experiment.world, experiment.store, str(path)))
    own = experiment.using(method, initialisation=begun[0])
    found = harness.search(own)
    yield from ((f"level {level}", stage_of(run)) for level, run in enumerate(found.levels))

    # Phase: barrier, then final training
    compared = compare_initial_norm(own, found.ticket, BARRIER)
    assert compared is not None
    errors = {"by α": compared.curve.error_percent, "barrier": compared.curve.barrier}
    yield "barrier", {"errors %": {name: torch.tensor(value) for name, value in errors.items()}}

    trial = harness.Trial("signed_mask", init_seed=FINAL_SEED, sgd_seed=FINAL_SEED, initialisation=begun[1])
    yield "final", stage_of(harness.final_training(own, trial, found.ticket))


def stage_of(run: FinishedRun) -> Stage:
    """Return the tensors and metrics of a finished run."""
    assert run.record is not None
    metrics: dict[str, list[float]] = {}
    for metric in run.record.metrics:
        metrics.setdefault(metric.name, []).append(metric.value)
    metrics.setdefault("test_error_percent_recorded_bn", metrics["test_error_percent"])
    losses = {"train": "train_loss", "test": "test_loss"}
    errors = {"train": "train_error_percent", "test": "test_error_percent"}
    errors["test, own statistics"] = "test_error_percent_recorded_bn"
    return {
        "weights": run.checkpoint.params,
        "BatchNorm": run.checkpoint.buffers,
        "masks": run.mask.tensors,
        "signs": run.signed_mask.signs,
        "losses": {name: torch.tensor(metrics[metric]) for name, metric in losses.items()},
        "errors %": {name: torch.tensor(metrics[metric]) for name, metric in errors.items()},
    }


def by_reference(experiment: Experiment, method: str) -> Iterator[tuple[str, Stage]]:
    """Yield (name, stage) as `by_harness` does, computed by the reference.

    The reference gets only settings, data and random numbers from the harness.
    """
    # Phase: data and random numbers
    config, spec = experiment.config, experiment.spec
    assert isinstance(spec.augmentation, CropFlip) and not spec.augmentation.flip
    padding, steps = spec.augmentation.padding, experiment.train_feed.steps_per_epoch
    home = config.data.directory / spec.name
    files = [load_file(home / f"{split}.safetensors") for split in ("train", "test")]
    train, test = ((file["images_NHWC"][..., 0], file["labels"]) for file in files)

    def draws(purpose: Purpose, epoch: int) -> Draws:
        seed = {"final": FINAL_SEED, "comparison": BARRIER_SEED}.get(str(purpose[0]), SEARCH_SEED)
        noise = SgdNoise(seed, purpose)
        order_N = noise.permutation(epoch, len(train[1]))
        top_N, left_N, _ = crop_flips(noise.key("augment", epoch), order_N, padding)
        return order_N, top_N, left_N, noise.alphas(epoch, steps)

    # Phase: reference
    reference = Reference(
        train=train,
        test=test,
        pixels=(spec.mean[0], spec.std[0]),
        padding=padding,
        draws=draws,
        sees_alpha=method == "aws",
        num_levels=config.num_levels,
        epochs=(config.level_epochs, config.final.epochs),
        alphas=BARRIER.alphas,
        batch_size=config.global_batch_size,
        sgd=(config.optim.lr, config.optim.momentum, config.optim.weight_decay),
    )
    yield from reference.stages(theta_init(experiment, SEARCH_SEED), theta_init(experiment, FINAL_SEED))


def compare(ours: dict[str, Stage], theirs: dict[str, Stage]) -> dict[str, Deviation]:
    """Compare all stages of the harness and the reference.

    Args:
        ours: {name of the stage: stage} of the harness.
        theirs: The same of the reference.

    Returns:
        The deviation of each quantity. It is infinite if one side lacks a tensor.
    """
    # A tensor counts for its quantity, such as weights or losses, over all stages.
    found: dict[str, Deviation] = {}
    for stage in theirs | ours:
        mine, other = ours.get(stage, {}), theirs.get(stage, {})
        for quantity in other | mine:
            deviation = found.setdefault(quantity, Deviation())
            first, second = mine.get(quantity, {}), other.get(quantity, {})
            for name in second | first:
                where = f"{stage}, {name}"
                distance = torch.inf
                if name in first and name in second:
                    distance = distance_of(first[name], second[name])
                    deviation.numbers += first[name].numel()
                if distance > deviation.largest:
                    deviation.largest, deviation.where = distance, where if distance else ""
                if distance > (0 if quantity in EXACT else TOLERANCE):
                    deviation.beyond.append(where)
    return found


def distance_of(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest |a − b| / max(1, |b|).

    Return infinity if sizes differ or a value is not finite.
    """
    if one.numel() != other.numel():
        return torch.inf
    one, other = one.double().flatten(), other.double().flatten()
    distance = float(((one - other).abs() / other.abs().clamp(min=1)).max())
    return distance if np.isfinite(distance) else torch.inf


def check(asked: SelfCheck, where: Path) -> dict[str, Deviation]:
    """Train with harness and reference and return the deviations.

    A line is printed for each stage.
    """
    sides: dict[str, dict[str, Stage]] = {"harness": {}, "reference": {}}
    began = time.perf_counter()
    with opened(asked, where) as experiment:
        print(f"harness {harness.__version__}, torch {torch.__version__}, {experiment.world}", flush=True)
        for method in asked.methods:
            for side, make in (("harness", by_harness), ("reference", by_reference)):
                for name, stage in make(experiment, method):
                    sides[side][f"{method} {name}"] = stage
                    points = float(stage["errors %"]["barrier" if name == "barrier" else "test"])
                    measured = f"{points:.1f} points" if name == "barrier" else f"test error {points:.1f} %"
                    print(f"{time.perf_counter() - began:5.1f} s  {method}  {side:9}  {name:7}  {measured}", flush=True)
    return compare(sides["harness"], sides["reference"])


def report(found: Mapping[str, Deviation]) -> int:
    """Print all deviations and the verdict; return the exit code."""
    # Phase: table
    rows = [
        {
            "quantity": name,
            "numbers": f"{deviation.numbers:,}",
            "largest deviation": f"{deviation.largest:.1e}",
            "allowed": f"{0 if name in EXACT else TOLERANCE:.0e}",
            "where": deviation.where,
            "": "DIFFERENT" if deviation.beyond else "equal",
        }
        for name, deviation in found.items()
    ]
    print()
    print_table(rows, numbers=("numbers", "largest deviation", "allowed"))
    print()

    # Phase: verdict
    wrong = {name: deviation.beyond for name, deviation in found.items() if deviation.beyond}
    for name, tensors in wrong.items():
        print(f"DIFFERENT {name}: {len(tensors)} tensors differ, the first one in {tensors[0]}")
    print(
        "NOT EQUAL: harness and reference compute different numbers"
        if wrong
        else "equal: both compute the same numbers"
    )
    return 1 if wrong else 0


def main(asked: SelfCheck) -> int:
    """Run the self-check and print the report; return the exit code."""
    show_messages("quiet")
    print(
        f"Training ResNet-8 on digits in float64 by {' and '.join(asked.methods)}, with the harness and with\n"
        f"tools/selfcheck_reference.py. This takes about {asked.seconds} seconds on one core and keeps no files.",
        flush=True,
    )
    try:
        if launcher_number("WORLD_SIZE", 1) > 1:
            raise ValueError("the self-check needs one process: run `python tools/selfcheck.py` without a launcher")
        with tempfile.TemporaryDirectory(prefix="selfcheck-") as where:
            found = check(asked, Path(where))
    except (ValueError, OSError, ImportError) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 2
    except StoppedError as error:  # by Ctrl-C during a training, which listens for signals
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        return interrupted()
    return report(found)


if __name__ == "__main__":
    sys.exit(main(asked))
