"""Test `tools/lineage.py ui`: the saved view, the link and the process."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.lineage.browse.find import find_node
from harness.lineage.store import LineageStore
from harness.lineage.tracking import ui
from harness.lineage.tracking.ui import VIEW_TAG, open_runs
from tests.free_port import free_port
from tests.lineage.lineage_story import commit_story, key_of
from tests.lineage.lineage_tool import TOOL, ask

pytestmark = pytest.mark.long


def saved(store: LineageStore, address: str) -> dict[str, Any]:
    """Return the saved view in a URL, decoded as MLflow's UI does."""
    experiment, key = re.fullmatch(
        r"#/experiments/(\w+)/runs\?workflowType=machine_learning&viewStateShareKey=([\w-]+)", address
    ).groups()
    envelope = json.loads(MlflowClient(store.tracking_uri).get_experiment(experiment).tags[VIEW_TAG + key])
    # the UI of MLflow 3.17 requires these two fields
    assert isinstance(envelope["name"], str) and isinstance(envelope["createdAt"], int)
    return {"name": envelope["name"], **json.loads(envelope["state"])}


def test_an_experiment_opens_as_a_tree_with_the_columns_that_matter(store: LineageStore) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    view = open_runs(store, "test")
    state = saved(store, view.address)
    assert (state["name"], state["searchFilter"], view.what) == ("Lineage", "", "all runs of test")
    # the UI shows nested runs as a tree only when they are sorted by start time
    assert (state["orderByKey"], state["orderByAsc"]) == ("attributes.start_time", True)
    words = ("method", "kind_of_training", "level", "density", "test_error_percent", "barrier", "init_seed", "sgd_seed")
    assert [re.search("`(.*)`", column)[1] for column in state["selectedColumns"]] == list(words)


def test_a_run_opens_its_search(store: LineageStore) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    view = open_runs(store, "test", find_node(store, key_of("signed_mask")))
    state = saved(store, view.address)
    assert view.what == "the runs of aws resnet20 digits s1" and state["name"].endswith("aws resnet20 digits s1")
    found = store.summaries(state["searchFilter"])  # the UI uses the same search API
    assert {node.key for node in found} == {
        key_of(name) for name in ("search", "level 0", "level 1", "level 2", "signed_mask", "lmc")
    }


def test_a_large_experiment_opens_on_its_newest_search(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    monkeypatch.setattr(ui, "_MOST_AT_ONCE", 4)
    assert open_runs(store, "test").what == "the runs of aws resnet20 digits s1"


def test_an_unknown_experiment_and_an_undelivered_run_are_errors(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["dense"])
    with pytest.raises(LookupError, match="no experiment 'none'"):
        open_runs(store, "none")
    with pytest.raises(LookupError, match="is not in MLflow yet: `python tools/lineage.py sync`"):
        open_runs(store, "test", find_node(store, key_of("level 1")))


def test_the_command_prints_the_link(
    tool: ModuleType,  # noqa: F811
    store: LineageStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = store.deliver(commit_story(store.local)["level 1"])
    ask(tool, store, monkeypatch, "ui", "--link", "--experiment", "test", "--port", "5001")
    address = capsys.readouterr().out.split()[-1]
    assert address.startswith("http://127.0.0.1:5001/#/experiments/")
    assert saved(store, address.removeprefix("http://127.0.0.1:5001/"))["searchFilter"] == ""
    ask(tool, store, monkeypatch, "ui", run_id[:12], "--json")
    told = json.loads(capsys.readouterr().out)
    assert key_of("search") in saved(store, told["link"].removeprefix("http://127.0.0.1:5000/"))["searchFilter"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            ask(tool, store, monkeypatch, "ui", "--experiment", "test", "--port", str(taken.getsockname()[1]))
    assert "is in use" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_the_command_starts_the_ui_and_ends_it(store: LineageStore, tmp_path: Path) -> None:
    store.deliver(commit_story(store.local, levels=1)["level 0"])
    port = free_port()
    place = ["--experiment", "test", "--port", str(port), "--tracking-uri", str(store.tracking_uri)]
    command = [sys.executable, str(TOOL), "ui", *place]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0] == "all runs of test:\n" and f"http://127.0.0.1:{port}/#/experiments/" in lines[1]
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
    assert b"MLflow" in page
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
