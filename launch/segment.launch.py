# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Launch the segmentation node.

    ros2 launch ocdit_ros segment.launch.py image:=/camera/color/image_raw models_dir:=/path/to/models

The node is written in Python, so it runs stand-alone: a component container loads C++ nodes only.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from launch import LaunchDescription

NAME = "segment_node"

# name, default, description
ARGUMENTS = (
    ("namespace", "", "Namespace of the node and of its topics."),
    ("params_file", "", "Parameter file; empty: config/segment.yaml of this package, which holds the defaults."),
    ("image", "image", "Topic of the camera image (of its base, with image_transport: compressed)."),
    ("models_dir", "", "Folder of meshes in BOP layout; empty: as in the parameter file."),
    ("weights", "", "Checkpoint; empty: as in the parameter file."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as in the parameter file."),
    ("use_sim_time", "false", "Take the time from /clock."),
    ("autostart", "true", "Configure and activate the node when it has started; with use_respawn each time."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("rviz", "false", "Start rviz2 with overlay and label image."),
    ("use_respawn", "false", "Start the node again when it ends unasked."),
)


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=launch_setup)])


def launch_setup(context):
    """Make the actions; the arguments have their values now, so that empty ones can be left to the parameter file."""
    share = get_package_share_directory("ocdit_ros")

    def value(name):
        return LaunchConfiguration(name).perform(context)

    given = {name: value(name) for name in ("models_dir", "weights", "device") if value(name)}
    # A text, even where it looks like a number: a folder may be called 2024.
    parameters = {name: ParameterValue(text, value_type=str) for name, text in given.items()}
    parameters["use_sim_time"] = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    # Launch configures and activates the node by events, which others can follow. Not so with respawn: DDS keeps the
    # service of a process that crashed for some 20 s, and the request to the new one could get lost in the old one.
    respawn = value("use_respawn").lower() in ("true", "1")
    autostart = value("autostart").lower() in ("true", "1")
    parameters["autostart"] = autostart and respawn
    # At SIGTERM, which service managers send, launch ends at once and leaves its processes behind.
    parameters["end_with_parent"] = True

    topic = value("image")
    node = LifecycleNode(
        package="ocdit_ros",
        executable="segment_node",
        name=NAME,
        namespace=LaunchConfiguration("namespace"),
        parameters=[value("params_file") or os.path.join(share, "config", "segment.yaml"), parameters],
        remappings=[("image", topic), ("image/compressed", f"{topic}/compressed")],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="both",
        respawn=respawn,
        respawn_delay=2.0,
        sigterm_timeout="10",  # after Ctrl-C the node waits a moment for the frame in hand
    )

    def change(transition):
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    configure = RegisterEventHandler(
        OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    )
    # Only on the way up: a node that somebody deactivates stays so.
    activate = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",
            goal_state="inactive",
            entities=[change(Transition.TRANSITION_ACTIVATE)],
        )
    )

    # The rviz file names the topics of a node without a namespace.
    namespace = value("namespace").strip("/")
    prefix = f"/{namespace}/{NAME}" if namespace else f"/{NAME}"
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz_segment",
        arguments=["-d", os.path.join(share, "config", "segment.rviz")],
        remappings=[(f"/{NAME}/{topic}", f"{prefix}/{topic}") for topic in ("overlay", "label_image", "mask")],
        parameters=[{"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    handlers = [configure, activate] if autostart and not respawn else []
    return [*handlers, node, rviz]
