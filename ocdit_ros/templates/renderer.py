# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Render templates on the CPU: rays by Open3D (Embree), shading in NumPy. Needs no display and no GL.

Camera: perspective, `distance` object diameters away from the middle of the object, looking at it. Each view has its
own crop: the bounding square of the projected vertices, enlarged so that `margin` x S pixels stay free on each side
of its longer edge. The object is scaled to unit diameter before casting, so size has no influence on the pixels.

Light: in linear light, on albedo A with unit normal n (turned towards the viewer), unit direction v to the viewer
and a key light l from the upper left behind the camera:

    radiance = A (ambient + head max(n.v, 0) + key max(n.l, 0)) + sheen max(n.v, 0)^8

The weights were chosen so that objects are as bright as in well exposed photographs. A shoulder above SHOULDER keeps
white surfaces from clipping, so they keep their shading; the sheen, about the 4 % that any dielectric reflects at
normal incidence, gives black surfaces theirs.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh
from .surface import Albedo, corner_table, encode, interpolate, normalised, position_keys
from .types import TemplateSet

RENDERER_VERSION = 1  # raise it whenever the same settings give other images: it invalidates cached templates

SHOULDER = 0.7  # linear light from which on brightness is compressed towards 1

# Sub-pixel offsets: the pixel centre, which also gives the depth, and four corners of a rotated grid.
_SAMPLES = np.array([[0.0, 0.0], [0.125, 0.375], [0.375, -0.125], [-0.125, -0.375], [-0.375, 0.125]], np.float32)

_MAX_RAYS = 8_000_000  # in one cast; about 60 bytes each


@dataclass(frozen=True)
class RenderSettings:
    """Everything that decides how templates look; part of the key of the cache, except `threads`."""

    views: int = 12  # N_T, where the caller gives no rotations (the cache and the command line)
    max_faces: int = 500_000  # meshes with more are simplified by the cache
    size: int = 128  # S, pixels
    margin: float = 0.05  # free border on each side, fraction of size
    distance: float = 5.0  # camera to object centre, object diameters
    ambient: float = 0.42
    head: float = 0.45  # directional light along the optical axis
    key: float = 0.30  # directional light from the upper left
    key_direction: tuple[float, float, float] = (-0.45, -0.6, -0.66)  # towards the light, camera frame
    sheen: float = 0.04
    crease: float = 30.0  # degrees; corners whose face deviates more from the vertex normal are shaded flat
    threads: int = 0  # of ray casting and shading, 0 = all; changes nothing in the images

    def __post_init__(self) -> None:
        if self.size < 8 or not 0.0 <= self.margin < 0.45 or self.distance < 0.75:
            raise ValueError("RenderSettings: need size >= 8, 0 <= margin < 0.45 and distance >= 0.75")
        if self.views < 1 or self.max_faces < 100:
            raise ValueError("RenderSettings: need views >= 1 and max_faces >= 100")


def cameras(
    mesh: Mesh, rotations: NDArray[Any], settings: RenderSettings | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pinhole cameras of the templates: intrinsics float64 [N_T, 3, 3] and translations float64 [N_T, 3] (metres).

    A point x of the object frame lies at R x + t in the camera frame. Pixel centres have integer coordinates.
    """
    settings = settings or RenderSettings()
    points, centre, unit = normalised(mesh)
    focal, principal = _crops(points, np.asarray(rotations, np.float64), settings)
    intrinsics = np.zeros((len(focal), 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, :2, 2] = principal
    intrinsics[:, 2, 2] = 1.0
    translations = -np.einsum("nij,j->ni", np.asarray(rotations, np.float64), centre)
    translations[:, 2] += settings.distance * unit
    return intrinsics, translations


def render(mesh: Mesh, rotations: NDArray[Any], settings: RenderSettings | None = None, name: str = "") -> TemplateSet:
    """Render `mesh` from every orientation in `rotations` [N_T, 3, 3] in one batched ray cast.

    Colour, coverage and depth as described in TemplateSet; colour of a pixel = coverage x mean colour of what covers
    it. Depth is that of the pixel centre.
    """
    import open3d as o3d  # takes a second, which a warm cache need not spend

    settings = settings or RenderSettings()
    rotations = np.ascontiguousarray(rotations, np.float32)
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3) or len(rotations) == 0:
        raise ValueError(f"render: rotations must be [N_T, 3, 3] with N_T >= 1, got {rotations.shape}")
    size, count = settings.size, len(rotations)
    points, _, unit = normalised(mesh)
    focal, principal = _crops(points, rotations.astype(np.float64), settings)
    scene = o3d.t.geometry.RaycastingScene(nthreads=settings.threads)
    scene.add_triangles(o3d.core.Tensor.from_numpy(points.astype(np.float32)), o3d.core.Tensor.from_numpy(mesh.faces))
    normals = corner_table(_corner_normals(points, mesh.faces, settings.crease))
    albedo = Albedo(mesh, spacing=1.0 / (2 * size))

    # One cast for everything, unless the pixels are so many that the rays would fill the memory.
    batch = max(1, _MAX_RAYS // (len(_SAMPLES) * size * size))
    views: list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]] = []
    with ThreadPoolExecutor(settings.threads or os.cpu_count()) as pool:
        for start in range(0, count, batch):
            chosen = slice(start, start + batch)
            rays = _rays(rotations[chosen], focal[chosen], principal[chosen], settings)
            hits = scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=settings.threads)
            found = [hits[name].numpy() for name in ("t_hit", "primitive_ids", "primitive_uvs")]
            develop = partial(_develop, normals, albedo, settings)
            views += pool.map(develop, rotations[chosen], rays, *found)
    images, masks, depths = (np.stack(arrays) for arrays in zip(*views, strict=True))
    return TemplateSet(
        images=images,
        masks=masks,
        depths=depths * np.float32(unit),
        rotations=rotations,
        diameter=mesh.diameter,
        name=name,
    )


def _crops(
    points: NDArray[Any], rotations: NDArray[Any], settings: RenderSettings
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Focal length [N_T] and principal point [N_T, 2] (pixels) that fit each view into its square."""
    seen = rotations.astype(np.float32) @ points.T.astype(np.float32)  # [N_T, 3, V]
    seen = seen[:, :2] / (seen[:, 2:] + np.float32(settings.distance))
    low, high = seen.min(axis=2).astype(np.float64), seen.max(axis=2).astype(np.float64)
    extent = np.maximum((high - low).max(axis=1), 1e-9)
    focal = settings.size * (1.0 - 2.0 * settings.margin) / extent
    principal = (settings.size - 1) / 2.0 - focal[:, None] * 0.5 * (low + high)
    return focal, principal


def _rays(
    rotations: NDArray[Any], focal: NDArray[Any], principal: NDArray[Any], settings: RenderSettings
) -> NDArray[np.float32]:
    """Rays [N_T, S, S, samples, 6] in the normalised object frame; directions have camera z = 1.

    The samples of a pixel are neighbours in memory, since they meet the same faces: a third faster to cast.
    """
    count, size = len(rotations), settings.size
    place = np.arange(size, dtype=np.float32)[None, :, None] + _SAMPLES.T[:, None, :]  # [2, S, samples]
    x, y = ((place[i] - principal[:, i, None, None]) / focal[:, None, None] for i in (0, 1))  # [N_T, S, samples]
    rays = np.empty((count, size, size, len(_SAMPLES), 6), np.float32)
    for axis in range(3):  # one component at a time is twice as fast as broadcasting vectors
        right, down, forward = (rotations[:, i, axis][:, None, None] for i in range(3))
        rays[..., axis] = (-settings.distance * rotations[:, 2, axis])[:, None, None, None]
        np.add((x * right)[:, None], (y * down + forward)[:, :, None], out=rays[..., 3 + axis], casting="same_kind")
    return rays


def _develop(
    normals: NDArray[np.float32],
    albedo: Albedo,
    settings: RenderSettings,
    rotation: NDArray[np.float32],
    rays: NDArray[np.float32],
    distance: NDArray[np.float32],
    face: NDArray[np.uint32],
    bary: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Image [S, S, 3], mask [S, S] and depth [S, S] in diameters of one view, from its hits [S, S, samples, ...]."""
    samples, size = distance.shape[-1], distance.shape[0]
    where = np.flatnonzero(np.isfinite(distance))
    radiance = _shade(
        normals,
        albedo,
        face.reshape(-1)[where],
        bary.reshape(-1, 2)[where],
        rays.reshape(-1, 6)[where, 3:],
        rotation,
        settings,
    )
    # Hits of one pixel follow each other; sum them up by pixel.
    pixel = where // samples
    first = np.flatnonzero(np.diff(pixel, prepend=-1))
    covered, number = pixel[first], np.diff(first, append=len(pixel)).astype(np.float32)[:, None]
    image, mask = np.zeros((size * size, 3), np.uint8), np.zeros(size * size, np.uint8)
    if len(first):
        mean = np.add.reduceat(radiance, first, axis=0) / number
        image[covered] = np.rint(encode(_compress(mean)) * (number * np.float32(255.0 / samples)))
        mask[covered] = np.rint(number[:, 0] * np.float32(255.0 / samples))
    # Rays have a z component of 1 in the camera frame, so t is the depth along the optical axis.
    depth = np.where(np.isfinite(distance[..., 0]), distance[..., 0], np.float32(0.0))
    return image.reshape(size, size, 3), mask.reshape(size, size), depth


def _shade(
    normals: NDArray[np.float32],
    albedo: Albedo,
    face: NDArray[Any],
    bary: NDArray[Any],
    direction: NDArray[Any],
    rotation: NDArray[Any],
    settings: RenderSettings,
) -> NDArray[Any]:
    """Linear radiance [hits, 3] of the formula above."""
    normal = interpolate(normals, face, bary)
    length = np.sqrt(np.einsum("hc,hc->h", normal, normal))
    length = np.maximum(length, 1e-12)
    span = np.sqrt(np.einsum("hc,hc->h", direction, direction))
    facing = -np.einsum("hc,hc->h", normal, direction) / (length * span)
    light = np.asarray(settings.key_direction, np.float32)
    light = rotation.T @ (light / np.linalg.norm(light))  # in the object frame
    # The winding of faces is not to be trusted: whichever side is seen is the lit one.
    key = np.maximum((normal @ light) * np.where(facing < 0, -1.0, 1.0).astype(np.float32) / length, 0.0)
    facing = np.minimum(np.abs(facing), 1.0)
    diffuse = settings.ambient + settings.head * facing + settings.key * key
    sheen = np.square(np.square(np.square(facing))) * settings.sheen
    return albedo(face, bary) * diffuse[:, None] + sheen[:, None]


def _corner_normals(points: NDArray[Any], faces: NDArray[Any], crease: float) -> NDArray[Any]:
    """Normals float32 [F, 3, 3]: area-weighted vertex normals, but the face normal where it deviates too much.

    Computed from the geometry and not read from the file: many files have none, or wrong ones.
    """
    corner = points[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    # Texture seams split vertices; those at the same place belong together.
    _, same = np.unique(position_keys(points), return_inverse=True)
    joined = same.reshape(-1)[faces]
    smooth = np.stack([np.bincount(joined.reshape(-1), np.repeat(normal[:, c], 3)) for c in range(3)], axis=1)
    normal = _unit(normal)
    smooth = _unit(smooth)[joined]
    flat = np.einsum("fkc,fc->fk", smooth, normal) < np.cos(np.radians(crease))
    return np.where(flat[..., None], normal[:, None, :], smooth).astype(np.float32)


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def _compress(linear: NDArray[Any]) -> NDArray[Any]:
    """Identity up to SHOULDER, then a smooth approach to 1, as a camera's tone curve does."""
    room = 1.0 - SHOULDER
    return np.where(linear <= SHOULDER, linear, SHOULDER + room * np.tanh((linear - SHOULDER) / room))
