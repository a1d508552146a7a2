"""The model zoo: from a name to a model, and where each model's weights come from."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json, reading, sha256_of
from ovsdino.models.backbone import freeze
from ovsdino.models.calibration import Measured, read_measured
from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, ScoreAttentionConfig, SMDConfig, TextConfig
from ovsdino.models.grounding import grounded_phrases
from ovsdino.models.lexicon import LexiconTextTower
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.sentence import SentenceTextTower
from ovsdino.models.text import ClipTextTower, HashedTextTower, TextTower, read_projection
from ovsdino.models.weights import WEIGHTS, fetch, load_state, packaged, read_foreign, read_packaged, read_safetensors
from ovsdino.settings import merged

log = logging.getLogger("ovsdino")

NANO = ModelConfig(
    name="nano",
    backbone=BackboneConfig(
        timm_name="tf_efficientnet_lite0.in1k",
        patch_size=16,
        embed_dim=256,
        depth=5,
        taps=(1, 2, 3),
        stage_dims=(16, 24, 40, 112, 320),
        stage_strides=(2, 4, 8, 16, 32),
    ),
    sae=SAEConfig(guide_dim=48, mid_dim=96, structure_dim=192, blocks=(1, 1, 1)),
    smd=SMDConfig(width=128, blocks=1),
    text=TextConfig(kind="lexicon", width=192, buckets=4096, entries=38577, common=12000, kept=2577),
    score_attention=ScoreAttentionConfig(mix=0.5),
    short_side=352,
    contrast=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

# A ViT small enough to train on a CPU, for studies: no weights are shipped for it.
VIT6 = ModelConfig(
    name="vit6",
    backbone=BackboneConfig(
        timm_name="small_vit", patch_size=16, embed_dim=256, width=192, depth=6, num_heads=3, taps=(0, 2, 4, 5)
    ),
    sae=SAEConfig(guide_dim=48, mid_dim=96, structure_dim=192, blocks=(1, 2, 2), depthwise=False),
    smd=SMDConfig(width=192),
    text=NANO.text,
    short_side=352,
)

# Frozen, in front of a linear head into the sentence encoder's own space: the test bed of weak supervision.
LITE2 = ModelConfig(
    name="lite2",
    backbone=BackboneConfig(
        timm_name="tf_efficientnet_lite2.in1k",
        patch_size=16,
        embed_dim=384,
        depth=5,
        taps=(1, 2, 3, 4),
        stage_dims=(16, 24, 48, 120, 352),
        stage_strides=(2, 4, 8, 16, 16),
    ),
    sae=SAEConfig(guide_dim=32, mid_dim=64, structure_dim=128),
    smd=SMDConfig(width=128, blocks=1),
    detail=False,
    text=TextConfig(kind="sentence"),
    short_side=352,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def _vit(name: str, timm_name: str, patch: int, dim: int, heads: int, *, depth: int = 12) -> ModelConfig:
    taps = tuple(depth * (i + 1) // 4 - 1 for i in range(4))  # 12 blocks: 2, 5, 8, 11
    backbone = BackboneConfig(
        timm_name=timm_name, patch_size=patch, embed_dim=dim, num_heads=heads, depth=depth, taps=taps
    )
    # At every second pixel: 150 classes at 448 x 448 are then within the budget, 4.6 % of b14's FLOPs and not 5.7.
    return ModelConfig(name=name, backbone=backbone, score_attention=ScoreAttentionConfig(query_stride=2))


CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        NANO,
        _vit("s14", "vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 6),
        _vit("b14", "vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 12),
        _vit("l14", "vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 16, depth=24),
        _vit("s16v3", "vit_small_patch16_dinov3.lvd1689m", 16, 384, 6),
        _vit("b16v3", "vit_base_patch16_dinov3.lvd1689m", 16, 768, 12),
        LITE2,
        VIT6,
    )
}
TOWER = "nano"  # whose shipped text tower serves every model with a tower of its form


# Talk2DINO's models on the hub; their files hold DINO and CLIP too, of which only `proj.*` is read.
PROJECTIONS = {
    "b14": "lorebianchi98/Talk2DINO-ViTB",
    "l14": "lorebianchi98/Talk2DINO-ViTL",
    "b16v3": "lorebianchi98/Talk2DINOv3-ViTB",
}
PROJECTION = "projection (--projection FILE; weights/vitb_mlp_infonce.pth of Talk2DINO's repository serves b14 as well)"
# What training writes of a model whose backbone is someone else's: all that is not published with the backbone.
REST = ("decoder.", "backbone.cnn.", "log_", "text_tower.")  # of the model but for its head
OWN_KEYS = ("decoder.", "backbone.head.", "text_tower.", "log_")

# A shared model is a folder or a hub repository of these two files; `ovsdino.hub` writes them.
SHARED_WEIGHTS = "model.safetensors"
SHARED = f"a folder that holds config.json and {SHARED_WEIGHTS} (--model FOLDER)"
REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")


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
    """Return the models of the zoo, the shipped one first."""
    rows = []
    for name, config in CONFIGS.items():
        shipped = packaged(name)
        rows.append(
            ModelInfo(
                name=name,
                backbone=config.backbone.timm_name,
                patch_size=config.patch_size,
                embed_dim=config.embed_dim,
                params_million=shipped.parameters / 1e6 if shipped else None,
                weights="shipped" if shipped else "own" if config.text.stored else "hub",
                note=_note(name),
            )
        )
    return rows


def _note(name: str) -> str:
    """Return the remark of `ovsdino models` on a model."""
    if name == "nano":
        return "streets and common objects, works offline"
    if name == "vit6":
        return "a ViT of 2.9 M parameters, for studies: needs a checkpoint of your own (--checkpoint FILE)"
    if get_config(name).text.kind == "sentence":
        return "frozen ImageNet CNN and MiniLM, for studies: needs a trained head (--projection) and ovsdino[sentence]"
    if name in PROJECTIONS:
        return "the Talk2DINO baseline until a decoder is trained; needs ovsdino[clip]"
    return "needs your own projection (--projection FILE): none is published for this backbone; needs ovsdino[clip]"


def get_config(name: str) -> ModelConfig:
    """Return the configuration of a zoo model.

    Raises:
        OVSDinoError: There is no such model.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise OVSDinoError(f"unknown model {name!r}; available: {', '.join(CONFIGS)}") from None


def create_model(
    name: str | Path,
    *,
    pretrained: bool = True,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    projection: str | Path | None = None,
    clip_weights: str | Path | None = None,
    sentence_weights: str | Path | None = None,
) -> OVSDINO:
    """Return a model ready for inference.

    Args:
        name: A name of `list_models()`; or a shared model: a folder, or a hub repository "name/repository" or
            "name/repository@revision".
        pretrained: False builds random weights, for tests and for timing.
        device: Where to put it.
        checkpoint: Decoder weights (safetensors) written by training; they replace the shipped ones.
        backbone_weights: Local file of the backbone's official weights, in place of the hub's.
        projection: Local file of Talk2DINO's text projection, in place of the checkpoint's or the hub's; for lite2 of
            its linear head.
        clip_weights: Local file of CLIP ViT-B-16's openai weights, in place of the hub's.
        sentence_weights: Local folder of lite2's sentence encoder, in place of the installed package's.

    Returns:
        The model in eval mode, parameters frozen. Without decoder weights it is the baseline, and a warning says so.

    Raises:
        OVSDinoError: The name is unknown, or weights are missing, corrupt or out of reach.
    """
    name = str(name)
    if name not in CONFIGS and ("/" in name or Path(name).is_dir()):
        if checkpoint is not None:
            raise OVSDinoError(f"{name} brings its own weights: leave out the checkpoint, or name a zoo model")
        name, checkpoint = _shared(name)
    config = get_config(name)
    files = {"backbone_weights": backbone_weights, "projection": projection, "clip_weights": clip_weights}
    for option, path in {"checkpoint": checkpoint, **files}.items():
        if path is not None and not Path(path).is_file():
            raise OVSDinoError(f"{path}: no such file ({option})")
    files["sentence_weights"] = sentence_weights
    if sentence_weights is not None and not Path(sentence_weights).is_dir():
        raise OVSDinoError(f"{sentence_weights}: no such folder (sentence_weights)")
    if not pretrained:
        model = build_model(name)
        if isinstance(model.text_tower, (ClipTextTower, SentenceTextTower)):
            model.text_tower.weights = None
    elif config.text.stored:
        model = _whole(name, checkpoint)
    else:
        model = _on_official_weights(name, checkpoint, **files)
    freeze(model)
    if pretrained:
        shipped = packaged(name) if config.text.stored else None
        source = checkpoint or (shipped and WEIGHTS / shipped.file)
        measured = read_measured(source) if source else Measured()
        model.backgrounds, model.known = dict(measured.backgrounds), dict(measured.known)
    return model.to(device)


def build_model(name: str, *, decoder: bool = True, changes: Mapping[str, Any] | None = None) -> OVSDINO:
    """Return a zoo model with random weights.

    Args:
        name: A name of `list_models()`.
        decoder: False leaves SAE and SMD out (the baseline).
        changes: Fields of its `ModelConfig` to replace (`ModelConfig.changed`).
    """
    config = get_config(name).changed(changes or {})
    if not decoder:
        config = replace(config, sae=None, smd=None)
    return OVSDINO(config, build_text_tower(config.embed_dim, config.text))


def build_text_tower(embed_dim: int, config: TextConfig) -> TextTower:
    """Return a text tower with random weights, CLIP's and the sentence encoder's not read yet."""
    if config.kind == "hashed":
        return HashedTextTower(embed_dim, config.width, config.buckets)
    if config.kind == "lexicon":
        sizes = {"entries": config.entries, "common": config.common, "kept": config.kept}
        tower = LexiconTextTower(embed_dim, config.width, config.buckets, **sizes)
        tower.ground(grounded_phrases())
        return tower
    return (ClipTextTower if config.kind == "clip" else SentenceTextTower)(embed_dim)


def _shared(source: str) -> tuple[str, Path]:
    """Return the zoo name and the weight file of a shared model, both checked.

    Raises:
        OVSDinoError: It is not found, out of reach, damaged, or no model of this version of ovsdino.
    """
    folder, named = Path(source), REPOSITORY.fullmatch(source)
    if not folder.is_dir() and not named:
        raise OVSDinoError(f"{source}: neither a folder nor the name of a hub repository (name/repository)")

    def file(name: str) -> Path:
        return fetch(named[1], name, SHARED, named[2]) if named and not folder.is_dir() else folder / name

    config_path = file("config.json")
    kind = "config.json of an ovsdino model"
    config = read_json(config_path, kind)
    with reading(config_path, kind):
        name, digest = config["model"], config["weights"]["sha256"]
        own, stored = (_without_told(tree) for tree in (get_config(name).to_dict(), config["config"]))
        same = merged(own, stored) == own  # a field that is younger than the folder has today's value
    if not same:
        raise OVSDinoError(f"{config_path}: made for another version of {name}; train it again or install that version")
    path = file(SHARED_WEIGHTS)
    if sha256_of(path, "weight file") != digest:
        raise OVSDinoError(f"{path}: damaged (its SHA-256 is not that of config.json); fetch it again")
    return name, path


def _without_told(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the fields that the keys of the weights tell."""
    kept = {key: value for key, value in tree.items() if key != "upsampling"}
    if kept.get("smd"):
        kept["smd"] = {key: value for key, value in kept["smd"].items() if key != "gate"}
    return kept


def _built_as(name: str, state: Mapping[str, Any]) -> OVSDINO:
    """Return a model of the parts that a checkpoint's keys name: a run may leave out the decoder, or some of it."""

    def has(part: str) -> bool:
        return any(key.startswith(f"decoder.{part}") for key in state)

    if not has(""):
        return build_model(name, decoder=False)
    parts: dict[str, Any] = {"smd": None, "detail": has("detail.")}
    if has("smd."):
        gate = "output" if has("smd.gate.") else "none"
        parts["smd"] = {"gate": gate, "structure": has("smd.blocks.0.structure.")}
    parts["upsampling"] = "attention" if has("score_attention.") else "bilinear"
    if has("score_attention."):
        parts["score_attention"] = {"structure": has("score_attention.affinity.")}
    return build_model(name, changes=parts)


def _whole(name: str, checkpoint: str | Path | None) -> OVSDINO:
    """Return a model whose one file holds all of it: the shipped one, or a checkpoint of training.

    A file without a text tower, as self-distillation writes, takes the shipped one: words then mean nothing to it, but
    its features can be looked at.
    """
    if checkpoint is None and packaged(name) is None:
        if name == TOWER:
            raise OVSDinoError(f"{name}: the packaged weights are missing; reinstall ovsdino")
        raise OVSDinoError(f"{name}: no weights are shipped for it; give some that training wrote (--checkpoint FILE)")
    state = read_safetensors(checkpoint) if checkpoint else read_packaged(name)
    if not any(key.startswith("text_tower.") for key in state) and packaged(TOWER) is not None:
        state |= {f"text_tower.{key}": value for key, value in read_tower().items()}
    model = _built_as(name, state)
    load_state(model, state, str(checkpoint or name))
    model.decoder_trained = model.has_decoder
    return model


def read_tower() -> dict[str, torch.Tensor]:
    """Return the shipped text tower, which is part of nano's file, under its own keys.

    Raises:
        OVSDinoError: The packaged weights are damaged.
    """
    state = read_packaged(TOWER)
    return {key.removeprefix("text_tower."): v for key, v in state.items() if key.startswith("text_tower.")}


def load_official(
    model: OVSDINO,
    *,
    backbone_weights: str | Path | None = None,
    projection: str | Path | None = None,
    clip_weights: str | Path | None = None,
    sentence_weights: str | Path | None = None,
    with_projection: bool = True,
) -> None:
    """Put published weights into a model: its backbone, its map between image and text, its text encoder's place.

    Args:
        model: A model of the zoo.
        backbone_weights: Local file; None asks the hub.
        projection: Local file of Talk2DINO's projection, where None asks the hub; or of lite2's head.
        clip_weights: Local file; None asks the hub.
        sentence_weights: Local folder; None takes the installed package's.
        with_projection: False leaves the map between image and text as it is.

    Raises:
        OVSDinoError: A file is missing or does not fit, or the hub cannot be reached.
    """
    name = model.config.name
    model.backbone.load(backbone_weights)
    if with_projection and model.backbone.head is not None and projection is not None:
        load_state(model, read_head(projection), f"{projection} (head of {name})", partial=REST)
    elif with_projection and model.backbone.head is None:
        source = projection or fetch(PROJECTIONS[name], "model.safetensors", PROJECTION)
        load_state(model.text_tower, read_projection(source), f"{source} (text projection of {name})")
    if clip_weights is not None and isinstance(model.text_tower, ClipTextTower):
        model.text_tower.weights = clip_weights
    if sentence_weights is not None and isinstance(model.text_tower, SentenceTextTower):
        model.text_tower.weights = sentence_weights


def read_head(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the linear head of a backbone, and the center of its text rows, out of a file that training wrote.

    Raises:
        OVSDinoError: The file is missing, unreadable, or without a head.
    """
    state = read_foreign(path)
    if "backbone.head.weight" not in state:
        raise OVSDinoError(f"{path}: no head of a backbone in it (backbone.head.weight is missing)")
    return {key: value for key, value in state.items() if key.startswith(("backbone.head.", "text_tower."))}


def _on_official_weights(
    name: str, checkpoint: str | Path | None, *, projection: str | Path | None, **files: str | Path | None
) -> OVSDINO:
    """Return a model on published weights with what training adds from a checkpoint; without one it is the baseline."""
    state = read_safetensors(checkpoint) if checkpoint else {}
    own = {key: value for key, value in state.items() if key.startswith(OWN_KEYS)}
    aligned = any(key.startswith(("text_tower.", "backbone.head.")) for key in own)
    model = _built_as(name, state)
    has_head = model.backbone.head is not None
    if projection is None and not aligned and not has_head and name not in PROJECTIONS:
        raise OVSDinoError(
            f"{name}: no text projection is published for its backbone; give one of your own as projection "
            f"(--projection FILE), or use {', '.join(PROJECTIONS)}"
        )
    if checkpoint is not None:
        left_out = [
            part for part in ("text_tower.", "backbone.head.", "log_") if not any(key.startswith(part) for key in own)
        ]
        load_state(model, own, str(checkpoint), partial=("backbone.vit.", "backbone.cnn.", *left_out))
    load_official(model, projection=projection, with_projection=projection is not None or not aligned, **files)
    model.aligned = not has_head or projection is not None or aligned
    if not model.aligned:
        log.warning("%s: no head given (projection or checkpoint); it is random, and labels mean nothing", name)
    elif not model.has_decoder:
        log.warning(
            "%s: no decoder weights given; this is the %s baseline", name, "aligned" if has_head else "Talk2DINO"
        )
    model.decoder_trained = model.has_decoder
    return model
