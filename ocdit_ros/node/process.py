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
import threading

#: prctl(2): the signal that a process gets when the thread that made it ends.
_PR_SET_PDEATHSIG = 1


def asked_to_end() -> threading.Event:
    """Set by SIGINT or SIGTERM from now on, which do nothing else; for the main thread.

    Give `rclpy.init` SignalHandlerOptions.NO: its own handlers end the context, in a thread of their own, under the
    feet of the callbacks and of whatever is waiting.
    """
    stop = threading.Event()
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
