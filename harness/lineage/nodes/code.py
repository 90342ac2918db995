"""Which code and which versions made a node."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "accelerate", "ffcv", "safetensors", "mlflow", "signed-tickets")


def _git(*arguments: str, directory: Path) -> str | None:
    """Return git's output, or None where there is no git or no repository."""
    try:
        command = ["git", "-C", str(directory), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def _code_version() -> tuple[tuple[str, str], ...]:
    root = Path(__file__).resolve().parents[3]
    commit, dirty = "unknown", "unknown"
    # A harness installed into an environment that lies inside somebody's repository is not that repository's code.
    if _git("rev-parse", "--show-toplevel", directory=root) == str(root):
        commit = _git("rev-parse", "HEAD", directory=root) or "unknown"
        # Untracked Python files count: a new method that is not committed yet still makes the numbers.
        changed = _git("status", "--porcelain", "--", "harness", "recipes", "tools", directory=root)
        dirty = "unknown" if changed is None else str(bool(changed)).lower()
    return (("commit", commit), ("dirty", dirty), *_versions().items(), ("machine", platform.machine()))


def code_version() -> dict[str, str]:
    """Return commit, dirty ("true", "false" or "unknown") and the versions of Python and the packages that compute.

    Read once per process: the code that runs is the code that was there when the process first asked.
    """
    return dict(_code_version())
