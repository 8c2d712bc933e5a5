# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Rectangles of the image as the network sees them, and the way back.

Coordinates are continuous: pixel i covers i..i+1. OpenCV puts pixel centres at whole numbers, hence the half
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

STRIDE = 16  # pixels per token
MAX_GROWTH = 1.5  # of a small image; more costs time and finds nothing more
TILE_SHARE = 1.2  # sum of the sides of the tiles in a row, relative to the image's: they overlap

#: Shift (in sides of the rectangle), scale and mirroring of the views of an ensemble; the first is the plain
#: view.
AUGMENTATIONS = (
    (0.0, 0.0, 1.0, False),
    (0.0, 0.0, 1.0, True),
    (0.06, -0.04, 1.12, False),
    (-0.06, 0.04, 1.12, True),
    (0.04, 0.06, 0.92, False),
    (-0.04, -0.06, 0.92, True),
    (-0.05, -0.02, 1.25, False),
    (0.05, 0.02, 1.25, True),
)


@dataclass(frozen=True)
class View:
    """A rectangle of the image, in whole pixels, resized to a canvas; it may reach beyond the image."""

    x: int
    y: int
    width: int
    height: int
    canvas: tuple[int, int]  # H, W
    mirrored: bool = False

    def to_canvas(self) -> np.ndarray:
        """float64 [2, 3]: image coordinates to canvas coordinates, both continuous."""
        sx, sy = self.canvas[1] / self.width, self.canvas[0] / self.height
        matrix = np.array([[sx, 0.0, -sx * self.x], [0.0, sy, -sy * self.y]])
        if self.mirrored:
            matrix[0] = [-sx, 0.0, self.canvas[1] + sx * self.x]
        return matrix

    def sample(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of the canvas; what lies beyond the image repeats its border."""
        height, width = rgb.shape[:2]
        x0, y0 = min(max(self.x, 0), width - 1), min(max(self.y, 0), height - 1)
        x1, y1 = max(min(self.x + self.width, width), x0 + 1), max(min(self.y + self.height, height), y0 + 1)
        part = rgb[y0:y1, x0:x1]
        above, below = max(y0 - self.y, 0), max(self.y + self.height - y1, 0)
        left, right = max(x0 - self.x, 0), max(self.x + self.width - x1, 0)
        if above or below or left or right:
            part = cv2.copyMakeBorder(part, above, below, left, right, cv2.BORDER_REPLICATE)
        part = resize(part, self.canvas)
        return np.ascontiguousarray(part[:, ::-1]) if self.mirrored else part

    def overlap(self, other: View) -> float:
        """IoU of two views' rectangles in the image."""
        width = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        height = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        both = max(width, 0) * max(height, 0)
        return both / (self.width * self.height + other.width * other.height - both)

    def box_on_canvas(self, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Image box (x, y, width, height) as whole canvas pixels (x0, y0, x1, y1), clipped to the canvas."""
        matrix = self.to_canvas()
        xs = matrix[0, 0] * np.array([box[0], box[0] + box[2]]) + matrix[0, 2]
        ys = matrix[1, 1] * np.array([box[1], box[1] + box[3]]) + matrix[1, 2]
        height, width = self.canvas
        x0, x1 = np.clip([math.floor(xs.min()), math.ceil(xs.max())], 0, width)
        y0, y1 = np.clip([math.floor(ys.min()), math.ceil(ys.max())], 0, height)
        return int(x0), int(y0), int(x1), int(y1)

    def shares(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Image box (x, y, width, height) as left, top, right, bottom in shares of the canvas' sides, not clipped."""
        matrix = self.to_canvas()
        xs = (matrix[0, 0] * np.array([box[0], box[0] + box[2]]) + matrix[0, 2]) / self.canvas[1]
        ys = (matrix[1, 1] * np.array([box[1], box[1] + box[3]]) + matrix[1, 2]) / self.canvas[0]
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())

    def box_in_image(self, box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        """Canvas box (x0, y0, x1, y1) as image box (x, y, width, height)."""
        matrix = self.to_canvas()
        xs = (np.array([box[0], box[2]]) - matrix[0, 2]) / matrix[0, 0]
        ys = (np.array([box[1], box[3]]) - matrix[1, 2]) / matrix[1, 1]
        return float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (H, W): by area where it shrinks, linearly where it grows."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def whole_image(height: int, width: int, longest: int) -> View:
    """The whole image on a canvas whose longer side is `longest`, sides multiples of 16; growing at most
    MAX_GROWTH.

    Sides are rounded, so the aspect ratio changes by at most half a token.
    """
    scale = min(longest / max(height, width), MAX_GROWTH)
    canvas = tuple(max(round(side * scale / STRIDE), 1) * STRIDE for side in (height, width))
    return View(0, 0, width, height, (canvas[0], canvas[1]))


def tiled(view: View, count: int) -> list[View]:
    """`count` x `count` overlapping parts of a view of the whole image, each on a canvas of the same size.

    None for a count of 1, and none where a part would have to grow by more than MAX_GROWTH: the view itself shows
    all there is.
    """
    if count < 2:
        return []
    width, height = (max(round(side * TILE_SHARE / count), 1) for side in (view.width, view.height))
    if view.canvas[1] > MAX_GROWTH * width or view.canvas[0] > MAX_GROWTH * height:
        return []
    places = [(row / (count - 1), column / (count - 1)) for row in range(count) for column in range(count)]
    return [
        View(round(x * (view.width - width)), round(y * (view.height - height)), width, height, view.canvas)
        for y, x in places
    ]


def finer(view: View) -> View:
    """The same rectangle on a canvas a third larger, on which tiles and the whole image meet."""
    height, width = (round(side / 3 / STRIDE * 4) * STRIDE for side in view.canvas)
    return replace(view, canvas=(height, width))


def crop_around(
    box: tuple[float, float, float, float], scale: float, size: int, height: int, width: int, least: int = 64
) -> View:
    """A square around an image box, `scale` times its longer side, moved into the image where it fits.

    At least `least` pixels wide: a small spot of the coarse pass may be a piece of something larger.
    """
    side = max(round(max(box[2], box[3]) * scale), least)
    side = min(side, max(height, width))
    x = round(box[0] + box[2] / 2 - side / 2)
    y = round(box[1] + box[3] / 2 - side / 2)
    x = min(max(x, 0), width - side) if side <= width else (width - side) // 2
    y = min(max(y, 0), height - side) if side <= height else (height - side) // 2
    return View(x, y, side, side, (size, size))


def augmented(view: View, count: int) -> list[View]:
    """The first `count` views of AUGMENTATIONS around `view`."""
    views = []
    for dx, dy, scale, mirrored in AUGMENTATIONS[:count]:
        width, height = max(round(view.width * scale), 1), max(round(view.height * scale), 1)
        x = round(view.x + view.width * (0.5 + dx) - width / 2)
        y = round(view.y + view.height * (0.5 + dy) - height / 2)
        views.append(replace(view, x=x, y=y, width=width, height=height, mirrored=mirrored))
    return views


def align(confidence: np.ndarray, source: View, target: View) -> np.ndarray:
    """Move confidences float32 [..., H, W] from one view's canvas onto another's; NaN where the source does
    not see.
    """
    if source == target:
        return confidence
    there, back = _square(target.to_canvas()), np.linalg.inv(_square(source.to_canvas()))
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = (np.linalg.inv(half) @ there @ back @ half)[:2]
    size = (target.canvas[1], target.canvas[0])
    seen = cv2.warpAffine(np.ones(source.canvas, np.float32), matrix, size, flags=cv2.INTER_NEAREST) > 0
    moved = np.empty((*confidence.shape[:-2], *target.canvas), np.float32)
    for index in np.ndindex(confidence.shape[:-2]):
        moved[index] = cv2.warpAffine(confidence[index], matrix, size, borderMode=cv2.BORDER_REPLICATE)
    moved[..., ~seen] = np.nan
    return moved


def to_image(
    confidence: np.ndarray, view: View, box: tuple[int, int, int, int], height: int, width: int
) -> tuple[np.ndarray, int, int]:
    """Bring the part of a confidence map [H, W] inside a canvas box (x0, y0, x1, y1) to the image's own
    resolution.

    Growing is cubic, so outlines stay smooth; shrinking is by area.

    Returns float32 [h, w] and the image coordinates x, y of its upper left pixel; clipped to the image,
    possibly empty.
    """
    x, y, w, h = view.box_in_image(box)
    slack = 1e-6  # of floating point: an edge on a pixel's border belongs to that border
    x0, y0 = max(math.floor(x + slack), view.x, 0), max(math.floor(y + slack), view.y, 0)
    x1 = min(math.ceil(x + w - slack), view.x + view.width, width)
    y1 = min(math.ceil(y + h - slack), view.y + view.height, height)
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0), np.float32), x0, y0
    if view.width < view.canvas[1] or view.height < view.canvas[0]:
        whole = confidence[:, ::-1] if view.mirrored else confidence
        whole = resize(np.ascontiguousarray(whole), (view.height, view.width))
        return np.clip(whole[y0 - view.y : y1 - view.y, x0 - view.x : x1 - view.x], 0.0, 1.0), x0, y0
    matrix = _square(view.to_canvas())
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    shift = np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1]])
    backward = (np.linalg.inv(half) @ matrix @ shift @ half)[:2]  # image pixel -> canvas pixel
    patch = cv2.warpAffine(
        confidence, backward, (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.clip(patch, 0.0, 1.0), x0, y0


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack((matrix, [0.0, 0.0, 1.0]))
