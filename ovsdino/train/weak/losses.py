"""The formulas of weakly supervised training; `ovsdino.train.weak.objective` sums them up.

Every function computes in float32, returns finite values and gradients for empty inputs, and never waits for the
device. Scores called `scores` are cosines already multiplied by a temperature (CLIP's logit scale).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Takes an entry out of a log-sum-exp; -inf would make the gradient of an all-masked row NaN.
OUT = torch.finfo(torch.float32).min


def info_nce(scores: Tensor, positives: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of regions and texts with several positives in a row (CLIP, 2021, has one).

    For a positive (i, u) and the negatives n of row i

        l_iu = -log( e^{s_iu} / (e^{s_iu} + sum_n e^{s_in}) )

    so the other positives of the row are not negatives (Khosla et al. 2020 count them, which pushes the phrases of one
    caption apart). The mean is taken over a row's positives, then over the rows; the same over columns, so that a rare
    phrase counts as much as a common one; the result is half the sum. A phrase of every caption has no negative region:
    its column is zero, and counts in the mean.

    Args:
        scores: (..., U) of regions, or images, and U texts.
        positives: (..., U) bool, text u belongs to region i; a row without any is not a region, and not a negative.

    Returns:
        (), zero where there is no positive or no negative.
    """
    scores, positives = scores.float().flatten(0, -2), positives.flatten(0, -2)
    rest = scores.masked_fill(positives | ~positives.any(1, keepdim=True), OUT)
    total = scores.new_zeros(())
    for dim in (1, 0):
        negatives = torch.logsumexp(rest, dim, keepdim=True)
        loss = torch.where(positives, F.softplus(negatives - scores), 0.0).sum(dim)
        count = positives.sum(dim)
        total = total + (loss / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)
    return 0.5 * total


def region_cover(regions: Tensor, height: int, width: int) -> Tensor:
    """Return the share of each cell of a grid that lies in a rectangle.

    Args:
        regions: (B, R, 4) left, top, right, bottom in shares of the image.
        height: Of the grid.
        width: Of the grid.

    Returns:
        (B, R, height, width) float32 in [0, 1]; zeros for a rectangle of no area.
    """

    def along(low: Tensor, high: Tensor, cells: int) -> Tensor:
        at = torch.arange(cells, device=regions.device)
        return (torch.minimum(high * cells, at + 1) - torch.maximum(low * cells, at)).clamp(0, 1)

    left, top, right, bottom = regions.float()[..., None].unbind(2)
    return along(top, bottom, height)[..., None] * along(left, right, width)[..., None, :]


def _log_cover(cover: Tensor) -> Tensor:
    """Return the logarithm, of a very small number for zero: a region without a cell must not give a softmax NaN."""
    return cover.float().clamp_min(1e-30).log()


def head_pool(tokens: Tensor, attention: Tensor, cover: Tensor) -> Tensor:
    """Return a region's mean by each head: v_m = sum_n softmax_n(a_mn) x_n (Talk2DINO, Barsellotti et al., ICCV 2025).

    Args:
        tokens: (B, N, D).
        attention: (B, heads, N) logits, the class token's attention to the patches.
        cover: (B, R, N) in [0, 1], the share of each token that lies in the region; ones for the whole image.

    Returns:
        (B, R, heads, D).
    """
    logits = attention.float()[:, None] + _log_cover(cover)[:, :, None]
    return logits.softmax(-1) @ tokens.float()[:, None]


def head_scores(pooled: Tensor, text: Tensor, positives: Tensor) -> Tensor:
    """Return the similarity of regions and texts, each region seen through one head (Talk2DINO's training).

        v_r = pooled_rm of the head m that agrees most with the region's caption:
              argmax_m mean_{u in caption} cos(pooled_rm, t_u)
        score_ru = cos(v_r, t_u)

    The head is the region's own for all texts. The best head for each pair would let a negative choose the head
    that suits it, so that every text finds something of itself in every image.

    Args:
        pooled: (B, R, heads, D).
        text: (U, D).
        positives: (B, R, U) bool, the texts of each region's caption.

    Returns:
        (B, R, U) cosines.
    """
    cosine = F.normalize(pooled.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T  # (B, R, heads, U)
    own = positives.float() / positives.sum(-1, keepdim=True).clamp_min(1)
    head = (cosine.detach() * own[:, :, None]).sum(-1).argmax(-1)  # (B, R)
    chosen = head[..., None, None].expand(-1, -1, 1, cosine.shape[-1])
    return cosine.gather(2, chosen).squeeze(2)


def text_pool_scores(tokens: Tensor, text: Tensor, sharpness: float | Tensor, cover: Tensor) -> Tensor:
    """Return similarities for a ViT without class token: each text gathers the tokens of the region that look like it.

        w_nu = softmax_n(sharpness cos(x_n, t_u))     p_u = sum_n w_nu x_n     score_u = cos(p_u, t_u)

    Sharpness 0 is the mean of all tokens; large, the single best one, as TCL's and GroupViT's local matching.
    Memory is O(B R U (N + D)): the weighted tokens are never held one by one.

    Args:
        tokens: (B, N, D).
        text: (U, D).
        sharpness: One over a softmax temperature.
        cover: (B, R, N) in [0, 1], the share of each token that lies in the region; ones for the whole image.

    Returns:
        (B, R, U) cosines.
    """
    tokens, text = tokens.float(), F.normalize(text.float(), dim=-1)
    cosine = F.normalize(tokens, dim=-1) @ text.T
    weights = (sharpness * cosine[:, None] + _log_cover(cover)[..., None]).softmax(2)
    pooled = weights.transpose(2, 3) @ tokens[:, None]
    return (F.normalize(pooled, dim=-1) * text).sum(-1)


def mask_classifier_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return BCE + soft Dice of each mask's own classifier over the image (MaskFormer, Cheng et al. 2021).

        BCE  = mean_{y=1} softplus(-l) / 2 + mean_{y=0} softplus(l) / 2
        Dice = 1 - (2 sum p y + 1) / (sum p + sum y + 1),  p = sigmoid(l)

    BCE is balanced, since a mask covers a few percent of its image.

    Args:
        logits: (B, M, h, w), the cells' scores for the classifier pooled from the mask.
        masks: (B, M, h, w) bool.

    Returns:
        (B, M); zero for a mask that is empty or all of the image: there is nothing to tell apart.
    """
    logits, target = logits.float().flatten(2), masks.flatten(2).float()
    inside = target.sum(-1)
    outside = target.shape[-1] - inside
    bce = 0.5 * (F.softplus(-logits) * target).sum(-1) / inside.clamp_min(1)
    bce = bce + 0.5 * (F.softplus(logits) * (1 - target)).sum(-1) / outside.clamp_min(1)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum(-1) + 1) / (p.sum(-1) + inside + 1)
    return torch.where((inside > 0) & (outside > 0), bce + dice, 0.0)


def partial_label_loss(log_p: Tensor, positives: Tensor) -> Tensor:
    """Return the partial-label loss: a mask is one of the phrases of its region's caption; which one is not known.

        l = -log sum_{u in caption} p_u      (Jin & Ghahramani 2002; MIL-NCE, Miech et al. 2020)

    With log p_u the mean over the cells of a mask, the mask has one label for all its cells, and the label is summed
    out: the gradient gives every cell what the mask as a whole makes likely.

    Args:
        log_p: (B, M, U) log probabilities of the M masks of each image over the U texts of the batch.
        positives: (B, R, U) bool, text u is in the caption of region r.

    Returns:
        (B, R, M); zero for a region without a caption.
    """
    log_p = log_p.float()[:, None]
    if 0 in log_p.shape:
        return log_p.sum(-1).expand(-1, positives.shape[1], -1)
    own = torch.logsumexp(log_p.masked_fill(~positives[:, :, None], OUT), -1)
    return torch.where(positives.any(-1)[..., None], -own, 0.0)


def over_regions(losses: Tensor, inside: Tensor) -> Tensor:
    """Return a mask's loss: the mean over its regions.

    Args:
        losses: (B, R, M).
        inside: (B, R, M), the share of the mask that lies in the region.

    Returns:
        (B, M); zero for a mask outside all regions.
    """
    return (losses * inside).sum(1) / inside.sum(1).clamp_min(1e-6)


def region_share(p: Tensor, cover: Tensor) -> Tensor:
    """Return the share of a region that is each text.

    Args:
        p: (B, U, h, w) probabilities of the cells.
        cover: (B, R, h, w) in [0, 1], the share of each cell that lies in the region.

    Returns:
        (B, R, U) in [0, 1]; zeros for a region without a cell.
    """
    weights = cover.float().flatten(2)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    return weights @ p.float().flatten(2).transpose(1, 2)


def presence_loss(share: Tensor, positives: Tensor, least: float) -> Tensor:
    """Return how far texts are missing in the regions whose captions name them (CCNN, Pathak et al. 2015), as a hinge.

        l_ru = max(0, log(least / share_ru)),  the mean over a text's regions, then over the texts

    so a rare text counts as much as a common one: alone, the partial-label loss would give all to the commonest text,
    which nearly every caption has.

    Args:
        share: (..., U), see `region_share`.
        positives: (..., U) bool.
        least: Share below which a text of the caption counts as missing.

    Returns:
        (), zero where there is no caption.
    """
    share, positives = share.float().flatten(0, -2), positives.flatten(0, -2)
    short = torch.log(least / share.clamp_min(1e-9)).clamp_min(0)
    count = positives.sum(0)
    return ((short * positives).sum(0) / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)


def mask_boundaries(masks: Tensor, weights: Tensor) -> Tensor:
    """Return a soft boundary target: at each cell the largest weight among the masks whose edge runs there.

    A cell is on a mask's edge when one of its four neighbours lies on the other side, so edges are two cells wide as in
    `ovsdino.train.dense.losses.boundary_targets`; the border of the image is not an edge.

    Args:
        masks: (B, M, h, w) bool.
        weights: (B, M) in [0, 1], how far a mask is trusted; zero leaves it out.

    Returns:
        (B, 1, h, w) float32 in [0, 1].
    """
    if masks.shape[1] == 0:
        return weights.new_zeros((masks.shape[0], 1, *masks.shape[2:]), dtype=torch.float32)
    edge = torch.zeros_like(masks)
    vertical = masks[..., 1:, :] != masks[..., :-1, :]
    horizontal = masks[..., 1:] != masks[..., :-1]
    edge[..., 1:, :] |= vertical
    edge[..., :-1, :] |= vertical
    edge[..., 1:] |= horizontal
    edge[..., :-1] |= horizontal
    return (edge * weights.float()[:, :, None, None]).amax(1, keepdim=True)


def mask_boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return balanced BCE + Dice against a soft boundary target.

        BCE  = mean( t softplus(-l) / (2 r) + (1 - t) softplus(l) / (2 (1 - r)) ),  r = mean t in [0.01, 0.99]
        Dice = 1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1)

    Dice has squares (Milletari et al. 2016): it is least at p = t, where the form with plain sums would drive p to 0
    or 1. Images whose target is zero everywhere have no masks, so nothing is known of their boundaries: left out.

    Args:
        logits: (B, 1, h, w).
        target: (B, 1, h, w) in [0, 1], see `mask_boundaries`.

    Returns:
        (), zero where no image has a target.
    """
    logits, target = logits.float(), target.float()
    known = (target > 0).flatten(1).any(1).float()[:, None, None, None].expand_as(target)
    cells = known.sum().clamp_min(1)
    share = (target.sum() / cells).clamp(0.01, 0.99)
    bce = target * F.softplus(-logits) / (2 * share) + (1 - target) * F.softplus(logits) / (2 * (1 - share))
    p = logits.sigmoid() * known
    dice = 1 - (2 * (p * target).sum() + 1) / (p.square().sum() + target.square().sum() + 1)
    return (bce * known).sum() / cells + dice


def preservation_loss(pooled_new: Tensor, pooled_old: Tensor) -> Tensor:
    """Return 1 - cos of a mask's pooled embedding after and before the decoder: the text's knowledge is kept.

    Args:
        pooled_new: (B, M, D), of F'.
        pooled_old: (B, M, D), of F; it gets no gradient.

    Returns:
        (B, M).
    """
    return 1 - F.cosine_similarity(pooled_new.float(), pooled_old.detach().float(), dim=-1)


def sam_alignment_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cos + smooth L1 between (B, 256, H, W) maps, both averaged over positions; ()."""
    cosine = F.cosine_similarity(predicted, target, dim=1)
    return (1.0 - cosine).mean() + F.smooth_l1_loss(predicted, target)
