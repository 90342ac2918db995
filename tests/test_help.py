"""`--help` of every command loads little, is laid out in lines, and complete. New commands are found by themselves."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from harness.cli.parser import check_synonyms
from tools.lineage import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]
SLOW_LIBRARIES = ("torch", "torchvision", "mlflow", "matplotlib", "accelerate", "ffcv", "scipy", "pandas", "datasets")
MOST_MODULES = 500
"""Modules that `--help` may load. The time to load them depends on the machine, their number does not."""
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {tools!r} if "/tools/" in sys.argv[0] else {recipes!r})
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    loaded = [name for name in {slow} if name in sys.modules]
    print(f"code {{end.code}} modules {{len(sys.modules)}} loaded {{','.join(loaded)}}", file=sys.stderr)
"""
ENTRY = re.compile(r"^(\w[\w ]{0,11}?) {2,}(\S.*)$", re.M)
"""An entry of a docstring's list, such as `Time       5 minutes`."""


def scripts() -> list[Path]:
    """Return the files of recipes/ and tools/ that are commands."""
    files = [*REPOSITORY.glob("recipes/*.py"), *REPOSITORY.glob("tools/*.py")]
    return sorted(file for file in files if '__name__ == "__main__"' in file.read_text(encoding="utf-8"))


COMMAND_LINES = [
    *((str(file.relative_to(REPOSITORY)),) for file in scripts()),
    *(("tools/lineage.py", name) for name in COMMANDS),
]


@cache
def asked(command: tuple[str, ...]) -> tuple[str, int, str]:
    """Return the help of a command, how many modules it loaded, and the slow libraries among them."""
    slow, tools, recipes = SLOW_LIBRARIES, str(REPOSITORY / "tools"), str(REPOSITORY / "recipes")
    code = RUN.format(slow=slow, tools=tools, recipes=recipes)
    words = [sys.executable, "-c", code, str(REPOSITORY / command[0]), *command[1:], "--help"]
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    found = re.search(r"code (\S+) modules (\d+) loaded (.*)", done.stderr)
    assert found is not None and found[1] in ("0", "None"), done.stdout + done.stderr
    return done.stdout, int(found[2]), found[3]


def every_command(function):
    """Run a test once for each command."""
    return pytest.mark.long(pytest.mark.parametrize("command", COMMAND_LINES, ids=" ".join)(function))


def test_the_table_has_every_command():
    assert len(scripts()) >= 20 and len(COMMAND_LINES) == len(scripts()) + len(COMMANDS)


@every_command
def test_help_loads_few_modules_and_no_slow_library(command):
    _, modules, loaded = asked(command)
    assert (loaded, modules < MOST_MODULES) == ("", True), f"{modules} modules, loads {loaded or 'no slow library'}"


@every_command
def test_every_entry_of_the_text_has_a_line(command):
    text = asked(command)[0]
    lines = {" ".join(line.split()) for line in text.splitlines()}
    docstring = ast.get_docstring(ast.parse((REPOSITORY / command[0]).read_text(encoding="utf-8"))) or ""
    entries = [f"{name} {rest}" for name, rest in ENTRY.findall(docstring)] if len(command) == 1 else []
    missing = [entry for entry in entries if " ".join(entry.split()) not in lines]
    assert not missing, text


@every_command
def test_every_argument_says_what_it_takes(command):
    text = asked(command)[0]
    assert "{None}" not in text
    positional = re.search(r"positional arguments(.*?)╰", text, re.S)
    assert positional is None or not re.search(r"\b(STR|PATH)\b", positional[1]), text


@pytest.mark.long
@pytest.mark.parametrize("command", [("tools/lmc.py",), ("tools/stability.py",), ("tools/lineage.py", "diff")])
def test_help_has_the_form_that_the_other_tests_read(command):
    """The two tests beside this one find nothing wrong in help of another form."""
    text = asked(command)[0]
    assert re.search(r"^usage: .* RUN_A RUN_B$", text, re.M)
    assert re.search(r"positional arguments.*│ RUN_A .*│ RUN_B .*╰.*│ --json", text, re.S)


@every_command
def test_every_option_has_a_sentence(command):
    """An option whose text begins with its default has no sentence of its own."""
    text = asked(command)[0]
    bare = re.findall(r"^│ (--?\S+(?: \S+)*) *│\n│ +\((?:default|required)", text, re.M)
    bare += re.findall(r"^│ (--?\S+(?: \S+)*) {2,}\((?:default|required)", text, re.M)
    assert not bare, text


RECIPES = [command for command in COMMAND_LINES if command[0].startswith("recipes/aws_")]


@pytest.mark.long
@pytest.mark.parametrize("command", RECIPES, ids=" ".join)
def test_a_recipe_lists_the_choices_of_method_network_and_data_set(command):
    text = " ".join(asked(command)[0].replace("│", " ").split())
    from harness.models import MODELS
    from harness.pruning import METHODS

    # Read the names in the file, because other tests register more data sets in this process.
    datasets = re.findall(r'^ +name="(\w+)",', (REPOSITORY / "harness/data/spec.py").read_text(), re.M)
    for names in (datasets, MODELS, METHODS):
        assert f"Choices: {', '.join(names)}." in text
    for entry in ("Figure", "Networks", "Expected", "Time", "Hardware", "Data", "Launch"):
        assert f" {entry} " in text


@pytest.mark.parametrize("words", [["--network", "a", "--model.name", "b"], ["--data.name=a", "--dataset", "b"]])
def test_two_names_of_one_option_may_not_differ(words):
    check_synonyms([word.replace("b", "a") for word in words])
    with pytest.raises(ValueError, match=r"differ; they are one option"):
        check_synonyms(words)
