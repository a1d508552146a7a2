"""The whole module: baseline identity, cost budget, shapes, text."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ovsdino.models import zoo
from ovsdino.models.backbone import normalize, num_parameters
from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.text import HashedTextTower

TINY = ModelConfig(
    name="tiny",
    backbone=BackboneConfig(
        timm_name="small_vit", patch_size=16, embed_dim=32, depth=4, num_heads=2, taps=(0, 1, 2, 3)
    ),
    sae=SAEConfig(guide_dim=16, mid_dim=16, structure_dim=32),
    smd=SMDConfig(width=32, heads=2, head_dim=8, structure_rank=7, value_dim=16),
    text=TextConfig(kind="hashed", width=16, buckets=64),
)


@pytest.fixture
def tiny():
    return OVSDINO(TINY, HashedTextTower(32, 16, 64)).eval()


def tiny_with(**changes):
    return OVSDINO(TINY.changed(changes), HashedTextTower(32, 16, 64)).eval()


FORMS = [
    {},
    {"upsampling": "bilinear", "smd": {"gate": "none"}},
    {"score_attention": {"structure": False}, "smd": {"structure": False}},
]


@pytest.mark.parametrize("changes", FORMS)
def test_fresh_decoder_is_the_baseline_bit_for_bit(changes):
    tiny = tiny_with(**changes)
    image = torch.randn(2, 3, 64, 96)
    text = tiny.encode_text(["road", "car", "sky"])
    with torch.no_grad():
        tokens, _ = tiny.backbone(image)
        scaled_text = text * tiny.log_scale.exp()
        baseline = torch.einsum("bdhw,kd->bkhw", normalize(tokens), scaled_text)
        features = tiny.encode_image(image)
        assert torch.equal(features.tokens, tokens)
        assert torch.equal(tiny.coarse_logits(features, text), baseline)
        fine = F.interpolate(baseline, (16, 24), mode="bilinear", align_corners=False)
        assert torch.equal(tiny(image, text), fine)


def test_a_prior_is_taken_from_the_logits_of_each_class(tiny):
    """tau log prior: on the coarse logits, so before the shares of a token are carried to its pixels."""
    torch.nn.init.constant_(tiny.decoder.score_attention.mix, 1.0)
    text, prior = tiny.encode_text(["road", "car", "sky"]), torch.tensor([0.9, 0.05, 0.05])
    with torch.no_grad():
        features = tiny.encode_image(torch.randn(2, 3, 32, 48))
        scaled, guide = text * tiny.log_scale.exp(), features.structure.guide
        coarse = tiny.coarse_logits(features, text)
        for tau in (0.5, 2.0):
            expected = tiny.decoder.refine(coarse - tau * prior.log()[:, None, None], guide, scaled)
            torch.testing.assert_close(tiny.decode(features, text, prior, tau), expected)
        plain = tiny.decode(features, text)
        assert torch.equal(tiny.decode(features, text, prior, 0.0), plain)
        torch.testing.assert_close(tiny.decode(features, text, torch.full((3,), 1 / 3)).softmax(1), plain.softmax(1))
        banks = text.expand(2, -1, -1)
        torch.testing.assert_close(tiny.decode(features, banks, prior), tiny.decode(features, text, prior))
        assert (tiny.decode(features, text, prior).argmax(1) == 0).sum() < (plain.argmax(1) == 0).sum()
        with pytest.raises(ValueError, match=r"prior must be \(3,\)"):
            tiny.decode(features, text, prior[:2])


def test_without_decoder_logits_are_the_coarse_ones():
    model = OVSDINO(replace(TINY, sae=None, smd=None), HashedTextTower(32, 16, 64)).eval()
    text = model.encode_text(["road", "car"])
    assert not model.has_decoder
    assert model(torch.randn(1, 3, 32, 48), text).shape == (1, 2, 2, 3)


def test_trained_parts_leave_the_baseline(tiny):
    torch.manual_seed(1)
    image, text = torch.randn(1, 3, 32, 32), tiny.encode_text(["a", "b"])
    before = tiny(image, text)
    torch.nn.init.normal_(tiny.decoder.smd.out.weight)
    after_smd = tiny(image, text)
    torch.nn.init.constant_(tiny.decoder.score_attention.mix, 1.0)
    after_mix = tiny(image, text)
    torch.nn.init.normal_(tiny.decoder.detail.weight)
    after_detail = tiny(image, text)
    assert not torch.allclose(before, after_smd)
    assert not torch.allclose(after_smd, after_mix)
    assert not torch.allclose(after_mix, after_detail)


@pytest.mark.parametrize("changes", FORMS)
def test_every_decoder_parameter_receives_a_gradient(changes):
    torch.manual_seed(0)
    tiny = tiny_with(**changes)
    for name, parameter in tiny.decoder.named_parameters():
        if name in ("smd.out.weight", "smd.gate.weight", "detail.weight") or name.endswith("mix"):
            torch.nn.init.constant_(parameter, 0.1)
    logits = tiny(torch.randn(1, 3, 64, 64), tiny.encode_text(["a", "b", "c"]))
    features = tiny.encode_image(torch.randn(1, 3, 64, 64))
    (logits.square().sum() + features.structure.boundary.square().sum()).backward()
    silent = [n for n, p in tiny.decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_detail_on_logits_equals_detail_on_features(tiny):
    torch.manual_seed(0)
    torch.nn.init.normal_(tiny.decoder.detail.weight)
    guide, text = torch.randn(1, 16, 8, 8), torch.randn(5, 32)
    folded = tiny.decoder.refine(torch.zeros(1, 5, 2, 2), guide, text)
    per_pixel = torch.einsum("bchw,dc,kd->bkhw", guide, tiny.decoder.detail.weight, text)
    torch.testing.assert_close(folded, per_pixel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes", "budget"),
    [("s14", 20, 0.12), ("b14", 20, 0.05), ("b14", 150, 0.05), ("s16v3", 20, 0.12), ("b16v3", 150, 0.05)],
)
def test_structure_costs_stay_within_the_budget_at_448(name, classes, budget):
    with torch.device("meta"):
        model = zoo.build_model(name).eval()
    image = torch.zeros(1, 3, 448, 448, device="meta")
    text = torch.zeros(classes, model.config.embed_dim, device="meta")
    with torch.no_grad():
        features, taps = model.backbone(image)
        structure = model.decoder.sae(image, taps).tokens
    runs = {
        "all": lambda: model(image, text),
        "backbone": lambda: model.backbone(image),
        "smd": lambda: model.decoder.smd(features, structure),
    }
    flops = {}
    for label, run in runs.items():
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            run()
        flops[label] = counter.get_total_flops()
    # The count is honest only when it holds the structure attention: QK^T and AV of 64 channels a head, and the MLPs.
    smd, tokens = model.config.smd, (448 // model.config.patch_size) ** 2
    attention = 2 * tokens**2 * smd.heads * (64 + smd.value_dim) * smd.blocks
    mlp = 2 * tokens * 2 * smd.width**2 * smd.mlp_ratio * smd.blocks
    assert flops["smd"] > attention + mlp
    # And the attention below the token, whose tiles of 4 x 4 tokens see the 576 keys of 12 x 12.
    c = model.config.score_attention
    below = 2 * tokens * (4 // c.query_stride) ** 2 * 576 * (16 + classes)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        coarse = model.coarse_logits(ImageFeatures(features), text)
        fine = F.interpolate(coarse, scale_factor=4.0)
        model.decoder.score_attention(coarse, fine, structure.new_empty(1, 64, *fine.shape[2:]))
    assert counter.get_total_flops() > below
    assert 0 < flops["all"] - flops["backbone"] <= budget * flops["backbone"]


def test_nano_is_within_its_parameters_and_operations():
    with torch.device("meta"):
        model = zoo.build_model("nano").eval()
    assert num_parameters(model) <= 6_500_000
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, 352, 464, device="meta"), torch.zeros(11, 256, device="meta"))
    whole = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.backbone(torch.zeros(1, 3, 352, 464, device="meta"))
    assert 1e9 < counter.get_total_flops() < whole <= 5e9


def test_text_bank_rows_have_length_one_and_average_synonyms(tiny):
    bank = tiny.encode_text(["road", ["car", "vehicle"]])
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(2))
    car, vehicle = tiny.encode_text(["car"])[0], tiny.encode_text(["vehicle"])[0]
    mean = (car + vehicle) / 2
    torch.testing.assert_close(bank[1], mean / mean.norm())


@pytest.mark.parametrize("names", [[], ["road", []]])
def test_empty_names_are_refused(tiny, names):
    with pytest.raises(ValueError, match="name"):
        tiny.encode_text(names)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (3, 32, 32), (1, 4, 32, 32), (1, 3, 0, 32)])
def test_image_shapes_that_do_not_fit_are_named(tiny, shape):
    with pytest.raises(ValueError, match=r"image must be"):
        tiny.encode_image(torch.zeros(shape))


def test_text_of_the_wrong_width_is_named(tiny):
    with pytest.raises(ValueError, match=r"text must be \(K, 32\)"):
        tiny(torch.zeros(1, 3, 32, 32), torch.zeros(2, 31))


def test_image_size_may_vary_and_needs_no_resize_to_a_square(tiny):
    text = tiny.encode_text(["a", "b"])
    assert tiny(torch.randn(1, 3, 16, 16), text).shape == (1, 2, 4, 4)
    assert tiny(torch.randn(3, 3, 48, 160), text).shape == (3, 2, 12, 40)


def test_patch_fourteen_resizes_the_image_for_the_pixel_stem():
    config = replace(
        TINY,
        backbone=BackboneConfig(
            timm_name="small_vit", patch_size=14, embed_dim=32, depth=4, num_heads=2, taps=(0, 1, 2, 3)
        ),
    )
    model = OVSDINO(config, HashedTextTower(32, 16, 64)).eval()
    assert model(torch.randn(1, 3, 42, 56), model.encode_text(["a"])).shape == (1, 1, 12, 16)
