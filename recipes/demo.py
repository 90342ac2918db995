"""The whole story on scikit-learn's digits in one launch: find winning signs with AWS and LRR, use them, compare.

Searches    aws and lrr, one each (init_seed 1), 9 prunings to density 0.134
Finals      from each deepest ticket: retrain, signed_mask and mask; and dense; for two fresh initialisations
            (retrain draws none: its two trials differ in sgd_seed)
Compared    SGD-noise stability of signed_mask and of retrain; linear mode connectivity of signed_mask with retrain
Expected    test error in % of two trials: dense 1.10 ± 0.14; AWS: retrain and signed_mask 0.60, mask 1.40;
            LRR: retrain and signed_mask 1.00 ± 0.57, mask 1.20
Time        5 minutes
Hardware    one of two x86-64 cores
Launch      make demo        (or: python recipes/demo.py)
"""

from dataclasses import dataclass, field
from pathlib import Path

from harness.analysis.summary import Summary, epsilon_from_dense
from harness.cli.errors import clear_errors
from harness.cli.options import answer_help, parse
from harness.config import ComparisonConfig, Kind, SearchConfig
from recipes.presets.small import digits_demo

if __name__ == "__main__":
    answer_help(SearchConfig, __doc__, digits_demo())  # before the imports that load torch

from harness.analysis.plots import Series, plot_accuracy, plot_barriers
from harness.cli.launch import launch
from harness.cli.terminal import run_name, ui_command
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
"""The first signed_mask trial under another noise, for its stability."""


@dataclass
class Story:
    """The search, final trainings and comparisons of one method."""

    result: SearchResult
    trials: dict[str, list[FinishedRun]] = field(default_factory=dict)
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)


def tell(experiment: Experiment, comparison: ComparisonConfig) -> Story:
    """Search with the experiment's method, train the deepest ticket in every way, compare."""
    result = search(experiment)
    story = Story(result)
    for trial in TRIALS:
        story.trials.setdefault(trial.kind, []).append(final_training(experiment, trial, result.ticket))
    twin = final_training(experiment, TWIN, result.ticket)

    def barrier(question: Question, first: FinishedRun, second: FinishedRun) -> list[Comparison]:
        compared = compare(experiment, first, second, question, comparison)
        return [] if compared is None else [compared]

    story.comparisons["stability retrain"] = barrier("stability", *story.trials["retrain"])
    story.comparisons["stability signed_mask"] = barrier("stability", story.trials["signed_mask"][0], twin)
    story.comparisons["lmc signed_mask–retrain"] = [
        one for node in story.trials["signed_mask"] for one in barrier("lmc", node, story.trials["retrain"][0])
    ]
    return story


def errors(nodes: list[FinishedRun]) -> list[float]:
    """Return the test error of each trial, percent."""
    return [node.metric("test_error_percent") for node in nodes]


def show(experiment: Experiment, dense: list[FinishedRun], stories: dict[str, Story], out: Path) -> None:
    """Print the table, draw the plots and say where everything is (rank 0)."""
    density = next(iter(stories.values())).result.ticket.signed_mask.density
    epsilon = epsilon_from_dense(errors(dense))
    if max(errors(dense)) > WELL_TRAINED_PERCENT:
        print(f"warning: the dense network is above {WELL_TRAINED_PERCENT} % error: nothing that follows means much")
    print(
        f"\nTest error %, mean ± sd; finals at density {density:.3f}; "
        f"one search per method (init_seed {experiment.config.init_seed})\n"
        f"This is speed, after {experiment.config.final.epochs} final epochs: longer trainings can end elsewhere.\n"
    )
    print(f"{'':<22}" + "".join(f"{method:>24}" for method in stories))
    print(f"{'dense':<22}{Summary.of(errors(dense))!s:>24}")
    for kind in KINDS:
        cells = (str(Summary.of(errors(story.trials[kind]))) for story in stories.values())
        print(f"{kind:<22}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\nError barrier, percentage points (connected when ≤ ε = {epsilon:.2f}, the sd of dense over two seeds)\n")
    for name in next(iter(stories.values())).comparisons:
        cells = (", ".join(f"{one.curve.barrier:.2f}" for one in story.comparisons[name]) for story in stories.values())
        print(f"{name:<22}" + "".join(f"{cell:>24}" for cell in cells))
    plots = draw(dense, stories, out)
    print("\nPlots:\n  " + "\n  ".join(str(plot) for plot in plots if plot.suffix == ".png"))
    print("\nSigned masks (load_signed_mask(RUN_ID), or recipes/train_ticket.py --ticket RUN_ID):")
    for method, story in stories.items():
        print(f"  {method}  {run_name(story.result.ticket)}")
    print(f"\nBrowse it all:\n  {ui_command(experiment)}")


def draw(dense: list[FinishedRun], stories: dict[str, Story], out: Path) -> list[Path]:
    """Plot accuracy by density (levels of the searches, and the final trainings) and the barrier curves."""
    series = []
    for method, story in stories.items():
        levels = story.result.levels
        by_density = {node.signed_mask.density: errors([node]) for node in levels}
        series.append(Series("level of the search", method, by_density))
        density = story.result.ticket.signed_mask.density
        series += [Series(kind, method, {density: errors(story.trials[kind])}) for kind in KINDS]
    curves = {
        f"{name}, {method}" + (f", trial {number}" if len(found) > 1 else ""): one.curve
        for method, story in stories.items()
        for name, found in story.comparisons.items()
        for number, one in enumerate(found, 1)
    }
    out.mkdir(parents=True, exist_ok=True)
    accuracy = plot_accuracy(series, out / "accuracy_by_density", dense_error_percent=errors(dense))
    return [*accuracy, *plot_barriers(curves, out / "barriers")]


def main() -> None:
    """Train dense networks, then search, use and compare with each method."""
    with clear_errors():
        settings = parse(SearchConfig, __doc__, default=digits_demo())
        if settings.init_seed in INIT_SEEDS:
            raise ValueError(
                f"init_seed {settings.init_seed} is one of the final trainings'; take another for the searches"
            )
        if settings.method != digits_demo().method:
            raise ValueError("the demo runs every method; choose one with `recipes/aws_digits.py --method …`")
        with launch(settings) as experiment:
            # dense first: if it is not well trained, nothing that follows means anything
            dense = [
                final_training(experiment, Trial("dense", init_seed, SGD_SEEDS[0]), None) for init_seed in INIT_SEEDS
            ]
            stories = {method: tell(experiment.using(method), ComparisonConfig()) for method in METHODS}
            if experiment.world.is_main:
                show(experiment, dense, stories, Path("results") / "demo")


if __name__ == "__main__":
    main()
