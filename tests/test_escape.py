"""Test that untrusted text cannot control the terminal."""

from harness.common.escape import for_terminal


def test_control_characters_are_escaped() -> None:
    # colour, window title, C1 CSI that clears the screen, carriage return, right-to-left override, zero-width space,
    # line separator
    hostile = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\rerror\u202eevil\u200bx\u2028\n"
    shown = for_terminal(hostile)
    assert shown == r"a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\rerror\u202eevil\u200bx\u2028\n"


def test_letters_of_any_language_are_unchanged() -> None:
    for text in ("aws resnet20 L07 d0.210", "θ_init – Übung 符号 ✓", ""):
        assert for_terminal(text) == text
