# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The Segmenter with random weights (does it hold together?) and with an oracle (does it find what is
there?).
"""

import dataclasses

import numpy as np
import pytest
import torch
from segment_oracle import OracleNetwork, position_image, templates

from ocdit_ros.model import ModelConfig, OCDiT, TemplateFeatures, save_checkpoint
from ocdit_ros.segment import Segmenter, SegmentError, SegmenterSettings, weights
from ocdit_ros.segment.correlation import CorrelationSegmenter
from ocdit_ros.segment.network import Network, Output
from ocdit_ros.templates import ObjectSpec, TemplateCache

SMALL = SegmenterSettings(score_threshold=0.0, coarse_size=64, crop_size=32, proposal_threshold=0.0, min_pixels=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset("tiny"))
    with torch.no_grad():  # a fresh network gives the same empty answer everywhere; this one has opinions
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def make(model):
    def make(count, settings=SMALL):
        segmenter = Segmenter(Network(model), settings)
        for number in range(count):
            segmenter.add_templates(templates(f"object {number}"))
        return segmenter

    return make


def texture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(instances, height, width, names):
    covered = np.zeros((height, width), int)
    for instance in instances:
        assert instance.mask.shape == (height, width)
        assert instance.mask.dtype == bool
        assert 0 <= instance.score <= 1
        assert names[instance.object_id - 1] == instance.name
        rows, columns = np.nonzero(instance.mask)
        assert instance.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        covered += instance.mask
    assert covered.max(initial=0) <= 1
    assert [i.score for i in instances] == sorted((i.score for i in instances), reverse=True)


# --------------------------------------------------------------------------- random weights


@pytest.mark.parametrize("size", [(8, 8), (1, 40), (33, 17), (48, 64), (480, 640), (2160, 3840)])
def test_any_image_size(make, size):
    segmenter = make(2)
    check(segmenter.segment(texture(*size)), *size, segmenter.objects)


@pytest.mark.parametrize("count", [1, 2, 9, 33])
def test_any_number_of_objects(make, count):
    """33 is one more than the object encoding has rows."""
    segmenter = make(count, dataclasses.replace(SMALL, group_size=4))
    check(segmenter.segment(texture(48, 64)), 48, 64, segmenter.objects)
    assert {"coarse", "refine", "instances", "total"} <= segmenter.last_timings.keys()


@pytest.mark.parametrize("changes", [
    {}, {"refine": False}, {"ensemble": 2, "augmentations": 3}, {"steps": 3, "solver": "heun"},
    {"refine": False, "ensemble": 2, "augmentations": 2}, {"batch_tokens": 20},
])  # fmt: skip
def test_a_seed_gives_the_same_result(make, changes):
    settings = dataclasses.replace(SMALL, **changes)
    first, second = (make(3, settings).segment(texture(48, 64)) for _ in range(2))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a.name, a.score, a.box) == (b.name, b.score, b.box)
        assert np.array_equal(a.mask, b.mask)


def test_another_seed_gives_other_noise(make):
    segmenter = make(2, dataclasses.replace(SMALL, steps=2))
    first = segmenter.coarse(texture(48, 64)).confidence
    segmenter.settings = dataclasses.replace(segmenter.settings, seed=1)
    assert not np.array_equal(first, segmenter.coarse(texture(48, 64)).confidence)


def test_conditioning_put_together_equals_the_models_own(model):
    network = Network(model)
    known = [network.onboard(f"{n}", 0.1 + n, network.featurize(templates(f"{n}"))) for n in range(3)]
    slots = [2, 7, 31]
    with torch.inference_mode():
        ours = network.condition([known], [slots])
        theirs = model.condition(
            TemplateFeatures.stack([k.features for k in known]), torch.tensor([0.1, 1.1, 2.1]), torch.tensor([slots])
        )
    for a, b in [*zip(ours.keys, theirs.keys, strict=True), *zip(ours.values, theirs.values, strict=True)]:
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.query_encoding, theirs.query_encoding)
    torch.testing.assert_close(ours.correlation_keys, theirs.correlation_keys)
    assert torch.equal(ours.valid, theirs.valid)


def test_objects_come_and_go(make):
    segmenter = make(3)
    image = texture(48, 64)
    before = segmenter.segment(image)
    segmenter.add_templates(templates("late"))
    segmenter.remove_object("late")
    after = segmenter.segment(image)
    assert [(i.name, i.score) for i in before] == [(i.name, i.score) for i in after]
    segmenter.remove_object("object 1")
    assert segmenter.objects == ["object 0", "object 2"]
    check(segmenter.segment(image), 48, 64, segmenter.objects)
    assert {i.name for i in segmenter.segment(image, ["object 2"])} <= {"object 2"}
    for name in ("object 0", "object 2"):
        segmenter.remove_object(name)
    assert segmenter.segment(image) == []
    assert segmenter.segment(image, []) == []


def test_requests_that_cannot_be_served_are_named(make):
    segmenter = make(1)
    with pytest.raises(SegmentError, match="no object 'cup'; known are: object 0"):
        segmenter.remove_object("cup")
    with pytest.raises(SegmentError, match="an object 'object 0' already"):
        segmenter.add_templates(templates("object 0"))
    with pytest.raises(SegmentError, match="no name"):
        segmenter.add_templates(templates(""))
    with pytest.raises(SegmentError, match=r"are \(32, 32, 3\), the weights expect \(64, 64, 3\)"):
        segmenter.add_templates(templates("small", 32))
    with pytest.raises(SegmentError, match="no object to look for"):
        make(0).coarse(texture(8, 8))


@pytest.mark.parametrize("image, message", [
    ([[0]], "is a list"),
    (np.zeros((4, 4, 3), np.float32), "dtype float32; convert it to uint8"),
    (np.zeros((4, 4), np.uint8), r"shape \(4, 4\); give \[H, W, 3\]"),
    (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
    (np.zeros((0, 4, 3), np.uint8), "no pixel"),
])  # fmt: skip
def test_images_that_are_none(make, image, message):
    with pytest.raises(SegmentError, match=message):
        make(1).segment(image)


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps is 0"), ({"score_threshold": float("nan")}, "score_threshold"),
    ({"coarse_size": 100}, "multiple of 16"), ({"augmentations": 9}, r"augmentations is 9, but must lie in 1\.\.8"),
])  # fmt: skip
def test_settings_out_of_range(changes, message):
    with pytest.raises(SegmentError, match=message):
        SegmenterSettings(**changes)


def test_images_need_not_be_contiguous(make):
    segmenter = make(2)
    image = texture(64, 96)
    flipped = segmenter.segment(image[::-1, ::2])
    assert [i.score for i in flipped] == [i.score for i in segmenter.segment(image[::-1, ::2].copy())]


def test_trace_shows_every_step(make):
    segmenter = make(3)
    view, frames = segmenter.trace(texture(48, 64), steps=4)
    assert len(frames) == 4
    assert all(frame.shape == (3, *view.canvas) for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])
    assert make(0).trace(texture(8, 8))[1] == []


def test_correlation_baseline_runs_without_the_network(make, model):
    segmenter = CorrelationSegmenter(Network(model), dataclasses.replace(SMALL, mask_threshold=0.2))
    for number in range(3):
        segmenter.add_templates(templates(f"object {number}"))
    instances = segmenter.segment(texture(96, 128))
    assert instances
    check(instances, 96, 128, segmenter.objects)


# --------------------------------------------------------------------------- weights and cache


def test_a_warm_cache_needs_neither_renderer_nor_backbone(tmp_path, model, monkeypatch):
    mesh = tmp_path / "box.obj"
    mesh.write_text(
        "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
        + "".join(f"f {a} {b} {c}\n" for a, b, c in [(1, 2, 4), (1, 4, 3), (5, 7, 8), (5, 8, 6), (1, 5, 6), (1, 6, 2),
                                                      (3, 4, 8), (3, 8, 7), (1, 3, 7), (1, 7, 5), (2, 6, 8), (2, 8, 4)])
    )  # fmt: skip
    spec, cache = ObjectSpec("box", str(mesh), 0.1), TemplateCache(tmp_path / "cache")
    cold = Segmenter(model, SMALL, cache)
    cold.add_object(spec)
    image = texture(48, 64)
    expected = cold.segment(image)

    def fail(*arguments):
        raise AssertionError("not needed when the cache is warm")

    warm = Segmenter(model, SMALL, cache)
    monkeypatch.setattr(Network, "featurize", fail)
    monkeypatch.setattr("ocdit_ros.templates.cache.render", fail)
    warm.add_object(spec)
    assert [(i.score, i.box) for i in warm.segment(image)] == [(i.score, i.box) for i in expected]


def test_other_backbone_weights_have_another_key(model):
    key = Network(model).feature_key
    parameter = next(model.backbone.parameters())
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter += 1e-3
        assert Network(model).feature_key != key
    finally:
        with torch.no_grad():
            parameter.copy_(before)
    assert Network(model).feature_key == key


def test_default_weights(tmp_path, monkeypatch, model):
    monkeypatch.setattr(weights, "weight_folders", lambda: [tmp_path / "none", tmp_path])
    with pytest.raises(SegmentError, match="give the path of a checkpoint"):
        Segmenter.from_checkpoint()
    save_checkpoint(
        model, tmp_path / "ocdit.safetensors", {"calibration": {"kind": "logistic", "parameters": [2.0, 0.5]}}
    )
    segmenter = Segmenter.from_checkpoint(cache=TemplateCache(tmp_path / "cache"))
    assert segmenter.scorer.calibration.parameters == (2.0, 0.5)


# --------------------------------------------------------------------------- oracle


def mask(*places, height=192, width=256):
    confidence = np.zeros((height, width), np.float32)
    for x, y, w, h in places:
        confidence[y : y + h, x : x + w] = 0.95
    return confidence


def oracle(truth, names=None, queries=1, **changes):
    network = OracleNetwork({name: np.stack(maps) for name, maps in truth.items()}, queries)
    segmenter = Segmenter(network, SegmenterSettings(**{"coarse_size": 128, "crop_size": 128, **changes}))
    for name in names or truth:
        segmenter.add_templates(templates(name))
    return segmenter


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("changes", [{}, {"refine": False}, {"augmentations": 8}, {"ensemble": 2, "augmentations": 4}])
def test_every_object_is_found_where_it_is(changes):
    truth = {"a": mask((20, 30, 50, 40)), "b": mask((150, 100, 30, 60)), "c": mask((90, 10, 12, 12))}
    segmenter = oracle({k: [v] for k, v in truth.items()}, ["a", "gone", "b", "c"], **changes)
    found = {i.name: i for i in segmenter.segment(position_image())}
    assert found.keys() == truth.keys()
    for name, instance in found.items():
        assert iou(instance.mask, truth[name] > 0.5) > (0.85 if changes.get("refine", True) else 0.7)
    assert found["b"].object_id == 3


class Shortsighted(OracleNetwork):
    """Sees nothing smaller than 15 x 15 pixels of a canvas."""

    def run(self, images, rows, slots, image_of_row, targets, sampler, *rest, **more):
        output = super().run(images, rows, slots, image_of_row, targets, sampler, *rest, **more)
        shown = (output.confidence > 0.5).sum((-2, -1), keepdims=True) >= 15**2
        return Output(np.where(shown, output.confidence, 0.0), output.similarity)


def test_tiles_find_what_is_too_small_in_the_whole_image():
    height, width = position_image().shape[:2]
    truth = {"large": [mask((30, 20, 90, 80))], "small": [mask((150, 110, 34, 34))]}
    for tiles, expected in ((1, {"large"}), (2, {"large", "small"})):
        network = Shortsighted({name: np.stack(maps) for name, maps in truth.items()}, 1)
        segmenter = Segmenter(network, SegmenterSettings(coarse_size=96, crop_size=128, tiles=tiles))
        for name in truth:
            segmenter.add_templates(templates(name))
        found = segmenter.segment(position_image())
        assert {i.name for i in found} == expected
        assert all(i.mask.shape == (height, width) and iou(i.mask, truth[i.name][0] > 0.5) > 0.85 for i in found)


def test_refinement_sharpens_small_objects():
    truth = {"small": [mask((101, 53, 13, 11))]}
    image = position_image()
    values = {}
    for refine in (False, True):
        (instance,) = oracle(truth, refine=refine, coarse_size=64).segment(image)
        values[refine] = iou(instance.mask, truth["small"][0] > 0.5)
    assert values[True] > 0.9 > values[False]


def test_separate_copies_are_separate_instances():
    places = [(10, 20, 40, 50), (90, 20, 40, 50), (180, 120, 40, 50)]
    segmenter = oracle({"box": [mask(*places)]})
    found = segmenter.segment(position_image())
    assert sorted(i.box[:2] for i in found) == [(10, 20), (90, 20), (180, 120)]


def test_copies_that_touch_need_several_queries():
    """Three identical boxes side by side: one blob in the union, three instances in the queries."""
    places = [(60, 60, 40, 60), (100, 60, 40, 60), (140, 60, 40, 60)]
    queries = [*(mask(place) for place in places), mask()]
    found = oracle({"box": queries}, queries=4).segment(position_image())
    assert len(found) == 3
    for instance, place in zip(sorted(found, key=lambda i: i.box), places, strict=True):
        assert iou(instance.mask, mask(place) > 0.5) > 0.85
    assert len(oracle({"box": [mask(*places)]}).segment(position_image())) == 1


def test_an_occluder_does_not_cut_an_object_in_two():
    bar, post = mask((40, 80, 170, 30)), mask((110, 40, 30, 120))
    bar[post > 0] = 0
    found = oracle({"bar": [bar], "post": [post]}).segment(position_image())
    assert sorted(i.name for i in found) == ["bar", "post"]


def test_a_false_spot_across_a_pile_leaves_the_object_its_own_crop():
    """What lies between the two is full of other objects; a crop around both would show neither well."""
    pile = mask((70, 40, 110, 110))
    segmenter = oracle({"cup": [mask((20, 60, 40, 40), (190, 100, 40, 30))], "pile": [pile]})
    proposals = segmenter.proposals(segmenter.coarse(position_image()))
    widths = sorted(round(p.box[2]) for p in proposals if segmenter.objects[p.index] == "cup")
    assert len(widths) == 2
    assert widths[-1] <= 44


class Misled(OracleNetwork):
    """Sees in the whole image what `coarse` says, in square crops the truth."""

    def __init__(self, truth, coarse):
        super().__init__(truth)
        self.crops, self.whole = truth, coarse
        self.looks = []  # crops of every run

    def run(self, images, rows, *rest, **named):
        crops = images[0].shape[0] == images[0].shape[1]
        self.truth = self.crops if crops else self.whole
        self.looks += [len(rows)] * crops
        return super().run(images, rows, *rest, **named)


def misled(truth, coarse, **changes):
    """A Segmenter of the object `a` whose coarse pass sees something else than its crops."""
    network = Misled({"a": np.stack([truth])}, {"a": np.stack([coarse])})
    segmenter = Segmenter(network, SegmenterSettings(**{"coarse_size": 128, "crop_size": 128, **changes}))
    segmenter.add_templates(templates("a"))
    return segmenter


def test_an_instance_that_its_crop_cuts_off_is_looked_at_again():
    truth, part = mask((20, 30, 110, 60)), mask((20, 30, 60, 60))
    found = {}
    for reframe in (0.0, 0.7):
        segmenter = misled(truth, part, reframe=reframe)
        (found[reframe],) = segmenter.segment(position_image())
        assert segmenter.network.looks == ([1, 1] if reframe else [1])
        assert "reframe" in segmenter.last_timings
    assert iou(found[0.0].mask, truth > 0.5) < 0.7
    assert iou(found[0.7].mask, truth > 0.5) > 0.8


def test_a_crop_that_is_much_too_large_is_taken_again_in_place_of_the_first():
    segmenter = misled(mask((60, 50, 36, 30)), mask((30, 30, 100, 90)))
    image = position_image()
    coarse = segmenter.coarse(image)
    first = segmenter.refine(image, coarse, segmenter.proposals(coarse))
    (crop,) = segmenter.reframe(image, coarse, first)
    assert len(first) == 1
    assert 140 < first[0].view.width <= 150
    assert crop.view.width == 64  # the least that a crop has
    assert abs(crop.view.x + crop.view.width / 2 - 78) <= 2
    segmenter.settings = dataclasses.replace(segmenter.settings, reframe=0.0)
    assert segmenter.reframe(image, coarse, first) == first


def test_well_framed_crops_are_not_looked_at_again():
    places = [(20, 30, 50, 40), (150, 100, 60, 50)]
    segmenter = misled(mask(*places), mask(*places))
    assert len(segmenter.segment(position_image())) == 2
    assert segmenter.network.looks == [2]


def test_a_crop_stays_while_it_is_the_right_one_for_something_in_it():
    """The coarse pass sees one copy; its crop shows a slender one beside it, which gets a crop of its own."""
    large, small = (60, 40, 60, 60), (48, 30, 10, 80)
    segmenter = misled(mask(large, small), mask(large))
    image = position_image()
    coarse = segmenter.coarse(image)
    crops = segmenter.reframe(image, coarse, segmenter.refine(image, coarse, segmenter.proposals(coarse)))
    assert [round(crop.view.width, -1) for crop in crops] == [90, 120]
    assert sorted(i.box[:2] for i in segmenter.segment(image)) == [(48, 30), (60, 40)]


class Prompted(OracleNetwork):
    """Sees the union of an object's instances, or in a box the one that lies there."""

    def __init__(self, instances):
        super().__init__({name: np.max(maps, axis=0)[None] for name, maps in instances.items()})
        self.config = dataclasses.replace(self.config, box_prompt=True)
        self.instances, self.asked = instances, []

    def run(self, images, rows, slots, image_of_row, *rest, boxes=None, **named):
        output = super().run(images, rows, slots, image_of_row, *rest, **named)
        for r, box in enumerate([] if boxes is None else boxes):
            if np.isnan(box).any():
                continue
            self.asked.append(box)
            picture = images[image_of_row[r]]
            seen = [one[picture[..., 1], picture[..., 0]] for one in self.instances[rows[r][0].name]]
            height, width = picture.shape[:2]
            place = np.zeros((height, width), bool)
            x0, y0, x1, y1 = (box * [width, height, width, height]).round().astype(int).clip(0)
            place[y0:y1, x0:x1] = True
            shares = [iou(one > 0.5, place) if one.any() else 0.0 for one in seen]
            output.confidence[r, :, 0, 0] = seen[int(np.argmax(shares))]
        return output


@pytest.mark.parametrize("count", [1, 2])
def test_copies_that_touch_are_told_apart_by_a_network_that_takes_boxes(count):
    """Two boxes side by side form one mask without a neck; what else is in view says that it is too large for one."""
    places = [(60, 60, 40, 60), (100, 60, 40, 60)][:count]
    others = {name: [mask((x, 10, 40, 60))] for name, x in (("b", 5), ("c", 190))}
    network = Prompted({"a": [mask(place) for place in places], **others})
    segmenter = Segmenter(network, SegmenterSettings(coarse_size=128, crop_size=128))
    for name in ("a", "b", "c"):
        segmenter.add_templates(templates(name))
    found = [one for one in segmenter.segment(position_image()) if one.name == "a"]
    assert len(network.asked) == (2 if count == 2 else 0)
    assert len(found) == count
    for instance, place in zip(sorted(found, key=lambda i: i.box), places, strict=True):
        assert iou(instance.mask, mask(place) > 0.5) > 0.85
    segmenter.settings = dataclasses.replace(segmenter.settings, reframe=0.0)
    assert sum(one.name == "a" for one in segmenter.segment(position_image())) == 1


def test_overlaps_go_to_the_better_score():
    strong, weak = mask((40, 40, 60, 60)), mask((75, 50, 60, 60)) * 0.8
    found = oracle({"weak": [weak], "strong": [strong]}).segment(position_image())
    assert not (found[0].mask & found[1].mask).any()
    assert found[0].name == "strong"
    assert found[0].mask.sum() > 0.95 * 3600


def test_holes_stay_and_are_not_invented():
    ring = mask((60, 40, 100, 100))
    ring[70:110, 90:130] = 0
    (instance,) = oracle({"ring": [ring]}).segment(position_image())
    assert not instance.mask[75:105, 95:125].any()
    assert instance.mask[45:65, 65:155].all()


@pytest.mark.parametrize("augmentations", [1, 2])
def test_groups_are_one_batch_and_grow_linearly(augmentations):
    names = [f"o{n}" for n in range(21)]
    segmenter = oracle({}, names, group_size=8, augmentations=augmentations, tiles=1)
    segmenter.segment(position_image())
    assert segmenter.network.calls == [(3, 7)]  # three rows of seven; nothing to refine
    truth = {n: [mask((10, 10, 30, 30))] for n in names}
    everywhere = oracle(truth, group_size=8, crop_objects=4, augmentations=augmentations, tiles=1)
    everywhere.segment(position_image())
    assert everywhere.network.calls == [(3, 7), (21 * augmentations, 4)]  # one crop per object, each seen so many times


def test_groups_compete_on_equal_terms():
    """Two objects claim the same place from different groups; the surer one gets it, whatever the order."""
    truth = {"sure": [mask((40, 40, 50, 50))], "unsure": [mask((40, 40, 50, 50)) * 0.7]}
    for names in (["sure", "x", "unsure"], ["unsure", "x", "sure"]):
        (instance,) = oracle(truth, names, group_size=1).segment(position_image())
        assert instance.name == "sure"


def test_disagreement_of_the_ensemble_lowers_the_score():
    truth = {"a": np.stack([mask((40, 40, 80, 80))])}

    def shaky(confidence, generator):
        return np.roll(confidence, generator.integers(-25, 26), 2)

    scores = []
    for spoil in (lambda confidence, generator: confidence, shaky):
        segmenter = Segmenter(OracleNetwork(truth, 1, spoil), SegmenterSettings(ensemble=6, score_threshold=0.0))
        segmenter.add_templates(templates("a"))
        scores.append(segmenter.segment(position_image())[0].score)
    assert scores[1] < scores[0] - 0.1


def test_the_threshold_leaves_out_weak_instances():
    truth = {"faint": [mask((40, 40, 50, 50)) * 0.6]}
    assert oracle(truth, score_threshold=0.0).segment(position_image())
    assert oracle(truth, score_threshold=0.99).segment(position_image()) == []
