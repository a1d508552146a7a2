"""Put a SHA-256 into weight files, and check it on reading: neither safetensors nor zip notices every flipped bit.

A safetensors file carries it in the metadata of its header, after its writer's name. The hash is that of the
whole file with 64 zeros in its own place. A zip, which is what `torch.save` writes, carries it as the archive's
comment, which is the last thing in the file; the hash is that of everything before.

A file without a hash passes: the ones written before had none, and the ones of other projects have none.
"""

from __future__ import annotations

import hashlib
import json
import re

from ovsdino.errors import OVSDinoError, one_line

__all__ = ["check_safetensors", "check_zip", "seal_safetensors", "seal_zip"]

WRITER = {"writer": "ovsdino"}
HASH = "sha256"
ZEROS = "0" * 64
COMMENT = b"ovsdino sha256 "
REMEDY = "make or fetch it again"
END = b"PK\x05\x06"  # of a zip's directory; 22 bytes long, the last two of them the comment's length


def seal_safetensors(data: bytes) -> bytes:
    """Return a safetensors file with its hash in the header; other metadata is kept.

    Args:
        data: What `safetensors.torch.save` gives, or any safetensors file.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = {**header.pop("__metadata__", {}), **WRITER, HASH: ZEROS}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns the tensors
    whole = len(text).to_bytes(8, "little") + text + data[8 + length :]
    digest = hashlib.sha256(whole).hexdigest()
    return whole.replace(_entry(ZEROS), _entry(digest), 1)


def check_safetensors(data: bytes, source: object) -> None:
    """Check the hash in a safetensors file, if it has one.

    Args:
        data: The file's content.
        source: Its name, for the message.

    Raises:
        OVSDinoError: The hash is not the content's, or is missing from a file whose header names this writer.
    """
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    if not 0 < length <= len(data) - 8 or b'"__metadata__"' not in header:
        return  # no hash; whether it is a safetensors file is for its parser to say
    try:
        metadata = json.loads(header)["__metadata__"]
        claims = [metadata.get(key) for key in (*WRITER, HASH)]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return
    if claims[1] is None:
        if claims[0] == WRITER["writer"]:
            raise _damaged(source, REMEDY)
        return
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', header)
    if found is None:
        if claims[0] is None:
            return  # another project's idea of a hash
        raise _damaged(source, REMEDY)
    start = 8 + found.start(1)
    digest = hashlib.sha256(data[:start])
    digest.update(ZEROS.encode())
    digest.update(memoryview(data)[start + 64 :])
    if digest.hexdigest().encode() != found[1]:
        raise _damaged(source, REMEDY)


def seal_zip(data: bytes) -> bytes:
    """Return a zip without comment with its hash as the comment.

    Raises:
        ValueError: It is not a zip, or has a comment.
    """
    if data[-22:-18] != END or data[-2:] != b"\0\0":
        raise ValueError("not a zip without comment")
    length = len(COMMENT) + 64
    head = data[:-2] + length.to_bytes(2, "little") + COMMENT
    return head + hashlib.sha256(head).hexdigest().encode()


def check_zip(data: bytes, source: object, remedy: str = REMEDY) -> None:
    """Check the hash in a zip's comment, if it has a comment.

    Raises:
        OVSDinoError: The hash is not the content's, or the file ends in neither a hash nor a zip's directory.
    """
    if data[-22:-18] == END:
        return
    head, claimed = data[:-64], data[-64:]
    if not head.endswith(COMMENT) or hashlib.sha256(head).hexdigest().encode() != claimed:
        raise _damaged(source, remedy)


def _entry(digest: str) -> bytes:
    return f'"{HASH}":"{digest}"'.encode()


def _damaged(source: object, remedy: str) -> OVSDinoError:
    return OVSDinoError(f"{one_line(source)}: damaged (its SHA-256 is not the one it carries); {remedy}")
