"""Make a ticket from a trained dense network: one magnitude pruning, without training.

Figure     none. Use this recipe for networks that were trained elsewhere
Networks   a safetensors file, a torch file of tensors (Lightning, timm, torchvision, …), or a logged run
           its tensors must match the harness's network of that name
           a classifier with another number of classes is drawn anew
Result     level 0 is the given network, level 1 the pruned one
           level 1 is a ticket as any other, for recipes/train_ticket.py
Time       seconds to minutes: one pruning, and an evaluation of both levels
Hardware   a CPU, or one GPU
Launch     python recipes/pretrained_ticket.py resnet50.pth --data.name imagenet --model.name resnet50
           python recipes/pretrained_ticket.py RUN_ID --data.name digits --model.name resnet20 --density 0.2
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.config import CompileMode, DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


@dataclass(frozen=True)
class PretrainedOptions:
    """The network, the density of the ticket, and the settings of its final trainings."""

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_RUN")]
    """A file, FILE:KEY, a directory or the run ID of a trained network. See docs/how-to-your-own.md for the forms."""
    data: DataConfig
    model: ModelConfig
    density: float = 0.1
    """Share of the prunable weights that the ticket keeps, 0..1. Larger tickets are closer to the dense network."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    final: Schedule = field(default_factory=lambda: Schedule(epochs=100, lr_schedule="step"))
    """Schedule of the ticket's final trainings."""
    global_batch_size: int = 128
    """Images per optimizer step of the final trainings, over all processes."""
    compile: CompileMode = "no"
    """Compile the network with torch.compile. The ticket's final trainings inherit it. Use it for long trainings."""
    init_seed: int = 1
    """Seed of the classifier, if the network has none that fits."""
    runs: Path = Path("runs")
    """Directory of the local runs."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Deliver nothing to MLflow. `python tools/lineage.py sync` delivers later."""
    trust_code: bool = False
    """Execute the Python file of a prepared data set, also if you have named it in no command. Read its copy source.py
    first."""


def config(options: PretrainedOptions) -> SearchConfig:
    """Return a search with one pruning and no epochs, whose θ_init is the trained network."""
    return SearchConfig(
        data=options.data,
        model=options.model,
        optim=options.optim,
        final=options.final,
        warmup_epochs=0,
        level_epochs=0,
        num_levels=1,
        densities=(options.density,),
        global_batch_size=options.global_batch_size,
        method="lrr",
        compile=options.compile,
        init_seed=options.init_seed,
        initialisation=options.network,
        runs=options.runs,
        experiment=options.experiment,
        offline=options.offline,
        trust_code=options.trust_code,
    )


def main() -> None:
    """Prune the network, record the ticket, and print the command that trains it."""
    with clear_errors():
        options = parse(PretrainedOptions, __doc__)
        # Imported after the options are read: these load torch, and `--help` must not.
        from harness.cli.launch import launch
        from harness.cli.terminal import print_search
        from harness.experiment.search import search

        with launch(config(options), searches=True) as experiment:
            print_search(experiment, search(experiment))


if __name__ == "__main__":
    main()
