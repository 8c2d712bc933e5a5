# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A network that knows the answer: it reads from the pixels where it looks, and gives the true masks of that
place.

Images come from `position_image`, whose red and green channels are column and row, so whatever crop,
mirroring or resizing the Segmenter does, the oracle sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ocdit_ros.model import ModelConfig
from ocdit_ros.segment.network import KnownObject, Output, Timings
from ocdit_ros.templates import TemplateSet


def position_image(height: int = 192, width: int = 256) -> np.ndarray:
    """uint8 [height, width, 3]; both at most 256."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)


class OracleNetwork:
    """Stands in for segment.network.Network.

    `truth` maps names to float confidences [Q, height, width] in the image; `spoil` may change what is
    answered.
    """

    def __init__(
        self, truth: Mapping[str, np.ndarray], queries: int = 1,
        spoil: Callable[[np.ndarray, np.random.Generator], np.ndarray] = lambda confidence, generator: confidence,
    ) -> None:  # fmt: skip
        self.truth, self.spoil = truth, spoil
        self.config = ModelConfig.preset("tiny", queries_per_object=queries)
        self.timings = Timings()
        self.calls: list[tuple[int, int]] = []  # rows and objects per row of every run

    feature_key = "oracle"

    def featurize(self, templates: TemplateSet) -> dict[str, np.ndarray]:
        return {}

    def onboard(self, name, diameter, features, slot=0) -> KnownObject:
        return KnownObject(name, diameter, None, slot)

    def run(self, images, rows, slots, image_of_row, targets, sampler, seed=0, batch_tokens=0, on_step=None) -> Output:
        self.calls.append((len(rows), len(rows[0])))
        assert all(len(set(s)) == len(s) == len(rows[0]) for s in slots)
        generator = np.random.default_rng(seed)
        height, width = images[0].shape[:2]
        queries = self.config.queries_per_object
        confidence = np.zeros((len(rows), sampler.ensemble, targets, queries, height, width), np.float32)
        for r, (row, n) in enumerate(zip(rows, image_of_row, strict=True)):
            columns, lines = images[n][..., 0], images[n][..., 1]
            for t, known in enumerate(row[:targets]):
                maps = self.truth.get(known.name)
                if maps is None:
                    continue
                for e in range(sampler.ensemble):
                    seen = maps[:, np.minimum(lines, maps.shape[1] - 1), np.minimum(columns, maps.shape[2] - 1)]
                    confidence[r, e, t] = self.spoil(seen, generator)
        return Output(confidence, np.full((len(rows), targets, 2, height // 16, width // 16), 0.5, np.float32))


def templates(name: str, size: int = 64, count: int = 4) -> TemplateSet:
    """Templates that satisfy the Segmenter; the oracle does not look at them."""
    generator = np.random.default_rng(sum(map(ord, name)))
    return TemplateSet(
        images=generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        masks=np.full((count, size, size), 255, np.uint8),
        depths=np.ones((count, size, size), np.float32),
        rotations=np.repeat(np.eye(3, dtype=np.float32)[None], count, 0),
        diameter=0.2,
        name=name,
    )
