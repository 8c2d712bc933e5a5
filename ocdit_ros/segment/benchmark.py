# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the stages over the number of objects."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ocdit_ros.segment.segmenter import Segmenter
from ocdit_ros.templates import ObjectSpec, TemplateSet


@dataclass(frozen=True)
class Row:
    """One catalogue size."""

    objects: int
    seconds: dict[str, float]  # median per stage, and total
    peak_bytes: int  # of the process on the CPU (its highest so far), of the allocator on a GPU


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured texture, uint8 [H, W, 3]."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def benchmark(
    segmenter: Segmenter, rgb: np.ndarray, counts: Sequence[int], repeat: int, specs: Sequence[ObjectSpec] = ()
) -> list[Row]:
    """Median stage times over `repeat` images, after one that does not count, for growing catalogues.

    Objects come from `specs`; beyond them (or without) they have made-up templates, which cost the same.
    """
    rows = []
    for count in sorted(set(counts)):
        while len(segmenter.objects) < count:
            number = len(segmenter.objects)
            if number < len(specs):
                segmenter.add_object(replace(specs[number], name=f"object {number + 1}"))
            else:
                segmenter.add_templates(_made_up(segmenter, number))
        segmenter.segment(rgb)
        timings = []
        for _ in range(repeat):
            segmenter.segment(rgb)
            timings.append(dict(segmenter.last_timings))
        stages = list(dict.fromkeys(stage for timing in timings for stage in timing))
        seconds = {s: statistics.median(timing.get(s, 0.0) for timing in timings) for s in stages}
        rows.append(Row(count, seconds, _peak_bytes(segmenter)))
    return rows


def _made_up(segmenter: Segmenter, number: int) -> TemplateSet:
    count, size = segmenter.config.templates, segmenter.config.template_size
    disc = np.hypot(*(np.mgrid[:size, :size] - size / 2)) < 0.42 * size
    images = np.stack([random_image(size, size, 1000 * number + view) for view in range(count)]) * disc[..., None]
    return TemplateSet(
        images=images.astype(np.uint8),
        masks=np.repeat(disc[None].astype(np.uint8) * 255, count, 0),
        depths=np.repeat(disc[None].astype(np.float32), count, 0),
        rotations=np.repeat(np.eye(3, dtype=np.float32)[None], count, 0),
        diameter=0.1 + 0.01 * (number % 20),
        name=f"object {number + 1}",
    )


def _peak_bytes(segmenter: Segmenter) -> int:
    if segmenter.network.device.type == "cuda":
        return torch.cuda.max_memory_allocated(segmenter.network.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
