"""Test the console script `tickets`: its commands, their help, and copied recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import harness
from harness.cli import tickets
from harness.cli.compare import COMPARISONS
from harness.common.machine import launch_command
from tests.test_help import SLOW_LIBRARIES

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_WORDS = {
    "prepare": "Prepare a data set: ",
    "train": "Train a ticket: ",
    "compare": "Measure the error barrier ",
    "lineage": "List, relate, compare, share and verify runs: ",
    "reproduce": "Make a figure or table of the paper: ",
    "report": "Write the page of a figure, table or study ",
    "export": "Export a run: ",
    "pull": "Download an exported run ",
    "selfcheck": "Prove this build: ",
}
"""Command → start of the text of the code that it runs."""
HELP = """
import contextlib, io, json, sys
from harness.cli.tickets import main
printed = {{}}
for line in {lines}:
    sys.argv = ["tickets", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, None), (line, end.code)
    printed[line] = out.getvalue()
print(json.dumps([printed, [name for name in {slow} if name in sys.modules]]))
"""


def run(where: Path, *words: str, ok: bool = True) -> str:
    """Run the console script in a process of its own. Return its output, or its error."""
    command = [sys.executable, "-m", "signed_tickets", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.mark.long
def test_every_command_explains_itself_without_torch(tmp_path: Path) -> None:
    lines = ["", *(f"{name} --help" for name in tickets.COMMANDS)]
    lines += [f"compare {name} --help" for name in COMPARISONS]
    lines += [f"search {name} --help" for name in tickets.searches()] + ["lineage verify --help"]
    code = HELP.format(lines=lines, slow=SLOW_LIBRARIES)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    printed, loaded = json.loads(done.stdout)
    assert loaded == []
    for line, text in printed.items():
        usage = f"usage: tickets {line.removesuffix('--help')}".strip()
        assert text.startswith(usage), text
        assert "\n\n\n" not in text, text
        assert "python tools/" not in text and "python recipes/" not in text, text
    for name in tickets.COMMANDS:
        assert f"  {name} " in printed[""]
    for name, first_words in FIRST_WORDS.items():
        assert first_words in printed[f"{name} --help"], name
    for name in tickets.searches():
        assert f"  {name} " in printed["search --help"] and f"  {name} " in printed["recipes --help"]


def test_the_wheel_has_the_console_script_and_the_recipes() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"tickets": "harness.cli.tickets:main"}
    tools = project["tool"]["setuptools"]
    assert {"recipes", "recipes.*", "signed_tickets"} <= set(tools["packages"]["find"]["include"])
    assert {"launch/*", "studies/*.toml"} <= set(tools["package-data"]["recipes"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["serch"], "unknown command 'serch' (did you mean 'search'?)"),
        (["search"], "give a recipe (aws_cifar10"),
        (["search", "aws_digit"], "unknown recipe 'aws_digit' (did you mean 'aws_digits'?)"),
        (["search", "./mine.py"], "no file ./mine.py; `tickets cp RECIPE` writes one"),
        (["cp"], "usage: tickets cp RECIPE [FILE]"),
        (["cp", "aws_digits", "--force"], "usage: tickets cp RECIPE [FILE]"),
        (["cp", "aws_digits", "no/such/directory.py"], "cannot write no/such/directory.py: No such file"),
        (["cp", "mine/aws_digits.py", "x.py"], "unknown recipe, example or launch file 'mine/aws_digits.py'"),
        (["cp", "launch/aws_digits.py"], "unknown recipe, example or launch file 'launch/aws_digits.py'"),
        (["cp", "gpu_8.yml"], "'gpu_8.yml' (did you mean 'gpu_8.yaml'?); known: accelerate_loop, aws_cifar10"),
        (["compare", "lcm"], "unknown comparison 'lcm' (did you mean 'lmc'?)"),
        (["recipes", "--all"], "takes no options"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.common.program._started", None)
    monkeypatch.setattr(sys, "argv", ["tickets", *words])
    with pytest.raises(SystemExit) as ended:
        tickets.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and complaint in line


@pytest.mark.parametrize(
    ("words", "file", "said"),
    [
        (["aws_digits"], "aws_digits.py", "tickets search aws_digits.py"),
        (["recipes/aws_digits.py", "sub"], "sub/aws_digits.py", "tickets search sub/aws_digits.py"),
        (["aws_digits", "mine"], "mine", "tickets search ./mine"),  # `search mine` would be a recipe of the package
        (["aws_digits", "a copy"], "a copy", "tickets search './a copy'"),
        (["train_ticket"], "train_ticket.py", "tickets search train_ticket.py"),
        (["plain_loop"], "plain_loop.py", "python plain_loop.py"),
        (["recipes/launch/gpu_8.yaml"], "gpu_8.yaml", None),
    ],
)
def test_a_copy_says_how_it_is_run(
    words: list[str],
    file: str,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.common.program._started", None)
    monkeypatch.setattr(sys, "argv", ["tickets", "cp", *words])
    tickets.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith(f" copied to {file}") and rest == ([f"now run: {said}"] if said else [])
    assert (tmp_path / file).is_file()
    if said is not None and "search" in said:
        assert callable(tickets.search([said.split("search ")[1].strip("'")]))


@pytest.mark.long
def test_a_reader_that_stops_and_a_package_of_the_same_name_give_no_traceback(tmp_path: Path) -> None:
    # Phase: `tickets recipes | head -1`. The reader goes before anything is written, or before Python ends.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONUNBUFFERED", None)  # Python would write each line at once
    commands = ("recipes", "--help", "--version", "lineage list --offline", "lineage --help", "reproduce --help")
    for words in (*(f"-m signed_tickets {words}" for words in commands), f"{REPOSITORY}/tools/lineage.py list --help"):
        shell = ["bash", "-c", f"{sys.executable} {words} | true; exit ${{PIPESTATUS[0]}}"]
        done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), words

    # Phase: a package of the user's hides the recipes.
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").touch()
    (tmp_path / "mine.py").touch()
    for words in (["recipes"], ["search", "aws_digits"], ["search", "mine.py"]):
        (line,) = run(tmp_path, *words, ok=False).splitlines()
        assert "instead of the recipes of signed-tickets; start in another directory, or rename it" in line


@pytest.mark.long
def test_a_copied_recipe_runs_where_it_lies_and_is_never_overwritten(tmp_path: Path) -> None:
    # Phase: copy.
    assert "now run: tickets search aws_digits.py" in run(tmp_path, "cp", "aws_digits")
    copy = tmp_path / "aws_digits.py"
    assert copy.read_bytes() == (REPOSITORY / "recipes" / "aws_digits.py").read_bytes()
    copy.write_text(copy.read_text().replace("run_search(__doc__, digits())", "print(__file__, __name__, __doc__[:4])"))

    # Phase: a second copy keeps the changed file. Another name, a launch file and an example are fine.
    assert "aws_digits.py exists and is kept" in run(tmp_path, "cp", "aws_digits", ok=False)
    run(tmp_path, "cp", "launch/gpu_8.yaml", "my.yaml")
    assert "now run: python plain_loop.py" in run(tmp_path, "cp", "plain_loop")
    assert (tmp_path / "my.yaml").read_bytes() == (REPOSITORY / "recipes/launch/gpu_8.yaml").read_bytes()

    # Phase: both commands run the copy.
    assert run(tmp_path, "search", "aws_digits.py") == "aws_digits.py __main__ Find\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "aws_digits.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == f"{copy} __main__ Find\n"


@pytest.mark.long
def test_a_file_of_the_user_runs_as_python_runs_a_script(tmp_path: Path) -> None:
    """It imports its neighbours, and the harness's own `from __future__` imports do not apply to it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "neighbour.py").touch()
    code = "import neighbour\ndef own(x: int): ...\nprint(neighbour.__name__, own.__annotations__['x'] is int)\n"
    code += "from harness.common.machine import launch_command\nprint(launch_command())\n"
    (tmp_path / "sub" / "mine.py").write_text(code)
    printed = run(tmp_path, "search", "sub/mine.py", "--method", "lrr")
    assert printed == "neighbour True\ntickets search sub/mine.py --method lrr\n"


@pytest.mark.parametrize("words", [["compare", "norm-barrier", "abcd", "--json"], ["prepare", "digits", "--out", "x"]])
def test_the_recorded_command_can_be_typed_again(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.common.program._started", None)
    monkeypatch.setattr("harness.common.machine.psutil", None)  # the parent process does not matter
    monkeypatch.setattr(sys, "argv", ["tickets", *words])
    monkeypatch.setitem(COMPARISONS, "norm_barrier", ("", lambda *_: print(launch_command())))
    monkeypatch.setattr("harness.cli.prepare.main", lambda _: print(launch_command()))
    tickets.main()
    assert capsys.readouterr().out == f"tickets {' '.join(words).replace('-barrier', '_barrier')}\n"


@pytest.mark.parametrize(
    ("words", "start"), [(["--version"], harness.__version__), (["search", "-h"], "usage: tickets search RECIPE")]
)
def test_short_answers(
    words: list[str], start: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.common.program._started", None)
    monkeypatch.setattr(sys, "argv", ["tickets", *words])
    tickets.main()
    assert capsys.readouterr().out.startswith(start)
