"""The ROS 2 node: subscriptions, publishers and parameters around `ovsdino_ros.logic`.

    ros2 run ovsdino_ros segmentation --ros-args -p engine:=nano.onnx -p bank:=bank.safetensors -r image:=/camera/image

Images are taken as they come and segmented in a thread of their own, the newest first; one that is replaced before its
turn counts as dropped.
"""

from __future__ import annotations

import array
import sys
import threading
from dataclasses import dataclass
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import LabelInfo, VisionClass

from ovsdino.edge import EdgeSegmenter
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.stream.capture import LatestFrame
from ovsdino.stream.words import WordReader
from ovsdino_ros.logic import SegmentationLogic, Settings

__all__ = ["SegmentationNode", "main", "make_message"]

TYPES = {
    "builtin_interfaces/msg/Time": Time,
    "diagnostic_msgs/msg/DiagnosticArray": DiagnosticArray,
    "diagnostic_msgs/msg/DiagnosticStatus": DiagnosticStatus,
    "diagnostic_msgs/msg/KeyValue": KeyValue,
    "sensor_msgs/msg/Image": Image,
    "std_msgs/msg/Header": Header,
    "vision_msgs/msg/LabelInfo": LabelInfo,
    "vision_msgs/msg/VisionClass": VisionClass,
}
# A camera's driver sends best effort or reliable; a best-effort reader takes both.
CAMERA = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# A reliable writer serves Nav2, which reads best effort, and RViz, which reads reliable.
MASKS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
PARAMETERS: dict[str, tuple[Any, str]] = {
    "engine": ("", "engine or .onnx file, with its sidecar"),
    "bank": ("", "text bank made by `ovsdino text`; can be set while the node runs"),
    "words": ("", "words in place of a bank: road,car|automobile,sky; can be set while the node runs"),
    "image_transport": ("raw", "raw or compressed: the type of the images"),
    "background": (0.0, "probability below which a pixel is unlabeled; 0: as the bank was made"),
    "unlabeled_id": (-1, "id of unlabeled pixels; -1: the number of words; 255: UNLABELED of vision_msgs"),
    "deadline_ms": (0.0, "age of an image beyond which its mask is stale; 0: none"),
    "overlay": (False, "also publish pictures of the labels"),
    "threads": (0, "threads on the CPU; 0: all"),
    "device": (0, "index of the CUDA device"),
    "diagnostics_s": (1.0, "seconds between two diagnostics"),
}


def make_message(kind: str, /, **fields: Any) -> Any:
    """Return a message of rclpy; see `ovsdino_ros.logic.MakeMessage`."""
    if "data" in fields:
        fields["data"] = array.array("B", fields["data"].tobytes())  # a list is checked byte by byte: 40 ms an image
    if "level" in fields:
        fields["level"] = bytes([fields["level"]])
    return TYPES[kind](**fields)


@dataclass(frozen=True)
class _Arrival:
    sequence: int
    message: Any


class SegmentationNode(Node):
    """Segment a topic of images by words.

    Raises:
        OVSDinoError: A parameter is missing or wrong, or the model cannot be opened here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("segmentation", **options)
        values = {
            name: self.declare_parameter(name, default, ParameterDescriptor(description=text)).value
            for name, (default, text) in PARAMETERS.items()
        }
        if not values["engine"] or not (values["bank"] or values["words"]):
            raise OVSDinoError("give the parameters engine, and bank or words")
        if values["image_transport"] not in ("raw", "compressed"):
            raise OVSDinoError(f"image_transport is {one_line(values['image_transport'], 40)!r}: raw or compressed")
        self._logic = self._opened(values)
        self._slot: LatestFrame[_Arrival] = LatestFrame()
        self._arrived = 0
        self._label_info = self.create_publisher(LabelInfo, "segmentation/label_info", LATCHED)
        self._mask = self.create_publisher(Image, "segmentation/mask", MASKS)
        self._confidence = self.create_publisher(Image, "segmentation/confidence", MASKS)
        self._overlay = self.create_publisher(Image, "segmentation/overlay", MASKS) if values["overlay"] else None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        now = self.get_clock().now().to_msg()
        self._label_info.publish(self._logic.warm_up(make_message("std_msgs/msg/Header", stamp=now)))
        self._stop = threading.Event()
        self._worker = threading.Thread(target=self._work, name="segmentation", daemon=True)
        self._worker.start()
        self.add_on_set_parameters_callback(self._on_parameters)
        compressed = values["image_transport"] == "compressed"
        self.create_subscription(
            CompressedImage if compressed else Image, "image/compressed" if compressed else "image", self._take, CAMERA
        )
        self.create_timer(values["diagnostics_s"], self._tell)

    def close(self) -> None:
        """End the worker and free the model."""
        self._stop.set()
        self._slot.close()
        self._worker.join()
        self._segmenter.close()

    def _opened(self, values: dict[str, Any]) -> SegmentationLogic:
        from ovsdino.edge.sidecar import Sidecar

        background = values["background"] or None
        reader = WordReader(Sidecar.load(values["engine"]))
        self._segmenter = EdgeSegmenter(
            values["engine"],
            reader(values["words"]) if values["words"] else values["bank"],
            background=background,
            threads=values["threads"] or None,
            device=values["device"],
        )
        settings = Settings(
            deadline_ms=values["deadline_ms"],
            overlay=values["overlay"],
            unlabeled_id=values["unlabeled_id"],
            threshold=background or 0.0,
        )
        return SegmentationLogic(self._segmenter, make_message, settings, reader)

    def _take(self, message: Any) -> None:
        self._arrived += 1
        self._slot.put(_Arrival(self._arrived, message))

    def _work(self) -> None:
        while not self._stop.is_set():
            arrival = self._slot.take(0.5)
            if arrival is None:
                continue
            outputs = self._logic.process(arrival.message, lambda: self.get_clock().now().nanoseconds)
            if outputs is None or self._stop.is_set():
                continue
            if outputs.label_info is not None:
                self._label_info.publish(outputs.label_info)
            self._mask.publish(outputs.mask)
            self._confidence.publish(outputs.confidence)
            if self._overlay is not None and outputs.overlay is not None:
                self._overlay.publish(outputs.overlay)

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        """Take other words; refuse words that cannot be read, and what cannot change while the node runs."""
        try:
            for parameter in parameters:
                if parameter.name == "words" and parameter.value:
                    self._logic.set_words(parameter.value)
                elif parameter.name == "bank" and parameter.value:
                    self._logic.set_bank(parameter.value)
                elif parameter.name in PARAMETERS:
                    raise OVSDinoError(f"{parameter.name} cannot be set while the node runs: start it again")
        except OVSDinoError as error:
            return SetParametersResult(successful=False, reason=one_line(error))
        return SetParametersResult(successful=True)

    def _tell(self) -> None:
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(self._logic.diagnostics(stamp, dropped=self._slot.dropped, silent=True))


def main(arguments: list[str] | None = None) -> int:
    """Run the node until it is interrupted; return 0, or 2 with one line on stderr."""
    rclpy.init(args=arguments)
    try:
        node = SegmentationNode()
    except OVSDinoError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
