"""The node under a real rclpy: its topics, quality of service, parameters and diagnostics.

rclpy and vision_msgs are ROS 2's own and no dependency of this package; without them the work is tested in test_bag.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovsdino.edge import EdgeSegmenter
from ovsdino.errors import OVSDinoError
from ovsdino.stream.words import WordReader

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
pytest.importorskip("vision_msgs.msg", reason="needs ROS 2's vision_msgs", exc_type=ImportError)

from diagnostic_msgs.msg import DiagnosticArray
from ovsdino_ros.node import LATCHED, SegmentationNode, make_message
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import LabelInfo

WORDS = "road, car, sky"
FRAME = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


class Robot:
    """A camera and a reader of everything that the node sends."""

    def __init__(self, node: SegmentationNode) -> None:
        self.node, self.other = node, rclpy.create_node("robot")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)
        self.executor.add_node(self.other)
        self.camera = self.other.create_publisher(Image, "image", 10)
        self.got: dict[str, list[Any]] = {}
        for topic, kind, qos in (
            ("segmentation/mask", Image, qos_profile_sensor_data),  # as Nav2's layer subscribes
            ("segmentation/confidence", Image, 10),  # as RViz does
            ("segmentation/overlay", Image, 10),
            ("segmentation/label_info", LabelInfo, LATCHED),
            ("/diagnostics", DiagnosticArray, 10),
        ):
            self.other.create_subscription(kind, topic, self.got.setdefault(topic, []).append, qos)

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, {topic: len(messages) for topic, messages in self.got.items()}
            self.executor.spin_once(timeout_sec=0.05)

    def show(self, frame: np.ndarray) -> Any:
        """Send a frame and return its mask, with the stamp that was sent."""
        masks = self.got["segmentation/mask"]
        before, stamp = len(masks), self.other.get_clock().now().to_msg()
        header = make_message("std_msgs/msg/Header", stamp=stamp, frame_id="camera")
        image = make_message(
            "sensor_msgs/msg/Image",
            header=header,
            height=frame.shape[0],
            width=frame.shape[1],
            encoding="rgb8",
            is_bigendian=0,
            step=frame.shape[1] * 3,
            data=frame.reshape(-1),
        )
        self.camera.publish(image)
        self.until(lambda: len(masks) > before)
        return masks[-1], header


def node_of(**values: Any) -> SegmentationNode:
    return SegmentationNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])


@pytest.fixture
def robot(engine: Path) -> Iterator[Robot]:
    node = node_of(engine=str(engine), words=WORDS, overlay=True, threads=1, diagnostics_s=0.2, deadline_ms=1e-3)
    robot = Robot(node)
    robot.until(lambda: robot.camera.get_subscription_count() == 1 and robot.node.count_subscribers("image") == 1)
    robot.until(lambda: bool(robot.got["segmentation/label_info"]))  # sent before anybody listened
    yield robot
    node.close()
    robot.executor.shutdown()
    robot.other.destroy_node()
    node.destroy_node()


def names(message: Any) -> list[str]:
    return [one.class_name for one in message.class_map]


def told(robot: Robot) -> dict[str, str]:
    """The last diagnostics."""
    return {one.key: one.value for one in robot.got["/diagnostics"][-1].status[0].values}


def test_masks_words_and_diagnostics_over_dds(robot: Robot, engine: Path, reader: WordReader) -> None:
    assert names(robot.got["segmentation/label_info"][0]) == ["road", "car", "sky", "background"]
    with EdgeSegmenter(engine, reader(WORDS), threads=1) as segmenter:
        for words in (WORDS, "grass, wall"):
            if words != WORDS:
                (answer,) = robot.node.set_parameters([Parameter("words", value=words)])
                assert answer.successful
                segmenter.set_bank(reader(words))
            mask, header = robot.show(FRAME)
            expected = segmenter.segment(FRAME)
            assert np.array_equal(np.reshape(mask.data, FRAME.shape[:2]), expected.labels)
            assert (mask.header, mask.encoding) == (header, "mono8")
    robot.until(lambda: len(robot.got["segmentation/label_info"]) == 2)
    assert names(robot.got["segmentation/label_info"][1]) == ["grass", "wall", "background"]
    robot.until(lambda: len(robot.got["segmentation/overlay"]) == len(robot.got["segmentation/confidence"]) == 2)
    assert robot.got["segmentation/overlay"][1].encoding == "rgb8"
    robot.until(lambda: told(robot)["frames"] == "2")
    assert told(robot)["stale"] == "2" and told(robot)["words"] == "grass, wall"
    robot.until(lambda: robot.got["/diagnostics"][-1].status[0].level == b"\x03")  # no more images


def test_a_parameter_that_cannot_be_taken_is_refused(robot: Robot) -> None:
    for name, value, told in (
        ("words", "road,,car", "empty class name"),
        ("bank", "missing.safetensors", "cannot read the text bank"),
        ("engine", "other.onnx", "cannot be set while the node runs"),
    ):
        (answer,) = robot.node.set_parameters([Parameter(name, value=value)])
        assert not answer.successful and told in answer.reason
    assert robot.node.get_parameter("words").value == WORDS
    mask, _ = robot.show(FRAME)
    assert mask.height == len(FRAME)


def test_a_node_without_an_engine_says_so() -> None:
    with pytest.raises(OVSDinoError, match="engine, and bank or words"):
        node_of(words="road")
