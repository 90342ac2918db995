"""The file MLmodel, by which `mlflow.pyfunc.load_model` finds the loader of a run's network.

It is derived from the record, and no part of a run: local directories and keys do not have it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from harness.lineage.nodes.local_files import DETERMINANTS, json_bytes
from harness.lineage.nodes.record import CHECKPOINT, LineageRecord

MLMODEL = "MLmodel"
LOADER = "harness.lineage.pyfunc"
"""Module with `_load_pyfunc`. Written into every MLmodel, so it must not move."""


def has_mlmodel(kind: str, files: Mapping[str, str]) -> bool:
    """Return whether a run gets an MLmodel: levels and final trainings do. Early versions recorded no determinants."""
    return kind in ("level", "training") and {CHECKPOINT, DETERMINANTS} <= files.keys()


def mlmodel(
    record: LineageRecord, determinants: Mapping[str, Any], *, run_id: str | None = None, model_id: str | None = None
) -> bytes:
    """Return the content of MLmodel. Equal arguments give equal bytes.

    Args:
        record: The run.
        determinants: Content of its determinants.json.
        run_id: Its MLflow run ID, if it is delivered.
        model_id: The ID of its logged model.
    """
    # Phase: the loader. Its options can be overridden with `model_config`.
    flavor: dict[str, Any] = {"loader_module": LOADER, "config": {"trust_code": False, "device": "cpu"}}
    if "python" in record.code:
        flavor["python_version"] = record.code["python"]
    made = datetime.fromtimestamp(record.finished_ms / 1000, UTC).replace(tzinfo=None)
    found: dict[str, Any] = {"flavors": {"python_function": flavor}, "utc_time_created": str(made)}

    # Phase: images and logits. A run of a user's own loop records no network.
    spec = determinants.get("spec")
    if isinstance(spec, Mapping):
        channels, size, classes = (int(spec[name]) for name in ("channels", "image_size", "num_classes"))
        found["signature"] = {
            "inputs": _tensor([-1, channels, size, size]),
            "outputs": _tensor([-1, classes]),
            "params": None,
        }

    # Phase: identity. JSON is valid YAML, so no YAML library is needed.
    metrics = record.last_metrics()
    facts = {name: metrics[name] for name in ("density", "test_error_percent") if name in metrics}
    found["metadata"] = {"key": record.key, "name": record.name, **{name: repr(value) for name, value in facts.items()}}
    found |= {"model_uuid": record.key[:32]}
    found |= {"run_id": run_id} if run_id else {}
    found |= {"model_id": model_id} if model_id else {}
    return json_bytes(found)


def fault(content: bytes, key: str) -> str | None:
    """Return what is wrong with an MLmodel in MLflow, or None. MLflow executes the module that the file names.

    Args:
        content: The file.
        key: Key of the run.
    """
    try:
        found = json.loads(content)
        flavors, told = found["flavors"], found["metadata"]["key"]
        loader = flavors["python_function"]
        names, module, trusts = loader.keys(), loader["loader_module"], loader["config"]["trust_code"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "is not as the harness writes it"
    if flavors.keys() != {"python_function"} or names - {"loader_module", "config", "python_version"}:
        return "has entries that the harness does not write"
    if module != LOADER:
        return f"names the loader {module!r:.80} instead of {LOADER}"
    if trusts is not False:
        return "trusts the code of the run"
    return None if told == key else "is that of another run"


def asks_for_trust(content: bytes) -> bool:
    """Return whether an MLmodel sets `trust_code`, or is not as the harness writes it."""
    try:
        trusts = json.loads(content)["flavors"]["python_function"]["config"]["trust_code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return True
    return trusts is not False


def _tensor(shape: list[int]) -> str:
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": shape}}])
