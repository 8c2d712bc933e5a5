# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A camera's frames one after the other: less to do than for single images, steadier masks, ids that last.

>>> stream = segmenter.stream()
>>> for rgb in camera:
...     for instance in stream.segment(rgb):
...         print(instance.track_id, instance.name, instance.score)

The first frame, and one that shows another scene, is segmented as `Segmenter.segment` does (a full start). Every other
one continues: what the coarse pass saw is remembered, look by look, and moved with the picture by optical flow, and
only one of its looks is taken anew, in turn; crops are taken where the instances of the last frame have moved to, and
where the new look shows something else; in the crop of a known instance one view is new, and what is remembered of the
instance stands in for the others.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from ocdit_ros.segment import extract
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.network import KnownObject, Output
from ocdit_ros.segment.segmenter import CoarseResult, Proposal, Refined, Segmenter, _average, _Look, check_image
from ocdit_ros.segment.types import Instance, SegmentError, StreamSettings
from ocdit_ros.segment.views import View, align, augmented, resize, to_image

#: Longer side of the pictures between which motion is estimated.
FLOW_SIZE = 320
#: An instance and a remembered one of the same object are the same from this IoU on, and where one of them covers so
#: much of the other: masks merge with what is beside them, and part again. After a full start there is only the IoU.
SAME_IOU, SAME_SHARE, SAME_IOU_FULL = 0.25, 0.7, 0.5
#: A proposal of which remembered instances of its object cover more than this is theirs.
COVERED_SHARE = 0.5
#: Track ids end where those of a 16-bit label image do, and begin anew.
LAST_ID = 65535


class Motion:
    """Where every pixel of a picture came from, by dense optical flow (Kroeger et al. 2016, OpenCV's DIS)."""

    def __init__(self, before: np.ndarray, now: np.ndarray, size: tuple[int, int]) -> None:
        """`before`, `now`: from `small_grey`; `size`: (H, W) of the pictures that they were made from."""
        flow = _flow().calc(now, before, None)  # [h, w, 2]: from now to before
        height, width = now.shape
        columns, lines = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        x, y = columns + flow[..., 0], lines + flow[..., 1]
        known = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        moved = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        #: how badly the last picture explains this one: 0 not at all, about 1 for two pictures of different things
        self.surprise = surprise(now, moved, known)
        self._flow, self._size = flow, size
        self._maps: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def maps(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For every pixel of the same picture at size (H, W): column and row where it was, float32 [H, W] each."""
        if size not in self._maps:
            height, width = size
            flow = cv2.resize(self._flow, (width, height), interpolation=cv2.INTER_LINEAR)
            factor = width / self._flow.shape[1], height / self._flow.shape[0]
            x = np.arange(width, dtype=np.float32) + flow[..., 0] * np.float32(factor[0])
            y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1] * np.float32(factor[1])
            self._maps[size] = x, y
        return self._maps[size]

    def move(self, picture: np.ndarray) -> np.ndarray:
        """A map [H, W] of the last picture, any size, as it lies in this one; 0 where nothing is known."""
        if not picture.any():
            return picture
        x, y = self.maps(picture.shape)
        return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def move_patch(self, patch: np.ndarray, left: int, top: int, outside: float = 0.0) -> tuple[np.ndarray, int, int]:
        """A patch float32 [h, w] at `left`, `top` of the last picture, and its place in this one.

        What comes from beyond the patch is `outside`. Empty where the patch has left the picture. It is looked for in
        a window around its old place, as far as the motion there goes.
        """
        x, y = self.maps(self._size)
        height, width = patch.shape
        window = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
        columns, lines = np.arange(x.shape[1], dtype=np.float32), np.arange(y.shape[0], dtype=np.float32)[:, None]
        shift_x, shift_y = (columns[window[1]] - x[window])[::2, ::2], (lines[window[0]] - y[window])[::2, ::2]
        if not shift_x.size:
            return patch[:0, :0], left, top
        # motion differs inside the patch; what all but the extremes did bounds where parts of it may have gone
        (west, east), (north, south) = (np.quantile(shift, (0.05, 0.95)) for shift in (shift_x, shift_y))
        margin = 4 + 0.1 * max(height, width)
        x0, x1 = max(int(left + west - margin), 0), min(int(left + width + east + margin) + 1, x.shape[1])
        y0, y1 = max(int(top + north - margin), 0), min(int(top + height + south + margin) + 1, x.shape[0])
        if x1 <= x0 or y1 <= y0:
            return patch[:0, :0], left, top
        place = slice(y0, y1), slice(x0, x1)
        moved = cv2.remap(
            patch, x[place] - np.float32(left), y[place] - np.float32(top), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT, borderValue=outside,
        )  # fmt: skip
        return moved, x0, y0


def _flow() -> Any:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def small_grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 [h, w], longer side at most FLOW_SIZE: what motion is estimated from."""
    height, width = rgb.shape[:2]
    factor = min(FLOW_SIZE / max(height, width), 1.0)
    size = max(round(height * factor), 16), max(round(width * factor), 16)
    return resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), size)


def surprise(now: np.ndarray, moved: np.ndarray, known: np.ndarray) -> float:
    """1 - correlation of the details of two pictures [h, w], where `known`; 1 where next to nothing is."""
    if known.mean() < 0.25:
        return 1.0

    def details(picture: np.ndarray) -> np.ndarray:
        wide = picture.astype(np.float32)
        return (cv2.GaussianBlur(wide, (0, 0), 1.5) - cv2.GaussianBlur(wide, (0, 0), 8.0))[known]

    a, b = details(now), details(moved)
    # a floor of half a grey level, so that noise on an even wall is no surprise
    return 1.0 - float((a * b).mean() + 0.25) / float(np.sqrt(((a * a).mean() + 0.25) * ((b * b).mean() + 0.25)))


@dataclass(frozen=True, eq=False)
class Patch:
    """A piece of a map at the resolution of the image."""

    values: np.ndarray  # float32 [h, w]
    x: int
    y: int

    def moved(self, motion: Motion, outside: float = 0.0) -> Patch:
        """Where it lies in the next frame."""
        return Patch(*motion.move_patch(self.values, self.x, self.y, outside))

    def on(self, view: View) -> np.ndarray:
        """Float32 [H, W] on the canvas of a view, NaN beyond the patch."""
        height, width = self.values.shape
        return align(self.values, View(self.x, self.y, width, height, (height, width)), view)


@dataclass(frozen=True, eq=False)
class Track:
    """One instance that is remembered."""

    index: int  # of the object in the catalogue
    instance: Patch  # its confidence, zero away from it
    crop: Patch | None  # confidence all over its crop, NaN where not known; None: nothing is remembered
    score: float
    number: int = 0  # the id; 0: not reported yet
    seen: int = 1  # frames in which it was
    missed: int = 0  # frames since
    covered: bool = False  # what was seen in its place is another: it keeps its id, and is not looked for

    def moved(self, motion: Motion) -> Track:
        """Where it is expected in the next frame."""
        crop = None if self.crop is None else self.crop.moved(motion, np.nan)
        return replace(
            self, instance=self.instance.moved(motion), crop=crop if crop is not None and crop.values.size else None
        )

    def box(self, threshold: float) -> tuple[float, float, float, float]:
        """x, y, width, height of its mask in the image."""
        x, y, width, height = extract.box_of(self.instance.values > threshold)
        return self.instance.x + x, self.instance.y + y, width, height

    def overlap(self, mask: np.ndarray, threshold: float) -> tuple[float, float, float]:
        """IoU with a mask bool [H, W] of the image, shares of the smaller of the two and of this one in common."""
        own = self.instance.values > threshold
        height, width = own.shape
        part = mask[self.instance.y : self.instance.y + height, self.instance.x : self.instance.x + width]
        both, a, b = int((own & part).sum()), int(own.sum()), int(mask.sum())
        return both / max(a + b - both, 1), both / max(min(a, b), 1), both / max(a, 1)


@dataclass(frozen=True)
class Effort:
    """What the last frame of a stream cost."""

    full: bool  # whether it was segmented as a single image is
    looks: float  # of the coarse pass, each counted by the share of the image that it covers
    crops: int
    views: int  # of all crops
    surprise: float  # what the scene-change test saw

    @property
    def evaluations(self) -> float:
        """Looks through the network that a place in a crop got; each costs `steps` evaluations."""
        return self.looks + (self.views / self.crops if self.crops else 0.0)


@dataclass(eq=False)
class _Frame:
    """One frame of one stream on its way."""

    stream: Stream
    rgb: np.ndarray
    grey: np.ndarray
    motion: Motion | None  # since the last frame; None: a full start
    tracks: list[Track]  # where they are expected in this frame
    whole: tuple[list[View], View]  # looks of the coarse pass, and the canvas on which they meet
    fresh: list[int]  # looks that are taken anew
    surprise: float = 0.0
    looks: np.ndarray | None = None  # uint8 [L, N, Q, H, W], confidence of each look, 0..255
    objectness: np.ndarray | None = None  # float32 [h, w], of the look at the whole image
    newest: CoarseResult | None = None  # of the fresh looks alone
    coarse: CoarseResult | None = None  # of all
    proposals: list[Proposal] = field(default_factory=list)
    owners: list[Track | None] = field(default_factory=list)  # of the proposals
    views: list[list[View]] = field(default_factory=list)  # of their crops


class Stream:
    """Frames of one camera, in order. As the Segmenter not thread-safe.

    Attributes:
        settings: may be replaced between frames.
        effort: what the last frame cost; None before the first.
    """

    def __init__(self, segmenter: Segmenter, settings: StreamSettings | None = None) -> None:
        self.segmenter = segmenter
        self.settings = settings or StreamSettings()
        self.effort: Effort | None = None
        self._last_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was seen: the next frame is a full start. Ids go on counting."""
        self._tracks: list[Track] = []
        self._grey: np.ndarray | None = None
        self._looks: np.ndarray | None = None
        self._objectness: np.ndarray | None = None
        self._turn = 0
        self._made_for: tuple = ()

    def segment(self, rgb: np.ndarray) -> list[Instance]:
        """Instances in the next frame, best score first, each with its `track_id`.

        Raises SegmentError: the image has another type or shape than `Segmenter.segment` takes.
        """
        return segment_streams(self.segmenter, [rgb], [self])[0]

    # --------------------------------------------------------------------------- stages

    def begin(self, rgb: np.ndarray) -> _Frame:
        """Whether the frame continues, and where everything remembered has moved to."""
        segmenter, settings = self.segmenter, self.segmenter.settings
        views, canvas = whole = segmenter._coarse_views(rgb)
        # a memory of other objects, or of pictures of another size, is of no use
        made_for = (rgb.shape, tuple(map(id, segmenter._catalogue)), canvas, len(views), settings.refine)
        if made_for != self._made_for:
            self.reset()
            self._made_for = made_for
        grey = small_grey(rgb)
        everything = list(range(len(views)))
        if self._grey is None:
            return _Frame(self, rgb, grey, None, [], whole, everything)
        motion = Motion(self._grey, grey, rgb.shape[:2])
        least = max(settings.min_pixels, 1)
        tracks = [track.moved(motion) for track in self._tracks]
        tracks = [t for t in tracks if (t.instance.values > settings.mask_threshold).sum() >= least]
        if motion.surprise > self.settings.change:  # what lies where it is expected all the same keeps its id
            return _Frame(self, rgb, grey, None, tracks, whole, everything, motion.surprise)
        fresh = [self._turn % len(views)] if settings.refine else everything
        return _Frame(self, rgb, grey, motion, tracks, whole, fresh, motion.surprise)

    def coarse_look(self, frame: _Frame) -> _Look:
        """The looks that are taken anew; fills in `looks`, `objectness`, `newest` and `coarse`."""
        segmenter = self.segmenter
        indices = tuple(range(len(segmenter._catalogue)))
        views, canvas = frame.whole
        rows, slots, places = segmenter._groups(indices)

        def finish(output: Output) -> None:
            seen = []
            for start, n in enumerate(frame.fresh):
                part = output.confidence[start * len(rows) : (start + 1) * len(rows)]  # [G, E, N_O, Q, H, W]
                mean = np.stack([_average(extract.match_queries(part[r, :, c])) for r, c in places])
                seen.append(align(mean, views[n], canvas))  # [N, Q, H, W]
            newest = functools.reduce(np.fmax, seen)
            looks = np.zeros((len(views), *newest.shape), np.uint8)
            if frame.motion is not None and self._looks is not None:
                for place in np.ndindex(looks.shape[:3]):
                    if place[0] not in frame.fresh:
                        looks[place] = frame.motion.move(self._looks[place])
            for n, one in zip(frame.fresh, seen, strict=True):
                looks[n] = np.rint(255 * np.nan_to_num(one))
            frame.looks = looks
            everything = np.nan_to_num(newest)
            if len(frame.fresh) < len(views):
                everything = looks.max(0).astype(np.float32) / 255
            if 0 in frame.fresh:  # the first look is the one at the whole image
                first = frame.fresh.index(0) * len(rows)
                frame.objectness = extract.objectness(np.stack([output.similarity[first + r, c] for r, c in places]))
            elif frame.motion is not None and self._objectness is not None:
                frame.objectness = frame.motion.move(self._objectness)
            complete = 0.5 if frame.objectness is None else extract.completeness(frame.objectness, everything)
            frame.newest = _coarse_result(indices, canvas, np.nan_to_num(newest), complete)
            frame.coarse = _coarse_result(indices, canvas, everything, complete)

        fresh = [views[n] for n in frame.fresh]
        return segmenter._groups_look(frame.rgb, fresh, rows, slots, segmenter.settings.coarse_ensemble, finish)

    def propose(self, frame: _Frame) -> None:
        """Fill in `proposals` and `owners`: where instances are remembered, and where something else is seen."""
        segmenter, settings = self.segmenter, self.segmenter.settings
        assert frame.newest is not None and frame.coarse is not None
        if frame.motion is None:
            frame.proposals = segmenter.proposals(frame.coarse)
            frame.owners = [None] * len(frame.proposals)
            return
        remembered = []
        for track in sorted((t for t in frame.tracks if not t.covered), key=lambda t: -t.score):
            box = track.box(settings.mask_threshold)
            x0, y0, x1, y1 = frame.coarse.view.box_on_canvas(box)
            query = int(frame.coarse.confidence[track.index, :, y0:y1, x0:x1].mean((1, 2)).argmax())
            remembered.append((Proposal(track.index, track.index, query, box, track.score), track))
        # looks that were taken before have been asked for their proposals before
        new = [
            p for p in segmenter.proposals(frame.newest)
            if all(p.index != r.index or _covered(p.box, r.box) <= COVERED_SHARE for r, _ in remembered)
        ]  # fmt: skip
        both = [*remembered, *((p, None) for p in new)][: settings.max_crops]
        frame.proposals, frame.owners = [p for p, _ in both], [owner for _, owner in both]

    def refine_looks(self, frame: _Frame) -> list[_Look]:
        """Crops of all proposals; those that start from remembered masks apart, for their noise is another."""
        segmenter, sigma = self.segmenter, self.settings.start_sigma
        assert frame.coarse is not None
        warm = [n for n, owner in enumerate(frame.owners) if sigma > 0 and owner is not None]
        cold = [n for n in range(len(frame.proposals)) if n not in warm]
        frame.views = [[] for _ in frame.proposals]
        looks = []
        for group in filter(None, (cold, warm)):

            def choose(n: int, crop: View, group: list[int] = group) -> list[View]:
                frame.views[group[n]] = self._views(frame.owners[group[n]], crop)
                return frame.views[group[n]]

            look = segmenter._refine_look(frame.rgb, frame.coarse, [frame.proposals[n] for n in group], choose)
            if group is warm:
                origin = self._origin(frame, [view for n in warm for view in frame.views[n]], look.rows)
                look = replace(look, sampler=replace(look.sampler, sigma_max=sigma), origin=origin)
            looks.append(replace(look, finish=functools.partial(_numbered, group, look.finish)))
        return looks

    def _views(self, owner: Track | None, crop: View) -> list[View]:
        """Views of a crop: all of the settings', or of a known instance some of them, in turn."""
        count = self.segmenter.settings.augmentations
        views = augmented(crop, count)
        if owner is None or owner.crop is None:
            return views
        return [views[(owner.seen * self.settings.views + n) % count] for n in range(min(self.settings.views, count))]

    def _origin(self, frame: _Frame, views: list[View], rows: list[list[KnownObject]]) -> np.ndarray:
        """Remembered confidences [rows, N_O, Q, H, W] of the objects that the network sees together in each view."""
        segmenter = self.segmenter
        queries = segmenter.config.queries_per_object
        numbers = {id(known): n for n, known in enumerate(segmenter._catalogue)}
        origin = np.zeros((len(rows), len(rows[0]), queries, *views[0].canvas), np.float32)
        for r, (view, row) in enumerate(zip(views, rows, strict=True)):
            for o, known in enumerate(row):
                own = [t for t in frame.tracks if t.index == numbers[id(known)]]
                for n, track in enumerate(own):
                    place = origin[r, o, n % queries]
                    np.fmax(place, track.instance.on(view), out=place)
        return origin

    def reframe(self, frame: _Frame, items: list[Refined]) -> _Look | None:
        """Better crops, as `Segmenter.reframe` has them, of what nobody remembers; takes what they replace out of
        `items`.

        A remembered instance is framed by its mask of the last frame already.
        """
        segmenter = self.segmenter
        known = [n for n, owner in enumerate(frame.owners) if owner is not None]
        if frame.coarse is None or len(known) == len(items):
            return None
        stays, places = segmenter._again(items, frame.coarse, frame.rgb.shape[:2], known)
        items[:] = stays.values()
        frame.owners = [frame.owners[n] for n in stays] + [None] * len(places)
        if not places:
            return None

        def choose(n: int, crop: View) -> list[View]:
            frame.views.append(self._views(None, crop))
            return frame.views[-1]

        return segmenter._refine_look(frame.rgb, frame.coarse, places, choose)

    def recall(self, frame: _Frame, refined: list[Refined]) -> list[Refined]:
        """The crops with what is remembered of them as one more member."""
        if not self.settings.average:
            return refined
        result = []
        for item, owner in zip(refined, frame.owners, strict=True):
            if owner is not None and owner.crop is not None:
                queries = item.members.shape[1]
                before = owner.crop.on(item.view)
                query = 0
                if queries > 1:  # which query took the instance is arbitrary in every look
                    likeness = [np.nansum(np.minimum(before, m)) for m in item.members.mean(0)]
                    query = int(np.argmax(likeness))
                member = np.full_like(item.members[:1], np.nan)
                member[0, query] = before
                item = replace(item, members=np.concatenate([item.members, member]))
            result.append(item)
        return result

    def is_lost(self, frame: _Frame, kept: list[tuple[Candidate, np.ndarray]]) -> bool:
        """Whether a frame that continues shows nothing of what the last one showed."""
        threshold = self.segmenter.settings.score_threshold
        reported = any(t.number and not t.missed for t in self._tracks)
        return frame.motion is not None and reported and all(c.score < threshold for c, _ in kept)

    def finish(
        self, frame: _Frame, kept: list[tuple[Candidate, np.ndarray]], crops: dict[int, Refined]
    ) -> list[Instance]:
        """Ids for what was found, and everything that the next frame needs.

        Args:
            frame: the frame.
            kept: candidates with their masks, best first.
            crops: by id() of the candidate, the crop in which it was seen.
        """
        segmenter, settings = self.segmenter, self.segmenter.settings
        size = frame.rgb.shape[:2]
        same, covered = self._associate(frame, kept)
        tracks, found = [], []
        used = {t.number for t in frame.tracks}
        for n, (candidate, mask) in enumerate(kept):
            before = frame.tracks[same[n]] if n in same else None
            number = before.number if before else 0
            reported = candidate.score >= settings.score_threshold
            if reported and not number:
                number = self._new_id(used)
                used.add(number)
            if reported:
                name = segmenter._catalogue[candidate.index].name
                box, evidence = extract.box_of(mask), candidate.evidence
                found.append(Instance(candidate.index + 1, name, candidate.score, mask, box, evidence, number))
            if candidate.score >= self.settings.track_score or reported:
                crop = crops.get(id(candidate))
                tracks.append(
                    Track(
                        candidate.index, Patch(candidate.confidence, candidate.x, candidate.y),
                        None if crop is None else _whole_crop(crop, candidate, size), candidate.score, number,
                        before.seen + 1 if before else 1,
                    )
                )  # fmt: skip
        if frame.motion is not None:
            again = set(same.values())
            tracks += [
                replace(track, crop=None, missed=track.missed + 1, covered=n in covered)
                for n, track in enumerate(frame.tracks)
                if n not in again and track.missed < self.settings.patience
            ]
        self._tracks, self._grey = tracks, frame.grey
        self._looks, self._objectness = frame.looks, frame.objectness
        self._turn = self._turn + 1 if frame.motion is not None else 0
        views = frame.whole[0]
        whole = views[0].width * views[0].height
        self.effort = Effort(
            frame.motion is None,
            sum(views[n].width * views[n].height for n in frame.fresh) / whole,
            len(frame.proposals),
            sum(map(len, frame.views)),
            frame.surprise,
        )
        return found

    def _associate(self, frame: _Frame, kept: list[tuple[Candidate, np.ndarray]]) -> tuple[dict[int, int], set[int]]:
        """Which remembered instance each candidate is, numbers in `kept` to numbers in `frame.tracks`.

        Then those that other candidates of the same object cover. A candidate that is too weak to be remembered itself
        stands for nothing: what it lies in place of may be back in the next frame.
        """
        tracks = frame.tracks
        if not tracks or not kept:
            return {}, set()
        from scipy.optimize import linear_sum_assignment

        threshold = self.segmenter.settings.mask_threshold
        least = min(self.settings.track_score, self.segmenter.settings.score_threshold)
        common = np.zeros((3, len(kept), len(tracks)))
        for n, (candidate, mask) in enumerate(kept):
            for m, track in enumerate(tracks):
                if track.index == candidate.index and candidate.score >= least:
                    common[:, n, m] = track.overlap(mask, threshold)
        overlap, share, covered = common
        possible = overlap >= SAME_IOU_FULL if frame.motion is None else (overlap >= SAME_IOU) | (share >= SAME_SHARE)
        # of several, rather the one that was seen a moment ago, and rather one that was reported
        likely = np.array([0.3 * (not track.missed) + 0.1 * bool(track.number) for track in tracks])
        rows, columns = linear_sum_assignment(-np.where(possible, 0.1 + overlap + likely, 0.0))
        same = {int(n): int(m) for n, m in zip(rows, columns, strict=True) if possible[n, m]}
        return same, {int(m) for m in np.flatnonzero((covered >= SAME_SHARE).any(0))} - set(same.values())

    def _new_id(self, used: set[int]) -> int:
        self._last_id = self._last_id % LAST_ID + 1
        while self._last_id in used:
            self._last_id = self._last_id % LAST_ID + 1
        return self._last_id


def segment_streams(
    segmenter: Segmenter, images: Sequence[np.ndarray], streams: Sequence[Stream]
) -> list[list[Instance]]:
    """The next frame of every stream: looks of all that fit together are one batch, full starts among them or not.

    Args:
        segmenter: that of all the streams.
        images: uint8 [H, W, 3] of any sizes, one for each stream.
        streams: all different.

    Raises SegmentError: an image has another type or shape; streams of another Segmenter, or one of them twice.
    """
    if any(stream.segmenter is not segmenter for stream in streams) or len({*map(id, streams)}) < len(streams):
        raise SegmentError("The streams must be different ones of this Segmenter.")
    start = clock = time.perf_counter()
    images = [check_image(rgb) for rgb in images]
    timings = segmenter.network.timings = type(segmenter.network.timings)()
    frames = [stream.begin(rgb) for stream, rgb in zip(streams, images, strict=True)]
    timings.add("motion", clock)
    results: dict[int, list[Instance]] = {}
    while waiting := [n for n in range(len(frames)) if n not in results]:
        for n, (kept, crops) in zip(waiting, _pass(segmenter, [frames[n] for n in waiting]), strict=True):
            stream, frame = streams[n], frames[n]
            if stream.is_lost(frame, kept):  # what is seen may be there all the same, elsewhere
                everything = list(range(len(frame.whole[0])))
                frames[n] = _Frame(
                    stream, frame.rgb, frame.grey, None, frame.tracks, frame.whole, everything, frame.surprise
                )
            else:
                results[n] = stream.finish(frame, kept, crops)
    segmenter.last_timings = {**timings.seconds, "total": time.perf_counter() - start}
    return [results[n] for n in range(len(frames))]


_Found = tuple[list[tuple[Candidate, np.ndarray]], dict[int, Refined]]


def _pass(segmenter: Segmenter, frames: list[_Frame]) -> list[_Found]:
    """Look and look again at frames of different streams; candidates with masks, and the crop of each."""
    settings, timings = segmenter.settings, segmenter.network.timings
    clock = time.perf_counter()
    candidates: list[list[Candidate]] = [[] for _ in frames]
    crops: list[dict[int, Refined]] = [{} for _ in frames]
    sizes = [(frame.rgb.shape[0], frame.rgb.shape[1]) for frame in frames]
    if segmenter._catalogue and not settings.refine:  # masks are made by this pass: there is nothing to save
        indices = range(len(segmenter._catalogue))
        for n, coarse in enumerate(segmenter._run([segmenter._coarse_look(frame.rgb, indices) for frame in frames])):
            candidates[n] = segmenter.coarse_candidates(coarse, sizes[n])
        clock = timings.add("coarse", clock)
    elif segmenter._catalogue:
        segmenter._run([frame.stream.coarse_look(frame) for frame in frames])
        clock = timings.add("coarse", clock)
        for frame in frames:
            frame.stream.propose(frame)
        clock = timings.add("proposals", clock)
        crop_looks: list[_Look] = []
        owners: list[int] = []
        for n, frame in enumerate(frames):
            if frame.proposals:
                own = frame.stream.refine_looks(frame)
                crop_looks += own
                owners += [n] * len(own)
        refined: list[dict[int, Refined]] = [{} for _ in frames]
        for n, numbered in zip(owners, segmenter._run(crop_looks), strict=True):
            refined[n].update(numbered)
        clock = timings.add("refine", clock)
        items_of = [[refined[n][p] for p in range(len(frame.proposals))] for n, frame in enumerate(frames)]
        again = [frame.stream.reframe(frame, items) for frame, items in zip(frames, items_of, strict=True)]
        seen = [n for n, look in enumerate(again) if look is not None]
        for n, crops_again in zip(seen, segmenter._run([look for look in again if look is not None]), strict=True):
            items_of[n] += crops_again
        clock = timings.add("reframe", clock)
        for n, frame in enumerate(frames):
            if frame.proposals:
                assert frame.coarse is not None
                items = frame.stream.recall(frame, items_of[n])
                crop_of: dict[int, Refined] = {}
                for item, some in zip(items, segmenter._candidates_of(items, frame.coarse, sizes[n]), strict=True):
                    candidates[n] += some
                    crop_of |= {id(candidate): item for candidate in some}
                compared = segmenter._compared(candidates[n], frame.coarse.indices, sizes[n])
                crops[n] = {id(candidate): crop_of[id(origin)] for candidate, origin in compared}
                candidates[n] = [candidate for candidate, _ in compared]
    found = []
    for n, some in enumerate(candidates):
        kept = extract.resolve(some, *sizes[n], settings.mask_threshold, settings.min_pixels)
        found.append((kept, crops[n]))
    timings.add("instances", clock)
    return found


def _numbered(
    numbers: list[int], finish: Callable[[Output], list[Refined]], output: Output
) -> list[tuple[int, Refined]]:
    """What a look of some of the proposals gives, with their numbers."""
    return list(zip(numbers, finish(output), strict=True))


def _coarse_result(indices: tuple[int, ...], canvas: View, confidence: np.ndarray, complete: float) -> CoarseResult:
    """From confidences [N, Q, H, W] and their `extract.completeness`; the similarity is left out."""
    similarity = np.zeros((len(indices), 2, 1, 1), np.float32)
    return CoarseResult(indices, canvas, confidence[:, None], similarity, confidence, complete)


def _covered(box: Sequence[float], other: Sequence[float]) -> float:
    """Share of a box (x, y, width, height) that another covers."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0) / max(box[2] * box[3], 1e-6)


def _whole_crop(item: Refined, candidate: Candidate, size: tuple[int, int]) -> Patch | None:
    """Confidence all over the crop in which a candidate was seen, at the resolution of the image."""
    mean = _average(item.members)
    which = 0
    if len(mean) > 1:  # the query that shows most of the candidate
        height, width = candidate.confidence.shape
        x0, y0, x1, y1 = item.view.box_on_canvas((candidate.x, candidate.y, width, height))
        which = int(mean[:, y0:y1, x0:x1].mean((1, 2)).argmax())
    height, width = item.view.canvas
    values, x, y = to_image(np.ascontiguousarray(mean[which]), item.view, (0, 0, width, height), *size)
    return Patch(values, x, y) if values.size else None
