"""Exported runs on the Hugging Face Hub: upload, and download with all digests checked.

Token, cache, offline mode and HF_ENDPOINT follow the rules of huggingface_hub. An upload is one commit with the files
of the exported directory and nothing else. A download is a bundle, so its reader trusts no file of it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import for_terminal, redact
from harness.common.optional import require
from harness.lineage.bundle import MANIFEST, MODEL, NODES, Imported, asked_keys, check_bundle, import_bundle
from harness.lineage.nodes.local_files import CONFIG, SUMS
from harness.lineage.nodes.record import SIGNED_MASK
from harness.lineage.sharing.export import Exported
from harness.lineage.store import LineageStore

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_log = logging.getLogger(__name__)

SCHEME = "hf://"
_REPOSITORY = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_SMALL = (MANIFEST, SUMS, CONFIG, SIGNED_MASK, f"{NODES}/*")
"""Files that are downloaded for a signed mask and its lineage. README.md and MLmodel are for other readers."""
_COMMIT = re.compile("[0-9a-f]{40}")
_TOKEN = "run `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Repository:
    """A model repository and a revision: a branch, a tag or a commit. "" is its default branch."""

    repo: str
    revision: str = ""

    @classmethod
    def of(cls, text: str) -> Repository:
        """Parse `hf://USER/NAME@REVISION`. The scheme and the revision may be missing.

        Raises:
            ValueError: The text has another form.
        """
        found = _REPOSITORY.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} names no model repository: give hf://USER/NAME or hf://USER/NAME@REVISION")
        return cls(found["repo"], found["revision"] or "")

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Pulled:
    """The outcome of a download: the requested run, its directory, and all imported runs."""

    repository: Repository
    commit: str
    key: str
    directory: Path
    imported: tuple[Imported, ...]


# ---------------------------------------------------------------------- download


def pull(store: LineageStore, text: str, *, weights: bool = True) -> Pulled:
    """Download an exported run, check all its digests, and import it with its lineage as local runs.

    Args:
        store: Receives the runs.
        text: USER/NAME or USER/NAME@REVISION, with or without hf://.
        weights: Download the checkpoint of the run, too.

    Raises:
        LookupError: There is no such repository, revision or file, or the token may not read it.
        ValueError: A file was altered, or a local run with the same key differs.
        ConnectionError: The Hub is unreachable, and the repository is not in the cache.
    """
    repository = Repository.of(text)
    with _downloaded(repository, weights=weights) as (directory, commit):
        keys = asked_keys(directory)
        if len(keys) != 1:
            raise ValueError(f"{repository} shares {len(keys)} runs instead of one: it was not made by `export`")
        imported = tuple(import_bundle(store, directory))
    found = next(one.directory for one in imported if one.item.key == keys[0])
    return Pulled(repository, commit, keys[0], found, imported)


@contextmanager
def _downloaded(repository: Repository, *, weights: bool) -> Iterator[tuple[Path, str]]:
    """Yield a directory with the checked files of a repository, and the commit. Delete the directory on exit."""
    with tempfile.TemporaryDirectory(prefix="tickets-") as temporary:
        directory = Path(temporary) / "bundle"
        for again in (False, True):
            snapshot = _snapshot(repository, weights=weights, again=again)
            # The cache consists of links, which a bundle must not have.
            shutil.copytree(snapshot, directory, copy_function=_copy)
            if not weights:
                (directory / MODEL).unlink(missing_ok=True)  # an earlier download brought it
            try:
                if not (directory / MANIFEST).is_file():
                    raise LookupError(f"{repository} is no exported run: it has no {MANIFEST}")
                check_bundle(directory)
                break
            except ValueError as error:
                if again:
                    raise ValueError(f"{repository}: {_without(error, directory)}") from None
                _log.warning(f"{repository}: {_without(error, directory)}; the cached files are downloaded again")
                shutil.rmtree(directory)
        yield directory, snapshot.name


def _without(error: Exception, directory: Path) -> str:
    return for_terminal(str(error).replace(f"{directory}/", "").replace(str(directory), "its files"))


def _copy(source: str, target: str) -> str:
    """Link or copy a file of the cache without following its name: the target is a plain file."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:  # another file system
        shutil.copyfile(real, target)
    return target


def _snapshot(repository: Repository, *, weights: bool, again: bool) -> Path:
    """Return the directory of the cache with the files of a repository. Its name is the commit.

    Args:
        repository: The repository.
        weights: Whether the checkpoint is needed.
        again: Download cached files once more, because they are damaged.
    """
    # Phase: ask for the commit. huggingface_hub would use a cached one without a word if the Hub is unreachable.
    api, revision, is_known = _api(), repository.revision or None, bool(_COMMIT.fullmatch(repository.revision))
    reached = is_known
    if not is_known:
        try:
            with _talking(f"read {repository}", repository):
                api.repo_info(repository.repo, revision=revision)
            reached = True
        except ConnectionError as error:
            reason = error

    # Phase: download the files, or find them in the cache.
    wanted = [*_SMALL, *([MODEL] if weights else [])]
    options: dict[str, Any] = {"force_download": True} if again else {}
    try:
        with _talking(f"read {repository}", repository):
            found = api.snapshot_download(
                repository.repo, revision=revision, allow_patterns=wanted, local_files_only=not reached, **options
            )
    except ConnectionError:
        if reached:
            raise
        raise reason from None
    if not reached:
        _log.warning(f"{reason}; using commit {Path(found).name[:12]} of the cache")
    return Path(found)


# ---------------------------------------------------------------------- upload


def check_upload(repo: str, *, public: bool) -> Repository:
    """Check that an upload can begin, before anything is written.

    Args:
        repo: USER/NAME.
        public: Whether everybody shall be able to read the repository.

    Raises:
        LookupError: There is no token.
        ValueError: The name is invalid, or the repository exists and is public without `public`.
        ConnectionError: The Hub is unreachable.
    """
    # Phase: check the name and the token.
    repository = Repository.of(repo)
    if repository.revision:
        raise ValueError(f"{repo!r}: an upload makes a new commit of the default branch; give USER/NAME without @")
    with _talking(f"write {repository}", repository):
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError

        if huggingface_hub.get_token() is None:
            raise LookupError(f"cannot write {repository}: there is no token of the Hugging Face Hub; {_TOKEN}")

        # Phase: an existing repository keeps its visibility.
        try:
            exists = _api().repo_info(repository.repo)
        except RepositoryNotFoundError:
            return repository
    if not exists.private and not public:
        raise ValueError(f"{repository.repo} exists and is public: give --public to publish the run, or another --repo")
    return repository


def upload(exported: Exported, repository: Repository, *, public: bool = False, message: str = "") -> str:
    """Upload an exported directory in one commit, and return the address of the commit.

    Files below `nodes/` that an earlier upload left are deleted. All other files of the repository stay.

    Args:
        exported: The directory.
        repository: From `check_upload`.
        public: Create a public repository instead of a private one. An existing one keeps its visibility.
        message: First line of the commit's message. "": the run's name.

    Raises:
        LookupError: The token may not write there.
        ConnectionError: The Hub is unreachable, or refuses the commit.
    """
    with _talking(f"write {repository}", repository):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        # Phase: create the repository, and find the files of an earlier upload.
        api = _api()
        api.create_repo(repository.repo, private=not public, exist_ok=True)
        earlier = [name for name in api.list_repo_files(repository.repo) if name.startswith(f"{NODES}/")]

        # Phase: commit.
        add = [CommitOperationAdd(name, str(exported.directory / name)) for name in exported.files]
        stale = [CommitOperationDelete(name, is_folder=False) for name in earlier if name not in exported.files]
        done = api.create_commit(
            repository.repo,
            [*add, *stale],
            commit_message=message or f"Share {exported.shared.record.name}",
            commit_description=f"Run {exported.shared.record.key}",
        )
    return str(done.commit_url)


# ---------------------------------------------------------------------- connection


def _api() -> HfApi:
    """Return the client. HF_ENDPOINT counts also if it was set after the import of huggingface_hub."""
    from huggingface_hub import HfApi

    import harness

    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        library_name="signed-tickets",
        library_version=harness.__version__,
    )


@contextmanager
def _talking(action: str, repository: Repository) -> Iterator[None]:
    """Turn every error of huggingface_hub into one of one line without credentials.

    Raises:
        LookupError: There is no such repository, revision or file, or the token lacks the permission.
        ConnectionError: The Hub is unreachable or fails.
        MissingLibraryError: huggingface_hub is not installed.
    """
    require("huggingface_hub", "the Hugging Face Hub")
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        # The upload of a large file wraps the error of its request.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        if isinstance(cause, errors.LocalEntryNotFoundError) and isinstance(cause.__cause__, errors.HfHubHTTPError):
            cause = cause.__cause__  # the Hub answered, and the cache lacks the files
        if isinstance(cause, errors.HfHubHTTPError | errors.EntryNotFoundError | errors.LocalTokenNotFoundError):
            kind, reason = _refusal(cause, repository)
        elif _from_network(cause):
            kind, reason = ConnectionError, f"the Hub is unreachable ({_line(cause)}); check HF_ENDPOINT, or try later"
        else:
            raise
        raise kind(redact(f"cannot {action}: {reason:.500}")) from None


def _refusal(error: BaseException, repository: Repository) -> tuple[type[LookupError | ConnectionError], str]:
    """Return the exception that stands for an error of huggingface_hub, and its reason with a remedy."""
    from huggingface_hub import errors

    # The order matters: some classes derive from others.
    if isinstance(error, errors.RevisionNotFoundError):
        return LookupError, f"it has no revision {repository.revision!r}; give a branch, a tag or a commit"
    if isinstance(error, errors.GatedRepoError):
        return LookupError, f"ask its owner for access on its page, and {_TOKEN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return LookupError, f"there is no such repository, or it is private and you may not use it; {_TOKEN}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return LookupError, f"there is no token; {_TOKEN}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = _line(error.__cause__ or error)
        return ConnectionError, f"the Hub is unreachable, and the cache lacks it ({cause}); try again later"
    if isinstance(error, errors.EntryNotFoundError):
        return LookupError, f"a file is missing ({_line(error)})"
    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    if status in (401, 403):
        return LookupError, f"the token lacks the permission ({status}); {_TOKEN}"
    return ConnectionError, f"the Hub answers {status} ({error.server_message or _line(error)}); try again later"


def _from_network(error: BaseException) -> bool:
    """Return whether an error comes from the connection."""
    libraries = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub"}
    if isinstance(error, ValueError):  # about the name of a repository
        return False
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in libraries


def _line(error: BaseException) -> str:
    """Return the first line of an error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
