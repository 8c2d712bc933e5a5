# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From the network to instances one can trust: the Segmenter, its stages and its object catalogue."""

from ocdit_ros.segment.segmenter import Segmenter
from ocdit_ros.segment.types import Evidence, Instance, SegmentError, SegmenterSettings

__all__ = ["Evidence", "Instance", "SegmentError", "Segmenter", "SegmenterSettings"]
