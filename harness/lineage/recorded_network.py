"""The network that a run recorded, and the rule by which a user's file is executed again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import one_line
from harness.common.files import read_json
from harness.common.optional import explained
from harness.common.trusted import UntrustedCodeError, require_trust
from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.local_files import CONFIG, RECORD
from harness.models.initialise import private_generators
from harness.models.network import SOURCE_FILE, Network, from_record
from harness.models.sources import NoLibraryError, NotBuildableError, read_source

if TYPE_CHECKING:
    from torch import nn


def network_of(
    determinants: Mapping[str, Any],
    config: Mapping[str, Any],
    directory: Path | None,
    *,
    trust_code: bool = False,
    same_version: bool = False,
    shown: str = "",
) -> Network:
    """Return the network of a run.

    A run whose network comes from a file keeps a copy of it. The file is executed if the user has named it in a command
    before, or with `trust_code`.

    Args:
        determinants: Content of the run's determinants.json.
        config: The recorded settings of its search.
        directory: Directory of the run, for the copy of the file.
        trust_code: Execute the file in any case.
        same_version: Refuse a library of another version than the recorded one, even if all tensors are equal.
        shown: Name of the copy in messages. "": its path.

    Raises:
        NotBuildableError: The network cannot be built here, or its file must not be executed. The message has the
            reason and the remedy.
        ValueError: The determinants or the copy of the file were altered.
    """

    # The source is read only if the network has one.
    def source() -> bytes:
        typed = str(config.get("model", {}).get("name", ""))
        return trusted_source(
            typed, str(determinants["model"]["sha256"]), directory, trust_code=trust_code, shown=shown
        )

    return from_record(determinants, config, source=source, same_version=same_version)


def read_model(path: Path, file: Callable[[str], Path], *, trust_code: bool = False) -> nn.Module:
    """Build the network of a run on the CPU, with arbitrary parameters.

    Args:
        path: The run's determinants.json.
        file: Returns the path of another file of the run. Only networks that are not built in need it.
        trust_code: Execute a user's file in any case.

    Raises:
        NoLibraryError: A library of the network is not installed. The message has the command that installs it.
        ValueError: The network cannot be built here, or the file names none.
    """
    # A run of a user's own loop has no network that can be built here.
    determinants = read_json(path)
    if isinstance(determinants, dict) and determinants.get("made_by") == OWN_LOOP:
        raise ValueError(
            "a SignPruner in a loop of its own logged this run, so its network is unknown here; build the network "
            "yourself and give it: harness.load_network(key, model=model), or "
            "harness.load_checkpoint(key).load_into_(model)"
        )
    try:
        model, config, directory, shown = determinants["model"], {}, None, ""
        if "tensors" in model:
            config = read_json(file(CONFIG))["search"]
        if "sha256" in model:
            directory = file(SOURCE_FILE).parent
            if not (directory / RECORD).is_file():  # a download, which is deleted after the error
                shown = f"the run's artifact {SOURCE_FILE} in MLflow"
        network = network_of(determinants, config, directory, trust_code=trust_code, shown=shown)
        with private_generators(0):
            return network.build()
    except NotBuildableError as error:
        raise NotBuildableError(f"{path}: {one_line(error)}") from error
    except ConnectionError:
        raise
    except ModuleNotFoundError as error:
        line = explained(error, str(determinants["model"].get("name", "this network")))
        raise NoLibraryError(line or f"{path}: {one_line(error)}") from error
    except Exception as error:
        raise ValueError(f"{path} names no network of this version: {error!r:.200}") from error


def trusted_source(typed: str, digest: str, directory: Path | None, *, trust_code: bool, shown: str = "") -> bytes:
    """Return the content of a user's file that may be executed (see harness/common/trusted.py).

    Args:
        typed: FILE.py:FUNCTION, as recorded.
        digest: SHA-256 of the file, as recorded.
        directory: Directory of the run, which has a copy of the file.
        trust_code: The user's option --trust-code.
        shown: Name of the copy in messages. "": its path.

    Raises:
        NotBuildableError: The file must not be executed, or is missing. The message has the reason and the remedy.
    """
    # Phase: decide by the recorded content alone.
    path = Path(typed.rpartition(":")[0])
    copy = None if directory is None else directory / SOURCE_FILE
    told = shown or str(copy or path)
    try:
        require_trust("this run's network", path.name, digest, told, trust_code=trust_code)
    except UntrustedCodeError as error:
        raise NotBuildableError(str(error)) from None

    # Phase: find this content, in the user's own file or in the copy.
    found = []
    for place in (path, copy):
        if place is not None and os.path.isfile(place):
            with contextlib.suppress(OSError, ValueError):
                if sha256(content := read_source(place)).hexdigest() == digest:
                    return content
            found.append(str(place))
    if copy is not None and str(copy) in found:
        raise NotBuildableError(f"{copy} was altered: its SHA-256 is not {digest[:12]}…")
    raise NotBuildableError(
        f"{one_line(path.name)} (sha256 {digest[:12]}…), which makes this run's network, is missing: {told}"
    )
