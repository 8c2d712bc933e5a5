# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the apparent sizes of instances say about each other.

The size of an object is known, so its mask tells how far away it would be (up to the focal length, which all of an
image share). Objects that stand together are about equally far away, those lower in the image a little nearer, for they
stand on something: a mask that would put its object much nearer or farther than all the others is rarely right. It is
the only thing that tells a part from the same part in another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import cv2
import numpy as np

from ocdit_ros.model import SAME_LOOK
from ocdit_ros.segment.calibration import Calibration
from ocdit_ros.segment.extract import Candidate, common_pixels
from ocdit_ros.segment.network import KnownObject

#: ln(apparent / true size) of right instances of one image about what they share, as (share, mean, standard deviation):
#: those that are seen whole, and those that are hidden in part, lie askew or stand elsewhere. This, CUT and SLOPE: the
#: maximum of the likelihood over 2200 instances of 220 held-out synthetic images, rounded.
SPREAD = ((0.7, 0.0, 0.09), (0.3, -0.2, 0.35))
#: The same of masks that the border of the image may cut.
CUT = ((0.6, 0.0, 0.18), (0.4, -0.5, 0.5))
#: A mask is cut when it comes so close to the border: pixels.
BORDER = 2
#: By how much ln(apparent / true size) grows from one row to another, with their distance in widths of the image: mean
#: and standard deviation over images, and the slopes that are tried.
SLOPE, SLOPES = (0.5, 0.4), np.linspace(-0.3, 1.3, 5)
#: Widest range of ln(apparent / true size) that is taken for equally likely when nothing else is known.
RANGE = 4.0
#: Candidates whose masks overlap by more than this (IoU) are readings of one and the same thing.
SAME_IOU = 0.5
#: By how much likelier (logit) the sizes of pieces are than that of the whole, for the whole to be copies that touch.
SPLIT_LEAD = 1.0
#: The same for the network to be asked whether it is several.
DOUBT = 0.7
#: Masks of instances that were asked for one by one have less than this share of the smaller one in common.
APART = 0.3
#: How many times as long as one of them copies that touch may be, together.
SEVERAL = (1.3, 1.6, 2.0)
#: Objects that look the same are told apart by size when their diameters differ by this factor.
OTHER_SIZE = 1.15


def scale_evidence(
    candidates: Sequence[Candidate], diameters: Sequence[float], threshold: float, size: tuple[int, int]
) -> np.ndarray:
    """`Evidence.scale` of all candidates of one image, float64 [N] in 0..1; 0.5 where nothing can be said.

    With x = ln(apparent size / diameter) and y the lowest row of the mask, a right instance has x - m - b y ~ SPREAD
    (CUT where the image ends) for an m and a slope b that all share, a wrong one any x. Each thing in the image is a
    mixture of the two, weighted by how convincing its readings are; the posterior of m and b given all *other* things
    says how much more likely a reading's x is if it is right. That ratio r is given as r / (1 + r).

    Args:
        candidates: of one image; several may be readings of the same thing.
        diameters: metres, of the objects of the candidates.
        threshold: confidence at the outline of a mask.
        size: height and width of the image, pixels.
    """
    ratio = _ratios(candidates, diameters, threshold, size, (0.0,))[0]
    return ratio / (1.0 + ratio)


def may_be_several(
    candidates: Sequence[Candidate], diameters: Sequence[float], threshold: float, size: tuple[int, int]
) -> np.ndarray:
    """Which candidates are so large that their sizes would be likelier, by DOUBT, if they were a part of what they are:
    bool [N]; arguments as for `scale_evidence`.
    """
    whole, *smaller = np.log(_ratios(candidates, diameters, threshold, size, (0.0, *np.log(SEVERAL))))
    return np.max(smaller, axis=0) - whole > DOUBT


def _ratios(
    candidates: Sequence[Candidate], diameters: Sequence[float], threshold: float, size: tuple[int, int],
    shifts: Sequence[float],
) -> np.ndarray:  # fmt: skip
    """Ratios r of `scale_evidence` [S, N], were x smaller by each of the shifts; 1 where nothing can be said."""
    if len(candidates) < 2:
        return np.ones((len(shifts), len(candidates)))
    places = [_place(c, threshold, size) for c in candidates]
    extent, row, cut = (np.array(values) for values in zip(*places, strict=True))
    x = np.log(extent / diameters)
    things = same_things(candidates, threshold)
    slack = max(1.0, 0.5 * (RANGE - np.ptp(x)))
    shared = np.arange(x.min() - slack, x.max() + slack, 0.04)
    anything = 1.0 / np.ptp(shared)
    deviation = x[:, None, None] - SLOPES[:, None] * row[:, None, None] - shared  # [N, B, M]
    likely = [_density(deviation - shift, cut) for shift in shifts]
    right = likely[shifts.index(0.0)]
    belief = np.array([_belief(c) for c in candidates])
    counts = np.array([belief[things == t].sum() for t in things])
    belief /= np.maximum(1.0, counts / 0.95)  # of several readings of one thing at most one is right
    likelihoods = {
        t: np.log(np.tensordot(belief[things == t], right[things == t], 1) + (1 - belief[things == t].sum()) * anything)
        for t in set(things.tolist())
    }
    total = np.sum(list(likelihoods.values()), axis=0) - 0.5 * ((SLOPES[:, None] - SLOPE[0]) / SLOPE[1]) ** 2
    result = np.empty((len(shifts), len(candidates)))
    for n, thing in enumerate(things.tolist()):
        others = total - likelihoods[thing]
        posterior = np.exp(others - others.max())
        for s, density in enumerate(likely):
            result[s, n] = max(float((posterior * density[n]).sum() / posterior.sum()) / anything, 1e-30)
    return result


def settle_splits(candidates: Sequence[Candidate], origins: Sequence[Candidate], threshold: float) -> list[bool]:
    """Which candidates stay where some are pieces of others: bool [N].

    A whole gives way to its pieces (`extract.split`) where their sizes, by `Evidence.scale`, are likelier by
    SPLIT_LEAD, on average. Where the network was asked for the instance in one box and in another, its answers say
    more: of what is one, both show the same. Where they have less than APART in common, likelier sizes are enough;
    where it is half or more, they are no pieces.

    Args:
        candidates: of one image, with that evidence.
        origins: what each was made of, itself or one of another name; `whole` of a piece is one of them.
        threshold: confidence at the outline of a mask.
    """
    odds = Calibration.logit(np.array([candidate.evidence.scale for candidate in candidates]))
    pieces: dict[tuple[int, int, bool], list[int]] = {}
    for n, (candidate, origin) in enumerate(zip(candidates, origins, strict=True)):
        if origin.whole is not None:
            pieces.setdefault((id(origin.whole), candidate.index, origin.boxed), []).append(n)

    def better(whole: int, own: list[int], boxed: bool) -> bool:
        if not own or (boxed and len(own) < 2):
            return False
        common = _most_in_common([candidates[n] for n in own], threshold) if boxed else 1.0
        lead = 0.0 if common < APART else SPLIT_LEAD
        return bool(odds[own].mean() - odds[whole] > lead) and not (boxed and common >= 0.5)

    stays = [False] * len(candidates)
    open_questions = [n for n, origin in enumerate(origins) if origin.whole is None]
    while open_questions:
        n = open_questions.pop()
        for boxed in (True, False):
            own = pieces.get((id(origins[n]), candidates[n].index, boxed), [])
            if better(n, own, boxed):
                open_questions += own
                break
        else:
            stays[n] = True
    return stays


def _most_in_common(candidates: Sequence[Candidate], threshold: float) -> float:
    """Largest overlap of two of them, relative to the smaller one."""
    masks = [c.confidence > threshold for c in candidates]
    shares = [
        common_pixels(candidates[a], masks[a], candidates[b], masks[b]) / max(min(masks[a].sum(), masks[b].sum()), 1)
        for a, b in combinations(range(len(candidates)), 2)
    ]
    return float(max(shares, default=0.0))


def same_things(candidates: Sequence[Candidate], threshold: float) -> np.ndarray:
    """Number of the thing that each candidate is a reading of, int [N]: those whose masks overlap share one.

    So do a whole and its pieces, lest the two halves of anything confirm each other.
    """
    masks = [c.confidence > threshold for c in candidates]
    areas = [int(mask.sum()) for mask in masks]
    number = np.arange(len(candidates))
    for a, b in combinations(range(len(candidates)), 2):
        common = common_pixels(candidates[a], masks[a], candidates[b], masks[b])
        if common > SAME_IOU * (areas[a] + areas[b] - common):
            _unite(number, a, b)
    places = {id(candidate): n for n, candidate in enumerate(candidates)}
    for n, candidate in enumerate(candidates):
        if id(candidate.whole) in places:
            _unite(number, n, places[id(candidate.whole)])
    return number


def _unite(number: np.ndarray, a: int, b: int) -> None:
    first, second = sorted((int(number[a]), int(number[b])))
    number[number == second] = first


def only_size_tells(a: KnownObject, b: KnownObject) -> bool:
    """Whether two objects look the same, but have different sizes."""
    if max(a.diameter, b.diameter) < OTHER_SIZE * min(a.diameter, b.diameter) or a.appearance.size != b.appearance.size:
        return False
    return float(a.appearance.astype(np.float32) @ b.appearance.astype(np.float32)) > SAME_LOOK


def _density(deviation: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Of the mixture SPREAD, or CUT where that is so; deviations [N, ...], cut bool [N]."""
    result = np.empty_like(deviation)
    for rows, mixture in ((~cut, SPREAD), (cut, CUT)):
        some = deviation[rows]
        result[rows] = sum(w * np.exp(-0.5 * ((some - m) / s) ** 2) / (s * np.sqrt(2 * np.pi)) for w, m, s in mixture)
    return result


def _belief(candidate: Candidate) -> float:
    """How convincing a candidate is by itself, 0..0.95; no fitted score, for that is fitted to what comes out here."""
    e = candidate.evidence
    return float(np.clip(e.confidence * min(e.agreement, e.stability) * e.support, 0.01, 0.95))


def _place(candidate: Candidate, threshold: float, size: tuple[int, int]) -> tuple[float, float, bool]:
    """Longest distance between two pixels of the mask, pixels (maximum Feret diameter); its lowest row below the middle
    of the image, in widths of the image; and whether the border may cut it.
    """
    points = cv2.findNonZero((candidate.confidence > threshold).astype(np.uint8))
    if points is None:
        return 1.0, 0.0, False
    hull = cv2.convexHull(points)[:, 0].astype(np.float32)
    extent = 1.0 + float(np.linalg.norm(hull[:, None] - hull[None], axis=-1).max())
    (left, top), (right, bottom) = hull.min(0) + (candidate.x, candidate.y), hull.max(0) + (candidate.x, candidate.y)
    height, width = size
    cut = min(left, top) < BORDER or right >= width - BORDER or bottom >= height - BORDER
    return extent, float(bottom + 1 - 0.5 * height) / width, bool(cut)
