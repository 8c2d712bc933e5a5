# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The map from raw scores to probabilities that a checkpoint brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

METADATA_KEY = "calibration"
_KINDS = ("identity", "logistic", "isotonic")


@dataclass(frozen=True)
class Calibration:
    """A non-decreasing map 0..1 -> 0..1, so that it never changes the order of detections.

    `identity` has no parameters; `logistic` has (slope > 0, offset) on the logit of the score (Platt
    scaling); `isotonic` has knots (x0, y0, x1, y1, ...) with straight lines between.

    Raises ValueError: the kind is not known, or the parameters do not describe such a map.
    """

    kind: str = "identity"
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"Calibration kind '{self.kind}' is not known; use one of {', '.join(_KINDS)}.")
        if not np.isfinite(self.parameters).all():
            raise ValueError("Calibration parameters must be finite numbers.")
        if self.kind == "logistic" and (len(self.parameters) != 2 or self.parameters[0] <= 0):
            raise ValueError("A logistic calibration needs a slope above 0 and an offset.")
        if self.kind == "isotonic":
            x, y = self.parameters[::2], self.parameters[1::2]
            if len(x) < 1 or len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
                raise ValueError("An isotonic calibration needs knots x0, y0, x1, y1, ... that never fall.")

    @staticmethod
    def logit(scores: np.ndarray) -> np.ndarray:
        """ln(s / (1 - s)), with s kept off 0 and 1."""
        clipped = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
        return np.log(clipped) - np.log1p(-clipped)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores, float64, same shape, in 0..1."""
        scores = np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0)
        if self.kind == "logistic":
            slope, offset = self.parameters
            return 1.0 / (1.0 + np.exp(-(slope * self.logit(scores) + offset)))
        if self.kind == "isotonic":
            # Anchored at 0 and 1 so that scores beyond the outer knots keep their order.
            # Rounded, for between knots that differ by next to nothing the slope of a line has no number.
            x = np.round(np.array([0.0, *self.parameters[::2], 1.0]), 12)
            y = np.array([0.0, *self.parameters[1::2], 1.0])
            return np.clip(np.interp(np.round(scores, 12), x, y), 0.0, 1.0)
        return scores

    def to_json(self) -> str:
        """Text for a checkpoint's metadata."""
        return json.dumps({"kind": self.kind, "parameters": list(self.parameters)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Calibration:
        """Calibration under `calibration` in a checkpoint's metadata (text or mapping); identity when there
        is none.

        Raises ValueError: the entry is there and unreadable.
        """
        entry = metadata.get(METADATA_KEY)
        if entry is None:
            return cls()
        try:
            row = json.loads(entry) if isinstance(entry, str) else dict(entry)  # type: ignore[call-overload]
            return cls(str(row["kind"]), tuple(float(v) for v in row["parameters"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The calibration stored in the checkpoint cannot be used: {error}") from None
