# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Show the segmentation node at work: photographs in, masks out, over DDS.

    python scripts/demo.py                                   the sample that ships with the package
    python scripts/demo.py path/to/bop_folder                models/ and test/<scene>/rgb/ of a BOP data set
    python scripts/demo.py photo.jpg --mesh mug.ply box.obj  one image and the meshes to look for

The node runs as a process of its own, as on a robot; this program is the camera and the receiver. It prints a table and
writes every photograph with its masks to demo_out/. However it ends, it takes the node with it.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
PR_SET_PDEATHSIG = 1

#: The signal that asked the demo to end; looked at too, since a library may swallow the exception.
stopped_by: list[int] = []


class DemoError(Exception):
    """Why the demo cannot go on, in one sentence."""


class Stopped(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[demo] {text}", flush=True)


# What to show -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Images, and the parameters that tell the node what to look for."""

    images: list[tuple[str, Path]]  # name of the result, file
    parameters: dict[str, Any]


def from_bop(folder: Path, limit: int) -> Job:
    """Images and models of a folder in BOP layout; of the models those that the images are said to show."""
    models = folder / "models"
    if not models.is_dir():
        raise DemoError(f"'{folder}' has no folder models/; give a BOP folder, or an image and --mesh")
    scenes = sorted(path.parent for path in folder.glob("test*/*/rgb") if path.is_dir())
    images = [
        (f"{scene.name}_{file.stem}", file)
        for scene in scenes
        for file in sorted((scene / "rgb").iterdir())
        if file.suffix.lower() in SUFFIXES
    ][:limit]
    if not images:
        raise DemoError(f"'{folder}' has no images in test/<scene>/rgb/")
    parameters: dict[str, Any] = {"models_dir": str(models.resolve())}
    present = shown_objects({file for _, file in images})
    if present:
        names = read_json(models / "names.json") if (models / "names.json").is_file() else {}
        parameters["objects"] = [names.get(str(number), f"obj_{number:06d}") for number in sorted(present)]
    return Job(images, parameters)


def shown_objects(files: set[Path]) -> set[int]:
    """Numbers of the objects in the ground truth of these images; empty where one has no ground truth."""
    numbers: set[int] = set()
    for file in files:
        truth = file.parents[1] / "scene_gt.json"
        if not truth.is_file():
            return set()
        for instance in read_json(truth).get(str(int(file.stem)), []):
            numbers.add(int(instance["obj_id"]))
    return numbers


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemoError(f"'{path}' cannot be read: {error}") from None


def from_image(image: Path, meshes: list[str], scale: float) -> Job:
    """One image and meshes, which are called as their files."""
    if not meshes:
        raise DemoError(f"'{image}' is an image: name the meshes to look for with --mesh")
    parameters: dict[str, Any] = {"objects": []}
    for mesh in meshes:
        path = Path(mesh).resolve()
        if not path.is_file():
            raise DemoError(f"there is no mesh '{mesh}'")
        name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in path.stem)
        if name in parameters["objects"]:
            raise DemoError(f"two meshes are called '{name}'; rename one of them")
        parameters["objects"].append(name)
        parameters[f"objects.{name}.mesh"] = str(path)
        parameters[f"objects.{name}.scale"] = scale
    return Job([(image.stem, image)], parameters)


def choose(options: argparse.Namespace) -> Job:
    """What the command line asks for."""
    data = Path(options.image or options.data or ROOT / "sample")
    if not data.exists():
        raise DemoError(f"there is no '{data}'")
    if data.is_dir():
        return from_bop(data, options.max_images)
    if data.suffix.lower() not in SUFFIXES:
        raise DemoError(f"'{data}' is neither a folder nor an image ({', '.join(SUFFIXES)})")
    return from_image(data, options.mesh, options.scale)


# The node's process -------------------------------------------------------------------------------------------------


def die_with(parent: int, number: int) -> None:
    """Have the kernel send signal `number` to this process when its parent, process `parent`, is gone (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it went while we asked
        os.kill(os.getpid(), number)


class Node:
    """The lifecycle node in its own process and session; it never outlives this program."""

    def __init__(self, parameters: dict[str, Any], folder: Path) -> None:
        import yaml

        self.namespace = f"/demo_{os.getpid()}"
        self.name = f"{self.namespace}/segment_node"
        self.lines: list[str] = []
        self._listeners: list[Callable[[str], None]] = []
        file = folder / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}, sort_keys=False))
        parent = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ocdit_ros.node.segment_node",
             "--ros-args", "-r", f"__ns:={self.namespace}", "--params-file", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this program alone, which then ends the node in order
            preexec_fn=lambda: die_with(parent, signal.SIGKILL),
        )  # fmt: skip
        threading.Thread(target=self._read, name="node output", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            for listener in self._listeners:
                listener(line.rstrip())

    def on_line(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with every further line."""
        self._listeners.append(listener)

    def check(self) -> None:
        """Raise if the demo is to stop, and if the node has ended or could not configure."""
        if stopped_by:
            raise Stopped(stopped_by[0])
        for line in self.lines:
            if "configure failed:" in line or "activate failed:" in line:
                raise DemoError(f"the node could not start: {line.split(' failed: ', 1)[1]}")
        code = self.process.poll()
        if code is not None:
            time.sleep(0.2)  # for its last words
            raise DemoError(f"the node ended with status {code}; it said: {' / '.join(self.lines[-5:]) or 'nothing'}")

    def end(self) -> None:
        """SIGINT, SIGTERM, SIGKILL, with a bounded wait after each."""
        for number, patience in ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # whatever it may have started


def prepare_environment() -> None:
    """For this process and the node's: this package first, this machine only, shared memory that holds whole images."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["RCUTILS_COLORIZED_OUTPUT"] = "0"
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    profile = ROOT / "config" / "fastdds_shm.xml"
    taken = os.environ.keys() & {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"}
    if profile.is_file() and not taken:
        os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(profile)


# Camera and receiver ------------------------------------------------------------------------------------------------


class Camera:
    """Publishes images and collects what the node makes of them."""

    def __init__(self, node: Node) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image
        from vision_msgs.msg import Detection2DArray

        self._under_test = node
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("demo_camera", namespace=node.namespace)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._images = self.node.create_publisher(Image, f"{node.namespace}/image", qos)
        self._changed = threading.Condition()
        self._results: dict[tuple[int, int], dict[str, Any]] = {}
        self._arrived: dict[tuple[int, int], float] = {}
        self._heard = 0  # frames that the node has received, from its diagnostics
        self.topics = {"detections": Detection2DArray, "label_image": Image, "overlay": Image}
        for topic, kind in self.topics.items():
            self.node.create_subscription(kind, f"{node.name}/{topic}", self._keeper(topic), qos)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos)
        executor = SingleThreadedExecutor()
        executor.add_node(self.node)

        def spin() -> None:
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()

        self._thread = threading.Thread(target=spin, name="camera", daemon=True)
        self._thread.start()

    def _keeper(self, topic: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            now = self.node.get_clock().now().nanoseconds
            stamp = message.header.stamp
            with self._changed:
                self._results.setdefault((stamp.sec, stamp.nanosec), {})[topic] = message
                if topic == "detections":
                    self._arrived[stamp.sec, stamp.nanosec] = (now - stamp.sec * 10**9 - stamp.nanosec) * 1e-9
                self._changed.notify_all()

        return keep

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.startswith(self._under_test.name.lstrip("/")):
                for value in status.values:
                    if value.key == "frames received":
                        self._heard = int(value.value)

    def connected(self) -> bool:
        """Whether the node listens to the images, and this program to all of its results."""
        count = self.node.count_publishers
        return self._images.get_subscription_count() > 0 and all(
            count(f"{self._under_test.name}/{topic}") > 0 for topic in self.topics
        )

    def show(self, rgb: Any, timeout: float) -> tuple[dict[str, Any], float]:
        """Publish an image, wait for its results; latency in seconds from the stamp to the arrival of detections."""
        from sensor_msgs.msg import Image

        height, width = rgb.shape[:2]
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.data = array.array("B", rgb.tobytes())
        message.header.frame_id = "demo_camera_optical_frame"
        message.header.stamp = self.node.get_clock().now().to_msg()
        key = (message.header.stamp.sec, message.header.stamp.nanosec)
        heard = self._heard
        begin = last = time.monotonic()
        self._images.publish(message)
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._results.get(key, {}).keys() >= self.topics.keys(), 0.5):
                    return self._results.pop(key), self._arrived.pop(key)
            self._under_test.check()
            now = time.monotonic()
            if now - begin > timeout:
                raise DemoError(f"no result arrived within {timeout:g} s; the node said: {self._under_test.lines[-1]}")
            if self._heard == heard and now - last > 5.0:  # best effort may lose an image, though hardly on one machine
                last = now
                self._images.publish(message)

    def close(self) -> None:
        """Leave the ROS graph."""
        import rclpy

        rclpy.try_shutdown()
        self._thread.join(3.0)


def wait_until_active(node: Node, camera: Camera, timeout: float) -> None:
    """Tell what the node is doing until it listens."""
    begin = told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal told
        if "[segment_node]: " in line or ".segment_node]: " in line:
            told = time.monotonic()
            say(f"node: {line.split(']: ', 1)[1]}")

    for line in list(node.lines):
        tell(line)
    node.on_line(tell)
    while not (camera.connected() and any("active, waiting for images" in line for line in node.lines)):
        node.check()
        now = time.monotonic()
        if now - begin > timeout:
            raise DemoError(f"the node was not ready within {timeout:g} s")
        if now - told > 10.0:
            told = now
            say(f"... still starting after {now - begin:.0f} s")
        time.sleep(0.1)


# Results ------------------------------------------------------------------------------------------------------------


COLUMNS = ("image", "object", "score", "box x y w h", "pixels", "latency")
WIDTHS = (18, 26, 5, 19, 7, 9)


def rows(name: str, results: dict[str, Any], latency: float) -> Iterator[tuple[str, ...]]:
    """Lines of the table for one image."""
    import numpy as np

    label = results["label_image"]
    dtype = np.dtype(np.uint16).newbyteorder(">" if label.is_bigendian else "<")
    counts = np.bincount(np.frombuffer(label.data, dtype))
    took = f"{latency:.2f} s"
    detections = results["detections"].detections
    if not detections:
        yield name, "(nothing found)", "", "", "", took
    for one in detections:
        k, box, center = int(one.id), one.bbox, one.bbox.center.position
        corner = (center.x - box.size_x / 2, center.y - box.size_y / 2, box.size_x, box.size_y)
        hypothesis = one.results[0].hypothesis
        pixels = counts[k] if k < len(counts) else 0
        text = " ".join(f"{value:4.0f}" for value in corner)
        yield name, hypothesis.class_id, f"{hypothesis.score:.2f}", text, str(pixels), took


def line_of(cells: tuple[str, ...]) -> str:
    """One line of the table."""
    return "  ".join(
        cell.rjust(width) if column in ("score", "pixels", "latency") else cell.ljust(width)
        for cell, width, column in zip(cells, WIDTHS, COLUMNS, strict=True)
    )


def write_overlay(path: Path, message: Any) -> None:
    """Save an rgb8 message as a picture."""
    import cv2
    import numpy as np

    pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)):
        raise DemoError(f"'{path}' cannot be written")


def read_image(path: Path) -> Any:
    """Pixels of an image file, uint8 [H, W, 3]."""
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DemoError(f"'{path}' cannot be read as an image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


# All together -------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="BOP folder, or an image; default: the sample of the package")
    parser.add_argument("--image", help="one image (another way to name it)")
    parser.add_argument("--mesh", nargs="+", default=[], metavar="MESH", help="meshes to look for in the image")
    parser.add_argument("--scale", type=float, default=0.001, help="metres per mesh unit of --mesh (default 0.001)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the results (default demo_out)")
    parser.add_argument("--max-images", type=int, default=20, metavar="N", help="at most so many images (default 20)")
    parser.add_argument("--weights", default="", help="checkpoint; default: the one of the package")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter of the node")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="S", help="for the node to get ready")
    parser.add_argument("--timeout", type=float, default=180.0, metavar="S", help="for the results of one image")
    return parser.parse_args(arguments)


def further_parameters(pairs: list[str]) -> dict[str, Any]:
    """What --set asks for; values are read as YAML."""
    import yaml

    parameters = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise DemoError(f"--set {pair}: write NAME=VALUE")
        parameters[name] = yaml.safe_load(text)
    return parameters


def run(options: argparse.Namespace) -> None:
    """Do it all; raises DemoError."""
    begin = time.monotonic()
    job = choose(options)
    parameters = {
        "autostart": True,
        "warm_up": False,
        "warm_start": False,  # photographs, each for itself
        "device": options.device,
        "weights": str(Path(options.weights).resolve()) if options.weights else "",
        **job.parameters,
        **further_parameters(options.set),
    }
    objects = parameters.get("objects") or ["every mesh of the folder"]
    say(f"{len(job.images)} image{'s' if len(job.images) > 1 else ''}; looking for {', '.join(objects)}")
    prepare_environment()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ocdit_ros_demo_")))
        say("starting the segmentation node in a process of its own ...")
        node = Node(parameters, folder)
        stack.callback(node.end)
        camera = Camera(node)
        stack.callback(camera.close)
        wait_until_active(node, camera, options.start_timeout)
        say(f"the node is active after {time.monotonic() - begin:.0f} s; publishing images over DDS")
        options.out.mkdir(parents=True, exist_ok=True)
        print("\n" + line_of(COLUMNS), flush=True)
        print(line_of(tuple("-" * width for width in WIDTHS)), flush=True)
        for name, file in job.images:
            results, latency = camera.show(read_image(file), options.timeout)
            for cells in rows(name, results, latency):
                print(line_of(cells), flush=True)
            write_overlay(options.out / f"{name}.png", results["overlay"])
        print(flush=True)
        say("latency: from the stamp of the image message to the arrival of the detections that carry it")
        say(f"photographs with masks: {options.out}/*.png; done in {time.monotonic() - begin:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0, or 1 with a sentence, or 128 + the number of the signal that ended it."""

    def stop(number: int, _: Any) -> None:
        stopped_by.append(number)
        for one in signals:
            signal.signal(one, signal.SIG_IGN)  # the end itself is bounded, and not to be interrupted
        raise Stopped(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, stop)
    if "MAKELEVEL" in os.environ:  # a `make demo` that is killed takes this program along
        die_with(os.getppid(), signal.SIGTERM)
    try:
        run(parse(arguments))
    except DemoError as error:
        print(f"[demo] ERROR: {error}", file=sys.stderr, flush=True)
        return 1
    except Stopped as stopped:
        say(f"ended by {signal.Signals(stopped.number).name}; the node has been stopped")
        return 128 + stopped.number
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # DDS threads may still be busy; nothing is left to do
