"""Test every parser of data against damaged files.

A parser either reads the file or refuses it in one line that names it. It never ends in another kind of exception.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.common.files import write_tensors
from harness.data.ffcv.beton import JPG, RAW, BetonWriter, check_beton
from harness.data.manifest import FileRecord, Manifest, check_file, remember
from harness.data.memory_loader import ResidentSplit
from harness.data.prepare import _store
from harness.data.readers.sources import read_split
from harness.data.spec import DATASETS, DataSpec
from tests.damage import ORDINARY, THOROUGH, Parser, attack, every_kind
from tests.data.archive_files import (
    ImageNetFiles,
    cifar10_archive,
    cifar100_files,
    jpeg,
    tiny_imagenet_files,
    tiny_imagenet_zip,
    write_tree,
)
from tests.data.photo_files import BOXES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of tags that it skips
SPECS = {name: replace(DATASETS[name], num_classes=3) for name in ("tiny_imagenet", "imagenet")}
LABELS = ("val_annotations.txt", "valprep.sh", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")


def _noise(number: int, height: int, width: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(number)]


def _raw(spec: DataSpec, root: Path, source: Path | None = None, files: str | list[str] = "*") -> Parser:
    """Return the parser of a raw source: it opens both splits and reads all samples."""

    def read() -> None:
        for split in ("train", "test"):
            for _ in read_split(spec, str(source or root), split).samples():
                pass

    patterns = [files] if isinstance(files, str) else files
    return Parser(root, [file for one in patterns for file in sorted(root.rglob(one)) if file.is_file()], read)


def cifar_archive(root: Path) -> Parser:
    images = np.stack(_noise(10, 32, 32))
    return _raw(DATASETS["cifar10"], root, cifar10_archive(root / "cifar.tar.gz", images[:5], images[5:]))


def cifar_directory(root: Path) -> Parser:
    images = np.stack(_noise(6, 32, 32))
    source = write_tree(root, cifar100_files(images[:4], images[4:])) / "cifar-100-binary"
    return _raw(DATASETS["cifar100"], root, source, "*.bin")


def tiny_zip(root: Path) -> Parser:
    crops = _noise(6, 8, 8)
    return _raw(
        SPECS["tiny_imagenet"], root, tiny_imagenet_zip(root / "t.zip", tiny_imagenet_files(crops[:3], crops[3:]))
    )


def tiny_directory(root: Path) -> Parser:
    crops = _noise(6, 8, 8)
    write_tree(root, tiny_imagenet_files(crops[:3], crops[3:]))
    return _raw(SPECS["tiny_imagenet"], root, None, ["wnids.txt", "val_annotations.txt"])


def _imagenet(root: Path, labels: str, tars: bool) -> Parser:
    files = ImageNetFiles(_noise(6, 8, 8)[:3], _noise(6, 8, 8)[3:])
    train, val = (files.train_tar(), files.val_tar()) if tars else (files.train_directories(), files.val_heap())
    write_tree(root, train | val | files.labels(labels))
    damaged = ["*.tar", "*.gz"] if tars else [labels, "meta.mat", "*ground_truth.txt"]
    return _raw(SPECS["imagenet"], root, None, damaged)


def idx(root: Path, pack: Callable[[bytes], bytes] = bytes, ending: str = "") -> Parser:
    for stem in ("train", "t10k"):
        for kind, shape in (("images-idx3", (4, 28, 28)), ("labels-idx1", (4,))):
            content = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes(int(np.prod(shape)))
            (root / f"{stem}-{kind}-ubyte{ending}").write_bytes(pack(content))
    return _raw(DATASETS["fashion_mnist"], root)


def parquet(root: Path) -> Parser:
    import pyarrow
    import pyarrow.parquet

    rows = {"img": [{"bytes": b"an image", "path": "a.png"}] * 4, "label": list(range(4))}
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table(rows), root / f"{split}.parquet")
    return _raw(DATASETS["cifar10"], root)


def arrow(root: Path) -> Parser:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"img": [b"an image"] * 4, "label": list(range(4))})
    DatasetDict(train=rows, test=rows).save_to_disk(str(root))
    return _raw(DATASETS["cifar10"], root)


def images(root: Path) -> Parser:
    """Decode images of several formats."""
    (root / "val" / "a").mkdir(parents=True)
    (folder := root / "train" / "a").mkdir(parents=True)
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"):
        Image.fromarray(_noise(1, 9, 8)[0]).save(folder / f"a.{ending}")

    def read() -> None:
        for sample in read_split(BOXES, str(root), "train").samples():
            _store(BOXES, sample, 0, {"write_mode": "raw"})

    return Parser(root, sorted(folder.iterdir()), read)


def manifest(root: Path) -> Parser:
    path = root / "train.json"
    record = {"train.beton": FileRecord("0" * 64, 3)}
    Manifest("digits", "train", 2, "0" * 64, {"write_mode": "raw"}, {"given": "scikit-learn"}, record).save(path)
    return Parser(root, [path], lambda: Manifest.load(path))


def note(root: Path) -> Parser:
    """Read the note beside a verified file. It can be deleted at any time, so no damage of it is an error."""
    path, digest = root / "a", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    path.write_bytes(b"a")
    remember(path, digest)
    return Parser(root, [root / ".a.verified"], lambda: check_file(path, FileRecord(digest, 1)), optional=True)


def beton(root: Path) -> Parser:
    from ffcv.reader import Reader

    with BetonWriter(root / "a.beton", 4, 1 << 21) as writer:
        for label, pixels in enumerate(_noise(2, 8, 8)):
            writer.append(RAW, 8, 8, pixels.tobytes(), label)
            writer.append(JPG, 8, 8, jpeg(pixels), label)

    def read() -> None:
        check_beton(root / "a.beton", 2, None)
        Reader(str(root / "a.beton"))

    return Parser(root, [root / "a.beton"], read)


def tensors(root: Path) -> Parser:
    spec = DATASETS["digits"]
    write_tensors(root / "a.safetensors", {"images_NHWC": np.zeros((4, 8, 8, 1), np.uint8), "labels": np.arange(4)})
    return Parser(root, [root / "a.safetensors"], lambda: bool(ResidentSplit.load(spec, root / "a.safetensors", "cpu")))


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "cifar archive": cifar_archive,
    "cifar directory": cifar_directory,
    "tiny zip": tiny_zip,
    "tiny directory": tiny_directory,
    "idx": idx,
    "idx.gz": functools.partial(idx, pack=functools.partial(gzip.compress, mtime=0), ending=".gz"),
    "imagenet tars": functools.partial(_imagenet, labels="ILSVRC2012_devkit_t12.tar.gz", tars=True),
    "imagenet devkit": functools.partial(_imagenet, labels="ILSVRC2012_devkit_t12", tars=False),
    **{f"imagenet {name}": functools.partial(_imagenet, labels=name, tars=False) for name in LABELS},
    "parquet": parquet,
    "arrow": arrow,
    "images": images,
    "manifest": manifest,
    "note": note,
    "beton": beton,
    "tensors": tensors,
}


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parser]:
    @functools.cache
    def make(name: str) -> Parser:
        root = tmp_path_factory.mktemp(name.replace(" ", "-")) / "input"
        root.mkdir()
        return PARSERS[name](root)

    return make


@pytest.mark.parametrize("name", PARSERS)
def test_every_kind_of_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    every_kind(parsers(name))


@pytest.mark.parametrize("name", PARSERS)
def test_random_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    attack(parsers(name), ORDINARY)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_much_random_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    attack(parsers(name), THOROUGH)
