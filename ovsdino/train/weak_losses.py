"""Losses of weakly supervised training: images, captions and pseudo-masks in, no pixel label.

Every function computes in float32, returns finite values and gradients for empty inputs, and never waits for the
device. Scores called `scores` are cosines already multiplied by a temperature (CLIP's logit scale).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops import mask_pool

# Takes an entry out of a log-sum-exp; -inf would make the gradient of an all-masked row NaN.
OUT = torch.finfo(torch.float32).min


def info_nce(scores: Tensor, positives: Tensor) -> Tensor:
    """Symmetric InfoNCE with several positives a row (CLIP, Radford et al. 2021, with one).

    For a positive (i, u) and the negatives n of row i

        l_iu = -log( e^{s_iu} / (e^{s_iu} + sum_n e^{s_in}) )

    so the other positives of the row are no negatives (Khosla et al. 2020 count them, which pushes the phrases of one
    caption apart). The mean over a row's positives, then over the rows; the same over columns, so that a rare phrase is
    asked for as often as a common one; half the sum. A phrase of every caption has no negative image: its column is
    zero, and counts in the mean.

    Args:
        scores: (B, U) of B images and U texts.
        positives: (B, U) bool, text u belongs to image i.

    Returns:
        (), zero where there is no positive or no negative.
    """
    scores = scores.float()
    rest = scores.masked_fill(positives, OUT)
    total = scores.new_zeros(())
    for dim in (1, 0):
        negatives = torch.logsumexp(rest, dim, keepdim=True)
        loss = torch.where(positives, F.softplus(negatives - scores), 0.0).sum(dim)
        count = positives.sum(dim)
        total = total + (loss / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)
    return 0.5 * total


def head_pool(tokens: Tensor, attention: Tensor) -> Tensor:
    """One mean of the tokens a head: v_m = sum_n softmax_n(a_mn) x_n (Talk2DINO, Barsellotti et al., ICCV 2025).

    Args:
        tokens: (B, N, D).
        attention: (B, heads, N) logits, the class token's attention to the patches.

    Returns:
        (B, heads, D).
    """
    return attention.float().softmax(-1) @ tokens.float()


def head_scores(pooled: Tensor, text: Tensor) -> Tensor:
    """Similarity of image and text: max over heads m of cos(v_m, t) (Talk2DINO, the sim(I, T) of its training).

    Args:
        pooled: (B, heads, D).
        text: (U, D).

    Returns:
        (B, U) cosines.
    """
    return (F.normalize(pooled.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T).amax(1)


def text_pool_scores(tokens: Tensor, text: Tensor, sharpness: float | Tensor) -> Tensor:
    """Similarity where the ViT has no class token: each text gathers the tokens that look like it.

        w_nu = softmax_n(sharpness cos(x_n, t_u))     p_u = sum_n w_nu x_n     score_u = cos(p_u, t_u)

    Sharpness 0 is the mean of all tokens; large, the single best one, as TCL's and GroupViT's local matching.
    Memory is O(B N U + B U D): the weighted tokens are never held one by one.

    Args:
        tokens: (B, N, D).
        text: (U, D).
        sharpness: one over a softmax temperature.

    Returns:
        (B, U) cosines.
    """
    tokens, text = tokens.float(), F.normalize(text.float(), dim=-1)
    cosine = F.normalize(tokens, dim=-1) @ text.T
    pooled = (sharpness * cosine).softmax(1).transpose(1, 2) @ tokens
    return (F.normalize(pooled, dim=-1) * text).sum(-1)


def mask_classifier_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE + soft Dice of a mask's own classifier over the image, a value a mask (MaskFormer, Cheng et al. 2021).

        BCE  = mean_{y=1} softplus(-l) / 2 + mean_{y=0} softplus(l) / 2
        Dice = 1 - (2 sum p y + 1) / (sum p + sum y + 1),  p = sigmoid(l)

    Balanced BCE, for a mask covers a few percent of its image.

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


def text_pull(scores: Tensor, positives: Tensor) -> Tensor:
    """Partial-label cross-entropy: a mask is one of its caption's phrases, which one is not known.

        l = -log( sum_{u in caption} e^{s_u} / sum_u e^{s_u} )      (Jin & Ghahramani 2002; MIL-NCE, Miech et al. 2020)

    Args:
        scores: (B, M, U) of M masks an image and the U texts of the batch.
        positives: (B, U) bool, text u belongs to image i.

    Returns:
        (B, M); zero for the masks of an image without a phrase.
    """
    scores = scores.float()
    if scores.shape[-1] == 0:
        return scores.sum(-1)
    own = torch.logsumexp(scores.masked_fill(~positives[:, None], OUT), -1)
    loss = torch.logsumexp(scores, -1) - own
    return torch.where(positives.any(-1)[:, None], loss, 0.0)


def text_pull_hard(scores: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy against the caption's phrase that scores best now, as a label (hard expectation-maximisation).

    `text_pull` is content with any sharing among the caption's phrases; this one makes a mask decide.

    Args:
        scores: (B, M, U).
        positives: (B, U) bool.

    Returns:
        (B, M); zero for the masks of an image without a phrase.
    """
    scores = scores.float()
    if scores.shape[-1] == 0:
        return scores.sum(-1)
    label = scores.detach().masked_fill(~positives[:, None], OUT).argmax(-1, keepdim=True)
    loss = torch.logsumexp(scores, -1) - scores.gather(-1, label).squeeze(-1)
    return torch.where(positives.any(-1)[:, None], loss, 0.0)


def shared_assignment(scores: Tensor, positives: Tensor, weights: Tensor, rounds: int = 5) -> Tensor:
    """Which phrase of its caption each mask shows, so that no phrase goes empty.

    Sinkhorn-Knopp on e^{s_mu} over the caption's phrases: each phrase gets an equal share of the masks' weight, then
    each mask gives itself to phrases in sum one. What is said of an image is somewhere in it; without the first half
    the commonest phrase takes all masks, since it is in nearly every caption. Balanced as prototypes are in SwAV (Caron
    et al. 2020), an image at a time.

    Args:
        scores: (B, M, U) of M masks an image and the U texts of the batch.
        positives: (B, U) bool, text u belongs to image i.
        weights: (B, M), 0 where there is no mask.
        rounds: of Sinkhorn-Knopp.

    Returns:
        (B, M, U) without gradient, rows of sum one; zeros for an image without a phrase.
    """
    with torch.no_grad():
        if 0 in scores.shape:
            return scores.float()
        log_q = F.log_softmax(scores.float().masked_fill(~positives[:, None], OUT), -1)
        log_w = weights.float().clamp_min(1e-30).log()[..., None]
        for _ in range(rounds):
            log_q = log_q - torch.logsumexp(log_q + log_w, 1, keepdim=True)
            log_q = F.log_softmax(log_q.masked_fill(~positives[:, None], OUT), -1)
        return torch.where(positives.any(-1)[:, None, None], log_q.exp(), 0.0)


def text_log_prior(positives: Tensor) -> Tensor:
    """log of the share of captions that have each text, as logit adjustment adds it (Menon et al. 2021).

    A phrase that is in most captions is in most of those of a tree as well. With its prior added to the scores in
    training, and left out when words are asked for, a score says how much more often the phrase comes with what a mask
    shows than it comes at all.

    Args:
        positives: (B, U) bool, of all images of the step.

    Returns:
        (U,), of (n + 1/2) / (B + 1): never minus infinity.
    """
    return ((positives.sum(0) + 0.5) / (len(positives) + 1)).log()


def assigned_cross_entropy(scores: Tensor, assignment: Tensor) -> Tensor:
    """l_m = -sum_u q_mu log softmax_u(s_m): scores and assignment (B, M, U) -> (B, M)."""
    return -(assignment * F.log_softmax(scores.float(), -1)).sum(-1)


def pixel_cross_entropy(logits: Tensor, masks: Tensor, assignment: Tensor) -> Tensor:
    """The same of every cell of a mask, on the decoder's own answers to the words, averaged over the mask.

        l_m = -sum_u q_mu mean_{x in m} log softmax_u(logits(x))

    Args:
        logits: (B, U, h, w).
        masks: (B, M, h, w) bool.
        assignment: (B, M, U).

    Returns:
        (B, M); zero for an empty mask.
    """
    log_p = F.log_softmax(logits.float(), 1).flatten(2).transpose(1, 2)  # (B, h w, U)
    mean, _ = mask_pool(log_p.contiguous(), masks.flatten(2))
    return -(assignment * mean).sum(-1)


def mask_boundaries(masks: Tensor, weights: Tensor) -> Tensor:
    """Soft boundary target: at each cell the largest weight among the masks whose edge runs there.

    A cell is on a mask's edge when one of its four neighbours lies on the other side, so edges are two cells wide as in
    `ovsdino.models.sae.boundary_targets`; the border of the image is no edge.

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
    """Balanced BCE + Dice against a soft boundary target.

        BCE  = mean( t softplus(-l) / (2 r) + (1 - t) softplus(l) / (2 (1 - r)) ),  r = mean t in [0.01, 0.99]
        Dice = 1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1)

    Dice with squares (Milletari et al. 2016): it is least at p = t, where the form with plain sums would drive p to 0
    or 1. Images whose target is zero everywhere have no masks, which says nothing of their boundaries: left out.

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
    """1 - cos of a mask's pooled embedding after and before the decoder: what the text already knew is kept.

    Args:
        pooled_new: (B, M, D), of F'.
        pooled_old: (B, M, D), of F; no gradient goes there.

    Returns:
        (B, M).
    """
    return 1 - F.cosine_similarity(pooled_new.float(), pooled_old.detach().float(), dim=-1)
