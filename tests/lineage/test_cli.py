"""Test the commands of tools/lineage.py and the queries behind them."""

import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

from harness.lineage.browse.find import find_node, newest, relatives
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.store import LineageStore
from tests.lineage.lineage_story import commit_story, key_of
from tests.lineage.lineage_tool import TOOL, ask
from tests.warm import warm


@pytest.mark.long
def test_tree_and_show_from_a_shell(store: LineageStore) -> None:
    """Run the tool in a cold process with its default paths."""
    # Phase: print the tree of a delivered run
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 2"])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    there = store.local.directory.parent
    command = [sys.executable, str(TOOL), "tree", run_id[:10]]
    done = subprocess.run(command, cwd=there, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "name",
        "method",
        "level",
        "density",
        "test",
        "error",
        "init/sgd",
        "seed",
        "run",
        "date",
        "relation",
    ]
    assert lines[1].startswith("aws resnet20 digits s1") and "◀" in lines[4] and run_id[:8] in lines[4]
    assert lines[5].startswith("    └── signed_mask") and f"{key_of('signed_mask')[:8]}*" in lines[5]
    assert "sync" in lines[-1]
    # Phase: an unknown run ID gives one line on standard error and exit status 1
    done = warm(there, TOOL, "show", "f" * 32, MLFLOW_TRACKING_URI="")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: no run ID or key begins with 'ffff")


def test_list_sync_list(
    tool: ModuleType, store: LineageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 0"])
    ask(tool, store, monkeypatch, "list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert (listed["format"], listed["command"]) == (1, "list")
    assert [node["key"] for node in listed["nodes"]] == [key_of(n) for n in reversed(list(paths))]
    assert [node["name"] for node in listed["nodes"] if node["run_id"]] == [
        "aws resnet20 L00 d1.000",
        "aws resnet20 digits s1",
    ]
    ask(tool, store, monkeypatch, "sync", "--experiment", "test")
    assert capsys.readouterr().out.count("→ run") == 5
    ask(tool, store, monkeypatch, "sync", "--experiment", "test")
    assert "all runs were delivered already" in capsys.readouterr().out
    ask(tool, store, monkeypatch, "list", "--limit", "2")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5 and "*" not in out and out.splitlines()[-1].startswith("read: local runs in ")
    assert "3.00 %" in out and "1/1" in out


def test_show(
    tool: ModuleType, store: LineageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["lmc"])
    ask(tool, store, monkeypatch, "show", run_id)
    out = capsys.readouterr().out
    for expected in (run_id, key_of("lmc"), "signed_mask resnet20 s1", "dense resnet20 s1", "figures/curve.svg"):
        assert expected in out
    assert "results" not in out  # the story's comparison has no metrics
    ask(tool, store, monkeypatch, "show", key_of("level 2"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("results") and lines[2].split() == ["test_error_percent", "6"]
    ask(tool, store, monkeypatch, "show", key_of("signed_mask")[:12], "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["node"] == shown["nodes"][0]["key"] == key_of("signed_mask")
    assert shown["parents"] == [key_of("level 2")] and shown["children"] == [key_of("lmc")]
    assert {node["key"] for node in shown["nodes"]} == {key_of(name) for name in ("signed_mask", "level 2", "lmc")}


def test_unfinished_searches_and_several_data_sets(
    tool: ModuleType, store: LineageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Phase: a finished search, without a column of data sets
    paths = commit_story(store.local)
    ask(tool, store, monkeypatch, "list", "--offline")
    out = capsys.readouterr().out
    assert "unfinished searches" not in out and "data" not in out.splitlines()[0].split()
    # Phase: a launch with two more levels was interrupted
    draft = {"name": "L04", "parents": [key_of("level 2")], "config": {"search": {"num_levels": 4}}}
    making = paths["search"].parent / ".making-level-0123456789abcdef"
    making.mkdir()
    (making / "draft.json").write_text(json.dumps(draft))
    # Phase: a search of another data set, without levels
    other = LineageRecord(
        key_of("other"),
        "search",
        "aws other",
        started_ms=1,
        finished_ms=2,
        tags={"data": "cifar10"},
        config={"search": {"num_levels": 9}},
    )
    store.local.commit(other, lambda directory: None)
    ask(tool, store, monkeypatch, "list", "--offline")
    out = capsys.readouterr().out
    assert "data" in out.splitlines()[0].split() and "cifar10" in out
    assert "unfinished searches: aws resnet20 digits s1 (level 2 of 4), aws other (level – of 9); run" in out


def test_children_in_another_family_are_found(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["lmc"])
    _, children = relatives(store, find_node(store, key_of("dense")))
    assert [node.key for node in children] == [key_of("lmc")]


def test_ambiguous_short_and_odd_ids(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 0"])
    with pytest.raises(LookupError, match="at least 4"):
        find_node(store, "ab")
    with pytest.raises(LookupError, match="is not a run ID"):
        find_node(store, "a%' OR '1'='1")
    twin = store.summaries()[0]
    monkey = pytest.MonkeyPatch()
    both = [twin, store.summaries()[1]]
    monkey.setattr(LineageStore, "summaries", lambda *_, **__: both)
    with pytest.raises(LookupError, match="more than one"):
        find_node(store, "abcd")
    monkey.undo()


def test_local_runs_without_a_server(store: LineageStore) -> None:
    commit_story(store.local)
    alone = LineageStore(None, store.local)
    assert len(newest(alone)) == 7 and all(node.run_id is None for node in newest(alone))
    for text in (key_of("level 1")[:6], f"runs:/{key_of('level 1')}", f"runs:/{key_of('level 1')[:6]}/"):
        assert find_node(alone, text).root == key_of("search")
    parents, children = relatives(alone, find_node(alone, key_of("level 2")))
    assert [n.key for n in parents] == [key_of("level 1")] and [n.key for n in children] == [key_of("signed_mask")]


def test_altered_local_node_is_named_and_hides_nothing(store: LineageStore) -> None:
    paths = commit_story(store.local)
    (paths["level 1"] / "record.json").write_text("{}")
    with pytest.warns(UserWarning, match="record.json was altered"):
        assert len(newest(store)) == 6


def test_deleted_runs_count_as_undelivered(store: LineageStore) -> None:
    from mlflow import MlflowClient

    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 0"])
    MlflowClient(store.tracking_uri).delete_run(run_id)
    local_alone = {node.key for node in newest(store) if node.run_id is None}
    assert key_of("level 0") in local_alone and key_of("search") not in local_alone
