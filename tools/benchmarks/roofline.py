"""Operations and bytes of a training step, counted before it is timed, and what a GPU could at best make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from harness.models import build_model

# Dense bf16 tensor operations a second and bytes a second, from NVIDIA's data sheets (SXM boards).
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


@dataclass(frozen=True)
class Work:
    """What forward and backward of one step do."""

    batch_size: int
    operations: int
    """Multiplications and additions of convolutions and matrix products."""
    bytes_moved: int
    """Every kernel's tensors read and written once, as an eager step does: fusion and caches need less."""

    def seconds_at_best(self, device_name: str) -> tuple[float, float] | None:
        """Return (by operations, by bytes) on a known GPU: a step takes at least the first; None for another one."""
        for name, (operations, bandwidth) in PEAKS.items():
            if name in device_name:
                return self.operations / operations, self.bytes_moved / bandwidth
        return None

    def describe(self, device_name: str) -> str:
        """Say it in words, with the limits in images a second."""
        text = (
            f"{self.operations / self.batch_size / 1e9:.2f} G operations and "
            f"{self.bytes_moved / self.batch_size / 1e6:.0f} MB an image"
        )
        best = self.seconds_at_best(device_name)
        if best is None:
            return text
        by_operations, by_bytes = (self.batch_size / seconds for seconds in best)
        return f"{text}: at most {by_operations:,.0f} images/s by operations, {by_bytes:,.0f} by bytes if nothing fuses"


class _Bytes(TorchDispatchMode):
    """Adds up the sizes of every operation's tensors, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and func is not torch.ops.aten.detach.default:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(name: str, *, batch_size: int, image_size: int, channels: int, num_classes: int, bf16: bool) -> Work:
    """Count forward and backward of a network on tensors that have a shape and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(name, num_classes=num_classes, channels=channels, image_size=image_size)
        images_NCHW = torch.empty(batch_size, channels, image_size, image_size)
        labels_N = torch.zeros(batch_size, dtype=torch.int64)
        with FlopCounterMode(display=False) as operations, _Bytes() as moved:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(images_NCHW).float(), labels_N)
            loss.backward()
    return Work(batch_size, operations.get_total_flops(), moved.moved)
