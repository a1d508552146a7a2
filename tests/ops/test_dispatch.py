"""Backends by name and by device, and the package without its native module."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ovsdino import ops
from ovsdino.ops import dispatch
from tests.ops.harness import needs_native


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )


POOL = "print(ops.mask_pool(torch.ones(1, 4, 2), torch.ones(1, 1, 4))[1].item())\n"


def test_without_the_native_module_ops_run_one_line_says_so_and_its_backend_by_name_raises() -> None:
    program = f"""
import sys
sys.modules["ovsdino._C"] = None
import torch
from ovsdino import ops
try:
    {POOL}
except ValueError as error:
    print(error)
with ops.use_backend("auto"):
    {POOL}
"""
    done = run(program, OVSDINO_BACKEND="cpu")
    error, result = done.stdout.splitlines()
    assert error.startswith("backend 'cpu' of mask_pool cannot run: ovsdino._C is missing") and result == "4.0"
    assert done.stderr.count("ovsdino._C is missing") == 1


@needs_native
def test_stale_native_module_counts_as_missing() -> None:
    done = run("from ovsdino import _C; _C.VERSION = -1\nimport torch\nfrom ovsdino import ops\n" + POOL)
    assert done.stdout == "4.0\n" and "it is of version -1" in done.stderr


def test_environment_variable_names_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVSDINO_BACKEND", raising=False)
    assert dispatch.environment_backend() == "auto"
    for value, backend in {"": "auto", "auto": "auto", "reference": "reference", "nonsense": "nonsense"}.items():
        monkeypatch.setenv("OVSDINO_BACKEND", value)
        assert dispatch.environment_backend() == backend


def test_unknown_name_from_the_environment_raises_when_an_op_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch._State, "requested", "fast")
    with pytest.raises(ValueError, match=r"unknown backend 'fast' \(OVSDINO_BACKEND\)"):
        ops.mask_pool(torch.ones(1, 4, 2), torch.ones(1, 1, 4))


@needs_native
def test_auto_picks_the_native_kernels_on_the_cpu() -> None:
    with ops.use_backend("auto"):
        assert dispatch.resolve("mask_pool", "cpu") == dispatch.resolve("upsample_argmax", "cpu") == "cpu"
        assert dispatch.resolve("mask_pool", "cpu", torch.float64) == "reference"
    assert ops.available("upsample_argmax", "cpu") == ["cpu", "reference"]


def test_backend_that_cannot_run_raises_with_the_reason() -> None:
    with ops.use_backend("cuda"), pytest.raises(ValueError, match="runs on cuda tensors, got cpu"):
        ops.mask_pool(torch.ones(1, 4, 2), torch.ones(1, 1, 4))


ATTEND = """
import torch
from ovsdino import ops
x = torch.ones(1, 1, 2, 4)
try:
    with ops.use_backend("triton"):
        print(ops.structure_attention(x, x, x, x, torch.ones(1)).sum().item())
except ValueError as error:
    print(error)
"""


def test_triton_on_cpu_tensors_asks_for_its_interpreter() -> None:
    assert "with TRITON_INTERPRET=1 in the environment" in run(ATTEND, TRITON_INTERPRET="0").stdout
    assert run(ATTEND, TRITON_INTERPRET="1").stdout == "8.0\n"


def test_without_triton_its_backend_raises_and_the_others_run() -> None:
    hidden = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
"""
    done = run(f"{hidden}{ATTEND}print(ops.structure_attention(x, x, x, x, torch.ones(1)).sum().item())")
    error, result = done.stdout.splitlines()
    assert "triton is not installed" in error and result == "8.0"


@needs_native
def test_dtype_that_a_named_backend_lacks_raises() -> None:
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="float64"):
        ops.mask_pool(torch.ones(1, 4, 2, dtype=torch.float64), torch.ones(1, 1, 4))


def test_a_backend_of_other_ops_leaves_an_op_on_auto_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._State.said.clear()
    with caplog.at_level("INFO", "ovsdino.ops"), ops.use_backend("sdpa"):
        for _ in range(2):
            means, _ = ops.mask_pool(torch.ones(1, 4, 2), torch.ones(1, 1, 4))
    assert (means == 1).all()
    assert len(caplog.records) == 1 and "mask_pool has no backend 'sdpa'" in caplog.text


def test_use_backend_ends_with_its_block_and_refuses_unknown_names() -> None:
    before = dispatch.requested()
    with pytest.raises(RuntimeError), ops.use_backend("reference"):
        assert dispatch.requested() == "reference"
        raise RuntimeError
    assert dispatch.requested() == before
    with (
        pytest.raises(ValueError, match=r"unknown backend 'fastest'.*auto, reference"),
        ops.use_backend("fastest"),
    ):
        pass
