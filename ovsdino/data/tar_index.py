"""Read files of uncompressed tars at random: where each lies is found once and kept next to the tar.

`name.tar.index.json` is a cache: it is believed while the tar has the size and the time of change it was made for, and
made again otherwise. Where it cannot be written the index lives in memory.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import stat
import tarfile
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, is_litter, read_json, reading
from ovsdino.io.tree import MAX_FILE_BYTES

FORMAT = 1
TEXTS = (".txt", ".json")  # small files whose text the index keeps: one reading of the tar is enough
MAX_TEXT = 1 << 20  # bytes of such a file
MAX_SHARDS = 100_000
REMEDY = "see data.annotations"


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: Relative, "/" between its parts.
        offset, size: Of its bytes in the tar.
        text: Its content, for files whose name ends in one of `TEXTS`.
    """

    name: str
    offset: int
    size: int
    text: str | None = None


@dataclass(frozen=True)
class _Stamp:
    """Which tar an index belongs to."""

    format: int
    size: int
    mtime_ns: int


def expand_shards(root: str | Path, pattern: str) -> list[Path]:
    """Return the tars of a pattern below `root`: `*` and `?` match, `{a,b}` and `{000..123}` list.

    Raises:
        OVSDinoError: Nothing matches, or a name that the pattern lists is not there.
    """
    found: list[Path] = []
    for name in _expand_braces(pattern):
        if glob.has_magic(name):
            found.extend(Path(root, match) for match in sorted(glob.glob(name, root_dir=root)))
        elif Path(root, name).is_file():
            found.append(Path(root, name))
        else:
            raise OVSDinoError(f"{Path(root, name)}: no such file; {pattern!r} lists it (data.annotations)")
    if not found:
        raise OVSDinoError(f"{root}: no file matches {pattern!r} (data.annotations), for instance '*.tar'")
    return list(dict.fromkeys(found))


def _expand_braces(pattern: str) -> list[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices, total = [], 1
    for inside, part in enumerate(parts):
        span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part) if inside % 2 else None
        if span:
            first, last = int(span[1]), int(span[2])
            total *= max(0, last - first + 1)
            if total <= MAX_SHARDS:
                choices.append([f"{number:0{len(span[1])}d}" for number in range(first, last + 1)])
        else:
            choices.append(part.split(",") if inside % 2 else [part])
            total *= len(choices[-1])
        if total > MAX_SHARDS:
            raise OVSDinoError(f"{pattern!r} lists more than {MAX_SHARDS} files (data.annotations)")
    return ["".join(choice) for choice in itertools.product(*choices)]


def index_tar(path: Path) -> list[Member]:
    """Return the files of a tar in its order.

    Raises:
        OVSDinoError: It is not an uncompressed tar, is damaged, holds a link, or a name that leads out of it.
    """
    with reading(path, "tar", REMEDY):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a folder, a pipe or a device, not a file")
    stamp = _Stamp(FORMAT, status.st_size, status.st_mtime_ns)
    cache = path.with_name(f"{path.name}.index.json")
    with suppress(OVSDinoError), reading(cache, "index"):  # a damaged index is made again
        tree = read_json(cache, "index")
        if tree["stamp"] == asdict(stamp):
            return [_checked(Member(*row), status.st_size) for row in tree["files"]]
    members = _scan(path, status.st_size)
    if os.access(path.parent, os.W_OK):
        tree = {"stamp": asdict(stamp), "files": [astuple(member) for member in members]}
        with suppress(OSError, OVSDinoError), atomic_write(cache) as file:
            file.write(json.dumps(tree).encode())  # ASCII: names in a tar need not be UTF-8
    return members


def read_member(path: Path, member: Member) -> bytes:
    """Return a file's bytes. The tar is opened here and nowhere else, so processes share no position in it.

    Raises:
        OVSDinoError: The tar is gone or shorter than it was.
    """
    if member.size > MAX_FILE_BYTES:
        raise OVSDinoError(f"{path}: cannot read {member.name}: {member.size} bytes, at most {MAX_FILE_BYTES}")
    with reading(path, "tar", REMEDY), path.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) != member.size:
        raise OVSDinoError(f"{path}: cannot read {member.name}: the file ends before it does")
    return data


def _scan(path: Path, size: int) -> list[Member]:
    members = []
    # The limit: tarfile follows a size below zero back to a file it has read, and never ends.
    with reading(path, "uncompressed tar", REMEDY), tarfile.open(path, "r:") as archive:
        for info in itertools.islice(archive, size // tarfile.BLOCKSIZE + 1):
            if info.isdir() or (info.isreg() and is_litter(info.name)):
                continue
            if not info.isreg() or info.issparse():
                raise OVSDinoError(f"{path}: {one_line(info.name, 80)} is not a plain file; links are not followed")
            member = _checked(Member(info.name.removeprefix("./"), info.offset_data, info.size), size, path)
            if info.name.lower().endswith(TEXTS):
                if info.size > MAX_TEXT:
                    raise OVSDinoError(f"{path}: {member.name} has {info.size} bytes; at most {MAX_TEXT} of text")
                file = archive.extractfile(info)
                assert file is not None
                with reading(f"{path}: {member.name}", "text in UTF-8"):
                    member = replace(member, text=file.read().decode("utf-8"))
            members.append(member)
    return members


def _checked(member: Member, size: int, path: Any = "index") -> Member:
    """Return the member, if it lies in a tar of `size` bytes and its name below the tar."""
    whole = type(member.offset) is int and type(member.size) is int
    if not whole or not isinstance(member.name, str) or not isinstance(member.text, str | None):
        raise OVSDinoError(f"{path}: no name, offset, size and text of a file")
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in member.name:
        raise OVSDinoError(f"{path}: {member.name!r} leads out of the tar")
    if member.offset < 0 or member.size < 0 or member.offset + member.size > size:
        raise OVSDinoError(f"{path}: {member.name} ends after the tar does")
    return member
