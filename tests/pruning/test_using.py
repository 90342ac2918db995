"""Test the uses of a ticket.

Tests cover kinds of final training, sources of signs, initialisations, other data sets, and pretrained networks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.common.digest import sha256_tensors
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.proof import Findings, verify
from harness.lineage.store import open_store
from harness.masks import SignedMask
from harness.pruning import prune_to
from harness.runs.run import FinishedRun
from recipes.pretrained_ticket import PretrainedOptions
from recipes.pretrained_ticket import config as pretrained_ticket
from tests.pruning.searching import proved, resolved, tag


@pytest.fixture(scope="module")
def found(experiment: Experiment) -> SearchResult:
    return search(experiment.using("lrr"))


def used(experiment: Experiment, found: SearchResult, **options: object) -> FinishedRun:
    trial = Trial(**({"kind": "signed_mask", "init_seed": 2, "sgd_seed": 1} | options))  # type: ignore[arg-type]
    return final_training(experiment.using("lrr"), trial, found.ticket)


def holds(experiment: Experiment, node: FinishedRun, notes: int = 0) -> Findings:
    findings = verify(open_store(experiment.config.runs, offline=True), node.key)
    assert findings.problems == [] and len(findings.notes) == notes
    return findings


@pytest.mark.parametrize("kind", ["signed_mask", "retrain", "signed_mask_norm"])
def test_signs_taken_right_after_pruning(experiment: Experiment, found: SearchResult, kind: str) -> None:
    node = used(experiment, found, kind=kind, signs="pruned")
    before = found.levels[1].checkpoint.params
    theta = {name: tensor.clone() for name, tensor in before.items()}
    found.ticket.mask.apply_(theta)
    expected = theta
    if kind != "retrain":
        expected = SignedMask.of(theta, found.ticket.mask, found.ticket.signed_mask.norm).signed(
            experiment.theta_init(2).params
        )
    if kind == "signed_mask_norm":
        expected |= {name: theta[name] for name in found.ticket.signed_mask.norm}
    assert tag(node, "start_digest") == sha256_tensors(expected)
    usual = used(experiment, found, kind=kind)
    assert node.key != usual.key and tag(node, "settings") != tag(usual, "settings"), "not trials of one setting"
    assert holds(experiment, node).checked["start"] == 4, "two levels above the ticket, the ticket, the training"


@pytest.mark.parametrize(
    "kind", ["dense", "retrain", "signed_mask", "mask", "signed_mask_norm", "signed_mask_norm_const"]
)
def test_every_kind_starts_as_documented(experiment: Experiment, found: SearchResult, kind: str) -> None:
    """Compare the start of each kind with the table in docs/methods.md."""
    theta, fresh = found.ticket.checkpoint.params, experiment.theta_init(2).params
    expected = {}
    for name, own in fresh.items():
        kept = found.ticket.mask.tensors.get(name, torch.ones_like(own))
        magnitude, is_norm = own.abs(), "bn" in name
        if kind == "signed_mask_norm_const" and is_norm:
            magnitude = torch.full_like(own, 1.0 if name.endswith("weight") else 0.1)
        if kind == "retrain" or (kind == "signed_mask_norm" and is_norm):
            value = theta[name]
        elif kind in ("dense", "mask") or (is_norm and kind != "signed_mask_norm_const"):
            value = own
        else:
            assert theta[name][kept.bool()].all(), "an exact zero would keep its initial value"
            value = magnitude * theta[name].sign()
        expected[name] = value + 0.0 if kind == "dense" else value * kept + 0.0
    assert tag(used(experiment, found, kind=kind), "start_digest") == sha256_tensors(expected)


def test_the_searchs_own_initialisation_requires_same_init(experiment: Experiment, found: SearchResult) -> None:
    own = experiment.using("lrr")
    with pytest.raises(ValueError, match="init_seed 1 is the search's own.*--same-init"):
        final_training(own, Trial("signed_mask", 1, 1), found.ticket)
    node = final_training(own, Trial("signed_mask", 1, 1), found.ticket, same_init=True)
    expected = found.ticket.signed_mask.signed(found.theta_init.params)
    assert tag(node, "start_digest") == sha256_tensors(expected) and tag(node, "init_seed") == "1"
    # retrain draws no θ_init, so init_seed is not in its key
    again = [final_training(own, Trial("retrain", seed, 1), found.ticket) for seed in (1, 2)]
    assert again[0].key == again[1].key


def test_exact_zeros_keep_their_initial_value_and_are_counted(experiment: Experiment, tmp_path: Path) -> None:
    """Use a ticket with exact zeros and negative norm scales.

    The zeros are in kept weights, biases and norm layers.
    """
    # Phase: a search of 0 epochs from a file with zeros
    state = experiment.theta_init(7).state_dict
    state["conv1.weight"].view(-1)[:3] = 0
    state["fc.bias"][:] = 1
    state["fc.bias"][4] = 0
    state["bn1.weight"][:] = -1
    for name in experiment.partition.norm:
        if name.endswith("bias"):
            state[name][:] = -1
    state["bn1.bias"][0] = 0
    save_file(state, path := tmp_path / "zeros.safetensors")
    own = experiment.using("lrr", initialisation=resolved(experiment, str(path)), num_levels=0, warmup_epochs=0)
    ticket = search(own).ticket
    assert ticket.metric("exact_zeros_kept") == 3 + 1 + 1
    assert ticket.metric("negative_norm_scales") == len(state["bn1.weight"])
    # Phase: the start of a final training, where zeros keep the fresh value
    fresh = experiment.theta_init(2).params
    expected = {}
    for name, tensor in fresh.items():
        signed = torch.where(state[name] == 0, tensor, tensor.abs() * state[name].sign())
        expected[name] = (tensor if name in experiment.partition.norm else signed) + 0.0
    node = final_training(own, Trial("signed_mask", 2, 1), ticket)
    assert tag(node, "start_digest") == sha256_tensors(expected)


def test_a_mask_of_torch_prune_becomes_a_mask(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The density in the note must give the mask of the file, whose other weights are zeros."""
    # Phase: a file as torch.nn.utils.prune leaves it, under a name of Lightning, beside averaged weights
    caplog.set_level("INFO")
    state = experiment.theta_init(7).state_dict
    masks = {name: (torch.rand(state[name].shape) < 0.3).float() for name in experiment.partition.prunable}
    for name, mask in masks.items():
        state |= {f"{name}_orig": state.pop(name), f"{name}_mask": mask}
    held = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"weights": held, "ema": {name: tensor + 1 for name, tensor in held.items()}}, tmp_path / "net.ckpt")
    # Phase: the note, and one pruning with its density
    begun = resolved(experiment, f"{tmp_path / 'net.ckpt'}:weights")
    experiment.theta_init(1, begun)
    density = re.search(r"net.ckpt:weights: these zeros are values, .* --density ([\d.]+)$", caplog.messages[-1])
    assert density and "without 'model.'" in caplog.text
    own = experiment.using("lrr", initialisation=begun, num_levels=1, warmup_epochs=0, level_epochs=0)
    ticket = search(own.using("lrr", densities=(float(density[1]),))).ticket
    assert {name: mask.float() for name, mask in ticket.mask.tensors.items()}.keys() == masks.keys()
    assert all(torch.equal(ticket.mask.tensors[name].float(), mask) for name, mask in masks.items())


def test_files_directories_and_keys_are_resolved(experiment: Experiment, tmp_path: Path) -> None:
    state = experiment.theta_init(7).state_dict
    save_file(state, tmp_path / "model.safetensors")
    files = [str(tmp_path), f"{tmp_path}/model.safetensors"]
    assert {resolved(experiment, text).digest for text in files} == {sha256_tensors(state)}
    with pytest.raises(ValueError, match=r"has no tensors under 'ema'; it has names that begin with .*conv1"):
        resolved(experiment, f"{tmp_path}:ema")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has none of model.safetensors.index.json"):
        resolved(experiment, f"{tmp_path}/empty")
    for text in ("none.ckpt", "none.safetensors.index.json", "none.pth:ema"):
        with pytest.raises(FileNotFoundError, match=f"no file {text}; --initialisation takes"):
            resolved(experiment, text)
    save_file({"conv1.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: the file does not fit the network: the file has no"):
        experiment.theta_init(1, resolved(experiment, f"{tmp_path}/other.safetensors"))


def test_level_0_has_no_signs_from_pruning(experiment: Experiment, found: SearchResult) -> None:
    trial = Trial("signed_mask", 2, 1, signs="pruned")
    with pytest.raises(ValueError, match="was not pruned from another level"):
        final_training(experiment.using("lrr"), trial, found.levels[0])


@pytest.mark.parametrize(
    ("which", "signed"),
    [("both", {"fc.weight", "fc.bias"}), ("biases", set()), ("classifier", {"fc.weight", "fc.bias"}), ("none", set())],
)
def test_signs_of_biases_and_classifier_are_optional(
    experiment: Experiment, found: SearchResult, which: str, signed: set
) -> None:
    """Check which unpruned parameters get signs.

    In this network only the classifier has biases. They count as part of the classifier.
    """
    node = used(experiment, found, unpruned_signs=which)
    fresh = experiment.theta_init(2).params
    expected = {name: tensor.clone() for name, tensor in fresh.items()}
    for name, sign in found.ticket.signed_mask.signs.items():
        if name in found.ticket.mask.tensors or name in signed:
            expected[name] = fresh[name].abs() * sign + 0.0
    assert tag(node, "start_digest") == sha256_tensors(expected)
    holds(experiment, node)


@pytest.mark.parametrize("scheme", ["kaiming_normal", "constant"])
def test_other_initialisations_can_be_used(experiment: Experiment, found: SearchResult, scheme: str) -> None:
    node = used(experiment, found, initialisation=scheme)
    expected = found.ticket.signed_mask.signed(experiment.theta_init(2, scheme).params)
    assert tag(node, "start_digest") == sha256_tensors(expected)
    holds(experiment, node)
    begun = search(experiment.using("lrr", initialisation=scheme, num_levels=0, warmup_epochs=0))
    assert begun.theta_init.digest == experiment.theta_init(1, scheme).digest != found.theta_init.digest
    assert proved(experiment, begun.ticket).problems == []


def test_a_run_can_be_the_initialisation(experiment: Experiment, found: SearchResult) -> None:
    """Use the warm-up level of a search as initialisation."""
    warm = found.levels[0]
    node = used(experiment, found, kind="mask", initialisation=resolved(experiment, warm.key[:12]))
    expected = {name: tensor.clone() for name, tensor in warm.checkpoint.params.items()}
    found.ticket.mask.apply_(expected)
    assert tag(node, "start_digest") == sha256_tensors(expected)
    assert node.record is not None
    assert [(p.key, p.relation) for p in node.record.parents] == [
        (found.ticket.key, "masked-by"),
        (warm.key, "initialised-from"),
    ]
    holds(experiment, node)
    dense = used(experiment, found, kind="dense", initialisation=resolved(experiment, warm.key))
    assert tag(dense, "start_digest") == sha256_tensors(warm.checkpoint.params)
    holds(experiment, dense)
    with pytest.raises(LookupError, match=r"--initialisation takes network, kaiming_normal, constant, a run ID or a"):
        resolved(experiment, "f" * 20)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.pth"):
        resolved(experiment, "nowhere.pth")


def test_a_ticket_of_another_data_set_can_be_used(
    experiment: Experiment, found: SearchResult, other_data: Experiment
) -> None:
    ticket = other_data.archive.load(found.ticket.key, fitting=False)
    node = final_training(other_data, Trial("signed_mask", 2, 1), ticket)
    fresh = other_data.theta_init(2).params
    assert fresh["fc.weight"].shape[0] == 12
    signs = found.ticket.signed_mask.signs
    expected = {
        name: tensor if name.startswith("fc.") or name in found.ticket.signed_mask.norm else tensor.abs() * signs[name]
        for name, tensor in fresh.items()
    }
    assert tag(node, "start_digest") == sha256_tensors({name: t + 0.0 for name, t in expected.items()})
    assert node.mask.equal(found.ticket.mask) and node.record is not None and node.record.config["transferred"]
    holds(experiment, node)
    with pytest.raises(ValueError, match="retrain continues from the ticket's weights"):
        final_training(other_data, Trial("retrain", 2, 1), ticket)
    with pytest.raises(ValueError, match="fc.weight is .* in the network and"):
        other_data.archive.load(found.ticket.key)


def test_a_signed_mask_can_come_from_a_pretrained_network(experiment: Experiment, tmp_path: Path) -> None:
    """Prune a pretrained network in one shot, without training.

    Its signed mask is used in final trainings. Then the file of the network is deleted. The ticket must remain usable,
    and verification adds a note.
    """
    # Phase: search from the file of the pretrained network
    trained = experiment.theta_init(5)
    path = tmp_path / "stranger.pth"
    torch.save(trained.state_dict, path)
    own = experiment.config
    settings = PretrainedOptions(
        str(path), own.data, own.model, density=0.1, final=own.final, global_batch_size=256, runs=own.runs
    )
    other = Experiment(experiment.world, experiment.store, pretrained_ticket(settings), resolved(experiment, str(path)))
    found = search(other)
    # Phase: compare mask and signs with a direct pruning
    dense = {name: torch.ones_like(t, dtype=torch.bool) for name, t in found.levels[0].mask.tensors.items()}
    expected = prune_to(trained.params, replace(found.ticket.mask, tensors=dense), round(0.1 * found.ticket.mask.numel))
    assert found.ticket.mask.equal(expected)
    assert torch.equal(
        found.ticket.signed_mask.signs["conv1.weight"],
        (trained.params["conv1.weight"].sign() * expected.tensors["conv1.weight"]).to(torch.int8),
    )
    assert found.ticket.checkpoint.epochs == 0
    findings = proved(other, found.ticket)
    assert findings.problems == [] and findings.notes == []
    node = final_training(other, Trial("signed_mask", 2, 1), found.ticket)
    holds(other, node)
    # Phase: delete the file, then train and verify again
    path.unlink()
    elsewhere = Experiment(experiment.world, experiment.store, other.config)
    final_training(elsewhere, Trial("mask", 2, 1), elsewhere.archive.load(found.ticket.key))
    findings = proved(other, found.ticket)
    assert findings.problems == [] and "is missing or changed" in findings.notes[0].what
