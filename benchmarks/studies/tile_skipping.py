"""The share of structure attention's work that a tile-skipping kernel could leave out on real images.

    python benchmarks/studies/tile_skipping.py --root data [--model nano] [--json] [--output F]

A pair of 64-token tiles may be skipped where every logit lies so far below its row's maximum that a whole row of N such
terms adds less than TOLERANCE to the softmax: gap > ln(N / TOLERANCE). Two figures a head, as shares of tile pairs:
`box` uses what a kernel can know, the norms of q and k and the boxes of e of the two tiles,
max |q| max |k| scale - lam * distance(box_I, box_J)^2, against the row's final maximum (more than a kernel knows half
way); `oracle` knows every logit. Tokens in raster order, and in blocks of 8x8 (which a kernel would have to sort).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.data.datasets import open_dataset
from ovsdino.models import smd
from ovsdino.options import ModelOptions, data_root
from ovsdino.parsing import run_script

TILE = 64
TOLERANCE = 1e-6
WORDS = ("sky", "building", "tree", "road", "car")


def attention_inputs(model: Any, pixels: np.ndarray, side: int) -> list[tuple[Tensor, ...]]:
    """Return q, k, e and lam of every decoder block for one picture resized to a square."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (model.config.mean, model.config.std))
    image = (F.interpolate(image, (side, side), mode="bilinear", antialias=True) - mean) / std
    seen: list[tuple[Tensor, ...]] = []
    original = smd.structure_attention

    def record(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((q[0], k[0], e[0], lam))
        return original(q, k, v, e, lam, *rest, **options)

    smd.structure_attention = record
    try:
        with torch.inference_mode():
            model(image, model.encode_text(WORDS))
    finally:
        smd.structure_attention = original
    return seen


def blocks_of_eight(grid: int) -> Tensor:
    """Return the order that makes a tile of 64 tokens an 8x8 block of the grid."""
    return torch.arange(grid * grid).view(grid // 8, 8, grid // 8, 8).permute(0, 2, 1, 3).reshape(-1)


def skipped(q: Tensor, k: Tensor, e: Tensor, lam: float) -> tuple[float, float]:
    """Return (box, oracle), the shares of tile pairs that can be skipped, for one head; q and k (N, d), e (N, r)."""
    tokens, scale = q.shape[0], q.shape[1] ** -0.5
    tiles = tokens // TILE
    gap = math.log(tokens / TOLERANCE)
    logits = scale * q @ k.T - lam * torch.cdist(e, e).square()
    highest = logits.amax(1)
    below = (logits.view(tiles, TILE, tiles, TILE) - highest.view(tiles, TILE, 1, 1)).amax((1, 3))
    least, most = (f(e.view(tiles, TILE, -1), 1) for f in (torch.amin, torch.amax))
    apart = (least[:, None] - most[None]).clamp(min=0) + (least[None] - most[:, None]).clamp(min=0)
    norms_q, norms_k = (x.norm(dim=1).view(tiles, TILE).amax(1) for x in (q, k))
    bound = scale * norms_q[:, None] * norms_k[None] - lam * apart.square().sum(-1)
    bound = bound - highest.view(tiles, TILE).amin(1)[:, None]
    return (bound < -gap).float().mean().item(), (below < -gap).float().mean().item()


def rows(model: Any, pictures: list[tuple[str, np.ndarray]], side: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each block, head and order of tokens: the mean over the pictures."""
    grid = side // model.config.patch_size
    inputs = [attention_inputs(model, pixels, side) for _, pixels in pictures]
    for order_name, order in (("raster", torch.arange(grid * grid)), ("8x8 blocks", blocks_of_eight(grid))):
        for block in range(len(inputs[0])):
            lam = inputs[0][block][3]
            for head in range(len(lam)):
                shares = []
                for picture in inputs:
                    q, k, e = (x[head][order].float() for x in picture[block][:3])
                    shares.append(skipped(q, k, e, lam[head].item()))
                box, oracle = (sum(column) / len(column) for column in zip(*shares, strict=True))
                yield {
                    "tokens": grid * grid,
                    "order": order_name,
                    "block": block,
                    "head": head,
                    "lam": round(lam[head].item(), 3),
                    "box": round(box, 4),
                    "oracle": round(oracle, 4),
                }


@dataclass(frozen=True, kw_only=True)
class TileSkipping(ReportOptions, ModelOptions):
    """Print the shares by head, and their mean, which bounds the gain in speed by 1 / (1 - mean)."""

    root: Path | None = None
    """Folder with CamVid. Default: $OVSDINO_DATA."""
    side: int = 1024
    """Pictures are resized to a square of this side."""
    images: int = 6
    """Evenly spaced pictures of CamVid val."""

    def run(self) -> int:
        model = self.load_model()
        data = open_dataset("camvid", data_root(self.root), "val")
        chosen = [data[i] for i in np.linspace(0, len(data) - 1, self.images).astype(int)]
        found = list(rows(model, [(sample.stem, sample.image) for sample in chosen], self.side))
        means = {
            f"{order}, {kind}": round(float(np.mean([row[kind] for row in found if row["order"] == order])), 4)
            for order in ("raster", "8x8 blocks")
            for kind in ("box", "oracle")
        }
        report = {
            "model": self.model,
            "images": [sample.stem for sample in chosen],
            "tile": TILE,
            "tolerance": TOLERANCE,
            "mean_share": means,
            "heads": found,
        }
        return self.publish(report, text)


def text(report: dict[str, Any]) -> str:
    """Return the report as lines."""
    lines = ["  ".join(f"{key} {value}" for key, value in row.items()) for row in report["heads"]]
    means = ", ".join(f"{key} {100 * value:.1f} %" for key, value in report["mean_share"].items())
    return "\n".join([*lines, f"mean share of tile pairs: {means}"])


if __name__ == "__main__":
    raise SystemExit(run_script(TileSkipping, "tile_skipping.py"))
