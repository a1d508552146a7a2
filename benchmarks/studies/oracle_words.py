"""The points below the token, and how many of them a propagation along the image gives back, with nothing trained.

    python benchmarks/studies/oracle_words.py --root data [--datasets camvid voc21] [--limit N] [--json] [--output F]

The words are an oracle's: a token of 16 x 16 pixels scores each class with its share of the token's pixels, so all that
is lost is below the token. Blurred words are these shares under a Gaussian over the grid, as a wide receptive field
gives them. Each row decodes them in another way. Images are cropped to whole tokens; pixels without a label belong to
no class and are not scored. Settings were chosen on training images, see docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2lab
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ovsdino.benchmarks.lib.costs import plain_vit, propagation_flops
from ovsdino.benchmarks.lib.propagate import propagate
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.data.datasets import open_dataset
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.eval.boundary import BoundaryF1
from ovsdino.eval.metrics import Confusion
from ovsdino.models.score_attention import score_attention
from ovsdino.ops import guided_upsample
from ovsdino.options import data_root
from ovsdino.parsing import run_script

TOKEN = 16
STRIDE = 4  # of guided upsampling and attention, as the decoder has it
BETA_GUIDED = 40.0
SHARPNESS, STRENGTH = 16.0, 3.0  # of the attention; the latter is where the decoder starts
SETTINGS: dict[str, Any] = {"steps": (10, 5, 3), "beta": 400.0, "dilations": (1, 2, 4), "power": 1.5, "rounds": 3}
SOFT, MILD = 0.3, 1.2  # strength and power for words that are wrong

Guide = Literal["own", "foreign", "flat"]
Decode = Callable[[Tensor, Tensor], Tensor]


def bilinear(scores: Tensor, image: Tensor) -> Tensor:
    """Return the scores themselves; they are resized to the image like those of all rows."""
    return scores


def guided(scores: Tensor, image: Tensor) -> Tensor:
    """Upsample as the decoder does, with RGB (B, 3, H, W) in 0..1 for the guide."""
    fine = F.avg_pool2d(image, STRIDE)
    return guided_upsample(scores, F.avg_pool2d(fine, TOKEN // STRIDE), fine, BETA_GUIDED)


def along_lab(scores: Tensor, image: Tensor, **changes: Any) -> Tensor:
    """Propagate along CIELAB over 100."""
    lab = rgb2lab(image[0].permute(1, 2, 0).numpy()) / 100
    guide = torch.from_numpy(lab).permute(2, 0, 1)[None].to(scores.dtype)
    return propagate(scores, guide, **{**SETTINGS, **changes})


def attended(scores: Tensor, image: Tensor) -> Tensor:
    """Attend as the decoder does, with CIELAB over 100 times `SHARPNESS` for the affinity."""
    lab = rgb2lab(F.avg_pool2d(image, STRIDE)[0].permute(1, 2, 0).numpy()) * (SHARPNESS / 100)
    affinity = torch.from_numpy(lab).permute(2, 0, 1)[None].to(scores.dtype)
    return score_attention(scores, affinity, strength=STRENGTH)


def changed(**changes: Any) -> Decode:
    """Return `along_lab` with other settings."""
    return lambda scores, image: along_lab(scores, image, **changes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to decode oracle words.

    Attributes:
        name: Its name in the report.
        decode: Function of scores (1, K, h, w) and image (1, 3, H, W) in 0..1; returns (1, K, ., .).
        token: Side of the oracle's tokens in pixels.
        blur: Standard deviation of the Gaussian over the grid, in tokens.
        guide: The image itself; another image of the data set; a gray one.
        every: 1 decodes all images, 3 each third.
    """

    name: str
    decode: Decode
    token: int = TOKEN
    blur: float = 0.0
    guide: Guide = "own"
    every: int = 1


def rows_of(blur: float) -> list[Row]:
    """Return the rows for words blurred by so many tokens."""
    name = f"blurred by {blur:g} tokens: "
    return [
        Row(name=name + "bilinear", decode=bilinear, blur=blur, every=3),
        Row(name=name + "score attention", decode=attended, blur=blur, every=3),
        Row(name=name + "score attention, flat guide", decode=attended, blur=blur, every=3, guide="flat"),
        Row(name=name + "propagation", decode=along_lab, blur=blur, every=3),
        Row(name=name + f"propagation, power {MILD:g}", decode=changed(power=MILD), blur=blur, every=3),
        Row(
            name=name + f"propagation, power {MILD:g}, strength {SOFT:g}",
            decode=changed(power=MILD, strength=SOFT),
            blur=blur,
            every=3,
        ),
        Row(
            name=name + f"propagation, power {MILD:g}, flat guide",
            decode=changed(power=MILD),
            blur=blur,
            every=3,
            guide="flat",
        ),
    ]


ROWS = (
    Row(name="bilinear", decode=bilinear),
    Row(name="8 px tokens, bilinear", decode=bilinear, token=8),
    Row(name="4 px tokens, bilinear", decode=bilinear, token=4),
    Row(name="guided upsampling, RGB", decode=guided),
    Row(name="score attention", decode=attended),
    Row(name="score attention, another image's guide", decode=attended, guide="foreign"),
    Row(name="score attention, flat guide", decode=attended, guide="flat"),
    Row(name="propagation without constraint", decode=changed(strength=0.0, power=1.0)),
    Row(name="propagation", decode=along_lab),
    Row(name="propagation, another image's guide", decode=along_lab, guide="foreign"),
    Row(name="propagation, flat guide", decode=along_lab, guide="flat"),
    *rows_of(0.7),
    *rows_of(1.0),
)


def shares(label: np.ndarray, classes: Sequence[int], token: int) -> Tensor:
    """Return the share of each class in each token's pixels, (1, K, h, w)."""
    masks = np.stack([label == index for index in classes])
    return F.avg_pool2d(torch.from_numpy(masks)[None].float(), token)


def blurred(scores: Tensor, sigma: float) -> Tensor:
    """Return scores under a Gaussian over the grid, its tails beyond three standard deviations cut off."""
    if sigma == 0:
        return scores
    reach = int(3 * sigma + 0.5)
    padded = F.pad(scores, (reach,) * 4, mode="replicate")
    out = gaussian_blur(padded, [2 * reach + 1] * 2, [sigma] * 2)
    return out[:, :, reach:-reach, reach:-reach]


def guide_of(images: Sequence[Tensor], index: int, kind: Guide) -> Tensor:
    """Return the image that guides an image: itself, the one half a data set away in its size, or a gray one."""
    image = images[index]
    if kind == "flat":
        return torch.full_like(image, 0.5)
    if kind == "own":
        return image
    other = images[(index + len(images) // 2) % len(images)]
    return F.interpolate(other, image.shape[2:], mode="bilinear", antialias=True)


def value(score: float) -> float | None:
    """Return a score in 0..1, or None for NaN."""
    return None if np.isnan(score) else round(float(score), 4)


def mean(scores: np.ndarray) -> float | None:
    """Return the mean of the scores that are not NaN, or None where all are."""
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def measure(data: SegmentationDataset, chosen: Sequence[int], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the scores of each row over the chosen images."""
    images, labels = [], []
    for index in chosen:
        sample = data[index]
        height, width = (side // TOKEN * TOKEN for side in sample.label.shape)
        image = torch.from_numpy(sample.image[:height, :width].copy())
        images.append(image.permute(2, 0, 1)[None].float() / 255)
        labels.append(sample.label[:height, :width])
    found = []
    for row in rows:
        confusion, boundary = Confusion(len(data.names), data.ignore_index), BoundaryF1(len(data.names))
        for index in range(0, len(labels), row.every):
            label = labels[index]
            classes = [int(c) for c in np.unique(label) if c != data.ignore_index]  # the others score 0 everywhere
            if not classes:
                continue
            scores = blurred(shares(label, classes, row.token), row.blur)
            fine = row.decode(scores, guide_of(images, index, row.guide))
            fine = F.interpolate(fine, label.shape, mode="bilinear", align_corners=False)
            predicted = np.array(classes)[fine[0].argmax(0).numpy()]
            confusion.update(predicted, label)
            boundary.update(predicted, label.astype(np.int64), label == data.ignore_index)
        result = {
            "row": row.name,
            "images": -(-len(labels) // row.every),
            "miou": confusion.miou(),
            "boundary_f1": mean(boundary.per_class()),
        }
        iou, f1 = (dict(zip(data.names, map(value, x), strict=True)) for x in (confusion.iou(), boundary.per_class()))
        found.append({**result, "iou": iou, "boundary_f1_by_class": f1})
    return found


def flops(size: Sequence[int], classes: int, channels: int = 3) -> int:
    """Return the FLOPs of `propagate` with `SETTINGS` on an image."""
    return propagation_flops(size, classes, channels, *(SETTINGS[key] for key in ("steps", "dilations", "rounds")))


def costs() -> dict[str, Any]:
    """Return GFLOPs at 352 x 464 and 448 x 448, and those of the backbone of b14 that the budget is a share of."""
    parts, _, _ = plain_vit("vit_base_patch14_reg4_dinov2", 448, 448)
    cases = [(size, classes) for size in ((352, 464), (448, 448)) for classes in (11, 150)]
    return {
        "backbone_b14_448_gflops": round(sum(part.flops for part in parts.values()) / 1e9, 1),
        "propagation_gflops": [
            {"size": list(size), "classes": classes, "gflops": round(flops(size, classes) / 1e9, 2)}
            for size, classes in cases
        ],
    }


@dataclass(frozen=True, kw_only=True)
class OracleWords(ReportOptions):
    """Decode oracle words in several ways, and print mIoU and boundary F1 of each."""

    root: Path | None = None
    """Folder with the data sets. Default: $OVSDINO_DATA."""
    datasets: tuple[str, ...] = ("camvid", "voc21")
    """Labelled data sets."""
    split: str = "val"
    """Their split; settings are chosen on train."""
    limit: int | None = None
    """As many evenly spaced images. Default: all."""
    stems: tuple[str, ...] = ("",)
    """Take only images whose names begin with one of these. Default: all."""
    rows: tuple[str, ...] = field(default=())
    """Take only these rows. Default: all."""

    def run(self) -> int:
        rows = [row for row in ROWS if not self.rows or row.name in self.rows]
        unknown = set(self.rows) - {row.name for row in ROWS}
        if unknown:
            raise OVSDinoError(f"no such row: {sorted(unknown)[0]}; known: {', '.join(row.name for row in ROWS)}")
        if self.limit is not None and self.limit < 1:
            raise OVSDinoError(f"--limit is {self.limit}: expected 1 or more")
        results = {}
        for name in self.datasets:
            data = open_dataset(name, data_root(self.root), self.split)
            chosen = [index for index, stem in enumerate(data.stems) if stem.startswith(self.stems)]
            if not chosen:
                raise OVSDinoError(f"{name} {self.split} has no image whose name begins with {' or '.join(self.stems)}")
            if self.limit is not None:
                at = np.linspace(0, len(chosen) - 1, min(self.limit, len(chosen)))
                chosen = [chosen[int(index)] for index in at]
            with torch.inference_mode():
                results[name] = {"images": len(chosen), "rows": measure(data, chosen, rows)}
        settings = {"token": TOKEN, "guided_beta": BETA_GUIDED, **SETTINGS}
        report = {"split": self.split, "settings": settings, "cost": costs(), "datasets": results}
        return self.publish(report, text)


def text(report: dict[str, Any]) -> str:
    """Return the report as lines."""
    lines = []
    for name, result in report["datasets"].items():
        lines += [f"{name} {report['split']}, {result['images']} images: mIoU, boundary F1 in %"]
        for row in result["rows"]:
            scores = "  ".join(
                "    -" if row[key] is None else f"{100 * row[key]:5.1f}" for key in ("miou", "boundary_f1")
            )
            lines.append(f"{scores}  {row['row']}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_script(OracleWords, "oracle_words.py"))
