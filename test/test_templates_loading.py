# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Every mesh format gives the shape, size and colours of the one textured original it was made from."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from PIL import Image
from templates_meshes import (
    box,
    looked_up,
    textured_blob,
    write_bop_ply,
    write_coff,
    write_dae,
    write_gltf,
    write_obj,
    write_stl,
)

from ocdit_ros.templates import Mesh, MeshError, RenderSettings, load_mesh, render, resolve, viewpoints

VIEWS = viewpoints(6)
SETTINGS = RenderSettings(threads=1)


@pytest.fixture(scope="module")
def original():
    vertices, faces, uv, texture = textured_blob()
    mesh = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture)
    return vertices, faces, uv, texture, mesh, render(mesh, VIEWS, SETTINGS)


def difference(templates, reference) -> float:
    """Mean absolute colour difference, 0..255, inside both masks."""
    inside = (templates.masks == 255) & (reference.masks == 255)
    assert inside.mean() > 0.2
    return float(np.abs(templates.images[inside].astype(int) - reference.images[inside]).mean())


WRITERS = {
    "ply": lambda path, v, f, uv, texture: write_bop_ply(path, v, f, uv, texture),
    "obj": lambda path, v, f, uv, texture: write_obj(path, v, f, uv, texture),
    "glb": lambda path, v, f, uv, texture: write_gltf(path, v, f, uv, texture),
    "gltf": lambda path, v, f, uv, texture: write_gltf(path, v, f, uv, texture),
    "dae": lambda path, v, f, uv, texture: write_dae(path, v, f, uv, texture),
    # These two cannot carry textures: one colour a face or a vertex, of a mesh that is dense enough.
    "stl": lambda path, v, f, uv, texture: write_stl(path, v, f, looked_up(texture, uv[f].mean(axis=1))),
    "off": lambda path, v, f, uv, texture: write_coff(path, v, f, looked_up(texture, uv)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_format_keeps_colour_and_size(tmp_path, original, kind):
    vertices, faces, uv, texture, mesh, reference = original
    scale = 1.0 if kind in ("glb", "gltf") else 0.001  # millimetres, except where the format says metres
    path = WRITERS[kind](tmp_path / f"mesh.{kind}", vertices / scale, faces, uv, texture)
    loaded = load_mesh(path, scale)
    assert len(loaded.faces) == len(faces)
    assert loaded.diameter == pytest.approx(mesh.diameter, rel=1e-5)
    np.testing.assert_allclose(np.ptp(loaded.vertices, axis=0), np.ptp(vertices, axis=0), rtol=1e-5)
    templates = render(loaded, VIEWS, SETTINGS)
    assert difference(templates, reference) <= 3.0
    assert np.mean(templates.masks != reference.masks) < 1e-3


def test_formats_with_textures_are_exact(tmp_path, original):
    vertices, faces, uv, texture, _, reference = original
    for kind in ("ply", "obj", "glb", "gltf", "dae"):
        path = WRITERS[kind](tmp_path / f"mesh.{kind}", vertices, faces, uv, texture)
        assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.1, kind


def test_the_difference_measures_something(original):
    vertices, faces, uv, texture, _, reference = original
    upside_down = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture[::-1])
    assert difference(render(upside_down, VIEWS, SETTINGS), reference) > 20
    swapped = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture[..., ::-1])
    assert difference(render(swapped, VIEWS, SETTINGS), reference) > 20


def test_ascii_ply(tmp_path, original):
    vertices, faces, uv, texture, _, reference = original
    path = write_bop_ply(tmp_path / "mesh.ply", vertices, faces, uv, texture, ascii_rows=True)
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.1


def test_ply_with_texture_coordinates_of_face_corners(tmp_path, original):
    """As MeshLab writes them: a vertex may have other coordinates in each of its faces."""
    vertices, faces, uv, texture, _, _ = original
    corners = uv[faces].copy()
    corners[::2] = 1 - corners[::2]
    mesh = Mesh.from_arrays(vertices, faces, uv=corners, texture=texture)
    Image.fromarray(texture).save(tmp_path / "print.png")
    lines = ["ply", "format ascii 1.0", "comment TextureFile print.png", f"element vertex {len(vertices)}"]
    lines += ["property float x", "property float y", "property float z", f"element face {len(faces)}"]
    lines += ["property list uchar int vertex_indices", "property list uchar float texcoord", "end_header"]
    lines += [" ".join(f"{x:.9g}" for x in v) for v in vertices]
    for face, corner in zip(faces, corners.reshape(-1, 6), strict=True):
        lines.append(f"3 {face[0]} {face[1]} {face[2]} 6 " + " ".join(f"{x:.6f}" for x in corner))
    (tmp_path / "mesh.ply").write_text("\n".join(lines) + "\n")
    loaded = load_mesh(tmp_path / "mesh.ply")
    assert difference(render(loaded, VIEWS, SETTINGS), render(mesh, VIEWS, SETTINGS)) <= 0.2


@pytest.mark.parametrize("kind", ["ply", "obj", "glb", "dae", "off"])
def test_vertex_colours(tmp_path, original, kind):
    vertices, faces, uv, texture, _, _ = original
    colors = looked_up(texture, uv)
    reference = render(Mesh.from_arrays(vertices, faces, colors=colors), VIEWS, SETTINGS)
    path = tmp_path / f"mesh.{kind}"
    if kind == "ply":
        write_bop_ply(path, vertices, faces, colors=colors)
    elif kind == "off":
        write_coff(path, vertices, faces, colors)
    elif kind == "dae":
        write_dae(path, vertices, faces, colors=colors)
    else:
        if kind == "glb":  # linear, by the specification
            value = colors / 255.0
            linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
            colors = np.rint(linear * 255).astype(np.uint8)
        trimesh.Trimesh(vertices, faces, vertex_colors=colors, process=False).export(path)
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 1.0


def test_face_colours_of_ply(tmp_path, original):
    vertices, faces, uv, texture, _, _ = original
    colors = looked_up(texture, uv[faces].mean(axis=1))
    reference = render(Mesh.from_arrays(vertices, faces, colors=colors), VIEWS, SETTINGS)
    path = tmp_path / "mesh.ply"
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.visual.face_colors = colors
    mesh.export(path)
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.1


@pytest.mark.parametrize("fractions", [False, True])
def test_face_colours_of_off(tmp_path, original, fractions):
    vertices, faces, uv, texture, _, _ = original
    colors = looked_up(texture, uv[faces].mean(axis=1))
    reference = render(Mesh.from_arrays(vertices, faces, colors=colors), VIEWS, SETTINGS)
    lines = ["OFF  # counts follow", f"{len(vertices)} {len(faces)} 0", ""]
    lines += [" ".join(f"{x:.9g}" for x in vertex) for vertex in vertices]
    for face, color in zip(faces, colors, strict=True):
        words = [f"{c / 255:.6f}" for c in color] if fractions else [str(c) for c in color]
        lines.append(" ".join(["3", *map(str, face), *words]))
    (tmp_path / "mesh.off").write_text("\n".join(lines) + "\n")
    assert difference(render(load_mesh(tmp_path / "mesh.off"), VIEWS, SETTINGS), reference) <= 0.1


@pytest.mark.parametrize("kind", ["obj", "dae"])
def test_textures_by_uri(tmp_path, original, kind):
    vertices, faces, uv, texture, _, reference = original
    (tmp_path / "a b").mkdir()
    path = WRITERS[kind](tmp_path / f"mesh.{kind}", vertices, faces, uv, texture)
    name, place = {"obj": ("material.png", "material.mtl"), "dae": ("mesh_dae.png", "mesh.dae")}[kind]
    (tmp_path / name).rename(tmp_path / "a b" / "print.png")
    text = (tmp_path / place).read_text()
    assert name in text
    (tmp_path / place).write_text(text.replace(name, (tmp_path / "a b" / "print.png").as_uri()))
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.1


def test_uncoloured_meshes_are_neutral_grey(tmp_path):
    solid = trimesh.creation.icosphere()
    for kind in ("ply", "obj", "stl", "off", "glb"):
        path = tmp_path / f"mesh.{kind}"
        solid.export(path)
        mesh = load_mesh(path, 0.1)
        assert (mesh.colors == 180).all() or kind == "glb", kind
        assert np.ptp(mesh.colors) == 0
        image = render(mesh, VIEWS, SETTINGS).images
        assert (image == image[..., :1]).all()


def test_several_materials_in_several_files(tmp_path):
    mesh = box()
    red, green = (np.full((4, 4, 3), c, np.uint8) for c in ([200, 20, 20], [20, 200, 20]))
    uv = np.zeros((8, 2))
    write_obj(tmp_path / "a.obj", mesh.vertices, mesh.faces, uv, red, "red")
    write_obj(tmp_path / "a.obj", mesh.vertices, mesh.faces, uv, green, "green")
    text = (tmp_path / "a.obj").read_text().splitlines()
    faces = [line for line in text if line.startswith("f ")]
    text = ["mtllib red.mtl", "mtllib green.mtl"] + [x for x in text if x.startswith("v")]
    (tmp_path / "blue.mtl").write_text("newmtl blue\nKd 0 0 1\n")
    text = [text[0] + " ", *text[1:], "mtllib blue.mtl", "usemtl red", *faces[:4], "usemtl green", *faces[4:8]]
    (tmp_path / "a.obj").write_text("\n".join([*text, "usemtl blue", *faces[8:]]) + "\n")
    loaded = load_mesh(tmp_path / "a.obj")
    assert len(loaded.textures) == 2
    seen = {
        tuple(loaded.textures[i][0, 0]) if i >= 0 else tuple(c[0])
        for i, c in zip(loaded.texture_index, loaded.colors, strict=True)
    }
    assert seen == {(200, 20, 20), (20, 200, 20), (0, 0, 255)}
    names = {path.name for path, _ in loaded.files}
    assert names == {"a.obj", "red.mtl", "red.png", "green.mtl", "green.png", "blue.mtl"}


def test_placed_parts_of_a_scene(tmp_path):
    """Node transforms of glTF and the unit that a DAE declares both count."""
    scene = trimesh.Scene()
    place = np.eye(4)
    place[:3, 3] = 1.0, 0.0, 0.0
    scene.add_geometry(trimesh.creation.box((1, 1, 1)))
    scene.add_geometry(trimesh.creation.box((1, 1, 1)), transform=place)
    scene.export(tmp_path / "two.glb")
    np.testing.assert_allclose(np.ptp(load_mesh(tmp_path / "two.glb").vertices, axis=0), [2, 1, 1])
    mesh = box((6, 10, 4))
    write_dae(tmp_path / "box.dae", mesh.vertices, mesh.faces, metres_per_unit=0.01)
    np.testing.assert_allclose(np.ptp(load_mesh(tmp_path / "box.dae").vertices, axis=0), [0.06, 0.1, 0.04])


def test_stray_vertices_do_not_count(tmp_path):
    mesh = box()
    vertices = np.vstack([mesh.vertices, [[5.0, 5.0, 5.0], [np.nan, 0, 0]]])
    path = write_bop_ply(tmp_path / "box.ply", vertices, mesh.faces)
    assert load_mesh(path).diameter == pytest.approx(mesh.diameter)


def test_diameter_is_the_largest_distance():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(300, 3))
    faces = rng.integers(0, 300, (50, 3))
    expected = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
    assert Mesh.from_arrays(points, faces).diameter == pytest.approx(expected)
    flat = points * [1, 1, 0]
    expected = np.linalg.norm(flat[:, None] - flat[None], axis=-1).max()
    assert Mesh.from_arrays(flat, faces).diameter == pytest.approx(expected)
    dense = trimesh.creation.icosphere(subdivisions=6)  # 40962 vertices, all on the hull
    assert Mesh.from_arrays(dense.vertices, dense.faces).diameter == pytest.approx(2.0, rel=1e-3)


def test_texture_names_with_spaces_accents_options_and_percent(tmp_path, original):
    vertices, faces, uv, texture, _, reference = original
    folder = tmp_path / "Größe 5 %"
    folder.mkdir()
    write_obj(folder / "ünïcode mesh.obj", vertices, faces, uv, texture, "schöne Textur")
    (folder / "schöne Textur.mtl").write_text("newmtl schöne Textur\nmap_Kd -s 1 1 1 tex.png\n", encoding="utf-8")
    (folder / "schöne Textur.png").rename(folder / "tex.png")
    assert difference(render(load_mesh(folder / "ünïcode mesh.obj"), VIEWS, SETTINGS), reference) <= 0.1
    uri = (folder / "ünïcode mesh.obj").as_uri()
    assert "%20" in uri
    assert load_mesh(uri).diameter == pytest.approx(load_mesh(folder / "ünïcode mesh.obj").diameter)


def test_16_bit_and_palette_textures(tmp_path, original):
    vertices, faces, uv, texture, _, _ = original
    grey = texture[..., 0]
    reference = render(
        Mesh.from_arrays(vertices, faces, uv=uv, texture=np.repeat(grey[..., None], 3, 2)), VIEWS, SETTINGS
    )
    path = write_bop_ply(tmp_path / "mesh.ply", vertices, faces, uv, texture)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "mesh.png")
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.5
    Image.fromarray(grey).convert("P").save(tmp_path / "mesh.png")
    assert difference(render(load_mesh(path), VIEWS, SETTINGS), reference) <= 0.5


class TestPackageUri:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        share = tmp_path / "install" / "share" / "parts"
        (share / "meshes").mkdir(parents=True)
        mesh = box()
        write_bop_ply(share / "meshes" / "box.ply", mesh.vertices, mesh.faces)
        write_bop_ply(tmp_path / "outside.ply", mesh.vertices, mesh.faces)
        monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}/nowhere:{tmp_path}/install")
        return share

    def test_found(self, package):
        assert resolve("package://parts/meshes/box.ply") == package / "meshes" / "box.ply"
        assert load_mesh("package://parts/meshes/box.ply").diameter == pytest.approx(box().diameter)

    @pytest.mark.parametrize(
        "uri",
        [
            "package://parts/../../../outside.ply",
            "package://parts/meshes/%2e%2e/%2e%2e/../../outside.ply",
            "package://parts/meshes/..%2f..%2f..%2f..%2foutside.ply",
            "package://../parts/meshes/box.ply",
            "package://parts",
            "package:///meshes/box.ply",
            "package://unknown/meshes/box.ply",
            "http://example.org/box.ply",
            "file://elsewhere/box.ply",
            "model://parts/meshes/box.ply",
            "",
            "a\0b.ply",
        ],
    )
    def test_refused(self, package, uri):
        with pytest.raises(MeshError):
            resolve(uri)

    def test_links_stay_inside(self, package, tmp_path):
        (package / "meshes" / "link.ply").symlink_to(tmp_path / "outside.ply")
        (package / "elsewhere").symlink_to(tmp_path)
        for uri in ("package://parts/meshes/link.ply", "package://parts/elsewhere/outside.ply"):
            with pytest.raises(MeshError, match="symbolic link"):
                resolve(uri)
        (package / "meshes" / "alias.ply").symlink_to("box.ply")
        assert load_mesh("package://parts/meshes/alias.ply").diameter > 0

    def test_symlink_install(self, package, tmp_path):
        """`colcon build --symlink-install` links single files to those of the same name in the source tree."""
        source = tmp_path / "src" / "parts" / "meshes"
        source.mkdir(parents=True)
        (package / "meshes" / "box.ply").rename(source / "box.ply")
        (package / "meshes" / "box.ply").symlink_to(source / "box.ply")
        assert load_mesh("package://parts/meshes/box.ply").diameter > 0

    def test_no_prefix_path(self, package, monkeypatch):
        monkeypatch.delenv("AMENT_PREFIX_PATH")
        with pytest.raises(MeshError, match="AMENT_PREFIX_PATH is not set"):
            resolve("package://parts/meshes/box.ply")
