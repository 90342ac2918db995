"""Take a signed mask straight from a trained dense network: magnitude pruning in one shot, no training.

The network comes from a safetensors file, a torch file of nothing but tensors (torchvision's are), or a logged run, and
must be the harness's network of that name, tensor by tensor; a classifier of other classes is drawn. Level 0 is the
network as it was given, level 1 what is left of it: a ticket like any other, for recipes/train_ticket.py.
Launch     accelerate launch recipes/pretrained_ticket.py resnet50.pth --data.name imagenet --model.name resnet50
           accelerate launch recipes/pretrained_ticket.py RUN_ID --data.name digits --model.name resnet20 --density 0.2
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.launch import clear_errors, launch, parse
from harness.cli.terminal import print_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.experiment.search import search


@dataclass(frozen=True)
class Settings:
    """Which network, how much of it stays, and the settings that final trainings of the ticket will take."""

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


def config(settings: Settings) -> SearchConfig:
    """One pruning without an epoch of training: a search whose θ_init is the trained network."""
    return SearchConfig(
        data=settings.data,
        model=settings.model,
        optim=settings.optim,
        final=settings.final,
        warmup_epochs=0,
        level_epochs=0,
        num_levels=1,
        densities=(settings.density,),
        global_batch_size=settings.global_batch_size,
        method="lrr",
        init_seed=settings.init_seed,
        initialisation=settings.network,
        runs=settings.runs,
        experiment=settings.experiment,
        offline=settings.offline,
    )


def main() -> None:
    """Prune, record, say how to use it."""
    with clear_errors():
        settings = config(parse(Settings, __doc__))
        with launch(settings) as experiment:
            print_search(experiment, search(experiment))


if __name__ == "__main__":
    main()
