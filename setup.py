"""Packages, their folders, and the native module; everything else about the project is in pyproject.toml."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

import build_native  # noqa: E402  (lives in scripts/, which no build frontend puts on the path)

PACKAGE_DIR = {
    "ovsdino": "ovsdino",
    "ovsdino.kernels": "kernels/triton",
    "ovsdino.deploy": "deploy",
    "ovsdino.benchmarks": "benchmarks",
}


def packages() -> list[str]:
    """The packages below ovsdino/ and those of the two folders that are mapped into it."""
    names = find_packages(str(ROOT), include=["ovsdino", "ovsdino.*"])
    for package in ("ovsdino.kernels", "ovsdino.deploy", "ovsdino.benchmarks"):
        below = find_packages(str(ROOT / PACKAGE_DIR[package]))
        names += [package, *(f"{package}.{name}" for name in below)]
    return names


def extensions() -> list[Extension]:
    """The native module, or none with one line that says why; the ops then run on their PyTorch references."""
    reason = build_native.why_unavailable()
    if reason is None:
        return [Extension("ovsdino._C", sources=[])]  # CMakeLists.txt is the only list of sources
    print(f"ovsdino: installing without native code: {reason}", file=sys.stderr)
    return []


class BuildPy(build_py):
    """Starts from an empty tree, so that a module deleted from the sources cannot linger in a wheel."""

    def run(self) -> None:
        """Clears what an earlier build left, then copies the Python files."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "ovsdino", ignore_errors=True)
            (Path(self.build_lib) / "ovsdino" / "configs").mkdir(parents=True)
        super().run()
        if not self.editable_mode:  # `ovsdino train NAME`; a checkout has them where they are
            for path in sorted((ROOT / "configs").glob("*.*")):
                self.copy_file(str(path), str(Path(self.build_lib) / "ovsdino" / "configs" / path.name))


class BuildNative(build_ext):
    """Has CMake build the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds one extension.

        Raises:
            SystemExit: With one line that names the remedy.
        """
        try:
            build_native.build(Path(self.get_ext_fullpath(ext.name)).resolve().parent)
        except build_native.BuildError as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir=PACKAGE_DIR,
        ext_modules=extensions(),
        cmdclass={"build_py": BuildPy, "build_ext": BuildNative},
    )
