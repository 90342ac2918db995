"""Bytes on disk of ResNet-50's signed mask at density 0.1, against one bit a weight and one more for each kept.

Twice: as after training, when no parameter is exactly zero, and of a fresh network, whose biases all are: a parameter
without a sign has to be listed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from harness.lineage.nodes.record import SIGNED_MASK
from harness.masks import Mask, SignedMask
from harness.models import build_model, partition_of
from harness.pruning import prune
from tools.benchmarks.row import Row

FRACTION = 0.9
SLACK_BYTES = 64 * 1024


def rows(quick: bool) -> list[Row]:
    """Measure both files; there is nothing to be quicker about."""
    del quick
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    partition = partition_of("resnet50", model)
    fresh = {name: param.detach() for name, param in model.named_parameters()}
    mask = prune(fresh, Mask.dense(fresh, partition.prunable), FRACTION)
    # one step of any size leaves no bias at exactly zero
    trained = {name: param + 1e-3 * torch.randn_like(param) for name, param in fresh.items()}
    return [
        _row("trained", SignedMask.of(trained, mask, partition.norm)),
        _row("fresh", SignedMask.of(fresh, mask, partition.norm)),
    ]


def allowed_bytes(signs: Mapping[str, torch.Tensor], mask: Mask) -> float:
    """Return Σ over tensors of (1 + density) bits an element, in bytes, + 64 KiB; outside the mask the density is 1."""
    kept = {
        name: int(mask.tensors[name].sum()) if name in mask.tensors else sign.numel() for name, sign in signs.items()
    }
    bits = sum(signs[name].numel() + kept[name] for name in signs)
    return bits / 8 + SLACK_BYTES


def _row(name: str, signed_mask: SignedMask) -> Row:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / SIGNED_MASK
        signed_mask.save(path, {"level": 10, "density": signed_mask.density})
        size = path.stat().st_size
        if SignedMask.load(path).agreement(signed_mask) != 1.0:
            raise RuntimeError("the file does not give the signed mask back")
    allowed = allowed_bytes(signed_mask.signs, signed_mask.mask)
    ratio = size / allowed
    return Row(
        name=f"signed mask of ResNet-50, density {signed_mask.density:.2f}, {name} [bytes]",
        ours=size,
        reference=allowed,
        ratio=ratio,
        goal="≤ 1×",
        reached=ratio <= 1,
        low=ratio,
        high=ratio,
        note=f"{sum(sign.numel() for sign in signed_mask.signs.values()):,} parameters, "
        f"{signed_mask.num_zero_signs:,} of the kept exactly zero",
    )
