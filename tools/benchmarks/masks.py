"""Measure pruning against PyTorch's, and the size of a signed mask on disk, of a ResNet-50."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, custom_from_mask, global_unstructured, remove

from harness.masks import Mask, SignedMask
from harness.models import build_model, partition_of
from harness.pruning import prune as our_prune
from tools.benchmarks.measure import Goal, Row, compared, in_turns, seconds

FRACTION, SLACK_BYTES = 0.2, 64 * 1024


def resnet50() -> tuple[nn.Module, dict[str, Tensor], Mask, Mask]:
    """Return a fresh network, its parameters, the dense mask, and one of density 0.1."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    dense = Mask.dense(params, partition_of("resnet50", model).prunable)
    return model, params, dense, our_prune(params, dense, 0.9)


def prune(quick: bool) -> Iterator[Row]:
    """Time `prune` against torch.nn.utils.prune.global_unstructured, both exact.

    PyTorch keeps mask buffers, so the clock covers the call alone and the network is made ready outside of it.
    """
    model, params, *masks = resnet50()
    names, kept = sorted(masks[0].tensors), dict[str, Mask]()
    places = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in names]

    def ours() -> float:
        return seconds(lambda: kept.update(ours=our_prune(params, mask, FRACTION)))

    def theirs() -> float:
        if mask.num_remaining < mask.numel:
            for name, place in zip(names, places, strict=True):
                custom_from_mask(*place, mask.tensors[name])
        options = {"pruning_method": L1Unstructured, "amount": mask.num_remaining - kept["ours"].num_remaining}
        took = seconds(lambda: global_unstructured(places, **options))
        kept["theirs"] = Mask({name: model.get_buffer(f"{name}_mask").bool() for name in names})
        for place in places:
            remove(*place)
        model.load_state_dict(params, strict=False)
        return took

    for what, mask in zip(("dense", "at density 0.1"), masks, strict=True):
        timed = in_turns({"ours": ours, "theirs": theirs}, 1 if quick else 15)
        for found in kept.values():
            require_exact(params, mask, found)
        name = f"prune ResNet-50 {what} / global_unstructured [s]"
        note = f"{mask.numel:,} weights, {kept['ours'].num_remaining:,} kept, exact"
        yield compared(name, timed["ours"], timed["theirs"], Goal(most=1), note)


def require_exact(params: dict[str, Tensor], before: Mask, after: Mask) -> None:
    """Raise unless `after` keeps exactly the count asked for, of the live weights the largest."""
    live = torch.cat([params[name][was].abs() for name, was in before.tensors.items()])
    kept = torch.cat([after.tensors[name][was] for name, was in before.tensors.items()])
    right_count = after.num_remaining == int(kept.sum()) == int((1 - FRACTION) * before.num_remaining)
    if not right_count or live[kept].min() < live[~kept].max():
        raise RuntimeError(f"pruning is not exact: {after.num_remaining:,} of {before.num_remaining:,} are kept")


def mask_size(quick: bool) -> Iterator[Row]:
    """Compare the bytes of a signed mask at density 0.1 with one bit a weight and one more for each kept, and 64 KiB.

    Twice: as after training, when no parameter is exactly zero, and of a fresh network, whose biases all are: a
    parameter without a sign has to be listed. Parameters outside of the mask are all kept.
    """
    model, fresh, _, mask = resnet50()
    trained = {name: param + 1e-3 * torch.randn_like(param) for name, param in fresh.items()}
    for what, params in (("trained", trained), ("fresh", fresh)):
        signed = SignedMask.of(params, mask, partition_of("resnet50", model).norm)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "signed_mask.safetensors"
            signed.save(path, {"level": 10, "density": signed.density})
            size = path.stat().st_size
            if SignedMask.load(path).agreement(signed) != 1.0:
                raise RuntimeError("the file does not give the signed mask back")
        number = sum(sign.numel() for sign in signed.signs.values())
        allowed = (2 * number - mask.numel + mask.num_remaining) / 8 + SLACK_BYTES
        note = f"{number:,} parameters, {signed.num_zero_signs:,} of the kept exactly zero"
        name = f"signed mask of ResNet-50, density {signed.density:.2f}, {what} [bytes]"
        yield compared(name, [size], [allowed], Goal(most=1), note)
