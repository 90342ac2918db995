"""Networks that are not built in: timm, torchvision, and a function in a file of the user's."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from harness.common.files import read_bounded
from harness.common.optional import MissingLibraryError, missing
from harness.common.user_code import MOST_BYTES, UserCode, first_line

_OURS = ("num_classes", "in_chans", "channels", "image_size")
"""Options that the data set gives, and no user."""
_LOADING = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("weights", "weights_backbone"),
)
"""Options of the libraries that load weights."""
_IMAGE_SIZES = {"vit_": "image_size"}
"""torchvision's networks whose constructor takes the size of the images: beginning of the name → option."""


class NotBuildableError(ValueError):
    """A network cannot be built on this machine as it was recorded. The message gives the reason."""


class NoLibraryError(NotBuildableError, MissingLibraryError):
    """A network cannot be built, because its library is not installed."""


def library_version(kind: str, network: str = "this network") -> str:
    """Return the version of timm or torchvision, without the local part such as +cu130.

    Args:
        kind: The library.
        network: The network that needs it, for the message.

    Raises:
        NoLibraryError: The library is not installed.
    """
    try:
        return importlib.metadata.version(kind).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        raise NoLibraryError(missing(kind, network)) from None


def check_options(name: str, args: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the data set gives, or that would load weights."""
    if given := sorted(args.keys() & set(_OURS)):
        raise ValueError(f"--model.args {given[0]}={args[given[0]]}: the data set gives it to {name}; leave it out")
    if given := sorted(args.keys() & set(_LOADING)):
        raise ValueError(
            f"--model.args {given[0]}={args[given[0]]}: {name} is built without weights, and nothing is downloaded; "
            "give trained weights as a file, with --initialisation FILE"
        )


def timm_options(name: str, args: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return the options of a timm network: those of the user, and the size of the images if it is fixed.

    Raises:
        ValueError: timm does not know the name. The message has the nearest names.
        NoLibraryError: timm is not installed.
    """
    library_version("timm", name)
    import timm

    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        raise ValueError(_unknown(name, plain, timm.list_models(), "timm.list_models()"))
    # timm's own mark of networks whose constructor takes img_size.
    try:
        described = timm.models.get_pretrained_cfg(plain)
    except RuntimeError as error:  # a tag after the dot that timm does not know
        tags = ", ".join(timm.list_pretrained(plain.partition(".")[0])) or "none"
        raise ValueError(f"unknown network {name!r}: {first_line(error)}; names with a tag: {tags}") from None
    fixed = described is not None and described.fixed_input_size and "img_size" not in args
    return dict(args) | ({"img_size": image_size} if fixed else {})


def timm_model(name: str, args: Mapping[str, Any], *, num_classes: int, channels: int) -> nn.Module:
    """Build a timm network without weights."""
    import timm

    plain = name.removeprefix("timm:")
    made: nn.Module = _called(
        lambda: timm.create_model(plain, pretrained=False, num_classes=num_classes, in_chans=channels, **args),
        f"timm cannot build {plain}",
        args,
    )
    return made


def torchvision_options(name: str, args: Mapping[str, Any], *, channels: int, image_size: int) -> dict[str, Any]:
    """Return the options of a torchvision network.

    Raises:
        ValueError: torchvision does not know the name, or the images have not three channels.
        NoLibraryError: torchvision is not installed.
    """
    library_version("torchvision", name)
    import torchvision

    plain = name.removeprefix("torchvision:")
    names = torchvision.models.list_models(module=torchvision.models)
    if plain not in names:
        raise ValueError(_unknown(name, plain, names, "torchvision.models.list_models()"))
    if channels != 3:
        raise ValueError(
            f"{name} takes images with 3 channels, but the data have {channels}; prepare the data with 3 channels, or "
            f"use a timm network, which takes any number"
        )
    sizes = {option: image_size for begin, option in _IMAGE_SIZES.items() if plain.startswith(begin)}
    return sizes | dict(args)


def torchvision_model(name: str, args: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """Build a torchvision network without weights."""
    import torchvision

    plain = name.removeprefix("torchvision:")
    made: nn.Module = _called(
        lambda: torchvision.models.get_model(plain, weights=None, num_classes=num_classes, **args),
        f"torchvision cannot build {plain}",
        args,
    )
    return made


def _called(build: Callable[[], Any], what: str, args: Mapping[str, Any]) -> Any:
    try:
        return build()
    except Exception as error:  # a library can reject an option in any way
        given = " ".join(f"{name}={value}" for name, value in args.items())
        options = f" with {given}" if given else ""
        raise ValueError(f"{what}{options}: {type(error).__name__}: {first_line(error)}") from error


def _unknown(name: str, plain: str, names: list[str], listed_by: str) -> str:
    near = get_close_matches(plain, names, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return f"unknown network {name!r}{hint} ({listed_by} lists {len(names):,} names)"


# ------------------------------------------------------------------ files


def read_source(path: Path) -> bytes:
    """Return the content of a user's file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no regular file, or is too large.
    """
    try:
        return read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise type(error)(f"cannot read the network's file {path}: {error.strerror}") from None


def file_model(source: bytes, path: str, function: str, options: Mapping[str, Any]) -> nn.Module:
    """Call a function of a user's file, and return the network that it makes.

    The file is executed once in a process. The caller has decided that it may be executed.

    Args:
        source: Content of the file.
        path: Its path, for messages and tracebacks.
        function: Name of the function.
        options: Its keyword arguments.

    Raises:
        ValueError: The file or the function raises an error. The message has its file and line.
    """
    code = _executed(source, path)
    made = code.call(code.function(function), **options)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{function} of {path} returned a {type(made).__name__}; it must return a torch.nn.Module")
    wraps = isinstance(made, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wraps or hasattr(made, "_orig_mod"):  # the attribute of a compiled network
        raise ValueError(
            f"{function} of {path} returned a {type(made).__name__}; return the network inside it (the harness wraps "
            "it, and --compile compiles it)"
        )
    return made


@lru_cache(maxsize=8)
def _executed(source: bytes, path: str) -> UserCode:
    return UserCode(source, path, "network")
