"""Workflows, the bill of materials and the metadata of a release, held against the checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from scripts.sbom import bill, main, pins
from tests.install.sandbox import ROOT
from tests.install.test_supply_chain import refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def pythons() -> list[str]:
    """Return the versions of Python that the metadata name."""
    names = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    return list(names)


def test_there_is_a_workflow_for_changes_and_one_for_wheels() -> None:
    assert [path.stem for path in WORKFLOWS] == ["check", "wheels"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_alone_and_runs_what_is_there(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert tree["permissions"] == {"contents": "read"} and "on" in tree
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, job in tree["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            words = step.get("run", "").split()
            if words[:1] == ["make"]:
                assert set(words[1:]) <= targets
            for word in words:
                assert not word.startswith("scripts/") or (ROOT / word).is_file(), word
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}
            assert re.fullmatch(r"|actions/[a-z-]+@v\d+", step.get("uses", ""))


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="needs actionlint")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_passes_actionlint(path: Path) -> None:
    done = subprocess.run(["actionlint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_python_of_the_metadata_is_tested_and_has_a_wheel() -> None:
    facts = project()
    named = pythons()
    bounds = SpecifierSet(facts["project"]["requires-python"])  # type: ignore[index]
    assert named[0] == "3.10" and all(bounds.contains(f"{one}.0") for one in named) and not bounds.contains("3.9.0")
    check = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    assert check["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    built = facts["tool"]["cibuildwheel"]["build"]  # type: ignore[index]
    assert built == [f"cp{one.replace('.', '')}-*" for one in named]


def test_the_bill_of_materials_has_every_pin_with_its_hashes() -> None:
    text = (ROOT / "constraints.txt").read_text()
    found = bill("0.1.0", text)
    assert found["bomFormat"] == "CycloneDX" and found["specVersion"] == "1.6"
    listed = {(one["name"], one["version"]): {part["content"] for part in one["hashes"]} for one in found["components"]}
    lines = re.findall(r"^([a-z0-9.-]+)==([\w.]+)", text, re.M)
    assert set(listed) == set(lines) and len(found["components"]) == len(lines) > 150
    assert sum(map(len, listed.values())) == text.count("--hash=sha256:")
    references = [one["bom-ref"] for one in found["components"]]
    assert len(set(references)) == len(references) and found["dependencies"][0]["dependsOn"] == references
    stated = {one["name"]: one["licenses"][0]["license"]["name"] for one in found["components"] if "licenses" in one}
    assert {"numpy", "pillow", "torch"} <= set(stated)
    assert not refused("numpy", stated["numpy"])


def test_the_same_pins_give_the_same_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "a" / "sbom.json")]) == 0 and "components" in capsys.readouterr().out
    written = (tmp_path / "a" / "sbom.json").read_text()
    assert main([str(tmp_path / "b.json")]) == 0 and (tmp_path / "b.json").read_text() == written
    assert json.loads(written)["metadata"]["component"]["name"] == "ovsdino"
    assert main([]) == 2


def test_a_line_that_is_no_pin_is_refused() -> None:
    with pytest.raises(ValueError, match="not a pin: numpy>=2"):
        pins("numpy>=2 \\\n    --hash=sha256:00\n")


def test_the_demo_installs_what_an_install_without_extras_needs() -> None:
    named = set(re.search(r"^DEMO_PACKAGES := (.+)$", (ROOT / "Makefile").read_text(), re.M)[1].split("|"))  # type: ignore[index]
    import importlib.metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [Requirement(line).name for line in project()["project"]["dependencies"]]  # type: ignore[index]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            lines = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [one.name for one in lines if one.marker is None or one.marker.evaluate({"extra": ""})]
    if sys.version_info < (3, 11):
        found -= {"coloredlogs", "humanfriendly", "sympy", "mpmath"}  # an older ONNX Runtime's, for its tools
    assert named == found


def test_the_page_on_security_names_files_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for name in re.findall(r"`((?:ovsdino|scripts|docs)/[\w/.]+|constraints\.txt|pyproject\.toml)`", text):
        assert (ROOT / name).exists(), name
    assert "127.0.0.1" in text and "weights_only=True" in text
