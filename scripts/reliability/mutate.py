"""Damage files on purpose: bit flips, cuts, splices, deletions, and hostile numbers, keys and headers.

Every mutator takes a file's bytes and a `random.Random`, and returns other bytes. The same seed gives the same damage.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
WORD = re.compile(r"[A-Za-z_]\w*")
NUMBERS = ("0", "-1", "1", "2147483648", "8589934592", "1099511627776", "9223372036854775808", "1e400", "-1e308", "nan",
           "0.5", "true", "null", "", "9" * 5000)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, 1 << 33, 1 << 40, 1 << 63, 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "../../x", "/etc/passwd", "\ud800", "\x00", "a" * 70_000, "-1", [], {}, [[]], [None],
    {"": 0},
)  # fmt: skip


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes after one of seven kinds of damage that need no knowledge of the format."""
    if not data:
        return rng.randbytes(rng.randint(1, 64))
    size = len(data)
    at, length = rng.randrange(size), min(size, 1 << rng.randrange(12))
    kind = rng.randrange(7)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + length :]
    if kind == 3:  # a piece of the file over another place
        other = rng.randrange(size)
        return data[:at] + data[other : other + length] + data[at + length :]
    if kind == 4:
        return data[:at] + rng.randbytes(length) + data[at:]
    if kind == 5:
        return data[:at] + bytes(min(length, size - at)) + data[at + length :]
    code = rng.choice("HIQ")
    value = rng.choice((0, 1, (1 << 8 * struct.calcsize(code)) - 1, 1 << (8 * struct.calcsize(code) - 1)))
    packed = struct.pack(rng.choice("<>") + code, value)
    return (data[:at] + packed + data[at + len(packed) :])[:size]


def text_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a text with a number or a word replaced, or damaged as bytes."""
    if rng.random() < 0.4:
        return bytes_damaged(data, rng)
    text = data.decode("utf-8")
    pattern, values = (NUMBER, NUMBERS) if rng.random() < 0.5 else (WORD, ("", "x", "null", "é", "\x00", "[" * 5000))
    found = list(pattern.finditer(text))
    if not found:
        return bytes_damaged(data, rng)
    place = rng.choice(found)
    return (text[: place.start()] + rng.choice(values) + text[place.end() :]).encode()


def tree_damaged(tree: Any, rng: random.Random) -> Any:
    """Return a copy of nested lists and mappings with one entry replaced, deleted, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.02:
        return rng.choice(VALUES)
    walk(tree)
    node, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.7:
        node[key] = rng.choice(VALUES)
    elif kind < 0.8:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[rng.choice(("", "x", f"{key} "))] = node.pop(key) if kind < 0.9 else node[key]
    return tree


def json_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON file with one entry changed, or damaged as text, or nested deeper than a parser goes."""
    kind = rng.random()
    if kind < 0.01:
        return b"[" * 100_000
    return json.dumps(tree_damaged(json.loads(data), rng)).encode() if kind < 0.6 else text_damaged(data, rng)


def lines_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a file of JSON lines with one line changed, deleted, doubled, or damaged as text."""
    lines = data.split(b"\n")
    at = rng.choice([i for i, line in enumerate(lines) if line])
    kind = rng.random()
    if kind < 0.6:
        lines[at] = json.dumps(tree_damaged(json.loads(lines[at]), rng), separators=(",", ":")).encode()
    elif kind < 0.7:
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2))
    else:
        return text_damaged(data, rng)
    return b"\n".join(lines)


def yaml_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a YAML file with one entry changed, or damaged as text."""
    import yaml

    if rng.random() < 0.4:
        return text_damaged(data, rng)
    return yaml.safe_dump(tree_damaged(yaml.safe_load(data), rng), allow_unicode=False).encode("utf-8", "replace")


def safetensors_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header has one entry changed, or which is damaged as bytes."""
    if rng.random() < 0.5:
        return bytes_damaged(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(tree_damaged(json.loads(data[8 : 8 + size]), rng)).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def zip_damaged(inner: Mutator) -> Mutator:
    """Return a mutator of zips: a member damaged by `inner` and packed anew, a hostile name, or damaged bytes."""

    def damaged(data: bytes, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return bytes_damaged(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [(name, archive.read(name)) for name in archive.namelist()]
        at = rng.randrange(len(files))
        name, content = files[at]
        if kind < 0.8:
            files[at] = (name, inner(content, rng))
        elif kind < 0.9:
            folder, _, file = name.rpartition("/")
            files[at] = (
                rng.choice((f"../{name}", f"/{name}", f"{folder}/", file, name.upper(), "é\\" + name)),
                content,
            )
        else:
            files[at : at + 1] = rng.choice(([], [files[at]] * 2))
        target = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(target, "w", rng.choice((0, 8))) as archive:
            warnings.simplefilter("ignore")  # a name that is there twice is meant
            for name, content in files:
                archive.writestr(zipfile.ZipInfo(name), content)
        return target.getvalue()

    return damaged


def tar_damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a tar with a header changed and its checksum put right, or damaged as bytes."""
    if rng.random() < 0.4:
        return bytes_damaged(data, rng)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        start = rng.choice([info.offset for info in archive])
    head = bytearray(data[start : start + 512])
    first, last = rng.choice(
        ((0, 100), (100, 108), (124, 136), (136, 148), (156, 157), (157, 257), (257, 265), (345, 500))
    )
    width = last - first
    values = (b"\xff" * width, b"7" * width, b"\x80" + b"\x00" * (width - 1), b"", b"../x", b"-1", rng.randbytes(width))
    head[first:last] = rng.choice(values)[:width].ljust(width, b"\x00")
    if rng.random() < 0.3:
        head[156:157] = rng.choice((b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"D"))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\x00 " % sum(head)
    return data[:start] + bytes(head) + data[start + 512 :]
