"""upsample_argmax against a float64 interpolation in numpy: every instruction set, and the CUDA body on the CPU."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ovsdino.ops import dispatch, upsample_argmax, use_backend
from ovsdino.ops.upsample_argmax import label_dtype
from tests.ops import bounds
from tests.ops.harness import DEVICES, DTYPES, instruction_set, instruction_sets, needs_native

CPU_BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]
KERNELS = [*instruction_sets(), "cuda body"]

# (B, K, h, w) -> (H, W): blocks of narrow cells, single wide cells, ragged ends, shrinking, the same size, one row,
# one column
SHAPES = [
    ((1, 19, 37, 73), (129, 256)),
    ((2, 150, 9, 11), (126, 160)),
    ((1, 33, 16, 16), (64, 64)),
    ((1, 5, 40, 33), (13, 20)),
    ((1, 7, 40, 33), (80, 20)),
    ((2, 6, 12, 17), (12, 17)),
    ((1, 6, 12, 17), (12, 40)),
    ((1, 8, 1, 9), (7, 31)),
    ((1, 8, 9, 1), (31, 7)),
    ((1, 3, 1, 1), (5, 50)),
    ((1, 1, 4, 4), (9, 9)),
    ((1, 300, 3, 5), (40, 61)),
]


def weights(size: int, out: int) -> np.ndarray:
    """(out, size) matrix of bilinear weights, half-pixel centres, clamped at the ends."""
    matrix = np.zeros((out, size))
    # In float32, as torch has it: at width 146 the float64 positions differ by 1e-5.
    source = (np.float32(size) / np.float32(out)).astype(np.float64) * (np.arange(out) + 0.5) - 0.5
    source = np.clip(source.astype(np.float32).astype(np.float64), 0, size - 1)
    low = np.floor(source).astype(int)
    matrix[np.arange(out), low] += 1 - (source - low)
    matrix[np.arange(out), np.minimum(low + 1, size - 1)] += source - low
    return matrix


def upsampled(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(B, K, H, W) in float64."""
    rows, columns = weights(logits.shape[2], size[0]), weights(logits.shape[3], size[1])
    return np.einsum("yi,bkij,xj->bkyx", rows, logits.double().cpu().numpy(), columns, optimize=True)


def wrong(logits: Tensor, size: tuple[int, int], backend: str = "cpu") -> float:
    """The largest error of an interpolated value that rounding explains."""
    return bounds.interpolation(logits.cpu().double(), size, logits.dtype, backend).max().item()


def assert_labels(labels: Tensor, logits: Tensor, size: tuple[int, int]) -> None:
    """The labels are the float64 argmax, but where the two classes lie within float32 rounding of each other."""
    full = upsampled(logits, size)
    expected = full.argmax(1)
    got = labels.cpu().numpy().astype(int)
    assert got.shape == expected.shape and got.min() >= 0 and got.max() < logits.shape[1]
    lost = np.take_along_axis(full, expected[:, None], 1) - np.take_along_axis(full, got[:, None], 1)
    assert lost.max() <= 2 * wrong(logits, size)


def relative_error(logits: Tensor, size: tuple[int, int], backend: str = "cpu") -> float:
    """Of a probability: each value's error twice, of every term its exponential's and the sum's."""
    return float(np.expm1(2 * wrong(logits, size, backend) + (bounds.EXP + logits.shape[1]) * bounds.EPS))


def assert_sure(sure: Tensor, exact: np.ndarray, logits: Tensor, size: tuple[int, int], backend: str = "cpu") -> None:
    most = relative_error(logits, size, backend)
    np.testing.assert_allclose(sure.cpu().numpy(), exact, rtol=most, atol=0)


def run_host(logits: Tensor, size: tuple[int, int], threshold: float | None, confidence: bool):
    """The CUDA kernel's body, run on the CPU."""
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype(logits.shape[1]))
    sure = torch.empty(labels.shape)
    names = str(logits.dtype)[6:], str(labels.dtype)[6:]
    dispatch.native.upsample_argmax_host(
        logits.data_ptr(), names[0], logits.shape, logits.stride(), size, labels.data_ptr(), names[1],
        sure.data_ptr() if confidence else 0, threshold,
    )  # fmt: skip
    return (labels, sure) if confidence else labels


def run(kernel: str, logits: Tensor, size: tuple[int, int], threshold: float | None = None, confidence: bool = False):
    if kernel == "cuda body":
        return run_host(logits, size, threshold, confidence)
    with instruction_set(kernel), use_backend("cpu"):
        return upsample_argmax(logits, size, threshold, confidence=confidence)


def smooth(batch: int, classes: int, h: int, w: int) -> Tensor:
    """Logits like an image's: regions in which one class leads clearly, borders between them."""
    coarse = torch.randn(batch, classes, max(h // 6, 1), max(w // 6, 1)) * 10
    return F.interpolate(coarse, (h, w), mode="bicubic") + torch.randn(batch, classes, h, w) * 0.3


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_two_columns_by_hand(backend: str) -> None:
    # Four columns lie at 0 (clamped), 0.25, 0.75 and 1: class 1 leads in the left half. Of three, the middle is a tie.
    logits = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    with use_backend(backend):
        assert upsample_argmax(logits, (1, 4)).tolist() == [[[1, 1, 0, 0]]]
        assert upsample_argmax(logits, (1, 3)).tolist() == [[[1, 0, 0]]]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_confidence_and_threshold_by_hand(backend: str) -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4); of (ln 3 / 2, 0) it is sqrt(3) / (sqrt(3) + 1) = 0.634.
    logits = torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, 0.0]]]])
    with use_backend(backend):
        labels, sure = upsample_argmax(logits, (1, 3), threshold=0.6, confidence=True)
        only_labels = upsample_argmax(logits, (1, 3), threshold=0.7)
    torch.testing.assert_close(sure, torch.tensor([[[0.75, 3**0.5 / (3**0.5 + 1), 0.5]]]))
    assert labels.tolist() == [[[0, 0, 2]]] and only_labels.tolist() == [[[0, 2, 2]]]


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("make", [torch.randn, smooth])
def test_labels_are_the_float64_argmax(make, shape: tuple[int, ...], size: tuple[int, int], kernel: str) -> None:
    logits = make(*shape)
    assert_labels(run(kernel, logits, size), logits, size)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_labels_are_torchs(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    logits = smooth(*shape)
    full = F.interpolate(logits, size, mode="bilinear")
    labels, expected = upsample_argmax(logits, size), full.argmax(1)
    assert labels.shape == expected.shape
    lost = full.amax(1) - full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    assert lost.max() <= 4 * wrong(logits, size)  # both are off by as much


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), SHAPES[:6])
def test_every_dtype(device: str, dtype: torch.dtype, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    # 16-bit logits are interpolated in float32, so nothing is lost beyond their own rounding.
    logits = smooth(*shape).to(device, dtype)
    labels, sure = upsample_argmax(logits, size, confidence=True)
    if dispatch.native is not None:
        assert_labels(labels, logits, size)
    full = upsampled(logits, size)
    exact = 1 / np.exp(full - full.max(1, keepdims=True)).sum(1)
    assert sure.dtype == torch.float32
    assert_sure(sure, exact, logits, size, "cpu" if dispatch.native else "reference")


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_confidence_is_the_softmax_of_all_classes(shape: tuple[int, ...], size: tuple[int, int], kernel: str) -> None:
    logits = smooth(*shape)
    full = upsampled(logits, size)
    exact = 1 / np.exp(full - full.max(1, keepdims=True)).sum(1)
    threshold = float(np.median(exact))
    labels, sure = run(kernel, logits, size, threshold, True)
    assert_sure(sure, exact, logits, size)
    clear = np.abs(exact - threshold) > relative_error(logits, size)
    np.testing.assert_array_equal((labels.numpy() == shape[1])[clear], (exact < threshold)[clear])
    assert torch.equal(labels, run(kernel, logits, size, threshold))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int16), (32768, torch.int32)])
def test_label_dtype_holds_the_background_index(classes: int, dtype: torch.dtype, backend: str) -> None:
    logits = torch.zeros(1, classes, 1, 2)
    logits[0, classes - 1, 0, 0] = 50.0
    with use_backend(backend):
        labels = upsample_argmax(logits, (1, 2), threshold=0.9)
    assert labels.dtype == dtype and labels.tolist() == [[[classes - 1, classes]]]


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(40, 300), (20, 26), (9, 13)])
def test_smallest_index_wins_ties(size: tuple[int, int], kernel: str) -> None:
    values = torch.randn(1, 6, 9, 13)
    doubled = torch.cat([values, values.flip(1), values], 1)  # every class three times
    full = np.stack([upsampled(doubled, size)[0, k] for k in range(18)])
    labels = run(kernel, doubled, size)[0].numpy()
    assert labels.max() < 6
    lost = full.max(0) - np.take_along_axis(full, labels[None].astype(int), 0)[0]
    assert lost.max() <= 2 * wrong(doubled, size)
    assert not run(kernel, torch.full((1, 20, 9, 13), 3.25), size).any()


def like(spread: float, scale: float) -> Tensor:
    """Logits of 60 classes that differ by `spread` around a surface that all share, times `scale`."""
    return (torch.randn(1, 1, 9, 11) + spread * torch.randn(1, 60, 9, 11)) * scale


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [1e-36, 1.0, 4e37])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1.0])
def test_wide_cells_keep_every_class_that_wins(spread: float, scale: float, kernel: str) -> None:
    # With the confidence no class is left out by its line along a row, so these are all the classes' labels.
    logits, size = like(spread, scale), (126, 160)
    lines = run(kernel, logits, size)
    every = run(kernel, logits, size, confidence=True)[0]
    full = upsampled(logits, size)
    differ = np.flatnonzero((lines != every).numpy())
    values = [np.take_along_axis(full, x.numpy()[:, None].astype(int), 1).ravel()[differ] for x in (lines, every)]
    assert (np.abs(values[0] - values[1]) <= 2 * wrong(logits, size)).all()
    assert len(differ) <= (0 if spread in (0.0, 1.0) else 0.01 * lines.numel())
    assert_labels(lines, logits, size)


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_class_far_below_the_others_hides_none_of_them(kernel: str) -> None:
    # On one side of a cell it is masked, by -1e30 or the lowest number; on the other it leads.
    logits = torch.randn(1, 40, 9, 11)
    for low, k in ((-1e30, 5), (-torch.finfo(torch.float32).max, 6)):
        logits[0, k, :, ::2], logits[0, k, :, 1::2] = low, 9.0
    labels, expected = run(kernel, logits, (126, 160)).long(), F.interpolate(logits, (126, 160), mode="bilinear")
    lost = expected.amax(1) - expected.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert lost.max() <= 1e-5


@needs_native
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [(24, 34), (96, 280), (12, 17), (5, 7)])
def test_nan_and_infinity_do_what_torch_does(size: tuple[int, int], bad: float, kernel: str) -> None:
    logits = torch.randn(1, 20, 12, 17)
    logits[0, 3, 4, 5] = logits[0, 9, 4, 6] = logits[0, 11, 0, 16] = bad
    logits[0, 7] = bad
    logits[0, 7, 6:] = 0.5
    full = F.interpolate(logits, size, mode="bilinear")
    labels, expected = run(kernel, logits, size).long(), full.argmax(1)
    # Two finite values within rounding of each other are the only reason to differ.
    differ = (labels != expected).unsqueeze(1)
    pair = torch.stack([full.gather(1, x.unsqueeze(1))[differ] for x in (labels, expected)])
    assert pair.isfinite().all() and ((pair[0] - pair[1]).abs() <= 4 * wrong(logits.nan_to_num(0, 0, 0), size)).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_has_no_confidence_and_is_never_background(backend: str) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0] = math.nan
    with use_backend(backend):
        labels, sure = upsample_argmax(logits, (2, 2), threshold=0.9, confidence=True)
    assert labels.tolist() == [[[1, 3], [3, 3]]]
    assert sure[0, 0, 0].isnan() and torch.allclose(sure[0, 1], torch.tensor(1 / 3))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_strided_logits(backend: str) -> None:
    base = smooth(2, 12, 20, 30)
    size = (50, 70)
    with use_backend(backend):
        expected = upsample_argmax(base, size)
        assert torch.equal(upsample_argmax(base.to(memory_format=torch.channels_last), size), expected)
        assert torch.equal(upsample_argmax(base.transpose(2, 3).contiguous().transpose(2, 3), size), expected)
        wide = torch.randn(2, 24, 20, 60)
        wide[:, ::2, :, 1::2] = base
        assert torch.equal(upsample_argmax(wide[:, ::2, :, 1::2], size), expected)
        assert torch.equal(upsample_argmax(base[:1].expand(3, -1, -1, -1), size), expected[:1].expand(3, -1, -1))


@needs_native
def test_same_labels_with_any_number_of_threads() -> None:
    logits, threads = torch.randn(3, 40, 30, 50), torch.get_num_threads()
    first = upsample_argmax(logits, (200, 400), confidence=True)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            again = upsample_argmax(logits, (200, 400), confidence=True)
            assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape, size, levels, seed) -> None:
    # Few levels make many exact ties.
    drawn = np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32)
    logits = torch.from_numpy(drawn)
    assert_labels(upsample_argmax(logits, size), logits, size)


@needs_native
def test_extra_memory_is_below_one_per_cent_of_the_full_tensor() -> None:
    program = """
import resource, torch
from ovsdino.ops import upsample_argmax
torch.set_num_threads(2)
logits = torch.randn(1, 150, 73, 146)
upsample_argmax(logits[:, :2, :8, :8], (32, 32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
upsample_argmax(logits, (1024, 2048))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert grown <= 0.01 * 150 * 1024 * 2048 * 4


@pytest.mark.parametrize(
    ("shape", "size", "shown"),
    [
        ((1, 0, 4, 4), (8, 8), r"\(1, 0, 4, 4\)"),
        ((1, 3, 0, 4), (8, 8), r"\(1, 3, 0, 4\)"),
        ((3, 4, 4), (8, 8), r"\(3, 4, 4\)"),
        ((1, 3, 4, 4), (0, 8), r"size .*\(0, 8\)"),
        ((1, 3, 4, 4), (8,), r"size .*\(8,\)"),
    ],
)
def test_wrong_shape_is_named(shape: tuple[int, ...], size: tuple[int, ...], shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        upsample_argmax(torch.zeros(shape), size)


def test_integer_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        upsample_argmax(torch.zeros(1, 3, 4, 4, dtype=torch.int64), (8, 8))
