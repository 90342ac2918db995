"""Survey a network: its partition by layer type, and the layers that the partition does not understand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from harness.models.partition import PRUNABLE_LAYERS, ParamPartition, Role, norm_parameters

_NEVER_PRUNED: dict[type[nn.Module], str] = {
    nn.ConvTranspose1d: "transposed convolution",
    nn.ConvTranspose2d: "transposed convolution",
    nn.ConvTranspose3d: "transposed convolution",
    nn.Conv3d: "3-d convolution",
    nn.RNNBase: "recurrent layer",
    nn.RNNCellBase: "recurrent layer",
    nn.Embedding: "embedding",
    nn.EmbeddingBag: "embedding",
    nn.Bilinear: "bilinear layer",
}
"""Known layers with weights that are not pruned."""
_PLAIN_SUBCLASSES = ("Conv2dSame", "Linear")
"""timm's subclasses of Conv2d and Linear whose forward pass uses the weight as torch's does."""
_POSITIONS = ("pos_embed", "position_embedding", "relative_position", "rel_pos", "token", "gamma", "layer_scale")
"""Parts of the names of parameters that belong to no layer by design: positions, extra tokens, layer scales."""
_SHOWN = 4


@dataclass(frozen=True)
class SurveyRow:
    """One line of the table: the parameters of one role in layers of one type."""

    role: Role
    layer: str
    num_tensors: int
    num_parameters: int


@dataclass(frozen=True)
class Remark:
    """Layers or parameters that the partition does not understand, and their treatment.

    Example:
        >>> str(Remark("embedding", ("words",), "not pruned"))
        'embedding (words): not pruned'
    """

    what: str
    names: tuple[str, ...]
    effect: str
    loud: bool = False
    """The treatment can change the meaning of the method. It is a warning."""

    def __str__(self) -> str:
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"{self.what} ({', '.join(self.names[:_SHOWN])}{more}): {self.effect}"


@dataclass(frozen=True)
class Survey:
    """The partition of a network in numbers, and the remarks about it."""

    rows: tuple[SurveyRow, ...]
    remarks: tuple[Remark, ...]

    @classmethod
    def of(cls, model: nn.Module, partition: ParamPartition, classifier: Sequence[str]) -> Survey:
        """Survey a network, which may be on the meta device.

        Args:
            model: The network.
            partition: Its partition.
            classifier: Names of the modules of its classifier.
        """
        return cls(tuple(_rows(model, partition, classifier)), tuple(_remarks(model)))

    def table(self) -> list[str]:
        """Return the table as lines of text, with a heading."""
        texts = [("role", "layer", "tensors", "parameters")]
        texts += [(row.role, row.layer, f"{row.num_tensors:,}", f"{row.num_parameters:,}") for row in self.rows]
        widths = [max(len(text[column]) for text in texts) for column in range(4)]
        return [
            f"{role:<{widths[0]}}  {layer:<{widths[1]}}  {tensors:>{widths[2]}}  {parameters:>{widths[3]}}"
            for role, layer, tensors, parameters in texts
        ]


def _rows(model: nn.Module, partition: ParamPartition, classifier: Sequence[str]) -> Iterator[SurveyRow]:
    """Yield the rows, in the order prunable, norm, other, and by falling size within a role."""
    # Phase: the layer type of each parameter, under its first name. A classifier is a type of its own.
    kinds = {}
    for module_name, module in model.named_modules():
        inside = any(module_name == one or module_name.startswith(f"{one}.") for one in classifier)
        for name, _ in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            kinds[full] = "classifier" if inside else type(module).__name__

    # Phase: tensors and parameters of each type.
    for role in ("prunable", "norm", "other"):
        tensors: Counter[str] = Counter()
        parameters: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            if name in getattr(partition, role):
                tensors[kinds[name]] += 1
                parameters[kinds[name]] += parameter.numel()
        for kind, number in parameters.most_common():
            yield SurveyRow(role, kind, tensors[kind], number)


def _remarks(model: nn.Module) -> Iterator[Remark]:
    """Yield a remark for each kind of layer that needs one, the loud ones first."""
    found: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for what, effect, loud, where in _of_module(name, module):
            found[what, effect, loud].append(where)
    for what, effect, names in _sharing(model):
        found[what, effect, False] += names
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    found["frozen parameter", "it is not trained, but a frozen weight of a prunable layer is pruned", False] += frozen
    for (what, effect, loud), names in sorted(found.items(), key=lambda item: not item[0][2]):
        if names:
            yield Remark(what, tuple(names), effect, loud)


def _of_module(name: str, module: nn.Module) -> Iterator[tuple[str, str, bool, str]]:
    """Yield (what, effect, loud, name) for one module."""
    kind, own = type(module).__name__, dict(module.named_parameters(recurse=False))
    if "parametrizations" in name.split("."):
        return  # named with their layer
    if parametrize.is_parametrized(module):
        base = type(module).__bases__[0].__name__
        yield f"parametrised {base}", "stays dense: its parameters count as other", False, name
        return
    # Phase: understood layers. A subclass may use its weight in another way.
    if norm_parameters(module) is not None or isinstance(module, nn.MultiheadAttention):
        return
    if isinstance(module, PRUNABLE_LAYERS):
        bases = [base for base in PRUNABLE_LAYERS if isinstance(module, base)]
        plain = type(module).forward is bases[0].forward or kind in _PLAIN_SUBCLASSES
        if not plain:
            effect = f"pruned as {bases[0].__name__}; its forward pass must multiply by the plain weight"
            yield f"{kind}, a layer with a forward pass of its own", effect, True, name
        return

    # Phase: layers that are known, but not pruned.
    what = next((what for base, what in _NEVER_PRUNED.items() if isinstance(module, base)), None)
    if what is not None:
        yield f"{what} {kind}", "stays dense: its parameters count as other", False, name
        return

    # Phase: unknown layers with parameters of their own.
    running = any(buffer.startswith("running_") for buffer, _ in module.named_buffers(recurse=False))
    if own and ("norm" in kind.lower() or running):
        effect = "AWS does NOT interpolate its parameters, and ψ does not contain them: they count as other"
        yield f"unknown normalisation layer {kind}", effect, True, name or "the network itself"
        return
    for parameter in own:
        full = f"{name}.{parameter}" if name else parameter
        if own[parameter].ndim > 1 and not any(part in full for part in _POSITIONS):
            yield f"parameter of an unknown layer {kind}", "stays dense: it counts as other", False, full


def _sharing(model: nn.Module) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (what, effect, names) for shared modules, and for tied parameters of different modules."""
    # Phase: one module under several names.
    modules: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if any(True for _ in module.parameters(recurse=False)):
            modules[id(module)].append(name)
    shared = [" = ".join(names) for names in modules.values() if len(names) > 1]
    yield "shared module", "one module, counted once under its first name", shared

    # Phase: one parameter in several modules.
    parameters: dict[int, list[str]] = defaultdict(list)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            parameters[id(parameter)].append(f"{module_name}.{name}" if module_name else name)
    tied = [" = ".join(names) for names in parameters.values() if len(names) > 1]
    yield "tied parameter", "one tensor, counted and pruned once under its first name", tied


def changed_by_sync_batchnorm(model: nn.Module) -> list[str]:
    """Return the types of BatchNorm layers that torch's conversion to SyncBatchNorm would replace by plain ones."""
    layers = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return sorted({type(layer).__name__ for layer in layers if not type(layer).__module__.startswith("torch.nn.")})
