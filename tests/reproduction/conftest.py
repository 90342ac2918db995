"""Fixtures: a plan of two trials, and its runs with synthetic errors."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from harness.analysis.barrier import BarrierCurve
from harness.checkpoint import Checkpoint
from harness.common.tensors import save_correct
from harness.config import (
    AlphaDistribution,
    ComparisonConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Schedule,
    SearchConfig,
    to_json,
)
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.masks import Mask, SignedMask
from harness.models import build_model, partition_of
from harness.reproduction.figure import Curve, figure_named
from harness.reproduction.figure_plan import FigurePlan, Pair, Scale, Training


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def made_up_error(training: Training) -> float:
    """Return a test error in % that identifies the training."""
    if training.kind == "level":
        return 50.0 + training.level
    kinds = {"dense": 5.0, "retrain": 6.0, "signed_mask": 7.0, "signed_mask_norm": 8.0, "mask": 9.0}
    kinds |= {"random_signs": 10.0, "random_mask": 11.0}
    method = 0.5 if training.curve is not None and training.curve.method == "lrr" else 0.0
    method += {"network": 0.0, "constant": 0.6}[training.initialisation]
    longer = 0.02 * (training.epochs or 0)
    return kinds[training.kind] + method + 0.1 * training.level + 0.01 * training.trial**2 - longer


def signs_of(level: int) -> SignedMask:
    """Return the signs of eight kept weights.

    The first `level` of them are negative.
    """
    weights = torch.ones(8)
    weights[:level] = -1
    return SignedMask.of({"w": weights}, Mask({"w": torch.ones(8, dtype=torch.bool)}))


def network_of(level: int | None) -> Checkpoint:
    """Return a resnet8 with known norm parameters.

    Args:
        level: Scales are 1 − level/10 and biases 0.01; None stands for θ_init, with 1 and 0.
    """
    model = build_model("resnet8", num_classes=10, channels=1, image_size=8)
    network = Checkpoint.of(model, level=level or 0, epochs=0, level_digest="")
    norm = partition_of("resnet8", model).norm
    scale = 1.0 if level is None else 1 - level / 10
    values = {name: scale if name.endswith("weight") else 0.0 if level is None else 0.01 for name in norm}
    return replace(
        network, params=network.params | {n: torch.full_like(network.params[n], v) for n, v in values.items()}
    )


class MadeUp:
    """Commit the runs of a plan with synthetic results."""

    def __init__(self, directory: Path, plan: FigurePlan) -> None:
        self.nodes, self.plan, self.error_of = LocalNodes(directory), plan, made_up_error
        self.minutes, self.settings_there = 0, "7e4e"
        self.stores_right = False
        config = plan.scale.config
        self.tags = {"data": config.data.name, "model": config.model.name, "settings": "5e77"}
        self.config = {"search": to_json(config), "data": {"num_train": 1_297, "num_test": 500}}

    def commit(
        self,
        name: str,
        kind: str,
        tags: dict[str, str],
        files: dict[str, str | SignedMask | Checkpoint | torch.Tensor] | None = None,
        **rest,
    ) -> str:
        def write(directory: Path) -> None:
            for file, content in (files or {}).items():
                if isinstance(content, SignedMask):
                    content.save(directory / file, {"of": name})
                elif isinstance(content, Checkpoint):
                    content.save(directory / file)
                elif isinstance(content, torch.Tensor):
                    save_correct(directory / file, {"test": content})
                else:
                    (directory / file).write_text(content)

        config = self.config | rest.pop("config", {})
        rest |= {"code": {"commit": "c0ffee", "dirty": "false"}, "finished_ms": self.minutes * 60_000}
        record = LineageRecord(key_of(name), kind, name, tags=self.tags | tags, config=config, **rest)
        self.nodes.commit(record, write)
        return record.key

    def levels(self, method: str, seed: int, deepest: int, alpha: AlphaDistribution = "uniform") -> None:
        curve = Curve(method, "level", alpha=alpha)
        seeds = {"method": method, "init_seed": str(seed), "sgd_seed": str(seed)}
        if alpha != "uniform":
            seeds |= {"alpha": alpha, "settings": f"{alpha} {self.tags['settings']}"}
        above = self.commit(f"{curve.finder} {seed}", "search", seeds, self.networks("theta_init", None))
        parent = Parent(above, "initialised-from")
        for level in range(deepest + 1):
            tags = seeds | {"level": f"{level:02d}", "density": f"{0.8**level:.6f}"}
            name = f"{curve.finder} {seed} L{level}"
            numbers = {"test_error_percent": 50.0 + level, "num_remaining": 1000.0 - level}
            metrics = tuple(Metric(name, value, 1, 1) for name, value in numbers.items())
            rest = {"parents": (parent,), "nested_under": above, "metrics": metrics}
            if self.plan.figure.equal_weights or alpha != "uniform":
                own = self.plan.search_config(curve, level)
                rest["config"] = {"search": to_json(own)}
            files = {"signed_mask.safetensors": signs_of(level), **self.networks("checkpoint", level)}
            files |= self.right(50.0 + level, name)
            key = self.commit(name, "level", tags, files, **rest)
            parent = Parent(key, "pruned-from")

    def networks(self, name: str, level: int | None) -> dict[str, Checkpoint]:
        """Return the checkpoint file `name`, or none.

        Only figures that compare norm parameters need it.
        """
        return {f"{name}.safetensors": network_of(level)} if self.plan.figure.initial_norm else {}

    def right(self, error: float, name: str) -> dict[str, torch.Tensor]:
        """Return random per-image results of 10,000 images with this error.

        The error is in %; the name seeds the draw. Without `stores_right` the result is empty.
        """
        noise = torch.Generator().manual_seed(int(key_of(name)[:8], 16))
        right = torch.randperm(10_000, generator=noise) >= round(100 * error)
        return {"correct.safetensors": right} if self.stores_right else {}

    def training(self, one: Training, **config) -> None:
        # Phase: tags and settings of the launch that made this training
        finals = self.plan.scale.finals
        tags = {"kind_of_training": one.kind, "sgd_seed": str(one.sgd_seed), "data": finals.data.name}
        if one.epochs is not None:  # a further length comes from a launch with other settings
            config |= {"search": self.config["search"] | {"final": to_json(replace(finals.final, epochs=one.epochs))}}
            tags["settings"] = f"{one.epochs} epochs {self.tags['settings']}"
        if self.plan.scale.used_on:
            length = replace(finals.final, epochs=one.epochs or finals.final.epochs)
            config |= {"search": to_json(replace(finals, final=length))}
            tags["settings"] = self.settings_there
            if one.curve is not None:  # a transferred ticket has another settings hash
                moved = {"transferred": "true"}
                tags |= moved | {"settings": f"moved to {self.settings_there}"}
        if one.init_seed is not None:
            tags["init_seed"] = str(one.init_seed)
        if one.initialisation != "network":
            drawn = {"initialisation": one.initialisation}
            tags |= drawn | {"settings": f"{one.initialisation} {self.tags['settings']}"}
        # Phase: parent, metrics and files
        parents: tuple[Parent, ...] = ()
        if one.curve is not None:
            tags["method"] = one.curve.method
            ticket = key_of(f"{one.curve.finder} {one.search_seed} L{one.level}")
            parents = (Parent(ticket, "trained-from" if one.kind == "retrain" else "masked-by"),)
        numbers = {"test_error_percent": self.error_of(one), "flipped_signs": 0.25, "epochs_total": 10.0 + one.level}
        numbers["num_remaining"] = 1000.0 - one.level
        metrics = tuple(Metric(name, value, 1, 1) for name, value in numbers.items())
        name = f"{one} {config}" if config.keys() - {"search"} else str(one)
        files = self.right(self.error_of(one), name)
        self.commit(name, "training", tags, files, parents=parents, metrics=metrics, config=config)

    def remove(self, one: Training) -> None:
        self.remove_named(str(one))

    def remove_named(self, name: str) -> None:
        shutil.rmtree(self.nodes.find(key_of(name)))

    def replace(self, one: Training, error: float) -> None:
        """Commit a training again with another test error."""
        self.remove(one)
        self.error_of = lambda _: error
        self.training(one)
        self.error_of = made_up_error

    def compared(self, pair: Pair) -> tuple[Parent, ...]:
        if pair.second != pair.first:
            return Parent(key_of(str(pair.first)), "compared"), Parent(key_of(str(pair.second)), "compared")
        search = f"{pair.first.curve.method} {pair.first.search_seed}"
        ticket = Parent(key_of(f"{search} L{pair.first.level}"), "compared")
        return (ticket, Parent(key_of(search), "initialised-from")) if pair.question == "norm_init" else (ticket,)

    def everything(self) -> None:
        for curve in {curve.finder: curve for curve in self.plan.figure.curves}.values():
            for seed in {self.plan.search_seed(trial) for trial in self.plan.trials}:
                self.levels(curve.method, seed, max(self.plan.scale.all_levels), curve.alpha)
        for one in self.plan.trainings():
            if one.kind != "level":
                self.training(one)
        for pair in self.plan.pairs():
            # a ticket's copy is worse by 31 points in trial 1 and by 34 in trial 2
            worse = 30.0 + pair.first.trial**2 if pair.second == pair.first else 0.0
            errors = (made_up_error(pair.second) + worse, made_up_error(pair.first))
            curve = BarrierCurve((0.0, 0.5, 1.0), (errors[0], 20.0, errors[1]), *reversed(errors), "none", 0, 100)
            self.commit(
                str(pair),
                "analysis",
                {"question": pair.question} | ({"init_seed": str(pair.init_seed)} if pair.init_seed else {}),
                {"barrier.json": json.dumps(curve.to_dict())},
                parents=self.compared(pair),
                config={"comparison": asdict(ComparisonConfig())},
            )


@pytest.fixture
def plan() -> FigurePlan:
    config = SearchConfig(
        data=DataConfig("digits"),
        model=ModelConfig("resnet8"),
        optim=OptimConfig(),
        final=Schedule(4, "step"),
        warmup_epochs=2,
        level_epochs=1,
        num_levels=3,
        global_batch_size=64,
    )
    return FigurePlan(
        figure_named("fig3"), Scale(config, levels=(1, 3), barrier_level=2, trials=2, reduction="made up")
    )


@pytest.fixture
def made_up(tmp_path: Path, plan: FigurePlan) -> MadeUp:
    return MadeUp(tmp_path / "runs", plan)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few resamples, because only `tests/analysis/test_statistics.py` tests interval values."""
    monkeypatch.setattr("harness.analysis.statistics.RESAMPLES", 1500)
