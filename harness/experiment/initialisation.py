"""What θ_init is: drawn by a scheme, or a network that is there already, in a run or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint import Pretrained, read_network
from harness.config import NETWORKS_OWN
from harness.distributed.world import World
from harness.lineage.browse.find import find_node
from harness.lineage.store import LineageStore
from harness.models.initialise import SCHEMES
from harness.runs.archive import CHECKPOINT, find

THETA_INIT = "theta_init.safetensors"


@dataclass(frozen=True)
class Initialisation:
    """One way to θ_init: a scheme of SCHEMES, or else `network`, from the run `key` or from a file."""

    text: str
    """As the user named it."""
    scheme: str = NETWORKS_OWN
    network: Pretrained | None = None
    digest: str | None = None
    """Of the network's tensors."""
    key: str | None = None
    """Of the run it was taken from."""

    @property
    def determinants(self) -> dict[str, Any]:
        """What of it determines θ_init, beside the seed; {} for the network's own."""
        if self.digest is not None:
            return {"initialisation": {"sha256": self.digest}}
        return {} if self.scheme == NETWORKS_OWN else {"initialisation": self.scheme}

    @property
    def record(self) -> dict[str, Any]:
        """What a run records of it; {} for the network's own."""
        if not self.determinants:
            return {}
        return {"initialisation": {"name": self.text, "sha256": self.digest, "run": self.key}}


def find_initialisation(world: World, store: LineageStore, text: str) -> Initialisation:
    """Return the initialisation that `text` names, on every rank: a scheme, a file, or a run ID or key.

    LookupError when there is no such run, ValueError when a file cannot be read.
    """
    if text in SCHEMES:
        return Initialisation(text, scheme=text)
    found = world.on_main(lambda: _read(store, text))
    network, key = found or (Pretrained({}), "")
    if world.size > 1:
        network, key = Pretrained(world.share(network.tensors)), world.share_text(key)
    return Initialisation(text, network=network, digest=network.digest, key=key or None)


def _read(store: LineageStore, text: str) -> tuple[Pretrained, str]:
    path = Path(text)
    if path.is_file():
        return read_network(path), ""
    if path.suffix in (".safetensors", ".pth", ".pt"):
        raise FileNotFoundError(f"no file {path}; --initialisation takes {', '.join(SCHEMES)}, a run ID or a file")
    try:
        key = find_node(store, text).key
    except LookupError as error:
        raise LookupError(f"{error} (--initialisation takes {', '.join(SCHEMES)}, a run ID or a file)") from None
    if find(store, key) is None:
        raise LookupError(f"run {text} is not finished; `python tools/lineage.py list` shows what there is")
    record = store.local.load(key)
    names = [name for name in (THETA_INIT, CHECKPOINT) if name in record.files]
    if not names:
        raise ValueError(f"run {text} ({record.name}) is a {record.kind}: it has no network to start from")
    return read_network(store.local.open_file(key, names[0])), key
