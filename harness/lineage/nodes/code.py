"""Find the code version and package versions that a run records."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "accelerate", "ffcv", "safetensors", "mlflow", "signed-tickets")


def _git(*arguments: str, directory: Path) -> str | None:
    """Return git's output, or None if git fails or is missing."""
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
    # Compare the roots: an installed harness may lie inside another project's repository, whose commit says nothing.
    if _git("rev-parse", "--show-toplevel", directory=root) == str(root):
        commit = _git("rev-parse", "HEAD", directory=root) or "unknown"
        # Untracked files count as changes: an uncommitted new method can determine the results.
        changed = _git("status", "--porcelain", "--", "harness", "recipes", "tools", directory=root)
        dirty = "unknown" if changed is None else str(bool(changed)).lower()
    return (("commit", commit), ("dirty", dirty), *_versions().items(), ("machine", platform.machine()))


def code_version() -> dict[str, str]:
    """Return the git commit, package versions and machine type.

    `dirty` is "true", "false" or "unknown". The result is cached for the process, because later edits do not change the
    code that is already imported.
    """
    return dict(_code_version())
