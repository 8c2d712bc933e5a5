# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The baseline: thresholded template correlation with the same frozen backbone, no diffusion.

Every patch of the image is compared with every template patch of an object (cosine of the frozen features,
mean of the five best). The similarity map is standardised over the image, the best other object's map is
subtracted where it is higher, and what rises above a threshold is an instance. Nothing in here was trained
but the backbone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ocdit_ros.segment import extract
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.segmenter import Segmenter, check_image
from ocdit_ros.segment.types import Evidence, Instance
from ocdit_ros.segment.views import View

#: Standardised similarity that becomes confidence 0, and the one that becomes 1; the best on held-out scenes.
Z_LOW, Z_HIGH = 0.0, 2.8


class CorrelationSegmenter(Segmenter):
    """A Segmenter whose network is left out; settings other than sizes and thresholds have no effect."""

    def segment(self, rgb: np.ndarray, objects: Sequence[str] | None = None) -> list[Instance]:
        """As `Segmenter.segment`."""
        start = time.perf_counter()
        rgb = check_image(rgb)
        indices = range(len(self._catalogue)) if objects is None else [self._index(name) for name in objects]
        instances: list[Instance] = []
        if len(indices):
            view = self._coarse_view(rgb)
            features = self.network.frozen_features([view.sample(rgb)])
            similarity = self.network.raw_similarity(features, [self._catalogue[i] for i in indices])
            instances = self.resolve(
                self.correlation_candidates(similarity, indices, view, rgb.shape[:2]), rgb.shape[:2]
            )
        self.last_timings = {"total": time.perf_counter() - start}
        return instances

    def correlation_candidates(
        self, similarity: np.ndarray, indices: Sequence[int], view: View, size: tuple[int, int]
    ) -> list[Candidate]:
        """Candidates from similarity maps float32 [N, H/16, W/16]."""
        deviation = np.maximum(similarity.std((1, 2), keepdims=True), 1e-4)
        standard = (similarity - similarity.mean((1, 2), keepdims=True)) / deviation
        found = []
        for row, index in enumerate(indices):
            z = standard[row]
            if len(indices) > 1:
                z = z - np.maximum(np.delete(standard, row, 0).max(0) - z, 0.0)
            confidence = np.clip((z - Z_LOW) / (Z_HIGH - Z_LOW), 0.0, 1.0).astype(np.float32)
            for part in extract.separate(confidence, self.settings.mask_threshold, 1):
                patch, x, y = extract.lift(confidence, part, np.zeros_like(part), view_of_grid(view), *size)
                if not patch.size:
                    continue
                inside = float(np.clip(similarity[row][part].mean(), 0.0, 1.0))
                mean = float(confidence[part].mean())
                area = extract.size_evidence(float((patch > self.settings.mask_threshold).sum()))
                rarity = extract.rarity_evidence(len(indices))
                evidence = Evidence(mean, 1.0, 1.0, inside, 0.5, 1.0, mean, 1.0, area, rarity, 0.5)
                found.append(Candidate(index, float(confidence[part].max()) * inside, evidence, patch, x, y))
        return found


def view_of_grid(view: View) -> View:
    """The same rectangle on a canvas of one pixel per token."""
    return View(view.x, view.y, view.width, view.height, (view.canvas[0] // 16, view.canvas[1] // 16), view.mirrored)
