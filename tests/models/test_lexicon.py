"""The lexicon tower: what is stored, how other names are read, and how well they are known."""

import pytest
import torch
import torch.nn.functional as F

from ovsdino.models.lexicon import LEVELS, LexiconTextTower, key_bytes, pack, unpack
from ovsdino.models.spelling import fnv1a, slips, stems, text_key
from ovsdino.models.text import HashedTextTower

KEPT = ("car", "traffic light", "road", "person", "air", "pod", "street light")
COMMON = ("traffic", "light", "building", "blue", "pedestrian", "giraffe", "elephant", "bicycle", "streetlight")
RARE = ("felipe", "corvus")


@pytest.fixture
def tower():
    torch.manual_seed(0)
    made = LexiconTextTower(16, 8, 64, entries=len(COMMON + RARE), common=len(COMMON), kept=len(KEPT))
    rows = F.normalize(torch.randn(len(COMMON + RARE), 8), dim=-1)
    made.load_state_dict(
        {
            **made.state_dict(),
            "keys": key_bytes([*COMMON, *RARE]),
            "codes": pack(rows, rows.std(0)),
            "scale": rows.std(0),
            "kept_keys": key_bytes(KEPT),
            "kept_rows": torch.randint(-127, 128, (len(KEPT), 16), dtype=torch.int8),
        }
    )
    return made.eval()


def test_two_bits_a_value_are_the_nearest_levels():
    rows, scale = torch.tensor([[0.1, -0.1, 3.0, -2.0, 0.0, 2.0, -1.0, 9.0]]), torch.tensor([1.0, 1, 2, 2, 1, 1, 1, 3])
    codes = pack(rows, scale)
    assert codes.shape == (1, 2) and codes.dtype == torch.uint8
    nearest = torch.tensor([min(LEVELS, key=lambda level: abs(level - v)) for v in (rows / scale)[0].tolist()])
    torch.testing.assert_close(unpack(codes, scale)[0], F.normalize(nearest * scale, dim=0))


def test_a_key_is_the_upper_half_of_the_hash_lowest_byte_first():
    key = fnv1a("car") >> 32
    assert text_key("car") == key
    assert key_bytes(["car"]).tolist() == [list(key.to_bytes(4, "little"))]


def test_a_kept_phrase_has_its_stored_row_whatever_the_network_says(tower):
    with torch.no_grad():
        tower.out.bias.fill_(3.0)
    found = tower.encode(["Traffic  Light", "blue", "car"])
    torch.testing.assert_close(found[[0, 2]], F.normalize(tower.kept_rows[[1, 0]].float(), dim=-1))
    assert not torch.allclose(found[1], F.normalize(F.pad(tower.row("blue"), (0, 8)), dim=-1))


def test_an_untrained_network_gives_the_mean_of_the_parts(tower):
    row = tower.encode(["blue building"])[0]
    assert torch.equal(row[8:], torch.zeros(8))
    # with `out` at zero the row is a convex combination of the two words' rows
    basis = torch.stack([tower.row("blue"), tower.row("building")])
    weights = torch.linalg.lstsq(basis.T, row[:8].unsqueeze(1)).solution.flatten()
    torch.testing.assert_close(basis.T @ weights, row[:8])
    assert (weights > 0).all()


def test_a_row_does_not_depend_on_the_other_names(tower):
    alone = tower.encode(["blue car"])[0]
    torch.testing.assert_close(alone, tower.encode(["blue pedestrian traffic light car", "blue car"])[1])


@pytest.mark.parametrize(
    ("name", "words", "known"),
    [
        ("Car", ("car",), 1.0),
        ("blue car", ("blue", "car"), 1.0),
        ("traffic lights", ("traffic", "light"), 0.95),
        ("cars", ("car",), 0.95),
        ("street-light", ("street", "light"), 1.0),
        ("trafficlight", ("traffic", "light"), 0.9),
        ("airpods", ("air", "pod"), 0.9),
        ("trafic light", ("traffic", "light"), 0.75),
        ("buildng", ("building",), 0.75),
        ("raod", ("road",), 0.75),
        ("girrafe", ("giraffe",), 0.75),
        ("elefant", ("elephant",), 0.75),
        ("bycicle", ("bicycle",), 0.75),
        ("corvus", ("corvus",), 1.0),
        ("corvuss", ("corvus",), 0.0),  # no plural, and a misspelling means a common word
        ("roat", ("roat",), 0.0),  # a short word may be anything
        ("blorfing", ("blorfing",), 0.0),
        ("blorfing car", ("blorfing", "car"), 0.0),
        ("2 cars", ("2", "car"), 0.95),
        ("", ("",), 0.0),
    ],
)
def test_how_a_name_is_read_and_how_well_it_is_known(tower, name, words, known):
    if name == "corvuss":
        words = ("corvuss",)
    reading = tower.reading(name)
    assert (reading.words, reading.familiarity) == (words, known)
    assert tower.read_as(name) == " ".join(words)
    assert tower.familiarity([name, "car"]).tolist() == pytest.approx([known, 1.0])


def test_a_misspelt_word_has_the_row_of_the_word(tower):
    right, wrong, compound = tower.encode(["traffic light", "trafic lihgt", "trafficlight"])
    assert torch.equal(right, wrong) and torch.equal(right, compound)


def test_slips_and_stems_by_hand():
    assert {"road", "raid"} <= set(slips("raidd")) | set(slips("raod"))
    assert list(slips("cat")) == []
    assert set(slips("caat")) == {"acat", "caat", "cata", "cat"}
    assert list(stems("buses")) == ["bus", "buse"] and list(stems("cities")) == ["city", "citi", "citie"]
    assert list(stems("parking")) == ["park", "parke"] and list(stems("glass")) == [] and list(stems("king")) == []


@pytest.mark.parametrize("name", ["", "   ", "🚗", "狗", "ß", "x" * 10_000, " ".join(["word"] * 1000)])
def test_odd_names_give_finite_rows(tower, name):
    assert torch.isfinite(tower.encode([name])).all()


def test_new_weights_are_found_after_names_were_read(tower):
    assert tower.knows("felipe")
    tower.load_state_dict({**tower.state_dict(), "keys": torch.zeros_like(tower.keys)})
    assert not tower.knows("felipe") and tower.knows("car")


def test_a_tower_that_was_not_told_what_it_learnt_knows_everything():
    assert HashedTextTower(8, 16, 64).familiarity(["car", "qwertyuiop"]).tolist() == [1.0, 1.0]
    assert HashedTextTower(8, 16, 64).read_as("qwertyuiop") == "qwertyuiop"
