# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the node tells of itself."""

import time

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from ocdit_ros.node import diagnostics
from ocdit_ros.node.diagnostics import Statistics, diagnostics_message


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(diagnostics.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_counters_and_latencies(clock):
    statistics = Statistics(window=3)
    for latency in (9.0, 0.1, 0.2, 0.4):
        clock.now += 0.5
        statistics.frame_received()
        statistics.frame_processed({"segment": latency, "publish": 0.001})
    statistics.frames_replaced(2)
    statistics.frame_failed("image dropped: no such encoding")
    values = statistics.values()
    assert values["frames received"] == "4"
    assert values["frames processed"] == "4"
    assert values["frames dropped (newer one arrived)"] == "2"
    assert values["frames failed"] == "1"
    assert values["latency segment median [ms]"] == "200.0"  # the first has left the window
    assert values["latency segment max [ms]"] == "400.0"
    assert values["latency publish median [ms]"] == "1.0"
    assert values["last error"] == "image dropped: no such encoding"


def test_the_rate_is_that_of_the_window_and_fades_when_the_camera_stops(clock):
    statistics = Statistics(window=10)
    for _ in range(30):
        clock.now += 0.1
        statistics.frame_received()
    assert float(statistics.values()["input rate [Hz]"]) == pytest.approx(10.0, rel=0.02)
    assert statistics.values()["output rate [Hz]"] == "0.00"
    clock.now += 99.0
    assert float(statistics.values()["input rate [Hz]"]) < 0.2


def test_reset_forgets_everything(clock):
    statistics = Statistics()
    statistics.frame_received()
    statistics.frame_failed("a")
    statistics.reset()
    assert statistics.values()["frames received"] == "0"
    assert statistics.values()["last error"] == ""
    assert statistics.error_age() == float("inf")


def test_the_message_is_an_error_only_while_the_error_is_fresh(clock):
    statistics = Statistics()

    def status():
        message = diagnostics_message(
            Time(sec=3), "node: segmentation", "cpu", "active", statistics, {"mode": "stream"}
        )
        assert message.header.stamp.sec == 3
        return message.status[0]

    assert (status().level, status().message) == (DiagnosticStatus.OK, "active")
    statistics.error("no such encoding")
    assert (status().level, status().message) == (DiagnosticStatus.ERROR, "no such encoding")
    clock.now += 6.0
    assert (status().level, status().message) == (DiagnosticStatus.OK, "active")
    values = {value.key: value.value for value in status().values}
    assert values["last error"] == "no such encoding"
    assert values["mode"] == "stream"
    assert status().name == "node: segmentation"
    assert status().hardware_id == "cpu"


def test_memory_of_this_process_is_told():
    values = diagnostics.memory()
    assert 10 < float(values["process memory [MiB]"]) < 1e6


def test_counting_is_safe_from_many_threads():
    import threading

    statistics = Statistics()

    def work():
        for _ in range(500):
            statistics.frame_received()
            statistics.frame_processed({"segment": 0.1})
            statistics.values()

    threads = [threading.Thread(target=work) for _ in range(4)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - begin < 60
    assert statistics.values()["frames processed"] == "2000"
