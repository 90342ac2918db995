"""Train with the harness and with plain PyTorch, and compare every number (`tickets selfcheck`).

The harness computes in torch's default dtype. This module sets it to float64; nothing else should. The reference gets
settings, data and random numbers from here, and imports nothing of the harness.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import harness
from harness.cli.errors import EXIT_STOPPED, interrupted
from harness.cli.resolve import resolve_initialisation
from harness.common.launched import launcher_number
from harness.common.logging import show_messages
from harness.common.optional import require
from harness.common.program import command, in_clone
from harness.common.seeds import SgdNoise
from harness.common.tables import print_table
from harness.config import ComparisonConfig
from harness.data.augment import crop_flips
from harness.data.prepare import prepare
from harness.data.spec import CropFlip
from harness.distributed.stop import StoppedError
from harness.experiment.comparison import compare_initial_norm
from harness.experiment.experiment import Experiment
from harness.runs.run import FinishedRun
from recipes.checks.selfcheck_reference import Draws, Purpose, Reference, Stage, Tensors
from recipes.checks.settings import SEARCH_SEED, SelfCheck

REFERENCE = "recipes/checks/selfcheck_reference.py"

TOLERANCE = 1e-10
"""Largest allowed deviation, relative for values above 1 and absolute below. Masks and signs must be equal."""
EXACT = ("masks", "signs")
"""Quantities that must be equal."""
FINAL_SEED, BARRIER_SEED = 2, 0
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


def run(asked: SelfCheck) -> int:
    """Run the self-check and print the report; return the exit code."""
    show_messages("quiet")
    try:
        if launcher_number("WORLD_SIZE", 1) > 1:
            raise ValueError(f"the self-check needs one process: run `{command('selfcheck')}` without a launcher")
        for library in ("sklearn", "matplotlib"):
            require(library, "the self-check")
        print(
            f"Training ResNet-8 on digits in float64 by {' and '.join(asked.methods)}, with the harness and with\n"
            f"{in_clone(REFERENCE)}. This takes about {asked.seconds} seconds on one core and keeps no files.",
            flush=True,
        )
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
