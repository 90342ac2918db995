"""Damage files in named and in random ways, and check that a parser refuses or repairs them.

A parser reads a damaged file, refuses it in one line that names it, or does without it. It never ends in another kind
of exception. `Parser` describes one parser, `DAMAGE` has the named kinds, and `attack` draws random damage.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from tests.data.archive_files import tar_of

# Hypothesis also draws constants from all imported modules. Without them, a run does not depend on the tests before it.
setattr(providers.HypothesisProvider, "_local_constants", providers.Constants())  # noqa: B010 (a property for mypy)

ORDINARY = settings(
    max_examples=200,
    derandomize=True,  # the same examples on each machine
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],  # measured by a clock: a busy machine is no error
)
THOROUGH = settings(ORDINARY, max_examples=5_000)


@dataclass(frozen=True)
class Parser:
    """One parser, with a whole input for it."""

    root: Path
    """Directory of the input. Every message names a path in it."""
    files: list[Path]
    """The files to damage."""
    read: Callable[[], object]
    """Reads the input and returns its values."""
    seal: Callable[[], object] = lambda: None
    """Corrects the digests of a damaged file, so that the parser behind them is reached."""
    optional: bool = False
    """Whether the input can do without the file. No damage of it is an error then."""
    has_digest: bool = False
    """Whether a digest or checksum protects the values. A damaged file never gives other values then."""
    named: str = ""
    """Text that every message has. Default: `root`."""


# ---------------------------------------------------------------------- named kinds of damage

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "longer": lambda content: content + content,
    "zeros": lambda content: bytes(len(content)),
    "ones": lambda content: b"\xff" * len(content),
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "latin-1": lambda content: "é".encode("latin-1") * len(content),
    "a page": lambda content: b"<!DOCTYPE html>\n<html>404 not found</html>\n",
    "a pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a gzip": lambda content: gzip.compress(content),
    "a gzip of a gzip": lambda content: gzip.compress(gzip.compress(content)),
    "a zip": lambda content: b"PK\x05\x06" + bytes(18),
    "a tar in a tar": lambda content: tar_of([("a.tar", tar_of([("b.tar", content)]))]),
    "a number": lambda content: b"5",
    "a text": lambda content: b'"a"',
    "a list": lambda content: b"[[1, 2], {}]",
    "null": lambda content: b"null",
    "an object": lambda content: b"{}",
    "deep nesting": lambda content: b"[" * 100_000,
    "deep objects": lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an endless number": lambda content: b"1" * 10_000,
}
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
"""What can be at the path of a file. Opening a pipe would wait for a writer without end."""


# ---------------------------------------------------------------------- random damage

REMOVED, DEEP = object(), "deep"
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 1.5, float("nan"), float("inf"), 10**400, 2**62, "", "²", "../x", "a\n\x1b[1m"),
    *([], {}, [1], [[{}, 1, 1, 1]], {"a": 1}, {"a": {"a": []}}, "0" * 64, REMOVED, DEEP),
)
"""Values that a damaged JSON file, or JSON header of a safetensors file, may have anywhere."""


@dataclass(frozen=True)
class Change:
    """One random change of a file's content."""

    kind: str
    at: int
    """Position: a byte, or for kind "value" one of the JSON values. Counted from the beginning again after the end."""
    length: int
    number: int
    """Chooses the bit, the new bytes or the new value."""

    def of(self, content: bytes) -> bytes:
        """Return the changed content."""
        if self.kind == "value":
            return _with_value(content, self.at, VALUES[self.number % len(VALUES)])
        changed = bytearray(content)
        start = self.at % (len(changed) + 1)
        stop = min(len(changed), start + self.length)
        if self.kind == "flip" and start < len(changed):
            changed[start] ^= 1 << self.number % 8
        elif self.kind == "delete":
            del changed[start:stop]
        elif self.kind == "repeat":
            changed[start:start] = changed[start:stop]
        elif self.kind == "fill":
            changed[start:stop] = bytes([(0, 1, 127, 255)[self.number % 4]]) * (stop - start)
        elif self.kind == "noise":
            changed[start:stop] = random.Random(self.number).randbytes(stop - start)
        return bytes(changed)


KINDS = ("flip", "flip", "delete", "repeat", "fill", "noise", "value")


def damages(parser: Parser) -> st.SearchStrategy[tuple[Path, list[Change]]]:
    """Return the strategy of (file, one or two changes)."""
    longest = max(path.stat().st_size for path in parser.files)
    change = st.builds(
        Change,
        st.sampled_from(KINDS),
        st.integers(0, longest),
        st.sampled_from((1, 2, 8, 100)),
        st.integers(0, 255),
    )
    return st.tuples(st.sampled_from(parser.files), st.lists(change, min_size=1, max_size=2))


def _with_value(content: bytes, at: int, value: Any) -> bytes:
    """Return JSON, or a safetensors file, with one other value. Other content is returned unchanged."""
    try:
        length = int.from_bytes(content[:8], "little") if content[8:9] == b"{" else 0
        data = json.loads(content[8 : 8 + length] if length else content)
        if length and (inner := data.get("__metadata__", {}).get("harness")):
            data["__metadata__"]["harness"] = json.loads(inner)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return content
    if not isinstance(data, dict | list):
        return content
    # Phase: change one value.
    places = list(_places(data))
    if not places:
        return content
    holder, key = places[at % len(places)]
    if value is REMOVED:
        del holder[key]
    else:
        holder[key] = value
    # Phase: write it in the form that it had.
    if not length:
        return _json(data)
    metadata = data.get("__metadata__")
    if isinstance(metadata, dict) and isinstance(metadata.get("harness"), dict | list):
        metadata["harness"] = _json(metadata["harness"]).decode()
    header = _json(data)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _json(data: Any) -> bytes:
    return json.dumps(data).replace('"deep"', '{"a":' * 20_000 + "1" + "}" * 20_000).encode()


def _places(data: Any) -> Any:
    """Yield (container, key) of every value in JSON data."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from _places(data[key])


SWEPT = ("a\n\x1b[1m", 2**62)
"""Values that `every_kind` puts in place of each of the first values of a JSON file or header."""
_SWEPT_PLACES = 30


# ---------------------------------------------------------------------- the check


def outcome(parser: Parser) -> tuple[str, object]:
    """Read the input. Return (message, None) or ("", values).

    Asserts that the message is one line with a path of the input.
    """
    try:
        return "", parser.read()
    except (ValueError, OSError, LookupError) as error:
        message = str(error)
        assert not isinstance(error, KeyError | IndexError), repr(error)
        assert message.isprintable() and len(message) < 1000, message
        assert (parser.named or str(parser.root)) in message, repr(error)
        return message, None


def check(parser: Parser, whole: object) -> bool:
    """Read a damaged input, whose values were `whole`. Return whether it was refused."""
    parser.seal()
    message, values = outcome(parser)
    if parser.optional:
        assert not message, message
    if parser.has_digest and not message:
        assert values == whole, "a damaged file gave other values"
    return bool(message)


def every_kind(parser: Parser) -> None:
    """Damage each file in all named ways. A needed file must be refused at least once."""
    message, values = outcome(parser)
    assert parser.files and not message, message
    for path in parser.files:
        whole, refused = path.read_bytes(), 0
        for damage in DAMAGE.values():
            path.write_bytes(damage(whole))
            refused += check(parser, values)
        for put in IN_PLACE.values():
            _remove(path)
            put(path)
            refused += check(parser, values)
        _restore(parser, path, whole)
        for at, value in itertools.product(range(_SWEPT_PLACES), SWEPT):
            if (content := _with_value(whole, at, value)) == whole:
                break  # no JSON
            path.write_bytes(content)
            check(parser, values)
        _restore(parser, path, whole)
        assert refused == 0 if parser.optional else refused >= 1, path
    assert outcome(parser) == ("", values)


def attack(parser: Parser, examples: settings) -> None:
    """Read the input with random damage, as often as `examples` says. A failure is shrunk to a small damage."""
    message, values = outcome(parser)
    assert parser.files and not message, message
    wholes = {path: path.read_bytes() for path in parser.files}

    @examples
    @given(damages(parser))
    def read(damage: tuple[Path, list[Change]]) -> None:
        path, changes = damage
        content = wholes[path]
        for change in changes:
            content = change.of(content)
        path.write_bytes(content)
        try:
            check(parser, values)
        except BaseException:
            note(f"the damaged file: {content[:2000]!r}")
            raise
        finally:
            _restore(parser, path, wholes[path])

    read()
    assert outcome(parser) == ("", values)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _restore(parser: Parser, path: Path, whole: bytes) -> None:
    if not path.is_file() or path.is_symlink():
        _remove(path)
    path.write_bytes(whole)
    parser.seal()
