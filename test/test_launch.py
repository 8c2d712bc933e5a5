# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The launch file: with stand-ins everywhere, for real where launch_ros is installed; and the file for rviz2."""

import importlib.util
import re
import signal
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trimesh
import yaml
from lifecycle_msgs.msg import Transition
from node_harness import Program, wait_until
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from sensor_msgs.msg import Image

from ocdit_ros.node import parameters
from ocdit_ros.node.lifecycle_node import RESULT_QOS

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "launch" / "segment.launch.py"
DEMO = ROOT / "launch" / "segment_demo.launch.py"
REAL = importlib.util.find_spec("launch_ros") is not None


@dataclass
class Recorded:
    """An action or event, with what it was given."""

    kind: str
    given: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["given"][name]
        except KeyError:
            raise AttributeError(name) from None


#: Names that these classes take in launch 3.4 and launch_ros 0.26 (Jazzy); the first ones may be given by position.
_NODE = (
    "executable package name namespace exec_name parameters remappings ros_arguments arguments output respawn "
    "respawn_delay sigterm_timeout sigkill_timeout emulate_tty condition additional_env prefix"
)
SIGNATURES = {
    "launch.actions": {
        "DeclareLaunchArgument": "name default_value description choices condition",
        "EmitEvent": "event condition",
        "ExecuteProcess": "cmd prefix name cwd env additional_env shell sigterm_timeout output condition",
        "IncludeLaunchDescription": "launch_description_source launch_arguments condition",
        "OpaqueFunction": "function args kwargs condition",
        "RegisterEventHandler": "event_handler condition",
    },
    "launch.conditions": {"IfCondition": "predicate_expression"},
    "launch.launch_description_sources": {"PythonLaunchDescriptionSource": "launch_file_path"},
    "launch.event_handlers": {"OnProcessStart": "target_action on_start"},
    "launch_ros.actions": {"LifecycleNode": _NODE, "Node": _NODE},
    "launch_ros.event_handlers": {
        "OnStateTransition": "entities target_lifecycle_node transition start_state goal_state handle_once"
    },
    "launch_ros.events.lifecycle": {"ChangeState": "lifecycle_node_matcher transition_id"},
    "launch_ros.parameter_descriptions": {"ParameterValue": "value value_type"},
}


def stand_in(kind: str, signature: str) -> Any:
    names = signature.split()

    def make(*values: Any, **named: Any) -> Recorded:
        given = dict(zip(names, values, strict=False)) | named
        assert len(values) <= len(names), f"{kind} takes {names}"
        assert set(given) <= set(names), f"{kind} has no argument {sorted(set(given) - set(names))}"
        return Recorded(kind, given)

    return make


@dataclass
class Configuration:
    """LaunchConfiguration of the stand-in."""

    name: str

    def perform(self, context: dict[str, str]) -> str:
        return context[self.name]


@dataclass
class Launched:
    """What the launch file makes of some arguments."""

    arguments: dict[str, Recorded]
    actions: list[Recorded] = field(default_factory=list)
    context: dict[str, str] = field(default_factory=dict)

    def text(self, value: Any) -> str:
        return value.perform(self.context) if isinstance(value, Configuration) else value

    def active(self, action: Recorded) -> bool:
        condition = action.given.get("condition")
        return condition is None or self.text(condition.predicate_expression).lower() in ("true", "1")

    def kinds(self) -> list[str]:
        return [action.kind for action in self.actions if self.active(action)]

    @property
    def node(self) -> Recorded:
        return next(action for action in self.actions if action.kind == "LifecycleNode")

    @property
    def parameters(self) -> dict[str, Any]:
        """What the launch file itself sets."""
        values = {}
        for name, value in self.node.parameters[1].items():
            if isinstance(value, Recorded):
                text = self.text(value.value)
                value = text.lower() == "true" if value.value_type is bool else value.value_type(text)
            values[name] = value
        return values


@pytest.fixture
def load(monkeypatch):
    """Run a launch file with stand-ins for launch and launch_ros."""
    modules = {name: types.ModuleType(name) for name in ("launch", "launch_ros", "launch.events", "launch_ros.events")}
    for module, classes in SIGNATURES.items():
        modules.setdefault(module, types.ModuleType(module))
        for kind, signature in classes.items():
            setattr(modules[module], kind, stand_in(kind, signature))
    modules["launch"].LaunchDescription = lambda actions: actions
    modules["launch.substitutions"] = types.ModuleType("launch.substitutions")
    modules["launch.substitutions"].LaunchConfiguration = Configuration
    modules["launch.events"].matches_action = lambda action: ("matches", action)
    packages = types.ModuleType("ament_index_python.packages")
    packages.get_package_share_directory = lambda name: {"ocdit_ros": str(ROOT)}[name]
    modules["ament_index_python.packages"] = packages
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def from_file(file: Path) -> Any:
        spec = importlib.util.spec_from_file_location(file.name.replace(".", "_"), file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def run(**given: str) -> Launched:
            *arguments, setup = module.generate_launch_description()
            declared = {argument.name: argument for argument in arguments}
            assert set(given) <= set(declared)
            context = {name: argument.default_value for name, argument in declared.items()} | given
            return Launched(declared, setup.function(context), context)

        return run

    return from_file


@pytest.fixture
def launched(load):
    """Run segment.launch.py."""
    return load(FILE)


@pytest.fixture
def demo(load):
    """Run segment_demo.launch.py."""
    return load(DEMO)


def test_the_arguments_are_those_that_users_expect_and_have_texts(launched):
    declared = launched().arguments
    wanted = {
        "namespace", "params_file", "image", "use_sim_time", "autostart", "log_level", "rviz", "device", "weights",
        "models_dir", "use_respawn",
    }  # fmt: skip
    assert set(declared) == wanted
    for argument in declared.values():
        assert argument.description.endswith(".")
        assert isinstance(argument.default_value, str)
    page = (ROOT / "docs" / "node.md").read_text()
    for name, argument in declared.items():
        default = re.escape(argument.default_value or '""')
        assert re.search(rf"^\| `{name}` \| `{default}` \|", page, re.M), name


def test_package_executable_and_files_exist(launched):
    node = launched().node
    assert node.package == re.search(r"<name>(.*?)</name>", (ROOT / "package.xml").read_text())[1]
    scripts = re.findall(r'"(\w+) = ([\w.]+):main"', (ROOT / "setup.py").read_text())
    assert dict(scripts)[node.executable] == "ocdit_ros.node.segment_node"
    assert node.name == parameters.NODE_NAME
    assert Path(node.parameters[0]) == ROOT / "config" / "segment.yaml"
    assert Path(node.parameters[0]).is_file()


def test_every_parameter_that_it_sets_is_one_of_the_node_in_its_type(launched):
    one = launched(weights="/w.safetensors", device="cuda:1", models_dir="2024", use_sim_time="true")
    for name, value in one.parameters.items():
        row = parameters.find(name)
        assert row is None or row.check(value) == value
    assert one.parameters == {
        "models_dir": "2024", "weights": "/w.safetensors", "device": "cuda:1", "use_sim_time": True, "autostart": False,
        "end_with_parent": True,
    }  # fmt: skip


def test_what_is_not_given_is_left_to_the_parameter_file(launched):
    one = launched(params_file="/my.yaml")
    assert one.node.parameters[0] == "/my.yaml"
    assert one.parameters == {"use_sim_time": False, "autostart": False, "end_with_parent": True}


def test_images_are_remapped_raw_and_compressed(launched):
    remappings = dict(launched(image="/camera/color/image_raw").node.remappings)
    assert remappings == {
        "image": "/camera/color/image_raw",
        "image/compressed": "/camera/color/image_raw/compressed",
    }


def test_autostart_configures_when_the_process_starts_and_then_activates(launched):
    one = launched()
    assert one.kinds() == ["RegisterEventHandler", "RegisterEventHandler", "LifecycleNode"]
    start, transition = (action.event_handler for action in one.actions[:2])
    assert start.kind == "OnProcessStart"
    assert start.target_action is one.node
    event = start.on_start[0].event
    assert (event.kind, event.transition_id) == ("ChangeState", Transition.TRANSITION_CONFIGURE)
    assert event.lifecycle_node_matcher == ("matches", one.node)
    assert transition.kind == "OnStateTransition"
    assert transition.target_lifecycle_node is one.node
    assert (transition.start_state, transition.goal_state) == ("configuring", "inactive")
    assert transition.entities[0].event.transition_id == Transition.TRANSITION_ACTIVATE


def test_without_autostart_nothing_happens_by_itself(launched):
    one = launched(autostart="false")
    assert one.kinds() == ["LifecycleNode"]
    assert one.parameters["autostart"] is False


@pytest.mark.parametrize("autostart", ["true", "false"])
def test_with_respawn_the_node_starts_itself(launched, autostart):
    one = launched(use_respawn="true", autostart=autostart)
    assert one.node.respawn is True
    assert one.kinds() == ["LifecycleNode"]
    assert one.parameters["autostart"] == (autostart == "true")
    assert launched().node.respawn is False


@pytest.mark.parametrize(
    "namespace, prefix", [("", "/segment_node"), ("arm", "/arm/segment_node"), ("/a/b", "/a/b/segment_node")]
)
def test_rviz_shows_the_topics_of_this_node(launched, namespace, prefix):
    one = launched(rviz="true", namespace=namespace)
    rviz = one.actions[-1]
    assert one.active(rviz)
    assert not launched().active(launched().actions[-1])
    assert one.text(one.node.namespace) == namespace
    assert Path(rviz.arguments[1]) == ROOT / "config" / "segment.rviz"
    assert dict(rviz.remappings)["/segment_node/overlay"] == f"{prefix}/overlay"
    shown = {display["Topic"]["Value"] for display in rviz_displays()}
    assert set(dict(rviz.remappings)) == shown


def rviz_displays():
    content = yaml.safe_load((ROOT / "config" / "segment.rviz").read_text())
    return content["Visualization Manager"]["Displays"]


#: What rviz2 14.1 (Jazzy) knows of what the file uses: classes of its plugin descriptions, properties of its Image
#: display, choices of its QoS properties. A name that is none of these, rviz2 leaves out or takes the default for.
RVIZ_CLASSES = {
    "Panels": {"rviz_common/Displays", "rviz_common/Time"},
    "Displays": {"rviz_default_plugins/Image"},
    "Tools": {"rviz_default_plugins/MoveCamera"},
    "Views": {"rviz_default_plugins/Orbit"},
    "Transformation": {"rviz_default_plugins/TF"},
}
RVIZ_IMAGE = {
    "Class", "Name", "Enabled", "Value", "Topic", "Normalize Range", "Min Value", "Max Value", "Median window",
}  # fmt: skip
RVIZ_QOS = {
    "Reliability Policy": {
        "Best Effort": ReliabilityPolicy.BEST_EFFORT,
        "Reliable": ReliabilityPolicy.RELIABLE,
    },
    "Durability Policy": {
        "Volatile": DurabilityPolicy.VOLATILE,
        "Transient Local": DurabilityPolicy.TRANSIENT_LOCAL,
    },
    "History Policy": {"Keep Last": HistoryPolicy.KEEP_LAST, "Keep All": HistoryPolicy.KEEP_ALL},
}


def test_the_rviz_file_uses_classes_and_properties_that_rviz2_has():
    content = yaml.safe_load((ROOT / "config" / "segment.rviz").read_text())
    manager = content["Visualization Manager"]
    used = {
        "Panels": content["Panels"],
        "Displays": manager["Displays"],
        "Tools": manager["Tools"],
        "Views": [manager["Views"]["Current"]],
        "Transformation": [manager["Transformation"]["Current"]],
    }
    for group, items in used.items():
        assert {item["Class"] for item in items} <= RVIZ_CLASSES[group], group
    names = [display["Name"] for display in manager["Displays"]]
    assert len(set(names)) == len(names)
    for display in manager["Displays"]:
        assert set(display) == RVIZ_IMAGE
        assert display["Enabled"] is display["Value"]  # rviz2 writes and reads it in both places
        assert set(display["Topic"]) == {"Value", "Depth", *RVIZ_QOS}
    expanded = content["Panels"][0]["Property Tree Widget"]["Expanded"]
    assert {path.split("/")[1].rstrip("1") for path in expanded} == set(names)


def test_the_rviz_file_names_topics_types_and_qos_of_the_node():
    source = (ROOT / "ocdit_ros" / "node" / "lifecycle_node.py").read_text()
    published = {topic: kind for kind, topic in re.findall(r'self\._publisher\((\w+), prefix \+ "(\w+)"\)', source)}
    for display in rviz_displays():
        topic = display["Topic"]
        assert topic["Value"].startswith("/segment_node/")
        assert published[topic["Value"].rpartition("/")[2]] == Image.__name__
        given = {
            name.split()[0].lower(): choices[topic[name]] for name, choices in RVIZ_QOS.items()
        }  # fmt: skip
        compatible, why = qos_check_compatible(RESULT_QOS, QoSProfile(depth=topic["Depth"], **given))
        assert compatible != QoSCompatibility.ERROR, why  # it warns of the liveliness, which both leave to DDS


def test_the_demo_hands_arguments_on_as_segment_launch_takes_them(demo, launched):
    one = demo(images="/photos", models_dir="/models", namespace="arm", device="cpu", rviz="false")
    _, include = one.actions
    assert include.kind == "IncludeLaunchDescription"
    assert Path(include.launch_description_source.launch_file_path) == FILE
    handed = dict(include.launch_arguments)
    assert set(handed) <= set(launched().arguments)
    assert (handed["models_dir"], handed["namespace"], handed["device"], handed["rviz"]) == (
        "/models", "arm", "cpu", "false",
    )  # fmt: skip
    # The same argument has the same meaning; rviz alone is on by itself here, and autostart cannot be switched off.
    for name in set(handed) - {"image", "rviz"}:
        assert one.arguments[name].description.startswith(launched().arguments[name].description.rstrip("."))
        assert one.arguments[name].default_value == launched().arguments[name].default_value
    assert dict(demo(images="/photos").actions[1].launch_arguments)["rviz"] == "true"


def test_the_demo_replays_a_folder_of_images_as_a_camera(demo):
    one = demo(images="2024", rate="2.5", loop="false", image="/front/color")
    camera, include = one.actions
    assert (camera.kind, camera.package, camera.executable) == ("Node", "ocdit_ros", "image_folder_publisher")
    scripts = dict(re.findall(r'"(\w+) = ([\w.]+):main"', (ROOT / "setup.py").read_text()))
    assert scripts[camera.executable] == "ocdit_ros.node.image_folder"
    given = {
        name: value.value_type(one.text(value.value)) if isinstance(value, Recorded) else value
        for name, value in camera.parameters[0].items()
    }
    assert given == {"folder": "2024", "rate": 2.5, "loop": False, "end_with_parent": True}
    source = (ROOT / "ocdit_ros" / "node" / "image_folder.py").read_text()
    assert set(given) <= set(re.findall(r'declare_parameter\("(\w+)"', source))
    # What the one sends is what the other listens to.
    assert dict(camera.remappings)["image"] == "/front/color" == dict(include.launch_arguments)["image"]


#: Options of `ros2 bag play` that could be of use here, as rosbag2 0.26 (Jazzy) has them in ros2bag/verb/play.py.
BAG_PLAY_OPTIONS = {
    "--rate", "--loop", "--clock", "--delay", "--topics", "--remap", "--start-offset", "--start-paused", "--storage",
    "--read-ahead-queue-size", "--qos-profile-overrides-path", "--disable-keyboard-controls", "--playback-duration",
}  # fmt: skip


@pytest.mark.parametrize("loop, sim_time", [("true", "false"), ("false", "true")])
def test_the_demo_replays_a_bag(demo, tmp_path, loop, sim_time):
    one = demo(bag=str(tmp_path), loop=loop, use_sim_time=sim_time, image="/cam/image")
    register, include = one.actions
    assert (register.kind, register.event_handler.kind) == ("RegisterEventHandler", "OnStateTransition")
    # What is played before the node listens is lost.
    start = register.event_handler
    assert (start.start_state, start.goal_state, start.handle_once) == ("activating", "active", True)
    (player,) = start.entities
    wanted = ["ros2", "bag", "play", str(tmp_path), "--rate", "1.0"]
    wanted += ["--loop"] if loop == "true" else ["--clock"]
    assert (player.kind, player.cmd) == ("ExecuteProcess", wanted)
    assert {word for word in player.cmd if word.startswith("-")} <= BAG_PLAY_OPTIONS
    handed = dict(include.launch_arguments)
    assert (handed["image"], handed["use_sim_time"]) == ("/cam/image", sim_time)


@pytest.mark.parametrize("given", [{}, {"images": "/photos", "bag": "/data/drive"}])
def test_the_demo_wants_one_recording(demo, given):
    with pytest.raises(RuntimeError, match="either images:=<folder> or bag:=<rosbag2>"):
        demo(**given)


def test_a_bag_that_is_not_there_is_named_before_anything_starts(demo):
    with pytest.raises(RuntimeError, match="there is no bag '/nowhere/drive'"):
        demo(bag="/nowhere/drive")


def test_the_arguments_of_the_demo_are_explained(demo):
    declared = demo(images="/photos").arguments
    page = (ROOT / "docs" / "node.md").read_text()
    for name in ("images", "bag", "image", "rate", "loop"):
        assert declared[name].description.endswith(".")
        default = re.escape(declared[name].default_value or '""')
        assert re.search(rf"^\| `{name}` \| `{default}` \|", page, re.M), name


#: Runs a launch file as `ros2 launch` does, in a process of its own.
LAUNCH = """
import sys, launch
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = launch.LaunchService()
given = [argument.split(":=", 1) for argument in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
include = IncludeLaunchDescription(source, launch_arguments=given)
service.include_launch_description(launch.LaunchDescription([include]))
sys.exit(service.run())
"""


def is_alive(process: int) -> bool:
    """Whether it still runs; one that waits for its parent's attention does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.integration
@pytest.mark.skipif(not REAL, reason="launch_ros is not installed here; the stand-ins above have checked the file")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_real_launch_brings_the_node_up_and_the_node_ends_with_it(tmp_path, number):
    """Needs the installed package too, since launch finds the executable through the ament index."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix("ocdit_ros")
    except PackageNotFoundError:
        pytest.skip("ocdit_ros is not installed; source its install space")
    trimesh.creation.box((100, 100, 100)).export(tmp_path / "obj_000001.ply")
    given = [f"models_dir:={tmp_path}", "namespace:=arm", "image:=/front/color"]
    program = Program([sys.executable, "-c", LAUNCH, str(FILE), *given])
    try:
        program.wait_for("waiting for images on /front/color", 200)
        node = int(re.search(r"process started with pid \[(\d+)\]", program.text)[1])
        assert is_alive(node)
        program.send(number)
        wait_until(lambda: not is_alive(node), 30, "the end of the node")
        status = program.process.wait(30)
    finally:
        program.end()
    if number == signal.SIGINT:  # at the others launch ends at once, and does not look after its processes
        assert status == 0
        assert "process has finished cleanly" in program.text
