# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The HTML report of an evaluation: one file, no scripts, pictures inside; readable without explanation."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ocdit_ros.evaluate.analysis import Analysis, ImageQuality, Share
from ocdit_ros.evaluate.coco import RECALL_POINTS
from ocdit_ros.evaluate.datasets import Dataset
from ocdit_ros.evaluate.run import Record
from ocdit_ros.segment.draw import overlay
from ocdit_ros.segment.extract import box_of
from ocdit_ros.segment.types import Instance

_STYLE = """
:root { --ink: #1d2733; --faint: #667788; --line: #d8e0e8; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, figcaption { color: var(--faint); margin: .3rem 0; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td.t, th.t { text-align: left; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 7.5rem; }
.tile b { display: block; font-size: 1.5rem; }
.tile span { color: var(--faint); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; border-radius: .3rem; }
.row { display: flex; flex-wrap: wrap; gap: 2rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
"""


def write_report(dataset: Dataset, records: Sequence[Record], analysis: Analysis, title: str, how: str) -> str:
    """HTML of the report.

    Args:
        dataset: for images, masks and names.
        records: the run.
        analysis: of that run.
        title: method and data set.
        how: one line that says how the run was made.
    """
    a, s = analysis, analysis.scores
    tiles = [
        ("AP", _percent(s.ap), "mean over IoU 0.50 to 0.95"),
        ("AP50", _percent(s.ap50), "IoU 0.50"),
        ("AP75", _percent(s.ap75), "IoU 0.75"),
        ("AR", _percent(s.ar), "recall, mean over IoU"),
        ("ECE", _percent(a.ece), f"how far scores are off; {_percent(a.ece_by_chance)} by chance"),
        ("Absent objects", _percent(a.absent_rate), f"of {a.absent_pairs} give a detection"),
        ("Time", f"{a.seconds_median:.2f} s", "per image, median"),
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(how)}</p>",
        "<div class='tiles'>",
        *(f"<div class='tile'>{html.escape(n)}<b>{v}</b><span>{html.escape(t)}</span></div>" for n, v, t in tiles),
        "</div>",
        f"<p>{a.images} images, {a.instances} instances that count (visible by 10 % or more). AP is COCO's as BOP "
        "defines it for 2D segmentation: all images together, averaged over the objects that occur.</p>",
        f"<h2>At the score threshold {a.threshold:.2f}</h2>",
        f"<p>{a.found} of {a.instances} instances are found (IoU above 0.5). Wrong detections: {a.wrong}.</p>",
        _errors(a),
        "<h2>Best, median and worst image</h2>",
        "<p>Left: annotation. Right: result. Quality is the panoptic quality: 1 when every instance is found with a "
        "perfect mask and nothing else is reported.</p>",
        *_pictures(dataset, records, a),
        "<h2>Precision and recall</h2><div class='row'>",
        _precision_recall(a),
        _reliability(a),
        "</div><h2>What makes instances hard to find</h2><div class='row'>",
        _bars("Size of the instance (root of its visible area)", a.by_size),
        _bars("Visible share of the instance", a.by_visibility),
        _bars("Copies of the object in the image", a.by_copies),
        "</div>",
        _confusion(dataset, a),
        _objects(dataset, a),
        _stages(a),
        "</body></html>",
    ]
    return "\n".join(parts)


def _errors(a: Analysis) -> str:
    if not a.errors:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(kind)}</td><td>{count}</td></tr>"
        for kind, count in sorted(a.errors.items(), key=lambda item: -item[1])
    )
    return f"<table><tr><th>Wrong detection lies on</th><th>Count</th></tr>{rows}</table>"


def _pictures(dataset: Dataset, records: Sequence[Record], a: Analysis) -> list[str]:
    ranked = sorted(a.per_image, key=lambda q: -q.quality)
    if not ranked:
        return []
    by_key = {record.key: record for record in records}
    places: dict[int, list[str]] = {}  # of few images one is several of these: it is shown once
    for label, place in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)):
        places.setdefault(place, []).append(label)
    return [
        _picture(dataset, by_key[ranked[place].key], " and ".join(labels).capitalize(), ranked[place], a.threshold)
        for place, labels in places.items()
    ]


def _picture(dataset: Dataset, record: Record, label: str, quality: ImageQuality, threshold: float) -> str:
    rgb = dataset.rgb(record.key)
    truth = [
        Instance(g.category_id, dataset.categories[g.category_id], 1.0, g.mask, box_of(g.mask))
        for g in dataset.ground_truth(record.key)
    ]
    found = [
        Instance(d.category_id, dataset.categories[d.category_id], d.score, d.mask, d.box)
        for d in record.detections
        if d.score >= threshold
    ]
    both = np.hstack(
        [overlay(rgb, truth, labels=False), np.full((rgb.shape[0], 8, 3), 255, np.uint8), overlay(rgb, found)]
    )
    caption = (
        f"{label}: scene {record.key.scene_id}, image {record.key.image_id}. Quality {quality.quality:.2f}, "
        f"{quality.found} found, {quality.missed} missed, {quality.wrong} wrong."
    )
    return f"<figure><img alt='' src='{_jpeg(both)}'><figcaption>{html.escape(caption)}</figcaption></figure>"


def _jpeg(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((1600, 1200))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _precision_recall(a: Analysis) -> str:
    curves = []
    for index, iou in ((0, "0.50"), (5, "0.75"), (8, "0.90")):
        precision = a.scores.precision[index]  # [101, objects]
        counted = precision[:, precision[0] > -1]
        if counted.size:
            curves.append((f"IoU {iou}", list(zip(RECALL_POINTS, counted.mean(1), strict=True))))
    return _plot("Precision over recall, mean over objects", "recall", "precision", curves)


def _reliability(a: Analysis) -> str:
    points = [(row.mean_score, row.accuracy) for row in a.reliability if row.count]
    ideal = [(0.0, 0.0), (1.0, 1.0)]
    return _plot("Correct detections over score", "score", "correct", [("measured", points), ("ideal", ideal)])


def _plot(title: str, x: str, y: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Lines over the unit square, as SVG."""
    width, height, left, top = 400, 300, 46, 28
    colours = ("#2266aa", "#dd8822", "#999999")
    w, h = width - left - 90, height - top - 44

    def at(px: float, py: float) -> str:
        return f"{left + w * px:.1f},{top + h * (1 - py):.1f}"

    body = [f"<text x='{left}' y='16'>{html.escape(title)}</text>"]
    for tick in (0.0, 0.5, 1.0):
        body.append(f"<polyline points='{at(tick, 0)} {at(tick, 1)}' stroke='#d8e0e8' fill='none'/>")
        body.append(f"<polyline points='{at(0, tick)} {at(1, tick)}' stroke='#d8e0e8' fill='none'/>")
        px, py = at(tick, 0).split(",")
        body.append(f"<text x='{px}' y='{float(py) + 16:.1f}' text-anchor='middle'>{tick:g}</text>")
        px, py = at(0, tick).split(",")
        body.append(f"<text x='{float(px) - 6:.1f}' y='{float(py) + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    body.append(f"<text x='{left + w / 2}' y='{height - 8}' text-anchor='middle'>{x}</text>")
    body.append(
        f"<text x='12' y='{top + h / 2}' transform='rotate(-90 12 {top + h / 2})' text-anchor='middle'>{y}</text>"
    )
    for n, (name, points) in enumerate(curves):
        line = " ".join(at(px, py) for px, py in points)
        dash = " stroke-dasharray='4 4'" if name == "ideal" else ""
        body.append(f"<polyline points='{line}' stroke='{colours[n]}' stroke-width='2' fill='none'{dash}/>")
        body.append(f"<rect x='{left + w + 10}' y='{top + 18 * n}' width='10' height='10' fill='{colours[n]}'/>")
        body.append(f"<text x='{left + w + 25}' y='{top + 9 + 18 * n}'>{html.escape(name)}</text>")
    return f"<svg width='{width}' height='{height}' role='img'>{''.join(body)}</svg>"


def _bars(title: str, shares: Sequence[Share]) -> str:
    """Share of instances found, per group, as SVG."""
    width, step, top = 330, 24, 28
    body = [f"<text x='0' y='16'>{html.escape(title)}</text>"]
    for n, share in enumerate(shares):
        y = top + step * n
        label = f"{_percent(share.fraction)} of {share.instances}" if share.instances else "none"
        body.append(f"<text x='0' y='{y + 13}'>{html.escape(share.label)}</text>")
        body.append(f"<rect x='120' y='{y}' width='110' height='16' fill='#edf1f5'/>")
        if share.instances:
            body.append(f"<rect x='120' y='{y}' width='{110 * share.fraction:.1f}' height='16' fill='#2266aa'/>")
        body.append(f"<text x='238' y='{y + 13}'>{label}</text>")
    return f"<svg width='{width}' height='{top + step * len(shares)}' role='img'>{''.join(body)}</svg>"


def _confusion(dataset: Dataset, a: Analysis) -> str:
    if not a.confusion:
        return "<h2>Mixed-up objects</h2><p>No detection lies on another object.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(dataset.categories[said])}</td>"
        f"<td class='t'>{html.escape(dataset.categories[true])}</td><td>{count}</td></tr>"
        for said, true, count in a.confusion[:20]
    )
    more = f"<p>{len(a.confusion) - 20} rarer pairs are left out.</p>" if len(a.confusion) > 20 else ""
    head = "<tr><th>Reported as</th><th class='t'>In truth</th><th>Count</th></tr>"
    return f"<h2>Mixed-up objects</h2><table>{head}{rows}</table>{more}"


def _objects(dataset: Dataset, a: Analysis) -> str:
    counted = [o for o in a.scores.per_object if o.instances]
    counted.sort(key=lambda o: -o.ap)
    shown = counted if len(counted) <= 60 else counted[:20] + counted[-20:]
    rows = "".join(
        f"<tr><td>{html.escape(dataset.categories[o.category_id])}</td><td>{o.instances}</td>"
        f"<td>{_percent(o.ap)}</td><td>{_percent(o.ap50)}</td><td>{_percent(o.ar)}</td></tr>"
        for o in shown
    )
    note = "" if shown is counted else f"<p>The best 20 and the worst 20 of {len(counted)} objects.</p>"
    head = "<tr><th>Object</th><th>Instances</th><th>AP</th><th>AP50</th><th>AR</th></tr>"
    return f"<h2>Objects</h2>{note}<table>{head}{rows}</table>"


def _stages(a: Analysis) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(stage)}</td><td>{1000 * seconds:.0f} ms</td></tr>" for stage, seconds in a.stages.items()
    )
    note = ""
    if "refine" in a.stages:
        note = (
            "<p>Coarse, proposals, refine and instances follow one another. Backbone, conditioning, sampling and "
            "decoder are what coarse and refine are made of.</p>"
        )
    return f"<h2>Time</h2>{note}<table><tr><th>Stage</th><th>Mean per image</th></tr>{rows}</table>"


def _percent(fraction: float) -> str:
    return "&ndash;" if math.isnan(fraction) else f"{100 * fraction:.1f} %"
