# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The node when the machine, the camera or the clock fails: it tells, and goes on by itself.

Kills are repeated fifty times each by killing.py; here a few. Soak: benchmark/soak.py.
"""

import resource
import subprocess
import time

import killing
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_harness import FAKE_NODE, NodeUnderTest, header, image, scene, wait_until
from rclpy import time_source
from rclpy.qos import QoSProfile

from ocdit_ros.node import faults

pytestmark = pytest.mark.integration

RED = scene(red=(10, 20, 30, 40))


def command(first, second, third=0):
    """A frame that orders trouble of the fake segmenter (node_fakes.py)."""
    picture = RED.copy()
    picture[0, 0] = first, second, third
    return picture


class Stream:
    """A camera of the node and the detections and diagnostics that come of it."""

    _number = 5000

    def __init__(self, node):
        self.node = node
        self.received, self.diagnostics = node.detections(), node.diagnostics()
        self.camera = node.matched()

    def send(self, pixels, encoding="rgb8"):
        Stream._number += 1
        head = header(Stream._number)
        self.camera.publish(image(pixels, head, encoding))
        return head

    def works(self, pixels=RED, encoding="rgb8", size=(30, 40)):
        """A frame gives its result; sent again if best effort lost it."""

        def found():
            head = self.send(pixels, encoding)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                if mine := [one for one in self.received if one.header == head]:
                    return mine
                time.sleep(0.02)
            return None

        (detection,) = wait_until(found, 30, "a result")[0].detections
        assert (detection.bbox.size_x, detection.bbox.size_y) == size

    def told(self, level, words, timeout=20):
        """The diagnostics say so, from now on."""
        since = len(self.diagnostics)
        name = f"{self.node.name.lstrip('/')}: segmentation"

        def find():
            said = [s for m in self.diagnostics[since:] for s in m.status if s.name == name]
            return [s for s in said if s.level == level and words in s.message]

        return wait_until(find, timeout, f"diagnostics with {words!r}")[0]


@pytest.fixture(scope="module")
def shared(robot, meshes, tmp_path_factory):
    one = NodeUnderTest(robot, tmp_path_factory.mktemp("faults"), {"models_dir": str(meshes), "autostart": True})
    one.program.wait_for("active, waiting for images")
    yield Stream(one)
    one.end()


@pytest.fixture
def stream(shared):
    """A node that is active and well, before and after."""
    yield shared
    defaults = {"watch_no_frames": 10.0, "watch_latency": 0.0, "watch_scores": 0.0, "score_threshold": 0.5}
    assert shared.node.set_all(defaults) == [""] * 4
    shared.works()


def test_a_node_that_is_killed_comes_back_with_a_sound_cache(tmp_path):
    counts = killing.killed(1, 4, tmp_path, ("cache", "frame"), talk=lambda _: None)
    assert (counts["cache: killed"], counts["frame: killed"]) == (1, 1)
    assert counts["objects made"] and counts["objects cached"]
    assert counts["warnings"] == 0


def test_memory_that_runs_out_costs_a_frame(stream):
    """Of the machine (a limit on the process), and of the GPU, as PyTorch says it."""
    process = stream.node.program.process.pid
    stream.works()
    with open(f"/proc/{process}/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(process, resource.RLIMIT_AS, (used + 256 * 1024**2, resource.RLIM_INFINITY))
    for pixels, words in (
        (command(7, 7, 2), "out of memory (MemoryError"),
        (command(7, 6), "out of memory (OutOfMemoryError: CUDA out of memory."),
    ):
        stream.send(pixels)
        status = stream.told(DiagnosticStatus.ERROR, words)
        assert "lower coarse_size" in status.message
        assert "\n" not in status.message
        stream.works()
    resource.prlimit(process, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stream.works()
    stream.told(DiagnosticStatus.OK, "active")
    assert stream.node.state == "active"


def test_a_lost_device_is_told_until_the_node_is_configured_again(stream):
    stream.send(command(7, 5))
    status = stream.told(DiagnosticStatus.ERROR, "the device was lost (RuntimeError: CUDA error: an illegal memory")
    assert "restart the node" in status.message
    time.sleep(6)  # longer than an error of a frame is told
    stream.told(DiagnosticStatus.ERROR, "the device was lost")
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert stream.node.transition(transition)
    stream.told(DiagnosticStatus.OK, "active")
    stream.works()


def test_a_camera_that_vanishes_is_told_and_may_come_back_as_another(stream):
    said = len(stream.node.program.lines)
    assert stream.node.set("watch_no_frames", 1.5) == ""
    stream.works()
    stream.told(DiagnosticStatus.OK, "active")
    stream.node.robot.node.destroy_publisher(stream.node._publishers.pop("image"))
    status = stream.told(DiagnosticStatus.WARN, f"no image on {stream.node.namespace}/image for ")
    assert "ros2 topic info" in status.message
    stream.camera = stream.node.matched()
    # Another driver: other resolution, other encoding; then both change in the stream.
    large = np.kron(scene(red=(10, 20, 30, 40)), np.ones((3, 3, 1), np.uint8))
    stream.works(large[..., ::-1], "bgr8", (90, 120))
    stream.told(DiagnosticStatus.OK, "active")
    for _ in range(3):
        stream.works()
        stream.works(large[..., ::-1], "bgr8", (90, 120))
        stream.works(np.dstack([large, large[..., 0]]), "rgba8", (90, 120))
    assert not [line for line in stream.node.program.lines[said:] if "[ERROR]" in line or "[WARN]" in line]


def test_slow_frames_and_falling_scores_are_told(stream):
    assert stream.node.set_all({"watch_latency": 0.5, "watch_scores": 0.6, "score_threshold": 0.1}) == [""] * 3
    stream.send(command(9, 9, 30))
    assert "lower steps" in stream.told(DiagnosticStatus.WARN, "the frame in hand has taken").message
    for _ in range(50):
        stream.works()
    stream.told(DiagnosticStatus.OK, "active")
    dark = RED // 2  # 127 of 255
    for _ in range(25):
        stream.works(dark)
    status = stream.told(DiagnosticStatus.WARN, "the best score of a frame fell from 1.00 to 0.50")
    assert "light" in status.message


def test_a_clock_that_jumps_back_stops_nothing(start, meshes):
    one = start({"models_dir": str(meshes), "autostart": True, "use_sim_time": True})
    one.program.wait_for("active, waiting for images")
    stream = Stream(one)
    clock = time_source.rosgraph_msgs.msg.Clock()
    publisher = one.robot.node.create_publisher(type(clock), "/clock", QoSProfile(depth=1))
    wait_until(publisher.get_subscription_count, 20, "the node to listen to /clock")
    for seconds in (2_000_000_000, 1_000, 1_700_000_000, 0):
        clock.clock.sec = seconds
        for _ in range(3):
            publisher.publish(clock)
            time.sleep(0.05)
        stream.works()
        broken = image(RED, header(4900))
        broken.encoding = "nv21"
        stream.camera.publish(broken)
        stream.told(DiagnosticStatus.ERROR, "nv21")
        stream.works()
    assert "Traceback" not in one.program.text
    one.robot.node.destroy_publisher(publisher)


def behind(mount):
    """The node in a mount name space, where `mount` was done; None where the machine does not allow that."""
    try:
        allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, timeout=20)
    except OSError:
        return None
    return None if allowed.returncode else ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *FAKE_NODE]


@pytest.mark.parametrize(
    "options, words",
    [("size=1m", "No space left on device"), ("ro", "Read-only file system")],
)
def test_a_disk_that_cannot_be_written_is_told_and_costs_nothing_else(start, meshes, tmp_path, options, words):
    cache = tmp_path / "cache"
    cache.mkdir()
    node = behind(f"mount -t tmpfs -o {options} tmpfs {cache}")
    if node is None:
        pytest.skip("this machine does not let a test mount a small disk")
    given = {"models_dir": str(meshes), "weights": "caching", "cache_dir": str(cache), "autostart": True}
    one = start(given, command=node)
    one.program.wait_for("active, waiting for images")
    assert f"templates are not cached ({words})" in one.program.text
    Stream(one).works()
    assert one.trigger("reload_objects").success
    assert "Traceback" not in one.program.text


@pytest.mark.parametrize(
    "error, memory, lost",
    [
        (MemoryError(), True, False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("OpenCV(4.14.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"), True, False),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 7"), False, False),
        (ValueError("x" * 5000), False, False),
    ],
)
def test_errors_are_known_by_what_libraries_say(error, memory, lost):
    assert faults.is_out_of_memory(error) == memory
    assert faults.is_device_lost(error) == lost
    text = faults.explain(error)
    assert len(text) < 600
    assert ("lower coarse_size" in text) == memory
    assert ("restart the node" in text) == lost
