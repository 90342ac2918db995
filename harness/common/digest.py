"""Compute SHA-256 digests of files, tensors and settings. They identify every object in the lineage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.files import refuse_pipe

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 1 << 22


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of `value`. Equal values give equal text.

    Keys are sorted. There are no spaces, and NaN is an error.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Return the hex SHA-256 of a file, read in chunks; ValueError for a pipe or device."""
    refuse_pipe(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the hex SHA-256 over tensors' names, dtypes, shapes and bytes.

    Tensors are sorted by name. All dtypes are hashed, also those that NumPy lacks, such as bfloat16.
    """
    # Imported here: lists of runs use this module without torch.
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
