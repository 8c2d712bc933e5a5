# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: BOP data sets and result files, COCO AP, calibration, report.

Import the submodules; this file stays empty so that `ocdit --help` does not load pycocotools.
"""
