"""Test the picture, page and links on a search's MLflow run."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from mlflow import MlflowClient

from harness.lineage.nodes.record import LineageRecord, Parent
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking import overview
from harness.lineage.tracking.description import NOTE_TAG, PAGE, PICTURE, WORKFLOW
from harness.lineage.tracking.overview import DRAWN_TAG
from harness.lineage.tracking.ui import open_runs
from harness.lineage.tracking.view import VIEW_TAG
from tests.free_port import free_port
from tests.lineage.lineage_story import START_MS, commit_story, key_of
from tests.tracking_server import server

pytestmark = pytest.mark.long


def root_of(store: LineageStore) -> tuple[MlflowClient, str]:
    run_id = store.run_id_of(key_of("search"))
    assert run_id is not None
    return MlflowClient(store.tracking_uri), run_id


def shown(store: LineageStore) -> tuple[str, str, str]:
    """Return description, SVG and HTML of the search's run."""
    client, run_id = root_of(store)
    picture, page = (Path(client.download_artifacts(run_id, name)).read_text() for name in (PICTURE, PAGE))
    return client.get_run(run_id).data.tags[NOTE_TAG], picture, page


def texts(svg: str) -> set[str]:
    return {element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_the_root_run_carries_the_graph(store: LineageStore) -> None:
    paths = commit_story(store.local)
    ids = {name: store.deliver(path) for name, path in paths.items()}
    store.show()
    note, svg, page = shown(store)
    assert f"](get-artifact?path={PICTURE}&run_uuid={ids['search']})" in note
    others = {
        name: run_id for name, run_id in ids.items() if name != "search"
    }  # includes dense, a parent of the comparison
    for run_id in others.values():
        assert f"/runs/{run_id}?{WORKFLOW})" in note and f"/runs/{run_id}?{WORKFLOW}" in page
    assert f"/artifacts/{PAGE}?{WORKFLOW})" in note
    levels = re.findall(r"\[(L\d\d)\]\(\S*/([0-9a-f]{32})\S*\)", note.split("\n")[0])
    assert levels == [(f"L0{number}", ids[f"level {number}"]) for number in range(3)]
    assert {"L02, density 0.640", "signed_mask", "dense", "comparison", " pruned-from ", " masked-by "} <= texts(svg)
    links = set(re.findall(rf'xlink:href="\./#/experiments/\d+/runs/([0-9a-f]{{32}})\?{WORKFLOW}"', svg))
    assert links == set(ids.values())


def test_the_picture_is_redrawn_at_most_once_a_minute_and_at_the_end(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(overview.time, "monotonic", lambda: now)
    paths = commit_story(store.local)
    store.deliver(paths["level 0"])
    store.deliver(paths["level 1"])
    assert {"L00, density 1.000"} == {text for text in texts(shown(store)[1]) if text.startswith("L0")}
    now = 61.0
    store.deliver(paths["level 2"])
    assert "L02, density 0.640" in texts(shown(store)[1])
    store.deliver(paths["lmc"])
    assert "comparison" not in texts(shown(store)[1])
    store.show()
    assert "comparison" in texts(shown(store)[1])
    sent: list[str] = []
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_, **__: sent.append("again"))
    store.overviews.touch([key_of("search")])
    store.show()
    assert sent == []  # an unchanged picture is not uploaded again


def test_sync_draws_the_picture_that_a_killed_launch_did_not(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.delivery.deliver(paths["lmc"], store.local.load(key_of("lmc")))
    client, run_id = root_of(store)
    assert client.list_artifacts(run_id, "lineage") == []
    assert list(open_store(store.local.directory, store.tracking_uri, "test").sync()) == []
    assert "comparison" in texts(shown(store)[1])


def test_a_comparison_is_shown_by_both_searches(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["signed_mask"])
    other = LineageRecord(key_of("other"), "search", "lrr other", started_ms=START_MS, finished_ms=START_MS)
    store.local.commit(other, lambda _: None)
    across = LineageRecord(
        key_of("across"),
        "analysis",
        "across",
        (Parent(other.key, "compared"), Parent(key_of("level 1"), "compared")),
        tags={"question": "lmc across"},
        started_ms=START_MS + 500_000,
    )
    store.local.commit(across, lambda _: None)
    store.deliver(store.local.path(across))
    store.show()
    assert "lmc across" in texts(shown(store)[1])
    client = MlflowClient(store.tracking_uri)
    path = client.download_artifacts(str(store.run_id_of(other.key)), PICTURE)
    assert {"lmc across", "L01, density 0.800"} <= texts(Path(path).read_text())


def test_text_that_a_user_added_to_the_root_run_is_kept(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 0"])
    client, run_id = root_of(store)
    mine = client.get_run(run_id).data.tags[NOTE_TAG] + "\n\nMine."
    client.set_tag(run_id, NOTE_TAG, mine)
    store.deliver(paths["level 2"])
    store.show()
    note, svg, _ = shown(store)
    assert note == mine and "L02, density 0.640" in texts(svg)


def test_a_missing_graphviz_warns_once_and_loses_nothing(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = commit_story(store.local)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        for path in paths.values():
            assert store.deliver(path)
            store.show()
        error = capsys.readouterr().err
        assert error.count("warning:") == 1 and "apt-get install graphviz" in error and "lineage.py sync" in error
        client, run_id = root_of(store)
        tags = client.get_run(run_id).data.tags
        assert "get-artifact" not in tags[NOTE_TAG] and "signed\\_mask" in tags[NOTE_TAG] and DRAWN_TAG not in tags
    list(store.sync())
    assert "get-artifact" in shown(store)[0]


def test_a_store_that_fails_while_drawing_loses_nothing(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = commit_story(store.local)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device at http://me:geheim@host")

    monkeypatch.setattr(MlflowClient, "log_text", full)
    run_id = store.deliver(paths["lmc"])
    assert store.load(run_id).name == "lmc signed_mask dense"
    error = capsys.readouterr().err
    assert "No space left" in error and "geheim" not in error


def test_names_and_tags_on_the_root_run_are_only_text(store: LineageStore) -> None:
    bad = "<script>alert(1)</script>[x](javascript:alert(1))<img src=x onerror=alert(1)>"
    tags = {"method": bad, "model": bad, "data": bad, "data_digest": key_of("digits"), "init_seed": bad, "level": bad}
    search = LineageRecord(key_of("search"), "search", bad, tags=tags, started_ms=START_MS, finished_ms=START_MS)
    level = LineageRecord(
        key_of("level"), "level", bad, (Parent(search.key, "initialised-from"),), search.key, tags=tags
    )
    for record in (search, level):
        store.local.commit(record, lambda _: None)
    store.deliver(store.local.path(level))
    note, svg, page = shown(store)
    assert "<script" not in note and "](javascript" not in note
    assert "<script" not in svg and "<img" not in svg and any(bad in text for text in texts(svg))
    assert page.count("<script") == 2 and "<img" not in page


@pytest.mark.long
def test_a_server_gives_the_picture_where_the_description_looks_for_it(empty_store: Path, tmp_path: Path) -> None:
    shutil.copy(empty_store, tmp_path / "server.db")
    port = free_port()
    with server(tmp_path, port):
        store = open_store(tmp_path / "runs", f"http://me:geheim@127.0.0.1:{port}", "test")
        run_id = store.deliver(commit_story(store.local, levels=1)["lmc"])
        note, _, page = shown(store)
        (address,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", note)
        answer = requests.get(f"http://127.0.0.1:{port}/{address}", timeout=30)
        assert answer.status_code == 200 and "lmc" not in address
        assert answer.headers["Content-Type"].startswith("image/svg+xml") and "dense" in texts(answer.text)
        assert f'href="http://127.0.0.1:{port}/#/experiments/' in page and run_id in page
        everything = note + page + str(MlflowClient(store.tracking_uri).get_run(run_id).data.tags)
        assert "geheim" not in everything
        view = open_runs(store, "test", store.summaries(f"attributes.run_id = '{run_id}'")[0])
        experiment, key = re.fullmatch(r"#/experiments/(\d+)/runs\?.*viewStateShareKey=(\S+)", view.address).groups()
        assert f"{VIEW_TAG}{key}" in MlflowClient(store.tracking_uri).get_experiment(experiment).tags
