"""Test `verify` on faults with matching digests.

Exactly the right checks must report each fault.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.common.digest import sha256_json
from harness.config import REDRAWN, ModelConfig
from harness.lineage.nodes.record import Parent
from harness.lineage.proof import CHECKS, verify
from harness.lineage.proof.findings import Finding, Findings
from harness.lineage.proof.networks import Architecture
from harness.lineage.store import LineageStore
from harness.masks import Mask, SignedMask
from tests.lineage.proof.made import ARCHITECTURE, FOREIGN, found, local, make
from tests.made_search import Change, Draft

FINALS = ("signed_mask", "retrain", "mask")


def test_remarks_are_one_printable_line() -> None:
    """Remarks can quote damaged files, and terminals obey control characters."""
    findings, said = Findings(), "quoted: a\n\x1b[1m"
    run = SimpleNamespace(key="0" * 64, name="a run", run_id=None)
    findings.add(run, [Finding("files", False, said)])
    findings.note(run, said)
    findings.not_checked(run, said, ["pruned"])
    assert all(r"quoted: a\n\x1b[1m" in one.what for one in (*findings.problems, *findings.notes))
    assert len(findings.problems) == 1 and len(findings.notes) == 2


# ---------------------------------------------------------------------- nothing wrong


@pytest.mark.long
def test_an_intact_search_passes_every_check(store: LineageStore, data: Path) -> None:
    search = make(store.local.directory, data, finals=(*FINALS, "dense", "random_mask", "random_signs"))
    list(store.sync())
    findings = verify(store)
    assert findings.problems == [] and findings.notes == []
    assert set(findings.checked) == set(CHECKS), "some checks never ran"
    assert findings.num_nodes == len(search.keys)
    assert verify(store, search.keys["L01"]).num_nodes == 3, "a level with its ancestors"
    assert verify(store, search.keys["search"]).num_nodes == len(search.keys) - 1, "a search with its descendants"


@pytest.mark.long
def test_from_mlflow_alone(store: LineageStore, data: Path) -> None:
    search = make(store.local.directory, data)
    list(store.sync())
    shutil.rmtree(store.local.directory)
    findings = verify(store)
    assert findings.problems == [] and findings.num_nodes == len(search.keys)
    assert {"pruned", "signs", "start", "compared", "theta_init"} <= set(findings.checked)
    assert not store.local.directory.exists(), "verify left a local run behind"


def test_records_of_older_versions_give_notes_and_no_problems(tmp_path: Path, data: Path) -> None:
    """Verify runs as older versions recorded them.

    They lack determinants, α and per-image results.
    """

    def old(draft: Draft) -> None:
        draft.key, draft.determinants = sha256_json(draft.name), {}
        draft.metrics = [metric for metric in draft.metrics if metric.name != "alpha_mean"]
        draft.correct = {}
        del draft.config["data"]

    make(tmp_path, data, {"search": old, "L00": old, "L01": old, "L02": old}, finals=())
    findings = local(tmp_path)
    assert found(findings) == set()
    assert {note.what.split(" was")[0] for note in findings.notes} == {
        "its key",
        "its α",
    }
    assert findings.checked["pruned"] == 2 and findings.checked["start"] == 3, "the other checks ran"
    assert "correct" not in findings.checked


def test_another_torch_version_explains_another_theta_init(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, data, {"search": _other_theta_init}, finals=())
    assert ("theta_init", "made-up") in found(local(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    findings = local(tmp_path)
    assert ("theta_init", "made-up") not in found(findings)
    assert any("may draw other numbers" in note.what for note in findings.notes)


@pytest.mark.parametrize("name", ["mobilenet_v2_cifar", "efficientnet_b0_cifar"])
@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("former", [False, True])
def test_theta_init_is_redrawn_as_the_run_says(tmp_path: Path, data: Path, name: str, said: bool, former: bool) -> None:
    """Check that θ_init is redrawn by the rule that the run records.

    Runs without a recorded rule come from older versions. A network drawn by the other rule is a problem.
    """
    architecture = Architecture.built(name, num_classes=10, channels=1, image_size=8, width=8, former=former)

    def say(draft: Draft) -> None:
        if said:
            draft.determinants |= REDRAWN[name].determinants
            draft.config |= REDRAWN[name].determinants
            draft.tags |= {"initial_weights": "torch_default"}

    model = ModelConfig(name, width=8)
    make(tmp_path, data, dict.fromkeys(("search", "L00", "signed_mask"), say), ("signed_mask",), architecture, model)
    findings = local(tmp_path)
    wrong = {("theta_init", "made-up"), ("start", "signed_mask")}
    assert found(findings) == (wrong if said == former else set())
    named = [note.name.split()[0] for note in findings.notes if "drawn the other way" in note.what]
    assert sorted(named) == ([] if said else ["made-up", "signed_mask"])


def test_a_setting_in_the_key_but_not_in_the_record_is_a_problem(tmp_path: Path, data: Path) -> None:
    name, told = "mobilenet_v2_cifar", {"initial_weights": "torch_default"}
    architecture = Architecture.built(name, num_classes=10, channels=1, image_size=8, width=2)
    changes: dict[str, Change] = {"search": lambda draft: draft.determinants.update(told)}
    make(tmp_path, data, changes, (), architecture, ModelConfig(name, width=2))
    assert ("settings", "made-up") in found(local(tmp_path))


# ---------------------------------------------------------------------- faults whose digests are all right


def _other_theta_init(draft: Draft) -> None:
    """Store θ_init of another seed and record its digest."""
    other = ARCHITECTURE.theta_init(77)
    draft.params = other.params
    draft.tags["theta_init_digest"] = other.digest


def _undeclared_theta_init(draft: Draft) -> None:
    draft.params = ARCHITECTURE.theta_init(77).params


def _remask(draft: Draft, change: Callable[[Mask], None]) -> None:
    """Change a run's mask, and its weights, signs and count to match."""
    assert draft.signed_mask is not None and draft.params is not None
    mask = Mask({name: kept.clone() for name, kept in draft.signed_mask.mask.tensors.items()})
    change(mask)
    mask.apply_(draft.params)
    for name, kept in mask.tensors.items():  # revived weights get a nonzero value
        draft.params[name][kept & (draft.params[name] == 0)] = 0.5
    draft.signed_mask = SignedMask.of(draft.params, mask, draft.signed_mask.norm)
    draft.metrics = [metric for metric in draft.metrics if metric.name != "num_remaining"]


def _flip(kept: torch.Tensor, value: bool, index: int = 0) -> None:
    """Set one mask entry that differs from `value` to `value`."""
    where = (kept != value).nonzero()[index]
    kept[tuple(where)] = value


def _one_weight_too_many(draft: Draft) -> None:
    _remask(draft, lambda mask: _flip(mask.tensors["conv1.weight"], True))


def _one_weight_too_few(draft: Draft) -> None:
    _remask(draft, lambda mask: _flip(mask.tensors["conv1.weight"], False))


def _not_nested(draft: Draft) -> None:
    """Revive one weight and prune another; the count stays the same."""

    def change(mask: Mask) -> None:
        _flip(mask.tensors["conv1.weight"], True)
        _flip(mask.tensors["conv1.weight"], False)

    _remask(draft, change)


def _another_weight(draft: Draft) -> None:
    """Prune the right number of weights, but not the smallest.

    The mask stays inside the parent's mask.
    """
    assert draft.signed_mask is not None
    _remask(draft, lambda mask: _swap(mask.tensors["conv1.weight"]))


def _swap(kept: torch.Tensor) -> None:
    (dead,), (alive,) = (~kept).nonzero()[:1], kept.nonzero()[:1]
    kept[tuple(dead)], kept[tuple(alive)] = True, False


def _wrong_sign(draft: Draft) -> None:
    assert draft.signed_mask is not None
    sign = draft.signed_mask.signs["conv1.weight"]
    where = tuple(sign.nonzero()[0])
    sign[where] = -sign[where]


def _wrong_bias_sign(draft: Draft) -> None:
    assert draft.signed_mask is not None
    draft.signed_mask.signs["fc.bias"][0] *= -1


def _pruned_weight_lives(value: float) -> Change:
    def change(draft: Draft) -> None:
        assert draft.signed_mask is not None and draft.params is not None
        dead = (~draft.signed_mask.mask.tensors["conv1.weight"]).nonzero()[0]
        draft.params["conv1.weight"][tuple(dead)] = value

    return change


def _foreign_start(draft: Draft) -> None:
    draft.tags["start_digest"] = FOREIGN
    if "start" in draft.determinants:
        draft.determinants["start"] = FOREIGN


def _wrong_alpha(draft: Draft) -> None:
    first, *rest = draft.metrics
    assert first.name == "alpha_mean"
    draft.metrics = [type(first)(first.name, first.value + 1e-15, first.step, first.timestamp_ms), *rest]


def _alpha_in_plain_training(draft: Draft) -> None:
    draft.log("alpha_mean", 0.5, 1)


def _other_tag(name: str, value: str) -> Change:
    def change(draft: Draft) -> None:
        draft.tags[name] = value

    return change


def _sgd_seed_everywhere(draft: Draft) -> None:
    """Change the seed in tag and config.

    Only the drawn values reveal it.
    """
    draft.tags["sgd_seed"] = "5"
    draft.config["search"]["sgd_seed"] = 5


def _foreign_owner(draft: Draft) -> None:
    draft.owner = FOREIGN


def _other_key(draft: Draft) -> None:
    """Give the run a key that does not match its determinants."""
    draft.key = FOREIGN


def _wrong_fraction(draft: Draft) -> None:
    draft.config["search"]["pruning_fraction"] = 0.3


def _wrong_count_recorded(draft: Draft) -> None:
    draft.log("density", 0.5, draft.epochs)


def _no_parent(draft: Draft) -> None:
    draft.parents = (Parent(FOREIGN, "pruned-from"),)
    draft.determinants["parent"] = FOREIGN


def _parent_of_another_level(draft: Draft) -> None:
    draft.level = 3
    draft.config["level"] = draft.determinants["level"] = 3


def _other_norm(draft: Draft) -> None:
    assert draft.signed_mask is not None
    draft.signed_mask = SignedMask(draft.signed_mask.signs, draft.signed_mask.mask, frozenset({"fc.bias"}))


def _dense_mask(draft: Draft) -> None:
    _remask(draft, lambda mask: [kept.fill_(True) for kept in mask.tensors.values()] and None)


def _barrier(draft: Draft) -> None:
    draft.metrics = [type(m)(m.name, 3.0, m.step, m.timestamp_ms) if m.name == "barrier" else m for m in draft.metrics]


def _curve(draft: Draft) -> None:
    assert draft.curve is not None
    draft.curve["error_percent"] = [12.0, 30.0, 14.0]


def _other_image(name: str, *where: int) -> Change:
    """Return a change that marks one misclassified image as correct."""

    def change(draft: Draft) -> None:
        assert not draft.correct[name][where]
        draft.correct[name][where] = True

    return change


def _without_an_evaluation(draft: Draft) -> None:
    del draft.correct["test_recorded_bn"]


def _no_fraction(draft: Draft) -> None:
    del draft.config["search"]["pruning_fraction"]


# name of the fault: (run to plant it in, the change, expected problems)
CRAFTED: dict[str, tuple[str, Change, set[tuple[str, str]]]] = {
    "θ_init of another seed": ("search", _other_theta_init, {("theta_init", "made-up"), ("start", "L00")}),
    "θ_init is not the one recorded": ("search", _undeclared_theta_init, {("theta_init", "made-up"), ("start", "L00")}),
    "setting missing from the config": ("L01", _no_fraction, {("settings", "L01")}),
    "one weight too many": ("L01", _one_weight_too_many, {("count", "L01"), ("pruned", "L01"), ("start", "L01")}),
    "mask not nested": ("L02", _not_nested, {("nested", "L02"), ("pruned", "L02"), ("start", "L02")}),
    "mask of other magnitudes": ("L01", _another_weight, {("pruned", "L01"), ("start", "L01")}),
    "level 0 prunes": (
        "L00",
        _one_weight_too_few,
        {("count", "L00"), ("start", "L00")},
    ),
    "wrong sign": ("L01", _wrong_sign, {("signs", "L01")}),
    "wrong sign of a bias": ("L02", _wrong_bias_sign, {("signs", "L02")}),
    "pruned weight lives": ("L02", _pruned_weight_lives(1e-9), {("zeros", "L02")}),
    "pruned weight is −0.0": ("L02", _pruned_weight_lives(-0.0), {("zeros", "L02")}),
    "level from a foreign start": ("L01", _foreign_start, {("start", "L01")}),
    "final training from a foreign start": ("signed_mask", _foreign_start, {("start", "signed_mask")}),
    "wrong α": ("L01", _wrong_alpha, {("alpha", "L01")}),
    "α in a final training": ("retrain", _alpha_in_plain_training, {("alpha", "retrain")}),
    "wrong seed in a tag": ("L01", _other_tag("sgd_seed", "5"), {("seeds", "L01")}),
    "wrong init seed of a training": ("mask", _other_tag("init_seed", "5"), {("seeds", "mask")}),
    "wrong sgd seed in tag and config": ("L02", _sgd_seed_everywhere, {("seeds", "L02"), ("alpha", "L02")}),
    "another method in a tag": ("L01", _other_tag("method", "lrr"), {("settings", "L01"), ("alpha", "L01")}),
    "other data in a tag": ("L01", _other_tag("data_digest", FOREIGN), {("settings", "L01"), ("data", "digits")}),
    "key of something else": ("mask", _other_key, {("key", "mask")}),
    "files of another run": ("L01", _foreign_owner, {("owner", "L01")}),
    "another density recorded": ("L01", _wrong_count_recorded, {("owner", "L01")}),
    "another fraction in the config": (
        "L01",
        _wrong_fraction,
        {("settings", "L01"), ("count", "L01"), ("pruned", "L01")},
    ),
    "missing parent": ("L02", _no_parent, {("parents", "L02")}),
    "parent of another level": ("L02", _parent_of_another_level, {("parents", "L02"), ("alpha", "L02")}),
    "mask names other norm parameters": ("L02", _other_norm, {("parameters", "L02")}),
    "training without its ticket's mask": ("mask", _dense_mask, {("mask", "mask")}),
    "barrier does not follow from the curve": ("lmc", _barrier, {("compared", "lmc:")}),
    "one image more was right": ("L01", _other_image("test", 3), {("correct", "L01")}),
    "one image more was right with recorded statistics": (
        "L02",
        _other_image("test_recorded_bn", 62),
        {("correct", "L02")},
    ),
    "one image more was right in a final training": ("mask", _other_image("test", 0), {("correct", "mask")}),
    "one image more was right at one α": ("lmc", _other_image("points", 1, 5), {("correct", "lmc:")}),
    "images of one evaluation are missing": ("L01", _without_an_evaluation, {("correct", "L01")}),
    "curve does not follow from the metrics": ("lmc", _curve, {("compared", "lmc:")}),
}


@pytest.mark.parametrize("fault", CRAFTED)
def test_a_fault_with_right_digests(tmp_path: Path, data: Path, fault: str) -> None:
    node, change, expected = CRAFTED[fault]
    make(tmp_path, data, {node: change})
    findings = local(tmp_path)
    assert found(findings) == expected
    assert all(problem.advice and problem.what for problem in findings.problems)


def test_a_cycle_of_parents_is_reported(tmp_path: Path, data: Path) -> None:
    keys = {name: sha256_json(name) for name in ("L01", "L02")}

    def forge(name: str, parent: str) -> Change:
        def change(draft: Draft) -> None:
            draft.key, draft.determinants = keys[name], {}
            draft.parents = (Parent(keys[parent], "pruned-from"),)

        return change

    make(tmp_path, data, {"L01": forge("L01", "L02"), "L02": forge("L02", "L01")}, finals=())
    problems = [problem for problem in local(tmp_path).problems if problem.check == "cycle"]
    assert len(problems) == 1 and "L01" in problems[0].what and "L02" in problems[0].what
