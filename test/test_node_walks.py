# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Every way through the lifecycle, many times, in one process: the states are right, and nothing is left behind."""

import os
import random
import time

import pytest
import trimesh
from node_harness import NodeUnderTest, wait_until

# About 2000 transitions: minutes on a crowded machine.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

WALKS, LENGTH = 200, 6

#: From each state: what can be asked for, and where it leads. A configure with bad weights leads nowhere.
LEGAL = {
    "unconfigured": {"configure": "inactive", "configure with bad weights": "unconfigured"},
    "inactive": {"activate": "active", "cleanup": "unconfigured"},
    "active": {"deactivate": "inactive"},
}

#: Where a walk ends that is not at home yet.
HOME = {"active": {"deactivate": "inactive"}, "inactive": {"cleanup": "unconfigured"}}


def sequences(state="unconfigured", length=LENGTH):
    """All legal sequences of this length."""
    if not length:
        return {()}
    return {
        (transition, *rest)
        for transition, after in LEGAL[state].items()
        for rest in sequences(after, length - 1)
    }  # fmt: skip


@pytest.fixture
def node(robot, tmp_path):
    trimesh.creation.box((100, 100, 100)).export(tmp_path / "obj_000001.ply")
    # Every thread that allocates may get an arena of the heap, which stays when what was in it is gone: with one for
    # all, what grows is lost.
    one = NodeUnderTest(robot, tmp_path, {"models_dir": str(tmp_path)}, MALLOC_ARENA_MAX="1")
    yield one
    one.end()


def resources(node):
    """Threads, open files and resident memory (kB) of the node's process."""
    folder = f"/proc/{node.program.process.pid}"
    with open(f"{folder}/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return int(lines["Threads"]), len(os.listdir(f"{folder}/fd")), int(lines["VmRSS"].split()[0])


def settled_graph(node):
    """The node's interface once it has not changed for a second: discovery brings it piece by piece."""
    seen, since = node.interface(), time.monotonic()
    deadline = since + 60
    while time.monotonic() - since < 1.0 or not seen["reply"]:
        assert time.monotonic() < deadline, "the graph does not come to rest"
        time.sleep(0.1)
        now = node.interface()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


def step(node, transition):
    """Do it; whether the node said that it succeeded."""
    bad = transition == "configure with bad weights"
    if bad:
        assert node.set("weights", "bad") == ""
    done = node.transition("configure" if bad else transition)
    if bad:
        assert not done
        assert node.set("weights", "") == ""
    return done or bad


def test_random_walks_end_where_they_should_and_leave_nothing_behind(node):
    possible, walked = sequences(), set()
    chooser = random.Random(8)
    assert node.state == "unconfigured"
    fresh = settled_graph(node)
    settled = None
    for walk in range(WALKS):
        state, done = "unconfigured", []
        while len(done) < LENGTH or state != "unconfigured":
            choices = LEGAL[state] if len(done) < LENGTH else HOME[state]
            transition, state = chooser.choice(sorted(choices.items()))
            assert step(node, transition), node.program.text
            assert node.state == state, (done, transition)
            done.append(transition)
        walked.add(tuple(done[:LENGTH]))
        if walk == WALKS // 5:  # pools and caches are filled by now
            settled = resources(node)
    assert walked <= possible
    assert len(walked) > 0.9 * len(possible), f"{len(walked)} of {len(possible)} sequences were walked"
    after = settled_graph(node)
    assert {right: after[right] ^ fresh[right] for right in fresh} == {right: set() for right in fresh}
    # The executor's pool may still have grown to its six threads; a worker kept by each configure would be hundreds.
    wait_until(lambda: resources(node)[0] <= settled[0] + 5, 20, "the threads to be gone")
    assert resources(node)[1] <= settled[1] + 8
    grown = resources(node)[2] - settled[2]
    assert grown < 8 * 1024, f"{grown} kB more after {WALKS} walks than after {WALKS // 5}"
