"""Optimizers by name, new for every training."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from harness.config import OptimConfig

OPTIMIZERS = ("sgd", "adam")


def build_optimizer(params: Iterable[torch.nn.Parameter], config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Return a fresh optimizer; weight decay is coupled L2 on all parameters (paper, section 4.1)."""
    if config.name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {config.name!r}; known: {', '.join(OPTIMIZERS)}")
    if config.name == "sgd":
        return torch.optim.SGD(
            params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.Adam(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused)
