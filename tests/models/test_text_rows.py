"""Groups of rows: several words a class, and contrast rows that share one map."""

import pytest
import torch
import torch.nn.functional as F

from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import HashedTextTower
from ovsdino.models.text_rows import TextRows

D = 32
TINY = ModelConfig(
    name="tiny",
    backbone=BackboneConfig(timm_name="small_vit", patch_size=16, embed_dim=D, depth=4, num_heads=2, taps=(0, 1, 2, 3)),
    sae=SAEConfig(guide_dim=16, mid_dim=16, structure_dim=D),
    smd=SMDConfig(width=D, heads=2, head_dim=8, structure_rank=7, value_dim=16),
    text=TextConfig(kind="hashed", width=16, buckets=64),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = OVSDINO(TINY, HashedTextTower(D, 16, 64)).eval()
    torch.nn.init.constant_(model.decoder.score_attention.mix, 0.5)
    torch.nn.init.normal_(model.decoder.detail.weight, std=0.1)
    return model


@pytest.fixture
def features(model):
    with torch.no_grad():
        return model.encode_image(torch.randn(2, 3, 64, 96))


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_one_word_a_class_is_the_bank_of_rows(model, features):
    rows = unit(5, D)
    with torch.no_grad():
        torch.testing.assert_close(
            model.decode(features, TextRows(rows[:, None])), model.decode(features, rows), atol=1e-5, rtol=0
        )


def test_a_class_of_several_words_takes_the_maximum_at_the_grid_and_the_mean_of_rows_for_the_residual(model, features):
    three, one = unit(3, D), unit(1, D)
    with torch.no_grad():
        alone = [model.coarse_logits(features, rows) for rows in (three, one)]
        coarse = torch.cat([part.amax(1, keepdim=True) for part in alone], 1)
        bank = torch.cat([three.mean(0, keepdim=True), one])
        expected = model.decoder.refine(coarse, features.structure.guide, bank * model.log_scale.exp())
        found = model.decode(features, TextRows.of([three, one]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_contrast_rows_share_the_last_map_and_take_no_residual(model, features):
    words, contrast = unit(2, D), unit(7, D)
    with torch.no_grad():
        coarse = torch.cat(
            [
                model.coarse_logits(features, words),
                model.coarse_logits(features, contrast).amax(1, keepdim=True),
            ],
            1,
        )
        bank = torch.cat([words, torch.zeros(1, D)]) * model.log_scale.exp()
        expected = model.decoder.refine(coarse, features.structure.guide, bank)
        found = model.decode(features, TextRows(words[:, None], contrast))
    assert found.shape[1] == 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_rows_of_zeros_are_absent(model, features):
    """Padding by hand, and a contrast of zeros alone, change nothing; an absent channel has no share of a softmax."""
    words, contrast = unit(2, D), unit(3, D)
    padded = TextRows(F.pad(words[:, None], (0, 0, 0, 4)), F.pad(contrast, (0, 0, 0, 5)))
    with torch.no_grad():
        plain = model.decode(features, TextRows(words[:, None], contrast))
        torch.testing.assert_close(model.decode(features, padded), plain, atol=1e-5, rtol=0)
        none = model.decode(features, TextRows(words[:, None], torch.zeros(1, D)))
    torch.testing.assert_close(none[:, :2], model.decode(features, words), atol=1e-5, rtol=0)
    assert none.softmax(1)[:, 2].max() == 0


def test_a_prior_weighs_the_classes_and_not_the_contrast(model, features):
    words, contrast = unit(2, D), unit(3, D)
    rows = TextRows(words[:, None], contrast)
    with torch.no_grad():
        plain = model.decode(features, rows)
        weighed = model.decode(features, rows, torch.tensor([0.9, 0.1]), tau=1.0)
    torch.testing.assert_close(weighed[:, 2], plain[:, 2], atol=1e-5, rtol=0)
    assert (weighed[:, 1] > weighed[:, 0]).float().mean() > (plain[:, 1] > plain[:, 0]).float().mean()


def test_the_exported_form_is_the_same_function(model):
    image, words, contrast = torch.randn(1, 3, 32, 32), unit(2, 2, D), unit(3, D)
    with torch.no_grad():
        expected = model.decode(model.encode_image(image), TextRows(words, contrast))
        assert torch.equal(model(image, words, contrast), expected)


@pytest.mark.parametrize(
    ("words", "contrast", "message"),
    [
        ((2, D), None, r"words must be \(K, W, D\)"),
        ((2, 1, D), (3, D + 1), r"contrast must be \(C, 32\)"),
    ],
)
def test_wrong_shapes_are_refused(words, contrast, message):
    with pytest.raises(ValueError, match=message):
        TextRows(torch.zeros(words), None if contrast is None else torch.zeros(contrast))


def test_a_bank_of_another_width_is_refused(model, features):
    with pytest.raises(ValueError, match=r"words must be \(K, W, 32\)"):
        model.decode(features, TextRows(torch.zeros(2, 1, D - 1)))
