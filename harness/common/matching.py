"""Match the tensors of a file from other code with the tensors of a network.

Names match if they are equal after the removal of a leading part that all of them share. There is no table of names
between libraries, because an error in it would not show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from harness.common.tensors import listed, plain_name

COUNTER = "num_batches_tracked"
"""End of the name of BatchNorm's counters. Files of old torch versions lack them."""
_AVERAGED = "n_averaged"
"""Counter that torch.optim.swa_utils.AveragedModel stores beside its network."""
_ORIG, _MASK = "_orig", "_mask"
"""Ends of the two names that torch.nn.utils.prune stores in place of one."""


@dataclass
class Matched:
    """Tensors of a file by the names of a network.

    Tensors that the network does not know keep their own names.
    """

    tensors: dict[str, torch.Tensor]
    what: str = "the file"
    """Description of the tensors for an error."""
    notes: list[str] = field(default_factory=list)
    """Sentences about changed names, masks and tensors that were left out."""
    pruned: int = 0
    """Number of masks of torch.nn.utils.prune that were applied."""


def match_names(
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    heads: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Matched:
    """Return the tensors of a file by the names of a network.

    - A leading part that all names of the network have in the file is removed, such as `model.` of Lightning. A leading
      part that only the network has is added. Tensors outside that part are left out.
    - A weight that torch.nn.utils.prune has split into `weight_orig` and `weight_mask` is multiplied.
    - The counter `n_averaged` of an averaged network is left out.
    - A shared tensor may have any of its names.

    Args:
        tensors: The tensors of the file.
        own: The tensors of the network.
        heads: Dotted names of the classifiers' modules. The file may lack them.
        aliases: Further names of shared tensors of the network, with their names in `own`.

    Returns:
        The tensors, and notes on all changes. If no leading part fits, the names stay.

    Raises:
        ValueError: The file has the network several times with different values. Or a mask is not of zeros and ones. Or
            a shared tensor has different values under its names.
    """
    # Phase: the names without the parts that wrappers add.
    wanted = {plain_name(name): name for name in own}
    if len(wanted) < len(own):
        wanted = {name: name for name in own}
    held = {plain_name(name): tensor for name, tensor in tensors.items()}
    if len(held) < len(tensors):
        held = dict(tensors)
    found = Matched(held)

    # Phase: multiply weights and masks of torch.nn.utils.prune, unless the network itself has such names.
    if not any(name.endswith(_ORIG) for name in wanted):
        _apply_masks_(found)

    # Phase: find the leading part that names have in the file alone or in the network alone.
    ends = tuple(f"{head}." for head in map(plain_name, heads))
    core = [name for name in wanted if not name.endswith(COUNTER) and not name.startswith(ends)]
    shapes = {name: own[full].shape for name, full in wanted.items()}
    removed, added = _leading(found.tensors, shapes, core or list(wanted), ends)

    # Phase: rename, and note the tensors that are left out.
    inside = {name: tensor for name, tensor in found.tensors.items() if name.startswith(removed)}
    outside = [name for name in found.tensors if name not in inside]
    averaged = found.tensors.get(_AVERAGED)
    if _AVERAGED in inside and _AVERAGED not in wanted and averaged is not None and averaged.ndim == 0:
        del inside[_AVERAGED]
        outside.append(_AVERAGED)
    if removed or added:
        changed = [f"without {removed!r}"] * bool(removed) + [f"with {added!r} added"] * bool(added)
        found.what = f"the file ({' and '.join(changed)})"
        found.notes.append(f"its names are taken {' and '.join(changed)}")
    if outside:
        found.notes.append(f"not part of the network and not taken: {listed(outside)} ({len(outside)} of {len(held)})")
    names = {name: added + name.removeprefix(removed) for name in inside}
    found.tensors = {wanted.get(names[name], names[name]): tensor for name, tensor in inside.items()}

    # Phase: files have one or all of the names of a shared tensor.
    for alias, name in (aliases or {}).items():
        value = found.tensors.pop(plain_name(alias), None)
        if value is not None and not torch.equal(found.tensors.setdefault(name, value), value):
            raise ValueError(f"{found.what} does not fit the network: {alias} and {name} share one tensor there")
    return found


def _apply_masks_(found: Matched) -> None:
    """Replace each pair `x_orig` and `x_mask` by their product `x`."""
    held = found.tensors
    stems = [name.removesuffix(_ORIG) for name in held if name.endswith(_ORIG)]
    pairs = [stem for stem in stems if stem + _MASK in held and stem not in held]
    kept = total = 0
    for stem in pairs:
        values, mask = held[stem + _ORIG], held[stem + _MASK]
        ones = mask == 1
        if mask.shape != values.shape or not bool((ones | (mask == 0)).all()):
            raise ValueError(
                f"the file does not fit the network: {stem}{_MASK} {tuple(mask.shape)} is no mask of zeros and ones "
                f"for {stem}{_ORIG} {tuple(values.shape)}; multiply the two yourself and save again"
            )
        # Few operations take one-byte floats.
        values = values.float() if values.is_floating_point() and values.itemsize == 1 else values
        held[stem] = values.masked_fill(~ones, 0)
        kept, total = kept + int(ones.sum()), total + mask.numel()
    for stem in pairs:
        del held[stem + _ORIG], held[stem + _MASK]
    found.pruned = len(pairs)
    if pairs:
        found.notes.append(
            f"{listed(pairs)} had a mask of torch.nn.utils.prune: {kept:,} of {total:,} values stay, the others are "
            "zeros now"
        )


def _leading(
    held: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], core: list[str], heads: tuple[str, ...]
) -> tuple[str, str]:
    """Return the part to remove from the names of the file, and the part to add instead.

    If no part gives all names of `core`, return the best one, for a precise error.
    """
    # Phase: how many names each part gives. A part to add is tried only if removal alone does not suffice.
    best, most = ("", ""), len(core) / 2
    for added in _shared(core):
        short = {name.removeprefix(added) for name in core}
        counts = Counter(part for name in held for part, end in _splits(name) if end in short)
        complete = [part for part, count in counts.items() if count == len(core)]
        if complete:
            return _one_of(complete, added, held, shapes, heads), added
        for part, count in sorted(counts.items()):
            if count > most:
                best, most = (part, added), count
    return best


def _one_of(
    complete: list[str],
    added: str,
    held: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Size],
    heads: tuple[str, ...],
) -> str:
    """Choose among the parts under which the file has all names of the network."""

    def under(part: str) -> dict[str, torch.Tensor]:
        """The tensors under this part, by the names of the network, without those under a longer part."""
        longer = tuple(other for other in complete if other != part and other.startswith(part))
        names = [name for name in held if name.startswith(part) and not name.startswith(longer)]
        return {added + name.removeprefix(part): held[name] for name in names}

    # Phase: leave out larger networks of the same names, then other shapes.
    sets = {part: under(part) for part in complete}
    known = {_AVERAGED, *shapes}
    exact = [part for part, set_ in sets.items() if all(name in known or name.startswith(heads) for name in set_)]
    left = exact or complete[:1]
    same_shapes = [
        part
        for part in left
        if all(
            name in sets[part] and sets[part][name].shape == shape
            for name, shape in shapes.items()
            if not name.endswith(COUNTER) and not name.startswith(heads)
        )
    ]
    left = same_shapes or left

    # Phase: several names of one network are no ambiguity.
    first = sets[left[0]]
    if not all(_equal(first, sets[part]) for part in left[1:]):
        texts = [repr(part.removesuffix(".")) if part else "no leading name" for part in left]
        named = next(part for part in left if part).removesuffix(".")
        raise ValueError(
            f"the file has the network {len(left)} times, under {listed(texts)}; choose one by its name: FILE:{named}"
        )
    return left[0]


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def _shared(names: list[str]) -> Iterator[str]:
    """Yield "", and the leading parts that all names share."""
    yield ""
    parts = names[0].split(".")
    for cut in range(1, len(parts)):
        part = ".".join(parts[:cut]) + "."
        if not all(name.startswith(part) for name in names):
            return
        yield part


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield each division of a dotted name into a leading part, with its dot, and the rest."""
    yield "", name
    for at, character in enumerate(name):
        if character == ".":
            yield name[: at + 1], name[at + 1 :]
