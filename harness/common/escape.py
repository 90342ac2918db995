"""Escape untrusted text before it is shown. Names and tags may come from another user's store."""

from __future__ import annotations

import re
import sys
import unicodedata

# Unicode categories. A terminal executes control characters (Cc), and format characters (Cf) can reverse text. The
# others are surrogates, private and unassigned characters, and line and paragraph separators.
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


# A user name and password before the last @ of a URI. A password may contain slashes, spaces and @. So everything up to
# the last @ before the next URI is removed, even other text. A port is an exception: "http://host:5000/path, mail a@b"
# has no password.
_AFTER_USER = r"(?:(?!://)[^\n])*@"
_USER_AND_PASSWORD = re.compile(rf"://(?:[^/\s@:]*:(?!\d{{1,5}}(?:/[^\s@]*)?\W?\s){_AFTER_USER}|[^/\s]*@)")
_USER_AND_PASSWORD_OF_WORD = re.compile(rf"://(?:[^/@]*:{_AFTER_USER}|[^/]*@)")

# NAME=VALUE in a query, a connection string or a command, also percent-encoded (PWD%3Dx%3B).
_SECRET_WORDS = (
    "password|passwd|passphrase|pass|pwd|token|secret|credentials?|auth|authorization|jwt|sas|sig|signature"
    "|(?:api|access|account|private|session)[_-]?key(?:id)?"
)
_SECRET = re.compile(
    rf"(?P<name>\bodbc_connect(?P<whole>)|\b\w*?(?:{_SECRET_WORDS})(?:_\w+)?)(?P<equals>[\s\ue000]?=[\s\ue000]?|%3D)"
    r"(?P<value>(?(whole)[^&\s]+|(?:\{[^}\n]*\}|\"[^\"\n]*\"|'[^'\n]*'|(?:(?!%3B|%26)[^&;\s\"'<>])+)))",
    re.IGNORECASE,
)

# NAME=VALUE in the query of a URI only, since such names are usual words elsewhere.
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&;](?:[\w-]*[-_])?(?:key|code|psw|passcode|bearer|otp|pin|cookie|hmac|\w*session(?:id)?))="
    r"(?:(?!%3B|%26)[^&;\s\"'<>])+",
    re.IGNORECASE,
)

# The value of a header, as an error quotes it.
_HEADER_SECRET = re.compile(r"((?:['\"]|uthorization: ?)(?:Bearer|Basic) )[^'\"\n]+")


def redact(text: str) -> str:
    """Return `text` without the secrets of any URI or connection string in it.

    A secret is a user name and password before the host. The values of names such as password, token, secret and
    odbc_connect are secrets, too.
    """
    if "://" in text:
        text = _USER_AND_PASSWORD.sub("://***@", text)
    if "Bearer " in text or "Basic " in text:
        text = _HEADER_SECRET.sub(r"\1***", text)
    if "=" not in text and "%3" not in text:
        return text
    text = _SECRET.sub(lambda match: f"{match['name']}{match['equals']}***", text)
    return _QUERY_SECRET.sub(lambda match: f"{match['name']}=***", text)


def redact_word(word: str) -> str:
    """Return a URI, or one word of a command, without secrets. No space in it ends a secret."""
    word = _USER_AND_PASSWORD_OF_WORD.sub("://***@", word)
    # A private-use character stands for each space meanwhile, since a space ends a secret in other texts.
    return redact(word.replace(" ", "\ue000")).replace("\ue000", " ")


def for_terminal(text: str) -> str:
    r"""Escape control and invisible characters, for example as \x1b."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def one_line(text: object) -> str:
    r"""Return a text of a file, or an error that quotes one, as one printable line.

    >>> one_line("unknown type `a\n\x1b[1m`")
    'unknown type `a\\n\\x1b[1m`'
    """
    return for_terminal(str(text).strip())


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


def accept_any_text() -> None:
    r"""Let standard output print any character. One that its encoding lacks appears as \u2013, and ends no command."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a notebook or a test may have replaced it
        reconfigure(errors="backslashreplace")
