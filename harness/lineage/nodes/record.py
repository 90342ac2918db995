"""What a node of the lineage says about itself: plain data, no files, no server."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

FORMAT = 1  # of the JSON form below; raise it when an older reader would misread a newer file

# Names of the files that a node may hold; methods name their own extra files.
CHECKPOINT, SIGNED_MASK, THETA_INIT = "checkpoint.safetensors", "signed_mask.safetensors", "theta_init.safetensors"

KINDS = ("search", "level", "training", "analysis", "report")
WITHOUT_MODEL = ("analysis", "report")  # they make numbers and pages, not a network
RELATIONS = ("initialised-from", "pruned-from", "masked-by", "trained-from", "compared", "reported")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_./ :-]{1,200}")  # what MLflow takes as the name of a metric or tag
_FILE = re.compile(r"[A-Za-z0-9_./ -]{1,200}")


def _check(value: object, kind: type | tuple[type, ...], what: str) -> None:
    # bool is an int to isinstance, and a step of True is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        allowed = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{what}: expected {allowed}, got {type(value).__name__} ({value!r:.60})")


def _check_digest(value: object, what: str) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{what}: expected a SHA-256 as 64 lower-case hex digits, got {value!r:.80}")


def _check_names(data: Mapping[str, Any], expected: Iterable[str], what: str) -> None:
    expected = set(expected)
    if unknown := sorted(set(data) - expected):
        raise ValueError(f"{what}: unknown fields {unknown}; known: {sorted(expected)}")
    if missing := sorted(expected - set(data)):
        raise ValueError(f"{what}: fields {missing} are missing")


def check_file_name(name: str) -> str:
    """Return `name` if it is a relative POSIX path that stays inside its directory; ValueError otherwise.

    Records are read from other people's stores, so a name must not be able to leave the directory it is put in.
    """
    path = PurePosixPath(name)
    if not _FILE.fullmatch(name) or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"file name {name!r}: allowed are relative paths like 'figures/barrier.svg', without '..'")
    return name


def _check_word(value: object, what: str) -> None:
    # Checked where the name is given: at delivery it would be too late, after a day of training.
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{what} {value!r:.80}: allowed are 1 to 200 ASCII letters, digits and _ . / : - space")


def _strings(value: object, what: str) -> dict[str, str]:
    _check(value, dict, what)
    assert isinstance(value, dict)
    for key, item in value.items():
        _check_word(key, f"{what}, name")
        _check(item, str, f"{what}[{key!r}]")
    return dict(value)


@dataclass(frozen=True)
class Parent:
    """What a node was made from: the parent's key and how it was used."""

    key: str
    relation: str

    def __post_init__(self) -> None:
        _check_digest(self.key, "parent key")
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
        _check_word(self.name, "metric name")
        _check(self.value, (float, int), f"metric {self.name}")
        _check(self.step, int, f"step of metric {self.name}")
        _check(self.timestamp_ms, int, f"timestamp of metric {self.name}")

    def to_list(self) -> list[Any]:
        """Return [name, value, step, timestamp]; JSON has no NaN, so a non-finite value is its name as text."""
        value = float(self.value)
        return [self.name, value if math.isfinite(value) else str(value), self.step, self.timestamp_ms]

    @classmethod
    def from_list(cls, row: object) -> "Metric":
        _check(row, list, "metric")
        assert isinstance(row, list)
        if len(row) != 4:
            raise ValueError(f"metric: expected [name, value, step, timestamp_ms], got {len(row)} items")
        name, value, step, timestamp_ms = row
        if value in ("nan", "inf", "-inf"):
            value = float(value)
        return cls(name, value, step, timestamp_ms)


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
        _check_digest(self.key, "key of a lineage record")
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of a lineage record; known: {', '.join(KINDS)}")
        _check(self.name, str, "name of a lineage record")
        if self.nested_under is not None:
            _check_digest(self.nested_under, f"nested_under of {self.name}")
        _check(self.config, dict, f"config of {self.name}")
        _strings(self.tags, f"tags of {self.name}")
        _strings(self.code, f"code of {self.name}")
        for file_name, digest in _strings(self.files, f"files of {self.name}").items():
            _check_digest(digest, f"digest of {check_file_name(file_name)}")
        _check(self.started_ms, int, f"started_ms of {self.name}")
        _check(self.finished_ms, int, f"finished_ms of {self.name}")

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
        data["metrics"] = [metric.to_list() for metric in self.metrics]
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
            _check_names(parent, ("key", "relation"), "parent")
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        _check(values["metrics"], list, "metrics")
        values["metrics"] = tuple(Metric.from_list(row) for row in values["metrics"])
        return cls(**values)
