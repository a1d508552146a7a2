"""Labels at image size straight from low-resolution logits, without the (B, K, H, W) tensor between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino import vocabulary
from ovsdino.ops.checks import check_dense, check_floating, check_memory, check_number, check_size
from ovsdino.ops.dispatch import native, resolve
from ovsdino.ops.schema import LIBRARY, qualified


@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], threshold: float | None = None, confidence: Literal[False] = False
) -> Tensor: ...
@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], threshold: float | None = None, *, confidence: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def upsample_argmax(
    logits: Tensor, size: Sequence[int], threshold: float | None = None, confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """label_yx = argmax_k bilinear(logits_k)(y, x), as ``F.interpolate(align_corners=False).argmax(1)`` gives it.

    The smallest index wins a tie; a NaN wins over any number, the first NaN over later ones (as torch.argmax does it).
    Not differentiable.

    Args:
        logits: (B, K, h, w) float32, float16, bfloat16 or float64, K >= 1.
        size: (H, W) of the result, each from 1 to 2^30; larger or smaller than (h, w).
        threshold: finite; with it, pixels whose largest softmax probability is below it get the background index K.
        confidence: also return the largest softmax probability of each pixel.

    Returns:
        Labels (B, H, W), uint8 for K <= 255, int16 for K <= 32767, else int32; with `confidence` a pair of them and
        (B, H, W) float32 in (0, 1].

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    height, width = _check(logits, size, threshold)
    if confidence:
        return torch.ops.ovsdino.upsample_argmax_confidence(logits, (height, width), threshold)
    return torch.ops.ovsdino.upsample_argmax(logits, (height, width), threshold)


def label_dtype(classes: int) -> torch.dtype:
    """Return the dtype of labels of K classes; see `ovsdino.vocabulary.label_dtype`."""
    dtype: torch.dtype = getattr(torch, vocabulary.label_dtype(classes))
    return dtype


def upsample_argmax_reference(logits: Tensor, size: Sequence[int], threshold: float | None = None) -> Tensor:
    """Return the labels by interpolate and argmax: the oracle. Arguments as `upsample_argmax`."""
    if threshold is not None:
        return upsample_argmax_confidence_reference(logits, size, threshold)[0]
    if logits.shape[0] == 0:  # interpolate refuses an empty batch
        return logits.new_empty((0, *size), dtype=label_dtype(logits.shape[1]))
    full = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return full.argmax(1).to(label_dtype(logits.shape[1]))


def upsample_argmax_confidence_reference(
    logits: Tensor, size: Sequence[int], threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """Labels and 1 / sum_k exp(v_k - max_k v_k), their softmax probability: the oracle."""
    classes = logits.shape[1]
    if logits.shape[0] == 0:
        labels = upsample_argmax_reference(logits, size)
        return labels, labels.to(torch.float32)
    full = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    full = full.to(torch.promote_types(full.dtype, torch.float32))
    labels = full.argmax(1)
    probability = (full - full.gather(1, labels.unsqueeze(1))).exp().sum(1).reciprocal()
    if threshold is not None:
        labels = labels.masked_fill(probability < threshold, classes)
    return labels.to(label_dtype(classes)), probability.to(torch.float32)


def _check(logits: Tensor, size: Sequence[int], threshold: float | None) -> tuple[int, int]:
    check_dense(logits=logits)
    check_floating(logits=logits)
    if logits.dim() != 4:
        raise ValueError(f"logits must be (B, K, h, w), got {tuple(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have at least one class, got {tuple(logits.shape)}")
    if logits.shape[2] == 0 or logits.shape[3] == 0:
        raise ValueError(f"logits must have at least one row and column, got {tuple(logits.shape)}")
    if threshold is not None:
        check_number("threshold", threshold)
    return check_size(size)


def _run(
    logits: Tensor, size: tuple[int, int], threshold: float | None, labels: Tensor, confidence: Tensor | None
) -> None:
    """Fill `labels` and, if it is there, `confidence` by the kernel of the device."""
    assert native is not None  # resolve() gave a native backend
    arguments = (
        logits.data_ptr(),
        str(logits.dtype)[6:],
        tuple(logits.shape),
        logits.stride(),
        size,
        labels.data_ptr(),
        str(labels.dtype)[6:],
        0 if confidence is None else confidence.data_ptr(),
        threshold,
    )
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            native.upsample_argmax_cuda(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        native.upsample_argmax_cpu(*arguments, torch.get_num_threads())


def _forward(logits: Tensor, size: Sequence[int], threshold: float | None) -> Tensor:
    checked = _check(logits, size, threshold)
    check_memory(logits=logits)
    if resolve("upsample_argmax", logits.device.type, logits.dtype) == "reference":
        return upsample_argmax_reference(logits, checked, threshold)
    labels = _fake(logits, checked, threshold)
    _run(logits, checked, threshold, labels, None)
    return labels


def _forward_confidence(logits: Tensor, size: Sequence[int], threshold: float | None) -> tuple[Tensor, Tensor]:
    checked = _check(logits, size, threshold)
    check_memory(logits=logits)
    if resolve("upsample_argmax", logits.device.type, logits.dtype) == "reference":
        return upsample_argmax_confidence_reference(logits, checked, threshold)
    labels, confidence = _fake_confidence(logits, checked, threshold)
    _run(logits, checked, threshold, labels, confidence)
    return labels, confidence


def _fake(logits: Tensor, size: Sequence[int], threshold: float | None) -> Tensor:
    height, width = _check(logits, size, threshold)
    return logits.new_empty((logits.shape[0], height, width), dtype=label_dtype(logits.shape[1]))


def _fake_confidence(logits: Tensor, size: Sequence[int], threshold: float | None) -> tuple[Tensor, Tensor]:
    labels = _fake(logits, size, threshold)
    return labels, labels.new_empty(labels.shape, dtype=torch.float32)


LIBRARY.impl("upsample_argmax", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("upsample_argmax_confidence", _forward_confidence, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("upsample_argmax"), _fake, lib=LIBRARY)
torch.library.register_fake(qualified("upsample_argmax_confidence"), _fake_confidence, lib=LIBRARY)
