"""Test SignPruner.log: a loop of a user in the lineage, and the proofs of `verify` about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import lineage, load_checkpoint, load_network, load_signed_mask
from harness.common.files import read_json
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.nodes.record import Parent
from harness.lineage.tracking.registry import alias_of, model_name
from harness.masks import Mask, SignedMask
from harness.pruner import logged
from harness.pruning import METHODS
from tests.pruning.test_sign_pruner import BATCHES, DENSITIES, network, sign_pruner, usual


def searched(runs: Path, method: str = "aws", *, each: bool = True) -> list[str]:
    """Search with SignPruner, log `each` level or the last one alone, and return the keys."""
    model, keys = network(), []
    pruner = sign_pruner(model, method, **({"rewind_steps": 2} if method == "wr" else {}))
    levels = {"num_levels": 2} if method == "dense" else {"densities": DENSITIES}
    for level in pruner.levels(**levels, batches=BATCHES):
        usual(pruner, model)
        if each:
            told = {"test_error_percent": 12.0 - level.number}
            keys.append(pruner.log(name="net mine", parameters={"lr": 0.05}, metrics=told, runs=runs))
    return keys or [pruner.log(runs=runs)]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"gem_miner"}))
def test_verify_proves_masks_and_starts_of_a_loop(tmp_path: Path, method: str) -> None:
    keys = searched(tmp_path, method)
    store = lineage.open_store(tmp_path, offline=True)
    findings = lineage.verify(store)
    assert not findings.problems and findings.num_nodes == len(keys) + 1
    assert "its training was not checked here" in findings.notes[0].what or method in ("snip", "synflow")
    masks = 0 if method == "dense" else 1 if method == "snip" else 0 if method == "synflow" else 2
    assert (findings.checked["pruned"], findings.checked["signs"]) == (masks, len(keys))
    assert findings.checked["start"] >= len(keys) - 1
    assert [run.key for run in lineage.ancestors(store, keys[-1])][1:] == keys[:-1]
    last = store.local.load(keys[-1])
    assert last.last_metrics()["test_error_percent"] == 10.0 and last.tags["made_by"] == "own_loop"
    assert last.name.startswith("L02 d") and last.config["own_loop"]["parameters"] == {"lr": 0.05}


def test_the_key_gives_mask_and_network_back(tmp_path: Path) -> None:
    keys = searched(tmp_path)
    assert keys == searched(tmp_path), "equal results have equal keys"
    mask, held = load_signed_mask(keys[-1], local_dir=tmp_path), load_checkpoint(keys[-1], local_dir=tmp_path)
    assert mask.density == 65 / 216 and held.level == 2
    held.load_into_(network())
    with pytest.raises(ValueError, match=r"SignPruner in a loop of its own.*load_checkpoint\(key\)\.load_into_"):
        load_network(keys[-1], local_dir=tmp_path)
    with pytest.raises(TypeError, match="model takes a network .* to fill, got OrderedDict"):
        load_network(keys[-1], local_dir=tmp_path, model=network().state_dict())
    with pytest.raises(TypeError, match="to fill, got type"):
        load_network(keys[-1], local_dir=tmp_path, model=torch.nn.Sequential)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="trust_code is 'no'; give True or False"):
        load_network(keys[-1], local_dir=tmp_path, trust_code="no")
    model = load_network(keys[-1], local_dir=tmp_path, model=network())
    assert not model.training and all(torch.equal(param, held.params[name]) for name, param in model.named_parameters())
    title = lineage.open_store(tmp_path, offline=True).local.load(keys[-1]).name
    assert repr(mask).endswith(f"level 2, method aws, run {title} (key {keys[-1][:12]}…)")
    record = lineage.open_store(tmp_path, offline=True).local.load(keys[-1])
    assert (model_name(record), alias_of(record)) == ("aws-net-mine", "s3-L02")
    directory = lineage.open_store(tmp_path, offline=True).local.find(keys[-1])
    assert directory is not None and read_json(directory / DETERMINANTS)["steps"] == len(BATCHES)


def test_a_ticket_alone_says_that_its_mask_is_unproved(tmp_path: Path) -> None:
    searched(tmp_path, each=False)
    findings = lineage.verify(lineage.open_store(tmp_path, offline=True))
    assert not findings.problems
    assert [note.what for note in findings.notes] == [
        "its mask, start and training were not checked here: the level before it is not logged"
    ]


def test_a_mask_that_no_method_chose_is_found(tmp_path: Path) -> None:
    """Log levels with a mask that revives weights, and with one of smaller weights."""
    first, second, _ = searched(tmp_path)
    store = lineage.open_store(tmp_path, offline=True)
    record = store.local.load(second)
    held = load_checkpoint(second, local_dir=tmp_path)
    kept = load_signed_mask(second, local_dir=tmp_path).mask.tensors["0.weight"]
    params = held.params | {"0.weight": torch.where(kept.flip(0), held.params["0.weight"] + 1.0, 0.0)}
    forged = SignedMask.of(params, Mask({"0.weight": kept.flip(0)}), ["1.weight", "1.bias"])
    own, root = record.config["own_loop"], record.nested_under
    start = record.tags["start_digest"]
    fields = {"signed_mask": forged, "start_digest": start, "steps": 3, "metrics": {}}
    fields |= {"network": replace(held, params=params)}
    made = logged.level_record("forged", own, root, Parent(first, "pruned-from"), 1, **fields)
    logged.commit_level(tmp_path, *made, fields["network"], forged, {})
    problems = lineage.verify(store).problems
    assert {problem.name for problem in problems} == {made[0].name}
    assert {"pruned", "start"} == {problem.check for problem in problems}


def test_a_resumed_loop_continues_its_lineage(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole")
    model = network()
    pruner, keys = sign_pruner(model), []
    for level in pruner.levels(DENSITIES):
        usual(pruner, model)
        keys.append(pruner.log(name="net mine", parameters={"lr": 0.05}, runs=tmp_path / "runs"))
        if level.number == 1:
            break
    again = sign_pruner(model)
    again.load_state_dict(pruner.state_dict())
    for level in again.levels(DENSITIES):
        if level.number == 2:
            usual(again, model)
            keys.append(again.log(name="net mine", parameters={"lr": 0.05}, runs=tmp_path / "runs"))
    assert keys == whole
    assert not lineage.verify(lineage.open_store(tmp_path / "runs", offline=True)).problems


def test_misuse_of_log_says_what_to_do(tmp_path: Path) -> None:
    model = network()
    pruner = sign_pruner(model)
    with pytest.raises(RuntimeError, match="before a level was trained"):
        pruner.log(runs=tmp_path)
    with pytest.raises(RuntimeError, match=r"changed after pruner\.log\(\) in level 0; call it at the end"):
        for _ in pruner.levels([0.5]):
            with pytest.raises(ValueError, match="parameters must be JSON values"):
                pruner.log(parameters={"seed": object()}, runs=tmp_path)
            with pytest.raises(ValueError, match="metrics has density"):
                pruner.log(metrics={"density": 0.5}, runs=tmp_path)
            pruner.log(runs=tmp_path)
            usual(pruner, model)
