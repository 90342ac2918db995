"""The lineage of one place: local nodes and the MLflow store they are delivered to, asked as one."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.digest import sha256_file
from harness.lineage.nodes.absent_files import ABSENT_FILES
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, absent_files, check_digest, read_record
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.tracking.delivery import Delivery
from harness.lineage.tracking.duplicates import remove_duplicate_runs
from harness.lineage.tracking.overview import Overviews
from harness.lineage.tracking.server import (
    DIGEST_TAG,
    KEY_TAG,
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
DEFAULT_DIRECTORY = Path("runs")


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
        self.server = Server(tracking_uri, experiment, local.directory)
        self.delivery = Delivery(self.server, local)
        self.overviews = Overviews(self.server, self.summaries)

    def apart(self) -> LineageStore:
        """Return the same store over a connection of its own, for another thread."""
        return LineageStore(self.tracking_uri, self.local, self.server.experiment)

    def require(self) -> None:
        """Raise ConnectionError, within half a minute, if the tracking server that was asked for gives no answer."""
        if self.tracking_uri is None or self.server.is_file:
            return  # a SQLite file is made when it is first written
        try:
            with self.server.talking("begin"):
                self.server.client().search_experiments(max_results=1)
        except RefusedError as error:
            raise RefusedError(f"{error}. Or pass --offline, and `python tools/lineage.py sync` later") from None
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
        if directory is not None or not self.server.readable():
            return directory
        with self.server.talking("look for a node"):
            run = self.server.run_with(key)
            if run is None or run.info.status != "FINISHED":
                return None
            return self._fetch(run)

    def load(self, run_id: str) -> LineageRecord:
        """Return the record of a finished run.

        Raises LookupError when there is no such run, ValueError when it is unfinished, foreign or altered.
        """
        with self.server.talking(f"read run {run_id}"):
            run = self.server.finished(run_id)
            directory = self.local.find(run.data.tags[KEY_TAG])
            if directory is not None:
                return read_record(directory)
            with self.server.artifact(run, RECORD) as path:
                return LineageRecord.from_json(path.read_bytes())

    @contextlib.contextmanager
    def open_file(self, run_id: str, name: str) -> Iterator[Path]:
        """Give the path of one file of a finished run, its digest checked; read it, do not keep or write it.

        Raises LookupError when there is no such run or file, ValueError when the run is unfinished or the file altered.
        """
        with contextlib.ExitStack() as stack:
            with self.server.talking(f"read run {run_id}"):
                path = stack.enter_context(self.server.artifact(self.server.finished(run_id), name))
            yield path  # outside of talking: what goes wrong while reading the file is the reader's

    def record_of(self, node: RunSummary) -> LineageRecord:
        """Return the record of a listed node, local or not; errors as `load`."""
        with self.open_file_of(node, RECORD) as path:
            return LineageRecord.from_json(path.read_bytes())

    @contextlib.contextmanager
    def open_file_of(self, node: RunSummary, name: str) -> Iterator[Path]:
        """Give the path of one file of a listed node, or its record, its digest checked; the local one if it is there.

        Errors as `open_file`.
        """
        directory = self.local.find(node.key)
        in_mlflow = node.run_id is not None and name not in node.absent
        if directory is not None and not (in_mlflow and name in absent_files(directory, read_record(directory))):
            yield directory / RECORD if name == RECORD else self.local.open_file(node.key, name)
        elif node.run_id is None:
            raise LookupError(f"{node.name} ({node.key[:16]}…) is no longer in {self.local.directory}")
        else:
            with self.open_file(node.run_id, name) as path:
                yield path

    def stored_digests(self, run_id: str, names: Sequence[str]) -> Iterator[tuple[str, str | None, int]]:
        """Yield (name, SHA-256, bytes) of files of a finished run as MLflow has them now; (name, None, 0) if missing.

        One file at a time is fetched, and none is kept. Errors as `load`.
        """
        with self.server.talking(f"read run {run_id}"):
            repository = self.server.repository(self.server.finished(run_id))
            for name in names:
                with opened(repository, name) as path:
                    yield (name, None, 0) if path is None else (name, sha256_file(path), path.stat().st_size)

    def run_id_of(self, key: str) -> str | None:
        """Return the ID of the finished run with this key, or None."""
        if not self.server.readable():
            return None
        with self.server.talking("look for a run"):
            run = self.server.run_with(key)
            return run.info.run_id if run is not None and run.info.status == "FINISHED" else None

    def run_id_of_model(self, uri: str) -> str:
        """Return the run that a `models:/` URI (version, alias or logged model) leads to; LookupError if none does."""
        if not self.server.readable():
            raise LookupError(f"no MLflow store to look {uri} up in")
        with self.server.talking(f"look {uri} up"):
            return self.delivery.registry.run_id(uri)

    def experiments(self) -> list[str]:
        """Return the names of all experiments of the tracking store."""
        if not self.server.readable():
            return []
        with self.server.talking("list experiments"):
            return list(self.server.experiments())

    def summaries(self, where: str = "", limit: int | None = None, experiment: str | None = None) -> list[RunSummary]:
        """Return what runs say of themselves, newest first, read in pages, one request each.

        `where` is an MLflow run filter; `experiment` is a name, None: all. Runs that others logged are left out.
        """
        if not self.server.readable():
            return []
        # A comparison with LIKE '%' is true for every run that has the tag; a filter on our own tags needs no such one.
        ours = [] if "harness." in where or "run_id" in where else [f"tags.`{KEY_TAG}` LIKE '%'"]
        condition = " AND ".join([*ours, *([where] if where else [])])
        found: list[RunSummary] = []
        with self.server.talking("list runs"):
            ids = self.server.experiment_ids()
            if experiment is not None:
                anew = experiment not in self.server.experiments()  # another process may have made it since
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
        return found

    # ------------------------------------------------------------------ delivering

    def deliver(self, directory: Path) -> str:
        """Bring a committed node into MLflow and return its run ID; what is there already is not sent again.

        Parents are delivered first. Killed anywhere and called again, it leaves one complete run without doubled
        points. Raises ConnectionError when the server cannot be reached (the node stays safe on disk), ValueError
        when a file was altered, LookupError when a parent is neither local nor in MLflow.
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
        """Draw on the root runs of their searches what was delivered since they were drawn last.

        `deliver` does so at most once a minute, so whoever has delivered several nodes calls this at the end. Problems
        are warnings: nothing but the picture is lost.
        """
        self.overviews.draw()

    def delivered(self, directory: Path) -> str | None:
        """Return the run ID remembered for a node; the run may have been deleted since."""
        return self.delivery.remembered(directory)

    def sync(self) -> Iterator[tuple[Path, str]]:
        """Deliver every local node, oldest first, and yield (directory, run ID) of each that was not there yet.

        Then every search's root run shows its whole graph.
        """
        records = {path: read_record(path) for path in self.local.directories()}
        for directory in sorted(records, key=lambda path: (records[path].started_ms, path)):
            run_id = self._deliver(directory)
            if run_id in self.delivery.completed:
                yield directory, run_id
        self.tidy()
        self.overviews.touch(record.key for record in records.values() if record.kind == "search")
        self.show()

    def tidy(self) -> None:
        """Delete runs that exist twice because a request was repeated; ConnectionError if the server is away."""
        if self.server.readable():
            with self.server.talking("look for runs that were made twice"):
                remove_duplicate_runs(self.server)

    def _fetch(self, run: Run) -> Path:
        """Make a local node of a finished run, every digest checked; the run's tags are the anchor."""
        with contextlib.ExitStack() as stack:
            self.local.directory.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=self.local.directory, prefix=".tmp-fetch-"))
            target = Path(place) / "node"
            target.mkdir()
            repository = self.server.repository(run)
            # Names come from a record whose digest is checked, so no listing of a foreign server is believed.
            digest = tag(run, DIGEST_TAG + RECORD)
            check_digest(download(repository, RECORD, target), digest)
            record = LineageRecord.from_json((target / RECORD).read_bytes())
            absent = set(absent_names(run)) & record.files.keys()
            for name in [*(name for name in record.files if name not in absent), *([ABSENT_FILES] if absent else [])]:
                download(repository, name, target)
            return self.local.import_directory(target, digest)
