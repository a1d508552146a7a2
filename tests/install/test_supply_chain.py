"""The packages that ovsdino needs: licenses, known holes, hashes."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.install.sandbox import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

USED = (
    "torch",
    "clip",
    "probe",
    "train",
    "edge",
    "openvino",
    "sentence",
    "serve",
    "demo",
    "ros",
)  # the extras that running ovsdino needs; supervision and dev are not among them
ALLOWED = frozenset(
    """MIT, MIT License, MIT-CMU, BSD, BSD License, BSD-2-Clause, BSD-3-Clause, BSD 3-Clause License,
    3-Clause BSD License,
    0BSD, FreeBSD, Apache-2.0, Apache 2.0, Apache 2.0 License, Apache Software License, PSF-2.0, PSFL,
    Python Software Foundation License, any-OSI,
    CNRI-Python, ISC, ISC License (ISCL), Zlib, CC0-1.0, MPL-2.0, Mozilla Public License 2.0 (MPL 2.0)""".replace(
        "\n   ", ""
    ).split(", ")
)
# NVIDIA's own terms: they come with CUDA builds of torch and with the extra "edge"; ovsdino ships none of them.
NVIDIA = re.compile(r"(nvidia-.+|tensorrt-rtx-.+|cuda-toolkit)")
# Packages whose metadata says nothing that can be read here, with what their licence file says.
BY_FILE = {"segment-anything": "Apache-2.0"}
GPL_CODECS = re.compile(r"(^|/)lib(x264|x265|postproc)")
# The first release without the hole. A bound in pyproject.toml keeps older ones out.
CLOSED = {
    "pillow": ("12.1.1", "CVE-2026-25990, a write outside a buffer"),
    "onnx": ("1.21.0", "CVE-2026-27489, files read outside the model's folder"),
    "pycocotools": ("2.0.5", "run-length masks decoded without a look at their bounds"),
    "python-multipart": ("0.0.18", "CVE-2024-53981, a form's parser kept busy"),
    "pyyaml": ("5.4", "CVE-2020-14343, code run by a YAML file"),
    "starlette": ("0.49.1", "CVE-2025-62727, a parser of ranges kept busy"),
    "opencv-python-headless": ("4.8.1.78", "CVE-2023-4863, a write outside a buffer in libwebp"),
    "setuptools": ("78.1.1", "CVE-2025-47273, files written outside a folder"),
}


@lru_cache(maxsize=1)
def closure() -> dict[str, importlib.metadata.Distribution]:
    """Every installed package that ovsdino with the extras of `USED` needs, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [("ovsdino", extra) for extra in ("", *USED)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                inner = canonicalize_name(requirement.name)
                waiting += [(inner, wanted) for wanted in ("", *requirement.extras)]
    return found


def licence(package: importlib.metadata.Distribution) -> str:
    """Return what a package's metadata says: the expression, else the classifiers, else the short text."""
    expression = package.metadata.get("License-Expression")
    if expression:
        return expression
    classifiers = [
        line.split(" :: ")[-1] for line in package.metadata.get_all("Classifier") or [] if line.startswith("License")
    ]
    text = (package.metadata.get("License") or "").strip()
    return " AND ".join(classifiers) or (text if "\n" not in text else "")


def refused(name: str, stated: str) -> bool:
    """Return whether a package's licence is none of those that are allowed."""
    if NVIDIA.fullmatch(name):
        return False
    text = stated or BY_FILE.get(name, "")
    parts = (part.lstrip("(") for part in re.split(r"\s+(?:AND|OR)\s+", text))
    return not ALLOWED.issuperset(part if "(" in part else part.rstrip(")") for part in parts)


def test_every_dependency_has_a_licence_that_is_allowed() -> None:
    packages = {name: licence(package) for name, package in closure().items()}
    assert len(packages) > 20 and {"torch", "pillow", "safetensors"} <= set(packages)
    assert {name: stated for name, stated in packages.items() if refused(name, stated)} == {}


@pytest.mark.parametrize(
    "stated",
    ["GPL-3.0-only", "MIT AND LGPL-2.1", "MIT AND (GPL-2.0 OR BSD)", "GNU General Public License v3", "", "AGPL"],
)
def test_a_copyleft_or_unknown_licence_is_refused(stated: str) -> None:
    assert refused("thing", stated)


def test_no_dependency_brings_codecs_under_the_gpl() -> None:
    with_codecs = {
        name: str(file)
        for name, package in closure().items()
        for file in package.files or []
        if GPL_CODECS.search(str(file))
    }
    assert with_codecs == {} and "av" not in closure()
    assert not re.search(r"^av==", (ROOT / "constraints.txt").read_text(), re.M)


def pinned() -> dict[str, list[str]]:
    """Return the lines of constraints.txt by requirement, each with its hashes."""
    text = (ROOT / "constraints.txt").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {" ".join(part for part in line if not part.startswith("--hash")): line for line in lines}


def test_every_pin_has_the_hashes_of_its_files() -> None:
    lines = pinned()
    assert len(lines) > 150
    for requirement, line in lines.items():
        hashes = [part for part in line if part.startswith("--hash")]
        assert re.match(r"^[a-z0-9.-]+==[\w.]+( ; .+)?$", requirement), requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part) for part in hashes), requirement


def test_the_pins_hold_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins: dict[str, list[Version]] = {}
    for requirement in map(Requirement, pinned()):
        (specifier,) = requirement.specifier
        pins.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    extras = project["project"]["optional-dependencies"]
    # A board's own releases are pinned by its JetPack: the constraints are of development and CI.
    groups = [project["project"]["dependencies"], *(extras[name] for name in extras if name != "jetson")]
    for requirement in (
        Requirement(line) for group in (*groups, project["build-system"]["requires"]) for line in group
    ):
        if requirement.name == "ovsdino":
            continue  # an extra that takes another one in
        versions = pins[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement


@pytest.mark.parametrize("name", CLOSED)
def test_a_release_with_a_known_hole_is_kept_out(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    closed = Version(CLOSED[name][0])
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        project["build-system"]["requires"],
    ]
    bounds = [
        Version(part.version)
        for line in (line for group in groups for line in group)
        if canonicalize_name((requirement := Requirement(line)).name) == name
        for part in requirement.specifier
        if part.operator == ">="
    ]
    named = sum(canonicalize_name(Requirement(line).name) == name for group in groups for line in group)
    assert len(bounds) == named > 0 and min(bounds) >= closed


def test_an_install_without_extras_brings_no_torch_and_nothing_that_a_board_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    assert names == {"numpy", "onnxruntime", "pillow", "rich", "safetensors"}
    board = [Requirement(line) for line in project["optional-dependencies"]["jetson"]]
    wanted = {python: {} for python in ("3.10", "3.12")}
    for python, found in wanted.items():
        for one in board:
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                found[one.name] = str(one.specifier)
    assert wanted["3.10"] == {"cuda-python": "==12.6.*", "numpy": "<2", "onnx": ">=1.21"}
    assert wanted["3.12"] == {"cuda-python": "==13.2.*", "onnx": ">=1.21"}


def test_nothing_here_names_a_registry() -> None:
    for file in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run"):
        assert not re.search(r"https?://|pypi\.org|pythonhosted", Path(ROOT / file).read_text()), file
