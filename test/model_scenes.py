# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Objects, scenes and masks for the tests of `ocdit_ros.model` that need trained weights; nothing is read from disk."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from trimesh.creation import annulus, box, cone, cylinder, icosphere, revolve, torus
from trimesh.transformations import rotation_matrix, translation_matrix
from trimesh.util import concatenate

from ocdit_ros.templates import RenderSettings, load_mesh, render, viewpoints


def at(
    mesh: Any, x: float = 0, y: float = 0, z: float = 0, turn: float = 0.0, axis: tuple[int, int, int] = (0, 1, 0)
) -> Any:
    """Turn a mesh about an axis, then move it (metres, radians)."""
    return mesh.apply_transform(translation_matrix((x, y, z)) @ rotation_matrix(turn, axis))


def paint(mesh: Any, *colours: tuple[int, int, int]) -> Any:
    """Colour a mesh in equal bands along z."""
    mesh = mesh.subdivide_to_size(0.01)
    height = mesh.vertices[:, 2] - mesh.vertices[:, 2].min()
    band = (height / height.max() * 0.999 * len(colours)).astype(int)
    mesh.visual.vertex_colors = np.array(colours, np.uint8)[band]
    return mesh


def meshes() -> list[Any]:
    """Eight everyday objects of 10 to 20 cm, put together from solids; none comes from the training generator."""
    cup = [
        annulus(0.033, 0.04, 0.1),
        at(cylinder(0.04, 0.006), z=-0.047),
        at(torus(0.028, 0.006), y=0.055, turn=np.pi / 2),
    ]
    bolt = [cylinder(0.012, 0.12), at(cylinder(0.025, 0.018, sections=6), z=0.06)]
    teeth = [at(at(box((0.02, 0.012, 0.02)), x=0.052), turn=k * np.pi / 6, axis=(0, 0, 1)) for k in range(12)]
    outline = [0, 0, 35, 0, 37, 100, 30, 130, 12, 150, 12, 170, 18, 172, 18, 190, 0, 190]  # radius, height in mm
    bracket = [box((0.12, 0.04, 0.03)), at(box((0.03, 0.04, 0.08)), x=-0.045, z=0.05)]
    weight = [at(icosphere(3, 0.02), z=-0.07), at(icosphere(3, 0.02), z=0.07), cylinder(0.009, 0.14)]
    stapler = [box((0.14, 0.06, 0.04)), at(box((0.03, 0.06, 0.09)), x=0.055, z=0.05)]
    return [
        paint(concatenate(cup), (200, 60, 40), (230, 220, 210)),
        paint(concatenate(bolt), (150, 150, 160), (90, 90, 110)),
        paint(concatenate([annulus(0.015, 0.046, 0.02), *teeth]), (210, 170, 40)),
        paint(revolve(np.reshape(outline, (-1, 2)) / 1000), (30, 120, 60), (40, 160, 80), (220, 220, 40)),
        paint(concatenate(bracket), (50, 80, 190), (70, 110, 220)),
        paint(concatenate(weight), (60, 60, 60)),
        paint(concatenate(stapler), (170, 40, 140)),
        paint(concatenate([cone(0.05, 0.12), torus(0.05, 0.008)]), (230, 110, 20), (240, 240, 240), (230, 110, 20)),
    ]


@functools.cache
def template_sets(count: int = 8, size: int = 128, views: int = 12, seed: int = 0) -> list[Any]:
    """Rendered templates of the first `count` of `meshes`."""
    sets = []
    with tempfile.TemporaryDirectory() as folder:
        for i, mesh in enumerate(meshes()[:count]):
            path = Path(folder) / f"{i}.ply"
            mesh.export(path)
            sets.append(
                render(
                    load_mesh(str(path)), viewpoints(views, seed), RenderSettings(size=size, threads=1), f"object {i}"
                )
            )
    return sets


@functools.cache
def pasted_scene(
    seed: int = 0, size: int = 256, count: int = 4, sides: tuple[int, int] = (70, 120)
) -> tuple[Tensor, Tensor]:
    """Image [3, size, size] in 0..1 and masks bool [count, size, size] of the first `count` objects.

    Each is seen from a side that is not among its templates; they lie on a textured ground, later ones on earlier ones.
    """
    rng = np.random.default_rng(seed)
    noise = sum(
        cv2.resize(rng.normal(0, d, (s, s, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        for s, d in ((4, 0.06), (16, 0.03), (64, 0.015))
    )
    image = np.clip(0.45 + rng.normal(0, 0.08, 3) + noise, 0, 1)
    masks = np.zeros((count, size, size), bool)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for i, views in enumerate(template_sets(count, views=5, seed=77)):
        side = int(rng.integers(*sides))
        place = np.array(corners[i % 4]) * (size // 2) + rng.integers(0, max(size // 2 - side, 1) + 20, 2)
        y, x = np.minimum(place, size - side)
        view = int(rng.integers(len(views.images)))
        rgb = cv2.resize(views.images[view].astype(np.float32) / 255, (side, side), interpolation=cv2.INTER_AREA)
        cover = cv2.resize(views.masks[view].astype(np.float32) / 255, (side, side), interpolation=cv2.INTER_AREA)
        window = np.s_[y : y + side, x : x + side]
        image[window] = image[window] * (1 - cover[..., None]) + rgb  # templates are premultiplied
        masks[:, y : y + side, x : x + side] &= cover <= 0.5
        masks[i][window] |= cover > 0.5
    image = np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1)
    return torch.from_numpy(image.astype(np.float32)).movedim(-1, 0), torch.from_numpy(masks)


@functools.cache
def silhouettes(count: int = 96, size: int = 256, seed: int = 0, sides: tuple[int, int] = (80, 220)) -> Tensor:
    """Masks uint8 [count, size, size] of `meshes`: turned, half of them partly hidden by another."""
    rng = np.random.default_rng(seed)
    views = np.concatenate([s.masks for s in template_sets(size=256, views=4, seed=5)])

    def place() -> np.ndarray:
        side = int(np.exp(rng.uniform(*np.log(sides))))
        turn = cv2.getRotationMatrix2D((127.5, 127.5), float(rng.uniform(0, 360)), 0.9 * side / 256)
        turn[:, 2] += rng.uniform(-0.4, 0.4, 2) * (size - 0.7 * side) + (size - 256) / 2
        return cv2.warpAffine(views[rng.integers(len(views))], turn, (size, size), flags=cv2.INTER_AREA) > 127

    masks = []
    while len(masks) < count:
        mask = place()
        if rng.random() < 0.5:
            mask &= ~place()
        if mask.sum() > 400:
            masks.append(mask)
    return torch.from_numpy(np.stack(masks)).to(torch.uint8)


def photo_labels(size: int) -> list[tuple[None, np.ndarray, list[Any]]]:
    """The sample's photographs as scenes: no image, label uint8 [size, size] (k = k-th instance), nothing."""
    labels: dict[str, np.ndarray] = {}
    for path in sorted((Path(__file__).parents[1] / "sample" / "test" / "000004" / "mask_visib").glob("*.png")):
        image, instance = path.stem.split("_")
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
        labels.setdefault(image, np.zeros(mask.shape, np.uint8))[mask] = int(instance) + 1
    scenes: list[tuple[None, np.ndarray, list[Any]]] = []
    for label in labels.values():
        border = (label.shape[1] - label.shape[0]) // 2
        square = label[:, border : border + label.shape[0]]
        scenes.append((None, cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST), []))
    return scenes
