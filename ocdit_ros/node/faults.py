# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Errors of a frame that somebody can do something about: no memory left, the device lost."""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import Any

#: How PyTorch, CUDA and OpenCV say it; their classes differ between versions and devices.
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "insufficient memory", "failed to allocate",
)  # fmt: skip
_LOST = ("cuda error", "cudnn_status", "cublas_status", "device-side assert", "hip error", "acceleratorerror")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of the device ran out; the next frame may fit."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or "outofmemory" in text or any(words in text for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device failed in a way after which this process cannot use it any more."""
    text = f"{type(error).__name__}: {error}".lower()
    return not is_out_of_memory(error) and any(words in text for words in _LOST)


def explain(error: BaseException) -> str:
    """The error in a line, with the cause and what to do where that is known."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= 300 else f"{text[:300]}..."
    if is_out_of_memory(error):
        return (
            f"out of memory ({text}); send smaller images, lower coarse_size, ensemble or augmentations, look for "
            "fewer objects, or stop other programs"
        )
    if is_device_lost(error):
        return (
            f"the device was lost ({text}); it cannot be used again in this process: restart the node, look at the "
            "driver's log (dmesg, nvidia-smi), or set device to cpu"
        )
    return text


def free_memory() -> None:
    """Give back what nobody uses, also that of the GPU; does not make a GPU context."""
    gc.collect()
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if hasattr(cuda, "empty_cache") and cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # the device is lost
            cuda.empty_cache()
