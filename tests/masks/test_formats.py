"""Test masks as dense tensors, for torch.nn.utils.prune, and as sparse CSR matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from harness.checkpoint import Checkpoint
from harness.masks import Mask, SignedMask
from tests.masks.networks import Tied, network, params_of, signed


class Attention(nn.Module):
    """An attention layer, a Conv1d and a Linear layer: all kinds of prunable weights but Conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv, self.head = nn.Conv1d(8, 4, 3), nn.Linear(4, 2)
        self.register_buffer("unsaved", torch.ones(1), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        seen = self.attention(words, words, words, need_weights=False)[0]
        return self.head(self.conv(seen.transpose(1, 2)).mean(2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[int, ...]]] = {
    "conv and linear": (network, ("conv.weight", "fc.weight"), (2, 3, 8, 8)),
    "attention": (Attention, ("attention.in_proj_weight", "attention.out_proj.weight", "conv.weight"), (2, 5, 8)),
    "shared weights": (Tied, ("first.weight",), (2, 6)),
}


def prepared(model: nn.Module, mask: Mask) -> nn.Module:
    """Prune each masked parameter by torch, with its own method."""
    for name in mask:
        module, _, parameter = name.rpartition(".")
        prune.identity(model.get_submodule(module), parameter)
    return model


@pytest.mark.parametrize(("make", "names", "shape"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("given", ["network", "state dict", "checkpoint"])
def test_torch_prune_loads_the_state_dict_strictly(
    make: Callable[[], nn.Module], names: tuple[str, ...], shape: tuple[int, ...], given: str
) -> None:
    """Load it into a prepared network of another initialisation, remove the pruning, and compare all bits."""
    # Phase: the masked network.
    torch.manual_seed(3)
    source = make()
    mask = signed(source, *names).mask
    held = Checkpoint.of(source, level=0, epochs=0, level_digest="")
    if given == "checkpoint" and make is Attention:
        held.buffers.clear()  # a checkpoint also has buffers that no state dict has
    state = mask.to_torch_prune({"network": source, "state dict": source.state_dict(), "checkpoint": held}[given])
    before = params_of(source)
    mask.apply_(source)

    # Phase: a prepared network takes exactly these keys, and computes the same.
    target = prepared(make(), mask)
    if not (given == "checkpoint" and make is Tied):  # which has each shared tensor once
        assert state.keys() == target.state_dict().keys()
        target.load_state_dict(state)
        for name in mask:
            module, _, parameter = name.rpartition(".")
            prune.remove(target.get_submodule(module), parameter)
        images = torch.randn(shape)
        assert torch.equal(target.eval()(images), source.eval()(images))
        for name, param in source.named_parameters():
            assert torch.equal(target.get_parameter(name).view(torch.int32), param.view(torch.int32)), name
    assert any(not torch.equal(before[name], source.get_parameter(name)) for name in mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_masks_have_the_type_of_their_weights(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    signs = signed()
    state = signs.to_torch_prune(model)
    assert state["conv.weight_mask"].dtype == dtype == state["conv.weight_orig"].dtype
    prepared(network().to(dtype), signs.mask).load_state_dict(state)
    signs.apply_(model)
    assert signs.to_csr(model)["conv.weight"].dtype == dtype and model.conv.weight.dtype == dtype


def test_csr_products_equal_dense_products() -> None:
    """Multiply flattened patches by the sparse matrix, and compare with the convolution."""
    model, signs = network().double(), signed(None, "conv.weight", "fc.weight")
    sparse = signs.to_csr(model)
    signs.mask.apply_(model)
    assert {name: tuple(matrix.shape) for name, matrix in sparse.items()} == {
        "conv.weight": (8, 27),
        "fc.weight": (5, 288),
    }
    assert all(matrix.layout == torch.sparse_csr for matrix in sparse.values())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    columns = F.unfold(images, 3).transpose(0, 1).reshape(27, -1)
    found = (sparse["conv.weight"] @ columns).reshape(8, 2, 36).transpose(0, 1).reshape(2, 8, 6, 6)
    torch.testing.assert_close(found, F.conv2d(images, model.conv.weight))
    vectors = torch.randn(288, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse["fc.weight"] @ vectors, model.fc.weight @ vectors)
    for name, matrix in sparse.items():
        assert torch.equal(matrix.to_dense().reshape(signs.mask[name].shape), model.get_parameter(name))


ODD_SHAPES = {
    "one row": torch.tensor([[True, False, True]]),
    "nothing kept": torch.zeros(3, 4, dtype=torch.bool),
    "all kept": torch.ones(3, 4, dtype=torch.bool),
    "a vector": torch.tensor([True, False]),
    "a number": torch.tensor(True),
    "no weights": torch.zeros(0, 3, dtype=torch.bool),
    "no columns": torch.zeros(2, 0, dtype=torch.bool),
    "not contiguous": (torch.arange(24).reshape(2, 3, 2, 2) % 3 == 0).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kept", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_csr_stores_exactly_the_kept_weights(kept: torch.Tensor) -> None:
    """Also those that are zero, and whatever the shape is."""
    mask = Mask({"w": kept})
    for values in (torch.randn(kept.shape), torch.zeros(kept.shape)):
        matrix = mask.to_csr({"w": values})["w"]
        assert matrix.values().numel() == mask.num_remaining
        assert torch.equal(matrix.to_dense().reshape(kept.shape), values.masked_fill(~kept, 0.0))
    assert torch.equal(mask.to_csr()["w"].to_dense().reshape(kept.shape), kept.float())


def test_without_a_network_the_values_are_ones_and_signs() -> None:
    signs = signed()
    kept = signs.mask["conv.weight"]
    assert torch.equal(signs.mask.to_dense()["conv.weight"], kept.float())
    assert signs.mask.to_dense(dtype=torch.float16)["conv.weight"].dtype == torch.float16
    dense = signs.to_dense()
    assert dense.keys() == signs.signs.keys() and torch.equal(dense["fc.bias"], signs.signs["fc.bias"].float())
    matrix = signs.to_csr()["conv.weight"]
    assert torch.equal(matrix.to_dense().reshape(kept.shape), signs.signs["conv.weight"].float())
    assert signs.to_csr().keys() == {"conv.weight"}


def test_conversions_change_no_network_and_share_no_values() -> None:
    model, signs = network(), signed()
    before = params_of(model)
    dense: dict[str, Any] = signs.to_dense(model)
    for value in [*dense.values(), *signs.to_torch_prune(model).values(), signs.to_csr(model)["conv.weight"].values()]:
        value.zero_()
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    assert "running_mean" in str(dense.keys()) and not any(value.requires_grad for value in dense.values())


@pytest.mark.parametrize("given", [3, None, "model", [torch.zeros(2)], torch.optim.SGD([torch.zeros(2)])], ids=type)
def test_odd_networks_are_type_errors(given: Any) -> None:
    with pytest.raises(TypeError, match="give a network, its state dict or a checkpoint, not"):
        signed().to_torch_prune(given)


def test_extra_state_is_kept() -> None:
    class WithState(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: object) -> None:
            assert state == {"steps": 3}

    model = WithState(4, 2)
    mask = SignedMask.of(params_of(model), Mask({"weight": torch.rand(2, 4) < 0.5})).mask
    state = mask.to_torch_prune(nn.DataParallel(model))
    prepared(WithState(4, 2), mask).load_state_dict(state)
