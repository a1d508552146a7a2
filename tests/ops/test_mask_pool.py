"""mask_pool against a loop over masks in numpy: every mask form, dtype and instruction set, and the CUDA body."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ovsdino.ops import dispatch, mask_pool, use_backend
from ovsdino.ops.mask_pool import MAX_DENSITY, _arguments, mask_weights
from tests.ops import bounds
from tests.ops.harness import DEVICES, DTYPES, assert_within, instruction_set, instruction_sets, needs_native

FORMS = ["bool", "uint8", "float32"]
CPU_BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]


def as_form(masks: np.ndarray, form: str) -> Tensor:
    """Boolean (B, M, N) as the tensor a user may hand in."""
    return torch.from_numpy(masks.astype({"bool": bool, "uint8": np.uint8, "float32": np.float32}[form]))


def by_loops(features: Tensor, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and areas of boolean masks, one mask at a time."""
    values = features.double().numpy()
    means = np.zeros((*masks.shape[:2], values.shape[2]))
    for b, m in np.ndindex(*masks.shape[:2]):
        if masks[b, m].any():
            means[b, m] = values[b, masks[b, m]].mean(0)
    return means, masks.sum(-1)


def assert_right(means: Tensor, areas: Tensor, features: Tensor, masks: np.ndarray) -> None:
    """Means as near the loops' as rounding allows, areas exact: they count tokens."""
    expected, expected_areas = by_loops(features, masks)
    bound = bounds.pool(features.cpu().double(), torch.from_numpy(masks).double(), features.dtype)
    assert_within(means, torch.from_numpy(expected), bound[0])
    np.testing.assert_array_equal(areas.cpu().numpy(), expected_areas)


def draw_masks(batch: int, count: int, tokens: int, density: float, seed: int = 0) -> np.ndarray:
    masks = np.random.default_rng(seed).random((batch, count, tokens)) < density
    masks[:, :1] = False  # an empty mask is always among them
    return masks


def run_host(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The CUDA kernel's body, run on the CPU."""
    means = features.new_empty((features.shape[0], masks.shape[1], features.shape[2]))
    areas = features.new_empty(means.shape[:2], dtype=torch.float32)
    dispatch.native.mask_pool_host(*_arguments(features, masks, means, areas))
    return means, areas


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_three_tokens_by_hand(backend: str, form: str) -> None:
    features = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]]])
    masks = as_form(np.array([[[True, False, True], [False, False, False], [False, True, False]]]), form)
    with use_backend(backend):
        means, areas = mask_pool(features, masks)
    assert means.tolist() == [[[4.5, 45.0], [0.0, 0.0], [3.0, 30.0]]]
    assert areas.tolist() == [[2.0, 0.0, 1.0]] and areas.dtype == torch.float32


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_soft_mask_by_hand(backend: str) -> None:
    features = torch.tensor([[[2.0], [6.0]]])
    with use_backend(backend):
        means, areas = mask_pool(features, torch.tensor([[[0.75, 0.25], [0.0, 0.5], [0.0, 0.0]]]))
    assert means.flatten().tolist() == [3.0, 6.0, 0.0] and areas.flatten().tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_any_uint8_but_zero_is_set(backend: str) -> None:
    with use_backend(backend):
        means, areas = mask_pool(torch.tensor([[[2.0], [6.0]]]), torch.tensor([[[255, 1]]], dtype=torch.uint8))
    assert means.item() == 4.0 and areas.item() == 2.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 5), (2, 5, 97, 40), (1, 7, 1025, 129), (1, 4, 64, 1)])
@pytest.mark.parametrize("density", [0.03, 0.6])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_matches_loops(backend: str, density: float, shape: tuple[int, ...], form: str) -> None:
    batch, count, tokens, channels = shape
    features, masks = torch.randn(batch, tokens, channels), draw_masks(batch, count, tokens, density)
    with use_backend(backend):
        means, areas = mask_pool(features, as_form(masks, form))
    assert_right(means, areas, features, masks)


@needs_native
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("isa", [*instruction_sets(), "cuda body"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_kernels_match_loops(dtype: torch.dtype, isa: str, form: str) -> None:
    features, masks = torch.randn(2, 1025, 200).to(dtype), draw_masks(2, 9, 1025, MAX_DENSITY / 2)
    given_masks = as_form(masks, form)
    if isa == "cuda body":
        means, areas = run_host(features, given_masks)
    else:
        with instruction_set(isa), use_backend("cpu"):
            means, areas = mask_pool(features, given_masks)
    assert_right(means, areas, features, masks)


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "cuda body"])
@pytest.mark.parametrize("start", range(9))
def test_every_byte_of_a_word_counts_wherever_the_mask_starts(start: int, backend: str) -> None:
    # The kernels read eight bytes of a mask at once where they start at a multiple of eight.
    storage = torch.zeros(2 * 96, dtype=torch.uint8)
    masks = storage.as_strided((1, 2, 70), (192, 96, 1), start)
    for token, value in ((0, 1), (7, 255), (8, 128), (33, 2), (63, 64), (69, 1)):
        masks[0, 1, token] = value
    features = 2.0 ** torch.arange(70, dtype=torch.float32).remainder(24).view(1, 70, 1)
    if backend == "cuda body":
        means, areas = run_host(features, masks)
    else:
        with use_backend(backend):
            means, areas = mask_pool(features, masks)
    assert areas.tolist() == [[0, 6]] and means[0, 0].item() == 0
    torch.testing.assert_close(means[0, 1] * 6, features[0, masks[0, 1] > 0].sum(0))


@needs_native
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("tokens", [37, 39])  # 32 and a ragged block
def test_runs_of_any_length_and_place_are_right_and_keep_their_nan(tokens: int, isa: str) -> None:
    # The CPU kernel adds sums of two and four tokens, each made once for all masks.
    runs = [(first, end) for first in range(tokens) for end in range(first + 1, tokens + 1)]
    masks = np.zeros((1, 2 * len(runs), tokens), bool)  # half of them empty, for the density
    for row, (first, end) in zip(masks[0], runs, strict=False):
        row[first:end] = True
    features = torch.randn(1, tokens, 20)
    given_masks = torch.from_numpy(masks)
    with instruction_set(isa), use_backend("cpu"):
        assert_right(*mask_pool(features, given_masks), features, masks)
        features[0, 6] = math.nan
        means = mask_pool(features, given_masks)[0]
    assert torch.equal(means.isnan().all(-1), given_masks[..., 6])
    assert torch.equal(means.isnan().any(-1), given_masks[..., 6])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_strided_inputs(backend: str) -> None:
    features, masks = torch.randn(1, 40, 99), draw_masks(1, 5, 99, 0.1)
    channels_first = features.transpose(1, 2)  # (1, 99, 40), tokens innermost
    turned = torch.from_numpy(masks.transpose(0, 2, 1).copy()).transpose(1, 2)
    rows = torch.randn(2, 198, 40)[:, ::2]
    with use_backend(backend):
        assert_right(*mask_pool(channels_first, turned), channels_first, masks)
        assert_right(*mask_pool(rows, torch.from_numpy(masks).expand(2, -1, -1)), rows, np.repeat(masks, 2, 0))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 8, 4), (2, 0, 8, 4), (1, 3, 0, 4), (1, 3, 8, 0)])
def test_empty_sizes(backend: str, shape: tuple[int, ...]) -> None:
    batch, count, tokens, channels = shape
    with use_backend(backend):
        means, areas = mask_pool(
            torch.zeros(batch, tokens, channels), torch.ones(batch, count, tokens, dtype=torch.bool)
        )
    assert means.shape == (batch, count, channels) and areas.tolist() == torch.full((batch, count), tokens).tolist()
    assert not means.any()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_reaches_the_masks_that_hold_it_and_no_empty_one(backend: str) -> None:
    features, masks = torch.ones(1, 8, 3), torch.zeros(1, 3, 8, dtype=torch.bool)
    features[0, 2] = math.nan
    masks[0, 0, 2] = masks[0, 0, 3] = masks[0, 2, 5] = True
    with use_backend(backend):
        means, areas = mask_pool(features, masks)
    assert means[0, 0].isnan().all() and (means[0, 1] == 0).all() and areas[0, 1] == 0
    if backend == "cpu":
        assert (means[0, 2] == 1).all()


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_in_float64(soft: bool) -> None:
    features = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 3, 9, dtype=torch.float64)
    masks[0, 1] = 0
    if soft:
        # An empty mask has no derivative: a little weight would make its mean jump.
        masks = (masks + 0.1).requires_grad_()
        assert torch.autograd.gradcheck(mask_pool, (features, masks))
    else:
        assert torch.autograd.gradcheck(lambda x: mask_pool(x, masks > 0.5), features)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("density", [0.05, 0.7])
def test_features_gradient_of_the_kernels(device: str, density: float, form: str) -> None:
    masks = draw_masks(2, 12, 130, density)
    features = torch.randn(2, 130, 33, device=device, requires_grad=True)
    weight = torch.randn(2, 12, 33, device=device)
    (mask_pool(features, as_form(masks, form).to(device))[0] * weight).sum().backward()
    # d mean_mc / d f_nc = 1 / area_m for the tokens of mask m
    expected = np.zeros((2, 130, 33))
    for b, m in np.ndindex(2, 12):
        expected[b, masks[b, m]] += weight[b, m].double().cpu().numpy() / max(masks[b, m].sum(), 1)
    outer = weight.cpu().double(), torch.zeros(2, 12, dtype=torch.float64)
    bound = bounds.pool(features.detach().cpu().double(), torch.from_numpy(masks).double(), features.dtype, outer)
    assert_within(features.grad, torch.from_numpy(expected), bound[2])


@needs_native
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("masks", "tokens", "channels"), [(1, 1, 3), (5, 13, 4), (40, 97, 130), (33, 1025, 7)])
def test_features_gradient_of_the_cuda_body(masks: int, tokens: int, channels: int, form: str) -> None:
    drawn = draw_masks(2, masks, tokens, 0.3)
    weights = as_form(drawn, form)
    if form == "float32":
        weights = weights * torch.rand(2, masks, tokens)
    grad = torch.randn(2, masks, channels)
    out = torch.full((2, tokens, channels), math.nan)
    dispatch.native.mask_pool_backward_host(*_arguments(out, weights, grad, grad))
    wide = mask_weights(weights, torch.float64)
    # With areas of 1 the gradient of the features is this sum.
    outer = grad.double() * wide.sum(-1, keepdim=True), torch.zeros(2, masks, dtype=torch.float64)
    bound = bounds.pool(torch.zeros(2, tokens, channels, dtype=torch.float64), wide, torch.float32, outer)
    assert_within(out, wide.mT @ grad.double(), bound[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("density", [0.03, 0.5])
def test_same_bits_again_and_with_any_number_of_threads(
    density: float, form: str, dtype: torch.dtype, device: str
) -> None:
    features = torch.randn(2, 1025, 300, device=device).to(dtype).requires_grad_()
    masks = as_form(draw_masks(2, 33, 1025, density), form).to(device).requires_grad_(form == "float32")
    outer = torch.randn(2, 33, 300, device=device).to(dtype)
    leaves = [features, masks] if form == "float32" else [features]

    def step() -> list[Tensor]:
        means, areas = mask_pool(features, masks)
        return [means, areas, *torch.autograd.grad(means, leaves, outer)]

    # A dense mask is a matrix product of torch's, whose order of sums is its own: once per number of threads.
    counts = (1, 2, 3) if dispatch.native is not None and density <= MAX_DENSITY else (torch.get_num_threads(),)
    threads, first = torch.get_num_threads(), step()
    try:
        for count in (*counts, threads):
            torch.set_num_threads(count)
            # The gradient of soft masks is a matrix product.
            same = 3 if form == "float32" and count != threads else len(first)
            assert all(torch.equal(a, b) for a, b in zip(first[:same], step()[:same], strict=True))
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    count=st.integers(1, 5),
    tokens=st.integers(2, 150),
    channels=st.integers(1, 140),
    density=st.floats(0, 1),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_density(batch, count, tokens, channels, density, form, seed) -> None:
    masks = draw_masks(batch, count, tokens, density, seed)
    features = torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, tokens, channels), np.float32))
    means, areas = mask_pool(features, as_form(masks, form))
    assert_right(means, areas, features, masks)


@pytest.mark.parametrize(
    ("features", "masks", "shown"),
    [
        (torch.zeros(2, 5), torch.zeros(1, 2, 5), r"features .*\(2, 5\)"),
        (torch.zeros(1, 5, 3, dtype=torch.int32), torch.zeros(1, 2, 5), "int32"),
        (torch.zeros(1, 20, 3), torch.zeros(1, 2, 19), r"\(1, 2, 19\)"),
        (torch.zeros(1, 20, 3), torch.zeros(2, 2, 20), r"B=1.*\(2, 2, 20\)"),
        (torch.zeros(1, 20, 3), torch.zeros(1, 2, 20, dtype=torch.int64), "int64"),
        (torch.zeros(1, 20, 3), torch.zeros(1, 2, 3, dtype=torch.uint8), r"N=20"),
    ],
)
def test_wrong_input_is_named(features: Tensor, masks: Tensor, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        mask_pool(features, masks)


def test_dense_product_of_many_large_features_does_not_overflow_float16() -> None:
    """4096 features of 60 add up to 245 760, beyond float16's 65 504; their mean is 60."""
    features = torch.full((1, 4096, 8), 60.0, dtype=torch.float16)
    masks = torch.zeros(1, 3, 4096, dtype=torch.bool)
    masks[0, 0], masks[0, 1, :3001] = True, True
    with use_backend("dense"):
        means, areas = mask_pool(features, masks)
    assert areas.tolist() == [[4096.0, 3001.0, 0.0]]
    torch.testing.assert_close(means[0, :, 0], torch.tensor([60.0, 60.0, 0.0]).half(), atol=0.06, rtol=0)
