# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 side: read `segment_node.py` first, then the parts in the order in which a frame meets them.

images (message to pixels) -> worker (newest frame wins) -> segmenter -> messages (instances to messages)
"""
