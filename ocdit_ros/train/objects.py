# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training objects: drawn from a seed, painted, rendered as templates and stored.

Objects come in families. Members of one family look alike: the same shape in another texture, or the same texture
on another size or proportion of the shape. A family never crosses the border between the training and the
validation split.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..templates import Mesh, RenderSettings, TemplateSet, render, viewpoints
from ..templates.mesh import diameter as largest_distance
from . import objects_shapes as shapes
from . import textures as tx

Random = np.random.Generator
SPLITS = ("train", "val")
LICENCE = "Apache-2.0"  # procedural objects are made by this code
_CREASE = np.cos(np.radians(30.0))  # as RenderSettings.crease
_TEXELS = 400.0  # texels along one diameter: finer than a template pixel, coarser would lose print


@dataclass(frozen=True, eq=False)
class TrainObject:
    """A textured mesh ready for the scene renderer; lengths in metres, origin in the middle of the bounding box."""

    key: str
    vertices: NDArray[np.float32]  # [V, 3]
    faces: NDArray[np.uint32]  # [F, 3]
    normals: NDArray[np.float32]  # [F, 3, 3] shading normals of the face corners
    uv: NDArray[np.float32]  # [F, 3, 2] texture coordinates, origin bottom left
    texture: NDArray[np.uint8]  # [S, S, 3] sRGB
    rests: NDArray[np.float32]  # [K, 3, 3] rotations in which the object stands on a plane, most stable first
    sheen: float  # 0 matt .. 1 polished; scenes vary around it
    diameter: float
    info: Mapping[str, Any]  # the entry of index.json

    def as_mesh(self) -> Mesh:
        """The form the template renderer takes."""
        count = len(self.faces)
        return Mesh(
            vertices=self.vertices.astype(np.float64),
            faces=self.faces,
            colors=np.full((count, 3, 3), 255, np.uint8),
            uv=self.uv,
            texture_index=np.zeros(count, np.int32),
            textures=(self.texture,),
            diameter=self.diameter,
        )


def seeded(*words: int | str) -> Random:
    """Generator for a path of words and numbers: independent streams, the same on every machine."""
    numbers = [w if isinstance(w, int) else int.from_bytes(w.encode()[:16], "little") for w in words]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))


# --- geometry ------------------------------------------------------------------------------------------------------


def corner_normals(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float32]:
    """Shading normals [F, 3, 3]: area-weighted over faces that meet in a point, flat across creases."""
    corner = vertices[faces].astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    grid = np.rint((vertices - vertices.min(0)) / max(float(np.ptp(vertices)), 1e-9) * 2**20).astype(np.int64)
    _, same = np.unique((grid[:, 0] << 42) | (grid[:, 1] << 21) | grid[:, 2], return_inverse=True)
    joined = same.reshape(-1)[faces]
    smooth = np.stack([np.bincount(joined.ravel(), weights=np.repeat(normal[:, c], 3)) for c in range(3)], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    smooth = smooth / np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-30)
    spread = smooth[joined]
    flat = np.einsum("fkc,fc->fk", spread, normal) < _CREASE
    return np.where(flat[..., None], normal[:, None], spread).astype(np.float32)


def upright(direction: NDArray[Any]) -> NDArray[np.float64]:
    """A rotation that takes the unit direction to -z."""
    z = -np.asarray(direction, float)
    x = np.cross([0.0, 1.0, 0.0], z)
    if np.linalg.norm(x) < 0.1:
        x = np.cross([1.0, 0.0, 0.0], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def resting_rotations(vertices: NDArray[Any], limit: int = 8) -> NDArray[np.float32]:
    """Rotations [K, 3, 3] in which the convex hull stands on a facet below its centroid, largest facets first."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.asarray(vertices, float)
    try:
        hull = ConvexHull(points)
    except QhullError:
        return np.eye(3, dtype=np.float32)[None]
    triangles = points[hull.simplices]
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    centre = (triangles.mean(1) * areas[:, None]).sum(0) / areas.sum()
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, equation in enumerate(np.rint(hull.equations[:, :3] * 50).astype(int)):
        groups.setdefault(tuple(equation), []).append(index)
    ranked = sorted(groups.values(), key=lambda members: -float(areas[members].sum()))
    found = []
    for members in ranked[:40]:
        normal = hull.equations[members[0], :3]
        turned = upright(normal)
        foot = (points[np.unique(hull.simplices[members])] @ turned.T)[:, :2]
        middle = (turned @ centre)[:2]
        try:
            outline = ConvexHull(foot)
        except QhullError:
            continue
        if (outline.equations[:, :2] @ middle + outline.equations[:, 2] < 0).all():
            found.append(turned)
        if len(found) == limit:
            break
    return np.asarray(found or [np.eye(3)], np.float32)


# --- drawing an object ---------------------------------------------------------------------------------------------

# Diameters in metres as such things have them.
_SIZES: dict[str, tuple[float, float]] = {
    "carton": (0.07, 0.35), "can": (0.07, 0.18), "bottle": (0.12, 0.33), "jar": (0.07, 0.18), "mug": (0.09, 0.16),
    "bowl": (0.09, 0.24), "fruit": (0.05, 0.22), "pouch": (0.1, 0.32), "screwdriver": (0.12, 0.28),
    "hammer": (0.2, 0.35), "drill": (0.18, 0.32), "pliers": (0.12, 0.25), "scissors": (0.12, 0.24),
    "brush": (0.12, 0.3), "torch": (0.09, 0.25), "car": (0.06, 0.25), "animal": (0.06, 0.25), "brick": (0.03, 0.15),
    "gadget": (0.06, 0.22), "ring": (0.05, 0.2), "figurine": (0.06, 0.25), "pot": (0.12, 0.3),
    "stapler": (0.1, 0.22), "camera": (0.08, 0.2), "tray": (0.08, 0.3),
}  # fmt: skip
_PRINTED = {
    "carton": 0.9,
    "can": 0.88,
    "bottle": 0.75,
    "jar": 0.75,
    "pouch": 0.9,
    "mug": 0.35,
    "gadget": 0.25,
    "torch": 0.2,
    "found": 0.15,
}


def paint_parts(
    r: Random, parts: Sequence[shapes.Part], kind: str, photos: Sequence[tx.Image8] = ()
) -> tuple[list[tx.Paint], float]:
    """A paint for every part (parts of one role share it) and the sheen of the object."""
    colours = tx.palette(r)
    by_role: dict[str, tx.Paint] = {}
    paints: list[tx.Paint] = []
    uniform = r.random() < 0.15  # one colour all over, the hardest to tell apart
    for part in parts:
        low, high = part.vertices.min(0).astype(np.float32), part.vertices.max(0).astype(np.float32)
        extent = np.maximum(high - low, 1e-6)
        printed = part.role == "body" and r.random() < _PRINTED.get(kind, 0.0)
        if part.role in by_role and not printed and (part.role != "body" or r.random() < 0.7):
            paints.append(by_role[part.role])
            continue
        if uniform:
            paint = tx.solid_paint(seeded(int(r.integers(2**31))), colours, extent, "plain")
        elif printed and part.chart == "box":
            paint = tx.printed_box(r, colours, low, high, photos)
        elif printed and part.chart == "flat":
            paint = tx.printed_flat(r, colours, low, high, photos)
        elif printed and part.chart == "cylinder":
            paint = tx.printed_wrap(r, colours, low, high, photos, whole=kind == "can")
        elif part.role == "metal" and r.random() < 0.6:
            paint = tx.solid_paint(r, colours, extent, "brushed")
        elif kind == "fruit" and r.random() < 0.8:
            ripe = tx.hsv(
                r.choice([r.uniform(0, 0.18), r.uniform(0.2, 0.4)], p=[0.8, 0.2]),
                r.uniform(0.6, 1),
                r.uniform(0.4, 0.95),
            )
            paint = tx.solid_paint(
                r,
                np.stack([ripe, ripe * r.uniform(0.5, 1.2, 3).astype(np.float32)] + [ripe] * 3),
                extent,
                str(r.choice(["gradient", "cloudy", "speckles", "plain"])),
            )
        else:
            # Parts of one object often share colours: rotate the palette by role.
            shifted = np.roll(colours, -len(by_role), axis=0)
            paint = tx.solid_paint(r, shifted, extent)
            if r.random() < (0.35 if part.role == "body" else 0.08):
                paint = tx.with_decal(r, paint, colours, low, high, photos)
        if r.random() < 0.6:
            paint = tx.with_wear(r, paint, extent)
        by_role[part.role] = paint
        paints.append(paint)
    return paints, float(r.beta(1.2, 2.5))


def assemble(
    key: str,
    parts: Sequence[shapes.Part],
    paints: Sequence[tx.Paint],
    diameter: float,
    stretch: NDArray[Any],
    sheen: float,
    info: Mapping[str, Any],
    dent: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> TrainObject:
    """Join parts into one textured mesh of the wanted diameter (metres).

    ``stretch`` [3] scales the object's axes after painting, so the print stretches with the surface. ``dent`` moves
    points [V, 3] of the object scaled to unit size, so that a surface is as uneven as a scanned or a used one.
    """
    faces, offset, owner = [], 0, []
    for number, part in enumerate(parts):
        faces.append(part.faces + offset)
        owner.append(np.full(len(part.faces), number))
        offset += len(part.vertices)
    triangles, part_of = np.concatenate(faces), np.concatenate(owner)
    local = np.concatenate([part.vertices for part in parts])
    metric = np.concatenate([part.in_object() for part in parts]) * stretch
    if dent is not None:
        metric = metric + dent(metric / max(float(np.ptp(metric)), 1e-9)) * float(np.ptp(metric))
    metric *= diameter / max(largest_distance(metric), 1e-9)
    metric -= (metric.min(0) + metric.max(0)) / 2

    def paint(points: tx.Floats, normals: tx.Floats, index: NDArray[np.int64]) -> tx.Floats:
        rgb = np.empty_like(points)
        which = part_of[index]
        for number, one in enumerate(paints):
            mine = which == number
            if mine.any():
                rgb[mine] = one(points[mine], normals[mine])
        return rgb

    texture, uv = tx.bake(local, triangles, paint, metric, diameter / _TEXELS)
    uv[..., 1] = 1.0 - uv[..., 1]
    vertices = metric.astype(np.float32)
    size = largest_distance(metric)
    entry = dict(info, diameter=round(float(size), 6))
    return TrainObject(
        key=key,
        vertices=vertices,
        faces=triangles.astype(np.uint32),
        normals=corner_normals(metric, triangles),
        uv=uv,
        texture=texture,
        rests=resting_rotations(metric),
        sheen=sheen,
        diameter=float(size),
        info=entry,
    )


def unevenness(r: Random) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A smooth random displacement of points [V, 3] of a body of unit size: a few low waves."""
    strength = float(np.exp(r.uniform(np.log(0.003), np.log(0.03))))
    waves = r.normal(size=(6, 3)) * r.uniform(2, 9, (6, 1))
    phase, direction = r.uniform(0, 2 * np.pi, 6), r.normal(size=(6, 3)) * strength / 2.5
    return lambda points: np.sin(points @ waves.T + phase) @ direction


def draw_family(
    seed: int, split: str, number: int, prefix: str = "p0", photos: Sequence[tx.Image8] = ()
) -> list[TrainObject]:
    """All members (1..3) of one procedural family; the same arguments give the same objects."""
    r = seeded(seed, split, "family", number)
    kind = shapes.draw_kind(r)
    members = 1 if r.random() < 0.7 else int(r.integers(2, 4))
    same_shape = r.random() < 0.6
    low, high = _SIZES.get(kind, (0.04, 0.3)) if r.random() < 0.8 else (0.03, 0.35)
    size = float(np.exp(r.uniform(np.log(low), np.log(high))))
    shape_seed, paint_seed = int(r.integers(2**62)), int(r.integers(2**62))
    dent = unevenness(seeded(shape_seed, 1)) if r.random() < 0.3 else None
    frame = shapes.at()
    if r.random() < 0.3:  # scanned objects come in any frame
        frame = shapes.at(rotation=shapes.turn(str(r.choice(["x", "y"])), float(r.choice([90, 180, -90]))))
    found = []
    name = f"{prefix}-{split[0]}{number:06d}"
    for member in range(members):
        stretch, scale = np.ones(3), 1.0
        change_shape = member and not same_shape
        parts = shapes.build(kind, seeded(shape_seed, member if change_shape and r.random() < 0.4 else 0))
        if change_shape:
            scale = float(r.choice([r.uniform(0.55, 0.8), r.uniform(1.25, 1.7)]))
            if r.random() < 0.85:  # otherwise only the size tells them apart
                stretch[2] = r.choice([r.uniform(0.5, 0.75), r.uniform(1.35, 1.9)])
        parts = [part.moved(frame) for part in parts]
        paints, sheen = paint_parts(seeded(paint_seed, member if same_shape else 0), parts, kind, photos)
        info = {"family": name, "source": f"procedural/{kind}", "licence": LICENCE}
        metres = float(np.clip(size * scale, 0.03, 0.35))
        found.append(assemble(f"{name}{'abc'[member]}", parts, paints, metres, stretch, sheen, info, dent))
    return found


def enlarged(item: TrainObject, ratio: float) -> TrainObject:
    """The same object, print and all, ``ratio`` times as large; of one family with the first."""
    diameter = item.diameter * ratio
    return dataclasses.replace(
        item,
        key=f"{item.key}-x{ratio:g}",
        vertices=(item.vertices * ratio).astype(np.float32),
        diameter=diameter,
        info=dict(item.info, diameter=round(diameter, 6)),
    )


# --- store ---------------------------------------------------------------------------------------------------------


def templates_of(item: TrainObject, views: int = 12, size: int = 128) -> TemplateSet:
    """The views the model sees at inference, by the same renderer and settings."""
    return render(item.as_mesh(), viewpoints(views), RenderSettings(size=size, threads=1), name=item.key)


def write_whole(path: Path, write: Any) -> None:
    """Write a file so that it is either whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_templates(folder: Path, templates: TemplateSet) -> None:
    """Templates to ``folder/<key>.npz``."""
    arrays: dict[str, Any] = {
        "images": templates.images, "masks": templates.masks, "depths": templates.depths,
        "rotations": templates.rotations, "diameter": np.float64(templates.diameter), "name": np.str_(templates.name),
    }  # fmt: skip
    write_whole(folder / f"{templates.name}.npz", lambda file: np.savez_compressed(file, **arrays))


def save_object(folder: Path, item: TrainObject) -> None:
    """Mesh to ``folder/mesh/<key>.npz``."""
    arrays: dict[str, Any] = {
        "vertices": item.vertices, "faces": item.faces, "normals": item.normals.astype(np.float16), "uv": item.uv,
        "texture": item.texture, "rests": item.rests, "sheen": np.float64(item.sheen),
        "diameter": np.float64(item.diameter), "info": np.str_(json.dumps(dict(item.info))),
    }  # fmt: skip
    (folder / "mesh").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "mesh" / f"{item.key}.npz", lambda file: np.savez(file, **arrays))


def load_object(folder: Path | str, key: str) -> TrainObject:
    """Read ``folder/mesh/<key>.npz``. Raises FileNotFoundError when the store has no such object."""
    with np.load(Path(folder) / "mesh" / f"{key}.npz") as data:
        return TrainObject(
            key=key,
            vertices=data["vertices"],
            faces=data["faces"],
            normals=data["normals"].astype(np.float32),
            uv=data["uv"],
            texture=data["texture"],
            rests=data["rests"],
            sheen=float(data["sheen"]),
            diameter=float(data["diameter"]),
            info=json.loads(str(data["info"])),
        )


def read_index(folder: Path | str) -> dict[str, dict[str, Any]]:
    """``index.json`` of one split: key -> family, source, licence, diameter, colour."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: generate objects first.")
    loaded: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return loaded


def update_index(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Merge entries into ``index.json``; sorted, so the same objects give the same file."""
    path = folder / "index.json"
    merged: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    merged.update({key: dict(value) for key, value in entries.items()})
    text = json.dumps(dict(sorted(merged.items())), indent=0)
    write_whole(path, lambda file: file.write(text.encode()))


def mean_colour(templates: TemplateSet) -> list[int]:
    """Mean sRGB of all covered template pixels: finds look-alikes in colour."""
    weight = templates.masks.astype(np.float64).sum() / 255.0
    return [int(v) for v in np.rint(templates.images.reshape(-1, 3).sum(0, dtype=np.float64) / max(weight, 1.0))]
