"""Whether the launchers of the other nodes are still there, before the processes that they started can say so.

A process that is killed while Python still imports torch never begins to join, and the other nodes cannot tell it from
one that starts late. But its own launcher ends at once, and with it a connection that was there from the beginning:
torch's launchers meet in a store that process 0's launcher keeps, and none starts a process before all are there.

Imported before torch, so that these connections are seen before any process has made one of its own.
"""

from __future__ import annotations

import os

try:
    import psutil
except ModuleNotFoundError:  # a machine with PyTorch and little else: one process, and no launchers to watch
    psutil = None

_LAUNCHER = os.getppid()


def connections() -> frozenset[tuple[str, int]] | None:
    """Return the far ends of all connections to the store of this process's launcher; none where it keeps no store.

    None where they cannot be seen: the launcher is gone, or the system shows no process another's connections (macOS).
    """
    if psutil is None:
        return None
    try:
        port = int(os.environ["MASTER_PORT"])
        links = psutil.Process(_LAUNCHER).net_connections("tcp")
    except (psutil.Error, OSError, KeyError, ValueError):
        return None
    return frozenset(
        (link.raddr.ip, link.raddr.port)
        for link in links
        if link.laddr.port == port and link.status == psutil.CONN_ESTABLISHED
    )


def _launchers() -> frozenset[tuple[str, int]]:
    """Return the connections of all launchers, this one's own among them; none in a process that need not look.

    Nor when there are more or fewer than launchers: then it cannot be told which are theirs.
    """
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    keeps_store = os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    found = connections() if keeps_store and nodes > 1 else None
    return found if found is not None and len(found) == nodes else frozenset()


AT_START = _launchers()
"""The launchers' connections when this process was started."""


def ended() -> list[str]:
    """Return the addresses of launchers that were there when this process was started and are no more.

    None of them where that cannot be seen at the moment: what is not seen is not lost.
    """
    now = connections() if AT_START else None
    gone = frozenset() if now is None else AT_START - now
    return sorted(address.removeprefix("::ffff:") for address, _ in gone)  # IPv4, as a listener to both writes it
