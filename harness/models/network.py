"""A resolved network: where it comes from, how it is built and drawn, and the inputs to a key that it gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from harness.common.digest import sha256_json
from harness.common.seeds import derive_seed
from harness.common.user_code import first_line
from harness.config import ModelConfig, NetworkKind, known
from harness.models import MODELS, build_model, classifier_of, initialise, width_of
from harness.models.partition import ParamPartition
from harness.models.sources import (
    NotBuildableError,
    check_options,
    file_model,
    library_version,
    timm_model,
    timm_options,
    torchvision_model,
    torchvision_options,
)
from harness.models.survey import Survey

SOURCE_FILE = "network.py"
"""Name of the copy of a user's file in each of its runs."""

TensorRows = list[list[Any]]
"""[role, name, shape] of each parameter and buffer, by name. The role is one of a partition, or "buffer"."""


@dataclass(frozen=True)
class Definition:
    """A network before the sizes of the data are known.

    Example:
        >>> Definition.of(ModelConfig("resnet20")).sized(10, 3, 32).build().fc.out_features
        10
    """

    name: str
    """The name that the user gave: of a built-in network, timm:NAME, torchvision:NAME or FILE.py:FUNCTION."""
    kind: NetworkKind
    width: int | None = None
    """Built-in networks only. None: the network's own."""
    options: str = "{}"
    """The user's options of the constructor, as canonical JSON."""
    chosen_classifier: tuple[str, ...] = ()
    """Modules that the user named. (): chosen by `Network.classifier`."""
    source: bytes | None = None
    """Content of the user's file."""
    version: str = ""
    """Version of the library."""

    @classmethod
    def of(cls, config: ModelConfig, source: bytes | None = None) -> Definition:
        """Return the network that the settings name.

        Args:
            config: The settings.
            source: Content of the user's file. The caller has decided that it may be executed.

        Raises:
            ValueError: An option does not belong to this kind of network.
            NotBuildableError: The library is not installed, or a built-in network is unknown.
        """
        # Phase: options that the kind of network does not have.
        kind, args = config.kind, config.options
        if kind == "built-in":
            try:
                known("network", config.name, list(MODELS))
            except ValueError as error:
                others = "further networks are timm:NAME, torchvision:NAME and FILE.py:FUNCTION"
                raise NotBuildableError(f"{error}; {others}") from None
            if args or config.classifier:
                raise ValueError(
                    f"--model.args and --model.classifier are for networks that are not built in; {config.name} has "
                    "--model.width at most"
                )
            return cls(config.name, kind, config.width)
        if config.width is not None:
            raise ValueError(
                f"--model.width is for built-in networks; give {config.name} its options with --model.args"
            )
        if kind == "file" and source is None:
            raise ValueError(f"the file of {config.name} was not read; resolve it with harness.cli.resolve first")

        # Phase: the definition.
        check_options(config.name, args)
        version = library_version(kind) if kind != "file" else ""
        options = json.dumps(args, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        classifier = tuple(config.classifier.split(",")) if config.classifier else ()
        return cls(config.name, kind, None, options, classifier, source, version)

    @property
    def label(self) -> str:
        """The name in keys, tags and names of runs (see `ModelConfig.label`)."""
        return ModelConfig(self.name).label

    @property
    def shown(self) -> str:
        """The label, with the width or the options that the user gave."""
        if self.kind == "built-in":
            usual = self.width in (None, width_of(self.name, None))
            return self.label if usual else f"{self.label}-w{self.width}"
        given = ",".join(f"{name}={value}" for name, value in json.loads(self.options).items())
        return f"{self.label}({given})" if given else self.label

    def sized(self, num_classes: int, channels: int, image_size: int) -> Network:
        """Return the network for images (channels, image_size, image_size) of `num_classes` classes."""
        return Network(self, num_classes, channels, image_size)


@dataclass(frozen=True)
class Network:
    """A network for images of one size. Equal networks have equal parameters for equal seeds."""

    definition: Definition
    num_classes: int
    channels: int
    image_size: int
    former: bool = False
    """Built-in networks only: draw as older versions did (see `harness.config.redrawn`)."""

    # ------------------------------------------------------------------ building

    def build(self) -> nn.Module:
        """Build the network on the current device. torch's global generator draws its values.

        Raises:
            ValueError: The constructor rejects the options. The message gives its reason.
        """
        own, sizes = self.definition, {"num_classes": self.num_classes, "channels": self.channels}
        if own.kind == "built-in":
            return build_model(own.name, width=own.width, former=self.former, image_size=self.image_size, **sizes)
        if own.kind == "timm":
            return timm_model(own.name, self.options, **sizes)
        if own.kind == "torchvision":
            return torchvision_model(own.name, self.options, num_classes=self.num_classes)
        assert own.source is not None
        path, _, function = own.name.rpartition(":")
        return file_model(own.source, path, function, sizes | {"image_size": self.image_size} | self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the constructor, with those that follow from the size of the images."""
        own, given = self.definition, json.loads(self.definition.options)
        if own.kind == "timm":
            return timm_options(own.name, given, self.image_size)
        if own.kind == "torchvision":
            return torchvision_options(own.name, given, channels=self.channels, image_size=self.image_size)
        return dict(given)

    def draw(self, init_seed: int, scheme: str = "network") -> nn.Module:
        """Build the network at θ_init(`init_seed`) on the CPU. No global random state changes.

        Args:
            init_seed: Seed of θ_init.
            scheme: Initialisation of the prunable weights and the classifier's weights, one of
                `harness.models.initialise.SCHEMES`.
        """
        # Draw the network's own initialisation. Another scheme then replaces the weights.
        with initialise.private_generators(derive_seed(init_seed, "init") >> 1):
            model = self.build()
        if scheme != "network":
            params, heads = dict(model.named_parameters()), {f"{name}.weight" for name in self.classifier}
            initialise.initialise_(params, self.partition.prunable | heads & params.keys(), scheme, init_seed)
        return model

    def check(self) -> None:
        """Check that the network maps images to logits, in training and in evaluation. Built-in networks are known to.

        Raises:
            ValueError: It does not. The message says what it returned, and what to do.
        """
        if self.definition.kind == "built-in":
            return
        name, want = self.definition.shown, (2, self.num_classes)
        with initialise.private_generators(0):
            model = self.build()
            _check_parameters(name, model)
            images_NCHW = torch.randn(2, self.channels, self.image_size, self.image_size)
            for training in (True, False):
                try:
                    with torch.no_grad():
                        found = model.train(training)(images_NCHW)
                except Exception as error:  # a stranger's forward pass can fail in any way
                    size = f"{self.channels}×{self.image_size}×{self.image_size}"
                    said = f"{type(error).__name__}: {first_line(error)}"
                    raise ValueError(f"{name} fails on images of {size}: {said}") from error
                _check_logits(name, found, want)
        if not self.partition.prunable:
            raise ValueError(
                f"{name} has no prunable weight: no convolution or linear layer besides its classifier "
                f"{', '.join(self.classifier)}; --model.classifier names another"
            )

    # ------------------------------------------------------------------ description

    @property
    def classifier(self) -> tuple[str, ...]:
        """Names of the modules that are never pruned: the user's, else the library's, else the last linear layer."""
        return _inspected(self).classifier

    @property
    def partition(self) -> ParamPartition:
        """The partition of its parameters."""
        return _inspected(self).partition

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all parameters and buffers by name."""
        return {name: torch.Size(shape) for _, name, shape in _inspected(self).tensors}

    @property
    def unsaved(self) -> frozenset[str]:
        """Names of the buffers that are no part of the network's state dict."""
        return _inspected(self).unsaved

    @property
    def survey(self) -> Survey:
        """The partition by layer type, and the layers that it does not understand."""
        return _inspected(self).survey

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices that the user did not make, as sentences. Built-in networks have none."""
        return _inspected(self).notes

    @property
    def determinants(self) -> dict[str, Any]:
        """The entry "model" of a run's determinants."""
        own = self.definition
        if own.kind == "built-in":
            return {"name": own.name, "width": width_of(own.name, own.width)}
        found = _inspected(self)
        return {
            "name": own.label,
            **self._origin,
            "args": found.options,
            "classifier": list(found.classifier),
            "tensors": sha256_json(found.tensors),
        }

    @property
    def recorded(self) -> dict[str, Any]:
        """Entries of a run's record. {} for built-in networks.

        They have the shapes and roles of all tensors, so that runs can be verified where the network cannot be built.
        """
        if self.definition.kind == "built-in":
            return {}
        found = _inspected(self)
        entry = {"kind": self.definition.kind, **self._origin, "args": found.options}
        return {"network": entry | {"classifier": list(found.classifier), "tensors": found.tensors}}

    @property
    def _origin(self) -> dict[str, str]:
        """What identifies the code of the network."""
        own = self.definition
        if own.source is not None:
            return {"sha256": sha256(own.source).hexdigest()}
        return {"library": f"{own.kind} {own.version}"}


@dataclass(frozen=True)
class _Inspected:
    """Everything that is read from a network that was built once."""

    classifier: tuple[str, ...]
    partition: ParamPartition
    tensors: TensorRows
    options: dict[str, Any]
    unsaved: frozenset[str]
    survey: Survey
    notes: tuple[str, ...]


@lru_cache(maxsize=8)
def _inspected(network: Network) -> _Inspected:
    """Build a network once, and read its names, shapes and partition.

    Built-in networks are built on the meta device. Other constructors may need values.
    """
    # Phase: build it, and find its classifier.
    own = network.definition
    with initialise.private_generators(0), torch.device("meta" if own.kind == "built-in" else "cpu"):
        model = network.build()
    options, notes = network.options, []
    if own.kind == "built-in":
        classifier: tuple[str, ...] = (classifier_of(own.name),)
    else:
        classifier, why = _classifier(own, model, network.num_classes)
        notes = [why] if why else []
        for name in options.keys() - json.loads(own.options).keys():
            notes.append(f"{own.label} is built with {name}={options[name]}, the size of the images")

    # Phase: names, shapes and roles of all tensors.
    partition = ParamPartition.of(model, classifier)
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    rows: TensorRows = [[_role(partition, name), name, list(tensor.shape)] for name, tensor in tensors.items()]
    rows += [["buffer", name, list(buffer.shape)] for name, buffer in model.named_buffers()]
    rows.sort(key=lambda row: str(row[1]))
    unsaved = frozenset(name for name, _ in model.named_buffers()) - model.state_dict().keys()
    survey = Survey.of(model, partition, classifier)
    return _Inspected(classifier, partition, rows, options, unsaved, survey, tuple(notes))


def _role(partition: ParamPartition, name: str) -> str:
    return "prunable" if name in partition.prunable else "norm" if name in partition.norm else "other"


def _classifier(own: Definition, model: nn.Module, num_classes: int) -> tuple[tuple[str, ...], str]:
    """Return the names of the classifier's modules, and a sentence about a choice that nobody made."""
    modules = dict(model.named_modules())
    if own.chosen_classifier:
        return own.chosen_classifier, ""
    told = getattr(model, "default_cfg", None) if own.kind == "timm" else None
    told = told.get("classifier") if isinstance(told, Mapping) else None
    several = (told,) if isinstance(told, str) else tuple(told or ())
    if several and all(name in modules and any(True for _ in modules[name].parameters()) for name in several):
        return several, ""
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    fitting = [name for name in linear if modules[name].out_features == num_classes]
    if not fitting:
        outs = [f"{name} (Linear, {modules[name].out_features} outputs)" for name in linear[-3:]]
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv1d | nn.Conv2d)]
        outs += [f"{name} ({type(modules[name]).__name__}, {modules[name].out_channels})" for name in convolutions[-3:]]
        raise ValueError(
            f"{own.label} has no linear layer with {num_classes} outputs, one per class; name its classifier, which is "
            f"never pruned, with --model.classifier MODULE; its last layers: {', '.join(outs) or 'none'}"
        )
    return (fitting[-1],), (
        f"the classifier of {own.label} is {fitting[-1]}, its last linear layer with {num_classes} outputs; it is "
        "never pruned; --model.classifier names another"
    )


def _check_parameters(name: str, model: nn.Module) -> None:
    """Raise ValueError for parameters with which no training can begin.

    Args:
        name: The network's name, for messages.
        model: The network, as its constructor returned it.
    """
    # Phase: shapes, devices and types.
    for one, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise ValueError(f"{one} of {name} has no shape yet; build the network without lazy layers")
        if tensor.device.type != "cpu":
            raise ValueError(f"{one} of {name} is on {tensor.device}; build the network on the CPU")
    for one, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{one} of {name} is {parameter.dtype}; parameters must be float32 (--precision trains in mixed "
                "precision; a tensor that is not trained can be a buffer)"
            )

    # Phase: there is something to train, and the network can be copied.
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{name} has no parameter that requires a gradient; do not freeze all of them")
    try:
        deepcopy(model)
    except Exception as error:  # a module can hold any object
        raise ValueError(
            f"{name} cannot be copied (copy.deepcopy: {type(error).__name__}: {first_line(error)}); keep open "
            "files, locks and generators out of its modules"
        ) from error


def _check_logits(name: str, found: Any, want: tuple[int, int]) -> None:
    """Raise ValueError unless a forward pass returned logits of the wanted shape."""
    if isinstance(found, torch.Tensor):
        if tuple(found.shape) != want:
            raise ValueError(
                f"{name} maps 2 images to the shape {tuple(found.shape)}; logits of {want} are needed: images × classes"
            )
        if not found.is_floating_point():
            raise ValueError(f"{name} returns {found.dtype}; floating-point logits are needed")
        return
    kind = type(found).__name__
    if hasattr(found, "aux_logits") or hasattr(found, "aux_logits1"):
        raise ValueError(
            f"{name} returns {kind}, with auxiliary outputs; switch them off: --model.args aux_logits=false"
        )
    hint = "return a tensor of logits"
    if hasattr(found, "logits"):
        hint = "return the logits: wrap the network in a module whose forward pass returns model(images).logits"
    raise ValueError(f"{name} returns {kind}; {hint}")


# ------------------------------------------------------------------ recorded networks


def from_record(
    determinants: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    *,
    source: Callable[[], bytes] | None = None,
    same_version: bool = True,
) -> Network:
    """Return the network that a run recorded.

    Args:
        determinants: Content of determinants.json: entries "model" and "spec".
        config: Settings of the run's search, as recorded. They have the name of a file as the user typed it.
        source: Returns the content of the user's file if it may be executed. It raises NotBuildableError if not.
        same_version: Refuse a library of another version than the recorded one.

    Raises:
        NotBuildableError: The network cannot be built here. The message gives the reason.
    """
    # Phase: sizes and settings.
    model, spec = determinants["model"], determinants["spec"]
    sizes = spec["num_classes"], spec["channels"], spec["image_size"]
    if "tensors" not in model:
        return Definition.of(ModelConfig(model["name"], model["width"])).sized(*sizes)
    typed = str((config or {}).get("model", {}).get("name", model["name"]))
    asked = ModelConfig(
        typed,
        args=tuple(f"{n}={json.dumps(v)}" for n, v in model["args"].items()),
        classifier=",".join(model["classifier"]),
    )

    # Phase: the definition, if the code is the recorded one.
    content = None
    if "sha256" in model:
        if source is None:
            raise NotBuildableError(f"{model['name']} is defined in a file of its own")
        content = source()
        if sha256(content).hexdigest() != model["sha256"]:
            raise NotBuildableError(f"the file of {model['name']} differs from the recorded one")
    definition = Definition.of(asked, content)
    library = f"{definition.kind} {definition.version}"
    if "library" in model and same_version and library != model["library"]:
        raise NotBuildableError(f"{model['name']} was built with {model['library']}, and here is {library}")

    # Phase: what was built must have the recorded tensors.
    network = definition.sized(*sizes)
    try:
        found = network.determinants["tensors"]
    except ValueError as error:
        raise NotBuildableError(f"{model['name']} cannot be built: {error}") from error
    if found != model["tensors"]:
        now = f", with {library}" if "library" in model else ""
        raise NotBuildableError(f"{model['name']} has other tensors here than recorded{now}")
    return network


def rows_of(rows: Sequence[Sequence[Any]]) -> tuple[dict[str, torch.Size], ParamPartition]:
    """Return ({tensor name: shape}, partition) from the recorded rows."""
    roles: dict[str, set[str]] = {"prunable": set(), "norm": set(), "other": set(), "buffer": set()}
    for role, name, _ in rows:
        roles[role].add(name)
    shapes = {name: torch.Size(shape) for _, name, shape in rows}
    return shapes, ParamPartition(*(frozenset(roles[role]) for role in ("prunable", "norm", "other")))
