# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the node tells `/diagnostics`: rates, latencies, dropped frames, memory, catalogue, last error."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue


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
            self.received = self.processed = self.replaced = self.failed = self.batches = 0
            self._latencies: dict[str, deque[float]] = {}
            self._arrived: deque[float] = deque(maxlen=self._window)
            self._done: deque[float] = deque(maxlen=self._window)
            self.last_error = ""
            self._last_error_time = -float("inf")

    def frame_received(self) -> None:
        """A frame arrived."""
        with self._lock:
            self.received += 1
            self._arrived.append(time.monotonic())

    def frames_replaced(self, count: int = 1) -> None:
        """Frames were dropped: a newer one arrived before it was their turn, or the node was deactivated."""
        with self._lock:
            self.replaced += count

    def batch_segmented(self) -> None:
        """The network was done with the frames that it saw together."""
        with self._lock:
            self.batches += 1

    def frame_processed(self, seconds: Mapping[str, float]) -> None:
        """Results were published; the time that each stage took, by name."""
        with self._lock:
            self.processed += 1
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
                "frames failed": str(self.failed),
                "batches segmented": str(self.batches),
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
    stamp: Any, name: str, hardware_id: str, state: str, statistics_: Statistics, extra: Mapping[str, str]
) -> DiagnosticArray:
    """The whole message: ERROR while the last error is at most 5 s old; `state`: of the lifecycle."""
    values = {"lifecycle state": state, **extra, **statistics_.values(), **memory()}
    failing = statistics_.error_age() <= 5.0
    status = DiagnosticStatus(
        level=DiagnosticStatus.ERROR if failing else DiagnosticStatus.OK,
        name=name,
        hardware_id=hardware_id,
        message=statistics_.last_error if failing else state,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp
    return message
