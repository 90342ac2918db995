"""Keep pruned weights at 0 after each step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from harness.common.tensors import listed


class KeptSparse:
    """Handle of `SignedMask.keep`. `remove` ends it, and so does the end of a `with` block."""

    def __init__(self, handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
        self._handles = tuple(handles)

    def remove(self) -> None:
        """Stop masking. The weights stay as they are."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> KeptSparse:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def hooked_optimizer(optimizer: Any, taker: str) -> torch.optim.Optimizer:
    """Return the optimizer whose step hooks run: the given one, or the one that it wraps.

    Args:
        optimizer: An optimizer of torch, or a wrapper such as Accelerate's.
        taker: The caller's name, for the message.

    Raises:
        TypeError: The argument is not an optimizer.
    """
    # Unwrap: a wrapper such as AcceleratedOptimizer has no hooks of its own. It calls the inner optimizer's step.
    # A wrapper with hooks, such as Lookahead, may change parameters after the inner step, so it keeps the hook.
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{taker} takes an optimizer of torch or one that wraps it, got {type(optimizer)}")
    return optimizer


def check_held(params: Mapping[str, torch.Tensor], optimizers: Sequence[torch.optim.Optimizer], *, known: bool) -> None:
    """Raise ValueError unless the optimizers together hold all masked weights that are trained.

    Args:
        params: The masked weights by name.
        optimizers: The optimizers.
        known: Whether the user gave the network.
    """
    held = {id(param) for one in optimizers for group in one.param_groups for param in group["params"]}
    if not any(id(param) in held for param in params.values()):
        whose = "the given network" if known else "the model this signed mask was applied to"
        raise ValueError(
            f"the optimizer holds no masked parameter of {whose}; create it from that network's parameters, and call "
            "mask.keep(optimizer, model) with both"
        )
    if lacking := [name for name, param in params.items() if param.requires_grad and id(param) not in held]:
        raise ValueError(
            f"the optimizer lacks the masked weights {listed(lacking)}; give all optimizers of the network: "
            "mask.keep([first, second], model). Weights with requires_grad=False need none"
        )


def remasking(kept: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., None]:
    """Return a step hook that masks parameters, given with their masks."""
    # Convert the masks once. The hook then needs a single fused multiplication.
    params = [param for param, _ in kept]
    masks = [mask.to(param.device, param.dtype) for param, mask in kept]

    def remask(*_: Any) -> None:
        for index, param in enumerate(params):  # prepare() or half() may have moved the parameters since
            if masks[index].device != param.device or masks[index].dtype != param.dtype:
                masks[index] = kept[index][1].to(param.device, param.dtype)
        if params:
            with torch.no_grad():
                torch._foreach_mul_(params, masks)

    return remask
