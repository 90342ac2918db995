"""SGD-noise stability (`tickets compare stability`)."""

from harness.cli.compare import run

if __name__ == "__main__":
    run("stability")
