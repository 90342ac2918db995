"""Cost of a plan: epochs of each chain, and hours at a given or measured rate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from harness.config import to_json
from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.local_files import LocalNodes
from harness.reproduction.figure_plan import FigurePlan
from harness.reproduction.study_records import ChainRecords


@dataclass(frozen=True)
class Rate:
    """Time per epoch."""

    seconds_per_epoch: float
    source: str
    """Origin of the number, in words."""


def given_rate(seconds_per_epoch: float) -> Rate:
    """Return a rate that the user gives; raise ValueError unless it is above 0."""
    if seconds_per_epoch <= 0:
        raise ValueError(f"--seconds-per-epoch {seconds_per_epoch:g}: give a number above 0")
    return Rate(seconds_per_epoch, "given")


def measured_rate(plan: FigurePlan, nodes: LocalNodes, recorded: Iterable[ChainRecords] = ()) -> Rate | None:
    """Return the median rate of finished trainings, evaluation included; None if there is none.

    Args:
        plan: Trainings count if they have its network, data and batch size.
        nodes: Finished runs.
        recorded: Finished chains of the plan; their final trainings count.
    """
    rates = [*_of_runs(plan, nodes), *_of_records(plan, recorded)]
    return Rate(median(rates), f"measured, median of {len(rates)} finished trainings") if rates else None


def _of_runs(plan: FigurePlan, nodes: LocalNodes) -> Iterator[float]:
    configs = [to_json(one) for one in (plan.scale.config, plan.scale.finals)]
    wanted = [(config["data"]["name"], config["model"], config["global_batch_size"]) for config in configs]
    for record in nodes.records():
        if record.kind not in ("level", "training") or OWN_LOOP in record.config:
            continue
        search = record.config["search"]
        # Trainings log one loss per epoch.
        epochs = sum(metric.name == "train_loss" for metric in record.metrics)
        if epochs and (record.tags["data"], search["model"], search["global_batch_size"]) in wanted:
            yield (record.finished_ms - record.started_ms) / 1000 / epochs


def _of_records(plan: FigurePlan, recorded: Iterable[ChainRecords]) -> Iterator[float]:
    usual = plan.scale.finals.final.epochs
    epochs = {str(one): one.epochs or usual for one in plan.trainings() if one.kind != "level"}
    for run in (run for chain in recorded for run in chain.runs if run.name in epochs):
        yield (run.finished_ms - run.started_ms) / 1000 / epochs[run.name]


def costs(
    plan: FigurePlan, chains: Collection[str], rate: Rate | None, finished: Collection[str] = (), jobs: int = 1
) -> list[str]:
    """Return a table as lines of text: epochs, comparisons and, at a known rate, hours of each chain.

    Args:
        plan: The plan.
        chains: Its chains to count.
        rate: Time per epoch; None leaves out the hours.
        finished: Chains that are already recorded; the sum leaves them out.
        jobs: Number of jobs. With several, a row for each shows the expected share of the remaining chains.
    """
    # Phase: one row for each chain, and the sum.
    left = [chain for chain in chains if chain not in finished]
    epochs = {chain: plan.epochs(chain) for chain in chains}
    compared = [pair.first.chain for pair in plan.pairs()]
    rows = [["chain", "epochs", "comparisons", *(["hours"] if rate else [])]]

    def row(name: str, counted: Collection[str]) -> Iterator[str]:
        number = sum(epochs[chain] for chain in counted)
        yield from (name, f"{number:,}", str(sum(compared.count(chain) for chain in counted)))
        if rate:
            yield f"{number * rate.seconds_per_epoch / 3600:.2f}"

    rows += [[*row(chain, [chain]), *(["recorded"] if chain in finished else [])] for chain in chains]
    rows.append([*row("all" if len(left) == len(chains) else "remaining", left)])
    if jobs > 1:
        shares = enumerate(plan.dealt(left, jobs), start=1)
        rows += [[*row(f"job {number}", share), ", ".join(share)] for number, share in shares]

    # Phase: aligned lines, with the rate below.
    widths = [max(map(len, column)) for column in zip(*(cells[: len(rows[0])] for cells in rows), strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=False))])
        + "".join(f"  {word}" for word in cells[len(rows[0]) :])
        for cells in rows
    ]
    if rate is None:
        said = f"hours unknown: there is no finished training of {plan.subject}; give --seconds-per-epoch"
    else:
        said = f"hours at {rate.seconds_per_epoch:.3g} seconds per epoch ({rate.source}), without comparisons"
        said += "; a job takes the longest chain that is left" if jobs > 1 else ""
    return [*lines, said]
