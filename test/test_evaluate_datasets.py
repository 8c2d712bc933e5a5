# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Reading BOP folders and scene shards; both are written by the tests themselves."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ocdit_ros.evaluate import datasets
from ocdit_ros.evaluate.datasets import BopDataset, DatasetError, ImageKey, ShardDataset


def write_bop(root, image_suffix=".png"):
    """A BOP folder with two scenes; object 3 has two instances in image 7, one of them hidden."""
    scene = root / "test" / "000002"
    for folder in (root / "models", scene / "rgb", scene / "mask_visib"):
        folder.mkdir(parents=True)
    for number in (1, 3):
        (root / "models" / f"obj_{number:06d}.ply").write_text("ply")
    (root / "models" / "obj_000003.obj").write_text("")
    (root / "models" / "names.json").write_text(json.dumps({"3": "mug"}))
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    for image in (5, 7):
        Image.fromarray(pixels).save(scene / "rgb" / f"{image:06d}{image_suffix}")
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:9] = 255
    for index in range(2):
        Image.fromarray(mask if index == 0 else np.zeros_like(mask)).save(
            scene / "mask_visib" / f"000007_{index:06d}.png"
        )
    gt, info = [{"obj_id": 3}, {"obj_id": 3}], [{"visib_fract": 0.09}, {"visib_fract": 0.0}]
    (scene / "scene_gt.json").write_text(json.dumps({"5": [], "7": gt}))
    (scene / "scene_gt_info.json").write_text(json.dumps({"5": [], "7": info}))
    rows = [{"scene_id": 2, "im_id": i, "obj_id": 3, "inst_count": 1} for i in (7, 7, 5)]
    (root / "test_targets_bop19.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bop_folder(tmp_path, suffix):
    data = BopDataset(write_bop(tmp_path / "my_set", suffix))
    assert (data.name, data.split) == ("myset", "test")
    assert data.categories == {1: "obj_000001", 3: "mug"}
    assert data.images == [ImageKey(2, 7), ImageKey(2, 5)]
    assert data.rgb(ImageKey(2, 5)).shape == (20, 30, 3)
    (instance,) = data.ground_truth(ImageKey(2, 7))  # the one without a visible pixel is left out
    assert instance.category_id == 3 and instance.mask.sum() == 24 and instance.ignored
    assert data.ground_truth(ImageKey(2, 5)) == []
    source = data.object_source(3)
    assert source.name == "mug" and source.mesh.endswith("obj_000003.ply") and source.scale == 0.001


def test_without_targets_every_annotated_image_counts(tmp_path):
    root = write_bop(tmp_path / "set")
    (root / "test_targets_bop19.json").unlink()
    assert BopDataset(root).images == [ImageKey(2, 5), ImageKey(2, 7)]
    with pytest.raises(DatasetError, match="--targets"):
        BopDataset(root, targets="other.json")


def test_grey_images_of_any_depth_become_rgb(tmp_path):
    deep = (np.arange(12, dtype=np.uint16) * 300).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    rgb = datasets.read_rgb(tmp_path / "deep.png")
    assert rgb.shape == (3, 4, 3) and rgb.dtype == np.uint8 and rgb.max() == 255 and rgb[0, 1, 0] == 23


@pytest.mark.parametrize(
    "remove, message",
    [
        ("models", "no 'models' folder"),
        ("test", "no folder 'test'"),
        ("test/000002/scene_gt.json", "scene_gt.json' is missing"),
        ("test/000002/mask_visib/000007_000000.png", "needs the visible masks"),
        ("test/000002/rgb/000007.png", "No image 000007"),
    ],
)
def test_what_is_missing_is_named(tmp_path, remove, message):
    root = write_bop(tmp_path / "set")
    (root / remove).rename(tmp_path / "gone")

    def use():
        data = BopDataset(root)
        data.ground_truth(ImageKey(2, 7))
        data.rgb(ImageKey(2, 7))

    with pytest.raises(DatasetError, match=message):
        use()


def test_a_path_that_is_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="not a folder"):
        datasets.open_dataset(tmp_path / "nothing")
    (tmp_path / "___").mkdir()
    with pytest.raises(DatasetError, match="rename"):
        datasets.open_dataset(tmp_path / "___")


def write_shards(root, images=3, objects=("a", "b", "c", "d")):
    """Shards and an object store as docs/architecture.md describes them."""
    store, shards = root / "objects" / "val", root / "scenes" / "val"
    store.mkdir(parents=True)
    shards.mkdir(parents=True)
    for key in objects:
        np.savez(
            store / f"{key}.npz",
            images=np.full((4, 64, 64, 3), 90, np.uint8),
            masks=np.full((4, 64, 64), 255, np.uint8),
            depths=np.ones((4, 64, 64), np.float32),
            rotations=np.tile(np.eye(3, dtype=np.float32), (4, 1, 1)),
            diameter=np.float32(0.2),
        )
    (store / "index.json").write_text(json.dumps({k: {"family": k, "diameter": 0.2} for k in objects}))
    label = np.zeros((32, 48), np.uint8)
    label[4:12, 4:20], label[20:28, 4:20] = 1, 2
    rows = [{"object": "b", "visib_fract": 1.0}, {"object": "d", "visib_fract": 0.5}]
    with tarfile.open(shards / "000000.tar", "w") as archive:
        for number in range(images):
            files = {"json": json.dumps({"instances": rows}).encode()}
            for kind, picture, form in (
                ("label.png", Image.fromarray(label), "PNG"),
                ("rgb.jpg", Image.new("RGB", (48, 32), (number, 0, 0)), "JPEG"),
            ):
                buffer = io.BytesIO()
                picture.save(buffer, form)
                files[kind] = buffer.getvalue()
            for kind, data in files.items():
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return shards, store


def test_scene_shards(tmp_path):
    shards, store = write_shards(tmp_path)
    data = ShardDataset(shards, store, absent=1)
    assert len(data.images) == 3
    assert list(data.categories.values()) == ["a", "b", "c", "d"]
    key = data.images[2]
    assert data.rgb(key).shape == (32, 48, 3)
    first, second = data.ground_truth(key)
    assert (data.categories[first.category_id], data.categories[second.category_id]) == ("b", "d")
    assert first.mask.sum() == second.mask.sum() == 128
    asked = data.candidates(key)
    assert {2, 4} < set(asked) and len(asked) == 3 and asked == data.candidates(key)
    assert data.object_source(2).images.shape == (4, 64, 64, 3)
    assert len(datasets.open_dataset(shards, objects=str(store), limit=2).images) == 2


def test_any_number_of_absent_objects(tmp_path):
    shards, store = write_shards(tmp_path, images=12)
    data = ShardDataset(shards, store, absent=(0, 2))
    counts = [len(data.candidates(key)) - 2 for key in data.images]
    assert set(counts) == {0, 1, 2}
    assert counts == [len(data.candidates(key)) - 2 for key in data.images]


def test_some_of_what_is_in_view_is_not_asked_for(tmp_path):
    shards, store = write_shards(tmp_path, images=40)
    everything, half, none = (ShardDataset(shards, store, 1, asked=share) for share in (1.0, 0.5, 0.0))
    counts = []
    for key in half.images:
        present = {g.category_id for g in everything.ground_truth(key)}
        shown = {g.category_id for g in half.ground_truth(key)}
        asked = half.candidates(key)
        assert shown <= present and set(asked) & present == shown and len(asked) == len(shown) + 1
        assert asked == half.candidates(key)
        assert none.ground_truth(key) == [] and len(none.candidates(key)) == 1
        counts.append(len(shown))
    assert set(counts) == {0, 1, 2} and 30 <= sum(counts) <= 50
    mixed = ShardDataset(shards, store, 1, asked=0.0, complete=0.5)
    kept = [len(mixed.ground_truth(key)) / len(everything.ground_truth(key)) for key in mixed.images]
    assert set(kept) == {0, 1} and 10 < sum(kept) < 30  # all of it or nothing
    few = ShardDataset(shards, store, 1, asked=(0.0, 0.2))
    assert 0 < sum(len(few.ground_truth(key)) for key in few.images) < 20
    assert len(datasets.open_dataset(shards, objects=str(store), asked=0.0).ground_truth(half.images[0])) == 0


def test_broken_shards_are_named(tmp_path):
    shards, store = write_shards(tmp_path)
    (shards / "000001.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DatasetError, match=r"000001\.tar"):
        ShardDataset(shards, store)
