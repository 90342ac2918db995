"""Algorithm 1: the level loop that finds a winning sign.

A method is a file `harness/pruning/<method>.py`. AWS is `aws.py`. It derives from LRR, which is `lrr.py`. The lines of
the algorithm are implemented here:

    –      θ₀, m₀ = 1                         `Search.theta_init`, `Mask.dense`; level 0, the warm-up, is of section 4.1
    1, 10  for t = 1 … T                      `steps`, the loop of `Search.levels`
    2, 6   until converged                    the epochs of `method.schedule`, each step a batch: `training/loop.py`
    3      α ~ U(0, 1), αψ + (1−α)ψ_init      `method.view` (AWS); LRR sees ψ itself; α is of u, `method.noise`
    4      forward pass at θ ⊙ m              `training/loop.py`: θ is masked at the start and after every step
    5      gradient step                      `training/loop.py`
    7      θₜ                                 the run that `Search.train` returns
    8      mₜ = prune(θₜ₋₁ ⊙ mₜ₋₁)            `Search._pruned_start`: `method.importance` is |θₜ₋₁|, and
                                              `PruningSchedule.next_mask` keeps an exact number of prunable weights
    9      rewind the learning rate           each level has a new optimizer and `method.schedule`
    –      level t starts from θₜ₋₁ ⊙ mₜ      `method.start`
    11     return sign₀(θ_T ⊙ m_T)            `SearchResult.ticket.signed_mask`

The paper prunes at the end of a level, so its mₜ is our mₜ₊₁. It does not train after the last pruning. Here each level
starts with the pruning that makes its mask. So every ticket is trained under its own mask. `--order paper` follows the
printed order after the warm-up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json, sha256_tensors
from harness.common.launched import counted
from harness.common.seeds import SgdNoise
from harness.config import Schedule, SearchConfig
from harness.experiment.describe import describe_level, describe_search, made_by, search_lock
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.trainer import Trainer, batch_gradients
from harness.lineage.nodes.index import LocalIndex
from harness.lineage.nodes.record import THETA_INIT, Parent
from harness.masks import Mask
from harness.pruning import METHODS, LevelContext, Method, PruningSchedule, StartPoint
from harness.runs.run import FinishedRun, RunDescription

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """θ_init and the levels of a finished search. Level 0, the dense warm-up, comes first.

    One-shot pruning has only levels 0 and T. A method that searches one density has only level T.
    """

    theta_init: Checkpoint
    levels: list[FinishedRun]

    @property
    def ticket(self) -> FinishedRun:
        """[θ_T, m_T] after training under m_T. Its `signed_mask` is sign₀(θ_T ⊙ m_T) (line 11)."""
        return self.levels[-1]


def search(experiment: Experiment) -> SearchResult:
    """Find a signed mask by iterative pruning (paper, Algorithm 1). Finished levels are loaded.

    Args:
        experiment: An open experiment (`harness.launch`). Its settings define method, seeds and levels.

    Returns:
        θ_init and the run of every level. `ticket` is the last level.

    Raises:
        ValueError: Options contradict each other, a level keeps no weight, or weights are not finite.
        BusyError: Another launch makes the same search.
        StoppedError: The launch was asked to stop. The same command resumes it.

    Example:
        >>> with harness.launch(config) as experiment:
        ...     found = harness.search(experiment)
        >>> [round(run.mask.density, 2) for run in found.levels]
        [1.0, 0.8, 0.64]
    """
    # The lock lets one launch at a time make this search.
    method = METHODS[experiment.config.method]
    method.check(experiment.config)
    finding = Search(experiment, method)
    finding.check_counts()
    _show_network(experiment)
    with experiment.archive.alone("search", search_lock(experiment, finding.description), finding.description.name):
        finding.record_root()
        levels = method.search(finding)
        return SearchResult(finding.theta_init, finding.levels() if levels is None else levels)


def _show_network(experiment: Experiment) -> None:
    """Log the partition of a network that is not built in, and the layers that need the user's attention (rank 0)."""
    network = experiment.architecture
    if not experiment.world.is_main or network.definition.kind == "built-in":
        return
    for note in network.notes:
        _log.info(f"note: {note}")
    _log.info(f"parameters of {experiment.common.network}:")
    for line in network.survey.table():
        _log.info(f"  {line}")
    for remark in network.survey.remarks:
        _log.log(logging.WARNING if remark.loud else logging.INFO, f"not understood: {remark}")


@dataclass(frozen=True)
class Step:
    """One training of the level loop."""

    level: int
    schedule: Schedule
    prunes: bool
    """Whether the training starts with a pruning."""
    phase: str = ""
    """Word that distinguishes several trainings of one level in name, tag and state. "" for the usual one."""
    continues_warmup: bool = False
    """order=paper: level 0 is trained further before the first pruning."""


class Search:
    """One search in progress."""

    def __init__(self, experiment: Experiment, method: Method) -> None:
        self.experiment, self.method, self.config = experiment, method, experiment.config
        self.norm, self.prunable = experiment.partition.norm, experiment.partition.prunable
        self.classifier = experiment.classifier
        self.trainer = Trainer(experiment)
        # A method may override the configured initialisation with a scheme.
        wanted = method.initialisation(self.config)
        self.begun = experiment.initialisation if wanted == self.config.initialisation else Initialisation.of(wanted)
        self.description = describe_search(experiment, self.begun)
        self.root = self.description.key
        self._done: list[FinishedRun] = []
        self._processes = {self.root: earlier[0]} if (earlier := self.config.earlier_processes) else {}
        """Number of processes by key, for runs that earlier launches made."""

    @cached_property
    def theta_init(self) -> Checkpoint:
        """θ_init, drawn with init_seed."""
        return self.experiment.theta_init(self.config.init_seed, self.begun)

    def check_counts(self) -> None:
        """Refuse a search with a level that keeps no weight at all, before the first training."""
        pruning, config = self.method.pruning(self.config), self.config
        if pruning is None or self.method.searches_one_density:
            return
        template = self.experiment.archive.template.params
        mask = Mask({name: torch.ones(template[name].numel(), dtype=torch.bool) for name in self.prunable})
        if pruning.scope == "global":
            mask = Mask({"": torch.ones(mask.numel, dtype=torch.bool)})
        for level in [step.level for step in steps(config, self.method) if step.prunes]:
            counts = pruning.counts(level, mask)  # they depend on the numbers of live weights alone
            mask = Mask({name: torch.arange(kept.numel()) < counts[name] for name, kept in mask.tensors.items()})
            if mask.numel and mask.num_remaining == 0:
                given = f"pruning_fraction {config.pruning_fraction}"
                given = given if config.densities is None else f"density {config.densities[level - 1]}"
                raise ValueError(
                    f"level {level} keeps none of the {mask.numel:,} prunable weights at {given}; a network needs "
                    f"weights: choose densities above {1 / mask.numel:.1g}, or fewer levels"
                )

    # ------------------------------------------------------------------ Algorithm 1

    def levels(self) -> list[FinishedRun]:
        """Run Algorithm 1: after the dense warm-up (level 0), prune and train T times."""
        config, method = self.config, self.method
        pruning = method.pruning(config)
        for step in steps(config, method):
            # Phase: parent [θₜ₋₁, mₜ₋₁] and density of this level. The parent of level 0 is the search itself.
            parent = self._done[-1] if self._done else None
            mask = parent.signed_mask.mask if parent else Mask.dense(self.theta_init.params, self.prunable)
            prunes = pruning if step.prunes else None
            kept = sum(prunes.counts(step.level, mask).values()) if prunes else mask.num_remaining

            # Phase: prune and train, or load the finished level.
            ctx = self.context(step.level, mask, step.phase)
            relation = "trained-from" if step.continues_warmup else "pruned-from" if parent else "initialised-from"
            fraction = config.pruning_fraction if prunes and config.densities is None else None
            run = self.train(
                ctx,
                kept / max(mask.numel, 1),
                step.schedule,
                parent=(parent.key if parent else self.root, relation),
                start=partial(self._pruned_start, ctx, prunes),  # line 8, and the start
                noise=method.noise(config, step.level, again=step.continues_warmup),
                view=method.view,  # line 3
                hook=method.training_hook(ctx),
                determinants={"pruning_fraction": fraction}
                | (prunes.determinants(step.level) if prunes else {})
                | method.determinants(config, ctx.steps_per_epoch)
                | ({"again": True} if step.continues_warmup else {}),
                recorded={"again": True} if step.continues_warmup else {},
                reestimate=method.reestimates_batchnorm,
            )
            self._done = [*self._done[: -1 if step.continues_warmup else None], run]
        return self._done

    def _pruned_start(self, ctx: LevelContext, prunes: PruningSchedule | None) -> StartPoint:
        """Prune and return the start point of a level. A finished level does not call this."""
        method, world, kept = self.method, self.experiment.world, {}
        if prunes is not None:
            # Line 8: mₜ keeps an exact number of weights of mₜ₋₁. LRR and AWS keep the largest |θₜ₋₁|.
            importance = method.importance(ctx)
            ctx = replace(ctx, mask=prunes.next_mask(importance, ctx.mask, ctx.level))
            if world.size > 1:
                bits = {name: tensor.to(torch.uint8) for name, tensor in ctx.mask.tensors.items()}
                world.require_equal(f"the mask of level {ctx.level}", sha256_tensors(bits))
            kept = {method.importance_file: importance} if method.importance_file else {}
        # Level t starts from θₜ₋₁ ⊙ mₜ (LRR, AWS), with a new optimizer and schedule (line 9).
        return replace(method.start(ctx), keeps=kept)

    # ------------------------------------------------------------------ used by every method

    def context(self, level: int, mask: Mask, phase: str = "") -> LevelContext:
        """Return the inputs of a method for one level."""
        archive, spec, done = self.experiment.archive, self.experiment.spec, self._done
        return LevelContext(
            self.config,
            level,
            mask,
            self.norm,
            theta_init=self.theta_init,
            parent=done[-1].checkpoint if done else self.theta_init,
            read=lambda name: archive.network(done[0].key, name),
            phase=phase,
            steps_per_epoch=self.experiment.train_feed.steps_per_epoch,
            image_shape=(spec.channels, spec.image_size, spec.image_size),
            new_model=self.experiment.fresh_model,
            gradients=lambda params, mask: batch_gradients(self.experiment, params, mask),
        )

    def train(
        self,
        ctx: LevelContext,
        density: float,
        schedule: Schedule,
        *,
        parent: tuple[str, str],
        start: Callable[[], StartPoint],
        noise: SgdNoise,
        determinants: Mapping[str, Any],
        recorded: Mapping[str, Any],
        **how: Any,
    ) -> FinishedRun:
        """Train and commit one level, or load the finished one.

        Args:
            ctx: Inputs of the method. The description takes level and phase from it.
            density: Density of the level's mask.
            schedule: Epochs and learning rate.
            parent: Key of the parent run, and the relation to it.
            start: Prunes and returns the start point. A finished level does not call it.
            noise: u.
            determinants: Additional inputs to the key.
            recorded: Additional entries of the recorded configuration.
            how: Additional arguments of `Trainer.train`.
        """
        # Phase: describe the run, which gives its key.
        description = describe_level(
            self.experiment,
            self.root,
            ctx.level,
            schedule,
            Parent(*parent),
            density=density,
            phase=ctx.phase,
            parent_processes=self._processes.get(parent[0], self.experiment.world.size),
            determinants=determinants,
            recorded=recorded,
        )
        description = self._made_earlier(description)
        if "count_rule" in determinants.get("pruning", {}):
            self.experiment.world.on_main(lambda: self._note_older_count(description))

        # Phase: load the run with this key, or train it.
        how |= {"schedule": schedule, "noise": noise, "metrics": self.method.metrics}
        return self.experiment.archive.run_or_load(
            description,
            lambda saver: self.trainer.train(description, saver, start(), psi_init=self.theta_init.params, **how),
        )

    def _made_earlier(self, description: RunDescription) -> RunDescription:
        """Return the description of a level's first finished run by an earlier number of processes, if there is one."""
        parents = [parent.key for parent in description.parents]

        def found(key: str) -> bool:
            return self.experiment.archive.find(key, parents) is not None

        for size in self.config.earlier_processes:
            other = made_by(description, self.config, size)
            if self.experiment.world.main_says(partial(found, other.key)):
                self._processes[other.key] = size
                return other
        return description

    def _note_older_count(self, description: RunDescription) -> None:
        """Warn that a level is made again if its only finished run counts weights by the older rule (rank 0)."""
        archive = self.experiment.archive
        own = dict(description.determinants)
        rest = {name: value for name, value in own.pop("pruning").items() if name != "count_rule"}
        older = sha256_json(own | ({"pruning": rest} if rest else {}))
        if archive.knows(older) and not archive.knows(description.key):
            _log.warning(
                f"{description.name!r} is made again: for pruning_fraction {self.config.pruning_fraction}, an older "
                f"version computed the number of kept weights in floating point, one too few at times. Its run "
                f"{older[:16]}… is not continued; --count-rule float continues it"
            )

    def record_root(self) -> None:
        """Commit the search and its θ_init. If it is committed already, check that θ_init is equal.

        Raises:
            ValueError: θ_init differs, or the search of `earlier_processes` does not exist.
        """
        experiment, archive = self.experiment, self.experiment.archive
        description = describe_search(experiment, self.begun, self.theta_init.digest)
        earlier = self.config.earlier_processes

        def commit() -> None:
            if not earlier:
                self._note_others()
            if archive.find(description.key, []) is None:
                if earlier and earlier[0] != experiment.world.size:
                    self._refuse_missing(earlier[0])
                record, theta_init = archive.record(description), self.theta_init
                archive.commit(
                    record, description.determinants, lambda directory: theta_init.save(directory / THETA_INIT)
                )
                archive.delivery.check()  # report a broken store before the first level, not after it
                return
            recorded = experiment.store.local.load(description.key).tags["theta_init_digest"]
            if recorded != self.theta_init.digest:
                raise ValueError(
                    f"θ_init of seed {self.config.init_seed} is now {self.theta_init.digest[:12]}…, but this search "
                    f"began from {recorded[:12]}… (another torch version or model code?); use another --runs and "
                    "tracking store"
                )

        experiment.world.on_main(commit)

    def _others(self, known: Callable[[str], object]) -> dict[str, int]:
        """Return {key: number of processes} of this search by all other numbers, where `known(key)` is true.

        The number of processes divides the batch size, so all possible keys can be computed.
        """
        batch = self.config.global_batch_size
        sizes = [size for size in range(1, batch + 1) if batch % size == 0]
        keys = {made_by(self.description, self.config, size).key: size for size in sizes}
        return {key: size for key, size in keys.items() if key != self.root and known(key)}

    def _refuse_missing(self, asked: int) -> None:
        """Raise ValueError, because there is no search by the first of `earlier_processes` (rank 0)."""
        sizes = ", ".join(map(str, sorted(self._others(self.experiment.archive.knows).values())))
        found = f"there is one by {sizes}" if sizes else "nor is there one by any other number of processes"
        raise ValueError(
            f"--earlier-processes {asked}: no search with these settings was begun by {counted(asked)}; {found}"
        )

    def _note_others(self) -> None:
        """Log a note if other numbers of processes made levels of this search, and this one made none (rank 0)."""
        local = self.experiment.store.local
        if others := self._others(local.find):
            levels = [entry for entry in LocalIndex(local).entries.values() if entry.kind == "level"]
            sizes = sorted({others[level.nest_key] for level in levels if level.nest_key in others})
            if sizes and all(level.nest_key != self.root for level in levels):
                made = " and ".join(map(counted, sizes))
                _log.info(
                    f"note: {made} made levels of this search. This launch has {counted(self.experiment.world.size)} "
                    f"and begins its own; --earlier-processes {sizes[-1]} continues the finished levels"
                )


def steps(config: SearchConfig, method: Method) -> list[Step]:
    """Return the trainings of a search, in order. A training with `prunes` starts with a pruning."""
    last = config.num_levels
    prunes = method.pruning(config) is not None
    prunings = [last] if config.one_shot else list(range(1, last + 1))
    found = [
        Step(0, method.schedule(config, 0), False),
        *(Step(t, method.schedule(config, t), prunes) for t in prunings),
    ]
    if config.order == "default":
        return found
    # The printed order: train, then prune. No training follows the last pruning.
    again = Step(0, method.schedule(config, 1), False, phase="again", continues_warmup=True)
    return [found[0], again, *found[1:-1], Step(last, Schedule(0, "constant"), prunes, phase="untrained")]
