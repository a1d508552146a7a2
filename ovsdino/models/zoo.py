"""The model zoo: names, configurations, and where each model's weights come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ovsdino import hub
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze
from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import ClipTextTower, HashedTextTower, TextTower, read_projection

log = logging.getLogger("ovsdino")

NANO = ModelConfig(
    name="nano",
    backbone=BackboneConfig(
        timm_name="nano_vit", patch_size=16, embed_dim=192, depth=6, num_heads=3, taps=(0, 2, 4, 5)
    ),
    sae=SAEConfig(guide_dim=48, mid_dim=96, structure_dim=192, blocks=(1, 2, 2), depthwise=False),
    smd=SMDConfig(width=192),
    text=TextConfig(kind="hashed", width=64, buckets=12288),
    short_side=352,
)


def _vit(name: str, timm_name: str, patch: int, dim: int, heads: int, *, depth: int = 12) -> ModelConfig:
    taps = tuple(depth * (i + 1) // 4 - 1 for i in range(4))  # 12 blocks: 2, 5, 8, 11
    backbone = BackboneConfig(
        timm_name=timm_name, patch_size=patch, embed_dim=dim, num_heads=heads, depth=depth, taps=taps
    )
    return ModelConfig(name=name, backbone=backbone)


CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        NANO,
        _vit("s14", "vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 6),
        _vit("b14", "vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 12),
        _vit("l14", "vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 16, depth=24),
        _vit("s16v3", "vit_small_patch16_dinov3.lvd1689m", 16, 384, 6),
        _vit("b16v3", "vit_base_patch16_dinov3.lvd1689m", 16, 768, 12),
    )
}


# Talk2DINO's models on the hub; their files hold DINO and CLIP too, of which only `proj.*` is read.
PROJECTIONS = {
    "b14": "lorebianchi98/Talk2DINO-ViTB",
    "l14": "lorebianchi98/Talk2DINO-ViTL",
    "b16v3": "lorebianchi98/Talk2DINOv3-ViTB",
}
PROJECTION = "projection (--projection FILE; weights/vitb_mlp_infonce.pth of Talk2DINO's repository serves b14 as well)"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A line of `ovsdino models`."""

    name: str
    backbone: str
    patch_size: int
    embed_dim: int
    params_million: float | None
    weights: str
    note: str


def list_models() -> list[ModelInfo]:
    """What the zoo holds, the shipped model first."""
    rows = []
    for config in CONFIGS.values():
        backbone = config.backbone
        shipped = hub.packaged(config.name)
        rows.append(
            ModelInfo(
                name=config.name,
                backbone=backbone.timm_name,
                patch_size=backbone.patch_size,
                embed_dim=backbone.embed_dim,
                params_million=shipped.parameters / 1e6 if shipped else None,
                weights="shipped" if shipped else "hub",
                note=_note(config.name),
            )
        )
    return rows


def _note(name: str) -> str:
    """Return what a user must know of a model before choosing it."""
    if name == "nano":
        return "street scenes, 367 training images, works offline"
    if name in PROJECTIONS:
        return "the Talk2DINO baseline until a decoder is trained; needs ovsdino[clip]"
    return "needs your own projection (--projection FILE): none is published for this backbone; needs ovsdino[clip]"


def get_config(name: str) -> ModelConfig:
    """The configuration of a zoo model.

    Raises:
        OVSDinoError: no such model.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise OVSDinoError(f"unknown model {name!r}; available: {', '.join(CONFIGS)}") from None


def _text_tower(config: ModelConfig) -> TextTower:
    if config.text.kind == "hashed":
        return HashedTextTower(config.embed_dim, config.text.width, config.text.buckets)
    return ClipTextTower(config.embed_dim)


def build_model(name: str, *, decoder: bool = True, changes: Mapping[str, Any] | None = None) -> OVSDINO:
    """A zoo model with random weights; `decoder=False` leaves SAE and SMD out (the baseline).

    Args:
        changes: fields of its `ModelConfig` to replace (`ModelConfig.changed`).
    """
    config = get_config(name).changed(changes or {})
    if not decoder:
        config = replace(config, sae=None, smd=None)
    return OVSDINO(config, _text_tower(config))


def create_model(
    name: str | Path,
    *,
    pretrained: bool = True,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    projection: str | Path | None = None,
    clip_weights: str | Path | None = None,
) -> OVSDINO:
    """A zoo model ready for inference.

    Args:
        name: a name of `list_models()`, or what `hub.from_pretrained` takes: a folder or a hub repository.
        pretrained: False builds random weights, for tests and for timing.
        checkpoint: decoder weights (safetensors) written by training; replaces the shipped ones.
        backbone_weights: local file of the backbone's official weights, instead of the hub.
        projection: local file of Talk2DINO's text projection, instead of the checkpoint's or the hub's.
        clip_weights: local file of CLIP ViT-B-16's openai weights, instead of the hub.

    Returns:
        The model in eval mode, parameters frozen. Without decoder weights it is the baseline, and a warning says so.

    Raises:
        OVSDinoError: unknown name, weights missing, corrupt or out of reach.
    """
    name = str(name)
    files: dict[str, Any] = {
        "backbone_weights": backbone_weights,
        "projection": projection,
        "clip_weights": clip_weights,
    }
    if name not in CONFIGS and ("/" in name or Path(name).is_dir()):
        if checkpoint is not None:
            raise OVSDinoError(f"{name} brings its own weights: leave out the checkpoint, or name a zoo model")
        return hub.from_pretrained(name, device=device, **files)
    config = get_config(name)
    for what, path in {"checkpoint": checkpoint, **files}.items():
        if path is not None and not Path(path).is_file():
            raise OVSDinoError(f"{path}: no such file ({what})")
    if not pretrained:
        model = build_model(name)
        if isinstance(model.text_tower, ClipTextTower):
            model.text_tower.weights = None
    elif config.text.kind == "hashed":
        model = _whole(name, checkpoint)
    else:
        model = _on_official_weights(name, checkpoint, **files)
    freeze(model)
    return model.to(device)


def _built_as(name: str, state: Mapping[str, Any]) -> OVSDINO:
    """The model that a checkpoint's keys are of: a run may have left out the decoder, or parts of it."""

    def has(part: str) -> bool:
        return any(key.startswith(f"decoder.{part}") for key in state)

    if not has(""):
        return build_model(name, decoder=False)
    parts: dict[str, Any] = {"smd": None} if not has("smd.") else {}
    parts |= {field: False for field, part in (("guided", "affinity."), ("detail", "detail.")) if not has(part)}
    return build_model(name, changes=parts)


def _whole(name: str, checkpoint: str | Path | None) -> OVSDINO:
    """A model whose one file holds all of it: the shipped one, or a checkpoint of training.

    A file without a text tower, as self-distillation writes, takes the shipped model's: words then mean nothing to it,
    but its features can be looked at.
    """
    if checkpoint is None and hub.packaged(name) is None:
        raise OVSDinoError(f"{name}: the packaged weights are missing; reinstall ovsdino")
    state = hub.read_safetensors(checkpoint) if checkpoint else hub.read_packaged(name)
    if not any(key.startswith("text_tower.") for key in state) and hub.packaged(name) is not None:
        state |= {key: value for key, value in hub.read_packaged(name).items() if key.startswith("text_tower.")}
    model = _built_as(name, state)
    hub.load_state(model, state, str(checkpoint or name))
    model.decoder_trained = model.has_decoder
    return model


def load_official(
    model: OVSDINO,
    backbone_weights: str | Path | None,
    projection: str | Path | None,
    clip_weights: str | Path | None,
    *,
    with_projection: bool = True,
) -> None:
    """Puts published weights into a model: its backbone, Talk2DINO's projection, the place of CLIP's.

    Args:
        backbone_weights, projection, clip_weights: local files; None asks the hub.
        with_projection: False leaves the projection as it is.

    Raises:
        OVSDinoError: a file is missing or does not fit, or the hub cannot be reached.
    """
    name = model.config.name
    model.backbone.load(backbone_weights)
    if with_projection:
        source = projection or hub.fetch(PROJECTIONS[name], "model.safetensors", PROJECTION)
        hub.load_state(model.text_tower, read_projection(source), f"{source} (text projection of {name})")
    if clip_weights is not None and isinstance(model.text_tower, ClipTextTower):
        model.text_tower.weights = clip_weights


def _on_official_weights(
    name: str,
    checkpoint: str | Path | None,
    *,
    backbone_weights: str | Path | None,
    projection: str | Path | None,
    clip_weights: str | Path | None,
) -> OVSDINO:
    """Published backbone, CLIP and projection, and the decoder of a checkpoint; without one, the baseline."""
    state = hub.read_safetensors(checkpoint) if checkpoint else {}
    text = {k.removeprefix("text_tower."): v for k, v in state.items() if k.startswith("text_tower.")}
    if projection is None and not text and name not in PROJECTIONS:
        raise OVSDinoError(
            f"{name}: no text projection is published for its backbone; give one of your own as projection "
            f"(--projection FILE), or use {', '.join(PROJECTIONS)}"
        )
    model = _built_as(name, state)
    if projection is None and text:
        hub.load_state(model.text_tower, text, f"{checkpoint} (text projection of {name})")
    load_official(model, backbone_weights, projection, clip_weights, with_projection=projection is not None or not text)
    if checkpoint is None:
        log.warning("%s: no decoder weights given; this is the Talk2DINO baseline", name)
        return model
    decoder = {k: v for k, v in state.items() if k.startswith(("decoder.", "log_"))}
    hub.load_state(model, decoder, str(checkpoint), partial=("backbone.", "text_tower."))
    model.decoder_trained = model.has_decoder
    return model
