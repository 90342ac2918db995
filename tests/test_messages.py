"""Test log messages: handlers, verbosity, progress bars, and escaping."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tqdm import tqdm

import harness.common.logging
from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.digest import sha256_json
from harness.common.logging import is_quiet, progress, show_messages
from harness.config import SearchConfig, to_json
from recipes.presets.small import digits

LOG = logging.getLogger("harness.somewhere")

LIBRARY_USER = """
import logging, sys
import harness.cli.launch
assert logging.getLogger("harness").handlers == [] and logging.getLogger("harness").level == logging.NOTSET
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
logging.getLogger("harness.somewhere").info("a fact")
"""


def speak() -> None:
    LOG.debug("a detail")
    LOG.info("a fact")
    LOG.warning("a doubt")


@pytest.mark.long
def test_importing_the_harness_installs_no_handler() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY_USER], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("INFO harness.somewhere a fact\n", "")


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        ("quiet", "warning: a doubt\n"),
        ("normal", "a fact\nwarning: a doubt\n"),
        (
            "verbose",
            "T harness.somewhere: debug: a detail\n"
            "T harness.somewhere: a fact\n"
            "T harness.somewhere: warning: a doubt\n",
        ),
    ],
)
def test_each_verbosity_shows_its_levels(verbosity, expected, capsys) -> None:
    show_messages(verbosity)
    speak()
    shown = capsys.readouterr()
    assert re.sub(r"(?m)^\d\d:\d\d:\d\d", "T", shown.err) == expected
    assert shown.out == "" and is_quiet() == (verbosity == "quiet")


def test_a_second_call_changes_the_verbosity_and_repeats_no_line(capsys) -> None:
    show_messages("verbose")
    show_messages("normal")
    speak()
    assert capsys.readouterr().err == "a fact\nwarning: a doubt\n"


def test_the_environment_sets_the_default_verbosity(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HARNESS_LOG", "quiet")
    show_messages()
    speak()
    assert capsys.readouterr().err == "warning: a doubt\n"
    show_messages("normal")
    speak()
    assert capsys.readouterr().err == "a fact\nwarning: a doubt\n"
    monkeypatch.setenv("HARNESS_LOG", "loud")
    with pytest.raises(SystemExit), clear_errors():
        show_messages()
    assert capsys.readouterr().err == "error: HARNESS_LOG is 'loud'; known: quiet, normal, verbose\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "a b.json"),
            "cannot open a b.json: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", "runs"), "cannot open runs: Permission denied"),
        (FileNotFoundError("no results.json in there; write it"), "no results.json in there; write it"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ValueError("levels are (0,)"), "levels are (0,)"),
    ],
)
def test_an_error_that_the_user_can_mend_is_one_line(capsys, error, said) -> None:
    with pytest.raises(SystemExit) as stopped, clear_errors():
        raise error
    assert stopped.value.code == 1 and capsys.readouterr().err == f"error: {said}\n"


def test_a_message_does_not_break_a_progress_bar(capsys) -> None:
    with tqdm(total=2, desc="a bar", file=sys.stderr) as bar:
        bar.update()
        speak()
    pieces = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "a fact" in pieces and "warning: a doubt" in pieces
    rest = [piece for piece in pieces if piece.strip() and piece not in ("a fact", "warning: a doubt")]
    assert rest and all(piece.startswith("a bar:") for piece in rest), pieces


def test_control_characters_in_messages_are_escaped(capsys) -> None:
    LOG.info("one \x1b[31m\ntwo \u202e")
    assert capsys.readouterr().err == "one \\x1b[31m\ntwo \\u202e\n"


def test_verbosity_is_an_option_but_not_a_recorded_setting() -> None:
    """Check that verbosity is not part of the settings.

    Settings are recorded. If verbosity were among them, a verbose launch would not reuse the runs of a quiet one.
    """
    settings = parse(SearchConfig, None, digits(), ["--verbosity", "quiet", "--num-levels", "3"])
    assert is_quiet() and isinstance(settings, SearchConfig) and settings.num_levels == 3
    silent = parse(SearchConfig, None, digits(), ["--num-levels", "3"])
    assert not is_quiet() and sha256_json(to_json(settings)) == sha256_json(to_json(silent))
    assert "verbosity" not in to_json(settings)


def lines_of(
    steps: list[tuple[float, int]], monkeypatch, capsys, *, done: int = 0, terminal: bool = False
) -> list[str]:
    """Return what a loop prints that finishes `n` steps at each time, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(harness.common.logging.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress("L01 d0.800 aws resnet8", 100, "steps") as bar:
        for now, n in steps:
            clock.now = now
            bar.update(n)
            bar.postfix = "loss 0.5"
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_progress_is_one_line_a_minute(monkeypatch, capsys) -> None:
    show_messages("normal")
    assert lines_of([(second / 2, 1) for second in range(100)], monkeypatch, capsys) == []  # 50 seconds
    first, second = lines_of([(0.0, 0), (30.0, 30), (61.0, 31), (90.0, 10), (121.0, 20)], monkeypatch, capsys)
    assert first == "L01 d0.800 aws resnet8  61/100 steps  loss 0.5  1 steps/s  00:39 left"
    assert second == "L01 d0.800 aws resnet8  91/100 steps  loss 0.5  0.5 steps/s  00:18 left"


def test_steps_before_an_interruption_do_not_count_for_the_rate(monkeypatch, capsys) -> None:
    show_messages("normal")
    (line,) = lines_of([(5.0, 40), (65.0, 30)], monkeypatch, capsys)
    assert line == "L01 d0.800 aws resnet8  70/100 steps  loss 0.5  0.5 steps/s  01:00 left"


def test_quiet_shows_no_progress(monkeypatch, capsys) -> None:
    show_messages("quiet")
    for terminal in (False, True):
        assert lines_of([(0.0, 1), (100.0, 1)], monkeypatch, capsys, terminal=terminal) == []


def test_a_terminal_gets_a_bar_with_rate_and_loss(monkeypatch, capsys) -> None:
    show_messages("normal")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("a loop", 3, "steps") as bar:
        bar.postfix = "loss 0.5"
        cast(Any, bar).refresh()
    shown = capsys.readouterr().err
    assert "a loop:   0%" in shown and "loss 0.5" in shown and "steps/s" in shown


def test_other_ranks_show_warnings_alone(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    show_messages("normal")
    speak()
    assert capsys.readouterr().err == "warning: a doubt\n"
