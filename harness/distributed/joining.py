"""Tells a process that was lost before all had joined from one that only starts late.

Joining waits for minutes, since a slow file system may take that long to start a process. But a process that has once
answered here is running, and must go on answering until all have joined. From then on `heartbeat` watches.
The answers are counters in the store of the launcher, through which the processes also join. For a process that has not
answered yet its launcher stands, which ends with it (`harness.distributed.launcher_watch`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

from torch.distributed import PrefixStore, Store, TCPStore

from harness.distributed import launcher_watch
from harness.distributed.heartbeat import SILENT_SECONDS, end_process

_JOINED = 1 << 40
"""Added to a counter that need not rise any more."""
_VERDICT = "lost"


class JoinWatch:
    """Within a `with` block, ends this process when another that had begun to join is lost, or the launcher's store.

    Lost is a process whose counter stood still for `silent_seconds`; one that has not yet begun is waited for, as long
    as its launcher is there. The first process of each node looks at all others, the rest at its verdict. The end is
    one line on standard error and exit code 1. Leaving the block in order says that this process has joined; leaving
    it by an exception lets its counter stand still. In a world of one, or without a launcher that keeps a store,
    nothing happens.
    """

    def __init__(self, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Nothing is begun before the block is entered."""
        self._rank, self._size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._looks_at_all = os.environ.get("LOCAL_RANK", "0") == "0"
        self._silent_seconds, self._host = silent_seconds, socket.gethostname()
        self._begun, self._left = threading.Event(), threading.Event()
        self._joined = False
        self._answered = time.monotonic()
        """When the store did its part last; read by another thread."""
        self._looked = self._answered
        self._seen: dict[int, tuple[int, float]] = {}
        """By rank: its counter, and since when it stands there."""
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> JoinWatch:
        if self._size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            self._answered = self._looked = time.monotonic()
            # two: a store on a node that is gone may keep the one that asks it waiting
            self._threads = [
                threading.Thread(target=target, name="join watch", daemon=True)
                for target in (self._answer, self._watch)
            ]
            for thread in self._threads:
                thread.start()
            self._begun.wait(self._silent_seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._joined = kind is None
        self._left.set()
        for thread in self._threads:
            thread.join(self._silent_seconds)

    def _answer(self) -> None:
        try:
            store = self._store()
            while not self._left.is_set():
                store.add(str(self._rank), 1)
                self._begun.set()
                self._look(store)
                self._answered = time.monotonic()
                self._left.wait(self._silent_seconds / 10)
            if self._joined:
                store.add(str(self._rank), _JOINED)
        except Exception as error:  # torch has several for a store that is gone
            if not self._left.is_set():
                self._end(f"the launcher of process 0 ({str(error).splitlines()[0]})")

    def _store(self) -> Store:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=self._silent_seconds)
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        # a launcher that starts its processes again keeps its store
        return PrefixStore(f"harness/roll/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _look(self, store: Store) -> None:
        if store.check([_VERDICT]):
            self._end(json.loads(store.get(_VERDICT)))
        stood_still = time.monotonic() - self._looked > self._silent_seconds / 2  # perhaps with all others
        self._looked = time.monotonic()
        for rank in range(self._size) if self._looks_at_all else ():
            count, now = store.add(str(rank), 0), time.monotonic()
            before, since = self._seen.get(rank, (count, now))
            since = now if count != before or stood_still else since
            self._seen[rank] = (count, since)
            if 0 < count < _JOINED and now - since > self._silent_seconds:
                silent = f"it began to join, then nothing came from it for {self._silent_seconds:g} s"
                self._tell_and_end(store, f"process {rank} ({silent})")
        for address in launcher_watch.ended():
            self._tell_and_end(store, f"the launcher of a node (at {address}; it ended, and its processes with it)")

    def _tell_and_end(self, store: Store, lost: str) -> NoReturn:
        with suppress(Exception):
            store.set(_VERDICT, json.dumps(lost))
        self._end(lost)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._left.wait(self._silent_seconds / 10):
            now = time.monotonic()
            if now - looked > self._silent_seconds / 2:
                self._answered = now  # this process itself stood still
            looked = now
            if now - self._answered > 1.5 * self._silent_seconds:
                self._end(f"the launcher of process 0 (no answer for {now - self._answered:.0f} s)")

    def _end(self, lost: str) -> NoReturn:
        end_process(f"process {self._rank} of {self._size} on {self._host} lost {lost} before all had joined; ending.")
