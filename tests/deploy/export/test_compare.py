"""An engine against its graph: the figures are those of the file that was run, on images that are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovsdino.deploy.export import tensorrt_api
from ovsdino.deploy.export.compare import compare, runner
from ovsdino.deploy.export.inputs import Images, bank_rows, random_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import CONFIGS
from tests.support import tiny


@pytest.fixture
def model(tmp_path: Path) -> Exported:
    return Exported.read(tiny.graph(tmp_path / "tiny.onnx", batch=2))


@pytest.fixture
def images() -> Images:
    random = np.random.default_rng(0)
    return Images(tuple(random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)), (), "random images")


def test_a_graph_agrees_with_itself_on_the_images_that_are_named(model: Exported, images: Images) -> None:
    sidecar = model.sidecar
    run = runner(model, random_rows(sidecar.embed_dim, sidecar.classes))
    found = compare(run, run, sidecar, images, reference="ONNX Runtime")  # 3 images in batches of 2
    assert (found.cosine, found.label_agreement, found.images) == (pytest.approx(1), 1.0, 3)
    told = found.to_dict()
    assert (told["source"], told["reference"]) == ("random images", "ONNX Runtime")
    assert "verified on 3 random images against ONNX Runtime" in found.tell()
    found.check()


def test_an_engine_that_departs_is_refused(model: Exported, images: Images) -> None:
    sidecar = model.sidecar
    run = runner(model, random_rows(sidecar.embed_dim, sidecar.classes))
    opposite = compare(lambda image: -run(image), run, sidecar, images, reference="ONNX Runtime")
    assert opposite.worst_cosine == pytest.approx(-1) and opposite.label_agreement < 0.2
    with pytest.raises(OVSDinoError, match=r"the engine departs from ONNX Runtime: cosine -1\.0.*on 3 random images"):
        opposite.check()
    empty = compare(lambda image: np.full_like(run(image), np.nan), run, sidecar, images, reference="ONNX Runtime")
    with pytest.raises(OVSDinoError, match="departs"):
        empty.check()
    with pytest.raises(OVSDinoError, match="its logits are"):
        compare(lambda image: run(image)[:, :1], run, sidecar, images, reference="ONNX Runtime")


def test_the_words_are_a_banks_or_seeded(model: Exported, tmp_path: Path) -> None:
    sidecar = model.sidecar
    path = tiny.bank("road", "sky").save(tmp_path / "bank.safetensors")
    assert np.array_equal(bank_rows(sidecar, path), tiny.bank("road", "sky").text)
    rows = random_rows(sidecar.embed_dim, sidecar.classes)
    assert rows.shape[1] == tiny.DIM and np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert np.array_equal(rows, random_rows(sidecar.embed_dim, sidecar.classes))
    other = tiny.bank("road", "sky", weights="1" * 64).save(tmp_path / "other.safetensors")
    with pytest.raises(OVSDinoError, match="other weights"):
        bank_rows(sidecar, other)


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.30", "10.4.0"])
def test_reported_faults_are_named(version: str) -> None:
    for name, config in CONFIGS.items():
        found = tensorrt_api.known_fault("tensorrt", version, name)
        assert (found is not None) == ("dinov3" in config.backbone.timm_name), name
        assert found is None or all(number in found for number in ("4723", "4558", "4742"))
    assert tensorrt_api.known_fault("tensorrt_rtx", version, "b16v3") is None


@pytest.mark.parametrize("version", ["10.16.2", "10.5.0", "11.4.0"])
def test_other_releases_have_no_report(version: str) -> None:
    assert tensorrt_api.known_fault("tensorrt", version, "b16v3") is None
