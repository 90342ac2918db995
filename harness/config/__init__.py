"""Settings of runs, as frozen dataclasses. Every default is defined once, here.

`harness.experiment.describe` chooses the settings that enter a run's key. Paths, worker counts and logging never do.
This package does not import torch.
"""

from harness.config.parts import (
    CompileMode,
    DataConfig,
    LrSchedule,
    MatmulPrecision,
    ModelConfig,
    NetworkKind,
    OptimConfig,
    Precision,
    Schedule,
    known,
)
from harness.config.redrawn import INITIAL_WEIGHTS, REDRAWN, drawn_before
from harness.config.search import (
    NETWORKS_OWN,
    AlphaDistribution,
    CountRule,
    GemMinerConfig,
    Order,
    RewindUnit,
    SaveUnit,
    Scope,
    SearchConfig,
    count_rules_differ,
    search_from_json,
    to_json,
)
from harness.config.ticket import ComparisonConfig, Kind, SignsTaken, TicketConfig, UnprunedSigns

__all__ = [
    "INITIAL_WEIGHTS",
    "NETWORKS_OWN",
    "REDRAWN",
    "AlphaDistribution",
    "ComparisonConfig",
    "CompileMode",
    "CountRule",
    "DataConfig",
    "GemMinerConfig",
    "Kind",
    "LrSchedule",
    "MatmulPrecision",
    "ModelConfig",
    "NetworkKind",
    "OptimConfig",
    "Order",
    "Precision",
    "RewindUnit",
    "SaveUnit",
    "Schedule",
    "Scope",
    "SearchConfig",
    "SignsTaken",
    "TicketConfig",
    "UnprunedSigns",
    "count_rules_differ",
    "drawn_before",
    "known",
    "search_from_json",
    "to_json",
]
