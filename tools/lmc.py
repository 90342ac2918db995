"""Linear mode connectivity (`tickets compare lmc`)."""

from harness.cli.compare import run

if __name__ == "__main__":
    run("lmc")
