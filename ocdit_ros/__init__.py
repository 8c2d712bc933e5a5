# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""OC-DiT for ROS 2: instance masks of objects that are known by their CAD mesh alone."""
