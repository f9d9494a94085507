"""What the user got wrong, in one line."""

import re


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong, where."""


def one_line(error, longest=300):
    """An exception's message, or its kind if it has none, on one line."""
    return printable(" ".join(str(error).split()))[:longest] or type(error).__name__


def printable(text):
    """Any text, safe for a terminal: control characters and escapes are spelled out."""
    return re.sub(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]", lambda c: repr(c[0])[1:-1], text)
