# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""BOP's result file for 2D segmentation: reading, writing, naming.

Format: https://bop.felk.cvut.cz/challenges/bop-challenge-2022, section 5.1. One JSON list, one entry per
detection with `scene_id`, `image_id`, `category_id`, `score`, `bbox` [x, y, width, height], `segmentation`
(RLE with its counts spelled out, column-major) and `time`, which must be the same for all detections of an
image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from ocdit_ros.evaluate.datasets import ImageKey

_NAME = re.compile(r"[^_-][^_]*_[0-9A-Za-z]+-[0-9A-Za-z]+(-[0-9A-Za-z]+)?(_[^.]+)?\.json")
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "scene_id": int,
    "image_id": int,
    "category_id": int,
    "score": (int, float),
    "segmentation": dict,
}


class ResultFileError(ValueError):
    """A result file that is not in BOP's format; the message names the entry and what is wrong with it."""


@dataclass(frozen=True)
class Detection:
    """One predicted instance of one image, in the field's terms."""

    key: ImageKey
    category_id: int
    score: float
    rle: dict[str, Any]  # pycocotools' compressed run lengths: {"size": [H, W], "counts": bytes}
    box: tuple[int, int, int, int]  # x, y, width, height, pixels
    time: float  # seconds for the whole image

    @classmethod
    def from_mask(cls, key: ImageKey, category_id: int, score: float, mask: np.ndarray, time: float) -> Detection:
        """Detection of a bool mask [H, W]; the box is the mask's own (BOP asks for integers)."""
        rle = encode_mask(mask)
        x, y, width, height = (int(v) for v in mask_utils.toBbox(rle))
        return cls(key, category_id, float(score), rle, (x, y, width, height), float(time))

    @property
    def mask(self) -> np.ndarray:
        """Bool [H, W]."""
        return mask_utils.decode(self.rle).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a bool mask [H, W], compressed the way pycocotools does."""
    return mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a bool mask [H, W] with the counts spelled out; they begin with the zeros, column-major."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": counts}


def file_name(method: str, dataset: str, split: str, identifier: str = "") -> str:
    """Name of a result file: `METHOD_DATASET-SPLIT[_IDENTIFIER].json`.

    Raises ValueError: a part has a character that the BOP toolkit would split the name at.
    """
    name = f"{method}_{dataset}-{split}{'_' + identifier if identifier else ''}.json"
    if "_" in method or not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' breaks BOP's file name rule METHOD_DATASET-SPLIT.json; remove underscores and dots."
        )
    return name


def write(path: str | Path, detections: Iterable[Detection]) -> None:
    """Write a result file."""
    rows = [
        {
            "scene_id": d.key.scene_id,
            "image_id": d.key.image_id,
            "category_id": d.category_id,
            "score": d.score,
            "bbox": list(d.box),
            "segmentation": run_lengths(d.mask),
            "time": d.time,
        }
        for d in detections
    ]
    Path(path).write_text(json.dumps(rows))


def read(path: str | Path) -> list[Detection]:
    """Read a result file.

    Raises ResultFileError: the file is not in BOP's format.
    """
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultFileError(f"'{path}' cannot be read as a BOP result file: {error}.") from None
    if not isinstance(rows, list):
        raise ResultFileError(f"'{path}' does not hold a list of detections.")
    return [_detection(path, number, row) for number, row in enumerate(rows)]


def _detection(path: str | Path, number: int, row: Any) -> Detection:
    for name, kind in _REQUIRED.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise ResultFileError(f"Detection {number} of '{path}' has no valid '{name}'.")
    segmentation = row["segmentation"]
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, (list, str)):
        raise ResultFileError(f"The segmentation of detection {number} of '{path}' is not in RLE format.")
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1]:
            raise ResultFileError(f"The run lengths of detection {number} of '{path}' do not add up to its size.")
        rle = mask_utils.frPyObjects(segmentation, *size)
    else:
        rle = {"size": size, "counts": counts.encode()}
    x, y, width, height = (int(v) for v in row.get("bbox") or mask_utils.toBbox(rle))
    key = ImageKey(row["scene_id"], row["image_id"])
    box = (x, y, width, height)
    return Detection(key, row["category_id"], float(row["score"]), rle, box, float(row.get("time", -1.0)))
