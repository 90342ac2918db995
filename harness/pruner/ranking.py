"""Gradients by which a method ranks weights before the first training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from harness.common.seeds import SgdNoise
from harness.common.tensors import own_names
from harness.masks import Mask

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def listed_batches(given: Batches | Callable[[], Batches]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return all batches of a user.

    Args:
        given: The batches, or a function that returns them.

    Raises:
        ValueError: There is no batch, or one is no pair of tensors (images, labels) of equal length.
    """
    pairs = "give a list of (images, labels), or a function that returns them"
    found = given() if callable(given) else given
    if isinstance(found, str | torch.Tensor) or not isinstance(found, Iterable):
        raise ValueError(f"batches is {type(found).__name__}; {pairs}")
    batches = list(found)
    if not batches:
        raise ValueError(f"batches holds no batch; {pairs}")
    for number, batch in enumerate(batches):
        if not isinstance(batch, list | tuple) or [isinstance(one, torch.Tensor) for one in batch] != [True, True]:
            raise ValueError(f"batch {number} of batches is no pair of tensors (images, labels); {pairs}")
        if not batch[1].ndim or len(batch[0]) != len(batch[1]):
            raise ValueError(f"batch {number} of batches has {len(batch[0])} images and labels of another length")
    return [(images, labels) for images, labels in batches]


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
        params: θ by parameter name, without the parts that wrappers add.
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
    names = own_names(model, own)
    for name, tensor in weights.items():
        tensor.copy_(params[names[name]])
    mask.apply_({names[name]: tensor for name, tensor in weights.items()})
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
                mean = loss(outputs, labels.to(device))
                if not isinstance(mean, torch.Tensor) or mean.numel() != 1 or not mean.requires_grad:
                    shape = tuple(mean.shape) if isinstance(mean, torch.Tensor) else type(mean).__name__
                    raise ValueError(
                        f"loss returned {shape}; it must return the mean loss of a batch, one number with a gradient: "
                        "levels(…, loss=torch.nn.functional.cross_entropy)"
                    )
                (mean * (len(labels) / total)).backward()
        finally:
            for module, mode in modes:
                module.training = mode

    # Phase: average over processes.
    grads = {names[n]: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items()}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for grad in grads.values():
            torch.distributed.all_reduce(grad)
            grad.div_(torch.distributed.get_world_size())
    return {name: grad.detach().cpu() for name, grad in grads.items()}
