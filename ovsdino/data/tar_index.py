"""Random access to uncompressed tars: where each file lies, found once and kept beside the tar.

`name.tar.index.json` is a cache: it is believed while the tar has the size and the time of change it was made for, and
made again otherwise. Where it cannot be written the index lives in memory.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write

FORMAT = 1
TEXTS = (".txt", ".json")  # small files whose text the index keeps: one reading of the tar is enough
MAX_TEXT = 1 << 20  # bytes of such a file
MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: relative, "/" between its parts.
        offset, size: of its bytes in the tar.
        text: what it says, for files whose name ends in one of `TEXTS`.
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
    """The tars of a pattern below `root`: `*` and `?` match, `{a,b}` and `{000..123}` list.

    Raises:
        OVSDinoError: nothing matches, or a name that the pattern lists is not there.
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
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part) if inside % 2 else None
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
    """The files of a tar in its order.

    Raises:
        OVSDinoError: not an uncompressed tar, damaged, a link, or a name that leads out of it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read: {error.strerror}") from error
    stamp = _Stamp(FORMAT, status.st_size, status.st_mtime_ns)
    cache = path.with_name(f"{path.name}.index.json")
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError, OVSDinoError):
        tree = json.loads(cache.read_text(encoding="utf-8"))
        if tree["stamp"] == asdict(stamp):
            return [_checked(Member(*row), status.st_size) for row in tree["files"]]
    members = _scan(path, status.st_size)
    if os.access(path.parent, os.W_OK):
        tree = {"stamp": asdict(stamp), "files": [astuple(member) for member in members]}
        with suppress(OSError, OVSDinoError), atomic_write(cache) as file:
            file.write(json.dumps(tree, ensure_ascii=False).encode())
    return members


def read_member(path: Path, member: Member) -> bytes:
    """A file's bytes. The tar is opened here and nowhere else, so processes share no position in it.

    Raises:
        OVSDinoError: the tar is gone or shorter than it was.
    """
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read {member.name}: {error.strerror}") from error
    if len(data) != member.size:
        raise OVSDinoError(f"{path}: cannot read {member.name}: the file ends before it does")
    return data


def _scan(path: Path, size: int) -> list[Member]:
    members = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise OVSDinoError(f"{path}: {info.name} is no plain file; links are not followed")
                text = None
                if info.name.lower().endswith(TEXTS):
                    if info.size > MAX_TEXT:
                        raise OVSDinoError(f"{path}: {info.name} has {info.size} bytes; at most {MAX_TEXT} of text")
                    file = archive.extractfile(info)
                    assert file is not None
                    try:
                        text = file.read().decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise OVSDinoError(f"{path}: {info.name} is not UTF-8") from error
                name = info.name.removeprefix("./")
                members.append(_checked(Member(name, info.offset_data, info.size, text), size, path))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise OVSDinoError(f"{path}: not an uncompressed tar, or damaged ({one_line(error, 80)})") from error
    return members


def _checked(member: Member, size: int, path: Any = "index") -> Member:
    """The member, if it lies in a tar of `size` bytes and its name below the tar."""
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in member.name:
        raise OVSDinoError(f"{path}: {member.name!r} leads out of the tar")
    if member.offset < 0 or member.size < 0 or member.offset + member.size > size:
        raise OVSDinoError(f"{path}: {member.name} ends after the tar does")
    return member
