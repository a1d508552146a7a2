"""The command line as a user meets it: outputs, JSON, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.cli import main
from ovsdino.commands import doctor
from ovsdino.commands.segment import unique_stems
from ovsdino.models.text import TEMPLATES
from tests.support import trees

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--short-side", "64", "--device", "cpu"]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 120, (60, 80, 3), dtype=np.uint8)
    pixels[:30] = 220
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def run_json(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the one object on stdout, stderr."""
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return code, json.loads(out), err


def command(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in its own process, outside the repository."""
    return subprocess.run(
        [sys.executable, "-m", "ovsdino", *map(str, args)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
        check=False,
    )


def test_segment_json_follows_the_contract(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data, _ = run_json(
        capsys,
        "segment",
        street,
        "--classes",
        "road, sky,car|automobile",
        "--output",
        tmp_path / "out",
        "--json",
        *FAST,
    )
    assert code == 0
    assert set(data) == {"images", "model", "device"} and (data["model"], data["device"]) == ("nano", "cpu")
    (image,) = data["images"]
    assert (image["path"], image["width"], image["height"]) == (str(street), 80, 60)
    assert image["ms"] == pytest.approx(sum(image["stages_ms"].values()), abs=0.01) and image["ms"] > 0
    assert [entry["name"] for entry in image["classes"]] == ["road", "sky", "car", "background"]
    assert sum(entry["fraction"] for entry in image["classes"]) == pytest.approx(1, abs=1e-5)
    assert all(0 <= entry["score"] <= 1 for entry in image["classes"][:3])
    assert image["output"] == str(tmp_path / "out" / "street_overlay.png")
    with Image.open(image["labels"]) as labels, Image.open(image["output"]) as overlay:
        assert labels.size == (80, 60) and overlay.size[1] > 60
        share = (np.asarray(labels) == 1).mean()
    assert image["classes"][1]["fraction"] == pytest.approx(share, abs=1e-5)


def test_segment_prints_a_line_an_image_and_keeps_stderr_quiet(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(street), "--classes", "road,sky", "--output", str(tmp_path / "o"), *FAST]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{street} -> ") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(
    ("extra", "named"),
    [(["--background"], True), (["--background", "0.99"], True), ([], True), (["--partition"], False)],
)
def test_background_takes_a_threshold_or_its_default(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], named: bool
) -> None:
    args = ["segment", *extra, street, "--classes", "road,sky", "--output", tmp_path, "--json", *FAST]
    code, data, _ = run_json(capsys, *args)
    names = [entry["name"] for entry in data["images"][0]["classes"]]
    assert code == 0 and names == ["road", "sky"] + ["background"] * named


def test_sliding_window_runs(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["segment", street, "--classes", "road,sky", "--output", tmp_path, "--json", "--window", "32", *FAST]
    code, data, _ = run_json(capsys, *args)
    assert code == 0 and "merge" in data["images"][0]["stages_ms"]


def test_a_bad_file_does_not_stop_the_others(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    args = ["segment", bad, street, tmp_path / "missing.png", "--classes", "road,sky", "--output", tmp_path / "out"]
    code, data, err = run_json(capsys, *args, "--json", *FAST)
    assert code == 2
    assert ["error" in image for image in data["images"]] == [True, False, True]
    assert "bad.jpg" in data["images"][0]["error"] and "missing.png" in data["images"][2]["error"]
    assert [line.startswith("error: ") for line in err.splitlines()] == [True, True]
    assert (tmp_path / "out" / "street_labels.png").is_file()


def test_a_folder_gives_all_its_images(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open(street).save(street.with_name("again.webp"))
    code, data, _ = run_json(
        capsys, "segment", street.parent, "--classes", "road,sky", "--output", tmp_path / "out", "--json", *FAST
    )
    assert code == 0 and [Path(i["path"]).name for i in data["images"]] == ["again.webp", "street.png"]


def test_equal_stems_are_never_written_over_each_other(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    for other in (street.with_suffix(".bmp"), tmp_path / "b" / "street.png"):
        Image.open(street).save(other)
    paths = [street, street.with_suffix(".bmp"), tmp_path / "b" / "street.png"]
    args = ["segment", *paths, "--classes", "road,sky", "--output", tmp_path / "out", "--json", *FAST]
    code, data, err = run_json(capsys, *args)
    assert code == 0 and len({image["output"] for image in data["images"]}) == 3
    assert len(list((tmp_path / "out").iterdir())) == 6 and err.count("note: ") == 2


def test_output_names_by_hand() -> None:
    paths = [Path("a/x.jpg"), Path("b/X.jpg"), Path("c/x.png"), Path("x_png.png"), Path("d/x.png"), Path("a/x.jpg")]
    assert unique_stems(paths) == ["x", "X_jpg", "x_png", "x_png_png", "x_2", "x"]


def test_an_input_is_never_overwritten(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = tmp_path / "street_labels.png"
    Image.new("RGB", (20, 20), "red").save(victim)
    before = victim.read_bytes()
    args = ["segment", street, victim, "--classes", "road,sky", "--output", tmp_path, "--json", *FAST]
    code, data, _ = run_json(capsys, *args)
    assert code == 2 and "would replace an input" in data["images"][0]["error"]
    assert victim.read_bytes() == before


BAD_INPUT: list[tuple[str, list[str], dict[str, str], str]] = [
    ("missing file", ["segment", "{dir}/nope.jpg", "--classes", "road"], {}, "nope.jpg: no such file"),
    ("text as jpg", ["segment", "{dir}/text.jpg", "--classes", "road"], {}, "text.jpg: not a JPEG"),
    ("no classes", ["segment", "{image}", "--classes", ""], {}, "no classes given"),
    ("blank class", ["segment", "{image}", "--classes", "road,,"], {}, "empty class name"),
    ("same class twice", ["segment", "{image}", "--classes", "car,Car"], {}, "twice"),
    ("unknown model", ["segment", "{image}", "--classes", "road", "--model", "huge"], {}, "unknown model 'huge'"),
    (
        "offline",
        ["segment", "{image}", "--classes", "road", "--model", "b14"],
        {"OVSDINO_OFFLINE": "1"},
        "OVSDINO_OFFLINE is set",
    ),
    ("unknown device", ["segment", "{image}", "--classes", "road", "--device", "tpu"], {}, "device"),
    ("bad window", ["segment", "{image}", "--classes", "a,b", "--window", "17"], {}, "window is 17"),
    ("bad threshold", ["segment", "{image}", "--classes", "a,b", "--background", "7"], {}, "between 0 and 1"),
    ("output is a file", ["segment", "{image}", "--classes", "a,b", "--output", "{image}"], {}, "cannot write"),
    ("missing checkpoint", ["segment", "{image}", "--classes", "a", "--checkpoint", "{dir}/no.st"], {}, "no.st"),
    ("no image", ["segment", "--classes", "road"], {}, "no images given"),
    ("empty folder", ["segment", "{dir}/empty", "--classes", "road"], {}, "no images in this folder"),
    ("missing option", ["segment", "{image}"], {}, "--classes"),
    ("unknown option", ["segment", "{image}", "--classes", "road", "--colour"], {}, "--colour"),
    ("not a number", ["eval", "--dataset", "camvid", "--root", "{dir}", "--limit", "ten"], {}, "ten"),
    ("unknown command", ["paint"], {}, "paint"),
    ("unknown data set", ["eval", "--dataset", "voc", "--root", "{dir}"], {}, "available: camvid, folder, voc21"),
    ("no benchmark there", ["eval", "--dataset", "voc21", "--root", "{dir}"], {}, "VOCtrainval_11-May-2012.tar"),
    ("no such split", ["eval", "--dataset", "ade20k", "--split", "test", "--root", "{dir}"], {}, "has train, val"),
    ("split is a path", ["eval", "--dataset", "camvid", "--split", "../x", "--root", "{dir}"], {}, "'../x'"),
    ("check of nothing", ["data", "check", "cityscapes", "--root", "{dir}"], {}, "leftImg8bit_trainvaltest.zip"),
    ("check of an unknown set", ["data", "check", "pets", "--root", "{dir}"], {}, "unknown data set 'pets'"),
    ("check without a folder", ["data", "check", "voc21", "--root", "{dir}/no"], {}, "no such folder"),
    ("check without a root", ["data", "check", "voc21"], {"OVSDINO_DATA": ""}, "--root is missing"),
    ("nothing to convert", ["data", "convert", "voc21", "--root", "{dir}"], {}, "needs no conversion"),
    ("no such protocol", ["eval", "--dataset", "camvid", "--root", "{dir}", "--protocol", "mmseg"], {}, "protocol"),
    (
        "setting of a protocol",
        ["eval", "--dataset", "folder", "--root", "{dir}/own", "--pamr"],
        {},
        "--protocol talk2dino",
    ),
    (
        "window off the patches",
        ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--window", "440"],
        {},
        "window is 440: nano needs a multiple of 16",
    ),
    ("stride too long", ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--stride", "500"], {}, "stride is 500"),
    (
        "template without a place",
        ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--templates", "a cat"],
        {},
        "{{}}",
    ),
    (
        "background where there is none",
        ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--background", "0.5"],
        {},
        "has no background class",
    ),
    (
        "cleaning without a class token",
        ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--cleaning", "protocol"],
        {},
        "class token",
    ),
    ("no batch", ["eval", "--dataset", "ade20k", "--root", "{dir}/ade", "--batch-size", "0"], {}, "batch_size is 0"),
    ("no result file", ["report", "{dir}/no.json"], {}, "no.json: no such file"),
    ("report on a picture", ["report", "{image}"], {}, "street.png: not a readable JSON result"),
    ("data without a verb", ["data"], {}, "data"),
    ("no data there", ["eval", "--dataset", "camvid", "--root", "{dir}"], {}, "camvid_val.zip"),
    ("no root", ["eval", "--dataset", "camvid"], {"OVSDINO_DATA": ""}, "--root is missing"),
    (
        "no class names",
        ["eval", "--dataset", "camvid", "--root", "{dir}", "--class-names", "{dir}/no.json"],
        {},
        "no.json",
    ),
]


BAD_INPUT += [
    ("probe without root", ["probe"], {"OVSDINO_DATA": ""}, "--root is missing"),
    ("probe of another set", ["probe", "--dataset", "voc21", "--root", "{dir}"], {}, "available: bsds500"),
    ("probe without data", ["probe", "--root", "{dir}"], {}, "neither bsds500_train.zip"),
    ("no such folder", ["segment", "{image}", "--classes", "a", "--model", "{dir}/none"], {}, "neither a folder nor"),
    ("folder without model", ["segment", "{image}", "--classes", "a", "--model", "{dir}/empty"], {}, "config.json"),
    (
        "text as backbone",
        ["segment", "{image}", "--classes", "a", "--model", "b14", "--backbone-weights", "{dir}/text.jpg"],
        {"OVSDINO_OFFLINE": "1"},
        "text.jpg: not a weight file that can be read safely",
    ),
    (
        "missing projection",
        ["segment", "{image}", "--classes", "a", "--model", "b14", "--projection", "{dir}/no.pth"],
        {},
        "no.pth: no such file (projection)",
    ),
    (
        "no projection",
        ["segment", "{image}", "--classes", "a", "--model", "s14"],
        {},
        "no text projection is published",
    ),
]


@pytest.mark.parametrize(
    ("args", "environment", "words"), [row[1:] for row in BAD_INPUT], ids=[r[0] for r in BAD_INPUT]
)
def test_bad_input_is_one_line_and_exit_code_2(
    street: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    environment: dict[str, str],
    words: str,
) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    trees.ade20k(tmp_path / "ade", {"one": trees.label(1)})
    trees.folder(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    filled, words = [arg.format(dir=tmp_path, image=street) for arg in args], words.format()
    assert main(filled) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err
    if filled:
        code, data, _ = run_json(capsys, *filled, "--json")
        assert code == 2 and words in (data["error"] if "error" in data else data["images"][0]["error"])


def test_an_internal_error_is_exit_code_1_with_its_traceback(
    street: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("lost")

    monkeypatch.setattr("ovsdino.commands.doctor.examine", broken)
    code, data, err = run_json(capsys, "doctor", "--json")
    assert code == 1 and "KeyError" in data["error"] and "Traceback" in err


def test_eval_json_follows_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.json").write_text('["road", "sky"]')
    (tmp_path / "names.json").write_text('{"road": ["asphalt", "street"]}')
    for name in ("a", "b"):
        pixels = np.random.default_rng(0).integers(0, 90, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    args = ["eval", "--dataset", "folder", "--root", tmp_path, "--class-names", tmp_path / "names.json", *FAST]
    code, data, _ = run_json(capsys, *args, "--limit", "1", "--json")
    assert code == 0
    assert (data["dataset"], data["split"], data["model"], data["images"]) == ("folder", "val", "nano", 1)
    expected = {"miou", "iou", "pixel_accuracy", "boundary_f1", "boundary_iou", "ms_per_image"}
    assert set(data) == expected | {"dataset", "split", "model", "images", "protocol", "sizes", "trimap_miou", "ece"}
    assert data["protocol"] == {"name": "native", "short_side": 64, "background": None, "window": None, "stride": None}
    assert set(data["sizes"]) == {"small", "thin", "large"}
    assert set(data["sizes"]["large"]) == {"recall", "found", "regions", "pixels"}
    assert set(data["iou"]) == {"road", "sky"} and 0 <= data["miou"] <= 1
    assert main([str(a) for a in args]) == 0
    assert "mIoU" in capsys.readouterr().out


def test_benchmarks_run_under_their_protocol_and_every_setting_can_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.ade20k(tmp_path, {"ADE_val_00000001": trees.label(0, 1, 2)})
    args = ["eval", "--dataset", "ade20k", "--root", tmp_path, "--device", "cpu", "--json"]
    code, data, _ = run_json(capsys, *args)
    assert code == 0 and (data["protocol"]["name"], data["protocol"]["short_side"]) == ("talk2dino", 448)
    assert data["protocol"]["stride"] == 224 and data["protocol"]["background"] is None and len(data["iou"]) == 150
    changes = "--short-side 64 --max-long-side 300 --window 32 --stride 16 --score cosine --cleaning-weight 0.1 "
    changes += "--pamr --pamr-dilations 1 2 --window-align-corners off --final-align-corners on --batch-size 3"
    code, data, _ = run_json(capsys, *args, *changes.split())
    assert code == 0
    assert data["protocol"] == {
        "name": "talk2dino",
        "short_side": 64,
        "max_long_side": 300,
        "window": 32,
        "stride": 16,
        "templates": list(TEMPLATES),
        "score": "cosine",
        "window_align_corners": False,
        "final_align_corners": True,
        "background": None,
        "cleaning": "off",
        "cleaning_weight": 0.1,
        "pamr_iterations": 10,
        "pamr_dilations": [1, 2],
    }


def test_eval_of_camvid_beats_chance(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["eval", "--dataset", "camvid", "--root", data_root, "--split", "val", "--limit", "3", "--device", "cpu"]
    code, data, _ = run_json(capsys, *args, "--json")
    assert code == 0 and data["images"] == 3
    assert data["pixel_accuracy"] > 0.6 and data["miou"] > 0.2 and data["boundary_f1"] > 0.1


def test_data_check_reports_and_exits_by_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.ade20k(tmp_path, {"ADE_val_00000001": trees.label(0, 1)})
    code, data, err = run_json(capsys, "data", "check", "ade20k", "--root", tmp_path, "--json")
    assert code == 2 and (data["images"], data["expected"], data["usable"]) == (1, 2000, False)
    assert "ADEChallengeData2016.zip" in data["problems"][0] and err.startswith("error: ade20k: 1 of 2000")
    trees.folder(tmp_path / "own")
    assert main(["data", "check", "folder", "--root", str(tmp_path / "own")]) == 0
    out, err = capsys.readouterr()
    assert out == "folder val: 1 images, labels labels/*.png\ndecoded 1, 1 classes seen\n" and err == ""


def test_eval_says_which_labels_it_ignores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.folder(tmp_path)
    trees.write(tmp_path / "labels" / "a.png", np.array([[0] * 6, [0] * 6, [255] * 6, [255] * 6], np.uint8))
    code, data, err = run_json(capsys, "eval", "--dataset", "folder", "--root", tmp_path, "--json", *FAST)
    assert code == 0 and data["images"] == 1
    assert "note: folder val: the labels hold only 0 and 255, and the 50.0% of the label pixels that are 255" in err


def test_data_convert_writes_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.cityscapes(tmp_path, {("a", "a_1"): trees.label(7)}, "labelIds")
    args = ["data", "convert", "cityscapes", "--root", tmp_path, "--output", tmp_path / "out", "--json"]
    code, data, _ = run_json(capsys, *args)
    assert code == 0 and data["files"] == 1
    assert (tmp_path / "out" / "gtFine" / "val" / "a" / "a_1_gtFine_labelTrainIds.png").is_file()


def test_report_reads_what_eval_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.folder(tmp_path)
    assert main(["eval", "--dataset", "folder", "--root", str(tmp_path), "--json", *FAST]) == 0
    (tmp_path / "r.json").write_text(capsys.readouterr().out)
    assert main(["report", f"mine={tmp_path / 'r.json'}", "--output", str(tmp_path / "r.md")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.md'}: 1 results\n"
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| mine | folder val | 1 |" in text and "| Talk2DINO-B | no | 61.5 |" in text
    assert main(["report"]) == 0
    assert "not measured" in capsys.readouterr().out


def test_models_lists_the_shipped_one_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, data, _ = run_json(capsys, "models", "--json")
    assert code == 0 and data["models"][0]["name"] == "nano"
    notes = {model["name"]: model["note"] for model in data["models"]}
    assert {"s14", "b14", "l14", "s16v3", "b16v3"} <= set(notes)
    # Talk2DINO publishes projections for ViT-B and ViT-L of DINOv2 and for ViT-B of DINOv3, none for ViT-S
    assert {name for name, note in notes.items() if "your own projection" in note} == {"s14", "s16v3"}
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "vit_base_patch14_reg4_dinov2.lvd142m" in out and "ovsdino[clip]" in out


def test_doctor_reports_every_part(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    code, data, _ = run_json(capsys, "doctor", "--json")
    assert code == 0 and data["problems"] == []
    assert data["packages"]["torch"] and data["devices"][0]["name"] == "cpu"
    assert data["weights"][0]["model"] == "nano" and data["weights"][0]["state"] == "ok"
    assert "reference" in data["ops"]["upsample_argmax"]["cpu"]
    assert data["environment"]["OVSDINO_OFFLINE"]["value"] == "1"
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in doctor.ENVIRONMENT) and "no problems found" in out


def test_doctor_finds_damaged_weights_and_bad_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ovsdino.models import shipped

    data = bytearray((shipped.WEIGHTS / shipped.manifest()["nano"].file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / shipped.manifest()["nano"].file).write_bytes(data)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.setenv("OVSDINO_CUDA", "maybe")
    code, report, _ = run_json(capsys, "doctor", "--json")
    assert code == 2 and len(report["problems"]) == 2
    assert "damaged" in report["problems"][0] and "OVSDINO_CUDA=maybe" in report["problems"][1]
    assert main(["doctor"]) == 2 and "to fix:" in capsys.readouterr().out


def test_every_environment_variable_of_the_sources_is_in_the_doctor() -> None:
    files = [*(ROOT / "ovsdino").rglob("*.py"), ROOT / "setup.py"]
    pattern = re.compile(r"(?:environ|getenv)[^\n]{0,20}[\"'](OVSDINO_[A-Z_]+)")
    used = {name for file in files if file.is_file() for name in pattern.findall(file.read_text(encoding="utf-8"))}
    assert used and used <= set(doctor.ENVIRONMENT)


def test_train_hands_its_arguments_over(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("ovsdino.train.__main__.main", lambda argv: seen.append(argv) or 0)
    assert main(["train", "c.yaml", "optim.steps=3", "output=runs/x"]) == 0
    assert main(["train", "c.yaml", "output=runs/x", "--steps", "3"]) == 0
    assert seen == [["c.yaml", "optim.steps=3", "output=runs/x"], ["c.yaml", "output=runs/x", "optim.steps=3"]]


IMPORTS = """
import contextlib, io, sys
import ovsdino, ovsdino.cli
from ovsdino.parsing import Group
with contextlib.redirect_stderr(io.StringIO()):
    for name, command in ovsdino.cli.COMMANDS.items():
        for inner in command.commands if isinstance(command, Group) else ("",):
            line = [word for word in (name, inner) if word]
            assert ovsdino.cli.main([*line, "--help"]) == 0 and ovsdino.cli.main([*line, "--nothing"]) == 2
    assert ovsdino.cli.main(["--help"]) == 0 and ovsdino.cli.main(["--version"]) == 0 and ovsdino.cli.main(["x"]) == 2
print(*sorted({"torch", "numpy", "PIL", "timm", "rich", "scipy"} & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_usage_errors_of_every_command_import_neither_torch_nor_numpy() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and done.stderr == "\n", done.stderr
    assert "--classes" in done.stdout and re.search(r"^ovsdino \d", done.stdout, re.M)


def test_the_real_command_segments_and_fails_cleanly(street: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    out = tmp_path / "out"
    done = command("segment", street, bad, "--classes", "road, sky", "--output", out, "--json", *FAST)
    assert done.returncode == 2
    data = json.loads(done.stdout)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING: an image is unlike")]
    assert done.stdout.count("\n") == 1 and len(lines) == 1 and lines[0].startswith("error: ")
    assert Path(data["images"][0]["output"]).is_file() and "error" in data["images"][1]


def test_a_closed_pipe_is_no_error(street: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m ovsdino doctor | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        check=False,
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr and "Exception" not in done.stderr
