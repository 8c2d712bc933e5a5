# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From network to instances one can trust: the Segmenter, its stages and its object catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocdit_ros.segment.types import Evidence, Instance, SegmentError, SegmenterSettings, StreamSettings

if TYPE_CHECKING:
    from ocdit_ros.segment.segmenter import Segmenter

__all__ = ["Evidence", "Instance", "SegmentError", "Segmenter", "SegmenterSettings", "StreamSettings"]


def __getattr__(name: str) -> Any:
    """Import the Segmenter when it is first asked for: types and pictures do without PyTorch, which takes seconds."""
    if name != "Segmenter":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from ocdit_ros.segment.segmenter import Segmenter

    return Segmenter
