"""Test the reading of ImageNet-like data: crop boxes, resizing, flips, JPEG and raw storage."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from harness.common.seeds import SgdNoise
from harness.data import open_data
from harness.data.augment import center_crop, flips, resized_crop_box
from harness.data.prepare import ImageOptions, prepare
from tests.data.photo_files import BOXES, image_folder, photo_crops

pytestmark = pytest.mark.long  # compiles FFCV's kernels

NOISE = SgdNoise(5, ("final",))
SIZE = BOXES.image_size


def originals(root: Path, split: str) -> list[np.ndarray]:
    """Return the images in the order of preparation: by class, then by name."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted((root / split).rglob("*.*"))]


def expected(pixels: np.ndarray, box: tuple[int, int, int, int], flip: bool) -> np.ndarray:
    top, left, height, width = box
    crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    resized = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return resized[:, ::-1] if flip else resized


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [1, 2])
def test_pixels_are_those_of_the_keyed_box(boxes_directory: Path, boxes_raw: Path, num_workers: int) -> None:
    """Compare with an independent resize of the keyed boxes.

    The reference uses the OpenCV wheel, while FFCV uses another build. Pixels may differ by ±1 through rounding.
    """
    pixels, key = originals(boxes_raw, "train"), NOISE.key("augment", 2)
    train = open_data("boxes", boxes_directory, "ffcv").train_loader(global_batch_size=16, num_workers=num_workers)
    seen = 0
    for images, _, indices in train.epoch(NOISE, 2):
        assert images.shape == (16, SIZE, SIZE, 3)
        for image, index, flip in zip(images.numpy(), indices.tolist(), flips(key, indices.numpy()), strict=True):
            height, width = pixels[index].shape[:2]
            box = resized_crop_box(key, index, height, width, BOXES.augmentation.scale, BOXES.augmentation.ratio)
            difference = np.abs(image.astype(int) - expected(pixels[index], box, flip))
            assert difference.max() <= 1
            seen += 1
    assert seen == 32


def test_evaluation_sees_the_centre(boxes_directory: Path, boxes_raw: Path) -> None:
    pixels = originals(boxes_raw, "val")
    for images, labels, indices in open_data("boxes", boxes_directory, "ffcv").test_loader(batch_size=3, num_workers=2):
        for image, label, index in zip(images.numpy(), labels.tolist(), indices.tolist(), strict=True):
            box = center_crop(*pixels[index].shape[:2], SIZE, BOXES.augmentation.test_resize)
            assert np.abs(image.astype(int) - expected(pixels[index], box, False)).max() <= 1
            assert label == index // 4  # four validation images per class, in order


def test_same_boxes_from_one_and_two_ranks_and_after_a_resume(boxes_directory: Path) -> None:
    source = open_data("boxes", boxes_directory, "ffcv")
    whole = list(source.train_loader(global_batch_size=8, num_workers=2).epoch(NOISE, 0))
    pair = [
        list(
            source.train_loader(global_batch_size=8, rank=rank, world_size=2, num_workers=1).epoch(
                NOISE, 0, skip_steps=1
            )
        )
        for rank in range(2)
    ]
    for step, (first, second) in enumerate(zip(*pair, strict=True), start=1):
        assert torch.equal(whole[step].images_NHWC, torch.cat([first.images_NHWC, second.images_NHWC]))


def test_jpeg_storage_changes_pixels_slightly_and_boxes_not_at_all(
    boxes_directory: Path, boxes_raw: Path, tmp_path: Path
) -> None:
    prepare("boxes", tmp_path, str(boxes_raw), ImageOptions(write_mode="jpg", quality=95))
    raw, jpg = (
        next(open_data("boxes", directory, "ffcv").train_loader(global_batch_size=32, num_workers=2).epoch(NOISE, 0))
        for directory in (boxes_directory, tmp_path)
    )
    assert torch.equal(raw.indices_N, jpg.indices_N)
    difference = (raw.images_NHWC.float() - jpg.images_NHWC.float()).abs().flatten(1).mean(1)
    assert 0 < difference.mean() < 5
    assert difference.max() < 12  # another box or a missing flip would differ by about 50


def test_a_stock_ffcv_loader_reads_our_files(boxes_raw: Path, tmp_path: Path) -> None:
    import ffcv
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
    from ffcv.transforms import ToTensor

    prepare("boxes", tmp_path, str(boxes_raw), ImageOptions(write_mode="proportion"))
    stock = ffcv.Loader(
        str(tmp_path / "boxes" / "test.beton"),
        batch_size=8,
        num_workers=1,
        drop_last=False,
        pipelines={
            "image": [CenterCropRGBImageDecoder((SIZE, SIZE), SIZE / BOXES.augmentation.test_resize), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    images, labels = next(iter(stock))
    ours = next(iter(open_data("boxes", tmp_path, "ffcv").test_loader(batch_size=8, num_workers=1)))
    assert torch.equal(images, ours.images_NHWC)
    assert torch.equal(labels[:, 0], ours.labels_N)


def test_data_sets_of_varying_image_size_are_refused_in_memory(boxes_directory: Path) -> None:
    with pytest.raises(ValueError, match="boxes .* use the ffcv loader"):
        open_data("boxes", boxes_directory, "memory")


@pytest.mark.long
def test_full_size_images_are_loaded_as_224(tmp_path: Path) -> None:
    """Prepare `imagenet` from JPEG files above the resolution limit."""
    raw = image_folder(tmp_path / "raw", photo_crops(6, 420, 640), 2, 2, ".jpg")
    prepare("imagenet", tmp_path / "data", str(raw), ImageOptions(max_resolution=300), allow_missing_classes=True)
    source = open_data("imagenet", tmp_path / "data", "ffcv")
    batch = next(source.train_loader(global_batch_size=4, num_workers=2).epoch(NOISE, 0))
    assert batch.images_NHWC.shape == (4, 224, 224, 3)
    assert batch.images_NHWC.float().std() > 20
