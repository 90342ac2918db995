"""Gradients by which a method ranks weights before the first training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from harness.common.seeds import SgdNoise
from harness.common.tensors import plain_name
from harness.masks import Mask

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mean_gradients(
    model: nn.Module,
    params: Mapping[str, torch.Tensor],
    mask: Mask,
    *,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    loss: Loss,
    sgd_seed: int,
) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss over `batches` at θ ⊙ m. The model does not change.

    BatchNorm uses the statistics of each batch. All processes of torch.distributed must call this together.

    Args:
        model: The network. Its weights are not used.
        params: θ by plain parameter name.
        mask: m.
        batches: (images, labels) of any number of batches.
        loss: Takes outputs and labels, and returns the mean loss of a batch.
        sgd_seed: Seed of dropout.

    Returns:
        One CPU tensor for each parameter: the mean over processes.
    """
    # Phase: put θ ⊙ m beside the network, in the memory layout of its parameters.
    own = dict(model.named_parameters())
    weights = {name: torch.empty_like(param, requires_grad=False) for name, param in own.items()}
    for name, tensor in weights.items():
        tensor.copy_(params[plain_name(name)])
    mask.apply_({plain_name(name): tensor for name, tensor in weights.items()})
    for tensor in weights.values():
        tensor.requires_grad_()
    state = weights | {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    # Phase: go through the batches. Modes of the modules and torch's generators are restored.
    modes = [(module, module.training) for module in model.modules()]
    device = next(iter(own.values())).device
    seed, total = SgdNoise(sgd_seed, ("ranking",)).key("dropout", 0) >> 1, sum(len(labels) for _, labels in batches)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        try:
            model.train()
            for images, labels in batches:
                outputs = functional_call(model, state, (images.to(device),))
                (loss(outputs, labels.to(device)) * (len(labels) / total)).backward()
        finally:
            for module, mode in modes:
                module.training = mode

    # Phase: average over processes.
    grads = {plain_name(n): torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items()}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for grad in grads.values():
            torch.distributed.all_reduce(grad)
            grad.div_(torch.distributed.get_world_size())
    return {name: grad.detach().cpu() for name, grad in grads.items()}
