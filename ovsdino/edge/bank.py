"""Text banks: the words of a vocabulary as the rows that a graph takes, in one small file.

`bank.safetensors` holds the tensor "text", (K, D) float32 with rows of length one, and as metadata the names, the
model, the digest of the weights that the rows belong to, and a SHA-256 of all of them: format 1. Format 2 is for groups
of rows: "text" has (R, D) rows, of which the metadata "words" says how many belong to each class, and a tensor
"contrast", (C, D), has the rows that compete with all classes. Banks of early versions have no hash and are read
without one. Reading and writing a bank needs no torch; `ovsdino text` makes one. To change the vocabulary of a running
engine, load another bank.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, reading
from ovsdino.vocabulary import Vocabulary

__all__ = ["FORMAT", "MAX_BYTES", "TextBank"]

FORMAT = "1"
GROUPED = "2"
MAX_BYTES = 256 << 20  # 32 767 classes of 1 024 columns are 134 MB; a larger file is not a bank
FIELDS = {"format", "names", "model", "weights", "sha256", "words"}
REMAKE = "make it again with `ovsdino text`"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBank:
    """The words of one vocabulary, encoded by one model.

    Attributes:
        names: K class names, all different.
        text: (R, D) float32, rows of length one, C-contiguous and read-only; the words of the classes in order.
        model: Name of the model that encoded it.
        weights: Digest of the image side that it belongs to (`ovsdino.models.weights.weights_digest`).
        words: How many rows each class has, which sum to R; () stands for one each.
        contrast: (C, D) float32, rows of length one that compete with all classes; None: every pixel gets a class.
    """

    names: tuple[str, ...]
    text: np.ndarray = field(repr=False)
    model: str
    weights: str
    words: tuple[int, ...] = ()
    contrast: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        text = np.array(self.text, dtype=np.float32, order="C")
        if text.ndim != 2 or 0 in text.shape:
            raise OVSDinoError(f"text bank of shape {text.shape}: expected (K, D); {REMAKE}")
        words = self.words or (1,) * len(text)
        if len(self.names) != len(words):
            raise OVSDinoError(f"text bank: {len(self.names)} names for {len(words)} rows; {REMAKE}")
        if min(words) < 1 or sum(words) != len(text):
            raise OVSDinoError(f"text bank: its classes have {sum(words)} words, it has {len(text)} rows; {REMAKE}")
        shown = [name for name, count in zip(self.names, words, strict=True) for _ in range(count)]
        _check_lengths(text, shown)
        object.__setattr__(self, "names", Vocabulary.of([(name,) for name in self.names]).names)
        object.__setattr__(self, "text", _frozen(text))
        object.__setattr__(self, "words", () if max(words) == 1 else tuple(words))
        if self.contrast is not None:
            contrast = np.array(self.contrast, dtype=np.float32, order="C")
            if contrast.ndim != 2 or not len(contrast) or contrast.shape[1] != text.shape[1]:
                raise OVSDinoError(
                    f"text bank: contrast of shape {contrast.shape}, expected (C, {text.shape[1]}); {REMAKE}"
                )
            _check_lengths(contrast, ["contrast"] * len(contrast))
            object.__setattr__(self, "contrast", _frozen(contrast))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def grouped(self) -> bool:
        """Whether a graph must take groups of rows for it."""
        return bool(self.words) or self.contrast is not None

    def padded(self) -> np.ndarray:
        """Return the words as a graph takes them: (K, W, D), rows of zeros where a class has fewer than W."""
        words = self.words or (1,) * len(self)
        rows = np.zeros((len(self), max(words), self.text.shape[1]), np.float32)
        start = 0
        for row, count in zip(rows, words, strict=True):
            row[:count] = self.text[start : start + count]
            start += count
        return rows

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextBank:
        """Read a bank.

        Raises:
            OVSDinoError: The file is missing, too large, damaged, or not a text bank of this format.
        """
        from safetensors import safe_open

        path = Path(path)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise OVSDinoError(
                f'{path}: cannot read the text bank: {error.strerror}; make one: ovsdino text --classes "road,car" '
                f"--output {path}"
            ) from error
        if not path.is_file():  # reading a pipe would wait for its writer
            raise OVSDinoError(f"{path}: not a text bank (a folder, a pipe or a device); {REMAKE}")
        if size > MAX_BYTES:
            raise OVSDinoError(f"{path}: {size:,} bytes is too large for a text bank (at most {MAX_BYTES:,}); {REMAKE}")
        with reading(path, "text bank", REMAKE), safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = sorted(file.keys())
            form = metadata.get("format")
            known = found == ["text"] or (form == GROUPED and found == ["contrast", "text"])
            text = file.get_tensor("text") if known else None
            contrast = file.get_tensor("contrast") if known and "contrast" in found else None
        kinds = {rows.dtype for rows in (text, contrast) if rows is not None}
        if form not in (FORMAT, GROUPED) or text is None or kinds != {np.dtype(np.float32)}:
            raise OVSDinoError(
                f"{path}: not a text bank of format {FORMAT} or {GROUPED}: format {metadata.get('format')!r}, "
                f"tensors {one_line(', '.join(found), 60) or 'none'}; {REMAKE}"
            )
        try:
            names = json.loads(metadata["names"])
            model, weights = metadata["model"], metadata["weights"]
            words = json.loads(metadata.get("words", "[]"))
        except (KeyError, ValueError, RecursionError) as error:
            raise OVSDinoError(f"{path}: damaged metadata ({one_line(error, 80)}); {REMAKE}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise OVSDinoError(f"{path}: damaged metadata (names is not a list of text); {REMAKE}")
        if not isinstance(words, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in words):
            raise OVSDinoError(f"{path}: damaged metadata (words is not a list of numbers); {REMAKE}")
        odd = set(metadata) - (FIELDS if form == GROUPED else FIELDS - {"words"})
        if odd:
            raise OVSDinoError(f"{path}: damaged metadata ({one_line(odd.pop(), 40)!r} is unknown); {REMAKE}")
        if "sha256" in metadata and metadata["sha256"] != _digest(names, text, model, weights, words, contrast):
            raise OVSDinoError(f"{path}: changed since it was written (its SHA-256 is another); {REMAKE}")
        try:
            return cls(
                names=tuple(names), text=text, model=model, weights=weights, words=tuple(words), contrast=contrast
            )
        except OVSDinoError as error:
            raise OVSDinoError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bank atomically and return its path.

        Raises:
            OVSDinoError: The file cannot be written.
        """
        from safetensors.numpy import save

        metadata = {
            "format": FORMAT,
            "names": json.dumps(list(self.names), ensure_ascii=False),
            "model": self.model,
            "weights": self.weights,
            "sha256": _digest(self.names, self.text, self.model, self.weights, self.words, self.contrast),
        }
        tensors = {"text": self.text}
        if self.grouped:
            metadata |= {"format": GROUPED, "words": json.dumps(self.words)}
        if self.contrast is not None:
            tensors["contrast"] = self.contrast
        data = save(tensors, metadata=metadata)
        with atomic_write(path) as file:
            file.write(data)
        return Path(path)


def _check_lengths(rows: np.ndarray, names: Sequence[str]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
        wrong = ~(np.abs(lengths - 1) < 1e-3)  # also true for NaN
    if wrong.any():
        row = int(wrong.argmax())
        raise OVSDinoError(
            f"text bank: row {row} ({names[row][:40]!r}) has length {lengths[row]:.4g}, expected 1; {REMAKE}"
        )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _digest(
    names: Sequence[str],
    text: np.ndarray,
    model: str,
    weights: str,
    words: Sequence[int] = (),
    contrast: np.ndarray | None = None,
) -> str:
    """Return the SHA-256 of a bank: JSON of its words and shapes, then the rows as little-endian float32."""
    facts: list[object] = [list(names), model, weights, list(text.shape)]
    if words or contrast is not None:
        facts += [list(words), None if contrast is None else list(contrast.shape)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for rows in (text, contrast):
        if rows is not None:
            digest.update(np.ascontiguousarray(rows, "<f4").tobytes())
    return digest.hexdigest()
