"""Find winning signs with AWS and LRR on scikit-learn's digits, use them, and compare the results.

Searches    aws and lrr, one search each (init_seed 1), 9 prunings to density 0.134
Finals      dense, and retrain, signed_mask and mask of each deepest ticket.
            Two trials each: two fresh initialisations, or two sgd_seeds for retrain
Compared    SGD-noise stability of signed_mask and of retrain. Linear mode connectivity of signed_mask with retrain
Expected    test error in % of two trials: dense 1.10 ± 0.14; AWS: retrain and signed_mask 0.60, mask 1.40;
            LRR: retrain and signed_mask 1.00 ± 0.57, mask 1.20. Other kinds of CPU give slightly different numbers
Time        5 minutes
Hardware    one x86-64 core
Launch      make demo        (or: python recipes/demo.py)
"""

from dataclasses import dataclass, field
from pathlib import Path

from harness.analysis.summary import Summary, epsilon_from_dense
from harness.cli.errors import clear_errors
from harness.cli.options import answer_help, parse
from harness.common.optional import require
from harness.common.program import command
from harness.config import ComparisonConfig, Kind, SearchConfig
from recipes.presets.small import digits_demo

if __name__ == "__main__":
    answer_help(SearchConfig, __doc__, digits_demo())  # before the imports that load torch

from harness.analysis.plots import LinePanel, LineSeries, Series, plot_lines, plot_search
from harness.cli.launch import launch
from harness.cli.terminal import browse_command, run_name, store_options
from harness.experiment.comparison import Comparison, Question, compare
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.runs.run import FinishedRun

METHODS = ("aws", "lrr")
INIT_SEEDS = (2, 3)
SGD_SEEDS = (1, 2)
WELL_TRAINED_PERCENT = 2.0
FRESH: tuple[Kind, ...] = ("signed_mask", "mask")
KINDS = ("retrain", *FRESH)
TRIALS = (
    *(Trial("retrain", INIT_SEEDS[0], sgd_seed) for sgd_seed in SGD_SEEDS),
    *(Trial(kind, init_seed, SGD_SEEDS[0]) for kind in FRESH for init_seed in INIT_SEEDS),
)
TWIN = Trial("signed_mask", INIT_SEEDS[0], SGD_SEEDS[1])
"""The first signed_mask trial with another noise, for its stability."""


@dataclass
class MethodRuns:
    """Search, final trainings and comparisons of one method."""

    result: SearchResult
    trials: dict[str, list[FinishedRun]] = field(default_factory=dict)
    stability: dict[str, list[Comparison]] = field(default_factory=dict)
    """Kind → comparison of two noises; empty on ranks other than 0."""
    connectivity: list[Comparison] = field(default_factory=list)
    """Each signed_mask trial with retrain."""


def run_method(experiment: Experiment, comparison: ComparisonConfig) -> MethodRuns:
    """Search with the experiment's method, run all final trainings of the deepest ticket, compare them."""
    # Phase: search and final trainings.
    result = search(experiment)
    runs = MethodRuns(result)
    for trial in TRIALS:
        runs.trials.setdefault(trial.kind, []).append(final_training(experiment, trial, result.ticket))
    twin = final_training(experiment, TWIN, result.ticket)

    # Phase: comparisons.
    def barrier(question: Question, first: FinishedRun, second: FinishedRun) -> list[Comparison]:
        compared = compare(experiment, first, second, question, comparison)
        return [] if compared is None else [compared]

    signed, retrained = runs.trials["signed_mask"], runs.trials["retrain"]
    runs.stability["retrain"] = barrier("stability", *retrained)
    runs.stability["signed_mask"] = barrier("stability", signed[0], twin)
    runs.connectivity = [one for run in signed for one in barrier("lmc", run, retrained[0])]
    return runs


def errors(runs: list[FinishedRun]) -> list[float]:
    """Return the test error of each run, percent."""
    return [run.metric("test_error_percent") for run in runs]


def show(experiment: Experiment, dense: list[FinishedRun], methods: dict[str, MethodRuns], out: Path) -> None:
    """Print the tables, draw the plots and print the commands that browse the runs (rank 0)."""
    # Phase: test errors.
    density = next(iter(methods.values())).result.ticket.signed_mask.density
    epsilon = epsilon_from_dense(errors(dense))
    if max(errors(dense)) > WELL_TRAINED_PERCENT:
        print(f"warning: the dense network has more than {WELL_TRAINED_PERCENT} % error; the results mean little")
    print(
        f"\nTest error %, mean ± sd; finals at density {density:.3f}; "
        f"one search per method (init_seed {experiment.config.init_seed})\n"
        f"Exploratory: {experiment.config.final.epochs} final epochs give results on speed. Longer ones can differ.\n"
    )
    print(f"{'':<22}" + "".join(f"{method:>24}" for method in methods))
    print(f"{'dense':<22}{Summary.of(errors(dense))!s:>24}")
    for kind in KINDS:
        cells = (str(Summary.of(errors(runs.trials[kind]))) for runs in methods.values())
        print(f"{kind:<22}" + "".join(f"{cell:>24}" for cell in cells))

    # Phase: barriers.
    print(
        "\nError barrier, percentage points: above the straight line, and in brackets the paper's\n"
        f"Connected when the paper's is ≤ ε = {epsilon:.2f}, the sd of dense over two seeds\n"
    )
    found = {method: comparisons(runs) for method, runs in methods.items()}
    for name in next(iter(found.values())):
        cells = (", ".join(map(_barrier, of_method[name])) for of_method in found.values())
        print(f"{name:<22}" + "".join(f"{cell:>28}" for cell in cells))

    # Phase: plots, signed masks, browser.
    plots = draw(dense, methods, out)
    print("\nPlots:\n  " + "\n  ".join(str(plot) for plot in plots if plot.suffix == ".png"))
    print(
        f"\nSigned masks (load_signed_mask(RUN_ID), or {command(f'train --ticket RUN_ID{store_options(experiment)}')}):"
    )
    for method, runs in methods.items():
        print(f"  {method}  {run_name(runs.result.ticket)}")
    print(f"\nBrowse the runs:\n  {browse_command(experiment)}")


def _barrier(comparison: Comparison) -> str:
    return f"{comparison.curve.barrier_above_line:.2f} ({comparison.curve.barrier:.2f})"


def comparisons(runs: MethodRuns) -> dict[str, list[Comparison]]:
    """Return row of the printed table → comparisons."""
    stable = {f"stability {kind}": found for kind, found in runs.stability.items()}
    return stable | {"lmc signed_mask–retrain": runs.connectivity}


def draw(dense: list[FinishedRun], methods: dict[str, MethodRuns], out: Path) -> list[Path]:
    """Plot accuracy of levels and final trainings, and the lines between networks."""
    # Phase: accuracy.
    levels = [
        Series("level", method, {level.signed_mask.density: errors([level]) for level in runs.result.levels})
        for method, runs in methods.items()
    ]
    finals = [
        Series(kind, method, {runs.result.ticket.signed_mask.density: errors(runs.trials[kind])})
        for method, runs in methods.items()
        for kind in KINDS
    ]
    out.mkdir(parents=True, exist_ok=True)
    title = "Test accuracy of ResNet-20 on the digits"
    accuracy = plot_search(levels, finals, out / "accuracy_by_density", dense_error_percent=errors(dense), title=title)

    # Phase: barriers.
    stable = [
        LineSeries(kind, method, [one.curve for one in found])
        for method, runs in methods.items()
        for kind, found in runs.stability.items()
    ]
    connected = [
        LineSeries("signed_mask", method, [one.curve for one in runs.connectivity]) for method, runs in methods.items()
    ]
    panels = [
        LinePanel("SGD-noise stability", ("second run, noise u'", "first run, noise u"), stable),
        LinePanel("connectivity with retrain", ("retrain", "signed_mask"), connected),
    ]
    return [*accuracy, *plot_lines(panels, out / "barriers", title="Error barriers on the line between two networks")]


def main() -> None:
    """Train dense networks, then search, use and compare with each method."""
    with clear_errors():
        settings = parse(SearchConfig, __doc__, default=digits_demo())
        if settings.init_seed in INIT_SEEDS:
            raise ValueError(
                f"init_seed {settings.init_seed} belongs to the final trainings; choose another for the searches"
            )
        if settings.method != digits_demo().method:
            raise ValueError(
                f"the demo runs fixed methods; use `{command('search aws_digits --method …')}` for another one"
            )
        require("matplotlib", "the demo")
        with launch(settings) as experiment:
            # Dense comes first: its error tells whether the other results mean anything.
            dense = [
                final_training(experiment, Trial("dense", init_seed, SGD_SEEDS[0]), None) for init_seed in INIT_SEEDS
            ]
            methods = {method: run_method(experiment.using(method), ComparisonConfig()) for method in METHODS}
            if experiment.world.is_main:
                show(experiment, dense, methods, Path("results") / "demo")


if __name__ == "__main__":
    main()
