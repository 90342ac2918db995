"""How a node becomes a run of MLflow: created, filled, marked finished last; what is there already is not sent again.

Every node is one run. Its files are one logged model named "network" (an analysis or a report: run artifacts), which
takes the parents' logged models as inputs. The node's key, kind, parents and digests are tags, so that lists and trees
need no artifact. READY on the model and FINISHED on the run are set last: they are the commit marks.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import redact
from harness.common.files import reach, write_atomically
from harness.lineage.nodes.local_files import (
    DELIVERED,
    RECORD,
    LocalNodes,
    absent_files,
    check_files,
    json_bytes,
    read_record,
    read_sums,
)
from harness.lineage.nodes.origin import origin_of
from harness.lineage.nodes.record import WITHOUT_MODEL, LineageRecord
from harness.lineage.tracking.description import (
    LAYERS,
    NOTE_TAG,
    Relative,
    command_of,
    describe,
    hardware_of,
    is_own_note,
    note_tags,
    relation_to,
    with_children,
)
from harness.lineage.tracking.duplicates import remove_models
from harness.lineage.tracking.registry import Registry
from harness.lineage.tracking.server import (
    ABSENT_TAG,
    DIGEST_TAG,
    FAMILIES_TAG,
    KEY_TAG,
    ORIGIN_TAG,
    PARENT_RUNS_TAG,
    PARENTS_TAG,
    ROOT_TAG,
    Server,
    family_digits,
    outputs,
    summary_of,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

MODEL_NAME = "network"  # fixed, so that runs:/<run id>/network/signed_mask.safetensors works for every run

_TAG_CHARACTERS = 8000  # MLflow cuts longer ones without a word
_PARAM_CHARACTERS = 6000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 800, 100  # at most 1000 of all together
_DIGEST_CHARACTERS = 36  # of a data set; MLflow takes no more
_OF_THE_MODEL = ("test_error_percent", "density", "flipped_signs")
_OF_THE_USER = ("test_error_percent", "barrier")


@dataclass(frozen=True)
class LoggedMetric:
    """One metric as it is logged, maybe for a model, maybe measured on a data set."""

    name: str
    value: float
    step: int
    timestamp_ms: int
    model_id: str | None = None
    data_set: Mapping[str, str] = field(default_factory=dict)


class Delivery:
    """Brings local nodes to one server, parents first."""

    def __init__(self, server: Server, local: LocalNodes) -> None:
        self.server, self.local = server, local
        self.registry = Registry(server)
        self.completed: set[str] = set()  # run IDs that this object finished
        self.touched: set[str] = set()  # topmost nodes below which, or from which, something was finished

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
            self.touched |= {one.data.tags[ROOT_TAG] for one in (run, *used.values())}
        self._remember(directory, run.info.run_id)
        return run

    def remembered(self, directory: Path) -> str | None:
        """Return the run ID remembered for a node; the run may have been deleted since."""
        found = self._memory(directory)[1].get(self.server.address)
        return found if isinstance(found, str) else None

    def _memory(self, directory: Path) -> tuple[Path, dict[str, Any]]:
        """Return the file beside a node's directory that remembers its runs, and {address: run ID} as it says."""
        path = directory.parent / DELIVERED / f"{directory.name}.json"
        try:
            remembered = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            remembered = {}
        return path, remembered if isinstance(remembered, dict) else {}

    def _remember(self, directory: Path, run_id: str) -> None:
        """Note the run ID beside the node; only a shortcut, checked before it is believed."""
        path, remembered = self._memory(directory)
        if remembered.get(self.server.address) == run_id:
            return
        with contextlib.suppress(OSError):  # a full disk here must not make a whole delivery look like a failed one
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json_bytes({**remembered, self.server.address: run_id}), durable=False)

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
            PARENTS_TAG: json.dumps([[parent.relation, parent.key] for parent in record.parents]),
            ROOT_TAG: above.data.tags[ROOT_TAG] if above is not None else record.key,
            **({"harness.nested_under": record.nest_key} if record.nest_key is not None else {}),
            **{DIGEST_TAG + name: digest for name, digest in digests.items()},
            **_mlflow_tags(record),
            **({"mlflow.parentRunId": above.info.run_id} if above is not None else {}),
            **_family_tags(record, used),
            **({ORIGIN_TAG: " ".join(origin)} if (origin := origin_of(self.local, directory)) else {}),
            **({ABSENT_TAG: json.dumps(sorted(absent))} if (absent := absent_files(directory, record)) else {}),
        }
        tags = {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}
        client, experiment = self.server.client(), self.server.own_experiment()
        return client.create_run(experiment, start_time=record.started_ms, tags=tags, run_name=redact(record.name))

    def _complete(self, run: Run, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Add what the run does not have yet, and mark it finished last."""
        client, run_id = self.server.client(), run.info.run_id
        reach("run-created")
        params = _params(record.config)
        model = None
        if record.kind in WITHOUT_MODEL:
            client.log_artifacts(run_id, str(directory))
        else:
            model = self._logged_model(run, record, params)
            if str(model.status) != "READY":
                client.log_model_artifacts(model.model_id, str(directory))
                reach("files-sent")
                client.finalize_logged_model(model.model_id, "READY")
            self._log_output(run_id, model)
        if LAYERS in record.files:
            client.log_artifact(run_id, str(directory / LAYERS))  # a run's page shows tables of its own files alone
        self._log_inputs(run_id, record, used)
        # an unfinished run has a description only where somebody wrote one since
        note = {} if NOTE_TAG in run.data.tags else note_tags(_note(run, record, used))
        self._log_batch(run_id, _logged_metrics(record, model, used), params, note)
        self._tell_relatives(run, record, model, used)
        if self.server.is_remote and model is not None:
            remove_models(self.server, run, keep=model.model_id)
        reach("before-finished")
        client.set_terminated(run_id, "FINISHED", end_time=record.finished_ms)
        self.completed.add(run_id)
        return client.get_run(run_id)

    def _tell_relatives(self, run: Run, record: LineageRecord, model: LoggedModel | None, used: dict[str, Run]) -> None:
        """Show the run where it came from: in its parents' descriptions, its search's charts, the registry."""
        for key in dict.fromkeys(parent.key for parent in record.parents):
            self._add_child(used[key])
        if record.kind == "level" and model is not None:
            search = used[record.nest_key] if record.nest_key is not None else None
            if search is not None:
                self._log_batch(search.info.run_id, _level_metrics(record))
            self.registry.register(run.info.run_id, model, record)

    def _add_child(self, parent: Run) -> None:
        """Name everything made from a run in its description, and leave the rest of that as it is."""
        note, key = parent.data.tags.get(NOTE_TAG, ""), parent.data.tags[KEY_TAG]
        if parent.data.tags["harness.kind"] == "search" and is_own_note(parent.data.tags):
            return  # it is written anew with the graph
        children = [Relative(child, relation_to(child, key)) for child in self.server.children_of(key)]
        changed = with_children(note, children)
        if changed != note:
            self.server.client().set_tag(parent.info.run_id, NOTE_TAG, redact(changed))

    def _log_batch(
        self,
        run_id: str,
        points: Sequence[LoggedMetric],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log everything in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        # With the time of measurement, not of sending: MLflow keeps a point that comes twice once.
        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step, model_id=p.model_id, **p.data_set) for p in points]
        batches = zip_longest(
            _chunks(metrics, _METRICS_PER_CALL),
            _chunks([Param(name, value) for name, value in (params or {}).items()], _PARAMS_PER_CALL),
            _chunks([RunTag(name, value) for name, value in (tags or {}).items()], _PARAMS_PER_CALL),
            fillvalue=(),
        )
        for some_metrics, some_params, some_tags in batches:
            self.server.client().log_batch(run_id, some_metrics, some_params, some_tags, synchronous=True)

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
            dataset = Dataset(data, digest[:_DIGEST_CHARACTERS], source_type="local", source=source)
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


def _note(run: Run, record: LineageRecord, used: dict[str, Run]) -> str:
    node = replace(summary_of(run), metrics=record.last_metrics())
    parents = [Relative(summary_of(used[parent.key]), parent.relation) for parent in record.parents]
    return redact(describe(node, parents))


def _logged_metrics(record: LineageRecord, model: LoggedModel | None, used: dict[str, Run]) -> list[LoggedMetric]:
    """Return every point, the last ones for the run's own model too, and one for each model that was used.

    A model's page lists the runs that logged a metric for it.
    """
    points = [
        LoggedMetric(metric.name, float(metric.value), metric.step, metric.timestamp_ms) for metric in record.metrics
    ]
    data, digest = record.tags.get("data"), record.tags.get("data_digest")
    data_set = {"dataset_name": data, "dataset_digest": digest[:_DIGEST_CHARACTERS]} if data and digest else {}
    if model is not None:
        own = _last(record, _OF_THE_MODEL)
        points += [replace(point, model_id=model.model_id, data_set=data_set) for point in own]
    models = dict.fromkeys(one for parent in record.parents for one in outputs(used[parent.key]))
    for point in _last(record, _OF_THE_USER):
        points += [replace(point, name=f"used_for_{point.name}", model_id=one, data_set=data_set) for one in models]
    return points


def _level_metrics(record: LineageRecord) -> list[LoggedMetric]:
    """Return a level's last numbers as points of its search, by level."""
    level = record.tags.get("level", "")
    if not level.isdecimal():
        return []
    return [replace(point, name=f"levels/{point.name}", step=int(level)) for point in _last(record, _OF_THE_MODEL)]


def _last(record: LineageRecord, names: Sequence[str]) -> list[LoggedMetric]:
    """Return the last point of each of these metrics that the record has."""
    last = []
    for name in names:
        found = [metric for metric in record.metrics if metric.name == name]
        if found:
            metric = max(found, key=lambda one: (one.step, one.timestamp_ms))
            last.append(LoggedMetric(name, float(metric.value), metric.step, metric.timestamp_ms))
    return last


def _mlflow_tags(record: LineageRecord) -> dict[str, str]:
    """Return what MLflow's own pages look for: source, commit, tables; and how the run was launched, on what."""
    tags = {"mlflow.source.git.commit": record.code.get("commit", "unknown")}
    argv = record.config.get("argv")
    if isinstance(argv, list) and argv:
        tags |= {"mlflow.source.name": str(argv[0]), "mlflow.source.type": "LOCAL"}
    if LAYERS in record.files:
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": LAYERS, "type": "table"}])
    launch = {"launch.command": command_of(record), "launch.hardware": hardware_of(record)}
    return tags | {name: value for name, value in launch.items() if value}


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
