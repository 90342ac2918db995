"""Find the runs of a plan by their recorded settings and seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from harness.analysis.barrier import BarrierCurve
from harness.analysis.norm import NormParameters
from harness.checkpoint import Checkpoint
from harness.common.program import command
from harness.common.tensors import load_correct
from harness.config import (
    INITIAL_WEIGHTS,
    NETWORKS_OWN,
    AlphaDistribution,
    ComparisonConfig,
    SearchConfig,
    search_from_json,
    to_json,
)
from harness.data.spec import data_spec
from harness.experiment.comparison import BARRIER
from harness.lineage.browse.find import newest
from harness.lineage.browse.query import Query
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK, THETA_INIT, LineageRecord
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import command_of, hardware_of, precision_of
from harness.masks import SignedMask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, PruningSchedule
from harness.reproduction.figure import Curve
from harness.reproduction.figure_plan import FigurePlan, Pair, Training
from harness.reproduction.results import Provenance, Results

_OF_TRAININGS = ("optim", "final", "global_batch_size", "accumulation_steps")
"""Settings that affect final trainings; the ticket is known from the parents."""
_OF_LEVELS = (
    *("optim", "global_batch_size", "accumulation_steps"),
    *("pruning_fraction", "densities", "pruning_scope", "one_shot", "order", "initialisation"),
)
"""Settings that affect levels of every method."""
_OF_DENSITIES = ("pruning_fraction", "densities")
_TRAINING = "training"
_UNUSUAL_USES = ("unpruned_signs", "signs", "initialisation", "transferred")
"""Tags of final trainings that use their tickets in an unusual way."""

_Group = tuple[str, str]
"""(method, tag `settings`) of levels, or ("training", tag) of final trainings."""
_Groups = Mapping[_Group, int]
"""Group → epochs of the final trainings in the settings of its launch."""


def collect(store: LineageStore, plan: FigurePlan, settings: Collection[str] = (), *, strict: bool = True) -> Results:
    """Return the finished runs of a plan; this needs neither training nor data.

    Runs of any launch are found by their recorded settings. Runs with equal settings can still differ in precision,
    data and number of processes. `settings` then selects one of them.

    Args:
        store: Where the runs are.
        plan: The plan.
        settings: Tags `settings` of the wanted runs.
        strict: Whether each run must have one of these tags.

    Raises:
        LookupError: There is no run, or (`strict`) none with such a tag.
        ValueError: The choice is ambiguous, or two runs match one entry of the plan.
    """
    # Phase: finished runs of this network, on the data of the searches and of the final trainings.
    scale = plan.scale
    nodes = [
        node
        for node in newest(store, None, Query(network=scale.config.model.name))
        if node.status in ("FINISHED", "LOCAL")
        and node.tags.get("data") in (scale.config.data.name, scale.finals.data.name)
    ]
    found = _groups_by_signature(store, nodes, plan, scale.config)
    used = _groups_by_signature(store, nodes, plan, scale.used_on) if scale.used_on else found
    known = {tag for signatures in (found, used) for groups in signatures.values() for _, tag in groups}
    if not known:
        options = f"{plan.figure.name} --dataset {scale.config.data.name} --network {scale.config.model.name}"
        raise LookupError(
            f"no finished run of {_subject(scale.config)}; `{command(f'reproduce {options}')}`, with the same --scale, "
            "makes them"
        )
    if strict and settings and known.isdisjoint(settings):
        raise LookupError(f"no finished run of this plan has --settings {', '.join(sorted(settings))}")

    # Phase: one launch signature for all numbers of a page.
    groups = dict(_of_one_signature(found, settings, scale.config, of_levels=True))
    if scale.used_on:
        groups |= _of_one_signature(used, settings, scale.used_on, of_levels=False)
    return RunLookup(store, plan, nodes, groups).results()


def _usage_tags(node: RunSummary) -> dict[str, str]:
    return {name: node.tags[name] for name in _UNUSUAL_USES if name in node.tags}


def _wanted_usage_tags(plan: FigurePlan, training: Training) -> dict[str, str]:
    """Return the usage tags of a training of the plan (`harness.experiment.final.Trial.unusual`)."""
    tags = {} if training.initialisation == NETWORKS_OWN else {"initialisation": training.initialisation}
    return tags | ({"transferred": "true"} if plan.scale.used_on and training.curve else {})


def _finder(node: RunSummary) -> Curve:
    """Return the curve of a level; its tag `alpha` exists only if α is not the paper's."""
    return Curve(node.tags["method"], "level", alpha=cast(AlphaDistribution, node.tags.get("alpha", "uniform")))


def _group(node: RunSummary) -> _Group | None:
    if node.kind not in ("level", _TRAINING) or "settings" not in node.tags:
        return None
    return node.tags["method"] if node.kind == "level" else _TRAINING, node.tags["settings"]


def _groups_by_signature(
    store: LineageStore, nodes: Iterable[RunSummary], plan: FigurePlan, config: SearchConfig
) -> dict[str, _Groups]:
    """Return launch signature → levels and trainings with the data and settings of `config`, with any seeds."""
    one_of_each = {group: node for node in nodes if node.tags["data"] == config.data.name and (group := _group(node))}
    signatures: dict[str, dict[_Group, int]] = defaultdict(dict)
    for group, node in one_of_each.items():
        record = store.record_of(node)
        recorded = record.config["search"]
        if any(_fits(recorded, wanted, group[0]) for wanted in _wanted_settings(plan, config, group[0])):
            signatures[_launch_signature(record)][group] = recorded["final"]["epochs"]
    return dict(signatures)


def _wanted_settings(plan: FigurePlan, config: SearchConfig, kind: str) -> list[SearchConfig]:
    """Return `config` with every length of final trainings, or with every α of a method's levels."""
    if kind == _TRAINING:
        return [replace(config, final=config.final.of_length(epochs)) for epochs in plan.lengths]
    # Any level will do: settings that depend on it are not part of the tag.
    return [plan.search_config(curve, 0) for curve in plan.figure.curves if curve.method == kind]


def _of_one_signature(
    signatures: dict[str, _Groups], given: Collection[str], config: SearchConfig, *, of_levels: bool
) -> _Groups:
    """Return the groups of the only signature with levels (or trainings), or of the one with `given` tags.

    Raises ValueError if several signatures match.
    """

    def among(signatures: dict[str, _Groups], fits: Callable[[_Group], bool]) -> dict[str, _Groups]:
        return {one: groups for one, groups in signatures.items() if any(map(fits, groups))} or signatures

    chosen = among(signatures, lambda group: (group[0] != _TRAINING) == of_levels)
    chosen = among(chosen, lambda group: group[1] in given)
    if len(chosen) > 1:
        tags = sorted({tag for groups in chosen.values() for _, tag in groups})
        raise ValueError(
            f"runs of {_subject(config)} were made in {len(chosen)} ways (number of processes, precision, compiling, "
            f"data or draw of θ_init differ); select with `{command('report')} --settings` one of "
            f"{', '.join(tags)}, a tag of every run"
        )
    return next(iter(chosen.values()), {})


def _subject(config: SearchConfig) -> str:
    return f"{config.model.name} on {config.data.name} with these settings"


def _fits(recorded: dict[str, Any], config: SearchConfig, kind: str) -> bool:
    """Return whether levels or final trainings were made with all settings of `config` that affect them."""
    own = to_json(config)
    names = _OF_TRAININGS if kind == _TRAINING else (*_OF_LEVELS, *METHODS[kind].heeds)
    if kind != _TRAINING and METHODS[kind].searches_one_density:
        names = tuple(name for name in names if name not in _OF_DENSITIES)  # `_is_wanted` checks each level
    width = recorded["model"]["width"] == own["model"]["width"]
    if recorded.get("count_rule") != own.get("count_rule"):  # recorded only where the rules can differ
        return False
    return bool(width and all(recorded.get(name, own[name]) == own[name] for name in names))


def _launch_signature(record: LineageRecord) -> str:
    """Return the parts of a launch that affect results but are no settings of a figure."""
    config = record.config
    search = {name: config["search"].get(name) for name in ("precision", "deterministic", "sync_batchnorm")}
    search["float32_matmul_precision"] = config["search"].get("float32_matmul_precision", "highest")
    search["compile"] = config["search"].get("compile", "no")
    search[INITIAL_WEIGHTS] = config.get(INITIAL_WEIGHTS)
    launch = {name: config.get("launch", {}).get(name) for name in ("world_size", "gradient_buckets")}
    return json.dumps([record.tags.get("data_digest"), launch, search], sort_keys=True)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _commit(record: LineageRecord) -> str:
    changed = "+" if record.code.get("dirty") == "true" else ""
    return record.code.get("commit", "")[:12] + changed


def _refuse_several(name: str, nodes: Sequence[RunSummary]) -> None:
    """Raise ValueError if several runs match one entry of the plan."""
    if len(nodes) > 1:
        ids = ", ".join(node.run_id or node.key[:16] for node in nodes)
        raise ValueError(f"{len(nodes)} runs match {name}: {ids}; keep one of them in the store")


def _last(place: tuple[str, ...], nodes: Sequence[RunSummary]) -> RunSummary:
    """Return the last run of a level; Gem-Miner's level has a score run, then a fine-tuning run."""
    before = {parent.key for node in nodes for parent in node.parents}
    last = [node for node in nodes if node.key not in before]
    finder, init_seed, sgd_seed, level = place
    _refuse_several(f"level {level} of {finder}, init_seed {init_seed}, sgd_seed {sgd_seed}", last)
    return last[0]


class RunLookup:
    """Index of a plan's runs by tags and parents."""

    def __init__(
        self,
        store: LineageStore,
        plan: FigurePlan,
        nodes: Sequence[RunSummary],
        groups: _Groups,
    ) -> None:
        """Index the runs of `groups` and all searches and comparisons by their entries in the plan."""
        # Phase: empty indexes.
        self.store, self.plan = store, plan
        self._records: dict[str, LineageRecord] = {}
        found_on, used_on = plan.scale.config.data.name, plan.scale.finals.data.name
        self.seeds = [{str(plan.search_seed(trial))} for trial in plan.trials]
        levels: dict[tuple[str, ...], list[RunSummary]] = defaultdict(list)
        self.trainings: dict[tuple[Any, ...], list[RunSummary]] = defaultdict(list)
        self.analyses: dict[tuple[str, frozenset[str]], list[RunSummary]] = defaultdict(list)
        # Phase: sort each run into the index of its kind.
        for node in nodes:
            tags = node.tags
            epochs = groups.get(_group(node) or ("", ""))
            wanted = epochs is not None
            if node.kind == "level" and wanted and tags["data"] == found_on and self._is_wanted(node):
                levels[_finder(node).finder, tags["init_seed"], tags["sgd_seed"], tags["level"]].append(node)
            elif node.kind == _TRAINING and wanted and tags["data"] == used_on:
                ticket = node.parents[0].key if node.parents else None
                used = (tags["kind_of_training"], *sorted(_usage_tags(node).items()))
                self.trainings[ticket, used, tags.get("init_seed"), tags["sgd_seed"], epochs].append(node)
            elif node.kind == "analysis":
                self.analyses[tags["question"], frozenset(p.key for p in node.parents)].append(node)
        # Phase: one run for each level.
        self.levels = {place: _last(place, found) for place, found in levels.items()}
        self.made = [(int(level), node) for (*_, level), found in levels.items() for node in found]
        """(level, run); Gem-Miner has two runs for each level."""
        self.searches = {node.key: node for node in nodes if node.kind == "search"}

    def _is_wanted(self, node: RunSummary) -> bool:
        """Return whether a level belongs to a search of the plan, by seeds, method and the method's settings."""
        # Phase: method, seeds and level.
        curve, seeds = _finder(node), {node.tags["init_seed"], node.tags["sgd_seed"]}
        if curve.finder not in self.plan.figure.finders or seeds not in self.seeds:
            return False
        level, method = int(node.tags["level"]), METHODS[curve.method]
        config, own_settings = self.plan.search_config(curve, level), method.own_settings
        if method.searches_one_density and level not in self.plan.scale.all_levels:
            return False

        # Phase: settings of the method itself.
        if not own_settings(config, 1_000_000):
            return True
        recorded = self._record(node).config
        search, num_train = search_from_json(recorded["search"]), recorded["data"]["num_train"]
        wanted = own_settings(config, num_train // config.global_batch_size)
        if method.searches_one_density:
            aimed_at, found = (PruningSchedule.of(one).density(level) for one in (config, search))
            if aimed_at != found:
                return False
        try:
            return own_settings(search, num_train // search.global_batch_size) == wanted
        except ValueError:  # settings that are invalid now, such as a rewind point beyond the training
            return False

    def results(self) -> Results:
        """Return all finished runs of the plan, with the numbers in their files."""
        # Phase: trainings. MLflow has no constants among its metrics, so read all metrics from the records.
        trained = {
            one: replace(node, metrics=self._record(node).last_metrics())
            for one in self.plan.trainings()
            if (node := self.training(one)) is not None
        }
        compared = {}
        for pair in self.plan.pairs():
            node = self.comparison(pair, trained)
            if node is not None:
                compared[pair] = (node, self._curve(node, trained[pair.first]))
        # Phase: tickets, their densities and their signs.
        tickets = {one: node for one in trained if one.curve is not None and (node := self.ticket(one)) is not None}
        densities: dict[tuple[str, int], list[float]] = defaultdict(list)
        for one, node in tickets.items():
            if one.curve is not None:
                densities[one.curve.finder, one.level].append(float(node.tags["density"]))
        kept_signs = {
            (curve.finder, level): shares
            for curve in {curve.finder: curve for curve in self.plan.figure.curves}.values()
            for level in self.plan.scale.levels
            if (shares := self._kept_signs(curve, level))
        }
        searches = dict.fromkeys(node.nest_key for node in tickets.values() if node.nest_key is not None)

        # Phase: norm parameters, provenance, results for single images.
        norm: dict[str, list[NormParameters]] = defaultdict(list)
        for pair in compared:
            if pair.question == "norm_init" and pair.first.curve is not None:
                level = trained[pair.first]
                if (search := self.searches.get(level.nest_key or "")) is not None:
                    norm[pair.first.curve.method].append(self._norm_parameters(level, search))
        provenance = self._provenance([*trained.values(), *(node for node, _ in compared.values())])
        correct = {
            node.key: self._correct(node)
            for node in trained.values()
            if CORRECT in node.files and CORRECT not in node.absent
        }
        return Results(self.plan, trained, compared, densities, kept_signs, norm, provenance, tuple(searches), correct)

    def _record(self, node: RunSummary) -> LineageRecord:
        """Return the record of a run, read once."""
        if node.key not in self._records:
            self._records[node.key] = self.store.record_of(node)
        return self._records[node.key]

    def _provenance(self, shown: list[RunSummary]) -> Provenance:
        deepest = max(self.plan.scale.all_levels)
        levels = [node for level, node in self.made if level <= deepest]
        nodes = {node.key: node for node in [*levels, *shown]}.values()
        records = sorted((self._record(node) for node in nodes), key=lambda record: record.started_ms)
        return Provenance(
            minutes=sum(record.finished_ms - record.started_ms for record in records) / 60_000,
            hardware=_distinct(hardware_of(record) for record in records),
            precision=_distinct(precision_of(record) for record in records),
            code=_distinct(_commit(record) for record in records),
            commands=_distinct(command_of(record) for record in records),
        )

    def ticket(self, training: Training) -> RunSummary | None:
        """Return the level that a training starts from."""
        assert training.curve is not None
        seed = str(training.search_seed)
        return self.levels.get((training.curve.finder, seed, seed, f"{training.level:02d}"))

    def training(self, training: Training) -> RunSummary | None:
        """Return the run of a final training; kind "level" returns the level itself."""
        ticket = None if training.curve is None else self.ticket(training)
        if training.curve is not None and ticket is None:
            return None
        if training.kind == "level":
            return ticket
        used = (training.kind, *sorted(_wanted_usage_tags(self.plan, training).items()))
        init_seed = None if training.init_seed is None else str(training.init_seed)
        epochs = training.epochs or self.plan.scale.finals.final.epochs
        found = self.trainings[ticket.key if ticket else None, used, init_seed, str(training.sgd_seed), epochs]
        return self._only(str(training), found, lambda record: record.get("unpruned_signs", True) in (True, "both"))

    def comparison(self, pair: Pair, trained: dict[Training, RunSummary]) -> RunSummary | None:
        """Return the run of a comparison with default settings."""
        if pair.first not in trained or pair.second not in trained:
            return None
        first, second = trained[pair.first], trained[pair.second]
        # The search holds ψ_init, so it is the other parent.
        keys = frozenset((first.key, second.nest_key or "" if pair.question == "norm_init" else second.key))
        ours = json.loads(json.dumps(asdict(ComparisonConfig())))
        seed = None if pair.init_seed is None else str(pair.init_seed)
        found = [node for node in self.analyses[pair.question, keys] if node.tags.get("init_seed") == seed]
        # Under mixed precision, comparisons without the tag `precision` were made in float32. Prefer the others.
        found = [node for node in found if "precision" in node.tags] or found
        # The same pair can be evaluated by a compiled and by an uncompiled network. Prefer the latter.
        found = [node for node in found if "compile" not in node.tags] or found
        return self._only(str(pair), found, lambda record: json.loads(json.dumps(record["comparison"])) == ours)

    def _kept_signs(self, curve: Curve, level: int) -> list[float]:
        """Return, for each search, the share of a level's signs that agree with the previous level."""
        shares: list[float] = []
        if METHODS[curve.method].searches_one_density:
            return shares  # each level has its own search
        for seed in dict.fromkeys(str(self.plan.search_seed(trial)) for trial in self.plan.trials):
            pair = [self.levels.get((curve.finder, seed, seed, f"{t:02d}")) for t in (level, level - 1)]
            if pair[0] is not None and pair[1] is not None:
                shares.append(self._signs(pair[0]).agreement(self._signs(pair[1])))
        return shares

    def _norm_parameters(self, level: RunSummary, search: RunSummary) -> NormParameters:
        with self.store.open_file_of(level, CHECKPOINT) as path:
            params = Checkpoint.load(path).params
        with self.store.open_file_of(search, THETA_INIT) as path:
            initial = Checkpoint.load(path).params
        return NormParameters.of(params, initial, self._norm_names)

    @cached_property
    def _norm_names(self) -> frozenset[str]:
        model, spec = self.plan.scale.config.model, data_spec(self.plan.scale.config.data.name)
        sizes: dict[str, Any] = {"num_classes": spec.num_classes, "channels": spec.channels}
        sizes |= {"image_size": spec.image_size, "width": model.width}
        return partition_of(model.name, build_model(model.name, **sizes)).norm

    def _signs(self, node: RunSummary) -> SignedMask:
        with self.store.open_file_of(node, SIGNED_MASK) as path:
            return SignedMask.load(path)

    def _correct(self, node: RunSummary) -> NDArray[np.bool_]:
        """Return whether each test image is correct, as the test error counts it."""
        with self.store.open_file_of(node, CORRECT) as path:
            return load_correct(path)["test"].numpy()

    def _only(self, name: str, found: list[RunSummary], usual: Any) -> RunSummary | None:
        """Return the run with usual options; runs with equal seeds can differ in their options."""
        fitting = [node for node in found if usual(self._record(node).config)] if len(found) > 1 else found
        _refuse_several(name, fitting)
        return fitting[0] if fitting else None

    def _curve(self, node: RunSummary, first: RunSummary) -> BarrierCurve:
        """Return the curve of a comparison with `first` as a; a comparison made by hand can have it as b."""
        with self.store.open_file_of(node, BARRIER) as path:
            curve = BarrierCurve.load(path)
        return curve if node.parents[0].key == first.key else curve.reversed()
