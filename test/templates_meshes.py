# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Meshes that the tests of templates/ make for themselves, and one file of each format written from them."""

from __future__ import annotations

import struct
from pathlib import Path

import collada
import numpy as np
import trimesh
from PIL import Image

from ocdit_ros.templates import Mesh


def textured_blob(rows: int = 60, columns: int = 120, radius: float = 0.05):
    """A closed bumpy shape without symmetry: vertices [V, 3] m, faces [F, 3], uv [V, 2], texture [256, 512, 3]."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    theta, phi = np.pi * v, 2 * np.pi * u
    bump = 1 + 0.15 * np.sin(3 * phi) * np.sin(theta) ** 3 + 0.1 * np.cos(phi) * np.sin(theta)
    vertices = radius * np.stack(
        [bump * np.sin(theta) * np.cos(phi), 1.3 * bump * np.sin(theta) * np.sin(phi), -0.8 * np.cos(theta)], axis=-1
    )
    corner = np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
    below = corner + columns + 1
    faces = np.concatenate(
        [np.stack(t, axis=-1).reshape(-1, 3) for t in [(corner, corner + 1, below + 1), (corner, below + 1, below)]]
    )
    y, x = np.mgrid[0:256, 0:512] / 256.0
    texture = [0.5 + 0.45 * np.sin(np.pi * x), 0.5 + 0.45 * np.cos(2 * np.pi * y + np.pi * x), 0.3 + 0.6 * abs(y - 0.5)]
    texture = np.rint(np.stack(texture, axis=-1) * 255).astype(np.uint8)
    return vertices.reshape(-1, 3), faces, np.stack([u, v], axis=-1).reshape(-1, 2), texture


def looked_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of a texture at uv [..., 2], nearest texel."""
    height, width = texture.shape[:2]
    column = np.clip((uv[..., 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[..., 1]) * height).astype(int), 0, height - 1)
    return texture[row, column]


def write_bop_ply(path: Path, vertices, faces, uv=None, texture=None, colors=None, ascii_rows=False) -> Path:
    """PLY as in BOP data sets: float vertices and normals, uchar colours, texture_u/v, comment TextureFile."""
    columns = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    header = ["ply", f"format {'ascii' if ascii_rows else 'binary_little_endian'} 1.0"]
    if texture is not None:
        Image.fromarray(texture).save(path.with_suffix(".png"))
        header.append(f"comment TextureFile {path.with_suffix('.png').name}")
    if texture is not None or colors is not None:
        columns += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    if uv is not None:
        columns += [("texture_u", "<f4"), ("texture_v", "<f4")]
    rows = np.zeros(len(vertices), columns)
    rows["x"], rows["y"], rows["z"] = np.asarray(vertices).T
    if colors is not None:
        rows["red"], rows["green"], rows["blue"] = colors.T
    if uv is not None:
        rows["texture_u"], rows["texture_v"] = uv.T
    names = {"<f4": "float", "u1": "uchar"}
    header += [f"element vertex {len(vertices)}", *(f"property {names[t]} {n}" for n, t in columns)]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    triangles = np.zeros(len(faces), [("n", "u1"), ("i", "<i4", 3)])
    triangles["n"], triangles["i"] = 3, faces
    body = rows.tobytes() + triangles.tobytes()
    if ascii_rows:
        lines = [" ".join(f"{x:.9g}" for x in row.tolist()) for row in rows]
        lines += [f"3 {a} {b} {c}" for a, b, c in faces]
        body = ("\n".join(lines) + "\n").encode()
    path.write_bytes("\n".join(header).encode() + body)
    return path


def write_stl(path: Path, vertices, faces, colors=None) -> Path:
    """Binary STL; face colours [F, 3] in the 15 bits that VisCAM uses."""
    rows = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows["corners"] = np.asarray(vertices)[faces]
    if colors is not None:
        red, green, blue = np.rint(colors.astype(float) * 31 / 255).astype(np.uint16).T
        rows["attribute"] = 0x8000 | (red << 10) | (green << 5) | blue
    path.write_bytes(b"test".ljust(80) + struct.pack("<I", len(faces)) + rows.tobytes())
    return path


def write_coff(path: Path, vertices, faces, colors) -> Path:
    lines = ["COFF", f"{len(vertices)} {len(faces)} 0"]
    lines += [f"{x:.9g} {y:.9g} {z:.9g} {r} {g} {b} 255" for (x, y, z), (r, g, b) in zip(vertices, colors, strict=True)]
    lines += [f"3 {a} {b} {c}" for a, b, c in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_dae(path: Path, vertices, faces, uv=None, texture=None, colors=None, metres_per_unit=1.0) -> Path:
    document = collada.Collada()
    document.assetInfo.unitmeter = metres_per_unit
    document.assetInfo.unitname = "unit"
    parameters, diffuse = [], (0.8, 0.8, 0.8, 1.0)
    if texture is not None:
        name = path.stem + "_dae.png"
        Image.fromarray(texture).save(path.with_name(name))
        image = collada.material.CImage("image", name, document)
        surface = collada.material.Surface("surface", image)
        sampler = collada.material.Sampler2D("sampler", surface)
        document.images.append(image)
        parameters, diffuse = [surface, sampler], collada.material.Map(sampler, "UVSET0")
    effect = collada.material.Effect("effect", parameters, "lambert", diffuse=diffuse)
    material = collada.material.Material("material", "material", effect)
    document.effects.append(effect)
    document.materials.append(material)
    sources = [collada.source.FloatSource("positions", np.asarray(vertices, float).reshape(-1), ("X", "Y", "Z"))]
    inputs = collada.source.InputList()
    inputs.addInput(0, "VERTEX", "#positions")
    if uv is not None:
        sources.append(collada.source.FloatSource("coordinates", np.asarray(uv, float).reshape(-1), ("S", "T")))
        inputs.addInput(1, "TEXCOORD", "#coordinates", set="0")
    if colors is not None:
        sources.append(collada.source.FloatSource("colors", (colors / 255.0).reshape(-1), ("R", "G", "B")))
        inputs.addInput(1, "COLOR", "#colors")
    geometry = collada.geometry.Geometry(document, "shape", "shape", sources)
    indices = np.repeat(np.asarray(faces).reshape(-1), len(sources))
    geometry.primitives.append(geometry.createTriangleSet(indices, inputs, "symbol"))
    document.geometries.append(geometry)
    bound = collada.scene.MaterialNode("symbol", material, inputs=[])
    node = collada.scene.Node("node", children=[collada.scene.GeometryNode(geometry, [bound])])
    scene = collada.scene.Scene("scene", [node])
    document.scenes.append(scene)
    document.scene = scene
    document.write(str(path))
    return path


def write_gltf(path: Path, vertices, faces, uv, texture) -> Path:
    """.glb, or .gltf with its buffers and the texture in files of their own."""
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh = trimesh.Trimesh(vertices, faces, process=False, visual=visual)
    if path.suffix == ".glb":
        mesh.export(path)
    else:
        for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh)).items():
            (path.parent / name.replace("model.gltf", path.name)).write_bytes(data)
    return path


def write_obj(path: Path, vertices, faces, uv, texture, material="material") -> Path:
    Image.fromarray(texture).save(path.with_name(f"{material}.png"))
    path.with_name(f"{material}.mtl").write_text(f"newmtl {material}\nKd 0.8 0.8 0.8\nmap_Kd {material}.png\n")
    lines = [f"mtllib {material}.mtl", *(f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices)]
    lines += [f"vt {u:.9g} {v:.9g}" for u, v in uv]
    lines += [f"usemtl {material}", *("f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in faces)]
    path.write_text("\n".join(lines) + "\n")
    return path


def sphere(radius: float = 0.05, subdivisions: int = 4) -> Mesh:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh.from_arrays(mesh.vertices, mesh.faces)


def box(size=(0.06, 0.1, 0.04)) -> Mesh:
    mesh = trimesh.creation.box(size)
    return Mesh.from_arrays(mesh.vertices, mesh.faces)


def cylinder(radius: float = 0.03, height: float = 0.1, sections: int = 256) -> Mesh:
    mesh = trimesh.creation.cylinder(radius=radius, height=height, sections=sections)
    return Mesh.from_arrays(mesh.vertices, mesh.faces)
