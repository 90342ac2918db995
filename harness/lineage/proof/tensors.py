"""Run the checks that need tensors of a run and its parents.

Each network is loaded when it is needed.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from harness.checkpoint import Checkpoint, Pretrained, read_network
from harness.common.digest import sha256_tensors
from harness.common.tensors import plain_name
from harness.config import SearchConfig, UnprunedSigns, drawn_before, search_from_json
from harness.config.own_loop import OWN_LOOP, own_loop_search
from harness.data import DATASETS
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK, THETA_INIT, LineageRecord
from harness.lineage.proof import networks, records
from harness.lineage.proof.copies import NodeCopies
from harness.lineage.proof.findings import Finding, Findings
from harness.lineage.proof.networks import Architecture, Params, StoredNetwork
from harness.lineage.store import LineageStore
from harness.masks import SignedMask
from harness.pruning import METHODS, LevelContext
from harness.pruning.method import ARCHITECTURE, NotHereError, StoredLevel

_KNOWN = {CHECKPOINT, CORRECT, SIGNED_MASK, THETA_INIT}
_UNPRUNED: dict[bool, UnprunedSigns] = {True: "both", False: "none"}
"""Today's value of `unpruned_signs` for the bool that older records have."""
_HELD = 2
"""Number of networks to keep in memory: a level and its parent, or a ticket and its final training."""


class Tensors:
    """Check the tensors of one run after another.

    An LRU cache holds the last networks.
    """

    def __init__(
        self, store: LineageStore, places: Mapping[str, NodeCopies], findings: Findings, *, trust_code: bool = False
    ) -> None:
        self.store, self.places, self.findings, self.trust_code = store, places, findings, trust_code
        self.altered: set[tuple[str, str]] = set()
        """(run key, file name) of each missing or altered file."""
        self._networks: OrderedDict[str, StoredNetwork] = OrderedDict()

    def examine(self, place: NodeCopies, directory: Path, whole: set[str], determinants: dict[str, Any] | None) -> None:
        """Check the tensors of one run.

        Args:
            place: Copies of the run.
            directory: Directory with its files.
            whole: Names of the intact files.
            determinants: Content of determinants.json, or None if it is missing or altered.
        """
        record = place.record
        assert record is not None
        if record.kind not in ("search", "level", "training"):
            return

        if OWN_LOOP in record.config:
            self._own_loop(place, record, self._remember(place.key, _read(directory, whole)), determinants)
            return

        # Phase: names and shapes; further checks need them
        network = self._remember(place.key, _read(directory, whole))
        architecture = self._architecture(record, determinants, directory)
        self._note_unbuildable(place, record, architecture)
        method = METHODS.get(record.tags.get("method", ""))
        classifier_too = bool(method and method.masks_classifier)
        fits = networks.fits(architecture, network, classifier_too=classifier_too) if architecture else ()
        if not self.findings.add(place, fits):
            self._networks[place.key] = StoredNetwork()
            return

        # Phase: checks for the kind of run
        if record.kind == "search":
            self._theta_init(place, record, network, architecture)
        else:
            self.findings.add(place, [*networks.owner(record, network), *networks.signs(network)])
            if record.kind == "level":
                self._level(place, record, network, architecture)
            else:
                self._training(place, record, network, architecture)

    def _own_loop(
        self, place: NodeCopies, record: LineageRecord, network: StoredNetwork, determinants: dict[str, Any] | None
    ) -> None:
        """Check all that the files of a run of `SignPruner.log` prove. The training itself is not among it."""
        # Phase: the search
        known = determinants or {}
        if record.kind == "search":
            if network.checkpoint is not None:
                found = network.checkpoint.digest
                for told in (record.tags.get("theta_init_digest"), known.get("theta_init", found)):
                    what = f"the digest of θ_init is {found[:16]}…, but {str(told)[:16]}… was recorded"
                    self.findings.add(place, [Finding("theta_init", found == told, what)])
            return

        # Phase: contents of the level
        self.findings.add(place, [*networks.owner(record, network), *networks.signs(network)])
        digests = {}
        if network.checkpoint is not None:
            digests["network"] = sha256_tensors(network.checkpoint.params)
        if network.signed_mask is not None:
            digests["signed_mask"] = network.signed_mask.digest
        for name, found in digests.items():
            told = known.get(name, found)
            what = f"the digest of its {name} is {found[:16]}…, but {str(told)[:16]}… was recorded"
            self.findings.add(place, [Finding("settings", found == told, what)])

        # Phase: mask and start, which follow from the level before
        own, linked = record.config[OWN_LOOP], record.parents[0].relation == "pruned-from"
        level, method = record.config["level"], METHODS.get(own["settings"]["method"])
        missing = "the level before it is not logged" if level and not linked else ""
        if missing or method is None or network.signed_mask is None:
            missing = missing or "its method or signed mask is unknown"
            self.findings.note(place, f"its mask, start and training were not checked here: {missing}")
            return
        ctx = self._context(place, record, network, own_loop_search(own["settings"], own["levels"]), level)
        try:
            self.findings.add(place, networks.masks(record, ctx, network, self.network(record.parents[0].key)))
        except NotHereError as error:
            self.findings.note(place, f"its mask was not computed again here: {error} is missing")
        with suppress(NotHereError):  # the missing run or file is already reported
            self.findings.add(place, [_start_claim(record, method.start(ctx).digest)])
        self.findings.note(place, "its training was not checked here: a loop of its user's own made it")

    def _context(
        self, place: NodeCopies, record: LineageRecord, network: StoredNetwork, config: SearchConfig, level: int
    ) -> LevelContext:
        """Return the inputs of a method's hooks for a stored level with a signed mask, without architecture."""
        assert network.signed_mask is not None
        parent = record.parents[0].key if record.parents else ""
        return LevelContext(
            config=config,
            level=level,
            mask=network.signed_mask.mask,
            norm=network.signed_mask.norm,
            theta_init=_on_demand("theta_init", lambda: self.network(record.nested_under or "").checkpoint),
            parent=_on_demand("parent", lambda: self.network(parent).checkpoint),
            read=lambda name: self._kept_by_level_0(place, name),
        )

    def _theta_init(
        self, place: NodeCopies, record: LineageRecord, network: StoredNetwork, architecture: Architecture | None
    ) -> None:
        """Check that θ_init has its recorded digest and follows from its seed."""
        if network.checkpoint is None:
            return
        told, found = record.tags.get("theta_init_digest"), network.checkpoint.digest
        what = f"the digest of θ_init is {found[:16]}…, but {str(told)[:16]}… was recorded"
        sound = self.findings.add(place, [Finding("theta_init", found == told, what)])
        fresh = self._fresh(place, record, architecture, int(record.tags["init_seed"])) if sound else None
        if fresh is not None:
            drawn = fresh.digest
            what = f"init_seed {record.tags['init_seed']} draws θ_init {drawn[:16]}…, but {found[:16]}… is stored"
            self._claim_drawn(place, record, "theta_init", drawn == found, what)

    def _fresh(
        self, place: NodeCopies, record: LineageRecord, architecture: Architecture | None, init_seed: int
    ) -> Checkpoint | None:
        """Make the θ_init of a search, final training or comparison again.

        Return None, with a note, if the file that it was initialised from is missing or changed. Return None without a
        note if the architecture is unknown.
        """
        if architecture is None or architecture.network is None:
            return None
        begun = record.config.get("initialisation")
        if begun is None:
            return _draw(architecture, init_seed)
        if begun["sha256"] is None:
            return architecture.theta_init(init_seed, begun["name"])
        network = self._trained_elsewhere(begun)
        if network is None or network.digest != begun["sha256"]:
            reason = f"{begun['name']}, which it was initialised from, is missing or changed"
            self.findings.not_checked(place, reason, ["theta_init" if record.kind == "search" else "start"])
            return None
        unsaved = architecture.network.unsaved
        return network.fitted(_draw(architecture, init_seed), architecture.classifier, unsaved).checkpoint

    def _trained_elsewhere(self, begun: dict[str, Any]) -> Pretrained | None:
        """Return the network that a run was initialised from, or None.

        It is read from another run or from a file.
        """
        if begun["run"] is not None:
            held = self.network(begun["run"]).checkpoint
            return Pretrained({plain_name(name): one for name, one in held.state_dict.items()}) if held else None
        try:
            return read_network(begun["name"])
        except (OSError, ValueError):
            return None

    def _claim_drawn(self, place: NodeCopies, record: LineageRecord, check: str, holds: bool, what: str) -> None:
        """Add a finding about newly drawn random numbers.

        If it fails and the torch versions differ, add a note instead. Random number generators may differ between torch
        versions.
        """
        then, now = record.code.get("torch"), importlib.metadata.version("torch")
        if not holds and then != now:
            self.findings.note(place, f"{what}; it was made with torch {then}, and torch {now} may draw other numbers")
        else:
            self.findings.add(place, [Finding(check, holds, what)])

    def _level(
        self, place: NodeCopies, record: LineageRecord, network: StoredNetwork, architecture: Architecture | None
    ) -> None:
        """Check a level with the hooks of its pruning method."""
        # Phase: mask
        name = record.tags["method"]
        method, parent = METHODS.get(name), self.network(record.parents[0].key if record.parents else "")
        if network.signed_mask is not None:
            ctx = replace(
                self._context(
                    place, record, network, search_from_json(record.config["search"]), int(record.tags["level"])
                ),
                phase=record.tags.get("phase", ""),
                image_shape=architecture.image_shape if architecture else (0, 0, 0),
                new_model=architecture.model if architecture and architecture.network else None,
            )
            parent_mask = parent.signed_mask.mask if parent.signed_mask else None
            stored = StoredLevel(ctx, network.checkpoint, network.further, parent_mask)
            own = method.statements(stored) if method else None
            found = (
                networks.masks(record, ctx, network, parent)
                if own is None
                else (Finding(*statement) for statement in own)
            )
            self.findings.add(place, self._all_that_can_be_checked(place, architecture, found))

        # Phase: α
        if network.checkpoint is not None:
            claims = records.alpha(record, record.config["schedule"]["epochs"])
            if claims is None:
                self.findings.note(place, "its α was not checked: an older version made it and recorded no mean α")
            else:
                self.findings.add(place, claims)

        # Phase: start
        if method is None:
            self.findings.not_checked(place, f"this version does not know the method {name!r}", ["start", "pruned"])
        elif network.signed_mask is not None:
            with suppress(NotHereError):  # the missing run or file is already reported
                self.findings.add(place, [_start_claim(record, method.start(ctx).digest)])

    def _all_that_can_be_checked(
        self, place: NodeCopies, architecture: Architecture | None, found: Iterable[Finding]
    ) -> Iterator[Finding]:
        """Yield findings until one needs a missing network.

        Add a note if this is a tensor file of the level, or if the network cannot be built here.
        """
        try:
            yield from found
        except NotHereError as error:
            if str(error).endswith(".safetensors"):
                self.findings.not_checked(place, f"{error} is missing", ["pruned"], here=False)
            elif architecture is not None and architecture.why_not and str(error) == ARCHITECTURE:
                self.findings.not_checked(place, architecture.why_not, ["pruned"])

    def _kept_by_level_0(self, node: NodeCopies, name: str) -> Checkpoint:
        """Return a tensor file that level 0 keeps, for `LevelContext.read`.

        Raises:
            NotHereError: Level 0 or the file is missing.
        """
        first = self._level_0(node)
        held = self.network(first.key).further.get(name) if first else None
        if held is None:
            raise NotHereError(f"{name} of level 0")
        return held

    def _level_0(self, place: NodeCopies) -> NodeCopies | None:
        """Return the level 0 among a level's ancestors.

        Return None if a parent is missing or there is a cycle.
        """
        seen: set[str] = set()
        while place.record is None or place.record.tags.get("level") != "00":
            parent = place.parents[0].key if place.parents else ""
            if parent not in self.places or parent in seen:
                return None
            seen.add(parent)
            place = self.places[parent]
        return place

    def _training(
        self, place: NodeCopies, record: LineageRecord, network: StoredNetwork, architecture: Architecture | None
    ) -> None:
        """Check a final training's α, mask and start."""
        # Phase: its ticket, and θ_init drawn again
        parents = [parent.key for parent in record.parents if parent.relation != "initialised-from"]
        kind, init_seed = record.config["kind"], record.config["init_seed"]
        self.findings.add(place, records.alpha(record, 0) or [])
        if architecture is None and kind != "retrain":
            return
        classifier = architecture.classifier if architecture else ()
        ticket = self._ticket(record, parents[0], classifier) if parents else StoredNetwork()
        theta_init: Params = {}
        if kind != "retrain":
            fresh = self._fresh(place, record, architecture, init_seed)
            if fresh is None:
                known = ticket.signed_mask.mask if ticket.signed_mask and kind != "random_mask" else None
                self.findings.add(place, networks.final_mask(network, known, kind))
                return
            theta_init = fresh.params

        # Phase: mask and start
        unpruned = record.config["unpruned_signs"]
        start, mask = networks.final_start(
            kind,
            ticket,
            theta_init,
            init_seed=init_seed or 0,
            unpruned=_UNPRUNED.get(unpruned, unpruned),
            classifier=classifier,
        )
        self.findings.add(place, networks.final_mask(network, mask, kind))
        if start is not None and kind == "retrain":
            self.findings.add(place, [_start_claim(record, start)])
        elif start is not None:
            claim = _start_claim(record, start)
            self._claim_drawn(place, record, "start", claim.holds, claim.what)

    def signed_init(
        self, place: NodeCopies, record: LineageRecord, determinants: dict[str, Any] | None, ticket: str
    ) -> None:
        """Check the recorded start of a signed_init comparison.

        It must be the ticket's signed mask on the θ_init of the recorded seed.

        Args:
            place: Copies of the comparison.
            record: Record of the comparison.
            determinants: Content of its determinants.json, or None.
            ticket: Key of the ticket.
        """
        architecture, held = self._architecture(record, determinants, place.directory), self.network(ticket)
        self._note_unbuildable(place, record, architecture)
        fresh = self._fresh(place, record, architecture, record.config["init_seed"])
        if fresh is None or architecture is None:
            return
        start, _ = networks.final_start(
            "signed_mask", held, fresh.params, init_seed=0, unpruned="both", classifier=architecture.classifier
        )
        if start is not None:
            claim = _start_claim(record, start)
            self._claim_drawn(place, record, "start", claim.holds, claim.what)

    def _architecture(
        self, record: LineageRecord, determinants: dict[str, Any] | None, directory: Path | None
    ) -> Architecture | None:
        """Return the architecture of a run, or None if it is unknown.

        Older runs have no determinants. Their image size then follows from their data set.
        """
        if determinants is not None:
            return Architecture.of(determinants, record.config, directory, trust_code=self.trust_code)
        spec = DATASETS.get(record.tags.get("data", ""))
        if spec is None or "search" not in record.config:
            return None
        model = record.config["search"]["model"]
        former = drawn_before(model["name"], record.config) is not None
        return Architecture.built(
            model["name"], spec.num_classes, spec.channels, spec.image_size, model["width"], former
        )

    def _note_unbuildable(self, place: NodeCopies, record: LineageRecord, architecture: Architecture | None) -> None:
        """Add a note about the checks that need a network which cannot be built here."""
        if architecture is None or architecture.network is not None:
            return
        checks = [] if architecture.rows else ["parameters"]
        checks += ["theta_init"] if record.kind == "search" else []
        drawn = record.kind == "analysis" or (record.kind == "training" and record.config["kind"] != "retrain")
        checks += ["start"] if drawn else []
        if checks:
            self.findings.not_checked(place, architecture.why_not, checks)

    def _ticket(self, record: LineageRecord, key: str, classifier: Sequence[str]) -> StoredNetwork:
        """Return the ticket of a final training as it was used.

        If the record says so, take the signs directly after pruning. Drop the classifier if the ticket was transferred
        to another data set.
        """
        ticket = self.network(key)
        if record.config.get("signs", "trained") == "pruned":
            place = self.places.get(key)
            before = self.network(place.parents[0].key) if place and place.parents else StoredNetwork()
            ticket = networks.right_after_pruning(ticket, before)
        return networks.without_classifier(ticket, classifier) if record.config.get("transferred") else ticket

    # ------------------------------------------------------------------ networks in memory

    def _remember(self, key: str, network: StoredNetwork) -> StoredNetwork:
        """Cache a network and drop the least recently used ones."""
        self._networks[key] = network
        self._networks.move_to_end(key)
        while len(self._networks) > _HELD:
            self._networks.popitem(last=False)
        return network

    def network(self, key: str) -> StoredNetwork:
        """Return the network of a run, from memory or from its files.

        Missing and altered files are left out.
        """
        if key in self._networks:
            self._networks.move_to_end(key)
            return self._networks[key]
        place = self.places.get(key)
        if place is None:
            return StoredNetwork()
        with self._again(place) as directory:
            if directory is None or place.record is None:
                return StoredNetwork()
            whole = {name for name in place.record.files if (key, name) not in self.altered}
            return self._remember(key, _read(directory, whole))

    @contextmanager
    def _again(self, place: NodeCopies) -> Iterator[Path | None]:
        """Yield the directory of a run, or None if it is unavailable.

        A run that is only in MLflow is downloaded temporarily.
        """
        if place.directory is not None or place.run is None or place.run.status != "FINISHED":
            yield place.directory if place.record is not None else None
            return
        with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
            try:
                yield LineageStore(self.store.tracking_uri, LocalNodes(scratch)).find(place.key)
            except ValueError:  # already reported by the artifact check of that run
                yield None


class _OnDemand:
    """Proxy for a network that is loaded on attribute access.

    Raises:
        NotHereError: The network is missing; raised on access.
    """

    def __init__(self, name: str, read: Callable[[], Checkpoint | None]) -> None:
        self._name, self._read = name, read

    def __getattr__(self, attribute: str) -> Any:
        checkpoint = self._read()
        if checkpoint is None:
            raise NotHereError(self._name)
        return getattr(checkpoint, attribute)


def _on_demand(name: str, read: Callable[[], Checkpoint | None]) -> Checkpoint:
    """Return the proxy, typed as the Checkpoint that it stands for."""
    return cast(Checkpoint, _OnDemand(name, read))


def _start_claim(record: LineageRecord, start: str) -> Finding:
    """Check that a training started from parameters with this digest."""
    told = record.tags.get("start_digest")
    return Finding(
        "start", told == start, f"its start_digest is {str(told)[:16]}…, but parent, ticket and seed give {start[:16]}…"
    )


def _read(directory: Path, whole: set[str]) -> StoredNetwork:
    """Read the network of a run from its intact files."""
    name = THETA_INIT if THETA_INIT in whole else CHECKPOINT
    checkpoint = Checkpoint.load(directory / name) if name in whole and (directory / name).is_file() else None
    mask = SignedMask.load(directory / SIGNED_MASK) if SIGNED_MASK in whole else None
    others = (other for other in whole if other.endswith(".safetensors"))
    further = {}
    for other in set(others) - _KNOWN:
        with suppress(ValueError):  # not a checkpoint, so no method needs it
            further[other] = Checkpoint.load(directory / other)
    return StoredNetwork(checkpoint, mask, further)


@lru_cache(maxsize=1)
def _draw(architecture: Architecture, init_seed: int) -> Checkpoint:
    """Draw θ_init, cached for consecutive trainings with the same seed."""
    return architecture.theta_init(init_seed)
