# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/images/architecture.svg: the rooms of the package, and who imports whom, as the code has it.

    python scripts/architecture.py

Only the places of the boxes and their captions are set here; the arrows are read from the code.
`test/test_architecture.py` fails while the picture in the tree is not what this program draws.
"""

from __future__ import annotations

import ast
import html
import math
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ocdit_ros"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

WIDTH, HEIGHT, BOX, ROW = 960, 560, (168, 58), 112

#: Centre of the box in pixels, row from the top, what the room does, what it stands on.
ROOMS = {
    "node": (230, 0, "ROS 2 topics and lifecycle", "rclpy, OpenCV"),
    "cli": (650, 0, "the command ocdit", ""),
    "doctor": (110, 1, "what is wrong here", ""),
    "preview": (470, 1, "the page in the browser", "NiceGUI"),
    "evaluate": (650, 2, "AP on BOP sets", "pycocotools"),
    "train": (850, 2, "scenes, shards, trainer", "torch, Open3D"),
    "segment": (450, 3, "images in, instances out", "torch, OpenCV"),
    "templates": (330, 4, "meshes to rendered views", "Open3D, trimesh"),
    "model": (570, 4, "the network of the paper", "torch, timm"),
}


def modules_named(program: Path) -> Iterator[tuple[str, bool]]:
    """(module of this package, whether by an import statement and not by its name in a text) in a program."""
    for step in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if isinstance(step, ast.Import):
            yield from ((alias.name, True) for alias in step.names)
        elif isinstance(step, ast.ImportFrom) and step.module == "ocdit_ros":
            yield from ((f"ocdit_ros.{alias.name}", True) for alias in step.names)
        elif isinstance(step, ast.ImportFrom) and step.module:
            yield step.module, True
        elif isinstance(step, ast.Constant) and isinstance(step.value, str):
            yield step.value, False


def arrows() -> dict[tuple[str, str], bool]:
    """{(who, whom): whether some import statement says so}; False: the module is loaded by its name alone."""
    found: dict[tuple[str, str], bool] = {}
    for program in sorted(PACKAGE.rglob("*.py")):
        room = program.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, statement in modules_named(program):
            match = re.fullmatch(r"ocdit_ros\.(\w+)(\.\w+)*", module)
            if match and match[1] in ROOMS and room in ROOMS and match[1] != room:
                found[room, match[1]] = found.get((room, match[1]), False) or statement
    return found


def drawn() -> dict[tuple[str, str], bool]:
    """The arrows without those that go without saying: who knows `segment` may know what that knows."""
    every = arrows()
    below = {whom for who, whom in every if who == "segment"}
    return {
        (who, whom): statement
        for (who, whom), statement in every.items()
        if not (whom in below and (who, "segment") in every)
    }


def middle(room: str) -> tuple[float, float]:
    """Centre of a box."""
    return ROOMS[room][0], 50 + ROW * ROOMS[room][1]


def border(room: str, toward: tuple[float, float]) -> tuple[float, float]:
    """Where a line from the centre of a box leaves it."""
    x, y = middle(room)
    dx, dy = toward[0] - x, toward[1] - y
    share = min(
        (BOX[0] / 2 + 3) / abs(dx) if dx else math.inf,
        (BOX[1] / 2 + 3) / abs(dy) if dy else math.inf,
    )
    return x + share * dx, y + share * dy


def line(who: str, whom: str, statement: bool) -> str:
    """One arrow; a dotted one stands a little aside where a solid one comes the other way."""
    aside = 16.0 if not statement and (whom, who) in drawn() else 0.0
    (x1, y1), (x2, y2) = border(who, middle(whom)), border(whom, middle(who))
    kind = "import" if statement else "name"
    return f'<path class="{kind}" d="M{x1 + aside:.1f} {y1:.1f}L{x2 + aside:.1f} {y2:.1f}" marker-end="url(#{kind})"/>'


def picture() -> str:
    """The whole SVG."""
    marker = (
        '<marker id="{0}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path class="{0}-head" d="M0 1L9 5L0 9z"/></marker>'
    )
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-label="Rooms of the package and who imports whom">',
        "<style>",
        "text { font-family: sans-serif; text-anchor: middle; fill: #1b2733 }",
        ".room { font-size: 17px; font-weight: bold } .does { font-size: 11px }",
        ".on { font-size: 10.5px; fill: #5b6b7a }",
        ".box { fill: #e8f1fb; stroke: #3b6ea5; stroke-width: 1.5 } .ros { fill: #fdf0dc; stroke: #b97a1a }",
        ".import, .name { fill: none; stroke: #3b6ea5; stroke-width: 1.6 }",
        ".name { stroke: #8a97a5; stroke-dasharray: 4 4 }",
        ".import-head { fill: #3b6ea5 } .name-head { fill: #8a97a5 }",
        ".key { font-size: 11.5px; text-anchor: start }",
        "</style>",
        f"<defs>{marker.format('import')}{marker.format('name')}</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
    ]
    rows += [line(who, whom, statement) for (who, whom), statement in sorted(drawn().items())]
    for room, (x, _, does, on) in ROOMS.items():
        y = middle(room)[1]
        kind = "box ros" if room == "node" else "box"
        rows.append(
            f'<rect class="{kind}" x="{x - BOX[0] / 2:g}" y="{y - BOX[1] / 2:g}" width="{BOX[0]}" height="{BOX[1]}" '
            f'rx="7"/><text class="room" x="{x}" y="{y - 9:g}">{room}</text>'
            f'<text class="does" x="{x}" y="{y + 7:g}">{html.escape(does)}</text>'
            f'<text class="on" x="{x}" y="{y + 21:g}">{html.escape(on)}</text>'
        )
    for number, (kind, text) in enumerate((("import", "imports"), ("name", "loads by name, when it is needed"))):
        y = HEIGHT - 78 + 20 * number
        rows.append(
            f'<path class="{kind}" d="M690 {y}H730" marker-end="url(#{kind})"/>'
            f'<text class="key" x="740" y="{y + 4}">{text}</text>'
        )
    for number, text in enumerate(
        ("not drawn: what a room that imports segment", "takes from templates and model itself")
    ):
        rows.append(f'<text class="key" x="690" y="{HEIGHT - 34 + 16 * number}">{text}</text>')
    return "\n".join([*rows, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
