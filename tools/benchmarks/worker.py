"""Run a part of a sitting in a process of its own, forked from one that has loaded torch: no part spoils the next."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks.measure import Row, about, number

HOMES = {
    "checkpoints": ("barrier", "checkpoints"),
    "waits": ("waits", "waits"),
    "steps": ("steps", "steps"),
    "ddp": ("steps", "ddp"),
    "decoding": ("loaders", "decoding"),
    "compiled": ("steps", "compiled"),
    "small": ("steps", "small"),
    "barrier": ("barrier", "barrier_on_device"),
}
"""File of this folder, and function in it, of each part."""


@dataclass(frozen=True)
class Outcome:
    """How one part ended, with the rows that it measured until then."""

    part: str
    status: str
    """done, stopped, failed, crashed or not run"""
    detail: str = ""
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        """The part's line, and one for each row."""
        reason = f": {self.detail}" if self.detail else ""
        rows = (f"\n    {row.name}  {number(row.value)}  {row.note}".rstrip() for row in self.rows)
        return f"{self.part}: {self.status}{reason} ({self.seconds:.0f} s){''.join(rows)}"


def measure(part: str, world: Any, seconds: float, send: Callable[[Row], None]) -> tuple[str, str]:
    """Run a part, `send` its rows, and return how it ended: status and detail."""
    stop_at = time.monotonic() + seconds
    try:
        file, name = HOMES[part]
        for row in getattr(importlib.import_module(f"tools.benchmarks.{file}"), name)(world):
            send(row)
            if time.monotonic() > stop_at:
                return "stopped", "its time was over"
    except ModuleNotFoundError as error:
        return "not run", f"needs {(error.name or str(error)).split('.')[0]}"
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).splitlines() or [""])[0][:200]
        return "failed", f"{type(error).__name__}: {words} at {os.path.basename(where.filename)}:{where.lineno}"
    return "done", ""


def on_device(part: str, seconds: float, send: Callable[[Any], None]) -> tuple[str, str]:
    """Run a part on this machine's device; the part "about" sends a description of the machine."""
    import torch

    from harness.distributed.world import World

    world = World("bf16")
    torch.backends.cudnn.benchmark = False
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # the networks are too small to share out
    torch.ones(1, device=world.device).sum().item()  # a device that does not work shows now
    if part != "about":
        return measure(part, world, seconds, send)
    send({"on_gpu": world.device.type == "cuda"} | about())
    return "done", ""


def ask(part: str, seconds: float, kill_after: float, log: Path, run: Callable[..., Any] = on_device) -> Outcome:
    """Run one part in a process; after `seconds` it should stop, after `kill_after` it is killed."""
    started, rows, fork = time.monotonic(), list[Any](), multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def work() -> None:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        theirs.send(run(part, seconds - (time.monotonic() - started), theirs.send))

    process = fork.Process(target=work)
    process.start()
    theirs.close()
    status, detail = "stopped", "killed when its time was over"
    try:
        while ours.poll(max(0.0, started + kill_after - time.monotonic())):
            if isinstance(answer := ours.recv(), tuple):
                status, detail = answer
                break
            rows.append(answer)
    except EOFError:
        process.join(5)
        words = [line[:200] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        status, detail = "crashed", ": ".join([ended_by(process.exitcode or 0), *words[-1:]])
    kill(process.pid or 0)
    process.kill()  # if it leads no group yet
    process.join(5)
    return Outcome(part, status, detail, tuple(rows), time.monotonic() - started)


def ended_by(code: int) -> str:
    """Say how a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def kill(pid: int) -> None:
    """End a process that leads a group of its own, and that group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
