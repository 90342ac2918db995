"""Define the checks of a verification, and collect problems, notes and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from harness.common.escape import one_line
from harness.common.program import spelled


@dataclass(frozen=True)
class Check:
    """The property that a check proves, and the advice if it fails."""

    proves: str
    advice: str


_AGAIN = "move the run's directory away and repeat the launch command in its record"
_DISTRUST = "do not use this run or its descendants: " + _AGAIN

# docs/lineage.md, section "Proving", lists these names. A test plants a fault for each.
CHECKS: dict[str, Check] = {
    "record": Check(
        "record.json and SHA256SUMS are intact and belong to this run",
        "move the directory away: the next command that needs the run downloads it from MLflow or makes it again",
    ),
    "files": Check(
        "every local file has its recorded SHA-256",
        "move the directory away: the next command that needs the run downloads it from MLflow or makes it again",
    ),
    "key": Check("the key is the SHA-256 of determinants.json, the inputs that determine the run", _DISTRUST),
    "settings": Check("tags, config, parents and determinants agree", _DISTRUST),
    "seeds": Check("seeds in tags, config and determinants agree, and a level has those of its search", _DISTRUST),
    "parents": Check(
        "every parent exists, is finished, and has the kind and level that the relation requires",
        "restore the parent: copy its directory here, or use the tracking store that has it; without the parent, the "
        "origin of this run cannot be verified",
    ),
    "cycle": Check("no run is its own ancestor", "somebody edited the records: restore them from a copy"),
    "finished": Check("the MLflow run is finished", "`python tools/lineage.py sync` completes an interrupted delivery"),
    "tags": Check(
        "tags, metrics, parents and digests in MLflow equal those of the record",
        "somebody edited them in MLflow: change them back, or delete the run there and deliver it again with "
        "`python tools/lineage.py sync`",
    ),
    "artifacts": Check(
        "every file in MLflow has its recorded SHA-256",
        "if the local copy is intact, delete the run in MLflow and deliver it again with "
        "`python tools/lineage.py sync`",
    ),
    "contents": Check(
        "the local run and the MLflow run with its key have the same tensors",
        "two machines or versions computed different bits: deliver one of the two to another store, or delete its run "
        "in MLflow; do not compare runs made from the one with runs made from the other",
    ),
    "addresses": Check(
        "aliases, model versions, nesting, links and files in MLflow name what they should",
        "`python tools/lineage.py sync` repairs it from the local runs",
    ),
    "theta_init": Check(
        "θ_init has its recorded digest, and its seed draws the same tensors",
        "check out the commit and install the torch version of the record, then verify again; if it still differs, do "
        "not use the search",
    ),
    "alpha": Check("the mean α of every epoch follows from the seed, and plain trainings have none", _DISTRUST),
    "parameters": Check(
        "the checkpoint has the tensors of the network, and the mask covers the prunable ones", _DISTRUST
    ),
    "owner": Check("key, level, density and counts inside the files are those of this run", _DISTRUST),
    "nested": Check("the mask of a level is a subset of the mask of the level before", _DISTRUST),
    "count": Check("the number of remaining weights follows exactly from the pruning settings", _DISTRUST),
    "pruned": Check("pruning the parent's checkpoint again gives the same mask", _DISTRUST),
    "signs": Check("s = sign₀(θ ⊙ m) holds for the recorded checkpoint", _DISTRUST),
    "zeros": Check("pruned weights are +0.0", _DISTRUST),
    "start": Check("the training started from the parameters that parent, ticket and seed give", _DISTRUST),
    "mask": Check("a final training has the mask of its ticket", _DISTRUST),
    "compared": Check("the networks of a comparison are comparable, and its figures follow from its curve", _DISTRUST),
    "correct": Check("the correctly classified images give the recorded test errors", _DISTRUST),
    "data": Check(
        "the prepared data files are the ones that the runs used",
        "prepare the data again: `python tools/prepare_data.py NAME --out DIRECTORY`",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    `what` describes the fault, for the case that the check fails.
    """

    check: str
    """Key of CHECKS."""
    holds: bool
    what: str


def contradiction(error: Exception) -> Finding:
    """Return the failed check of a well-formed record with contradictory values, on which another check failed."""
    return Finding("settings", False, f"a check failed on the values in its record or files: {error!r:.300}")


@dataclass(frozen=True)
class Problem:
    """A failed check: run or data set, fault (`what`) and advice."""

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
    """A remark that is not a fault.

    It names a check that was impossible, because data were not recorded, not found or deleted on purpose. Or it names a
    computation that older versions did in another way.
    """

    name: str
    key: str
    what: str
    not_checked: tuple[str, ...] = ()
    """Names of checks that were not made for this reason."""
    here: bool = False
    """They can be made elsewhere: with another library, file or version. `verify` then exits with code 3."""


class NodeIdentity(Protocol):
    """Identify the run or data set of a finding."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def run_id(self) -> str | None: ...


@dataclass
class Findings:
    """Collect the results of a verification."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    """Number of times that each check was made."""
    num_nodes: int = 0
    """Number of verified runs."""
    num_bytes: int = 0
    """Bytes that were hashed."""

    def add(self, subject: NodeIdentity, found: Iterable[Finding]) -> bool:
        """Count checks, collect failed ones as problems, and return whether all hold."""
        sound = True
        for finding in found:
            self.checked[finding.check] += 1
            if not finding.holds:
                sound = False
                advice = spelled(CHECKS[finding.check].advice)
                problem = Problem(
                    finding.check, subject.name, subject.key, subject.run_id, one_line(finding.what), advice
                )
                self.problems.append(problem)
        return sound

    def note(self, subject: NodeIdentity, what: str) -> None:
        """Add a remark about a run or data set."""
        self.notes.append(Note(subject.name, subject.key, one_line(what)))

    def not_checked(self, subject: NodeIdentity, reason: str, checks: Sequence[str], *, here: bool = True) -> None:
        """Add a remark about checks that were not made.

        Args:
            subject: The run.
            reason: Why, without a full stop.
            checks: Names of the checks.
            here: They can be made elsewhere. False: the files were deleted on purpose.
        """
        what = f"not checked{' here' if here else ''}: {one_line(reason)}, for {', '.join(checks)}"
        self.notes.append(Note(subject.name, subject.key, what, tuple(checks), here))

    @property
    def incomplete(self) -> bool:
        """Whether checks were not made that can be made elsewhere."""
        return any(note.here for note in self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON-serialisable data."""
        return asdict(self) | {"checked": {name: self.checked[name] for name in CHECKS if self.checked[name]}}
