# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Average precision against numbers worked out by hand."""

import numpy as np
import pytest

from ocdit_ros.evaluate import coco
from ocdit_ros.evaluate.datasets import GroundTruth, ImageKey
from ocdit_ros.evaluate.submission import Detection

A, B = ImageKey(1, 0), ImageKey(1, 1)


def strip(start: int, width: int) -> np.ndarray:
    """Mask of `width` columns and 10 rows in an image of 200x40 pixels."""
    mask = np.zeros((40, 200), bool)
    mask[10:20, start : start + width] = True
    return mask


def detection(key: ImageKey, category: int, score: float, mask: np.ndarray) -> Detection:
    return Detection.from_mask(key, category, score, mask, time=0.1)


@pytest.fixture
def by_hand() -> tuple[dict, list]:
    """Object 1: two instances that count and an ignored one; object 2 is missed; object 3 is nowhere.

    The last detection of object 1 has IoU 410 / 500 = 0.82 with its instance.
    """
    truth = {
        A: [
            GroundTruth(1, strip(0, 50), 0.9),
            GroundTruth(1, strip(60, 50), 0.0999),
            GroundTruth(2, strip(150, 50), 0.1),
        ],
        B: [GroundTruth(1, strip(0, 50), 1.0)],
    }
    detections = [
        detection(B, 1, 0.8, strip(9, 41)),  # correct up to IoU 0.8; last in the file's image order though first here
        detection(A, 1, 0.9, strip(0, 50)),  # correct
        detection(A, 1, 0.8, strip(60, 50)),  # on the ignored instance: counts neither way
        detection(A, 1, 0.8, strip(120, 20)),  # wrong
        detection(A, 3, 1.0, strip(120, 20)),  # an object without instances has no AP
    ]
    return truth, detections


def test_average_precision_by_hand(by_hand):
    truth, detections = by_hand
    scores = coco.evaluate(truth, detections, [1, 2, 3])
    # In order of score, ties by image: correct, (ignored), wrong, correct. Recall 1/2, 1/2, 1; precision 1,
    # 1/2, 2/3. 51 of the 101 recall points lie at or below 1/2.
    up_to_08 = (51 + 50 * 2 / 3) / 101
    above_08 = 51 / 101
    ap_1 = (7 * up_to_08 + 3 * above_08) / 10
    assert scores.ap == pytest.approx(ap_1 / 2, abs=1e-9)  # object 2 has AP 0, object 3 is left out
    assert scores.ap50 == pytest.approx(up_to_08 / 2, abs=1e-9)
    assert scores.ap75 == pytest.approx(up_to_08 / 2, abs=1e-9)
    assert scores.ar == pytest.approx((0.7 * 1 + 0.3 * 0.5) / 2, abs=1e-9)
    one, two, three = scores.per_object
    assert (one.instances, two.instances, three.instances) == (2, 1, 0)
    assert one.ap == pytest.approx(ap_1, abs=1e-9)
    assert two.ap == 0
    assert np.isnan(three.ap) and np.isnan(three.ar)


def test_matches_say_which_detection_is_correct(by_hand):
    truth, detections = by_hand
    matches = coco.evaluate(truth, detections, [1, 2, 3]).matches
    assert [(m.detection, m.correct, m.ignored) for m in matches] == [
        (0, True, False),
        (1, True, False),
        (2, False, True),
        (3, False, False),
        (4, False, False),
    ]


def test_ties_follow_the_order_of_the_targets_file(by_hand):
    """With image B in a scene that comes first, the correct one of the tied detections is ranked before the
    wrong one.
    """
    truth, detections = by_hand
    first = ImageKey(7, 1)
    moved = [Detection(first, d.category_id, d.score, d.rle, d.box, d.time) if d.key == B else d for d in detections]
    scores = coco.evaluate({first: truth[B], A: truth[A]}, moved, [1, 2, 3])
    assert scores.ap50 == pytest.approx(1.0 / 2, abs=1e-9)  # precision 1 until recall 1


def test_an_ignored_instance_excuses_one_detection_only():
    """Marking ignored instances as COCO crowds would excuse both, and would excuse any detection inside one."""
    truth = {A: [GroundTruth(1, strip(0, 50), 0.05), GroundTruth(1, strip(100, 50), 1.0)]}
    good = detection(A, 1, 0.5, strip(100, 50))
    twice = [detection(A, 1, 0.9, strip(0, 50)), detection(A, 1, 0.8, strip(0, 50)), good]
    assert coco.evaluate(truth, twice, [1]).ap50 == pytest.approx(0.5)
    inside = [detection(A, 1, 0.9, strip(10, 5)), good]
    assert coco.evaluate(truth, inside, [1]).ap50 == pytest.approx(0.5)


def test_only_the_best_hundred_detections_of_an_object_count():
    truth = {A: [GroundTruth(1, strip(0, 50), 1.0)]}
    wrong = [detection(A, 1, 0.9, strip(100, 5)) for _ in range(100)]
    right = detection(A, 1, 0.1, strip(0, 50))
    assert coco.evaluate(truth, [*wrong, right], [1]).ap == 0
    assert coco.evaluate(truth, [*wrong[1:], right], [1]).ap == pytest.approx(0.01)


def test_perfect_and_empty_results():
    truth = {A: [GroundTruth(1, strip(0, 50), 1.0)], B: []}
    assert coco.evaluate(truth, [detection(A, 1, 0.3, strip(0, 50))], [1]).ap == pytest.approx(1.0)
    empty = coco.evaluate(truth, [], [1])
    assert empty.ap == 0 and empty.ar == 0 and empty.matches == ()
    assert np.isnan(coco.evaluate({B: []}, [], [1]).ap)


def test_detections_of_images_that_are_no_target_are_left_out():
    truth = {A: [GroundTruth(1, strip(0, 50), 1.0)]}
    detections = [detection(A, 1, 0.3, strip(0, 50)), detection(B, 1, 0.9, strip(0, 50))]
    assert coco.evaluate(truth, detections, [1]).ap == pytest.approx(1.0)


def test_a_mask_of_the_wrong_size_is_named():
    truth = {A: [GroundTruth(1, strip(0, 50), 1.0)]}
    with pytest.raises(ValueError, match="scene 1, image 0 is 20x10 pixels, the image 200x40"):
        coco.evaluate(truth, [detection(A, 1, 0.3, np.ones((10, 20), bool))], [1])
