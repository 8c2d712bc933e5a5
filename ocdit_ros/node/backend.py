# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the node asks of a segmenter, and how the real one is made from parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ocdit_ros.segment import Instance, StreamSettings
from ocdit_ros.templates import MeshError, ObjectSpec, TemplateCache, resolve


class BackendError(RuntimeError):
    """The segmenter cannot be made; the message is one sentence naming the parameter at fault."""


class StreamLike(Protocol):
    """The part of ocdit_ros.segment.stream.Stream that the node uses."""

    settings: Any

    @property
    def effort(self) -> Any:
        """`full`: whether the last frame was segmented as a single image is."""


class SegmenterLike(Protocol):
    """The part of ocdit_ros.segment.Segmenter that the node uses."""

    settings: Any

    @property
    def objects(self) -> list[str]:
        """Names in the catalogue; object_id of an Instance is the index in it, from 1."""

    def add_object(self, spec: ObjectSpec) -> Any:
        """Read, render and condition on an object."""

    def remove_object(self, name: str) -> Any:
        """Forget an object."""

    def segment_many(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[Instance]]:
        """For each image, uint8 [H, W, 3], its instances, best first."""

    def stream(self, settings: StreamSettings) -> StreamLike:
        """The memory of one camera."""

    def segment_streams(self, images: Sequence[np.ndarray], streams: Sequence[Any]) -> Sequence[Sequence[Instance]]:
        """As segment_many, each image being the next one of a stream."""


#: Makes a segmenter from the parameters, with a sentence on what it is, for the log; raises BackendError.
Factory = Callable[[Mapping[str, Any]], tuple[SegmenterLike, str]]

#: Parameters that are fields of the same name in SegmenterSettings.
SETTINGS = (
    "score_threshold", "refine", "steps", "ensemble", "augmentations", "coarse_size", "tiles", "compare_sizes",
    "min_pixels", "seed",
)  # fmt: skip


def from_parameters(values: Mapping[str, Any]) -> tuple[SegmenterLike, str]:
    """The segmenter that the parameters `weights`, `device`, `cpu_threads` and `cache_dir` ask for."""
    import torch

    from ocdit_ros.model import CheckpointError, read_metadata
    from ocdit_ros.segment import Segmenter, SegmentError, SegmenterSettings
    from ocdit_ros.segment.weights import default_weights

    if values["cpu_threads"]:
        torch.set_num_threads(values["cpu_threads"])
    device = resolve_device(values["device"])
    settings = SegmenterSettings(**{name: values[name] for name in SETTINGS})
    cache = TemplateCache(values["cache_dir"] or None)
    try:
        weights = resolve(values["weights"]) if values["weights"] else default_weights()
        _, provenance = read_metadata(weights)
        segmenter = Segmenter.from_checkpoint(weights, device, settings, cache)
    except (CheckpointError, SegmentError, MeshError) as error:
        raise BackendError(f"parameter 'weights': {error}") from None
    return segmenter, describe(provenance, str(weights), device)


def resolve_device(name: str) -> str:
    """Name of a torch device that exists; `auto` prefers CUDA. Raises BackendError."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name.startswith("cuda"):
        if not count:
            reason = "this PyTorch finds no CUDA device" if torch.version.cuda else "this PyTorch is built without CUDA"
            raise BackendError(f"parameter 'device' is '{name}', but {reason}; use cpu or auto")
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            raise BackendError(f"parameter 'device' is '{name}', but there are only {count} CUDA devices")
    return name


def describe(provenance: Mapping[str, Any], weights: str, device: str) -> str:
    """One sentence on the weights and how well they were trained: the checkpoint's summary, else all that it tells."""
    told = provenance.get("summary") or "; ".join(f"{key}: {_text(value)}" for key, value in provenance.items())
    return f"weights {weights} on {device}; {told or 'the checkpoint does not say how it was trained'}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def apply_settings(segmenter: SegmenterLike, values: Mapping[str, Any]) -> None:
    """Bring the segmenter's settings up to date with the parameters."""
    wanted = {name: values[name] for name in SETTINGS}
    if any(getattr(segmenter.settings, name) != value for name, value in wanted.items()):
        segmenter.settings = dataclasses.replace(segmenter.settings, **wanted)


def next_streams(
    segmenter: SegmenterLike, streams: dict[str, StreamLike], cameras: Sequence[str], values: Mapping[str, Any]
) -> list[StreamLike]:
    """The stream of each camera, up to date with the parameters; new ones are added to `streams`."""
    settings = StreamSettings(start_sigma=values["warm_start_sigma"])
    for camera in cameras:
        if camera not in streams:
            streams[camera] = segmenter.stream(settings)
        streams[camera].settings = settings
    return [streams[camera] for camera in cameras]
