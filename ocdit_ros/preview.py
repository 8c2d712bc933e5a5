# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit preview`: a web page on this machine to try meshes on images, or on a camera topic.

One Segmenter serves all visitors, one after the other; what somebody sees and has set belongs to the visit. The page
needs nothing from the internet, and listens on this machine only, so from afar it is reached through an ssh tunnel.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import importlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from nicegui import app, events, ui
from PIL import Image, ImageOps

from ocdit_ros.segment import Instance, Segmenter, draw
from ocdit_ros.templates import IMAGE_FORMATS

#: Below this score nothing is computed; above it, the slider decides without computing anew.
LOWEST = 0.02

#: Steps of the animation.
TRACE_STEPS = 10

#: Larger uploads are refused (bytes), and larger images made smaller (pixels of the longer side).
MAX_UPLOAD, MAX_SIDE = 30 * 2**20, 1600


class Camera(Protocol):
    """A camera topic that is being watched; node/watch.py has the one of ROS."""

    def newest(self) -> np.ndarray | None:
        """The newest image since the last call, uint8 [H, W, 3], or None."""

    def close(self) -> None:
        """Stop."""


@dataclasses.dataclass
class Result:
    """What was found in one image."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    instances: list[Instance]  # down to LOWEST, best first
    seconds: float


class Engine:
    """The Segmenter in a thread of its own, so that the page goes on answering."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segmenter")
        self.objects = list(segmenter.objects)
        self.defaults = segmenter.settings

    async def segment(self, rgb: np.ndarray, objects: Sequence[str], steps: int, refine: bool) -> Result:
        """Segment one image for some of the objects."""

        def work() -> Result:
            self._segmenter.settings = dataclasses.replace(
                self.defaults, score_threshold=LOWEST, steps=steps, refine=refine
            )
            found = self._segmenter.segment(rgb, list(objects))
            return Result(rgb, list(found), self._segmenter.last_timings["total"])

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def denoising(self, rgb: np.ndarray, objects: Sequence[str]) -> list[np.ndarray]:
        """Pictures of the coarse masks after each step, uint8 [H, W, 3]."""

        def work() -> list[np.ndarray]:
            view, frames = self._segmenter.trace(rgb, TRACE_STEPS, list(objects))
            seen = view.sample(rgb)
            ids = [self.objects.index(name) + 1 for name in objects]
            return [draw.trace_frame(seen, frame, ids) for frame in frames]

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def data_uri(rgb: np.ndarray, quality: int = 88) -> str:
    """uint8 [H, W, 3] as a picture that a page can hold."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def read_upload(data: bytes) -> np.ndarray:
    """Pixels of an uploaded picture, upright, uint8 [H, W, 3]; raises ValueError with a sentence."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            upright.thumbnail((MAX_SIDE, MAX_SIDE))
            return np.asarray(upright)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"This is no image that can be read: {error}") from None


class Visit:
    """The page of one visitor."""

    def __init__(
        self, engine: Engine, thumbnails: dict[str, np.ndarray], watch: Callable[[str], Camera] | None
    ) -> None:
        self.engine, self.watch = engine, watch
        self.rgb: np.ndarray | None = None
        self.result: Result | None = None
        self.frames: list[np.ndarray] = []
        self.camera: Camera | None = None
        self.busy = False
        self.chosen = dict.fromkeys(engine.objects, True)
        self._build(thumbnails)

    # ------------------------------------------------------------------ layout

    def _build(self, thumbnails: dict[str, np.ndarray]) -> None:
        ui.colors(primary="#2f6f8f")
        with ui.header().classes("items-center py-2"):
            ui.label("ocdit preview").classes("text-lg font-medium")
            self.status = ui.label("Drop an image to begin.").classes("text-sm opacity-80")
            self.spinner = ui.spinner(color="white").classes("ml-auto")
            self.spinner.visible = False
        with ui.row().classes("w-full no-wrap items-start gap-6"):
            with ui.column().classes("w-80 shrink-0 gap-3"):
                self._build_input()
                self._build_objects(thumbnails)
                self._build_settings()
            with ui.column().classes("grow min-w-0 gap-3"):
                self.picture = ui.image().props("no-transition no-spinner").classes("w-full max-w-4xl rounded picture")
                self.picture.visible = False
                self._build_results()

    def _build_input(self) -> None:
        ui.upload(
            label="Image: drop or choose", auto_upload=True, max_files=1, max_file_size=MAX_UPLOAD,
            on_upload=self._uploaded, on_rejected=lambda: ui.notify("At most 30 MB, one file.", type="negative"),
        ).props("accept=image/* flat bordered").classes("w-full")  # fmt: skip
        if self.watch is not None:
            with ui.row().classes("w-full no-wrap items-center"):
                self.topic = ui.input("or camera topic", value="/camera/color/image_raw").classes("grow")
                ui.switch(on_change=self._watch).tooltip("Watch the topic")

    def _build_objects(self, thumbnails: dict[str, np.ndarray]) -> None:
        with ui.row().classes("w-full items-center justify-between"):
            ui.label(f"Objects ({len(self.engine.objects)})").classes("font-medium")
            with ui.row().classes("gap-1"):
                ui.button("all", on_click=lambda: self._choose(True)).props("flat dense size=sm")
                ui.button("none", on_click=lambda: self._choose(False)).props("flat dense size=sm")
        self.boxes = {}
        with ui.scroll_area().classes("w-full h-64 border rounded"), ui.column().classes("gap-0"):
            for number, name in enumerate(self.engine.objects, 1):
                with ui.row().classes("w-full no-wrap items-center gap-2"):
                    self.boxes[name] = ui.checkbox(value=True, on_change=self._chose).props("dense")
                    if name in thumbnails:
                        ui.image(data_uri(thumbnails[name])).classes("w-10 h-10 rounded")
                    red, green, blue = draw.colour(number)
                    ui.element("div").classes("w-2 h-6 rounded").style(f"background: rgb({red},{green},{blue})")
                    ui.label(name).classes("text-sm truncate")

    def _build_settings(self) -> None:
        settings = self.engine.defaults
        with ui.row().classes("w-full no-wrap items-center"):
            ui.label("Threshold").classes("w-20 text-sm")
            self.threshold = ui.slider(min=0.02, max=1.0, step=0.01, value=settings.score_threshold,
                                       on_change=self._draw).props("label")  # fmt: skip
            ui.label().bind_text_from(self.threshold, "value", lambda v: f"{v:.2f}").classes("w-10 text-sm")
        with ui.row().classes("w-full no-wrap items-center"):
            ui.label("Steps").classes("w-20 text-sm")
            self.steps = ui.slider(min=1, max=20, step=1, value=settings.steps).props("label")
            ui.label().bind_text_from(self.steps, "value").classes("w-10 text-sm")
        self.refine = ui.switch("Second look at enlarged crops", value=settings.refine).classes("text-sm")
        with ui.row().classes("w-full no-wrap"):
            ui.button("Segment", icon="search", on_click=self._segment).classes("grow")
            ui.button("Denoising", icon="animation", on_click=self._denoise).props("outline")

    def _build_results(self) -> None:
        columns = [
            {"name": key, "label": key, "field": key, "align": "left" if key == "object" else "right"}
            for key in ("object", "score", "box", "pixels")
        ]
        self.table = ui.table(columns=columns, rows=[], row_key="number").classes("w-full max-w-4xl")
        self.table.visible = False
        with ui.card().classes("w-full max-w-4xl film") as self.film:
            ui.label("The coarse masks as they emerge from noise").classes("font-medium")
            self.frame = ui.image().props("no-transition no-spinner").classes("w-full rounded")
            with ui.row().classes("w-full no-wrap items-center"):
                self.play = ui.switch("play", value=True)
                self.step = ui.slider(min=1, max=TRACE_STEPS, step=1, value=1, on_change=self._show_frame)
                self.step.props("label markers")
        self.film.visible = False
        self.clock = ui.timer(0.35, self._tick)

    # ------------------------------------------------------------------ what the visitor does

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        data = await event.file.read()
        event.sender.reset()  # else it takes no second file
        try:
            self.rgb = read_upload(data)
        except ValueError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        await self._segment()

    def _choose(self, value: bool) -> None:
        for box in self.boxes.values():
            box.value = value

    def _chose(self) -> None:
        self.chosen = {name: bool(box.value) for name, box in self.boxes.items()}

    def _names(self) -> list[str]:
        return [name for name, chosen in self.chosen.items() if chosen]

    def _watch(self, event: events.ValueChangeEventArguments) -> None:
        self.stop()
        if event.value and self.watch is not None:
            try:
                self.camera = self.watch(self.topic.value)
            except Exception as error:  # a name that ROS does not accept
                ui.notify(f"{self.topic.value}: {error}", type="negative")
                event.sender.value = False
                return
            self.status.text = f"Waiting for images on {self.topic.value}."

    def stop(self) -> None:
        """Let the camera go."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None

    async def _segment(self) -> None:
        names = self._names()
        if self.rgb is None or not names or self.busy:
            if not self.busy:
                ui.notify("Choose an object." if self.rgb is not None else "Give an image first.")
            return
        self._work(True)
        self.film.visible = False
        try:
            self.result = await self.engine.segment(self.rgb, names, int(self.steps.value), bool(self.refine.value))
        finally:
            self._work(False)
        self._draw()

    async def _denoise(self) -> None:
        names = self._names()
        if self.rgb is None or not names or self.busy:
            ui.notify("Give an image and choose an object first.")
            return
        self._work(True)
        try:
            self.frames = await self.engine.denoising(self.rgb, names)
        finally:
            self._work(False)
        self.step.value = 1
        self.film.visible = True
        self._show_frame()

    def _work(self, busy: bool) -> None:
        self.busy = self.spinner.visible = busy

    # ------------------------------------------------------------------ what the visitor sees

    def _draw(self) -> None:
        if self.result is None:
            return
        found = [one for one in self.result.instances if one.score >= self.threshold.value]
        self.picture.set_source(data_uri(draw.overlay(self.result.rgb, found)))
        self.picture.visible = self.table.visible = True
        self.table.rows = [
            {
                "number": number,
                "object": one.name,
                "score": f"{one.score:.2f}",
                "box": " ".join(str(round(v)) for v in one.box),
                "pixels": int(one.mask.sum()),
            }
            for number, one in enumerate(found)
        ]
        hidden = len(self.result.instances) - len(found)
        more = f", {hidden} more below the threshold" if hidden else ""
        self.status.text = f"{len(found)} found in {self.result.seconds:.2f} s{more}"

    def _show_frame(self) -> None:
        if self.frames:
            self.frame.set_source(data_uri(self.frames[min(int(self.step.value), len(self.frames)) - 1], 80))

    async def _tick(self) -> None:
        if self.film.visible and self.play.value and self.frames:
            self.step.value = self.step.value % len(self.frames) + 1
        if self.camera is not None and not self.busy and (newest := self.camera.newest()) is not None:
            self.rgb = newest
            await self._segment()


def build(segmenter: Segmenter, thumbnails: dict[str, np.ndarray], watch: Callable[[str], Camera] | None) -> None:
    """Make the page; `ui.run` serves it."""
    engine = Engine(segmenter)

    @ui.page("/", title="ocdit preview")
    def page() -> None:
        visit = Visit(engine, thumbnails, watch)
        ui.context.client.on_disconnect(visit.stop)


def serve(segmenter: Segmenter, thumbnails: dict[str, np.ndarray], host: str, port: int) -> None:
    """Serve the page until it is stopped; `thumbnails` has uint8 [S, S, 3] by object."""
    watch: Callable[[str], Camera] | None = None
    if importlib.util.find_spec("rclpy") is not None:
        watch = importlib.import_module("ocdit_ros.node.watch").watch
    build(segmenter, thumbnails, watch)
    app.on_startup(lambda: print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True))
    ui.run(host=host, port=port, show=False, reload=False, favicon="🔍", show_welcome_message=False)
