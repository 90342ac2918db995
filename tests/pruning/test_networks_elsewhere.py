"""Search in networks that are not built in, train their tickets, compare, verify, and load them."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.cli.lineage.proving import Verify
from harness.cli.lineage.store_options import StoreOptions
from harness.cli.resolve import resolve_network, resolve_ticket
from harness.config import ComparisonConfig, DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig, TicketConfig
from harness.data import DATASETS
from harness.data.prepare import prepare
from harness.distributed import world as world_module
from harness.distributed.world import World
from harness.experiment.comparison import compare
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.browse.query import Query
from harness.lineage.nodes.index import LocalIndex
from harness.lineage.proof import Findings, verify
from harness.lineage.store import open_store
from harness.models import MODELS
from harness.models.sources import NotBuildableError
from harness.runs.run import FinishedRun
from tests.lineage.proof.test_stored import forge_digests
from tests.models.user_networks import HUGGING_FACE, SMALL, write

pytestmark = pytest.mark.long  # a search for each network

COUNTED = SMALL + "\nprint('EXECUTED')\n"
"""A network whose file shows that it is executed."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepare noise in four classes: 3×32×32 pixels, so that every network of the libraries takes it."""
    home, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 4)):
        for label in range(4):
            (folder := home / "images" / split / f"{label:02d}").mkdir(parents=True)
            for image in range(number):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{image}.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DATASETS, "noise_4", replace(DATASETS["cifar10"], name="noise_4", num_classes=4))
        prepare("noise_4", home / "data", str(home / "images"))
        yield home / "data"


@dataclass
class Made:
    """The experiment of one network, and its runs."""

    experiment: Experiment
    found: SearchResult
    pair: list[FinishedRun]

    def verified(self, **options: bool) -> Findings:
        return verify(open_store(self.experiment.config.runs, offline=True), **options)

    @property
    def ticket(self) -> Path:
        directory = self.experiment.store.local.find(self.found.ticket.key)
        assert directory is not None
        return directory


def opened(data: Path, runs: Path, model: ModelConfig) -> Experiment:
    config = SearchConfig(
        data=DataConfig("noise_4", directory=data, loader="memory"),
        model=model,
        optim=OptimConfig(lr=0.01),
        final=Schedule(1, "step"),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=2,
        global_batch_size=16,
        runs=runs,
    )
    # Accelerate's state is global, and other tests reset it. Without Accelerate the results have the same bits.
    with patch.object(world_module, "_has_accelerate", lambda: False):
        world = World("no")
    return Experiment(world, open_store(runs, offline=True), config, network=resolve_network(world, model))


def made(data: Path, runs: Path, name: str, *args: str) -> Made:
    """Search, train the ticket twice, and compare the two trainings."""
    experiment = opened(data, runs, ModelConfig(name, args=args))
    found = search(experiment)
    pair = [final_training(experiment, Trial("signed_mask", 2, seed), found.ticket) for seed in (1, 2)]
    compare(experiment, *pair, "stability", ComparisonConfig(num_alphas=2))
    return Made(experiment, found, pair)


def check_whole(one: Made) -> None:
    """Check that masks follow the schedule, that the ticket is signed, and that all runs verify."""
    densities = [run.mask.density for run in one.found.levels]
    assert densities == pytest.approx([1, 0.8, 0.64], abs=0.02)
    ticket, partition = one.found.ticket, one.experiment.partition
    assert set(ticket.mask.tensors) == partition.prunable and ticket.signed_mask.norm == partition.norm
    for name, kept in ticket.mask.tensors.items():
        assert torch.equal(ticket.signed_mask.signs[name] * kept, ticket.checkpoint.params[name].sign().to(torch.int8))
    findings = one.verified()
    assert findings.problems == [] and findings.notes == [] and findings.num_nodes == 7
    assert {"theta_init", "pruned", "start", "parameters", "compared", "alpha"} <= findings.checked.keys()
    assert harness.load_network(ticket.key, local_dir=one.experiment.config.runs)(torch.zeros(2, 3, 32, 32)).shape == (
        2,
        4,
    )


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:test_efficientnet_gn", "timm:test_vit"])
def test_a_search_in_a_network_of_timm(data: Path, tmp_path: Path, name: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "harness"):
        one = made(data, tmp_path / "runs", name)
    assert caplog.text.count(f"parameters of {name}:") == 1, "the table is shown once"
    check_whole(one)
    (entry, *_) = [run for run in LocalIndex(one.experiment.store.local).entries.values() if run.kind == "level"]
    assert Query(network=name).fits(entry) and not Query(network="timm:test_resnet").fits(entry)


SLOW = ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:efficientnet_lite0", "timm:mobilenetv3_small_100"]
SLOW += ["timm:deit3_small_patch16_224", "torchvision:regnet_y_400mf", "torchvision:convnext_tiny"]
SLOW += ["torchvision:swin_t"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_search_in_a_large_network(data: Path, tmp_path: Path, name: str) -> None:
    check_whole(made(data, tmp_path / "runs", name))


@pytest.mark.slow
def test_a_search_in_a_network_of_hugging_face(data: Path, tmp_path: Path) -> None:
    check_whole(made(data, tmp_path / "runs", write(tmp_path / "hf.py", HUGGING_FACE)))


@pytest.fixture(scope="module")
def users(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Made]]:
    """Return the working directory of a user with a network in net.py, and the runs."""
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        write(Path("net.py"), COUNTED)
        yield home, made(data, home / "runs", "net.py:build", "width=16")


def test_a_search_in_a_network_of_a_users_file(users: tuple[Path, Made], capsys) -> None:
    _, one = users
    check_whole(one)
    for record in (run.record for run in [*one.found.levels, *one.pair]):
        assert record is not None and record.tags["model"] == "net.py:build" and "network.py" in record.files
        assert record.tags["network"] == "net.py:build(width=16)"
    entries = LocalIndex(one.experiment.store.local).entries.values()
    assert all("network.py" in entry.files for entry in entries), "the search and the comparison keep the file, too"
    assert all(Query(network="net.py:build(width=16)").fits(entry) for entry in entries)
    assert (one.ticket / "network.py").read_text() == COUNTED


def test_a_strangers_file_is_not_executed_unasked(
    users: tuple[Path, Made], tmp_path: Path, monkeypatch, capsys, data: Path, forget: Callable[[], None]
) -> None:
    # Phase: the store alone, in another directory.
    home, one = users
    shutil.copytree(home / "runs", tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    forget()
    stranger = COUNTED.replace("EXECUTED", "EXECUTED BY A STRANGER").encode()
    for path in Path("theirs").rglob("network.py"):
        path.write_bytes(stranger)  # not in the records yet
    world, key = one.experiment.world, one.found.ticket.key
    capsys.readouterr()

    # Phase: nothing executes it, and the altered copy is a problem.
    findings = verify(open_store(Path("theirs"), offline=True), trust_code=True)
    assert {problem.check for problem in findings.problems} == {"files"} and findings.incomplete
    shutil.rmtree("theirs")
    shutil.copytree(home / "runs", "theirs")
    findings = verify(open_store(Path("theirs"), offline=True))
    assert findings.problems == [] and findings.incomplete
    assert {check for note in findings.notes for check in note.not_checked} == {"theta_init", "start"}
    assert all("not executed unasked; read RUN/network.py" in note.what for note in findings.notes)
    assert findings.checked["parameters"] == one.verified().checked["parameters"], "shapes are recorded"
    with pytest.raises(NotBuildableError, match=r"net.py \(sha256 .*read theirs/.*/network.py, then give --trust-code"):
        harness.load_network(key, local_dir="theirs")
    store = open_store(Path("theirs"), offline=True)
    with pytest.raises(NotBuildableError, match="give --trust-code"):
        resolve_ticket(world, store, TicketConfig(key, runs=Path("theirs")), ("level",))
    assert harness.load_signed_mask(key, local_dir="theirs").density == one.found.ticket.mask.density
    assert "EXECUTED" not in capsys.readouterr().out

    # Phase: the exit code, and the way to trust the file.
    with pytest.raises(SystemExit) as ended:
        Verify(all=True, place=StoreOptions(runs=Path("theirs"), offline=True)).run()
    assert ended.value.code == 3
    assert "EXECUTED" not in capsys.readouterr().out
    Verify(all=True, trust_code=True, place=StoreOptions(runs=Path("theirs"), offline=True)).run()
    assert "EXECUTED" in capsys.readouterr().out
    assert harness.load_network(key, local_dir="theirs", trust_code=True)(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    _, settings, resolved = resolve_ticket(world, store, TicketConfig(key, trust_code=True), ("level",))
    assert resolved.source == COUNTED.encode() and settings.model == one.experiment.config.model

    # Phase: the recorded content at the recorded path can be the stranger's, too. A name in a command trusts it.
    write(Path("net.py"), COUNTED)
    assert verify(open_store(Path("theirs"), offline=True)).incomplete
    resolve_network(world, one.experiment.config.model)
    Path("net.py").unlink()
    assert verify(open_store(Path("theirs"), offline=True)).notes == [], "the copy has the content that was named"


def test_a_network_of_another_version_is_checked_by_its_recorded_shapes(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    one = made(data, tmp_path / "runs", "timm:test_efficientnet_gn")
    usual = importlib.metadata.version
    # Phase: another version, and none at all
    for version in ("0.9", None):

        def told(name: str, version: str | None = version) -> str:
            if name == "timm" and version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return str(version) if name == "timm" else usual(name)

        monkeypatch.setattr(importlib.metadata, "version", told)
        findings = one.verified()
        assert findings.problems == [] and findings.incomplete
        reason = (
            "was built with timm .*, and here is timm 0.9"
            if version
            else r"needs timm, which is not installed; run: pip install"
        )
        assert all(re.match(f"not checked here: .*{reason}", note.what) for note in findings.notes)
        assert findings.checked["parameters"] > 10 and findings.checked["pruned"] == 2

    # Phase: a fault that the recorded shapes show
    directory = one.ticket
    path = directory / "record.json"
    path.write_text(path.read_text().replace('"prunable"', '"other"', 1))
    forge_digests(directory)
    assert {"parameters", "settings"} <= {problem.check for problem in one.verified().problems}


def test_a_network_that_is_registered_elsewhere_is_no_problem(data: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as registered:
        registered.setitem(MODELS, "mine", MODELS["resnet8"])
        one = made(data, tmp_path / "runs", "mine")
        assert one.verified().notes == []
        saliency = search(one.experiment.using("synflow", num_levels=1)).ticket
    findings = one.verified()
    assert findings.problems == [] and findings.incomplete
    unpruned = {note.key for note in findings.notes if "pruned" in note.not_checked}
    assert unpruned == {saliency.key}, "only SynFlow needs the network for its masks"
    assert all("unknown network 'mine'" in note.what for note in findings.notes)
    assert {"parameters", "theta_init", "start", "pruned"} == {
        check for note in findings.notes for check in note.not_checked
    }


def test_networks_of_one_name_are_not_compared(data: Path, tmp_path: Path) -> None:
    """Their tensors have equal names and shapes, so that only the content of the file tells them apart."""
    runs = []
    for folder, text in (("a", SMALL), ("b", SMALL.replace("torch.relu", "torch.tanh"))):
        (tmp_path / folder).mkdir()
        experiment = opened(data, tmp_path / "runs", ModelConfig(write(tmp_path / folder / "net.py", text)))
        runs.append(final_training(experiment, Trial("dense", 2, len(runs) + 1)))
    assert runs[0].key != runs[1].key
    with pytest.raises(ValueError, match="have different networks of one name"):
        compare(experiment, *runs, "lmc", ComparisonConfig(num_alphas=2))


def test_a_network_whose_seed_does_not_determine_it_is_refused(data: Path, tmp_path: Path) -> None:
    text = SMALL + "\ncalls = []\ndef counted(**sizes):\n    calls.append(1)\n    net = build(**sizes)\n"
    text += "    net.head.weight.data += len(calls)\n    return net\n"
    write(tmp_path / "net.py", text)
    with pytest.raises(ValueError, match="draws other initial parameters on a second call"):
        opened(data, tmp_path / "runs", ModelConfig(f"{tmp_path / 'net.py'}:counted"))
    seeded = SMALL.replace("    return Net(", "    torch.manual_seed(0)\n    return Net(")
    with pytest.raises(ValueError, match="draws equal initial parameters for every init_seed; .*--initialisation FILE"):
        opened(data, tmp_path / "runs", ModelConfig(write(tmp_path / "net.py", seeded)))
