# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Trainer: samples by index, exact resume, several processes, measures."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from model_fixtures import denoise, live_model, random_query
from PIL import Image, ImageDraw

from ocdit_ros.model import ModelConfig, OCDiT, SamplerSettings, TemplateFeatures, load_checkpoint, save_checkpoint
from ocdit_ros.segment.types import Evidence
from ocdit_ros.train import command
from ocdit_ros.train.dataset import (
    MixedSource,
    ObjectStore,
    SampleSettings,
    SampleSource,
    SceneShards,
    hint_of,
    instance_in,
    keep_apart,
    rough_box,
)
from ocdit_ros.train.pictures import strip
from ocdit_ros.train.trainer import (
    Trainer,
    TrainerSettings,
    TrainingLoss,
    gap_tokens,
    mean_of,
    start_model,
    stratified_sigma,
)
from ocdit_ros.train.vae import draw_masks, reconstruction_iou, train_vae
from ocdit_ros.train.validation import average_precision, encode_masks, noise_curve, score_queries, validate

SETTINGS = SampleSettings(size=64, objects=3, min_crop=48, min_pixels=20)


def write_data(root, scenes=12, objects=6):
    """Discs of one colour per object: families of two objects, four discs of the first six a scene."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 255, (objects, 3))
    store = root / "objects" / "train"
    store.mkdir(parents=True)
    yy, xx = np.mgrid[:64, :64]
    disc = ((yy - 32) ** 2 + (xx - 32) ** 2 < 28**2).astype(np.uint8)
    for k, colour in enumerate(colours):
        np.savez(
            store / f"disc{k}.npz",
            images=np.broadcast_to(disc[..., None] * colour, (4, 64, 64, 3)).astype(np.uint8),
            masks=np.broadcast_to(disc * 255, (4, 64, 64)),
        )
    (store / "index.json").write_text(
        json.dumps({f"disc{k}": {"family": f"f{k // 2}", "diameter": 0.1 + 0.02 * k} for k in range(objects)})
    )
    folder = root / "scenes" / "train"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for i in range(scenes):
            image, label, instances = Image.new("RGB", (80, 80), (20, 20, 20)), Image.new("L", (80, 80)), []
            for number, k in enumerate(rng.choice(6, 4), 1):
                x, y, r = rng.integers(10, 70), rng.integers(10, 70), rng.integers(6, 16)
                box = [int(x - r), int(y - r), int(x + r), int(y + r)]
                ImageDraw.Draw(image).ellipse(box, fill=tuple(int(c) for c in colours[k]))
                ImageDraw.Draw(label).ellipse(box, fill=number)
                instances.append({"object": f"disc{k}"})
            rgb, png = io.BytesIO(), io.BytesIO()
            image.save(rgb, "JPEG", quality=95)
            label.save(png, "PNG")
            for suffix, data in (
                ("rgb.jpg", rgb.getvalue()),
                ("label.png", png.getvalue()),
                ("json", json.dumps({"instances": instances}).encode()),
            ):
                member = tarfile.TarInfo(f"s{i:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set on disk."""
    return write_data(tmp_path_factory.mktemp("data"))


def tiny():
    """The same tiny model every time."""
    torch.manual_seed(0)
    return OCDiT(ModelConfig.preset("tiny", train_objects=3)).eval()


def source(data, model, cache=None, **changes):
    """Samples of the small data set."""
    return SampleSource(
        SceneShards(data / "scenes" / "train"),
        ObjectStore(data / "objects" / "train", model, cache),
        SampleSettings(**{**SETTINGS.__dict__, **changes}),
        seed=3,
    )


def test_sample_is_a_function_of_its_index(data):
    first, second = source(data, tiny()), source(data, tiny())
    for index in (0, 5, 40):
        for a, b in zip(first.sample(index), second.sample(index)):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert not torch.equal(first.sample(0)[0], first.sample(len(first.scenes))[0])  # the next epoch sees another view


def test_epoch_visits_every_scene_once(data):
    samples = source(data, tiny())
    count = len(samples.scenes)
    assert sorted(samples.scene_of(i) for i in range(count)) == list(range(count))
    assert [samples.scene_of(i) for i in range(count)] != [samples.scene_of(i) for i in range(count, 2 * count)]


def test_masks_belong_to_their_objects(data):
    samples = source(data, tiny(), zoom=0.0, jitter=False)
    colours = {k: samples.objects.folder / f"{k}.npz" for k in samples.objects.keys}
    colours = {k: np.load(p)["images"][0, 32, 32].astype(float) for k, p in colours.items()}
    checked = 0
    for index in range(24):
        image, masks, keys = samples.sample(index)
        assert len(set(keys)) == 3
        for mask, key in zip(masks, keys):
            if mask.sum() > 150:
                seen = image.permute(1, 2, 0)[mask > 0].median(0).values.numpy() * 255
                assert np.abs(seen - colours[key]).max() < 30
                checked += 1
    assert checked > 15


def test_absent_objects_are_not_in_the_scene(data):
    samples = source(data, tiny(), absent=(0.0, 0.0, 1.0))
    for index in range(20):
        _, masks, keys = samples.sample(index)
        in_scene = {i["object"] for i in samples.scenes[samples.scene_of(index)][2]}
        empty = [k for k, m in zip(keys, masks) if not m.any()]
        assert len(empty) >= 2 or len(in_scene) >= 5
        assert sum(k not in in_scene for k in empty) >= min(2, 6 - len(in_scene))


def test_copies_that_touch_are_kept_apart_by_a_gap():
    label = np.zeros((60, 100), np.uint8)
    label[5:45, 10:50], label[5:45, 50:90], label[45:55, 10:50], label[0:5, 10:90] = 1, 2, 3, 4
    union = np.isin(label, [1, 2])
    assert (keep_apart(label, [1, 2], 0) == union).all()
    assert (keep_apart(label, [1], 4) == (label == 1)).all()
    assert (keep_apart(label, [3, 4], 4) == np.isin(label, [3, 4])).all()  # they do not touch
    wanted = union.copy()
    wanted[:, 46:54] = False  # four pixels of each; not where they touch other objects
    assert (keep_apart(label, [1, 2], 4) == wanted).all()
    label[5:45, 62:90] = 0  # an instance of 12 x 40 pixels, 22 a side
    wanted = np.isin(label, [1, 2])
    wanted[:, 47:53] = False
    assert (keep_apart(label, [1, 2], 4) == wanted).all()


def test_patches_with_a_narrow_gap_or_hole_are_found():
    masks = torch.zeros(2, 2, 64, 96)
    masks[0, 1, 10:50, 10:46], masks[0, 1, 10:50, 52:90] = 1, 1  # six pixels apart, across two columns of patches
    masks[1, 0, 0:30, 0:40], masks[1, 0, 0:30, 52:96] = 1, 1  # twelve
    masks[1, 1] = 1
    masks[1, 1, 20:25, 20:25], masks[1, 1, 33, 40], masks[1, 1, 40:60, 70:90] = 0, 0, 0  # too small, too wide
    wanted = torch.zeros(2, 2, 4, 6)
    wanted[0, 1, :3, 2:4] = wanted[1, 1, 1, 1] = 1
    found = gap_tokens(masks)
    assert torch.equal(found[0, 1, 1:3], wanted[0, 1, 1:3]) and torch.equal(found[1], wanted[1])
    assert not found[0, 0].any() and not found[0, 1, :, [0, 1, 4, 5]].any()


def test_patches_with_a_gap_weigh_more(data):
    torch.manual_seed(0)
    model = tiny()
    samples = source(data, model)
    batch = samples.batch([0, 1]).to("cpu")
    sigma, noise = torch.tensor([0.5, 2.0]), torch.randn(2, 3, model.config.latent_channels, 4, 4)
    masks = torch.zeros_like(batch.masks)
    masks[0, 0, 8:50], masks[0, 0, :, 40:] = 1, 0
    batch = dataclasses.replace(batch, masks=masks)
    plain, weighted = (float(TrainingLoss(model, gap_weight=weight)(batch, sigma, noise)) for weight in (0.0, 5.0))
    assert plain == pytest.approx(weighted)  # no gap, no weight
    masks[0, 0, :, 20:24] = 0
    plain, one, two = (float(TrainingLoss(model, gap_weight=weight)(batch, sigma, noise)) for weight in (0.0, 1.0, 2.0))
    assert plain < one < two and two - one == pytest.approx(one - plain, rel=1e-3)


def test_masks_of_copies_have_a_gap_where_it_is_asked_for(data):
    plain, apart = source(data, tiny(), zoom=0.0), source(data, tiny(), zoom=0.0, gap=3)  # some scenes repeat a disc
    narrower = 0
    for index in range(40):
        (image, masks, keys), (same, gapped, also) = plain.sample(index), apart.sample(index)
        assert torch.equal(image, same) and keys == also
        for key, mask, one in zip(keys, masks, gapped):
            found = apart.scenes[apart.scene_of(index)][2]
            copies = sum(instance["object"] == key for instance in found)
            assert torch.equal(mask, one) if copies < 2 else bool((one <= mask).all())
            narrower += int((one < mask).any())
    assert narrower > 5


def test_objects_are_asked_for_in_the_box_of_one_instance(data):
    plain, asked = source(data, tiny(), zoom=1.0), source(data, tiny(), zoom=1.0, prompt=0.7)
    boxes = alone = empty = 0
    for index in range(80):
        _, masks, _, boxes_of, unions = asked._draw(index)
        given = ~boxes_of.isnan().any(-1)
        assert given.sum() <= 1
        for mask, union, box, one in zip(masks, unions, boxes_of, given):
            if not one:
                assert torch.equal(mask, union)
                continue
            assert bool((mask <= union).all())
            boxes, alone, empty = boxes + 1, alone + int((mask < union).any()), empty + int(not mask.any())
            if mask.any():
                rows, columns = mask.any(1).nonzero()[:, 0] / 64, mask.any(0).nonzero()[:, 0] / 64
                middle = torch.stack([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
                assert bool((box[:2] < middle).all() and (middle < box[2:]).all())
    assert 0.4 * 80 < boxes < 0.85 * 80 and alone and empty
    assert all(torch.equal(a, b) for a, b in zip(plain._draw(3)[1:2], plain._draw(3)[4:]))
    batch = asked.batch([0, 1]).to("cpu")
    assert batch.boxes.shape == (2, 3, 4) and batch.unions.shape == batch.masks.shape
    assert plain.batch([0, 1]).boxes is None
    assert torch.equal(batch.everything, batch.unions)
    assert torch.equal(plain.batch([0]).everything, plain.batch([0]).masks)


def test_a_hint_means_the_whole_instance_that_lies_there(data):
    label = np.zeros((40, 80), np.uint8)
    label[10:30, 4:40], label[10:30, 40:70], label[2:6, 2:6] = 1, 2, 3
    for numbers, answers in (([1, 2, 3], {1, 2}), ([1, 3], {1})):
        seen = set()
        for seed in range(60):
            box, number = hint_of(label, numbers, 1, np.random.default_rng(seed))
            x, y = (box[:2] + box[2:]) / 2 * (80, 40)
            assert number in answers and label[int(y), int(x)] == number
            seen.add((number, box[2] - box[0] > 0.45))
        assert {number for number, _ in seen} == answers
    box, number = hint_of(label[:3, :3], [3], 3, np.random.default_rng(0))
    assert number == 3 and (box[:2] < box[2:]).all(), "a part of one pixel has no ends"
    hinted = source(data, tiny(), zoom=1.0, prompt=1.0, hints=1.0)
    smaller = 0
    for index in range(40):
        _, masks, _, boxes, _ = hinted._draw(index)
        for mask, box in zip(masks, boxes):
            if mask.any() and not box.isnan().any():
                columns, rows = mask.any(0).nonzero()[:, 0], mask.any(1).nonzero()[:, 0]
                area = float((columns.max() - columns.min() + 1) * (rows.max() - rows.min() + 1))
                smaller += float((box[2:] - box[:2]).prod()) * mask.numel() < 0.75 * area
    assert smaller > 10


def test_boxes_are_refused_without_a_network_that_takes_them(data, tmp_path, monkeypatch):
    save_checkpoint(tiny(), tmp_path / "start.safetensors", {})
    words = ["--init", str(tmp_path / "start.safetensors"), "--data", str(data), "--run", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["ocdit", "train", "denoiser", *words, "--time-budget", "1", "--prompt", "0.5"])
    with pytest.raises(SystemExit, match="add --set box_prompt=true"):
        command.main()
    monkeypatch.setattr(sys, "argv", ["ocdit", "train", "denoiser", *words, "--time-budget", "1", "--hints", "0.5"])
    with pytest.raises(SystemExit, match="give --prompt, too"):
        command.main()


def test_descriptors_learn_from_all_copies_while_a_box_asks_for_one(data):
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset("tiny", train_objects=3, box_prompt=True)).eval()
    batch = source(data, model, zoom=1.0, prompt=1.0).batch([0, 1, 2, 3]).to("cpu")
    sigma, noise = torch.full((4,), 2.0), torch.randn(4, 3, model.config.latent_channels, 4, 4)
    loss = TrainingLoss(model, matching=1.0)
    other = dataclasses.replace(batch, unions=torch.zeros_like(batch.unions))
    assert float(loss(batch, sigma, noise)) != float(loss(other, sigma, noise))
    alone = TrainingLoss(model)
    assert float(alone(batch, sigma, noise)) == float(alone(other, sigma, noise))


def test_the_instance_of_a_box_is_the_one_that_it_overlaps_most():
    label = np.zeros((40, 80), np.uint8)
    label[10:30, 10:40], label[10:30, 40:70] = 1, 2
    for number, columns in ((1, (10, 40)), (2, (40, 70))):
        box = np.array([columns[0] / 80, 0.2, columns[1] / 80, 0.8], np.float32)
        assert (instance_in(label, [1, 2], box) == (label == number)).all()
        assert not instance_in(label, [3 - number], box).any()
    assert not instance_in(label, [1, 2], np.array([0.0, 0.9, 1.0, 1.0], np.float32)).any()
    rng = np.random.default_rng(0)
    rough = np.array([rough_box(label == 1, rng) for _ in range(400)])
    assert np.abs(np.median(rough, 0) - [10 / 80, 10 / 40, 40 / 80, 30 / 40]).max() < 0.02
    assert (rough[:, :2] <= rough[:, 2:]).all() and 0.02 < rough[:, 0].std() < 0.1


@pytest.fixture(scope="module")
def more_objects(tmp_path_factory):
    """The same scenes with a store of eighteen objects."""
    return write_data(tmp_path_factory.mktemp("more"), objects=18)


def in_view(samples, index):
    """Objects with enough pixels in the view of a sample: what is asked for when there is room for all of them."""
    settings = dataclasses.replace(samples.settings, objects=6, absent=(1.0,), unasked=0.0, resembling=0.0)
    _, masks, keys = SampleSource(samples.scenes, samples.objects, settings, samples.seed).sample(index)
    return {k for k, m in zip(keys, masks) if m.any()}


def test_queries_may_leave_out_what_is_in_view(more_objects):
    samples = source(more_objects, tiny(), unasked=1.0, absent=(1.0,), objects=6)
    shares = []
    for index in range(60):
        _, masks, keys = samples.sample(index)
        assert len(set(keys)) == 6
        view = in_view(samples, index)
        asked = {k for k, m in zip(keys, masks) if m.any()}
        assert asked <= view
        in_scene = {i["object"] for i in samples.scenes[samples.scene_of(index)][2]}
        assert not (set(keys) - asked) & in_scene  # what is left out is not asked for by its name
        shares.append(len(asked) / max(len(view), 1))
    assert sum(s == 0 for s in shares) >= 5
    assert sum(s == 1 for s in shares) >= 5
    assert 0.3 < np.mean(shares) < 0.7
    plain = source(more_objects, tiny(), absent=(1.0,), objects=6)
    for index in range(20):
        _, masks, keys = plain.sample(index)
        assert {k for k, m in zip(keys, masks) if m.any()} == in_view(plain, index)


def test_absent_objects_may_resemble_what_is_in_view(more_objects):
    samples = source(more_objects, tiny(), look_alike=0.0, resembling=1.0, absent=(0.0, 1.0))
    store = samples.objects
    # Each object of the scenes has two that resemble it, at cosines of 0.8 and 0.6 of its own direction, and none else.
    directions = torch.eye(18)
    for number in range(6):
        for other, cosine in ((6 + number, 0.8), (12 + number, 0.6)):
            directions[other] = cosine * directions[number] + (1 - cosine**2) ** 0.5 * directions[other]
    for number in range(18):
        maps = directions[number][None, :, None, None].expand(4, 18, 4, 4).half()
        store.memory[f"disc{number}"] = TemplateFeatures((maps,), torch.ones(4, 4, 4).half())
    assert store.resembling("disc3") == ["disc9", "disc15"]
    checked = 0
    for index in range(30):
        _, masks, keys = samples.sample(index)
        for key in (k for k, m in zip(keys, masks) if not m.any()):
            assert any(key in store.resembling(k) for k in in_view(samples, index))
            checked += 1
    assert checked >= 30


def test_the_same_object_in_another_size_is_no_answer_to_one_that_was_left_out(more_objects):
    samples = source(more_objects, tiny(), unasked=1.0, look_alike=1.0, absent=(1.0,))
    store = samples.objects
    directions = torch.eye(18)
    for number in range(18):
        maps = directions[number // 2][None, :, None, None].expand(4, 18, 4, 4).half()  # pairs look the same
        store.memory[f"disc{number}"] = TemplateFeatures((maps,), torch.ones(4, 4, 4).half())
    assert store.look_the_same("disc4", "disc5") and not store.look_the_same("disc3", "disc4")
    assert "disc5" not in store.resembling("disc4")
    for index in range(40):
        _, masks, keys = samples.sample(index)
        left_out = in_view(samples, index) - set(keys)
        for key in (k for k, m in zip(keys, masks) if not m.any()):
            assert not any(store.look_the_same(key, other) for other in left_out)


def test_several_queries_share_the_instances_of_an_object(data):
    one = source(data, tiny(), zoom=0.0)
    three = source(data, tiny(), zoom=0.0, queries_per_object=3)
    filled = 0
    for index in range(20):
        union, parts = one.sample(index)[1], three.sample(index)[1].view(3, 3, 64, 64)
        assert (parts.sum(1) <= 1).all()  # instances do not overlap
        filled = max(filled, int(parts.flatten(2).any(-1).sum(1).max()))
        if one.sample(index)[2] == three.sample(index)[2]:
            assert (parts.sum(1) <= union).all()
    assert filled >= 2


def test_features_from_the_cache_equal_fresh_ones(data, tmp_path):
    model = tiny()
    fresh = ObjectStore(data / "objects" / "train", model, tmp_path).features("disc1")
    again = ObjectStore(data / "objects" / "train", model, tmp_path).features("disc1")
    assert list(tmp_path.glob("*.safetensors"))
    for a, b in zip((*fresh.maps, fresh.coverage), (*again.maps, again.coverage)):
        assert torch.equal(a, b)


def mixed(data, model, share=0.5):
    """Enlarged crops with three objects, and large views with four of which any number may be absent."""
    large = SampleSettings.coarse(96, 4, min_pixels=20, batch_share=0.5)
    crops = source(data, model)
    return MixedSource([(crops, 1 - share), (SampleSource(crops.scenes, crops.objects, large, seed=4), share)], seed=3)


def test_large_views_hold_any_number_of_absent_objects(data):
    large = mixed(data, tiny(), 1.0).at_step(0)
    assert large.settings.zoom == 0 and sum(large.settings.absent) == pytest.approx(1)
    present = [int(large.sample(i)[1].flatten(1).any(-1).sum()) for i in range(40)]
    assert min(present) <= 1 and max(present) >= 3
    assert large.sample(0)[0].shape == (3, 96, 96) and large.sample(0)[1].shape == (4, 96, 96)


def test_half_of_the_large_views_are_enlarged_where_it_is_asked_for(data):
    crops = source(data, tiny())
    sides = {}
    for growth in (1.0, 2.0):
        drawn = SampleSource(crops.scenes, crops.objects, SampleSettings.coarse(64, 4, growth=growth), seed=4)
        width = drawn.scenes[0][0].shape[1]
        places = np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (drawn.scenes[0][0].shape[0], 1, 3))
        label = np.ones(places.shape[:2], np.uint8)
        views = [drawn._crop(places, label, np.random.default_rng(i))[0] for i in range(60)]
        sides[growth] = np.array([int(view[..., 0].max()) - int(view[..., 0].min()) + 1 for view in views])
    own = 64
    assert sides[1.0].min() >= own - 2
    assert sides[2.0].min() < 0.65 * own and 0.35 < (sides[2.0] < own - 4).mean() < 0.65


def test_views_for_one_object_show_it_or_not(data):
    several = source(data, tiny(), min_pixels=1)
    alone = SampleSource(several.scenes, several.objects, several.settings.single(0.5), several.seed)
    shown = []
    for index in range(60):
        _, masks, keys = alone.sample(index)
        in_scene = {i["object"] for i in alone.scenes[alone.scene_of(index)][2]}
        assert len(keys) == len(masks) == 1
        assert bool(masks.any()) == (keys[0] in in_scene)
        shown.append(bool(masks.any()))
    assert 0.3 < np.mean(shown) < 0.7


def test_a_store_with_too_few_objects_is_named(data):
    crops = source(data, tiny(), objects=7)
    with pytest.raises(ValueError, match="has 6 objects, too few for queries of 7"):
        crops.sample(0)


def test_mixture_keeps_its_shares_and_trains_with_both_sizes(data, tmp_path):
    samples = mixed(data, tiny(), 0.25)
    again = mixed(data, tiny(), 0.25)
    kinds = [samples.at_step(i).settings.size for i in range(400)]
    assert kinds == [again.at_step(i).settings.size for i in range(400)]
    assert 0.18 < np.mean([k == 96 for k in kinds]) < 0.32
    with pytest.raises(ValueError, match="share above 0"):
        MixedSource([(samples.kinds[0], 0.0)])
    trainer = Trainer(tiny(), samples, tmp_path, TrainerSettings(steps=12, batch_size=4, warmup=2))
    for _ in range(12):
        assert np.isfinite(trainer.train_step())
    assert trainer.views == sum(2 if k == 96 else 4 for k in kinds[:12]) < 48


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="no scene shards"):
        SceneShards(tmp_path)
    with pytest.raises(ValueError, match="no object index"):
        ObjectStore(tmp_path, tiny())


def train(data, folder, steps, until=None):
    """Train a tiny model; `until` cuts the run there, as a kill after a checkpoint would."""
    trainer = Trainer(tiny(), source(data, tiny()), folder, TrainerSettings(steps=steps, batch_size=2, warmup=2))
    while trainer.step < (until or steps):
        trainer.train_step()
    trainer.save()
    return trainer


def test_resume_is_exact(data, tmp_path):
    whole = train(data, tmp_path / "whole", 9)
    for until in (2, 3, 7):
        train(data, tmp_path / "cut", 9, until)
        (tmp_path / "cut" / "state.tmp").write_bytes(b"half a checkpoint")  # killed in the middle of the next write
    cut = train(data, tmp_path / "cut", 9)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[name]), name
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, cut.ema.state_dict()[name]), name


KILLED = """
import io, json, os, pathlib, random, resource, signal, sys
sys.path.insert(0, {tests!r})
import torch
import torch._dynamo  # or every child imports it on its first update
import torch.utils.tensorboard
torch.set_num_threads(1)
from test_train_trainer import Trainer, TrainerSettings, source, tiny

data, root = pathlib.Path({data!r}), pathlib.Path({root!r})
model = tiny()
samples = source(data, model, root / "features")
for key in samples.objects.keys:
    samples.objects.features(key)

def processor():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def train(folder, every, prepare=lambda: None):
    # A process that trains from whatever it finds; how it ended.
    child = os.fork()
    if child == 0:
        settings = TrainerSettings(steps=30, batch_size=1, warmup=2, checkpoint_every=every)
        trainer = Trainer(model, samples, folder, settings)
        prepare()
        trainer.run(quiet=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def anywhere(seconds):
    # Nothing handles this signal: it ends the process between any two instructions. Processor time, so that a busy
    # machine changes nothing.
    return lambda: signal.setitimer(signal.ITIMER_PROF, seconds)

def torn(number, share):
    # The state is cut in the middle, as by a loss of power, in the write of this number.
    save = torch.save
    def write(state, file):
        write.count += 1
        whole = io.BytesIO()
        save(state, whole)
        if write.count == number:
            file.write(whole.getvalue()[: int(share * len(whole.getvalue()))])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(whole.getvalue())
    write.count = 0
    def prepare():
        torch.save = write
    return prepare

assert train(root / "whole", 1e9) == 0
step = processor() / 30
random.seed(5)
ends, folder = [], root / "cut"
for number in range(20):
    if number % 2:
        ends.append(train(folder, 0.0, torn(random.randint(1, 2), random.random())))
        assert (folder / "state.tmp").exists()
    else:
        ends.append(train(folder, 0.0, anywhere(random.uniform(0.01, 2 * step))))
reached = torch.load(folder / "state.pt", weights_only=True)["step"]
assert train(folder, 1e9) == 0
(root / "found.json").write_text(json.dumps(dict(ends=ends, reached=reached)))
"""


def test_a_run_killed_twenty_times_ends_with_the_weights_of_an_unbroken_one(data, tmp_path):
    """At random moments, every other time in the middle of the write of a checkpoint."""
    script = KILLED.format(tests=str(pathlib_test_dir()), data=str(data), root=str(tmp_path))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=280)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ends"] == [-signal.SIGPROF, -signal.SIGKILL] * 10 and 2 <= found["reached"] < 30
    whole, cut = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 30 and whole["views"] == cut["views"]
    assert not torch.equal(whole["model"]["blocks.0.mlp.0.weight"], tiny().state_dict()["blocks.0.mlp.0.weight"])
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, cut[part][name]), (part, name)
    for number, moments in whole["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, cut["optimizer"]["state"][number][name]), (number, name)


def test_training_lowers_the_loss_and_leaves_backbone_and_vae_alone(data, tmp_path):
    start = tiny()
    trainer = Trainer(tiny(), source(data, tiny()), tmp_path, TrainerSettings(steps=40, batch_size=4, warmup=5))
    losses = [trainer.train_step() for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    for name, tensor in start.state_dict().items():
        if name.startswith(("backbone", "vae")):
            assert torch.equal(tensor, trainer.model.state_dict()[name]), name


def test_another_configuration_does_not_resume(data, tmp_path):
    train(data, tmp_path, 1)
    other = OCDiT(ModelConfig.preset("tiny", depth=1))
    with pytest.raises(ValueError, match="another model configuration"):
        Trainer(other, source(data, other), tmp_path, TrainerSettings(steps=2, batch_size=2))


def test_ema_checkpoint_loads(data, tmp_path):
    trainer = train(data, tmp_path, 2)
    model = load_checkpoint(tmp_path / "ema.safetensors")
    assert model.provenance["steps"] == 2
    for name, tensor in trainer.ema.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    deeper = start_model(tmp_path / "ema.safetensors", {"depth": 3})
    assert torch.equal(deeper.blocks[0].mlp[0].weight, model.blocks[0].mlp[0].weight) and len(deeper.blocks) == 3
    # What the weights went through stays with them.
    onward = Trainer(deeper, source(data, deeper), tmp_path / "onward", TrainerSettings(steps=1, batch_size=2))
    onward.save()
    assert load_checkpoint(tmp_path / "onward" / "ema.safetensors").provenance["started_from"] == model.provenance


def test_a_deeper_model_starts_as_what_it_was(tmp_path):
    save_checkpoint(live_model(), tmp_path / "plain.safetensors", {})
    given = load_checkpoint(tmp_path / "plain.safetensors").eval()
    depth = given.config.depth
    grown = start_model(tmp_path / "plain.safetensors", {"depth": depth + 1}).eval()
    assert len(grown.blocks) == depth + 1
    query = random_query(given, batch=2)
    expected = denoise(given, query, 3.0)
    assert torch.equal(denoise(grown, query, 3.0), expected) and float(expected.std()) > 1e-3
    # a copy of the last block, which learns: its gates are closed and nothing else is
    new, last = grown.blocks[depth], given.blocks[depth - 1]
    assert torch.equal(new.mlp[0].weight, last.mlp[0].weight)
    rows = new.modulation.linear.weight.unflatten(0, (9, -1))
    assert not rows[2::3].any() and torch.equal(rows[0], last.modulation.linear.weight.unflatten(0, (9, -1))[0])
    assert last.modulation.linear.weight.unflatten(0, (9, -1))[2::3].any()  # those of the one that was there stay open
    conditioning = grown.condition(query.templates, query.diameters, query.slots)
    grown.denoise(query.latents, torch.tensor([3.0]), query.image, conditioning).square().sum().backward()
    assert float(new.modulation.linear.weight.grad.abs().max()) > 0


def test_settings_need_an_end():
    with pytest.raises(ValueError, match="number of steps or a time budget"):
        Trainer(tiny(), None, ".", TrainerSettings())


def test_schedule_warms_up_and_decays(data, tmp_path):
    settings = TrainerSettings(steps=100, warmup=10, learning_rate=1.0, decay=0.5)
    trainer = Trainer(tiny(), source(data, tiny()), tmp_path, settings)
    rates = []
    for trainer.step in range(101):
        rates.append(trainer.learning_rate())
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42 and rates[100] == 0.0
    assert all(a >= b for a, b in zip(rates[50:], rates[51:]))


def test_stratified_sigma_has_the_right_distribution():
    generator = torch.Generator().manual_seed(0)
    logs = torch.cat([stratified_sigma(0, 4, 2.0, 1.6, generator).log() for _ in range(2000)])
    assert logs.mean() == pytest.approx(2.0, abs=0.02) and logs.std() == pytest.approx(1.6, abs=0.03)
    one = stratified_sigma(0, 4, 2.0, 1.6, generator).log().sort().values  # one from each quarter
    assert one[0] < 2 - 0.674 * 1.6 < one[1] < 2 < one[2] < 2 + 0.674 * 1.6 < one[3]


def test_two_processes_follow_one(data, tmp_path):
    """The global batch is the same, so only the random choice of template tokens and windows may differ."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys, json, pathlib
sys.path.insert(0, {str(pathlib_test_dir())!r})
import torch
torch.set_num_threads(1)
from test_train_trainer import SampleSource, Trainer, TrainerSettings, source, tiny
data = pathlib.Path({str(data)!r})
trainer = Trainer(tiny(), source(data, tiny()), sys.argv[1], TrainerSettings(steps=8, batch_size=4, warmup=2))
losses = [float(trainer.accelerator.gather(torch.tensor([trainer.train_step()])).mean()) for _ in range(8)]
if trainer.accelerator.is_main_process:
    count = trainer.accelerator.num_processes
    pathlib.Path(sys.argv[1], 'losses.json').write_text(json.dumps([count, losses]))
trainer.leave()
""")
    curves = []
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        ended = subprocess.run([*launcher, str(script), str(folder)], timeout=600, capture_output=True, text=True)
        assert not ended.returncode, ended.stderr[-3000:]
        count, losses = json.loads((folder / "losses.json").read_text())
        assert count == processes  # else each trains alone, and the curves agree for nothing
        curves.append(losses)
    assert np.allclose(curves[0], curves[1], rtol=0.05, atol=0.005)  # some losses are near zero
    assert curves[0][-1] < curves[0][0]


def test_processes_whose_clocks_differ_end_at_the_same_step(data, tmp_path):
    """Each saw its own time run out, one step apart now and then, and the others waited for it without end."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys, os, pathlib, time, types
sys.path.insert(0, {str(pathlib_test_dir())!r})
import torch
torch.set_num_threads(1)
import ocdit_ros.train.trainer as module
from test_train_trainer import Trainer, TrainerSettings, source, tiny
fast = 1 + 3 * int(os.environ['RANK'])
module.time = types.SimpleNamespace(monotonic=lambda: fast * time.monotonic(), process_time=time.process_time)
data = pathlib.Path({str(data)!r})
settings = TrainerSettings(time_budget=3.0, batch_size=4, warmup=2, validate_every=1e9)
held_out = [source(data, tiny(), zoom=0.0).batch([0, 1])]
trainer = Trainer(tiny(), source(data, tiny()), sys.argv[1], settings, held_out)
trainer.run(quiet=True)
pathlib.Path(sys.argv[1], f"steps-{{os.environ['RANK']}}").write_text(f"{{trainer.step}} {{trainer.learning_rate()}}")
trainer.leave()
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run([*launcher, str(script), str(tmp_path)], timeout=300, capture_output=True, text=True)
    assert not ended.returncode, ended.stderr[-3000:]
    first, second = ((tmp_path / f"steps-{rank}").read_text() for rank in range(2))
    assert first == second and int(first.split()[0]) > 1


def test_the_mean_of_checkpoints_is_exported(tmp_path, monkeypatch):
    models, config = [], tiny().config
    for number in range(3):
        torch.manual_seed(number)
        models.append(OCDiT(config))
        with torch.no_grad():
            models[-1].final[-1].weight.normal_()  # starts at zero
            next(b for b in models[-1].buffers() if b.is_floating_point()).add_(number)
        save_checkpoint(models[-1], tmp_path / f"{number}.safetensors", {"number": number})
    others = [str(tmp_path / f"{number}.safetensors") for number in (1, 2)]
    words = ["train", "export", str(tmp_path / "0.safetensors"), str(tmp_path / "mean.safetensors")]
    monkeypatch.setattr(sys, "argv", ["ocdit", *words, "--mean-with", *others])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    mean = load_checkpoint(tmp_path / "mean.safetensors")
    assert mean.provenance["number"] == 0
    states = [model.state_dict() for model in models]
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            wanted = torch.stack([state[name] for state in states]).mean(0)
            assert torch.allclose(value, wanted, rtol=1e-3, atol=1e-3), name  # half precision
        else:
            assert torch.equal(value, states[0][name]), name
    assert not torch.allclose(mean.final[-1].weight, models[0].final[-1].weight, atol=0.1)
    wide = OCDiT(dataclasses.replace(config, width=2 * config.width))
    with pytest.raises(ValueError, match="networks of one shape"):
        mean_of(models[0], [wide])


def test_scores_of_other_weights_are_exported_only_when_asked_for(tmp_path, monkeypatch, capsys):
    score = {"evidence": list(Evidence.names()), "weights": [0.5] * len(Evidence.names()), "offset": 1.0}
    save_checkpoint(tiny(), tmp_path / "fitted.safetensors", {"score": score, "calibration": {"x": 1}, "steps": 3})
    save_checkpoint(tiny(), tmp_path / "new.safetensors", {"steps": 5, "started_from": {"score": score}})

    def export(*words):
        monkeypatch.setattr(sys, "argv", ["ocdit", "train", "export", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, "".join(capsys.readouterr())

    new, out, fitted = (tmp_path / f"{name}.safetensors" for name in ("new", "out", "fitted"))
    code, said = export(new, out)
    assert not code and "has no fitted scores" in said
    assert "score" not in load_checkpoint(out).provenance
    code, said = export(new, out, "--scores-of", fitted)
    assert not code and "no fitted scores" not in said
    assert load_checkpoint(out).provenance == {
        "score": score, "calibration": {"x": 1}, "steps": 5, "started_from": {"score": score},
    }  # fmt: skip
    newer = {**score, "offset": 2.0}
    (tmp_path / "scores.json").write_text(json.dumps({"score": newer}))
    assert not export(new, out, "--scores-of", fitted, "--provenance", tmp_path / "scores.json")[0]
    assert load_checkpoint(out).provenance["score"] == newer
    out.unlink()
    code, said = export(new, out, "--scores-of", new)
    assert "has no fitted scores; fit some" in f"{code}{said}" and not out.exists()


def test_a_mean_keeps_the_box_prompt_that_others_lack():
    before = tiny()
    torch.manual_seed(1)
    after = OCDiT(dataclasses.replace(before.config, box_prompt=True))
    mean, states = mean_of(after, [before]).state_dict(), (after.state_dict(), before.state_dict())
    assert torch.equal(mean["box_prompt.mlp.0.weight"], states[0]["box_prompt.mlp.0.weight"])
    name = "latent_embedding.weight"
    assert torch.allclose(mean[name], (states[0][name] + states[1][name]) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="networks of one shape"):
        mean_of(before, [after])


def pathlib_test_dir():
    """Folder of this file, for the processes that import it."""
    import pathlib

    return pathlib.Path(__file__).parent


def test_average_precision_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6])
    iou = np.array([0.9, 0.2, 0.8, 0.0])
    present = np.array([True, False, True, True])
    # hits at ranks 1 and 3 of 3 objects: precision 1 up to recall 1/3, 2/3 up to recall 2/3, then 0; 101 points
    assert average_precision(score, iou, present, 0.5) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert average_precision(score, iou, present, 0.85) == pytest.approx(34 / 101)


def test_score_prefers_sure_and_agreed_masks():
    sure = torch.zeros(4, 8, 8)
    sure[:, 2:6, 2:6] = 0.95
    torn = torch.zeros(4, 8, 8)
    for i in range(4):
        torn[i, i : i + 4, 2:6] = 0.95
    empty = torch.full((4, 8, 8), 0.05)
    _, scores = score_queries(torch.stack([sure, torn, empty]))
    assert scores[0] > scores[1] > scores[2] and scores[0] == pytest.approx(0.975)


def test_validation_and_noise_curve(data):
    model = tiny()
    batches = [source(data, model, zoom=0.0).batch([0, 1])]
    result = validate(model, batches, SamplerSettings(1, ensemble=2))
    assert 0 <= result.mean_iou <= 1 and 0 <= result.ap <= result.ap_50 <= 1
    assert not model.training
    curve = noise_curve(model, batches)
    assert set(curve) == {0.2, 1.0, 2.0, 80.0}


def test_vae_learns_masks(data):
    scenes = SceneShards(data / "scenes" / "train")
    model = tiny()
    held_out = draw_masks(scenes, 16, 64, np.random.default_rng(9), empty=0)
    before = reconstruction_iou(model.vae, held_out).mean()
    result = train_vae(model.vae, scenes, scenes, steps=250, size=64, batch=16)
    assert result["iou"] > max(0.6, float(before) + 0.2)
    latents = encode_masks(model, held_out[None, :, 0])
    assert latents.shape[:2] == (1, 16) and latents.std() > 0.1


def test_sample_pictures_show_templates_targets_and_masks():
    """Template, target and confidence of each object stand under one another, in its colour."""
    image = np.full((64, 64, 3), 200, np.uint8)
    templates = [np.full((32, 32, 3), 50 * (k + 1), np.uint8) for k in range(3)]
    targets = np.zeros((3, 64, 64), bool)
    targets[0, :32], targets[1, 32:] = True, True  # the third is absent
    confidence = np.zeros((3, 64, 64), np.float32)
    confidence[0, :16] = 1.0  # half of it found
    sheet = strip(image, templates, targets, confidence, np.array([0.9, 0.1, 0.2]), side=64)
    assert sheet.shape == (192, 256, 3) and sheet.dtype == np.uint8
    cells = sheet.reshape(3, 64, 4, 64, 3).swapaxes(1, 2)
    assert (cells[0, 0, :40] == 200).all()
    for k in range(3):
        frame = cells[0, k + 1, 0, 32].astype(int)
        assert (cells[0, k + 1, 10, 32] == 50 * (k + 1)).all()
        hue = np.argmax(frame)
        for row, shares in ((1, targets[k]), (2, confidence[k] > 0.5)):
            cell = cells[row, k + 1].astype(int)
            coloured = cell[..., hue] > cell.min(-1) + 60
            assert (coloured[:40] == shares[:40]).all()  # below it stands the text
    assert (cells[1, 0, 5, 5] != cells[1, 0, 35, 5]).any()  # two targets in two colours


def test_reports_hold_sample_pictures(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tiny()
    held_out = source(data, model, zoom=0.0, jitter=False)
    settings = TrainerSettings(steps=2, batch_size=2, warmup=1)
    trainer = Trainer(model, held_out, tmp_path, settings, [held_out.batch([0, 1])], None, held_out.objects)
    trainer.run(quiet=True)
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = log.Images("validation/samples")
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert picture.size == (4 * 128, 2 * 3 * 128 + 4) and event.step == 2
        assert np.asarray(picture).std() > 10
