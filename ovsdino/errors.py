"""The one exception type for errors that the user can correct, and the text of error messages."""

from __future__ import annotations

import re

__all__ = ["OVSDinoError", "one_line", "out_of_memory", "redact"]

# torch has no exception type for the CPU: it raises RuntimeError, and oneDNN says of its own buffers only that it could
# not create a memory object or a primitive (measured under RLIMIT_AS).
NO_MEMORY = (
    *("can't allocate memory", "out of memory", "not enough memory"),
    *("could not create a memory", "could not create a primitive"),
)

# user:password@ of an address: up to its last @, since passwords hold @ and / too; and the settings that name one.
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:[^\s\"']*|[^\s/?#]*)@")
_SECRET = re.compile(r"(?i)\b((?:user-?)?(?:password|passwd|pwd|pw|pass|token)\s*=\s*)(?:\"[^\"]*\"|[^\s&;,!\"']+)")


class OVSDinoError(ValueError):
    """A bad input, name, file or setting; the message says what is wrong and how to correct it.

    The command line prints it as ``error: <one line>`` and exits with 2. Any other exception is an internal error.
    """


def one_line(message: object, limit: int = 500) -> str:
    r"""Fold a message into one printable line of at most ``limit`` characters.

    Args:
        message: An exception or any object with a string form.
        limit: Longest result, in characters; a longer message is cut and ends in "...".

    Returns:
        The text without passwords of addresses, with every run of white space and control characters replaced by one
        space, and bytes of a file name that are not UTF-8 written as escapes (``\udce9``).
    """
    shown = "".join(
        c if c.isprintable() else ascii(c)[1:-1] if "\ud800" <= c <= "\udfff" else " " for c in str(message)
    )
    text = redact(" ".join(shown.split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out: CUDA's own, Python's, or that of an allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(text in str(error).lower() for text in NO_MEMORY)


def redact(text: str) -> str:
    """Return a text with the user and password of every address in it replaced by ``***``.

    Also the values of settings called password, passwd, pwd, pw, pass or token, as cameras' addresses and GStreamer
    pipelines have them.

    >>> redact("rtsp://admin:secret@10.0.0.1/live?channel=1")
    'rtsp://***@10.0.0.1/live?channel=1'
    """
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))
