"""Masks for the controls of a study: they have a store's format, numbers and scores, and not its meaning.

    foreign      another image's masks, resized; the images are assigned in a circle in random order
    rectangles   for each mask a rectangle of its area, at a random place and of a random aspect
    segments     connected regions of ONE CLASS OF THE LABELS, without its name: the segmenter of an ideal world

`segments` reads ground truth: a run on them is an upper bound for what better masks could give, never a result.

    python -m ovsdino.train.masks.controls --from runs/weak/masks --kind foreign --output runs/weak/masks_foreign
    python -m ovsdino.train.masks.controls --from runs/weak/masks --kind segments --dataset camvid --root data \
        --split train --output runs/weak/masks_segments
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from ovsdino.console import say
from ovsdino.data.datasets import open_dataset
from ovsdino.data.masks import ImageRow, Manifest, MaskStore, PseudoMask, decode_one, encode_image
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import lock_folder, refuse_inputs
from ovsdino.parsing import run_script

Control = Literal["foreign", "rectangles", "segments"]
LEAST = 1e-4  # of an image: smaller regions of the labels are specks
WARNING = "these masks are regions of the LABELS: a run on them is an upper bound, never a result of weak supervision"


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Write the masks of a control: another image's, random rectangles, or regions of the labels."""

    from_: Path
    """Folder of finished masks."""
    kind: Control
    """foreign: another image's masks. rectangles: random ones of the same areas. segments: regions of the labels."""
    output: Path
    """Folder for the new masks."""
    seed: int = 0
    """Seed of what is random."""
    dataset: str | None = None
    """segments: the labeled data set of the same images."""
    root: Path | None = None
    """segments: its folder."""
    split: str = "train"
    """segments: part of it."""

    def run(self) -> int:
        """Write the folder; return the exit code."""
        refuse_inputs([self.output], [self.from_])
        source = MaskStore.open(self.from_)
        labels = None
        if self.kind == "segments":
            if self.dataset is None or self.root is None:
                raise OVSDinoError("--kind segments takes regions of labels: name them with --dataset and --root")
            labels = open_dataset(self.dataset, self.root, self.split)
            say(f"warning: {WARNING}")
        elif self.dataset is not None or self.root is not None:
            raise OVSDinoError(f"--kind {self.kind} reads no labels: leave out --dataset and --root")
        with lock_folder(self.output, "control"):
            store = write_control(source, self.output, self.kind, self.seed, labels)
        count = sum(len(row["masks"]) for row in store.rows())
        print(f"{self.output}: {count} masks of {store.manifest.images} images ({self.kind})")
        return 0


def write_control(
    source: MaskStore, output: str | Path, kind: Control, seed: int = 0, labels: SegmentationDataset | None = None
) -> MaskStore:
    """Write the masks of a control for the images of a finished store. Shards that are there stay.

    Args:
        source: The store.
        output: Folder of the new one.
        kind: See the head of this module.
        seed: Of what is random.
        labels: "segments": the labels of the same images.

    Raises:
        OVSDinoError: The source is damaged or not finished, has a single image, an image has no labels, or `output`
            holds masks that something else made.
    """
    old = source.manifest
    settings: dict[str, Any] = {**old.settings, "control": {"kind": kind, "seed": seed}}
    if kind == "segments":
        settings["control"] = {"kind": kind, "note": WARNING}
    store = MaskStore.create(output, Manifest(**{**asdict(old), "settings": settings}))
    rows = [row for row in source.rows() if store.missing()]
    if kind == "foreign":
        made = _foreign(rows, seed)
    elif kind == "rectangles":
        made = (_rectangles(row, seed) for row in rows)
    else:
        assert labels is not None
        made = _segments(rows, labels)
    missing = set(store.missing())
    lines = list(made) if missing else []
    for shard in sorted(missing):
        store.write(shard, [lines[index] for index in store.images_of(shard)])
    return store


def _foreign(rows: Sequence[ImageRow], seed: int) -> Iterator[dict[str, Any]]:
    """Yield each row with the masks of the next image of a circle through all of them in random order."""
    if len(rows) == 1:
        raise OVSDinoError("another image's masks: there is no other image")
    order = np.random.default_rng(seed).permutation(len(rows))
    following = np.empty_like(order)
    following[order] = np.roll(order, -1)
    for row, other in zip(rows, following, strict=True):
        yield _with(row, rows[other], [_resized(decode_one(rows[other], i), row) for i in _all(rows[other])])


def _resized(mask: np.ndarray, row: ImageRow) -> np.ndarray:
    """Return a mask at the size of a row's image, the nearest pixel's value."""
    height, width = row["height"], row["width"]
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * mask.shape[1] / width
    found: np.ndarray = mask[np.ix_(rows.astype(int), columns.astype(int))] > 0
    return found


def _rectangles(row: ImageRow, seed: int) -> dict[str, Any]:
    """Return a row whose masks are rectangles of their areas; it depends on the image's name and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{row['image']}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    height, width, masks = row["height"], row["width"], []
    for mask in row["masks"]:
        aspect = width / height * math.exp(rng.uniform(-1, 1) * math.log(2))
        down = min(height, max(1, round(math.sqrt(mask["area"] / aspect))))
        across = min(width, max(1, round(mask["area"] / down)))
        down = min(height, max(1, round(mask["area"] / across)))
        y, x = rng.integers(0, height - down + 1), rng.integers(0, width - across + 1)
        found = np.zeros((height, width), bool)
        found[y : y + down, x : x + across] = True
        masks.append(found)
    return _with(row, row, masks)


def _segments(rows: Sequence[ImageRow], labels: SegmentationDataset) -> Iterator[dict[str, Any]]:
    """Yield each row with the 8-connected regions of its labels, all with full scores; background is one too."""
    place = {PurePosixPath(entry.image).stem: index for index, entry in enumerate(labels.entries)}
    for row in rows:
        stem = PurePosixPath(row["image"]).stem
        if stem not in place:
            raise OVSDinoError(f"{row['image']}: the data set has no labels of it; were the masks made of its images?")
        label = labels[place[stem]].label
        if label.shape != (row["height"], row["width"]):
            raise OVSDinoError(f"{row['image']}: its labels are of {label.shape[1]} x {label.shape[0]} pixels")
        found = []
        for value in np.unique(label[label != labels.ignore_index]):
            parts, count = ndimage.label(label == value, np.ones((3, 3)))
            areas = np.bincount(parts.ravel(), minlength=count + 1)
            found += [parts == i for i in range(1, count + 1) if areas[i] >= LEAST * label.size]
        yield encode_image(
            row["image"],
            label.shape,
            [PseudoMask(mask=mask, predicted_iou=1.0, stability_score=1.0) for mask in found],
        )


def _with(row: ImageRow, scored: ImageRow, masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return an image's row with other masks, and the scores of another row; masks that vanished are left out."""
    pairs = zip(masks, scored["masks"], strict=True)
    return encode_image(
        row["image"],
        (row["height"], row["width"]),
        [
            PseudoMask(mask=mask, predicted_iou=old["predicted_iou"], stability_score=old["stability_score"])
            for mask, old in pairs
            if mask.any()
        ],
    )


def _all(row: ImageRow) -> range:
    return range(len(row["masks"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(Controls, "python -m ovsdino.train.masks.controls", argv)


if __name__ == "__main__":
    raise SystemExit(main())
