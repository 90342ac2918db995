"""Operations and bytes of a training step, counted without a device, and what a GPU could at best make of them.

`python -m tools.benchmarks.device.roofline` prints the table of docs/performance.md.
"""

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

CASES = (
    ("resnet50", 224, 256, 1000),
    ("resnet50_cifar", 32, 128, 100),
    ("mobilenet_v2_cifar", 32, 128, 100),
    ("resnet20", 32, 128, 100),
)
"""Network, image size, batch size and classes of the table's rows."""


@dataclass(frozen=True)
class Work:
    """What forward and backward of one step do."""

    batch_size: int
    operations: int
    """Multiplications and additions of convolutions and matrix products."""
    bytes_moved: int
    """Every kernel's tensors read and written once, as an eager step does: fusion and caches need less."""

    def images_per_second_at_best(self, gpu: str) -> tuple[float, float]:
        """Return the limits (by operations, by bytes) of a GPU of `PEAKS`; a step cannot pass the first."""
        operations, bandwidth = PEAKS[gpu]
        return self.batch_size * operations / self.operations, self.batch_size * bandwidth / self.bytes_moved


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


def main() -> None:
    """Print the table."""
    print(
        "| network | operations an image | bytes an image | at most, by operations | by bytes, H100 | by bytes, H200 |"
    )
    print("|---|---|---|---|---|---|")
    for name, size, batch_size, num_classes in CASES:
        work = count(name, batch_size=batch_size, image_size=size, channels=3, num_classes=num_classes, bf16=True)
        (by_operations, h100), (_, h200) = (work.images_per_second_at_best(gpu) for gpu in ("H100", "H200"))
        each = f"{work.operations / batch_size / 1e9:.2f} G | {work.bytes_moved / batch_size / 1e6:.0f} MB"
        limits = f"{by_operations:,.0f} images/s | {h100:,.0f} | {h200:,.0f}"
        print(f"| {name}, {size}², batch {batch_size} | {each} | {limits} |")


if __name__ == "__main__":
    main()
