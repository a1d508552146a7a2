"""Fonts for any script: which of the machine's font files can draw a character, and text set in several of them.

Pillow's own font draws Latin letters. For the rest the machine's fonts are asked: through fontconfig
where there is one, else by looking at the known folders. A character that no font has is written as its Unicode escape.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

__all__ = ["FONT_FOLDERS", "Text"]

FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
)
BITMAP_SIZE = 109  # the one size of the color bitmaps in Noto Color Emoji
MOST_FILES = 400
ABSENT = "\U000fffff"  # a private-use character that fonts draw as "not there"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Run:
    """Neighboring characters in one font."""

    text: str
    font: Font
    scale: float

    @property
    def width(self) -> float:
        """Its length in pixels."""
        return float(self.font.getlength(self.text)) * self.scale


class Text:
    """One line of text at a size, in as many fonts as it needs.

    Args:
        text: What to write.
        size: Height of the letters in pixels, as fonts count it.
    """

    def __init__(self, text: str, size: int) -> None:
        self.text = text
        self.size = size
        self.runs = list(_runs(unicodedata.normalize("NFC", text), size))

    @property
    def width(self) -> float:
        """Length in pixels."""
        return sum(run.width for run in self.runs)

    def draw(self, canvas: Image.Image, x: float, y: float, fill: tuple[int, int, int]) -> float:
        """Draw it from (x, y), y the middle of the line; return x at its end."""
        draw = ImageDraw.Draw(canvas)
        for run in self.runs:
            if run.scale == 1.0:
                draw.text((x, y), run.text, font=run.font, fill=fill, anchor="lm")
            else:
                _paste_bitmap(canvas, run, x, y, fill)
            x += run.width
        return x

    def shortened(self, width: float) -> Text:
        """Return this text, or as much of it as fits into ``width`` pixels with an ellipsis."""
        text, shorter = self.text, self
        while text and shorter.width > width:
            text = text[:-1]
            shorter = Text(f"{text}…", self.size)
        return shorter


def _paste_bitmap(canvas: Image.Image, run: Run, x: float, y: float, fill: tuple[int, int, int]) -> None:
    """Draw a run of a font that has one size only, scaled to the line."""
    left, top, right, bottom = (round(side) for side in run.font.getbbox(run.text))
    layer = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(layer).text((-left, -top), run.text, font=run.font, fill=fill, embedded_color=True)
    small = layer.resize((max(1, round(layer.width * run.scale)), max(1, round(layer.height * run.scale))))
    canvas.paste(small, (round(x), round(y - small.height / 2)), small)


def _runs(text: str, size: int) -> Iterator[Run]:
    """Yield the runs of a text, in the order in which they are drawn."""
    waiting, current = "", (_own_font(size), 1.0)
    for char, font in _in_fonts(text, size):
        if font != current and waiting:
            yield Run(waiting, *current)
            waiting = ""
        current = font
        waiting += char
    if waiting:
        yield Run(waiting, *current)


def _in_fonts(text: str, size: int) -> Iterator[tuple[str, tuple[Font, float]]]:
    """Yield each character, or its escape, with the font and scale to draw it in."""
    own = (_own_font(size), 1.0)
    font = own
    for char in _visual_order(text):
        if unicodedata.category(char) in ("Mn", "Me", "Cf") and char.isascii() is False:
            # Accents and joiners belong to the letter before; where its font has them not, they are left out.
            if _covers(font[0], char):
                yield char, font
            continue
        if _covers(own[0], char):
            font = own
            yield char, font
            continue
        path = _font_file(char)
        if path is not None and (loaded := _load(path, size)) is not None:
            font = loaded
            yield char, font
            continue
        font = own
        for letter in char.encode("ascii", "backslashreplace").decode("ascii"):
            yield letter, own


def _visual_order(text: str) -> str:
    """Return the text from left to right, where no library below turns right-to-left letters around."""
    if features.check("raqm"):
        return text
    turned = any(unicodedata.bidirectional(char) in ("R", "AL") for char in text)
    return text[::-1] if turned else text


@functools.lru_cache(maxsize=64)
def _own_font(size: int) -> Font:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=256)
def _load(path: str, size: int) -> tuple[Font, float] | None:
    """Return a font file at a size and the scale to draw it with, None where it cannot be used."""
    with suppress(OSError, ValueError):
        return ImageFont.truetype(path, size), 1.0
    with suppress(OSError, ValueError):
        return ImageFont.truetype(path, BITMAP_SIZE), size * 1.15 / BITMAP_SIZE
    return None


@functools.lru_cache(maxsize=4096)
def _covers(font: Font, char: str) -> bool:
    """Return whether a font has a character: it is not drawn as the sign for a missing one."""
    if char.isascii():
        return char.isprintable()
    if 0xD800 <= ord(char) <= 0xDFFF or not hasattr(font, "path"):
        return False
    return _drawn(font, char) != _drawn(font, ABSENT)


def _drawn(font: Font, char: str) -> bytes:
    mask = font.getmask(char)
    return bytes(mask) + repr(mask.size).encode()


@functools.lru_cache(maxsize=4096)
def _font_file(char: str) -> str | None:
    """Return the path of a font file of this machine that has a character, None where there is none."""
    for path in [*_asked(char), *_found()]:
        if "lastresort" in Path(path).stem.lower():  # draws a box for every character
            continue
        loaded = _load(path, 16)
        if loaded is not None and _covers(loaded[0], char):
            return path
    return None


def _asked(char: str) -> list[str]:
    """Return the font files that have a character, by fontconfig; nothing where it is not installed."""
    program = shutil.which("fc-list")
    if program is None or 0xD800 <= ord(char) <= 0xDFFF:
        return []
    command = [program, "-f", "%{file}\n", f":charset={ord(char):x}"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
        return _plain_first([line for line in os.fsdecode(done.stdout).splitlines() if line])[:20]
    return []


@functools.lru_cache(maxsize=1)
def _found() -> tuple[str, ...]:
    """Return the font files in the known folders."""
    files: list[Path] = []
    for folder in FONT_FOLDERS:
        for suffix in ("ttf", "ttc", "otf"):
            files += sorted(Path(folder).expanduser().glob(f"**/*.{suffix}"))
    return tuple(_plain_first([str(file) for file in files])[:MOST_FILES])


def _plain_first(files: list[str]) -> list[str]:
    """Return font files by name, upright sans faces before the others."""
    others = ("bold", "italic", "oblique", "serif", "mono", "condensed")
    return sorted(files, key=lambda file: (sum(word in Path(file).stem.lower() for word in others), file))
