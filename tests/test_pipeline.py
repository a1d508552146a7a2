"""`Segmenter` against the same steps written out in plain PyTorch, on the shipped model."""

from __future__ import annotations

import copy
import io
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import ovsdino
from ovsdino.errors import OVSDinoError
from ovsdino.models.novelty import Gaussian
from ovsdino.models.text import TextTower
from ovsdino.pipeline import Segmenter, check_device, load

CLASSES = ["road", "sky", "tree", "car"]


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load("nano", "cpu", short_side=64)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """90x120: a bright upper half, a textured lower one."""
    image = np.random.default_rng(0).integers(40, 120, (90, 120, 3), dtype=np.uint8)
    image[:45] = np.linspace(150, 250, 120).astype(np.uint8)[None, :, None]
    return image


def plain_logits(segmenter: Segmenter, image: np.ndarray, size: tuple[int, int], classes: list[str]) -> Tensor:
    model = segmenter.model
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode="bilinear", antialias=False).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.mean, model.config.std))
    with torch.no_grad():
        return model((resized - mean) / std, model.encode_text(classes))


def test_whole_image_equals_the_plain_steps(nano: Segmenter, picture: np.ndarray) -> None:
    logits = F.interpolate(plain_logits(nano, picture, (64, 80), CLASSES), (90, 120), mode="bilinear")
    probability, labels = logits.softmax(1).max(1)
    result = nano.segment(picture, CLASSES, partition=True)
    assert result.labels.shape == (90, 120) and result.labels.dtype == np.uint8
    assert (result.labels == labels[0].numpy()).mean() > 0.999  # ties at rounding error
    assert result.scores is not None
    for index in range(len(CLASSES)):
        here = labels[0] == index
        expected = probability[0][here].mean().item() if here.any() else 0.0
        assert result.scores[index] == pytest.approx(expected, abs=0.01)
    assert set(result.stages_ms) >= {"load", "preprocess", "encode", "decode", "postprocess"}
    assert result.ms == pytest.approx(sum(result.stages_ms.values()))


def test_background_is_where_the_largest_probability_is_below_the_threshold(
    nano: Segmenter, picture: np.ndarray
) -> None:
    logits = F.interpolate(plain_logits(nano, picture, (64, 80), CLASSES), (90, 120), mode="bilinear")
    confidence = logits.softmax(1).amax(1)[0]
    threshold = float(confidence.median())
    result = nano.segment(picture, CLASSES, background=threshold, partition=True)
    expected = (confidence < threshold).numpy()
    assert result.all_names[-1] == "background"
    assert ((result.labels == len(CLASSES)) == expected).mean() > 0.99
    assert result.fractions[-1] == pytest.approx(0.5, abs=0.02)
    kept = result.labels != len(CLASSES)
    whole = nano.segment(picture, CLASSES, partition=True)
    np.testing.assert_array_equal(result.labels[kept], whole.labels[kept])


def test_a_window_as_large_as_the_image_changes_nothing(nano: Segmenter, picture: np.ndarray) -> None:
    whole = nano.segment(picture, CLASSES)
    np.testing.assert_array_equal(nano.segment(picture, CLASSES, window=80).labels, whole.labels)


@dataclass
class FakeConfig:
    name: str = "brightness"
    patch_size: int = 4
    embed_dim: int = 2
    short_side: int = 16
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: bool = False


class Brightness(nn.Module):
    """A model whose logits are known: per 4x4 patch its mean gray g and 1 - g, minus the mean of its whole input.

    The last term makes each window differ, so that the merging shows.
    """

    stride_multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.config = FakeConfig()
        self.text_tower = TextTower()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.calls: list[tuple[int, ...]] = []
        self.texts = 0
        self.memory: int | None = None
        self.allocator: Any = None

    def encode_text(self, names: Any) -> Tensor:
        self.texts += 1
        return torch.eye(2)[: len(names)]

    def encode_image(self, image: Tensor) -> Tensor:
        self.calls.append(tuple(image.shape))
        if self.memory is not None and len(image) > self.memory:
            if self.allocator is not None:
                self.allocator()
            raise torch.OutOfMemoryError("no memory")
        gray = F.avg_pool2d(image.mean(1, keepdim=True), 4)
        return torch.cat([gray, 1 - gray], 1) - image.mean((1, 2, 3), keepdim=True)

    def decode(self, features: Tensor, text: Tensor) -> Tensor:
        return torch.einsum("bdhw,kd->bkhw", features, text)


def brightness(**options: Any) -> tuple[Segmenter, Brightness]:
    model = Brightness()
    return Segmenter(model, **options), model  # type: ignore[arg-type]


def test_windows_are_placed_and_averaged_as_the_protocol_says() -> None:
    segmenter, model = brightness()
    pixels = np.random.default_rng(1).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    # 16x40, window 16, stride 12: x = 0, 12, 24 (12 * 2 + 16 = 40); rows one window
    total, count = torch.zeros(1, 2, 4, 10), torch.zeros(1, 1, 4, 10)
    for x in (0, 12, 24):
        total[:, :, :, x // 4 : x // 4 + 4] += Brightness().encode_image(image[:, :, :, x : x + 16])
        count[:, :, :, x // 4 : x // 4 + 4] += 1
    upsampled = F.interpolate(total / count, (16, 40), mode="bilinear")
    result = segmenter.segment(pixels, ["bright", "dark"], window=16, stride=12)
    agreement = (result.labels == upsampled.argmax(1)[0].numpy()).mean()
    assert agreement > 0.995
    assert model.calls == [(3, 3, 16, 16)]  # the windows went through the network together


def test_text_banks_are_computed_once() -> None:
    segmenter, model = brightness()
    image = np.zeros((16, 16, 3), np.uint8)
    for _ in range(3):
        segmenter.segment(image, "bright, dark")
    segmenter.segment(image, ["bright", "dark"])
    assert model.texts == 1
    segmenter.segment(image, ["bright", "black"])
    assert model.texts == 2


def test_out_of_memory_halves_the_batch_and_the_result_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (16, 64, 3), dtype=np.uint8)
    expected = brightness()[0].segment(pixels, ["bright", "dark"], window=16, stride=4).labels
    segmenter, model = brightness()
    model.memory = 3
    result = segmenter.segment(pixels, ["bright", "dark"], window=16, stride=4)
    np.testing.assert_array_equal(result.labels, expected)
    assert segmenter.batches.size == 2 and len(caplog.records) == 2  # 8 -> 4 -> 2
    caplog.clear()
    segmenter.segment(pixels, ["bright", "dark"], window=16, stride=4)
    assert not caplog.records
    fresh, model = brightness()
    model.memory = 2
    images = [np.full((16, 16, 3), 40 * index, np.uint8) for index in range(6)] * 3
    assert [r.labels[0, 0] for r in fresh.segment_batch(images, ["bright", "dark"])] == [1, 1, 1, 1, 0, 0] * 3
    model.memory = 0
    with pytest.raises(torch.OutOfMemoryError):
        fresh.segment(pixels, ["bright", "dark"])


@pytest.mark.parametrize(
    "allocator", [lambda: torch.empty(1 << 62, dtype=torch.uint8), lambda: bytearray(1 << 62)], ids=["torch", "Python"]
)
def test_out_of_memory_on_the_cpu_halves_the_batch_too(allocator: Any) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (16, 64, 3), dtype=np.uint8)
    expected = brightness()[0].segment(pixels, ["bright", "dark"], window=16, stride=4).labels
    segmenter, model = brightness()
    model.memory, model.allocator = 3, allocator
    result = segmenter.segment(pixels, ["bright", "dark"], window=16, stride=4)
    np.testing.assert_array_equal(result.labels, expected)
    assert segmenter.batches.size == 2
    model.memory = 0
    with pytest.raises(OVSDinoError, match=r"^out of memory .*smaller short_side") as caught:
        segmenter.segment(pixels, ["bright", "dark"])
    assert "\n" not in str(caught.value)


def test_a_primitive_that_onednn_cannot_make_is_done_without_it(caplog: pytest.LogCaptureFixture) -> None:
    # What oneDNN does under RLIMIT_AS; it keeps the failure, so that halving alone would never end it.
    def onednn() -> None:
        if torch.backends.mkldnn.enabled:
            raise RuntimeError("could not create a primitive")

    pixels = np.random.default_rng(2).integers(0, 256, (16, 64, 3), dtype=np.uint8)
    expected = brightness()[0].segment(pixels, ["bright", "dark"], window=16, stride=4).labels
    segmenter, model = brightness(batch_size=4)
    encode = model.encode_image
    model.encode_image = lambda image: (onednn(), encode(image))[1]  # type: ignore[method-assign]
    result = segmenter.segment(pixels, ["bright", "dark"], window=16, stride=4)
    np.testing.assert_array_equal(result.labels, expected)
    assert segmenter.batches.size == 4 and torch.backends.mkldnn.enabled
    assert caplog.text.count("batches that fail there run without it") == 1


def test_another_runtime_error_is_not_taken_for_memory() -> None:
    segmenter, model = brightness()
    model.memory, model.allocator = 0, lambda: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match="size"):
        segmenter.segment_batch([np.zeros((16, 16, 3), np.uint8)] * 2, ["bright", "dark"])
    assert segmenter.batches.size == 8


def test_a_batch_may_be_a_generator_or_one_array_of_several() -> None:
    segmenter, _ = brightness()
    images = [np.full((16, 16, 3), value, np.uint8) for value in (250, 5)]
    expected = [r.labels for r in segmenter.segment_batch(images, ["bright", "dark"])]
    tensors = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    for several in ((image for image in images), tuple(images), np.stack(images), tensors):
        found = [r.labels for r in segmenter.segment_batch(several, ["bright", "dark"])]
        assert len(found) == 2 and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize(
    "image", [np.zeros((16, 16, 3), np.uint8), torch.zeros(3, 16, 16), "a.png", Image.new("L", (4, 4)), 5, None]
)
def test_one_image_is_refused_as_a_batch(image: Any) -> None:
    with pytest.raises(OVSDinoError, match=r"segment_batch takes a list of images.*for one image use segment"):
        brightness()[0].segment_batch(image, ["bright", "dark"])


def test_a_call_takes_one_image_or_several_in_any_form(tmp_path: Path) -> None:
    segmenter, _ = brightness()
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (250, 5)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    first = tmp_path / "0.png"
    tensor = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    with first.open("rb") as file:
        for one in (first, str(first), first.read_bytes(), io.BytesIO(first.read_bytes()), file, Image.open(first)):
            assert (segmenter(one, "bright, dark").labels == 0).all()  # type: ignore[union-attr]
    for one in (frames[0], tensor[0], tensor[0] / 255):
        assert (segmenter(one, "bright, dark").labels == 0).all()  # type: ignore[union-attr]
    mixed = [first.read_bytes(), tmp_path / "1.png", tensor[0].float() / 255, Image.fromarray(frames[1])]
    for several in (tmp_path, str(tmp_path), frames, tuple(frames), iter(frames), np.stack(frames), tensor, mixed):
        found: Any = segmenter(several, "bright, dark", scores=False)
        assert [int(r.labels[0, 0]) for r in found] == [0, 1] * (len(found) // 2) and len(found) in (2, 4)
    assert len(segmenter(tensor[:1], "bright, dark")) == 1 and segmenter([], "bright, dark") == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"", r"the bytes: the file is empty"),
        (b"\xff\xd8\xff\xe0 nothing more", "the bytes: damaged or cut-off image"),
        (b"GIF89a", "not a JPEG"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.full((3, 8, 8), 255.0), r"float pixels span 255..255; expected 0..1"),
        (torch.full((1, 3, 8, 8), float("nan")), "hold NaN"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\): expected \(H, W\)"),
        ("https://example.org/a.jpg", "addresses are not fetched; download the image"),
        ([[1, 2], [3, 4]], "cannot read an image from list"),
    ],
)
def test_a_bad_image_among_several_is_one_clear_line(bad: Any, words: str) -> None:
    for images in ([np.zeros((8, 8, 3), np.uint8), bad], [bad]):
        with pytest.raises(OVSDinoError, match=words) as caught:
            brightness()[0](images, ["bright", "dark"])
        assert "\n" not in str(caught.value)


def test_blue_first_is_turned_where_it_is_asked_for(nano: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image[:, :, 2] //= 4
    expected = nano.segment(image, CLASSES, partition=True)
    turned = np.ascontiguousarray(image[:, :, ::-1])
    alpha = np.dstack([turned, np.full((64, 64), 255, np.uint8)])
    for frame in (turned, alpha, torch.from_numpy(turned).permute(2, 0, 1), turned.astype(np.float32) / 255):
        prepared = nano.set_image(frame, bgr=True)
        for result in (
            nano.segment(frame, CLASSES, bgr=True, partition=True),
            prepared.segment(CLASSES, partition=True),
        ):
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_array_equal(result.image, image)  # type: ignore[arg-type]
    assert (nano.segment(Image.fromarray(image), CLASSES, bgr=True).image == image).all()  # a PIL image says its order
    (streamed,) = nano.stream([turned], CLASSES, bgr=True)
    assert (streamed.image == image).all()
    assert not np.array_equal(nano.segment(turned, CLASSES, partition=True).labels, expected.labels)


def test_a_short_side_is_of_one_call(nano: Segmenter, picture: np.ndarray) -> None:
    expected = load("nano", "cpu", short_side=96).segment(picture, CLASSES)
    np.testing.assert_array_equal(nano.segment(picture, CLASSES, short_side=96).labels, expected.labels)
    found: Any = nano([picture], CLASSES, short_side=96)
    np.testing.assert_array_equal(found[0].labels, expected.labels)
    assert nano.short_side == 64
    with pytest.raises(OVSDinoError, match=r"short_side is 9000: expected 16..8192 pixels"):
        nano.segment(picture, CLASSES, short_side=9000)


def test_templates_reach_the_text_tower_and_nano_refuses_them() -> None:
    model = Brightness()
    seen: list[Any] = []

    def encode_text(names: Any, **options: Any) -> Tensor:
        seen.append(options)
        return torch.eye(2)[: len(names)]

    model.encode_text = encode_text  # type: ignore[method-assign]
    segmenter = Segmenter(model, templates=["a photo of a {}.", "a {}."])  # type: ignore[arg-type]
    segmenter.segment(np.zeros((16, 16, 3), np.uint8), "bright, dark")
    assert seen == [{"templates": ("a photo of a {}.", "a {}.")}]
    with pytest.raises(OVSDinoError, match=r"has no \{\} for the class name"):
        Segmenter(model, templates=["a photo"])  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="templates: nano reads bare words"):
        load("nano", "cpu", templates=["a photo of a {}."])


@pytest.mark.parametrize("kind", ["array", "view", "gray", "tensor"])
def test_a_result_keeps_its_image_when_the_caller_writes_the_next_frame(kind: str) -> None:
    frame = np.full((16, 16, 3), 7, np.uint8)
    given: Any = {
        "array": frame,
        "view": frame[:8],
        "gray": frame[:, :, 0],
        "tensor": torch.from_numpy(frame).permute(2, 0, 1),
    }[kind]
    result = brightness()[0].segment(given, ["bright", "dark"])
    frame[:] = 200
    assert result.image is not None and (result.image == 7).all()


def test_the_callers_autocast_has_no_effect(nano: Segmenter, picture: np.ndarray) -> None:
    names = ["a word nobody asked for", "sky"]
    with torch.autocast("cpu", torch.bfloat16):
        bank, features, found = nano.encode_text(names), nano.encode_image(picture), nano.segment(picture, CLASSES)
        logits = nano.decode(features, CLASSES)
    fresh = Segmenter(nano.model, short_side=64)
    assert torch.equal(bank, fresh.encode_text(names))
    assert torch.equal(logits, fresh.decode(fresh.encode_image(picture), CLASSES))
    assert found.scores == fresh.segment(picture, CLASSES).scores
    half = Segmenter(nano.model, dtype="bfloat16", short_side=64)
    assert torch.equal(half.encode_text(names), bank)
    with torch.autocast("cpu", enabled=False):
        assert half.encode_image(picture).tokens.dtype == torch.bfloat16


def test_eight_threads_share_the_text_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, _ = brightness()
    monkeypatch.setattr("ovsdino.text_banks.BANKS", 2)
    faults: list[BaseException] = []
    interval = sys.getswitchinterval()

    def encode(first: int) -> None:
        try:
            for index in range(300):
                assert segmenter.encode_text([f"word {(first + index) % 5}", "b"]).shape == (2, 2)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=encode, args=(first,)) for first in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not faults
    assert copy.deepcopy(segmenter).encode_text(["a", "b"]).shape == (2, 2)  # a lock has no copy, a segmenter has


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_nan_or_infinite_are_refused(value: float) -> None:
    segmenter, model = brightness()
    model.decode = lambda features, text: torch.full((len(features), 2, 4, 4), 1.0).fill_(value)  # type: ignore[method-assign]
    with pytest.raises(OVSDinoError, match="NaN or infinite logits"):
        segmenter.segment(np.zeros((16, 16, 3), np.uint8), ["bright", "dark"])


def test_a_batch_of_mixed_sizes_equals_one_by_one(nano: Segmenter, picture: np.ndarray) -> None:
    images = [picture, picture[:, :70], np.ascontiguousarray(picture[:, ::-1])]
    batch = nano.segment_batch(images, CLASSES)
    for image, result in zip(images, batch, strict=True):
        single = nano.segment(image, CLASSES)
        assert result.labels.shape == image.shape[:2]
        assert (result.labels == single.labels).mean() > 0.999
    assert nano.segment_batch([], CLASSES) == []


def test_images_of_equal_size_share_a_forward() -> None:
    segmenter, model = brightness(batch_size=2)
    images = [np.zeros((16, 16, 3), np.uint8)] * 3 + [np.zeros((16, 32, 3), np.uint8)]
    segmenter.segment_batch(images, ["bright", "dark"])
    assert model.calls == [(2, 3, 16, 16), (1, 3, 16, 16), (1, 3, 16, 32)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(90, 120, (64, 80)), (64, 64, (64, 64)), (1, 1, (64, 64)), (1, 2000, (16, 288)), (2000, 1, (288, 16))],
)
def test_inference_size_keeps_the_ratio_and_is_bounded(
    nano: Segmenter, height: int, width: int, expected: tuple[int, int]
) -> None:
    # 64 * 120 / 90 = 85.3 -> 80; a 1x2000 strip is scaled to a long side of 64 * 2048 / 448 = 292.6 -> 288
    assert nano.inference_size(height, width) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (33, 17)])
def test_tiny_and_thin_images_are_labelled(nano: Segmenter, shape: tuple[int, int]) -> None:
    assert nano.segment(np.zeros((*shape, 3), np.uint8), CLASSES).labels.shape == shape


def test_encode_and_decode_give_the_logits_of_the_model(nano: Segmenter, picture: np.ndarray) -> None:
    features = nano.encode_image(picture)
    expected = plain_logits(nano, picture, (64, 80), CLASSES)
    torch.testing.assert_close(nano.decode(features, CLASSES), expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(nano.decode(features, nano.encode_text(CLASSES)), nano.decode(features, CLASSES))


def test_bfloat16_agrees_with_float32(picture: np.ndarray, nano: Segmenter) -> None:
    half = Segmenter(copy.deepcopy(nano.model), dtype="bfloat16", short_side=64)
    agreement = (half.segment(picture, CLASSES).labels == nano.segment(picture, CLASSES).labels).mean()
    assert agreement > 0.9


def test_a_single_class_labels_everything_where_nothing_competes(nano: Segmenter, picture: np.ndarray) -> None:
    result = nano.segment(picture, ["road"], partition=True)
    assert result.fractions == (1.0,) and result.scores == pytest.approx((1.0,))


def test_many_classes_need_wider_labels(nano: Segmenter, picture: np.ndarray) -> None:
    names = [f"thing {i}" for i in range(300)]
    result = nano.segment(picture, names, partition=True)
    assert result.labels.dtype == np.int16 and len(result.fractions) == 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": 0.0}, "between 0 and 1"),
        ({"background": 1.5}, "between 0 and 1"),
        ({"background": float("nan")}, "between 0 and 1"),
        ({"window": 50}, "multiple of 16, for instance 48"),
        ({"window": 0}, "multiple of 16"),
        ({"window": 64, "stride": 5}, "stride is 5"),
        ({"window": 64, "stride": 0}, "stride is 0"),
        ({"window": 64, "stride": 80}, "stride is 80"),
        ({"stride": 32}, "without window"),
    ],
)
def test_bad_numbers_are_refused_with_the_remedy(
    nano: Segmenter, picture: np.ndarray, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OVSDinoError, match=words):
        nano.segment(picture, CLASSES, **options)


def test_background_needs_two_classes(nano: Segmenter, picture: np.ndarray) -> None:
    with pytest.raises(OVSDinoError, match="two classes"):
        nano.segment(picture, ["road"], background=True, partition=True)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(OVSDinoError, match="device"):
        check_device(device)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"short_side": 3}, {"batch_size": 0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OVSDinoError):
        brightness(**options)


def test_unknown_model_is_refused_with_the_list() -> None:
    with pytest.raises(OVSDinoError, match="nano"):
        load("huge")


def test_the_public_names_resolve() -> None:
    for name in ovsdino.__all__:
        assert getattr(ovsdino, name) is not None
    assert set(ovsdino.__all__) <= set(dir(ovsdino))
    with pytest.raises(AttributeError):
        ovsdino.nothing  # noqa: B018
    result = ovsdino.segment(np.zeros((8, 8, 3), np.uint8), "road, sky")
    assert isinstance(result, ovsdino.Segmentation) and result.names == ("road", "sky")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_cuda_agrees_with_the_cpu(nano: Segmenter, picture: np.ndarray, dtype: Any) -> None:
    device = load("nano", "cuda", dtype=dtype, short_side=64)
    agreement = (device.segment(picture, CLASSES).labels == nano.segment(picture, CLASSES).labels).mean()
    assert agreement > (0.98 if dtype == "float32" else 0.9)


def test_confidences_are_kept_on_request(nano: Segmenter, picture: np.ndarray) -> None:
    logits = F.interpolate(plain_logits(nano, picture, (64, 80), CLASSES), (90, 120), mode="bilinear")
    assert nano.segment(picture, CLASSES).confidence is None
    for scores in (True, False):
        result = nano.segment(picture, CLASSES, scores=scores, confidence=True, partition=True)
        assert result.confidence is not None and result.confidence.dtype == np.float16
        np.testing.assert_allclose(result.confidence, logits.softmax(1).amax(1)[0].numpy(), atol=2e-3)
    two = nano.segment_batch([picture, picture], CLASSES, confidence=True)
    assert two[1].confidence is not None


def test_an_image_unlike_the_known_ones_is_said_once(picture: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    segmenter = Segmenter(load("nano", "cpu").model, short_side=64)
    segmenter.model.known = {}
    assert segmenter.segment(picture, CLASSES).novelty is None
    random = np.random.default_rng(0)
    near = [np.clip(picture * light, 0, 255).astype(np.uint8) for light in random.uniform(0.8, 1.2, 24)]
    pooled = np.concatenate([segmenter.pooled(segmenter.encode_image(image)) for image in near])
    segmenter.model.known = {"near": Gaussian.fit(pooled)}
    assert segmenter.segment(picture, CLASSES).to_dict()["novelty"] < 1.5
    assert not caplog.records
    strange = 255 - picture.transpose(1, 0, 2)
    for options in ({}, {"window": 64}):
        assert segmenter.segment(strange, CLASSES, **options).novelty > 1.5  # type: ignore[operator]
    assert [record.getMessage()[:35] for record in caplog.records] == ["an image is unlike those that nano "]
    both = segmenter.segment_batch([picture, strange], CLASSES)
    assert both[0].novelty < 1.5 < both[1].novelty  # type: ignore[operator]
