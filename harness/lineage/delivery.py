"""How a node becomes a run of MLflow: created, filled, marked finished last; what is there already is not sent again.

Every node is one run. Its files are one logged model named "network" (an analysis or a report: run artifacts), which
takes the parents' logged models as inputs. The node's key, kind, parents and digests are tags, so that lists and trees
need no artifact. READY on the model and FINISHED on the run are set last: they are the commit marks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.faults import reach
from harness.lineage.local import DELIVERED, RECORD, LocalNodes, check_files, json_bytes, read_record, read_sums
from harness.lineage.origin import origin_of
from harness.lineage.record import WITHOUT_MODEL, LineageRecord
from harness.lineage.server import (
    DIGEST_TAG,
    FAMILIES_TAG,
    KEY_TAG,
    ORIGIN_TAG,
    PARENT_RUNS_TAG,
    ROOT_TAG,
    Server,
    family_digits,
    outputs,
    redact,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

MODEL_NAME = "network"  # fixed, so that runs:/<run id>/network/signed_mask.safetensors works for every run

_TAG_CHARACTERS = 8000  # MLflow cuts longer ones without a word
_PARAM_CHARACTERS = 6000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100


class Delivery:
    """Brings local nodes to one server, parents first."""

    def __init__(self, server: Server, local: LocalNodes) -> None:
        self.server, self.local = server, local
        self.completed: set[str] = set()  # run IDs that this object finished

    def deliver(self, directory: Path, record: LineageRecord) -> Run:
        """Return the finished run of a committed node, made or completed if need be, its parents' before it.

        Killed anywhere and called again, it leaves one complete run without doubled points.
        """
        run = self._known_run(directory, record.key)
        if run is None or run.info.status != "FINISHED":
            check_files(directory, record)
            used = {key: self._parent_run(record, key) for key in _used_keys(record)}
            if run is None:
                run = self._create_run(directory, record, used)
            run = self._complete(run, directory, record, used)
        self._remember(directory, run.info.run_id)
        return run

    def remembered(self, directory: Path) -> str | None:
        """Return the run ID remembered for a node; the run may have been deleted since."""
        try:
            remembered = json.loads(self._memory(directory).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        found = remembered.get(self.server.address) if isinstance(remembered, dict) else None
        return found if isinstance(found, str) else None

    def _memory(self, directory: Path) -> Path:
        return directory.parent / DELIVERED / f"{directory.name}.json"

    def _remember(self, directory: Path, run_id: str) -> None:
        """Note the run ID beside the node; only a shortcut, checked before it is believed."""
        if self.remembered(directory) == run_id:
            return
        path = self._memory(directory)
        with contextlib.suppress(OSError):  # a full disk here must not make a whole delivery look like a failed one
            path.parent.mkdir(exist_ok=True)
            try:
                remembered = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                remembered = {}
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(json_bytes({**remembered, self.server.address: run_id}))
            os.replace(temporary, path)

    def _known_run(self, directory: Path, key: str) -> Run | None:
        """Return the run of this key, by the remembered ID if that still holds, else by the tag."""
        remembered = self.remembered(directory)
        if remembered is not None:
            run = self.server.get_run(remembered)
            if run is not None and run.data.tags.get(KEY_TAG) == key and run.info.status == "FINISHED":
                return run
        return self.server.run_with(key)

    def _parent_run(self, record: LineageRecord, key: str) -> Run:
        """Return the finished run of a parent, delivering it from its local node first if need be."""
        directory = self.local.find(key)
        if directory is not None:
            return self.deliver(directory, read_record(directory))
        run = self.server.run_with(key)
        if run is None or run.info.status != "FINISHED":
            place = f"{self.local.directory.resolve()} nor a finished run in {redact(self.server.tracking_uri or '')}"
            raise LookupError(f"{record.name} was made from node {key[:16]}…, which is neither in {place}")
        return run

    def _create_run(self, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Create the run with all its tags in one call: a run without its key could not be found again."""
        above = used[record.nest_key] if record.nest_key is not None else None
        digests = {**record.files, RECORD: read_sums(directory)[RECORD]}
        tags = {
            **run_tags(record),
            KEY_TAG: record.key,
            "harness.kind": record.kind,
            "harness.parents": json.dumps([[parent.relation, parent.key] for parent in record.parents]),
            "harness.root": above.data.tags["harness.root"] if above is not None else record.key,
            **({"harness.nested_under": record.nest_key} if record.nest_key is not None else {}),
            **{DIGEST_TAG + name: digest for name, digest in digests.items()},
            "mlflow.source.git.commit": record.code.get("commit", "unknown"),
            **({"mlflow.parentRunId": above.info.run_id} if above is not None else {}),
            **_family_tags(record, used),
            **({ORIGIN_TAG: " ".join(origin)} if (origin := origin_of(self.local, directory)) else {}),
        }
        tags = {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}
        experiment = self.server.own_experiment()
        return self.server.client().create_run(
            experiment, start_time=record.started_ms, tags=tags, run_name=record.name
        )

    def _complete(self, run: Run, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Add what the run does not have yet, and mark it finished last."""
        client, run_id = self.server.client(), run.info.run_id
        reach("run-created")
        params = _params(record.config)
        self._log_params(run_id, params)
        if record.kind in WITHOUT_MODEL:
            client.log_artifacts(run_id, str(directory))
        else:
            model = self._logged_model(run, record, params)
            if str(model.status) != "READY":
                client.log_model_artifacts(model.model_id, str(directory))
                reach("files-sent")
                client.finalize_logged_model(model.model_id, "READY")
            self._log_output(run_id, model)
        self._log_inputs(run_id, record, used)
        self._log_metrics(run_id, record)
        reach("before-finished")
        client.set_terminated(run_id, "FINISHED", end_time=record.finished_ms)
        self.completed.add(run_id)
        return client.get_run(run_id)

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        for chunk in _chunks(entities, _PARAMS_PER_CALL):
            self.server.client().log_batch(run_id, params=chunk, synchronous=True)

    def _log_metrics(self, run_id: str, record: LineageRecord) -> None:
        from mlflow.entities import Metric

        # With the time of measurement, not of sending: MLflow keeps a point that comes twice once.
        entities = [Metric(m.name, float(m.value), m.timestamp_ms, m.step) for m in record.metrics]
        for chunk in _chunks(entities, _METRICS_PER_CALL):
            self.server.client().log_batch(run_id, metrics=chunk, synchronous=True)

    def _logged_model(self, run: Run, record: LineageRecord, params: dict[str, str]) -> LoggedModel:
        """Return the run's logged model, created (PENDING) if an interrupted delivery had not come so far."""
        client, run_id = self.server.client(), run.info.run_id
        found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        for model in found:
            if model.name == MODEL_NAME:
                return model
        tags = {KEY_TAG: record.key, **record.tags, **{DIGEST_TAG + name: d for name, d in record.files.items()}}
        tags = {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}
        return client.create_logged_model(
            run.info.experiment_id,
            name=MODEL_NAME,
            source_run_id=run_id,
            tags=tags,
            params=params,
            model_type=record.kind,
        )

    def _log_output(self, run_id: str, model: LoggedModel) -> None:
        from mlflow.entities import LoggedModelOutput

        client = self.server.client()
        if model.model_id not in outputs(client.get_run(run_id)):  # sent twice, it raises
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])

    def _log_inputs(self, run_id: str, record: LineageRecord, used: dict[str, Run]) -> None:
        """Say natively what the run was made from: the parents' logged models and the data set."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        client = self.server.client()
        run = client.get_run(run_id)
        known_models = {given.model_id for given in run.inputs.model_inputs} if run.inputs else set()
        known_data = {given.dataset.name for given in run.inputs.dataset_inputs} if run.inputs else set()
        wanted = {model_id: None for parent in record.parents for model_id in outputs(used[parent.key])}
        models = [LoggedModelInput(model_id) for model_id in wanted if model_id not in known_models]
        datasets = []
        data, digest = record.tags.get("data"), record.tags.get("data_digest")
        if data and digest and data not in known_data:
            source = json.dumps({"content_digest": digest})
            dataset = Dataset(data, digest[:36], source_type="local", source=source)  # MLflow takes 36 characters
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "train")]))
        if models or datasets:
            client.log_inputs(run_id, datasets=datasets, models=models)


def run_tags(record: LineageRecord) -> dict[str, str]:
    """Return the tags of a run that its record alone gives, as they stand in MLflow."""
    tags = record.tags | {f"code.{name}": value for name, value in record.code.items()}
    return {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}


def _used_keys(record: LineageRecord) -> list[str]:
    keys = [parent.key for parent in record.parents] + ([record.nest_key] if record.nest_key is not None else [])
    return list(dict.fromkeys(keys))


def _family_tags(record: LineageRecord, used: dict[str, Run]) -> dict[str, str]:
    """Return what lets a node's relatives be found in few requests, also when they belong to other searches."""
    parents = dict.fromkeys(used[parent.key].info.run_id for parent in record.parents)
    roots = [run.data.tags[ROOT_TAG] for run in used.values()]
    families = dict.fromkeys(family_digits(root) for root in roots + [record.key] * (record.nest_key is None))
    tags = {PARENT_RUNS_TAG: " ".join(parents)} if parents else {}
    return tags | ({FAMILIES_TAG: " ".join(families)} if len(families) > 1 else {})


def _shorten(value: str, limit: int) -> str:
    note = f" … (cut; whole in {RECORD})"
    return value if len(value) <= limit else value[: limit - len(note)] + note


def _params(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as flat names with dots, which MLflow shows and compares side by side."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        name = re.sub(r"[^A-Za-z0-9_./ -]", "_", f"{prefix}{name}")
        if isinstance(value, dict) and value:
            flat |= _params(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[name] = _shorten(redact(text), _PARAM_CHARACTERS)
    return flat


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
