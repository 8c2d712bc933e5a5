# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Fewer faces, same looks: quadric decimation (Garland and Heckbert 1997, by Open3D) with the colours baked anew.

Edge collapse moves vertices across the seams of a texture atlas, so the old texture coordinates are of no use. Each
remaining face gets a right triangle of texels of its own in a new texture; the colour of a texel is that of the
closest point of the original surface. Any mixture of textures, materials and vertex colours goes in, one texture
comes out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh, diameter
from .surface import Albedo, encode, normalised, position_keys

TEXELS_ACROSS = 300  # least number of texels along one diameter: finer than the samples of a 128 px template
MAX_TEXELS = 8_000_000  # in all; many long thin faces would ask for more


def decimate(mesh: Mesh, max_faces: int, threads: int = 0) -> Mesh:
    """The mesh itself if it has at most `max_faces` faces, else a simplified one with its colours.

    Raises ValueError if `max_faces` is below 100.
    """
    if max_faces < 100:
        raise ValueError(f"decimate: max_faces must be at least 100, got {max_faces}")
    if len(mesh.faces) <= max_faces:
        return mesh
    points, centre, unit = normalised(mesh)
    vertices, faces = _simplify(points, mesh.faces, max_faces)
    if len(faces) == 0:  # nothing but slivers, which all collapsed
        return mesh
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
    legacy = legacy.simplify_quadric_decimation(max_faces)
    legacy.remove_unreferenced_vertices()
    return np.asarray(legacy.vertices).copy(), np.asarray(legacy.triangles).astype(np.uint32)


def _bake(
    mesh: Mesh, points: NDArray[np.float64], vertices: NDArray[np.float64], faces: NDArray[np.uint32], threads: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Texture coordinates [F, 3, 2] and texture of the simplified mesh."""
    import open3d as o3d

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
    scene = o3d.t.geometry.RaycastingScene(nthreads=threads)
    scene.add_triangles(o3d.core.Tensor.from_numpy(points.astype(np.float32)), o3d.core.Tensor.from_numpy(mesh.faces))
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
                closest = scene.compute_closest_points(
                    o3d.core.Tensor.from_numpy(place.astype(np.float32)), nthreads=threads
                )
                bary = closest["primitive_uvs"].numpy()
                found = closest["primitive_ids"].numpy().astype(np.int64)
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
