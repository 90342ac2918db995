"""Detect that the launcher of another node has ended, before its processes have begun to join.

A process can be killed while Python still imports torch. It then never begins to join, so the other nodes cannot tell
it from a late starter. But its launcher (torchrun or `accelerate launch`) ends at once, too. All launchers are
connected to a store in the launcher of rank 0 before any of them starts a process. So the end of a launcher shows as a
closed connection to this store.

Import this module before torch. At this time, no training process has a connection of its own to the store.
"""

from __future__ import annotations

import os

try:
    import psutil
except ModuleNotFoundError:  # a minimal installation: one process, and no launchers to watch
    psutil = None

_LAUNCHER = os.getppid()


def connections() -> frozenset[tuple[str, int]] | None:
    """Return the remote (IP, port) of every connection to the store in this process's launcher.

    Returns:
        An empty set if the launcher has no store. None if the connections cannot be listed. Reasons are a launcher that
        is gone, a missing psutil, and a system that hides other processes' connections (macOS).
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
    """Return the connections of all launchers to the store, including that of this process's own launcher.

    Returns:
        One connection for each node. The set is empty unless this is rank 0 of several nodes. It is also empty if
        there are more or fewer connections than nodes, because some are then not from launchers, or are missing.
    """
    # Importing this module must not fail: `World` checks the value later, and names it.
    value = os.environ.get("GROUP_WORLD_SIZE", "")
    nodes = int(value) if value.isdecimal() else 1
    keeps_store = os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    found = connections() if keeps_store and nodes > 1 else None
    return found if found is not None and len(found) == nodes else frozenset()


AT_START = _launchers()
"""The launchers' connections when this module was imported."""


def ended() -> list[str]:
    """Return the IP addresses of launchers that have ended since this module was imported.

    The list is empty while connections cannot be listed, so that no launcher counts as lost by mistake.
    """
    now = connections() if AT_START else None
    gone = frozenset() if now is None else AT_START - now
    return sorted(address.removeprefix("::ffff:") for address, _ in gone)  # prefix of IPv4 on a dual-stack socket
