# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From evidence to scores, and pictures of results."""

import json

import numpy as np
import pytest

from ocdit_ros.evaluate.calibration import expected_calibration_error, fit_scorer
from ocdit_ros.segment import Instance, draw
from ocdit_ros.segment.calibration import Calibration
from ocdit_ros.segment.scoring import Scorer
from ocdit_ros.segment.types import Evidence


def test_without_weights_a_score_is_half_confidence_half_agreement():
    two_members = Evidence(0.8, 0.6, 0.9, 0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5)
    one_member = Evidence(0.8, 1.0, 0.4, 0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert Scorer()(two_members) == pytest.approx(0.7)
    assert Scorer()(one_member) == pytest.approx(0.6)  # its stability
    sharper = Scorer(calibration=Calibration("logistic", (2.0, 0.0)))
    assert sharper(two_members) == pytest.approx(0.7**2 / (0.7**2 + 0.3**2))


def test_fitted_scores_rank_better_and_are_calibrated():
    generator = np.random.default_rng(0)
    evidence = generator.uniform(0.05, 0.95, (4000, 13))
    chance = 1 / (1 + np.exp(-(3 * Calibration.logit(evidence[:, 3]) - 1)))  # similarity decides, nothing else
    correct = generator.uniform(size=4000) < chance
    scorer = fit_scorer(evidence[:2000], correct[:2000])
    scores = np.array([scorer(Evidence(*row)) for row in evidence[2000:]])
    plain = np.array([Scorer()(Evidence(*row)) for row in evidence[2000:]])
    truth = correct[2000:]

    def ranking(values):  # chance that a correct one scores above a wrong one
        return np.mean(values[truth][:, None] > values[~truth][None])

    assert ranking(scores) > 0.9 > ranking(plain)
    assert expected_calibration_error(scores, truth) < 0.04
    assert Scorer.from_metadata({"score": scorer.to_json()}) == scorer


def test_no_evidence_is_fitted_to_speak_against_an_instance():
    """The agreement of one sample with itself is 1 but for a few that happen to be right: an ensemble's is not."""
    generator = np.random.default_rng(1)
    evidence = generator.uniform(0.05, 0.95, (2000, 13))
    correct = generator.uniform(size=2000) < 1 / (1 + np.exp(-Calibration.logit(evidence[:, 3])))
    evidence[:, 1] = np.where(correct & (generator.uniform(size=2000) < 0.05), 0.9, 1.0)
    weights = np.array(fit_scorer(evidence, correct).weights)
    assert weights.min() == 0.0 == weights[1] and weights[3] == pytest.approx(1.0, abs=0.15)


def test_scorers_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="13 weights"):
        Scorer((1.0,))
    with pytest.raises(ValueError, match="finite"):
        Scorer(offset=float("inf"))
    entry = json.loads(Scorer((1.0,) * 13).to_json())
    with pytest.raises(ValueError, match=r"does not have \(luck\)"):
        Scorer.from_metadata({"score": {**entry, "evidence": ["luck"], "weights": [1.0]}})
    with pytest.raises(ValueError, match="cannot be used"):
        Scorer.from_metadata({"score": {**entry, "weights": [1.0]}})
    with pytest.raises(ValueError, match="cannot be used"):
        Scorer.from_metadata({"score": "nonsense"})
    assert Scorer.from_metadata({}) == Scorer()


def test_weights_fitted_before_some_evidence_was_known_still_count():
    names = [
        name for name in Evidence.names() if name not in ("size", "rarity", "scale", "distinction", "completeness")
    ]
    scorer = Scorer.from_metadata({"score": {"evidence": names, "weights": [1.0] * 8, "offset": -1.0}})
    row = (0.8, 0.6, 0.9, 0.1, 0.2, 0.3, 0.5, 0.5)
    assert scorer(Evidence(*row, 0.1, 0.02, 0.3)) == scorer(Evidence(*row, 0.9, 0.5, 0.7))
    assert scorer(Evidence(*row, 0.5, 0.5, 0.5)) == pytest.approx(
        Scorer((1.0,) * 13, -1.0)(Evidence(*row, 0.5, 0.5, 0.5))
    )


def instance(number, x, y, w, h, shape=(60, 80), name="mug"):
    mask = np.zeros(shape, bool)
    mask[y : y + h, x : x + w] = True
    return Instance(number, name, 0.9, mask, (x, y, w, h))


def test_overlay_tints_masks_and_leaves_the_rest():
    rgb = np.full((60, 80, 3), 100, np.uint8)
    picture = draw.overlay(rgb, [instance(1, 30, 30, 20, 20)], labels=False)
    assert (rgb == 100).all()
    assert (picture[:25] == 100).all()
    assert (picture[40, 40] != 100).any()
    labelled = draw.overlay(rgb, [instance(1, 30, 30, 20, 20, name="Tasse \N{HOT BEVERAGE}")])
    assert (labelled[:30] != 100).any()


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 400)])
def test_overlays_of_tiny_images(shape):
    rgb = np.zeros((*shape, 3), np.uint8)
    assert draw.overlay(rgb, [instance(1, 0, 0, 1, 1, shape)]).shape == (*shape, 3)


def test_label_image_numbers_instances_by_rank():
    labels = draw.label_image([instance(7, 0, 0, 10, 10), instance(7, 20, 20, 5, 5)], 60, 80)
    assert labels.dtype == np.uint16
    assert (labels[5, 5], labels[22, 22], labels[50, 70]) == (1, 2, 0)


def test_neighbouring_objects_have_distant_colours():
    for number in range(1, 40):
        assert np.abs(np.subtract(draw.colour(number), draw.colour(number + 1))).max() > 60


def test_trace_frames_show_the_strongest_claim():
    rgb = np.full((4, 6, 3), 120, np.uint8)
    confidence = np.zeros((2, 4, 6), np.float32)
    confidence[1, :, 3:] = 1.0
    frame = draw.trace_frame(rgb, confidence, [5, 9])
    assert (frame[:, :3] == frame[0, 0]).all()
    assert (np.abs(frame[0, 5].astype(int) - np.array(draw.colour(9))) < 50).all()
