"""Test the one line about an optional library that is not installed, and everything that works without any."""

from __future__ import annotations

import os
import subprocess
import sys
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
    assert text.startswith("this feature needs ") and text.endswith(f"; run: pip install 'signed-tickets[{EXTRAS[library]}]'")
    assert explained(caught.value) == text

    # An import without `require` is explained, too.
    with pytest.raises(ModuleNotFoundError) as plain:
        __import__(library)
    assert f"signed-tickets[{EXTRAS[library]}]" in str(explained(plain.value))


def test_other_import_errors_are_not_explained() -> None:
    assert explained(ModuleNotFoundError("no", name="nothing")) is None
    assert explained(ImportError("libGL.so.1: cannot open shared object file", name="cv2")) is None


MAIN = "from harness.cli.tickets import main\nmain()"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("prepare digits", "data"),
        ("prepare --name mine --source images --size 8", "data"),
        ("search demo --offline --data.directory data", "plots"),
        ("reproduce fig3 --scale smoke --offline", "plots"),
        ("search aws_digits --data.loader ffcv --offline", "ffcv"),
        ("search aws_digits --model.name timm:resnet18 --offline", "networks"),
        ("search aws_digits --model.name mobilenet_v2 --offline", "networks"),
        ("search aws_digits", "mlflow"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(words: str, extra: str, prepared: Path, tmp_path: Path) -> None:
    for folder in ("images/a", "images/b"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(10):
            (tmp_path / folder / f"{number}.png").write_text(f"{folder} {number}")
    (tmp_path / "data").symlink_to(prepared / "data")
    name = words.split()
    if name[0] == "prepare":
        name += ["--out", "elsewhere"]
    line = bare(tmp_path, MAIN, *name, ok=False)
    assert line.startswith("error: ") and f"pip install 'signed-tickets[{extra}]'" in line


@pytest.mark.long
def test_masks_and_the_lineage_of_local_runs_work_without_any_library(prepared: Path, tmp_path: Path) -> None:
    # Phase: a search with the default loader, which says that it is not ffcv.
    (tmp_path / "data").symlink_to(prepared / "data")
    tiny = "--model.name resnet8 --model.width 2 --num-levels 1 --warmup-epochs 1 --level-epochs 1 --final.epochs 1"
    options = ["search", "aws_digits", *tiny.split(), "--global-batch-size", "256", "--offline"]
    printed = bare(tmp_path, "sys.stderr = sys.stdout\n" + MAIN, *options)
    assert printed.count("ffcv is not installed: the memory loader reads digits") == 1
    key = next(line.split()[3] for line in printed.splitlines() if "tickets train --ticket" in line)

    # Phase: the lineage of local runs.
    assert "L01" in bare(tmp_path, MAIN, "lineage", "show", key, "--offline")
    assert "no problem found" in bare(tmp_path, MAIN, "lineage", "verify", "--all", "--offline")

    # Phase: the mask, the checkpoint and the network.
    code = f"""
import torch, signed_tickets
mask = signed_tickets.load_signed_mask({key!r})
model = signed_tickets.load_network({key!r})
optimizer = torch.optim.SGD(model.parameters(), 0.1)
mask.apply_(model)
mask.keep(optimizer)
mask.save("mine.safetensors")
again = signed_tickets.load_signed_mask("mine.safetensors")
assert all(torch.equal(again.signs[name], mask.signs[name]) for name in mask.signs)
assert signed_tickets.load_checkpoint({key!r}).level == 1
print(type(model).__name__)
"""
    assert "Net" in bare(tmp_path, code)
