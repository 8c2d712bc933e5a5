# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What goes into a Segmenter and what comes out; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


class SegmentError(ValueError):
    """A request the Segmenter cannot serve; the message is one sentence that says what is wrong and what to
    do.
    """


@dataclass(frozen=True)
class Evidence:
    """What speaks for an instance; each in 0..1, the parts that its score is made of."""

    confidence: float  # mean confidence inside the mask
    agreement: float  # mean IoU of the ensemble members' masks with the averaged one; 1 for a single member
    stability: float  # area above confidence 0.7 relative to area above 0.3
    similarity: float  # mean similarity of the image inside the mask to the object's templates
    lead: float  # by how much that is more than the image around it, 0.5 = not at all
    coarse: float  # IoU with the mask of the coarse pass; 1 without refinement
    support: float  # mean confidence of the coarse pass inside the mask
    uncontested: float  # share of the mask that the coarse pass does not give to another object
    size: float  # p / (p + 32^2) for a mask of p pixels of the image: small ones are less often right
    rarity: float  # 1 / (1 + N) when N objects are asked for: the longer the list, the more of it is absent
    scale: float  # how well its apparent size fits those of the other instances (segment/scale.py), 0.5 = not known
    distinction: float = 0.5  # by how much that similarity is more than to objects in general, 0.5 = not at all
    completeness: float = 0.5  # share of what looks like an object that the coarse pass gives to one asked for

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the parts, in order."""
        return tuple(field.name for field in fields(cls))

    def vector(self) -> np.ndarray:
        """float64 [13], in the order of names()."""
        return np.array([getattr(self, name) for name in self.names()], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Instance:
    """One instance of a known object in one image."""

    object_id: int  # index of the object in the catalogue, from 1
    name: str
    score: float  # 0..1, calibrated where the checkpoint brings a calibration
    mask: np.ndarray  # bool [H, W], full image
    box: tuple[int, int, int, int]  # x, y, width, height of the mask, pixels
    evidence: Evidence | None = None
    track_id: int = 0  # the same from frame to frame of a stream (segment/stream.py), from 1; 0: no stream


@dataclass(frozen=True)
class SegmenterSettings:
    """How an image is segmented. Lengths in pixels refer to the resized image that the network sees.

    Raises SegmentError: a value is out of range.
    """

    score_threshold: float = 0.5  # instances below are left out
    steps: int = 1  # network evaluations of one sample
    solver: str = "euler"
    ensemble: int = 1  # noises per view (N_ensemble of the paper)
    augmentations: int = 1  # views per crop: the plain one, the mirrored one, then shifted and scaled ones (N_aug)
    refine: bool = True  # look again at an enlarged crop of every proposal
    seed: int = 0
    group_size: int = 8  # objects that the network sees together
    coarse_size: int = 384  # longer side of a look of the coarse pass
    tiles: int = 2  # a side: before a refinement the coarse pass looks at tiles x tiles parts too (one query an object)
    coarse_ensemble: int = 1  # noises in the coarse pass when it is followed by refinement
    crop_size: int = 192  # side of a crop in the refine pass
    crop_scale: float = 1.5  # side of a crop relative to the longer side of the proposal's box
    reframe: float = 0.7  # a crop is taken again where its mask asks for one that it overlaps less (IoU); 0: never
    crop_objects: int = 4  # objects that the network sees together in a crop: the target and its competitors
    proposal_threshold: float = 0.2  # confidence that makes a proposal in the coarse pass
    proposals_per_object: int = 6
    max_crops: int = 64  # proposals beyond are left out, weakest first
    mask_threshold: float = 0.5  # confidence at the outline of a mask
    compare_sizes: bool = True  # scores expect the objects of an image to be about equally far away (segment/scale.py)
    min_pixels: int = 24  # masks with fewer pixels of the image are left out
    batch_tokens: int = 0  # query tokens that go through the network at once; 0: what suits the device

    def __post_init__(self) -> None:
        limits = {
            "score_threshold": (0.0, 1.0), "proposal_threshold": (0.0, 1.0), "mask_threshold": (0.05, 0.95),
            "steps": (1, 1000), "ensemble": (1, 256), "augmentations": (1, 8), "coarse_ensemble": (1, 256),
            "group_size": (1, 1024), "coarse_size": (16, 1024), "tiles": (1, 4), "crop_size": (16, 1024),
            "crop_scale": (1.0, 10.0), "reframe": (0.0, 1.0), "crop_objects": (1, 1024),
            "proposals_per_object": (1, 100), "max_crops": (1, 100000),
            "min_pixels": (1, 10**9), "batch_tokens": (0, 10**9), "seed": (0, 2**63 - 1),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise SegmentError(f"SegmenterSettings.{name} is {value}, but must lie in {low}..{high}.")
        for name in ("coarse_size", "crop_size"):
            if getattr(self, name) % 16:
                raise SegmentError(f"SegmenterSettings.{name} is {getattr(self, name)}, but must be a multiple of 16.")


@dataclass(frozen=True)
class StreamSettings:
    """How the frames of a camera continue each other (segment/stream.py).

    Raises SegmentError: a value is out of range.
    """

    start_sigma: float = 0.0  # noise on the remembered masks from which crops are sampled; 0: all noise, no memory
    change: float = 0.45  # surprise (1 - correlation of the details) from which on a frame shows another scene
    average: bool = True  # average the confidences of a crop with what is remembered of it
    views: int = 1  # new views of the crop of a known instance
    patience: int = 5  # frames for which an instance that is not seen is looked for
    track_score: float = 0.2  # score from which on an instance is remembered

    def __post_init__(self) -> None:
        limits = {
            "start_sigma": (0.0, 1000.0), "change": (0.0, 2.0), "views": (1, 8), "patience": (0, 10**6),
            "track_score": (0.0, 1.0),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise SegmentError(f"StreamSettings.{name} is {value}, but must lie in {low}..{high}.")
