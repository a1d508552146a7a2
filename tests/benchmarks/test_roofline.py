"""The roofline: counts against closed formulas and PyTorch's own counter, bounds against a table worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ovsdino.benchmarks.lib.report import RESULTS, ROOT
from ovsdino.benchmarks.lib.roofline_rows import DEVICES, EFFICIENCY, Device, committed_rows, plain_row, zoo_row
from ovsdino.benchmarks.lib.roofline_tables import expected_table, markdown
from ovsdino.benchmarks.roofline import Roofline
from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import build_model

# GFLOP, then ms of float16 and of INT8 linear layers with float16 attention, for AGX Orin, Orin NX 16 GB, Orin Nano
# Super and H200: worked out from FLOP = 2 L (12 N D^2 + 2 N^2 D) + patch embedding, with the rates of those devices.
TABLE = {
    ("S", 448, 448): (63, (1.5, 1.0), (4.2, 2.8), (3.8, 2.5), (0.06, 0.04)),
    ("S", 518, 518): (93, (2.2, 1.5), (6.2, 4.3), (5.6, 3.8), (0.09, 0.07)),
    ("S", 448, 896): (165, (3.9, 2.9), (11.0, 8.1), (9.9, 7.3), (0.17, 0.12)),
    ("B", 448, 448): (214, (5.0, 3.0), (14.3, 8.4), (12.8, 7.6), (0.22, 0.13)),
    ("B", 518, 518): (303, (7.1, 4.4), (20.2, 12.4), (18.2, 11.2), (0.31, 0.19)),
    ("B", 448, 896): (505, (11.9, 7.8), (33.7, 21.9), (30.2, 19.7), (0.51, 0.33)),
}
NAMED = {device.name: device for device in DEVICES}
COLUMNS = ("AGX Orin 64 GB", "Orin NX 16 GB", "Orin Nano Super", "H200")


@pytest.fixture(scope="module")
def committed():
    return committed_rows()


@pytest.fixture(scope="module")
def rows(committed):
    plain, zoo = committed
    return {(row.model, row.height, row.width): row for row in (*plain, *zoo)}


@pytest.mark.parametrize(("letter", "height", "width"), TABLE)
def test_the_plain_transformers_have_the_published_bounds(rows, letter, height, width):
    row = rows[f"ViT-{letter}/14", height, width]
    gflop, *columns = TABLE[letter, height, width]
    assert row.total.flops / 1e9 == pytest.approx(gflop, abs=0.5)
    for name, times in zip(COLUMNS, columns, strict=True):
        half = 0.005 if name == "H200" else 0.05  # of the table's last digit
        for precision, ms in zip(("float16", "int8"), times, strict=True):
            assert row.on(NAMED[name])[precision]["compute_ms"] == pytest.approx(ms, abs=half + 0.005 * ms)


def test_the_count_is_the_closed_formula_of_a_transformer(rows):
    tokens, dim, blocks = 1025, 384, 12
    row = rows["ViT-S/14", 448, 448]
    linear = 2 * blocks * 12 * tokens * dim**2 + 2 * 1024 * 588 * dim
    assert row.tokens == tokens
    assert row.total.linear == linear
    assert row.total.other == 2 * blocks * 2 * tokens**2 * dim
    # reads and writes: qkv 1 + 3, proj 1 + 1, the MLP 1 + 4 + 4 + 1 widths; attention 3 + 1
    assert row.total.linear_elements == blocks * 16 * tokens * dim + 3 * 448 * 448 + 1024 * dim
    assert row.total.other_elements == blocks * 4 * tokens * dim
    assert sum(row.weights) == pytest.approx(22.06e6, rel=0.001)  # DINOv2's ViT-S/14


@pytest.mark.parametrize("name", ["nano", "s14", "b16v3"])
def test_the_whole_model_has_the_flops_of_pytorchs_counter(name):
    with torch.device("meta"):
        model = build_model(name).eval()
    size = 16 * model.config.patch_size
    image, text = torch.empty(1, 3, size, size, device="meta"), torch.empty(7, model.config.embed_dim, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.coarse_logits(model.encode_image(image), text)
    row = zoo_row(name, size, size, 7)
    refined = row.parts["logits"].flops - 2 * 7 * 256 * model.config.embed_dim
    assert row.total.flops - refined == counter.get_total_flops()
    assert set(row.parts) == {"backbone", "sae", "smd", "logits"}
    by_part = counter.get_flop_counts()
    for part, module in (("sae", "StructureAwareEncoder"), ("smd", "StructureModulatedDecoder")):
        assert row.parts[part].flops == sum(by_part[module].values())


def test_the_refinement_grows_with_the_classes_and_the_backbone_does_not():
    few, many = zoo_row("nano", 288, 384, 10), zoo_row("nano", 288, 384, 110)
    assert few.parts["backbone"] == many.parts["backbone"] and few.parts["sae"] == many.parts["sae"]
    fine, guide, dim, coarse = 72 * 96, 48, 256, 18 * 24
    tiles = 5 * 6  # of 4 x 4 tokens, whose 16 pixels each see the 4 x 4 keys of 12 x 12 tokens
    attention = 2 * tiles * (16 * 16) * (4 * 144)
    per_class = fine * (7 + 2 * guide) + attention + 2 * coarse * dim + 2 * guide * dim
    assert many.parts["logits"].flops - few.parts["logits"].flops == 100 * per_class


def test_bound_and_expectation_follow_from_compute_and_memory(rows):
    row = rows["b14", 448, 448]
    for device in DEVICES:
        for precision, times in row.on(device).items():
            memory = row.megabytes(precision) / device.bandwidth_gbs
            assert times["memory_ms"] == pytest.approx(memory, abs=1e-4)
            assert times["bound_ms"] == max(times["compute_ms"], times["memory_ms"])
            assert times["expected_ms"] == pytest.approx(times["bound_ms"] / EFFICIENCY, abs=2e-4)
        assert row.on(device)["int8"]["bound_ms"] < row.on(device)["float16"]["bound_ms"]
    total = sum(row.weights)
    assert row.weights[0] > 0.9 * total  # nearly all of a transformer is in its linear layers
    assert row.megabytes("float16") - row.megabytes("int8") == pytest.approx(
        (row.weights[0] + row.total.linear_elements) / 1e6
    )


def test_int8_halves_the_linear_layers_and_leaves_the_rest():
    row = plain_row("S", 448, 448)
    device = Device("one", 1.0, 2.0, 1e9, "")
    times = row.on(device)
    expected = row.total.linear / 2e9 + row.total.other / 1e9
    assert times["int8"]["compute_ms"] == pytest.approx(expected, rel=1e-5)


def test_the_committed_tables_are_what_the_script_makes(committed):
    plain, zoo = committed
    report = json.loads((RESULTS / "roofline.json").read_text())
    assert report["results"] == json.loads(json.dumps([row.to_dict() for row in (*plain, *zoo)]))
    assert markdown(plain, zoo) in (ROOT / "benchmarks" / "roofline.md").read_text()
    assert expected_table(zoo) in (ROOT / "docs" / "jetson.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "s14", "height": 450}, "height is 450: s14 needs a multiple of 14, for instance 448"),
        ({"model": "nano", "classes": 0}, "classes is 0"),
        ({"model": "huge"}, "unknown model 'huge'"),
        ({"height": 448}, "name one"),
        ({"model": "nano", "write": True}, "leave out --model"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, message):
    with pytest.raises(OVSDinoError, match=message):
        Roofline(**arguments).run()


def test_json_is_one_object_of_the_model_asked_for(capsys):
    assert Roofline(model="nano", classes=11, json=True).run() == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["model"], row["height"], row["width"]) == ("nano", 352, 464)
    assert row["parameters_million"] < 6 and row["gflop"] == pytest.approx(sum(row["gflop_parts"].values()), abs=0.01)
