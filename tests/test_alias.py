"""Test that `signed_tickets` is another name of `harness`: one module for both names."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
import signed_tickets
from harness.masks import mask

REPOSITORY = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    """Run code in a process of its own and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["masks", "masks.mask", "data.spec", "lineage.nodes.record", "config", "cli.parser"])
def test_each_module_exists_once(name: str) -> None:
    alias = importlib.import_module(f"signed_tickets.{name}")
    assert alias is importlib.import_module(f"harness.{name}")
    assert alias.__name__ == f"harness.{name}" and alias.__spec__ is not None
    assert alias.__spec__.name == f"harness.{name}"


@pytest.mark.parametrize("name", sorted(harness.__all__))
def test_public_names_are_the_same_objects(name: str) -> None:
    assert getattr(signed_tickets, name) is getattr(harness, name)
    assert name in dir(signed_tickets) and name in dir(harness)


def test_the_ways_to_import() -> None:
    assert signed_tickets.__all__ == harness.__all__ and signed_tickets.__version__ == harness.__version__
    from signed_tickets.masks.mask import SignedMask

    from signed_tickets import load_signed_mask, masks

    assert load_signed_mask is harness.load_signed_mask and SignedMask is mask.SignedMask and masks is harness.masks
    for statement in ("import signed_tickets.nothing", "from signed_tickets import nothing"):
        with pytest.raises(ImportError, match="nothing"):
            exec(statement)
    with pytest.raises(AttributeError, match="'signed_tickets' has no attribute 'nothing'; public names: Mask"):
        signed_tickets.nothing  # noqa: B018
    assert importlib.util.find_spec("signed_tickets.nothing") is None
    finder = next(one for one in sys.meta_path if type(one).__module__ == "signed_tickets")
    for name in ("masks", "masks.mask"):
        alias, real = finder.find_spec(f"signed_tickets.{name}"), importlib.util.find_spec(f"harness.{name}")
        assert alias is not None and real is not None and alias.origin == real.origin
        assert alias.submodule_search_locations == real.submodule_search_locations
        assert alias.has_location == real.has_location
    assert inspect.getsource(importlib.import_module("signed_tickets.masks.mask")) == inspect.getsource(mask)
    listed = {module.name for module in pkgutil.iter_modules(signed_tickets.__path__, "signed_tickets.")}
    assert {"signed_tickets.masks", "signed_tickets.lineage", "signed_tickets.checkpoint"} <= listed


@pytest.mark.long
@pytest.mark.parametrize(
    "code",
    [
        "import signed_tickets.masks.mask as a, harness.masks.mask as b; assert a is b",
        "import harness.masks.mask as a, signed_tickets.masks.mask as b; assert a is b",
        # reload keeps the module of both names, also that of the alias package
        "import importlib, sys, signed_tickets.config.parts as a; import harness.config.parts as b; "
        "assert importlib.reload(a) is b and importlib.reload(b) is a; "
        "importlib.reload(sys.modules['signed_tickets']); import signed_tickets.config as c, harness.config as d; "
        "assert c is d; assert [type(one).__name__ for one in sys.meta_path].count('_Finder') == 1",
        "import pickle, harness.config as h, signed_tickets.config as s; "
        "assert pickle.loads(pickle.dumps(s.ModelConfig('a'))) == h.ModelConfig('a')",
        "import sys, signed_tickets; assert 'torch' not in sys.modules",
        "import runpy, sys; sys.argv = ['x', '--version']; "
        "runpy.run_module('signed_tickets.cli.tickets', None, '__main__')",
    ],
)
def test_in_a_new_process(code: str) -> None:
    python(code)


@pytest.mark.long
def test_another_package_called_harness_is_reported(tmp_path: Path) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("__all__ = []\n__version__ = '9'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "try: import signed_tickets\nexcept ImportError as error: print(error)"
    assert f"but Python imports that of {tmp_path}" in python(code)
