# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Every stage loses what it has to lose: a network that answers as told, and instances whose fate is known."""

import dataclasses

import numpy as np
import pytest
from segment_oracle import OracleNetwork, position_image, templates

from ocdit_ros.evaluate import losses
from ocdit_ros.evaluate.datasets import GroundTruth, ImageKey
from ocdit_ros.segment import Segmenter, SegmenterSettings

NAMES = ("a", "b", "c")
HERE, THERE = (20, 30, 50, 40), (170, 120, 50, 40)


def mask(*places):
    confidence = np.zeros((192, 256), np.float32)
    for x, y, w, h in places:
        confidence[y : y + h, x : x + w] = 0.95
    return confidence


class Told(OracleNetwork):
    """Sees in the coarse pass what `coarse` says, in crops what `truth` says."""

    def __init__(self, truth, coarse=None, queries=1):
        super().__init__(truth, queries)
        self.crops, self.whole = truth, truth if coarse is None else coarse

    def run(self, images, rows, slots, image_of_row, targets, *rest, **named):
        self.truth = self.whole if targets > 1 else self.crops
        return super().run(images, rows, slots, image_of_row, targets, *rest, **named)


def fate(instances, truth, coarse=None, threshold=0.3, queries=1, **changes):
    """Fates of instances [(name, place)] when the network sees {name: [mask per query]}."""
    network = Told({k: np.stack(v) for k, v in truth.items()},
                   None if coarse is None else {k: np.stack(v) for k, v in coarse.items()}, queries)  # fmt: skip
    settings = SegmenterSettings(**{"coarse_size": 128, "crop_size": 128, "score_threshold": 0.0, **changes})
    segmenter = Segmenter(network, settings)
    for name in NAMES:
        segmenter.add_templates(templates(name))
    annotated = [GroundTruth(1 + NAMES.index(name), mask(place) > 0.5, 1.0) for name, place in instances]
    annotated.append(GroundTruth(3, mask((0, 0, 5, 5)) > 0.5, 0.01))  # hidden: counts nowhere
    found = losses.trace_image(segmenter, position_image(), ImageKey(1, 2), NAMES, (1, 2, 3), annotated, threshold)
    assert len(found) == len(instances)
    assert all(f.stage in losses.STAGES for f in found)
    return found


def test_what_is_seen_is_found():
    one, two = fate([("a", HERE), ("b", THERE)], {"a": [mask(HERE)], "b": [mask(THERE)]})
    assert (one.stage, two.stage) == ("found", "found")
    assert one.best > 0.85 and one.oracle > 0.85 and one.score > 0.3
    assert one.size == pytest.approx(np.sqrt(50 * 40))


def test_an_object_that_the_coarse_pass_does_not_see():
    (blind,) = fate([("a", HERE)], {})
    assert (blind.stage, blind.best, blind.oracle) == ("unseen", 0.0, 0.0)
    assert np.isnan(blind.score)
    (missed,) = fate([("a", HERE)], {"a": [mask(HERE)]}, coarse={})
    assert missed.stage == "unseen"
    assert missed.oracle > 0.85  # it would be recognised in a crop


def test_a_place_that_the_coarse_pass_gives_to_another_object():
    (lost,) = fate([("a", HERE)], {"b": [mask(HERE)]})
    assert lost.stage == "taken"


def test_limits_on_the_number_of_proposals():
    instances, seen = [("a", HERE), ("a", THERE)], {"a": [mask(HERE, THERE)]}
    assert [f.stage for f in fate(instances, seen)] == ["found", "found"]
    stages = sorted(f.stage for f in fate(instances, seen, proposals_per_object=1))
    assert stages == ["capped", "found"]


def test_a_crop_that_shows_a_part():
    (lost,) = fate([("a", (20, 30, 200, 60))], {}, coarse={"a": [mask((20, 30, 70, 60))]}, crop_scale=1.0)
    assert lost.stage == "framed"


def test_a_crop_in_which_nothing_good_is_seen():
    (lost,) = fate([("a", HERE)], {"a": [mask((20, 30, 50, 15))]}, coarse={"a": [mask(HERE)]})
    assert lost.stage == "refine"
    assert 0.2 < lost.best < 0.5


def test_a_better_mask_of_the_same_object_covers_it():
    big = mask((20, 30, 110, 40))
    (lost,) = fate([("a", HERE)], {"a": [big, 0.7 * mask(HERE)]}, queries=2)
    assert lost.stage == "same"
    assert lost.best > 0.85


def test_another_object_explains_it():
    (lost,) = fate([("a", HERE)], {"a": [0.7 * mask(HERE)], "b": [mask(HERE)]})
    assert lost.stage == "other"
    assert lost.best > 0.85


def test_a_score_below_the_threshold():
    (lost,) = fate([("a", HERE)], {"a": [0.7 * mask(HERE)]}, threshold=0.999)
    assert lost.stage == "threshold"


def test_the_table_counts_every_instance_once():
    rows = [("found", 0.9), ("found", 0.2), ("unseen", 0.7), ("refine", 0.1)]
    lines = losses.stage_table(rows)
    assert lines[2].startswith("| unseen | 1 | 25.0 % | 1 |")
    assert lines[4].startswith("| found | 2 | 50.0 % | 1 |")
    assert lines[-1].startswith("| all | 4 | | 2 |")


def test_without_refinement_there_is_nothing_to_follow():
    with pytest.raises(ValueError, match="leave refinement on"):
        fate([("a", HERE)], {}, refine=False)


def test_a_whole_data_set():
    class One:
        images = [ImageKey(1, 0), ImageKey(1, 1)]  # noqa: RUF012
        categories = {1: "a", 2: "b"}  # noqa: RUF012

        def rgb(self, key):
            return position_image()

        def ground_truth(self, key):
            return [GroundTruth(1 + key.image_id, mask(HERE) > 0.5, 1.0)]

        def candidates(self, key):
            return [1, 2]

        def object_source(self, category_id):
            return dataclasses.replace(templates("x"), name=f"source of {category_id}")

    network = Told({"1": np.stack([mask(HERE)])})  # a shelf calls objects by their number
    segmenter = Segmenter(network, SegmenterSettings(coarse_size=128, crop_size=128, score_threshold=0.0))
    assert [f.stage for f in losses.trace(One(), segmenter, 0.3)] == ["found", "taken"]
