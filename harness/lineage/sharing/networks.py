"""Build the network of a shared run, and write it for programs that do not know this library."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.digest import canonical_json
from harness.common.files import write_tensors
from harness.common.optional import require
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK
from harness.lineage.recorded_network import read_model
from harness.lineage.sharing.description import SharedRun
from harness.lineage.store import LineageStore

if TYPE_CHECKING:
    from torch import nn


def network_of_run(store: LineageStore, node: RunSummary, *, trust_code: bool = False) -> nn.Module:
    """Return the trained network of a level or final training, on the CPU, in evaluation mode.

    Args:
        store: The store of the run.
        node: The run.
        trust_code: Execute the run's copy of a user's file that defines the network.

    Raises:
        ValueError: The network cannot be built on this machine, or a file was altered.
    """
    from harness.checkpoint import Checkpoint

    with contextlib.ExitStack() as opened:

        def file(name: str) -> Path:
            return opened.enter_context(store.open_file_of(node, name))

        model = read_model(file(DETERMINANTS), file, trust_code=trust_code)
        Checkpoint.load(file(CHECKPOINT)).load_into_(model)
    return model.train(False)


def write_onnx(shared: SharedRun, model: nn.Module, out: Path) -> None:
    """Write a network as ONNX: normalised images in, logits out, with any number of images.

    Pruned weights are zeros. The model's metadata has the key, name, density, mean and standard deviation.

    Args:
        shared: The run.
        model: Its network.
        out: The new file.

    Raises:
        MissingLibraryError: onnx or onnxscript is not installed.
        ValueError: torch cannot export this network. The message has its reason.
    """
    import torch

    for library in ("onnx", "onnxscript"):
        require(library, "the export to ONNX")

    # Phase: export. Two images, because torch takes a dimension of size 1 for a constant.
    shape = shared.image_shape
    if shape is None:
        raise ValueError(f"{shared.record.name} has no recorded image size, so it cannot be exported to ONNX")
    images = torch.zeros(2, *shape)
    try:
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except ImportError:
        raise
    except Exception as error:  # torch.export fails on a stranger's network in many ways
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"torch cannot export {shared.network} to ONNX: {said:.300}") from error
    assert program is not None

    # Phase: metadata, and an atomic write.
    props = {"signed_tickets.key": shared.record.key, "signed_tickets.name": shared.record.name}
    props |= {"signed_tickets.density": repr(shared.density)} if shared.density is not None else {}
    for name in ("mean", "std"):
        if name in shared.spec:
            props[f"signed_tickets.{name}"] = " ".join(f"{value:g}" for value in shared.spec[name])
    program.model.metadata_props.update(props)
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        program.save(str(temporary), external_data=False)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def write_torch_prune(store: LineageStore, node: RunSummary, shared: SharedRun, out: Path) -> None:
    """Write the state dict of a network that torch.nn.utils.prune has pruned, as a safetensors file.

    Each pruned `X` becomes `X_orig` and `X_mask`, as `SignedMask.to_torch_prune` explains.

    Args:
        store: The store of the run.
        node: The run.
        shared: Its description, for the metadata.
        out: The new file.

    Raises:
        ValueError: The run has no signed mask, or a file was altered.
    """
    from harness.checkpoint import Checkpoint
    from harness.masks import SignedMask

    if SIGNED_MASK not in shared.record.files:
        raise ValueError(f"{shared.record.name} has no {SIGNED_MASK}, so there are no masks to write")
    with store.open_file_of(node, SIGNED_MASK) as mask, store.open_file_of(node, CHECKPOINT) as checkpoint:
        state = SignedMask.load(mask).to_torch_prune(Checkpoint.load(checkpoint))
    told = {"key": shared.record.key, "name": shared.record.name, "density": shared.density}
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_tensors(out, tensors, {"signed_tickets": canonical_json(told)})
