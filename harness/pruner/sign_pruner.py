"""SignPruner: the pruning methods inside any training loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.common.program import command
from harness.common.shown import count, few_names
from harness.common.tensors import check_fits, listed, own_names
from harness.config import SearchConfig, known
from harness.config.own_loop import own_loop_search
from harness.config.search import AlphaDistribution, Scope
from harness.lineage.nodes.record import Parent
from harness.masks import Mask, SignedMask
from harness.models.partition import ParamPartition
from harness.pruner import arguments, logged
from harness.pruner.ranking import Batches, Loss, listed_batches, mean_gradients
from harness.pruner.state import SavedSearch
from harness.pruner.steps import ENDLESS, Block, LevelSteps, Psi
from harness.pruning import METHODS, LevelContext
from harness.pruning.method import NotHereError

_NEW, _TRAINING, _LEFT, _FINISHED = "new", "training", "left", "finished"


@dataclass(frozen=True)
class Level:
    """One level of a search, as `SignPruner.levels` yields it."""

    number: int
    """t. Level 0 is dense."""
    last: int
    """T, the number of the last level."""
    mask: Mask
    """mₜ."""
    begin_steps: int
    """Step at which learning-rate schedule and data order begin. It is 0 except for methods that rewind to step k."""
    steps_done: int
    """Steps that are done already. It exceeds `begin_steps` only in the first level after `load_state_dict`."""
    seed: int
    """Seed for the data order of the level. Methods that rewind the data order have one seed for all levels."""

    @property
    def density(self) -> float:
        """Return the kept share of the prunable weights, 0..1."""
        return self.mask.density

    def __str__(self) -> str:
        """Return number and density."""
        return f"level {self.number} of {self.last}, density {self.density:.3f}"

    def __repr__(self) -> str:
        """Return three lines: number and counts, steps, and the masked tensors."""
        mask = self.mask
        return (
            f"Level: {self.number} of {self.last}, {mask.num_remaining:,} of {mask.numel:,} weights kept "
            f"(density {mask.density:.3f})\n"
            f"  begin_steps {self.begin_steps}, steps_done {self.steps_done}, seed {self.seed}\n"
            f"  {count(len(mask), 'masked tensor')}: {few_names(mask)}"
        )


@dataclass(frozen=True)
class _Plan:
    """The levels that the user asked for."""

    config: SearchConfig
    steps_per_epoch: int | None
    numbers: list[int]
    """Numbers of the levels that the user trains, ascending."""

    @property
    def recorded(self) -> dict[str, Any]:
        config = self.config
        densities = None if config.densities is None else list(config.densities)
        fraction = config.pruning_fraction if densities is None else None
        return {
            "densities": densities,
            "num_levels": config.num_levels,
            "pruning_fraction": fraction,
            "steps_per_epoch": self.steps_per_epoch,
        }


class SignPruner:
    """Find a signed mask in your own training loop, with any method but Gem-Miner.

    It keeps θ_init, partitions the parameters, prunes between levels, draws AWS's α for each step, and keeps pruned
    weights at 0. Network, data, loss, optimizer and schedule are yours. At equal batches and seeds, weights, masks and
    α have the same bits as in the recipes. See docs/python.md for what it works with.

    A level trains as long as your loop does. The paper's levels of aws and lrr are short, with a constant learning
    rate. Levels of aws_full, lrr_full, imp, wr, magnitude_increase, snip and synflow are full trainings with a decaying
    learning rate. snip and synflow prune before training, so their first level is level 1.

    Args:
        model: The network at θ_init. It may be wrapped by DDP, DataParallel or torch.compile, now or later.
        method: A pruning method (docs/methods.md).
        classifier: Dotted name of the classifier's module, which is never pruned. A list for several.
        seed: Seed of α, of random masks and of `Level.seed`.
        alpha: Distribution of AWS's α: uniform, zero, bernoulli or half_to_one.
        pruning_scope: "global" compares weights across layers. "layer" prunes the same share of each layer.
        rewind_steps: wr only: k, the step of level 0 to which weights rewind.

    Raises:
        ValueError: The method or the classifier is unknown, options contradict the method, or the network has no
            prunable weights.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> images, labels = torch.randn(16, 4), torch.randint(2, (16,))
        >>> pruner = harness.SignPruner(model, method="aws", classifier="2", seed=1)
        >>> for level in pruner.levels(densities=[0.8, 0.5]):
        ...     optimizer = pruner.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        ...     for _ in range(3):
        ...         with pruner.step():
        ...             torch.nn.functional.cross_entropy(model(images), labels).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> pruner.signed_mask().density
        0.5
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "aws",
        *,
        classifier: str | Sequence[str],
        seed: int = 1,
        alpha: AlphaDistribution = "uniform",
        pruning_scope: Scope = "global",
        rewind_steps: int | None = None,
    ) -> None:
        # Phase: check the options.
        arguments.check_network(model)
        classifier, seed = arguments.module_names(classifier), arguments.whole_number("seed", seed)
        if rewind_steps is not None:
            rewind_steps = arguments.whole_number("rewind_steps", rewind_steps, 0)
        self._method = METHODS[known("method", method, list(METHODS))]
        if self._method.searches_one_density:
            raise ValueError(
                f"{method} trains scores of its own instead of weights; use the recipes, e.g. "
                f"{command(f'search aws_digits --method {method}')}"
            )
        self._settings: dict[str, Any] = {
            "method": method,
            "classifier": classifier,
            "seed": seed,
            "alpha": alpha,
            "pruning_scope": pruning_scope,
            "rewind_steps": rewind_steps,
        }
        known("alpha", alpha, get_args(AlphaDistribution))
        known("pruning_scope", pruning_scope, get_args(Scope))
        config = own_loop_search(self._settings, {})
        self._method.check(config)
        uses_k = "rewind_steps" in self._method.determinants(config, ENDLESS)
        if uses_k != (rewind_steps is not None):
            raise ValueError(
                f"method {method} rewinds weights to step k of level 0; give rewind_steps=k"
                if uses_k
                else f"method {method} does not rewind to a step; remove rewind_steps"
            )

        # Phase: partition the parameters by their names without wrappers, and keep θ_init.
        self._core = _unwrapped(model)
        self._params = _own_parameters(self._core)
        if sharded := [name for name, param in self._params.items() if hasattr(param, "full_tensor")]:
            raise ValueError(f"{listed(sharded)} are sharded over processes (FSDP); SignPruner takes DDP instead")
        partition = ParamPartition.of(self._core, [_module_name(self._core, name) for name in classifier.split(",")])
        self._norm = frozenset(own_names(self._core, partition.norm).values())
        prunable = sorted(own_names(self._core, partition.prunable).values())
        if not prunable:
            raise ValueError(f"{type(self._core).__name__} has no prunable weights besides its classifier {classifier}")
        self._theta_init = self._snapshot()
        self._mask = Mask.dense(self._theta_init.params, prunable)

        # Phase: nothing is trained yet.
        self._status, self._number = _NEW, 0
        self._plan: _Plan | None = None
        self._restored, self._restored_steps = dict[str, Any](), 0
        self._training: LevelSteps | None = None
        self._begin_steps = 0
        self._networks: dict[str, Checkpoint] = {}
        self._importance: dict[str, Checkpoint] = {}
        self._start_digest = ""
        self._logged: dict[str, Any] = {}
        self._hook_state: dict[str, torch.Tensor] = {}
        self._earlier: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    # ---- the loop

    def levels(
        self,
        densities: Sequence[float] | None = None,
        *,
        num_levels: int | None = None,
        pruning_fraction: float | None = None,
        steps_per_epoch: int | None = None,
        batches: Batches | Callable[[], Batches] | None = None,
        loss: Loss = F.cross_entropy,
    ) -> Iterator[Level]:
        """Yield the levels to train. Each starts from the state that the method defines, already in the network.

        The first is level 0, which is dense. After `load_state_dict`, the first is the interrupted level, and the
        network is left as it is.

        Args:
            densities: Kept share of the prunable weights at level 1, 2, …, falling. One density prunes once.
            num_levels: Number of prunings, in place of densities.
            pruning_fraction: With num_levels: share of the remaining weights that each pruning removes. Default: 0.2.
            steps_per_epoch: Steps in an epoch. Only for α equal to a recipe's: it then begins a new stream each epoch.
            batches: snip and synflow: (images, labels) to rank the weights by, or a function that returns them.
            loss: snip: takes outputs and labels, and returns the mean loss.

        Raises:
            RuntimeError: levels() was called before.
            ValueError: The densities do not fall, keep no weight, or contradict the method.
        """
        # Phase: refuse a second search with the same object.
        if self._plan is not None:
            left = f": its loop was left in level {self._number}" if self._status == _LEFT else ""
            raise RuntimeError(
                f"levels() was called before{left}; create a new SignPruner, and give it pruner.state_dict() by "
                "load_state_dict to continue"
            )

        # Phase: check the levels.
        if (densities is None) == (num_levels is None):
            raise ValueError("give either densities=[0.8, 0.64, …] or num_levels=9")
        if densities is not None:
            if pruning_fraction is not None:
                raise ValueError("pruning_fraction belongs to num_levels; remove it, or give num_levels=9 alone")
            falling = arguments.falling_densities(densities)
            levels: dict[str, Any] = {"densities": falling, "num_levels": len(falling)}
        else:
            share = 0.2 if pruning_fraction is None else arguments.fraction("pruning_fraction", pruning_fraction)
            levels = {"num_levels": arguments.whole_number("num_levels", num_levels, 0), "pruning_fraction": share}
        if steps_per_epoch is not None:
            steps_per_epoch = arguments.whole_number("steps_per_epoch", steps_per_epoch, 1)
        config = own_loop_search(self._settings, levels)
        self._method.check(config)
        numbers = [n for n in range(config.num_levels + 1) if self._method.schedule(config, n).epochs]
        plan = _Plan(config, steps_per_epoch, numbers)
        self._check_counts(plan)
        if self._restored and self._restored != plan.recorded:
            raise ValueError(f"the restored search has the levels {self._restored}, not {plan.recorded}; give the same")

        # Phase: start. Nothing is computed before the loop asks for the first level.
        self._plan = plan
        return self._levels(plan, batches, loss)

    def _levels(self, plan: _Plan, batches: Batches | Callable[[], Batches] | None, loss: Loss) -> Iterator[Level]:
        restored = self._number if self._status == _TRAINING else None
        remaining = [n for n in plan.numbers if restored is None or n >= restored] if self._status != _FINISHED else []
        try:
            for number in remaining:
                # Phase: prune and rewind, unless this level was restored.
                steps = self._continued(plan, number) if number == restored else self._next(plan, number, batches, loss)
                self._training, self._status, self._number = steps, _TRAINING, number
                noise = self._method.noise(plan.config, number)
                last, seed = plan.numbers[-1], noise.key("loader") >> 1
                yield Level(number, last, self._mask, self._begin_steps, steps.done, seed)

                # Phase: the level is trained. Masks stay on its optimizer until the next one begins.
                self._finish(steps)
            if self._training is None:  # a finished search was restored, which can be logged
                self._training = self._continued(plan, self._number)
                self._training.over = True
            self._status = _FINISHED
        except GeneratorExit:
            if self._training is not None:
                self._end(self._training)
            self._status = _LEFT
            raise

    def attach(self, *optimizers: Any) -> Any:
        """Keep pruned weights at 0 after each step of the optimizers of this level.

        Args:
            optimizers: New optimizers, which together hold all prunable weights. Accelerate may have prepared them. One
                list of several is taken, too.

        Returns:
            The argument as it was given; a tuple of several.

        Raises:
            RuntimeError: No level is in training, or it has an optimizer already.
            TypeError: An argument is not an optimizer.
            ValueError: Prunable weights are missing, the optimizer belongs to another network, or it served an earlier
                level.
        """
        # Phase: register the hooks, which checks that the optimizers hold this network.
        steps = self._in_level("attach()")
        self._check_same_network()
        several = len(optimizers) == 1 and isinstance(optimizers[0], list | tuple)
        inner = steps.attach(optimizers[0] if several else optimizers)

        # Phase: refuse optimizers with the momentum of an earlier level.
        if any(one in self._earlier and one.state for one in inner):
            steps.detach()
            raise ValueError(
                "the optimizer served an earlier level and keeps its momentum; create a new optimizer for each level"
            )
        self._earlier.update(inner)
        return optimizers[0] if len(optimizers) == 1 else optimizers

    def step(self) -> AbstractContextManager[None]:
        """Return the context manager around forward and backward passes of one optimizer step.

        With gradient accumulation, surround all micro-batches together, or each one. Clip gradients and call
        optimizer.step() after it. A closure contains it.

        Raises:
            RuntimeError: No level is in training, no optimizer is attached, or the network changed outside the loop.
                The message tells what to do.
        """
        self._in_level("step()")  # the error comes from this line, also without a `with`
        return Block(lambda: self._in_level("step()").block())

    def begin_step(self) -> None:
        """Enter `step` without a with statement, in a callback that runs before the forward pass.

        Raises:
            RuntimeError: As in `step`.
        """
        self._in_level("begin_step()").begin()

    def end_step(self) -> None:
        """Leave the step that `begin_step` entered, in a callback that runs after the backward pass.

        Call it before gradients are clipped and before the optimizer changes the weights. Here ψ gets its values back,
        its gradients are multiplied by α, and the gradients of pruned weights become 0.

        Raises:
            RuntimeError: `begin_step` was not called.
        """
        self._in_level("end_step()").end()

    def sync(self) -> None:
        """Zero the pruned weights and accept all other values, after you changed the network yourself."""
        self._in_level("sync()").sync()

    def signed_mask(self) -> SignedMask:
        """Return the signs sign₀(θ ⊙ m) of the network as it is, with the mask of the current level.

        Call it after the loop for the ticket.

        Raises:
            RuntimeError: It is called inside `step`, where ψ has temporary values.
        """
        self._not_inside("signed_mask()")
        self._check_same_network()
        told = {name: self._settings[name] for name in ("method", "classifier")}
        metadata = {**told, "level": self._number, "density": self._mask.density}
        return replace(SignedMask.of(self._params, self._mask, self._norm), metadata=metadata)

    def log(
        self,
        *,
        name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        runs: Path | str = "runs",
    ) -> str:
        """Commit the network and signed mask of this level as a run of the lineage. Rank 0 writes it.

        Call it at the end of each level, or once after the loop. `load_signed_mask`, `load_checkpoint` and the tools
        take its key. `verify` proves files, digests, signs, and the mask and start of a level whose parent is logged,
        too. It cannot prove your training. `tickets lineage sync` delivers runs to MLflow.

        Args:
            name: Name of the network and data. Default: the class of the network.
            parameters: Settings of your loop, as JSON values. They are recorded and enter the key.
            metrics: Your results by name, such as {"test_error_percent": 8.1}.
            runs: Directory of local runs.

        Returns:
            The key of the run.

        Raises:
            RuntimeError: No level was trained, or it is called inside `step`.
            TypeError: Parameters or metrics are no dictionary, or a metric is no number.
            ValueError: Parameters are no JSON values, or a metric's name is not allowed.
        """
        # Phase: the search, which is the same for all levels.
        self._not_inside("log()")
        if self._training is None or self._plan is None:
            raise RuntimeError("pruner.log() before a level was trained; call it at the end of a level or of the loop")
        self._check_same_network()
        steps, number, directory = self._training, self._number, Path(runs)
        steps.settle_if_over()
        title = str(name or type(self._core).__name__)
        own_parameters = arguments.json_parameters(parameters)
        own = {"settings": self._settings, "levels": self._plan.recorded, "parameters": own_parameters}
        search, determined = logged.search_record(title, own, self._theta_init)
        if logged.is_writer():
            logged.commit_search(directory, search, determined, self._theta_init)

        # Phase: the level, made from the level before if that one is logged.
        earlier = [n for n in self._plan.numbers if n < number]
        before = self._logged.get("keys", {}).get(str(earlier[-1])) if earlier else None
        parent = Parent(search.key, "initialised-from")
        if before is not None and self._logged["root"] == search.key:
            parent = Parent(before, "pruned-from")
        network, signed_mask = self._snapshot(), self.signed_mask()
        record, determinants = logged.level_record(
            title,
            own,
            search.key,
            parent,
            number,
            network=network,
            signed_mask=signed_mask,
            start_digest=self._start_digest,
            steps=steps.done,
            metrics=metrics,
        )
        if logged.is_writer():
            further = dict(self._importance)
            if steps.hook is not None:
                made = steps.hook.networks(self._theta_init)
                further |= {file: self._named(one) for file, one in made.items() if one.params}
            logged.commit_level(directory, record, determinants, network, signed_mask, further)
        keys = self._logged.get("keys", {}) | {str(number): record.key}
        self._logged = {"root": search.key, "keys": keys, "level": number, "network": determinants["network"]}
        return record.key

    @property
    def mask(self) -> Mask:
        """Return the mask of the current level, on the CPU."""
        return self._mask

    @property
    def theta_init(self) -> Checkpoint:
        """Return θ_init and the buffers at that time, on the CPU."""
        return self._theta_init

    def __repr__(self) -> str:
        """Return three lines: progress, prunable weights, and the rest."""
        plan, mask, settings = self._plan, self._mask, self._settings
        level = f"level {self._number} of {plan.numbers[-1]}" if plan else f"level {self._number}"
        done = f", {self._training.done} steps" if self._training else ""
        tail = {_NEW: "not started", _FINISHED: "finished", _LEFT: f"left in {level}"}.get(self._status, level + done)
        return (
            f"SignPruner: method {settings['method']}, seed {settings['seed']}, {tail}\n"
            f"  prunable: {mask.numel:,} weights of {count(len(mask), 'tensor')}, {mask.num_remaining:,} kept "
            f"(density {mask.density:.3f})\n"
            f"  not pruned: {count(len(self._norm), 'norm tensor')} ψ, "
            f"{len(self._params) - len(self._norm) - len(mask.tensors)} others, classifier {settings['classifier']}"
        )

    # ---- resume

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of the search as tensors by name, without network and optimizer.

        Save those yourself at the same step. The tensors are copies on the CPU. One of them holds the settings as JSON
        text. `safetensors.torch.save_file(pruner.state_dict(), path)` writes the state without pickle.

        Raises:
            RuntimeError: It is called inside `step`.
        """
        self._not_inside("state_dict()")
        # A step that has ended is counted first. The hook of a level in training has a state of its own.
        steps, hook = self._training, self._hook_state
        if steps is not None and not steps.over:
            steps.settle_if_over()
            hook = steps.hook.state() if steps.hook else {}
        return SavedSearch(
            settings=self._settings,
            plan=self._plan.recorded if self._plan else self._restored,
            status=_TRAINING if self._status == _LEFT else self._status,
            level=self._number,
            steps=steps.done if steps else self._restored_steps,
            begin_steps=self._begin_steps,
            start_digest=self._start_digest,
            logged=self._logged,
            mask=self._mask,
            theta_init=self._theta_init,
            networks=self._networks | self._importance,
            hook=hook,
        ).tensors()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state that `state_dict` returned.

        Call it on a new SignPruner with the same arguments, before `levels`. Within the loop, it goes back to an
        earlier step of the same level. Restore network and optimizer yourself.

        Raises:
            RuntimeError: The search is at another level, or over.
            ValueError: The state has another format, other arguments or another network.
        """
        # Phase: check that the state belongs to this search.
        saved, settings = SavedSearch.of(state), self._settings
        if differing := [name for name, own in settings.items() if saved.settings.get(name) != own]:
            said = [f"{n} is {saved.settings.get(n)!r} there and {settings[n]!r} here" for n in differing]
            raise ValueError(f"the state is of another search: {listed(said)}; create SignPruner with its arguments")
        for given, own in (
            (saved.theta_init.state_dict, self._theta_init.state_dict),
            (saved.mask.tensors, self._mask.tensors),
        ):
            shapes, own_shapes = ({name: t.shape for name, t in one.items()} for one in (given, own))
            check_fits(shapes, own_shapes, "the state", exactly=True)

        # Phase: go back within the level in training, or take the whole state over.
        if self._plan is not None:
            if self._status == _NEW:
                raise RuntimeError("levels() was called before load_state_dict(); load the state first")
            steps = self._in_level("load_state_dict()")
            if saved.level != self._number or not saved.mask.equal(self._mask):
                raise RuntimeError(
                    f"the state is of level {saved.level}, and this loop is in level {self._number}; create a new "
                    "SignPruner, load the state, and begin the loop again"
                )
            steps.go_back(saved.steps)
            if steps.hook is not None:
                steps.hook.restore_(saved.hook)
            return
        self._status, self._number, self._restored = saved.status, saved.level, saved.plan
        self._begin_steps, self._restored_steps = saved.begin_steps, saved.steps
        self._theta_init, self._mask = saved.theta_init, saved.mask
        file = self._method.importance_file
        self._importance = {n: network for n, network in saved.networks.items() if n == file}
        self._networks = {n: network for n, network in saved.networks.items() if n != file}
        self._hook_state, self._start_digest, self._logged = saved.hook, saved.start_digest, saved.logged

    # ---- one level

    def _next(
        self, plan: _Plan, number: int, batches: Batches | Callable[[], Batches] | None, loss: Loss
    ) -> LevelSteps:
        """Prune, load the start of a level into the network, and return its steps."""
        # Phase: the next mask. An untrained level 0 leaves θ_init.
        self._check_same_network()
        if self._training is not None:
            self._training.detach()
        parent = self._snapshot() if self._training is not None else self._theta_init
        if self._logged.get("level") == self._number and self._logged["network"] != sha256_tensors(parent.params):
            raise RuntimeError(
                f"the network changed after pruner.log() in level {self._number}; call it at the end of a level"
            )
        ctx = self._context(plan, number, parent, batches, loss)
        pruning = self._method.pruning(plan.config) if number else None
        if pruning is not None:
            try:
                importance = self._method.importance(ctx)
            except NotHereError:
                raise ValueError(
                    f"method {self._settings['method']} ranks weights by training images (N, C, H, W); give "
                    "levels(…, batches=[(images, labels)])"
                ) from None
            ctx = replace(ctx, mask=pruning.next_mask(importance, self._mask, number))
            if self._method.importance_file:
                kept = Checkpoint(dict(importance), {}, number, 0, "")
                self._importance = {self._method.importance_file: kept}

        # Phase: load the start point.
        start = self._method.start(ctx)
        self._mask, self._begin_steps, self._start_digest = ctx.mask, start.begin_steps, start.digest
        Checkpoint(start.params, start.buffers, 0, 0, "").load_into_(self._core)
        for param in self._params.values():
            param.grad = None
        steps = self._steps(plan, ctx, start.begin_steps)
        steps.note_start()
        return steps

    def _continued(self, plan: _Plan, number: int) -> LevelSteps:
        """Return the steps of the level that load_state_dict restored."""
        steps = self._steps(plan, self._context(plan, number, self._theta_init, None, F.cross_entropy), 0)
        steps.done = self._restored_steps
        if steps.hook is not None:
            steps.hook.restore_(self._hook_state)
        return steps

    def _steps(self, plan: _Plan, ctx: LevelContext, done: int) -> LevelSteps:
        hook = self._method.training_hook(ctx)
        if hook is not None:
            hook.attach(self._core)
        norm = sorted(self._norm)
        psi = Psi([self._params[name] for name in norm], [self._theta_init.params[name] for name in norm])
        noise = self._method.noise(plan.config, ctx.level)
        return LevelSteps(self._params, psi, ctx.mask, self._method, noise, hook, done, plan.steps_per_epoch)

    def _finish(self, steps: LevelSteps) -> None:
        """Check the trained level, and keep the networks that its hook made."""
        # Phase: refuse a level that was trained without the pruner.
        self._not_inside("the end of a level")
        steps.check()
        changed = steps.changed_without_block()
        if changed and sha256_tensors(self._snapshot().params) != self._start_digest:
            raise RuntimeError(
                f"{listed(changed)} changed in level {self._number} without pruner.step(); begin the level with "
                "optimizer = pruner.attach(optimizer), and put the passes of each step into `with pruner.step():`. "
                "After you changed weights yourself, call pruner.sync()"
            )

        # Phase: end the level, and keep what the method needs later.
        self._end(steps)
        if steps.hook is None:
            return
        self._mask = steps.hook.finish(self._mask)
        self._networks |= {
            file: self._named(network) for file, network in steps.hook.networks(self._theta_init).items()
        }
        if any(network.params.keys() != self._params.keys() for network in self._networks.values()):
            raise ValueError(
                f"level {self._number} ended after {steps.done} steps, before step {self._settings['rewind_steps']} to "
                "which later levels rewind; train longer, or give a smaller rewind_steps"
            )

    def _end(self, steps: LevelSteps) -> None:
        """End a level, complete or not. Its optimizers keep pruned weights at 0."""
        steps.settle_if_over()
        steps.over = True
        self._hook_state = steps.hook.state() if steps.hook else {}

    def _context(
        self,
        plan: _Plan,
        number: int,
        parent: Checkpoint,
        batches: Batches | Callable[[], Batches] | None,
        loss: Loss,
    ) -> LevelContext:
        """Return the inputs of the method for one level."""
        config, core = plan.config, self._core

        # A first batch tells the shape of the images, and an iterator gives its batches only once.
        given = None if batches is None or number == 0 else listed_batches(batches)
        shape = tuple(given[0][0].shape[1:]) if given else ()
        return LevelContext(
            config,
            number,
            self._mask,
            self._norm,
            theta_init=self._theta_init,
            parent=parent,
            read=lambda name: self._networks[name],
            steps_per_epoch=plan.steps_per_epoch or ENDLESS,
            image_shape=shape if len(shape) == 3 else (0, 0, 0),
            new_model=(lambda: deepcopy(core).cpu().float()) if len(shape) == 3 else None,
            gradients=partial(mean_gradients, core, batches=given, loss=loss, sgd_seed=config.sgd_seed)
            if given
            else None,
        )

    # ---- checks

    def _check_counts(self, plan: _Plan) -> None:
        """Refuse levels that keep no weight, before the first training."""
        pruning, mask = self._method.pruning(plan.config), self._mask
        if pruning is None or self._restored:
            return
        sizes = {name: kept.numel() for name, kept in mask.tensors.items()}
        sizes = {"": sum(sizes.values())} if pruning.scope == "global" else sizes
        for number in range(1, plan.config.num_levels + 1):
            alive = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
            if pruning.densities is None:
                sizes = pruning.counts(number, Mask(alive))
            counts = sizes if pruning.densities is None else pruning.counts(number, Mask(alive))
            if sum(counts.values()) == 0:
                raise ValueError(
                    f"level {number} keeps none of the {mask.numel:,} prunable weights; choose densities above "
                    f"{1 / mask.numel:.1g}, or fewer levels"
                )

    def _in_level(self, call: str) -> LevelSteps:
        if self._status == _TRAINING and self._training is not None and not self._training.over:
            return self._training
        why = {
            _NEW: "the loop has not begun",
            _FINISHED: "all levels are trained",
            _LEFT: f"the loop was left in level {self._number}; create a new SignPruner and load pruner.state_dict()",
        }.get(self._status, "the loop has not begun")
        raise RuntimeError(
            f"pruner.{call} outside a level: {why}. Call it inside `for level in pruner.levels(densities=[…]):`"
        )

    def _not_inside(self, call: str) -> None:
        if self._training is not None and self._training.inside:
            raise RuntimeError(f"{call} inside pruner.step(), where ψ has temporary values; end the block first")

    def _check_same_network(self) -> None:
        own = _own_parameters(self._core)
        if replaced := sorted(n for n in own.keys() | self._params.keys() if own.get(n) is not self._params.get(n)):
            raise RuntimeError(
                f"{listed(replaced)} of the network were replaced after SignPruner was created; create it after the "
                "last change of the network's modules"
            )

    def _snapshot(self) -> Checkpoint:
        """Copy the network to the CPU."""
        return self._named(Checkpoint.of(self._core, level=0, epochs=0, level_digest=""))

    def _named(self, network: Checkpoint) -> Checkpoint:
        """Return a checkpoint of the network with its names without wrappers."""
        params, buffers = (
            {own: one[name] for name, own in own_names(self._core, one).items()}
            for one in (network.params, network.buffers)
        )
        return replace(network, params=params, buffers=buffers)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names without wrappers."""
    params = dict(model.named_parameters())
    return {own: params[name] for name, own in own_names(model, params).items()}


def _module_name(model: nn.Module, wanted: str) -> str:
    """Return the full name of a module by its name without wrappers."""
    weights = own_names(model, [f"{name}.weight" for name, _ in model.named_modules()])
    return next((name.removesuffix(".weight") for name, own in weights.items() if own == f"{wanted}.weight"), wanted)
