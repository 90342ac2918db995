"""The commands that recipes and tools consist of: read the options, run, print.

This module imports no torch. Each command reads its options before it loads the harness, so that `--help` is fast.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.errors import clear_errors
from harness.cli.names import datasets, networks
from harness.cli.options import OneRun, RunPair, StabilityPair, TicketAndSeed, parse
from harness.common.launched import launcher_number
from harness.config import ModelConfig, SearchConfig, TicketConfig, known

if TYPE_CHECKING:
    from harness.experiment.comparison import Question

_log = logging.getLogger(__name__)


def parse_network(
    description: str | None, presets: Sequence[SearchConfig], arguments: Sequence[str] | None = None
) -> SearchConfig:
    """Read the options of a recipe that has settings for several networks.

    `--network NAME` and `--model.name NAME` both select the network's settings. Other options override single settings.

    Args:
        description: Text above the options.
        presets: Settings for each network. The first one is the default.
        arguments: Words to parse. None means those of the process.

    Raises:
        ValueError: The network is unknown, or both options are given and differ.
    """
    # Phase: find the network, which selects the defaults of all other options.
    names = [preset.model.name for preset in presets]
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--network", "--model.name", dest="network", default=names[0])
    name = chooser.parse_known_args(arguments)[0].network
    if ModelConfig(name).kind == "built-in":
        known("network", name, networks())
    preset = presets[names.index(name)] if name in names else presets[0]

    # Phase: read all options over these defaults.
    note = f"This recipe has settings for the networks {', '.join(names)}.\nThe defaults below are those of"
    text = f"{description or ''}\n{note} {preset.model.name}. `--network NAME --help` shows another network's."
    settings = parse(SearchConfig, text, preset, arguments)
    if launcher_number("RANK", 0) == 0:
        _log.info(f"settings: {_in_short(settings)}")
        if name not in names:
            _log.warning(f"this recipe has no settings for {name}; it uses those of {preset.model.name}")
    return settings


def _in_short(settings: SearchConfig) -> str:
    optim, final = settings.optim, settings.final
    epochs = f"{settings.warmup_epochs} + {settings.num_levels}·{settings.level_epochs}"
    return (
        f"{settings.model.name}, {optim.name}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}, "
        f"batch {settings.global_batch_size}, epochs {epochs}, final {final.epochs} ({final.lr_schedule})"
    )


def run_search(description: str | None, default: SearchConfig | Sequence[SearchConfig]) -> None:
    """Run a search recipe: read the options, search, print the levels and the next commands.

    Args:
        description: Text above the options.
        default: The recipe's settings, or its settings for each of several networks (see `parse_network`).
    """
    with clear_errors():
        if isinstance(default, SearchConfig):
            settings, usual = parse(SearchConfig, description, default), default
        else:
            settings, usual = parse_network(description, default), default[0]
        name = settings.data.name
        if name not in datasets() and launcher_number("RANK", 0) == 0:
            _log.info(f"{name} is no built-in data set: the defaults of this recipe are for {usual.data.name}")
        from harness.cli.launch import launch
        from harness.cli.terminal import print_search
        from harness.experiment.search import search

        with launch(settings, searches=True) as experiment:
            print_search(experiment, search(experiment))


def use_ticket(description: str | None) -> None:
    """Run one final training of a ticket and print its test error."""
    with clear_errors():
        options = parse(TicketConfig, description)
        from harness.cli.launch import train_ticket

        train_ticket(options)


def ask_initial_norm(description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Measure, record and print the barrier between a level and its copy with ψ_init."""
    with clear_errors():
        asked = parse(OneRun, description, arguments=arguments)
        from harness.cli.launch import launch_ticket
        from harness.cli.terminal import print_comparison
        from harness.experiment.comparison import compare_initial_norm

        with launch_ticket(asked.ticket) as (experiment, ticket):
            result = compare_initial_norm(experiment, ticket, asked.comparison)
            if result is not None:
                print_comparison("norm_init", result, None, as_json=asked.json)


def ask_signed_init(description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Measure, record and print the barrier between a level and abs(θ_init) ⊙ s."""
    with clear_errors():
        asked = parse(TicketAndSeed, description, arguments=arguments)
        from harness.cli.launch import launch_ticket
        from harness.cli.terminal import print_comparison
        from harness.experiment.comparison import compare_signed_init

        with launch_ticket(asked.ticket) as (experiment, ticket):
            result = compare_signed_init(experiment, ticket, asked.init_seed, asked.comparison)
            if result is not None:
                print_comparison("signed_init", result, None, as_json=asked.json)


def compare_runs(question: Question, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Measure, record and print the barrier between two runs."""
    with clear_errors():
        pair = parse(StabilityPair if question == "stability" else RunPair, description, arguments=arguments)
        from harness.cli.launch import compare_pair

        compare_pair(question, pair)
