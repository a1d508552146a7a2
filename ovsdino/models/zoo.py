"""The model zoo: from a name to a model, and where each model's weights come from."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json, reading, sha256_of
from ovsdino.models import shipped
from ovsdino.models.backbone import freeze
from ovsdino.models.calibration import Measured, read_measured
from ovsdino.models.catalog import CONFIGS, PROJECTIONS, get_config
from ovsdino.models.config import TextConfig
from ovsdino.models.grounding import grounded_phrases
from ovsdino.models.lexicon import LexiconTextTower
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.sentence import SentenceTextTower
from ovsdino.models.text import ClipTextTower, HashedTextTower, TextTower, read_projection
from ovsdino.models.weights import fetch, load_state, read_foreign, read_packaged, read_safetensors
from ovsdino.settings import merged

log = logging.getLogger("ovsdino")

TOWER = "nano"  # whose shipped text tower serves every model with a tower of its form


PROJECTION = "projection (--projection FILE; weights/vitb_mlp_infonce.pth of Talk2DINO's repository serves b14 as well)"
# What training writes of a model whose backbone is someone else's: all that is not published with the backbone.
REST = ("decoder.", "backbone.cnn.", "log_", "text_tower.")  # of the model but for its head
OWN_KEYS = ("decoder.", "backbone.head.", "text_tower.", "log_")

# A shared model is a folder or a hub repository of these two files; `ovsdino.hub` writes them.
SHARED_WEIGHTS = "model.safetensors"
SHARED = f"a folder that holds config.json and {SHARED_WEIGHTS} (--model FOLDER)"
REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")


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
        entry = shipped.packaged(name) if config.text.stored else None
        source = checkpoint or (entry and shipped.WEIGHTS / entry.file)
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
        return LexiconTextTower(embed_dim, config.width, config.buckets, **sizes)
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
    if checkpoint is None and shipped.packaged(name) is None:
        if name == TOWER:
            raise OVSDinoError(f"{name}: the packaged weights are missing; reinstall ovsdino")
        raise OVSDinoError(f"{name}: no weights are shipped for it; give some that training wrote (--checkpoint FILE)")
    state = read_safetensors(checkpoint) if checkpoint else read_packaged(name)
    if not any(key.startswith("text_tower.") for key in state) and shipped.packaged(TOWER) is not None:
        state |= {f"text_tower.{key}": value for key, value in read_tower().items()}
    model = _built_as(name, state)
    load_state(model, state, str(checkpoint or name))
    if isinstance(model.text_tower, LexiconTextTower):
        model.text_tower.ground(grounded_phrases())
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
