"""The terms against values worked apart from the code."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.train.mixed.config import MixedConfig, PictureSet, TeacherConfig
from ovsdino.train.mixed.objective import REGIONS, LabeledPart, MixedObjective, region_masks
from tests.support.small import small_model

D = 32


def rows(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, D), dim=1)


def objective(model, **changes) -> MixedObjective:
    tree = {"pictures": PictureSet(sharpness=4.0), **changes.pop("config", {})}
    words = changes.pop("words", torch.eye(D)[:3])
    same = changes.pop("same", torch.zeros(len(words), len(words), dtype=torch.bool))
    return MixedObjective(
        model,
        MixedConfig(**tree),
        words,
        same,
        changes.get("teacher"),
        changes.get("names", rows(5)),
        changes.get("vocabulary", rows(7)),
    )


def labeled(model, labels: torch.Tensor, asked: torch.Tensor, contrast: torch.Tensor, **changes) -> LabeledPart:
    return LabeledPart(
        images=torch.rand(len(labels), 3, *labels.shape[1:]),
        labels=labels,
        rows=asked,
        contrast=contrast,
        weights=torch.ones(len(asked) + 1),
        edges=changes.get("edges", True),
        weight=1.0,
    )


def test_contrast_rows_are_one_channel_their_maximum() -> None:
    """Training sees the function that inference has: `OVSDINO.decode` of `TextRows` with contrast rows."""
    from ovsdino.models.text_rows import TextRows

    model = small_model()
    asked, contrast = rows(2), rows(5)
    labels = torch.randint(0, 3, (2, 48, 80))
    part = labeled(model, labels, asked, contrast, edges=False)
    with torch.no_grad():
        features = model.encode_image(part.images)
        terms = objective(model)._labeled(part, features)
        logits = model.decode(features, TextRows(asked[:, None], contrast))
        coarse = model.coarse_logits(features, TextRows(asked[:, None], contrast))
    assert terms.keys() == {"cross_entropy", "dice", "coarse"} and logits.shape[1] == 3
    fine = F.interpolate(logits, (24, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(fine, labels[:, ::2, ::2]))
    share = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    share = F.avg_pool2d(share, 16)
    expected = -(share * coarse.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["coarse"], expected)


def test_unknown_pixels_teach_nothing() -> None:
    model = small_model()
    labels = torch.full((1, 48, 80), 255)
    labels[:, :, :16] = 1
    part = labeled(model, labels, rows(2), rows(3))
    with torch.no_grad():
        features = model.encode_image(part.images)
        before = objective(model)._labeled(part, features)
        features.tokens[..., 1:] = torch.randn_like(features.tokens[..., 1:])
        after = objective(model)._labeled(part, features)
    torch.testing.assert_close(before["coarse"], after["coarse"])


def test_edges_of_labels_teach_only_where_labels_end_at_edges() -> None:
    model = small_model()
    labels = torch.zeros(1, 48, 80, dtype=torch.int64)
    labels[:, :, 32:] = 1
    with torch.no_grad():
        for edges in (True, False):
            part = labeled(model, labels, rows(2), rows(3), edges=edges)
            found = objective(model)._labeled(part, model.encode_image(part.images))
            assert ({"boundary", "affinity"} <= found.keys()) is edges


def test_a_pictures_word_is_pooled_over_its_positions() -> None:
    model = small_model()
    tokens = torch.zeros(1, D, 1, 2)
    tokens[0, 0, 0, 0], tokens[0, 1, 0, 1] = 2.0, 3.0  # one position says the first word, the other the second
    features = ImageFeatures(tokens)
    scale, r = model.log_scale.exp().item(), 4.0
    # (1/r) log mean exp(r cos): two of three words are said by half of the positions, the third by none
    said = (math.log((math.exp(r) + 1) / 2)) / r
    found = objective(model)._pictures(features, torch.tensor([0])).item()
    expected = math.log(2 * math.exp(scale * said) + 1) - scale * said
    assert found == pytest.approx(expected, rel=1e-4)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True  # now the second word is as good as the first
    found = objective(model, same=same)._pictures(features, torch.tensor([0])).item()
    assert found == pytest.approx(math.log(math.exp(scale * said) + 1) - scale * said, abs=1e-6)


class Answers(torch.nn.Module):
    """A teacher whose answers are planted."""

    def __init__(self, classes: torch.Tensor, words: torch.Tensor) -> None:
        super().__init__()
        self.classes, self.words, self.asked = classes, words, []

    def forward(self, images, drawn, bf16):
        self.asked.append((len(images), drawn))
        return self.classes.expand(len(drawn), -1), self.words.expand(len(drawn), -1)


def test_the_students_words_approach_the_teachers() -> None:
    model = small_model()
    names, vocabulary = torch.eye(D)[:5], torch.eye(D)[5:12]
    teacher = Answers(torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]), torch.eye(7)[2:3])
    config = {"teacher": TeacherConfig(positions=12, scale=20.0)}
    it = objective(model, teacher=teacher, names=names, vocabulary=vocabulary, config=config)
    tokens = torch.zeros(2, D, 2, 3)
    tokens[:, 1] = 1.0  # what the classifier says
    seen = [(torch.rand(2, 3, 32, 48), ImageFeatures(tokens))]
    found = it._taught(seen)
    # the class's cosine is 1, the four others' 0; all of the vocabulary's are 0
    assert found["classes"].item() == pytest.approx(math.log(1 + 4 * math.exp(-20)), abs=1e-6)
    assert found["words"].item() == pytest.approx(math.log(7), rel=1e-5)
    ((count, drawn),) = teacher.asked
    assert count == 2 and drawn.sort().values.tolist() == list(range(12))


def test_the_teachers_classes_count_by_how_sure_it_is() -> None:
    model = small_model()
    names = torch.eye(D)[:2]

    class Two(torch.nn.Module):
        def forward(self, images, drawn, bf16):
            sure, unsure = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
            classes = torch.stack([sure if int(i) == 0 else unsure for i in drawn])
            return classes, torch.full((len(drawn), 3), 1 / 3)

    it = objective(model, teacher=Two(), names=names, vocabulary=rows(3), config={"teacher": TeacherConfig(scale=1.0)})
    tokens = torch.zeros(1, D, 1, 2)
    tokens[0, 0] = 1.0
    found = it._taught([(torch.rand(1, 3, 16, 32), ImageFeatures(tokens))])["classes"].item()
    # cosines 1 and 0: -log p is log(1 + e^-1) and log(1 + e)
    own, other = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert found == pytest.approx((1.0 * own + 0.5 * 0.5 * (own + other)) / 1.5, rel=1e-5)


def test_positions_are_drawn_of_each_kind_by_its_share() -> None:
    model = small_model()
    teacher = Answers(torch.full((1, 5), 0.2), torch.full((1, 7), 1 / 7))
    it = objective(model, teacher=teacher, config={"teacher": TeacherConfig(positions=8)})
    kinds = [(torch.rand(1, 3, 32, 96), ImageFeatures(torch.randn(1, D, 2, 6)))]
    kinds += [(torch.rand(1, 3, 32, 32), ImageFeatures(torch.randn(1, D, 2, 2)))]
    it._taught(kinds)
    assert [len(drawn) for _, drawn in teacher.asked] == [6, 2]


class Colors:
    """A teacher that says how red each position is."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor, bf16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += 1
        red = torch.nn.functional.avg_pool2d(images[:, :1], 16).flatten()[drawn, None]
        return torch.cat([red, torch.zeros(len(red), 4)], 1), torch.cat([red, torch.zeros(len(red), 6)], 1)


def test_kinds_of_one_size_are_taught_together_each_position_its_own_answer() -> None:
    model, names, vocabulary, found = small_model(), rows(5), rows(7), []
    images = [torch.rand(count, 3, 32, width) for count, width in ((2, 48), (1, 32), (3, 48))]
    features = [ImageFeatures(torch.randn(len(x), D, 2, x.shape[3] // 16)) for x in images]
    seen = list(zip(images, features, strict=True))
    for kinds in (
        seen,
        [seen[0], seen[2], seen[1]],
        [(x[i : i + 1], ImageFeatures(f.tokens[i : i + 1])) for x, f in seen for i in range(len(x))],
    ):
        config = {"teacher": TeacherConfig(positions=10_000)}
        it = objective(model, teacher=Colors(), names=names, vocabulary=vocabulary, config=config)
        found.append(it._taught(kinds))
        assert it.teacher.asked == 2
    for terms in found[1:]:
        torch.testing.assert_close(terms, found[0], rtol=1e-4, atol=1e-5)


def test_images_of_one_size_are_encoded_together_and_give_the_same() -> None:
    model = small_model()
    it = objective(model, config={"optim": SimpleNamespace(bf16=False)})
    kinds = [torch.rand(2, 3, 32, 48), torch.rand(1, 3, 48, 48), torch.rand(3, 3, 32, 48)]
    with torch.no_grad():
        found = it._encoded(kinds)[0]
        for images, (given, features) in zip(kinds, found, strict=True):
            assert given is images and len(features.tokens) == len(images)
            assert features.structure is not None and len(features.structure.guide) == len(images)
    first = found[0][1].tokens
    with torch.no_grad():
        torch.testing.assert_close(it._encoded(kinds[:1])[0][0][1].tokens, first, rtol=1e-4, atol=1e-5)


def test_the_largest_regions_are_masks_and_unknown_pixels_none() -> None:
    regions = torch.full((2, 8, 8), 255)
    regions[0, :, :4] = 3
    regions[0, :2, 4:] = 7
    regions[1] = torch.arange(64).view(8, 8)  # more regions than are kept
    found = region_masks(regions, (4, 4))
    assert found.shape == (2, REGIONS, 4, 4) and found.dtype == torch.bool
    kept = [mask for mask in found[0] if mask.any()]
    cells = regions[0, 1::2, 1::2]
    assert len(kept) == 2 and torch.equal(kept[0], cells == 3) and torch.equal(kept[1], cells == 7)
    assert int(found[1].any(-1).any(-1).sum()) == min(16, REGIONS)
    assert int(found.sum(1).max()) == 1  # a cell is in one region
