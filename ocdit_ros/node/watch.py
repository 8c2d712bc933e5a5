# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The newest image of a camera topic, for `ocdit preview`."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage, Image

from ocdit_ros.node.images import ImageError, to_rgb
from ocdit_ros.node.lifecycle_node import IMAGE_QOS


class Watcher:
    """Subscribes to a topic as the node does, and keeps the newest image."""

    def __init__(self, topic: str) -> None:
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        try:
            self._node = rclpy.create_node(
                f"ocdit_preview_{os.getpid()}_{threading.get_ident() % 10000}", context=self._context,
                start_parameter_services=False, enable_rosout=False,
            )  # fmt: skip
            kind = CompressedImage if topic.endswith("/compressed") else Image
            self._node.create_subscription(kind, topic, self._receive, IMAGE_QOS)
        except Exception:
            rclpy.try_shutdown(context=self._context)
            raise
        self._message: Any = None
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="watch", daemon=True)
        self._thread.start()

    def _receive(self, message: Any) -> None:
        self._message = message

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def newest(self) -> np.ndarray | None:
        """The newest image since the last call, uint8 [H, W, 3]; None where there is none, or it cannot be read."""
        message, self._message = self._message, None
        if message is None:
            return None
        try:
            return np.array(to_rgb(message))
        except ImageError:  # `ocdit doctor --image` says what is wrong with it
            return None

    def close(self) -> None:
        """Leave the graph."""
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5)
        self._node.destroy_node()


def watch(topic: str) -> Watcher:
    """Begin to watch a topic; raises what rclpy raises for a name that is none."""
    return Watcher(topic)
