#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Draw how accuracy grew with training: docs/images/scaling.png from docs/static/scaling.csv.

    python scripts/scaling.py

One line of the table is one file of weights that shipped: hours of a CPU core up to it, objects and views that it saw,
and what the network alone makes of 40 held-out views (docs/experiments.md).
"""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
CURVES = {
    "mean_iou": "mean IoU of present objects",
    "ap": "AP",
}
AXES = {"core_hours": "hours of a CPU core", "objects": "objects seen in training"}


def main() -> None:
    """Write the picture."""
    with open(ROOT / "docs" / "static" / "scaling.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for place, (axis, label) in zip(figure.subplots(1, 2, sharey=True), AXES.items(), strict=True):
        x = [float(row[axis]) for row in rows]
        for curve, name in CURVES.items():
            place.plot(x, [float(row[curve]) for row in rows], "o-", ms=4, label=name)
        for row, value in zip(rows, x, strict=True):
            place.annotate(row["weights"], (value, float(row["ap"])), (0, 6), textcoords="offset points",
                           ha="center", fontsize=7)  # fmt: skip
        ticks = (1, 2, 4, 8, 16) if axis == "core_hours" else (1000, 2000, 4000, 8000, 16000)
        place.set(xscale="log", xlabel=label, xticks=ticks, xticklabels=ticks)
        place.minorticks_off()
        place.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()
