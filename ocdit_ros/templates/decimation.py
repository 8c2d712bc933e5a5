# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Fewer faces, same looks: quadric decimation (Garland and Heckbert 1997, by Open3D) with the colours baked anew.

Edge collapse moves vertices across the seams of a texture atlas, so the old texture coordinates are of no use. Each
remaining face gets a right triangle of texels of its own in a new texture; the colour of a texel is that of the
closest point of the original surface that faces the same way. Any mixture of textures, materials and vertex colours
goes in, one texture comes out.

Parts that cannot be seen from outside are left out first: they would take faces away from those that can, and behind
a thin wall their colour would be the closest one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh, diameter
from .surface import Albedo, encode, normalised, position_keys
from .views import viewpoints

if TYPE_CHECKING:
    import open3d as o3d

TEXELS_ACROSS = 300  # least number of texels along one diameter: finer than the samples of a 128 px template
MAX_TEXELS = 8_000_000  # in all; many long thin faces would ask for more
SAME_SIDE = 0.01  # how much farther, in diameters, a point may be that faces the same way: a pixel of a template


def decimate(mesh: Mesh, max_faces: int, threads: int = 0) -> Mesh:
    """The mesh itself if it has at most `max_faces` faces, else a simplified one with its colours.

    Raises ValueError if `max_faces` is below 100.
    """
    if max_faces < 100:
        raise ValueError(f"decimate: max_faces must be at least 100, got {max_faces}")
    if len(mesh.faces) <= max_faces:
        return mesh
    whole, (points, centre, unit) = mesh, normalised(mesh)
    kept = _seen_from_outside(points, mesh.faces, threads)
    if not kept.all():
        mesh = replace(
            mesh, faces=mesh.faces[kept], colors=mesh.colors[kept], uv=mesh.uv[kept],
            texture_index=mesh.texture_index[kept],
        )  # fmt: skip
    vertices, faces = _simplify(points, mesh.faces, max_faces)
    if len(faces) == 0:  # nothing but slivers, which all collapsed
        return whole
    uv, texture = _bake(mesh, points, vertices, faces, threads)
    vertices = vertices * unit + centre
    return Mesh(
        vertices=vertices,
        faces=faces,
        colors=np.full((len(faces), 3, 3), 255, np.uint8),
        uv=uv,
        texture_index=np.zeros(len(faces), np.int32),
        textures=(texture,),
        diameter=diameter(vertices),
        files=mesh.files,
        mipmaps=False,  # neighbours in the texture are no neighbours on the surface
    )


def _seen_from_outside(points: NDArray[np.float64], faces: NDArray[np.uint32], threads: int) -> NDArray[np.bool_]:
    """Which faces [F] belong to a connected part that can be seen from outside; points [V, 3] have diameter 1.

    A part counts as hidden if no ray of 32 views hits it, and none of the rays that leave some of its faces gets out.
    """
    import open3d as o3d
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, joined = np.unique(position_keys(points), return_inverse=True)
    corner = joined.reshape(-1)[faces]
    edges = corner[:, [0, 1, 1, 2]].reshape(-1, 2).T
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(points), len(points)))
    part = connected_components(graph, directed=False)[1][corner[:, 0]]
    part = np.unique(part, return_inverse=True)[1].reshape(-1)  # number of the part of each face
    count = int(part.max()) + 1
    if count == 1:
        return np.ones(len(faces), bool)

    scene = _scene(points, faces, threads)
    line = np.linspace(-0.52, 0.52, 192)
    across, down = (a.reshape(-1, 1) for a in np.meshgrid(line, line))
    seen = np.zeros(count, bool)
    for right, below, forward in viewpoints(32):
        start = across * right + down * below - forward
        rays = np.hstack([start, np.broadcast_to(forward, start.shape)]).astype(np.float32)
        hit = scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=threads)["primitive_ids"].numpy()
        seen[part[hit[hit < len(faces)]]] = True

    rest = np.flatnonzero(~seen[part])
    rest = np.random.default_rng(0).permutation(rest)
    rest = rest[np.argsort(part[rest], kind="stable")]  # part by part, each in random order
    place = np.arange(len(rest)) - np.searchsorted(part[rest], part[rest])
    limit = max(4, 60_000 // max(int((~seen).sum()), 1))
    rest = rest[place < limit][:200_000]
    a, b, c = (points[faces[rest, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    for forward in viewpoints(32, seed=1)[:, 2]:
        side = np.where(normal @ forward < 0, -1.0, 1.0)[:, None]
        start = (a + b + c) / 3 + 2e-5 * side * normal
        rays = np.hstack([start, np.broadcast_to(forward, start.shape)]).astype(np.float32)
        blocked = scene.test_occlusions(o3d.core.Tensor.from_numpy(rays), nthreads=threads).numpy()
        seen[part[rest[~blocked]]] = True
    seen[np.setdiff1d(part[~seen[part]], part[rest])] = True  # too many to look at
    return np.asarray(seen[part])


def _scene(points: NDArray[np.float64], faces: NDArray[np.uint32], threads: int) -> o3d.t.geometry.RaycastingScene:
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene(nthreads=threads)
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(points.astype(np.float32)), o3d.core.Tensor.from_numpy(np.ascontiguousarray(faces))
    )
    return scene


class _Surface:
    """Closest points of a surface, of the side that faces a given way where there are two."""

    _AXES = np.vstack([np.eye(3), -np.eye(3)])

    def __init__(self, points: NDArray[np.float64], faces: NDArray[np.uint32], threads: int) -> None:
        self._threads = threads
        self._points = points
        corner = points[faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        self._whole = _scene(points, faces, threads)
        # Whatever is within 35 degrees of a normal is in the half-space about its largest component, and nothing that
        # is turned the other way.
        self._halves = [np.flatnonzero(normal @ axis > 0) for axis in self._AXES]
        self._scenes = [_scene(points, faces[half], threads) if len(half) else None for half in self._halves]

    def closest(
        self, place: NDArray[np.float64], normal: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Faces [N] and barycentric coordinates [N, 2] of the points closest to `place` [N, 3], seen along `normal`.

        Winding is not to be trusted, so a face that is turned the other way is taken if there is no other near.
        """
        face, bary, best = self._query(self._whole, place)
        side = (normal @ self._AXES.T).argmax(axis=1)
        for number, (half, scene) in enumerate(zip(self._halves, self._scenes, strict=True)):
            here = np.flatnonzero(side == number)
            if scene is None or not len(here):
                continue
            found, where, distance = self._query(scene, place[here])
            near = distance <= best[here] + SAME_SIDE
            face[here[near]], bary[here[near]] = half[found[near]], where[near]
        return face, bary

    def _query(
        self, scene: o3d.t.geometry.RaycastingScene, place: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
        import open3d as o3d

        query = o3d.core.Tensor.from_numpy(place.astype(np.float32))
        answer = scene.compute_closest_points(query, nthreads=self._threads)
        distance = np.linalg.norm(answer["points"].numpy() - place, axis=1)
        face = answer["primitive_ids"].numpy().astype(np.int64)
        return face, answer["primitive_uvs"].numpy().copy(), distance


def _simplify(
    points: NDArray[np.float64], faces: NDArray[np.uint32], max_faces: int
) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    import open3d as o3d

    # Vertices split at texture seams would be taken for borders of the surface.
    _, first, joined = np.unique(position_keys(points), return_index=True, return_inverse=True)
    triangles = joined.reshape(-1)[faces].astype(np.int32)
    distinct = (triangles != np.roll(triangles, 1, axis=1)).all(axis=1)
    legacy = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(points[first]), o3d.utility.Vector3iVector(triangles[distinct])
    )
    legacy.remove_duplicated_triangles()  # edges of four faces do not collapse
    if len(legacy.triangles) > max_faces:
        legacy = legacy.simplify_quadric_decimation(max_faces)
    legacy.remove_unreferenced_vertices()
    return np.asarray(legacy.vertices).copy(), np.asarray(legacy.triangles).astype(np.uint32)


def _bake(
    mesh: Mesh, points: NDArray[np.float64], vertices: NDArray[np.float64], faces: NDArray[np.uint32], threads: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Texture coordinates [F, 3, 2] and texture of the simplified mesh."""
    corner = vertices[faces]  # [F, 3, 3]
    edges = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max(axis=1)
    # Legs in texels are powers of two, so that the squares of two faces each pack without gaps.
    legs = 2 ** np.rint(np.log2(np.clip(edges * TEXELS_ACROSS + 3, 4, 512))).astype(np.int64)
    while np.square(legs).sum() // 2 > MAX_TEXELS and legs.max() > 4:
        legs = np.maximum(legs // 2, 4)
    order = np.argsort(-legs, kind="stable")
    legs = legs[order]
    legs[1::2] = legs[: len(legs) - len(legs) % 2 : 2]
    column, row, height, width = _pack(legs[::2])

    uv = np.empty((len(faces), 3, 2), np.float32)
    texture = np.zeros((height, width, 3), np.uint8)
    original = _Surface(points, mesh.faces, threads)
    normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    albedo = Albedo(mesh, spacing=1.0 / TEXELS_ACROSS)
    for half in (0, 1):
        for size in np.unique(legs[half::2]):
            here = np.flatnonzero(legs[half::2] == size)
            # The two faces of a square count texels (a, b) from opposite corners; the diagonal is the first one's.
            b, a = np.mgrid[0:size, 0:size]
            a, b = (n[a + b < size - half] for n in (a, b))
            # A bilinear lookup in a face reaches one row of texels beyond its long side, which is its own as well.
            span = size - 2 - half
            weights = np.stack([1 - (a + b) / span, a / span, b / span])  # [3, texels]
            turn = 1 if half == 0 else -1
            origin = np.stack([column[here], row[here]], axis=1) + half * (size - 1)
            step = max(1, 500_000 // len(a))
            for part in (slice(k, k + step) for k in range(0, len(here), step)):
                face = order[half::2][here[part]]
                place = np.einsum("kt,fkc->ftc", weights, corner[face]).reshape(-1, 3)
                found, bary = original.closest(place, np.repeat(normals[face], len(a), axis=0))
                value = encode(albedo(found, bary)).reshape(len(face), -1, 3)
                x, y = origin[part, 0, None] + turn * a, origin[part, 1, None] + turn * b
                texture[y, x] = np.rint(value * 255.0)
            ends = origin[:, None] + turn * np.array([[0, 0], [span, 0], [0, span]])
            uv[order[half::2][here], :, 0] = (ends[..., 0] + 0.5) / width
            uv[order[half::2][here], :, 1] = 1.0 - (ends[..., 1] + 0.5) / height
    return uv, texture


def _pack(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Places of squares whose sides are powers of two, largest first: columns, rows, height and width of the sheet.

    Along a Z-order curve such squares fill the plane without gaps.
    """
    areas = sizes * sizes
    offset = np.cumsum(areas) - areas
    column, row = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    for bit in range(26):
        column |= ((offset >> (2 * bit)) & 1) << bit
        row |= ((offset >> (2 * bit + 1)) & 1) << bit
    side = 2 ** math.ceil(math.log2(math.sqrt(int(areas.sum()))))
    return column, row, int((row + sizes).max()), int(min(side, (column + sizes).max()))
