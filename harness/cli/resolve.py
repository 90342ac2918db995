"""Resolve names that a user typed: runs, initialisations, the settings of a ticket.

Code below the command line takes the resolved objects.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from harness.checkpoint import Pretrained, read_network
from harness.common.escape import one_line
from harness.common.foreign import holds_network, split_key
from harness.common.optional import is_installed
from harness.common.program import command
from harness.common.trusted import remember
from harness.config import ModelConfig, SearchConfig, TicketConfig, search_from_json
from harness.config.own_loop import OWN_LOOP
from harness.distributed.world import World
from harness.experiment.experiment import Experiment, Initialisation
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.record import CHECKPOINT, THETA_INIT, LineageRecord
from harness.lineage.recorded_network import trusted_source
from harness.lineage.store import LineageStore
from harness.models.initialise import SCHEMES
from harness.models.network import Definition
from harness.models.sources import library_version, read_source

_log = logging.getLogger(__name__)
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin", ".json")
"""Endings of networks' files. A text with one of them names no run."""


def resolve_record(store: LineageStore, text: str) -> LineageRecord:
    """Return the record of the run with this run ID or key, or with a unique prefix of one.

    Raises:
        LookupError: The run is unknown or not finished.
    """
    if len(text) == 32:
        try:
            return store.load(text)  # its errors about a complete run ID are the most precise
        except ConnectionError as error:
            _log.warning(f"{error}; searching local runs only")
    key = text if len(text) == 64 else find_node(store, text).key
    with store.beginning():
        directory = store.find(key)
    if directory is None:
        raise LookupError(f"run {text} is not finished; `{command('lineage list')}` lists the finished runs")
    return store.local.load(key)


def resolve_key(experiment: Experiment, text: str) -> str:
    """Return the key of the named run on every rank."""
    world = experiment.world
    return world.share_text(world.on_main(lambda: resolve_record(experiment.store, text).key) or "")


def resolve_initialisation(world: World, store: LineageStore, text: str) -> Initialisation:
    """Return the named initialisation on every rank: a scheme, a file, or a run ID or key.

    Raises:
        LookupError: The run is unknown.
        ValueError: The file is unreadable, or the run has no network.
    """
    if text in SCHEMES:
        return Initialisation(text, scheme=text)
    network, key = world.on_main(lambda: _read_network(store, text)) or (Pretrained({}), "")
    if world.size > 1:
        network, key = Pretrained(world.share(network.tensors)), world.share_text(key)
    return Initialisation(text, network=network, digest=network.digest, key=key or None)


def _read_network(store: LineageStore, text: str) -> tuple[Pretrained, str]:
    """Return the network and the key of its run. The key of a file is ""."""
    path = split_key(text)[0]
    if holds_network(path):
        try:
            return read_network(text), ""
        except (ValueError, OSError):
            raise
        except Exception as error:  # a file of another kind can fail in the parser in any way
            raise ValueError(f"{path} holds no network ({type(error).__name__}: {one_line(error)})") from error
    if Path(text.partition(":")[0]).suffix in _FILES:
        raise FileNotFoundError(f"no file {text}; --initialisation takes {', '.join(SCHEMES)}, a run ID or a file")
    try:
        key = find_node(store, text).key
    except LookupError as error:
        if path.is_dir():
            return read_network(text), ""  # its error tells which files a directory needs
        raise LookupError(f"{error} (--initialisation takes {', '.join(SCHEMES)}, a run ID or a file)") from None
    with store.beginning():
        directory = store.find(key)
    if directory is None:
        raise LookupError(f"run {text} is not finished; `{command('lineage list')}` lists the finished runs")
    record = store.local.load(key)
    names = [name for name in (THETA_INIT, CHECKPOINT) if name in record.files]
    if not names:
        raise ValueError(f"run {text} ({record.name}) is a {record.kind}: it has no network to start from")
    return read_network(store.local.open_file(key, names[0])), key


def resolve_network(world: World, config: ModelConfig) -> Definition:
    """Return the network that the settings name, on every rank. Rank 0 reads a user's file.

    The file is trusted from now on. So call this only for settings that the user gave, and not for recorded ones.

    Raises:
        ValueError: The network is unknown, its library is not installed, or an option does not belong to it.
        FileNotFoundError: There is no such file.
    """
    if config.kind != "file":
        return Definition.of(config)
    path = Path(config.name.rpartition(":")[0]).expanduser()

    def read() -> str:
        content = read_source(path)
        remember(path, content)
        return content.decode("latin-1")  # any bytes

    source = world.share_text(world.on_main(read) or "")
    return Definition.of(config, source.encode("latin-1"))


def resolve_ticket(
    world: World, store: LineageStore, config: TicketConfig, kinds: tuple[str, ...]
) -> tuple[str, SearchConfig, Definition]:
    """Return the key of the run `config.ticket`, the settings of an experiment with it, and its network.

    Raises:
        ValueError: The run has none of the `kinds`, or its network cannot be built here.
    """
    # Phase: rank 0 reads the record, and shares it.

    def read() -> str:
        record = resolve_record(store, config.ticket)
        if record.kind not in kinds:
            raise ValueError(
                f"run {config.ticket} ({record.name}) is a {record.kind}; this command needs a {' or a '.join(kinds)}; "
                f"`{command('lineage list')}` lists the runs"
            )
        if OWN_LOOP in record.config:
            raise ValueError(
                f"run {config.ticket} ({record.name}) was logged by a SignPruner in a loop of its own, so its data and "
                "network are unknown here; use harness.load_signed_mask(key).apply_(model) in your own code"
            )
        told, source = record.config.get("network", {}), None
        if "sha256" in told:
            typed = record.config["search"]["model"]["name"]
            with store.beginning():
                directory = store.find(record.key)  # a run on the server is fetched with its file
            content = trusted_source(typed, str(told["sha256"]), directory, trust_code=config.trust_code)
            own, source = Path(typed.rpartition(":")[0]), content.decode("latin-1")
            if os.path.isfile(own) and own.read_bytes() != content:
                _log.info(f"note: {own} has changed since {record.name!r} was made; its recorded content is used")
        elif "library" in told and told["library"] != (now := f"{told['kind']} {library_version(told['kind'])}"):
            _log.warning(f"{record.name!r} was made with {told['library']}, and here is {now}")
        return json.dumps([record.key, record.config.get("search"), source])

    key, recorded, source = json.loads(world.share_text(world.on_main(read) or ""))

    # Phase: override the recorded settings with those of the command.
    try:
        search = search_from_json(recorded)
    except ValueError as error:
        raise ValueError(f"run {config.ticket}: {one_line(error)}") from error
    data = search.data if config.data is None else replace(search.data, name=config.data)
    if config.data_directory is not None:
        data = replace(data, directory=config.data_directory)
    if config.loader is not None:
        data = replace(data, loader=config.loader)
    elif data.loader == "ffcv" and not is_installed("ffcv"):
        data = replace(data, loader="auto")  # any loader gives the recorded batches
    final = search.final if config.epochs is None else search.final.of_length(config.epochs)
    settings = replace(
        search,
        data=data,
        final=final,
        precision=config.precision or search.precision,
        compile=config.compile or search.compile,
        evaluate_every=search.evaluate_every if config.evaluate_every is None else config.evaluate_every,
        probe=config.probe,
        stuck_after=config.stuck_after,
        runs=config.runs,
        experiment=config.experiment,
        offline=config.offline,
        trust_code=config.trust_code,
    )
    try:
        network = Definition.of(settings.model, None if source is None else source.encode("latin-1"))
    except ValueError as error:
        raise type(error)(f"run {config.ticket}: {one_line(error)}") from error
    return key, settings, network
