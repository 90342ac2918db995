"""Test data sets that a user's Python file makes: what it may return, its errors, and when it is executed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.data import DataSource, open_data, spec_of
from harness.data.own import OwnOptions, own_spec
from harness.data.prepare import prepare
from harness.data.spec import FileTransforms
from harness.data.torch_loader import seeded
from tests.data.photo_files import image_folder, photo_crops

SIZE = OwnOptions(size=16)
NOISE = SgdNoise(4, ("search", 1))
PIXELS = """
import numpy as np
import torch
from PIL import Image

class Pixels:
    def __init__(self, split):
        generator = np.random.default_rng(split == "test")
        self.images = generator.integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        {body}

def build(split):
    return Pixels(split)
"""
NO_LENGTH = """class Data:
    def __len__(self):
        return 1 // 0
    __getitem__ = None
build = lambda split: Data()
"""
NO_TEXT = """import numpy as np
class Data(list):
    classes = ["a", "\\udcff"]
build = lambda split: Data([(np.full((4, 4, 3), 9 * index, np.uint8), index % 2) for index in range(4)])
"""
PLAIN = "return self.images[index], index % 3"


def written(root: Path, body: str = PLAIN, transforms: str = "") -> str:
    """Write a user's file, and return it as a source.

    Args:
        root: Its directory.
        body: Body of __getitem__.
        transforms: Body of transforms(split, size). "": the file has none.
    """
    root.mkdir(exist_ok=True)
    text = PIXELS.replace("{body}", body)
    (root / "mine.py").write_text(text + (f"\ndef transforms(split, size):\n    {transforms}\n" if transforms else ""))
    return f"{root / 'mine.py'}:build"


def first_batch(source: DataSource, workers: int = 1) -> torch.Tensor:
    return next(source.train_loader(global_batch_size=8, num_workers=workers).epoch(NOISE, 0)).images_NHWC


def test_without_transforms_the_batches_are_those_of_stored_images(tmp_path: Path) -> None:
    raw = image_folder(tmp_path / "raw", [photo_crops(n + 1, 20, 20 + n % 5)[-1] for n in range(40)], 8, 2, ".png")
    prepare("stored", tmp_path / "data", str(raw), own=SIZE)
    file = tmp_path / "mine.py"
    file.write_text(
        "from torchvision.datasets import ImageFolder\n"
        f"build = lambda split: ImageFolder({str(raw)!r} + ('/train' if split == 'train' else '/val'))\n"
    )
    prepare("mine", tmp_path / "data", f"{file}:build", own=SIZE)
    stored, mine = open_data("stored", tmp_path / "data", "memory"), open_data("mine", tmp_path / "data", "torch")
    assert mine.spec.raw.class_names == ("class0", "class1")
    assert (mine.spec.mean, mine.spec.std) == (stored.spec.mean, stored.spec.std)
    for augment in (True, False):
        streams = [
            source.train_loader(global_batch_size=8).epoch(NOISE, 2, augment=augment) for source in (stored, mine)
        ]
        for left, right in zip(*streams, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "body",
    [
        "return Image.fromarray(self.images[index]), index % 3",
        "return torch.from_numpy(self.images[index]).permute(2, 0, 1), index % 3",
        "return self.images[index], np.int64(index % 3)",
        "return self.images[index], torch.tensor(index % 3)",
    ],
)
def test_images_and_labels_of_every_kind(tmp_path: Path, body: str) -> None:
    """All forms of the same images have equal samples. The digests of the files differ."""
    prepare("mine", tmp_path / "data", written(tmp_path / "a"), own=SIZE)
    prepare("mine", tmp_path / "other", written(tmp_path / "b", body), own=SIZE)
    a, b = (open_data("mine", tmp_path / name, "torch") for name in ("data", "other"))
    assert torch.equal(first_batch(a), first_batch(b))
    files = [(tmp_path / name / "mine" / "train.samples.safetensors").read_bytes() for name in ("data", "other")]
    assert files[0] == files[1] and a.content_digest != b.content_digest


def test_gray_images(tmp_path: Path) -> None:
    body = "return torch.from_numpy(self.images[index][:, :, 0])[None], index % 3"
    prepare("mine", tmp_path / "data", written(tmp_path, body), own=OwnOptions(size=16, channels=1))
    assert first_batch(open_data("mine", tmp_path / "data", "torch")).shape == (8, 16, 16, 1)
    with pytest.raises(ValueError, match="sample 0 of mine train is in colour; give --channels 3"):
        prepare("mine", tmp_path / "other", written(tmp_path), own=OwnOptions(size=16, channels=1))


def test_transforms_are_in_the_key(tmp_path: Path) -> None:
    body = "from torchvision.transforms import v2; return v2.Compose([v2.ToImage(), v2.RandomCrop(size)])"
    source = written(tmp_path, transforms=body.replace("RandomCrop", "CenterCrop"))
    prepare("mine", tmp_path / "data", source, own=SIZE)
    spec = open_data("mine", tmp_path / "data", "torch").spec
    assert isinstance(spec.augmentation, FileTransforms) and spec == spec_of("mine", tmp_path / "data")
    assert len(spec.augmentation.sha256) == 64 and spec.augmentation.torchvision[0].isdigit()
    assert "torchvision" not in (tmp_path / "data" / "mine" / "spec.json").read_text()
    with pytest.raises(ValueError, match="mine.py has transforms; leave out --augmentation"):
        prepare("mine", tmp_path / "other", source, own=OwnOptions(size=16, padding=1))


@pytest.mark.parametrize(
    ("body", "transforms", "message"),
    [
        (
            "return self.images[index] + np.uint8(1 // (index - 5) * 0), 0",
            "",
            r"sample 5 of mine train: .*mine.py, line 15: ZeroDivisionError: integer",
        ),
        ("return self.images[index]", "", r"sample 0 .*ValueError: too many values to unpack"),
        (
            "return self.images[index] / 255, 0",
            "",
            r"dataset gave float64; .*leave out ToDtype, ToTensor and Normalize",
        ),
        ("return self.images[index, ..., :2], 0", "", r"shape \(20, 20, 2\); it must be \(H, W, C\), C = 1 or 3"),
        ("return self.images[index], 'a'", "", "has label 'a'; it must be an integer"),
        ("return self.images[index], -1", "", "has label -1"),
        ("return self.images[index], 0", "", r"has 1 classes \(0\); a classifier needs at least two"),
        ("return self.images[index], 2 * (index % 2)", "", "has no samples of 1 of 3 classes: 1; labels are 0 to 2"),
        ("return Image.fromarray(self.images[index]).convert('I'), 0", "", r"sample 0 .*cannot be read: 32-bit pixels"),
        ("return torch.zeros(3, 4, 4, dtype=torch.uint8, device='meta'), 0", "", "gave an image on meta; leave it on"),
        ("return torch.zeros(3, 4, 4, requires_grad=True), 0", "", "dataset gave torch.float32; .*leave out ToDtype"),
        ("raise SystemExit(3)", "", r"sample 0 of mine train: .*mine.py, line 15: SystemExit: 3"),
        ("return self.images[index], 2**40", "", "has label 1099511627776; it must be an integer from 0 to 1,048,575"),
        (PLAIN, "return lambda image: image", "transforms gave 20×20 pixels; they must be 16×16"),
        (PLAIN, "return None", r"transforms\('train', 16\) of .*mine.py returned a NoneType, no function"),
        (
            PLAIN,
            "return lambda image: image.nothing",
            r"mine.py, line \d+: AttributeError: 'numpy.ndarray' object has no",
        ),
        (PLAIN, "return 1 / 0", r"mine.py, line \d+: ZeroDivisionError: .*called as transforms\('train', 16\)"),
        (
            "return np.random.randint(0, 9, (20, 20, 3)).astype(np.uint8), index % 3",
            "",
            r"its dataset draws random numbers. Move them to transforms\(split, size\)",
        ),
        (
            PLAIN,
            "own = np.random.default_rng(); return lambda i: own.integers(0, 9, (16, 16, 3)).astype(np.uint8)",
            "must draw from torch, numpy.random or random, without generators of their own",
        ),
    ],
)
def test_errors_of_a_file_are_one_line(tmp_path: Path, body: str, transforms: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        prepare("mine", tmp_path / "data", written(tmp_path, body, transforms), own=SIZE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "mine" / "train.json").exists()


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("build = 1", "mine.py:build", "no function 'build'; it has none"),
        ("def make(split): ...", "mine.py:build", "it has make"),
        ("def build(split): return []", "mine.py:build", "has no samples"),
        (NO_LENGTH, "mine.py:build", "returned a dataset without a length: .*mine.py, line 3: ZeroDivisionError"),
        (NO_TEXT, "mine.py:build", r"the name of the class \\udcff is no text in UTF-8; rename it"),
        ("def build(split): return 3", "mine.py:build", "returned a int; it must return a map-style dataset"),
        ("def build(", "mine.py:build", r"mine.py, line 1: SyntaxError"),
        ("import helper_beside_it", "mine.py:build", "but not the files beside it"),
        ("", "other.py:build", "other.py cannot be read: No such file"),
    ],
)
def test_files_that_make_no_data_set(tmp_path: Path, text: str, source: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare("mine", tmp_path / "data", str(tmp_path / source), own=SIZE)


# ------------------------------------------------------------------------------------- when the file is executed


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return the directory of a prepared data set, whose file leaves a mark each time it is executed."""
    source = written(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write('x')\n{file.read_text()}")
    prepare("mine", tmp_path / "data", source, own=SIZE)
    (tmp_path / "executed").unlink()
    return tmp_path / "data"


def test_reading_the_specification_and_preparing_again_execute_nothing(made: Path) -> None:
    assert spec_of("mine", made).num_classes == 3
    assert [manifest.num_samples for manifest in prepare("mine", made)] == [24, 24]
    for loader in ("memory", "ffcv"):
        with pytest.raises(ValueError, match="use --data.loader torch"):
            open_data("mine", made, loader)
    # Phase: a damaged split is made again only if the user names the file
    (made / "mine" / "test.json").unlink()
    with pytest.raises(ValueError, match="a file is executed only if you name it; give --source .*mine.py:build again"):
        prepare("mine", made, own=SIZE)
    assert not (made.parent / "executed").exists()
    prepare("mine", made, str(made.parent / "mine.py") + ":build", own=SIZE)
    assert (made.parent / "executed").exists()


@pytest.mark.parametrize("name", ["source.py", "spec.json", "train.samples.safetensors"])
def test_altered_files_are_found_at_opening(made: Path, name: str) -> None:
    path = made / "mine" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} was altered"):
        open_data("mine", made, "torch")


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_changed_are_found_when_they_are_read(tmp_path: Path, workers: int) -> None:
    pixels = tmp_path / "pixels.npy"
    np.save(pixels, np.full((20, 20, 3), 7, np.uint8))
    body = f"self.images[index, 0, 0] = np.load({str(pixels)!r})[0, 0]; return self.images[index].copy(), index % 3"
    prepare("mine", tmp_path / "data", written(tmp_path, body), own=SIZE)
    source = open_data("mine", tmp_path / "data", "torch")
    first_batch(source, workers)
    np.save(pixels, np.full((20, 20, 3), 8, np.uint8))
    with pytest.raises(ValueError, match=r"^sample \d+ of mine train has changed since mine was prepared"):
        first_batch(source, workers)


def test_a_dataset_of_another_length_is_refused(tmp_path: Path) -> None:
    length = tmp_path / "length"
    length.write_text("24")
    file = Path(written(tmp_path).removesuffix(":build"))
    file.write_text(file.read_text().replace("return len(self.images)", f"return int(open({str(length)!r}).read())"))
    prepare("mine", tmp_path / "data", f"{file}:build", own=SIZE)
    length.write_text("23")
    with pytest.raises(ValueError, match=r"has 23 samples, but .*train.samples.safetensors has 24"):
        first_batch(open_data("mine", tmp_path / "data", "torch"))


def test_sets_without_stored_images_of_one_size_need_another_loader(boxes_directory: Path) -> None:
    with pytest.raises(ValueError, match="which the torch loader reads only by a file of yours"):
        open_data("boxes", boxes_directory, "torch")


# ------------------------------------------------------------------------------------------------ seeds


def _drawn() -> tuple[Any, ...]:
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_seeds_depend_on_key_and_index_and_leave_no_trace() -> None:
    before = _drawn()
    states = torch.get_rng_state(), random.getstate()
    found = {}
    for key, index in ((None, 0), (None, 1), (0, 0), (0, 1), (2**64 - 1, 0), (2**64 - 1, 1)):
        with seeded(key, index):
            found[key, index] = _drawn()
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    for position in range(3):
        assert len({str(values[position]) for values in found.values()}) == len(found)
    with seeded(0, 1):
        assert _drawn() == found[0, 1] != before
    with pytest.raises(RuntimeError), seeded(0, 1):
        raise RuntimeError
    assert torch.equal(states[0], torch.get_rng_state())


def test_training_draws_the_same_with_and_without_the_loader(made: Path) -> None:
    """The loader must not consume torch's generator, from which dropout draws."""
    source = open_data("mine", made, "torch")
    torch.manual_seed(3)
    expected = torch.rand(4)
    for workers in (1, 2):
        torch.manual_seed(3)
        first_batch(source, workers)
        assert torch.equal(torch.rand(4), expected)


def test_a_specification_of_a_file_is_read_strictly(made: Path) -> None:
    from harness.data.manifest import Manifest

    home = made / "mine"
    manifests = {split: Manifest.load(home / f"{split}.json") for split in ("train", "test")}
    assert own_spec(home, manifests).image_size == 16
    shutil.rmtree(home)
    with pytest.raises(ValueError, match="spec.json is missing"):
        own_spec(home, manifests)
