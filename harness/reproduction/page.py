"""The result page of a figure: Markdown for readers, CSV for programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from harness.analysis.barrier import BarrierCurve
from harness.analysis.drawing import is_clipped
from harness.analysis.statistics import family_in_words, p_text
from harness.analysis.summary import Summary
from harness.config import SearchConfig
from harness.lineage.nodes.record import BEFORE_TRAINING
from harness.pruning import METHODS
from harness.reproduction.figure import DENSE, PAPER, Figure
from harness.reproduction.figure_plan import FigurePlan, Scale
from harness.reproduction.paper import Printed, prints_numbers
from harness.reproduction.results import QUESTIONS, Judged, Point, Results

RUNS = "## Runs"
EXPLORATORY = "**Exploratory: no plan was committed before these runs.**"
NOT_SHOWN = "The paper does not show this."
NO_NUMBERS = "The paper prints no numbers for this figure."
NO_SUCH_NUMBERS = "The paper prints numbers only for other data, networks or densities."


def page(results: Results, images: Sequence[str]) -> str:
    """Return the page as Markdown; `images` are names of files in its directory."""
    parts = [
        f"# {results.plan.figure.title}",
        _answer(results),
        _head(results),
        *(f"![{results.plan.figure.title}]({image})" for image in images),
        _caption(results) if images else "",
        "## Test accuracy",
        markdown(*accuracy_table(results)),
        _notes(results),
        _claims(results),
        *_barriers(results),
        _norm(results),
        _signs(results),
        _missing(results),
        RUNS,
        _provenance(results),
        markdown(*runs_table(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(results: Results) -> str:
    """Return whether this is the end of training, then the verdicts, shown ones first; empty without claims."""
    if not results.claims:
        return ""
    found: dict[str, list[str]] = {}
    for claim in sorted(results.claims, key=lambda one: one.verdict.word == "not shown"):
        found.setdefault(claim.verdict.word, []).append(" − ".join(claim.sides))
    verdicts = "\n".join(f"- **{word}:** {'; '.join(sides)}." for word, sides in found.items())
    return "\n\n".join(filter(None, [_end_of_training(results), verdicts]))


def _end_of_training(results: Results) -> str:
    """Return a sentence if the verdicts may be about speed only; empty if the dense network is trained to the end."""
    usual, longer = results.plan.scale.finals.final.epochs, results.plan.dense_at_ticket_cost
    if results.is_untrained is None:
        return (
            f"**Whether {usual} final epochs are the end of training was not tested: no longer dense training is "
            "finished. Differences may be about speed only.**"
        )
    if results.is_untrained:
        return (
            f"**Speed only: the dense network is not trained to the end after {usual} epochs. With {longer} it gains "
            f"{signed(results.dense_gain or 0)} points. No claim is made against it at {usual} epochs.**"
        )
    return ""


def _head(results: Results) -> str:
    plan = results.plan
    searches = "one search for all trials" if plan.shared_search else "one search for each trial"
    trials = "1 trial" if plan.scale.trials == 1 else f"{plan.scale.trials} trials, {searches}"
    lines = [
        EXPLORATORY,
        f"{plan.subject}; {trials}. {plan.figure.source or f'Not in {PAPER}'}.",
        schedules(plan),
    ]
    if plan.scale.reduction:
        lines.append(f"**This is a reduction, not a reproduction of the paper's numbers:** {plan.scale.reduction}.")
    return "\n\n".join(lines)


def _caption(results: Results) -> str:
    """Return the sentences that explain the plot."""
    # Panel (a).
    lines = [
        "(a) Test accuracy: means, standard deviations (bars) and single trials (small dots). Colour and marker stand "
        "for the kind, filling for the method."
    ]
    groups = [[*results.errors(point.curve, point.level, point.length).values()] for point in results.points]
    if is_clipped([100 - error for error in group] for group in groups):
        lines.append("Bars are clipped at 100 %.")
    lines.append("Density is the kept share of the prunable weights.")

    # The panels of lines between networks.
    lines += [f"({letter}) {panel.title}." for letter, panel in zip("bcdefgh", results.panels, strict=False)]
    if results.panels:
        lines.append(
            f"The lines between two networks are at density {results.barrier_density:.4f}: means over trials, standard "
            "deviations (shaded) and single trials (thin lines)."
        )
    for letter, panel in zip("bcdefgh", results.panels, strict=False):
        if panel.title == QUESTIONS["lmc"] and any(one.kind == "retrain" for one in panel.series):
            lines.append(f"In ({letter}), `retrain` shows its own stability as a reference.")
    if any(panel.as_barrier for panel in results.panels):
        lines.append("The barrier E_α is the error at α minus the mean error of the two ends.")
    return " ".join(lines)


def schedules(plan: FigurePlan) -> str:
    """Return optimizer and epochs of searches and final trainings."""
    # Phase: one line, or one for each data set.
    scale, config, finals = plan.scale, plan.scale.config, plan.scale.finals
    scored = [method for method in plan.figure.methods if METHODS[method].searches_one_density]
    search = f"warm-up {config.warmup_epochs} epochs, {config.level_epochs} epochs per level"
    final = f"{finals.final.epochs} epochs per final training ({finals.final.lr_schedule})"
    if scale.used_on is not None:
        lines = [f"{_optim(config)}; {search}.", f"On {finals.data.name}: {_optim(finals)}; {final}."]
    elif len(scored) == len(plan.figure.methods):  # only the dense network has the schedule of final trainings
        lines = [f"dense: {_optim(config)}; {finals.final.epochs} epochs ({finals.final.lr_schedule})."]
    else:
        lines = [f"{_optim(config)}; {search}, {final}."]

    # Phase: methods with schedules of their own.
    whole = [method for method in plan.figure.methods if "final" in METHODS[method].heeds]
    if whole:
        lines.append(f"{', '.join(whole)}: each level has the length and the schedule of a final training.")
    return "\n\n".join([*lines, *(f"{method}: {_scoring(scale)}." for method in scored)])


def _scoring(scale: Scale) -> str:
    gem = scale.config.gem_miner
    penalties = {f"{scale.density(level):g}": f"{scale.gem_miner(level).penalty:g}" for level in scale.levels}
    if len({*penalties.values()}) == 1:
        lambdas = next(iter(penalties.values()))
    else:
        lambdas = ", ".join(f"{penalty} at density {density}" for density, penalty in penalties.items())
    scores = f"{gem.score_epochs} epochs of score training, learning rate {gem.lr:g}, λ {lambdas}"
    scores += "" if gem.num_train is None else f", {gem.num_train:,} training images"
    return (
        f"batch {scale.config.global_batch_size}; {scores}, lowest scores frozen every {gem.freeze_every_epochs} "
        f"epochs; {gem.finetune.epochs} epochs of fine-tuning ({gem.finetune.lr_schedule}), learning rate "
        f"{gem.finetune_lr:g}, weight decay {gem.finetune_weight_decay:g}"
    )


def _optim(config: SearchConfig) -> str:
    optim = config.optim
    rates = f"learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}"
    return f"{optim.name}, {rates}, batch {config.global_batch_size}"


def accuracy_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each curve at each density, with the paper's number where it prints one."""
    weights = ["weights"] if results.prunes_classifier else []
    head = ["trained from", "density", *weights, "accuracy %", "sd", "trials", "signs turned %", "epochs"]
    with_paper = any(point.paper for point in results.points)
    if with_paper:
        head += ["paper %", "paper sd", "difference"]
    return head, [_row(point, with_weights=bool(weights), with_paper=with_paper) for point in results.points]


def _row(point: Point, *, with_weights: bool, with_paper: bool) -> list[str]:
    ours = point.accuracy_percent
    row = [
        point.name,
        f"{point.density:.4f}",
        *(["" if point.weights is None else f"{point.weights.mean:,.0f}"] if with_weights else []),
        f"{ours.mean:.2f}",
        _sd(ours),
        str(ours.count),
        "" if point.flipped_percent is None else f"{point.flipped_percent.mean:.2f}",
        f"{point.epochs:.0f}",
    ]
    if with_paper:
        paper = point.paper
        row += ["", "", ""] if paper is None else [f"{paper.mean:.2f}", _sd(paper), f"{point.difference:+.2f}"]
    return row


def _sd(summary: Summary | Printed) -> str:
    return "" if summary.sd is None else f"{summary.sd:.2f}"


def _notes(results: Results) -> str:
    lines = [
        "Accuracy is the mean over all trials. sd is the sample standard deviation (n − 1). Signs turned: the share of "
        "kept weights whose sign differs from the sign at the start. Epochs: the total for one network, search "
        "included. A ticket costs more epochs than the dense network of the usual length.",
    ]
    if results.plan.scale.used_on:
        where = (results.plan.scale.config.data.name, results.plan.scale.finals.data.name)
        lines.append("A ticket's search is on {}, its final training on {}.".format(*where))
    if (gain := results.dense_gain) is not None:
        lines.append(_dense_gain(results, gain))
    if results.prunes_classifier:
        lines += _weights(results)
    if not results.has_printed:
        lines.append(_why_no_numbers(results.plan.figure))
    return "\n\n".join(lines)


def _dense_gain(results: Results, gain: float) -> str:
    plan = results.plan
    usual, epochs = plan.scale.finals.final.epochs, plan.dense_at_ticket_cost
    text = f"With {epochs} epochs, the cost of its deepest ticket, the dense network gains {signed(gain)} points."
    if results.is_untrained:
        text += f" With {usual} epochs it is not trained to the end. A kind ahead of it may only be faster."
    return text


def _weights(results: Results) -> list[str]:
    """Explain the counts of weights where only some methods prune the classifier."""
    plan = results.plan
    classifier = f"{plan.num_weights[1]:,}"
    lines = [
        "Weights: the kept weights of convolutions and linear layers, classifier included. Biases and normalisation "
        "parameters are not counted."
    ]
    for curve in plan.figure.curves:
        # Phase: methods that keep the classifier need no note.
        if not METHODS[curve.method].masks_classifier:
            continue
        if curve.kind != "level":
            lines.append(
                f"{curve} uses the signs at the end of the search of {curve.method}, after fine-tuning. “Signs turned” "
                f"of its level compares them with the signs of the frozen weights. {curve} and level ({curve.method}) "
                "differ in more than θ_init: in the schedule and rate of the last training, in the number of its "
                "images if the search sets one, in magnitudes, and in norm parameters and biases."
            )
            continue

        # Phase: its density with and without the classifier.
        text = f"The density of {curve} counts the classifier; the other densities do not"
        found = {level: results.density_without_classifier(curve, level) for level in plan.scale.levels}
        both = [f"{rest:.4f} at {results.density(level, curve):.4f}" for level, rest in found.items() if rest]
        lines.append(f"{text}. Without the classifier: {', '.join(both)}." if both else f"{text}.")

        # Phase: what the comparison is matched by.
        if plan.figure.equal_weights:
            lines.append(
                f"The compared tickets have equal numbers of weights, which are the plot's axis. {curve.method} is "
                f"searched at densities that match the other methods, which keep all {classifier} weights of the "
                "classifier. It freezes the planned number of scores at each freezing. Its authors' code freezes equal "
                "scores together, so it can keep fewer weights."
            )
        elif len(plan.figure.methods) > 1:
            lines.append(
                f"The other methods keep all {classifier} weights of the classifier. At equal density they have more "
                "weights. The figure `fig4_equal` compares equal numbers."
            )
    return lines


def _why_no_numbers(figure: Figure) -> str:
    if figure.source is None:
        return NOT_SHOWN
    return NO_SUCH_NUMBERS if prints_numbers(figure.name) else NO_NUMBERS


def claims_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each claim about two curves, its contrast and its verdict."""
    says = "paper: a is … b" if results.plan.figure.source else "question"
    head = ["a", "b", says, "tested", "accuracy a − b", "95 % interval", "trials", "p (Holm)", "verdict"]
    rows = []
    for claim in results.claims:
        stated, found = claim.statement, claim.verdict
        verdict = f"{found.word}: {found.reason}" if found.reason else found.word
        rows.append(
            [
                *(*claim.sides, stated.says, stated.tested),
                *(signed(found.difference), interval_text(found.interval), str(found.trials)),
                *(p_text(found.holm_p), verdict),
            ]
        )
    return head, rows


def differences_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: accuracy a − b of each claim by density, percentage points."""
    densities = list(dict.fromkeys(density for claim in results.claims for density in claim.by_density))
    rows = []
    for claim in results.claims:
        found = claim.by_density
        rows.append([*claim.sides, *(signed(found[one]) if one in found else "" for one in densities)])
    return ["a", "b", *(f"{density:.4f}" for density in densities)], rows


def signed(points: float) -> str:
    """Format a difference in percentage points."""
    return f"{round(points, 2) + 0.0:+.2f}"  # + 0.0: no −0.00


def interval_text(interval: Sequence[float] | None) -> str:
    """Format a 95 % interval; None, of a single trial, gives an empty text."""
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _claims(results: Results) -> str:
    figure = results.plan.figure
    if not figure.claims:
        return ""
    title = "## Claims of the paper" if figure.source else "## Questions"
    if not results.claims:
        return f"{title}\n\nNo trial has both curves of any claim yet."
    parts = [title, markdown(*claims_table(results)), _how_tested(results)]
    if any(len(claim.by_density) > 1 for claim in results.claims):
        parts += ["Differences by density, without verdicts:", markdown(*differences_table(results))]
    return "\n\n".join(parts)


def _how_tested(results: Results) -> str:
    """Return how contrasts, intervals and p-values are computed."""
    claims = results.claims
    lines = [
        "Each row is one contrast: the difference of accuracy in percentage points, paired by trial, averaged over the "
        f"densities that both curves have. {_shared(results)}",
        f"The interval is a BCa bootstrap over {_resampled(claims)}.",
        "The p-values are exact sign-flip tests over trials, with Holm's correction for all claims of this page. "
        "“Shown” needs p ≤ 0.05, the stated direction, and an interval that excludes the opposite. |a − b| < m is "
        "tested against both ends of the margin, a > b − m against its lower end.",
        family_in_words([claim.verdict for claim in claims]),
    ]
    if results.unclaimed:
        left = "; ".join(f"{one.first or DENSE} − {one.second or DENSE}" for one in results.unclaimed)
        lines.append(f"Not tested, because the dense network is not trained to the end: {left}.")
    if results.plan.shared_search:
        lines.append("All trials share one search, so the results hold for its tickets only.")
    return "\n\n".join(lines)


def _shared(results: Results) -> str:
    """Return which seeds the two sides of a trial share, in words."""
    told = (
        "Both sides of a trial share the seeds of their searches, and the noise of final trainings. Kinds that draw a "
        "fresh initialisation share it."
    )
    if any(side.startswith("level (") for claim in results.claims for side in claim.sides):
        told += " A `level` is a network of the search, with the search's own noise and initialisation."
    return told


def _resampled(claims: Sequence[Judged]) -> str:
    """Return the units that the intervals resample, in words."""
    alone = [" − ".join(claim.sides) for claim in claims if not claim.verdict.by_images]
    if not alone:
        return "trials and test images"
    why = "because some runs lack results for single test images"
    if len(alone) == len(claims):
        return f"trials only, {why}"
    return f"trials and test images, but over trials only in {'; '.join(alone)}, {why}"


def barriers_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: the barriers between trainings by question and curve, percentage points."""
    head = ["question", "trained from", "above the line", "sd", "trials", "barrier", "floor", "connected"]
    epsilon = results.epsilon
    rows = []
    for question, name, found in _comparisons(results, before_training=False):
        above = Summary.of(curve.barrier_above_line for curve in found)
        barrier = Summary.of(curve.barrier for curve in found).mean
        floor = Summary.of(curve.floor for curve in found).mean
        connected = "" if epsilon is None else f"{sum(c.connected(epsilon) for c in found)} of {len(found)}"
        numbers = [f"{above.mean:.2f}", _sd(above), str(above.count), f"{barrier:.2f}", f"{floor:.2f}"]
        rows.append([question, name, *numbers, connected])
    return head, rows


def before_training_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: test errors of tickets and their copies, before any final training."""
    head = ["comparison", "ticket", "copy − ticket", "sd", "trials"]
    head += ["ticket error %", "copy error %", "above the line"]
    rows = []
    for question, name, found in _comparisons(results, before_training=True):
        difference = Summary.of(curve.error_difference for curve in found)
        columns = (
            [curve.error_a_percent for curve in found],
            [curve.error_b_percent for curve in found],
            [curve.barrier_above_line for curve in found],
        )
        numbers = [signed(difference.mean), _sd(difference), str(difference.count)]
        rows.append([question, name, *numbers, *(f"{Summary.of(column).mean:.2f}" for column in columns)])
    return head, rows


def _comparisons(results: Results, *, before_training: bool) -> Iterator[tuple[str, str, list[BarrierCurve]]]:
    """Yield the question, the compared trainings, and the curve of each trial."""
    for question, curves in results.barriers.items():
        if (question in BEFORE_TRAINING) == before_training:
            yield from ((QUESTIONS[question], name, found) for name, found in curves.items())


def _barriers(results: Results) -> list[str]:
    """Return headings, tables and explanations of the lines between networks; empty if there are none."""
    epsilon, density = results.epsilon, results.barrier_density
    if density is None:
        return []
    if epsilon is not None:
        known = f"{epsilon:.2f}"
    elif results.is_untrained:
        known = "not given, because the dense network is not trained to the end"
    else:
        known = "unknown, because it needs two dense trials"
    # Phase: trainings, then tickets.
    parts = []
    if (table := barriers_table(results))[1]:
        parts += [
            f"## Error barriers at density {density:.4f}",
            markdown(*table),
            "Percentage points of test error. Above the line: the largest excess over the straight line between the "
            "errors of the two ends. Barrier: the paper's, the largest excess over the mean error of the two ends. "
            "Floor: half the difference of the two errors, which no barrier is below. Connected: barrier ≤ ε. ε is the "
            f"sd of the dense error over trials ({known}).",
        ]
    if (table := before_training_table(results))[1]:
        parts += [
            f"## Tickets and their copies before any final training, at density {density:.4f}",
            markdown(*table),
            "The difference is in percentage points of test error. Above the line: the largest excess over the "
            "straight line between the errors of the ticket and the copy.",
        ]
    return parts


def norm_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: normalisation parameters of each method's tickets, mean over searches."""
    head = ["method", "scales, mean", "scales at θ_init, mean", "scales, sd", "negative scales %"]
    head += ["mean change of shifts", "searches"]
    rows = []
    for method, found in results.norm.items():
        columns = (
            [one.scale_mean for one in found],
            [one.initial_scale_mean for one in found],
            [one.scale_sd for one in found],
            [one.negative_percent for one in found],
            [one.shift for one in found],
        )
        rows.append([method, *(f"{Summary.of(column).mean:.3f}" for column in columns), str(len(found))])
    return head, rows


def _norm(results: Results) -> str:
    if not results.norm:
        return ""
    told = (
        "Over all channels of the tickets that are compared with their copies with ψ_init, mean over searches. The sd "
        "is over the channels of a ticket. The change of a shift is absolute."
    )
    return f"## Normalisation parameters of the tickets\n\n{markdown(*norm_table(results))}\n\n{told}"


def signs_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: share of signs that each method keeps from level to level, by density."""
    levels = results.plan.scale.levels
    rows = []
    for finder in results.plan.figure.finders:
        shares = [results.kept_signs.get((finder, level), []) for level in levels]
        if any(shares):
            rows.append([finder, *(f"{100 * Summary.of(found).mean:.2f} %" if found else "" for found in shares)])
    return ["method", *(f"{results.density(level):.4f}" for level in levels)], rows


def _signs(results: Results) -> str:
    if not results.kept_signs:
        return ""
    told = "Share of a level's kept weights that have the sign of the previous level, mean over searches."
    return f"## Signs kept from level to level, by density\n\n{markdown(*signs_table(results))}\n\n{told}"


def _missing(results: Results) -> str:
    if not results.missing:
        return ""
    names = results.missing
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"**Not finished: {len(names)} runs** ({shown}). The means are over finished trials."


def _provenance(results: Results) -> str:
    made = results.provenance
    lines = [f"{len(results.nodes)} runs and their searches, {made.minutes:.0f} minutes of wall time."]
    for name, found in (("Hardware", made.hardware), ("Precision", made.precision), ("Code", made.code)):
        if found:
            lines.append(f"{name}: {'; '.join(found)}.")
    if made.commands:
        # Commands are portable without the path of the clone.
        commands = [re.sub(r"\S*/(?=(recipes|tools)/)", "", command) for command in made.commands]
        lines.append("Commands:\n\n```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    return "\n\n".join(lines)


def runs_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: every run of the page, by its name in the plan."""
    rows = [
        [str(one), node.run_id or node.key[:16], "test error %", f"{node.metrics['test_error_percent']:.2f}"]
        for one, node in results.trained.items()
    ]
    for pair, (node, curve) in results.compared.items():
        before = pair.question in BEFORE_TRAINING
        number = signed(curve.error_difference) if before else f"{curve.barrier_above_line:.2f}"
        rows.append([str(pair), node.run_id or node.key[:16], "copy − ticket" if before else "above the line", number])
    return ["run of the plan", "run ID", "measure", "value"], rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()
