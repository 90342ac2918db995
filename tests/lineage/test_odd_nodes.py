"""Test that one odd run never keeps a command from speaking of the others, and that helper files are rebuilt."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.common.digest import sha256_file
from harness.lineage.browse.find import find_node, newest, newest_local
from harness.lineage.browse.listing import columns
from harness.lineage.nodes.absent_files import ABSENT_FILES, read_absent_files
from harness.lineage.nodes.index import INDEX
from harness.lineage.nodes.local_files import DELIVERED, LocalNodes
from harness.lineage.nodes.origin import IMPORTED
from harness.lineage.page.page import page
from harness.lineage.proof import verify
from harness.lineage.store import LineageStore
from harness.runs.state_saver import _check_header
from harness.runs.unfinished import Unfinished
from tests.lineage.lineage_story import commit_story, key_of

DEEP: Any = "deep"
"""Stands for a value that is nested too deeply for Python's parser."""
HUGE = 10**400

# path in record.json, its new value
VALUES: list[tuple[tuple[Any, ...], Any]] = [
    (("metrics", 0, 1), float("nan")),
    (("metrics", 0, 1), float("inf")),
    (("metrics", 3, 1), "inf"),
    (("metrics", 3, 1), "nan"),
    (("metrics", 0, 1), HUGE),
    (("metrics", 0, 1), None),
    (("metrics", 0), {"name": "x"}),
    (("metrics", 0, 0), {"a": 1}),
    (("metrics",), 5),
    (("tags", "level"), 1),
    (("tags", "level"), "²"),
    (("tags", "density"), "much"),
    (("tags",), ["a"]),
    (("config",), DEEP),
    (("config", "search"), 5),
    (("config", "search"), {"data": {"directory": {}}}),
    (("config", "search"), {"data": []}),
    (("config", "hardware"), [1]),
    (("parents",), {"key": "x"}),
    (("parents", 0, "key"), 5),
    (("parents", 0, "relation"), ["pruned-from"]),
    (("started_ms",), HUGE),
    (("started_ms",), 2**62),
    (("started_ms",), -(2**62)),
    (("started_ms",), 1.5),
    (("name",), None),
    (("kind",), ["level"]),
    (("key",), {}),
    (("files",), {"a/../b": "0" * 64}),
    (("nested_under",), 7),
    (("format",), {}),
]


def edit(directory: Path, where: tuple[Any, ...], value: Any) -> None:
    """Change a value of a record, and correct its digest."""
    record = json.loads((directory / "record.json").read_text())
    place = record
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    text = json.dumps(record).replace('"deep"', '{"a":' * 100_000 + "1" + "}" * 100_000)
    (directory / "record.json").write_text(text)
    old = (directory / "SHA256SUMS").read_text().splitlines()
    sums = [f"{sha256_file(directory / name)}  {name}" for name in (line.split("  ")[1] for line in old)]
    (directory / "SHA256SUMS").write_text("\n".join(sums) + "\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("where", "value"), VALUES, ids=lambda value: f"{value!r:.30}")
def test_an_odd_record(tmp_path: Path, where: tuple[Any, ...], value: Any) -> None:
    store = LineageStore(None, LocalNodes(tmp_path))
    edit(commit_story(store.local, levels=2)["level 1"], where, value)
    others = {key_of(name) for name in ("search", "level 0", "dense", "signed_mask", "lmc")}
    for nodes in (newest(store), newest_local(store), newest_local(store)):
        assert others <= {node.key for node in nodes}
        assert all(columns(node) for node in nodes)
        html, _ = page("all", nodes, "http://x/")
        assert "dense resnet20 s1" in html
    findings = verify(store)
    assert others <= {node.key for node in findings.problems} | {key_of("dense")}
    assert findings.num_nodes == 6 and findings.checked["files"] > 10
    if where != ("started_ms",) and value not in ("inf", "nan"):
        assert any("level-" in problem.what or problem.key == key_of("level 1") for problem in findings.problems)


CONTENTS = [
    b"",
    b"\xff\xfe",
    b"null",
    b"5",
    b"[" * 100_000,
    b'{"nodes": 5, "format": 3}',
    b'{"format": 3, "sha256": "0"}\n[[{}]]',
    b'{"key": {}, "origin_run_ids": [1]}',
    b'{"origin_run_ids": {"a": 1}, "key": [1]}',
    b'{"sqlite:///x": {"other": 7}}',
]
DIRECTORY = object()


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: f"{content[:20]!r}")
def test_helper_files_are_rebuilt(tmp_path: Path, content: bytes) -> None:
    store = LineageStore("sqlite:///x", LocalNodes(tmp_path))
    paths = commit_story(store.local, levels=1)
    wanted = newest_local(store)
    (tmp_path / INDEX).write_bytes(content)
    for name in (DELIVERED, IMPORTED):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{paths['dense'].name}.json").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_local(store) == wanted
        assert newest_local(store) == wanted  # from the rebuilt index
    assert store.delivered(paths["dense"]) is None
    assert find_node(LineageStore(None, store.local), key_of("dense")).key == key_of("dense")


@pytest.mark.parametrize("edited", ["name", "test_error_percent", "dense"])
def test_an_edited_index_is_not_believed(tmp_path: Path, edited: str) -> None:
    store = LineageStore(None, LocalNodes(tmp_path))
    commit_story(store.local, levels=1)
    wanted = newest_local(store)
    text = (tmp_path / INDEX).read_text()
    assert "dense" in text
    (tmp_path / INDEX).write_text(text.replace(edited, "other") if edited in text else text[:-1])
    assert newest_local(store) == wanted


@pytest.mark.parametrize(
    "content",
    ["5", "[]", "{}", "[" * 100_000, '{"format": "harness.deleted/1", "files": {"a": {"sha256": 5}}}', "\udcff"],
    ids=lambda content: f"{content[:20]!r}",
)
def test_an_odd_list_of_deleted_files_is_named(tmp_path: Path, content: str) -> None:
    store = LineageStore(None, LocalNodes(tmp_path))
    path = commit_story(store.local, levels=1)["dense"] / ABSENT_FILES
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"{path} .*(delete this file|this version reads)"):
        read_absent_files(path.parent)
    assert any(str(path) in problem.what for problem in verify(store).problems)


HEADERS: list[Callable[[dict[str, Any]], object]] = [
    lambda header: header.update(epoch="1"),
    lambda header: header.update(metrics={"a": 1}),
    lambda header: header.update(metrics=[[{}, 1, 1, 1]]),
    lambda header: header.update(scaler=None),
    lambda header: header.update(circumstances=[]),
    lambda header: header.pop("seconds"),
]


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_an_odd_state_leads_to_the_earlier_one(tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int) -> None:
    good = {"epoch": 1, "step": 0, "seconds": 0.5, "scaler": {}, "metrics": [], "started_ms": 1, "circumstances": {}}
    odd = json.loads(json.dumps(good))
    HEADERS[number](odd)
    unfinished = Unfinished(tmp_path, "level", "0" * 64, "L01")
    with unfinished.claimed({}):
        unfinished.save(good, {"a": torch.ones(1)}, (1, 0))
        (earlier,) = unfinished.directory.glob("state-*")
        content = earlier.read_bytes()
        unfinished.save(odd, {"a": torch.zeros(1)}, (2, 0))
        earlier.write_bytes(content)
        found = unfinished.newest(_check_header)
    assert found is not None and found[0]["epoch"] == 1 and bool(found[1]["a"].all())
    assert "trying an earlier state" in caplog.text and "state-000002" in caplog.text


def test_list_reads_the_index_and_says_so(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://127.0.0.1:9"  # nobody answers there
    store = LineageStore(uri, LocalNodes(tmp_path))
    paths = commit_story(store.local, levels=1)
    run_ids = {"search": "1" * 32, "dense": {"other": "2" * 32}}
    (tmp_path / DELIVERED).mkdir()
    for name, run_id in run_ids.items():
        (tmp_path / DELIVERED / f"{paths[name].name}.json").write_text(json.dumps({uri: run_id}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sys, "argv", ["lineage.py", "list", "--runs", str(tmp_path)])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"read: local runs in {tmp_path}; --mlflow reads MLflow, too"
    shown = {name: next(line for line in lines if line.startswith(name)) for name in ("aws resnet20 digits", "dense")}
    assert "1" * 8 in shown["aws resnet20 digits"] and f"{key_of('dense')[:8]}≠" in shown["dense"]
    assert any(line.startswith("≠ an MLflow run has this key") and "2" * 32 in line for line in lines)
