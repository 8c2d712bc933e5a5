# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Run a Segmenter over a data set, image by image, in as many processes as torchrun starts; resumable.

Every process appends one line of JSON per image to its own file, so that a run that was cut can go on, with
another number of processes if need be. A header says how the run was made; a run is only continued under the
same header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_ros.evaluate.datasets import Dataset, ImageKey
from ocdit_ros.evaluate.submission import Detection, encode_mask
from ocdit_ros.segment import Evidence, Instance, Segmenter
from ocdit_ros.templates import TemplateSet


class RunError(RuntimeError):
    """A run that cannot be continued; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """Everything that is kept of one image."""

    key: ImageKey
    candidates: tuple[int, ...]  # ids of the objects that were asked for
    seconds: float
    timings: dict[str, float]
    detections: tuple[Detection, ...]
    evidence: tuple[tuple[float, ...], ...]  # per detection, in the order of Evidence.names()

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "scene_id": self.key.scene_id,
                "image_id": self.key.image_id,
                "candidates": self.candidates,
                "seconds": self.seconds,
                "timings": self.timings,
                "detections": [
                    {
                        "category_id": d.category_id,
                        "score": d.score,
                        "size": d.rle["size"],
                        "counts": d.rle["counts"].decode(),
                        "box": d.box,
                    }
                    for d in self.detections
                ],
                "evidence": self.evidence,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Inverse of to_json. Raises ValueError or KeyError for a line that was cut."""
        row = json.loads(line)
        key = ImageKey(row["scene_id"], row["image_id"])
        detections = tuple(
            Detection(
                key, d["category_id"], d["score"], {"size": d["size"], "counts": d["counts"].encode()},
                tuple(d["box"]), row["seconds"],
            )
            for d in row["detections"]
        )  # fmt: skip
        evidence = tuple(tuple(e) for e in row["evidence"])
        return cls(key, tuple(row["candidates"]), row["seconds"], row["timings"], detections, evidence)


class ObjectShelf:
    """Keeps the Segmenter's catalogue filled with the objects that images ask for, at most `limit` at a time."""

    def __init__(self, dataset: Dataset, segmenter: Segmenter, limit: int = 256) -> None:
        self._dataset, self._segmenter, self._limit = dataset, segmenter, limit
        self._last_used: dict[int, int] = {}
        self._clock = 0

    def require(self, category_ids: Iterable[int]) -> list[str]:
        """Make sure these objects are in the catalogue; their names there, in the same order."""
        wanted = list(category_ids)
        self._clock += 1
        for category in wanted:
            if category not in self._last_used:
                source = replace(self._dataset.object_source(category), name=str(category))
                if isinstance(source, TemplateSet):
                    self._segmenter.add_templates(source)
                else:
                    self._segmenter.add_object(source)
            self._last_used[category] = self._clock
        for category in sorted(self._last_used, key=self._last_used.__getitem__)[: -max(self._limit, len(wanted))]:
            self._segmenter.remove_object(str(category))
            del self._last_used[category]
        return [str(category) for category in wanted]


def rank_and_world() -> tuple[int, int]:
    """Number of this process and of all, as torchrun tells them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def run(
    dataset: Dataset,
    segmenter: Segmenter,
    folder: Path,
    header: dict[str, Any],
    resume: bool = False,
    progress: Callable[[list[ImageKey]], Iterable[ImageKey]] = iter,
) -> None:
    """Segment this process's share of the images and append what comes out to its file in `folder`.

    Raises RunError when `folder` holds a run and `resume` is not set, or one that was made with another
    header.
    """
    rank, world = rank_and_world()
    done = prepare(folder, header, resume) if rank == 0 or world == 1 else {r.key for r in read_records(folder)}
    mine = [key for n, key in enumerate(dataset.images) if n % world == rank and key not in done]
    shelf = ObjectShelf(dataset, segmenter)
    path = folder / f"records-{rank}.jsonl"
    cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as file:
        if cut and path.stat().st_size:
            file.write("\n")  # so that the line that was cut spoils no other
        for key in progress(mine):
            record = segment_image(dataset, segmenter, shelf, key)
            file.write(record.to_json() + "\n")
            file.flush()


def prepare(folder: Path, header: dict[str, Any], resume: bool) -> set[ImageKey]:
    """Make `folder` ready for a run; the images that are done already. Raises RunError as `run` does."""
    path = folder / "run.json"
    text = json.dumps(header, indent=1, sort_keys=True)
    if path.exists():
        if not resume:
            raise RunError(
                f"'{folder}' holds an evaluation already; add --resume to continue it, or choose another --out."
            )
        if path.read_text() != text:
            raise RunError(
                f"'{folder}' holds an evaluation with other settings (see run.json there); choose another --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return {record.key for record in read_records(folder)}


def read_records(folder: Path) -> list[Record]:
    """All records of a run; a last line that was cut while it was written is left out."""
    records: dict[ImageKey, Record] = {}
    for path in sorted(folder.glob("records-*.jsonl")):
        for line in _lines(path):
            try:
                record = Record.from_json(line)
            except (ValueError, KeyError):
                continue
            records[record.key] = record
    return list(records.values())


def segment_image(dataset: Dataset, segmenter: Segmenter, shelf: ObjectShelf, key: ImageKey) -> Record:
    """Segment one image; loading the image and the objects is not part of its time."""
    rgb = dataset.rgb(key)
    candidates = dataset.candidates(key)
    names = shelf.require(candidates)
    instances = segmenter.segment(rgb, names)
    seconds = segmenter.last_timings["total"]
    return Record(
        key,
        tuple(candidates),
        seconds,
        dict(segmenter.last_timings),
        tuple(_detection(key, instance, seconds) for instance in instances),
        tuple(_evidence(instance) for instance in instances),
    )


def _detection(key: ImageKey, instance: Instance, seconds: float) -> Detection:
    return Detection(key, int(instance.name), float(instance.score), encode_mask(instance.mask), instance.box, seconds)


def _evidence(instance: Instance) -> tuple[float, ...]:
    if instance.evidence is None:
        return (float("nan"),) * len(Evidence.names())
    return tuple(float(v) for v in np.round(instance.evidence.vector(), 6))


def _lines(path: Path) -> Iterator[str]:
    with open(path) as file:
        yield from file
