"""Test the files that record which images were classified correctly: round trip and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.common.tensors import CORRECT_FORMAT, METADATA_KEY, load_correct, save_correct


def bits(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(math.prod(shape))) < 0.7


@pytest.mark.parametrize("num_images", [1, 7, 8, 9, 500, 1001])
def test_one_bit_per_image_survives_a_round_trip(tmp_path: Path, num_images: int) -> None:
    path = tmp_path / "correct.safetensors"
    correct = {"test": bits(num_images), "points": bits(3, num_images), "turned": bits(num_images, 2).T}
    save_correct(path, correct)
    found = load_correct(path)
    assert found.keys() == correct.keys()
    for name, tensor in correct.items():
        assert found[name].dtype == torch.bool and torch.equal(found[name], tensor)
    packed = load_file(path)
    assert packed["points"].shape == (3, math.ceil(num_images / 8))
    assert packed["test"].numpy().tobytes() == np.packbits(correct["test"].numpy()).tobytes()
    first = path.read_bytes()
    save_correct(path, dict(reversed(correct.items())))
    assert path.read_bytes() == first, "equal contents must give equal bytes"


@pytest.mark.parametrize(
    "correct",
    [
        {},
        {"a": bits(0)},
        {"a": bits(8), "b": bits(9)},
        {"a": bits(8), "b": bits(2, 9)},
        {"a": bits(2, 2, 8)},
        {"a": torch.tensor(True)},
        {"a": torch.ones(8, dtype=torch.uint8)},
    ],
)
def test_invalid_tensors_are_not_written(tmp_path: Path, correct: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="correct.safetensors"):
        save_correct(tmp_path / "correct.safetensors", correct)
    assert not list(tmp_path.iterdir())


def _written(
    tensors: dict[str, torch.Tensor], num_images: object, form: str = CORRECT_FORMAT
) -> Callable[[Path], None]:
    header = {METADATA_KEY: json.dumps({"format": form, "num_images": num_images})}
    return lambda path: save_file(tensors, path, header)


PACKED = torch.full((2,), 0b11100000, dtype=torch.uint8)  # fits 11 to 16 images
FOREIGN: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]) and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "no header": lambda path: save_file({"test": PACKED}, path),
    "another format": _written({"test": PACKED}, 11, "harness.signed_mask/1"),
    "no number of images": _written({"test": PACKED}, None),
    "a number as text": _written({"test": PACKED}, "11"),
    "a Boolean as number of images": _written({"test": PACKED[:1]}, True),
    "no images": _written({"test": PACKED[:0]}, 0),
    "no evaluations": _written({}, 11),
    "too few bits": _written({"test": PACKED}, 17),
    "too many bits": _written({"test": PACKED}, 8),
    "far too few": _written({"test": PACKED}, 10**15),
    "bits after the last image": _written({"test": PACKED}, 10),
    "another dtype": _written({"test": PACKED.to(torch.int8)}, 11),
    "three dimensions": _written({"test": PACKED.reshape(1, 1, 2)}, 11),
    "a single number": _written({"test": PACKED[0].clone()}, 1),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_an_invalid_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "correct.safetensors"
    save_correct(path, {"test": bits(11)})
    FOREIGN[fault](path)
    with pytest.raises(ValueError) as caught:
        load_correct(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_valid_file_is_read_and_a_missing_file_is_named(tmp_path: Path) -> None:
    """Check that the file of the fault cases is valid before a fault.

    Otherwise they could be refused for another reason. Also check the error for a missing file.
    """
    path = tmp_path / "correct.safetensors"
    _written({"test": PACKED}, 11)(path)
    assert load_correct(path)["test"].sum() == 6
    with pytest.raises(FileNotFoundError, match="no file of correct images at"):
        load_correct(tmp_path / "nowhere")
