# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The real node with the real network, a small and untrained one; its results are those of the Segmenter here."""

import dataclasses
import signal

import numpy as np
import pytest
import torch
import trimesh
from model_fixtures import firm_model
from node_harness import REAL_NODE, NodeUnderTest, header, image, pixels_of, wait_until
from sensor_msgs.msg import Image

from ocdit_ros.model import save_checkpoint
from ocdit_ros.node import parameters
from ocdit_ros.node.backend import SETTINGS
from ocdit_ros.segment import Segmenter, SegmenterSettings, draw
from ocdit_ros.templates import ObjectSpec, TemplateCache

pytestmark = pytest.mark.integration

PROVENANCE = {"trained": "not at all, random weights of a test", "steps": 0}
#: Small and generous, so that even an untrained network finds something.
QUICK = {
    "score_threshold": 0.0, "coarse_size": 128, "min_pixels": 1, "cpu_threads": 1, "warm_up": False,
    "warm_start": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def weights(folder):
    path = folder / "tiny.safetensors"
    save_checkpoint(firm_model(), path, PROVENANCE)
    return path


@pytest.fixture(scope="module")
def meshes(folder):
    path = folder / "models"
    path.mkdir()
    for number, extents in enumerate([(60, 80, 100), (40, 40, 120)], start=1):
        mesh = trimesh.creation.box(extents)
        mesh.visual.face_colors = np.random.default_rng(number).integers(0, 256, (len(mesh.faces), 4))
        mesh.export(path / f"obj_{number:06d}.ply")
    return path


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def node(robot, folder, weights, meshes):
    """The node with the network, configured and active; the tests run in the order of a day's work."""
    given = {"weights": "/nowhere.safetensors", "models_dir": str(meshes), "cache_dir": str(folder / "cache"), **QUICK}
    one = NodeUnderTest(robot, folder, given, REAL_NODE)
    yield one
    one.end()


@pytest.fixture(scope="module")
def active(node, weights):
    if node.state == "unconfigured":
        assert node.set_all({"weights": str(weights), "device": "auto"}) == ["", ""]
        assert node.transition("configure", 240), node.program.text
    if node.state == "inactive":
        assert node.transition("activate")
    return node


@pytest.fixture(scope="module")
def expected(folder, weights, meshes):
    """The same segmenter in this process."""
    settings = SegmenterSettings(**{name: {**parameters.defaults(), **QUICK}[name] for name in SETTINGS})
    segmenter = Segmenter.from_checkpoint(weights, settings=settings, cache=TemplateCache(folder / "cache"))
    for number in (1, 2):
        segmenter.add_object(ObjectSpec(f"obj_{number:06d}", str(meshes / f"obj_{number:06d}.ply"), 0.001))
    return segmenter


def result_of(received, head, timeout=120):
    return wait_until(lambda: [one for one in received if one.header == head], timeout, "a result")[0]


def test_weights_that_are_not_there_are_named(node):
    assert not node.transition("configure", 240)
    assert "'weights'" in node.program.wait_for("configure failed:")
    assert "/nowhere.safetensors" in node.program.wait_for("configure failed:")
    assert node.state == "unconfigured"


def test_damaged_weights_are_named(node, folder, weights):
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:1000])
    said = len(node.program.lines)
    assert node.set("weights", str(damaged)) == ""
    assert not node.transition("configure", 240)
    assert "damaged.safetensors" in node.program.wait_for("configure failed: parameter 'weights'", since=said)
    assert node.state == "unconfigured"


def test_a_gpu_that_is_not_there_is_named(node):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = len(node.program.lines)
    assert node.set("device", "cuda:0") == ""
    assert not node.transition("configure", 240)
    assert "CUDA" in node.program.wait_for("configure failed: parameter 'device' is 'cuda:0'", since=said)


def test_the_log_says_once_how_well_the_weights_were_trained(active):
    assert "random weights of a test" in active.program.wait_for("tiny.safetensors on ")
    assert active.program.text.count("random weights of a test") == 1
    assert "object 2 of 2: obj_000002 is ready" in active.program.text


@pytest.mark.parametrize("encoding, order", [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0])])
def test_the_node_gives_what_the_segmenter_gives(active, expected, picture, encoding, order):
    detections, labels = active.detections(), active.listen("label_image", Image)
    head = header(100 + order[0])
    active.matched().publish(image(picture[..., order], head, encoding))
    found = result_of(detections, head).detections
    instances = expected.segment(picture)
    assert instances, "the untrained network should find something at a threshold of 0"
    assert [one.results[0].hypothesis.class_id for one in found] == [one.name for one in instances]
    scores = [one.results[0].hypothesis.score for one in found]
    np.testing.assert_allclose(scores, [one.score for one in instances], atol=1e-4)
    wanted = draw.label_image(instances, *picture.shape[:2])
    given = pixels_of(result_of(labels, head))
    assert (given == wanted).mean() > 0.999  # the same but for rounding in another process
    assert set(np.unique(given)) == set(range(len(found) + 1))


def test_a_frame_of_another_size_and_grey(active, picture):
    detections, labels = active.detections(), active.listen("label_image", Image)
    head = header(300)
    active.matched().publish(image(picture[:61, :47, 0], head, "mono8"))
    result_of(detections, head)
    assert pixels_of(result_of(labels, head)).shape == (61, 47)


def test_settings_reach_the_network_at_the_next_frame(active, expected, picture):
    detections, labels = active.detections(), active.listen("label_image", Image)
    camera = active.matched()
    before = expected.settings
    changes = {"refine": False, "steps": 3, "seed": 5, "score_threshold": 0.1}
    assert active.set_all(changes) == [""] * len(changes)
    camera.publish(image(picture, header(400)))
    given = pixels_of(result_of(labels, header(400)))
    same = draw.label_image(expected.segment(picture), *picture.shape[:2])
    expected.settings = dataclasses.replace(before, **changes)
    try:
        wanted = draw.label_image(expected.segment(picture), *picture.shape[:2])
    finally:
        expected.settings = before
    assert (given == wanted).mean() > 0.999
    assert (given == same).mean() < 0.99, "the settings make no difference, so this test would see none"
    assert active.set("score_threshold", 1.0) == ""
    camera.publish(image(picture, header(401)))
    assert list(result_of(detections, header(401)).detections) == []
    assert active.set_all({name: getattr(before, name) for name in changes}) == [""] * len(changes)


def test_stages_of_the_network_are_in_the_diagnostics(active):
    received = active.diagnostics()
    mine = wait_until(
        lambda: [s for m in received for s in m.status if s.name.startswith(active.name.lstrip("/"))], 10, "diagnostics"
    )
    keys = [value.key for value in mine[-1].values]
    assert any(key.startswith("latency segment/coarse") for key in keys)
    assert any(key.startswith("latency segment/total") for key in keys)


def test_objects_come_and_go_while_active(active, meshes, picture):
    assert active.set("objects", ["obj_000002"]) == ""
    assert active.trigger("reload_objects", 120).message == "1 objects: 0 read, 1 unchanged, 1 removed"
    detections = active.detections()
    active.matched().publish(image(picture, header(500)))
    names = {one.results[0].hypothesis.class_id for one in result_of(detections, header(500)).detections}
    assert names <= {"obj_000002"}
    assert active.set("objects", []) == ""
    assert active.trigger("reload_objects", 120).message == "2 objects: 1 read, 1 unchanged, 0 removed"


def test_with_a_warm_start_frames_continue_and_ids_are_the_labels(active, expected, picture):
    # an untrained network minds which slots objects have, and these have come and gone
    for way in ("deactivate", "cleanup", "configure", "activate"):
        assert active.transition(way, 240)
    detections, labels = active.detections(), active.listen("label_image", Image)
    received = active.diagnostics()
    camera = active.matched()
    assert active.set("warm_start", True) == ""
    instances = expected.segment(picture)
    for number in (550, 551):
        camera.publish(image(picture, header(number)))
        found = result_of(detections, header(number)).detections
        assert {int(one.id) for one in found} == set(np.unique(pixels_of(result_of(labels, header(number))))) - {0}
        if number == 550:
            assert [one.results[0].hypothesis.class_id for one in found] == [one.name for one in instances]

    def continued():
        return [
            value for message in received for status in message.status for value in status.values
            if (value.key, value.value) == ("last frame", "continued the one before")
        ]  # fmt: skip

    wait_until(continued, 10, "diagnostics that tell of a frame that continues")
    assert active.set("warm_start", False) == ""


def test_configure_again_gives_the_same_from_the_cache(active, folder, expected, picture):
    assert list((folder / "cache").glob("*.templates"))
    assert active.transition("deactivate")
    assert active.transition("cleanup")
    assert active.transition("configure", 240)
    assert active.transition("activate")
    assert active.set("objects", []) == ""
    detections = active.detections()
    active.matched().publish(image(picture, header(600)))
    found = result_of(detections, header(600)).detections
    instances = expected.segment(picture)
    assert [one.results[0].hypothesis.class_id for one in found] == [one.name for one in instances]


def test_sigint_ends_the_node(active):
    active.program.send(signal.SIGINT)
    assert active.program.wait(90) == 0, active.program.text  # the end of a PyTorch process takes 2 s of processor time
    assert "Traceback" not in active.program.text
