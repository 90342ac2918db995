"""Test the preparation of data sets: sources, image modes, bad input, interruptions, and deterministic output."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import open_data
from harness.data.ffcv.beton import BetonWriter, read_raw, read_sizes
from harness.data.prepare import ImageOptions, prepare
from harness.data.spec import DATASETS
from tests.data.photo_files import image_folder, photo_crops, save

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"
RAW = ImageOptions(write_mode="raw")
sample = partial(prepare, allow_missing_classes=True)
"""Prepare a source that has images of few classes."""


def jpeg(pixels: np.ndarray, mode: str = "RGB", quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def contents(directory: Path) -> dict[str, bytes]:
    """Return all visible files of a directory, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.endswith(".partial")]


def write_idx(directory: Path, images: np.ndarray, labels: np.ndarray, stem: str, zipped: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, values in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
        content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
        path = directory / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Write IDX files of 20 training and 5 test images of random gray values."""
    generator = np.random.default_rng(0)
    for stem, number in (("train", 20), ("t10k", 5)):
        images = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / "idx", images, (np.arange(number) % 10).astype(np.uint8), stem, zipped=True)
    return tmp_path / "idx"


def test_digits_have_scikit_learns_images_and_a_fixed_split(digits_directory: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {(image.tobytes(), label) for image, label in zip(digits.images, digits.target, strict=True)}
    counts = []
    for split in ("train", "test"):
        images, labels = read_raw(digits_directory / "digits" / f"{split}.beton")
        back = np.rint(images[..., 0] / 255 * 16)
        assert all((image.tobytes(), label) in known for image, label in zip(back, labels, strict=True))
        counts.append(len(labels))
        assert set(labels) == set(range(10))
    assert counts == [1297, 500]
    source = open_data("digits", digits_directory, "memory")
    # The split and its bytes are part of every result, so they must never change.
    assert source.content_digest[:16] == "b05010ba85106dd2"


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    generator = np.random.default_rng(1)
    images = {stem: generator.integers(0, 256, (7, 28, 28), dtype=np.uint8) for stem in ("train", "t10k")}
    for stem, values in images.items():
        write_idx(tmp_path / "idx", values, np.arange(7, dtype=np.uint8), stem, zipped)
    sample("fashion_mnist", tmp_path, str(tmp_path / "idx"))
    for split, stem in (("train", "train"), ("test", "t10k")):
        stored, labels = read_raw(tmp_path / "fashion_mnist" / f"{split}.beton")
        assert (stored == images[stem][..., None]).all()
        assert labels.tolist() == list(range(7))


def test_a_small_data_set_has_block_means_of_chosen_images(
    tmp_path: Path, fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the data set with PyTorch's average pooling.

    The training images are a selection in the raw order. The test split is complete.
    """
    spec = DATASETS["fashion_mnist_small"]
    monkeypatch.setitem(DATASETS, spec.name, replace(spec, raw=replace(spec.raw, num_train=12)))
    sample(spec.name, tmp_path / "small", str(fashion))
    sample("fashion_mnist", tmp_path / "whole", str(fashion))

    def images(where: str, split: str) -> torch.Tensor:
        name = spec.name if where == "small" else "fashion_mnist"
        return torch.from_numpy(read_raw(tmp_path / where / name / f"{split}.beton")[0]).permute(0, 3, 1, 2)

    for split, number in (("train", 12), ("test", 5)):
        pooled = torch.nn.functional.avg_pool2d(images("whole", split).double(), 2).round().to(torch.uint8)
        places = [int(torch.where((pooled == image).flatten(1).all(1))[0]) for image in images("small", split)]
        assert len(places) == number
        assert places == sorted(set(places))


def test_a_small_data_set_needs_enough_images(tmp_path: Path, fashion: Path) -> None:
    with pytest.raises(ValueError, match="has 20 training images; 8000 are needed"):
        prepare("fashion_mnist_small", tmp_path, str(fashion))


def test_preparation_is_deterministic(tmp_path: Path, boxes_raw: Path) -> None:
    options = ImageOptions(write_mode="proportion", proportion=0.5)
    for name, workers in (("a", 1), ("b", 2)):
        prepare("boxes", tmp_path / name, str(boxes_raw), options, num_workers=workers)
    assert contents(tmp_path / "a" / "boxes") == contents(tmp_path / "b" / "boxes")


def test_options_change_the_digest_only_if_they_change_the_images(tmp_path: Path, boxes_raw: Path) -> None:
    def digest(name: str, options: ImageOptions) -> str:
        return prepare("boxes", tmp_path / name, str(boxes_raw), options)[0].content_digest

    base = digest("a", RAW)
    assert digest("b", ImageOptions(write_mode="raw", quality=50)) == base
    assert digest("c", ImageOptions(write_mode="raw", max_resolution=50)) != base
    assert digest("d", ImageOptions(write_mode="jpg", quality=90)) != digest("e", ImageOptions("jpg", quality=50))


@pytest.mark.long
def test_the_proportion_of_jpeg_images_is_respected(tmp_path: Path) -> None:
    from ffcv.reader import Reader

    raw = image_folder(tmp_path / "raw", photo_crops(201, 16, 16), 1, 1, ".png")
    for proportion in (0.0, 0.3, 1.0):
        sample("boxes", tmp_path, str(raw), ImageOptions(proportion=proportion), overwrite=True)
        modes = Reader(str(tmp_path / "boxes" / "train.beton")).metadata["f0"]["mode"]
        share = (modes == 0).mean()
        assert abs(share - proportion) < 0.12
        assert proportion not in (0.0, 1.0) or share == proportion


def test_longest_side_is_capped(tmp_path: Path) -> None:
    crops = [photo_crops(1, *size)[0] for size in ((300, 200), (200, 300), (100, 50), (400, 3))]
    raw = image_folder(tmp_path / "raw", [crops[0], *crops], 1, 1, ".png")
    sample("boxes", tmp_path, str(raw), ImageOptions(write_mode="raw", max_resolution=150))
    heights, widths = read_sizes(tmp_path / "boxes" / "train.beton")
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == [(150, 100), (100, 150), (100, 50), (150, 1)]
    sample("boxes", tmp_path / "all", str(raw), ImageOptions(write_mode="raw", max_resolution=0))
    assert read_sizes(tmp_path / "all" / "boxes" / "train.beton")[0].max() == 400


def test_kept_jpegs_are_the_same_bytes(tmp_path: Path) -> None:
    crops = photo_crops(3, 60, 80)
    raw = image_folder(tmp_path / "raw", crops, 1, 1, ".jpg")
    gray = save(crops[0], raw / "train" / "class0" / "gray.jpg", mode="L")
    sample("boxes", tmp_path, str(raw), ImageOptions(write_mode="jpg", keep_jpeg=True))
    stored = (tmp_path / "boxes" / "train.beton").read_bytes()
    for path in sorted((raw / "train" / "class0").glob("0*.jpg")):
        assert path.read_bytes() in stored
    assert gray.read_bytes() not in stored  # stored as RGB instead


@pytest.mark.parametrize("kind", ["folder", "parquet", "arrow"])
def test_every_mode_and_source_gives_rgb(tmp_path: Path, kind: str) -> None:
    """Prepare images of every mode from three kinds of source.

    Modes are gray, CMYK, palette, transparent and 16-bit. The stored pixels must equal Pillow's conversion to RGB.
    """
    # Phase: encode the picture in every mode
    picture = photo_crops(1, 40, 50)[0]
    files = {
        "cmyk.jpg": jpeg(picture, "CMYK"),
        "gray.jpg": jpeg(picture, "L"),
        "plain.jpg": jpeg(picture),
    }
    for mode in ("RGBA", "LA", "P", "1", "L"):
        buffer = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(buffer, "PNG")
        files[f"png_{mode}.png"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray((picture[..., 0].astype(np.uint16) << 8) + 7).save(buffer, "PNG")
    files["sixteen.png"] = buffer.getvalue()
    # Phase: write the source
    names = sorted(files)
    source = tmp_path / "raw"
    if kind == "folder":
        for split in ("train", "val"):
            for name in names:
                (source / split / "only").mkdir(parents=True, exist_ok=True)
                (source / split / "only" / name).write_bytes(files[name])
    else:
        from datasets import ClassLabel, Dataset, DatasetDict, Features
        from datasets import Image as ImageFeature

        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["only", "other"])})
        rows = {"image": [{"bytes": files[name], "path": name} for name in names], "label": [0] * len(names)}
        dataset = Dataset.from_dict(rows, features=features)
        if kind == "arrow":
            DatasetDict(train=dataset, validation=dataset).save_to_disk(str(source))
        else:
            for split in ("train", "validation"):
                (source / "data").mkdir(parents=True, exist_ok=True)
                dataset.to_parquet(str(source / "data" / f"{split}-00000-of-00001.parquet"))
    # Phase: prepare it and compare the pixels
    sample("boxes", tmp_path / "out", str(source), RAW)
    stored, labels = read_raw(tmp_path / "out" / "boxes" / "train.beton")
    for name, pixels in zip(names, stored, strict=True):
        if name == "sixteen.png":
            expected = np.repeat(picture[..., :1], 3, axis=2)
        else:
            expected = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))
        assert (pixels == expected).all(), name
    assert not labels.any()
    assert open_data("boxes", tmp_path / "out", "ffcv").num_test == len(names)


def test_sources_give_the_same_content(tmp_path: Path) -> None:
    """Compare the content digests of a folder and of parquet files.

    The parquet files have no feature metadata.
    """
    import pyarrow
    import pyarrow.parquet

    raw = image_folder(tmp_path / "raw", photo_crops(9, 30, 40), 3, 2, ".png")
    for split, name in (("train", "train"), ("val", "test")):
        paths = sorted((raw / split).rglob("*.png"))
        table = pyarrow.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
                "label": [int(path.parent.name[-1]) for path in paths],
            }
        )
        (tmp_path / "parquet" / name).mkdir(parents=True)
        pyarrow.parquet.write_table(table, tmp_path / "parquet" / name / "0000.parquet")
    one, other = (
        [manifest.content_digest for manifest in prepare("boxes", tmp_path / out, str(tmp_path / out), RAW)]
        for out in ("raw", "parquet")
    )
    assert one == other


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_broken_image_is_named_and_nothing_is_left(tmp_path: Path, content: bytes | str, num_workers: int) -> None:
    raw = image_folder(tmp_path / "raw", photo_crops(60, 40, 40), 2, 2, ".jpg")
    bad = raw / "train" / "class1" / "broken.jpg"
    whole = jpeg(photo_crops(1, 200, 200)[0])
    bad.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"train/class1/broken\.jpg cannot be read as an image"):
        prepare("boxes", tmp_path / "out", str(raw), RAW, num_workers=num_workers)
    assert contents(tmp_path / "out" / "boxes") == {}
    assert leftovers(tmp_path / "out" / "boxes") == []
    bad.unlink()
    assert prepare("boxes", tmp_path / "out", str(raw), RAW)[0].num_samples == 58


def test_a_broken_image_in_parquet_is_named_by_its_index(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {"image": [{"bytes": jpeg(photo_crops(1, 9, 9)[0]), "path": None}] * 3, "label": [0, 1, 0]}
    for split in ("train", "test"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "raw" / f"{split}.parquet")
        rows["image"] = [*rows["image"][:2], {"bytes": b"nothing", "path": "x.jpg"}]
    with pytest.raises(ValueError, match=r"image 2 of .*raw test \(x\.jpg\) cannot be read"):
        prepare("boxes", tmp_path, str(tmp_path / "raw"), RAW)


def test_an_unfinished_split_is_rewritten_and_a_finished_one_kept(tmp_path: Path) -> None:
    raw = image_folder(tmp_path / "raw", photo_crops(30, 40, 40), 10, 2, ".png")
    prepare("boxes", tmp_path / "whole", str(raw), RAW)
    home = tmp_path / "out" / "boxes"
    shutil.copytree(tmp_path / "whole" / "boxes", home)
    for name in ("test.json", "test.beton"):
        (home / name).unlink()
    (home / ".test.beton.partial").write_bytes(b"half of it")
    train = (home / "train.beton").stat()
    prepare("boxes", tmp_path / "out", str(raw), RAW)
    assert contents(home) == contents(tmp_path / "whole" / "boxes")
    assert leftovers(home) == []
    assert (home / "train.beton").stat().st_mtime_ns == train.st_mtime_ns


@pytest.mark.long
def test_a_killed_preparation_can_be_repeated(tmp_path: Path, fashion: Path) -> None:
    """Kill a preparation, then prepare again.

    The killed process must leave no manifest.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60_000, 28, 28), dtype=np.uint8)
    write_idx(fashion, images, np.zeros(60_000, np.uint8), "train", zipped=False)
    (fashion / "train-images-idx3-ubyte.gz").unlink()
    (fashion / "train-labels-idx1-ubyte.gz").unlink()
    command = [sys.executable, str(TOOL), "fashion_mnist", "--source", str(fashion), "--out", str(tmp_path / "out")]
    command += ["--allow-missing-classes"]
    home = tmp_path / "out" / "fashion_mnist"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not leftovers(home) if home.exists() else True:
            assert process.poll() is None, "the process finished before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert leftovers(home) == [".train.beton.partial"]
    assert contents(home) == {}
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        open_data("fashion_mnist", tmp_path / "out", "ffcv")
    write_idx(fashion, images[:50], np.zeros(50, np.uint8), "train", zipped=False)
    assert sample("fashion_mnist", tmp_path / "out", str(fashion))[0].num_samples == 50
    assert leftovers(home) == []


def test_other_options_or_source_are_refused_unless_overwritten(tmp_path: Path, boxes_raw: Path) -> None:
    prepare("boxes", tmp_path, str(boxes_raw), RAW)
    with pytest.raises(ValueError, match=r"already has train with options .*'raw'.*'jpg'.* was requested.*--overwrite"):
        prepare("boxes", tmp_path, str(boxes_raw), ImageOptions(write_mode="jpg"))
    shutil.copytree(boxes_raw, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="already has train with source"):
        prepare("boxes", tmp_path, str(tmp_path / "elsewhere"), RAW)
    assert prepare("boxes", tmp_path, str(boxes_raw), ImageOptions(write_mode="jpg"), overwrite=True)
    # Without a source, the recorded one is used.
    (tmp_path / "boxes" / "test.json").unlink()
    manifests = prepare("boxes", tmp_path, options=ImageOptions(write_mode="jpg"))
    assert [manifest.source["given"] for manifest in manifests] == [str(boxes_raw)] * 2


def test_a_damaged_split_is_written_again(tmp_path: Path, boxes_raw: Path, capfd: pytest.CaptureFixture) -> None:
    prepare("boxes", tmp_path, str(boxes_raw), RAW)
    before = contents(tmp_path / "boxes")
    os.truncate(tmp_path / "boxes" / "train.beton", 1000)
    prepare("boxes", tmp_path, str(boxes_raw), RAW)
    assert contents(tmp_path / "boxes") == before
    assert "writing it again" in capfd.readouterr().out


def test_wrong_sizes_labels_and_colours_are_refused(tmp_path: Path, fashion: Path) -> None:
    images = np.zeros((3, 30, 28), np.uint8)
    write_idx(fashion, images, np.zeros(3, np.uint8), "train", zipped=True)
    with pytest.raises(ValueError, match=r"image 0 of .* has 30×28 pixels; fashion_mnist images have 28×28"):
        sample("fashion_mnist", tmp_path, str(fashion))
    write_idx(fashion, images[:, :28], np.array([0, 9, 10], np.uint8), "train", zipped=True)
    with pytest.raises(ValueError, match=r"image 2 of .* has label 10; fashion_mnist has labels 0 to 9"):
        sample("fashion_mnist", tmp_path, str(fashion))
    raw = image_folder(tmp_path / "raw", photo_crops(4, 28, 28), 2, 1, ".png")
    with pytest.raises(ValueError, match="one channel, but its images are in colour"):
        sample("fashion_mnist", tmp_path, str(raw))


def test_truncated_idx_files_are_refused(tmp_path: Path, fashion: Path) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        prepare("fashion_mnist", tmp_path, str(fashion))
    path.write_bytes(gzip.compress(gzip.decompress(content)[:-5]))
    with pytest.raises(ValueError, match=r"its header says \(20, 28, 28\): truncated"):
        prepare("fashion_mnist", tmp_path, str(fashion))


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere is neither a directory .*apt install dataset-fashion-mnist"):
        prepare("fashion_mnist", tmp_path, "/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has none of: IDX files"):
        prepare("boxes", tmp_path, str(tmp_path / "empty"))
    for split in ("train", "val"):
        (tmp_path / "folder" / split / "class0").mkdir(parents=True)
    with pytest.raises(ValueError, match="the train split of .*folder holds no images"):
        prepare("boxes", tmp_path, str(tmp_path / "folder"))
    (tmp_path / "folder" / "val" / "class1").mkdir()
    with pytest.raises(ValueError, match="have different classes"):
        prepare("boxes", tmp_path, str(tmp_path / "folder"))
    shutil.rmtree(tmp_path / "folder" / "val")
    with pytest.raises(FileNotFoundError, match="has no directory validation or val or valid or test"):
        prepare("boxes", tmp_path, str(tmp_path / "folder"))
    with pytest.raises(ValueError, match="scikit-learn provides only digits"):
        prepare("boxes", tmp_path, "scikit-learn")
    with pytest.raises(ValueError, match=r"unknown data set 'digit' \(did you mean 'digits'\?\)"):
        prepare("digit", tmp_path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "raw").mkdir()
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"img": [b"x"], "label": [0]}), tmp_path / "raw" / f"{split}.parquet")
    with pytest.raises(ValueError, match="has the columns img, label; boxes needs 'image'"):
        prepare("boxes", tmp_path, str(tmp_path / "raw"))
    (tmp_path / "raw" / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read"):
        prepare("boxes", tmp_path, str(tmp_path / "raw"))


def test_a_full_disk_is_one_error_and_leaves_no_file(
    tmp_path: Path, boxes_raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BetonWriter, "append", full)
    with pytest.raises(OSError, match="no space left on the disk"):
        prepare("boxes", tmp_path, str(boxes_raw), RAW)
    assert leftovers(tmp_path / "boxes") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(OSError, match=r"0 MB free; digits needs 2 MB"):
        prepare("digits", tmp_path)


def test_concurrent_preparations_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "digits").mkdir()
    with FileLock(tmp_path / "digits" / ".lock"), pytest.raises(ValueError, match="another process is preparing"):
        prepare("digits", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proportion": 1.5}, "--proportion is 1.5"),
        ({"quality": 0}, "--quality is 0"),
        ({"max_resolution": -1}, "--max-resolution is -1"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageOptions(**options)


def run_tool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.long
def test_the_command(tmp_path: Path) -> None:
    done = run_tool("digits", "--out", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "digits train: 1297 images" in done.stdout
    assert done.stderr == ""  # no bar without a terminal
    assert json.loads((tmp_path / "data" / "digits" / "train.json").read_text())["num_samples"] == 1297
    quiet = run_tool("digits", "--out", "data", "--overwrite", "--verbosity", "quiet", cwd=tmp_path)
    assert quiet.returncode == 0 and quiet.stderr == "" and quiet.stdout == done.stdout
    assert done.stdout.endswith("recipes/aws_digits.py\n")
    again = run_tool("digits", "--out", "data", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.startswith("digits is already prepared in data/digits")
    assert again.stdout.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--quality", "80"], "storage options do not apply"),
        (["digits", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["imagenet", "--source", "./missing"], "./missing is neither a directory"),
        (["digits", "--num-workers", "0"], "--num-workers is 0"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_tool(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
