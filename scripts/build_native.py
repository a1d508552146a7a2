"""Builds the native module ``ovsdino._C`` with CMake and ninja; needs the standard library and pybind11, not torch.

``setup.py`` calls it for wheels and editable installs. Run by hand it rebuilds the module in place:

    python scripts/build_native.py

``OVSDINO_CUDA=auto|0|1`` chooses CUDA (auto: when nvcc is on PATH or below CUDA_HOME) and ``OVSDINO_CUDA_ARCHS`` the
architectures, such as ``"87;90"``. Whether a GPU is present never matters.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ARCHS = (80, 86, 87, 89, 90)  # and whatever the toolkit knows above the last
EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class BuildError(RuntimeError):
    """The native build cannot go on; the message is one line that names the remedy."""


def find_compiler() -> str | None:
    """The C++ compiler CMake would take: ``$CXX`` or the first of the usual names on PATH; None where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = named[:1] or ["c++", "g++", "clang++", "cl"]
    return next((path for path in map(shutil.which, candidates) if path), None)


def why_unavailable() -> str | None:
    """Return the reason why this machine cannot build native code, with the remedy; None when it can."""
    if find_compiler() is None:
        named = os.environ.get("CXX")
        return f"CXX={named} not found" if named else "no C++ compiler found (install g++ or clang++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"no Python.h in {sysconfig.get_path('include')} (install python3-dev)"
    return None


def find_nvcc() -> str | None:
    """nvcc below ``$CUDA_HOME``, else on PATH; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None) or shutil.which("nvcc")


def choose_nvcc() -> str | None:
    """The nvcc to build with, or None for a build without CUDA, as ``OVSDINO_CUDA`` says.

    Raises:
        BuildError: ``OVSDINO_CUDA`` is 1 and there is no nvcc, or it is none of auto, 0, 1.
    """
    wish = os.environ.get("OVSDINO_CUDA", "auto").strip().lower() or "auto"
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"OVSDINO_CUDA={wish}: expected auto, 0 or 1")
    if wish == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None and wish == "1":
        raise BuildError(
            "OVSDINO_CUDA=1 but nvcc is neither on PATH nor below CUDA_HOME: "
            "install the CUDA toolkit and set CUDA_HOME, or set OVSDINO_CUDA=0"
        )
    return nvcc


def choose_archs(nvcc: str) -> list[str]:
    """CUDA architectures to build for: ``OVSDINO_CUDA_ARCHS``, else the defaults plus what the toolkit adds above.

    Raises:
        BuildError: nvcc does not answer, or ``OVSDINO_CUDA_ARCHS`` names an architecture that it does not know.
    """
    try:
        answer = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        remedy = "repair the toolkit or set OVSDINO_CUDA=0"
        raise BuildError(f"{nvcc} --list-gpu-code failed ({error}): {remedy}") from error
    known = sorted({int(number) for number in re.findall(r"sm_(\d+)\b", answer)})
    named = os.environ.get("OVSDINO_CUDA_ARCHS", "")
    wanted = [arch for arch in re.split(r"[;,\s]+", named) if arch]
    for arch in wanted:
        match = re.fullmatch(r"(\d+)[af]?(-real|-virtual)?", arch)
        if match is None or int(match[1]) not in known:
            raise BuildError(f"OVSDINO_CUDA_ARCHS={named}: {nvcc} knows {';'.join(map(str, known))}, not {arch}")
    return wanted or [str(arch) for arch in known if arch in DEFAULT_ARCHS or arch > DEFAULT_ARCHS[-1]]


def _find_tool(name: str) -> str:
    """Path of cmake or ninja: next to this interpreter first, since a system's may be too old, then on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise BuildError(f"{name} not found: pip install {name}")
    return path


TORCH_PYBIND11_CONFIG = """# Written by build_native.py for a machine without pybind11: the headers that torch ships.
add_library(pybind11::headers INTERFACE IMPORTED)
set_target_properties(pybind11::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "{include}")
function(pybind11_add_module name)
  set(sources ${{ARGN}})
  list(REMOVE_ITEM sources MODULE NO_EXTRAS THIN_LTO OPT_SIZE)
  Python_add_library(${{name}} MODULE WITH_SOABI ${{sources}})
  target_link_libraries(${{name}} PRIVATE pybind11::headers)
endfunction()
"""


def _pybind11_cmake_dir(build_dir: Path) -> str:
    """Folder of pybind11's CMake package; where pybind11 is not installed but torch is, one made for torch's copy."""
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        return pybind11.get_cmake_dir()
    torch = importlib.util.find_spec("torch")
    include = Path(torch.origin).parent / "include" if torch is not None and torch.origin else None
    if include is None or not (include / "pybind11" / "pybind11.h").is_file():
        raise BuildError("pybind11 not found: pip install pybind11")
    folder = build_dir / "pybind11-of-torch"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pybind11Config.cmake").write_text(TORCH_PYBIND11_CONFIG.format(include=include.as_posix()))
    return str(folder)


GIB_A_JOB = 1.5  # nvcc on the largest source takes 1.2 GiB for one architecture


def choose_jobs(memory: Path = Path("/proc/meminfo")) -> str:
    """Compilers to run at once: ``CMAKE_BUILD_PARALLEL_LEVEL``, else as many as cores and free memory allow.

    An Orin Nano has six cores and 8 GB for CPU and GPU together: ninja's own choice is killed there.
    """
    named = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if named:
        return named
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free = re.search(r"^MemAvailable:\s*(\d+) kB", memory.read_text(), re.M)
    except OSError:
        free = None
    return str(min(cores, max(1, int(int(free[1]) / 2**20 / GIB_A_JOB))) if free else cores)


def _run(command: list[str], remedy: str) -> None:
    print("+", shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        code = error.returncode
        raise BuildError(f"the native build failed with exit code {code} (output above); {remedy}") from None


def build(output_dir: Path) -> Path:
    """Configures and compiles ``_C``, and puts it into a folder.

    Args:
        output_dir: folder that receives ``_C<EXT_SUFFIX>``; made if it is missing.

    Returns:
        Path of the module.

    Raises:
        BuildError: something the build needs is missing, or the compiler failed.
    """
    reason = why_unavailable()
    if reason is not None:
        raise BuildError(reason)
    compiler, nvcc = find_compiler(), choose_nvcc()
    # A CMake cache is bound to its compilers, so each set of them has a folder of its own.
    key = hashlib.sha256(f"{compiler} {nvcc} {sys.prefix}".encode()).hexdigest()[:8]
    build_dir = ROOT / "build" / "native" / f"{sysconfig.get_config_var('SOABI')}-{'cuda' if nvcc else 'cpu'}-{key}"
    cmake = _find_tool("cmake")
    configure = [
        cmake,
        *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={_find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={_pybind11_cmake_dir(build_dir)}",
        f"-DOVSDINO_CUDA={'ON' if nvcc else 'OFF'}",
        f"-DOVSDINO_OUTPUT_DIR={build_dir / 'out'}",
    ]
    if nvcc:
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DOVSDINO_CUDA_ARCHS={';'.join(choose_archs(nvcc))}"]
        configure += [f"-DCMAKE_CUDA_COMPILER_LAUNCHER={sys.executable};{ROOT / 'scripts' / 'keep_report.py'}"]
    remedy = "OVSDINO_CUDA=0 builds without CUDA" if nvcc else "repair the compiler or the source"
    _run(configure, remedy)
    _run([cmake, "--build", str(build_dir), "--target", "_C", "--parallel", choose_jobs()], remedy)
    built = build_dir / "out" / f"_C{EXT_SUFFIX}"
    if not built.is_file():
        raise BuildError(f"the build ended without {built}: CMakeLists.txt must honour OVSDINO_OUTPUT_DIR")
    # An undefined symbol passes the linker and shows only here.
    _run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(built.parent)!r}); import _C"], remedy)
    return place(built, output_dir / built.name)


def place(built: Path, target: Path) -> Path:
    """Copies a module over another by renaming: a process that has the old one loaded goes on using it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copy2(built, temporary)
    os.replace(temporary, target)
    return target


def main() -> int:
    """Builds the module next to the Python sources, or says in one line why it cannot."""
    parser = argparse.ArgumentParser(description="build ovsdino._C in place")
    parser.add_argument("--output", type=Path, default=ROOT / "ovsdino", help="folder that receives the module")
    arguments = parser.parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(f"ovsdino: built without native code: {reason}", file=sys.stderr)
        return 0
    try:
        print(build(arguments.output))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
