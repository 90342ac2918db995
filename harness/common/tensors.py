"""Named tensors: whether they fit a network, and the header of the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

METADATA_KEY = "harness"
"""The one key of a safetensors file's metadata: several are written in random order."""


def check_fits(expected: Mapping[str, torch.Size], given: Mapping[str, torch.Size], what: str) -> None:
    """Raise a ValueError that names every tensor of `what` that does not fit the network."""
    problems = [f"{name}: not in the network" for name in expected if name not in given]
    problems += [
        f"{name}: network has {tuple(given[name])}, {what} has {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        raise ValueError(f"{what} does not fit this network:\n  " + "\n  ".join(problems))


def read_header(metadata: Mapping[str, str] | None, expected_format: str, path: Path | str) -> dict[str, Any]:
    """Return the one JSON header of a safetensors file of ours; ValueError on another format or version."""
    try:
        header = json.loads((metadata or {})[METADATA_KEY])
        found = header["format"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} was not written by this harness (expected format {expected_format})") from None
    if found != expected_format:
        raise ValueError(f"{path} has format {found}; this version of the harness reads {expected_format}")
    return dict(header)
