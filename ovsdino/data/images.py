"""Images alone, from folders and zips, for training that reads no label."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.imageio import FORMATS, SUFFIXES, load_image


def open_images(sources: Sequence[str | Path]) -> Iterator[np.ndarray]:
    """Every image of folders and zips, in the order of their names.

    Where a source has a folder `images`, only what lies in it is read: labels are images as well.

    Yields:
        (H, W, 3) uint8.

    Raises:
        OVSDinoError: a source is missing, holds no image, or an image cannot be read.
    """
    for source in map(Path, sources):
        if source.is_dir():
            files = [str(path.relative_to(source)) for path in source.rglob("*")]
            for name in _chosen(source, files):
                yield load_image(source / name)
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for name in _chosen(source, archive.namelist()):
                    try:
                        with Image.open(io.BytesIO(archive.read(name)), formats=FORMATS) as picture:
                            image = load_image(picture)
                    except Exception as error:  # decoders raise whatever a broken byte leads to
                        raise OVSDinoError(f"{source}: cannot read {name}: {one_line(error, 120)}") from error
                    yield image
        else:
            raise OVSDinoError(f"{source}: not a folder or zip of images")


def _chosen(source: Path, names: Sequence[str]) -> list[str]:
    found = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    below = [name for name in found if "images" in PurePosixPath(name).parts[:-1]]
    if not found:
        raise OVSDinoError(f"{source}: no image in it (looked for {', '.join(SUFFIXES)})")
    return below or found
