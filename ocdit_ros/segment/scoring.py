# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From evidence to a score in 0..1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ocdit_ros.segment.calibration import Calibration
from ocdit_ros.segment.types import Evidence

METADATA_KEY = "score"


@dataclass(frozen=True)
class Scorer:
    """Logistic regression on the logits of the evidence; without weights, half confidence and half agreement.

    The weights come from held-out synthetic scenes and travel with the checkpoint. `calibration` is applied
    last.

    Raises ValueError: there are not as many weights as kinds of evidence.
    """

    weights: tuple[float, ...] = ()  # in the order of Evidence.names()
    offset: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(Evidence.names()):
            raise ValueError(f"A scorer needs {len(Evidence.names())} weights, not {len(self.weights)}.")
        if not np.isfinite([*self.weights, self.offset]).all():
            raise ValueError("The weights of a scorer must be finite numbers.")

    @staticmethod
    def inputs(evidence: np.ndarray) -> np.ndarray:
        """What the regression sees of evidence float [..., 13]: logits, kept within +-5."""
        return np.clip(Calibration.logit(np.asarray(evidence, dtype=np.float64)), -5.0, 5.0)

    def __call__(self, evidence: Evidence) -> float:
        """Score of one instance."""
        if self.weights:
            z = float(self.inputs(evidence.vector()) @ np.array(self.weights) + self.offset)
            score = 1.0 / (1.0 + np.exp(-np.clip(z, -50.0, 50.0)))
        else:
            score = 0.5 * evidence.confidence + 0.5 * min(evidence.agreement, evidence.stability)
        return float(self.calibration(np.array(score)))

    def to_json(self) -> str:
        """Text for a checkpoint's metadata; the calibration is stored beside it."""
        return json.dumps({"evidence": list(Evidence.names()), "weights": list(self.weights), "offset": self.offset})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Scorer:
        """Scorer from a checkpoint's metadata; the plain one when there is none.

        Raises ValueError: the entry is there and unreadable, or was made for other evidence.
        """
        calibration = Calibration.from_metadata(metadata)
        entry = metadata.get(METADATA_KEY)
        if entry is None:
            return cls(calibration=calibration)
        try:
            row = json.loads(entry) if isinstance(entry, str) else dict(entry)  # type: ignore[call-overload]
            weights = dict(zip(row["evidence"], map(float, row["weights"]), strict=True))
            if unknown := weights.keys() - set(Evidence.names()):
                raise ValueError(f"it weighs evidence that this version does not have ({', '.join(sorted(unknown))})")
            # evidence that was thought of after the weights were fitted counts for nothing
            return cls(tuple(weights.get(name, 0.0) for name in Evidence.names()), float(row["offset"]), calibration)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The score weights stored in the checkpoint cannot be used: {error}") from None
