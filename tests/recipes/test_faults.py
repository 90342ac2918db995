"""What goes wrong around a launch: a full disk, and a tracking server that is stopped and started again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import LAUNCH, LIGHT, REPOSITORY, TINY, elsewhere, nodes, recipe, tool
from tracking_server import free_port, server

from harness.lineage.store import open_store


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A file system of `size` bytes; skips where it cannot be mounted."""
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: " + mounted.stderr.decode().strip())
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_says_what_it_needs_and_the_same_command_goes_on(searched, tmp_path):
    where = elsewhere(searched[0], tmp_path)
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
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        recipe(where, "aws_digits.py", *command)
        records = [json.loads(path.read_text()) for path in disk.glob("level-*/record.json")]
        undisturbed = nodes(searched[0], "level")
        assert len(records) == 3
        for record in records:
            for name in ("checkpoint.safetensors", "signed_mask.safetensors"):
                assert record["files"][name] == undisturbed[record["name"]]["files"][name]


def test_a_server_killed_in_the_middle_costs_nothing(prepared, tmp_path):
    where = elsewhere(prepared, tmp_path)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    options = [*TINY, *LIGHT, "--warmup-epochs", "1", "--num-levels", "5"]
    command = [*LAUNCH, "--num_processes", "1", str(REPOSITORY / "recipes" / "aws_digits.py"), *options]
    with open(where / "log", "w") as log:
        with server(where, port):
            environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
            launch = subprocess.Popen(command, cwd=where, env=environment, stdout=log, stderr=log)
            until = time.monotonic() + 120
            while len(list((where / "runs" / ".delivered").glob("level-*"))) < 2:
                assert launch.poll() is None and time.monotonic() < until, (where / "log").read_text()
                time.sleep(0.05)
        assert launch.wait(120) == 0, (where / "log").read_text()
    text = (where / "log").read_text()
    assert "nothing is lost: `python tools/lineage.py sync` delivers it later" in text
    assert len(nodes(where, "level")) == 6
    with server(where, port):
        os.environ["MLFLOW_TRACKING_URI"] = uri
        try:
            tool(where, "lineage.py", "sync")
            tool(where, "lineage.py", "sync")
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
        runs = open_store(where / "runs", uri).summaries()
    assert sorted(run.key for run in runs) == sorted(
        record["key"] for kind in ("search", "level") for record in nodes(where, kind).values()
    )
    assert {run.status for run in runs} == {"FINISHED"}
