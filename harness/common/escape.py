"""Text of other people made harmless where it is shown: names and tags may come from anybody's store."""

from __future__ import annotations

import re
import unicodedata

# Control characters (a terminal obeys them), and format characters, which can turn the order of letters round.
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def redact(text: str) -> str:
    """Return `text` without the user name and password of any URI in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def for_terminal(text: str) -> str:
    r"""Return `text` with every character that a terminal would obey, or hide, written as \x1b or \u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _DANGEROUS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def for_markdown(text: str) -> str:
    """Return `text` as Markdown that shows it and means nothing: no link, image, tag, emphasis or table cell."""
    text = re.sub(r"\s+", " ", for_terminal(text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:@-])", r"\\\1", text)


def code_block(text: str) -> str:
    """Return `text` as a fenced Markdown block that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(for_terminal(line) for line in text.split("\n"))
    return f"{fence}\n{lines}\n{fence}"
