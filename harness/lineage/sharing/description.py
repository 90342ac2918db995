"""What a shared run is: its network, data, results and digests, read from its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.config.own_loop import OWN_LOOP
from harness.lineage.bundle import TOP_FILES
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import CHECKPOINT, LineageRecord
from harness.lineage.tracking.description import command_of

SHAREABLE = ("level", "training")
"""Kinds of run with a trained network."""


def check_shareable(record: LineageRecord) -> LineageRecord:
    """Return the record of a run that has a trained network.

    Raises:
        ValueError: The run has none. The message says which runs have one.
    """
    if record.kind in SHAREABLE and CHECKPOINT in record.files:
        return record
    has = {"search": "only θ_init", "analysis": "no network", "report": "no network"}.get(record.kind, "no checkpoint")
    raise ValueError(f"{record.name} is a {record.kind} and has {has}: export a level or a final training")


@dataclass(frozen=True)
class SharedRun:
    """A level or a final training, as others see it."""

    record: LineageRecord
    determinants: Mapping[str, Any]
    """Content of its determinants.json. {} for a run of an early version."""
    run_ids: tuple[str, ...] = ()
    """Its MLflow run IDs, newest first."""

    @property
    def network_known(self) -> bool:
        """Whether the harness can build the network. It cannot for a run of a user's own loop."""
        return "model" in self.determinants and self.determinants.get("made_by") != OWN_LOOP

    @property
    def spec(self) -> dict[str, Any]:
        """Classes, channels, image size, mean and standard deviation. {} if they are unknown."""
        spec = self.determinants.get("spec", {})
        return dict(spec) if isinstance(spec, Mapping) else {}

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of an image, or None if they are unknown."""
        try:
            return int(self.spec["channels"]), int(self.spec["image_size"]), int(self.spec["image_size"])
        except KeyError:
            return None

    @property
    def density(self) -> float | None:
        """Kept share of the prunable weights, 0..1."""
        found = self.record.last_metrics().get("density")
        if found is None and "density" in self.record.tags:
            found = float(self.record.tags["density"])
        return found

    @property
    def test_error_percent(self) -> float | None:
        """Test error of the stored network, or None if the user's loop did not log it."""
        return self.record.last_metrics().get("test_error_percent")

    @property
    def network(self) -> str:
        """Name of the network, or "network" if it is unknown."""
        tags = self.record.tags
        return tags.get("network", tags.get("model", "network"))

    @property
    def command(self) -> str:
        """The shell command that launched the run; "" if it was not recorded."""
        return command_of(self.record)

    @property
    def made_at(self) -> str:
        """Time at which the run finished, in ISO 8601."""
        return datetime.fromtimestamp(self.record.finished_ms / 1000, UTC).isoformat(timespec="seconds")

    @property
    def short_name(self) -> str:
        """A name for files: method, network, data, level and the first digits of the key."""
        tags = self.record.tags
        words = [tags.get("method"), self.network, tags.get("data")]
        words += [f"L{tags['level']}" if "level" in tags else None, tags.get("kind_of_training"), self.record.key[:8]]
        return "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in words if word)

    def config(self) -> dict[str, Any]:
        """Return the content of an exported config.json."""
        # Phase: identity and results.
        record, spec = self.record, self.spec
        found: dict[str, Any] = {
            "format": "harness.export/1",
            "library_name": "signed-tickets",
            "library_version": record.code.get("signed-tickets"),
            "run": {"key": record.key, "kind": record.kind, "name": record.name, "run_ids": list(self.run_ids)},
            "method": record.tags.get("method"),
            "density": self.density,
            "test_error_percent": self.test_error_percent,
            "sha256": {top: record.files[name] for name, top in TOP_FILES.items() if name in record.files},
        }
        if "level" in record.tags:
            found["level"] = int(record.tags["level"]) if record.tags["level"].isdecimal() else record.tags["level"]

        # Phase: the network and its images.
        if self.network_known:
            found["network"] = dict(self.determinants["model"])
        found |= {name: spec[name] for name in ("num_classes", "channels", "image_size", "mean", "std") if name in spec}
        if "data" in record.tags:
            found["data"] = {"name": record.tags["data"], "digest": record.tags.get("data_digest")}
        return found


def parse_determinants(content: bytes) -> dict[str, Any]:
    """Return the content of determinants.json.

    Raises:
        ValueError: It is no JSON object.
    """
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"{DETERMINANTS} is no JSON object")
    return found
