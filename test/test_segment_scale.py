# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What apparent sizes say about each other, and the same object in two sizes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm
from segment_oracle import templates
from test_segment_extract import EVIDENCE, random_candidates

from ocdit_ros.model import ModelConfig, OCDiT
from ocdit_ros.segment import Segmenter, SegmenterSettings, scale
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.network import KnownObject, Network
from ocdit_ros.segment.scoring import Scorer
from ocdit_ros.segment.types import Evidence

ONLY_SCALE = Scorer(tuple(float(name == "scale") for name in Evidence.names()))


SIZE = (3000, 6000)  # so wide that it hardly matters which row these candidates lie in


def square(side, x=0, y=0, index=0):
    """Away from the border of the image, unless x or y is negative."""
    return Candidate(index, 0.9, EVIDENCE, np.full((side, side), 0.9, np.float32), 500 + x, 500 + y)


def at(*candidates):
    """Where they start, as `square` counts."""
    return [c.x - 500 for c in candidates]


def evidence(*sides_and_diameters):
    """Of squares that do not overlap."""
    candidates = [square(side, 200 * n) for n, (side, _) in enumerate(sides_and_diameters)]
    return scale.scale_evidence(candidates, [d for _, d in sides_and_diameters], 0.5, SIZE)


@pytest.mark.parametrize("candidates", [[], [square(20)]])
def test_alone_a_size_says_nothing(candidates):
    assert scale.scale_evidence(candidates, [0.1] * len(candidates), 0.5, SIZE).tolist() == [0.5] * len(candidates)


def test_what_would_be_elsewhere_is_not_believed():
    *right, far, near = evidence((20, 0.1), (60, 0.3), (44, 0.2), (12, 0.06), (10, 0.2), (120, 0.1))
    assert min(right) > 0.7
    assert max(far, near) < 0.2


def test_only_the_ratio_to_the_others_counts():
    sizes = [(20, 0.1), (60, 0.3), (10, 0.2)]
    assert evidence(*sizes) == pytest.approx(evidence(*((s, 7 * d) for s, d in sizes)), abs=1e-9)
    assert evidence((20, 0.1), (20, 0.1)).min() > 0.6
    assert evidence((20, 0.1), (160, 0.1)).max() < 0.5


def test_readings_of_one_thing_do_not_confirm_each_other():
    thing, again, other = square(20), square(20, 1), square(20, 200)
    apart = scale.scale_evidence([thing, other], [0.1, 0.4], 0.5, SIZE)
    both = scale.scale_evidence([thing, again, other], [0.1, 0.1, 0.4], 0.5, SIZE)
    assert both[0] == pytest.approx(apart[0], abs=0.02)
    assert scale.scale_evidence([thing, again], [0.1, 0.1], 0.5, SIZE) == pytest.approx([0.5, 0.5], abs=0.01)


def test_two_sizes_are_told_apart_by_each_other():
    """Nothing else in the image: of four readings, the two that agree."""
    small, large = square(20), square(30, 200)
    readings = [small, small, large, large]
    as_small, as_large, large_as_small, large_as_large = scale.scale_evidence(
        readings, [0.1, 0.15, 0.1, 0.15], 0.5, SIZE
    )
    assert as_small > as_large
    assert large_as_large > large_as_small


def test_what_is_hardly_seen_counts_for_little():
    faint = dataclasses.replace(EVIDENCE, support=0.05)
    candidates = [square(20), dataclasses.replace(square(160, 200), evidence=faint)]
    believed = scale.scale_evidence([square(20), square(160, 200)], [0.1, 0.1], 0.5, SIZE)[0]
    assert believed < scale.scale_evidence(candidates, [0.1, 0.1], 0.5, SIZE)[0] < 0.51


@pytest.mark.parametrize(
    ("other", "same"),
    [(square(20), True), (square(20, 5), True), (square(20, 8), False), (square(20, 20), False), (square(9), False),
     (square(16), True), (square(20, 0, 30), False)],
)  # fmt: skip
def test_readings_of_one_thing_overlap(other, same):
    assert scale.same_things([square(20), other], 0.5).tolist() == [0, 0 if same else 1]
    assert scale.same_things([other, square(20)], 0.5).tolist() == [0, 0 if same else 1]
    unseen = dataclasses.replace(other, confidence=0 * other.confidence)
    assert scale.same_things([square(20), unseen], 0.5).tolist() == [0, 1]


def test_overlaps_chain():
    assert scale.same_things([square(20), square(20, 10), square(20, 5)], 0.5).tolist() == [0, 0, 0]
    assert scale.same_things([square(20), square(20, 20), square(20, 19)], 0.5).tolist() == [0, 1, 1]


@pytest.mark.parametrize("seed", range(30))
def test_things_by_plain_rules(seed):
    candidates = random_candidates(np.random.default_rng(seed), 8)
    masks = np.zeros((8, 24, 30), bool)
    for mask, c in zip(masks, candidates, strict=True):
        mask[c.window()] = c.confidence > 0.5
    linked = [[(a & b).sum() > 0.5 * (a | b).sum() for a in masks] for b in masks]
    _, expected = connected_components(np.array(linked))
    first = {thing: list(expected).index(thing) for thing in expected}
    assert scale.same_things(candidates, 0.5).tolist() == [first[thing] for thing in expected]


def test_evidence_by_the_formula():
    """A thing with two readings and two with a single one, of which one is cut: the integral over m and b, term by
    term.
    """
    sides, diameters, rows = (20, 20, 32, 24), (0.1, 0.15, 0.2, 0.2), (-0.4, -0.4, 0.1, 0.3)
    weak = dataclasses.replace(EVIDENCE, confidence=0.7, agreement=0.9, stability=0.8, support=0.5)
    candidates = [square(20), square(20), dataclasses.replace(square(32, 100), evidence=weak), square(24, -500)]
    height, width = 600, 600
    for n, (side, row) in enumerate(zip(sides, rows, strict=True)):
        top = 0.5 * height + row * width - side
        candidates[n] = dataclasses.replace(candidates[n], x=candidates[n].x // 2, y=round(top))
    x = [math.log((1 + math.sqrt(2) * (s - 1)) / d) for s, d in zip(sides, diameters, strict=True)]
    beliefs = [0.81 * 0.95 / 1.62, 0.81 * 0.95 / 1.62, 0.7 * 0.8 * 0.5, 0.81]
    whole, cut = ((0.7, 0.0, 0.09), (0.3, -0.2, 0.35)), ((0.6, 0.0, 0.18), (0.4, -0.5, 0.5))

    def density(m, b, n):
        parts = cut if n == 3 else whole
        return sum(w * norm.pdf(x[n] - m - b * rows[n], mean, deviation) for w, mean, deviation in parts)

    span = 4.0  # the least that is taken for equally likely
    middle = (min(x) + max(x)) / 2
    grid = np.linspace(middle - span / 2, middle + span / 2, 2001)
    slopes = np.linspace(-0.3, 1.3, 5)

    def over(f):
        return np.array([f(grid, b) for b in slopes])

    def thing(*readings):
        rest = (1 - sum(beliefs[n] for n in readings)) / span
        return over(lambda m, b: sum(beliefs[n] * density(m, b, n) for n in readings) + rest)

    expected = []
    for n, others in ((0, ((2,), (3,))), (1, ((2,), (3,))), (2, ((0, 1), (3,))), (3, ((0, 1), (2,)))):
        posterior = math.prod(thing(*readings) for readings in others) * norm.pdf(slopes, 0.5, 0.4)[:, None]
        posterior /= posterior.sum()
        ratio = (posterior * over(lambda m, b, n=n: density(m, b, n))).sum() * span
        expected.append(ratio / (1 + ratio))
    found = scale.scale_evidence(candidates, diameters, 0.5, (height, width))
    assert found == pytest.approx(expected, abs=0.004)


def lying(side, row, x=0):
    """A square whose lowest pixel lies so many rows above or below the middle of an image of 480 x 640."""
    return Candidate(0, 0.9, EVIDENCE, np.full((side, side), 0.9, np.float32), 100 + x, 240 + row - side)


def test_what_lies_lower_is_expected_to_be_nearer():
    def likely(upper, lower):
        pair = [lying(upper, -150), lying(lower, 200, 200)]
        return scale.scale_evidence(pair, [0.1, 0.1], 0.5, (480, 640)).min()

    assert likely(60, 60) > 0.6
    assert likely(60, 79) > likely(60, 60)  # by half of 350 / 640, in logarithms
    assert likely(79, 60) < likely(60, 60) - 0.1


def test_the_more_is_in_view_the_better_the_slope_is_known():
    """Seen from above nothing grows towards the lower edge, and the image itself says so."""
    flat = [lying(60, row, 100 * n) for n, row in enumerate((-150, -60, 30, 120, 200))]
    one = scale.scale_evidence(flat[::4], [0.1] * 2, 0.5, (480, 640))
    assert (scale.scale_evidence(flat, [0.1] * 5, 0.5, (480, 640))[::4] > one + 0.1).all()


@pytest.mark.parametrize(
    ("x", "y", "cut"),
    [(2, 2, False), (1, 2, True), (2, 1, True), (18, 28, False), (19, 28, True), (18, 29, True), (0, 10, True)],
)
def test_a_mask_at_the_border_may_be_cut(x, y, cut):
    one = Candidate(0, 1.0, EVIDENCE, np.full((20, 30), 0.6, np.float32), x, y)
    assert scale._place(one, 0.5, (50, 50))[2] is cut
    padded = np.pad(one.confidence, 3)
    assert scale._place(dataclasses.replace(one, confidence=padded, x=x - 3, y=y - 3), 0.5, (50, 50))[2] is cut


def test_what_may_be_cut_may_be_small():
    others = [square(60, 200), square(62, 400), square(58, 600)]
    inside, cut = (
        scale.scale_evidence([square(30, x), *others], [0.1] * 4, 0.5, SIZE)[0] for x in (0, -500)
    )  # fmt: skip
    assert inside + 0.05 < cut < 0.8


def test_a_wide_spread_widens_what_is_likely():
    near, far = scale.scale_evidence([square(20), square(2000, 3000)], [0.1, 0.1], 0.5, SIZE)  # x differs by 4.6
    assert near == pytest.approx(far, abs=0.01)
    assert 0.1 < near < 0.2


@pytest.mark.parametrize(
    ("changes", "belief"),
    [({"confidence": 0.5, "support": 0.8}, 0.4), ({"agreement": 0.5}, 0.405), ({"stability": 0.5}, 0.405),
     ({"confidence": 1.0, "support": 1.0}, 0.95), ({"support": 0.001}, 0.01)],
)  # fmt: skip
def test_how_convincing_a_candidate_is(changes, belief):
    one = dataclasses.replace(square(5), evidence=dataclasses.replace(EVIDENCE, **changes))
    assert scale._belief(one) == pytest.approx(belief)


def test_extent_is_the_longest_distance_in_the_mask():
    def place(confidence, x, y):
        return scale._place(Candidate(0, 1.0, EVIDENCE, confidence, x, y), 0.5, (100, 200))

    confidence = np.zeros((40, 50), np.float32)
    assert place(confidence, 0, 0) == (1.0, 0.0, False)
    confidence[5:35, 5:45] = 0.6
    confidence[20, 20] = 0.0  # inside
    confidence[0, :] = 0.5  # not above
    extent, row, cut = place(confidence, 7, 9)
    assert extent == pytest.approx(1 + math.hypot(29, 39))
    assert row == pytest.approx((9 + 35 - 50) / 200) and not cut
    assert place(np.eye(3, 30, 27, dtype=np.float32), 0, 50)[0] == pytest.approx(1 + math.hypot(2, 2))


@pytest.mark.parametrize(
    ("factor", "cosine", "alike"),
    [(1.15, 1.0, True), (1.14, 1.0, False), (1 / 1.15, 1.0, True), (1.0, 1.0, False), (2.0, 0.951, True),
     (2.0, 0.949, False)],
)  # fmt: skip
def test_look_alikes_of_another_size(factor, cosine, alike):
    def known(diameter, *direction):
        return KnownObject("", diameter, None, appearance=np.array(direction, np.float16))

    one, other = known(1.0, 1, 0), known(factor, cosine, math.sqrt(1 - cosine**2))
    assert scale.only_size_tells(one, other) is alike
    assert scale.only_size_tells(other, one) is alike
    assert not scale.only_size_tells(one, known(2.0, 1, 0, 0))  # features of another network


# --------------------------------------------------------------------------- in the Segmenter


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    segmenter = Segmenter(Network(OCDiT(ModelConfig.preset("tiny")).eval()), SegmenterSettings(), scorer=ONLY_SCALE)
    looks = templates("small")
    segmenter.add_templates(looks)
    segmenter.add_templates(dataclasses.replace(looks, name="large", diameter=1.5 * looks.diameter))
    segmenter.add_templates(dataclasses.replace(looks, name="twin"))
    other = templates("other")
    noise = np.random.default_rng(5).integers(0, 256, other.images.shape, dtype=np.uint8)
    segmenter.add_templates(dataclasses.replace(other, images=noise, diameter=2 * looks.diameter))
    return segmenter


def test_look_alikes_of_another_size_are_known(segmenter):
    def alike():
        return {known.name: [other.name for other in known.alike] for known in segmenter._catalogue}

    assert alike() == {"small": ["large"], "large": ["small", "twin"], "twin": ["large"], "other": []}
    segmenter.remove_object("large")
    assert alike() == {"small": [], "twin": [], "other": []}


def test_look_alikes_are_proposed_under_both_names(segmenter):
    """The network named both wrongly; by their sizes each is given the other name."""
    small, large = square(20, index=1), square(30, 200, index=0)
    pairs = segmenter._compared([small, large], (0, 1, 3), SIZE)
    assert [(c.index, origin) for c, origin in pairs] == [(1, small), (0, large), (0, small), (1, large)]
    found = {i.box[0]: i.name for i in segmenter.resolve([c for c, _ in pairs], SIZE)}
    assert found == {500: "small", 700: "large"}


def blocks(*sides, gap=0):
    """Squares in a row as one candidate and as its pieces."""
    whole = Candidate(0, 0.9, EVIDENCE, np.full((max(sides), sum(sides)), 0.9, np.float32), 500, 500)
    starts = np.cumsum([0, *sides[:-1]])
    return [whole, *(dataclasses.replace(square(s, int(x)), whole=whole) for s, x in zip(sides, starts))]


def test_a_whole_gives_way_to_its_pieces_where_their_sizes_fit_better(segmenter):
    two = blocks(24, 24)
    diameter = segmenter._catalogue[0].diameter
    assert segmenter._catalogue[3].diameter == 2 * diameter
    others = [square(48, 200, index=3), square(50, 260, index=3)]  # as far away as one of the pieces would be
    found = [c for c, _ in segmenter._compared([*two, *others], (0, 3), SIZE)]
    assert at(*found) == [0, 24, 200, 260] and found[0].confidence.shape == (24, 24)
    near = [square(100, 200, index=3), square(96, 320, index=3)]  # and here as the whole would be
    assert next(c for c, _ in segmenter._compared([*two, *near], (0, 3), SIZE)).confidence.shape == (24, 48)
    assert len(segmenter._compared([*two, *near], (0, 3), SIZE)) == 3
    # with nothing to compare with nothing is split: halves do not confirm each other
    assert [c.confidence.shape for c, _ in segmenter._compared(two, (0, 3), SIZE)] == [(24, 48)]
    assert scale.same_things(two, 0.5).tolist() == [0, 0, 0]
    # pieces of a piece: of three blocks in a row the second is settled after the first
    whole, first, rest = blocks(24, 48)
    rest = dataclasses.replace(rest, confidence=rest.confidence[:24])
    halves = [dataclasses.replace(square(24, x), whole=rest) for x in (24, 48)]
    found = [c for c, _ in segmenter._compared([whole, first, rest, *halves, *others], (0, 3), SIZE)]
    assert at(*found) == [0, 24, 48, 200, 260]


@pytest.mark.parametrize(
    ("starts", "others", "split"),
    [
        ((0, 24), 48, True),  # two masks, whose sizes fit the others' better
        ((0, 24), 59, True),  # and a little better
        ((0, 24), 96, False),  # and not
        ((0, 10), 48, False),  # the same mask twice: it is one thing
        ((0,), 48, False),  # no answer in the other box
        ((0, 15), 48, True),  # in between sizes have to be clear
        ((0, 15), 59, False),
    ],
)
def test_what_the_network_shows_in_boxes_says_whether_it_is_several(segmenter, starts, others, split):
    whole = Candidate(0, 0.9, EVIDENCE, np.full((24, 48), 0.9, np.float32), 500, 500)
    pieces = [dataclasses.replace(square(24, x), whole=whole, boxed=True) for x in starts]
    rest = [square(others, 200, index=3), square(others, 400, index=3)]
    found = [c for c, _ in segmenter._compared([whole, *pieces, *rest], (0, 3), SIZE) if c.index == 0]
    assert [c.confidence.shape for c in found] == ([(24, 24)] * len(starts) if split else [(24, 48)])


def test_necks_are_left_where_boxes_say_nothing(segmenter):
    whole, *necks = blocks(24, 24)
    same = [dataclasses.replace(square(24, x), whole=whole, boxed=True) for x in (0, 2)]
    rest = [square(48, 200, index=3), square(50, 260, index=3)]
    found = [c for c, _ in segmenter._compared([whole, *necks, *same, *rest], (0, 3), SIZE) if c.index == 0]
    assert at(*found) == [0, 24] and not any(c.boxed for c in found)


def test_which_candidates_may_be_several(segmenter):
    diameters = [one.diameter for one in segmenter._catalogue]
    twice, single = blocks(24, 24)[0], square(24, 60)
    rest = [square(48, 200, index=3), square(50, 260, index=3)]
    candidates = [twice, single, *rest]
    doubts = scale.may_be_several(candidates, [diameters[c.index] for c in candidates], 0.5, SIZE)
    assert doubts.tolist() == [True, False, False, False]
    assert not scale.may_be_several([twice], [diameters[0]], 0.5, SIZE).any()
    assert not len(scale.may_be_several([], [], 0.5, SIZE))


def test_pieces_go_by_both_names_of_look_alikes(segmenter):
    """Two small ones that touch, or one of the large kind: the score decides, and no name has a whole and pieces."""
    two = blocks(24, 24)
    pairs = segmenter._compared([*two, square(48, 200, index=3)], (0, 1, 3), SIZE)
    for index in (0, 1):
        shapes = {c.confidence.shape for c, _ in pairs if c.index == index}
        assert shapes in ({(24, 24)}, {(24, 48)})


def test_where_distances_differ_sizes_are_not_compared(segmenter):
    segmenter.settings = dataclasses.replace(segmenter.settings, compare_sizes=False)
    candidates = [square(20, index=1), square(200, 30, index=0)]
    assert segmenter._compared(candidates, (0, 1, 3), SIZE) == [(c, c) for c in candidates]


def test_names_that_were_not_asked_for_are_not_given(segmenter):
    small = square(20, index=1)
    assert [c.index for c, _ in segmenter._compared([small], (1, 3), SIZE)] == [1]
    assert [c.index for c, _ in segmenter._compared([small], (1, 2), SIZE)] == [1, 2]
