"""Test each recipe's full-size command on a few images from archives of the original format.

Network, image size and optimizer are those of the command. Only the number of images, the batch size and the epochs are
small, so each level has one or two steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.launching import elsewhere, nodes, recipe, run_ids

pytestmark = pytest.mark.long


SMALL_NETWORKS = ("resnet50_cifar", "mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")
FEW = ["--warmup-epochs", "1", "--level-epochs", "1", "--num-levels", "1", "--final.epochs", "1"]
LIGHT = ["--global-batch-size", "4", "--data.num-workers", "1"]
FEW += LIGHT


def slow(*values: str):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("aws_cifar100.py", "mobilenet_v2_cifar"),
        ("aws_imagenet.py", "mobilenet_v2"),
        *(
            slow("aws_cifar100.py", network)
            for network in (*SMALL_NETWORKS, "resnet32", "vgg11_bn_cifar")
            if network != "mobilenet_v2_cifar"
        ),
        *(slow("aws_tiny_imagenet.py", n) for n in SMALL_NETWORKS),
        *(slow("aws_imagenet.py", network) for network in ("resnet50", "mlp_mixer", "mlp_mixer_wide")),
    ],
)
def test_full_size_command(full_size: Path, tmp_path: Path, name: str, network: str):
    where = elsewhere(full_size, tmp_path)
    output = recipe(where, name, "--network", network, *FEW, "--offline")
    assert "   1   0.8000 " in output
    levels = nodes(where, "level")
    assert len(levels) == 2
    search = next(iter(levels.values()))["config"]["search"]
    assert search["model"] == {"name": network, "width": None}
    assert run_ids(output) == []  # offline: no MLflow run yet


@pytest.mark.slow
def test_gem_miner_by_its_authors_settings_for_cifar10(full_size: Path, tmp_path: Path):
    where = elsewhere(full_size, tmp_path)
    own = ["--method", "gem_miner", "--densities", "0.0372", "0.0144", "0.0059", "--num-levels", "2"]
    own += ["--gem-miner.penalty", "1e-4"]
    few = ["--gem-miner.score-epochs", "2", "--gem-miner.freeze-every-epochs", "1", "--gem-miner.finetune.epochs", "1"]
    few += ["--gem-miner.finetune.lr-milestones-epochs", "1", *LIGHT, "--offline"]
    recipe(where, "aws_cifar10.py", *own, *few, processes=1)
    scores, tuned = sorted(nodes(where, "level").values(), key=lambda record: record["started_ms"])
    assert scores["config"]["optim"]["weight_decay"] == 2e-4 and tuned["config"]["optim"]["weight_decay"] == 1e-4
    assert float(tuned["tags"]["density"]) == pytest.approx(0.0144, abs=1e-4)


@pytest.mark.slow
def test_a_full_size_ticket_is_trained(full_size: Path, tmp_path: Path):
    """Train a ticket of MobileNetV2 on Tiny-ImageNet with the in-memory loader."""
    where = elsewhere(full_size, tmp_path)
    options = ["--network", "mobilenet_v2_cifar", *FEW, "--data.loader", "memory", "--offline"]
    output = recipe(where, "aws_tiny_imagenet.py", *options, processes=1)
    ticket = output.split("--ticket ")[1].split()[0]
    trained = recipe(where, "train_ticket.py", "--ticket", ticket, "--offline", processes=1)
    assert "test error" in trained
