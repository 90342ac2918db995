"""Compare two runs with one key by the tensors of their files, and by the curve of a comparison.

Equal keys should mean equal results. But two machines or versions can compute different bits. Digests of whole files
decide nothing: the header of a file may have another format, and only tensors and curves are results. Files that just
one of the two runs has are no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from harness.common.escape import one_line
from harness.common.files import read_json, refuse_pipe
from harness.lineage.nodes.record import SIGNED_MASK

_TENSORS = ".safetensors"
_CURVE = "barrier.json"
_MOST_HEADER_BYTES = 100 << 20
_CHUNK_BYTES = 1 << 20


class OtherContentsError(LookupError):
    """Another run has the same key and other tensors."""


def suspects(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the files of results that both runs have with different digests, from {file name: SHA-256} of both."""
    common = mine.keys() & theirs.keys()
    return sorted(name for name in common if name.endswith((_TENSORS, _CURVE)) and mine[name] != theirs[name])


def differing(
    names: Iterable[str],
    mine: Callable[[str], AbstractContextManager[Path]],
    theirs: Callable[[str], AbstractContextManager[Path]],
) -> list[str]:
    """Return the names of the files whose tensors differ.

    Args:
        names: Files to compare, from `suspects`.
        mine: Opens a file of one run.
        theirs: Opens a file of the other run.

    Returns:
        The names. A file that cannot be read differs, because its recorded digest does.
    """
    found = []
    for name in names:
        try:
            with mine(name) as one, theirs(name) as other:
                same = _same_curve(one, other) if name.endswith(_CURVE) else same_tensors(one, other)
        except (ValueError, LookupError, FileNotFoundError):
            same = False
        if not same:
            found.append(name)
    return found


def same_tensors(one: Path, other: Path) -> bool:
    """Return whether two safetensors files hold equal tensors. Signed masks may have different formats.

    Raises:
        ValueError: A file is not a safetensors file.
    """
    if _planes(one) == _planes(other):
        return True
    if SIGNED_MASK not in (one.name, other.name):
        return False
    from harness.masks import same_contents  # imports torch, which is needed only here

    return same_contents(one, other)


def _same_curve(one: Path, other: Path) -> bool:
    """Return whether the fields that two curves have in common are equal. A later version may write more fields.

    Raises:
        ValueError: A file is no JSON object.
    """
    try:
        first, second = map(read_json, (one, other))
        return all(first[name] == second[name] for name in first.keys() & second.keys())
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{one} or {other} is no JSON object: {one_line(error):.200}") from None


def _planes(path: Path) -> dict[str, tuple[str, str, str]]:
    """Return {tensor name: (dtype, shape, SHA-256 of its bytes)} of a safetensors file, without loading it whole."""
    refuse_pipe(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MOST_HEADER_BYTES, path.stat().st_size):
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            planes = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    if not 0 <= start <= end <= path.stat().st_size:
                        raise ValueError(f"{name} lies outside of the file")
                    file.seek(8 + length + start)
                    planes[name] = (str(entry["dtype"]), str(entry["shape"]), _sha256(file, end - start))
            return planes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is not a safetensors file: {one_line(error):.200}") from None


def _sha256(file: BinaryIO, num_bytes: int) -> str:
    """Return the SHA-256 of the next `num_bytes` bytes of a file."""
    digest = hashlib.sha256()
    while num_bytes > 0:
        data = file.read(min(num_bytes, _CHUNK_BYTES))
        if not data:
            raise ValueError("it is cut")
        digest.update(data)
        num_bytes -= len(data)
    return digest.hexdigest()


def conflict(name: str, run_id: str, files: Iterable[str]) -> OtherContentsError:
    """Return the error of a local run whose key an MLflow run has with other contents."""
    return OtherContentsError(
        f"{name!r}: MLflow run {run_id} has the same key, but other tensors in {' and '.join(files)}: two machines or "
        "versions computed different bits, so the two are kept apart. Deliver to another store (--tracking-uri), or "
        "delete that run in MLflow"
    )
