# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Camera messages to pixels: one table of encodings, no copy where the encoding allows.

Encodings are those of sensor_msgs/image_encodings.hpp. OpenCV does what takes more than a view of the bytes
(mosaics, chroma, JPEG); an encoding that is not in the table is left to cv_bridge where the ROS distribution
brings it.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import PIL.Image

#: Beyond these it is taken for a corrupt message, not for an image: pixels of the longer side, and of the whole.
MAX_SIDE = 32768
MAX_PIXELS = 64 * 1024**2

#: Formats that CompressedImage may hold, as Pillow calls them. OpenCV decodes more, which no colour camera sends.
FORMATS = ("JPEG", "PNG", "WEBP")


class ImageError(ValueError):
    """An image message that cannot be used; the message is one sentence naming what is wrong."""


@dataclass(frozen=True)
class Encoding:
    """One row of the table: how a pixel lies in memory, and how an array of pixels becomes RGB."""

    channels: int  # samples per pixel in `dtype`; 2 for YUV 4:2:2, whose pixels share chroma in pairs
    to_rgb: Callable[[np.ndarray], np.ndarray]  # [H, W, channels] -> uint8 [H, W, 3]
    dtype: str = "u1"
    even_width: bool = False  # pixels come in pairs
    min_side: int = 1  # a mosaic needs a whole cell


def _color(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _mono16(pixels: np.ndarray) -> np.ndarray:
    # Full range to full range, as cv_bridge does it: 65535 becomes 255.
    return cv2.cvtColor(cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0), cv2.COLOR_GRAY2RGB)


# OpenCV names a mosaic by the second row, second and third column; ROS by the first row, first and second
# column. So the rggb of ROS is OpenCV's BayerBG. See
# https://docs.opencv.org/4.x/de/d25/imgproc_color_conversions.html
ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, lambda pixels: pixels),
    "bgr8": Encoding(3, _color(cv2.COLOR_BGR2RGB)),
    "rgba8": Encoding(4, _color(cv2.COLOR_RGBA2RGB)),
    "bgra8": Encoding(4, _color(cv2.COLOR_BGRA2RGB)),
    "mono8": Encoding(1, _color(cv2.COLOR_GRAY2RGB)),
    "mono16": Encoding(1, _mono16, dtype="u2"),
    "yuv422": Encoding(2, _color(cv2.COLOR_YUV2RGB_UYVY), even_width=True),
    "uyvy": Encoding(2, _color(cv2.COLOR_YUV2RGB_UYVY), even_width=True),
    "yuv422_yuy2": Encoding(2, _color(cv2.COLOR_YUV2RGB_YUY2), even_width=True),
    "yuyv": Encoding(2, _color(cv2.COLOR_YUV2RGB_YUY2), even_width=True),
    "bayer_rggb8": Encoding(1, _color(cv2.COLOR_BayerBG2RGB), min_side=2),
    "bayer_bggr8": Encoding(1, _color(cv2.COLOR_BayerRG2RGB), min_side=2),
    "bayer_gbrg8": Encoding(1, _color(cv2.COLOR_BayerGR2RGB), min_side=2),
    "bayer_grbg8": Encoding(1, _color(cv2.COLOR_BayerGB2RGB), min_side=2),
}


def to_rgb(message: Any) -> np.ndarray:
    """Pixels of a sensor_msgs/Image or sensor_msgs/CompressedImage as uint8 [H, W, 3], in RGB order.

    The result of an rgb8 image is a view of the message: do not write to it; its rows lie `step` bytes apart.
    Padding at the end of rows (`step`) and the byte order (`is_bigendian`) are heeded.

    Raises ImageError for an unknown encoding, empty or short data, and sizes that do not fit each other.
    """
    return _decompress(message) if hasattr(message, "format") else _convert(message)


def _convert(message: Any) -> np.ndarray:
    name, width, height, step = message.encoding, message.width, message.height, message.step
    encoding = ENCODINGS.get(name)
    if encoding is None:
        return _foreign(message)
    _check_size(width, height)
    if encoding.even_width and width % 2:
        raise ImageError(f"the {name} image is {width} pixels wide, but that encoding stores pixels in pairs")
    if min(width, height) < encoding.min_side:
        raise ImageError(f"the {name} image is {width} x {height} pixels, but a colour mosaic has at least 2 x 2")
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    row = width * encoding.channels * dtype.itemsize
    if step < row:
        raise ImageError(f"the step of {step} bytes is too short for {width} pixels of {name}, which take {row}")
    data = memoryview(message.data).cast("B")
    # The padding of the last row may be missing: some drivers do not send it.
    needed = step * (height - 1) + row
    if len(data) < needed:
        raise ImageError(
            f"the image has {len(data)} bytes of data, but {width} x {height} pixels of {name} with step "
            f"{step} take {needed}"
        )
    pixel = encoding.channels * dtype.itemsize
    pixels = np.ndarray((height, width, encoding.channels), dtype, buffer=data, strides=(step, pixel, dtype.itemsize))
    if not dtype.isnative or step % dtype.itemsize:  # OpenCV takes neither
        pixels = pixels.astype(dtype.newbyteorder("="))
    return encoding.to_rgb(pixels)


def _decompress(message: Any) -> np.ndarray:
    if "compresseddepth" in message.format.lower():
        raise ImageError("the compressed image holds depth, not colour; subscribe to a colour image")
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise ImageError("the compressed image is empty")
    pixels = decode(data)
    if pixels is None:
        raise ImageError(
            f"the compressed image (format {_quoted(message.format)}, {data.size} bytes) is damaged or of a kind that "
            f"is not supported; {', '.join(FORMATS)} are"
        )
    return pixels


def decode(data: np.ndarray, formats: tuple[str, ...] = FORMATS) -> np.ndarray | None:
    """Pixels uint8 [H, W, 3], RGB, of an image file's bytes, uint8 [N]; None if they cannot be read.

    An EXIF rotation is not applied: camera_info and depth of that camera are not turned either. Raises ImageError for
    impossible sizes.
    """
    # The size that the header tells, before anybody makes room for it: a file of a few bytes may announce gigabytes.
    try:
        with PIL.Image.open(io.BytesIO(data.data), formats=formats) as header:
            width, height = header.size
    except Exception:  # its parsers raise whatever they stumble over
        return None
    _check_size(width, height)
    if not _sound_png(data.data):
        return None
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _quoted(text: str) -> str:
    """Text of a message as part of a line of the log: short, without line ends."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _sound_png(data: memoryview) -> bool:
    """Whether the parts of a PNG file are within it, one image alone; True for other kinds.

    OpenCV (4.14) makes room for a part, up to 4 GB, before it looks whether there is so much.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return True
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
        if kind == b"acTL":  # an animation
            return False
    return False


def _check_size(width: int, height: int) -> None:
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(f"the image is {width} x {height} pixels, which cannot be right")


@functools.cache
def _cv_bridge() -> Any:
    """cv_bridge where it can be imported; one built for another NumPy fails at import in its own ways."""
    try:
        return importlib.import_module("cv_bridge").CvBridge()
    except Exception:
        return None


def _foreign(message: Any) -> np.ndarray:
    bridge = _cv_bridge()
    if bridge is not None:
        try:
            return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # CvBridgeError, cv2.error, RuntimeError, depending on the version
            reason = " ".join(str(error).split())
            name = _quoted(message.encoding)
            raise ImageError(f"cv_bridge cannot convert an image of encoding {name}: {reason}") from None
    name = _quoted(message.encoding)
    raise ImageError(f"the image encoding {name} is not supported; supported are {', '.join(ENCODINGS)}")
