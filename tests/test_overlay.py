"""Colors that can be told apart, by scikit-image's color differences, and a legend in any script."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_cie76, deltaE_ciede2000, rgb2lab

from ovsdino import fonts, legend
from ovsdino.data.names import CAMVID
from ovsdino.overlay import PALETTE, STREET, _lab, class_colors, draw_overlay

ROOT = Path(__file__).resolve().parents[1]
LEAST_CIEDE2000, LEAST_CIELAB = 21.0, 37.0


def least(colors: np.ndarray) -> tuple[float, float]:
    """Return the least CIEDE2000 and the least CIELAB distance of two colors."""
    lab = rgb2lab(np.asarray(colors, dtype=np.uint8)[None])[0]
    first, second = np.triu_indices(len(lab), 1)
    return (
        float(deltaE_ciede2000(lab[first], lab[second]).min()),
        float(deltaE_cie76(lab[first], lab[second]).min()),
    )


def test_any_two_colors_of_the_palette_can_be_told_apart() -> None:
    assert len(PALETTE) == 24
    ciede2000, cielab = least(PALETTE)
    assert ciede2000 >= LEAST_CIEDE2000 and cielab >= LEAST_CIELAB
    assert least(np.vstack([PALETTE, [(0, 0, 0), (255, 255, 255)]]))[0] >= LEAST_CIEDE2000


@pytest.mark.parametrize("names", [("automobile", "biker"), ("heavens", "asphalt"), ("car", "automobile", "vehicle")])
def test_words_that_looked_alike_do_not(names: tuple[str, ...]) -> None:
    assert least(class_colors(names))[0] >= LEAST_CIEDE2000


def test_no_list_of_up_to_twenty_words_has_like_colors() -> None:
    words = [*(ROOT / "configs" / "nouns.txt").read_text().split(), *STREET, *CAMVID]
    rng = np.random.default_rng(0)
    for size in (2, 5, 11, 19, 20):
        for _ in range(20):
            names = rng.choice(sorted(set(words)), size, replace=False).tolist()
            ciede2000, cielab = least(np.vstack([class_colors(names), [(0, 0, 0)]]))
            assert ciede2000 >= LEAST_CIEDE2000 and cielab >= 20, names


def test_a_word_keeps_its_color() -> None:
    for name, color in STREET.items():
        assert class_colors(["zebra", "giraffe", name])[2].tolist() == list(color)
    np.testing.assert_array_equal(class_colors(["zebra"])[0], class_colors(["road", "zebra"])[1])
    np.testing.assert_array_equal(class_colors(["Automobile"]), class_colors(["car"]))
    pair = class_colors(["zebra", "giraffe"])
    np.testing.assert_array_equal(class_colors(["zebra", "giraffe", "okapi"])[:2], pair)


def test_more_classes_than_the_palette_have_colors_of_their_own() -> None:
    assert class_colors([]).shape == (0, 3)
    colors = class_colors([str(i) for i in range(171)])
    assert len(np.unique(colors, axis=0)) == 171 and least(colors)[1] >= 10
    assert class_colors([str(i) for i in range(1500)]).shape == (1500, 3)


def test_lab_is_the_standards() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (500, 3))
    np.testing.assert_allclose(_lab(colors.astype(float)), rgb2lab(colors.astype(np.uint8)[None])[0], atol=0.05)


@pytest.fixture
def dejavu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the machine only matplotlib's fonts, without fontconfig."""
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(Path(matplotlib.get_data_path()) / "fonts" / "ttf"),))
    monkeypatch.setattr("shutil.which", lambda _: None)
    caches = (fonts._font_file, fonts._found)
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("dejavu")
@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("sky", [("sky", "Aileron")]),
        ("небо", [("небо", "DejaVu")]),
        ("e\u0301te", [("é", "DejaVu"), ("te", "Aileron")]),
        ("sky небо", [("sky ", "Aileron"), ("небо", "DejaVu")]),
        ("車 a", [("\\u8eca a", "Aileron")]),  # no font here has it: its escape can still be read
        ("🚗", [("\\U0001f697", "Aileron")]),
        ("a\udcff", [("a\\udcff", "Aileron")]),
    ],
)
def test_each_character_is_set_in_a_font_that_has_it(text: str, runs: list[tuple[str, str]]) -> None:
    found = [(run.text, run.font.getname()[0].split()[0]) for run in fonts.Text(text, 16).runs]
    assert found == runs


@pytest.mark.skipif(shutil.which("fc-list") is None, reason="needs fontconfig")
def test_the_fonts_that_fontconfig_names_have_the_character() -> None:
    for char in "éж":
        paths = fonts._asked(char)
        assert all(Path(path).is_file() for path in paths)
        assert not paths or fonts._font_file(char) is not None
    assert fonts._asked("\udcff") == []


@pytest.mark.usefixtures("dejavu")
def test_right_to_left_words_are_drawn_whole() -> None:
    (run,) = fonts.Text("سماء", 16).runs
    assert run.font.getname()[0].startswith("DejaVu") and len(run.text) == 4


def test_a_long_name_is_cut_to_its_room() -> None:
    text = fonts.Text("a word that is much too long", 16)
    short = text.shortened(80)
    assert short.width <= 80 < text.width and short.text.endswith("…") and text.shortened(1000) is text


def test_words_without_a_pixel_are_listed_as_none() -> None:
    entries = [("car", (1, 2, 3), 0.0), ("sky", (4, 5, 6), 0.004), ("road", (7, 8, 9), 0.996)]
    items = [(name.text, share.text) for name, _, share in legend._items(entries, 16, 500)]
    assert items == [("road", "100%"), ("sky", "<1%"), ("car", "none")]
    picture = Image.new("RGB", (300, 40))
    assert legend.with_legend(picture, entries * 3).height > legend.with_legend(picture, entries[:1]).height > 40


def test_a_long_list_ends_in_how_many_are_left_out() -> None:
    entries = [(str(index), (0, 0, 0), 0.0) for index in range(45)]
    items = legend._items(entries, 16, 500)
    assert len(items) == 41 and items[-1][0].text == "and 5 more"


def test_the_legend_is_below_the_picture_and_any_name_is_drawn() -> None:
    image = np.zeros((30, 200, 3), np.uint8)
    entries = [("\n\t\x00", (255, 0, 0), 1.0), ("😀🇩🇪👩\u200d🚒", (0, 255, 0), 0.0), ("", (0, 0, 255), 0.0)]
    picture = draw_overlay(image, np.zeros((30, 200), np.uint8), entries, alpha=1.0, boundaries=False, names=False)
    assert picture.width == 200 and picture.height > 30
    assert (np.asarray(picture)[:30] == (255, 0, 0)).all()
    assert (np.asarray(picture)[30:] == (0, 0, 255)).all(-1).any()  # a class without a pixel has its swatch


@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_overlay_in_blocks_of_rows_is_the_formula_of_the_whole(classes: int, alpha: float) -> None:
    rng = np.random.default_rng(classes)
    size = (1200, 700)  # three blocks of rows and a part of one; borders three pixels wide
    labels = np.kron(rng.integers(0, classes, (60, 35)), np.ones((20, 20), np.int64)).astype(np.int16)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    colors = rng.integers(0, 256, (classes, 3))
    entries = [(str(index), tuple(color), 0.1) for index, color in enumerate(colors.tolist())]
    line = np.zeros(size, dtype=bool)
    for shift in (1, 2):
        line[:, :-shift] |= labels[:, :-shift] != labels[:, shift:]
        line[:-shift] |= labels[:-shift] != labels[shift:]
    expected = image * (1 - alpha) + colors[labels] * alpha
    expected[line] = expected[line] * 0.15 + 255 * 0.85
    found = np.asarray(draw_overlay(image, labels, entries, alpha=alpha, names=False, legend=False))
    off = np.abs(found - expected)
    assert found.shape == expected.shape and off[~line].max() <= (0.5 if alpha != 0.3 else 1.0) and off.max() < 1.5
    plain = np.asarray(draw_overlay(image, labels, entries, alpha=alpha, boundaries=False, names=False, legend=False))
    np.testing.assert_array_equal((plain != found).any(-1) | ~line, True)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_overlay_of_a_few_pixels(size: tuple[int, int]) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size).astype(np.uint8)
    entries = [(str(index), (255, 0, 0), 0.1) for index in range(9)]
    picture = draw_overlay(np.zeros((*size, 3), np.uint8), labels, entries, alpha=1.0, legend=False)
    assert picture.size == size[::-1] and np.asarray(picture)[-1, -1].tolist() == [255, 0, 0]


def entries(*shares: float) -> list[legend.Entry]:
    colors = class_colors(["road", "sky", "car"])
    return [
        (name, tuple(color), share)
        for name, color, share in zip(("road", "sky", "car"), colors.tolist(), shares, strict=True)
    ]


def test_names_are_written_on_thick_regions_of_large_classes() -> None:
    labels = np.zeros((240, 320), np.uint8)
    labels[:120] = 1
    labels[118:122] = 2  # a line: thinner than its name
    image = np.full((240, 320, 3), 90, np.uint8)
    parts = entries(0.5, 0.48, 0.02)
    plain = np.asarray(draw_overlay(image, labels, parts, legend=False, names=False)).astype(int)
    named = np.asarray(draw_overlay(image, labels, parts, legend=False)).astype(int)
    changed = (plain != named).any(2)
    columns = np.nonzero(changed)[1]
    assert changed[:110].any() and changed[130:].any() and not changed[115:125].any()
    assert abs(columns.mean() - 160) < 12  # in the middle of regions that are as wide as the image
    nothing = draw_overlay(image, labels, entries(0.005, 0.005, 0.0), legend=False)
    np.testing.assert_array_equal(np.asarray(nothing), plain)


def test_names_stay_inside_and_do_not_cover_each_other() -> None:
    labels = np.zeros((90, 90), np.uint8)
    labels[:, :30], labels[:, 60:] = 1, 2
    image = np.zeros((90, 90, 3), np.uint8)
    picture = draw_overlay(image, labels, entries(0.34, 0.33, 0.33), legend=False)
    assert picture.size == (90, 90)


def test_specks_have_no_border() -> None:
    labels = np.zeros((200, 300), np.uint8)
    labels[50:53, 60:63] = 1  # 9 of 60 000 pixels
    labels[50:53, 0:2] = 2  # at the edge, with nothing to its left
    labels[100:150, 100:200] = 1
    image = np.full((200, 300, 3), 90, np.uint8)
    lined = np.asarray(draw_overlay(image, labels, entries(0.9, 0.08, 0.02), legend=False, names=False))
    plain = np.asarray(
        draw_overlay(image, labels, entries(0.9, 0.08, 0.02), legend=False, names=False, boundaries=False)
    )
    changed = (lined != plain).any(2)
    assert not changed[45:60, 40:90].any() and changed[95:155].any()
    np.testing.assert_array_equal(plain[51, 61], plain[120, 150])  # its color is there
