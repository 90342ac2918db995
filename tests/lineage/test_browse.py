"""Test queries across searches, with equal results for delivered and local runs."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.lineage.browse.find import ancestors, descendants, family, find_node, newest, path_steps, relatives, way
from harness.lineage.browse.query import Query, parse_density, parse_since
from harness.lineage.nodes.index import INDEX, LocalIndex
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.lineage.store import LineageStore, open_store
from tests.lineage.lineage_story import START_MS, commit_story, copied_store, key_of


def commit(store: LineageStore, name: str, kind: str, *parents: tuple[str, str], number: int = 50) -> Path:
    """Commit an empty local run.

    Parents are given as (short name, relation).
    """
    start = START_MS + 10_000 * number
    made = tuple(Parent(key_of(parent), relation) for parent, relation in parents)
    store.local.commit(
        LineageRecord(key_of(name), kind, name, made, started_ms=start, finished_ms=start), lambda _: None
    )
    found = store.local.find(key_of(name))
    assert found is not None
    return found


def two_searches(store: LineageStore) -> dict[str, Path]:
    """Commit two searches, a comparison across them and a report.

    Returns:
        The directory of each local run by its short name.
    """
    paths = commit_story(store.local)
    paths["other search"] = commit(store, "other search", "search", number=20)
    paths["other level"] = commit(store, "other level", "level", ("other search", "initialised-from"), number=21)
    across = (("other level", "compared"), ("level 1", "compared"))
    paths["across"] = commit(store, "across", "analysis", *across, number=22)
    paths["report"] = commit(store, "report", "report", ("across", "reported"), number=23)
    return paths


@pytest.fixture(scope="module", params=["delivered", "local", "mixed"])
def searches(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> LineageStore:
    """Return two searches in MLflow only, local only, or partly delivered.

    Tests must only read them.
    """
    store = copied_store(empty_store, tmp_path_factory.mktemp(request.param))
    paths = two_searches(store)
    if request.param != "local":
        for name, path in paths.items():
            if request.param == "delivered" or name in ("search", "level 0", "level 1", "other search"):
                store.deliver(path)
    if request.param == "delivered":
        return open_store(store.local.directory.parent / "none", store.tracking_uri, "test")
    return store


def names(nodes: object) -> list[str]:
    known = {key_of(name): name for name in ("search", "level 0", "level 1", "level 2", "signed_mask", "dense", "lmc")}
    known |= {key_of(name): name for name in ("other search", "other level", "across", "report")}
    return [known[node.key] for node in nodes]  # type: ignore[attr-defined]


@pytest.mark.long
def test_relatives_in_other_families_are_found(searches: LineageStore) -> None:
    node = {name: find_node(searches, key_of(name)) for name in ("search", "level 1", "across", "report", "lmc")}
    assert set(names(family(searches, node["lmc"]))) == {
        *("search", "level 0", "level 1", "level 2", "signed_mask", "lmc"),
    }
    assert names(ancestors(searches, node["level 1"])) == ["search", "level 0"]
    found = names(ancestors(searches, node["report"]))
    assert set(found) == {"search", "level 0", "level 1", "other search", "other level", "across"}
    assert found.index("search") < found.index("level 0") < found.index("level 1") < found.index("across")
    found = names(descendants(searches, node["level 1"]))
    assert set(found) == {"level 2", "signed_mask", "lmc", "across", "report"}
    parents, children = relatives(searches, node["across"])
    assert names(parents) == ["other level", "level 1"] and names(children) == ["report"]
    assert names(relatives(searches, node["level 1"])[1]) == ["level 2", "across"]


def test_paths_between_runs(searches: LineageStore) -> None:
    def ask(start: str, end: str) -> list[str]:
        return names(way(searches, find_node(searches, key_of(start)), find_node(searches, key_of(end))))

    assert ask("search", "level 2") == ["search", "level 0", "level 1", "level 2"]
    assert ask("level 2", "search") == ["level 2", "level 1", "level 0", "search"]
    assert ask("level 0", "report") == ["level 0", "level 1", "across", "report"]
    # neither is an ancestor of the other: the path goes through a common descendant or ancestor
    assert ask("other level", "level 0") == ["other level", "across", "level 1", "level 0"]
    assert ask("dense", "signed_mask") == ["dense", "lmc", "signed_mask"]
    nodes = way(searches, find_node(searches, key_of("level 1")), find_node(searches, key_of("level 0")))
    assert path_steps(nodes) == [{"from": key_of("level 0"), "to": key_of("level 1"), "relation": "pruned-from"}]


def test_unrelated_runs_have_no_path(store: LineageStore) -> None:
    commit_story(store.local)
    commit(store, "alone", "search")
    with pytest.raises(LookupError, match="are not related"):
        way(store, find_node(store, key_of("alone")), find_node(store, key_of("level 1")))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(kind="level"), ["other level", "level 2", "level 1", "level 0"]),
        (Query(kind="signed_mask"), ["signed_mask"]),
        (Query(method="aws", kind="training"), ["dense", "signed_mask"]),
        (Query(method="lrr"), []),
        (Query(network="resnet20", level=1), ["level 1"]),
        # levels 1 and 2 have densities 0.8 and 0.64; the search and the comparison have no density
        (Query(density=parse_density("0.64..0.8")), ["signed_mask", "level 2", "level 1"]),
        (Query(density=parse_density("0.64"), kind="level"), ["level 2"]),
        (Query(density=parse_density("0.1..0.639")), []),
        (Query(since_ms=START_MS + 220_000), ["report", "across"]),
    ],
)
def test_filters_mean_the_same_for_delivered_and_local_nodes(
    searches: LineageStore, query: Query, expected: list[str]
) -> None:
    assert names(newest(searches, query=query)) == expected
    assert names(newest(searches, 2, query)) == expected[:2]


def test_newest_mixes_delivered_and_local_runs(searches: LineageStore) -> None:
    everything = names(newest(searches))
    assert everything[:4] == ["report", "across", "other level", "other search"] and len(everything) == 11
    for limit in range(1, 11):
        assert names(newest(searches, limit)) == everything[:limit]


def test_filter_by_experiment(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["dense"])
    open_store(store.local.directory, store.tracking_uri, "elsewhere").deliver(paths["search"])
    assert names(newest(store, query=Query(experiment="test"))) == ["dense"]
    assert names(newest(store, query=Query(experiment="elsewhere"))) == ["search"]
    assert newest(store, query=Query(experiment="elsewhere", method="lrr")) == []
    with pytest.raises(LookupError, match="no experiment 'nowhere'; there are: Default, elsewhere, test"):
        newest(store, query=Query(experiment="nowhere"))


def test_densities_and_dates() -> None:
    assert parse_density("0.21") == pytest.approx((0.2095, 0.2105))
    assert parse_density("0.1..0.3") == pytest.approx((0.0995, 0.3005))
    for text in ("x", "0.3..0.1", "1.2", "-1", "0.1..", "nan"):
        with pytest.raises(ValueError, match="give a share"):
            parse_density(text)
    now = datetime(2026, 2, 1, 12)
    assert parse_since("7d", now) == int((now - timedelta(days=7)).timestamp() * 1000)
    assert parse_since("90m", now) == int((now - timedelta(minutes=90)).timestamp() * 1000)
    assert parse_since("2026-01-31") == int(datetime(2026, 1, 31).timestamp() * 1000)
    for text in ("7", "7y", "31.1.2026", ""):
        with pytest.raises(ValueError, match="give a date"):
            parse_since(text)
    with pytest.raises(ValueError, match="allowed are letters"):
        Query(method="aws' OR '1'='1")


def test_foreign_and_edited_runs_hide_nothing(store: LineageStore) -> None:
    paths = commit_story(store.local, levels=1)
    run_id = store.deliver(paths["level 0"])
    client = MlflowClient(store.tracking_uri)
    foreign = client.create_run(client.create_experiment("foreign"), tags={"method": "aws", "harness.root": "x"})
    assert foreign.info.run_id not in {node.run_id for node in newest(store, query=Query(method="aws"))}
    for value in ("no json", '[["stolen-from", "x"]]', "{}", "[[[[[["):
        client.set_tag(run_id, "harness.parents", value)
        (node,) = (node for node in newest(store) if node.run_id == run_id)
        assert node.parents == ()


def test_the_index_follows_the_nodes_and_can_be_lost(store: LineageStore) -> None:
    paths = commit_story(store.local)
    index = LocalIndex(store.local)
    assert index.entries.keys() == {key_of(name) for name in paths}
    assert index.top(key_of("lmc")) == key_of("search")
    file = store.local.directory / INDEX
    whole, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert (
        LocalIndex(store.local).entries == index.entries and file.stat().st_mtime_ns == stamp
    )  # the file was not rewritten
    commit(store, "later", "search")
    assert key_of("later") in LocalIndex(store.local).entries
    for damaged in (b"", b"[]", b"{}", b"[" * 100_000, whole[:-9], whole.replace(b'"format":2', b'"format":0')):
        file.write_bytes(damaged)
        assert LocalIndex(store.local).entries.keys() == {*index.entries, key_of("later")}
    with pytest.warns(UserWarning, match="record.json was altered"):
        (paths["level 1"] / "record.json").write_text("{}")
        assert key_of("level 1") not in LocalIndex(store.local).entries
    (paths["dense"] / "record.json").unlink()
    with pytest.warns(UserWarning):
        assert key_of("dense") not in LocalIndex(store.local).entries


def test_local_nodes_are_found_through_a_parent_that_is_only_in_mlflow(store: LineageStore) -> None:
    import shutil

    paths = commit_story(store.local)
    store.deliver(paths["level 1"])
    for name in ("search", "level 0", "level 1"):
        shutil.rmtree(paths[name])
    local = find_node(store, key_of("level 2"))
    assert local.run_id is None
    assert set(names(family(store, local))) == {*("search", "level 0", "level 1", "level 2", "signed_mask", "lmc")}
    assert names(ancestors(store, local)) == ["search", "level 0", "level 1"]


def test_two_runs_of_one_key_are_one_node(store: LineageStore) -> None:
    paths = commit_story(store.local, levels=1)
    first = store.deliver(paths["search"])
    client = MlflowClient(store.tracking_uri)
    tags = {name: value for name, value in client.get_run(first).data.tags.items() if name.startswith("harness.")}
    unfinished = client.create_run(client.get_run(first).info.experiment_id, tags=tags, start_time=1).info.run_id
    assert find_node(store, key_of("search")).run_id == first
    assert find_node(store, unfinished).run_id == unfinished
