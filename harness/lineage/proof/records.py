"""Check the records of runs without loading a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from harness.common.digest import sha256_json
from harness.common.seeds import alpha_mean
from harness.config import INITIAL_WEIGHTS, REDRAWN, ModelConfig, search_from_json
from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding
from harness.pruning import METHODS, PruningSchedule

Determinants = Mapping[str, Any]


def key(record: LineageRecord) -> Iterator[Finding]:
    """Check that the key is the recorded SHA-256 of determinants.json.

    The file check compares that SHA-256 with the file.
    """
    if DETERMINANTS in record.files:
        what = f"its key is {record.key[:16]}…, but the SHA-256 of {DETERMINANTS} is {record.files[DETERMINANTS][:16]}…"
        yield Finding("key", record.files[DETERMINANTS] == record.key, what)


def settings(record: LineageRecord, config: Any, determinants: Determinants | None) -> Iterator[Finding]:
    """Check that tags, config, parents and determinants agree.

    Args:
        record: Record of the run.
        config: Content of config.json.
        determinants: Content of determinants.json, or None if it is missing or altered.
    """
    yield _same("settings", "config.json", config, "the config in record.json is", record.config)
    yield from _tags_and_config(record)
    if determinants is not None:
        for what, determined, recorded in _determined(record, determinants):
            yield _same("settings", f"{what} in {DETERMINANTS}", determined, "record.json has", recorded)


def _same(check: str, what: str, got: Any, other: str, expected: Any) -> Finding:
    """Return the finding that two values are equal.

    `what` and `other` introduce the two values in its message.
    """
    return Finding(check, got == expected, f"{what} is {got!r:.120}, but {other} {expected!r:.120}")


def _tags_and_config(record: LineageRecord) -> Iterator[Finding]:
    """Compare the tags with the config.

    Records without search settings have no tags to compare.
    """
    search, tags = record.config.get("search"), record.tags
    if search is None:
        return
    pairs = {"data": search["data"]["name"], "model": ModelConfig(**search["model"]).label}
    if record.kind in ("search", "level"):
        pairs["method"] = search["method"]
    if record.kind == "level":
        pairs["level"] = f"{record.config['level']:02d}"
    if record.kind == "training":
        pairs["kind_of_training"] = record.config["kind"]
    for name, expected in pairs.items():
        yield _same("settings", f"tag {name}", tags.get(name), "the config has", expected)


def own_loop(record: LineageRecord, determinants: Determinants | None) -> Iterator[Finding]:
    """Check that tags, config, parents and determinants of a run of `SignPruner.log` agree."""
    own = record.config[OWN_LOOP]
    settings_ = own["settings"]
    pairs = {"made_by": OWN_LOOP, "method": settings_["method"], "sgd_seed": str(settings_["seed"])}
    if record.kind == "level":
        pairs["level"] = f"{record.config['level']:02d}"
    for name, expected in pairs.items():
        yield _same("settings", f"tag {name}", record.tags.get(name), "the config has", expected)
    if determinants is None:
        return
    expected = {"kind": record.kind, "made_by": OWN_LOOP, **own}
    if record.kind == "level":
        parent = record.parents[0].key if record.parents else None
        expected |= {"root": record.nested_under, "parent": parent, "level": record.config["level"]}
        expected |= {"start": record.tags.get("start_digest")}
    for name, value in expected.items():
        yield _same("settings", f"{name} in {DETERMINANTS}", determinants.get(name), "record.json has", value)


def processes(record: LineageRecord, parent: LineageRecord | None) -> Iterator[Finding]:
    """Check that a level's tag `parent_world_size` names the processes of its parent, if they are other than its own.

    Args:
        record: Record of the run.
        parent: Record of its first parent, or None.
    """
    sizes = [one.config.get("launch", {}).get("world_size") for one in (parent, record) if one is not None]
    if record.kind != "level" or len(sizes) != 2 or None in sizes:
        return
    expected = None if sizes[0] == sizes[1] else str(sizes[0])
    what = f"tag parent_world_size of a run of {sizes[1]} processes"
    yield _same("settings", what, record.tags.get("parent_world_size"), "its parent gives", expected)


def _determined(record: LineageRecord, known: Determinants) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting that determines the run, with both values.

    A row is (name, value in determinants.json, value in record.json).
    """
    # Phase: settings of every kind of run
    search, tags = record.config["search"], record.tags
    yield "kind", known["kind"], record.kind
    yield "data", known["data"], tags.get("data_digest")
    yield "spec.name", known["spec"]["name"], search["data"]["name"]
    yield "model.name", known["model"]["name"], ModelConfig(**search["model"]).label
    if "tensors" in known["model"]:
        told = record.config.get("network", {})
        names = ("sha256", "library", "args", "classifier")
        expected = {name: told[name] for name in names if name in told} | {"name": known["model"]["name"]}
        yield "model", known["model"], expected | {"tensors": sha256_json(told.get("tensors"))}
    if search["model"]["width"] is not None:
        yield "model.width", known["model"]["width"], search["model"]["width"]
    for name in ("precision", "deterministic", "global_batch_size", "accumulation_steps"):
        if name in known:
            yield name, known[name], search[name]
    matmul = "float32_matmul_precision"
    yield matmul, known.get(matmul, "highest"), search.get(matmul, "highest")
    yield "compile", known.get("compile", "no"), search.get("compile", "no")
    for name, value in known.get("optim", {}).items():
        own = record.config.get("optim", search["optim"])  # a pruning method may have its own optimizers
        # The search config can set another learning rate for final trainings.
        allowed = [own.get(name), search.get(f"final_{name}")]
        yield f"optim.{name}", value, value if value in allowed else allowed[0]
    if (redrawn := REDRAWN.get(known["model"]["name"])) is not None:
        # Among comparisons, only signed_init draws initial parameters, and it trains nothing.
        drawn = [INITIAL_WEIGHTS] if "start" in known else []
        for name in drawn if record.kind == "analysis" else redrawn.determinants:
            yield name, known.get(name), record.config.get(name)
    if "world_size" in known:
        launch = record.config["launch"]
        yield "world_size", known["world_size"], launch["world_size"]
        yield "dtype", known.get("dtype", "float32"), launch.get("dtype", "float32")
    # Phase: settings of one kind of run
    if record.kind == "search":
        yield "method", known["method"], search["method"]
        yield "alpha", known.get("alpha", "uniform"), search.get("alpha", "uniform")
        begun = record.config.get("initialisation", {})
        expected = {"sha256": begun["sha256"]} if begun.get("sha256") else begun.get("name")
        yield "initialisation", known.get("initialisation"), expected
    elif record.kind == "level":
        yield from _determined_level(record, known)
    elif record.kind == "training":
        yield "used_as", known["used_as"], record.config["kind"]
        tickets = [parent.key for parent in record.parents if parent.relation != "initialised-from"]
        yield "ticket", known["ticket"], tickets[0] if tickets else None
        yield "ticket", known["ticket"], record.config["ticket"]
        yield "start", known["start"], tags.get("start_digest")
        yield from _schedule(known["schedule"], search["final"])
    elif record.kind == "analysis":
        compared = [parent.key for parent in record.parents if parent.relation == "compared"]
        yield "pair", known["pair"], sorted(compared)
        yield "question", known["question"], tags.get("question")
        yield "init_seed", known.get("init_seed"), record.config.get("init_seed")
        yield "start", known.get("start"), tags.get("start_digest")
        yield "ema_start", known.get("ema_start"), tags.get("ema_start")


def _determined_level(record: LineageRecord, known: Determinants) -> Iterator[tuple[str, Any, Any]]:
    """Yield the rows of `_determined` that only levels have."""
    yield "level", known["level"], record.config["level"]
    yield "root", known["root"], record.nested_under
    yield "parent", known["parent"], record.parents[0].key if record.parents else None
    yield from _schedule(known["schedule"], record.config["schedule"])
    if known.get("pruning_fraction") is not None:
        yield "pruning_fraction", known["pruning_fraction"], record.config["search"]["pruning_fraction"]
    config, method = search_from_json(record.config["search"]), METHODS.get(record.config["search"]["method"])
    if method is not None:
        for name, value in method.recorded_settings(config, record.tags.get("phase", "")).items():
            yield name, known.get(name), value
    yield "again", known.get("again", False), record.config.get("again", False)
    if record.parents and record.parents[0].relation == "pruned-from":
        pruning = method.pruning(config) if method else PruningSchedule.of(config)
        expected = pruning.determinants(int(known["level"])) if pruning else {}
        yield "pruning", known.get("pruning", {}), expected.get("pruning", {})


def _schedule(determined: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the rows of `_determined` for a learning-rate schedule."""
    for name, value in determined.items():
        yield f"schedule.{name}", value, recorded.get(name)


def older_ways(record: LineageRecord) -> Iterator[str]:
    """Yield a note for each computation that the current version does differently.

    The checks allow for these differences, so they are no faults.
    """
    ways = RunSummary.of(record).other_ways
    if "θ_init" in ways:
        yield f"its θ_init was {ways['θ_init']}; current versions use torch's default draw"
    if "ema statistics" in ways:
        yield f"its ema statistics {ways['ema statistics']}; current versions start from mean 0 and variance 1"
    method = METHODS.get(record.tags.get("method", "")) if record.kind == "level" else None
    if OWN_LOOP in record.config:
        return
    pruned = record.kind == "level" and any(parent.relation == "pruned-from" for parent in record.parents)
    if pruned and (config := search_from_json(record.config["search"])).count_rule == "float":
        fraction = config.pruning_fraction
        yield f"it keeps int((1 - {fraction}) * n) of n weights in floating point; current versions count exactly"
    if method is not None and (other := method.departure(search_from_json(record.config["search"]))):
        yield other


def seeds(record: LineageRecord, determinants: Determinants | None, search: LineageRecord | None) -> Iterator[Finding]:
    """Check that all parts of a record have the same seeds.

    These parts are tags, config and determinants. A level must also have the seeds of its search.

    Args:
        record: Record of the run.
        determinants: Content of determinants.json, or None.
        search: Record of the search that a level belongs to, or None.
    """
    if record.kind not in ("search", "level", "training") or "search" not in record.config:
        return
    names = ("init_seed", "sgd_seed")
    given = record.config if record.kind == "training" else record.config["search"]
    configured = {name: given[name] for name in names}
    for name, value in configured.items():
        tag = None if value is None else str(value)
        yield _same("seeds", f"tag {name}", record.tags.get(name), "the config has", tag)
        if determinants is not None and record.kind != "level":
            yield _same("seeds", f"{name} in {DETERMINANTS}", determinants[name], "the config has", value)
        if search is not None and record.kind == "level":
            yield _same("seeds", f"tag {name}", record.tags.get(name), "its search has", search.tags.get(name))


def alpha(record: LineageRecord, epochs: int) -> Iterator[Finding] | None:
    """Check the recorded mean α of every epoch by drawing again.

    Args:
        record: Record of a level or final training.
        epochs: Number of trained epochs of a level. Runs that draw no α ignore it.

    Returns:
        Findings, or None if the record is from a version that did not record the values needed.
    """
    recorded = [metric for metric in record.metrics if metric.name == "alpha_mean"]
    method = METHODS.get(record.tags.get("method", ""))
    if record.kind != "level" or method is None or "alpha_mean" not in method.metrics:
        return iter([Finding("alpha", not recorded, "it is a plain training, but it recorded a mean α")])
    if "data" not in record.config:
        return None
    num_steps = record.config["data"]["num_train"] // record.config["search"]["global_batch_size"]
    config, again = search_from_json(record.config["search"]), bool(record.config.get("again"))
    noise = method.noise(config, int(record.tags["level"]), again=again)
    expected = [alpha_mean(noise.alphas(epoch, num_steps)) for epoch in range(epochs)]
    by_epoch = [metric.value for metric in sorted(recorded, key=lambda metric: metric.step)]
    wrong = [epoch for epoch, pair in enumerate(zip(by_epoch, expected, strict=False)) if pair[0] != pair[1]]
    what = f"mean α: {len(by_epoch)} values recorded for {epochs} epochs; wrong values in epochs {wrong[:5]}"
    return iter([Finding("alpha", by_epoch == expected, what)])


def curve(record: LineageRecord, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that the figures of a comparison follow from its error curve.

    These are barrier, barrier_floor and barrier_above_line.

    Args:
        record: Record of the comparison.
        content: Content of barrier.json, with errors in percent by α.
    """
    errors, alphas = content["error_percent"], content["alphas"]
    metrics = record.last_metrics()
    logged = [m.value for m in sorted(record.metrics, key=lambda m: m.step) if m.name == "error_percent"]
    yield _same("compared", "the curve in barrier.json", errors, "the metrics are", logged)
    ends = errors[0], errors[-1]
    line = [alpha * ends[1] + (1 - alpha) * ends[0] for alpha in alphas]
    figures = {
        "barrier": max(errors) - sum(ends) / 2,
        "barrier_floor": abs(ends[0] - ends[1]) / 2,
        "barrier_above_line": max(error - on_line for error, on_line in zip(errors, line, strict=True)),
    }
    for name, value in figures.items():
        close = name in metrics and abs(metrics[name] - value) < 1e-9
        yield Finding("compared", close, f"metric {name} is {metrics.get(name)}, but the curve gives {value}")


def correct(record: LineageRecord, answers: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Check that the correctly classified images give the recorded test errors.

    Args:
        record: Record of the run.
        answers: Content of correct.safetensors by evaluation: bool [N], or [K, N] for the K points of a comparison.
    """
    metrics = record.last_metrics()
    names = {"test": "test_error_percent", "test_recorded_bn": "test_error_percent_recorded_bn"}
    expected = {name: [metrics[metric]] for name, metric in names.items() if metric in metrics}
    points = [m.value for m in sorted(record.metrics, key=lambda m: m.step) if m.name == "error_percent"]
    expected |= {"points": points} if points else {}
    what = "the list of evaluations in correct.safetensors"
    yield _same("correct", what, sorted(answers), "the metrics have", sorted(expected))
    for name in answers.keys() & expected.keys():
        rows_KN = answers[name].reshape(-1, answers[name].shape[-1])
        errors = [100.0 * int((~row_N).sum()) / len(row_N) for row_N in rows_KN]
        what = f"the error of {name!r} from correct.safetensors"
        yield _same("correct", what, errors, "the metric is", expected[name])


def initial_norm(ticket: LineageRecord, search: LineageRecord) -> Iterator[Finding]:
    """Check that a norm_init comparison used ψ_init of the ticket's search."""
    yield _same("compared", "the ticket's search", ticket.nested_under, "ψ_init is from", search.key)


def signed_init(record: LineageRecord, ticket: LineageRecord) -> Iterator[Finding]:
    """Check the records of a signed_init comparison.

    The ticket must be a level, and θ_init must have another seed than the ticket's search.
    """
    yield _same("compared", "kind of the ticket's run", ticket.kind, "it must be", "level")
    for what in ("data_digest", "model"):
        other = "the comparison recorded"
        yield _same("compared", f"{what} of the ticket", ticket.tags.get(what), other, record.tags.get(what))
    seed = record.tags.get("init_seed")
    yield _same("seeds", "tag init_seed", seed, "the config has", str(record.config.get("init_seed")))
    what = f"init_seed {seed} is also that of the ticket's search, but a fresh θ_init needs another seed"
    yield Finding("seeds", seed != ticket.tags.get("init_seed"), what)


def comparable(record: LineageRecord, first: LineageRecord, second: LineageRecord) -> Iterator[Finding]:
    """Yield findings: the two networks are comparable for the comparison's question.

    This concerns their data, model, start and seeds.
    """
    for what in ("data_digest", "model"):
        other = "that of the second is"
        yield _same("compared", f"{what} of the first run", first.tags.get(what), other, second.tags.get(what))
    same_start = str(first.tags.get("start_digest") == second.tags.get("start_digest")).lower()
    yield _same("compared", "tag same_start", record.tags.get("same_start"), "the start digests give", same_start)
    if record.tags.get("question") == "stability":
        seeds = first.tags.get("sgd_seed"), second.tags.get("sgd_seed")
        what = f"both runs have sgd_seed {seeds[0]}, but stability needs two different ones"
        yield Finding("compared", seeds[0] != seeds[1], what)
