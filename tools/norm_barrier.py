"""The barrier of normalisation parameters (`tickets compare norm_barrier`)."""

from harness.cli.compare import run

if __name__ == "__main__":
    run("norm_barrier")
