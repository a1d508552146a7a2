"""Images alone, from folders and zips, for work that reads no label."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from ovsdino.errors import OVSDinoError
from ovsdino.io.images import SUFFIXES
from ovsdino.io.tree import FileTree


class ImageSource:
    """The images of a folder (and the folders in it) or of a zip.

    Where it has a folder `images`, only what lies in that is taken: labels are images as well.

    Args:
        source: the folder or zip.

    Attributes:
        names: paths within the source, sorted.

    Raises:
        OVSDinoError: no such folder or zip, or no image in it.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        if not self.source.is_dir() and not (self.source.is_file() and zipfile.is_zipfile(self.source)):
            raise OVSDinoError(f"{source}: not a folder or zip of images")
        self._tree = FileTree(self.source, contained=False)
        found = [name for name in self._tree.names() if name.lower().endswith(SUFFIXES)]
        if not found:
            raise OVSDinoError(f"{source}: no image in it (looked for {', '.join(SUFFIXES)})")
        self.names = [name for name in found if "images" in PurePosixPath(name).parts[:-1]] or found

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> np.ndarray:
        """Return an image, (H, W, 3) uint8.

        Raises:
            OVSDinoError: the image cannot be read.
        """
        return self._tree.image(name)
