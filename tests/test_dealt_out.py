"""Test how tests are distributed over workers: none is lost, and long modules run first on each worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import dealt_out


def item(module: str, number: int, *, long: bool = False) -> Any:
    return SimpleNamespace(
        path=Path(module), number=number, get_closest_marker=lambda name: "mark" if long and name == "long" else None
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_test_is_assigned_once_and_modules_stay_together(workers: int):
    items = [item(f"test_{module}.py", number, long=module < 4) for module in range(10) for number in range(3)]
    dealt = dealt_out(items, workers)
    assert sorted(map(id, dealt)) == sorted(map(id, items))
    places = [index for index, one in enumerate(dealt) if one.number == 0]
    assert all([one.path for one in dealt[place : place + 3]] == 3 * [dealt[place].path] for place in places)


def test_each_share_begins_with_long_modules():
    items = [item(f"test_{module}.py", number, long=module >= 6) for module in range(8) for number in range(2)]
    dealt = [int(one.path.stem.removeprefix("test_")) for one in dealt_out(items, 2)]
    assert {dealt[0], dealt[8]} == {6, 7} and max(dealt[2:8] + dealt[10:]) < 6
