# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The ROS part of `ocdit doctor`, with cameras and a segmentation node on the graph."""

import threading

import numpy as np
import pytest
from node_harness import LATCHED, wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from ocdit_ros.doctor import Finding, Level
from ocdit_ros.node import doctor

SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
IMAGES = ("/camera/color/image_raw", "/odd/image", "/bad/compressed")


@pytest.fixture(scope="module")
def cameras():
    """Topics that send ten images a second: sound ones and faulty ones."""
    import rclpy
    from rclpy.context import Context

    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("cameras", context=context)
    good = Image(height=6, width=8, encoding="rgb8", step=24, data=bytes(144))
    good.header.frame_id = "optical"
    odd = Image(height=6, width=8, encoding="rgb48", step=48, data=bytes(288))
    odd.header.frame_id = "optical"
    lost = Image(height=6, width=8, encoding="rgb8", step=24, data=bytes(144))
    jpeg = CompressedImage(format="jpeg", data=np.zeros(9, np.uint8).tobytes())
    publishers = [
        (node.create_publisher(Image, "/camera/color/image_raw", SENSOR), good),
        (node.create_publisher(Image, "/odd/image", LATCHED), odd),
        (node.create_publisher(Image, "/frameless/image", SENSOR), lost),
        (node.create_publisher(CompressedImage, "/bad/compressed", SENSOR), jpeg),
        (node.create_publisher(Image, "/silent/image", SENSOR), None),
        (node.create_publisher(PointCloud2, "/points", SENSOR), None),
    ]
    stop = threading.Event()

    def send():
        while not stop.wait(0.1):
            for publisher, message in publishers:
                if message is not None:
                    publisher.publish(message)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "DISCOVERY", 0.8)


def find(image, wait=1.0, check=None) -> dict[str, list[Finding]]:
    """Findings by their check, of the graph if no other is given."""
    by_check: dict[str, list[Finding]] = {}
    for finding in (check or doctor.check_graph)(image, wait):
        if finding.level in (Level.WARN, Level.FAIL):
            assert finding.mend, finding
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def test_a_sound_camera(cameras):
    found = find("/camera/color/image_raw", check=doctor.findings)
    assert [one.level for one in found["messages"] + found["rmw"] + found["qos"]] == [Level.OK] * 3
    assert "from /cameras: best_effort, volatile" in found["qos"][0].what
    (camera,) = found["camera"]
    assert camera.level is Level.OK
    assert "8 x 6 rgb8" in camera.what
    assert "frame optical" in camera.what


@pytest.mark.parametrize("topic, level, words", [
    ("/odd/image", Level.FAIL, "rgb48"),
    ("/frameless/image", Level.WARN, "no frame_id"),
    ("/bad/compressed", Level.FAIL, "damaged"),
    ("/silent/image", Level.FAIL, "no image within"),
    ("/points", Level.FAIL, "not an image"),
    ("/camera/colour/image_raw", Level.FAIL, "nobody publishes"),
])  # fmt: skip
def test_faulty_cameras(cameras, topic, level, words):
    (camera,) = find(topic, 0.6)["camera"]
    assert camera.level is level
    assert words in camera.what
    if "nobody" in words:
        assert "There is /camera/color/image_raw" in camera.mend


def test_without_a_topic_it_lists_what_there_is(cameras):
    def listed():
        (camera,) = find("")["camera"]
        assert camera.level is Level.SKIP
        return camera.what if all(topic in camera.what for topic in IMAGES) else ""

    assert "/points" not in wait_until(listed, 30, "all image topics")


@pytest.mark.integration
def test_a_node_whose_camera_is_not_remapped(cameras, start, meshes):
    """Inactive it is told how to activate it; active, that nobody sends on its topic and what is there instead."""
    node = start({"models_dir": str(meshes)})

    def finding(level, words):
        (found,) = find("")["node"]
        return found if found.level is level and words in found.mend else None

    wait_until(lambda: finding(Level.WARN, "ros2 lifecycle set"), 30, "that it is not active")
    assert node.transition("configure")
    assert node.transition("activate")
    found = wait_until(lambda: finding(Level.FAIL, "image:=/camera/color/image_raw"), 30, "that it has no camera")
    assert "nobody publishes" in found.what


@pytest.mark.parametrize("variables, level, words", [
    ({"FASTRTPS_DEFAULT_PROFILES_FILE": ""}, Level.WARN, "no profile for large images"),
    ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/nowhere.xml"}, Level.FAIL, "there is no profile"),
    ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, Level.WARN, "discovery range OFF"),
    ({"ROS_LOCALHOST_ONLY": "1"}, Level.OK, "discovery range LOCALHOST"),
])  # fmt: skip
def test_middleware(monkeypatch, variables, level, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.check_middleware("rmw_fastrtps_cpp")
    assert (found.level, words in found.what) == (level, True)


def test_other_middleware_and_distributions_are_not_what_is_tested(monkeypatch):
    (found,) = doctor.check_middleware("rmw_cyclonedds_cpp")
    assert found.level is Level.WARN
    for name, level in (("jazzy", Level.OK), ("kilted", Level.WARN), ("", Level.WARN)):
        monkeypatch.setenv("ROS_DISTRO", name)
        (found,) = doctor.check_distribution()
        assert found.level is level


def test_messages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "MESSAGES", ("std_msgs", "nowhere_msgs"))
    (found,) = find("", check=doctor.findings)["messages"]
    assert "nowhere_msgs" in found.what
    assert "std_msgs," not in found.what
    assert "-nowhere-msgs" in found.mend


def test_a_middleware_that_is_not_installed(monkeypatch):
    """In a process of its own: the middleware is chosen once per process."""
    import subprocess
    import sys

    from node_harness import environment

    code = "from ocdit_ros.node import doctor\nfor one in doctor.findings('', 0.1): print(one.check, one.level.value)"
    result = subprocess.run([sys.executable, "-c", code], env=environment(RMW_IMPLEMENTATION="rmw_nowhere_cpp"),
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert "rmw fail" in result.stdout, result.stdout + result.stderr
