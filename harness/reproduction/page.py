"""The result page of a figure: Markdown for people, CSV for programs, made from `Results` alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from harness.analysis.barrier import BarrierCurve
from harness.analysis.statistics import family_in_words, p_text
from harness.analysis.summary import Summary
from harness.config import SearchConfig
from harness.pruning import METHODS
from harness.reproduction.figure import PAPER, Figure
from harness.reproduction.figure_plan import FigurePlan, Scale
from harness.reproduction.paper import Printed, prints_numbers
from harness.reproduction.results import BEFORE_TRAINING, QUESTIONS, Judged, Point, Results
from harness.reproduction.study_results import GAIN_POINTS

RUNS = "## Runs"
EXPLORATORY = "**Exploratory: no plan was committed before these runs.**"
NOT_SHOWN = "The paper does not show this."
NO_NUMBERS = "The paper prints no numbers of this: there are none to compare with."
NO_SUCH_NUMBERS = "The paper's numbers are of other data, networks or densities: there are none to compare with."


def page(results: Results, images: Sequence[str]) -> str:
    """Return the page, with `images` (file names beside it) shown first."""
    parts = [
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


def _head(results: Results) -> str:
    plan = results.plan
    searches = "one search for all trials" if plan.shared_search else "a search of its own for each trial"
    trials = "1 trial" if plan.scale.trials == 1 else f"{plan.scale.trials} trials, {searches}"
    lines = [
        f"# {plan.figure.title}",
        f"{plan.subject}; {trials}. {plan.figure.source or f'Not in {PAPER}'}.",
        _schedules(plan),
        EXPLORATORY,
    ]
    if plan.scale.reduction:
        lines.append(f"**This is a reduction, not a reproduction of the paper's numbers:** {plan.scale.reduction}.")
    return "\n\n".join(lines)


def _caption(results: Results) -> str:
    parts = ["(a) test accuracy over density: means, standard deviations (bars) and single trials (dots)"]
    parts += [f"({letter}) {panel.title}" for letter, panel in zip("bcdefgh", results.panels, strict=False)]
    lines = [f"{'; '.join(parts)}."]
    if results.panels:
        lines.append(
            f"On the lines between two networks, at density {results.barrier_density:.4f}, points are means over "
            "trials and shaded areas standard deviations."
        )
    for letter, panel in zip("bcdefgh", results.panels, strict=False):
        if panel.title == QUESTIONS["lmc"] and any(one.kind == "retrain" for one in panel.series):
            lines.append(f"In ({letter}), `retrain` is its own stability, for reference.")
    if any(panel.as_barrier for panel in results.panels):
        lines.append("The barrier E_α is the error at α less the mean of the ends' errors.")
    return " ".join(lines)


def _schedules(plan: FigurePlan) -> str:
    scale, config, finals = plan.scale, plan.scale.config, plan.scale.finals
    scored = [method for method in plan.figure.methods if METHODS[method].searches_one_density]
    search = f"warm-up {config.warmup_epochs} epochs, {config.level_epochs} a level"
    final = f"{finals.final.epochs} epochs in a final training ({finals.final.lr_schedule})"
    if scale.used_on is not None:
        lines = [f"{_optim(config)}; {search}.", f"On {finals.data.name}: {_optim(finals)}; {final}."]
    elif len(scored) == len(plan.figure.methods):  # only the dense network has the schedule of final trainings
        lines = [f"dense: {_optim(config)}; {finals.final.epochs} epochs ({finals.final.lr_schedule})."]
    else:
        lines = [f"{_optim(config)}; {search}, {final}."]
    whole = [method for method in plan.figure.methods if "final" in METHODS[method].heeds]
    if whole:
        lines.append(f"{', '.join(whole)}: each level has the epochs and the schedule of a final training.")
    return "\n\n".join([*lines, *(f"{method}: {_scoring(scale)}." for method in scored)])


def _scoring(scale: Scale) -> str:
    gem = scale.config.gem_miner
    penalties = {f"{scale.density(level):g}": f"{scale.gem_miner(level).penalty:g}" for level in scale.levels}
    if len({*penalties.values()}) == 1:
        lambdas = next(iter(penalties.values()))
    else:
        lambdas = ", ".join(f"{penalty} at density {density}" for density, penalty in penalties.items())
    scores = f"{gem.score_epochs} epochs of scores, learning rate {gem.lr:g}, λ {lambdas}"
    scores += "" if gem.num_train is None else f", {gem.num_train:,} training images"
    return (
        f"batch {scale.config.global_batch_size}; {scores}, the lowest frozen every {gem.freeze_every_epochs} epochs; "
        f"{gem.finetune.epochs} of fine-tuning ({gem.finetune.lr_schedule}), learning rate {gem.finetune_lr:g}, weight "
        f"decay {gem.finetune_weight_decay:g}"
    )


def _optim(config: SearchConfig) -> str:
    optim = config.optim
    rates = f"learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}"
    return f"{optim.name}, {rates}, batch {config.global_batch_size}"


def accuracy_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each curve at each density, ours, the paper's, the difference."""
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
        "Accuracy is the mean over all trials, never the best; sd is the sample's (n − 1). Signs turned: of the kept "
        "weights, those whose sign is no longer the start's. Epochs: all that were spent for one such network, its "
        "search included; a ticket has cost more than the dense network of the usual length.",
    ]
    if results.plan.scale.used_on:
        where = (results.plan.scale.config.data.name, results.plan.scale.finals.data.name)
        lines.append("Of the epochs of a ticket those of its search are on {}, the rest on {}.".format(*where))
    if (gain := results.dense_gain) is not None:
        lines.append(_dense_gain(results.plan, gain))
    if results.prunes_classifier:
        lines += _weights(results)
    if not results.has_printed:
        lines.append(_why_no_numbers(results.plan.figure))
    return "\n\n".join(lines)


def _dense_gain(plan: FigurePlan, gain: float) -> str:
    usual, epochs = plan.scale.finals.final.epochs, plan.dense_at_ticket_cost
    text = f"With {epochs} epochs, as many as its deepest ticket costs, the dense network gains {signed(gain)} points."
    if gain > GAIN_POINTS:
        text += f" With {usual} it is not trained to the end: what is ahead of it there can be faster, and no better."
    return text


def _weights(results: Results) -> list[str]:
    """Return what densities and weights count, where a method prunes the classifier and others keep it."""
    plan = results.plan
    classifier = f"{plan.num_weights[1]:,}"
    lines = [
        "Weights: the kept weights of convolutions and linear layers, those of the classifier included; biases and "
        "normalisation parameters are left out."
    ]
    for curve in plan.figure.curves:
        if not METHODS[curve.method].masks_classifier:
            continue
        if curve.kind != "level":
            lines.append(
                f"{curve} takes the signs that the search of {curve.method} ends with, fine-tuning included. “Signs "
                "turned” of its level says how many of them are not those of the frozen weights."
            )
            continue
        text = f"The density of {curve} counts the classifier, as no other does"
        found = {level: results.density_without_classifier(curve, level) for level in plan.scale.levels}
        both = [f"{rest:.4f} at {results.density(level, curve):.4f}" for level, rest in found.items() if rest]
        lines.append(f"{text}; without: {', '.join(both)}." if both else f"{text}.")
        if plan.figure.equal_weights:
            lines.append(
                f"Compared are tickets of equal numbers of weights; the plot is over this number. {curve.method} is "
                f"searched at densities that give it as many as the others have, which keep all {classifier} weights "
                "of the classifier. Its search can end with less, as the column says."
            )
        elif len(plan.figure.methods) > 1:
            lines.append(
                f"The others keep all {classifier} weights of the classifier: at one density they have more weights. "
                "The figure `fig4_equal` compares equal numbers."
            )
    return lines


def _why_no_numbers(figure: Figure) -> str:
    if figure.source is None:
        return NOT_SHOWN
    return NO_SUCH_NUMBERS if prints_numbers(figure.name) else NO_NUMBERS


def claims_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each statement or question about two curves, its one contrast, and the verdict."""
    says = "paper: a is … b" if results.plan.figure.source else "of a against b"
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
    """Return head and rows: accuracy a − b of each statement by density, percentage points."""
    densities = list(dict.fromkeys(density for claim in results.claims for density in claim.by_density))
    rows = []
    for claim in results.claims:
        found = claim.by_density
        rows.append([*claim.sides, *(signed(found[one]) if one in found else "" for one in densities)])
    return ["a", "b", *(f"{density:.4f}" for density in densities)], rows


def signed(points: float) -> str:
    """Return a difference in percentage points as pages write it."""
    return f"{round(points, 2) + 0.0:+.2f}"  # + 0.0: no −0.00


def interval_text(interval: Sequence[float] | None) -> str:
    """Return a 95 % interval as pages write it; nothing for None, of a single trial."""
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _claims(results: Results) -> str:
    figure = results.plan.figure
    if not figure.claims:
        return ""
    title = "## What the paper says of it" if figure.source else "## What is asked of it"
    if not results.claims:
        return f"{title}\n\nNo trial has two curves that are compared yet."
    parts = [title, markdown(*claims_table(results)), _how_tested(results)]
    if any(len(claim.by_density) > 1 for claim in results.claims):
        parts += ["By density, without a verdict:", markdown(*differences_table(results))]
    return "\n\n".join(parts)


def _how_tested(results: Results) -> str:
    claims = results.claims
    lines = [
        "Each row is one contrast: the difference of accuracy, percentage points, trial by trial, mean over the "
        "densities that both curves have. Both sides of a trial have the same search seeds and noise, and the same "
        "fresh initialisation where they draw one.",
        f"The interval is a BCa bootstrap over {_resampled(claims)}.",
        "p is exact, by sign flips over trials, and corrected by Holm for all claims of this page. “Shown” is p ≤ "
        "0.05, the stated direction, and an interval that allows nothing else. |a − b| < m is tested against both ends "
        "of the margin, a > b − m against its lower end.",
        family_in_words([claim.verdict for claim in claims]),
    ]
    if results.plan.shared_search:
        lines.append("All trials share one search: nothing here speaks of another search's tickets.")
    return "\n\n".join(lines)


def _resampled(claims: Sequence[Judged]) -> str:
    """Return what the intervals are resampled over."""
    alone = [" − ".join(claim.sides) for claim in claims if not claim.verdict.by_images]
    if not alone:
        return "trials and test images"
    why = "since not all of their runs store which test images were right"
    if len(alone) == len(claims):
        return f"trials alone, {why}"
    return f"trials and test images, but over trials alone in {'; '.join(alone)}, {why}"


def barriers_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: the barrier of each question about trainings and each curve, percentage points."""
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
    """Return head and rows: the test errors of tickets and their copies, before either is trained any further."""
    head = ["ticket and copy", "of", "copy − ticket", "sd", "trials"]
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
    """Yield the question in words, the trainings compared, and the curve of each trial."""
    for question, curves in results.barriers.items():
        if (question in BEFORE_TRAINING) == before_training:
            yield from ((QUESTIONS[question], name, found) for name, found in curves.items())


def _barriers(results: Results) -> list[str]:
    epsilon, density = results.epsilon, results.barrier_density
    if density is None:
        return []
    known = "unknown: it needs two dense trials" if epsilon is None else f"{epsilon:.2f}"
    parts = []
    if (table := barriers_table(results))[1]:
        parts += [
            f"## Error barriers at density {density:.4f}",
            markdown(*table),
            "Percentage points of test error. Above the line: the largest excess over the straight line between the "
            "errors of the two ends. Barrier: the largest excess over their mean, as in the paper. Floor: half their "
            "difference, which no barrier is below. Connected: barrier ≤ ε, the sd of the dense error over trials "
            f"({known}).",
        ]
    if (table := before_training_table(results))[1]:
        parts += [
            f"## Tickets and their copies before training, at density {density:.4f}",
            markdown(*table),
            "Test errors; the difference is in percentage points. Above the line: the largest excess over the straight "
            "line between the errors of the two.",
        ]
    return parts


def norm_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: the normalisation parameters of each method's tickets, mean over the searches."""
    head = ["method", "scales, mean", "… at θ_init", "scales, sd", "negative %", "shifts moved by", "searches"]
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
        "Of all channels together, in the tickets that are compared above with their copies with ψ_init, mean over the "
        "searches; the sd is over the channels of a ticket, and shifts are counted without their sign."
    )
    return f"## Normalisation parameters of the tickets\n\n{markdown(*norm_table(results))}\n\n{told}"


def signs_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: how many signs each method keeps from one level to the next, by density."""
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
    told = "Share of a level's kept weights that have the sign they had a level before, mean over the searches."
    return f"## Signs from level to level, by density\n\n{markdown(*signs_table(results))}\n\n{told}"


def _missing(results: Results) -> str:
    if not results.missing:
        return ""
    names = results.missing
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"**Not finished: {len(names)} runs** ({shown}). The means above are over the trials that are."


def _provenance(results: Results) -> str:
    made = results.provenance
    lines = [f"{len(results.nodes)} runs and their searches: {made.minutes:.0f} minutes in all, as the clock went."]
    for name, found in (("Hardware", made.hardware), ("Precision", made.precision), ("Code", made.code)):
        if found:
            lines.append(f"{name}: {'; '.join(found)}.")
    if made.commands:
        # where the clone lay is nobody's business
        commands = [re.sub(r"\S*/(?=(recipes|tools)/)", "", command) for command in made.commands]
        lines.append("Launched by:\n\n```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    return "\n\n".join(lines)


def runs_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: every run the page rests on, by its name in the plan."""
    rows = [
        [str(one), node.run_id or node.key[:16], "test error %", f"{node.metrics['test_error_percent']:.2f}"]
        for one, node in results.trained.items()
    ]
    for pair, (node, curve) in results.compared.items():
        before = pair.question in BEFORE_TRAINING
        number = signed(curve.error_difference) if before else f"{curve.barrier_above_line:.2f}"
        rows.append([str(pair), node.run_id or node.key[:16], "copy − ticket" if before else "above the line", number])
    return ["run of the plan", "run ID", "of", "value"], rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()
