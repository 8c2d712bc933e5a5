# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Mailbox: the newest wins, memory stays constant. Worker: jobs first, one thread, ends when told."""

import concurrent.futures
import itertools
import threading
import time

import pytest

from ocdit_ros.node.worker import Mailbox, Worker


@pytest.fixture
def worker():
    made = []

    def make(handle=lambda item: None, senders=1):
        made.append(Worker(lambda items: [handle(item) for item in items], senders))
        return made[-1]

    yield make
    for one in made:
        assert one.stop(10)


def test_the_newest_item_wins():
    mailbox = Mailbox()
    assert mailbox.put("camera", 1) is None
    assert [mailbox.put("camera", n) for n in range(2, 100)] == list(range(1, 99))
    assert len(mailbox) == 1
    assert mailbox.take() == ("camera", 99)
    assert len(mailbox) == 0


def test_cameras_are_served_in_turn_however_often_one_of_them_sends():
    mailbox = Mailbox()
    mailbox.put("slow", "s1")
    for n in range(50):
        mailbox.put("fast", f"f{n}")
    assert mailbox.take() == ("slow", "s1")
    mailbox.put("slow", "s2")
    assert mailbox.take() == ("fast", "f49")
    assert mailbox.take() == ("slow", "s2")


def test_take_waits_for_an_item_and_gives_up_after_the_timeout():
    mailbox = Mailbox()
    assert mailbox.take(timeout=0.01) is None
    threading.Timer(0.05, mailbox.put, ("camera", 7)).start()
    assert mailbox.take(timeout=10) == ("camera", 7)


def test_close_wakes_the_reader_and_refuses_items():
    mailbox = Mailbox()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(mailbox.take)
        mailbox.close()
        assert waiting.result(10) is None
    assert mailbox.put("camera", 1) == 1
    assert len(mailbox) == 0


def test_clear_says_what_was_waiting():
    mailbox = Mailbox()
    mailbox.put("left", 1)
    mailbox.put("right", 2)
    assert mailbox.clear() == [1, 2]
    assert mailbox.take_nowait() is None


def test_frames_that_wait_are_replaced_while_one_is_handled(worker):
    started, go_on, handled = threading.Event(), threading.Event(), []

    def handle(item):
        handled.append(item)
        started.set()
        assert go_on.wait(10)

    one = worker(handle)
    one.mailbox.put("camera", 0)
    assert started.wait(10)
    for n in range(1, 30):
        one.mailbox.put("camera", n)
    go_on.set()
    one.submit(lambda: None).result(10)
    while len(one.mailbox):
        time.sleep(0.01)
    one.submit(lambda: None).result(10)
    assert handled == [0, 29]


def test_jobs_run_in_order_after_the_item_in_hand_and_before_waiting_ones(worker):
    started, go_on, done = threading.Event(), threading.Event(), []

    def handle(item):
        started.set()
        assert go_on.wait(10)
        done.append(item)

    one = worker(handle)
    one.mailbox.put("left", "frame in hand")
    assert started.wait(10)
    one.mailbox.put("right", "waiting frame")
    jobs = [one.submit(lambda n=n: done.append(f"job {n}")) for n in range(3)]
    go_on.set()
    concurrent.futures.wait(jobs, 10)
    while len(done) < 5:
        time.sleep(0.01)
    assert done == ["frame in hand", "job 0", "job 1", "job 2", "waiting frame"]


def test_everything_runs_in_one_thread(worker):
    threads = set()
    one = worker(lambda item: threads.add(threading.get_ident()))
    one.submit(lambda: threads.add(threading.get_ident())).result(10)
    one.mailbox.put("camera", 1)
    while len(one.mailbox):
        time.sleep(0.01)
    one.submit(lambda: None).result(10)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_error_of_a_job_reaches_the_one_who_waits_and_nobody_else(worker):
    one = worker()
    with pytest.raises(ZeroDivisionError):
        one.submit(lambda: 1 / 0).result(10)
    assert one.submit(lambda: 42).result(10) == 42


def test_an_error_of_the_handler_is_logged_and_the_thread_goes_on(worker, caplog):
    handled = []

    def handle(item):
        handled.append(item)
        raise ValueError(f"cannot handle {item}")

    one = worker(handle)
    for item in (1, 2):
        one.mailbox.put("camera", item)
        while len(one.mailbox):
            time.sleep(0.01)
        one.submit(lambda: None).result(10)
    assert handled == [1, 2]
    assert "cannot handle 2" in caplog.text


def test_min_period_limits_the_rate_and_keeps_the_newest(worker):
    handled = []
    one = worker(lambda item: handled.append((time.monotonic(), item)))
    one.min_period = 0.2
    begin = time.monotonic()
    n = 0
    while time.monotonic() - begin < 1.1:
        one.mailbox.put("camera", n)
        n += 1
        time.sleep(0.01)
    starts = [t for t, _ in handled]
    assert 2 <= len(handled) <= 6  # one at once, then one in 0.2 s; a busy machine may miss some
    assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(starts))
    items = [item for _, item in handled]
    assert items == sorted(items)


def test_lifting_min_period_takes_effect_at_once(worker):
    handled = threading.Event()
    one = worker(lambda item: handled.set())
    one.min_period = 1000.0
    one.mailbox.put("camera", 1)
    assert handled.wait(10)
    handled.clear()
    one.mailbox.put("camera", 2)
    assert not handled.wait(0.1)
    one.min_period = 0.0
    assert handled.wait(10)


def test_stop_finishes_the_item_in_hand_and_cancels_jobs(worker):
    started, go_on, handled = threading.Event(), threading.Event(), []

    def handle(item):
        started.set()
        assert go_on.wait(10)
        handled.append(item)

    one = worker(handle)
    one.mailbox.put("camera", "in hand")
    assert started.wait(10)
    job = one.submit(lambda: handled.append("job"))
    one.mailbox.put("camera", "waiting")
    assert one.stop(0.05) is False
    assert job.cancelled()
    go_on.set()
    assert one.stop(10) is True
    assert handled == ["in hand"]
    assert one.submit(lambda: None).cancelled()
    assert one.mailbox.put("camera", "late") == "late"


def test_no_thread_is_left_after_stop(worker):
    before = threading.active_count()
    many = [worker() for _ in range(20)]
    assert threading.active_count() == before + 20
    assert all(one.stop(10) for one in many)
    assert threading.active_count() == before


def test_the_last_item_is_not_kept_alive(worker):
    import gc
    import weakref

    class Frame:
        pass

    one = worker()
    frame = Frame()
    reference = weakref.ref(frame)
    one.mailbox.put("camera", frame)
    del frame
    while len(one.mailbox):
        time.sleep(0.01)
    one.submit(lambda: None).result(10)
    gc.collect()
    assert reference() is None


def test_what_waited_is_handled_together_with_the_newest_of_each_sender():
    started, go_on, handled = threading.Event(), threading.Event(), []

    def handle(items):
        handled.append(items)
        started.set()
        assert go_on.wait(10)

    one = Worker(handle, senders=3)
    try:
        one.mailbox.put("left", 0)
        assert started.wait(10)
        for n in range(1, 5):
            one.mailbox.put("left", f"left {n}")
            one.mailbox.put("right", f"right {n}")
        go_on.set()
        while len(one.mailbox):
            time.sleep(0.01)
        one.submit(lambda: None).result(10)
        assert handled == [[0], ["left 4", "right 4"]]
    finally:
        assert one.stop(10)


def test_an_item_waits_for_those_of_the_others_but_not_for_ever():
    handled = []
    one = Worker(lambda items: handled.append((time.monotonic(), items)), senders=2)
    try:
        one.gather = 60.0
        one.mailbox.put("left", "l")
        time.sleep(0.2)
        assert handled == []
        one.mailbox.put("right", "r")  # all are there: nothing to wait for
        while not handled:
            time.sleep(0.01)
        assert handled[0][1] == ["l", "r"]
        one.gather = 0.3
        put = time.monotonic()
        one.mailbox.put("right", "alone")
        while len(handled) < 2:
            time.sleep(0.01)
        assert handled[1][1] == ["alone"]
        assert handled[1][0] - put >= 0.29
        one.gather = 60.0
        one.mailbox.put("left", "late")
        time.sleep(0.1)
        one.gather = 0.0  # a change wakes the thread
        while len(handled) < 3:
            time.sleep(0.01)
    finally:
        assert one.stop(10)


def test_one_sender_never_waits():
    handled = threading.Event()
    one = Worker(lambda items: handled.set())
    try:
        one.gather = 60.0
        one.mailbox.put("camera", 1)
        assert handled.wait(10)
    finally:
        assert one.stop(10)
