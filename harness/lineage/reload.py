"""Load signed masks, checkpoints and networks by run ID, model version, key or file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.lineage.bundle import bundled_file, is_bundle
from harness.lineage.nodes.local_files import DETERMINANTS, LocalNodes, read_record
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK
from harness.lineage.sharing.hub import fetch, is_hub_uri
from harness.lineage.store import DEFAULT_DIRECTORY, open_store
from harness.lineage.tracking.registry import is_model_uri

if TYPE_CHECKING:
    from torch import nn

    from harness.checkpoint import Checkpoint
    from harness.masks import SignedMask


def load_signed_mask(
    run_id: str | Path, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> SignedMask:
    """Return the signed mask of a finished run.

    Only the mask is read, not the checkpoint. Its SHA-256 is checked against the recorded one, also for a path in a
    run's directory.

    Args:
        run_id: A run ID, a key, the path of a file or of an exported directory, a repository of the Hugging Face Hub
            such as hf://USER/NAME@REVISION, or a `models:/` URI with a version or alias, such as
            models:/aws-digits-resnet20@s1-L07. A repository is imported into `local_dir` with its lineage.
        tracking_uri: Tracking server for run IDs and URIs. None takes MLFLOW_TRACKING_URI, or else
            sqlite:///mlflow.db.
        local_dir: Directory of local runs, where keys are looked up first.

    Returns:
        The signs of all parameters by name: int8 of −1, 0 or +1, in the shape of the parameter.

    Raises:
        LookupError: There is no such run, version, file or mask.
        ValueError: The run is not finished, or the file was altered.
        ConnectionError: The server is unreachable.

    Example:
        >>> mask = harness.load_signed_mask(run_id)
        >>> sorted(mask.signs["fc.weight"].unique().tolist())
        [-1, 1]
    """
    from harness.masks import SignedMask  # imports torch, which lists of runs do not need

    with _open(run_id, SIGNED_MASK, tracking_uri, local_dir) as path:
        return SignedMask.load(path)


def load_checkpoint(
    run_id: str | Path, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> Checkpoint:
    """Return parameters and buffers of a finished run; arguments and errors as in `load_signed_mask`.

    Example:
        >>> checkpoint = harness.load_checkpoint(run_id)
        >>> checkpoint.level, checkpoint.params["fc.weight"].shape
        (2, torch.Size([10, 8]))
    """
    from harness.checkpoint import Checkpoint

    with _open(run_id, CHECKPOINT, tracking_uri, local_dir) as path:
        return Checkpoint.load(path)


def load_network(
    run_id: str | Path,
    tracking_uri: str | None = None,
    local_dir: Path | str = DEFAULT_DIRECTORY,
    *,
    trust_code: bool = False,
) -> nn.Module:
    """Return the trained network of a finished run, on the CPU, in evaluation mode.

    The network takes normalised float images (N, channels, height, width) and returns logits (N, classes). Arguments
    and errors are those of `load_signed_mask`. The path of a file raises LookupError, because a file does not name its
    network.

    Args:
        run_id: As in `load_signed_mask`.
        tracking_uri: As in `load_signed_mask`.
        local_dir: As in `load_signed_mask`.
        trust_code: Execute the run's copy of a user's file that defines the network. Without it, the file is executed
            only if it still has its recorded content at its recorded path.

    Raises:
        ValueError: The network cannot be built on this machine. The message gives the reason and the remedy.

    Example:
        >>> model = harness.load_network(run_id)
        >>> model(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    from harness.lineage.recorded_network import read_model

    if Path(run_id).is_file():
        raise LookupError(f"{run_id} is a file, and a file does not name its network; give a run ID or a key")
    # Phase: build the network from the files of the run, which may have to be fetched.
    with contextlib.ExitStack() as opened:

        def file(name: str) -> Path:
            return opened.enter_context(_open(run_id, name, tracking_uri, local_dir))

        model = read_model(file(DETERMINANTS), file, trust_code=trust_code)

    # Phase: fill it.
    load_checkpoint(run_id, tracking_uri, local_dir).load_into_(model)
    return model.train(False)


@contextlib.contextmanager
def _open(run_id: str | Path, name: str, tracking_uri: str | None, local_dir: Path | str) -> Iterator[Path]:
    """Yield the path of a file of the run that `run_id` names."""
    # Phase: an exported run on the Hub becomes a local run. A directory is read as it is.
    text = str(run_id)
    if is_hub_uri(text):
        text = read_record(fetch(text, local_dir, weights=name == CHECKPOINT)).key
    elif is_bundle(Path(run_id)):
        yield bundled_file(Path(run_id), name)
        return
    if re.fullmatch("[0-9a-f]{64}", text):
        local = LocalNodes(local_dir)
        if local.find(text) is not None:
            yield local.open_file(text, name)
            return
        found = open_store(local_dir, tracking_uri).run_id_of(text)
        if found is None:
            raise LookupError(f"no run with key {text[:16]}… in {local.directory.resolve()}, nor a finished MLflow run")
        text = found
    # Phase: a model URI, or the path of a file.
    elif is_model_uri(text):
        text = open_store(local_dir, tracking_uri).run_id_of_model(text)
    elif not re.fullmatch("[0-9a-f]{32}", text):
        path = Path(run_id)
        if not path.is_file():
            raise LookupError(f"{text!r} is not a run ID (32 hex digits), key (64 hex digits), models:/ URI or file")
        from harness.common.tensors import check_beside

        check_beside(path)
        yield path
        return
    # Phase: an MLflow run.
    with open_store(local_dir, tracking_uri).open_file(text, name) as path:
        yield path
