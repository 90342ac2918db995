"""Signed masks and checkpoints by run ID, model version, node key or file: the two lines a stranger's project needs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK
from harness.lineage.store import DEFAULT_DIRECTORY, open_store
from harness.lineage.tracking.registry import is_model_uri

if TYPE_CHECKING:
    from harness.checkpoint import Checkpoint
    from harness.masks import SignedMask


def load_signed_mask(
    run_id: str | Path, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> SignedMask:
    """Return the signed mask of a finished run, given its run ID, a `models:/` URI, its node's key or a file's path.

    A URI names a version or an alias: models:/aws-digits-resnet20@s1-L07. It and a run ID are looked up at
    `tracking_uri` (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the working directory), a key in `local_dir`
    first. The file's SHA-256 is checked against the one recorded; of a level only the mask is read, never the
    checkpoint. Raises LookupError when there is no such run, version, file or mask, ValueError when the run is not
    finished or the file altered, ConnectionError when the server cannot be reached.
    """
    from harness.masks import SignedMask

    with _open(run_id, SIGNED_MASK, tracking_uri, local_dir) as path:
        return SignedMask.load(path)


def load_checkpoint(
    run_id: str | Path, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> Checkpoint:
    """Return the checkpoint of a finished run; arguments and errors as `load_signed_mask`."""
    from harness.checkpoint import Checkpoint

    with _open(run_id, CHECKPOINT, tracking_uri, local_dir) as path:
        return Checkpoint.load(path)


@contextlib.contextmanager
def _open(run_id: str | Path, name: str, tracking_uri: str | None, local_dir: Path | str) -> Iterator[Path]:
    text = str(run_id)
    if re.fullmatch("[0-9a-f]{64}", text):
        local = LocalNodes(local_dir)
        if local.find(text) is not None:
            yield local.open_file(text, name)
            return
        found = open_store(local_dir, tracking_uri).run_id_of(text)
        if found is None:
            raise LookupError(f"no node with key {text[:16]}… in {local.directory.resolve()} or a finished MLflow run")
        text = found
    elif is_model_uri(text):
        text = open_store(local_dir, tracking_uri).run_id_of_model(text)
    elif not re.fullmatch("[0-9a-f]{32}", text):
        path = Path(run_id)
        if not path.is_file():
            raise LookupError(f"{text!r} is no run ID (32 hex digits), no node key (64), no models:/ URI and no file")
        yield path
        return
    with open_store(local_dir, tracking_uri).open_file(text, name) as path:
        yield path
