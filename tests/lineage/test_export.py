"""Test exported directories: their form, their import and verification, and every way to load them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import load_checkpoint, load_network, load_signed_mask
from harness.cli.export import main as export_command
from harness.common.digest import sha256_file
from harness.lineage.browse.find import find_node
from harness.lineage.bundle import import_bundle, read_bundle, write_bundle
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.verify import verify
from harness.lineage.pyfunc import _load_pyfunc
from harness.lineage.sharing.card import model_card
from harness.lineage.sharing.export import Exported, export_run
from harness.lineage.sharing.licences import front_matter
from harness.lineage.store import LineageStore
from tests.lineage.proof.made import FOREIGN
from tests.lineage.shared_run import MEAN, STD, local_store, made_search, own_loop_level, own_loop_network
from tests.made_search import MadeSearch

TOP = {
    *("README.md", "SHA256SUMS", "bundle.json", "config.json", "MLmodel", "model.safetensors"),
    "signed_mask.safetensors",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSearch:
    """Return a search with two levels and a final training. Tests must not change it."""
    return made_search(tmp_path_factory.mktemp("made") / "runs", finals=("signed_mask",))


@pytest.fixture(scope="module")
def exported(made: MadeSearch) -> Exported:
    """Return its deepest level, exported. Tests must not change it."""
    store = LineageStore(None, made.nodes)
    return export_run(store, made.keys["L01"], made.nodes.directory.parent / "exported", licence="apache-2.0")


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_exported_directory_has_the_network_the_mask_and_a_card_at_its_top(
    made: MadeSearch, exported: Exported
) -> None:
    # Phase: the files, and digests of all of them
    out, level = exported.directory, made.directory("L01")
    assert {path.name for path in out.iterdir()} == {*TOP, "nodes"}
    assert exported.files == {name: len(content) for name, content in tree(out).items()}
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # the checkpoint is there once, with the recorded digest
    assert (out / "model.safetensors").read_bytes() == (level / "checkpoint.safetensors").read_bytes()
    assert not list(out.glob("nodes/*/*checkpoint*")) and not list(out.glob("nodes/*/theta_init*"))
    assert (out / "signed_mask.safetensors").read_bytes() == (level / "signed_mask.safetensors").read_bytes()
    # Phase: the settings for other programs
    config = json.loads((out / "config.json").read_text())
    record = made.nodes.load(made.keys["L01"])
    assert config == {
        "format": "harness.export/1",
        "library_name": "signed-tickets",
        "library_version": record.code.get("signed-tickets"),
        "run": {"key": record.key, "kind": "level", "name": record.name, "run_ids": []},
        "method": "aws",
        "level": 1,
        "density": load_signed_mask(out).density,
        "test_error_percent": 10.0,
        "sha256": {name: sha256_file(out / name) for name in ("model.safetensors", "signed_mask.safetensors")},
        "network": {"name": "resnet8", "width": 2},
        "num_classes": 10,
        "channels": 1,
        "image_size": 8,
        "mean": MEAN,
        "std": STD,
        "data": {"name": "digits", "digest": FOREIGN},
    }
    state = load_file(out / "model.safetensors")
    missing = load_network(out).load_state_dict(state)
    assert not missing.missing_keys and not missing.unexpected_keys


def test_the_model_card_is_valid_for_the_hub_and_says_the_facts(made: MadeSearch, exported: Exported) -> None:
    from huggingface_hub import ModelCard

    # Phase: the front matter
    text = (exported.directory / "README.md").read_text()
    card = ModelCard(text)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "signed-tickets",
        "image-classification",
    )
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"accuracy": 0.9, "error_percent": 10.0}
    # Phase: the text
    record = LocalNodes(made.nodes.directory).load(made.keys["L01"])
    facts = [record.key, record.files["checkpoint.safetensors"], record.files["signed_mask.safetensors"]]
    facts += ["python 'made up'", "0.3053", "tickets lineage import", "pruned-from"]
    assert [fact for fact in facts if fact not in text] == []
    digests = {item.record_sha256 for item in read_bundle(exported.directory)}
    assert len(digests) == 3 and all(digest in text for digest in digests)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("unknown", {"license": "other", "license_name": "unknown"}),
        ("MIT", {"license": "mit"}),
        ("openrail++", {"license": "openrail++"}),
        ("Our Lab's licence: v2", {"license": "other", "license_name": "our-lab-s-licence-v2"}),
        ('x"\nlicense: mit', {"license": "other", "license_name": "x-license-mit"}),
    ],
)
def test_the_licence_is_one_that_the_hub_accepts(licence: str, expected: dict[str, str]) -> None:
    assert front_matter(licence) == expected


def test_an_exported_directory_is_imported_and_verified_like_a_bundle(
    made: MadeSearch, exported: Exported, tmp_path: Path
) -> None:
    theirs = local_store(tmp_path / "theirs")
    outcomes = {one.item.key: one.outcome for one in import_bundle(theirs, exported.directory)}
    assert outcomes == dict.fromkeys([made.keys[name] for name in ("search", "L00", "L01")], "new")
    # the level is complete, its ancestors lack checkpoints on purpose
    assert tree(theirs.local.find(made.keys["L01"]) or Path()) == tree(made.directory("L01"))
    findings = verify(theirs)
    assert findings.problems == [] and findings.checked["files"] > 0
    assert set(dict.fromkeys(note.key for note in findings.notes)) >= {made.keys["L00"]}
    # once more, and a bundle without checkpoints, change nothing
    assert {one.outcome for one in import_bundle(theirs, exported.directory)} == {"there already"}
    small = tmp_path / "small"
    write_bundle(local_store(made.nodes.directory), [made.keys["L01"]], small)
    assert {one.outcome for one in import_bundle(theirs, small)} == {"there already"}


def test_an_export_completes_an_earlier_bundle_without_checkpoints(
    made: MadeSearch, exported: Exported, tmp_path: Path
) -> None:
    theirs = local_store(tmp_path / "theirs")
    write_bundle(local_store(made.nodes.directory), [made.keys["L01"]], tmp_path / "small")
    assert {one.outcome for one in import_bundle(theirs, tmp_path / "small")} == {"new"}
    outcomes = [one.outcome for one in import_bundle(theirs, exported.directory)]
    assert outcomes.count("completed with checkpoint.safetensors") == 1 and outcomes.count("there already") == 2
    assert load_checkpoint(made.keys["L01"], local_dir=theirs.local.directory).level == 1


def test_with_checkpoints_the_import_verifies_everything(made: MadeSearch, tmp_path: Path) -> None:
    store = local_store(made.nodes.directory)
    out = export_run(store, made.keys["signed_mask"], tmp_path / "out", checkpoints=True).directory
    theirs = local_store(tmp_path / "theirs")
    assert len(list(import_bundle(theirs, out))) == 4
    for name in ("search", "L00", "L01", "signed_mask"):
        assert tree(theirs.local.find(made.keys[name]) or Path()) == tree(made.directory(name))


def test_exports_and_bundles_are_loaded_by_the_path_of_their_directory(
    made: MadeSearch, exported: Exported, tmp_path: Path
) -> None:
    # Phase: an export
    runs = made.nodes.directory
    expected = load_signed_mask(made.keys["L01"], local_dir=runs)
    assert load_signed_mask(exported.directory).digest == expected.digest
    assert load_checkpoint(str(exported.directory)).digest == load_checkpoint(made.keys["L01"], local_dir=runs).digest
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(load_network(exported.directory)(images), load_network(made.keys["L01"], local_dir=runs)(images))
    # Phase: a bundle without the checkpoint
    store = local_store(runs)
    write_bundle(store, [made.keys["L01"]], tmp_path / "one")
    assert load_signed_mask(tmp_path / "one").digest == expected.digest
    with pytest.raises(ValueError, match="checkpoint.safetensors of L01.*removed on purpose.*made with --checkpoints"):
        load_network(tmp_path / "one")
    # Phase: bundles of several runs, and of a search
    write_bundle(store, [made.keys["L00"], made.keys["L01"]], tmp_path / "two")
    assert load_signed_mask(tmp_path / "two").digest == expected.digest  # level 1 was made from level 0
    write_bundle(store, [made.keys["search"]], tmp_path / "root")
    with pytest.raises(LookupError, match="made-up search has no file 'signed_mask.safetensors'"):
        load_signed_mask(tmp_path / "root")


def test_a_level_of_an_own_loop_is_exported_and_fills_a_network(tmp_path: Path) -> None:
    key, network = own_loop_level(tmp_path / "runs")
    out = export_run(local_store(tmp_path / "runs"), key, tmp_path / "out").directory
    text = (out / "README.md").read_text()
    assert "The network is not recorded. A `SignPruner`" in text and "pipeline_tag" not in text
    assert "test error | unknown" in text and "network" not in json.loads((out / "config.json").read_text())
    assert load_signed_mask(out).density == 0.5
    images = torch.randn(3, 4)
    assert torch.equal(load_network(out, model=own_loop_network())(images), network(images))
    with pytest.raises(ValueError, match="a SignPruner in a loop of its own"):
        load_network(out)
    assert {one.outcome for one in import_bundle(local_store(tmp_path / "theirs"), out)} == {"new"}


def test_a_failed_export_leaves_nothing(made: MadeSearch, tmp_path: Path) -> None:
    store = local_store(made.nodes.directory)
    with pytest.raises(ValueError, match="is a search and has only θ_init: export a level or a final training"):
        export_run(store, made.keys["search"], tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists: give"):
        export_run(store, made.keys["L01"], tmp_path / "there")
    # Phase: altered and deleted files
    shutil.copytree(made.nodes.directory, tmp_path / "runs")
    copied = local_store(tmp_path / "runs")
    path = copied.local.find(made.keys["L01"]) or Path()
    (path / "checkpoint.safetensors").write_bytes(b"altered")
    with pytest.raises(ValueError, match="checkpoint.safetensors was altered"):
        export_run(copied, made.keys["L01"], tmp_path / "out")
    shutil.rmtree(copied.local.find(made.keys["L00"]) or Path())
    with pytest.raises(LookupError, match="has the parent .*, which is neither"):
        export_run(copied, made.keys["L01"], tmp_path / "out")
    assert {one.name for one in tmp_path.iterdir()} == {"there", "runs"}


def _reseal(out: Path, change: Callable[[dict[str, object]], None]) -> None:
    manifest = json.loads((out / "bundle.json").read_text())
    change(manifest)
    (out / "bundle.json").write_text(json.dumps(manifest))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed network": (lambda d: (d / "model.safetensors").write_bytes(b"x"), "model.safetensors was altered"),
    "changed mask": (
        lambda d: (d / "signed_mask.safetensors").write_bytes(b"x"),
        "signed_mask.safetensors was altered",
    ),
    "linked network": (
        lambda d: ((d / "model.safetensors").rename(d / "m"), (d / "model.safetensors").symlink_to(d / "m")),
        "is a link; links are not allowed",
    ),
    "dead link": (
        lambda d: ((d / "model.safetensors").unlink(), (d / "model.safetensors").symlink_to("/nowhere")),
        "is a link; links are not allowed",
    ),
    "directory as network": (
        lambda d: ((d / "model.safetensors").unlink(), (d / "model.safetensors").mkdir()),
        "is missing, or not a file",
    ),
    "clone without Git LFS": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "model.safetensors is a Git LFS pointer instead of the file; run: git lfs pull",
    ),
    "requests a stranger": (lambda d: _reseal(d, lambda m: m.update(asked=["0" * 64])), "requests a run that it does"),
    "no list of requests": (lambda d: _reseal(d, lambda m: m.update(asked={"a": 1})), "is not a list of runs"),
    "odd request": (lambda d: _reseal(d, lambda m: m.update(asked=[["x"]])), "requests a run that it does not list"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_export_is_refused_and_changes_nothing(exported: Exported, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported.directory, out)
    change, message = HOSTILE[what]
    change(out)
    with pytest.raises(ValueError, match=message) as caught:
        list(import_bundle(local_store(tmp_path / "theirs"), out))
    assert "\n" not in str(caught.value) and not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model.safetensors", "has no model.safetensors, the network of this export: copy or download that file"),
        ("bundle.json", "has model.safetensors but no bundle.json: copy or download the whole exported directory"),
        ("nodes", "record.json is missing, or not a file"),
    ],
)
def test_half_an_export_says_what_is_missing(exported: Exported, tmp_path: Path, lost: str, message: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported.directory, out)
    (shutil.rmtree if (out / lost).is_dir() else os.remove)(out / lost)
    with pytest.raises(ValueError, match=message):
        _load_pyfunc(str(out))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("L00", ", dense: a level of the method aws, without pruning."),
        ("L01", ", with 80.0% of its prunable weights: a pruning level of the method aws."),
        ("signed_mask", r", with 80.0% of its prunable weights: a final training of kind signed\_mask."),
    ],
)
def test_the_model_card_says_what_the_run_is(made: MadeSearch, tmp_path: Path, name: str, sentence: str) -> None:
    out = export_run(LineageStore(None, made.nodes), made.keys[name], tmp_path / "out").directory
    text = (out / "README.md").read_text()
    assert f"`resnet8-w2` on digits{sentence}" in text
    assert ("pruned weights are zeros" in text) == (name != "L00")
    assert "pip install signed-tickets\n" in text and "| images | 1 × 8 × 8 (channels" in text


def test_the_model_card_has_commands_that_fit_the_network_and_the_place(exported: Exported) -> None:
    def card(model: dict[str, object], repo: str, error: float) -> str:
        """Return the card of the level, as if it had another network and another test error."""
        record = exported.shared.record
        metrics = tuple(
            replace(one, value=error) if one.name == "test_error_percent" else one for one in record.metrics
        )
        record = replace(record, metrics=metrics, code=record.code | {"dirty": "true"})
        determinants = {**exported.shared.determinants, "model": model}
        shared = replace(exported.shared, record=record, determinants=determinants, run_ids=("a" * 32,))
        return model_card(shared, exported.items, "mit", repo)

    # Phase: a network of a library, on the Hub
    text = card({"name": "timm:resnet18", "library": "timm 1.0"}, "me/ticket", 25.0)
    assert "pip install 'signed-tickets[hub,networks]'" in text and "tickets pull me/ticket" in text
    assert 'load_signed_mask("hf://me/ticket")' in text and 'load_network("hf://me/ticket")' in text
    assert "timm 1.0" in text and "with changes" in text and f"`{'a' * 32}`" in text and '"value": 0.75' in text
    # Phase: a network of a user's file, in a directory, after a training that diverged
    text = card({"name": "net.py:build", "sha256": "0" * 64}, "", float("nan"))
    assert "pip install signed-tickets\n" in text and "tickets lineage import THIS_DIRECTORY" in text
    assert 'load_network("THIS_DIRECTORY", trust_code=True)' in text and "Read it before you trust it" in text
    assert "model-index" not in text and "the mean (0.3053) and divide by the standard deviation (0.3762)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--licence", " "], "--licence is empty"),
        (["--to", "onnx", "--licence", "mit"], "--licence and --checkpoints need --to dir or --to hub, not --to onnx"),
        (["--to", "torch-prune", "--checkpoints"], "--licence and --checkpoints need"),
        (["--trust-code"], "--trust-code needs --to onnx: --to dir executes no file"),
        (["--out", "/dev/null/x"], "cannot write /dev/null/x: a part of the path is a file; give another place"),
        (["--to", "torch-prune", "--out", "/dev/null/x"], "cannot write /dev/null/x: a part of the path is a file"),
    ],
)
def test_an_option_without_effect_is_refused(
    made: MadeSearch, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export_command([made.keys["L01"], "--runs", str(made.nodes.directory), "--offline", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_without_the_network_the_rest_of_an_export_is_imported(
    made: MadeSearch, exported: Exported, tmp_path: Path
) -> None:
    shutil.copytree(exported.directory, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    theirs = local_store(tmp_path / "theirs")
    assert {one.outcome for one in import_bundle(theirs, tmp_path / "out")} == {"new"}
    with pytest.raises(ValueError, match="removed on purpose.*the exported directory has it as model.safetensors"):
        load_checkpoint(made.keys["L01"], local_dir=theirs.local.directory)
    assert load_signed_mask(made.keys["L01"], local_dir=theirs.local.directory).density < 1


def test_a_name_with_markdown_and_yaml_stays_text(made: MadeSearch, tmp_path: Path) -> None:
    """Names come from records of others. In a card they must be neither markup nor front matter."""
    from huggingface_hub import ModelCard

    name = 'x"\n---\nlicense: mit\n![a](http://evil)<script>|'
    runs = tmp_path / "runs"
    shutil.copytree(made.nodes.directory, runs)
    store = local_store(runs)
    level = store.local.load(made.keys["L00"])
    path = made.directory("L00")
    shutil.rmtree(store.local.find(level.key) or Path())
    record = LineageRecord(level.key, "level", name, parents=level.parents, nested_under=level.nested_under)

    def copy(directory: Path) -> None:
        for file in level.files:
            if file != "config.json":
                shutil.copy(path / file, directory)

    store.local.commit(record, copy)
    out = export_run(store, level.key, tmp_path / "out").directory
    text = (out / "README.md").read_text()
    data = ModelCard(text).data
    assert data.license == "other" and "<script>" not in re.sub(r"^---\n.*?\n---\n", "", text, flags=re.DOTALL)
    assert sha256_file(out / "model.safetensors") == level.files["checkpoint.safetensors"]


def test_a_bundle_of_an_earlier_version_is_imported(made: MadeSearch, tmp_path: Path) -> None:
    """Earlier bundles have the same manifest, and no file at the top."""
    store = local_store(made.nodes.directory)
    write_bundle(store, [find_node(store, made.keys["L01"])], tmp_path / "old", checkpoints=True)
    manifest = json.loads((tmp_path / "old" / "bundle.json").read_text())
    assert manifest["format"] == "harness.bundle/1" and set(manifest) == {"format", "asked", "nodes"}
    assert {path.name for path in (tmp_path / "old").iterdir()} == {"README.md", "SHA256SUMS", "bundle.json", "nodes"}
    del manifest["asked"]
    (tmp_path / "old" / "bundle.json").write_text(json.dumps(manifest))
    theirs = local_store(tmp_path / "theirs")
    assert {one.outcome for one in import_bundle(theirs, tmp_path / "old")} == {"new"}
    assert load_checkpoint(made.keys["L01"], local_dir=theirs.local.directory).level == 1
