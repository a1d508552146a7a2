"""structure_attention's CUDA kernels without a GPU: their very source on emulated lanes."""

from __future__ import annotations

import ctypes
import math
import random
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ovsdino.ops import dispatch, structure_attention, use_backend
from ovsdino.ops.dispatch import OP_BACKENDS, Needs
from ovsdino.ops.structure_attention import structure_attention_reference
from tests.ops import bounds
from tests.ops.harness import assert_within, needs_native
from tests.ops.simt.emulator import (
    MUTATIONS,
    SCHEDULES,
    SOURCES,
    Emulator,
    Report,
    compile_objects,
    from_native,
    link,
)

HALVES = [torch.float16, torch.bfloat16]
SCALE = 48**-0.5
MAIN = (48, 64, 15)  # d, dv, r of the model


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    return Emulator(tmp_path_factory.mktemp("simt"))


def draw(tokens: int, sizes: tuple[int, int, int] = MAIN, dtype: torch.dtype = torch.float16, batch: int = 1):
    """Inputs of a trained decoder's size: |e| near 4, lambda up to 2."""
    d, dv, r = sizes
    generator = torch.Generator().manual_seed(tokens)
    shape = (batch, 2, tokens)
    q, k, v, e = (torch.randn(*shape, size, generator=generator).to(dtype) for size in (d, d, dv, r))
    lam = torch.tensor([0.3, 1.7])
    return q, k, v, e, lam, torch.rand(shape, generator=generator).to(dtype)


def draw_keys(tokens: int, keys: int, *rest, **options):
    """q, k, v, e, lam, gate and key_e of so many queries and keys."""
    q, _, _, e, lam, gate = draw(tokens, *rest, **options)
    _, k, v, key_e, _, _ = draw(keys, *rest, **options)
    return (q, k, v, e, lam, gate), key_e + 0.5


def check(out: Tensor, inputs, scale: float = SCALE, key_e: Tensor | None = None) -> None:
    """Fails where the output is further from the float64 reference than rounding explains."""
    wide = tuple(None if x is None else x.double() for x in inputs)
    rest = () if key_e is None else (key_e.double(),)
    bound = bounds.attention((*wide, *rest), scale, inputs[0].dtype, "cuda")
    assert_within(out, structure_attention_reference(*wide, scale, *rest), bound[0])


def assert_good(emulator: Emulator, inputs, scale: float = SCALE, key_e: Tensor | None = None, **options) -> Report:
    result = emulator.run(*inputs, scale, key_e=key_e, **options)
    assert result.report.faults == 0, result.report.first_fault
    check(result.out, inputs, scale, key_e)
    return result.report


@pytest.mark.parametrize("query_tile", [64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 97, 200])
def test_error_is_within_what_rounding_explains(
    emulator: Emulator, tokens: int, dtype: torch.dtype, query_tile: int
) -> None:
    assert_good(emulator, draw(tokens, dtype=dtype), query_tile=query_tile)


@pytest.mark.parametrize("query_tile", [64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("tokens", "keys"), [(1, 65), (16, 144), (97, 1), (70, 130), (200, 64)])
def test_keys_of_other_tokens(emulator: Emulator, tokens: int, keys: int, dtype: torch.dtype, query_tile: int) -> None:
    inputs, key_e = draw_keys(tokens, keys, dtype=dtype, batch=2)
    assert_good(emulator, inputs, key_e=key_e, query_tile=query_tile, schedule=SCHEDULES[tokens % 2])


def test_more_queries_and_keys_than_a_block_prepares(emulator: Emulator) -> None:
    inputs, key_e = draw_keys(300, 333)
    assert_good(emulator, inputs, key_e=key_e, query_tile=128)


def test_empty_batch_with_keys_of_other_tokens(emulator: Emulator) -> None:
    inputs, key_e = draw_keys(9, 37)
    few = [x if x.dim() == 1 else x[:0] for x in inputs]
    assert key_e[:0].data_ptr() == 0  # as if there were none
    assert emulator.run(*few, SCALE, key_e=key_e[:0]).out.shape == (0, *inputs[0].shape[1:3], inputs[2].shape[-1])


def test_keys_of_the_same_tokens_are_the_kernel_without_them(emulator: Emulator) -> None:
    inputs = draw(97)
    assert torch.equal(emulator.run(*inputs, SCALE, key_e=inputs[3]).out, emulator.run(*inputs, SCALE).out)


def test_more_tokens_than_a_block_prepares(emulator: Emulator) -> None:
    assert_good(emulator, draw(333), query_tile=128, schedule="warp_ahead")


@pytest.mark.parametrize("query_tile", [64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "sizes", [(40, 32, 3), (48, 48, 16), (64, 64, 15), (64, 32, 16), (8, 8, 1), (56, 128, 15), (48, 104, 7)]
)
def test_other_sizes(emulator: Emulator, sizes: tuple[int, int, int], dtype: torch.dtype, query_tile: int) -> None:
    assert_good(emulator, draw(97, sizes, dtype), query_tile=query_tile, schedule="warp_ahead")


@pytest.mark.parametrize("gate", [False, True])
def test_batches_and_no_gate(emulator: Emulator, gate: bool) -> None:
    *inputs, g = draw(70, batch=3)
    assert_good(emulator, (*inputs, g if gate else None))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0, 1e-3])
def test_any_scale(emulator: Emulator, scale: float) -> None:
    assert_good(emulator, draw(65), scale)


def test_slices_of_one_tensor_as_the_model_makes_them(emulator: Emulator) -> None:
    """Inputs are views; what lies between them is NaN and must not be read; out is a view too."""
    batch, heads, tokens = 2, 2, 70
    q, k, v, e, lam, gate = draw(tokens, batch=batch)
    mixed = torch.full((batch, tokens, heads, 48 + 48 + 64 + 8), math.nan, dtype=q.dtype)
    views = [x.transpose(1, 2) for x in mixed[..., :160].split([48, 48, 64], dim=-1)]
    structure = torch.full((batch, tokens, heads, 17), math.nan, dtype=q.dtype)[..., 1:16].transpose(1, 2)
    gates = torch.full((batch, tokens, heads, 2), math.nan, dtype=q.dtype)[..., 1].transpose(1, 2)
    for view, x in zip((*views, structure, gates), (q, k, v, e, gate), strict=True):
        view.copy_(x)
    held = torch.full((batch, tokens, heads, 66), 7.0, dtype=q.dtype)
    out = held[..., :64].transpose(1, 2)
    result = emulator.run(*views, structure, lam, gates, SCALE, out=out)
    assert result.report.faults == 0, result.report.first_fault
    assert torch.equal(out, emulator.run(q, k, v, e, lam, gate, SCALE).out)
    assert (held[..., 64:] == 7.0).all()


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_and_layouts(emulator: Emulator, seed: int) -> None:
    choose = random.Random(seed)
    sizes = (8 * choose.randint(1, 8), 8 * choose.randint(1, 16), choose.randint(1, 16))
    dtype = choose.choice(HALVES)
    tokens, batch = choose.randint(1, 150), choose.randint(1, 2)
    inputs, key_e = draw(tokens, sizes, dtype, batch=batch), None
    if seed % 2:
        inputs, key_e = draw_keys(tokens, choose.randint(1, 150), sizes, dtype, batch=batch)
    *inputs, lam, gate = inputs
    if choose.random() < 0.5:  # (B, N, M, size) in memory
        inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
        key_e = None if key_e is None else key_e.transpose(1, 2).contiguous().transpose(1, 2)
    options = {
        "key_e": key_e,
        "query_tile": choose.choice([64, 128]),
        "schedule": choose.choice(SCHEDULES),
        "seed": seed,
    }
    assert_good(emulator, (*inputs, lam, choose.choice([gate, None])), choose.uniform(0.05, 0.5), **options)


def test_offsets_beyond_32_bits(emulator: Emulator) -> None:
    tokens, step = 40, 1 << 26
    inputs = draw(tokens)
    try:
        memory = torch.empty(tokens * step, dtype=torch.float16)  # 5 GB, of which a few pages are touched
    except RuntimeError as error:
        pytest.skip(str(error))
    far = []
    for i, x in enumerate((*inputs[:4], inputs[5].unsqueeze(-1), torch.zeros_like(inputs[2]))):
        view = memory.as_strided(x.shape, (0, 1 << 16, step, 1), i << 18)
        far.append(view.copy_(x))
    q, k, v, e, gate, out = far
    assert emulator.run(q, k, v, e, inputs[4], gate.squeeze(-1), SCALE, out=out).report.faults == 0
    assert torch.equal(out, emulator.run(*inputs, SCALE).out)


def test_shift_of_e_costs_no_precision(emulator: Emulator) -> None:
    q, k, v, e, lam, gate = draw(97)
    inputs = (q, k, v, e + 4, lam, gate)
    result = emulator.run(*inputs, SCALE)
    exact = structure_attention_reference(*(x.double() for x in inputs), SCALE)
    assert (result.out.double() - exact).abs().max() < 2e-3  # a few units in the last place


@pytest.mark.parametrize("dtype", HALVES)
def test_huge_lambda_leaves_each_token_itself(emulator: Emulator, dtype: torch.dtype) -> None:
    q, k, v, e, _, gate = draw(97, dtype=dtype)
    e[:, :, 50:] = e[:, :, :1]  # equal structure: these still see each other
    inputs = (q, k, v, e, torch.tensor([100.0, 1e3]), gate)
    assert_good(emulator, inputs)
    out = emulator.run(*inputs, SCALE).out
    torch.testing.assert_close(out[:, :, 1:50], (v * gate.unsqueeze(-1))[:, :, 1:50])


def test_lambda_zero_is_plain_attention(emulator: Emulator) -> None:
    q, k, v, e, _, _ = draw(97)
    out = emulator.run(q, k, v, e, torch.zeros(2), None, SCALE).out
    plain = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("query_tile", [64, 128])
def test_nan_query_stays_in_its_row(emulator: Emulator, query_tile: int) -> None:
    q, k, v, e, lam, gate = draw(97)
    clean = emulator.run(q, k, v, e, lam, gate, SCALE, query_tile=query_tile).out
    q[0, 1, 66, 5] = math.nan
    out = emulator.run(q, k, v, e, lam, gate, SCALE, query_tile=query_tile).out
    assert out[0, 1, 66].isnan().all()
    out[0, 1, 66] = clean[0, 1, 66]
    assert torch.equal(out, clean)


def test_result_does_not_depend_on_the_order_of_lanes_nor_on_the_tile(emulator: Emulator) -> None:
    inputs = draw(140)
    first = emulator.run(*inputs, SCALE).out
    for seed in range(1, 4):
        for schedule in SCHEDULES:
            result = emulator.run(*inputs, SCALE, schedule=schedule, seed=seed, query_tile=64 * (1 + seed % 2))
            assert result.report.faults == 0, result.report.first_fault
            assert torch.equal(result.out, first)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mutation", MUTATIONS[1:])
def test_planted_faults_are_found(emulator: Emulator, mutation: str, schedule: str) -> None:
    inputs = draw(140)
    result = emulator.run(*inputs, SCALE, mutation=mutation, schedule=schedule)
    wrong = False
    try:
        check(result.out, inputs)
    except AssertionError:
        wrong = True
    # Wrong mathematics shows in the numbers; a race may by luck not, but is seen as one.
    assert wrong if mutation in ("unmasked_column", "not_transposed", "shifted_row") else result.report.faults > 0


@pytest.mark.parametrize("sizes", [MAIN, (64, 64, 16), (40, 32, 3), (48, 128, 15)])
def test_shared_memory_is_read_without_bank_conflicts(emulator: Emulator, sizes: tuple[int, int, int]) -> None:
    report = emulator.run(*draw(65, sizes), SCALE).report
    assert report.matrix_phases == report.matrix_wavefronts > 0
    assert report.load_phases == report.load_wavefronts > 0
    if sizes == MAIN:
        assert report.copy_phases == report.copy_wavefronts > 0
        # 2 heads, 2 x 2 tiles, 4 warps; 8 keys' columns of 4 steps for the logits, 8 of 4 steps for the values
        assert report.products == 2 * 4 * 4 * (8 * 4 + 8 * 4)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"d": 72}, "d must be a multiple of 8 from 8 to 64, got 72"),
        ({"d": 44}, "d .* got 44"),
        ({"dv": 136}, "dv must be a multiple of 8 from 8 to 128, got 136"),
        ({"r": 17}, "r must be 1 to 16, got 17"),
        ({"dtype": torch.float32}, "float16 or bfloat16"),
        ({"scale": math.inf}, "scale must be finite"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(emulator: Emulator, change, shown: str) -> None:
    want = {"d": 48, "dv": 64, "r": 15, "dtype": torch.float16, "scale": 1.0} | change
    inputs = draw(3, (want["d"], want["dv"], want["r"]), want["dtype"])
    with pytest.raises(ValueError, match=shown):
        emulator.run(*inputs, want["scale"])


def test_rows_that_cannot_be_copied_in_16_bytes_are_refused(emulator: Emulator) -> None:
    q, k, v, e, lam, gate = draw(5)
    wide = torch.zeros(1, 2, 5, 50, dtype=q.dtype)
    with pytest.raises(ValueError, match="k must have strides of multiples of 8 elements, got 250"):
        emulator.run(q, wide[..., :48], v, e, lam, gate, SCALE)
    with pytest.raises(ValueError, match="q must start at a multiple of 16 bytes"):
        emulator.run(torch.zeros(1, 2, 5, 56, dtype=q.dtype)[..., 1:49], k, v, e, lam, gate, SCALE)
    with pytest.raises(ValueError, match="v must have last stride 1, got 5"):
        emulator.run(q, k, v.mT.contiguous().mT, e, lam, gate, SCALE)


@pytest.fixture
def on_emulator(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Let backend "cuda" run on CPU tensors: the native launch checks its arguments and goes to the emulator."""
    native = dispatch.native
    reports = []

    def launch(op: Any, stream: int) -> None:
        native.structure_attention_check(op)
        reports.append(emulator.launch(from_native(op)))

    monkeypatch.setattr(native, "structure_attention_cuda", launch, raising=False)
    monkeypatch.setattr(dispatch, "native_cuda", True)
    monkeypatch.setitem(
        OP_BACKENDS["structure_attention"], "cuda", Needs(device="cpu", native=True, dtypes=tuple(HALVES))
    )
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    return reports


@needs_native
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sizes", [MAIN, (44, 30, 3), (64, 100, 16)])
def test_backend_cuda_reaches_the_kernel(
    on_emulator: list[Report], sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """From the public function through the arguments of the native module, sizes that need zeros among them."""
    inputs = draw(67, sizes, dtype, batch=2)
    with use_backend("cuda"):
        check(structure_attention(*inputs, scale=0.2), inputs, 0.2)
        without_gate = structure_attention(*inputs[:5], scale=0.2)
    check(without_gate, (*inputs[:5], None), 0.2)
    assert len(on_emulator) == 2 and all(report.faults == 0 for report in on_emulator)


@needs_native
def test_backend_cuda_takes_keys_of_other_tokens(on_emulator: list[Report]) -> None:
    """Structure in the dtype of the queries goes in as it is; in float32 it is centred over the keys first."""
    inputs, key_e = draw_keys(20, 67, (44, 30, 3))
    with use_backend("cuda"):
        check(structure_attention(*inputs, key_e=key_e), inputs, 44**-0.5, key_e)
        wide = (*inputs[:3], inputs[3].float() + 40.0, *inputs[4:])
        found = structure_attention(*wide, key_e=key_e.float() + 40.0)
    torch.testing.assert_close(found, structure_attention_reference(*inputs, 44**-0.5, key_e), atol=0.02, rtol=0.02)
    assert len(on_emulator) == 2 and all(report.faults == 0 for report in on_emulator)


@needs_native
def test_backend_cuda_takes_rows_that_start_anywhere(on_emulator: list[Report]) -> None:
    inputs = draw(5)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in inputs[:3]]
    with use_backend("cuda"):
        check(structure_attention(*shifted, *inputs[3:]), inputs)


@needs_native
def test_backend_cuda_names_what_it_cannot_take(on_emulator: list[Report]) -> None:
    with use_backend("cuda"), pytest.raises(ValueError, match="d must be a multiple of 8 from 8 to 64, got 72"):
        structure_attention(*draw(5, (72, 64, 15)))


def test_emulated_product_has_the_fragments_of_the_ptx_manual(emulator: Emulator) -> None:
    """Written from its formulas for element i of a fragment: a_0..a_7, b_0..b_3, c_0..c_3."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).half() for shape in ((16, 16), (16, 8)))
    c = torch.randn(16, 8, generator=generator)
    held_a, held_b, held_c = torch.empty(32, 8).half(), torch.empty(32, 4).half(), torch.empty(32, 4)
    group = [lane >> 2 for lane in range(32)]
    thread = [lane % 4 for lane in range(32)]
    for lane in range(32):
        for i in range(8):
            row = group[lane] + (0 if i < 2 or 4 <= i < 6 else 8)
            held_a[lane, i] = a[row, thread[lane] * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(4):
            held_b[lane, i] = b[thread[lane] * 2 + (i & 1) + (8 if i >= 2 else 0), group[lane]]
            held_c[lane, i] = c[group[lane] + (8 if i >= 2 else 0), thread[lane] * 2 + (i & 1)]
    call(emulator.library.simt_multiply_add, held_a, held_b, held_c, ctypes.c_bool(False))
    exact = a.float() @ b.float() + c
    for lane in range(32):
        for i in range(4):
            want = exact[group[lane] + (8 if i >= 2 else 0), thread[lane] * 2 + (i & 1)]
            torch.testing.assert_close(held_c[lane, i], want)


def test_triton_places_fragments_where_the_ptx_manual_does() -> None:
    """A second source for the layouts above, one that ran on GPUs: each bit of a register's or lane's index."""
    layouts = pytest.importorskip("triton.experimental.gluon.language._layouts")
    try:
        from triton._C.libtriton import gluon_ir, ir

        context = ir.context()
        ir.load_dialects(context)
        builder = gluon_ir.GluonOpBuilder(context)
        c = layouts.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
        found = {}
        for name, layout, shape in (
            ("a", layouts.DotOperandLayout(0, c, 2), [16, 16]),
            ("b", layouts.DotOperandLayout(1, c, 2), [16, 8]),
            ("c", c, [16, 8]),
        ):
            linear = builder.to_linear_layout(layout._to_ir(builder), shape)
            found[name] = (linear.reg_bases, linear.lane_bases)
    except (AttributeError, ImportError, TypeError) as error:
        pytest.skip(f"this Triton does not tell its layouts: {error}")
    rows = [[1, 0], [2, 0], [4, 0]]
    assert found == {
        "a": ([[0, 1], [8, 0], [0, 8]], [[0, 2], [0, 4], *rows]),
        "b": ([[1, 0], [8, 0]], [[2, 0], [4, 0], [0, 1], [0, 2], [0, 4]]),
        "c": ([[0, 1], [8, 0]], [[0, 2], [0, 4], *rows]),
    }


@pytest.mark.parametrize("transposed", [False, True])
def test_emulated_ldmatrix_gives_a_lane_two_of_a_row(emulator: Emulator, transposed: bool) -> None:
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    words = torch.empty(32, 4, 2, dtype=torch.int16)
    call(emulator.library.simt_load_matrices, matrices, words, ctypes.c_bool(transposed))
    given = matrices.mT if transposed else matrices
    # Lane 4 i + j of matrix m: elements 2 j and 2 j + 1 of row i.
    assert torch.equal(words.permute(1, 0, 2).reshape(4, 8, 8), given)


def call(function, *arguments) -> None:
    function(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments))


def test_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    # Without optimization: templates under two sanitizers take g++ twice as long with it.
    sanitize = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = compile_objects(tmp_path, (*SOURCES, "tests/ops/simt/check.cpp"), *sanitize)
    program = link(objects, tmp_path / "check", *sanitize)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "0 faults\n", done.stderr
