# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Where instances are lost: the stage of the Segmenter at which each annotated instance goes missing.

    python -m ocdit_ros.evaluate.losses DATASET [--limit N] [--weights FILE] [--objects DIR] [--absent N] [--json FILE]

Every instance that counts ends in exactly one row of the table. Beside it stands what the refine pass makes of an
*oracle crop*: the crop that a proposal with the box of the annotation would get. It tells places that were not
found from objects that are not recognised even when one looks straight at them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ocdit_ros.evaluate.datasets import Dataset, DatasetError, GroundTruth, ImageKey, open_dataset
from ocdit_ros.evaluate.run import ObjectShelf
from ocdit_ros.segment import Segmenter, SegmenterSettings, extract
from ocdit_ros.segment.extract import Candidate, box_of
from ocdit_ros.segment.segmenter import CoarseResult, Proposal
from ocdit_ros.segment.views import crop_around

IOU = 0.5
#: Share of an instance's box that a crop has to show.
SEEN = 0.8

#: Stages in the order of the way, and what it means to be lost there.
STAGES = {
    "unseen": "the coarse pass gives the place to nobody",
    "taken": "the coarse pass gives the place to another object",
    "capped": "seen, but the proposal fell to a limit on their number",
    "framed": "seen, but no crop shows the whole instance",
    "refine": "no mask of the refine pass has IoU above 0.5",
    "same": "a good mask went because another of the same object covers it",
    "other": "a good mask went, or lost its pixels, because other objects explain it",
    "threshold": "a good mask is scored below the threshold",
    "found": "a detection with IoU above 0.5",
}


@dataclass(frozen=True)
class Fate:
    """What became of one annotated instance."""

    key: ImageKey
    category_id: int
    visible_fraction: float
    size: float  # root of the visible area, pixels
    stage: str  # of STAGES
    best: float  # highest IoU of a candidate of its object
    oracle: float  # the same with the oracle crop
    score: float  # of the best candidate, NaN without any


def trace_image(
    segmenter: Segmenter, rgb: np.ndarray, key: ImageKey, names: Sequence[str], categories: Sequence[int],
    truth: Sequence[GroundTruth], threshold: float,
) -> list[Fate]:  # fmt: skip
    """Segment an image and follow its instances.

    Args:
        segmenter: its catalogue holds the objects of the image.
        rgb: uint8 [H, W, 3].
        key: address of the image, for the result.
        names: objects that are asked for, as the catalogue calls them.
        categories: their ids in `truth`.
        truth: annotated instances; ignored ones are left out.
        threshold: score of a detection.

    Raises ValueError: the Segmenter does not refine.
    """
    if not segmenter.settings.refine:
        raise ValueError("Losses are counted by the refine pass; leave refinement on.")
    size = (rgb.shape[0], rgb.shape[1])
    indices = [segmenter.objects.index(name) for name in names]
    coarse = segmenter.coarse(rgb, indices)
    proposals = segmenter.proposals(coarse)
    truth = [g for g in truth if not g.ignored]
    rows = [list(categories).index(g.category_id) for g in truth]
    ideal = [Proposal(indices[row], row, 0, box_of(g.mask), 1.0) for g, row in zip(truth, rows, strict=True)]
    refined = segmenter.reframe(rgb, coarse, segmenter.refine(rgb, coarse, proposals))
    candidates = segmenter.candidates(refined, coarse, size)
    oracle = segmenter.refine(rgb, coarse, ideal)
    settings = segmenter.settings
    detections = extract.resolve(candidates, *size, settings.mask_threshold, settings.min_pixels)
    unlimited = _without_limits(segmenter, coarse)
    fates = []
    for n, (instance, row) in enumerate(zip(truth, rows, strict=True)):
        own = [c for c in candidates if c.index == indices[row]]
        ious = [_iou(c, instance.mask, settings.mask_threshold) for c in own]
        best = int(np.argmax(ious)) if own else -1
        kept = [c.score for c, mask in detections if c.index == indices[row] and _mask_iou(mask, instance.mask) > IOU]
        looked = segmenter.candidates([oracle[n]], coarse, size)
        if kept:
            stage = "found" if max(kept) >= threshold else "threshold"
        elif own and ious[best] > IOU:
            rivals = [c for c, _ in detections if c.index == indices[row]]
            stage = "same" if any(_share(c, own[best], segmenter) > 0.5 for c in rivals) else "other"
        elif any(_shows(segmenter, p, instance.mask) for p in proposals if p.row == row):
            stage = "refine"
        elif any(_shows(segmenter, p, instance.mask) for p in unlimited if p.row == row):
            stage = "capped"
        elif any(_touches(p, instance.mask) for p in unlimited if p.row == row):
            stage = "framed"
        else:
            stage = "taken" if _owner(coarse, instance.mask, row) else "unseen"
        fates.append(
            Fate(
                key,
                instance.category_id,
                instance.visible_fraction,
                float(np.sqrt(instance.mask.sum())),
                stage,
                max(ious, default=0.0),
                max((_iou(c, instance.mask, settings.mask_threshold) for c in looked), default=0.0),
                own[best].score if own else float("nan"),
            )
        )
    return fates


def trace(
    dataset: Dataset, segmenter: Segmenter, threshold: float, progress: Iterable[ImageKey] | None = None
) -> list[Fate]:
    """Fates of all instances of a data set that count."""
    shelf = ObjectShelf(dataset, segmenter)
    fates = []
    for key in dataset.images if progress is None else progress:
        categories = dataset.candidates(key)
        names = shelf.require(categories)
        fates += trace_image(segmenter, dataset.rgb(key), key, names, categories, dataset.ground_truth(key), threshold)
    return fates


def stage_table(rows: Sequence[tuple[str, float]]) -> list[str]:
    """Lines of Markdown: instances by the stage that lost them; rows of (stage, IoU with the oracle crop)."""
    lines = ["| lost at | instances | share | found by an oracle crop | |", "|---|---|---|---|---|"]
    for stage, text in STAGES.items():
        oracle = [iou for name, iou in rows if name == stage]
        if oracle:
            share = f"{100 * len(oracle) / len(rows):.1f} %"
            lines.append(f"| {stage} | {len(oracle)} | {share} | {sum(iou > IOU for iou in oracle)} | {text} |")
    lines.append(f"| all | {len(rows)} | | {sum(iou > IOU for _, iou in rows)} | |")
    return lines


def _without_limits(segmenter: Segmenter, coarse: CoarseResult) -> list[Proposal]:
    settings = segmenter.settings
    try:
        segmenter.settings = replace(settings, proposals_per_object=100, max_crops=100000)
        return segmenter.proposals(coarse)
    finally:
        segmenter.settings = settings


def _owner(coarse: CoarseResult, mask: np.ndarray, row: int) -> bool:
    """Whether another object claims more than half of the place in the coarse pass."""
    peaks = coarse.confidence.max(1)
    rows, columns = np.nonzero(mask)
    matrix = coarse.view.to_canvas()
    x = ((columns + 0.5) * matrix[0, 0] + matrix[0, 2]).astype(int).clip(0, peaks.shape[2] - 1)
    y = ((rows + 0.5) * matrix[1, 1] + matrix[1, 2]).astype(int).clip(0, peaks.shape[1] - 1)
    claims = peaks[:, y, x]
    return bool(((claims.argmax(0) != row) & (claims.max(0) > 0.5)).mean() > 0.5)


def _shows(segmenter: Segmenter, proposal: Proposal, mask: np.ndarray) -> bool:
    settings = segmenter.settings
    view = crop_around(proposal.box, settings.crop_scale, settings.crop_size, mask.shape[0], mask.shape[1])
    x, y, w, h = box_of(mask)
    width = min(x + w, view.x + view.width) - max(x, view.x)
    height = min(y + h, view.y + view.height) - max(y, view.y)
    return width > 0 and height > 0 and width * height >= SEEN * w * h


def _touches(proposal: Proposal, mask: np.ndarray) -> bool:
    x, y, w, h = (round(v) for v in proposal.box)
    return bool(mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)].sum() > 0.25 * mask.sum())


def _iou(candidate: Candidate, mask: np.ndarray, threshold: float) -> float:
    return _mask_iou(_whole(candidate, mask.shape, threshold), mask)


def _whole(candidate: Candidate, shape: tuple[int, ...], threshold: float) -> np.ndarray:
    whole = np.zeros(shape, bool)
    whole[candidate.window()] = candidate.confidence > threshold
    return whole


def _mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _share(a: Candidate, b: Candidate, segmenter: Segmenter) -> float:
    """Common area relative to the smaller one."""
    shape = tuple(np.maximum([a.y, a.x] + np.array(a.confidence.shape), [b.y, b.x] + np.array(b.confidence.shape)))
    first, second = (_whole(c, shape, segmenter.settings.mask_threshold) for c in (a, b))
    return float((first & second).sum() / max(min(first.sum(), second.sum()), 1))


def main() -> int:
    """Command line."""
    import torch
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m ocdit_ros.evaluate.losses", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--objects", metavar="DIR", help="object store of synthetic scenes")
    parser.add_argument("--absent", type=int, default=4, metavar="N", help="absent objects per synthetic scene")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="also write every instance")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threshold = SegmenterSettings().score_threshold
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    segmenter = Segmenter.from_checkpoint(options.weights, device, SegmenterSettings(score_threshold=0.0))
    try:
        data = open_dataset(options.dataset, objects=options.objects, absent=options.absent, limit=options.limit)
        fates = trace(data, segmenter, threshold, tqdm(data.images, unit="image", dynamic_ncols=True))
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        rows = [
            {"scene_id": f.key.scene_id, "image_id": f.key.image_id, "object": data.categories[f.category_id],
             "visible": f.visible_fraction, "size": round(f.size, 1), "stage": f.stage, "best": round(f.best, 4),
             "oracle": round(f.oracle, 4), "score": None if np.isnan(f.score) else round(f.score, 4)}
            for f in fates
        ]  # fmt: skip
        Path(options.json).write_text(json.dumps(rows, indent=1))
    print("\n".join(stage_table([(f.stage, f.oracle) for f in fates])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
