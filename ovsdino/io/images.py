"""Read images from files, bytes, arrays and tensors: the one reader of all commands."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError, one_line

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageLike",
    "expand_paths",
    "is_several",
    "load_image",
    "several",
    "source_name",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a larger file is refused before its pixels are decoded

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
FLOAT_SLACK = 0.5 / 255  # rounds to the bytes 0 and 255 all the same
UPRIGHT = {  # EXIF orientation -> the turn that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, np.ndarray, "torch.Tensor"]


def load_image(source: ImageLike, *, name: str | None = None, copy: bool = False, bgr: bool = False) -> np.ndarray:
    """Read one image as 8-bit RGB.

    Files are JPEG, PNG, WebP, BMP or TIFF, told by content and not by name. EXIF orientation is applied, and a damaged
    EXIF block is passed over; of an animation or multi-page file the first frame is taken; 16-bit samples are scaled by
    1/257; gray, palette and CMYK become RGB; transparent pixels are laid over white.

    Args:
        source: A path; the bytes of an image file, or a binary file that can seek; a `PIL.Image.Image`; an ndarray
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W). Arrays and
            tensors are RGB, in uint8 or uint16, or floats within 0..1 (by half a step of 1/255 more, as a resize may
            leave). A batch (4-dimensional) of a single image is that image.
        name: What to call the image in messages; its path, or its type, by default.
        copy: Return pixels of their own also for a uint8 array, whose memory the result otherwise shares.
        bgr: An array or tensor holds blue first (BGR or BGRA), as OpenCV's do; files and PIL images say it themselves.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous.

    Raises:
        OVSDinoError: Not an image, an unsupported format, shape or dtype, no pixels, or more than `MAX_PIXELS`.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), name or "the bytes")
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "") or "the PIL image")
        with _decoding(name):  # its pixels may still be in its file
            return _from_pil(source, name)
    if isinstance(source, np.ndarray):
        pixels = _from_array(source, name or "ndarray", channels_first=False)
    elif hasattr(source, "detach") and hasattr(source, "numpy"):
        pixels = _from_tensor(source, name or "tensor")
    elif hasattr(source, "read") and hasattr(source, "seek"):
        return _from_file(source, name or str(getattr(source, "name", "the file")))
    else:
        raise OVSDinoError(
            f"cannot read an image from {type(source).__name__}: "
            "give a path, a PIL image, an ndarray (H, W, 3) or a tensor (3, H, W)"
        )
    if bgr:
        return np.ascontiguousarray(pixels[:, :, ::-1])
    return pixels.copy() if copy else pixels


def source_name(source: ImageLike) -> str | None:
    """Return the path that an image comes from, or None for pixels and bytes that do not say."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "filename" if isinstance(source, Image.Image) else "name", None)
    return name if isinstance(name, str) and name else None


def is_several(images: object) -> bool:
    """Return whether several images are given: a folder, a 4-dimensional array or tensor, a list or a generator."""
    if isinstance(images, (str, os.PathLike)):
        return os.path.isdir(images)
    if isinstance(images, (bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read"):
        return False
    if isinstance(images, np.ndarray) or hasattr(images, "detach"):
        return getattr(images, "ndim", 0) == 4
    return isinstance(images, Iterable)


def several(images: Iterable[ImageLike] | str | os.PathLike[str]) -> list[ImageLike]:
    """Return the images of a batch as a list; generators are read to their end, of a folder its files are listed.

    Raises:
        OVSDinoError: It is one image (a path, a PIL image, an array of one), or nothing that can be gone through.
    """
    if not is_several(images):
        what = f"{type(images).__name__}{f' of shape {tuple(images.shape)}' if hasattr(images, 'shape') else ''}"
        raise OVSDinoError(f"segment_batch takes a list of images, not {what}; for one image use segment")
    if isinstance(images, (str, os.PathLike)):
        return list(expand_paths([images]))
    return list(images)


def expand_paths(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Replace each folder by the images directly in it, sorted by name.

    Hidden files are left out: what starts with a dot is another program's (the "._a.jpg" of macOS) or half written.

    Args:
        paths: Files and folders. Files are kept as they are, whatever their suffix.

    Returns:
        Paths of files, in the order given. Of a folder also those that turn out not to be files (a link to nothing, a
        pipe): their reader says so.

    Raises:
        OVSDinoError: Nothing given, a folder that cannot be listed, or one without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            inside = sorted(
                Path(path, entry.name)
                for entry in os.scandir(path)
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and not _is_folder(entry)
            )
        except OSError as error:
            raise OVSDinoError(f"{one_line(path)}: cannot list the folder: {error.strerror}") from error
        if not inside:
            raise OVSDinoError(f"{one_line(path)}: no images in this folder; looked for *{', *'.join(SUFFIXES)}")
        found.extend(inside)
    if not found:
        raise OVSDinoError("no images given: name at least one file or folder")
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _from_path(path: str, name: str | None) -> np.ndarray:
    shown = one_line(name or path)
    if "://" in path[:12]:
        raise OVSDinoError(f"{shown}: addresses are not fetched; download the image and give its path")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe must not wait for a writer
    except FileNotFoundError as error:
        raise OVSDinoError(f"{shown}: no such file") from error
    except PermissionError as error:
        raise OVSDinoError(f"{shown}: permission denied; make the file readable") from error
    except (OSError, ValueError) as error:  # a loop of links, too long a name, a socket, a NUL
        raise OVSDinoError(f"{shown}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise OVSDinoError(f"{shown}: is a folder; give a file, or the folder to `ovsdino segment`")
        raise OVSDinoError(f"{shown}: not a regular file")
    with open(handle, "rb") as file:
        return _from_file(file, shown)


def _from_file(file: BinaryIO, name: str) -> np.ndarray:
    """Read an image file that is open and can seek, from where it stands."""
    with _decoding(name):
        start = file.tell()
        head = file.read(4)
        file.seek(start)
        if not head:
            raise OVSDinoError(f"{one_line(name)}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            # the cap of `_check_size` is the one in force; Pillow's warning would be a second line
            warnings.simplefilter("ignore")
            try:
                image = Image.open(file, formats=FORMATS)
            except Image.UnidentifiedImageError as error:
                known = next((kind for mark, kind in SIGNATURES.items() if head.startswith(mark)), None)
                raise OVSDinoError(
                    f"{one_line(name)}: a damaged {known}, or a kind of it that is not read; save it as an 8-bit PNG"
                    if known
                    else f"{one_line(name)}: not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
                ) from error
            with image:
                return _from_pil(image, name)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn every error of a decoder at a broken byte (struct.error, KeyError, SyntaxError, ...) into one line."""
    try:
        yield
    except OVSDinoError:
        raise
    except Image.DecompressionBombError as error:
        raise OVSDinoError(f"{one_line(name)}: more than {MAX_PIXELS:,} pixels; make it smaller first") from error
    except Exception as error:
        why = one_line(error, 120) or type(error).__name__
        raise OVSDinoError(f"{one_line(name)}: damaged or cut-off image: {why}") from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    name = one_line(name)
    width, height = image.size
    _check_size(height, width, name)
    inverted = _check_tiff(image, name)
    key = _transparent_color(image)
    image.load()  # a file just opened stands at its first frame
    upright = _upright(image)
    mode = upright.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        values = np.asarray(upright)
        if mode != "F":
            values = _wide_to_uint16(values, name)
        if inverted:
            values = (1.0 if mode == "F" else np.uint16(65535)) - values
        elif isinstance(key, int) and mode != "F":
            values = np.where(values == key, np.uint16(65535), values)
        return _from_array(values, name, channels_first=False)
    try:
        if mode in ("LA", "La", "PA", "RGBA", "RGBa") or key is not None:
            if key != upright.info.get("transparency"):
                upright = upright.copy()
                upright.info["transparency"] = key
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, rgba)
        return np.array(upright.convert("RGB"), dtype=np.uint8, order="C")
    except ValueError as error:
        raise OVSDinoError(f"{name}: color mode {mode} is not supported; convert it to RGB first") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged block of metadata says nothing about the pixels
        return image
    return image if turn is None else image.transpose(turn)


def _transparent_color(image: Image.Image) -> Any:
    """Return the transparent color of a PNG on the scale of the decoded samples; Pillow leaves it on the file's.

    A color of 16 bits a channel is compared in 8, as its pixels are.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # of a file whose pixels are not decoded yet
    rawmode = tiles[0][3] if image.format == "PNG" and tiles else ""
    if isinstance(key, int):
        return key * {"L;2": 85, "L;4": 17}.get(str(rawmode), 1)
    if isinstance(key, tuple) and (rawmode == "RGB;16B" or max(key, default=0) > 255):
        return tuple(value >> 8 for value in key)
    return key


def _check_tiff(image: Image.Image, name: str) -> bool:
    """Refuse the kinds of TIFF that Pillow decodes to wrong pixels without an error; whether 0 is white in its values.

    Found by writing every combination of sample type, planes, byte order and compression, and reading it back.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or not tags:
        return False
    compressed, photometric, colors = tags.get(259, 1) != 1, tags.get(262), tags.get(277, 1)
    bits, signed = max(tags.get(258, (1,))), 2 in tags.get(339, (1,))
    if tags.get(284) == 2 and colors > 1 and ((bits > 8 and not compressed) or photometric in (0, 1)):
        kind = f"{bits}-bit samples in separate planes"
    elif bits == 16 and signed:
        kind = "signed 16-bit samples"
    elif compressed and image.mode in ("I", "F") and tags.prefix == b"MM":
        kind = f"compressed {bits}-bit samples, the high byte first,"
    else:
        return photometric == 0 and (image.mode in ("I", "F") or image.mode.startswith("I;16"))
    raise OVSDinoError(f"{name}: a TIFF of {kind} is not supported; save it as an 8- or 16-bit PNG")


def _wide_to_uint16(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype != np.uint16:
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise OVSDinoError(f"{name}: 32-bit samples outside 0..65535; convert the image to 8 or 16 bits first")
        values = values.astype(np.uint16)
    return values


def _from_tensor(tensor: Any, name: str) -> np.ndarray:
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise OVSDinoError(
            f"{name} of shape {tuple(tensor.shape)}: expected (H, W), (1, H, W), (3, H, W) or (4, H, W); "
            "use .permute(2, 0, 1) if the channels are last, and one image at a time"
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()  # numpy has no bfloat16
    return _from_array(tensor.numpy(), name, channels_first=True)


def _from_array(array: np.ndarray, name: str, *, channels_first: bool) -> np.ndarray:
    if channels_first and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise OVSDinoError(
            f"{name} of shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), one image at a time"
        )
    _check_size(array.shape[0], array.shape[1], name)
    array = _to_uint8(array, name)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint16)
        over_white = array[:, :, :3] * alpha + 255 * (255 - alpha)
        array = ((over_white + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if low != low or high != high:
            raise OVSDinoError(f"{name}: float pixels hold NaN; expected 0..1")
        if not (low >= -FLOAT_SLACK and high <= 1.0 + FLOAT_SLACK):
            raise OVSDinoError(
                f"{name}: float pixels span {low:g}..{high:g}; expected 0..1, or uint8 in 0..255 (use .astype('uint8'))"
            )
        return np.rint(array * 255.0).clip(0, 255).astype(np.uint8)
    raise OVSDinoError(f"{name}: pixels are {array.dtype}; expected uint8, uint16, or floats within 0..1")


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise OVSDinoError(f"{name}: an image of {width}x{height} has no pixels")
    if height * width > MAX_PIXELS:
        raise OVSDinoError(f"{name}: {width}x{height} is more than {MAX_PIXELS:,} pixels; make it smaller first")
