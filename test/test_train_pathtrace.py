# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The path-tracing renderer: the camera of Blender is ours, objects fall and come to rest, a seed is a picture."""

import sys

import numpy as np
import open3d as o3d
import pytest
from train_objects import open_objects, write_objects

from ocdit_ros.train import objects as ob
from ocdit_ros.train import pathtrace, sensor, shards
from ocdit_ros.train import scenes as sc

SIZE = (96, 72)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture(scope="module")
def store(data):
    return open_objects(data)


@pytest.fixture(scope="module")
def blender():
    return pytest.importorskip("bpy", reason="needs Blender as a module (extra path-tracing)", exc_type=ImportError)


def test_without_blender_one_is_told_and_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bpy", None)
    (tmp_path / "objects").symlink_to(data / "objects")
    with pytest.raises(ValueError, match=r"pip install 'bpy==4\.5"):
        shards.generate_scenes(tmp_path, "train", 1, renderer="cycles", progress=False)
    assert not (tmp_path / "scenes").exists()
    with pytest.raises(ValueError, match="renderer must be one of fast, cycles"):
        shards.generate_scenes(tmp_path, "train", 1, renderer="eevee", progress=False)


def test_hulls_hold_the_object_and_are_small(store):
    catalogue, load = store
    for key in catalogue.keys:
        item = load(key)
        corners, faces = pathtrace._hull(item)
        assert len(corners) <= 120 and faces.max() == len(corners) - 1
        directions = np.random.default_rng(0).normal(size=(200, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        gap = (item.vertices @ directions.T).max(0) - (corners @ directions.T).max(0)
        assert gap.max() < 0.05 * item.diameter and np.median(gap) < 0.01 * item.diameter


def test_roughness_follows_the_exponent():
    # alpha = 0.1 is exponent 198, and Principled squares its roughness
    assert pathtrace._roughness(198.0) == pytest.approx(0.1**0.5)
    assert pathtrace._roughness(5.0) > pathtrace._roughness(50.0)


def test_objects_fall_onto_the_ground_and_one_another(blender, store):
    catalogue, load = store
    inside = total = 0
    for number in range(3):
        r = np.random.default_rng(number)
        items = [load(key) for key in r.choice(catalogue.keys, 6)]
        poses = pathtrace.drop(r, items, True, 0.7)
        again = np.random.default_rng(number)
        again.choice(catalogue.keys, 6)
        repeated = pathtrace.drop(again, items, True, 0.7)
        kept = [(item, pose) for item, pose in zip(items, poses) if pose is not None]
        assert len(kept) >= 5
        for pose, other in zip(poses, repeated):
            assert (pose is None) == (other is None)
            if pose is not None:
                np.testing.assert_array_equal(pose[0], other[0])
                np.testing.assert_array_equal(pose[1], other[1])
                np.testing.assert_allclose(pose[0] @ pose[0].T, np.eye(3), atol=1e-12)
                assert np.linalg.det(pose[0]) > 0
        world = [(item.vertices @ rotation.T + position).astype(np.float32) for item, (rotation, position) in kept]
        lowest = [vertices[:, 2].min() for vertices in world]
        assert min(lowest) > -0.05 * max(item.diameter for item in items)
        assert sum(height < 0.02 for height in lowest) >= 2  # nothing hangs in the air: some touch the ground
        for i, vertices in enumerate(world):
            caster = o3d.t.geometry.RaycastingScene(nthreads=1)
            caster.add_triangles(o3d.core.Tensor(vertices), o3d.core.Tensor(kept[i][0].faces))
            for j, (item, (rotation, position)) in enumerate(kept):
                if j != i:
                    points = (sc._contact_points(item) @ rotation.T + position).astype(np.float32)
                    inside += caster.compute_occupancy(o3d.core.Tensor(points), nthreads=1, nsamples=3).numpy().sum()
                    total += len(points)
    assert inside / total < 0.02, inside / total


def coloured(store):
    """A drawn scene whose objects are red, on grey ground, taken by a plain sensor from an odd principal point."""
    catalogue, load = store
    r = ob.seeded(11, "train", "scene", 0)
    scene = sc.draw_scene(r, catalogue, load, size=SIZE)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 220
    grey = np.full((8, 8, 3), 120, np.uint8)
    intrinsics = scene.intrinsics.copy()
    intrinsics[:2, 2] += (5.0, -4.0)
    instances = [
        sc.Placed(
            sc.TrainObject(**{**p.item.__dict__, "texture": red}),
            p.rotation, p.position, np.eye(3, dtype=np.float32), 0.0, 5.0,
        )
        for p in scene.instances
    ]  # fmt: skip
    surfaces = [sc.Surface(s.corner, s.u, s.v, grey, s.tile) for s in scene.surfaces]
    white = np.ones(3, np.float32)
    lights = [sc.Light(light.position, light.radius, white, True) for light in scene.lights]
    return sc.Scene(
        tuple(instances), tuple(surfaces), tuple(lights), white, white, grey, intrinsics, scene.rotation,
        scene.translation, 0.25, sensor.Sensor(),
    )  # fmt: skip


def test_labels_lie_where_the_traced_picture_shows_the_objects(blender, store):
    """Objects are the only red things: what is red in the light of Cycles is what our rays call an object."""
    scene = coloured(store)
    out = pathtrace.render_scene(scene, np.random.default_rng(0), SIZE, samples=16)
    fast = sc.render_scene(scene, np.random.default_rng(0), SIZE)
    np.testing.assert_array_equal(out.label, fast.label)
    assert out.instances == fast.instances and out.camera == fast.camera
    assert out.renderer == pathtrace.RENDERER != fast.renderer
    rgb = out.rgb.astype(int)
    red = (rgb[..., 0] > 2 * rgb[..., 1]) & (rgb[..., 0] > 40)
    labelled = out.label > 0
    assert labelled.mean() > 0.05
    best = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            moved = np.roll(red, (dy, dx), (0, 1))[2:-2, 2:-2]
            truth = labelled[2:-2, 2:-2]
            best[dy, dx] = (moved & truth).sum() / (moved | truth).sum()
    assert max(best, key=best.get) == (0, 0) and best[0, 0] > 0.9, best
    # The same lamps and the same sky: brightness is set by the scene, contrast is of the same kind.
    assert abs(float(out.rgb.mean()) - float(fast.rgb.mean())) < 25


def test_one_seed_gives_the_same_shard(blender, data, tmp_path):
    found = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "objects").symlink_to(data / "objects")
        shards.generate_scenes(
            tmp_path / name, "train", 1, seed=3 + (name == "c"), size=(64, 48), renderer="cycles", samples=4,
            progress=False,
        )  # fmt: skip
        found.append((tmp_path / name / "scenes" / "train" / "shard-000000.tar").read_bytes())
    assert found[0] == found[1] != found[2]
    with pytest.raises(ValueError, match="other settings"):
        shards.generate_scenes(tmp_path / "a", "train", 1, seed=3, size=(64, 48), progress=False)
