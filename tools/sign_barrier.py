"""The barrier of signs (`tickets compare sign_barrier`)."""

from harness.cli.compare import run

if __name__ == "__main__":
    run("sign_barrier")
