"""Test that the recipes have the paper's settings for each network."""

from __future__ import annotations

import ast
import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.commands import parse_network
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule
from harness.models import MODELS
from recipes.presets.paper import CIFAR100, TINY_IMAGENET, cifar10, cifar100, imagenet, tiny_imagenet

SMALL = dict.fromkeys(("resnet50_cifar", "shufflenet_cifar", "efficientnet_b0_cifar"), 0.1) | {
    "mobilenet_v2_cifar": 0.05
}


def test_cifar100_and_tiny_imagenet_as_in_section_4_1():
    presets = ((cifar100, "cifar100", CIFAR100), (tiny_imagenet, "tiny_imagenet", TINY_IMAGENET))
    for preset, data, learning_rates in presets:
        assert SMALL.items() <= learning_rates.items()
        for network, lr in learning_rates.items():
            config = preset(network)
            assert (config.data.name, config.model.name) == (data, network) and network in MODELS
            assert config.optim == OptimConfig("sgd", lr=lr, momentum=0.9, weight_decay=5e-4)
            assert (config.warmup_epochs, config.level_epochs, config.num_levels) == (10, 10, 15)
            assert (config.final, config.global_batch_size) == (Schedule(100, "step"), 128)
            assert round(0.8**config.num_levels, 3) == 0.035


def test_cifar10_has_the_settings_of_cifar100():
    like = cifar100("resnet32")
    assert cifar10() == replace(like, data=DataConfig("cifar10"), model=ModelConfig("resnet20"))


@pytest.mark.parametrize(
    ("network", "optim", "batch", "final"),
    [
        ("resnet50", OptimConfig("adam", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-5), 256, 120),
        ("mobilenet_v2", OptimConfig("sgd", lr=0.05, momentum=0.9, weight_decay=5e-5), 256, 120),
        ("mlp_mixer", OptimConfig("adam", lr=1e-3, betas=(0.9, 0.999), weight_decay=5e-5), 512, 200),
    ],
)
def test_imagenet_as_in_section_4_1(network, optim, batch, final):
    config = imagenet(network)
    assert (config.model.name, config.optim, config.global_batch_size) == (network, optim, batch)
    assert (config.warmup_epochs, config.level_epochs, config.num_levels) == (20, 5, 10)
    assert config.final == Schedule(final, "cosine")


PRESETS = [cifar100(network) for network in CIFAR100]


def test_the_network_option_selects_and_prints_its_settings(capfd):
    assert parse_network("", PRESETS, []) == cifar100("resnet50_cifar")
    chosen = parse_network("", PRESETS, ["--num-levels", "3", "--network", "mobilenet_v2_cifar"])
    assert (chosen.model.name, chosen.optim.lr, chosen.num_levels) == ("mobilenet_v2_cifar", 0.05, 3)
    assert "settings: mobilenet_v2_cifar, sgd, lr 0.05, weight decay 0.0005, batch 128," in capfd.readouterr().err
    changed = parse_network("", PRESETS, ["--network", "mobilenet_v2_cifar", "--optim.lr", "0.2"])
    assert changed.optim.lr == 0.2


def test_both_names_of_the_network_option_select_settings_or_warn(capfd):
    assert parse_network("", PRESETS, ["--model.name", "mobilenet_v2_cifar"]).optim.lr == 0.05
    with pytest.raises(ValueError, match=r"unknown network 'mobilenet_v2_cfar' \(did you mean 'mobilenet_v2_cifar'"):
        parse_network("", PRESETS, ["--network", "mobilenet_v2_cfar"])
    for option in ("--network", "--model.name"):
        assert parse_network("", PRESETS, [option, "vit_tiny"]).optim.lr == 0.1
        assert "no settings for vit_tiny; it uses those of resnet50_cifar" in capfd.readouterr().err
    with pytest.raises(ValueError, match="--network resnet32 and --model.name vit_tiny differ"):
        parse_network("", PRESETS, ["--network", "resnet32", "--model.name=vit_tiny"])
    with pytest.raises(SystemExit):
        parse_network("", PRESETS, ["--net", "resnet32"])
    with pytest.raises(SystemExit):
        parse_network("", PRESETS, ["--help"])
    told = " ".join(capfd.readouterr().out.split())
    assert all(name in told for name in CIFAR100)


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_recipe_has_its_launch_line_and_imports_no_other(path: Path):
    recipe = importlib.import_module(f"recipes.{path.stem}")
    home = "tools" if path.stem in ("report", "selfcheck") else "recipes"  # a file of tools/ runs it
    assert f"python {home}/{path.name}" in recipe.__doc__
    assert _imported_recipes(path.read_text()) <= {"recipes.presets", "recipes.checks"}


def _imported_recipes(source: str) -> set[str]:
    """Return the modules of `recipes` that the source imports.

    It finds every form of import.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    firsts = {name.removeprefix("recipes.").split(".")[0] for name in names}
    return {f"recipes.{path.stem}" for path in RECIPES.iterdir() if path.stem in firsts}


@pytest.mark.parametrize(
    "line", ["from recipes.demo import main", "from recipes import demo", "import recipes.demo", "import demo"]
)
def test_an_import_of_another_recipe_is_found(line: str):
    assert _imported_recipes(line) == {"recipes.demo"}
