# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The launch file: with stand-ins everywhere, for real where launch_ros is installed; and the file for rviz2."""

import importlib.util
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trimesh
import yaml
from lifecycle_msgs.msg import Transition
from node_harness import environment

from ocdit_ros.node import parameters

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
    }  # fmt: skip


def test_what_is_not_given_is_left_to_the_parameter_file(launched):
    one = launched(params_file="/my.yaml")
    assert one.node.parameters[0] == "/my.yaml"
    assert one.parameters == {"use_sim_time": False, "autostart": False}


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


def test_the_rviz_file_names_topics_types_and_qos_of_the_node():
    from sensor_msgs.msg import Image

    source = (ROOT / "ocdit_ros" / "node" / "lifecycle_node.py").read_text()
    published = {topic: kind for kind, topic in re.findall(r'self\._publisher\((\w+), prefix \+ "(\w+)"\)', source)}
    for display in rviz_displays():
        assert display["Class"] == "rviz_default_plugins/Image"
        topic = display["Topic"]
        assert topic["Value"].startswith("/segment_node/")
        assert published[topic["Value"].rpartition("/")[2]] == Image.__name__
        assert (topic["Reliability Policy"], topic["Durability Policy"]) == ("Reliable", "Volatile")


def test_the_demo_hands_arguments_on_as_segment_launch_takes_them(demo, launched):
    one = demo(images="/photos", models_dir="/models", namespace="arm", device="cpu", rviz="false")
    include, _ = one.actions
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
    assert dict(demo(images="/photos").actions[0].launch_arguments)["rviz"] == "true"


def test_the_demo_replays_a_folder_of_images_as_a_camera(demo):
    one = demo(images="2024", rate="2.5", loop="false", image="/front/color")
    include, camera = one.actions
    assert (camera.kind, camera.package, camera.executable) == ("Node", "ocdit_ros", "image_folder_publisher")
    scripts = dict(re.findall(r'"(\w+) = ([\w.]+):main"', (ROOT / "setup.py").read_text()))
    assert scripts[camera.executable] == "ocdit_ros.node.image_folder"
    given = {
        name: value.value_type(one.text(value.value)) if isinstance(value, Recorded) else value
        for name, value in camera.parameters[0].items()
    }
    assert given == {"folder": "2024", "rate": 2.5, "loop": False}
    source = (ROOT / "ocdit_ros" / "node" / "image_folder.py").read_text()
    assert set(given) <= set(re.findall(r'declare_parameter\("(\w+)"', source))
    # What the one sends is what the other listens to.
    assert dict(camera.remappings)["image"] == "/front/color" == dict(include.launch_arguments)["image"]


@pytest.mark.parametrize("loop, sim_time", [("true", "false"), ("false", "true")])
def test_the_demo_replays_a_bag(demo, loop, sim_time):
    include, player = demo(bag="/data/drive", loop=loop, use_sim_time=sim_time, image="/cam/image").actions
    wanted = ["ros2", "bag", "play", "/data/drive", "--rate", "1.0"]
    wanted += ["--loop"] if loop == "true" else ["--clock"]
    assert (player.kind, player.cmd) == ("ExecuteProcess", wanted)
    handed = dict(include.launch_arguments)
    assert (handed["image"], handed["use_sim_time"]) == ("/cam/image", sim_time)


@pytest.mark.parametrize("given", [{}, {"images": "/photos", "bag": "/data/drive"}])
def test_the_demo_wants_one_recording(demo, given):
    with pytest.raises(RuntimeError, match="either images:=<folder> or bag:=<rosbag2>"):
        demo(**given)


def test_the_arguments_of_the_demo_are_explained(demo):
    declared = demo(images="/photos").arguments
    page = (ROOT / "docs" / "node.md").read_text()
    for name in ("images", "bag", "image", "rate", "loop"):
        assert declared[name].description.endswith(".")
        default = re.escape(declared[name].default_value or '""')
        assert re.search(rf"^\| `{name}` \| `{default}` \|", page, re.M), name


@pytest.mark.integration
@pytest.mark.skipif(not REAL, reason="launch_ros is not installed here; the stand-ins above have checked the file")
def test_the_real_launch_brings_the_node_up_and_ends_it(tmp_path):
    """Needs the installed package too, since launch finds the executable through the ament index."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix("ocdit_ros")
    except PackageNotFoundError:
        pytest.skip("ocdit_ros is not installed; source its install space")
    trimesh.creation.box((100, 100, 100)).export(tmp_path / "obj_000001.ply")
    program = [
        sys.executable, "-c",
        "import sys, launch\n"
        "from launch.actions import IncludeLaunchDescription\n"
        "from launch.launch_description_sources import PythonLaunchDescriptionSource\n"
        "service = launch.LaunchService()\n"
        "given = [argument.split(':=', 1) for argument in sys.argv[2:]]\n"
        "source = PythonLaunchDescriptionSource(sys.argv[1])\n"
        "include = IncludeLaunchDescription(source, launch_arguments=given)\n"
        "service.include_launch_description(launch.LaunchDescription([include]))\n"
        "sys.exit(service.run())",
        str(FILE), f"models_dir:={tmp_path}", "namespace:=arm", "image:=/front/color",
    ]  # fmt: skip
    process = subprocess.Popen(
        program, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said, deadline = [], time.monotonic() + 200
    try:
        for line in process.stdout:
            said.append(line)
            if "waiting for images on /front/color" in line or time.monotonic() > deadline:
                break
        assert "waiting for images on /front/color" in said[-1], "".join(said)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0
