"""Measure pruning, signed-mask files, the overhead of a level, and `verify`."""

from __future__ import annotations

import contextlib
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, custom_from_mask, global_unstructured, remove

import harness.cli.launch  # noqa: F401  # imports all modules that a search calls, so that they can be patched
from harness.lineage import proof
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask, SignedMask
from harness.models import build_model, partition_of
from harness.pruning import prune as our_prune
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import evaluate
from harness.training.loop import train
from tools.benchmarks.measure import ROOT, Goal, Row, compared, in_turns, seconds

ONE_EPOCH = ("--data.loader", "memory", "--warmup-epochs", "1", "--level-epochs", "1", "--num-levels")
FRACTION, SLACK_BYTES = 0.2, 64 * 1024


def run(directory: str, *words: str) -> None:
    """Run a script of this repository in a directory.

    Raise RuntimeError with its stderr if it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])


@contextlib.contextmanager
def searched(levels: int) -> Iterator[str]:
    """Run a search with ResNet-50 and yield its directory.

    Networks, masks and files have their full size. A level is a single step on 8×8 digits.
    """
    with tempfile.TemporaryDirectory() as directory:
        run(directory, str(ROOT / "tools/prepare_data.py"), "digits", "--out", "data")
        words = [*ONE_EPOCH, str(levels), "--model.name", "resnet50", "--global-batch-size", "1024", "--offline"]
        run(directory, str(ROOT / "recipes/aws_digits.py"), *words)
        yield directory


def verify(quick: bool) -> Iterator[Row]:
    """Time `verify` on a ResNet-50 search with ten levels in local storage."""
    levels, found = 1 if quick else 10, list[proof.Findings]()
    with searched(levels) as directory:
        store = open_store(Path(directory, "runs"), offline=True)
        took = seconds(lambda: found.append(proof.verify(store)))
    if found[0].problems:
        raise RuntimeError(str(found[0].problems))
    note = f"{sum(found[0].checked.values())} checks, {found[0].num_bytes / 1e9:.2f} GB hashed"
    yield Row(f"verify a search, ResNet-50, {levels} levels, local [s]", took, Goal(most=60), note)


def reload(quick: bool) -> Iterator[Row]:
    """Time `load_signed_mask` for ResNet-50 from a SQLite store without local runs.

    The value is the first load or the median, whichever is longer.
    """
    with searched(1 if quick else 10) as directory:
        uri, nowhere = f"sqlite:///{directory}/mlflow.db", Path(directory, "none")
        store = open_store(Path(directory, "runs"), uri, "benchmark")
        run_id = store.deliver(max(store.local.directory.glob("level-*"), key=os.path.getmtime))
        open_store(nowhere, uri).run_id_of("0" * 64)
        took = [seconds(lambda: load_signed_mask(run_id, uri, nowhere)) for _ in range(3 if quick else 15)]
    note = f"{len(took)} loads, the first {took[0]:.3f} s; the value is the larger of the first and the median"
    name, value = "load_signed_mask(run_id), ResNet-50, local store [s]", max(took[0], median(took))
    yield Row(name, value, Goal(most=0.3), note, (min(took), max(took)))


def level_overhead(quick: bool) -> Iterator[Row]:
    """Measure the overhead of a level relative to its wall time.

    Levels have one epoch. Overhead is all time outside of training, evaluation and BatchNorm re-estimation. Logging
    between epochs counts as overhead, although it is called inside training.
    """
    # Phase: timers around the functions of a level
    data = "digits" if quick else "fashion_mnist"
    begun, spent = list[float](), dict.fromkeys(("work", "logging", "committing", "delivery"), 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if "on_epoch" in kwargs:
                kwargs["on_epoch"] = timed("logging", kwargs["on_epoch"])
            started = time.perf_counter()
            found = function(*args, **kwargs)
            if begun:
                spent[part] += time.perf_counter() - started
            elif part == "committing":
                begun.append(time.perf_counter())
            return found

        return call

    # Phase: data, and one delivery in advance, because the first one imports MLflow and creates the database
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        run(directory, str(ROOT / "tools/prepare_data.py"), data, "--out", "data")
        enter, uri = stack.enter_context, f"sqlite:///{directory}/mlflow.db"
        enter(contextlib.chdir(directory))
        enter(patch.object(sys, "argv", [f"aws_{data}.py", *ONE_EPOCH, "1", "--model.name", "resnet20"]))
        enter(patch.dict(os.environ, MLFLOW_TRACKING_URI=uri))
        nodes, first = LocalNodes(Path(directory, "before")), LineageRecord("0" * 64, "level", "before")
        nodes.commit(first, lambda path: None)
        open_store(nodes.directory, uri).deliver(nodes.path(first))

        # Phase: search with the timers
        enter(patch.object(LocalNodes, "commit", timed("committing", LocalNodes.commit)))
        enter(patch.object(LineageStore, "deliver", timed("delivery", LineageStore.deliver)))
        for module in [module for name, module in sys.modules.items() if name.startswith("harness.")]:
            for name, value in list(vars(module).items()):
                if value in (train, evaluate, reestimate_batchnorm):
                    enter(patch.object(module, name, timed("work", value)))
        runpy.run_path(str(ROOT / f"recipes/aws_{data}.py"), run_name="__main__")
        wall = time.perf_counter() - begun[0]

    # Phase: overhead; delivery counts in full, although the next level trains at the same time
    overhead = wall - spent["work"] + spent["logging"] + spent["delivery"]
    note = ", ".join(f"{part} {took:.3f} s" for part, took in spent.items()) + f" of {wall:.1f} s for two levels"
    name = f"overhead / wall time of a level, {data}, ResNet-20, 1 epoch [s]"
    yield Row(name, overhead / wall, Goal(most=0.02), note, ours=overhead / 2, reference=wall / 2)


def levels(quick: bool) -> Iterator[Row]:
    """Compare a search with one-epoch levels, start-up included, with one like the paper's published scripts.

    Both train MobileNetV2 on random images of 32×32, from an empty directory, as one process on one core.
    """
    num_train, num_test, rounds = (256, 64, 1) if quick else (2560, 512, 2)
    search = ["--network", "mobilenet_v2_cifar", *ONE_EPOCH, "2", "--offline", "--data.directory"]
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}

    # Phase: random images in CIFAR-100's own format
    with tempfile.TemporaryDirectory() as directory, on_one_core():
        data, source, draw = Path(directory, "data"), Path(directory, "source"), np.random.default_rng(0)
        source.mkdir()
        for name, number in (("train", num_train), ("test", num_test)):
            records = draw.integers(256, size=(number, 2 + 3 * 32 * 32), dtype=np.uint8)
            records[:, 1] %= 100
            records.tofile(source / f"{name}.bin")
        words = ["cifar100", "--source", str(source), "--out", str(data), "--allow-missing-classes"]
        run(directory, str(ROOT / "tools/prepare_data.py"), *words)

        # Phase: whole launches, in turns
        ways = {
            "ours": [str(ROOT / "recipes/aws_cifar100.py"), *search, str(data)],
            "theirs": [str(ROOT / "tools/benchmarks/published.py"), str(data / "cifar100"), "--levels", "2"],
        }
        for turn in range(rounds):
            for name in sorted(ways, reverse=bool(turn % 2)):
                with tempfile.TemporaryDirectory() as empty:
                    before = processor_seconds()
                    took = seconds(lambda: run(empty, *ways[name]))  # noqa: B023
                    taken[name].append((took, processor_seconds() - before))
    (ours, busy), (theirs, their_busy) = (zip(*pairs, strict=True) for pairs in taken.values())
    note = (
        f"{num_train:,} and {num_test} images, 1 core; processor time {median(busy):.1f} / {median(their_busy):.1f} s"
    )
    name = "search of 3 one-epoch levels / published loop, MobileNetV2 [s]"
    yield compared(name, ours, theirs, Goal(most=1), note)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Bind this process and those that it starts to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def processor_seconds() -> float:
    """Return the processor time of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resnet50() -> tuple[nn.Module, dict[str, Tensor], Mask, Mask]:
    """Return (new network, its parameters, dense mask, mask of density 0.1)."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    dense = Mask.dense(params, partition_of("resnet50", model).prunable)
    return model, params, dense, our_prune(params, dense, 0.9)


def prune(quick: bool) -> Iterator[Row]:
    """Compare `prune` with torch.nn.utils.prune.global_unstructured.

    Only the calls are timed, without their setup. Both results are checked to be exact.
    """
    model, params, *masks = resnet50()
    names, kept = sorted(masks[0].tensors), dict[str, Mask]()
    places = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in names]

    def ours() -> float:
        return seconds(lambda: kept.update(ours=our_prune(params, mask, FRACTION)))

    def theirs() -> float:
        if mask.num_remaining < mask.numel:
            for name, place in zip(names, places, strict=True):
                custom_from_mask(*place, mask.tensors[name])
        options = {"pruning_method": L1Unstructured, "amount": mask.num_remaining - kept["ours"].num_remaining}
        took = seconds(lambda: global_unstructured(places, **options))
        kept["theirs"] = Mask({name: model.get_buffer(f"{name}_mask").bool() for name in names})
        for place in places:
            remove(*place)
        model.load_state_dict(params, strict=False)
        return took

    # Measure at both densities; `ours` and `theirs` read the loop variable.
    for what, mask in zip(("dense", "at density 0.1"), masks, strict=True):
        timed = in_turns({"ours": ours, "theirs": theirs}, 1 if quick else 15)
        for found in kept.values():
            require_exact(params, mask, found)
        note = f"{mask.numel:,} weights, {kept['ours'].num_remaining:,} kept, exact"
        name = f"prune ResNet-50 {what} / global_unstructured [s]"
        yield compared(name, timed["ours"], timed["theirs"], Goal(most=1), note)


def require_exact(params: dict[str, Tensor], before: Mask, after: Mask) -> None:
    """Raise RuntimeError unless `after` keeps exactly the largest weights.

    It must keep the required number of the weights that `before` keeps.
    """
    live = torch.cat([params[name][was].abs() for name, was in before.tensors.items()])
    kept = torch.cat([after.tensors[name][was] for name, was in before.tensors.items()])
    right_count = after.num_remaining == int(kept.sum()) == int((1 - FRACTION) * before.num_remaining)
    if not right_count or live[kept].min() < live[~kept].max():
        raise RuntimeError(f"pruning is not exact: {after.num_remaining:,} of {before.num_remaining:,} are kept")


def mask_size(quick: bool) -> Iterator[Row]:
    """Compare the size of a signed mask at density 0.1 with its limit.

    The limit is one bit for each parameter, another bit for each parameter that is not pruned, and 64 KiB.
    """
    model, fresh, _, mask = resnet50()  # its biases are exactly zero, so the file must list them as having no sign
    trained = {name: param + 1e-3 * torch.randn_like(param) for name, param in fresh.items()}
    for what, params in (("trained", trained), ("fresh", fresh)):
        signed = SignedMask.of(params, mask, partition_of("resnet50", model).norm)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "signed_mask.safetensors"
            signed.save(path, {"level": 10, "density": signed.density})
            size = path.stat().st_size
            if SignedMask.load(path).agreement(signed) != 1.0:
                raise RuntimeError("the file does not give the signed mask back")
        number = sum(sign.numel() for sign in signed.signs.values())
        allowed = (2 * number - mask.numel + mask.num_remaining) / 8 + SLACK_BYTES
        note = f"{number:,} parameters, {signed.num_zero_signs:,} of the kept exactly zero"
        yield compared(f"signed mask of ResNet-50, density 0.1, {what} [bytes]", [size], [allowed], Goal(most=1), note)
