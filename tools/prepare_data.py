"""Prepare a data set (`tickets prepare`)."""

from harness.cli.prepare import main

if __name__ == "__main__":
    main()
