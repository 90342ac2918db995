"""The one place that talks to MLflow: delivers local nodes as runs, finds runs by key, fetches them back.

Every node is one run. Its files are one logged model named "network" (an analysis: run artifacts), which takes the
parents' logged models as inputs. The node's key, kind, parents and digests are tags, so that lists and trees need no
artifact. READY on the model and FINISHED on the run are set last: they are the commit marks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.faults import reach
from harness.lineage.graph import NodeSummary
from harness.lineage.local import DELIVERED, RECORD, LocalNodes, check_digest, check_files, json_bytes, read_record
from harness.lineage.record import LineageRecord, Parent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

MODEL_NAME = "network"  # fixed, so that runs:/<run id>/network/signed_mask.safetensors works for every run
DEFAULT_EXPERIMENT = "signed-tickets"
DEFAULT_DIRECTORY = Path("runs")
KEY_TAG = "harness.key"
DIGEST_TAG = "harness.sha256."

_TAG_CHARACTERS = 8000  # MLflow cuts longer ones without a word
_PARAM_CHARACTERS = 6000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
_PROBE_SECONDS = 5


def default_tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def redact(text: str) -> str:
    """Return `text` without the user name and password of any URI in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def open_store(
    local_dir: Path | str = DEFAULT_DIRECTORY,
    tracking_uri: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    *,
    offline: bool = False,
) -> LineageStore:
    """Return the store over `local_dir` and a tracking URI (None: the default one; `offline`: local nodes alone)."""
    uri = None if offline else tracking_uri or default_tracking_uri()
    return LineageStore(uri, LocalNodes(local_dir), experiment)


class LineageStore:
    """Local nodes and the MLflow store they are delivered to; `tracking_uri=None` means local nodes alone.

    Nothing is asked of the server before the first call that needs it.
    """

    def __init__(self, tracking_uri: str | None, local: LocalNodes, experiment: str = DEFAULT_EXPERIMENT) -> None:
        self.tracking_uri = tracking_uri
        self.local = local
        self.experiment = experiment
        self._connected: MlflowClient | None = None
        self._experiments: list[str] | None = None
        self._completed: set[str] = set()  # run IDs that this object finished

    def require(self) -> None:
        """Raise ConnectionError, within half a minute, if the tracking server that was asked for gives no answer."""
        if self.tracking_uri is None or _sqlite_path(self.tracking_uri) is not None:
            return  # a SQLite file is made when it is first written
        try:
            with self._talking("begin"):
                self._client().search_experiments(max_results=1)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Start it, or pass --offline: `python tools/lineage.py sync` then delivers the runs later"
            ) from None

    # ------------------------------------------------------------------ asking

    def find(self, key: str) -> Path | None:
        """Return the directory of the node with this key: the local one, or else fetched from its finished run.

        Raises ValueError when what was found is altered, ConnectionError when it is not here and the server is away.
        """
        directory = self.local.find(key)
        if directory is not None or not self._readable():
            return directory
        with self._talking("look for a node"):
            run = self._run_with(key)
            if run is None or run.info.status != "FINISHED":
                return None
            return self._fetch(run)

    def load(self, run_id: str) -> LineageRecord:
        """Return the record of a finished run.

        Raises LookupError when there is no such run, ValueError when it is unfinished, foreign or altered.
        """
        with self._talking(f"read run {run_id}"):
            run = self._finished(run_id)
            directory = self.local.find(run.data.tags[KEY_TAG])
            if directory is not None:
                return read_record(directory)
            with self._artifact(run, RECORD) as path:
                return LineageRecord.from_dict(json.loads(path.read_bytes()))

    @contextlib.contextmanager
    def open_file(self, run_id: str, name: str) -> Iterator[Path]:
        """Give the path of one file of a finished run, its digest checked; read it, do not keep or write it.

        Raises LookupError when there is no such run or file, ValueError when the run is unfinished or the file altered.
        """
        with contextlib.ExitStack() as stack:
            with self._talking(f"read run {run_id}"):
                path = stack.enter_context(self._artifact(self._finished(run_id), name))
            yield path  # outside of _talking: what goes wrong while reading the file is the reader's

    def run_id_of(self, key: str) -> str | None:
        """Return the ID of the finished run with this key, or None."""
        if not self._readable():
            return None
        with self._talking("look for a run"):
            run = self._run_with(key)
            return run.info.run_id if run is not None and run.info.status == "FINISHED" else None

    def key_of(self, run_id: str) -> str:
        """Return the key of a finished run; LookupError or ValueError as `load`."""
        with self._talking(f"read run {run_id}"):
            return str(self._finished(run_id).data.tags[KEY_TAG])

    def summaries(self, where: str = "", limit: int | None = None) -> list[NodeSummary]:
        """Return what runs say of themselves, newest first, read in pages; `where` is an MLflow run filter."""
        if not self._readable():
            return []
        # A tag comparison with LIKE '%' is true for every run that has the tag: foreign runs are left out.
        condition = f"tags.`{KEY_TAG}` LIKE '%'" + (f" AND {where}" if where else "")
        found: list[NodeSummary] = []
        with self._talking("list runs"):
            token: str | None = None
            while limit is None or len(found) < limit:
                size = 1000 if limit is None else min(1000, limit - len(found))
                page = self._client().search_runs(
                    self._experiment_ids(), condition, max_results=size, order_by=["start_time DESC"], page_token=token
                )
                found += [_summary(run) for run in page]
                token = page.token
                if not token:
                    break
        return found

    # ------------------------------------------------------------------ delivering

    def deliver(self, directory: Path) -> str:
        """Bring a committed node into MLflow and return its run ID; what is there already is not sent again.

        Parents are delivered first. Killed anywhere and called again, it leaves one complete run without doubled
        points. Raises ConnectionError when the server cannot be reached (the node stays safe on disk), ValueError
        when a file was altered, LookupError when a parent is neither local nor in MLflow.
        """
        record = read_record(directory)
        with self._talking(f"deliver {record.name!r}"):
            return str(self._deliver(directory, record).info.run_id)

    def delivered(self, directory: Path) -> str | None:
        """Return the run ID remembered for a node; the run may have been deleted since."""
        try:
            remembered = json.loads(self._memory(directory).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        found = remembered.get(self._address) if isinstance(remembered, dict) else None
        return found if isinstance(found, str) else None

    def sync(self) -> Iterator[tuple[Path, str]]:
        """Deliver every local node, oldest first, and yield (directory, run ID) of each that was not there yet."""
        nodes = sorted((read_record(path).started_ms, path) for path in self.local.directories())
        for _, directory in nodes:
            run_id = self.deliver(directory)
            if run_id in self._completed:
                yield directory, run_id

    @property
    def _address(self) -> str:
        """The tracking URI without credentials, and the same from every working directory."""
        database = _sqlite_path(self.tracking_uri)
        return f"sqlite:///{database.resolve()}" if database else redact(self.tracking_uri or "")

    def _memory(self, directory: Path) -> Path:
        return directory.parent / DELIVERED / f"{directory.name}.json"

    def _remember(self, directory: Path, run_id: str) -> None:
        """Note the run ID beside the node; only a shortcut, checked before it is believed."""
        if self.delivered(directory) == run_id:
            return
        path = self._memory(directory)
        with contextlib.suppress(OSError):  # a full disk here must not make a whole delivery look like a failed one
            path.parent.mkdir(exist_ok=True)
            try:
                remembered = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                remembered = {}
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(json_bytes({**remembered, self._address: run_id}))
            os.replace(temporary, path)

    def _deliver(self, directory: Path, record: LineageRecord) -> Run:
        run = self._known_run(directory, record.key)
        if run is None or run.info.status != "FINISHED":
            check_files(directory, record)
            used = {key: self._parent_run(record, key) for key in _used_keys(record)}
            if run is None:
                run = self._create_run(directory, record, used)
            run = self._complete(run, directory, record, used)
        self._remember(directory, run.info.run_id)
        return run

    def _known_run(self, directory: Path, key: str) -> Run | None:
        """Return the run of this key, by the remembered ID if that still holds, else by the tag."""
        remembered = self.delivered(directory)
        if remembered is not None:
            run = self._get_run(remembered)
            if run is not None and run.data.tags.get(KEY_TAG) == key and run.info.status == "FINISHED":
                return run
        return self._run_with(key)

    def _parent_run(self, record: LineageRecord, key: str) -> Run:
        """Return the finished run of a parent, delivering it from its local node first if need be."""
        directory = self.local.find(key)
        if directory is not None:
            return self._deliver(directory, read_record(directory))
        run = self._run_with(key)
        if run is None or run.info.status != "FINISHED":
            place = f"{self.local.directory.resolve()} nor a finished run in {redact(self.tracking_uri or '')}"
            raise LookupError(f"{record.name} was made from node {key[:16]}…, which is neither in {place}")
        return run

    def _create_run(self, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Create the run with all its tags in one call: a run without its key could not be found again."""
        above = used[record.nest_key] if record.nest_key is not None else None
        digests = {**record.files, RECORD: _record_digest(directory)}
        tags = {
            **record.tags,
            KEY_TAG: record.key,
            "harness.kind": record.kind,
            "harness.parents": json.dumps([[parent.relation, parent.key] for parent in record.parents]),
            "harness.root": above.data.tags["harness.root"] if above is not None else record.key,
            **({"harness.nested_under": record.nest_key} if record.nest_key is not None else {}),
            **{DIGEST_TAG + name: digest for name, digest in digests.items()},
            **{f"code.{name}": value for name, value in record.code.items()},
            "mlflow.source.git.commit": record.code.get("commit", "unknown"),
            **({"mlflow.parentRunId": above.info.run_id} if above is not None else {}),
        }
        tags = {name: _shorten(redact(value), _TAG_CHARACTERS) for name, value in tags.items()}
        experiment = self._own_experiment()
        return self._client().create_run(experiment, start_time=record.started_ms, tags=tags, run_name=record.name)

    def _complete(self, run: Run, directory: Path, record: LineageRecord, used: dict[str, Run]) -> Run:
        """Add what the run does not have yet, and mark it finished last."""
        client, run_id = self._client(), run.info.run_id
        reach("run-created")
        params = _params(record.config)
        self._log_params(run_id, params)
        if record.kind == "analysis":
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
        self._completed.add(run_id)
        return client.get_run(run_id)

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in params.items()]
        for chunk in _chunks(entities, _PARAMS_PER_CALL):
            self._client().log_batch(run_id, params=chunk, synchronous=True)

    def _log_metrics(self, run_id: str, record: LineageRecord) -> None:
        from mlflow.entities import Metric

        # With the time of measurement, not of sending: MLflow keeps a point that comes twice once.
        entities = [Metric(m.name, float(m.value), m.timestamp_ms, m.step) for m in record.metrics]
        for chunk in _chunks(entities, _METRICS_PER_CALL):
            self._client().log_batch(run_id, metrics=chunk, synchronous=True)

    def _logged_model(self, run: Run, record: LineageRecord, params: dict[str, str]) -> LoggedModel:
        """Return the run's logged model, created (PENDING) if an interrupted delivery had not come so far."""
        client, run_id = self._client(), run.info.run_id
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

        client = self._client()
        if model.model_id not in _outputs(client.get_run(run_id)):  # sent twice, it raises
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])

    def _log_inputs(self, run_id: str, record: LineageRecord, used: dict[str, Run]) -> None:
        """Say natively what the run was made from: the parents' logged models and the data set."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        client = self._client()
        run = client.get_run(run_id)
        known_models = {given.model_id for given in run.inputs.model_inputs} if run.inputs else set()
        known_data = {given.dataset.name for given in run.inputs.dataset_inputs} if run.inputs else set()
        wanted = {model_id: None for parent in record.parents for model_id in _outputs(used[parent.key])}
        models = [LoggedModelInput(model_id) for model_id in wanted if model_id not in known_models]
        datasets = []
        data, digest = record.tags.get("data"), record.tags.get("data_digest")
        if data and digest and data not in known_data:
            source = json.dumps({"content_digest": digest})
            dataset = Dataset(data, digest[:36], source_type="local", source=source)  # MLflow takes 36 characters
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "train")]))
        if models or datasets:
            client.log_inputs(run_id, datasets=datasets, models=models)

    # ------------------------------------------------------------------ fetching

    def _fetch(self, run: Run) -> Path:
        """Make a local node of a finished run, every digest checked; the run's tags are the anchor."""
        with contextlib.ExitStack() as stack:
            self.local.directory.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=self.local.directory, prefix=".tmp-fetch-"))
            target = Path(place) / "node"
            target.mkdir()
            repository = self._repository(run)
            # Names come from a record whose digest is checked, so no listing of a foreign server is believed.
            digest = _tag(run, DIGEST_TAG + RECORD)
            check_digest(_download(repository, RECORD, target), digest)
            record = LineageRecord.from_dict(json.loads((target / RECORD).read_bytes()))
            for name in record.files:
                _download(repository, name, target)
            return self.local.import_directory(target, digest)

    @contextlib.contextmanager
    def _artifact(self, run: Run, name: str) -> Iterator[Path]:
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        expected = run.data.tags.get(DIGEST_TAG + name)
        if expected is None:
            names = [tag.removeprefix(DIGEST_TAG) for tag in run.data.tags if tag.startswith(DIGEST_TAG)]
            message = f"run {run.info.run_id} ({run.info.run_name}) has no {name}; it has: {', '.join(sorted(names))}"
            raise LookupError(message)
        repository = self._repository(run)
        with tempfile.TemporaryDirectory() as directory:
            # A local store hands out its own file: no copy, and nobody writes to it.
            target = None if isinstance(repository, LocalArtifactRepository) else Path(directory)
            yield check_digest(_download(repository, name, target), expected)

    def _repository(self, run: Run) -> ArtifactRepository:
        """Return where the run's files lie: its logged model, or the run itself for an analysis."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        outputs = _outputs(run) or _outputs(self._client().get_run(run.info.run_id))
        location = self._client().get_logged_model(outputs[0]).artifact_location if outputs else run.info.artifact_uri
        return get_artifact_repository(location, tracking_uri=self.tracking_uri)

    # ------------------------------------------------------------------ MLflow itself

    def _get_run(self, run_id: str) -> Run | None:
        """Return an undeleted run, or None."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client().get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _finished(self, run_id: str) -> Run:
        """Return a finished run of this harness; LookupError or ValueError with one clear line otherwise."""
        where = redact(self.tracking_uri or str(self.local.directory))
        run = self._get_run(run_id) if self._readable() else None
        if run is None:
            raise LookupError(f"no run {run_id!r} in {where}; `python tools/lineage.py list` shows the runs there")
        if KEY_TAG not in run.data.tags:
            raise ValueError(f"run {run_id} ({run.info.run_name}) in {where} was not logged by this harness")
        if run.info.status != "FINISHED":
            raise ValueError(
                f"run {run_id} ({run.info.run_name}) is not finished (status {run.info.status}): "
                "`python tools/lineage.py sync` completes an interrupted delivery"
            )
        return run

    def _run_with(self, key: str) -> Run | None:
        """Return the run with this key, a finished one before an unfinished, the oldest of equals."""
        runs = self._client().search_runs(
            self._experiment_ids(), f"tags.`{KEY_TAG}` = '{key}'", max_results=20, order_by=["start_time ASC"]
        )
        run = min(runs, key=lambda run: run.info.status != "FINISHED", default=None)
        # A search gives no inputs and outputs in every version of MLflow; the run itself does.
        return None if run is None else self._client().get_run(run.info.run_id)

    def _own_experiment(self) -> str:
        """Return the ID of the experiment, created if missing."""
        client = self._client()
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            self._experiments = None
            return client.create_experiment(self.experiment, artifact_location=self._artifact_location())
        if experiment.lifecycle_stage != "active":
            raise ValueError(f"experiment {self.experiment!r} was deleted in MLflow: restore it or name another one")
        return str(experiment.experiment_id)

    def _artifact_location(self) -> str | None:
        """Return where a SQLite store keeps its files: beside the database, wherever the process was started."""
        database = _sqlite_path(self.tracking_uri)
        if database is None:
            return None
        return str(database.resolve().parent / "mlruns" / re.sub(r"[^A-Za-z0-9_.-]", "-", self.experiment))

    def _experiment_ids(self) -> list[str]:
        # All of them: a key says what determines the result, so one run of it serves every experiment.
        if self._experiments is None:
            found: list[str] = []
            token: str | None = None
            while True:
                page = self._client().search_experiments(max_results=1000, page_token=token)
                found += [str(experiment.experiment_id) for experiment in page]
                token = page.token
                if not token:
                    break
            self._experiments = found
        return self._experiments

    def _readable(self) -> bool:
        """Whether there can be anything to read: making a new database (8 s) only to find it empty helps nobody."""
        database = _sqlite_path(self.tracking_uri)
        return self.tracking_uri is not None and (database is None or database.exists()) and _mlflow_installed()

    def _client(self) -> MlflowClient:
        if self._connected is None:
            if self.tracking_uri is None:
                raise ConnectionError(f"no tracking store was asked for; nodes stay in {self.local.directory}")
            if not _mlflow_installed():
                raise ConnectionError(
                    f"mlflow is not installed, so nodes stay in {self.local.directory}; "
                    "`pip install mlflow` and `python tools/lineage.py sync` deliver them"
                )
            _probe(self.tracking_uri)
            self._connected = _quiet_client(self.tracking_uri)
        return self._connected

    @contextlib.contextmanager
    def _talking(self, action: str) -> Iterator[None]:
        """Turn whatever a store that is away, broken or full raises into one ConnectionError of one line."""
        try:
            yield
        except (ValueError, LookupError):
            raise
        except Exception as error:
            if not isinstance(error, ConnectionError) and not _from_store(error):
                raise
            self._connected, self._experiments = None, None  # so that the next call asks anew, and quickly
            reason = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            where = redact(self.tracking_uri or "")
            raise ConnectionError(f"cannot {action}: MLflow at {where or 'nowhere'}: {reason:.300}") from error


def _from_store(error: Exception) -> bool:
    """Whether an exception comes from MLflow or from what it stands on, rather than from our own mistake."""
    roots = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(roots & {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3"})


def _mlflow_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("mlflow") is not None


def _quiet_client(tracking_uri: str) -> MlflowClient:
    """Return a client that reports nothing home, draws no bars, prints no links and gives up in seconds."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # the default of 7 is four minutes a call
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri)


def _probe(tracking_uri: str) -> None:
    """Ask a server for a sign of life; any answer is one. MLflow's own retries would take minutes to give up."""
    if not tracking_uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(tracking_uri.rstrip("/") + "/health", timeout=_PROBE_SECONDS)
    except requests.Timeout:
        raise ConnectionError(f"no answer within {_PROBE_SECONDS} s; is the server up?") from None
    except requests.RequestException as error:
        reason = getattr(error.args[0], "reason", error) if error.args else error
        raise ConnectionError(f"{str(reason).split(': ', 1)[-1]}; is the server up?") from None


def _sqlite_path(tracking_uri: str | None) -> Path | None:
    """Return the file of a SQLite tracking URI, None for any other."""
    if tracking_uri is None or not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(urlsplit(tracking_uri).path.removeprefix("/"))


def _used_keys(record: LineageRecord) -> list[str]:
    keys = [parent.key for parent in record.parents] + ([record.nest_key] if record.nest_key is not None else [])
    return list(dict.fromkeys(keys))


def _outputs(run: Run) -> list[str]:
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def _download(repository: ArtifactRepository, name: str, target: Path | None) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        return Path(repository.download_artifacts(name, str(target) if target else None))  # type: ignore[no-untyped-call]
    except (MlflowException, FileNotFoundError) as error:
        if "No such artifact" in str(error) or isinstance(error, FileNotFoundError):
            raise ValueError(f"{name} is missing from the tracking store's files; the run lists it") from None
        raise


def _tag(run: Run, name: str) -> str:
    value = run.data.tags.get(name)
    if value is None:
        raise ValueError(f"run {run.info.run_id} ({run.info.run_name}) lost its tag {name!r}")
    return str(value)


def _record_digest(directory: Path) -> str:
    from harness.lineage.local import read_sums

    return read_sums(directory)[RECORD]


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


def _summary(run: Run) -> NodeSummary:
    tags = run.data.tags
    hidden = ("harness.", "mlflow.")
    return NodeSummary(
        key=tags[KEY_TAG],
        kind=tags.get("harness.kind", ""),
        name=run.info.run_name or "",
        parents=tuple(Parent(key, relation) for relation, key in json.loads(tags.get("harness.parents", "[]"))),
        nest_key=tags.get("harness.nested_under"),
        root=tags.get("harness.root"),
        tags={name: value for name, value in tags.items() if not name.startswith(hidden)},
        metrics=dict(run.data.metrics),
        files={name.removeprefix(DIGEST_TAG): value for name, value in tags.items() if name.startswith(DIGEST_TAG)},
        run_id=run.info.run_id,
        status=run.info.status,
        started_ms=run.info.start_time or 0,
        finished_ms=run.info.end_time or 0,
    )
