"""Test that tensor files have the permissions of the user's umask, as all other files have."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as numpy_save_file
from safetensors.torch import save_file
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.files import read_bounded, write_tensors
from harness.common.tensors import save_correct
from harness.data.prepare import prepare
from harness.masks import Mask, SignedMask
from harness.runs.unfinished import Unfinished

REPOSITORY = Path(__file__).parents[1]
LAYER = nn.Linear(3, 2)
PARAMS = {name: param.detach() for name, param in LAYER.named_parameters()}


def _state(home: Path) -> None:
    unfinished = Unfinished(home, "level", "0" * 64, "a run")
    with unfinished.claimed({}):
        unfinished.save({}, {"a": torch.zeros(3)}, (0, 1))


WRITERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda home: Checkpoint.of(LAYER, level=0, epochs=0, level_digest="").save(home / "a.safetensors"),
    "signed mask": lambda home: SignedMask.of(PARAMS, Mask.dense(PARAMS, ["weight"])).save(home / "a.safetensors", {}),
    "correct images": lambda home: save_correct(home / "a.safetensors", {"test": torch.ones(5, dtype=torch.bool)}),
    "state": _state,
    "prepared data": lambda home: prepare("digits", home),
}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("writer", WRITERS)
def test_tensor_files_have_the_permissions_of_the_umask(tmp_path: Path, writer: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path)
    finally:
        os.umask(before)
    files = list(tmp_path.rglob("*.safetensors"))
    assert files and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.long
def test_mlflows_copy_has_them_too(tmp_path: Path) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    WRITERS["checkpoint"](tmp_path)
    LocalArtifactRepository(str(tmp_path / "artifacts")).log_artifact(str(tmp_path / "a.safetensors"))
    modes = {path.stat().st_mode for path in tmp_path.rglob("a.safetensors")}
    assert len(modes) == 1 and len(list(tmp_path.rglob("a.safetensors"))) == 2


def test_the_bytes_are_those_of_save_file(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5), "c": torch.zeros(0, dtype=torch.uint8)}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for theirs, content in ((save_file, tensors), (numpy_save_file, arrays)):
        theirs(content, tmp_path / "theirs", {"key": "text"})
        write_tensors(tmp_path / "ours", content, {"key": "text"})
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_that_others_link_to_is_replaced_and_not_overwritten(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": np.zeros(2)})
    os.link(tmp_path / "a", tmp_path / "copy")
    before = (tmp_path / "copy").read_bytes()
    write_tensors(tmp_path / "a", {"a": np.ones(2)}, durable=True)
    assert (tmp_path / "copy").read_bytes() == before != (tmp_path / "a").read_bytes()


def test_no_module_writes_tensors_in_another_way() -> None:
    """`save_file` creates files that only their owner can read."""
    paths = [*(REPOSITORY / "harness").rglob("*.py"), *REPOSITORY.glob("recipes/*.py")]
    names = {
        path.name: {word for node in ast.walk(ast.parse(path.read_text())) for word in _used(node)} for path in paths
    }
    assert any("write_tensors" in words for words in names.values())
    assert [name for name, words in names.items() if words & {"save_file", "save_model"}] == []


def _used(node: ast.AST) -> list[str]:
    """Return the names that a node of the syntax tree imports or reads."""
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names]
    return [node.attr] if isinstance(node, ast.Attribute) else [node.id] if isinstance(node, ast.Name) else []


def test_a_bounded_read_refuses_large_and_special_files(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_bounded(tmp_path / "large", 5) == b"12345"
    for path, message in (("large", "has 5 bytes; at most 4"), ("pipe", "not a regular"), (".", "not a regular")):
        with pytest.raises(ValueError, match=message):
            read_bounded(tmp_path / path, 4)
