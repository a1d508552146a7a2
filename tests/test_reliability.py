"""A small part of `python -m scripts.reliability`: every format damaged a few times, and the damage itself."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.reliability import mutants, mutate
from scripts.reliability.page import page

ROOT = Path(__file__).resolve().parents[1]

# Imports that not every installation has; the script reads their formats, so it is not run without them.
for needed in ("cv2", "onnx", "onnxruntime", "pycocotools", "scipy", "skimage"):
    pytest.importorskip(needed)


def test_damaged_files_of_every_format_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "scripts.reliability", "--parts", "mutants", "--mutants", "350"]
    done = subprocess.run(
        [*command, "--output", str(output)], check=False, capture_output=True, text=True, timeout=600, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    counts = json.loads(output.read_text())["mutants"]
    assert len(counts) >= 30 and sum(count["mutants"] for count in counts.values()) >= 300
    assert sum(count["refused"] for count in counts.values()) > 150  # most damage is found


@pytest.mark.parametrize("damage", ["bytes_damaged", "text_damaged", "json_damaged", "lines_damaged", "yaml_damaged"])
def test_damage_is_a_function_of_the_seed(damage: str) -> None:
    data = b'{"size": [24, 32], "counts": "abc", "deep": {"name": "x"}}\n'
    change = getattr(mutate, damage)
    found = [change(data, random.Random(seed)) for seed in range(300)]
    assert found == [change(data, random.Random(seed)) for seed in range(300)]
    assert len(set(found)) > 100 and sum(one == data for one in found) < 30


def test_a_damaged_member_of_a_zip_keeps_the_zip_whole() -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("images/a.png", b"x" * 100)
    change = mutate.zip_damaged(mutate.bytes_damaged)
    opened = 0
    for seed in range(100):
        try:
            with zipfile.ZipFile(io.BytesIO(change(whole.getvalue(), random.Random(seed)))) as archive:
                opened += archive.testzip() is None
        except Exception:
            continue
    assert 40 <= opened <= 90  # about 60 of 100 are packed anew


def test_a_reader_that_crashes_hangs_or_raises_what_it_must_not_is_counted() -> None:
    count = mutants.Count()
    count.add({"kind": "refused", "index": 0, "seconds": 0.5}, False)
    assert count.kept(False) and count.slowest_s == 0.5
    assert mutants.ending(-11, "")["said"].startswith("SIGSEGV")
    assert mutants.ending(1, 'Timeout (0:01:00)!\n  File "/a/ovsdino/data/x.py", line 3 in f')["kind"] == "hangs"

    def foreign() -> None:
        raise KeyError("size")

    outcome = mutants.attempt(foreign)
    assert outcome["kind"] == "foreign" and "KeyError" in outcome["said"]
    count.add(outcome | {"index": 1}, False)
    assert not count.kept(False) and count.examples == [f"mutant 1: {outcome['said']}"]
    read = mutants.Count()
    read.add({"kind": "read", "index": 0}, True)
    assert read.kept(False) and not read.kept(True)  # where a hash is kept, every change must be refused


def test_the_page_shows_the_recorded_run_and_every_promise_was_kept_in_it() -> None:
    found = json.loads((ROOT / "benchmarks/results/reliability.json").read_text())
    text = (ROOT / "docs/reliability.md").read_text()
    assert page(text, found) == text
    assert sum(count["mutants"] for count in found["mutants"].values()) >= 20_000
    assert not [one for count in found["mutants"].values() for one in count["examples"]]
    assert not [line for part in ("kills", "cases") for one in found[part].values() for line in one["broken"]]
