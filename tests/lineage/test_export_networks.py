"""Test exports for other programs: ONNX and torch.nn.utils.prune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.utils import prune

from harness import load_network, load_signed_mask
from harness.cli import export as export_command
from harness.common import optional
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.record import SIGNED_MASK
from harness.lineage.sharing.export import shared_run
from harness.lineage.sharing.networks import network_of_run, write_onnx, write_torch_prune
from tests.lineage.shared_run import local_store, made_search
from tests.made_search import MadeSearch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSearch:
    """Return a search with two levels. Tests must not change it."""
    return made_search(tmp_path_factory.mktemp("made") / "runs")


def export(made: MadeSearch, to: str, out: Path) -> None:
    words = [made.keys["L01"], "--to", to, "--out", str(out), "--runs", str(made.nodes.directory), "--offline"]
    export_command.main(words)


@pytest.mark.long
def test_onnx_gives_the_same_logits_for_any_number_of_images(made: MadeSearch, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    # Phase: compare the logits
    export(made, "onnx", tmp_path / "level.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["level.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "level.onnx"))
    network = load_network(made.keys["L01"], local_dir=made.nodes.directory)
    for count in (1, 2, 5):
        images = torch.randn(count, 1, 8, 8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-3, atol=1e-4)
    # Phase: pruned weights are zeros, and the metadata tells the run
    model = onnx.load(tmp_path / "level.onnx")
    onnx.checker.check_model(model)
    zeros = sum(int((onnx.numpy_helper.to_array(one) == 0).sum()) for one in model.graph.initializer)
    mask = load_signed_mask(made.keys["L01"], local_dir=made.nodes.directory).mask
    assert zeros >= mask.numel - mask.num_remaining > 0
    told = {one.key: one.value for one in model.metadata_props}
    assert told["signed_tickets.key"] == made.keys["L01"] and float(told["signed_tickets.density"]) == mask.density
    assert (told["signed_tickets.mean"], told["signed_tickets.std"]) == ("0.3053", "0.3762")


def test_torch_prune_is_a_state_dict_that_a_prepared_network_loads(made: MadeSearch, tmp_path: Path) -> None:
    # Phase: prepare a network as torch.nn.utils.prune does, and load the file
    out = tmp_path / "level.safetensors"
    export(made, "torch-prune", out)
    network = load_network(made.keys["L01"], local_dir=made.nodes.directory)
    mask = load_signed_mask(made.keys["L01"], local_dir=made.nodes.directory).mask
    fresh = load_network(made.keys["L00"], local_dir=made.nodes.directory)
    for name in mask.tensors:
        prune.identity(fresh.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
    fresh.load_state_dict(load_file(out))
    # Phase: after `remove`, it is the level's network
    for name in mask.tensors:
        prune.remove(fresh.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(fresh(images), network(images))
    with safe_open(out, "pt") as file:
        assert made.keys["L01"] in file.metadata()["signed_tickets"]


def test_without_the_extra_the_export_to_onnx_names_it(
    made: MadeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optional, "is_installed", lambda library: library != "onnxscript")
    with pytest.raises(SystemExit):
        export(made, "onnx", tmp_path / "level.onnx")
    assert "the export to ONNX needs onnxscript" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported_is_refused_in_one_line(
    made: MadeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("\nno such operator\nin layer 3")

    # Phase: torch fails, and the image size is unknown
    store, out = local_store(made.nodes.directory), tmp_path / "level"
    node = find_node(store, made.keys["L01"])
    shared = shared_run(store, node, store.record_of(node))
    monkeypatch.setattr(torch.onnx, "export", fail)
    network = network_of_run(store, node)
    assert not any(module.training for module in network.modules())
    with pytest.raises(ValueError, match=r"^torch cannot export resnet8-w2 to ONNX: no such operator$"):
        write_onnx(shared, network, out)
    with pytest.raises(ValueError, match="has no recorded image size, so it cannot be exported to ONNX"):
        write_onnx(replace(shared, determinants={}), network, out)
    # Phase: a run without a signed mask
    record = shared.record
    without = replace(record, files={name: record.files[name] for name in record.files if name != SIGNED_MASK})
    with pytest.raises(ValueError, match="has no signed_mask.safetensors, so there are no masks to write"):
        write_torch_prune(store, node, replace(shared, record=without), out)
    assert not list(tmp_path.iterdir())
