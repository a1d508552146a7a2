"""Images of every odd kind become the same RGB pixels; broken ones end in one line that names the file."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.io.images import MAX_PIXELS, expand_paths, load_image

# Four colors in a 2x3 grid: position tells orientation, value tells conversion.
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 100, 50], [255, 255, 255]]], dtype=np.uint8
)
GRAY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)


def grey_rgb() -> np.ndarray:
    return np.repeat(GRAY[:, :, None], 3, axis=2)


def write_exif_rotated(path: Path) -> None:
    """Write pixels rotated, with orientation 6: the viewer turns it 90 degrees clockwise to see PIXELS."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS, 1).copy()).save(path, exif=exif)


def write_palette(path: Path) -> None:
    Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(path)


def write_alpha(path: Path) -> None:
    rgba = np.dstack([PIXELS, np.full((2, 3), 255, np.uint8)])
    rgba[0, 0] = (9, 9, 9, 0)  # fully transparent: white
    rgba[0, 1] = (0, 0, 0, 128)  # half black over white: 255 * 127 / 255 = 127
    Image.fromarray(rgba).save(path)


def alpha_expected() -> np.ndarray:
    expected = PIXELS.copy()
    expected[0, 0] = 255
    expected[0, 1] = 127
    return expected


def write_animation(path: Path) -> None:
    first = Image.fromarray(PIXELS)
    first.save(path, save_all=True, append_images=[Image.new("RGB", (3, 2), "black")], lossless=True)


def write_pages(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, save_all=True, append_images=[Image.new("RGB", (3, 2), "black")])


GOLDEN: list[tuple[str, Callable[[Path], object], Callable[[], np.ndarray]]] = [
    ("plain.png", lambda p: Image.fromarray(PIXELS).save(p), lambda: PIXELS),
    ("plain.bmp", lambda p: Image.fromarray(PIXELS).save(p), lambda: PIXELS),
    ("lossless.webp", lambda p: Image.fromarray(PIXELS).save(p, lossless=True), lambda: PIXELS),
    ("png_named.jpg", lambda p: Image.fromarray(PIXELS).save(p, format="PNG"), lambda: PIXELS),
    ("exif.png", write_exif_rotated, lambda: PIXELS),
    ("exif.tif", write_exif_rotated, lambda: PIXELS),
    ("palette.png", write_palette, lambda: PIXELS),
    ("alpha.png", write_alpha, alpha_expected),
    ("animated.webp", write_animation, lambda: PIXELS),
    ("animated.png", write_pages, lambda: PIXELS),
    ("pages.tiff", write_pages, lambda: PIXELS),
    ("gray.png", lambda p: Image.fromarray(GRAY).save(p), grey_rgb),
    ("grey16.png", lambda p: Image.fromarray(GRAY.astype(np.uint16) * 257).save(p), grey_rgb),
    ("grey16.tif", lambda p: Image.fromarray(GRAY.astype(np.uint16) * 257).save(p), grey_rgb),
    ("float.tif", lambda p: Image.fromarray(GRAY.astype(np.float32) / 255).save(p), grey_rgb),
    ("cmyk.tif", lambda p: Image.fromarray(PIXELS).convert("CMYK").save(p), lambda: PIXELS),
    ("bits.png", lambda p: Image.fromarray(GRAY > 99).save(p), lambda: np.where(grey_rgb() > 99, 255, 0)),
]


@pytest.mark.parametrize(("name", "write", "expected"), GOLDEN, ids=[name for name, _, _ in GOLDEN])
def test_odd_images_become_the_expected_pixels(
    tmp_path: Path, name: str, write: Callable[[Path], object], expected: Callable[[], np.ndarray]
) -> None:
    write(tmp_path / name)
    got = load_image(tmp_path / name)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_damaged_exif_block_does_not_cost_the_picture(kind: str) -> None:
    data = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(PIXELS).save(
        data, kind, exif=b"Exif\0\0not a TIFF header" if kind == "JPEG" else b"rubbish", **options
    )
    got = load_image(data.getvalue())
    assert got.shape == PIXELS.shape and (kind == "JPEG" or (got == PIXELS).all())


def png(samples: np.ndarray, depth: int, color_type: int, transparent: tuple[int, ...]) -> bytes:
    """Return a PNG made by hand after its specification: Pillow writes no gray of 2 bits and no key of 16."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    key = struct.pack(f">{len(transparent)}H", *transparent)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"tRNS", key), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    samples = np.array([[0, 1, top // 2, top]] * 2)
    for key in (0, 1, top):
        expected = np.where(samples == key, 255, np.rint(samples * 255 / top))
        np.testing.assert_array_equal(load_image(png(samples, depth, 0, (key,)))[:, :, 1], expected)


def test_the_transparent_color_of_a_16_bit_png_is_white() -> None:
    samples = np.array([[[2560, 5120, 7680], [0, 0, 0], [65535, 0, 0]]] * 2)  # the low bytes of the first are 0 too
    found = load_image(png(samples, 16, 2, (2560, 5120, 7680)))
    np.testing.assert_array_equal(found[0], [[255, 255, 255], [0, 0, 0], [255, 0, 0]])


def test_white_is_zero_is_undone_in_16_bits_and_in_floats(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for values in (65535 - GRAY.astype(np.uint16) * 257, 1 - GRAY.astype(np.float32) / 255, 255 - GRAY):
        tifffile.imwrite(tmp_path / "w.tif", values, photometric="miniswhite")
        np.testing.assert_array_equal(load_image(tmp_path / "w.tif"), grey_rgb())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("kind", ["gray", "gray and alpha", "color"])
def test_a_tiff_is_read_rightly_or_refused(
    kind: str, dtype: type, planes: str, compression: str | None, order: str, tmp_path: Path
) -> None:
    tifffile = pytest.importorskip("tifffile")
    rgb = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    scale = {np.uint8: 1, np.uint16: 257, np.int16: 128, np.float32: 1 / 255}[dtype]
    opaque = np.full((20, 24), 255)
    channels = {"gray": rgb[..., 0], "gray and alpha": np.dstack([rgb[..., 0], opaque]), "color": rgb}[kind]
    values = (channels * float(scale)).astype(dtype)
    options = {} if kind == "gray" else {"planarconfig": planes}
    if kind == "gray and alpha":
        options["extrasamples"] = ["unassalpha"]
    if planes == "separate" and kind != "gray":
        values = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        photometric="rgb" if kind == "color" else "minisblack",
        compression=compression,
        byteorder=order,
        **options,
    )
    try:
        got = load_image(tmp_path / "a.tif")
    except OVSDinoError as error:
        assert "PNG" in str(error) or "raw mode" in str(error)
        assert (kind, dtype) != ("color", np.uint8)  # what a camera or a scanner writes
        return
    np.testing.assert_array_equal(got, rgb if kind == "color" else np.repeat(rgb[..., :1], 3, axis=2))


def test_a_value_that_a_resize_pushed_over_the_end_is_taken_and_one_beyond_is_named() -> None:
    values = PIXELS.astype(np.float32) / 255
    values[0, 0] = (np.nextafter(np.float32(1), np.float32(2)), -1e-7, 0.0)
    np.testing.assert_array_equal(load_image(values), PIXELS)
    values[0, 0, 0] = 1.01
    with pytest.raises(OVSDinoError, match=r"span -1e-07..1.01; expected 0..1"):
        load_image(values)


def test_a_pil_image_of_a_cut_off_file_is_refused_as_its_path_is(tmp_path: Path) -> None:
    Image.fromarray(np.tile(PIXELS, (40, 40, 1))).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    for source in (tmp_path / "cut.jpg", Image.open(tmp_path / "cut.jpg")):
        with pytest.raises(OVSDinoError, match=r"cut\.jpg: damaged or cut-off image: image file is truncated"):
            load_image(source)


def test_a_color_mode_that_has_no_way_to_rgb_is_named() -> None:
    with pytest.raises(OVSDinoError, match="the PIL image: color mode La is not supported; convert it to RGB first"):
        load_image(Image.new("La", (4, 4)))


def test_bytes_and_open_files_are_read_as_their_path_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", data)
    with (
        open(tmp_path / "a.png", "rb") as file,
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("a.png") as member,
    ):
        for source in (data, bytearray(data), io.BytesIO(data), file, member):
            np.testing.assert_array_equal(load_image(source), PIXELS)
    for broken, words in ((b"", "empty"), (b"GIF89a", "not a JPEG"), (data[:40], "a damaged PNG|cut-off")):
        with pytest.raises(OVSDinoError, match=f"^a.zip/b.png: .*({words})"):
            load_image(broken, name="a.zip/b.png")


def test_a_copy_shares_no_memory_with_the_frame_it_was_made_of() -> None:
    for frame in (PIXELS.copy(), torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)):
        pixels = load_image(frame, copy=True)
        frame[:] = 7
        np.testing.assert_array_equal(pixels, PIXELS)


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (250, 30, 30)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "cmyk.jpg").astype(int) - (250, 30, 30)).max() < 12


def test_jpeg_with_orientation_stands_upright(tmp_path: Path) -> None:
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 8  # the viewer turns it 90 degrees counterclockwise: left becomes bottom
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = load_image(tmp_path / "turned.jpg")
    assert got.shape == (32, 16, 3)
    assert got[:14].max() < 20 and got[18:].min() > 235


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_extreme_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "thin.png")
    assert load_image(tmp_path / "thin.png").shape == (size[1], size[0], 3)


def test_arrays_tensors_and_pil_images_agree() -> None:
    rgba = np.dstack([PIXELS, np.full((2, 3), 255, np.uint8)])
    sources = [
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],  # negative strides
        rgba,
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(np.float64) / 255,
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        PIXELS[None],
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None],  # a batch of one
    ]
    for source in sources:
        np.testing.assert_array_equal(load_image(source), PIXELS)
    for gray in (GRAY, GRAY[:, :, None], torch.from_numpy(GRAY), torch.from_numpy(GRAY)[None]):
        np.testing.assert_array_equal(load_image(gray), grey_rgb())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((2, 2, 3), np.float32) + 200, "expected 0..1"),
        (np.full((2, 2, 3), np.nan), "hold NaN; expected 0..1"),
        (torch.full((3, 2, 2), float("nan")), "hold NaN; expected 0..1"),
        (torch.full((3, 2, 2), 200.0), "span 200..200; expected 0..1"),
        (np.full((2, 2, 3), np.inf), "expected 0..1"),
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (np.zeros((2, 2, 2), np.uint8), "(2, 2, 2)"),
        (np.zeros((2, 2, 2, 3), np.uint8), "one image at a time"),
        (torch.zeros(2, 3, 8, 8), "one image at a time"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "permute"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS, 2, 3)), "make it smaller"),
        (42, "int"),
        (None, "NoneType"),
        ("http://example.org/a.jpg", "not fetched"),
    ],
)
def test_wrong_sources_are_refused_with_the_remedy(source: object, words: str) -> None:
    with pytest.raises(OVSDinoError) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def write_bomb(path: Path) -> None:
    """Return a PNG that claims 50 000 x 50 000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)


BROKEN: list[tuple[str, Callable[[Path], object]]] = [
    ("missing.jpg", lambda p: None),
    ("empty.jpg", lambda p: p.write_bytes(b"")),
    ("text.jpg", lambda p: p.write_text("this is not a picture")),
    ("folder.jpg", lambda p: p.mkdir()),
    ("animated.gif", lambda p: Image.new("RGB", (4, 4)).save(p)),
    ("bomb.png", write_bomb),
    ("fifo.jpg", os.mkfifo),
    ("loop.jpg", lambda p: p.symlink_to(p.name)),
    ("dangling.jpg", lambda p: p.symlink_to("nothing")),
    ("x" * 300 + ".jpg", lambda p: None),
    ("x.jpg/under_a_file.jpg", lambda p: p.parent.write_bytes(b"x")),
    ("large_int.tif", lambda p: Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(p)),
]


@pytest.mark.parametrize(("name", "write"), BROKEN, ids=[name for name, _ in BROKEN])
def test_bad_files_end_in_one_line_with_their_name(
    tmp_path: Path, name: str, write: Callable[[Path], object], recwarn: pytest.WarningsRecorder
) -> None:
    write(tmp_path / name)
    with pytest.raises(OVSDinoError) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not recwarn.list


def test_the_password_of_an_address_is_not_shown() -> None:
    with pytest.raises(OVSDinoError, match=r"^http://\*\*\*@example\.org/a\.jpg: addresses are not fetched"):
        load_image("http://me:secret@example.org/a.jpg")


def test_mutated_files_never_raise_anything_else(tmp_path: Path) -> None:
    """Every cut and flip either still decodes or ends in an OVSDinoError (1 500 files of five formats)."""
    rng = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    path, refused = tmp_path / "mutated", 0
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        Image.fromarray(noise).save(path, format=kind)
        whole = path.read_bytes()
        for turn in range(300):
            data = bytearray(whole)
            if turn % 3 == 0:
                del data[rng.randrange(len(data)) :]
            for _ in range(rng.randrange(1, 8) if data else 0):
                data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
            path.write_bytes(data)
            try:
                pixels = load_image(path)
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            except OVSDinoError:
                refused += 1
    assert 300 < refused < 1500


def test_folders_are_replaced_by_their_images_in_order(tmp_path: Path) -> None:
    names = ("b.PNG", "a.jpg", "notes.txt", "._a.jpg", ".DS_Store", "Thumbs.db", ".half.12.0123abcd.tmp.jpg")
    for name in (*names, "\udce9.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    other = tmp_path / "notes.txt"
    inside = [tmp_path / name for name in ("a.jpg", "b.PNG", "c.jpg", "\udce9.jpg")]
    assert expand_paths([other, tmp_path]) == [other, *inside]


def test_no_images_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="no images given"):
        expand_paths([])
    with pytest.raises(OVSDinoError, match="no images in this folder"):
        expand_paths([tmp_path])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.png"]
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["out.png"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    with pytest.raises(OVSDinoError, match=r"out\.png: cannot write: No space left"), atomic_write(target) as file:
        raise OSError(28, "No space left on device", file.name)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OVSDinoError, match="cannot write"), atomic_write(tmp_path / "file" / "out.png"):
        pass
