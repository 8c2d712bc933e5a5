# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Expected calibration error and the fits."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocdit_ros.evaluate import calibration
from ocdit_ros.segment.calibration import Calibration


def test_expected_calibration_error_by_hand():
    # 0.05 x 2, none correct: gap 0.05. 0.95 x 4, two correct: gap 0.45. 1.0 falls into the last interval,
    # too.
    scores = np.array([0.05, 0.05, 0.95, 0.95, 0.9, 1.0])
    correct = np.array([0, 0, 1, 0, 1, 0], bool)
    assert calibration.expected_calibration_error(scores, correct) == pytest.approx((2 * 0.05 + 4 * 0.45) / 6)
    assert np.isnan(calibration.expected_calibration_error(np.array([]), np.array([])))


def test_calibration_error_by_chance():
    one = calibration.calibration_error_by_chance(np.array([0.8]))  # 0.2 in four of five draws, else 0.8
    assert one == pytest.approx(0.32, abs=0.03)
    assert calibration.calibration_error_by_chance(np.array([0.0, 1.0])) == 0
    many = np.random.default_rng(1).random(20000)
    assert calibration.calibration_error_by_chance(many, draws=20) < 0.01
    drawn = np.random.default_rng(2).random(100) < (scores := many[:100])
    error = calibration.expected_calibration_error(scores, drawn)
    assert error == pytest.approx(calibration.calibration_error_by_chance(scores), abs=0.05)
    assert np.isnan(calibration.calibration_error_by_chance(np.array([])))


def test_scores_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        calibration.reliability(np.array([1.2]), np.array([True]))


@pytest.mark.parametrize("fit", [calibration.fit_logistic, calibration.fit_isotonic])
def test_fits_make_overconfident_scores_honest(fit):
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 1, 8000)
    correct = generator.uniform(0, 1, 8000) < truth
    scores = truth**0.3  # too high everywhere
    before = calibration.expected_calibration_error(scores[4000:], correct[4000:])
    fitted = fit(scores[:4000], correct[:4000])
    after = calibration.expected_calibration_error(fitted(scores[4000:]), correct[4000:])
    assert before > 0.2
    assert after < 0.04
    assert Calibration.from_metadata({"calibration": fitted.to_json()}) == fitted


@pytest.mark.parametrize("fit", [calibration.fit_logistic, calibration.fit_isotonic])
def test_nothing_to_fit(fit):
    with pytest.raises(ValueError, match="correct and wrong"):
        fit(np.array([0.2, 0.4]), np.array([True, True]))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50), st.integers(0, 2**16))
@example([5e-324, 2.225e-311, *[1.0] * 24], 0)
def test_a_calibration_never_changes_the_order(scores, seed):
    scores = np.sort(np.array(scores))
    correct = np.random.default_rng(seed).uniform(size=scores.size) < 0.5
    correct[:2] = [False, True]
    fitted = calibration.fit_isotonic(scores, correct)
    mapped = fitted(scores)
    assert (np.diff(mapped) >= 0).all()
    assert mapped.min() >= 0 and mapped.max() <= 1


@pytest.mark.parametrize(
    "kind, parameters",
    [("magic", ()), ("logistic", (-1.0, 0.0)), ("isotonic", (0.5, 0.5, 0.4, 0.6)), ("logistic", (1.0,))],
)
def test_maps_that_are_no_calibration_are_refused(kind, parameters):
    with pytest.raises(ValueError, match=r"[Cc]alibration"):
        Calibration(kind, parameters)


def test_no_metadata_is_the_identity_and_broken_metadata_is_named():
    assert Calibration.from_metadata({}) == Calibration()
    assert Calibration()(np.array([0.3])) == pytest.approx([0.3])
    with pytest.raises(ValueError, match="stored in the checkpoint"):
        Calibration.from_metadata({"calibration": "{}"})
