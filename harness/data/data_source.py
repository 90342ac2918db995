"""Open a prepared data set: check its files and create loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from harness.common.digest import sha256_json
from harness.common.optional import MissingLibraryError, install_command, is_installed, missing, require
from harness.common.program import command
from harness.config import known
from harness.data.loaders import EvalLoader, SplitReader, TrainLoader, TrainOrder, eval_share
from harness.data.manifest import SPLITS, FileRecord, Manifest, check_files
from harness.data.own import SOURCE_FILE as _SOURCE_FILE
from harness.data.own import spec_of
from harness.data.published import warn_of_other_count
from harness.data.spec import DataSpec

if TYPE_CHECKING:
    import torch

LoaderName = Literal["ffcv", "memory", "torch"]
_MEMORY_BYTES = 4 << 30
"""Largest training split that the memory loader reads by default."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """A prepared and verified data set with one loader."""

    spec: DataSpec
    content_digest: str
    """SHA-256 over the contents of both splits. Equal for all loaders."""
    num_train: int
    num_test: int
    options: Mapping[str, Any]
    """Options that determine the stored images, such as `write_mode`."""
    _reader: Callable[..., SplitReader]
    """Function of (split, num_workers, device). It caches open files and compiled code."""

    def train_loader(
        self,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> TrainLoader:
        """Return the training loader of one rank.

        Repeated calls are cheap, because open files and compiled code are cached.

        Args:
            global_batch_size: Images per step over all ranks.
            rank: This process's rank.
            world_size: Number of processes.
            num_workers: Loader threads. All available cores if None or −1. Never changes a batch.
            device: Device of the batches.

        Raises:
            ValueError: The split is smaller than a batch, or `world_size` does not divide the batch.
        """
        reader = self._reader("train", num_workers, device)
        return TrainLoader(reader, TrainOrder(reader.num_samples, global_batch_size, rank, world_size))

    def test_loader(
        self,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> EvalLoader:
        """Return one rank's share of the test split.

        Args:
            batch_size: Largest number of images per batch.
            rank: This process's rank.
            world_size: Number of processes.
            num_workers: Loader threads. All available cores if None or −1. Never changes a batch.
            device: Device of the batches.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"test batch size is {batch_size}; it must be at least 1")
        reader = self._reader("test", num_workers, device)
        return EvalLoader(reader, eval_share(reader.num_samples, rank, world_size), batch_size)


def choose_loader(name: str, directory: Path | str, *, aloud: bool = True) -> LoaderName:
    """Return the default loader of a prepared data set. All loaders give the same batches.

    ffcv is the default where it is installed. Without it, memory reads images of one size up to 4 GiB, and torch larger
    data. A data set of the user's own Python file has the torch loader.

    Args:
        name: Name in DATASETS, or of a data set of the user's own.
        directory: Directory of prepared data sets.
        aloud: Log a choice that ffcv's absence makes.

    Raises:
        FileNotFoundError: The data set is not prepared.
        MissingLibraryError: Only ffcv reads this data set, and it is not installed.
    """
    # Phase: data sets that only one loader reads, and ffcv wherever it is installed.
    spec = spec_of(name, directory)
    manifest = _manifest(spec, Path(directory) / name, "train")
    if _SOURCE_FILE in manifest.files:
        return "torch"
    if is_installed("ffcv"):
        return "ffcv"
    if not spec.fixed_size:
        raise MissingLibraryError(missing("ffcv", f"the data set {name}, of images of varying size,"), name="ffcv")

    # Phase: without ffcv, choose by size.
    small = manifest.num_samples * spec.image_size**2 * spec.channels <= _MEMORY_BYTES
    chosen: LoaderName = "memory" if small else "torch"
    if aloud:
        _log.info(f"ffcv is not installed: the {chosen} loader reads {name}. To use ffcv, {install_command('ffcv')}")
    return chosen


def open_data(
    name: str, directory: Path | str, loader: LoaderName, *, vouched: str = "", code: str | None = None
) -> DataSource:
    """Open a prepared data set.

    Args:
        name: Name in DATASETS, or of a data set of the user's own.
        directory: Directory of prepared data sets.
        loader: ffcv, memory or torch.
        vouched: Return value of `verify_data` in another process of this machine. Unchanged files are then not hashed
            again.
        code: Return value of `executable_code` in another process of the launch. None: decide in this process.

    Raises:
        FileNotFoundError: The data set is not prepared. The message has the command that prepares it.
        ValueError: The name or loader is unknown, the data set is too large for the memory loader, or a file differs
            from its manifest.
    """
    spec, manifests, files, paths = _prepared(name, directory, loader)
    check_files(files, vouched)
    # The process that vouched for the files has warned already.
    if not vouched:
        _warn_of_other_counts(spec, manifests, directory)
    return DataSource(
        spec=spec,
        content_digest=sha256_json([manifests[split].content_digest for split in SPLITS]),
        num_train=manifests["train"].num_samples,
        num_test=manifests["test"].num_samples,
        options=manifests["train"].options,
        _reader=_readers(spec, loader, paths, manifests["train"], code),
    )


def executable_code(name: str, directory: Path | str, loader: LoaderName, *, trust_code: bool = False) -> str:
    """Return the SHA-256 of the user's file that makes a data set, if it may be executed. "": there is no such file.

    Rank 0 of a launch decides. Other nodes may not know which files the user trusts.

    Args:
        name: As in `open_data`.
        directory: As in `open_data`.
        loader: As in `open_data`.
        trust_code: The user's option --trust-code.

    Raises:
        UntrustedCodeError: It must not be executed (see harness/common/trusted.py). Other errors are as in `open_data`.
    """
    _, manifests, _, paths = _prepared(name, directory, loader)
    if _SOURCE_FILE not in manifests["train"].files:
        return ""
    from harness.data.user_file import allowed_code

    return allowed_code(paths["train"].parent, manifests["train"], trust_code=trust_code)


def verify_data(name: str, directory: Path | str, loader: LoaderName) -> str:
    """Hash the files of a data set once.

    Returns a token that proves it. Pass the token to `open_data` as `vouched`. Raises the same errors as `open_data`.
    """
    spec, manifests, files, _ = _prepared(name, directory, loader)
    _warn_of_other_counts(spec, manifests, directory)
    return check_files(files)


def _warn_of_other_counts(spec: DataSpec, manifests: dict[str, Manifest], directory: Path | str) -> None:
    for split, manifest in manifests.items():
        warn_of_other_count(spec, split, manifest.num_samples, manifest.source, str(Path(directory) / spec.name))


def _prepared(
    name: str, directory: Path | str, loader: LoaderName
) -> tuple[DataSpec, dict[str, Manifest], dict[Path, FileRecord], dict[str, Path]]:
    """Return the specification, the manifests, all files with their records, and the file of each split."""
    # Check data set and loader.
    spec = spec_of(name, directory)
    known("loader", loader, get_args(LoaderName))
    home = Path(directory) / name
    manifests = {split: _manifest(spec, home, split) for split in SPLITS}
    by_file = _SOURCE_FILE in manifests["train"].files
    if by_file and loader != "torch":
        raise ValueError(f"{name} is made by a file of yours and has no stored images; use --data.loader torch")
    if loader == "memory" and not spec.fixed_size:
        raise ValueError(
            f"{name} consists of JPEGs of different sizes and is too large for the memory loader; use the ffcv loader"
        )
    if loader == "torch" and not spec.fixed_size and not by_file:
        raise ValueError(
            f"{name} consists of JPEGs of different sizes, which the torch loader reads only by a file of yours "
            "(--source FILE.py:FUNCTION); use the ffcv loader"
        )
    # Find each split's file in its manifest.
    ending = {"ffcv": "beton", "memory": "safetensors", "torch": "samples.safetensors" if by_file else "safetensors"}
    files, paths = {}, {}
    for split, manifest in manifests.items():
        paths[split] = home / f"{split}.{ending[loader]}"
        for file in (paths[split].name, *([_SOURCE_FILE] if by_file else [])):
            if file not in manifest.files:
                raise ValueError(f"{home / f'{split}.json'} lists no {file}; prepare the data again")
            files[home / file] = manifest.files[file]
    return spec, manifests, files, paths


def _manifest(spec: DataSpec, home: Path, split: str) -> Manifest:
    path = home / f"{split}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{spec.name} is not prepared in {home.parent} ({path} is missing); "
            f"run: {command(f'prepare {spec.name} --out {home.parent}')}"
        )
    manifest = Manifest.load(path)
    if (manifest.name, manifest.split) != (spec.name, split):
        raise ValueError(f"{path} describes {manifest.name} {manifest.split}, not {spec.name} {split}")
    return manifest


def _readers(
    spec: DataSpec, loader: LoaderName, paths: dict[str, Path], manifest: Manifest, code: str | None
) -> Callable[..., SplitReader]:
    if loader == "torch":
        from harness.data.torch_loader import stored_readers, torch_readers

        if _SOURCE_FILE not in manifest.files:
            return stored_readers(spec, paths)
        from harness.data.user_file import FileSamples, UserFile, allowed_code

        home = paths["train"].parent
        if code != manifest.files[_SOURCE_FILE].sha256:  # undecided, or decided for another file
            allowed_code(home, manifest)
        file = UserFile.recorded(home, manifest)
        return torch_readers(lambda split: FileSamples.load(spec, file, split, paths[split]))
    if loader == "memory":
        from harness.data.memory_loader import memory_readers

        return memory_readers(spec, paths)
    require("ffcv", "the ffcv loader")
    from harness.data.ffcv.loader import ffcv_readers

    return ffcv_readers(spec, paths)
