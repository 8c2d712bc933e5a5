# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: overlay, label image, and the animation of masks that emerge from noise."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np


class Drawable(Protocol):
    """What a picture needs of an instance."""

    @property
    def object_id(self) -> int:
        """As in Instance."""

    @property
    def name(self) -> str:
        """As in Instance."""

    @property
    def score(self) -> float:
        """As in Instance."""

    @property
    def mask(self) -> np.ndarray:
        """As in Instance."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """As in Instance."""


def colour(object_id: int) -> tuple[int, int, int]:
    """RGB colour of an object: neighbours in number are far apart in hue."""
    hue = (object_id * 0.618033988749895) % 1.0  # golden ratio
    value = (1.0, 0.85, 0.95)[object_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(rgb: np.ndarray, instances: Sequence[Drawable], opacity: float = 0.45, labels: bool = True) -> np.ndarray:
    """The image with masks tinted, outlined and labelled by name and score: uint8 [H, W, 3], a new array."""
    picture = rgb.astype(np.float32)
    for instance in instances:
        tint = np.array(colour(instance.object_id), np.float32)
        picture[instance.mask] = (1 - opacity) * picture[instance.mask] + opacity * tint
    canvas = np.clip(picture, 0, 255).astype(np.uint8)
    thickness = max(round(max(rgb.shape[:2]) / 640), 1)
    for instance in instances:
        outlines, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour(instance.object_id), thickness)
    if labels:
        for instance in reversed(instances):  # the best one is written last, on top
            _label(canvas, instance, thickness)
    return canvas


def label_image(instances: Sequence[Drawable], height: int, width: int) -> np.ndarray:
    """uint16 [H, W]: 0 background, k the k-th instance (the order of the list: best score first)."""
    labels = np.zeros((height, width), np.uint16)
    for number, instance in enumerate(instances, start=1):
        labels[instance.mask] = number
    return labels


def trace_frame(rgb: np.ndarray, confidence: np.ndarray, object_ids: Sequence[int]) -> np.ndarray:
    """One step of the denoising over the image the network saw: uint8 [H, W, 3].

    Args:
        rgb: uint8 [H, W, 3].
        confidence: float32 [N, H, W]; every pixel takes the colour of the object that claims it most.
        object_ids: ids of the N objects, for their colours.
    """
    best = confidence.max(0)[..., None]
    tints = np.array([colour(i) for i in object_ids], np.float32)[confidence.argmax(0)]
    grey = rgb.mean(2, keepdims=True).astype(np.float32) * 0.6 + 40
    return np.clip(grey * (1 - 0.75 * best) + tints * 0.75 * best, 0, 255).astype(np.uint8)


def _label(canvas: np.ndarray, instance: Drawable, thickness: int) -> None:
    text = f"{_ascii(instance.name)} {instance.score:.2f}"
    size = 0.4 * thickness
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    x, y, _, _ = instance.box
    x = min(max(x, 0), max(canvas.shape[1] - width, 0))
    y = max(y - base, height + base)
    cv2.rectangle(canvas, (x, y - height - base), (x + width, y + base), colour(instance.object_id), cv2.FILLED)
    luminance = np.dot(colour(instance.object_id), (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, ink, thickness, cv2.LINE_AA)


def _ascii(text: str) -> str:
    """OpenCV's fonts have no other letters."""
    return text.encode("ascii", "replace").decode()
