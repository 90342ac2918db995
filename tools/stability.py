"""SGD-noise stability: the error barrier between two trainings of one start under different sgd_seeds.

A start is stable when 𝒜(θ, u) and 𝒜(θ, u') are linearly mode-connected (paper, section 3.1)."""

from harness.cli.commands import compare_runs

if __name__ == "__main__":
    compare_runs("stability", __doc__)
