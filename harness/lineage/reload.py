"""Load signed masks, checkpoints and networks by run ID, key, URI, file or directory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.lineage.browse.find import family, find_node
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK, THETA_INIT
from harness.lineage.run_files import RunFiles, RunLike, find_files
from harness.lineage.store import DEFAULT_DIRECTORY, LineageStore, open_store

if TYPE_CHECKING:
    from torch import nn

    from harness.checkpoint import Checkpoint
    from harness.masks import SignedMask


def load_signed_mask(
    run_id: RunLike, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> SignedMask:
    """Return the signed mask of a finished run.

    Only the mask is read, not the checkpoint. Its SHA-256 is checked against the recorded one, also for a path in a
    run's directory.

    Args:
        run_id: A run ID or key, or its first digits (4 or more). A URI such as `runs:/RUN_ID`, `models:/NAME/VERSION`
            or `models:/aws-digits-resnet20@s1-L07`, also with `/FILE`. The path of a file, of a run's directory, of a
            bundle or of an exported directory. A run that `harness.lineage`, `search` or `final_training` returned.
            `hf://USER/NAME` or `hf://USER/NAME@REVISION`: an exported run on the Hugging Face Hub, which is imported
            into `local_dir` with its lineage.
        tracking_uri: Tracking server for IDs and URIs. None takes MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        local_dir: Directory of local runs, where keys are looked up first.

    Returns:
        The signs of all parameters by name: int8 of −1, 0 or +1, in the shape of the parameter.

    Raises:
        LookupError: There is no such run, version, file or mask. Or the digits begin several IDs, which are listed.
        ValueError: The run is not finished, or the file was altered.
        ConnectionError: The server is unreachable.

    Example:
        >>> mask = harness.load_signed_mask(run_id[:12])
        >>> sorted(mask.signs["fc.weight"].unique().tolist())
        [-1, 1]
    """
    from harness.masks import SignedMask  # imports torch, which lists of runs do not need

    files = find_files(open_store(local_dir, tracking_uri), run_id)
    with files.main(SIGNED_MASK) as path:
        return replace(SignedMask.load(path), origin=_origin(files.summary))


def load_checkpoint(
    run_id: RunLike, tracking_uri: str | None = None, local_dir: Path | str = DEFAULT_DIRECTORY
) -> Checkpoint:
    """Return parameters and buffers of a finished run; arguments and errors as in `load_signed_mask`.

    `runs:/RUN_ID/theta_init.safetensors` reads another checkpoint of the run.

    Example:
        >>> checkpoint = harness.load_checkpoint(run_id)
        >>> checkpoint.level, checkpoint.params["fc.weight"].shape
        (2, torch.Size([10, 8]))
    """
    from harness.checkpoint import Checkpoint

    with find_files(open_store(local_dir, tracking_uri), run_id).main(CHECKPOINT) as path:
        return Checkpoint.load(path)


def load_network(
    run_id: RunLike,
    tracking_uri: str | None = None,
    local_dir: Path | str = DEFAULT_DIRECTORY,
    *,
    model: nn.Module | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """Return the trained network of a finished run, on the CPU, in evaluation mode.

    The network takes normalised float images (N, channels, height, width) and returns logits (N, classes). Arguments
    and errors are those of `load_signed_mask`. The run must have one network: a level or a final training. For the
    initial network of a search, give `runs:/RUN_ID/theta_init.safetensors`.

    Args:
        run_id: As in `load_signed_mask`.
        tracking_uri: As in `load_signed_mask`.
        local_dir: As in `load_signed_mask`.
        model: The network to fill and return, on any device. None builds the recorded one. Runs of `SignPruner.log`
            and single files need it, because they do not name their network.
        trust_code: Execute the Python file that defines the network, also if you have named it in no command. Read
            the run's copy network.py first.

    Raises:
        TypeError: `model` is no network, or `trust_code` neither True nor False.
        LookupError: The run has no network or several, which are listed.
        ValueError: The network cannot be built on this machine, or `model` is another one. The message gives the reason
            and the remedy.

    Example:
        >>> model = harness.load_network(run_id)
        >>> model(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    from torch import nn

    from harness.checkpoint import Checkpoint
    from harness.lineage.recorded_network import read_model

    # Phase: check the arguments.
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model takes a network (torch.nn.Module) to fill, got {type(model).__name__}")
    if not isinstance(trust_code, bool):  # "no" is true, too
        raise TypeError(f"trust_code is {trust_code!r:.60}; give True or False")

    # Phase: find the only network of the run.
    store = open_store(local_dir, tracking_uri)
    files = find_files(store, run_id)
    _check_one_network(store, files)
    if files.summary is None and model is None and files.chosen is not None:
        raise LookupError(
            f"{run_id} is a file, and a file does not name its network; give a run ID or a key, or the network to "
            "fill: model=…"
        )

    # Phase: build it from the files of the run, which may have to be fetched, and fill it.
    if model is None:
        with contextlib.ExitStack() as opened:

            def file(name: str) -> Path:
                return opened.enter_context(files.open(name))

            model = read_model(file(DETERMINANTS), file, trust_code=trust_code)
    with files.main(CHECKPOINT) as path:
        Checkpoint.load(path).load_into_(model)
    return model.train(False)


def _origin(run: RunSummary | None) -> str:
    """Return a run's method, classifier, name and ID for the `repr` of its signed mask; "" without a record."""
    if run is None:
        return ""
    from harness.models import MODELS

    spec = MODELS.get(run.tags.get("model", ""))
    told = [f"{name} {run.tags[name]}" for name in ("method", "kind_of_training") if name in run.tags]
    told += [f"classifier {spec.classifier}"] if spec is not None else []
    told.append(f"run {run.name} ({f'run ID {run.run_id:.12}…' if run.run_id else f'key {run.key:.12}…'})")
    return ", ".join(told)


def _check_one_network(store: LineageStore, files: RunFiles) -> None:
    """Raise LookupError if a run has no network or several, unless the user named one of its files."""
    run = files.summary
    if run is None or files.chosen is not None or CHECKPOINT in run.files:
        return
    if run.kind == "search":
        levels = [node for node in _tried(lambda: family(store, run)) if node.nest_key == run.key]
        raise LookupError(
            f"{run.name} is a search, which has a network for each level; give a level: "
            f"{_listed(levels[::-1]) or 'none is found'}; or runs:/{run.run_id or run.key}/{THETA_INIT} for its "
            "initial network"
        )
    if run.kind == "analysis":
        compared = _tried(lambda: [find_node(store, parent.key) for parent in run.parents])
        raise LookupError(
            f"{run.name} is a comparison, which has no network of its own; give one that it compares: "
            f"{_listed(compared) or ', '.join(parent.key[:12] for parent in run.parents)}"
        )
    raise LookupError(f"{run.name} is a {run.kind}: it has no network")


def _tried(find: Callable[[], list[RunSummary]]) -> list[RunSummary]:
    """Return the runs that are found, for the message of another error."""
    try:
        return find()
    except (LookupError, ValueError, ConnectionError):
        return []


def _listed(runs: Sequence[RunSummary]) -> str:
    """Return the first digits of IDs, with names."""
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return ", ".join(f"{(run.run_id or run.key)[:12]} ({run.name})" for run in runs[:5]) + more
