"""Test each figure's command on every data set and network.

The commands use `--scale smoke` and archives of the original format. Network, image size, optimizer, loader and archive
format are those of the full-size command. Images, batch size, epochs and levels are few.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checkpoint import Checkpoint
from harness.models import classifier_of
from harness.reproduction.figure import FIGURES, Figure
from tests.recipes.launching import elsewhere, recipe

USED_ON = {"cifar100": "tiny_imagenet", "tiny_imagenet": "cifar100"}
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}
GEM_MINERS = [83.4, 66.15]  # published accuracy in % at densities 0.0372 and 0.0059

# accuracy in % from Tables 1 and 2: dense, then the signed mask of AWS at the first and the last density
PRINTED = {
    "resnet50": (75.26, 74.65, 73.65),
    "mobilenet_v2": (69.42, 68.66, 66.02),
    "mlp_mixer": (59.57, 59.17, 58.62),
}
SHOWN: dict[tuple[str, str], list[tuple[Figure, int | None]]] = {}
"""The figures and network widths for each data set and network."""
for figure in FIGURES.values():
    for dataset, networks in figure.subjects.items():
        for network in networks:
            figures = SHOWN.setdefault((dataset, network), [])
            figures += [(figure, width) for width in figure.widths or (None,)]
CASES = [
    pytest.param(subject, figure, width, id="-".join([figure.name, *subject, *([str(width)] if width else [])]))
    for subject, figures in SHOWN.items()
    for figure, width in figures
]


@pytest.fixture(scope="module")
def subject(request, full_size: Path, tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """Yield a data set, a network and their working directory.

    All figures of this data set and network share the runs there.
    """
    dataset, network = request.param
    where = elsewhere(full_size, tmp_path_factory.mktemp(f"{dataset}-{network}"))
    yield dataset, network, where
    shutil.rmtree(where / "runs")  # frees gigabytes


def directories(where: Path, runs: dict[str, dict[str, str]]) -> list[Path]:
    """Return the directories of the runs in results.json."""
    return [next((where / "runs").glob(f"*-{run['key'][:16]}")) for run in runs.values()]


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "figure", "width"), CASES, indirect=["subject"])
def test_full_size_figure(subject: tuple[str, str, Path], figure: Figure, width: int | None):
    dataset, network, where = subject
    options = ["--dataset", dataset, "--network", network, *(["--width", str(width)] if width else [])]
    options += ["--scale", "smoke", "--offline", "--num-workers", "1"]
    printed = recipe(where, "reproduce.py", figure.name, *options, processes=1)
    out = where / f"results/{figure.name}-{dataset}-{network}{f'-w{width}' if width else ''}"
    page, results = (out / "page.md").read_text(), json.loads((out / "results.json").read_text())
    assert page.split("## Runs")[0] in printed
    used_on = USED_ON[dataset] if figure.transfers else dataset
    on = f"{dataset}, used on {used_on}" if figure.transfers else dataset
    assert figure.title in page and f"\n{network}{f' (width {width})' if width else ''} on {on}; " in page
    assert "Not finished" not in page and "not a reproduction" in page
    assert (out / "figure.png").exists() and ("(b) " in page) == bool(results["barriers"])
    _check_all_that_the_figure_shows(figure, results)
    _check_the_papers_numbers(network, results, page)
    trained = directories(where, results["runs"])
    for directory in trained + directories(where, results["barriers"]):
        record = json.loads((directory / "record.json").read_text())
        search = record["config"]["search"]
        assert (record["tags"]["data"], search["model"]) == (used_on, {"name": network, "width": width})
        assert search["data"]["loader"] == "ffcv"
    for directory in trained:
        params = Checkpoint.load(directory / "checkpoint.safetensors").params
        assert len(params[f"{classifier_of(network)}.weight"]) == CLASSES[used_on]


def _check_all_that_the_figure_shows(figure: Figure, results: dict) -> None:
    """Check that the results have every curve and every comparison."""
    assert results["missing"] == []
    assert [(point["curve"], point["level"]) for point in results["points"]] == [
        ("dense", 0),
        # 5 epochs: one of warm-up, one for each of two levels, two in the final training
        *([("dense, 5 epochs", 0)] if figure.dense_at_ticket_cost else []),
        *((str(curve), level) for curve in figure.curves for level in (1, 2)),
    ]
    assert results["barriers"].keys() == {
        *(f"stability-{curve.method}-L02-{curve.kind}-t1" for curve in figure.stability),
        *(f"lmc-{curve.method}-L02-{curve.kind}-t1" for curve in figure.connectivity),
        *(f"norm_init-{method}-L02-level-t1" for method in figure.initial_norm),
        *(f"signed_init-{method}-L02-level-t1" for method in figure.signed_init),
    }
    assert all(len(curve["error_percent"]) == 11 for curve in results["barriers"].values())
    assert [len(claim["by_density"]) for claim in results["claims"]] == [2] * len(figure.claims)


def _check_the_papers_numbers(network: str, results: dict, page: str) -> None:
    """Check the paper's numbers next to ours.

    A table has one for every point, a figure has none.
    """
    paper = {(point["curve"], point["level"]): point["paper"] for point in results["points"] if not point["length"]}
    if results["figure"] == "gem_miner":
        assert [paper[place]["mean"] for place in paper if paper[place]] == GEM_MINERS and "| 66.15 |" in page
        return
    if not results["figure"].startswith("table"):
        says = "prints no numbers" if FIGURES[results["figure"]].source else "does not show this"
        assert not any(paper.values()) and says in page
        return
    assert all(paper.values())
    places = [("dense", 0), ("signed_mask (aws)", 1), ("signed_mask (aws)", 2)]
    assert tuple(paper[place]["mean"] for place in places) == PRINTED[network]
    assert all(f"| {mean:.2f} | " in page for mean in PRINTED[network])
