"""Find winning signs of sparse networks, record where they came from, and use them on any initialisation.

$ tickets recipes
$ tickets prepare digits
$ tickets search aws_digits --offline
$ tickets train --ticket RUN --kind signed_mask --init-seed 2

Every command has its own --help. Several processes: accelerate launch -m signed_tickets search aws_digits
"""

from __future__ import annotations

import ast
import importlib
import shlex
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import harness
from harness.cli.errors import clear_errors, let_readers_go
from harness.cli.parser import print_commands
from harness.common import program
from harness.common.escape import for_terminal
from harness.common.optional import PROJECT
from harness.config import known

COMMANDS: dict[str, str] = {
    "recipes": "List the recipes that `search` runs and `cp` copies.",
    "cp": "Copy a recipe, an example or a launch file, to change it.",
    "prepare": "Prepare a data set.",
    "search": "Search for a winning sign with a recipe, or with your copy of one.",
    "train": "Train a ticket: a logged signed mask on a fresh initialisation.",
    "compare": "Measure the error barrier between two networks.",
    "lineage": "List, relate, compare, share and verify runs.",
    "reproduce": "Make a figure, a table or a study of the paper.",
    "report": "Write the page of a figure, table or study from finished runs.",
    "export": "Export a run: a directory, a repository on the Hugging Face Hub, ONNX, or pruned PyTorch.",
    "pull": "Import an exported run and its lineage from the Hugging Face Hub.",
    "selfcheck": "Prove this build against an independent implementation, in a minute.",
}
"""Command → one line of help."""
HOMES: dict[str, str] = {
    "prepare": "harness.cli.prepare",
    "compare": "harness.cli.compare",
    "lineage": "harness.cli.lineage.main",
    "export": "harness.cli.export",
    "pull": "harness.cli.pull",
}
"""Command → module with `main(arguments)`."""
RECIPES: dict[str, str] = {
    "train": "train_ticket",
    "reproduce": "reproduce",
    "report": "report",
    "selfcheck": "selfcheck",
}
"""Command → recipe that it runs. `search` runs the others."""
RECIPES_USAGE = "tickets recipes"
CP_USAGE = "tickets cp RECIPE [FILE]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names.

    Args:
        arguments: Words of the command line. None means those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    program.start()
    let_readers_go()
    if words[:1] == ["--version"]:
        print(harness.__version__)
        return
    # Phase: find the command. It handles its own errors, such as those of a user's recipe.
    run: Callable[[], None] = _nothing  # stays so if standard output is a closed pipe
    with clear_errors():
        if not words or words[0] in ("-h", "--help"):
            print_commands("tickets COMMAND [OPTIONS]", __doc__, COMMANDS)
            return
        name, rest = known("command", words[0], list(COMMANDS)), words[1:]
        run = _command(name, rest)
    run()


def _command(name: str, rest: list[str]) -> Callable[[], None]:
    """Return the function that runs a command with the rest of its words."""
    if name in RECIPES:
        program.start(name)
        return partial(run_recipe, _recipes() / f"{RECIPES[name]}.py", rest)
    if name in HOMES:
        program.start(name)
        sys.argv = [f"tickets-{name}", *rest]
        return partial(importlib.import_module(HOMES[name]).main, rest)
    if name == "search":
        return search(rest)
    (list_recipes if name == "recipes" else copy)(rest)
    return _nothing


def _nothing() -> None:
    """Do nothing more: the command has already run."""


def search(words: list[str]) -> Callable[[], None]:
    """Return the function that runs a recipe: by its name, or the user's own file.

    Args:
        words: Name or path, and the recipe's options.

    Raises:
        ValueError: No recipe is given, or its name is unknown.
        FileNotFoundError: There is no such file.
    """
    if words and words[0] in ("-h", "--help"):
        text = "Run a search with a recipe. `tickets search RECIPE --help` explains its options."
        return partial(print_commands, "tickets search RECIPE|FILE.py [OPTIONS]", text, searches(), title="recipes")
    if not words:
        raise ValueError(f"give a recipe ({', '.join(searches())}) or a file of yours; `tickets recipes` explains them")
    name = words[0]
    program.start("search", name)
    if "/" in name or name.endswith(".py"):
        _recipes()  # a copy imports the package, too
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no file {name}; `tickets cp RECIPE` writes one, and `tickets recipes` lists them")
    else:
        path = _recipes() / f"{known('recipe', name, list(searches()))}.py"
    return partial(run_recipe, path, words[1:])


def run_recipe(path: Path, arguments: Sequence[str]) -> None:
    """Run a recipe's file as Python runs a script: as the module `__main__`, with its directory first on the path.

    Args:
        path: The file.
        arguments: Words of its command line.
    """
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module  # type hints and child processes look names up there
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)


def searches() -> dict[str, str]:
    """Return the recipes that search, each with the first line of its text."""
    return {name: _first_line(name) for name in program.recipe_names() if name not in RECIPES.values()}


def list_recipes(words: list[str]) -> None:
    """Print the recipes and the launch files.

    Raises:
        ValueError: There are words, which this command does not take.
    """
    if words and words[0] not in ("-h", "--help"):
        raise ValueError(f"`tickets recipes` takes no options, but got {shlex.join(words)}")
    text = COMMANDS["recipes"] if words else None
    others = {name: _first_line(name) for name in RECIPES.values()}
    print_commands(RECIPES_USAGE if words else None, text, searches(), title="recipes")
    print_commands(None, None, others, title="recipes of the commands train, reproduce, report and selfcheck")
    examples = {path.stem: _text(path).partition("\n")[0] for path in _examples()}
    print_commands(None, None, examples, title="examples of SignPruner in other training loops; copy one and run it")
    files = {path.name: "" for path in sorted((_recipes() / "launch").iterdir())}
    print_commands(None, None, files, title="files for accelerate launch --config_file, Slurm and Kubernetes")


def copy(words: list[str]) -> None:
    """Copy a recipe, an example or a launch file.

    Raises:
        ValueError: The name is unknown, or the words are no name and no file.
        FileExistsError: The file exists. It is never overwritten.
    """
    # Phase: read the words.
    if words and words[0] in ("-h", "--help"):
        text = (
            f"{COMMANDS['cp']}\n\nFILE is a new file or a directory, by default the working directory. "
            "An existing file is never overwritten.\n`tickets search FILE` runs a copied recipe."
        )
        print_commands(CP_USAGE, text, {})
        return
    if not 1 <= len(words) <= 2 or any(word.startswith("-") for word in words):
        raise ValueError(f"usage: {CP_USAGE}; `tickets recipes` lists the recipes")
    source = _copied_file(words[0])

    # Phase: copy, without overwriting.
    target = Path(words[1]) if len(words) == 2 else Path()
    if target.is_dir():
        target /= source.name
    try:
        with open(target, "xb") as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file)
    except FileExistsError:
        raise FileExistsError(f"{target} exists and is kept; give another FILE") from None
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}; give another FILE") from error

    # Phase: say how to use the copy.
    print(for_terminal(f"{source.stem if source.suffix == '.py' else source.name} copied to {target}"))
    if source in _examples():
        print(for_terminal(f"now run: python {shlex.quote(str(target))}"))
    elif source.suffix == ".py":
        # a bare name would be one of the package's recipes
        file_name = str(target) if "/" in str(target) or target.suffix == ".py" else f"./{target}"
        print(for_terminal(f"now run: {program.command(f'search {shlex.quote(file_name)}')}"))


def _copied_file(word: str) -> Path:
    """Return the recipe, example or launch file that a word names: `NAME`, `NAME.py` or its path in a clone.

    Raises:
        ValueError: The name is unknown.
    """
    directory = _recipes()
    files = {name: directory / f"{name}.py" for name in program.recipe_names()}
    files |= {path.stem: path for path in _examples()}
    files |= {path.name: path for path in sorted((directory / "launch").iterdir())}
    # A path in another directory may mean a file of the user's, which `cp` does not copy.
    found = files | {name: path for path in files.values() for name in (path.name, str(path.relative_to(directory)))}
    name = word.removeprefix("recipes/")
    return found[name] if name in found else files[known("recipe, example or launch file", word, [*files])]


def _recipes() -> Path:
    """Return the directory of the recipes.

    Raises:
        FileNotFoundError: The package of the recipes is not installed, or another one hides it.
    """
    directory = program.recipes_directory()
    if directory is None:
        raise FileNotFoundError(f"the recipes are not installed; run: pip install --force-reinstall {PROJECT}")
    if not (directory / "presets").is_dir():
        raise FileNotFoundError(
            f"Python imports the package {directory} instead of the recipes of {PROJECT}; start in another directory, "
            "or rename it"
        )
    return directory


def _examples() -> list[Path]:
    """Return the files of the examples, sorted."""
    return sorted((_recipes() / "examples").glob("[a-z]*.py"))


def _first_line(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return _text(_recipes() / f"{name}.py").partition("\n")[0]


def _text(path: Path) -> str:
    """Return the docstring of a file, which is not imported."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    main()
