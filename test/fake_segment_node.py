# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The real node, around the segmenter of node_fakes.py, as a program for the tests."""

import sys

from ocdit_ros.node.segment_node import main


def make(values):
    """Make the fake; imported late, as the node does with the real one."""
    from node_fakes import make_fake

    return make_fake(values)


if __name__ == "__main__":
    main(sys.argv, make)
