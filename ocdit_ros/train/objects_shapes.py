# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Procedural shapes of hand-held things: cartons, cans, bottles, mugs, tools, toys, fruit, mechanical parts.

A shape is a list of closed parts. Every part is built in its own frame (z up) and carries the transform into the
frame of the object, because paint (labels, panels, stripes) is laid on in the part's frame. Lengths are relative
here; the object generator scales the whole to metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True)
class Part:
    """One closed surface of a shape.

    ``vertices`` float64 [V, 3] in the part frame, ``faces`` int32 [F, 3] counter-clockwise from outside, ``chart``
    tells the painter how to unroll the surface ("box": six panels, "cylinder": around z, "free": neither),
    ``role`` groups parts that usually share a finish, ``frame`` float64 [4, 4] part frame to object frame.
    """

    vertices: Array
    faces: NDArray[np.int32]
    chart: str = "free"
    role: str = "body"
    frame: Array = field(default_factory=lambda: np.eye(4))

    def moved(self, frame: Array) -> Part:
        """The same part placed by a further transform."""
        return Part(self.vertices, self.faces, self.chart, self.role, frame @ self.frame)

    def in_object(self) -> Array:
        """Vertices in the object frame, float64 [V, 3]."""
        return self.vertices @ self.frame[:3, :3].T + self.frame[:3, 3]


def at(x: float = 0.0, y: float = 0.0, z: float = 0.0, rotation: Array | None = None) -> Array:
    """Transform [4, 4] of a translation after a rotation."""
    frame = np.eye(4)
    frame[:3, 3] = x, y, z
    if rotation is not None:
        frame[:3, :3] = rotation
    return frame


def turn(axis: str, degrees: float) -> Array:
    """Rotation matrix about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


# --- surfaces ------------------------------------------------------------------------------------------------------


def _grid_faces(rows: int, columns: int) -> NDArray[np.int32]:
    """Quads of a [rows, columns] vertex grid that closes around its columns, as triangles."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    after = (column + 1) % columns
    a, b = row * columns + column, row * columns + after
    c, d = (row + 1) * columns + column, (row + 1) * columns + after
    faces = np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], -2)
    return faces.reshape(-1, 3).astype(np.int32)


def _drop_degenerate(vertices: Array, faces: NDArray[np.int32]) -> tuple[Array, NDArray[np.int32]]:
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return vertices, faces[area > 1e-9 * max(float(np.ptp(vertices)), 1e-9) ** 2]


def loft(
    z: Sequence[float] | Array,
    rx: Sequence[float] | Array,
    ry: Sequence[float] | Array | None = None,
    power: float | Sequence[float] | Array = 2.0,
    segments: int = 40,
    role: str = "body",
    chart: str = "cylinder",
) -> Part:
    """Superellipse cross-sections stacked along z: lathes, rounded bottles, tubes and pouches.

    The first and last section are closed to the axis, so the surface has no border. Consecutive sections at the
    same height make rims; walls of cups come back down inside.
    """
    z, rx = np.asarray(z, float), np.asarray(rx, float)
    ry = rx if ry is None else np.asarray(ry, float)
    thin = (rx < 1e-3 * rx.max()) | (ry < 1e-3 * ry.max())  # a pole, up to rounding
    rx, ry = np.where(thin, 0.0, rx), np.where(thin, 0.0, ry)
    power = np.broadcast_to(np.asarray(power, float), z.shape)
    z = np.concatenate([z[:1], z, z[-1:]])
    rx, ry = np.concatenate([[0], rx, [0]]), np.concatenate([[0], ry, [0]])
    power = np.concatenate([power[:1], power, power[-1:]])
    angle = np.arange(segments) * 2 * np.pi / segments
    c, s = np.cos(angle), np.sin(angle)
    exponent = (2.0 / power)[:, None]
    x = rx[:, None] * np.sign(c) * np.abs(c) ** exponent
    y = ry[:, None] * np.sign(s) * np.abs(s) ** exponent
    vertices = np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], -1).reshape(-1, 3)
    return Part(*_drop_degenerate(vertices, _grid_faces(len(z), segments)), chart=chart, role=role)


def sweep(
    path: Array,
    radius: Sequence[float] | Array | float,
    flat: float = 1.0,
    segments: int = 16,
    role: str = "body",
) -> Part:
    """Tube of given radii along a polyline [P, 3] (parallel-transported frame), both ends closed."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), path.shape[:1])
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.cross(tangent[0], [0.0, 0.0, 1.0])
    if np.linalg.norm(normal) < 1e-3:
        normal = np.cross(tangent[0], [0.0, 1.0, 0.0])
    angle = np.arange(segments) * 2 * np.pi / segments
    rings = [np.repeat(path[:1], segments, 0)]
    for point, along, size in zip(path, tangent, radius, strict=True):
        normal = normal - along * (normal @ along)
        normal /= np.linalg.norm(normal)
        other = np.cross(along, normal)
        rings.append(point + size * (np.cos(angle)[:, None] * normal + flat * np.sin(angle)[:, None] * other))
    rings.append(np.repeat(path[-1:], segments, 0))
    vertices = np.concatenate(rings)
    return Part(*_drop_degenerate(vertices, _grid_faces(len(rings), segments)), role=role)


def torus(major: float, minor: float, role: str = "body", segments: int = 40, sides: int = 14) -> Part:
    """Torus around z."""
    angle, side = np.meshgrid(
        np.arange(segments + 1) * 2 * np.pi / segments, np.arange(sides) * 2 * np.pi / sides, indexing="ij"
    )
    ring = major + minor * np.cos(side)
    vertices = np.stack([ring * np.cos(angle), ring * np.sin(angle), minor * np.sin(side)], -1).reshape(-1, 3)
    return Part(vertices, _grid_faces(segments + 1, sides)[:, ::-1].copy(), role=role)


def superquadric(a: float, b: float, c: float, e1: float, e2: float, rows: int = 22, segments: int = 36) -> Part:
    """Superellipsoid with semi-axes a, b, c and exponents e1 (north-south), e2 (east-west)."""
    eta = np.linspace(-np.pi / 2, np.pi / 2, rows)
    z = c * np.sign(np.sin(eta)) * np.abs(np.sin(eta)) ** e1
    radius = np.cos(eta).clip(0) ** e1
    return loft(z, a * radius, b * radius, power=2.0 / e2, segments=segments)


def box(x: float, y: float, z: float, bevel: float = 0.0, role: str = "body") -> Part:
    """Cuboid centred at the origin; ``bevel`` > 0 chamfers all edges by that length."""
    import manifold3d

    half = np.array([x, y, z]) / 2
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij")).reshape(3, -1).T
    if bevel <= 0:
        points = signs * half
    else:
        bevel = min(bevel, 0.45 * min(x, y, z))
        points = np.concatenate([signs * (half - bevel * (1 - np.eye(3)[axis])) for axis in range(3)])
    return solid(manifold3d.Manifold.hull_points(points), chart="box", role=role)


def solid(manifold: Any, chart: str = "free", role: str = "body") -> Part:
    """Part from a manifold3d solid."""
    mesh = manifold.to_mesh()
    vertices = np.asarray(mesh.vert_properties, np.float64)[:, :3]
    return Part(*_drop_degenerate(vertices, np.asarray(mesh.tri_verts, np.int32)), chart=chart, role=role)


def cylinder(radius: float, height: float, top: float | None = None, role: str = "body", segments: int = 32) -> Part:
    """Cylinder or cone frustum, centred."""
    top = radius if top is None else top
    return loft([-height / 2, height / 2], [radius, top], segments=segments, role=role)


def polygon_prism(points: Array, height: float, twist: float = 0.0, taper: float = 1.0, role: str = "body") -> Part:
    """Extrusion of a simple polygon [P, 2] along z, centred."""
    import manifold3d

    section = manifold3d.CrossSection([np.asarray(points, float)], manifold3d.FillRule.NonZero)
    divisions = 8 if abs(twist) > 1 else 0
    body = manifold3d.Manifold.extrude(section, height, divisions, twist, (taper, taper))
    return solid(body.translate((0, 0, -height / 2)), role=role)


# --- kinds of things -----------------------------------------------------------------------------------------------


def _smooth(values: Sequence[float] | Array, count: int) -> Array:
    """Monotone cubic through control values."""
    from scipy.interpolate import PchipInterpolator

    values = np.asarray(values, float)
    return PchipInterpolator(np.linspace(0, 1, len(values)), values)(np.linspace(0, 1, count))


def carton(r: Random) -> list[Part]:
    """Boxes: flat, tall, long, books; some with a gable top."""
    style = r.choice(["flat", "tall", "cube", "long", "book"], p=[0.3, 0.3, 0.15, 0.15, 0.1])
    size = {
        "flat": (1, r.uniform(0.15, 0.4), r.uniform(1.0, 1.6)),
        "tall": (1, r.uniform(0.5, 1.0), r.uniform(1.3, 2.6)),
        "cube": (1, r.uniform(0.8, 1.2), r.uniform(0.6, 1.2)),
        "long": (r.uniform(2, 4), 1, r.uniform(0.5, 1.1)),
        "book": (1, r.uniform(0.08, 0.2), r.uniform(1.2, 1.5)),
    }[str(style)]
    bevel = r.choice([0.0, r.uniform(0.01, 0.08)], p=[0.6, 0.4]) * min(size)
    parts = [box(*size, bevel=bevel)]
    if style == "tall" and r.random() < 0.3:  # gable-top milk carton
        x, y, z = size
        ridge = r.uniform(0.25, 0.45)
        import manifold3d

        points = [(sx * x / 2, sy * y / 2, 0.0) for sx in (-1, 1) for sy in (-1, 1)]
        points += [(sx * x / 2, sy * 0.03 * y, ridge) for sx in (-1, 1) for sy in (-1, 1)]
        roof = solid(manifold3d.Manifold.hull_points(np.array(points)), chart="box", role="top")
        parts = [box(*size), roof.moved(at(z=z / 2))]
        if r.random() < 0.5:
            parts.append(
                cylinder(0.14 * x, 0.12, role="cap").moved(at(0, -0.25 * y, z / 2 + 0.6 * ridge, turn("x", 30)))
            )
    return parts


def can(r: Random) -> list[Part]:
    """Food and drink cans with rims."""
    height = r.uniform(0.5, 3.2)
    rim, lip = r.uniform(0.93, 1.0), r.uniform(0.02, 0.06)
    z = [0.03, 0.0, 0.0, lip, 2 * lip, height - 2 * lip, height - lip, height, height, height - lip]
    radius = [0.85, 0.88, rim, rim, 1, 1, rim, rim, 0.9 * rim, 0.87 * rim]
    if r.random() < 0.3:  # drink can: drawn-in neck
        z[5], radius[5] = height - 0.25, 1.0
        radius[6:] = [0.82, 0.8, 0.75, 0.72]
    return [loft(z, radius)]


def bottle(r: Random) -> list[Part]:
    """Bottles of round to boxy section with screw caps, pumps and triggers."""
    height, shoulder = r.uniform(2.2, 5.0), r.uniform(0.45, 0.8)
    neck, neck_end = r.uniform(0.2, 0.5), r.uniform(0.84, 0.93)
    flat = r.choice([1.0, r.uniform(0.4, 0.9)], p=[0.55, 0.45])
    power = 2.0 if flat == 1.0 and r.random() < 0.7 else r.uniform(2.2, 5.0)
    waist = r.choice([1.0, r.uniform(0.75, 0.97)], p=[0.6, 0.4])
    body = np.concatenate([[0.9, 1.0], 1 - (1 - waist) * np.sin(np.linspace(0, np.pi, 7))[1:-1], [1.0]])
    body_z = np.concatenate([[0, 0.04], np.linspace(0.08, shoulder, 6)]) * height
    t = np.linspace(0, 1, 7)[1:]
    curve = neck + (1 - neck) * 0.5 * (1 + np.cos(np.pi * t ** r.uniform(0.6, 1.6)))
    top_z = height * (shoulder + (neck_end - shoulder) * t)
    z = np.concatenate([body_z, top_z, [height * 0.99]])
    rx = np.concatenate([body, curve, [neck]])
    round_neck = np.concatenate([np.ones(len(body)), 1 - t, [0]])
    ry = rx * (flat * round_neck + (1 - round_neck) * 1.0)
    ry = np.where(round_neck == 1, rx * flat, np.maximum(ry * 0.999, neck))
    parts = [loft(z, rx, ry, power=2 + (power - 2) * round_neck)]
    cap_kind = r.choice(["screw", "wide", "pump", "trigger", "none"], p=[0.45, 0.2, 0.12, 0.13, 0.1])
    if cap_kind in ("screw", "wide"):
        radius = neck * (1.12 if cap_kind == "screw" else r.uniform(1.3, 2.0))
        length = r.uniform(0.15, 0.5)
        parts.append(cylinder(radius, length, radius * r.uniform(0.8, 1.0), role="cap").moved(at(z=height * 0.97)))
    elif cap_kind == "pump":
        parts.append(cylinder(neck * 1.15, 0.3, role="cap").moved(at(z=height)))
        parts.append(cylinder(neck * 0.3, 0.6, role="cap", segments=14).moved(at(z=height + 0.3)))
        parts.append(box(1.0, 0.25, 0.18, 0.05, role="cap").moved(at(0.3, 0, height + 0.6)))
    elif cap_kind == "trigger":
        parts.append(cylinder(neck * 1.15, 0.3, role="cap").moved(at(z=height)))
        parts.append(box(1.5, 0.4, 0.45, 0.1, role="cap").moved(at(0.3, 0, height + 0.4)))
        parts.append(box(0.15, 0.25, 0.8, 0.04, role="trigger").moved(at(0.65, 0, height - 0.05, turn("y", 25))))
    return parts


def jar(r: Random) -> list[Part]:
    """Jars with a lid."""
    height, lid = r.uniform(0.9, 2.2), r.uniform(0.75, 1.05)
    power = r.choice([2.0, r.uniform(2.5, 5)], p=[0.7, 0.3])
    z = np.array([0, 0.03, 0.1, 0.8, 0.9, 0.95, 1.0]) * height
    body = loft(z, [0.9, 0.97, 1, 1, 0.95, 0.85, 0.85 * lid], power=power)
    return [body, cylinder(lid * 0.93, r.uniform(0.15, 0.35), role="cap").moved(at(z=height + 0.08))]


def _cup_profile(r: Random, height: float) -> tuple[Array, Array]:
    wall = r.uniform(0.04, 0.1)
    base = r.choice([r.uniform(0.6, 0.85), 1.0], p=[0.6, 0.4])
    outer = _smooth([base, base + (1 - base) * r.uniform(0.2, 0.8), 1.0], 8)
    z_outer = np.linspace(0, height, 8)
    z = np.concatenate([z_outer, [height + 0.4 * wall], z_outer[::-1][:-1], [1.5 * wall]])
    radius = np.concatenate([outer, [1 - wall / 2], (outer - wall)[::-1][:-1], [outer[0] - 1.5 * wall]])
    return z, radius


def mug(r: Random) -> list[Part]:
    """Cups, most with a handle."""
    height = r.uniform(1.5, 2.8)
    parts = [loft(*_cup_profile(r, height), segments=44)]
    if r.random() < 0.8:
        span, reach, thick = r.uniform(0.3, 0.42) * height, r.uniform(0.45, 0.8), r.uniform(0.08, 0.16)
        angle = np.linspace(-np.pi / 2, np.pi / 2, 15)
        square = r.uniform(0.5, 1.0)
        path = np.stack(
            [
                0.88 + reach * np.cos(angle) ** square,
                np.zeros_like(angle),
                height * 0.5 + span * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** square,
            ],
            -1,
        )
        parts.append(sweep(path, thick, flat=r.uniform(0.8, 1.6), role=str(r.choice(["body", "handle"]))))
    return parts


def bowl(r: Random) -> list[Part]:
    """Bowls and plates."""
    height = r.uniform(0.25, 1.0)
    depth = r.uniform(0.4, 1.2)
    t = np.linspace(0, 1, 9)
    outer, wall = 0.35 + 0.65 * t**depth, r.uniform(0.03, 0.07)
    z = np.concatenate([[0], t * height + 0.02, (t * height + 0.05)[::-1], [0.06]])
    radius = np.concatenate([[0.33], outer, (outer - wall)[::-1], [0.2]])
    return [loft(z, radius, segments=48)]


def turned(r: Random) -> list[Part]:
    """Free lathe: vases, spinning tops, knobs, chess pieces, fruit."""
    height = r.uniform(0.8, 4.0)
    count = int(r.integers(4, 9))
    radius = _smooth(np.concatenate([[r.uniform(0.3, 1)], r.uniform(0.2, 1.0, count - 1)]), 26)
    power = r.choice([2.0, r.uniform(2.2, 6)], p=[0.8, 0.2])
    return [loft(np.linspace(0, height, 26), radius / radius.max(), power=power, segments=36)]


def fruit(r: Random) -> list[Part]:
    """Apples, pears, bananas, melons."""
    kind = r.choice(["round", "pear", "banana", "long"])
    if kind == "banana":
        bend = r.uniform(0.6, 1.8)
        angle = np.linspace(-bend / 2, bend / 2, 18)
        path = np.stack([np.cos(angle) * 3 / bend, np.sin(angle) * 3 / bend, np.zeros(18)], -1)
        body = np.interp(
            np.linspace(0, 1, 18), [0, 0.07, 0.2, 0.5, 0.8, 0.93, 1], [0.1, 0.14, 0.36, 0.45, 0.4, 0.16, 0.1]
        )
        return [sweep(path, body * r.uniform(0.7, 1.2), segments=r.choice([7, 16]))]
    eta = np.linspace(-np.pi / 2, np.pi / 2, 24)
    radius = np.cos(eta).clip(0) ** r.uniform(0.7, 1.0)
    z = np.sin(eta) * r.uniform(0.8, 1.1)
    if kind == "round":
        z = z - 0.25 * np.exp(-((radius / 0.3) ** 2)) * np.sign(eta)
    elif kind == "pear":
        radius = radius * np.interp(eta, [-1.57, -0.4, 0.6, 1.57], [1, 1.05, 0.6, 0.55])
        z = np.where(eta > 0, z * r.uniform(1.2, 1.8), z)
    else:
        z = z * r.uniform(1.5, 3)
    parts = [loft(z, radius, segments=32)]
    if kind in ("round", "pear") and r.random() < 0.6:
        top = float(z.max()) - (0.25 if kind == "round" else 0)
        parts.append(
            sweep(np.array([[0, 0, top], [0.02, 0, top + 0.2], [0.08, 0, top + 0.4]]), 0.05, segments=8, role="stem")
        )
    return parts


def pouch(r: Random) -> list[Part]:
    """Pillow bags, stand-up pouches and squeeze tubes."""
    height, depth = r.uniform(1.1, 2.2), r.uniform(0.12, 0.4)
    t = np.linspace(0, 1, 22)
    kind = r.choice(["pillow", "stand", "tube"])
    if kind == "pillow":
        ry = depth * np.sin(np.pi * t).clip(0) ** 0.6 + 0.012
        rx = 1 - 0.06 * np.sin(np.pi * t)
        return [loft(t * height, rx, ry, power=3.0 - 1.0 * np.abs(2 * t - 1), segments=44, chart="flat")]
    if kind == "stand":
        ry = depth * (1 - t**2) + 0.012
        return [loft(t * height, np.full(22, 1.0) - 0.03 * np.sin(np.pi * t), ry, power=2.6, segments=44, chart="flat")]
    radius = 0.42
    rx = np.interp(t, [0, 1], [radius, 0.62])
    ry = np.interp(t, [0, 1], [radius, 0.015])
    body = loft(t * height * 1.5, rx, ry, segments=40, chart="flat")
    return [body, cylinder(r.uniform(0.2, 0.4), 0.35, role="cap").moved(at(z=-0.17))]


def blob(r: Random) -> list[Part]:
    """Superellipsoids."""
    a, b, c = r.uniform(0.3, 1.0, 3)
    return [superquadric(a, b, c, r.uniform(0.2, 1.6), r.uniform(0.2, 1.6))]


def _outline(r: Random) -> Array:
    kind = r.choice(["star", "gear", "blob", "el", "tee", "cross", "arrow", "ngon", "heart", "wrench"])
    if kind in ("star", "gear"):
        count = int(r.integers(4, 13))
        angle = np.linspace(0, 2 * np.pi, 2 * count * (2 if kind == "gear" else 1), endpoint=False)
        inner = r.uniform(0.4, 0.85)
        pattern = [1, inner] if kind == "star" else [1, 1, inner, inner]
        radius = np.tile(pattern, count)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    if kind == "blob":
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = np.ones(48)
        for k in range(1, 5):
            radius = radius + r.uniform(-0.25, 0.25) * np.cos(k * angle + r.uniform(0, 6))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle) * r.uniform(0.5, 1)], -1)
    if kind == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return (
            np.stack([16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)], -1)
            / 16
        )
    if kind == "ngon":
        angle = np.linspace(0, 2 * np.pi, int(r.integers(3, 9)), endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle) * r.uniform(0.4, 1)], -1)
    w, u = r.uniform(0.2, 0.6), r.uniform(0.2, 0.6)
    length = r.uniform(1.0, 2.5)
    if kind == "el":
        return np.array([[0, 0], [length, 0], [length, w], [u, w], [u, 1.5], [0, 1.5]])
    if kind == "tee":
        return np.array(
            [[-length, 0], [length, 0], [length, w], [u / 2, w], [u / 2, 1.8], [-u / 2, 1.8], [-u / 2, w], [-length, w]]
        )
    if kind == "cross":
        return np.array(
            [
                [-u, -1],
                [u, -1],
                [u, -w],
                [1, -w],
                [1, w],
                [u, w],
                [u, length],
                [-u, length],
                [-u, w],
                [-1, w],
                [-1, -w],
                [-u, -w],
            ]
        )
    if kind == "arrow":
        return np.array([[0, -w], [length, -w], [length, -1], [length + 1.2, 0], [length, 1], [length, w], [0, w]])
    length *= 2
    return np.array(  # open-ended wrench
        [[0, -0.25], [length, -0.35], [length + 0.3, -0.8], [length + 1.2, -0.8], [length + 1.1, -0.35],
         [length + 0.5, -0.3], [length + 0.5, 0.3], [length + 1.1, 0.35], [length + 1.2, 0.8],
         [length + 0.3, 0.8], [length, 0.35], [0, 0.25], [-0.3, 0.6], [-0.9, 0.6], [-0.8, 0.25],
         [-0.4, 0.2], [-0.4, -0.2], [-0.8, -0.25], [-0.9, -0.6], [-0.3, -0.6]]
    )  # fmt: skip


def extrusion(r: Random) -> list[Part]:
    """Prisms of plane outlines, some twisted or tapered."""
    twist = r.choice([0.0, r.uniform(-120, 120)], p=[0.8, 0.2])
    taper = r.choice([1.0, r.uniform(0.4, 1.0)], p=[0.6, 0.4])
    return [polygon_prism(_outline(r), r.choice([r.uniform(0.15, 0.6), r.uniform(0.6, 3.0)]), twist, taper)]


def _primitive(r: Random) -> Any:
    import manifold3d

    m = manifold3d.Manifold
    kind = r.integers(4)
    size = r.uniform(0.4, 1.4, 3)
    if kind == 0:
        return m.cube(tuple(size), True)
    if kind == 1:
        return m.cylinder(size[2] * 1.6, size[0] * 0.6, size[0] * 0.6 * r.choice([1.0, r.uniform(0.2, 1)]), 28, True)
    if kind == 2:
        return m.sphere(1.0, 24).scale(tuple(size * 0.6))
    return (
        m.extrude(manifold3d.CrossSection([_outline(r)], manifold3d.FillRule.NonZero), size[2])
        .scale((0.5, 0.5, 1))
        .translate((0, 0, -size[2] / 2))
    )


def machined(r: Random) -> list[Part]:
    """Constructive solid geometry: a stock with bosses, holes and pockets."""
    import manifold3d

    body = _primitive(r)
    for _ in range(int(r.integers(1, 5))):
        other = _primitive(r)
        scale = r.uniform(0.25, 0.8)
        turned_ = other.scale((scale,) * 3).rotate(tuple(r.choice([0, 90, r.uniform(0, 360)]) for _ in range(3)))
        placed = turned_.translate(tuple(r.uniform(-0.5, 0.5, 3)))
        changed = body + placed if r.random() < 0.5 else body - placed
        if changed.volume() > 0.05:
            body = changed
    for _ in range(int(r.integers(0, 4))):  # drill holes
        hole = manifold3d.Manifold.cylinder(6, r.uniform(0.08, 0.25), -1, 20, True)
        changed = body - hole.rotate(tuple(90.0 * r.integers(0, 2, 3))).translate(tuple(r.uniform(-0.4, 0.4, 3)))
        if changed.volume() > 0.05:
            body = changed
    largest = max(body.decompose(), key=lambda piece: piece.volume())
    return [solid(largest)]


def screwdriver(r: Random) -> list[Part]:
    """A handle and a shaft."""
    handle, shaft = r.uniform(0.8, 1.3), r.uniform(1.0, 2.4)
    radius = r.uniform(0.12, 0.24)
    profile = radius * _smooth([0.6, 1.0, r.uniform(0.8, 1.1), r.uniform(0.7, 1.1), 0.6], 16)
    grip = loft(np.linspace(0, handle, 16), profile, segments=int(r.choice([6, 8, 24])), role="handle")
    rod = cylinder(radius * r.uniform(0.2, 0.4), shaft, role="metal", segments=12).moved(at(z=handle + shaft / 2))
    return [grip, rod]


def hammer(r: Random) -> list[Part]:
    """Hammers and mallets."""
    length, head = r.uniform(1.8, 3.2), r.uniform(0.7, 1.3)
    grip = loft(
        np.linspace(0, length, 12), 0.12 * _smooth([1.1, 1.3, 1.0, 0.8, 0.8], 12), 0.08 * np.ones(12), role="handle"
    )
    if r.random() < 0.5:
        top = box(head, 0.32, 0.34, 0.06, role="metal").moved(at(z=length))
    else:
        top = cylinder(r.uniform(0.2, 0.35), head, role="metal").moved(at(z=length, rotation=turn("y", 90)))
    return [grip, top]


def drill(r: Random) -> list[Part]:
    """Power drills: body, chuck, grip and battery."""
    length = r.uniform(1.4, 2.0)
    z = np.linspace(0, length, 10)
    body = loft(z, 0.36 * _smooth([0.75, 1, 1, 0.9, 0.7], 10), power=r.uniform(2, 3.5)).moved(
        at(rotation=turn("y", 90))
    )
    chuck = cylinder(0.2, 0.4, 0.12, role="metal", segments=20).moved(at(length + 0.2, rotation=turn("y", 90)))
    tilt = r.uniform(0, 20)
    grip = loft(np.linspace(-1.2, 0, 8), np.full(8, 0.24), np.full(8, 0.19), power=2.6, role="handle")
    pack = box(r.uniform(0.7, 1.1), 0.5, r.uniform(0.25, 0.45), 0.06, role="metal")
    frame = at(length * r.uniform(0.2, 0.45), 0, -0.1, turn("y", tilt))
    parts = [body, chuck, grip.moved(frame), pack.moved(frame @ at(z=-1.2))]
    if r.random() < 0.5:
        parts.append(cylinder(0.05, 0.8, role="metal", segments=10).moved(at(length + 0.7, rotation=turn("y", 90))))
    return parts


def pliers(r: Random) -> list[Part]:
    """Two handles and two jaws."""
    parts: list[Part] = []
    open_, length = r.uniform(5, 25), r.uniform(1.4, 2.4)
    for side in (-1, 1):
        t = np.linspace(0, 1, 14)
        path = np.stack([-length * t, side * (0.1 + 0.25 * np.sin(np.pi * t * 0.8)), 0.02 * side + 0 * t], -1)
        turn_ = at(rotation=turn("z", -side * open_))
        parts.append(sweep(path, r.uniform(0.09, 0.13), 0.7, 10, role="handle").moved(turn_))
        jaw = polygon_prism(
            np.array([[-0.1, 0], [0.1, 0.28], [r.uniform(0.7, 1.2), 0.06], [r.uniform(0.7, 1.2), 0]]),
            0.16,
            role="metal",
        )
        flip = at(rotation=turn("x", 180) if side < 0 else None)
        parts.append(jaw.moved(at(rotation=turn("z", side * open_ * 0.6)) @ flip))
    parts.append(cylinder(0.2, 0.2, role="metal", segments=20))
    return parts


def scissors(r: Random) -> list[Part]:
    """Two rings and two blades."""
    parts: list[Part] = []
    open_, blade = r.uniform(4, 25), r.uniform(1.2, 2.2)
    for side in (-1, 1):
        frame = at(0, 0, 0.03 * side, turn("z", side * open_))
        ring = torus(r.uniform(0.28, 0.42), r.uniform(0.07, 0.1), role="handle", segments=28, sides=10)
        parts.append(ring.moved(frame @ at(-1.3, -side * 0.2, 0)))
        points = np.array([[-1.0, -0.09], [0.2, -0.12], [blade, 0.0], [0.2, 0.12], [-1.0, 0.09]])
        parts.append(polygon_prism(points, 0.06, role="metal").moved(frame))
    return parts


def brush(r: Random) -> list[Part]:
    """Paint brushes."""
    length = r.uniform(1.2, 2.4)
    grip = loft(np.linspace(0, length, 14), _smooth([0.1, 0.16, 0.1, 0.2, 0.22], 14), np.full(14, 0.09), role="handle")
    width = r.uniform(0.22, 0.7)
    return [
        grip,
        box(2 * width, 0.22, 0.3, 0.02, role="metal").moved(at(z=length + 0.1)),
        box(1.9 * width, 0.18, r.uniform(0.4, 0.8), 0.05, role="bristle").moved(at(z=length + 0.5)),
    ]


def torch_lamp(r: Random) -> list[Part]:
    """Torches."""
    length = r.uniform(1.5, 3.0)
    z = np.array([0, 0.03, 0.1, 0.6, 0.7, 0.85, 1.0]) * length
    head = r.uniform(1.1, 2.0)
    body = loft(z, 0.25 * np.array([0.9, 1, 1, 1, 1, head, head]), segments=28)
    return [body, cylinder(0.25 * head * 0.85, 0.03, role="cap").moved(at(z=length + 0.01))]


def toy_car(r: Random) -> list[Part]:
    """A body, a cabin and four wheels."""
    length, width = r.uniform(1.6, 2.6), r.uniform(0.7, 1.0)
    parts = [box(length, width, 0.4, 0.08).moved(at(z=0.4))]
    cabin = r.uniform(0.4, 0.7) * length
    parts.append(box(cabin, width * 0.9, 0.4, 0.1, role="cabin").moved(at(r.uniform(-0.2, 0.2), 0, 0.75)))
    radius = r.uniform(0.18, 0.3)
    for x in (-0.32, 0.32):
        for y in (-0.5, 0.5):
            wheel = cylinder(radius, 0.16, role="wheel", segments=20)
            parts.append(wheel.moved(at(x * length, y * width, 0.22, turn("x", 90))))
    return parts


def toy_animal(r: Random) -> list[Part]:
    """Ellipsoids that read as animals."""
    body = superquadric(1.0, r.uniform(0.5, 0.75), r.uniform(0.45, 0.7), 1, 1)
    a, b, c = r.uniform(0.35, 0.55, 3)
    head = superquadric(a, b, c, 1, 1).moved(at(r.uniform(0.7, 1.0), 0, r.uniform(0.4, 0.9)))
    parts = [body, head]
    if r.random() < 0.5:
        snout = loft([0, 0.2, 0.35], [0.2, 0.14, 0.05], segments=16, role="detail")
        parts.append(snout.moved(at(1.25, 0, 0.65, turn("y", 90))))
    if r.random() < 0.6:
        for x in (-0.5, 0.5):
            for y in (-0.3, 0.3):
                parts.append(cylinder(0.15, 0.6, segments=14, role="leg").moved(at(x, y, -0.65)))
    return parts


def brick(r: Random) -> list[Part]:
    """Bricks with studs."""
    nx, ny = int(r.integers(1, 5)), int(r.integers(1, 4))
    height = r.choice([0.4, 1.2, 2.4])
    parts = [box(nx, ny, height, 0.02)]
    for x in range(nx):
        for y in range(ny):
            stud = cylinder(0.3, 0.25, segments=16)
            parts.append(stud.moved(at(x - (nx - 1) / 2, y - (ny - 1) / 2, height / 2 + 0.1)))
    return parts


def dumbbell(r: Random) -> list[Part]:
    """A bar between two ends."""
    length, radius = r.uniform(1.0, 2.5), r.uniform(0.35, 0.8)
    parts = [cylinder(r.uniform(0.12, 0.3), length, role="handle", segments=20)]
    for side in (-1, 1):
        end = cylinder(radius, r.uniform(0.25, 0.6)) if r.random() < 0.6 else superquadric(radius, radius, radius, 1, 1)
        parts.append(end.moved(at(z=side * length / 2)))
    return parts


def ring(r: Random) -> list[Part]:
    """A torus."""
    return [torus(1.0, r.uniform(0.12, 0.42), sides=18)]


def clamp(r: Random) -> list[Part]:
    """A C-clamp with its screw."""
    depth, span, thick = r.uniform(0.8, 1.4), r.uniform(1.0, 2.0), r.uniform(0.2, 0.35)
    points = np.array(
        [
            [0, 0],
            [depth, 0],
            [depth, thick],
            [thick, thick],
            [thick, span - thick],
            [depth, span - thick],
            [depth, span],
            [0, span],
        ]
    )
    frame = polygon_prism(points, 0.3, role="metal")
    screw = cylinder(0.09, span, role="handle", segments=14).moved(at(depth * 0.85, -0.1, 0, turn("x", 90)))
    return [
        frame,
        screw,
        cylinder(0.2, 0.1, role="metal", segments=18).moved(at(depth * 0.85, span * 0.4, 0, turn("x", 90))),
    ]


def figurine(r: Random) -> list[Part]:
    """Organic bodies: ellipsoids along a spine with limbs, melted into one another (smooth minimum of distances)."""
    import manifold3d

    middle = [np.zeros(3)]
    radii = [r.uniform(0.35, 0.6, 3)]
    for _ in range(int(r.integers(1, 4))):  # torso and head
        step = r.normal(size=3) * [1, 0.4, 0.8]
        middle.append(middle[-1] + step / np.linalg.norm(step) * r.uniform(0.4, 0.75))
        radii.append(r.uniform(0.22, 0.5, 3))
    for _ in range(int(r.integers(1, 6))):  # limbs, ears and tails, often in pairs
        root = int(r.integers(len(middle)))
        step = r.normal(size=3)
        place, size = middle[root] + step / np.linalg.norm(step) * r.uniform(0.4, 0.7), r.uniform(0.1, 0.24, 3)
        middle.append(place)
        radii.append(size)
        if r.random() < 0.6:
            middle.append(place * [1, -1, 1])
            radii.append(size)
    centres, inverse, scale = np.array(middle), 1 / np.array(radii), np.array(radii).min(1)
    blend = r.uniform(8, 25)

    def level(x: float, y: float, z: float) -> float:
        q = (np.array([x, y, z]) - centres) * inverse
        distance = (np.sqrt((q * q).sum(1)) - 1) * scale
        low = distance.min()
        return float(np.log(np.exp(-blend * (distance - low)).sum()) / blend - low)

    low, high = centres.min(0) - 0.75, centres.max(0) + 0.75
    edge = float((high - low).max()) / 26
    body = manifold3d.Manifold.level_set(level, (*low, *high), edge)
    return [solid(max(body.decompose(), key=lambda piece: piece.volume()))]


def pot(r: Random) -> list[Part]:
    """Teapots, watering cans and jugs: a vessel with a spout and a handle."""
    height = r.uniform(1.2, 2.2)
    radius = _smooth([r.uniform(0.7, 1), 1.0, r.uniform(0.7, 1.0), r.uniform(0.5, 0.9)], 12)
    z, top = np.linspace(0, height, 12), float(radius[-1])
    body = loft(np.concatenate([z, [height, height * 0.75]]), np.concatenate([radius, [top * 0.85, top * 0.8]]))
    reach = r.uniform(0.6, 1.4)
    t = np.linspace(0, 1, 10)
    spout = np.stack([0.75 + reach * t, 0 * t, height * (0.25 + r.uniform(0.5, 0.9) * t ** r.uniform(0.8, 1.6))], -1)
    role = str(r.choice(["body", "spout"]))
    parts = [body, sweep(spout, np.linspace(0.25, r.uniform(0.1, 0.2), 10), role=role)]
    if r.random() < 0.4:
        tip = spout[-1]
        parts.append(cylinder(0.32, 0.12, 0.36, role=role).moved(at(tip[0] + 0.05, 0, tip[2], turn("y", 50))))
    angle = np.linspace(-np.pi / 2, np.pi / 2, 13)
    if r.random() < 0.5:  # handle at the back
        path = np.stack([-0.8 - 0.6 * np.cos(angle), 0 * angle, height * (0.5 + 0.36 * np.sin(angle))], -1)
    else:  # bow over the top
        path = np.stack([top * np.sin(angle), 0 * angle, height * 0.95 + 0.8 * np.cos(angle)], -1)
    parts.append(sweep(path, r.uniform(0.08, 0.14), r.uniform(0.8, 1.8), role=str(r.choice(["body", "handle"]))))
    if r.random() < 0.4:
        parts.append(superquadric(0.2, 0.2, 0.15, 1, 1, 12, 20).moved(at(z=height + 0.05)))
        parts.append(cylinder(top * 0.95, 0.08, role="cap").moved(at(z=height)))
    return parts


def stapler(r: Random) -> list[Part]:
    """Two long jaws on a hinge: staplers, hole punches, tongs."""
    length, width, open_ = r.uniform(2.0, 3.2), r.uniform(0.35, 0.8), r.uniform(4, 25)
    base = box(length, width, r.uniform(0.15, 0.35), 0.05, role="metal")
    arm = box(length * r.uniform(0.8, 1.0), width * 0.85, r.uniform(0.25, 0.5), 0.12)
    hinge = at(-length / 2, 0, 0.2, turn("y", -open_)) @ at(length / 2, 0, 0.15)
    parts = [base, arm.moved(hinge)]
    if r.random() < 0.5:
        parts.append(cylinder(0.25, width * 0.95, role="metal").moved(at(-length * 0.4, 0, 0.25, turn("x", 90))))
    return parts


def camera(r: Random) -> list[Part]:
    """A body with a lens and knobs: cameras, projectors, radios, alarm clocks."""
    y, z = r.uniform(0.35, 0.7), r.uniform(0.5, 1.0)
    parts = [box(1.5, y, z, r.uniform(0.02, 0.1))]
    radius = r.uniform(0.2, 0.45) * z
    length = r.uniform(0.1, 0.8)
    lens = loft(
        np.array([0, 0.9, 1.0, 1.0, 0.8]) * length, radius * np.array([1, 1, 0.95, 0.75, 0.7]), role="metal"
    ).moved(at(r.uniform(-0.3, 0.3), -y / 2, 0, turn("x", 90)))
    parts.append(lens)
    for _ in range(int(r.integers(0, 4))):
        knob = cylinder(r.uniform(0.05, 0.14), 0.12, role="knob", segments=18)
        parts.append(knob.moved(at(r.uniform(-0.6, 0.6), r.uniform(-0.15, 0.15) * y, z / 2 + 0.05)))
    return parts


def tray(r: Random) -> list[Part]:
    """Rows of bumps or cups on a sheet: egg boxes, blister packs, muffin tins, building plates."""
    nx, ny = int(r.integers(2, 6)), int(r.integers(2, 4))
    parts = [box(nx, ny, r.uniform(0.15, 0.6), 0.05)]
    top = float(parts[0].vertices[:, 2].max())
    bump, size, high = r.integers(3), r.uniform(0.3, 0.45), r.uniform(0.3, 0.9)
    for x in range(nx):
        for y in range(ny):
            if bump == 0:
                one = superquadric(size, size, high, 1, r.choice([0.4, 1.0]), 12, 18)
            elif bump == 1:
                one = cylinder(size, high, size * 0.7, segments=18)
            else:
                one = box(1.6 * size, 1.6 * size, high, 0.1)
            spot = at(x - (nx - 1) / 2, y - (ny - 1) / 2, top)
            parts.append(Part(one.vertices, one.faces, "free", "bump").moved(spot))
    return parts


def gadget(r: Random) -> list[Part]:
    """Phones, remotes, adapters, controllers: a flat body with buttons, knobs and a cable stub."""
    x, y, z = 1.0, r.uniform(0.4, 1.8), r.uniform(0.12, 0.5)
    parts = [box(x, y, z, r.uniform(0.03, 0.2) * z)]
    for _ in range(int(r.integers(0, 6))):
        px, py = r.uniform(-0.38, 0.38) * x, r.uniform(-0.4, 0.4) * y
        size = r.uniform(0.06, 0.16)
        knob = (
            cylinder(size, 0.12, role="knob", segments=18)
            if r.random() < 0.5
            else box(2 * size, size, 0.12, 0.02, role="knob")
        )
        parts.append(knob.moved(at(px, py, z / 2)))
    if r.random() < 0.3:
        path = np.array([[0, y / 2, 0], [0, y / 2 + 0.2, 0], [0.1, y / 2 + 0.4, 0], [0.3, y / 2 + 0.5, 0]])
        parts.append(sweep(path, 0.05, segments=10, role="knob"))
    return parts


def composite(r: Random) -> list[Part]:
    """Two to four primitives stuck together along the axes."""
    parts: list[Part] = []
    position = np.zeros(3)
    for index in range(int(r.integers(2, 5))):
        kind = r.integers(5)
        s = r.uniform(0.3, 1.0, 3)
        role = "body" if index == 0 else f"detail{index}"
        if kind == 0:
            part = box(s[0], s[1], s[2], r.choice([0.0, 0.05]), role)
        elif kind == 1:
            part = cylinder(s[0] / 2, s[2], s[0] / 2 * r.choice([1, r.uniform(0.1, 1)]), role=role)
        elif kind == 2:
            e1, e2 = r.uniform(0.3, 1.3, 2)
            q = superquadric(s[0] / 2, s[1] / 2, s[2] / 2, e1, e2, 16, 28)
            part = Part(q.vertices, q.faces, "free", role)
        elif kind == 3:
            part = torus(s[0] / 2, s[0] / 2 * r.uniform(0.2, 0.45), role=role, segments=28, sides=12)
        else:
            part = polygon_prism(_outline(r) * s[0] * 0.45, s[2] * 0.6, role=role)
        size = np.ptp(part.vertices, axis=0)
        if index:
            axis = int(r.integers(3))
            position = position + np.eye(3)[axis] * r.choice([-1, 1]) * size[axis] * r.uniform(0.3, 0.55)
        rotation = turn(str(r.choice(["x", "y", "z"])), float(r.choice([0, 90, r.uniform(0, 90)])))
        parts.append(part.moved(at(position[0], position[1], position[2], rotation)))
        position = position + np.eye(3)[int(r.integers(3))] * r.choice([-1, 1]) * size * r.uniform(0.2, 0.45)
    return parts


KINDS: dict[str, tuple[Callable[[Random], list[Part]], float]] = {
    "carton": (carton, 16),
    "can": (can, 8),
    "bottle": (bottle, 12),
    "jar": (jar, 4),
    "mug": (mug, 6),
    "bowl": (bowl, 2.5),
    "turned": (turned, 4),
    "fruit": (fruit, 6),
    "pouch": (pouch, 6),
    "blob": (blob, 3),
    "extrusion": (extrusion, 4),
    "machined": (machined, 5),
    "screwdriver": (screwdriver, 2.5),
    "hammer": (hammer, 2),
    "drill": (drill, 4),
    "pliers": (pliers, 2),
    "scissors": (scissors, 2),
    "brush": (brush, 1.5),
    "torch": (torch_lamp, 1.5),
    "car": (toy_car, 2.5),
    "animal": (toy_animal, 2.5),
    "brick": (brick, 2),
    "dumbbell": (dumbbell, 1),
    "ring": (ring, 1),
    "clamp": (clamp, 1.5),
    "gadget": (gadget, 4),
    "composite": (composite, 5),
    "figurine": (figurine, 8),
    "pot": (pot, 4),
    "stapler": (stapler, 2),
    "camera": (camera, 3),
    "tray": (tray, 2),
}
"""Every kind with its share among procedural shape families (relative weights)."""


def draw_kind(r: Random) -> str:
    """Name of a kind, drawn by the shares in KINDS."""
    names = list(KINDS)
    weights = np.array([KINDS[name][1] for name in names], float)
    return str(r.choice(names, p=weights / weights.sum()))


def build(kind: str, r: Random) -> list[Part]:
    """Parts of one shape of the given kind; same generator state, same shape."""
    return KINDS[kind][0](r)
