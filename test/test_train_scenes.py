# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Scenes and their shards: exact labels, the same bytes from the same seed, resuming, the sensor, statistics."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
import pytest
from train_objects import open_objects, write_objects

from ocdit_ros.train import objects as ob
from ocdit_ros.train import scenes as sc
from ocdit_ros.train import sensor, shards


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp("data"), 7)


@pytest.fixture(scope="module")
def store(data):
    return open_objects(data)


def draw(store, number, size=(256, 256)):
    r = ob.seeded(11, "train", "scene", number)
    return sc.draw_scene(r, *store, size=size), r


def rasterise(vertices, faces, k, rotation, translation, size):
    """Depth [H, W] of a mesh by scan conversion, inf where it is not: shares nothing with the ray caster."""
    width, height = size
    seen = vertices.astype(np.float64) @ rotation.T + translation
    assert seen[:, 2].min() > 0
    pixel = np.stack([k[0, 0] * seen[:, 0] / seen[:, 2] + k[0, 2], k[1, 1] * seen[:, 1] / seen[:, 2] + k[1, 2]], 1)
    depth = np.full((height, width), np.inf)
    for a, b, c in faces.astype(int):
        p = pixel[[a, b, c]]
        x0, y0 = np.maximum(np.ceil(p.min(0)), 0).astype(int)
        x1, y1 = np.minimum(np.floor(p.max(0)), [width - 1, height - 1]).astype(int)
        area = (p[1, 0] - p[0, 0]) * (p[2, 1] - p[0, 1]) - (p[1, 1] - p[0, 1]) * (p[2, 0] - p[0, 0])
        if x1 < x0 or y1 < y0 or area == 0:
            continue
        y, x = np.mgrid[y0 : y1 + 1, x0 : x1 + 1]
        w = [
            ((q[0] - s[0]) * (y - s[1]) - (q[1] - s[1]) * (x - s[0])) / area
            for s, q in ((p[1], p[2]), (p[2], p[0]), (p[0], p[1]))
        ]
        inside = (w[0] >= 0) & (w[1] >= 0) & (w[2] >= 0)
        z = 1 / (w[0] / seen[a, 2] + w[1] / seen[b, 2] + w[2] / seen[c, 2])  # 1/z is linear in the picture
        view = depth[y0 : y1 + 1, x0 : x1 + 1]
        view[inside & (z < view)] = z[inside & (z < view)]
    return depth


def test_labels_follow_from_meshes_and_annotated_poses(store):
    """Masks and visible fractions, made again from the annotations alone by another algorithm."""
    checked = 0
    for number in range(7):
        scene, r = draw(store, number)
        if any(surface.hides for surface in scene.surfaces):
            continue  # the sides of a bin are not in the annotations
        out = sc.render_scene(scene, r)
        k = np.array(out.camera["K"]).reshape(3, 3)
        depths = []
        for entry in out.instances:
            item = store[1](entry["object"])
            pose = np.array(entry["R"]).reshape(3, 3), np.array(entry["t"])
            np.testing.assert_allclose(pose[0] @ pose[0].T, np.eye(3), atol=1e-5)
            depths.append(rasterise(item.vertices, item.faces, k, *pose, (256, 256)))
        depths = np.array(depths)
        nearest = np.where(np.isfinite(depths).any(0), depths.argmin(0) + 1, 0)
        assert (nearest != out.label).mean() < 2e-4
        for index, entry in enumerate(out.instances, 1):
            again, mask = nearest == index, out.label == index
            if entry["pixels"] >= 1000:
                iou = (again & mask).sum() / (again | mask).sum()
                assert iou >= 0.999, (number, index, iou)
                checked += 1
            alone = np.isfinite(depths[index - 1]).sum()
            assert entry["visib_fract"] == pytest.approx(mask.sum() / alone, abs=2 / alone + 1e-4)
    assert checked >= 12


def test_annotations_agree_with_the_label_image(store):
    some_hidden = False
    for number in range(6):
        scene, r = draw(store, number, (320, 192))
        out = sc.render_scene(scene, r, (320, 192))
        assert out.rgb.shape == (192, 320, 3) and out.rgb.dtype == np.uint8
        assert out.label.shape == (192, 320) and out.label.dtype == np.uint8
        assert set(np.unique(out.label)) - {0} == set(range(1, len(out.instances) + 1))
        for index, entry in enumerate(out.instances, 1):
            rows, columns = np.nonzero(out.label == index)
            x, y, w, h = entry["box"]
            assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            assert entry["pixels"] == len(rows)
            assert 0 < entry["visib_fract"] <= 1
            some_hidden |= entry["visib_fract"] < 0.9
    assert some_hidden


def test_bin_sides_count_as_occluders(store):
    """A wall right before the camera hides half of the object: the visible fraction says so."""
    scene, r = draw(store, 0)
    placed = dataclasses.replace(scene.instances[0], position=np.zeros(3))
    eye = np.array([0.0, -3 * placed.item.diameter, 0.0])
    rotation = sc._look_at(eye, np.zeros(3), 0.0)
    middle = (eye * 0.5)[:, None] * np.ones(1)
    wall = sc.Surface(
        middle[:, 0] - [0, 0, 5],
        np.array([5.0, 0, 0]),
        np.array([0, 0, 10.0]),
        np.zeros((8, 8, 3), np.uint8),
        1.0,
        hides=True,
    )
    scene = dataclasses.replace(
        scene, instances=(placed,), surfaces=(wall,), rotation=rotation, translation=-rotation @ eye
    )
    (entry,) = sc.render_scene(scene, r).instances
    assert 0.2 < entry["visib_fract"] < 0.8
    assert entry["box"][0] + entry["box"][2] <= scene.intrinsics[0, 2] + 1  # only the left half is seen


def test_objects_lie_on_the_ground_and_hardly_in_one_another(store):
    inside, total, lifted = 0, 0, 0
    for number in range(6):
        r = np.random.default_rng(number)
        items = [store[1](key) for key in r.choice(store[0].keys, 8)]
        poses = sc.place(r, items, True, 0.7)
        world = [item.vertices @ rotation.T + position for item, (rotation, position) in zip(items, poses)]
        for item, vertices in zip(items, world):
            assert vertices[:, 2].min() > -0.02 * item.diameter - 0.001
            lifted += vertices[:, 2].min() > 0.01
        for i, vertices in enumerate(world):
            caster = o3d.t.geometry.RaycastingScene(nthreads=1)
            caster.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)), o3d.core.Tensor(items[i].faces))
            for j in range(len(world)):
                if j != i:
                    rotation, position = poses[j]
                    points = (sc._contact_points(items[j]) @ rotation.T + position).astype(np.float32)
                    inside += caster.compute_occupancy(o3d.core.Tensor(points), nthreads=1, nsamples=3).numpy().sum()
                    total += len(points)
    assert lifted > 10, "a pile: many objects lie on others"
    assert inside / total < 0.02, inside / total


def test_several_instances_and_look_alikes_are_drawn_often():
    index = {f"k{i:03d}": {"family": f"f{i // 2}", "diameter": 0.1 + 0.001 * i, "colour": [i, 0, 0]} for i in range(60)}
    catalogue = sc.Catalogue.from_index(index)
    repeated = kin = 0
    for number in range(400):
        keys = sc.choose_objects(ob.seeded(number), catalogue, 8)
        assert len(keys) == 8
        families = [index[key]["family"] for key in dict.fromkeys(keys)]
        repeated += len(set(keys)) < len(keys)
        kin += len(set(families)) < len(families)
    assert 0.12 < repeated / 400 < 0.3
    assert kin / 400 > 0.5
    with pytest.raises(ValueError, match="generate objects first"):
        sc.Catalogue.from_index({})


def test_one_object_is_repeated_as_often_as_asked(store, data, tmp_path):
    keys = ["a", "b", "a", "c", "d", "e", "b"]
    assert sc.repeat_first(np.random.default_rng(0), keys, (3, 3)) == ["a", "a", "a", "b", "c", "d", "e"]
    assert sc.repeat_first(np.random.default_rng(0), keys, (1, 1)) == ["a", "b", "c", "d", "e"]
    assert sc.repeat_first(np.random.default_rng(0), keys[:2], (5, 5)) == ["a"] * 5 + ["b"]
    seen = {sc.repeat_first(np.random.default_rng(n), keys, (2, 5)).count("a") for n in range(40)}
    assert seen == {2, 3, 4, 5}
    scene = sc.draw_scene(np.random.default_rng(0), *store, (), (128, 96), (4, 4))
    names = [placed.item.key for placed in scene.instances]
    assert len(set(names[:4])) == 1 and names[4] != names[0]
    usual, repeated = (generate(data, tmp_path / name, count=2, **more) for name, more in
                       (("usual", {}), ("repeated", {"copies": (4, 4)})))  # fmt: skip
    assert usual["shard-000000.tar"] != repeated["shard-000000.tar"]
    assert generate(data, tmp_path / "again", count=2, copies=(4, 4)) == repeated
    with pytest.raises(ValueError, match="copies must be two numbers"):
        generate(data, tmp_path / "none", copies=(3, 2))


def test_twins_differ_in_size_alone(data, tmp_path):
    source = data / "objects" / "train"
    assert shards.generate_twins(tmp_path, "val", 2, source, 1.4, seed=3, progress=False) == 4
    index = ob.read_index(tmp_path / "objects" / "val")
    small, large = sorted(index, key=lambda key: (index[key]["family"], len(key)))[:2]
    assert index[small]["family"] == index[large]["family"] and large == f"{small}-x1.4"
    assert index[large]["diameter"] == pytest.approx(1.4 * index[small]["diameter"], abs=1e-5)
    assert index[large]["diameter"] <= 0.35
    first, second = (ob.load_object(tmp_path / "objects" / "val", key) for key in (small, large))
    assert np.allclose(second.vertices, first.vertices * 1.4) and np.array_equal(second.texture, first.texture)
    pictures = [np.load(tmp_path / "objects" / "val" / f"{key}.npz") for key in (small, large)]
    assert np.abs(pictures[0]["images"].astype(int) - pictures[1]["images"]).mean() < 1, "they look the same"
    assert pictures[1]["diameter"] == pytest.approx(1.4 * pictures[0]["diameter"])
    first_time = {key: (tmp_path / "objects" / "val" / f"{key}.npz").read_bytes() for key in index}
    shards.generate_twins(tmp_path, "val", 2, source, 1.4, seed=3, progress=False)
    assert first_time == {key: (tmp_path / "objects" / "val" / f"{key}.npz").read_bytes() for key in index}
    with pytest.raises(ValueError, match="can be enlarged"):
        shards.generate_twins(tmp_path, "val", 10**6, source, 1.4)
    with pytest.raises(ValueError, match="ratio must be above 1"):
        shards.generate_twins(tmp_path, "val", 2, source, 1.0)


def test_brightness_of_templates_and_scenes_differ_but_not_the_hue_class():
    """Tints stay mild: no channel is moved by more than a factor of two, and white stays about white."""
    tints = np.array([sc._tint(np.random.default_rng(i)) for i in range(300)])
    white = tints.sum(2)
    assert np.quantile(white, 0.01) > 0.45 and np.quantile(white, 0.99) < 2.2
    assert np.median(np.ptp(white, axis=1) / white.mean(1)) < 0.1


# --- shards --------------------------------------------------------------------------------------------------------


def generate(data, out, count=6, **more):
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "objects").exists():
        (target / "objects").symlink_to(data / "objects")
    settings = {"seed": 4, "prefix": "s", "per_shard": 2, "size": (128, 96), "progress": False} | more
    shards.generate_scenes(target, "train", count, **settings)
    return {path.name: path.read_bytes() for path in sorted((target / "scenes" / "train").iterdir())}


def test_same_seed_same_bytes_for_any_number_of_workers(data, tmp_path):
    one = generate(data, tmp_path / "a")
    assert sorted(one) == ["s.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert generate(data, tmp_path / "b", workers=2) == one
    other = generate(data, tmp_path / "c", seed=5)
    assert other["shard-000000.tar"] != one["shard-000000.tar"]


def test_samples_have_the_documented_layout(data, tmp_path):
    content = generate(data, tmp_path, count=3)
    keys = []
    for name in ("shard-000000.tar", "shard-000001.tar"):
        with tarfile.open(fileobj=io.BytesIO(content[name])) as tar:
            parts = {member.name: tar.extractfile(member).read() for member in tar}
        for key in sorted({name.split(".")[0] for name in parts}):
            keys.append(key)
            rgb = cv2.imdecode(np.frombuffer(parts[f"{key}.rgb.jpg"], np.uint8), cv2.IMREAD_COLOR)
            label = cv2.imdecode(np.frombuffer(parts[f"{key}.label.png"], np.uint8), cv2.IMREAD_UNCHANGED)
            note = json.loads(parts[f"{key}.json"])
            assert rgb.shape == (96, 128, 3) and label.shape == (96, 128) and label.dtype == np.uint8
            assert note["seed"] == 4 and note["renderer"] == sc.RENDERER and len(note["camera"]["K"]) == 9
            counts = np.bincount(label.ravel(), minlength=len(note["instances"]) + 1)
            assert [entry["pixels"] for entry in note["instances"]] == list(counts[1:])
            assert all(
                entry.keys() == {"object", "box", "pixels", "visib_fract", "R", "t"} for entry in note["instances"]
            )
    assert keys == ["s-t0000000", "s-t0000001", "s-t0000002"]


def test_a_killed_run_is_resumed_to_the_same_bytes(data, tmp_path):
    expected = generate(data, tmp_path / "whole", count=10)
    out = tmp_path / "killed"
    out.mkdir()
    (out / "objects").symlink_to(data / "objects")
    command = [sys.executable, "-m", "ocdit_ros.train.shards", "scenes", "--out", str(out), "--count", "10",
               "--seed", "4", "--prefix", "s", "--per-shard", "2", "--size", "128", "96"]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    folder = out / "scenes" / "train"
    deadline = time.monotonic() + 240
    while len(list(folder.glob("*.tar"))) < 2 or not list(folder.glob("*.part*")):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert 2 <= len(finished) < 5
    resumed = generate(data, out, count=10)
    assert {name: data for name, data in resumed.items() if ".part" not in name} == expected
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


def test_a_round_keeps_its_catalogue_and_refuses_other_settings(data, tmp_path):
    generate(data, tmp_path, count=2)
    with pytest.raises(ValueError, match="other settings"):
        generate(data, tmp_path, count=2, seed=9)
    note = tmp_path / "scenes" / "train" / "s.json"
    frozen = json.loads(note.read_text())
    assert frozen["objects"] == sorted(ob.read_index(data / "objects" / "train"))
    note.write_text(json.dumps(dict(frozen, objects=frozen["objects"] + ["gone"])))
    with pytest.raises(ValueError, match="lacks object 'gone'"):
        generate(data, tmp_path, count=4)
    with pytest.raises(ValueError, match="at least 1"):
        shards.generate_scenes(tmp_path, "train", 0)


def test_statistics_count_what_they_say(data, tmp_path):
    generate(data, tmp_path, count=4)
    samples = list(shards.read_scenes(tmp_path / "scenes" / "train"))
    assert len(samples) == 4 and len(list(shards.read_scenes(tmp_path / "scenes" / "train", 3))) == 3
    grey = np.full((100, 200, 3), 50, np.uint8)
    entries = [
        {"pixels": 200, "visib_fract": 0.4},
        {"pixels": 1000, "visib_fract": 1.0},
        {"pixels": 0, "visib_fract": 0.0},
    ]
    found = shards.scene_statistics([(grey, entries)], side=100)
    assert found["objects per image"] == 2 and found["brightness"] == 50 and found["contrast"] == 0
    assert found["pixels p50"] == 150  # a quarter, as the picture shrinks by two
    assert found["smaller than 300 px"] == 1.0 and found["visible fraction < 0.5"] == 0.5
    with pytest.raises(ValueError, match="no samples"):
        shards.scene_statistics([])
    assert shards.contact_sheet([grey] * 5, columns=2).shape == (200, 400, 3)


# --- sensor --------------------------------------------------------------------------------------------------------


def ramp():
    return np.broadcast_to(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], (64, 256, 3)).copy()


def test_a_plain_sensor_is_the_srgb_curve():
    image = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2).repeat(4, 0)
    through = sensor.expose(sensor.to_linear(image), sensor.Sensor(shoulder=0.999), np.random.default_rng(0))
    assert np.abs(through.astype(int) - image).max() <= 2


def test_exposure_balance_and_vignetting_do_what_they_say():
    r = np.random.default_rng(0)
    flat = np.full((65, 65, 3), 0.2, np.float32)
    plain = sensor.expose(flat.copy(), sensor.Sensor(), r).astype(int)
    assert (sensor.expose(flat.copy(), sensor.Sensor(exposure=1.5), r) > plain).all()
    warm = sensor.expose(flat.copy(), sensor.Sensor(white_balance=(1.3, 1.0, 0.7)), r).astype(int)
    assert (warm[..., 0] > plain[..., 0]).all() and (warm[..., 2] < plain[..., 2]).all()
    dark = sensor.expose(flat.copy(), sensor.Sensor(vignetting=0.5), r).astype(int)
    assert abs(dark[32, 32, 0] - plain[32, 32, 0]) <= 1 and dark[0, 0, 0] < 0.85 * plain[0, 0, 0]
    assert (np.diff(sensor.expose(ramp(), sensor.Sensor(), r)[0, :, 0].astype(int)) >= 0).all()


def test_noise_has_the_asked_strength_and_grows_with_light():
    r = np.random.default_rng(0)
    camera = sensor.Sensor(shot_noise=0.02, read_noise=0.004)
    for level in (0.05, 0.4):
        noisy = sensor.expose(np.full((256, 256, 3), level, np.float32), camera, r)
        measured = sensor.to_linear(noisy).std()
        assert measured == pytest.approx(np.hypot(0.02 * np.sqrt(level), 0.004), rel=0.08)


def test_blur_motion_and_sharpening_keep_the_mean():
    r = np.random.default_rng(0)
    step = np.where(np.arange(64)[None, :, None] < 32, 0.1, 0.5).astype(np.float32) * np.ones((64, 64, 3), np.float32)
    plain = sensor.expose(step.copy(), sensor.Sensor(), r).astype(float)
    for camera in (sensor.Sensor(blur=1.5), sensor.Sensor(motion=(5.0, 0.0))):
        soft = sensor.expose(step.copy(), camera, r).astype(float)
        assert np.abs(np.diff(soft, axis=1)).max() < 0.5 * np.abs(np.diff(plain, axis=1)).max()
        assert soft.mean() == pytest.approx(plain.mean(), abs=2.5)
    crisp = sensor.expose(step.copy(), sensor.Sensor(sharpening=1.0), r).astype(float)
    assert np.abs(np.diff(crisp, axis=1)).max() > 1.2 * np.abs(np.diff(plain, axis=1)).max()


def test_augmentation_changes_the_picture_within_reason_and_by_seed():
    image = (np.random.default_rng(1).random((12, 16, 3)) * 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    shifts = []
    for seed in range(30):
        out = sensor.augment(image, np.random.default_rng(seed))
        assert out.shape == image.shape and out.dtype == np.uint8 and out.flags.c_contiguous
        np.testing.assert_array_equal(out, sensor.augment(image, np.random.default_rng(seed)))
        shifts.append(np.abs(out.astype(float) - image).mean())
        # Still the same picture: what was bright stays bright.
        assert np.corrcoef(out.mean(2).ravel(), image.mean(2).ravel())[0, 1] > 0.8
    assert 3 < np.median(shifts) < 60
    weak = [
        np.abs(sensor.augment(image, np.random.default_rng(s), 0.2).astype(float) - image).mean() for s in range(30)
    ]
    assert np.median(weak) < 0.6 * np.median(shifts)


def test_jpeg_quality_decides_the_size():
    image = cv2.GaussianBlur((np.random.default_rng(1).random((64, 64, 3)) * 255).astype(np.uint8), (0, 0), 3)
    assert len(sensor.encode_jpeg(image, 50)) < len(sensor.encode_jpeg(image, 95))
    back = cv2.imdecode(np.frombuffer(sensor.encode_jpeg(image, 95), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(back.astype(int) - image).mean() < 3


# --- command line --------------------------------------------------------------------------------------------------


def test_command_line_makes_shards_sheets_and_statistics(data, tmp_path, capsys):
    (tmp_path / "objects").symlink_to(data / "objects")
    base = ["--out", str(tmp_path)]
    assert shards.main(["scenes", *base, "--count", "8", "--per-shard", "8", "--size", "64", "64"]) == 0
    assert "8 scenes of round s0" in capsys.readouterr().out
    assert shards.main(["statistics", *base]) == 0
    table = capsys.readouterr().out
    assert "| images | 8 |" in table and "visible fraction" in table
    assert shards.main(["statistics", *base, "--shards", str(tmp_path / "scenes" / "train")]) == 0
    assert "| images | 8 | 8 |" in capsys.readouterr().out
    assert shards.main(["scenes", *base]) == 2
    assert "--count" in capsys.readouterr().err
    assert shards.main(["scenes", "--out", str(tmp_path / "empty"), "--count", "2"]) == 2
    assert "generate objects first" in capsys.readouterr().err


def test_templates_can_be_rendered_anew_and_sheets_drawn(tmp_path):
    shards.generate_objects(tmp_path, "train", 2, prefix="q", progress=False)
    folder = tmp_path / "objects" / "train"
    before = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
    index = ob.read_index(folder)
    for path in folder.glob("*.npz"):
        path.unlink()
    assert shards.render_templates(tmp_path, "train", progress=False) == len(index)
    assert {path.name: path.read_bytes() for path in folder.glob("*.npz")} == before
    assert ob.read_index(folder) == index
    shards.generate_scenes(tmp_path, "train", 16, per_shard=8, size=(48, 48), progress=False)
    shards.write_sheet(tmp_path, "train", tmp_path / "sheet.png", 16)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (96, 384, 3)
