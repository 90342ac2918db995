"""What a launch says while it works."""

import sys

from tqdm import tqdm


def say(line: str) -> None:
    """Write a line to standard error without tearing a progress bar."""
    tqdm.write(line, sys.stderr)
