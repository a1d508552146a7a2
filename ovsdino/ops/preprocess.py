"""From camera pixels to the normalized tensor a backbone takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.levels import gain_and_shift, resize_levels
from ovsdino.ops.checks import FLOATING, check_dense, check_memory, check_number, check_size
from ovsdino.ops.compat import planar
from ovsdino.ops.dispatch import native, resolve
from ovsdino.ops.schema import LIBRARY, qualified


def preprocess(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """out_c = (resize(image)_c / 255 - mean_c) / std_c, bilinear with half-pixel centres (align_corners=False).

    On the CPU the resize runs on uint8 and rounds to whole levels, as torchvision's does; on CUDA one kernel does
    all in float32 and does not round the resized levels. Not differentiable.

    Args:
        image: (H, W, 3) or (B, H, W, 3) uint8 RGB, or NV12, (H * 3 // 2, W) uint8 with even H and W: H rows of luma,
            then H / 2 rows of interleaved chroma (Cb, Cr), ITU-R BT.601, limited range, chroma taken nearest.
        size: (h, w) of the result, each from 1 to 2^30.
        mean: three values in 0..1.
        std: three values, > 0 and finite.
        antialias: low-pass before shrinking, as PIL does.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        (B, 3, h, w), B = 1 for a single image.

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    height, width = _check(image, size, mean, std, dtype)
    return torch.ops.ovsdino.preprocess(image, (height, width), list(mean), list(std), antialias, dtype)


def nv12_to_rgb(image: Tensor) -> Tensor:
    """NV12 (H * 3 // 2, W) uint8 to RGB (H, W, 3) uint8, ITU-R BT.601, limited range.

    R = 1.164 (Y - 16) + 1.596 (Cr - 128)
    G = 1.164 (Y - 16) - 0.392 (Cb - 128) - 0.813 (Cr - 128)
    B = 1.164 (Y - 16) + 2.017 (Cb - 128)
    """
    height, width = image.shape[0] * 2 // 3, image.shape[1]
    luma = 1.164383 * (image[:height].to(torch.float32) - 16.0).reshape(height // 2, 2, width // 2, 2)
    chroma = image[height:].reshape(height // 2, 1, width // 2, 1, 2).to(torch.float32) - 128.0
    blue, red = chroma.unbind(-1)
    rgb = image.new_empty((height // 2, 2, width // 2, 2, 3))
    for channel, chroma in enumerate((1.596027 * red, -0.391762 * blue - 0.812968 * red, 2.017232 * blue)):
        rgb[..., channel] = (luma + chroma).round_().clamp_(0, 255)
    return rgb.view(height, width, 3)


def preprocess_reference(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], antialias: bool, dtype: torch.dtype
) -> Tensor:
    """Return the formula in float32 (float64 if `dtype` is), unrounded: the oracle. Arguments as `preprocess`."""
    compute = torch.promote_types(dtype, torch.float32)
    resized = F.interpolate(_planar(image).to(compute), tuple(size), mode="bilinear", antialias=antialias)
    return _normalize(resized.contiguous(), mean, std, compute).to(dtype)


def preprocess_uint8(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], antialias: bool, dtype: torch.dtype
) -> Tensor:
    """Return the same with the resize on uint8. Arguments as `preprocess`."""
    packed = image.dim() == 3 and image.stride()[1:] == (3, 1)
    if packed and not antialias and dtype == torch.float32:
        out = image.new_empty((1, 3, *size), dtype=dtype)
        height, width = size
        if resize_levels(image.numpy(), (height, width), mean, std, out[0].numpy(), torch.get_num_threads()):
            return out
    resized = F.interpolate(_planar(image), tuple(size), mode="bilinear", antialias=antialias)
    compute = torch.promote_types(dtype, torch.float32)
    return _normalize(resized.contiguous().to(compute), mean, std, compute).to(dtype)


def preprocess_cuda(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], antialias: bool, dtype: torch.dtype
) -> Tensor:
    """Return the same by one CUDA kernel, NV12 included: no image between. Arguments as `preprocess`."""
    assert native is not None  # resolve() gave a native backend
    if image.dim() == 2 and image.stride(1) != 1:
        image = image.contiguous()
    out = image.new_empty((image.shape[0] if image.dim() == 4 else 1, 3, *size), dtype=dtype)
    with torch.cuda.device(image.device):
        arguments = native_arguments(image, out, mean, std, antialias)
        native.preprocess_cuda(*arguments, torch.cuda.current_stream().cuda_stream)
    return out


def native_arguments(
    image: Tensor, out: Tensor, mean: Sequence[float], std: Sequence[float], antialias: bool
) -> tuple[object, ...]:
    """Return the arguments of ``ovsdino._C.preprocess_*``.

    The caller keeps the tensors alive; NV12 rows have neighbouring bytes.
    """
    planar = image.dim() == 2
    batched = image if image.dim() == 4 else image.unsqueeze(0)
    height = batched.shape[1] * 2 // 3 if planar else batched.shape[1]
    return (
        image.data_ptr(),
        "nv12" if planar else "rgb",
        (batched.shape[0], height, batched.shape[2]),
        (*batched.stride(), 0)[:4],
        tuple(out.shape[2:]),
        out.data_ptr(),
        str(out.dtype)[6:],
        *gain_and_shift(mean, std),
        antialias,
    )


def _planar(image: Tensor) -> Tensor:
    """Return RGB of any accepted form as (B, 3, H, W)."""
    if image.dim() == 2:
        image = nv12_to_rgb(image)
    if image.dim() == 3:
        image = image.unsqueeze(0)
    return planar(image)


def _normalize(image: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    gain, shift = (torch.tensor(x, dtype=dtype, device=image.device) for x in gain_and_shift(mean, std))
    return torch.addcmul(shift.view(1, 3, 1, 1), image, gain.view(1, 3, 1, 1))


def _check(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[int, int]:
    check_dense(image=image)
    if image.dtype != torch.uint8:
        raise ValueError(f"image must be uint8, got {tuple(image.shape)} {image.dtype}")
    if image.dim() == 2:
        rows, columns = image.shape
        if rows % 3 or columns % 2 or rows * columns == 0:
            raise ValueError(f"an NV12 image must be (H * 3 // 2, W) with even H and W, got {tuple(image.shape)}")
    elif image.dim() not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape[-3:]:
        raise ValueError(f"image must be (H, W, 3), (B, H, W, 3) or NV12 (H * 3 // 2, W), got {tuple(image.shape)}")
    if len(mean) != 3 or len(std) != 3 or any(s <= 0 for s in std):
        raise ValueError(f"mean and std must be three values each, std > 0, got {tuple(mean)} and {tuple(std)}")
    for m, s in zip(mean, std, strict=True):
        check_number("mean", m)
        check_number("std", s)
    if dtype not in FLOATING:
        raise ValueError(f"dtype must be floating (16, 32 or 64 bits), got {dtype}")
    return check_size(size)


def _forward(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], antialias: bool, dtype: torch.dtype
) -> Tensor:
    _check(image, size, mean, std, dtype)
    check_memory(image=image)
    batch = image.shape[0] if image.dim() == 4 else 1
    if batch == 0:
        return image.new_empty((0, 3, *size), dtype=dtype)
    backend = resolve("preprocess", image.device.type, dtype)
    run = {"cpu": preprocess_uint8, "cuda": preprocess_cuda}.get(backend, preprocess_reference)
    return run(image, size, mean, std, antialias, dtype)


def _fake(
    image: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float], antialias: bool, dtype: torch.dtype
) -> Tensor:
    height, width = _check(image, size, mean, std, dtype)
    batch = image.shape[0] if image.dim() == 4 else 1
    return image.new_empty((batch, 3, height, width), dtype=dtype)


LIBRARY.impl("preprocess", _forward, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("preprocess"), _fake, lib=LIBRARY)
