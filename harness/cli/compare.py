"""Measure the error barrier between two networks.

$ tickets compare stability RUN_A RUN_B
$ tickets compare lmc RUN_A RUN_B
$ tickets compare norm_barrier RUN
$ tickets compare sign_barrier RUN --init-seed 2
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from harness.cli.commands import ask_initial_norm, ask_signed_init, compare_runs
from harness.cli.errors import clear_errors
from harness.cli.parser import print_commands
from harness.common.program import start, usage_name
from harness.config import known

STABILITY = """SGD-noise stability: the error barrier between two trainings of one start under different sgd_seeds.

A start θ is stable when 𝒜(θ, u) and 𝒜(θ, u') are linearly mode-connected (paper, section 3.1). 𝒜(θ, u) is the network
that training from θ gives under the noise u of an sgd_seed: data order and augmentation."""
LMC = """Linear mode connectivity: the error barrier between two trainings of one ticket, from their checkpoints.

For example abs(θ_init) ⊙ s_T trained, and θ_T ⊙ m_T trained (paper, Figure 3c). The ticket has parameters θ_T, mask m_T
and signs s_T; θ_init are fresh initial parameters, and ⊙ multiplies elements."""
NORM_BARRIER = """The error barrier between a ticket and its copy with the normalisation parameters of its θ_init.

θ_init are the initial parameters of its search. Neither network is trained. AWS is made to keep this barrier low
(paper, Figure 1). RUN is a level of a search."""
SIGN_BARRIER = """The error barrier between a ticket and abs(θ_init) ⊙ s, its signs on a fresh initialisation.

θ_init are fresh initial parameters, and s is 0 where the ticket is pruned. Neither network is trained. They are the
yellow and the red ball of the paper's Figure 1. RUN is a level of a search."""

COMPARISONS: dict[str, tuple[str, Callable[[str, Sequence[str] | None], None]]] = {
    "stability": (STABILITY, partial(compare_runs, "stability")),
    "lmc": (LMC, partial(compare_runs, "lmc")),
    "norm_barrier": (NORM_BARRIER, ask_initial_norm),
    "sign_barrier": (SIGN_BARRIER, ask_signed_init),
}
"""Name → text above its options, and the function that reads the options and measures."""


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run one comparison.

    Args:
        name: A key of `COMPARISONS`.
        arguments: Words to parse. None means those of the process.
    """
    description, measure = COMPARISONS[name]
    measure(description, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison that the first word names."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        first_lines = {name: text.partition("\n")[0] for name, (text, _) in COMPARISONS.items()}
        print_commands(f"{usage_name()} NAME [OPTIONS]", __doc__, first_lines)
        return
    with clear_errors():
        name = known("comparison", words[0].replace("-", "_"), list(COMPARISONS))
    start("compare", name)
    sys.argv[1:] = words[1:]  # the recorded command joins the words of `start` and these
    run(name, words[1:])
