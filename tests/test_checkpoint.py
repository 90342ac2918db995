"""Test checkpoints: stock PyTorch loads them, equal ones are equal bytes, damaged ones are refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness.checkpoint import FORMAT, Checkpoint
from harness.common.digest import canonical_json


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def test_stock_pytorch_loads_it(tmp_path):
    model = network()
    Checkpoint.of(model, level=2, epochs=7, level_digest="d").save(tmp_path / "c.safetensors")
    other = network()
    other.load_state_dict(load_file(tmp_path / "c.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_round_trip_and_equal_bytes(tmp_path):
    checkpoint = Checkpoint.of(network(), level=2, epochs=7, level_digest="d")
    checkpoint.save(tmp_path / "a")
    loaded = Checkpoint.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert loaded.params.keys() == checkpoint.params.keys() and loaded.digest == checkpoint.digest
    assert (loaded.level, loaded.epochs, loaded.level_digest) == (2, 7, "d")


def test_negative_zero_is_stored_as_zero():
    model = network()
    nn.init.constant_(model[0].weight, -0.0)
    assert not torch.signbit(Checkpoint.of(model, level=0, epochs=0, level_digest="").params["0.weight"]).any()


def test_another_network_is_refused_naming_every_tensor():
    checkpoint = Checkpoint.of(network(), level=0, epochs=0, level_digest="")
    with pytest.raises(ValueError) as caught:
        checkpoint.load_into_(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert "0.weight is (4, 3, 3, 3) in the network and (8, 3, 3, 3) in the checkpoint" in str(caught.value)
    assert "the network has no 1.weight, 1.bias, 1.running_mean" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 9, 300, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    Checkpoint.of(network(), level=0, epochs=0, level_digest="").save(tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:keep])
    with pytest.raises(ValueError, match="complete checkpoint"):
        Checkpoint.load(tmp_path / "c")


def test_a_wrapped_network_is_loaded():
    checkpoint, model = Checkpoint.of(network(), level=0, epochs=0, level_digest=""), network()
    checkpoint.load_into_(nn.DataParallel(model))
    assert Checkpoint.of(model, level=0, epochs=0, level_digest="").digest == checkpoint.digest


HEADER = {"format": FORMAT, "level": 0, "epochs": 0, "level_digest": "", "params": ["w"]}
ODD = [
    *({name: value} for name in HEADER for value in (None, [], {}, "x", 1.5, [["w"]])),
    {"params": ["w", "v"]},
    {"params": 7},
    {"level": True},
    {"format": "harness.checkpoint/1" + "x" * 999},
]


@pytest.mark.parametrize("change", [change for change in ODD if change not in ({"level_digest": "x"}, {"params": []})])
def test_odd_headers_are_refused_in_one_line(tmp_path, change):
    path = tmp_path / "odd.safetensors"
    save_file({"w": torch.zeros(2)}, path, {"harness": canonical_json(HEADER | change)})
    with pytest.raises(ValueError, match=r"odd\.safetensors") as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "null", "3", '"x"', '{"format": NaN}'])
def test_headers_that_are_no_object_are_refused(tmp_path, text):
    path = tmp_path / "odd.safetensors"
    save_file({"w": torch.zeros(2)}, path, {"harness": text})
    with pytest.raises(ValueError, match=r"odd\.safetensors (was not written|has format)"):
        Checkpoint.load(path)
