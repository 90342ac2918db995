"""Define the record of a run as plain data, without I/O."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from harness.common.escape import for_terminal, one_line

FORMAT = 1  # version of the JSON form below; increase it if an older reader would misread newer files

# Names of the files that a run may hold. Pruning methods define names for their own extra files.
CHECKPOINT, SIGNED_MASK, THETA_INIT = "checkpoint.safetensors", "signed_mask.safetensors", "theta_init.safetensors"
CORRECT = "correct.safetensors"

ERROR_BY_EPOCH = "test_error_percent_by_epoch"
"""Metric: test error within a training (`--evaluate-every`). It is no result."""

KINDS = ("search", "level", "training", "analysis", "report")
WITHOUT_MODEL = ("analysis", "report")  # these kinds produce numbers and pages, but no network
BEFORE_TRAINING = ("norm_init", "signed_init")
"""Questions about a ticket and its copy. The paper's barrier is half the difference of their errors, or more."""
RELATIONS = ("initialised-from", "pruned-from", "masked-by", "trained-from", "compared", "reported")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOO_LARGE = 2**63  # MLflow and file formats have 64-bit integers
_WORD = re.compile(r"[A-Za-z0-9_./ :-]{1,200}")  # names of metrics and tags that MLflow accepts
# A relative POSIX path without "." and ".." components, so that it cannot leave its directory.
_FILE = re.compile(r"(?!(?:.*/)?\.{1,2}(?:/|$))(?=.{1,200}$)[A-Za-z0-9_. -]+(?:/[A-Za-z0-9_. -]+)*")
_ALLOWED = {
    _SHA256: "expected a SHA-256 as 64 lower-case hex digits",
    _WORD: "allowed are 1 to 200 ASCII letters, digits and _ . / : - space",
    _FILE: "allowed are relative paths like 'figures/barrier.svg', without '..'",
}


def _check(value: object, expected: type | tuple[type, ...] | re.Pattern[str], what: str) -> None:
    """Raise ValueError unless `value` has the expected type or pattern. `what` may quote the record, as it is."""
    if isinstance(expected, re.Pattern):
        if not isinstance(value, str) or not expected.fullmatch(value):
            raise ValueError(f"{for_terminal(what)} {value!r:.80}: {_ALLOWED[expected]}")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _TOO_LARGE:
        raise ValueError(f"{for_terminal(what)}: the integer is too large")
    elif not isinstance(value, expected) or isinstance(value, bool):  # bool is a subclass of int, but no valid number
        allowed = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{for_terminal(what)}: expected {allowed}, got {type(value).__name__} ({value!r:.60})")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not a lineage record: it has the number {name}, which JSON does not have")


def _check_names(data: Mapping[str, Any], expected: set[str], what: str) -> None:
    """Raise ValueError if a JSON object has unknown or missing fields."""
    if unknown := sorted(data.keys() - expected):
        raise ValueError(f"{what}: unknown fields {unknown}; known: {sorted(expected)}")
    if missing := sorted(expected - data.keys()):
        raise ValueError(f"{what}: fields {missing} are missing")


def check_file_name(name: str) -> str:
    """Return `name` if it is a safe relative path.

    Records may come from untrusted stores, so this prevents path traversal.

    Raises:
        ValueError: The name is absolute, contains "..", or has characters that are not allowed.
    """
    _check(name, _FILE, "file name")
    return name


@dataclass(frozen=True)
class Parent:
    """Reference to a parent run: its key and its use, one of RELATIONS."""

    key: str
    relation: str

    def __post_init__(self) -> None:
        _check(self.key, _SHA256, "parent key")
        if self.relation not in RELATIONS:
            raise ValueError(f"unknown relation {self.relation!r}; known: {', '.join(RELATIONS)}")


@dataclass(frozen=True)
class Metric:
    """One measured value.

    `timestamp_ms` is the time of the measurement, not of the delivery. A repeated delivery is therefore idempotent.
    """

    name: str
    value: float
    step: int
    timestamp_ms: int

    def __post_init__(self) -> None:
        # Check names early: MLflow would reject a bad name only at delivery, after hours of training.
        for name, expected in (("name", _WORD), ("value", (float, int)), ("step", int), ("timestamp_ms", int)):
            _check(getattr(self, name), expected, f"{name} of metric {self.name}")


def metric_rows(metrics: Sequence[Metric]) -> list[list[Any]]:
    """Return [name, value, step, timestamp_ms] for each metric.

    JSON has no NaN and no infinity, so these values become the strings "nan", "inf" and "-inf".
    """
    values = [float(metric.value) for metric in metrics]
    return [
        [metric.name, value if math.isfinite(value) else str(value), metric.step, metric.timestamp_ms]
        for metric, value in zip(metrics, values, strict=True)
    ]


def metrics_of(rows: Any) -> list[Metric]:
    """Parse the rows that `metric_rows` returned.

    Raises:
        ValueError: The rows have another form.
    """
    _check(rows, list, "metrics")
    metrics = []
    for row in rows:
        _check(row, list, "metric")
        if len(row) != 4:
            raise ValueError(f"metric: expected [name, value, step, timestamp_ms], got {len(row)} items")
        name, value, step, timestamp_ms = row
        metrics.append(Metric(name, float(value) if value in ("nan", "inf", "-inf") else value, step, timestamp_ms))
    return metrics


# Expected type or pattern of each plain field of a record.
_EXPECTED: dict[str, type | re.Pattern[str]] = {
    "key": _SHA256,
    "name": str,
    "config": dict,
    "tags": dict,
    "files": dict,
    "code": dict,
    "started_ms": int,
    "finished_ms": int,
}


@dataclass(frozen=True)
class LineageRecord:
    """Describe one run: its identity, parents, settings, metrics and file digests.

    `key` is the SHA-256 of all recorded inputs (`determinants.json`). On one machine and build, equal keys give equal
    results. `nested_under` is the key of the run that this one is shown below; if None, see `nest_key`. `files` maps
    each artifact's relative name to its SHA-256. `LocalNodes.commit` fills it.
    """

    key: str
    kind: str
    name: str
    parents: tuple[Parent, ...] = ()
    nested_under: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    started_ms: int = 0
    finished_ms: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of a lineage record; known: {', '.join(KINDS)}")
        for name, expected in _EXPECTED.items():
            _check(getattr(self, name), expected, f"{name} of {self.name}")
        if self.nested_under is not None:
            _check(self.nested_under, _SHA256, f"nested_under of {self.name}")
        for field_name in ("tags", "code", "files"):
            for name, text in getattr(self, field_name).items():
                _check(name, _FILE if field_name == "files" else _WORD, f"{field_name} of {self.name}, name")
                _check(text, _SHA256 if field_name == "files" else str, f"{field_name} of {self.name}[{name!r}]")

    @property
    def nest_key(self) -> str | None:
        """Key of the run above this one in trees; None for a root.

        This is `nested_under` if it is given. Otherwise it is the ticket or previous level, or else the first parent.
        """
        if self.nested_under is not None or self.kind in ("search", "report"):
            return self.nested_under
        order = {relation: rank for rank, relation in enumerate(("trained-from", "masked-by", "pruned-from"))}
        return min(self.parents, key=lambda parent: order.get(parent.relation, 9)).key if self.parents else None

    def last_metrics(self) -> dict[str, float]:
        """Return {metric name: value at its highest step}.

        The later time decides between equal steps.
        """
        latest: dict[str, Metric] = {}
        for metric in self.metrics:
            seen = latest.get(metric.name)
            if seen is None or (metric.step, metric.timestamp_ms) >= (seen.step, seen.timestamp_ms):
                latest[metric.name] = metric
        return {name: float(metric.value) for name, metric in latest.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-serialisable data for `from_dict`."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["parents"] = [{"key": parent.key, "relation": parent.relation} for parent in self.parents]
        data["metrics"] = metric_rows(self.metrics)
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, text: bytes) -> "LineageRecord":
        """Parse the content of a record.json file.

        Raises:
            ValueError: The content is not valid JSON, or `from_dict` rejects it.
        """
        try:
            return cls.from_dict(json.loads(text, parse_constant=_refuse_constant))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, TypeError, OverflowError) as error:
            raise ValueError(f"not a lineage record: {type(error).__name__}: {one_line(error)}") from None

    @classmethod
    def from_dict(cls, data: object) -> "LineageRecord":
        """Build a record from the data that `to_dict` returned.

        Raises:
            ValueError: The format is unknown, fields are unknown or missing, or a value has the wrong type.
        """
        if not isinstance(data, dict) or "format" not in data:
            raise ValueError("not a lineage record: expected a JSON object with a field 'format'")
        if data["format"] != FORMAT:
            raise ValueError(
                f"lineage record of format {data['format']!r}; this version reads format {FORMAT}: use the harness "
                "version that wrote it, or a newer one"
            )
        _check_names(data, {"format"} | {f.name for f in fields(cls)}, "lineage record")
        values = {name: value for name, value in data.items() if name != "format"}
        _check(values["parents"], list, "parents")
        for parent in values["parents"]:
            _check(parent, dict, "parent")
            _check_names(parent, {"key", "relation"}, "parent")
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        values["metrics"] = tuple(metrics_of(values["metrics"]))
        return cls(**values)


def shown_barrier(tags: Mapping[str, str], metrics: Mapping[str, float]) -> tuple[float, bool] | None:
    """Return the number that stands for a comparison, in points, and whether it is the difference of its two ends.

    Two trainings have their barrier above the straight line. A ticket and its copy have the size of the difference of
    their errors. None for a run without a barrier.

    >>> shown_barrier({"question": "norm_init"}, {"barrier": 36.1, "barrier_floor": 36.1, "barrier_above_line": 0.0})
    (72.2, True)
    """
    if "barrier" not in metrics:
        return None
    if tags.get("question") in BEFORE_TRAINING and "barrier_floor" in metrics:
        return 2 * metrics["barrier_floor"], True
    return metrics.get("barrier_above_line", metrics["barrier"]), False
