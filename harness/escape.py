"""Text of other people made harmless where it is shown: names and tags may come from anybody's store."""

from __future__ import annotations

import unicodedata

# Control characters (a terminal obeys them), and format characters, which can turn the order of letters round.
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def for_terminal(text: str) -> str:
    r"""Return `text` with every character that a terminal would obey, or hide, written as \x1b or \u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _DANGEROUS:
        return character
    return character.encode("unicode_escape").decode("ascii")
