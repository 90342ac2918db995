"""Test levels as versions of a registered model, also after kills."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from harness import load_signed_mask
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof import verify
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.registry import alias_of, model_name
from tests.lineage.lineage_story import commit_story, key_of, network_files, signed_mask

NAME = "aws-digits-resnet20"


def versions(store: LineageStore) -> dict[str, str]:
    """Return the level's key for each alias.

    Also check that each run has one version.
    """
    client = MlflowClient(store.tracking_uri)
    found = client.search_model_versions(f"name = '{NAME}'")
    runs = [version.run_id for version in found]
    assert len(runs) == len(set(runs))
    keys = {version.version: store.load(version.run_id).key for version in found}
    return {alias: keys[version] for alias, version in client.get_registered_model(NAME).aliases.items()}


def other_search(store: LineageStore, level: int) -> Path:
    """Commit a level with equal seeds and different settings."""
    record = store.local.load(key_of(f"level {level}"))
    other = replace(record, key=key_of(f"other {level}"), tags={**record.tags, "settings": "abcdef012345"})
    store.local.commit(other, network_files(level))
    found = store.local.find(other.key)
    assert found is not None
    return found


def test_names_and_aliases() -> None:
    record = LineageRecord(
        "0" * 64, "level", "x", tags={"method": "aws", "data": "digits", "model": "resnet20", "level": "07"}
    )
    record.tags.update(init_seed="1", sgd_seed="1")
    assert (model_name(record), alias_of(record)) == (NAME, "s1-L07")
    record.tags.update(init_seed="1", sgd_seed="2", network="resnet20-w32")
    assert (model_name(record), alias_of(record)) == ("aws-digits-resnet20-w32", "i1-s2-L07")


def test_every_level_is_a_version_with_an_alias(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["lmc"])
    assert versions(store) == {f"s1-L{level:02d}": key_of(f"level {level}") for level in range(3)}
    shutil.rmtree(store.local.directory)
    for given in (f"models:/{NAME}@s1-L01", f"models:/{NAME}/2"):
        loaded = load_signed_mask(given, store.tracking_uri)
        assert all(torch.equal(loaded.signs[name], sign) for name, sign in signed_mask(1).signs.items())
        assert find_node(store, given).key == key_of("level 1")
    client = MlflowClient(store.tracking_uri)
    (model,) = client.get_run(store.run_id_of_model(f"models:/{NAME}@s1-L01")).outputs.model_outputs
    assert store.run_id_of_model(f"models:/{model.model_id}") == store.run_id_of_model(f"models:/{NAME}/2")
    # stock MLflow finds the same file by the alias
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.tracking_uri))
    from mlflow.artifacts import download_artifacts

    got = download_artifacts(f"models:/{NAME}@s1-L01/signed_mask.safetensors")
    assert store.find(key_of("level 1")) is not None
    assert Path(got).read_bytes() == store.local.open_file(key_of("level 1"), "signed_mask.safetensors").read_bytes()


def test_an_alias_stays_with_the_search_that_had_it_first(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 1"])
    store.deliver(other_search(store, 1))
    expected = {"s1-L00": "level 0", "s1-L01": "level 1", "s1-L01-abcdef": "other 1"}
    assert versions(store) == {alias: key_of(name) for alias, name in expected.items()}
    # a person moved it to the other search, which has it with a suffix
    MlflowClient(store.tracking_uri).set_registered_model_alias(NAME, "s1-L01", "3")
    (problem,) = [problem for problem in verify(store).problems if problem.check == "addresses"]
    assert problem.key == key_of("level 1") and "s1-L01 names version 3" in problem.what
    list(store.sync())
    expected["s1-L02"] = "level 2"
    assert versions(store) == {alias: key_of(name) for alias, name in expected.items()}
    # after its run was deleted, the level gets the same alias at its next delivery
    MlflowClient(store.tracking_uri).delete_run(store.run_id_of_model(f"models:/{NAME}@s1-L01"))
    store.deliver(paths["level 1"])
    assert store.load(store.run_id_of_model(f"models:/{NAME}@s1-L01")).key == key_of("level 1")


@pytest.mark.long
def test_a_kill_at_any_call_leaves_one_version_and_its_alias(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = commit_story(store.local)
    for level, name in enumerate(("create_registered_model", "create_model_version", "set_registered_model_alias")):
        original = getattr(MlflowClient, name)

        def killed(*arguments: Any, original: Any = original, **rest: Any) -> None:
            original(*arguments, **rest)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, killed)
            with pytest.raises(KeyboardInterrupt):
                store.deliver(paths[f"level {level}"])
        assert store.run_id_of(key_of(f"level {level}")) is None
        open_store(store.local.directory, store.tracking_uri, "test").deliver(paths[f"level {level}"])
    assert versions(store) == {f"s1-L{level:02d}": key_of(f"level {level}") for level in range(3)}


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        (f"models:/{NAME}@s1-L02", "has no alias 's1-L02'; there are: s1-L0"),
        (f"models:/{NAME}/9", "does not have it"),
        ("models:/aws-digits-resnet2@s1-L00", f"no registered model .*there are: {NAME}"),
        ("models:/m-" + "0" * 32, "no logged model"),
        ("models:/../x", "is not a model URI: give"),
    ],
)
def test_an_unknown_model_uri_is_a_one_line_error(store: LineageStore, uri: str, complaint: str) -> None:
    store.deliver(commit_story(store.local)["level 1"])
    with pytest.raises(LookupError, match=complaint):
        load_signed_mask(uri, store.tracking_uri)
