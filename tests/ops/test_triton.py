"""Triton's side of structure_attention: limits, choice of tile sizes, what compilers make of it, and runs on a GPU.

Its results are tested with those of every backend in test_structure_attention.py.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ovsdino.ops import dispatch, structure_attention, use_backend
from ovsdino.ops.structure_attention import structure_attention_reference
from tests.ops import bounds
from tests.ops.harness import assert_within
from tests.ops.test_structure_attention import draw, run_and_differentiate

pytestmark = pytest.mark.skipif(not dispatch.has_triton, reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled where there is a GPU")


@needs_interpreter
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (
            {"q": torch.zeros(1, 2, 5, 136), "k": torch.zeros(1, 2, 5, 136)},
            "d and dv up to 128 and r up to 16, got 136",
        ),
        ({"e": torch.zeros(1, 2, 5, 17)}, "r up to 16, got 4, 4 and 17"),
        ({"v": torch.zeros(1, 2, 5, 4, dtype=torch.float16)}, "one dtype, got torch.float32, .* torch.float16"),
        ({"e": torch.zeros(1, 2, 5, 2, dtype=torch.float64)}, "no float64"),
        ({x: torch.zeros(1, 2, 5, 4, dtype=torch.float64) for x in "qkv"}, "got float64"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(change: dict[str, torch.Tensor], shown: str) -> None:
    inputs = dict(zip(("q", "k", "v", "e", "lam", "gate"), draw(1, 2, 5, 4, 4, 2, torch.float32), strict=True))
    with use_backend("triton"), pytest.raises(ValueError, match=shown):
        structure_attention(**{**inputs, **change})


@needs_interpreter
def test_a_gradient_without_what_forward_keeps_raises() -> None:
    inputs = [x.requires_grad_() for x in draw(1, 1, 3, 4, 4, 2, torch.float32)]
    out, plain, level = torch.ops.ovsdino.structure_attention_triton(*inputs, 0.5, False)
    assert plain.numel() == level.numel() == 0
    with pytest.raises(ValueError, match="keep=True"):
        out.sum().backward()


@needs_interpreter
def test_output_lies_in_memory_by_token() -> None:
    inputs = draw(2, 3, 5, 4, 6, 2, torch.float32)
    with use_backend("triton"):
        assert structure_attention(*inputs).transpose(1, 2).is_contiguous()


def test_chunks_of_a_row_cover_it_and_are_the_shortest_that_compile_soundly() -> None:
    from ovsdino.kernels.tiles import Sizes

    # (d, dv) -> widths of the dot products over [q | f] and over v
    expected = {(48, 64): (64, 0, 64), (64, 64): (64, 16, 64), (40, 32): (64, 0, 64), (56, 24): (64, 16, 64)}
    expected |= {(1, 1): (32, 0, 64), (80, 100): (64, 32, 128), (128, 128): (128, 16, 128)}
    assert {pair: Sizes.of(*pair)[1:3] + Sizes.of(*pair)[4:] for pair in expected} == expected


@needs_interpreter
@pytest.mark.parametrize("strength", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("unit", [1.0, 0.29])
@pytest.mark.parametrize("tokens", [5, 700])  # the shift is the mean of all tokens, or of a sample of them
def test_prepared_rows_say_what_the_distance_is(tokens: int, unit: float, strength: float) -> None:
    from ovsdino.kernels.structure_attention import Inputs, prepare

    r, scale = 3, 0.2
    q, k, v, e, lam, _ = draw(1, 2, tokens, 8, 8, r, torch.float32)
    lam = torch.full_like(lam, strength)
    f, near, column = prepare(Inputs(q.half(), k.half(), v.half(), e + 3.0, lam, None, scale), unit)[0]
    assert (f[..., r] == 1).all() and not f[..., r + 1 :].any() and not near[..., r:].any()
    places, partners = f[..., :r].double(), near[..., :r].double()
    root = math.sqrt(2 * strength / scale)
    ratio = min(1.0, 4.0 ** math.floor(math.log2(root))) if root > 0 else 0.0  # a power of four: exact above 2^-14
    torch.testing.assert_close(partners, ratio * places, rtol=0, atol=2.0**-24)
    # The column is that of the rounded f, to the last bits of float32.
    expected = -0.5 * unit * ratio * places.square().sum(-1)
    torch.testing.assert_close(column.double(), expected, rtol=1e-6, atol=1e-9)
    squared = scale * ratio / 2 * (places.unsqueeze(3) - places.unsqueeze(2)).square().sum(-1)
    exact = strength * (e.double().unsqueeze(3) - e.double().unsqueeze(2)).square().sum(-1)
    torch.testing.assert_close(squared, exact, rtol=5e-3, atol=2e-3 * strength)


def calls_of(tokens: int, d: int, dv: int, r: int) -> list:
    from ovsdino.kernels.compile import calls

    return calls(torch.float16, d, dv, r, tokens)


@needs_interpreter
def test_calls_that_differ_in_rank_are_one_kernel() -> None:
    constants = {r: [call.constants for call in calls_of(200, 48, 64, r)] for r in (1, 3, 15, 16)}
    assert constants[1] == constants[3] == constants[15] != constants[16]  # of 16 no lane is left for the sums
    assert [call.arguments["rank"] for call in calls_of(200, 48, 64, 3) if "rank" in call.arguments] == [3] * 4


@needs_interpreter
def test_many_shapes_are_few_compilations() -> None:
    from ovsdino.kernels.configs import candidates

    variants, launches = set(), 0
    for tokens, (d, dv), r in itertools.product(
        (7, 65, 128, 129, 200, 1024, 1025, 1369, 4096), ((48, 64), (40, 64), (64, 64)), (1, 3, 15, 16)
    ):
        for call in calls_of(tokens, d, dv, r):
            constants = call.constants | call.sizes(candidates(call.name.split(",")[0], torch.float16)[0])
            variants.add((call.name, *sorted(constants.items())))
            launches += 1
    assert launches == 9 * 3 * 4 * 7
    assert len(variants) <= 40, Counter(name for name, *_ in variants)


@needs_interpreter
def test_widths_of_one_padding_share_a_measurement() -> None:
    choices = {sizes: [call.choice() for call in calls_of(*sizes)] for sizes in ((200, 48, 64, 15), (250, 40, 32, 3))}
    assert len({tuple(found) for found in choices.values()}) == 1
    assert choices[200, 48, 64, 15] != [call.choice() for call in calls_of(300, 48, 64, 15)]
    assert choices[200, 48, 64, 15] != [call.choice() for call in calls_of(200, 64, 64, 15)]


@needs_interpreter
def test_few_tokens_take_the_default_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovsdino.kernels import structure_attention
    from ovsdino.kernels.configs import candidates

    asked = []
    monkeypatch.setattr(structure_attention._tuner, "choose", lambda key, found, launch: asked.append(key) or found[-1])
    monkeypatch.setattr(structure_attention, "_configs", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for tokens in (128, 129):
        found = [call._tuned(torch.device("cpu")) for call in calls_of(tokens, 48, 64, 15)[:2]]
        place = 0 if tokens == 128 else -1
        assert found == [candidates(name, torch.float16)[place] for name in ("prepare", "forward")]
    assert len(asked) == 2 and "tokens=256" in asked[1] and "D0=64" in asked[1]


class Clock:
    """Stands for a card: launches take the time their configuration says."""

    def __init__(self, times: dict) -> None:
        self.times, self.launched = times, []

    def bench(self, function, **_) -> float:
        function()
        return self.times[self.launched[-1]]


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """(new tuner, candidates, clock, cache file) with measurements allowed and a clock in place of the card's."""
    from ovsdino.kernels import tuning

    candidates = [tuning.Config(64, 64, 4, 2), tuning.Config(128, 64, 8, 3), tuning.Config(32, 32, 4, 1, 96)]
    clock = Clock(dict(zip(candidates, (3.0, 1.0, 2.0), strict=True)))
    monkeypatch.setattr(tuning, "interpreting", lambda: False)
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "cache_file", lambda: tmp_path / "new" / "tiles.json")
    monkeypatch.setattr(tuning.triton.testing, "do_bench", clock.bench)
    return tuning.Tuner, candidates, clock, tmp_path / "new" / "tiles.json"


def test_fastest_tile_sizes_are_measured_once_and_outlive_the_process(tuned) -> None:
    new, candidates, clock, file = tuned
    tuner = new()
    for _ in range(2):
        assert tuner.choose("a", candidates, clock.launched.append) == candidates[1]
    assert clock.launched == candidates
    assert new().choose("a", candidates, clock.launched.append) == candidates[1]
    assert clock.launched == candidates  # read from the file
    assert json.loads(file.read_text()) == {"a": [128, 64, 8, 3, 0]}
    new().choose("b", candidates, clock.launched.append)
    assert set(json.loads(file.read_text())) == {"a", "b"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"a": 5}', b'{"a": ["x", 1, 1, 1]}', b'{"a": [1]}', b"\xff\xfe", b'{"a": [1,2,3,4]}'],
)
def test_damaged_cache_file_is_measured_over(tuned, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    new, candidates, clock, file = tuned
    file.parent.mkdir()
    file.write_bytes(content)
    with caplog.at_level("WARNING", "ovsdino.kernels"):
        assert new().choose("a", candidates, clock.launched.append) == candidates[1]
    assert clock.launched == candidates
    if content != b'{"a": [1,2,3,4]}':  # that one is sound, of another version's candidates
        assert "is ignored" in caplog.text
    assert json.loads(file.read_text()) == {"a": [128, 64, 8, 3, 0]}


def test_cache_that_cannot_be_written_costs_only_the_file(tuned, tmp_path: Path) -> None:
    new, candidates, clock, file = tuned
    file.parent.write_text("a file where the folder should be")
    assert new().choose("a", candidates, clock.launched.append) == candidates[1]


def test_tile_sizes_that_do_not_fit_are_left_out(tuned) -> None:
    from triton.runtime.errors import OutOfResources

    new, candidates, clock, _ = tuned

    def launch(config) -> None:
        if config == candidates[1]:
            raise OutOfResources(300_000, 232_448, "shared memory")
        clock.launched.append(config)

    assert new().choose("a", candidates, launch) == candidates[2]


def test_nothing_is_measured_while_a_graph_is_captured(tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovsdino.kernels import tuning

    new, candidates, clock, file = tuned
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: True)
    assert new().choose("a", candidates, clock.launched.append) == candidates[0]
    assert not clock.launched and not file.exists()


def compile_kernels(*arguments: str) -> list[dict]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "ovsdino.kernels.compile", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_fits(rows: list[dict]) -> None:
    limits = {80: 166_912, 87: 166_912, 90: 232_448}
    for row in rows:
        assert row["spills"] == 0 and row["registers"] <= 255 and row["shared"] <= limits[row["arch"]], row
        if row["kernel"] not in ("prepare", "rows", "places") and row["dtype"] != "float32":
            assert row["matrix"] == ("HGMMA" if row["arch"] == 90 else "HMMA"), row


def test_kernels_compiled_for_orin_and_hopper_spill_nothing() -> None:
    rows = compile_kernels("--archs", "87,90", "--dtypes", "float16")
    assert len(rows) == 14
    assert_fits(rows)


def test_turns_of_the_loops_hold_no_more_instructions_than_counted() -> None:
    """Count what a lane does at a turn of each loop, for 32 logits of its own, and 16 in the backward kernels.

    A logit is one multiply-add into the exponent in the backward kernels, whose tiles are found by one addition: with
    pointers made anew and a bias that is added they had 250 and 230. The same took the forward kernel from 380 to 332
    and made it slower, so it has 32 multiply-adds, 32 differences, 32 sums and 32 products with the shrinking result.
    """
    rows = {row["kernel"]: row["turn"] for row in compile_kernels("--archs", "90", "--dtypes", "float16")}
    most = {"forward": (385, 136), "keys": (230, 50), "queries": (200, 50)}
    for kernel, (instructions, arithmetic) in most.items():
        turn = rows[kernel]
        assert sum(turn.values()) <= instructions, (kernel, turn)
        assert sum(turn.get(name, 0) for name in ("FFMA", "FADD", "FMUL")) <= arithmetic, (kernel, turn)
    # The column of 32 keys in loads of 8 bytes, each of the lane's own logits; through shared memory it was 6 more.
    assert rows["queries"]["LDG"] == 4 and rows["queries"]["LDS"] <= 3 and "STS" not in rows["queries"]


@pytest.mark.slow
def test_every_default_compiled_for_every_card_spills_nothing() -> None:
    rows = compile_kernels()
    assert len(rows) == 3 * 3 * 7
    assert_fits(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_capture_in_a_cuda_graph(backend: str) -> None:
    if dispatch.why_not("structure_attention", backend, "cuda", torch.float16):
        pytest.skip("not built")
    inputs = [x.half() for x in draw(1, 4, 1025, 48, 64, 15, device="cuda")]
    with use_backend(backend), torch.no_grad():
        expected = structure_attention(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = structure_attention(*inputs)
        out.zero_()
        graph.replay()
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_capture_in_a_cuda_graph_before_any_other_call_takes_the_default() -> None:
    inputs = [x.half() for x in draw(1, 3, 260, 24, 40, 7, device="cuda")]
    graph = torch.cuda.CUDAGraph()
    with use_backend("triton"), torch.no_grad(), torch.cuda.graph(graph):
        out = structure_attention(*inputs)
    graph.replay()
    wide = tuple(x.double() for x in inputs)
    bound = bounds.attention(wide, 24**-0.5, torch.float16, "triton")
    assert_within(out, structure_attention_reference(*wide, 24**-0.5), bound[0])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_memory_beyond_the_output_is_linear_in_the_tokens(backend: str) -> None:
    if dispatch.why_not("structure_attention", backend, "cuda", torch.float16):
        pytest.skip("not built")
    tokens, heads = 16384, 4
    inputs = [x.half() for x in draw(1, heads, tokens, 48, 64, 15, device="cuda")]
    with use_backend(backend), torch.no_grad():
        structure_attention(*inputs)  # measures tile sizes, loads kernels
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = structure_attention(*inputs)
        extra = torch.cuda.max_memory_allocated() - before - out.numel() * 2
    assert extra < heads * tokens * 100, f"{extra / heads / tokens:.0f} bytes a token and head"  # f, near, column: 68


@pytest.mark.gpu
def test_training_memory_is_linear_in_the_tokens() -> None:
    tokens, heads = 16384, 4
    inputs = [x.half() for x in draw(1, heads, tokens, 48, 64, 15, device="cuda")]
    grad = torch.randn_like(inputs[2])
    with use_backend("triton"):
        run_and_differentiate(structure_attention, inputs, grad)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_and_differentiate(structure_attention, inputs, grad)
    assert (torch.cuda.max_memory_allocated() - before) / heads / tokens < 3000


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    tokens, wide = 1025, 2**21  # the last token lies 2^31 + elements in
    if torch.cuda.get_device_properties(0).total_memory < 12 * 2**30:
        pytest.skip("needs 12 GB")
    storage = torch.zeros(tokens, wide, dtype=torch.float16, device="cuda")
    *plain, lam, gate = draw(1, 1, tokens, 48, 64, 15, device="cuda")
    plain, strided, start = [x.half() for x in plain], [], 0
    for x in plain:
        view = storage[:, start : start + x.shape[-1]]
        view.copy_(x[0, 0])
        strided.append(view[None, None])
        start += 64
    lam, gate = lam.float(), gate.half()
    with use_backend("triton"), torch.no_grad():
        found, expected = structure_attention(*strided, lam, gate), structure_attention(*plain, lam, gate)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
