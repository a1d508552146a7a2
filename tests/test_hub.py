"""Sharing models: a folder or a hub repository, read from the cache when offline, whole or refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import ovsdino
from ovsdino import hub
from ovsdino.cli import main
from ovsdino.errors import OVSDinoError
from ovsdino.models import weights, zoo
from ovsdino.models.ovsdino import OVSDINO
from tests.support import official
from tests.support.hub import TOKEN, serving


@pytest.fixture(scope="module")
def nano() -> OVSDINO:
    return zoo.create_model("nano")


@pytest.fixture
def folder(nano: OVSDINO, tmp_path: Path) -> Path:
    hub.save_pretrained(nano, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub's cache with the repository me/streets in it, and no network."""
    repository = tmp_path / "cache" / "models--me--streets"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    return repository / "snapshots" / "abc"


def test_a_saved_model_comes_back_the_same(nano: OVSDINO, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    other = hub.from_pretrained(folder)
    assert other.decoder_trained and not other.training
    assert all(torch.equal(other.state_dict()[k], v) for k, v in nano.state_dict().items())


def test_a_cached_repository_loads_offline_by_name(cache: Path) -> None:
    segmenter = ovsdino.load("me/streets", "cpu")
    assert ovsdino.load(cache, "cpu").name == "nano"
    assert segmenter.name == "nano" and segmenter.model.decoder_trained


def test_a_revision_chooses_the_commit_that_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache.rename(cache.with_name(commit))  # now main has no files, and only the commit has
    assert hub.from_pretrained(f"me/streets@{commit}").decoder_trained
    assert weights.fetch("me/streets", "config.json", "", commit).parent.name == commit
    with pytest.raises(OVSDinoError, match=r"config\.json of the hub repository me/streets cannot be had"):
        hub.from_pretrained("me/streets")
    monkeypatch.setitem(weights.REVISIONS, "me/streets", commit)
    assert weights.fetch("me/streets", "config.json", "").parent.name == commit
    with pytest.raises(OVSDinoError, match="cannot be had"):
        weights.fetch("me/streets", "config.json", "", "main")


def test_what_is_not_in_the_cache_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match=r"config\.json of the hub repository me/other cannot be had here .*cache"):
        hub.from_pretrained("me/other")
    (cache / "model.safetensors").unlink()
    with pytest.raises(OVSDinoError, match=r"model\.safetensors of the hub repository me/streets .* by hand"):
        hub.from_pretrained("me/streets")
    for name in ("me/a/b", "../etc", "-x/", str(tmp_path / "nowhere")):
        with pytest.raises(OVSDinoError, match="neither a folder nor the name of a hub repository"):
            zoo.create_model(name if "/" in name else f"{name}/")


def test_a_damaged_or_foreign_repository_is_refused(folder: Path) -> None:
    good = json.loads((folder / "config.json").read_text())
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(OVSDinoError, match=r"model\.safetensors: damaged"):
        hub.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**good, "config": {**good["config"], "short_side": 1}}))
    with pytest.raises(OVSDinoError, match="made for another version of nano"):
        hub.from_pretrained(folder)
    for text in ("", "[]", "{}", '"x"', '{"model": "nano"}', '{"model": [], "weights": {"sha256": 1}, "config": 1}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(OVSDinoError, match=r"config\.json: not a readable config.json of an ovsdino model"):
            hub.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**good, "model": "b99"}))
    with pytest.raises(OVSDinoError, match="unknown model 'b99'"):
        hub.from_pretrained(folder)


RUN = [
    {
        "kind": "config",
        "step": 0,
        "seconds": 0.0,
        "supervision": "labels",
        "model": "nano",
        "data": {"dataset": "camvid"},
    },
    {"kind": "train", "step": 20, "seconds": 9.1, "loss": 1.5},
    {"kind": "val", "step": 40, "seconds": 20.0, "miou": 0.3, "iou": {"road": 0.5, "sky": 0.1}},
    {"kind": "val", "step": 80, "seconds": 41.0, "miou": 0.4321, "iou": {"road": 0.7, "sky": 0.1642, "pole": None}},
]
SHARE = """
import sys
import numpy as np, ovsdino
from ovsdino import hub
mine = ovsdino.load("nano", "cpu", short_side=64)
print(hub.push_to_hub(mine.model, "me/streets", run=sys.argv[1], license="other", terms="For research."))
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
for name in ("me/streets", "me/streets@" + sys.argv[2]):
    theirs = ovsdino.load(name, "cpu", short_side=64)
    assert all((theirs.model.state_dict()[k] == v).all() for k, v in mine.model.state_dict().items())
    assert (theirs(image, "a, b").labels == mine(image, "a, b").labels).all()
try:
    ovsdino.load("me/nothing")
except ovsdino.OVSDinoError as error:
    print(error)
"""


def client(hub_url: str, home: Path, token: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run huggingface_hub's real client in a process of its own: it reads the address when it is imported."""
    names = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "OVSDINO_OFFLINE" and "proxy" not in k.lower()}
    environment |= {**names, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", *map(str, command)], check=False, env=environment, capture_output=True, text=True
    )


def test_a_model_goes_to_a_hub_and_comes_back_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in RUN))
    with serving() as standin:
        first = standin.oid("me/streets", 0)
        done = client(standin.url, tmp_path / "home", TOKEN, SHARE, tmp_path, first)
        assert done.returncode == 0, done.stderr
        refused = client(
            standin.url,
            tmp_path / "other",
            "hf_wrong",
            "import ovsdino\nfrom ovsdino import hub\n"
            "try:\n    hub.push_to_hub(ovsdino.load('nano', 'cpu').model, 'me/streets')\n"
            "except ovsdino.OVSDinoError as error:\n    print(error)",
        )
    lines = done.stdout.splitlines()
    assert lines[0] == f"{standin.url}/me/streets/commit/{first}"
    assert "config.json of the hub repository me/nothing cannot be had here (RepositoryNotFoundError)" in lines[1]
    ((files,),) = standin.commits.values()
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "run.yaml"]
    assert standin.requests.count("PUT") == 1 and len(standin.objects) == 1  # the weights went as a large file
    assert (
        hashlib.sha256(files["model.safetensors"]).hexdigest() == json.loads(files["config.json"])["weights"]["sha256"]
    )
    assert yaml.safe_load(files["run.yaml"]) == {
        "supervision": "labels",
        "model": "nano",
        "data": {"dataset": "camvid"},
    }
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["pipeline_tag"], front["library_name"]) == (
        "other",
        "image-segmentation",
        "ovsdino",
    )
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "mean_iou", "value": 0.4321, "name": "mIoU"}]
    for text in ('ovsdino.load("me/streets")', "| validation images | 80 | 0.4321 |", "| sky | 0.1642 |", "`camvid`"):
        assert text in card
    assert "Terms: For research." in card and "ovsdino train run.yaml" in card and "pole" not in card
    assert refused.returncode == 0 and refused.stdout.count("\n") == 1
    assert "me/streets: cannot upload" in refused.stdout and "hf auth login" in refused.stdout


def test_a_shipped_model_is_shared_with_its_own_card_and_another_is_not(nano: OVSDINO, tmp_path: Path) -> None:
    hub.save_pretrained(nano, tmp_path / "same")
    card = (tmp_path / "same" / "README.md").read_text()
    assert "**Training data, and its terms.**" in card and "](../" not in card
    changed = copy.deepcopy(nano)
    with torch.no_grad():
        changed.log_scale.add_(0.1)
    hub.save_pretrained(changed, tmp_path / "other", terms="Ask me.")
    card = (tmp_path / "other" / "README.md").read_text()
    assert "Training data" not in card and "Ask me." in card


def test_a_run_that_cannot_be_read_is_refused(nano: OVSDINO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OVSDinoError, match=r"log\.jsonl: no such"):
        hub.save_pretrained(nano, tmp_path / "a", run=tmp_path)
    for text, words in (("{}", "not a readable log"), ("[", "not a readable log"), ("", "no line of a configuration")):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(OVSDinoError, match=words):
            hub.save_pretrained(nano, tmp_path / "a", run=tmp_path)
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    with pytest.raises(OVSDinoError, match="OVSDINO_OFFLINE is set"):
        hub.push_to_hub(nano, "me/streets")


def test_a_decoder_on_official_weights_travels_with_its_projection_alone(tmp_path: Path) -> None:
    torch.save(official.dinov2(384, 12), tmp_path / "dinov2.pth")
    model = zoo.build_model("s14")
    model.text_tower.load_state_dict(official.projection(384))
    torch.nn.init.constant_(model.decoder.score_attention.mix, 0.25)
    with pytest.raises(OVSDinoError, match="s14: no decoder weights to save"):
        hub.save_pretrained(model, tmp_path / "mine")
    model.decoder_trained = True
    hub.save_pretrained(model, tmp_path / "mine")
    prefixes = {key.split(".")[0] for key in load_file(tmp_path / "mine" / "model.safetensors")}
    assert prefixes == {"decoder", "text_tower", "log_scale"}
    other = hub.from_pretrained(tmp_path / "mine", backbone_weights=tmp_path / "dinov2.pth")
    assert other.decoder_trained and other.decoder is not None and other.decoder.score_attention.mix == 0.25
    assert torch.equal(other.text_tower.linear_layer.weight, official.projection(384)["linear_layer.weight"])


def test_the_command_line_takes_a_folder_and_refuses_a_second_source_of_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors")
    line = ["segment", tmp_path / "a.png", "--classes", "a,b", "--output", tmp_path, "--short-side", "32"]
    assert main([*map(str, line), "--model", str(folder)]) == 0
    assert main([*map(str, line), "--model", str(folder), "--checkpoint", str(tmp_path / "c.safetensors")]) == 2
    out, err = capsys.readouterr()
    assert out.count("a_overlay.png") == 1 and "brings its own weights" in err and err.count("\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_nan_or_infinite_are_refused_by_name(nano: OVSDINO, tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in nano.state_dict().items()}
    state["decoder.smd.out.weight"].view(-1)[3] = value
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(
        OVSDinoError, match=r"c\.safetensors: decoder\.smd\.out\.weight holds NaN or infinite"
    ) as caught:
        ovsdino.load("nano", "cpu", checkpoint=tmp_path / "c.safetensors")
    assert "\n" not in str(caught.value)
