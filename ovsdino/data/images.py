"""Images alone, from folders and zips, for work that reads no label."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.imageio import FORMATS, SUFFIXES, load_image


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
        if self.source.is_dir():
            names = [path.relative_to(self.source).as_posix() for path in self.source.rglob("*")]
        elif zipfile.is_zipfile(self.source):
            with zipfile.ZipFile(self.source) as archive:
                names = archive.namelist()
        else:
            raise OVSDinoError(f"{source}: not a folder or zip of images")
        found = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        if not found:
            raise OVSDinoError(f"{source}: no image in it (looked for {', '.join(SUFFIXES)})")
        self.names = [name for name in found if "images" in PurePosixPath(name).parts[:-1]] or found

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
            OVSDinoError: the image cannot be read.
        """
        if self.source.is_dir():
            return load_image(self.source / name)
        try:
            with (
                zipfile.ZipFile(self.source) as archive,
                Image.open(io.BytesIO(archive.read(name)), formats=FORMATS) as picture,
            ):
                return load_image(picture)
        except Exception as error:  # decoders raise whatever a broken byte leads to
            raise OVSDinoError(f"{self.source}: cannot read {name}: {one_line(error, 120)}") from error


def open_images(sources: Sequence[str | Path]) -> Iterator[np.ndarray]:
    """Every image of several sources, (H, W, 3) uint8, one after the other.

    Raises:
        OVSDinoError: see `ImageSource`.
    """
    for source in map(ImageSource, sources):
        for name in source.names:
            yield source.read(name)
