# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""How far scores can be taken as probabilities, and the fit that makes them so.

A score s is calibrated when, among detections scored s, the fraction s is correct (COCO match at IoU 0.5).
Fits are made on held-out synthetic scenes only, and applied by
:class:`ocdit_ros.segment.calibration.Calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from ocdit_ros.segment.calibration import Calibration
from ocdit_ros.segment.scoring import Scorer


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections whose score lies in one interval."""

    low: float
    high: float
    count: int
    mean_score: float  # NaN when empty
    accuracy: float  # fraction that is correct; NaN when empty


def reliability(scores: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[ReliabilityBin]:
    """Reliability diagram over `bins` intervals of equal width in 0..1.

    Args:
        scores: float [N] in 0..1.
        correct: bool [N].

    Raises ValueError: the arrays differ in length or a score is outside 0..1.
    """
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=bool)
    if scores.shape != correct.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and correct {correct.shape} must be vectors of one length.")
    if scores.size and (scores.min() < 0 or scores.max() > 1 or not np.isfinite(scores).all()):
        raise ValueError("scores must lie in 0..1.")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.minimum((scores * bins).astype(int), bins - 1)  # 1.0 belongs to the last interval
    rows = []
    for b in range(bins):
        inside = index == b
        count = int(inside.sum())
        mean_score = float(scores[inside].mean()) if count else float("nan")
        accuracy = float(correct[inside].mean()) if count else float("nan")
        rows.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), count, mean_score, accuracy))
    return rows


def expected_calibration_error(scores: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """ECE: mean |accuracy - mean score| over the intervals, weighted by their counts (Guo et al., ICML 2017,
    eq. 3).

    NaN when there is no detection.
    """
    rows = [row for row in reliability(scores, correct, bins) if row.count]
    total = sum(row.count for row in rows)
    if not total:
        return float("nan")
    return sum(row.count * abs(row.accuracy - row.mean_score) for row in rows) / total


def calibration_error_by_chance(scores: np.ndarray, bins: int = 10, draws: int = 500) -> float:
    """ECE that perfectly calibrated detections with these scores have on average, by drawing which are correct.

    The ECE of few detections is never 0: with a few in each interval, the fraction that is correct scatters about the
    mean score. NaN when there is no detection.
    """
    scores = np.asarray(scores, dtype=float)
    if not scores.size:
        return float("nan")
    correct = np.random.default_rng(0).random((draws, scores.size)) < scores
    return float(np.mean([expected_calibration_error(scores, row, bins) for row in correct]))


def fit_logistic(scores: np.ndarray, correct: np.ndarray) -> Calibration:
    """Platt scaling: sigmoid(slope * logit(score) + offset), maximum likelihood with Platt's smoothed
    targets.

    Raises ValueError: all detections are correct, or none is; there is nothing to fit then.
    """
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=bool)
    positive, negative = int(correct.sum()), int((~correct).sum())
    if not positive or not negative:
        raise ValueError("A calibration needs correct and wrong detections; evaluate on more images.")
    x = Calibration.logit(scores)
    target = np.where(correct, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * x + parameters[1]
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    found = optimize.minimize(loss, np.array([1.0, 0.0]), method="BFGS")
    slope, offset = (float(v) for v in found.x)
    if slope <= 0:
        raise ValueError("Higher scores are not more often correct; these scores cannot be calibrated.")
    return Calibration("logistic", (slope, offset))


def fit_isotonic(scores: np.ndarray, correct: np.ndarray, knots: int = 20) -> Calibration:
    """Isotonic regression, kept as at most `knots` points with straight lines between (so that order is
    preserved).

    Raises ValueError: all detections are correct, or none is.
    """
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    if correct.min(initial=1.0) == correct.max(initial=0.0):
        raise ValueError("A calibration needs correct and wrong detections; evaluate on more images.")
    order = np.argsort(scores, kind="stable")
    fitted = optimize.isotonic_regression(correct[order]).x
    # Means of equally filled groups: single points of an isotonic fit are steps, and their ends are 0 or 1.
    groups = [g for g in np.array_split(np.arange(scores.size), min(knots, scores.size)) if g.size]
    x = np.array([scores[order][g].mean() for g in groups])
    y = np.array([fitted[g].mean() for g in groups])
    keep = np.concatenate(([True], np.diff(x) > 1e-6))
    return Calibration("isotonic", tuple(np.column_stack((x[keep], y[keep])).ravel().tolist()))


def fit_scorer(evidence: np.ndarray, correct: np.ndarray, penalty: float = 1.0) -> Scorer:
    """Logistic regression from evidence to correctness, by maximum likelihood with a quadratic penalty on the
    weights.

    All evidence speaks for an instance, so no weight is negative: what hardly varies where scores are fitted, as the
    agreement of one sample with itself, must not count against an ensemble later. `evidence` is float [N, 13] in the
    order of Evidence.names(), `correct` bool [N]. Raises ValueError when all detections are correct, or none is.
    """
    inputs, correct = Scorer.inputs(evidence), np.asarray(correct, dtype=float)
    if correct.min(initial=1.0) == correct.max(initial=0.0):
        raise ValueError("Fitting scores needs correct and wrong detections; evaluate on more images.")

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = inputs @ parameters[:-1] + parameters[-1]
        value = np.logaddexp(0.0, z).sum() - correct @ z + 0.5 * penalty * (parameters[:-1] ** 2).sum()
        residual = 1.0 / (1.0 + np.exp(-z)) - correct
        gradient = np.append(inputs.T @ residual + penalty * parameters[:-1], residual.sum())
        return float(value), gradient

    bounds = [(0.0, None)] * inputs.shape[1] + [(None, None)]
    found = optimize.minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    return Scorer(tuple(float(v) for v in found.x[:-1]), float(found.x[-1]))
