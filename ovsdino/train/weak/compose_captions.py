"""Captions for a data set that has none: the classes of an image's crop as a sentence, from its labels.

A stand-in for the web's captions at a scale where there are no others. It writes one line for each crop: the image's
name, the crop's box and the caption, and nothing else of the labels. Training reads that file and the images.

    python -m ovsdino.train.weak.compose_captions --root data --output runs/weak/camvid/captions.jsonl
    python -m ovsdino.train.weak.compose_captions --root data --dataset voc21 --whole --least 0 \
        --output runs/weak/voc21/captions.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovsdino.data.datasets import open_dataset
from ovsdino.io.files import atomic_write
from ovsdino.parsing import run_script


@dataclass(frozen=True, kw_only=True)
class ComposeCaptions:
    """Write captions of random crops, made of what their labels show."""

    root: Path
    """Folder of the data set."""
    output: Path
    """JSONL file to write."""
    dataset: str = "camvid"
    """Name of the data set (`ovsdino data check --help` lists them)."""
    split: str = "train"
    """Part of it."""
    crops: int = 48
    """Crops of each image."""
    area: tuple[float, float] = (0.02, 0.35)
    """Least and largest area of a crop, in shares of the image."""
    least: float = 0.04
    """Share of the crop that a class must cover to be named."""
    whole: bool = False
    """One caption of each whole image, its image-level words, in place of crops; all classes that --least lets by."""
    seed: int = 0
    """Seed of the crops."""

    def run(self) -> int:
        """Write the file; return the exit code."""
        rows = compose(self)
        with atomic_write(self.output) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        print(f"{self.output}: {len(rows)} captions")
        return 0


def sentence(names: Sequence[str]) -> str:
    """Return a caption that names things: "road, car and sky"."""
    listed = ", ".join(names[:-1]) + " and " if len(names) > 1 else ""
    return listed + names[-1]


def compose(config: ComposeCaptions) -> list[dict[str, object]]:
    """Return one row for each crop that shows something: {"image", "caption", "box"}, without a box for a whole image.

    A box is left, top, width, height in pixels. Background has no word.

    Raises:
        OVSDinoError: See `open_dataset`.
    """
    dataset = open_dataset(config.dataset, config.root, config.split, byte_labels=True)
    rng = np.random.default_rng(config.seed)
    rows: list[dict[str, object]] = []

    def named(label: np.ndarray) -> list[str]:
        counts = np.bincount(label.ravel(), minlength=256)[: len(dataset.names)]
        if dataset.has_background:
            counts[0] = 0
        order = np.argsort(-counts, kind="stable")
        return [dataset.names[i] for i in order if counts[i] and counts[i] >= config.least * label.size]

    for entry, sample in zip(dataset.entries, dataset, strict=True):
        height, width = sample.label.shape
        if config.whole:
            if names := named(sample.label):
                rows.append({"image": entry.image, "caption": sentence(names)})
            continue
        for _ in range(config.crops):
            area = rng.uniform(*config.area) * height * width
            aspect = np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
            h, w = min(height, round((area / aspect) ** 0.5)), min(width, round((area * aspect) ** 0.5))
            y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            if names := named(sample.label[y : y + h, x : x + w]):
                rows.append({"image": entry.image, "caption": sentence(names), "box": [x, y, w, h]})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(ComposeCaptions, "python -m ovsdino.train.weak.compose_captions", argv)


if __name__ == "__main__":
    raise SystemExit(main())
