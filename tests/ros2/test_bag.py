"""A bag of CamVid frames through the node's work: real bags, written and read by rosbags."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.edge import EdgeSegmenter, TextBank
from ovsdino.errors import OVSDinoError
from ovsdino.stream.words import WordReader

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'ovsdino[ros]'")

from ovsdino_ros.bag import bag_messages, main, run_bag
from ovsdino_ros.logic import SegmentationLogic, Settings
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import StoragePlugin, Writer

STREET = "sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist"
OTHERS = "road, car"
START, STEP = 1_700_000_000_123_456_789, 33_333_333  # nanoseconds


@pytest.fixture(scope="module")
def frames(data_root: Path) -> list[np.ndarray]:
    with zipfile.ZipFile(data_root / "camvid_val.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("images/"))
        return [np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]


def write_bag(path: Path, frames: list[np.ndarray], *, mcap: bool = False, compressed: bool = False) -> None:
    """Write frames as a camera's driver does: bgr8 with 5 bytes to spare in a row, or PNG."""
    store = bag_messages()
    kind = "sensor_msgs/msg/CompressedImage" if compressed else "sensor_msgs/msg/Image"
    plugin = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection("/camera/image", kind, typestore=store)
        for number, frame in enumerate(frames):
            header = header_of(store, number)
            if compressed:
                file = io.BytesIO()
                Image.fromarray(frame).save(file, "PNG")
                data = np.frombuffer(file.getvalue(), np.uint8)
                message = store.types[kind](header=header, format="png", data=data)
            else:
                rows = np.pad(frame[:, :, ::-1].reshape(len(frame), -1), ((0, 0), (0, 5)))
                message = store.types[kind](
                    header=header,
                    height=frame.shape[0],
                    width=frame.shape[1],
                    encoding="bgr8",
                    is_bigendian=0,
                    step=rows.shape[1],
                    data=rows.reshape(-1),
                )
            writer.write(connection, START + number * STEP + 7, store.serialize_cdr(message, kind))


def header_of(store: Any, number: int) -> Any:
    seconds, nanoseconds = divmod(START + number * STEP, 1_000_000_000)
    stamp = store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id="front_camera")


def read_bag(path: Path) -> dict[str, list[Any]]:
    """Every message of a bag by topic."""
    found: dict[str, list[Any]] = {}
    with AnyReader([path], default_typestore=bag_messages()) as bag:
        for connection, _, raw in bag.messages():
            found.setdefault(connection.topic, []).append(bag.deserialize(raw, connection.msgtype))
    return found


def pixels_of(message: Any) -> np.ndarray:
    assert message.encoding == "mono8" and message.step == message.width
    return message.data.reshape(message.height, message.width)


def check_drive(engine: Path, reader: WordReader, frames: list[np.ndarray], folder: Path) -> None:
    """Run a bag with other words from its middle on, and compare every message with `EdgeSegmenter`."""
    write_bag(folder / "drive", frames)
    half = len(frames) // 2
    changes = [((half - 0.5) * STEP / 1e9, lambda logic: logic.set_words(OTHERS))]
    with EdgeSegmenter(engine, reader(STREET), threads=1, runtime="onnxruntime") as segmenter:
        counts = run_bag(folder / "drive", folder / "masks", segmenter, encode=reader, changes=changes)
    assert counts == {"images": len(frames), "masks": len(frames), "failed": 0, "label_infos": 2}
    found = read_bag(folder / "masks")
    names = [[one.class_name for one in message.class_map] for message in found["/segmentation/label_info"]]
    street = [word.strip() for word in STREET.split(",")]
    assert names == [[*street, "background"], ["road", "car", "background"]]
    ids = [one.class_id for one in found["/segmentation/label_info"][1].class_map]
    assert ids == [0, 1, 2]
    stamps = [START + number * STEP for number in range(len(frames))]
    for topic in ("/segmentation/mask", "/segmentation/confidence"):
        headers = [message.header for message in found[topic]]
        assert [one.stamp.sec * 1_000_000_000 + one.stamp.nanosec for one in headers] == stamps
        assert {one.frame_id for one in headers} == {"front_camera"}
    told = [one.header.stamp.nanosec for one in found["/segmentation/label_info"]]
    assert told == [stamps[place] % 1_000_000_000 for place in (0, half)]  # with the first mask that they belong to
    with EdgeSegmenter(engine, reader(STREET), threads=1, runtime="onnxruntime") as segmenter:
        for number, frame in enumerate(frames):
            if number == half:
                segmenter.set_bank(reader(OTHERS))
            expected = segmenter.segment(frame, confidence=True)
            assert np.array_equal(pixels_of(found["/segmentation/mask"][number]), expected.labels)
            share = pixels_of(found["/segmentation/confidence"][number]) / 255
            assert np.abs(share - expected.confidence.astype(np.float32)).max() <= 0.5 / 255 + 1e-6
    status = found["/diagnostics"][0].status[0]
    values = {one.key: one.value for one in status.values}
    assert values["frames"] == "1" and values["dropped"] == values["stale"] == "0" and float(values["age_ms"]) > 0


def test_masks_names_and_stamps_of_a_drive(
    engine: Path, reader: WordReader, frames: list[np.ndarray], tmp_path: Path
) -> None:
    check_drive(engine, reader, frames[:10], tmp_path)


@pytest.mark.slow
def test_masks_names_and_stamps_of_a_hundred_frames(
    engine: Path, reader: WordReader, frames: list[np.ndarray], tmp_path: Path
) -> None:
    assert len(frames) >= 100
    check_drive(engine, reader, frames[:100], tmp_path)


@pytest.fixture
def files(engine: Path, reader: WordReader, frames: list[np.ndarray], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A bag of two compressed frames in MCAP, and two banks."""
    write_bag(tmp_path / "drive", frames[:2], mcap=True, compressed=True)
    reader(STREET).save(tmp_path / "street.safetensors")
    reader(OTHERS).save(tmp_path / "others.safetensors")
    yield {"engine": str(engine), **{name: str(tmp_path / name) for name in ("drive", "masks")}}


def test_the_command_reads_and_writes_mcap(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    banks = [str(tmp_path / f"{name}.safetensors") for name in ("street", "others")]
    line = [files["drive"], "--engine", files["engine"], "--bank", banks[0], "--output", files["masks"]]
    assert main([*line, "--mcap", "--overlay", "--unlabeled-id", "255", "--bank-at", "0.01", banks[1]]) == 0
    assert capsys.readouterr().out == "images 2, masks 2, failed 0, label_infos 2\n"
    found = read_bag(tmp_path / "masks")
    assert [len(found[f"/segmentation/{name}"]) for name in ("mask", "confidence", "overlay", "label_info")] == [2] * 4
    assert found["/segmentation/label_info"][1].class_map[-1].class_id == 255
    assert set(np.unique(pixels_of(found["/segmentation/mask"][1]))) <= {0, 1, 255}
    with AnyReader([tmp_path / "masks"], default_typestore=bag_messages()) as bag:
        qos = {one.topic: one.ext.offered_qos_profiles[0] for one in bag.connections}
    latched = qos["/segmentation/label_info"]
    assert (latched.reliability, latched.durability) == (QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL)
    assert main(line) == 2
    assert "error:" in capsys.readouterr().err  # the output is there
    missing = [files["drive"], "--topic", "/depth", *line[1:-1], str(tmp_path / "new")]
    assert main(missing) == 2
    assert "/camera/image" in capsys.readouterr().err


def test_refused_words_and_damaged_images_leave_the_rest(
    engine: Path, reader: WordReader, frames: list[np.ndarray]
) -> None:
    store = bag_messages()

    def make(kind: str, /, **fields: Any) -> Any:
        return store.types[kind](**fields)

    with EdgeSegmenter(engine, reader(OTHERS), threads=1, runtime="onnxruntime") as segmenter:
        logic = SegmentationLogic(segmenter, make, Settings(deadline_ms=10), reader)
        with pytest.raises(OVSDinoError, match="empty class name"):
            logic.set_words("road,,car")
        header = header_of(store, 0)
        assert [one.class_name for one in logic.warm_up(header).class_map] == ["road", "car", "background"]
        rows = frames[0].reshape(len(frames[0]), -1)
        size = {"height": frames[0].shape[0], "width": frames[0].shape[1], "encoding": "rgb8", "is_bigendian": 0}
        image = make("sensor_msgs/msg/Image", header=header, **size, step=rows.shape[1], data=rows.reshape(-1))
        outputs = logic.process(image, lambda: START + 50_000_000)
        assert outputs is not None and outputs.label_info is None  # told at the start
        assert outputs.stale and outputs.age_ms == 50
        cut = make("sensor_msgs/msg/Image", header=header, **size, step=rows.shape[1], data=rows.reshape(-1)[:-9])
        assert logic.process(cut, lambda: START) is None
        status = logic.diagnostics(header.stamp, dropped=3).status[0]
        assert status.level == 1 and "lacks 9 of its bytes" in status.message
        values = {one.key: one.value for one in status.values}
        assert {name: values[name] for name in ("frames", "stale", "failed", "dropped", "age_ms", "words")} == {
            "frames": "1",
            "stale": "1",
            "failed": "1",
            "dropped": "3",
            "age_ms": "50.0",
            "words": "road, car",
        }
        assert logic.diagnostics(header.stamp, silent=True).status[0].level == 3


def test_more_classes_than_a_mask_has_ids_are_refused(engine: Path, reader: WordReader) -> None:
    rows = np.eye(300, reader(OTHERS).text.shape[1], dtype=np.float32)[:256]
    bank = reader(OTHERS)
    many = TextBank(names=tuple(f"word {n}" for n in range(256)), text=rows, model=bank.model, weights=bank.weights)
    with EdgeSegmenter(engine, bank, threads=1, runtime="onnxruntime") as segmenter:
        logic = SegmentationLogic(segmenter, lambda kind, **fields: None)
        with pytest.raises(OVSDinoError, match="256 classes: a mono8 mask with unlabeled pixels holds at most 255"):
            logic.set_bank(many)
        assert segmenter.names == ("road", "car")
