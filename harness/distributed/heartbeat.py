"""Ends every process of a launch soon after one of them is lost, or when its training stands still.

Collective operations wait for minutes or hours, since rank 0 may work alone that long: they cannot tell a lost process
from a busy one. Here a thread beside the training can. Rank 0 holds a TCP connection to each other process. Both ends
say every few seconds that they live, and where their training is.
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
"""A process of which nothing came for so long is lost."""

READING, COMPUTING, MEETING = "reading the batch of step", "computing step", "meeting or saving after step"
ENDING = "ending the epoch after step"
"""What a training does, in this order; a number of a step follows."""

_BEAT, _FAILING, _WAITED, _GOODBYE, _STUCK = b".", b"x", b"w", b"!", b"#"
_LENGTH_BYTES = 4
_HELLO_BYTES = 1024
_PARTING_SECONDS = 5.0
"""How long process 0 waits for the others to end by its verdict, before it ends itself."""

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "remote process exited",
)
"""How gloo and NCCL speak of a process that is gone."""


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER)


def stood_still(error: BaseException | None) -> bool:
    """Whether an error says that gradients were waited for in vain: another process lives, and does not go on."""
    return isinstance(error, RuntimeError) and "Timed out waiting" in str(error)


def frame(kind: bytes, text: str = "") -> bytes:
    """Return a message: its kind (one byte), its text's length, its text."""
    data = text.encode()
    return kind + len(data).to_bytes(_LENGTH_BYTES, "big") + data


def take_frames(received: bytearray) -> Iterator[tuple[bytes, str]]:
    """Take whole messages off the front of `received`; the rest stays."""
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
    """Where a training is: the loop stores it several times a step, the heartbeat reads it every few seconds."""

    label: str
    # two plain attributes: a store of one is whole for any thread, without a lock
    at: tuple[int, int, str] | None = None
    """Epoch, step, and one of READING, COMPUTING, MEETING, ENDING."""
    begun: bool = False
    """Whether its first step is done. Before, data may be opened and kernels built for as long as it takes."""

    def __str__(self) -> str:
        """The place in words; empty until the training has begun."""
        if not self.begun or self.at is None:
            return ""
        epoch, step, doing = self.at
        return f"{self.label} epoch {epoch}, {doing} {step}"


@dataclass
class _Peer:
    """A process, as seen from this one."""

    rank: int
    heard: float
    """When something came from it last (monotonic seconds)."""
    host: str = ""
    """Unknown until it has connected."""
    place: str = ""
    """Where its training is, in its own words; empty where there is none to watch."""
    since: float = 0.0
    """Since when it is there, by the clock of this process."""
    link: socket.socket | None = None
    received: bytearray = field(default_factory=bytearray)
    """The beginning of a message."""
    unsent: bytearray = field(default_factory=bytearray)
    """What its connection has not taken yet."""
    expected: bool = True
    """Whether more must come from it: it has not said goodbye."""
    leave_by: float | None = None
    """When this process must have left too, because the peer failed, or waited for it in vain."""
    failed: bool = False

    def see(self, place: str, now: float) -> None:
        """Take note of where its training is."""
        if place != self.place:
            self.place, self.since = place, now

    def tell(self, message: bytes, *, needed: bool = True) -> None:
        """Send a message, or as much of it as the connection takes.

        The rest goes with the next one. A message that is not `needed` is left out where a rest is waiting.
        """
        assert self.link is not None
        if needed or not self.unsent:
            self.unsent += message
        with suppress(OSError):  # reading says what has become of it, and whether it said goodbye first
            del self.unsent[: self.link.send(self.unsent)]


@dataclass
class _Caller:
    """A connection to rank 0 that has not yet said who it is."""

    link: socket.socket
    since: float
    hello: bytearray = field(default_factory=bytearray)


class Heartbeat:
    """Ends this process as soon as another process of its launch is lost, even from within a collective operation.

    Lost is a process whose connection closes without a goodbye, of which nothing came for `silent_seconds`, or which
    failed while this one stayed. The end is one line on standard error and exit code 1, with nothing cleaned up; rank
    0's end closes the connections of all others, which end in turn. A world of one has neither thread nor socket.
    The thread needs Python's interpreter lock now and then: code that holds it for `silent_seconds` counts as silence.

    All processes end in the same way when one stands still in a training for `stuck_seconds` (0: never). Rank 0 judges,
    by its own clock, while all processes are in a training whose first step is done.
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
        """Join all processes; `share_text` returns rank 0's text on every rank.

        Raises ConnectionError where process 0 cannot be reached on MASTER_ADDR.
        """
        self._rank, self._size, self._host = rank, size, socket.gethostname()
        self._silent_seconds, self._stuck_seconds = silent_seconds, stuck_seconds
        self._beat_seconds = min(silent_seconds, stuck_seconds or silent_seconds) / 10
        self._me = _Peer(rank, time.monotonic(), self._host)
        self.place: Place | None = None
        """Where the training of this process is; None outside of trainings, where nobody judges how long it takes."""
        self._thread: threading.Thread | None = None
        self._leaving = False
        self.peer_failed = False
        """Whether another process has said that it failed; one that died says nothing."""
        self.last_words: Callable[[str], None] = lambda reason: None
        """Called with the reason before this process is ended because another one failed."""
        if size == 1:
            return
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
        self._all_here.wait()  # else a very short launch could end before it has taken every call

    def announce_leaving(self, *, failed: bool) -> None:
        """Say that this process leaves after an error: the others must leave by themselves soon, or are ended.

        It has not failed if it waited in vain for another: then the same command can go on.
        """
        self._order(_FAILING if failed else _WAITED)

    def close(self) -> None:
        """Say goodbye and stop watching; further calls do nothing."""
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
                f"({error}); the nodes of a launch must be able to open TCP connections to each other on any port"
            ) from error
        self._peers = {0: _Peer(0, time.monotonic(), host)}
        self._take(self._peers[0], link)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # a caller that has hung up already
            link, _ = listener.accept()
            link.setblocking(False)
            self._callers[link.fileno()] = _Caller(link, time.monotonic())
            self._selector.register(link, selectors.EVENT_READ, partial(self._greet, link.fileno()))

    def _greet(self, number: int) -> None:
        """Read who calls; a connection that does not know the token is none of this launch's."""
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

    # ------------------------------------------------------------------ watching; from here on in the thread alone

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:  # unwatched, this process could wait for hours
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
        """Count anew where this process itself stood still, perhaps with all others."""
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
                self._end(peer, "it failed; see its message" if peer.failed else "it waited for this one in vain")
            if peer.expected and now - peer.heard > self._silent_seconds:
                what = "it did not connect within" if peer.link is None else "nothing came from it for"
                self._end(peer, f"{what} {self._silent_seconds:g} s")
        for number, caller in list(self._callers.items()):
            if now - caller.since > self._silent_seconds:
                self._drop_caller(number, close=True)

    def _judge(self, now: float) -> None:
        """On rank 0: end the launch if a process has stood still in a training."""
        if self._rank != 0 or not self._stuck_seconds:
            return
        everyone = [self._me, *self._peers.values()]
        if not all(process.place for process in everyone):
            self._count_anew(now)  # one is not in its training yet, or not any more, and others may wait for it
            return
        # a step is seen at the next beat, and a beat may come late
        if now - min(process.since for process in everyone) > self._stuck_seconds + 2 * self._beat_seconds:
            where = "; ".join(f"process {process.rank} on {process.host}: {process.place}" for process in everyone)
            self._end_all(f"no progress for {self._stuck_seconds / 60:g} min: {where}; ending.")

    def _count_anew(self, now: float) -> None:
        for process in (self._me, *self._peers.values()):
            process.since = now

    def _end_all(self, line: str) -> NoReturn:
        """Tell the others why they end, and end after them.

        A connection that is closed at once may lose the words.
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
                    peer.link.recv(4096)  # closed with bytes unread, a connection may lose what was sent last
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _end(self, peer: _Peer, reason: str) -> NoReturn:
        lost = f"process {peer.rank} on {peer.host}" if peer.host else f"process {peer.rank}"
        end_process(f"process {self._rank} of {self._size} on {self._host} lost {lost} ({reason}); ending.")

    # ------------------------------------------------------------------ from outside

    def _order(self, what: bytes) -> None:
        if self._thread is not None:
            self._orders.send(what)


def end_process(line: str) -> NoReturn:
    """End this process from any thread, with exit code 1 and `line` on standard error, cleaning up nothing."""
    # the first line break ends a progress bar's line
    text = f"\n{line} The same command again continues from the last saved state.\n"
    # beside this thread, and straight to the file: neither a lock nor a full pipe may keep this process alive
    writer = threading.Thread(target=_write, args=(text,), daemon=True)
    writer.start()
    writer.join(5)
    os._exit(1)


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def _listen() -> socket.socket:
    """Listen on a free port of all interfaces, of both IP versions where there are both."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except (OSError, ValueError):
        return socket.create_server(("", 0), backlog=1024)
