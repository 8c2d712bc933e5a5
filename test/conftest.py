# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Surroundings of every test run: a DDS domain of its own, this machine only, one thread per process.

Set here and not in fixtures, because they have to stand before torch and rclpy are imported, and because the processes
that tests start inherit them.
"""

import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# --import-mode=importlib leaves this folder out of the search path; the helper modules in it are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

# Two cores share the tests, and a network of a few million weights gains nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _own_domain():
    """A DDS domain (0 to 101 are safe on Linux) that no other test run of this machine holds; freed at exit."""
    for number in random.SystemRandom().sample(range(1, 102), 101):
        file = open(Path(tempfile.gettempdir(), f"ocdit_ros_test_domain_{number}.lock"), "w")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
        else:
            return number, file
    raise RuntimeError("all DDS domains from 1 to 101 are taken by other test runs")


_domain, _domain_lock = _own_domain()
os.environ["ROS_DOMAIN_ID"] = str(_domain)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.pop("ROS_STATIC_PEERS", None)
# Without it best effort loses images, and a lost image would look like a fault of the node.
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_shm.xml")
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="ocdit_ros_test_log_"))


def _clean_shared_memory():
    """Free what killed nodes left in /dev/shm, 5 MiB each: among hundreds of such files discovery loses answers."""
    tool = shutil.which("fastdds")
    if tool and any(Path("/dev/shm").glob("fastrtps_*")):
        subprocess.run([tool, "shm", "clean"], check=False, capture_output=True, timeout=60)


def pytest_sessionstart():
    """Start without what earlier runs left."""
    _clean_shared_memory()


def pytest_sessionfinish():
    """Leave nothing of the nodes that tests have killed."""
    _clean_shared_memory()


# What tests of the node share. The imports wait until a test asks: most tests need no ROS.


@pytest.fixture(scope="module")
def robot():
    """The rest of the robot, in this process."""
    from node_harness import Robot

    one = Robot()
    yield one
    one.close()


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """Three boxes of 10 cm in millimetres, as a BOP folder with names."""
    import trimesh

    folder = tmp_path_factory.mktemp("models")
    for number in (1, 2, 3):
        trimesh.creation.box((100, 100, 100 + number)).export(folder / f"obj_{number:06d}.ply")
    (folder / "names.json").write_text('{"1": "mug", "2": "box", "3": "can"}')
    return folder


@pytest.fixture
def start(robot, tmp_path):
    """Start nodes that end with the test."""
    from node_harness import NodeUnderTest

    started = []

    def make(parameters, **options):
        folder = tmp_path / f"node_{len(started)}"
        folder.mkdir()
        started.append(NodeUnderTest(robot, folder, parameters, **options))
        return started[-1]

    yield make
    for one in started:
        one.end()
