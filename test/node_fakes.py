# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A segmenter that is no network: it knows by colour what it sees, and takes as long as it is told.

fake_segment_node.py runs the real node around it: what the node does with slow frames and failing objects can
so be tested to the point, on any machine. What the network does is tested with the network, in
test_node_integration.py.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from ocdit_ros.node.backend import SETTINGS, BackendError
from ocdit_ros.segment import Instance, SegmenterSettings, StreamSettings
from ocdit_ros.templates import ObjectSpec, TemplateSet


def instance(object_id: int, name: str, score: float, mask: np.ndarray) -> Instance:
    """An instance with the box of its mask."""
    rows, columns = np.nonzero(mask)
    box = (0, 0, 0, 0)
    if len(rows):
        x, y = int(columns.min()), int(rows.min())
        box = (x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
    return Instance(object_id, name, score, mask, box)


@dataclass
class FakeStream:
    """What the node keeps of a camera."""

    settings: StreamSettings
    frames: int = 0
    effort: Any = None


@dataclass
class FakeSegmenter:
    """The first object is whatever is red, the second green, the third blue; the score is the brightness.

    The pixel in the corner can order trouble: (9, 9, n) takes n tenths of a second, (9, 8, n) does so without letting
    other Python code run by itself, (1, 2, 3) is an error, (7, 7, n) takes n GiB of memory, (7, 6, n) is how PyTorch
    says that the GPU has none left, (7, 5, n) how it says that it is lost.
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

    def stream(self, settings: StreamSettings) -> FakeStream:
        return FakeStream(settings)

    def segment_streams(self, images: list[np.ndarray], streams: list[FakeStream]) -> list[list[Instance]]:
        """The id of an instance is the number of its object."""
        assert len({*map(id, streams)}) == len(streams)
        results = self.segment_many(images)
        for stream in streams:
            stream.frames += 1
            stream.effort = SimpleNamespace(full=stream.frames == 1)
        return [[dataclasses.replace(one, track_id=one.object_id) for one in found] for found in results]

    def segment(self, rgb: np.ndarray) -> list[Instance]:
        corner = rgb[0, 0].tolist()
        if corner == [1, 2, 3]:
            raise RuntimeError("a pixel of doom")
        if corner[:2] == [7, 7]:
            return [instance(1, str(len(bytearray(corner[2] * 1024**3))), 1.0, rgb[..., 0] > 0)]
        if corner[:2] == [7, 6]:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a capacity of 8 GiB.")
        if corner[:2] == [7, 5]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")
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


class OutOfMemoryError(RuntimeError):
    """Called as the one of torch, and its child as there."""


class CachingSegmenter(FakeSegmenter):
    """Keeps templates in the cache as the real one does, and says when it is at what.

    Its renderer draws from a generator that is seeded by the mesh, so an entry that is not what was stored is seen: it
    is an error here.
    """

    def __init__(self, settings: SegmenterSettings, directory: str) -> None:
        from ocdit_ros.templates import cache

        super().__init__(settings)
        cache.render = drawn
        store = cache.TemplateCache._store

        def tell(*arguments: Any) -> None:
            print("MARK storing", flush=True)
            store(*arguments)
            print("MARK stored", flush=True)

        cache.TemplateCache._store = tell  # type: ignore[method-assign]
        self._cache = cache.TemplateCache(directory)
        print("MARK configuring", flush=True)
        time.sleep(0.2)

    def add_object(self, spec: ObjectSpec) -> None:
        from ocdit_ros.templates import RenderSettings, load_mesh, viewpoints

        settings = RenderSettings(size=32, views=3, threads=1)
        entry = self._cache.get(spec, settings, large_features, "drawn")
        wanted = drawn(load_mesh(spec.mesh, spec.scale), viewpoints(3), settings, spec.name)
        for name in ("images", "masks", "depths", "rotations"):
            if not np.array_equal(getattr(entry.templates, name), getattr(wanted, name)):
                raise RuntimeError(f"the cache gave other {name} than were stored")
        if not np.array_equal(entry.features["map"], large_features(wanted)["map"]):
            raise RuntimeError("the cache gave other features than were stored")
        print(f"MARK {'cached' if entry.cached else 'made'}", flush=True)
        super().add_object(spec)

    def segment_many(self, images: list[np.ndarray]) -> list[list[Instance]]:
        print("MARK segmenting", flush=True)
        return super().segment_many(images)


def drawn(mesh: Any, rotations: np.ndarray, settings: Any, name: str) -> TemplateSet:
    """In place of the renderer."""
    rng = np.random.default_rng(int(mesh.diameter * 1e9))
    shape = (len(rotations), settings.size, settings.size)
    return TemplateSet(
        images=rng.integers(0, 256, (*shape, 3), np.uint8), masks=rng.integers(0, 256, shape, np.uint8),
        depths=rng.random(shape, np.float32), rotations=rotations, diameter=mesh.diameter, name=name,
    )  # fmt: skip


def large_features(templates: TemplateSet) -> dict[str, np.ndarray]:
    """24 MB, so that writing takes a while."""
    rng = np.random.default_rng(int(templates.images.astype(np.int64).sum()))
    return {"map": rng.integers(0, 256, 24_000_000, np.uint8)}


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
    if values["weights"] == "caching":
        return CachingSegmenter(settings, values["cache_dir"]), "a fake segmenter with a real cache"
    return FakeSegmenter(settings), "a fake segmenter that was never trained"
