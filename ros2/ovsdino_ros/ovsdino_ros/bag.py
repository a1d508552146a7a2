"""Run the node's work over a bag: images in, a bag of masks, confidence and class names out. No ROS is needed.

    pip install rosbags
    python -m ovsdino_ros.bag drive --engine nano.onnx --bank bank.safetensors --output masks

Bags of ROS 2 in SQLite or MCAP are read and written. The clock of the ages is the stamps': an image is taken to arrive
when it was taken, and its age is the time that its mask took.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ovsdino.edge import EdgeSegmenter
from ovsdino.errors import OVSDinoError, one_line
from ovsdino_ros.logic import SegmentationLogic, Settings, nanoseconds

__all__ = ["Change", "bag_messages", "main", "run_bag"]

Change = tuple[float, Callable[[SegmentationLogic], None]]  # seconds after the first image, and what is done then

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
REPORT_S = 1.0  # of the bag's time, between two diagnostics
VISION_MSGS = {
    "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name\n",
    "vision_msgs/msg/LabelInfo": ("std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n"),
}
OUTPUTS = {
    "segmentation/label_info": "vision_msgs/msg/LabelInfo",
    "segmentation/mask": "sensor_msgs/msg/Image",
    "segmentation/confidence": "sensor_msgs/msg/Image",
    "segmentation/overlay": "sensor_msgs/msg/Image",
    "diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}


def bag_messages() -> Any:
    """Return rosbags' store of the message types of ROS 2 Humble, with those of `vision_msgs` that are used here.

    Raises:
        OVSDinoError: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise OVSDinoError("bags need rosbags: pip install rosbags") from error
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in VISION_MSGS.items():
        store.register(get_types_from_msg(text, name))
    return store


def run_bag(
    source: Path,
    output: Path,
    segmenter: EdgeSegmenter,
    *,
    topic: str | None = None,
    settings: Settings | None = None,
    encode: Callable[[str], Any] | None = None,
    changes: Sequence[Change] = (),
    mcap: bool = False,
) -> dict[str, int]:
    """Segment the images of a bag into another bag.

    Args:
        source: Folder of the bag.
        output: Folder of the new bag; it must not be there.
        segmenter: The model with its words.
        topic: Topic of the images. Default: the only one that has images.
        settings: See `Settings`.
        encode: See `SegmentationLogic`.
        changes: Things to do in mid bag, such as other words; in the order of their times.
        mcap: Write MCAP and not SQLite.

    Returns:
        Counts: "images", "masks", "failed", "label_infos".

    Raises:
        OVSDinoError: rosbags is missing, a bag cannot be read or written, or no topic has images.
    """
    store = bag_messages()
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

    def make(kind: str, /, **fields: Any) -> Any:
        return store.types[kind](**fields)

    logic = SegmentationLogic(segmenter, make, settings, encode)
    waiting = list(changes)
    counts = dict.fromkeys(("images", "masks", "failed", "label_infos"), 0)
    try:
        with (
            AnyReader([source], default_typestore=store) as reader,
            Writer(output, version=9, storage_plugin=StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3) as writer,
        ):
            chosen = _images(reader, topic)
            publish = _publisher(writer, store, settings is not None and settings.overlay)
            first: int | None = None
            reported = 0
            for connection, stamp, raw in reader.messages(connections=chosen):
                first = stamp if first is None else first
                while waiting and (stamp - first) / 1e9 >= waiting[0][0]:
                    waiting.pop(0)[1](logic)
                message = reader.deserialize(raw, connection.msgtype)
                begun, taken = time.monotonic_ns(), nanoseconds(message.header.stamp)
                outputs = logic.process(message, lambda: taken + time.monotonic_ns() - begun)  # noqa: B023
                counts["images"] += 1
                if outputs is None:
                    counts["failed"] += 1
                else:
                    counts["masks"] += 1
                    counts["label_infos"] += outputs.label_info is not None
                    publish("segmentation/label_info", stamp, outputs.label_info)
                    publish("segmentation/mask", stamp, outputs.mask)
                    publish("segmentation/confidence", stamp, outputs.confidence)
                    publish("segmentation/overlay", stamp, outputs.overlay)
                if stamp - reported >= REPORT_S * 1e9:
                    reported = stamp
                    publish("diagnostics", stamp, logic.diagnostics(message.header.stamp))
    except (AnyReaderError, WriterError, OSError) as error:
        raise OVSDinoError(f"{one_line(source)} -> {one_line(output)}: {one_line(error)}") from error
    return counts


def _images(reader: Any, topic: str | None) -> list[Any]:
    """Return the connections of the topic of the images."""
    found = {one.topic for one in reader.connections if one.msgtype in IMAGES}
    if topic is None and len(found) == 1:
        (topic,) = found
    if topic not in found:
        told = ", ".join(sorted(found)) or "none"
        raise OVSDinoError(f"--topic {topic or 'is missing'}: topics of this bag that have images: {told}")
    return [one for one in reader.connections if one.topic == topic and one.msgtype in IMAGES]


def _publisher(writer: Any, store: Any, overlay: bool) -> Callable[[str, int, Any], None]:
    """Return a function that writes a message to a topic; None is not written."""
    connections = {
        name: writer.add_connection(
            f"/{name}",
            kind,
            typestore=store,
            offered_qos_profiles=[_qos(latched=name == "segmentation/label_info")],
        )
        for name, kind in OUTPUTS.items()
        if overlay or name != "segmentation/overlay"
    }

    def publish(name: str, stamp: int, message: Any | None) -> None:
        if message is not None:
            writer.write(connections[name], stamp, store.serialize_cdr(message, OUTPUTS[name]))

    return publish


def _qos(latched: bool) -> Any:
    """Return the node's quality of service: reliable, and for class names transient local."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(2147483647, 4294967295)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="ovsdino_ros.bag", description="Segment the images of a ROS 2 bag.")
    parser.add_argument("bag", type=Path, help="folder of the bag")
    parser.add_argument("--engine", required=True, help="engine or .onnx file, with its sidecar")
    parser.add_argument("--bank", required=True, help="text bank made by `ovsdino text`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new bag")
    parser.add_argument("--topic", help="topic of the images; default: the only one that has images")
    parser.add_argument(
        "--bank-at",
        nargs=2,
        action="append",
        default=[],
        metavar=("SECONDS", "BANK"),
        help="take another bank so many seconds after the first image",
    )
    parser.add_argument("--background", type=float, help="leave pixels less certain than this (0..1) unlabeled")
    parser.add_argument("--unlabeled-id", type=int, default=-1, help="id of unlabeled pixels; default: number of words")
    parser.add_argument("--deadline-ms", type=float, default=0.0, help="age beyond which a mask is stale")
    parser.add_argument("--overlay", action="store_true", help="also write pictures of the labels")
    parser.add_argument("--mcap", action="store_true", help="write MCAP and not SQLite")
    options = parser.parse_args(arguments)
    try:
        settings = Settings(
            deadline_ms=options.deadline_ms,
            overlay=options.overlay,
            unlabeled_id=options.unlabeled_id,
            threshold=options.background or 0.0,
        )
        changes: list[Change] = sorted(
            ((_seconds(at), lambda logic, path=path: logic.set_bank(path)) for at, path in options.bank_at),
            key=lambda change: change[0],
        )
        with EdgeSegmenter(options.engine, options.bank, background=options.background) as segmenter:
            counts = run_bag(
                options.bag,
                options.output,
                segmenter,
                topic=options.topic,
                settings=settings,
                changes=changes,
                mcap=options.mcap,
            )
    except OVSDinoError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OVSDinoError(f"--bank-at {one_line(text, 40)}: expected a number of seconds") from error


if __name__ == "__main__":
    sys.exit(main())
