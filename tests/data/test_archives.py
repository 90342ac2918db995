"""Test the preparation of the original archives of CIFAR, Tiny-ImageNet and ImageNet.

Images and labels are correct, every layout gives the same content, and damaged or malicious archives are refused.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import open_data
from harness.data.ffcv.beton import read_raw, read_sizes
from harness.data.prepare import ImageOptions, prepare
from tests.data.archive_files import (
    WNIDS,
    ImageNetFiles,
    add,
    cifar10_archive,
    cifar100_archive,
    cifar100_files,
    cifar_records,
    jpeg,
    tar_of,
    tiny_imagenet_files,
    tiny_imagenet_zip,
    write_tree,
)
from tests.data.photo_files import photo_crops

LABEL_FILES = (
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
    "valprep.sh",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val_annotations.txt",
)


sample = partial(prepare, allow_missing_classes=True)
"""Prepare small archives, which have images of few classes."""


def prepared(name: str, out: Path, source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prepare a data set. Return images (NHWC, uint8) and labels of each split."""
    sample(name, out, str(source))
    return {split: read_raw(out / name / f"{split}.beton") for split in ("train", "test")}


def digests(name: str, out: Path, source: Path, options: ImageOptions | None = None) -> list[str]:
    return [manifest.content_digest for manifest in sample(name, out, str(source), options)]


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    return np.stack(photo_crops(25, 32, 32))


# CIFAR


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar100_has_the_fine_labels(tmp_path: Path, small: np.ndarray, unpacked: bool) -> None:
    if unpacked:
        source = write_tree(tmp_path, cifar100_files(small[:20], small[20:])) / "cifar-100-binary"
    else:
        source = cifar100_archive(tmp_path / "cifar-100-binary.tar.gz", small[:20], small[20:])
    splits = prepared("cifar100", tmp_path, source)
    for split, images in (("train", small[:20]), ("test", small[20:])):
        assert (splits[split][0] == images).all()
        assert splits[split][1].tolist() == [7 * n % 100 for n in range(len(images))]


def test_cifar10_joins_its_five_training_files(tmp_path: Path, small: np.ndarray) -> None:
    archive = cifar10_archive(tmp_path / "cifar-10-binary.tar.gz", small[:20], small[20:])
    splits = prepared("cifar10", tmp_path, archive)
    assert (splits["train"][0] == small[:20]).all()
    assert splits["train"][1].tolist() == [n for n in range(1, 6) for _ in range(4)]
    assert (splits["test"][0] == small[20:]).all()


def test_cifar100_from_the_hub_has_the_same_content(tmp_path: Path, small: np.ndarray) -> None:
    """Compare the digests of the hub's format and the archive.

    The Hugging Face hub has other columns, and images as PNG.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    names = {"fine_label": [f"fine{n}" for n in range(100)], "coarse_label": [f"coarse{n}" for n in range(20)]}
    features = Features({"img": ImageFeature(), **{name: ClassLabel(names=values) for name, values in names.items()}})
    (tmp_path / "hub").mkdir()
    for split, images in (("train", small[:20]), ("test", small[20:])):
        rows = {
            "img": [Image.fromarray(image) for image in images],
            "fine_label": [7 * n % 100 for n in range(len(images))],
            "coarse_label": [n % 20 for n in range(len(images))],
        }
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hub" / f"{split}-00000-of-00001.parquet"))
    archive = cifar100_archive(tmp_path / "cifar-100-binary.tar.gz", small[:20], small[20:])
    assert digests("cifar100", tmp_path / "a", archive) == digests("cifar100", tmp_path / "b", tmp_path / "hub")


class Explosive:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_the_pickled_cifar_is_refused_and_never_loaded(tmp_path: Path, name: str, unpacked: bool) -> None:
    directory, members = {
        "cifar10": ("cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch", "batches.meta"]),
        "cifar100": ("cifar-100-python", ["train", "test", "meta", "file.txt~"]),
    }[name]
    bomb = pickle.dumps(Explosive(tmp_path / "exploded"))
    files = {f"{directory}/{member}": bomb for member in members}
    if unpacked:
        source = write_tree(tmp_path, files) / directory
    else:
        source = tmp_path / "python.tar.gz"
        source.write_bytes(tar_of(files.items(), "w:gz"))
    binary = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}[name]
    with pytest.raises(ValueError, match=rf"Python version, which is pickled; .* run any code.*{binary}"):
        sample(name, tmp_path / "out", str(source))
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_foreign_cifar_archives_are_refused(tmp_path: Path, small: np.ndarray) -> None:
    # Phase: archives of another data set
    home = tmp_path / "downloads"
    home.mkdir()
    whole = cifar100_archive(home / "whole.tar.gz", small[:20], small[20:])
    with pytest.raises(ValueError, match=r"has no cifar-10-batches-bin/data_batch_1\.bin.* it has cifar-100-binary/"):
        sample("cifar10", tmp_path / "out", str(whole))
    with pytest.raises(ValueError, match=r"whole\.tar\.gz is a source of CIFAR; digits needs another --source"):
        sample("digits", tmp_path / "out", str(whole))
    # Phase: truncated archives and members
    cut = home / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cut\.tar\.gz cannot be read: .*; download it again"):
        sample("cifar100", tmp_path / "out", str(cut))
    files = cifar100_files(small[:20], small[20:])
    files["cifar-100-binary/train.bin"] = files["cifar-100-binary/train.bin"][:-1]
    cut.write_bytes(tar_of(files.items(), "w:gz"))
    with pytest.raises(ValueError, match=r"train\.bin has 61479 bytes, not a multiple of 3074-byte records"):
        sample("cifar100", tmp_path / "out", str(cut))
    # Phase: files that are no archive, and a directory that contains an archive
    cut.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"cut\.tar\.gz cannot be read"):
        sample("cifar100", tmp_path / "out", str(cut))
    odd = home / "cifar.rar"
    odd.write_bytes(b"")
    with pytest.raises(ValueError, match=r"unknown format; .* \.tar\.gz"):
        sample("cifar100", tmp_path / "out", str(odd))
    with pytest.raises(ValueError, match=r"to use its cut\.tar\.gz, pass --source .*cut\.tar\.gz"):
        sample("cifar100", tmp_path / "out", str(home))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_an_archive_are_not_followed(tmp_path: Path, small: np.ndarray, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(cifar_records(small, range(25), range(25)))
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("cifar-100-binary/train.bin")
        entry.type, entry.linkname = kind, str(secret)
        tar.addfile(entry)
    with pytest.raises(ValueError, match=r"cifar-100-binary/train\.bin is a link, or not a regular file of CIFAR"):
        sample("cifar100", tmp_path / "out", str(archive))


def test_no_file_is_written_outside_the_output(tmp_path: Path, small: np.ndarray) -> None:
    """Check that malicious member names write no file.

    Names contain `..` or an absolute path. Archives are read without unpacking.
    """
    archive = tmp_path / "deep" / "cifar.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../../escaped", "/tmp/escaped-from-cifar", "../cifar-100-binary/train.bin"):
            add(tar, name, b"x" * 3074)
        for name, content in cifar100_files(small[:20], small[20:]).items():
            add(tar, f"./{name}", content)
    splits = prepared("cifar100", tmp_path / "out", archive)
    assert (splits["train"][0] == small[:20]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "out"]
    assert [path.name for path in archive.parent.iterdir()] == ["cifar.tar.gz"]
    assert not Path("/tmp/escaped-from-cifar").exists()


# Tiny-ImageNet


@pytest.fixture(scope="module")
def tiny() -> dict[str, bytes]:
    crops = photo_crops(20, 64, 64)
    return tiny_imagenet_files(crops[:13], crops[13:])


def test_tiny_imagenet_zip(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    splits = prepared("tiny_imagenet", tmp_path, tiny_imagenet_zip(tmp_path / "tiny-imagenet-200.zip", tiny))
    for split, names in (("train", [n for n in tiny if n.startswith("train/") and n.endswith("JPEG")]), ("test", None)):
        if names is None:
            names = [n for n in tiny if n.startswith("val/images/")]
            wnids = dict(line.split("\t")[:2] for line in tiny["val/val_annotations.txt"].decode().splitlines())
            classes = {name: wnids[name.rsplit("/", 1)[1]] for name in names}
        else:
            classes = {name: name.split("/")[1] for name in names}
        names.sort(key=lambda name: (classes[name], name))
        images, labels = splits[split]
        assert labels.tolist() == [WNIDS.index(classes[name]) for name in names]
        for image, name in zip(images, names, strict=True):
            assert (image == np.asarray(Image.open(io.BytesIO(tiny[name])).convert("RGB"))).all()
    gray = [image for image in splits["train"][0] if (image == image[..., :1]).all()]
    assert len(gray) == 4  # every third of 13 images, from the second on


def test_tiny_imagenet_has_equal_content_in_every_layout(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    """Compare the zip, its directory, and an image folder.

    The image folder has validation images sorted by class.
    """
    archive = tiny_imagenet_zip(tmp_path / "tiny.zip", dict(reversed(tiny.items())))
    directory = write_tree(tmp_path / "tiny-imagenet-200", tiny)
    folder = {name: content for name, content in tiny.items() if name.startswith("train/")}
    for line in tiny["val/val_annotations.txt"].decode().splitlines():
        name, wnid = line.split("\t")[:2]
        folder[f"val/{wnid}/images/{name}"] = tiny[f"val/images/{name}"]
    found = [
        digests("tiny_imagenet", tmp_path / str(place), source)
        for place, source in enumerate((archive, directory, write_tree(tmp_path / "folder", folder)))
    ]
    assert found[0] == found[1] == found[2]


def test_inconsistent_tiny_imagenets_are_refused(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    def message(changed: dict[str, bytes | None]) -> str:
        files = {name: content for name, content in (tiny | changed).items() if content is not None}
        with pytest.raises(ValueError) as error:
            sample("tiny_imagenet", tmp_path, str(tiny_imagenet_zip(tmp_path / "t.zip", files)), overwrite=True)
        return str(error.value)

    assert "val/images/val_0.JPEG is missing, but" in message({"val/images/val_0.JPEG": None})
    lines = tiny["val/val_annotations.txt"]
    assert "val_6.JPEG has no line in" in message({"val/val_annotations.txt": lines[: lines.rindex(b"val_6")]})
    assert "line 1, has no class" in message({"val/val_annotations.txt": b"val_0.JPEG\tn99\t0\n" + lines})
    assert "train/n09999999, which its wnids.txt does not list" in message({"train/n09999999/images/a.JPEG": b"x"})
    assert "has no wnids.txt" in message({"wnids.txt": None})
    assert "cannot be read as an image" in message({f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG": b"no image"})
    odd = jpeg(photo_crops(1, 32, 64)[0])
    assert "has 32×64 pixels; tiny_imagenet images have 64×64" in message(
        {f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG": odd}
    )


def test_damaged_and_malicious_zips_are_refused(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    path = tiny_imagenet_zip(tmp_path / "t.zip", tiny)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\.zip cannot be read: .*; download it again"):
        sample("tiny_imagenet", tmp_path, str(path))
    # flip one bit inside an image, which the checksum of the zip detects
    place = whole.index(tiny["val/images/val_0.JPEG"]) + 300
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"val_0\.JPEG cannot be read: Bad CRC-32 .*; download it again"):
        sample("tiny_imagenet", tmp_path, str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/readme.txt", b"")
    with pytest.raises(ValueError, match=r"not Tiny-ImageNet's zip: it has no tiny-imagenet-200/val/val_annotations"):
        sample("tiny_imagenet", tmp_path, str(path))
    link = zipfile.ZipInfo(f"tiny-imagenet-200/train/{WNIDS[0]}/images/{WNIDS[0]}_99.JPEG")
    link.external_attr = 0o120777 << 16
    tiny_imagenet_zip(path, tiny)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../../escaped.JPEG", b"x")
    with pytest.raises(ValueError, match=rf"{WNIDS[0]}_99\.JPEG is a link"):
        sample("tiny_imagenet", tmp_path / "out", str(path))
    assert not list(tmp_path.parent.rglob("escaped.JPEG"))


# ImageNet


@pytest.fixture(scope="module")
def imagenet() -> ImageNetFiles:
    crops = photo_crops(22, 120, 160)
    return ImageNetFiles(crops[:13], crops[13:])


KEPT = ImageOptions(write_mode="jpg", keep_jpeg=True)


@pytest.fixture(scope="module")
def sorted_digests(tmp_path_factory: pytest.TempPathFactory, imagenet: ImageNetFiles) -> list[str]:
    """Return the digests of the layout train/<wnid> and val/<wnid>.

    The script `valprep.sh` creates this layout.
    """
    where = tmp_path_factory.mktemp("sorted")
    source = write_tree(where / "raw", imagenet.train_directories() | imagenet.val_directories())
    return digests("imagenet", where, source, KEPT)


@pytest.mark.parametrize("labels", LABEL_FILES)
@pytest.mark.parametrize("layout", ["tars", "directories", "train tar", "val tar"])
def test_imagenet_has_equal_content_in_every_layout(
    tmp_path: Path, imagenet: ImageNetFiles, sorted_digests: list[str], layout: str, labels: str
) -> None:
    train = imagenet.train_tar() if layout in ("tars", "train tar") else imagenet.train_directories()
    val = imagenet.val_tar() if layout in ("tars", "val tar") else imagenet.val_heap()
    source = write_tree(tmp_path / "raw", train | val | imagenet.labels(labels))
    assert digests("imagenet", tmp_path, source, KEPT) == sorted_digests


def test_imagenets_train_tar_beside_sorted_validation_images(
    tmp_path: Path, imagenet: ImageNetFiles, sorted_digests: list[str]
) -> None:
    source = write_tree(tmp_path / "raw", imagenet.train_tar() | imagenet.val_directories())
    assert digests("imagenet", tmp_path, source, KEPT) == sorted_digests


@pytest.mark.long
def test_imagenets_images_and_labels(tmp_path: Path, imagenet: ImageNetFiles) -> None:
    files = imagenet.train_tar() | imagenet.val_tar() | imagenet.labels("ILSVRC2012_devkit_t12.tar.gz")
    sample("imagenet", tmp_path, str(write_tree(tmp_path / "raw", files)), KEPT)
    source = open_data("imagenet", tmp_path, "ffcv")
    labels = {WNIDS.index(wnid): [] for wnid in WNIDS}
    for batch in source.test_loader(batch_size=4, num_workers=1):
        for label, index in zip(batch.labels_N.tolist(), batch.indices_N.tolist(), strict=True):
            labels[label].append(index)
    ordered = sorted(zip(imagenet.wnids, imagenet.val, strict=True))
    assert labels == {
        WNIDS.index(wnid): [n for n, (own, _) in enumerate(ordered) if own == wnid] for wnid in set(imagenet.wnids)
    }
    stored = (tmp_path / "imagenet" / "test.beton").read_bytes()
    places = [stored.index(imagenet.val[name]) for _, name in ordered]
    assert places == sorted(places)
    assert read_sizes(tmp_path / "imagenet" / "train.beton")[0].tolist() == [120] * 13


def test_inconsistent_imagenets_are_refused(tmp_path: Path, imagenet: ImageNetFiles) -> None:
    trees = iter(range(100))

    def message(*files: dict[str, bytes]) -> str:
        source = write_tree(tmp_path / f"raw{next(trees)}", {n: c for part in files for n, c in part.items()})
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            sample("imagenet", tmp_path / "out", str(source), KEPT, overwrite=True)
        return str(error.value)

    # Phase: class lists that are missing or incomplete
    train, val = imagenet.train_directories(), imagenet.val_heap()
    missing = message(train, val)
    assert "no file lists their classes" in missing and all(name in missing for name in LABEL_FILES)
    assert "valprep.sh has no class for ILSVRC2012_val_00000002.JPEG" in message(
        train, val, {"valprep.sh": f"mv ILSVRC2012_val_00000001.JPEG {WNIDS[0]}/\n".encode()}
    )
    assert "lists no image with its wnid" in message(train, val, {"valprep.sh": b"rm -rf /\n"})
    short = {"imagenet_2012_validation_synset_labels.txt": WNIDS[0].encode()}
    assert "has no class for" in message(train, val, short)
    # Phase: splits that disagree or are missing
    two_classes = {name: content for name, content in train.items() if WNIDS[2] not in name}
    assert f"different classes ({WNIDS[2]} in only one)" in message(two_classes, val, imagenet.labels("valprep.sh"))
    assert "neither ILSVRC2012_img_val.tar nor a directory named val" in message(imagenet.train_tar())
    assert "neither ILSVRC2012_img_train.tar nor a directory named train" in message(imagenet.val_tar())
    # Phase: damaged development kit, and one archive instead of the directory
    devkit = imagenet.labels("ILSVRC2012_devkit_t12")
    truth = next(name for name in devkit if name.endswith("ground_truth.txt"))
    assert "do not match" in message(train, val, devkit | {truth: b"1\n77\n"})
    assert "is not the development kit" in message(train, val, {truth: devkit[truth]})
    source = write_tree(tmp_path / "one", imagenet.train_tar()) / "ILSVRC2012_img_train.tar"
    with pytest.raises(ValueError, match="one of ImageNet's archives; pass the directory"):
        sample("imagenet", tmp_path / "out", str(source))


@pytest.mark.parametrize("which", ["train", "val"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_tar_is_named(tmp_path: Path, imagenet: ImageNetFiles, which: str, share: float) -> None:
    files = imagenet.train_tar() | imagenet.val_tar() | imagenet.labels("valprep.sh")
    name = f"ILSVRC2012_img_{which}.tar"
    files[name] = files[name][: int(share * len(files[name]))]
    with pytest.raises(ValueError, match=rf"{name}.*(cannot be read|is truncated).*download it again"):
        sample("imagenet", tmp_path, str(write_tree(tmp_path / "raw", files)), KEPT)


def test_links_in_imagenets_tars_are_refused(tmp_path: Path, imagenet: ImageNetFiles) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    files = imagenet.train_tar() | imagenet.labels("valprep.sh") | {"ILSVRC2012_img_val.tar": buffer.getvalue()}
    with pytest.raises(ValueError, match="ILSVRC2012_val_00000001.JPEG is a link, or not a regular file"):
        sample("imagenet", tmp_path, str(write_tree(tmp_path / "raw", files)), KEPT)


# Fashion-MNIST padded to 32×32 pixels


def test_fashion_mnist_32_is_fashion_mnist_in_a_black_frame(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    for stem, number in (("train", 7), ("t10k", 3)):
        for name, values in (("images-idx3", images[:number]), ("labels-idx1", np.arange(number, dtype=np.uint8))):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (tmp_path / f"{stem}-{name}-ubyte").write_bytes(head + values.tobytes())
    splits = prepared("fashion_mnist_32", tmp_path / "out", tmp_path)
    stored = splits["train"][0]
    assert stored.shape == (7, 32, 32, 3)
    assert (stored[:, 2:30, 2:30] == images[..., None]).all()
    assert stored.astype(int).sum() == 3 * images.astype(int).sum()
    (batch,) = open_data("fashion_mnist_32", tmp_path / "out", "memory").test_loader(batch_size=9)
    assert batch.images_NHWC.shape == (3, 32, 32, 1)
