"""The whole baseline against the evaluation protocol written down a second time, in a straight line, in this file.

Nothing of ovsdino is used on the reference side: DINOv2's network is spelled out from the keys of Meta's file, CLIP is
open_clip's, the resize is OpenCV's, the rest is numpy and torch. DINOv2 ViT-B/14 with registers and CLIP ViT-B/16 have
seeded random weights in their official formats; the projection is the published one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ovsdino
from ovsdino.eval.protocol import Protocol, label_image, preset, score_map
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.windows import Batches
from tests.support import official

cv2 = pytest.importorskip("cv2", reason="needs OpenCV for the reference's resize")
open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

NAMES = ["sky", "diningtable", "bed ", "building-other"]
HEIGHT, WIDTH = 300, 402  # resized to 448 x 600: two windows, at 0 and, shifted inward, at 152


@dataclass
class Window:
    """The network's output for one window: patch tokens (32*32, D), attention logits (heads, 32*32)."""

    left: int
    colors: Tensor
    tokens: Tensor
    attention: Tensor


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([y * 0.6, x * 0.5, 200 - 0.3 * (x + y)], -1)
    for _ in range(30):
        top, left = rng.integers(0, HEIGHT - 60), rng.integers(0, WIDTH - 60)
        picture[top : top + rng.integers(10, 60), left : left + rng.integers(10, 60)] = rng.integers(0, 256, 3)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights() -> official.State:
    return official.dinov2(768, 12, seed=1)


@pytest.fixture(scope="module")
def clip() -> official.State:
    return official.clip(seed=2)


@pytest.fixture(scope="module")
def model(
    weights: official.State, clip: official.State, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> ovsdino.Segmenter:
    """ovsdino.load("b14") on those files; it must say in one line what it is."""
    folder = tmp_path_factory.mktemp("b14")
    torch.save(weights, folder / "dinov2_vitb14_reg4_pretrain.pth")
    torch.save(clip, folder / "clip.pth")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ovsdino").addHandler(handler)
    segmenter = ovsdino.load(
        "b14",
        "cpu",
        backbone_weights=folder / "dinov2_vitb14_reg4_pretrain.pth",
        clip_weights=folder / "clip.pth",
        projection=data_root / "talk2dino_vitb_mlp_infonce.pth",
    )
    logging.getLogger("ovsdino").removeHandler(handler)
    assert messages == ["b14: no decoder weights given; this is the Talk2DINO baseline"]
    segmenter.encode_text(NAMES)  # reads CLIP's file
    for file in folder.iterdir():
        file.unlink()
    # One forward a window for all the tests; encode_image gives the same features (tests/models/test_official.py).
    encode, seen = segmenter.model.encode_with_attention, {}

    def remembered(batch: Tensor) -> tuple[ImageFeatures, Tensor]:
        assert len(batch) == 1
        key = batch.double().sum().item()
        if key not in seen:
            seen[key] = encode(batch)
        return seen[key]

    segmenter.model.encode_with_attention = remembered  # type: ignore[method-assign, assignment]
    segmenter.model.encode_image = lambda batch: remembered(batch)[0]  # type: ignore[method-assign, assignment]
    return segmenter


@pytest.fixture(scope="module")
def text(clip: official.State, data_root: Path) -> Tensor:
    """(K, 768): seven templates, mean of the raw embeddings, projection, length one."""
    reference = open_clip.model.build_model_from_openai_state_dict(dict(clip), cast_dtype=torch.float32).float().eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    p = torch.load(data_root / "talk2dino_vitb_mlp_infonce.pth", map_location="cpu", weights_only=True)
    rows = []
    for name in NAMES:
        prompts = [
            f"itap of a {name}.",
            f"a bad photo of a {name}.",
            f"a origami {name}.",
            f"a photo of the large {name}.",
            f"a {name} in a video game.",
            f"art of the {name}.",
            f"a photo of the small {name}.",
        ]
        with torch.no_grad():
            x = reference.encode_text(tokenizer(prompts)).mean(0)
        x = torch.tanh(p["linear_layer.weight"] @ x + p["linear_layer.bias"])
        x = p["hidden_layers.0.weight"] @ x + p["hidden_layers.0.bias"]
        rows.append(x / x.norm())
    return torch.stack(rows)


def dinov2(w: official.State, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(3, 448, 448) normalized -> patch tokens after the last norm (1024, 768), attention logits (12, 1024)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (768,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    patches = F.conv2d(pixels[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, 768).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    patches = (patches + grid).flatten(2)[0].T
    class_token = w["cls_token"][0] + w["pos_embed"][0, :1]
    x = torch.cat([class_token, w["register_tokens"][0], patches])
    for i in range(12):
        b = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").reshape(-1, 3, 12, 64).permute(1, 2, 0, 3)
        logits = (q / 8) @ k.transpose(1, 2)
        attended = (logits.softmax(-1) @ v).transpose(0, 1).reshape(-1, 768)
        x = x + w[f"{b}.ls1.gamma"] * linear(attended, f"{b}.attn.proj")
        x = x + w[f"{b}.ls2.gamma"] * linear(F.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    return norm(x, "norm")[5:], logits[:, 0, 5:]


@pytest.fixture(scope="module")
def windows(image: np.ndarray, weights: official.State) -> list[Window]:
    resized = cv2.resize(image, (600, 448), interpolation=cv2.INTER_LINEAR)  # 402 * 448 / 300 = 600.3
    found = []
    for left in (0, 152):
        colors = torch.from_numpy(resized[:, left : left + 448].astype(np.float32)).permute(2, 0, 1)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        with torch.no_grad():
            tokens, attention = dinov2(weights, (colors / 255 - mean) / std)
        found.append(Window(left, colors, tokens, attention))
    return found


def sigmoid_scores(window: Window, text: Tensor) -> Tensor:
    """(K, 1024)."""
    unit = window.tokens / window.tokens.norm(dim=1, keepdim=True)
    return 1 / (1 + torch.exp(-(text @ unit.T)))


def cleaned(scores: Tensor, window: Window, text: Tensor, reading: str) -> Tensor:
    """Return the scores (K, 1024) of a window mixed with the class token's attention."""
    maps = window.attention if reading == "released" else window.attention.softmax(-1)
    similarity = torch.empty(12, len(text))
    for head in range(12):
        pooled = (maps[head][:, None] * window.tokens).sum(0)
        similarity[head] = text @ (pooled / pooled.norm())
    share = similarity.softmax(0 if reading == "released" else 1)
    per_class = torch.stack([(share[:, k, None] * maps).sum(0) / share[:, k].sum() for k in range(len(text))])
    per_class = per_class.softmax(-1)
    low, high = per_class.min(), per_class.max()
    per_class = (per_class - low) / max(high, high - low)
    per_class = per_class * (scores.max() - scores.min()) + scores.min()
    return (scores + 0.2 * per_class) / 1.2


def refined(image: Tensor, scores: Tensor) -> Tensor:
    """PAMR: (3, H, W) in 0..255 and (K, H, W) -> (K, H, W)."""
    height, width = image.shape[1:]

    def neighbors(maps: Tensor, dilation: int) -> Tensor:
        wide = F.pad(maps[None], [dilation] * 4, mode="replicate")[0]
        steps = (0, dilation, 2 * dilation)
        nine = [wide[:, y : y + height, x : x + width] for y in steps for x in steps]
        return torch.stack(nine[:4] + nine[5:], 1)

    around = torch.cat([neighbors(image, dilation) for dilation in (1, 2, 4, 8, 12, 24)], 1)
    deviation = torch.cat([around, image[:, None].expand(-1, 6, -1, -1)], 1).std(1, keepdim=True)
    affinity = (-(around - image[:, None]).abs() / (1e-8 + 0.1 * deviation)).mean(0).softmax(0)
    for _ in range(10):
        around = torch.cat([neighbors(scores, dilation) for dilation in (1, 2, 4, 8, 12, 24)], 1)
        scores = (affinity * around).sum(1)
    return scores


def merged(windows: list[Window], maps: list[Tensor]) -> Tensor:
    """Sum of the windows' maps (K, 448, 448) over their number: (K, 448, 600)."""
    total, count = torch.zeros(len(maps[0]), 448, 600), torch.zeros(448, 600)
    for window, values in zip(windows, maps, strict=True):
        total[:, :, window.left : window.left + 448] += values
        count[:, window.left : window.left + 448] += 1
    return total / count


def to_window(scores: Tensor) -> Tensor:
    return F.interpolate(scores.reshape(1, -1, 32, 32), (448, 448), mode="bilinear", align_corners=True)[0]


def same(found: Tensor, expected: Tensor) -> None:
    assert torch.isfinite(found).all() and found.shape == expected.shape
    assert expected.std(dim=(1, 2)).max() > 5e-3  # there is something to compare
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_text_bank(model: ovsdino.Segmenter, text: Tensor) -> None:
    torch.testing.assert_close(model.encode_text(NAMES), text, rtol=0, atol=1e-5)


def test_windows_and_merge(model: ovsdino.Segmenter, image: np.ndarray, windows: list[Window], text: Tensor) -> None:
    maps = [to_window(sigmoid_scores(window, text)) for window in windows]
    protocol = preset("talk2dino", "voc20", 768)
    for window, expected in zip(windows, maps, strict=True):
        crop = window.colors.permute(1, 2, 0).numpy().astype(np.uint8)
        same(score_map(model.model, crop, text, protocol), expected)
    expected = merged(windows, maps)
    same(score_map(model.model, image, model.encode_text(NAMES), protocol, batches=Batches(1)), expected)
    final = F.interpolate(expected[None], (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0].softmax(0)
    labels = torch.from_numpy(
        np.asarray(label_image(model.model, image, text, protocol, batches=Batches(1))).astype(np.int64)
    )
    best = final.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert clear.float().mean() > 0.95 and torch.equal(labels[clear], final.argmax(0)[clear])
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("reading", ["protocol", "released"])
def test_background_cleaning_and_constant(
    model: ovsdino.Segmenter, image: np.ndarray, windows: list[Window], text: Tensor, reading: str
) -> None:
    plain = [sigmoid_scores(window, text) for window in windows]
    mixed = [cleaned(scores, window, text, reading) for scores, window in zip(plain, windows, strict=True)]
    assert (mixed[0] - plain[0]).abs().max() > 1e-3
    expected = merged(windows, [to_window(scores) for scores in mixed])
    expected = torch.cat([torch.full((1, 448, 600), 0.55), expected])
    protocol = preset("talk2dino", "voc21", 768)
    settings = {**vars(protocol), "cleaning": reading}
    same(score_map(model.model, image, text, Protocol(**settings), batches=Batches(1)), expected)


def test_pamr_with_cleaning_and_background(
    model: ovsdino.Segmenter, image: np.ndarray, windows: list[Window], text: Tensor
) -> None:
    maps = []
    for window in windows:
        scores = to_window(cleaned(sigmoid_scores(window, text), window, text, "released"))
        maps.append(refined(window.colors, scores))
    expected = torch.cat([torch.full((1, 448, 600), 0.55), merged(windows, maps)])
    settings = {**vars(preset("talk2dino", "coco-object", 768)), "pamr_iterations": 10}
    same(score_map(model.model, image, text, Protocol(**settings), batches=Batches(1)), expected)


def test_the_sizes_assumed_here_are_the_protocols() -> None:
    scale = min(2048 / WIDTH, 448 / HEIGHT)
    assert (math.floor(HEIGHT * scale + 0.5), math.floor(WIDTH * scale + 0.5)) == (448, 600)
