"""Prove this build: train with the harness and with plain PyTorch, and compare every number.

    python tools/selfcheck.py                  AWS and LRR, about a minute on one core
    python tools/selfcheck.py --method aws     one of them, in half the time

The harness searches with ResNet-8 on scikit-learn's digits: a warm-up and two pruning levels. It measures the barrier
between the ticket and its copy with ψ_init, the initial norm parameters. It trains the signed mask on another θ_init,
which are new initial weights. Then recipes/checks/selfcheck_reference.py does the same: about 120 lines of plain
PyTorch that import nothing of the harness. Both get the same θ_init, data order, crops and random mixing weights α.
Both compute in float64, where two correct programs agree to 1e-13. In float32 they drift apart within 40 steps.

Data and runs lie in a temporary directory, the runs have keys of their own, and nothing is sent.

Exit code 0: equal to 1e-10. 1: a difference, with its stage and tensor. 2: no answer.
"""

from __future__ import annotations

import sys

from harness.cli.parser import parse_command
from recipes.checks.settings import SelfCheck


def main() -> None:
    """Run the self-check, and exit with its code."""
    asked = parse_command(SelfCheck, description=__doc__)
    from recipes.checks.selfcheck import (
        run,
    )  # imported after the options are read: it loads torch, and `--help` must not

    sys.exit(run(asked))


if __name__ == "__main__":
    main()
