"""EdgeSegmenter on a graph worked out by hand: results, vocabularies, and files refused before they are opened."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from ovsdino.deploy.export.trace import write_facts
from ovsdino.edge import onnx_graph as runtime_onnx
from ovsdino.edge import runtimes
from ovsdino.edge import tensorrt_graph as runtime_tensorrt
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.pixels import preprocess as numpy_preprocess
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.edge.sidecar import sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.ops import preprocess
from ovsdino.ops.upsample_argmax import upsample_argmax_confidence_reference
from ovsdino.results import Segmentation
from tests.support import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.graph(tmp_path / "tiny.onnx")


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def expected(image: np.ndarray, text: np.ndarray, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence by the torch ops and the graph's formula."""
    tensor = preprocess(torch.from_numpy(image), (tiny.HEIGHT, tiny.WIDTH), tiny.MEAN, tiny.STD)[0].numpy()
    logits = torch.from_numpy(tiny.expected_logits(tensor, text)).float()[None]
    labels, confidence = upsample_argmax_confidence_reference(logits, image.shape[:2], threshold)
    return labels[0].numpy(), confidence[0].numpy()


def test_labels_and_scores_are_those_of_the_formula(model: Path) -> None:
    bank, image = tiny.bank("road", "car", "sky"), picture()
    result = EdgeSegmenter(model, bank, threads=1).segment(image)
    labels, confidence = expected(image, bank.text)
    assert isinstance(result, Segmentation)
    assert result.labels.shape == (48, 64) and result.labels.dtype == np.uint8 and len(np.unique(labels)) == 3
    assert (result.labels == labels).mean() > 0.999
    means = [confidence[labels == index].mean() for index in range(3)]
    assert result.scores == pytest.approx(means, abs=1e-3)
    assert result.names == ("road", "car", "sky") and not result.background
    assert list(result.stages_ms) == ["load", "preprocess", "encode", "postprocess"]
    assert result.ms == pytest.approx(sum(result.stages_ms.values())) and min(result.stages_ms.values()) >= 0


def test_path_pillow_and_array_are_the_same_image(model: Path, tmp_path: Path) -> None:
    image = picture()
    Image.fromarray(image).save(tmp_path / "street.png")
    segmenter = EdgeSegmenter(str(model), tiny.bank("a", "b"), threads=1)
    found = [segmenter.segment(x).labels for x in (image, Image.fromarray(image), tmp_path / "street.png")]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_call_takes_one_image_or_several_in_any_form(model: Path, tmp_path: Path) -> None:
    frames = [picture(seed=seed) for seed in range(3)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    tensor = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    data = (tmp_path / "0.png").read_bytes()
    with EdgeSegmenter(model, tiny.bank("a", "b"), threads=1) as segmenter:
        expected = [segmenter.segment(frame).labels for frame in frames]
        assert len({labels.tobytes() for labels in expected}) == 3
        for one in (tmp_path / "0.png", data, io.BytesIO(data), tensor[0], tensor[0] / 255, frames[0]):
            found: Any = segmenter(one)
            np.testing.assert_array_equal(found.labels, expected[0])
        for several in (tmp_path, frames, iter(frames), np.stack(frames), tensor, tensor.float() / 255):
            found = segmenter(several)
            assert isinstance(found[0], Segmentation)
            np.testing.assert_array_equal([result.labels for result in found], expected)
        turned = segmenter.segment(np.ascontiguousarray(frames[0][:, :, ::-1]), bgr=True)
        np.testing.assert_array_equal(turned.labels, expected[0])
        np.testing.assert_array_equal(turned.image, frames[0])  # type: ignore[arg-type]
        assert turned.to_yolo() and turned.to_labelme()["shapes"] and turned.to_coco()["annotations"]
        for bad, words in ((b"", "empty"), (tensor[0].float(), "expected 0..1"), ("http://a/b.png", "not fetched")):
            with pytest.raises(OVSDinoError, match=words):
                segmenter([frames[0], bad])


def test_results_are_not_overwritten_by_the_next_image(model: Path) -> None:
    segmenter = EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    frame = picture(seed=0)
    first = segmenter.segment(frame)
    kept = first.labels.copy()
    frame[:] = picture(seed=1)  # the next frame, in the same buffer
    segmenter.segment(frame)
    assert np.array_equal(first.labels, kept)
    assert first.image is not None and np.array_equal(first.image, picture(seed=0))


def test_a_result_knows_its_file_and_can_be_saved(model: Path, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "street.png")
    result = EdgeSegmenter(model, tiny.bank("a", "b"), threads=1).segment(tmp_path / "street.png")
    assert result.source == str(tmp_path / "street.png")
    written = result.save(tmp_path / "out")
    assert np.array_equal(np.array(Image.open(written["labels"])), result.labels)
    assert Image.open(written["overlay"]).width >= 64


def test_nv12_is_the_image_it_was_made_from(model: Path) -> None:
    segmenter = EdgeSegmenter(model, tiny.bank("a", "b", "c"), threads=1)
    gray = np.repeat(np.random.default_rng(0).integers(0, 2, (24, 32)).repeat(2, 0).repeat(2, 1), 3).reshape(48, 64, 3)
    luma = (16 + 219 * gray[:, :, 0]).astype(np.uint8)  # black is 16, white is 235
    planar = np.concatenate([luma, np.full((24, 64), 128, np.uint8)])
    result = segmenter.segment(planar, nv12=True)
    assert result.image is None and result.source is None
    assert np.array_equal(result.labels, segmenter.segment((gray * 255).astype(np.uint8)).labels)


def test_background_is_what_is_less_certain_than_the_threshold(model: Path) -> None:
    bank, image = tiny.bank("a", "b", "c"), picture()
    sure = EdgeSegmenter(model, bank, threads=1)
    tensor = numpy_preprocess(image, (tiny.HEIGHT, tiny.WIDTH), tiny.MEAN, tiny.STD)
    labels, confidence = upsample_argmax(sure.infer(tensor[None])[0], image.shape[:2], confidence=True)
    assert confidence is not None and np.array_equal(labels, sure.segment(image).labels)
    threshold = float(np.median(confidence))
    result = EdgeSegmenter(model, bank, threads=1, background=threshold).segment(image, scores=False)
    assert result.background and result.scores is None
    assert np.array_equal(result.labels, np.where(confidence < threshold, 3, labels))


def test_another_bank_needs_no_other_file(model: Path) -> None:
    few, many = tiny.bank("a", "b"), tiny.bank(*(f"class {i}" for i in range(257)), seed=1)
    image = picture()
    before = model.stat()
    segmenter = EdgeSegmenter(model, few, threads=1)
    assert segmenter.segment(image).labels.dtype == np.uint8
    segmenter.set_bank(many)
    result = segmenter.segment(image)
    assert len(result.names) == 257 and result.labels.dtype == np.int16 and result.labels.max() > 1
    assert (result.labels == expected(image, many.text)[0]).mean() > 0.999
    segmenter.set_bank(few)
    assert (segmenter.segment(image).labels == expected(image, few.text)[0]).mean() > 0.999
    assert model.stat() == before


def test_a_refused_bank_leaves_the_old_one(model: Path) -> None:
    segmenter = EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    with pytest.raises(OVSDinoError, match="made for other weights"):
        segmenter.set_bank(tiny.bank("c", "d", "e", weights="1" * 64))
    assert segmenter.names == ("a", "b") and segmenter.segment(picture()).names == ("a", "b")


def test_infer_takes_the_tensor_of_the_graph(model: Path) -> None:
    bank = tiny.bank("a", "b")
    with EdgeSegmenter(model, bank, threads=1) as segmenter:
        tensor = np.random.default_rng(0).standard_normal((1, 3, tiny.HEIGHT, tiny.WIDTH)).astype(np.float32)
        logits = segmenter.infer(tensor)
        assert np.abs(logits[0] - tiny.expected_logits(tensor[0], bank.text)).max() < 1e-5
        for wrong in (tensor[0], tensor[:, :, :-4], tensor.astype(np.float64)):
            with pytest.raises(OVSDinoError, match="takes"):
                segmenter.infer(wrong)


def test_a_batched_graph_infers_but_does_not_segment(tmp_path: Path) -> None:
    segmenter = EdgeSegmenter(tiny.graph(tmp_path / "two.onnx", batch=2), tiny.bank("a"), threads=1)
    assert segmenter.infer(np.zeros((2, 3, tiny.HEIGHT, tiny.WIDTH), np.float32)).shape == (2, 1, 6, 8)
    with pytest.raises(OVSDinoError, match="batches of 2"):
        segmenter.segment(picture())


def test_a_graph_for_up_to_three_images_does_both(tmp_path: Path) -> None:
    segmenter = EdgeSegmenter(tiny.graph(tmp_path / "many.onnx", batch=(1, 3)), tiny.bank("a", "b"), threads=1)
    assert segmenter.segment(picture()).labels.shape == (48, 64)
    for batch in (1, 3):
        assert segmenter.infer(np.zeros((batch, 3, tiny.HEIGHT, tiny.WIDTH), np.float32)).shape == (batch, 2, 6, 8)
    with pytest.raises(OVSDinoError, match="takes"):
        segmenter.infer(np.zeros((4, 3, tiny.HEIGHT, tiny.WIDTH), np.float32))


@pytest.mark.parametrize("batch", [(1, 3), 3])
def test_images_of_several_cameras_are_labeled_at_once_as_alone(tmp_path: Path, batch: Any) -> None:
    """RGB of two sizes and NV12; a file for three takes two as well."""
    bank, alone = tiny.bank("a", "b", "c"), tiny.graph(tmp_path / "one.onnx")
    one = EdgeSegmenter(alone, bank, threads=1)
    many = EdgeSegmenter(tiny.graph(tmp_path / "many.onnx", batch=batch), bank, threads=1)
    nv12 = np.random.default_rng(0).integers(0, 256, (36, 32), dtype=np.uint8)
    images = [picture(), nv12, picture(24, 40, seed=1)]
    assert (one.batch, many.batch) == (1, 3)
    for count in (3, 2):
        results = many.segment_batch(images[:count], nv12=True, confidence=True)
        for image, result in zip(images, results, strict=False):
            right = one.segment(image, nv12=image.ndim == 2, confidence=True)
            np.testing.assert_array_equal(result.labels, right.labels)
            assert result.scores == pytest.approx(right.scores, abs=1e-4) and result.confidence is not None
            assert (result.image is None) == (image.ndim == 2)
    for wrong in ([], [picture()] * 4):
        with pytest.raises(OVSDinoError, match=rf"many\.onnx: {len(wrong)} images, expected 1..3"):
            many.segment_batch(wrong)


@pytest.mark.parametrize(
    "image, nv12",
    [
        (np.zeros((48, 64), np.uint8), False),
        (np.zeros((48, 64, 3), np.int32), False),
        (np.zeros((48, 64, 3), np.uint8), True),
        (np.zeros((47, 64), np.uint8), True),
        (np.zeros((48, 63), np.uint8), True),
        (np.zeros((0, 64), np.uint8), True),
        ("missing.png", False),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(model: Path, image: Any, nv12: bool) -> None:
    segmenter = EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    if isinstance(image, np.ndarray) and image.ndim == 2 and not nv12:
        assert segmenter.segment(image).labels.shape == (48, 64)  # gray is an image
        return
    with pytest.raises(OVSDinoError) as caught:
        segmenter.segment(image, nv12=nv12)
    assert "\n" not in str(caught.value)


def change_sidecar(model: Path, **changes: Any) -> None:
    path = sidecar_path(model)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusals() -> dict[str, tuple[str, Any]]:
    """name: (part of the message, how to spoil the file)."""
    engine = {"kind": "engine", "backend": "tensorrt_rtx", "target": "sm86"}
    version = runtime_tensorrt.tensorrt_module("tensorrt_rtx").__version__
    return {
        "tampered": ("changed since it was exported", lambda m: m.write_bytes(m.read_bytes()[:-1] + b"\0")),
        "longer": ("cut off or changed", lambda m: m.write_bytes(m.read_bytes() + b"\0")),
        "cut": ("cut off or changed", lambda m: m.write_bytes(m.read_bytes()[:100])),
        "missing": ("no such file", lambda m: m.unlink()),
        "no sidecar": ("the sidecar is missing", lambda m: sidecar_path(m).unlink()),
        "not JSON": ("not JSON", lambda m: sidecar_path(m).write_text("{")),
        "format": ("format is 9", lambda m: change_sidecar(m, format=9)),
        "too few": ("2 classes", lambda m: change_sidecar(m, classes=[3, 256])),
        "too many": ("2 classes", lambda m: change_sidecar(m, classes=[1, 1])),
        "width": ("3 columns", lambda m: change_sidecar(m, embed_dim=192)),
        "weights": ("other weights", lambda m: change_sidecar(m, weights="f" * 64)),
        "version": ("built by tensorrt_rtx 1.2.3", lambda m: change_sidecar(m, **engine, version="1.2.3")),
        "device": ("built for sm86, this device is sm87", lambda m: change_sidecar(m, **engine, version=version)),
    }


@pytest.mark.parametrize("name", refusals())
def test_refused_in_one_line_before_anything_is_deserialized(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("deserialized")

    monkeypatch.setattr(runtime_onnx, "OnnxGraph", never)
    monkeypatch.setattr(runtime_tensorrt, "TensorRTGraph", never)
    monkeypatch.setattr(runtime_tensorrt, "device_sm", lambda device: "sm87")
    message, spoil = refusals()[name]
    spoil(model)
    with pytest.raises(OVSDinoError) as caught:
        EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_bank_and_bad_numbers_are_refused(model: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"text_bank": tmp_path / "none.safetensors"}, "cannot read the text bank"),
        ({"text_bank": tiny.bank("a", "b"), "threads": 0}, "threads is 0"),
        ({"text_bank": tiny.bank("a", "b"), "background": 1.5}, "background is 1.5"),
        ({"text_bank": tiny.bank("a"), "background": True}, "two classes or more"),
    ):
        with pytest.raises(OVSDinoError, match=message):
            EdgeSegmenter(model, **arguments)


def test_an_engine_for_this_device_is_hashed_before_it_is_deserialized(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = runtime_tensorrt.tensorrt_module("tensorrt_rtx").__version__
    change_sidecar(model, kind="engine", backend="tensorrt_rtx", target="sm86,sm87", version=version)
    monkeypatch.setattr(runtime_tensorrt, "device_sm", lambda device: "sm87")
    monkeypatch.setattr(runtime_tensorrt, "TensorRTGraph", lambda *_: pytest.fail("deserialized"))
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(OVSDinoError, match="changed since it was exported"):
        EdgeSegmenter(model, tiny.bank("a", "b"))


def test_what_was_hashed_is_what_is_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model.read_bytes()
    given: list[bytes] = []
    real = runtime_onnx.OnnxGraph

    def swapped(data: bytes, *rest: Any) -> Any:
        model.write_bytes(b"something else")
        given.append(data)
        return real(data, *rest)

    monkeypatch.setattr(runtime_onnx, "OnnxGraph", swapped)
    assert EdgeSegmenter(model, tiny.bank("a", "b"), threads=1).segment(picture()).labels.shape == (48, 64)
    assert given == [original]


def test_a_graph_of_another_form_is_refused(tmp_path: Path) -> None:
    odd = tiny.graph(tmp_path / "odd.onnx", inputs=("pixels", "words"))
    with pytest.raises(OVSDinoError, match="its inputs are"):
        EdgeSegmenter(odd, tiny.bank("a"), threads=1)
    model = tiny.graph(tmp_path / "tiny.onnx")
    change_sidecar(model, input=[1, 3, 64, 64])
    with pytest.raises(OVSDinoError, match="sidecar says image"):
        EdgeSegmenter(model, tiny.bank("a"), threads=1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0a not a graph")
    tiny.sidecar(broken).save(broken)
    with pytest.raises(OVSDinoError, match="ONNX Runtime refuses it") as caught:
        EdgeSegmenter(broken, tiny.bank("a"), threads=1)
    assert "\n" not in str(caught.value)


def changed(model: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """The graph after an edit, with a sidecar of the new file."""
    graph = onnx.load(model)
    edit(graph)
    model.write_bytes(graph.SerializeToString())
    tiny.sidecar(model).save(model)
    return model


def rank_three(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(onnx.helper.make_node("Squeeze", ["logits", "first"], ["rows3"]))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("rows3", onnx.TensorProto.FLOAT, ["K", 6, 8]))
    rename(graph, "logits", "four")
    rename(graph, "rows3", "logits")


def rename(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in graph.graph.output:
        value.name = new if value.name == old else value.name


def half(graph: onnx.ModelProto) -> None:
    rename(graph, "logits", "wide")
    graph.graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["logits"], to=onnx.TensorProto.FLOAT16))
    del graph.graph.output[:]
    value = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT16, [1, "K", 6, 8])
    graph.graph.output.append(value)


def second(graph: onnx.ModelProto) -> None:
    graph.graph.output.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None))


def fixed_classes(graph: onnx.ModelProto) -> None:
    graph.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (lambda g: rename(g, "logits", "scores"), {}, "its outputs are"),
        (rank_three, {}, "its outputs are"),
        (half, {}, "logits is tensor.float16., expected float32"),
        (second, {}, "its outputs are"),
        (fixed_classes, {"classes": (2, 2)}, "its inputs are"),
        (lambda g: None, {"input": (2, 3, 24, 32)}, "its inputs are"),
        (lambda g: None, {"patch_size": 16, "stride": 16.0}, "its outputs are"),
    ],
    ids=["name", "rank", "dtype", "two", "classes", "batch", "stride"],
)
def test_the_tensors_of_a_graph_are_checked_when_it_is_loaded(
    model: Path, edit: Callable[[onnx.ModelProto], object], changes: dict[str, Any], message: str
) -> None:
    changed(model, edit)
    tiny.sidecar(model, **changes).save(model)
    with pytest.raises(OVSDinoError, match=message) as caught:
        EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    assert "export it again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_graph_that_gives_no_numbers_is_refused(model: Path) -> None:
    changed(model, lambda g: g.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.float32("nan"), "scale")))
    with pytest.raises(OVSDinoError, match="NaN or infinite logits"):
        EdgeSegmenter(model, tiny.bank("a", "b"), threads=1).segment(picture())


def test_facts_inside_the_graph_are_held_against_the_sidecar(model: Path) -> None:
    changed(model, lambda g: write_facts(g, tiny.sidecar(model)))
    EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    change_sidecar(model, mean=[0.6, 0.5, 0.4])
    with pytest.raises(OVSDinoError, match=r"its sidecar says mean is \[0.6, 0.5, 0.4\], the graph itself \[0.4"):
        EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)


def test_a_closed_segmenter_says_so(model: Path) -> None:
    segmenter = EdgeSegmenter(model, tiny.bank("a", "b"), threads=1)
    segmenter.close()
    segmenter.close()
    tensor = np.zeros((1, 3, tiny.HEIGHT, tiny.WIDTH), np.float32)
    for use in (
        lambda: segmenter.segment(picture()),
        lambda: segmenter.infer(tensor),
        lambda: segmenter.set_bank(tiny.bank("c", "d")),
    ):
        with pytest.raises(OVSDinoError, match=r"tiny\.onnx: this EdgeSegmenter was closed"):
            use()
    with segmenter:  # leaving closes again, and does nothing
        pass


def test_four_threads_get_their_own_results(model: Path) -> None:
    banks = tiny.bank("a", "b", "c"), tiny.bank("d", "e", "f", seed=1)
    segmenter = EdgeSegmenter(model, banks[0], threads=1)
    images = [picture(seed=seed) for seed in range(4)]
    right = {(bank.names, index): expected(image, bank.text)[0] for bank in banks for index, image in enumerate(images)}
    faults: list[str] = []
    interval = sys.getswitchinterval()

    def work(index: int) -> None:
        for turn in range(40):
            if index == 3 and turn % 4 == 0:
                segmenter.set_bank(banks[turn // 4 % 2])
            found = segmenter.segment(images[index])
            if (found.labels == right[found.names, index]).mean() < 0.999:
                faults.append(f"{index} {found.names}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not faults


def test_no_device_is_said_in_one_line(model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    version = runtime_tensorrt.tensorrt_module("tensorrt_rtx").__version__
    change_sidecar(model, kind="engine", backend="tensorrt_rtx", target="sm86", version=version)
    with pytest.raises(OVSDinoError, match="CUDA"):
        EdgeSegmenter(model, tiny.bank("a", "b"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_tensorrt_is_said_in_one_line(model: Path) -> None:
    change_sidecar(model, kind="engine", backend="tensorrt", target="sm87", version="10.3.0")
    with pytest.raises(OVSDinoError, match="tensorrt is missing"):
        EdgeSegmenter(model, tiny.bank("a", "b"))


def test_threads_default_to_the_processors_of_this_process() -> None:
    assert runtimes.available_threads() >= 1
