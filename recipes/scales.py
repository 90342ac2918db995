"""How large each figure is made: the paper's settings, and reductions of them that a CPU can carry.

A reduction is named on every page made with it, and is no reproduction of the paper's numbers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import aws_cifar10  # type: ignore[import-not-found]  # its neighbours, found when launched
import aws_cifar100  # type: ignore[import-not-found]
import aws_digits  # type: ignore[import-not-found]
import aws_imagenet  # type: ignore[import-not-found]
import aws_tiny_imagenet  # type: ignore[import-not-found]
import tyro

from harness.config import DataConfig, GemMinerConfig, ModelConfig, OptimConfig, Schedule, SearchConfig, known
from harness.pruning import METHODS
from harness.reproduction.figure import FIGURES, Figure, figure_named
from harness.reproduction.plan import Plan, Scale

ODD_LEVELS = (1, 3, 5, 7, 9, 11, 13, 15)
GEM_MINER_LEVELS = (5, 8, 11, 14, 18)
"""Gem-Miner learns each density anew; its authors show 5 and 2 % of ResNet-32 on CIFAR-100."""
AUTHORS_PENALTIES = {0.0372: 3e-5, 0.0144: 1e-4, 0.0059: 1e-4}
"""Density → λ of Gem-Miner's authors for ResNet-20 on CIFAR-10: resnet20_sparsity_…_unflagT_real.yml of their code."""
TABLE2_LEVELS = {"resnet50": (6, 7, 8, 9), "mobilenet_v2": (4, 5, 6, 7), "mlp_mixer": (7, 8, 9, 10)}
TABLE1_LEVELS = {"resnet50": (6, 9), "mobilenet_v2": (4, 7), "mlp_mixer": (7, 10)}
SMOKE_BATCH = 4  # that many images are enough, for up to four processes
TRANSFER = {
    "cifar100": "tiny_imagenet",
    "tiny_imagenet": "cifar100",
    "digits": "fashion_mnist_small",
    "fashion_mnist_small": "digits",
}
"""Where tickets of a data set are used in the figure that transfers them."""


def paper(figure: Figure, dataset: str, network: str) -> Scale:
    """The paper's settings; the levels of the plots are ours, since it does not list them."""
    if dataset == "imagenet":
        return Scale(
            aws_imagenet.config(network), (TABLE1_LEVELS if figure.name == "table1" else TABLE2_LEVELS)[network]
        )
    if figure.name == "gem_miner":
        return by_authors(aws_cifar10.config(network))
    recipes = {"cifar100": aws_cifar100, "tiny_imagenet": aws_tiny_imagenet}
    levels: tuple[int, ...] = GEM_MINER_LEVELS if "gem_miner" in figure.methods else ODD_LEVELS
    config = replace(recipes[dataset].config(network), num_levels=max(levels))
    used_on = recipes[TRANSFER[dataset]].config(network) if figure.transfers else None
    return Scale(config, levels, barrier_level=11, used_on=used_on)


def by_authors(config: SearchConfig) -> Scale:
    """Gem-Miner as its authors have it: their densities, λ for each, and epochs (150 and 150 for each density)."""
    levels = tuple(range(1, len(AUTHORS_PENALTIES) + 1))
    own = replace(config, densities=tuple(AUTHORS_PENALTIES), num_levels=len(levels), gem_miner=GemMinerConfig())
    return Scale(own, levels, penalties=dict(zip(levels, AUTHORS_PENALTIES.values(), strict=True)))


def fashion_mnist_small(network: str) -> SearchConfig:
    """Fashion-MNIST at 14×14 with 8,000 training images: a trial of `claims` in some 45 minutes of one core."""
    return SearchConfig(
        data=DataConfig(name="fashion_mnist_small", loader="memory"),
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=6,
        level_epochs=3,
        num_levels=11,
        final=Schedule(epochs=12, lr_schedule="step"),
        global_batch_size=64,
        # in all what a ticket costs at level 11
        gem_miner=GemMinerConfig(score_epochs=36, finetune=Schedule(15, "step")),
    )


def digits(network: str) -> SearchConfig:
    """The demo's schedules: a trial of `claims` in some six minutes of one core."""
    final = Schedule(epochs=20, lr_schedule="step")
    gem_miner = GemMinerConfig(score_epochs=81, finetune=Schedule(15, "step"))  # in all what a ticket costs at level 11
    short = replace(aws_digits.config(), level_epochs=6, final=final, gem_miner=gem_miner)
    return replace(short, model=ModelConfig(name=network), data=DataConfig(name="digits", loader="memory"))


SMALL = {"digits": digits, "fashion_mnist_small": fashion_mnist_small}


def small(figure: Figure, dataset: str, network: str) -> Scale:
    """Three levels, three trials, short schedules, on a data set that a CPU can carry.

    Gem-Miner alone keeps its authors' epochs, 900 in a trial: some ten minutes for the digits, hours for Fashion-MNIST.
    """
    config = SMALL[known("data set of --scale small", dataset, list(SMALL))](network)
    if figure.name == "gem_miner":
        words = f"{network} on {dataset}, Gem-Miner with its authors' epochs, batch {config.global_batch_size}"
        return replace(by_authors(config), reduction=f"{words}, a dense network of {config.final.epochs} epochs")
    used_on = SMALL[TRANSFER[dataset]](network) if figure.transfers else None
    epochs = (used_on or config).final.epochs
    on = f" on {used_on.data.name}" if used_on else ""
    words = f"{network} on {dataset}, {config.level_epochs} epochs a level, {epochs} in a final training{on}"
    return Scale(config, levels=(5, 8, 11), barrier_level=11, trials=3, used_on=used_on, reduction=words)


def smoke(figure: Figure, dataset: str, network: str) -> Scale:
    """Everything once: an epoch a level, one trial, the figure's first and last density in two prunings.

    On the paper's data sets a batch is small, too: so a handful of images, prepared from the original archives as all
    of them would be, goes through on a CPU.
    """
    usual = (small if dataset in SMALL else paper)(figure, dataset, network)
    ends = usual.levels[0], usual.levels[-1]

    def short(own: SearchConfig) -> SearchConfig:
        return replace(
            own,
            warmup_epochs=1,
            level_epochs=1,
            num_levels=2,
            densities=tuple(map(usual.density, ends)),
            final=replace(own.final, epochs=2),
            global_batch_size=own.global_batch_size if own.data.name in SMALL else SMOKE_BATCH,
            gem_miner=GemMinerConfig(score_epochs=2, freeze_every_epochs=1, finetune=Schedule(1, "constant")),
        )

    config = short(usual.config)
    words = (
        f"an epoch a level, two a final training, batch {config.global_batch_size}, two densities, one trial: "
        "shows that the command goes through, and nothing else"
    )
    used_on = short(usual.used_on) if usual.used_on else None
    penalties = {level: usual.penalties[end] for level, end in enumerate(ends, 1) if end in usual.penalties}
    scale = Scale(config, levels=(1, 2), barrier_level=2, trials=1, used_on=used_on, reduction=words)
    return replace(scale, penalties=penalties)


SCALES = {"paper": paper, "small": small, "smoke": smoke}


@dataclass(frozen=True)
class Changes:
    """Settings in which a figure is made otherwise than its scale says, to see what a claim depends on."""

    lr: float | None = None
    """Learning rate, instead of the scale's."""
    weight_decay: float | None = None
    """Weight decay, instead of the scale's."""
    warmup_epochs: int | None = None
    """Epochs of the dense warm-up, instead of the scale's."""
    level_epochs: int | None = None
    """Epochs a level, instead of the scale's."""
    final_epochs: int | None = None
    """Epochs of a final training, instead of the scale's."""
    global_batch_size: int | None = None
    """Images per optimizer step, instead of the scale's; smoke's 4 are too few for more than 4 processes."""

    def applied(self, figure: Figure, scale: Scale) -> Scale:
        """Return the scale with these settings, named in its reduction and its variant.

        ValueError for those that none of the figure's methods heeds.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            return scale
        unheeded = sorted(given.keys() - {"global_batch_size"})
        if unheeded and all(METHODS[method].searches_one_density for method in figure.methods):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in unheeded)
            raise ValueError(
                f"{options}: {figure.name} shows a method with settings of its own, which heeds none of it"
            )
        config, optim_names = scale.config, ("lr", "weight_decay")

        def changed(config: SearchConfig) -> SearchConfig:
            optim = replace(config.optim, **{name: given[name] for name in optim_names if name in given})
            final = replace(config.final, epochs=given.get("final_epochs", config.final.epochs))
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
class Subject:
    """Which figure, of what, how large."""

    figure: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FIGURE", help=f"One of: {', '.join(FIGURES)}.")]
    dataset: str | None = None
    """A data set of the figure (its first if not given); small: digits or fashion_mnist_small."""
    network: str | None = None
    """A network of the figure (its first if not given); small: resnet20 if not given."""
    scale: Literal["paper", "small", "smoke"] = "paper"
    """paper: its settings; small: a reduction for a CPU, named as such; smoke: two densities and an epoch each, in
    batches of 4 on the paper's data sets, to see that it goes through on a handful of images."""
    width: int | None = None
    """Channels of the network's first stage (Figure 4: 16 and 32), its own if not given."""
    trials: int | None = None
    """Instead of the scale's (3)."""
    changes: Annotated[Changes, tyro.conf.OmitArgPrefixes] = Changes()
    levels: tuple[int, ...] | None = None
    """Levels whose tickets are trained, instead of the scale's."""
    shared_search: bool = False
    """One search for all trials, as in the authors' scripts."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs alone and send nothing to MLflow now."""
    out: Path = Path("results")
    """Where page, tables and plots go, in a directory of the figure's name."""

    @property
    def plan(self) -> Plan:
        """What is to be made; ValueError for what the figure does not have."""
        figure = figure_named(self.figure)
        dataset, network = self._what(figure)
        scale = SCALES[self.scale](figure, dataset, network)
        model = replace(scale.config.model, width=self.width)
        reductions = [scale.reduction] if scale.reduction else []
        if self.width is not None and self.width not in figure.widths:
            reductions.append(f"width {self.width}")
        used_on = replace(scale.used_on, model=model) if scale.used_on else None
        scale = replace(
            scale,
            trials=scale.trials if self.trials is None else self.trials,
            levels=self.levels or scale.levels,
            variant="-".join(["", "levels", *map(str, self.levels)]) if self.levels else "",
            config=replace(scale.config, model=model),
            used_on=used_on,
            reduction="; ".join(reductions) or None,
        )
        return Plan(figure, self.changes.applied(figure, scale), self.shared_search)

    def _what(self, figure: Figure) -> tuple[str, str]:
        """Return data set and network: as given, else the figure's first ones, or what the scale is made for."""
        if self.scale != "paper":
            dataset = known("data set", self.dataset or next(iter(SMALL)), [*SMALL, *figure.subjects])
            return dataset, self.network or ("resnet20" if dataset in SMALL else figure.subjects[dataset][0])
        dataset = known(
            f"data set of {figure.name}", self.dataset or next(iter(figure.subjects)), list(figure.subjects)
        )
        networks = figure.subjects[dataset]
        return dataset, known(f"network of {figure.name} on {dataset}", self.network or networks[0], list(networks))
