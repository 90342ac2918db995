"""Compare the settings, data, seeds, code and masks of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.lineage.browse.find import Named, find_node
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import ERROR_BY_EPOCH, SIGNED_MASK, LineageRecord
from harness.lineage.store import LineageStore

if TYPE_CHECKING:
    from harness.masks.signs import LayerSigns

_SEEDS = ("init_seed", "sgd_seed")
_LAUNCH = ("launch", "argv", "command", "hardware")
_PLACES = (
    *("runs", "experiment", "offline", "data.directory", "checkpoint_every", "checkpoint_unit", "stuck_after"),
    *("earlier_processes", "evaluate_every"),
)
"""Settings that do not change the result. They are listed with the launch."""


@dataclass(frozen=True)
class Difference:
    """Hold the differences between runs a and b.

    `sections` is {section: {name: (value of a, value of b)}}, with None for a missing value. `layers` has one row for
    each prunable tensor of the signed masks. It is None if the masks cannot be compared, for the reason in
    `why_no_masks`.
    """

    a: LineageRecord
    b: LineageRecord
    sections: dict[str, dict[str, tuple[Any, Any]]]
    layers: list[LayerSigns] | None
    why_no_masks: str = ""

    @property
    def total(self) -> LayerSigns | None:
        """Kept weights and agreeing signs over all layers, or None if the masks cannot be compared."""
        from harness.masks.signs import LayerSigns

        return None if self.layers is None else LayerSigns.total(self.layers)

    @property
    def differing_layers(self) -> list[LayerSigns]:
        """Layers in which the kept weights or their signs differ."""
        return [row for row in self.layers or [] if not row.kept_a == row.kept_b == row.kept_both == row.agreeing]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable data.

        The form is {"differences": {section: {name: [value of a, value of b]}}, "masks": {...}}.
        """
        sections = {title: {name: list(pair) for name, pair in rows.items()} for title, rows in self.sections.items()}
        if self.layers is None or self.total is None:
            return {"differences": sections, "masks": {"comparable": False, "why": self.why_no_masks}}
        from harness.masks.signs import overlap_by_chance

        masks = {
            "comparable": True,
            "all_layers": _row(self.total) | {"overlap_by_chance": _number(overlap_by_chance(self.layers))},
            "differing_layers": [_row(row) for row in self.differing_layers],
            "num_layers": len(self.layers),
        }
        return {"differences": sections, "masks": masks}


def diff(store: LineageStore, a: Named, b: Named) -> Difference:
    """Compare two runs, given as summaries or by anything that `find_node` accepts.

    Raises:
        LookupError: A run or its record cannot be found.
        ValueError: A record or mask was altered.
    """
    a, b = find_node(store, a), find_node(store, b)
    first, second = store.record_of(a), store.record_of(b)
    layers, why = _compare_masks(store, a, b)
    return Difference(first, second, differences(first, second), layers, why)


def differences(a: LineageRecord, b: LineageRecord) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Compare two records.

    Returns:
        {section: {name: (value of a, value of b)}}, without sections that have no difference.
    """
    one, other = _sections(a), _sections(b)
    found = {title: _differing(one[title], other[title]) for title in one}
    return {title: rows for title, rows in found.items() if rows}


def _sections(record: LineageRecord) -> dict[str, dict[str, Any]]:
    """Sort the content of a record into sections.

    Return {section: {name: value}} of its tags, config, code versions and errors.
    """
    config = _flat(record.config)
    settings: dict[str, Any] = {}
    launch: dict[str, Any] = {}
    data: dict[str, Any] = {}
    # Phase: seeds. A final training has its own, which take precedence over those of its search.
    drawn = {name: config.get(name, config.get(f"search.{name}")) for name in _SEEDS if name not in record.tags}
    seeds = _of(record.tags, *_SEEDS) | {name: str(value) for name, value in drawn.items() if value is not None}
    # Phase: split the flat config into settings, data and launch
    for name, value in config.items():
        section, _, rest = name.partition(".")
        inner = rest if section in ("search", "launch") else name
        if inner in _SEEDS:
            continue
        if section in _LAUNCH or inner in _PLACES:
            launch[inner] = value
        elif inner.startswith("data."):
            data[inner.removeprefix("data.")] = value
        else:
            settings[inner] = value
    # Phase: add values from tags, code versions and metrics
    data |= _of(record.tags, "data", "data_digest")
    code = _of(record.code, "commit", "dirty")
    parents = {parent.relation: parent.key for parent in record.parents}
    return {
        "what": {"kind": record.kind, **_of(record.tags, "kind_of_training", "method", "model", "level")},
        "came from": parents,
        "settings": settings,
        "data": data,
        "seeds": seeds,
        "code": code,
        "packages": {name: version for name, version in record.code.items() if name not in (*code, "machine")},
        "launch": launch | _of(record.code, "machine"),
        "results": {
            name: value
            for name, value in record.last_metrics().items()
            if "error_percent" in name and name != ERROR_BY_EPOCH
        },
    }


def _of(values: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the given names that exist, with their values."""
    return {name: values[name] for name in names if name in values}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings, with names such as "search.data.name"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _compare_masks(store: LineageStore, a: RunSummary, b: RunSummary) -> tuple[list[LayerSigns] | None, str]:
    """Return (rows by layer, ""), or (None, reason) without comparable masks."""
    from harness.masks import SignedMask
    from harness.masks.signs import compare_signs

    masks: list[SignedMask] = []
    for node in (a, b):
        if SIGNED_MASK not in node.files:
            return None, f"{node.name} ({node.kind}) has no signed mask"
        with store.open_file_of(node, SIGNED_MASK) as path:
            masks.append(SignedMask.load(path))
    if masks[0].mask.shapes() != masks[1].mask.shapes():
        networks = " and ".join(node.tags.get("model", "unknown") for node in (a, b))
        return None, f"their networks differ ({networks}), so their masks cannot be compared"
    return compare_signs(*masks), ""


def _row(row: LayerSigns) -> dict[str, Any]:
    shares = {name: _number(getattr(row, name)) for name in ("mask_overlap", "sign_agreement")}
    return asdict(row) | shares


def _number(value: float) -> float | None:
    return None if value != value else value  # JSON has no NaN
