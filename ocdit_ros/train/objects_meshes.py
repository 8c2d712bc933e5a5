# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training objects from meshes that others made: the collections, who made them, and how they become objects.

A folder of meshes holds one folder per collection (docs/training-data.md says how to fill it):

- ``BlendSwap-CC-0``, ``BlendSwap-CC-BY``, ``KatorLegaz``, ``Scopia``: unpacked from the Debian package
  sweethome3d-furniture. KatorLegaz is the validation split, the others are for training.
- ``random_urdfs``: from the PyPI wheel pybullet. Numbers from 900 on are the validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open3d as o3d
from numpy.typing import NDArray

from ..templates import Mesh, MeshError, load_mesh
from . import objects_shapes as shapes
from . import textures as tx
from .objects import TrainObject, assemble, paint_parts, seeded

_LICENCES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
    "random_urdfs": "Zlib",
}
_MOST_BYTES = 4_000_000
_MOST_FACES = 3000


@dataclass(frozen=True)
class Source:
    """One mesh file of a collection."""

    path: Path
    collection: str
    name: str  # unique within the collection

    @property
    def licence(self) -> str:
        """SPDX identifier."""
        return _LICENCES[self.collection]


def mesh_sources(folder: Path | str, split: str) -> list[Source]:
    """Mesh files of the known collections that belong to a split, in a fixed order; very large files are left out."""
    found = []
    for collection in sorted(_LICENCES):
        root = Path(folder) / collection
        for path in sorted(root.rglob("*.obj")):
            if path.stat().st_size > _MOST_BYTES:
                continue
            name = str(path.relative_to(root).with_suffix("")).replace("\\", "/")
            if collection == "random_urdfs":
                held_out = int(path.stem) >= 900
            else:
                held_out = collection == "KatorLegaz"
            if held_out == (split == "val"):
                found.append(Source(path, collection, name))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no mesh of the {split} split; see docs/training-data.md for its layout."
        )
    return found


def _pieces(mesh: Mesh) -> list[shapes.Part]:
    """Connected pieces of a mesh as parts; many small ones are kept together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.faces.astype(np.int64)
    count = len(mesh.vertices)
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
    _, label = connected_components(graph, directed=False)
    piece = label[faces[:, 0]]
    names, sizes = np.unique(piece, return_counts=True)
    kept = names[np.argsort(-sizes, kind="stable")][:7]
    parts = []
    for number, group in enumerate([piece == name for name in kept] + [~np.isin(piece, kept)]):
        if group.any():
            used, local = np.unique(faces[group], return_inverse=True)
            role = "body" if number == 0 else f"detail{number}"
            parts.append(shapes.Part(mesh.vertices[used], local.reshape(-1, 3).astype(np.int32), "box", role))
    return parts


def _simplified(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices and faces, decimated where there are many (quadric error, Garland and Heckbert 1997)."""
    if len(mesh.faces) <= _MOST_FACES:
        return mesh.vertices, mesh.faces.astype(np.int32)
    _, first, inverse = np.unique(
        np.rint(mesh.vertices / max(mesh.diameter, 1e-9) * 1e5).astype(np.int64),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    welded = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(mesh.vertices[first]),
        o3d.utility.Vector3iVector(inverse.reshape(-1)[mesh.faces.astype(np.int64)].astype(np.int32)),
    )
    reduced = welded.simplify_quadric_decimation(_MOST_FACES)
    reduced.remove_degenerate_triangles()
    return np.asarray(reduced.vertices), np.asarray(reduced.triangles).astype(np.int32)


def _own_paint(mesh: Mesh) -> tx.Paint:
    """The mesh's own colours and textures, looked up at the nearest point of its surface."""
    caster = o3d.t.geometry.RaycastingScene(nthreads=1)
    caster.add_triangles(
        o3d.core.Tensor.from_numpy(mesh.vertices.astype(np.float32)), o3d.core.Tensor.from_numpy(mesh.faces)
    )

    def paint(points: tx.Floats, normals: tx.Floats) -> tx.Floats:
        nearest = caster.compute_closest_points(o3d.core.Tensor.from_numpy(np.ascontiguousarray(points)), nthreads=1)
        face = nearest["primitive_ids"].numpy().astype(np.int64)
        b, c = nearest["primitive_uvs"].numpy().T
        weight = np.stack([1 - b - c, b, c], 1)
        rgb = np.einsum("mk,mkc->mc", weight, mesh.colors[face].astype(np.float32)) / 255
        for number, texture in enumerate(mesh.textures):
            mine = np.flatnonzero(mesh.texture_index[face] == number)
            if len(mine):
                uv = np.einsum("mk,mkc->mc", weight[mine], mesh.uv[face[mine]]) % 1.0
                x = (uv[:, 0] * texture.shape[1]).astype(np.int64).clip(0, texture.shape[1] - 1)
                y = ((1 - uv[:, 1]) * texture.shape[0]).astype(np.int64).clip(0, texture.shape[0] - 1)
                rgb[mine] *= texture[y, x].astype(np.float32) / 255
        return rgb.astype(np.float32)

    return paint


def draw_mesh_family(
    seed: int, split: str, number: int, source: Source, prefix: str = "m0", photos: Sequence[tx.Image8] = ()
) -> list[TrainObject]:
    """One or two objects of a mesh: in its own colours or painted anew; an empty list where the mesh is unfit."""
    r = seeded(seed, split, "mesh", number)
    try:
        mesh = load_mesh(source.path)
    except MeshError:
        return []
    extent = np.sort(np.ptp(mesh.vertices, axis=0))
    if len(mesh.faces) < 12 or len(mesh.faces) > 60_000 or extent[0] < 0.02 * extent[2] or extent[1] < 0.05 * extent[2]:
        return []
    bare = source.collection == "random_urdfs"
    size = float(np.exp(r.uniform(np.log(0.05), np.log(0.35))))
    # Furniture is modelled y up.
    frame = shapes.at() if bare else shapes.at(rotation=shapes.turn("x", 90))
    name = f"{prefix}-{split[0]}{number:06d}"
    info = {"family": name, "source": f"{source.collection}/{source.name}", "licence": source.licence}
    found = []
    for member in range(2 if r.random() < 0.3 else 1):
        repaint = bare or (member == 0 and r.random() < 0.15) or (member == 1)
        if repaint and len(mesh.faces) <= _MOST_FACES:
            parts = [part.moved(frame) for part in _pieces(mesh)]
            if r.random() < 0.4:
                parts = [
                    shapes.Part(p.vertices, p.faces, str(r.choice(["box", "cylinder", "flat"])), "body", p.frame)
                    for p in parts
                ]
            paints, sheen = paint_parts(seeded(int(r.integers(2**62))), parts, "found", photos)
        else:
            vertices, faces = _simplified(mesh)
            if len(faces) > 2 * _MOST_FACES:  # many loose pieces resist
                return []
            parts = [shapes.Part(vertices, faces, frame=frame)]
            if repaint:
                paints, sheen = paint_parts(seeded(int(r.integers(2**62))), parts, "found", photos)
            else:
                paints, sheen = [_own_paint(mesh)], float(r.beta(1.2, 2.5))
        found.append(assemble(f"{name}{'ab'[member]}", parts, paints, size, np.ones(3), sheen, info))
    return found
