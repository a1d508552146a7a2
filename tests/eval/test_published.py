"""Each stage of the baseline against what the published code makes of the same inputs.

`golden/published.npz` holds inputs and outputs of Talk2DINO's released evaluation, with the parts of mmcv,
mmsegmentation, DINOv2 and CLIP that it calls, on the CPU in float32. Small pictures go through all stages with the mean
color of each patch as its token, and one window through DINOv2 and CLIP with the seeded weights of
`tests/support/official.py`.

`pytest tests/eval/test_published.py -rP` prints the largest difference of each stage: the table of docs/reproduce.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ovsdino
from ovsdino.eval.background import clean_background
from ovsdino.eval.pamr import pamr
from ovsdino.eval.protocol import Protocol, label_image, score_map
from ovsdino.eval.resize import fit_size, resize_bilinear
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.windows import window_offsets
from tests.eval.standin import PatchColors
from tests.support import official

GOLDEN = dict(np.load(Path(__file__).with_name("golden") / "published.npz"))
SMALL = {"short_side": 56, "max_long_side": 256, "window": 56, "stride": 28}
PROTOCOLS = {
    "full": Protocol(**SMALL, background=0.55, cleaning="released", pamr_iterations=10),  # type: ignore[arg-type]
    "many": Protocol(**SMALL, pamr_iterations=10),  # type: ignore[arg-type]
    "narrow": Protocol(short_side=64, max_long_side=200, window=56, stride=28, background=0.55, cleaning="released"),
    "plain": Protocol(**SMALL),  # type: ignore[arg-type]
}


class Recorded(PatchColors):
    """The stand-in with ImageNet's statistics, as the published code has them; keeps the first window it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.config.mean, self.config.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.window: Tensor | None = None

    def encode_image(self, image: Tensor) -> ImageFeatures:
        if self.window is None:
            self.window = image[0].clone()
        return super().encode_image(image)


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def near(stage: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = float((found.double() - expected.double()).abs().max())
    print(f"{stage}: largest difference {difference:.2g}")
    assert found.shape == expected.shape and difference <= tolerance


def test_resize() -> None:
    for case, protocol in (("full", PROTOCOLS["full"]), ("narrow", PROTOCOLS["narrow"])):
        image = GOLDEN[f"{case}_image"]
        size = fit_size(*image.shape[:2], protocol.short_side, protocol.max_long_side)
        near("resize", torch.from_numpy(resize_bilinear(image, size)), golden(f"{case}_resized"), 0)


def test_windows() -> None:
    for case, protocol in (("full", PROTOCOLS["full"]), ("narrow", PROTOCOLS["narrow"])):
        height, width = GOLDEN[f"{case}_resized"].shape[:2]
        rows, columns = (window_offsets(n, min(protocol.window, n), protocol.stride) for n in (height, width))
        found = torch.tensor([(y, x) for y in rows for x in columns])
        near("window corners", found, golden(f"{case}_corners"), 0)


def test_normalization() -> None:
    model = Recorded()
    score_map(model, GOLDEN["full_image"], golden("full_text"), PROTOCOLS["full"])
    assert model.window is not None
    near("normalized window", model.window, golden("full_input"), 1e-6)


def test_similarity() -> None:
    features = ImageFeatures(golden("full_tokens")[None])
    found = Recorded().cosine(features, golden("full_text")).sigmoid()[0]
    near("similarity and sigmoid", found, golden("full_scores"), 1e-6)


def test_background_cleaning() -> None:
    found = clean_background(
        golden("full_scores")[None], golden("full_tokens")[None], golden("full_attention")[None], golden("full_text")
    )
    near("background cleaning", found[0], golden("full_cleaned"), 1e-6)


def test_upsampling_to_the_window() -> None:
    found = F.interpolate(
        golden("full_cleaned")[None], (56, 56), mode="bilinear", align_corners=PROTOCOLS["full"].window_align_corners
    )
    near("upsampling to the window", found[0], golden("full_window"), 1e-6)


def test_pamr() -> None:
    colors = golden("full_resized")[:, :56].permute(2, 0, 1).float()
    near("PAMR", pamr(colors, golden("full_window")), golden("full_refined"), 1e-5)


def test_merge_and_background() -> None:
    thinning = {"full": (1, 1), "narrow": (2, 3), "plain": (2, 2)}
    for case, (down, right) in thinning.items():
        found = score_map(Recorded(), GOLDEN[f"{case}_image"], golden(f"{case}_text"), PROTOCOLS[case])
        near("all stages to the merged map", found[:, ::down, ::right], golden(f"{case}_merged"), 1e-5)


@pytest.mark.parametrize("case", ["full", "many", "narrow", "plain"])
def test_labels(case: str) -> None:
    found = label_image(Recorded(), GOLDEN[f"{case}_image"], golden(f"{case}_text"), PROTOCOLS[case])
    different = int((found != GOLDEN[f"{case}_labels"]).sum())
    print(f"labels: {different} of {found.size} pixels differ")
    assert different <= 1  # a pixel whose two best classes lie within rounding may go either way


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> ovsdino.Segmenter:
    """ovsdino.load("b14") on the seeded weights in the authors' formats."""
    pytest.importorskip("open_clip", reason="needs open_clip")
    folder = tmp_path_factory.mktemp("b14")
    states = {
        "backbone_weights": official.dinov2(768, 12, seed=1),
        "clip_weights": official.clip(seed=2),
        "projection": official.projection(768, seed=3),
    }
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
    del states
    segmenter = ovsdino.load(
        "b14", "cpu", **{name: folder / f"{name}.pth" for name in ("backbone_weights", "clip_weights", "projection")}
    )  # type: ignore[arg-type]
    segmenter.encode_text(["sky"])  # reads CLIP's file
    for file in folder.iterdir():
        file.unlink()
    return segmenter


def test_text(segmenter: ovsdino.Segmenter) -> None:
    found = segmenter.encode_text(["sky", "diningtable", "bed "])
    near("CLIP, templates and projection", found, golden("net_text"), 1e-5)


def test_features(segmenter: ovsdino.Segmenter) -> None:
    y, x = np.mgrid[:448, :448]
    image = np.stack([7 * y + 13 * x + y * x // 50, 5 * y + x * x // 90, 3 * x + y * y // 70], -1) % 256
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (segmenter.model.config.mean, segmenter.model.config.std))
    text = golden("net_text")
    with torch.inference_mode():
        features, attention = segmenter.model.encode_with_attention(((pixels - mean) / std)[None])
        scores = segmenter.model.cosine(features, text).sigmoid()
        cleaned = clean_background(scores, features.tokens, attention, text)
    near("DINOv2's patch tokens", features.tokens[0].flatten(1).T[::33, ::24], golden("net_tokens"), 1e-4)
    near("DINOv2's attention of the class token", attention[0, :, ::16], golden("net_attention"), 1e-4)
    near("scores of the network", scores[0, :, ::4, ::4], golden("net_scores"), 1e-5)
    near("cleaned scores of the network", cleaned[0, :, ::4, ::4], golden("net_cleaned"), 1e-5)
