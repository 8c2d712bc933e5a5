# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Separation of parts, evidence, competition for pixels."""

import numpy as np
import pytest

from ocdit_ros.segment import extract
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.types import Evidence

EVIDENCE = Evidence(0.9, 1.0, 1.0, 0.5, 0.5, 1.0, 0.9, 1.0)


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


def test_evidence_by_hand():
    confidence = boxes((0, 0, 32, 32), height=64, width=64, value=0.8)
    weaker = boxes((0, 0, 32, 16), height=64, width=64, value=0.8)
    similarity = np.zeros((4, 4), np.float32)
    similarity[:2, :2] = 0.6
    part = confidence > 0.5
    nothing = np.zeros_like(part)
    rival = boxes((0, 0, 8, 32), height=64, width=64, value=0.6)
    rival[:32, 8:16] = 0.2
    one = extract.weigh(confidence[None], part, nothing, 0.5, similarity, rival, coarse=weaker)
    assert (one.confidence, one.agreement, one.stability) == pytest.approx((0.8, 1.0, 1.0))
    assert (one.similarity, one.lead, one.coarse) == pytest.approx((0.6, 0.8, 0.5))
    assert one.support == pytest.approx(0.4)
    assert one.uncontested == pytest.approx(1 - 1 / 8)  # of the strip with 0.6, the upper half is this object's
    two = extract.weigh(np.stack([confidence, weaker]), part, nothing, 0.5, similarity, rival * 0)
    assert two.agreement == pytest.approx(0.75)  # the second member has half of the mask
    assert two.confidence == two.support == pytest.approx(0.6)
    assert two.stability == pytest.approx(0.5)  # half lies at 0.8, half at 0.4
    assert two.coarse == two.uncontested == 1.0


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
