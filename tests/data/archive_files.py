"""Write small archives in the formats of CIFAR, Tiny-ImageNet and ImageNet."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02105855")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def tar_of(files: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """Return the bytes of a tar with these (name, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files:
            add(archive, name, content)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def cifar_records(images_NHWC: np.ndarray, *label_columns: Iterable[int]) -> bytes:
    """Return CIFAR's binary records: the label bytes, then the red, green and blue planes."""
    columns = [np.asarray(list(labels), np.uint8)[:, None] for labels in label_columns]
    planes = images_NHWC.transpose(0, 3, 1, 2).reshape(len(images_NHWC), -1)
    return np.concatenate([*columns, planes], 1).tobytes()


def cifar10_archive(path: Path, train: np.ndarray, test: np.ndarray) -> Path:
    """Write cifar-10-binary.tar.gz with its files in reverse order.

    All images of training file n have class n. Test image i has class i.
    """
    parts = np.array_split(train, 5)
    files = {f"data_batch_{n}.bin": cifar_records(part, [n] * len(part)) for n, part in enumerate(parts, start=1)}
    files["test_batch.bin"] = cifar_records(test, range(len(test)))
    files["batches.meta.txt"] = b"airplane\n"
    shuffled = [(f"cifar-10-batches-bin/{name}", files[name]) for name in sorted(files, reverse=True)]
    path.write_bytes(tar_of(shuffled, "w:gz"))
    return path


def cifar100_files(train: np.ndarray, test: np.ndarray) -> dict[str, bytes]:
    """Return the files of cifar-100-binary.tar.gz, by name.

    Image i has fine label 7·i mod 100 and coarse label i mod 20.
    """
    files = {"fine_label_names.txt": b"apple\n", "coarse_label_names.txt": b"aquatic_mammals\n"}
    for name, images in (("train.bin", train), ("test.bin", test)):
        numbers = range(len(images))
        files[name] = cifar_records(images, [n % 20 for n in numbers], [7 * n % 100 for n in numbers])
    return {f"cifar-100-binary/{name}": content for name, content in files.items()}


def cifar100_archive(path: Path, train: np.ndarray, test: np.ndarray) -> Path:
    path.write_bytes(tar_of(cifar100_files(train, test).items(), "w:gz"))
    return path


def tiny_imagenet_files(train: list[np.ndarray], val: list[np.ndarray]) -> dict[str, bytes]:
    """Return the files of tiny-imagenet-200.zip, by name.

    Image i has class i mod 3. Some images are gray, as in the real data set.
    """
    files = {
        "wnids.txt": "\n".join(reversed(WNIDS)).encode() + b"\n",  # not sorted, as in the real file
        "words.txt": b"n01440764\ttench\n",
        "test/images/test_0.JPEG": jpeg(train[0]),
    }
    annotations = ""
    for index, pixels in enumerate(train):
        wnid = WNIDS[index % 3]
        files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = jpeg(pixels, "L" if index % 3 == 1 else "RGB")
        files.setdefault(f"train/{wnid}/{wnid}_boxes.txt", b"")
    for index, pixels in enumerate(val):
        files[f"val/images/val_{index}.JPEG"] = jpeg(pixels, "L" if index % 2 else "RGB")
        annotations += f"val_{index}.JPEG\t{WNIDS[index % 3]}\t0\t32\t44\t62\n"
    files["val/val_annotations.txt"] = annotations.encode()
    return files


def tiny_imagenet_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/", b"")
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


class ImageNetFiles:
    """Files of a tiny ImageNet, with all formats of validation labels."""

    def __init__(self, train: list[np.ndarray], val: list[np.ndarray]) -> None:
        self.train = {
            wnid: {f"{wnid}_{index}.JPEG": jpeg(train[index]) for index in range(place, len(train), 3)}
            for place, wnid in enumerate(WNIDS)
        }
        self.val = {f"ILSVRC2012_val_{index + 1:08}.JPEG": jpeg(pixels) for index, pixels in enumerate(val)}
        self.wnids = [WNIDS[(2 * index + 1) % 3] for index in range(len(val))]

    def labels(self, how: str) -> dict[str, bytes]:
        """Return the files that list the class of each validation image.

        Args:
            how: Name of the file, archive or directory, which selects the format.
        """
        pairs = list(zip(self.val, self.wnids, strict=True))
        if how in ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz"):
            files = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in self._devkit().items()}
            return files if how.endswith("t12") else {how: tar_of(files.items(), "w:gz")}
        text = {
            "val_annotations.txt": "".join(f"{name}\t{wnid}\t0\t0\n" for name, wnid in pairs),
            "valprep.sh": "#!/bin/bash\n"
            + "".join(f"mkdir -p {wnid}\n" for wnid in WNIDS)
            + "".join(f"mv {name} {wnid}/\n" for name, wnid in pairs),
            "LOC_val_solution.csv": "ImageId,PredictionString\n"
            + "".join(f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for name, wnid in pairs),
            "imagenet_2012_validation_synset_labels.txt": "".join(f"{wnid}\n" for wnid in self.wnids),
        }[how]
        return {how: text.encode()}

    def _devkit(self) -> dict[str, bytes]:
        """Return the data files of the development kit, as MATLAB writes them.

        Class IDs do not follow the order of the WNIDs. Inner nodes of the hierarchy come after the leaves.
        """
        from scipy.io import savemat

        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
        numbers = {WNIDS[2]: 1, WNIDS[0]: 2, WNIDS[1]: 3}
        rows = [(number, wnid, "a word", "a gloss", 0) for wnid, number in numbers.items()]
        synsets = np.array([*rows, (1001, "n00001740", "entity", "all", 3)], dtype=kind)[:, None]
        buffer = io.BytesIO()
        savemat(buffer, {"synsets": synsets})
        truth = "".join(f"{numbers[wnid]}\n" for wnid in self.wnids)
        return {"meta.mat": buffer.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}

    def train_tar(self) -> dict[str, bytes]:
        inner = ((f"{wnid}.tar", tar_of(reversed(files.items()))) for wnid, files in self.train.items())
        return {"ILSVRC2012_img_train.tar": tar_of(inner)}

    def val_tar(self) -> dict[str, bytes]:
        return {"ILSVRC2012_img_val.tar": tar_of(reversed(self.val.items()))}

    def train_directories(self) -> dict[str, bytes]:
        return {
            f"train/{wnid}/{name}": content for wnid, files in self.train.items() for name, content in files.items()
        }

    def val_heap(self) -> dict[str, bytes]:
        return {f"val/{name}": content for name, content in self.val.items()}

    def val_directories(self) -> dict[str, bytes]:
        return {f"val/{wnid}/{name}": self.val[name] for name, wnid in zip(self.val, self.wnids, strict=True)}
