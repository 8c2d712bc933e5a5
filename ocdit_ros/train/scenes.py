# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes: objects dropped into piles or onto tables, lit, ray cast and photographed.

A scene is drawn (:func:`draw_scene`), then rendered (:func:`render_scene`); both depend on the seed only. World
frame: z up, ground at z = 0, metres. Camera frame: REP-103 optical (x right, y down, z forward); pixel centres have
integer coordinates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import open3d as o3d
from numpy.typing import NDArray

from . import sensor as camera_sensor
from . import textures as tx
from .objects import TrainObject

Random = np.random.Generator
Floats = NDArray[np.float32]
Image8 = NDArray[np.uint8]
RENDERER = "raycast-1"
LUMINANCE: Floats = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear rgb, ITU-R BT.709


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What the scene drawer knows about the objects of a split, arrays of length N."""

    keys: tuple[str, ...]
    families: NDArray[np.int64]
    diameters: Floats
    colours: Floats  # [N, 3] mean sRGB 0..255

    @classmethod
    def from_index(cls, index: Mapping[str, Mapping[str, Any]]) -> Catalogue:
        """From ``index.json``; raises ValueError when it is empty."""
        keys = tuple(sorted(index))
        if not keys:
            raise ValueError("the object store is empty: generate objects first.")
        _, families = np.unique([str(index[k]["family"]) for k in keys], return_inverse=True)
        diameters = np.array([index[k]["diameter"] for k in keys], np.float32)
        colours = np.array([index[k].get("colour", (128, 128, 128)) for k in keys], np.float32)
        return cls(keys, families, diameters, colours)


@dataclass(frozen=True, eq=False)
class Placed:
    """One instance: object, pose in the world and how its surface differs from its templates."""

    item: TrainObject
    rotation: NDArray[np.float64]  # [3, 3] object to world
    position: NDArray[np.float64]  # [3]
    tint: Floats  # [3, 3] on linear albedo
    specular: float
    shininess: float


@dataclass(frozen=True, eq=False)
class Light:
    """A round lamp at a place; ``colour`` is its irradiance at normal incidence."""

    position: NDArray[np.float64]
    radius: float
    colour: Floats  # [3] linear
    shadow: bool


@dataclass(frozen=True, eq=False)
class Surface:
    """A textured quad: corner, two edges, texture and the length of one (mirrored) texture tile in metres."""

    corner: NDArray[np.float64]
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    texture: Image8
    tile: float  # 0: the texture fills the quad once
    gloss: float = 0.0
    hides: bool = False  # may stand between the camera and objects (sides of a bin)


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that decides a picture."""

    instances: tuple[Placed, ...]
    surfaces: tuple[Surface, ...]
    lights: tuple[Light, ...]
    sky: Floats  # [3] ambient from above, linear
    earth: Floats  # [3] ambient from below, linear
    backdrop: Image8
    intrinsics: NDArray[np.float64]  # [3, 3]
    rotation: NDArray[np.float64]  # [3, 3] world to camera
    translation: NDArray[np.float64]  # [3]
    brightness: float  # mean linear luminance the exposure aims at
    sensor: camera_sensor.Sensor = field(default_factory=camera_sensor.Sensor)


@dataclass(frozen=True, eq=False)
class Rendered:
    """A picture with its annotations, in the layout of the shards."""

    rgb: Image8  # [H, W, 3]
    label: Image8  # [H, W]: 0 background, k = k-th of instances
    instances: list[dict[str, Any]]
    camera: dict[str, Any]
    jpeg_quality: int
    renderer: str = RENDERER


# --- drawing -------------------------------------------------------------------------------------------------------


def choose_objects(r: Random, catalogue: Catalogue, count: int) -> list[str]:
    """Keys of the instances of one scene: of similar size, often with look-alikes and repeated objects."""
    total = len(catalogue.keys)
    first = int(r.integers(total))
    size = catalogue.diameters[first]
    ratio = catalogue.diameters / size
    fitting = np.flatnonzero((ratio > 0.4) & (ratio < 2.4))
    chosen = [first]
    if r.random() < 0.45:
        chosen += [int(i) for i in np.flatnonzero(catalogue.families == catalogue.families[first]) if i != first]
    if r.random() < 0.4:
        pool = r.choice(fitting, min(len(fitting), 150), replace=False)
        near = pool[np.argsort(np.abs(catalogue.colours[pool] - catalogue.colours[first]).sum(1), kind="stable")]
        chosen += [int(i) for i in near[: int(r.integers(1, 5))] if i not in chosen]
    if r.random() < 0.2:
        chosen += [int(r.choice(chosen))] * int(r.integers(1, 4))
    chosen = chosen[:count]
    while len(chosen) < count:
        candidate = int(r.choice(fitting))
        if candidate not in chosen or len(fitting) < 4 * count:
            chosen.append(candidate)
            if r.random() < 0.3:
                kin = [int(i) for i in np.flatnonzero(catalogue.families == catalogue.families[candidate])]
                chosen += [i for i in kin if i not in chosen][: count - len(chosen)]
    return [catalogue.keys[i] for i in chosen]


def repeat_first(r: Random, keys: Sequence[str], copies: tuple[int, int]) -> list[str]:
    """As many keys, the first of them ``copies`` (lowest, highest) times and all others once.

    Others that a repeated object would leave no room for go; two stay where the scene has them.
    """
    times = int(r.integers(copies[0], copies[1] + 1))
    others = [key for key in dict.fromkeys(keys) if key != keys[0]]
    return [keys[0]] * times + others[: max(len(keys) - times, 2)]


def random_rotation(r: Random) -> NDArray[np.float64]:
    """Uniform over all rotations (Shoemake 1992)."""
    q = r.standard_normal(4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _yaw(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _tilt(r: Random, degrees: float) -> NDArray[np.float64]:
    axis = r.uniform(0, 2 * np.pi)
    angle = np.radians(r.uniform(0, degrees))
    rotation, _ = cv2.Rodrigues(np.array([np.cos(axis) * angle, np.sin(axis) * angle, 0.0]))
    return np.asarray(rotation, np.float64)


@functools.lru_cache(maxsize=1000)
def _contact_points(item: TrainObject, count: int = 400) -> Floats:
    """Points [P, 3] spread over the surface, the same for every scene."""
    r = np.random.default_rng(count)
    corners = item.vertices[item.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    pick = np.searchsorted(np.cumsum(area), r.random(count) * area.sum()).clip(0, len(area) - 1)
    a, b = np.sort(r.random((2, count)).astype(np.float32), axis=0)
    inside = corners[pick, 0] * a[:, None] + corners[pick, 1] * (b - a)[:, None] + corners[pick, 2] * (1 - b)[:, None]
    stride = max(1, len(item.vertices) // 300)
    return np.concatenate([inside, item.vertices[::stride]]).astype(np.float32)


class _HeightField:
    """Height of the pile over a square grid; objects are lowered onto it."""

    def __init__(self, half: float, cell: float) -> None:
        self.cell, self.size = cell, int(2 * half / cell) + 1
        self.origin = -half
        self.height = np.zeros(self.size * self.size, np.float32)

    def _cells(self, x: Floats, y: Floats) -> NDArray[np.int64]:
        column = ((x - self.origin) / self.cell).astype(np.int64).clip(0, self.size - 1)
        row = ((y - self.origin) / self.cell).astype(np.int64).clip(0, self.size - 1)
        return row * self.size + column

    def rest(self, points: Floats, x: float, y: float) -> float:
        """Height of the object's origin when points [P, 3] touch the field first."""
        return float((self.height[self._cells(points[:, 0] + x, points[:, 1] + y)] - points[:, 2]).max())

    def add(self, points: Floats, x: float, y: float, z: float) -> None:
        np.maximum.at(self.height, self._cells(points[:, 0] + x, points[:, 1] + y), points[:, 2] + z)


Pose = tuple[NDArray[np.float64], NDArray[np.float64]]  # rotation [3, 3] and position [3], object to world
Placing = Callable[[Random, Sequence[TrainObject], bool, float], Sequence[Pose | None]]


def place(r: Random, items: Sequence[TrainObject], piled: bool, crowd: float) -> list[Pose]:
    """Poses (rotation, position) of objects lowered one after the other onto what lies there.

    Of several tries each object takes the lowest, as gravity would. ``crowd`` scales the footprint of the pile.
    """
    sizes = np.array([item.diameter for item in items])
    radius = float(np.sqrt((sizes**2).sum()) * 0.5 * crowd)
    half = radius + float(sizes.max()) * 1.2
    ground = _HeightField(half, max(half / 60, 0.003))
    poses = []
    for index in np.argsort(-sizes + r.normal(0, 0.3, len(sizes)) * sizes, kind="stable"):
        item = items[index]
        points = _contact_points(item)
        best = None
        for _ in range(8 if piled else 14):
            if r.random() < (0.5 if piled else 0.85):
                # The facets are ordered by size: the next one is 0.6 times as likely.
                pick = int(np.log(1 - r.random() * (1 - 0.6 ** len(item.rests))) / np.log(0.6))
                rotation = _yaw(r.uniform(0, 2 * np.pi)) @ item.rests[min(pick, len(item.rests) - 1)].astype(float)
                if piled:
                    rotation = _tilt(r, 25) @ rotation
            else:
                rotation = random_rotation(r)
            turned = points @ rotation.T.astype(np.float32)
            x, y = r.normal(0, 0.45 * radius, 2) if piled else r.uniform(-1.3 * radius, 1.3 * radius, 2)
            x, y = (max(-1.4 * radius, min(1.4 * radius, float(v))) for v in (x, y))
            z = ground.rest(turned, x, y)
            top = float(turned[:, 2].max() + z)
            score = z + 0.3 * top + (0.15 * np.hypot(x, y) if piled else 0.0)
            if best is None or score < best[0]:
                best = (score, rotation, turned, x, y, z)
        assert best is not None
        _, rotation, turned, x, y, z = best
        ground.add(turned, x, y, z)
        poses.append((int(index), rotation, np.array([x, y, z])))
    poses.sort(key=lambda pose: pose[0])
    return [(rotation, position) for _, rotation, position in poses]


def _blackbody(kelvin: float) -> Floats:
    """Colour of light of a temperature relative to 6000 K, linear (rough fit, luminance kept)."""
    t = np.log(kelvin / 6000.0)
    rgb = np.exp(np.array([-0.55 * t, 0.0, 0.85 * t]))
    return (rgb / (rgb @ [0.2126, 0.7152, 0.0722])).astype(np.float32)


def _noise_image(r: Random, side: int, octaves: Sequence[int]) -> Floats:
    total = np.zeros((side, side), np.float32)
    for octave, cells in enumerate(octaves):
        grid = r.random((cells, cells), dtype=np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def ground_texture(r: Random, photos: Sequence[Image8], side: int = 288) -> Image8:
    """Texture of a table, floor or wall: uint8 [side, side, 3]."""
    kind = str(
        r.choice(
            ["plain", "noise", "wood", "planks", "checker", "cloth", "speckle", "photo"],
            p=[0.24, 0.16, 0.11, 0.07, 0.1, 0.1, 0.05, 0.17],
        )
    )
    a, b = tx.colour(r), tx.colour(r)
    if r.random() < 0.75:  # furniture is mostly of muted colour
        a, b = (0.35 * c + 0.65 * c.mean() for c in (a, b))
    if kind == "photo" and photos:
        photo = photos[int(r.integers(len(photos)))]
        size = int(min(photo.shape[:2]) * r.uniform(0.3, 1.0))
        top, left = (int(r.integers(0, extent - size + 1)) for extent in photo.shape[:2])
        return np.ascontiguousarray(
            cv2.resize(photo[top : top + size, left : left + size], (side, side), interpolation=cv2.INTER_AREA)
        )
    fine = _noise_image(r, side, (64, 128, side))
    if kind in ("wood", "planks"):
        a, b = (
            tx.hsv(r.uniform(0.05, 0.11), r.uniform(0.2, 0.65), r.uniform(0.45, 0.9)),
            tx.hsv(0.07, r.uniform(0.3, 0.7), r.uniform(0.2, 0.5)),
        )
        grain = cv2.resize(r.random((48, 4), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
        t = (
            np.abs(np.sin(grain * r.uniform(2, 9) + 2 * _noise_image(r, side, (3, 6)))) * r.uniform(0.1, 0.6)
            + 0.25 * fine
        )
        if kind == "planks":
            wide = side // int(r.integers(3, 9))
            board = np.arange(side) // wide
            t = t + r.uniform(-0.25, 0.25, board.max() + 1).astype(np.float32)[board][:, None]
            t = np.where((np.arange(side) % wide < 2)[:, None], 1.0, t)
    elif kind == "checker":
        count = int(r.integers(4, 14))
        i = np.arange(side) * count // side
        t = (
            ((i[:, None] + i) % 2) * 0.9 + 0.1 * fine
            if r.random() < 0.6
            else (
                (np.arange(side) * count % side < side // 12)[:, None] | (np.arange(side) * count % side < side // 12)
            )
            * 0.8
            + 0.2 * fine
        )
    elif kind == "cloth":
        waves = np.arange(side) * r.uniform(0.5, 1.5)
        t = 0.5 + 0.25 * np.sin(waves)[:, None] + 0.25 * np.sin(waves) * r.uniform(0, 1) + 0.2 * (fine - 0.5)
        if r.random() < 0.5:
            t = t + 0.8 * ((waves * r.uniform(0.02, 0.06) % 1) < 0.3)
    elif kind == "speckle":
        t = (fine > r.uniform(0.55, 0.75)).astype(np.float32)
    elif kind == "noise":
        t = _noise_image(r, side, [int(v) for v in (r.integers(2, 8), r.integers(8, 24), 48, 96, 192)])
    else:
        t = 0.08 * fine + 0.1 * _noise_image(r, side, (2, 4))
    shades = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    ramp = ((a + (b - a) * shades).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return ramp[(np.clip(t, 0, 1) * 255).astype(np.uint8)]


def _backdrop(r: Random, photos: Sequence[Image8]) -> Image8:
    if photos and r.random() < 0.6:
        photo = photos[int(r.integers(len(photos)))]
        small = cv2.resize(photo, (256, 192), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(cv2.GaussianBlur(small, (0, 0), r.uniform(0.5, 5.0)))
    return ground_texture(r, photos, 192)


_GROUND = -0.002  # printed sheets lie between the ground and the objects


def _surroundings(r: Random, photos: Sequence[Image8], radius: float, away: float, elevation: float) -> list[Surface]:
    """Ground or table with floor below, sometimes walls, sometimes a bin around the pile, sometimes printed sheets.

    ``away`` is the azimuth in which the camera looks: walls stand on that side only. Into a bin one looks steeply.
    """
    turn = _yaw(r.uniform(0, 2 * np.pi))
    x, y, z = turn[:, 0], turn[:, 1], np.array([0, 0, 1.0])
    tile = float(radius * np.exp(r.uniform(np.log(1.0), np.log(8.0))))
    gloss = float(r.choice([0.0, r.uniform(0.02, 0.3)]))
    found = []
    level, big = _GROUND * z, 12.0
    if r.random() < 0.4:  # a table of limited size above a floor
        a, b = r.uniform(1.4, 4.0, 2) * radius
        c, d = r.uniform(1.4, 4.0, 2) * radius
        found.append(Surface(level - a * x - b * y, (a + c) * x, (b + d) * y, ground_texture(r, photos), tile, gloss))
        floor = level - r.uniform(0.3, 0.9) * z
        found.append(Surface(floor - big * x - big * y, 2 * big * x, 2 * big * y, ground_texture(r, photos), tile * 2))
    else:
        found.append(
            Surface(level - big * x - big * y, 2 * big * x, 2 * big * y, ground_texture(r, photos), tile, gloss)
        )
    for _ in range(int(r.choice([0, 1, 2], p=[0.4, 0.35, 0.25]))):
        angle = away + np.radians(r.uniform(-75, 75))
        normal, side = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        distance = float(r.uniform(2.2, 9.0) * radius)
        found.append(
            Surface(distance * normal - 9 * side - 1.0 * z, 18 * side, 5 * z, ground_texture(r, photos), tile * 2)
        )
    if r.random() < 0.18 and elevation > np.radians(40):
        half_x, half_y, high = radius * r.uniform(1.0, 1.5), radius * r.uniform(1.0, 1.5), radius * r.uniform(0.3, 0.9)
        art = (
            ground_texture(r, ())
            if r.random() < 0.4
            else np.full((8, 8, 3), [int(255 * v) for v in tx.colour(r)], np.uint8)
        )
        for normal, along, to, length in (
            (x, y, half_x, half_y),
            (-x, y, half_x, half_y),
            (y, x, half_y, half_x),
            (-y, x, half_y, half_x),
        ):
            found.append(
                Surface(level + to * normal - length * along, 2 * length * along, high * z, art, tile, hides=True)
            )
    elif r.random() < 0.3:
        for number in range(int(r.integers(1, 5))):
            spin = _yaw(r.uniform(0, 2 * np.pi))
            w, h = radius * r.uniform(0.3, 1.3, 2)
            art = tx.label(r, tx.palette(r), 160, max(24, int(160 * h / w)), "", photos)
            middle = np.append(r.uniform(-1.3, 1.3, 2) * radius, _GROUND + 0.0003 * (number + 1))
            corner = middle - 0.5 * w * spin[:, 0] + 0.5 * h * spin[:, 1]
            found.append(Surface(corner, w * spin[:, 0], -h * spin[:, 1], art, 0.0))
    return found


def _look_at(eye: NDArray[np.float64], target: NDArray[np.float64], roll: float) -> NDArray[np.float64]:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, -s * right + c * down, forward])


def _tint(r: Random) -> Floats:
    """Albedo change between template and scene: hue, saturation and brightness; a 3 x 3 matrix on linear rgb."""
    angle = np.radians(r.normal(0, 6) if r.random() < 0.85 else r.normal(0, 16))
    c, s = np.cos(angle), np.sin(angle)
    third, root = (1 - c) / 3, np.sqrt(1 / 3) * s
    hue = np.array(
        [
            [c + third, third - root, third + root],
            [third + root, c + third, third - root],
            [third - root, third + root, c + third],
        ]
    )
    k = np.exp(r.normal(0, 0.15))
    grey = np.tile([0.2126, 0.7152, 0.0722], (3, 1))
    return (np.exp(r.normal(0, 0.18)) * (grey + k * (np.eye(3) - grey)) @ hue).astype(np.float32)


def draw_scene(
    r: Random,
    catalogue: Catalogue,
    load: Callable[[str], TrainObject],
    photos: Sequence[Image8] = (),
    size: tuple[int, int] = (256, 256),
    copies: tuple[int, int] | None = None,
    placing: Placing = place,
) -> Scene:
    """Draw one scene; ``size`` is (width, height) of the picture in pixels, ``copies`` as for :func:`repeat_first`.

    ``placing`` decides where the objects lie; those it gives no pose are left out.
    """
    width, height = size
    piled = r.random() < 0.65
    count = int(r.integers(6, 13)) if piled else int(r.integers(3, 11))
    keys = choose_objects(r, catalogue, count)
    items = [load(key) for key in (keys if copies is None else repeat_first(r, keys, copies))]
    poses = placing(r, items, piled, float(r.uniform(0.55, 0.95) if piled else r.uniform(0.9, 1.5)))
    placed = []
    for item, pose in zip(items, poses, strict=True):
        if pose is None:
            continue
        rotation, position = pose
        sheen = float(np.clip(item.sheen + r.normal(0, 0.2), 0, 1))
        placed.append(Placed(item, rotation, position, _tint(r), 0.25 * sheen**1.5, float(np.exp(1.5 + 4.0 * sheen))))

    centres = np.array([p.position for p in placed])
    sizes = np.array([p.item.diameter for p in placed])
    centre = np.median(centres, axis=0)
    radius = float(np.quantile(np.linalg.norm(centres - centre, axis=1) + 0.4 * sizes, 0.85))
    focal = width * r.uniform(0.9, 1.8)
    distance = focal * radius / (0.5 * width) * float(np.exp(r.uniform(np.log(0.45), np.log(1.35))))
    elevation, azimuth = np.radians(r.uniform(20, 80)), r.uniform(0, 2 * np.pi)
    ray = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    target = centre + np.append(r.normal(0, 0.22 * radius, 2), r.normal(0, 0.05 * radius))
    roll = np.radians(r.normal(0, 6) if r.random() < 0.8 else r.uniform(-40, 40))
    distance = max(distance, 0.7 * radius)
    for _ in range(20):  # no object closer than a hand's breadth
        eye = target + distance * ray
        rotation = _look_at(eye, target, roll)
        nearest = ((centres - eye) @ rotation[2] - 0.5 * sizes).min()
        if nearest > 0.25 * distance:
            break
        distance *= 1.15
    surfaces = _surroundings(r, photos, radius, float(azimuth + np.pi), float(elevation))
    if np.linalg.norm(surfaces[0].u) > 20 and r.random() < 0.35:  # things standing about
        for key in r.choice(catalogue.keys, int(r.integers(1, 5))):
            item = load(str(key))
            points = _contact_points(item)
            turned = _yaw(r.uniform(0, 2 * np.pi)) @ item.rests[0].astype(float)
            angle, far = r.uniform(0, 2 * np.pi), radius * r.uniform(1.15, 2.0)
            spot = np.array(
                [centre[0] + far * np.cos(angle), centre[1] + far * np.sin(angle), -(points @ turned[2]).min()]
            )
            clear = all(np.linalg.norm(spot - p.position) > 0.5 * (item.diameter + p.item.diameter) for p in placed)
            if clear and (spot - eye) @ rotation[2] - 0.5 * item.diameter > 0.25 * distance:
                placed.append(Placed(item, turned, spot, _tint(r), 0.1 * item.sheen, 40.0))
    intrinsics = np.array(
        [
            [focal, 0, (width - 1) / 2 + r.normal(0, 0.01 * width)],
            [0, focal, (height - 1) / 2 + r.normal(0, 0.01 * width)],
            [0, 0, 1],
        ]
    )

    lights = []
    for index in range(int(r.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))):
        turn_, high = r.uniform(0, 2 * np.pi), np.radians(r.uniform(20, 85))
        away = float(r.uniform(1.0, 3.0) + 2 * radius)
        spot = centre + away * np.array([np.cos(turn_) * np.cos(high), np.sin(turn_) * np.cos(high), np.sin(high)])
        power = np.float32(np.exp(r.normal(0, 0.3)) * 0.6**index)
        lights.append(
            Light(
                spot,
                float(away * r.uniform(0.02, 0.35)),
                power * _blackbody(np.exp(r.uniform(np.log(3500), np.log(8500)))),
                index == 0 or r.random() < 0.4,
            )
        )
    ambient = float(np.exp(r.uniform(np.log(0.15), np.log(1.2))))
    sky = ambient * _blackbody(np.exp(r.uniform(np.log(4500), np.log(9000))))
    earth = sky * np.float32(r.uniform(0.2, 0.8)) * (0.7 + 0.3 * tx.colour(r))
    return Scene(
        instances=tuple(placed),
        surfaces=tuple(surfaces),
        lights=tuple(lights),
        sky=sky.astype(np.float32),
        earth=earth.astype(np.float32),
        backdrop=_backdrop(r, photos),
        intrinsics=intrinsics,
        rotation=rotation,
        translation=-rotation @ eye,
        brightness=float(np.exp(r.normal(np.log(0.19), 0.55))),
        sensor=camera_sensor.draw_sensor(r),
    )


# --- rendering -----------------------------------------------------------------------------------------------------


def _tensor(array: NDArray[Any]) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))


@functools.lru_cache(maxsize=1)
def _disk() -> tuple[Floats, Floats]:
    """16 stratified offsets [2, 16] in a disk and cosine-distributed directions [3, 16], for a 4 x 4 pattern."""
    r = np.random.default_rng(7)
    i = np.arange(16)
    order = r.permutation(16)
    radius, angle = np.sqrt((i + 0.5) / 16), i * np.pi * (3 - np.sqrt(5))
    disk = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)[order].astype(np.float32)
    up = np.sqrt(1 - (disk**2).sum(1, keepdims=True))
    return np.ascontiguousarray(disk.T), np.ascontiguousarray(np.concatenate([disk, up], 1).T)


# Vectors of many points are kept as [3, M] below: NumPy is several times faster on long rows than on rows of three.


def _dot(a: Floats, b: Floats) -> Floats:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _normalised(v: Floats) -> Floats:
    length: Floats = np.sqrt(np.maximum(_dot(v, v), np.float32(1e-18)))
    return v * (np.float32(1) / length)


def _basis(normal: Floats) -> tuple[Floats, Floats]:
    """Two unit tangents of unit normals [3, M] (Duff et al. 2017)."""
    x, y, z = normal
    sign = np.where(z >= 0, np.float32(1), np.float32(-1))
    a = -1 / (sign + z)
    b = x * y * a
    return np.stack([1 + sign * x * x * a, sign * b, -sign * x]), np.stack([b, sign + y * y * a, -y])


class Caster:
    """A scene in the ray caster, and its shading."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.eye = (-scene.rotation.T @ scene.translation).astype(np.float32)
        self.caster = o3d.t.geometry.RaycastingScene(nthreads=1)
        for placed in scene.instances:
            world = placed.item.vertices @ placed.rotation.T.astype(np.float32) + placed.position.astype(np.float32)
            self.caster.add_triangles(_tensor(world), _tensor(placed.item.faces))
        for surface in scene.surfaces:
            c, u, v = surface.corner, surface.u, surface.v
            quad = np.stack([c, c + u, c + u + v, c + v]).astype(np.float32)
            self.caster.add_triangles(_tensor(quad), _tensor(np.array([[0, 1, 2], [0, 2, 3]], np.uint32)))
        self.reach = float(np.median([p.item.diameter for p in scene.instances]))
        reaches = np.array([p.item.diameter for p in scene.instances])[:, None] / 2
        where = np.array([p.position for p in scene.instances])
        self.low, self.high = (where - reaches).min(0).astype(np.float32), (where + reaches).max(0).astype(np.float32)
        self.centre = (self.low + self.high) / 2

    def crowd(self, size: tuple[int, int]) -> Image8:
        """How many instances may cover each pixel [H, W], seen or not: the convex outlines, a pixel wider."""
        width, height = size
        total = np.zeros((height, width), np.uint8)
        k = self.scene.intrinsics.astype(np.float32)
        wider = np.ones((3, 3), np.uint8)
        for placed in self.scene.instances:
            rotation = (self.scene.rotation @ placed.rotation).astype(np.float32)
            shift = self.scene.rotation @ placed.position + self.scene.translation
            x, y, z = rotation @ placed.item.vertices.T + shift.astype(np.float32)[:, None]
            if z.min() < 1e-3:
                total += 1
                continue
            pixel = np.stack([x / z * k[0, 0] + k[0, 2], y / z * k[1, 1] + k[1, 2]], 1)
            outline = cv2.convexHull(pixel.clip(-1e4, 1e4))  # clipped far outside: fixed point has an end
            mask = np.zeros((height, width), np.uint8)
            cv2.fillConvexPoly(mask, np.rint(outline * 16).astype(np.int32), 1, cv2.LINE_8, 4)
            total += cv2.dilate(mask, wider)
        return total

    def directions(self, x: Floats, y: Floats) -> Floats:
        """World directions [3, M] (camera z = 1) of pixel coordinates."""
        k, axes = self.scene.intrinsics, self.scene.rotation.astype(np.float32)
        u = (x - np.float32(k[0, 2])) / np.float32(k[0, 0])
        v = (y - np.float32(k[1, 2])) / np.float32(k[1, 1])
        return np.stack([u * axes[0, i] + v * axes[1, i] + axes[2, i] for i in range(3)])

    def rays(self, origin: Floats, direction: Floats) -> o3d.core.Tensor:
        """[M, 6] for the caster from origin [3, M] or [3, 1] and direction [3, M]."""
        rays = np.empty((direction.shape[1], 6), np.float32)
        for axis in range(3):
            rays[:, axis] = origin[axis]
            rays[:, 3 + axis] = direction[axis]
        return _tensor(rays)

    def cast(self, directions: Floats) -> dict[str, NDArray[Any]]:
        """What rays from the camera along ``directions`` [3, M] hit first: arrays [M, ...] by Open3D's names."""
        hits = self.caster.cast_rays(self.rays(self.eye[:, None], directions), nthreads=1)
        return {name: hits[name].numpy() for name in ("t_hit", "geometry_ids", "primitive_ids", "primitive_uvs")}

    def materials(
        self, directions: Floats, hits: dict[str, NDArray[Any]], footprint: float
    ) -> tuple[Floats, Floats, Floats, Floats, NDArray[np.bool_]]:
        """Linear albedo [3, M], unit normal towards the viewer [3, M], specular strength and exponent [M], hit [M]."""
        count = directions.shape[1]
        geometry, distance = hits["geometry_ids"], hits["t_hit"]
        albedo = np.zeros((3, count), np.float32)
        normal = np.zeros((3, count), np.float32)
        specular, shininess = np.zeros(count, np.float32), np.full(count, 20, np.float32)
        number = len(self.scene.instances)
        total = number + len(self.scene.surfaces)
        order = np.argsort(geometry.astype(np.uint8) if total < 250 else geometry, kind="stable")
        bounds = np.searchsorted(geometry[order], np.arange(total + 1))
        for index in range(total):
            which = order[bounds[index] : bounds[index + 1]]
            if not len(which):
                continue
            if index < number:
                placed = self.scene.instances[index]
                item = placed.item
                face = hits["primitive_ids"][which]
                bary = hits["primitive_uvs"][which]
                b, c = bary[:, 0], bary[:, 1]
                a = 1 - b - c
                corner = np.ascontiguousarray(item.normals.reshape(-1, 9).T)[:, face]
                local = corner[:3] * a + corner[3:6] * b + corner[6:] * c
                normal[:, which] = placed.rotation.astype(np.float32) @ local
                corner = np.ascontiguousarray(item.uv.reshape(-1, 6).T)[:, face]
                u, v = corner[:2] * a + corner[2:4] * b + corner[4:] * c
                texel = camera_sensor.to_linear(_fetch(item.texture, u, 1 - v))
                albedo[:, which] = (placed.tint @ texel.T).clip(0.002, 0.95)
                specular[which], shininess[which] = placed.specular, placed.shininess
            else:
                surface = self.scene.surfaces[index - number]
                lu, lv = float(np.linalg.norm(surface.u)), float(np.linalg.norm(surface.v))
                axes = np.stack([surface.u / lu / (surface.tile or lu), surface.v / lv / (surface.tile or lv)])
                start = (axes @ (self.eye - surface.corner)).astype(np.float32)
                u, v = (axes.astype(np.float32) @ directions[:, which]) * distance[which] + start[:, None]
                normal[:, which] = (np.cross(surface.u, surface.v) / (lu * lv)).astype(np.float32)[:, None]
                texel = camera_sensor.to_linear(_tiled(surface.texture, u, v, footprint / (surface.tile or lu)))
                albedo[:, which] = texel.T * np.float32(0.9)
                specular[which], shininess[which] = surface.gloss * 0.3, 30.0
        normal = _normalised(normal)
        normal *= np.where(_dot(normal, directions) > 0, np.float32(-1), np.float32(1))
        return albedo, normal, specular, shininess, np.isfinite(distance)

    def visibility(self, origin: Floats, target: Floats) -> Floats:
        """1 where nothing lies between origin and origin + target, both [3, M]; float32 [M]."""
        blocked = self.caster.test_occlusions(self.rays(origin, target), tnear=0.0, tfar=1.0, nthreads=1).numpy()
        return (~blocked).astype(np.float32)

    def shade(
        self,
        directions: Floats,
        hits: dict[str, NDArray[Any]],
        pattern: NDArray[np.int64],
        footprint: float,
        smooth: Callable[[Floats], Floats] | None = None,
    ) -> Floats:
        """Linear radiance [M, 3] of rays; ``smooth`` filters the noise of soft shadows where rays form a picture."""
        scene = self.scene
        albedo, normal, specular, shininess, hit = self.materials(directions, hits, footprint)
        # Most pictures are covered everywhere; a slice then saves a copy of everything.
        rows: Any = slice(None) if hit.all() else np.flatnonzero(hit)
        n, d, gloss, power = normal[:, rows], directions[:, rows], specular[rows], shininess[rows]
        point = d * hits["t_hit"][rows] + n * np.float32(2e-4 + 1e-3 * self.reach) + self.eye[:, None]
        count = point.shape[1]
        disk, hemisphere = _disk()
        picks = pattern[rows]

        def settle(values: Floats) -> Floats:
            if smooth is None:
                return values
            full = np.ones(directions.shape[1], np.float32)
            full[rows] = values
            return smooth(full)[rows]

        # Ambient light from sky and earth, closed where something is near.
        reach = np.float32(0.6 * self.reach)
        x, y, z = point
        near = np.flatnonzero(
            (x > self.low[0] - reach) & (x < self.high[0] + reach) & (y > self.low[1] - reach)
            & (y < self.high[1] + reach) & (z < self.high[2] + reach)
        )  # fmt: skip
        opening = np.ones(count, np.float32)
        close = n[:, near]
        tangent, other = _basis(close)
        sample = hemisphere[:, picks[near]] * reach
        up = tangent * sample[0] + other * sample[1] + close * sample[2]
        opening[near] = self.visibility(point[:, near], up)
        opening = np.float32(0.15) + np.float32(0.85) * settle(opening)

        # Every source is a scalar per point times a colour: gathered as rows, mixed by one product.
        diffuse = [opening, opening * (n[2] + 1) * np.float32(0.5)]
        tones = [scene.earth, scene.sky - scene.earth]
        glossy = np.flatnonzero(gloss > 0.002)
        view = -_normalised(d[:, glossy])
        bright = n[:, glossy]
        gloss, power = gloss[glossy], power[glossy]
        grazing = 1 - np.maximum(_dot(bright, view), 0)
        grazing = grazing * grazing
        # A grazing view mirrors the surroundings (after Schlick's approximation of the Fresnel term).
        shine = [gloss * (np.float32(0.15) + grazing * grazing)]
        glints = [scene.sky]
        for source in scene.lights:
            towards = source.position.astype(np.float32)[:, None] - point
            unit = _normalised(towards)
            lit = np.maximum(_dot(n, unit), 0)
            if source.shadow:
                # One disk for all points: the lamp is far compared with the pile.
                axis = source.position - self.centre
                side, over = _basis((axis / np.linalg.norm(axis)).astype(np.float32)[:, None])
                offset = (side * disk[0] + over * disk[1]) * np.float32(source.radius)
                facing = np.flatnonzero(lit > 0)
                seen = np.ones(count, np.float32)
                seen[facing] = self.visibility(point[:, facing], towards[:, facing] + offset[:, picks[facing]])
                lit *= settle(seen)
            diffuse.append(lit)
            tones.append(source.colour)
            half = _normalised(unit[:, glossy] + view)
            gleam = np.exp(power * np.log(np.maximum(_dot(bright, half), np.float32(1e-6))))
            shine.append(gleam * gloss * (power + 8) * np.float32(0.08) * np.minimum(lit[glossy] * 4, 1))
            glints.append(source.colour)
        radiance = albedo[:, rows] * (np.stack(tones, 1).astype(np.float32) @ np.stack(diffuse))
        if len(glossy):
            radiance[:, glossy] += np.stack(glints, 1).astype(np.float32) @ np.stack(shine)
        if isinstance(rows, slice):
            return np.ascontiguousarray(radiance.T)
        result = np.empty((len(hit), 3), np.float32)
        result[rows] = radiance.T
        result[~hit] = self._sky(directions[:, ~hit])
        return result

    def _sky(self, directions: Floats) -> Floats:
        x, y, z = _normalised(directions)
        u = np.arctan2(y, x) / np.float32(np.pi)
        found = _fetch(self.scene.backdrop, np.abs(u), np.float32(0.5) - z * np.float32(0.5))
        return camera_sensor.to_linear(found) * (
            self.scene.sky.mean() + self.scene.lights[0].colour.mean() * np.float32(0.5)
        )


def _fetch(texture: Image8, u: Floats, v: Floats) -> Image8:
    """Bilinear lookup at u, v in 0..1 (first image row at v = 0), clamped; uint8 [M, 3]."""
    x = (u * texture.shape[1] - 0.5).astype(np.float32)
    y = (v * texture.shape[0] - 0.5).astype(np.float32)
    found = np.empty((len(x), 3), np.uint8)
    for start in range(0, len(x), 32000):  # cv2.remap holds its maps to 32767 rows
        part = slice(start, start + 32000)
        found[part] = cv2.remap(
            texture, x[part, None], y[part, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[:, 0]
    return found


def _tiled(texture: Image8, u: Floats, v: Floats, footprint: float) -> Image8:
    """Lookup with mirrored repetition; the texture is reduced first where pixels (``footprint`` tiles) are larger."""
    factor = int(min(footprint * texture.shape[0], texture.shape[0] / 4))
    if factor >= 2:
        texture = cv2.resize(
            texture,
            (max(2, texture.shape[1] // factor), max(2, texture.shape[0] // factor)),
            interpolation=cv2.INTER_AREA,
        )
    u, v = 1 - np.abs(u % 2 - 1), 1 - np.abs(v % 2 - 1)
    return _fetch(texture, u, v)


def render_scene(scene: Scene, r: Random, size: tuple[int, int] = (256, 256)) -> Rendered:
    """Picture, exact labels and annotations of a scene.

    Labels come from rays through pixel centres; pixels on edges of any kind get two more rays for their colour.
    ``visib_fract`` is visible pixels over the pixels the object would cover alone, both inside the picture.
    """
    width, height = size
    caster = Caster(scene)
    x, y = (grid.ravel().astype(np.float32) for grid in np.meshgrid(np.arange(width), np.arange(height)))
    directions = caster.directions(x, y)
    hits = caster.cast(directions)
    number = len(scene.instances)
    geometry = hits["geometry_ids"].astype(np.int64)
    solid = np.where(geometry < number + len(scene.surfaces), geometry, 255).astype(np.uint8).reshape(height, width)
    pattern = ((y.astype(np.int64) % 4) * 4 + x.astype(np.int64) % 4).astype(np.int64)
    finite = hits["t_hit"][np.isfinite(hits["t_hit"])]
    footprint = float(np.median(finite) / scene.intrinsics[0, 0]) if len(finite) else 1e-3

    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(solid, kernel) != cv2.erode(solid, kernel)

    def smooth(values: Floats) -> Floats:
        picture = values.reshape(height, width)
        return np.where(border, picture, cv2.blur(picture, (4, 4))).ravel()

    colour = caster.shade(directions, hits, pattern, footprint, smooth).reshape(height, width, 3)
    tone = camera_sensor.to_srgb(colour / max(float(colour.mean()) * 3, 1e-6)).max(2)
    contrast = cv2.dilate(tone, kernel) - cv2.erode(tone, kernel)
    budget = int(0.15 * width * height)
    strong = (border * 2 + contrast).ravel()
    need = np.flatnonzero(border.ravel() | (contrast.ravel() > 0.13))
    if len(need) > budget:
        need = np.sort(np.argpartition(-strong, budget)[:budget])
    if len(need):
        offsets = np.array([[-0.33, -0.25], [0.25, 0.33]], np.float32)
        ex = (x[need, None] + offsets[:, 0]).ravel()
        ey = (y[need, None] + offsets[:, 1]).ravel()
        more = caster.directions(ex, ey)
        again = (pattern[need, None] + np.array([5, 10])).ravel() % 16
        extra = caster.shade(more, caster.cast(more), again, footprint).reshape(-1, 2, 3)
        flat = colour.reshape(-1, 3)
        # Clip first: one bright glint must not outshine the pixel.
        ceiling = 6 * max(float(colour.mean()), 1e-6)
        flat[need] = (np.minimum(flat[need], ceiling) + np.minimum(extra, ceiling).sum(1)) / 3
    luminance = float((colour @ LUMINANCE).mean())
    linear = np.ascontiguousarray(colour * np.float32(scene.brightness / max(luminance, 1e-6)))
    rgb = camera_sensor.expose(linear, scene.sensor, r)
    label, entries = annotate(scene, caster, directions, geometry, size)
    camera = {"K": [round(float(v), 6) for v in scene.intrinsics.ravel()]}
    return Rendered(rgb, label, entries, camera, scene.sensor.jpeg)


def annotate(
    scene: Scene, caster: Caster, directions: Floats, geometry: NDArray[np.int64], size: tuple[int, int]
) -> tuple[Image8, list[dict[str, Any]]]:
    """Label image [H, W] and the entries of the instances that are seen.

    ``geometry`` [M]: what the rays through the pixel centres, ``directions`` [3, M], hit first.
    """
    width, height = size
    number = len(scene.instances)
    owner = np.where(geometry < number, geometry + 1, 0)
    picture_label = owner.reshape(height, width)
    # Behind what is seen an object can lie only where the outlines of two overlap, or behind the side of a bin: other
    # rays need not be asked for what else they hit.
    hides = any(surface.hides for surface in scene.surfaces)
    crowd = caster.crowd(size)
    asked = np.flatnonzero(crowd >= 1) if hides else np.flatnonzero((owner > 0) & (crowd.ravel() >= 2))
    clear = np.ones(width * height, np.bool_)
    clear[asked] = False
    alone = np.bincount(owner[clear], minlength=number + 1)[1:]
    if len(asked):
        alone = alone + _silhouettes(caster, directions[:, asked], number)
    label = np.zeros((height, width), np.uint8)
    entries: list[dict[str, Any]] = []
    counts = np.bincount(owner, minlength=number + 1)
    for index, placed in enumerate(scene.instances):
        if not counts[index + 1]:
            continue
        mask = picture_label == index + 1
        label[mask] = len(entries) + 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        rotation = scene.rotation @ placed.rotation
        translation = scene.rotation @ placed.position + scene.translation
        entries.append(
            {
                "object": placed.item.key,
                "box": [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)],
                "pixels": int(counts[index + 1]),
                "visib_fract": round(min(1.0, float(counts[index + 1] / max(alone[index], counts[index + 1]))), 4),
                "R": [round(float(v), 7) for v in rotation.ravel()],
                "t": [round(float(v), 7) for v in translation],
            }
        )
    return label, entries


def _silhouettes(caster: Caster, directions: Floats, number: int) -> NDArray[np.int64]:
    """Pixels each instance would cover without the others."""
    found = caster.caster.list_intersections(caster.rays(caster.eye[:, None], directions), nthreads=1)
    geometry = found["geometry_ids"].numpy().astype(np.int64)
    ray = found["ray_ids"].numpy().astype(np.int64)
    mine = geometry < number
    covered = np.zeros((number, directions.shape[1]), np.bool_)
    covered[geometry[mine], ray[mine]] = True
    return covered.sum(1)
