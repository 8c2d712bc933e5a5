# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The one thread that touches the model, and the mailbox in front of it, in which the newest frame wins."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """One slot per sender. A new item replaces the one still waiting in its slot; senders are served in turn.

    So a slow reader always gets the newest frame of a camera, memory stays constant, and no camera starves
    another.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.since = 0.0  # monotonic time in s since which anything has been waiting; of no meaning when empty
        self._slots: OrderedDict[Hashable, Item] = OrderedDict()
        self._closed = False

    def put(self, sender: Hashable, item: Item) -> Item | None:
        """Leave an item. Returns the one that nobody will read: that it replaced, or itself once closed."""
        with self.changed:
            if self._closed:
                return item
            replaced = self._slots.get(sender)
            if not self._slots:
                self.since = time.monotonic()
            self._slots[sender] = item  # keeps the sender's place in the queue
            self.changed.notify_all()
            return replaced

    def take(self, timeout: float | None = None) -> tuple[Any, Item] | None:
        """Sender and item that waited longest; None after `timeout` seconds or when closed and empty."""
        with self.changed:
            self.changed.wait_for(lambda: self._slots or self._closed, timeout)
            return self.take_nowait()

    def take_nowait(self) -> tuple[Any, Item] | None:
        """As `take`, without waiting."""
        with self.changed:
            return self._slots.popitem(last=False) if self._slots else None

    def clear(self) -> list[Item]:
        """Empty all slots; returns what was in them."""
        with self.changed:
            items = list(self._slots.values())
            self._slots.clear()
            return items

    def close(self) -> list[Item]:
        """Refuse further items and wake the reader; returns what was still waiting."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
            return self.clear()

    def __len__(self) -> int:
        with self.changed:
            return len(self._slots)


class Worker(Generic[Item]):
    """A thread that runs jobs in order and, when there is none, handles the newest items of the mailbox together.

    Everything that touches the model runs here, so it needs no lock, and a CUDA context or a thread pool is
    made once.
    """

    def __init__(self, handle: Callable[[list[Item]], None], senders: int = 1, name: str = "segmenter") -> None:
        """`handle` gets the newest item of every sender that has one, at least one in all.

        An error that it lets out is logged, and the thread goes on. `senders` is how many there are: while not all
        of them have sent, the others' items wait for `gather` seconds.
        """
        self.mailbox: Mailbox[Item] = Mailbox()
        self._handle = handle
        self._jobs: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._senders = senders
        self._stopping = False
        self._gather = 0.0
        self._min_period = 0.0
        self._next_start = 0.0
        # A daemon: a frame that is being computed cannot be interrupted, and must not keep a stopped process
        # alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def gather(self) -> float:
        """How long in seconds an item waits for those of the other senders, so that they are handled together."""
        return self._gather

    @gather.setter
    def gather(self, seconds: float) -> None:
        with self.mailbox.changed:
            self._gather = seconds
            self.mailbox.changed.notify_all()

    @property
    def min_period(self) -> float:
        """Least time in seconds between the starts of two batches; of what arrives meanwhile, the newest."""
        return self._min_period

    @min_period.setter
    def min_period(self, seconds: float) -> None:
        with self.mailbox.changed:
            self._next_start += seconds - self._min_period
            self._min_period = seconds
            self.mailbox.changed.notify_all()

    def submit(self, job: Callable[[], Any]) -> Future:
        """Run `job` on the thread, after the item in hand and before waiting ones."""
        future: Future = Future()
        with self.mailbox.changed:
            if self._stopping:
                future.cancel()
            else:
                self._jobs.append((future, job))
                self.mailbox.changed.notify_all()
        return future

    def on_thread(self) -> bool:
        """Whether the caller is this worker's thread."""
        return threading.current_thread() is self._thread

    def stop(self, timeout: float | None = None) -> bool:
        """Finish the item or job in hand, drop the rest, end. False if it is still busy after `timeout`."""
        with self.mailbox.changed:
            self._stopping = True
            jobs, self._jobs = self._jobs, deque()
            self.mailbox.close()
        for future, _ in jobs:
            future.cancel()
        if self.on_thread():
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _due(self) -> float | None:
        """When the waiting items are to be handled; None while there are none."""
        waiting = len(self.mailbox)
        if not waiting:
            return None
        return max(self._next_start, self.mailbox.since + self._gather) if waiting < self._senders else self._next_start

    def _next(self) -> tuple[Future | None, Any] | None:
        with self.mailbox.changed:
            while not self._stopping:
                if self._jobs:
                    return self._jobs.popleft()
                due, now = self._due(), time.monotonic()
                if due is not None and due <= now:
                    self._next_start = now + self._min_period
                    return None, self.mailbox.clear()
                self.mailbox.changed.wait(None if due is None else due - now)
            return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            future, what = work
            if future is None:
                try:
                    self._handle(what)
                except Exception:
                    log.exception("The handler of a frame raised an error that it should have dealt with.")
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(what())
                except BaseException as error:  # the one who waits for the future gets it
                    future.set_exception(error)
            del work, what  # do not keep the last frame or closure alive while waiting
