"""The formats of models, exports and videos, as `data_formats` has those of data; and the table of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.reliability import data_formats as data
from scripts.reliability.data_formats import Format, Maker, Reader, files_of, pixels
from scripts.reliability.mutate import (
    bytes_damaged,
    json_damaged,
    lines_damaged,
    safetensors_damaged,
    tar_damaged,
    text_damaged,
    yaml_damaged,
    zip_damaged,
)


def training_folder(folder: Path, steps: int = 1) -> Path:
    """Write a data set of two colors and the configuration of a run on it; return the configuration's path."""
    from safetensors.torch import save_file

    from ovsdino.models.zoo import create_model

    for split in ("train", "val"):
        for index in range(2):
            label = np.zeros((40, 56), np.uint8)
            label[:, 20 + 9 * index :] = 1
            image = np.where(label[..., None] == 1, [20, 20, 200], [200, 20, 20]).astype(np.uint8)
            name = f"{split}/{{}}/{index}.png"
            files_of(folder, {name.format("images"): data.picture("PNG", image)})
            files_of(folder, {name.format("labels"): data.picture("PNG", label)})
    (folder / "classes.json").write_text('["red", "blue"]')
    save_file(create_model("nano").text_tower.state_dict(), folder / "text.safetensors")
    tree = {
        "output": str(folder / "run"),
        "text_weights": str(folder / "text.safetensors"),
        "decoder": False,
        "checkpoint_every": 2,
        "eval_every": steps,
        "log_every": 1,
        "data": {"dataset": "folder", "root": str(folder)},
        "optim": {"steps": steps, "warmup": 1, "bf16": False},
        "stages": [{"height": 32, "width": 32, "batch": 2}],
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def trained(folder: Path) -> Any:
    """Train a step; return the trainer."""
    from ovsdino.train.dense.trainer import DenseTrainer
    from ovsdino.train.start import load_config

    trainer = DenseTrainer(load_config(training_folder(folder)), log=lambda line: None)
    trainer.run()
    return trainer


def checkpoint(folder: Path) -> tuple[Path, Reader]:
    trainer = trained(folder)
    return folder / "run/checkpoint.pt", trainer.resume


def trained_weights(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.models.zoo import create_model

    trained(folder)
    path = folder / "run/last.safetensors"
    return path, lambda: create_model("nano", checkpoint=path)


def shipped_weights(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.models import shipped, weights

    path = folder / shipped.manifest()["nano"].file
    path.write_bytes((shipped.WEIGHTS / path.name).read_bytes())

    def read() -> None:
        there = shipped.WEIGHTS
        try:
            shipped.WEIGHTS = folder
            weights.read_packaged("nano")
        finally:
            shipped.WEIGHTS = there

    return path, read


def shared_model(damaged: str) -> Maker:
    """Return the maker of a folder that `save_pretrained` wrote."""

    def make(folder: Path) -> tuple[Path, Reader]:
        from ovsdino import hub
        from ovsdino.models.zoo import create_model

        hub.save_pretrained(create_model("nano"), folder)
        return folder / damaged, lambda: hub.from_pretrained(folder)

    return make


def export(damaged: str, *, signed: bool = False) -> Maker:
    """Return the maker of an exported graph with its sidecar and text bank.

    Args:
        damaged: The file of the three that is damaged.
        signed: Write the sidecar again for each damaged graph, as one who means harm would.
    """

    def make(folder: Path) -> tuple[Path, Reader]:
        from ovsdino.edge.segmenter import EdgeSegmenter
        from ovsdino.edge.sidecar import Sidecar
        from tests.support import tiny

        graph, bank = tiny.graph(folder / "small.onnx"), folder / "bank.safetensors"
        tiny.bank("red", "green", "blue").save(bank)
        sidecar = Sidecar.load(graph)
        image = pixels()

        def read() -> None:
            if signed:
                sidecar.describing(graph.read_bytes()).save(graph)
            segmenter = EdgeSegmenter(graph, bank, threads=1)
            try:
                segmenter.segment(image)
            finally:
                segmenter.close()

        return folder / damaged, read

    return make


def video(folder: Path) -> tuple[Path, Reader]:
    import cv2

    from ovsdino.stream.sources import SourceOptions, make_source

    path = folder / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for index in range(4):
        writer.write(pixels(index, 48, 64))
    writer.release()

    def read() -> None:
        source = make_source(str(path), SourceOptions(keep_all=True))()
        try:
            source.open()
            while source.grab() is not None:
                source.retrieve()
        finally:
            source.close()

    return path, read


FORMATS: dict[str, Format] = {
    "image: PNG": Format(data.an_image("PNG"), bytes_damaged),
    "image: JPEG": Format(data.an_image("JPEG", quality=85), bytes_damaged),
    "image: WebP": Format(data.an_image("WEBP"), bytes_damaged),
    "image: TIFF": Format(data.an_image("TIFF", compression="tiff_lzw"), bytes_damaged),
    "image: BMP": Format(data.an_image("BMP"), bytes_damaged),
    "zip of images": Format(data.image_zip, zip_damaged(bytes_damaged)),
    "zip of images and labels": Format(data.data_zip, zip_damaged(bytes_damaged)),
    "zip for calibration": Format(data.calibration_zip, zip_damaged(bytes_damaged)),
    "shard of masks": Format(data.masks("shard-00000.jsonl"), lines_damaged, 2.0),
    "manifest of masks": Format(data.masks("manifest.json"), json_damaged),
    "captions: JSON lines": Format(data.caption_lines, lines_damaged),
    "captions: COCO": Format(data.caption_coco, json_damaged),
    "captions: tar": Format(data.caption_tar, tar_damaged, 2.0),
    "captions: index of a tar": Format(data.tar_index, json_damaged),
    "COCO instances": Format(data.coco_instances, json_damaged, 2.0),
    "BSDS ground truth (.mat)": Format(data.bsds_mat, bytes_damaged),
    "list of a split": Format(data.split_list, text_damaged),
    "classes.json": Format(data.class_list, json_damaged),
    "class names (JSON)": Format(data.class_names, json_damaged),
    "list of words": Format(data.word_list, text_damaged),
    "result of eval (JSON)": Format(data.eval_result, json_damaged),
    "configuration (YAML)": Format(data.config, yaml_damaged, 2.0),
    "weights: .pth (zip)": Format(data.foreign_weights, zip_damaged(bytes_damaged)),
    "weights: .pth (legacy)": Format(data.legacy_weights, bytes_damaged),
    "SAM's embeddings": Format(data.sam_embeddings, safetensors_damaged),
    "training checkpoint": Format(checkpoint, bytes_damaged, 0.1, whole=True),
    "trained weights": Format(trained_weights, safetensors_damaged, 0.1, whole=True),
    "shipped weights": Format(shipped_weights, safetensors_damaged, 0.2, whole=True),
    "shared model: weights": Format(shared_model("model.safetensors"), safetensors_damaged, 0.1, whole=True),
    "shared model: config.json": Format(shared_model("config.json"), json_damaged, 0.1),
    "export: graph": Format(export("small.onnx"), bytes_damaged, whole=True),
    "export: graph, sidecar rewritten": Format(export("small.onnx", signed=True), bytes_damaged),
    "export: sidecar": Format(export("small.onnx.json"), json_damaged, 2.0),
    "export: text bank": Format(export("bank.safetensors"), safetensors_damaged),
    "video": Format(video, bytes_damaged, 0.5),
}
