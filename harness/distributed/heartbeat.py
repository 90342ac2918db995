"""Heartbeat: end all processes of a launch soon after one is lost, or when a training hangs.

Collective operations have timeouts of minutes or hours, because rank 0 may legitimately work alone for that long. So
they cannot tell a lost process from a busy one. The heartbeat can, in a background thread. Rank 0 has a TCP connection
to every other process. Every few seconds, both ends send a sign of life and the position of their training.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

SILENT_SECONDS = 30.0
"""A process that has sent nothing for this long counts as lost."""

READING, COMPUTING, MEETING = "reading the batch of step", "computing step", "meeting or saving after step"
ENDING = "ending the epoch after step"
"""The phases of a training step, in this order. In messages, the number of the step follows."""

_BEAT, _FAILING, _WAITED, _GOODBYE, _STUCK = b".", b"x", b"w", b"!", b"#"
_LENGTH_BYTES = 4
_HELLO_BYTES = 1024
_PARTING_SECONDS = 5.0
"""Time that rank 0 gives the others to end after a hang was found, before it ends itself."""

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "remote process exited",
)
"""Parts of the error messages by which gloo and NCCL report that another process is gone."""


def lost_peer(error: BaseException | None) -> bool:
    """Return whether an error of gloo or NCCL reports that another process is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER)


def stood_still(error: BaseException | None) -> bool:
    """Return whether an error reports a timeout while waiting for gradients.

    The other process then still has its connection, but hangs.
    """
    return isinstance(error, RuntimeError) and "Timed out waiting" in str(error)


def frame(kind: bytes, text: str = "") -> bytes:
    """Encode a message: its kind (one byte), the length of its text, and the text."""
    data = text.encode()
    return kind + len(data).to_bytes(_LENGTH_BYTES, "big") + data


def take_frames(received: bytearray) -> Iterator[tuple[bytes, str]]:
    """Decode all complete messages and remove them from the front of `received`. An incomplete rest stays."""
    head = 1 + _LENGTH_BYTES
    while len(received) >= head:
        end = head + int.from_bytes(received[1:head], "big")
        if len(received) < end:
            return
        kind, text = bytes(received[:1]), received[head:end].decode(errors="replace")
        del received[:end]
        yield kind, text


@dataclass(slots=True)
class Place:
    """The position of a training. The loop writes it several times a step; the heartbeat reads it every few seconds."""

    label: str
    # Plain attributes need no lock: assigning one is atomic in Python.
    at: tuple[int, int, str] | None = None
    """Epoch, step, and one of READING, COMPUTING, MEETING, ENDING."""
    begun: bool = False
    """Whether the first step is done. Before that, opening data and building kernels may take any time."""

    def __str__(self) -> str:
        """Describe the position; empty until the first step is done."""
        if not self.begun or self.at is None:
            return ""
        epoch, step, doing = self.at
        return f"{self.label} epoch {epoch}, {doing} {step}"


@dataclass
class _Peer:
    """The state of one process of the launch, as known to this process."""

    rank: int
    heard: float
    """Time of its last message (monotonic seconds)."""
    host: str = ""
    """Host name; empty until it has connected."""
    place: str = ""
    """Position of its training, as text. Empty if no training is being watched."""
    since: float = 0.0
    """Time when it was first seen at this position, by the clock of this process."""
    link: socket.socket | None = None
    """Connection to it; None before it has connected and after its goodbye."""
    received: bytearray = field(default_factory=bytearray)
    """Start of an incomplete message from it."""
    unsent: bytearray = field(default_factory=bytearray)
    """Bytes that its connection has not accepted yet."""
    expected: bool = True
    """Whether it must keep sending, since it has not said goodbye."""
    leave_by: float | None = None
    """Deadline for this process to leave by itself, set when the peer has failed or timed out."""
    failed: bool = False
    """Whether the peer said that it failed, rather than timed out."""

    def see(self, place: str, now: float) -> None:
        """Record the position of its training."""
        if place != self.place:
            self.place, self.since = place, now

    def tell(self, message: bytes, *, needed: bool = True) -> None:
        """Send a message without blocking. Bytes that the connection does not accept go with the next message.

        Args:
            needed: Whether the message must be sent. If not, it is dropped while older bytes wait.
        """
        assert self.link is not None
        if needed or not self.unsent:
            self.unsent += message
        with suppress(OSError):  # the next read reports a broken connection, after a possible goodbye
            del self.unsent[: self.link.send(self.unsent)]


@dataclass
class _Caller:
    """A connection to rank 0 that has not identified itself yet."""

    link: socket.socket
    since: float
    hello: bytearray = field(default_factory=bytearray)


class Heartbeat:
    """Ends this process as soon as another process of the launch is lost, even within a collective operation.

    A process counts as lost if its connection closes without a goodbye, or if it sends nothing for `silent_seconds`.
    The same holds if it announced an error and this process did not leave by itself in time. This process then prints
    one line on standard error and exits with code 1, without cleanup. The exit of rank 0 closes the connections of all
    other processes, so that they end too. With one process, there is neither a thread nor a socket.

    The thread needs the GIL. So a process that holds it for `silent_seconds` counts as lost.

    All processes also end when one makes no progress in a training for `stuck_seconds` (0: never). Rank 0 checks this
    by its own clock, while all processes are in a training and past its first step.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        share_text: Callable[[str], str],
        *,
        silent_seconds: float = SILENT_SECONDS,
        stuck_seconds: float = 0.0,
    ) -> None:
        """Connect all processes and start the thread.

        Args:
            rank: The rank of this process.
            size: The number of processes.
            share_text: Returns rank 0's text on every rank (a collective operation).
            silent_seconds: A process that sends nothing for this long counts as lost.
            stuck_seconds: The launch ends when a training makes no progress for this long; 0: never.

        Raises:
            ConnectionError: This process cannot reach rank 0 on MASTER_ADDR.
        """
        # Phase: set the state that also a single process has.
        self._rank, self._size, self._host = rank, size, socket.gethostname()
        self._silent_seconds, self._stuck_seconds = silent_seconds, stuck_seconds
        self._beat_seconds = min(silent_seconds, stuck_seconds or silent_seconds) / 10
        self._me = _Peer(rank, time.monotonic(), self._host)
        self.place: Place | None = None
        """Position of this process's training. None outside of trainings, where progress is not watched."""
        self._thread: threading.Thread | None = None
        self._leaving = False
        self.peer_failed = False
        """Whether another process has reported a failure. A process that dies reports nothing."""
        self.last_words: Callable[[str], None] = lambda reason: None
        """Called with the reason before this process ends because another process failed."""
        if size == 1:
            return

        # Phase: connect to the other processes.
        self._peers: dict[int, _Peer] = {}
        self._callers: dict[int, _Caller] = {}
        self._all_here = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._orders, watched = socket.socketpair()
        self._selector.register(watched, selectors.EVENT_READ, partial(self._obey, watched))
        if rank == 0:
            self._expect_callers(share_text)
        else:
            self._call(share_text)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        self._all_here.wait()  # a very short launch must not end before every process has connected

    def announce_leaving(self, *, failed: bool) -> None:
        """Tell the other processes that this one leaves after an error.

        They must leave by themselves within `silent_seconds`, or their heartbeat ends them.

        Args:
            failed: Whether the error is this process's own. False if it timed out waiting for another process: the
                same command can then resume.
        """
        self._order(_FAILING if failed else _WAITED)

    def close(self) -> None:
        """Say goodbye to the other processes and stop the thread. Further calls do nothing."""
        self._order(_GOODBYE)
        if self._thread is not None:
            self._thread.join(self._silent_seconds)
            self._thread = None
            self._orders.close()

    # ------------------------------------------------------------------ joining

    def _expect_callers(self, share_text: Callable[[str], str]) -> None:
        listener = _listen()
        listener.setblocking(False)
        self._token = secrets.token_hex(16)
        share_text(json.dumps([listener.getsockname()[1], self._token, self._host]))
        self._peers = {rank: _Peer(rank, time.monotonic()) for rank in range(1, self._size)}
        self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))

    def _call(self, share_text: Callable[[str], str]) -> None:
        port, token, host = json.loads(share_text(""))
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        try:
            link = socket.create_connection((address, port), timeout=self._silent_seconds)
            link.sendall(json.dumps([token, self._rank, self._host]).encode() + b"\n")
        except OSError as error:
            raise ConnectionError(
                f"process {self._rank} of {self._size} on {self._host} cannot reach process 0 at {address}:{port} "
                f"({error}); all nodes of a launch must allow TCP connections to each other on any port"
            ) from error
        self._peers = {0: _Peer(0, time.monotonic(), host)}
        self._take(self._peers[0], link)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the caller may already have closed the connection
            link, _ = listener.accept()
            link.setblocking(False)
            self._callers[link.fileno()] = _Caller(link, time.monotonic())
            self._selector.register(link, selectors.EVENT_READ, partial(self._greet, link.fileno()))

    def _greet(self, number: int) -> None:
        """Read a caller's token and rank. Close connections with a wrong token: they are not of this launch."""
        # Phase: read until the end of the line, or until the message is too long.
        caller = self._callers[number]
        try:
            data = caller.link.recv(_HELLO_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        caller.hello += data
        hello, ended, rest = bytes(caller.hello).partition(b"\n")
        if data and not ended and len(hello) < _HELLO_BYTES:
            return

        # Phase: accept or close the connection.
        peer = self._known(hello) if ended else None
        self._drop_caller(number, close=peer is None)
        if peer is not None:
            self._take(peer, caller.link)
            self._heed(peer, rest)

    def _known(self, hello: bytes) -> _Peer | None:
        try:
            token, rank, host = json.loads(hello)
            peer = self._peers[rank]
            if not secrets.compare_digest(token, self._token) or peer.link is not None or not peer.expected:
                return None
        except (ValueError, TypeError, KeyError):
            return None
        peer.host = str(host)
        return peer

    def _drop_caller(self, number: int, *, close: bool) -> None:
        link = self._callers.pop(number).link
        self._selector.unregister(link)
        if close:
            link.close()

    def _take(self, peer: _Peer, link: socket.socket) -> None:
        link.setblocking(False)
        peer.link, peer.heard = link, time.monotonic()
        self._selector.register(link, selectors.EVENT_READ, partial(self._listen_to, peer))
        if all(peer.link is not None or not peer.expected for peer in self._peers.values()):
            self._all_here.set()

    # ------------------------------------------------------------------ watching (called only in the thread)

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:  # without the heartbeat, this process could hang for hours
            traceback.print_exc()
            os._exit(1)

    def _watch(self) -> None:
        looked = next_beat = time.monotonic()
        while not self._leaving:
            for key, _ in self._selector.select(max(0.0, next_beat - time.monotonic())):
                key.data()
            now = time.monotonic()
            self._allow_for(now - looked, now)
            looked = now
            if now >= next_beat:
                next_beat = now + self._beat_seconds
                self._me.see(str(self.place or ""), now)
                self._send(_BEAT, self._me.place, needed=False)
                self._look(now)
                self._judge(now)
        self._hang_up()

    def _allow_for(self, stood_still: float, now: float) -> None:
        """Reset the timers after this process itself was suspended, possibly together with all others."""
        if stood_still > self._silent_seconds / 2:
            for peer in self._peers.values():
                peer.heard = now
        if stood_still > 5 * self._beat_seconds:
            self._count_anew(now)

    def _obey(self, watched: socket.socket) -> None:
        for order in watched.recv(16):
            self._send(bytes([order]))
            self._leaving |= bytes([order]) == _GOODBYE

    def _listen_to(self, peer: _Peer) -> None:
        assert peer.link is not None
        try:
            data = peer.link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(peer, "its connection closed")
        self._heed(peer, data)

    def _heed(self, peer: _Peer, data: bytes) -> None:
        peer.heard = time.monotonic()
        peer.received += data
        for kind, text in take_frames(peer.received):
            if kind == _BEAT:
                peer.see(text, peer.heard)
            elif kind == _STUCK:
                end_process(text)
            elif kind in (_FAILING, _WAITED):
                peer.leave_by = peer.heard + self._silent_seconds
                peer.failed = kind == _FAILING
                self.peer_failed |= peer.failed
            elif kind == _GOODBYE:
                assert peer.link is not None
                self._selector.unregister(peer.link)
                peer.link.close()
                peer.link, peer.expected, peer.place = None, False, ""

    def _look(self, now: float) -> None:
        for peer in self._peers.values():
            if peer.leave_by is not None and now > peer.leave_by:
                if peer.failed:
                    self.last_words(f"process {peer.rank} failed")
                self._end(peer, "it failed; see its message" if peer.failed else "it timed out waiting for this one")
            if peer.expected and now - peer.heard > self._silent_seconds:
                what = "it did not connect within" if peer.link is None else "no message for"
                self._end(peer, f"{what} {self._silent_seconds:g} s")
        for number, caller in list(self._callers.items()):
            if now - caller.since > self._silent_seconds:
                self._drop_caller(number, close=True)

    def _judge(self, now: float) -> None:
        """On rank 0: end the launch if a process makes no progress in a training."""
        if self._rank != 0 or not self._stuck_seconds:
            return
        everyone = [self._me, *self._peers.values()]
        if not all(process.place for process in everyone):
            self._count_anew(now)  # the others may legitimately wait for a process that is outside of its training
            return
        # Allow two beats more: a step becomes visible at the next beat, and a beat may be late.
        if now - min(process.since for process in everyone) > self._stuck_seconds + 2 * self._beat_seconds:
            where = "; ".join(f"process {process.rank} on {process.host}: {process.place}" for process in everyone)
            self._end_all(f"no progress for {self._stuck_seconds / 60:g} min: {where}; ending.")

    def _count_anew(self, now: float) -> None:
        for process in (self._me, *self._peers.values()):
            process.since = now

    def _end_all(self, line: str) -> NoReturn:
        """Send the reason to all other processes, and end this process after them.

        Wait for their end for at most _PARTING_SECONDS. Closing the connections at once could lose the message.
        """
        self._send(_STUCK, line)
        until = time.monotonic() + _PARTING_SECONDS
        for peer in self._peers.values():
            with suppress(OSError):
                while peer.link is not None and (left := until - time.monotonic()) > 0:
                    peer.link.settimeout(left)
                    peer.link.sendall(peer.unsent)
                    peer.unsent.clear()
                    if not peer.link.recv(4096):
                        break
        end_process(line)

    def _send(self, kind: bytes, text: str = "", *, needed: bool = True) -> None:
        message = frame(kind, text)
        for peer in self._peers.values():
            if peer.link is not None:
                peer.tell(message, needed=needed)

    def _hang_up(self) -> None:
        for peer in self._peers.values():
            if peer.link is not None:
                with suppress(OSError):
                    peer.link.recv(4096)  # a close with unread bytes could discard the last message sent
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _end(self, peer: _Peer, reason: str) -> NoReturn:
        lost = f"process {peer.rank} on {peer.host}" if peer.host else f"process {peer.rank}"
        end_process(f"process {self._rank} of {self._size} on {self._host} lost {lost} ({reason}); ending.")

    # ------------------------------------------------------------------ called from other threads

    def _order(self, what: bytes) -> None:
        if self._thread is not None:
            self._orders.send(what)


def end_process(line: str) -> NoReturn:
    """Print `line` on standard error and exit with code 1, without cleanup. Works from any thread."""
    # The first line break ends the line of a progress bar.
    text = f"\n{line} Run the same command again to resume from the last saved state.\n"
    # Write from another thread and to the raw file descriptor, so that no lock or full pipe can block the exit.
    writer = threading.Thread(target=_write, args=(text,), daemon=True)
    writer.start()
    writer.join(5)
    os._exit(1)


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def _listen() -> socket.socket:
    """Listen on a free port of all interfaces, with IPv6 and IPv4 if both are available."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except (OSError, ValueError):
        return socket.create_server(("", 0), backlog=1024)
