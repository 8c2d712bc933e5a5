# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The node as other programs see it over DDS: lifecycle, topics, services, parameters, end.

The segmenter is the one of node_fakes.py: the first object is whatever is red, the second green, the third blue.
"""

import ctypes
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from diagnostic_msgs.msg import DiagnosticArray
from node_fakes import instance
from node_harness import (
    FAKE_NODE,
    NodeUnderTest,
    compressed,
    environment,
    header,
    image,
    pixels_of,
    scene,
    wait_until,
)
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from ocdit_ros.node import messages
from ocdit_ros.segment import draw

pytestmark = pytest.mark.integration

RED, GREEN, BLUE = (10, 20, 30, 40), (60, 20, 30, 40), (110, 20, 30, 40)
ALL = scene(red=RED, green=GREEN, blue=BLUE)


@pytest.fixture(scope="module")
def shared(robot, meshes, tmp_path_factory):
    """A node that many tests use; whoever gets it through `node` finds it active with default parameters."""
    one = NodeUnderTest(robot, tmp_path_factory.mktemp("shared"), {"models_dir": str(meshes), "autostart": True})
    one.program.wait_for("active, waiting for images")
    yield one
    one.end()


@pytest.fixture
def node(shared):
    if shared.state == "inactive":  # a test that failed in between must not take the others along
        assert shared.transition("activate")
    yield shared
    assert shared.state == "active", shared.program.text
    defaults = {
        "score_threshold": 0.5, "selected_object": "", "mode": "stream", "max_rate": 0.0, "trigger_timeout": 10.0,
    }  # fmt: skip
    assert shared.set_all(defaults) == [""] * len(defaults)


@pytest.fixture
def number():
    """Numbers of frames, never the same twice."""
    return next(_frames)


_frames = itertools.count(step=10)


def results(received, head, timeout=20):
    """The message that carries this header."""
    return wait_until(lambda: [one for one in received if one.header == head], timeout, f"a result for {head.stamp}")[0]


# Lifecycle


@pytest.fixture(scope="module")
def bare(robot, tmp_path_factory):
    """A node that starts with parameters that cannot be used; `unconfigured` hands it out."""
    parameters = {"score_threshold": 7.0, "steps": "many", "score_treshold": 0.2}
    one = NodeUnderTest(robot, tmp_path_factory.mktemp("bare"), parameters)
    yield one
    one.end()


@pytest.fixture
def unconfigured(bare):
    """A node that is unconfigured and has no objects, before and after."""
    assert bare.state == "unconfigured"
    bare.set_all({"score_threshold": 0.5, "steps": 1})
    yield bare
    state = bare.state
    if state == "active":
        assert bare.transition("deactivate")
    if state != "unconfigured":
        assert bare.transition("cleanup")
    defaults = {"models_dir": "", "models_scale": 0.001, "objects": [], "weights": "", "selected_object": ""}
    assert bare.set_all(defaults) == [""] * len(defaults)


def test_start_values_that_cannot_be_used_fail_at_configure_and_can_be_corrected(bare, meshes):
    assert "did you mean 'score_threshold'" in bare.program.wait_for("ignored:")
    assert bare.set("models_dir", str(meshes)) == ""
    assert not bare.transition("configure")
    line = bare.program.wait_for("configure failed:")
    assert "parameter 'score_threshold' is 7, but must be 0 to 1" in line
    assert "parameter 'steps' is 'many', but needs a whole number" in line
    assert bare.set("score_threshold", 0.4) == ""
    assert not bare.transition("configure")
    assert bare.set("steps", 2) == ""
    assert bare.transition("configure")
    assert bare.transition("cleanup")
    assert bare.set("models_dir", "") == ""


def test_every_transition_ends_in_its_state(unconfigured, meshes):
    one = unconfigured
    assert one.set("models_dir", str(meshes)) == ""
    for transition, state in (
        ("configure", "inactive"), ("activate", "active"), ("deactivate", "inactive"), ("cleanup", "unconfigured"),
    ):  # fmt: skip
        assert one.transition(transition), one.program.text
        assert one.state == state


def test_illegal_transitions_are_refused_and_the_node_lives(unconfigured, meshes):
    one = unconfigured
    for wrong in ("activate", "deactivate", "cleanup", "no such transition", 3, 4, 2, 99):
        assert not one.transition(wrong)
        assert one.state == "unconfigured"
    one.program.wait_for("transition 3 refused in state unconfigured")
    assert one.set("models_dir", str(meshes)) == ""
    assert one.transition("configure")
    assert not one.transition(1)
    assert one.state == "inactive"


@pytest.mark.parametrize("before", [[], ["configure"], ["configure", "activate"]])
def test_shutdown_from_every_state(start, meshes, before):
    one = start({"models_dir": str(meshes)})
    for transition in before:
        assert one.transition(transition)
    assert one.transition("shutdown")
    assert one.state == "finalized"
    one.program.send(signal.SIGINT)
    assert one.program.wait(15) == 0


BAD_PARAMETERS = {
    "no folder": ({"models_dir": "/nowhere/models"}, ["models_dir", "/nowhere/models"]),
    "no object": ({}, ["models_dir", "objects"]),
    "unknown object": ({"models_dir": "{meshes}", "objects": ["cup"]}, ["'cup'", "objects.cup.mesh"]),
    "broken mesh": ({"objects": ["cup"], "objects.cup.mesh": "{broken}"}, ["cup", "broken.ply"]),
    "missing mesh": ({"objects": ["cup"], "objects.cup.mesh": "/nowhere/cup.ply"}, ["cup", "/nowhere/cup.ply"]),
    "bad unit": ({"models_dir": "{meshes}", "models_scale": 1.0}, ["mug", "scale", "17"]),
    "bad weights": ({"models_dir": "{meshes}", "weights": "bad"}, ["'weights'", "safetensors"]),
    "unforeseen": ({"models_dir": "{meshes}", "weights": "explode"}, ["ZeroDivisionError", "nobody foresaw"]),
    "unknown selection": ({"models_dir": "{meshes}", "selected_object": "cup"}, ["'cup'", "mug, box, can"]),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_a_failed_configure_names_the_cause_and_a_corrected_parameter_configures(unconfigured, meshes, tmp_path, case):
    one = unconfigured
    broken = tmp_path / "broken.ply"
    broken.write_text("ply\nformat ascii 1.0\n")
    parameters, words = BAD_PARAMETERS[case]
    for name, value in parameters.items():
        value = value.format(meshes=meshes, broken=broken) if isinstance(value, str) else value
        assert one.set(name, value) == ""
    said = len(one.program.lines)
    assert not one.transition("configure")
    assert one.state == "unconfigured"
    line = one.program.wait_for("configure failed:", since=said)
    assert all(word in line for word in words), line
    since = "\n".join(one.program.lines[said:])
    assert since.count("configure failed:") == 1
    assert ("Traceback" in since) == (case == "unforeseen")
    corrected = {
        "models_dir": str(meshes),
        "models_scale": 0.001,
        "objects": [],
        "weights": "",
        "selected_object": "mug",
    }
    assert one.set_all(corrected) == [""] * len(corrected)
    assert one.transition("configure"), one.program.text
    assert one.state == "inactive"


def test_autostart_with_a_wrong_parameter_stays_unconfigured_and_can_be_helped(start, meshes):
    one = start({"models_dir": "/nowhere", "autostart": True})
    one.program.wait_for("configure failed: parameter 'models_dir'")
    wait_until(lambda: one.state == "unconfigured", 10, "the state unconfigured")
    assert one.set("models_dir", str(meshes)) == ""
    assert one.transition("configure")
    assert one.transition("activate")


def test_a_transition_during_another_is_refused_and_the_node_answers_meanwhile(start, meshes):
    one = start({"objects": ["slow_mug"], "objects.slow_mug.mesh": str(meshes / "obj_000001.ply"),
                 "objects.slow_mug.scale": 0.001})  # fmt: skip
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    assert one.state == "unconfigured"  # a first answer that discovery loses is asked for again after configure is over
    request = ChangeState.Request(transition=Transition(label="configure"))
    answer = one.call_async(ChangeState, "change_state", request)
    wait_until(lambda: one.state == "configuring", 20, "the state configuring")
    assert not one.transition("configure")
    assert one.get("mode") == "stream"
    assert one.set("score_threshold", 0.7) == ""
    assert "can be changed only while" in one.set("weights", "other")
    assert not one.trigger("reload_objects").success
    assert not one.trigger("segment").success
    assert not answer.done(), "configure was over before the other calls were answered"
    wait_until(answer.done, 30, "the end of configure")
    assert answer.result().success
    assert one.get("score_threshold") == 0.7


def test_deactivate_finishes_the_frame_in_hand(node, number):
    received = node.detections()
    camera = node.matched()
    slow = scene(red=RED)
    slow[0, 0] = 9, 9, 15
    camera.publish(image(slow, header(number)))
    time.sleep(0.5)
    assert node.transition("deactivate")
    assert len(received) == 1 or results(received, header(number), 5)
    assert received[0].header == header(number)
    assert node.transition("activate")


def test_nothing_is_processed_while_inactive(node, number):
    received = node.detections()
    assert node.transition("deactivate")
    camera = node.publisher()
    wait_until(lambda: camera.get_subscription_count() == 0, 20, "the node to unsubscribe")
    camera.publish(image(ALL, header(number)))
    assert not node.trigger("segment").success
    assert node.transition("activate")
    node.matched().publish(image(ALL, header(number + 1)))
    results(received, header(number + 1))
    assert [one.header for one in received] == [header(number + 1)]


# Topics


def test_every_output_carries_the_header_of_its_frame(node, number):
    topics = {
        name: node.listen(name, kind)
        for name, kind in {
            "detections": messages.Detection2DArray, "label_image": Image, "mask": Image, "overlay": Image,
        }.items()
    }  # fmt: skip
    camera = node.matched()
    head = header(number, frame="a/frame with spaces")
    camera.publish(image(ALL, head))
    for received in topics.values():
        assert results(received, head).header == head
    detections = results(topics["detections"], head)
    assert all(one.header == head for one in detections.detections)


def test_labels_mask_and_detections_agree(node, number):
    detections, labels = node.detections(), node.listen("label_image", Image)
    masks, overlays = node.listen("mask", Image), node.listen("overlay", Image)
    assert node.set("selected_object", "box") == ""
    head = header(number)
    node.matched().publish(image(ALL, head))
    found = results(detections, head).detections
    assert [one.results[0].hypothesis.class_id for one in found] == ["mug", "box", "can"]
    assert [one.id for one in found] == ["1", "2", "3"]
    assert [round(one.results[0].hypothesis.score * 255) for one in found] == [255, 230, 200]
    label = results(labels, head)
    assert (label.encoding, label.width, label.height) == ("16UC1", 160, 120)
    pixels = pixels_of(label)
    for k, one in enumerate(found, start=1):
        ys, xs = np.nonzero(pixels == k)
        box, center = one.bbox, one.bbox.center.position
        assert (xs.min(), xs.max() + 1) == (center.x - box.size_x / 2, center.x + box.size_x / 2)
        assert (ys.min(), ys.max() + 1) == (center.y - box.size_y / 2, center.y + box.size_y / 2)
        assert len(xs) == box.size_x * box.size_y
    assert set(np.unique(pixels)) == {0, 1, 2, 3}
    mask = results(masks, head)
    assert mask.encoding == "mono8"
    np.testing.assert_array_equal(pixels_of(mask), np.where(pixels == 2, 255, 0))
    overlay = results(overlays, head)
    expected = draw.overlay(
        ALL,
        [
            instance(k, name, score / 255, pixels == k)
            for k, name, score in ((1, "mug", 255), (2, "box", 230), (3, "can", 200))
        ],
    )
    assert overlay.encoding == "rgb8"
    np.testing.assert_array_equal(pixels_of(overlay), expected)


def test_a_frame_without_objects_gives_empty_results(node, number):
    detections, labels, masks = (
        node.detections(),
        node.listen("label_image", Image),
        node.listen("mask", Image),
    )
    head = header(number)
    node.matched().publish(image(scene(), head))
    assert list(results(detections, head).detections) == []
    assert not pixels_of(results(labels, head)).any()
    assert not pixels_of(results(masks, head)).any()


@pytest.mark.parametrize("durability", [DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL])
@pytest.mark.parametrize("reliability", [ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE])
def test_cameras_of_every_qos_are_heard(node, number, reliability, durability):
    received = node.detections()
    qos = QoSProfile(depth=1, reliability=reliability, durability=durability)
    camera = node.robot.node.create_publisher(Image, f"{node.namespace}/image", qos)
    try:
        wait_until(camera.get_subscription_count, 20, "the node's subscription")
        frame = 0

        def heard():  # one frame may be lost, which best effort allows
            nonlocal frame
            camera.publish(image(ALL, header(number + frame % 10)))
            frame += 1
            time.sleep(0.1)
            return received

        wait_until(heard, 20, f"a result of a {reliability.name} {durability.name} camera")
    finally:
        node.robot.node.destroy_publisher(camera)


def test_of_a_burst_the_newest_frame_wins(node, number):
    received = node.detections()
    camera = node.matched()
    slow = scene(red=RED)
    slow[0, 0] = 9, 9, 10
    camera.publish(image(slow, header(number)))
    time.sleep(0.3)  # in hand now
    for n in range(1, 6):
        camera.publish(image(ALL, header(number + n)))
        time.sleep(0.05)
    results(received, header(number + 5))
    assert [one.header for one in received] == [header(number), header(number + 5)]


def _status(node):
    received = node.diagnostics()
    return wait_until(
        lambda: [s for m in received for s in m.status if s.name.startswith(node.name.lstrip("/"))],
        10,
        "diagnostics",
    )[-1]


def _diagnostics(node):
    return {value.key: value.value for value in _status(node).values}


def test_diagnostics_come_every_second_with_what_is_asked_of_them(node, number):
    head = header(number)
    received = node.detections()
    node.matched().publish(image(ALL, head))
    results(received, head)
    all_of_them = node.diagnostics()
    wait_until(lambda: len(all_of_them) >= 3, 10, "three diagnostics")
    values = _diagnostics(node)
    assert values["lifecycle state"] == "active"
    assert values["mode"] == "stream"
    assert values["objects"] == "3: mug, box, can"
    assert int(values["frames processed"]) >= 1
    for key in ("latency convert median [ms]", "latency segment median [ms]", "latency publish median [ms]"):
        assert float(values[key]) >= 0
    assert float(values["process memory [MiB]"]) > 10
    assert "last error" in values


def test_label_info_reaches_those_who_come_late(node):
    received = node.label_info()
    info = wait_until(lambda: received, 10, "label info")[-1]
    assert [(one.class_id, one.class_name) for one in info.class_map] == [(1, "mug"), (2, "box"), (3, "can")]
    assert node.set("score_threshold", 0.25) == ""
    wait_until(lambda: received[-1].threshold == 0.25, 10, "the new threshold")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"encoding": "nv21"}, "nv21"),
        ({"step": 3}, "step of 3"),
        ({"data": b""}, "0 bytes"),
        ({"width": 0}, "0 x 120"),
    ],
)
def test_an_unusable_image_is_told_and_dropped(node, number, change, words):
    received = node.detections()
    camera = node.matched()
    seen = len(node.program.lines)
    bad = image(ALL, header(number))
    for name, value in change.items():
        setattr(bad, name, value)
    camera.publish(bad)

    def told():
        return words in _diagnostics(node)["last error"]

    wait_until(told, 10, f"diagnostics that name {words}")
    camera.publish(image(ALL, header(number + 1)))
    results(received, header(number + 1))
    assert header(number) not in [one.header for one in received]
    assert "Traceback" not in "\n".join(node.program.lines[seen:])


def test_an_error_of_the_network_drops_the_frame_and_nothing_else(node, number):
    received = node.detections()
    camera = node.matched()
    bad = ALL.copy()
    bad[0, 0] = 1, 2, 3
    camera.publish(image(bad, header(number)))
    node.program.wait_for("a pixel of doom", 20)
    camera.publish(image(ALL, header(number + 1)))
    results(received, header(number + 1))
    assert "a pixel of doom" in _diagnostics(node)["last error"]


def test_compressed_images(start, meshes, number):
    one = start({"models_dir": str(meshes), "image_transport": "compressed", "autostart": True})
    one.program.wait_for("active, waiting for images")
    received = one.detections()
    camera = one.matched("image/compressed", CompressedImage)
    png = cv2.imencode(".png", ALL[..., ::-1])[1].tobytes()
    camera.publish(compressed(b"not a picture", header(number)))
    one.program.wait_for("damaged", 20)
    camera.publish(compressed(png, header(number + 1)))
    found = results(received, header(number + 1)).detections
    assert [d.results[0].hypothesis.class_id for d in found] == ["mug", "box", "can"]


def test_two_cameras_share_one_node(start, meshes, number):
    one = start({"models_dir": str(meshes), "cameras": ["left", "right"], "autostart": True, "mode": "trigger"})
    one.program.wait_for("active, waiting for images on")
    assert "/left/image" in one.program.text
    left, right = one.detections("left/detections"), one.detections("right/detections")
    cameras = [one.matched(f"{side}/image") for side in ("left", "right")]
    from std_srvs.srv import Trigger

    answer = one.call_async(Trigger, "segment", Trigger.Request())
    time.sleep(0.5)
    cameras[0].publish(image(scene(red=RED), header(number, "left")))
    results(left, header(number, "left"))
    assert not answer.done()
    cameras[1].publish(image(scene(blue=BLUE), header(number, "right")))
    results(right, header(number, "right"))
    wait_until(answer.done, 10, "the answer")
    assert answer.result().success
    assert answer.result().message == "left: 1 detection: mug 1.00; right: 1 detection: can 0.78"
    assert len(left) == len(right) == 1
    assert one.program.text.count("a fake segmenter") == 1


@pytest.mark.parametrize("topic, kind", [("detections", messages.Detection2DArray), ("mask", Image)])
def test_frames_are_segmented_only_while_somebody_listens(start, meshes, number, topic, kind):
    one = start({"models_dir": str(meshes), "autostart": True, "lazy": True})
    one.program.wait_for("active, waiting for images")
    camera = one.matched()
    unheard, processed = "frames left out (nobody listens)", "frames processed"

    def count(key, at_least):
        """Send until as many frames are counted; best effort may lose one."""

        def counted():
            camera.publish(image(ALL, header(number)))
            time.sleep(0.1)
            return int(_diagnostics(one)[key]) >= at_least

        wait_until(counted, 30, f"{at_least} {key}")
        return _diagnostics(one)

    assert count(unheard, 3)[processed] == "0"
    assert one.program.text.count("nobody listens to results of") == 1
    received = one.listen(topic, kind)
    before = int(count(processed, 3)[unheard])
    assert received
    assert int(_diagnostics(one)[unheard]) == before
    # Who asks for a frame by service gets it, listener or not.
    listening = [s for s in one.robot.node.subscriptions if s.topic_name == f"{one.name}/{topic}"]
    one.robot.node.destroy_subscription(listening[0])
    count(unheard, before + 2)
    from std_srvs.srv import Trigger

    answer = one.call_async(Trigger, "segment", Trigger.Request())
    time.sleep(0.3)
    camera.publish(image(ALL, header(number + 1)))
    wait_until(answer.done, 20, "the answer")
    assert answer.result().message.startswith("3 detections")
    done = int(_diagnostics(one)[processed])
    assert one.set("lazy", False) == ""
    count(processed, done + 2)


# Services


def test_trigger_mode_segments_one_frame_for_each_call(node, number):
    received = node.detections()
    camera = node.matched()
    assert node.set("mode", "trigger") == ""
    camera.publish(image(ALL, header(number)))
    time.sleep(0.5)
    assert received == []
    from std_srvs.srv import Trigger

    answer = node.call_async(Trigger, "segment", Trigger.Request())
    time.sleep(0.3)
    for n in range(1, 5):
        camera.publish(image(ALL, header(number + n)))
        time.sleep(0.05)
    wait_until(answer.done, 20, "the answer")
    assert answer.result().success
    assert answer.result().message == "3 detections: mug 1.00, box 0.90, can 0.78"
    wait_until(lambda: received, 5, "the detections")
    time.sleep(0.3)
    assert [one.header for one in received] == [header(number + 1)]


def test_trigger_in_stream_mode_answers_with_the_next_frame(node, number):
    from std_srvs.srv import Trigger

    camera = node.matched()
    answer = node.call_async(Trigger, "segment", Trigger.Request())
    time.sleep(0.3)
    camera.publish(image(scene(green=GREEN), header(number)))
    wait_until(answer.done, 20, "the answer")
    assert answer.result().message == "1 detection: box 0.90"


def test_trigger_without_a_camera_gives_up_and_says_so(node):
    assert node.set("trigger_timeout", 0.5) == ""
    answer = node.trigger("segment")
    assert not answer.success
    assert answer.message == f"no image arrived on {node.namespace}/image within 0.5 s"


def test_trigger_reports_a_frame_that_cannot_be_used(node, number):
    from std_srvs.srv import Trigger

    camera = node.matched()
    answer = node.call_async(Trigger, "segment", Trigger.Request())
    time.sleep(0.3)
    camera.publish(image(ALL[..., :1], header(number), "nv21"))
    wait_until(answer.done, 20, "the answer")
    assert not answer.result().success
    assert "nv21" in answer.result().message


def test_reload_reads_what_changed_and_keeps_the_rest(start, meshes, tmp_path, number):
    import shutil

    from std_srvs.srv import Trigger

    folder = tmp_path / "models"
    shutil.copytree(meshes, folder)
    one = start({"models_dir": str(folder), "objects": ["mug", "box"], "autostart": True})
    one.program.wait_for("active, waiting for images")
    # asked again where discovery was one-sided and the answer was lost; it is the same then
    first = one.call(Trigger, "reload_objects", Trigger.Request(), 20, 3)
    assert first.message == "2 objects: 0 read, 2 unchanged, 0 removed"
    assert one.set("objects", ["box", "can"]) == ""
    info = one.label_info()
    assert one.trigger("reload_objects").message == "2 objects: 1 read, 1 unchanged, 1 removed"
    wait_until(lambda: [c.class_name for c in info[-1].class_map] == ["box", "can"], 10, "the new label info")
    received = one.detections()
    one.matched().publish(image(scene(red=RED, green=GREEN), header(number)))
    found = results(received, header(number)).detections
    assert {d.results[0].hypothesis.class_id for d in found} == {"box", "can"}
    trimesh.creation.box((80, 90, 100)).export(folder / "obj_000003.ply")
    assert one.trigger("reload_objects").message == "2 objects: 1 read, 1 unchanged, 0 removed"
    one_more = {
        "objects": ["box", "can", "pin"],
        "objects.pin.mesh": str(folder / "obj_000001.ply"),
        "objects.pin.scale": 0.001,
    }
    assert one.set_all(one_more) == ["", "", ""]
    assert one.trigger("reload_objects").message == "3 objects: 1 read, 2 unchanged, 0 removed"


def test_a_reload_that_fails_changes_nothing(node, meshes, tmp_path, number):
    broken = tmp_path / "broken.ply"
    broken.write_text("ply")
    assert node.set_all({"objects": ["mug", "bad"], "objects.bad.mesh": str(broken)}) == ["", ""]
    answer = node.trigger("reload_objects")
    assert not answer.success
    assert "broken.ply" in answer.message
    assert _diagnostics(node)["objects"] == "3: mug, box, can"
    received = node.detections()
    node.matched().publish(image(ALL, header(number)))
    assert len(results(received, header(number)).detections) == 3
    assert node.set("objects", []) == ""
    assert node.trigger("reload_objects").message == "3 objects: 0 read, 3 unchanged, 0 removed"


# Parameters


def test_parameters_change_what_the_next_frame_gives(node, number):
    received = node.detections()
    camera = node.matched()

    def found(n):
        camera.publish(image(ALL, header(number + n)))
        return [d.results[0].hypothesis.class_id for d in results(received, header(number + n)).detections]

    assert found(0) == ["mug", "box", "can"]
    assert node.set("score_threshold", 0.85) == ""
    assert found(1) == ["mug", "box"]
    assert node.set("score_threshold", 1) == ""  # a whole number for a number
    assert node.get("score_threshold") == 1.0
    assert found(2) == ["mug"]


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("score_threshold", 1.5, "score_threshold"),
        ("score_threshold", "high", "Wrong parameter type"),
        ("mode", "sometimes", "one of stream, trigger"),
        ("selected_object", "cup", "the objects are mug, box, can"),
        ("weights", "/other.safetensors", "only while the node is unconfigured, and it is active"),
        ("autostart", False, "read-only"),
        ("score_treshold", 0.5, "did you mean 'score_threshold'"),
        ("objects.mug.colour", "red", "no parameter 'objects.mug.colour'"),
    ],
)
def test_a_refused_parameter_says_why(node, name, value, words):
    before = node.get(name)
    assert words in node.set(name, value)
    assert node.get(name) == before


def test_a_refused_parameter_refuses_the_whole_atomic_set(node):
    assert "one of" in node.set_all({"score_threshold": 0.1, "mode": "sometimes"}, atomically=True)[0]
    assert node.get("score_threshold") == 0.5


def test_descriptors_are_served(node):
    descriptor = node.describe("score_threshold")
    assert "confidence" in descriptor.description
    assert (descriptor.floating_point_range[0].from_value, descriptor.floating_point_range[0].to_value) == (
        0.0,
        1.0,
    )
    assert node.describe("autostart").read_only


def test_max_rate_limits_the_output(node, number):
    assert node.set("max_rate", 2.0) == ""
    received = node.detections()
    camera = node.matched()
    begin = time.monotonic()
    while time.monotonic() - begin < 3.0:
        camera.publish(image(ALL, header(number)))
        time.sleep(0.05)
    assert 2 <= len(received) <= 8


# End


@pytest.mark.parametrize(
    "moment, signal_number",
    [
        ("importing", signal.SIGINT),
        ("configuring", signal.SIGINT),
        ("active", signal.SIGINT),
        ("active", signal.SIGTERM),
        ("segmenting", signal.SIGTERM),
        ("segmenting", signal.SIGINT),
        ("waiting", signal.SIGINT),
    ],
)
def test_a_signal_ends_the_process_cleanly(start, meshes, number, moment, signal_number):
    one = start({"models_dir": str(meshes), "autostart": True, "weights": "slow" if moment == "configuring" else ""})
    if moment == "importing":
        time.sleep(1.0)
    elif moment == "configuring":
        wait_until(lambda: one.state == "configuring", 30, "the state configuring")
    else:
        one.program.wait_for("active, waiting for images")
    if moment == "segmenting":
        slow = ALL.copy()
        slow[0, 0] = 9, 9, 200
        one.detections()
        assert one.set("watch_latency", 0.1) == ""
        one.matched().publish(image(slow, header(number)))
        wait_until(lambda: "the frame in hand has taken" in _status(one).message, 20, "the frame to be in hand")
    if moment == "waiting":
        from std_srvs.srv import Trigger

        one.call_async(Trigger, "segment", Trigger.Request())
        time.sleep(0.5)
    one.program.send(signal_number)
    assert one.program.wait(15) == 0, one.program.text
    assert "Traceback" not in one.program.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tgkill is Linux's")
def test_a_signal_that_another_thread_gets_ends_the_process(start, meshes):
    """The kernel chooses the thread, mostly but not always the first."""
    one = start({"models_dir": str(meshes), "autostart": True})
    one.program.wait_for("active, waiting for images")
    process = one.program.process.pid
    threads = {int(task.name) for task in Path(f"/proc/{process}/task").iterdir()} - {process}
    last = max(threads)  # one of the executor's
    assert ctypes.CDLL(None).tgkill(process, last, int(signal.SIGINT)) == 0
    assert one.program.wait(15) == 0, one.program.text
    assert "Traceback" not in one.program.text


#: Starts what it is told to, says its number, and does nothing more.
STARTER = """
import subprocess, sys, time
print("CHILD", subprocess.Popen(sys.argv[1:]).pid, flush=True)
time.sleep(999)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize("end_with_parent", [True, False])
def test_a_node_ends_with_the_process_that_started_it_where_it_is_told_to(start, meshes, end_with_parent):
    given = {"models_dir": str(meshes), "autostart": True, "end_with_parent": end_with_parent}
    one = start(given, command=[sys.executable, "-c", STARTER, *FAKE_NODE])
    alive = Path(f"/proc/{int(one.program.wait_for('CHILD').split()[1])}/cwd")  # not there when it has ended
    one.program.wait_for("active, waiting for images")
    one.program.send(signal.SIGKILL)
    one.program.process.wait(10)
    if end_with_parent:
        wait_until(lambda: not alive.exists(), 30, "the end of the node")
        assert "Traceback" not in one.program.text
    else:
        time.sleep(3.0)
        assert alive.exists()
        assert one.state == "active"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_process_whose_parent_has_ended_before_it_could_ask_ends_at_once():
    program = "import os, time; from ocdit_ros.node.process import end_with; end_with(os.getppid() + 1); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_second_node_of_the_same_name_space_is_another_matter(start, meshes):
    """Remapping of name and topics, as in a launch file."""
    one = start(
        {"models_dir": str(meshes), "autostart": True},
        arguments=["-r", "__node:=finder", "-r", "image:=front/color", "-r", "~/detections:=found"],
    )
    one.program.wait_for(f"active, waiting for images on {one.namespace}/front/color")
    one.name = f"{one.namespace}/finder"
    assert one.state == "active"
    received = one.listen(f"{one.namespace}/found", messages.Detection2DArray)
    one.matched("front/color").publish(image(ALL, header(1)))
    results(received, header(1))


def test_a_parameter_file_that_is_not_there_is_named():
    done = subprocess.run(
        [*FAKE_NODE, "--ros-args", "--params-file", "/nowhere.yaml"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "segment_node: " in done.stderr
    assert "/nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_robot_of_these_tests_goes_on_when_something_is_destroyed_as_it_begins_to_wait_for_it(robot):
    received = []
    subscription = robot.node.create_subscription(DiagnosticArray, "/destroyed", received.append, 1)
    event = subscription.event_handlers[0]
    wait_for = event.add_to_wait_set

    def destroy_before(wait_set):
        robot.node.destroy_subscription(subscription)
        wait_for(wait_set)

    event.add_to_wait_set = destroy_before
    publisher = robot.node.create_publisher(DiagnosticArray, "/kept", 1)
    kept = robot.node.create_subscription(DiagnosticArray, "/kept", received.append, 1)
    wait_until(lambda: publisher.publish(DiagnosticArray()) or received, 20, "a message after that")
    robot.node.destroy_subscription(kept)
    robot.node.destroy_publisher(publisher)
