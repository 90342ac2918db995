"""Test a launch on a disk that becomes full while it saves."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.launching import LIGHT, TINY, elsewhere, nodes, recipe

pytestmark = pytest.mark.long


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of the given size, or skip the test."""
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: " + mounted.stderr.decode().strip())
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_is_reported_with_its_path_and_the_same_command_resumes(pristine, tmp_path):
    # Phase: run until the disk is full
    where = elsewhere(pristine[0], tmp_path)
    with small_disk(tmp_path / "disk", "120k") as disk:
        command = [
            *TINY,
            *LIGHT,
            "--offline",
            "--runs",
            str(disk),
            "--checkpoint-every",
            "4",
            "--checkpoint-unit",
            "steps",
        ]
        said = recipe(where, "aws_digits.py", *command, ok=False)
        line = said.strip().splitlines()[-1]
        assert line.startswith("error: ") and "No space left" in line and str(disk) in line and "bytes" in line
        assert "start the same command again" in line and "Traceback" not in said
        # Phase: enlarge the disk, start the same command again and compare with an undisturbed search
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        recipe(where, "aws_digits.py", *command)
        records = [json.loads(path.read_text()) for path in disk.glob("level-*/record.json")]
        undisturbed = nodes(pristine[0], "level")
        assert len(records) == 3
        for record in records:
            for name in ("checkpoint.safetensors", "signed_mask.safetensors"):
                assert record["files"][name] == undisturbed[record["name"]]["files"][name]
