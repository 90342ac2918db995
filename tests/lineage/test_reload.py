"""Test `load_signed_mask` and `load_checkpoint` by run ID, key and file."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from harness import load_checkpoint, load_signed_mask
from harness.lineage.store import LineageStore
from tests.lineage.lineage_story import checkpoint, commit_story, key_of, signed_mask


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_mask_and_checkpoint_by_run_id_key_and_file(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 2"])
    runs = store.local.directory
    copy = runs.parent / "copied.safetensors"
    shutil.copy(paths["level 2"] / "signed_mask.safetensors", copy)
    wanted = signed_mask(2)
    for given in (run_id, key_of("level 2"), copy, str(copy)):
        assert equal(load_signed_mask(given, store.tracking_uri, runs).signs, wanted.signs)
    shutil.rmtree(runs)  # from here on, only MLflow has the files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.tracking_uri))
    for given in (run_id, key_of("level 2")):
        loaded = load_signed_mask(given)
        assert equal(loaded.signs, wanted.signs) and equal(loaded.mask.tensors, wanted.mask.tensors)
    assert equal(load_checkpoint(run_id).params, checkpoint(2).params)
    assert not runs.exists()  # loading creates no local run


def test_mask_needs_no_checkpoint(store: LineageStore) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 1"])
    shutil.rmtree(store.local.directory)
    for path in (store.local.directory.parent / "mlruns").rglob("checkpoint.safetensors"):
        path.unlink()
    assert equal(load_signed_mask(run_id, store.tracking_uri).signs, signed_mask(1).signs)


def test_bad_run_ids_are_one_line_errors(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local)
    analysis = store.deliver(paths["lmc"])
    with pytest.raises(LookupError, match=r"has no signed_mask.safetensors; it has: config.json, curve.json"):
        load_signed_mask(analysis, store.tracking_uri)
    with pytest.raises(LookupError, match="no run '0{32}'"):
        load_signed_mask("0" * 32, store.tracking_uri)
    with pytest.raises(LookupError, match="is not a run ID"):
        load_signed_mask("L07", store.tracking_uri)
    with pytest.raises(LookupError, match=f"no run with key {key_of('x')[:16]}"):
        load_signed_mask(key_of("x"), store.tracking_uri, store.local.directory)
    client = MlflowClient(store.tracking_uri)
    client.update_run(analysis, status="RUNNING")
    with pytest.raises(ValueError, match="is not finished"):
        load_signed_mask(analysis, store.tracking_uri)
    monkeypatch.chdir(store.local.directory.parent / "runs")
    with pytest.raises(LookupError, match="no run"):
        load_signed_mask("0" * 32, "sqlite:///nowhere.db")


def test_altered_mask_is_refused(store: LineageStore) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 1"])
    for path in (store.local.directory.parent / "mlruns").rglob("signed_mask.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"signed_mask.safetensors was altered: .* \w+, but \w+ was recorded"):
        load_signed_mask(run_id, store.tracking_uri)


def test_swapped_masks_are_refused(store: LineageStore) -> None:
    """Replace a run's mask in MLflow by that of another run."""
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 1"])
    (theirs,) = (p for p in mask_files(store) if p.read_bytes() == (paths["level 0"] / p.name).read_bytes())
    (ours,) = (p for p in mask_files(store) if p.read_bytes() == (paths["level 1"] / p.name).read_bytes())
    shutil.copy(theirs, ours)
    with pytest.raises(ValueError, match="was altered"):
        load_signed_mask(run_id, store.tracking_uri)


def mask_files(store: LineageStore) -> list[Path]:
    """Return the masks of logged models. The run's artifacts have another copy for readers."""
    return list((store.local.directory.parent / "mlruns").glob("*/models/*/artifacts/signed_mask.safetensors"))


@pytest.mark.long
def test_importing_the_lineage_brings_no_mlflow() -> None:
    modules = ", ".join(f"harness.lineage.{name}" for name in ("store", "reload", "browse.find", "nodes.graph"))
    heavy = "{'mlflow', 'networkx', 'requests', 'torch'} & set(sys.modules)"
    script = f"import sys, harness, {modules}; sys.exit(', '.join({heavy}) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
