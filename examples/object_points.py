# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What comes after the segmentation: the points of the object, cut out of the depth image by `~/mask`.

    python examples/object_points.py --ros-args -r image:=/camera/color/image_raw \
        -r depth:=/camera/aligned_depth_to_color/image_raw -r camera_info:=/camera/color/camera_info \
        -r mask:=/segment_node/mask

Shows the contract that pose estimators such as FoundationPose need: colour image, depth image, camera_info and mask of
one moment. All four are joined by their exact stamp, since the node sends its results with the header of the frame they
came from. A mask comes later than its frame by the time that the network takes; until then the frames are kept.

Depth has to be registered to the colour image (same size, same camera): 16UC1 in millimetres or 32FC1 in metres
(REP-118).

Published: `~/points` (sensor_msgs/PointCloud2, x y z in metres in the camera's optical frame, rgb), and the four
messages again, together, as `~/synced/image`, `~/synced/depth` (32FC1), `~/synced/camera_info`, `~/synced/mask`, for
consumers that wait for the mask less long. Nothing is made that nobody listens to.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from ocdit_ros.node.images import ImageError, to_rgb
from ocdit_ros.node.messages import image_message
from ocdit_ros.node.process import asked_to_end

TOPICS = {"image": Image, "depth": Image, "camera_info": CameraInfo, "mask": Image}


class ExactTime:
    """Joins messages whose headers have the same stamp.

    Stamps older than the newest by more than `history` seconds are forgotten, and so are those older than a set that
    is complete: the node works on one frame after the other, so no mask of theirs will come.
    """

    def __init__(self, topics: list[str], history: float, callback: Callable[[dict[str, Any]], None]) -> None:
        """`callback` gets {topic: message}."""
        self._topics, self._history, self._callback = set(topics), int(history * 1e9), callback
        self._waiting: dict[int, dict[str, Any]] = {}

    def add(self, topic: str, message: Any) -> None:
        """Take a message; calls back if it was the last one of its stamp."""
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        together = self._waiting.setdefault(stamp, {})
        together[topic] = message
        oldest = max(self._waiting) - self._history
        if complete := set(together) == self._topics:
            oldest = max(oldest, stamp + 1)
        self._waiting = {when: some for when, some in self._waiting.items() if when >= oldest}
        if complete:
            self._callback(together)

    def __len__(self) -> int:
        return len(self._waiting)


def read(message: Image, dtype: str) -> np.ndarray:
    """[H, W] of a message with one channel; heeds `step` and `is_bigendian`. Raises ImageError."""
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    if step < width * kind.itemsize or len(message.data) < step * height or not height * width:
        raise ImageError(f"a {message.encoding} image of {width} x {height} does not fit its {len(message.data)} bytes")
    return np.ndarray((height, width), kind, memoryview(message.data).cast("B"), strides=(step, kind.itemsize))


def depth_in_metres(message: Image) -> np.ndarray:
    """float32 [H, W]; 0 or NaN where nothing was measured. Raises ImageError."""
    if message.encoding in ("16UC1", "mono16"):
        return read(message, "u2").astype(np.float32) * np.float32(1e-3)
    if message.encoding == "32FC1":
        return read(message, "f4").astype(np.float32)
    raise ImageError(f"depth has the encoding '{message.encoding}'; 16UC1 (mm) or 32FC1 (m) is needed")


def points_of(depth: np.ndarray, mask: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points float32 [N, 3] in metres of the masked pixels that have depth, and their rows and columns.

    x points right, y down, z forward (REP-103, optical frame). `k` is the camera matrix [3, 3] of a rectified image.
    """
    rows, columns = np.nonzero(mask & np.isfinite(depth) & (depth > 0))
    z = depth[rows, columns]
    x = (columns - k[0, 2]) / k[0, 0] * z
    y = (rows - k[1, 2]) / k[1, 1] * z
    return np.stack([x, y, z], axis=1).astype(np.float32), rows, columns


def cloud_message(header: Any, points: np.ndarray, colors: np.ndarray) -> PointCloud2:
    """PointCloud2 of points float32 [N, 3] and colours uint8 [N, 3]."""
    packed = colors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    rows = np.concatenate([points, packed.astype("<u4").view("<f4")[:, None]], axis=1).astype("<f4")
    data = array.array("B")
    data.frombytes(rows.tobytes())
    fields = [
        PointField(name=name, offset=4 * n, datatype=PointField.FLOAT32, count=1)
        for n, name in enumerate(("x", "y", "z", "rgb"))
    ]
    return PointCloud2(
        header=header, height=1, width=len(rows), fields=fields, point_step=16, row_step=16 * len(rows), data=data,
        is_dense=True,
    )  # fmt: skip


class ObjectPoints(Node):
    """Prints the centroid of the selected object, publishes its points. Parameter `history` [s]: see ExactTime."""

    def __init__(self) -> None:
        super().__init__("object_points")
        history = self.declare_parameter("history", 5.0).value
        self._together = ExactTime(list(TOPICS), history, self._on_set)
        # best effort hears every publisher; deep enough that nothing is lost while a set is worked on
        qos = QoSProfile(reliability=ReliabilityPolicy.BEST_EFFORT, history=HistoryPolicy.KEEP_LAST, depth=30)
        for topic, kind in TOPICS.items():
            self.create_subscription(kind, topic, lambda message, topic=topic: self._together.add(topic, message), qos)
        self._points = self.create_publisher(PointCloud2, "~/points", 5)
        self._synced = {topic: self.create_publisher(kind, f"~/synced/{topic}", 5) for topic, kind in TOPICS.items()}

    def _on_set(self, together: dict[str, Any]) -> None:
        header = together["mask"].header
        try:
            mask = read(together["mask"], "u1") > 0
            depth = depth_in_metres(together["depth"])
            rgb = to_rgb(together["image"])
        except ImageError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        if not mask.shape == depth.shape == rgb.shape[:2]:
            self.get_logger().warning(
                f"mask {mask.shape}, depth {depth.shape} and image {rgb.shape[:2]} differ in size; "
                "is the depth registered to the colour image?",
                throttle_duration_sec=5.0,
            )
            return
        k = np.array(together["camera_info"].k).reshape(3, 3)
        if k[0, 0] <= 0 or k[1, 1] <= 0:
            self.get_logger().warning("camera_info has no focal length", throttle_duration_sec=5.0)
            return
        points, rows, columns = points_of(depth, mask, k)
        if len(points):
            x, y, z = points.mean(axis=0, dtype=np.float64)
            found = f"{len(points)} points, centroid ({x:.4f}, {y:.4f}, {z:.4f}) m in {header.frame_id}"
        else:
            found = "the object is not seen" if not mask.any() else "the object has no depth"
        print(f"{header.stamp.sec}.{header.stamp.nanosec:09d}: {found}", flush=True)
        if self._points.get_subscription_count():
            self._points.publish(cloud_message(header, points, rgb[rows, columns]))
        for topic, publisher in self._synced.items():
            if publisher.get_subscription_count():
                message = image_message(header, depth, "32FC1") if topic == "depth" else together[topic]
                publisher.publish(message)


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    stop = asked_to_end()
    node = ObjectPoints()
    while not stop.is_set():
        rclpy.spin_once(node, timeout_sec=0.5)
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
