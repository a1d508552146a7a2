"""Every format that ovsdino reads: a small sample of it, and the public reader that opens it.

A sample's maker writes it, and what it needs around it, into an empty folder and returns the file to damage and the
reader. A reader takes no argument, so that it finds the damaged file where the whole one was.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.reliability.mutate import Mutator

Reader = Callable[[], object]
Maker = Callable[[Path], tuple[Path, Reader]]
HEIGHT, WIDTH = 24, 32


@dataclass(frozen=True)
class Format:
    """A format: its sample, its reader, and its damage.

    Attributes:
        make: Writes the sample; see the module's docstring.
        damage: Changes its bytes.
        share: Share of the mutants, relative to the other formats: less for what is slow to read.
        whole: Every change must be refused, since the file's hash is kept with it.
    """

    make: Maker
    damage: Mutator
    share: float = 1.0
    whole: bool = False


def pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return an image of blocks of color, (H, W, 3) uint8."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]


def picture(kind: str, image: np.ndarray | None = None, **options: Any) -> bytes:
    """Return the bytes of an image file."""
    data = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).save(data, kind, **options)
    return data.getvalue()


def an_image(kind: str, **options: Any) -> Maker:
    """Return the maker of an image file."""

    def make(folder: Path) -> tuple[Path, Reader]:
        from ovsdino.io.images import load_image

        path = folder / f"a.{kind.lower()}"
        path.write_bytes(picture(kind, **options))
        return path, lambda: load_image(path)

    return make


def files_of(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def image_zip(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.io.tree import ImageSource

    path = zip_of(folder / "a.zip", {"images/a.png": picture("PNG"), "images/b.jpg": picture("JPEG")})

    def read() -> None:
        source = ImageSource(path)
        for name in source.names:
            source.read(name)

    return path, read


def labels_of(classes: int) -> bytes:
    return picture("PNG", np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % classes)


def data_zip(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.datasets import open_dataset

    path = zip_of(folder / "camvid_val.zip", {"images/a.png": picture("PNG"), "labels/a.png": labels_of(11)})
    return path, lambda: list(open_dataset("camvid", folder, "val"))


def calibration_zip(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.deploy.quantization.calibrate import calibration_images

    path = zip_of(folder / "a.zip", {"images/a.png": picture("PNG"), "images/b.jpg": picture("JPEG")})
    return path, lambda: calibration_images(path, 2)


def masks(damaged: str) -> Maker:
    """Return the maker of a store of masks, its manifest or its shard to be damaged."""

    def make(folder: Path) -> tuple[Path, Reader]:
        from ovsdino.data.masks import Manifest, MaskStore, PseudoMask, decode, encode_image, names_digest
        from ovsdino.train.masks.corrupt import corrupt_rows
        from ovsdino.train.masks.make import statistics

        names = ["a.png", "b.png"]
        row, column = np.mgrid[:HEIGHT, :WIDTH]
        found = [
            PseudoMask(mask=m, predicted_iou=0.9, stability_score=0.8)
            for m in (row + column < 20, (row - 9) ** 2 < 30, (column > 4) & (column < 22) & (row > 12))
        ]
        manifest = Manifest(generator="g", settings={"scale": 1.5}, images=2, names_sha256=names_digest(names))
        store = MaskStore.create(folder, manifest)
        store.write(0, [encode_image(name, (HEIGHT, WIDTH), found) for name in names])

        def read() -> None:
            opened = MaskStore.open(folder)
            opened.missing()
            statistics(opened)
            for row in opened.rows():
                decode(row)
            corrupt_rows(opened.find("b.png"), 1.0, 0)

        return folder / damaged, read

    return make


def caption_lines(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.captions import open_captions

    files_of(folder, {"images/a.png": picture("PNG"), "images/b.png": picture("PNG", pixels(1))})
    path = folder / "captions.jsonl"
    rows = [
        {"image": "a.png", "captions": ["a red car", "sky"]},
        {"image": "b.png", "caption": "one dog", "box": [1, 2, 9, 8]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, lambda: used(open_captions("jsonl", folder / "images", path))


def used(captions: Any) -> None:
    """Read all of a set of captions."""
    for index in range(len(captions)):
        captions.record(index)
        captions.read(index)


def caption_coco(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.captions import open_captions

    path = folder / "annotations/captions_val2017.json"
    tree = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for i, n in enumerate("ab")],
        "annotations": [{"id": 9 + i, "image_id": i % 2, "caption": f"dog {i}"} for i in range(4)],
    }
    images = {f"val2017/{n}.png": picture("PNG") for n in "ab"}
    files_of(folder, {"annotations/captions_val2017.json": json.dumps(tree).encode(), **images})
    return path, lambda: used(open_captions("coco", folder, "val2017"))


def tar_of(path: Path) -> Path:
    rows = {"a.png": picture("PNG"), "a.json": b'{"caption": "car"}', "d/b.jpg": picture("JPEG"), "d/b.txt": b"dog"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in rows.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "d/b.jpg":
                info.pax_headers = {"comment": "é"}
            archive.addfile(info, io.BytesIO(data))
    return path


def caption_tar(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.captions import open_captions

    path = tar_of(folder / "x.tar")
    return path, lambda: used(open_captions("webdataset", folder, "*.tar"))


def tar_index(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.captions import open_captions
    from ovsdino.data.tar_index import index_tar

    index_tar(tar_of(folder / "x.tar"))
    return folder / "x.tar.index.json", lambda: used(open_captions("webdataset", folder, "x.tar"))


def coco_instances(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.labels import CocoInstances

    path = folder / "instances_val2017.json"
    segmentations = [
        [[2, 2, 20, 2, 20, 15, 2, 15]],
        {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]},
        [[-3.5, 4, 40, 4.5, 11, 30]],
    ]
    rows = [
        {"id": i, "image_id": 7, "category_id": 1 + i, "iscrowd": int(isinstance(s, dict)), "segmentation": s}
        for i, s in enumerate(segmentations)
    ]
    images = [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "person"}]}))

    def read() -> None:
        found = CocoInstances(path)
        for name in found.images:
            found.paint(name)

    return path, read


def bsds_mat(folder: Path) -> tuple[Path, Reader]:
    from scipy.io import savemat

    from ovsdino.data.bsds import open_bsds

    path = folder / "data/groundTruth/val/a.mat"
    files_of(folder, {"data/images/val/a.jpg": picture("JPEG"), "data/groundTruth/val/a.mat": b""})
    cells = np.empty((1, 2), object)
    for index in range(2):
        cells[0, index] = {"Segmentation": np.full((HEIGHT, WIDTH), index + 1, np.uint16)}
    savemat(path, {"groundTruth": cells}, do_compression=True)
    return path, lambda: open_bsds(folder, "val")[0]


def split_list(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.datasets import open_dataset

    path = folder / "ImageSets/Segmentation/val.txt"
    files = {f"JPEGImages/{n}.jpg": picture("JPEG") for n in "ab"}
    files |= {f"SegmentationClass/{n}.png": labels_of(21) for n in "ab"}
    files_of(folder, {"ImageSets/Segmentation/val.txt": b"a\nb\n", **files})
    return path, lambda: list(open_dataset("voc21", folder, "val"))


def class_list(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.datasets import open_dataset

    files_of(folder, {"images/a.png": picture("PNG"), "labels/a.png": labels_of(3)})
    path = folder / "classes.json"
    path.write_text('["road", "dog", "sky"]')
    return path, lambda: list(open_dataset("folder", folder, "val"))


def class_names(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.eval.evaluate import read_class_names
    from ovsdino.vocabulary import Vocabulary

    path = folder / "names.json"
    path.write_text('{"car": ["car", "automobile"], "sky": "sky", "dog": ["dog"]}')
    return path, lambda: Vocabulary.of(read_class_names(path))


def word_list(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.data.phrases import phrases, read_phrases
    from ovsdino.train.dense.text import read_vocabulary

    path = folder / "words.txt"
    path.write_text("car\ntraffic light\ndog\nsky\n")
    return path, lambda: (phrases("a car, two dogs", read_phrases(path)), read_vocabulary(str(path), ("s",)))


def eval_result(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.cli import main

    path = folder / "result.json"
    tree = {"dataset": "camvid", "split": "val", "model": "nano", "images": 101, "ms_per_image": 12.5, "miou": 0.68,
            "per_class": {"sky": 0.9}, "protocol": {"background": None}}  # fmt: skip
    path.write_text(json.dumps(tree))
    return path, lambda: command(main, ["report", str(path)])


def command(main: Callable[[list[str]], int], line: list[str]) -> None:
    """Run a command of the command line; what it would call its own fault is raised as that."""
    import contextlib

    from ovsdino.errors import OVSDinoError

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(line)
    if code == 2 and said.getvalue().count("\n") == 1:
        raise OVSDinoError(said.getvalue().strip())
    if code:
        raise RuntimeError(f"exit code {code}: {said.getvalue()[-300:]}")


def config(folder: Path) -> tuple[Path, Reader]:
    from ovsdino.train.start import load_config

    path = folder / "run.yaml"
    shipped = Path(__file__).resolve().parents[2] / "configs"
    found = sorted(shipped.glob("*.yaml"))
    path.write_bytes(next((p for p in found if b"captions" in p.read_bytes()), found[0]).read_bytes())
    return path, lambda: load_config(path)


def foreign_weights(folder: Path) -> tuple[Path, Reader]:
    import torch

    from ovsdino.models.weights import read_foreign

    path = folder / "a.pth"
    torch.save({"state_dict": {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}}, path)
    return path, lambda: read_foreign(path)


def legacy_weights(folder: Path) -> tuple[Path, Reader]:
    import torch

    from ovsdino.models.weights import read_foreign

    path = folder / "a.pth"
    state = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path, lambda: read_foreign(path)


def sam_embeddings(folder: Path) -> tuple[Path, Reader]:
    import torch
    from safetensors.torch import save_file

    from ovsdino.train.masks.embeddings import SamTargets

    path = folder / "embeddings-00000.safetensors"
    save_file({"a.png": torch.ones(4, 8, 8).half()}, path, {"filled": json.dumps({"a.png": [6.0, 8.0]})})
    place = torch.tensor([[0.1, 0.1, 0.9, 0.9, 1.0]])
    return path, lambda: SamTargets(folder).crops(["a.png"], place, (2, 3))
