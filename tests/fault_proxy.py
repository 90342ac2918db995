"""Inject faults in front of a tracking server by a TCP proxy.

It can refuse connections, hang, or answer 500. A fault can also start in the middle of a delivery.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from typing import Literal

Fault = Literal["none", "refusing", "hanging", "answering 500"]
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultProxy:
    """Forward TCP connections to a local port, or inject a fault.

    Setting `fault` also affects connections that are already open.

    Args:
        target: Port of the real server on 127.0.0.1.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.fault: Fault = "none"
        self._trigger: tuple[bytes, Fault] | None = None
        self.triggered = threading.Event()
        self._closed = False
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.02)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        """Return the URI that a client uses in place of the server's."""
        return f"http://127.0.0.1:{self.port}"

    def fault_at(self, word: bytes, fault: Fault) -> None:
        """Start a fault at the next matching request, and affect this request too.

        Args:
            word: Bytes to find in the request line, such as part of the path.
            fault: The fault to start.
        """
        self.triggered.clear()
        self._trigger = word, fault

    def heal(self) -> None:
        """End the fault and forward everything again."""
        self.fault = "none"

    def close(self) -> None:
        """Stop the proxy and close its listener."""
        self._closed = True

    def _accept(self) -> None:
        while not self._closed:
            if self.fault == "refusing":  # without a listener the kernel refuses connections
                if self._listener is not None:
                    self._listener.close()
                    self._listener = None
                threading.Event().wait(0.02)
                continue
            with contextlib.suppress(OSError):  # accept timed out, or the port is still in use
                if self._listener is None:
                    self._listener = socket.create_server(("127.0.0.1", self.port))
                    self._listener.settimeout(0.02)
                link, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()
        if self._listener is not None:
            self._listener.close()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            server: socket.socket | None = None
            try:
                while not self._closed:
                    ends = [link] if server is None else [link, server]
                    for end in select.select(ends, [], [], 0.05)[0]:
                        if end is link and not (server := self._from_client(link, server)):
                            return
                        if end is server and not self._from_server(link, server):
                            return
                    if self.fault == "refusing":
                        return
            finally:
                if server is not None:
                    server.close()

    def _from_client(self, link: socket.socket, server: socket.socket | None) -> socket.socket | None:
        """Forward bytes from the client, after any fault.

        Returns:
            The connection to the server, or None if the client's connection must be closed.
        """
        data = link.recv(1 << 16)
        if not data:
            return None
        if self._trigger and self._trigger[0] in data.partition(b"\r\n")[0]:
            self.fault, self._trigger = self._trigger[1], None
            self.triggered.set()
        while self.fault == "hanging" and not self._closed:
            threading.Event().wait(0.05)
        if self.fault == "answering 500":
            link.sendall(_ERROR)
            return None
        if self.fault == "refusing":
            return None
        server = server or socket.create_connection(("127.0.0.1", self.target))
        server.sendall(data)
        return server

    def _from_server(self, link: socket.socket, server: socket.socket) -> bool:
        """Forward bytes from the server. Return False if the client's connection must be closed."""
        data = server.recv(1 << 16)
        while self.fault == "hanging" and not self._closed:
            threading.Event().wait(0.05)
        if not data or self.fault == "refusing":
            return False
        link.sendall(data)
        return True


@contextlib.contextmanager
def fault_proxy(target: int) -> Iterator[FaultProxy]:
    """Run a proxy in front of port `target` during a `with` block."""
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
