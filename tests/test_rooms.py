"""Who may know whom: the imports of `harness` against the table of rooms."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Data flows one way. A room is a top-level file or folder of harness; it may import the rooms named here, itself and
# nothing else of the harness. Models know no data, pruning no training, training and analysis no lineage.
_NETWORK = {"common", "config", "models", "masks", "checkpoint"}
_RUN = _NETWORK | {"data", "pruning", "distributed", "training", "lineage"}
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "config": set(),
    "distributed": {"common", "config"},
    "data": {"common", "config"},
    "models": {"common", "config"},  # θ_init is a function of its seed
    "masks": {"common", "config"},
    "checkpoint": {"common", "masks"},
    "pruning": _NETWORK,
    "training": _NETWORK | {"data", "pruning", "distributed"},
    # What it records it proves: masks against pruning, starts against θ_init and ticket, data against their manifest.
    "lineage": _NETWORK | {"data", "pruning"},
    "analysis": _NETWORK | {"data", "distributed", "training"},
    # Those that put the parts together: one finished run, what a launch does with them, what a user sees.
    "runs": _RUN,
    "experiment": _RUN | {"analysis", "runs"},
    "reproduction": _RUN | {"analysis", "runs", "experiment"},
    "cli": _RUN | {"analysis", "runs", "experiment"},
    # `from harness import load_signed_mask`, on first use; launchers are looked at before torch is loaded.
    "__init__": _RUN | {"experiment", "cli"},
}

# Big or optional libraries, and the only files that may name them, relative to harness/.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "mlflow": ("lineage/tracking/*.py", "lineage/store.py"),
    "ffcv": ("data/ffcv/*.py", "data/prepare*.py"),
    "accelerate": ("distributed/world.py",),
    "rich": ("common/tables.py",),
    "datasets": ("data/*.py",),
    "statsmodels": ("analysis/statistics.py",),
    "psutil": ("common/machine.py", "distributed/launcher_watch.py"),
}

# Those of these files that need their library as soon as they are imported: their classes derive from its own.
EAGER = ("data/ffcv/*.py",)

# Settings are read by people and tools that have no torch loaded.
WITHOUT_TORCH = ("config/*.py", "distributed/__init__.py", "distributed/launcher_watch.py")

# The harness knows no recipe.
ABOVE = {"recipes", "tools", "tests"}


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything `tree`, a module of `package`, imports anywhere in it.

    `from a import b` gives both a and a.b, since b may be a module; annotation-only imports count; so does
    `import_module` of a literal name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(root: Path) -> list[str]:
    """Return one line for each import under `root`/harness that the tables above do not allow."""
    found: set[str] = set()
    for path in sorted((root / "harness").rglob("*.py")):
        file = path.relative_to(root / "harness").as_posix()
        room = file.split("/")[0].removesuffix(".py")
        if room not in ROOMS:
            found.add(f"harness/{file}: room {room!r} has no entry in ROOMS; say there which rooms it may know")
            continue
        package = ".".join(path.relative_to(root).parent.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for line, name in imported_names(tree, package):
            reason = _why_not(file, room, name.split("."))
            if reason:
                found.add(f"harness/{file}:{line}: {reason}")
    return sorted(found)


def _why_not(file: str, room: str, name: list[str]) -> str | None:
    if name[0] in ABOVE:
        return f"the harness knows no {name[0]}"
    if name[0] in LIBRARIES and not any(fnmatch.fnmatch(file, pattern) for pattern in LIBRARIES[name[0]]):
        return f"only {' and '.join(LIBRARIES[name[0]])} may import {name[0]}"
    if name[0] == "torch" and any(fnmatch.fnmatch(file, pattern) for pattern in WITHOUT_TORCH):
        return f"{file} does without torch"
    if name[0] != "harness" or len(name) == 1:
        return None
    other = name[1]
    if other in ROOMS and other != room and other not in ROOMS[room]:
        return f"{room} must not know {other}"
    return None


def test_imports_keep_to_their_rooms() -> None:
    assert violations(REPOSITORY) == []


def test_the_table_has_no_circle() -> None:
    """A room that can be reached from itself would make the one-way flow a fiction."""

    def reachable(room: str) -> set[str]:
        below = set(ROOMS[room])
        for other in ROOMS[room]:
            below |= reachable(other)
        return below

    assert all(room not in reachable(room) for room in ROOMS)  # a circle ends in RecursionError, which fails as well


# The core of pruning: what every method is made of. Methods know it and each other; it knows no method.
PRUNING_CORE = ("__init__", "magnitude", "method")


def method_violations(root: Path) -> list[str]:
    """Return one line for each place outside a method's own file that imports a method or asks for one by its name."""
    methods = {path.stem for path in (root / "harness/pruning").glob("*.py")} - set(PRUNING_CORE)
    found: set[str] = set()
    for path in sorted((root / "harness").rglob("*.py")):
        file = path.relative_to(root / "harness").as_posix()
        is_method = file.startswith("pruning/") and path.stem in methods
        if is_method or file == "pruning/__init__.py":  # the lines of the table that register them
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imported_names(tree, "harness"):
            parts = name.split(".")
            if parts[:2] == ["harness", "pruning"] and parts[2:] and parts[2] in methods:
                found.add(f"harness/{file}:{line}: knows the method {parts[2]}")
        if not file.startswith(("config/", "reproduction/")):  # settings and figures name methods
            asking = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Subscript)]
            words = [word for node in asking for word in ast.walk(node) if isinstance(word, ast.Constant)]
            found |= {
                f"harness/{file}:{word.lineno}: asks for {word.value}"
                for word in words
                if word.value in methods - {"dense"}  # a kind of training, too
            }
    return sorted(found)


def test_the_core_knows_no_method() -> None:
    """Search, trainer, proof and pages ask a method's hooks, and never which method it is."""
    assert method_violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("experiment/search.py", "from harness.pruning.gem_miner import ScoreTraining", "knows the method gem_miner"),
        ("pruning/method.py", "from harness.pruning import wr", "knows the method wr"),
        ("lineage/proof/tensors.py", "def f(name):\n    return name == 'gem_miner'", "asks for gem_miner"),
        ("experiment/trainer.py", "METHODS['wr'].start", "asks for wr"),
    ],
)
def test_a_planted_question_for_a_method_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    for method in ("gem_miner", "wr"):
        _plant(tmp_path, f"pruning/{method}.py", "")
    _plant(tmp_path, file, source)
    (found,) = method_violations(tmp_path)
    assert complaint in found


def test_figures_are_known_by_nothing_below_the_command_line() -> None:
    """What reproduces the paper stands on the core; nothing of the core stands on it."""
    assert [room for room, known in ROOMS.items() if "reproduction" in known] == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("models/resnet.py", "from harness.data import spec", "models must not know data"),
        ("models/resnet.py", "from ..data.spec import DataSpec", "models must not know data"),
        ("models/resnet.py", "from harness import data", "models must not know data"),
        ("pruning/aws.py", "def f():\n    import harness.training.loop", "pruning must not know training"),
        ("training/loop.py", "from harness.lineage.store import LineageStore", "training must not know lineage"),
        ("training/loop.py", "import importlib\nimportlib.import_module('harness.lineage')", "must not know lineage"),
        ("analysis/barrier.py", "from harness.lineage import record", "analysis must not know lineage"),
        ("lineage/nodes/graph.py", "from harness.experiment.search import search", "lineage must not know experiment"),
        ("masks/mask.py", "from harness.checkpoint import Checkpoint", "masks must not know checkpoint"),
        ("lineage/nodes/local_files.py", "import mlflow", "lineage/store.py may import mlflow"),
        (
            "lineage/nodes/local_files.py",
            "from mlflow.tracking import MlflowClient",
            "lineage/store.py may import mlflow",
        ),
        ("data/spec.py", "import ffcv.fields", "may import ffcv"),
        ("training/loop.py", "from accelerate import Accelerator", "only distributed/world.py may import accelerate"),
        ("experiment/search.py", "from recipes import demo", "the harness knows no recipes"),
        ("config/search.py", "import torch", "config/search.py does without torch"),
        ("misc.py", "", "has no entry in ROOMS"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    _plant(tmp_path, file, source)
    (found,) = violations(tmp_path)
    assert complaint in found
    assert f"harness/{file}" in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lineage/store.py", "import mlflow\nfrom harness.lineage.nodes.record import LineageRecord"),
        ("lineage/store.py", "from .nodes.record import LineageRecord\nfrom ..common import digest"),
        ("data/ffcv/loader.py", "from ffcv.loader import Loader"),
        ("data/prepare_ffcv.py", "import ffcv\nimport datasets"),
        ("distributed/world.py", "from accelerate import Accelerator"),
        ("training/loop.py", "from harness.pruning.method import PruningMethod\nimport torch"),
        ("analysis/plots.py", "import datasets_of_mine\nfrom harness.training.batchnorm import reestimate_batchnorm"),
    ],
)
def test_an_allowed_import_is_let_pass(tmp_path: Path, file: str, source: str) -> None:
    _plant(tmp_path, file, source)
    assert violations(tmp_path) == []


def _plant(root: Path, file: str, source: str) -> None:
    path = root / "harness" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_harness_is_light() -> None:
    heavy = [*LIBRARIES, "torch", "torchvision", "matplotlib"]
    code = f"import sys, harness, harness.config; print([name for name in {heavy} if name in sys.modules])"
    assert _python(code) == "[]"


def test_the_harness_imports_without_the_optional_libraries() -> None:
    """Searching, training and analysing need neither MLflow nor FFCV, datasets or Accelerate to be importable."""
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((REPOSITORY / "harness").rglob("*.py"))
        if not any(fnmatch.fnmatch(path.relative_to(REPOSITORY / "harness").as_posix(), eager) for eager in EAGER)
    ]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({list(LIBRARIES)}))\n"  # None in sys.modules: importing it is an ImportError
        f"for name in {modules}: importlib.import_module(name)\n"
        f"print(len({modules}))"
    )
    assert int(_python(code)) == len(modules) > 0
