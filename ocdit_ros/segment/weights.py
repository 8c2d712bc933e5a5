# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Where the weights lie that ship with the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ocdit_ros.segment.types import SegmentError


def weight_folders() -> list[Path]:
    """Folders that may hold weights, in the order they are searched: every install space, then the source
    tree.

    ament's index is read from the environment, so that nothing below the node imports ROS.
    """
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(prefix) / "share" / "ocdit_ros" / "weights" for prefix in prefixes if prefix]
    return [*installed, Path(__file__).resolve().parents[2] / "weights"]


def default_weights() -> Path:
    """The newest checkpoint, by name, of the first folder that has one.

    Raises SegmentError: there is none.
    """
    for folder in weight_folders():
        found = sorted(folder.glob("*.safetensors"))
        if found:
            return found[-1]
    places = ", ".join(f"'{folder}'" for folder in weight_folders())
    raise SegmentError(f"No weights (*.safetensors) in {places}; give the path of a checkpoint.")
