"""ImageNet (ILSVRC2012) as its authors give it: the two tars, or directories with the validation images in one heap.

Training images are one tar (or directory) for each wnid. The 50,000 validation images are numbered and not sorted by
class; which class each has is read from whichever of these files lies beside them:

    ILSVRC2012_devkit_t12[.tar.gz]               the development kit: ground truth by number, wnids from meta.mat
    valprep.sh                                   the common script of `mv <image> <wnid>/` lines; it is read, not run
    LOC_val_solution.csv                         Kaggle's
    imagenet_2012_validation_synset_labels.txt   TensorFlow's: a wnid a line, by number
    val_annotations.txt                          lines of `<image> <wnid>`

Tars are read where they are; nothing is unpacked.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from harness.common.logging import progress
from harness.data.readers.raw import IMAGE_SUFFIXES, RawSample, RawSplit, check_same_classes
from harness.data.spec import DataSpec

_TARS = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_DEVKIT = "ILSVRC2012_devkit_t12"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_NUMBER = re.compile(r"_(\d{8})$")
_MOST_BYTES = 2**28
"""A file of the development kit that claims more is not believed."""

Classes = Callable[[str], str]
"""From a validation image's file name to its wnid; LookupError if it has none."""


@dataclass(frozen=True)
class _Image:
    """One image file: the whole of `path`, or `size` bytes of a tar from `offset` on."""

    wnid: str
    name: str
    path: Path
    offset: int = 0
    size: int = -1


def is_ilsvrc_directory(path: Path) -> bool:
    """Whether `path` holds an original tar, or train/<wnid>/ beside a heap of validation images."""
    return any((path / name).is_file() for name in _TARS.values()) or (
        (path / "train").is_dir() and _is_heap(path / "val")
    )


def read_ilsvrc(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a directory of tars, of image directories, or of one each.

    Classes are numbered in the order of their sorted wnids and samples come by class, then by name, so that every
    layout of the same images has one content digest. Raises ValueError or FileNotFoundError.
    """
    train_wnids = _train_wnids(path)
    images, note = _test_images(path)  # for the training split too, so that an error shows before the work
    test_wnids = sorted({image.wnid for image in images})
    check_same_classes(train_wnids, test_wnids, f"the training images of {path}", "its validation images")
    if split == "train":
        images, note = _train_images(path)
    labels = {wnid: label for label, wnid in enumerate(train_wnids)}
    images.sort(key=lambda image: (image.wnid, image.name))

    def samples() -> Iterator[RawSample]:
        with ExitStack() as stack:
            tars = {path: stack.enter_context(open(path, "rb")) for path in {i.path for i in images if i.size >= 0}}
            for image in images:
                content: Path | bytes = image.path
                where = str(image.path)
                if image.size >= 0:
                    tars[image.path].seek(image.offset)
                    content, where = tars[image.path].read(image.size), f"{image.path}:{image.name}"
                yield RawSample(content, labels[image.wnid], where)

    return RawSplit(len(images), samples, {"num_classes": len(train_wnids), "layout": note})


def _train_wnids(path: Path) -> list[str]:
    if (path / _TARS["train"]).is_file():
        with _tar(path / _TARS["train"]) as tar:
            return sorted(PurePosixPath(member.name).stem for member in _files(tar, path / _TARS["train"], (".tar",)))
    if (path / "train").is_dir():
        return sorted(entry.name for entry in (path / "train").iterdir() if entry.is_dir())
    raise FileNotFoundError(f"{path} has neither {_TARS['train']} nor a directory train")


def _train_images(path: Path) -> tuple[list[_Image], str]:
    file = path / _TARS["train"]
    if not file.is_file():
        return _in_class_directories(path / "train"), "train/<wnid>"
    images: list[_Image] = []
    with _tar(file) as outer:
        classes = list(_files(outer, file, (".tar",)))
        with progress(f"reading {file.name}", len(classes), "classes") as bar:
            for member in classes:
                wnid, inside = PurePosixPath(member.name).stem, cast(BinaryIO, outer.extractfile(member))
                with _tar(file, inside) as inner:
                    images += [
                        _Image(wnid, PurePosixPath(m.name).name, file, member.offset_data + m.offset_data, m.size)
                        for m in _files(inner, file, tuple(IMAGE_SUFFIXES), member.size)
                    ]
                bar.update()
    return images, file.name


def _test_images(path: Path) -> tuple[list[_Image], str]:
    file, directory = path / _TARS["test"], path / "val"
    if file.is_file():
        with _tar(file) as tar:
            members = list(_files(tar, file, tuple(IMAGE_SUFFIXES)))
        heap = [(PurePosixPath(m.name).name, file, m.offset_data, m.size) for m in members]
    elif _is_heap(directory):
        heap = [(entry.name, entry, 0, -1) for entry in sorted(directory.iterdir()) if _is_image(entry)]
    elif directory.is_dir():
        return _in_class_directories(directory), "val/<wnid>"
    else:
        raise FileNotFoundError(f"{path} has neither {_TARS['test']} nor a directory val")
    classes, note = validation_classes(path)
    return [_Image(_class_of(classes, name, note), name, *place) for name, *place in heap], note  # type: ignore[arg-type]


def _class_of(classes: Classes, name: str, note: str) -> str:
    try:
        return classes(name)
    except LookupError:
        raise ValueError(f"{note} does not say which class {name} has") from None


def _in_class_directories(directory: Path) -> list[_Image]:
    return [
        _Image(entry.name, file.name, file)
        for entry in directory.iterdir()
        if entry.is_dir()
        for file in entry.rglob("*")
        if _is_image(file)
    ]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_heap(directory: Path) -> bool:
    """Whether validation images lie in `directory` itself, as they come out of their tar."""
    return directory.is_dir() and any(_is_image(entry) for entry in directory.iterdir())


def _tar(path: Path, file: BinaryIO | None = None) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:", fileobj=file)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar: {error}; download it again") from error


def _files(
    tar: tarfile.TarFile, path: Path, suffixes: tuple[str, ...], num_bytes: int | None = None
) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files with one of these suffixes; links are refused, and a tar that was cut off is found.

    `num_bytes` is the size of a tar inside the tar `path`.
    """
    end = path.stat().st_size if num_bytes is None else num_bytes
    try:
        for member in tar:
            if not member.name.lower().endswith(suffixes) or member.isdir():
                continue
            if not member.isreg():
                raise ValueError(f"{path}: {member.name} is a link or otherwise no plain file; not read")
            if member.offset_data + member.size > end:
                raise ValueError(f"{path}: {member.name} goes beyond the end of the file: cut off; download it again")
            yield member
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; download it again") from error


def validation_classes(path: Path) -> tuple[Classes, str]:
    """Return the classes of the validation images, read from the first known file in `path`, and that file's name.

    Raises FileNotFoundError that lists them if there is none, ValueError for one that cannot be understood.
    """
    for name, read in _MAPPINGS.items():
        for directory in (path, path / "val"):
            if (directory / name).exists():
                return read(directory / name), name
    raise FileNotFoundError(
        f"the validation images of {path} lie in one heap, and nothing beside them says which class each has; put one "
        f"of {', '.join(_MAPPINGS)} there"
    )


def _by_number(wnids: list[str]) -> Classes:
    """Return a lookup in which entry n is the class of ILSVRC2012_val_0000000n."""

    def wnid(name: str) -> str:
        number = _NUMBER.search(PurePosixPath(name).stem)
        if number is None or int(number[1]) < 1:
            raise LookupError(name)
        return wnids[int(number[1]) - 1]

    return wnid


def _by_name(pairs: list[tuple[str, str]], path: Path) -> Classes:
    if not pairs:
        raise ValueError(f"{path} names no image with its wnid")
    wnids = {PurePosixPath(name).stem: wnid for name, wnid in pairs}
    return lambda name: wnids[PurePosixPath(name).stem]


def _pairs(pattern: str) -> Callable[[Path], Classes]:
    """Return a reader of text in which `pattern` finds image and wnid."""
    return lambda path: _by_name(re.findall(pattern, path.read_text(), re.M), path)


def _wnid_a_line(path: Path) -> Classes:
    return _by_number(path.read_text().split())


def _devkit_directory(path: Path) -> Classes:
    data = path / "data"
    if not (data / "meta.mat").is_file() or not (data / _GROUND_TRUTH).is_file():
        raise ValueError(f"{path} is not the development kit: it has no data/meta.mat with data/{_GROUND_TRUTH}")
    return _devkit((data / "meta.mat").read_bytes(), (data / _GROUND_TRUTH).read_text(), path)


def _devkit_archive(path: Path) -> Classes:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.name in ("meta.mat", _GROUND_TRUTH) and member.isreg() and member.size < _MOST_BYTES:
                    contents[name.name] = cast(BinaryIO, tar.extractfile(member)).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; download it again") from error
    if len(contents) != 2:
        raise ValueError(f"{path} is not the development kit: it has no data/meta.mat with data/{_GROUND_TRUTH}")
    return _devkit(contents["meta.mat"], contents[_GROUND_TRUTH].decode(), path)


def _devkit(meta: bytes, ground_truth: str, path: Path) -> Classes:
    """Join the ground truth, by ILSVRC2012_ID, with the wnids of meta.mat (MATLAB's own format, no pickle)."""
    from scipy.io import loadmat

    try:
        synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return _by_number([wnids[int(number)] for number in ground_truth.split()])
    except Exception as error:  # scipy raises many kinds
        raise ValueError(f"{path}: meta.mat and {_GROUND_TRUTH} do not fit each other: {error!r}") from error


_MAPPINGS: dict[str, Callable[[Path], Classes]] = {
    "val_annotations.txt": _pairs(r"^(\S+)\s+(n\d{8})\b"),
    "valprep.sh": _pairs(r"^\s*mv\s+(\S+)\s+(n\d{8})/?\s*$"),
    "LOC_val_solution.csv": _pairs(r"^([^,\s]+),\s*(n\d{8})\b"),
    "imagenet_2012_validation_synset_labels.txt": _wnid_a_line,
    _DEVKIT: _devkit_directory,
    f"{_DEVKIT}.tar.gz": _devkit_archive,
}
