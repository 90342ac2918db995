"""Take a signed mask straight from a trained dense network: magnitude pruning in one shot, no training.

The network comes from a safetensors file, a torch file of nothing but tensors (torchvision's are), or a logged run, and
must be the harness's network of that name, tensor by tensor; a classifier of other classes is drawn. Level 0 is the
network as it was given, level 1 the network after pruning: a ticket like any other, for recipes/train_ticket.py.

For        tickets from networks that were trained elsewhere; not in the paper
Time       no training: reading, one pruning, and an evaluation of each of the two levels
Launch     accelerate launch recipes/pretrained_ticket.py resnet50.pth --data.name imagenet --model.name resnet50
           accelerate launch recipes/pretrained_ticket.py RUN_ID --data.name digits --model.name resnet20 --density 0.2
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.errors import clear_errors
from harness.cli.launch import launch
from harness.cli.options import parse
from harness.cli.terminal import print_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.experiment.search import search


@dataclass(frozen=True)
class PretrainedOptions:
    """Which network, the share of it that stays, and the settings of the ticket's final trainings."""

    network: Annotated[str, tyro.conf.Positional]
    """A file, or the run ID of a trained network."""
    data: DataConfig
    model: ModelConfig
    density: float = 0.1
    """Share of the prunable weights that stays."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    final: Schedule = field(default_factory=lambda: Schedule(epochs=100, lr_schedule="step"))
    """Schedule of the ticket's final trainings."""
    global_batch_size: int = 128
    """Images per optimizer step of the final trainings."""
    init_seed: int = 1
    """Draws a classifier that the network does not bring."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Send nothing to MLflow now; `python tools/lineage.py sync` does it later."""


def config(options: PretrainedOptions) -> SearchConfig:
    """Return a search of one pruning and no epoch of training, whose θ_init is the trained network."""
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
        init_seed=options.init_seed,
        initialisation=options.network,
        runs=options.runs,
        experiment=options.experiment,
        offline=options.offline,
    )


def main() -> None:
    """Prune the network, record the ticket and print how to use it."""
    with clear_errors(), launch(config(parse(PretrainedOptions, __doc__))) as experiment:
        print_search(experiment, search(experiment))


if __name__ == "__main__":
    main()
