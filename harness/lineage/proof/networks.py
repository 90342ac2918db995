"""Check a network's mask, signs, pruned weights and start, without I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.config import NETWORKS_OWN, ModelConfig, UnprunedSigns, drawn_before
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding
from harness.lineage.recorded_network import network_of
from harness.masks import Mask, SignedMask, transfer
from harness.models import ParamPartition
from harness.models.initialise import private_generators
from harness.models.network import SOURCE_FILE, Definition, Network, rows_of
from harness.models.sources import NotBuildableError
from harness.pruning import METHODS, LevelContext, PruningSchedule
from harness.pruning.method import NotHereError

Params = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StoredNetwork:
    """Tensors of one run whose files exist and have their recorded digests."""

    checkpoint: Checkpoint | None = None
    """Trained parameters, or θ_init for a search."""
    signed_mask: SignedMask | None = None
    """None for a search, and if the file is missing or altered."""
    further: Mapping[str, Checkpoint] = field(default_factory=dict)
    """Further tensor files that a pruning method keeps with a level, by file name."""


@dataclass(frozen=True)
class Architecture:
    """The network of a run: as this machine builds it, or the shapes that the run recorded."""

    name: str
    network: Network | None
    """None if it cannot be built here."""
    why_not: str = ""
    """Why it cannot be built here."""
    rows: str = ""
    """The recorded roles and shapes of its tensors, as JSON. "": not recorded."""
    recorded_classifier: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """Image shape as (channels, height, width)."""

    @classmethod
    def built(
        cls,
        name: str,
        num_classes: int,
        channels: int,
        image_size: int,
        width: int | None,
        former: bool = False,
    ) -> Architecture:
        """Return a built-in network."""
        network = Definition.of(ModelConfig(name, width)).sized(num_classes, channels, image_size)
        return cls._of(replace(network, former=former))

    @classmethod
    def _of(cls, network: Network) -> Architecture:
        shape = network.channels, network.image_size, network.image_size
        return cls(network.definition.label, network, image_shape=shape)

    @classmethod
    def of(
        cls,
        determinants: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        directory: Path | None = None,
        *,
        trust_code: bool = False,
    ) -> Architecture:
        """Return the network of a run.

        Args:
            determinants: Content of determinants.json.
            config: Configuration of the run's record.
            directory: Directory of the run.
            trust_code: Execute a user's file in any case.
        """
        # Phase: build it.
        model, spec, config = determinants["model"], determinants["spec"], config or {}
        try:
            network = network_of(
                determinants,
                config.get("search", {}),
                directory,
                trust_code=trust_code,
                same_version=True,
                shown=f"RUN/{SOURCE_FILE}",
            )
            former = drawn_before(model["name"], determinants) is not None
            return cls._of(replace(network, former=former))
        except NotBuildableError as error:
            # Phase: take what the record says.
            told = config.get("network", {})
            shape = spec["channels"], spec["image_size"], spec["image_size"]
            rows = json.dumps(told["tensors"]) if "tensors" in told else ""
            return cls(model["name"], None, str(error), rows, tuple(told.get("classifier", ())), shape)

    def theta_init(self, init_seed: int, scheme: str = NETWORKS_OWN) -> Checkpoint:
        """Draw θ_init from a seed, with the given initialisation scheme."""
        assert self.network is not None
        return Checkpoint.of(self.network.draw(init_seed, scheme), level=0, epochs=0, level_digest="")

    def model(self) -> nn.Module:
        """Build the network on the CPU with arbitrary parameters.

        The global random state is not changed.
        """
        assert self.network is not None
        with private_generators(0):
            return self.network.build()

    @property
    def classifier(self) -> tuple[str, ...]:
        """Names of the classifier's modules; () if they are unknown."""
        return self.recorded_classifier if self.network is None else self.network.classifier

    def skeleton(self) -> tuple[dict[str, torch.Size], ParamPartition] | None:
        """Return ({tensor name: shape}, parameter partition); None if they are unknown."""
        if self.network is not None:
            return self.network.shapes, self.network.partition
        return rows_of(json.loads(self.rows)) if self.rows else None


def fits(architecture: Architecture, network: StoredNetwork, *, classifier_too: bool = False) -> Iterator[Finding]:
    """Check that checkpoint and mask fit the network.

    Tensors must have the network's names and shapes. The mask must cover exactly the prunable weights.

    Args:
        architecture: The network that the run recorded.
        network: Stored tensors of the run.
        classifier_too: The pruning method may also mask the classifier.
    """
    # Phase: checkpoint
    skeleton = architecture.skeleton()
    if skeleton is None:
        return
    shapes, partition = skeleton
    if network.checkpoint is not None:
        own = {name: tensor.shape for name, tensor in network.checkpoint.state_dict.items()}
        differ = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
        what = f"the checkpoint does not fit {architecture.name}: names or shapes differ for {_some(differ)}"
        yield Finding("parameters", not differ, what)

    # Phase: signed mask
    if network.signed_mask is not None:
        mask = network.signed_mask
        differ = sorted(partition.prunable - mask.mask.tensors.keys())
        differ += sorted(mask.mask.tensors.keys() - partition.prunable) if not classifier_too else []
        differ += sorted(name for name, sign in mask.signs.items() if shapes.get(name) != sign.shape)
        yield Finding(
            "parameters", not differ, f"the signed mask does not cover exactly the prunable weights: {_some(differ)}"
        )
        differ = sorted(mask.norm ^ partition.norm)
        what = f"the signed mask lists other normalisation parameters than the network has: {_some(differ)}"
        yield Finding("parameters", not differ, what)


def owner(record: LineageRecord, network: StoredNetwork) -> Iterator[Finding]:
    """Check that key, level and counts inside the files match the run.

    Otherwise somebody may have swapped files between runs.
    """
    level = int(record.tags["level"])
    if (checkpoint := network.checkpoint) is not None:
        yield _same_owner("the checkpoint", checkpoint.level_digest, checkpoint.level, record.key, level)
    if (mask := network.signed_mask) is None:
        return
    told_key, told_level = mask.metadata.get("level_digest"), mask.metadata.get("level")
    yield _same_owner("the signed mask", told_key, told_level, record.key, level)
    metrics = record.last_metrics()
    counted = {"density": mask.density, "num_remaining": float(mask.mask.num_remaining)}
    for name, value in counted.items():
        told = {metrics[name]} if name in metrics else set()
        told |= {mask.metadata["density"]} if name == "density" and "density" in mask.metadata else set()
        what = f"{name} of the signed mask is {value:g}, but {' and '.join(sorted(map(str, told)))} was recorded"
        yield Finding("owner", told <= {value}, what)
    tag = record.tags.get("density")
    what = f"the density of the signed mask is {mask.density:.6f}, but the tag density is {tag}"
    yield Finding("owner", tag == f"{mask.density:.6f}", what)


def _same_owner(what: str, key: object, level: object, own_key: str, own_level: int) -> Finding:
    made = f"{what} belongs to run {str(key)[:16]}… at level {level}, but this is {own_key[:16]}… at level {own_level}"
    return Finding("owner", (key, level) == (own_key, own_level), made)


def signs(network: StoredNetwork) -> Iterator[Finding]:
    """Check that s = sign₀(θ ⊙ m), and that pruned weights are +0.0.

    A pruned weight of −0.0 is a fault.
    """
    checkpoint, mask = network.checkpoint, network.signed_mask
    if checkpoint is None or mask is None:
        return
    expected = SignedMask.of(checkpoint.params, mask.mask).signs
    differ = {
        name: int((sign != mask.signs[name]).sum())
        for name, sign in expected.items()
        if name not in mask.signs or not torch.equal(sign, mask.signs[name])
    }
    where = f"{sum(differ.values())} signs in the signed mask differ from the checkpoint, in {_some(list(differ))}"
    yield Finding("signs", not differ and expected.keys() == mask.signs.keys(), where)
    alive = {}
    for name, kept in mask.mask.tensors.items():
        bits = checkpoint.params[name].contiguous().view(_INTEGERS[checkpoint.params[name].element_size()])
        if number := int(((bits != 0) & ~kept).sum()):  # compare bits, because −0.0 == 0.0
            alive[name] = number
    what = f"{sum(alive.values())} pruned weights of the checkpoint are not +0.0, in {_some(list(alive))}"
    yield Finding("zeros", not alive, what)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masks(record: LineageRecord, ctx: LevelContext, own: StoredNetwork, parent: StoredNetwork) -> Iterator[Finding]:
    """Check that a level's mask follows from its parent.

    Level 0 must be dense.

    Args:
        record: Record of the level.
        ctx: Inputs to the method's hooks, with the level's own mask.
        own: Stored tensors of the level.
        parent: Stored tensors of the parent level.

    Raises:
        NotHereError: The importance needs a tensor file that is missing. All other checks are yielded first.
    """
    # Phase: level 0
    mask, level = ctx.mask, ctx.level
    if level == 0:
        what = f"level 0 must be dense, but its mask prunes {mask.numel - mask.num_remaining} weights"
        yield Finding("count", mask.num_remaining == mask.numel, what)
        return

    # Phase: nested masks
    if parent.signed_mask is None:
        return
    before = parent.signed_mask.mask
    same = mask.shapes() == before.shapes()
    grown = sum(int((kept & ~before.tensors[name]).sum()) for name, kept in mask.tensors.items()) if same else -1
    what = f"the mask keeps {grown} weights that the level before had pruned" if same else "the mask shapes differ"
    yield Finding("nested", grown == 0, what)

    # Phase: number of remaining weights
    method = METHODS.get(record.tags["method"])
    pruning = method.pruning(ctx.config) if method else PruningSchedule.of(ctx.config)
    if pruning is None:
        found = mask.num_remaining
        what = f"{found} of {before.num_remaining} weights remain, but this level must not prune"
        yield Finding("count", found == before.num_remaining, what)
        return
    for name, expected in pruning.counts(level, before).items():
        kept = [mask.tensors[name]] if name in mask.tensors else list(mask.tensors.values())
        found = sum(int(tensor.sum()) for tensor in kept)
        what = f"{found} weights remain{f' in {name}' if name else ''}, but {expected} must remain"
        yield Finding("count", found == expected, what)

    # Phase: prune the parent again and compare
    if method is None:
        return
    if method.importance_file is None:
        importance = method.importance(replace(ctx, mask=before))
    elif method.importance_file in own.further:
        importance = own.further[method.importance_file].params
    else:
        raise NotHereError(method.importance_file)
    pruned = pruning.next_mask(importance, before, level)
    differ = sum(int((kept ^ mask.tensors[name]).sum()) for name, kept in pruned.tensors.items()) if same else -1
    what = f"the mask differs in {differ} weights from the one that {record.tags['method']} chooses"
    yield Finding("pruned", differ == 0, what)


def final_start(
    kind: str,
    ticket: StoredNetwork,
    theta_init: Params,
    *,
    init_seed: int,
    unpruned: UnprunedSigns,
    classifier: Sequence[str],
) -> tuple[str | None, Mask | None]:
    """Recompute the start of a final training.

    Args:
        kind: Kind of final training.
        ticket: Stored tensors of the ticket.
        theta_init: The initial parameters; `retrain` ignores them.
        init_seed: Seed of θ_init. It also feeds the random controls.
        unpruned: Parameters outside of the mask whose signs are transferred.
        classifier: Names of the classifier's modules.

    Returns:
        (digest of the start parameters, mask). An item is None if it cannot be recomputed from the stored files. The
        mask is also None for `dense`.
    """
    # No ticket is needed, or it lacks a file.
    if kind == "dense":
        return sha256_tensors(theta_init), None
    if ticket.signed_mask is None:
        return None, None
    if ticket.checkpoint is None and kind in ("retrain", "signed_mask_norm"):
        return None, ticket.signed_mask.mask

    # Apply the same transfer as the training.
    weights = ticket.checkpoint.params if ticket.checkpoint is not None else {}
    names = transfer.unpruned_names(ticket.signed_mask, unpruned, classifier)
    params, mask = transfer.start(kind, dict(theta_init), weights, ticket.signed_mask, seed=init_seed, unpruned=names)
    return sha256_tensors(params), mask


def right_after_pruning(ticket: StoredNetwork, before: StoredNetwork) -> StoredNetwork:
    """Return a ticket directly after pruning, before any training under its mask.

    Args:
        ticket: Stored tensors of the ticket.
        before: Stored tensors of the level before.

    Returns:
        The pruned ticket, empty if a needed file is missing or altered.
    """
    if ticket.signed_mask is None or before.checkpoint is None:
        return StoredNetwork()
    params, signed_mask = transfer.pruned_ticket(before.checkpoint.params, ticket.signed_mask)
    return StoredNetwork(Checkpoint(params, {}, 0, 0, ""), signed_mask)


def without_classifier(ticket: StoredNetwork, classifier: Sequence[str]) -> StoredNetwork:
    """Return a ticket without mask and signs of its classifier.

    This is the form that is transferred to another data set.
    """
    if ticket.signed_mask is None:
        return ticket
    return StoredNetwork(ticket.checkpoint, transfer.without_classifier(ticket.signed_mask, classifier))


def final_mask(own: StoredNetwork, expected: Mask | None, kind: str) -> Iterator[Finding]:
    """Check the mask of a final training.

    Args:
        own: Stored tensors of the training.
        expected: Mask of its ticket, or the drawn one for `random_mask`. None skips the check.
        kind: Kind of final training; `dense` must prune nothing.
    """
    if own.signed_mask is None:
        return
    mask = own.signed_mask.mask
    if kind == "dense":
        yield Finding("mask", mask.num_remaining == mask.numel, "it is a dense training, but its mask prunes weights")
    elif expected is not None:
        same = mask.shapes() == expected.shapes()
        differ = sum(int((kept ^ expected.tensors[name]).sum()) for name, kept in mask.tensors.items()) if same else -1
        what = f"its mask differs from that of its ticket in {differ} weights" if same else "the mask shapes differ"
        yield Finding("mask", differ == 0, what)


def _some(names: list[str], most: int = 3) -> str:
    """Return the first names and the number of the others, as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
