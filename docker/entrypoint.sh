#!/usr/bin/env bash
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
#
# Run a command in the environment of the image: ROS 2, then .venv on top of it.

set -e
source /opt/ros/jazzy/setup.bash
source /opt/ocdit_ros/.venv/setup.bash
exec "$@"
