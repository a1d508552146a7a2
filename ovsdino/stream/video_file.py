"""Check that a video which was just written is whole: a full disk cuts it off, and OpenCV's writer does not say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ovsdino.errors import OVSDinoError
from ovsdino.io.video import import_cv2

__all__ = ["check_video"]

Element = tuple[bytes, int | None]  # its kind and its end in the file; None where its header leaves that open


def check_video(path: Path, pictures: int) -> None:
    """Raise where a video lacks its end or a picture.

    The container itself is read: with 1 KiB of the last picture and the index missing, FFmpeg still counts all
    pictures of an .avi (measured). After a first failure FFmpeg writes nothing more, so the loss is at the end.

    Args:
        path: An .mp4, .mkv or .avi file.
        pictures: Number of pictures that were written to it.

    Raises:
        OVSDinoError: It is incomplete, or cannot be read.
    """
    next_element = {".avi": _riff, ".mkv": _matroska, ".mp4": _mp4}[path.suffix.lower()]
    try:
        with open(path, "rb") as file:
            complete = _is_whole(file, os.fstat(file.fileno()).st_size, next_element)
    except OSError as error:
        raise OVSDinoError(f"the video cannot be read back: {error.strerror or error}") from error
    if not complete:
        raise OVSDinoError("the video is cut off, as on a full disk")
    found = _count(path)
    if found is not None and found < pictures:
        raise OVSDinoError(f"the video holds {found} of {pictures} pictures, as on a full disk")


def _is_whole(file: BinaryIO, size: int, next_element: Callable[[BinaryIO, int], Element]) -> bool:
    """Tell whether the outermost elements of a file end within it, and the one with the index is there."""
    position, kinds = 0, set()
    while position < size:
        file.seek(position)
        kind, end = next_element(file, position)
        if end is None or not position < end <= size:
            return False
        kinds.add(kind)
        position = end
    return bool(kinds & {b"RIFF", b"moov", b"Segment"})


def _riff(file: BinaryIO, position: int) -> Element:
    """Read an element of AVI: the list's length is written into its header at the end, and is 0 before."""
    header = file.read(8)
    length = int.from_bytes(header[4:], "little")
    return header[:4], position + 8 + length + length % 2 if len(header) == 8 and length else None


def _mp4(file: BinaryIO, position: int) -> Element:
    """Read a box of ISO 14496-12: "moov", with the place of every picture, is written last."""
    header = file.read(16)
    length, kind = int.from_bytes(header[:4], "big"), header[4:8]
    if length == 1:
        length = int.from_bytes(header[8:], "big")
    return kind, position + length if length >= 8 else None


def _matroska(file: BinaryIO, position: int) -> Element:
    """Read an element of RFC 8794: the length of "Segment" is written at the end, and is all ones before."""
    identity = _vint(file, keep_marker=True)
    length = _vint(file, keep_marker=False)
    kind = b"Segment" if identity == 0x18538067 else b"EBML"
    return kind, None if identity is None or length is None else file.tell() + length


def _vint(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """Read an integer whose first byte says how many bytes follow; None where it is cut off or all ones."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    following = 8 - first[0].bit_length()
    data = file.read(following)
    if len(data) < following:
        return None
    bits = 7 * (following + 1)
    value = int.from_bytes(first + data, "big")
    if keep_marker:
        return value
    value &= (1 << bits) - 1
    return None if value == (1 << bits) - 1 else value


def _count(path: Path) -> int | None:
    """Count the pictures that OpenCV finds, undecoded where it can; None where it does not open the file."""
    cv2 = import_cv2()
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            return None
        video.set(cv2.CAP_PROP_FORMAT, -1)
        found = 0
        while video.grab():
            found += 1
        return found
    finally:
        video.release()
