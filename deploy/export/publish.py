"""Publish an exported file: it is held in memory until it is proven, then gets its name together with its sidecar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ovsdino.edge.sidecar import Sidecar, pending_path, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, lock_folder

__all__ = ["Exported", "locked_output", "publish"]


class Exported(NamedTuple):
    """An exported file in memory: its content, hashed once, and the sidecar that describes it."""

    data: bytes
    sidecar: Sidecar

    @classmethod
    def of(cls, data: bytes, sidecar: Sidecar, **changes: Any) -> Exported:
        """Hash new data; the sidecar's other fields are those given, with changes by name."""
        return cls(data, sidecar.describing(data, **changes))

    @classmethod
    def read(cls, path: str | Path) -> Exported:
        """Read a file with its sidecar.

        Raises:
            OVSDinoError: One of them is missing, changed or damaged.
        """
        sidecar = Sidecar.load(path)
        return cls(sidecar.read(path), sidecar)

    def proven(self, figures: Mapping[str, Any] | None) -> Exported:
        """Return the same file with the figures of its comparison in its sidecar; None where nobody compared it."""
        return self._replace(sidecar=replace(self.sidecar, verified=figures))


def publish(path: Path, exported: Exported) -> Sidecar:
    """Give an exported file and its sidecar their names, as one.

    When the work fails or is interrupted, the files at `path` stay as they were. The new sidecar waits under a name of
    its own while the file is renamed: after a kill between the two renames the old sidecar's hash refuses the new file,
    and `Sidecar.load` does the second rename.

    Args:
        path: Name of the file.
        exported: Content and sidecar.

    Returns:
        The sidecar as written.

    Raises:
        OVSDinoError: The file cannot be written.
    """
    sidecar, pending = replace(exported.sidecar, file=path.name), pending_path(path)
    try:
        with atomic_write(path) as file:
            file.write(exported.data)
            with atomic_write(pending) as waiting:
                waiting.write(sidecar.to_bytes())
    except BaseException:
        pending.unlink(missing_ok=True)
        raise
    with suppress(FileNotFoundError):  # a reader has done it
        os.replace(pending, sidecar_path(path))
    return sidecar


@contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Hold the folder of an output while it is made, and refuse one that cannot be written before the work begins.

    Raises:
        OVSDinoError: The path is a folder, its folder cannot be written, or another export is writing to it.
    """
    if path.is_dir():
        raise OVSDinoError(f"{path}: cannot write: it is a folder; choose another --output")
    with lock_folder(path.parent, "export"):
        yield
