"""The one exception type this package raises for faults that the user can mend."""

from __future__ import annotations

__all__ = ["OVSDinoError", "one_line"]


class OVSDinoError(ValueError):
    """A bad input, name, file or setting; the message says what is wrong and how to mend it.

    The command line prints it as ``error: <one line>`` and exits with 2. Any other exception is a fault of ours.
    """


def one_line(message: object, limit: int = 500) -> str:
    """Fold a message into one printable line of at most ``limit`` characters.

    Args:
        message: An exception or any object with a string form.
        limit: Longest result, in characters; a longer message is cut and ends in "...".

    Returns:
        The text with every run of white space and control characters replaced by one space.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
