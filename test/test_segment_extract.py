# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Separation of parts, evidence, competition for pixels."""

import numpy as np
import pytest

from ocdit_ros.segment import extract
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.types import Evidence

EVIDENCE = Evidence(0.9, 1.0, 1.0, 0.5, 0.5, 1.0, 0.9, 1.0, 0.5, 0.5, 0.5)


def boxes(*places, height=64, width=96, value=0.9):
    confidence = np.zeros((height, width), np.float32)
    for x, y, w, h in places:
        confidence[y : y + h, x : x + w] = value
    return confidence


def candidate(index, score, x, y, w, h, value=0.9):
    return Candidate(index, score, EVIDENCE, np.full((h, w), value, np.float32), x, y)


def test_three_blobs_are_three_instances():
    parts = extract.separate(boxes((2, 2, 20, 20), (40, 5, 18, 20), (70, 30, 20, 22)), 0.5)
    assert sorted(int(p.sum()) for p in parts) == [360, 400, 440]
    assert not np.logical_and.reduce(parts).any()


def test_a_weak_bridge_holds_parts_together():
    confidence = boxes((2, 10, 20, 20), (50, 10, 20, 20))
    assert len(extract.separate(confidence, 0.5)) == 2
    confidence[15:20, 20:52] = np.maximum(confidence[15:20, 20:52], 0.3)
    assert len(extract.separate(confidence, 0.5)) == 1


def test_a_gap_that_another_object_fills_does_not_separate():
    confidence = boxes((2, 10, 25, 20), (38, 10, 25, 20))
    occluders = boxes((27, 0, 11, 60)) > 0
    assert len(extract.separate(confidence, 0.5, occluders=occluders)) == 1
    assert len(extract.separate(confidence, 0.5, occluders=np.zeros_like(occluders))) == 2


def test_a_wide_gap_separates_whatever_fills_it():
    """In a pile other objects lie between an object and any false spot across it."""
    occluders = boxes((27, 0, 33, 60)) > 0
    assert len(extract.separate(boxes((2, 10, 25, 20), (60, 10, 25, 20)), 0.5, occluders=occluders)) == 2


def test_fragments_join_when_near_and_go_when_far():
    near = extract.separate(boxes((2, 2, 30, 30), (36, 10, 6, 6)), 0.5)
    assert [int(p.sum()) for p in near] == [936]
    far = extract.separate(boxes((2, 2, 20, 20), (80, 50, 6, 6)), 0.5)
    assert [int(p.sum()) for p in far] == [400]


def test_nothing_gives_nothing():
    assert extract.separate(np.zeros((8, 8), np.float32), 0.5) == []


def test_average_where_members_see():
    members = np.stack([np.full((2, 2), 0.4, np.float32), np.full((2, 2), 0.8, np.float32)])
    members[1, 0, 0] = np.nan
    assert extract.average(members) == pytest.approx(np.array([[0.4, 0.6], [0.6, 0.6]]))
    assert extract.average(np.full((2, 1, 1), np.nan, np.float32)) == 0


def test_queries_are_matched_before_averaging():
    first = np.stack([boxes((2, 2, 20, 20)), boxes((50, 30, 20, 20)), boxes()])
    members = np.stack([first, first[[2, 0, 1]], first[[1, 2, 0]]])
    matched = extract.match_queries(members)
    assert (matched == first).all()


@pytest.mark.parametrize(
    "first, second",
    [
        # one pair alike and one apart is better than two pairs that are half alike
        ((range(20), range(11, 20)), (range(20), range(9))),
        # a mask of one pixel counts as much as a large one
        (((0,), (0, 2)), ((0,), (0, 1))),
    ],
)
def test_a_query_that_comes_again_whole_is_the_same(first, second):
    members = np.zeros((2, 2, 1, 20), np.float32)
    for member, masks in zip(members, (first, second)):
        for query, mask in zip(member, masks):
            query[0, list(mask)] = 0.9
    assert (extract.match_queries(members) == members).all()
    assert (extract.match_queries(np.stack([members[0], members[1, ::-1]])) == members).all()


def test_evidence_by_hand():
    confidence = boxes((0, 0, 32, 32), height=64, width=64, value=0.8)
    weaker = boxes((0, 0, 32, 16), height=64, width=64, value=0.8)
    similarity = np.full((2, 4, 4), [[[0.0]], [[0.35]]], np.float32)
    similarity[0, :2, :2] = 0.6
    part = confidence > 0.5
    nothing = np.zeros_like(part)
    rival = boxes((0, 0, 8, 32), height=64, width=64, value=0.6)
    rival[:32, 8:16] = 0.2
    one = extract.weigh(confidence[None], part, nothing, 0.5, similarity, rival, weaker, pixel_area=3.0, asked=3)
    assert (one.size, one.rarity) == pytest.approx((0.75, 0.25))  # 32 x 32 canvas pixels, each 3 pixels of the image
    assert (one.confidence, one.agreement, one.stability) == pytest.approx((0.8, 1.0, 1.0))
    assert (one.similarity, one.lead, one.coarse) == pytest.approx((0.6, 0.8, 0.5))
    assert one.distinction == pytest.approx(0.5 + 0.5 * 0.25)
    assert one.support == pytest.approx(0.4)
    assert one.completeness == 0.5
    assert one.uncontested == pytest.approx(1 - 1 / 8)  # of the strip with 0.6, the upper half is this object's
    two = extract.weigh(np.stack([confidence, weaker]), part, nothing, 0.5, similarity, rival * 0)
    assert two.agreement == pytest.approx(0.75)  # the second member has half of the mask
    assert two.confidence == two.support == pytest.approx(0.6)
    assert two.stability == pytest.approx(0.5)  # half lies at 0.8, half at 0.4
    assert two.coarse == two.uncontested == 1.0
    assert two.size == extract.size_evidence(1024)  # pixels of the canvas, unless it is told what they cover
    assert two.rarity == extract.rarity_evidence(1)


def test_pixels_go_to_confidence_times_score():
    left, right = candidate(0, 0.9, 0, 0, 20, 20), candidate(1, 0.6, 14, 0, 20, 20)
    (first, a), (second, b) = extract.resolve([right, left], 40, 40, 0.5, 1)
    assert (first.index, second.index) == (0, 1)
    assert not (a & b).any()
    assert (a.sum(), b.sum()) == (400, 280)
    sure = candidate(1, 0.6, 14, 0, 20, 20, value=0.99)
    doubtful = candidate(0, 0.62, 0, 0, 20, 20, value=0.6)
    masks = {c.index: int(m.sum()) for c, m in extract.resolve([sure, doubtful], 40, 40, 0.5, 1)}
    assert masks == {0: 280, 1: 400}  # 0.6 * 0.62 < 0.99 * 0.6


def test_what_better_ones_explain_goes():
    best, same, other = (
        candidate(0, 0.9, 0, 0, 20, 20),
        candidate(0, 0.8, 2, 2, 10, 10),
        candidate(1, 0.7, 1, 1, 18, 18),
    )
    kept = extract.resolve([best, same, other], 40, 40, 0.5, 1)
    assert [c.index for c, _ in kept] == [0]
    copies = [candidate(0, 0.9, 0, 0, 10, 10), candidate(0, 0.8, 20, 0, 10, 10)]
    assert len(extract.resolve(copies, 40, 40, 0.5, 1)) == 2


def test_small_masks_and_crumbs_go():
    assert extract.resolve([candidate(0, 0.9, 0, 0, 3, 3)], 40, 40, 0.5, 10) == []
    mask = boxes((0, 0, 30, 30), (60, 60, 3, 3), height=80, width=80) > 0
    assert extract.without_specks(mask).sum() == 900
    two = boxes((0, 0, 30, 30), (50, 50, 20, 20), height=80, width=80) > 0
    assert extract.without_specks(two).sum() == 1300
    # a crumb is less than a fiftieth: a pixel of 50 is none, a pixel of 51 is
    for pixels, left in ((49, 50), (50, 50)):
        mask = boxes((0, 0, pixels, 1), (60, 5, 1, 1), height=8, width=80) > 0
        assert extract.without_specks(mask).sum() == left


def test_pinholes_are_closed_and_other_holes_are_not():
    whole_mask = np.zeros((40, 40), bool)
    whole_mask[5:35, 5:35] = True  # 900 pixels: holes of up to 8 are below a hundredth of what is left
    everywhere = np.ones((40, 40), bool)

    def pierced(*holes):
        mask = whole_mask.copy()
        for y, x, h, w in holes:
            mask[y : y + h, x : x + w] = False
        return mask

    assert (extract.without_pinholes(pierced((10, 10, 2, 4), (20, 20, 1, 1)), everywhere) == whole_mask).all()
    large = pierced((10, 10, 3, 3))  # 9 of 891
    assert (extract.without_pinholes(large, everywhere) == large).all()
    bay = pierced((10, 5, 1, 2), (34, 20, 1, 1), (5, 30, 1, 1), (20, 34, 1, 1))  # open to the outside
    assert (extract.without_pinholes(bay, everywhere) == bay).all()
    corner = pierced((10, 10, 1, 5), (11, 15, 1, 5))  # two holes that meet at a corner are two
    assert (extract.without_pinholes(corner, everywhere) == whole_mask).all()
    hole = pierced((10, 10, 2, 2), (20, 20, 2, 2))
    occupied = everywhere.copy()
    occupied[11, 11] = False  # something else is seen there
    assert (extract.without_pinholes(hole, occupied) == pierced((10, 10, 2, 2))).all()
    for cut in (np.s_[:, 6:], np.s_[:, :30], np.s_[6:], np.s_[:30]):  # at the edge of what was looked at
        notched = pierced((6, 20, 1, 2), (20, 6, 2, 1), (29, 20, 1, 2), (20, 29, 2, 1))[cut]
        closed = extract.without_pinholes(notched, everywhere[cut])
        assert (~closed & whole_mask[cut]).sum() == 2
    ring = np.ones((3, 5), bool)
    ring[1, 1:4] = False  # a quarter of 12
    assert extract.without_pinholes(ring, np.ones((3, 5), bool), 0.26).all()
    assert (extract.without_pinholes(ring, np.ones((3, 5), bool), 0.25) == ring).all()
    nothing = np.zeros((5, 5), bool)
    assert not extract.without_pinholes(nothing, ~nothing).any()


def test_a_hole_in_which_another_object_lies_stays_one():
    below = candidate(0, 0.8, 0, 0, 30, 30)
    on_top = candidate(1, 0.95, 10, 10, 2, 4)
    kept = {c.index: mask for c, mask in extract.resolve([below, on_top], 40, 40, 0.5, 1)}
    assert kept[0].sum() == 900 - 8 and kept[1].sum() == 8
    below.confidence[20, 20] = 0.4
    kept = {c.index: mask for c, mask in extract.resolve([below, on_top], 40, 40, 0.5, 1)}
    assert kept[0].sum() == 900 - 8 and kept[0][20, 20]


# The same by plain rules, over random input -----------------------------------------------------------------------


def random_candidates(rng, count):
    """Overlapping rectangles with holes, some at the border, values at the threshold among them."""
    found = []
    for n in range(count):
        h, w = rng.integers(3, 14, 2)
        confidence = rng.choice(np.array([0.0, 0.3, 0.5, 0.6, 0.75, 0.9], np.float32), (h, w))
        x, y = int(rng.integers(0, 30 - w)), int(rng.integers(0, 24 - h))
        found.append(Candidate(int(rng.integers(0, 3)), float(0.95 - 0.03 * n), EVIDENCE, confidence, x, y))
    return found


def whole(candidate_, height=24, width=30):
    """Its confidence in an image of its own."""
    image = np.zeros((height, width), np.float32)
    h, w = candidate_.confidence.shape
    image[candidate_.y : candidate_.y + h, candidate_.x : candidate_.x + w] = candidate_.confidence
    return image


@pytest.mark.parametrize("seed", range(40))
def test_overlap_is_the_common_area_over_the_smaller(seed):
    a, b = random_candidates(np.random.default_rng(seed), 2)
    first, second = whole(a) > 0.5, whole(b) > 0.5
    smaller = min(first.sum(), second.sum())
    wanted = (first & second).sum() / smaller if smaller else 0.0
    assert extract._overlap(a, b, 0.5) == extract._overlap(b, a, 0.5) == pytest.approx(wanted)


def test_candidates_that_only_touch_do_not_overlap():
    for x, y in ((10, 0), (0, 10), (20, 0), (0, 20), (10, 10), (20, 20)):
        assert extract._overlap(candidate(0, 1, 0, 0, 10, 10), candidate(0, 1, x, y, 10, 10), 0.5) == 0.0
    one = candidate(0, 1, 5, 7, 1, 1)
    assert extract._overlap(one, candidate(0, 1, 0, 0, 20, 9), 0.5) == 1.0


@pytest.mark.parametrize("seed", range(40))
def test_resolve_by_plain_rules(seed):
    candidates = random_candidates(np.random.default_rng(seed), 8)
    kept, taken = [], np.zeros((24, 30), bool)
    for one in candidates:  # they come best first
        mask = whole(one) > 0.5
        if mask.sum() < 12:
            continue
        same = [k for k in kept if k.index == one.index]
        if any(
            (mask & (whole(k) > 0.5)).sum() / min(mask.sum(), (whole(k) > 0.5).sum()) > extract.DUPLICATE_SHARE
            for k in same
        ):
            continue
        if (taken & mask).sum() > extract.EXPLAINED_SHARE * mask.sum():
            continue
        taken |= mask
        kept.append(one)
    claims = np.stack([np.zeros((24, 30)), *(np.where(whole(k) > 0.5, whole(k) * k.score, 0.0) for k in kept)])
    owner = claims.astype(np.float32).argmax(0)  # of equals the first
    wanted = []
    for number, one in enumerate(kept, start=1):
        mask = extract.without_specks(owner == number)
        part = np.s_[one.y : one.y + one.confidence.shape[0], one.x : one.x + one.confidence.shape[1]]
        mask[part] = extract.without_pinholes(mask[part], owner[part] == 0)
        if mask.sum() >= 12:
            wanted.append((one, mask))
    shuffled = [candidates[n] for n in np.random.default_rng(seed).permutation(8)]
    found = extract.resolve(shuffled, 24, 30, 0.5, 12)
    assert [one for one, _ in found] == [one for one, _ in wanted]
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        assert ours.dtype == bool
        assert (ours == theirs).all()


def test_the_rules_of_resolve_at_their_edges():
    """A mask of just enough pixels stays, and a small or explained one does not end the others."""
    small, enough = candidate(0, 0.9, 0, 0, 3, 3), candidate(1, 0.8, 10, 0, 5, 2)
    assert [c.index for c, _ in extract.resolve([small, enough], 40, 40, 0.5, 10)] == [1]
    best, copy, third = candidate(0, 0.9, 0, 0, 10, 10), candidate(0, 0.8, 0, 0, 10, 9), candidate(2, 0.7, 20, 0, 5, 5)
    assert [c.index for c, _ in extract.resolve([best, copy, third], 40, 40, 0.5, 1)] == [0, 2]
    hidden = candidate(1, 0.8, 1, 1, 8, 8)
    assert [c.index for c, _ in extract.resolve([best, hidden, third], 40, 40, 0.5, 1)] == [0, 2]
    # six tenths are shared: of the same object or another, no more than that is allowed
    for index in (0, 1):
        shared = [candidate(0, 0.9, 0, 0, 10, 10), candidate(index, 0.8, 4, 0, 10, 10)]
        assert len(extract.resolve(shared, 40, 40, 0.5, 1)) == 2
        shared[1] = candidate(index, 0.8, 3, 0, 10, 10)
        assert len(extract.resolve(shared, 40, 40, 0.5, 1)) == 1
    # two better ones explain together
    halves = [candidate(0, 0.9, 0, 0, 10, 10), candidate(1, 0.85, 10, 0, 10, 10), candidate(2, 0.8, 0, 0, 20, 10)]
    assert [c.index for c, _ in extract.resolve(halves, 40, 40, 0.5, 1)] == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_box_is_the_least_that_holds_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 30), bool)
    mask[rng.integers(0, 20, 3), rng.integers(0, 30, 3)] = True
    rows, columns = np.nonzero(mask)
    x, y, w, h = extract.box_of(mask)
    assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


@pytest.mark.parametrize("pixels", [2, 3, 9])
def test_growing_takes_a_square_around_every_pixel(pixels):
    mask = np.random.default_rng(pixels).random((40, 50)) > 0.995
    wanted = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        wanted[max(y - pixels, 0) : y + pixels + 1, max(x - pixels, 0) : x + pixels + 1] = True
    assert (extract._grow(mask, pixels) == wanted).all()


@pytest.mark.parametrize("share", [0.04, 0.3])
@pytest.mark.parametrize("seed", range(20))
def test_matching_finds_the_order_with_the_best_overlaps(seed, share):
    from itertools import permutations

    rng = np.random.default_rng(seed)
    members = rng.choice(np.array([0.0, 0.5, 0.8], np.float32), (2, 3, 5, 6), p=[0.8 - share, 0.2, share])
    members[rng.random(members.shape) > 0.95] = np.nan
    masks = np.nan_to_num(members) > 0.5

    def total(order):
        pairs = [(masks[0, n], masks[1, order[n]]) for n in range(3)]
        return sum((a & b).sum() / max((a | b).sum(), 1) for a, b in pairs)

    matched = extract.match_queries(members)
    order = [next(k for k in range(3) if np.array_equal(members[1, k], one, equal_nan=True)) for one in matched[1]]
    assert sorted(order) == [0, 1, 2]
    assert total(order) == pytest.approx(max(total(p) for p in permutations(range(3))))
    assert np.array_equal(matched[0], members[0], equal_nan=True)
    alone = members[:, :1]
    assert extract.match_queries(alone) is alone
    assert extract.match_queries(members[:1]).base is members


@pytest.mark.parametrize("seed", range(20))
def test_evidence_by_plain_rules(seed):
    rng = np.random.default_rng(seed)
    members = rng.choice(np.array([0.1, 0.3, 0.4, 0.5, 0.7, 0.8], np.float32), (2, 32, 48))
    members[:, 8:20, 10:30] = 0.85
    members[1, 12:16, 10:20] = np.nan
    part, others = boxes((10, 8, 20, 12), height=32, width=48) > 0, boxes((36, 4, 6, 20), height=32, width=48) > 0
    similarity, common = maps = rng.uniform(-0.5, 1.4, (2, 2, 3)).astype(np.float32)
    rival = rng.choice(np.array([0.2, 0.3, 0.9], np.float32), (32, 48))
    coarse = rng.choice(np.array([0.1, 0.2, 0.3, 0.6], np.float32), (32, 48)) * float(rng.choice([0.5, 1.0]))
    one = extract.weigh(members, part, others, 0.5, maps, rival, coarse)

    near = np.zeros_like(part)
    near[0:29, 1:39] = True  # nine pixels around
    near &= ~others
    mean = extract.average(members)

    def iou(a, b):
        return (a & b).sum() / max((a | b).sum(), 1)

    assert one.confidence == pytest.approx(mean[part].mean())
    wanted = np.mean([iou((m > 0.5) & near, part & ~np.isnan(m)) for m in members])
    assert one.agreement == pytest.approx(wanted)
    assert one.stability == pytest.approx(((mean > 0.7) & near).sum() / ((mean > 0.3) & near).sum())
    share = np.array([[part[y : y + 16, x : x + 16].mean() for x in (0, 16, 32)] for y in (0, 16)])
    inside = (similarity * share).sum() / share.sum()
    outside = (similarity * (1 - share)).sum() / (1 - share).sum()
    assert one.similarity == pytest.approx(min(max(inside, 0.0), 1.0), abs=1e-5)
    assert one.lead == pytest.approx(min(max(0.5 + 0.5 * (inside - outside), 0.0), 1.0), abs=1e-5)
    wanted = 0.5 + 0.5 * (inside - (common * share).sum() / share.sum())
    assert one.distinction == pytest.approx(min(max(wanted, 0.0), 1.0), abs=1e-5)
    cut = min(0.5, 0.5 * coarse[part].max())
    assert one.coarse == pytest.approx(iou((coarse > cut) & ~others, part))
    assert one.support == pytest.approx(coarse[part].mean())
    assert one.uncontested == pytest.approx(1 - (rival[part] > np.maximum(coarse[part], 0.3)).mean())


@pytest.mark.parametrize("turn", range(4))
def test_a_part_is_split_at_its_necks(turn):
    def of(*rectangles):
        mask = np.zeros((60, 100), bool)
        for x, y, w, h in rectangles:
            mask[y : y + h, x : x + w] = True
        return np.rot90(mask, turn)

    left, right, seam = (5, 10, 30, 40), (45, 10, 40, 40), (35, 20, 10, 20)
    pieces = extract.split(of(left, right, seam))
    assert (sum(pieces) == of(left, right, seam)).all()
    assert [bool((piece & of(side)).sum() > 0.97 * of(side).sum()) for piece, side in zip(pieces, (right, left))]
    assert len(pieces) == 2 and not (pieces[0] & pieces[1]).any()
    # three at once where the necks are alike
    assert len(extract.split(of((2, 10, 24, 30), (34, 10, 24, 30), (66, 10, 24, 30), (26, 20, 40, 10)))) == 3
    assert extract.split(of((5, 10, 80, 30))) == []  # no neck
    assert extract.split(of(left, right, (35, 13, 10, 34))) == []  # next to none
    assert extract.split(of(left, (45, 25, 10, 10), (35, 28, 10, 4))) == []  # no piece, but a knob
    assert extract.split(of(left, right)) == []  # put together over what lies between
    assert extract.split(np.zeros((8, 8), bool)) == []
    beads = [(4 + 10 * n, 10, 8, 8) for n in range(9)]
    assert extract.split(of((4, 13, 88, 2), *beads)) == []  # too many to be copies
    assert len(extract.split(of((4, 13, 78, 2), *beads[:8]))) == 8
    speck = of(left, right, seam, (90, 50, 2, 2))
    assert len(extract.split(speck)) == 2 and (sum(extract.split(speck)) == speck).all()


def test_completeness_is_the_share_of_what_looks_like_an_object_that_is_given_to_one():
    similarity = np.zeros((3, 2, 4, 6), np.float32)
    similarity[:, 1, 1, 1:5] = 0.75  # four patches look like some object,
    similarity[2, 0, 3, 0:2] = 0.9  # two like the third one asked for,
    similarity[1, 0, 0, :] = 0.65  # and these like none
    likeness = extract.objectness(similarity)
    assert likeness.shape == (4, 6) and (likeness > 0.7).sum() == 6
    confidence = np.zeros((3, 2, 32, 48), np.float32)
    assert extract.completeness(likeness, confidence) == pytest.approx(1 / 8)
    confidence[0, 1, 8:16, 8:24] = 0.9  # over two of the patches
    assert extract.completeness(likeness, confidence) == pytest.approx(3 / 8)
    confidence[1, 0, 8:16, 16:40] = 0.5  # one of those again, and the other two
    assert extract.completeness(likeness, confidence) == pytest.approx(5 / 8)
    confidence[2, 0, 24:32, 0:3] = 1.0  # not half of a patch
    assert extract.completeness(likeness, confidence) == pytest.approx(5 / 8)
    assert extract.completeness(np.zeros((4, 6), np.float32), confidence) == 0.5


def test_evidence_stays_between_0_and_1():
    part = boxes((0, 0, 16, 16), height=32, width=32) > 0
    for inside, outside, similarity, lead in ((3.0, -3.0, 1.0, 1.0), (-3.0, 3.0, 0.0, 0.0)):
        values = np.full((2, 2, 2), outside, np.float32)
        values[0, 0, 0] = inside
        one = extract.weigh(part[None] * np.float32(0.9), part, ~part, 0.5, values, np.zeros(part.shape, np.float32))
        assert (one.similarity, one.lead, one.distinction) == (similarity, lead, lead)


def evidence(members, part, threshold=0.5, similarity=None, others=None, **options):
    """Evidence without rivals."""
    similarity = np.zeros((part.shape[0] // 16, part.shape[1] // 16), np.float32) if similarity is None else similarity
    similarity = np.stack([similarity, similarity])
    others = np.zeros_like(part) if others is None else others
    return extract.weigh(
        members.astype(np.float32), part, others, threshold, similarity, np.zeros(part.shape, np.float32), **options
    )


def test_similarity_of_parts_and_gaps_smaller_than_a_latent_pixel():
    """They are weighed against themselves, however small."""
    similarity = np.array([[0.8, 0.2], [0.2, 0.2]], np.float32)
    for part, inside, outside in (
        (boxes((4, 4, 8, 8), height=32, width=32) > 0, 0.8, (0.75 * 0.8 + 0.6) / 3.75),
        (boxes((4, 4, 8, 8), height=32, width=32) == 0, (0.75 * 0.8 + 0.6) / 3.75, 0.8),
    ):
        one = evidence(part[None] * 0.9, part, similarity=similarity)
        assert one.similarity == pytest.approx(inside, abs=1e-5)
        assert one.lead == pytest.approx(0.5 + 0.5 * (inside - outside), abs=1e-5)
    everything = np.ones((32, 32), bool)
    assert evidence(everything[None] * 0.9, everything, similarity=similarity).lead == pytest.approx(0.5 + 0.5 * 0.35)


def test_a_member_that_does_not_see_the_part_does_not_agree():
    part = boxes((4, 4, 8, 8), height=32, width=32) > 0
    members = np.stack([part * 0.9, np.where(part, np.nan, 0.0)])
    assert evidence(members, part).agreement == 0.5


def test_stability_of_a_part_that_is_hardly_there():
    part = boxes((4, 4, 2, 2), height=32, width=32) > 0
    faint = part * 0.25
    assert evidence(faint[None], part, threshold=0.2).stability == 0.0
    faint[4, 4] = 0.9
    assert evidence(faint[None], part, threshold=0.2).stability == 1.0


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_part_is_lifted_to_its_place_in_the_image(mirrored):
    """A canvas of the image's own resolution: values come back as they are, soft three pixels around the part."""
    from ocdit_ros.segment.views import View

    view = View(x=20, y=10, width=32, height=32, canvas=(32, 32), mirrored=mirrored)
    confidence = np.random.default_rng(1).random((32, 32), np.float32)
    part, others = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    part[8:16, 6:12] = True
    others[:, 13:] = True
    patch, x, y = extract.lift(confidence, part, others, view, 60, 80)
    soft = np.zeros((32, 32), np.float32)
    soft[5:19, 3:13] = confidence[5:19, 3:13]  # three pixels around, without the others
    image = np.zeros((60, 80), np.float32)
    image[10:42, 20:52] = soft[:, ::-1] if mirrored else soft
    lifted = np.zeros((60, 80), np.float32)
    lifted[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    assert (patch.shape, patch.dtype) == ((14, 10), np.float32)
    np.testing.assert_allclose(lifted, image, atol=1e-4)


def test_parts_at_the_edges_of_the_rules():
    # pixels that touch at a corner are one part, values at the threshold belong to none
    corner = boxes((0, 0, 4, 4), (4, 4, 4, 4))
    assert len(extract.separate(corner, 0.5)) == 1
    assert extract.separate(boxes((0, 0, 4, 4), value=0.5), 0.5) == []
    # four pixels are a part, three are none
    assert [int(p.sum()) for p in extract.separate(boxes((0, 0, 2, 2)), 0.5)] == [4]
    assert extract.separate(boxes((0, 0, 3, 1)), 0.5) == []
    assert (extract.separate(boxes((3, 2, 5, 4)), 0.5)[0] == (boxes((3, 2, 5, 4)) > 0)).all()
    # largest first, wherever it lies
    parts = extract.separate(boxes((0, 0, 8, 8), (40, 20, 20, 20), (0, 40, 12, 12)), 0.5)
    assert [int(p.sum()) for p in parts] == [400, 144]  # 64 is less than a fifth
    # no more than sixteen
    many = boxes(*[(5 * (n % 6), 5 * (n // 6), 3, 3) for n in range(18)])
    assert len(extract.separate(many, 0.5)) == 16
    # half the threshold does not connect
    two = boxes((2, 10, 20, 20), (50, 10, 20, 20))
    two[15:20, 22:50] = 0.25
    assert len(extract.separate(two, 0.5)) == 2


def test_a_fragment_is_less_than_a_fifth_and_near():
    """Near: within half the side of a square of the larger one's area."""
    for fragment, left in (((31, 2, 4, 4), [416]), ((32, 2, 4, 4), [400])):
        assert [int(p.sum()) for p in extract.separate(boxes((2, 2, 20, 20), fragment), 0.5)] == left
    # a fifth is an instance, near or far
    for x in (26, 70):
        assert [int(p.sum()) for p in extract.separate(boxes((2, 2, 20, 20), (x, 2, 8, 10)), 0.5)] == [400, 80]
    # two pixels are near to the smallest
    for x, left in ((8, [29]), (9, [25])):
        assert [int(p.sum()) for p in extract.separate(boxes((2, 2, 5, 5), (x, 3, 2, 2)), 0.5)] == left


def test_more_than_half_of_a_gap_is_covered():
    parts = boxes((2, 10, 20, 20), (26, 10, 20, 20))  # the gap between them is 4 x 20
    for rows, count in ((0, 2), (4, 2), (10, 2), (11, 1), (20, 1)):
        occluders = boxes((22, 10, 4, rows)) > 0
        assert len(extract.separate(parts, 0.5, occluders=occluders)) == count, rows


def test_the_gap_is_measured_by_the_longer_side_of_the_larger_part():
    occluders = np.ones((64, 96), bool)
    # the longest side counts, whichever part has it
    for first, second in (
        ((2, 10, 30, 12), (46, 10, 12, 29)),
        ((2, 10, 12, 29), (28, 10, 30, 12)),
        ((2, 10, 15, 15), (31, 10, 30, 6)),
        ((2, 10, 15, 15), (31, 10, 6, 30)),
    ):
        assert second[0] - first[0] - first[2] == 14
        assert len(extract.separate(boxes(first, second), 0.5, occluders=occluders)) == 1
        further = (second[0] + 2, *second[1:])
        assert len(extract.separate(boxes(first, further), 0.5, occluders=occluders)) == 2
