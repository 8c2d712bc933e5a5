# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Instances to messages. Every message carries the header of the frame that it came from, bit for bit."""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
    VisionClass,
)

from ocdit_ros.segment import Instance
from ocdit_ros.segment.draw import numbers


def detections_message(header: Header, instances: Sequence[Instance]) -> Detection2DArray:
    """One Detection2D per instance; `id` is its value in the label image: that of its track, or k = 1, 2, ... without.

    A box covers whole pixels: its left edge is x, its right edge x + width, its centre x + width / 2. The
    pose in the hypothesis stays at its default: this node does not estimate it.
    """
    detections = []
    for k, instance in zip(numbers(instances), instances):
        x, y, width, height = (float(value) for value in instance.box)
        hypothesis = ObjectHypothesis(class_id=instance.name, score=float(instance.score))
        center = Pose2D(position=Point2D(x=x + width / 2, y=y + height / 2))
        detections.append(
            Detection2D(
                header=header,
                id=str(k),
                results=[ObjectHypothesisWithPose(hypothesis=hypothesis)],
                bbox=BoundingBox2D(center=center, size_x=width, size_y=height),
            )
        )
    return Detection2DArray(header=header, detections=detections)


def mask_array(
    shape: tuple[int, int], instances: Sequence[Instance], name: str = "", out: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [H, W], 0 or 255: the best instance of object `name` ('' = of any); all 0 without one.

    `out`, uint8 [H, W] of zeros, is drawn in where it is given.
    """
    mask = np.zeros(shape, np.uint8) if out is None else out
    for instance in instances:
        if name in ("", instance.name):
            np.multiply(instance.mask.view(np.uint8), 255, out=mask)
            break
    return mask


#: What the node publishes: type of a sample and samples of a pixel.
_LAYOUTS: dict[str, tuple[type, int]] = {"16UC1": (np.uint16, 1), "mono8": (np.uint8, 1), "rgb8": (np.uint8, 3)}


def blank_image(header: Header, height: int, width: int, encoding: str) -> tuple[Image, np.ndarray]:
    """sensor_msgs/Image of zeros, and its pixels to draw in, [H, W] or [H, W, 3]: one copy less than image_message.

    `encoding` is 16UC1, mono8 or rgb8.
    """
    dtype, channels = _LAYOUTS[encoding]
    step = width * channels * np.dtype(dtype).itemsize
    message = _image(header, height, width, encoding, step)
    message.data = array.array("B", b"\0") * (height * step)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return message, np.frombuffer(message.data, dtype).reshape(shape)


def _image(header: Header, height: int, width: int, encoding: str, step: int) -> Image:
    big = int(sys.byteorder == "big")
    return Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=big, step=step)


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """sensor_msgs/Image from [H, W] or [H, W, C]; rows are contiguous, the byte order is this machine's."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    message = _image(header, height, width, encoding, pixels.nbytes // max(height, 1))
    # An array('B') is taken over as it is; a list or an ndarray would be checked element by element, a
    # thousand times slower.
    data = array.array("B")
    data.frombytes(pixels.reshape(-1).view(np.uint8).data)
    message.data = data
    return message


def label_info_message(header: Header, names: Sequence[str], threshold: float) -> LabelInfo:
    """The catalogue: class_id = index of the object from 1, class_name = its name, as in the detections."""
    classes = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(names, start=1)]
    return LabelInfo(header=header, class_map=classes, threshold=float(threshold))


def summary(instances: Sequence[Instance]) -> str:
    """Result of a frame in a sentence, for logs and service responses."""
    if not instances:
        return "no detections"
    listed = ", ".join(f"{instance.name} {instance.score:.2f}" for instance in instances)
    return f"{len(instances)} detection{'s' if len(instances) > 1 else ''}: {listed}"
