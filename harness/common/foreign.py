"""Read networks that other code has saved: safetensors files, or torch files (.pth, .pt) that hold only tensors.

Pickled code is never executed. Every error is one line that names the file and tells what it is.
"""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file

from harness.common.tensors import listed, plain_name, reading

_log = logging.getLogger(__name__)

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which a file may nest its state dict. They have precedence over other keys."""
_NO_NETWORKS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<": "is a web page (HTML or XML), not a network; download the file itself",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\x89HDF": "is an HDF5 file; save the network's state dict with safetensors.torch.save_file",
    b"\x93NUMPY": "is a NumPy array; save the network's state dict with safetensors.torch.save_file",
}
"""First bytes of files that people take for networks, and the advice."""
_DEEPEST = 4
_MOST_MAPPINGS = 10_000
"""A state dict is searched at most this deep, and not below this many mappings."""
_EXCESS_BYTES = 2**28
"""A tensor may claim this many bytes more than its file has (expanded views). A damaged size can claim terabytes."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a network by their plain names.

    Name parts that DDP, DataParallel, torch.compile and FSDP add are removed. The content decides whether the file is
    a safetensors or a torch file. In a torch file, the state dict may be nested under `state_dict`,
    `model_state_dict` or `model`, or be the only mapping of tensors under another key.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be opened.
        ValueError: The file is damaged, holds more than tensors, or no state dict. The message names the file.
    """
    # Phase: recognise the file by its first bytes.
    with reading(path, "file of a network"), open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if not head:
        raise ValueError(f"{path} is empty; download it again")
    # The first 8 bytes of a safetensors file are the length of its header. They can look like another kind of file.
    is_safetensors = head[8:9] == b"{"
    has_header = is_safetensors and int.from_bytes(head[:8], "little") <= size
    for magic, advice in _NO_NETWORKS.items():
        if not has_header and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(magic):
            raise ValueError(f"{path} {advice}")
    is_torch = head.startswith((b"PK\x03\x04", b"\x80"))
    is_safetensors |= path.suffix == ".safetensors" and not is_torch

    # Phase: read it. safetensors files cannot hold anything but tensors.
    if is_safetensors:
        with reading(path, "safetensors file"):
            found: Mapping[str, torch.Tensor] = load_file(path)
    else:
        if head.startswith(b"PK"):
            _check_archive(path)
        found = _state_dict(_load_torch(path), path)

    # Phase: check the tensors and remove wrappers' parts of their names.
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        _check_dense(path, name, tensor, size)
        if (short := plain_name(name)) in plain:
            raise ValueError(f"{path} has {short} twice, with and without the name parts of a wrapper; keep one")
        plain[short] = tensor.detach()
    return plain


def _check_archive(path: Path) -> None:
    """Check a torch file, which is a zip archive, by its checksums. torch.load does not."""
    with reading(path, "torch file"), zipfile.ZipFile(path) as archive:
        damaged, names = archive.testzip(), archive.namelist()
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of {damaged!r:.60} is wrong; download it again (a file that was saved "
            "without checksums must be saved again, with safetensors.torch.save_file)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive of {listed(names)}, not a torch file; unpack it first")


def _load_torch(path: Path) -> Any:
    """Return the content of a torch file. `weights_only` refuses pickled objects other than plain data and tensors."""
    try:
        # Pass the open file: by the path, some versions choose another reader according to its ending.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged files raise many kinds of exception here: KeyError, struct.error, AssertionError, …
        said = str(error).strip() or "no message"
        if "TorchScript" in said:
            raise ValueError(
                f"{path} is a TorchScript archive (torch.jit), which holds code; save the state_dict() of "
                "torch.jit.load(path) with safetensors.torch.save_file, and give that file"
            ) from error
        refused = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", said) if "nsupported" in said else None
        if isinstance(error, UnpicklingError) and refused:
            raise ValueError(
                f"{path} holds more than tensors ({refused[1]}); it is not loaded, because a pickle can run any code. "
                "Save its state_dict alone, preferably with safetensors.torch.save_file"
            ) from error
        line = (said.rpartition("WeightsUnpickler error:")[2].strip() or said).splitlines()[0][:160]
        if line.startswith("Weights only load failed"):
            line = "its pickle is damaged"
        raise ValueError(
            f"{path} cannot be read as a torch file ({type(error).__name__}: {line}); it is damaged, or of another "
            "kind: download it again"
        ) from error


def _state_dict(found: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """Return the only mapping of tensors in the content of a torch file.

    Raises:
        ValueError: There is none, or there are several. The message lists the keys.
    """
    # Phase: look at the usual places, from the outside to the inside.
    usual = found
    for name in _INSIDE:
        if isinstance(usual, Mapping) and isinstance(usual.get(name), Mapping):
            usual = usual[name]
    if _is_state_dict(usual):
        return usual
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds no state dict: expected named tensors, got {type(found).__name__}")

    # Phase: take the only mapping of tensors under other keys, at the least depth that has any.
    inner, level = dict[str, Mapping[str, torch.Tensor]](), {"": found}
    for _ in range(_DEEPEST):
        level = {
            f"{above}.{key}".lstrip("."): value
            for above, mapping in level.items()
            for key, value in mapping.items()
            if isinstance(value, Mapping)
        }
        inner = {key: value for key, value in level.items() if _is_state_dict(value)}
        if inner or len(level) > _MOST_MAPPINGS:
            break
    if len(inner) == 1:
        ((key, only),) = inner.items()
        _log.info(f"note: {path} has the keys {_keys(found)}: the network is taken from {key!r:.60}")
        return only
    if inner:
        raise ValueError(
            f"{path} holds {len(inner)} state dicts, under {listed([repr(key) for key in inner])}: save the one to use "
            "in a file of its own"
        )
    kinds = sorted({type(value).__name__ for value in found.values() if not isinstance(value, torch.Tensor)})
    raise ValueError(
        f"{path} holds no state dict: expected named tensors, got the keys {_keys(found)}"
        + (f" with values of type {listed(kinds)}" if kinds else "")
        + "; save model.state_dict() alone"
    )


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, torch.Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in value.items())
    )


def _check_dense(path: Path, name: str, tensor: torch.Tensor, size: int) -> None:
    """Raise ValueError for a tensor without plain values, and for one much larger than its file."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain:
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}".removeprefix("torch.")
        raise ValueError(f"{path}: {name} is {kind}; save dense tensors with values on the CPU")
    if (claimed := tensor.numel() * tensor.element_size()) > size + _EXCESS_BYTES:
        raise ValueError(f"{path}: {name} claims {claimed:,} bytes, the file has {size:,}; download it again")


def _keys(found: Mapping[Any, Any]) -> str:
    return listed([f"{key!s:.60}" for key in found]) if found else "of an empty mapping"
