"""Test data sets of the user's own: sources, splits, measured values, and the checks of `spec.json`."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.common.seeds import SgdNoise
from harness.config import DataConfig
from harness.data import open_data, spec_of
from harness.data.ffcv.beton import read_raw
from harness.data.own import OwnOptions, prepared_names, read_spec, spec_text
from harness.data.prepare import ImageOptions, prepare
from harness.data.readers.raw import SourceError
from harness.data.spec import DATASETS, CropFlip, ResizedCropFlip, ZoomFlip
from tests.data.photo_files import photo_crops, save

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"
SIZES = [(30, 40), (40, 30), (24, 24), (16, 16), (50, 20)]
CLASSES = ("daisy", "rose", "tulip")
SMALL = OwnOptions(size=16)


def class_folder(root: Path, number: int = 45, first: int = 0, size: tuple[int, int] | None = None) -> Path:
    """Write class/image with photographs of several sizes. Return the root."""
    for index in range(first, first + number):
        crop = photo_crops(index + 1, *(size or SIZES[index % len(SIZES)]))[-1]
        save(crop, root / CLASSES[index % 3] / f"{index:03}.png")
    return root


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three classes of 15 images."""
    return class_folder(tmp_path_factory.mktemp("raw") / "flowers")


@pytest.fixture(scope="module")
def prepared(flowers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the prepared `flowers`."""
    out = tmp_path_factory.mktemp("data")
    prepare("flowers", out, str(flowers), own=SMALL)
    return out


def centre(pixels: np.ndarray, size: int = 16) -> np.ndarray:
    """Return the centre square resized by Pillow."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    image = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def digests(out: Path, name: str = "flowers") -> list[str]:
    return [json.loads((out / name / f"{split}.json").read_text())["content_digest"] for split in ("train", "test")]


def test_images_classes_and_statistics_are_those_of_the_folder(prepared: Path, flowers: Path) -> None:
    # Phase: every image is stored once, at its size
    originals = {}
    for file in flowers.rglob("*.png"):
        originals[centre(np.asarray(Image.open(file))).tobytes()] = CLASSES.index(file.parent.name)
    images, labels = zip(
        *(read_raw(prepared / "flowers" / f"{split}.beton") for split in ("train", "test")), strict=True
    )
    stored = {
        image.tobytes(): int(label) for image, label in zip(np.concatenate(images), np.concatenate(labels), strict=True)
    }
    assert stored == originals and len(originals) == 45
    # Phase: the test split has a tenth of each class, rounded
    assert np.bincount(labels[1]).tolist() == [2, 2, 2]
    # Phase: mean and standard deviation are those of the training images
    spec = spec_of("flowers", prepared)
    pixels = images[0].reshape(-1, 3) / 255
    assert np.abs(pixels.mean(0) - spec.mean).max() < 1e-6
    assert np.abs(pixels.std(0) - spec.std).max() < 1e-6
    assert (spec.num_classes, spec.raw.class_names, spec.channels) == (3, CLASSES, 3)
    assert spec.augmentation == CropFlip(padding=2, flip=True)
    assert prepared_names(prepared) == ["flowers"]


def test_both_loaders_give_the_same_batches(prepared: Path) -> None:
    ffcv, memory = (open_data("flowers", prepared, loader) for loader in ("ffcv", "memory"))
    assert ffcv.content_digest == memory.content_digest
    noise = SgdNoise(3, ("search", 0))
    streams = [source.train_loader(global_batch_size=8, num_workers=1).epoch(noise, 0) for source in (ffcv, memory)]
    for left, right in zip(*streams, strict=True):
        assert all((a == b).all() for a, b in zip(left, right, strict=True))


def test_the_content_does_not_depend_on_threads_names_and_order(flowers: Path, prepared: Path, tmp_path: Path) -> None:
    # Phase: other threads
    prepare("flowers", tmp_path / "threads", str(flowers), None, 1, own=SMALL)
    assert digests(tmp_path / "threads") == digests(prepared)
    # Phase: the images get other names, in another order. The test images are the same.
    for file in flowers.rglob("*.png"):
        target = tmp_path / "renamed" / file.parent.name / f"{999 - int(file.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    prepare("flowers", tmp_path / "named", str(tmp_path / "renamed"), own=SMALL)
    test = [
        {image.tobytes() for image in read_raw(out / "flowers" / "test.beton")[0]}
        for out in (prepared, tmp_path / "named")
    ]
    assert test[0] == test[1]
    # Phase: another seed chooses others
    prepare("flowers", tmp_path / "seed", str(flowers), own=replace(SMALL, split_seed=1))
    assert {image.tobytes() for image in read_raw(tmp_path / "seed" / "flowers" / "test.beton")[0]} != test[0]


def test_equal_images_stay_in_one_split(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "raw", 30)
    for file in list(root.rglob("*.png")):
        for copy in range(3):
            shutil.copy(file, file.with_name(f"{copy}-{file.name}"))
    train, test = prepare("flowers", tmp_path / "data", str(root), own=replace(SMALL, test_split=0.3))
    assert test.source["made_from"] == 120 and test.options["test_split"] == {
        "share": 0.3,
        "seed": 0,
        "by": "sha256 of bytes, in each class",
    }
    images = [
        {image.tobytes() for image in read_raw(tmp_path / "data" / "flowers" / f"{split}.beton")[0]}
        for split in ("train", "test")
    ]
    assert not images[0] & images[1] and train.num_samples + test.num_samples == 120 and test.num_samples >= 36


def _split_folder(root: Path, test: str) -> Path:
    class_folder(root / "train", 30)
    class_folder(root / test, 6, first=30)
    return root


def _arrow(root: Path, splits: bool) -> Path:
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    crops = photo_crops(36, 20, 20)
    features = Features({"picture": ImageFeature(), "kind": ClassLabel(names=list(CLASSES))})
    rows = {"picture": [Image.fromarray(crop) for crop in crops], "kind": [index % 3 for index in range(36)]}
    whole = Dataset.from_dict(rows, features=features)
    saved = DatasetDict({"train": whole.select(range(30)), "test": whole.select(range(30, 36))}) if splits else whole
    saved.save_to_disk(str(root))
    return root


def _parquet(root: Path, splits: bool, names: tuple[object, ...] = (0, 1, 2)) -> Path:
    import io

    import pyarrow
    import pyarrow.parquet

    def encoded(crop: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "png")
        return buffer.getvalue()

    root.mkdir(parents=True)
    crops = photo_crops(36, 20, 20)
    rows = [({"bytes": encoded(crop), "path": None}, names[index % 3]) for index, crop in enumerate(crops)]
    for name, part in (("train", rows[:30]), ("test", rows[30:])) if splits else (("all", rows),):
        table = pyarrow.table({"picture": [image for image, _ in part], "kind": [label for _, label in part]})
        pyarrow.parquet.write_table(table, root / f"{name}.parquet")
    return root if splits else root / "all.parquet"


@pytest.mark.parametrize(
    ("write", "num_test", "classes"),
    [
        (lambda root: _split_folder(root, "test"), 6, CLASSES),
        (lambda root: _split_folder(root, "val"), 6, CLASSES),
        (lambda root: class_folder(root / "train", 30).parent, 3, CLASSES),
        (lambda root: _arrow(root, True), 6, CLASSES),
        (lambda root: _arrow(root, False), 3, CLASSES),
        (lambda root: _parquet(root, True), 6, ("0", "1", "2")),
        (lambda root: _parquet(root, False), 3, ("0", "1", "2")),
        (lambda root: _parquet(root, False).parent, 3, ("0", "1", "2")),
        (lambda root: _parquet(root, True, CLASSES[::-1]), 6, CLASSES),
    ],
    ids=[
        "test",
        "val",
        "train alone",
        "saved splits",
        "saved rows",
        "parquet splits",
        "parquet file",
        "parquet",
        "texts",
    ],
)
def test_every_source(tmp_path: Path, write, num_test: int, classes: tuple[str, ...]) -> None:
    source = write(tmp_path / "raw")
    columns = {"image_column": "picture", "label_column": "kind"}
    _, test = prepare("mine", tmp_path / "data", str(source), own=replace(SMALL, channels=3), **columns)
    assert test.num_samples == num_test
    assert spec_of("mine", tmp_path / "data").raw.class_names == classes
    assert ("test_split" in test.options) == (num_test == 3)
    # The columns and options are those of the first preparation.
    assert prepare("mine", tmp_path / "data")[1] == test


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "1"])
def test_images_of_other_modes(tmp_path: Path, mode: str) -> None:
    root = class_folder(tmp_path / "raw", 12)
    for file in root.rglob("*.png"):
        image = Image.open(file)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(file)
    gray = mode in ("L", "LA", "I;16", "1")
    if not gray:
        with pytest.raises(SourceError, match=r"000.png is in colour, but mine has one channel; give --channels 3"):
            prepare("mine", tmp_path / "data", str(root), own=replace(SMALL, channels=1))
    prepare("mine", tmp_path / "data", str(root), own=replace(SMALL, channels=1 if gray else 3))
    batch = next(iter(open_data("mine", tmp_path / "data", "memory").test_loader(batch_size=2)))
    assert batch.images_NHWC.shape == (2, 16, 16, 1 if gray else 3)


@pytest.mark.parametrize(
    ("options", "augmentation"),
    [
        (OwnOptions(size=64), CropFlip(padding=8, flip=True)),
        (OwnOptions(size=64, padding=3, flip=False), CropFlip(padding=3, flip=False)),
        (OwnOptions(size=64, augmentation="none"), CropFlip(padding=0, flip=False)),
        (
            OwnOptions(size=64, augmentation="zoom-flip", crop_scale=(0.4, 0.9)),
            ZoomFlip(scale=(0.4, 0.9), ratio=(3 / 4, 4 / 3), flip=True),
        ),
        (
            OwnOptions(size=64, augmentation="resized-crop", crop_ratio=(1.0, 1.0)),
            ResizedCropFlip(size=64, scale=(0.08, 1.0), ratio=(1.0, 1.0), flip=True, test_resize=73),
        ),
    ],
)
def test_augmentations_by_name(options: OwnOptions, augmentation) -> None:
    assert options.draws(64) == augmentation
    spec = replace(DATASETS["cifar10"], name="mine", image_size=64, augmentation=augmentation)
    spec = replace(
        spec,
        raw=replace(
            spec.raw,
            default="",
            image_column="image",
            published=None,
            test_splits=DATASETS["digits"].raw.test_splits,
            own=True,
        ),
    )
    assert read_spec(spec_text(spec), "here") == spec


def test_no_augmentation_gives_the_stored_images(flowers: Path, tmp_path: Path) -> None:
    prepare("mine", tmp_path, str(flowers), own=OwnOptions(size=16, augmentation="none"))
    stored = read_raw(tmp_path / "mine" / "train.beton")[0]
    for loader in ("memory", "ffcv"):
        train = open_data("mine", tmp_path, loader).train_loader(global_batch_size=8, num_workers=1)
        for images, _, indices in train.epoch(SgdNoise(1, ("search", 0)), 0):
            assert (images.numpy() == stored[indices]).all()


@pytest.mark.long
def test_boxes_of_the_whole_image(flowers: Path, tmp_path: Path) -> None:
    own = OwnOptions(size=16, augmentation="resized-crop")
    train, _ = prepare("mine", tmp_path, str(flowers), ImageOptions(write_mode="raw", max_resolution=40), own=own)
    assert train.options["max_resolution"] == 40 and set(train.files) == {"train.beton", "spec.json"}
    source = open_data("mine", tmp_path, "ffcv")
    batch = next(source.train_loader(global_batch_size=8, num_workers=1).epoch(SgdNoise(1, ("search", 0)), 0))
    assert batch.images_NHWC.shape == (8, 16, 16, 3)
    with pytest.raises(ValueError, match="use the ffcv loader"):
        open_data("mine", tmp_path, "memory")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", SMALL, "digits is a built-in data set, with its published size"),
        ("Fashion-MNIST", SMALL, "too close to the built-in data set fashion_mnist"),
        ("../mine", SMALL, "letters, digits, _ and -"),
        ("mine", OwnOptions(channels=1), "give its --size in pixels"),
        ("mine", None, r"unknown data set 'mine'.*also give --source and --size"),
        ("mine", SMALL, "give its --source"),
    ],
)
def test_names_and_missing_options(tmp_path: Path, name: str, options: OwnOptions | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(name, tmp_path, own=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size is 0"),
        ({"size": 8, "test_split": 1.0}, "--test-split is 1.0"),
        (
            {"size": 8, "crop_scale": (0.1, 1.0)},
            "--crop-scale is an option of --augmentation zoom-flip and resized-crop",
        ),
        ({"size": 8, "augmentation": "none", "padding": 2}, "--padding is an option of --augmentation crop-flip"),
        ({"size": 8, "augmentation": "zoom-flip", "crop_scale": (0.5, 0.1)}, "--crop-scale is 0.5 0.1"),
        ({"size": 8, "augmentation": "zoom-flip", "crop_scale": (0.0, 1.0)}, "--crop-scale is 0 1"),
        ({"size": 8, "augmentation": "zoom-flip", "crop_scale": (0.5, 1.1)}, "--crop-scale is 0.5 1.1"),
        ({"size": 8, "augmentation": "resized-crop", "channels": 1}, "give --channels 3"),
        ({"size": 8, "augmentation": "resized-crop", "test_resize": 7}, "at least --size 8"),
        ({"size": 8, "augmentation": "crop"}, "unknown augmentation 'crop' .did you mean 'crop-flip'"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OwnOptions(**options)


def _same_inside(root: Path) -> Path:
    class_folder(root / "training", 6)
    class_folder(root / "testing", 6)
    return root


def _other_classes(root: Path) -> Path:
    _split_folder(root, "test")
    (root / "test" / "tulip").rename(root / "test" / "tulips")
    return root


def _linked(root: Path) -> Path:
    class_folder(root)
    (root / "link").symlink_to(root)
    return root


def _other_encoding(root: Path) -> Path:
    class_folder(root)
    os.rename(os.fsencode(root / "rose"), os.fsencode(root) + b"/\xff")
    return root


def _capitals(root: Path) -> Path:
    class_folder(root / "Train", 6)
    class_folder(root / "Val", 3)
    return root


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (lambda root: _split_folder(root, "test"), {"test_split": 0.2}, "has a test split of its own, with 6 images"),
        (_same_inside, {}, "testing, training, each with daisy, rose, tulip; if they are splits, name them train"),
        (_other_classes, {}, "different classes"),
        (lambda root: class_folder(root, 1), {}, r"has 1 classes \(daisy\); a classifier needs at least two"),
        (lambda root: class_folder(root, 3), {}, "too few to make a test split"),
        (lambda root: save(np.zeros((4, 4, 3), np.uint8), root / "a.png").parent, {}, "has none of"),
        (_linked, {}, "daisy is inside of .*link, by a link; give each class its own"),
        (_other_encoding, {}, r"the name of the class .* is no text in UTF-8; rename it"),
        (_capitals, {}, "has no directory train for the train split; it has Train, Val"),
    ],
)
def test_sources_that_fit_no_data_set(tmp_path: Path, write, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare("mine", tmp_path / "data", str(write(tmp_path / "raw")), own=replace(SMALL, **options))
    assert not (tmp_path / "data" / "mine" / "train.json").exists()


@pytest.mark.parametrize(
    ("labels", "image", "message"),
    [
        ((1, 2, 3), None, "the labels .* are 1 to 3; integers must number the classes from 0 on"),
        ((0, 1, 2**62), None, "the labels .* are 0 to 4611686018427387904; integers must number"),
        ((0.0, 1.0, 2.0), None, r"has the label 0.0; labels must be integers"),
        ((0, 1, 2), [[1, 2]], r"image 0 of .* is a list; an image is the bytes of a file, or {bytes, path}"),
        ((0, 1, 2), "a.png", r"image 0 of .* is a str; an image is the bytes"),
        ((0, 1, 2), {"bytes": None, "path": None}, r"image 0 of .* is empty; an image is the bytes"),
    ],
)
def test_parquet_files_of_another_form(tmp_path: Path, labels: tuple, image: object, message: str) -> None:
    import pyarrow
    import pyarrow.parquet

    source = _parquet(tmp_path / "raw", False, labels)
    if image is not None:
        table = pyarrow.table({"picture": [image] * 36, "kind": [index % 3 for index in range(36)]})
        pyarrow.parquet.write_table(table, source)
    with pytest.raises(SourceError, match=message):
        prepare("mine", tmp_path / "data", str(source), own=SMALL, image_column="picture", label_column="kind")


def test_files_and_directories_that_are_not_used_are_named(tmp_path: Path, caplog) -> None:
    root = _split_folder(tmp_path / "raw", "test")
    class_folder(root / "dev", 3)
    (root / "train" / "rose" / "0.heic").write_bytes(b"heic")
    with caplog.at_level(logging.INFO, "harness"):
        prepare("mine", tmp_path / "data", str(root), own=SMALL)
    assert caplog.text.count("that are not used: dev") == 1
    assert caplog.text.count("because they do not end as images do: train/rose/0.heic") == 1

    # Phase: a folder without a test split
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "dev")
    caplog.clear()
    with caplog.at_level(logging.INFO, "harness"):
        prepare("other", tmp_path / "data", str(root), own=SMALL)
    assert caplog.text.count("because they do not end as images do: train/rose/0.heic") == 1


def test_integer_labels_from_1_on_need_an_option(tmp_path: Path) -> None:
    """Class 0 then has no images, which the option allows."""
    source = _parquet(tmp_path / "raw", False, (1, 2, 3))
    columns = {"image_column": "picture", "label_column": "kind"}
    prepare("mine", tmp_path / "data", str(source), own=SMALL, allow_missing_classes=True, **columns)
    assert spec_of("mine", tmp_path / "data").num_classes == 4


def test_classes_without_test_images_need_an_option(tmp_path: Path) -> None:
    root = _split_folder(tmp_path / "raw", "test")
    for file in (root / "test" / "rose").iterdir():
        file.unlink()
    with pytest.raises(SourceError, match="the test split.*missing: rose.*--allow-missing-classes"):
        prepare("mine", tmp_path / "data", str(root), own=SMALL)
    prepare("mine", tmp_path / "data", str(root), own=SMALL, allow_missing_classes=True)
    assert open_data("mine", tmp_path / "data", "memory").spec.num_classes == 3


def test_a_known_name_keeps_its_classes(flowers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    for split in ("train", "val"):
        class_folder(folder / split, 9, size=(32, 32))
    with pytest.raises(SourceError, match=r"images of 3 of the 1000 classes of imagenet"):
        prepare("imagenet", tmp_path / "data", str(folder))


# ------------------------------------------------------------------------------------------------- spec.json


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 4},
        {"num_classes": "3"},
        {"channels": 2},
        {"image_size": -1},
        {"mean": [0.5]},
        {"std": [0.0, 0.1, 0.1]},
        {"std": [float("nan")] * 3},
        {"class_names": "abc"},
        {"class_names": [1, 2, 3]},
        {"augmentation": {"name": "cut-out"}},
        {"augmentation": {"name": "crop-flip", "padding": 1.5, "flip": True}},
        {"augmentation": {"name": "zoom-flip", "scale": [0.5, 2.0], "ratio": [1.0, 1.0], "flip": True}},
        {"format": "harness.spec/9"},
        {"name": "../x"},
        {"name": None},
    ],
    ids=str,
)
def test_an_invalid_specification_is_one_line(prepared: Path, change: dict) -> None:
    content = json.loads((prepared / "flowers" / "spec.json").read_text())
    if change == {"class_names": "abc"}:
        change = {"class_names": ["a", "b"]}
    with pytest.raises(ValueError, match="spec.json is no specification of a data set") as caught:
        read_spec(json.dumps(content | change), "spec.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["altered", "missing", "renamed", "not listed", "no test"])
def test_an_altered_specification_is_an_error_at_opening(prepared: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(prepared / "flowers", tmp_path / "flowers")
    path = tmp_path / "flowers" / "spec.json"
    name, message = "flowers", r"spec.json was altered: its SHA-256 is .*prepare the data again"
    if damage == "altered":
        path.write_text(path.read_text().replace("tulip", "tulpe"))
    elif damage == "missing":
        path.unlink()
        message = r"unknown data set 'flowers'.*prepare_data.py --name flowers"
    elif damage == "renamed":
        path.parent.rename(tmp_path / "herbs")
        name, message = "herbs", "describes flowers, not herbs"
    elif damage == "no test":
        (path.parent / "test.json").unlink()
        message = "not completely prepared"
    else:
        manifest = json.loads((path.parent / "test.json").read_text())
        del manifest["files"]["spec.json"]
        (path.parent / "test.json").write_text(json.dumps(manifest))
        message = "has none of it"
    for loader in ("ffcv", "memory"):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_data(name, tmp_path, loader)


def test_a_damaged_preparation_is_repeated(flowers: Path, prepared: Path, tmp_path: Path) -> None:
    for name in ("spec.json", "test.safetensors", "test.json", "train.json"):
        out = tmp_path / name
        shutil.copytree(prepared, out)
        (out / "flowers" / name).write_bytes(b"damaged")
        own = SMALL if name == "spec.json" else None
        prepare("flowers", out, str(flowers), own=own)
        assert digests(out) == digests(prepared)
        open_data("flowers", out, "memory")


def test_other_options_are_refused_unless_overwritten(flowers: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    other = replace(SMALL, size=8)
    with pytest.raises(ValueError, match=r"already has train with options {'size': 16}, but {'size': 8} was requested"):
        prepare("flowers", tmp_path / "data", str(flowers), own=other)
    prepare("flowers", tmp_path / "data", str(flowers), overwrite=True, own=other)
    assert open_data("flowers", tmp_path / "data", "memory").spec.image_size == 8
    assert digests(tmp_path / "data") != digests(prepared)


def test_an_unknown_name_suggests_a_prepared_one(prepared: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'flower' .did you mean 'flowers'.*cifar10.*flowers"):
        open_data("flower", prepared, "memory")
    for name in ("../flowers", "/etc", "flowers/../flowers", ""):
        with pytest.raises(ValueError, match="unknown data set"):
            open_data(name, prepared, "memory")
    assert DataConfig("flowers").name == "flowers"


@pytest.mark.long
def test_the_command(flowers: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(TOOL), "--name", "flowers", "--source", str(flowers), "--size", "16"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 classes: daisy, rose, tulip" in done.stdout
    assert re.search(r"16×16 pixels, channels 3, mean [\d. ]+, standard deviation", done.stdout)
    assert done.stdout.endswith("recipes/aws_fashion_mnist.py --data.name flowers\n")
