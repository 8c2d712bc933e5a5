# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The part of `ocdit doctor` that needs ROS: distribution, messages, middleware, nodes and camera."""

from __future__ import annotations

import difflib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocdit_ros.doctor import Finding, Level
from ocdit_ros.node import objects, parameters
from ocdit_ros.templates import ObjectSpec

#: What the node exchanges; vision_msgs is the one that is most often missing.
MESSAGES = ("sensor_msgs", "std_msgs", "std_srvs", "diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces", "vision_msgs")

#: Distributions and middleware that the tests of the package run with.
TESTED_DISTRIBUTIONS, TESTED_RMW = ("jazzy",), ("rmw_fastrtps_cpp",)

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"

#: So long nothing new means that all others have been heard of (seconds).
DISCOVERY = 1.5


def read_parameters(file: str) -> tuple[dict[str, Any], list[ObjectSpec]]:
    """Values of a parameter file, those not in it at their defaults, and the objects that it asks for.

    Raises ParameterError, ObjectsError, or what rclpy raises for a file that is no parameter file.
    """
    if not Path(file).is_file():
        raise parameters.ParameterError(f"there is no parameter file '{file}'")
    for finding in check_start():
        raise parameters.ParameterError(f"it takes ROS to read '{file}', but {finding.what}")
    import rclpy
    from rclpy.context import Context

    context = Context()
    rclpy.init(args=[], context=context)
    try:  # a node of the same name gets what the segmentation node would get, by the same parser
        node = rclpy.create_node(
            parameters.NODE_NAME,
            context=context,
            cli_args=["--ros-args", "--params-file", file],
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
            automatically_declare_parameters_from_overrides=True,
        )
        given = {name: parameter.value for name, parameter in node.get_parameters_by_prefix("").items()}
        node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
    rows = {name: parameters.find(name) for name in given}
    values = {name: row.check(given[name]) for name, row in rows.items() if row is not None}
    complete = {**parameters.defaults(), **values}

    def own(name: str, field: str) -> Any:
        full = f"objects.{name}.{field}"
        row = parameters.find(full)
        return values.get(full, row.default if row else None)

    return complete, objects.catalogue(complete, own)


def findings(image: str, wait: float) -> Iterator[Finding]:
    """Findings on ROS; `image` is the topic of a camera or empty, `wait` how long to listen to it (seconds)."""
    yield from check_distribution()
    missing = [name for name in MESSAGES if not _importable(f"{name}.msg" if name != "std_srvs" else "std_srvs.srv")]
    if missing:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        packages = " ".join(f"ros-{distribution}-{name.replace('_', '-')}" for name in missing)
        mend = f"`apt-get install {packages}`, or `make env`. If they are there already, NumPy is not the one that ROS "
        mend += "was built with (docs/dependencies.md)."
        yield Finding("messages", Level.FAIL, f"cannot be imported: {', '.join(missing)}", mend)
        return
    yield Finding("messages", Level.OK, f"{', '.join(MESSAGES)}")
    stopped = list(check_start())
    yield from stopped or check_graph(image, wait)


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # modules built for another NumPy fail in their own ways
        return False
    return True


def check_distribution() -> Iterator[Finding]:
    """Name of the distribution and where it comes from."""
    name = os.environ.get("ROS_DISTRO", "")
    origin = "from wheels" if os.environ.get("OCDIT_ROS_WHEELS") else f"from {_prefix(name)}"
    if not name:
        mend = "Source the setup file of a distribution, or `.venv/setup.bash`."
        yield Finding("ros", Level.WARN, "rclpy is there, but ROS_DISTRO is not set", mend)
    elif name not in TESTED_DISTRIBUTIONS:
        mend = f"Tested is {', '.join(TESTED_DISTRIBUTIONS)}; newer ones should do, older ones lack parts of rclpy."
        yield Finding("ros", Level.WARN, f"ROS 2 {name} {origin}", mend)
    else:
        yield Finding("ros", Level.OK, f"ROS 2 {name} {origin}")


def _prefix(name: str) -> str:
    known = [path for path in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if Path(path).name == name]
    return known[0] if known else "an unknown place"


def check_start() -> Iterator[Finding]:
    """Whether ROS starts at all, only if not: a missing middleware ends the process that imports rclpy."""
    wanted = os.environ.get("RMW_IMPLEMENTATION", "")
    trial = [sys.executable, "-c", "import rclpy; rclpy.init()"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
        mend = f"Install {wanted or 'a middleware (rmw_...)'}, or unset RMW_IMPLEMENTATION."
        yield Finding("rmw", Level.FAIL, f"ROS does not start: {reason}", mend)


def check_graph(image: str, wait: float) -> Iterator[Finding]:
    """Middleware, segmentation nodes on the graph, and the camera."""
    import rclpy
    from rclpy.context import Context

    context = Context()
    try:
        rclpy.init(args=[], context=context)
        node = rclpy.create_node(f"ocdit_doctor_{os.getpid()}", context=context, start_parameter_services=False,
                                 enable_rosout=False)  # fmt: skip
    except Exception as error:
        rclpy.try_shutdown(context=context)
        mend = "Correct what it names: ROS_DOMAIN_ID, the DDS profile, keys of SROS2 (ROS_SECURITY_...)."
        yield Finding("rmw", Level.FAIL, f"no node can be made: {' '.join(str(error).split())}", mend)
        return
    try:
        yield from check_middleware(rclpy.get_rmw_implementation_identifier())
        _discover(node, image)
        yield from check_nodes(node, context)
        yield from check_camera(node, context, image, wait)
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def _discover(node: Any, image: str) -> None:
    """Wait until nothing new has been heard of for a while, longer for the camera that is asked for."""
    start = changed = time.monotonic()
    seen: Any = None
    while (now := time.monotonic()) - start < 4 * DISCOVERY:
        heard = [(topic, node.count_publishers(topic)) for topic, _ in node.get_topic_names_and_types()]
        if heard != seen:
            seen, changed = heard, now
        if now - changed >= DISCOVERY and (not image or node.count_publishers(image)):
            break
        time.sleep(0.05)


def check_middleware(name: str) -> Iterator[Finding]:
    """Which DDS it is, who can be heard, and whether images fit through its shared memory."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    if os.environ.get("ROS_LOCALHOST_ONLY", "0") == "1":
        reach = "LOCALHOST"
    what = f"{name}, domain {domain}, discovery range {reach}"
    profile = os.environ.get("FASTRTPS_DEFAULT_PROFILES_FILE") or os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE")
    if reach == "OFF":
        mend = "Unset ROS_AUTOMATIC_DISCOVERY_RANGE, unless ROS_STATIC_PEERS names the camera's machine."
        yield Finding("rmw", Level.WARN, what, mend)
    elif name not in TESTED_RMW:
        mend = f"Tested is {', '.join(TESTED_RMW)}; camera and node must use the same one."
        yield Finding("rmw", Level.WARN, what, mend)
    elif profile and not Path(profile).is_file():
        mend = "Correct FASTRTPS_DEFAULT_PROFILES_FILE; `source .venv/setup.bash` sets it."
        yield Finding("rmw", Level.FAIL, f"{what}; there is no profile '{profile}'", mend)
    elif not profile:
        mend = "Set FASTRTPS_DEFAULT_PROFILES_FILE to config/fastdds_shm.xml for camera and node: without it, images "
        mend += "above 0.5 MB get lost on one machine (docs/node.md, traps)."
        yield Finding("rmw", Level.WARN, f"{what}, no profile for large images", mend)
    else:
        yield Finding("rmw", Level.OK, f"{what}, profile {profile}")


def check_nodes(node: Any, context: Any) -> Iterator[Finding]:
    """Every segmentation node on the graph: its state, and whether somebody sends it images it can receive."""
    names = [
        service.removesuffix("/reload_objects")
        for service, _ in node.get_service_names_and_types()
        if service.endswith("/reload_objects")
    ]
    if not names:
        yield Finding("node", Level.SKIP, "no segmentation node is running")
    for name in names:
        state = _lifecycle_state(node, context, name)
        space, _, base = name.rpartition("/")
        topics = [
            topic
            for topic, kinds in node.get_subscriber_names_and_types_by_node(base, space or "/")
            if {RAW, COMPRESSED} & set(kinds)
        ]
        if state is None:
            mend = "It may hang, or another domain's node has the same name: look at its log."
            yield Finding("node", Level.FAIL, f"{name} does not answer ~/get_state", mend)
        elif state != "active":
            step = {"unconfigured": "configure", "inactive": "activate"}.get(state, "get")
            mend = f"`ros2 lifecycle set {name} {step}`, or start it with the parameter autostart."
            if state == "unconfigured":
                mend += " If configure fails, its log names the parameter."
            yield Finding("node", Level.WARN, f"{name} is {state}", mend)
        elif silent := [topic for topic in topics if not node.get_publishers_info_by_topic(topic)]:
            others = _similar(silent[0], [topic for topic in _image_topics(node) if topic not in silent])
            mend = f"Remap it: `image:={others[0]}`." if others else "Start the camera, in the same domain."
            yield Finding("node", Level.FAIL, f"{name} is active, but nobody publishes {silent[0]}", mend)
        else:
            yield Finding("node", Level.OK, f"{name} is active, images from {', '.join(topics)}")


def _lifecycle_state(node: Any, context: Any, name: str) -> str | None:
    from lifecycle_msgs.srv import GetState
    from rclpy.executors import SingleThreadedExecutor

    client = node.create_client(GetState, f"{name}/get_state")
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        if not client.wait_for_service(timeout_sec=2.0):
            return None
        future = client.call_async(GetState.Request())
        executor.spin_until_future_complete(future, timeout_sec=5.0)
        return str(future.result().current_state.label) if future.done() else None
    finally:
        executor.remove_node(node)
        executor.shutdown()
        node.destroy_client(client)


def _image_topics(node: Any) -> list[str]:
    """Topics with images that somebody publishes, those of segmentation nodes left out."""
    found = []
    for topic, kinds in node.get_topic_names_and_types():
        own = topic.rpartition("/")[2] in ("overlay", "label_image", "mask")
        if {RAW, COMPRESSED} & set(kinds) and not own and node.count_publishers(topic):
            found.append(topic)
    return sorted(found)


def _similar(topic: str, others: list[str]) -> list[str]:
    """The other topics: colour first, depth last, else the one most like `topic` first."""

    def rank(one: str) -> tuple[bool, bool, float]:
        colour = "color" in one or "rgb" in one
        return "depth" in one, not colour, -difflib.SequenceMatcher(None, topic, one).ratio()

    return sorted(others, key=rank)


def check_camera(node: Any, context: Any, image: str, wait: float) -> Iterator[Finding]:
    """QoS, rate and encoding of the camera, as the node would receive it."""
    topics = _image_topics(node)
    if not image:
        what = f"image topics: {', '.join(topics)}" if topics else "nobody publishes images"
        yield Finding("camera", Level.SKIP, what, f"Add --image {topics[0] if topics else 'TOPIC'} to listen to it.")
        return
    topic = node.resolve_topic_name(image)
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        others = _similar(topic, topics)
        mend = f"There is {', '.join(others[:4])}." if others else "Start the camera: there is no image topic here."
        mend += " Camera and node need the same ROS_DOMAIN_ID and middleware (line rmw)."
        yield Finding("camera", Level.FAIL, f"nobody publishes {topic}", mend)
        return
    kinds = {info.topic_type for info in publishers}
    if kinds not in ({RAW}, {COMPRESSED}):
        mend = "Take the topic of the colour image; one that ends in /compressed needs image_transport: compressed."
        yield Finding("camera", Level.FAIL, f"{topic} is {', '.join(sorted(kinds))}, not an image", mend)
        return
    yield from _check_qos(topic, publishers)
    yield from _listen(node, context, topic, kinds.pop(), wait)


def _check_qos(topic: str, publishers: list[Any]) -> Iterator[Finding]:
    from rclpy.qos import QoSCompatibility, qos_check_compatible

    from ocdit_ros.node.lifecycle_node import IMAGE_QOS

    for info in publishers:
        profile = info.qos_profile
        who = f"{info.node_namespace.rstrip('/')}/{info.node_name}"
        what = f"{topic} from {who}: {profile.reliability.name.lower()}, {profile.durability.name.lower()}"
        compatibility, reason = qos_check_compatible(profile, IMAGE_QOS)
        if compatibility is QoSCompatibility.ERROR:
            mend = "Change the QoS of the camera; the node asks for best effort, volatile, keep last 1."
            yield Finding("qos", Level.FAIL, f"{what}; does not match: {reason}", mend)
        else:
            yield Finding("qos", Level.OK, what)


def _listen(node: Any, context: Any, topic: str, kind: str, wait: float) -> Iterator[Finding]:
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import CompressedImage, Image

    from ocdit_ros.node.images import ImageError, to_rgb
    from ocdit_ros.node.lifecycle_node import IMAGE_QOS

    received: list[tuple[float, Any]] = []
    subscription = node.create_subscription(
        Image if kind == RAW else CompressedImage,
        topic,
        lambda message: received.append((time.monotonic(), message)),
        IMAGE_QOS,
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    end = time.monotonic() + wait
    while (left := end - time.monotonic()) > 0 and len(received) < 1000:
        executor.spin_once(timeout_sec=left)
    executor.remove_node(node)
    executor.shutdown()
    node.destroy_subscription(subscription)
    if not received:
        mend = "If the camera runs (its log tells): large images need config/fastdds_shm.xml on both sides (line rmw), "
        mend += "or image_transport: compressed. A camera that is slower than --wait needs a longer one."
        yield Finding("camera", Level.FAIL, f"{topic}: no image within {wait:g} s", mend)
        return
    message = received[-1][1]
    encoding = message.encoding if kind == RAW else f"{message.format!r} compressed"
    try:
        pixels = to_rgb(message)
    except ImageError as error:
        mend = "Have the camera send rgb8 or bgr8, or convert it with image_proc; docs/node.md lists the encodings."
        yield Finding("camera", Level.FAIL, f"{topic}: {error}", mend)
        return
    span = received[-1][0] - received[0][0]
    rate = f"{(len(received) - 1) / span:.1f} Hz" if span > 0 and len(received) > 1 else "one image"
    what = f"{topic}: {pixels.shape[1]} x {pixels.shape[0]} {encoding}, {rate}"
    if "depth" in topic or encoding in ("16UC1", "32FC1"):
        yield Finding("camera", Level.WARN, f"{what}; this looks like depth", "Take the colour image.")
    elif not message.header.frame_id:
        mend = "Set the frame of the camera; results carry the same header, and tf needs it."
        yield Finding("camera", Level.WARN, f"{what}, no frame_id", mend)
    else:
        yield Finding("camera", Level.OK, f"{what}, frame {message.header.frame_id}")
