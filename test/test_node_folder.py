# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The folder of images that plays a camera."""

import sys

import cv2
import numpy as np
import pytest
from node_harness import Program, Robot, pixels_of, wait_until
from sensor_msgs.msg import Image

from ocdit_ros.node.image_folder import FolderError, find_images, read_rgb

COMMAND = [sys.executable, "-m", "ocdit_ros.node.image_folder", "--ros-args"]


@pytest.fixture
def folder(tmp_path):
    """Three images of different sizes, one file that only looks like one, one that is none."""
    images = {}
    for n, (height, width) in enumerate([(20, 30), (12, 16), (33, 17)]):
        images[f"{n}.png"] = np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{n}.png"), images[f"{n}.png"][..., ::-1])
    (tmp_path / "1b.jpg").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("nor is this")
    return tmp_path, images


def test_images_are_found_by_name_and_read_as_rgb(folder):
    path, images = folder
    assert [file.name for file in find_images(str(path))] == ["0.png", "1.png", "1b.jpg", "2.png"]
    assert [file.name for file in find_images(f"file://{path}")] == ["0.png", "1.png", "1b.jpg", "2.png"]
    for name, pixels in images.items():
        np.testing.assert_array_equal(read_rgb(path / name), pixels)
    assert read_rgb(path / "1b.jpg") is None


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    for wrong, words in (
        (tmp_path, "no image"),
        (tmp_path / "none", "not a folder"),
        ("package://no_such/x", "'folder'"),
    ):
        with pytest.raises(FolderError, match=words):
            find_images(str(wrong))


@pytest.mark.integration
def test_it_sends_what_is_in_the_folder_once_somebody_listens_and_ends(folder):
    path, images = folder
    robot = Robot()
    program = Program([*COMMAND, "-p", f"folder:={path}", "-p", "rate:=20.0", "-p", "loop:=false",
                       "-p", "frame_id:=eye", "-r", "image:=camera/color"])  # fmt: skip
    try:
        program.wait_for("4 images")
        received = []
        robot.node.create_subscription(Image, "camera/color", received.append, 10)
        wait_until(lambda: len(received) == 3, 30, "three images")
        assert program.wait(20) == 0
        for message, pixels in zip(received, images.values(), strict=True):
            assert (message.encoding, message.header.frame_id) == ("rgb8", "eye")
            np.testing.assert_array_equal(pixels_of(message), pixels)
        stamps = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in received]
        assert stamps == sorted(set(stamps))
        assert "1b.jpg' is left out" in program.text
    finally:
        program.end()
        robot.close()


@pytest.mark.integration
@pytest.mark.parametrize("arguments, words", [([], "'folder' is not set"), (["-p", "rate:=0.0"], "'rate' is 0")])
def test_what_it_cannot_work_with_is_said_in_one_line(folder, arguments, words):
    given = ["-p", f"folder:={folder[0]}", *arguments] if arguments else []
    program = Program([*COMMAND, *given] if given else COMMAND[:-1])
    try:
        assert program.wait(60) == 1
        assert words in program.text
        assert "Traceback" not in program.text
    finally:
        program.end()
