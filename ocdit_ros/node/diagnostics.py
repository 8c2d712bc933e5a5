# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the node tells `/diagnostics`: rates, latencies, dropped frames, memory, what is wrong and what to do."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

#: How many frames the watch on scores compares: the last ones, with so many before them.
RECENT, BEFORE = 20, 200


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong: a sentence with the cause and what to do."""

    text: str
    error: bool = False  # else a warning


class Statistics:
    """Counters and latencies; any thread may add to them."""

    def __init__(self, window: int = 50) -> None:
        """`window` is how many frames the latencies and the rate look back on."""
        self._lock = threading.Lock()
        self._window = window
        self.reset()

    def reset(self) -> None:
        """Back to nothing, at configure."""
        with self._lock:
            self.received = self.processed = self.replaced = self.failed = self.batches = self.full = 0
            self.unheard = 0
            self.last_full = True
            self._latencies: dict[str, deque[float]] = {}
            self._arrived: deque[float] = deque(maxlen=self._window)
            self._done: deque[float] = deque(maxlen=self._window)
            self._heard: dict[str, float] = {}  # when each camera was last heard
            self._scores: deque[float] = deque(maxlen=RECENT + BEFORE)
            self._working_since: float | None = None
            self.lost = ""
            self.last_error = ""
            self._last_error_time = -float("inf")

    def listening(self, cameras: Sequence[str]) -> None:
        """From now on frames of these cameras are waited for; of none: nobody listens."""
        with self._lock:
            self._heard = dict.fromkeys(cameras, time.monotonic())
            self._scores.clear()

    def frame_received(self, camera: str = "") -> None:
        """A frame arrived."""
        with self._lock:
            now = time.monotonic()
            self.received += 1
            self._arrived.append(now)
            if camera in self._heard:
                self._heard[camera] = now

    def working(self, begun: bool) -> None:
        """The frames in hand were taken up, or are done with."""
        with self._lock:
            self._working_since = time.monotonic() if begun else None

    def frames_replaced(self, count: int = 1) -> None:
        """Frames were dropped: a newer one arrived before it was their turn, or the node was deactivated."""
        with self._lock:
            self.replaced += count

    def frame_unheard(self) -> None:
        """A frame was left out because nobody listens to results."""
        with self._lock:
            self.unheard += 1

    def batch_segmented(self) -> None:
        """The network was done with the frames that it saw together."""
        with self._lock:
            self.batches += 1

    def frame_segmented(self, full: bool) -> None:
        """Of a stream: whether a frame was segmented in full or continues the last one."""
        with self._lock:
            self.full += full
            self.last_full = full

    def frame_processed(self, seconds: Mapping[str, float], best: float = 0.0) -> None:
        """Results were published: the time that each stage took, by name, and the best score, 0 without any."""
        with self._lock:
            self.processed += 1
            self._scores.append(best)
            self._done.append(time.monotonic())
            for stage, value in seconds.items():
                self._latencies.setdefault(stage, deque(maxlen=self._window)).append(value)

    def frame_failed(self, reason: str) -> None:
        """A frame could not be processed."""
        with self._lock:
            self.failed += 1
        self.error(reason)

    def error(self, reason: str) -> None:
        """Remember an error."""
        with self._lock:
            self.last_error = reason
            self._last_error_time = time.monotonic()

    def device_lost(self, reason: str) -> None:
        """The device will not work again in this process."""
        with self._lock:
            self.lost = reason

    def troubles(self, no_frames: float, latency: float, scores: float, names: Mapping[str, str]) -> list[Trouble]:
        """What the watchdogs see; each bound is off at 0.

        Args:
            no_frames: seconds without a frame of a camera.
            latency: seconds from the arrival of a frame to its result.
            scores: share of the usual best score of a frame.
            names: topic of each camera.
        """
        found = []
        with self._lock:
            now = time.monotonic()
            if self.lost:
                found.append(Trouble(self.lost, error=True))
            for camera, heard in self._heard.items():
                if no_frames and now - heard > no_frames:
                    topic = names.get(camera, camera)
                    found.append(
                        Trouble(
                            f"no image on {topic} for {now - heard:.0f} s: is the camera running, and does it publish "
                            f"there (ros2 topic info -v {topic})?"
                        )
                    )
            advice = "lower steps, ensemble, augmentations or coarse_size, or look for fewer objects"
            times = self._latencies.get("total")
            if latency and self._working_since is not None and now - self._working_since > latency:
                taken = now - self._working_since
                found.append(Trouble(f"the frame in hand has taken {taken:.1f} s, more than {latency:g} s: {advice}"))
            elif latency and times and statistics.median(times) > latency:
                taken = statistics.median(times)
                found.append(Trouble(f"a frame takes {taken:.1f} s, more than {latency:g} s: {advice}"))
            best = list(self._scores)
            if scores and len(best) >= 2 * RECENT:
                recent, usual = statistics.median(best[-RECENT:]), statistics.median(best[:-RECENT])
                if recent < scores * usual:
                    found.append(
                        Trouble(
                            f"the best score of a frame fell from {usual:.2f} to {recent:.2f}: are the objects in "
                            "view, has the light, the focus or the exposure changed, is the lens clean?"
                        )
                    )
        return found

    def error_age(self) -> float:
        """Seconds since the last error; infinite if there was none."""
        with self._lock:
            return time.monotonic() - self._last_error_time

    def values(self) -> dict[str, str]:
        """Everything as text, for a DiagnosticStatus."""
        with self._lock:
            values = {
                "input rate [Hz]": _rate(self._arrived),
                "output rate [Hz]": _rate(self._done),
                "frames received": str(self.received),
                "frames processed": str(self.processed),
                "frames dropped (newer one arrived)": str(self.replaced),
                "frames left out (nobody listens)": str(self.unheard),
                "frames failed": str(self.failed),
                "batches segmented": str(self.batches),
                "frames segmented in full": str(self.full),
                "last frame": "segmented in full" if self.last_full else "continued the one before",
            }
            for stage, latencies in self._latencies.items():
                values[f"latency {stage} median [ms]"] = f"{1e3 * statistics.median(latencies):.1f}"
                values[f"latency {stage} max [ms]"] = f"{1e3 * max(latencies):.1f}"
            values["last error"] = self.last_error
            return values


def _rate(times: deque[float]) -> str:
    """Mean rate; the time since the last event counts, so that a stopped camera fades to zero."""
    if len(times) < 2:
        return "0.00"
    span = max(times[-1] - times[0], (time.monotonic() - times[0]) * (len(times) - 1) / len(times))
    return f"{(len(times) - 1) / span:.2f}" if span > 0 else "0.00"


def memory() -> dict[str, str]:
    """Resident memory of the process, and what PyTorch holds on the GPU if it uses one."""
    values = {}
    try:
        with open("/proc/self/statm") as file:
            values["process memory [MiB]"] = f"{int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f}"
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    # Looked up, not imported: this must not make a GPU context, and another thread may be importing torch right now.
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if hasattr(cuda, "memory_allocated") and cuda.is_initialized():
        values["device memory [MiB]"] = f"{cuda.memory_allocated() / 2**20:.0f}"
    return values


def diagnostics_message(
    stamp: Any,
    name: str,
    hardware_id: str,
    state: str,
    statistics_: Statistics,
    extra: Mapping[str, str],
    troubles: Sequence[Trouble] = (),
) -> DiagnosticArray:
    """The whole message; `state`: of the lifecycle.

    ERROR while the last error is at most 5 s old or one of the troubles is one, WARN with other troubles.
    """
    values = {"lifecycle state": state, **extra, **statistics_.values(), **memory()}
    if statistics_.error_age() <= 5.0:
        troubles = [Trouble(statistics_.last_error, error=True), *troubles]
    level = DiagnosticStatus.WARN if troubles else DiagnosticStatus.OK
    if any(trouble.error for trouble in troubles):
        level = DiagnosticStatus.ERROR
    status = DiagnosticStatus(
        level=level,
        name=name,
        hardware_id=hardware_id,
        message="; ".join(dict.fromkeys(trouble.text for trouble in troubles)) or state,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp
    return message
