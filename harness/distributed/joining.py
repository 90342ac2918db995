"""Detect processes that are lost before all have joined, without mistaking late starters for lost ones.

Joining has a timeout of minutes, because a slow file system can delay the start of a process. But each process keeps
a counter in the launcher's key-value store. Once it has started its counter, it must keep incrementing it until all
have joined. After that, `heartbeat` takes over. A process without a counter is watched through its launcher, which
ends when the process dies (`harness.distributed.launcher_watch`).
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

from harness.common.launched import launcher_number
from harness.distributed import launcher_watch
from harness.distributed.heartbeat import SILENT_SECONDS, end_process

_JOINED = 1 << 40
"""Added to the counter of a process that has joined and no longer increments it."""
_VERDICT = "lost"


def launcher_store(timeout: timedelta) -> Store | None:
    """Connect to the launcher's key-value store.

    The store survives when the launcher restarts its processes. So the keys have a prefix for each start. Without it, a
    restarted process may read the address of an ended one and fail to join.

    Args:
        timeout: Time limit of each request.

    Returns:
        None if the launcher has no store that outlives its processes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], launcher_number("MASTER_PORT", 0)
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return PrefixStore(f"harness/start-{launcher_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class JoinWatch:
    """Context manager around joining. It ends this process when another process or the launcher's store is lost.

    A process counts as lost when its counter has not changed for `silent_seconds`. A process that has not started its
    counter is not lost while its launcher exists. The first process of each node checks all others and publishes its
    finding. The other processes read only this finding. A process that ends prints one line on standard error and
    exits with code 1.

    A normal exit from the block marks this process as joined. After an exception its counter stops. With one process,
    or with a launcher that has no store, the block does nothing.
    """

    def __init__(self, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Read rank and world size from the environment. The watch starts when the block is entered."""
        self._rank, self._size = launcher_number("RANK", 0), launcher_number("WORLD_SIZE", 1)
        self._looks_at_all = launcher_number("LOCAL_RANK", 0) == 0
        self._silent_seconds, self._host = silent_seconds, socket.gethostname()
        self._begun, self._left = threading.Event(), threading.Event()
        self._joined = False
        self._answered = time.monotonic()
        """Time of the store's last answer. The thread `_watch` reads it."""
        self._looked = self._answered
        self._seen: dict[int, tuple[int, float]] = {}
        """By rank: its counter and the time of its last change."""
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> JoinWatch:
        if self._size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            self._answered = self._looked = time.monotonic()
            # Two threads: a request to a store on a lost node can block the thread that sends it.
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
            shared = launcher_store(timedelta(seconds=self._silent_seconds))
            assert shared is not None  # checked before this thread was started
            store = PrefixStore("roll", shared)
            while not self._left.is_set():
                store.add(str(self._rank), 1)
                self._begun.set()
                self._look(store)
                self._answered = time.monotonic()
                self._left.wait(self._silent_seconds / 10)
            if self._joined:
                store.add(str(self._rank), _JOINED)
        except Exception as error:  # torch raises several types when the store is gone
            if not self._left.is_set():
                self._end(f"the launcher of process 0 ({str(error).splitlines()[0]})")

    def _look(self, store: Store) -> None:
        if store.check([_VERDICT]):
            self._end(json.loads(store.get(_VERDICT)))
        # If this process itself was suspended, the others may have been, too: reset all timers.
        stood_still = time.monotonic() - self._looked > self._silent_seconds / 2
        self._looked = time.monotonic()
        for rank in range(self._size) if self._looks_at_all else ():
            count, now = store.add(str(rank), 0), time.monotonic()
            before, since = self._seen.get(rank, (count, now))
            since = now if count != before or stood_still else since
            self._seen[rank] = (count, since)
            if 0 < count < _JOINED and now - since > self._silent_seconds:
                silent = f"it began to join, then sent nothing for {self._silent_seconds:g} s"
                self._tell_and_end(store, f"process {rank} ({silent})")
        for address in launcher_watch.ended():
            self._tell_and_end(store, f"the launcher of a node (at {address}; it ended together with its processes)")

    def _tell_and_end(self, store: Store, lost: str) -> NoReturn:
        with suppress(Exception):
            store.set(_VERDICT, json.dumps(lost))
        self._end(lost)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._left.wait(self._silent_seconds / 10):
            now = time.monotonic()
            if now - looked > self._silent_seconds / 2:
                self._answered = now  # this process itself was suspended
            looked = now
            if now - self._answered > 1.5 * self._silent_seconds:
                self._end(f"the launcher of process 0 (no answer for {now - self._answered:.0f} s)")

    def _end(self, lost: str) -> NoReturn:
        end_process(f"process {self._rank} of {self._size} on {self._host} lost {lost} before all had joined; ending.")
