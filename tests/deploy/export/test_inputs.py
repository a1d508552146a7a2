"""The images and words of a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.deploy.export.inputs import text_rows
from ovsdino.deploy.export.options import VerifyOptions
from ovsdino.errors import OVSDinoError
from tests.support.small import small_model


@pytest.mark.parametrize(("classes", "rows"), [((1, 256), 2), ((5, 5), 5), ((50, 60), 50), ((1, 1), 1)])
def test_the_text_bank_fits_the_graph(classes: tuple[int, int], rows: int) -> None:
    model = small_model()
    bank = text_rows(model, ["road", "sky"], classes)
    assert bank.shape == (rows, 32)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(bank[0], model.encode_text(["road"])[0], rtol=1e-5)


def test_without_data_noise_is_used_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OVSDINO_DATA", raising=False)
    monkeypatch.setattr("ovsdino.deploy.export.inputs.CHECKOUT_DATA", tmp_path)
    images = VerifyOptions().find()
    assert (len(images.pixels), images.names) == (4, ())
    assert "seeded synthetic images" in capsys.readouterr().err
    assert all(np.array_equal(a, b) for a, b in zip(images.pixels, VerifyOptions().find().pixels, strict=True))
    with pytest.raises(OVSDinoError, match="camvid"):
        VerifyOptions(root=tmp_path).find()  # a folder that was named must hold it
    with pytest.raises(OVSDinoError, match="limit is 0"):
        VerifyOptions(limit=0).find()


def test_images_of_a_folder(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (30, 20), (index, 0, 0)).save(tmp_path / f"{index}.png")
    images = VerifyOptions(images=tmp_path, limit=2).find()
    assert [image.shape for image in images.pixels] == [(20, 30, 3)] * 2
