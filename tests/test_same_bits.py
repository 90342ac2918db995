"""Test tools/same_bits.py: the comparison of two stores, the export of a revision, and its launches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.masks import Mask, SignedMask
from harness.pruning import METHODS
from tests.mask_formats import as_format_1
from tools import same_bits
from tools.same_bits import ROOT, Maker, NoAnswerError, compare, export, launches

FIRST, SECOND = "1" * 64, "2" * 64


def _commit(store: Path, key: str, name: str, parents: tuple[Parent, ...] = ()) -> None:
    """Commit a run with times and command specific to the store.

    Times, command and code version depend on the store's path. Keys, metrics of training and files are the same in
    every store.
    """
    # the path's length replaces the clock
    now = len(str(store)) * 1000
    LocalNodes(store).commit(
        LineageRecord(
            key=key,
            kind="level",
            name=name,
            parents=parents,
            config={"argv": [str(store)], "command": str(store), "search": {"lr": 0.1, "densities": [0.8]}},
            tags={"level": "01", "method": "aws"},
            metrics=(
                Metric("test_loss", 0.25, 1, now),
                Metric("test_loss", 0.125, 2, now),
                Metric("train_loss", float("nan"), 1, now),
                Metric("images_per_second", float(now), 1, now),
                Metric("system/cpu_utilization_percentage", float(now), 1, now),
            ),
            code={"commit": str(store)},
            started_ms=now,
            finished_ms=now,
        ),
        _write,
    )


def _write(directory: Path) -> None:
    for name in ("checkpoint.safetensors", "signed_mask.safetensors", "layers.json"):
        (directory / name).write_bytes(name.encode() * 3)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Return two stores with two equal runs each, made at different times."""
    for store in (tmp_path / "before", tmp_path / "a longer name"):
        _commit(store, FIRST, "first")
        _commit(store, SECOND, "second", (Parent(FIRST, "pruned-from"),))
    return tmp_path / "before", tmp_path / "a longer name"


def _node(store: Path, key: str = SECOND) -> Path:
    return store / f"level-{key[:16]}"


def _edit(store: Path, change: Callable[[dict], None]) -> None:
    path = _node(store) / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_stores_with_other_times_commands_and_code_are_equal(stores):
    report = compare(*stores)
    assert report.verdict() == "EQUAL: no number moved"
    assert dict(report.equal) == {
        "key": 2,
        "checkpoint": 2,
        "mask": 2,
        "file": 2,
        "metric": 4,
        "point": 6,
        "field": report.equal["field"],
    }
    assert report.equal["field"] >= 2 * 7
    said = "\n".join(report.lines())
    assert "images_per_second" in said and "started_ms" in said  # the report names the ignored fields


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "signed_mask.safetensors", "layers.json"])
def test_one_altered_byte_is_found(stores, name):
    path = _node(stores[1]) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = compare(*stores)
    (found,) = report.moved
    assert found.startswith(f"second: bytes of {name} differ")
    assert report.verdict() == "NOT EQUAL: differences: 1"


def test_masks_of_both_formats_are_compared_by_their_planes(stores):
    signs = SignedMask.of({"w": torch.tensor([1.0, -1.0, 0.0])}, Mask({"w": torch.tensor([True, True, False])}))
    paths = [_node(store) / "signed_mask.safetensors" for store in stores]
    for path in paths:
        signs.save(path, {"level": 1})
    as_format_1(paths[0])
    assert compare(*stores).verdict() == "EQUAL: no number moved"
    as_format_1(paths[0], {"w:sign": torch.tensor([64], dtype=torch.uint8)})
    assert any("bytes of signed_mask.safetensors differ" in text for text in compare(*stores).moved)


def test_a_missing_file_is_found_and_a_new_file_is_named(stores):
    (_node(stores[1]) / "layers.json").rename(_node(stores[1]) / "more.json")
    report = compare(*stores)
    assert report.moved == ["second: layers.json is gone"]
    assert report.fields == {"new file more.json": ["second"]}


def test_new_files_of_correct_images_are_named_and_are_no_difference(stores):
    for store, runs in zip(stores, ([], [FIRST, SECOND]), strict=True):
        for key in runs:
            (_node(store, key) / "correct.safetensors").write_bytes(b"bits")
    report = compare(*stores)
    assert report.verdict() == "EQUAL: no number moved"
    assert "record field new file correct.safetensors, in first and 1 more" in list(report.lines())
    (_node(stores[0]) / "correct.safetensors").write_bytes(b"bitz")
    assert any("bytes of correct.safetensors differ" in text for text in compare(*stores).moved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1].__setitem__(1, 0.1250001), "was 0.125 at step 2, now 0.1250001 at step 2"),
        (lambda rows: rows[1].__setitem__(2, 3), "was 0.125 at step 2, now 0.125 at step 3"),
        (lambda rows: rows.pop(0), "was of 2 points, now of 1"),
    ],
)
def test_a_changed_metric_is_found(stores, change, words):
    _edit(stores[1], lambda record: change(record["metrics"]))
    assert compare(*stores).moved == [f"second: metric test_loss {words}"]


def test_a_new_metric_is_named_and_is_no_difference(stores):
    _edit(stores[1], lambda record: record["metrics"].append(["wait_seconds", 1.0, 1, 1]))
    report = compare(*stores)
    assert report.fields == {"new metric wait_seconds": ["second"]}
    assert report.verdict() == "EQUAL: no number moved"


def test_a_changed_key_is_found_on_both_sides(stores):
    shutil.rmtree(_node(stores[1]))
    _commit(stores[1], "3" * 64, "second", (Parent(FIRST, "pruned-from"),))
    report = compare(*stores)
    assert sorted(report.moved) == [
        f"second: key {'2' * 16}… exists only before",
        f"second: key {'3' * 16}… exists only after",
    ]
    assert report.equal["key"] == 1


@pytest.mark.parametrize(
    ("change", "text", "verdict"),
    [
        (
            lambda record: record["config"]["search"].update(warm=True),
            "new config.search.warm = True",
            "EQUAL: no number moved",
        ),
        (
            lambda record: record["tags"].pop("level"),
            "gone tags.level = '01'",
            "No number moved, but record fields are gone or different: 1",
        ),
        (
            lambda record: record["parents"][0].update(relation="masked-by"),
            f"different parents: {[{'key': FIRST, 'relation': 'pruned-from'}]}, "
            f"now {[{'key': FIRST, 'relation': 'masked-by'}]}",
            "No number moved, but record fields are gone or different: 1",
        ),
    ],
)
def test_a_new_missing_or_different_record_field_is_named(stores, change, text, verdict):
    _edit(stores[1], change)
    config = json.loads((_node(stores[1]) / "record.json").read_text())["config"]
    (_node(stores[1]) / "config.json").write_text(json.dumps(config))
    report = compare(*stores)
    assert report.fields == {text: ["second"]}
    assert report.verdict() == verdict
    assert f"record field {text}, in second" in list(report.lines())


def test_a_config_file_that_differs_from_the_record_is_found(stores):
    path = _node(stores[1]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"search": {"lr": 0.2}}))
    report = compare(*stores)
    assert "new config.json.search.lr = 0.2" in report.fields


def test_an_empty_store_is_an_error(tmp_path):
    with pytest.raises(NoAnswerError, match="holds no finished run"):
        compare(tmp_path, tmp_path)


def test_every_method_of_an_old_revision_is_launched():
    """Check that newer methods are not launched.

    A launch of an old revision without them would fail.
    """
    asked = {launch.options.split("--method ")[1].split()[0] for launch in launches() if "--method" in launch.options}
    assert asked <= METHODS.keys()
    assert asked == {"aws", "lrr", "lrr_full", "lrr_bn_rewind", "imp", "wr", "random", "dense", "gem_miner"}


@pytest.mark.long
def test_the_harness_of_another_tree_is_refused(tmp_path, monkeypatch):
    """Check that a harness from outside the given tree is refused.

    An installed version of the harness must not be compared by mistake.
    """
    (tmp_path / "recipes").mkdir()
    Maker(ROOT, tmp_path).require_own_harness()
    with pytest.raises(NoAnswerError, match="would import"):
        Maker(tmp_path, tmp_path).require_own_harness()


@pytest.mark.long
def test_a_failed_launch_is_an_error(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import os\nprint(os.environ['PYTHONPATH'])\nraise SystemExit(3)\n")
    with pytest.raises(NoAnswerError, match=f"exited with 3 in {tmp_path}:\n{tmp_path}"):
        Maker(tmp_path, tmp_path).run(same_bits.Launch("fails", "fails.py", ""))


def test_an_unknown_revision_is_named(tmp_path):
    with pytest.raises(NoAnswerError, match="REV 'no-such-rev' is not a commit"):
        export("no-such-rev", tmp_path)


def test_a_difference_sets_the_exit_code(stores, monkeypatch, capsys):
    monkeypatch.setattr(same_bits, "make_stores", lambda rev, place: stores)
    assert same_bits.main(same_bits.TwoVersions()) == 0
    (_node(stores[1]) / "layers.json").write_text("{}")
    assert same_bits.main(same_bits.TwoVersions()) == 1
    said = capsys.readouterr().out
    assert "DIFFERENT second: bytes of layers.json differ" in said


@pytest.mark.long
def test_help_is_printed_on_a_terminal_without_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, same_bits.__file__, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
