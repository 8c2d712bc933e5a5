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


def troubles(statistics, no_frames=0.0, latency=0.0, scores=0.0):
    return [trouble.text for trouble in statistics.troubles(no_frames, latency, scores, {"left": "/left/image"})]


def test_a_camera_that_is_silent_is_named_while_somebody_listens(clock):
    statistics = Statistics()
    clock.now += 100
    assert troubles(statistics, no_frames=5.0) == []  # nobody listens
    statistics.listening(["left", "right"])
    clock.now += 4.9
    statistics.frame_received("left")
    clock.now += 0.2
    (text,) = troubles(statistics, no_frames=5.0)
    assert text.startswith("no image on right for 5 s")
    assert troubles(statistics) == []
    statistics.frame_received("right")
    assert troubles(statistics, no_frames=5.0) == []
    clock.now += 5.1
    assert [text.split()[3] for text in troubles(statistics, no_frames=5.0)] == ["/left/image", "right"]
    statistics.frame_received("a camera of the time before")
    statistics.listening([])
    assert troubles(statistics, no_frames=5.0) == []


def test_latency_counts_the_median_and_the_frame_in_hand(clock):
    statistics = Statistics(window=5)
    for total in (0.1, 0.1, 9.0):
        statistics.frame_processed({"total": total})
    assert troubles(statistics, latency=1.0) == []
    for _ in range(3):
        statistics.frame_processed({"total": 1.5})
    (text,) = troubles(statistics, latency=1.0)
    assert text.startswith("a frame takes 1.5 s, more than 1 s: lower steps")
    assert troubles(statistics) == []
    statistics.working(True)
    clock.now += 7
    (text,) = troubles(statistics, latency=2.0)
    assert text.startswith("the frame in hand has taken 7.0 s, more than 2 s")
    statistics.working(False)
    assert troubles(statistics, latency=2.0) == []


@pytest.mark.parametrize(
    "before, after, told", [(0.9, 0.3, True), (0.9, 0.5, False), (0.9, 0.0, True), (0.0, 0.0, False)]
)
def test_scores_that_fall_are_told(clock, before, after, told):
    statistics = Statistics()
    for _ in range(diagnostics.RECENT):
        statistics.frame_processed({}, before)
    for _ in range(diagnostics.RECENT):
        assert troubles(statistics, scores=0.5) == []  # too little is known
        statistics.frame_processed({}, after)
    found = troubles(statistics, scores=0.5)
    assert bool(found) == told
    if told:
        assert found[0].startswith(f"the best score of a frame fell from {before:.2f} to {after:.2f}")
    assert troubles(statistics) == []
    statistics.listening(["left"])  # another scene, another beginning
    assert troubles(statistics, scores=0.5) == []


def test_levels_of_troubles():
    def status(statistics, *found):
        return diagnostics_message(Time(), "node", "cpu", "active", statistics, {}, found).status[0]

    statistics = Statistics()
    warning, error = diagnostics.Trouble("the lens is dirty"), diagnostics.Trouble("the device was lost", error=True)
    assert (status(statistics).level, status(statistics).message) == (DiagnosticStatus.OK, "active")
    one = status(statistics, warning)
    assert (one.level, one.message) == (DiagnosticStatus.WARN, "the lens is dirty")
    one = status(statistics, warning, error)
    assert (one.level, one.message) == (DiagnosticStatus.ERROR, "the lens is dirty; the device was lost")
    statistics.error("the device was lost")
    assert status(statistics, error).message == "the device was lost"
    statistics.device_lost("gone")
    assert [(t.text, t.error) for t in statistics.troubles(0, 0, 0, {})] == [("gone", True)]
    statistics.reset()
    assert statistics.troubles(0, 0, 0, {}) == []


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
