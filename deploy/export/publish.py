"""Exported files get their names once they are proven, a file and its sidecar as one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from ovsdino.edge.sidecar import Sidecar, pending_path, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_path, atomic_write

__all__ = ["proven"]


@contextmanager
def proven(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path`, its sidecar with it, when the block ends well.

    The block writes the file and its sidecar under the temporary name. When it fails or is interrupted, both vanish and
    what was at `path` stays as it was. The new sidecar waits under a name of its own while the file is renamed: after a
    kill between the two renames the old sidecar's hash refuses the new file, and `Sidecar.load` finishes the second.

    Raises:
        OVSDinoError: the folder cannot be written.
    """
    if path.is_dir():
        raise OVSDinoError(f"{path}: cannot write: it is a folder; choose another --output")
    pending = pending_path(path)
    try:
        with atomic_path(path) as temporary:
            try:
                yield temporary
                sidecar = replace(Sidecar.load(temporary), file=path.name)
                with atomic_write(pending) as file:
                    file.write(json.dumps(asdict(sidecar), indent=2, allow_nan=False).encode() + b"\n")
            finally:
                with suppress(OSError):
                    sidecar_path(temporary).unlink()
        with suppress(FileNotFoundError):  # a reader has done it
            os.replace(pending, sidecar_path(path))
    finally:
        with suppress(OSError):  # renamed, or never written
            pending.unlink()
