# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training objects: every kind of shape, paint that lands where it should, families, splits, the store."""

import json

import numpy as np
import pytest
import trimesh

from ocdit_ros.templates import RenderSettings, render, viewpoints
from ocdit_ros.train import objects as ob
from ocdit_ros.train import objects_meshes as om
from ocdit_ros.train import objects_shapes as shapes
from ocdit_ros.train import shards
from ocdit_ros.train import textures as tx


def family(number, split="train", seed=0):
    return ob.draw_family(seed, split, number, "t0")


def families_of_several(count):
    """Drawn families with more than one member, found without painting the others."""
    found = []
    for number in range(60):
        r = ob.seeded(0, "train", "family", number)
        shapes.draw_kind(r)
        if r.random() >= 0.7:
            found.append(family(number))
            if len(found) == count:
                return found
    raise AssertionError("no families of several members among 60")


@pytest.mark.parametrize("kind", sorted(shapes.KINDS))
def test_every_kind_is_made_of_closed_outward_parts(kind):
    for seed in range(4):
        for part in shapes.build(kind, np.random.default_rng(seed)):
            mesh = trimesh.Trimesh(part.in_object(), part.faces, process=False)
            mesh.merge_vertices()
            assert mesh.is_watertight, f"{kind} {seed} {part.role}"
            # A shape turned inside out has a negative volume; thin cups have little.
            assert mesh.volume > 0, f"{kind} {seed} {part.role}"
            assert np.isfinite(part.vertices).all()


def test_same_seed_same_shape_and_other_seed_another():
    first, again, other = (shapes.build("bottle", np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0].vertices, again[0].vertices)
    assert (
        first[0].vertices.shape != other[0].vertices.shape or np.abs(first[0].vertices - other[0].vertices).max() > 1e-3
    )


@pytest.mark.parametrize("kind", ["carton", "bottle", "machined", "scissors"])
def test_baked_atlas_gives_the_paint_back_at_any_point(kind):
    """A colour that is a linear function of position must be found again through texture coordinates."""
    parts = shapes.build(kind, np.random.default_rng(3))
    vertices = np.concatenate([part.in_object() for part in parts])
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets)])
    low, extent = vertices.min(0), np.ptp(vertices, axis=0)

    def paint(points, normals, index):
        return ((points - low) / extent).astype(np.float32)

    atlas, uv = tx.bake(vertices, faces, paint, vertices, float(extent.max()) / 200)
    assert uv.min() >= 0 and uv.max() <= 1
    r = np.random.default_rng(0)
    area = np.linalg.norm(np.cross(*(vertices[faces[:, k]] - vertices[faces[:, 0]] for k in (1, 2))), axis=1)
    face = r.choice(len(faces), 4000, p=area / area.sum())
    weight = r.dirichlet((1, 1, 1), len(face))
    weight[:300] = np.eye(3)[r.integers(0, 3, 300)]  # corners, where a neighbour would bleed in
    points = np.einsum("mk,mkc->mc", weight, vertices[faces[face]])
    at = np.einsum("mk,mkc->mc", weight, uv[face])
    found = tx._look_up(atlas, at[:, 0].astype(np.float32), 1 - at[:, 1].astype(np.float32))
    wrong = np.abs(found - (points - low) / extent).max(1)
    assert np.quantile(wrong, 0.99) < 0.02, np.quantile(wrong, [0.5, 0.9, 0.99, 1.0])
    assert wrong.max() < 0.06


def test_atlas_grows_with_the_detail_and_keeps_triangles_apart():
    part = shapes.box(1, 1, 1)
    small, _ = tx.bake(part.vertices, part.faces, lambda p, n, i: np.zeros_like(p), part.vertices, 0.1)
    large, uv = tx.bake(part.vertices, part.faces, lambda p, n, i: np.zeros_like(p), part.vertices, 0.005)
    assert small.shape[0] < large.shape[0]
    side = large.shape[0]
    seen = np.zeros((side, side), int)
    y, x = np.mgrid[0:side, 0:side] + 0.5
    for triangle in uv * side:
        a, b, c = triangle
        sign = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        seen += (np.min(sign, 0) > 0) | (np.max(sign, 0) < 0)
    assert seen.max() == 1


def test_print_reads_from_left_to_right_on_every_side():
    """Panels that are dark on their left must be dark on the left of whoever faces them."""
    colours = tx.palette(np.random.default_rng(0))
    low, high = np.float32([-1, -1, -1]), np.float32([1, 1, 1])
    panel = np.zeros((20, 20, 3), np.uint8)
    panel[:, 10:] = 255
    for axis in range(3):
        for sign in (-1, 1):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tx, "label", lambda *a, **k: panel)
                patch.setattr(tx, "small_print", lambda *a, **k: panel)
                patch.setattr(tx.np, "full", lambda *a, **k: panel)
                paint = tx.printed_box(np.random.default_rng(0), colours, low, high)
            normal = np.zeros(3, np.float32)
            normal[axis] = sign
            up = np.float32([0, 0, 1]) if axis < 2 else np.float32([0, 1, 0])
            right = np.cross(-normal, up)
            points = np.stack([normal - 0.5 * right, normal + 0.5 * right]).astype(np.float32)
            rgb = paint(points, np.tile(normal, (2, 1)))
            assert rgb[0].max() < 0.1 and rgb[1].min() > 0.9, (axis, sign)


def test_objects_are_hand_held_centred_and_reproducible():
    for number in range(5):
        first, again = family(number), family(number)
        for one, two in zip(first, again, strict=True):
            assert one.key == two.key
            for name in ("vertices", "faces", "normals", "uv", "texture", "rests"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
            assert 0.029 < one.diameter < 0.351
            np.testing.assert_allclose(one.vertices.min(0) + one.vertices.max(0), 0, atol=1e-6)
            spread = np.linalg.norm(one.vertices[:, None] - one.vertices[None, ::7], axis=-1).max()
            assert spread <= one.diameter * 1.0001
            np.testing.assert_allclose(np.linalg.norm(one.normals, axis=-1), 1, atol=1e-3)


def test_resting_rotations_stand_on_their_lowest_points():
    item = family(0)[0]
    for rotation in item.rests.astype(float):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) > 0
        turned = item.vertices @ rotation.T
        foot = turned[turned[:, 2] < turned[:, 2].min() + 0.02 * item.diameter]
        assert len(foot) >= 3
        assert (foot[:, :2].min(0) < turned[:, :2].mean(0)).all() or len(item.vertices) < 30


def test_members_of_a_family_look_alike_but_are_not_the_same():
    same_shape = same_paint = 0
    for members in families_of_several(4):
        assert len({m.info["family"] for m in members}) == 1
        assert len({m.key for m in members}) == len(members)
        first = members[0]
        for other in members[1:]:
            if first.vertices.shape == other.vertices.shape and np.allclose(first.vertices, other.vertices, atol=1e-6):
                same_shape += 1
                assert first.texture.shape != other.texture.shape or (first.texture != other.texture).any()
            else:
                same_paint += 1
    assert same_shape and same_paint


def test_splits_share_no_family_and_no_mesh(tmp_path):
    train, val = (family(0, split)[0] for split in ("train", "val"))
    assert train.info["family"] != val.info["family"]
    assert train.vertices.shape != val.vertices.shape or np.abs(train.vertices - val.vertices).max() > 1e-3

    box = trimesh.creation.box((0.3, 0.2, 0.1)).export(file_type="obj")
    for name in ("KatorLegaz/a/a.obj", "Scopia/b/b.obj", "BlendSwap-CC-0/c.obj", "random_urdfs/899/899.obj",
                 "random_urdfs/900/900.obj", "Unknown/d.obj"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(box)
    found = {split: {(s.collection, s.name) for s in om.mesh_sources(tmp_path, split)} for split in ob.SPLITS}
    assert not found["train"] & found["val"]
    assert found["val"] == {("KatorLegaz", "a/a"), ("random_urdfs", "900/900")}
    assert found["train"] == {("Scopia", "b/b"), ("BlendSwap-CC-0", "c"), ("random_urdfs", "899/899")}

    with pytest.raises(FileNotFoundError, match="no mesh of the train split"):
        om.mesh_sources(tmp_path / "nothing", "train")


def test_a_collected_mesh_keeps_its_colours_licence_and_origin(tmp_path):
    """Left half red, right half blue: the baked object shows the same from every side."""
    mesh = trimesh.creation.box((2.0, 1.0, 0.6)).subdivide().subdivide().subdivide()
    half = mesh.triangles_center[:, 0] < 0
    lines = ["mtllib two.mtl"] + [f"v {x} {y} {z}" for x, y, z in mesh.vertices]
    for name, mine in (("red", half), ("blue", ~half)):
        lines += [f"usemtl {name}"] + [f"f {a} {b} {c}" for a, b, c in mesh.faces[mine] + 1]
    folder = tmp_path / "Scopia" / "two"
    folder.mkdir(parents=True)
    (folder / "two.obj").write_text("\n".join(lines) + "\n")
    (folder / "two.mtl").write_text("newmtl red\nKd 0.8 0.1 0.1\nnewmtl blue\nKd 0.1 0.1 0.8\n")
    source = om.mesh_sources(tmp_path, "train")[0]
    for number in range(20):  # the first draw that keeps the mesh's own colours
        item = om.draw_mesh_family(0, "train", number, source)[0]
        rows, columns = (
            v.astype(int)
            for v in ((1 - item.uv[..., 1]) * item.texture.shape[0], item.uv[..., 0] * item.texture.shape[1])
        )
        shown = item.texture[rows.mean(1).astype(int), columns.mean(1).astype(int)].astype(int)
        if len(np.unique(shown, axis=0)) == 2:
            break
    else:
        raise AssertionError("no draw kept the mesh's own colours")
    middle = item.vertices[item.faces].mean(1)[:, 0]
    clear = np.abs(middle) > 0.02 * item.diameter
    red = shown[:, 0] > shown[:, 2]
    assert (red == (middle < 0))[clear].all()
    assert item.info["licence"] == "CC-BY-3.0" and item.info["source"] == "Scopia/two/two"
    assert 0.05 <= item.diameter <= 0.35


def test_flat_or_broken_meshes_are_left_out(tmp_path):
    folder = tmp_path / "Scopia"
    folder.mkdir()
    (folder / "flat.obj").write_text(trimesh.creation.box((1, 1, 0.001)).subdivide().export(file_type="obj"))
    (folder / "broken.obj").write_text("v 0 0 nothing\n")
    for number, source in enumerate(om.mesh_sources(tmp_path, "train")):
        assert om.draw_mesh_family(0, "train", number, source) == []


def test_store_gives_objects_back_and_templates_are_those_of_inference(tmp_path):
    assert shards.generate_objects(tmp_path, "val", 2, seed=5, prefix="q", progress=False) >= 2
    folder = tmp_path / "objects" / "val"
    index = ob.read_index(folder)
    for key, entry in index.items():
        assert {"family", "source", "licence", "diameter", "colour"} <= entry.keys()
        item = ob.load_object(folder, key)
        with np.load(folder / f"{key}.npz") as stored:
            assert stored["images"].shape == (12, 128, 128, 3) and stored["images"].dtype == np.uint8
            assert stored["depths"].dtype == np.float32 and str(stored["name"]) == key
            assert float(stored["diameter"]) == pytest.approx(entry["diameter"], abs=1e-5)
            expected = render(item.as_mesh(), viewpoints(12), RenderSettings(size=128, threads=1))
            np.testing.assert_array_equal(stored["images"], expected.images)
            np.testing.assert_array_equal(stored["masks"], expected.masks)
            covered = stored["images"][stored["masks"] == 255]
            np.testing.assert_allclose(covered.mean(0), entry["colour"], atol=12)
    with pytest.raises(FileNotFoundError, match="generate objects first"):
        ob.read_index(tmp_path)


def test_generation_goes_on_where_it_stopped(tmp_path):
    """Two families, then three: the first two stay untouched and the result is that of one run."""
    shards.generate_objects(tmp_path / "a", "train", 2, prefix="q", progress=False)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.npz")}
    shards.generate_objects(tmp_path / "a", "train", 3, prefix="q", progress=False)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    shards.generate_objects(tmp_path / "b", "train", 3, prefix="q", progress=False)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    index = json.loads((tmp_path / "a" / "objects" / "train" / "index.json").read_text())
    assert len({entry["family"] for entry in index.values()}) == 3

    with pytest.raises(ValueError, match="split must be one of train, val"):
        shards.generate_objects(tmp_path, "test", 1, progress=False)
