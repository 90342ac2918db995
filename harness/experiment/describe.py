"""Describe a run before it is made: key, name, tags, parents and configuration. One function per kind.

A new column of the list of runs is a tag. Set it here, in `common` for every run, or in the function of one kind. To
show it in the terminal, add it to `harness/lineage/browse/listing.py`. To show it in MLflow, add it to `_TAGS` in
`harness/lineage/tracking/delivery.py` and to the view in `harness/lineage/tracking/view.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.common.digest import sha256_json
from harness.common.escape import redact_word
from harness.common.machine import hardware, launch_command
from harness.config import INITIAL_WEIGHTS, NETWORKS_OWN, REDRAWN, ComparisonConfig, Schedule, SearchConfig, to_json
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.masks import Mask
from harness.runs.run import FinishedRun, RunDescription

if TYPE_CHECKING:
    from harness.data import DataSpec
    from harness.experiment.experiment import Experiment, Initialisation
    from harness.experiment.final import Trial
    from harness.models.network import Network


@dataclass(frozen=True)
class CommonDescription:
    """The parts of a description that all runs of a launch share."""

    determinants: dict[str, Any]
    """Inputs to every key, except seeds and method.

    Options added after v1 appear only if they differ from their default, so that old keys stay valid.
    """
    config: dict[str, Any]
    tags: dict[str, str]
    network: str
    """Name of the network, with its width if that is not the default."""
    method: str = ""
    """Name of the method, with the distribution of α if that is not the paper's."""
    alpha: dict[str, str] = field(default_factory=dict)
    """Tag and input to a search's key: the distribution of α, if that is not the paper's."""
    drawn: dict[str, str] = field(default_factory=dict)
    """Tag of runs, and of their levels, whose network is initialised otherwise than in earlier versions."""


def common(experiment: Experiment) -> CommonDescription:
    """Describe the common part of all runs of a launch."""
    # Phase: inputs to the keys.
    config, world, source, model = experiment.config, experiment.world, experiment.source, experiment.architecture
    network, label = model.definition.shown, model.definition.label
    determinants = inputs_to_keys(config, experiment.spec, source.content_digest, model, world.size)
    redrawn = dict(REDRAWN[label].determinants) if label in REDRAWN else {}
    other_dtype = {name: determinants[name] for name in ("dtype",) if name in determinants}

    # Phase: the recorded configuration.
    processes = of_processes(config, world.size)
    launch = {name: value for name, value in processes.items() if name != "sync_batchnorm"}
    launch |= other_dtype | {"device": world.device_name}
    recorded = {
        "search": to_json(config),
        "data": {"num_train": source.num_train, "num_test": source.num_test},
        "launch": launch | {"threads": torch.get_num_threads()},
        "hardware": hardware(world.device),
        "command": launch_command(),
        "argv": [redact_word(word) for word in sys.argv],  # a record is given away, passwords are not
        **redrawn,
        **model.recorded,
    }

    # Phase: tags.
    alpha: dict[str, str] = {} if config.alpha == "uniform" else {"alpha": config.alpha}
    tags = {"data": experiment.spec.name, "data_digest": source.content_digest, "model": label}
    tags |= {"network": network, "settings": settings_tag(config, determinants)}
    method = " ".join([config.method, *(f"α={value}" for value in alpha.values())])
    drawn = {name: value for name, value in redrawn.items() if name == INITIAL_WEIGHTS}
    return CommonDescription(determinants, recorded, tags, network, method, alpha, drawn)


def inputs_to_keys(
    config: SearchConfig, spec: DataSpec, data_digest: str, network: Network, size: int
) -> dict[str, Any]:
    """Return the inputs to every key, except seeds and method.

    Args:
        config: The settings, with a resolved precision.
        spec: The data set.
        data_digest: Digest of its content.
        network: The network, sized for the data.
        size: Number of processes.
    """
    label, matmul = network.definition.label, config.float32_matmul_precision
    # Runs of these networks without the entries had another initialisation, or were trained with drop-connect.
    redrawn = dict(REDRAWN[label].determinants) if label in REDRAWN else {}
    # All floats have torch's default dtype. Only the self-check changes it, to float64.
    dtype = str(torch.get_default_dtype()).removeprefix("torch.")
    return {
        "format": 2,
        "data": data_digest,
        # without the path of the raw files, because the digest covers their content
        "spec": {name: value for name, value in asdict(spec).items() if name != "raw"},
        "model": network.determinants,
        "optim": config.optim.determinants(),
        "precision": config.precision,
        "deterministic": config.deterministic,
        "global_batch_size": config.global_batch_size,
        "accumulation_steps": config.accumulation_steps,
        **of_processes(config, size),
        **({"float32_matmul_precision": matmul} if matmul != "highest" else {}),
        **({"compile": config.compile} if config.compile != "no" else {}),
        **redrawn,
        **({"dtype": dtype} if dtype != "float32" else {}),
    }


def settings_tag(
    config: SearchConfig, determinants: Mapping[str, Any], unusual: Mapping[str, str] | None = None
) -> str:
    """Return a short hash of every setting except seeds, method and kind.

    Runs with equal hashes are trials of one setting. An initialisation counts by name, because its file may no longer
    exist.

    Args:
        config: The settings.
        determinants: Those of `inputs_to_keys`.
        unusual: Settings of a final training that differ from their defaults (`Trial.unusual`).
    """
    schedules = {"final": config.final.determinants(), "warmup": config.warmup_epochs, "level": config.level_epochs}
    begun = {} if config.initialisation == NETWORKS_OWN else {"initialisation": config.initialisation}
    alpha: dict[str, str] = {} if config.alpha == "uniform" else {"alpha": config.alpha}
    own = sha256_json(dict(determinants) | schedules | pruning_settings(config) | begun | alpha)[:12]
    return sha256_json({"settings": own} | dict(unusual))[:12] if unusual else own


def of_processes(config: SearchConfig, size: int) -> dict[str, Any]:
    """Return the inputs to a key that follow from the number of processes."""
    # DDP sums gradients in buckets. With three or more processes, the order of a sum changes its bits. Runs without
    # this entry kept the initial buckets of DDP.
    order_of_sums = {"gradient_buckets": "by first backward"} if size > 2 else {}
    return {"sync_batchnorm": config.sync_batchnorm and size > 1, "world_size": size, **order_of_sums}


def made_by(description: RunDescription, config: SearchConfig, size: int) -> RunDescription:
    """Return the description whose key is that of the same run made by another number of processes."""
    return replace(description, determinants=for_processes(description.determinants, config, size))


def for_processes(determinants: Mapping[str, Any], config: SearchConfig, size: int) -> dict[str, Any]:
    """Return the inputs to a key with those of another number of processes."""
    rest = {name: value for name, value in determinants.items() if name != "gradient_buckets"}
    return rest | of_processes(config, size)


def pruning_settings(config: SearchConfig) -> dict[str, Any]:
    """Return the pruning settings that enter keys. Those added after v1 appear only if not at their default."""
    own: dict[str, Any] = {"pruning_fraction": config.pruning_fraction}
    if config.densities is not None:
        own = {"densities": config.densities}
    usual = {"pruning_scope": "global", "one_shot": False, "order": "default"}
    return own | config.counts_by | {name: value for name in usual if (value := getattr(config, name)) != usual[name]}


def search_lock(experiment: Experiment, root: RunDescription) -> str:
    """Return the key of the lock that lets one launch at a time make a search, of any number of levels."""
    config = experiment.config
    schedules = {"warmup_epochs": config.warmup_epochs, "level_epochs": config.level_epochs}
    shared = experiment.common.determinants
    if config.earlier_processes:  # a launch that continues a search shares the lock of the one that began it
        shared = for_processes(shared, config, config.earlier_processes[0])
    return sha256_json(shared | {"search": root.key} | schedules | pruning_settings(config))


def describe_search(experiment: Experiment, begun: Initialisation, theta_init_digest: str = "") -> RunDescription:
    """Describe the root of a search. Its key excludes the number of levels, so that a longer search resumes it.

    With `earlier_processes`, the root is that of the first number of processes.
    """
    config, shared = experiment.config, experiment.common
    seeds = {"init_seed": config.init_seed, "sgd_seed": config.sgd_seed}
    name = f"{shared.method} {shared.network} {config.data.name} i{config.init_seed} s{config.sgd_seed}"
    if config.initialisation != NETWORKS_OWN:
        name = f"{name} from {Path(config.initialisation).name[:24]}"
    described = RunDescription(
        determinants=shared.determinants
        | {"kind": "search", "method": config.method, **seeds, **begun.determinants, **shared.alpha},
        kind="search",
        name=name,
        parents=(Parent(begun.key, "initialised-from"),) if begun.key else (),
        config=shared.config | begun.recorded,
        tags=shared.tags
        | {"method": config.method, "init_seed": str(config.init_seed), "sgd_seed": str(config.sgd_seed)}
        | shared.alpha
        | {"theta_init_digest": theta_init_digest}
        | shared.drawn,
    )
    return made_by(described, config, config.earlier_processes[0]) if config.earlier_processes else described


def describe_level(
    experiment: Experiment,
    root: str,
    level: int,
    schedule: Schedule,
    parent: Parent,
    *,
    density: float,
    phase: str = "",
    parent_processes: int,
    determinants: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> RunDescription:
    """Describe one training of a search.

    Args:
        root: Key of the search.
        level: Number of prunings.
        schedule: Epochs and learning rate.
        parent: The search, or the level before.
        density: Density of the mask, for the name.
        phase: Distinguishes several trainings of one level, e.g. "again". "" is the usual one.
        parent_processes: Number of processes that made the parent. Name and tags have it if this launch has another.
        determinants: Further inputs to its key.
        recorded: Further entries of its configuration.
    """
    # Phase: inputs to the key, tags and the name.
    config, shared = experiment.config, experiment.common
    own = {"kind": "level", "root": root, "level": level, "schedule": schedule.determinants(), "parent": parent.key}
    tags = {"method": config.method, "init_seed": str(config.init_seed), "sgd_seed": str(config.sgd_seed)}
    words = [f"L{level:02d}", *phase.split(), f"d{density:.3f} {shared.method} {shared.network}"]
    if parent_processes != experiment.world.size:
        words.append(f"{parent_processes}→{experiment.world.size} processes")
        tags["parent_world_size"] = str(parent_processes)
    return RunDescription(
        determinants=shared.determinants | own | dict(determinants),
        kind="level",
        name=" ".join(words),
        parents=(parent,),
        config=shared.config | {"level": level, "schedule": asdict(schedule)} | dict(recorded),
        tags=shared.tags | tags | shared.alpha | shared.drawn | ({"phase": phase} if phase else {}),
        level=level,
        nested_under=root,
    )


def describe_training(
    experiment: Experiment,
    trial: Trial,
    ticket: FinishedRun | None,
    mask: Mask,
    start_digest: str,
    *,
    begun: Initialisation | None,
    transferred: bool,
) -> RunDescription:
    """Describe a final training.

    Args:
        experiment: Network, data and schedule.
        trial: The use of the ticket, and the seeds.
        ticket: The level, or None for a dense training.
        mask: The mask of the training.
        start_digest: Digest of the initial parameters.
        begun: The initialisation, if it is not the network's own.
        transferred: Whether the ticket is of another data set.
    """
    # Phase: inputs to the key, and the recorded configuration.
    config, shared = experiment.config, experiment.common
    own = {
        "kind": "training",
        "used_as": trial.kind,
        "ticket": ticket.key if ticket else None,
        "start": start_digest,
        "schedule": config.final.determinants(),
        "init_seed": trial.drawn,
        "sgd_seed": trial.sgd_seed,
    }
    recorded = {
        "kind": trial.kind,
        "ticket": ticket.key if ticket else None,
        "init_seed": trial.drawn,
        "sgd_seed": trial.sgd_seed,
        "unpruned_signs": trial.unpruned_signs,
        "signs": trial.signs,
        "transferred": transferred,
        **(begun.recorded if begun else {}),
    }

    # Phase: parents and tags.
    parents = []
    if ticket is not None:
        parents.append(Parent(ticket.key, "trained-from" if trial.kind == "retrain" else "masked-by"))
    if begun is not None and begun.key is not None:
        parents.append(Parent(begun.key, "initialised-from"))

    tags = shared.tags | {"kind_of_training": trial.kind, "sgd_seed": str(trial.sgd_seed)}
    unusual = trial.unusual | ({"transferred": "true"} if transferred else {})
    if unusual:  # a trial of another setting
        tags |= unusual | {"settings": settings_tag(config, shared.determinants, unusual)}
    tags |= {} if trial.drawn is None else {"init_seed": str(trial.drawn)} | shared.drawn
    tags |= {} if ticket is None else {"method": config.method, **shared.alpha}

    # Phase: the name.
    level = ticket.checkpoint.level if ticket else 0
    found = [f"L{level:02d} d{mask.density:.3f} {shared.method}"] if ticket else []
    words = [trial.kind, *found, shared.network]
    words += [*([] if trial.drawn is None else [f"i{trial.drawn}"]), f"s{trial.sgd_seed}"]
    return RunDescription(
        determinants=shared.determinants | own,
        kind="training",
        name=" ".join(words),
        parents=tuple(parents),
        config=shared.config | recorded,
        tags=tags,
        level=level,
    )


def describe_comparison(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    question: str,
    config: ComparisonConfig,
    determinants: dict[str, Any],
) -> RunDescription:
    """Describe a comparison of two runs. Called on rank 0, which has the records.

    Args:
        experiment: Network, data and precision.
        first: One run.
        second: The other. The same run for a ticket against a changed copy of itself.
        question: The name of the comparison.
        config: Points on the line, and BatchNorm statistics.
        determinants: Inputs to the key.
    """
    # Phase: the pair, for the name and the parents.
    assert first.record is not None and second.record is not None
    shared = experiment.common
    tags, ticket = first.record.tags, first.mask.density
    words = [f"L{tags['level']}", f"d{ticket:.3f}"] + ([tags["method"]] if "method" in tags else [])
    words += [f"α={tags['alpha']}"] if "alpha" in tags else []
    pair = [] if first.key == second.key else [_short_name(first.record), "|", _short_name(second.record)]
    others = [Parent(second.key, "compared")]
    drawn = {name: determinants[name] for name in ("init_seed", "start") if name in determinants}
    if drawn:  # a ticket against its signs on a fresh θ_init, which is not a run
        others, pair = [], [f"i{drawn['init_seed']}"]
    elif first.key == second.key:  # a ticket against its copy with the initial norm parameters ψ_init
        assert first.record.nested_under is not None
        others = [Parent(first.record.nested_under, "initialised-from")]
    same = {"same_start": str(tags.get("start_digest") == second.record.tags.get("start_digest")).lower()}
    unusual = {name: value for name in ("precision", "compile") if (value := getattr(experiment.config, name)) != "no"}

    # Phase: the description.
    return RunDescription(
        determinants=determinants,
        kind="analysis",
        # the difference first: 'lmc signed_mask i2 s1 | retrain s1 L09 d0.134 aws resnet20'
        name=" ".join([question, *pair, *words, shared.network]),
        parents=(Parent(first.key, "compared"), *others),
        config=shared.config | {"question": question, "comparison": asdict(config)} | drawn,
        tags=shared.tags
        | {tag: tags[tag] for tag in ("method", "alpha", "level") if tag in tags}
        | {"question": question, "density": f"{ticket:.6f}"}
        | {"bn_convention": config.bn_convention, "num_alphas": str(config.num_alphas)}
        | ({"init_seed": str(drawn["init_seed"]), "start_digest": drawn["start"]} if drawn else same)
        | config.ema_start
        | unusual,
    )


def comparison_determinants(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    question: str,
    config: ComparisonConfig,
    batch_size: int,
) -> dict[str, Any]:
    """Return the inputs to a comparison's key. The keys of the two runs cover their trainings."""
    shared = experiment.common.determinants
    measured = {name: shared[name] for name in ("format", "data", "spec", "model")}
    if shared["precision"] != "no":  # old keys have no entry
        measured["precision"] = shared["precision"]
    measured |= {name: shared[name] for name in ("float32_matmul_precision", "compile", "dtype") if name in shared}
    num_images = config.num_bn_images(experiment.source.num_train)
    return measured | {
        "kind": "analysis",
        "question": question,
        "pair": sorted({first.key, second.key}),
        "alphas": config.alphas,
        "bn_convention": config.bn_convention,
        # without an entry, ema starts from the interpolated statistics
        **config.ema_start,
        "bn_images": num_images,
        # BatchNorm statistics depend on the batch size
        "batch": batch_size if num_images else None,
    }


def _short_name(record: LineageRecord) -> str:
    tags = record.tags
    seeds = [f"{letter}{tags[tag]}" for letter, tag in (("i", "init_seed"), ("s", "sgd_seed")) if tag in tags]
    return " ".join([tags.get("kind_of_training", record.kind), *seeds])
