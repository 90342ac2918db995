"""Deliver local runs to MLflow. Delivery is idempotent: a retry adds only the missing parts.

- A local run becomes one MLflow run. Its files become one logged model named "network". Comparisons and reports have no
  network, so their files are run artifacts.
- The logged model of a level or final training also has `MLmodel`, for `mlflow.pyfunc.load_model`.
- The parents' logged models are inputs of the run.
- Tags hold the key, kind, parents and digests. Lists and trees are built from tags, without reading artifacts.
- Tags, parameters and metrics that nothing reads are not sent. All of them are in the artifact `record.json`.
- FINISHED on the run and READY on the model are set last. They mark a complete delivery.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import redact
from harness.common.files import reach, read_json, write_atomically
from harness.config import INITIAL_WEIGHTS
from harness.lineage.mlmodel import MLMODEL, has_mlmodel, mlmodel
from harness.lineage.nodes.contents import conflict, differing, suspects
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import (
    DELIVERED,
    DETERMINANTS,
    RECORD,
    LocalNodes,
    absent_files,
    check_file,
    check_files,
    json_bytes,
    read_record,
    read_sums,
)
from harness.lineage.nodes.origin import origin_of, remember_origin
from harness.lineage.nodes.record import SIGNED_MASK, WITHOUT_MODEL, LineageRecord, Metric
from harness.lineage.tracking.description import (
    LAYERS,
    MODEL_NAME,
    NOTE_TAG,
    Relative,
    command_of,
    describe,
    describe_model,
    hardware_of,
    is_own_note,
    note_tags,
    relation_to,
    with_children,
)
from harness.lineage.tracking.duplicates import remove_models
from harness.lineage.tracking.moved import send_directory, send_file, send_model_file, send_text
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
    check_answer,
    family_digits,
    outputs,
    root_of,
    summary_of,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

_log = logging.getLogger(__name__)

# Tags of a record that are sent: filters, lists, pages, figures, `gc` or columns of the UI read them.
_TAGS = (
    *("method", "alpha", "model", "network", "data", "data_digest", "settings", INITIAL_WEIGHTS),
    *("level", "density", "init_seed", "sgd_seed", "kind_of_training", "question", "precision"),
    *("parent_world_size", "unpruned_signs", "signs", "initialisation", "transferred"),
)
_CODE_TAGS = ("commit", "dirty")
_MODEL_TAGS = ("method", "level", "kind_of_training", "init_seed", "sgd_seed")

# Metrics that are not sent: the settings determine them, or they count a property of the result once.
_CONSTANTS = ("epochs_total", "exact_zeros_kept", "negative_norm_scales")

# Limits of MLflow. It cuts longer tags and parameters silently.
_TAG_CHARACTERS, _PARAM_CHARACTERS = 8000, 6000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 800, 100  # at most 1000 entities per call
_DIGEST_CHARACTERS = 36  # of a data set

MODEL_METRICS = ("test_error_percent", "density", "flipped_signs")
"""Metrics whose last value is also logged for the run's model, and for the search of a level."""
_OF_THE_USER = ("test_error_percent", "barrier")
_TABLE_DIGITS = 4

OTHER = "other"
"""In the cache of run IDs: this run has the key, but other contents."""


@dataclass(frozen=True)
class LoggedMetric:
    """A point of a metric, with the logged model and the data set that it belongs to, if any."""

    name: str
    value: float
    step: int
    timestamp_ms: int
    model_id: str | None = None
    data_set: Mapping[str, str] = field(default_factory=dict)


class Delivery:
    """Deliver local runs to one server, parents first."""

    def __init__(self, server: Server, local: LocalNodes) -> None:
        self.server, self.local = server, local
        self.registry = Registry(server)
        self.completed: set[str] = set()  # IDs of the runs that this object finished
        self.touched: set[str] = set()  # root keys whose overview is stale
        self._differing: dict[str, list[str]] = {}  # names of differing files by run ID, from earlier comparisons

    def deliver(self, directory: Path, record: LineageRecord) -> Run:
        """Return the finished MLflow run of a committed local run, and deliver missing parts and parents first.

        A retry after a crash at any point leaves exactly one complete run, without duplicate points.
        """
        earlier = self.remembered(directory)
        run = self._known_run(directory, record.key)
        if run is None or run.info.status != "FINISHED":
            check_files(directory, record)
            with self.server.alone():
                # Another process that shares a SQLite file may have delivered the run while this one waited.
                if self.server.is_file:
                    self.server.experiments(anew=True)
                    run = self.server.run_with(record.key, read_sums(directory)[RECORD])
                if run is None or run.info.status != "FINISHED":
                    run = self._fill(run, directory, record)
        self.check_contents(run, directory, record)
        self.keep_ids(run, directory, record, (earlier,) if earlier is not None else ())
        self._remember(directory, run.info.run_id)
        return run

    def _fill(self, run: Run | None, directory: Path, record: LineageRecord) -> Run:
        """Create a run if it is None, and add all missing parts. Parents are delivered first."""
        if run is not None and run.data.tags.get(DIGEST_TAG + RECORD, "") != read_sums(directory)[RECORD]:
            run = None  # the interrupted delivery of another making: its digests are not those of these files
        used = {key: self._parent_run(record, key) for key in _used_keys(record)}
        if run is None:
            run = self._create_run(directory, record, used)
        run = self._complete(run, directory, record, used)
        self.touched |= {self._root(one) for one in (run, *used.values())}
        return run

    def _root(self, run: Run) -> str:
        """Return the key of the root above a run, also if a person removed the tag."""
        found = run.data.tags.get(ROOT_TAG) or root_of(self.summary(run), self._summary_with)
        return found or str(run.data.tags[KEY_TAG])

    def _summary_with(self, key: str) -> RunSummary | None:
        run = self.server.run_with(key)
        return None if run is None else self.summary(run)

    def summary(self, run: Run) -> RunSummary:
        """Return the summary of a run. Its local record is preferred, because people can edit tags in MLflow."""
        node = summary_of(run)
        try:
            directory = self.local.find(node.key)
            if directory is None:
                return node
            record = read_record(directory)
        except ValueError:  # altered, which `verify` reports
            return node
        tags = {**node.tags, **record.tags}
        return replace(node, kind=record.kind, parents=record.parents, nest_key=record.nest_key, tags=tags)

    def check_contents(self, run: Run, directory: Path, record: LineageRecord) -> None:
        """Raise OtherContentsError if a finished run of this key has other tensors than the local run."""
        run_id, theirs = run.info.run_id, summary_of(run).files
        # An equal record means a copy. Then a person edited the tag of a digest, which `verify` reports.
        if theirs.get(RECORD) == read_sums(directory)[RECORD]:
            return
        if record.files.keys() - theirs.keys():  # a person removed tags, or another version made fewer files
            theirs = {**self.server.recorded_digests(run), **theirs}
        names = suspects(record.files, theirs)
        if names and run_id not in self._differing:
            self._differing[run_id] = differing(
                names,
                lambda name: contextlib.nullcontext(check_file(directory, record, name)),
                lambda name: self.server.artifact(run, name, theirs[name]),
            )
        if names and (files := self._differing[run_id]):
            self._remember(directory, {OTHER: run_id})
            raise conflict(record.name, run_id, files)

    def remembered(self, directory: Path) -> str | None:
        """Return the cached run ID of a local run. The run may have been deleted since."""
        memory = self._memory(directory)[1]
        found = memory.get(self.server.address)
        if found is None and self.server.is_file:
            # A SQLite file that was moved here has the runs that it had at its old path.
            name = self.server.address.rpartition("/")[2]
            old = [one for one in memory if re.fullmatch(rf"sqlite:///(.*/)?{re.escape(name)}", one)]
            found = next((memory[one] for one in old if not Path(one.removeprefix("sqlite:///")).exists()), None)
        return found if isinstance(found, str) else None

    def remembered_anywhere(self, directory: Path) -> list[str]:
        """Return the cached run IDs of a local run in all stores that received it."""
        return [run_id for run_id in self._memory(directory)[1].values() if isinstance(run_id, str)]

    def remembered_other(self, directory: Path) -> str | None:
        """Return the cached ID of the run that has the key of a local run, but other contents."""
        found = self._memory(directory)[1].get(self.server.address)
        other = found.get(OTHER) if isinstance(found, dict) else None
        return other if isinstance(other, str) else None

    def _memory(self, directory: Path) -> tuple[Path, dict[str, Any]]:
        """Return the cache file of a local run, and its content, {server address: run ID}."""
        path = directory.parent / DELIVERED / f"{directory.name}.json"
        try:
            remembered = read_json(path)
        except (OSError, ValueError):  # the cache can be deleted at any time
            remembered = {}
        return path, remembered if isinstance(remembered, dict) else {}

    def _remember(self, directory: Path, run_id: str | dict[str, str]) -> None:
        """Cache the run ID of a local run, or {OTHER: run ID}. Readers check it before use."""
        path, remembered = self._memory(directory)
        if remembered.get(self.server.address) == run_id:
            return
        with contextlib.suppress(OSError):  # the cache is optional, so a full disk is no failure of the delivery
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json_bytes({**remembered, self.server.address: run_id}), durable=False)

    def _known_run(self, directory: Path, key: str) -> Run | None:
        """Return the run with this key: by its cached ID if that is still valid, else by its tag."""
        remembered = self.remembered(directory)
        if remembered is not None:
            run = self.server.get_run(remembered)
            if run is not None and run.info.status == "FINISHED":
                if run.data.tags.get(KEY_TAG) == key:
                    return run
                if run.data.tags.get(DIGEST_TAG + RECORD) == read_sums(directory)[RECORD]:
                    # A person edited or removed the key. A second run of this key would take its place.
                    _log.warning(f"{run.info.run_name!r} (run {remembered}) lost its tag {KEY_TAG}: set again")
                    self.server.set_tags(remembered, {KEY_TAG: key})
                    return self.server.get_run(remembered)
        return self.server.run_with(key, read_sums(directory)[RECORD])

    def lost_ids(self, run: Run, directory: Path, earlier: Sequence[str] = ()) -> list[str]:
        """Return the IDs that a local run had before and that do not find its MLflow run.

        Args:
            run: The MLflow run.
            directory: The local run, which remembers IDs.
            earlier: Further IDs.
        """
        known = {run.info.run_id, *summary_of(run).origin_run_ids}
        return [one for one in dict.fromkeys((*origin_of(self.local, directory), *earlier)) if one not in known]

    def keep_ids(self, run: Run, directory: Path, record: LineageRecord, earlier: Sequence[str] = ()) -> None:
        """Let all IDs that a local run had before find its MLflow run; arguments as in `lost_ids`."""
        if not (lost := self.lost_ids(run, directory, earlier)):
            return
        with contextlib.suppress(OSError):  # the tag has them, too
            remember_origin(self.local, record, tuple(lost))
        ids = dict.fromkeys((*summary_of(run).origin_run_ids, *lost))
        self.server.set_tags(run.info.run_id, _clean({ORIGIN_TAG: " ".join(ids)}))

    def _parent_run(self, record: LineageRecord, key: str) -> Run:
        """Return the finished run of a parent, and deliver it first if it is local."""
        directory = self.local.find(key)
        if directory is not None:
            return self.deliver(directory, read_record(directory))
        run = self.server.run_with(key)
        if run is None or run.info.status != "FINISHED":
            stores = f"{self.local.directory.resolve()} nor a finished run in {self.server.address}"
            raise LookupError(f"{record.name}: its parent {key[:16]}… is neither in {stores}")
        return run

    def _create_run(self, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Create the run with all its tags in one call, since a retry finds it by its key."""
        # Phase: collect identity, digests, and relatives.
        above = used[record.nest_key] if record.nest_key is not None else None
        digests = {**record.files, RECORD: read_sums(directory)[RECORD]}
        tags = {
            **run_tags(record),
            KEY_TAG: record.key,
            "harness.kind": record.kind,
            PARENTS_TAG: json.dumps([[parent.relation, parent.key] for parent in record.parents]),
            ROOT_TAG: self._root(above) if above is not None else record.key,
            **({"harness.nested_under": record.nest_key} if record.nest_key is not None else {}),
            **{DIGEST_TAG + name: digest for name, digest in digests.items()},
            **_mlflow_tags(record),
            **({"mlflow.parentRunId": above.info.run_id} if above is not None else {}),
            **self.family_tags(record, used),
            **({ORIGIN_TAG: " ".join(origin)} if (origin := self._earlier_run_ids(directory, record)) else {}),
            **({ABSENT_TAG: json.dumps(sorted(absent))} if (absent := absent_files(directory, record)) else {}),
        }
        tags = _clean(tags)

        # Phase: create the run.
        client, experiment = self.server.client(), self.server.own_experiment()
        run = client.create_run(experiment, start_time=record.started_ms, tags=tags, run_name=redact(record.name))
        check_answer(run.info.run_id)
        return run

    def family_tags(self, record: LineageRecord | RunSummary, used: Mapping[str, Run]) -> dict[str, str]:
        """Return the tags that find a run's relatives in other searches with few requests."""
        parents = dict.fromkeys(used[parent.key].info.run_id for parent in record.parents)
        roots = [self._root(run) for run in used.values()]
        families = dict.fromkeys(family_digits(root) for root in roots + [record.key] * (record.nest_key is None))
        tags = {PARENT_RUNS_TAG: " ".join(parents)} if parents else {}
        return tags | ({FAMILIES_TAG: " ".join(families)} if len(families) > 1 else {})

    def _earlier_run_ids(self, directory: Path, record: LineageRecord) -> tuple[str, ...]:
        """Return all IDs that runs with this key had, and remember them: deleted runs, other stores, imports.

        These IDs were given out, so they must still find the run.
        """
        known = origin_of(self.local, directory)
        remembered = [found for found in self._memory(directory)[1].values() if isinstance(found, str)]
        given = [one for one in remembered if re.fullmatch("[0-9a-f]{32}", one)]
        for run in self.server.deleted_runs_with(record.key):
            given += [run.info.run_id, *summary_of(run).origin_run_ids]
        if set(given) - set(known):
            with contextlib.suppress(OSError):  # the run's tag has them, too, so a read-only directory is no failure
                remember_origin(self.local, record, tuple(given))
        return tuple(dict.fromkeys((*known, *given)))

    def _complete(self, run: Run, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Add the missing parts of a run, and mark it finished last."""
        # Phase: upload the files.
        client, run_id = self.server.client(), run.info.run_id
        reach("run-created")
        model = self.send_files(run, directory, record)

        # Phase: log inputs, metrics, parameters and the description. A description on an unfinished run is a person's.
        self.log_inputs(run_id, record, used)
        models = list(dict.fromkeys(one for parent in record.parents for one in self.models_of(used[parent.key])))
        params = _params(_determinants(directory))
        note = {} if NOTE_TAG in run.data.tags else note_tags(_note(run, record, used))
        self._log_batch(run_id, _logged_metrics(record, model, models), params, note)
        self._tell_relatives(run, record, model, used)

        # Phase: remove models that repeated requests created, and mark the run finished.
        if self.server.is_remote and model is not None:
            remove_models(self.server, run, keep=model.model_id)
        reach("before-finished")
        client.set_terminated(run_id, "FINISHED", end_time=record.finished_ms)
        finished = client.get_run(run_id)
        check_answer(finished.info.run_id)
        self.completed.add(run_id)
        return finished

    def send_files(
        self, run: Run, directory: Path, record: LineageRecord, *, again: bool = False
    ) -> LoggedModel | None:
        """Upload a local run's files to its logged model, or to the run itself if it makes no network.

        Args:
            run: The MLflow run.
            directory: The local run.
            record: Its record.
            again: Upload to a complete model, too, because files are missing there.

        Returns:
            The logged model.
        """
        # A logged model gets all files before it becomes READY, so a killed delivery is resumed.
        model = None
        if record.kind in WITHOUT_MODEL:
            send_directory(self.server, run, None, directory)
        else:
            model = self._logged_model(run, record, _params(_determinants(directory)))
            ready = str(model.status) == "READY"
            if again or not ready:
                send_directory(self.server, run, model, directory)
                self.send_mlmodel(run, model, record, _determinants(directory))
                reach("files-sent")
            if not ready:
                self.server.client().finalize_logged_model(model.model_id, "READY")
            self._log_output(run.info.run_id, model)
        self.send_own_files(run, directory, record)
        return model

    def send_mlmodel(
        self, run: Run, model: LoggedModel, record: LineageRecord, determinants: Mapping[str, Any]
    ) -> None:
        """Write the file with which `mlflow.pyfunc.load_model` loads the network. Local directories do not have it."""
        if has_mlmodel(record.kind, record.files):
            content = mlmodel(record, determinants, run_id=run.info.run_id, model_id=model.model_id)
            send_model_file(self.server, model, content, MLMODEL)

    def models_of(self, run: Run) -> list[str]:
        """Return the IDs of a run's logged models that were not deleted."""
        made = outputs(run)
        if len(made) < 2:
            return made
        model = self.server.model_of(made)
        return [] if model is None else [model.model_id]

    def send_own_files(self, run: Run, directory: Path, record: LineageRecord) -> None:
        """Copy a level's mask and the table of its layers to the run's own artifacts, where a reader looks first.

        The table is rounded. The logged model has the original files, which `verify` checks.
        """
        if LAYERS in record.files:
            send_text(self.server, run, _rounded_table((directory / LAYERS).read_text()), LAYERS)
        if record.kind == "level" and SIGNED_MASK in record.files:
            send_file(self.server, run, directory / SIGNED_MASK)

    def _tell_relatives(self, run: Run, record: LineageRecord, model: LoggedModel | None, used: dict[str, Run]) -> None:
        """Add the run to its parents' descriptions, its search's metrics and the model registry."""
        for key in dict.fromkeys(parent.key for parent in record.parents):
            self._add_child(used[key])
        if record.kind == "level" and model is not None:
            search = used[record.nest_key] if record.nest_key is not None else None
            if search is not None:
                self._log_batch(search.info.run_id, _level_metrics(record))
            self.registry.register(model, replace(summary_of(run), name=record.name, metrics=record.last_metrics()))

    def _add_child(self, parent: Run) -> None:
        """Update the line of children in a parent's description."""
        note, key = parent.data.tags.get(NOTE_TAG, ""), parent.data.tags[KEY_TAG]
        if parent.data.tags.get("harness.kind") == "search" and is_own_note(parent.data.tags):
            return  # the overview rewrites it with the graph
        children = [Relative(child, relation_to(child, key)) for child in self.server.children_of(key)]
        changed = redact(with_children(note, children))
        if changed != note:
            own = is_own_note(parent.data.tags)
            self.server.set_tags(parent.info.run_id, note_tags(changed) if own else {NOTE_TAG: changed})

    def _log_batch(
        self,
        run_id: str,
        points: Sequence[LoggedMetric],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log points, parameters and tags in as few calls as MLflow allows."""
        from mlflow.entities import Metric as Point
        from mlflow.entities import Param, RunTag

        # Points carry the time of the measurement. MLflow then drops the duplicates of a retry.
        metrics = [Point(p.name, p.value, p.timestamp_ms, p.step, model_id=p.model_id, **p.data_set) for p in points]
        batches = zip_longest(
            _chunks(metrics, _METRICS_PER_CALL),
            _chunks([Param(name, value) for name, value in (params or {}).items()], _PARAMS_PER_CALL),
            _chunks([RunTag(name, value) for name, value in (tags or {}).items()], _PARAMS_PER_CALL),
            fillvalue=(),
        )
        for some_metrics, some_params, some_tags in batches:
            self.server.client().log_batch(run_id, some_metrics, some_params, some_tags, synchronous=True)

    def _logged_model(self, run: Run, record: LineageRecord, params: dict[str, str]) -> LoggedModel:
        """Return the run's logged model, and create it with status PENDING if it is missing."""
        client, run_id = self.server.client(), run.info.run_id
        found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        for model in found:
            if model.name == MODEL_NAME:
                return model
        tags = {KEY_TAG: record.key, **{name: record.tags[name] for name in _MODEL_TAGS if name in record.tags}}
        tags[NOTE_TAG] = describe_model(record.name, run_id, record.files)
        return client.create_logged_model(
            run.info.experiment_id,
            name=MODEL_NAME,
            source_run_id=run_id,
            tags=_clean(tags),
            params=params,
            model_type=record.kind,
        )

    def _log_output(self, run_id: str, model: LoggedModel) -> None:
        from mlflow.entities import LoggedModelOutput

        client = self.server.client()
        if model.model_id not in outputs(client.get_run(run_id)):  # MLflow raises on a repeated output
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])

    def log_inputs(self, run_id: str, record: LineageRecord | RunSummary, used: Mapping[str, Run]) -> None:
        """Log the inputs of a run that are not logged yet: the parents' logged models and the data set."""
        # Phase: read the inputs that a former attempt logged.
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        client = self.server.client()
        run = client.get_run(run_id)
        known_models = {given.model_id for given in run.inputs.model_inputs} if run.inputs else set()
        known_data = {given.dataset.name for given in run.inputs.dataset_inputs} if run.inputs else set()

        # Phase: log the others.
        wanted = {model_id: None for parent in record.parents for model_id in self.models_of(used[parent.key])}
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
    """Return the tags of a record that its MLflow run must have."""
    wanted = {*_TAGS, *(f"code.{name}" for name in _CODE_TAGS)}
    return {name: value for name, value in all_tags(record).items() if name in wanted}


def all_tags(record: LineageRecord) -> dict[str, str]:
    """Return all tags of a record as MLflow holds them. Earlier versions of the harness sent all."""
    return _clean(record.tags | {f"code.{name}": value for name, value in record.code.items()})


def run_metrics(record: LineageRecord) -> list[Metric]:
    """Return the points of a record that its MLflow run must have: those of metrics that are no constants."""
    rates = {metric.value for metric in record.metrics if metric.name == "lr"}
    left_out = (*_CONSTANTS, "lr") if len(rates) < 2 else _CONSTANTS
    return [metric for metric in record.metrics if metric.name not in left_out]


def _used_keys(record: LineageRecord) -> list[str]:
    keys = [parent.key for parent in record.parents] + ([record.nest_key] if record.nest_key is not None else [])
    return list(dict.fromkeys(keys))


def _note(run: Run, record: LineageRecord, used: Mapping[str, Run]) -> str:
    node = replace(summary_of(run), metrics=record.last_metrics())
    parents = [Relative(summary_of(used[parent.key]), parent.relation) for parent in record.parents]
    return redact(describe(node, parents))


def _logged_metrics(record: LineageRecord, model: LoggedModel | None, models: Sequence[str]) -> list[LoggedMetric]:
    """Return all points of a run: its own, the last ones again for its model, and one for each input model.

    The page of a model lists the runs that logged a metric for it.
    """
    points = [LoggedMetric(one.name, float(one.value), one.step, one.timestamp_ms) for one in run_metrics(record)]
    data, digest = record.tags.get("data"), record.tags.get("data_digest")
    data_set = {"dataset_name": data, "dataset_digest": digest[:_DIGEST_CHARACTERS]} if data and digest else {}
    if model is not None:
        own = _last(record, MODEL_METRICS)
        points += [replace(point, model_id=model.model_id, data_set=data_set) for point in own]
    for point in _last(record, _OF_THE_USER):
        points += [replace(point, name=f"used_for_{point.name}", model_id=one, data_set=data_set) for one in models]
    return points


def _level_metrics(record: LineageRecord) -> list[LoggedMetric]:
    """Return a level's final metrics as points of its search, with the level as step.

    MLflow's table shows the last step, so the search's row has the error and density of its deepest level.
    """
    level = record.tags.get("level", "")
    if not level.isdecimal():
        return []
    return [replace(point, step=int(level)) for point in _last(record, MODEL_METRICS)]


def _last(record: LineageRecord, names: Sequence[str]) -> list[LoggedMetric]:
    """Return the last point of each named metric that the record has."""
    last = []
    for name in names:
        found = [metric for metric in record.metrics if metric.name == name]
        if found:
            metric = max(found, key=lambda one: (one.step, one.timestamp_ms))
            last.append(LoggedMetric(name, float(metric.value), metric.step, metric.timestamp_ms))
    return last


def _mlflow_tags(record: LineageRecord) -> dict[str, str]:
    """Return the tags that MLflow's own pages read, and the launch command and hardware for the description."""
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


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags without credentials, cut to MLflow's limit."""
    return {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}


def _determinants(directory: Path) -> dict[str, Any]:
    """Return the inputs of a run's key. Runs of early versions did not record them and have none."""
    path = directory / DETERMINANTS
    inputs = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(inputs, dict):  # forged, which `verify` reports
        return {}
    # the kind is a tag, and the format says nothing about the run
    return {name: value for name, value in inputs.items() if name not in ("kind", "format")}


def _params(determinants: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested inputs of a key as flat names with dots, so that MLflow can compare them side by side.

    Digests and keys of other runs are left out: tags hold them.
    """
    flat: dict[str, str] = {}
    for name, value in determinants.items():
        name = re.sub(r"[^A-Za-z0-9_./ -]", "_", f"{prefix}{name}")
        if isinstance(value, dict) and value:
            flat |= _params(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if not re.search("[0-9a-f]{64}", text):
            flat[name] = _shorten(redact(text), _PARAM_CHARACTERS)
    return flat


def _rounded_table(text: str) -> str:
    """Return a JSON table with its numbers rounded for a reader. A malformed table is returned as it is."""

    def rounded(value: Any) -> Any:
        return round(value, _TABLE_DIGITS) if isinstance(value, float) else value

    try:
        table = json.loads(text)
        rows = [[rounded(value) for value in row] for row in table["data"]]
        return json.dumps({**table, "data": rows})
    except (ValueError, KeyError, TypeError):
        return text


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
