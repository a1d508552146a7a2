"""The ablation runner: a variant changes what it says, finished runs are kept, mistakes show before training."""

import json

import pytest
import torch
import yaml

from ovsdino.commands.ablate import Ablate
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import lock_folder
from ovsdino.models.zoo import build_model
from ovsdino.train.ablation import Ablation, _scores, load_ablation, markdown, run_ablation, summary
from tests.train.test_trainer import config_file, folder  # noqa: F401  (a fixture)

IMAGE = (1, 3, 32, 48)


@pytest.fixture
def study_file(folder, tmp_path):  # noqa: F811
    """Two variants on two seeds, two steps each, on pictures of two colors."""
    config_file(folder, tmp_path)
    tree = {
        "base": "config.yaml",
        "output": str(tmp_path / "study"),
        "seeds": [0, 1],
        "pretrain": {"decoder": False, "optim": {"steps": 2}, "eval_every": 0},
        "train": {"train_backbone": False, "optim": {"steps": 2}, "eval_every": 0},
        "variants": {"baseline": {"decoder": False}, "no gate": {"architecture": {"smd": {"gate": "none"}}}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_a_study_trains_every_variant_on_its_seeds_backbone_and_goes_on_where_it_stopped(study_file, tmp_path, capsys):
    said = []
    study, base = load_ablation(study_file)
    report = run_ablation(study, base, said.append)
    assert [row["variant"] for row in report["rows"]] == ["baseline", "no gate"]
    assert report["rows"][0]["miou_gain"] == 0 and report["rows"][0]["gflops"] < report["rows"][1]["gflops"]
    assert said == [f"seed {s}: {x}" for s in (0, 1) for x in ("backbone", "baseline", "no gate")]
    for seed in (0, 1):
        from safetensors.torch import load_file

        backbone = load_file(tmp_path / f"study/backbone_{seed}/last.safetensors")
        tuned = load_file(tmp_path / f"study/no gate_{seed}/last.safetensors")
        frozen = [key for key in backbone if key.startswith("backbone.")]
        assert frozen and all(torch.equal(backbone[key], tuned[key]) for key in frozen)
        assert tuned["decoder.smd.out.weight"].any()  # zero at the start
    again: list[str] = []
    (tmp_path / "study/no gate_1.json").unlink()
    scores = {key: value for key, value in run_ablation(study, base, again.append)["rows"][1].items() if key != "ms"}
    assert again == ["seed 1: no gate"]
    assert scores == {key: value for key, value in report["rows"][1].items() if key != "ms"}
    assert Ablate(config=str(study_file), output=tmp_path / "table.json", json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "table.json").read_text())
    assert (tmp_path / "table.md").read_text().count("\n") == 4


def test_runs_of_other_settings_are_not_taken_for_this_studys(study_file, tmp_path):
    study, base = load_ablation(study_file, ("seeds=[0]",))
    run_ablation(study, base, str)
    longer, base = load_ablation(study_file, ("seeds=[0]", "train.optim.steps=3"))
    with pytest.raises(OVSDinoError, match=r"baseline_0: made with optim .*'steps': 2.*choose another output"):
        run_ablation(longer, base, str)
    (tmp_path / "study/no gate_0/settings.json").unlink()
    with pytest.raises(OVSDinoError, match=r"no gate_0: no record of the settings"):
        run_ablation(study, base, str)


def test_two_studies_in_one_folder_are_refused(study_file, tmp_path):
    study, base = load_ablation(study_file)
    with lock_folder(tmp_path / "study", "study"), pytest.raises(OVSDinoError, match="another study is writing"):
        run_ablation(study, base, str)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"miou": 0.5}', '{"miou": "x"}', "[" * 5000])
def test_a_damaged_result_of_a_run_is_named(tmp_path, content):
    path = tmp_path / "baseline_0.json"
    path.write_text(content)
    with pytest.raises(
        OVSDinoError, match=r"baseline_0\.json: not a readable result of a run: .*; remove it to measure"
    ):
        _scores(path)


def test_the_gain_is_taken_seed_by_seed():
    study = Ablation(base="", seeds=(0, 1), variants={"a": {}, "b": {}})
    scores = {"boundary_f1": 0.5, "boundary_iou": 0.5, "pixel_accuracy": 0.5}
    runs = {
        "a": [{"miou": 0.1, **scores}, {"miou": 0.5, **scores}],
        "b": [{"miou": 0.2, **scores}, {"miou": 0.7, **scores}],
    }
    costs = {name: {"gflops": 1.0, "ms": 2.0} for name in runs}
    row = summary(study, runs, costs)["rows"][1]
    # means 0.3 and 0.45; the gains 0.1 and 0.2 spread by 0.0707, the scores themselves by 0.35
    assert (row["miou"], row["miou_gain"], row["miou_gain_std"], row["miou_std"]) == (0.45, 0.15, 0.0707, 0.3536)
    report = summary(study, runs, costs)
    assert "| b | 45.0 ± 35.4 | +15.0 ± 7.1 | 50.0 ± 0.0 | +0.0 ± 0.0 | 1.00 | 2 |" in markdown(report)
    assert "| b | 45.0 | +15.0 | 50.0 | +0.0 | 1.00 | 2 |" in markdown({**report, "seeds": [0]})  # one has no spread


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"smd": None}, "decoder.smd"),
        ({"smd": {"gate": "none"}}, "decoder.smd.gate"),
        ({"smd": {"structure": False}}, "decoder.smd.blocks.0.log_lambda"),
        ({"upsampling": "bilinear"}, "decoder.score_attention"),
        ({"detail": False}, "decoder.detail"),
        ({"backbone": {"taps": [5]}}, "decoder.sae.taps.1"),
    ],
)
def test_a_variant_has_no_such_part_runs_and_starts_as_the_baseline(changes, gone):
    whole, model = build_model("vit6"), build_model("vit6", changes=changes)
    assert any(key.startswith(gone) for key in whole.state_dict())
    assert not any(key.startswith(gone) for key in model.state_dict())
    image, text = torch.randn(IMAGE), model.encode_text(["road", "car"])
    with torch.no_grad():
        features = model.eval().encode_image(image)
        fine, coarse = model.decode(features, text), model.coarse_logits(features, text)
        torch.testing.assert_close(coarse, model.coarse_logits(type(features)(model.backbone(image)[0]), text))
    assert fine.shape[2:] == (8, 12)
    torch.testing.assert_close(fine, torch.nn.functional.interpolate(coarse, (8, 12), mode="bilinear"))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("variants.wrong={architecture: {smd: {gates: false}}}", "vit6.smd: no field 'gates'; fields: blocks"),
        ("variants.wrong={architecture: {smd: {gate: {a: 1}}}}", "vit6.smd.gate: no field 'a'; fields: none"),
        ("variants.wrong={decodr: false}", "unknown key 'decodr'"),
        ("variant={}", "unknown key 'variant'"),
        ("seeds=[]", "seeds: expected 1 to 1000 entries, got 0"),
        ("seeds=3", "seeds: expected a list, got 3"),
        ("variants={baseline: {}}", "variants: expected 2 to 1000 entries, got 1"),
        ("variants={a: {}, b: 3}", "variants.b: expected a mapping, got 3"),
        ("base=3", "base: expected str, got 3"),
        ("base=", "base is missing"),
        ("variants={a: {}, ../x: {}}", "cannot be the name of a folder"),
        ("seeds=[-1]", "seeds\\[0\\]: expected a whole number in \\[0, 2.14748e\\+09\\], got -1"),
        ("variants.wrong={optim: {lr: -1}}", "optim.lr: expected a number in"),
        ("base=none.yaml", "none.yaml: no such file"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(study_file, tmp_path, change, shown):
    with pytest.raises(OVSDinoError, match=shown):
        load_ablation(study_file, (change,))
    assert not (tmp_path / "study").exists()


def test_a_study_without_variants_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_text("base: vit6.yaml\n")
    with pytest.raises(OVSDinoError, match="variants: expected 2 to 1000 entries, got 0"):
        load_ablation(tmp_path / "study.yaml")


def test_the_table_goes_into_its_place_in_a_page(study_file, tmp_path, monkeypatch):
    from ovsdino.train import ablation

    row = {"variant": "all", "gflops": 1.0, "ms": 2.0}
    row |= {f"{score}{part}": 0.5 for score in ablation.SCORES for part in ("", "_std", "_gain", "_gain_std")}
    monkeypatch.setattr(ablation, "run_ablation", lambda *_: {"seeds": [0], "rows": [row]})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- out.json -->\nold\n<!-- end -->\nafter\n")
    command = Ablate(config=str(study_file), output=tmp_path / "out.json", table=page)
    assert command.run() == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- out.json -->\n| variant |") and text.endswith("|\n<!-- end -->\nafter\n")
    assert "| all | 50.0 | +50.0 |" in text and "old" not in text
    page.write_text("no place")
    with pytest.raises(OVSDinoError, match=r"has no lines <!-- out\.json --> and <!-- end -->"):
        command.run()
