"""preprocess against torchvision, OpenCV, weights in float64, and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from ovsdino.ops import dispatch, preprocess, use_backend
from ovsdino.ops.preprocess import native_arguments, nv12_to_rgb
from tests.ops.harness import DEVICES, needs_native

BACKENDS = ["reference", "cpu"]
KERNELS = [*BACKENDS, pytest.param("cuda body", marks=needs_native)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def draw(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def run(kernel: str, image: Tensor, size: tuple[int, int], mean, std, antialias=False, dtype=torch.float32) -> Tensor:
    """preprocess by a backend, or by the CUDA kernel's body on the CPU."""
    if kernel != "cuda body":
        with use_backend(kernel):
            return preprocess(image, size, mean, std, antialias, dtype)
    out = torch.full((image.shape[0] if image.dim() == 4 else 1, 3, *size), float("nan"), dtype=dtype)
    dispatch.native.preprocess_host(*native_arguments(image, out, mean, std, antialias))
    return out


def weights(size: int, out: int, antialias: bool) -> np.ndarray:
    """(out, size) matrix: the two nearest pixels, or with antialias a triangle of the scale's width."""
    scale = np.float32(size) / np.float32(out)
    matrix = np.zeros((out, size))
    for i, centre in enumerate(scale * (np.arange(out, dtype=np.float32) + np.float32(0.5)) - 0.5):
        if antialias:
            matrix[i] = np.maximum(0, 1 - np.abs(np.arange(size) - centre) / max(scale, 1))
            matrix[i] /= matrix[i].sum()
        else:
            centre = min(max(centre, 0), size - 1)
            low = int(centre)
            matrix[i, low] += 1 - (centre - low)
            matrix[i, min(low + 1, size - 1)] += centre - low
    return matrix


def resized(image: Tensor, size: tuple[int, int], antialias: bool) -> np.ndarray:
    """(B, 3, h, w) levels in float64."""
    batched = (nv12_to_rgb(image) if image.dim() == 2 else image).numpy().reshape(-1, *_size_of(image), 3)
    rows, columns = (weights(*pair, antialias) for pair in zip(_size_of(image), size, strict=True))
    return np.einsum("yi,bijc,xj->bcyx", rows, batched.astype(float), columns, optimize=True)


def _size_of(image: Tensor) -> tuple[int, int]:
    return (image.shape[0] * 2 // 3, image.shape[1]) if image.dim() == 2 else image.shape[-3:-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_pixels_by_hand(backend: str) -> None:
    # Twice as wide: the clamped ends, then a quarter and three quarters of the way from 0 to 200.
    image = torch.tensor([[[0, 0, 0], [200, 100, 40]]], dtype=torch.uint8)
    with use_backend(backend):
        out = preprocess(image, (1, 4), *NOTHING)
    expected = torch.tensor([[0, 50, 150, 200], [0, 25, 75, 100], [0, 10, 30, 40]]) / 255
    torch.testing.assert_close(out, expected.view(1, 3, 1, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_size_only_normalizes(backend: str) -> None:
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
    kernels = [*BACKENDS, *(["cuda body"] if dispatch.native else [])] if device == "cpu" else ["auto"]
    for kernel in kernels:
        out = run(kernel, image.to(device), size, *NOTHING, antialias).cpu()
        assert (out * 255 - expected).abs().max() <= 1.0 + 1e-4


# A shrink by a little and by much, of one axis only, growing, one pixel
SIZES = [(37, 61), (96, 130), (97, 40), (20, 131), (300, 200), (20, 400), (5, 3), (33, 1), (1, 1)]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["packed", "odd rows", "planar", "nv12"])
def test_levels_are_those_of_the_weights(form: str, kernel: str, size: tuple[int, int], antialias: bool) -> None:
    image = draw(2, 97, 131, 3)
    if form == "odd rows":  # rows start at any address
        image = image[:, :, 3:-5]
    if form == "planar":
        image = draw(2, 3, 97, 131).permute(0, 2, 3, 1)
    if form == "nv12":
        image = draw(144, 130)
    out = run(kernel, image, size, *NOTHING, antialias)
    allowed = 1.001 if kernel == "cpu" else 0.002  # levels; the CPU rounds after each axis
    np.testing.assert_allclose(out.numpy() * 255, resized(image, size, antialias), rtol=0, atol=allowed)


@needs_native
@pytest.mark.parametrize(
    ("height", "width", "size"), [(1080, 1920, (448, 448)), (500, 6000, (30, 11)), (64, 9000, (8, 2))]
)
def test_shrinks_of_camera_images_by_the_cuda_body(height: int, width: int, size: tuple[int, int]) -> None:
    image = draw(height, width, 3)
    np.testing.assert_allclose(
        run("cuda body", image, size, *NOTHING, True).numpy() * 255, resized(image, size, True), rtol=0, atol=0.01
    )


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop=st.integers(0, 3),
    antialias=st.booleans(),
    nv12=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_by_the_cuda_body(shape, size, crop, antialias, nv12, seed) -> None:
    batch, height, width = shape
    random = np.random.default_rng(seed)
    if nv12:
        image = torch.from_numpy(random.integers(0, 256, (3 * height, 2 * width + crop), np.uint8))[:, : 2 * width]
    else:
        image = torch.from_numpy(random.integers(0, 256, (batch, height, width + crop, 3), np.uint8))[:, :, crop:]
    out = run("cuda body", image, size, *NOTHING, antialias)
    np.testing.assert_allclose(out.numpy() * 255, resized(image, size, antialias), rtol=0, atol=0.002)


@pytest.mark.parametrize("size", [(37, 61), (300, 200), (97, 131), (180, 320), (64, 96)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_within_one_level_of_opencv(kernel: str, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = draw(97, 131, 3)
    expected = cv2.resize(image.numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    out = run(kernel, image, size, *NOTHING)
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy() * 255, expected, rtol=0, atol=1.0 + 1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nv12_is_within_two_levels_of_opencv(kernel: str) -> None:
    cv2 = pytest.importorskip("cv2")
    image = draw(144, 130).clamp(min=16)  # below black OpenCV clamps the luma, the standard's formula does not
    expected = cv2.cvtColor(image.numpy(), cv2.COLOR_YUV2RGB_NV12)
    out = run(kernel, image, (96, 130), *NOTHING)
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy() * 255, expected, rtol=0, atol=2.0)


@pytest.mark.parametrize(
    ("ycc", "rgb"),
    [
        # ITU-R BT.601, limited range: 8-bit codes of the 100 % color bars
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((126, 128, 128), (128, 128, 128)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_nv12_color_bars(ycc: tuple[int, ...], rgb: tuple[int, ...]) -> None:
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
