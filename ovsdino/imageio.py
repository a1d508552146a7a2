"""Read images from files, arrays and tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from PIL import Image, ImageOps

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write

if TYPE_CHECKING:
    import torch

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "ImageLike", "atomic_write", "expand_paths", "load_image"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a larger file is refused before its pixels are decoded

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", Image.Image, np.ndarray, "torch.Tensor"]


def load_image(source: ImageLike) -> np.ndarray:
    """Reads one image as 8-bit RGB.

    Files are JPEG, PNG, WebP, BMP or TIFF, told by content and not by name. EXIF orientation is applied; of an
    animation or multi-page file the first frame is taken; 16-bit samples are scaled by 1/257; grey, palette and CMYK
    become RGB; transparent pixels are laid over white.

    Args:
        source: a path; a `PIL.Image.Image`; an ndarray (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (H, W),
            (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors are uint8 or uint16, or floats within 0..1.

    Returns:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        OVSDinoError: not an image, an unsupported format, shape or dtype, no pixels, or more than `MAX_PIXELS`.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, np.ndarray):
        return _from_array(source, "ndarray", channels_first=False)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source))
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        return _from_tensor(source)
    raise OVSDinoError(
        f"cannot read an image from {type(source).__name__}: "
        "give a path, a PIL image, an ndarray (H, W, 3) or a tensor (3, H, W)"
    )


def expand_paths(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Replaces each folder by the images directly in it, sorted by name.

    Args:
        paths: files and folders. Files are kept as they are, whatever their suffix.

    Returns:
        Paths of files, in the order given.

    Raises:
        OVSDinoError: nothing given, or a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        except OSError as error:
            raise OVSDinoError(f"{path}: cannot list the folder: {error.strerror}") from error
        if not inside:
            raise OVSDinoError(f"{path}: no images in this folder; looked for *{', *'.join(SUFFIXES)}")
        found.extend(inside)
    if not found:
        raise OVSDinoError("no images given: name at least one file or folder")
    return found


def _from_path(name: str) -> np.ndarray:
    if "://" in name[:12]:
        raise OVSDinoError(f"{name}: addresses are not fetched; download the image and give its path")
    try:
        path = Path(name)
        if path.is_dir():
            raise OVSDinoError(f"{name}: is a folder; give a file, or the folder to `ovsdino segment`")
        if not path.is_file():
            raise OVSDinoError(f"{name}: no such file" if not path.exists() else f"{name}: not a regular file")
        if path.stat().st_size == 0:
            raise OVSDinoError(f"{name}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            # our own cap, below, is the one in force; Pillow's warning would be a second line
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return _from_pil(image, name)
    except OVSDinoError:
        raise
    except Image.UnidentifiedImageError as error:
        raise OVSDinoError(f"{name}: not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except Image.DecompressionBombError as error:
        raise OVSDinoError(f"{name}: more than {MAX_PIXELS:,} pixels; make it smaller first") from error
    except PermissionError as error:
        raise OVSDinoError(f"{name}: permission denied; make the file readable") from error
    except Exception as error:
        # Decoders raise whatever a broken byte leads to (struct.error, KeyError, SyntaxError, MemoryError, ...).
        raise OVSDinoError(f"{one_line(name)}: damaged or cut-off image: {one_line(error, 120)}") from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    width, height = image.size
    _check_size(height, width, name)
    image.load()  # a file just opened stands at its first frame
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        return _from_array(_wide_to_uint16(np.asarray(image), name), name, channels_first=False)
    if mode == "F":
        return _from_array(np.asarray(image), name, channels_first=False)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    try:
        return np.array(image.convert("RGB"), dtype=np.uint8, order="C")
    except ValueError as error:
        raise OVSDinoError(f"{name}: colour mode {mode} is not supported; convert it to RGB first") from error


def _wide_to_uint16(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype != np.uint16:
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise OVSDinoError(f"{name}: 32-bit samples outside 0..65535; convert the image to 8 or 16 bits first")
        values = values.astype(np.uint16)
    return values


def _from_tensor(tensor: Any) -> np.ndarray:
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise OVSDinoError(
            f"tensor of shape {tuple(tensor.shape)}: expected (H, W), (1, H, W), (3, H, W) or (4, H, W); "
            "use .permute(2, 0, 1) if the channels are last, and one image at a time"
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()  # numpy has no bfloat16
    return _from_array(tensor.numpy(), "tensor", channels_first=True)


def _from_array(array: np.ndarray, name: str, *, channels_first: bool) -> np.ndarray:
    if channels_first and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
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
        if not (low >= 0.0 and high <= 1.0):  # also true for NaN
            raise OVSDinoError(
                f"{name}: float pixels span {low:g}..{high:g}; expected 0..1, or uint8 in 0..255 (use .astype('uint8'))"
            )
        return np.rint(array * 255.0).astype(np.uint8)
    raise OVSDinoError(f"{name}: pixels are {array.dtype}; expected uint8, uint16, or floats within 0..1")


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise OVSDinoError(f"{name}: an image of {width}x{height} has no pixels")
    if height * width > MAX_PIXELS:
        raise OVSDinoError(f"{name}: {width}x{height} is more than {MAX_PIXELS:,} pixels; make it smaller first")
