"""Count operations and bytes of a training step without a device, and what a GPU could at best make of them.

`python -m tools.benchmarks.roofline` prints the table of docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from harness.models import build_model
from tools.benchmarks.measure import table

# Dense bf16 tensor operations a second, and bytes a second, from NVIDIA's data sheets (SXM boards).
OPERATIONS, BYTES = 989e12, {"H100": 3.35e12, "H200": 4.8e12}
CASES = [("resnet50", 224, 256, 1000), ("resnet50_cifar", 32, 128, 100)]
CASES += [("mobilenet_v2_cifar", 32, 128, 100), ("resnet20", 32, 128, 100)]


class MovedBytes(TorchDispatchMode):
    """Adds up the tensors that each kernel reads and writes, but for views, as an eager step does."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and func is not torch.ops.aten.detach.default:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(name: str, image_size: int, batch_size: int, num_classes: int, *, bf16: bool = True) -> tuple[float, float]:
    """Return operations and bytes an image of forward and backward, on tensors that have a shape and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(name, num_classes=num_classes, channels=3, image_size=image_size)
        images_NCHW = torch.empty(batch_size, 3, image_size, image_size)
        labels_N = torch.zeros(batch_size, dtype=torch.int64)
        with FlopCounterMode(display=False) as operations, MovedBytes() as moved:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(images_NCHW).float(), labels_N)
            loss.backward()
    return operations.get_total_flops() / batch_size, moved.total / batch_size


if __name__ == "__main__":
    rows = [["network", "operations an image", "bytes an image", "images/s at most, by operations", *BYTES]]
    for name, size, batch_size, num_classes in CASES:
        operations, moved = count(name, size, batch_size, num_classes)
        limits = f"{OPERATIONS / operations:,.0f}", *(f"{peak / moved:,.0f}" for peak in BYTES.values())
        work = f"{operations / 1e9:.2f} G", f"{moved / 1e6:.0f} MB"
        rows.append([f"{name}, {size}², batch {batch_size}", *work, *limits])
    print(table(rows))
