"""Read networks that other code has saved: safetensors files, or torch files (.pth, .pt) that hold only tensors.

Pickled code is never executed. Every error is one line that names the file and tells what it is.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file

from harness.common.escape import one_line
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
_IN_DIRECTORY = {
    "safetensors": ("model.safetensors.index.json", "model.safetensors"),
    "torch": ("pytorch_model.bin.index.json", "pytorch_model.bin"),
}
"""Names that Accelerate, Transformers, timm and DeepSpeed give to the file of a network, or to its index."""
_DIRECTORY = 0x10
"""Attribute of a directory in a zip archive."""
_DEEPEST = 4
_MOST_MAPPINGS = 10_000
"""A state dict is searched at most this deep, and not below this many mappings."""
_EXCESS_BYTES = 2**28
"""A tensor may claim this many bytes more than its file has (expanded views). A damaged size can claim terabytes."""


def split_key(text: Path | str) -> tuple[Path, str]:
    """Split `FILE:KEY` into the path and the key. The key is "" if the whole text is a path, or no such file exists.

    >>> split_key("no_such_file.pth:ema")
    (PosixPath('no_such_file.pth:ema'), '')
    """
    head, colon, key = str(text).rpartition(":")
    if colon and head and key and not Path(text).exists() and Path(head).exists():
        return Path(head), key
    return Path(text), ""


def holds_network(path: Path) -> bool:
    """Return whether a path is a file, or a directory with a usual file name of a network."""
    return path.is_file() or any((path / name).is_file() for names in _IN_DIRECTORY for name in names)


def read_tensors(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a network by their plain names.

    Name parts that DDP, DataParallel, torch.compile and FSDP add are removed. The content decides whether the file is
    a safetensors or a torch file. A torch file may nest the state dict under `state_dict`, `model_state_dict` or
    `model`. Otherwise it must be the only mapping of tensors.

    Args:
        path: The file, the index of a network in several files (`*.index.json`), or a directory with one of them.
        key: Dotted keys, or the first parts of the names, of the tensors to take. All if empty.

    Raises:
        FileNotFoundError: The file does not exist, or the directory has no network.
        OSError: The file cannot be opened.
        ValueError: The file is damaged, holds more than tensors, no state dict, or nothing under the key. The message
            names the file.
    """
    # Phase: find the files, and read them.
    if path.is_dir():
        path = _in_directory(path)
    shard = re.search(r"-\d{5}-of-(\d{5})\.", path.name)
    if shard and int(shard[1]) > 1:
        raise ValueError(
            f"{path} is one of {int(shard[1])} files of a network; give the directory, or the index (*.index.json)"
        )
    content = _read_index(path) if path.suffix == ".json" else _read_content(path)
    if key:
        found: Mapping[str, torch.Tensor] = _under(content, key, path)
    else:
        found = content if _is_state_dict(content) else _state_dict(content, path)

    # Phase: remove wrappers' parts of the names.
    size = path.stat().st_size if path.suffix != ".json" else None
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        if size is not None:  # files of an index were checked one by one
            _check_dense(path, name, tensor, size)
        if (short := plain_name(name)) in plain:
            wrapped = next(one for one in found if one != short and plain_name(one) == short)
            raise ValueError(
                f"{path} has {short} twice, with and without the name parts of a wrapper; keep one, or choose it by "
                f"the first part of its names: {path}:{wrapped.partition('.')[0]}"
            )
        plain[short] = tensor.detach()
    return plain


def _read_content(path: Path) -> Any:
    """Return the content of a safetensors or torch file. A torch file may nest its tensors."""
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
            return load_file(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    return _load_torch(path)


def _in_directory(directory: Path) -> Path:
    """Return the file or index of the only network in a directory. safetensors files have precedence.

    Raises:
        FileNotFoundError: The directory has none of the usual file names.
        ValueError: The directory has several networks.
    """
    # Phase: the usual names.
    files = {kind: [name for name in names if (directory / name).is_file()] for kind, names in _IN_DIRECTORY.items()}
    others = sorted(one.name for one in directory.glob("model_[0-9]*.safetensors"))
    for found in files.values():
        networks = [*found, *others]
        if found and len(networks) > 1:
            raise ValueError(f"{directory} has {len(networks)} networks, {listed(networks)}; name one of these files")
        if found:
            more = [name for names in files.values() for name in names if name not in found]
            if more:
                _log.info(f"note: {directory} has {', '.join([*found, *more])}: {found[0]} is read")
            return directory / found[0]

    # Phase: other forms, with advice on how to convert them.
    advice = "name a file"
    if (directory / ".metadata").is_file():
        advice = (
            "it is a distributed checkpoint; convert it: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {directory} network.pth"
        )
    elif (script := directory / "zero_to_fp32.py").is_file():
        advice = f"it is a DeepSpeed checkpoint; convert it: python {script} {directory} network"
    usual = ", ".join(name for names in _IN_DIRECTORY.values() for name in names)
    raise FileNotFoundError(f"the directory {directory} has none of {usual}; {advice}")


def _read_index(path: Path) -> dict[str, torch.Tensor]:
    """Read a network from the several files that its index lists.

    Raises:
        FileNotFoundError: The index or a file does not exist.
        ValueError: The index is damaged, or the files have other tensors than it lists.
    """
    # Phase: read the index.
    with reading(path, "index of a network"):
        content = json.loads(path.read_text())
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{path} is no index of a network: it has no weight_map from tensors to files")
    if outside := sorted({place for place in places.values() if Path(place).name != place}):
        raise ValueError(f"{path} lists files outside its directory, {listed(outside)}; put all beside the index")

    # Phase: read each file, and compare it with the index.
    files = sorted(set(places.values()))
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise FileNotFoundError(f"{path} lists {len(files)} files; missing are {listed(missing)}: download them, too")
    held: dict[str, torch.Tensor] = {}
    for name in files:
        shard = path.parent / name
        found = _read_content(shard)
        if not _is_state_dict(found):
            found = _state_dict(found, shard)
        expected = {tensor for tensor, place in places.items() if place == name}
        if different := sorted(expected ^ found.keys()):
            raise ValueError(
                f"{shard} and {path.name} disagree about {listed(different)} ({len(different)} of {len(expected)}); "
                "download both again"
            )
        for tensor, value in found.items():
            _check_dense(shard, tensor, value, shard.stat().st_size)
        held |= found
    return held


def _under(content: Any, key: str, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors under a dotted key, which may end within the names of a state dict.

    Raises:
        ValueError: There are none. The message lists the keys.
    """
    # Phase: the key as it is in the file.
    level: dict[str, Any] = {"": content} if isinstance(content, Mapping) else {}
    found: dict[str, torch.Tensor] = {}
    start = f"{key}."
    for _ in range(_DEEPEST + key.count(".")):
        inner = {
            f"{above}.{name}".lstrip("."): value
            for above, mapping in level.items()
            for name, value in mapping.items()
            if isinstance(name, str)
        }
        tensors = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)}
        found |= {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        level = {name: value for name, value in inner.items() if isinstance(value, Mapping)}
        if len(level) > _MOST_MAPPINGS:
            break
    if found:
        return found

    # Phase: the first parts of the plain names of the network that is taken without a key.
    usual: Mapping[str, torch.Tensor] = {}
    with suppress(ValueError):
        usual = content if _is_state_dict(content) else _state_dict(content, path)
        found = {plain_name(name): value for name, value in usual.items()}
        found = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
    if found:
        return found
    keys = f"the keys {_keys(content)}" if isinstance(content, Mapping) and usual is not content else ""
    firsts = list(dict.fromkeys(plain_name(name).partition(".")[0] for name in usual))
    names = f"names that begin with {listed(firsts)}" if firsts else ""
    has = " and ".join(filter(None, (keys, names))) or "none"
    raise ValueError(f"{path} has no tensors under {key!r:.60}; it has {has}")


def _check_archive(path: Path) -> None:
    """Check a torch file, which is a zip archive, by its checksums. torch.load does not."""
    with reading(path, "torch file"), zipfile.ZipFile(path) as archive:
        damaged, names = archive.testzip(), archive.namelist()
        # torch reads no bytes of a directory, and of two equal names another entry than `testzip`
        odd = [one.filename for one in archive.infolist() if one.external_attr & _DIRECTORY or one.is_dir()]
        odd += [name for name, count in Counter(names).items() if count > 1]
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of {damaged!r:.60} is wrong; download it again (a file that was saved "
            "without checksums must be saved again, with safetensors.torch.save_file)"
        )
    if odd:
        raise ValueError(f"{path} is damaged: it has {odd[0]!r:.60} twice or as a directory; download it again")
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
                f"If you trust its author, convert it: {_conversion(path)}"
            ) from error
        line = (said.rpartition("WeightsUnpickler error:")[2].strip() or said).splitlines()[0][:160]
        if line.startswith("Weights only load failed"):
            line = "its pickle is damaged"
        raise ValueError(
            f"{path} cannot be read as a torch file ({type(error).__name__}: {one_line(line)}); it is damaged, or "
            "of another kind: download it again"
        ) from error


def _conversion(path: Path) -> str:
    """Return the command that writes the state dict of a pickle to a safetensors file."""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"d = torch.load({str(path)!r}, 'cpu', weights_only=False); "
        f"s.save_file(d['state_dict'], {str(path.with_suffix('.safetensors'))!r})\" "
        "(the key can be another one; a whole module needs d.state_dict())"
    )


def _state_dict(found: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """Return the only mapping of tensors in the content of a torch file.

    Raises:
        ValueError: There is none, or there are several. The message lists the keys.
    """
    # Phase: look at the usual places, from the outside to the inside.
    usual, taken = found, list[str]()
    for name in _INSIDE:
        if isinstance(usual, Mapping) and isinstance(usual.get(name), Mapping):
            usual = usual[name]
            taken.append(name)
    if _is_state_dict(usual):
        _note_others(found, usual, ".".join(taken), path)
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
        inner = {key: value for key, value in level.items() if _is_state_dict(value) and _has_weights(value)}
        if inner or len(level) > _MOST_MAPPINGS:
            break
    if len(inner) == 1:
        ((key, only),) = inner.items()
        _log.info(f"note: {path} has the keys {_keys(found)}: the network is taken from {key!r:.60}")
        return only
    if inner:
        raise ValueError(
            f"{path} holds {len(inner)} state dicts, under {listed([repr(key) for key in inner])}: choose one by its "
            f"key, such as {path}:{next(iter(inner))}"
        )
    kinds = sorted({type(value).__name__ for value in found.values() if not isinstance(value, torch.Tensor)})
    raise ValueError(
        f"{path} holds no state dict: expected named tensors, got the keys {_keys(found)}"
        + (f" with values of type {listed(kinds)}" if kinds else "")
        + "; save model.state_dict() alone"
    )


def _note_others(found: Any, taken: Mapping[str, torch.Tensor], key: str, path: Path) -> None:
    """Log which other networks a file has beside the one that is taken, such as averaged weights."""
    shapes = {plain_name(name): tensor.shape for name, tensor in taken.items()}
    others = [
        name
        for name, value in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(name, str) and value is not taken and _is_state_dict(value)
        if 2 * sum(shapes.get(plain_name(one)) == tensor.shape for one, tensor in value.items()) >= len(shapes)
    ]
    if others:
        named = ", ".join(f"{path}:{name}" for name in others[:5])
        _log.info(f"note: {path} has {1 + len(others)} networks: {key!r} is taken; to take another one, give {named}")


def _has_weights(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether any tensor can be a weight. States of random generators and averages of losses cannot."""
    return any(tensor.is_floating_point() and tensor.ndim > 0 for tensor in tensors.values())


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
