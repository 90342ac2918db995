"""Test the harness without the optional packages Accelerate, MLflow, FFCV and datasets."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.recipes.launching import REPOSITORY, TINY, elsewhere, nodes, run

pytestmark = pytest.mark.long


LACKING = ("accelerate", "datasets", "ffcv", "mlflow")
OFFLINE = ("--loader", "memory", "--offline")


@pytest.fixture
def bare(pristine, tmp_path) -> Path:
    """Return a working directory in which these packages cannot be imported."""
    where = elsewhere(pristine[0], tmp_path)
    # with None in sys.modules, importing a package raises ImportError and find_spec returns None
    (where / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n")
    return where


def plain(where: Path, *scripts: list[str], ok: bool = True, **environment: str) -> str:
    """Run scripts one after another in one Python process, without a launcher."""
    run_all = "import json, runpy, sys\nfor sys.argv in json.loads(sys.argv[1]):"
    run_all += "\n runpy.run_path(sys.argv[0], None, '__main__')"
    lines = json.dumps([[str(REPOSITORY / name), *options] for name, *options in scripts])
    return run(where, sys.executable, "-c", run_all, lines, ok=ok, PYTHONPATH=f"{where}:{REPOSITORY}", **environment)


def test_search_training_and_analysis_need_pytorch_alone_and_give_the_same_bits(pristine, bare):
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        run(bare, sys.executable, "-c", "import accelerate", PYTHONPATH=str(bare))
    ours = nodes(pristine[0], "level")
    ticket = max(ours.values(), key=lambda record: int(record["tags"]["level"]))["key"]
    search = ["recipes/aws_digits.py", *TINY, "--data.loader", "memory", "--offline"]
    train = ["recipes/train_ticket.py", "--ticket", ticket, "--kind", "signed_mask", *OFFLINE]
    plain(bare, search, train)
    theirs = nodes(bare, "level")
    assert len(theirs) == 3
    for name, record in theirs.items():
        assert record["key"] == ours[name]["key"]
        for file in ("checkpoint.safetensors", "signed_mask.safetensors"):
            assert record["files"][file] == ours[name]["files"][file]
    (trained,) = nodes(bare, "training").values()
    curve = json.loads(plain(bare, ["tools/lmc.py", trained["key"], ticket, *OFFLINE, "--json"]))
    assert len(curve["alphas"]) == 11


def test_several_processes_need_accelerate(bare):
    error = plain(bare, ["recipes/aws_digits.py", *TINY], ok=False, WORLD_SIZE="2")
    assert re.search(r"^error: a launch of several processes needs accelerate, .*pip install", error, re.M)
