# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From confidence maps to instances: separate parts, weigh the evidence, settle who owns which pixel.

NumPy and OpenCV.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ocdit_ros.segment.types import Evidence
from ocdit_ros.segment.views import View, resize, to_image

#: A part smaller than this share of the largest one is noise or a fragment, not another instance.
FRAGMENT_SHARE = 0.2
#: Parts may be joined behind an occluder over a gap of this share of the larger one's longer side. Without a limit, a
#: false spot anywhere in a pile would be joined with the object across it, for other objects lie between them.
GAP_SHARE = 0.5
#: A neck is at most so wide, relative to what it connects; more pieces at once are noise.
NECK, MOST_PIECES = 0.75, 8
#: Instances of one object that share more of the smaller one than this are one instance seen twice.
DUPLICATE_SHARE = 0.6
#: An instance of which better ones explain more than this share is given up.
EXPLAINED_SHARE = 0.6
#: A patch of the image looks like an object from this cosine on, and is given to one from this confidence on.
OBJECT_COSINE, GIVEN_CONFIDENCE = 0.7, 0.4


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible instance, at the resolution of the image."""

    index: int  # of the object in the catalogue
    score: float
    evidence: Evidence
    confidence: np.ndarray  # float32 [h, w], zero away from the instance
    x: int  # image column of its first pixel
    y: int
    whole: Candidate | None = None  # of which it is a piece: one of the two is right
    boxed: bool = False  # the network was asked for one instance in a box

    def window(self) -> tuple[slice, slice]:
        """Where `confidence` lies in the image."""
        height, width = self.confidence.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def average(members: np.ndarray) -> np.ndarray:
    """Mean of the members [E, H, W], each where it sees (NaN elsewhere); 0 where none does."""
    if not np.isnan(members).any():
        return members.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice"
        return np.nan_to_num(np.nanmean(members, 0))


def match_queries(members: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Reorder the queries of every member [E, Q, H, W] so that they mean the same instance as the first
    member's.

    Which query takes which instance is arbitrary, so members may differ in it and must not be averaged as
    they come.
    """
    if members.shape[0] == 1 or members.shape[1] == 1:
        return members
    from scipy.optimize import linear_sum_assignment

    masks = np.nan_to_num(members) > threshold
    matched = [members[0]]
    for member, mask in zip(members[1:], masks[1:]):
        first, other = masks[0].reshape(len(mask), -1), mask.reshape(len(mask), -1)
        common = first.astype(np.float32) @ other.astype(np.float32).T
        union = first.sum(1)[:, None] + other.sum(1)[None] - common
        _, order = linear_sum_assignment(-common / np.maximum(union, 1))
        matched.append(member[order])
    return np.stack(matched)


def separate(
    confidence: np.ndarray, threshold: float, least: int = 4, occluders: np.ndarray | None = None
) -> list[np.ndarray]:
    """Parts of a confidence map that are instances of their own, largest first.

    Disconnected parts belong to one instance when a weaker confidence (half the threshold) connects them,
    when one is a fragment beside the other, or when a short gap between them is mostly covered by other
    objects. Otherwise they are instances of their own.

    Args:
        confidence: float32 [H, W].
        threshold: confidence at the outline.
        least: parts with fewer pixels are dropped.
        occluders: bool [H, W], pixels that other objects own.

    Returns bool [H, W] masks that do not overlap.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((confidence > threshold).astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    numbers = [n for n in range(1, count) if areas[n] >= least]
    if len(numbers) < 2:
        return [labels == n for n in numbers]
    numbers.sort(key=lambda n: -areas[n])
    numbers = numbers[:16]  # more parts than that are noise
    _, weak = cv2.connectedComponents((confidence > 0.5 * threshold).astype(np.uint8))
    groups: list[list[int]] = []
    for number in numbers:
        part = labels == number
        home = next((g for g in groups if _belongs(part, np.isin(labels, g), weak, occluders)), None)
        if home is not None:
            home.append(number)
        elif areas[number] >= FRAGMENT_SHARE * areas[numbers[0]]:
            groups.append([number])  # a fragment that is near nothing is dropped
    return [np.isin(labels, g) for g in groups]


def split(part: np.ndarray) -> list[np.ndarray]:
    """Pieces of a part that hang together by necks, largest first; none if it has no neck.

    Copies of an object that touch come out as one part, with a notch at either end of the seam. Many an object has a
    neck of its own: what tells them apart is size (`scale.settle_splits`), so this only says where.

    Args:
        part: bool [H, W].

    Returns bool [H, W] masks that do not overlap and together are the part.
    """
    from scipy import ndimage

    _, labels, stats, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size or (areas.size > 1 and np.partition(areas, -2)[-2] >= FRAGMENT_SHARE * areas.max()):
        return []  # parts that were put together over what hides the rest
    body = np.pad(labels == 1 + areas.argmax(), 1).astype(np.uint8)
    depth = cv2.distanceTransform(body, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    deepest = float(depth.max())
    for level in np.arange(0.1, NECK, 0.05) * deepest:
        count, labels = cv2.connectedComponents((depth > level).astype(np.uint8))
        peaks = ndimage.maximum(depth, labels, np.arange(1, count))
        cores = 1 + np.flatnonzero(level <= NECK * np.asarray(peaks))
        if not 2 <= len(cores) <= MOST_PIECES:
            continue
        distances = np.stack(
            [cv2.distanceTransform((labels != n).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) for n in cores]
        )
        nearest = distances.argmin(0)
        pieces = sorted(((nearest == n) & part for n in range(len(cores))), key=lambda piece: -int(piece.sum()))
        if pieces[-1].sum() >= FRAGMENT_SHARE * pieces[0].sum():
            return pieces
    return []


def halves(part: np.ndarray) -> list[np.ndarray]:
    """The two ends of a part bool [H, W], cut at the middle of its longer axis: rough places of two copies."""
    points = np.argwhere(part)
    if len(points) < 8:
        return []
    away = points - points.mean(0)
    along = away @ np.linalg.svd(away, full_matrices=False)[2][0]
    ends = []
    for side in (along <= 0.5 * (along.min() + along.max()), along > 0.5 * (along.min() + along.max())):
        end = np.zeros(part.shape, bool)
        end[tuple(points[side].T)] = True
        ends.append(end)
    return ends if all(end.any() for end in ends) else []


def _near(part: np.ndarray, instance: np.ndarray, reach: float) -> bool:
    """Whether a square of this half side around a pixel of one reaches the other."""
    return bool((_grow(instance, max(int(reach), 2)) & part).any())


def _belongs(part: np.ndarray, instance: np.ndarray, weak: np.ndarray, occluders: np.ndarray | None) -> bool:
    if np.intersect1d(weak[part], weak[instance]).size:
        return True
    area, other = int(part.sum()), int(instance.sum())
    if area < FRAGMENT_SHARE * other and _near(part, instance, 0.5 * np.sqrt(other)):
        return True
    if occluders is None:
        return False
    longer = max(*box_of(part)[2:], *box_of(instance)[2:])
    if not _near(part, instance, GAP_SHARE * longer):
        return False
    points = cv2.findNonZero((part | instance).astype(np.uint8))
    hull = cv2.fillConvexPoly(np.zeros(part.shape, np.uint8), cv2.convexHull(points), 1) > 0
    between = hull & ~part & ~instance
    return bool(between.any() and (between & occluders).sum() > 0.5 * between.sum())


def weigh(
    members: np.ndarray, part: np.ndarray, others: np.ndarray, threshold: float, similarity: np.ndarray,
    rival: np.ndarray, coarse: np.ndarray | None = None, pixel_area: float = 1.0, asked: int = 1,
    complete: float = 0.5,
) -> Evidence:  # fmt: skip
    """Evidence for one part of a map.

    Args:
        members: confidences of the ensemble [E, H, W], NaN where a member does not see.
        part: bool [H, W].
        others: bool [H, W], other instances of the same object.
        threshold: confidence at the outline.
        similarity: cosines of image and templates, and of image and objects in general, [2, h, w] on the latent grid.
        rival: highest confidence of another object in the coarse pass, on this canvas [H, W].
        coarse: confidence of this object in the coarse pass, on this canvas [H, W]; None without refinement.
        pixel_area: pixels of the image that one of the canvas covers.
        asked: number of objects that were asked for in this image.
        complete: `completeness` of this list of objects.
    """
    mean = average(members)
    near = _grow(part, 9) & ~others
    agreement = [_iou((member > threshold) & near, part & ~np.isnan(member)) for member in members]
    sure, possible = int(((mean > 0.7) & near).sum()), int(((mean > 0.3) & near).sum())
    share = resize(part.astype(np.float32), similarity.shape[1:])
    inside, common = ((similarity * share).sum((1, 2)) / max(share.sum(), 1e-6)).tolist()
    outside = float((similarity[0] * (1 - share)).sum() / max((1 - share).sum(), 1e-6))
    if coarse is None:
        before, overlap = mean, 1.0
    else:
        # a weak coarse mask is cut at half its height, so that its extent can be compared
        before = coarse
        cut = min(threshold, 0.5 * float(before[part].max()))
        overlap = _iou((before > cut) & ~others, part)
    return Evidence(
        confidence=float(mean[part].mean()),
        agreement=float(np.mean(agreement)),
        stability=sure / max(possible, 1),
        similarity=float(np.clip(inside, 0.0, 1.0)),
        lead=float(np.clip(0.5 + 0.5 * (inside - outside), 0.0, 1.0)),
        coarse=overlap,
        support=float(before[part].mean()),
        uncontested=1.0 - float((rival[part] > np.maximum(before[part], 0.3)).mean()),
        size=size_evidence(float(part.sum()) * pixel_area),
        rarity=rarity_evidence(asked),
        scale=0.5,  # takes the other instances to tell
        distinction=float(np.clip(0.5 + 0.5 * (inside - common), 0.0, 1.0)),
        completeness=complete,
    )


def size_evidence(pixels: float) -> float:
    """`Evidence.size` of a mask of so many pixels of the image."""
    return pixels / (pixels + 32.0**2)


def rarity_evidence(asked: int) -> float:
    """`Evidence.rarity` when so many objects are asked for."""
    return 1.0 / (1.0 + asked)


def objectness(similarity: np.ndarray) -> np.ndarray:
    """Whether patches look like an object, asked for or not: highest cosine, of float32 [N, 2, h, w] as in `weigh`.

    Float32 [h, w].
    """
    return similarity.max((0, 1))


def completeness(objectness: np.ndarray, confidence: np.ndarray) -> float:
    """Share of what looks like an object in an image that is given to one asked for; 0.5 if nothing does.

    Where much is left over, the list leaves out what is in view, and what is found is more often something else. On 66
    held-out images, every other one with such a list, scores with it are as good as if they knew what share of the
    objects in view was asked for (docs/experiments.md).

    Args:
        objectness: float32 [h, w], of the look at the whole image.
        confidence: float32 [N, Q, H, W] of the coarse pass, over the same image.
    """
    like = objectness > OBJECT_COSINE
    given = resize(confidence.max((0, 1)), like.shape) > GIVEN_CONFIDENCE
    return float(((like & given).sum() + 1) / (like.sum() + 2))


def lift(
    confidence: np.ndarray, part: np.ndarray, others: np.ndarray, view: View, height: int, width: int
) -> tuple[np.ndarray, int, int]:
    """One part of a map at image resolution: float32 [h, w] with its place x, y; soft at the outline, zero
    elsewhere.
    """
    soft = np.where(_grow(part, 3) & ~others, confidence, 0.0).astype(np.float32)
    rows, columns = np.flatnonzero(soft.any(1)), np.flatnonzero(soft.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return to_image(soft, view, box, height, width)


def resolve(
    candidates: Sequence[Candidate], height: int, width: int, threshold: float, min_pixels: int
) -> list[tuple[Candidate, np.ndarray]]:
    """Settle which candidates stay and which pixels each owns.

    Best score first: a candidate goes when a better one of the same object covers it, or when better ones of
    any object explain most of it. What remains competes for every pixel by confidence times score.

    Returns the survivors, best first, each with its mask bool [height, width]; masks do not overlap.
    """
    ranked = sorted(candidates, key=lambda c: -c.score)
    taken = np.zeros((height, width), bool)
    kept: list[Candidate] = []
    for candidate in ranked:
        mask = candidate.confidence > threshold
        area = int(mask.sum())
        if area < min_pixels:
            continue
        if any(k.index == candidate.index and _overlap(k, candidate, threshold) > DUPLICATE_SHARE for k in kept):
            continue
        window = candidate.window()
        if (taken[window] & mask).sum() > EXPLAINED_SHARE * area:
            continue
        taken[window] |= mask
        kept.append(candidate)

    owner = np.zeros((height, width), np.int32)
    strength = np.zeros((height, width), np.float32)
    for number, candidate in enumerate(kept, start=1):
        window = candidate.window()
        claim = np.where(candidate.confidence > threshold, candidate.confidence * candidate.score, 0.0)
        wins = claim > strength[window]
        owner[window][wins] = number
        strength[window][wins] = claim[wins]
    result = []
    for number, candidate in enumerate(kept, start=1):
        window = candidate.window()
        mask = np.zeros((height, width), bool)
        mask[window] = owner[window] == number
        mask = without_specks(mask)
        mask[window] = without_pinholes(mask[window], owner[window] == 0)
        if mask.sum() >= min_pixels:
            result.append((candidate, mask))
    return result


def without_specks(mask: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Drop parts below `share` of the mask's area: crumbs that the competition for pixels leaves behind."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:  # the background and one part
        return mask
    large = stats[:, cv2.CC_STAT_AREA] >= share * mask.sum()
    return large[labels] & mask


def without_pinholes(mask: np.ndarray, free: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Close holes below `share` of the mask's area in which nothing else is seen: `mask`, `free` bool [H, W].

    The network draws on a grid of 16 pixels, too coarse for true holes of that size. Of 256 masks of held-out scenes
    20 had such holes; closed, 12 fitted better and 7 worse.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    closed = stats[:, cv2.CC_STAT_AREA] < share * mask.sum()
    closed[0] = False  # the mask itself
    closed[labels[~mask & ~free]] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        closed[edge] = False
    return mask | closed[labels]


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box (x, y, width, height) around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def common_pixels(a: Candidate, mask_a: np.ndarray, b: Candidate, mask_b: np.ndarray) -> int:
    """Pixels of the image that the masks of two candidates share, each bool like its `confidence`."""
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1, y1 = min(a.x + mask_a.shape[1], b.x + mask_b.shape[1]), min(a.y + mask_a.shape[0], b.y + mask_b.shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0
    first = mask_a[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x]
    return int((first & mask_b[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]).sum())


def _overlap(a: Candidate, b: Candidate, threshold: float) -> float:
    """Common area relative to the smaller of the two."""
    first, second = a.confidence > threshold, b.confidence > threshold
    return common_pixels(a, first, b, second) / max(min(int(first.sum()), int(second.sum())), 1)
