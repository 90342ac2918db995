"""What a piped search prints: few lines, one of them for each finished run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recipes.launching import REPOSITORY, TINY, elsewhere
from tests.warm import warm

RECIPE = str(REPOSITORY / "recipes" / "aws_digits.py")
CLOSING = re.compile(r"^L0(\d) d\d\.\d{3} aws \S+  test error [\d.]+ %  loss \S+  (.*)  key [0-9a-f]{12}…$", re.M)


def printed(where: Path, *options: str, code: int = 0) -> tuple[str, str]:
    """Run the recipe into two pipes. Return standard output and standard error."""
    done = warm(where, RECIPE, *TINY, *options, OMP_NUM_THREADS="1")
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.long
def test_a_piped_search_prints_few_lines_and_one_for_each_level(prepared: Path, tmp_path: Path) -> None:
    where = elsewhere(prepared, tmp_path)
    out, error = printed(where, "--num-levels", "2")
    assert len((out + error).splitlines()) < 40 and "\r" not in out + error
    made = CLOSING.findall(error)
    assert [level for level, _ in made] == ["0", "1", "2"] and all(took.endswith(" s") for _, took in made)

    # The same command loads the runs, and prints nothing of them if it is quiet.
    _, error = printed(where, "--num-levels", "2")
    assert [origin for _, origin in CLOSING.findall(error)] == ["loaded from runs"] * 3
    assert printed(where, "--num-levels", "2", "--verbosity", "quiet")[1] == ""


@pytest.mark.long
def test_a_missing_data_set_is_one_line_with_the_command_that_prepares_it(tmp_path: Path) -> None:
    out, error = printed(tmp_path, "--offline", code=1)
    (line,) = (out + error).splitlines()
    assert line.startswith("error: digits is not prepared") and "tools/prepare_data.py digits --out data" in line
