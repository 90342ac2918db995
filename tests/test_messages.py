"""Test log messages: handlers, verbosity, progress bars, and escaping."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest
from tqdm import tqdm

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.digest import sha256_json
from harness.common.logging import is_quiet, show_messages
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
