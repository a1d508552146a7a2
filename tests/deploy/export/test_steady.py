"""A graph with a memory: over a clip as PyTorch's own, and what a runtime does with its state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import shape_inference

from ovsdino.deploy.export.inputs import Images, random_rows
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.steady import compare_clip, with_memory
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge.bank import TextBank
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.edge.tensors import beginning, text_inputs
from ovsdino.errors import OVSDinoError
from ovsdino.models.memory import MemoryConfig, remembered
from ovsdino.models.ovsdino import OVSDINO
from tests.support.graphs import exported
from tests.support.small import SIZE, small_model

WORDS = ("road", "sky", "tree")


@pytest.fixture(scope="module")
def model() -> OVSDINO:
    """A small model whose affinities are of size one, as trained ones: squares of large ones are all rounding."""
    made = small_model()
    assert made.decoder is not None
    with torch.no_grad():
        structure = made.encode_image(torch.randn(1, 3, SIZE["height"], SIZE["width"])).structure
        assert structure is not None
        size = made.decoder.score_attention.embed(structure.guide).square().sum(1).mean().sqrt()
        made.decoder.score_attention.affinity.weight.div_(size)
    return made


@pytest.fixture(scope="module")
def plain(model: OVSDINO) -> Exported:
    return export_graph(model, **SIZE)


@pytest.fixture(scope="module")
def steady(plain: Exported) -> Exported:
    return with_memory(plain)


@pytest.fixture(scope="module")
def uncut(plain: Exported) -> Exported:
    """The first frame, too, takes from a memory that is there."""
    return with_memory(plain, MemoryConfig(cut=0.0))


@pytest.fixture(scope="module")
def frames() -> tuple[np.ndarray, ...]:
    """Four frames of a camera that moves over noise, and two of another scene."""
    generator = np.random.default_rng(0)
    scene = np.kron(generator.integers(0, 255, (8, 16, 3)), np.ones((8, 8, 1)))
    moved = [scene[: SIZE["height"], 2 * i : SIZE["width"] + 2 * i] for i in range(4)]
    other = generator.integers(0, 255, moved[0].shape)
    return tuple(one.astype(np.uint8) for one in (*moved, other, other))


def test_the_joined_step_is_that_of_pytorch(plain: Exported, steady: Exported, frames: tuple[np.ndarray, ...]) -> None:
    side = steady.sidecar
    alone, joined = (open_session(one.data, "graph", 1) for one in (plain, steady))
    rows, state, memory = text_inputs(side, random_rows(side.embed_dim, (3, 3))), beginning(side, 3), None
    for image in (*frames, frames[-1]):
        pixels = preprocess(image, (SIZE["height"], SIZE["width"]), side.mean, side.std)[None]
        found = joined.run(["logits", "affinity"], {"image": pixels, **rows, **state})
        state = {"last_logits": found[0], "last_affinity": found[1]}
        logits = alone.run(["logits"], {"image": pixels, **rows})[0]
        memory, _ = remembered(torch.from_numpy(logits), torch.from_numpy(found[1]), memory)
        np.testing.assert_allclose(found[0], memory.logits.numpy(), atol=1e-3)


def test_a_clip_gives_the_logits_and_labels_of_pytorch(
    model: OVSDINO, uncut: Exported, frames: tuple[np.ndarray, ...]
) -> None:
    found = compare_clip(model, uncut, Images(frames, WORDS, "noise"), MemoryConfig(cut=0.0))
    assert found.images == 6 and found.worst_cosine > 0.99999 and found.label_agreement > 0.999


def test_a_float16_graph_attends_in_the_form_that_tensorrt_fuses(
    model: OVSDINO, frames: tuple[np.ndarray, ...]
) -> None:
    half = with_memory(export_graph(model, **SIZE, classes=3, precision="float16"))
    found = compare_clip(model, half, Images(frames, WORDS, "noise"))
    assert found.worst_cosine > 0.999 and found.label_agreement > 0.98
    graph = shape_inference.infer_shapes(onnx.load_model_from_string(half.data)).graph
    kinds = {value.name: value.type.tensor_type for value in graph.value_info}
    softmax = next(node for node in graph.node if node.name == "memory/Softmax")
    assert kinds[softmax.output[0]].elem_type == onnx.TensorProto.FLOAT16
    product = next(node for node in graph.node if node.input and node.input[0] == softmax.output[0])
    assert product.op_type == "MatMul"
    assert [kinds[name].shape.dim[-1].dim_value for name in (product.input[1], product.output[0])] == [32, 32]


def test_a_segmenter_remembers_until_it_is_told_not_to(
    plain: Exported, steady: Exported, frames: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    publish(tmp_path / "plain.onnx", plain)
    publish(tmp_path / "steady.onnx", steady)
    side = plain.sidecar
    rows = random_rows(side.embed_dim, (3, 3))
    bank = TextBank(names=WORDS, text=rows, weights=side.weights, model=side.model)
    with (
        EdgeSegmenter(tmp_path / "plain.onnx", bank) as alone,
        EdgeSegmenter(tmp_path / "steady.onnx", bank) as tracker,
    ):
        assert tracker.backend == "onnxruntime" and tracker.sidecar.memory is not None
        singles = [alone.segment(frame, scores=False).labels for frame in frames]

        def labels(frame: np.ndarray) -> np.ndarray:
            return tracker.segment(frame, scores=False).labels

        assert np.array_equal(labels(frames[0]), singles[0])
        labels(frames[0])
        assert np.array_equal(labels(frames[4]), singles[4])  # a cut
        for forget in (tracker.reset, lambda: tracker.set_bank(bank)):
            labels(frames[0])
            forget()
            assert np.array_equal(labels(frames[1]), singles[1])
        small = np.ascontiguousarray(frames[1][::2, ::2])
        assert np.array_equal(labels(small), alone.segment(small, scores=False).labels)  # another size
        image = np.zeros((1, 3, SIZE["height"], SIZE["width"]), np.float32)
        np.testing.assert_allclose(tracker.infer(image), alone.infer(image), atol=1e-4)
    with pytest.raises(OVSDinoError, match="ONNX Runtime"):
        EdgeSegmenter(tmp_path / "steady.onnx", bank, runtime="openvino")


def test_settings_are_in_the_graph(model: OVSDINO, plain: Exported, uncut: Exported) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (SIZE["height"], SIZE["width"], 3), dtype=np.uint8)
    bright = (frame // 2 + 100).astype(np.uint8)
    text = random_rows(model.config.embed_dim, (3, 3))
    found = []
    for given in (plain, with_memory(plain, MemoryConfig(most=0.0)), uncut):
        side, session = given.sidecar, open_session(given.data, "graph", 1)
        state = beginning(side, 3)
        for image in (frame, bright):
            pixels = preprocess(image, (SIZE["height"], SIZE["width"]), side.mean, side.std)[None]
            out = session.run(None, {"image": pixels, **text_inputs(side, text), **state})
            state = {"last_logits": out[0], "last_affinity": out[1]} if state else {}
        found.append(out[0])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert np.abs(found[2] - found[0]).max() > 1e-2


def test_what_can_have_no_memory_is_refused(steady: Exported) -> None:
    with pytest.raises(OVSDinoError, match="none yet"):
        with_memory(steady)
    torch.manual_seed(0)
    with pytest.raises(OVSDinoError, match="score attention"):
        with_memory(exported(decoder=False))
