"""Deliver finished runs to MLflow in a background thread, so that no training waits for the server."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harness.common.waiting import heed
from harness.lineage.store import LineageStore
from harness.lineage.tracking.server import RefusedError

_log = logging.getLogger(__name__)

STOPPING_SECONDS = 5.0
"""How long a launch that fails or is stopped waits for pending deliveries."""
_TELL_AFTER_SECONDS = 3.0
"""Log a message when `settle` has waited this long."""


class DeliveryThread:
    """Delivers committed runs to the tracking server of one launch, in the order of `send` (rank 0).

    A delivery never ends a training. If the server is unreachable or busy, a warning is logged and the runs stay
    queued. The next `send` retries them, and so does `tickets lineage sync`. The same happens to runs that the
    server refuses, for example because somebody deleted the experiment. Some errors are permanent, such as an altered
    file. If runs are still refused at the end of `working`, or an error was permanent, `working` raises it.
    """

    def __init__(self, store: LineageStore) -> None:
        self._own = store.apart()  # a connection of its own, for use in another thread
        self._waiting: list[str] = []
        self._delivered: dict[str, str] = {}
        self._refused: dict[str, RefusedError] = {}
        """Runs that the server refused, by key, in the order of `send`."""
        self._failure: Exception | None = None
        self._warned: set[str] = set()
        self.away = self._busy = False
        """`away`: the server was unreachable at the last attempt. The next `send` retries."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, key: str) -> None:
        """Queue a committed run for delivery and return at once."""
        if self._own.tracking_uri is None:
            return  # offline: no server is configured
        self._start()
        with self._changed:
            self._retry_refused()
            if key not in self._waiting and key not in self._delivered:
                self._waiting.append(key)
            self._busy = bool(self._waiting)
            self._changed.notify_all()

    def run_id(self, key: str) -> str | None:
        """Wait until a queued run is delivered, and return its run ID; None if it cannot be delivered now."""
        self.settle()
        return self._delivered.get(key)

    def settle(self, seconds: float | None = None) -> None:
        """Wait until the queue is delivered or the server is unreachable, for at most `seconds` (None: no limit).

        Raises:
            StoppedError: This process was asked to stop, and there is no limit.
        """
        end = None if seconds is None else time.monotonic() + seconds
        tell_at: float | None = time.monotonic() + _TELL_AFTER_SECONDS
        with self._changed:
            while self._busy and (end is None or time.monotonic() < end):
                if end is None:
                    heed()
                self._changed.wait(0.2)
                if tell_at is not None and time.monotonic() > tell_at:
                    _log.info(
                        f"writing {len(self._waiting)} run(s) to MLflow ({self._own.server.address}); you can stop, "
                        f"the runs are in {self._own.local.directory}"
                    )
                    tell_at = None

    def check(self) -> None:
        """Wait for the queue, and raise what no later attempt mends.

        Raises:
            RefusedError: The server refuses runs.
            Exception: A run cannot be delivered, for example because a file was altered.
        """
        self.settle()
        with self._changed:
            failure, self._failure = self._failure, None
            refused, number = next(iter(self._refused.values()), None), len(self._refused)
        if failure is not None:
            raise failure
        if refused is not None:
            raise RefusedError(
                f"{refused}; {number} run(s) are not in MLflow: `{self._own.sync_command}` delivers them then"
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Wait for pending deliveries at the end of the block, and raise what no later attempt mends.

        If the block fails or is stopped, wait for at most STOPPING_SECONDS.
        """
        # Phase: run the block. Its own error is more informative than one of a delivery.
        try:
            yield
        except BaseException:
            self.settle(STOPPING_SECONDS)
            self._show()
            raise
        finally:
            atexit.unregister(self._at_exit)  # a launch that was stopped must not wait again, without a limit

        # Phase: retry, since the server may be reachable again.
        with self._changed:
            self._retry_refused()
            self._busy = bool(self._waiting)
            self._changed.notify_all()
        self.settle()
        self._show()
        self.check()

    def _retry_refused(self) -> None:
        """Queue refused runs again, before all others. Call it with the lock held."""
        self._waiting[:0] = [key for key in self._refused if key not in self._waiting]
        self._refused.clear()

    def _show(self) -> None:
        """Update the lineage graphs of the delivered runs in MLflow, if the server is reachable."""
        if not self._busy and not self.away:
            self._own.show()

    def _start(self) -> None:
        if self._thread is None:
            self._own.server.preload()  # import MLflow now: two threads importing it at once can fail
            self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
            self._thread.start()
            atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """Deliver the queue at interpreter exit, for callers that do not use `working`. Ctrl-C ends the wait."""
        with suppress(KeyboardInterrupt):
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
        """Deliver the oldest queued run and record the outcome."""
        # Phase: deliver.
        run_id, away = None, False
        failure: Exception | None = None
        refused: RefusedError | None = None
        try:
            directory = self._own.local.find(key)
            if directory is not None:  # None: deleted in the meantime
                run_id = self._own.deliver(directory)
                if self.away:
                    self._own.tidy()  # reachable again: delete runs that repeated requests created twice
        except RefusedError as error:
            refused = error
            self._warn(f"{error}. Nothing is lost: the launch continues, and ends with an error if this stays so")
        except ConnectionError as error:
            away = True
            _log.warning(f"{error}; nothing is lost: `{self._own.sync_command}` delivers it later")
        except LookupError as error:
            if isinstance(error, KeyError):  # a bug, not a missing parent (both are LookupErrors)
                failure = error
            else:  # a parent is neither local nor on the server; training must continue
                _log.warning(f"{error}; the run stays local")
        except Exception as error:
            failure = error
        if failure is not None:
            self._warn(f"cannot deliver a run: {failure}; the launch continues, and ends with this error")

        # Phase: record the outcome. Undelivered runs stay queued while the server is unreachable.
        with self._changed:
            self.away, self._failure = away, self._failure or failure
            if run_id is not None:
                self._delivered[key] = run_id
            if refused is not None:
                self._refused[key] = refused
            if not away:
                self._waiting.remove(key)
            self._busy = bool(self._waiting) and not away
            self._changed.notify_all()

    def _warn(self, text: str) -> None:
        """Log a warning once, though each delivery may have it."""
        if text not in self._warned:
            self._warned.add(text)
            _log.warning(text)


def deliver(store: LineageStore, key: str) -> str | None:
    """Deliver one committed run, wait for it and return its run ID.

    If it cannot be delivered now, log a warning and return None.
    """
    thread = DeliveryThread(store)
    thread.send(key)
    thread.check()
    return thread.run_id(key)
