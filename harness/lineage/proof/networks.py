"""What can be proved of a network's tensors: its mask, its signs, where its training started. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.config import NETWORKS_OWN, UnprunedSigns, drawn_before
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding
from harness.masks import Mask, SignedMask, transfer
from harness.models import ParamPartition, build_model, classifier_of, draw_model, partition_of
from harness.pruning import METHODS, LevelContext, PruningSchedule
from harness.pruning.method import NotHereError

Params = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StoredNetwork:
    """The tensors of one node that are here and have their recorded digests; a search has θ_init and no mask."""

    checkpoint: Checkpoint | None = None
    signed_mask: SignedMask | None = None
    further: Mapping[str, Checkpoint] = field(default_factory=dict)
    """Further networks that a method keeps with a level, by file name."""


@dataclass(frozen=True)
class Architecture:
    """Which network, as the runs record it."""

    name: str
    num_classes: int
    channels: int
    image_size: int
    width: int | None
    former: bool = False
    """Whether it is drawn as older runs drew it, where that was otherwise (`harness.config.redrawn`)."""

    @classmethod
    def of(cls, determinants: Mapping[str, Any]) -> Architecture:
        """Read it from what determines a run."""
        model, spec = determinants["model"], determinants["spec"]
        sizes = spec["num_classes"], spec["channels"], spec["image_size"], model["width"]
        return cls(model["name"], *sizes, former=drawn_before(model["name"], determinants) is not None)

    def _sizes(self) -> dict[str, int | None]:
        sizes = {"num_classes": self.num_classes, "channels": self.channels, "image_size": self.image_size}
        return sizes | {"width": self.width, "former": self.former}

    def theta_init(self, init_seed: int, scheme: str = NETWORKS_OWN) -> Checkpoint:
        """Draw θ_init anew."""
        model = draw_model(self.name, init_seed=init_seed, scheme=scheme, **self._sizes())  # type: ignore[arg-type]
        return Checkpoint.of(model, level=0, epochs=0, level_digest="")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    def model(self) -> nn.Module:
        """Build the network on the CPU, with any values."""
        with torch.random.fork_rng(devices=[]):
            return build_model(self.name, **self._sizes())  # type: ignore[arg-type]

    @property
    def classifier(self) -> str:
        """The name of the classifier's module."""
        return classifier_of(self.name)

    def skeleton(self) -> tuple[dict[str, torch.Size], ParamPartition]:
        """Return the shapes of all tensors and the partition of the parameters, without memory for their values."""
        with torch.device("meta"):
            model = build_model(self.name, **self._sizes())  # type: ignore[arg-type]
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: tensor.shape for name, tensor in named}, partition_of(self.name, model)


def fits(architecture: Architecture, network: StoredNetwork, *, classifier_too: bool = False) -> Iterator[Finding]:
    """The tensors are the network's, and the mask covers exactly what can be pruned."""
    shapes, partition = architecture.skeleton()
    if network.checkpoint is not None:
        own = {name: tensor.shape for name, tensor in network.checkpoint.state_dict.items()}
        differ = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
        yield Finding("parameters", not differ, f"the checkpoint is not of {architecture.name}: {_some(differ)} differ")
    if network.signed_mask is not None:
        mask = network.signed_mask
        # a method may mask the classifier too
        differ = sorted(partition.prunable - mask.mask.tensors.keys())
        differ += sorted(mask.mask.tensors.keys() - partition.prunable) if not classifier_too else []
        differ += sorted(name for name, sign in mask.signs.items() if shapes.get(name) != sign.shape)
        yield Finding(
            "parameters", not differ, f"the mask does not cover exactly the prunable weights: {_some(differ)}"
        )
        differ = sorted(mask.norm ^ partition.norm)
        yield Finding("parameters", not differ, f"the mask names other normalisation parameters: {_some(differ)}")


def owner(record: LineageRecord, network: StoredNetwork) -> Iterator[Finding]:
    """The files say themselves whose they are."""
    level = int(record.tags["level"])
    if (checkpoint := network.checkpoint) is not None:
        yield _same_owner("the checkpoint", checkpoint.level_digest, checkpoint.level, record.key, level)
    if (mask := network.signed_mask) is None:
        return
    yield _same_owner("the mask", mask.metadata.get("level_digest"), mask.metadata.get("level"), record.key, level)
    metrics = record.last_metrics()
    counted = {"density": mask.density, "num_remaining": float(mask.mask.num_remaining)}
    for name, value in counted.items():
        told = {metrics[name]} if name in metrics else set()
        told |= {mask.metadata["density"]} if name == "density" and "density" in mask.metadata else set()
        yield Finding("owner", told <= {value}, f"the mask's {name} is {value:g}, but {told} was recorded")
    tag = record.tags.get("density")
    yield Finding("owner", tag == f"{mask.density:.6f}", f"its density is {mask.density:.6f}, but its tag says {tag}")


def _same_owner(what: str, key: object, level: object, own_key: str, own_level: int) -> Finding:
    made = f"{what} was made by run {str(key)[:16]}… at level {level}, this is {own_key[:16]}… at level {own_level}"
    return Finding("owner", (key, level) == (own_key, own_level), made)


def signs(network: StoredNetwork) -> Iterator[Finding]:
    """s = sign₀(θ ⊙ m), and pruned weights are +0.0."""
    checkpoint, mask = network.checkpoint, network.signed_mask
    if checkpoint is None or mask is None:
        return
    expected = SignedMask.of(checkpoint.params, mask.mask).signs
    differ = {
        name: int((sign != mask.signs[name]).sum())
        for name, sign in expected.items()
        if name not in mask.signs or not torch.equal(sign, mask.signs[name])
    }
    where = f"{sum(differ.values())} signs are not those of the checkpoint, in {_some(list(differ))}"
    yield Finding("signs", not differ and expected.keys() == mask.signs.keys(), where)
    alive = {}
    for name, kept in mask.mask.tensors.items():
        bits = checkpoint.params[name].contiguous().view(_INTEGERS[checkpoint.params[name].element_size()])
        if number := int(((bits != 0) & ~kept).sum()):  # −0.0 has a bit too
            alive[name] = number
    yield Finding("zeros", not alive, f"{sum(alive.values())} pruned weights are not +0.0, in {_some(list(alive))}")


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masks(record: LineageRecord, ctx: LevelContext, own: StoredNetwork, parent: StoredNetwork) -> Iterator[Finding]:
    """The mask of a level follows from its parent's mask and checkpoint; level 0 is dense.

    `ctx` has the level's own mask. Raises NotHereError, after all that can be checked without it, for a network that
    the ranking needs.
    """
    mask, level = ctx.mask, ctx.level
    if level == 0:
        yield Finding("count", mask.num_remaining == mask.numel, f"level 0 prunes {mask.numel - mask.num_remaining}")
        return
    if parent.signed_mask is None:
        return
    before = parent.signed_mask.mask
    same = mask.shapes() == before.shapes()
    grown = sum(int((kept & ~before.tensors[name]).sum()) for name, kept in mask.tensors.items()) if same else -1
    yield Finding("nested", grown == 0, f"{grown} weights are kept that the level before had pruned")
    method = METHODS.get(record.tags["method"])
    pruning = method.pruning(ctx.config) if method else PruningSchedule.of(ctx.config)
    if pruning is None:
        found = mask.num_remaining
        yield Finding("count", found == before.num_remaining, f"{found} of {before.num_remaining} weights remain")
        return
    for name, expected in pruning.counts(level, before).items():
        kept = [mask.tensors[name]] if name in mask.tensors else list(mask.tensors.values())
        found = sum(int(tensor.sum()) for tensor in kept)
        what = f"{found} weights remain{f' in {name}' if name else ''}; {expected} should"
        yield Finding("count", found == expected, what)
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
    what = f"{differ} weights differ from what {record.tags['method']} chooses"
    yield Finding("pruned", differ == 0, what)


def final_start(
    kind: str, ticket: StoredNetwork, theta_init: Params, *, init_seed: int, unpruned: UnprunedSigns, classifier: str
) -> tuple[str | None, Mask | None]:
    """Return (digest of what a final training starts from, its mask); None for what cannot be told from what is here.

    `theta_init` is not looked at by `retrain`.
    """
    if kind == "dense":
        return sha256_tensors(theta_init), None
    if ticket.signed_mask is None:
        return None, None
    if ticket.checkpoint is None and kind in ("retrain", "signed_mask_norm"):
        return None, ticket.signed_mask.mask
    weights = ticket.checkpoint.params if ticket.checkpoint is not None else {}
    names = transfer.unpruned_names(ticket.signed_mask, unpruned, classifier)
    params, mask = transfer.start(kind, dict(theta_init), weights, ticket.signed_mask, seed=init_seed, unpruned=names)
    return sha256_tensors(params), mask


def right_after_pruning(ticket: StoredNetwork, before: StoredNetwork) -> StoredNetwork:
    """Return a ticket as it was before it was trained; empty where that cannot be told from what is here."""
    if ticket.signed_mask is None or before.checkpoint is None:
        return StoredNetwork()
    params, signed_mask = transfer.pruned_ticket(before.checkpoint.params, ticket.signed_mask)
    return StoredNetwork(Checkpoint(params, {}, 0, 0, ""), signed_mask)


def without_classifier(ticket: StoredNetwork, classifier: str) -> StoredNetwork:
    """Return a ticket as it goes over to another data set."""
    if ticket.signed_mask is None:
        return ticket
    return StoredNetwork(ticket.checkpoint, transfer.without_classifier(ticket.signed_mask, classifier))


def final_mask(own: StoredNetwork, expected: Mask | None, kind: str) -> Iterator[Finding]:
    """A final training has the mask of its ticket (`random_mask`: the drawn one, `dense`: all ones)."""
    if own.signed_mask is None:
        return
    mask = own.signed_mask.mask
    if kind == "dense":
        yield Finding("mask", mask.num_remaining == mask.numel, "a dense training has pruned weights")
    elif expected is not None:
        same = mask.shapes() == expected.shapes()
        differ = sum(int((kept ^ expected.tensors[name]).sum()) for name, kept in mask.tensors.items()) if same else -1
        yield Finding("mask", differ == 0, f"{differ} weights differ from the mask its ticket gives")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
