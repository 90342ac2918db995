"""Each recipe's full-size command goes through: original archives, real shapes, its optimizer, a step or two a level.

Only the number of images, batch size and epochs are small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from launching import REPOSITORY, nodes, recipe, run_ids, tool

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))

from archive_files import ImageNetFiles, cifar100_archive, tiny_imagenet_files, tiny_imagenet_zip, write_tree  # noqa: E402
from photo_files import photo_crops  # noqa: E402

SMALL_NETWORKS = ("resnet50_cifar", "mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")
FEW = ["--warmup-epochs", "1", "--level-epochs", "1", "--num-levels", "1", "--final.epochs", "1"]
FEW += ["--global-batch-size", "4", "--data.num-workers", "1"]


@pytest.fixture(scope="module")
def where(tmp_path_factory) -> Path:
    """A directory with 4 + 3 images of each data set, prepared from its own archives."""
    import numpy as np

    home = tmp_path_factory.mktemp("full_size")
    small, tiny, large = (photo_crops(7, *size) for size in ((32, 32), (64, 64), (375, 500)))
    archive = cifar100_archive(home / "cifar-100-binary.tar.gz", np.stack(small[:4]), np.stack(small[4:]))
    tool(home, "prepare_data.py", "cifar100", "--source", archive.name, "--out", "data")
    archive = tiny_imagenet_zip(home / "tiny-imagenet-200.zip", tiny_imagenet_files(tiny[:4], tiny[4:]))
    tool(home, "prepare_data.py", "tiny_imagenet", "--source", archive.name, "--out", "data")
    files = ImageNetFiles(large[:4], large[4:])
    everything = files.train_tar() | files.val_tar() | files.labels("ILSVRC2012_devkit_t12.tar.gz")
    write_tree(home / "imagenet", everything)
    tool(home, "prepare_data.py", "imagenet", "--source", "./imagenet", "--out", "data")
    return home


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
def test_full_size_command(where, name, network):
    runs = f"runs-{name}-{network}"
    output = recipe(where, name, "--network", network, *FEW, "--runs", runs, "--offline")
    assert "   1   0.8000 " in output
    (where / "runs").unlink(missing_ok=True)
    (where / "runs").symlink_to(where / runs)
    levels = nodes(where, "level")
    assert len(levels) == 2
    search = next(iter(levels.values()))["config"]["search"]
    assert search["model"] == {"name": network, "width": None}
    assert run_ids(output) == []  # offline: none in MLflow yet


@pytest.mark.slow
def test_a_full_size_ticket_is_trained(where):
    """The final training of a MobileNetV2 on Tiny-ImageNet, from the in-memory loader."""
    options = ["--network", "mobilenet_v2_cifar", *FEW, "--data.loader", "memory", "--runs", "runs-ticket", "--offline"]
    output = recipe(where, "aws_tiny_imagenet.py", *options)
    ticket = output.split("--ticket ")[1].split()[0]
    trained = recipe(where, "train_ticket.py", "--ticket", ticket, "--runs", "runs-ticket", "--offline")
    assert "test error" in trained
