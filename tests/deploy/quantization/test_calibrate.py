"""Ranges by hand, and the images that they come from."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from ovsdino.deploy.quantization.calibrate import calibration_images, tensor_ranges
from ovsdino.edge.onnx_graph import open_session
from ovsdino.errors import OVSDinoError
from tests.support.block import feeds, network, pictures


def test_percentiles_cut_off_what_is_rare() -> None:
    model, inputs = network(), feeds()
    exact = tensor_ranges(model, ["active"], inputs, "minmax", 100.0, 1)["active"]
    cut = tensor_ranges(model, ["active"], inputs, "percentile", 99.0, 1)["active"]
    session = open_session(_watched(model, "active").SerializeToString(), "the graph", 1)
    values = np.concatenate([session.run(["active"], one)[0].ravel() for one in inputs])
    assert cut == pytest.approx(np.percentile(np.abs(values), 99.0), rel=0.02) and cut < exact


def _watched(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def test_calibration_images_are_spread_over_those_there_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 9)
    for source in (folder, tmp_path):
        assert [image[0, 0, 0] for image in calibration_images(source, 3)] == [0, 4, 8]
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.writestr(f"images/{path.name}", path.read_bytes())
        label = BytesIO()
        Image.new("L", (4, 4)).save(label, "PNG")
        file.writestr("labels/00.png", label.getvalue())
    assert [image[0, 0, 0] for image in calibration_images(archive, 3)] == [0, 4, 8]
    assert len(calibration_images(archive, 100)) == 9


def test_calibration_reads_images_and_nothing_that_starts_a_program(tmp_path: Path) -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(program)
    large = BytesIO()
    Image.new("1", (20_000, 20_000)).save(large, "PNG")  # 50 KB, 1.2 GB as RGB
    for name, data in (("eps.zip", program), ("large.zip", large.getvalue())):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images/a.png", data)
    for source, message in (
        ("", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("a.png", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("eps.zip", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("large.zip", "more than 100,000,000 pixels"),
    ):
        with pytest.raises(OVSDinoError, match=message):
            calibration_images(tmp_path / source, 1)


def test_damaged_calibration_zips_are_one_line(tmp_path: Path) -> None:
    folder, path, random = pictures(tmp_path / "images", 2), tmp_path / "m.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted(folder.iterdir()):
            archive.write(image, f"images/{image.name}")
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            data[-random.integers(1, 400)] = random.integers(256)  # the directory, and the end of the last image
        path.write_bytes(data)
        try:
            calibration_images(path, 2)
        except OVSDinoError as error:
            refused += 1
            assert "m.zip" in str(error) and "\n" not in str(error)
    assert refused > 50
