# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Instances to messages: headers bit for bit, labels that agree with detections, data filled the fast way."""

import array
import dataclasses

import cv2
import numpy as np
import pytest
from node_fakes import instance
from node_harness import header, pixels_of
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray, LabelInfo

from ocdit_ros.node import messages
from ocdit_ros.node.images import to_rgb
from ocdit_ros.segment import draw

SHAPE = (40, 60)


def block(object_id, name, score, x, y, width, height):
    mask = np.zeros(SHAPE, bool)
    mask[y : y + height, x : x + width] = True
    return instance(object_id, name, score, mask)


BEST = block(2, "mug", 0.9, 5, 10, 20, 8)
OVERLAPPING = block(1, "box", 0.8, 15, 4, 30, 30)
APART = block(2, "mug", 0.6, 50, 35, 10, 5)
INSTANCES = [BEST, OVERLAPPING, APART]


def test_every_detection_carries_the_header_of_the_frame_bit_for_bit():
    head = header(5)
    result = messages.detections_message(head, INSTANCES)
    assert result.header == head
    assert all(one.header == head for one in result.detections)


def test_ids_classes_scores_and_boxes():
    result = messages.detections_message(header(0), INSTANCES)
    assert [one.id for one in result.detections] == ["1", "2", "3"]
    hypotheses = [one.results[0].hypothesis for one in result.detections]
    assert [one.class_id for one in hypotheses] == ["mug", "box", "mug"]
    assert [one.score for one in hypotheses] == [0.9, 0.8, 0.6]
    assert all(len(one.results) == 1 for one in result.detections)
    box = result.detections[0].bbox
    assert (box.size_x, box.size_y, box.center.theta) == (20.0, 8.0, 0.0)
    # left edge, right edge: the pixels 5 to 24
    assert box.center.position.x - box.size_x / 2 == 5.0
    assert box.center.position.x + box.size_x / 2 == 25.0
    assert box.center.position.y == 14.0


def test_ids_of_a_stream_are_those_of_the_tracks_and_the_labels_too():
    tracked = [dataclasses.replace(one, track_id=n) for one, n in zip(INSTANCES, (7, 300, 2), strict=True)]
    result = messages.detections_message(header(0), tracked)
    assert [one.id for one in result.detections] == ["7", "300", "2"]
    labels, numbers = draw.label_image(tracked, *SHAPE), draw.label_image(INSTANCES, *SHAPE)
    for n, one in enumerate(result.detections, start=1):
        np.testing.assert_array_equal(labels == int(one.id), numbers == n)


def test_no_instance_makes_an_empty_message_with_a_header():
    result = messages.detections_message(header(3), [])
    assert list(result.detections) == []
    assert result.header == header(3)


@pytest.mark.parametrize("count", [0, 3])
def test_detections_survive_the_wire(count):
    result = messages.detections_message(header(1), INSTANCES[:count])
    assert deserialize_message(serialize_message(result), Detection2DArray) == result


def test_scores_of_numpy_types_are_taken():
    mask = np.ones(SHAPE, bool)
    one = instance(1, "mug", np.float32(0.25), mask)
    one = type(one)(1, "mug", np.float32(0.25), mask, tuple(np.array([0, 0, 60, 40])))
    result = messages.detections_message(header(0), [one])
    assert result.detections[0].results[0].hypothesis.score == 0.25
    assert deserialize_message(serialize_message(result), Detection2DArray) == result


def test_labels_are_the_numbers_of_the_detections_and_overlaps_go_to_the_better_one():
    labels = draw.label_image(INSTANCES, *SHAPE)
    assert labels.dtype == np.uint16
    expected = np.zeros(SHAPE, np.uint16)
    for k in (3, 2, 1):
        expected[INSTANCES[k - 1].mask] = k
    np.testing.assert_array_equal(labels, expected)
    assert (labels[BEST.mask] == 1).all()


def test_labels_of_more_than_255_instances():
    many = [block(1, "mug", 0.5, n % 60, n // 60, 1, 1) for n in range(1000)]
    labels = draw.label_image(many, *SHAPE)
    assert labels.max() == 1000
    assert pixels_of(messages.image_message(header(0), labels, "16UC1"))[16, 39] == 16 * 60 + 39 + 1


def test_an_instance_without_pixels_changes_nothing():
    empty = instance(1, "mug", 0.5, np.zeros(SHAPE, bool))
    assert not draw.label_image([empty], *SHAPE).any()
    picture = np.full((*SHAPE, 3), 7, np.uint8)
    assert draw.overlay(picture, [empty]).shape == picture.shape


@pytest.mark.parametrize("name, expected", [("mug", BEST), ("box", OVERLAPPING), ("", BEST)])
def test_the_mask_shows_the_best_instance_of_the_object_asked_for(name, expected):
    mask = messages.mask_array(SHAPE, INSTANCES, name)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(expected.mask, 255, 0))
    if name == "":
        np.testing.assert_array_equal(messages.mask_array(SHAPE, INSTANCES), mask)


def test_the_mask_of_an_object_that_is_not_seen_is_empty():
    assert not messages.mask_array(SHAPE, INSTANCES, "drill").any()
    assert not messages.mask_array(SHAPE, [], "").any()


@pytest.mark.parametrize(
    "pixels, encoding",
    [
        (np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16).reshape(SHAPE), "16UC1"),
        (np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint8).reshape(SHAPE), "mono8"),
        (np.arange(SHAPE[0] * SHAPE[1] * 3, dtype=np.uint8).reshape(*SHAPE, 3), "rgb8"),
        (np.arange(SHAPE[0] * SHAPE[1] * 6, dtype=np.uint8).reshape(SHAPE[0], -1, 3)[:, ::2], "rgb8"),
    ],
)
def test_image_messages_hold_the_pixels_contiguously(pixels, encoding):
    result = messages.image_message(header(9), pixels, encoding)
    assert (result.height, result.width, result.encoding) == (*SHAPE, encoding)
    assert result.header == header(9)
    assert result.step * result.height == len(result.data)
    np.testing.assert_array_equal(pixels_of(result), pixels)
    assert deserialize_message(serialize_message(result), Image) == result


@pytest.mark.parametrize(
    "encoding, draw_in, wanted",
    [
        (
            "16UC1",
            lambda out: draw.label_image(INSTANCES, *SHAPE, out=out),
            lambda: draw.label_image(INSTANCES, *SHAPE),
        ),
        (
            "mono8",
            lambda out: messages.mask_array(SHAPE, INSTANCES, "mug", out=out),
            lambda: messages.mask_array(SHAPE, INSTANCES, "mug"),
        ),
        (
            "rgb8",
            lambda out: draw.overlay(np.full((*SHAPE, 3), 9, np.uint8), INSTANCES, out=out),
            lambda: draw.overlay(np.full((*SHAPE, 3), 9, np.uint8), INSTANCES),
        ),
    ],
)
def test_a_message_drawn_in_place_is_the_one_made_of_an_array(encoding, draw_in, wanted):
    result, pixels = messages.blank_image(header(9), *SHAPE, encoding)
    assert not pixels.any()
    assert draw_in(pixels) is pixels
    assert result == messages.image_message(header(9), wanted(), encoding)
    assert any(result.data)
    assert isinstance(result.data, array.array)
    assert result.data.typecode == "B"
    assert deserialize_message(serialize_message(result), Image) == result


@pytest.mark.parametrize("height, width", [(1, 5), (5, 1), (1, 1), (0, 5)])
def test_images_of_one_row_or_column_have_a_step(height, width):
    result = messages.image_message(header(0), np.ones((height, width), np.uint16), "16UC1")
    assert (result.height, result.width, result.step) == (height, width, 2 * width if height else 0)
    assert bytes(result.data) == np.ones(height * width, np.uint16).tobytes()


@pytest.mark.parametrize("order, flag", [("little", 0), ("big", 1)])
def test_the_byte_order_is_that_of_the_machine(order, flag, monkeypatch):
    monkeypatch.setattr(messages.sys, "byteorder", order)
    assert messages.image_message(header(0), np.ones((2, 2), np.uint16), "16UC1").is_bigendian == flag
    assert messages.blank_image(header(0), 2, 2, "16UC1")[0].is_bigendian == flag


def test_data_is_handed_over_as_an_array_which_rclpy_does_not_check_byte_by_byte():
    data = messages.image_message(header(0), np.zeros((2, 2), np.uint8), "mono8").data
    assert isinstance(data, array.array)
    assert data.typecode == "B"


def test_an_rgb8_message_reads_back_as_it_was():
    picture = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    np.testing.assert_array_equal(to_rgb(messages.image_message(header(0), picture, "rgb8")), picture)


def test_the_overlay_colours_masks_and_leaves_the_rest_and_the_input_alone():
    picture = np.full((200, 300, 3), 40, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[80:160, 100:250] = True
    before = picture.copy()
    result = draw.overlay(picture, [instance(3, "mug", 0.7, mask)])
    np.testing.assert_array_equal(picture, before)
    inside = np.zeros_like(mask)
    inside[90:150, 110:240] = True
    mixed = (np.array(draw.colour(3), int) + 40) // 2
    np.testing.assert_array_equal(result[inside], np.broadcast_to(mixed, (inside.sum(), 3)))
    far = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) == 0
    far[40:80] = False  # the name stands there
    np.testing.assert_array_equal(result[far], before[far])
    assert (result[40:80] != before[40:80]).any()


def test_the_overlay_of_a_view_that_cannot_be_written_to():
    picture = np.frombuffer(bytes(range(240)) * 5, np.uint8).reshape(20, 20, 3)
    assert not picture.flags.writeable
    mask = np.zeros((20, 20), bool)
    mask[3:9, 3:9] = True
    assert draw.overlay(picture, [instance(1, "mug", 0.7, mask)]).flags.writeable


def test_a_name_at_the_border_stays_inside_the_picture():
    mask = np.zeros((60, 200), bool)
    mask[:10, 180:] = True
    result = draw.overlay(np.zeros((60, 200, 3), np.uint8), [instance(1, "a_long_name", 0.7, mask)])
    assert result[:30, :170].any()


def test_colours_of_neighbouring_objects_differ():
    colors = np.array([draw.colour(n) for n in range(1, 33)], int)
    distances = np.abs(colors[1:] - colors[:-1]).sum(1)
    assert distances.min() > 120
    assert colors.max(1).min() == 255


def test_label_info_lists_the_catalogue():
    result = messages.label_info_message(header(2), ["mug", "box"], 0.25)
    assert [(one.class_id, one.class_name) for one in result.class_map] == [(1, "mug"), (2, "box")]
    assert result.threshold == 0.25
    assert result.header == header(2)
    assert deserialize_message(serialize_message(result), LabelInfo) == result


def test_the_summary_is_one_sentence():
    assert messages.summary([]) == "no detections"
    assert messages.summary(INSTANCES[:1]) == "1 detection: mug 0.90"
    assert messages.summary(INSTANCES[:2]) == "2 detections: mug 0.90, box 0.80"
    assert messages.summary(INSTANCES) == "3 detections: mug 0.90, box 0.80, mug 0.60"
