# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Files that name the node's topics, against the node itself in the ROS graph: SROS2 policy, rviz2, documentation."""

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import trimesh
import yaml
from node_harness import FAKE_NODE, NodeUnderTest, Robot, environment, wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """What the node is in the graph, by image_transport, names as if it were in no namespace."""
    folder = tmp_path_factory.mktemp("graph")
    trimesh.creation.box((100, 100, 100)).export(folder / "obj_000001.ply")
    robot, found = Robot(), {}
    for transport in ("raw", "compressed"):
        given = {
            "models_dir": str(folder), "autostart": True, "use_sim_time": True, "image_transport": transport,
        }  # fmt: skip
        node = NodeUnderTest(robot, folder, given)
        try:
            node.program.wait_for("active, waiting for images")
            topic = "/image/compressed" if transport == "compressed" else "/image"

            def whole(node=node, topic=topic):
                graph = node.interface()
                return any(name.endswith(topic) for name, _ in graph["subscribe"]) and graph

            graph = wait_until(whole, 20, "the whole node in the graph")
            found[transport] = {
                right: {(name.removeprefix(node.namespace), kind) for name, kind in names}
                for right, names in graph.items()
            }
        finally:
            node.end()
    robot.close()
    return found


def test_the_policy_gives_the_node_exactly_the_rights_that_it_uses(graphs):
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml").getroot()
    assert policy.attrib == {"version": "0.2.0"}
    profiles = policy.findall("enclaves/enclave/profiles/profile")
    assert [profile.attrib for profile in profiles] == [{"ns": "/", "node": "segment_node"}]
    given = {"publish": set(), "subscribe": set(), "reply": set(), "request": set()}
    for group in profiles[0]:
        ((right, value),) = group.attrib.items()
        assert value == "ALLOW"
        for item in group:
            name = item.text.replace("~", "/segment_node")
            given[right].add(name if name.startswith("/") else f"/{name}")
    used = {right: {name for graph in graphs.values() for name, _ in graph[right]} for right in given}
    # The type description service answers since Jazzy; older graphs do not have it.
    assert given == used


def test_rviz_shows_topics_of_the_node_in_their_types(graphs):
    published = dict(graphs["raw"]["publish"])
    displays = yaml.safe_load((ROOT / "config" / "segment.rviz").read_text())["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays}
    assert shown == {"/segment_node/overlay", "/segment_node/label_image", "/segment_node/mask"}
    for display in displays:
        assert display["Class"] == "rviz_default_plugins/Image"
        assert published[display["Topic"]["Value"]] == "sensor_msgs/msg/Image"


def test_the_page_names_every_topic_and_service_of_the_node(graphs):
    page = (ROOT / "docs" / "node.md").read_text()
    rows = dict(re.findall(r"^\| (?:in|out) \| `([^`]+)` \| (\w+/\w+)", page, re.M))
    graph = graphs["raw"]
    own = {name.replace("/segment_node/", "~/"): kind.replace("/msg/", "/") for name, kind in graph["publish"]}
    own |= {name.lstrip("/"): kind.replace("/msg/", "/") for name, kind in graph["subscribe"] if name == "/image"}
    common = {"/rosout", "/parameter_events", "~/transition_event"}
    assert rows == {name: kind for name, kind in own.items() if name not in common}
    for name, kind in graph["reply"]:
        if kind == "std_srvs/srv/Trigger":
            assert f"| `{name.replace('/segment_node/', '~/')}` | std_srvs/Trigger |" in page


@pytest.mark.parametrize("keystore", ["none", "rubbish"])
def test_the_node_does_not_run_open_where_security_is_enforced(tmp_path, keystore):
    """Without keys, with keys that are none, on a middleware without security: one sentence and no node."""
    if keystore == "rubbish":
        enclave = tmp_path / "enclaves" / "segment_node"
        enclave.mkdir(parents=True)
        for name in ("identity_ca.cert.pem", "permissions_ca.cert.pem", "cert.pem", "key.pem"):
            (enclave / name).write_text("no key\n")
        for name in ("governance.p7s", "permissions.p7s"):
            (enclave / name).write_text("no signature\n")
    done = subprocess.run(
        [*FAKE_NODE, "--ros-args", "--enclave", "/segment_node"],
        env=environment(
            ROS_SECURITY_ENABLE="true", ROS_SECURITY_STRATEGY="Enforce", ROS_SECURITY_KEYSTORE=str(tmp_path)
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("segment_node: ")
    assert "ROS_SECURITY_KEYSTORE" in last
