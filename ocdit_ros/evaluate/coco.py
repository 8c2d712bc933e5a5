# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""COCO average precision as BOP defines it for 2D segmentation.

BOP's `eval_bop22_coco.py` runs COCO's evaluation on all images of the targets file together, at most 100
detections per object and image, IoU 0.5:0.05:0.95, averaged over the objects that have at least one instance
that counts. Instances visible below 10 % carry `ignore`: nobody is punished for missing them, and a detection
that matches one counts neither way. The toolkit needs a changed pycocotools for that, because COCOeval
overwrites `ignore` with `iscrowd` (cocoapi issue 466), and marking the instance as a crowd instead would
change its IoU and let it match many detections. :class:`_BopCocoEval` puts the flag back after COCOeval's own
preparation; everything else is pycocotools untouched.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ocdit_ros.evaluate.datasets import GroundTruth, ImageKey
from ocdit_ros.evaluate.submission import Detection, encode_mask

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ObjectScores:
    """Average precision of one object; NaN where no instance of it counts."""

    category_id: int
    instances: int  # that count, over all images
    ap: float
    ap50: float
    ar: float


@dataclass(frozen=True)
class Match:
    """What COCO's matching at IoU 0.5 made of one detection."""

    detection: int  # index in the list that was evaluated
    correct: bool
    ignored: bool  # matched an instance that is ignored


@dataclass(frozen=True)
class CocoScores:
    """Result of an evaluation. Fractions in 0..1; NaN where there is nothing to average."""

    ap: float  # AP, mean over IoU 0.5:0.05:0.95
    ap50: float
    ap75: float
    ap_small: float  # instances below 32^2 pixels
    ap_medium: float
    ap_large: float  # above 96^2
    ar: float  # AR at 100 detections per object and image
    per_object: tuple[ObjectScores, ...]
    precision: np.ndarray  # [10 IoUs, 101 recalls, objects]; -1 where an object has no instance that counts
    matches: tuple[Match, ...]  # at IoU 0.5, only detections in the 100 best of their object and image


class _BopCocoEval(COCOeval):
    def _prepare(self) -> None:
        super()._prepare()
        for group in self._gts.values():
            for annotation in group:
                annotation["ignore"] = annotation["bop_ignore"]


def evaluate(
    truth: dict[ImageKey, list[GroundTruth]],
    detections: Sequence[Detection],
    category_ids: Sequence[int],
) -> CocoScores:
    """Average precision of `detections` against `truth`.

    Args:
        truth: annotated instances of every image that is evaluated, in the order of the targets file.
        detections: detections; those of images that are not in `truth` are left out, as the BOP toolkit does.
        category_ids: ids of all objects of the data set.

    Raises ValueError: a detection's mask has another size than its image.
    """
    # Scenes stay in the order of the targets file, images are sorted: ties between equal scores fall as in
    # the toolkit.
    scenes = list(dict.fromkeys(key.scene_id for key in truth))
    order = sorted(truth, key=lambda key: (scenes.index(key.scene_id), key.image_id))
    image_ids = {key: number for number, key in enumerate(order, start=1)}
    # The toolkit also merges the detections scene by scene, each scene in the order of the file.
    kept = [n for scene in scenes for n, d in enumerate(detections) if d.key.scene_id == scene and d.key in image_ids]

    ground_truth = _load(_dataset(truth, image_ids, category_ids))
    results = [_result(detections[n], image_ids[detections[n].key], truth[detections[n].key]) for n in kept]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports progress by print
        if results:
            predicted = ground_truth.loadRes(results)
        else:
            predicted = _load({**ground_truth.dataset, "annotations": []})
        coco = _BopCocoEval(ground_truth, predicted, "segm")
        coco.params.iouThrs, coco.params.recThrs = IOU_THRESHOLDS, RECALL_POINTS
        coco.evaluate()
        coco.accumulate()
    precision = coco.eval["precision"]  # [T, R, K, A, M]; areas: all, small, medium, large; detections: 1, 10, 100
    recall = coco.eval["recall"]  # [T, K, A, M]
    return CocoScores(
        ap=_mean(precision[:, :, :, 0, -1]),
        ap50=_mean(precision[0, :, :, 0, -1]),
        ap75=_mean(precision[5, :, :, 0, -1]),
        ap_small=_mean(precision[:, :, :, 1, -1]),
        ap_medium=_mean(precision[:, :, :, 2, -1]),
        ap_large=_mean(precision[:, :, :, 3, -1]),
        ar=_mean(recall[:, :, 0, -1]),
        per_object=tuple(
            ObjectScores(
                category_id=category,
                instances=sum(
                    1 for rows in truth.values() for g in rows if g.category_id == category and not g.ignored
                ),
                ap=_mean(precision[:, :, k, 0, -1]),
                ap50=_mean(precision[0, :, k, 0, -1]),
                ar=_mean(recall[:, k, 0, -1]),
            )
            for k, category in enumerate(coco.params.catIds)
        ),
        precision=precision[:, :, :, 0, -1],
        matches=_matches(coco, kept),
    )


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _load(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _dataset(
    truth: dict[ImageKey, list[GroundTruth]], image_ids: dict[ImageKey, int], category_ids: Sequence[int]
) -> dict:
    annotations: list[dict] = []
    for key, number in image_ids.items():
        for instance in truth[key]:
            area = int(np.count_nonzero(instance.mask))
            if area:
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # COCOeval takes id 0 for "not matched"
                        "image_id": number,
                        "category_id": instance.category_id,
                        "iscrowd": 0,
                        "bop_ignore": int(instance.ignored),
                        "area": area,
                        "segmentation": encode_mask(instance.mask),
                    }
                )
    categories = [{"id": int(i), "name": str(i)} for i in sorted(set(category_ids))]
    images = []
    for key, number in image_ids.items():
        height, width = truth[key][0].mask.shape if truth[key] else (0, 0)
        images.append({"id": number, "height": height, "width": width})
    return {"images": images, "annotations": annotations, "categories": categories}


def _result(detection: Detection, image_id: int, instances: list[GroundTruth]) -> dict:
    size = list(detection.rle["size"])
    if instances and size != list(instances[0].mask.shape):
        raise ValueError(
            f"The mask of a detection in scene {detection.key.scene_id}, image {detection.key.image_id} is "
            f"{size[1]}x{size[0]} pixels, the image {instances[0].mask.shape[1]}x{instances[0].mask.shape[0]}."
        )
    return {
        "image_id": image_id,
        "category_id": detection.category_id,
        "score": detection.score,
        "bbox": list(detection.box),
        "segmentation": dict(detection.rle),
    }


def _matches(coco: COCOeval, kept: list[int]) -> tuple[Match, ...]:
    """Matches at IoU 0.5 over all areas.

    loadRes numbered the detections from 1 in the order they were given.
    """
    matches = []
    for image in coco.evalImgs:
        if image is None or image["aRng"] != coco.params.areaRng[0]:
            continue
        for column, number in enumerate(image["dtIds"]):
            ignored = bool(image["dtIgnore"][0, column])
            matched = image["dtMatches"][0, column] > 0
            matches.append(Match(kept[number - 1], bool(matched and not ignored), ignored))
    return tuple(sorted(matches, key=lambda match: match.detection))
