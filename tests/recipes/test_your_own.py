"""Test the way of docs/how-to-your-own.md: a folder of images and a network of timm, from an empty directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from tests.recipes.launching import LIGHT, nodes, recipe, tool

pytestmark = pytest.mark.long

SHORT = ("--num-levels", "2", "--warmup-epochs", "1", "--level-epochs", "1", "--final.epochs", "1", "--offline")


def test_own_images_and_a_network_of_timm_from_an_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Phase: images of three classes, of any size
    random = np.random.default_rng(0)
    for index in range(120):
        (folder := tmp_path / "pictures" / ("daisy", "rose", "tulip")[index % 3]).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 80, (30 + index % 7, 40, 3), dtype=np.uint8)
        pixels[..., index % 3] += 120
        Image.fromarray(pixels).save(folder / f"{index}.png")

    # Phase: prepare, search, train twice, compare
    said = tool(tmp_path, "prepare_data.py", "--name", "flowers", "--source", "pictures", "--size", "32")
    assert "3 classes: daisy, rose, tulip" in said
    options = ("--data.name", "flowers", "--model.name", "timm:test_efficientnet", "--global-batch-size", "32")
    recipe(tmp_path, "aws_cifar10.py", *LIGHT, *options, *SHORT)
    (ticket,) = (record["key"] for record in nodes(tmp_path, "level").values() if record["config"]["level"] == 2)
    for seed in ("1", "2"):
        recipe(tmp_path, "train_ticket.py", "--ticket", ticket[:8], "--sgd-seed", seed, "--offline")
    pair = [record["key"] for record in nodes(tmp_path, "training").values()]
    few = ("--bn-images", "64", "--num-alphas", "3", "--offline")
    assert "barrier" in tool(tmp_path, "stability.py", *pair, *few)

    # Phase: load and verify
    assert "no problem found" in tool(tmp_path, "lineage.py", "verify", "--all", "--offline")
    monkeypatch.chdir(tmp_path)
    assert harness.load_network(pair[0]).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert harness.load_signed_mask(ticket).density == pytest.approx(0.64, abs=1e-3)
