"""The MLflow server or file that a store talks to: its address, a quiet client, its runs and their files.

Whatever a server that is away, broken or full raises becomes one ConnectionError of one line, without credentials.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.common.escape import redact
from harness.common.files import process_exists, reach
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import check_digest
from harness.lineage.nodes.record import Parent, check_file_name
from harness.lineage.tracking.view import VIEW, VIEW_TAG, saved_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KEY_TAG = "harness.key"
DIGEST_TAG = "harness.sha256."
PARENTS_TAG = "harness.parents"
ROOT_TAG = "harness.root"
PARENT_RUNS_TAG = "harness.parent_run_ids"  # so that parents in other families are found in one request
FAMILIES_TAG = "harness.families"  # where a node touches more than its own: a root's first digits each
ORIGIN_TAG = "harness.origin_run_id"  # of an imported node
ABSENT_TAG = "harness.absent"  # files that the run lists and does not have, on purpose

_PROBE_SECONDS = 5
_REFUSALS = {
    401: "it does not know this user and password (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
    "or MLFLOW_TRACKING_TOKEN",
    403: "this user may not do that (403): ask who runs the server for the permission",
}
_FRESH_SECONDS = 5.0  # a server that was silent for longer is probed first: MLflow's own calls hang for minutes
_FAMILY_DIGITS = 16
_IDS_PER_REQUEST = 100


def default_tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class RefusedError(ConnectionError):
    """A server that is there, but lets this user not in, or not do this."""


def sqlite_path(tracking_uri: str | None) -> Path | None:
    """Return the file of a SQLite tracking URI, None for any other."""
    if tracking_uri is None or not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(urlsplit(tracking_uri).path.removeprefix("/"))


def family_digits(root: str) -> str:
    """Return how a family is named in a tag that may name hundreds."""
    return root[:_FAMILY_DIGITS]


def id_conditions(run_ids: Iterable[str]) -> Iterator[str]:
    """Yield filters that together ask for the runs with these IDs, a hundred in a request."""
    ids = sorted(set(run_ids))
    for start in range(0, len(ids), _IDS_PER_REQUEST):
        chosen = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _IDS_PER_REQUEST])
        yield f"attributes.run_id IN ({chosen})"


class Server:
    """A tracking URI (None: no server) and the experiment that new runs go to.

    Nothing is asked of it before the first call that needs it. Errors are those of MLflow outside of `talking`.
    """

    def __init__(self, tracking_uri: str | None, experiment: str, local_directory: Path) -> None:
        """`local_directory` is where nodes stay while the server is away; messages name it."""
        self.tracking_uri, self.experiment, self.local_directory = tracking_uri, experiment, local_directory
        self._connected: MlflowClient | None = None
        self._experiments: dict[str, str] | None = None
        self._answered_at = -math.inf

    @property
    def is_file(self) -> bool:
        """Whether it is a SQLite file, which is made when it is first written."""
        return sqlite_path(self.tracking_uri) is not None

    @property
    def is_remote(self) -> bool:
        """Whether a server stands between us and the store."""
        return (self.tracking_uri or "").startswith(("http://", "https://"))

    @property
    def address(self) -> str:
        """The tracking URI without credentials, and the same from every working directory."""
        database = sqlite_path(self.tracking_uri)
        return f"sqlite:///{database.resolve()}" if database else redact(self.tracking_uri or "")

    def readable(self) -> bool:
        """Whether there can be anything to read: making a new database (8 s) only to find it empty helps nobody."""
        database = sqlite_path(self.tracking_uri)
        return self.tracking_uri is not None and (database is None or database.exists()) and _mlflow_installed()

    def client(self) -> MlflowClient:
        """Return the client; ConnectionError when there is no MLflow to talk to."""
        if self.is_remote and time.monotonic() - self._answered_at > _FRESH_SECONDS and _mlflow_installed():
            _probe(self.tracking_uri or "")
            self._answered_at = time.monotonic()
        if self._connected is None:
            if self.tracking_uri is None:
                raise ConnectionError(f"no tracking store was asked for; nodes stay in {self.local_directory}")
            if not _mlflow_installed():
                raise ConnectionError(
                    f"mlflow is not installed, so nodes stay in {self.local_directory}; "
                    "`pip install mlflow` and `python tools/lineage.py sync` deliver them"
                )
            database = sqlite_path(self.tracking_uri)
            if database is not None and not database.exists():
                _make_database(database)
            self._connected = _quiet_client(self.tracking_uri)
        return self._connected

    def preload(self) -> None:
        """Import MLflow now rather than at the first call."""
        if self.tracking_uri is not None and _mlflow_installed():
            _quiet_mlflow()

    @contextlib.contextmanager
    def talking(self, action: str) -> Iterator[None]:
        """Turn whatever a store that is away, broken or full raises into one ConnectionError of one line."""
        try:
            yield
            self._answered_at = time.monotonic()
        except (ValueError, LookupError):
            raise
        except Exception as error:
            if not isinstance(error, ConnectionError) and not _from_store(error):
                raise
            # so that the next call asks anew, and quickly
            self._connected, self._experiments, self._answered_at = None, None, -math.inf
            reason = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            where = redact(self.tracking_uri or "")
            if (refused := _REFUSALS.get(_status_of(error) or 0)) is not None:
                raise RefusedError(f"cannot {action}: MLflow at {where}: {refused}") from error
            if re.search(r"table \w+ already exists", reason):
                reason = (
                    "its tables are half made, since something was killed while it made them; move the file away and "
                    "`python tools/lineage.py sync` fills a new one from the local nodes"
                )
            raise ConnectionError(f"cannot {action}: MLflow at {where or 'nowhere'}: {reason:.300}") from error

    # ------------------------------------------------------------------ experiments

    def experiments(self, *, anew: bool = False) -> dict[str, str]:
        """Return {name: ID} of all experiments; those that were remembered unless asked for `anew`."""
        if self._experiments is None or anew:
            found: dict[str, str] = {}
            token: str | None = None
            while True:
                page = self.client().search_experiments(max_results=1000, page_token=token)
                found |= {str(experiment.name): str(experiment.experiment_id) for experiment in page}
                token = page.token
                if not token:
                    break
            self._experiments = found
        return self._experiments

    def experiment_ids(self) -> list[str]:
        """Return the IDs of all experiments."""
        # All of them: a key says what determines the result, so one run of it serves every experiment.
        return list(self.experiments().values())

    def own_experiment(self) -> str:
        """Return the ID of the experiment, created if missing."""
        client = self.client()
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            self._experiments = None
            view = {VIEW_TAG + VIEW: saved_view()}  # listed in the menu "Views" from the first visit on
            return client.create_experiment(self.experiment, artifact_location=self._artifact_location(), tags=view)
        if experiment.lifecycle_stage != "active":
            raise ValueError(f"experiment {self.experiment!r} was deleted in MLflow: restore it or name another one")
        return str(experiment.experiment_id)

    def _artifact_location(self) -> str | None:
        """Return where a SQLite store keeps its files: beside the database, wherever the process was started."""
        database = sqlite_path(self.tracking_uri)
        if database is None:
            return None
        return str(database.resolve().parent / "mlruns" / re.sub(r"[^A-Za-z0-9_.-]", "-", self.experiment))

    # ------------------------------------------------------------------ runs

    def get_run(self, run_id: str) -> Run | None:
        """Return an undeleted run, or None."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client().get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def finished(self, run_id: str) -> Run:
        """Return a finished run of this harness; LookupError or ValueError with one clear line otherwise."""
        where = redact(self.tracking_uri or str(self.local_directory))
        run = (self.get_run(run_id) or self._imported(run_id)) if self.readable() else None
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

    def _imported(self, run_id: str) -> Run | None:
        """Return the run of a node that had this ID in the store it was imported from."""
        if not re.fullmatch("[0-9a-f]{32}", run_id):
            return None
        condition = f"tags.`{ORIGIN_TAG}` LIKE '%{run_id}%'"
        found = self.client().search_runs(self.experiment_ids(), condition, max_results=1)
        return self.client().get_run(found[0].info.run_id) if found else None

    def run_with(self, key: str) -> Run | None:
        """Return the run with this key, a finished one before an unfinished, the oldest of equals."""
        runs = self.client().search_runs(
            self.experiment_ids(), f"tags.`{KEY_TAG}` = '{key}'", max_results=20, order_by=["start_time ASC"]
        )
        run = min(runs, key=lambda run: run.info.status != "FINISHED", default=None)
        # A search gives no inputs and outputs in every version of MLflow; the run itself does.
        return None if run is None else self.client().get_run(run.info.run_id)

    def children_of(self, key: str) -> list[RunSummary]:
        """Return what was made directly from the node with this key, oldest first, unfinished deliveries too."""
        runs = self.client().search_runs(
            self.experiment_ids(), f"tags.`{PARENTS_TAG}` LIKE '%{key}%'", max_results=1000, order_by=["start_time ASC"]
        )
        return [summary_of(run) for run in runs]

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all of them or none."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        self.client().log_batch(run_id, tags=entities, synchronous=True)

    # ------------------------------------------------------------------ files

    def repository(self, run: Run) -> ArtifactRepository:
        """Return where the run's files lie: its logged model, or the run itself for an analysis."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        made = outputs(run) or outputs(self.client().get_run(run.info.run_id))
        location = self.client().get_logged_model(made[0]).artifact_location if made else run.info.artifact_uri
        return get_artifact_repository(location, tracking_uri=self.tracking_uri)

    @contextlib.contextmanager
    def artifact(self, run: Run, name: str) -> Iterator[Path]:
        """Give the path of one file of a run, its digest checked; LookupError when the run has no such file."""
        expected = run.data.tags.get(DIGEST_TAG + name)
        if expected is None:
            names = [tag.removeprefix(DIGEST_TAG) for tag in run.data.tags if tag.startswith(DIGEST_TAG)]
            message = f"run {run.info.run_id} ({run.info.run_name}) has no {name}; it has: {', '.join(sorted(names))}"
            raise LookupError(message)
        with opened(self.repository(run), name) as path:
            if path is None and name in absent_names(run):
                raise ValueError(f"{name} was left out of run {run.info.run_id} ({run.info.run_name}) on purpose")
            if path is None:
                raise ValueError(f"{name} is missing from the tracking store's files; the run lists it")
            yield check_digest(path, expected)


def outputs(run: Run) -> list[str]:
    """Return the IDs of the logged models that a run made."""
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def summary_of(run: Run) -> RunSummary:
    """Return what a run says of itself in tags and metrics."""
    tags = run.data.tags
    hidden = ("harness.", "mlflow.")
    return RunSummary(
        key=tags[KEY_TAG],
        kind=tags.get("harness.kind", ""),
        name=run.info.run_name or "",
        parents=_parents(tags),
        nest_key=tags.get("harness.nested_under"),
        root=tags.get("harness.root"),
        tags={name: value for name, value in tags.items() if not name.startswith(hidden)},
        metrics=dict(run.data.metrics),
        files={name.removeprefix(DIGEST_TAG): value for name, value in tags.items() if name.startswith(DIGEST_TAG)},
        run_id=run.info.run_id,
        status=run.info.status,
        started_ms=run.info.start_time or 0,
        finished_ms=run.info.end_time or 0,
        experiment_id=str(run.info.experiment_id),
        absent=absent_names(run),
        parent_run_ids=tuple(re.findall("[0-9a-f]{32}", tags.get(PARENT_RUNS_TAG, ""))),
        origin_run_ids=tuple(re.findall("[0-9a-f]{32}", tags.get(ORIGIN_TAG, ""))),
    )


def _parents(tags: dict[str, str]) -> tuple[Parent, ...]:
    """Return the parents as tags say; none where somebody edited them beyond reading, which `verify` reports."""
    try:
        return tuple(Parent(key, relation) for relation, key in json.loads(tags.get(PARENTS_TAG, "[]")))
    except (ValueError, TypeError, RecursionError):
        return ()


def absent_names(run: Run) -> tuple[str, ...]:
    """Return the names of the files that were left out of a run on purpose when it was delivered."""
    try:
        names = json.loads(run.data.tags.get(ABSENT_TAG, "[]"))
        return tuple(check_file_name(name) for name in names)
    except (ValueError, TypeError, RecursionError):
        return ()


def tag(run: Run, name: str) -> str:
    """Return a tag that every run of this harness has; ValueError when somebody removed it."""
    value = run.data.tags.get(name)
    if value is None:
        raise ValueError(f"run {run.info.run_id} ({run.info.run_name}) lost its tag {name!r}")
    return str(value)


def download(repository: ArtifactRepository, name: str, target: Path | None) -> Path:
    """Return the path of one file, copied below `target` if given; ValueError when it is missing.

    The name is checked and no listing of the server is asked for, so nothing is written outside of `target`; of a
    local store nothing is read that a link puts outside of the run's files.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from requests import HTTPError

    check_file_name(name)
    try:
        if isinstance(repository, LocalArtifactRepository):
            home = Path(repository.artifact_dir)
            if not (home / name).resolve().is_relative_to(home.resolve()):
                raise ValueError(f"{home / name} is a link out of the run's files: it is not read")
            path = Path(repository.get_local_path(name))
            if target is None:
                return path
        assert target is not None
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Not download_artifacts: that asks the server whether the name is a directory, and what is in it.
        repository._download_file(name, str(destination))  # type: ignore[no-untyped-call]
        return destination
    except (MlflowException, FileNotFoundError, HTTPError) as error:
        unknown = isinstance(error, HTTPError) and error.response is not None and error.response.status_code == 404
        if unknown or isinstance(error, FileNotFoundError) or "No such artifact" in str(error):
            raise MissingFileError(f"{name} is missing from the tracking store's files; the run lists it") from None
        raise


class MissingFileError(ValueError):
    """A file that a run lists is not among its files."""


@contextlib.contextmanager
def opened(repository: ArtifactRepository, name: str) -> Iterator[Path | None]:
    """Give the path of one file for as long as it is read, None when it is missing; never write to it."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with tempfile.TemporaryDirectory() as directory:
        # A local store hands out its own file: no copy, and nobody writes to it.
        target = None if isinstance(repository, LocalArtifactRepository) else Path(directory)
        try:
            path = download(repository, name, target)
        except MissingFileError:
            yield None
            return
        yield path


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status that a server's refusal came with; MLflow has it in its message alone."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    found = re.search(r"failed with error code (\d{3})", str(error))
    return int(found[1]) if found else None


def _from_store(error: Exception) -> bool:
    """Whether an exception comes from MLflow or from what it stands on, rather than from our own mistake."""
    roots = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(roots & {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3"})


def _mlflow_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("mlflow") is not None


def _quiet_client(tracking_uri: str) -> MlflowClient:
    """Return a client that reports nothing home, draws no bars, prints no links and gives up in seconds."""
    return _quiet_mlflow()(tracking_uri=tracking_uri)


def _quiet_mlflow() -> type[MlflowClient]:
    """Import MLflow, told beforehand what it reads when it is imported or first used."""
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
    return MlflowClient


def _make_database(path: Path) -> None:
    """Make an MLflow database whole or not at all: one that is killed half-way can never be opened again."""
    for leftover in path.parent.glob(f".{path.name}.{socket.gethostname()}.*"):
        process = leftover.name.rpartition(".")[2]
        if process.isdigit() and not process_exists(int(process)):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        _quiet_client(f"sqlite:///{temporary}").search_experiments(max_results=1)
        reach("database-made")
        with contextlib.suppress(FileExistsError):  # another process was faster
            _rename_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_to_new(source: Path, target: Path) -> None:
    """Give a file a name that is not taken; FileExistsError, and nothing overwritten, if it is."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        os.rename(source, target)


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
