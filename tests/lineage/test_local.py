"""Test local runs: atomic commits, stock tools, and detection of altered bytes."""

import errno
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.common.digest import sha256_json
from harness.common.process import Process
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import LocalNodes, read_record
from harness.lineage.nodes.record import FORMAT, LineageRecord, Metric, Parent

KEY, PARENT = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()


def make_record(**changes: object) -> LineageRecord:
    record = LineageRecord(
        key=KEY,
        kind="level",
        name="aws resnet20 L07 d0.210",
        parents=(Parent(PARENT, "pruned-from"),),
        nested_under=PARENT,
        config={"optim": {"lr": 0.1, "milestones": [5, 7]}},
        tags={"level": "07"},
        metrics=(Metric("test_error", 4.5, 3, 1_700_000_000_000), Metric("loss", float("nan"), 3, 1_700_000_000_001)),
        code={"commit": "unknown"},
        started_ms=1,
        finished_ms=2,
    )
    return replace(record, **changes)


def write_two_files(directory: Path) -> None:
    (directory / "checkpoint.safetensors").write_bytes(b"c" * 1000)
    (directory / "figures").mkdir()
    (directory / "figures" / "a.svg").write_text("<svg/>")


def test_committed_node_is_read_back_and_checked_by_sha256sum(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    record = nodes.commit(make_record(), write_two_files)
    directory = nodes.find(KEY)
    assert directory is not None and directory.name == f"level-{KEY[:16]}"
    assert set(record.files) == {"checkpoint.safetensors", "figures/a.svg", "config.json"}
    assert record.files["checkpoint.safetensors"] == hashlib.sha256(b"c" * 1000).hexdigest()
    assert json.loads((directory / "config.json").read_text()) == record.config
    loaded = nodes.load(KEY)
    assert (loaded.to_dict(), loaded.metrics[0]) == (record.to_dict(), record.metrics[0])
    assert nodes.open_file(KEY, "figures/a.svg").read_text() == "<svg/>"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=directory, check=True)
    assert [r.key for r in nodes.records()] == [KEY]


def test_committing_an_existing_key_returns_the_existing_record(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    first = nodes.commit(make_record(), write_two_files)

    def must_not_run(directory: Path) -> None:
        raise AssertionError("written twice")

    assert nodes.commit(make_record(name="another"), must_not_run).to_dict() == first.to_dict()


def test_the_returned_record_is_the_one_that_is_read_back(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    record = nodes.commit(make_record(config={"optim": {"milestones": (5, 7)}}, metrics=()), write_two_files)
    assert record == nodes.load(KEY) and record.config == {"optim": {"milestones": [5, 7]}}


def test_a_faster_process_with_the_same_key_keeps_its_node(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)

    def write(directory: Path) -> None:
        write_two_files(directory)
        LocalNodes(tmp_path / "elsewhere").commit(make_record(name="the faster"), write_two_files)
        os.rename(LocalNodes(tmp_path / "elsewhere").path(make_record()), nodes.path(make_record()))

    assert nodes.commit(make_record(), write).name == "the faster"
    assert nodes.load(KEY).name == "the faster" and not list(tmp_path.glob(".tmp-*"))


def test_a_directory_of_another_key_with_the_same_first_digits_is_named(tmp_path: Path) -> None:
    nodes, other = LocalNodes(tmp_path), KEY[:16] + PARENT[16:]
    nodes.commit(make_record(), write_two_files)
    with pytest.raises(ValueError, match=f"belongs to another key, {KEY}; move it away"):
        nodes.commit(make_record(key=other), write_two_files)
    assert [record.key for record in nodes.records()] == [KEY] and not list(tmp_path.glob(".tmp-*"))


def test_only_directories_of_dead_processes_of_this_machine_are_removed(tmp_path: Path) -> None:
    nodes, dead = LocalNodes(tmp_path), subprocess.Popen(["true"])
    dead.wait()
    name = f".tmp-{nodes.path(make_record()).name}"
    own = [f"{name}.{socket.gethostname()}.{pid}" for pid in (dead.pid, os.getpid(), os.getppid())]
    kept = [own[2], f"{name}.elsewhere.{dead.pid}", f".tmp-level-{PARENT[:16]}.{socket.gethostname()}.{dead.pid}"]
    for directory in {*own, *kept}:
        (tmp_path / directory).mkdir()
    nodes.commit(make_record(), write_two_files)
    assert {path.name for path in tmp_path.glob(".tmp-*")} == set(kept)


def test_a_directory_that_another_process_may_be_writing_stays(tmp_path: Path) -> None:
    nodes, own = LocalNodes(tmp_path), Process.current()
    name = f".tmp-{nodes.path(make_record()).name}"
    for changes, stays in (
        ({"started": "1"}, False),  # the number was given to another process
        ({"namespace": "1", "pid": 2**22 + 1}, True),  # another container has numbers of its own
        ({"boot": "00000000", "pid": 2**22 + 1}, True),  # another machine
    ):
        directory = tmp_path / f"{name}.{replace(own, **changes).suffix}"
        directory.mkdir()
        nodes.commit(make_record(), write_two_files)
        assert directory.exists() is stays, changes
        shutil.rmtree(nodes.path(make_record()))


@pytest.mark.parametrize("name", ["record.json", "SHA256SUMS", "deleted.json"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"the file names \['{name}'\] are reserved"):
        LocalNodes(tmp_path).commit(make_record(), lambda directory: (directory / name).write_text("{}"))
    assert list(tmp_path.iterdir()) == []


def test_a_key_must_be_the_digest_of_the_determinants(tmp_path: Path) -> None:
    nodes, determinants = LocalNodes(tmp_path), {"sgd_seed": 1}
    with pytest.raises(ValueError, match="is not the digest of its determinants"):
        nodes.commit(make_record(), write_two_files, determinants)
    assert list(tmp_path.iterdir()) == []
    record = nodes.commit(make_record(key=sha256_json(determinants)), write_two_files, determinants)
    assert record.files["determinants.json"] == record.key


@pytest.mark.long
def test_interrupted_commit_leaves_no_node_and_is_cleaned_next_time(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from harness.lineage.nodes.local_files import LocalNodes\n"
        "from harness.lineage.nodes.record import LineageRecord\n"
        "def write(d): (d / 'half').write_text('x'); os._exit(9)\n"
        f"LocalNodes(Path(sys.argv[1])).commit(LineageRecord(key={KEY!r}, kind='level', name='n'), write)\n"
    )
    assert subprocess.run(["python3", "-c", script, str(tmp_path)], env=_here(), check=False).returncode == 9
    assert len(list(tmp_path.glob(".tmp-*"))) == 1 and nodes.find(KEY) is None and nodes.records() == []
    nodes.commit(make_record(), write_two_files)
    assert not list(tmp_path.glob(".tmp-*")) and nodes.find(KEY)


@pytest.mark.long
@pytest.mark.parametrize(("point", "is_there"), [("node-written", False), ("node-committed", True)])
def test_a_commit_killed_around_its_rename_is_whole_or_not_there(tmp_path: Path, point: str, is_there: bool) -> None:
    nodes = LocalNodes(tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from harness.lineage.nodes.local_files import LocalNodes\n"
        "from harness.lineage.nodes.record import LineageRecord\n"
        "def write(d): (d / 'checkpoint.safetensors').write_bytes(b'c' * 1000)\n"
        f"LocalNodes(Path(sys.argv[1])).commit(LineageRecord(key={KEY!r}, kind='level', name='n'), write)\n"
    )
    environment = _here() | {"HARNESS_KILL_AT": f"{point}:1"}
    assert subprocess.run(["python3", "-c", script, str(tmp_path)], env=environment, check=False).returncode == -9
    assert (nodes.find(KEY) is not None) == is_there
    assert nodes.commit(make_record(), write_two_files).name == ("n" if is_there else "aws resnet20 L07 d0.210")
    for name in nodes.load(KEY).files:
        nodes.open_file(KEY, name)
    assert not list(tmp_path.glob(".tmp-*"))


def _here() -> dict[str, str]:
    import sys

    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}


def test_failing_write_leaves_nothing(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "x").write_text("x")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        LocalNodes(tmp_path).commit(make_record(), write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raised", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: … (os error 28)")]
)
def test_full_disk_is_one_line_with_path_and_bytes(tmp_path: Path, raised: Exception) -> None:
    def write(directory: Path) -> None:
        (directory / "x").write_bytes(b"x" * 1234)
        raise raised

    with pytest.raises(OSError) as caught:
        LocalNodes(tmp_path).commit(make_record(), write)
    message = str(caught.value)
    assert caught.value.errno == errno.ENOSPC and "\n" not in message
    assert str(tmp_path) in message and "1,234 bytes" in message and "No space left" in message


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # a file in place of a directory fails even for root
    with pytest.raises(OSError, match="Not a directory"):
        LocalNodes(tmp_path / "file" / "runs").commit(make_record(), write_two_files)


def test_every_altered_byte_is_found(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    record = nodes.commit(make_record(), write_two_files)
    directory = nodes.find(KEY)
    assert directory is not None
    generator = random.Random(0)
    for path in [p for p in directory.rglob("*") if p.is_file()]:
        original = path.read_bytes()
        for _ in range(20):
            position, bit = generator.randrange(len(original)), 1 << generator.randrange(8)
            altered = bytearray(original)
            altered[position] ^= bit
            path.write_bytes(altered)
            with pytest.raises(ValueError, match=r"altered|not a complete|allowed are"):
                for name in record.files:
                    nodes.open_file(KEY, name)
        path.write_bytes(original)
    for name in record.files:
        nodes.open_file(KEY, name)


def test_altered_file_names_file_got_and_expected(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    expected = nodes.commit(make_record(), write_two_files).files["checkpoint.safetensors"]
    path = nodes.path(make_record()) / "checkpoint.safetensors"
    path.write_bytes(b"d" * 1000)
    with pytest.raises(ValueError) as caught:
        nodes.open_file(KEY, "checkpoint.safetensors")
    for part in (str(path), expected, hashlib.sha256(b"d" * 1000).hexdigest()):
        assert part in str(caught.value)


def test_unknown_key_and_unknown_file(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    with pytest.raises(LookupError, match=KEY[:16]):
        nodes.load(KEY)
    nodes.commit(make_record(), write_two_files)
    with pytest.raises(LookupError, match="it has: checkpoint.safetensors"):
        nodes.open_file(KEY, "signed_mask.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, "format 2; this version reads format 1"),
        ({"extra": 1}, "unknown fields"),
        ({"key": "abc"}, "expected a SHA-256"),
        ({"kind": "levels"}, "unknown kind 'levels'"),
        ({"tags": {"level": 7}}, r"tags of .*\['level'\]: expected str, got int"),
        ({"files": {"../../etc/passwd": KEY}}, "without '..'"),
        ({"files": {"/etc/passwd": KEY}}, "allowed are relative paths"),
        ({"files": {"a.svg": "abc"}}, r"files of .*\['a.svg'\] 'abc': expected a SHA-256"),
        ({"metrics": [["a\n", 1.0, 0, 0]]}, r"name of metric a\\n .*allowed are 1 to 200 ASCII letters"),
        ({"metrics": [["a", "1.0", 0, 0]]}, "value of metric a: expected float or int, got str"),
        ({"metrics": [["a", 1.0, 0.5, 0]]}, "step of metric a: expected int, got float"),
        ({"metrics": [["a", 1.0, 0]]}, "got 3 items"),
        ({"parents": [{"key": KEY, "relation": "son-of"}]}, "unknown relation 'son-of'"),
        ({"started_ms": True}, "expected int, got bool"),
        ({"nested_under": 5}, "nested_under"),
    ],
)
def test_foreign_record_is_refused_by_name(change: dict[str, object], message: str) -> None:
    data = json.loads(json.dumps(make_record(metrics=()).to_dict()))
    with pytest.raises(ValueError, match=message):
        LineageRecord.from_dict({**data, **change})


def test_missing_field_and_no_object_are_refused() -> None:
    data = make_record().to_dict()
    del data["tags"]
    with pytest.raises(ValueError, match="'tags'"):
        LineageRecord.from_dict(data)
    with pytest.raises(ValueError, match="not a lineage record"):
        LineageRecord.from_dict([])


def test_cut_record_is_refused(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path)
    nodes.commit(make_record(), write_two_files)
    path = nodes.path(make_record()) / "record.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="altered"):
        read_record(path.parent)


def test_code_version_names_commit_and_packages() -> None:
    version = code_version()
    assert set(version) >= {"commit", "dirty", "python", "torch", "safetensors"}
    assert version["dirty"] in {"true", "false", "unknown"}
