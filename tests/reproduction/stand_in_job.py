"""A job that trains nothing: it takes chains and notes each in a file. Its arguments are the directory and the chains.

A chain named "fail…" ends the process with an error, and one named "wait…" waits for a signal, as a training does.
"""

import signal
import sys
import time
from pathlib import Path

from harness.common.logging import tell_epochs
from harness.common.process import end_with_parent
from harness.reproduction.job import Job

end_with_parent()
home, chains = Path(sys.argv[1]), sys.argv[2:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
job = Job.current()
assert job is not None
for chain in job.take(chains):
    with open(home / f"{chain}.made", "a") as file:
        file.write(sys.argv[0] + "\n")
    tell_epochs(chain, 1.0, 4)
    if chain.startswith("fail"):
        sys.exit(f"error: {chain} has no data")
    while chain.startswith("wait") and not (home / "go").exists():
        time.sleep(0.01)
    tell_epochs(chain, 4.0, 4)
