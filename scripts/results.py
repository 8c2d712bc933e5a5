#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Measure the weights on the development sets and write docs/results.md.

    python scripts/results.py --synthetic DIR [--weights FILE] [--device cuda]

Runs `ocdit evaluate` for every row of the tables below and `ocdit benchmark` for the cost; what is measured already is
not measured again (evaluations are resumed), so the command can be cut and repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ocdit_ros import cli  # noqa: E402  (after the path is set)

SHARED = Path(os.environ.get("OCDIT_SHARED_DATA", ROOT.parent / "shared" / "data"))

#: Row of the table -> options of `ocdit evaluate`.
METHODS: dict[str, list[str]] = {
    "template correlation (baseline)": ["--method", "correlation"],
    "coarse only": ["--no-refine", "--augmentations", "1"],
    "coarse + refine": ["--augmentations", "1"],
    "coarse + refine + mirrored view (default)": [],
    "default + ensemble of 3 noises": ["--ensemble", "3"],
}
DEFAULT = "coarse + refine + mirrored view (default)"


def main() -> int:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", metavar="DIR", help="held-out scene shards (see docs/evaluation.md)")
    parser.add_argument("--copies", metavar="DIR", help="scene shards with 2 to 5 copies of an object per image")
    parser.add_argument("--synthetic-limit", type=int, default=100, metavar="N", help="images of the shards to use")
    parser.add_argument("--pbr-limit", type=int, metavar="N", help="images of pbr_dev to use (default: all)")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", metavar="DIR", default=str(ROOT / "evaluation"), help="folder of the runs")
    parser.add_argument("--out", metavar="FILE", default=str(ROOT / "docs" / "results.md"))
    parser.add_argument("--skip", nargs="*", default=[], choices=sorted(METHODS), help="rows to leave out")
    parser.add_argument("--note", default="", help="a sentence on the machine, for the page")
    parser.add_argument("--collect", action="store_true", help="measure nothing, write the page from what is there")
    options = parser.parse_args()

    common = ["--device", options.device, *(["--weights", options.weights] if options.weights else [])]
    sets: dict[str, list[str]] = {}
    for name, limit in (("real_dev", None), ("pbr_dev", options.pbr_limit)):
        if (SHARED / name).is_dir():
            sets[name] = [str(SHARED / name), *(["--limit", str(limit)] if limit else [])]
    limit = ["--limit", str(options.synthetic_limit)]
    if options.synthetic:
        sets["held-out synthetic"] = [options.synthetic, *limit]
    if options.copies:
        sets["synthetic, copies"] = [options.copies, *limit]

    results: dict[str, dict[str, dict[str, Any]]] = {}
    for set_name, where in sets.items():
        for method, extra in METHODS.items():
            if method in options.skip:
                continue
            folder = Path(options.work) / _slug(set_name) / _slug(method)
            if options.collect and not (folder / "scores.json").is_file():
                continue
            print(f"== {set_name}: {method}", flush=True)
            command = ["evaluate", *where, *extra, *common, "--resume", "--out", str(folder)]
            if not options.collect and cli.main(command):
                return 1
            results.setdefault(set_name, {})[method] = json.loads((folder / "scores.json").read_text())
            header = json.loads((folder / "run.json").read_text())
    timing = Path(options.work) / "benchmark.json"
    if (
        not timing.is_file()
        and not options.collect
        and cli.main(["benchmark", *common, "--objects", "1", "8", "21", "100", "--repeat", "3", "--json", str(timing)])
    ):
        return 1
    times = json.loads(timing.read_text()) if timing.is_file() else []
    Path(options.out).write_text(page(results, times, header, options.note))
    print(options.out)
    return 0


def page(
    results: dict[str, dict[str, dict[str, Any]]], timing: Sequence[dict[str, Any]], header: dict[str, Any], note: str
) -> str:
    """The page as Markdown."""
    lines = [
        "# Results",
        "",
        "Written by `scripts/results.py`; how the numbers come about: [evaluation.md](evaluation.md). Weights "
        f"`{header['weights']}` (SHA-256 {header['weights_sha256'][:16]}). {note}".rstrip(),
        "",
        "Thresholds and score calibration come from held-out synthetic scenes; real_dev and pbr_dev are only measured.",
        "real_dev has 8 photographs: differences below 5 points of AP mean little there.",
        "",
        "AP, AP50, AR: COCO's as BOP defines them for 2D segmentation. ECE: expected calibration error of the scores. "
        "Found, wrong and absent: at the score threshold of the Segmenter; absent = (object, image) pairs asked "
        "for, are not there, and yield a detection. Time: median per image, images and objects loaded.",
    ]
    for set_name, rows in results.items():
        any_row = next(iter(rows.values()))
        lines += ["", f"## {set_name}: {any_row['images']} images, {any_row['instances']} instances", ""]
        lines += ["| method | AP | AP50 | AP75 | AR | ECE | found | wrong | absent | time |", "|---|" + "---|" * 9]
        for method, r in rows.items():
            cells = [_percent(r[key]) for key in ("AP", "AP50", "AP75", "AR", "ECE")]
            cells += [f"{r['found']} / {r['instances']}", str(r["wrong"])]
            absent = (
                f"{_percent(r['absent_fired'] / r['absent_pairs'])} of {r['absent_pairs']}"
                if r["absent_pairs"]
                else "-"
            )
            lines.append(f"| {method} | {' | '.join(cells)} | {absent} | {r['seconds_median']:.2f} s |")
        if DEFAULT in rows:
            lines += ["", f"What makes instances hard to find ({DEFAULT}; share found at IoU 0.5):", ""]
            lines += [_shares(rows[DEFAULT])]
    if not timing:
        return "\n".join(lines) + "\n"
    lines += ["", "## Cost over the number of objects", ""]
    stages = [s for s in timing[0]["seconds"] if s != "total"]
    lines += [
        "640x480 image of random texture with made-up objects, default settings: few crops to refine, "
        "so a cluttered image costs more.",
        "",
    ]
    lines += ["| objects | " + " | ".join(stages) + " | total | memory |", "|---|" + "---|" * (len(stages) + 2)]
    for row in timing:
        cells = [f"{row['seconds'].get(s, 0.0):.2f} s" for s in [*stages, "total"]]
        lines.append(f"| {row['objects']} | {' | '.join(cells)} | {row['peak_bytes'] / 2**20:.0f} MiB |")
    return "\n".join(lines) + "\n"


def _shares(result: dict[str, Any]) -> str:
    names = {
        "by_size": "size (root of visible area)",
        "by_visibility": "visible share",
        "by_copies": "copies in the image",
    }
    lines = []
    for key, title in names.items():
        cells = [
            f"{row['label']}: {_percent(row['found'] / row['instances'])} of {row['instances']}"
            for row in result[key]
            if row["instances"]
        ]
        lines.append(f"- {title}: {'; '.join(cells)}")
    return "\n".join(lines)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


if __name__ == "__main__":
    sys.exit(main())
