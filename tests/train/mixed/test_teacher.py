"""The teacher: a classifier and an aligned head on one frozen network, read from the published forms of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ovsdino.errors import OVSDinoError
from ovsdino.train.mixed.config import TeacherConfig
from ovsdino.train.mixed.teacher import Teacher
from ovsdino.train.pretrain.hypernyms import imagenet_hypernyms

NAME = "tf_efficientnet_lite2.in1k"
WORDS = ["footpath", "zebra"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: of the network with its classifier, of the head, and the rows of the words."""
    root = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    save_file(timm.create_model(NAME).state_dict(), root / "lite2.safetensors")
    head = {"backbone.head.weight": 0.05 * torch.randn(384, 1280), "backbone.head.bias": torch.zeros(384)}
    save_file(head, root / "head.safetensors")
    table = imagenet_hypernyms()
    vocabulary = {word for synset in table.classes for word in table.words(synset)} | set(WORDS)
    save_file({"rows": F.normalize(torch.randn(len(vocabulary), 384), dim=1).half()}, root / "rows.safetensors")
    return root


def config(files: Path) -> TeacherConfig:
    return TeacherConfig(weights=str(files / "lite2.safetensors"), head=str(files / "head.safetensors"), scale=10.0)


def test_its_answers_are_the_classifiers_and_the_heads(files: Path) -> None:
    teacher = Teacher(config(files), WORDS, files / "rows.safetensors")
    assert len(teacher.names) == 1000 and {"footpath", "zebra", "dog", "tabby"} <= set(teacher.vocabulary)
    assert teacher.vocabulary == sorted(set(teacher.vocabulary)) and set(teacher.names) <= set(teacher.vocabulary)
    assert not any(p.requires_grad for p in teacher.parameters())
    images, drawn = torch.randn(2, 3, 64, 96), torch.tensor([0, 7, 47])  # 4 x 6 positions of each image
    classes, words = teacher(images, drawn, False)
    reference = timm.create_model(NAME, output_stride=16).eval()
    reference.load_state_dict(teacher.model.backbone.cnn.state_dict(), strict=False)
    reference.classifier.weight.data, reference.classifier.bias.data = teacher.weight, teacher.bias
    with torch.no_grad():
        final = reference.forward_features(images).permute(0, 2, 3, 1).reshape(48, 1280)[drawn]
        expected = reference.classifier(final).softmax(1)
        tokens = F.normalize(teacher.model.backbone.head(final), dim=1)
    torch.testing.assert_close(classes, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(words, (10 * tokens @ teacher.rows.T).softmax(1), rtol=1e-4, atol=1e-6)
    assert words.shape == (3, len(teacher.vocabulary)) and words.dtype == classes.dtype == torch.float32


def test_rows_of_other_words_are_refused(files: Path) -> None:
    with pytest.raises(OVSDinoError, match=r"rows\.safetensors: has rows of \d+ words, not of \d+; remove it"):
        Teacher(config(files), [*WORDS, "a word more"], files / "rows.safetensors")


def test_a_network_without_its_classifier_is_refused(files: Path, tmp_path: Path) -> None:
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), tmp_path / "features.safetensors")
    plain = TeacherConfig(weights=str(tmp_path / "features.safetensors"), head=str(files / "head.safetensors"))
    with pytest.raises(OVSDinoError, match=r"features\.safetensors: has no classifier"):
        Teacher(plain, WORDS, files / "rows.safetensors")
