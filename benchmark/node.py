# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the ROS 2 node costs around the network, and how fast it answers while the network works.

    python benchmark/node.py [--frames N] [--brief] [--json FILE]      overhead, with a null model
    python benchmark/node.py --parts                                   processor time of every step
    python benchmark/node.py --services [--network]                    answers of services and parameters under load
    python benchmark/node.py --camera [--seconds S]                    a camera of 30 Hz before a slow model

Overhead: the real node in a process of its own around a model that takes no time and always gives the same ten
instances; camera and listener are in this process, over DDS. Frames are sent one after the other. Printed are medians,
in ms: `in`: from the arrival of the message in the node to the call of the Segmenter (hand-over to the thread and
conversion); `out`: from the Segmenter's return until the last message is published; `whole`: from publish() in the
camera to the detections here, so with DDS and both Pythons. Of `out`, `queued` is how long the thread that publishes
was ready to go on and waited for a processor that others had (Linux's schedstat), `worked` its processor time: what
hangs on the load of the machine, and what does not. `CPU`: processor time of the node's process per frame, all
threads. Listening is one of: detections alone; label image and mask too; overlay too.

Services: how long calls take, while idle, during a frame that takes seconds, and during a configure that takes half a
minute. The model only waits (`sleeping`) or runs Python code that never gives way by itself (`spinning`); with
--network it is the network with the shipped weights, on this machine's CPU, and the objects of sample/.

Camera: 640 x 480 at 30 Hz, and a model that waits for so many seconds a frame. `wait`: how long a frame that was taken
up had been in the mailbox; `age`: from publish() in the camera to the arrival of its result here. Frames are counted by
the node's diagnostics. Memory is what the node's process holds, after a fifth of the time and at the end.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout
os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 101)))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds_shm.xml"))

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
import trimesh  # noqa: E402
import yaml  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.msg import Parameter as ParameterMessage  # noqa: E402
from rcl_interfaces.msg import ParameterValue  # noqa: E402
from rcl_interfaces.srv import GetParameters, SetParameters  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from vision_msgs.msg import Detection2DArray  # noqa: E402

from ocdit_ros.segment import Instance, SegmenterSettings, StreamSettings, draw  # noqa: E402

SIZES = ((640, 480), (1280, 720), (1920, 1080))
ENCODINGS = ("rgb8", "bgr8")
LISTENING = {
    "detections": {},
    "+ label image, mask": {"label_image": Image, "mask": Image},
    "+ overlay": {"label_image": Image, "mask": Image, "overlay": Image},
}


# The node's process ---------------------------------------------------------------------------------------------------


def ten_instances(height: int, width: int) -> list[Instance]:
    """Ellipses, each about 2 % of the image."""
    rows, columns = np.mgrid[:height, :width]
    found = []
    for n in range(10):
        y, x = height * (0.25 + 0.5 * (n % 2)), width * (0.1 + 0.2 * (n // 2))
        b, a = 0.1 * height, 0.07 * width
        mask = ((rows - y) / b) ** 2 + ((columns - x) / a) ** 2 < 1
        ys, xs = np.nonzero(mask)
        box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
        found.append(Instance(1, "box", 0.9 - 0.01 * n, mask, box))
    return found


@dataclass
class NullSegmenter:
    """Takes no time, or as long as it is told: `mode` is null, sleeping or spinning."""

    settings: SegmenterSettings
    mode: str
    seconds: float = 10.0  # that a frame takes, unless mode is null
    objects: list[str] = field(default_factory=list)
    known: dict[tuple[int, int], list[Instance]] = field(default_factory=dict)

    def add_object(self, spec: Any) -> None:
        """Nothing to do."""
        self.objects.append(spec.name)

    def remove_object(self, name: str) -> None:
        """Nothing to do."""
        self.objects.remove(name)

    def segment_many(self, images: list[np.ndarray]) -> list[list[Instance]]:
        """The same for every image."""
        work(self.mode, self.seconds)
        shapes = [rgb.shape[:2] for rgb in images]
        for shape in shapes:
            if shape not in self.known:
                self.known[shape] = ten_instances(*shape)
        return [self.known[shape] for shape in shapes]

    def stream(self, settings: StreamSettings) -> SimpleNamespace:
        """A camera of which nothing is remembered."""
        return SimpleNamespace(settings=settings, effort=SimpleNamespace(full=True))

    def segment_streams(self, images: list[np.ndarray], streams: list[SimpleNamespace]) -> list[list[Instance]]:
        """The same again."""
        return self.segment_many(images)


def work(mode: str, seconds: float) -> None:
    """Take the time, one way or the other."""
    if mode == "sleeping":
        time.sleep(seconds)
    end = time.monotonic() + seconds
    while mode == "spinning" and time.monotonic() < end:
        pass


def serve(arguments: list[str]) -> None:
    """Run the node around the null model; the parameter `weights` says what takes long: <what>:<mode>[:<seconds>]."""
    from ocdit_ros.node import segment_node
    from ocdit_ros.node.backend import SETTINGS
    from ocdit_ros.node.lifecycle_node import Camera

    def make(values: dict[str, Any]) -> tuple[NullSegmenter, str]:
        what, mode, seconds = (*values["weights"].split(":"), "", "")[:3]
        if what == "configure":
            work(mode, 30.0)
        settings = SegmenterSettings(**{name: values[name] for name in SETTINGS})
        made = NullSegmenter(settings, mode if what == "frame" else "null", float(seconds or 10.0))
        return made, "a model that takes no time"

    spent: list[tuple[float, float]] = []
    original = Camera.publish

    def publish(*given: Any) -> None:
        queued, worked = seconds_queued(), time.thread_time()
        original(*given)
        spent.append((seconds_queued() - queued, time.thread_time() - worked))

    Camera.publish = publish  # type: ignore[method-assign]
    segment_node.main(arguments, make)
    if "BENCHMARK_SPENT" in os.environ:
        Path(os.environ["BENCHMARK_SPENT"]).write_text(json.dumps(spent))


def seconds_queued() -> float:
    """How long this thread has waited for a processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9


# The rest of the robot ------------------------------------------------------------------------------------------------


class Robot:
    """Camera, listener and operator of one node."""

    def __init__(self, given: dict[str, Any], network: bool = False) -> None:
        self.folder = tempfile.TemporaryDirectory()
        trimesh.creation.box((100, 100, 100)).export(Path(self.folder.name, "obj_000001.ply"))
        given = {"models_dir": self.folder.name, "warm_up": False, **given}
        file = Path(self.folder.name, "parameters.yaml")
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": given}}))
        program = ["-m", "ocdit_ros.node.segment_node"] if network else [__file__, "--serve"]
        self.process = subprocess.Popen(
            [sys.executable, *program, "--ros-args", "--params-file", str(file), "--log-level", "warn"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "BENCHMARK_SPENT": str(Path(self.folder.name, "spent.json")),
            },
        )
        rclpy.init()
        self.node = rclpy.create_node("benchmark")
        self.camera = self.node.create_publisher(Image, "image", 1)
        self.arrived: dict[int, float] = {}
        self.news = threading.Condition()
        self.diagnostics: dict[str, str] = {}
        self.subscriptions: list[Any] = []
        self.clients: dict[str, Any] = {}
        self.node.create_subscription(Detection2DArray, "segment_node/detections", self._on_detections, 10)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_detections(self, message: Detection2DArray) -> None:
        with self.news:
            self.arrived[message.header.stamp.nanosec] = time.perf_counter()
            self.news.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self.news:
            self.diagnostics = {value.key: value.value for value in message.status[0].values}
            self.news.notify_all()

    def listen(self, topics: dict[str, Any]) -> None:
        """Take these topics of the node, and throw away what comes."""
        for topic, kind in topics.items():
            self.subscriptions.append(
                self.node.create_subscription(kind, f"segment_node/{topic}", lambda message: None, 1)
            )

    def wait(self, condition: Callable[[], Any], timeout: float, what: str) -> None:
        """Until something that arrives makes it true."""
        deadline = time.monotonic() + timeout
        with self.news:
            while not condition():
                if self.process.poll() is not None:
                    sys.exit("the node ended")
                if time.monotonic() > deadline:
                    sys.exit(f"{what}: not within {timeout:g} s")
                self.news.wait(0.1)

    def call(self, kind: Any, service: str, request: Any) -> tuple[float, Any]:
        """Seconds until the answer, and the answer."""
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, f"segment_node/{service}")
            self.wait(self.clients[service].service_is_ready, 300, service)
        done = threading.Event()
        begin = time.perf_counter()
        future = self.clients[service].call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(300):
            sys.exit(f"no answer of {service}")
        return time.perf_counter() - begin, future.result()

    def state(self) -> str:
        """Of the lifecycle."""
        return self.call(GetState, "get_state", GetState.Request())[1].current_state.label

    def change_state(self, label: str) -> Any:
        """Ask for a transition; the future of its answer."""
        client = self.node.create_client(ChangeState, "segment_node/change_state")
        self.wait(client.service_is_ready, 300, "change_state")
        return client.call_async(ChangeState.Request(transition=Transition(label=label)))

    def processor_seconds(self) -> float:
        """Of the node's process until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB of the node's process, resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        """End the node."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def close(self) -> None:
        """End the node and this side."""
        self.stop()
        self._executor.shutdown(5)
        self.node.destroy_node()  # or its subscriptions stay, and the next node computes for them too
        rclpy.try_shutdown()
        self._thread.join(5)
        self.folder.cleanup()


@contextmanager
def robot(given: dict[str, Any], network: bool = False) -> Iterator[Robot]:
    """A robot that ends whatever happens."""
    one = Robot(given, network)
    try:
        yield one
    finally:
        one.close()


def picture(width: int, height: int, encoding: str, number: int) -> Image:
    """A frame of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    data = array.array("B", pixels.tobytes())
    return Image(height=height, width=width, encoding=encoding, step=3 * width, data=data)


# Overhead -------------------------------------------------------------------------------------------------------------


def overhead(width: int, height: int, encoding: str, listening: str, frames: int) -> dict[str, Any]:
    """One row of the table."""
    with robot({"autostart": True}) as one:
        one.listen(LISTENING[listening])
        one.wait(one.camera.get_subscription_count, 300, "the node's subscription")
        time.sleep(1.0)  # the node learns of the listeners
        for topic in LISTENING["+ overlay"]:
            if one.node.count_subscribers(f"segment_node/{topic}") != (topic in LISTENING[listening]):
                sys.exit(f"others listen to {topic} too; take another ROS_DOMAIN_ID")
        frame, whole = picture(width, height, encoding, 0), []
        warm_up = 5
        for n in range(warm_up + frames):
            if n == warm_up:
                spent = one.processor_seconds()
            frame.header = Header(frame_id="camera")
            frame.header.stamp.sec, frame.header.stamp.nanosec = 1, n + 1
            begin = time.perf_counter()
            one.camera.publish(frame)
            one.wait(lambda n=n: n + 1 in one.arrived, 60, "the result of a frame")
            whole.append(one.arrived[n + 1] - begin)
            time.sleep(0.01)
        spent = (one.processor_seconds() - spent) / frames
        one.wait(
            lambda: one.diagnostics.get("frames processed") == str(warm_up + frames), 30, "diagnostics of all frames"
        )
        stage = {name: float(one.diagnostics[f"latency {name} median [ms]"]) for name in ("wait", "convert", "publish")}
        one.stop()
        spent_of = json.loads(Path(one.folder.name, "spent.json").read_text())[warm_up:]
        queued, worked = (1e3 * statistics.median(values) for values in zip(*spent_of, strict=True))
    return {
        "size": f"{width} x {height}", "encoding": encoding, "listening": listening, "frames": frames,
        "in": stage["wait"] + stage["convert"], "out": stage["publish"], "queued": queued, "worked": worked,
        "whole": 1e3 * statistics.median(whole[warm_up:]), "cpu": 1e3 * spent,
    }  # fmt: skip


def measure_overhead(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table of the overhead."""
    print("| size | encoding | listening | in | out | queued | worked | in + out | whole | CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for size in SIZES[::2] if options.brief else SIZES:
        for encoding in ENCODINGS[:1] if options.brief else ENCODINGS:
            for listening in LISTENING:
                row = overhead(*size, encoding, listening, options.frames)
                rows.append(row)
                print(
                    f"| {row['size']} | {encoding} | {listening} | {row['in']:.1f} | {row['out']:.1f} | "
                    f"{row['queued']:.1f} | {row['worked']:.1f} | "
                    f"{row['in'] + row['out']:.1f} | {row['whole']:.1f} | {row['cpu']:.1f} |",
                    flush=True,
                )
    return rows


# Parts ----------------------------------------------------------------------------------------------------------------


def parts_of(width: int, height: int, node: Any) -> dict[str, list[Callable[[], Any]]]:
    """The steps from message to messages, each as what is done one after the other."""
    from ocdit_ros.node import messages
    from ocdit_ros.node.images import to_rgb
    from ocdit_ros.node.lifecycle_node import RESULT_QOS

    header, found, shape = Header(frame_id="camera"), ten_instances(height, width), (height, width)
    rgb, bgr = (picture(width, height, encoding, 0) for encoding in ENCODINGS)
    pixels, made = to_rgb(rgb), {}

    def step(name: str, kind: Any, build: Callable[[], Any]) -> list[Callable[[], Any]]:
        publisher = node.create_publisher(kind, f"parts/{name}", RESULT_QOS)
        return [lambda: made.update({name: build()}), lambda: publisher.publish(made[name])]

    def drawn(encoding: str, draw_in: Callable[[np.ndarray], Any]) -> Callable[[], Image]:
        def build() -> Image:
            message, pixels = messages.blank_image(header, *shape, encoding)
            draw_in(pixels)
            return message

        return build

    return {
        "convert rgb8": [lambda: to_rgb(rgb)],
        "convert bgr8": [lambda: to_rgb(bgr)],
        "detections": step("detections", Detection2DArray, lambda: messages.detections_message(header, found)),
        "label image": step("labels", Image, drawn("16UC1", lambda out: draw.label_image(found, *shape, out))),
        "mask": step("mask", Image, drawn("mono8", lambda out: messages.mask_array(shape, found, "", out))),
        "overlay": step("overlay", Image, drawn("rgb8", lambda out: draw.overlay(pixels, found, out=out))),
    }


def measure_parts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the processor time of every step, in this process: what is left when nobody else wants the processor."""
    rclpy.init()
    node, rows = rclpy.create_node("benchmark_parts"), []
    print("| size | step | median ms | least |")
    print("|---|---|---|---|")
    for width, height in SIZES:
        for name, parts in parts_of(width, height, node).items():
            taken = []
            for _ in range(options.frames):
                begin = time.thread_time()
                for part in parts:
                    part()
                taken.append(1e3 * (time.thread_time() - begin))
            median, least = statistics.median(taken), min(taken)
            rows.append({"size": f"{width} x {height}", "step": name, "median": median, "least": least})
            print(f"| {width} x {height} | {name} | {median:.2f} | {least:.2f} |", flush=True)
    node.destroy_node()
    rclpy.try_shutdown()
    return rows


# Services under load --------------------------------------------------------------------------------------------------


def answers(one: Robot, while_: Callable[[], bool], calls: int) -> dict[str, list[float]]:
    """Seconds that calls take, while something is true."""
    value = ParameterMessage(name="max_rate", value=ParameterValue(type=3, double_value=0.0))
    asked = {
        "get_state": (GetState, GetState.Request()),
        "get_parameters": (GetParameters, GetParameters.Request(names=["mode"])),
        "set_parameters": (SetParameters, SetParameters.Request(parameters=[value])),
    }
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(calls):
        for name, (kind, request) in asked.items():
            seconds = one.call(kind, name, request)[0]
            if not while_():
                return taken
            taken[name].append(seconds)
        time.sleep(0.02)
    return taken


def measure_services(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print how long calls take."""
    print("| model | while | call | calls | median ms | 95 % | worst |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []

    def tell(model: str, when: str, taken: dict[str, list[float]]) -> None:
        for name, seconds in taken.items():
            if not seconds:
                continue
            ms = sorted(1e3 * value for value in seconds)
            row = {
                "model": model, "while": when, "call": name, "calls": len(ms), "median": statistics.median(ms),
                "p95": ms[min(len(ms) - 1, int(0.95 * len(ms)))], "worst": ms[-1],
            }  # fmt: skip
            rows.append(row)
            numbers = " | ".join(f"{row[key]:.1f}" for key in ("median", "p95", "worst"))
            print(f"| {model} | {when} | {name} | {len(ms)} | {numbers} |", flush=True)

    models = ["network"] if options.network else ["sleeping", "spinning"]
    sample = {"models_dir": str(ROOT / "sample" / "models"), "cache_dir": tempfile.mkdtemp(prefix="ocdit_benchmark_")}
    for model in models:
        given = sample if options.network else {"weights": f"configure:{model}"}
        with robot(given, options.network) as one:
            if not rows:
                tell("none", "unconfigured", answers(one, lambda: True, options.frames))
            done = one.change_state("configure")
            while one.state() != "configuring":
                time.sleep(0.01)
            tell(model, "configuring", answers(one, lambda done=done: not done.done(), options.frames))
    for model in models:
        given = sample if options.network else {"weights": f"frame:{model}"}
        with robot({**given, "autostart": True}, options.network) as one:
            one.wait(one.camera.get_subscription_count, 900, "the node's subscription")
            frame = picture(640, 480, "rgb8", 0)
            frame.header.stamp.nanosec = 1
            one.camera.publish(frame)
            time.sleep(0.3)
            tell(model, "segmenting", answers(one, lambda one=one: 1 not in one.arrived, options.frames))
    return rows


# A camera that is faster than the model -------------------------------------------------------------------------------


def measure_camera(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print how old results are, and what becomes of the other frames."""
    columns = ("model s", "sent", "received", "processed", "dropped", "wait ms", "wait max", "age", "age max", "MiB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for seconds in (0.1, 0.5, 2.0):
        with robot({"weights": f"frame:sleeping:{seconds}", "autostart": True}) as one:
            one.wait(one.camera.get_subscription_count, 300, "the node's subscription")
            time.sleep(1.0)  # the node learns of the listener
            frame, sent, held = picture(640, 480, "rgb8", 0), {}, []
            begin = time.perf_counter()
            for n in range(round(30 * options.seconds)):
                time.sleep(max(0.0, begin + n / 30 - time.perf_counter()))
                frame.header.stamp.sec, frame.header.stamp.nanosec = 1, n + 1
                sent[n + 1] = time.perf_counter()
                one.camera.publish(frame)
                if n == round(6 * options.seconds):
                    held.append(one.memory())
            held.append(one.memory())
            waited = {key: float(one.diagnostics[f"latency wait {key} [ms]"]) for key in ("median", "max")}
            one.wait(lambda sent=sent: len(sent) in one.arrived, 60, "the result of the last frame")
            done = str(len(one.arrived))
            one.wait(lambda done=done: one.diagnostics.get("frames processed") == done, 30, "diagnostics of all frames")
            told = one.diagnostics
            # The last one waited for the frame in hand with none to replace it.
            age = [1e3 * (arrived - sent[n]) for n, arrived in one.arrived.items() if n != len(sent)]
            row = {
                "model s": seconds, "sent": len(sent), "received": int(told["frames received"]), "processed": int(done),
                "dropped": int(told["frames dropped (newer one arrived)"]), "wait ms": waited["median"],
                "wait max": waited["max"], "age": statistics.median(age), "age max": max(age),
                "MiB": f"{held[0]:.0f}, {held[1]:.0f}",
            }  # fmt: skip
        rows.append(row)
        cells = (f"{row[key]:.1f}" if isinstance(row[key], float) else str(row[key]) for key in columns)
        print(f"| {' | '.join(cells)} |", flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=100, help="frames, or calls of each kind (default: 100)")
    parser.add_argument("--brief", action="store_true", help="overhead: fewer sizes and encodings")
    parser.add_argument("--parts", action="store_true", help="processor time of every step, in this process")
    parser.add_argument("--services", action="store_true", help="answers of services and parameters under load")
    parser.add_argument("--camera", action="store_true", help="a camera of 30 Hz before a slow model")
    parser.add_argument("--seconds", type=float, default=30.0, help="with --camera: for so long (default: 30)")
    parser.add_argument("--network", action="store_true", help="with --services: the network with the shipped weights")
    parser.add_argument("--json", help="write the numbers here too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}\n")
    measure = measure_services if options.services else measure_parts if options.parts else measure_overhead
    measure = measure_camera if options.camera else measure
    rows = measure(options)
    if options.json:
        Path(options.json).write_text(json.dumps({"load": load, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
