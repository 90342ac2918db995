"""Finished runs on their way to MLflow: delivered in order by a thread of their own, so that no training waits."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.lineage.store import LineageStore

_log = logging.getLogger(__name__)

STOPPING_SECONDS = 5.0
"""How long a launch that fails or is told to stop waits for what is being delivered."""
_TELL_AFTER_SECONDS = 3.0


class DeliveryThread:
    """Delivers committed nodes to the tracking store of one launch, the oldest first (rank 0).

    A server that is away costs a warning; what waits goes with the next node that is sent, and otherwise with
    `python tools/lineage.py sync`. What no later attempt can mend (an altered file, an experiment that was deleted) is
    raised by the next call here, in the thread of the training.
    """

    def __init__(self, store: LineageStore) -> None:
        self._own = store.apart()  # two threads, two connections
        self._waiting: list[str] = []
        self._delivered: dict[str, str] = {}
        self._failure: Exception | None = None
        self.away = self._busy = False
        """Away: the server gave no answer the last time; it is asked again when the next run is sent."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, key: str) -> None:
        """Have a committed node delivered after all that were sent before it; returns at once."""
        if self._own.tracking_uri is None:
            return  # local runs alone were asked for
        self._raise_failure()
        self._start()
        with self._changed:
            if key not in self._waiting and key not in self._delivered:
                self._waiting.append(key)
            self._busy = bool(self._waiting)
            self._changed.notify_all()

    def run_id(self, key: str) -> str | None:
        """Return the run ID of a node that was sent, once it is there; None if it cannot be delivered now."""
        self.settle()
        return self._delivered.get(key)

    def settle(self, seconds: float | None = None) -> None:
        """Wait until everything that was sent is delivered, or cannot be now; at most so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        tell_at: float | None = time.monotonic() + _TELL_AFTER_SECONDS
        with self._changed:
            while self._busy and (end is None or time.monotonic() < end):
                self._changed.wait(0.2)
                if tell_at is not None and time.monotonic() > tell_at:
                    _log.info(
                        f"waiting for MLflow to take {len(self._waiting)} run(s); nothing is lost if you stop here"
                    )
                    tell_at = None
        self._raise_failure()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Wait at the end of the block for what is on its way, but only a moment when the block fails or is stopped."""
        try:
            yield
        except BaseException:
            self._failure = None  # the block's own error says more
            self.settle(STOPPING_SECONDS)
            self._show()
            raise
        with self._changed:
            self._busy = bool(self._waiting)  # the server may be back since the last attempt
            self._changed.notify_all()
        self.settle()
        self._show()

    def _show(self) -> None:
        """Let MLflow show the whole graph of what was delivered, if the server can be asked now."""
        if not self._busy and not self.away:
            self._own.show()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _start(self) -> None:
        if self._thread is None:
            self._own.server.preload()  # a library that two threads import at once may be seen half made
            self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
            self._thread.start()
            atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """For those who use the parts without a launch around them."""
        self._failure = None
        self.settle()
        self._show()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._busy:
                    self._changed.wait()
                key = self._waiting[0]
            self._deliver(key)

    def _deliver(self, key: str) -> None:
        """Deliver the oldest node, and say how it went."""
        run_id, away = None, False
        failure: Exception | None = None
        try:
            directory = self._own.local.find(key)
            if directory is not None:  # else it was deleted meanwhile
                run_id = self._own.deliver(directory)
                if self.away:
                    self._own.tidy()  # it is back
        except ConnectionError as error:
            away = True
            _log.warning(f"{error}; nothing is lost: `python tools/lineage.py sync` delivers it later")
        except KeyError as error:  # a bug of ours
            failure = error
        except LookupError as error:  # a parent made elsewhere: no reason to lose what was made here
            _log.warning(f"{error}; it stays among the local runs")
        except Exception as error:
            failure = error
        with self._changed:
            self.away, self._failure = away, failure or self._failure
            if run_id is not None:
                self._delivered[key] = run_id
            if not away:
                self._waiting.remove(key)
            self._busy = bool(self._waiting) and not away
            self._changed.notify_all()


def deliver(store: LineageStore, key: str) -> str | None:
    """Deliver one committed node and wait for it; its run ID, or None, with a warning, when it cannot go there now."""
    thread = DeliveryThread(store)
    thread.send(key)
    return thread.run_id(key)
