"""The error barrier between a ticket and abs(θ_init) ⊙ s, its signs on a fresh initialisation, before any training.

The yellow and the red ball of the paper's Figure 1: `python tools/sign_barrier.py RUN_ID --init-seed 2` of a search's
level."""

from harness.cli.commands import ask_signed_init

if __name__ == "__main__":
    ask_signed_init(__doc__)
