"""Prepare a data set from raw images.

The results are train.beton, test.beton and their manifests. Writing is atomic. An interrupted preparation resumes with
the first unfinished split. Repeated preparations give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from harness.common import trusted
from harness.common.digest import canonical_json, sha256_file
from harness.common.escape import one_line
from harness.common.files import NO_LOCKS, reach, write_atomically, write_tensors
from harness.common.logging import progress
from harness.common.optional import require
from harness.config import known
from harness.data.augment import draw
from harness.data.ffcv.beton import JPG, LARGE_PAGE_BYTES, RAW, SMALL_PAGE_BYTES, BetonWriter, read_sizes
from harness.data.manifest import FORMAT, SPLITS, FileRecord, Manifest, check_file, remember
from harness.data.own import (
    SPEC_FILE,
    ImageSums,
    Measured,
    OwnOptions,
    check_own_name,
    describe,
    prepared_names,
    spec_text,
    started,
)
from harness.data.pixels import centre_square, rgb
from harness.data.published import check_classes, count_notes, warn_of_other_count
from harness.data.readers.own import read_own
from harness.data.readers.raw import RawSample, RawSplit, SourceError, read_file, reason
from harness.data.readers.sources import read_split
from harness.data.spec import DATASETS, DataSpec, data_spec

_log = logging.getLogger(__name__)

_PYTHON = re.compile(r"(.+\.py):(\w+)")
"""A function in a user's file, as a source."""
WriteMode = Literal["raw", "jpg", "proportion"]


@dataclass(frozen=True)
class ImageOptions:
    """Storage of images of varying size.

    Names and defaults match FFCV's ImageNet files.
    """

    write_mode: WriteMode = "proportion"
    """raw: pixels, fastest to read but ten times as large. jpg: JPEG. proportion: a mix of both."""
    proportion: float = 0.5
    """Share of images stored as JPEG in write mode proportion, chosen by a hash of the position."""
    max_resolution: int = 500
    """Shrink images whose longest side has more pixels than this to this size. 0: never shrink."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    keep_jpeg: bool = False
    """Store an RGB JPEG unchanged if it is small enough, instead of encoding it again."""

    def __post_init__(self) -> None:
        for ok, message in (
            (0 <= self.proportion <= 1, f"--proportion is {self.proportion}; it must lie between 0 and 1"),
            (self.max_resolution >= 0, f"--max-resolution is {self.max_resolution}; it must not be negative"),
            (1 <= self.quality <= 100, f"--quality is {self.quality}; it must lie between 1 and 100"),
        ):
            if not ok:
                raise ValueError(message)

    def effective(self) -> dict[str, Any]:
        """Return the options that affect the stored bytes in this mode."""
        chosen = asdict(self)
        if self.write_mode != "proportion":
            del chosen["proportion"]
        if self.write_mode == "raw":
            del chosen["quality"], chosen["keep_jpeg"]
        return chosen


@dataclass(frozen=True)
class StoredImage:
    """One encoded image, ready to be written."""

    mode: int
    height: int
    width: int
    data: bytes
    label: int
    digest: bytes
    sums: ImageSums | None = None
    """Sums over the pixels of an image of a user's own data set."""


def prepare(
    name: str,
    out: Path,
    source: str | None = None,
    options: ImageOptions | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_missing_classes: bool = False,
    own: OwnOptions | None = None,
) -> list[Manifest]:
    """Write both splits of a data set to out/name.

    A finished split is kept if its source and options match. An unfinished split is written from the start.

    Args:
        name: Name in DATASETS, or a new name for a data set of the user's own.
        out: Directory of prepared data sets.
        source: Source of the raw images. Default: that of an existing split, else the data set's default.
        options: Storage options, only for images of varying size.
        num_workers: Encoding threads. Default: all available cores.
        overwrite: Replace finished splits, even if source or options differ.
        image_column: Column of the images, for parquet files and data sets of the hub. Default: see RawSource.
        label_column: Column of the labels.
        allow_missing_classes: Accept a source that lacks classes. The loss is logged, and noted in the manifest.
        own: Size, channels, augmentation and test split of a user's own data set. Default: those of an existing split.

    Returns:
        The manifests of both splits.

    Raises:
        ValueError: Data or options are invalid, or an existing split differs. The message has one line.
        OSError: The source cannot be read or the disk is full. The message has one line.
    """
    # Phase: check the arguments.
    directory = out / name
    own = _own_options(name, out, own)
    spec = data_spec(name) if own is None else started(name, own, "")
    if options is not None and spec.fixed_size:
        same = "have one size" if own is not None else "all have the same size"
        raise ValueError(f"{name} images {same} and are stored raw; storage options do not apply")
    chosen = {"write_mode": "raw"} if spec.fixed_size else (options or ImageOptions()).effective()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot create {directory}: {os.strerror(error.errno or 0)}; give another --out") from error
    workers = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
    if workers < 1:
        raise ValueError(f"--num-workers is {num_workers}; it must be at least 1")
    with _locked(directory):
        # Phase: complete the source and its columns from an earlier preparation.
        recorded = _recorded_source(directory)
        given = source or recorded.get("given") or spec.raw.default
        if not given:
            raise ValueError(f"{name} is a data set of your own; give its --source")
        asked = {"image_column": image_column, "label_column": label_column}
        columns = {name: column for name, column in asked.items() if column is not None}
        if not columns and _absolute(given) == recorded.get("given"):
            columns = recorded.get("columns", {})
        raw = spec.raw
        raw = replace(
            raw,
            image_column=columns.get("image_column", raw.image_column),
            label_column=columns.get("label_column", raw.label_column),
        )
        spec = replace(spec, raw=raw)
        request = _Request(given, columns, chosen, workers, overwrite, allow_missing_classes)
        # Phase: keep or write each split.
        if own is not None and _PYTHON.fullmatch(given):
            return _prepare_file(spec, directory, request, own, named=source is not None)
        if own is not None:
            return _prepare_own(spec, directory, request, own)
        splits = []
        for split in SPLITS:
            kept = _kept(spec, directory, split, request)
            splits.append(kept or _write_split(spec, directory, split, request, read_split(spec, given, split)))
        return splits


def _own_options(name: str, out: Path, own: OwnOptions | None) -> OwnOptions | None:
    """Return the options of a user's own data set, or None for a name in DATASETS.

    Raises:
        ValueError: A built-in data set has its own options, or a new name comes without any.
    """
    if name in DATASETS:
        if own is not None and own.is_given:
            raise ValueError(
                f"{name} is a built-in data set, with its published size, classes, splits and augmentation; "
                "leave out the options of your own data, or give another --name"
            )
        return None
    if own is not None and own.is_given:
        check_own_name(name)
        return own
    if name not in prepared_names(out):
        try:
            known("data set", name, [*DATASETS, *prepared_names(out)])
        except ValueError as error:
            raise ValueError(f"{error}; for a data set of your own, also give --source and --size") from None
    return _recorded_options(out / name)


def _recorded_options(directory: Path) -> OwnOptions:
    """Return the options with which a user's own data set was prepared.

    Raises:
        ValueError: No split has them.
    """
    for split in SPLITS:
        if manifest := _existing(directory, split):
            try:
                return OwnOptions.of(manifest.source["own"])
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{directory / split}.json has no valid options of a data set ({one_line(error)})"
                ) from None
    raise ValueError(f"{directory} is not completely prepared; give --source, --size and the other options again")


def _prepare_file(
    spec: DataSpec, directory: Path, request: _Request, own: OwnOptions, *, named: bool
) -> list[Manifest]:
    """Keep or write a data set that a function of a user's file makes.

    Args:
        spec: Its specification, without classes.
        directory: Its directory.
        request: Arguments of the preparation.
        own: Options of the data set.
        named: Whether the user named the file, who then trusts it. Otherwise it is not executed.
    """
    from harness.data.prepare_file import prepare_file  # imports torch
    from harness.data.user_file import UserFile

    if own.test_split is not None or request.columns:
        raise ValueError(f"{request.source} makes both splits itself; leave out --test-split and the columns")
    file = UserFile.read(request.source)
    if named:
        trusted.remember(file.path, file.content)
    request = replace(request, own=own, options={"loader": "torch", "file": file.sha256, "function": file.function})
    kept = [_kept(spec, directory, split, request) for split in SPLITS]
    if None not in kept:
        return [manifest for manifest in kept if manifest is not None]
    if not named:
        raise ValueError(f"a file is executed only if you name it; give --source {request.source} again")
    missing, given = request.allow_missing_classes, _absolute(request.source)
    return prepare_file(spec, directory, file, own, request.num_workers, given=given, allow_missing_classes=missing)


def _prepare_own(spec: DataSpec, directory: Path, request: _Request, own: OwnOptions) -> list[Manifest]:
    """Keep or write both splits of a user's own data set, and `spec.json`."""
    # Keep both splits, or find classes and splits of the source.
    kept = [_kept(spec, directory, split, replace(request, own=own)) for split in SPLITS]
    if None not in kept:
        return [manifest for manifest in kept if manifest is not None]
    spec, splits, made_split = read_own(spec, request.source, own, allow_missing_classes=request.allow_missing_classes)
    chosen = request.options | describe(spec, own, made_split)
    request = replace(request, options=chosen, own=own)
    # Write the training split first: it gives mean and standard deviation.
    for split in SPLITS:
        (directory / f"{split}.json").unlink(missing_ok=True)  # neither fits the new spec.json
    measured = Measured(spec.channels)
    train = _write_split(spec, directory, "train", request, splits["train"], measured)
    spec = measured.completes(spec)
    if measured.all_gray and spec.channels == 3:
        _log.info(f"all training images of {spec.name} are gray; --channels 1 would store a third of the values")
    return [train, _write_split(spec, directory, "test", request, splits["test"])]


@dataclass(frozen=True)
class _Request:
    """Arguments of a preparation."""

    source: str
    columns: dict[str, str]
    """Columns that differ from those of RawSource, by its field."""
    options: dict[str, Any]
    num_workers: int
    overwrite: bool
    allow_missing_classes: bool
    own: OwnOptions | None = None
    """Options of a user's own data set."""


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the directory. If its file system has no locks, say so and go on without one.

    Raises:
        ValueError: Another process holds the lock.
        OSError: The directory cannot be written. The message names it.
    """
    lock = FileLock(directory / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is preparing {directory}; wait for it") from None
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", None) or errno.ENOSYS
        if number not in NO_LOCKS:
            raise OSError(number, f"cannot lock {directory}: {os.strerror(number)}; give another --out") from error
        _log.warning(
            f"the file system of {directory} has no locks ({os.strerror(number)}); going on without one. Do not start "
            "a second preparation there, or give another --out"
        )
    try:
        yield
    finally:
        lock.release()


def _recorded_source(directory: Path) -> dict[str, Any]:
    """Return the source of an existing split, or {}. It is the default for the other split."""
    for split in SPLITS:
        if manifest := _existing(directory, split):
            return manifest.source
    return {}


def _existing(directory: Path, split: str) -> Manifest | None:
    """Return the manifest of a finished split, or None. A damaged manifest is as good as none."""
    try:
        return Manifest.load(directory / f"{split}.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        _log.warning(f"{error}: its split is written again")
        return None


def _kept(spec: DataSpec, directory: Path, split: str, request: _Request) -> Manifest | None:
    """Return the manifest of a split that can be kept, or None.

    A split is kept if it is finished and undamaged, and has the same source and options.

    Raises:
        ValueError: The split is finished, but its source or options differ.
    """
    manifest = None if request.overwrite else _existing(directory, split)
    if manifest is None:
        return None
    # Refuse another source or other options.
    options = manifest.options
    if request.own is not None:  # its other options follow from the source
        options = {name: value for name, value in options.items() if name in request.options}
    before, now = manifest.source.get("own", {}), request.own.recorded if request.own else {}
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    for what, old, new in (
        ("source", manifest.source["given"], _absolute(request.source)),
        ("columns", manifest.source.get("columns", {}), request.columns),
        ("options", options, request.options),
        ("options", *({name: one.get(name) for name in sorted(changed)} for one in (before, now))),
    ):
        if old != new:
            raise ValueError(
                f"{directory} already has {split} with {what} {old}, but {new} was requested; "
                "give another --out, or --overwrite to replace it"
            )
    # Write the split again if a file is damaged.
    try:
        for file, record in manifest.files.items():
            check_file(directory / file, record)
    except ValueError as error:
        print(f"{error.args[0].split(';')[0]}; writing it again")
        return None
    warn_of_other_count(spec, split, manifest.num_samples, manifest.source, str(directory))
    return manifest


def _absolute(source: str) -> str:
    """Return the absolute path of a local source. Other sources do not change.

    The manifest then does not depend on the working directory.
    """
    named = _PYTHON.fullmatch(source)
    if named:
        return f"{Path(named[1]).expanduser().resolve()}:{named[2]}"
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _write_split(
    spec: DataSpec, directory: Path, split: str, request: _Request, raw: RawSplit, measured: Measured | None = None
) -> Manifest:
    """Write one split.

    The data go to temporary files, which are then renamed. The manifest is written last.

    Args:
        spec: The data set.
        directory: Its directory.
        split: train or test.
        request: Arguments of the preparation.
        raw: The split of the source.
        measured: Receives the sums over the images. Given for the training split of a user's own data set, whose
            `spec.json` is then written, too.

    Raises:
        ValueError: The split has no images, or one of them is invalid.
        OSError: The disk is full. No file of this split is kept.
    """
    # Phase: check the source, and invalidate an old split by removing its manifest.
    source = request.source
    if raw.num_samples == 0:
        raise ValueError(f"the {split} split of {source} holds no images")
    notes = raw.notes | count_notes(spec, raw, split) | ({"columns": request.columns} if request.columns else {})
    notes |= check_classes(spec, raw, source, split, allow_missing=request.allow_missing_classes)
    notes |= {"own": request.own.recorded} if request.own else {}
    warn_of_other_count(spec, split, raw.num_samples, notes, str(directory))
    (directory / f"{split}.json").unlink(missing_ok=True)
    partial = {name: directory / f".{name}.partial" for name in _file_names(spec, split)}
    # Phase: write and hash temporary files, then rename them.
    try:
        _check_space(spec, directory, raw.num_samples)
        beton = partial[f"{split}.beton"]
        digest = _write_beton(spec, beton, split, raw, request.options, request.num_workers, measured)
        if spec.fixed_size:
            _write_tensors(spec, partial[f"{split}.beton"], partial[f"{split}.safetensors"])
        if measured is not None:
            spec = measured.completes(spec)
            partial[SPEC_FILE] = directory / f".{SPEC_FILE}.partial"
            write_atomically(partial[SPEC_FILE], spec_text(spec).encode())
        records = {name: FileRecord(sha256_file(path), path.stat().st_size) for name, path in partial.items()}
        reach("split-written")
        for name, path in partial.items():
            path.replace(directory / name)
            remember(directory / name, records[name].sha256)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"no space left on the disk of {directory}; no file of the {split} split was kept") from error
        raise
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    # Phase: the specification of a user's own data set belongs to both splits.
    if request.own:
        text = spec_text(spec).encode()
        records[SPEC_FILE] = FileRecord(hashlib.sha256(text).hexdigest(), len(text))
        digest.update(text)
    # Phase: the manifest marks the split as finished.
    manifest = Manifest(
        name=spec.name,
        split=split,
        num_samples=raw.num_samples,
        content_digest=digest.hexdigest(),
        options=request.options,
        source={"given": _absolute(source), **notes},
        files=records,
    )
    manifest.save(directory / f"{split}.json")
    return manifest


def _file_names(spec: DataSpec, split: str) -> list[str]:
    return [f"{split}.beton", f"{split}.safetensors"] if spec.fixed_size else [f"{split}.beton"]


def _check_space(spec: DataSpec, directory: Path, num_samples: int) -> None:
    if not spec.fixed_size:
        return  # JPEG sizes are unknown in advance. A full disk is detected during writing.
    needed = num_samples * spec.image_size**2 * (3 + spec.channels) + SMALL_PAGE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{directory} has {free / 1e6:.0f} MB free; {spec.name} needs {needed / 1e6:.0f} MB")


def _write_beton(
    spec: DataSpec,
    path: Path,
    split: str,
    raw: RawSplit,
    options: dict[str, Any],
    num_workers: int,
    measured: Measured | None,
) -> hashlib._Hash:
    """Write all samples in order, and return the content digest as a hash object.

    Raises:
        ValueError: A sample is invalid, or the finished file does not have all samples.
    """
    digest = hashlib.sha256(
        canonical_json({"format": FORMAT, "name": spec.name, "split": split, "options": options}).encode()
    )
    page_bytes = SMALL_PAGE_BYTES if spec.fixed_size else LARGE_PAGE_BYTES
    # Write and hash every sample.
    with (
        BetonWriter(path, raw.num_samples, page_bytes) as writer,
        progress(f"{spec.name} {split}", raw.num_samples, "images") as bar,
    ):
        for where, image in _encoded(spec, raw, options, num_workers):
            try:
                writer.append(image.mode, image.height, image.width, image.data, image.label)
            except ValueError as error:
                raise ValueError(f"{where}: {one_line(error)}") from None
            digest.update(image.digest)
            if measured is not None and image.sums is not None:
                measured.add(image.sums)
            bar.update()
    # Read the file back.
    if len(read_sizes(path)[0]) != raw.num_samples:
        raise ValueError(f"{path} does not have the {raw.num_samples} samples that were written")
    return digest


def _encoded(
    spec: DataSpec, raw: RawSplit, options: dict[str, Any], num_workers: int
) -> Iterator[tuple[str, StoredImage]]:
    """Yield (where, image) for all samples in order, encoded by threads.

    Pillow and OpenCV release the GIL. An unreadable image raises immediately, with the image's name. Threads are used
    because a worker process could be killed unnoticed.
    """
    require("PIL", "preparing images")
    if not spec.fixed_size:
        require("cv2", "preparing images of varying size")
        import cv2

        cv2.setNumThreads(0)  # this pool already provides the threads
    from PIL import Image

    # An image of 90 to 179 million pixels is no error. Pillow refuses larger ones.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[tuple[str, Future[StoredImage]]] = deque()
        try:
            for index, sample in enumerate(raw.samples()):
                waiting.append((sample.where, pool.submit(_store, spec, sample, index, options)))
                if len(waiting) > 8 * num_workers:
                    where, future = waiting.popleft()
                    yield where, future.result()
            while waiting:
                where, future = waiting.popleft()
                yield where, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _store(spec: DataSpec, sample: RawSample, index: int, options: dict[str, Any]) -> StoredImage:
    """Decode, check and encode one sample.

    Raises:
        SourceError: The sample is damaged or does not fit the data set. The message names it.
    """
    # Check label, content and size.
    if not 0 <= sample.label < spec.num_classes:
        raise SourceError(
            f"{sample.where} has label {sample.label}; {spec.name} has labels 0 to {spec.num_classes - 1}"
        )
    own = spec.raw.own
    raw_size = spec.image_size * spec.raw.shrink - 2 * spec.raw.padding if spec.fixed_size and not own else None
    try:
        pixels, jpeg = _decode(sample.image, raw_size)
    except _WrongSizeError as error:
        size = f"{error.height}×{error.width}"
        raise SourceError(f"{sample.where} has {size} pixels; {spec.name} images have {raw_size}×{raw_size}") from None
    except Exception as error:  # Pillow raises many types
        raise SourceError(f"{sample.where} cannot be read as an image: {reason(error)}") from error
    # Bring an image of a user's own data set to its size, and measure it.
    sums = None
    if own:
        square = centre_square(pixels, spec.image_size)
        sums = ImageSums.of(square)
        if spec.channels == 1 and not sums.is_gray:
            raise SourceError(f"{sample.where} is in colour, but {spec.name} has one channel; give --channels 3")
        if spec.fixed_size:
            pixels, jpeg = square, None
    # Pad and shrink as the data set or the options require.
    if spec.raw.padding:
        around = 2 * (spec.raw.padding,)
        pixels = np.pad(pixels, (around, around, (0, 0)))
    if spec.raw.shrink > 1:
        pixels = _block_means(pixels, spec.raw.shrink)
    height, width = pixels.shape[:2]
    limit = options.get("max_resolution", 0)
    if limit and max(height, width) > limit:
        pixels, jpeg = _shrink(pixels, limit), None
        height, width = pixels.shape[:2]
    if max(height, width) > 65_535:
        raise SourceError(f"{sample.where} has {height}×{width} pixels; the format allows 65535, set --max-resolution")
    # Encode.
    if not _as_jpeg(options, index):
        mode, data = RAW, np.ascontiguousarray(pixels).tobytes()
    elif jpeg is not None and options["keep_jpeg"]:
        mode, data = JPG, jpeg
    else:
        mode, data = JPG, _encode_jpeg(pixels, options["quality"])
    digest = hashlib.sha256(canonical_json([mode, height, width, sample.label]).encode() + data).digest()
    return StoredImage(mode, height, width, data, sample.label, digest, sums)


def _block_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the mean of each side × side block, uint8 (H/side, W/side, C).

    Halves are rounded to even.
    """
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // side, side, width // side, side, channels)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _as_jpeg(options: dict[str, Any], index: int) -> bool:
    """Return whether to store this image as JPEG.

    A hash of its position decides. FFCV uses an unseeded generator, which is not reproducible.
    """
    if options["write_mode"] != "proportion":
        return bool(options["write_mode"] == "jpg")
    with np.errstate(over="ignore"):
        share = float(draw(np.uint64(0), np.uint64(index), np.uint64(0)) >> np.uint64(11)) * 2.0**-53
    return share < float(options["proportion"])


class _WrongSizeError(Exception):
    """An image does not have the size of the data set's images."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(height, width)
        self.height, self.width = height, width


def _decode(image: np.ndarray | bytes | Path | Any, side: int | None) -> tuple[np.ndarray, bytes | None]:
    """Return RGB pixels, uint8 (H, W, 3), and the bytes of an RGB JPEG.

    For other images, the second value is None.

    Args:
        image: See RawSample.
        side: Required height and width. None: any. It is checked before an image is decoded.

    Raises:
        _WrongSizeError: The image has another size.
        Exception: The image cannot be decoded. Pillow raises many types.
    """
    from PIL import Image, UnidentifiedImageError

    # Pixels and Pillow's images.
    if isinstance(image, np.ndarray):
        _check_size(image.shape[0], image.shape[1], side)
        return (image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)), None
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width, side)
        return rgb(image), None
    # Files.
    content = read_file(image) if isinstance(image, Path) else image
    if not isinstance(content, bytes):
        raise TypeError(f"expected the bytes of a file, got {type(content).__name__}")
    if not content:
        raise ValueError("it is empty (0 bytes)")
    try:
        opened = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"it begins with {content[:12]!r}, as no kind of image does") from None
    with opened:
        _check_size(opened.height, opened.width, side)
        is_rgb_jpeg = opened.format == "JPEG" and opened.mode == "RGB"
        return rgb(opened), (content if is_rgb_jpeg else None)


def _check_size(height: int, width: int, side: int | None) -> None:
    if side is not None and (height, width) != (side, side):
        raise _WrongSizeError(height, width)


def _shrink(pixels: np.ndarray, max_resolution: int) -> np.ndarray:
    """Shrink an image to a longest side of `max_resolution` pixels.

    As FFCV's writer, this uses area interpolation and rounds sides down.
    """
    import cv2

    height, width = pixels.shape[:2]
    ratio = max_resolution / max(height, width)
    size = (max(1, int(ratio * width)), max(1, int(ratio * height)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    import cv2

    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV cannot encode {pixels.shape[0]}×{pixels.shape[1]} pixels as JPEG")
    return bytes(encoded.tobytes())


def _write_tensors(spec: DataSpec, beton: Path, path: Path) -> None:
    """Write the memory loader's file from the finished .beton file.

    Both files therefore have the same contents.

    Raises:
        ValueError: The data set has one channel, but an image is in colour.
    """
    from harness.data.ffcv.beton import read_raw

    images_NHWC, labels_N = read_raw(beton)
    if spec.channels == 1:
        if (images_NHWC != images_NHWC[..., :1]).any():
            raise ValueError(f"{spec.name} has one channel, but its images are in colour")
        images_NHWC = np.ascontiguousarray(images_NHWC[..., :1])
    write_tensors(path, {"images_NHWC": images_NHWC, "labels": labels_N}, durable=True)
