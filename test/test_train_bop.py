# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training data of others: BOP scene folders and MegaPose shards give the samples that our own shards would give."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from ocdit_ros.model import ModelConfig, OCDiT
from ocdit_ros.train import bop
from ocdit_ros.train.dataset import ObjectStore, SampleSettings, SampleSource, SceneShards
from ocdit_ros.train.trainer import Trainer, TrainerSettings

HEIGHT, WIDTH = 90, 120


def pictures(count=3):
    """Pictures with three overlapping discs each: (rgb, visible masks, object ids)."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        rgb = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
        owner = np.zeros((HEIGHT, WIDTH), int)
        ids = [int(v) for v in rng.integers(1, 5, 3)]
        for number, obj_id in enumerate(ids, 1):
            x, y, r = rng.integers(20, WIDTH - 20), rng.integers(20, HEIGHT - 20), rng.integers(10, 25)
            disc = (xx - x) ** 2 + (yy - y) ** 2 < r * r
            rgb[disc], owner[disc] = (60 * obj_id, 255 - 60 * obj_id, 90), number
        yield rgb, [owner == k for k in (1, 2, 3)], ids


def entries(ids):
    pose = {"cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0.0, 0.0, 500.0]}
    return [{**pose, "obj_id": i} for i in ids]


def encode(image, kind):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_bop(folder):
    """Two scenes in the format of the BOP sets, the picture of the first as JPEG as in train_pbr."""
    everything = list(pictures())
    for scene, numbers in (("000000", (0, 1)), ("000003", (2,))):
        (folder / scene / "rgb").mkdir(parents=True)
        (folder / scene / "mask_visib").mkdir()
        truth = {}
        for place, number in enumerate(numbers):
            rgb, masks, ids = everything[number]
            kind = "PNG" if scene == "000003" else "JPEG"
            name = f"{place:06d}.{'png' if kind == 'PNG' else 'jpg'}"
            (folder / scene / "rgb" / name).write_bytes(encode(rgb, kind))
            truth[str(place)] = entries(ids)
            for instance, mask in enumerate(masks):
                path = folder / scene / "mask_visib" / f"{place:06d}_{instance:06d}.png"
                path.write_bytes(encode(mask.astype(np.uint8) * 255, "PNG"))
        (folder / scene / "scene_gt.json").write_text(json.dumps(truth))
    return everything


def run_lengths(mask, compressed):
    """COCO's two forms; the uncompressed one counted here, column by column, beginning with zeros."""
    if compressed:
        from pycocotools import mask as coco

        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def write_megapose(folder, compressed=False):
    """A shard with the parts of MegaPose's, those included that nobody reads."""
    folder.mkdir(parents=True)
    everything = list(pictures())
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for number, (rgb, masks, ids) in enumerate(everything):
            runs = {str(i): run_lengths(mask, compressed) for i, mask in enumerate(masks)}
            parts = {
                "camera.json": json.dumps({"cam_K": [600, 0, 60, 0, 600, 45, 0, 0, 1], "depth_scale": 0.1}).encode(),
                "depth.png": encode(np.zeros((HEIGHT, WIDTH), np.uint8), "PNG"),
                "gt.json": json.dumps(entries(ids)).encode(),
                "gt_info.json": json.dumps([{"visib_fract": 1.0} for _ in ids]).encode(),
                "mask.json": b"{}",
                "mask_visib.json": json.dumps(runs).encode(),
                "rgb.jpg": encode(rgb, "JPEG"),
            }
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"000017_{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return everything


@pytest.mark.parametrize("kind", ["bop", "lists", "compressed"])
def test_readers_give_picture_label_and_names(tmp_path, kind):
    if kind == "bop":
        expected = write_bop(tmp_path / "set")
        scenes = bop.BopScenes(tmp_path / "set", "toy")
    else:
        expected = write_megapose(tmp_path / "set", kind == "compressed")
        scenes = bop.MegaPoseShards(tmp_path / "set", "toy")
    assert len(scenes) == 3
    for index, (rgb, masks, ids) in enumerate(expected):
        found, label, instances = scenes[index]
        assert found.shape == rgb.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - rgb).mean() < 6  # JPEG
        assert label.dtype == np.uint8 and label.shape == (HEIGHT, WIDTH)
        assert [e["object"] for e in instances] == [f"toy-{i:06d}" for i in ids]
        for number, mask in enumerate(masks, 1):
            np.testing.assert_array_equal(label == number, mask)


def test_objects_without_templates_become_background(tmp_path):
    expected = write_bop(tmp_path / "set")
    known = {"toy-000001", "toy-000002"}
    scenes = bop.BopScenes(tmp_path / "set", "toy", known)
    for index, (_, masks, ids) in enumerate(expected):
        _, label, instances = scenes[index]
        assert {e["object"] for e in instances} <= known
        kept = [mask for mask, i in zip(masks, ids) if i in (1, 2)]
        assert len(instances) == len(kept)
        np.testing.assert_array_equal(label > 0, np.any(kept, axis=0) if kept else np.zeros((HEIGHT, WIDTH), bool))


def test_more_than_255_instances_leave_out_the_smallest():
    masks = []
    for number in range(300):
        mask = np.zeros((40, 600), bool)
        mask[: 10 + number % 30, 2 * number : 2 * number + 2] = True
        masks.append(mask)
    label, instances = bop.assemble_label((40, 600), masks, [f"k{i}" for i in range(300)], None)
    assert len(instances) == 255 and set(np.unique(label)) == set(range(256))
    areas = sorted(int(mask.sum()) for mask in masks)
    assert np.bincount(label.ravel())[1:].min() >= areas[45]
    assert all(masks[int(e["object"][1:])][label == k].all() for k, e in enumerate(instances, 1))


def test_bad_sets_are_named(tmp_path):
    with pytest.raises(ValueError, match="no BOP scenes"):
        bop.BopScenes(tmp_path, "toy")
    with pytest.raises(ValueError, match="not trained on"):
        bop.BopScenes(tmp_path, "ycbv")
    with pytest.raises(ValueError, match="small letters"):
        bop.MegaPoseShards(tmp_path, "a/b")
    with pytest.raises(ValueError, match="neither a folder of shards"):
        bop.open_scenes(["nothing-here"])
    write_bop(tmp_path / "set")
    (tmp_path / "set" / "000000" / "mask_visib" / "000000_000001.png").unlink()
    with pytest.raises(ValueError, match=r"000000_000001\.png' is missing"):
        bop.BopScenes(tmp_path / "set", "toy")[0]
    (tmp_path / "set" / "000003" / "scene_gt.json").write_text("[3]")
    with pytest.raises(ValueError, match="not an annotation file"):
        bop.BopScenes(tmp_path / "set", "toy")
    write_megapose(tmp_path / "shards")
    (tmp_path / "shards" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises((ValueError, tarfile.ReadError)):
        bop.MegaPoseShards(tmp_path / "shards", "toy")
    write_megapose(tmp_path / "again")
    with pytest.raises(ValueError, match="has no part"):
        SceneShards(tmp_path / "again")[0]


def test_an_index_file_replaces_the_walk_and_follows_changes(tmp_path, monkeypatch):
    write_megapose(tmp_path / "set")
    first = bop.MegaPoseShards(tmp_path / "set", "toy", index=tmp_path / "index.json")
    monkeypatch.setattr(bop.MegaPoseShards, "_walk", lambda shard: pytest.fail("walked again"))
    again = bop.MegaPoseShards(tmp_path / "set", "toy", index=tmp_path / "index.json")
    assert again.scenes == first.scenes
    monkeypatch.undo()
    with tarfile.open(tmp_path / "set" / "shard-000000.tar", "a") as tar:
        member = tarfile.TarInfo("000017_000009.gt.json")
        member.size = 50_000  # beyond the padding of the archive
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    grown = bop.MegaPoseShards(tmp_path / "set", "toy", index=tmp_path / "index.json")
    assert len(grown) == 4


def write_meshes(folder):
    """Boxes as the sets store them: BOP in millimetres, scanned objects in metres and off their middle."""
    sizes = {1: (60, 40, 20), 2: (50, 50, 50), 3: (90, 20, 20), 4: (30, 60, 60)}
    for number, size in sizes.items():
        box = trimesh.creation.box(extents=size)
        box.visual.vertex_colors = [60 * number, 255 - 60 * number, 90, 255]
        folder.mkdir(parents=True, exist_ok=True)
        box.export(folder / f"obj_{number:06d}.ply")
    return sizes


def test_objects_of_both_sets_get_templates_and_train(tmp_path):
    sizes = write_meshes(tmp_path / "models")
    data = tmp_path / "data"
    assert bop.main(["--out", str(data), "--prefix", "toy", "--models", str(tmp_path / "models")]) == 0
    scanned = tmp_path / "gso"
    for name in ("A", "B"):
        (scanned / name / "meshes").mkdir(parents=True)
        box = trimesh.creation.box(extents=(0.3, 0.4, 0.5))
        box.apply_translation([1.0, 2.0, 0.0])
        box.export(scanned / name / "meshes" / "model.obj")
    mapping = [{"obj_id": i, "gso_id": name} for i, name in ((7, "A"), (8, "B"), (9, "not downloaded"))]
    (tmp_path / "gso_models.json").write_text(json.dumps(mapping))
    words = ["--prefix", "gso", "--mapping", str(tmp_path / "gso_models.json"), "--meshes", str(scanned)]
    assert bop.main(["--out", str(data), *words]) == 0
    index = json.loads((data / "objects" / "train" / "index.json").read_text())
    assert sorted(index) == ["gso-000007", "gso-000008", *(f"toy-{i:06d}" for i in sizes)]
    for number, size in sizes.items():
        assert index[f"toy-{number:06d}"]["diameter"] == pytest.approx(np.linalg.norm(size) / 1000, rel=1e-4)
    assert index["gso-000007"]["diameter"] == pytest.approx(0.2, rel=1e-4)  # a unit sphere, times 0.1
    assert bop.main(["--out", str(data), "--prefix", "toy"]) == 2

    # The same trainer, over both kinds of scenes at once.
    write_bop(tmp_path / "scenes")
    write_megapose(tmp_path / "shards")
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset("tiny", train_objects=3, template_size=128)).eval()
    store = ObjectStore(data / "objects" / "train", model)
    words = [f"bop:toy:{tmp_path / 'scenes'}", f"megapose:toy:{tmp_path / 'shards'}"]
    scenes = bop.open_scenes(words, store.index)
    assert len(scenes) == 6
    np.testing.assert_array_equal(scenes[1][1], scenes[4][1])  # the same labels, from PNG and from run lengths
    source = SampleSource(scenes, store, SampleSettings(size=64, objects=3, min_crop=48, min_pixels=20), seed=3)
    image, masks, keys = source.sample(1)
    assert image.shape == (3, 64, 64) and masks.shape == (3, 64, 64) and len(set(keys)) == 3
    trainer = Trainer(model, source, tmp_path / "run", TrainerSettings(steps=2, batch_size=2, warmup=1))
    assert np.isfinite([trainer.train_step(), trainer.train_step()]).all()


def real_set():
    root = os.environ.get("OCDIT_SHARED_DATA", "")
    return Path(root) / "pbr_dev" / "test" if root else Path("nowhere")


@pytest.mark.skipif(not real_set().is_dir(), reason="OCDIT_SHARED_DATA does not lead to pbr_dev")
def test_a_real_bop_set_is_read_as_its_annotations_say():
    scenes = bop.BopScenes(real_set(), "piles")
    assert len(scenes) == 24
    for index in (0, 7, 23):
        rgb, label, instances = scenes[index]
        folder, number, _ = scenes.images[index]
        info = json.loads((folder / "scene_gt_info.json").read_text())[str(number)]
        assert rgb.shape[:2] == label.shape
        assert np.bincount(label.ravel(), minlength=len(info) + 1)[1:].tolist() == [e["px_count_visib"] for e in info]
        truth = json.loads((folder / "scene_gt.json").read_text())[str(number)]
        assert [e["object"] for e in instances] == [f"piles-{e['obj_id']:06d}" for e in truth]
