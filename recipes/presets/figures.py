"""Scales of the figures: the paper's settings, and reductions for a CPU.

A page names its reduction. The numbers of a reduction do not reproduce the paper's.
"""

from dataclasses import replace

from harness.config import GemMinerConfig, Schedule, SearchConfig, known
from harness.reproduction.figure import Figure
from harness.reproduction.figure_plan import Scale
from recipes.presets.paper import cifar10, cifar100, imagenet, tiny_imagenet
from recipes.presets.small import digits_figure, fashion_mnist_figure

ODD_LEVELS = (1, 3, 5, 7, 9, 11, 13, 15)
GEM_MINER_LEVELS = (5, 8, 11, 14, 18)
"""Gem-Miner trains each density separately. Its authors show 5 and 2 % for ResNet-32 on CIFAR-100."""
AUTHORS_PENALTIES = {0.0372: 3e-5, 0.0144: 1e-4, 0.0059: 1e-4}
"""Density → λ of Gem-Miner's authors for ResNet-20 on CIFAR-10 (resnet20_sparsity_…_unflagT_real.yml)."""
AUTHORS_IMAGES = 45_000
"""Training images of Gem-Miner's authors. They keep 5,000 of CIFAR's 50,000 for validation."""
TABLE2_LEVELS = {"resnet50": (6, 7, 8, 9), "mobilenet_v2": (4, 5, 6, 7), "mlp_mixer": (7, 8, 9, 10)}
TABLE1_LEVELS = {"resnet50": (6, 9), "mobilenet_v2": (4, 7), "mlp_mixer": (7, 10)}
SMOKE_BATCH = 4  # smallest batch for up to four processes
PAPER = {"cifar100": cifar100, "tiny_imagenet": tiny_imagenet}
SMALL = {"digits": digits_figure, "fashion_mnist_small": fashion_mnist_figure}
TRANSFER = {
    "cifar100": "tiny_imagenet",
    "tiny_imagenet": "cifar100",
    "digits": "fashion_mnist_small",
    "fashion_mnist_small": "digits",
}
"""Data set of the tickets → data set of their final trainings, for the figure `transfer`."""


def paper(figure: Figure, dataset: str, network: str) -> Scale:
    """Return the paper's settings. The paper does not list the levels of its plots, so these are ours."""
    if dataset == "imagenet":
        levels_of = TABLE1_LEVELS if figure.name == "table1" else TABLE2_LEVELS
        return Scale(imagenet(network), levels_of[known("network of --scale paper", network, list(levels_of))])
    images = GemMinerConfig(num_train=AUTHORS_IMAGES)
    if figure.name == "gem_miner":
        return by_authors(cifar10(network), images)
    mined = "gem_miner" in figure.methods
    levels: tuple[int, ...] = GEM_MINER_LEVELS if mined else ODD_LEVELS
    config = PAPER[known("data set of --scale paper", dataset, [*PAPER, "imagenet"])](network)
    config = replace(config, num_levels=max(levels))
    config = replace(config, gem_miner=images) if mined else config
    used_on = PAPER[TRANSFER[dataset]](network) if figure.transfers else None
    return Scale(config, levels, barrier_level=11, used_on=used_on)


def by_authors(config: SearchConfig, gem_miner: GemMinerConfig) -> Scale:
    """Return the settings of Gem-Miner's authors: densities, λ of each, and 150 + 150 epochs for each density."""
    levels = tuple(range(1, len(AUTHORS_PENALTIES) + 1))
    own = replace(config, densities=tuple(AUTHORS_PENALTIES), num_levels=len(levels), gem_miner=gem_miner)
    return Scale(own, levels, penalties=dict(zip(levels, AUTHORS_PENALTIES.values(), strict=True)))


def small(figure: Figure, dataset: str, network: str) -> Scale:
    """Return three levels, three trials and short schedules, on a data set for a CPU.

    The figure `gem_miner` keeps its authors' epochs, 900 in a trial. They take about ten minutes for the digits, and
    hours for Fashion-MNIST.
    """
    config = SMALL[known("data set of --scale small", dataset, list(SMALL))](network)
    if figure.name == "gem_miner":
        words = f"{network} on {dataset}, Gem-Miner with its authors' epochs, batch {config.global_batch_size}"
        words += f", a dense network of {config.final.epochs} epochs"
        return replace(by_authors(config, GemMinerConfig()), reduction=words)
    used_on = SMALL[TRANSFER[dataset]](network) if figure.transfers else None
    epochs = (used_on or config).final.epochs
    on = f" on {used_on.data.name}" if used_on else ""
    words = f"{network} on {dataset}, {config.level_epochs} epochs a level, {epochs} in a final training{on}"
    return Scale(config, levels=(5, 8, 11), barrier_level=11, trials=3, used_on=used_on, reduction=words)


def smoke(figure: Figure, dataset: str, network: str) -> Scale:
    """Return one trial with one epoch a level, and the figure's first and last density in two prunings.

    Batches are small on the paper's data sets, too. So a CPU can run the figure on a few images, which are prepared
    from the original archives.
    """
    # Phase: the first and last density of the usual scale.
    usual = (small if dataset in SMALL else paper)(figure, dataset, network)
    ends = usual.levels[0], usual.levels[-1]

    def short(own: SearchConfig) -> SearchConfig:
        return replace(
            own,
            warmup_epochs=1,
            level_epochs=1,
            num_levels=2,
            densities=tuple(map(usual.density, ends)),
            final=own.final.of_length(2),
            global_batch_size=own.global_batch_size if own.data.name in SMALL else SMOKE_BATCH,
            gem_miner=GemMinerConfig(score_epochs=2, freeze_every_epochs=1, finetune=Schedule(1, "constant")),
        )

    # Phase: the shortened scale, with its description for the page.
    config = short(usual.config)
    words = (
        f"one epoch a level, two in a final training, batch {config.global_batch_size}, two densities, one trial: "
        "a dry run of the command, without meaning for accuracy"
    )
    return Scale(
        config,
        levels=(1, 2),
        barrier_level=2,
        trials=1,
        used_on=short(usual.used_on) if usual.used_on else None,
        penalties={level: usual.penalties[end] for level, end in enumerate(ends, 1) if end in usual.penalties},
        reduction=words,
    )


SCALES = {"paper": paper, "small": small, "smoke": smoke}
