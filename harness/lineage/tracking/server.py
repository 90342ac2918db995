"""Connection to an MLflow server or SQLite file: address, client, experiments, runs and artifacts.

Inside `Server.talking`, every error of the store becomes one of two exceptions. Its message is one line without
credentials.

* ConnectionError: the store is unreachable, busy, broken or full. A later attempt may succeed. What the store holds is
  unknown meanwhile, and never counts as "not there".
* RefusedError: the store answers, and will refuse each later attempt too, until somebody acts. Examples are a deleted
  experiment, a missing permission, a missing database driver and an outdated database schema.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from harness.common.escape import one_line, redact, redact_word
from harness.common.files import reach
from harness.common.optional import missing
from harness.common.process import Process
from harness.common.program import command, runs_option
from harness.common.waiting import wait_until
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, check_digest, parse_record
from harness.lineage.nodes.record import Parent, check_file_name
from harness.lineage.tracking.moved import FILES, present_location, present_place
from harness.lineage.tracking.view import EXPERIMENT_NOTE, VIEW, VIEW_TAG, saved_view

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KEY_TAG = "harness.key"
DIGEST_TAG = "harness.sha256."
PARENTS_TAG = "harness.parents"
ROOT_TAG = "harness.root"
PARENT_RUNS_TAG = "harness.parent_run_ids"
"""Run IDs of the parents, to fetch them in one request."""
FAMILIES_TAG = "harness.families"
"""First digits of the root keys of all searches that a run has relatives in."""
ORIGIN_TAG = "harness.origin_run_id"
"""Run IDs of an imported run in the stores that it came from."""
ABSENT_TAG = "harness.absent"
"""Listed files that were deliberately not delivered."""

_PROBE_SECONDS = 5
BUSY_SECONDS = 20.0
"""How long a SQLite file that another process has locked is waited for. MLflow waits as long for its writes."""
_DELIVERY_SECONDS = 120  # longest wait for the delivery of another process to the same SQLite file
_REFUSALS = {
    401: "it does not know this user and password (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
    "or MLFLOW_TRACKING_TOKEN",
    403: "this user lacks the permission (403): ask the administrator of the server for it",
}
# MLflow's codes for requests that it refuses each time.
_REFUSING_CODES = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"),
}
_LIBRARIES = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "alembic", "google"}  # google: protobuf
_TEMPORARY_STATUS = {408, 409, 425, 429}
_BLANK = "the answer is empty: check that an MLflow server runs at this address"
# Tables of every MLflow database. MLflow would create missing ones without a word, and all runs would be gone.
_TABLES = frozenset({"experiments", "runs", "tags", "params", "metrics", "latest_metrics"})
# The pip package of a database driver, where its name differs from the module's.
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///([^?]*)")
_CONNECTING_ATTEMPTS = 3  # MLflow's 10 take two minutes
_FRESH_SECONDS = 5.0  # after a longer pause the server is probed first, because MLflow's calls can hang for minutes
_FAMILY_DIGITS = 16
_IDS_PER_REQUEST = 100


def default_tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or else a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class RefusedError(ConnectionError):
    """The store answers, but rejects the user or the action. No later attempt succeeds until somebody acts."""


def sqlite_path(tracking_uri: str | None) -> Path | None:
    """Return the file of a SQLite tracking URI, or None for another URI."""
    # As SQLAlchemy reads it: only "?" ends the path. Other signs, such as "#" and "%", belong to the name.
    match = _SQLITE.match(tracking_uri or "")
    return None if match is None else Path(match[1])


def family_digits(root: str) -> str:
    """Return the short name of a search in FAMILIES_TAG, which can list hundreds."""
    return root[:_FAMILY_DIGITS]


def id_conditions(run_ids: Iterable[str]) -> Iterator[str]:
    """Yield MLflow filters for the runs with these IDs, 100 per request."""
    ids = sorted(set(run_ids))
    for start in range(0, len(ids), _IDS_PER_REQUEST):
        chosen = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _IDS_PER_REQUEST])
        yield f"attributes.run_id IN ({chosen})"


class Server:
    """A tracking URI (None: no server) and the experiment of new runs.

    Connects on first use. Outside of `talking`, errors are MLflow's own.
    """

    def __init__(self, tracking_uri: str | None, experiment: str, local_directory: Path) -> None:
        """Create an unconnected server. Messages name `local_directory`, where undelivered runs stay."""
        self.tracking_uri, self.experiment, self.local_directory = tracking_uri, experiment, local_directory
        self._connected: MlflowClient | None = None
        self._experiments: dict[str, str] | None = None
        self._answered_at = -math.inf
        self._lock: FileLock | None = None

    @property
    def is_file(self) -> bool:
        """Whether the URI is a SQLite file. The file is created on the first write."""
        return sqlite_path(self.tracking_uri) is not None

    @property
    def is_remote(self) -> bool:
        """Whether the URI is an HTTP server."""
        return (self.tracking_uri or "").lower().startswith(("http://", "https://"))

    @property
    def address(self) -> str:
        """The tracking URI without credentials, independent of the working directory."""
        database = sqlite_path(self.tracking_uri)
        return f"sqlite:///{database.resolve()}" if database else redact_word(self.tracking_uri or "")

    def readable(self) -> bool:
        """Return whether there can be runs to read. A missing SQLite file is not created, which takes 8 s."""
        database = sqlite_path(self.tracking_uri)
        if self.tracking_uri is None or not _mlflow_installed():
            return False
        return database is None or database.exists() or database.is_symlink()  # `client` refuses a dead link

    def client(self) -> MlflowClient:
        """Return the client, connected.

        Raises:
            ConnectionError: There is no tracking URI, MLflow is not installed, or the store is unreachable or busy.
            RefusedError: The address is not valid.
        """
        # Phase: check the address, and probe the store after a pause. MLflow's own retries would take minutes.
        database = sqlite_path(self.tracking_uri)
        self._check_place()
        if time.monotonic() - self._answered_at > _FRESH_SECONDS and _mlflow_installed():
            if self.is_remote:
                _probe(self.tracking_uri or "")
                self._answered_at = time.monotonic()
            elif database is not None and database.exists():
                _probe_file(database)
                self._answered_at = time.monotonic()

        # Phase: connect on first use.
        if self._connected is None:
            if self.tracking_uri is None:
                raise ConnectionError(f"no tracking URI is set; runs stay in {self.local_directory}")
            if not _mlflow_installed():
                raise ConnectionError(
                    f"{missing('mlflow', 'the tracking store')}. Until then runs stay in {self.local_directory}, and "
                    f"`{command('lineage sync')}` delivers them later"
                )
            try:
                if database is not None and not database.exists():
                    _make_database(database)
                self._connected = _quiet_client(self.tracking_uri)
            except ValueError:  # SQLAlchemy's message would show parts of a password
                raise RefusedError("this is no valid address of a database or server") from None
        return self._connected

    def _check_place(self) -> None:
        """Raise RefusedError if a SQLite file can be neither read nor created at its path."""
        database = sqlite_path(self.tracking_uri)
        if database is None and not (self.tracking_uri or "").lower().startswith(("sqlite:", "sqlite+")):
            return
        is_memory = database is None or database.name in ("", ":memory:") or str(database).startswith("file:")
        if database is None or is_memory or database.is_dir():
            raise RefusedError("it names no file; give sqlite:///FILE or the address of a server")
        if database.is_symlink() and not database.exists():
            raise RefusedError(
                f"{database} links to {os.readlink(database)}, which does not exist: mount its disk, or remove the link"
            )
        if not database.parent.is_dir():
            raise RefusedError(f"its directory {database.parent} does not exist: create it, or name another file")

    def preload(self) -> None:
        """Import MLflow before the first call."""
        if self.tracking_uri is not None and _mlflow_installed():
            _quiet_mlflow()

    @contextlib.contextmanager
    def talking(self, action: str) -> Iterator[None]:
        """Turn every error of the store into one of one line: "cannot `action`: …".

        Raises:
            RefusedError: The store refuses the action each time.
            ConnectionError: A later attempt may succeed.
        """
        try:
            yield
            self._answered_at = time.monotonic()
        except (ValueError, LookupError):
            raise
        except Exception as error:
            # Phase: let errors of the harness pass. Otherwise reconnect, and probe first, at the next call.
            refusal = _refusal(error)
            if refusal is None and not isinstance(error, ConnectionError) and not _from_store(error):
                raise
            self._connected, self._experiments, self._answered_at = None, None, -math.inf

            # Phase: say what happened.
            uri = self.tracking_uri or ""
            where = f"cannot {action}: MLflow at {redact_word(uri) or 'nowhere'}"
            reason = refusal or _first_line(error)
            reason = redact(reason.replace(uri, redact_word(uri)) if uri else reason)
            if refusal is not None:
                note = "" if _status_of(error) is None else _proxy_note(uri)  # the proxy may have refused it
                raise RefusedError(f"{where}: {reason:.600}{note}") from error
            if re.search(r"table \w+ already exists", reason):
                reason = (
                    "its tables are incomplete, because a process was killed while it created them; move the file "
                    f"away, and `{command('lineage sync')}` fills a new one from the local runs"
                )
            elif re.search(r"database( table)? is (locked|busy)", reason):
                reason = "it is busy: another process is writing to it (database is locked)"
            raise ConnectionError(f"{where}: {reason:.300}{_proxy_note(uri)}") from error

    # ------------------------------------------------------------------ experiments

    def experiments(self, *, anew: bool = False) -> dict[str, str]:
        """Return {name: ID} of all experiments, from a cache unless `anew`."""
        if self._experiments is None or anew:
            found: dict[str, str] = {}
            token: str | None = None
            while True:
                page = self.client().search_experiments(max_results=1000, page_token=token)
                found |= {str(experiment.name): str(experiment.experiment_id) for experiment in page}
                token = page.token
                if not token:
                    break
            if not found:  # every experiment may have been deleted
                self.check_answers()
            for experiment_id in found.values():
                check_answer(experiment_id)
            self._experiments = found
        return self._experiments

    def experiment_ids(self) -> list[str]:
        """Return the IDs of all experiments."""
        # Runs are shared by all experiments: runs with equal keys have equal results.
        return list(self.experiments().values())

    def own_experiment(self) -> str:
        """Return the ID of the experiment, and create it if it is missing."""
        client = self.client()
        experiment = self._find_experiment()
        if experiment is None:
            self._experiments = None
            # the menu "Views" lists the view from the first visit on
            tags = {VIEW_TAG + VIEW: saved_view(), "mlflow.note.content": EXPERIMENT_NOTE}
            return client.create_experiment(self.experiment, artifact_location=self._artifact_location(), tags=tags)
        self._check_not_deleted(experiment)
        return str(experiment.experiment_id)

    def check_own_experiment(self) -> None:
        """Ask the store for the experiment of new runs, without creating it.

        Raises:
            RefusedError: The experiment was deleted.
        """
        self._check_place()
        if self.is_file and not self.readable():
            return  # the file is created on the first write
        if (experiment := self._find_experiment()) is not None:
            self._check_not_deleted(experiment)

    def check_answers(self) -> None:
        """Raise ConnectionError if a remote server gives empty answers. Call this when a search finds nothing.

        MLflow's client reads the empty answer of a gateway as "nothing found". The answer to this request never is.
        """
        if self.is_remote:
            self._find_experiment()

    def _find_experiment(self) -> Experiment | None:
        """Return the experiment of new runs, deleted or not, or None if it does not exist."""
        experiment = self.client().get_experiment_by_name(self.experiment)
        if experiment is not None:
            check_answer(experiment.experiment_id)
        return experiment

    def _check_not_deleted(self, experiment: Experiment) -> None:
        if experiment.lifecycle_stage == "deleted":
            raise RefusedError(f"experiment {self.experiment!r} was deleted in MLflow: restore it or name another one")

    def restore_experiment(self) -> bool:
        """Restore the experiment and its runs if it was deleted in MLflow. Return whether it was."""
        experiment = self._find_experiment()
        if experiment is None or experiment.lifecycle_stage == "active":
            return False
        self.client().restore_experiment(experiment.experiment_id)
        self._experiments = None
        return True

    def _artifact_location(self) -> str | None:
        """Return the artifact directory of a SQLite store: beside the database, not in the working directory."""
        database = sqlite_path(self.tracking_uri)
        if database is None:
            return None
        return str(database.resolve().parent / FILES / re.sub(r"[^A-Za-z0-9_.-]", "-", self.experiment))

    # ------------------------------------------------------------------ runs

    def get_run(self, run_id: str) -> Run | None:
        """Return a run, or None if it does not exist or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client().get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        check_answer(run.info.run_id)
        return run if run.info.lifecycle_stage == "active" else None

    def finished(self, run_id: str) -> Run:
        """Return a finished run of this harness.

        Raises:
            LookupError: There is no such run.
            ValueError: The run is unfinished, or the harness did not log it.
        """
        where = redact_word(self.tracking_uri or str(self.local_directory))
        run = (self.get_run(run_id) or self._imported(run_id)) if self.readable() else None
        if run is None:
            listed = command(f"lineage list{runs_option(self.local_directory)}")
            raise LookupError(f"no run {run_id!r} in {where}; `{listed}` shows the runs there")
        if KEY_TAG not in run.data.tags:
            raise ValueError(f"run {run_id} ({run.info.run_name}) in {where} was not logged by this harness")
        if run.info.status != "FINISHED":
            raise ValueError(
                f"run {run_id} ({run.info.run_name}) is not finished (status {run.info.status}): "
                f"`{command('lineage sync')}` completes an interrupted delivery"
            )
        return run

    def _imported(self, run_id: str) -> Run | None:
        """Return the run that had this ID in the store that it was imported from."""
        if not re.fullmatch("[0-9a-f]{32}", run_id):
            return None
        condition = f"tags.`{ORIGIN_TAG}` LIKE '%{run_id}%'"
        found = self.client().search_runs(self.experiment_ids(), condition, max_results=1)
        if not found:
            self.check_answers()
        return self.client().get_run(found[0].info.run_id) if found else None

    def run_with(self, key: str, record_digest: str = "") -> Run | None:
        """Return the run with this key. Of several, a finished one is preferred, then the oldest.

        Of several unfinished runs, one with this SHA-256 of `record.json` is preferred.
        """

        def rank(run: Run) -> tuple[bool, bool]:
            is_finished = run.info.status == "FINISHED"
            return not is_finished, not is_finished and run.data.tags.get(DIGEST_TAG + RECORD) != record_digest

        runs = self.client().search_runs(
            self.experiment_ids(), f"tags.`{KEY_TAG}` = '{key}'", max_results=20, order_by=["start_time ASC"]
        )
        if not runs:
            self.check_answers()
        run = min(runs, key=rank, default=None)
        # In some versions of MLflow, search results have no inputs and outputs.
        return None if run is None else self.client().get_run(run.info.run_id)

    def deleted_runs_with(self, key: str) -> list[Run]:
        """Return the finished runs with this key that were deleted in MLflow."""
        from mlflow.entities import ViewType

        condition = f"tags.`{KEY_TAG}` = '{key}' AND attributes.status = 'FINISHED'"
        return list(self.client().search_runs(self.experiment_ids(), condition, ViewType.DELETED_ONLY, max_results=100))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Exclude other processes from delivering to the same SQLite file while the block runs. Reentrant.

        So equal runs of two launches are delivered once. Servers and file systems without locks exclude nobody.

        Raises:
            ConnectionError: Another process delivers for too long.
        """
        database = sqlite_path(self.tracking_uri)
        if database is None:
            yield
            return
        from filelock import FileLock, Timeout

        if self._lock is None:
            path = database.resolve()
            self._lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
        try:
            self._lock.acquire(timeout=_DELIVERY_SECONDS)
        except Timeout:
            raise ConnectionError(f"another process is still delivering after {_DELIVERY_SECONDS} s") from None
        except OSError:  # no locks on this file system, or no permission: deliver as without other processes
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    def children_of(self, key: str) -> list[RunSummary]:
        """Return the children of the run with this key, oldest first, including unfinished deliveries."""
        runs = self.client().search_runs(
            self.experiment_ids(), f"tags.`{PARENTS_TAG}` LIKE '%{key}%'", max_results=1000, order_by=["start_time ASC"]
        )
        return [summary_of(run) for run in runs if KEY_TAG in run.data.tags]

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set all tags of a run in one atomic request."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        self.client().log_batch(run_id, tags=entities, synchronous=True)

    # ------------------------------------------------------------------ files

    def repository(self, run: Run, *, own: bool = False) -> ArtifactRepository:
        """Return the repository of a run's files: its logged model, or else (or if `own`) its own artifacts."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        location = run.info.artifact_uri
        made = [] if own else outputs(run) or outputs(self.client().get_run(run.info.run_id))
        if made:
            model = self.model_of(made)
            if model is None:
                raise MissingFileError(
                    f"the logged model of run {run.info.run_id} ({run.info.run_name}) was deleted in MLflow; "
                    f"`{command('lineage sync')}` sends its files again"
                )
            location = model.artifact_location
        location = present_location(location, sqlite_path(self.tracking_uri))
        return get_artifact_repository(location, tracking_uri=self.tracking_uri)

    def present(self, recorded: str) -> Path | None:
        """Return where files of a recorded location lie in a moved SQLite store; None if it was not moved."""
        database = sqlite_path(self.tracking_uri)
        place = present_place(recorded, database) if database is not None else None
        return None if place is None else Path(present_location(recorded, database))

    def model_of(self, model_ids: Sequence[str]) -> LoggedModel | None:
        """Return the first of these logged models that was not deleted, or None."""
        from mlflow.exceptions import MlflowException

        for model_id in model_ids:
            try:
                return self.client().get_logged_model(model_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None

    @contextlib.contextmanager
    def artifact(self, run: Run, name: str, digest: str | None = None) -> Iterator[Path]:
        """Yield the path of one file of a run, after checking its digest.

        Args:
            run: The run.
            name: Name of the file.
            digest: SHA-256 of the file, if the run's tag may have been removed.

        Raises:
            LookupError: The run lists no such file.
            ValueError: The file is missing or altered.
        """
        expected = run.data.tags.get(DIGEST_TAG + name, digest)
        if expected is None:
            names = [tag.removeprefix(DIGEST_TAG) for tag in run.data.tags if tag.startswith(DIGEST_TAG)]
            message = f"run {run.info.run_id} ({run.info.run_name}) has no {name}; it has: {', '.join(sorted(names))}"
            raise LookupError(message)
        with opened(self.repository(run), name) as path:
            if path is None and name in absent_names(run):
                raise ValueError(f"{name} was deliberately left out of run {run.info.run_id} ({run.info.run_name})")
            if path is None:
                raise ValueError(f"{name} is missing from the tracking store's files; the run lists it")
            yield check_digest(path, expected)

    def recorded_digests(self, run: Run) -> dict[str, str]:
        """Return {file name: SHA-256} from the record among a run's files; ValueError if it is missing or altered."""
        with opened(self.repository(run), RECORD) as path:
            if path is None:
                raise MissingFileError(f"run {run.info.run_id} ({run.info.run_name}) has no {RECORD} in MLflow")
            if (digest := run.data.tags.get(DIGEST_TAG + RECORD)) is not None:
                check_digest(path, digest)
            return parse_record(path).files

    def missing_files(self, run: Run, also: Iterable[str] = ()) -> list[str]:
        """Return the names of the files that a run lists and its store lacks, with few requests, without reading.

        Args:
            run: The run.
            also: Names of further files to look for. The run does not list them.
        """
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        names = [*sorted(summary_of(run).files.keys() - set(absent_names(run))), *also]
        repository = self.repository(run)
        if isinstance(repository, LocalArtifactRepository):
            return [name for name in names if not (Path(repository.artifact_dir) / name).is_file()]
        found: set[str] = set()
        for directory in dict.fromkeys(name.rpartition("/")[0] for name in names):
            found |= {str(file.path) for file in repository.list_artifacts(directory or None)}
        return [name for name in names if name not in found]

    def has_own_file(self, run: Run, name: str) -> bool:
        """Return whether a run's own artifacts have a file, without reading it."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        repository = self.repository(run, own=True)
        if isinstance(repository, LocalArtifactRepository):
            return (Path(repository.artifact_dir) / name).is_file()
        return name in {str(file.path) for file in repository.list_artifacts(name.rpartition("/")[0] or None)}


def check_answer(identifier: object) -> None:
    """Raise ConnectionError if the answer of a server lacks the ID or name that each answer to the request has."""
    if not identifier:
        raise ConnectionError(_BLANK)


def outputs(run: Run) -> list[str]:
    """Return the IDs of the logged models that a run made."""
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def summary_of(run: Run) -> RunSummary:
    """Return the summary of a run, from its tags and metrics."""
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


def root_of(node: RunSummary, find: Callable[[str], RunSummary | None]) -> str | None:
    """Return the key of the root above a run, without its root tag, which people can edit.

    Args:
        node: The run.
        find: Returns the run with a key.

    Returns:
        The key. None if a run on the way up is missing.
    """
    passed = {node.key}
    while node.nest_key is not None and node.nest_key not in passed:
        above = find(node.nest_key)
        if above is None:
            return None
        node = above
        passed.add(node.key)
    return node.key


def _parents(tags: dict[str, str]) -> tuple[Parent, ...]:
    """Return the parents that a run's tags name. Unreadable tags give none, and `verify` reports them."""
    try:
        return tuple(Parent(key, relation) for relation, key in json.loads(tags.get(PARENTS_TAG, "[]")))
    except (ValueError, TypeError, RecursionError):
        return ()


def absent_names(run: Run) -> tuple[str, ...]:
    """Return the names of the files that a delivery deliberately left out."""
    try:
        names = json.loads(run.data.tags.get(ABSENT_TAG, "[]"))
        return tuple(check_file_name(name) for name in names)
    except (ValueError, TypeError, RecursionError):
        return ()


def tag(run: Run, name: str) -> str:
    """Return a tag that every run of the harness has; ValueError if it was removed."""
    value = run.data.tags.get(name)
    if value is None:
        raise ValueError(f"run {run.info.run_id} ({run.info.run_name}) lost its tag {name!r}")
    return str(value)


def download(repository: ArtifactRepository, name: str, target: Path | None) -> Path:
    """Return the path of one file of a repository.

    The name is validated, and no listing of the server is used. So no file is written outside of `target`, and no link
    in a local store is followed out of the run's files.

    Args:
        repository: The run's files.
        name: Relative path of the file.
        target: Directory to copy the file to. None returns a local store's own file.

    Raises:
        MissingFileError: The repository does not have the file.
    """
    # Phase: a local store.
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from requests import HTTPError

    check_file_name(name)
    try:
        if isinstance(repository, LocalArtifactRepository):
            home = Path(repository.artifact_dir)
            if not (home / name).resolve().is_relative_to(home.resolve()):
                raise ValueError(f"{home / name} links to a path outside of the run's files, so it is not read")
            path = Path(repository.get_local_path(name))
            if path.is_dir():
                raise FileNotFoundError(path)
            if target is None:
                return path

        # Phase: a server.
        assert target is not None
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        # download_artifacts would trust the server's listing of directories
        repository._download_file(name, str(destination))  # type: ignore[no-untyped-call]
        return destination
    except (MlflowException, FileNotFoundError, HTTPError) as error:
        unknown = isinstance(error, HTTPError) and error.response is not None and error.response.status_code == 404
        if unknown or isinstance(error, FileNotFoundError) or "No such artifact" in str(error):
            raise MissingFileError(f"{name} is missing from the tracking store's files; the run lists it") from None
        raise


class MissingFileError(ValueError):
    """The store lacks a file that the run lists."""


@contextlib.contextmanager
def opened(repository: ArtifactRepository, name: str) -> Iterator[Path | None]:
    """Yield the path of one file for reading, or None if it is missing. Do not write to the path."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with tempfile.TemporaryDirectory() as directory:
        # the path of a local store is the stored file itself
        target = None if isinstance(repository, LocalArtifactRepository) else Path(directory)
        try:
            path = download(repository, name, target)
        except MissingFileError:
            yield None
            return
        yield path


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, parsed from MLflow's message if need be; None if there is none."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    found = re.search(r"failed with error code (\d{3})", str(error))
    return int(found[1]) if found else None


def _from_store(error: Exception) -> bool:
    """Return whether an exception comes from MLflow or one of its libraries, and not from a bug here."""
    roots = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(roots & _LIBRARIES)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if found := re.search(r"\(Caused by \w+\((.*?)[)'\"]*$", text):  # after several attempts, with a long address
        text = found[1].lstrip("'\"")
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _refusal(error: Exception) -> str | None:
    """Return why the store will refuse each later attempt too; None if a later attempt may succeed."""
    # Phase: errors of this module, and of a server.
    if isinstance(error, RefusedError):
        return str(error)
    status = _status_of(error)
    if status in _REFUSALS:
        return _REFUSALS[status]
    if status is not None and 400 <= status < 500 and status not in _TEMPORARY_STATUS | {404}:
        return f"{_first_line(error)}; check that an MLflow server runs at this address"

    # Phase: what a database needs.
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
        package = _DRIVERS.get(name, name)
        return f"this address needs the Python package {name or 'of its driver'} ({error}): `pip install '{package}'`"
    if "out-of-date database schema" in str(error):
        return (
            f"{_first_line(error).partition('. ')[0]}: this MLflow has another version than the one that wrote the "
            "database. Back the database up and run `mlflow db upgrade` with its address, or install that version"
        )

    # Phase: requests and addresses that cannot work.
    names = {f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    if names & {"sqlalchemy.ArgumentError", "sqlalchemy.NoSuchModuleError"}:
        return "this is no valid address of a database"
    if getattr(error, "error_code", None) in _REFUSING_CODES:
        return _first_line(error)
    return None


def _mlflow_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("mlflow") is not None


def _quiet_client(tracking_uri: str) -> MlflowClient:
    """Return a client without telemetry, progress bars and printed links, and with short timeouts."""
    client = _quiet_mlflow()
    if not tracking_uri.startswith(("http://", "https://")):
        from mlflow.store.db import utils

        if hasattr(utils, "MAX_RETRY_COUNT"):
            utils.MAX_RETRY_COUNT = _CONNECTING_ATTEMPTS
    return client(tracking_uri=tracking_uri)


def _quiet_mlflow() -> type[MlflowClient]:
    """Import MLflow after setting the environment variables that it reads at import or first use."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # the default of 7 takes four minutes per call
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # several lines for each attempt to connect
    return MlflowClient


def _make_database(path: Path) -> None:
    """Create an MLflow database atomically, because MLflow cannot open an incomplete one."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        maker = Process.of_suffix(leftover.name.removeprefix(f".{path.name}."))
        if maker is not None and maker.alive is False:
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{Process.current().suffix}")
    try:
        _quiet_client(f"sqlite:///{temporary}").search_experiments(max_results=1)
        reach("database-made")
        with contextlib.suppress(FileExistsError):  # another process was faster
            _rename_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_to_new(source: Path, target: Path) -> None:
    """Rename a file without overwriting; FileExistsError if `target` exists."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        os.rename(source, target)


def _probe(tracking_uri: str) -> None:
    """Raise ConnectionError unless a server answers within seconds. MLflow's own retries take minutes."""
    import requests
    from mlflow.tracking._tracking_service.utils import get_default_host_creds

    # Phase: use the certificates that MLflow's variables choose.
    creds = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    address, certificate = tracking_uri.rstrip("/") + "/health", creds.client_cert_path

    # Phase: ask, and turn each failure into one line.
    try:
        requests.get(address, timeout=_PROBE_SECONDS, verify=creds.verify, cert=certificate)
    except requests.Timeout:
        raise ConnectionError(f"no answer within {_PROBE_SECONDS} s") from None
    except requests.exceptions.InvalidURL as error:
        if "proxy url" in str(error).lower():
            raise ConnectionError(_first_line(error)) from None
        raise RefusedError(f"this is no valid address ({_first_line(error)}){_proxy_note(tracking_uri)}") from None
    except requests.RequestException as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            found = re.search(r"certificate verify failed: ([^()]*)", str(error))
            raise RefusedError(
                f"its TLS certificate cannot be verified ({found[1].strip() if found else 'unknown'}): set "
                "MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of its authority"
            ) from None
        reason = getattr(error.args[0], "reason", error) if error.args else error
        raise ConnectionError(str(reason).split(": ", 1)[-1].rstrip(".)'\"")) from None


def _proxy_note(tracking_uri: str) -> str:
    """Return a sentence that names the proxy that requests to the server go through; empty without one."""
    if not tracking_uri.startswith(("http://", "https://")):
        return ""
    from requests.utils import get_environ_proxies, select_proxy, urlparse

    # Phase: find the proxy as `requests` does, which heeds NO_PROXY.
    try:
        proxy = select_proxy(tracking_uri, get_environ_proxies(tracking_uri))
        address = urlparse(tracking_uri)
    except ValueError:
        return ""
    if not proxy:
        return ""

    # Phase: find the variable that names it.
    names = [f"{address.scheme}_proxy", "all_proxy"]
    variables = [name for both in names for name in (both, both.upper()) if os.environ.get(name)]
    variable = variables[0] if variables else "the system's settings"
    return (
        f". It was asked through the proxy {redact_word(proxy)} (from {variable}); if it is reachable without, add "
        f"{address.hostname} to NO_PROXY"
    )


def _probe_file(path: Path) -> None:
    """Wait until a SQLite file can be read.

    Raises:
        ConnectionError: Another process keeps it locked for BUSY_SECONDS.
        RefusedError: It cannot be opened, or is no database of MLflow.
    """
    tables: set[str] = set()

    def is_free() -> bool:
        try:
            address = f"file:{quote(str(path))}?mode=rw"  # a missing file must not be created
            with contextlib.closing(sqlite3.connect(address, timeout=0, uri=True)) as connection:
                tables.update(name for (name,) in connection.execute("SELECT name FROM sqlite_master"))
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                return False
            raise RefusedError(f"{path} cannot be opened ({one_line(error)})") from None
        except sqlite3.DatabaseError as error:
            raise RefusedError(f"{path} is no SQLite database ({one_line(error)})") from None
        return True

    if not wait_until(is_free, BUSY_SECONDS, pause=0.2):
        raise ConnectionError(f"database is locked, for longer than {BUSY_SECONDS:g} s")
    if missing := _TABLES - tables:
        what = f"has no table {', '.join(sorted(missing))}" if tables else "is empty"
        raise RefusedError(
            f"{path} {what}: it was damaged, is no database of MLflow, or another process is just creating it. Restore "
            f"a backup, or move the file away: `{command('lineage sync')}` then fills a new one from the local runs"
        )
