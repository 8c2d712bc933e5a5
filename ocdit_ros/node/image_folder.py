# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The executable `image_folder_publisher`: the images of a folder, sent as a camera would send them.

ros2 run ocdit_ros image_folder_publisher --ros-args -p folder:=photos -p rate:=2.0 -r image:=/camera/color/image_raw
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ocdit_ros.node.images import ImageError, decode
from ocdit_ros.node.messages import image_message
from ocdit_ros.node.process import asked_to_end, end_with
from ocdit_ros.templates import IMAGE_FORMATS, MeshError, resolve
from ocdit_ros.templates.source import read_file

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class FolderError(ValueError):
    """The images cannot be had; the message is one sentence naming the parameter at fault."""


def find_images(folder: str) -> list[Path]:
    """Image files of a folder (path, file:// or package:// URI), by name. Raises FolderError."""
    try:
        path = resolve(folder)
    except MeshError as error:
        raise FolderError(f"parameter 'folder': {error}") from None
    if not path.is_dir():
        raise FolderError(f"parameter 'folder': '{path}' is not a folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FolderError(f"parameter 'folder': there is no image ({', '.join(SUFFIXES)}) in '{path}'")
    return files


def read_rgb(file: Path) -> np.ndarray | None:
    """uint8 [H, W, 3], as the file stores it (an EXIF rotation is not applied); None if it cannot be read."""
    try:
        return decode(np.frombuffer(read_file(file), np.uint8), IMAGE_FORMATS)
    except (ImageError, MeshError):
        return None


class ImageFolder(Node):
    """Publishes one image after the other on `image`, and waits while nobody listens.

    Parameters: `folder`; `rate` [Hz]; `loop`: begin again after the last one, else end; `frame_id`;
    `end_with_parent`: end when the process that started this one has ended.
    """

    def __init__(self) -> None:
        """Raises FolderError."""
        super().__init__("image_folder")
        folder = self.declare_parameter("folder", "").value
        rate = float(self.declare_parameter("rate", 1.0).value)
        self.loop = bool(self.declare_parameter("loop", True).value)
        self.frame_id = str(self.declare_parameter("frame_id", "camera_color_optical_frame").value)
        if not folder:
            raise FolderError("parameter 'folder' is not set; it names a folder of images")
        if not 0.0 < rate <= 1000.0:
            raise FolderError(f"parameter 'rate' is {rate:g}, but must be above 0, up to 1000 Hz")
        self.files = find_images(folder)
        self.end_with_parent = bool(self.declare_parameter("end_with_parent", False).value)
        self.done = False
        self._next = 0
        qos = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=1)
        self._publisher = self.create_publisher(Image, "image", qos)
        self.create_timer(1.0 / rate, self._send)
        self.get_logger().info(f"{len(self.files)} images, {rate:g} a second, as soon as somebody listens")

    def _send(self) -> None:
        if not self._publisher.get_subscription_count():
            return
        if self._next == len(self.files):
            if not self.loop:
                self.done = True
                return
            self._next = 0
        file = self.files[self._next]
        self._next += 1
        rgb = read_rgb(file)
        if rgb is None:
            self.get_logger().warning(f"'{file}' is left out, it cannot be read")
            self.files.remove(file)
            self._next -= 1
            self.done = not self.files
            return
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self.frame_id)
        self._publisher.publish(image_message(header, rgb, "rgb8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until the last image is sent, SIGINT or SIGTERM."""
    parent = os.getppid()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    stop = asked_to_end()
    node = None
    try:
        node = ImageFolder()
        if node.end_with_parent:
            end_with(parent)
        while not (node.done or stop.is_set()):
            rclpy.spin_once(node, timeout_sec=0.5)
    except FolderError as error:
        sys.exit(f"image_folder_publisher: {error}")
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
