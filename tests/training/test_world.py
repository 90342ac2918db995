"""Launches whose numbers could not be trusted are refused by name."""

import pytest

from harness.training.world import World


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_launches_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match="not supported"):
        World("no")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision 'fp8' is not supported"):
        World("fp8")


def test_a_world_that_fell_apart_is_refused(monkeypatch):
    from harness.training.world import _check_world

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="asked for 2 processes"):
        _check_world(1)
