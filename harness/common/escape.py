"""Escape untrusted text before it is shown. Names and tags may come from another user's store."""

from __future__ import annotations

import re
import unicodedata

# Unicode categories. A terminal executes control characters (Cc), and format characters (Cf) can reverse text. The
# others are surrogates, private and unassigned characters, and line and paragraph separators.
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def redact(text: str) -> str:
    """Remove the user name and password from every URI in `text`."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def for_terminal(text: str) -> str:
    r"""Escape control and invisible characters, for example as \x1b."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _DANGEROUS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def for_markdown(text: str) -> str:
    """Escape `text` so that Markdown shows it literally.

    The result contains no link, image, tag, emphasis or table cell.
    """
    text = re.sub(r"\s+", " ", for_terminal(text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:@-])", r"\\\1", text)


def code_block(text: str) -> str:
    """Return `text` as a fenced Markdown code block.

    The fence is longer than any run of backticks in `text`, so the text cannot close it.
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(for_terminal(line) for line in text.split("\n"))
    return f"{fence}\n{lines}\n{fence}"
