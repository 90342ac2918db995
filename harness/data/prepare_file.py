"""Prepare a data set that a user's file makes: read each sample once, and write its digest and label, but no image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from harness.common.digest import canonical_json
from harness.common.files import write_atomically, write_tensors
from harness.common.logging import progress
from harness.data.manifest import FORMAT, SPLITS, FileRecord, Manifest
from harness.data.own import SPEC_FILE, ImageSums, Measured, OwnOptions, file_transforms, spec_text, with_classes
from harness.data.spec import DataSpec
from harness.data.torch_loader import SampleError, begin_worker
from harness.data.user_file import SAMPLES_FILE, SOURCE_FILE, FileSamples, UserFile, sample_digest

_TRIED = 8
"""Samples that are made twice, to find random numbers that are not seeded."""


@dataclass(frozen=True)
class _Read:
    """Digest and label of each sample, in order."""

    digests_N32: np.ndarray
    labels_N: np.ndarray


def prepare_file(
    spec: DataSpec,
    directory: Path,
    file: UserFile,
    own: OwnOptions,
    num_workers: int,
    *,
    given: str,
    allow_missing_classes: bool,
) -> list[Manifest]:
    """Write manifests, `spec.json`, the samples' digests and a copy of the user's file.

    Args:
        spec: The data set, without classes, mean and standard deviation.
        directory: Its directory.
        file: The user's file, which is executed.
        own: Options of the data set.
        num_workers: Worker processes. The results do not depend on their number.
        given: The source as the manifest records it.
        allow_missing_classes: Accept a test split without samples of some classes.

    Raises:
        ValueError: The user's code raises an error, or a sample is invalid.
    """
    # Phase: the transforms, either of the file or by name.
    if file.has_transforms:
        if own.has_augmentation:
            raise ValueError(f"{file.path} has transforms; leave out --augmentation and its options")
        spec = replace(spec, augmentation=file_transforms(file.sha256))
    elif not spec.fixed_size:
        raise ValueError(
            f"{file.path} has no transforms, and resized-crop needs stored images; write transforms(split, size)"
        )

    # Phase: read all samples once.
    measured, read = Measured(spec.channels), {}
    for split in SPLITS:
        samples = FileSamples(spec, file, split)
        if len(samples) == 0:
            raise ValueError(f"{file.function}({split!r}) of {file.path} has no samples")
        _check_seeded(samples)
        read[split] = _read(samples, measured if split == "train" else None, num_workers)
    spec = measured.completes(with_classes(spec, _names(read, file, allow_missing_classes)))

    # Phase: write the files, and both manifests at the end.
    options: dict[str, Any] = {"loader": "torch", "file": file.sha256, "function": file.function}
    options |= {"image_size": spec.image_size, "channels": spec.channels}
    text = spec_text(spec).encode()
    for split in SPLITS:
        (directory / f"{split}.json").unlink(missing_ok=True)
    shared = {SPEC_FILE: text, SOURCE_FILE: file.content}
    for name, content in shared.items():
        write_atomically(directory / name, content)
    manifests = []
    for split, found in read.items():
        path = directory / SAMPLES_FILE.format(split=split)
        write_tensors(path, {"digests_N32": found.digests_N32, "labels": found.labels_N}, durable=True)
        head = {"format": FORMAT, "name": spec.name, "split": split, "options": options}
        digest = hashlib.sha256(canonical_json(head).encode() + found.digests_N32.tobytes() + text).hexdigest()
        files = {name: _record(content) for name, content in (*shared.items(), (path.name, path.read_bytes()))}
        source = {"given": given, "own": own.recorded}
        manifests.append(Manifest(spec.name, split, len(found.labels_N), digest, options, source, files))
    for manifest in manifests:
        manifest.save(directory / f"{manifest.split}.json")
    return manifests


def _record(content: bytes) -> FileRecord:
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content))


def _names(read: dict[str, _Read], file: UserFile, allow_missing_classes: bool) -> tuple[str, ...]:
    """Return the names of the classes: those of the dataset's attribute `classes`, else the labels.

    Raises:
        ValueError: A class has no samples in a split.
    """
    count = max(int(one.labels_N.max()) for one in read.values()) + 1
    listed = getattr(file.dataset("train"), "classes", None)
    if isinstance(listed, list | tuple) and len(listed) >= count and all(isinstance(name, str) for name in listed):
        names = tuple(listed)
    else:
        names = tuple(str(label) for label in range(count))
    for split, one in read.items():
        missing = [names[label] for label in np.setdiff1d(np.arange(len(names)), one.labels_N)]
        if missing and not (allow_missing_classes and split == "test"):
            raise ValueError(
                f"{file.function}({split!r}) of {file.path} has no samples of {len(missing)} of {len(names)} classes: "
                f"{', '.join(missing[:5])}; labels are 0 to {len(names) - 1}. Or pass --allow-missing-classes for test"
            )
    return names


def _check_seeded(samples: FileSamples) -> None:
    """Check that equal seeds give equal samples, and that the dataset itself draws nothing.

    Raises:
        SampleError: A sample differs the second time. The message says why.
    """
    for index in range(min(_TRIED, len(samples))):
        image, pixels, label = samples.raw(index)
        again, same, other = samples.raw(index, seed=1)
        if pixels.shape != same.shape or (pixels != same).any() or label != other:
            raise SampleError(
                f"sample {index} of {samples.spec.name} {samples.split} differs the second time; its dataset draws "
                "random numbers. Move them to transforms(split, size)"
            )
        for key in (None, 7):
            first = samples.shown(image, pixels, index, key)
            second = samples.shown(again, same, index, key)
            if (first != second).any():
                raise SampleError(
                    f"sample {index} of {samples.spec.name} {samples.split} differs the second time, with the same "
                    "seed; transforms must draw from torch, numpy.random or random, without generators of their own"
                )


class _Measuring:
    """Return digest, label and sums of a sample, or the message of its error."""

    def __init__(self, samples: FileSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[bytes, int, ImageSums] | str:
        try:
            image, pixels, label = self.samples.raw(index)
            sums = ImageSums.of(self.samples.shown(image, pixels, index, None))
        except SampleError as error:
            return str(error)
        return sample_digest(pixels, label), label, sums


def _read(samples: FileSamples, measured: Measured | None, num_workers: int) -> _Read:
    """Read all samples of a split, and add their sums to `measured`.

    Raises:
        SampleError: A sample is invalid.
    """
    spec, digests, labels = samples.spec, bytearray(), []
    with progress(f"{spec.name} {samples.split}", len(samples), "images") as bar:
        for index, made in enumerate(_measurements(samples, num_workers)):
            if isinstance(made, str):
                raise SampleError(made)
            digest, label, sums = made
            if spec.channels == 1 and not sums.is_gray:
                raise SampleError(f"sample {index} of {spec.name} {samples.split} is in colour; give --channels 3")
            digests += digest
            labels.append(label)
            if measured is not None:
                measured.add(sums)
            bar.update()
    return _Read(np.frombuffer(digests, np.uint8).reshape(-1, 32), np.array(labels, np.int64))


def _measurements(samples: FileSamples, num_workers: int) -> Iterator[Any]:
    workers = num_workers if num_workers > 1 and len(samples) > 1000 else 0  # workers take a moment to start
    more: dict[str, Any] = {"worker_init_fn": begin_worker, "multiprocessing_context": "fork"} if workers else {}
    dataset: Any = _Measuring(samples)
    yield from DataLoader(dataset, batch_size=None, shuffle=False, num_workers=workers, **more)
