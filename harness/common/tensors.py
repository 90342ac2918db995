"""Check, read and write named tensors."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from harness.common.digest import canonical_json, sha256_file
from harness.common.escape import one_line
from harness.common.files import read_json, refuse_pipe, write_tensors

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

METADATA_KEY = "harness"
"""The only metadata key in our safetensors files. safetensors writes several keys in random order."""
CORRECT_FORMAT = "harness.correct/1"
_NAMED = 5
"""Number of tensors of each kind that an error names."""
_PRIVATE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_ADDED = {"module", *_PRIVATE}
"""Parts of names that DDP, DataParallel, torch.compile, FSDP and activation checkpointing add.

They may stand anywhere: torch's ImageNet example wraps only `features` of a VGG.
"""


def check_fits(
    expected: Mapping[str, torch.Size],
    given: Mapping[str, torch.Size],
    what: str,
    other: str = "the network",
    *,
    exactly: bool = False,
) -> None:
    """Check that every expected tensor exists with the expected shape.

    Args:
        expected: Shapes by name.
        given: Existing shapes by name.
        what: Source of the expected shapes, for the message.
        other: Source of the existing shapes, for the message.
        exactly: Whether further existing tensors are an error, too.

    Raises:
        ValueError: Tensors are missing or have another shape. The message is one line. It names up to five tensors of
            each kind and gives their number.
    """
    # Phase: find what is missing on either side, and the cause that both sides together show.
    missing = [name for name in expected if name not in given]
    further = [name for name in given if name not in expected] if exactly else []
    wrong = [name for name, shape in expected.items() if name in given and given[name] != shape]
    if not (missing or further or wrong):
        return
    why_missing = _cause(missing, given, other, none=len(missing) == len(expected))
    why_further = _cause(further, expected, what, none=len(further) == len(given))

    # Phase: say it, the cause before its consequences.
    problems = [f"{other} has no {_some(missing, len(expected))}{why_missing}"] if missing and not why_further else []
    problems += [f"{what} has no {_some(further, len(given))}{why_further}"] if further and not why_missing else []
    shapes = [f"{name} is {tuple(given[name])} in {other} and {tuple(expected[name])} in {what}" for name in wrong]
    problems += [_some(shapes, len(expected))] if wrong else []
    raise ValueError(f"{what} does not fit {other}: " + "; ".join(problems))


def listed(texts: Sequence[str]) -> str:
    """Return the first texts, and how many more there are."""
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _some(texts: Sequence[str], total: int) -> str:
    """Return the first texts, and the number of all if there are several."""
    shown = ", ".join(texts[:_NAMED]) + (", …" if len(texts) > _NAMED else "")
    return f"{shown} ({len(texts)} of {total})" if len(texts) > 1 else shown


def _cause(missing: Sequence[str], holder: Iterable[str], who: str, *, none: bool) -> str:
    """Explain why `holder`, the names of `who`, lacks the names `missing`; "" if the names do not tell.

    `none` tells whether it has none of the names that were looked for.
    """
    if not missing:
        return ""
    # Phase: a wrapper prefix on the names of one side. A single layer of many can have the same names, too.
    first, names = missing[0], set(holder)
    before = [name.removesuffix(first) for name in names if none and name.endswith(f".{first}")]
    for prefix in before:
        most = 2 * sum(name.startswith(prefix) for name in names) >= len(names)
        if most and all(prefix + name in names for name in missing):
            return f"; its names begin with {prefix!r}: give the unwrapped network, or remove this prefix"
    parts = first.split(".")
    for prefix in (".".join(parts[:cut]) + "." for cut in range(1, len(parts)) if none):
        if all(name.startswith(prefix) and name.removeprefix(prefix) in names for name in missing):
            return f", but the same names without {prefix!r}: remove this prefix"

    # Phase: the tensors that a reparametrisation stores in place of the weight.
    leaf, stored = first.rpartition(".")[2], stored_instead(first, names)
    if not stored:
        return ""
    found = f"; it has {' and '.join(stored[:_NAMED])}"
    if f"{first}_mask" in names:
        return (
            f"{found}: {who} was pruned by torch.nn.utils.prune. Call prune.remove(module, {leaf!r}) for each pruned "
            "layer, which multiplies the two, and save again"
        )
    return f"{found}: a reparametrised weight. Remove the reparametrisation and save again"


def stored_instead(missing: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pruned or reparametrised module has in place of the name `missing`, sorted."""
    stem, _, leaf = missing.rpartition(".")
    inside = f"{stem}.parametrizations.{leaf}.".removeprefix(".")
    return sorted(name for name in names if name.startswith((f"{missing}_", inside)))


def below(modules: str | Sequence[str]) -> tuple[str, ...]:
    """Return the beginnings of the names of parameters in one module, or in several, for `str.startswith`."""
    return tuple(f"{name}." for name in ([modules] if isinstance(modules, str) else modules))


def plain_name(name: str) -> str:
    """Return the name of a parameter without what DDP, DataParallel, torch.compile and FSDP add, in any order."""
    *modules, leaf = name.split(".")
    return ".".join([*(part for part in modules if part not in _ADDED), leaf])


def own_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the names that tensors have in the network inside DDP, DataParallel, torch.compile and FSDP.

    Wrappers are known by their class, so that a layer of the network may be called `module`.

    Args:
        model: The network, wrapped or not, or with wrapped parts.
        names: Names of its parameters and buffers, or of its state dict.

    Returns:
        {name: name without the wrappers' parts}.
    """
    from torch import nn

    # Phase: walk through the modules, and leave out the parts of wrappers.
    plain: dict[str, str] = {}

    def walk(module: nn.Module, name: str, own: str) -> None:
        plain[name] = own
        wraps = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
        for part, child in module._modules.items():
            if child is not None:
                added = part in _PRIVATE or (wraps and part == "module")
                walk(child, f"{name}{part}.", own if added else f"{own}{part}.")

    walk(model, "", "")

    # Phase: the names of tensors begin with those of their modules.
    found = {}
    for name in names:
        modules, dot, leaf = name.rpartition(".")
        found[name] = plain.get(modules + dot, modules + dot) + leaf
    return found


def renamed(names: Collection[str], keys: Collection[str]) -> dict[str, str]:
    """Return new names for the keys of a state dict: those that most of the expected names have.

    The keys stay, or lose the prefix of a wrapper such as `module.`, or get one. Else the parts of wrappers are ignored
    on both sides, wherever they stand.

    Args:
        names: The expected names.
        keys: The keys.

    Returns:
        {key: new name}. The new names are unique.
    """
    # Phase: the ways to rename. The first of equally good ones is taken.
    plain = {plain_name(name): name for name in names}
    ways: list[Callable[[str], str]] = [lambda key: key]
    ways += [lambda key, cut=cut: key.removeprefix(cut) for cut in _wrapping(keys)]  # type: ignore[misc]
    ways += [lambda key, add=add: add + key for add in _wrapping(names)]  # type: ignore[misc]
    if len(plain) == len(names):
        ways.append(lambda key: plain.get(plain_name(key), plain_name(key)))

    # Phase: take the way that finds most of the names.
    wanted, best, most = set(names), {key: key for key in keys}, -1
    for way in ways:
        new = {key: way(key) for key in keys}
        found = len(wanted & set(new.values()))
        if found > most and len(set(new.values())) == len(new):
            best, most = new, found
        if most == len(wanted):
            break
    return best


def _wrapping(names: Iterable[str]) -> list[str]:
    """Return the prefixes of wrappers that names begin with, the shortest first."""
    found = set()
    for name in names:
        prefix = ""
        for part in name.split(".")[:-1]:
            if part not in _ADDED:
                break
            prefix += f"{part}."
            found.add(prefix)
    return sorted(found, key=len)


def named_as(names: Collection[str], model: nn.Module, *, buffers: bool = False) -> dict[str, torch.Tensor]:
    """Return a network's tensors by the expected names.

    A network that DDP, DataParallel or torch.compile wraps, once or several times, is taken like the network itself. A
    shared tensor has the name that is expected. Tensors without an expected name keep their own.

    Args:
        names: The expected names.
        model: The network, wrapped or not.
        buffers: Whether to return buffers, too.
    """
    # Phase: the usual case.
    own: dict[str, torch.Tensor] = dict(model.named_parameters())
    own |= dict(model.named_buffers()) if buffers else {}
    if all(name in own for name in names):
        return own

    # Phase: other names, of wrapped networks and of shared tensors.
    own = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False)) if buffers else {}
    inside = own_names(model, own)
    if len(set(inside.values())) == len(inside):
        own = {inside[key]: tensor for key, tensor in own.items()}
    new = renamed(names, own)
    named = {new[key]: tensor for key, tensor in own.items()}

    # Phase: leave out the further names of shared tensors.
    found = {name: named[name] for name in names if name in named}
    seen = {id(tensor) for tensor in found.values()}
    for name, tensor in named.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def check_values(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Check that the tensors of a network have values that can be changed here.

    Args:
        tensors: Tensors by name.
        what: The action, for the message, e.g. "apply the signed mask".

    Raises:
        ValueError: A tensor is on the meta device, of a lazy layer, or sharded.
    """
    without_shape = (torch.nn.parameter.UninitializedParameter, torch.nn.parameter.UninitializedBuffer)
    if lazy := [name for name, tensor in tensors.items() if isinstance(tensor, without_shape)]:
        raise ValueError(f"cannot {what}: {listed(lazy)} have no shape yet; pass one batch through the network first")
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(
            f"cannot {what}: {listed(empty)} are on the meta device, without values; build the network on a device, or "
            'call model.to_empty(device="cpu") and initialise it first'
        )
    if sharded := [name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")]:
        raise ValueError(f"cannot {what}: {listed(sharded)} are sharded over processes (FSDP); do it before sharding")


def read_header(
    metadata: Mapping[str, str] | None, expected_format: str, path: Path | str, *older: str
) -> dict[str, Any]:
    """Return the JSON header of one of our safetensors files, in the expected format or an `older` one.

    Raises:
        ValueError: The file has no such header, or another format or version.
    """
    try:
        header = json.loads((metadata or {})[METADATA_KEY])
        found = header["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path} was not written by this harness (expected format {expected_format})") from None
    if found not in (expected_format, *older):
        known = " and ".join((expected_format, *older))
        raise ValueError(f"{path} has format {_short(found)}; this version of the harness reads {known}")
    return dict(header)


def _short(value: Any) -> str:
    return f"{one_line(value):.60}" if isinstance(value, str) else f"{value!r:.60}"


@contextmanager
def reading(path: Path | str, what: str, advice: str = "; download it again") -> Iterator[None]:
    """Turn every error within the block into one line that names the file.

    Args:
        path: The file that the block reads.
        what: The kind of file, e.g. "checkpoint file".
        advice: End of the message about a damaged file.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be opened.
        ValueError: The content is damaged.
    """
    try:
        refuse_pipe(path)
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what.removesuffix(' file')} at {path}") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise  # it already names the file
        # A damaged file can make a parser raise any exception.
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ValueError(
            f"{path} is not a complete {what} ({one_line(f'{type(error).__name__}: {said}'):.200}){advice}"
        ) from error


def check_beside(path: Path) -> bool:
    """Check a file of a run against the record.json beside it. A link is followed.

    A record that does not list the file is no error, but a warning.

    Returns:
        Whether there is a record that lists the file.

    Raises:
        ValueError: The file or the record was altered.
    """
    target = Path(os.path.realpath(path))
    listed = False
    for place in dict.fromkeys((path, target)):
        record = place.parent / "record.json"
        if not record.is_file():
            continue
        try:
            expected = read_json(record)["files"][place.name]
        except (KeyError, TypeError):  # a record of something else
            if place == target and not listed:
                _log.warning(f"{path} is not checked: {record} does not list it")
            continue
        except ValueError as error:
            raise ValueError(f"{path} cannot be checked: {record} was altered ({one_line(error)})") from None
        if (got := sha256_file(path)) != expected:
            raise ValueError(f"{path} was altered: its SHA-256 is {got}, {record} says {expected!r:.70}")
        listed = True
    return listed


def save_correct(path: Path | str, correct: Mapping[str, torch.Tensor]) -> None:
    """Write which of N images were classified correctly, one bit per image.

    Equal contents give equal bytes.

    Args:
        path: The file. An existing file is replaced.
        correct: Bool tensors by name, [N] or [K, N] for K evaluations. N is the same in all of them.

    Raises:
        ValueError: There are no tensors, or they have another type or different N.
    """
    sizes = {
        tensor.shape[-1] if tensor.dtype == torch.bool and tensor.ndim in (1, 2) else 0 for tensor in correct.values()
    }
    if len(sizes) != 1 or 0 in sizes:
        given = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in correct.items()}
        raise ValueError(f"{path} takes bool tensors [N] or [K, N] with the same N > 0, got {given}")
    held = {name: tensor.cpu().contiguous().numpy() for name, tensor in correct.items()}
    packed = {name: torch.from_numpy(np.packbits(bits, axis=-1)) for name, bits in held.items()}
    header = canonical_json({"format": CORRECT_FORMAT, "num_images": sizes.pop()})
    write_tensors(path, packed, {METADATA_KEY: header})


def load_correct(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a file that `save_correct` wrote.

    Returns:
        Bool tensors [N] or [K, N] by name, on the CPU.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is altered, truncated or in another format. The message names the file.
    """
    # Read the header and the packed bits.
    with reading(path, "file of correct images"), safe_open(os.fspath(path), "pt") as file:
        header = read_header(file.metadata(), CORRECT_FORMAT, path)
        packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    # Check the header, then unpack and check each tensor.
    num_images = header.get("num_images")
    if type(num_images) is not int or num_images < 1 or not packed:
        raise ValueError(f"{path} holds {len(packed)} evaluations of {num_images!r:.60} images")
    found = {}
    for name, bits in packed.items():
        if bits.dtype != torch.uint8 or bits.ndim not in (1, 2) or bits.shape[-1] != (num_images + 7) // 8:
            raise ValueError(f"{path}: {name!r:.60} has {bits.dtype} {tuple(bits.shape)} for {num_images} images")
        unpacked = np.unpackbits(bits.numpy(), axis=-1)
        if unpacked[..., num_images:].any():
            raise ValueError(f"{path}: {name!r:.60} has bits after its {num_images} images")
        found[name] = torch.from_numpy(unpacked[..., :num_images].astype(bool))
    return found
