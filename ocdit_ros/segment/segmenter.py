# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The Segmenter: a catalogue of objects, and images turned into instances of them.

>>> segmenter = Segmenter.from_checkpoint()
>>> segmenter.add_object(ObjectSpec("mug", "mug.ply", scale=0.001))
>>> for instance in segmenter.segment(rgb):
...     print(instance.name, instance.score, instance.box)

Stages, each a method that can be called alone: `coarse` looks at the whole image, `proposals` finds places
worth a second look, `refine` looks at enlarged crops of them, `reframe` looks once more where a crop was framed
badly, `candidates` weighs what was seen, `resolve` settles who owns which pixel.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_ros.model import ModelConfig, OCDiT, SamplerSettings, load_checkpoint
from ocdit_ros.segment import extract, scale
from ocdit_ros.segment.extract import Candidate
from ocdit_ros.segment.network import KnownObject, Network, Output
from ocdit_ros.segment.scoring import Scorer
from ocdit_ros.segment.types import Instance, SegmentError, SegmenterSettings, StreamSettings
from ocdit_ros.segment.views import View, align, augmented, crop_around, finer, tiled, whole_image
from ocdit_ros.segment.weights import default_weights
from ocdit_ros.templates import ObjectSpec, RenderSettings, TemplateCache, TemplateSet

if TYPE_CHECKING:
    from ocdit_ros.segment.stream import Stream


#: Below this score a candidate does not get a better crop.
REFRAME_SCORE = 0.05


@dataclass(frozen=True, eq=False)
class CoarseResult:
    """Confidences over the whole image; N objects, E members, Q queries."""

    indices: tuple[int, ...]  # of the objects in the catalogue
    view: View
    members: np.ndarray  # float32 [N, E, Q, H, W], NaN where a member does not see
    similarity: np.ndarray  # float32 [N, 2, h, w] as in Output, on the tokens of the whole image's look
    confidence: np.ndarray  # float32 [N, Q, H, W]: mean of the members; with tiles, the highest of all looks
    completeness: float = 0.5  # as extract.completeness


@dataclass(frozen=True, eq=False)
class Proposal:
    """A place that may hold an instance."""

    index: int  # of the object in the catalogue
    row: int  # of the object in the coarse result
    query: int
    box: tuple[float, float, float, float]  # x, y, width, height in the image
    strength: float  # highest confidence inside
    prompt: tuple[float, float, float, float] | None = None  # box of the one instance that is meant (`box_prompt`)
    whole: Candidate | None = None  # of which this may be one of several instances


@dataclass(frozen=True, eq=False)
class Refined:
    """Confidences in the crop of one proposal."""

    proposal: Proposal
    view: View
    members: np.ndarray  # float32 [E, Q, H, W]
    similarity: np.ndarray  # float32 [2, H/16, W/16], as in Output
    found: tuple[Candidate, ...] | None = None  # its candidates, where they are known already


@dataclass(frozen=True, eq=False)
class _Look:
    """What the network is to look at in one frame, and what is made of its answer."""

    images: list[np.ndarray]  # uint8 [H, W, 3] each, one size
    rows: list[list[KnownObject]]
    slots: list[list[int]]
    image_of_row: list[int]
    targets: int
    sampler: SamplerSettings
    finish: Callable[[Output], Any]
    origin: np.ndarray | None = None  # confidences [rows, N_O, Q, H, W] that the sampler starts from
    boxes: np.ndarray | None = None  # [rows, 4] in which the first object is asked for, as `Network.run` takes them

    @property
    def shape(self) -> tuple:
        """Looks with the same shape fit into one batch."""
        return self.images[0].shape, len(self.rows[0]), self.targets, self.sampler, self.origin is None


class Segmenter:
    """Instances of known objects in RGB images. Not thread-safe: one caller at a time.

    Attributes:
        settings: may be replaced between images.
        last_timings: seconds per stage of the last `segment`, and `total`.
    """

    def __init__(
        self,
        model: OCDiT | Network,
        settings: SegmenterSettings | None = None,
        cache: TemplateCache | None = None,
        device: str = "cpu",
        scorer: Scorer | None = None,
    ) -> None:
        """Wrap a model; `cache` keeps templates and features on disk (None: the default folder)."""
        self.network = model if not isinstance(model, OCDiT) else Network(model, device)
        self.settings = settings or SegmenterSettings()
        self.scorer = scorer or Scorer.from_metadata(getattr(model, "provenance", None) or {})
        self.last_timings: dict[str, float] = {}
        self._cache = cache or TemplateCache()
        self._catalogue: list[KnownObject] = []
        self._feature_key: str | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        settings: SegmenterSettings | None = None,
        cache: TemplateCache | None = None,
    ) -> Segmenter:
        """Load weights; None takes those that ship with the package.

        Raises SegmentError: no path is given and no weights are installed. CheckpointError: the file cannot
        be used.
        """
        return cls(load_checkpoint(path or default_weights(), device), settings, cache, device)

    # --------------------------------------------------------------------------- catalogue

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.network.config

    @property
    def objects(self) -> list[str]:
        """Names of the objects, in the order they were added; an instance's object_id counts from 1 in this
        list.
        """
        return [known.name for known in self._catalogue]

    def add_object(self, spec: ObjectSpec) -> None:
        """Load an object's mesh, render it, compute its features; or take all that from the cache.

        Raises SegmentError: an object of that name is there already. MeshError: the mesh cannot be used.
        """
        self._refuse_duplicate(spec.name)
        if self._feature_key is None:
            self._feature_key = self.network.feature_key
        settings = RenderSettings(views=self.config.templates, size=self.config.template_size)
        entry = self._cache.get(spec, settings, self.network.featurize, self._feature_key)
        self._add(spec.name, entry.templates.diameter, entry.features)

    def add_templates(self, templates: TemplateSet) -> None:
        """Add an object from rendered templates, under the templates' name; nothing is cached.

        Raises SegmentError: the templates have no name, another size than the network expects, or a name that
        is taken.
        """
        if not templates.name:
            raise SegmentError("The templates have no name; set TemplateSet.name.")
        self._refuse_duplicate(templates.name)
        size = self.config.template_size
        if templates.images.shape[1:] != (size, size, 3):
            raise SegmentError(
                f"The templates of '{templates.name}' are {templates.images.shape[1:]}, the weights expect "
                f"({size}, {size}, 3); render them again."
            )
        self._add(templates.name, templates.diameter, self.network.featurize(templates))

    def remove_object(self, name: str) -> None:
        """Forget an object.

        Raises SegmentError: there is no object of that name.
        """
        gone = self._catalogue.pop(self._index(name))
        for known in gone.alike:
            known.alike.remove(gone)

    def _add(self, name: str, diameter: float, features: dict[str, np.ndarray]) -> None:
        new = self.network.onboard(name, diameter, features, self._free_slot())
        for known in self._catalogue:
            if scale.only_size_tells(known, new):
                known.alike.append(new)
                new.alike.append(known)
        self._catalogue.append(new)

    def _refuse_duplicate(self, name: str) -> None:
        if name in self.objects:
            raise SegmentError(f"There is an object '{name}' already; choose another name or remove it first.")

    def _index(self, name: str) -> int:
        try:
            return self.objects.index(name)
        except ValueError:
            raise SegmentError(
                f"There is no object '{name}'; known are: {', '.join(self.objects) or 'none'}."
            ) from None

    # --------------------------------------------------------------------------- one image

    def segment(self, rgb: np.ndarray, objects: Sequence[str] | None = None) -> list[Instance]:
        """Find instances.

        Args:
            rgb: uint8 [H, W, 3] of any size.
            objects: names of the objects to look for; None looks for all.

        Returns instances, best score first; their masks do not overlap.

        Raises SegmentError: the image has another type or shape, or an object is not known.
        """
        return self.segment_many([rgb], objects)[0]

    def segment_many(self, images: Sequence[np.ndarray], objects: Sequence[str] | None = None) -> list[list[Instance]]:
        """`segment` for images of several cameras: those of one size go through the network as one batch.

        Noise is drawn for each image as if it were alone, so the company of others changes rounding only.
        """
        start = clock = time.perf_counter()
        images = [check_image(rgb) for rgb in images]
        indices = range(len(self._catalogue)) if objects is None else [self._index(name) for name in objects]
        timings = self.network.timings = type(self.network.timings)()
        candidates: list[list[Candidate]] = [[] for _ in images]
        if len(indices):
            coarse = self._run([self._coarse_look(rgb, indices) for rgb in images])
            clock = timings.add("coarse", clock)
            if self.settings.refine:
                proposals = [self.proposals(one) for one in coarse]
                clock = timings.add("proposals", clock)
                seen = [n for n, places in enumerate(proposals) if places]
                looks = [self._refine_look(images[n], coarse[n], proposals[n]) for n in seen]
                refined = dict(zip(seen, self._run(looks), strict=True))
                clock = timings.add("refine", clock)
                again = {n: self._again(crops, coarse[n], images[n].shape[:2]) for n, crops in refined.items()}
                refined = {n: list(stays.values()) for n, (stays, _) in again.items()}
                seen = [n for n, (_, places) in again.items() if places]
                looks = [self._refine_look(images[n], coarse[n], again[n][1]) for n in seen]
                for n, crops in zip(seen, self._run(looks), strict=True):
                    refined[n] += crops
                clock = timings.add("reframe", clock)
                for n, crops in refined.items():
                    candidates[n] = self.candidates(crops, coarse[n], images[n].shape[:2])
            else:
                candidates = [
                    self.coarse_candidates(one, rgb.shape[:2]) for one, rgb in zip(coarse, images, strict=True)
                ]
        found = [self.resolve(some, rgb.shape[:2]) for some, rgb in zip(candidates, images, strict=True)]
        timings.add("instances", clock)
        self.last_timings = {**timings.seconds, "total": time.perf_counter() - start}
        return found

    def stream(self, settings: StreamSettings | None = None) -> Stream:
        """A camera whose frames are segmented one after the other; any number of them share this Segmenter."""
        from ocdit_ros.segment.stream import Stream

        return Stream(self, settings)

    def segment_streams(self, images: Sequence[np.ndarray], streams: Sequence[Stream]) -> list[list[Instance]]:
        """The next frame of each of several streams of this Segmenter, as one batch; as `Stream.segment`."""
        from ocdit_ros.segment.stream import segment_streams

        return segment_streams(self, images, streams)

    def trace(
        self, rgb: np.ndarray, steps: int = 8, objects: Sequence[str] | None = None
    ) -> tuple[View, list[np.ndarray]]:
        """The coarse masks as they emerge from noise.

        Returns the view of the image that the network saw, and per step the confidences float32 [N, H, W] of
        all objects.
        """
        rgb = check_image(rgb)
        indices = range(len(self._catalogue)) if objects is None else [self._index(name) for name in objects]
        view = self._coarse_view(rgb)
        frames: list[np.ndarray] = []
        if not len(indices):
            return view, frames
        rows, slots, places = self._groups(indices)

        def watch(step: int, confidence: np.ndarray) -> None:
            frames.append(np.stack([confidence[r, 0, c].max(0) for r, c in places]))

        self.network.run(
            [view.sample(rgb)], rows, slots, [0] * len(rows), len(rows[0]),
            SamplerSettings(steps, self.settings.solver, 1), self.settings.seed, 2**62, watch,
        )  # fmt: skip
        return view, frames

    # --------------------------------------------------------------------------- stages

    def coarse(self, rgb: np.ndarray, indices: Sequence[int] | None = None) -> CoarseResult:
        """Look at the whole image once per group of objects; all groups are one batch.

        With refinement the coarse pass only has to find places, so it takes `coarse_ensemble` noises of the plain
        view and of its tiles, and keeps the highest confidence of those that see a pixel; without, the ensemble
        of the settings.
        """
        indices = range(len(self._catalogue)) if indices is None else indices
        if not len(indices):
            raise SegmentError("There is no object to look for; add one first.")
        return self._run([self._coarse_look(rgb, indices)])[0]

    def _coarse_look(self, rgb: np.ndarray, indices: Sequence[int]) -> _Look:
        settings = self.settings
        views, canvas = self._coarse_views(rgb)
        tiles = settings.refine and len(views) > 1
        noises = settings.coarse_ensemble if settings.refine else settings.ensemble
        rows, slots, places = self._groups(indices)

        def finish(output: Output) -> CoarseResult:
            groups = len(rows)
            looks = [(view, output.confidence[n * groups : (n + 1) * groups]) for n, view in enumerate(views)]
            if tiles:  # one after the other: all looks of all objects on the common canvas would fill the memory
                aligned = (align(part.mean(1, keepdims=True), look, canvas) for look, part in looks)
                members = functools.reduce(np.fmax, (np.stack([one[r, :, c] for r, c in places]) for one in aligned))
            else:
                parts = [align(confidence, look, canvas) for look, confidence in looks]  # V x [G, E, N_O, Q, H, W]
                members = np.stack([np.concatenate([part[r, :, c] for part in parts]) for r, c in places])
                members = np.stack([extract.match_queries(m) for m in members])
            similarity = np.stack([output.similarity[r, c] for r, c in places])
            mean = np.stack([_average(m) for m in members])
            complete = extract.completeness(extract.objectness(similarity), mean)
            return CoarseResult(tuple(indices), canvas, members, similarity, mean, complete)

        return self._groups_look(rgb, views, rows, slots, noises, finish)

    def _groups_look(
        self, rgb: np.ndarray, views: list[View], rows: list[list[KnownObject]], slots: list[list[int]], noises: int,
        finish: Callable[[Output], Any],
    ) -> _Look:  # fmt: skip
        """All groups of objects in every view, view by view."""
        return _Look(
            [v.sample(rgb) for v in views],
            rows * len(views),
            slots * len(views),
            [n for n in range(len(views)) for _ in rows],
            len(rows[0]),
            SamplerSettings(self.settings.steps, self.settings.solver, noises),
            finish,
        )

    def _coarse_views(self, rgb: np.ndarray) -> tuple[list[View], View]:
        """What the coarse pass looks at, the whole image first, and the canvas on which all of it meets."""
        settings = self.settings
        view = self._coarse_view(rgb)
        if not settings.refine:
            return augmented(view, settings.augmentations), view
        # which query takes which instance is arbitrary in every look, and parts of instances cannot be told apart
        tiles = tiled(view, settings.tiles) if self.config.queries_per_object == 1 else []
        return [view, *tiles], finer(view) if tiles else view

    def proposals(self, coarse: CoarseResult) -> list[Proposal]:
        """Places where a coarse confidence rises above the proposal threshold, strongest first."""
        settings = self.settings
        found: list[Proposal] = []
        owned = _ownership(coarse, settings.mask_threshold)
        for row, index in enumerate(coarse.indices):
            own: list[Proposal] = []
            occluders = (owned >= 0) & (owned != row)
            for query, confidence in enumerate(coarse.confidence[row]):
                peak = float(confidence.max())
                if peak <= settings.proposal_threshold:
                    continue
                # a weak map is cut at half its peak, so that a faint object still gives a box of its own size
                cut = min(settings.mask_threshold, max(0.5 * peak, settings.proposal_threshold))
                for part in extract.separate(confidence, cut, 1, occluders):
                    x, y, width, height = extract.box_of(part)
                    box = coarse.view.box_in_image((x, y, x + width, y + height))
                    own.append(Proposal(index, row, query, box, float(confidence[part].max())))
            own.sort(key=lambda p: -p.strength * np.sqrt(p.box[2] * p.box[3]))
            found += own[: settings.proposals_per_object]
        found.sort(key=lambda p: -p.strength)
        return found[: settings.max_crops]

    def refine(self, rgb: np.ndarray, coarse: CoarseResult, proposals: Sequence[Proposal]) -> list[Refined]:
        """Look again at a crop around every proposal; all crops are one batch.

        Next to the proposal's object the network sees those that the coarse pass claims the most of the crop
        for.
        """
        return self._run([self._refine_look(rgb, coarse, proposals)])[0] if proposals else []

    def reframe(self, rgb: np.ndarray, coarse: CoarseResult, refined: Sequence[Refined]) -> list[Refined]:
        """The crops that show their instances as they should, and new ones in place of the others.

        A crop is framed by what the coarse pass saw, which may be a part of the instance or more than it. The mask
        found in it says where the instance is: where the crop around that mask overlaps the one that was looked at by
        less than `settings.reframe`, it is looked at instead, once. Where a mask is so large, for what else is in view,
        that it may be several copies which touch, a network that takes boxes looks for one in either half of it.
        """
        stays, places = self._again(refined, coarse, rgb.shape[:2])
        return [*stays.values(), *self.refine(rgb, coarse, places)]

    def _again(
        self, refined: Sequence[Refined], coarse: CoarseResult, size: tuple[int, int], fixed: Sequence[int] = ()
    ) -> tuple[dict[int, Refined], list[Proposal]]:
        """The crops that stay, by their numbers, `fixed` among them, and what is to be looked at again.

        A crop goes when each of its candidates asks for another, and none of the crops is about that one.
        """
        settings = self.settings
        stays, places = {n: refined[n] for n in fixed}, list[Proposal]()
        if not settings.reframe:
            return dict(enumerate(refined)), places
        crops = [(item.proposal.index, item.view) for item in refined]
        loose = [n for n in range(len(refined)) if n not in fixed]
        found = dict(zip(loose, self._candidates_of([refined[n] for n in loose], coarse, size), strict=True))
        several = self._several([c for some in found.values() for c in some], size)
        for n, some in found.items():
            asked = whole = 0
            for candidate in some:
                mask = candidate.confidence > settings.mask_threshold
                if candidate.whole is not None or candidate.score < REFRAME_SCORE or not mask.any():
                    continue
                whole += 1
                if id(candidate) in several:
                    pieces = [(c, c.confidence > settings.mask_threshold) for c in some if c.whole is candidate]
                    pieces = pieces or [(candidate, end) for end in extract.halves(mask)]
                    boxes = [_box_in_image(c, piece) for c, piece in pieces if piece.any()]
                    if boxes and len(places) + len(boxes) <= settings.max_crops:
                        places += [replace(refined[n].proposal, box=b, prompt=b, whole=candidate) for b in boxes]
                        continue
                box = _box_in_image(candidate, mask)
                crop = crop_around(box, settings.crop_scale, settings.crop_size, *size)
                if (
                    all(index != candidate.index or crop.overlap(view) < settings.reframe for index, view in crops)
                    and len(places) < settings.max_crops
                ):
                    crops.append((candidate.index, crop))
                    places.append(replace(refined[n].proposal, box=box, prompt=box if self.config.box_prompt else None))
                    asked += 1
            if not whole or asked < whole:
                stays[n] = replace(refined[n], found=tuple(some))
        return {n: stays[n] for n in sorted(stays)}, places

    def _several(self, candidates: list[Candidate], size: tuple[int, int]) -> set[int]:
        """id() of those that may be several copies which touch, where the network can tell them apart."""
        if not self.config.box_prompt or not self.settings.compare_sizes:
            return set()
        whole = [c for c in candidates if c.whole is None]
        diameters = [self._catalogue[c.index].diameter for c in whole]
        doubtful = scale.may_be_several(whole, diameters, self.settings.mask_threshold, size)
        return {id(c) for c, doubt in zip(whole, doubtful, strict=True) if doubt}

    def _refine_look(
        self, rgb: np.ndarray, coarse: CoarseResult, proposals: Sequence[Proposal],
        choose: Callable[[int, View], list[View]] | None = None,
    ) -> _Look:  # fmt: skip
        """`choose` gives the views of the crop of the n-th proposal; without, those of the settings."""
        settings = self.settings
        height, width = rgb.shape[:2]
        crops = [crop_around(p.box, settings.crop_scale, settings.crop_size, height, width) for p in proposals]
        peaks = coarse.confidence.max(1)  # [N, H, W]
        size = min(settings.crop_objects, self.config.max_objects, len(coarse.indices))
        rows, slots = [], []
        for proposal, crop in zip(proposals, crops, strict=True):
            x0, y0, x1, y1 = coarse.view.box_on_canvas((crop.x, crop.y, crop.width, crop.height))
            claims = peaks[:, y0:y1:2, x0:x1:2]
            claims = np.where(claims > settings.proposal_threshold, claims, 0.0).mean((1, 2)) + 1e-3 * claims.max(
                (1, 2)
            )
            claims[proposal.row] = np.inf
            chosen = np.argsort(-claims, kind="stable")[:size]
            rows.append([self._catalogue[coarse.indices[int(c)]] for c in chosen])
            slots.append(self._slots([coarse.indices[int(c)] for c in chosen]))
        choose = choose or (lambda _, crop: augmented(crop, settings.augmentations))
        views = [choose(n, crop) for n, crop in enumerate(crops)]
        boxes = None
        if any(p.prompt is not None for p in proposals):
            each = [(view, p.prompt) for p, some in zip(proposals, views, strict=True) for view in some]
            boxes = np.array([(np.nan,) * 4 if box is None else view.shares(box) for view, box in each], np.float32)
        firsts = np.cumsum([0, *(len(some) for some in views)])

        def finish(output: Output) -> list[Refined]:
            refined = []
            for n, (proposal, crop) in enumerate(zip(proposals, crops, strict=True)):
                parts = [align(output.confidence[firsts[n] + v, :, 0], view, crop) for v, view in enumerate(views[n])]
                members = extract.match_queries(np.concatenate(parts))
                similarity = output.similarity[firsts[n], 0]
                if views[n][0] != crop:  # as it lies in the crop
                    first, whole = (replace(view, canvas=similarity.shape[1:]) for view in (views[n][0], crop))
                    similarity = align(similarity, first, whole)
                    beyond = np.nanmean(similarity, (1, 2), keepdims=True)
                    similarity = np.where(np.isnan(similarity), beyond, similarity)
                refined.append(Refined(proposal, crop, members, similarity))
            return refined

        return _Look(
            [view.sample(rgb) for row in views for view in row],
            [row for row, some in zip(rows, views, strict=True) for _ in some],
            [slot for slot, some in zip(slots, views, strict=True) for _ in some],
            list(range(int(firsts[-1]))),
            1,
            SamplerSettings(settings.steps, settings.solver, settings.ensemble),
            finish,
            boxes=boxes,
        )

    def _run(self, looks: Sequence[_Look]) -> list[Any]:
        """What each look gives; those that fit together are one batch."""
        batches: dict[tuple, list[int]] = {}
        for n, look in enumerate(looks):
            batches.setdefault(look.shape, []).append(n)
        results: dict[int, Any] = {}
        for members in batches.values():
            together = [looks[n] for n in members]
            firsts = np.cumsum([0, *(len(look.images) for look in together)])
            of_frame: dict[str, Any] = {}  # one frame needs no telling apart
            if len(together) > 1:
                of_frame["frame_of_row"] = [n for n, look in enumerate(together) for _ in look.rows]
            origins = [look.origin for look in together if look.origin is not None]
            if origins:
                of_frame["origin"] = np.concatenate(origins)
            if any(look.boxes is not None for look in together):
                nowhere = [np.full((len(look.rows), 4), np.nan, np.float32) for look in together]
                of_frame["boxes"] = np.concatenate(
                    [none if look.boxes is None else look.boxes for look, none in zip(together, nowhere, strict=True)]
                )
            output = self.network.run(
                [image for look in together for image in look.images],
                [row for look in together for row in look.rows],
                [slot for look in together for slot in look.slots],
                [int(first) + i for first, look in zip(firsts, together) for i in look.image_of_row],
                together[0].targets,
                together[0].sampler,
                self.settings.seed,
                self.settings.batch_tokens,
                **of_frame,
            )
            row = 0
            for n, look in zip(members, together, strict=True):
                part = slice(row, row + len(look.rows))
                results[n] = look.finish(Output(output.confidence[part], output.similarity[part]))
                row = part.stop
        return [results[n] for n in range(len(looks))]

    def candidates(self, refined: Sequence[Refined], coarse: CoarseResult, size: tuple[int, int]) -> list[Candidate]:
        """Instances seen in the crops, with their evidence and scores."""
        found = [candidate for some in self._candidates_of(refined, coarse, size) for candidate in some]
        return [candidate for candidate, _ in self._compared(found, coarse.indices, size)]

    def _compared(
        self, candidates: Sequence[Candidate], indices: Sequence[int], size: tuple[int, int]
    ) -> list[tuple[Candidate, Candidate]]:
        """Candidates scored with what their sizes say about each other, each with the one that it was made of.

        What looks the same in two sizes is proposed under both names, if both were asked for: which of them the network
        is surer of is chance.
        """
        threshold = self.settings.mask_threshold
        pairs = [(candidate, candidate) for candidate in candidates]
        if not self.settings.compare_sizes:
            return pairs
        place = {id(self._catalogue[index]): index for index in indices}
        for candidate in candidates:
            for other in self._catalogue[candidate.index].alike:
                if (index := place.get(id(other))) is not None:
                    pairs.append((replace(candidate, index=index), candidate))
        diameters = [self._catalogue[c.index].diameter for c, _ in pairs]
        for n, value in enumerate(scale.scale_evidence([c for c, _ in pairs], diameters, threshold, size)):
            candidate, origin = pairs[n]
            evidence = replace(candidate.evidence, scale=float(value))
            pairs[n] = replace(candidate, evidence=evidence, score=self.scorer(evidence)), origin
        stays = scale.settle_splits([candidate for candidate, _ in pairs], [origin for _, origin in pairs], threshold)
        return [pair for pair, stay in zip(pairs, stays, strict=True) if stay]

    def _candidates_of(
        self, refined: Sequence[Refined], coarse: CoarseResult, size: tuple[int, int]
    ) -> list[list[Candidate]]:
        """`candidates`, crop by crop."""
        found = []
        owned, rivals = _ownership(coarse, self.settings.mask_threshold), _Rivals(coarse)
        for item in refined:
            if item.found is not None:
                found.append(list(item.found))
                continue
            row, query = item.proposal.row, item.proposal.query
            maps = np.stack([coarse.confidence[row, query], rivals.of(row), (owned >= 0) & (owned != row)])
            before, rival, others = np.nan_to_num(align(maps.astype(np.float32), coarse.view, item.view))
            target = item.view.box_on_canvas(item.proposal.box)
            some = []
            for member in np.moveaxis(item.members, 1, 0):  # queries
                some += self._parts(
                    item.proposal.index,
                    member,
                    item.view,
                    item.similarity,
                    others > 0.5,
                    rival,
                    before,
                    target,
                    size,
                    len(coarse.indices),
                    coarse.completeness,
                    item.proposal.prompt is not None,
                )
            if item.proposal.prompt is not None:
                some = [replace(c, whole=item.proposal.whole, boxed=True) for c in some]
            found.append(some)
        return found

    def coarse_candidates(self, coarse: CoarseResult, size: tuple[int, int]) -> list[Candidate]:
        """Instances seen in the coarse pass alone."""
        found = []
        owned, rivals = _ownership(coarse, self.settings.mask_threshold), _Rivals(coarse)
        for row, index in enumerate(coarse.indices):
            others, rival = (owned >= 0) & (owned != row), rivals.of(row)
            for member in np.moveaxis(coarse.members[row], 1, 0):
                found += self._parts(
                    index,
                    member,
                    coarse.view,
                    coarse.similarity[row],
                    others,
                    rival,
                    None,
                    None,
                    size,
                    len(coarse.indices),
                    coarse.completeness,
                )
        return [candidate for candidate, _ in self._compared(found, coarse.indices, size)]

    def resolve(self, candidates: Sequence[Candidate], size: tuple[int, int]) -> list[Instance]:
        """Instances out of candidates: duplicates go, pixels are shared out, weak scores are left out."""
        settings = self.settings
        kept = extract.resolve(candidates, *size, settings.mask_threshold, settings.min_pixels)
        return [
            Instance(
                c.index + 1, self._catalogue[c.index].name, c.score, mask, extract.box_of(mask), c.evidence
            )
            for c, mask in kept
            if c.score >= settings.score_threshold
        ]  # fmt: skip

    # --------------------------------------------------------------------------- parts

    def _parts(
        self, index: int, members: np.ndarray, view: View, similarity: np.ndarray, occluders: np.ndarray,
        rival: np.ndarray, coarse: np.ndarray | None, target: tuple[int, int, int, int] | None, size: tuple[int, int],
        asked: int, complete: float, one: bool = False,
    ) -> list[Candidate]:  # fmt: skip
        """Candidates in the map of one query, members [E, H, W].

        In a crop (`target` is the proposal's box on the canvas) a part that the crop's border cuts is left to
        the crop that was made for it, unless it is the one this crop was made for. `asked`: count of objects asked for;
        `complete`: how much of what looks like an object is given to them; `one`: the map is about one instance.
        """
        pixel_area = view.width / view.canvas[1] * view.height / view.canvas[0]
        threshold = self.settings.mask_threshold
        confidence = extract.average(members)
        parts = extract.separate(confidence, threshold, 8, occluders)
        found = []
        everything = np.any(parts, axis=0) if parts else None
        if target is not None:
            x0, y0, x1, y1 = target
            main = max(range(len(parts)), key=lambda n: int(parts[n][y0:y1, x0:x1].sum()), default=None)
            parts = [p for n, p in enumerate(parts) if n == main or not (one or _is_cut(p, view, size))]
        waiting: list[tuple[np.ndarray, Candidate | None]] = [(part, None) for part in parts]
        while waiting:
            part, whole = waiting.pop(0)
            others = everything & ~part
            evidence = extract.weigh(
                members, part, others, threshold, similarity, rival, coarse, pixel_area, asked, complete
            )
            patch, x, y = extract.lift(confidence, part, others, view, *size)
            if patch.size:
                candidate = Candidate(index, self.scorer(evidence), evidence, patch, x, y, whole)
                found.append(candidate)
                if self.settings.compare_sizes and not one:
                    waiting += [(piece, candidate) for piece in extract.split(part)]
        return found

    def _coarse_view(self, rgb: np.ndarray) -> View:
        """The whole image, no larger than the network has patch encodings for."""
        height, width = rgb.shape[:2]
        return whole_image(height, width, min(self.settings.coarse_size, 16 * self.config.max_grid))

    def _groups(self, indices: Sequence[int]) -> tuple[list[list[KnownObject]], list[list[int]], list[tuple[int, int]]]:
        """Share objects out over rows of one size, and say in which row and column each one is.

        The last row is filled up with objects of the first, whose second results are not used.
        """
        limit = min(self.settings.group_size, self.config.max_objects)
        count = -(-len(indices) // limit)
        size = -(-len(indices) // count)
        padded = [indices[n % len(indices)] for n in range(count * size)]
        groups = [padded[n * size : (n + 1) * size] for n in range(count)]
        places = [divmod(n, size) for n in range(len(indices))]
        return [[self._catalogue[i] for i in g] for g in groups], [self._slots(g) for g in groups], places

    def _free_slot(self) -> int:
        """The row of the object encoding that the fewest objects have, neighbours in time far apart."""
        total = self.config.max_objects
        used = [known.slot for known in self._catalogue]
        return min(range(total), key=lambda slot: (used.count(slot), slot * 0.618033988749895 % 1.0))

    def _slots(self, indices: Sequence[int]) -> list[int]:
        """Rows of the object encoding, all different: an object has its own where it can, for then its
        conditioning is
        kept.
        """
        total = self.config.max_objects
        used: list[int] = []
        for index in indices:
            slot = self._catalogue[index].slot
            while slot in used:
                slot = (slot + 1) % total
            used.append(slot)
        return used


def check_image(rgb: np.ndarray) -> np.ndarray:
    """The image itself, contiguous.

    Raises SegmentError: it is not uint8 [H, W, 3] with at least one pixel.
    """
    if not isinstance(rgb, np.ndarray):
        raise SegmentError(f"The image is a {type(rgb).__name__}; give a NumPy array uint8 [H, W, 3].")
    if rgb.dtype != np.uint8:
        raise SegmentError(f"The image has dtype {rgb.dtype}; convert it to uint8 with values 0..255.")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise SegmentError(f"The image has shape {rgb.shape}; give [H, W, 3] with the channels red, green, blue.")
    if not rgb.size:
        raise SegmentError(f"The image has shape {rgb.shape} and no pixel.")
    return np.ascontiguousarray(rgb)


def _box_in_image(candidate: Candidate, mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box (x, y, width, height) in the image of a mask within a candidate's window."""
    left, top, width, height = extract.box_of(mask)
    return float(candidate.x + left), float(candidate.y + top), float(width), float(height)


def _average(members: np.ndarray) -> np.ndarray:
    """Mean over the members of [E, Q, H, W]."""
    return np.stack([extract.average(member) for member in np.moveaxis(members, 1, 0)])


def _ownership(coarse: CoarseResult, threshold: float) -> np.ndarray:
    """Row of the object that claims each pixel most in the coarse pass, -1 where none does: int [H, W]."""
    peaks = coarse.confidence.max(1)
    return np.where(peaks.max(0) > threshold, peaks.argmax(0), -1)


class _Rivals:
    """Highest coarse confidence of any other object, per object, without comparing all pairs."""

    def __init__(self, coarse: CoarseResult) -> None:
        peaks = coarse.confidence.max(1)  # [N, H, W]
        self._owner = peaks.argmax(0)
        self._best = peaks.max(0)
        if len(peaks) > 1:
            self._second = np.partition(peaks, -2, axis=0)[-2]
        else:
            self._second = np.zeros_like(self._best)

    def of(self, row: int) -> np.ndarray:
        """float32 [H, W] for the object in this row of the coarse result."""
        return np.where(self._owner == row, self._second, self._best)


def _is_cut(part: np.ndarray, view: View, size: tuple[int, int]) -> bool:
    """Whether a part touches a border of the canvas that is not a border of the image."""
    height, width = size
    left, right = part[:, 0].any(), part[:, -1].any()
    if view.mirrored:
        left, right = right, left
    inside_left, inside_right = view.x > 0, view.x + view.width < width
    inside_top, inside_bottom = view.y > 0, view.y + view.height < height
    return bool(
        (left and inside_left) or (right and inside_right)
        or (part[0].any() and inside_top) or (part[-1].any() and inside_bottom)
    )  # fmt: skip
