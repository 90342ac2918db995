"""Verify a lineage: recompute all digests from the stored bytes, and check masks, signs and starts by computation.

from harness.lineage.proof import verify
findings = verify(open_store("runs"), run_id)
print(*findings.problems, sep="\\n")
"""

from harness.lineage.proof.findings import CHECKS, Findings, Note, Problem
from harness.lineage.proof.verify import verify

__all__ = ["CHECKS", "Findings", "Note", "Problem", "verify"]
