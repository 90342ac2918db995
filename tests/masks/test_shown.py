"""Test masks as values: how they are shown, compared, copied, pickled and moved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.checkpoint import Checkpoint, Pretrained
from harness.masks import Mask, SignedMask
from harness.models import build_model
from harness.models.partition import ParamPartition
from harness.pruner.sign_pruner import Level
from harness.runs.run import FinishedRun
from tests.masks.networks import network, params_of, signed


def large() -> SignedMask:
    """Return the signed mask of a network with dozens of tensors."""
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, channels=3, image_size=32)
    partition = ParamPartition.of(model, "fc")
    params = params_of(model)
    mask = Mask({name: torch.rand_like(params[name]) < 0.25 for name in sorted(partition.prunable)})
    return SignedMask.of(params, mask, partition.norm)


def test_a_signed_mask_is_shown_in_three_lines() -> None:
    signs = large()
    signs.signs["fc.bias"][:] = 1
    signs = replace(signs, signs=dict(reversed(signs.signs.items())))  # biases before their weights
    first, second, third = repr(signs).splitlines()
    kept, total = f"{signs.mask.num_remaining:,}", f"{signs.mask.numel:,}"
    assert first.startswith(f"SignedMask: {kept} of {total} prunable weights kept (density 0.2")
    assert first.endswith(f"{signs.num_zero_signs} kept parameters without a sign"), "the biases of BatchNorm"
    assert "masked tensors: " in second and "and 16 more; 38 norm tensors ψ; never pruned: fc.weight, fc.bias" in second
    assert third == "  of no recorded run"
    told = {"method": "aws", "level": 3, "classifier": "fc", "level_digest": "ab" * 32}
    assert repr(replace(signs, metadata=told)).endswith("\n  method aws, level 3, classifier fc, key abababababab…")
    assert repr(replace(signs, metadata=told, origin="run x")).endswith("level 3, classifier fc, run x")


def test_a_mask_is_shown_in_three_lines() -> None:
    mask = Mask(
        {name: torch.arange(10) < number for name, number in (("a", 5), ("b", 2), ("c", 9), ("d", 4), ("e", 4))}
    )
    assert repr(mask).splitlines() == [
        "Mask: 24 of 50 weights kept (density 0.480)",
        "  5 tensors: a (10,), b (10,), c (10,) and 2 more",
        "  density by tensor: 0.200 (b) to 0.900 (c)",
    ]


LEVEL = Level(2, 5, signed().mask, begin_steps=0, steps_done=7, seed=3)
HELD = Checkpoint.of(network(), level=2, epochs=12, level_digest="cd" * 32)
SHOWN: dict[str, tuple[Any, str, int]] = {
    "empty mask": (Mask({}), "0 tensors: none\n  density by tensor: none", 3),
    "empty signed mask": (SignedMask({}, Mask({})), "0 masked tensors: none; 0 norm tensors ψ; never pruned: none", 3),
    "empty tensor": (Mask({"w": torch.zeros(0, 3, dtype=torch.bool)}), "  density by tensor: none", 3),
    "meta mask": (
        Mask({"w": torch.zeros(2, dtype=torch.bool, device="meta")}),
        "2 weights, without values\n  1 tensor: w",
        3,
    ),
    "meta signed mask": (signed().to("meta"), "without values", 3),
    "level": (LEVEL, "Level: 2 of 5, ", 3),
    "checkpoint": (HELD, "Checkpoint: level 2, 12 epochs, 1,685 parameters in 6 tensors, 17 values in 3 buffers", 3),
    "pretrained": (Pretrained(HELD.params), "Pretrained: 6 tensors: conv.weight (8, 3, 3, 3)", 1),
    "run": (FinishedRun("ab" * 32, HELD, signed(), None), "FinishedRun: level 2, key abab", 4),
    "hostile names": (Mask({"\x1b[2J\n" + "w" * 500: torch.ones(1, dtype=torch.bool)}), r"\x1b[2J\nwww", 3),
    "hostile metadata": (replace(signed(), metadata={"method": "\x1b" * 9 + "\n" * 300}), r"method \x1b\x1b", 3),
}


@pytest.mark.parametrize(("shown", "words", "lines"), SHOWN.values(), ids=SHOWN)
def test_every_object_with_tensors_is_shown_in_a_few_short_lines(shown: Any, words: str, lines: int) -> None:
    text = repr(shown)
    assert words in text and "nan" not in text and len(text.splitlines()) == lines and len(text) < 700
    assert all(character.isprintable() or character == "\n" for character in text)


def test_equal_contents_are_equal() -> None:
    signs, same = signed(), signed()
    assert signs == same and signs.mask == same.mask and signs.mask.equal(same.mask)
    assert signs == replace(same, metadata={"level": 3}, origin="elsewhere"), "metadata are not compared"
    flipped = {name: -sign if name == "fc.bias" else sign for name, sign in signs.signs.items()}
    assert signs != replace(same, signs=flipped) and signs != replace(same, norm=frozenset())
    reshaped = {name: sign.unsqueeze(0) if name == "fc.bias" else sign for name, sign in signs.signs.items()}
    assert signs != replace(same, signs=reshaped), "another shape of a tensor outside the mask"
    assert signs != replace(same, mask=Mask({})) and signs.mask != Mask({})
    assert signs.mask != Mask({"conv.weight": ~signs.mask["conv.weight"]})
    assert signs.mask != Mask({"conv.weight": signs.mask["conv.weight"].reshape(-1)}), "another shape"
    assert signs != signs.mask and signs.mask != "mask" and signs != 3
    for value in (signs, signs.mask):
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)


def test_a_mask_is_read_by_name() -> None:
    mask = signed(None, "conv.weight", "fc.weight").mask
    assert len(mask) == 2 and list(mask) == ["conv.weight", "fc.weight"] and "conv.weight" in mask
    assert mask["fc.weight"] is mask.tensors["fc.weight"] and "norm.weight" not in mask
    assert bool(Mask({})), "an empty mask is no missing mask"


@pytest.mark.parametrize("bound", [False, True])
def test_copies_and_pickles_are_equal_and_unbound(bound: bool) -> None:
    signs, model = signed(), network()
    if bound:
        signs.apply_(model)
    buffer = io.BytesIO()
    torch.save(signs, buffer)
    copies = [copy.copy(signs), copy.deepcopy(signs), replace(signs), pickle.loads(pickle.dumps(signs))]
    copies.append(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False))
    for one in copies:
        assert one == signs and one.digest == signs.digest and one.mask == signs.mask
        with pytest.raises(ValueError, match="is unknown; give it"):
            one.keep(torch.optim.SGD(model.parameters(), lr=0.1))
    if bound:
        signs.keep(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    "values", [torch.ones(3), torch.ones(3, dtype=torch.uint8), np.ones(3, dtype=bool), [True], None], ids=str
)
def test_masks_of_other_types_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="a mask has bool tensors, but w is .*; give tensor != 0"):
        Mask({"w": values})


def test_odd_arguments_of_masks_are_refused_in_one_line(tmp_path: Path) -> None:
    # Two masks of different shapes, and calls with arguments of other types.
    theta, ones = {"weight": torch.tensor([1.0, -1.0])}, torch.ones(3)
    mask = Mask({"weight": torch.tensor([True, False])})
    signs, other = SignedMask.of(theta, mask), SignedMask.of({"weight": ones}, Mask({"weight": ones > 0}))
    refused: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: Mask([1]), TypeError, "takes bool tensors by name"),  # type: ignore[arg-type]
        (lambda: SignedMask.of(theta, mask, ["bn"]), ValueError, "norm names bn, which the network does not have"),
        (lambda: signs.agreement(mask), TypeError, "takes a signed mask, got Mask"),  # type: ignore[arg-type]
        (lambda: signs.agreement(other), ValueError, r"weight is \(3,\) in the other one"),
        (lambda: signs.signed(theta, norm="yes"), TypeError, "norm is 'yes'; give True or False"),  # type: ignore[arg-type]
        (lambda: signs.save(tmp_path / "m", {"a": np.float32(1)}), ValueError, "metadata must be JSON values"),
    ]
    for call, kind, complaint in refused:
        with pytest.raises(kind, match=complaint) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert SignedMask.of(theta, mask, "weight").norm == {"weight"}
