"""Linear mode connectivity: the error barrier between two trainings of one ticket, from their checkpoints.

For example abs(θ_init) ⊙ s_T trained, and θ_T ⊙ m_T trained (paper, Figure 3c)."""

from harness.cli.commands import compare_runs

if __name__ == "__main__":
    compare_runs("lmc", __doc__)
