"""Every writer of the project goes through `ovsdino.io.files`, and no command replaces what it reads."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from ovsdino.cli import main
from ovsdino.errors import OVSDinoError

ROOT = Path(__file__).resolve().parents[2]
DIRECT = {  # what opens a file for writing by itself, and why it may
    "ovsdino/io/files.py": "the one home",
    "ovsdino/console.py": "/dev/null in place of a closed stream",
    "ovsdino/train/run_folder.py": "a log and events, appended; a cut line is taken out at the next start",
    "benchmarks/lib/memory.py": "/proc",
    "benchmarks/lib/latency_measure.py": "files of one measurement in a temporary folder",
    "scripts/build_native.py": "a compiled module, renamed; runs before the package can be imported",
    "benchmarks/ops.py": "a row of a benchmark, appended as it ends",
    "scripts/gpu_steps.py": "logs of processes that may be killed",
    "scripts/gpu_pytest.py": "a row of a test, written as it ends",
    "scripts/docs_site.py": "pages of a site in a new folder of build/; runs without the package",
    "scripts/sbom.py": "renamed when whole; runs without the package",
    "scripts/torch_free.py": "likewise",
    "scripts/test_matrix.py": "likewise",
    "scripts/keep_report.py": "a report next to the object file of a build; runs before the package can be imported",
    "deploy/export/publish.py": "file and sidecar are renamed as one",
    "ovsdino/edge/sidecar.py": "finishes that renaming after a kill",
    "scripts/reliability/mutants.py": "damaged files and what their readers said, in a temporary folder",
    "scripts/reliability/cases.py": "inputs of trials, in a temporary folder",
    "scripts/reliability/kills.py": "standard streams of a fork",
    "scripts/reliability/data_formats.py": "samples of formats, in a temporary folder",
    "scripts/reliability/model_formats.py": "likewise",
}


def direct_writes(tree: ast.AST) -> list[int]:
    """Return the lines of calls that write a file under its own name."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        modes = [arg.value for arg in (*node.args, *(k.value for k in node.keywords)) if isinstance(arg, ast.Constant)]
        opened = name == "open" and any(isinstance(mode, str) and mode and mode[0] in "wax" for mode in modes)
        if (
            opened
            or name in ("write_text", "write_bytes", "imwrite")
            or (owner, name)
            in (
                ("os", "replace"),
                ("os", "rename"),
                ("shutil", "copy"),
                ("shutil", "copyfile"),
                ("np", "save"),
            )
        ):
            found.append(node.lineno)
    return found


def test_nothing_else_writes_a_file_under_its_own_name() -> None:
    others = {
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("ovsdino", "deploy", "benchmarks", "scripts", "kernels")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in DIRECT
        for line in direct_writes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not others, "write through atomic_write or atomic_path of ovsdino.io.files"
    assert direct_writes(ast.parse('open("a", "w"); p.write_text(t); q.open(mode="ab"); os.replace(a, b)')) == [1] * 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "{it}", "--output", "{it}"],
        ["report", "my=row={it}", "--output", "{it}"],
        ["text", "--classes", "road,sky", "--checkpoint", "{it}", "--output", "{it}"],
        ["ablate", "{it}", "--output", "{it}"],
        ["ablate", "{it}", "--output", "{stem}.json"],  # the table goes next to it, in .md
    ],
)
def test_no_command_replaces_a_file_that_it_reads(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    it = tmp_path / "input.md"
    it.write_bytes(b"what is read")
    places = {"it": str(it), "stem": str(tmp_path / "input")}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert "the result would replace an input" in capsys.readouterr().err
    assert it.read_bytes() == b"what is read" and list(tmp_path.iterdir()) == [it]


def test_a_run_does_not_replace_the_weights_it_starts_from(tmp_path: Path) -> None:
    from ovsdino.train.start import load_config, make_trainer

    weights = tmp_path / "last.safetensors"
    weights.write_bytes(b"weights")
    (tmp_path / "link.safetensors").symlink_to(weights)
    config = load_config(str(ROOT / "configs" / "vit6.yaml"), [f"output={tmp_path}"])
    for name in ("backbone_weights", "text_weights"):
        changed = dataclasses.replace(config, **{name: str(tmp_path / "link.safetensors")})
        with pytest.raises(OVSDinoError, match=r"last\.safetensors: the result would replace an input"):
            make_trainer(changed, print)
