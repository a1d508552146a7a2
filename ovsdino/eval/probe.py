"""Boundary awareness of each block or stage of a network, by a linear readout and with no training at all.

Readout: a 1x1 convolution (ridge regression, solved exactly) from a layer to the cells of a grid of a quarter of the
patch size, trained on the share of annotators who drew a boundary in a cell, scored by ODS F (`ovsdino.eval.edges`) on
images it has not seen. A layer is read at its own stride: a ViT's token predicts the 4x4 cells in its patch, a CNN's
stage of stride 8 the 2x2 cells in its own, and of a stage that is finer than the cells all positions in a cell are read
together. So every layer says *where* the boundary runs, on one grid.

Local contrast: of all pairs of adjacent tokens, how well does their dissimilarity (1 - cosine, the image's mean token
taken off) tell pairs that most annotators separate from the others? The area under the ROC curve; 0.5 is chance.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.data.bsds import BoundarySample, BsdsDataset, boundaries
from ovsdino.errors import OVSDinoError
from ovsdino.eval.edges import BoundaryScore, Matching, OptimalScore
from ovsdino.io.files import atomic_write
from ovsdino.models.backbone import normalize

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO
    from ovsdino.pipeline import Segmenter

__all__ = ["Probe", "Ridge", "Row", "contrast_auc", "probe", "recommended_taps", "write_csv", "write_plot"]


SUB_CELLS = 4  # a side of each token's patch; a layer of another stride has as many as make the same grid
RIDGE = 1e-3  # of the variance of a standardised channel
BOOTSTRAP = 1000
TAPS = 4
SIGMA = 2.0  # pixels, of the image gradient
LEAST_SPAN = 0.2  # of a score axis
CONTRAST_LABEL = "local contrast: ROC area of adjacent tokens"
GRADIENT = "image gradient"
SAE_BOUNDARY = "SAE boundary"
KINDS = ("block", "stage")
SCORES = ("f", "precision", "recall", "contrast")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Boundary awareness of one layer.

    Attributes:
        name: "block 0", ... of a ViT, "stage 0", ... and "final map" of a CNN, "F" (after the final norm and head),
            parts of the decoder, "image gradient".
        block: Index of a backbone's block or stage, None for everything else.
        channels: Of the layer; None for a boundary map.
        stride: Of the layer, in pixels of the network's input.
        trained: True when `f` is a linear readout's, False when the layer is a boundary map itself.
        f: ODS F on the scored images, with its precision and recall.
        contrast: Local-contrast score, None where there are no tokens.
    """

    name: str
    block: int | None
    channels: int | None = None
    stride: float | None = None
    trained: bool
    f: float
    precision: float
    recall: float
    contrast: float | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """All rows, in the order of the forward pass, and the conclusions from them.

    Attributes:
        peak_block: The block or stage with the best readout.
        fade: Its F minus the last block's.
        fade_error: Standard error of the fade over the choice of images (paired bootstrap, thresholds kept).
        contrast_fade: The same of the local contrast.
        taps: See `recommended_taps`.
    """

    train_images: int
    val_images: int
    rows: tuple[Row, ...]
    peak_block: int
    fade: float
    fade_error: float
    contrast_fade: float
    taps: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, scores rounded to four digits."""
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in self.rows]
        fades = {key: round(getattr(self, key), 4) for key in ("fade", "fade_error", "contrast_fade")}
        return {**asdict(self), "rows": rounded, **fades, "taps": list(self.taps)}


class Ridge:
    """Linear regression with a small ridge on standardised channels, from running sums: one pass, no step size."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sums: list[Tensor] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add samples: x (n, C), y (n, K) float32."""
        if self.shift is None:
            self.shift = x.mean(0)  # keeps the sums small where a channel's mean is far larger than its spread
            self.sums = [torch.zeros(1, dtype=torch.float64)] * 4
        x = x - self.shift
        self.count += len(x)
        new = (x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        self.sums = [old + part.double() for old, part in zip(self.sums, new, strict=True)]

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return weight (C, K) and bias (K,), float32, for x as it was given."""
        assert self.shift is not None
        x, y, xx, xy = (part / self.count for part in self.sums)
        covariance = xx - torch.outer(x, x)
        scale = covariance.diagonal().clamp_min(1e-12).sqrt()
        left = covariance / torch.outer(scale, scale) + RIDGE * torch.eye(len(scale), dtype=torch.float64)
        weight = torch.linalg.solve(left, (xy - torch.outer(x, y)) / scale[:, None]) / scale[:, None]
        bias = y - (x + self.shift.double()) @ weight
        return weight.float(), bias.float()


def probe(
    segmenter: Segmenter,
    train: BsdsDataset,
    val: BsdsDataset,
    *,
    limit: int | None = None,
    matching: Matching = "one-to-one",
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Train a readout for every layer on `train`, and score it on `val`.

    Args:
        segmenter: Model, device and inference size.
        train: Images to train the readouts on.
        val: Images to score them on.
        limit: Take the first so many images of each only.
        matching: See `BoundaryScore`.
        progress: Called with (done, total) after each image.

    Raises:
        OVSDinoError: An image or its segmentation cannot be read, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1")
    counts = [len(d) if limit is None else min(limit, len(d)) for d in (train, val)]
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, sum(counts))

    ridges: dict[str, Ridge] = {}
    for index in range(counts[0]):
        sample = train[index]
        grid = _grid(segmenter, sample)
        for name, features in _layers(segmenter, sample)[0].items():
            cells = _at_most_fine(features, grid)
            ridges.setdefault(name, Ridge()).update(cells.flatten(1).T, _targets(sample, cells, grid))
        step()
    readouts = {name: ridge.solve() for name, ridge in ridges.items()}
    scores: dict[str, BoundaryScore] = {}
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    shapes: dict[str, tuple[int, float]] = {}
    for index in range(counts[1]):
        sample = val[index]
        marked = torch.from_numpy(boundaries(sample.segments))
        layers, maps = _layers(segmenter, sample)
        grid = _grid(segmenter, sample)
        separated = _separated(sample.segments, grid)
        for name, features in layers.items():
            weight, bias = readouts[name]
            cells = _at_most_fine(features, grid)
            maps[name] = _boundary_map(torch.einsum("chw,ck->khw", cells, weight) + bias[:, None, None])
            pairs.setdefault(name, []).append((_contrast(features, grid), separated))
            shapes[name] = (len(features), segmenter.model.config.patch_size * grid[0] / features.shape[1])
        colors = _contrast(_pixels(sample), grid, cosine=False)
        pairs.setdefault(GRADIENT, []).append((colors, separated))
        maps[GRADIENT] = image_gradient(_pixels(sample))
        for name, strength in maps.items():
            size = tuple(sample.image.shape[:2])
            fine = F.interpolate(strength[None, None], size, mode="bilinear", align_corners=False)[0, 0]
            scores.setdefault(name, BoundaryScore(matching)).update(fine, marked)
        step()
    best = {name: scores[name].best() for name in [*readouts, SAE_BOUNDARY, GRADIENT] if name in scores}
    rows = [_row(name, score, pairs.get(name), shapes.get(name)) for name, score in best.items()]
    blocks = [row for row in rows if row.block is not None]
    peak = max(blocks, key=lambda row: row.f)
    contrasts = [row.contrast or 0.0 for row in blocks]
    draws = np.random.default_rng(0).integers(0, counts[1], (BOOTSTRAP, counts[1]))
    first, last = (scores[row.name].resampled(best[row.name].threshold, draws) for row in (peak, blocks[-1]))
    return Probe(
        train_images=counts[0],
        val_images=counts[1],
        rows=tuple(rows),
        peak_block=peak.block or 0,
        fade=peak.f - blocks[-1].f,
        fade_error=float((first - last).std()),
        contrast_fade=max(contrasts) - contrasts[-1],
        taps=_taps(segmenter, blocks),
    )


def recommended_taps(scores: Sequence[float]) -> tuple[int, ...]:
    """Return the best block of each of four equal stretches of depth: the SAE needs shallow detail and deep meaning.

    >>> recommended_taps([0.1, 0.4, 0.3, 0.5, 0.6, 0.2, 0.7, 0.8])
    (1, 3, 4, 7)
    """
    stretches = np.array_split(np.arange(len(scores)), min(TAPS, len(scores)))
    return tuple(int(max(part, key=lambda block: scores[block])) for part in stretches)


def contrast_auc(distances: np.ndarray, separated: np.ndarray) -> float:
    """Return the chance that a separated pair is further apart than another one.

    Ties count half; without pairs of either kind it is 0.5.
    """
    values, inverse, counts = np.unique(distances, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    positives, total = int(separated.sum()), len(separated)
    if not len(values) or positives in (0, total):
        return 0.5
    rank_sum = rank[inverse][separated].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (total - positives)))


def image_gradient(image: Tensor) -> Tensor:
    """Return the largest channel of the gradient of an image (3, H, W) under a Gaussian, (H, W)."""
    reach = int(3 * SIGMA + 0.5)
    position = torch.arange(-reach, reach + 1, dtype=torch.float32)
    bell = torch.exp(-0.5 * (position / SIGMA) ** 2)
    bell, slope = bell / bell.sum(), position * bell / (position**2 * bell).sum()
    wide = F.pad(image[:, None], [reach] * 4, mode="replicate")

    def along(down: Tensor, right: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(wide, down.view(1, 1, -1, 1)), right.view(1, 1, 1, -1))[:, 0]

    return torch.hypot(along(bell, slope), along(slope, bell)).amax(0)


def write_csv(result: Probe, path: Path) -> None:
    """Write one line per row.

    Raises:
        OVSDinoError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "block", "channels", "stride", "trained", *SCORES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.to_dict()["rows"])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_plot(result: Probe, path: Path, title: str) -> bool:
    """Plot readout F and local contrast by block, decoder and image as level lines; False when matplotlib is missing.

    Raises:
        OVSDinoError: It cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    blocks = [row for row in result.rows if row.block is not None]
    others = [row for row in result.rows if row.block is None]
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    kind = blocks[0].name.split(" ")[0]
    for axes, key, label in ((left, "f", "ODS F of a linear readout"), (right, "contrast", CONTRAST_LABEL)):
        axes.plot(
            [row.block for row in blocks], [getattr(row, key) for row in blocks], "o-", color="black", label=f"{kind}s"
        )
        shown = [getattr(row, key) for row in result.rows if getattr(row, key) is not None]
        for number, row in enumerate(others):
            if getattr(row, key) is not None:
                name = row.name if row.trained else f"{row.name} (no readout)"
                style = ("--", ":", "-.")[number % 3]
                axes.axhline(getattr(row, key), linestyle=style, color=f"C{number}", linewidth=1.4, label=name)
        middle, half = (max(shown) + min(shown)) / 2, max(max(shown) - min(shown), LEAST_SPAN) * 0.6
        axes.set_ylim(middle - half, middle + half)  # small differences must look small
        for block in result.taps if key == "f" else ():
            axes.axvline(block, color="0.88", linewidth=6, zorder=0)
        axes.set_xlabel(kind + (" (gray: recommended taps)" if key == "f" else ""))
        axes.set_title(label, fontsize=10)
        axes.set_xticks([row.block for row in blocks])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(data.getvalue())
    return True


def _row(
    name: str,
    score: OptimalScore,
    pairs: list[tuple[np.ndarray, np.ndarray]] | None,
    shape: tuple[int, float] | None,
) -> Row:
    kind, _, number = name.partition(" ")
    return Row(
        name=name,
        block=int(number) if kind in KINDS else None,
        channels=shape[0] if shape else None,
        stride=shape[1] if shape else None,
        trained=shape is not None,
        f=score.f,
        precision=score.precision,
        recall=score.recall,
        contrast=contrast_auc(*(np.concatenate(part) for part in zip(*pairs, strict=True))) if pairs else None,
    )


def _layers(segmenter: Segmenter, sample: BoundarySample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return features by name, in the order of the forward, and boundary maps (4h, 4w).

    Features are (C, h, w) at the token grid, those of G and of a CNN's early stages finer. A stage that is coarser is
    brought to the token grid, as F reads it.
    """
    model: OVSDINO = segmenter.model
    config, backbone = model.config, model.backbone
    image = segmenter.prepare(sample.image)
    kind = KINDS[bool(config.backbone.stage_dims)]
    with torch.inference_mode():
        last, blocks = backbone.frozen(image, range(config.backbone.depth))
        final = backbone.finish(last)
        layers = {f"{kind} {index}": _at_least_coarse(tokens, last) for index, tokens in enumerate(blocks)}
        if config.backbone.stage_dims:
            layers["final map"] = last
        if model.aligned:
            layers["F"] = final
        maps: dict[str, Tensor] = {}
        if model.decoder is not None:
            structure = model.decoder.sae(image, [blocks[tap] for tap in config.backbone.taps])
            layers["SAE structure S"] = structure.tokens
            layers["SAE guide G"] = structure.guide
            if model.decoder.smd is not None and model.aligned:
                layers["F' (SMD)"] = model.decoder.smd(final, structure.tokens)
            maps[SAE_BOUNDARY] = structure.boundary[:, 0]
    return {k: v[0].float().cpu() for k, v in layers.items()}, {k: v[0].float().cpu() for k, v in maps.items()}


def _grid(segmenter: Segmenter, sample: BoundarySample) -> tuple[int, int]:
    """Return (h, w) of the tokens."""
    height, width = segmenter.inference_size(*sample.image.shape[:2])
    p = segmenter.model.config.patch_size
    return height // p, width // p


def _pixels(sample: BoundarySample) -> Tensor:
    """Return the image, (3, H, W) in 0..1."""
    return torch.from_numpy(sample.image.copy()).permute(2, 0, 1).float() / 255


def _targets(sample: BoundarySample, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share of annotators with a boundary in each cell, by position: (positions, cells of each)."""
    marked = torch.from_numpy(boundaries(sample.segments)).float()
    share = F.adaptive_max_pool2d(marked, (SUB_CELLS * grid[0], SUB_CELLS * grid[1])).mean(0)
    return F.pixel_unshuffle(share[None, None], SUB_CELLS * grid[0] // features.shape[1])[0].flatten(1).T


def _at_least_coarse(features: Tensor, tokens: Tensor) -> Tensor:
    """Return features (1, C, h, w) of at least the size of the tokens' grid; smaller ones by bilinear interpolation."""
    if features.shape[2] >= tokens.shape[2]:
        return features
    return F.interpolate(features, tokens.shape[2:], mode="bilinear", align_corners=False)


def _at_most_fine(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return features (C, H, W) of at most the grid of cells; finer ones as more channels of fewer positions."""
    return F.pixel_unshuffle(features[None], max(1, features.shape[1] // (SUB_CELLS * grid[0])))[0]


def _boundary_map(predicted: Tensor) -> Tensor:
    """Return (n^2, h, w) as (n h, n w)."""
    return F.pixel_shuffle(predicted[None], round(len(predicted) ** 0.5))[0, 0]


def _taps(segmenter: Segmenter, blocks: Sequence[Row]) -> tuple[int, ...]:
    """Return the recommended taps among the layers that the encoder has a level for: those no finer than its cells."""
    finest = segmenter.model.config.patch_size / SUB_CELLS
    fit = [row for row in blocks if row.stride is not None and row.stride >= finest]
    return tuple(fit[i].block or 0 for i in recommended_taps([row.f for row in fit]))


def _separated(segments: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return for each pair of adjacent cells whether half of the annotators or more separate their centers."""
    height, width = segments.shape[1:]
    rows = ((np.arange(grid[0]) + 0.5) * height / grid[0]).astype(int)
    columns = ((np.arange(grid[1]) + 0.5) * width / grid[1]).astype(int)
    centers = segments[:, rows][:, :, columns]
    right = (centers[:, :, 1:] != centers[:, :, :-1]).mean(0)
    down = (centers[:, 1:] != centers[:, :-1]).mean(0)
    return np.concatenate([right.ravel(), down.ravel()]) >= 0.5


def _contrast(features: Tensor, grid: tuple[int, int], *, cosine: bool = True) -> np.ndarray:
    """Return distances of adjacent cells, in the order of `_separated`; finer features are averaged over cells."""
    if tuple(features.shape[1:]) != grid:
        features = F.adaptive_avg_pool2d(features, grid)
    if cosine:
        features = normalize(features - features.mean((1, 2), keepdim=True), dim=0)
    right = (features[:, :, 1:] - features[:, :, :-1]).square().sum(0)  # of unit vectors: 2 (1 - cosine)
    down = (features[:, 1:] - features[:, :-1]).square().sum(0)
    return torch.cat([right.flatten(), down.flatten()]).numpy()
