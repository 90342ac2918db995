"""Data sets that a user's Python file makes: `build(split)`, and optionally `transforms(split, size)`.

build       returns a map-style dataset of (image, label) for split train or test. An image is a Pillow image, a uint8
            tensor (C, H, W) or a uint8 array (H, W, C), and a label an integer. The dataset draws no random numbers.
transforms  returns a function of an image, for example of torchvision.transforms.v2. Its result is a uint8 image of
            `size` × `size` pixels, without normalisation. It may draw from torch, numpy.random and random.

The file is executed by `tickets prepare`, if the user names it, and again at each training. Then its SHA-256 must be
the recorded one, and the user must trust it (see harness/common/trusted.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.common.digest import canonical_json
from harness.common.escape import one_line
from harness.common.files import read_bounded
from harness.common.optional import require
from harness.common.trusted import require_trust
from harness.common.user_code import MOST_BYTES, UserCode, told
from harness.data.manifest import Manifest
from harness.data.memory_loader import ResidentSplit
from harness.data.own import SOURCE_FILE
from harness.data.pixels import centre_square, rgb
from harness.data.spec import CropFlip, DataSpec, FileTransforms
from harness.data.torch_loader import Request, Sample, SampleError, seeded

SAMPLES_FILE = "{split}.samples.safetensors"
"""Name of the file with label and digest of each sample."""
_NAMED = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def named_function(source: str) -> tuple[Path, str] | None:
    """Return file and function of a source such as path/to/data.py:build, or None for another source."""
    match = _NAMED.fullmatch(source)
    return (Path(match[1]).expanduser(), match[2]) if match else None


@dataclass(frozen=True)
class UserFile:
    """A user's file, and the function in it that makes the data sets. Creating one does not execute it."""

    path: Path
    function: str
    content: bytes

    @classmethod
    def read(cls, source: str) -> UserFile:
        """Read the file that a source names.

        Raises:
            ValueError: The file cannot be read, or is too large.
        """
        named = named_function(source)
        if named is None:
            raise ValueError(f"{source} is not FILE.py:FUNCTION")
        try:
            return cls(named[0].resolve(), named[1], read_bounded(named[0], MOST_BYTES))
        except OSError as error:
            raise ValueError(f"{named[0]} cannot be read: {error.strerror or error}") from None

    @classmethod
    def recorded(cls, home: Path, manifest: Manifest) -> UserFile:
        """Return the file that made a prepared data set: the user's own if it is unchanged, else the copy.

        The caller has decided that it may be executed (see `allowed_code`).

        Args:
            home: Directory of the data set. Its files have their recorded digests.
            manifest: Manifest of a split.

        Raises:
            ValueError: The user's own file has changed, or the manifest names none.
        """
        given, expected = str(manifest.source.get("given")), manifest.files[SOURCE_FILE].sha256
        named = named_function(given)
        if named is None:
            raise ValueError(f"{home / 'train.json'} names no FILE.py:FUNCTION; prepare the data again")
        # Another machine can lack the user's own file, or not let this user look for it.
        own = os.path.isfile(named[0])
        found = cls.read(given if own else f"{home / SOURCE_FILE}:{named[1]}")
        if not own and found.sha256 != expected:
            raise ValueError(f"{home / SOURCE_FILE} was altered: its SHA-256 is not {expected[:12]}…")
        if found.sha256 != expected:
            raise ValueError(
                f"{named[0]} has changed since {home.name} was prepared: its SHA-256 is {found.sha256[:12]}…, but the "
                f"manifest says {expected[:12]}…. Prepare the data again with --source {given} --overwrite, or copy "
                f"{home / SOURCE_FILE} to {named[0]}"
            )
        return found

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def _code(self) -> UserCode:
        """Execute the file."""
        return UserCode(self.content, str(self.path), "data")

    @property
    def has_transforms(self) -> bool:
        """Return whether the file has a function `transforms`. This executes the file."""
        return callable(getattr(self._code.module, "transforms", None))

    def dataset(self, split: str) -> Any:
        """Return the user's dataset of a split.

        Raises:
            ValueError: The file, or the function, raises an error or is missing, or the result is no map-style dataset.
        """
        made = self._code.call(self._code.function(self.function), split)
        if not hasattr(made, "__getitem__") or not hasattr(made, "__len__"):
            raise ValueError(
                f"{self.function}({split!r}) of {self.path} returned a {type(made).__name__}; it must return a "
                "map-style dataset, with __getitem__ and __len__"
            )
        try:
            len(made)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{self.function}({split!r}) returned a dataset without a length: {self.told(error)}"
            ) from error
        return made

    def transforms(self, split: str, size: int) -> Callable[[Any], Any]:
        """Return the user's function of an image."""
        made = self._code.call(self._code.function("transforms"), split, size)
        if not callable(made):
            raise ValueError(
                f"transforms({split!r}, {size}) of {self.path} returned a {type(made).__name__}, no function"
            )
        return made

    def told(self, error: BaseException) -> str:
        """Return one line about an error in the user's code, with its file and line."""
        return told(error, str(self.path))


def allowed_code(home: Path, manifest: Manifest, *, trust_code: bool = False) -> str:
    """Return the SHA-256 of the file that made a prepared data set, if it may be executed.

    Args:
        home: Directory of the data set.
        manifest: Manifest of a split.
        trust_code: The user's option --trust-code.

    Raises:
        UntrustedCodeError: It must not be executed. The message has the reason and the remedy.
    """
    digest, copy = manifest.files[SOURCE_FILE].sha256, str(home / SOURCE_FILE)
    named = named_function(str(manifest.source.get("given")))
    name = named[0].name if named else SOURCE_FILE
    require_trust(f"the data set {home.name}", name, digest, copy, trust_code=trust_code)
    return digest


class FileSamples:
    """The samples of one split of a user's file. See `torch_loader.Samples`."""

    def __init__(self, spec: DataSpec, file: UserFile, split: str) -> None:
        self.spec, self.file, self.split = spec, file, split
        self.dataset = file.dataset(split)
        self.digests_N32: np.ndarray | None = None
        """Digests of the samples, which are compared. None: they are not known yet."""
        self._transforms: dict[bool, Callable[[Any], Any]] = {}
        if isinstance(spec.augmentation, FileTransforms):
            self._transforms = {
                train: file.transforms("train" if train else "test", spec.image_size) for train in (True, False)
            }

    @classmethod
    def load(cls, spec: DataSpec, file: UserFile, split: str, path: Path) -> FileSamples:
        """Open a prepared split.

        Args:
            path: File with labels and digests.

        Raises:
            ValueError: The file is damaged, or the dataset has another length.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            digests = load_file(path)["digests_N32"]
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}); prepare the data again") from error
        samples = cls(spec, file, split)
        if digests.dtype != np.uint8 or digests.shape != (len(samples), 32):
            raise ValueError(
                f"{file.function}({split!r}) of {file.path} has {len(samples)} samples, but {path} has {len(digests)}; "
                "prepare the data again"
            )
        samples.digests_N32 = digests
        return samples

    def __len__(self) -> int:
        """Return the number of samples in the split."""
        return len(self.dataset)

    def raw(self, index: int, *, seed: int | None = None) -> tuple[Any, np.ndarray, int]:
        """Return the user's image, its pixels (uint8, height × width × 3) and its label.

        Args:
            index: Position in the split.
            seed: Seed of random numbers, which the dataset should not draw.

        Raises:
            SampleError: The sample is invalid.
        """
        try:
            with seeded(seed, index):
                image, label = self.dataset[index]
        except (Exception, SystemExit) as error:
            raise SampleError(f"{self._where(index)}: {self.file.told(error)}") from error
        is_scalar = isinstance(label, np.integer) or (isinstance(label, torch.Tensor) and label.numel() == 1)
        number = label.item() if is_scalar else label
        if type(number) is not int or not 0 <= number < self.spec.num_classes:
            most = self.spec.num_classes - 1
            raise SampleError(f"{self._where(index)} has label {label!r:.60}; it must be an integer from 0 to {most:,}")
        return image, self._pixels(image, index, "the dataset"), number

    def shown(self, image: Any, pixels: np.ndarray, index: int, key: int | None) -> np.ndarray:
        """Return the network's input, uint8 (size, size, 3).

        Args:
            image: The user's image.
            pixels: Its pixels.
            index: Position in the split.
            key: Key of the augmentation, or None for the image of an evaluation.
        """
        if not self._transforms:
            return self._augmented(centre_square(pixels, self.spec.image_size), index, key)
        try:
            with seeded(key, index):
                made = self._transforms[key is not None](image)
        except (Exception, SystemExit) as error:
            raise SampleError(f"{self._where(index)}: {self.file.told(error)}") from error
        result, size = self._pixels(made, index, "transforms"), self.spec.image_size
        if result.shape[:2] != (size, size):
            height, width = result.shape[:2]
            raise SampleError(
                f"{self._where(index)}: transforms gave {height}×{width} pixels; they must be {size}×{size}"
            )
        return result

    def __getitem__(self, request: Request) -> Sample:
        """Return one sample, after a comparison of its digest. See `torch_loader.Samples`."""
        index, key = request
        image, pixels, label = self.raw(index)
        if self.digests_N32 is not None and sample_digest(pixels, label) != self.digests_N32[index].tobytes():
            raise SampleError(f"{self._where(index)} has changed since {self.spec.name} was prepared; prepare it again")
        result = self.shown(image, pixels, index, key)
        if self.spec.channels == 1:
            if (result != result[..., :1]).any():
                raise SampleError(f"{self._where(index)} is in colour, but {self.spec.name} has one channel")
            result = result[..., :1]
        return torch.from_numpy(np.array(result)), label, index

    def _augmented(self, square: np.ndarray, index: int, key: int | None) -> np.ndarray:
        if key is None:
            return square
        augmentation = self.spec.augmentation
        padding = augmentation.padding if isinstance(augmentation, CropFlip) else 0
        around = 2 * (padding,)
        padded = torch.from_numpy(np.pad(square, (around, around, (0, 0))))
        return (
            ResidentSplit(self.spec, padded[None], torch.zeros(1, dtype=torch.int64), padding).one(index, key).numpy()
        )

    def _pixels(self, image: Any, index: int, of: str) -> np.ndarray:
        """Return the RGB pixels of an image that the user's code made."""
        require("PIL", "a data set of your own file")
        from PIL import Image

        if isinstance(image, Image.Image):
            try:
                return rgb(image)
            except Exception as error:  # Pillow decodes a file here, and raises many types
                raise SampleError(
                    f"{self._where(index)}: {of} gave an image that cannot be read: {one_line(error)}"
                ) from error
        array = image
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
            if image.device.type != "cpu":
                raise SampleError(f"{self._where(index)}: {of} gave an image on {image.device}; leave it on the CPU")
            array = image.numpy()
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            kind = str(image.dtype) if hasattr(image, "dtype") else type(image).__name__
            hint = (
                "; leave out ToDtype, ToTensor and Normalize, because the harness normalises" if "float" in kind else ""
            )
            raise SampleError(
                f"{self._where(index)}: {of} gave {kind}; an image is a Pillow image, or a uint8 tensor or array{hint}"
            )
        array = array[..., None] if array.ndim == 2 else array
        if isinstance(image, torch.Tensor) and image.ndim == 3:
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
            form = "(C, H, W)" if isinstance(image, torch.Tensor) else "(H, W, C)"
            raise SampleError(
                f"{self._where(index)}: {of} gave shape {tuple(image.shape)}; it must be {form}, C = 1 or 3"
            )
        return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)

    def _where(self, index: int) -> str:
        return f"sample {index} of {self.spec.name} {self.split}"


def sample_digest(pixels_HWC: np.ndarray, label: int) -> bytes:
    """Return the SHA-256 of a sample: of its pixels before all transforms, and its label."""
    height, width = pixels_HWC.shape[:2]
    head = canonical_json([height, width, label]).encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels_HWC).tobytes()).digest()
