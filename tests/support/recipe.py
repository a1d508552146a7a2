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
            (folder / "train2014" / f"{stem}.jpg").write_bytes(files.read(name))
            rows.append({"id": number, "file_name": f"{stem}.jpg"})
            for words in ("A photo of a {}.", "There is a {} in the picture."):
                captions.append({"image_id": number, "caption": words.format(sentence(said))})
    tree = {"images": rows, "annotations": captions}
    (folder / "annotations/captions_train2014.json").write_text(json.dumps(tree))


def write_weights(folder: Path) -> None:
    """Write the three files of b14's frozen parts."""
    torch.save(official.dinov2(768, 12), folder / "dinov2.pth")
    torch.save(official.clip(), folder / "clip.pth")
    torch.save(official.projection(768), folder / "projection.pth")


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
