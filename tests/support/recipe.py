"""The inputs of configs/weak_b14.yaml in miniature: COCO's layout with captions made of labels, and official files.

    python -m tests.support.recipe FOLDER --voc data/voc21_train.zip --images 40

writes FOLDER/coco (annotations/captions_train2014.json, train2014/) and FOLDER/dinov2.pth, clip.pth and projection.pth:
the layouts of the published files with seeded random values, 1 GB.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ovsdino.data.names import VOC21
from ovsdino.train.weak.compose_captions import sentence
from tests.support import official

COLORS = {1: (255, 102, 77), 2: (128, 255, 77), 3: (128, 102, 255)}  # of the first three classes
GROUND = (134, 110, 45)


def write_voc(path: Path, images: int) -> None:
    """Write a zip in the layout of voc21: squares of the first three classes on a ground that is background."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(images):
            label = np.zeros((112, 112), np.uint8)
            label[28:84, 28:84] = 1 + i % 3
            image = np.uint8(GROUND) + rng.integers(0, 4, (112, 112, 3)).astype(np.uint8)
            image[label > 0] = COLORS[1 + i % 3]
            for kind, pixels in (("images", image), ("labels", label)):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                archive.writestr(f"{kind}/{i}.png", file.getvalue())


def write_coco(folder: Path, archive: Path, images: int) -> None:
    """Write images of VOC as a split of COCO; a caption is a sentence of the classes of the labels."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2014").mkdir()
    rows, captions = [], []
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith("images/"))
        for number, name in enumerate(names[:: len(names) // images][:images]):
            stem = Path(name).stem
            label = np.asarray(Image.open(io.BytesIO(files.read(f"labels/{stem}.png"))))
            said = [VOC21[i] for i in np.unique(label) if 0 < i < len(VOC21)]
            file = Path(name).name
            (folder / "train2014" / file).write_bytes(files.read(name))
            rows.append({"id": number, "file_name": file})
            for words in ("A photo of a {}.", "There is a {} in the picture."):
                captions.append({"image_id": number, "caption": words.format(sentence(said))})
    tree = {"images": rows, "annotations": captions}
    (folder / "annotations/captions_train2014.json").write_text(json.dumps(tree))


def write_weights(folder: Path, dim: int = 768) -> None:
    """Write the three files of the frozen parts of b14, or of s14 with dim 384."""
    torch.save(official.dinov2(dim, 12), folder / "dinov2.pth")
    torch.save(official.clip(), folder / "clip.pth")
    torch.save(official.projection(dim), folder / "projection.pth")


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--voc", type=Path, required=True, help="voc21_train.zip")
    parser.add_argument("--images", type=int, default=40)
    args = parser.parse_args()
    write_coco(args.folder / "coco", args.voc, args.images)
    write_weights(args.folder)


if __name__ == "__main__":
    main()
