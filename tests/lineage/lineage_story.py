"""Commit a small synthetic search with two final trainings and a comparison."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from harness.checkpoint import Checkpoint
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask, SignedMask

START_MS = 1_760_000_000_000


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def copied_store(empty: Path, where: Path) -> LineageStore:
    """Return a store in `where` with a copy of an empty database."""
    shutil.copy(empty, where / "mlflow.db")
    return open_store(where / "runs", f"sqlite:///{where / 'mlflow.db'}", "test")


def signed_mask(seed: int) -> SignedMask:
    generator = torch.Generator().manual_seed(seed)
    params = {
        "conv.weight": torch.randn(8, 4, 3, 3, generator=generator),
        "fc.bias": torch.randn(5, generator=generator),
    }
    mask = Mask({"conv.weight": torch.rand(8, 4, 3, 3, generator=generator) < 0.5})
    mask.apply_(params)
    return SignedMask.of(params, mask)


def checkpoint(level: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(level)
    params = {
        "conv.weight": torch.randn(8, 4, 3, 3, generator=generator),
        "fc.bias": torch.randn(5, generator=generator),
    }
    return Checkpoint(params=params, buffers={}, level=level, epochs=3, level_digest=key_of(f"level {level}"))


def _metrics(start_ms: int, error: float, density: float) -> tuple[Metric, ...]:
    points = [Metric("train_loss", 1 / (epoch + 1), epoch, start_ms + 1000 * epoch) for epoch in range(3)]
    last = {"test_error_percent": error, "density": density}
    return (*points, *(Metric(name, value, 2, start_ms + 3000) for name, value in last.items()))


def network_files(level: int) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        checkpoint(level).save(directory / "checkpoint.safetensors")
        signed_mask(level).save(directory / "signed_mask.safetensors", {"level": level})

    return write


def commit_story(nodes: LocalNodes, levels: int = 3) -> dict[str, Path]:
    """Commit a search, two final trainings and their comparison.

    The trainings are of the last ticket, kind `signed_mask`, and of the dense network.

    Returns:
        The directory of each local run by its short name: `search`, `level 0`, …, `signed_mask`, `dense`, `lmc`.
    """
    seeds = {"init_seed": "1", "sgd_seed": "1", "data": "digits", "data_digest": key_of("digits"), "model": "resnet20"}
    paths: dict[str, Path] = {}

    def commit(name: str, record: LineageRecord, write: Callable[[Path], None]) -> None:
        nodes.commit(record, write)
        found = nodes.find(record.key)
        assert found is not None
        paths[name] = found

    def node(name: str, kind: str, title: str, number: int, **rest: object) -> LineageRecord:
        start = START_MS + 10_000 * number
        return LineageRecord(
            key_of(name), kind, title, started_ms=start, finished_ms=start + 9_000, code={"commit": "c0ffee"}, **rest
        )

    # Phase: the search and its levels, each level pruned from the one before
    root = node(
        "search", "search", "aws resnet20 digits s1", 0, tags={"method": "aws", **seeds}, config={"levels": levels}
    )
    commit("search", root, lambda directory: checkpoint(99).save(directory / "theta_init.safetensors"))
    for level in range(levels):
        before = f"level {level - 1}" if level else "search"
        density = 0.8**level
        record = node(
            f"level {level}",
            "level",
            f"aws resnet20 L{level:02d} d{density:.3f}",
            1 + level,
            parents=(Parent(key_of(before), "pruned-from" if level else "initialised-from"),),
            nested_under=root.key,
            tags={"method": "aws", "level": f"{level:02d}", "density": f"{density:.6f}", **seeds},
            metrics=_metrics(START_MS + 10_000 * (1 + level), 4.0 + level, density),
            config={"optim": {"lr": 0.1, "betas": [0.9, 0.999]}, "level": level},
        )
        commit(f"level {level}", record, network_files(level))
    # Phase: final trainings of the last ticket and of the dense network
    ticket = key_of(f"level {levels - 1}")
    final = {"method": "aws", "level": f"{levels - 1:02d}", **seeds}
    for number, (name, parents) in enumerate(
        (("signed_mask", (Parent(ticket, "masked-by"),)), ("dense", ())), start=levels + 1
    ):
        record = node(
            name,
            "training",
            f"{name} resnet20 s1",
            number,
            parents=parents,
            tags={**final, "kind_of_training": name},
            metrics=_metrics(START_MS + 10_000 * number, 3.0, 1.0 if name == "dense" else 0.8 ** (levels - 1)),
        )
        commit(name, record, network_files(10 + number))
    # Phase: a comparison of both final trainings
    compared = (Parent(key_of("signed_mask"), "compared"), Parent(key_of("dense"), "compared"))
    record = node("lmc", "analysis", "lmc signed_mask dense", levels + 3, parents=compared, tags={"method": "aws"})

    def curve(directory: Path) -> None:
        (directory / "curve.json").write_text('{"barrier": 1.0}')
        (directory / "figures").mkdir()
        (directory / "figures" / "curve.svg").write_text("<svg/>")

    commit("lmc", record, curve)
    return paths
