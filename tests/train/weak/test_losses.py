"""Losses of weak training against values worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from ovsdino.train.weak.losses import (
    head_pool,
    head_scores,
    info_nce,
    mask_boundaries,
    mask_boundary_loss,
    mask_classifier_loss,
    over_regions,
    partial_label_loss,
    presence_loss,
    preservation_loss,
    region_cover,
    region_share,
    sam_alignment_loss,
    text_pool_scores,
)

LN = math.log


def finite_gradient(loss, *leaves):
    loss.sum().backward()
    return all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_with_one_positive_a_row_info_nce_is_clips():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 4
    labels = torch.arange(5)
    clip = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
    torch.testing.assert_close(info_nce(scores, torch.eye(5, dtype=torch.bool)), clip)


def test_info_nce_with_several_positives_by_hand():
    # odds e^s: row 0 = 2 3 1, row 1 = 1 1 4; image 0 has texts 0 and 1, image 1 has texts 1 and 2
    scores = torch.tensor([[2.0, 3.0, 1.0], [1.0, 1.0, 4.0]]).log().requires_grad_()
    positives = torch.tensor([[True, True, False], [False, True, True]])
    rows = [(LN(3 / 2) + LN(4 / 3)) / 2, (LN(2 / 1) + LN(5 / 4)) / 2]  # against the row's one negative, odds 1
    columns = [LN(3 / 2), 0, LN(5 / 4)]  # text 1 is everybody's: no negative, no loss
    loss = info_nce(scores, positives)
    assert loss.item() == pytest.approx((sum(rows) / 2 + sum(columns) / 3) / 2, abs=1e-6)
    assert finite_gradient(loss, scores)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
@pytest.mark.parametrize("positive", [False, True])
def test_info_nce_without_positives_or_negatives_is_zero(shape, positive):
    scores = torch.full(shape, 50.0, requires_grad=True)
    loss = info_nce(scores, torch.full(shape, positive))
    assert loss.item() == 0 and finite_gradient(loss, scores)


def test_info_nce_stays_finite_at_large_scores_in_half_precision():
    scores = torch.tensor([[300.0, -300.0], [300.0, -300.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = info_nce(scores, torch.eye(2, dtype=torch.bool))
    assert loss.dtype == torch.float32 and finite_gradient(loss, scores)
    assert loss.item() == pytest.approx((600 + 2 * LN(2)) / 4, rel=0.01)  # bfloat16 rounds 300


def test_a_row_of_no_region_is_nobodys_negative():
    scores = torch.randn(2, 3, 4, requires_grad=True)
    positives = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    positives[0, 2], positives[1, :, 1] = False, True
    loss = info_nce(scores, positives)
    there = [i for i in range(6) if i != 2]
    torch.testing.assert_close(loss, info_nce(scores.flatten(0, 1)[there], positives.flatten(0, 1)[there]))
    assert finite_gradient(loss, scores) and not scores.grad[0, 2].any()


def test_region_cover_by_hand():
    regions = torch.tensor([[[0.25, 0.0, 1.0, 0.75], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    cover = region_cover(regions, 2, 2)
    assert cover.tolist() == [[[[0.5, 1.0], [0.25, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]]
    # The area is that of the rectangle on a grid of any size, odd ones too.
    assert region_cover(regions, 7, 5)[0, 0].mean().item() == pytest.approx(0.75 * 0.75, abs=1e-6)
    assert region_cover(regions[:, :0], 3, 4).shape == (1, 0, 3, 4)


def test_heads_pool_by_softmax():
    tokens = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    attention = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log()  # 3/4, 1/4 and 1/2, 1/2
    cover = torch.tensor([[[1.0, 1.0], [0.0, 1.0], [0.5, 1.0]]])
    pooled = head_pool(tokens, attention, cover)
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[3.0, 2.0], [2.0, 4.0]]))
    torch.testing.assert_close(pooled[0, 1], torch.tensor([[0.0, 8.0], [0.0, 8.0]]))  # the second token alone
    torch.testing.assert_close(pooled[0, 2, 0], torch.tensor([4 * 0.6, 8 * 0.4]))  # 3/2 to 1


@pytest.mark.parametrize(
    ("said", "head"),
    [
        ([True, False], (3.0, 2.0)),  # cosines of the heads with the first text: 0.83, 0.45
        ([False, True], (2.0, 4.0)),  # with the second: 0.55, 0.89
        ([True, True], (3.0, 2.0)),  # means 0.69, 0.67
    ],
)
def test_the_head_of_a_regions_own_texts_counts_for_all_texts(said, head):
    pooled = torch.tensor([[[[3.0, 2.0], [2.0, 4.0]]]])
    scores = head_scores(pooled, torch.tensor([[5.0, 0.0], [0.0, 0.1]]), torch.tensor([[said]]))
    torch.testing.assert_close(scores, torch.tensor([[[head[0], head[1]]]]) / math.hypot(*head))


def test_a_text_gathers_the_tokens_that_look_like_it():
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    text, all_of_it = torch.tensor([[3.0, 0.0]]), torch.ones(1, 1, 2)
    # cosines 1, 0; e^(sharpness) = 3: weights 3/4, 1/4; pooled (1.5, 0.25)
    score = text_pool_scores(tokens, text, LN(3), all_of_it)
    assert score.item() == pytest.approx(1.5 / math.hypot(1.5, 0.25), abs=1e-6)
    assert text_pool_scores(tokens, text, 0.0, all_of_it).item() == pytest.approx(2 / math.hypot(2, 1), abs=1e-6)
    assert text_pool_scores(tokens, text, 100.0, all_of_it).item() == pytest.approx(1.0, abs=1e-6)
    regions = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    found = text_pool_scores(tokens, text, LN(3), regions)
    assert found[0, 0].item() == pytest.approx(0.0, abs=1e-6)  # the token that looks like it lies elsewhere
    assert finite_gradient(score + found.sum(), tokens)


def test_text_pool_equals_the_sum_written_out():
    generator = torch.Generator().manual_seed(0)
    tokens, text = torch.randn(2, 7, 5, generator=generator), torch.randn(3, 5, generator=generator)
    cover = torch.rand(2, 2, 7, generator=generator)
    scores = text_pool_scores(tokens, text, 4.0, cover)
    for i in range(2):
        for r in range(2):
            for u in range(3):
                weight = (4.0 * F.cosine_similarity(tokens[i], text[u], dim=-1)).exp() * cover[i, r]
                pooled = (weight[:, None] * tokens[i]).sum(0)
                expected = F.cosine_similarity(pooled, text[u], dim=0).item()
                assert scores[i, r, u].item() == pytest.approx(expected, abs=1e-6)
    assert text_pool_scores(tokens, text[:0], 4.0, cover).shape == (2, 2, 0)
    assert text_pool_scores(tokens[:0], text, 4.0, cover[:0]).shape == (0, 2, 3)


def test_mask_classifier_loss_by_hand():
    # p = 3/4 inside (one cell), 1/2, 1/4, 1/4 outside
    logits = torch.tensor([[[[3.0, 1.0], [1 / 3, 1 / 3]]]]).log().requires_grad_()
    masks = torch.tensor([[[[True, False], [False, False]]]])
    bce = 0.5 * LN(4 / 3) + 0.5 * (LN(2) + 2 * LN(4 / 3)) / 3
    dice = 1 - (2 * 0.75 + 1) / (1.75 + 1 + 1)
    loss = mask_classifier_loss(logits, masks)
    assert loss.shape == (1, 1) and loss.item() == pytest.approx(bce + dice, abs=1e-6)
    assert finite_gradient(loss, logits)


def test_empty_and_full_masks_teach_nothing():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    masks = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])[None].bool()
    loss = mask_classifier_loss(logits, masks)
    assert loss.tolist() == [[0, 0]] and finite_gradient(loss, logits) and not logits.grad.any()
    assert mask_classifier_loss(torch.zeros(2, 0, 4, 4), torch.zeros(2, 0, 4, 4, dtype=torch.bool)).shape == (2, 0)


def test_partial_label_loss_by_hand():
    # odds 1 2 3 2 of four texts; the first region's caption has texts 1 and 2, of the second nothing is said
    odds = torch.tensor([[[1.0, 2.0, 3.0, 2.0]]])
    log_p = (odds / odds.sum()).log().requires_grad_()
    positives = torch.tensor([[[False, True, True, False], [False] * 4]])
    loss = partial_label_loss(log_p, positives)
    assert loss.shape == (1, 2, 1) and loss.flatten().tolist() == pytest.approx([LN(8 / 5), 0.0], abs=1e-6)
    assert finite_gradient(loss, log_p)
    # A mask gives its cells the label that it makes likely as a whole: here 2/5 and 3/5.
    torch.testing.assert_close(log_p.grad, torch.tensor([[[0.0, -0.4, -0.6, 0.0]]]))


def test_partial_label_loss_takes_no_text_no_mask_and_no_region():
    for batch, regions, masks, texts in ((2, 1, 3, 0), (2, 1, 0, 4), (0, 1, 3, 4), (2, 0, 3, 4)):
        log_p = torch.zeros(batch, masks, texts, requires_grad=True)
        said = torch.zeros(batch, regions, texts, dtype=torch.bool)
        value = partial_label_loss(log_p, said)
        assert value.shape == (batch, regions, masks) and not value.any() and finite_gradient(value, log_p)


def test_a_mask_is_what_the_regions_around_it_say():
    losses = torch.tensor([[[1.0, 2.0, 5.0], [3.0, 7.0, 5.0]]])
    inside = torch.tensor([[[1.0, 0.25, 0.0], [0.5, 0.0, 0.0]]])
    assert over_regions(losses, inside).flatten().tolist() == pytest.approx([2.5 / 1.5, 2.0, 0.0])


def test_region_share_and_presence_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.0], [0.5, 0.75, 1.0]])  # 2 texts at 3 cells
    p = p.reshape(1, 2, 1, 3).requires_grad_()
    cover = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]])
    share = region_share(p, cover)
    expected = [[0.375, 0.625], [0.125 / 1.5, (0.375 + 1) / 1.5], [0.0, 0.0]]
    torch.testing.assert_close(share, torch.tensor([expected]))
    positives = torch.tensor([[[True, False], [True, True], [False, False]]])
    loss = presence_loss(share, positives, 0.25)
    assert loss.item() == pytest.approx(LN(0.25 * 1.5 / 0.125) / 2 / 2, abs=1e-6)  # text 0 is short in region 1 alone
    assert finite_gradient(loss, p)
    assert presence_loss(share, positives & False, 0.25).item() == 0
    nothing = presence_loss(torch.zeros(1, 1, 2, requires_grad=True), positives[:, :1], 0.25)
    assert torch.isfinite(nothing) and nothing > 10  # said, and nowhere at all


def test_mask_boundaries_by_hand():
    masks = torch.zeros(1, 3, 3, 5, dtype=torch.bool)
    masks[0, 0, :, :2] = True  # edge in columns 1 and 2; the image's border is none
    masks[0, 1, 0, 4] = True  # a corner cell and its two neighbors
    masks[0, 2, :, :1] = True  # not trusted at all
    target = mask_boundaries(masks, torch.tensor([[0.5, 0.75, 0.0]]))
    expected = [[0, 0.5, 0.5, 0.75, 0.75], [0, 0.5, 0.5, 0, 0.75], [0, 0.5, 0.5, 0, 0]]
    assert target[0, 0].tolist() == expected
    masks[0, 1, :, 2:] = True  # the complement of mask 0: the same edge, the larger weight
    assert mask_boundaries(masks, torch.tensor([[0.5, 0.75, 0.0]]))[0, 0, 0].tolist() == [0, 0.75, 0.75, 0, 0]
    assert mask_boundaries(masks[:, :0], torch.zeros(1, 0)).tolist() == torch.zeros(1, 1, 3, 5).tolist()


def test_mask_boundary_loss_by_hand():
    # target 1/2, 0, 0, 0 (share 1/8), p = 3/4, 1/2, 1/2, 1/2
    target = torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]]])
    logits = torch.tensor([[[[3.0, 1.0], [1.0, 1.0]]]]).log().requires_grad_()
    bce = (0.5 * LN(4 / 3) * 4 + (0.5 * LN(4) + 3 * LN(2)) * 4 / 7) / 4
    dice = 1 - (2 * 0.375 + 1) / (9 / 16 + 3 / 4 + 1 / 4 + 1)
    loss = mask_boundary_loss(logits, target)
    assert loss.item() == pytest.approx(bce + dice, abs=1e-6) and finite_gradient(loss, logits)


def test_images_without_masks_say_nothing_of_boundaries():
    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, 1] = 1.0
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = mask_boundary_loss(logits, target)
    torch.testing.assert_close(loss, mask_boundary_loss(logits[:1], target[:1]))
    assert finite_gradient(loss, logits) and not logits.grad[1].any()
    assert mask_boundary_loss(logits, torch.zeros(2, 1, 4, 4)).item() == 0
    assert mask_boundary_loss((target[:1] * 2 - 1) * 30, target[:1]).item() < 1e-6


def test_preservation_moves_the_new_embedding_alone():
    new = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    old = torch.tensor([[[4.0, 3.0], [-2.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss = preservation_loss(new, old)
    assert loss.flatten().tolist() == pytest.approx([0.04, 2.0, 1.0], abs=1e-6)  # 1 - 24/25; opposite; nothing pooled
    assert finite_gradient(loss, new) and old.grad is None


def test_sam_alignment_is_zero_for_equal_and_two_point_five_for_opposite_units():
    unit = torch.zeros(1, 2, 1, 1)
    unit[:, 0] = 1.0
    assert sam_alignment_loss(unit, unit).item() == pytest.approx(0.0, abs=1e-6)
    # cosine -1 gives 2; smooth L1 of the differences (2, 0) is (1.5 + 0) / 2
    assert sam_alignment_loss(unit, -unit).item() == pytest.approx(2.75, abs=1e-6)


def test_sam_alignment_of_a_target_three_times_as_long_by_hand():
    torch.manual_seed(0)
    predicted = torch.randn(2, 256, 3, 5)
    # The cosine is 1, so smooth L1 alone is left, |x - 3x| - 1/2 where 2|x| >= 1, else 2 x^2.
    away = 2 * predicted.abs()
    expected = torch.where(away >= 1, away - 0.5, away.square() / 2).mean().item()
    assert sam_alignment_loss(predicted, 3 * predicted).item() == pytest.approx(expected, abs=1e-5)
