"""Test the way of docs/how-to-your-own.md: a folder of images and a network of timm, from an empty directory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from tests.recipes.launching import LIGHT, REPOSITORY, nodes, recipe, run, tool

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


NET = """
from torch import nn

def build(num_classes, channels, image_size):
    body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
DATA = """
import numpy as np

def build(split):
    images = np.random.default_rng(split == "test").integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    return [(image, index % 3) for index, image in enumerate(images)]
"""


@pytest.mark.slow
def test_files_of_a_network_and_of_data_are_trusted_by_the_user_who_named_them(tmp_path: Path) -> None:
    # Phase: name both files, and search with two processes
    for name, text in (("net.py", NET), ("mine.py", DATA)):
        (tmp_path / name).write_text(text)
    mine, other = ({"XDG_STATE_HOME": str(tmp_path / state)} for state in ("mine", "other"))
    run(tmp_path, sys.executable, str(REPOSITORY / "tools/prepare_data.py"), *OWN_FILE, **mine)
    options = ("--data.name", "mine", "--data.loader", "torch", "--model.name", "net.py:build")
    recipe(tmp_path, "aws_cifar10.py", *options, "--global-batch-size", "32", *SHORT, processes=2, **mine)
    (ticket,) = (record["key"] for record in nodes(tmp_path, "level").values() if record["config"]["level"] == 2)

    # Phase: another user, whom the copy at the recorded path does not convince
    train = ("train_ticket.py", "--ticket", ticket[:8], "--offline")
    error = recipe(tmp_path, *train, ok=False, **other)
    assert "net.py" in error and "network.py, then give --trust-code" in error
    error = recipe(tmp_path, "aws_cifar10.py", *options, *SHORT, processes=2, ok=False, **other)
    assert "the data set mine is made by mine.py" in error and "source.py, then give --trust-code" in error
    recipe(tmp_path, *train, "--trust-code", processes=2, **other)

    # Phase: the same user, after both files have gone
    for name in ("net.py", "mine.py"):
        (tmp_path / name).unlink()
    recipe(tmp_path, *train, "--init-seed", "3", processes=2, **mine)
    verify = (sys.executable, str(REPOSITORY / "tools/lineage.py"), "verify", "--all", "--offline")
    assert "no problem found" in run(tmp_path, *verify, **mine)


OWN_FILE = ("--name", "mine", "--source", "mine.py:build", "--size", "16")
