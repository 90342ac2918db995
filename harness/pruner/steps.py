"""The optimizer steps of one level in somebody else's training loop: α, masks, and checks of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.common.seeds import SgdNoise
from harness.common.tensors import listed
from harness.masks import Mask
from harness.masks.keeping import hooked_optimizer
from harness.pruning import ForwardView, Method, NormState, TrainingHook
from harness.training.loop import Remask

ENDLESS = 2**62
"""Steps per epoch of a loop without epochs."""
_FIRST_ALPHAS = 1024


@dataclass(frozen=True)
class Psi:
    """ψ of the network in training and ψ_init on the CPU, in the same order."""

    params: list[torch.nn.Parameter]
    initial: list[torch.Tensor]


class LevelSteps:
    """The steps of one level.

    A step begins with the first `block` after an optimizer step, or after its gradients were cleared. Further blocks
    before the optimizer step are micro-batches of the same step, and see the same α.
    """

    def __init__(
        self,
        params: Mapping[str, torch.nn.Parameter],
        psi: Psi,
        mask: Mask,
        method: Method,
        noise: SgdNoise,
        hook: TrainingHook | None,
        done: int,
        steps_per_epoch: int | None,
    ) -> None:
        self.params, self.psi, self.mask, self.method = dict(params), psi, mask, method
        self.noise, self.hook, self.done = noise, hook, done
        """`done` is the number of finished steps, counted from the method's first step in the schedule."""
        self.steps_per_epoch = steps_per_epoch or ENDLESS
        self.inside = self.over = False
        self._opened: AbstractContextManager[None] | None = None  # by `begin`
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._held: set[int] = set()
        self._blocks, self._stepped_at = 0, dict[int, int]()
        self._begun = self._updated = self._updating = False
        self._versions: dict[str, int] = {}
        # Gradients as the last block left them: parameter, gradient, its version, and its value before the view ended.
        self._left: list[tuple[torch.nn.Parameter, torch.Tensor, int, torch.Tensor]] = []
        trained = [param for param in self.params.values() if param.requires_grad]
        self._watched = psi.params or sorted(trained, key=torch.Tensor.numel)[:1]
        self._alphas, self._alpha_epoch = np.empty(0), -1
        self._view: tuple[Any, ForwardView] | None = None
        self._remask: tuple[Any, Remask] | None = None

    # ---- optimizers

    def attach(self, optimizers: Sequence[Any]) -> list[torch.optim.Optimizer]:
        """Mask the weights after each step of the optimizers, and return those that have the hooks."""
        # Phase: check that the optimizers hold this network.
        inner = [hooked_optimizer(optimizer, "pruner.attach") for optimizer in optimizers]
        held = {id(param) for one in inner for group in one.param_groups for param in group["params"]}
        if self._handles:
            raise RuntimeError(
                "this level has an optimizer already; give all optimizers in one call: pruner.attach(first, second)"
            )
        if not any(id(param) in held for param in self.params.values()):
            raise ValueError(
                "the optimizer holds no parameter of the network that SignPruner was created with; create the "
                "optimizer from that network's parameters, or a SignPruner for the new network"
            )
        lacking = [n for n in self.mask.tensors if self.params[n].requires_grad and id(self.params[n]) not in held]
        if lacking:
            raise ValueError(
                f"the optimizer lacks the prunable weights {listed(lacking)}; give all optimizers of the network in "
                "one call: pruner.attach(first, second)"
            )

        # Phase: register the hooks.
        self._held = held
        for one in inner:
            self._handles.append(one.register_step_pre_hook(self._before_update))
            self._handles.append(one.register_step_post_hook(self._after_update))
        return inner

    def detach(self) -> None:
        """Remove the hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # A closure of a framework, such as Lightning's, may end a block that begin() opened. See _after_update.
        closure = any(given is not None for given in (*args[1:], *kwargs.values()))  # args[0] is the optimizer
        if self.inside and not (self._opened is not None and closure):
            raise RuntimeError(
                "optimizer.step() was called inside pruner.step(), where ψ has temporary values; call it after the "
                "block. If it takes a closure, put the block into the closure"
            )
        self._updating = True

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Zero the pruned weights, and note that the step is done."""
        self._updating = False
        if self.inside:
            raise RuntimeError(
                "the optimizer changed the weights before pruner.end_step(), while ψ had temporary values; call it "
                "after the backward pass, and begin the search again"
            )
        self._masks().params_()
        if self.over:  # the masks stay after the last level
            return
        if self._stepped_at.get(id(optimizer), 0) == self._blocks:
            raise RuntimeError(
                "optimizer.step() without pruner.step() before it; put the forward and backward passes of each step "
                "into `with pruner.step():`"
            )
        self._stepped_at[id(optimizer)] = self._blocks
        self._updated = True
        own = {id(param) for group in optimizer.param_groups for param in group["params"]}
        self._note_versions(
            name for name, param in self.params.items() if id(param) in own or name in self.mask.tensors
        )

    # ---- one step

    @contextmanager
    def block(self) -> Iterator[None]:
        """Surround forward and backward passes of one step, or of one of its micro-batches."""
        # Phase: check the loop, and decide whether a new step begins.
        if not self._handles:
            raise RuntimeError(
                "no optimizer is attached in this level; begin the level with optimizer = pruner.attach(optimizer)"
            )
        if self.inside:
            raise RuntimeError("pruner.step() is called inside another pruner.step(); end that block first")
        if not self._updating:  # between the evaluations of a closure, the optimizer changes weights
            self.check()
        goes_on = self._begun and not self._updated and self._gradients_are_as_left()
        if goes_on:
            # The view scales gradients once. So give it the unscaled sum over the earlier micro-batches.
            with torch.no_grad():
                for _, grad, _, total in self._left:
                    grad.copy_(total)
        elif self._updated or not self._updating:
            self.settle()
        self._begun, self._blocks = True, self._blocks + 1

        # Phase: run the block under the method's view.
        self.inside = True
        unscaled: dict[int, torch.Tensor] = {}
        try:
            with self._forward_view()(self._alpha()):
                yield
                unscaled = {id(param): param.grad.clone() for param in self._watched if param.grad is not None}
        finally:
            self.inside = False
            self._note_versions(self.params)

        # Phase: zero the gradients of pruned weights, so that clipping uses the norm of the sparse network.
        self._masks().grads_()
        self._left = [
            (param, param.grad, param.grad._version, unscaled[id(param)])
            for param in self._watched
            if param.grad is not None
        ]

    def begin(self) -> None:
        """Enter a block that `end` leaves, for loops that only have callbacks."""
        opened = self.block()
        opened.__enter__()
        self._opened = opened

    def end(self) -> None:
        """Leave the block that `begin` entered."""
        if self._opened is None:
            raise RuntimeError(
                "pruner.end_step() without pruner.begin_step() before it; call begin_step before the forward pass and "
                "end_step after the backward pass, once each"
            )
        opened, self._opened = self._opened, None
        opened.__exit__(None, None, None)

    def settle(self) -> None:
        """Count the last step, if one has begun, and call the method's hook."""
        if not self._begun:
            return
        epoch, position = divmod(self.done, self.steps_per_epoch)
        if self.hook is not None:
            self.hook.after_step(epoch, position + 1)
        self.done += 1
        self._begun = self._updated = False
        self._left = []

    def settle_if_over(self) -> None:
        """Count the last step unless it waits for more micro-batches."""
        if self._updated or not self._gradients_are_as_left():
            self.settle()

    def go_back(self, done: int) -> None:
        """Continue after `done` steps. The caller has restored weights and optimizers."""
        self.done, self._begun, self._updated, self._left = done, False, False, []
        self._versions = {}

    def _gradients_are_as_left(self) -> bool:
        """Return whether gradients were neither cleared nor changed since the last block."""
        return bool(self._left) and all(
            param.grad is grad and grad._version == version for param, grad, version, _ in self._left
        )

    def _alpha(self) -> float:
        epoch, position = divmod(self.done, self.steps_per_epoch)
        if epoch != self._alpha_epoch or position >= len(self._alphas):
            # Longer draws begin with the same values.
            wanted = min(self.steps_per_epoch, max(_FIRST_ALPHAS, 2 * (position + 1)))
            self._alphas, self._alpha_epoch = self.noise.alphas(epoch, wanted), epoch
        return float(self._alphas[position])

    def _forward_view(self) -> ForwardView:
        """Return the method's view. It is built again after the network moved or changed its dtype."""
        key = [(param.device, param.dtype) for param in self.psi.params]
        if self._view is None or self._view[0] != key:
            initial = [
                value.to(param.device, param.dtype)
                for param, value in zip(self.psi.params, self.psi.initial, strict=True)
            ]
            self._view = key, self.method.view(NormState(list(self.psi.params), initial))
        return self._view[1]

    def _masks(self) -> Remask:
        """Return the masks beside the weights. They are built again after the network moved or changed its dtype."""
        key = [(self.params[name].device, self.params[name].dtype) for name in self.mask.tensors]
        if self._remask is None or self._remask[0] != key:
            self._remask = key, Remask(self.params, self.mask)
        return self._remask[1]

    # ---- changes from outside

    def check(self) -> None:
        """Raise RuntimeError if the network changed outside the blocks and the attached optimizers.

        Without a change, this compares version counters only, and does not wait for the device.
        """
        if not self._versions:  # the first block of a level, or after a restored state
            self._check_pruned(self.mask.tensors)
            return
        changed = [name for name, version in self._versions.items() if self.params[name]._version != version]
        foreign = [name for name in changed if id(self.params[name]) not in self._held]
        if foreign:
            raise RuntimeError(
                f"{listed(foreign)} changed, but no attached optimizer holds it; give all optimizers of the network in "
                "one call: pruner.attach(first, second)"
            )
        self._check_pruned(name for name in changed if name in self.mask.tensors)

    def _check_pruned(self, names: Iterable[str]) -> None:
        alive = []
        for name in names:
            param, kept = self.params[name].detach(), self.mask.tensors[name]
            # NaN is not > 0: a diverged training has another message
            if bool((param.masked_fill(kept.to(param.device), 0).abs() > 0).any()):
                alive.append(name)
        if alive:
            raise RuntimeError(
                f"pruned weights of {listed(alive)} are not 0, so they were changed outside pruner.step() and the "
                "attached optimizers; after model.load_state_dict call pruner.load_state_dict with the state of the "
                "same step, or call pruner.sync() to set them to 0 again"
            )

    def sync(self) -> None:
        """Zero the pruned weights, and accept all other values of the network."""
        self._masks().params_()
        self._versions = {}

    def _note_versions(self, names: Iterable[str]) -> None:
        self._versions.update({name: self.params[name]._version for name in names})
