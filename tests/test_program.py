"""Test that messages name commands which the user of this installation can type."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.compare import COMPARISONS
from harness.cli.lineage.main import COMMANDS as OF_LINEAGE
from harness.cli.tickets import COMMANDS
from harness.common import program
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.store import LineageStore

REPOSITORY = Path(__file__).resolve().parents[1]
SPELLED = {"harness/common/program.py", "harness/lineage/proof/findings.py"}
"""Files whose texts about a clone's files are replaced when they are printed."""


def sources() -> list[Path]:
    """Return the files whose messages the user sees."""
    folders = (REPOSITORY / name for name in ("harness", "recipes", "signed_tickets"))
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def literal(node: ast.AST) -> str | None:
    """Return the text of a string or f-string. A value in it becomes VALUE."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
    return None


def named_commands() -> Iterator[tuple[str, str]]:
    """Yield the place and the words of every call `command("…")`."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "command":
                words = literal(node.args[0]) if node.args else None
                if words is not None:
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", words


@pytest.fixture(params=["clone", "elsewhere", "console", "wheel"])
def installation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Act as a kind of installation: a clone seen from its directory or another one, the console script, or a wheel."""
    monkeypatch.setattr(program, "_started", ("search", "aws_digits") if request.param == "console" else None)
    if request.param == "wheel":
        monkeypatch.setattr(program, "has_clone", lambda: False)
    monkeypatch.chdir(REPOSITORY if request.param == "clone" else tmp_path)
    return str(request.param)


def test_every_named_command_exists(installation: str) -> None:
    """Both spellings of each command of a message are real: a file of the clone, and a command of the script."""
    found = list(named_commands())
    assert len(found) > 30
    for place, words in found:
        spelled = shlex.split(program.command(words))
        if installation in ("clone", "elsewhere"):
            assert spelled[0] == "python" and Path(spelled[1]).is_file() or "VALUE" in spelled[1], place
        else:
            assert spelled[0] == "tickets" and spelled[1] in COMMANDS, place
        name, *rest = shlex.split(words)
        if name == "lineage":
            assert rest[0].removesuffix("VALUE") in OF_LINEAGE, place
        if name == "compare":
            assert rest[0] in COMPARISONS, place


def test_no_message_names_a_file_of_the_clone_itself() -> None:
    """Only docstrings may, since help replaces what they name."""
    for path in sources():
        if str(path.relative_to(REPOSITORY)) in SPELLED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            text = literal(node)
            if text is not None and id(node) not in texts:
                assert not program._MENTION.search(text), f"{path}:{node.lineno}: {text}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("`python tools/lineage.py sync` delivers", "`tickets lineage sync` delivers"),
        ("Data   python tools/prepare_data.py digits --out data", "Data   tickets prepare digits --out data"),
        ("python recipes/aws_digits.py --method lrr", "tickets search aws_digits --method lrr"),
        ("recipes/train_ticket.py --ticket RUN_ID", "tickets train --ticket RUN_ID"),
        ("python tools/sign_barrier.py RUN", "tickets compare sign_barrier RUN"),
        ("python recipes/reproduce.py fig3", "tickets reproduce fig3"),
        ("python tools/selfcheck.py", "tickets selfcheck"),
        ("python tools/way.py", "python tools/way.py"),
        ("accelerate launch -a b recipes/demo.py -c", "accelerate launch -a b -m signed_tickets search demo -c"),
    ],
)
def test_help_names_the_console_script(monkeypatch: pytest.MonkeyPatch, text: str, renamed: str) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert program.worded(text) == text
    monkeypatch.setattr(program, "_started", ())
    assert program.worded(text) == renamed


def test_a_launch_file_exists_in_every_installation(installation: str) -> None:
    assert Path(program.launch_file("cpu_2_processes.yaml")).is_file()
    assert Path(program.spelled("accelerate launch --config_file recipes/launch/gpu_8.yaml").split()[-1]).is_file()


def test_every_command_that_runs_a_file_of_the_clone_has_one() -> None:
    commands = COMMANDS.keys() - {"recipes", "cp", "search", "compare"} | {f"compare {name}" for name in COMPARISONS}
    assert program.FILES.keys() == commands
    assert all((REPOSITORY / file).is_file() for file in program.FILES.values())


def test_the_path_of_a_clone_is_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "_ROOT", tmp_path / "my clone")
    monkeypatch.setattr(program, "_started", None)
    monkeypatch.setattr(program, "has_clone", lambda: True)
    assert shlex.split(program.command("lineage list")) == ["python", f"{tmp_path}/my clone/tools/lineage.py", "list"]
    launched = program.command("train --ticket a", "accelerate launch -a")
    assert launched == f"accelerate launch -a '{tmp_path}/my clone/recipes/train_ticket.py' --ticket a"


def test_a_command_is_repeated_as_it_was_started(monkeypatch: pytest.MonkeyPatch, installation: str) -> None:
    monkeypatch.setattr(sys, "argv", ["my recipe.py", "--offline"])
    once, launched = program.again(["--json"]), program.again(["--json"], "accelerate launch")
    if installation == "console":
        assert once == "tickets search aws_digits --json"
        assert launched == "accelerate launch -m signed_tickets search aws_digits --json"
        assert program.own_process() == [sys.executable, "-m", "signed_tickets", "search", "aws_digits"]
    else:
        assert (once, launched) == ("python 'my recipe.py' --json", "accelerate launch 'my recipe.py' --json")
        assert program.own_process() == [sys.executable, "my recipe.py"]


@pytest.mark.parametrize(
    ("runs", "uri", "options"),
    [
        ("runs", None, " --offline"),
        ("my runs", None, " --runs 'my runs' --offline"),
        ("runs", "sqlite:///mlflow.db", ""),
        ("mine", "https://u:secret@host", " --runs mine --tracking-uri 'https://***@host'"),
    ],
)
def test_messages_list_the_runs_of_their_store(monkeypatch, runs, uri, options):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(program, "is_console", lambda: True)
    store = LineageStore(uri, LocalNodes(Path(runs)))
    assert store.list_command == f"tickets lineage list{options}"
    if uri is None:
        with pytest.raises(LookupError, match=re.escape(f"begins with 'abcdef'; `tickets lineage list{options}`")):
            find_node(store, "abcdef")
