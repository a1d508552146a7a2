"""The NumPy preprocessing against torch's: the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovsdino import levels
from ovsdino.edge.pixels import nv12_to_rgb, preprocess, resize
from ovsdino.ops import preprocess as torch_preprocess
from ovsdino.ops.dispatch import use_backend
from tests.ops.harness import needs_native

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(288, 384), (37, 90), (448, 448), (1, 1), (7, 3)])
@pytest.mark.parametrize("source", [(720, 960), (360, 480), (37, 53), (288, 384), (480, 384), (5, 1), (1, 1)])
def test_resize_gives_the_pixels_of_torch(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    expected = F.interpolate(tensor, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(resize(image, size), expected)


def test_resize_reads_arrays_with_strides() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for view in (image[::2, ::2], image[::-1], image[:, :, ::-1]):
        assert np.array_equal(resize(view, (16, 20)), resize(np.ascontiguousarray(view), (16, 20)))


@pytest.mark.parametrize("nv12", [False, True])
def test_preprocess_is_the_op_on_the_cpu(nv12: bool) -> None:
    shape = (90, 80) if nv12 else (60, 80, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with use_backend("cpu"):
        expected = torch_preprocess(torch.from_numpy(image), (32, 48), MEAN, STD)[0].numpy()
    out = np.empty((3, 32, 48), np.float32)
    assert preprocess(image, (32, 48), MEAN, STD, out=out) is out
    assert np.abs(out - expected).max() < 1e-6  # a level is 0.017
    assert np.array_equal(preprocess(image, (32, 48), MEAN, STD), out)


@needs_native
@pytest.mark.parametrize("size", [(288, 384), (37, 90), (448, 448), (1, 1), (60, 7), (9, 80)])
@pytest.mark.parametrize("source", [(720, 960), (360, 480), (37, 53), (60, 80), (5, 1), (1, 1)])
def test_the_native_kernel_gives_numpys_numbers(
    source: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (source[0], source[1] + 3, 3), dtype=np.uint8)
    for image in (whole[:, 2:-1], whole[::-1, 2:-1], whole[:, 2:-1, ::-1]):
        found = [preprocess(image, size, MEAN, STD, threads=threads) for threads in (1, 3)]
        with monkeypatch.context() as patch:
            patch.setattr(levels, "native", None)
            expected = preprocess(image, size, MEAN, STD)
        assert all(np.array_equal(one, expected) for one in found)


def test_nv12_by_hand() -> None:
    luma = [[16, 235, 81, 81], [16, 235, 81, 81]]  # ITU-R BT.601: black, white, red (its Cb is 90, its Cr 240)
    chroma = [[128, 128, 90, 240]]
    rgb = nv12_to_rgb(np.array(luma + chroma, np.uint8))
    assert rgb[0].tolist() == [[0, 0, 0], [255, 255, 255], [254, 0, 0], [254, 0, 0]]
    assert np.array_equal(rgb[1], rgb[0])
