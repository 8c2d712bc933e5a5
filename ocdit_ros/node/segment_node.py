# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The executable `segment_node`: runs the node of lifecycle_node.py until SIGINT or SIGTERM.

ros2 run ocdit_ros segment_node --ros-args --params-file segment.yaml
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocdit_ros.node.backend import Factory

#: Threads of the executor: a transition, ~/segment and ~/reload_objects may wait at once, and the rest still
#: answers.
THREADS = 6


def main(arguments: Sequence[str] | None = None, make_segmenter: Factory | None = None) -> None:
    """Run the node; SIGINT and SIGTERM end it cleanly within a few seconds, with exit status 0."""
    parent = os.getppid()
    # until there is something to clean up; the imports alone take seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))

    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.impl.implementation_singleton import rclpy_implementation
    from rclpy.signals import SignalHandlerOptions

    from ocdit_ros.node.backend import from_parameters
    from ocdit_ros.node.lifecycle_node import PATIENCE, SegmentNode
    from ocdit_ros.node.process import asked_to_end, end_with

    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # a parameter file that is not there or no YAML, an unknown --ros-args, no keystore
        sys.exit(f"segment_node: {error}{_security_hint()}")
    stop = asked_to_end()
    try:
        node = SegmentNode(make_segmenter or from_parameters)
    # A parameter of rclpy itself, use_sim_time, of a wrong type; no participant, for want of security for example
    except (ParameterException, rclpy_implementation.RCLError) as error:
        rclpy.try_shutdown()
        sys.exit(f"segment_node: {' '.join(str(error).split())}{_security_hint()}")
    if node.get_parameter("end_with_parent").value:
        end_with(parent)
    gc.freeze()  # what the imports made stays for good: no collection has to look at it again
    executor = MultiThreadedExecutor(num_threads=THREADS)
    executor.add_node(node)

    def spin() -> None:
        while not stop.is_set():
            try:
                executor.spin_once(timeout_sec=0.5)
            except Exception:  # of a callback; the node goes on
                node.get_logger().error(f"error in a callback:\n{traceback.format_exc()}")

    threads = [threading.Thread(target=spin, name="executor", daemon=True)]
    if node.get_parameter("autostart").value:
        threads.append(threading.Thread(target=node.autostart, name="autostart", daemon=True))
    for thread in threads:
        thread.start()
    stop.wait()
    idle = node.close()
    for thread in threads:
        thread.join(PATIENCE)
        idle &= not thread.is_alive()
    node.destroy_node()
    rclpy.try_shutdown()
    if not idle:
        # A frame is still being computed in C++ code; the interpreter must not be torn down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _security_hint() -> str:
    """Where to look when security is asked for: the errors of rcl and of the middleware do not say it."""
    if os.environ.get("ROS_SECURITY_ENABLE") != "true":
        return ""
    return (
        "; ROS_SECURITY_ENABLE is true: check ROS_SECURITY_KEYSTORE and the enclave in it (docs/node.md, Security), "
        "and that the middleware is built with security"
    )


if __name__ == "__main__":
    main()
