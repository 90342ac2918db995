"""Find the files of the run that a text, a path or an object names. The loading functions share this module."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from harness.lineage.browse.find import find_local, find_node
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, absent_files, check_file, read_record
from harness.lineage.nodes.record import CHECKPOINT, LineageRecord
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import MODEL_NAME
from harness.lineage.tracking.server import summary_of

_log = logging.getLogger(__name__)

_ID = re.compile("[0-9a-f]{4,64}")
_KINDS_OF_NAMES = (
    "a run ID (32 hex digits), a key (64), the first digits of one (4 or more), a runs:/, models:/ or hf:// URI, a "
    "file or a directory"
)


class HasKey(Protocol):
    """A run: `RunSummary`, `LineageRecord`, `FinishedRun`, or another object with the key of a run."""

    @property
    def key(self) -> str: ...


RunLike = str | os.PathLike[str] | HasKey
"""Anything that names a run: see `find_files`."""
Opener = Callable[[str], AbstractContextManager[Path]]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, or one file of no run."""

    open: Opener
    """Takes the name of a file, and yields its path after checking its digest."""
    summary: RunSummary | None = None
    """The run. None: a file or directory without a record."""
    chosen: str | None = None
    """The file that the user named."""

    def main(self, usual: str) -> AbstractContextManager[Path]:
        """Open the file that the user named, or else the usual one."""
        return self.open(self.chosen or usual)


def find_files(store: LineageStore, given: RunLike) -> RunFiles:
    """Find the files of a run.

    Args:
        store: Local runs and the tracking server.
        given: A run ID, a key, or the first digits of one. `runs:/RUN_ID`, `models:/NAME/VERSION` or
            `models:/NAME@ALIAS`, also with `/FILE`. `hf://USER/NAME@REVISION`. A file, or the directory of a run, of a
            bundle or of an export. An object with the key of a run. A complete ID or a URI is never taken as a path. An
            existing path is never taken as the first digits of an ID.

    Raises:
        TypeError: The object names no run.
        LookupError: There is no such run, or there are several. The message lists them.
        ValueError: The run is not finished, or its record was altered.
        ConnectionError: The server is unreachable.
    """
    # Phase: objects.
    if isinstance(given, RunSummary):
        return _of_summary(store, given)
    if not isinstance(given, str | os.PathLike):
        key = getattr(given, "key", None)
        if isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key):
            return _of_key(store, key)
        kind = type(given).__name__
        raise TypeError(f"an object of type {kind} names no run; give {_KINDS_OF_NAMES}, or a run of harness.lineage")

    # Phase: URIs, complete IDs, paths, and the first digits of IDs.
    text = os.fspath(given)
    for prefix, find in URI_PREFIXES.items():
        if text.startswith(prefix):
            return find(store, text)
    digits = _copied_id(text)
    complete = re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", digits) is not None
    path = os.path.expanduser(text)
    if not complete and os.path.lexists(path):
        return _of_path(store, Path(path))
    if _ID.fullmatch(digits):
        return _of_id(store, digits)
    if "://" not in text and (os.sep in text or Path(text).suffix):
        raise LookupError(f"there is no file or directory {text!r}; give {_KINDS_OF_NAMES}")
    raise LookupError(f"{text!r} is not a run ID or another name of a run; give {_KINDS_OF_NAMES}")


def _copied_id(text: str) -> str:
    """Return an ID as it was copied from a message: without spaces and the dots of a shortened one, in lower case."""
    return text.strip().removesuffix("…").rstrip(".").lower()


# ---------------------------------------------------------------------- URIs


def _of_run_uri(store: LineageStore, uri: str) -> RunFiles:
    """Find `runs:/RUN_ID`, also with the path of a file, as MLflow writes it."""
    parts = re.fullmatch(r"runs:/+([^/]+)(?:/(.*))?", uri)
    digits = _copied_id(parts[1]) if parts else ""
    if parts is None or not _ID.fullmatch(digits):
        raise LookupError(f"{uri!r} is not a URI of a run; give runs:/RUN_ID or runs:/RUN_ID/FILE")
    return _with_file(_of_id(store, digits), parts[2])


def _of_model_uri(store: LineageStore, uri: str) -> RunFiles:
    """Find `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `models:/MODEL_ID`, also with the path of a file."""
    parts = re.fullmatch(r"(models:/(?:m-[0-9a-f]+|[^/@]+/\d+|[^/@]+@[^/@]+))(?:/(.*))?", uri)
    model, file = (parts[1], parts[2]) if parts else (uri, None)
    return _with_file(_of_run_id(store, store.run_id_of_model(model)), file)


def _of_hub_uri(store: LineageStore, uri: str) -> RunFiles:
    """Import the run of `hf://USER/NAME@REVISION` with its lineage. Its checkpoint is downloaded when it is opened."""
    from harness.lineage.sharing.hub import Repository, pull  # they import more than most calls need

    pulled = pull(store, uri, weights=False)
    opened, record = _opener(pulled.directory), read_record(pulled.directory)

    def open_file(name: str) -> AbstractContextManager[Path]:
        if name == CHECKPOINT and name in absent_files(pulled.directory, record):
            pull(store, str(Repository(pulled.repository.repo, pulled.commit)))  # the same commit
        return opened(name)

    return RunFiles(open_file, RunSummary.of(record))


def _with_file(files: RunFiles, path: str | None) -> RunFiles:
    """Choose the file of a URI. MLflow's URIs have the name of the logged model before it."""
    chosen = re.sub(rf"^{MODEL_NAME}(/|$)", "", (path or "").strip("/"))
    return replace(files, chosen=chosen) if chosen else files


URI_PREFIXES: dict[str, Callable[[LineageStore, str], RunFiles]] = {
    "runs:/": _of_run_uri,
    "models:/": _of_model_uri,
    "hf://": _of_hub_uri,
}
"""How to find the files of a URI."""


# ---------------------------------------------------------------------- IDs


def _of_id(store: LineageStore, text: str) -> RunFiles:
    """Find a run by its run ID or key, or by the first digits of one."""
    if len(text) == 64:
        return _of_key(store, text)
    if len(text) == 32:
        try:
            return _of_run_id(store, text)
        except LookupError as error:  # the digits may begin a key
            with contextlib.suppress(LookupError):
                return _of_summary(store, find_node(store, text))
            raise error from None
    try:
        return _of_summary(store, find_node(store, text))
    except ConnectionError as error:
        found = find_local(store, text)
        if len(found) != 1:
            raise
        _log.warning(f"{error}; searching local runs only")
        return _of_key(store, found[0].key)


def _of_key(store: LineageStore, key: str) -> RunFiles:
    directory = store.local.find(key)
    if directory is not None:
        return RunFiles(_opener(directory), RunSummary.of(read_record(directory)))
    run_id = store.run_id_of(key)
    if run_id is None:
        where = store.local.directory.resolve()
        raise LookupError(f"no run with key {key[:16]}… in {where}, nor a finished MLflow run")
    return _of_run_id(store, run_id)


def _of_run_id(store: LineageStore, run_id: str) -> RunFiles:
    run = store.finished(run_id)
    return RunFiles(lambda name: store.open_file(run, name), summary_of(run))


def _of_summary(store: LineageStore, node: RunSummary) -> RunFiles:
    return RunFiles(lambda name: store.open_file_of(node, name), node)


# ---------------------------------------------------------------------- paths


def _of_path(store: LineageStore, path: Path) -> RunFiles:
    """Find a file, the directory of a run, or the only run that a bundle was made for."""
    from harness.lineage.bundle import bundled_file, is_bundle, requested_record  # more than most calls need

    if path.is_dir():
        if (path / RECORD).is_file():
            return RunFiles(_opener(path), RunSummary.of(read_record(path)))
        if is_bundle(path):
            summary = RunSummary.of(requested_record(path))
            return RunFiles(lambda name: contextlib.nullcontext(bundled_file(path, name)), summary)
        if runs := list(LocalNodes(path).directories()):
            names = ", ".join(str(one) for one in runs[:5]) + (", …" if len(runs) > 5 else "")
            raise LookupError(f"{path} is a directory of {len(runs)} runs; give one of them: {names}")
        return RunFiles(_loose_opener(path))
    if path.is_file():
        return _of_file(path)
    raise LookupError(f"{path} is neither a file nor the directory of a run")


def _of_file(path: Path) -> RunFiles:
    """Find a file, and the run whose directory it lies in."""
    from harness.common.tensors import check_beside

    directory, summary = Path(os.path.realpath(path)).parent, None
    with contextlib.suppress(ValueError, OSError):  # `check_beside` reports an altered record
        summary = RunSummary.of(read_record(directory))
    open_other = _loose_opener(directory) if summary is None else _opener(directory)

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Path]:
        if name != path.name:
            with open_other(name) as other:
                yield other
            return
        check_beside(path)
        yield path

    return RunFiles(opened, summary, path.name)


def _opener(directory: Path) -> Opener:
    """Return a function that opens the files of a committed run's directory after checking their digests."""

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Path]:
        record: LineageRecord = read_record(directory)
        if name not in record.files:
            raise LookupError(f"{record.name} has no file {name!r}; it has: {', '.join(sorted(record.files))}")
        yield check_file(directory, record, name)

    return opened


def _loose_opener(directory: Path) -> Opener:
    """Return a function that opens the files of a directory without a record."""

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Path]:
        if not (directory / name).is_file():
            raise LookupError(f"{directory} is not the directory of a run: it has no {RECORD} and no {name}")
        yield directory / name

    return opened
