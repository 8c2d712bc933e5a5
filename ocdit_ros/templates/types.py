# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The two values the other rooms exchange with this one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ObjectSpec:
    """One object to look for."""

    name: str  # how detections of it are called
    mesh: str  # path, file:// or package:// URI
    scale: float = 1.0  # metres per mesh unit (0.001 for a mesh in millimetres)


@dataclass(frozen=True, eq=False)
class TemplateSet:
    """Rendered views of one object; N_T views of S x S pixels."""

    images: NDArray[np.uint8]  # [N_T, S, S, 3] rgb on black, anti-aliased, premultiplied by coverage
    masks: NDArray[np.uint8]  # [N_T, S, S] coverage 0..255
    depths: NDArray[np.float32]  # [N_T, S, S] metres along the optical axis, 0 = background
    rotations: NDArray[np.float32]  # [N_T, 3, 3] object frame to camera frame (REP-103 optical)
    diameter: float  # metres, largest distance between two vertices
    name: str = ""
