"""Test atomic writes.

After a crash a file has its old or its new content. No temporary file remains.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.common import files
from harness.common.files import write_atomically

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("durable", [True, False])
def test_the_content_is_replaced_and_no_temporary_file_remains(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    for content in (b"old", b"new, and longer", b""):
        write_atomically(path, content, durable=durable)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_with_equal_numbers_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two containers, and their threads, can have the same numbers."""
    path = tmp_path / "a.json"
    monkeypatch.setattr(files, "reach", lambda point: write_atomically(path, b"second"))
    write_atomically(path, b"first", fault_point="state-written")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.long
def test_a_kill_before_the_rename_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    script = "import sys; from pathlib import Path; from harness.common.files import write_atomically\n"
    script += "write_atomically(Path(sys.argv[1]), b'new', fault_point='state-written')"
    environment = os.environ | {"HARNESS_KILL_AT": "state-written:1", "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", script, path], env=environment, check=False)
    assert killed.returncode == -9 and path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "a.json"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # a dangling link, then one to a file
        write_atomically(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "link", "there"]


def test_a_device_stays_and_is_written_to(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write_atomically(link, b"data")
    assert link.is_symlink() and Path("/dev/null").is_char_device()
