# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Streams: what is remembered from frame to frame, and when it is not."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from model_fixtures import firm_model
from segment_oracle import OracleNetwork, templates

from ocdit_ros.model import SamplerSettings, sample
from ocdit_ros.segment import Segmenter, SegmentError, SegmenterSettings, StreamSettings
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.network import Network
from ocdit_ros.segment.stream import LAST_ID, Motion, Patch, Stream, Track, segment_streams, small_grey
from ocdit_ros.segment.views import augmented, tiled, whole_image
from ocdit_ros.templates import TemplateCache

HEIGHT, WIDTH = 96, 128  # of a frame
COLUMNS = np.arange(256)
SMALL = SegmenterSettings(coarse_size=112, crop_size=64, min_pixels=4)


def texture(seed, height=192, width=256, grain=3.0):
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.uint8(np.clip(127 + 80 * smooth / smooth.std(), 0, 255))


def world(seed=0, grain=3.0):
    """uint8 [192, 256, 3]: red and green tell the oracle where it looks, blue is what the flow holds on to."""
    rows, columns = np.mgrid[:192, :256]
    return np.stack([columns, rows, texture(seed, grain=grain)], -1).astype(np.uint8)


def frame(x, y=40, seed=0, grain=3.0):
    return np.ascontiguousarray(world(seed, grain)[y : y + HEIGHT, x : x + WIDTH])


def block(x, y, width=24, height=20):
    """float32 [1, 192, 256]: confidence 1 in a rectangle of the world."""
    mask = np.zeros((1, 192, 256), np.float32)
    mask[:, y : y + height, x : x + width] = 1.0
    return mask


def iou(instance, truth, x, y=40):
    mask = truth[0, y : y + HEIGHT, x : x + WIDTH] > 0.5
    return (instance.mask & mask).sum() / (instance.mask | mask).sum()


class Oracle(OracleNetwork):
    """Takes several frames at once."""

    things: np.ndarray | None = None  # [192, 256]

    def run(self, *args, frame_of_row=None, origin=None, **named):
        self.origins = getattr(self, "origins", [])
        self.origins.append(origin)
        output = super().run(*args, **named)
        if self.things is not None:  # what looks like an object, wherever the picture is looked at
            for r, n in enumerate(args[3]):
                centres = args[0][n][8::16, 8::16]
                output.similarity[r, :, 1] = self.things[centres[..., 1], centres[..., 0]]
        return output


@pytest.fixture
def truth():
    return {"mug": block(90, 70)}


@pytest.fixture
def segmenter(truth):
    one = Segmenter(Oracle(truth), SMALL)
    for name in ("mug", "box"):
        one.add_templates(templates(name))
    return one


def rows(segmenter, begin=0):
    return sum(count for count, _ in segmenter.network.calls[begin:])


# --------------------------------------------------------------------------- a stream


def test_a_panning_camera_keeps_the_id_and_the_mask_for_less_work(segmenter, truth):
    assert len(tiled(whole_image(HEIGHT, WIDTH, 112), 2)) == 4
    stream = segmenter.stream()
    first = stream.segment(frame(40))
    full = rows(segmenter)
    assert stream.effort.full and [one.track_id for one in first] == [1]
    for step in range(1, 9):
        begin, x = len(segmenter.network.calls), 40 + 3 * step
        found = stream.segment(frame(x))
        assert [(one.name, one.track_id) for one in found] == [("mug", 1)]
        assert iou(found[0], truth["mug"], x) > 0.85
        assert not stream.effort.full
        assert stream.effort.crops == 1 and stream.effort.evaluations <= 2
        assert rows(segmenter, begin) == 2 < full  # one look, one crop


class Halfsighted(Oracle):
    """Sees the left part of everything in all but crops, which are square."""

    def run(self, images, *args, **named):
        if images[0].shape[0] != images[0].shape[1]:
            everything, self.truth = self.truth, {name: mask * (COLUMNS < 100) for name, mask in self.truth.items()}
            try:
                return super().run(images, *args, **named)
            finally:
                self.truth = everything
        return super().run(images, *args, **named)


def test_only_what_is_new_is_looked_at_again_where_its_crop_cuts_it_off():
    truth = {"mug": block(76, 60, 48, 30)}
    segmenter = Segmenter(Halfsighted(truth), SMALL)
    segmenter.add_templates(templates("mug"))
    segmenter.settings = dataclasses.replace(SMALL, reframe=0.95)
    single = segmenter.segment(frame(40))
    stream = segmenter.stream()
    for step in range(4):
        found = stream.segment(frame(40 + step))
        assert [one.track_id for one in found] == [1]
        assert iou(found[0], truth["mug"], 40 + step) > 0.9
        assert (stream.effort.crops, stream.effort.views) == ((1, 2) if not step else (1, 1))
        if not step:
            np.testing.assert_array_equal(found[0].mask, single[0].mask)


def test_all_looks_are_taken_in_turn(segmenter):
    stream = segmenter.stream()
    shares = []
    for step in range(11):
        stream.segment(frame(40 + step))
        shares.append(stream.effort.looks)
    assert shares == pytest.approx([2.44, 1.0, *[0.36] * 4, 1.0, *[0.36] * 4], abs=0.02)


def test_how_complete_a_list_is_stays_known_between_looks_at_the_whole_picture(segmenter, truth):
    truth["mug"] = block(84, 60, 48, 40)
    segmenter.network.things = np.maximum(truth["mug"], block(84, 100, 48, 30))[0]
    stream = segmenter.stream()
    single = [segmenter.segment(frame(40 + step))[0].evidence.completeness for step in range(7)]
    seen = [stream.segment(frame(40 + step))[0].evidence.completeness for step in range(7)]
    assert seen[0] == single[0] and all(0.4 < value < 0.7 for value in seen)
    assert seen == pytest.approx(single, abs=0.12)  # moved with the picture, not looked at
    truth["box"] = block(84, 100, 48, 30)  # now everything in view is asked for
    assert segmenter.segment(frame(40))[0].evidence.completeness > 0.85
    stream.reset()
    assert all(stream.segment(frame(40 + step))[0].evidence.completeness > 0.85 for step in range(4))


def test_newcomers_are_found_within_a_round_of_looks_and_twins_keep_their_ids(segmenter, truth):
    truth["box"] = np.maximum(block(60, 60), block(120, 100))
    stream = segmenter.stream()
    before = {one.box[0]: one.track_id for one in stream.segment(frame(40))}
    assert sorted(before.values()) == [1, 2, 3]
    truth["mug"] = np.maximum(truth["mug"], block(60, 100))
    seen = [stream.segment(frame(40 + step)) for step in range(1, 8)]
    for step, found in enumerate(seen, start=1):
        for left, number in before.items():  # every one is where it was, but for the pan
            assert any(abs(one.box[0] - left + step) <= 2 and one.track_id == number for one in found)
        assert len({one.track_id for one in found}) == len(found)
    assert [len(found) for found in seen[5:]] == [4, 4]
    assert max(one.track_id for one in seen[-1]) == 4


def test_what_leaves_is_gone_at_once_and_known_again_while_it_is_waited_for(segmenter, truth):
    truth["box"] = block(60, 100)
    stream = segmenter.stream(StreamSettings(patience=3))
    mug = truth["mug"]

    def step(x):
        return {one.name: one.track_id for one in stream.segment(frame(x))}

    assert step(40) == {"mug": 1, "box": 2} or step(40) == {"mug": 2, "box": 1}
    ids = step(41)
    truth["mug"] = np.zeros_like(mug)
    assert step(42) == {"box": ids["box"]}
    assert step(43) == {"box": ids["box"]}
    truth["mug"] = mug
    assert step(44) == ids
    truth["mug"] = np.zeros_like(mug)
    for x in range(45, 50):
        assert step(x) == {"box": ids["box"]}
    truth["mug"] = mug
    again = [step(x) for x in range(50, 56)][-1]
    assert again["box"] == ids["box"] and again["mug"] == 3


def test_a_cut_is_a_full_start_in_that_very_frame(segmenter):
    stream = segmenter.stream()
    stream.segment(frame(40))
    stream.segment(frame(42))
    assert not stream.effort.full
    cut = frame(60, seed=1, grain=2.0)
    alone = segmenter.segment(cut)
    found = stream.segment(cut)
    assert stream.effort.full and stream.effort.surprise > StreamSettings().change
    assert [one.track_id for one in found] == [2]
    for a, b in zip(alone, found, strict=True):
        assert (a.name, a.score, a.box) == (b.name, b.score, b.box)
        assert np.array_equal(a.mask, b.mask)


def test_what_lies_where_it_is_expected_keeps_its_id_through_a_full_start(segmenter):
    stream = segmenter.stream(StreamSettings(change=0.0))
    for x in (40, 43, 46):
        assert [one.track_id for one in stream.segment(frame(x))] == [1]
        assert stream.effort.full


def test_a_mask_that_merges_with_its_neighbour_and_parts_again_keeps_its_id(segmenter, truth):
    mug = truth["mug"]
    stream = segmenter.stream()
    ids = []
    for x, seen in ((40, mug), (41, np.maximum(mug, block(90, 70, 60, 44))), (42, mug)):
        truth["mug"] = seen
        ids += [one.track_id for one in stream.segment(frame(x))]
    assert ids == [1, 1, 1]


def test_a_weak_reading_of_an_instance_does_not_end_it(segmenter, truth):
    segmenter.settings = dataclasses.replace(SMALL, score_threshold=0.9)
    stream = segmenter.stream(StreamSettings(track_score=0.9, average=False))
    truth["box"] = block(60, 100)  # so that not everything is lost
    firm = truth["mug"]
    ids = []
    for x, strength in ((40, 1.0), (41, 1.0), (42, 0.6), (43, 0.6), (44, 1.0)):
        truth["mug"] = firm * strength
        ids.append([one.track_id for one in stream.segment(frame(x)) if one.name == "mug"])
    assert ids[1] and ids == [ids[1], ids[1], [], [], ids[1]]


def test_copies_that_come_out_as_one_for_a_while_keep_both_ids(segmenter, truth):
    apart = np.maximum(block(70, 70), block(100, 70))
    together = block(70, 70, 54)
    stream = segmenter.stream(StreamSettings(average=False))
    ids, crops = [], []
    for x, seen in ((40, apart), (41, apart), (42, together), (43, together), (44, apart), (45, apart)):
        truth["mug"] = seen
        ids.append({one.box[0] + x: one.track_id for one in stream.segment(frame(x))})
        crops.append(stream.effort.crops)
    left, right = (ids[1][column] for column in sorted(ids[1]))
    assert left != right and [len(some) for some in ids] == [2, 2, 1, 1, 2, 2]
    assert [ids[5][column] for column in sorted(ids[5])] == [left, right]
    assert crops[4] == 1  # nobody looks for what is covered


def test_a_piece_does_not_end_the_instance_that_it_lies_in(segmenter):
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[20:60, 20:100] = 1.0
    piece = np.zeros_like(values)
    piece[20:60, 20:45] = 1.0
    evidence = segmenter.segment(frame(40))[0].evidence
    tracks = [Track(0, Patch(m, 0, 0), None, 0.9, number) for number, m in ((1, values), (2, piece))]
    stream = segmenter.stream()
    now = stream.begin(frame(40))
    now = dataclasses.replace(now, tracks=tracks, motion=Motion(now.grey, now.grey, (HEIGHT, WIDTH)))
    seen = Candidate(0, 0.9, evidence, piece, 0, 0)
    assert stream._associate(now, [(seen, piece > 0.5)]) == ({0: 1}, set())
    seen = Candidate(0, 0.9, evidence, values, 0, 0)  # of the same object
    assert stream._associate(now, [(seen, values > 0.5)]) == ({0: 0}, {1})


def test_when_everything_is_lost_the_frame_is_looked_at_again_in_full(segmenter, truth):
    stream = segmenter.stream()
    for x in (40, 41):
        stream.segment(frame(x))
    truth["mug"] = block(135, 60)  # moved by a hand, out of the upper left tile, whose turn it is
    found = stream.segment(frame(42))
    assert stream.effort.full
    assert iou(found[0], truth["mug"], 42) > 0.85
    assert found[0].track_id == 2
    del truth["mug"]
    assert stream.segment(frame(43)) == []
    assert stream.effort.full
    assert stream.segment(frame(44)) == []
    assert not stream.effort.full  # nothing to lose any more


def test_another_size_or_another_catalogue_begins_anew(segmenter, truth):
    stream = segmenter.stream()
    stream.segment(frame(40))
    wide = np.ascontiguousarray(world()[40 : 40 + HEIGHT, 40 : 40 + 144])
    assert [one.track_id for one in stream.segment(wide)] == [2]
    assert stream.effort.full
    truth["can"] = block(60, 60)
    segmenter.add_templates(templates("can"))
    assert sorted(one.name for one in stream.segment(wide)) == ["can", "mug"]
    assert stream.effort.full
    stream.segment(wide)
    assert not stream.effort.full
    stream.reset()
    stream.segment(wide)
    assert stream.effort.full


def test_without_a_second_look_there_are_ids_and_the_results_of_single_images(segmenter, truth):
    segmenter.settings = dataclasses.replace(SMALL, refine=False)
    stream = segmenter.stream()
    for x in (40, 43, 46):
        alone, found = segmenter.segment(frame(x)), stream.segment(frame(x))
        assert [one.track_id for one in found] == [1]
        assert np.array_equal(alone[0].mask, found[0].mask) and alone[0].score == found[0].score


def test_without_objects_nothing_is_found(truth):
    stream = Segmenter(Oracle(truth), SMALL).stream()
    assert stream.segment(frame(40)) == [] == stream.segment(frame(41))


def test_an_instance_below_the_threshold_gets_its_id_when_it_is_first_reported(segmenter, truth):
    truth["mug"] *= 0.8
    segmenter.settings = dataclasses.replace(SMALL, score_threshold=0.95)
    stream = segmenter.stream(StreamSettings(track_score=0.0))
    assert stream.segment(frame(40)) == []
    segmenter.settings = SMALL
    assert [one.track_id for one in stream.segment(frame(41))] == [1]


def test_ids_end_where_16_bits_do_and_begin_anew(segmenter):
    stream = segmenter.stream()
    stream._last_id = LAST_ID - 1
    assert [one.track_id for one in stream.segment(frame(40))] == [LAST_ID]
    stream.reset()
    assert [one.track_id for one in stream.segment(frame(40))] == [1]


def test_crops_start_from_remembered_masks_where_that_is_asked_for(segmenter, truth):
    stream = segmenter.stream(StreamSettings(start_sigma=2.0))
    stream.segment(frame(40))
    assert all(origin is None for origin in segmenter.network.origins)
    stream.segment(frame(43))
    (origin,) = [one for one in segmenter.network.origins if one is not None]
    assert origin.shape == (1, 2, 1, 64, 64)  # one view of one crop, of two objects
    mug, box = origin[0, :, 0] > 0.5
    assert not box.any()
    rows, columns = np.nonzero(mug)
    assert abs(rows.mean() - 31.5) < 4 and abs(columns.mean() - 31.5) < 4  # the crop is around it


@pytest.mark.parametrize("changes", [{"start_sigma": -1.0}, {"views": 0}, {"track_score": float("nan")}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(SegmentError, match=next(iter(changes))):
        StreamSettings(**changes)


def test_a_stream_cannot_take_two_frames_at_once(segmenter):
    stream = segmenter.stream()
    with pytest.raises(SegmentError, match="different"):
        segment_streams(segmenter, [frame(40)] * 2, [stream] * 2)


# --------------------------------------------------------------------------- with a network


@pytest.fixture(scope="module")
def model():
    return firm_model()


@pytest.fixture
def real(model, tmp_path):
    settings = SegmenterSettings(
        score_threshold=0.0, coarse_size=112, crop_size=48, min_pixels=1, proposal_threshold=0.0, max_crops=6
    )
    one = Segmenter(model, settings, TemplateCache(tmp_path))
    for n in range(3):
        one.add_templates(templates(f"object {n}"))
    return one


def same(a, b, exactly):
    assert [(i.name, i.track_id if not exactly else 0) for i in a] == [
        (i.name, i.track_id if not exactly else 0) for i in b
    ]
    for one, other in zip(a, b, strict=True):
        assert one.score == pytest.approx(other.score, abs=0 if exactly else 1e-4)
        assert (one.mask != other.mask).mean() <= (0 if exactly else 2e-3)


def test_the_first_frame_is_that_of_the_segmenter_bit_for_bit(real):
    alone = real.segment(frame(40))
    assert alone
    same(alone, real.stream().segment(frame(40)), exactly=True)


def test_a_mirrored_view_alone_gives_the_similarity_as_it_lies_in_the_crop(segmenter, monkeypatch):
    """The score weighs it inside the mask; mirrored, objects beside the middle of their crop would blink."""
    run = segmenter.network.run

    def by_column(images, rows, slots, image_of_row, targets, *rest, **named):
        output = run(images, rows, slots, image_of_row, targets, *rest, **named)
        seen = np.stack([cv2.resize(images[n][..., 0], None, fx=1 / 16, fy=1 / 16) for n in image_of_row])
        return dataclasses.replace(
            output, similarity=np.repeat(np.stack([seen, seen], 1)[:, None], targets, 1).astype(np.float32)
        )

    monkeypatch.setattr(segmenter.network, "run", by_column)
    coarse = segmenter.coarse(frame(40))
    places = segmenter.proposals(coarse)
    found = []
    for n in range(2):
        look = segmenter._refine_look(frame(40), coarse, places, lambda _, crop, n=n: [augmented(crop, 2)[n]])
        found.append(segmenter._run([look])[0][0].similarity)
    assert np.ptp(found[0], axis=2).min() > 10  # it tells left from right
    np.testing.assert_allclose(*found, atol=2)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_several_cameras_are_one_batch_and_each_gives_what_it_gives_alone(real, sigma):
    settings = StreamSettings(start_sigma=sigma)
    paths = [[frame(40 + 2 * n, 30, seed) for n in range(3)] for seed in range(2)]
    alone = [[stream.segment(rgb) for rgb in path] for path in paths for stream in [real.stream(settings)]]
    streams = [real.stream(settings) for _ in paths]
    for n in range(3):
        for one, found in zip(alone, real.segment_streams([path[n] for path in paths], streams), strict=True):
            same(one[n], found, exactly=False)
    assert all(isinstance(stream, Stream) and not stream.effort.full for stream in streams)


def test_the_sampler_starts_where_it_is_told(model):
    """In the limit of no noise the denoiser is the identity, so what comes out is what went in."""
    network = Network(model)
    known = [network.onboard("a", 0.1, network.featurize(templates("a")))]
    features = network.image_features([np.zeros((48, 64, 3), np.uint8)])
    conditioning = network.condition([known], [[0]])
    start = torch.randn((1, 1, model.config.latent_channels, 3, 4), generator=torch.Generator().manual_seed(0))
    settings = SamplerSettings(1, "euler", 2, sigma_max=1e-6)
    latents = sample(model, features, conditioning, settings, torch.Generator().manual_seed(0), start=start)
    torch.testing.assert_close(latents, start[:, None].expand(1, 2, -1, -1, -1, -1), atol=1e-4, rtol=0)


# --------------------------------------------------------------------------- motion


@pytest.mark.parametrize("shift", [(0, 0), (4, -3), (-9, 6)])
def test_maps_move_with_the_picture(shift):
    x, y = 60, 40
    before, now = frame(x, y), frame(x + shift[0], y + shift[1])
    motion = Motion(small_grey(before), small_grey(now), (HEIGHT, WIDTH))
    assert motion.surprise < 0.1
    mask = block(110, 80)[0]
    here, there = mask[y : y + HEIGHT, x : x + WIDTH], mask[y + shift[1] :, x + shift[0] :][:HEIGHT, :WIDTH]
    both = [motion.move(here), np.zeros_like(here)]
    patch, left, top = motion.move_patch(here[40:60, 50:74], 50, 40)
    both[1][top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    for moved in both:
        assert ((moved > 0.5) & (there > 0.5)).sum() / ((moved > 0.5) | (there > 0.5)).sum() > 0.85


def test_other_textures_are_a_surprise_and_brighter_ones_are_none():
    now = texture(0, HEIGHT, WIDTH)
    assert Motion(texture(1, HEIGHT, WIDTH), now, now.shape).surprise > 0.4
    assert Motion(np.uint8(now * 0.8), now, now.shape).surprise < 0.1


def test_even_walls_with_noise_are_no_surprise():
    noise = np.random.default_rng(0).integers(-1, 2, (2, HEIGHT, WIDTH))
    first, second = (np.uint8(100 + one) for one in noise)
    assert Motion(first, second, first.shape).surprise < 0.4


def test_a_patch_that_leaves_the_picture_is_empty():
    before, now = frame(40), frame(52)
    motion = Motion(small_grey(before), small_grey(now), (HEIGHT, WIDTH))
    patch, _, _ = motion.move_patch(np.ones((20, 10), np.float32), -8, 30)
    assert not (patch > 0.5).any()
