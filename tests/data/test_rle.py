"""Run lengths from files: what is right is decoded, all else is refused before C code sees it."""

import numpy as np
import pytest

from ovsdino.data.rle import checked_rle, decode_rle, encode_mask, run_lengths
from ovsdino.errors import OVSDinoError

pytest.importorskip("pycocotools")


def code(counts, size=(4, 2)):
    return {"size": [*size], "counts": counts}


def test_text_is_read_as_coco_defines_it():
    # By hand: a character less 48 is five bits, low ones first; 32 says that more follow, the last one's 16 is the
    # sign. "231O" is 2, 3, 1, -1; from the fourth on the run two places before is added: 2, 3, 1, 2.
    assert run_lengths(code("231O"), 4, 2).tolist() == [2, 3, 1, 2]
    assert run_lengths(code(b"d0T3", (10, 12)), 10, 12).tolist() == [20, 100]  # 20 = 20 + 0 * 32, 100 = 4 + 3 * 32
    expected = np.array([[0, 1], [0, 0], [1, 1], [1, 1]], np.uint8)  # columns 0011 and 1011
    assert np.array_equal(decode_rle(code("231O"), 4, 2), expected)
    assert np.array_equal(decode_rle(code([2, 3, 1, 2]), 4, 2), expected)


def test_masks_come_back_from_their_runs():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        for _ in range(40):
            mask = np.kron(rng.random(rng.integers(1, 40, 2)) < share, np.ones(rng.integers(1, 9, 2))) > 0
            segmentation, area, box = encode_mask(mask)
            runs = run_lengths(segmentation, *mask.shape)
            assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.ravel(order="F"))
            assert np.array_equal(decode_rle(segmentation, *mask.shape), mask)
            assert area == mask.sum() and len(box) == 4


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        {"counts": "44"},
        code("44", (1 << 40, 1)),
        code("44", (2, 4)),
        code("44", (4, 2, 1)),
        code("44", (-4, -2)),
        code("44", (4.0, 2.0)),
        code("44", (True, 2)),
        code("43"),  # 7 of 8 pixels
        code("45"),
        code("3O6"),  # a run of -1
        code(""),
        code("4d"),  # "d" says that more follows
        code("4\x00"),
        code("4é"),
        code("4" + "o" * 12 + "0"),
        code("oooooooo0"),
        code(7),
        code(None),
        code([]),
        code([4, 3]),
        code([9, -1]),
        code([4, 4.0]),
        code([4, True, 3]),
        code([1 << 64, 8 - (1 << 64)]),
        code(["4", "4"]),
    ],
    ids=repr,
)
def test_what_does_not_fill_the_image_is_refused(segmentation):
    for read in (run_lengths, checked_rle, decode_rle):
        with pytest.raises(OVSDinoError, match="run lengths: "):
            read(segmentation, 4, 2)


def test_an_image_that_no_reader_would_take_is_refused_before_memory_is():
    for height, width in ((1 << 40, 1), (1 << 33, 1), (100_000, 100_000), (0, 5)):
        with pytest.raises(OVSDinoError, match=r"run lengths: an image of \d+x\d+ pixels"):
            decode_rle(code("0", (height, width)), height, width)
