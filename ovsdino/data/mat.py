"""MATLAB's version 5 files, as much of them as BSDS500's ground truth uses: numbers, cells and structures.

scipy's reader ends the process on damaged files (measured: a segmentation fault within 150 mutants of one file), so
these few lines, which Python checks, stand in its place. Format: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from ovsdino.io.tree import MAX_FILE_BYTES

__all__ = ["read_mat"]

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15  # types of an element
CELL, STRUCTURE, NUMBERS = 1, 2, range(6, 16)  # classes of a matrix
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def read_mat(data: bytes) -> dict[str, Any]:
    """Return the variables of a file by name.

    Args:
        data: The whole file.

    Returns:
        For numbers an array in MATLAB's shape, for a cell array the list of its values, for a structure array the list
        of its members, each a dict from field to value; None for what is neither.

    Raises:
        ValueError: It is not such a file, or it is damaged. Damage may also raise zlib.error or RecursionError.
    """
    if len(data) < HEADER_BYTES or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("no MATLAB file of version 5")
    order = "<" if data[126:128] == b"IM" else ">"
    variables, rest = {}, memoryview(data)[HEADER_BYTES:]
    while rest:
        kind, content, rest = _element(rest, order)
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(content, MAX_FILE_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable unpacks to more than {MAX_FILE_BYTES:,} bytes")
            kind, content, _ = _element(memoryview(plain), order)
        if kind == MATRIX:
            name, value = _matrix(content, order)
            variables[name] = value
    return variables


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Return the type and the content of the first element, and the rest."""
    if len(data) < 8:
        raise ValueError("the file is cut off")
    first, size = (int(v) for v in np.frombuffer(data[:8], f"{order}u4"))
    if first >> 16:  # up to four bytes lie in the tag itself
        kind, size, start, end = first & 0xFFFF, first >> 16, 4, 8
        if size > 4:
            raise ValueError("a short element with more than four bytes")
    else:
        kind, start, end = first, 8, 8 + size
        end += -end % 8 if kind != COMPRESSED else 0
    if start + size > len(data):
        raise ValueError("the file is cut off")
    return kind, data[start : start + size], data[end:]


def _numbers(data: memoryview, order: str) -> tuple[np.ndarray, memoryview]:
    """Return the first element's numbers, and the rest."""
    kind, content, rest = _element(data, order)
    if kind not in DTYPES:
        raise ValueError(f"numbers of the unknown type {kind}")
    return np.frombuffer(content, order + DTYPES[kind]), rest


def _matrix(data: memoryview, order: str) -> tuple[str, Any]:
    """Return the name and the value of a matrix."""
    if not data:  # an empty place of a cell array
        return "", np.zeros((0, 0))
    flags, rest = _numbers(data, order)
    shape, rest = _numbers(rest, order)
    name, rest = _numbers(rest, order)
    kind, count = int(flags[0]) & 0xFF, math.prod(int(v) for v in shape)
    if kind == CELL:
        return _text(name), _members(rest, order, count)[0]
    if kind == STRUCTURE:
        length, rest = _numbers(rest, order)
        names, rest = _numbers(rest, order)
        fields = [_text(part) for part in names.reshape(-1, int(length[0]))]
        values, size = _members(rest, order, count * len(fields))[0], len(fields)
        members = [dict(zip(fields, values[i : i + size], strict=True)) for i in range(0, len(values), size)]
        return _text(name), members
    if kind in NUMBERS:
        numbers, _ = _numbers(rest, order)
        return _text(name), numbers.reshape([int(v) for v in shape], order="F")
    return _text(name), None


def _members(data: memoryview, order: str, count: int) -> tuple[list[Any], memoryview]:
    """Return the values of the next `count` matrices, and the rest."""
    values = []
    for _ in range(count):
        kind, content, data = _element(data, order)
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where a matrix belongs")
        values.append(_matrix(content, order)[1])
    return values, data


def _text(characters: np.ndarray) -> str:
    return characters.tobytes().split(b"\0")[0].decode("latin-1")
