"""Test the public names of `import harness`.

Each has an example in its docstring and in docs/python.md. All examples are executed.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from tests.warm import REPOSITORY, warm

# Prepare the digits in the working directory, and configure a search small enough for an example.
PRELUDE = """
import doctest, sys
from pathlib import Path
import torch
import harness
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.data.prepare import prepare

def small(**changes):
    changes |= {"model": ModelConfig("resnet8", width=2), "final": Schedule(1, "step"), "num_levels": 2}
    return SearchConfig(**changes | {"warmup_epochs": 1, "level_epochs": 1, "global_batch_size": 256}, offline=True)

prepare("digits", Path("data"))
config = small(data=DataConfig("digits", loader="memory"), optim=OptimConfig())
"""

DOCSTRINGS = """
with harness.launch(config) as experiment:
    run_id = harness.search(experiment).ticket.key
globals_ = {"harness": harness, "torch": torch, "config": config, "run_id": run_id}
runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
for name in sorted(harness.__all__):
    public = getattr(harness, name)
    finder = doctest.DocTestFinder(recurse=name != "lineage")
    tests = finder.find(public, name, globs=dict(globals_))
    found = [test for test in tests if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        runner.run(test)
sys.exit(bool(runner.summarize().failed))
"""


def test_every_public_name_is_typed_and_documented() -> None:
    for name in set(harness.__all__) - {"lineage"}:
        public = getattr(harness, name)
        assert public.__doc__ and "Example" in public.__doc__, name
        if inspect.isfunction(public):
            hints = inspect.signature(public)
            assert hints.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values()), name
    assert harness.lineage.__doc__
    with pytest.raises(AttributeError, match="public names"):
        _ = harness.nothing_of_this_name


@pytest.mark.long
def test_the_examples_of_the_docstrings_run(tmp_path: Path) -> None:
    done = warm(tmp_path, "-c", PRELUDE + DOCSTRINGS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_the_examples_of_the_python_page_run(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    first, *others = blocks
    assert len(first.strip().splitlines()) <= 12, "a search and a final training must fit in twelve lines"
    # the settings on the page take minutes: use a smaller network and fewer epochs
    first = re.sub(
        r"^config = SearchConfig\(.*\)$", "config = small(data=data, optim=OptimConfig(lr=0.1))", first, flags=re.M
    )
    assert "config = small(" in first
    others = [block for block in others if "\ndef " not in block]
    script = [sys.executable, "-c", "\n".join([PRELUDE, first, *others])]  # a new interpreter, as for a user
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "level" in done.stdout and "search" in done.stdout
    assert all(name in text for name in harness.__all__)
