"""The words that nano ships with: its own are known, nonsense is not, a slip is read as the word that is meant."""

import json

import pytest
import torch
import torch.nn.functional as F

from ovsdino.benchmarks.lib.report import ROOT
from ovsdino.contrast import contrast_phrases
from ovsdino.data import names
from ovsdino.models.lexicon import LexiconTextTower
from ovsdino.models.zoo import create_model

NONSENSE = (  # noqa: SIM905
    "qwertyuiop blorfing xkcdzz zxcvbnm flumptious grelth plimvo quibblar frobnicate yiffle"
).split()
SETS = ("CAMVID", "VOC20", "ADE20K", "COCO_STUFF", "CONTEXT59", "CITYSCAPES")


@pytest.fixture(scope="module")
def tower():
    tower = create_model("nano").text_tower
    if not isinstance(tower, LexiconTextTower):
        pytest.skip("the shipped tower has no lexicon yet")
    return tower


def lines(name):
    return (ROOT / "configs" / name).read_text().splitlines()


def test_nonsense_is_not_known(tower):
    assert tower.familiarity(NONSENSE).tolist() == [0.0] * len(NONSENSE)
    assert tower.familiarity(["blorfing car"]).tolist() == [0.0]


@pytest.mark.parametrize("name", SETS)
def test_the_words_of_the_benchmarks_are_known(tower, name):
    assert (tower.familiarity(getattr(names, name)) == 1).all()


def test_imagenets_classes_and_the_words_of_robots_and_streets_are_known(tower):
    from ovsdino.train.pretrain.hypernyms import imagenet_hypernyms

    table = imagenet_hypernyms()
    words = [table.names[synset][0] for synset in table.classes]
    words += [*lines("robot_words.txt"), *lines("nouns.txt"), *contrast_phrases()]
    words += [word for of in json.loads("".join(lines("street_synonyms.json"))).values() for word in of]
    assert [word for word in words if tower.familiarity([word]) < 0.9] == []


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("pedestrain", "pedestrian"),
        ("bycicle", "bicycle"),
        ("sidewlk", "sidewalk"),
        ("trafficlight", "traffic light"),
        ("traffic lights", "traffic light"),
        ("elefant", "elephant"),
        ("girrafe", "giraffe"),
        ("raod", "road"),
    ],
)
def test_a_word_with_a_slip_is_read_as_the_word(tower, name, read):
    assert tower.read_as(name) == read
    assert torch.equal(*tower.encode([name, read]))


@pytest.mark.parametrize(
    ("phrase", "meaning"),
    [
        ("drivable area", "road"),
        ("greenery", "tree"),
        ("floor", "ground"),
        ("woman", "person"),
        ("shop", "storefront"),
        ("obstacle", "barrier"),
        ("automobile", "car"),
        ("lorry", "truck"),
        ("blue car", "car"),
        ("wooden box", "box"),
    ],
)
def test_what_a_robot_asks_for_lies_at_its_meaning(tower, phrase, meaning):
    others = ["sky", "water", "dog", "chair", "bottle", "bicycle"]
    rows = F.normalize(tower.encode([phrase, meaning, *others]), dim=-1)
    cosines = rows[1:] @ rows[0]
    assert cosines.argmax() == 0 and cosines[0] > 0.3
