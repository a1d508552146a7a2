"""Text towers: hashing, phrases, offline errors. CLIP's and Talk2DINO's files: test_official.py."""

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.models.spelling import fnv1a, words_of
from ovsdino.models.text import ClipTextTower, HashedTextTower


def test_fnv1a_matches_the_published_vectors():
    # Test vectors of the FNV reference (64-bit FNV-1a).
    assert fnv1a("") == 0xCBF29CE484222325
    assert fnv1a("a") == 0xAF63DC4C8601EC8C
    assert fnv1a("foobar") == 0x85944171F73967E8


def test_encoding_ignores_case_and_padding_of_the_batch():
    tower = HashedTextTower(32, 16, 128).eval()
    alone = tower.encode(["Traffic Light"])[0]
    padded = tower.encode(["a very long phrase of many more words", "traffic light"])[1]
    torch.testing.assert_close(alone, padded)


def test_an_accent_is_one_word_however_it_is_written():
    tower = HashedTextTower(32, 16, 128).eval()
    composed, decomposed, bare = tower.encode(["caf\u00e9 noir", "cafe\u0301 noir", "cafe noir"])
    assert torch.equal(composed, decomposed) and not torch.allclose(composed, bare)


def test_word_order_and_every_word_count():
    tower = HashedTextTower(32, 16, 128).eval()
    torch.nn.init.normal_(tower.position)
    rows = tower.encode(["stone bridge", "bridge stone", "bridge"])
    assert not torch.allclose(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])


@pytest.mark.parametrize("name", ["", "   ", "🚗", "ß", "x" * 10_000, " ".join(["word"] * 1000)])
def test_odd_names_give_finite_rows(name):
    assert torch.isfinite(HashedTextTower(32, 16, 128).eval().encode([name])).all()


def test_clip_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OVSDinoError, match=r"open_clip_model\.safetensors .* by hand .*--clip-weights FILE"):
        ClipTextTower(384).encode(["cat"])


def test_signs_alone_are_read_by_their_unicode_names() -> None:
    assert words_of("Traffic_light 2") == ["traffic", "light", "2"]
    assert words_of("\N{AUTOMOBILE}") == ["automobile"]
    assert words_of("\N{CAT FACE}\N{VARIATION SELECTOR-16}\N{ZERO WIDTH JOINER}\N{BLACK LARGE SQUARE}") == [
        *("cat", "face", "black", "large", "square")
    ]
    assert words_of("\N{AUTOMOBILE} car") == ["car"]
    assert words_of("\N{ZERO WIDTH JOINER}") == []
