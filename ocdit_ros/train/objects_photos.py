# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Photographs for labels, grounds and backdrops, from the wallpaper packages of Debian (see docs/training-data.md)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def photo_files(folder: Path | str | None, split: str) -> list[Path]:
    """Large pictures below a folder, in a fixed order; every eighth belongs to the validation split only."""
    if folder is None:
        return []
    largest: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*")):
        if (
            path.suffix.lower() not in _SUFFIXES
            or not path.is_file()
            or path.is_symlink()
            or path.stat().st_size < 100_000
        ):
            continue
        # Wallpaper packages hold one picture in many sizes, as .../<title>/contents/images/<w>x<h>.png.
        title = str(path.parent) if path.parent.name.startswith("images") else str(path.with_suffix(""))
        if title not in largest or path.stat().st_size > largest[title].stat().st_size:
            largest[title] = path
    ordered = [largest[title] for title in sorted(largest)]
    return [path for index, path in enumerate(ordered) if (index % 8 == 7) == (split == "val")]


def load_photos(folder: Path | str | None, split: str, side: int = 768) -> list[NDArray[np.uint8]]:
    """Photographs rgb uint8 [H, W, 3], shorter side at most ``side``; an empty list without a folder."""
    found = []
    for path in photo_files(folder, split):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_REDUCED_COLOR_2)
        if image is None or min(image.shape[:2]) < 200:
            continue
        scale = side / min(image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found.append(np.ascontiguousarray(image[..., ::-1]))
    return found
