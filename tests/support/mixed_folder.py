"""Data sets in miniature for training on several kinds of images: labels, pictures with a word, drawn regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ovsdino.models.zoo import build_model
from ovsdino.train.mixed.trainer import MixedTrainer
from ovsdino.train.start import load_config, make_trainer
from tests.support.weak_folder import write_tree

COLORS = {"road": (200, 20, 20), "sky": (20, 20, 200), "zebra": (20, 200, 20)}


def picture(rng: np.random.Generator, labels: np.ndarray) -> Image.Image:
    """Return an image whose color says the number of the class."""
    palette = np.array([*COLORS.values()])
    pixels = palette[labels] + rng.integers(-15, 15, (*labels.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folder(root: Path) -> Path:
    """Write three classes side by side with labels, six pictures of one color, and two images cut by two people."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / "labels" / split / kind).mkdir(parents=True)
        for i in range(3):
            labels = np.zeros((40, 56), np.uint8)
            labels[:, 16 + 4 * i :] = 1
            labels[:, 36 + 4 * i :] = 2
            picture(rng, labels).save(root / "labels" / split / "images" / f"{i}.png")
            labels[0] = 255
            Image.fromarray(labels).save(root / "labels" / split / "labels" / f"{i}.png")
    (root / "labels" / "classes.json").write_text(json.dumps([*COLORS]))
    (root / "words").mkdir()
    lines = []
    for i in range(6):
        picture(rng, np.full((40, 40), i % 3)).save(root / "words" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": [*COLORS][i % 3]}))
    (root / "words.jsonl").write_text("\n".join(lines))
    for kind in ("images", "segments"):
        (root / "drawn/bsds500/train" / kind).mkdir(parents=True)
    for i in range(2):
        regions = np.ones((48, 48), np.uint16)
        regions[:, 20 + 8 * i :] = 2
        picture(rng, regions - 1).save(root / "drawn/bsds500/train/images" / f"{i}.jpg")
        for person in range(2):
            Image.fromarray(regions + 10 * person).save(root / f"drawn/bsds500/train/segments/{i}_{person}.png")
    torch.manual_seed(7)
    save_file(build_model("nano").text_tower.state_dict(), root / "text.safetensors")
    return root


def write_config(root: Path, output: Path, **changes: Any) -> str:
    """Write the file of a run on `make_folder`'s images; `changes` are laid over it key by key."""
    tree: dict[str, Any] = {
        "supervision": "mixed",
        "model": "nano",
        "output": str(output),
        "text_weights": str(root / "text.safetensors"),
        "threads": 1,
        "workers": 0,
        "checkpoint_every": 2,
        "log_every": 1,
        "labels": {
            "streets": {"dataset": "folder", "root": str(root / "labels"), "height": 32, "width": 48, "batch": 2}
        },
        "pictures": {"root": str(root / "words"), "annotations": str(root / "words.jsonl"), "side": 32, "batch": 3},
        "edges": {"root": str(root / "drawn"), "height": 32, "width": 32, "batch": 2},
        "optim": {"steps": 4, "warmup": 1, "bf16": False},
    }
    return write_tree(tree, changes, output)


def trainer(path: str, *overrides: str) -> MixedTrainer:
    """Return the trainer of a configuration file."""
    made = make_trainer(load_config(path, overrides), log=print)
    assert isinstance(made, MixedTrainer)
    return made
