"""What a node of the lineage says about itself: plain data, no files, no server."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

FORMAT = 1  # of the JSON form below; raise it when an older reader would misread a newer file

# Names of the files that a node may hold; methods name their own extra files.
CHECKPOINT, SIGNED_MASK, THETA_INIT = "checkpoint.safetensors", "signed_mask.safetensors", "theta_init.safetensors"
CORRECT = "correct.safetensors"

KINDS = ("search", "level", "training", "analysis", "report")
WITHOUT_MODEL = ("analysis", "report")  # they make numbers and pages, not a network
RELATIONS = ("initialised-from", "pruned-from", "masked-by", "trained-from", "compared", "reported")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_./ :-]{1,200}")  # what MLflow takes as the name of a metric or tag
# A relative POSIX path in its shortest form, without "." and "..": it stays inside its directory.
_FILE = re.compile(r"(?!(?:.*/)?\.{1,2}(?:/|$))(?=.{1,200}$)[A-Za-z0-9_. -]+(?:/[A-Za-z0-9_. -]+)*")
_ALLOWED = {
    _SHA256: "expected a SHA-256 as 64 lower-case hex digits",
    _WORD: "allowed are 1 to 200 ASCII letters, digits and _ . / : - space",
    _FILE: "allowed are relative paths like 'figures/barrier.svg', without '..'",
}


def _check(value: object, expected: type | tuple[type, ...] | re.Pattern[str], what: str) -> None:
    """Raise ValueError unless `value` is of the expected type, or a text of the expected form."""
    if isinstance(expected, re.Pattern):
        if not isinstance(value, str) or not expected.fullmatch(value):
            raise ValueError(f"{what} {value!r:.80}: {_ALLOWED[expected]}")
    elif not isinstance(value, expected) or isinstance(value, bool):  # a step of True is a mistake
        allowed = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{what}: expected {allowed}, got {type(value).__name__} ({value!r:.60})")


def _check_names(data: Mapping[str, Any], expected: set[str], what: str) -> None:
    """Raise ValueError unless a JSON object has exactly the expected fields."""
    if unknown := sorted(data.keys() - expected):
        raise ValueError(f"{what}: unknown fields {unknown}; known: {sorted(expected)}")
    if missing := sorted(expected - data.keys()):
        raise ValueError(f"{what}: fields {missing} are missing")


def check_file_name(name: str) -> str:
    """Return `name` if it is a relative path that stays inside its directory; ValueError otherwise.

    Records are read from other people's stores, so a name must not be able to leave the directory it is put in.
    """
    _check(name, _FILE, "file name")
    return name


@dataclass(frozen=True)
class Parent:
    """What a node was made from: the parent's key and how it was used."""

    key: str
    relation: str

    def __post_init__(self) -> None:
        _check(self.key, _SHA256, "parent key")
        if self.relation not in RELATIONS:
            raise ValueError(f"unknown relation {self.relation!r}; known: {', '.join(RELATIONS)}")


@dataclass(frozen=True)
class Metric:
    """One measured number; `timestamp_ms` is when it was measured, so that sending it twice is one point."""

    name: str
    value: float
    step: int
    timestamp_ms: int

    def __post_init__(self) -> None:
        # Checked where the metric is measured: at delivery it would be too late, after a day of training.
        for name, expected in (("name", _WORD), ("value", (float, int)), ("step", int), ("timestamp_ms", int)):
            _check(getattr(self, name), expected, f"{name} of metric {self.name}")


def metric_rows(metrics: Sequence[Metric]) -> list[list[Any]]:
    """Return [name, value, step, timestamp] of each; JSON has no NaN, so a non-finite value is its name as text."""
    values = [float(metric.value) for metric in metrics]
    return [
        [metric.name, value if math.isfinite(value) else str(value), metric.step, metric.timestamp_ms]
        for metric, value in zip(metrics, values, strict=True)
    ]


def metrics_of(rows: Any) -> list[Metric]:
    """Return the metrics that `metric_rows` wrote; ValueError on anything else."""
    _check(rows, list, "metrics")
    metrics = []
    for row in rows:
        _check(row, list, "metric")
        if len(row) != 4:
            raise ValueError(f"metric: expected [name, value, step, timestamp_ms], got {len(row)} items")
        name, value, step, timestamp_ms = row
        metrics.append(Metric(name, float(value) if value in ("nan", "inf", "-inf") else value, step, timestamp_ms))
    return metrics


# Of the fields of a record that are plain values, what each must be.
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
    """A node of the lineage: what it is, what it came from, what it measured and the digests of what it made.

    `key` is the SHA-256 of what determines the node's bits (for a level, the level digest); two runs with one key are
    the same result. `files` maps each artifact's relative name to its SHA-256 and is filled by `LocalNodes.commit`.
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
        """Key of the node this one is shown under: as given, else the ticket, else the first node compared."""
        if self.nested_under is not None or self.kind in ("search", "report"):
            return self.nested_under
        order = {relation: rank for rank, relation in enumerate(("trained-from", "masked-by", "pruned-from"))}
        return min(self.parents, key=lambda parent: order.get(parent.relation, 9)).key if self.parents else None

    def last_metrics(self) -> dict[str, float]:
        """Return each metric's value at its latest (step, time)."""
        latest: dict[str, Metric] = {}
        for metric in self.metrics:
            seen = latest.get(metric.name)
            if seen is None or (metric.step, metric.timestamp_ms) >= (seen.step, seen.timestamp_ms):
                latest[metric.name] = metric
        return {name: float(metric.value) for name, metric in latest.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-able data; `from_dict` reads it back."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["parents"] = [{"key": parent.key, "relation": parent.relation} for parent in self.parents]
        data["metrics"] = metric_rows(self.metrics)
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, text: bytes) -> "LineageRecord":
        """Return the record that a file's bytes hold; ValueError as `from_dict`, and when they are no JSON."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not a lineage record: {type(error).__name__}: {error}") from None

    @classmethod
    def from_dict(cls, data: object) -> "LineageRecord":
        """Return the record `to_dict` wrote; ValueError on a newer format, unknown or missing fields, wrong types."""
        if not isinstance(data, dict) or "format" not in data:
            raise ValueError("not a lineage record: expected a JSON object with a field 'format'")
        if data["format"] != FORMAT:
            raise ValueError(
                f"lineage record of format {data['format']!r}; this version reads format {FORMAT}: use the version "
                "of the harness that wrote it, or a newer one"
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
