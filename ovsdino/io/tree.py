"""Read files below a folder or in a zip: images, label maps, bytes, each with a cap, in any process."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import is_litter, reading
from ovsdino.io.images import FORMATS, MAX_PIXELS, SUFFIXES, load_image

__all__ = ["MAX_FILE_BYTES", "FileTree", "ImageSource"]

MAX_FILE_BYTES = 400_000_000  # of one file, unpacked: `MAX_PIXELS` as RGB with room to spare
LABEL_FORMATS = ("PNG", "BMP")  # without loss; of TIFF Pillow decodes some kinds wrongly
ORIENTATION = 0x0112  # the EXIF tag
GRAY, DEPTH_BYTE, TYPE_BYTE = 0, 24, 25  # of a PNG's header


class FileTree:
    """Read files by their name below a folder or in a zip.

    A zip is opened once a process: a handle that a forked process shares with its parent reads from the wrong place.

    Args:
        source: The folder or zip.
        contained: Whether links that lead out of the folder are refused.
    """

    def __init__(self, source: str | Path, *, contained: bool = True) -> None:
        self.source = Path(source)
        self.contained = contained
        self._zip: zipfile.ZipFile | None = None
        self._owner = 0

    def names(self) -> list[str]:
        """Return the names of all files, sorted, with "/" between folders, without the litter of operating systems.

        Raises:
            OVSDinoError: The source is neither a folder nor a zip.
        """
        if self.source.is_dir():
            names = [path.relative_to(self.source).as_posix() for path in self.source.rglob("*") if path.is_file()]
        else:
            names = [name for name in self._archive().namelist() if not name.endswith("/")]
            names = [n for n in names if not PurePosixPath(n).is_absolute() and ".." not in PurePosixPath(n).parts]
        return sorted({name for name in names if not is_litter(name)})

    def read(self, name: str, kind: str = "file") -> bytes:
        """Return the bytes of a file.

        Args:
            name: One of `names`.
            kind: What it should be, for the message.

        Raises:
            OVSDinoError: The file is missing, damaged, no regular file, out of the folder, or has more than
                `MAX_FILE_BYTES`.
        """
        with reading(f"{self.source}: {name}", kind):
            if not self.source.is_dir():
                info = self._archive().getinfo(name)
                if info.file_size > MAX_FILE_BYTES:
                    raise OVSDinoError(f"{self.source}: {name} unpacks to more than {MAX_FILE_BYTES:,} bytes")
                return self._archive().read(info)
            path = self.source / name
            if self.contained and not path.resolve().is_relative_to(self.source.resolve()):
                raise OVSDinoError(f"{self.source}: {name} leads out of the data set; copy the file, or link its root")
            if path.exists() and not path.is_file():
                raise OVSDinoError(f"{self.source}: {name} is not a regular file")
            if path.stat().st_size > MAX_FILE_BYTES:
                raise OVSDinoError(f"{self.source}: {name} has more than {MAX_FILE_BYTES:,} bytes")
            return path.read_bytes()

    def image(self, name: str) -> np.ndarray:
        """Return an image as `ovsdino.io.images.load_image` reads it, (H, W, 3) uint8 RGB.

        Raises:
            OVSDinoError: It cannot be read, see `read` and `load_image`.
        """
        return load_image(self.read(name, "image"), name=f"{self.source}: {name}")

    def label(self, name: str) -> np.ndarray:
        """Return the ids of a label map as they are stored, (H, W) integers; EXIF is not applied.

        Raises:
            OVSDinoError: It cannot be read, was compressed with loss, or does not hold one integer per pixel.
        """
        where = f"{self.source}: {name}"
        data = self.read(name, "label map")
        with reading(where, "label map"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cap below is the one in force
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.format not in LABEL_FORMATS:
                    raise OVSDinoError(
                        f"{where}: a {picture.format} cannot be trusted with ids; save label maps as PNG"
                    )
                if picture.width * picture.height > MAX_PIXELS:
                    raise OVSDinoError(f"{where}: more than {MAX_PIXELS:,} pixels")
                ids = np.array(picture)
        if ids.ndim != 2:
            raise OVSDinoError(f"{where}: {ids.shape[-1]} channels: expected an index PNG")
        if ids.dtype == np.bool_:
            return ids.astype(np.uint8)
        if not np.issubdtype(ids.dtype, np.integer):
            raise OVSDinoError(f"{where}: holds {ids.dtype} numbers: expected an index PNG")
        if data.startswith(b"\x89PNG") and data[TYPE_BYTE] == GRAY and data[DEPTH_BYTE] in (2, 4):
            ids //= 255 // (2 ** data[DEPTH_BYTE] - 1)  # Pillow spreads two and four bits over 0..255
        return ids

    def turned(self, label: np.ndarray, image: str) -> np.ndarray:
        """Return a label map that was drawn on an image's stored pixels, turned as the image's EXIF says."""
        with (
            reading(f"{self.source}: {image}", "image"),
            Image.open(io.BytesIO(self.read(image, "image")), formats=FORMATS) as picture,
        ):
            orientation = picture.getexif().get(ORIENTATION, 1)
        carrier = Image.fromarray(label.astype(np.int32))
        carrier.getexif()[ORIENTATION] = orientation
        return np.asarray(ImageOps.exif_transpose(carrier)).astype(label.dtype)

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._owner != os.getpid():
            with reading(self.source, "zip file", "fetch it again"):
                self._zip, self._owner = zipfile.ZipFile(self.source), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None}  # an open archive does not travel to another process


class ImageSource:
    """Read the images of a folder (and the folders in it) or of a zip, for work that reads no label.

    Where it has a folder `images`, only what lies in that is taken: labels are images as well.

    Args:
        source: The folder or zip.

    Attributes:
        names: Paths within the source, sorted.

    Raises:
        OVSDinoError: There is no such folder or zip, or no image in it.
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
            OVSDinoError: The image cannot be read.
        """
        return self._tree.image(name)
