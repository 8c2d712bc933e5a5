# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A segmenter that is no network: it knows by colour what it sees, and takes as long as it is told.

fake_segment_node.py runs the real node around it: what the node does with slow frames and failing objects can
so be tested to the point, on any machine. What the network does is tested with the network, in
test_node_integration.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ocdit_ros.node.backend import SETTINGS, BackendError
from ocdit_ros.segment import Instance, SegmenterSettings
from ocdit_ros.templates import ObjectSpec


def instance(object_id: int, name: str, score: float, mask: np.ndarray) -> Instance:
    """An instance with the box of its mask."""
    rows, columns = np.nonzero(mask)
    box = (0, 0, 0, 0)
    if len(rows):
        x, y = int(columns.min()), int(rows.min())
        box = (x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
    return Instance(object_id, name, score, mask, box)


@dataclass
class FakeSegmenter:
    """The first object is whatever is red, the second green, the third blue; the score is the brightness.

    The pixel in the corner can order trouble: (9, 9, n) takes n tenths of a second, (9, 8, n) does so without letting
    other Python code run by itself, (1, 2, 3) is an error.
    """

    settings: SegmenterSettings = field(default_factory=SegmenterSettings)
    calls: list[str] = field(default_factory=list)
    specs: dict[str, ObjectSpec] = field(default_factory=dict)

    @property
    def objects(self) -> list[str]:
        return list(self.specs)

    def add_object(self, spec: ObjectSpec) -> None:
        """Objects whose name begins with slow take two seconds."""
        if spec.name.startswith("slow"):
            time.sleep(2.0)
        self.specs[spec.name] = spec
        self.calls.append(f"add {spec.name}")

    def remove_object(self, name: str) -> None:
        del self.specs[name]
        self.calls.append(f"remove {name}")

    def segment_many(self, images: list[np.ndarray]) -> list[list[Instance]]:
        return [self.segment(rgb) for rgb in images]

    def segment(self, rgb: np.ndarray) -> list[Instance]:
        corner = rgb[0, 0].tolist()
        if corner == [1, 2, 3]:
            raise RuntimeError("a pixel of doom")
        if corner[:2] == [9, 9]:
            time.sleep(corner[2] / 10)
        if corner[:2] == [9, 8]:
            end = time.monotonic() + corner[2] / 10
            while time.monotonic() < end:
                pass
        found = []
        for channel, name in enumerate(self.objects[:3]):
            mask = (rgb[..., channel] > 100) & (np.delete(rgb, channel, axis=2).max(axis=2) < 50)
            if mask.any():
                found.append(instance(channel + 1, name, float(rgb[..., channel][mask].max()) / 255.0, mask))
        found = [one for one in found if one.score >= self.settings.score_threshold]
        return sorted(found, key=lambda one: -one.score)


def make_fake(values: dict[str, Any]) -> tuple[FakeSegmenter, str]:
    """What the node is given in place of the real one; `weights` can order trouble."""
    if values["weights"] == "slow":
        time.sleep(30.0)
    if values["weights"] == "busy":  # Python code that never gives way by itself, as long as configure may take
        end = time.monotonic() + 30.0
        while time.monotonic() < end:
            pass
    if values["weights"] == "bad":
        raise BackendError("parameter 'weights': 'bad' is not a readable safetensors file")
    if values["weights"] == "explode":
        raise ZeroDivisionError("an error that nobody foresaw")
    settings = SegmenterSettings(**{name: values[name] for name in SETTINGS})
    return FakeSegmenter(settings), "a fake segmenter that was never trained"
