"""The presets' numbers, and the sliding window against a derivation in plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovsdino.errors import OVSDinoError
from ovsdino.eval.background import clean_background
from ovsdino.eval.pamr import pamr
from ovsdino.eval.protocol import Protocol, label_image, preset, score_map
from ovsdino.eval.resize import resize_bilinear
from ovsdino.models.text_rows import TextRows
from ovsdino.windows import Batches
from tests.eval.standin import PatchColors

SMALL = Protocol(short_side=56, max_long_side=256, window=56, stride=28)
TEXT = torch.eye(3)


def scores_of(image: np.ndarray, protocol: Protocol, text: torch.Tensor = TEXT, **options: Any) -> np.ndarray:
    return score_map(PatchColors(), image, text, protocol, **options).numpy()  # type: ignore[arg-type]


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 17, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))  # 96 x 136


def upsample(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> size, corners on corners."""

    def matrix(length: int, result: int) -> np.ndarray:
        out = np.zeros((result, length))
        for i in range(result):
            position = i * (length - 1) / (result - 1)
            low = min(int(position), length - 2)
            out[i, low], out[i, low + 1] = 1 - (position - low), position - low
        return out

    return matrix(grid.shape[0], size[0]) @ grid @ matrix(grid.shape[1], size[1]).T


def window_scores(crop: np.ndarray, text: np.ndarray) -> np.ndarray:
    """One 56 x 56 window of a uint8 image: sigmoid of the cosine of the patch means, brought to 56 x 56."""
    values = (crop / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.25, 0.5])
    tokens = values.reshape(4, 14, 4, 14, 3).mean((1, 3))
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    grid = 1 / (1 + np.exp(-tokens @ text.T))
    return np.stack([upsample(grid[..., k], (56, 56)) for k in range(len(text))])


def test_presets_by_the_published_table() -> None:
    backgrounds = {"voc21": 0.55, "context60": 0.55, "coco-object": 0.55}
    cleaned = {"voc21", "coco-object"}
    for name in ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "cityscapes", "ade20k"):
        base = preset("talk2dino", name, 768)
        assert (base.short_side, base.max_long_side, base.window, base.stride) == (448, 2048, 448, 224)
        assert base.background == backgrounds.get(name)
        assert base.cleaning == ("released" if name in cleaned else "off")
        assert preset("talk2dino", name, 1024).background == (0.54 if name in backgrounds else None)
        assert (base.score, base.window_align_corners, base.final_align_corners) == ("sigmoid", True, False)
        assert (base.pamr_iterations, base.pamr_dilations, base.cleaning_weight) == (0, (1, 2, 4, 8, 12, 24), 0.2)
    notebook = preset("dinov3", "ade20k", 768)
    assert (notebook.short_side, notebook.window, notebook.stride) == (512, 384, 192)
    assert preset("talk2dino", "ade20k", 768).templates == (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"short_side": 0},
        {"max_long_side": 100},
        {"stride": 0},
        {"stride": 500},
        {"templates": ("a photo",)},
        {"templates": ()},
        {"pamr_dilations": (0,)},
        {"pamr_iterations": -1},
        {"background": float("nan")},
        {"cleaning_weight": -1.0},
        {"score": "softmax"},
        {"cleaning": "on"},
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(OVSDinoError, match=next(iter(change))):
        dataclasses.replace(Protocol(), **change)


def test_an_unknown_preset_and_a_window_off_the_patches_are_named() -> None:
    with pytest.raises(OVSDinoError, match="available: talk2dino, dinov3, native"):
        preset("mmseg", "voc21", 768)
    with pytest.raises(OVSDinoError, match="window is 60: colors needs a multiple of 14, for instance 56"):
        scores_of(np.zeros((60, 60, 3), np.uint8), dataclasses.replace(SMALL, window=60))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_merged_windows_equal_the_direct_derivation(picture: np.ndarray, batch_size: int) -> None:
    # 96 x 136 -> 56 x 79: windows of 56 at columns 0 and 23 (28 would pass the border)
    small = resize_bilinear(picture, (56, 79))
    rng = np.random.default_rng(1)
    text = rng.normal(size=(19, 3))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    total, count = np.zeros((19, 56, 79)), np.zeros(79)
    for x in (0, 23):
        total[:, :, x : x + 56] += window_scores(small[:, x : x + 56], text)
        count[x : x + 56] += 1
    found = scores_of(picture, SMALL, torch.from_numpy(text).float(), batches=Batches(batch_size))
    np.testing.assert_allclose(found, total / count, atol=2e-6)


def test_windows_come_in_batches(picture: np.ndarray) -> None:
    model = PatchColors()
    tall = dataclasses.replace(SMALL, short_side=96, max_long_side=500)  # 96 x 136: 3 x 4 windows
    score_map(model, picture, TEXT, tall, batches=Batches(5))  # type: ignore[arg-type]
    assert [shape[0] for shape in model.batches] == [5, 5, 2]
    assert {shape[1:] for shape in model.batches} == {(3, 56, 56)}


def test_an_image_below_the_window_is_one_window_resized(picture: np.ndarray) -> None:
    # 40 x 300 -> the long side stops at 112: 15 x 112, three windows of 15 x 56, shown to the network as 56 x 56
    strip = np.kron(picture[:40, :10], np.ones((1, 30, 1), np.uint8))
    protocol = dataclasses.replace(SMALL, max_long_side=112)
    model = PatchColors()
    found = score_map(model, strip, TEXT, protocol)  # type: ignore[arg-type]
    assert found.shape == (3, 15, 112) and model.batches == [(3, 3, 56, 56)]
    crop = torch.from_numpy(resize_bilinear(strip, (15, 112))[:, :56].copy()).permute(2, 0, 1)[None].float()
    values = (crop / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    tokens = F.avg_pool2d(F.interpolate(values, (56, 56), mode="bilinear"), 14)
    grid = F.normalize(tokens, dim=1).sigmoid()
    first = F.interpolate(grid, (15, 56), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(found[:, :, :28], first[:, :, :28])  # only the first window covers these columns


def test_cosine_scores_and_window_corners_are_settings(picture: np.ndarray) -> None:
    square = picture[:, :96]
    sigmoid = scores_of(square, SMALL)
    cosine = scores_of(square, dataclasses.replace(SMALL, score="cosine", window_align_corners=False))
    crop = torch.from_numpy(resize_bilinear(square, (56, 56)).copy()).permute(2, 0, 1)[None].float()
    values = (crop / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    grid = F.normalize(F.avg_pool2d(values, 14), dim=1)
    expected = F.interpolate(grid, (56, 56), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.from_numpy(cosine), expected)
    assert 0.26 < sigmoid.min() < sigmoid.max() < 0.74  # sigmoid(-1)..sigmoid(1)


def test_background_is_a_constant_channel_placed_first(picture: np.ndarray) -> None:
    plain = scores_of(picture, SMALL)
    found = scores_of(picture, dataclasses.replace(SMALL, background=0.55))
    assert (found[0] == np.float32(0.55)).all()
    np.testing.assert_array_equal(found[1:], plain)
    labels = label_image(PatchColors(), picture, TEXT, dataclasses.replace(SMALL, background=0.99))  # type: ignore[arg-type]
    assert (labels == 0).all()
    labels = label_image(PatchColors(), picture, TEXT, dataclasses.replace(SMALL, background=0.0))  # type: ignore[arg-type]
    assert set(np.unique(labels)) <= {1, 2, 3}


def test_pamr_refines_each_window_on_its_own_pixels(picture: np.ndarray) -> None:
    square = picture[:, :96]
    protocol = dataclasses.replace(SMALL, pamr_iterations=2, pamr_dilations=(1, 3), background=0.5)
    found = scores_of(square, protocol)
    small = torch.from_numpy(resize_bilinear(square, (56, 56)).copy()).permute(2, 0, 1).float()
    before = torch.from_numpy(scores_of(square, SMALL))
    np.testing.assert_allclose(found[1:], pamr(small, before, 2, (1, 3)).numpy(), atol=1e-6)
    assert (found[0] == 0.5).all()


def test_cleaning_uses_the_attention_of_each_window(picture: np.ndarray) -> None:
    square = picture[:, :96]
    model = PatchColors()
    crop = torch.from_numpy(resize_bilinear(square, (56, 56)).copy()).permute(2, 0, 1)[None].float()
    values = (crop / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    features, attention = model.encode_with_attention(values)
    scores = model.cosine(features, TEXT).sigmoid()
    for cleaning in ("protocol", "released"):
        grid = clean_background(scores, features.tokens, attention, TEXT, cleaning=cleaning)  # type: ignore[arg-type]
        expected = F.interpolate(grid, (56, 56), mode="bilinear", align_corners=True)[0]
        found = scores_of(square, dataclasses.replace(SMALL, cleaning=cleaning))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_labels_are_the_argmax_of_the_softmax_at_image_size(
    picture: np.ndarray, align_corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovsdino.eval.protocol.BAND_BYTES", 4 * 3 * 136 * 7)  # seven rows a band
    protocol = dataclasses.replace(SMALL, final_align_corners=align_corners)
    scores = torch.from_numpy(scores_of(picture, protocol))[None]
    full = F.interpolate(scores.double(), picture.shape[:2], mode="bilinear", align_corners=align_corners)
    probability = full.softmax(1)
    labels = label_image(PatchColors(), picture, TEXT, protocol)  # type: ignore[arg-type]
    assert labels.shape == picture.shape[:2]
    margin = probability.topk(2, 1).values.diff(dim=1).abs()[0, 0] > 1e-6
    assert margin.float().mean() > 0.99
    np.testing.assert_array_equal(labels[margin.numpy()], probability.argmax(1)[0].numpy()[margin.numpy()])


def test_memory_running_out_halves_the_batch(picture: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    class Tight(PatchColors):
        def encode_image(self, image: torch.Tensor) -> Any:
            if len(image) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().encode_image(image)

    tall = dataclasses.replace(SMALL, short_side=96, max_long_side=500)
    found = score_map(Tight(), picture, TEXT, tall, batches=Batches(8))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.numpy(), scores_of(picture, tall))
    assert "batches of 2 from now on" in caplog.text


def test_a_contrast_is_the_background_and_competes_as_a_class_does() -> None:
    """Red, and blue as the contrast: the map's first channel is the contrast's score, where a constant would be."""
    model = PatchColors()
    model.config.mean, model.config.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    image = np.zeros((56, 56, 3), np.uint8)
    image[:, :28, 0] = image[:, 28:, 2] = 255
    rows = TextRows(torch.eye(3)[:1, None], torch.eye(3)[1:])
    protocol = Protocol(short_side=56, max_long_side=256, window=56, stride=28)
    labels = label_image(model, image, rows, protocol)  # type: ignore[arg-type]
    assert (labels[:, :26] == 1).all() and (labels[:, 30:] == 0).all()
    for changes, message in (({"background": 0.5}, "give one"), ({"cleaning": "released"}, "one row for each class")):
        with pytest.raises(OVSDinoError, match=message):
            label_image(model, image, rows, dataclasses.replace(protocol, **changes))  # type: ignore[arg-type]
