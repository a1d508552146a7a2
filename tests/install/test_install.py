"""Wheels, sdists and editable installs, each built for real and imported from outside the repository."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.install.sandbox import ROOT, Environment, attempt, check, pip

IMPORT_ALL = """
import ovsdino, ovsdino._C, ovsdino.kernels, ovsdino.deploy, ovsdino.benchmarks
for module in (ovsdino, ovsdino._C, ovsdino.kernels, ovsdino.deploy, ovsdino.benchmarks):
    print(module.__file__)
"""


def expected_sources() -> set[str]:
    """Return the wheel's path of every source and weight file of the repository."""
    weights = (ROOT / "ovsdino" / "weights").glob("*")
    names = {
        f"ovsdino/weights/{path.name}" for path in weights if path.suffix in (".safetensors", ".json", ".md", ".onnx")
    }
    for folder, package in (
        ("ovsdino", "ovsdino"),
        ("kernels/triton", "ovsdino/kernels"),
        ("deploy", "ovsdino/deploy"),
        ("benchmarks", "ovsdino/benchmarks"),
    ):
        names |= {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    names -= {"ovsdino/deploy/triton/client.py"}  # an example to copy
    names |= {f"ovsdino/serve/{name}" for name in ("page.css", "viewer.js")}
    names |= {f"ovsdino/configs/{path.name}" for path in (ROOT / "configs").glob("*.*")}
    return names | {"ovsdino/py.typed", "ovsdino/contrast.txt", "ovsdino/grounded.txt", "ovsdino/ops/measured.json"}


def packed(wheel: Path) -> set[str]:
    """Return the files of a wheel, its metadata left out."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_name_of_a_known_package_is_not_taken() -> None:
    """A regular package called ``kernels`` at the root would shadow the one that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "kernels" / "triton" / "__init__.py").is_file()


def test_the_version_is_written_once() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert text.count('\nversion = "') == 1
    version = text.split('\nversion = "')[1].split('"')[0]
    assert version not in (ROOT / "setup.py").read_text() + (ROOT / "ovsdino" / "__init__.py").read_text()


def test_without_a_compiler_a_pure_wheel_is_built_and_says_why(
    source: Path, environment: Environment, outside: Path, no_tools: Path
) -> None:
    output = environment.install(source, PATH=str(no_tools), CC="", CXX="")
    assert "ovsdino: installing without native code: no C++ compiler found" in output
    assert "ovsdino-0.1.0-py3-none-any.whl" in output
    code = "import importlib.util as u, ovsdino.kernels, ovsdino.ops; print(u.find_spec('ovsdino._C'))"
    assert environment.run(code, outside).splitlines()[-1] == "None"


def test_cuda_asked_for_without_nvcc_fails_in_one_clear_line(source: Path, tmp_path: Path, no_tools: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    command = pip("wheel", "-v", "--no-build-isolation", "--no-deps", "-w", tmp_path / "wheels", source)
    done = attempt(*command, PATH=str(no_tools), CXX=compiler, OVSDINO_CUDA="1", CUDA_HOME="")
    assert done.returncode != 0
    assert "error: OVSDINO_CUDA=1 but nvcc is neither on PATH nor below CUDA_HOME" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "wheels").glob("*.whl"))


@pytest.mark.slow
def test_a_compiler_that_fails_is_an_error(source: Path, tmp_path: Path) -> None:
    (source / "csrc" / "bindings.cpp").write_text("not C++\n")
    command = pip("wheel", "-v", "--no-build-isolation", "--no-deps", "-w", tmp_path / "wheels", source)
    done = attempt(*command, OVSDINO_CUDA="0")
    assert done.returncode != 0
    assert "error: the native build failed" in done.stdout
    assert not list((tmp_path / "wheels").glob("*.whl"))


@pytest.mark.slow
def test_the_headers_that_torch_ships_do_where_pybind11_is_missing(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torch_only"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "torch").symlink_to(Path(torch.__file__).parent)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for cmake and ninja
    python = folder / "bin" / "python"
    built = tmp_path / "built"
    check(python, source / "scripts" / "build_native.py", "--output", built, PATH=path, OVSDINO_CUDA="0")
    assert "cuda" in check(python, "-c", "import _C; print(_C.build_info())", cwd=built)


@pytest.mark.slow
def test_editable_install_is_used_in_place(source: Path, environment: Environment, outside: Path) -> None:
    environment.install("-e", source, OVSDINO_CUDA="0")
    expected = [source / name for name in ("ovsdino", "ovsdino", "kernels/triton", "deploy", "benchmarks")]
    for folder in (outside, source):  # from the root, the folder ovsdino/ itself is found first
        files = environment.run(IMPORT_ALL, folder).splitlines()
        assert [Path(file).parent for file in files] == expected
    (module,) = (source / "ovsdino").glob("_C*.so")
    assert attempt("git", "check-ignore", "-q", f"ovsdino/{module.name}", cwd=ROOT).returncode == 0
    (source / "deploy" / "added_later.py").write_text("value = 7\n")
    assert environment.run("import ovsdino.deploy.added_later as m; print(m.value)", outside) == "7"
    assert "0.1.0" in environment.run("import ovsdino; print(ovsdino.__version__)", outside)


@pytest.mark.slow
def test_wheel_built_in_isolation_holds_every_file(
    source: Path, environment: Environment, outside: Path, build_wheel: Callable[..., Path]
) -> None:
    """With pip's own build environment, so that pyproject.toml must name every build tool, and torch is not there."""
    stale = (
        source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "ovsdino" / "deleted.py"
    )
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    wheel = build_wheel(source, "--use-pep517", OVSDINO_CUDA="0")
    files = packed(wheel)
    natives = {name for name in files if name.startswith("ovsdino/_C")}
    assert len(natives) == 1
    assert files - natives == expected_sources()
    environment.install(wheel)
    site = environment.folder / "lib"
    for file in environment.run(IMPORT_ALL, outside).splitlines():
        assert Path(file).is_relative_to(site)
    check(environment.folder / "bin" / "ovsdino", "--help", cwd=outside)


@pytest.mark.slow
def test_sdist_makes_the_same_wheel(source: Path, tmp_path: Path, build_wheel: Callable[..., Path]) -> None:
    folder = tmp_path / "sdist"
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    check(sys.executable, "-c", code, folder, cwd=source)
    (sdist,) = folder.glob("ovsdino-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"CMakeLists.txt", "LICENSE", "csrc/bindings.cpp", "scripts/build_native.py"} <= names
    files = packed(build_wheel(sdist, OVSDINO_CUDA="0"))
    assert {name for name in files if not name.startswith("ovsdino/_C")} == expected_sources()
    assert any(name.startswith("ovsdino/_C") for name in files)


@pytest.mark.slow
def test_nvcc_compiles_cuda_objects_without_a_gpu(
    source: Path, environment: Environment, outside: Path, build_wheel: Callable[..., Path]
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH")
    wheel = build_wheel(source, OVSDINO_CUDA="1", OVSDINO_CUDA_ARCHS="87;90", CUDA_VISIBLE_DEVICES="-1")
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.startswith("ovsdino/_C"))
        assert b".nv_fatbin" in archive.read(module)
    environment.install(wheel)
    info = environment.run("import ovsdino._C as c; print(c.build_info())", outside)
    assert "'cuda': True" in info and "87" in info and "90" in info
