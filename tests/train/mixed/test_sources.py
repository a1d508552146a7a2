"""The images of a step: functions of seed and step, of the sizes and words that the configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.train.mixed.config import EdgeSet, PictureSet
from ovsdino.train.mixed.sources import EdgeSource, PictureSource
from tests.support.mixed_folder import COLORS, make_folder, trainer, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


def pictures(folder: Path, seed: int = 3) -> PictureSource:
    config = PictureSet(root=str(folder / "words"), annotations=str(folder / "words.jsonl"), side=32, batch=4)
    return PictureSource(config, seed)


def drawn(folder: Path, seed: int = 3) -> EdgeSource:
    return EdgeSource(EdgeSet(root=str(folder / "drawn"), height=32, width=48, batch=3), seed)


@pytest.mark.parametrize("make", [pictures, drawn])
def test_a_batch_is_a_function_of_seed_and_step(folder: Path, make) -> None:
    first, again, other, seed = (
        make(folder).batch(5),
        make(folder).batch(5),
        make(folder).batch(6),
        make(folder, 4).batch(5),
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], seed[0])


def test_a_picture_comes_with_the_number_of_its_word(folder: Path) -> None:
    source = pictures(folder)
    assert source.words == ["road", "sky", "zebra"]
    images, targets = source.batch(0)
    assert images.shape == (4, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    largest = images.mean((2, 3)).argmax(1)  # red is road, blue is sky, green is zebra
    channel = torch.tensor([[0, 2, 1][[*COLORS].index(word)] for word in source.words])
    assert torch.equal(largest, channel[targets])


def test_a_drawing_is_of_one_person(folder: Path) -> None:
    source = drawn(folder)
    seen: set[tuple[int, ...]] = set()
    for step in range(6):
        images, regions = source.batch(step)
        assert images.shape == (3, 3, 32, 48) and regions.shape == (3, 32, 48) and regions.dtype == torch.int32
        for image, region in zip(images, regions, strict=True):
            people = set(region.unique().tolist())
            assert people <= {1, 2} or people <= {11, 12}
            seen.add(tuple(sorted(people)))
            blue = image[2] > image[0]  # the second region
            assert ((region % 10 == 2) == blue).float().mean() > 0.9
    assert {(1, 2), (11, 12)} <= seen


def test_steps_hold_all_sources_and_other_processes_give_the_same(folder: Path, tmp_path: Path) -> None:
    runs = [trainer(write_config(folder, tmp_path / f"run{n}", workers=n)) for n in (0, 1)]
    found = [list(run.batches(2, 4)) for run in runs]
    assert [len(steps) for steps in found] == [2, 2]
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() == {"labels.streets", "pictures", "edges"}
        assert all(torch.equal(a, b) for key in one for a, b in zip(one[key], other[key], strict=True))


def test_an_image_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    for path in (folder / "words").glob("*.png"):
        path.write_bytes(b"no image")
    for workers in (0, 1):
        run = trainer(write_config(folder, tmp_path / f"run{workers}", workers=workers))
        with pytest.raises(OVSDinoError, match=r"\d\.png") as caught:
            next(run.batches(0, 1))
        assert "\n" not in str(caught.value)
