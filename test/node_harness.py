# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A node in a process of its own, and the rest of the robot in this one; they meet over DDS alone."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import NodeNameNonExistentError
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

ROOT = Path(__file__).resolve().parents[1]
FAKE_NODE = [sys.executable, str(Path(__file__).with_name("fake_segment_node.py"))]
REAL_NODE = [sys.executable, "-m", "ocdit_ros.node.segment_node"]

#: A program does not outlive tests that were killed. Not by preexec_fn: Python code between fork and exec can wait for
#: ever for a lock that one of the threads of DDS held at the fork, and Popen then waits for it.
BOUND = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

_numbers = itertools.count()


def environment(**changes: str) -> dict[str, str]:
    """Environment of a child: this checkout first, this machine only, few threads."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
        "PYTHONUNBUFFERED": "1",
        **changes,
    }


def wait_until(condition: Any, timeout: float, what: str) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)
    return value


class Program:
    """A process of the test, with everything it says."""

    def __init__(self, command: list[str], **variables: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*BOUND, *command],
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout: float = 180.0, since: int = 0) -> str:
        """The first line after number `since` that holds `text`."""

        def find() -> str | None:
            for line in self.lines[since:]:
                if text in line:
                    return line
            if self.process.poll() is not None:
                self._reader.join(5)
                assert text in self.text, f"the process ended with {self.process.returncode}:\n{self.text}"
            return None

        try:
            return wait_until(find, timeout, f"'{text}' in the output")
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.text}") from None

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Robot:
    """The rest of the robot: cameras, operators, and whoever uses the results."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(f"robot_{os.getpid()}", context=self.context)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        # What a test destroys at the moment at which rclpy begins to wait for it raises (ros2/rclpy, issue 1284) and
        # would end this thread, and with it every answer to the tests that follow; the next turn does without it.
        with contextlib.suppress(ExternalShutdownException):
            while True:
                with contextlib.suppress(InvalidHandle):
                    return self._executor.spin()

    def close(self) -> None:
        self._executor.shutdown(5)
        self._thread.join(5)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class NodeUnderTest:
    """The node in its process, seen from the robot."""

    def __init__(
        self,
        robot: Robot,
        folder: Path,
        parameters: dict[str, Any],
        command: list[str] = FAKE_NODE,
        arguments: list[str] | None = None,
        **variables: str,
    ) -> None:
        self.robot = robot
        self.namespace = f"/t{os.getpid()}_{next(_numbers)}"
        self.name = f"{self.namespace}/segment_node"
        file = folder / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        ros = ["--ros-args", "-r", f"__ns:={self.namespace}", "--params-file", str(file), *(arguments or [])]
        self.program = Program([*command, *ros], **variables)
        self._clients: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}

    # Services

    def client(self, kind: Any, service: str) -> Any:
        new = service not in self._clients
        if new:
            self._clients[service] = self.robot.node.create_client(kind, f"{self.name}/{service}")
        client = self._clients[service]
        wait_until(client.service_is_ready, 180, f"service {service} of {self.name}")
        if new:
            self._await_discovery()
        return client

    def _await_discovery(self) -> None:
        """Until the node has heard of all clients that there are by now.

        A client knows its server before the server knows where to send an answer, and an answer to nowhere is lost,
        with a request that may not be repeated. The node hears of clients in the order in which they are made: once it
        answers one that was made after the others, it knows those, too.
        """
        probe = self.robot.node.create_client(GetState, f"{self.name}/get_state")
        try:
            wait_until(probe.service_is_ready, 180, f"service get_state of {self.name}")
            for _ in range(30):
                done = threading.Event()
                probe.call_async(GetState.Request()).add_done_callback(lambda _, done=done: done.set())
                if done.wait(3):
                    return
            raise AssertionError(f"get_state of {self.name} never answers; it said:\n{self.program.text}")
        finally:
            self.robot.node.destroy_client(probe)

    def call_async(self, kind: Any, service: str, request: Any) -> Any:
        return self.client(kind, service).call_async(request)

    def call(self, kind: Any, service: str, request: Any, timeout: float = 60.0, attempts: int = 1) -> Any:
        """The answer. What changes nothing when it is repeated may be asked again: DDS drops an answer to a client that
        the server has not heard of yet, although the client knows the server.
        """
        for _ in range(attempts):
            future, done = self.call_async(kind, service, request), threading.Event()
            future.add_done_callback(lambda _, done=done: done.set())
            if done.wait(timeout):
                return future.result()
        raise AssertionError(f"answer of {service}: not within {timeout:g} s; it said:\n{self.program.text}")

    def transition(self, name: str | int, timeout: float = 60.0) -> bool:
        """Ask for a transition by its label or number; whether it succeeded."""
        wanted = Transition(label=name) if isinstance(name, str) else Transition(id=name)
        request = ChangeState.Request(transition=wanted)
        return self.call(ChangeState, "change_state", request, timeout).success

    @property
    def state(self) -> str:
        return self.call(GetState, "get_state", GetState.Request(), 15, attempts=6).current_state.label

    def trigger(self, service: str, timeout: float = 60.0) -> Any:
        return self.call(Trigger, service, Trigger.Request(), timeout)

    def set(self, name: str, value: Any) -> str:
        """Set a parameter; the reason of the refusal, or ''."""
        return self.set_all({name: value})[0]

    def set_all(self, values: dict[str, Any], atomically: bool = False) -> list[str]:
        messages = [_parameter(name, value).to_parameter_msg() for name, value in values.items()]
        if atomically:
            request = SetParametersAtomically.Request(parameters=messages)
            results = [self.call(SetParametersAtomically, "set_parameters_atomically", request, 20, 3).result]
        else:
            request = SetParameters.Request(parameters=messages)
            results = self.call(SetParameters, "set_parameters", request, 20, 3).results
        assert all(result.successful != bool(result.reason) for result in results)
        return [result.reason for result in results]

    def get(self, name: str) -> Any:
        values = self.call(GetParameters, "get_parameters", GetParameters.Request(names=[name]), 15, attempts=6).values
        return Parameter.from_parameter_msg(_message(name, values[0])).value if values else None

    def describe(self, name: str) -> Any:
        request = DescribeParameters.Request(names=[name])
        return self.call(DescribeParameters, "describe_parameters", request, 15, attempts=6).descriptors[0]

    def interface(self) -> dict[str, set[tuple[str, str]]]:
        """What the node has in the ROS graph: names and types of its publishers, subscriptions, services, clients.

        Nothing as long as this side of DDS has not heard of the node, which can be later than its first answer.
        """
        namespace, _, name = self.name.rpartition("/")
        node = self.robot.node
        asked = {
            "publish": node.get_publisher_names_and_types_by_node,
            "subscribe": node.get_subscriber_names_and_types_by_node,
            "reply": node.get_service_names_and_types_by_node,
            "request": node.get_client_names_and_types_by_node,
        }
        found: dict[str, set[tuple[str, str]]] = {right: set() for right in asked}
        with contextlib.suppress(NodeNameNonExistentError):
            for right, ask in asked.items():
                found[right] = {(topic, kind) for topic, kinds in ask(name, namespace or "/") for kind in kinds}
        return found

    # Topics

    def publisher(self, topic: str = "image", kind: Any = Image, qos: Any = RELIABLE) -> Any:
        if topic not in self._publishers:
            self._publishers[topic] = self.robot.node.create_publisher(kind, f"{self.namespace}/{topic}", qos)
        return self._publishers[topic]

    def matched(self, topic: str = "image", kind: Any = Image, qos: Any = RELIABLE) -> Any:
        """A publisher that the node listens to."""
        publisher = self.publisher(topic, kind, qos)
        wait_until(publisher.get_subscription_count, 20, f"the node's subscription of {topic}")
        # A new publisher knows the subscription at once, the node hears of the publisher only then, and best effort
        # drops what is sent before. Two answers later it has heard, also on a busy machine.
        self.get("mode")
        time.sleep(0.2)
        self.get("mode")
        return publisher

    def listen(self, topic: str, kind: Any, qos: Any = RELIABLE) -> list[Any]:
        """Everything that arrives on a topic of the node from now on."""
        received: list[Any] = []
        name = topic if topic.startswith("/") else f"{self.name}/{topic}"
        subscription = self.robot.node.create_subscription(kind, name, received.append, qos)
        wait_until(lambda: subscription.get_publisher_count(), 20, f"the node's publisher of {topic}")
        # This side knows of the match; the node learns of it at the same time as, or before, it answers a call.
        self.get("mode")
        time.sleep(0.1)
        return received

    def detections(self, topic: str = "detections") -> list[Detection2DArray]:
        return self.listen(topic, Detection2DArray)

    def label_info(self) -> list[LabelInfo]:
        return self.listen("label_info", LabelInfo, LATCHED)

    def diagnostics(self) -> list[DiagnosticArray]:
        return self.listen("/diagnostics", DiagnosticArray)

    def end(self) -> None:
        self.program.end()
        for publisher in self._publishers.values():
            self.robot.node.destroy_publisher(publisher)
        for client in self._clients.values():
            self.robot.node.destroy_client(client)


def _parameter(name: str, value: Any) -> Parameter:
    if value == [] or (isinstance(value, list) and isinstance(value[0], str)):
        return Parameter(name, Parameter.Type.STRING_ARRAY, value)
    return Parameter(name, value=value)


def _message(name: str, value: Any) -> Any:
    message = Parameter(name).to_parameter_msg()
    message.value = value
    return message


def stamp(number: int) -> Time:
    """A stamp that no clock would give, different for every number."""
    return Time(sec=1_700_000_000 + number, nanosec=123_456_789 - number)


def header(number: int, frame: str = "camera_optical_frame") -> Header:
    return Header(stamp=stamp(number), frame_id=frame)


def image(pixels: np.ndarray, head: Header, encoding: str = "rgb8") -> Image:
    """An image message without the package's own code."""
    pixels = np.ascontiguousarray(pixels)
    return Image(
        header=head,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.strides[0],
        data=array.array("B", pixels.tobytes()),
    )


def compressed(data: bytes, head: Header, kind: str = "png") -> CompressedImage:
    return CompressedImage(header=head, format=f"rgb8; {kind} compressed bgr8", data=array.array("B", data))


def pixels_of(message: Image) -> np.ndarray:
    """Pixels of a contiguous message in the encodings that the node sends."""
    dtype, channels = {"16UC1": ("u2", 1), "mono8": ("u1", 1), "rgb8": ("u1", 3)}[message.encoding]
    pixels = np.frombuffer(bytes(message.data), np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<"))
    return pixels.reshape(message.height, message.width, channels).squeeze(2 if channels == 1 else ())


def scene(**colors: tuple[int, int, int, int]) -> np.ndarray:
    """Black 120 x 160 picture with rectangles (x, y, width, height) in red, green, blue."""
    picture = np.zeros((120, 160, 3), np.uint8)
    for name, (x, y, width, height) in colors.items():
        picture[y : y + height, x : x + width] = {
            "red": (255, 0, 0),
            "green": (0, 230, 0),
            "blue": (0, 0, 200),
        }[name]
    return picture
