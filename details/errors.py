"""What the user got wrong, in one line."""

import re


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong, where."""


class Unreachable(InputError):
    """A problem whose responses cannot be judged: no response can reach its answer, or its tests
    are not calls and their values; the message says what else there is."""


def one_line(error):
    """An exception's message, or its kind if it has none, on one line."""
    line = " ".join(printable(str(error)).split())
    return line[:1000] or type(error).__name__


def printable(text):
    """Any text, safe for a terminal: control characters and escapes are spelled out."""
    unsafe = r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]"
    return re.sub(unsafe, lambda match: repr(match[0])[1:-1], text)
