"""The choice of θ_init: a scheme that draws it, or a network that is there already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.checkpoint import Pretrained
from harness.config import NETWORKS_OWN, known
from harness.models.initialise import SCHEMES


@dataclass(frozen=True)
class Initialisation:
    """One way to θ_init: a scheme of SCHEMES, or else `network`, from the run `key` or from a file."""

    text: str
    """As the user named it."""
    scheme: str = NETWORKS_OWN
    network: Pretrained | None = None
    digest: str | None = None
    """SHA-256 of the network's tensors."""
    key: str | None = None
    """Key of the run it was taken from."""

    @classmethod
    def of(cls, named: str | Initialisation) -> Initialisation:
        """Return the initialisation itself, or that of a scheme's name; ValueError for any other text.

        Run IDs and files are resolved by `harness.cli.resolve`.
        """
        if isinstance(named, Initialisation):
            return named
        return cls(named, scheme=known("initialisation", named, list(SCHEMES)))

    @property
    def determinants(self) -> dict[str, Any]:
        """Inputs to θ_init beside the seed; {} for the network's own."""
        if self.digest is not None:
            return {"initialisation": {"sha256": self.digest}}
        return {} if self.scheme == NETWORKS_OWN else {"initialisation": self.scheme}

    @property
    def recorded(self) -> dict[str, Any]:
        """Entries of a run's record; {} for the network's own."""
        if not self.determinants:
            return {}
        return {"initialisation": {"name": self.text, "sha256": self.digest, "run": self.key}}
