# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Launch the segmentation node with a camera that is a recording: a folder of images, or a rosbag2.

    ros2 launch ocdit_ros segment_demo.launch.py images:=/data/photos models_dir:=/data/models
    ros2 launch ocdit_ros segment_demo.launch.py bag:=/data/drive_1 image:=/camera/color/image_raw models_dir:=...

Its own arguments come first; the others are those of segment.launch.py.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

# name, default, description
ARGUMENTS = (
    ("images", "", "Folder of images to replay, by name; or give a bag."),
    ("bag", "", "rosbag2 to replay (folder or file); or give images."),
    ("image", "/camera/color/image_raw", "Topic of the images: that of the recording, with a bag."),
    ("rate", "1.0", "Images: how many a second. Bag: how many times as fast as it was recorded."),
    ("loop", "true", "Begin again after the end."),
)

# Arguments of segment.launch.py that are handed on; rviz is on here.
HANDED_ON = (
    ("namespace", "", "Namespace of the node and of its topics."),
    ("params_file", "", "Parameter file; empty: config/segment.yaml of this package, which holds the defaults."),
    ("models_dir", "", "Folder of meshes in BOP layout; empty: as in the parameter file."),
    ("weights", "", "Checkpoint; empty: as in the parameter file."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as in the parameter file."),
    ("use_sim_time", "false", "Take the time from /clock; a bag is then replayed with its own clock."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("rviz", "true", "Start rviz2 with overlay and label image."),
)


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in (*ARGUMENTS, *HANDED_ON)
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=launch_setup)])


def launch_setup(context):
    """Make the actions, now that the arguments have their values."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    images, bag, image = value("images"), value("bag"), value("image")
    if bool(images) == bool(bag):
        raise RuntimeError("segment_demo.launch.py: give either images:=<folder> or bag:=<rosbag2>")
    if bag and not os.path.exists(bag):  # the player would say so when the node is configured
        raise RuntimeError(f"segment_demo.launch.py: there is no bag '{bag}'")
    loop, sim_time = (value(name).lower() in ("true", "1") for name in ("loop", "use_sim_time"))
    if images:
        camera = Node(
            package="ocdit_ros",
            executable="image_folder_publisher",
            name="camera",
            parameters=[
                {
                    "folder": ParameterValue(images, value_type=str),
                    "rate": ParameterValue(value("rate"), value_type=float),
                    "loop": loop,
                    "end_with_parent": True,
                }
            ],
            remappings=[("image", image)],
            output="both",
        )
    else:
        command = ["ros2", "bag", "play", bag, "--rate", value("rate")]
        command += ["--loop"] if loop else []
        command += ["--clock"] if sim_time else []
        # Once the node listens: configuring takes seconds to minutes, and what is played meanwhile is lost.
        camera = RegisterEventHandler(
            OnStateTransition(
                start_state="activating",
                goal_state="active",
                entities=[ExecuteProcess(cmd=command, output="both")],
                handle_once=True,  # not again when somebody deactivates and activates
            )
        )
    segment = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            os.path.join(get_package_share_directory("ocdit_ros"), "launch", "segment.launch.py")
        ),
        launch_arguments=[("image", image), *((name, value(name)) for name, _, _ in HANDED_ON)],
    )
    return [camera, segment]
