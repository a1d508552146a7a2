"""BSDS500 in its three layouts, its boundaries by hand, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.bsds import boundaries, open_bsds
from ovsdino.errors import OVSDinoError

REGIONS = np.array([[1, 1, 300], [1, 1, 300], [2, 2, 2]], np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """bsds500/val/ with two images, of three and one annotators."""
    source = tmp_path / "bsds500" / "val"
    for name in ("images", "segments"):
        (source / name).mkdir(parents=True)
    for stem, people in (("b_1", 3), ("a", 1)):
        Image.fromarray(np.full((3, 3, 3), 9, np.uint8)).save(source / "images" / f"{stem}.jpg")
        for person in range(people):
            Image.fromarray(REGIONS + person).save(source / "segments" / f"{stem}_{person}.png")
    return tmp_path


def test_folder_and_zip_read_alike(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bsds500_train.zip", "w") as archive:
        for path in (folder / "bsds500" / "val").rglob("*.*"):
            archive.write(path, path.relative_to(folder / "bsds500" / "val"))
    for split in ("val", "train"):
        data = open_bsds(folder, split)
        assert [data[i].stem for i in range(len(data))] == ["a", "b_1"]
        assert data[1].segments.shape == (3, 3, 3) and data[1].segments[2, 0, 2] == 302
        assert data[0].image.shape == (3, 3, 3) and data[0].segments.shape == (1, 3, 3)


def test_the_authors_own_layout(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="needs scipy")
    data = tmp_path / "BSR" / "BSDS500" / "data"
    for name in ("images", "groundTruth"):
        (data / name / "val").mkdir(parents=True)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(data / "images" / "val" / "7.jpg")
    cells = np.empty((1, 2), object)
    for i in range(2):
        cells[0, i] = {"Segmentation": REGIONS + i, "Boundaries": np.zeros((3, 3), np.uint8)}
    io.savemat(data / "groundTruth" / "val" / "7.mat", {"groundTruth": cells})
    sample = open_bsds(tmp_path, "val")[0]
    assert sample.stem == "7" and sample.segments.tolist() == [REGIONS.tolist(), (REGIONS + 1).tolist()]
    (data / "groundTruth" / "val" / "7.mat").write_bytes(b"MATLAB no more")
    with pytest.raises(OVSDinoError, match=r"7\.mat: not a readable ground truth of BSDS500"):
        open_bsds(tmp_path, "val")[0]


def test_damaged_mat_files_are_named_in_one_line(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="needs scipy")
    data = tmp_path / "BSDS500" / "data"
    for name in ("images", "groundTruth"):
        (data / name / "val").mkdir(parents=True)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(data / "images" / "val" / "7.jpg")
    cells = np.empty((1, 1), object)
    cells[0, 0] = {"Segmentation": REGIONS}
    path = data / "groundTruth" / "val" / "7.mat"
    io.savemat(path, {"groundTruth": cells})
    sound, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(150):
        mutant = bytearray(sound[: rng.integers(0, len(sound))] if number % 5 == 0 else sound)
        for spot in rng.integers(128, len(sound), rng.integers(1, 6)):  # 128 bytes of text lead the file
            if spot < len(mutant):
                mutant[spot] = rng.integers(0, 256)
        path.write_bytes(mutant)
        try:
            open_bsds(tmp_path, "val")[0]
        except OVSDinoError as error:
            refused += 1
            assert "7.mat" in str(error) and "\n" not in str(error)
    assert refused > 50


def test_boundaries_by_hand() -> None:
    # right, lower and lower right neighbors: the last row and column have only what is inside
    assert boundaries(REGIONS[None].astype(np.int32))[0].astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "segments" / "a_0.png").unlink(), "1 images have no segmentation in segments/, e.g. 'a'"),
        (lambda s: (s / "segments" / "a_0.png").write_text("no"), r"segments/a_0\.png: not a readable label map"),
        (lambda s: Image.new("L", (4, 3)).save(s / "segments" / "a_0.png"), r"a_0\.png is \(3, 4\), its image is"),
        (lambda s: Image.new("RGB", (3, 3)).save(s / "segments" / "a_0.png"), "3 channels: expected an index PNG"),
        (lambda s: (s / "images" / "a.jpg").write_text("no"), r"images/a\.jpg: not a JPEG, PNG, .* image"),
    ],
)
def test_damage_is_named(folder: Path, damage: object, message: str) -> None:
    damage(folder / "bsds500" / "val")  # type: ignore[operator]
    with pytest.raises(OVSDinoError, match=message):
        open_bsds(folder, "val")[0]


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match=r"neither bsds500_val\.zip nor .* BSR_bsds500\.tgz"):
        open_bsds(tmp_path, "val")
    with pytest.raises(OVSDinoError, match="unknown split 'dev' of bsds500; available: train, val, test"):
        open_bsds(tmp_path, "dev")
    (tmp_path / "bsds500_val.zip").write_text("no zip")
    with pytest.raises(OVSDinoError, match="not a readable zip file"):
        open_bsds(tmp_path, "val")


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (3, 3)).save(secret)
    (folder / "bsds500" / "val" / "images" / "a.jpg").unlink()
    (folder / "bsds500" / "val" / "images" / "a.jpg").symlink_to(secret)
    with pytest.raises(OVSDinoError, match="leads out of the data set"):
        open_bsds(folder, "val")[0]
