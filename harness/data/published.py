"""Compare raw and prepared data sets with the published ones.

Labels are positions in the list of classes. A missing or additional class would silently renumber others, so another
set of classes is refused. Another number of images is one line on standard error, and a note in the manifest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.data.readers.raw import RawSplit, SourceError, listed
from harness.data.spec import DataSpec

_log = logging.getLogger(__name__)
_WNID = re.compile(r"n\d{8}")


def check_classes(spec: DataSpec, raw: RawSplit, source: str, split: str, *, allow_missing: bool) -> dict[str, Any]:
    """Check that a raw split has images of all classes of the data set, and of no others.

    Args:
        spec: The data set.
        raw: The split.
        source: Its source, for messages.
        split: train or test.
        allow_missing: Accept a split that lacks classes.

    Returns:
        Notes for the manifest: the missing classes, if there are any.

    Raises:
        SourceError: Classes are missing, or there are too many. The message names them.
    """
    where, num_classes = f"the {split} split of {source}", spec.num_classes
    # Refuse more classes than the data set has.
    if len(raw.class_names) > num_classes:
        foreign = sorted(set(raw.class_names) - set(spec.raw.class_names)) if spec.raw.class_names else []
        found = f"not among them: {listed(foreign)}" if foreign else f"the source has {listed(raw.class_names)}"
        raise SourceError(
            f"{where} has {len(raw.class_names)} classes; {spec.name} has {num_classes}; {found}. Remove or rename "
            "the directories that are not classes"
        )
    for index in np.flatnonzero((raw.labels < 0) | (raw.labels >= num_classes))[:1]:
        raise SourceError(
            f"image {index} of {where} has label {raw.labels[index]}; {spec.name} has labels 0 to {num_classes - 1}"
        )
    if not spec.raw.own:  # a user's classes may have any names
        _check_names(spec, raw.class_names, where)
    _note_numbers(raw.class_names, where)
    # Name the classes without images.
    missing = np.setdiff1d(np.arange(num_classes), raw.labels).tolist()
    if not missing:
        return {}
    names = _missing_names(spec, raw, missing)
    text = f"{where} has images of {num_classes - len(missing)} of the {num_classes} classes of {spec.name}; {names}"
    if not allow_missing:
        raise SourceError(
            f"{text}. Complete the source, or pass --allow-missing-classes to try things out with a sample"
        )
    _log.warning(text if spec.raw.own else f"{text}. Results do not compare with published ones")
    return {"num_missing_classes": len(missing)}


def _check_names(spec: DataSpec, names: Sequence[str], where: str) -> None:
    """Refuse a few class names of another form than the others.

    They are directories that are no classes, or classes that were renamed. Both shift the labels of other classes.

    Raises:
        SourceError: Most names are published names, wnids or numbers, and some are not. The message names these.
    """
    # Choose the form that most names have.
    forms = {
        f"the classes of {spec.name}": [name for name in names if name in spec.raw.class_names],
        "wnids": [name for name in names if _WNID.fullmatch(name)],
        "numbers": [name for name in names if name.isdecimal()],
    }
    form, usual = max(forms.items(), key=lambda item: len(item[1]))
    foreign = [name for name in names if name not in usual]
    # Name those that differ, and the published names that are missing.
    if foreign and 2 * len(usual) > len(names):
        published = spec.raw.class_names if usual[0] in spec.raw.class_names else ()
        absent = [name for name in published if name not in names]
        lacking = f"; missing: {listed(absent)}" if absent else ""
        raise SourceError(
            f"{where} has classes that are not {form}: {listed(foreign)}{lacking}. Remove or rename these directories"
        )


def _note_numbers(names: Sequence[str], where: str) -> None:
    """Say that directories 0, 1, 10, 2, … are labelled in the order of text. Another order would change the digest."""
    if all(name.isdecimal() for name in names) and list(names) == sorted(names) != sorted(names, key=int):
        label = next(label for label, name in enumerate(names) if int(name) != label)
        width = max(map(len, names))
        _log.warning(
            f"{where} has numbers as class names, which are sorted as text: class {names[label]} gets label {label}. "
            f"Labels differ from those of other sources. To keep the numbers as labels, rename 1 to {1:0{width}}, "
            "and so on"
        )


def _missing_names(spec: DataSpec, raw: RawSplit, missing: Sequence[int]) -> str:
    published, own = spec.raw.class_names, raw.class_names
    if 0 < len(own) < spec.num_classes:  # directories are missing, so their positions do not name them
        absent = [name for name in published if name not in own] if set(own) <= set(published) else []
        empty = [own[label] for label in missing if label < len(own)]
        return f"missing: {listed(absent + empty)}" if absent else f"the source has {listed(own)}"
    names = own or published
    if len(names) < spec.num_classes:
        return f"missing: labels {listed([str(label) for label in missing])}"
    return f"missing: {listed([names[label] for label in missing])}"


def count_notes(spec: DataSpec, raw: RawSplit, split: str) -> dict[str, Any]:
    """Return notes for the manifest if a raw split and the published one have different numbers of images."""
    published = _published(spec, split)
    found = raw.num_samples if raw.num_source is None else raw.num_source
    return {} if published in (None, found) else {"num_source": found, "num_published": published}


def warn_of_other_count(spec: DataSpec, split: str, num_samples: int, notes: dict[str, Any], where: str) -> None:
    """Warn if a prepared split and the published one have different numbers of images.

    Args:
        spec: The data set.
        split: train or test.
        num_samples: Images in the prepared split.
        notes: Notes in its manifest. Manifests of earlier versions have none about the count.
        where: Directory of the split, for the message.
    """
    published = _published(spec, split)
    chosen = spec.raw.num_train if split == "train" else None
    found = notes.get("num_source", published if num_samples == chosen else num_samples)
    if published not in (None, found):
        _log.warning(
            f"{where}: the {split} split of {spec.name} has {found:,} images, the published one {published:,}. Results "
            "do not compare with those of the published data set"
        )


def _published(spec: DataSpec, split: str) -> int | None:
    return None if spec.raw.published is None else spec.raw.published[split == "test"]
