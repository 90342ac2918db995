"""Write files of signed masks as older versions did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.common.digest import canonical_json


def as_format_1(path: Path, planes: Mapping[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Rewrite a mask file as older versions wrote it, with changed planes or header."""
    content = path.read_bytes()
    header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["harness"])
    header = {name: value for name, value in header.items() if name != "sha256"}
    header |= {"format": "harness.signed_mask/1"} | changes
    save_file(load_file(path) | dict(planes or {}), path, {"harness": canonical_json(header)})
