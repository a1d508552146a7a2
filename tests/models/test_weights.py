"""Weight files: what is damaged, foreign or of another model is refused by name, and no code in them runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.models import shipped, weights


def test_pickled_code_in_a_foreign_file_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"linear_layer.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(OVSDinoError, match=r"evil\.pth"):
        weights.read_foreign(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_wrong_shape_and_wrong_keys_are_named(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(OVSDinoError, match=r"weight is \(3, 3\), expected \(3, 2\)"):
        weights.load_state(module, {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}, "f")
    with pytest.raises(OVSDinoError, match="1 keys missing, 1 unknown"):
        weights.load_state(module, {"weight": torch.zeros(3, 2), "bios": torch.zeros(3)}, "f")


def test_manifest_is_what_lies_in_the_folder() -> None:
    entries = json.loads(shipped.MANIFEST.read_text())
    assert sorted(e["file"] for e in entries.values()) == sorted(p.name for p in shipped.WEIGHTS.glob("*.safetensors"))


def test_a_number_too_large_for_the_model_is_infinite(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    state = {"weight": torch.full((1, 1), 1e300, dtype=torch.float64), "bias": torch.zeros(1)}
    with pytest.raises(OVSDinoError, match="weight holds NaN or infinite"):
        weights.load_state(module, state, "file")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"nano": 1}', '{"nano": {"file": "../x", "sha256": "", "bytes": 1, "parameters": 1}}']
)
def test_a_damaged_manifest_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    monkeypatch.setattr(shipped, "MANIFEST", tmp_path / "manifest.json")
    shipped.manifest.cache_clear()
    try:
        with pytest.raises(OVSDinoError, match=r"manifest\.json: not a readable manifest.*reinstall") as caught:
            shipped.packaged("nano")
    finally:
        shipped.manifest.cache_clear()
    assert "\n" not in str(caught.value)
