# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: camera images in, detections and masks of the objects in the catalogue out.

Threads: the executor's run callbacks, all short; the worker's runs everything that touches the model
(loading, objects, frames); the main thread waits for a signal (segment_node.py). Topics, services and
parameters: docs/node.md.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

from ocdit_ros.node import messages, objects, parameters
from ocdit_ros.node.backend import (
    BackendError,
    Factory,
    SegmenterLike,
    StreamLike,
    apply_settings,
    from_parameters,
    next_streams,
)
from ocdit_ros.node.diagnostics import Statistics, diagnostics_message
from ocdit_ros.node.faults import explain, free_memory, is_device_lost, is_out_of_memory
from ocdit_ros.node.images import ImageError, to_rgb
from ocdit_ros.node.parameters import ParameterError, Takes, Type
from ocdit_ros.node.worker import Worker
from ocdit_ros.segment import draw
from ocdit_ros.templates import MeshError, ObjectSpec, load_mesh

#: Images come as from any camera driver: best effort matches reliable and best-effort publishers, volatile
#: and latched ones; a queue of one keeps no stale frame.
IMAGE_QOS = QoSProfile(
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)
RESULT_QOS = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=5)
LATCHED_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)

#: Errors whose message says all there is to say; others are logged with their traceback.
_EXPLAINED = (ParameterError, objects.ObjectsError, BackendError, MeshError)

#: States in which a node waits for a transition; in others one is under way.
_RESTING = ("unconfigured", "inactive", "active", "finalized")

#: How long a stopping process waits for the frame in hand, in seconds.
PATIENCE = 2.0

#: Least time between two warnings about the images of one camera, in seconds.
WARNING_PERIOD = 5.0


class _ClosingError(Exception):
    """The process is stopping; whatever was being waited for is not needed any more."""


@dataclass(frozen=True)
class _Frame:
    camera: Camera
    message: Any  # sensor_msgs/Image or CompressedImage
    received: float  # monotonic time, s


class _Request:
    """One call of ~/segment: wants one frame of every camera."""

    def __init__(self, cameras: Sequence[str]) -> None:
        self.created = time.monotonic()
        self.finished = threading.Event()
        self.success = True
        self._lock = threading.Lock()
        self._missing = set(cameras)  # no frame yet
        self._open = set(cameras)  # no result yet
        self._texts: list[str] = []

    def accept(self, camera: str) -> bool:
        """Whether this frame is the one that is waited for; true once for each camera."""
        with self._lock:
            wanted = camera in self._missing
            self._missing.discard(camera)
            return wanted

    @property
    def missing(self) -> list[str]:
        """Cameras that have not sent a frame."""
        with self._lock:
            return sorted(self._missing)

    def complete(self, camera: str, success: bool, text: str) -> None:
        """The frame of a camera is done."""
        with self._lock:
            if camera not in self._open:
                return
            self._open.discard(camera)
            self.success &= success
            self._texts.append(f"{camera}: {text}" if camera else text)
            if not self._open:
                self.finished.set()

    def fail(self, text: str) -> None:
        """No result will come."""
        with self._lock:
            self.success = False
            self._texts.append(text)
            self._open.clear()
            self.finished.set()

    @property
    def text(self) -> str:
        """What to tell the caller."""
        with self._lock:
            return "; ".join(self._texts)


class Camera:
    """Publishers and, while the node is active, the subscription of one camera."""

    def __init__(self, node: SegmentNode, name: str, compressed: bool) -> None:
        """`name` is '' for the only camera, whose topics have no prefix."""
        self.name = name
        self.topic = (f"{name}/" if name else "") + ("image/compressed" if compressed else "image")
        self._type = CompressedImage if compressed else Image
        self._node = node
        self._subscription: Any = None
        self._publishers: list[Any] = []
        self._warned = -float("inf")  # monotonic time of the last warning, s
        self.rested = False  # since the last frame that was segmented there was one that nobody wanted
        self._rest_told = False
        prefix = f"~/{name}/" if name else "~/"
        self.detections = self._publisher(Detection2DArray, prefix + "detections")
        self.label_image = self._publisher(Image, prefix + "label_image")
        self.mask = self._publisher(Image, prefix + "mask")
        self.overlay = self._publisher(Image, prefix + "overlay")

    def _publisher(self, kind: Any, topic: str) -> Any:
        publisher = self._node.create_lifecycle_publisher(kind, topic, RESULT_QOS)
        self._publishers.append(publisher)
        return publisher

    def subscribe(self, callback: Callable[[Camera, Any], None]) -> None:
        """Start to listen; frames of one camera come one after the other."""
        self._rest_told = False
        self._subscription = self._node.create_subscription(
            self._type,
            self.topic,
            lambda message: callback(self, message),
            IMAGE_QOS,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )

    def unsubscribe(self) -> None:
        """Stop to listen; does nothing if it does not."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)

    def is_heard(self) -> bool:
        """Whether anybody listens to results of this camera."""
        try:
            return any(publisher.get_subscription_count() for publisher in tuple(self._publishers))
        except InvalidHandle:  # destroyed meanwhile: the node is released
            return False

    def publish(self, header: Header, rgb: np.ndarray, instances: Sequence[Any], selected: str) -> None:
        """Send the results of a frame; what nobody listens to is not computed, detections apart."""
        height, width = rgb.shape[:2]
        # Masks first: who synchronises by stamp waits for the last one, and who waits for detections has all
        # then.
        if self.label_image.get_subscription_count():
            message, pixels = messages.blank_image(header, height, width, "16UC1")
            draw.label_image(instances, height, width, out=pixels)
            self.label_image.publish(message)
        if self.mask.get_subscription_count():
            message, pixels = messages.blank_image(header, height, width, "mono8")
            messages.mask_array((height, width), instances, selected, out=pixels)
            self.mask.publish(message)
        self.detections.publish(messages.detections_message(header, instances))
        if self.overlay.get_subscription_count():
            message, pixels = messages.blank_image(header, height, width, "rgb8")
            draw.overlay(rgb, instances, out=pixels)
            self.overlay.publish(message)

    def rest(self) -> None:
        """A frame is left out because nobody listens; told once while the node is active."""
        self.rested = True
        if not self._rest_told:
            self._rest_told = True
            self._node.get_logger().info(
                f"nobody listens to results of '{self._node.resolve_topic_name(self.topic)}'; its frames are not "
                "segmented while that is so (parameter lazy)"
            )

    def warn(self, text: str) -> None:
        """A warning that names this camera's topic, at most one in WARNING_PERIOD: a bad camera sends on and on."""
        now = time.monotonic()
        if now - self._warned >= WARNING_PERIOD:
            self._warned = now
            self._node.get_logger().warning(f"image on '{self._node.resolve_topic_name(self.topic)}' {text}")

    def destroy(self) -> None:
        """Remove everything from the ROS graph; may be called again."""
        self.unsubscribe()
        while self._publishers:
            self._node.destroy_lifecycle_publisher(self._publishers.pop())


class SegmentNode(LifecycleNode):
    """Segments instances of known objects; see docs/node.md."""

    def __init__(self, make_segmenter: Factory = from_parameters, **options: Any) -> None:
        """`make_segmenter` is called at configure; `options` go to rclpy.node.Node."""
        # Done by hand what LifecycleNode.__init__ does, which cannot be told a callback group: in the default
        # one, a configure that takes a minute would leave `ros2 lifecycle get` and `ros2 param` without an
        # answer.
        Node.__init__(self, parameters.NODE_NAME, allow_undeclared_parameters=True, **options)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        # rclpy lets an illegal transition raise in the executor, which would end the process.
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._serve_change_state
        self._transition_lock = threading.Lock()

        self._make_segmenter = make_segmenter
        self._segmenter: SegmenterLike | None = None  # used by the worker alone, once it is set
        self._streams: dict[str, StreamLike] = {}  # what is remembered of each camera; the worker's too
        self._fingerprints: dict[str, tuple] = {}
        self._worker: Worker[_Frame] | None = None
        self._cameras: list[Camera] = []
        self._label_info: Any = None
        self._request: _Request | None = None
        self._active = False
        self._failure_told = -float("inf")  # monotonic time of the last failed frame in the log, s
        self._closing = threading.Event()
        self._release_lock = threading.RLock()
        self.statistics = Statistics()

        self._values: dict[str, Any] = {}
        self._problems: dict[str, str] = {}  # parameters whose start value cannot be used, with the reason
        self._declare_parameters()
        self.add_pre_set_parameters_callback(self._coerce_parameters)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self._log_handler = _LogToRos(self.get_logger())
        logging.getLogger("ocdit_ros").addHandler(self._log_handler)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self.create_timer(
            1.0,
            self._publish_diagnostics,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        # One group each: a call that waits for a frame holds up only the next call of the same service.
        for kind, name, serve in (
            (Trigger, "~/segment", self._serve_segment),
            (Trigger, "~/reload_objects", self._serve_reload),
        ):
            self.create_service(kind, name, serve, callback_group=MutuallyExclusiveCallbackGroup())

    # Lifecycle ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Label of the current lifecycle state."""
        return self._state_machine.current_state[1]

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load weights and objects, in the worker; FAILURE (unconfigured again), the reason is in the log."""
        return self._transition("configure", self._configure, TransitionCallbackReturn.FAILURE, undo=self.release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish and listen."""
        return self._transition(
            "activate",
            lambda: self._activate(state),
            TransitionCallbackReturn.FAILURE,
            undo=self._unsubscribe,
        )

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to listen, finish and publish the frame in hand."""
        return self._transition("deactivate", lambda: self._deactivate(state), TransitionCallbackReturn.ERROR)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything that configure made."""
        return self._transition("cleanup", self.release, TransitionCallbackReturn.ERROR)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, whatever the state."""
        return self._transition("shutdown", self.release, TransitionCallbackReturn.ERROR)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything; the node is unconfigured afterwards and can be configured again."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def _transition(
        self,
        name: str,
        action: Callable[[], None],
        on_failure: TransitionCallbackReturn,
        undo: Callable[[], None] = lambda: None,
    ) -> TransitionCallbackReturn:
        # rclpy swallows exceptions in transitions; this is where they are told.
        try:
            action()
            return TransitionCallbackReturn.SUCCESS
        except (_ClosingError, concurrent.futures.CancelledError):
            self.get_logger().info(f"{name} was given up because the node is stopping")
        except _EXPLAINED as error:
            self._report(f"{name} failed: {error}")
        except Exception as error:
            self._report(f"{name} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        undo()
        return on_failure

    def _report(self, text: str) -> None:
        self.statistics.error(text.splitlines()[0])
        self.get_logger().error(text)

    def _configure(self) -> None:
        if self._problems:
            raise ParameterError("; ".join(self._problems.values()))
        values = self._values
        specs = objects.catalogue(values, self._own)
        _check_selected(values["selected_object"], [spec.name for spec in specs])
        self.statistics.reset()
        cameras = parameters.names_in(values, "cameras") or [""]
        self._worker = Worker(self._process, len(cameras))
        self._worker.min_period, self._worker.gather = _period(values["max_rate"]), values["batch_wait"]
        self._wait_for(self._worker.submit(lambda: self._load(values, specs)))
        self._label_info = self.create_lifecycle_publisher(LabelInfo, "~/label_info", LATCHED_QOS)
        compressed = values["image_transport"] == "compressed"
        for name in cameras:
            self._cameras.append(Camera(self, name, compressed))

    def _load(self, values: Mapping[str, Any], specs: Sequence[ObjectSpec]) -> None:
        started = time.monotonic()
        self.get_logger().info(f"configuring: {len(specs)} objects; templates that are not cached yet take a while")
        for spec in specs:  # what is wrong with a mesh shows before the weights are waited for
            self._check_mesh(spec)
        segmenter, description = self._make_segmenter(values)
        self.get_logger().info(description)
        self._fingerprints = {}
        for index, spec in enumerate(specs, start=1):
            if self._closing.is_set():
                raise _ClosingError
            begun = time.monotonic()
            self._add_object(segmenter, spec)
            self.get_logger().info(
                f"object {index} of {len(specs)}: {spec.name} is ready ({time.monotonic() - begun:.1f} s)"
            )
        if values["warm_up"] and not self._closing.is_set():
            segmenter.segment_many([np.full((480, 640, 3), 127, np.uint8)])
        self._segmenter = segmenter
        self.get_logger().info(f"configured in {time.monotonic() - started:.1f} s")

    def _check_mesh(self, spec: ObjectSpec) -> None:
        if self._closing.is_set():
            raise _ClosingError
        try:
            objects.check_size(spec.name, load_mesh(spec.mesh, spec.scale).diameter, spec.scale)
        except MeshError as error:
            raise objects.ObjectsError(f"object '{spec.name}': {error}") from None

    def _add_object(self, segmenter: SegmenterLike, spec: ObjectSpec) -> None:
        fingerprint = objects.fingerprint(spec)
        segmenter.add_object(spec)
        self._fingerprints[spec.name] = fingerprint

    def _activate(self, state: LifecycleState) -> None:
        if LifecycleNode.on_activate(self, state) != TransitionCallbackReturn.SUCCESS:
            raise RuntimeError("a publisher could not be activated")
        self._active = True
        self._publish_label_info()
        self.statistics.listening([camera.name for camera in self._cameras])
        for camera in self._cameras:
            camera.subscribe(self._on_image)
        topics = ", ".join(self.resolve_topic_name(camera.topic) for camera in self._cameras)
        self.get_logger().info(f"active, waiting for images on {topics}")

    def _deactivate(self, state: LifecycleState) -> None:
        self._unsubscribe()
        if self._worker is not None:
            self._wait_for(self._worker.submit(self._streams.clear))  # runs after the frame in hand
        LifecycleNode.on_deactivate(self, state)

    def _unsubscribe(self) -> None:
        self._active = False
        self.statistics.listening([])
        for camera in self._cameras:
            camera.unsubscribe()
        if self._worker is not None:
            self.statistics.frames_replaced(len(self._worker.mailbox.clear()))

    def release(self) -> None:
        """Free whatever there is: subscriptions, worker, publishers, model. Can be called at any time, again.

        Waits for the frame in hand, unless the process is stopping.
        """
        with self._release_lock:
            self._unsubscribe()
            worker, self._worker = self._worker, None
            while worker is not None and not worker.stop(0.1) and not self._closing.is_set():
                pass
            while self._cameras:
                self._cameras.pop().destroy()
            label_info, self._label_info = self._label_info, None
            if label_info is not None:
                self.destroy_lifecycle_publisher(label_info)
            self._segmenter = None
            self._streams.clear()
            self._fingerprints = {}
            if self._closing.is_set():  # the end of the process frees the rest, and faster
                return
            free_memory()

    def _wait_for(self, future: concurrent.futures.Future) -> Any:
        while not concurrent.futures.wait([future], 0.1).done:
            if self._closing.is_set():
                raise _ClosingError
        return future.result()

    def _serve_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        wanted = request.transition.label or str(request.transition.id)
        # The event that tells of a new state is sent a moment before the transition is over, and whoever acts on it,
        # as a launch file does, must not be refused.
        while not self._transition_lock.acquire(timeout=0.02):
            if self.state not in _RESTING:
                self.get_logger().warning(f"transition {wanted} refused: another one is under way ({self.state})")
                response.success = False
                return response
        try:
            return self._change_state(request, response)
        except Exception as error:  # RCLError: not a transition of the current state
            self.get_logger().warning(f"transition {wanted} refused in state {self.state}: {error}")
            response.success = False
            return response
        finally:
            self._transition_lock.release()

    def autostart(self) -> None:
        """Configure and activate. Where configure fails, the node stays unconfigured and the log says why."""
        with self._transition_lock:
            if self.state == "unconfigured" and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
                self.trigger_activate()

    # Frames -------------------------------------------------------------------------------------------------

    def _on_image(self, camera: Camera, message: Any) -> None:
        worker, request = self._worker, self._request
        if not self._active or worker is None:
            return
        received = time.monotonic()
        self.statistics.frame_received(camera.name)
        if request is None or not request.accept(camera.name):
            if self._values["mode"] != "stream":
                return
            if self._values["lazy"] and not camera.is_heard():
                self.statistics.frame_unheard()
                camera.rest()
                return
        replaced = worker.mailbox.put(camera.name, _Frame(camera, message, received))
        self.statistics.frames_replaced(replaced is not None)

    def _process(self, frames: list[_Frame]) -> None:
        """Segment frames together and publish; runs in the worker. One that is of no use is told and dropped."""
        self.statistics.working(True)
        try:
            self._segment(frames)
        finally:
            self.statistics.working(False)

    def _segment(self, frames: list[_Frame]) -> None:
        begun = time.monotonic()
        usable: list[tuple[_Frame, np.ndarray, float]] = []
        for frame in frames:
            since = time.monotonic()
            try:
                usable.append((frame, to_rgb(frame.message), time.monotonic() - since))
            except ImageError as error:
                self.statistics.frame_failed(f"image on {frame.camera.topic} dropped: {error}")
                frame.camera.warn(f"dropped: {error}")
                self._complete(frame, False, str(error))
            except Exception as error:
                self._fail(frame, error)
        if not usable:
            return
        values, segmenter = self._values, self._segmenter
        assert segmenter is not None
        since = time.monotonic()
        try:
            apply_settings(segmenter, values)
            for frame, _, _ in usable:
                if frame.camera.rested:  # what it showed before may be long ago
                    frame.camera.rested = False
                    self._streams.pop(frame.camera.name, None)
            images, full = [rgb for _, rgb, _ in usable], [True] * len(usable)
            if values["warm_start"] and values["mode"] == "stream":
                streams = next_streams(segmenter, self._streams, [f.camera.name for f, _, _ in usable], values)
                found = segmenter.segment_streams(images, streams)
                full = [stream.effort.full for stream in streams]
            else:
                self._streams.clear()
                found = segmenter.segment_many(images)
        except Exception as error:
            self._streams.clear()
            for frame, _, _ in usable:
                self._fail(frame, error)
            return
        self.statistics.batch_segmented()
        seconds = {"segment": time.monotonic() - since}
        seconds |= {f"segment/{stage}": value for stage, value in getattr(segmenter, "last_timings", {}).items()}
        for (frame, rgb, convert), instances, whole in zip(usable, found, full, strict=True):
            self.statistics.frame_segmented(whole)
            try:
                spent = {"wait": begun - frame.received, "convert": convert, **seconds}
                self._publish(frame, rgb, instances, values["selected_object"], spent)
            except Exception as error:
                self._fail(frame, error)
            else:
                self._complete(frame, True, messages.summary(instances))

    def _publish(
        self, frame: _Frame, rgb: np.ndarray, instances: Sequence[Any], selected: str, seconds: dict[str, float]
    ) -> None:
        header = frame.message.header
        since = time.monotonic()
        frame.camera.publish(header, rgb, instances, selected)
        seconds["publish"] = time.monotonic() - since
        seconds["total"] = time.monotonic() - frame.received
        if header.stamp.sec or header.stamp.nanosec:
            age = self.get_clock().now() - Time.from_msg(header.stamp, clock_type=self.get_clock().clock_type)
            seconds["stamp to result"] = age.nanoseconds * 1e-9
        self.statistics.frame_processed(seconds, max((instance.score for instance in instances), default=0.0))

    def _fail(self, frame: _Frame, error: Exception) -> None:
        """Tell of an error that nobody foresaw; called while it is handled."""
        if self._closing.is_set():
            return  # the publishers may be gone already
        text = explain(error)
        self.statistics.frame_failed(f"frame dropped: {text}")
        if is_device_lost(error):
            self.statistics.device_lost(text)
        now = time.monotonic()  # the log's own throttle takes the clock of the robot, which may jump
        if now - self._failure_told >= WARNING_PERIOD:
            self._failure_told = now
            self.get_logger().error(f"frame dropped: {text}\n{traceback.format_exc()}")
        self._complete(frame, False, text)
        if is_out_of_memory(error):
            # What the failed frame held must be free before the next one; the traceback holds its arrays.
            traceback.clear_frames(error.__traceback__)
            free_memory()

    def _complete(self, frame: _Frame, success: bool, text: str) -> None:
        request = self._request
        if request is not None and frame.received >= request.created:
            request.complete(frame.camera.name, success, text)

    # Services -----------------------------------------------------------------------------------------------

    def _serve_segment(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        cameras = self._cameras
        if not self._active:
            response.success = False
            response.message = f"the node is {self.state}; activate it first"
            return response
        request = self._request = _Request([camera.name for camera in cameras])
        timeout = self._values["trigger_timeout"]
        try:
            while not request.finished.wait(0.1):
                if self._closing.is_set() or not self._active:
                    request.fail("the node was deactivated before the frame was done")
                elif request.missing and time.monotonic() - request.created > timeout:
                    topics = [self.resolve_topic_name(c.topic) for c in cameras if c.name in request.missing]
                    request.fail(f"no image arrived on {', '.join(topics)} within {timeout:g} s")
        finally:
            self._request = None
        response.success, response.message = request.success, request.text
        return response

    def _serve_reload(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        worker = self._worker
        if worker is None or self._segmenter is None:
            response.success = False
            response.message = f"the node is {self.state}; objects are read at configure"
            return response
        try:
            response.message = self._wait_for(worker.submit(self._reload))
            response.success = True
            self._publish_label_info()
        except (_ClosingError, concurrent.futures.CancelledError):
            response.message = "the node is stopping"
        except _EXPLAINED as error:
            response.message = str(error)
        except Exception as error:
            self.get_logger().error(f"reload_objects failed:\n{traceback.format_exc()}")
            response.message = f"{type(error).__name__}: {error}"
        if response.success:
            self.get_logger().info(response.message)
        else:
            self._report(f"reload_objects failed, the objects are as before: {response.message}")
        return response

    def _reload(self) -> str:
        """Bring the catalogue up to date; runs in the worker. What did not change is not touched."""
        segmenter, before = self._segmenter, dict(self._fingerprints)
        assert segmenter is not None
        specs = {spec.name: spec for spec in objects.catalogue(self._values, self._own)}
        new = {name: spec for name, spec in specs.items() if before.get(name) != objects.fingerprint(spec)}
        gone = [name for name in before if name not in specs]
        for spec in new.values():  # all of them can be read, or nothing is changed
            self._check_mesh(spec)
        for name in [*gone, *(name for name in new if name in before)]:
            segmenter.remove_object(name)
            del self._fingerprints[name]
        for spec in new.values():
            self._add_object(segmenter, spec)
        if new or gone:
            self._streams.clear()
        selected = self._values["selected_object"]
        if selected and selected not in specs:
            self.get_logger().warning(
                f"selected_object '{selected}' is not among the objects any more; ~/mask is empty"
            )
        kept = len(specs) - len(new)
        return f"{len(specs)} objects: {len(new)} read, {kept} unchanged, {len(gone)} removed"

    def _publish_label_info(self) -> None:
        publisher, segmenter = self._label_info, self._segmenter
        if self._active and publisher is not None and segmenter is not None:
            header = Header(stamp=self.get_clock().now().to_msg())
            publisher.publish(messages.label_info_message(header, segmenter.objects, self._values["score_threshold"]))

    def _publish_diagnostics(self) -> None:
        segmenter = self._segmenter
        names = segmenter.objects if segmenter is not None else []
        values = self._values
        extra = {"mode": values["mode"], "objects": f"{len(names)}: {', '.join(names)}"}
        topics = {camera.name: self.resolve_topic_name(camera.topic) for camera in list(self._cameras)}
        watched = (values["watch_no_frames"], values["watch_latency"], values["watch_scores"])
        self._diagnostics.publish(
            diagnostics_message(
                self.get_clock().now().to_msg(),
                f"{self.get_fully_qualified_name().lstrip('/')}: segmentation",
                values["device"],
                self.state,
                self.statistics,
                extra,
                self.statistics.troubles(*watched, topics),
            )
        )

    # Parameters ---------------------------------------------------------------------------------------------

    def _declare_parameters(self) -> None:
        given = {name: parameter.value for name, parameter in self._parameter_overrides.items()}
        rows = {row.name: row for row in parameters.PARAMETERS}
        for name in given:
            if name in rows:
                continue
            try:
                row = parameters.find(name)
            except ParameterError as error:  # a shared parameter file may hold what is meant for other nodes
                self.get_logger().warning(f"ignored: {error}")
                continue
            if row is not None:
                rows[name] = row
        for name, row in rows.items():
            value = row.default
            if name in given:
                try:
                    value = row.check(given[name])
                except ParameterError as error:
                    # Told at configure, which fails until it is corrected: a running node can be helped.
                    self._problems[name] = str(error)
            # rclpy takes an empty list for a list of bytes.
            self.declare_parameter(name, [""] if value == [] else value, row.descriptor(), ignore_override=True)
            self._values[name] = value

    def _own(self, name: str, field: str) -> Any:
        parameter = f"objects.{name}.{field}"
        row = parameters.find(parameter)
        assert row is not None
        return self._values.get(parameter, row.default)

    def _coerce_parameters(self, given: list[Parameter]) -> list[Parameter]:
        """Take 1 for 1.0, and [] for an empty list of texts, which `ros2 param set` sends as bytes."""
        coerced = []
        for parameter in given:
            try:
                row = parameters.find(parameter.name)
                if row is not None and parameter.type_ != Parameter.Type.NOT_SET:
                    parameter = Parameter(parameter.name, _RCL_TYPES[row.type], row.check(_plain(parameter.value)))
            except ParameterError:
                pass  # _check_parameters, which comes next, gives the reason
            coerced.append(parameter)
        return coerced

    def _check_parameters(self, given: list[Parameter]) -> SetParametersResult:
        try:
            for parameter in given:
                row = parameters.find(parameter.name)
                if row is None:
                    continue
                if parameter.type_ == Parameter.Type.NOT_SET:  # objects.<name>.* can be removed, rclpy refuses others
                    continue
                value = row.check(_plain(parameter.value))
                if row.takes is Takes.CONFIGURE and self.state != "unconfigured":
                    raise ParameterError(
                        f"parameter '{row.name}' can be changed only while the node is unconfigured, and "
                        f"it is {self.state}; clean it up first"
                    )
                if row.name == "selected_object" and self._segmenter is not None:
                    _check_selected(value, self._segmenter.objects)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, given: list[Parameter]) -> None:
        values = dict(self._values)  # frames and configure read the old or the new set, never a mixture
        for parameter in given:
            row = parameters.find(parameter.name)
            if row is None:
                continue
            if parameter.type_ == Parameter.Type.NOT_SET:
                values.pop(parameter.name, None)
            else:
                values[parameter.name] = row.check(_plain(parameter.value))
            self._problems.pop(parameter.name, None)
        changed = {name for name in values if values[name] != self._values.get(name)}
        self._values = values
        worker = self._worker
        if worker is not None:
            worker.min_period, worker.gather = _period(values["max_rate"]), values["batch_wait"]
        if "score_threshold" in changed:
            self._publish_label_info()

    # End ----------------------------------------------------------------------------------------------------

    def close(self) -> bool:
        """End all waiting and free everything. False if a frame is still being computed."""
        self._closing.set()
        worker = self._worker
        idle = worker is None or worker.stop(PATIENCE)
        self._transition_lock.acquire(timeout=PATIENCE)  # a transition that was waiting gives up now
        self.release()
        logging.getLogger("ocdit_ros").removeHandler(self._log_handler)
        return idle


class _LogToRos(logging.Handler):
    """Warnings of the rooms below, which know no ROS, in the node's log."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if record.levelno >= logging.ERROR:
                self._logger.error(text)
            else:
                self._logger.warning(text)
        except Exception:
            self.handleError(record)


_RCL_TYPES = {kind: Parameter.Type[kind.name] for kind in Type}


def _plain(value: Any) -> Any:
    """A parameter's value as the table knows it: `[]` comes as an empty list of bytes."""
    return [] if isinstance(value, (list, tuple, bytes)) and not len(value) else value


def _check_selected(name: str, known: Sequence[str]) -> None:
    if name and name not in known:
        raise ParameterError(f"parameter 'selected_object' is '{name}', but the objects are {', '.join(known)}")


def _period(rate: float) -> float:
    return 1.0 / rate if rate > 0 else 0.0
