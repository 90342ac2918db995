"""Finished runs of a study as small text files in the repository, without checkpoints.

One file holds one chain: a search with its final trainings and comparisons, or the dense trainings of a trial. Each run
is one line with key, parents, seeds, digests, numbers, and one bit for each test image.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.barrier import BarrierCurve
from harness.common.escape import one_line
from harness.common.files import read_json, write_atomically
from harness.common.tensors import load_correct
from harness.experiment.comparison import BARRIER
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import BEFORE_TRAINING, CORRECT, LineageRecord
from harness.lineage.proof import Findings, verify
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import hardware_of
from harness.pruning import METHODS
from harness.reproduction.figure_plan import FigurePlan, Training
from harness.reproduction.figure_runner import MadeChain
from harness.reproduction.study import Study, has_type

FORMAT = 1
_HEAD_TYPES: dict[str, Any] = dict.fromkeys(("study", "plan_sha256", "chain", "subject", "hardware"), str)
_HEAD_TYPES |= {"code": dict[str, str], "verified": list[str], "runs": list[dict]}
_RUN_TYPES: dict[str, Any] = dict.fromkeys(("name", "key", "run", "commit", "correct", "hardware"), str)
_RUN_TYPES |= {"tags": dict[str, str], "files": dict[str, str], "metrics": dict[str, int | float]}
_RUN_TYPES |= dict.fromkeys(("started_ms", "finished_ms", "num_images"), int)
_HEAD = ("format", "study", "plan_sha256", "chain", "subject", "code", "hardware", "verified")


@dataclass(frozen=True)
class RunLine:
    """One finished run, without its tensors."""

    name: str
    """Name in the plan, e.g. aws-L11-signed_mask-e100-t11; a level is e.g. aws-s11-L03."""
    key: str
    run: str
    """Name of the run's record."""
    parents: tuple[tuple[str, str], ...]
    """(key, relation) of each parent."""
    tags: Mapping[str, str]
    files: Mapping[str, str]
    """File → SHA-256."""
    metrics: Mapping[str, float]
    """Last values."""
    commit: str
    """Commit of the code; + for uncommitted changes."""
    started_ms: int
    finished_ms: int
    curve: BarrierCurve | None = None
    """Only for a comparison."""
    correct: str = ""
    """Base64 of one bit for each test image (`numpy.packbits`), with one row for each point of a comparison."""
    num_images: int = 0
    hardware: str = ""
    """Machine that made the run; empty in records of earlier versions."""

    def right(self) -> np.ndarray | None:
        """Return whether each test image is correct: bool [N], or [K, N] for a comparison; None if not stored."""
        if not self.correct:
            return None
        packed = np.frombuffer(base64.b64decode(self.correct, validate=True), dtype=np.uint8)
        rows = np.unpackbits(packed.reshape(-1, -(-self.num_images // 8)), axis=1, count=self.num_images).astype(bool)
        return rows if self.curve is not None else rows[0]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without empty fields."""
        values = dict(vars(self)) | {"curve": self.curve.to_dict() if self.curve else None}
        return {
            name: value for name, value in values.items() if value not in (None, "", 0) or name in ("key", "commit")
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunLine:
        """Return the run that `to_dict` wrote."""
        parents = tuple((key, relation) for key, relation in values["parents"])
        curve = BarrierCurve.from_dict(values["curve"]) if "curve" in values else None
        return cls(**{**values, "parents": parents, "curve": curve})


@dataclass(frozen=True)
class ChainRecords:
    """All runs from one search, or the dense trainings of one trial."""

    study: str
    plan_sha256: str
    """SHA-256 of the plan when the runs were made."""
    chain: str
    subject: str
    code: Mapping[str, str]
    """Commit and versions at the end of the chain."""
    hardware: str
    """Machines that made the runs, joined by "; ". Records of earlier versions lack the CPU's instruction set."""
    verified: tuple[str, ...]
    """Output of `verify` before the file was written."""
    runs: tuple[RunLine, ...] = field(repr=False)

    def save(self, path: Path) -> None:
        """Write the file: the head, then one run per line."""
        head = {"format": FORMAT} | {name: value for name, value in vars(self).items() if name != "runs"}
        lines = [json.dumps(run.to_dict(), ensure_ascii=False) for run in self.runs]
        text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "runs": [\n' + ",\n".join(lines) + "\n]}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> ChainRecords:
        """Read a file.

        Raises ValueError with the file's name if it is invalid, or if a run's images contradict its error.
        """
        values = read_json(path)
        try:
            _check_types(values, _HEAD_TYPES)
            for run in values["runs"]:
                _check_types(run, _RUN_TYPES)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, expected {FORMAT}")
            runs = tuple(map(RunLine.from_dict, values["runs"]))
            for run in runs:
                _check(run)
            rest = {name: values[name] for name in _HEAD if name not in ("format", "verified")}
            return cls(**rest, verified=tuple(values["verified"]), runs=runs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no records of a study: {type(error).__name__}: {one_line(error)}"
            ) from error


def _check_types(values: dict[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of another type. A missing field is found later, by name."""
    for name, wanted in types.items():
        if name in values and not has_type(values[name], wanted):
            raise ValueError(f"{name} is {values[name]!r}")


def _check(run: RunLine) -> None:
    """Raise ValueError unless key, error and stored images of a run agree."""
    # Phase: key and error.
    if run.files.get("determinants.json", run.key) != run.key:
        raise ValueError(f"the key of {run.name} is not the digest of its determinants")
    if run.curve is None and not 0 <= run.metrics.get("test_error_percent", math.nan) <= 100:
        raise ValueError(f"{run.name} has no test error")
    if run.curve is not None and run.metrics.get("barrier", run.curve.barrier) != run.curve.barrier:
        raise ValueError(f"the errors of {run.name} give a barrier of {run.curve.barrier}, not as recorded")

    # Phase: images.
    if (right := run.right()) is None:
        return
    errors = 100 * (1 - np.atleast_2d(right).mean(axis=1))
    recorded = run.curve.error_percent if run.curve is not None else (run.metrics["test_error_percent"],)
    if not np.allclose(errors, recorded, rtol=0, atol=1e-9):
        raise ValueError(f"the images of {run.name} give an error of {errors}, recorded is {recorded}")


def run_line(
    name: str, record: LineageRecord, correct: np.ndarray | None, curve: BarrierCurve | None = None
) -> RunLine:
    """Return the line of a finished run; `correct` is bool [N], or [K, N] for a comparison."""
    # One plus sign marks uncommitted changes.
    changed = "+" if record.code.get("dirty") == "true" else ""
    return RunLine(
        name=name,
        key=record.key,
        run=record.name,
        parents=tuple((parent.key, parent.relation) for parent in record.parents),
        tags=record.tags,
        files=record.files,
        metrics=record.last_metrics(),
        commit=record.code.get("commit", "") + changed,
        started_ms=record.started_ms,
        finished_ms=record.finished_ms,
        curve=curve,
        correct="" if correct is None else base64.b64encode(np.packbits(correct, axis=-1).tobytes()).decode(),
        num_images=0 if correct is None else correct.shape[-1],
        hardware=hardware_of(record),
    )


def directory_of(study: str, results: Path) -> Path:
    """Return the directory of a study's records."""
    return results / "studies" / study / "runs"


def finished_chains(study: Study, results: Path) -> dict[str, ChainRecords]:
    """Return name → records of each chain of the plan whose runs are all recorded.

    Raises ValueError for a file that is invalid or contradicts the plan.
    """
    directory, found = directory_of(study.name, results), {}
    for chain in study.plan.chains():
        path = directory / f"{chain}.json"
        if path.exists():
            records = ChainRecords.load(path)
            if wrong := list(_misfits(study, chain, records)):
                raise ValueError(
                    f"{path} does not hold the chain {chain} of the study {study.name}: {'; '.join(wrong[:5])}. "
                    "Restore the committed file, or remove it and rerun the chain"
                )
            if not set(wanted_names(study.plan, chain)) - {run.name for run in records.runs}:
                found[chain] = records
    return found


def _misfits(study: Study, chain: str, records: ChainRecords) -> Iterator[str]:
    """Yield each contradiction between the records of a chain and the plan, in words."""
    # Phase: the head, and unique names.
    head = {"study": study.name, "chain": chain, "subject": study.plan.subject}
    for name, value in head.items():
        if (said := getattr(records, name)) != value:
            yield f"{name} is {said!r} instead of {value!r}"
    if not (records.verified and records.verified[0].endswith("no problem found")):
        yield "it was not verified"
    runs = {run.name: run for run in records.runs}
    if len(runs) < len(records.runs):
        yield "two runs have one name"
    # Phase: levels. The density is that of the plan, up to the rounding of each level.
    trainings = study.plan.chains()[chain]
    if (curve := trainings[0].curve) is not None:
        for level in range(max(one.level for one in trainings) + 1):
            if (run := runs.get(f"{chain}-L{level:02d}")) is not None:
                wanted = tags_of(study.plan, replace(trainings[0], curve=curve, level=level), is_level=True)
                yield from _other_tags(run, wanted)
                target, found = study.plan.scale.density(level), run.metrics.get("density", 0.0)
                if not METHODS[curve.method].searches_one_density and abs(found - target) > max(0.01 * target, 1e-4):
                    yield f"{run.name} has the density {found:g} instead of {target:g}"
    # Phase: trainings. Tags hold the settings of a run; the name alone proves nothing.
    for training in trainings:
        if (run := runs.get(str(training))) is not None:
            ticket = runs.get(f"{chain}-L{training.level:02d}")
            # If levels are full trainings, `retrain` is the level itself.
            is_level = training.kind == "level" or (ticket is not None and run.key == ticket.key)
            yield from _other_tags(run, tags_of(study.plan, training, is_level=is_level))
            if ticket is not None and ticket.key not in (run.key, *(key for key, _ in run.parents)):
                yield f"{run.name} is not made from {ticket.name}"
            # Names omit the usual length, so a changed scale would go unnoticed.
            spent = run.metrics.get("epochs_total", 0.0) - (ticket.metrics.get("epochs_total", 0.0) if ticket else 0.0)
            length = 0 if is_level else training.epochs or study.final_epochs[0]
            if spent != length and (ticket is not None or training.curve is None):
                yield f"{run.name} was trained for {spent:g} epochs instead of {length}"
    # Phase: comparisons.
    for pair in study.plan.pairs():
        if (run := runs.get(str(pair))) is not None:
            ends = {runs[str(end)].key for end in (pair.first, pair.second) if str(end) in runs}
            if run.curve is None or {key for key, relation in run.parents if relation == "compared"} != ends:
                yield f"{run.name} compares other networks"


def _other_tags(run: RunLine, wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield each tag of a run that is not as wanted, in words."""
    for tag, value in wanted.items():
        if (said := run.tags.get(tag)) != value:
            yield f"{tag} of {run.name} is {said} instead of {value}"


def tags_of(plan: FigurePlan, training: Training, *, is_level: bool = False) -> dict[str, str]:
    """Return the expected tags of a training: data, network, ticket and seeds; `is_level` for a search's level."""
    config, curve = plan.scale.config, training.curve
    init_seed, sgd_seed = (training.search_seed,) * 2 if is_level else (training.init_seed, training.sgd_seed)
    tags = {"data": config.data.name, "model": config.model.name, "level": f"{training.level:02d}"}
    tags |= {"sgd_seed": str(sgd_seed)} | ({} if init_seed is None else {"init_seed": str(init_seed)})
    tags |= {} if is_level else {"kind_of_training": training.kind}
    if curve is not None:
        tags |= {"method": curve.method} | ({} if curve.alpha == "uniform" else {"alpha": curve.alpha})
    return tags


def wanted_names(plan: FigurePlan, chain: str) -> Iterator[str]:
    """Yield the names of a chain's trainings and comparisons."""
    yield from map(str, plan.chains()[chain])
    yield from (str(pair) for pair in plan.pairs() if pair.first.chain == chain)


def record_chain(experiment: Experiment, study: Study, made: MadeChain, results: Path) -> Path:
    """Verify the runs of a chain and write its records (rank 0 only).

    Args:
        experiment: The experiment that made the chain.
        study: The plan.
        made: The chain.
        results: Directory of all results, e.g. docs/results.

    Returns:
        Path of the file.

    Raises:
        ValueError: Verification failed; no file is written.
    """
    # Phase: verify each search with its descendants, or each run of a chain without a search.
    store, records = experiment.store, _records(experiment.store, made)
    searches = dict.fromkeys(record.nested_under for record in records.values() if record.nested_under)
    found = Findings()
    for key in searches or [record.key for record in records.values()]:
        _add(found, verify(store, key, data_directory=experiment.config.data.directory))
    if found.problems:
        told = "\n".join(map(str, found.problems[:5]))
        raise ValueError(f"{made.name} is not recorded, because verify found {len(found.problems)} problems:\n{told}")

    # Phase: write.
    lines = [_line(store, name, record) for name, record in records.items()]
    machines = dict.fromkeys(line.hardware for line in lines)
    kept = ChainRecords(
        study.name,
        study.sha256,
        made.name,
        study.plan.subject,
        experiment.archive.environment_check.code,
        "; ".join(machines),
        _in_words(found),
        tuple(lines),
    )
    path = directory_of(study.name, results) / f"{made.name}.json"
    kept.save(path)
    return path


def _records(store: LineageStore, made: MadeChain) -> dict[str, LineageRecord]:
    nodes = {f"{made.name}-L{run.checkpoint.level:02d}": run.key for run in made.levels}
    nodes |= {str(training): run.key for training, run in made.trained.items()}
    nodes |= {str(pair): one.key for pair, one in made.compared.items() if one is not None}
    return {name: store.local.load(key) for name, key in nodes.items()}


def check_made_anew(nodes: LocalNodes, recorded: ChainRecords, directory: Path) -> None:
    """Raise ValueError if a directory holds the recorded run itself, since a cache hit would prove nothing."""
    for run in recorded.runs:
        if nodes.find(run.key) is not None and nodes.load(run.key).started_ms == run.started_ms:
            raise ValueError(
                f"{directory} holds the recorded run {run.name}, so it would be a cache hit; give --runs an empty "
                "directory, and --offline, so that no run is downloaded"
            )


def compare_again(store: LineageStore, recorded: ChainRecords, made: MadeChain) -> list[dict[str, str]]:
    """Return a row for each run of a repeated chain: recorded number, new number, and files with equal bits."""
    repeated = {name: _line(store, name, record) for name, record in _records(store, made).items()}
    rows = []
    for then in recorded.runs:
        now = repeated[then.name]
        files = [one for one in then.files if one.endswith(".safetensors") or one == BARRIER]
        equal = [one for one in files if then.files[one] == now.files.get(one)]
        rows.append(
            {
                "run": then.name,
                "number": _number(then)[0],
                "recorded": f"{_number(then)[1]:.2f}",
                "repeated": f"{_number(now)[1]:.2f}",
                "files with equal bits": f"{len(equal)} of {len(files)}",
            }
        )
    return rows


def _number(run: RunLine) -> tuple[str, float]:
    """Return what a run measured: a test error, the error of a copy minus the ticket's, or a barrier."""
    if run.curve is None:
        return "test error, %", run.metrics["test_error_percent"]
    if run.tags.get("question") in BEFORE_TRAINING:
        return "copy − ticket", run.curve.error_difference
    return "above the line", run.curve.barrier_above_line


def _add(findings: Findings, more: Findings) -> None:
    findings.problems += more.problems
    findings.notes += more.notes
    findings.checked += more.checked
    findings.num_nodes += more.num_nodes
    findings.num_bytes += more.num_bytes


def _in_words(found: Findings) -> tuple[str, ...]:
    made = sum(found.checked.values())
    counts = ", ".join(f"{name} {count}" for name, count in found.checked.items() if count)
    head = f"{found.num_nodes} runs, {found.num_bytes / 1e6:,.1f} MB hashed, {made} checks made ({counts}): "
    return (head + "no problem found", *dict.fromkeys(note.what for note in found.notes))


def _line(store: LineageStore, name: str, record: LineageRecord) -> RunLine:
    correct, curve = None, None
    if BARRIER in record.files:
        curve = BarrierCurve.load(store.local.open_file(record.key, BARRIER))
    if CORRECT in record.files:
        tensors = load_correct(store.local.open_file(record.key, CORRECT))
        correct = tensors["test" if curve is None else "points"].numpy()
    return run_line(name, record, correct, curve)
