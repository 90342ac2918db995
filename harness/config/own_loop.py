"""The settings of a search in a user's own training loop (`harness.SignPruner`), as pruning methods read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config.parts import DataConfig, ModelConfig, OptimConfig, Schedule
from harness.config.search import SearchConfig

OWN_LOOP = "own_loop"
"""Entry of a record's config that marks a run of a user's own loop, and value of its tag `made_by`."""
_UNBOUNDED = 2**31
"""Epochs of a full training, whose length the user's loop decides."""


def own_loop_search(settings: Mapping[str, Any], levels: Mapping[str, Any]) -> SearchConfig:
    """Return the search that SignPruner makes. Data, network, optimizer and schedule are unknown.

    Args:
        settings: Arguments of SignPruner.
        levels: `densities`, or `num_levels` and `pruning_fraction`. Empty: one pruning, to check the settings.

    Raises:
        ValueError: Options contradict each other.
    """
    # JSON gives lists, and steps_per_epoch is no setting of a search.
    known = {name: value for name, value in levels.items() if name != "steps_per_epoch" and value is not None}
    if "densities" in known:
        known["densities"] = tuple(known["densities"])
    return SearchConfig(
        DataConfig("own"),
        ModelConfig("own"),
        OptimConfig(),
        Schedule(_UNBOUNDED, "constant"),
        warmup_epochs=1,
        level_epochs=1,
        global_batch_size=1,
        method=settings["method"],
        alpha=settings["alpha"],
        pruning_scope=settings["pruning_scope"],
        sgd_seed=settings["seed"],
        rewind_to=settings["rewind_steps"] or 0,
        rewind_unit="steps",
        **{"num_levels": 1} | known,
    )
