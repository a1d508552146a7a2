"""The decisions of the native build before it compiles, and its messages on missing parts."""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build_native() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "scripts" / "build_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a CUDA_HOME whose nvcc knows SM 75 to 120, with nothing on PATH."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nfor sm in 75 80 86 87 88 89 90 100 120; do echo sm_$sm; done\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for name in ("OVSDINO_CUDA", "OVSDINO_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return nvcc


def test_auto_takes_nvcc_below_cuda_home(build_native: ModuleType, toolkit: Path) -> None:
    assert build_native.choose_nvcc() == str(toolkit)


def test_zero_builds_without_cuda_although_nvcc_is_there(
    build_native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSDINO_CUDA", "0")
    assert build_native.choose_nvcc() is None


def test_auto_without_nvcc_builds_without_cuda(
    build_native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME")
    assert build_native.choose_nvcc() is None


def test_one_without_nvcc_names_the_mend(
    build_native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("OVSDINO_CUDA", "1")
    with pytest.raises(build_native.BuildError, match=r"OVSDINO_CUDA=1 but nvcc is neither .*set CUDA_HOME"):
        build_native.choose_nvcc()


def test_an_unknown_wish_is_refused(build_native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSDINO_CUDA", "yes")
    with pytest.raises(build_native.BuildError, match="expected auto, 0 or 1"):
        build_native.choose_nvcc()


def test_default_architectures_are_ours_and_the_newer_ones(build_native: ModuleType, toolkit: Path) -> None:
    assert build_native.choose_archs(str(toolkit)) == ["80", "86", "87", "89", "90", "100", "120"]


@pytest.mark.parametrize("named", ["87;90", "87,90", " 87 90 "])
def test_named_architectures_win(
    build_native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("OVSDINO_CUDA_ARCHS", named)
    assert build_native.choose_archs(str(toolkit)) == ["87", "90"]


@pytest.mark.parametrize("named", ["70", "sm_90", "ninety"])
def test_an_architecture_the_toolkit_lacks_is_refused(
    build_native: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("OVSDINO_CUDA_ARCHS", named)
    with pytest.raises(build_native.BuildError, match=r"knows 75;80;.*;120, not "):
        build_native.choose_archs(str(toolkit))


def test_a_compiler_that_is_not_there_is_no_compiler(build_native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert build_native.find_compiler() is None
    assert "CXX=no-such-compiler" in build_native.why_unavailable()


def test_the_module_is_replaced_not_overwritten(build_native: ModuleType, tmp_path: Path) -> None:
    """A process that has the old module mapped keeps its file: the new one gets an inode of its own."""
    old, new = tmp_path / "old.so", tmp_path / "new.so"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with old.open("rb") as mapped:
        build_native.place(new, old)
        assert mapped.read() == b"old"
        assert os.fstat(mapped.fileno()).st_ino != old.stat().st_ino
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize(("kib", "expected"), [(900_000, 1), (3_300_000, 2), (64_000_000, 4)])
def test_as_many_compilers_run_as_fit_into_memory(
    build_native: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int, expected: int
) -> None:
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    monkeypatch.setattr(build_native.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    (tmp_path / "meminfo").write_text(f"MemTotal: 99000000 kB\nMemAvailable:   {kib} kB\n")
    assert build_native.choose_jobs(tmp_path / "meminfo") == str(expected)
    assert build_native.choose_jobs(tmp_path / "none") == "4"


def test_a_named_number_of_compilers_is_kept(build_native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "3")
    assert build_native.choose_jobs() == "3"
