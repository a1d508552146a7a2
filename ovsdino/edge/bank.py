"""Text banks: the words of a vocabulary as the rows that a graph takes, in one small file.

`bank.safetensors` holds the tensor "text", (K, D) float32 with rows of length one, and as metadata the names, the
model, the digest of the weights that the rows belong to, and a SHA-256 of all of them. Banks of earlier versions have
no hash and are read without one. Reading and writing a bank needs no torch; `ovsdino text` makes one. To change the
vocabulary of a running engine, load another bank.
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
MAX_BYTES = 256 << 20  # 32 767 classes of 1 024 columns are 134 MB; a larger file is not a bank
FIELDS = {"format", "names", "model", "weights", "sha256"}
REMAKE = "make it again with `ovsdino text`"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBank:
    """The words of one vocabulary, encoded by one model.

    Attributes:
        names: K class names, all different.
        text: (K, D) float32, rows of length one, C-contiguous and read-only.
        model: Name of the model that encoded it.
        weights: Digest of the image side that it belongs to (`ovsdino.models.weights.weights_digest`).
    """

    names: tuple[str, ...]
    text: np.ndarray = field(repr=False)
    model: str
    weights: str

    def __post_init__(self) -> None:
        text = np.array(self.text, dtype=np.float32, order="C")
        if text.ndim != 2 or 0 in text.shape:
            raise OVSDinoError(f"text bank of shape {text.shape}: expected (K, D); {REMAKE}")
        if len(self.names) != len(text):
            raise OVSDinoError(f"text bank: {len(self.names)} names for {len(text)} rows; {REMAKE}")
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(text, axis=1)
            wrong = ~(np.abs(lengths - 1) < 1e-3)  # also true for NaN
        if wrong.any():
            row = int(wrong.argmax())
            raise OVSDinoError(
                f"text bank: row {row} ({self.names[row][:40]!r}) has length {lengths[row]:.4g}, expected 1; {REMAKE}"
            )
        text.flags.writeable = False
        object.__setattr__(self, "names", Vocabulary.of([(name,) for name in self.names]).names)
        object.__setattr__(self, "text", text)

    def __len__(self) -> int:
        return len(self.names)

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
            text = file.get_tensor("text") if found == ["text"] else None
        if metadata.get("format") != FORMAT or text is None or text.dtype != np.float32:
            raise OVSDinoError(
                f"{path}: not a text bank of format {FORMAT}: format {metadata.get('format')!r}, "
                f"tensors {one_line(', '.join(found), 60) or 'none'}; {REMAKE}"
            )
        try:
            names = json.loads(metadata["names"])
            model, weights = metadata["model"], metadata["weights"]
        except (KeyError, ValueError, RecursionError) as error:
            raise OVSDinoError(f"{path}: damaged metadata ({one_line(error, 80)}); {REMAKE}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise OVSDinoError(f"{path}: damaged metadata (names is not a list of text); {REMAKE}")
        odd = set(metadata) - FIELDS
        if odd:
            raise OVSDinoError(f"{path}: damaged metadata ({one_line(odd.pop(), 40)!r} is unknown); {REMAKE}")
        if "sha256" in metadata and metadata["sha256"] != _digest(names, text, model, weights):
            raise OVSDinoError(f"{path}: changed since it was written (its SHA-256 is another); {REMAKE}")
        try:
            return cls(names=tuple(names), text=text, model=model, weights=weights)
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
            "sha256": _digest(self.names, self.text, self.model, self.weights),
        }
        data = save({"text": self.text}, metadata=metadata)
        with atomic_write(path) as file:
            file.write(data)
        return Path(path)


def _digest(names: Sequence[str], text: np.ndarray, model: str, weights: str) -> str:
    """Return the SHA-256 of a bank: JSON of its words and shape, then the rows as little-endian float32."""
    digest = hashlib.sha256(json.dumps([list(names), model, weights, list(text.shape)]).encode())
    digest.update(np.ascontiguousarray(text, "<f4").tobytes())
    return digest.hexdigest()
