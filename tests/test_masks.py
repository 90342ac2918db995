"""Test masks and signed masks: algebra, the file format, and use in any PyTorch training loop."""

import pytest
import torch
from torch import nn

from harness.masks import Mask, SignedMask


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def signed(density: float = 0.3) -> SignedMask:
    torch.manual_seed(1)
    model = network()
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    params["1.weight"][2] = -0.5
    mask = Mask({"0.weight": torch.rand_like(params["0.weight"]) < density})
    return SignedMask.of(params, mask, norm=["1.weight", "1.bias"])


def test_signs_are_those_of_the_masked_parameters():
    model = network()
    params = dict(model.named_parameters())
    mask = Mask({"0.weight": torch.rand_like(params["0.weight"]) < 0.5})
    found = SignedMask.of(params, mask)
    for name, param in params.items():
        expected = torch.sign(param * mask.tensors[name] if name in mask.tensors else param)
        assert torch.equal(found.signs[name].float(), expected)


def test_file_round_trip_and_equal_bytes(tmp_path):
    mask = signed()
    for file in ("a", "b"):
        mask.save(tmp_path / file, {"level": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = SignedMask.load(tmp_path / "a")
    assert loaded.signs.keys() == mask.signs.keys()
    assert all(torch.equal(loaded.signs[name], sign) for name, sign in mask.signs.items())
    assert loaded.mask.equal(mask.mask) and loaded.norm == mask.norm and loaded.metadata == {"level": 3}


def test_file_takes_one_plus_density_bits_per_element(tmp_path):
    params = {"w": torch.randn(1000, 1000)}
    mask = Mask({"w": torch.rand(1000, 1000) < 0.1})
    SignedMask.of(params, mask).save(tmp_path / "s", {})
    assert (tmp_path / "s").stat().st_size <= (1 + mask.density) * 1e6 / 8 + 65536


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_file_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "s.safetensors"
    signed().save(path, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"s\.safetensors"):
        SignedMask.load(path)


def test_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not written by this harness"):
        SignedMask.load(tmp_path / "w.safetensors")


def test_apply_gives_magnitudes_of_the_network_and_signs_of_the_mask():
    mask, model = signed(), network()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    mask.apply_(model)
    for name, param in model.named_parameters():
        if name in mask.norm:
            assert torch.equal(param, before[name])
        else:
            assert torch.equal(param, before[name].abs() * mask.signs[name])
    # −0.0 equals 0.0 but has other bytes
    assert not torch.signbit(model[0].weight[~mask.mask.tensors["0.weight"]]).any()


def test_kept_exact_zeros_have_no_sign_and_keep_the_value():
    params = {"w": torch.tensor([0.0, -1.0, 2.0, 3.0]), "b": torch.tensor([0.0])}
    mask = SignedMask.of(params, Mask({"w": torch.tensor([True, True, True, False])}))
    assert mask.num_zero_signs == 2
    result = mask.signed({"w": torch.tensor([-5.0, 6.0, -7.0, 8.0]), "b": torch.tensor([-9.0])})
    assert result["w"].tolist() == [-5.0, -6.0, 7.0, 0.0] and result["b"].tolist() == [-9.0]


def test_every_tensor_that_does_not_fit_is_named():
    mask = signed()
    with pytest.raises(ValueError) as caught:
        mask.apply_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8)))
    text = str(caught.value)
    assert "0.weight: the network has (4, 3, 3, 3), the signed mask has (8, 3, 3, 3)" in text
    assert "4.weight: not in the network" in text


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_keep_makes_any_training_loop_sparse(kind):
    mask, model = signed(), network()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=1e-2, **options)
    mask.apply_(model)
    handle = mask.keep(optimizer)
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(5, (4,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert not model[0].weight[~mask.mask.tensors["0.weight"]].any()
    handle.remove()
    optimizer.step()
    assert model[0].weight[~mask.mask.tensors["0.weight"]].any()


def test_keep_without_apply_is_refused():
    with pytest.raises(ValueError, match="apply_"):
        signed().keep(torch.optim.SGD(network().parameters(), lr=0.1))


def test_agreement_counts_only_common_weights():
    a = SignedMask.of({"w": torch.tensor([1.0, -1.0, 1.0, 1.0])}, Mask({"w": torch.tensor([1, 1, 1, 0]).bool()}))
    b = SignedMask.of({"w": torch.tensor([1.0, 1.0, 1.0, -1.0])}, Mask({"w": torch.tensor([1, 1, 0, 1]).bool()}))
    assert a.agreement(a) == 1.0 and a.agreement(b) == 0.5
