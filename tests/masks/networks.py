"""Networks, their signed masks, and the ways to wrap them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from harness.masks import Mask, SignedMask


class Net(nn.Module):
    """Convolution, BatchNorm and classifier, for images (N, 3, 8, 8)."""

    def __init__(self, classes: int = 5, name: str = "conv") -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(3, 8, 3))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.get_submodule(self.name)(images))).flatten(1))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(vectors))


class Inside(nn.Module):
    """A wrapper of another library, which adds a prefix to all names."""

    def __init__(self, model: nn.Module, name: str = "module") -> None:
        super().__init__()
        self.add_module(name, model)
        self.name = name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(images)


def network(classes: int = 5, name: str = "conv") -> Net:
    torch.manual_seed(0)
    return Net(classes, name)


def params_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def signed(model: nn.Module | None = None, *names: str, density: float = 0.3) -> SignedMask:
    """Return the signed mask of another initialisation, which masks the `names` (default: the convolution)."""
    torch.manual_seed(1)
    model = model or network()
    params = {name: torch.randn_like(param) for name, param in params_of(model).items()}
    names = names or (f"{getattr(model, 'name', 'conv')}.weight",)
    mask = Mask({name: torch.rand_like(params[name]) < density for name in names})
    return SignedMask.of(params, mask, norm=[name for name in params if "norm" in name])


def part_wrapped(model: nn.Module) -> nn.Module:
    """Wrap the convolution alone, as torch's ImageNet example does with `features` of a VGG."""
    assert isinstance(model, Net)
    model.add_module(model.name, nn.DataParallel(model.get_submodule(model.name)))
    return model


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "compiled": compiled,
    "compiled DDP": lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
    "DDP of compiled": lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
    "DDP of compiled DDP": lambda model: nn.parallel.DistributedDataParallel(
        compiled(nn.parallel.DistributedDataParallel(model))
    ),
    "DataParallel of DataParallel": lambda model: nn.DataParallel(nn.DataParallel(model)),
    "a part of it": part_wrapped,
    "a part of it, DDP of all": lambda model: nn.parallel.DistributedDataParallel(part_wrapped(model)),
    "of another library": Inside,
    "of another library, compiled": lambda model: compiled(Inside(Inside(model))),
}
