"""Pruning methods. Each method has one file in this package and one entry in METHODS."""

from harness.pruning.aws import AWS
from harness.pruning.aws_full import FullAWS
from harness.pruning.dense import Dense
from harness.pruning.gem_miner import GemMiner
from harness.pruning.imp import IMP
from harness.pruning.lrr import LRR
from harness.pruning.lrr_bn_rewind import RewoundNormLRR
from harness.pruning.lrr_full import FullLRR
from harness.pruning.magnitude import PruningSchedule, keep_largest, prune, prune_to
from harness.pruning.magnitude_increase import MagnitudeIncrease
from harness.pruning.method import ForwardView, LevelContext, Method, NormState, StartPoint, TrainingHook
from harness.pruning.random import RandomPruning
from harness.pruning.snip import SNIP
from harness.pruning.synflow import SynFlow
from harness.pruning.wr import WeightRewinding

METHODS: dict[str, Method] = {
    "aws": AWS(),
    "aws_full": FullAWS(),
    "lrr": LRR(),
    "lrr_full": FullLRR(),
    "lrr_bn_rewind": RewoundNormLRR(),
    "imp": IMP(),
    "wr": WeightRewinding(),
    "random": RandomPruning(),
    "dense": Dense(),
    "gem_miner": GemMiner(),
    "magnitude_increase": MagnitudeIncrease(),
    "snip": SNIP(),
    "synflow": SynFlow(),
}

__all__ = [
    "METHODS",
    "ForwardView",
    "LevelContext",
    "Method",
    "NormState",
    "PruningSchedule",
    "StartPoint",
    "TrainingHook",
    "keep_largest",
    "prune",
    "prune_to",
]
