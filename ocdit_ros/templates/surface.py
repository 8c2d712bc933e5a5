# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Looking up what a surface is like at a point of a face."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .mesh import Mesh

_REMAP_LIMIT = 32_000  # cv2.remap takes maps of up to 32767 rows


def normalised(mesh: Mesh) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Vertices centred on the middle of their bounding box and divided by the diameter; centre; diameter."""
    centre = 0.5 * (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0))
    unit = mesh.diameter or 1.0
    return (mesh.vertices - centre) / unit, centre, unit


def position_keys(points: NDArray[Any]) -> NDArray[Any]:
    """One integer per position (points are in a unit cube; resolution 2^-20 of the diameter)."""
    grid = np.rint((points + 1.0) * 2.0**19).astype(np.int64)
    return (grid[:, 0] << 42) | (grid[:, 1] << 21) | grid[:, 2]


class Albedo:
    """Linear base colour of any point of a mesh."""

    def __init__(self, mesh: Mesh, spacing: float) -> None:
        """`spacing` of the points that will be looked up, in diameters: textures are reduced to about that."""
        white = bool(len(mesh.textures)) and mesh.colors.min() == 255
        self._colors = None if white else corner_table(_LINEAR[mesh.colors])
        self._uv = corner_table(mesh.uv)
        self._index = mesh.texture_index
        self._one_texture = len(mesh.textures) == 1 and mesh.texture_index.min() == 0
        self._textures = [
            cv2.LUT(_minified(mesh, number, texture, spacing), _LINEAR_16)
            for number, texture in enumerate(mesh.textures)
        ]

    def __call__(self, face: NDArray[np.int64], bary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Linear albedo [points, 3] from face numbers [points] and barycentric coordinates [points, 2]."""
        if self._colors is None:
            albedo = np.ones((len(face), 3), np.float32)
        else:
            albedo = interpolate(self._colors, face, bary)
        if self._one_texture:
            albedo *= _sample(self._textures[0], interpolate(self._uv, face, bary))
            return albedo
        index = self._index[face]
        for number, texture in enumerate(self._textures):
            chosen = np.flatnonzero(index == number)
            if len(chosen):
                albedo[chosen] *= _sample(texture, interpolate(self._uv, face[chosen], bary[chosen]))
        return albedo


def corner_table(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values [F, 3, C] at the corners of faces as `interpolate` wants them: the first, and the steps to the others."""
    table = corners.copy()
    table[:, 1:] -= corners[:, :1]
    return table.reshape(len(corners), -1)


def interpolate(table: NDArray[np.float32], face: NDArray[np.int64], bary: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values [points, C] at face numbers [points] and barycentric coordinates [points, 2] (of corners 1 and 2)."""
    values = np.take(table, face, axis=0)
    width = values.shape[1] // 3
    result = values[:, width : 2 * width] * bary[:, :1]
    result += values[:, :width]
    result += values[:, 2 * width :] * bary[:, 1:]
    return result


def _minified(mesh: Mesh, number: int, texture: NDArray[Any], spacing: float) -> NDArray[Any]:
    """The texture reduced so that a texel is about as large as the spacing of samples (a mip level)."""
    if not mesh.mipmaps:
        return texture
    belongs = mesh.texture_index == number
    uv = mesh.uv[belongs]
    edge1, edge2 = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    texels = 0.5 * np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]).sum(dtype=np.float64)
    texels *= texture.shape[0] * texture.shape[1]
    corner = mesh.vertices[mesh.faces[belongs]]
    area = 0.5 * np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1).sum()
    factor = int(np.sqrt(texels / max(area, 1e-30)) * spacing * mesh.diameter)
    factor = min(factor, *texture.shape[:2])
    return texture if factor < 2 else np.asarray(Image.fromarray(texture).reduce(factor))


def _sample(texture: NDArray[Any], uv: NDArray[Any]) -> NDArray[Any]:
    """Bilinear lookup [hits, 3] with wrap-around in a 16-bit linear texture; uv has its origin bottom left."""
    height, width = texture.shape[:2]
    x = (uv[:, 0] - np.floor(uv[:, 0])) * width - np.float32(0.5)
    y = (1.0 - (uv[:, 1] - np.floor(uv[:, 1]))) * height - np.float32(0.5)
    result = np.empty((len(uv), 3), np.uint16)
    for start in range(0, len(uv), _REMAP_LIMIT):
        part = slice(start, start + _REMAP_LIMIT)
        result[part] = cv2.remap(texture, x[part, None], y[part, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[
            :, 0
        ]
    return result * np.float32(1.0 / 65535.0)


def _decode_table() -> NDArray[Any]:
    """Table from 8-bit sRGB to linear light (IEC 61966-2-1)."""
    value = np.arange(256) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)


def encode(linear: NDArray[Any]) -> NDArray[Any]:
    """Linear light -> sRGB 0..1."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_LINEAR = _decode_table()
_LINEAR_16 = np.rint(_LINEAR * 65535.0).astype(np.uint16)
