# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What comes after the node: examples/object_points.py, alone and behind the node over DDS."""

import array
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from node_harness import NodeUnderTest, Program, Robot, header, image, scene, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

FILE = Path(__file__).resolve().parents[1] / "examples" / "object_points.py"
K = np.array([[150.0, 0.0, 79.5], [0.0, 140.0, 59.5], [0.0, 0.0, 1.0]])
#: x, y, width, height of the object in the image of 160 x 120
OBJECT = (30, 20, 40, 50)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("object_points", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def centroid(z):
    """Centroid in metres of the object at depth z, from the camera model alone."""
    x, y, width, height = OBJECT
    u, v = x + (width - 1) / 2, y + (height - 1) / 2
    return np.array([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z])


def depth_image(z, head, encoding="16UC1", bigendian=False):
    """The object at z metres before a wall at 2 m."""
    metres = np.full((120, 160), 2.0)
    x, y, width, height = OBJECT
    metres[y : y + height, x : x + width] = z
    order = ">" if bigendian else "<"
    pixels = np.round(metres * 1000).astype(f"{order}u2") if encoding == "16UC1" else metres.astype(f"{order}f4")
    return Image(
        header=head, height=120, width=160, encoding=encoding, is_bigendian=int(bigendian),
        step=160 * pixels.itemsize, data=array.array("B", pixels.tobytes()),
    )  # fmt: skip


def camera_info(head):
    return CameraInfo(header=head, height=120, width=160, k=K.ravel().tolist())


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
@pytest.mark.parametrize("bigendian", [False, True])
def test_depth_is_read_in_metres(example, encoding, bigendian):
    metres = example.depth_in_metres(depth_image(0.8, header(0), encoding, bigendian))
    assert metres.dtype == np.float32
    np.testing.assert_allclose(metres[40, 50], 0.8, atol=1e-6)
    np.testing.assert_allclose(metres[0, 0], 2.0, atol=1e-6)


def test_points_are_those_of_the_mask_that_have_depth(example):
    depth = np.full((120, 160), 2.0, np.float32)
    mask = np.zeros((120, 160), bool)
    mask[10, 20] = mask[11, 21] = mask[12, 22] = mask[13, 23] = True
    depth[10, 20], depth[11, 21], depth[12, 22] = np.nan, 0.0, np.inf
    points, rows, columns = example.points_of(depth, mask, K)
    assert (rows.tolist(), columns.tolist()) == ([13], [23])
    np.testing.assert_allclose(points, [[(23 - 79.5) / 150 * 2, (13 - 59.5) / 140 * 2, 2]], rtol=1e-6)


def test_only_messages_of_one_moment_come_together(example):
    sets = []
    sync = example.ExactTime(["a", "b"], 5.0, sets.append)
    one, two, later = (CameraInfo(header=header(n)) for n in (1, 2, 20))
    sync.add("a", one)
    sync.add("a", two)
    sync.add("b", two)
    assert [s["a"].header for s in sets] == [header(2)]
    assert len(sync) == 0  # what is older than a complete set will not be completed
    sync.add("b", one)
    sync.add("a", later)
    assert len(sync) == 1  # older than the newest by more than the history
    assert len(sets) == 1


def test_memory_of_what_waits_is_bounded(example):
    sync = example.ExactTime(["a", "b"], 5.0, lambda together: None)
    for n in range(100):
        sync.add("a", CameraInfo(header=header(n)))
    assert len(sync) <= 6


@pytest.mark.parametrize("change", [{"encoding": "8UC1"}, {"step": 10}, {"height": 500}])
def test_depth_that_cannot_be_used_is_named(example, change):
    bad = depth_image(1.0, header(0))
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(example.ImageError):
        example.depth_in_metres(bad)


@pytest.mark.integration
def test_behind_the_node_the_centroid_is_that_of_the_frame_that_the_mask_is_of(tmp_path):
    """While the node works on one frame, later ones with other depths arrive; they must not be mixed up."""
    trimesh.creation.box((100, 100, 100)).export(tmp_path / "obj_000001.ply")
    robot = Robot()
    node = NodeUnderTest(robot, tmp_path, {"models_dir": str(tmp_path), "autostart": True})
    consumer = None
    try:
        node.program.wait_for("active, waiting for images")
        consumer = Program([
            sys.executable, str(FILE), "--ros-args", "-r", f"__ns:={node.namespace}", "-r", "mask:=segment_node/mask",
        ])  # fmt: skip
        rgb = node.matched()
        depth, info = node.matched("depth", Image), node.matched("camera_info", CameraInfo)
        wait_until(lambda: rgb.get_subscription_count() == 2, 20, "node and consumer to listen to the image")
        masks = node.listen("mask", Image)
        clouds = node.listen(f"{node.namespace}/object_points/points", PointCloud2)
        synced = node.listen(f"{node.namespace}/object_points/synced/depth", Image)
        x, y, width, height = OBJECT
        truth = {1: (0.8, "16UC1"), 2: (1.1, "16UC1"), 3: (1.6, "32FC1")}
        for n, (z, encoding) in truth.items():
            picture = scene(red=(x, y, width, height))
            picture[0, 0] = 9, 9, 10  # takes a second
            depth.publish(depth_image(z, header(n), encoding))
            info.publish(camera_info(header(n)))
            rgb.publish(image(picture, header(n)))
            if n == 1:
                wait_until(lambda: masks or None, 30, "the first mask")
        said = {
            n: consumer.wait_for(f"{header(n).stamp.sec}.{header(n).stamp.nanosec:09d}: ", 30) for n in (1, 3)
        }  # fmt: skip
        for n, line in said.items():
            points, *position, frame = re.search(
                r": (\d+) points, centroid \((\S+), (\S+), (\S+)\) m in (\S+)", line
            ).groups()  # fmt: skip
            assert int(points) == width * height
            np.testing.assert_allclose([float(value) for value in position], centroid(truth[n][0]), atol=1e-4)
            assert frame == "camera_optical_frame"
        cloud = wait_until(lambda: [c for c in clouds if c.header == header(3)], 10, "the point cloud")[0]
        values = np.frombuffer(bytes(cloud.data), "<f4").reshape(-1, 4)
        np.testing.assert_allclose(values[:, :3].mean(0), centroid(1.6), atol=1e-4)
        assert set(values[1:, 3].view("<u4").tolist()) == {0xFF0000}  # red
        again = wait_until(lambda: [d for d in synced if d.header == header(3)], 10, "the depth again")[0]
        assert again.encoding == "32FC1"
        # Nothing red: the mask is empty, and that is said too.
        depth.publish(depth_image(1.0, header(4)))
        info.publish(camera_info(header(4)))
        rgb.publish(image(scene(), header(4)))
        assert "the object is not seen" in consumer.wait_for(f"{header(4).stamp.sec}.", 30)
        consumer.send(2)
        assert consumer.wait(60) == 0, consumer.text
        assert "Traceback" not in consumer.text
    finally:
        if consumer is not None:
            consumer.end()
        node.end()
        robot.close()
