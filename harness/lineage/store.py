"""Query local runs and their MLflow copies through one interface, and deliver local runs."""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.digest import sha256_file
from harness.common.escape import redact_word
from harness.common.files import MOST_JSON_BYTES
from harness.common.program import DEFAULT_RUNS, command, runs_option
from harness.lineage.nodes.absent_files import ABSENT_FILES
from harness.lineage.nodes.contents import OtherContentsError
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import (
    RECORD,
    LocalNodes,
    absent_files,
    check_digest,
    parse_record,
    read_record,
    read_sums,
)
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.tracking.addresses import Addresses, repair_all
from harness.lineage.tracking.delivery import Delivery
from harness.lineage.tracking.duplicates import merge_equal_runs, remove_duplicate_runs
from harness.lineage.tracking.overview import Overviews
from harness.lineage.tracking.server import (
    DIGEST_TAG,
    KEY_TAG,
    MissingFileError,
    RefusedError,
    Server,
    absent_names,
    default_tracking_uri,
    download,
    opened,
    summary_of,
    tag,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "signed-tickets"
DEFAULT_DIRECTORY = DEFAULT_RUNS


def open_store(
    local_dir: Path | str = DEFAULT_DIRECTORY,
    tracking_uri: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    *,
    offline: bool = False,
) -> LineageStore:
    """Return the store over a directory of local runs and a tracking server.

    Args:
        local_dir: Directory of local runs.
        tracking_uri: Tracking server. None takes MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        experiment: MLflow experiment of new runs.
        offline: Use no tracking server.
    """
    uri = None if offline else tracking_uri or default_tracking_uri()
    return LineageStore(uri, LocalNodes(local_dir), experiment)


class SyncError(ValueError):
    """Some runs cannot be delivered. `problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class LineageStore:
    """Local runs and the tracking server that they are delivered to (None: no server).

    Connects to the server on first use.
    """

    def __init__(self, tracking_uri: str | None, local: LocalNodes, experiment: str = DEFAULT_EXPERIMENT) -> None:
        self.tracking_uri = tracking_uri
        self.local = local
        self.server = Server(tracking_uri, experiment, local.directory)
        self.delivery = Delivery(self.server, local)
        self.overviews = Overviews(self.server, self.summaries)

    def apart(self) -> LineageStore:
        """Return a copy with its own connection, for use in another thread."""
        return LineageStore(self.tracking_uri, self.local, self.server.experiment)

    @property
    def list_command(self) -> str:
        """The command that lists the runs of this store."""
        options = runs_option(self.local.directory)
        if self.tracking_uri is None:
            options += " --offline"
        elif self.tracking_uri != default_tracking_uri():
            options += f" --tracking-uri {shlex.quote(redact_word(self.tracking_uri))}"
        return command(f"lineage list{options}")

    @property
    def sync_command(self) -> str:
        """The command that delivers the local runs later, with this store's directory and experiment."""
        options = runs_option(self.local.directory)
        if self.server.experiment != DEFAULT_EXPERIMENT:
            options += f" --experiment {shlex.quote(self.server.experiment)}"
        return command(f"lineage sync{options}")

    def require(self) -> None:
        """Check at the start of a launch that the tracking server answers and takes new runs.

        Raises:
            RefusedError: It does not take them, for example because the experiment was deleted.
            ConnectionError: It does not answer within half a minute, or is busy.
        """
        if self.tracking_uri is None:
            return
        with self.beginning(), self.server.talking("begin"):
            self.server.check_own_experiment()

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Add advice to errors of the tracking server while nothing is trained yet.

        What the server holds is unknown then. It must not count as missing, since finished runs would be made again.
        """
        try:
            yield
        except RefusedError as error:
            raise RefusedError(f"{error}. Or pass --offline, and `{self.sync_command}` later") from None
        except ConnectionError as error:
            mend = "Try again later" if self.server.is_file else "Is the server up? Start it"
            raise ConnectionError(
                f"{error}. {mend}, or pass --offline: `{self.sync_command}` then delivers the runs later"
            ) from None

    # ------------------------------------------------------------------ queries

    def find(self, key: str) -> Path | None:
        """Return the local run with this key, fetched from MLflow if need be; None if neither has it.

        Returns:
            Its directory.

        Raises:
            ValueError: The run was altered.
            ConnectionError: The run is not local, and the server is unreachable.
        """
        directory = self.local.find(key)
        if directory is not None or not self.server.readable():
            return directory
        with self.server.talking("look for a node"):
            run = self.server.run_with(key)
            if run is None or run.info.status != "FINISHED" or self._has_other_parents(run):
                return None
            return self._fetch(run)

    def _has_other_parents(self, run: Run) -> bool:
        """Return whether an ancestor of an MLflow run has a local run with other contents. This is logged.

        The run then belongs to a network of another machine, and must not continue the local one. The search ends at
        local ancestors with equal contents: theirs were compared before.
        """
        waiting, passed = self._parents_in_mlflow(run), {run.info.run_id}
        while waiting:
            other = waiting.pop()
            if other.info.run_id in passed:
                continue
            passed.add(other.info.run_id)
            directory = self.local.find(other.data.tags[KEY_TAG])
            if directory is None:
                waiting += self._parents_in_mlflow(other)
                continue
            try:
                self.delivery.check_contents(other, directory, read_record(directory))
            except OtherContentsError as error:
                _log.warning(f"{run.info.run_name!r} in MLflow is not used, because of its parent {error}")
                return True
        return False

    def _parents_in_mlflow(self, run: Run) -> list[Run]:
        """Return the parents of an MLflow run, by their run IDs, or by their keys where a person removed the IDs."""
        node = summary_of(run)
        given = [self.server.get_run(run_id) for run_id in node.parent_run_ids]
        found = {one.data.tags[KEY_TAG]: one for one in given if one is not None and KEY_TAG in one.data.tags}
        for key in dict.fromkeys(parent.key for parent in node.parents if parent.key not in found):
            if (other := self.server.run_with(key)) is not None:
                found[key] = other
        return list(found.values())

    def load(self, run_id: str) -> LineageRecord:
        """Return the record of a finished run.

        Raises:
            LookupError: There is no such run.
            ValueError: The run is unfinished, altered, or not of the harness.
        """
        with self.server.talking(f"read run {run_id}"):
            run = self.server.finished(run_id)
            local = self._local_copy(run, RECORD)
            if local is not None:
                return read_record(local.parent)
            with self.server.artifact(run, RECORD) as path:
                return parse_record(path)

    def finished(self, run_id: str) -> Run:
        """Return a finished MLflow run; errors as in `load`."""
        with self.server.talking(f"read run {run_id}"):
            return self.server.finished(run_id)

    @contextlib.contextmanager
    def open_file(self, run: str | Run, name: str) -> Iterator[Path]:
        """Yield the path of one file of a finished run, after checking its digest. Only read it, inside the block.

        Args:
            run: A run ID, or a run that `finished` returned.
            name: Name of the file.

        Raises:
            LookupError: There is no such run or file.
            ValueError: The run is unfinished, or the file was altered.
        """
        with contextlib.ExitStack() as stack:
            with self.server.talking(f"read run {run if isinstance(run, str) else run.info.run_id}"):
                run = self.server.finished(run) if isinstance(run, str) else run
                path = self._local_copy(run, name) or stack.enter_context(self.server.artifact(run, name))
            yield path  # outside of `talking`, so that errors of the caller stay as they are

    def _local_copy(self, run: Run, name: str) -> Path | None:
        """Return the path of the local copy of an MLflow run's file, or None if there is no intact equal copy."""
        digest = run.data.tags.get(DIGEST_TAG + name)
        try:
            directory = self.local.find(run.data.tags[KEY_TAG])
            if directory is None or digest is None or read_sums(directory).get(name) != digest:
                return None
            return check_digest(directory / name, digest)
        except (ValueError, OSError):  # the local copy is altered or deleted: MLflow's copy may be intact
            return None

    def record_of(self, node: RunSummary) -> LineageRecord:
        """Return the record of a listed run, local or in MLflow; errors as in `load`."""
        with self.open_file_of(node, RECORD) as path:
            return parse_record(path)

    @contextlib.contextmanager
    def open_file_of(self, node: RunSummary, name: str) -> Iterator[Path]:
        """Yield the path of one file or the record of a listed run; errors as in `open_file`.

        The local copy is preferred. The digest is checked.
        """
        directory = self.local.find(node.key)
        if directory is not None and node.run_id is not None:
            # Use MLflow's file if the local one was deleted on purpose, or belongs to another making of the run.
            record = read_record(directory)
            own, theirs = read_sums(directory), node.files
            gone = name not in node.absent and name in absent_files(directory, record)
            is_copy = theirs.get(RECORD, own[RECORD]) == own[RECORD] or theirs.get(name) == own.get(name)
            if gone or not is_copy:
                directory = None
        if directory is not None:
            yield directory / RECORD if name == RECORD else self.local.open_file(node.key, name)
        elif node.run_id is None:
            raise LookupError(f"{node.name} ({node.key[:16]}…) is no longer in {self.local.directory}")
        else:
            with self.open_file(node.run_id, name) as path:
                yield path

    def stored_digests(self, run_id: str, names: Sequence[str]) -> Iterator[tuple[str, str | None, int]]:
        """Recompute the digests of a finished run's files in MLflow; errors as in `load`.

        Files are fetched one at a time and not kept.

        Yields:
            (name, SHA-256, bytes) of each file, or (name, None, 0) if it is missing.
        """
        with self.server.talking(f"read run {run_id}"):
            try:
                repository = self.server.repository(self.server.finished(run_id))
            except MissingFileError:  # the logged model was deleted
                yield from ((name, None, 0) for name in names)
                return
            for name in names:
                try:
                    with opened(repository, name) as path:
                        found = (name, None, 0) if path is None else (name, sha256_file(path), path.stat().st_size)
                except (OSError, ValueError) as error:
                    if self.server.is_remote:
                        raise
                    found = (name, f"unknown, because it cannot be read ({error})", 0)
                yield found

    def copy_digest(self, run_id: str, name: str) -> str | None:
        """Recompute the SHA-256 of the copy of a file among a run's own artifacts; None if there is no copy."""
        with self.server.talking(f"read run {run_id}"):
            repository = self.server.repository(self.server.finished(run_id), own=True)
            with opened(repository, name) as path:
                return None if path is None else sha256_file(path)

    def model_file(self, run_id: str, name: str) -> bytes | None:
        """Return the content of a file beside those that a finished run lists, or None if it is missing.

        Nothing vouches for the content. Of a large file, only the beginning is returned.
        """
        with self.server.talking(f"read run {run_id}"):
            try:
                repository = self.server.repository(self.server.finished(run_id))
            except MissingFileError:  # the logged model was deleted
                return None
            with opened(repository, name) as path:
                if path is None:
                    return None
                with open(path, "rb") as file:
                    return file.read(MOST_JSON_BYTES)

    def run_id_of(self, key: str) -> str | None:
        """Return the ID of the finished run with this key, or None."""
        if not self.server.readable():
            return None
        with self.server.talking("look for a run"):
            run = self.server.run_with(key)
            return run.info.run_id if run is not None and run.info.status == "FINISHED" else None

    def run_id_of_model(self, uri: str) -> str:
        """Return the ID of the run behind a `models:/` URI (version, alias or logged model); LookupError if none."""
        if not self.server.readable():
            raise LookupError(f"no MLflow store to look {uri} up in")
        with self.server.talking(f"look {uri} up"):
            return self.delivery.registry.run_id(uri)

    def experiments(self) -> list[str]:
        """Return the names of all experiments on the server."""
        if not self.server.readable():
            return []
        with self.server.talking("list experiments"):
            return list(self.server.experiments())

    def summaries(self, where: str = "", limit: int | None = None, experiment: str | None = None) -> list[RunSummary]:
        """Return summaries of the runs of the harness in MLflow, newest first, in one request per 1,000.

        Args:
            where: MLflow run filter.
            limit: Maximum number of runs. None returns all.
            experiment: Name of an experiment. None searches all.
        """
        if not self.server.readable():
            return []

        # Phase: restrict the filter to runs of the harness, unless it names their tags. LIKE '%' tests for a tag.
        ours = [] if "harness." in where or "run_id" in where else [f"tags.`{KEY_TAG}` LIKE '%'"]
        condition = " AND ".join([*ours, *([where] if where else [])])
        found: list[RunSummary] = []

        # Phase: read page by page.
        with self.server.talking("list runs"):
            ids = self.server.experiment_ids()
            if experiment is not None:
                anew = experiment not in self.server.experiments()  # another process may have created it
                ids = [number for name, number in self.server.experiments(anew=anew).items() if name == experiment]
            token: str | None = None
            while ids and (limit is None or len(found) < limit):
                size = 1000 if limit is None else min(1000, limit - len(found))
                page = self.server.client().search_runs(
                    ids, condition, max_results=size, order_by=["start_time DESC"], page_token=token
                )
                found += [summary_of(run) for run in page if KEY_TAG in run.data.tags]
                token = page.token
                if not token:
                    break
            if not found:
                self.server.check_answers()
        return found

    # ------------------------------------------------------------------ delivery

    def deliver(self, directory: Path) -> str:
        """Deliver a committed local run, parents first, and return its MLflow run ID. Idempotent.

        A retry after a crash at any point leaves exactly one complete run, without duplicate points.

        Raises:
            ConnectionError: The server is unreachable. The local run is not affected.
            ValueError: A file was altered.
            LookupError: A parent is neither local nor in MLflow.
        """
        run_id = self._deliver(directory)
        self.overviews.draw_if_due()
        return run_id

    def _deliver(self, directory: Path) -> str:
        record = read_record(directory)
        with self.server.talking(f"deliver {record.name!r}"):
            run = self.delivery.deliver(directory, record)
        self.overviews.touch(self.delivery.touched)
        self.delivery.touched.clear()
        _log.debug(f"{record.name!r} is run {run.info.run_id} in {self.server.address}")
        return str(run.info.run_id)

    def show(self) -> None:
        """Redraw the stale overviews of searches. Failures are warnings.

        `deliver` does this at most once a minute, so call it after the last of several deliveries.
        """
        self.overviews.draw()

    def delivered(self, directory: Path) -> str | None:
        """Return the cached run ID of a local run. The run may have been deleted since."""
        return self.delivery.remembered(directory)

    def sync(self) -> Iterator[tuple[Path, str]]:
        """Deliver all local runs, oldest first, and redraw the overviews of all searches.

        Yields:
            (directory, run ID) of each run that was incomplete or missing in MLflow.

        Raises:
            SyncError: Some runs cannot be delivered. All others are.
            ConnectionError: The server is unreachable.
        """
        # Phase: restore a deleted experiment, because no other can have its name.
        if self.server.readable():
            with self.server.talking("look for the experiment"):
                if self.server.restore_experiment():
                    _log.warning(f"experiment {self.server.experiment!r} was deleted in MLflow: restored with its runs")

        # Phase: read all records. A problem with one run does not keep the others from being delivered.
        records: dict[Path, LineageRecord] = {}
        problems: dict[str, None] = {}
        for path in self.local.directories():
            try:
                records[path] = read_record(path)
            except ValueError as error:
                problems[str(error)] = None

        # Phase: deliver them, oldest first.
        for directory in sorted(records, key=lambda path: (records[path].started_ms, path)):
            try:
                run_id = self._deliver(directory)
            except KeyError:  # a bug, not a missing parent (both are LookupErrors)
                raise
            except (ValueError, LookupError) as error:
                problems[str(error)] = None
                continue
            if run_id in self.delivery.completed:
                yield directory, run_id

        # Phase: remove duplicates, repair what people changed, and redraw the overviews.
        problems |= dict.fromkeys(self.tidy())
        problems |= dict.fromkeys(self._repair({record.key: path for path, record in records.items()}))
        self.overviews.touch(record.key for record in records.values() if record.kind == "search")
        self.show()
        if problems:
            raise SyncError(list(problems))

    def tidy(self) -> list[str]:
        """Delete duplicate runs in MLflow, and return the problems; ConnectionError if the server is unreachable."""
        if not self.server.readable():
            return []
        with self.server.talking("look for duplicate runs"), self.server.alone():
            remove_duplicate_runs(self.server)
            return merge_equal_runs(self.server, self.summaries("attributes.status = 'FINISHED'"))

    def _repair(self, directories: Mapping[str, Path]) -> list[str]:
        """Repair the addresses of all finished runs in MLflow, and return the problems that are left.

        Args:
            directories: {key: local run}.
        """
        if not self.server.readable():
            return []
        summaries = self.summaries("attributes.status = 'FINISHED'")
        with self.server.talking("repair the addresses of the runs"), self.server.alone():
            addresses = Addresses(self.delivery, summaries)
            oldest_first = sorted(summaries, key=lambda node: (node.started_ms, node.name))
            places = {node.key: directories.get(node.key) for node in oldest_first}
            for key, path in places.items():
                if path is not None and self.delivery.remembered_other(path) is not None:
                    places[key] = None  # the local run has other contents
            repaired, left = repair_all(addresses, places)
        for line in repaired:
            _log.info(f"repaired: {line}")
        if repaired:
            self.overviews.touch(str(node.root) for node in summaries if node.root)
        return left

    def addresses(self, summaries: Iterable[RunSummary]) -> Addresses:
        """Return the addresses of these runs in MLflow, to be checked."""
        return Addresses(self.delivery, summaries)

    def _fetch(self, run: Run) -> Path:
        """Copy a finished run to a local run, and check every digest. The run's tags have the digest of the record."""
        with contextlib.ExitStack() as stack:
            self.local.directory.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=self.local.directory, prefix=".tmp-fetch-"))
            target = Path(place) / "node"
            target.mkdir()
            repository = self.server.repository(run)
            # File names come from the checked record. The listing of a foreign server is not trusted.
            digest = tag(run, DIGEST_TAG + RECORD)
            check_digest(download(repository, RECORD, target), digest)
            record = parse_record(target / RECORD)
            absent = set(absent_names(run)) & record.files.keys()
            for name in [*(name for name in record.files if name not in absent), *([ABSENT_FILES] if absent else [])]:
                download(repository, name, target)
            return self.local.import_directory(target, digest)
