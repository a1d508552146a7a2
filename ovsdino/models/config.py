"""Model configurations: frozen, keyword-only dataclasses. The zoo names instances of `ModelConfig`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from ovsdino.errors import OVSDinoError
from ovsdino.settings import Size, Within, build_config

Width = Annotated[int, Within(1, 65536)]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A timm network, a vision transformer or a CNN, and the blocks or stages that the decoder taps.

    Attributes:
        timm_name: timm model name, or "small_vit" for this repository's own small ViT.
        patch_size: Patch size p in pixels; of a CNN, the stride of its final map: its last stage's, or half of it.
        embed_dim: Width D of F: of the ViT, or of the linear head behind a CNN or a small_vit.
        taps: Indices of the blocks (ViT) or stages (CNN) that feed the Structure-Aware Encoder, shallow first.
        depth: Number of blocks or stages.
        num_heads: Attention heads of a ViT.
        width: Width of a small_vit, where it is not D; 0 says that it is.
        stage_dims: Channels of each stage of a CNN; empty says that it is a ViT.
        stage_strides: Stride of each stage of a CNN, in pixels.
    """

    timm_name: str
    patch_size: Annotated[int, Within(1, 256)]
    embed_dim: Width
    taps: Annotated[tuple[int, ...], Within(0, 1000), Size(1, 64)] = (2, 5, 8, 11)
    depth: Annotated[int, Within(1, 1000)] = 12
    num_heads: Annotated[int, Within(1, 1000)] = 12
    width: Annotated[int, Within(0, 65536)] = 0
    stage_dims: Annotated[tuple[int, ...], Within(1, 65536), Size(0, 64)] = ()
    stage_strides: Annotated[tuple[int, ...], Within(1, 256), Size(0, 64)] = ()

    @property
    def vit_dim(self) -> int:
        """Width of a ViT's tokens."""
        return self.width or self.embed_dim

    @property
    def tap_dims(self) -> tuple[int, ...]:
        """Channels of each tap."""
        return tuple(self.stage_dims[tap] if self.stage_dims else self.vit_dim for tap in self.taps)

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Stride of each tap in pixels: the patch size for every block of a ViT."""
        return tuple(self.stage_strides[tap] if self.stage_strides else self.patch_size for tap in self.taps)


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Structure-Aware Encoder: pixel stem, top-down path, guide, structure tokens, boundary logits.

    Attributes:
        guide_dim: Channels of the guide G at four times the token grid.
        mid_dim: Channels at twice the token grid.
        structure_dim: Channels of the structure tokens S (SAM's embedding width is 256).
        blocks: Residual convolution blocks at 4x, 2x and 1x the token grid.
        depthwise: Depthwise-separable convolutions (cheap in FLOPs) or dense 3x3 ones (cheap in seconds on a CPU).
    """

    guide_dim: Width = 64
    mid_dim: Width = 96
    structure_dim: Width = 256
    blocks: Annotated[tuple[int, int, int], Within(0, 100), Size(3, 3)] = (0, 1, 1)
    depthwise: bool = True


@dataclass(frozen=True, kw_only=True)
class SMDConfig:
    """Structure-Modulated Decoder: `blocks` transformer blocks of structure attention on the patch tokens.

    Head sizes obey d + r + 1 = 64, so that folded attention is one plain dot product of 64 channels.

    Attributes:
        gate: The preservation gate: "output" weighs what the decoder adds to a token; "none" lets everything through
            (g = 1).
        structure: The structural term; False is plain attention (lambda = 0).
    """

    width: Width = 256
    blocks: Annotated[int, Within(0, 100)] = 2
    heads: Annotated[int, Within(1, 1000)] = 4
    head_dim: Width = 48
    structure_rank: Width = 15
    value_dim: Width = 64
    mlp_ratio: Annotated[float, Within(0, 100, above=True)] = 2.0
    gate: Literal["output", "none"] = "output"
    structure: bool = True


@dataclass(frozen=True, kw_only=True)
class ScoreAttentionConfig:
    """Structure attention on the class scores, below the token: see `score_attention`.

    Attributes:
        affinity_dim: Channels of the affinity that the guide is mapped to; with the position and a constant 16 in all.
        reach: Tokens that every pixel sees at least, to each side.
        query_stride: 1 attends at four pixels along a token's side, 2 at two, at a quarter of the cost.
        rounds: 2 attends among the keys first.
        mix: Share of the attention at the start; 0 makes a fresh decoder the baseline bit for bit.
        gamma: Weight of the distance at the start, per token.
        structure: The affinity; False attends by position alone (lambda = 0 for the structure: the control).
    """

    affinity_dim: Width = 13
    reach: Annotated[int, Within(1, 256)] = 4
    query_stride: Annotated[int, Within(1, 2)] = 1
    rounds: Annotated[int, Within(1, 8)] = 1
    mix: Annotated[float, Within(0, 4)] = 0.0
    gamma: Annotated[float, Within(0, 100)] = 0.2
    structure: bool = True


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text tower.

    Attributes:
        kind: "clip" (open_clip ViT-B-16, Talk2DINO's projection), "hashed" (`HashedTextTower`), "lexicon"
            (`LexiconTextTower`), or "sentence" (all-MiniLM-L6-v2, frozen).
        width: Of the hashed tower's table; of the lexicon's rows.
        buckets: Rows of the table of n-grams.
        entries: Of the lexicon.
        common: Of the lexicon's entries, the first, that a misspelling may mean.
        kept: Phrases, besides the lexicon, whose rows are stored whole.
    """

    kind: Literal["clip", "hashed", "lexicon", "sentence"] = "clip"
    width: Width = 512
    buckets: Annotated[int, Within(0, 100_000_000)] = 0
    entries: Annotated[int, Within(0, 10_000_000)] = 0
    common: Annotated[int, Within(0, 10_000_000)] = 0
    kept: Annotated[int, Within(0, 10_000_000)] = 0

    @property
    def stored(self) -> bool:
        """Whether a model's own file holds the tower; the others are published elsewhere."""
        return self.kind in ("hashed", "lexicon")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build an `OVSDINO`.

    Attributes:
        sae: None for the text-aligned-DINO baseline, which has no decoder at all.
        smd: None leaves the tokens as the backbone gives them.
        upsampling: Of the logits: "attention" carries them along an affinity of the guide, besides bilinear.
        score_attention: Of "attention".
        detail: The guide's own residual on the fine logits.
        short_side: Default inference size of the image's short side, in pixels.
        logit_scale: Temperature at the start of training (cosine is multiplied by it).
        contrast: Whether the model was trained to leave pixels to a contrast vocabulary, so that words are found only
            where they are; it is then the default, see `Segmenter.segment`.
    """

    name: str
    backbone: BackboneConfig
    sae: SAEConfig | None = field(default_factory=SAEConfig)
    smd: SMDConfig | None = field(default_factory=SMDConfig)
    text: TextConfig = field(default_factory=TextConfig)
    upsampling: Literal["bilinear", "attention"] = "attention"
    score_attention: ScoreAttentionConfig = field(default_factory=ScoreAttentionConfig)
    detail: bool = True
    short_side: Annotated[int, Within(16, 16384)] = 448
    logit_scale: Annotated[float, Within(0, 100, above=True)] = 20.0
    contrast: bool = False
    mean: Annotated[tuple[float, float, float], Within(-10, 10), Size(3, 3)] = IMAGENET_MEAN
    std: Annotated[tuple[float, float, float], Within(0, 10, above=True), Size(3, 3)] = IMAGENET_STD

    @property
    def patch_size(self) -> int:
        """Patch size p in pixels."""
        return self.backbone.patch_size

    @property
    def embed_dim(self) -> int:
        """Width D of the backbone and of the text bank."""
        return self.backbone.embed_dim

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """Return it with some fields replaced, as in ``{"smd": {"gate": "none"}, "backbone": {"taps": [5]}}``.

        Raises:
            OVSDinoError: No such field, one inside a part that is not there, a value of another type or out of range.
        """
        result: ModelConfig = _changed(self, changes, self.name)
        backbone = result.backbone
        if max(backbone.taps) >= backbone.depth:
            raise OVSDinoError(
                f"{self.name}.backbone.taps: expected blocks from 0 to {backbone.depth - 1}, got {list(backbone.taps)}"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, with lists for tuples."""
        result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return result


def _changed(part: Any, changes: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(type(part), include_extras=True) if dataclasses.is_dataclass(part) else {}
    values: dict[str, Any] = {}
    if not hints and not changes:
        raise OVSDinoError(f"{where}: expected a value like {part!r}, got an empty mapping")
    for name, value in changes.items():
        if name not in hints:
            listed = ", ".join(sorted(hints)) or f"none, it is {part!r}"
            raise OVSDinoError(f"{where}: no field {name!r}; fields: {listed}")
        place = f"{where}.{name}"
        if isinstance(value, Mapping):
            values[name] = _changed(getattr(part, name), value, place)
        else:
            values[name] = build_config(hints[name], value, place)
    return dataclasses.replace(part, **values)
