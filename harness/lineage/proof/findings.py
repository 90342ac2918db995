"""The table of checks, the outcome of each, and the problems with advice that a verification reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Check:
    """One thing that is proved, and what to do where it does not hold."""

    proves: str
    advice: str


_AGAIN = "move the node's directory away and give the launch command of its record again"
_DISTRUST = "do not use this run, nor what was made from it: " + _AGAIN

# The names stand in the table of docs/lineage.md, section "Proving"; a test plants a fault for each.
CHECKS: dict[str, Check] = {
    "record": Check(
        "record.json and SHA256SUMS are whole and of this node",
        "move the directory away: the next command that needs the node fetches it from MLflow, or makes it again",
    ),
    "files": Check(
        "every local file has the SHA-256 that was recorded",
        "move the directory away: the next command that needs the node fetches it from MLflow, or makes it again",
    ),
    "key": Check("the key is the digest of what determines the run (determinants.json)", _DISTRUST),
    "settings": Check("tags, config, parents and determinants say the same", _DISTRUST),
    "seeds": Check("seeds in tags, config and determinants agree, and a level has those of its search", _DISTRUST),
    "parents": Check(
        "every parent is there, finished, and of the kind and level that the relation says",
        "bring the parent's node here (its directory, or the tracking store it was delivered to); if it is lost, the "
        "run is of unknown origin",
    ),
    "cycle": Check("no run comes from itself", "somebody edited the lineage: restore the records from a copy"),
    "finished": Check("the MLflow run is finished", "`python tools/lineage.py sync` completes an interrupted delivery"),
    "tags": Check(
        "tags, metrics, parents and digests in MLflow are those of the record",
        "they were edited in MLflow: set them back, or delete the run there and deliver it again with "
        "`python tools/lineage.py sync`",
    ),
    "artifacts": Check(
        "every file in MLflow has the SHA-256 that was recorded",
        "delete the run in MLflow and deliver it again with `python tools/lineage.py sync`, if a local copy is whole",
    ),
    "theta_init": Check(
        "θ_init has the digest that was recorded, and is what its seed draws",
        "check out the commit and install the torch version that the record names; if it still differs, do not use "
        "the search",
    ),
    "alpha": Check("the mean α of every epoch is what the seed draws, and plain trainings drew none", _DISTRUST),
    "parameters": Check("checkpoint and mask have the network's tensors, and the mask its prunable ones", _DISTRUST),
    "owner": Check("the files name this run's key, level, density and counts: they were made by it", _DISTRUST),
    "nested": Check("the mask of a level lies within that of the level before", _DISTRUST),
    "count": Check("exactly as many weights remain as the pruning fraction says", _DISTRUST),
    "pruned": Check("the mask is what pruning the parent's checkpoint by magnitude gives", _DISTRUST),
    "signs": Check("s = sign₀(θ ⊙ m) of the recorded checkpoint", _DISTRUST),
    "zeros": Check("pruned weights are +0.0", _DISTRUST),
    "start": Check("training started from what parent, ticket and seed give", _DISTRUST),
    "mask": Check("a final training has the mask of its ticket", _DISTRUST),
    "compared": Check("a comparison's networks can be compared, and its figures follow from its curve", _DISTRUST),
    "correct": Check("the images that were right give the recorded test errors", _DISTRUST),
    "data": Check(
        "the prepared data files are those that the runs were made from",
        "prepare the data again: `python tools/prepare_data.py NAME --out DIRECTORY`",
    ),
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: whether it holds, and the fault if it does not."""

    check: str
    holds: bool
    what: str


@dataclass(frozen=True)
class Problem:
    """A check that failed: its run, the fault, and advice."""

    check: str
    name: str
    key: str
    run_id: str | None
    what: str
    advice: str

    def __str__(self) -> str:
        where = f"run {self.run_id}" if self.run_id else f"key {self.key[:16]}…" if self.key else "all"
        return f"{self.check}: {self.name} ({where}): {self.what}. What to do: {self.advice}"


@dataclass(frozen=True)
class Note:
    """No fault: it could not be proved (not recorded, not here, deleted on purpose), or was done in another way."""

    name: str
    key: str
    what: str


class NodeIdentity(Protocol):
    """Identify the node, or the data set, that findings are about."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def run_id(self) -> str | None: ...


@dataclass
class Findings:
    """The outcome of a verification."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    """How often each check was made."""
    num_nodes: int = 0
    num_bytes: int = 0
    """Bytes of files whose digests were recomputed."""

    def add(self, subject: NodeIdentity, found: Iterable[Finding]) -> bool:
        """Count the checks, keep those that failed as problems, and return whether all hold."""
        sound = True
        for finding in found:
            self.checked[finding.check] += 1
            if not finding.holds:
                sound = False
                advice = CHECKS[finding.check].advice
                problem = Problem(finding.check, subject.name, subject.key, subject.run_id, finding.what, advice)
                self.problems.append(problem)
        return sound

    def note(self, subject: NodeIdentity, what: str) -> None:
        """Keep what could not be proved."""
        self.notes.append(Note(subject.name, subject.key, what))

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON-able data."""
        return asdict(self) | {"checked": {name: self.checked[name] for name in CHECKS if self.checked[name]}}
