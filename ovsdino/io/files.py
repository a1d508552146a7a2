"""Write files that appear whole or not at all, lock folders, hash files, and name the file that a parser choked on."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ovsdino.errors import OVSDinoError, one_line

__all__ = [
    "atomic_path",
    "atomic_write",
    "file_identity",
    "is_litter",
    "lock_folder",
    "read_bytes",
    "read_json",
    "read_text",
    "reading",
    "refuse_inputs",
    "remove_orphans",
    "sha256_of",
]

LOCK_NAME = ".ovsdino.lock"
LITTER = ("thumbs.db", "desktop.ini")
TEMPORARY = re.compile(r"\..*\.\d+\.[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)  # the names that `atomic_path` makes


@contextmanager
def reading(source: object, kind: str, remedy: str = "") -> Iterator[None]:
    """Turn every error of a parser at a damaged file into one error that names the file.

    Parsers raise errors of many types: `struct.error`, `KeyError`, `RecursionError`, `MemoryError`. This is the
    one rule for all of them. An `OVSDinoError` passes unchanged; `KeyboardInterrupt` and `SystemExit` are not caught.

    Args:
        source: The file, or what else names the input in the message.
        kind: What the file should have been, for example "YAML configuration".
        remedy: What the user can do about it; ends the message.

    Raises:
        OVSDinoError: The body raised anything else.
    """
    tail = f"; {remedy}" if remedy else ""
    try:
        yield
    except OVSDinoError:
        raise
    except FileNotFoundError as error:
        raise OVSDinoError(f"{one_line(source)}: no such file{tail}") from error
    except PermissionError as error:
        raise OVSDinoError(f"{one_line(source)}: permission denied; make it readable") from error
    except Exception as error:
        why = one_line(error, 160) or type(error).__name__
        raise OVSDinoError(f"{one_line(source)}: not a readable {kind}: {why}{tail}") from error


def read_bytes(path: str | os.PathLike[str], kind: str, remedy: str = "") -> bytes:
    """Return the content of a regular file.

    A pipe or a device is refused: reading one may never end.

    Args:
        path: The file.
        kind: What it should be, see `reading`.
        remedy: See `reading`.

    Raises:
        OVSDinoError: There is no such file, it cannot be read, or it is not a regular file.
    """
    with reading(path, kind, remedy), open(path, "rb", opener=_open_regular) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], kind: str, remedy: str = "") -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark; line ends become one line feed.

    Other encodings are refused: guessing one would misread names without a word.

    Args:
        path: The file.
        kind: What it should be, see `reading`.
        remedy: See `reading`.

    Raises:
        OVSDinoError: See `read_bytes`; or it is not UTF-8.
    """
    data = read_bytes(path, kind, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise OVSDinoError(
            f"{one_line(path)}: not a readable {kind}: {found} where UTF-8 text is expected; save the file as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], kind: str, remedy: str = "") -> Any:
    """Return the content of a JSON file; see `read_text`.

    Raises:
        OVSDinoError: See `read_text`; or it is not JSON.
    """
    text = read_text(path, kind, remedy)
    with reading(path, kind, remedy):
        return json.loads(text)


def is_litter(name: str) -> bool:
    """Return whether a path is litter of systems and tools: hidden files, Thumbs.db, __MACOSX.

    Hidden files and folders are .DS_Store, ._x, .ipynb_checkpoints, and the temporary files of a killed writer.

    >>> [is_litter(name) for name in ("images/._a.jpg", "__MACOSX/images/a.jpg", "./images/a.jpg")]
    [True, True, False]
    """
    parts = name.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return hidden or "__MACOSX" in parts or parts[-1].lower() in LITTER


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete and on the disk.

    Writes to a temporary name in the same folder, then fsync and rename. After an exception nothing is left behind and
    a file that was there before is untouched.

    Args:
        path: Where the file will be; its folder is made if it is missing.

    Raises:
        OVSDinoError: The folder or the file cannot be written (permission, full disk, a folder of that name).
    """
    with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as raw, _WholeWrites(raw) as file:
        yield file


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` when the body ends without an exception.

    For writers that open the file themselves, such as a video encoder. The body must see to it that what it leaves is
    complete. The temporary name keeps the suffix of ``path``. A link is followed: the file that it names is replaced.
    Temporary files in the folder whose writers were killed are removed, once a process.

    Args:
        path: Where the file will be; its folder is made if it is missing.

    Raises:
        OVSDinoError: The folder or the file cannot be written, or ``path`` is a folder, pipe or device.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        _refuse_special(target)
        real = Path(os.path.realpath(target))
        real.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans_once(real.parent)
        temporary, guard = _begun(real)
        try:
            yield temporary
            os.fsync(guard)  # some disks say only here that they are full
            os.replace(temporary, real)
        finally:
            os.close(guard)
    except OSError as error:
        raise OVSDinoError(
            f"{one_line(target)}: cannot write: {error.strerror or error}; choose another --output"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # gone after the rename; and a failure to tidy must not hide the first one
                temporary.unlink()


def _begun(real: Path) -> tuple[Path, int]:
    """Return a new temporary file next to ``real`` and its descriptor, locked.

    The lock says that the writer lives; the kernel drops it when the process dies. A file that another process took for
    an orphan before it was locked has no name any more: another one is made.
    """
    while True:
        temporary = real.with_name(_temporary_name(real))
        guard = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with suppress(OSError):  # a file system without locks: its orphans stay
            fcntl.flock(guard, fcntl.LOCK_EX)
        if os.fstat(guard).st_nlink:
            return temporary, guard
        os.close(guard)


@contextmanager
def lock_folder(folder: str | os.PathLike[str], purpose: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold a folder for one process; a second one is refused at once.

    The lock is advisory, on a file `.ovsdino.lock` in the folder, and ends with the process however that ends. The file
    goes when the work ends; one that a killed process leaves locks nobody out.

    Args:
        folder: The folder, made if it is missing.
        purpose: What is done in it, for the other's message: "training", "export".
        part: (i, n) of work that n processes share in one folder: others are let in with another i, not with the same
            one and not without a part.

    Raises:
        OVSDinoError: Another process holds the folder, or it cannot be written.
    """
    place = Path(folder)
    shared = part is not None and part[1] > 1
    names = [LOCK_NAME, f"{LOCK_NAME}.{part[0]}-of-{part[1]}"] if part is not None and shared else [LOCK_NAME]
    with ExitStack() as held:
        for name in names:
            exclusive = not (shared and name == LOCK_NAME)
            try:
                place.mkdir(parents=True, exist_ok=True)
                handle = _locked(place / name, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            except BlockingIOError:
                raise OVSDinoError(
                    f"{one_line(place)}: another {purpose} is writing to this folder; wait for it, or choose another "
                    "folder"
                ) from None
            except OSError as error:
                raise OVSDinoError(
                    f"{one_line(place)}: cannot write: {error.strerror}; choose another folder"
                ) from error
            held.callback(os.close, handle)
            if exclusive:
                held.callback(_unlink, place / name)  # before the close, which ends the lock
        yield


def _locked(path: Path, kind: int) -> int:
    """Open and lock a file that its last holder may be removing; return the descriptor.

    Raises:
        BlockingIOError: Another process holds it.
    """
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks
                return handle
            found = os.fstat(handle)
            if file_identity(path) == (found.st_dev, found.st_ino):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # removed between the two: a lock on it holds nothing


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def refuse_inputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str] | tuple[int, int]]
) -> None:
    """Refuse to write where an input lies, links and case of names looked through.

    Args:
        outputs: Files and folders that will be written.
        inputs: Files and folders that are read, or their `file_identity`; what does not exist is passed over.

    Raises:
        OVSDinoError: An output is an input.
    """
    read = {one if isinstance(one, tuple) else file_identity(one) for one in inputs} - {None}
    for output in outputs:
        if file_identity(output) in read:
            raise OVSDinoError(f"{one_line(output)}: the result would replace an input; choose another --output")


def file_identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the device and number of the file behind a path, or None where no file can be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # not there, a loop of links, too long a name, a closed folder, a NUL
        return None
    return found.st_dev, found.st_ino


def sha256_of(path: str | os.PathLike[str], kind: str = "file") -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hexadecimal.

    Args:
        path: The file.
        kind: What it should be, see `reading`.

    Raises:
        OVSDinoError: See `read_bytes`.
    """
    digest = hashlib.sha256()
    with reading(path, kind), open(path, "rb", opener=_open_regular) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _WholeWrites(io.BufferedWriter):
    """A buffered file that hides its descriptor.

    Pillow writes to a descriptor from C and does not look at short writes (measured: a JPEG on a full disk is cut off
    without an error). Without one it goes through `write`, which raises.
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("written through write() only")


def remove_orphans(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` in a folder whose writers are gone."""
    for orphan in folder.glob(".*.tmp*"):
        if not TEMPORARY.fullmatch(orphan.name):
            continue
        with suppress(OSError):
            if not stat.S_ISREG(orphan.stat().st_mode):
                continue
            handle = os.open(orphan, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                orphan.unlink()
            finally:
                os.close(handle)


@functools.lru_cache(maxsize=256)  # listing a folder of 100 000 files at each write would take longer than the write
def _remove_orphans_once(folder: Path) -> None:
    with suppress(OSError):
        remove_orphans(folder)


def _temporary_name(target: Path) -> str:
    """Return a name that fits wherever the target's own name fits: at most 255 bytes."""
    start = os.fsencode(target.name)[:100].decode("utf-8", "ignore")
    suffix = target.suffix if re.fullmatch(r"\.\w{1,12}", target.suffix, re.ASCII) else ""
    return f".{start}.{os.getpid()}.{secrets.token_hex(4)}.tmp{suffix}"


def _open_regular(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)  # else opening a pipe waits for its writer
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError(f"it {_special(mode)}")
    return handle


def _refuse_special(target: Path) -> None:
    """Refuse a target that a rename would destroy: /dev/null must stay what it is."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OVSDinoError(f"{one_line(target)}: cannot write: {_special(mode)}; choose another --output")


def _special(mode: int) -> str:
    return "is a folder" if stat.S_ISDIR(mode) else "is a pipe, a socket or a device, not a file"
