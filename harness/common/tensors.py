"""Check, read and write named tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from harness.common.digest import canonical_json
from harness.common.files import write_tensors

METADATA_KEY = "harness"
"""The only metadata key in our safetensors files. safetensors writes several keys in random order."""
CORRECT_FORMAT = "harness.correct/1"


def check_fits(
    expected: Mapping[str, torch.Size], given: Mapping[str, torch.Size], what: str, other: str = "the network"
) -> None:
    """Check that every expected tensor exists with the expected shape.

    Args:
        expected: Shapes by name.
        given: Existing shapes by name.
        what: Source of the expected shapes, for the message.
        other: Source of the existing shapes, for the message.

    Raises:
        ValueError: Tensors are missing or have another shape. The message names each of them.
    """
    problems = [f"{name}: not in {other}" for name in expected if name not in given]
    problems += [
        f"{name}: {other} has {tuple(given[name])}, {what} has {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        raise ValueError(f"{what} does not fit {other}:\n  " + "\n  ".join(problems))


def read_header(metadata: Mapping[str, str] | None, expected_format: str, path: Path | str) -> dict[str, Any]:
    """Return the JSON header of one of our safetensors files.

    Raises:
        ValueError: The file has no such header, or another format or version.
    """
    try:
        header = json.loads((metadata or {})[METADATA_KEY])
        found = header["format"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} was not written by this harness (expected format {expected_format})") from None
    if found != expected_format:
        raise ValueError(f"{path} has format {found}; this version of the harness reads {expected_format}")
    return dict(header)


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
    try:
        # Read the header and the packed bits.
        with safe_open(os.fspath(path), "pt") as file:
            header = read_header(file.metadata(), CORRECT_FORMAT, path)
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file of correct images at {path}") from None
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete file of correct images ({error})") from None
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
