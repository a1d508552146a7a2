"""Losses of weak training against values worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from ovsdino.models.sae import SAMAlignment, sam_alignment_loss
from ovsdino.train.weak_losses import (
    assigned_cross_entropy,
    head_pool,
    head_scores,
    info_nce,
    mask_boundaries,
    mask_boundary_loss,
    mask_classifier_loss,
    pixel_cross_entropy,
    preservation_loss,
    shared_assignment,
    text_log_prior,
    text_pool_scores,
    text_pull,
    text_pull_hard,
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


def test_heads_pool_by_softmax_and_the_best_head_counts():
    tokens = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    attention = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log()  # 3/4, 1/4 and 1/2, 1/2
    pooled = head_pool(tokens, attention)
    torch.testing.assert_close(pooled, torch.tensor([[[3.0, 2.0], [2.0, 4.0]]]))
    scores = head_scores(pooled, torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(scores, torch.tensor([[3 / math.sqrt(13), 4 / math.sqrt(20)]]))


def test_a_text_gathers_the_tokens_that_look_like_it():
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    text = torch.tensor([[3.0, 0.0]])
    # cosines 1, 0; e^(sharpness) = 3: weights 3/4, 1/4; pooled (1.5, 0.25)
    score = text_pool_scores(tokens, text, LN(3))
    assert score.item() == pytest.approx(1.5 / math.hypot(1.5, 0.25), abs=1e-6)
    assert text_pool_scores(tokens, text, 0.0).item() == pytest.approx(2 / math.hypot(2, 1), abs=1e-6)
    assert text_pool_scores(tokens, text, 100.0).item() == pytest.approx(1.0, abs=1e-6)
    assert finite_gradient(score, tokens)


def test_text_pool_equals_the_sum_written_out():
    generator = torch.Generator().manual_seed(0)
    tokens, text = torch.randn(2, 7, 5, generator=generator), torch.randn(3, 5, generator=generator)
    scores = text_pool_scores(tokens, text, 4.0)
    for i in range(2):
        for u in range(3):
            weight = (4.0 * F.cosine_similarity(tokens[i], text[u], dim=-1)).softmax(0)
            pooled = (weight[:, None] * tokens[i]).sum(0)
            assert scores[i, u].item() == pytest.approx(F.cosine_similarity(pooled, text[u], dim=0).item(), abs=1e-6)
    assert text_pool_scores(tokens, text[:0], 4.0).shape == (2, 0)
    assert text_pool_scores(tokens[:0], text, 4.0).shape == (0, 3)


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


def test_text_pull_by_hand():
    # odds 1 2 3 2 of four texts; the caption has texts 1 and 2
    scores = torch.tensor([[[1.0, 2.0, 3.0, 2.0]], [[1.0, 2.0, 3.0, 2.0]]]).log().requires_grad_()
    positives = torch.tensor([[False, True, True, False], [False] * 4])
    soft, hard = text_pull(scores, positives), text_pull_hard(scores, positives)
    assert soft.flatten().tolist() == pytest.approx([LN(8 / 5), 0.0], abs=1e-6)  # the second caption is empty
    assert hard.flatten().tolist() == pytest.approx([LN(8 / 3), 0.0], abs=1e-6)  # text 2 is the better of its two
    assert finite_gradient(soft + hard, scores) and not scores.grad[1].any()


def test_text_pull_takes_no_text_and_no_mask():
    for loss in (text_pull, text_pull_hard):
        for shape in ((2, 3, 0), (2, 0, 4), (0, 3, 4)):
            scores = torch.zeros(shape, requires_grad=True)
            value = loss(scores, torch.zeros(shape[0], shape[2], dtype=torch.bool))
            assert value.shape == shape[:2] and not value.any() and finite_gradient(value, scores)


def test_mask_boundaries_by_hand():
    masks = torch.zeros(1, 3, 3, 5, dtype=torch.bool)
    masks[0, 0, :, :2] = True  # edge in columns 1 and 2; the image's border is none
    masks[0, 1, 0, 4] = True  # a corner cell and its two neighbours
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


def test_sam_alignment_on_the_structure_grid_by_hand():
    torch.manual_seed(0)
    align, tokens = SAMAlignment(4), torch.randn(2, 4, 3, 5)
    predicted = align(tokens, (3, 5))
    weight, bias = align.project.weight[:, :, 0, 0], align.project.bias
    torch.testing.assert_close(predicted[1, :, 2, 4], weight @ tokens[1, :, 2, 4] + bias)
    # A target three times as long: cosine 1, so smooth L1 alone is left, |x - 3x| - 1/2 where 2|x| >= 1, else 2 x^2
    away = 2 * predicted.abs()
    expected = torch.where(away >= 1, away - 0.5, away.square() / 2).mean().item()
    assert sam_alignment_loss(predicted, 3 * predicted).item() == pytest.approx(expected, abs=1e-5)
    assert align(tokens).shape == (2, 256, 64, 64)


def test_no_phrase_of_a_caption_goes_empty():
    # Both masks look like the first phrase; equal shares leave it the one that does so more: the doubly stochastic
    # matrix with the cross ratio of e^scores, [[p, 1 - p], [1 - p, p]] with (p / (1 - p))^2 = e^(2 - 1).
    scores = torch.tensor([[[2.0, 0.0, 9.0], [1.0, 0.0, 9.0]]])
    positives = torch.tensor([[True, True, False]])
    p = torch.sigmoid(torch.tensor(0.5)).item()
    found = shared_assignment(scores, positives, torch.ones(1, 2), rounds=50)
    torch.testing.assert_close(found, torch.tensor([[[p, 1 - p, 0.0], [1 - p, p, 0.0]]]), rtol=0, atol=1e-5)
    alone = shared_assignment(scores, positives, torch.tensor([[1.0, 0.0]]), rounds=50)
    torch.testing.assert_close(alone[0, 0], torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-5)  # a mask that counts not
    assert not shared_assignment(scores, torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 2)).any()
    assert shared_assignment(scores[:, :0], positives, torch.ones(1, 0)).shape == (1, 0, 3)


def test_assigned_cross_entropy_by_hand():
    scores = torch.tensor([[[math.log(3), 0.0]]], requires_grad=True)
    loss = assigned_cross_entropy(scores, torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(loss, torch.tensor([[0.5 * (math.log(4 / 3) + math.log(4))]]))
    loss.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[[0.25, -0.25]]]))


def test_pixel_cross_entropy_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3), 5.0]], [[0.0, 0.0, 5.0]]]], requires_grad=True)  # (1, 2, 1, 3)
    masks = torch.tensor([[[[True, True, False]], [[False, False, False]]]])
    assignment = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = pixel_cross_entropy(logits, masks, assignment)
    expected = [[0.5 * (math.log(2) + math.log(4 / 3)), 0.0]]  # the second mask is empty
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert logits.grad[0, :, 0, 2].tolist() == [0.0, 0.0] and logits.grad[0, 0, 0, 0] == pytest.approx(-0.25)


def test_text_prior_by_hand():
    positives = torch.tensor([[True, True, False], [True, False, False]])
    expected = torch.tensor([2.5 / 3, 1.5 / 3, 0.5 / 3]).log()
    torch.testing.assert_close(text_log_prior(positives), expected)
    assert torch.isfinite(text_log_prior(positives[:0])).all()
