# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What AP alone does not say: calibration, absent objects, mix-ups, and how results depend on size,
occlusion, copies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from ocdit_ros.evaluate import coco
from ocdit_ros.evaluate.calibration import (
    ReliabilityBin,
    calibration_error_by_chance,
    expected_calibration_error,
    reliability,
)
from ocdit_ros.evaluate.coco import CocoScores
from ocdit_ros.evaluate.datasets import Dataset, GroundTruth, ImageKey
from ocdit_ros.evaluate.run import Record
from ocdit_ros.evaluate.submission import encode_mask

SIZES = ((0, 16), (16, 32), (32, 64), (64, 128), (128, float("inf")))  # square root of the visible area, pixels
VISIBLE = ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0001))
COPIES = ((1, 2), (2, 3), (3, 6))


@dataclass(frozen=True)
class Share:
    """A part of the instances that count, and how many of them were found."""

    label: str
    instances: int
    found: int

    @property
    def fraction(self) -> float:
        """Found / instances, NaN for none."""
        return self.found / self.instances if self.instances else float("nan")


@dataclass(frozen=True)
class Kin:
    """Instances that stand in one image with another object of their family (shape or print shared), and what they
    were taken for.
    """

    instances: int
    shown: int  # a detection of a member of the family has IoU above 0.5
    right: int  # the best of those names the right member


@dataclass(frozen=True)
class ImageQuality:
    """One image at the score threshold; quality is panoptic quality, TP IoUs / (TP + FP / 2 + FN / 2)."""

    key: ImageKey
    quality: float
    found: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class Analysis:
    """Everything an evaluation reports. Counts and fractions beside AP and ECE are at the score threshold."""

    images: int
    scores: CocoScores
    ece: float  # of all detections
    ece_by_chance: float  # what it would be on average if the scores were perfectly calibrated
    reliability: tuple[ReliabilityBin, ...]
    threshold: float
    seconds_median: float
    seconds_mean: float
    stages: dict[str, float]  # mean seconds
    found: int
    instances: int
    wrong: int  # detections that match nothing
    absent_pairs: int  # (object, image) pairs that were asked for and are not there
    absent_fired: int  # of which a detection came
    by_size: tuple[Share, ...]
    by_visibility: tuple[Share, ...]
    by_copies: tuple[Share, ...]
    confusion: tuple[tuple[int, int, int], ...]  # (reported as, truly, count), most frequent first
    errors: dict[str, int]  # wrong detections by kind
    kin: Kin
    per_image: tuple[ImageQuality, ...]

    @property
    def absent_rate(self) -> float:
        """Share of absent (object, image) pairs that yield a detection."""
        return self.absent_fired / self.absent_pairs if self.absent_pairs else float("nan")


def analyse(dataset: Dataset, records: Sequence[Record], threshold: float) -> Analysis:
    """Analyse a finished run.

    Recall and errors use IoU 0.5 at `threshold`, detections matched to instances greedily by score.
    """
    truth = {record.key: dataset.ground_truth(record.key) for record in _in_order(dataset, records)}
    by_key = {record.key: record for record in records}
    detections = [d for key in truth for d in by_key[key].detections]
    scores = coco.evaluate(truth, detections, list(dataset.categories))
    counted = [m for m in scores.matches if not m.ignored]
    values = np.array([detections[m.detection].score for m in counted])
    correct = np.array([m.correct for m in counted], bool)

    found_by: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    confusion: Counter[tuple[int, int]] = Counter()
    errors: Counter[str] = Counter()
    per_image = []
    absent_pairs = absent_fired = 0
    kin: Counter[str] = Counter()
    for key, instances in truth.items():
        record = by_key[key]
        kept = [d for d in record.detections if d.score >= threshold]
        ious = _ious([d.rle for d in kept], instances)
        matched, excused = _match(kept, instances, ious)
        copies = Counter(g.category_id for g in instances if not g.ignored)
        for n, instance in enumerate(instances):
            if not instance.ignored:
                hit = n in matched.values()
                found_by["size"].append((float(np.sqrt(instance.mask.sum())), hit))
                found_by["visible"].append((instance.visible_fraction, hit))
                found_by["copies"].append((copies[instance.category_id], hit))
        kin.update(_kin(dataset.families, kept, instances, ious))
        wrong = 0
        for d, detection in enumerate(kept):
            if d in matched or d in excused:
                continue
            wrong += 1
            kind, other = _error(detection.category_id, instances, ious[d])
            errors[kind] += 1
            if other is not None:
                confusion[detection.category_id, other] += 1
        present = {g.category_id for g in instances}
        fired = {d.category_id for d in kept}
        absent = [c for c in record.candidates if c not in present]
        absent_pairs += len(absent)
        absent_fired += sum(c in fired for c in absent)
        missed = sum(copies.values()) - sum(not instances[n].ignored for n in matched.values())
        quality = sum(float(ious[d, n]) for d, n in matched.items())
        denominator = len(matched) + 0.5 * (wrong + missed)
        per_image.append(ImageQuality(key, quality / denominator if denominator else 1.0, len(matched), wrong, missed))

    seconds = np.array([by_key[key].seconds for key in truth])
    stages: dict[str, float] = defaultdict(float)
    for key in truth:
        for stage, value in by_key[key].timings.items():
            stages[stage] += value / len(truth)
    return Analysis(
        images=len(truth),
        scores=scores,
        ece=expected_calibration_error(values, correct),
        ece_by_chance=calibration_error_by_chance(values),
        reliability=tuple(reliability(values, correct)),
        threshold=threshold,
        seconds_median=float(np.median(seconds)) if seconds.size else float("nan"),
        seconds_mean=float(seconds.mean()) if seconds.size else float("nan"),
        stages=dict(stages),
        found=sum(hit for _, hit in found_by["size"]),
        instances=len(found_by["size"]),
        wrong=sum(errors.values()),
        absent_pairs=absent_pairs,
        absent_fired=absent_fired,
        by_size=_shares(found_by["size"], SIZES, lambda a, b: f"{a:g}-{b:g} px" if b < 1e9 else f"{a:g} px and more"),
        by_visibility=_shares(found_by["visible"], VISIBLE, lambda a, b: f"{100 * a:.0f}-{100 * min(b, 1):.0f} %"),
        by_copies=_shares(found_by["copies"], COPIES, lambda a, b: f"{a}" if b - a == 1 else f"{a}-{b - 1}"),
        confusion=tuple((a, b, n) for (a, b), n in confusion.most_common()),
        errors=dict(errors),
        kin=Kin(kin["instances"], kin["shown"], kin["right"]),
        per_image=tuple(per_image),
    )


def _in_order(dataset: Dataset, records: Sequence[Record]) -> list[Record]:
    place = {key: n for n, key in enumerate(dataset.images)}
    return sorted((r for r in records if r.key in place), key=lambda r: place[r.key])


def _ious(rles: list[dict], instances: list[GroundTruth]) -> np.ndarray:
    if not rles or not instances:
        return np.zeros((len(rles), len(instances)))
    return np.asarray(mask_utils.iou(rles, [encode_mask(g.mask) for g in instances], [0] * len(instances)))


def _match(kept: list, instances: list[GroundTruth], ious: np.ndarray) -> tuple[dict[int, int], set[int]]:
    """Detection -> instance that counts, best score first; and the detections that an ignored instance
    excuses.
    """
    matched: dict[int, int] = {}
    excused: set[int] = set()
    free = set(range(len(instances)))
    for d in sorted(range(len(kept)), key=lambda d: -kept[d].score):
        fits = [n for n in free if instances[n].category_id == kept[d].category_id and ious[d, n] > 0.5]
        if not fits:
            continue
        best = max(fits, key=lambda n: (not instances[n].ignored, ious[d, n]))
        free.discard(best)
        if instances[best].ignored:
            excused.add(d)
        else:
            matched[d] = best
    return matched, excused


def _kin(families: dict[int, str], kept: list, instances: list[GroundTruth], ious: np.ndarray) -> Counter[str]:
    """Counts of one image for Kin."""
    counts: Counter[str] = Counter()
    family = [families.get(g.category_id) for g in instances]
    members: dict[str | None, set[int]] = defaultdict(set)
    for name, instance in zip(family, instances, strict=True):
        if not instance.ignored:
            members[name].add(instance.category_id)
    for n, instance in enumerate(instances):
        if instance.ignored or family[n] is None or len(members[family[n]]) < 2:
            continue
        over = [d for d, one in enumerate(kept) if families.get(one.category_id) == family[n] and ious[d, n] > 0.5]
        counts["instances"] += 1
        counts["shown"] += bool(over)
        best = max(over, key=lambda d: kept[d].score, default=None)
        counts["right"] += best is not None and kept[best].category_id == instance.category_id
    return counts


def _error(category: int, instances: list[GroundTruth], ious: np.ndarray) -> tuple[str, int | None]:
    """Kind of a wrong detection, and the object it was mixed up with."""
    own = [n for n, g in enumerate(instances) if g.category_id == category]
    other = [n for n, g in enumerate(instances) if g.category_id != category]
    best_own = max((ious[n] for n in own), default=0.0)
    best = max(other, key=lambda n: ious[n], default=None)
    if best_own > 0.5:
        return "second detection of an instance", None
    if best is not None and ious[best] > 0.5:
        return "another object", instances[best].category_id
    if best_own > 0.1:
        return "own object, poor mask", None
    if best is not None and ious[best] > 0.1:
        return "part of another object", None
    return "background", None


def _shares(
    rows: list[tuple[float, bool]], bins: Sequence[tuple[float, float]], label: Callable[[float, float], str]
) -> tuple[Share, ...]:
    shares = []
    for low, high in bins:
        hits = [hit for value, hit in rows if low <= value < high]
        shares.append(Share(label(low, high), len(hits), sum(hits)))
    return tuple(shares)
