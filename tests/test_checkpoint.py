"""Test checkpoints: stock PyTorch loads them, equal ones are equal bytes, damaged ones are refused."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness.checkpoint import Checkpoint


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
    assert "0.weight: the network has (4, 3, 3, 3), the checkpoint has (8, 3, 3, 3)" in str(caught.value)
    assert "1.running_mean: not in the network" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 9, 300, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    Checkpoint.of(network(), level=0, epochs=0, level_digest="").save(tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:keep])
    with pytest.raises(ValueError, match="complete checkpoint"):
        Checkpoint.load(tmp_path / "c")
