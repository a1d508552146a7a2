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
    picture = draw_overlay(image, np.zeros((30, 200), np.uint8), entries, alpha=1.0, boundaries=False)
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
    found = np.asarray(draw_overlay(image, labels, entries, alpha=alpha, legend=False))
    off = np.abs(found - expected)
    assert found.shape == expected.shape and off[~line].max() <= (0.5 if alpha != 0.3 else 1.0) and off.max() < 1.5
    plain = np.asarray(draw_overlay(image, labels, entries, alpha=alpha, boundaries=False, legend=False))
    np.testing.assert_array_equal((plain != found).any(-1) | ~line, True)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_overlay_of_a_few_pixels(size: tuple[int, int]) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size).astype(np.uint8)
    entries = [(str(index), (255, 0, 0), 0.1) for index in range(9)]
    picture = draw_overlay(np.zeros((*size, 3), np.uint8), labels, entries, alpha=1.0, legend=False)
    assert picture.size == size[::-1] and np.asarray(picture)[-1, -1].tolist() == [255, 0, 0]
