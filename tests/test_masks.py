"""Test masks and signed masks: algebra, the file format, and use in any PyTorch training loop."""

import json
import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from harness.common.digest import sha256_file
from harness.lineage.reload import load_checkpoint, load_signed_mask
from harness.masks import Mask, SignedMask, mask, same_contents
from tests.mask_formats import as_format_1


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
    assert "0.weight is (4, 3, 3, 3) in the network and (8, 3, 3, 3) in the signed mask" in text
    assert "the network has no 4.weight, 4.bias (2 of 4)" in text and "\n" not in text


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


def steps_without_life(mask: SignedMask, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> bool:
    """Train a few steps and return whether every pruned weight stayed 0."""
    pruned = ~mask.mask.tensors["0.weight"]
    for _ in range(steps):
        nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(5, (4,))).backward()
        optimizer.step()
    return not any(bool(p[pruned].any()) for p in model.parameters() if p.shape == pruned.shape)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("order", ["keep, prepare", "prepare, keep", "apply, prepare, keep"])
def test_keep_works_with_optimizers_that_accelerate_prepares(kind, order):
    signs, model, accelerator = signed(), network(), Accelerator(cpu=True)
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)
    if order != "prepare, keep":
        signs.apply_(model)
    if order == "keep, prepare":
        signs.keep(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if order == "prepare, keep":
        signs.apply_(model)
    if order != "keep, prepare":
        signs.keep(optimizer)
    assert steps_without_life(signs, model, optimizer)


class Lookahead(torch.optim.Optimizer):
    """Change the parameters after the step of the inner optimizer."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.optimizer = inner

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for param in self.param_groups[0]["params"]:
            param.add_(0.5)


def test_keep_comes_after_what_a_wrapper_does_itself():
    signs, model = signed(), network()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    signs.apply_(model).keep(optimizer)
    assert steps_without_life(signs, model, optimizer)


def test_keep_follows_parameters_to_another_dtype(monkeypatch):
    masks, multiply = [], torch._foreach_mul_
    monkeypatch.setattr(torch, "_foreach_mul_", lambda params, by: (masks.extend(by), multiply(params, by)))
    signs, model = signed(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    signs.apply_(model).keep(optimizer)
    assert steps_without_life(signs, model.double().float(), optimizer)
    model.to(torch.bfloat16)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    masks.clear()
    optimizer.step()
    assert not model[0].weight[~signs.mask.tensors["0.weight"]].any()
    assert masks and {tensor.dtype for tensor in masks} == {torch.bfloat16}  # one kernel takes only equal types


def test_keep_names_what_is_no_optimizer():
    with pytest.raises(TypeError, match="takes an optimizer of torch or one that wraps it, got <class 'int'>"):
        signed().keep(3)


class Inside(nn.Module):
    """A wrapper that adds a prefix to all names, as DDP does."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, model)


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "as DDP": lambda model: Inside(model, "module"),
    "compiled": lambda model: Inside(model, "_orig_mod"),
    "compiled DDP": lambda model: Inside(Inside(model, "module"), "_orig_mod"),
    "DDP of compiled": lambda model: Inside(Inside(model, "_orig_mod"), "module"),
    "twice": lambda model: Inside(Inside(Inside(model, "module"), "_orig_mod"), "module"),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_apply_takes_a_wrapped_network(wrap):
    signs, model, plain = signed(), network(), network()
    signs.apply_(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    signs.apply_(wrap(model)).keep(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda params: {f"net.{n}": p for n, p in params.items()}, "its names begin with 'net.': give the unwrapped"),
        (lambda params: {f"a.b.{n}": p for n, p in params.items()}, "its names begin with 'a.b.'"),
    ],
)
def test_an_unknown_prefix_is_named_in_one_line(wrap, words):
    with pytest.raises(ValueError, match=words) as caught:
        signed().signed(wrap(dict(network().named_parameters())))
    assert "\n" not in str(caught.value)
    wrapped = SignedMask.of(wrap(dict(network().named_parameters())), Mask({}))
    with pytest.raises(ValueError, match="but the same names without '.*': remove this prefix"):
        wrapped.signed(dict(network().named_parameters()))


# The file format.


def small() -> SignedMask:
    """Return a signed mask with kept zeros and padding bits in each plane."""
    torch.manual_seed(2)
    params = {"w": torch.randn(3, 7), "n": torch.tensor([1.0, 0.0, -1.0])}
    params["w"][0, :2] = 0.0
    kept = torch.rand(3, 7) < 0.6
    kept[0, 0] = True
    return SignedMask.of(params, Mask({"w": kept}), norm=["n"])


def test_no_changed_byte_loads_as_another_mask(tmp_path):
    path, signs = tmp_path / "s.safetensors", small()
    signs.save(path, {"level": 1})
    content = path.read_bytes()
    payload = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, payload, 4), *range(payload, len(content))]:
        changed = bytearray(content)
        changed[position] ^= 0x01 if position % 8 else 0xFF
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"s\.safetensors (was altered|is not|was not|has format)"):
            SignedMask.load(path)


def test_both_formats_hold_the_same_mask_and_older_ones_are_noted_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(mask, "_noted_format_1", False)
    new, old, other = (tmp_path / f"{name}.safetensors" for name in ("new", "old", "other"))
    for path in (new, old):
        small().save(path, {"level": 1})
    as_format_1(old)
    SignedMask(small().signs, small().mask).save(other, {"level": 1})
    with caplog.at_level(logging.INFO, logger="harness"):
        assert SignedMask.load(old).digest == SignedMask.load(new).digest == small().digest
        assert same_contents(old, new) and not same_contents(new, other)
    assert new.read_bytes() != old.read_bytes()
    (note,) = [record.message for record in caplog.records]
    assert note.startswith(f"note: {old} has format harness.signed_mask/1, without a digest")


def with_a_bit_after_the_last(kept: torch.Tensor) -> torch.Tensor:
    """Return the packed bits of a mask, with one of the padding bits set."""
    packed = np.packbits(kept.reshape(-1).numpy())
    packed[-1] |= 1
    return torch.from_numpy(packed)


ODD = {
    "unknown plane": ({"x:kept": torch.zeros(1, dtype=torch.uint8)}, {}),
    "bits after the last": ({"w:kept": with_a_bit_after_the_last(small().mask.tensors["w"])}, {}),
    "other kept weights": ({"w:kept": torch.full((3,), 255, dtype=torch.uint8)}, {}),
    "kept plane of floats": ({"w:kept": torch.zeros(3)}, {}),
    "kept plane too long": ({"w:kept": torch.zeros(4, dtype=torch.uint8)}, {}),
    "negative zero position": ({"n:zero": torch.tensor([-2])}, {}),
    "zero position too large": ({"n:zero": torch.tensor([3])}, {}),
    "zeros twice": ({"n:zero": torch.tensor([1, 1])}, {}),
    "zero with a sign": ({"n:zero": torch.tensor([0])}, {}),
    "zero plane of floats": ({"n:zero": torch.tensor([1.0])}, {}),
    "shapes no mapping": ({}, {"shapes": [3]}),
    "shape no list": ({}, {"shapes": {"w": 3, "n": [3]}}),
    "shape negative": ({}, {"shapes": {"w": [-3, -7], "n": [3]}}),
    "shape huge": ({}, {"shapes": {"w": [2**40, 2**40], "n": [3]}}),
    "shape of text": ({}, {"shapes": {"w": ["3", "7"], "n": [3]}}),
    "norm a number": ({}, {"norm": 5}),
    "metadata a list": ({}, {"metadata": [1]}),
    "format a list": ({}, {"format": [["harness"] * 99]}),
    "format 2 without digest": ({}, {"format": "harness.signed_mask/2"}),
    "format 1 with digest": ({}, {"sha256": "0" * 64}),
}


@pytest.mark.parametrize(("planes", "header"), ODD.values(), ids=ODD)
def test_odd_planes_and_headers_are_refused_in_one_line(tmp_path, planes, header):
    path = tmp_path / "odd.safetensors"
    small().save(path, {})
    as_format_1(path, planes, **header)
    with pytest.raises(ValueError, match=r"odd\.safetensors") as caught:
        SignedMask.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("load", [SignedMask.load, load_signed_mask, load_checkpoint])
@pytest.mark.parametrize("record", ["of the file", "of another file", "broken", "foreign"])
@pytest.mark.parametrize("linked", [False, True])
def test_the_record_beside_a_file_is_checked(tmp_path, caplog, load, record, linked):
    from harness.checkpoint import Checkpoint

    path = tmp_path / "x.safetensors"
    if load is load_checkpoint:
        Checkpoint({"w": torch.ones(3)}, {}, 0, 0, "").save(path)
    else:
        small().save(path, {})
    text = {"of the file": json.dumps({"files": {path.name: sha256_file(path)}}), "broken": "{"}
    text |= {"of another file": json.dumps({"files": {path.name: "0" * 64}}), "foreign": "[]"}
    (tmp_path / "record.json").write_text(text[record])
    if linked:  # into the directory of the run
        (tmp_path / "links").mkdir()
        link = tmp_path / "links" / "y.safetensors"
        link.symlink_to(path)
        path = link
    if record in ("of the file", "foreign"):
        load(path)
        assert ("record.json does not list it" in caplog.text) is (record == "foreign")
        return
    with pytest.raises(
        ValueError, match=r"[xy]\.safetensors (was altered: its SHA-256|cannot be checked: .*was altered)"
    ):
        load(path)
