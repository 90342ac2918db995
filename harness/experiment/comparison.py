"""Comparisons of two networks along the straight line between them.

SGD-noise stability and linear mode connectivity compare two finished trainings. The other two comparisons take a ticket
and a copy of it, without further training. The copy has ψ_init, or the ticket's signs on a fresh θ_init.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from harness.analysis.barrier import BarrierCurve, barrier_curve
from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json
from harness.common.logging import progress
from harness.common.optional import require
from harness.common.seeds import SgdNoise
from harness.common.tensors import save_correct
from harness.config import ComparisonConfig
from harness.distributed.world import World
from harness.experiment.describe import comparison_determinants, describe_comparison
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.record import CORRECT, THETA_INIT, LineageRecord, Metric
from harness.masks import transfer
from harness.pruning import StartPoint
from harness.runs.delivery_thread import DeliveryThread
from harness.runs.run import FinishedRun, closing_line
from harness.training.feed import ImageBatch, TrainFeed

_log = logging.getLogger(__name__)

BARRIER = "barrier.json"
Item = TypeVar("Item")
Question = Literal["stability", "lmc", "norm_init", "signed_init"]
HELD_PIXELS = 64 * 64
"""Pixels of the largest images that stay in memory. Larger images are streamed again for every α."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. It exists on rank 0 only."""

    key: str
    curve: BarrierCurve
    directory: Path
    delivery: DeliveryThread
    ends: tuple[str, str] = ("", "")
    """Names of the networks at α = 0 and at α = 1."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run ID once the run is delivered, or None if it cannot be delivered now."""
        return self.delivery.run_id(self.key)


def compare(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    question: Question,
    config: ComparisonConfig = ComparisonConfig(),  # noqa: B008 (frozen)
    *,
    cross_init: bool = False,
) -> Comparison | None:
    """Return the barrier between two trainings, or None on ranks other than 0.

    All ranks call this and share the images. A recorded comparison is loaded instead of repeated.

    Args:
        experiment: Data and network of both runs.
        first: A run. It is the end α = 1 of the line.
        second: Another run with the same mask. It is the end α = 0.
        question: "lmc" (linear mode connectivity) or "stability" (SGD noise: one start, two sgd_seeds).
        config: The grid of α and the BatchNorm convention.
        cross_init: Allow stability to compare different starts, as the authors' scripts do.

    Raises:
        ValueError: The runs do not fit the question.
        StoppedError: A rank was asked to stop.

    Example:
        >>> with harness.launch(config) as experiment:
        ...     ticket = harness.search(experiment).ticket
        ...     trials = [harness.Trial("signed_mask", init_seed=2, sgd_seed=seed) for seed in (1, 2)]
        ...     pair = [harness.final_training(experiment, trial, ticket) for trial in trials]
        ...     result = harness.compare(experiment, *pair, "stability")
        >>> result.curve.barrier >= result.curve.floor
        True
    """
    # Only rank 0 has the records.
    experiment.world.on_main(lambda: _check_comparable(first, second, question, cross_init))
    return _compare(experiment, first, second, question, config)


def compare_initial_norm(experiment: Experiment, ticket: FinishedRun, config: ComparisonConfig) -> Comparison | None:
    """Return the barrier between a ticket [φ, ψ] and its copy [φ, ψ_init] (paper, Figure 1).

    AWS is designed to keep this barrier low. If it is high, resetting the norm parameters leaves the ticket's basin.
    ψ_init comes from the θ_init that the search recorded. All ranks call this and share the images. Ranks other than 0
    get None.

    Raises:
        ValueError: The run is not a level of a search, or the network has no normalisation layers.
        LookupError: The search is neither among the local runs nor on the server.
    """
    world = experiment.world
    initial = world.share(world.on_main(lambda: _initial_norm(experiment, ticket.record)) or {})
    checkpoint = replace(ticket.checkpoint, params=ticket.checkpoint.params | initial)
    return _compare(experiment, ticket, replace(ticket, checkpoint=checkpoint), "norm_init", config)


def compare_signed_init(
    experiment: Experiment, ticket: FinishedRun, init_seed: int, config: ComparisonConfig
) -> Comparison | None:
    """Return the barrier between a level's network and abs(θ_init) ⊙ s, its signs s on a fresh θ_init.

    Neither network is trained further (paper, Figure 1: the yellow and the red ball). The copy equals the start of the
    final training `signed_mask` with this `init_seed`, with ψ = ψ_init. All ranks call this and share the images. Ranks
    other than 0 get None.

    Raises:
        ValueError: The run is not a level of a search, or `init_seed` is the search's own.
    """
    experiment.world.on_main(lambda: _check_fresh(ticket.record, init_seed))
    fresh = experiment.theta_init(init_seed)
    params, mask = transfer.start(
        "signed_mask", fresh.params, ticket.checkpoint.params, ticket.signed_mask, seed=init_seed
    )
    start = StartPoint(params, fresh.buffers, mask)
    copy = replace(ticket, checkpoint=replace(ticket.checkpoint, params=params, buffers=start.buffers))
    drawn = {"init_seed": init_seed, "start": start.digest, **experiment.common.drawn}
    return _compare(experiment, ticket, copy, "signed_init", config, drawn)


def _check_fresh(ticket: LineageRecord | None, init_seed: int) -> None:
    _check_level(ticket)
    assert ticket is not None
    if str(init_seed) == ticket.tags.get("init_seed"):
        raise ValueError(f"init_seed {init_seed} is the search's own: choose another for a fresh initialisation")


def _check_level(ticket: LineageRecord | None) -> None:
    assert ticket is not None
    if ticket.kind != "level":
        raise ValueError(f"{ticket.name!r} is a {ticket.kind}; this comparison needs a level of a search")


def _initial_norm(experiment: Experiment, ticket: LineageRecord | None) -> dict[str, torch.Tensor]:
    _check_level(ticket)
    assert ticket is not None
    if not experiment.partition.norm:
        raise ValueError(f"{experiment.common.network} has no normalisation layers to initialise")
    search = ticket.nested_under or ""
    if experiment.archive.find(search, []) is None:
        raise LookupError(
            f"the search of {ticket.name!r} (key {search[:16]}…) is neither among the local runs nor on the server"
        )
    theta_init = Checkpoint.load(experiment.store.local.open_file(search, THETA_INIT))
    return {name: theta_init.params[name] for name in experiment.partition.norm}


def _compare(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    question: Question,
    config: ComparisonConfig,
    drawn: Mapping[str, Any] | None = None,
) -> Comparison | None:
    """Load the recorded comparison, or compute and record it. Rank 0 reads and writes the record.

    Args:
        drawn: Additional inputs to the key that describe how the second network was drawn.
    """
    # Phase: all ranks derive the same key.
    world, archive = experiment.world, experiment.archive
    batch_size, recorded = json.loads(world.share_text(json.dumps(world.on_main(lambda: _in_records(first, second)))))
    determinants = comparison_determinants(experiment, first, second, question, config, batch_size) | dict(drawn or {})
    key = sha256_json(determinants)

    def is_recorded() -> bool:
        if archive.find(key, [first.key, second.key]) is None:
            return False
        _log.info(closing_line(experiment.store.local.load(key), f"loaded from {experiment.store.local.directory}"))
        archive.delivery.send(key)
        return True

    def commit(curve: BarrierCurve, started_ms: int) -> None:
        description = describe_comparison(experiment, first, second, question, config, determinants)
        record = archive.record(description, _metrics(curve), started_ms)
        ends = _end_names(question, first, second)
        archive.commit(record, determinants, lambda directory: _write(directory, curve, record.name, ends))
        _log.info(closing_line(record))

    # Phase: compute on all ranks unless rank 0 has the record.
    if not world.main_says(is_recorded):
        world.on_main(lambda: require("matplotlib", "a comparison, for its plot,"))
        started_ms = int(time.time() * 1000)
        curve = _curve(experiment, first, second, config, batch_size, recorded)
        world.on_main(lambda: commit(curve, started_ms))
    return world.on_main(lambda: _load(experiment, key, first, _end_names(question, first, second)))


def _metrics(curve: BarrierCurve) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    figures = {
        "barrier": curve.barrier,
        "barrier_floor": curve.floor,
        "barrier_above_line": curve.barrier_above_line,
    }
    metrics = [Metric(name, value, 0, now_ms) for name, value in figures.items()]
    return metrics + [Metric("error_percent", error, step, now_ms) for step, error in enumerate(curve.error_percent)]


def _load(experiment: Experiment, key: str, first: FinishedRun, ends: tuple[str, str]) -> Comparison:
    """Read a recorded barrier, oriented so that `first` is at α = 1."""
    local = experiment.store.local
    path = local.open_file(key, BARRIER)
    curve = BarrierCurve.load(path)
    if local.load(key).parents[0].key != first.key:
        curve = curve.reversed()  # recorded with the runs in the other order
    return Comparison(key, curve, path.parent, experiment.archive.delivery, ends)


def _in_records(first: FinishedRun, second: FinishedRun) -> tuple[int, tuple[float, float] | None]:
    """Return batch size and recorded test errors of both runs (rank 0). The copy of a ticket has no test error."""
    measured = first.key != second.key
    recorded = (_recorded_error_percent(first), _recorded_error_percent(second)) if measured else None
    return _batch_size(first, second), recorded


def _batch_size(first: FinishedRun, second: FinishedRun) -> int:
    """Return the batch size for BatchNorm estimation: that of the trainings, or the smaller one if they differ."""
    assert first.record is not None and second.record is not None
    return min(int(node.record.config["search"]["global_batch_size"]) for node in (first, second) if node.record)


def _check_comparable(first: FinishedRun, second: FinishedRun, question: Question, cross_init: bool) -> None:
    assert first.record is not None and second.record is not None
    names = f"{first.record.name!r} and {second.record.name!r}"
    if first.key == second.key:
        raise ValueError(f"{names} are the same run; a comparison needs two")
    for what in ("data_digest", "model"):
        if first.record.tags.get(what) != second.record.tags.get(what):
            raise ValueError(f"{names} differ in {what}: they cannot be compared")
    if _network(first.record) != _network(second.record):
        raise ValueError(f"{names} have different networks of one name: they cannot be compared")
    if not first.mask.equal(second.mask):
        raise ValueError(f"{names} have different masks; compare trainings of one ticket")
    if question == "lmc":
        return
    tags = first.record.tags, second.record.tags
    if tags[0].get("sgd_seed") == tags[1].get("sgd_seed"):
        raise ValueError(f"{names} have the same sgd_seed; stability compares two noises u and u'")
    if not _same_start(first, second) and not cross_init:
        raise ValueError(
            f"{names} started from different parameters; stability compares trainings of one start "
            "(--cross-init compares them all the same, as the authors' scripts do)"
        )


def _network(record: LineageRecord) -> dict[str, Any]:
    """Return what a record says about a network that is not built in, without the version of its library."""
    return {name: value for name, value in record.config.get("network", {}).items() if name != "library"}


def _same_start(first: FinishedRun, second: FinishedRun) -> bool:
    assert first.record is not None and second.record is not None
    return first.record.tags.get("start_digest") == second.record.tags.get("start_digest")


def _curve(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    config: ComparisonConfig,
    batch_size: int,
    recorded_error_percent: tuple[float, float] | None,
) -> BarrierCurve:
    world, source = experiment.world, experiment.source
    batch_size = min(batch_size, source.num_train)
    num_images = config.num_bn_images(source.num_train)
    num_batches = min(-(-num_images // batch_size), source.num_train // batch_size)

    def begin() -> tuple[torch.nn.Module, Iterable[torch.Tensor], Iterable[ImageBatch]]:
        """Return this rank's network and its share of the images."""
        model = experiment.network(trains=False)
        bn_images, test_images = _BatchNormImages(experiment, num_batches, batch_size), experiment.test_feed
        if experiment.spec.image_size**2 <= HELD_PIXELS:
            with torch.inference_mode():  # as in an evaluation, whose compiled graph depends on it
                return model, list(bn_images), list(test_images)
        return model, _Heeding(bn_images, world), _Heeding(test_images, world)

    model, bn_batches, test_batches = world.on_all(begin)
    # Phase: measure every α. One process checks for a stop itself, several first agree.
    check_stop = world.stop.heed if world.size == 1 else experiment.archive.stop_if_asked
    points = len(config.alphas) + (0 if recorded_error_percent else 2)

    def before_each() -> None:
        check_stop()
        bar.update()

    with progress("barrier", points, "points", shown=experiment.shows_progress) as bar:
        return barrier_curve(
            model,
            first.checkpoint.state_dict,
            second.checkpoint.state_dict,
            bn_batches=bn_batches,
            test_batches=test_batches,
            alphas=config.alphas,
            convention=config.bn_convention,
            recorded_error_percent=recorded_error_percent,
            ranks=world,
            num_bn_batches=num_batches,
            before_each=before_each,
        )


def _recorded_error_percent(node: FinishedRun) -> float:
    """Return the test error measured with the BatchNorm statistics of the checkpoint, in percent."""
    assert node.record is not None
    metrics = node.record.last_metrics()
    return metrics.get("test_error_percent_recorded_bn", metrics["test_error_percent"])


class _BatchNormImages:
    """Training images of this rank for BatchNorm estimation.

    A key draws the batches and their order. Rank r of W ranks gets batches r, r + W, r + 2W, …
    """

    def __init__(self, experiment: Experiment, num_batches: int, batch_size: int) -> None:
        world = experiment.world
        loader = experiment.source.train_loader(
            global_batch_size=batch_size,
            rank=0,  # each rank reads whole batches
            world_size=1,
            num_workers=experiment.loader_threads,
            device=world.device,
        )
        self.feed = TrainFeed(loader, experiment.spec, world.device)
        self.world, self.num_batches = world, num_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        rank, size = self.world.rank, self.world.size
        if rank < self.num_batches:
            noise, later = SgdNoise(0, ("comparison", "batchnorm")), self.num_batches - rank
            for images_NCHW, _ in self.feed.epoch(noise, 0, skip_steps=rank, num_steps=later, every=size):
                yield images_NCHW


class _Heeding(Generic[Item]):
    """Iterable that checks for a stop request before each batch.

    Only a single process checks here. Several ranks must agree first, which they do before each α.
    """

    def __init__(self, batches: Iterable[Item], world: World) -> None:
        self.batches, self.world = batches, world

    def __iter__(self) -> Iterator[Item]:
        for batch in self.batches:
            if self.world.size == 1:
                self.world.stop.heed()
            yield batch


def _end_names(question: Question, first: FinishedRun, second: FinishedRun) -> tuple[str, str]:
    """Return names of the networks at α = 0 (second) and at α = 1 (first)."""
    assert first.record is not None and second.record is not None
    copies = {"norm_init": "its copy with ψ_init", "signed_init": "its signs on a fresh θ_init"}
    return copies.get(question, second.record.name), first.record.name


def _write(directory: Path, curve: BarrierCurve, title: str, ends: tuple[str, str]) -> None:
    from harness.analysis.plots import plot_barriers

    (directory / BARRIER).write_text(json.dumps(curve.to_dict(), indent=1) + "\n")
    if curve.correct_AN is not None:
        save_correct(directory / CORRECT, {"points": curve.correct_AN})
    plot_barriers({title: curve}, directory / "barrier", ends=ends)
