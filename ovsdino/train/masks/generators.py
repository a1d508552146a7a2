"""Make pseudo-masks: segment-anything's automatic mask generator, or a named stand-in that needs no weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ovsdino.data.images import ImageSource
from ovsdino.data.masks import (
    SHARD_SIZE,
    ImageRow,
    Manifest,
    MaskStore,
    PseudoMask,
    decode_one,
    encode_image,
    names_digest,
)
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import sha256_of
from ovsdino.models.weights import load_state, read_foreign


class MaskGenerator(Protocol):
    """An image in, its masks out; `settings` is all that decides them beside the image."""

    name: str

    @property
    def settings(self) -> dict[str, Any]: ...

    def __call__(self, image: np.ndarray) -> list[PseudoMask]: ...


@dataclass(frozen=True, kw_only=True)
class Felzenszwalb:
    """Segment by graphs (Felzenszwalb & Huttenlocher 2004, scikit-image) at several scales.

    The stand-in where no SAM weights are at hand: regions of even colour, not objects. A region's `predicted_iou` is
    its best overlap with the regions of a more blurred image, its `stability_score` that with the regions of a scale a
    quarter larger: a region that both find again is bounded by a real edge.

    Attributes:
        scales: larger gives larger regions.
        min_area, max_area: fractions of the image; regions outside are left out.
        duplicate_iou: of two regions that overlap more than this the one that scores better is kept.
    """

    scales: tuple[float, ...] = (100.0, 300.0, 900.0)
    sigma: float = 0.8
    min_area: float = 0.001
    max_area: float = 0.9
    duplicate_iou: float = 0.9

    name = "felzenszwalb"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, image: np.ndarray) -> list[PseudoMask]:
        pixels = image.shape[0] * image.shape[1]
        least = max(1, round(self.min_area * pixels))
        found = []
        for scale in self.scales:
            regions = self._regions(image, scale, self.sigma, least)
            again = self._regions(image, scale, 1.5 * self.sigma, least)
            larger = self._regions(image, 1.25 * scale, self.sigma, least)
            quality, stability = _best_overlap(regions, again), _best_overlap(regions, larger)
            areas = np.bincount(regions.ravel())
            for region in np.flatnonzero((areas >= least) & (areas <= self.max_area * pixels)):
                found.append(
                    PseudoMask(
                        mask=regions == region,
                        predicted_iou=float(quality[region]),
                        stability_score=float(stability[region]),
                    )
                )
        return without_duplicates(found, self.duplicate_iou)

    @staticmethod
    def _regions(image: np.ndarray, scale: float, sigma: float, least: int) -> np.ndarray:
        try:
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise OVSDinoError("felzenszwalb needs scikit-image: pip install scikit-image") from error
        return np.asarray(felzenszwalb(image, scale=scale, sigma=sigma, min_size=least))


class SegmentAnything:
    """Make SAM's automatic masks: a grid of points, filtered by predicted quality and stability (Kirillov et al. 2023).

    Args:
        checkpoint: official sam_vit_{b,l,h}_*.pth; the size is read off the weights.
        points_per_side: the grid; 32 in the paper.
        predicted_iou, stability_score: masks below are left out; segment-anything's own defaults.

    Raises:
        OVSDinoError: segment-anything is not installed, or the file is not SAM's.
    """

    name = "sam"

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "cpu",
        points_per_side: int = 32,
        predicted_iou: float = 0.88,
        stability_score: float = 0.95,
    ) -> None:
        try:
            from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
        except ImportError as error:
            raise OVSDinoError("--generator sam needs segment-anything: pip install segment-anything") from error
        state = read_foreign(checkpoint)
        widths = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
        embedding = state.get("image_encoder.pos_embed")
        if embedding is None or embedding.shape[-1] not in widths:
            raise OVSDinoError(f"{checkpoint}: not an official SAM checkpoint (image_encoder.pos_embed)")
        size = widths[embedding.shape[-1]]
        model = sam_model_registry[size]()
        load_state(model, state, str(checkpoint))
        self._settings: dict[str, Any] = {
            "model": size,
            "checkpoint_sha256": sha256_of(checkpoint, "weight file"),
            "points_per_side": points_per_side,
            "predicted_iou": predicted_iou,
            "stability_score": stability_score,
        }
        self.generator = SamAutomaticMaskGenerator(
            model.to(device).eval(),
            points_per_side=points_per_side,
            pred_iou_thresh=predicted_iou,
            stability_score_thresh=stability_score,
        )

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings

    def __call__(self, image: np.ndarray) -> list[PseudoMask]:
        return [
            PseudoMask(
                mask=found["segmentation"].astype(bool),
                predicted_iou=float(found["predicted_iou"]),
                stability_score=float(found["stability_score"]),
            )
            for found in self.generator.generate(image)
        ]

    def embed(self, image: np.ndarray) -> Tensor:
        """Return SAM's image embedding of the padded square, (256, 64, 64)."""
        self.generator.predictor.set_image(image)
        embedding: Tensor = self.generator.predictor.get_image_embedding()[0]
        return embedding


def make_masks(
    source: ImageSource,
    output: str | Path,
    generator: MaskGenerator,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
    shard_size: int = SHARD_SIZE,
) -> MaskStore:
    """Write the shards that are missing; those of part i of n are every n-th, from i.

    An image that cannot be read gets no mask and one line in the log: a bad file does not stop the others.

    Raises:
        OVSDinoError: `output` holds masks that something else made.
    """
    digest = names_digest(source.names)
    manifest = Manifest(
        generator=generator.name,
        settings=generator.settings,
        images=len(source),
        names_sha256=digest,
        shard_size=shard_size,
    )
    store = MaskStore.create(output, manifest)
    shards = [shard for shard in store.missing() if shard % part[1] == part[0]]
    total, done = sum(len(store.images_of(shard)) for shard in shards), 0
    for shard in shards:
        rows = []
        for index in store.images_of(shard):
            name = source.names[index]
            try:
                image = source.read(name)
                rows.append(encode_image(name, image.shape[:2], generator(image)))
            except OVSDinoError as error:
                log(f"left without masks: {one_line(error)}")
                rows.append(encode_image(name, (0, 0), []))
            done += 1
            progress(done, total)
        store.write(shard, rows)
    return store


def parse_part(text: str | None) -> tuple[int, int]:
    """Return (i, n) of "i/n", from torchrun's environment where None is given, else (0, 1).

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


def without_duplicates(masks: Sequence[PseudoMask], limit: float) -> list[PseudoMask]:
    """Return the masks of which no better one overlaps more than `limit`; better by predicted_iou * stability_score."""
    order = sorted(masks, key=lambda m: -m.predicted_iou * m.stability_score)
    kept: list[PseudoMask] = []
    areas: list[int] = []
    for mask in order:
        area = int(mask.mask.sum())
        for other, other_area in zip(kept, areas, strict=True):
            if limit * max(area, other_area) > min(area, other_area):
                continue  # their areas alone rule the overlap out
            shared = int(np.count_nonzero(mask.mask & other.mask))
            if shared > limit * (area + other_area - shared):
                break
        else:
            kept.append(mask)
            areas.append(area)
    return kept


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
    spread = np.quantile(sizes, [0.1, 0.5, 0.9]).tolist() if sizes else [0.0, 0.0, 0.0]
    return {
        "images": store.manifest.images,
        "images_without_masks": empty,
        "masks": masks,
        "masks_per_image": round(masks / max(1, store.manifest.images), 2),
        "area_p10_p50_p90": [round(value, 5) for value in spread],
        "predicted_iou": round(float(np.mean(scores)), 4) if scores else None,
        "stability_score": round(float(np.mean(stable)), 4) if stable else None,
    }


def _best_overlap(regions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each region of one labelling its largest IoU with a region of another: (number of regions,)."""
    count = int(others.max()) + 1
    shared = np.bincount(regions.ravel().astype(np.int64) * count + others.ravel()).astype(np.float64)
    shared = np.pad(shared, (0, (int(regions.max()) + 1) * count - len(shared))).reshape(-1, count)
    union = np.bincount(regions.ravel())[:, None] + np.bincount(others.ravel())[None, :] - shared
    return np.asarray((shared / union).max(1))


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
    chosen = np.linspace(0, store.manifest.images - 1, min(count, store.manifest.images)).round().astype(int)
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
