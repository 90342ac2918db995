"""Check the imports inside `harness` against a table of allowed dependencies.

A package here is a top-level file or folder of `harness`. The constants call it a room.
"""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.common.optional import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[1]

# Packages that each package may import besides itself. Dependencies have no cycles. Models must not import data,
# pruning must not import training, and training and analysis must not import lineage.
_NETWORK = {"common", "config", "models", "masks", "checkpoint"}
_RUN = _NETWORK | {"data", "pruning", "distributed", "training", "lineage"}
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "config": set(),
    "distributed": {"common", "config"},
    "data": {"common", "config"},
    "models": {"common", "config"},  # common: the initial parameters are drawn from a derived seed
    "masks": {"common", "config"},
    "checkpoint": {"common", "masks"},
    "pruning": _NETWORK,
    "training": _NETWORK | {"data", "pruning", "distributed"},
    "pruner": _NETWORK | {"pruning", "training", "lineage"},
    # Verification recomputes masks by pruning, starts from θ_init and ticket, and digests from the data's manifest.
    "lineage": _NETWORK | {"data", "pruning"},
    "analysis": _NETWORK | {"data", "distributed", "training"},
    # The packages that combine the others: finished runs, experiments, figures of the paper, and the command line.
    "runs": _RUN,
    "experiment": _RUN | {"analysis", "runs"},
    "reproduction": _RUN | {"analysis", "runs", "experiment"},
    "cli": _RUN | {"analysis", "runs", "experiment"},
    # Public names such as `load_signed_mask` are imported on first use. Launchers are inspected before torch is loaded.
    "__init__": _RUN | {"experiment", "cli", "pruner"},
}

# Large or optional libraries, and the only files that may import them (patterns relative to harness/).
LIBRARIES: dict[str, tuple[str, ...]] = {
    "mlflow": ("lineage/tracking/*.py", "lineage/store.py"),
    "requests": ("lineage/tracking/server.py",),
    "ffcv": ("data/ffcv/*.py",),
    "numba": ("data/ffcv/*.py",),
    "accelerate": ("distributed/world.py",),
    "rich": ("common/tables.py",),
    "datasets": ("data/readers/hub.py",),
    "pyarrow": ("data/readers/hub.py",),
    "PIL": ("data/*.py",),
    "cv2": ("data/prepare.py",),
    "sklearn": ("data/readers/sources.py",),
    "statsmodels": ("analysis/statistics.py",),
    "scipy": ("analysis/statistics.py",),
    "matplotlib": ("analysis/plots.py", "analysis/drawing.py"),
    "graphviz": ("lineage/page/drawing.py",),
    "networkx": ("lineage/nodes/graph.py", "lineage/browse/export.py", "lineage/proof/origins.py"),
    "timm": ("models/sources.py",),
    "torchvision": ("models/*.py",),
    "huggingface_hub": ("lineage/sharing/hub.py",),
    "psutil": ("common/machine.py", "distributed/launcher_watch.py"),
    "pynvml": ("common/machine.py",),
    "joblib": ("common/machine.py",),
    "onnx": ("lineage/sharing/networks.py",),
    "onnxscript": ("lineage/sharing/networks.py",),
}

# Libraries that every installation has: rich is a dependency, and torch requires networkx.
ALWAYS = {"rich", "networkx"}

# Files that cannot be imported without their library, because their classes derive from classes of it.
EAGER = ("data/ffcv/loader.py", "data/ffcv/kernels.py")

# Files that must not import torch, so that options and launch checks start fast.
WITHOUT_TORCH = ("config/*.py", "distributed/__init__.py", "distributed/launcher_watch.py")

# Top-level packages that `harness` must not import.
ABOVE = {"recipes", "tools", "tests"}


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yield every import of a module, also inside functions and `if TYPE_CHECKING`.

    `from a import b` gives both a and a.b, since b may be a module. `import_module` with a literal name counts too.

    Args:
        tree: The parsed module.
        package: Dotted name of the package that contains the module, to resolve relative imports.

    Yields:
        Line number and dotted name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # a relative import: go up one package per further dot
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(root: Path) -> list[str]:
    """Return a message for each forbidden import in `root`/harness."""
    found: set[str] = set()
    for path in sorted((root / "harness").rglob("*.py")):
        file = path.relative_to(root / "harness").as_posix()
        room = file.split("/")[0].removesuffix(".py")
        if room not in ROOMS:
            found.add(f"harness/{file}: package {room!r} has no entry in ROOMS; list there what it may import")
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
        return f"harness must not import {name[0]}"
    if name[0] in LIBRARIES and not any(fnmatch.fnmatch(file, pattern) for pattern in LIBRARIES[name[0]]):
        return f"only {' and '.join(LIBRARIES[name[0]])} may import {name[0]}"
    if name[0] == "torch" and any(fnmatch.fnmatch(file, pattern) for pattern in WITHOUT_TORCH):
        return f"{file} must not import torch"
    if name[0] != "harness" or len(name) == 1:
        return None
    other = name[1]
    if other in ROOMS and other != room and other not in ROOMS[room]:
        return f"{room} must not import {other}"
    return None


def test_imports_follow_the_table() -> None:
    assert violations(REPOSITORY) == []


def test_the_table_has_no_cycle() -> None:
    """Check that no package depends on itself through other packages."""

    def reachable(room: str) -> set[str]:
        below = set(ROOMS[room])
        for other in ROOMS[room]:
            below |= reachable(other)
        return below

    assert all(room not in reachable(room) for room in ROOMS)  # a cycle raises RecursionError, which fails as well


# Modules of harness/pruning that are not a method. Methods may import them and each other. They import no method.
PRUNING_CORE = ("__init__", "magnitude", "method")


def method_violations(root: Path) -> list[str]:
    """Return a message for each dependency on a single method.

    Dependencies are imports of the method's module, and comparisons or subscripts with its name. The methods' own
    files are not checked.
    """
    methods = {path.stem for path in (root / "harness/pruning").glob("*.py")} - set(PRUNING_CORE)
    found: set[str] = set()
    for path in sorted((root / "harness").rglob("*.py")):
        file = path.relative_to(root / "harness").as_posix()
        is_method = file.startswith("pruning/") and path.stem in methods
        if is_method or file == "pruning/__init__.py":  # the table METHODS registers them there
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imported_names(tree, "harness"):
            parts = name.split(".")
            if parts[:2] == ["harness", "pruning"] and parts[2:] and parts[2] in methods:
                found.add(f"harness/{file}:{line}: imports the method {parts[2]}")
        if not file.startswith(("config/", "reproduction/")):  # settings and figures may name methods
            asking = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Subscript)]
            words = [word for node in asking for word in ast.walk(node) if isinstance(word, ast.Constant)]
            found |= {
                f"harness/{file}:{word.lineno}: names the method {word.value}"
                for word in words
                if word.value in methods - {"dense"}  # "dense" is also a kind of final training
            }
    return sorted(found)


def test_the_core_depends_on_no_method() -> None:
    """Check that only the methods' own files depend on a method.

    Search, trainer, verification and pages must call the hooks of a method instead of testing its name.
    """
    assert method_violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("experiment/search.py", "from harness.pruning.gem_miner import ScoreTraining", "imports the method gem_miner"),
        ("pruning/method.py", "from harness.pruning import wr", "imports the method wr"),
        ("lineage/proof/tensors.py", "def f(name):\n    return name == 'gem_miner'", "names the method gem_miner"),
        ("experiment/trainer.py", "METHODS['wr'].start", "names the method wr"),
    ],
)
def test_a_planted_dependency_on_a_method_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    for method in ("gem_miner", "wr"):
        _plant(tmp_path, f"pruning/{method}.py", "")
    _plant(tmp_path, file, source)
    (found,) = method_violations(tmp_path)
    assert complaint in found


def test_no_package_imports_reproduction() -> None:
    """Check that no package may import `reproduction`, which builds on all others."""
    assert [room for room, known in ROOMS.items() if "reproduction" in known] == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("models/resnet.py", "from harness.data import spec", "models must not import data"),
        ("models/resnet.py", "from ..data.spec import DataSpec", "models must not import data"),
        ("models/resnet.py", "from harness import data", "models must not import data"),
        ("pruning/aws.py", "def f():\n    import harness.training.loop", "pruning must not import training"),
        ("training/loop.py", "from harness.lineage.store import LineageStore", "training must not import lineage"),
        (
            "training/loop.py",
            "import importlib\nimportlib.import_module('harness.lineage')",
            "training must not import lineage",
        ),
        ("analysis/barrier.py", "from harness.lineage import record", "analysis must not import lineage"),
        ("lineage/nodes/graph.py", "from harness.experiment.search import search", "must not import experiment"),
        ("masks/mask.py", "from harness.checkpoint import Checkpoint", "masks must not import checkpoint"),
        ("lineage/nodes/local_files.py", "import mlflow", "lineage/store.py may import mlflow"),
        (
            "lineage/nodes/local_files.py",
            "from mlflow.tracking import MlflowClient",
            "lineage/store.py may import mlflow",
        ),
        ("data/spec.py", "import ffcv.fields", "may import ffcv"),
        ("training/loop.py", "from accelerate import Accelerator", "only distributed/world.py may import accelerate"),
        ("experiment/search.py", "from recipes import demo", "harness must not import recipes"),
        ("config/search.py", "import torch", "config/search.py must not import torch"),
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
        ("data/readers/hub.py", "import pyarrow\nimport datasets"),
        ("distributed/world.py", "from accelerate import Accelerator"),
        ("training/loop.py", "from harness.pruning.method import PruningMethod\nimport torch"),
        ("analysis/plots.py", "import datasets_of_mine\nfrom harness.training.batchnorm import reestimate_batchnorm"),
    ],
)
def test_an_allowed_import_is_accepted(tmp_path: Path, file: str, source: str) -> None:
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
    heavy = [*LIBRARIES, "torch", "matplotlib"]
    code = f"import sys, harness, harness.config; print([name for name in {heavy} if name in sys.modules])"
    assert _python(code) == "[]"


def test_every_optional_library_has_an_extra() -> None:
    """Check that a missing library is explained, and that pyproject.toml has the extra that the message names."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert LIBRARIES.keys() - ALWAYS == EXTRAS.keys()
    assert set(EXTRAS.values()) <= extras.keys()


def test_the_harness_imports_without_the_optional_libraries() -> None:
    """Import every module without the libraries in LIBRARIES.

    Modules in EAGER are not imported.
    """
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((REPOSITORY / "harness").rglob("*.py"))
        if not any(fnmatch.fnmatch(path.relative_to(REPOSITORY / "harness").as_posix(), eager) for eager in EAGER)
    ]
    code = (
        "import importlib, sys\n"
        # None in sys.modules makes an import fail.
        f"sys.modules.update(dict.fromkeys({sorted(LIBRARIES.keys() - {'networkx'})}))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        f"print(len({modules}))"
    )
    assert int(_python(code)) == len(modules) > 0
