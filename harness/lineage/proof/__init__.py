"""Verify a lineage from the stored bytes.

All digests are recomputed, and masks, signs and starts are checked by computation. For example:

    from harness.lineage.proof import verify
    findings = verify(open_store("runs"), run_id)
    print(*findings.problems, sep="\\n")
"""

from harness.lineage.proof.findings import CHECKS, Findings, Note, Problem
from harness.lineage.proof.verify import verify

__all__ = ["CHECKS", "Findings", "Note", "Problem", "verify"]
