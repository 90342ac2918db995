"""Test bundles: export runs, import them elsewhere, and refuse tampered bundles.

An import keeps every byte, overwrites no run and checks every digest and path.
"""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import networkx
import pytest
import torch

from harness import load_checkpoint, load_signed_mask
from harness.common.digest import sha256_file
from harness.lineage.browse.export import to_networkx, write_export
from harness.lineage.browse.find import find_node, newest
from harness.lineage.bundle import import_bundle, read_bundle, write_bundle
from harness.lineage.nodes.absent_files import read_absent_files
from harness.lineage.nodes.local_files import LocalNodes, check_files, read_record
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof import Findings
from harness.lineage.proof.copies import all_nodes, check_artifacts, check_local, check_tags
from harness.lineage.store import LineageStore, open_store
from tests.lineage.lineage_story import checkpoint, commit_story, key_of, signed_mask
from tests.mask_formats import as_format_1
from tests.warm import warm

TOOL = Path(__file__).parents[2] / "tools" / "lineage.py"


@pytest.fixture
def theirs(empty_store: Path, tmp_path: Path) -> LineageStore:
    """Return the store of another user, who imports the bundle."""
    (tmp_path / "theirs").mkdir()
    shutil.copy(empty_store, tmp_path / "theirs" / "mlflow.db")
    return open_store(tmp_path / "theirs" / "runs", f"sqlite:///{tmp_path}/theirs/mlflow.db", "theirs")


def bundle(store: LineageStore, out: Path, *names: str, checkpoints: bool = False) -> Path:
    write_bundle(store, [find_node(store, key_of(name)) for name in names], out, checkpoints=checkpoints)
    return out


def take(store: LineageStore, directory: Path) -> dict[str, str]:
    return {one.item.name: one.outcome for one in import_bundle(store, directory)}


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.long
@pytest.mark.parametrize("from_mlflow", [False, True])
def test_an_imported_bundle_has_the_same_bytes(
    store: LineageStore, theirs: LineageStore, tmp_path: Path, from_mlflow: bool
) -> None:
    # Phase: export a final training with its ancestors
    paths = commit_story(store.local)
    original = {name: tree(path) for name, path in paths.items()}
    run_ids = {name: store.deliver(path) for name, path in paths.items()}
    if from_mlflow:
        shutil.rmtree(store.local.directory)
    out = bundle(store, tmp_path / "bundle", "signed_mask", checkpoints=True)
    made = {item.key for item in read_bundle(out)}
    assert made == {key_of(name) for name in ("search", "level 0", "level 1", "level 2", "signed_mask")}
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Phase: import the bundle and compare every file
    assert set(take(theirs, out).values()) == {"new"}
    for name in ("search", "level 0", "level 1", "level 2", "signed_mask"):
        directory = theirs.local.find(key_of(name))
        assert directory is not None and tree(directory) == original[name]
        theirs.deliver(directory)
    # Phase: look up the run by its original run ID: first locally, then only in MLflow
    for _ in range(2):
        node = find_node(theirs, run_ids["level 2"][:9])
        assert node.key == key_of("level 2") and node.run_id != run_ids["level 2"]
        assert node.origin_run_ids == (run_ids["level 2"],)
        shutil.rmtree(theirs.local.directory, ignore_errors=True)
    mask = load_signed_mask(run_ids["level 2"], theirs.tracking_uri, tmp_path / "none")
    assert torch.equal(mask.signs["conv.weight"], signed_mask(2).signs["conv.weight"])
    with pytest.raises(LookupError):
        load_signed_mask(run_ids["dense"], theirs.tracking_uri, tmp_path / "none")
    # Phase: exported again, the run keeps its run IDs of both stores
    again = bundle(theirs, tmp_path / "again", "level 2")
    (item,) = (item for item in read_bundle(again) if item.key == key_of("level 2"))
    assert item.run_ids == (node.run_id, run_ids["level 2"])


def test_without_checkpoints(store: LineageStore, theirs: LineageStore, tmp_path: Path) -> None:
    # Phase: export without checkpoints, import and deliver
    commit_story(store.local)
    out = bundle(store, tmp_path / "bundle", "level 2", "lmc")
    assert not list(out.rglob("*checkpoint*")) and not list(out.rglob("theta_init*"))
    assert "`nodes/level-" in (out / "README.md").read_text() and len(read_bundle(out)) == 7
    take(theirs, out)
    run_id = theirs.deliver(theirs.local.find(key_of("lmc")) or Path())
    node = find_node(theirs, key_of("level 2"))
    assert node.absent == ("checkpoint.safetensors",) and run_id
    shutil.rmtree(tmp_path / "runs")
    # Phase: load the mask, first from the local run, then from MLflow; the checkpoint is refused
    for _ in range(2):
        mask = load_signed_mask(node.run_id or "", theirs.tracking_uri, theirs.local.directory)
        assert torch.equal(mask.signs["conv.weight"], signed_mask(2).signs["conv.weight"])
        with pytest.raises(ValueError, match="checkpoint.safetensors.*deliberately left out"):
            load_checkpoint(node.run_id or "", theirs.tracking_uri, theirs.local.directory)
        with pytest.raises(ValueError, match="removed on purpose on .*made with --checkpoints"):
            load_checkpoint(key_of("level 2"), theirs.tracking_uri, theirs.local.directory)
        shutil.rmtree(theirs.local.directory)
        directory = theirs.find(key_of("level 2"))  # fetches every file except the omitted checkpoint
        assert directory is not None and read_absent_files(directory).keys() == {"checkpoint.safetensors"}
    # Phase: verify the existing files; the absent ones give notes
    findings = Findings()
    for place in all_nodes(theirs, findings).values():
        if place.directory is not None and place.record is not None:
            check_local(place, findings)
            check_tags(place, place.record, findings)
            check_artifacts(theirs, place, place.record, findings)
    assert findings.problems == [] and findings.checked["artifacts"] > 0
    assert [note.what for note in findings.notes if note.key == key_of("level 2")]


def test_importing_twice_changes_nothing_and_a_fuller_bundle_adds_checkpoints(
    store: LineageStore, theirs: LineageStore, tmp_path: Path
) -> None:
    commit_story(store.local)
    small = bundle(store, tmp_path / "small", "level 1")
    full = bundle(store, tmp_path / "full", "level 1", checkpoints=True)
    take(theirs, small)
    before = tree(theirs.local.directory)
    assert set(take(theirs, small).values()) == {"there already"}
    assert tree(theirs.local.directory) == before
    found = take(theirs, full)
    assert found["aws resnet20 L01 d0.800"] == "completed with checkpoint.safetensors"
    loaded = load_checkpoint(key_of("level 1"), theirs.tracking_uri, theirs.local.directory)
    assert torch.equal(loaded.params["conv.weight"], checkpoint(1).params["conv.weight"])
    assert set(take(theirs, small).values()) == {"there already"}  # the smaller bundle removes no file
    load_checkpoint(key_of("level 1"), theirs.tracking_uri, theirs.local.directory)


def test_another_result_under_the_same_key_is_refused(
    store: LineageStore, theirs: LineageStore, tmp_path: Path
) -> None:
    commit_story(store.local)
    out = bundle(store, tmp_path / "bundle", "level 1")
    record = store.local.load(key_of("level 1"))

    def other(directory: Path) -> None:
        signed_mask(99).save(directory / "signed_mask.safetensors", {})

    theirs.local.commit(LineageRecord(record.key, "level", "mine"), other)
    before = tree(theirs.local.directory)
    with pytest.raises(ValueError, match="already local with another signed_mask.safetensors.*Nothing was imported"):
        take(theirs, out)
    assert tree(theirs.local.directory) == before
    # equal files under a different record, from an independent run with this key: the local record stays
    shutil.rmtree(theirs.local.directory)
    mine = LineageRecord(record.key, "level", "mine", parents=record.parents)
    level = store.local.find(record.key) or Path()
    names = ("signed_mask.safetensors", "checkpoint.safetensors")
    theirs.local.commit(mine, lambda directory: [shutil.copy(level / name, directory) for name in names] and None)
    assert take(theirs, out)["aws resnet20 L01 d0.800"] == "there already"
    assert theirs.local.load(record.key).name == "mine"

    # the same mask in a file of the older format is no difference
    def as_before(directory: Path) -> None:
        for name in names:
            shutil.copy(level / name, directory)
        as_format_1(directory / names[0])

    shutil.rmtree(theirs.local.directory)
    theirs.local.commit(mine, as_before)
    assert take(theirs, out)["aws resnet20 L01 d0.800"] == "there already"


@pytest.mark.long
def test_a_killed_import_leaves_only_whole_runs_and_resumes(
    store: LineageStore, theirs: LineageStore, tmp_path: Path
) -> None:
    """Kill an import at three points, then run it to the end.

    The kills come before and after a directory's rename.
    """
    commit_story(store.local)
    out = bundle(store, tmp_path / "bundle", "level 2", checkpoints=True)
    command = ["import", str(out), "--offline", "--runs", str(theirs.local.directory)]
    for number, point in enumerate(("node-written:1", "node-committed:1", "node-written:2")):
        done = warm(tmp_path, TOOL, *command, HARNESS_KILL_AT=point)
        assert done.returncode == -signal.SIGKILL, done.stderr
        whole = list(theirs.local.directories())
        assert len(whole) == (0, 1, 2)[number]
        for directory in whole:
            check_files(directory, read_record(directory))
    done = warm(tmp_path, TOOL, *command)
    assert (done.stdout.count("there already"), done.stdout.count("new")) == (2, 2) and done.stderr == ""
    assert not list(theirs.local.directory.glob(".tmp-*"))


def test_a_failed_export_leaves_no_bundle(store: LineageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_story(store.local)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists: give"):
        bundle(store, tmp_path / "there", "level 1")
    path = store.local.find(key_of("level 1")) or Path()
    (path / "signed_mask.safetensors").write_bytes(b"altered")
    with pytest.raises(ValueError, match="was altered"):
        bundle(store, tmp_path / "bundle", "level 1")
    shutil.rmtree(path)
    with pytest.raises(LookupError, match=f"has the parent {key_of('level 1')[:16]}…, which is neither"):
        bundle(store, tmp_path / "bundle", "level 2")
    assert sorted(path.name for path in tmp_path.iterdir() if "bundle" in path.name) == []


def node_of(directory: Path, name: str) -> Path:
    (found,) = (directory / "nodes").glob(f"*-{key_of(name)[:16]}")
    return found


def reseal(directory: Path, name: str, change: dict[str, object]) -> None:
    """Change a run's record in a bundle, and its digest to match."""
    path = node_of(directory, name) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    manifest = json.loads((directory / "bundle.json").read_text())
    for item in manifest["nodes"]:
        if item["key"] == key_of(name):
            item["record_sha256"] = sha256_file(path)
    (directory / "bundle.json").write_text(json.dumps(manifest))


def remanifest(place: Path, **change: object) -> None:
    manifest = json.loads((place / "bundle.json").read_text())
    manifest["nodes"][1] |= change
    (place / "bundle.json").write_text(json.dumps(manifest))


HOSTILE = {
    "changed byte": lambda d: (node_of(d, "level 1") / "signed_mask.safetensors").write_bytes(b"x"),
    "changed record": lambda d: (node_of(d, "level 1") / "record.json").write_bytes(b"{}"),
    "missing file": lambda d: (node_of(d, "level 1") / "signed_mask.safetensors").unlink(),
    "missing parent": lambda d: (d / "bundle.json").write_text(
        json.dumps({**(m := json.loads((d / "bundle.json").read_text())), "nodes": m["nodes"][2:]})
    ),
    "linked file": lambda d: (
        (node_of(d, "level 1") / "signed_mask.safetensors").rename(d / "moved"),
        (node_of(d, "level 1") / "signed_mask.safetensors").symlink_to(d / "moved"),
    ),
    "linked directory": lambda d: ((d / "nodes").rename(d.parent / "n"), (d / "nodes").symlink_to(d.parent / "n")),
    "linked list of absent files": lambda d: (
        (node_of(d, "level 1") / "deleted.json").rename(d / "moved"),
        (node_of(d, "level 1") / "deleted.json").symlink_to(d / "moved"),
    ),
    "file name leads out": lambda d: reseal(d, "level 1", {"files": {"../../../evil": "0" * 64}}),
    "absolute file name": lambda d: reseal(d, "level 1", {"files": {"/etc/passwd": "0" * 64}}),
    "reserved file name": lambda d: reseal(d, "level 1", {"files": {"SHA256SUMS": "0" * 64}}),
    "directory leads out": lambda d: remanifest(d, directory="../../../tmp"),
    "another's record": lambda d: reseal(d, "level 1", {"key": key_of("other")}),
    "unknown kind": lambda d: remanifest(d, kind="../x"),
    "odd run id": lambda d: remanifest(d, run_ids=["' OR '1'='1"]),
    "no text": lambda d: remanifest(d, name=["x"]),
    "newer format": lambda d: (d / "bundle.json").write_text('{"format": "harness.bundle/2", "nodes": []}'),
    "no list": lambda d: (d / "bundle.json").write_text('{"format": "harness.bundle/1", "nodes": {}}'),
    "deep": lambda d: (d / "bundle.json").write_text("[" * 200_000),
    "empty": lambda d: (d / "bundle.json").write_text(""),
    "no bundle": lambda d: (d / "bundle.json").unlink(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_bundle_is_refused_and_changes_nothing(store: LineageStore, tmp_path: Path, what: str) -> None:
    commit_story(store.local)
    out = bundle(store, tmp_path / "a" / "bundle", "level 2")
    HOSTILE[what](out)
    receiver = LineageStore(None, LocalNodes(tmp_path / "receiver" / "runs"))
    with pytest.raises(ValueError) as caught:
        take(receiver, out)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "receiver").exists() and not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("form", ["json", "graphml"])
def test_an_exported_graph_reads_back_unchanged(store: LineageStore, tmp_path: Path, form: str) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 0"])
    nodes = [node for node in newest(store, limit=None) if node.key != key_of("dense")]  # leave one parent out
    path = tmp_path / "out"
    write_export(nodes, path, form)
    with pytest.raises(FileExistsError):
        write_export(nodes, path, form)
    if form == "json":
        data = json.loads(path.read_text())
        assert [node["key"] for node in data["nodes"]] == [node.key for node in nodes]
        edges = {(edge["from"], edge["to"], edge["relation"]) for edge in data["edges"]}
        assert edges == {(parent.key, node.key, parent.relation) for node in nodes for parent in node.parents}
        return
    graph = networkx.read_graphml(path)
    assert dict(graph.nodes(data=True)) == dict(to_networkx(nodes).nodes(data=True))
    assert sorted(graph.edges(data="relation")) == sorted(to_networkx(nodes).edges(data="relation"))
    level = graph.nodes[key_of("level 1")]
    assert (level["level"], level["density"], level["name"]) == (1, 0.8, "aws resnet20 L01 d0.800")
    assert graph.nodes[key_of("dense")] == {"kind": "missing", "name": key_of("dense")[:16]}


def test_characters_that_xml_forbids_are_escaped(tmp_path: Path) -> None:
    hostile = '<a>&\x1b[31m\x00"]]>'
    nodes = LocalNodes(tmp_path / "runs")
    nodes.commit(LineageRecord(key_of("x"), "search", hostile), lambda directory: None)
    write_export(newest(LineageStore(None, nodes)), tmp_path / "x.graphml", "graphml")
    assert networkx.read_graphml(tmp_path / "x.graphml").nodes[key_of("x")]["name"] == '<a>&\\x1b[31m\\x00"]]>'
