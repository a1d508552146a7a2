"""A data set in miniature for weakly supervised training: pictures, captions and pseudo-masks; no labels."""

import json
import multiprocessing
import os
import resource

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ovsdino.data.masks import Manifest, MaskStore, PseudoMask, encode_image, names_digest
from ovsdino.models.zoo import build_model
from ovsdino.train.__main__ import main
from ovsdino.train.start import load_config, make_trainer

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ovsdino.train.weak.trainer", "ovsdino.train.__main__"])


def make_folder(root):
    """Six pictures of a red, a green or a blue left half and a grey right half, each named in its caption."""
    rng = np.random.default_rng(0)
    names, rows, lines, boxes = [f"{i}.png" for i in range(6)], [], [], []
    colors = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
    (root / "images").mkdir(parents=True)
    for i, name in enumerate(names):
        word = list(colors)[i % 3]
        left = np.zeros((64, 64), bool)
        left[:, : 24 + 4 * i] = True
        image = np.where(left[..., None], colors[word], (120, 120, 120)) + rng.integers(-20, 20, (64, 64, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
        masks = [PseudoMask(mask=m, predicted_iou=0.9, stability_score=q) for m, q in ((left, 0.95), (~left, 0.8))]
        rows.append(encode_image(f"images/{name}", (64, 64), masks))
        lines.append(json.dumps({"image": f"images/{name}", "caption": f"{word} paint, grey wall"}))
        for box, said in (([2, 4, 20, 30], word + " paint"), ([6, 10, 50, 40], f"{word} paint and grey wall")):
            boxes.append(json.dumps({"image": f"images/{name}", "caption": said, "box": box}))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    (root / "boxes.jsonl").write_text("\n".join(boxes) + "\n")
    manifest = Manifest(
        generator="felzenszwalb", settings={}, images=6, names_sha256=names_digest([r["image"] for r in rows])
    )
    MaskStore.create(root / "masks", manifest).write(0, rows)
    torch.manual_seed(7)
    save_file(build_model("vit6").text_tower.state_dict(), root / "text.safetensors")
    return root


def make_labelled(root):
    """Three pictures with labels: the left half is one class, the right half the other."""
    rng = np.random.default_rng(1)
    for kind in ("images", "labels"):
        (root / "val" / kind).mkdir(parents=True)
    for i in range(3):
        label = np.zeros((32, 48), np.uint8)
        label[:, 20 + 4 * i :] = 1
        image = np.where(label[..., None] == 1, (120, 120, 120), (200, 30, 30)) + rng.integers(-20, 20, (32, 48, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "val/images" / f"{i}.png")
        Image.fromarray(label).save(root / "val/labels" / f"{i}.png")
    (root / "classes.json").write_text('["red paint", "grey wall"]')
    return root


def write_config(root, output, **changes):
    """Write the file of a run on `make_folder`'s data; `changes` are laid over it key by key."""
    tree = {
        "supervision": "captions",
        "model": "vit6",
        "output": str(output),
        "text_weights": str(root / "text.safetensors"),
        "threads": 1,
        "batch": 4,
        "checkpoint_every": 2,
        "eval_every": 0,
        "log_every": 1,
        "data": {
            "kind": "jsonl",
            "root": str(root),
            "annotations": str(root / "captions.jsonl"),
            "masks": str(root / "masks"),
            "height": 32,
            "width": 48,
            "masks_per_image": 2,
        },
        "robust": {"trim": 0.25},
        "optim": {"steps": 6, "warmup": 1, "bf16": False},
    }
    return write_tree(tree, changes, output)


def write_tree(tree, changes, output):
    """Write a configuration tree with changes laid over it next to an output folder; return the file's path."""
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(tree))  # JSON is YAML
    return str(path)


def curve(output):
    """{step: loss} of a run's log; a step that was done twice must appear once."""
    found = {}
    for line in (output / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            assert row["step"] not in found
            found[row["step"]] = row["loss"]
    return found


def trainer(path, *overrides):
    return make_trainer(load_config(path, overrides), log=print)


def gradients(it):
    """Return the gradient of the first step, by parameter, and the terms."""
    batch = next(iter(it.batches(0, 1)))
    it.train_mode()
    terms = it.losses(batch)
    torch.stack(list(terms.values())).sum().backward()
    found = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in it.trained.items()}
    return found, {k: v.item() for k, v in terms.items()}


def ranked(rank, size, port, path, overrides, output):
    """One process of several: what torchrun would start."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    it = trainer(path, *overrides)
    measured = it.validate(None)
    torch.save((*gradients(it), measured), f"{output}.{rank}")


def go(path, overrides=()):
    raise SystemExit(main([path, *overrides]))


def limited(path, most):
    """Run where no file can be larger than `most` bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    go(path)
