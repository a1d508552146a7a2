"""The benchmark of the ops: its GPU rows tried out on the CPU at the least sizes, and its report."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ovsdino.benchmarks import ops as benchmark
from ovsdino.benchmarks.lib import op_cases
from ovsdino.ops import use_backend
from tests.ops.table import outputs

FACTS = {
    "cpu": "this one",
    "threads": 1,
    "torch": torch.__version__,
    "bandwidth_gbs": 10.0,
    "gemm_gflops": 100.0,
    "rates_gflops": {"float32": 100.0, "float16": 200.0},
}
KEYS = {"op", "case", "device", "dtype", "ours_ms", "baseline_ms", "ratio", "floor", "bound_ms"} | {
    "strongest",
    "ratio_strongest",
    "ours_least_ms",
    "baseline_least_ms",
    "load_average",
}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("cases", op_cases.CASES, ids=lambda cases: cases.__name__)
def test_both_sides_of_every_row_do_the_same(cases, gpu: bool) -> None:
    seen = 0
    for case in cases(op_cases.Setting(device="cpu", gpu=gpu, tiny=True)):
        seen += 1
        if "FlexAttention" in case.baseline_name or "torch.compile" in case.baseline_name:
            continue  # compiled; tried out below and in test_rivals.py
        if "numba" in case.baseline_name and not importlib.util.find_spec("numba"):
            continue
        with use_backend(case.backend):
            ours = outputs(case.ours(*case.inputs))
        try:
            baseline = outputs(case.baseline(*case.inputs))
        except RuntimeError as error:
            assert "No viable backend" in str(error)  # of SDPA, on the CPU
            continue
        if case.op == "upsample_argmax" and "confidence" in case.case:
            ours = ours[1:]
        for a, b in zip(ours, baseline, strict=False):
            if case.op in ("upsample_argmax", "pipeline") and not a.is_floating_point():
                assert (a != b).float().mean() < 0.01
            elif "INTER_AREA" in case.baseline_name:
                assert (a - b).abs().mean() < 0.5  # another filter
            else:
                torch.testing.assert_close(a.float(), b.float(), atol=0.05, rtol=0.05)
        assert case.bytes > 0
    assert seen or (gpu and cases is op_cases.attention_cases)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_op() -> None:
    inputs = op_cases.attention_inputs(op_cases.Setting(device="cpu", gpu=False, tiny=True), 20)
    torch.testing.assert_close(
        op_cases.flexible(compiled=False)(*inputs), op_cases.folded(*inputs), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("gpu", [False, True])
def test_report_has_the_rows_of_the_contract(gpu: bool) -> None:
    setting = op_cases.Setting(device="cpu", gpu=gpu, tiny=True)
    report = benchmark.measured(setting, FACTS, 0.01, True, ["upsample_argmax", "preprocess"])
    rows = report["results"]
    assert not report["left_out"] and all(set(row) >= KEYS for row in rows)
    assert {row["op"] for row in rows} == {"upsample_argmax", "preprocess"}
    shares = [row for row in rows if row["baseline"] == benchmark.BOUND]
    assert bool(shares) == gpu and all(row["floor"] == op_cases.GPU_SHARE for row in shares)
    assert len(benchmark.table(report).splitlines()) == len(rows) + 2


def test_a_row_that_cannot_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting):
        def fail(*inputs):
            raise RuntimeError("no such kernel\nand more")

        yield op_cases.Case(op="preprocess", case="c", baseline_name="b", inputs=(), ours=fail, baseline=fail)

    monkeypatch.setattr(benchmark, "CASES", (*op_cases.CASES[:4], broken, *op_cases.CASES[5:]))
    setting = op_cases.Setting(device="cpu", gpu=False, tiny=True)
    report = benchmark.measured(setting, FACTS, 0.01, True, ["preprocess"])
    left_out = {"op": "preprocess", "case": "c", "baseline": "b", "reason": "RuntimeError: no such kernel"}
    assert report["left_out"] == [left_out]
    assert "no such kernel" in benchmark.table(report)


def test_strongest_rival_is_the_least_ratio_of_a_case_and_never_the_bound() -> None:
    case = {"op": "o", "case": "c", "dtype": "float32", "device": "cpu", "backend": "cpu"}
    rows = [
        {**case, "baseline": "slow", "ratio": 9.0},
        {**case, "baseline": "fast", "ratio": 1.5},
        {**case, "baseline": benchmark.BOUND, "ratio": 0.5},
        {**case, "backend": "sdpa", "baseline": "slow", "ratio": 7.0},
    ]
    benchmark.name_strongest(rows)
    found = [(row["strongest"], row["ratio_strongest"]) for row in rows]
    assert found == [("fast", 1.5)] * 3 + [("slow", 7.0)]
