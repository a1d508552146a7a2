"""Make the masks of a folder of images, in shards and by several processes; count and show what was made."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from ovsdino.data.masks import SHARD_SIZE, ImageRow, Manifest, MaskStore, decode_one, encode_image, names_digest
from ovsdino.data.spread import spread
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.tree import ImageSource
from ovsdino.train.masks.generators import MaskGenerator

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Show no progress."""


def make_masks(
    source: ImageSource,
    output: str | Path,
    generator: MaskGenerator,
    part: tuple[int, int] = (0, 1),
    progress: Progress = silent,
    log: Callable[[str], None] = lambda line: None,
    shard_size: int = SHARD_SIZE,
) -> MaskStore:
    """Write the shards of masks that are missing.

    An image that cannot be read gets no mask and one line in the log: a bad file does not stop the others.
    Part (i, n) makes every n-th shard, from i. `progress` is called with (images done, images in all).

    Raises:
        OVSDinoError: `output` holds masks that something else made.
    """
    own: dict[str, Any] = {"generator": generator.name, "settings": generator.settings, "shard_size": shard_size}
    manifest = Manifest(**own, images=len(source), names_sha256=names_digest(source.names))
    store = MaskStore.create(output, manifest)
    for shard, images in images_by_shard(store, store.missing(), part, progress):
        rows = []
        for name in map(source.names.__getitem__, images):
            try:
                image = source.read(name)
                rows.append(encode_image(name, image.shape[:2], generator(image)))
            except OVSDinoError as error:
                log(f"left without masks: {one_line(error)}")
                rows.append(encode_image(name, (0, 0), []))
        store.write(shard, rows)
    return store


def images_by_shard(
    store: MaskStore, shards: Iterable[int], part: tuple[int, int], progress: Progress
) -> Iterator[tuple[int, Iterator[int]]]:
    """Yield a process's shards, each with the indices of its images.

    Part (i, n) takes every n-th of `shards`, from i. `progress` is called when the next index is asked for.
    """
    own = [shard for shard in shards if shard % part[1] == part[0]]
    total, done = sum(len(store.images_of(shard)) for shard in own), itertools.count(1)

    def counted(shard: int) -> Iterator[int]:
        for index in store.images_of(shard):
            yield index
            progress(next(done), total)

    for shard in own:
        yield shard, counted(shard)


def parse_part(text: str | None) -> tuple[int, int]:
    """Return (i, n) of "i/n"; None reads torchrun's environment, and without torchrun is (0, 1).

    Raises:
        OVSDinoError: The text is not of that form, or i is not in 0..n-1.
    """
    given = "--shard" if text is not None else "RANK and WORLD_SIZE"
    if text is None:
        text = f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise OVSDinoError(f"{given} {text!r}: expected i/n with i from 0 to n-1, for instance 0/4")
    return int(match[1]), int(match[2])


def statistics(store: MaskStore) -> dict[str, Any]:
    """Return counts and means over a finished store: masks per image, share of the image covered, sizes, scores."""
    masks = empty = 0
    sizes: list[float] = []
    scores: list[float] = []
    stable: list[float] = []
    for row in store.rows():
        pixels = max(1, row["height"] * row["width"])
        masks += len(row["masks"])
        empty += not row["masks"]
        sizes.extend(mask["area"] / pixels for mask in row["masks"])
        scores.extend(mask["predicted_iou"] for mask in row["masks"])
        stable.extend(mask["stability_score"] for mask in row["masks"])
    areas = np.quantile(sizes, [0.1, 0.5, 0.9]).tolist() if sizes else [0.0, 0.0, 0.0]
    return {
        "images": store.manifest.images,
        "images_without_masks": empty,
        "masks": masks,
        "masks_per_image": round(masks / max(1, store.manifest.images), 2),
        "area_p10_p50_p90": [round(value, 5) for value in areas],
        "predicted_iou": round(float(np.mean(scores)), 4) if scores else None,
        "stability_score": round(float(np.mean(stable)), 4) if stable else None,
    }


def contact_sheet(store: MaskStore, source: ImageSource, count: int = 12, width: int = 320) -> Image.Image:
    """Return a picture of `count` images spread over the store, each next to itself with its masks in colors.

    Args:
        store: A finished store.
        source: The images that its masks were made of.
        count: How many images.
        width: Pixels of one image; one more than twice as tall is made smaller.

    Raises:
        OVSDinoError: A shard or an image is damaged, or an image has changed since.
    """
    chosen = np.array(spread(store.manifest.images, count), np.int64)
    pairs = []
    for shard in dict.fromkeys((chosen // store.manifest.shard_size).tolist()):
        rows = store.read(shard)
        for index in chosen[chosen // store.manifest.shard_size == shard]:
            row = rows[index - shard * store.manifest.shard_size]
            if row["height"] and row["width"]:
                pairs.append(_pair(row, source.read(row["image"]), width))
    columns = 2 if len(pairs) > 1 else 1
    lines = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    heights = [max(pair.height for pair in line) for line in lines]
    sheet = Image.new("RGB", (2 * width * columns, max(1, sum(heights))), "white")
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for column, pair in enumerate(line):
            sheet.paste(pair, (2 * width * column, top))
        top += height
    return sheet


def _pair(row: ImageRow, image: np.ndarray, width: int) -> Image.Image:
    """Return an image and, next to it, the same with its masks; at most (2 * width, 2 * width) pixels."""
    if image.shape[:2] != (row["height"], row["width"]):
        raise OVSDinoError(
            f"{row.source}: masks of {row['height']}x{row['width']} pixels, the image is now "
            f"{image.shape[0]}x{image.shape[1]}; make the masks again"
        )
    painted = image.astype(np.float32)
    colors = np.random.default_rng(0).integers(40, 256, (max(1, len(row["masks"])), 3))
    for index in range(len(row["masks"])):  # largest first, so small ones stay visible
        mask = decode_one(row, index) > 0
        edge = mask & ~ndimage.binary_erosion(mask)
        painted[mask] = 0.55 * painted[mask] + 0.45 * colors[index]
        painted[edge] = 255
    both = Image.fromarray(np.hstack([image, painted.round().astype(np.uint8)]))
    scale = min(2 * width / both.width, 2 * width / both.height)
    return both.resize((max(1, round(both.width * scale)), max(1, round(both.height * scale))))
