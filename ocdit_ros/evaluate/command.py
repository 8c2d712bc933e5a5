# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit evaluate`: run, score, write result file, scores and report."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ocdit_ros.evaluate import calibration, coco, run, submission
from ocdit_ros.evaluate.analysis import Analysis, analyse
from ocdit_ros.evaluate.datasets import Dataset, ImageKey, open_dataset
from ocdit_ros.evaluate.report import write_report
from ocdit_ros.segment import Evidence, Segmenter, SegmenterSettings
from ocdit_ros.segment.correlation import CorrelationSegmenter
from ocdit_ros.segment.scoring import Scorer
from ocdit_ros.segment.weights import default_weights


def evaluate(
    options: argparse.Namespace,
    make_segmenter: Callable[[type[Segmenter] | None], Segmenter],
    settings: SegmenterSettings,
    threshold: float,
) -> int:
    """Run the command with the options of `ocdit evaluate`; every process of a torchrun comes here."""
    dataset = open_dataset(
        options.dataset, options.split, options.targets, options.object_store, options.absent, options.limit,
        options.asked, options.complete,
    )  # fmt: skip
    folder = Path(options.out or Path("evaluation") / f"{options.method}_{dataset.name}")
    weights = Path(options.weights or default_weights())
    header = describe(dataset, options.method, weights, settings)
    header |= {"absent": options.absent, "asked": options.asked, "complete": options.complete}
    if options.scores:
        header["scores"] = json.loads(Path(options.scores).read_text())
    rank, world = run.rank_and_world()
    if rank == 0:
        run.prepare(folder, header, options.resume)
    _wait_for_all(world)
    segmenter = make_segmenter(CorrelationSegmenter if options.method == "correlation" else None)
    if options.scores:
        segmenter.scorer = Scorer.from_metadata(header["scores"])

    def progress(keys: list[ImageKey]) -> Iterable[ImageKey]:
        return tqdm(keys, desc=dataset.name, unit="image", disable=rank > 0, dynamic_ncols=True)

    run.run(dataset, segmenter, folder, header, True, progress)
    _wait_for_all(world)
    if rank == 0:
        finish(dataset, folder, options.method, header, threshold)
        if options.fit_scores:
            fit_scores(dataset, run.read_records(folder), options.fit_scores)
    return 0


def describe(dataset: Dataset, method: str, weights: Path, settings: SegmenterSettings) -> dict[str, Any]:
    """How a run is made, for its header and report."""
    return {
        "method": method,
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset.images),
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "settings": dataclasses.asdict(settings),
    }


def finish(dataset: Dataset, folder: Path, method: str, header: dict[str, Any], threshold: float) -> Analysis:
    """Score the records in `folder` and write the result file, scores.json and report.html there."""
    records = run.read_records(folder)
    found = [d for record in records for d in record.detections]
    result = folder / submission.file_name(method, dataset.name, dataset.split)
    submission.write(result, found)
    analysis = analyse(dataset, records, threshold)
    (folder / "scores.json").write_text(json.dumps(summary(dataset, analysis), indent=1))
    s = header["settings"]
    how = (
        f"Weights {header['weights']} ({header['weights_sha256'][:12]}); "
        + (f"steps {s['steps']}, ensemble {s['ensemble']}, augmentations {s['augmentations']}, "
           f"refinement {'on' if s['refine'] else 'off'}, " if method == "ocdit" else "no diffusion, ")
        + f"coarse size {s['coarse_size']}, seed {s['seed']}."
    )  # fmt: skip
    names = {"ocdit": "OC-DiT", "correlation": "Template correlation"}
    title = f"{names.get(method, method)} on {dataset.name} ({dataset.split})"
    (folder / "report.html").write_text(write_report(dataset, records, analysis, title, how))
    print(table_row(analysis))
    print(f"{result}\n{folder / 'scores.json'}\n{folder / 'report.html'}")
    return analysis


def summary(dataset: Dataset, a: Analysis) -> dict[str, Any]:
    """Everything of an analysis that fits a table; fractions in 0..1, None where there is nothing to average."""

    def share(rows: Iterable[Any]) -> list[dict[str, Any]]:
        return [{"label": r.label, "instances": r.instances, "found": r.found} for r in rows]

    def number(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 6)

    s = a.scores
    return {
        "dataset": dataset.name, "images": a.images, "instances": a.instances, "threshold": a.threshold,
        "AP": number(s.ap), "AP50": number(s.ap50), "AP75": number(s.ap75), "AR": number(s.ar),
        "AP_small": number(s.ap_small), "AP_medium": number(s.ap_medium), "AP_large": number(s.ap_large),
        "ECE": number(a.ece), "ECE_by_chance": number(a.ece_by_chance),
        "seconds_median": number(a.seconds_median), "seconds_mean": number(a.seconds_mean),
        "found": a.found, "wrong": a.wrong, "absent_pairs": a.absent_pairs, "absent_fired": a.absent_fired,
        "stages": {k: number(v) for k, v in a.stages.items()},
        "by_size": share(a.by_size), "by_visibility": share(a.by_visibility), "by_copies": share(a.by_copies),
        "errors": a.errors, "kin": dataclasses.asdict(a.kin),
        "objects": [
            {"object": dataset.categories[o.category_id], "instances": o.instances, "AP": number(o.ap),
             "AP50": number(o.ap50), "AR": number(o.ar)}
            for o in s.per_object if o.instances
        ],
    }  # fmt: skip


def table_row(a: Analysis) -> str:
    """One line for the terminal."""
    s = a.scores
    return (
        f"AP {100 * s.ap:.1f}  AP50 {100 * s.ap50:.1f}  AP75 {100 * s.ap75:.1f}  AR {100 * s.ar:.1f}  "
        f"ECE {100 * a.ece:.1f} (by chance {100 * a.ece_by_chance:.1f})  {a.seconds_median:.2f} s/image  "
        f"found {a.found}/{a.instances}, wrong {a.wrong}, "
        f"absent firing {100 * a.absent_rate:.1f} % at score {a.threshold:.2f}"
    )


def fit_scores(dataset: Dataset, records: list[run.Record], path: str) -> None:
    """Fit the weights of the evidence on a run and write them as an entry for a checkpoint's provenance."""
    truth = {record.key: dataset.ground_truth(record.key) for record in records}
    found = [d for record in records for d in record.detections]
    evidence = np.array([e for record in records for e in record.evidence]).reshape(-1, len(Evidence.names()))
    matches = [m for m in coco.evaluate(truth, found, list(dataset.categories)).matches if not m.ignored]
    index = [m.detection for m in matches]
    scorer = calibration.fit_scorer(evidence[index], np.array([m.correct for m in matches]))
    entry = json.loads(scorer.to_json())
    entry["fitted_on"] = {"dataset": dataset.name, "images": len(records), "detections": len(index)}
    Path(path).write_text(json.dumps({"score": entry}, indent=1))
    print(f"{path}: scores fitted on {len(index)} detections")


def _wait_for_all(world: int) -> None:
    """Let every process of a torchrun come to this point."""
    if world == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # processes may be done hours apart
    dist.barrier()
