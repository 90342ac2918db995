"""Make a figure or table of the paper: whatever of its runs is not finished, then plots, tables and a result page.

    accelerate launch recipes/reproduce.py fig3 --dataset cifar100 --network resnet50_cifar
    accelerate launch recipes/reproduce.py table2 --network mobilenet_v2 --data-directory /data
    accelerate launch recipes/reproduce.py fig3 --scale small --dataset fashion_mnist_small
    accelerate launch recipes/reproduce.py fig3 --list              # one launch command for each run
    accelerate launch recipes/reproduce.py fig3 --shard $i/$n       # a share of them; a Slurm array needs no more

Figures and tables: fig2 to fig6, table1, table2; claims, rewinding: what the text says of them; gem_miner: of
Gem-Miner's own paper; controls, transfer: in no paper. The same command again does what is not finished and writes the
page anew; `python tools/report.py` writes it from runs that exist. Pages go to results/ and to the lineage.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scales import Subject  # type: ignore[import-not-found]  # its neighbour, found when launched

from harness.cli.launch import clear_errors, launch, parse
from harness.common.logging import say
from harness.config import Precision, SearchConfig
from harness.reproduction.plan import Plan
from harness.reproduction.report import show
from harness.reproduction.work import Work


@dataclass(frozen=True)
class Reproduction(Subject):
    """What is made, and how."""

    list: bool = False
    """Print one launch command for each run, and run nothing."""
    shard: str | None = None
    """i/n: make the i-th of n shares of the runs, and no page."""
    only: tuple[str, ...] = ()
    """Make these runs, named as in --list, and what they are made from."""
    data_directory: Path = Path("data")
    """Where tools/prepare_data.py put the data."""
    loader: Literal["ffcv", "memory"] | None = None
    """Instead of the scale's."""
    num_workers: int | None = None
    """Loader threads a process, instead of the scale's."""
    precision: Precision = "no"
    """Mixed precision: no is the paper's float32; auto is bf16 where the CUDA device has it. The page names it."""

    def config(self, config: SearchConfig) -> SearchConfig:
        """Return the plan's settings as this launch reads and records them; none of it but precision moves a number."""
        data = replace(
            config.data,
            directory=self.data_directory,
            loader=self.loader or config.data.loader,
            num_workers=config.data.num_workers if self.num_workers is None else self.num_workers,
        )
        place = {"runs": self.runs, "experiment": self.experiment, "offline": self.offline}
        return replace(config, data=data, precision=self.precision, **place)


def commands(plan: Plan) -> list[str]:
    """Return one launch line for each run, ready to paste: this launch's own options, and the run's name."""
    options = [word for word in sys.argv[1:] if word != "--list"]
    return [f"accelerate launch {shlex.join([sys.argv[0], *options, '--only', name])}" for name in plan.names()]


def chains_of(settings: Reproduction, plan: Plan) -> tuple[str, ...]:
    """Return what this launch makes; ValueError for a shard that is none."""
    if settings.shard is None:
        return tuple(plan.chains())
    index, _, count = settings.shard.partition("/")
    if settings.only or not (index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard {settings.shard}: give i/n, such as 1/4, and not --only beside it")
    return tuple(plan.shard(int(index), int(count)))


def finish(work: Work, plan: Plan, out: Path) -> None:
    """Write the page (rank 0), when MLflow has the runs if it can: the page names them by its run IDs."""
    work.experiment.archive.delivery.settle()
    # not strict: whatever this launch only loaded has the tag of the one that made it
    own = {one.common.tags["settings"] for one in (work.experiment, work.used_on)}
    show(work.experiment.store, plan, own, out, strict=False)


def main() -> None:
    """Make the runs of a figure, or a share of them, then its page."""
    with clear_errors():
        settings = parse(Reproduction, __doc__)
        plan = settings.plan
        if settings.list:
            print("\n".join(commands(plan)))
            return
        chains = chains_of(settings, plan)
        with launch(settings.config(plan.scale.config)) as experiment:
            others = plan.scale.used_on
            work = Work(experiment, plan, experiment.beside(settings.config(others)) if others else None)
            if settings.only:
                work.make_only(settings.only)
                return
            say(f"{len(chains)} searches or dense trainings with all that is made from them: {', '.join(chains)}")
            work.make(chains)
            if settings.shard is None:
                experiment.world.on_main(lambda: finish(work, plan, settings.out))
            else:
                say("this share is finished; when all are, the same command without --shard writes the page")


if __name__ == "__main__":
    main()
