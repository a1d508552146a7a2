"""Spoil pseudo-masks on purpose, to measure how well training bears it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from ovsdino.data.masks import Manifest, MaskStore, PseudoMask, decode, encode_image
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.train.masks.make import Progress, images_by_shard, silent

Kind = Literal["merge", "dilate", "shift", "drop"]
KINDS: tuple[Kind, ...] = ("merge", "dilate", "shift", "drop")


def corrupt_store(
    source: MaskStore,
    output: str | Path,
    share: float,
    seed: int,
    part: tuple[int, int] = (0, 1),
    progress: Progress = silent,
) -> MaskStore:
    """Write a corrupted copy of a finished store. Shards that are there stay; part (i, n) makes every n-th, from i.

    Raises:
        OVSDinoError: See `check_corruption`; or the source is damaged or not finished, or `output` holds masks that
            something else made.
    """
    check_corruption(source, share)
    old = source.manifest
    settings = {**old.settings, "corrupt": {"share": share, "seed": seed}}
    store = MaskStore.create(output, Manifest(**{**asdict(old), "settings": settings}))
    for shard, images in images_by_shard(store, store.missing(), part, progress):
        store.write(shard, [corrupt_rows(row, share, seed) for _, row in zip(images, source.read(shard), strict=True)])
    return store


def check_corruption(source: MaskStore, share: float) -> None:
    """Refuse what cannot be corrupted, before anything is written.

    Raises:
        OVSDinoError: `share` is not in (0, 1], or the source is corrupted already.
    """
    if not 0 < share <= 1:
        raise OVSDinoError(f"--corrupt {share}: expected a share of the masks above 0 and up to 1, for instance 0.3")
    if "corrupt" in (settings := source.manifest.settings):
        done = one_line(settings["corrupt"], 80)
        raise OVSDinoError(f"{source.folder}: corrupted already ({done}); take the masks it is from")


def corrupt_rows(row: Mapping[str, Any], share: float, seed: int) -> dict[str, Any]:
    """Return an image's row of a store with each mask spoiled with probability `share`.

    The scores stay, as the generator does not know. What happens depends on the row and the seed alone.

    Raises:
        OVSDinoError: The package pycocotools is not installed.
    """
    digest = hashlib.sha256(f"{seed}:{row['image']}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    masks = decode(row)
    spoiled = corrupt_masks(masks, share, generator)
    changed = encode_image(
        row["image"],
        (row["height"], row["width"]),
        [
            PseudoMask(mask=new, predicted_iou=old["predicted_iou"], stability_score=old["stability_score"])
            for (_, new), old in zip(spoiled, row["masks"], strict=True)
            if new is not None
        ],
    )
    return {**row, **changed}


def corrupt_masks(
    masks: np.ndarray, share: float, generator: np.random.Generator
) -> list[tuple[Kind | None, np.ndarray | None]]:
    """Return each mask of an image after damage: the kind of damage, or None, and the mask, or None if it is gone.

    Each kind is as likely as another:
    merge: union with a neighbour that touches it, has at least a quarter of its area outside of it and less than half
        of it inside; the nearest such mask where none touches, dilated where there is none.
    dilate: by a disc of 5 to 15 pixels.
    shift: by 10 to 25 % of its box's sides in a random direction, at least 8 pixels.
    drop: gone. So is what a shift moves out of the image.
    Pixels are those of a 480 x 360 image, in proportion at other sizes.

    Args:
        masks: (M, H, W) bool.
        share: Probability that a mask is spoiled.
        generator: Draws the damage.
    """
    hit, kind, amount, angle = generator.random((4, len(masks)))
    pixel = math.sqrt(masks.shape[1] * masks.shape[2] / (480 * 360))
    areas = masks.sum((1, 2))
    result: list[tuple[Kind | None, np.ndarray | None]] = []
    for index, mask in enumerate(masks):
        if hit[index] >= share or not mask.any():
            result.append((None, mask))
            continue
        which = KINDS[int(kind[index] * len(KINDS))]
        radius = (5 + 10 * amount[index]) * pixel
        new: np.ndarray | None = None
        if which == "merge":
            other = _neighbour(masks, areas, index, amount[index])
            new = _dilated(mask, radius) if other is None else mask | masks[other]
        elif which == "dilate":
            new = _dilated(mask, radius)
        elif which == "shift":
            new = _shifted(mask, 0.10 + 0.15 * amount[index], 8 * pixel, 2 * math.pi * angle[index])
        result.append((which, new if new is not None and new.any() else None))
    return result


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a mask that is not empty; bottom and right exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _neighbour(masks: np.ndarray, areas: np.ndarray, index: int, pick: float) -> int | None:
    """Return a mask whose union with this one is neither of the two; `pick` in [0, 1) draws among those that touch."""
    mask = masks[index]
    top, bottom, left, right = _box(mask)
    around = (slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1))
    near = masks[:, around[0], around[1]]
    inside = (near & mask[around]).sum((1, 2))
    fit = (areas - inside >= 0.25 * areas[index]) & (inside < 0.5 * areas[index])
    touching = np.flatnonzero(fit & (near & ndimage.binary_dilation(mask[around])).any((1, 2)))
    if len(touching):
        return int(touching[int(pick * len(touching))])
    apart = np.flatnonzero(fit)
    if not len(apart):
        return None
    centers = np.array([ndimage.center_of_mass(masks[other]) for other in apart])
    return int(apart[np.square(centers - ndimage.center_of_mass(mask)).sum(1).argmin()])


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return all pixels within `radius` of the mask."""
    top, bottom, left, right = _box(mask)
    margin = math.ceil(radius)
    window = (slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin))
    new = mask.copy()
    new[window] = ndimage.distance_transform_edt(~mask[window]) <= radius
    return new


def _shifted(mask: np.ndarray, fraction: float, least: float, angle: float) -> np.ndarray:
    """Return the mask moved by a share of its box's sides, at least `least` pixels; what leaves the image is lost."""
    top, bottom, left, right = _box(mask)
    dy, dx = fraction * (bottom - top) * math.sin(angle), fraction * (right - left) * math.cos(angle)
    stretch = max(1.0, least / math.hypot(dy, dx))
    y, x = np.nonzero(mask)
    y, x = y + round(dy * stretch), x + round(dx * stretch)
    kept = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    new = np.zeros_like(mask)
    new[y[kept], x[kept]] = True
    return new
