#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Measure the weights on the development sets and write docs/results.md: one command, the whole page.

    python scripts/results.py --data DATA [--weights FILE] [--device cuda] [--note "Times: one thread of ..."]

DATA is a folder of synthetic data (docs/training-data.md) with `objects/val` and `scenes/val`. Every row is an
`ocdit evaluate` of its own process; a set of the size of a camera's pictures, and sets with several copies of an object
and with objects in two sizes, are rendered from `objects/val` first. What is measured already is not measured again, so
the command can be cut and repeated: its folder is named after the weights and the code that measures, and a change of
either starts afresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ocdit_ros.segment.weights import default_weights  # noqa: E402  (after the path is set)

SHARED = Path(os.environ.get("OCDIT_SHARED_DATA", ROOT.parent / "shared" / "data"))

BASELINE, COARSE, DEFAULT = "template correlation (baseline)", "coarse only", "coarse + refine (default)"
MIRRORED, ENSEMBLE = "default + mirrored view", "default + ensemble of 3 noises"
#: Row of the table -> options of `ocdit evaluate`.
METHODS: dict[str, list[str]] = {
    BASELINE: ["--method", "correlation"],
    COARSE: ["--no-refine", "--coarse-size", "512"],
    DEFAULT: [],
    MIRRORED: ["--augmentations", "2"],
    ENSEMBLE: ["--ensemble", "3"],
}
#: The default once more with other noise, where there are so few images that it decides much.
OTHER_NOISES = {f"default, noise of seed {seed}": ["--seed", str(seed)] for seed in (1, 2)}
METHODS |= OTHER_NOISES
HELD_OUT, SINGLE, COPIES = "held-out synthetic", "one copy of each object", "2 to 5 copies of an object"
TWINS, PARTIAL = "objects in two sizes", "two fifths of what is in view asked for"
CAMERA = "held-out synthetic at 640x480"  # what a camera gives; the others have 256x256 pixels
MADE = (SINGLE, COPIES, TWINS, PARTIAL)  # sets made for one question each
SMALL = ("real_dev", "pbr_dev")  # sets of which no more can be made
OBJECTS = (1, 8, 21, 100)


@dataclasses.dataclass
class Failures:
    """What could not be measured; the page is written all the same."""

    found: list[str] = dataclasses.field(default_factory=list)

    def run(self, what: str, words: Sequence[str]) -> bool:
        """Run a module of this package in a process of its own; whether it went well."""
        print(f"== {what}", flush=True)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        status = subprocess.run([sys.executable, "-m", *words], check=False, env={**os.environ, "PYTHONPATH": path})
        if status.returncode:
            self.found.append(what)
        return status.returncode == 0


def main() -> int:
    """Run everything and write the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="synthetic data with objects/val and scenes/val")
    parser.add_argument("--limit", type=int, default=40, metavar="N", help="images of every synthetic set")
    parser.add_argument("--pbr-limit", type=int, metavar="N", help="images of pbr_dev (default: all)")
    parser.add_argument("--photos", metavar="DIR", help="photographs for the grounds of the sets with copies")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="1", help="CPU threads of PyTorch")
    parser.add_argument("--work", metavar="DIR", default=str(ROOT / "evaluation"), help="folder of the runs")
    parser.add_argument("--out", metavar="FILE", default=str(ROOT / "docs" / "results.md"))
    parser.add_argument("--skip", nargs="*", default=[], choices=sorted(METHODS), help="rows to leave out")
    parser.add_argument("--note", default="", help="a sentence on the machine, for the page")
    parser.add_argument("--collect", action="store_true", help="measure nothing, write the page from what is there")
    options = parser.parse_args()
    weights = Path(options.weights or default_weights())
    if not weights.is_file():
        parser.error(f"there is no weights file '{weights}'")
    if options.data and not (Path(options.data) / "scenes" / "val").is_dir():
        parser.error(f"'{options.data}' has no folder scenes/val; make held-out scenes first (docs/training-data.md)")

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    work = Path(options.work) / f"{digest[:8]}-{code_digest()[:8]}"
    common = ["--device", options.device, "--threads", options.threads, "--weights", str(weights)]
    failures = Failures()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    losses: dict[str, list[dict[str, Any]]] = {}
    for name, where in data_sets(options, failures).items():
        for method, extra in METHODS.items():
            if method in options.skip or (name in MADE and method != DEFAULT):
                continue
            if name not in SMALL and method in OTHER_NOISES:
                continue
            folder = work / slug(name) / slug(method)
            words = ["ocdit_ros.cli", "evaluate", *where, *extra, *common, "--resume", "--out", str(folder)]
            scores = folder / "scores.json"
            if not options.collect and not failures.run(f"{name}: {method}", words):
                continue
            if scores.is_file():
                results.setdefault(name, {})[method] = json.loads(scores.read_text())
        if name in ("pbr_dev", HELD_OUT, CAMERA):
            file = work / slug(name) / "losses.json"
            if not file.is_file() and not options.collect:
                words = ["ocdit_ros.evaluate.losses", *where, *common, "--json", str(file)]
                failures.run(f"{name}: where instances are lost", words)
            if file.is_file():
                losses[name] = json.loads(file.read_text())
    timing = work / "benchmark.json"
    if not timing.is_file() and not options.collect:
        sizes = [str(n) for n in OBJECTS]
        words = ["ocdit_ros.cli", "benchmark", *common, "--objects", *sizes, "--repeat", "3", "--json", str(timing)]
        failures.run("cost over the number of objects", words)
    times = json.loads(timing.read_text()) if timing.is_file() else []
    note = f"Weights `{weights.name}` (SHA-256 {digest[:16]}). {options.note}".rstrip()
    Path(options.out).write_text(page(results, losses, times, note, failures.found))
    print(options.out)
    for what in failures.found:
        print(f"results.py: not measured: {what}", file=sys.stderr)
    return 1 if failures.found else 0


def code_digest() -> str:
    """SHA-256 of what decides the numbers: network, templates, Segmenter, evaluation."""
    digest = hashlib.sha256()
    for room in ("model", "templates", "segment", "evaluate"):
        for path in sorted((ROOT / "ocdit_ros" / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def data_sets(options: argparse.Namespace, failures: Failures) -> dict[str, list[str]]:
    """Name -> first words of `ocdit evaluate`; renders CAMERA and the sets of MADE where they are not there yet."""
    sets: dict[str, list[str]] = {}
    for name, limit in (("real_dev", None), ("pbr_dev", options.pbr_limit)):
        if (SHARED / name).is_dir():
            sets[name] = [str(SHARED / name), *(["--limit", str(limit)] if limit else [])]
        else:
            failures.found.append(f"{name}: not in the folder of OCDIT_SHARED_DATA")
    if not options.data:
        failures.found.append(f"{HELD_OUT}: give --data")
        return sets
    data, limit = Path(options.data).resolve(), ["--limit", str(options.limit)]
    sets[HELD_OUT] = [str(data / "scenes" / "val"), *limit]
    sets[PARTIAL] = [*sets[HELD_OUT], "--asked", "0.4", "--absent", "3"]
    small, large = ["--size", "480", "360"], ["--size", "640", "480"]
    made = {
        CAMERA: ("640", large), SINGLE: ("1-1", ["--copies", "1", "1", *small]),
        COPIES: ("2-5", ["--copies", "2", "5", *small]), TWINS: ("twins", small),
    }  # fmt: skip
    for name, (short, extra) in made.items():
        folder = Path(options.work) / f"scenes-{short}-{options.limit}"
        folder.mkdir(parents=True, exist_ok=True)
        where = ["--out", str(folder), "--split", "val", "--seed", "77"]
        if name == TWINS:
            words = ["ocdit_ros.train.shards", "twins", *where, "--count", str(options.limit), "--twins-of",
                     str(data / "objects" / "val")]  # fmt: skip
            there = options.collect or (folder / "objects" / "val" / "index.json").is_file()
            if not there and not failures.run(name, words):
                continue
        elif not (folder / "objects").exists():
            (folder / "objects").symlink_to(data / "objects")
        words = ["ocdit_ros.train.shards", "scenes", *where, "--count", str(options.limit), *extra,
                 "--per-shard", "10"]  # fmt: skip
        words += ["--photos", options.photos] if options.photos else []
        if options.collect or failures.run(f"scenes: {name}", words):
            sets[name] = [str(folder / "scenes" / "val"), *limit]
    return sets


def page(
    results: dict[str, dict[str, dict[str, Any]]], losses: dict[str, list[dict[str, Any]]],
    timing: Sequence[dict[str, Any]], note: str, missing: Sequence[str],
) -> str:  # fmt: skip
    """The page as Markdown."""
    lines = [
        "# Results",
        "",
        f"Written by `scripts/results.py`; how the numbers come about: [evaluation.md](evaluation.md). {note}",
        "",
        "Thresholds and score calibration come from held-out synthetic scenes; real_dev and pbr_dev are only measured.",
        "real_dev has 8 photographs, and 14 of its 21 objects are in one of them alone: the noise that the sampler "
        "starts from moves its AP by ten points. What is claimed of it and of pbr_dev is the mean of the default with "
        "all noises that were tried; a row is one of them.",
        "",
        "AP, AP50, AR: COCO's as BOP defines them for 2D segmentation. ECE: expected calibration error of the scores, "
        "and what it would be by chance if they were perfect. Found, wrong and absent: at the score threshold of the "
        "Segmenter; absent = (object, image) pairs that are asked for, are not there, and yield a "
        "detection. Time: median per image, images and objects loaded.",
    ]
    if missing:
        lines += ["", "Not measured this time:", "", *(f"- {what}" for what in missing)]
    if wanted := requirements(results, timing):
        lines += ["", "## What was asked for", "", "| | measured | |", "|---|---|---|", *wanted]
    for name, rows in results.items():
        if name in MADE:
            continue
        lines += ["", f"## {name}: {heading(rows)}", "", *comparison(rows)]
        if DEFAULT in rows:
            lines += ["", f"What makes instances hard to find ({DEFAULT}; share found at IoU 0.5):", ""]
            lines += shares(rows[DEFAULT])
        if name == "real_dev" and COARSE in rows and DEFAULT in rows:
            lines += ["", *objects(rows)]
        if name in losses:
            lines += ["", *lost(losses[name])]
    both = {name: results[name][DEFAULT] for name in (SINGLE, COPIES) if DEFAULT in results.get(name, {})}
    if both:
        lines += ["", "## Several copies of an object", ""]
        lines += ["Held-out objects, one of each scene repeated; both sets from the same seeds.", ""]
        lines += ["| scenes with | AP | AP50 | found | by copies in the image |", "|---|---|---|---|---|"]
        for name, r in both.items():
            parts = "; ".join(
                f"{row['label']}: {percent(row['found'] / row['instances'])} of {row['instances']}"
                for row in r["by_copies"] if row["instances"]
            )  # fmt: skip
            found = f"{percent(r['found'] / r['instances'])} of {r['instances']}"
            lines.append(f"| {name} | {percent(r['AP'])} | {percent(r['AP50'])} | {found} | {parts} |")
    if partial := results.get(PARTIAL, {}).get(DEFAULT):
        lines += [
            "",
            "## Lists that leave out what is in view",
            "",
            *left_out(partial, results.get(HELD_OUT, {}).get(DEFAULT)),
        ]
    if twins := results.get(TWINS, {}).get(DEFAULT):
        lines += ["", "## The same object in two sizes", "", *sizes(twins)]
    if timing:
        lines += ["", *cost(timing)]
    return "\n".join(lines) + "\n"


def heading(rows: dict[str, dict[str, Any]]) -> str:
    """Size of a set."""
    row = next(iter(rows.values()))
    return f"{row['images']} images, {row['instances']} instances"


def comparison(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line per method."""
    lines = ["| method | AP | AP50 | AP75 | AR | ECE | found | wrong | absent | time |", "|---|" + "---|" * 9]
    for method, r in rows.items():
        cells = [percent(r[key]) for key in ("AP", "AP50", "AP75", "AR")]
        cells.append("-" if r["ECE"] is None else f"{percent(r['ECE'])} ({percent(r['ECE_by_chance'])})")
        cells += [f"{r['found']} / {r['instances']}", str(r["wrong"])]
        cells.append(f"{percent(absent(r))} of {r['absent_pairs']}" if r["absent_pairs"] else "-")
        lines.append(f"| {method} | {' | '.join(cells)} | {r['seconds_median']:.2f} s |")
    return lines


def requirements(results: dict[str, dict[str, dict[str, Any]]], timing: Sequence[dict[str, Any]]) -> list[str]:
    """The claims that the numbers have to bear out, each with what was measured."""
    lines = []

    def claim(text: str, measured: str, holds: bool) -> None:
        lines.append(f"| {text} | {measured} | {'yes' if holds else '**no**'} |")

    for name in ("real_dev", "pbr_dev", HELD_OUT, CAMERA):
        rows = results.get(name, {})
        noises = [rows[m] for m in (DEFAULT, *OTHER_NOISES) if m in rows]
        ap, spread = mean_ap(noises)
        if COARSE in rows and DEFAULT in rows:
            a = rows[COARSE]["AP"]
            claim(f"{name}: refinement raises AP by a third", f"{percent(a)} to {percent(ap)}{spread}", ap >= 4 / 3 * a)
        if DEFAULT in rows and ENSEMBLE in rows:
            b = rows[ENSEMBLE]["AP"]
            claim(f"{name}: the ensemble does not hurt", f"{percent(ap)}{spread} to {percent(b)}", b >= ap - 0.005)
        if DEFAULT in rows and None not in (rates := [absent(r) for r in noises]):
            rate = sum(r for r in rates if r is not None) / len(rates)
            claim(f"{name}: at most 5 % of absent objects reported", percent(rate), rate <= 0.05)
        if DEFAULT in rows and (errors := [(r["ECE"], r["ECE_by_chance"]) for r in noises if r["ECE"] is not None]):
            error, chance = (sum(values) / len(errors) for values in zip(*errors, strict=True))
            text = f"{percent(error)} ({percent(chance)} by chance)"
            claim(f"{name}: calibration error of at most 5 %", text, error <= 0.05)
    pair = [results.get(name, {}).get(DEFAULT) for name in (SINGLE, COPIES)]
    if pair[0] and pair[1]:
        one, many = (r["found"] / r["instances"] for r in pair if r)
        text = "2 to 5 copies: 80 % as many instances found as with one copy"
        claim(text, f"{percent(many)} against {percent(one)}", many >= 0.8 * one)
    if (twins := results.get(TWINS, {}).get(DEFAULT)) and (shown := twins["kin"]["shown"]):
        share = twins["kin"]["right"] / shown
        text = "same shape in two sizes, both in view: the right one in 80 % of those shown"
        claim(text, percent(share), share >= 0.8)
    if len(timing) > 1:
        first, last = (row["seconds"]["coarse"] / groups(row["objects"]) for row in (timing[1], timing[-1]))
        claim("the coarse pass grows with the number of groups", f"{last / first:.2f} times the time of a group at "
              f"{timing[-1]['objects']} objects as at {timing[1]['objects']}", last <= 1.5 * first)  # fmt: skip
    return lines


def mean_ap(noises: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Mean AP of runs that differ in nothing but noise, and how far they lie apart, in words."""
    if len(noises) < 2:
        return (noises[0]["AP"] if noises else 0.0), ""
    values = [r["AP"] for r in noises]
    return sum(values) / len(values), f" ({len(values)} noises: {percent(min(values))} to {percent(max(values))})"


def objects(rows: dict[str, dict[str, Any]]) -> list[str]:
    """AP50 per object, coarse and refined."""
    coarse = {o["object"]: o for o in rows[COARSE]["objects"]}
    lines = ["| object | instances | AP50 coarse only | AP50 default |", "|---|---|---|---|"]
    for o in rows[DEFAULT]["objects"]:
        before = coarse.get(o["object"], {}).get("AP50")
        lines.append(f"| {o['object']} | {o['instances']} | {percent(before)} | {percent(o['AP50'])} |")
    return lines


def sizes(r: dict[str, Any]) -> list[str]:
    """Twins that stand in one image: how often the detection names the right one."""
    kin = r["kin"]
    return [
        "Held-out objects, each beside itself 1.5 times as large in the catalogue and, by the drawing of look-alikes,",
        f"often in the image; {r['images']} images. {kin['instances']} instances stand in one image with their "
        f"twin; {kin['shown']} of them are shown by a detection of either (IoU above 0.5, at the score threshold), "
        f"and {kin['right']} by their own name. AP {percent(r['AP'])}.",
    ]


def left_out(partial: dict[str, Any], everything: dict[str, Any] | None) -> list[str]:
    """What comes of a list that does not name all that is in view, beside one that does."""
    lines = [
        "Each object in view is asked for with a chance of 0.4, and three that are not there; the held-out images once "
        "more. What nobody asks for competes for no pixel, and may be taken for what is asked for.",
        "",
        "| asked for | AP | AP50 | ECE | found | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for text, r in (("all that is in view", everything), ("two fifths of it", partial)):
        if r:
            error = "-" if r["ECE"] is None else f"{percent(r['ECE'])} ({percent(r['ECE_by_chance'])})"
            cells = [percent(r["AP"]), percent(r["AP50"]), error, f"{r['found']} / {r['instances']}", str(r["wrong"])]
            lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def lost(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Instances by the stage that lost them."""
    from ocdit_ros.evaluate.losses import stage_table

    intro = "Where instances are lost (default settings), and how many of them a crop around the true box would find:"
    return [intro, "", *stage_table([(row["stage"], row["oracle"]) for row in rows])]


def cost(timing: Sequence[dict[str, Any]]) -> list[str]:
    """Time and memory over the number of objects."""
    stages = [s for s in timing[0]["seconds"] if s != "total"]
    lines = [
        "## Cost over the number of objects",
        "",
        "640x480 image of random texture with made-up objects, default settings: few crops to refine, so a cluttered "
        "image costs more. `coarse` contains most of backbone, conditioning, sampling and decoder.",
        "",
        "| objects | groups | " + " | ".join(stages) + " | total | coarse per group | memory |",
        "|---|---|" + "---|" * (len(stages) + 3),
    ]
    for row in timing:
        cells = [f"{row['seconds'].get(s, 0.0):.2f} s" for s in [*stages, "total"]]
        each = row["seconds"]["coarse"] / groups(row["objects"])
        cells += [f"{each:.2f} s", f"{row['peak_bytes'] / 2**20:.0f} MiB"]
        lines.append(f"| {row['objects']} | {groups(row['objects'])} | {' | '.join(cells)} |")
    return lines


def groups(count: int) -> int:
    """Groups that so many objects make."""
    from ocdit_ros.segment import SegmenterSettings

    return -(-count // SegmenterSettings().group_size)


def shares(result: dict[str, Any]) -> list[str]:
    """Share found by size, visibility and copies."""
    names = {
        "by_size": "size (root of visible area)",
        "by_visibility": "visible share",
        "by_copies": "copies in the image",
    }
    lines = []
    for key, title in names.items():
        cells = [
            f"{row['label']}: {percent(row['found'] / row['instances'])} of {row['instances']}"
            for row in result[key]
            if row["instances"]
        ]
        lines.append(f"- {title}: {'; '.join(cells)}")
    return lines


def absent(result: dict[str, Any]) -> float | None:
    """Share of absent (object, image) pairs that are reported."""
    return result["absent_fired"] / result["absent_pairs"] if result["absent_pairs"] else None


def percent(fraction: float | None) -> str:
    """As in the page."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def slug(text: str) -> str:
    """Folder name of a row or set."""
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


if __name__ == "__main__":
    sys.exit(main())
