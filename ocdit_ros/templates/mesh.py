# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The mesh as the renderer wants it: triangles, with colour at their corners or from textures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform

from .source import MeshError

__all__ = ["NEUTRAL_GREY", "PLAUSIBLE_DIAMETER", "Mesh", "MeshError", "diameter"]

NEUTRAL_GREY = 180  # sRGB value of a surface of which nothing is known
PLAUSIBLE_DIAMETER = (0.002, 10.0)  # metres; a mesh outside of it is taken for one in the wrong unit


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with their colour; lengths in metres. Colour of a point = base colour x texture."""

    vertices: NDArray[np.float64]  # [V, 3] metres
    faces: NDArray[np.uint32]  # [F, 3]
    colors: NDArray[np.uint8]  # [F, 3, 3] sRGB base colour of each corner of each face
    uv: NDArray[np.float32]  # [F, 3, 2] texture coordinates, origin bottom left, repeating; 0 where untextured
    texture_index: NDArray[np.int32]  # [F] index into textures, -1 = none
    textures: tuple[NDArray[np.uint8], ...]  # [h, w, 3] sRGB
    diameter: float  # metres, largest distance between two vertices
    files: tuple[tuple[Path, str], ...] = field(default=())  # what was read and its SHA-256, the mesh itself first
    mipmaps: bool = True  # whether textures may be averaged down to the resolution needed

    @classmethod
    def from_arrays(
        cls,
        vertices: ArrayLike,  # [V, 3] metres
        faces: ArrayLike,  # [F, 3]
        colors: ArrayLike | None = None,  # uint8 [3], [V, 3], [F, 3] or [F, 3, 3]
        uv: ArrayLike | None = None,  # [V, 2] or [F, 3, 2]
        texture: ArrayLike | None = None,  # uint8 [h, w, 3]
    ) -> Mesh:
        """Mesh of plain arrays; white where a texture gives the colour, else neutral grey unless `colors` says so.

        With V == F, an array of V colours is taken as one for each vertex.
        """
        points = np.array(vertices, np.float64).reshape(-1, 3)
        triangles = np.array(faces, np.uint32).reshape(-1, 3)
        count = len(triangles)
        base = np.asarray((255 if texture is not None else NEUTRAL_GREY,) * 3 if colors is None else colors, np.uint8)
        if base.shape == (len(points), 3):
            base = base[triangles]
        elif base.shape == (count, 3):
            base = base[:, None]
        corners = np.zeros((count, 3, 2), np.float32)
        if uv is not None:
            given = np.asarray(uv, np.float32)
            corners = given[triangles] if given.ndim == 2 else given
        return cls(
            vertices=points,
            faces=triangles,
            colors=np.ascontiguousarray(np.broadcast_to(base, (count, 3, 3))),
            uv=corners,
            texture_index=np.full(count, -1 if texture is None else 0, np.int32),
            textures=() if texture is None else (np.ascontiguousarray(texture, np.uint8),),
            diameter=diameter(points),
        )


def diameter(points: NDArray[np.float64]) -> float:
    """Largest distance between two of the points [V, 3], V >= 1.

    Exact for up to 2048 points and for shapes that are not nearly spheres; else at most 0.3 % short, by experience
    less than 0.01 %.
    """
    if len(points) > _ALL_PAIRS:
        points = _far_out(points, float(np.ptp(points, axis=0).max()))
    if len(points) > _ALL_PAIRS:
        least = _long_distance(points)
        points = _far_out(points, least)
        if len(points) > _ALL_PAIRS:
            return least
    return float(pdist(points).max()) if len(points) > 1 else 0.0


_ALL_PAIRS = 2048


def _far_out(points: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """The points that can be ends of a distance of at least `least`: all others are too close to the middle."""
    radius = np.linalg.norm(points - 0.5 * (points.min(axis=0) + points.max(axis=0)), axis=1)
    return points[radius + radius.max() >= least * (1 - 1e-9)]


def _long_distance(points: NDArray[np.float64]) -> float:
    """A distance between two points that is close to the largest one."""
    # The extreme points of many directions: that of the true pair is within 4.5 degrees of one of them (half the
    # diagonal of a lattice cell), so at most 1 - cos(4.5 deg) of the length is lost.
    count = 1024
    index = np.arange(count)
    z = 1.0 - (2.0 * index + 1.0) / count
    azimuth = np.pi * (3.0 - np.sqrt(5.0)) * index
    radius = np.sqrt(1.0 - z * z)
    directions = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z])
    local = points - points.mean(axis=0)
    local /= max(np.abs(local).max(), 1e-300)
    parts = np.split(directions.T.astype(np.float32), 16)
    across = np.ascontiguousarray(local.T, np.float32)
    extreme = np.unique(np.concatenate([np.argmax(part @ across, axis=1) for part in parts]))
    apart = squareform(pdist(points[extreme]))
    best, end = float(apart.max()), extreme[np.argmax(apart.max(axis=1))]
    for _ in range(16):  # then from end to end, as long as it gets longer
        distances = np.linalg.norm(points - points[end], axis=1)
        end = int(np.argmax(distances))
        if distances[end] <= best:
            break
        best = float(distances[end])
    return best
