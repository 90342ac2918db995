"""Partition a network's parameters into prunable weights, norm parameters and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Role = Literal["prunable", "norm", "other"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: all BatchNorm and InstanceNorm layers
_NORMS_BY_NAME = {
    "timm": {
        # RMS and "simple" norms have a scale only.
        **dict.fromkeys(("RmsNorm", "RmsNorm2d", "RmsNormFp32", "RmsNorm2dFp32"), ("weight",)),
        **dict.fromkeys(("SimpleNorm", "SimpleNorm2d", "SimpleNormFp32", "SimpleNorm2dFp32"), ("weight",)),
        # Of the norms with a built-in activation, scale and shift are ψ. Slopes, thresholds and ε are not.
        **dict.fromkeys((f"EvoNorm2d{name}" for name in ("B0", "B1", "B2", "S0", "S1", "S2")), ("weight", "bias")),
        **dict.fromkeys(("FilterResponseNormAct2d", "FilterResponseNormTlu2d"), ("weight", "bias")),
        **dict.fromkeys(("InplaceAbn", "GlobalResponseNorm"), ("weight", "bias")),
    }
}
"""Normalisation layers that derive from none of torch's: library → class → names of the parameters that are ψ."""
_STANDARDISED = {"timm": ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")}
"""Convolutions that standardise their weight in the forward pass. A pruned weight would not be zero there."""
PRUNABLE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class ParamPartition:
    """Names of a network's parameters in three disjoint sets (method section 2).

    `prunable`: weights of Conv1d, Conv2d and Linear layers and of attention input projections, except in the
    classifier. `norm`: ψ, the weights and biases of normalisation layers. `other`: biases, the classifier, and all
    remaining parameters. Normalisation layers are torch's, and those of timm that derive from none of torch's.

    Raises:
        ValueError: A name is in two sets.
    """

    prunable: frozenset[str]
    norm: frozenset[str]
    other: frozenset[str]

    def __post_init__(self) -> None:
        twice = (self.prunable & self.norm) | (self.prunable & self.other) | (self.norm & self.other)
        if twice:
            raise ValueError(f"a parameter can have only one role; these have two: {', '.join(sorted(twice))}")

    @classmethod
    def of(cls, model: nn.Module, classifier: str | Sequence[str]) -> Self:
        """Partition the parameters of `model` by the type of their module.

        A parameter shared by several modules appears once, under its first name in `model.named_parameters()`. It must
        have the same role in all of them. One exception: a parameter of the classifier is never prunable.

        Args:
            model: The network.
            classifier: Dotted name of the classifier's module, or the names of several.

        Raises:
            ValueError: The classifier does not exist, a layer's weight is parametrised or standardised, or a shared
                parameter has two roles.
        """
        # Collect the role of each parameter under each of its names.
        several = [classifier] if isinstance(classifier, str) else classifier
        classifier_parameters = {id_ for one in several for id_ in _classifier_parameters(model, one)}
        roles: dict[int, dict[str, Role]] = {}  # id(parameter) → {name: role}
        for name, parameter, role in _named_roles(model):
            if role == "prunable" and id(parameter) in classifier_parameters:
                role = "other"
            roles.setdefault(id(parameter), {})[name] = role
        # Put each parameter into one set, if its roles agree.
        names: dict[Role, set[str]] = {"prunable": set(), "norm": set(), "other": set()}
        for name, parameter in model.named_parameters():
            held_as = roles[id(parameter)]
            if len(set(held_as.values())) > 1:
                listed = ", ".join(f"{n} is {r}" for n, r in held_as.items())
                raise ValueError(f"a shared parameter has different roles: {listed}; do not share it")
            names[held_as[name]].add(name)
        return cls(**{field.name: frozenset(names[field.name]) for field in fields(cls)})  # type: ignore[index]


def _classifier_parameters(model: nn.Module, classifier: str) -> set[int]:
    modules = dict(model.named_modules())
    if classifier not in modules or classifier == "":
        known = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"no classifier {classifier!r} in {type(model).__name__}; its modules: {known}")
    parameters = {id(parameter) for parameter in modules[classifier].parameters()}
    if not parameters:
        raise ValueError(f"the classifier {classifier!r} of {type(model).__name__} has no parameters; name its layer")
    return parameters


def _named_roles(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Yield (name, parameter, role) for every name of every parameter."""
    for module_name, module in model.named_modules(remove_duplicate=False):
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if isinstance(module, PRUNABLE_LAYERS) and "weight" not in own:
            raise ValueError(
                f"{module_name} ({type(module).__name__}) has no plain weight, because it uses a parametrisation or "
                "weight norm; remove that before partitioning the parameters"
            )
        if _of_library(module, _STANDARDISED):
            raise ValueError(
                f"{module_name} ({type(module).__name__}) standardises its weight in the forward pass, where a pruned "
                "weight is then not zero; choose a network with plain convolutions"
            )
        for short_name, parameter in own.items():
            full_name = f"{module_name}.{short_name}" if module_name else short_name
            yield full_name, parameter, _role(module, short_name)


def norm_parameters(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the module's own parameters that are ψ; None if it is no known normalisation layer."""
    if isinstance(module, _NORMS):
        return tuple(name for name, _ in module.named_parameters(recurse=False))
    return _of_library(module, _NORMS_BY_NAME)


def _of_library(module: nn.Module, table: Mapping[str, Any]) -> Any:
    """Return the entry of the first class of the module in a table by library; None if there is none."""
    for kind in type(module).__mro__:
        listed = table.get(kind.__module__.partition(".")[0], ())
        if kind.__name__ in listed:
            return listed[kind.__name__] if isinstance(listed, Mapping) else kind.__name__
    return None


def _role(module: nn.Module, name: str) -> Role:
    if (norm := norm_parameters(module)) is not None:
        return "norm" if name in norm else "other"
    if isinstance(module, PRUNABLE_LAYERS) and name == "weight":
        return "prunable"
    if isinstance(module, nn.MultiheadAttention) and name in _ATTENTION_PROJECTIONS:
        return "prunable"
    return "other"
