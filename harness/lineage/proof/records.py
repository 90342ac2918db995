"""What can be proved without a network: a record's key, that it says the same everywhere, its α and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from harness.common.seeds import alpha_mean
from harness.config import INITIAL_WEIGHTS, REDRAWN, search_from_json
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding
from harness.pruning import METHODS, PruningSchedule

Determinants = Mapping[str, Any]


def key(record: LineageRecord) -> Iterator[Finding]:
    """The key is the SHA-256 of determinants.json (whose bytes are checked among the files)."""
    if DETERMINANTS in record.files:
        what = f"its key is {record.key[:16]}…, but the digest of {DETERMINANTS} is {record.files[DETERMINANTS][:16]}…"
        yield Finding("key", record.files[DETERMINANTS] == record.key, what)


def settings(record: LineageRecord, config: Any, determinants: Determinants | None) -> Iterator[Finding]:
    """Tags, config (also as config.json has it), parents and determinants say the same."""
    yield _same("settings", "config.json", config, "the record's config", record.config)
    yield from _tags_and_config(record)
    if determinants is not None:
        for what, determined, recorded in _determined(record, determinants):
            yield _same("settings", f"{what} in {DETERMINANTS}", determined, "in the record", recorded)


def _same(check: str, what: str, got: Any, other: str, expected: Any) -> Finding:
    return Finding(check, got == expected, f"{what} is {got!r:.120}, {other} {expected!r:.120}")


def _tags_and_config(record: LineageRecord) -> Iterator[Finding]:
    search, tags = record.config.get("search"), record.tags
    if search is None:
        return
    pairs = {"data": search["data"]["name"], "model": search["model"]["name"]}
    if record.kind in ("search", "level"):
        pairs["method"] = search["method"]
    if record.kind == "level":
        pairs["level"] = f"{record.config['level']:02d}"
    if record.kind == "training":
        pairs["kind_of_training"] = record.config["kind"]
    for name, expected in pairs.items():
        yield _same("settings", f"tag {name}", tags.get(name), "the config says", expected)


def _determined(record: LineageRecord, known: Determinants) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, what the determinants say, what the rest of the record says)."""
    search, tags = record.config["search"], record.tags
    yield "kind", known["kind"], record.kind
    yield "data", known["data"], tags.get("data_digest")
    yield "spec.name", known["spec"]["name"], search["data"]["name"]
    yield "model.name", known["model"]["name"], search["model"]["name"]
    if search["model"]["width"] is not None:
        yield "model.width", known["model"]["width"], search["model"]["width"]
    for name in ("precision", "deterministic", "global_batch_size", "accumulation_steps"):
        if name in known:
            yield name, known[name], search[name]
    matmul = "float32_matmul_precision"
    yield matmul, known.get(matmul, "highest"), search.get(matmul, "highest")
    for name, value in known.get("optim", {}).items():
        # trainings with the final schedule may have a learning rate of their own
        own = record.config.get("optim", search["optim"])  # a method may have optimizers of its own
        allowed = [own.get(name), search.get(f"final_{name}")]
        yield f"optim.{name}", value, value if value in allowed else allowed[0]
    if (redrawn := REDRAWN.get(known["model"]["name"])) is not None:
        # a comparison trains nothing, and of all of them signed_init alone draws
        drawn = [INITIAL_WEIGHTS] if "start" in known else []
        for name in drawn if record.kind == "analysis" else redrawn.determinants:
            yield name, known.get(name), record.config.get(name)
    if "world_size" in known:
        launch = record.config["launch"]
        yield "world_size", known["world_size"], launch["world_size"]
        yield "dtype", known.get("dtype", "float32"), launch.get("dtype", "float32")
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
    for name, value in determined.items():
        yield f"schedule.{name}", value, recorded.get(name)


def older_ways(record: LineageRecord) -> Iterator[str]:
    """Yield what the version that made a run did otherwise than this one; a check takes that into account."""
    if (before := RunSummary.of(record).drawn_before) is not None:
        yield f"its θ_init was drawn the other way: {before}; today these have torch's default draw"
    if record.kind == "analysis" and record.tags.get("bn_convention") == "ema" and "ema_start" not in record.tags:
        yield "its ema statistics started the other way: from the interpolated ones; today from mean 0 and variance 1"
    method = METHODS.get(record.tags.get("method", "")) if record.kind == "level" else None
    if method is not None and (other := method.departure(search_from_json(record.config["search"]))):
        yield other


def seeds(record: LineageRecord, determinants: Determinants | None, search: LineageRecord | None) -> Iterator[Finding]:
    """Tags, config and determinants have the same seeds; a level (given its `search`) has those of its search."""
    if record.kind not in ("search", "level", "training") or "search" not in record.config:
        return
    names = ("init_seed", "sgd_seed")
    given = record.config if record.kind == "training" else record.config["search"]
    configured = {name: given[name] for name in names}
    for name, value in configured.items():
        tag = None if value is None else str(value)
        yield _same("seeds", f"tag {name}", record.tags.get(name), "the config says", tag)
        if determinants is not None and record.kind != "level":
            yield _same("seeds", f"{name} in {DETERMINANTS}", determinants[name], "the config says", value)
        if search is not None and record.kind == "level":
            yield _same("seeds", f"tag {name}", record.tags.get(name), "its search says", search.tags.get(name))


def alpha(record: LineageRecord, epochs: int) -> Iterator[Finding] | None:
    """The mean α of each of a level's `epochs` epochs; None if the record is older than that and cannot tell."""
    recorded = [metric for metric in record.metrics if metric.name == "alpha_mean"]
    method = METHODS.get(record.tags.get("method", ""))
    if record.kind != "level" or method is None or "alpha_mean" not in method.metrics:
        return iter([Finding("alpha", not recorded, "a plain training drew α")])
    if "data" not in record.config:
        return None
    num_steps = record.config["data"]["num_train"] // record.config["search"]["global_batch_size"]
    config, again = search_from_json(record.config["search"]), bool(record.config.get("again"))
    noise = method.noise(config, int(record.tags["level"]), again=again)
    expected = [alpha_mean(noise.alphas(epoch, num_steps)) for epoch in range(epochs)]
    by_epoch = [metric.value for metric in sorted(recorded, key=lambda metric: metric.step)]
    wrong = [epoch for epoch, pair in enumerate(zip(by_epoch, expected, strict=False)) if pair[0] != pair[1]]
    what = f"{len(by_epoch)} epochs recorded a mean α, {epochs} were trained; those of epochs {wrong[:5]} differ"
    return iter([Finding("alpha", by_epoch == expected, what)])


def curve(record: LineageRecord, content: Mapping[str, Any]) -> Iterator[Finding]:
    """A comparison's figures follow from its curve (method, section 6)."""
    errors, alphas = content["error_percent"], content["alphas"]
    metrics = record.last_metrics()
    logged = [m.value for m in sorted(record.metrics, key=lambda m: m.step) if m.name == "error_percent"]
    yield _same("compared", "the curve", errors, "the metrics say", logged)
    ends = errors[0], errors[-1]
    line = [alpha * ends[1] + (1 - alpha) * ends[0] for alpha in alphas]
    figures = {
        "barrier": max(errors) - sum(ends) / 2,
        "barrier_floor": abs(ends[0] - ends[1]) / 2,
        "barrier_above_line": max(error - on_line for error, on_line in zip(errors, line, strict=True)),
    }
    for name, value in figures.items():
        close = name in metrics and abs(metrics[name] - value) < 1e-9
        yield Finding("compared", close, f"{name} is {metrics.get(name)}, the curve gives {value}")


def correct(record: LineageRecord, answers: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Which images were right, bool [N] or [K, N] by evaluation, gives the errors that were recorded."""
    metrics = record.last_metrics()
    names = {"test": "test_error_percent", "test_recorded_bn": "test_error_percent_recorded_bn"}
    expected = {name: [metrics[metric]] for name, metric in names.items() if metric in metrics}
    points = [m.value for m in sorted(record.metrics, key=lambda m: m.step) if m.name == "error_percent"]
    expected |= {"points": points} if points else {}
    yield _same("correct", "the evaluations", sorted(answers), "the metrics are of", sorted(expected))
    for name in answers.keys() & expected.keys():
        rows_KN = answers[name].reshape(-1, answers[name].shape[-1])
        errors = [100.0 * int((~row_N).sum()) / len(row_N) for row_N in rows_KN]
        yield _same("correct", f"the error of {name!r} by its images", errors, "the metrics say", expected[name])


def initial_norm(ticket: LineageRecord, search: LineageRecord) -> Iterator[Finding]:
    """A ticket is compared with its copy with ψ_init of the search it came from."""
    yield _same("compared", "the ticket's search", ticket.nested_under, "ψ_init is of", search.key)


def signed_init(record: LineageRecord, ticket: LineageRecord) -> Iterator[Finding]:
    """A ticket is compared with its signs on a fresh θ_init of another seed than its search's."""
    yield _same("compared", "kind of the ticket's run", ticket.kind, "expected", "level")
    for what in ("data_digest", "model"):
        yield _same("compared", f"{what} of the ticket", ticket.tags.get(what), "recorded", record.tags.get(what))
    seed = record.tags.get("init_seed")
    yield _same("seeds", "tag init_seed", seed, "the config says", str(record.config.get("init_seed")))
    yield Finding(
        "seeds", seed != ticket.tags.get("init_seed"), f"init_seed {seed} is the search's own, not a fresh one"
    )


def comparable(record: LineageRecord, first: LineageRecord, second: LineageRecord) -> Iterator[Finding]:
    """The two networks answer the question that was asked of them."""
    for what in ("data_digest", "model"):
        yield _same("compared", f"{what} of one", first.tags.get(what), "of the other", second.tags.get(what))
    same_start = str(first.tags.get("start_digest") == second.tags.get("start_digest")).lower()
    yield _same("compared", "tag same_start", record.tags.get("same_start"), "their start digests say", same_start)
    if record.tags.get("question") == "stability":
        seeds = first.tags.get("sgd_seed"), second.tags.get("sgd_seed")
        yield Finding("compared", seeds[0] != seeds[1], f"both have sgd_seed {seeds[0]}: stability compares two noises")
