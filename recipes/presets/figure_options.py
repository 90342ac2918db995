"""Options of `recipes/reproduce.py` and `tools/report.py`. This module imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from harness.common.program import command
from harness.config import CompileMode, ModelConfig, Precision, SearchConfig, known
from harness.reproduction.figure import FIGURES, Figure, figure_named

if TYPE_CHECKING:
    from harness.reproduction.figure_plan import FigurePlan, Scale

_REPOSITORY = Path(__file__).resolve().parents[2]
STUDIES = _REPOSITORY / "recipes" / "studies"
RESULTS = _REPOSITORY / "docs" / "results"
if not RESULTS.is_dir():  # installed without the repository
    RESULTS = Path("results")


def check_subject(figure: str, study: str | None, results: Path) -> None:
    """Raise ValueError unless the command line names a figure or a study, with the directory that it has."""
    if figure and study:
        raise ValueError(f"give a FIGURE or --study NAME, not both: {figure} and {study}")
    if not figure and not study:
        raise ValueError(f"give a FIGURE ({', '.join(FIGURES)}) or --study NAME")
    if figure and results != RESULTS:
        raise ValueError("--results is for studies: --out chooses the directory of a figure's page")


@dataclass(frozen=True)
class ChangedSettings:
    """Settings that override those of --scale, to test how a claim depends on them."""

    lr: float | None = None
    """Learning rate before the schedule. Overrides --scale."""
    weight_decay: float | None = None
    """Weight decay, coupled L2. Overrides --scale."""
    warmup_epochs: int | None = None
    """Epochs of the dense warm-up (level 0). Overrides --scale."""
    level_epochs: int | None = None
    """Epochs of each level. Overrides --scale."""
    final_epochs: int | None = None
    """Epochs of each final training. Overrides --scale."""
    global_batch_size: int | None = None
    """Images per optimizer step over all processes. Overrides --scale. Raise the 4 images of smoke if more than 4
    processes share them."""

    def applied(self, figure: Figure, scale: Scale) -> Scale:
        """Return the scale with these settings. Its reduction and its variant name them.

        Raises:
            ValueError: No method of the figure uses one of these settings.
        """
        from harness.pruning import METHODS

        # Phase: refuse settings that change no run of the figure.
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            return scale
        unheeded = sorted(given.keys() - {"global_batch_size"})
        if unheeded and all(METHODS[method].searches_one_density for method in figure.methods):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in unheeded)
            raise ValueError(f"{options}: the method of {figure.name} has its own settings and ignores these options")
        config, optim_names = scale.config, ("lr", "weight_decay")

        # Phase: apply them to the settings of searches and of final trainings on another data set.
        def changed(config: SearchConfig) -> SearchConfig:
            optim = replace(config.optim, **{name: given[name] for name in optim_names if name in given})
            final = config.final.of_length(given.get("final_epochs", config.final.epochs))
            rest = {name: value for name, value in given.items() if name not in (*optim_names, "final_epochs")}
            return replace(config, optim=optim, final=final, **rest)

        own = vars(config.optim) | vars(config) | {"final_epochs": scale.finals.final.epochs}
        words = [f"{name.replace('_', ' ')} {value:g} instead of {own[name]:g}" for name, value in given.items()]
        return replace(
            scale,
            config=changed(config),
            used_on=changed(scale.used_on) if scale.used_on else None,
            reduction="; ".join([*([scale.reduction] if scale.reduction else []), *words]),
            variant=scale.variant + "".join(f"-{name.replace('_', '-')}-{value:g}" for name, value in given.items()),
        )


@dataclass(frozen=True)
class FigureOptions:
    """The figure, its data set and network, and its scale."""

    figure: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="FIGURE",
            help=f"Figure or table to make. Choices: {', '.join(FIGURES)}.",
            help_behavior_hint="(required without --study)",
        ),
    ] = ""
    dataset: str | None = None
    """Data set of the figure. The default is the first one that the figure has. With --scale small or smoke also
    digits or fashion_mnist_small."""
    network: str | None = None
    """Network of the figure. The default is the first one that the figure has for the data set, or resnet20 on the
    small data sets."""
    scale: Literal["paper", "small", "smoke"] = "paper"
    """Size of the runs. paper: the paper's settings. small: a reduction for a CPU, named on the page. smoke: two
    densities, one epoch each, to test that everything runs; batches of 4 on the paper's data sets."""
    width: int | None = None
    """Channels of the network's first stage. Figure 4 uses 16 and 32. The default is the network's own width."""
    trials: int | None = None
    """Repetitions with different seeds. The default is that of --scale (3; smoke: 1)."""
    changes: Annotated[ChangedSettings, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="scale-overriding")] = (
        ChangedSettings()
    )
    levels: tuple[int, ...] | None = None
    """Levels whose tickets get final trainings. Overrides --scale. Choose fewer levels for a faster figure."""
    shared_search: bool = False
    """Use one search for all trials, as the authors' scripts do. It saves time, but hides the spread of searches."""
    runs: Path = Path("runs")
    """Directory of the local runs."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs only and deliver nothing to MLflow. `python tools/lineage.py sync` delivers later."""
    out: Path = Path("results")
    """Parent directory of the page, its tables and plots. The figure gets a directory of its own in it."""

    @property
    def plan(self) -> FigurePlan:
        """The plan of the runs to make.

        Raises:
            ValueError: The figure does not have this data set, network or level.
        """
        from harness.reproduction.figure_plan import FigurePlan
        from recipes.presets.figures import SCALES

        # Phase: the scale's settings for this data set and network.
        figure = figure_named(self.figure)
        dataset, network = self._subject(figure)
        scale = SCALES[self.scale](figure, dataset, network)

        # Phase: override them with the options. The page names reductions.
        model = replace(scale.config.model, width=self.width)
        reductions = [scale.reduction] if scale.reduction else []
        if self.width is not None and self.width not in figure.widths:
            reductions.append(f"width {self.width}")
        scale = replace(
            scale,
            trials=scale.trials if self.trials is None else self.trials,
            levels=self.levels or scale.levels,
            variant="-".join(["", "levels", *map(str, self.levels)]) if self.levels else "",
            config=replace(scale.config, model=model),
            used_on=replace(scale.used_on, model=model) if scale.used_on else None,
            reduction="; ".join(reductions) or None,
        )
        return FigurePlan(figure, self.changes.applied(figure, scale), self.shared_search)

    def check_width(self) -> None:
        """Raise ValueError if the network does not have the given width. The network is built without values."""
        if self.width is None:
            return
        import torch

        from harness.data.spec import DATASETS
        from harness.models import build_model

        config = self.plan.scale.config
        spec = DATASETS[config.data.name]
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            build_model(
                config.model.name,
                num_classes=spec.num_classes,
                channels=spec.channels,
                image_size=spec.image_size,
                width=self.width,
            )

    def _subject(self, figure: Figure) -> tuple[str, str]:
        """Return data set and network: the given ones, else the defaults of the figure or of the scale."""
        if self.network is not None and ModelConfig(self.network).kind != "built-in":
            raise ValueError(
                f"network {self.network!r}: figures compare with the paper's numbers, which are of built-in networks; "
                f"search in others with a recipe, such as `{command('search aws_cifar10')}`"
            )
        from harness.cli.names import datasets

        if self.dataset is not None and self.dataset not in datasets():
            try:
                known("data set", self.dataset, datasets())
            except ValueError as error:
                hint = "pages of figures are for built-in data sets; search on others with a recipe and --data.name"
                raise ValueError(f"{error}; {hint}") from None
        if self.scale != "paper":
            from recipes.presets.figures import SMALL

            dataset = known("data set", self.dataset or next(iter(SMALL)), [*SMALL, *figure.subjects])
            return dataset, self.network or ("resnet20" if dataset in SMALL else figure.subjects[dataset][0])
        dataset = known(
            f"data set of {figure.name}", self.dataset or next(iter(figure.subjects)), list(figure.subjects)
        )
        own = figure.subjects[dataset]
        return dataset, known(f"network of {figure.name} on {dataset}", self.network or own[0], list(own))


@dataclass(frozen=True)
class ReproductionOptions(FigureOptions):
    """The figure or study to make, and the share of its runs."""

    study: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Make the runs and the page of the plan recipes/studies/NAME.toml, instead of a FIGURE. Chains that are recorded
    under --results are not made again. --shard then selects trials."""
    results: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: docs/results)")] = RESULTS
    """Directory of the studies' records and pages."""
    again: Annotated[str | None, tyro.conf.arg(metavar="CHAIN")] = None
    """With --study: make a recorded chain again, such as aws-s11, and print each number beside the recorded one. The
    directory --runs must not contain it. On the same kind of CPU the bits are equal."""
    list: bool = False
    """Print one launch command for each run, or for each trial of a study, and make no run. The cost in epochs and
    hours goes to standard error."""
    seconds_per_epoch: float | None = None
    """With --list: seconds of one epoch, to estimate hours. The default is measured from finished runs in --runs."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Make the I-th of N shares of the runs, such as 1/4, and no page. Use it to spread a figure over machines. A study
    shares whole trials. It writes its page also with --shard, if the share was recorded before."""
    jobs: int = 1
    """Processes that make runs side by side on this node, each with its own GPU or its own CPU cores. Use it to fill a
    machine with small networks."""
    jobs_per_gpu: int = 1
    """With --jobs: processes that share one GPU. Raise it if one process leaves the GPU idle for most of the time."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Make these runs, named as --list names them, and the runs that they need."""
    data_directory: Path = Path("data")
    """Directory in which tools/prepare_data.py stored the data."""
    loader: Literal["ffcv", "memory", "torch"] | None = None
    """Loader of the images. Overrides --scale. All of them give the same batches."""
    num_workers: int | None = None
    """Loader threads of each process. Overrides --scale. Results do not depend on it."""
    precision: Precision = "no"
    """Mixed precision. no: float32, as in the paper. auto: bf16 if the CUDA device supports it. The page names it."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over the images of all processes, 256 on ImageNet as in the paper. Needs GPUs. The
    page names it."""
    compile: CompileMode = "no"
    """Compile the networks with torch.compile. Use it for long runs on a GPU. The page names it."""
    probe: bool = True
    """Measure before the first training whether the ffcv loader or the device is the limit, and log both rates. Turn it
    off to start two seconds earlier."""
    evaluate_every: int | None = None
    """Epochs between two measurements of the test error within a training (0: never). Overrides --scale. Use it to
    watch long trainings. Pages do not use it."""

    def config(self, config: SearchConfig) -> SearchConfig:
        """Return the plan's settings with this launch's paths, loader, precision and compiling."""
        data = replace(
            config.data,
            directory=self.data_directory,
            loader=self.loader or config.data.loader,
            num_workers=config.data.num_workers if self.num_workers is None else self.num_workers,
        )
        return replace(
            config,
            data=data,
            precision=self.precision,
            sync_batchnorm=self.sync_batchnorm,
            compile=self.compile,
            probe=self.probe,
            evaluate_every=config.evaluate_every if self.evaluate_every is None else self.evaluate_every,
            runs=self.runs,
            experiment=self.experiment,
            offline=self.offline,
        )
