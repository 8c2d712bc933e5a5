# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Parts of the node that cannot be seen from outside: what is not computed, and the way through an error."""

import gc
import threading
import weakref

import numpy as np
import pytest
import rclpy
import trimesh
from node_fakes import instance, make_fake
from node_harness import header, image
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from ocdit_ros.node import messages
from ocdit_ros.node.lifecycle_node import Camera, SegmentNode, _Frame
from ocdit_ros.segment import draw


class Topic:
    """A publisher with so many listeners."""

    def __init__(self, listeners):
        self.listeners, self.sent = listeners, []

    def get_subscription_count(self):
        return self.listeners

    def publish(self, message):
        self.sent.append(message)


@pytest.mark.parametrize("heard", [(), ("label_image",), ("mask",), ("overlay",), ("label_image", "mask", "overlay")])
def test_nothing_is_computed_that_nobody_listens_to(monkeypatch, heard):
    made = []
    for where, name, topic in (
        (draw, "label_image", "label_image"), (messages, "mask_array", "mask"), (draw, "overlay", "overlay")
    ):  # fmt: skip
        original = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, o=original, t=topic, **k: (made.append(t), o(*a, **k))[1])
    camera = object.__new__(Camera)
    for topic in ("detections", "label_image", "mask", "overlay"):
        setattr(camera, topic, Topic(int(topic in heard)))
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    camera.publish(Header(frame_id="f"), np.zeros((6, 8, 3), np.uint8), [instance(1, "mug", 0.9, mask)], "")
    assert set(made) == set(heard)
    assert len(camera.detections.sent) == 1
    for topic in ("label_image", "mask", "overlay"):
        assert len(getattr(camera, topic).sent) == (topic in heard)


@pytest.fixture
def node(tmp_path):
    """The node in this process, without anybody who spins it: transitions are called as the services would."""
    trimesh.creation.box((100, 100, 100)).export(tmp_path / "obj_000001.ply")
    context = Context()
    rclpy.init(context=context)
    given = [Parameter("models_dir", value=str(tmp_path)), Parameter("weights", value="")]
    one = SegmentNode(make_fake, context=context, parameter_overrides=given)
    yield one
    one.close()
    one.destroy_node()
    rclpy.shutdown(context=context)


def left(node):
    """What only a configured node has."""
    return node._worker, node._cameras, node._label_info, node._segmenter, node._fingerprints


EMPTY = (None, [], None, None, {})


@pytest.mark.parametrize("transition", ["deactivate", "cleanup"])
def test_an_error_in_a_transition_frees_everything_and_the_node_can_be_configured_again(node, monkeypatch, transition):
    threads = threading.active_count()
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    model = weakref.ref(node._segmenter)
    if transition == "deactivate":
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert node.state == "active"

    def broken(*_):
        raise OSError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(node, "_deactivate" if transition == "deactivate" else "_unsubscribe", broken)
        if transition == "cleanup":  # release itself fails the first time
            calls = []
            patch.setattr(node, "_unsubscribe", lambda: calls.append(1) or (broken() if len(calls) == 1 else None))
        getattr(node, f"trigger_{transition}")()
    assert node.state == "unconfigured"
    assert left(node) == EMPTY
    gc.collect()
    assert model() is None, "the model is still held by somebody"
    assert threading.active_count() == threads
    assert "the disk is on fire" in node.statistics.last_error
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert node.state == "active"


def test_release_can_be_called_at_any_time_and_again(node):
    for _ in range(2):
        node.release()
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    for _ in range(3):
        node.release()
        assert left(node) == EMPTY


@pytest.mark.parametrize(
    "before", [[], ["configure"], ["configure", "activate"], ["configure", "activate", "deactivate"]]
)
def test_shutdown_frees_everything_from_every_state(node, before):
    for transition in before:
        assert getattr(node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
    assert node.state == "finalized"
    assert left(node) == EMPTY


# --------------------------------------------------------------------------- streams


RED = np.full((12, 16, 3), (200, 0, 0), np.uint8)


@pytest.fixture
def active(node):
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    return node


def process(node):
    """One frame of the only camera, in the thread of the model."""
    (camera,) = node._cameras
    node._worker.submit(lambda: node._process([_Frame(camera, image(RED, header(1)), 0.0)])).result(10)
    return node.statistics.values()


def frames(node):
    """How many frames the stream of the only camera remembers; 0 without one."""
    return sum(stream.frames for stream in node._streams.values())


def test_frames_of_a_camera_continue_each_other_in_stream_mode_alone(active):
    assert process(active)["last frame"] == "segmented in full"
    assert process(active)["last frame"] == "continued the one before"
    assert active.statistics.values()["frames segmented in full"] == "1"
    assert frames(active) == 2
    active.set_parameters([Parameter("mode", value="trigger")])
    assert process(active)["last frame"] == "segmented in full"
    assert not active._streams
    active.set_parameters([Parameter("mode", value="stream"), Parameter("warm_start", value=False)])
    assert process(active)["last frame"] == "segmented in full"
    assert not active._streams
    active.set_parameters([Parameter("warm_start", value=True), Parameter("warm_start_sigma", value=2.5)])
    process(active)
    (stream,) = active._streams.values()
    assert (stream.frames, stream.settings.start_sigma) == (1, 2.5)


def test_what_a_camera_showed_is_forgotten_with_the_objects_and_with_the_active_state(active, tmp_path):
    process(active)
    active._wait_for(active._worker.submit(active._reload))
    assert frames(active) == 1  # nothing has changed
    trimesh.creation.box((50, 100, 100)).export(tmp_path / "obj_000002.ply")
    active._wait_for(active._worker.submit(active._reload))
    assert frames(active) == 0
    process(active)
    assert frames(active) == 1
    assert active.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert frames(active) == 0


def test_after_frames_that_nobody_listened_to_the_next_one_is_segmented_in_full(active):
    process(active)
    assert process(active)["last frame"] == "continued the one before"
    (camera,) = active._cameras
    assert active.set_parameters([Parameter("lazy", value=True)])[0].successful
    active._on_image(camera, image(RED, header(1)))  # there is nobody in this process who listens
    assert active.statistics.values()["frames left out (nobody listens)"] == "1"
    assert process(active)["last frame"] == "segmented in full"
    assert process(active)["last frame"] == "continued the one before"


def test_a_camera_that_was_just_released_is_not_heard(node):
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    (camera,) = node._cameras
    publishers = list(camera._publishers)
    node.release()
    camera._publishers = publishers  # a callback that was under way has them still
    assert not camera.is_heard()


def test_a_failed_frame_is_forgotten(active, monkeypatch):
    process(active)

    def broken(*_):
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(active._segmenter, "segment_streams", broken)
        process(active)
    assert frames(active) == 0
    assert process(active)["last frame"] == "segmented in full"


def test_each_camera_has_a_stream_of_its_own(node):
    node.set_parameters([Parameter("cameras", value=["left", "right"])])
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    both = [_Frame(camera, image(RED, header(1)), 0.0) for camera in node._cameras]
    for some in (both, both, both[1:]):
        node._worker.submit(lambda some=some: node._process(some)).result(10)
    assert {name: stream.frames for name, stream in node._streams.items()} == {"left": 2, "right": 3}
    assert node.statistics.values()["batches segmented"] == "3"
