"""Test the table of layers against counts by hand."""

import torch

from harness.masks import Mask
from harness.runs.run import layer_table


def test_rows_count_what_is_kept_flipped_and_positive() -> None:
    params = {"a": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "gone": torch.zeros(3)}
    start = {"a": torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), "gone": torch.ones(3)}
    mask = Mask({"a": torch.tensor([[True, True], [False, True]]), "gone": torch.zeros(3, dtype=torch.bool)})
    table = layer_table(params, start, mask)
    assert table["columns"] == ["layer", "shape", "weights", "kept", "density", "flipped_signs", "positive"]
    assert table["data"] == [["a", "2×2", 4, 3, 0.75, 2 / 3, 2 / 3], ["gone", "3", 3, 0, 0.0, None, None]]
