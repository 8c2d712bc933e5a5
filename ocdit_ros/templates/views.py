# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Directions from which templates are rendered."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
_PLASTIC = 0.7548776662466927  # 1 / plastic number: low-discrepancy, and unrelated to the golden angle


def viewpoints(count: int = 12, seed: int = 0) -> NDArray[Any]:
    """Well spread camera orientations, the same for the same arguments.

    Viewing directions are the points of a spherical Fibonacci lattice (Gonzalez 2010, "Measurement of areas on a
    sphere using Fibonacci and latitude-longitude lattices"); the roll about the optical axis follows a
    low-discrepancy sequence, so the views cover the plane rotations too. `seed` 0 is the set used for inference;
    any other seed turns the whole lattice by a random rotation, for augmentation.

    Returns float32 [count, 3, 3], object frame to camera frame (REP-103 optical: x right, y down, z forward).
    Raises ValueError if `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"viewpoints: count must be at least 1, got {count}")
    index = np.arange(count)
    z = 1.0 - (2.0 * index + 1.0) / count
    radius = np.sqrt(np.maximum(0.0, 1.0 - z * z))
    azimuth = _GOLDEN_ANGLE * index
    direction = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)  # object -> camera
    roll = 2.0 * math.pi * ((0.5 + _PLASTIC * index) % 1.0)

    forward = -direction
    # Any reference axis not parallel to the line of sight will do, since a roll follows.
    reference = np.where(np.abs(forward[:, 2:]) < 0.95, [[0.0, 0.0, -1.0]], [[0.0, -1.0, 0.0]])
    right = np.cross(reference, forward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    rotations = np.stack([cos * right + sin * down, -sin * right + cos * down, forward], axis=1)
    if seed:
        rotations = rotations @ _random_rotation(seed)
    return rotations.astype(np.float32)


def _random_rotation(seed: int) -> NDArray[Any]:
    """Uniform rotation [3, 3] (QR of a Gaussian matrix with the signs fixed; Mezzadri 2007)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q
