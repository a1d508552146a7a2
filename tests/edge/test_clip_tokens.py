"""CLIP's tokenizer without torch against open_clip's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from ovsdino.contrast import contrast_phrases
from ovsdino.edge.clip_tokens import CONTEXT, ClipTokens
from ovsdino.errors import OVSDinoError

open_clip = pytest.importorskip("open_clip")

from ovsdino.deploy.export.tower import read_merges  # noqa: E402

SPECIAL = (
    *(
        "it's a dog's life",
        "!'s",
        "rock'n'roll",
        "3 cats, 42",
        "½ cup²",
        "e=mc^2",
        "a_b_c",
        "...",
        "",
        "tab\tnew\nline",
    ),
    *("café", "CAFE\u0301", "Straße", "İstanbul", "ǆ ŉ ﬁsh", "Ｆｕｌｌ１２ ﾊﾝｶｸ", "“curly” ‘x’", "naïve—dash", "Ⅷ"),
    *("🚗 car", "中国 街道", "한국어 도로", "يوم", "a&amp;amp;b &lt;c", "x\u200by", "\x07bell", "<end_of_text> x"),
)


@pytest.fixture(scope="module")
def tokens() -> ClipTokens:
    return ClipTokens(read_merges())


def test_tokens_are_those_of_open_clip(tokens: ClipTokens) -> None:
    reference, draw = open_clip.get_tokenizer("ViT-B-16"), random.Random(0)
    signs = "abcdefghijklmnopqrstuvwxyz '-.,0123456789éüß中🚗"
    mixed = ["".join(draw.choices(signs, k=draw.randint(1, 30))) for _ in range(300)]
    texts = [*contrast_phrases(), *SPECIAL, *mixed, *Path(__file__).read_text(encoding="utf-8").splitlines()]
    assert [text for text in texts if tokens.encode(text) != reference.encode(text)] == []


def test_rows_end_with_the_longest_text_and_a_long_one_is_cut(tokens: ClipTokens) -> None:
    texts = ["road", "word " * 90, "a traffic light"]
    found, cut = tokens(texts)
    assert found.shape == (3, CONTEXT) and cut == texts[1:2]
    np.testing.assert_array_equal(found, open_clip.get_tokenizer("ViT-B-16")(texts).numpy())
    assert tokens(texts[:1])[0].shape == (1, 3)


def test_other_merges_are_refused() -> None:
    with pytest.raises(OVSDinoError, match="has 48894 pairs of pieces, found 1 lines"):
        ClipTokens("a b")
