# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""How the process of a node ends: on a signal, and with its starter, for launch leaves its nodes running when it gets
SIGTERM or is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

#: prctl(2): the signal that a process gets when the thread that made it ends.
_PR_SET_PDEATHSIG = 1


class Asked:
    """Whether something has been asked for, by a signal for example: setting it takes no lock, and so cannot wait for
    the thread that it interrupts, as `threading.Event.set` can.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """It has been asked for."""
        self._set = True

    def is_set(self) -> bool:
        """Whether it has."""
        return self._set

    def wait(self) -> None:
        """Until it has.

        Looks ten times a second: the kernel may hand a signal to any thread of the process, and Python, whose handlers
        run in the main thread alone, does not wake that from a wait without end.
        """
        while not self._set:
            time.sleep(0.1)


def asked_to_end() -> Asked:
    """Set by SIGINT or SIGTERM from now on, which do nothing else; for the main thread.

    Give `rclpy.init` SignalHandlerOptions.NO: its own handlers end the context, in a thread of their own, under the
    feet of the callbacks and of whatever is waiting.
    """
    stop = Asked()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def end_with(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """From now on, this process gets signal `number` when its parent, process `parent`, ends; Linux only.

    The parent may have ended before: then the signal comes at once. Elsewhere than on Linux nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library or no prctl: not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
