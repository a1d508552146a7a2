"""Graphs with the words inside: the labels of the graph before, and engines that TensorRT-RTX builds of them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx
import pytest

from ovsdino.deploy.export.bake import bake, baked_agreement, check_baked
from ovsdino.deploy.export.engine import build_engine
from ovsdino.deploy.export.inputs import Images, synthetic
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.edge import EdgeSegmenter, TextBank
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import resize
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from tests.support.graphs import exported
from tests.support.small import SIZE

NAMES = ("road", "car", "sky")


@pytest.fixture(scope="module")
def grouped() -> Exported:
    return exported(grouped=True, classes=(1, 40))


@pytest.fixture(scope="module")
def half() -> Exported:
    return exported(batch=(1, 2), classes=(1, 40), precision="float16")


@pytest.fixture(scope="module")
def images() -> Images:
    return synthetic(3)


def bank_for(exported: Exported, *, contrast: bool, words: tuple[int, ...] = ()) -> TextBank:
    draw = np.random.default_rng(5)
    rows = draw.standard_normal((sum(words) if words else len(NAMES), exported.sidecar.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rivals = np.roll(rows, 3, axis=1)[:2] if contrast else None
    facts = {"model": exported.sidecar.model, "weights": exported.sidecar.weights}
    return TextBank(names=NAMES, text=rows, words=words, contrast=rivals, **facts)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("contrast", [False, True])
def test_labels_are_those_of_the_graph_before(
    grouped: Exported, images: Images, contrast: bool, output: str, layout: str
) -> None:
    bank = bank_for(grouped, contrast=contrast, words=(2, 1, 1))
    baked = bake(grouped, bank, output=output, layout=layout)
    assert baked_agreement(baked, grouped, bank, images) >= 0.9999
    session = open_session(baked.data, "baked")
    (image,), (found,) = session.get_inputs(), session.get_outputs()
    height, width = SIZE["height"], SIZE["width"]
    assert (image.name, image.shape) == ("image", [1, height, width, 3] if layout == "nhwc" else [1, 3, height, width])
    assert image.type == ("tensor(uint8)" if layout == "nhwc" else "tensor(float)")
    maps = 3 + contrast
    expected = [1, height, width] if output == "labels" else [1, maps, height // 4, width // 4]
    assert (found.name, found.shape) == (output, expected)
    assert found.type == ("tensor(uint8)" if output == "labels" else "tensor(float)")
    assert baked.sidecar.baked == {"names": list(NAMES), "none": contrast, "layout": layout, "output": output}


def test_pixels_of_none_of_the_words_have_the_label_that_the_segmenter_gives(
    grouped: Exported, images: Images, tmp_path
) -> None:
    bank = bank_for(grouped, contrast=True)
    publish(tmp_path / "graph.onnx", grouped)
    session = open_session(bake(grouped, bank, output="labels", layout="nhwc").data, "baked")
    with EdgeSegmenter(
        tmp_path / "graph.onnx", bank, threads=1, least_share=0, least_certainty=0, runtime="onnxruntime"
    ) as segmenter:
        seen = set()
        for picture in images.pixels:
            pixels = resize(picture, (SIZE["height"], SIZE["width"]))
            expected = segmenter.segment(pixels).labels
            assert (session.run(None, {"image": pixels[None]})[0][0] == expected).mean() >= 0.9999
            seen |= set(np.unique(expected))
    assert 3 in seen and seen & {0, 1, 2}  # the label after the words', and words


def test_a_float16_graph_of_single_rows_keeps_its_dynamic_batch(half: Exported, images: Images) -> None:
    bank = bank_for(half, contrast=False)
    baked = bake(half, bank, output="labels", layout="nhwc")
    assert baked_agreement(baked, half, bank, images) >= 0.9999
    session = open_session(baked.data, "baked")
    for count in (1, 2):
        pixels = np.zeros((count, SIZE["height"], SIZE["width"], 3), np.uint8)
        assert session.run(None, {"image": pixels})[0].shape == (count, SIZE["height"], SIZE["width"])


@pytest.mark.parametrize(("output", "layout"), [("labels", "nhwc"), ("probabilities", "nchw")])
def test_tensorrt_builds_an_engine_of_it(rtx: ModuleType, half: Exported, output: str, layout: str) -> None:
    baked = bake(half, bank_for(half, contrast=False), output=output, layout=layout)
    engine, _ = build_engine(baked, BuildOptions(backend="tensorrt_rtx", target="sm86"))
    assert engine.sidecar.kind == "engine" and engine.sidecar.baked == baked.sidecar.baked
    assert len(engine.data) > 10_000


def test_the_file_says_what_it_is_and_the_segmenter_refuses_it(grouped: Exported, tmp_path) -> None:
    bank = bank_for(grouped, contrast=True)
    baked = bake(grouped, bank, output="labels")
    path = tmp_path / "baked.onnx"
    publish(path, baked)
    loaded = Sidecar.load(path)
    assert loaded.baked == baked.sidecar.baked and not loaded.grouped and loaded.classes == (3, 3)
    model = onnx.load(path)
    loaded.check_graph({entry.key: entry.value for entry in model.metadata_props})
    with pytest.raises(OVSDinoError, match="its words are inside"):
        EdgeSegmenter(path, bank)
    changed = path.with_name("baked.onnx.json")
    changed.write_text(changed.read_text().replace('"nchw"', '"nwhc"'))
    with pytest.raises(OVSDinoError, match=r"baked\.layout"):
        Sidecar.load(path)


def test_what_cannot_be_baked_is_refused(grouped: Exported, half: Exported, images: Images) -> None:
    with pytest.raises(OVSDinoError, match="export it again with --contrast"):
        bake(half, bank_for(half, contrast=True))
    rows = np.eye(256, grouped.sidecar.embed_dim, dtype=np.float32)
    rows[rows.sum(1) == 0, 0] = 1
    many = TextBank(
        names=tuple(map(str, range(256))), text=rows, model="small", weights=grouped.sidecar.weights, contrast=rows[:1]
    )
    wide = grouped._replace(sidecar=grouped.sidecar.describing(grouped.data, classes=(1, 300)))
    with pytest.raises(OVSDinoError, match="labels are uint8"):
        bake(wide, many, output="labels")
    with pytest.raises(OVSDinoError, match=r"0\.999800"):
        check_baked(0.9998, images)
