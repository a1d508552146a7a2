"""preprocess against torchvision, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from ovsdino.ops import preprocess, use_backend
from ovsdino.ops.preprocess import nv12_to_rgb
from tests.ops.harness import DEVICES

BACKENDS = ["reference", "cpu"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def draw(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_pixels_by_hand(backend: str) -> None:
    # Twice as wide: the clamped ends, then a quarter and three quarters of the way from 0 to 200.
    image = torch.tensor([[[0, 0, 0], [200, 100, 40]]], dtype=torch.uint8)
    with use_backend(backend):
        out = preprocess(image, (1, 4), *NOTHING)
    expected = torch.tensor([[0, 50, 150, 200], [0, 25, 75, 100], [0, 10, 30, 40]]) / 255
    torch.testing.assert_close(out, expected.view(1, 3, 1, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_size_only_normalises(backend: str) -> None:
    image = draw(5, 7, 3)
    with use_backend(backend):
        out = preprocess(image, (5, 7), MEAN, STD, dtype=torch.float64)
    expected = (image.double().numpy() / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(37, 61), (300, 200), (97, 1), (64, 96)])
def test_within_one_level_of_torchvision(size: tuple[int, int], antialias: bool, device: str) -> None:
    image = draw(2, 97, 131, 3)
    expected = resize(image.permute(0, 3, 1, 2), list(size), InterpolationMode.BILINEAR, antialias=antialias)
    for backend in BACKENDS if device == "cpu" else ["auto"]:
        with use_backend(backend):
            out = preprocess(image.to(device), size, *NOTHING, antialias=antialias).cpu()
        assert (out * 255 - expected).abs().max() <= 1.0 + 1e-4


@pytest.mark.parametrize(
    ("ycc", "rgb"),
    [
        # ITU-R BT.601, limited range: 8-bit codes of the 100 % colour bars
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((126, 128, 128), (128, 128, 128)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_nv12_colour_bars(ycc: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    luma, blue, red = ycc
    image = torch.full((6, 6), luma, dtype=torch.uint8)
    image[4:, 0::2], image[4:, 1::2] = blue, red
    out = nv12_to_rgb(image)
    assert out.shape == (4, 6, 3) and (out.int() - torch.tensor(rgb)).abs().max() <= 2
    planar = preprocess(image, (4, 6), *NOTHING) * 255
    assert (planar[0] - torch.tensor(rgb).view(3, 1, 1)).abs().max() <= 2


def test_nv12_chroma_belongs_to_blocks_of_two_by_two() -> None:
    image = torch.full((6, 4), 128, dtype=torch.uint8)
    image[5, 2:] = torch.tensor([240, 110], dtype=torch.uint8)  # the lower right block's Cb and Cr
    blue = nv12_to_rgb(image)[..., 2]
    assert (blue[2:, 2:] == 255).all() and blue[:2].max() < 140 and blue[:, :2].max() < 140


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_images(backend: str) -> None:
    frame = draw(40, 60, 4)
    with use_backend(backend):
        crop = preprocess(frame[4:30:2, 6:50, :3], (20, 20), MEAN, STD)
        torch.testing.assert_close(crop, preprocess(frame[4:30:2, 6:50, :3].contiguous(), (20, 20), MEAN, STD))
        planar = draw(3, 20, 30)
        swapped = preprocess(planar.permute(1, 2, 0), (20, 20), MEAN, STD)
        torch.testing.assert_close(swapped, preprocess(planar.permute(1, 2, 0).contiguous(), (20, 20), MEAN, STD))
        assert crop.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtype_and_batch(backend: str, dtype: torch.dtype) -> None:
    image = draw(2, 9, 11, 3)
    with use_backend(backend):
        out = preprocess(image, (4, 6), MEAN, STD, dtype=dtype)
        assert out.dtype == dtype and out.shape == (2, 3, 4, 6)
        exact = preprocess(image, (4, 6), MEAN, STD, dtype=torch.float64)
        tolerance = 20 * torch.finfo(dtype).eps  # 1 / std is 4.5 and the result reaches 2.6
        torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=0)
        assert preprocess(image[:0], (4, 6), MEAN, STD, dtype=dtype).shape == (0, 3, 4, 6)
        torch.testing.assert_close(preprocess(image[1], (4, 6), MEAN, STD, dtype=dtype), out[1:])


@pytest.mark.parametrize(
    ("image", "size", "std", "shown"),
    [
        (torch.zeros(4, 4, 3), (2, 2), STD, "float32"),
        (draw(4, 4, 4), (2, 2), STD, r"\(4, 4, 4\)"),
        (draw(7, 4), (2, 2), STD, r"NV12.*\(7, 4\)"),
        (draw(9, 5), (2, 2), STD, r"NV12.*\(9, 5\)"),
        (draw(9, 4), (2, 2), STD, None),  # H = 6
        (draw(4, 4, 3), (0, 2), STD, r"size .*\(0, 2\)"),
        (draw(4, 4, 3), (2, 2), (1.0, 0.0, 1.0), "std"),
        (draw(0, 4, 3), (2, 2), STD, r"\(0, 4, 3\)"),
    ],
)
def test_wrong_input_is_named(image: Tensor, size: tuple[int, int], std: tuple[float, ...], shown: str | None) -> None:
    if shown is None:
        assert preprocess(image, size, MEAN, std).shape == (1, 3, *size)
        return
    with pytest.raises(ValueError, match=shown):
        preprocess(image, size, MEAN, std)
