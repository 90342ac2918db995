"""Test that untrusted text cannot control the terminal, and that no secret of a URI is shown or stored."""

import io
import sys

import pytest

from harness.cli.errors import clear_errors
from harness.common.escape import accept_any_text, for_terminal, redact, redact_word


def test_control_characters_are_escaped() -> None:
    # colour, window title, C1 CSI that clears the screen, carriage return, right-to-left override, zero-width space,
    # line separator
    hostile = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\rerror\u202eevil\u200bx\u2028\n"
    shown = for_terminal(hostile)
    assert shown == r"a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\rerror\u202eevil\u200bx\u2028\n"


def test_letters_of_any_language_are_unchanged() -> None:
    for text in ("aws resnet20 L07 d0.210", "θ_init – Übung 符号 ✓", ""):
        assert for_terminal(text) == text


URIS = [
    ("postgresql://u:S3C@h/db", "postgresql://***@h/db"),
    ("postgresql://u:S3/C r@T@h:5432/db", "postgresql://***@h:5432/db"),
    ("mysql+pymysql://u:S?C#x@h/db", "mysql+pymysql://***@h/db"),
    ("redis://:S3C@h", "redis://***@h"),
    ("https://S3C@h/x", "https://***@h/x"),
    ("postgresql://h/db?user=u&password=S3C&ssl=1", "postgresql://h/db?user=u&password=***&ssl=1"),
    ("postgresql://h/db?sslpassword=S3%20C", "postgresql://h/db?sslpassword=***"),
    ("https://h:5000/?token=S3 C", "https://h:5000/?token=***"),
    ("https://h/?sig=S3C&session_key=T0K&x=y", "https://h/?sig=***&session_key=***&x=y"),
    ("https://h/?auth=S3C&pass=T0K&authorization=B", "https://h/?auth=***&pass=***&authorization=***"),
    ("https://h/?api_key=S3C;access_token=T0K&x=y", "https://h/?api_key=***;access_token=***&x=y"),
    ("http://h:5000/?key=S3 C", "http://h:5000/?key=***"),
    ("https://h/?subscription-key=S3C&code=T0K&x=y", "https://h/?subscription-key=***&code=***&x=y"),
    ("https://h/?monkey=5&key_id=3&jsessionid=S3C", "https://h/?monkey=5&key_id=3&jsessionid=***"),
    ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Du%3BPWD%3DS3C&a=b", "mssql+pyodbc:///?odbc_connect=***&a=b"),
    ("mssql+pyodbc:///?odbc_connect=DRIVER={X};PWD={S3;C}", "mssql+pyodbc:///?odbc_connect=***"),
    ("DRIVER={SQL};UID=me;PWD={S3;C};X=1", "DRIVER={SQL};UID=me;PWD=***;X=1"),
    ("PWD%3DS3C%3BX%3D1", "PWD%3D***%3BX%3D1"),
]


@pytest.mark.parametrize(("uri", "shown"), URIS, ids=[shown for _, shown in URIS])
def test_secrets_of_a_uri_are_removed(uri: str, shown: str) -> None:
    assert redact_word(uri) == shown
    # Inside of a message the rest must stay. A space ends a secret of the query there, and not in a word.
    message = redact(f"cannot begin: MLflow at {uri}: no answer, see http://other/x")
    assert message.startswith("cannot begin: MLflow at ") and message.endswith(" no answer, see http://other/x")
    assert "S3C" not in message and "T0K" not in message


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_tokens_in_headers_are_removed(scheme: str) -> None:
    for header in (f"header value: '{scheme} S3C T0K'.", f"Authorization: {scheme} S3C"):
        assert redact(header).startswith(header.partition("S3C")[0] + "***") and "T0K" not in redact(header)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////a/b@c.db",
        "http://127.0.0.1:5000: refused; ask a@b.org",
        "see http://h:5000/x, then mail a@b.org",
        "--num-tokens 3 tokenizer=x",
        "models:/aws@L03",
        "lr=0.1 key 1234",
        "Basic training of the 'Basic' block",
        "which key=9993c55; code=3",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_any_text_can_be_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    accept_any_text()
    print("θ – 符号 \udce4 a")
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert written.endswith(" a\n") and r"\udce4" in written
    assert (r"\u7b26" in written) is (encoding != "utf-8")


def test_errors_of_commands_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), clear_errors():
        raise ValueError("the run \x1b[31mred\u202e is altered")
    assert capsys.readouterr().err == "error: the run \\x1b[31mred\\u202e is altered\n"
