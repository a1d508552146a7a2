"""Make pseudo-masks: segment-anything's automatic mask generator, or a named stand-in that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ovsdino.data.masks import PseudoMask
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import sha256_of
from ovsdino.models.weights import load_state, read_foreign


class MaskGenerator(Protocol):
    """An image in, its masks out; `settings` and the image decide them."""

    name: str

    @property
    def settings(self) -> dict[str, Any]: ...

    def __call__(self, image: np.ndarray) -> list[PseudoMask]: ...


@dataclass(frozen=True, kw_only=True)
class Felzenszwalb:
    """Segment by graphs (Felzenszwalb & Huttenlocher 2004, scikit-image) at several scales.

    The stand-in where no SAM weights are at hand: regions of even color, not objects. A region's `predicted_iou` is
    its best overlap with the regions of a more blurred image, its `stability_score` that with the regions of a scale a
    quarter larger: a region that both find again is bounded by a real edge.

    Attributes:
        scales: Larger gives larger regions.
        min_area: Least fraction of the image that a region covers; smaller ones are left out.
        max_area: Largest fraction, likewise.
        duplicate_iou: Of two regions with a larger overlap the one that scores better is kept.
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
        checkpoint: Official sam_vit_{b,l,h}_*.pth; the weights tell its size.
        device: Where SAM runs.
        points_per_side: Of the grid; 32 in the paper.
        predicted_iou: Masks below are left out; segment-anything's own default.
        stability_score: Likewise.

    Raises:
        OVSDinoError: The package segment-anything is not installed, or the file is not SAM's.
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


def _best_overlap(regions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each region of one labelling its largest IoU with a region of another: (number of regions,)."""
    count = int(others.max()) + 1
    shared = np.bincount(regions.ravel().astype(np.int64) * count + others.ravel()).astype(np.float64)
    shared = np.pad(shared, (0, (int(regions.max()) + 1) * count - len(shared))).reshape(-1, count)
    union = np.bincount(regions.ravel())[:, None] + np.bincount(others.ravel())[None, :] - shared
    return np.asarray((shared / union).max(1))
