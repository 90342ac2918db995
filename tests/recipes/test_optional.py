"""Test the one line about an optional library that is not installed, and everything that works without any."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.common.optional import EXTRAS, MissingLibraryError, explained, require

REPOSITORY = Path(__file__).resolve().parents[2]
BARE = f"import sys\nsys.modules.update(dict.fromkeys({[*EXTRAS]}))\n"
"""With None in sys.modules, an import raises ModuleNotFoundError, and find_spec returns None."""


def bare(where: Path, code: str, *words: str, ok: bool = True) -> str:
    """Run code in a process without optional libraries. Return its output, or its last line of error."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE + code, *words]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr.strip().splitlines()[-1]


def without(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if a library were not installed."""
    monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize("library", sorted(EXTRAS))
def test_the_message_is_one_line_with_the_command(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(library, monkeypatch)
    with pytest.raises(MissingLibraryError) as caught:
        require(library, "this feature")
    text = str(caught.value)
    assert text.startswith("this feature needs ") and text.endswith(
        f"; run: pip install 'signed-tickets[{EXTRAS[library]}]'"
    )
    assert explained(caught.value) == text

    # An import without `require` is explained, too.
    with pytest.raises(ModuleNotFoundError) as plain:
        __import__(library)
    assert f"signed-tickets[{EXTRAS[library]}]" in str(explained(plain.value))


def test_each_extra_brings_its_libraries() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = {"PIL": "pillow", "cv2": "opencv-python", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn"}
    others["requests"] = "mlflow"  # which requires it
    for library, extra in EXTRAS.items():
        brought = [re.split(r"[<>=\[]", requirement)[0] for requirement in extras[extra]]
        assert others.get(library, library) in brought, library


def test_other_import_errors_are_not_explained() -> None:
    assert explained(ModuleNotFoundError("no", name="nothing")) is None
    assert explained(ImportError("libGL.so.1: cannot open shared object file", name="cv2")) is None


@pytest.mark.parametrize(("network", "library"), [("mobilenet_v2", "torchvision"), ("resnet50", "torchvision")])
def test_a_network_names_the_extra_that_it_needs(
    network: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.lineage.recorded_network import read_model

    without(library, monkeypatch)
    spec = {"num_classes": 10, "channels": 3, "image_size": 32}
    (tmp_path / "determinants.json").write_text(json.dumps({"model": {"name": network, "width": None}, "spec": spec}))
    with pytest.raises(ValueError, match=rf"^{network} needs {library}, .* pip install 'signed-tickets\[networks\]'$"):
        read_model(tmp_path / "determinants.json", lambda name: tmp_path / name)


MAIN = "from harness.cli.tickets import main\nmain()"
NEEDS = {
    "prepare digits --out elsewhere": "data",
    "prepare --name mine --source images --size 8 --out elsewhere": "data",
    "search demo --offline": "plots",
    "reproduce fig3 --scale smoke --offline": "plots",
    "report fig3 --scale smoke --offline": "plots",
    "search aws_digits --data.loader ffcv --offline": "ffcv",
    "search aws_digits --model.name timm:resnet18 --offline": "networks",
    "search aws_digits --model.name mobilenet_v2 --offline": "networks",
}
"""Command → the extra that it needs."""
EACH = """
import contextlib, io, json
from harness.cli.tickets import main
told = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.suppress(SystemExit):
        main(line.split())
    told[line] = error.getvalue()
print(json.dumps(told))
"""


@pytest.mark.long
def test_a_command_names_the_extra_that_it_needs(prepared: Path, tmp_path: Path) -> None:
    # Phase: run all commands in one process, because importing torch takes seconds.
    for folder in ("images/a", "images/b"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(10):
            (tmp_path / folder / f"{number}.png").write_text(f"{folder} {number}")
    (tmp_path / "data").symlink_to(prepared / "data")
    told = json.loads(bare(tmp_path, EACH, json.dumps([*NEEDS])).splitlines()[-1])

    # Phase: each ends with one line of error.
    for command, extra in NEEDS.items():
        *_, line = told[command].splitlines()
        assert line.startswith("error: ") and f"pip install 'signed-tickets[{extra}]'" in line, told[command]


@pytest.mark.long
def test_masks_and_the_lineage_of_local_runs_work_without_any_library(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(prepared / "data")
    told = bare(tmp_path, STORY).splitlines()
    assert told[-1] == "done", told


STORY = """
import contextlib, io, torch
from harness.cli.tickets import main

def tickets(line):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        with contextlib.suppress(SystemExit):
            main(line.split())
    return out.getvalue()

# Phase: a search with the default loader, which says that it is not ffcv.
tiny = "--model.name resnet8 --model.width 2 --num-levels 1 --warmup-epochs 1 --level-epochs 1 --final.epochs 1"
printed = tickets(f"search aws_digits {tiny} --global-batch-size 256 --offline")
assert printed.count("ffcv is not installed: the memory loader reads digits") == 1, printed
key = next(line.split()[3] for line in printed.splitlines() if "tickets train --ticket" in line)

# Phase: the lineage of local runs.
assert "L01" in tickets(f"lineage show {key} --offline")
assert "no problem found" in tickets("lineage verify --all --offline")
assert "pip install 'signed-tickets[mlflow]'" in tickets("lineage sync")

# Phase: the mask, the checkpoint and the network.
import signed_tickets
mask = signed_tickets.load_signed_mask(key)
model = signed_tickets.load_network(key)
mask.apply_(model)
mask.keep(torch.optim.SGD(model.parameters(), 0.1))
mask.save("mine.safetensors")
again = signed_tickets.load_signed_mask("mine.safetensors")
assert all(torch.equal(again.signs[name], mask.signs[name]) for name in mask.signs)
assert signed_tickets.load_checkpoint(key).level == 1

# Phase: one's own loop, logged.
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
pruner = signed_tickets.SignPruner(model, method="aws", classifier="2", seed=1)
for level in pruner.levels(densities=[0.5]):
    optimizer = pruner.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pruner.step():
        torch.nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(2, (16,))).backward()
    optimizer.step()
    logged = pruner.log(name="mine")
assert signed_tickets.load_signed_mask(logged).density == 0.5
print("done")
"""
