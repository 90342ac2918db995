"""Plant a fault for every place in the proofs that makes a finding.

`tests/lineage/proof/sites.py` lists the places from the source. A new check or a new row of a compared table needs a
fault in `FAULTS`. Until then `test_every_place_has_a_planted_fault` fails.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.lineage.mlmodel import mlmodel
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, write_absent_files
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import LocalNodes, read_record, read_sums
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK
from harness.lineage.proof import CHECKS, Findings, networks, verify
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.delivery import run_tags
from harness.masks import Mask, SignedMask
from tests.lineage.proof import test_verify as drafts
from tests.lineage.proof.made import FOREIGN, local, make
from tests.lineage.proof.sites import all_places, record_places
from tests.lineage.proof.test_stored import copy_of, flip, forge_digests
from tests.made_search import Change, Draft, MadeSearch
from tests.pruning.test_sign_pruner_log import searched


@dataclass
class Bench:
    """Directories and a whole search, for one planted fault."""

    runs: Path
    data: Path
    whole: MadeSearch
    patch: pytest.MonkeyPatch


Plant = Callable[[Bench], Findings]
NEVER: dict[str, str] = {}
"""Places that report no fault, and why."""
ELSEWHERE: dict[str, str] = {
    "copies.check_contents contents": "tests/lineage/test_changed_store.py::test_other_bits_of_one_key_are_kept_apart",
}
"""Places whose fault another test plants: file::test. Prefer a row of FAULTS."""


# ---------------------------------------------------------------------- faults in tensors and settings


def crafted(finals: tuple[str, ...] = (), **changes: Change | Sequence[Change]) -> Plant:
    """Change drafts of a search before they are committed, by the run's short name. All digests are right."""

    def together(each: Change | Sequence[Change]) -> Change:
        return lambda draft: [change(draft) for change in ([each] if callable(each) else each)] and None

    def plant(bench: Bench) -> Findings:
        make(bench.runs, bench.data, {name: together(each) for name, each in changes.items()}, finals)
        return local(bench.runs)

    return plant


def of_method(name: str) -> Change:
    """Claim another method, in the tag and in the settings."""

    def change(draft: Draft) -> None:
        draft.tags["method"] = draft.config["search"]["method"] = name

    return change


def without_tensors(draft: Draft) -> None:
    """Drop a bias from a checkpoint and a tensor from a mask, and name other norm parameters."""
    assert draft.params is not None and draft.signed_mask is not None
    draft.params = {name: tensor for name, tensor in draft.params.items() if name != "fc.bias"}
    kept = {name: mask for name, mask in draft.signed_mask.mask.tensors.items() if name != "conv1.weight"}
    draft.signed_mask = SignedMask(draft.signed_mask.signs, Mask(kept), frozenset({"fc.bias"}))


def own_loop(**changes: Callable[[Path, dict[str, str]], None]) -> Plant:
    """Log a search of `SignPruner`, and change the directories of its runs: search, L00, L01 or L02."""

    def plant(bench: Bench) -> Findings:
        searched(bench.runs)
        for directory in LocalNodes(bench.runs).directories():
            name = "search" if directory.name.startswith("search") else read_record(directory).name[:3]
            if name in changes:
                changes[name](directory, {})
        return local(bench.runs)

    return plant


# ---------------------------------------------------------------------- faults in files

Edit = Callable[[dict[str, Any]], object]


def edited(**changes: Callable[[Path, dict[str, str]], object]) -> Plant:
    """Change the directories of runs of a whole search, by their short names."""

    def plant(bench: Bench) -> Findings:
        directory = copy_of(bench.whole, bench.runs)
        for name, change in changes.items():
            change(directory(name), bench.whole.keys)
        return local(bench.runs)

    return plant


def altered(record: Edit | None = None, **files: Edit) -> Callable[[Path, dict[str, str]], None]:
    """Change record.json and other JSON files of a run, and make all digests agree with them."""

    def alter(directory: Path, keys: dict[str, str]) -> None:
        for name, change in (files | ({"record": record} if record else {})).items():
            path = directory / f"{name}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        forge_digests(directory)

    return alter


def both(*edits: Edit) -> Edit:
    """Make several changes."""
    return lambda content: [edit(content) for edit in edits]


def tags(**values: str) -> Edit:
    return lambda record: record["tags"].update(values)


def from_parents(**named: str) -> Callable[[Path, dict[str, str]], None]:
    """Give a run other parents: relation by the short name of each; "FOREIGN" is nowhere."""

    def alter(directory: Path, keys: dict[str, str]) -> None:
        known = keys | {"FOREIGN": FOREIGN}
        found = [{"key": known[name], "relation": relation.replace("_", "-")} for name, relation in named.items()]
        altered(lambda record: record.update(parents=found))(directory, keys)

    return alter


def asks(question: str, edit: Edit = lambda record: None, **named: str) -> Plant:
    """Let the comparison of the whole search ask another question of other runs."""

    def change(directory: Path, keys: dict[str, str]) -> None:
        altered(both(tags(question=question), edit))(directory, keys)
        from_parents(**named)(directory, keys)

    return edited(lmc=change)


def level_rows(known: dict[str, Any]) -> None:
    """Let every determinant of a level contradict its record."""
    known |= {"kind": "training", "data": FOREIGN, "precision": "bf16", "float32_matmul_precision": "high"}
    known |= {"compile": "default"}
    known |= {"optim": {"lr": 9.0}, "world_size": 2, "dtype": "float64", "level": 5, "root": FOREIGN}
    known |= {"parent": FOREIGN, "schedule": {"epochs": 7}, "pruning_fraction": 0.5, "again": True}
    known |= {"pruning": {"scope": "layer"}, "initial_weights": "torch_default"}
    known["spec"] |= {"name": "mnist"}
    known["model"] = {"name": "mobilenet_v2_cifar", "width": 4}


def another_figure(name: str) -> Edit:
    """Give one metric of a comparison another value."""

    def change(record: dict[str, Any]) -> None:
        (metric,) = (metric for metric in record["metrics"] if metric[0] == name)
        metric[1] += 1

    return change


def no_answers(directory: Path, _: object) -> None:
    (directory / CORRECT).write_bytes(b"no answers")
    forge_digests(directory)


def another_file_deleted(directory: Path, _: object) -> None:
    write_absent_files(directory, {CHECKPOINT: AbsentFile(FOREIGN, 1, "2026-11-25T09:00:00+00:00", "made up")})
    (directory / CHECKPOINT).unlink()


def broken_list(directory: Path, _: object) -> None:
    (directory / ABSENT_FILES).write_text("{}")
    flip(directory / SIGNED_MASK)


def of_data(change: Callable[[Path], object]) -> Plant:
    """Change the prepared data of a whole search."""

    def plant(bench: Bench) -> Findings:
        shutil.copytree(bench.data, bench.runs / "data")
        change(bench.runs / "data" / "digits")
        return verify(open_store(bench.whole.nodes.directory, offline=True), data_directory=bench.runs / "data")

    return plant


def other_data(home: Path) -> None:
    flip(home / "test.safetensors")
    content = json.loads((home / "train.json").read_text())
    (home / "train.json").write_text(json.dumps(content | {"content_digest": FOREIGN}))


# ---------------------------------------------------------------------- faults in MLflow


class Answers:
    """A store whose tracking server has every run of a search, as delivered or with faults."""

    tracking_uri = "made up"

    def __init__(self, runs: Path, edit: Callable[[RunSummary], RunSummary], digests: dict[str, str | None]) -> None:
        self.local, self.edit, self.digests = LocalNodes(runs), edit, digests
        self.server = SimpleNamespace(readable=lambda: False, talking=lambda what: nullcontext())
        self.wrong_addresses: list[str] = []

    def addresses(self, runs: object) -> SimpleNamespace:
        faults = [SimpleNamespace(what=what) for what in self.wrong_addresses]
        return SimpleNamespace(wrong=lambda key, directory, missing: faults)

    @contextmanager
    def open_file(self, run_id: str, name: str) -> Iterator[Path]:
        raise LookupError(f"no {name}")
        yield self.local.directory

    def summaries(self, *_: object) -> list[RunSummary]:
        found = []
        for directory in sorted(self.local.directory.glob("*-*")):
            record = read_record(directory)
            files = record.files | {"record.json": read_sums(directory)["record.json"]}
            known = replace(RunSummary.of(record), run_id=record.key[:32], status="FINISHED", files=files)
            found.append(self.edit(replace(known, tags=record.tags | run_tags(record))))
        return found

    def stored_digests(self, run_id: str, names: Sequence[str]) -> Iterator[tuple[str, str | None, int]]:
        (directory,) = self.local.directory.glob(f"*-{run_id[:16]}")
        for name in names:
            yield name, self.digests.get(name, read_sums(directory)[name]), 0

    def copy_digest(self, run_id: str, name: str) -> str | None:
        (directory,) = self.local.directory.glob(f"*-{run_id[:16]}")
        return self.digests.get(f"copy_of_{name}", read_sums(directory)[name])

    def model_file(self, run_id: str, name: str) -> bytes:
        (directory,) = self.local.directory.glob(f"*-{run_id[:16]}")
        return str(self.digests[name]).encode() if name in self.digests else mlmodel(read_record(directory), {})


def answered(edit: Callable[[RunSummary], RunSummary] = lambda run: run, **digests: str | None) -> Plant:
    """Let the tracking server say something else of level 1, or have other files of every run."""

    def plant(bench: Bench) -> Findings:
        named = {name.replace("__", "."): digest for name, digest in digests.items()}
        key = bench.whole.keys["L01"]
        store = Answers(bench.whole.nodes.directory, lambda run: edit(run) if run.key == key else run, named)
        return verify(cast(LineageStore, store))

    return plant


def said_otherwise(run: RunSummary) -> RunSummary:
    """Edit every fact of a run: kind, parents, nesting, one tag, one missing tag, two digests, one metric."""
    others = {name: value for name, value in run.tags.items() if name != "sgd_seed"} | {"level": "07"}
    files = run.files | {CHECKPOINT: FOREIGN, "record.json": FOREIGN}
    metrics = run.metrics | {"test_error_percent": 0.1}
    return replace(run, kind="training", parents=(), nest_key=FOREIGN, tags=others, files=files, metrics=metrics)


def only_in_mlflow(name: str, status: str) -> Plant:
    """Have a level in MLflow alone: unfinished, or finished with an altered file."""

    class Refuses:
        def __init__(self, *_: object) -> None: ...

        def find(self, key: str) -> Path:
            raise ValueError("checkpoint.safetensors is altered")

    def plant(bench: Bench) -> Findings:
        every = Answers(bench.whole.nodes.directory, lambda run: run, {}).summaries()
        held = [replace(run, status=status) for run in every if run.key == bench.whole.keys[name]]
        shutil.rmtree(copy_of(bench.whole, bench.runs)(name))
        store = Answers(bench.runs, lambda run: run, {})
        bench.patch.setattr(store, "summaries", lambda *_: held)
        for module in ("verify", "tensors"):
            bench.patch.setattr(sys.modules[f"harness.lineage.proof.{module}"], "LineageStore", Refuses)
        return verify(cast(LineageStore, store))

    return plant


def wrong_addresses(bench: Bench) -> Findings:
    """Let an alias and a link name another run. tests/lineage/test_changed_store.py has real ones."""
    store = Answers(bench.whole.nodes.directory, lambda run: run, {})
    store.server.readable = lambda: True
    store.wrong_addresses = ["an alias", "a link"]
    return verify(cast(LineageStore, store))


# ---------------------------------------------------------------------- the table


def at(module: str, *names: str) -> set[str]:
    return {f"{module}.{name}" for name in names}


def rows(table: str, *names: str) -> set[str]:
    return {f"records.{table} row {name}" for name in names}


# name of the faults: (how they are planted, the places that find them, further checks that have so many problems)
FAULTS: dict[str, tuple[Plant, set[str], dict[str, int]]] = {
    "determinants of a level": (
        edited(L01=altered(determinants=level_rows)),
        rows("_determined", "kind", "data", "spec.name", "model.name", "model.width", "name", "matmul", "optim.{name}")
        | rows("_determined", "name #2", "world_size", "dtype", "compile")
        | rows("_determined_level", "level", "root", "parent", "pruning_fraction", "again", "pruning")
        | at("records", "_schedule row schedule.{name}", "settings settings #2", "key key"),
        {},
    ),
    "determinants with another network than the record": (
        edited(L01=altered(determinants=lambda known: known["model"].update(tensors=FOREIGN, args={}, classifier=[]))),
        rows("_determined", "model"),
        {"key": 1},
    ),
    "determinants of other runs": (
        edited(
            search=altered(
                determinants=lambda known: known.update(method="lrr", alpha="zero", initialisation="x", init_seed=5)
            ),
            retrain=altered(determinants=lambda known: known.update(used_as="mask", ticket=FOREIGN, start=FOREIGN)),
            mask=altered(determinants=lambda known: known["schedule"].update(epochs=9)),
            lmc=altered(
                determinants=lambda known: known.update(
                    pair=[FOREIGN], question="x", init_seed=3, start=FOREIGN, ema_start="x"
                )
            ),
        ),
        rows("_determined", "method", "alpha", "initialisation", "used_as", "ticket", "ticket #2", "start")
        | rows("_determined", "pair", "question", "init_seed", "start #2", "ema_start")
        | at("records", "_schedule row schedule.{name}", "seeds seeds #2"),
        {"key": 4},
    ),
    "tags, config and seeds": (
        edited(
            search=altered(config=lambda config: config.update(kind="x")),
            L01=altered(both(tags(sgd_seed="5", init_seed="6"), lambda record: record["config"].update(level=9))),
            L02=altered(tags(data="mnist", model="x", method="lrr", density="0.5", parent_world_size="8")),
            mask=altered(tags(kind_of_training="x")),
        ),
        at("records", "_tags_and_config settings", "settings settings", "seeds seeds", "seeds seeds #3")
        | at("records", "processes settings")
        | at("networks", "owner owner #4"),
        {"seeds": 4},
    ),
    "settings that cannot be followed": (
        edited(L01=altered(lambda record: record["config"]["search"].pop("pruning_fraction"))),
        {"verify.verify settings"},
        {},
    ),
    "figures of a comparison": (
        edited(
            signed_mask=altered(tags(model="x", data_digest=FOREIGN)),
            lmc=altered(
                both(*map(another_figure, ("barrier", "barrier_floor", "barrier_above_line")), tags(same_start="x")),
                barrier=lambda curve: curve["error_percent"].__setitem__(1, 30.0),
            ),
        ),
        at("records", "curve compared", "curve compared #2", "comparable compared", "comparable compared #2"),
        {"compared": 7},
    ),
    "stability under one seed": (
        asks("stability", signed_mask="compared", mask="compared"),
        {"records.comparable compared #3"},
        {},
    ),
    "ψ_init of another search": (
        asks("norm_init", signed_mask="compared", search="initialised_from"),
        {"records.initial_norm compared"},
        {},
    ),
    "signs of a final training on a fresh start": (
        asks("signed_init", both(tags(model="x", data_digest=FOREIGN, init_seed="3")), mask="compared"),
        at("records", "signed_init compared", "signed_init compared #2", "signed_init seeds"),
        {"compared": 3},
    ),
    "signs on the search's own start": (
        asks(
            "signed_init",
            both(tags(init_seed="1", start_digest=FOREIGN), lambda record: record["config"].update(init_seed=3)),
            L02="compared",
        ),
        at("records", "signed_init seeds", "signed_init seeds #2")
        | at("tensors", "signed_init start", "signed_init start #2"),
        {},
    ),
    "parents of another kind, and none": (
        edited(
            L01=from_parents(),
            L02=altered(lambda record: record["config"]["search"].update(one_shot=True)),
            mask=from_parents(search="masked_by"),
            retrain=from_parents(FOREIGN="trained_from"),
        ),
        at("origins", "_parents parents", "_parents parents #2", "_parents parents #4", "_one_level_on parents"),
        {},
    ),
    "a parent of another level, and itself": (
        edited(L00=from_parents(L00="pruned_from"), L02=altered(tags(level="07"))),
        at("origins", "_one_level_on parents #2", "check_origins cycle"),
        {"cycle": 1},
    ),
    "tensors": (
        crafted(
            ("dense", "retrain", "mask"),
            L01=[
                drafts._wrong_alpha,
                drafts._wrong_sign,
                drafts._foreign_start,
                drafts._wrong_count_recorded,
                drafts._foreign_owner,
                drafts._other_image("test", 3),
            ],
            L02=[drafts._not_nested, drafts._pruned_weight_lives(1e-9), drafts._without_an_evaluation],
            dense=drafts._one_weight_too_few,
            retrain=[drafts._alpha_in_plain_training, drafts._foreign_start],
            mask=[drafts._foreign_start, drafts._pruned_weight_lives(-0.0)],
        ),
        at("networks", "masks nested", "masks pruned", "signs signs", "signs zeros", "owner owner")
        | at("networks", "owner owner #2", "owner owner #3", "final_mask mask")
        | at("records", "alpha alpha", "alpha alpha #2", "correct correct", "correct correct #2")
        | at("tensors", "_level start", "_training start", "_training start #2", "_training start #3"),
        {"zeros": 2},
    ),
    "masks": (
        crafted(
            ("signed_mask", "retrain"),
            L00=drafts._one_weight_too_few,
            L01=drafts._one_weight_too_many,
            signed_mask=drafts._one_weight_too_many,
        ),
        at("networks", "masks count", "masks count #3", "masks pruned", "final_mask mask #2")
        | {"verify._comparison compared"},
        {},
    ),
    "a mask of other magnitudes": (crafted(L01=drafts._another_weight), {"networks.masks pruned"}, {}),
    "missing tensors": (
        crafted(L02=without_tensors),
        at("networks", "fits parameters", "fits parameters #2", "fits parameters #3"),
        {},
    ),
    "methods that prune nothing, and by scores": (
        crafted(L01=of_method("dense"), L02=of_method("gem_miner")),
        {"networks.masks count #2", "tensors._level of the method"} | rows("_determined_level", "name"),
        {},
    ),
    "θ_init of another seed": (crafted(search=drafts._other_theta_init), {"tensors._theta_init theta_init #2"}, {}),
    "θ_init is not the one recorded": (
        crafted(search=drafts._undeclared_theta_init),
        {"tensors._theta_init theta_init"},
        {},
    ),
    "a loop of its own": (
        own_loop(
            search=altered(tags(theta_init_digest=FOREIGN)),
            L00=altered(tags(method="lrr")),
            L01=altered(lambda record: record["config"]["own_loop"]["parameters"].update(lr=1.0)),
            L02=altered(tags(start_digest=FOREIGN), determinants=lambda known: known.update(network=FOREIGN)),
        ),
        at("records", "own_loop settings", "own_loop settings #2")
        | at("tensors", "_own_loop theta_init", "_own_loop settings", "_own_loop start"),
        {"theta_init": 1, "start": 1},
    ),
    "files of runs": (
        edited(
            L00=no_answers,
            L01=another_file_deleted,
            L02=broken_list,
            retrain=lambda directory, _: (directory / CHECKPOINT).unlink(),
            signed_mask=lambda directory, _: flip(directory / "record.json"),
            mask=lambda directory, _: directory.rename(directory.with_name("training-" + "0" * 16)),
        ),
        at("copies", "_together record", "_together record #2", "check_local files", "check_local files #2")
        | {"copies._note_deleted files", "verify._record correct"},
        {"files": 4, "record": 2},
    ),
    "no manifest": (of_data(lambda home: (home / "train.json").unlink()), {"data_files._findings data"}, {}),
    "other data": (of_data(other_data), at("data_files", "_findings data #2", "_findings data #3"), {"data": 2}),
    "facts in MLflow": (
        answered(said_otherwise),
        at("copies", "_tag_findings tags", *(f"_tag_findings tags #{number}" for number in (2, 3, 4))),
        {"tags": 8},
    ),
    "files in MLflow": (
        answered(signed_mask__safetensors=FOREIGN, record__json=FOREIGN, config__json=None),
        {"copies.check_artifacts artifacts"},
        {"artifacts": 8 + 8 + 6},
    ),
    "copies of masks in MLflow": (
        answered(copy_of_signed_mask__safetensors=FOREIGN),
        {"copies.check_artifacts artifacts #3"},
        {"artifacts": 3},
    ),
    "MLmodel in MLflow": (
        answered(MLmodel='{"flavors": {}}'),
        {"copies.check_artifacts artifacts #2"},
        {"artifacts": 6},
    ),
    "addresses in MLflow": (wrong_addresses, {"copies.check_addresses addresses"}, {"addresses": 2 * 8}),
    "parents that cannot be followed": (
        edited(L01=altered(lambda record: record["config"].update(search=5))),
        {"origins.check_origins settings"},
        {},
    ),
    "an unfinished run": (answered(lambda run: replace(run, status="RUNNING")), {"verify.examine finished"}, {}),
    "an unfinished parent": (only_in_mlflow("L01", "RUNNING"), {"origins._parents parents #3"}, {"finished": 1}),
    "a level in MLflow alone": (only_in_mlflow("L02", "FINISHED"), {"verify._at_hand artifacts"}, {}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> MadeSearch:
    return make(tmp_path_factory.mktemp("whole"), data)


def test_nothing_is_found_in_a_whole_search(whole: MadeSearch, tmp_path: Path, data: Path, monkeypatch) -> None:
    found = record_places(monkeypatch)
    findings = answered()(Bench(tmp_path, data, whole, monkeypatch))
    assert findings.problems == [] and found == set()
    assert findings.checked["tags"] and findings.checked["artifacts"] and findings.checked["finished"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(whole: MadeSearch, tmp_path: Path, data: Path, monkeypatch, fault: str) -> None:
    plant, places, numbers = FAULTS[fault]
    found = record_places(monkeypatch)
    findings = plant(Bench(tmp_path, data, whole, monkeypatch))
    assert places <= found, f"not found by {sorted(places - found)}; found by {sorted(found)}"
    counted = Counter(problem.check for problem in findings.problems)
    assert numbers == {check: counted[check] for check in numbers}, [str(problem) for problem in findings.problems]
    assert all(problem.advice == CHECKS[problem.check].advice for problem in findings.problems)


def test_every_place_has_a_planted_fault() -> None:
    planted = set[str]().union(*(places for _, places, _ in FAULTS.values()))
    known = set(all_places().values())
    accounted = planted | NEVER.keys() | ELSEWHERE.keys()
    _none("places without a planted fault; add a row to FAULTS", known - accounted)
    _none("names in FAULTS, NEVER or ELSEWHERE that are no place", accounted - known)
    checks = {place.split()[1] for place in planted if " row " not in place} | {"settings"}
    _none("checks without a planted fault", CHECKS.keys() - checks - {place.split()[1] for place in ELSEWHERE})
    for place, test in ELSEWHERE.items():
        path, _, name = test.partition("::")
        assert f"def {name}(" in Path(__file__).parents[3].joinpath(path).read_text(), f"{place}: no test {test}"


def _none(what: str, names: Iterable[str]) -> None:
    assert not sorted(names), f"{what}: {sorted(names)}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_negative_zero_is_found_in_every_number_format(dtype: torch.dtype) -> None:
    params = {"w": torch.tensor([1.0, 0.0], dtype=dtype)}
    mask = SignedMask.of(params, Mask({"w": torch.tensor([True, False])}))
    for value, sound in ((0.0, True), (-0.0, False)):
        params["w"][1] = value
        stored = networks.StoredNetwork(Checkpoint(params, {}, 0, 0, ""), mask)
        assert [finding.holds for finding in networks.signs(stored)] == [True, sound]
