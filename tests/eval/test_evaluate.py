"""`evaluate` on a small data set whose right answers are known."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.cli import main
from ovsdino.data.datasets import open_dataset
from ovsdino.data.names import CAMVID, VOC20
from ovsdino.distributed import Ranks, add_up
from ovsdino.errors import OVSDinoError
from ovsdino.eval.evaluate import class_prior, dataset_vocabulary, evaluate, read_class_names
from ovsdino.eval.protocol import Protocol
from ovsdino.models.prior import estimate_prior
from ovsdino.ops import upsample_argmax
from ovsdino.pipeline import Segmenter
from ovsdino.results import Segmentation
from ovsdino.timing import Clock
from ovsdino.vocabulary import Vocabulary
from ovsdino.windows import Batches
from tests.eval.standin import PatchColors
from tests.support.small import small_model


class Left:
    """Calls the left half the first class and the right half the second, and remembers what it was asked."""

    def __init__(self) -> None:
        self.vocabularies: list[Vocabulary] = []

    def segment(self, image: np.ndarray, classes: Vocabulary, **_: Any) -> Segmentation:
        self.vocabularies.append(classes)
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[:, image.shape[1] // 2 :] = 1
        return Segmentation(labels=labels, names=classes.names, stages_ms={"encode": 2.0, "decode": 1.0})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(["left", "right", "never"]))
    for number, column in enumerate((20, 20, 10)):
        label = np.zeros((30, 40), np.uint8)
        label[:, column:] = 1
        label[0] = 255
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


def test_scores_are_those_of_the_labels(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = Left()
    result = evaluate(model, open_dataset("folder", root), progress=lambda *a: seen.append(a))  # type: ignore[arg-type]
    # two images right; in the third the 10 columns 10..19 are called left but are right (29 labelled rows)
    rows = 29
    left = (20 + 20 + 10) / (20 + 20 + 20)
    right = (20 + 20 + 20) / (20 + 20 + 30)
    report = result.to_dict()
    assert report["iou"] == {"left": round(left, 5), "right": round(right, 5), "never": None}
    assert report["miou"] == round((left + right) / 2, 5)
    assert report["pixel_accuracy"] == round(1 - 10 * rows / (3 * 40 * rows), 5)
    assert report["boundary_f1"] == round(2 / 3, 5)
    assert (report["images"], report["ms_per_image"]) == (3, 3.0)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(model.vocabularies) == 4  # one warm-up


def test_class_names_replace_texts_and_limit_takes_the_first(root: Path) -> None:
    model = Left()
    names = {"left": "west", "never": ["nowhere", "nothing"]}
    result = evaluate(model, open_dataset("folder", root), class_names=names, limit=2)  # type: ignore[arg-type]
    assert result.images == 2 and result.scores.miou == 1.0
    assert model.vocabularies[0].names == ("left", "right", "never")
    assert model.vocabularies[0].texts == (("west",), ("right",), ("nowhere", "nothing"))


def test_unknown_class_names_and_limits_are_refused(root: Path) -> None:
    dataset = open_dataset("folder", root)
    with pytest.raises(OVSDinoError, match="'up' is not a class"):
        evaluate(Left(), dataset, class_names={"up": "north"})  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="limit"):
        evaluate(Left(), dataset, limit=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": 3}', '{"a": []}', '{"a": [""]}', '{"a": ["x", 2]}', "[" * 100_000, "\udcff"]
)
def test_bad_class_name_files_are_one_line_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OVSDinoError) as caught:
        read_class_names(path)
    assert "names.json" in str(caught.value) and "\n" not in str(caught.value)


def test_class_name_files_hold_texts_or_lists(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text('{"car": "automobile", "tree": ["foliage", "bush"]}')
    assert read_class_names(path) == {"car": "automobile", "tree": ["foliage", "bush"]}
    with pytest.raises(OVSDinoError, match="no such file"):
        read_class_names(tmp_path / "missing.json")


@pytest.mark.parametrize(("names", "file"), [(VOC20, "voc20_names.json"), (CAMVID, "camvid_unseen.json")])
def test_shipped_names_are_those_of_classes_of_their_data_set(names: tuple[str, ...], file: str) -> None:
    found = dataset_vocabulary(names, read_class_names(Path(__file__).parents[2] / "configs" / file))
    assert found.names == names
    assert found.texts != tuple((name,) for name in names)


class Colors:
    """The parts of a Segmenter that `evaluate` needs, around the stand-in model."""

    def __init__(self) -> None:
        self.model = PatchColors()
        self.name, self.device, self.dtype, self.batches = "colors", torch.device("cpu"), torch.float32, Batches(2)
        self.words: list[Any] = []
        self.adapted = None

    def clock(self) -> Clock:
        return Clock()

    def text_rows(self, vocabulary: Vocabulary, partition: bool) -> torch.Tensor:
        assert partition
        self.words.append(vocabulary.texts)
        return self.model.encode_text(vocabulary.texts)


def pascal_tree(root: Path) -> Path:
    """Two 56 x 56 images: red left, blue right; labels aeroplane (1) left, and bird (3) right, or background."""
    picture = np.zeros((56, 56, 3), np.uint8)
    picture[:, :28, 0] = picture[:, 28:, 2] = 255
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for stem, right in (("a", 3), ("b", 0)):
        label = np.ones((56, 56), np.uint8)
        label[:, 28:] = right
        label[0] = 255
        Image.fromarray(picture).save(root / "JPEGImages" / f"{stem}.jpg", quality=95)
        Image.fromarray(label).save(root / "SegmentationClass" / f"{stem}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    return root


SMALL = Protocol(short_side=56, max_long_side=256, window=56, stride=28)


def test_a_protocol_keeps_background_out_of_the_words(tmp_path: Path) -> None:
    segmenter = Colors()
    segmenter.model.config.mean, segmenter.model.config.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    dataset = open_dataset("voc21", pascal_tree(tmp_path))
    protocol = dataclasses.replace(SMALL, background=0.1)
    result = evaluate(segmenter, dataset, protocol=protocol)  # type: ignore[arg-type]
    assert segmenter.words == [tuple((name,) for name in dataset.names[1:])]
    iou = result.to_dict()["iou"]
    # red is word 0, aeroplane, class 1; blue is word 2, bird, class 3. Equal scores meet half way, at column 27.5.
    assert iou["aeroplane"] == 1.0 and iou["bird"] == 0.5 and iou["background"] == 0.0
    assert iou["dog"] is None and result.ms_per_image > 0
    everything = evaluate(segmenter, dataset, protocol=dataclasses.replace(SMALL, background=0.9))  # type: ignore[arg-type]
    assert everything.scores.iou["aeroplane"] == 0.0 and everything.scores.iou["background"] == 0.25
    sizes = result.to_dict()["sizes"]
    assert sizes["large"]["regions"] == 3 and sizes["large"]["recall"] == 1.0  # background is not a region


def test_templates_of_ones_own_reach_the_text_tower(tmp_path: Path) -> None:
    segmenter = Colors()
    seen: list[Any] = []
    segmenter.model.encode_text = lambda names, templates=None: seen.append(templates) or torch.eye(3)[:, :3]  # type: ignore
    dataset = open_dataset("folder", folder_of_three(tmp_path))
    evaluate(segmenter, dataset, protocol=dataclasses.replace(SMALL, templates=("a {}",)))  # type: ignore[arg-type]
    assert seen == [("a {}",)] and segmenter.words == []


def folder_of_three(root: Path) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    (root / "classes.json").write_text('["r", "g", "b"]')
    for number in range(5):
        picture = np.zeros((56, 60 + number, 3), np.uint8)
        picture[:, :, number % 3] = 200
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
        Image.fromarray(np.full(picture.shape[:2], number % 3, np.uint8)).save(root / "labels" / f"{number}.png")
    return root


def test_a_background_must_be_the_data_sets(tmp_path: Path) -> None:
    dataset = open_dataset("voc21", pascal_tree(tmp_path / "voc"))
    with pytest.raises(OVSDinoError, match="needs a constant background"):
        evaluate(Colors(), dataset, protocol=SMALL)  # type: ignore[arg-type]
    other = open_dataset("voc20", tmp_path / "voc")
    with pytest.raises(OVSDinoError, match="has no background class"):
        evaluate(Colors(), other, protocol=dataclasses.replace(SMALL, background=0.5))  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="'background' is not a class"):
        evaluate(
            Colors(),  # type: ignore[arg-type]
            dataset,
            protocol=dataclasses.replace(SMALL, background=0.5),
            class_names={"background": "wall"},
        )


def test_native_labels_move_up_by_one_where_background_is_a_class(tmp_path: Path) -> None:
    class Halves(Left):
        def segment(self, image: np.ndarray, classes: Vocabulary, **options: Any) -> Segmentation:
            result = super().segment(image, classes, **options)
            result.labels[:, 40:] = len(classes)  # background of `Segmenter.segment`
            return result

    model = Halves()
    dataset = open_dataset("voc21", pascal_tree(tmp_path))
    result = evaluate(model, dataset, background=0.5)  # type: ignore[arg-type]
    assert model.vocabularies[0].names == dataset.names[1:]
    # columns 0..27 are word 0 = class 1, 28..39 word 1 = class 2 (wrong), 40..55 class 0, right in the second image
    assert result.scores.iou["aeroplane"] == 1.0
    assert result.scores.iou["background"] == pytest.approx(16 / (28 + 16))
    assert result.scores.iou["bicycle"] == 0.0


@pytest.mark.parametrize("protocol", ["native", "talk2dino"])
def test_the_contrast_vocabulary_is_the_background_on_request(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise is none of VOC's words for any model: with the contrast some of it is background, without it none."""
    line = ["eval", "--dataset", "voc21", "--root", str(pascal_tree(tmp_path)), "--json", "--device", "cpu"]
    line += ["--protocol", protocol, "--short-side", "64", "--limit", "1"]
    if protocol != "native":
        line += ["--window", "64", "--batch-size", "2"]
    assert main([*line, "--background", "contrast"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"]["background"] == "contrast" and found["iou"]["background"] is not None
    assert found["protocol"].get("cleaning", "off") == "off"
    camvid = ["eval", "--dataset", "folder", "--root", str(folder_of_three(tmp_path)), "--protocol", "talk2dino"]
    assert main([*camvid, "--background", "contrast", "--short-side", "64", "--window", "64"]) == 2
    assert "has no background class, so the contrast" in capsys.readouterr().err


def test_processes_share_the_images() -> None:
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert [list(one.indices(7)) for one in ranks] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [one.first for one in ranks] == [True, False, False]
    array = np.arange(3)
    add_up([array])
    assert array.tolist() == [0, 1, 2]


def test_two_processes_give_the_scores_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_three(tmp_path)
    line = ["eval", "--dataset", "folder", "--root", str(tmp_path), "--json", "--device", "cpu"]
    line += ["--protocol", "talk2dino", "--short-side", "64", "--window", "64"]
    assert main(line) == 0
    alone = json.loads(capsys.readouterr().out)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ovsdino"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [*start, *line], capture_output=True, text=True, env=environment, cwd="/", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    del alone["ms_per_image"], shared["ms_per_image"]
    assert shared == alone and alone["images"] == 5
    assert alone["protocol"]["window"] == 64 and alone["protocol"]["stride"] == 32


def test_a_prior_is_estimated_without_labels_and_taken_from_the_logits(root: Path) -> None:
    dataset = open_dataset("folder", root)
    segmenter = Segmenter(small_model(), short_side=48)
    vocabulary = dataset_vocabulary(dataset.names, {})
    text = segmenter.encode_text(vocabulary)
    features = [segmenter.encode_image(dataset[index].image) for index in range(3)]
    prior = class_prior(segmenter, dataset, vocabulary)
    coarse = [segmenter.model.coarse_logits(one, text)[0].detach() for one in features]
    torch.testing.assert_close(prior, estimate_prior(coarse))
    torch.testing.assert_close(class_prior(segmenter, dataset, vocabulary, limit=1), estimate_prior(coarse[:1]))
    logits = segmenter.decode(features[0], vocabulary, prior, 2.0)
    with torch.inference_mode():
        torch.testing.assert_close(logits, segmenter.model.decode(features[0], text, prior, 2.0))
    segmented = segmenter.segment(dataset[0].image, vocabulary, prior=prior, tau=2.0).labels
    assert np.array_equal(segmented, upsample_argmax(logits, (30, 40))[0].numpy())
    strong = torch.tensor([1.0, 1.0, 1e-30])  # a class that is said to be nowhere is found everywhere
    assert evaluate(segmenter, dataset, prior=strong, tau=1.0).to_dict()["iou"]["never"] == 0
    protocol = Protocol(short_side=48, window=48, stride=48)
    assert evaluate(segmenter, dataset, prior=strong, tau=1.0, protocol=protocol).to_dict()["miou"] == 0


def test_the_command_says_which_prior_it_took(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", "--dataset", "folder", "--root", str(root), "--short-side", "64", "--json", "--device", "cpu"]
    assert main([*line, "--prior", "val", "--tau", "0.7"]) == 0
    prior = json.loads(capsys.readouterr().out)["prior"]
    assert (prior["split"], prior["tau"], list(prior["shares"])) == ("val", 0.7, ["left", "right", "never"])
    assert sum(prior["shares"].values()) == pytest.approx(1, abs=0.01)
    assert main(line) == 0 and "prior" not in json.loads(capsys.readouterr().out)
    assert main([*line, "--prior", "val", "--tau", "-1"]) == 2
    assert "--tau is -1.0: expected 0..10" in json.loads(capsys.readouterr().out)["error"]
