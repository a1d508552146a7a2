"""OVS-DINO: frozen backbone, Structure-Aware Encoder, Structure-Modulated Decoder, upsampling along the structure.

    F, taps = backbone(image)            (B, D, h, w)
    S, G    = SAE(image, taps)           structure tokens, guide at four times the grid
    F'      = SMD(F, S)                  = F for a fresh decoder
    L       = scale * cos(F', text)      (B, K, h, w)
    logits  = bilinear(L) + mix (sharp(L; G) - bilinear(L)) + scale * (W_r G) . text      (B, K, 4h, 4w)

`sharp` is `score_attention`. `mix` and W_r are zero at the start, so a
fresh decoder is the text-aligned-DINO baseline: the same L bit for bit, brought to 4h x 4w by the same bilinear
interpolation. All of it acts on the K logits, not on D features, at K/D of the cost. Where a class has several words,
or contrast rows compete with all classes, L is the maximum over each group of rows (`TextRows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.backbone import build_backbone, normalize
from ovsdino.models.config import ModelConfig
from ovsdino.models.novelty import Gaussian
from ovsdino.models.prior import prior_offsets
from ovsdino.models.sae import Structure, StructureAwareEncoder
from ovsdino.models.score_attention import ScoreAttention
from ovsdino.models.smd import StructureModulatedDecoder
from ovsdino.models.text import TextTower
from ovsdino.models.text_rows import TextRows


@dataclass
class ImageFeatures:
    """An encoded image: all that `decode` needs but the words.

    Attributes:
        tokens: F' (or F without a decoder), (B, D, h, w).
        structure: The SAE's output, or None without a decoder.
        backbone: F, (B, D, h, w), as it was before the decoder.
    """

    tokens: Tensor
    structure: Structure | None = None
    backbone: Tensor | None = None

    def float(self) -> ImageFeatures:
        """Return it in float32."""
        structure = self.structure
        if structure is not None:
            structure = Structure(
                tokens=structure.tokens.float(), guide=structure.guide.float(), boundary=structure.boundary.float()
            )
        return ImageFeatures(self.tokens.float(), structure, None if self.backbone is None else self.backbone.float())

    def split(self, sizes: Sequence[int]) -> list[ImageFeatures]:
        """Return parts with so many images each."""

        def parts(tensor: Tensor | None) -> Sequence[Any]:
            return [None] * len(sizes) if tensor is None else tensor.split([*sizes])

        s = self.structure
        maps = (s.tokens, s.guide, s.boundary) if s is not None else (None,) * 3
        rows = zip(parts(self.tokens), parts(self.backbone), *map(parts, maps), strict=True)
        return [
            ImageFeatures(tokens, None if s is None else Structure(tokens=deep, guide=guide, boundary=edge), backbone)
            for tokens, backbone, deep, guide, edge in rows
        ]


class Decoder(nn.Module):
    """SAE, SMD, and the upsampling of coarse logits to fine ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.sae is not None
        self.config = config
        guide = config.sae.guide_dim
        scales = [config.patch_size / stride for stride in config.backbone.tap_strides]
        self.sae = StructureAwareEncoder(config.sae, config.backbone.tap_dims, scales)
        self.smd = None
        if config.smd is not None:
            self.smd = StructureModulatedDecoder(config.smd, config.embed_dim, config.sae.structure_dim)
        if config.upsampling == "attention":
            self.score_attention = ScoreAttention(config.score_attention, guide)
        if config.detail:
            self.detail = nn.Linear(guide, config.embed_dim, bias=False)
            nn.init.zeros_(self.detail.weight)

    def refine(self, coarse: Tensor, guide: Tensor, text: Tensor) -> Tensor:
        """Return logits (B, K, 4h, 4w) of coarse ones (B, K, h, w), the guide (B, C, 4h, 4w) and scaled text (K, D)."""
        fine = F.interpolate(coarse, scale_factor=4.0, mode="bilinear", align_corners=False)
        if self.config.upsampling == "attention":
            fine = self.score_attention(coarse, fine, guide)
        if self.config.detail:
            # (W_r G) . t = G . (W_r^T t): the text is folded into W_r, so a pixel costs C*K, not C*D + D*K.
            batch = guide.shape[0]  # len() would fix the batch of an exported graph
            folded = (text @ self.detail.weight).to(guide.dtype).expand(batch, -1, -1)
            fine = torch.baddbmm(fine.to(guide.dtype).flatten(2), folded, guide.flatten(2)).view_as(fine)
        return fine


class OVSDINO(nn.Module):
    """Open-vocabulary segmentation: from an image and a text bank to logits.

    Args:
        config: What to build.
        text_tower: Turns words into the rows of the text bank.
    """

    def __init__(self, config: ModelConfig, text_tower: TextTower) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.decoder = Decoder(config) if config.sae is not None else None
        self.log_scale = nn.Parameter(torch.tensor(float(config.logit_scale)).log())
        self.text_tower = text_tower
        self.decoder_trained = False
        self.aligned = True  # False where the head behind a CNN is random
        self.backgrounds: dict[str, float] = {}  # calibrated for its decoder, by data set
        self.known: dict[str, Gaussian] = {}  # mean-pooled features of the images that it knows, by data set

    @property
    def has_decoder(self) -> bool:
        """Whether there is an SAE; without one the model is the text-aligned-DINO baseline."""
        return self.decoder is not None

    @property
    def stride_multiple(self) -> int:
        """Height and width of an input image must be multiples of this."""
        return self.config.patch_size

    def encode_text(
        self,
        names: Sequence[str | Sequence[str]],
        templates: Sequence[str] | None = None,
        adapted: AdaptedWords | None = None,
    ) -> Tensor:
        """Return the text bank of the classes.

        Args:
            names: One entry per class: a word or phrase, or several whose embeddings are averaged.
            templates: See `TextTower.encode`.
            adapted: Rows that take the place of some words' own.

        Returns:
            (K, D) float32, rows of length one.

        Raises:
            ValueError: There are no names, or a class has none.
        """
        if not len(names):
            raise ValueError("names is empty: give at least one class name")
        groups = [[name] if isinstance(name, str) else list(name) for name in names]
        if not all(groups):
            raise ValueError(f"a class has no name in {list(names)!r}")
        words = [name for group in groups for name in group]
        flat = normalize(self.text_tower.encode(words, templates).float(), dim=-1)
        if adapted is not None:
            flat = adapted.place(words, flat)
        return torch.stack([normalize(part.mean(0), dim=-1) for part in flat.split([len(g) for g in groups])])

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Return the features of an image (B, 3, H, W), normalized, H and W multiples of `stride_multiple`."""
        features, taps = self.backbone(image)
        return self._with_structure(image, features, taps)

    def encode_features(self, final: Tensor, taps: Sequence[Tensor], image: Tensor) -> ImageFeatures:
        """Return the features of an image whose frozen half is known.

        Args:
            final: Map before the backbone's head, as `Backbone.frozen` gives it, or a window of it: (B, map_dim, h, w).
            taps: The taps that came with it, or the same window of them.
            image: (B, 3, p h, p w) with the patch size p, normalized: the window's pixels, for the decoder's own stem.
        """
        return self._with_structure(image, self.backbone.finish(final), taps)

    def encode_with_attention(self, image: Tensor) -> tuple[ImageFeatures, Tensor]:
        """Return features, and the class token's attention (B, heads, N) as `Backbone.with_attention` gives it."""
        features, taps, attention = self.backbone.with_attention(image)
        return self._with_structure(image, features, taps), attention

    def _with_structure(self, image: Tensor, features: Tensor, taps: Sequence[Tensor]) -> ImageFeatures:
        if self.decoder is None:
            return ImageFeatures(features, backbone=features)
        structure = self.decoder.sae(image, taps)
        tokens = features
        if self.decoder.smd is not None:
            tokens = self.decoder.smd(features, structure.tokens)
        return ImageFeatures(tokens, structure, features)

    def coarse_logits(self, features: ImageFeatures, text: Tensor | TextRows) -> Tensor:
        """Return scale * cos(F', text), (B, K, h, w); text as `decode` takes it."""
        if isinstance(text, TextRows):
            return text.reduced(lambda rows: self.coarse_logits(features, rows))
        tokens = normalize(features.tokens.float())
        equation = "bdhw,kd->bkhw" if text.ndim == 2 else "bdhw,bkd->bkhw"
        return torch.einsum(equation, tokens, text * self.log_scale.exp())

    def decode(
        self, features: ImageFeatures, text: Tensor | TextRows, prior: Tensor | None = None, tau: float = 0.5
    ) -> Tensor:
        """Return the logits of a text bank (K, D), of one bank per image (B, K, D), or of groups of rows.

        A group's logits are the maximum of its rows' at the token grid. The guide's residual takes the mean of a
        class's words, and nothing for the contrast channel, which has no meaning of its own.

        With a prior, tau log prior_k is subtracted from the coarse logits of class k (Menon et al., ICLR 2021): a class
        that the model gives to many cells of all images must then stand out in this one.

        Args:
            features: Of `encode_image`.
            text: The bank, rows of length one; or `TextRows`.
            prior: (K,) positive, the share of each class in images such as this one; see `estimate_prior`.
            tau: Strength of the prior; 0 leaves it out.

        Returns:
            (B, K, 4h, 4w), or (B, K, h, w) without a decoder; K + 1 maps with contrast rows, their channel last.

        Raises:
            ValueError: The bank or the prior has another shape, or a value out of range.
        """
        dim = self.config.embed_dim
        if isinstance(text, TextRows):
            if text.words.shape[-1] != dim:
                raise ValueError(f"words must be (K, W, {dim}), got {tuple(text.words.shape)}")
        elif text.ndim not in (2, 3) or text.shape[-1] != dim:
            raise ValueError(f"text must be (K, {dim}) or (B, K, {dim}), got {tuple(text.shape)}")
        elif text.ndim == 3 and text.shape[0] != features.tokens.shape[0]:
            raise ValueError(f"text {tuple(text.shape)} has a bank for each of {features.tokens.shape[0]} images")
        coarse = self.coarse_logits(features, text)
        if prior is not None:
            classes = len(text) if isinstance(text, TextRows) else text.shape[-2]
            offsets = prior_offsets(prior, tau, classes).to(coarse)
            coarse = coarse - F.pad(offsets, (0, coarse.shape[1] - classes))[:, None, None]  # nothing of the contrast
        if self.decoder is None or features.structure is None:
            return coarse
        rows = text.means() if isinstance(text, TextRows) else text
        return self.decoder.refine(coarse, features.structure.guide, rows * self.log_scale.exp())

    def cosine(
        self, features: ImageFeatures, text: Tensor | TextRows, prior: Tensor | None = None, tau: float = 0.5
    ) -> Tensor:
        """Return `decode` without the temperature: cosines, sharpened by a decoder if there is one."""
        return self.decode(features, text, prior, tau) / self.log_scale.exp()

    def forward(self, image: Tensor, text: Tensor, contrast: Tensor | None = None) -> Tensor:
        """Map an image and a vocabulary to logits, whose softmax over the classes is meaningful.

        Args:
            image: (B, 3, H, W), normalized.
            text: (K, D); with contrast rows the words of the classes, (K, W, D).
            contrast: (C, D), see `TextRows`; the form of exported graphs.

        Returns:
            See `decode`.
        """
        return self.decode(self.encode_image(image), text if contrast is None else TextRows(text, contrast))
