"""Test that raw data are compared with the published data set: classes, counts, splits, hidden files, and bounds.

Each fault would otherwise give a prepared set that trains without an error, with other labels or other images.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.common.files import write_tensors
from harness.data import open_data
from harness.data.ffcv.beton import JPG, RAW, BetonWriter, check_beton, read_raw
from harness.data.manifest import Manifest
from harness.data.memory_loader import ResidentSplit
from harness.data.prepare import prepare
from harness.data.published import check_classes
from harness.data.readers.raw import RawSplit, SourceError
from harness.data.readers.sources import read_split
from harness.data.spec import DATASETS
from tests.data.archive_files import (
    WNIDS,
    ImageNetFiles,
    cifar_records,
    jpeg,
    tar_of,
    tiny_imagenet_files,
    tiny_imagenet_zip,
    write_tree,
)

NAMES = DATASETS["cifar10"].raw.class_names
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE[:side, :side]).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, train: tuple[str, ...] = NAMES, test: tuple[str, ...] | None = None) -> Path:
    """Write an image folder of CIFAR-10 with two images per class and split."""
    for split, names in (("train", train), ("test", train if test is None else test)):
        write_tree(root, {f"{split}/{name}/{number}.png": png() for name in names for number in range(2)})
    return root


def parquet(path: Path, labels: list[object], image_column: str = "img", label_column: str = "label") -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {image_column: [{"bytes": png(), "path": None}] * len(labels), label_column: labels}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)


def labels_of(out: Path, split: str) -> list[int]:
    return read_raw(out / "cifar10" / f"{split}.beton")[1].tolist()


# Classes


def _emptied(root: Path) -> None:
    for file in (root / "train" / "cat").iterdir():
        file.unlink()


def _emptied_in_test(root: Path) -> None:
    for file in (root / "test" / "dog").iterdir():
        file.unlink()


def _only_hidden_images(root: Path) -> None:
    for file in (root / "train" / "cat").iterdir():
        file.rename(file.with_name(f"._{file.name}"))


def _removed(root: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(root / split / "cat")


def _renamed(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for split in ("train", "test"):
            (root / split / "truck").rename(root / split / name)

    return change


def _added(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "old").mkdir()


def _numbered(root: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            (root / split / name).rename(root / split / ("old" if number == 9 else str(number)))


def _linked(root: Path) -> None:
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").symlink_to("dog")


def _linked_to_train(root: Path) -> None:
    shutil.rmtree(root / "test" / "cat")
    (root / "test" / "cat").symlink_to("../train/cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_emptied, "the train split of .* has images of 9 of the 10 classes of cifar10; missing: cat"),
        (_emptied_in_test, "the test split of .* has images of 9 of the 10 classes of cifar10; missing: dog"),
        (_only_hidden_images, "missing: cat"),
        (_removed, "missing: cat"),
        (_renamed("@eaDir"), "missing: truck"),
        (_renamed("old"), "has classes that are not the classes of cifar10: old; missing: truck"),
        (_renamed("Truck"), "has classes that are not the classes of cifar10: Truck; missing: truck"),
        (_numbered, r"has classes that are not numbers: old\. Remove or rename"),
        (_added, "has 11 classes; cifar10 has 10; not among them: old"),
        (_linked, "train/cat and .*/train/dog are the same directory"),
        (_linked_to_train, "train/cat and .*/test/cat are the same directory"),
    ],
)
def test_other_classes_are_refused_by_name(tmp_path: Path, change, message: str) -> None:
    change(folder(tmp_path / "raw"))
    with pytest.raises(ValueError, match=message):
        prepare("cifar10", tmp_path / "out", str(tmp_path / "raw"))
    assert "train.json" not in os.listdir(tmp_path / "out" / "cifar10") or change is _emptied_in_test


HIDDEN = (".ipynb_checkpoints", ".git", "__MACOSX", ".DS_Store_dir", "@eaDir", "$RECYCLE.BIN", "lost+found")


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_directories_and_files_are_no_classes_and_no_images(tmp_path: Path, hidden: str) -> None:
    raw = folder(tmp_path / "raw")
    for split in ("train", "test"):
        write_tree(raw / split, {f"{hidden}/0.png": png(), "cat/._0.png": b"", f"cat/{hidden}/9.png": png()})
    write_tree(raw, {f"{hidden}/train/0.png": png(), f"{hidden}/train.parquet": b"no"})
    prepare("cifar10", tmp_path / "out", str(raw))
    assert labels_of(tmp_path / "out", "train") == [label for label in range(10) for _ in range(2)]
    for split in ("train", "test"):
        shutil.rmtree(raw / split / "truck")
    with pytest.raises(ValueError, match="missing: truck"):
        prepare("cifar10", tmp_path / "out", str(raw), overwrite=True)


def test_hidden_files_in_archives_are_ignored(tmp_path: Path) -> None:
    # Phase: Tiny-ImageNet's zip, as macOS writes it
    files = tiny_imagenet_files([NOISE] * 3, [NOISE] * 3)
    zipped = tiny_imagenet_zip(tmp_path / "t.zip", files | {f"train/{WNIDS[0]}/images/._a.JPEG": b"x"})
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("__MACOSX/tiny-imagenet-200/val/val_annotations.txt", b"x")
    assert read_split(DATASETS["tiny_imagenet"], str(zipped), "train").num_samples == 3
    # Phase: ImageNet's tars and directories
    imagenet = ImageNetFiles([NOISE] * 3, [NOISE] * 3)
    hidden = {"._n00000000.tar": b"x", ".cache/n00000001.tar": b"x"}
    inner = {f"{wnid}.tar": tar_of((images | {"._b.JPEG": b"x"}).items()) for wnid, images in imagenet.train.items()}
    tar = {"ILSVRC2012_img_train.tar": tar_of((inner | hidden).items())}
    directories = imagenet.train_directories() | {"train/.git/a.JPEG": b"x", f"train/{WNIDS[0]}/._b.JPEG": b"x"}
    val = imagenet.val_heap() | imagenet.labels("valprep.sh") | {"val/._a.JPEG": b"x"}
    for number, train in enumerate((tar, directories)):
        source = write_tree(tmp_path / str(number), train | val)
        for split in ("train", "test"):
            assert read_split(DATASETS["imagenet"], str(source), split).labels.tolist() == [0, 1, 2]


def _parquet_with(root: Path, labels: list[object]) -> Path:
    for split in ("train", "test"):
        parquet(root / f"{split}-0.parquet", labels)
    return root


def _cifar_with(root: Path, labels: list[int]) -> Path:
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return write_tree(root, {name: cifar_records(np.stack([NOISE] * len(labels)), labels) for name in names})


@pytest.mark.parametrize("write", [_parquet_with, _cifar_with])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], "has images of 9 of the 10 classes of cifar10; missing: cat"),
        ([0, 1], "has images of 2 of the 10 classes of cifar10; missing: bird, cat, deer, dog, frog and 3 more"),
        ([*range(10), 10], "image 10 of the train split of .* has label 10; cifar10 has labels 0 to 9"),
    ],
)
def test_labels_are_compared_with_the_classes(tmp_path: Path, write, labels: list, message: str) -> None:
    source = write(tmp_path / "raw", labels)
    with pytest.raises(ValueError, match=message):
        prepare("cifar10", tmp_path / "out", str(source))


def test_labels_that_are_no_integers_are_named(tmp_path: Path) -> None:
    for label in (None, "cat", 1.5):
        source = _parquet_with(tmp_path / "raw", [label] * 2)
        with pytest.raises(
            ValueError, match=r"image 0 of .*train-0\.parquet has the label .*; labels must be integers"
        ):
            prepare("cifar10", tmp_path / "out", str(source))


def test_a_class_of_tiny_imagenet_without_images_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "tiny_imagenet", replace(DATASETS["tiny_imagenet"], num_classes=3))
    files = tiny_imagenet_files([np.tile(NOISE, (2, 2, 1))] * 6, [np.tile(NOISE, (2, 2, 1))] * 3)
    lost = {name: content for name, content in files.items() if not name.startswith(f"train/{WNIDS[1]}")}
    source = write_tree(tmp_path / "raw", lost)
    with pytest.raises(ValueError, match=f"images of 2 of the 3 classes of tiny_imagenet; missing: {WNIDS[1]}"):
        prepare("tiny_imagenet", tmp_path / "out", str(source))
    # A class that wnids.txt does not list, and one too many in it.
    (source / "wnids.txt").write_text("\n".join((*WNIDS, "n09999999")))
    with pytest.raises(ValueError, match="has 4 classes; tiny_imagenet has 3"):
        prepare("tiny_imagenet", tmp_path / "out", str(source))


# Counts


def test_another_count_is_one_line_and_stands_in_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = folder(tmp_path / "raw")
    first = prepare("cifar10", tmp_path / "out", str(raw))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "the train split of cifar10 has 20 images, the published one 50,000" in warnings[0]
    assert "the test split of cifar10 has 20 images, the published one 10,000" in warnings[1]
    assert (first[0].source["num_source"], first[0].source["num_published"]) == (20, 50_000)
    # A kept split and an opened one say it again.
    caplog.clear()
    prepare("cifar10", tmp_path / "out", str(raw))
    open_data("cifar10", tmp_path / "out", "memory")
    assert len(caplog.records) == 4
    # A complete set has the manifest of earlier versions, and the same digest.
    monkeypatch.setitem(
        DATASETS, "cifar10", replace(DATASETS["cifar10"], raw=replace(DATASETS["cifar10"].raw, published=(20, 20)))
    )
    caplog.clear()
    whole = prepare("cifar10", tmp_path / "whole", str(raw))
    assert not caplog.records and whole[0].source == {"given": str(raw), "num_classes": 10}
    assert whole[0].content_digest == first[0].content_digest


def test_the_count_of_the_source_matters_if_images_are_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = folder(tmp_path / "raw")
    spec = DATASETS["cifar10"]
    for published, number in (((20, 20), 0), ((21, 20), 2)):
        chosen = replace(spec, raw=replace(spec.raw, num_train=15, published=published))
        monkeypatch.setitem(DATASETS, "cifar10", chosen)
        caplog.clear()
        prepare("cifar10", tmp_path / str(number), str(raw))
        open_data("cifar10", tmp_path / str(number), "memory")
        assert len(caplog.records) == number, published


def test_a_sample_without_some_classes_needs_an_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _emptied(folder(tmp_path / "raw"))
    found = prepare("cifar10", tmp_path / "out", str(tmp_path / "raw"), allow_missing_classes=True)
    assert found[0].source["num_missing_classes"] == 1 and "num_missing_classes" not in found[1].source
    assert any("missing: cat" in record.getMessage() for record in caplog.records)
    assert sorted(set(labels_of(tmp_path / "out", "train"))) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    _added(tmp_path / "raw")
    with pytest.raises(ValueError, match="has 11 classes"):
        prepare("cifar10", tmp_path / "b", str(tmp_path / "raw"), allow_missing_classes=True)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([str(number) for number in range(100)], "class 10 gets label 2"),
        ([f"{number}" for number in range(1, 101)], "class 1 gets label 0"),
        ([f"{number:02}" for number in range(100)], None),
        ([str(number) for number in range(10)], None),
        ([], None),
    ],
)
def test_numbers_as_class_names_that_are_sorted_as_text_are_noted(
    caplog: pytest.LogCaptureFixture, names: list[str], said: str | None
) -> None:
    names = sorted(names)
    raw = RawSplit(np.arange(len(names)), lambda: iter(()), {}, tuple(names))
    spec = DATASETS["cifar100" if len(names) > 10 else "cifar10"]
    check_classes(spec, raw, "raw", "train", allow_missing=True)
    found = [record.getMessage() for record in caplog.records if "sorted as text" in record.getMessage()]
    assert len(found) == (said is not None) and all(said in line for line in found if said)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet"])
def test_all_data_sets_have_published_counts(name: str) -> None:
    published = DATASETS[name].raw.published
    assert published is not None
    numbers = {"digits": 1797, "fashion_mnist": 70_000, "cifar10": 60_000, "cifar100": 60_000}
    assert sum(published) == (numbers | {"tiny_imagenet": 110_000, "imagenet": 1_331_167})[name]


def test_an_older_manifest_is_read(digits_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_directory, tmp_path / "data")
    content = json.loads((tmp_path / "data/digits/train.json").read_text())
    assert content["source"] == {"given": "scikit-learn"}  # as earlier versions wrote it
    assert prepare("digits", tmp_path / "data")[0] == Manifest.load(digits_directory / "digits/train.json")


def test_a_damaged_manifest_is_no_dead_end(digits_directory: Path, tmp_path: Path) -> None:
    """Check that the remedy in the message helps: preparing the data again."""
    shutil.copytree(digits_directory, tmp_path / "data")
    path = tmp_path / "data/digits/train.json"
    whole = path.read_bytes()
    for content in (b"", b"[]", b"[" * 100_000, b'{"format": "harness.data/1"}', whole.replace(b"1297", b'"x"')):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.json is not a manifest .*; prepare the data again"):
            open_data("digits", tmp_path / "data", "memory")
        prepare("digits", tmp_path / "data")
        assert path.read_bytes() == whole


# Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_and_test/train-00000-of-00001", "train_and_test/test-00000-of-00001"),
        ("test/train-0", "train/test-0"),
        ("data/train/0000", "data/test/0000"),
        ("val/train/0000", "train/val/0000"),
        ("cifar10_train/part.0", "cifar10_valid/part.0"),
        ("default/partial-train/0000", "default/partial-test/0000"),
        (".cache/../train", "test"),
        ("TRAIN-0.PARQUET", "test"),
        ("train1", "val2"),
        ("a/train2017/0", "a/testing+test/0"),
    ],
)
def test_the_name_of_a_parquet_file_decides_before_its_directories(tmp_path: Path, train: str, test: str) -> None:
    (tmp_path / "raw" / ".cache").mkdir(parents=True)
    parquet(tmp_path / "raw" / (train if train.endswith(".PARQUET") else f"{train}.parquet"), [*range(10)] * 2)
    parquet(tmp_path / "raw" / f"{test}.parquet", [*range(10)])
    parquet(tmp_path / "raw" / ".cache" / "train-9.parquet", [0])
    found = prepare("cifar10", tmp_path, str(tmp_path / "raw"))
    assert [manifest.num_samples for manifest in found] == [20, 10]


@pytest.mark.parametrize(
    "name", ["train_and_test/0000", "train-test-0", "test.train/x/0", "train+test", "train1test1/0"]
)
def test_a_parquet_file_of_both_splits_is_named(tmp_path: Path, name: str) -> None:
    for one in (name, "train-1", "test-1"):
        parquet(tmp_path / "raw" / f"{one}.parquet", [*range(10)])
    message = rf"{re.escape(name)}\.parquet would belong to both splits: .* test and train; rename it"
    with pytest.raises(ValueError, match=message):
        prepare("cifar10", tmp_path, str(tmp_path / "raw"))


def test_one_file_for_both_splits_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "raw" / "train.parquet", [*range(10)])
    (tmp_path / "raw" / "test.parquet").symlink_to("train.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet and .*train\.parquet are the same file"):
        prepare("cifar10", tmp_path, str(tmp_path / "raw"))


def test_one_directory_for_both_splits_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "raw", NAMES, ())
    (tmp_path / "raw" / "test").symlink_to("train")
    with pytest.raises(ValueError, match="train and .*test are the same directory"):
        prepare("cifar10", tmp_path / "out", str(tmp_path / "raw"))


# Columns


def test_columns_can_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / "raw" / f"{split}.parquet", [*range(10)], "image", "class")
    raw, out = str(tmp_path / "raw"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"train\.parquet has the columns image, class; .*'img', or pass --image"):
        prepare("cifar10", out, raw)
    with pytest.raises(ValueError, match="needs 'label', or pass --label-column"):
        prepare("cifar10", out, raw, image_column="image")
    columns = {"image_column": "image", "label_column": "class"}
    prepare("cifar10", out, raw, **columns)
    # The same command, and one without the columns, keep it. Other columns are refused.
    (out / "cifar10" / "test.json").unlink()
    for again in (columns, {}):
        assert prepare("cifar10", out, raw, **again)[0].source["columns"] == columns
    with pytest.raises(ValueError, match="already has train with columns"):
        prepare("cifar10", out, raw, image_column="image", label_column="coarse")


# Layouts and surroundings


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("moved", ["all", "some"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_sorted_validation_images_of_tiny_imagenet(tmp_path: Path, below: str, moved: str, as_zip: bool) -> None:
    """Sort val/images by class, as the common script does. The file of classes stays."""
    crops = [np.tile(NOISE, (2, 2, 1)) + np.uint8(number) for number in range(10)]
    files = tiny_imagenet_files(crops[:4], crops[4:])
    wnids = dict(line.split("\t")[:2] for line in files["val/val_annotations.txt"].decode().splitlines())
    images = [name for name in files if name.startswith("val/images/")]
    changed = dict(files)
    for name in images if moved == "all" else images[::2]:
        short = name.rsplit("/", 1)[1]
        changed[f"val/{wnids[short]}/{below}{short}"] = changed.pop(name)

    def digest(name: str, content: dict[str, bytes]) -> str:
        source = write_tree(tmp_path / f"{name}-raw", content)
        if as_zip:
            source = tiny_imagenet_zip(tmp_path / f"{name}.zip", content)
        return prepare("tiny_imagenet", tmp_path / name, str(source), allow_missing_classes=True)[1].content_digest

    assert digest("sorted", changed) == digest("original", files)
    # A directory and a line that disagree, and an image that exists twice.
    short = images[0].rsplit("/", 1)[1]
    wrong = next(wnid for wnid in WNIDS if wnid != wnids[short])
    for place, message in (
        (f"val/{wrong}/{below}{short}", f"{short} has the class {wnids[short]} in val/val_annotations.txt"),
        (f"val/images/{wrong}/{short}", f"{short} has the class {wnids[short]} in val/val_annotations.txt"),
        (f"val/{wnids[short]}/copy/{short}", "a second time"),
    ):
        with pytest.raises(ValueError, match=message):
            digest(f"odd {place.replace('/', ' ')}", changed | {place: files[images[0]]})


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    prepare("cifar10", tmp_path, str(folder(tmp_path / "raw")))
    assert f"the file system of {tmp_path / 'cifar10'} has no locks" in caplog.records[0].getMessage()
    number = errno.EIO
    with pytest.raises(OSError, match=f"cannot lock {tmp_path / 'cifar10'}: .*; give another --out"):
        prepare("cifar10", tmp_path)


def test_unreadable_images_say_why(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw")
    bad = raw / "train" / "cat" / "0.png"
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    for content, message in (
        (b"", r"it is empty \(0 bytes\)"),
        (b"<!DOCTYPE html>", r"it begins with b'<!DOCTYPE ht', as no kind of image does"),
        (huge.getvalue(), r"exceeds limit|has 20000×20000 pixels; cifar10 images have 32×32"),
        (png(8), "has 8×8 pixels; cifar10 images have 32×32"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=f"train/cat/0.png .*({message})"):
            prepare("cifar10", tmp_path / "out", str(raw))
    bad.unlink()
    os.mkfifo(bad)
    with pytest.raises(ValueError, match=r"train/cat/0\.png is not a regular file"):
        prepare("cifar10", tmp_path / "out", str(raw))


# Bounds


def test_files_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no more than the bound is unpacked. A small bound stands for the real one."""
    for module in ("raw", "idx", "ilsvrc"):
        monkeypatch.setattr(f"harness.data.readers.{module}.MOST_BYTES", 10_000)
    monkeypatch.setattr("harness.data.readers.raw.unpacked.__defaults__", (10_000,))
    monkeypatch.setattr("harness.data.readers.raw.read_file.__defaults__", (10_000,))
    monkeypatch.setattr("harness.data.readers.tiny_imagenet._MOST_BYTES", 10_000)
    zeros = gzip.compress(bytes(10_000_000))

    def refused(name: str, source: Path, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            for _ in read_split(DATASETS[name], str(source), "train").samples():
                pass

    # Phase: archives of CIFAR and of ImageNet's development kit, with a large member and a large header
    (tmp_path / "cifar.tar.gz").write_bytes(zeros)
    refused("cifar10", tmp_path / "cifar.tar.gz", r"cifar\.tar\.gz unpacks to more than 10,000 bytes")
    entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    entry.size, entry.type = 1 << 33, tarfile.XHDTYPE
    (tmp_path / "cifar.tar.gz").write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(9_000)))
    refused("cifar10", tmp_path / "cifar.tar.gz", r"cifar\.tar\.gz (has no|cannot be read)")
    kit = ImageNetFiles([NOISE] * 3, [NOISE] * 3)
    files = kit.train_directories() | kit.val_heap() | {"ILSVRC2012_devkit_t12.tar.gz": zeros}
    refused("imagenet", write_tree(tmp_path / "kit", files), r"devkit_t12\.tar\.gz unpacks to more than")
    # Phase: IDX files with a modest and a large header
    for shape, message in (
        ((2, 2, 2), "more values than its header says"),
        ((60_000, 4, 4), "960,000 bytes; not read"),
    ):
        header = b"\0\0\x08\x03" + np.array(shape, ">u4").tobytes()
        idx = {"train-images-idx3-ubyte.gz": gzip.compress(header + bytes(10_000_000)), "train-labels-idx1-ubyte": b""}
        refused("fashion_mnist", write_tree(tmp_path / "idx", idx), rf"images-idx3-ubyte\.gz has .*{message}")
    # Phase: an entry of a zip that claims to be small
    tiny = tiny_imagenet_files([NOISE] * 3, [NOISE] * 3)
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (tiny | {f"train/{WNIDS[0]}/images/a.JPEG": bytes(10_000_000)}).items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    refused("tiny_imagenet", tmp_path / "t.zip", r"a\.JPEG is a link, or too large")
    # Phase: a large file without compression
    refused("cifar10", _cifar_with(tmp_path / "bin", [1] * 9), r"data_batch_1\.bin has 27,657 bytes; at most 10,000")


@pytest.mark.parametrize(
    ("mode", "height", "width", "label", "message"),
    [
        (RAW, 60_000, 8, 0, "image 2 has another number of bytes than pixels"),
        (RAW, 0, 8, 0, "image 2 has no pixels"),
        (RAW, 8, 8, 2, "image 2 has a label that is not in 0 to 1"),
        (RAW, 8, 8, -1, "image 2 has a label that is not in 0 to 1"),
        (JPG, 60_000, 8, 0, "image 2 is a JPEG of 8×8 pixels, but the file says 60000×8"),
        (JPG, 8, 9, 1, "image 2 is a JPEG of 8×8 pixels, but the file says 8×9"),
        (7, 8, 8, 0, "image 2 is stored in an unknown mode"),
    ],
)
def test_a_beton_file_that_would_be_read_out_of_bounds_is_refused(
    tmp_path: Path, mode: int, height: int, width: int, label: int, message: str
) -> None:
    pixels = NOISE[:8, :8]
    data = jpeg(pixels) if mode == JPG else pixels.tobytes()
    path = tmp_path / "a.beton"
    with BetonWriter(path, 3, 1 << 21) as writer:
        for own in (0, 1):
            writer.append(RAW, 8, 8, pixels.tobytes(), own)
        writer.append(mode, height, width, data, label)
    with pytest.raises(ValueError, match=rf"a\.beton: {message}; prepare the data again"):
        check_beton(path, 2, None)


def test_a_beton_file_of_another_size_is_refused(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "a.beton", 1, 1 << 21) as writer:
        writer.append(RAW, 8, 8, NOISE[:8, :8].tobytes(), 0)
    check_beton(tmp_path / "a.beton", 1, 8)
    with pytest.raises(ValueError, match=r"image 0 does not have 32×32 raw pixels"):
        check_beton(tmp_path / "a.beton", 1, 32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 10]), "labels outside 0 to 9"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.array([0, -1]), "labels outside 0 to 9"),
        (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), "labels outside 0 to 9"),
        (np.zeros((2, 9, 8, 1), np.uint8), np.array([0, 1]), r"digits needs \(2, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), r"digits needs \(2, 8, 8, 1\)"),
        (np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1]), r"digits needs \(2, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 1), np.int8), np.array([0, 1]), r"torch\.int8"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.array([0.0, 1.0]), r"torch\.float64"),
    ],
)
def test_tensors_of_another_data_set_are_refused(tmp_path: Path, images, labels, message: str) -> None:
    write_tensors(tmp_path / "a.safetensors", {"images_NHWC": images, "labels": labels})
    with pytest.raises(ValueError, match=rf"a\.safetensors has .*{message}"):
        ResidentSplit.load(DATASETS["digits"], tmp_path / "a.safetensors", torch.device("cpu"))
