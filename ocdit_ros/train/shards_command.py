# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""``ocdit train data``: arguments and what they start. What needs a renderer is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``ocdit train data``."""
    parser.add_argument(
        "what",
        choices=["objects", "twins", "scenes", "templates", "sheet", "statistics"],
        help="make objects, objects in two sizes, scenes, or the objects' templates anew; draw a contact sheet; count",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--count", type=int, help="families of objects, scenes, or pictures of a sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", help="first part of all keys, another one for every round (default: p0 or s0)")
    parser.add_argument("--photos", type=Path, help="folder with photographs for labels, grounds and backdrops")
    parser.add_argument("--meshes", type=Path, help="folder with mesh collections; objects are made from them")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--per-shard", type=int, default=250, help="scenes per shard")
    parser.add_argument("--first-shard", type=int, default=0, help="number of the round's first shard")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--renderer", choices=["fast", "cycles"], default="fast",
                        help="cycles: falling objects and path tracing by Blender (extra path-tracing)")  # fmt: skip
    parser.add_argument("--samples", type=int, default=16, help="paths per pixel (with: scenes --renderer cycles)")
    parser.add_argument("--copies", type=int, nargs=2, metavar=("LOWEST", "HIGHEST"),
                        help="one object of each scene so often, all others once (with: scenes)")  # fmt: skip
    parser.add_argument("--twins-of", type=Path, metavar="STORE", help="objects to make twins of (with: twins)")
    parser.add_argument("--ratio", type=float, default=1.5, help="of the diameters of two twins (with: twins)")
    parser.add_argument("--sheet", type=Path, help="picture file to write (with: sheet)")
    parser.add_argument("--shards", type=Path, action="append", default=[],
                        help="folder of shards to compare (with: statistics)")  # fmt: skip
    parser.add_argument("--bop", type=Path, action="append", default=[], help="BOP split to compare (with: statistics)")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_arguments` ask for; the exit status."""
    from . import shards

    a = arguments
    try:
        if a.what in ("objects", "twins", "scenes") and a.count is None:
            raise ValueError(f"{a.what}: say how many with --count")
        if a.what == "objects":
            total = shards.generate_objects(
                a.out, a.split, a.count, a.seed, a.prefix or "p0", a.photos, a.meshes, a.workers
            )
            print(f"{total} objects in {a.out / 'objects' / a.split}")
        elif a.what == "twins":
            if a.twins_of is None:
                raise ValueError("twins: name the folder of the objects with --twins-of")
            total = shards.generate_twins(a.out, a.split, a.count, a.twins_of, a.ratio, a.seed, a.workers)
            print(f"{total} objects in {a.out / 'objects' / a.split}")
        elif a.what == "templates":
            total = shards.render_templates(a.out, a.split, a.workers)
            print(f"templates of {total} objects in {a.out / 'objects' / a.split}")
        elif a.what == "scenes":
            total = shards.generate_scenes(
                a.out, a.split, a.count, a.seed, a.prefix or "s0", a.photos, a.workers, a.per_shard, a.first_shard,
                tuple(a.size), copies=tuple(a.copies) if a.copies else None, renderer=a.renderer, samples=a.samples,
            )  # fmt: skip
            print(f"{total} scenes of round {a.prefix or 's0'} in {a.out / 'scenes' / a.split}")
        elif a.what == "sheet":
            if a.sheet is None:
                raise ValueError("sheet: name the picture with --sheet")
            total = shards.write_sheet(a.out, a.split, a.sheet, a.count or 64, a.seed)
            print(f"{total} pictures in {a.sheet}")
        else:
            columns = {a.split: shards.scene_statistics(shards.read_scenes(a.out / "scenes" / a.split, a.count))}
            columns |= {str(path): shards.scene_statistics(shards.read_scenes(path, a.count)) for path in a.shards}
            columns |= {str(path): shards.scene_statistics(shards.read_bop(path)) for path in a.bop}
            print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
            for name in next(iter(columns.values())):
                print(f"| {name} | " + " | ".join(f"{column[name]:g}" for column in columns.values()) + " |")
    except (ValueError, FileNotFoundError) as error:
        print(f"ocdit train data: {error}", file=sys.stderr)
        return 2
    return 0
