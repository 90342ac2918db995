"""The process that runs the other parts, seen from the command: start it, ask for a part, end it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.benchmarks.device.parts import Finding, Outcome

GRACE_SECONDS = 10.0
"""From the moment a part should stop, between two measurements, until its process is killed."""


class WorkerProcess:
    """A process that loads torch once and runs one part after another.

    It reads a line of JSON for each part and answers with a line for each finding and one for the end. A crash, a hang
    or a failure ends the process; the next part gets a new one.
    """

    def __init__(self, command: Sequence[str], directory: Path, log: Path) -> None:
        self.command, self.directory, self.log = command, directory, log
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def start(self, seconds: float) -> dict[str, Any]:
        """Start it unless it runs; return its first line, in which it describes the machine. OSError if it fails."""
        if self._process is not None:
            return {}
        self._lines = queue.Queue()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        try:
            first = self._lines.get(timeout=max(seconds, 0))
        except queue.Empty:
            self.kill()
            raise TimeoutError(f"the process did not start within {seconds:.0f} s") from None
        if first is None:
            raise OSError(f"the process did not start: {self._last_words()}")
        return first

    def ask(self, part: str, seconds: float, kill_after: float) -> Outcome:
        """Run one part; after `seconds` it should stop, after `kill_after` its process is killed."""
        started = time.monotonic()
        findings: list[Finding] = []

        def outcome(status: Any, detail: str) -> Outcome:
            return Outcome(part, status, detail, findings, time.monotonic() - started)

        try:
            self.start(kill_after)
        except OSError as error:
            return outcome("not run", str(error))
        assert self._process is not None and self._process.stdin is not None
        try:
            left = seconds - (time.monotonic() - started)
            self._process.stdin.write(json.dumps({"part": part, "seconds": left}) + "\n")
            self._process.stdin.flush()
            while True:
                line = self._lines.get(timeout=max(0.0, started + kill_after - time.monotonic()))
                if line is None:
                    return outcome("crashed", self._last_words())
                if "status" in line:
                    if line["status"] == "failed":  # an error of the device would spoil the next part, too
                        self.kill()
                    return outcome(line["status"], line["detail"])
                findings.append(Finding(line["text"], line["values"]))
        except BrokenPipeError:
            return outcome("crashed", self._last_words())
        except queue.Empty:
            self.kill()
            return outcome("stopped", "killed when its time was over")

    def _last_words(self) -> str:
        """How it ended, and the last line that it wrote."""
        assert self._process is not None
        code = self._process.wait()
        self.kill()
        words = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{ended_by(code)}{': ' if words else ''}{words[-1][:200] if words else ''}"

    def kill(self) -> None:
        """End it, with the processes that it started."""
        if self._process is not None:
            kill(self._process)
            self._process = None


def _read(process: subprocess.Popen[str], lines: queue.Queue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    with suppress(json.JSONDecodeError):  # half a line, of a process that was killed
        for line in process.stdout:
            lines.put(json.loads(line))
    lines.put(None)


def ended_by(code: int) -> str:
    """Say how a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def kill(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group of its own, and that group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that waits for a lost device cannot end
        process.wait(5)
