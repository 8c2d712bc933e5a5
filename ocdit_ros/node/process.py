# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The end of a node whose starter is gone: launch leaves its nodes running when it gets SIGTERM or is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

#: prctl(2): the signal that a process gets when the thread that made it ends.
_PR_SET_PDEATHSIG = 1


def end_with(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """From now on, this process gets signal `number` when its parent, process `parent`, ends; Linux only.

    The parent may have ended before: then the signal comes at once. Elsewhere than on Linux nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library or no prctl: not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
