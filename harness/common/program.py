"""Spell the project's commands as the user of this installation can type them.

The console script `tickets` and the files of a clone run the same code. `tickets lineage list` is the same command as
`python tools/lineage.py list`. Messages name the one that the user started, and `tickets` where there is no clone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

CONSOLE = "tickets"
DEFAULT_RUNS = Path("runs")
"""Directory of local runs, in the working directory."""
MODULE = "signed_tickets"
"""`python -m signed_tickets` is the console script, for `accelerate launch -m`."""
FILES: dict[str, str] = {
    "prepare": "tools/prepare_data.py",
    "train": "recipes/train_ticket.py",
    "compare stability": "tools/stability.py",
    "compare lmc": "tools/lmc.py",
    "compare norm_barrier": "tools/norm_barrier.py",
    "compare sign_barrier": "tools/sign_barrier.py",
    "lineage": "tools/lineage.py",
    "export": "tools/export.py",
    "pull": "tools/pull.py",
    "reproduce": "recipes/reproduce.py",
    "report": "tools/report.py",
    "selfcheck": "tools/selfcheck.py",
}
"""Command of the console script → file of a clone. `search NAME` is recipes/NAME.py."""
_MENTION = re.compile(r"(?:(?P<launch>accelerate launch\b[^`\n]*?) |python )?(?P<file>(?:tools|recipes)/\w+\.py)\b")
_LAUNCH_FILE = re.compile(r"\brecipes/launch/(\w+\.\w+)")
_ROOT = Path(__file__).resolve().parents[2]
_started: tuple[str, ...] | None = None


def start(*words: str) -> None:
    """Record that the console script runs this command, for example `start("search", "aws_digits")`."""
    global _started
    _started = words


def is_console() -> bool:
    """Return whether messages name the console script: it was started, or there is no clone."""
    return _started is not None or not has_clone()


def recipes_directory() -> Path | None:
    """Return the directory of the package `recipes`, or None if it is not installed. It is not imported."""
    found = importlib.util.find_spec("recipes")
    return Path(found.origin).parent if found is not None and found.origin else None


def recipe_names() -> list[str]:
    """Return the names of the recipes, sorted."""
    directory = recipes_directory()
    files = [] if directory is None else directory.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def has_clone() -> bool:
    """Return whether the harness is imported from a clone, which has tools/."""
    return (_ROOT / "tools" / "lineage.py").is_file() and (_ROOT / "pyproject.toml").is_file()


def command(words: str, launcher: str = "") -> str:
    """Return a command as this user can type it.

    Args:
        words: The command's words behind `tickets`, quoted for the shell.
        launcher: A launcher of several processes and its options, such as "accelerate launch --config_file FILE".
    """
    if is_console():
        return f"{launcher} -m {MODULE} {words}" if launcher else f"{CONSOLE} {words}"
    name, rest = _divided(words)
    file = f"recipes/{name.removeprefix('search ')}.py" if name.startswith("search ") else FILES[name]
    return f"{launcher or 'python'} {in_clone(file)}{rest}"


def runs_option(directory: Path) -> str:
    """Return the option that names a directory of local runs, with a space before it; empty for the default."""
    return "" if directory == DEFAULT_RUNS else f" --runs {shlex.quote(str(directory))}"


def _divided(words: str) -> tuple[str, str]:
    """Return the name of a command, of one word or two, and the rest of the words with its space."""
    pattern = r"((?:compare|search) \S+|\S+)(.*)"
    found = re.fullmatch(pattern, words, re.DOTALL)
    assert found is not None, words
    return found[1], found[2]


def in_clone(file: str) -> str:
    """Return the path of a clone's file: relative in the clone's directory, else absolute and quoted for the shell."""
    return file if Path.cwd() == _ROOT else shlex.quote(str(_ROOT / file))


def launch_file(name: str) -> str:
    """Return the path of a configuration file for `accelerate launch`, such as "cpu_2_processes.yaml"."""
    return in_clone(f"recipes/launch/{name}")


def own_words() -> list[str]:
    """Return the words that started this program, without its options."""
    return ["python", sys.argv[0]] if _started is None else [CONSOLE, *_started]


def own_process() -> list[str]:
    """Return the words that start this program again as a child process, without its options."""
    return [sys.executable, *_script()]


def again(options: Sequence[str], launcher: str = "") -> str:
    """Return the command of this program with other options."""
    if not launcher:
        return shlex.join([*own_words(), *options])
    return f"{launcher} {shlex.join([*_script(), *options])}"


def _script() -> list[str]:
    return [sys.argv[0]] if _started is None else ["-m", MODULE, *_started]


def usage_name() -> str:
    """Return the name of this program for its usage line."""
    return os.path.basename(sys.argv[0]) if _started is None else " ".join(own_words())


def worded(text: str) -> str:
    """Return help text whose mentions of a clone's files name the console script, if that is in use."""
    return spelled(text) if is_console() else text


def spelled(text: str) -> str:
    """Return a text in which each mention of a clone's file is a command that this user can type."""

    def renamed(found: re.Match[str]) -> str:
        names = [name for name, own in FILES.items() if own == found["file"]]
        if not names and found["file"].startswith("tools/"):
            return found[0]  # a tool for developers, which only a clone has
        words = names[0] if names else f"search {Path(found['file']).stem}"
        return command(words, found["launch"] or "")

    return _LAUNCH_FILE.sub(lambda found: launch_file(found[1]), _MENTION.sub(renamed, text))
