# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Training samples: scene shards and the object store turned into (image, query objects, target masks).

A sample is a pure function of (data, seed, index): no worker or process order enters, so that a run can be cut
anywhere and
resumed exactly, and so that two processes see what one would.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ocdit_ros.model import SAME_LOOK, OCDiT, TemplateFeatures
from ocdit_ros.segment.extract import halves

RESEMBLING = 24  # objects that count as resembling one, but no more than an eighth of all

Scene = tuple[NDArray[np.uint8], NDArray[np.uint8], list[dict[str, Any]]]


class Scenes(Protocol):
    """Annotated pictures by index; `SceneShards` here, those of other people in `bop.py`."""

    def __len__(self) -> int:
        """Count of scenes."""

    def __getitem__(self, index: int) -> Scene:
        """Image uint8 [H, W, 3], label uint8 [H, W] (k = k-th instance, from 1) and the list of instances."""


class TarSamples:
    """Random access to the samples of WebDataset shards (.tar); raises ValueError when a folder holds none."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit: int | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        """Find every sample of `folder`; `limit` keeps the first ones only.

        The places are kept in the file `index` when given: to find them, the whole of every shard is walked through.
        """
        self.folder = Path(folder)
        shards = sorted(self.folder.glob("*.tar"))
        sizes = {shard.name: shard.stat().st_size for shard in shards}
        kept = Path(index) if index else None
        known: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.is_file() else {}
        self.scenes: list[tuple[Path, dict[str, tuple[int, int]]]] = []
        found: dict[str, Any] = {}
        for shard in shards:
            if shard.name in known and known[shard.name]["size"] == sizes[shard.name]:
                found[shard.name] = known[shard.name]
            else:
                found[shard.name] = {"size": sizes[shard.name], "samples": self._walk(shard)}
            samples = found[shard.name]["samples"].values()
            self.scenes += [(shard, {suffix: (o, n) for suffix, (o, n) in parts.items()}) for parts in samples]
            if limit is not None and len(self.scenes) >= limit:
                break
        if not self.scenes:
            raise ValueError(f"no scene shards (*.tar) in '{folder}'")
        self.scenes = self.scenes[:limit]
        if kept and known | found != known:
            temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
            temporary.write_text(json.dumps(known | found))
            os.replace(temporary, kept)

    @staticmethod
    def _walk(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
        entries: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                entries.setdefault(key, {})[suffix] = (member.offset_data, member.size)
        return dict(sorted(entries.items()))

    def __len__(self) -> int:
        """Count of scenes."""
        return len(self.scenes)

    def read(self, index: int, *suffixes: str) -> list[bytes]:
        """The files of a sample by their suffixes; raises ValueError when the sample lacks one."""
        shard, parts = self.scenes[index]
        with open(shard, "rb") as file:
            found = []
            for suffix in suffixes:
                if suffix not in parts:
                    raise ValueError(f"sample {index} in '{shard}' has no part '{suffix}'")
                offset, size = parts[suffix]
                file.seek(offset)
                found.append(file.read(size))
        return found


class SceneShards(TarSamples):
    """Random access to the scenes that `shards.py` wrote."""

    def __getitem__(self, index: int) -> Scene:
        """Image uint8 [H, W, 3], label uint8 [H, W] (k = k-th instance, from 1) and the list of instances."""
        picture, label, note = self.read(index, "rgb.jpg", "label.png", "json")
        rgb = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        return rgb, np.asarray(Image.open(io.BytesIO(label))), json.loads(note)["instances"]


class ObjectStore:
    """Templates of the training objects, and their features under the frozen backbone (made once, kept on disk)."""

    def __init__(
        self, folder: str | os.PathLike[str], model: OCDiT, cache: str | os.PathLike[str] | None = None
    ) -> None:
        """Read the index of `folder`; features are cached as float16 in `cache` when given."""
        self.folder, self.model = Path(folder), model
        self.cache = Path(cache) if cache else None
        if self.cache:
            self.cache.mkdir(parents=True, exist_ok=True)
        index = self.folder / "index.json"
        if not index.is_file():
            raise ValueError(f"no object index at '{index}'; generate the objects first")
        self.index: dict[str, dict[str, Any]] = json.loads(index.read_text())
        self.keys = sorted(self.index)
        self.families: dict[str, list[str]] = {}
        for key in self.keys:
            self.families.setdefault(self.index[key]["family"], []).append(key)
        self.memory: dict[str, TemplateFeatures] = {}
        self._resembling: dict[str, list[str]] = {}
        self._same: dict[tuple[str, str], bool] = {}

    def look_alikes(self, key: str) -> list[str]:
        """Other objects of the same family."""
        return [k for k in self.families[self.index[key]["family"]] if k != key]

    def resembling(self, key: str) -> list[str]:
        """The objects whose templates have the features most like those of `key`, best first (up to `RESEMBLING`).

        Not among them: those that look the same, which only their size tells apart.
        """
        if key not in self._resembling:
            cosines = self._descriptors @ self._descriptors[self._number[key]]
            order = [self.keys[i] for i in cosines.argsort(descending=True) if self.keys[i] != key]
            count = min(RESEMBLING, max(len(self.keys) // 8, 1))
            near = [k for k in order[: 2 * count] if not self.look_the_same(key, k)]
            self._resembling[key] = near[:count]
        return self._resembling[key]

    def look_the_same(self, first: str, second: str) -> bool:
        """Whether the templates of two objects show the same: one of them may be the other in another size."""
        pair = (min(first, second), max(first, second))
        if pair not in self._same:
            # objects whose means differ are not worth the comparison of all places of all templates
            near = float(self._descriptors[self._number[first]] @ self._descriptors[self._number[second]]) > 0.8
            if near:
                a, b = (self.features(key).appearance().float() for key in pair)
                near = a.shape == b.shape and float(a @ b) > SAME_LOOK
            self._same[pair] = near
        return self._same[pair]

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    @functools.cached_property
    def _descriptors(self) -> Tensor:
        """Mean feature of each object over its templates, less that of all objects, as unit vectors [objects, C].

        All objects share most of a backbone's mean feature, so what is left of it tells them apart.
        """
        descriptors = torch.stack([self.features(key).mean() for key in self.keys])
        return F.normalize(descriptors - descriptors.mean(0), dim=1)

    def diameter(self, key: str) -> float:
        """Metres."""
        return float(self.index[key]["diameter"])

    def picture(self, key: str, view: int = 0) -> NDArray[np.uint8]:
        """One template of an object, [S, S, 3]."""
        with np.load(self.folder / f"{key}.npz", allow_pickle=False) as arrays:
            return np.asarray(arrays["images"][view], np.uint8)

    def features(self, key: str) -> TemplateFeatures:
        """Float16 features of one object: maps [N_T, C_s, S/s, S/s], coverage [N_T, h_T, w_T]."""
        if key not in self.memory:
            self.memory[key] = self._load(key)
        return self.memory[key]

    def _load(self, key: str) -> TemplateFeatures:
        source = self.folder / f"{key}.npz"
        path = self.cache / f"{key}.safetensors" if self.cache else None
        if path and path.is_file() and path.stat().st_mtime >= source.stat().st_mtime:
            tensors = load_file(path)
            return TemplateFeatures(
                tuple(tensors[f"map_{s}"] for s in self.model.config.feature_strides), tensors["coverage"]
            )
        with np.load(source, allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["images"]).movedim(-1, -3).float() / 255
            masks = torch.from_numpy(arrays["masks"]).float() / 255
        count = self.model.config.templates
        device = self.model.device
        features = self.model.template_features(images[:count].to(device), masks[:count].to(device))
        features = TemplateFeatures(tuple(m.half().cpu() for m in features.maps), features.coverage.half().cpu())
        if path:
            temporary = path.with_name(f".{key}.{os.getpid()}")
            save_file(
                {
                    **{f"map_{s}": m.contiguous() for s, m in zip(self.model.config.feature_strides, features.maps)},
                    "coverage": features.coverage.contiguous(),
                },
                temporary,
            )
            os.replace(temporary, path)
        return features


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How a training sample is drawn from a scene."""

    size: int = 256  # pixels of the square input
    objects: int = 4  # N_O
    queries_per_object: int = 1
    absent: tuple[float, ...] = (0.4, 0.4, 0.2)  # probability of 0, 1, 2, ... absent objects
    look_alike: float = 0.5  # share of absent objects that are look-alikes of objects in the scene, where there are any
    unasked: float = 0.0  # share of samples whose query leaves out some, or all, of what is in view
    resembling: float = 0.0  # share of the other absent objects whose templates resemble an object in view
    prompt: float = 0.0  # share of crops in which the object is asked for in the box of the instance that was framed
    hints: float = 0.0  # share of those boxes that are no instance's, but mean one (`hint_of`)
    gap: int = 0  # pixels that are left free on each side of where instances of one object touch (`keep_apart`)
    zoom: float = 0.5  # share of samples that are crops (as the refine stage sees them)
    crop_scale: tuple[float, float] = (1.1, 3.5)  # side of a crop relative to the longer side of the instance's box
    crop_shift: float = 0.15  # deviation of a crop's middle from that of the box, relative to its longer side
    min_crop: int = 48  # smallest crop, pixels
    growth: float = 1.0  # half of the views that are no crops are enlarged, up to so much, as small images are
    min_pixels: int = 60  # of an object in the input, for it to count as present
    jitter: bool = True
    batch_share: float = 1.0  # of the trainer's batch size: large views with many objects take a smaller batch

    @classmethod
    def coarse(cls, size: int, objects: int, **changes: Any) -> SampleSettings:
        """Views as the coarse pass meets them: no enlarged crops, and any number of the objects may be absent."""
        return cls(**{"size": size, "objects": objects, "zoom": 0.0, "absent": (1 / objects,) * objects, **changes})

    def single(self, share: float) -> SampleSettings:
        """The same views asked for one object, as someone who has one mesh asks; `share` of them without it.

        Nothing else competes for the pixels then, which the network must have met to say no, and to say yes.
        """
        return dataclasses.replace(self, objects=1, absent=(1 - share, share))


@dataclasses.dataclass(frozen=True)
class Batch:
    """B samples: images [B, 3, H, W] in 0..1, masks [B, N_Q, H, W] uint8, diameters [B, N_O], keys [B][N_O].

    `boxes` [B, N_O, 4], NaN for none, where objects are asked for in boxes (`BoxPrompt`); then `unions` [B, N_O, H, W]
    are the masks that they would have without.
    """

    images: Tensor
    masks: Tensor
    diameters: Tensor
    keys: list[list[str]]
    templates: TemplateFeatures
    boxes: Tensor | None = None
    unions: Tensor | None = None

    @property
    def everything(self) -> Tensor:
        """Masks [B, N_Q, H, W] of all instances in view, whatever the boxes ask for."""
        return self.masks if self.unions is None else self.unions

    def to(self, device: torch.device | str) -> Batch:
        """Move to a device."""
        return Batch(
            self.images.to(device),
            self.masks.to(device),
            self.diameters.to(device),
            self.keys,
            self.templates.to(device),
            None if self.boxes is None else self.boxes.to(device),
            None if self.unions is None else self.unions.to(device),
        )


def keep_apart(label: NDArray[np.uint8], numbers: Sequence[int], gap: int) -> NDArray[np.bool_]:
    """Union of the instances `numbers` of one object, without the pixels within `gap` of another one of them.

    The union of copies that touch is one part, from which nothing tells that they were two; with a gap the parts of a
    mask are its instances. It is narrower between small ones: a sixth of the side of the smallest, but at least 2. The
    shipped VAE gives back the same number of parts for 92 % of such groups, with a gap of 4.

    Args:
        label: instances, [H, W], 0 for none.
        numbers: those of the object.
        gap: at most so many pixels on each side; 0 takes the union as it is.

    Returns bool [H, W].
    """
    union = np.isin(label, numbers)
    if gap <= 0 or len(numbers) < 2:
        return union
    masks = [label == number for number in numbers]
    near = int(np.clip(np.sqrt(min(int(own.sum()) for own in masks)) / 6, 2, gap))
    kernel = np.ones((2 * near + 1, 2 * near + 1), np.uint8)
    result = union.copy()
    for own in masks:
        result &= ~own | (cv2.dilate((union & ~own).astype(np.uint8), kernel) == 0)
    return result


def rough_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Left, top, right, bottom of a mask [H, W], as shares of the sides, each off by some of the mask's extent.

    As the box of a mask of the network is: mostly close, now and then far too large or small.
    """
    ys, xs = np.nonzero(mask)
    height, width = mask.shape
    box = np.array([xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height])
    sides = np.tile(box[2:] - box[:2], 2)
    box = box + sides * rng.normal(0, 0.2 if rng.random() < 0.2 else 0.06, 4)
    return np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]).astype(np.float32)


def instance_in(label: NDArray[np.uint8], numbers: Sequence[int], box: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask [H, W] of that of the instances `numbers` whose box overlaps `box`, in shares of the sides, most: IoU of at
    least 0.4, else the mask is empty.
    """
    height, width = label.shape
    best, found = 0.4, np.zeros(label.shape, bool)
    for number in numbers:
        mask = label == number
        ys, xs = np.nonzero(mask)
        own = xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height
        wide, tall = (max(min(own[k + 2], box[k + 2]) - max(own[k], box[k]), 0.0) for k in (0, 1))
        areas = sum(float((b[2] - b[0]) * (b[3] - b[1])) for b in (own, box))
        iou = wide * tall / max(areas - wide * tall, 1e-9)
        if iou >= best:
            best, found = iou, mask
    return found


def hint_of(
    label: NDArray[np.uint8], numbers: Sequence[int], framed: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], int]:
    """A box that is no instance's, in shares of the sides, and which of the instances `numbers` it means.

    What may be one instance or several that touch is asked for in the box of either end: whether the answers are one
    thing, the network has to see in the picture, not in the box. Half of the hints are one end of the connected part of
    the union that shows `framed`, and mean the instance that most of that end is of; the others are squares of 0.25 to
    0.9 times the longer side of `framed` about one of its pixels, and mean it.
    """
    height, width = label.shape
    if rng.random() < 0.5:
        _, parts = cv2.connectedComponents(np.isin(label, numbers).astype(np.uint8))
        ends = halves(parts == int(np.bincount(parts[label == framed]).argmax()))
        if ends:
            end = ends[int(rng.integers(2))]
            return rough_box(end, rng), int(np.bincount(label[end]).argmax())
    ys, xs = np.nonzero(label == framed)
    side = rng.uniform(0.25, 0.9) * max(np.ptp(xs) + 1, np.ptp(ys) + 1)
    k = int(rng.integers(len(xs)))
    middle = np.array([xs[k] + 0.5, ys[k] + 0.5])
    box = np.concatenate([middle - side / 2, middle + side / 2]) / (width, height, width, height)
    return box.astype(np.float32), framed


class SampleSource:
    """Samples and batches by index."""

    def __init__(self, scenes: Scenes, objects: ObjectStore, settings: SampleSettings, seed: int = 0) -> None:
        """Draw from `scenes` with templates from `objects`; scenes whose objects the store lacks raise KeyError on
        use.
        """
        self.scenes, self.objects, self.settings, self.seed = scenes, objects, settings, seed

    def at_step(self, step: int) -> SampleSource:
        """Where the batch of training step `step` comes from."""
        return self

    @property
    def kinds(self) -> list[SampleSource]:
        """Every source that `at_step` may give."""
        return [self]

    def scene_of(self, index: int) -> int:
        """Which scene sample `index` is drawn from: each epoch is one permutation."""
        epoch, place = divmod(index, len(self.scenes))
        return int(np.random.default_rng((self.seed, epoch)).permutation(len(self.scenes))[place])

    def sample(self, index: int) -> tuple[Tensor, Tensor, list[str]]:
        """Image [3, S, S] in 0..1, masks [N_Q, S, S] uint8 and the keys of the N_O objects."""
        return self._draw(index)[:3]

    def _draw(self, index: int) -> tuple[Tensor, Tensor, list[str], Tensor, Tensor]:
        """`sample`, boxes [N_O, 4] and unions [N_O, S, S] as in `Batch`."""
        settings = self.settings
        rng = np.random.default_rng((self.seed, 1, index))
        rgb, label, instances = self.scenes[self.scene_of(index)]
        named = [instance["object"] for instance in instances]
        copies = [n for n, name in enumerate(named, 1) if named.count(name) > 1] if settings.prompt else []
        rgb, label, centre, framed = self._crop(rgb, label, rng, copies)
        counts = np.bincount(label.ravel(), minlength=len(instances) + 1)
        visible: dict[str, list[int]] = {}
        for number, instance in enumerate(instances, 1):
            if counts[number] >= settings.min_pixels:
                visible.setdefault(instance["object"], []).append(number)
        keys = self._choose(visible, label, centre, {i["object"] for i in instances}, rng)
        masks = np.zeros((len(keys), settings.queries_per_object, *label.shape), np.uint8)
        for j, key in enumerate(keys):
            numbers = visible.get(key, [])
            if settings.queries_per_object == 1:
                masks[j, 0] = keep_apart(label, numbers, settings.gap)  # one query: all of the object's instances
                continue
            # several queries: each visible instance goes to one of them, in random order; the rest get the empty mask
            places = rng.permutation(settings.queries_per_object)
            for number, place in zip(rng.permutation(numbers), places):
                masks[j, place] = label == number
        boxes, unions = np.full((len(keys), 4), np.nan, np.float32), masks.max(1)
        if settings.prompt and framed and counts[framed] >= settings.min_pixels and rng.random() < settings.prompt:
            # now and then a box is about another object, or nothing, as proposals of the coarse pass are
            own = keys.index(named[framed - 1]) if named[framed - 1] in keys and rng.random() < 0.8 else None
            chosen = int(rng.integers(len(keys))) if own is None else own
            if settings.hints and own is not None and rng.random() < settings.hints:
                boxes[chosen], number = hint_of(label, visible[keys[own]], framed, rng)
                masks[chosen] = label == number
            else:
                boxes[chosen] = rough_box(label == framed, rng)
                masks[chosen] = instance_in(label, visible.get(keys[chosen], []), boxes[chosen])
        image = torch.from_numpy(rgb.copy()).movedim(-1, 0).float() / 255
        if settings.jitter:
            image = self._jitter(image, rng)
        masks_of_queries = torch.from_numpy(masks).flatten(0, 1)
        return image, masks_of_queries, keys, torch.from_numpy(boxes), torch.from_numpy(unions)

    def _crop(
        self,
        rgb: NDArray[np.uint8],
        label: NDArray[np.uint8],
        rng: np.random.Generator,
        copies: Sequence[int] = (),
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[float, float], int]:
        """Square view of `size` pixels around a random foreground point; the point's place in it, and the instance that
        an enlarged crop is about, 0 for others.

        An enlarged crop is framed as the refine pass frames a proposal: a multiple of the instance's box, off its
        middle by as much as a coarse mask may be.
        """
        settings = self.settings
        size = settings.size
        height, width = label.shape
        largest = min(height, width)
        side = min(size, largest) if rng.random() < 0.7 else largest  # at its own scale, or all of it
        if settings.growth > 1 and rng.random() < 0.5:
            side = min(side, round(size / settings.growth ** rng.random()))
        zoom = rng.random() < settings.zoom
        # a random instance first, then a random point of it: small objects are centres as often as large ones
        numbers, framed = np.unique(label[label > 0]), 0
        if len(numbers):
            twins = np.intersect1d(numbers, np.array(copies, int))
            if zoom and len(twins) and rng.random() < 0.5:
                numbers = twins  # what boxes are for
            framed = int(rng.choice(numbers))
            ys, xs = np.nonzero(label == framed)
            pick = rng.integers(len(ys))
            y, x = int(ys[pick]), int(xs[pick])
        else:
            ys, xs, y, x = np.array([height // 2]), np.array([width // 2]), height // 2, width // 2
        middle_y, middle_x = y + side * rng.uniform(-0.25, 0.25), x + side * rng.uniform(-0.25, 0.25)
        if zoom:
            box = float(max(np.ptp(ys), np.ptp(xs)) + 1)
            side = int(np.clip(box * np.exp(rng.uniform(*np.log(settings.crop_scale))), settings.min_crop, largest))
            middle_y = (ys.min() + ys.max()) / 2 + box * rng.normal(0, settings.crop_shift)
            middle_x = (xs.min() + xs.max()) / 2 + box * rng.normal(0, settings.crop_shift)
        top = int(np.clip(middle_y - side / 2, 0, height - side))
        left = int(np.clip(middle_x - side / 2, 0, width - side))
        rgb, label = rgb[top : top + side, left : left + side], label[top : top + side, left : left + side]
        if side != size:
            resample = Image.Resampling.BILINEAR if side < size else Image.Resampling.BOX
            rgb = np.asarray(Image.fromarray(rgb).resize((size, size), resample))
            label = self._resize_label(label, size)
        return rgb, label, ((y - top) * size / side, (x - left) * size / side), framed if zoom else 0

    @staticmethod
    def _resize_label(label: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Nearest for shrinking; smooth outlines for enlarging, where nearest would teach stairs."""
        if size <= label.shape[0]:
            return np.asarray(Image.fromarray(label).resize((size, size), Image.Resampling.NEAREST))
        best = np.full((size, size), 127, np.uint8)
        out = np.zeros((size, size), np.uint8)
        for number in np.unique(label[label > 0]):
            share = np.asarray(
                Image.fromarray((label == number).astype(np.uint8) * 255).resize((size, size), Image.Resampling.BICUBIC)
            )
            out[share > best] = number
            best = np.maximum(best, share)
        return out

    def _choose(
        self,
        visible: dict[str, list[int]],
        label: NDArray[np.uint8],
        centre: tuple[float, float],
        in_scene: set[str],
        rng: np.random.Generator,
    ) -> list[str]:
        """Keys of N_O objects: present ones near the centre, and absent ones, in random order.

        With `unasked` a query may leave out what stands in the middle of a view: the refine pass meets such views
        wherever the coarse pass has taken one object for another, and a catalogue need not know all that is in view.
        """
        settings = self.settings
        absent = int(rng.choice(len(settings.absent), p=settings.absent))
        present = sorted(visible)
        distance = {}
        for key in present:
            ys, xs = np.nonzero(np.isin(label, visible[key]))
            distance[key] = float(np.hypot(ys - centre[0], xs - centre[1]).min()) + rng.exponential(8)
        outside = len(self.objects.keys) - sum(key in self.objects.index for key in in_scene)
        # at least as many present ones as it takes when the store has too few objects that are not in the scene
        wanted = max(settings.objects - absent, settings.objects - outside, 0)
        if len(present) + outside < settings.objects:
            raise ValueError(
                f"'{self.objects.folder}' has {len(self.objects.keys)} objects, too few for queries of "
                f"{settings.objects}"
            )
        nearest = sorted(present, key=distance.__getitem__)
        asked = nearest
        if settings.unasked and outside >= settings.objects and rng.random() < settings.unasked:
            share = rng.random()
            asked = [key for key in nearest if rng.random() < share]
        keys = asked[:wanted]
        self._fill(keys, nearest, in_scene, rng)
        return [keys[i] for i in rng.permutation(len(keys))]

    def _fill(self, keys: list[str], nearest: list[str], in_scene: set[str], rng: np.random.Generator) -> None:
        """Fill `keys` up with absent objects: look-alikes, objects that resemble those of the view, any others."""
        settings, store = self.settings, self.objects
        left_out = [key for key in nearest if key not in keys]
        twins = [k for key in sorted(in_scene) for k in store.look_alikes(key) if k not in in_scene]
        tries = 0
        while len(keys) < settings.objects:
            tries += 1
            anything = tries > 10 * settings.objects  # the store has too few of what is wanted
            if not anything and twins and rng.random() < settings.look_alike:
                pool = twins
            elif not anything and settings.resembling and nearest and rng.random() < settings.resembling:
                # every other one resembles what is in the middle, which a crop is about
                pool = store.resembling(nearest[0 if rng.random() < 0.5 else int(rng.integers(len(nearest)))])
            else:
                pool = store.keys
            key = pool[int(rng.integers(len(pool)))] if pool else ""
            fits = key and key not in in_scene and key not in keys
            if fits and settings.unasked and not anything:
                # nothing in a view tells an object that was left out from the same one in another size
                fits = not any(store.look_the_same(key, other) for other in left_out)
            if fits:
                keys.append(key)
            else:
                twins = [t for t in twins if t not in keys and t != key]

    @staticmethod
    def _jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
        """Exposure, gamma, colour cast, saturation and contrast, on top of the renderer's own sensor model.

        Four of ten pictures are changed 2.5 times as much and have more contrast: cameras that clip shadows and lights
        are common, and in such photographs plain objects were missed.
        """
        hard = rng.random() < 0.4
        scale = 2.5 if hard else 1.0

        def factor(spread: float, middle: float = 0.0) -> float:
            return float(np.exp(rng.normal(middle, scale * spread)))

        cast = torch.from_numpy(np.exp(rng.normal(0, scale * 0.06, (3, 1, 1))).astype(np.float32))
        image = (image * cast * factor(0.12)).clamp(1e-4, 1) ** factor(0.12)
        grey = image.mean(0, keepdim=True)
        image = grey + (image - grey) * factor(0.2)
        middle = image.mean()
        return (middle + (image - middle) * factor(0.12, 0.25 if hard else 0.0)).clamp(0, 1)

    def batch(self, indices: list[int]) -> Batch:
        """Collate samples of the given indices."""
        images, masks, keys, boxes, unions = zip(*(self._draw(i) for i in indices))
        templates = TemplateFeatures.stack(
            [TemplateFeatures.stack([self.objects.features(k) for k in row]) for row in keys]
        )
        diameters = torch.tensor([[self.objects.diameter(k) for k in row] for row in keys])
        batch = Batch(torch.stack(images), torch.stack(masks), diameters, list(keys), templates)
        if not self.settings.prompt:
            return batch
        return dataclasses.replace(batch, boxes=torch.stack(boxes), unions=torch.stack(unions))


class MixedSource:
    """Several sources, each with its share of the training steps (drawn from seed and step number)."""

    def __init__(self, shares: list[tuple[SampleSource, float]], seed: int = 0) -> None:
        """Take sources with their shares, which need not add up to 1; raises ValueError when none is positive."""
        self.kinds = [source for source, share in shares if share > 0]
        if not self.kinds:
            raise ValueError("a mixture needs a source with a share above 0")
        total = np.array([share for _, share in shares if share > 0], np.float64)
        self.shares, self.seed = total / total.sum(), seed

    def at_step(self, step: int) -> SampleSource:
        """Where the batch of training step `step` comes from."""
        return self.kinds[int(np.random.default_rng((self.seed, 2, step)).choice(len(self.kinds), p=self.shares))]
