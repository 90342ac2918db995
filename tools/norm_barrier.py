"""The error barrier between a ticket and its copy with the normalisation parameters of its θ_init, before any training.

It is what AWS is made to keep low (paper, Figure 1): `python tools/norm_barrier.py RUN_ID` of a search's level."""

from harness.cli.commands import ask_initial_norm

if __name__ == "__main__":
    ask_initial_norm(__doc__)
