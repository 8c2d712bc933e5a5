# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Data sets to evaluate on: a BOP folder, or a folder of synthetic scene shards.

A data set is anything with the attributes of :class:`Dataset`. To add one, write a class here and a row in
:func:`open_dataset`.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ocdit_ros.segment.models import read_models
from ocdit_ros.segment.types import SegmentError
from ocdit_ros.templates import IMAGE_FORMATS, ObjectSpec, TemplateSet

#: BOP ignores instances that are visible below this fraction (`calc_gt_coco.py` of the BOP toolkit).
MIN_VISIBLE_FRACTION = 0.1

#: Larger images are refused before they are read: a file of a few bytes may announce gigabytes.
MAX_PIXELS = 128 * 10**6

_IMAGE_FOLDERS = ("rgb", "gray")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif")


class DatasetError(ValueError):
    """A data set folder that cannot be read; the message says which file is wrong and what to do."""


@dataclass(frozen=True)
class GroundTruth:
    """One annotated instance of one image."""

    category_id: int
    mask: np.ndarray  # bool [H, W], the visible part only
    visible_fraction: float

    @property
    def ignored(self) -> bool:
        """Whether BOP's AP leaves this instance out (visible below 10 %)."""
        return self.visible_fraction < MIN_VISIBLE_FRACTION


@dataclass(frozen=True)
class ImageKey:
    """Address of an image: the pair that BOP result files use."""

    scene_id: int
    image_id: int


class Dataset(Protocol):
    """What an evaluation needs to know about a data set."""

    name: str  # as in a BOP result file name: no underscore, no hyphen
    split: str
    categories: dict[int, str]  # object id -> name
    families: dict[int, str]  # object id -> what it shares shape or print with; empty where that is not known

    @property
    def images(self) -> list[ImageKey]:
        """Images to evaluate, in the order of the targets file."""

    def rgb(self, key: ImageKey) -> np.ndarray:
        """uint8 [H, W, 3]."""

    def ground_truth(self, key: ImageKey) -> list[GroundTruth]:
        """Annotated instances with at least one visible pixel."""

    def candidates(self, key: ImageKey) -> list[int]:
        """Ids of the objects that the method is asked to look for in this image."""

    def object_source(self, category_id: int) -> ObjectSpec | TemplateSet:
        """The object's mesh, or its rendered templates."""


def result_name(folder_name: str) -> str:
    """Data set name as BOP result file names need it: `real_dev` becomes `realdev`.

    The toolkit splits `METHOD_DATASET-SPLIT.json` at underscores and hyphens, so neither may be part of a
    name.
    """
    name = re.sub(r"[^0-9A-Za-z]", "", folder_name).lower()
    if not name:
        raise DatasetError(
            f"The data set folder '{folder_name}' has no letter or digit to make a name from; rename it."
        )
    return name


def read_rgb(data: str | Path | io.BytesIO) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3]; grey images are repeated over the three channels.

    Raises ValueError, before its pixels are read, if it has more than MAX_PIXELS; OSError and others of Pillow.
    """
    try:
        with Image.open(data, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million"
                )
            if image.mode in ("I;16", "I", "F"):  # Pillow clips these to 255 instead of scaling them
                grey = np.asarray(image, dtype=np.float32)
                grey = np.clip(grey / max(float(grey.max()), 1.0) * 255.0, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is no OSError or ValueError
        raise ValueError(str(error)) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DatasetError(f"'{path}' is missing; a BOP data set needs it.") from None
    except (ValueError, OSError, RecursionError) as error:  # JSON, UTF-8, or no file
        raise DatasetError(f"'{path}' is not valid JSON: {error}.") from None


class BopDataset:
    """A data set folder in BOP format (https://bop.felk.cvut.cz/datasets, `docs/bop_datasets_format.md`).

    Reads `test_targets_bop19.json` or `test_targets_bop24.json` (without one: every annotated image of the
    split), `models/`, optional `models/names.json` ({"1": "name"}), and per scene `scene_gt.json`,
    `scene_gt_info.json`, `rgb/` or `gray/`, `mask_visib/`.

    Args:
        root: the data set folder.
        split: folder of the images, for example `test` or `test_primesense`.
        targets: name of the targets file; by default the first of the two BOP names that exists.

    Raises DatasetError: a needed file is missing or unreadable.
    """

    def __init__(self, root: str | Path, split: str = "test", targets: str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"'{self.root}' is not a folder; give the folder of a BOP data set.")
        self.name = result_name(self.root.resolve().name)
        self.split = split.split("_")[0]
        self._split_folder = self.root / split
        if not self._split_folder.is_dir():
            found = sorted(p.name for p in self.root.iterdir() if p.is_dir())
            raise DatasetError(f"'{self.root}' has no folder '{split}' (found: {', '.join(found)}); choose a split.")
        self._models = self._read_models()
        self.categories = {number: spec.name for number, spec in self._models.items()}
        self.families: dict[int, str] = {}  # the format does not tell
        self._scenes: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._images = self._find_images(targets)

    @property
    def images(self) -> list[ImageKey]:
        """Images to evaluate, in the order of the targets file."""
        return list(self._images)

    def rgb(self, key: ImageKey) -> np.ndarray:
        """Image as uint8 [H, W, 3]."""
        path = self.image_path(key)
        try:
            return read_rgb(path)
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            raise DatasetError(f"'{path}' cannot be read as an image: {error}.") from None

    def image_path(self, key: ImageKey) -> Path:
        """File of an image. Raises DatasetError if there is none."""
        scene = self._scene_folder(key.scene_id)
        for folder in _IMAGE_FOLDERS:
            for suffix in _IMAGE_SUFFIXES:
                path = scene / folder / f"{key.image_id:06d}{suffix}"
                if path.is_file():
                    return path
        raise DatasetError(f"No image {key.image_id:06d} in '{scene}/rgb' or '{scene}/gray'.")

    def ground_truth(self, key: ImageKey) -> list[GroundTruth]:
        """Annotated instances with at least one visible pixel."""
        annotations, infos = self._scene(key.scene_id)
        image = str(key.image_id)
        if image not in annotations:
            return []
        try:
            rows = [(int(a["obj_id"]), float(i["visib_fract"])) for a, i in zip(annotations[image], infos[image])]
            complete = len(infos[image]) == len(annotations[image])
        except (KeyError, TypeError, ValueError, OverflowError):
            rows, complete = [], False
        if not complete or any(not 0.0 <= fraction <= 1.0 for _, fraction in rows):
            raise DatasetError(
                f"scene_gt.json and scene_gt_info.json of scene {key.scene_id} disagree about image {key.image_id}, "
                "or lack obj_id or visib_fract (0 to 1)."
            )
        if unknown := [number for number, _ in rows if number not in self._models]:
            raise DatasetError(f"scene_gt.json of scene {key.scene_id} names object {unknown[0]}, which has no mesh.")
        size = self._image_size(key)
        instances = []
        for index, (number, fraction) in enumerate(rows):
            path = self._scene_folder(key.scene_id) / "mask_visib" / f"{key.image_id:06d}_{index:06d}.png"
            if not path.is_file():
                raise DatasetError(f"'{path}' is missing; the evaluation needs the visible masks.")
            try:
                with Image.open(path, formats=IMAGE_FORMATS) as image_file:
                    if image_file.size != size:
                        raise ValueError(f"it has {image_file.size} pixels, its image {size}")
                    mask = np.asarray(image_file)
            except Exception as error:  # Pillow's parsers raise whatever they stumble over
                raise DatasetError(f"'{path}' cannot be read as a mask: {error}.") from None
            mask = (mask if mask.ndim == 2 else mask[..., 0]) > 0
            if mask.any():
                instances.append(GroundTruth(number, mask, fraction))
        return instances

    def _image_size(self, key: ImageKey) -> tuple[int, int]:
        path = self.image_path(key)
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return image.size
        except Exception as error:
            raise DatasetError(f"'{path}' cannot be read as an image: {error}.") from None

    def candidates(self, key: ImageKey) -> list[int]:
        """Ids of the objects to look for in this image."""
        return list(self.categories)  # BOP: no prior information about which objects are in the image

    def object_source(self, category_id: int) -> ObjectSpec:
        """The object's mesh or templates."""
        return self._models[category_id]

    def _read_models(self) -> dict[int, ObjectSpec]:
        folder = self.root / "models"
        if not folder.is_dir():
            raise DatasetError(f"'{self.root}' has no 'models' folder with the object meshes.")
        try:
            return read_models(folder, 0.001)  # BOP meshes are in millimetres
        except SegmentError as error:
            raise DatasetError(str(error)) from None

    def _find_images(self, targets: str | None) -> list[ImageKey]:
        names = [targets] if targets else ["test_targets_bop19.json", "test_targets_bop24.json"]
        for name in names:
            path = self.root / name
            if path.is_file():
                rows = _read_json(path)
                try:
                    keys = dict.fromkeys((int(row["scene_id"]), int(row["im_id"])) for row in rows)
                    if not all(0 <= number < 10**9 for key in keys for number in key):
                        raise ValueError
                except (KeyError, TypeError, ValueError, OverflowError):
                    raise DatasetError(f"'{path}' must be a list of rows with scene_id and im_id.") from None
                return [ImageKey(*key) for key in keys]
        if targets:
            raise DatasetError(f"'{self.root / targets}' is missing; check --targets.")
        scenes = sorted(int(p.name) for p in self._split_folder.iterdir() if p.is_dir() and p.name.isdigit())
        try:
            return [ImageKey(s, i) for s in scenes for i in sorted(int(k) for k in self._scene(s)[0])]
        except DatasetError:
            raise
        except (TypeError, ValueError):
            raise DatasetError(f"A scene_gt.json in '{self._split_folder}' has keys that are no numbers.") from None

    def _scene_folder(self, scene_id: int) -> Path:
        return self._split_folder / f"{scene_id:06d}"

    def _scene(self, scene_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
        if scene_id not in self._scenes:
            folder = self._scene_folder(scene_id)
            both = _read_json(folder / "scene_gt.json"), _read_json(folder / "scene_gt_info.json")
            if not all(isinstance(one, dict) for one in both):
                raise DatasetError(f"scene_gt.json and scene_gt_info.json in '{folder}' must map images to lists.")
            self._scenes[scene_id] = both
        return self._scenes[scene_id]


class ShardDataset:
    """Synthetic scenes in WebDataset shards with an object store (format: docs/architecture.md,
    ocdit_ros/train).

    Every image asks for the objects that are in it and for `absent` objects that are not (of a pair: any number
    from the first to the second), drawn by a generator seeded with the image's number, so that a run can be repeated.
    With `asked` below 1 each object in view is asked for with that chance only (of a pair: one drawn between the two
    for each image); instances of the others are no part of the ground truth. A share `complete` of the images asks for
    all that is in view all the same.

    Args:
        shards: folder with the `.tar` shards of the split to evaluate.
        objects: folder of the object store of that split (`index.json` and `<key>.npz`).
        absent: objects asked for per image that are not in it.
        limit: evaluate the first so many images only.
        asked: share of the objects in view that are asked for.
        complete: share of the images that ask for all of them, whatever `asked` says.

    Raises DatasetError: a folder has no shards or no index.
    """

    def __init__(
        self,
        shards: str | Path,
        objects: str | Path,
        absent: int | tuple[int, int] = 4,
        limit: int | None = None,
        asked: float | tuple[float, float] = 1.0,
        complete: float = 0.0,
    ) -> None:
        self._shards = sorted(Path(shards).glob("*.tar"))
        if not self._shards:
            raise DatasetError(f"'{shards}' has no .tar shard; generate the data set first (ocdit train --help).")
        self._objects = Path(objects)
        index = _read_json(self._objects / "index.json")
        self._keys = dict(enumerate(sorted(index), start=1))
        self._ids = {key: number for number, key in self._keys.items()}
        self.families = {self._ids[key]: str(row.get("family", key)) for key, row in index.items()}
        self.categories = dict(self._keys)
        self.name = result_name(Path(shards).resolve().name)
        self.split = "val"
        self.absent = absent
        self.asked, self.complete = asked, complete
        self._entries: dict[ImageKey, dict[str, tuple[int, int]]] = {}  # member -> (offset, size) in the shard
        for number, path in enumerate(self._shards):
            self._index_shard(number, path)
        self._images = list(self._entries)[:limit]

    @property
    def images(self) -> list[ImageKey]:
        """Images to evaluate, in the order of the targets file."""
        return list(self._images)

    def rgb(self, key: ImageKey) -> np.ndarray:
        """Image as uint8 [H, W, 3]."""
        return read_rgb(io.BytesIO(self._read(key, "rgb.jpg")))

    def ground_truth(self, key: ImageKey) -> list[GroundTruth]:
        """Annotated instances with at least one visible pixel."""
        with Image.open(io.BytesIO(self._read(key, "label.png"))) as image:
            label = np.asarray(image)
        instances = []
        asked = self._asked(key)
        for number, row in enumerate(self._meta(key)["instances"], start=1):
            mask = label == number
            if mask.any() and self._ids[row["object"]] in asked:
                instances.append(GroundTruth(self._ids[row["object"]], mask, float(row["visib_fract"])))
        return instances

    def candidates(self, key: ImageKey) -> list[int]:
        """Ids of the objects to look for in this image."""
        present = self._present(key)
        rest = [i for i in self.categories if i not in set(present)]
        generator = np.random.default_rng([key.scene_id, key.image_id])
        order = generator.permutation(np.array(rest, dtype=int))
        number = self.absent if isinstance(self.absent, int) else int(generator.integers(*self.absent, endpoint=True))
        drawn = order[:number]
        return self._asked(key) + sorted(int(i) for i in drawn)

    def _present(self, key: ImageKey) -> list[int]:
        return sorted({self._ids[row["object"]] for row in self._meta(key)["instances"]})

    def _asked(self, key: ImageKey) -> list[int]:
        """Objects in view that are asked for."""
        if self.complete and np.random.default_rng([key.scene_id, key.image_id, 2]).random() < self.complete:
            return self._present(key)
        generator = np.random.default_rng([key.scene_id, key.image_id, 1])
        share = self.asked if isinstance(self.asked, float | int) else generator.uniform(*self.asked)
        return [one for one in self._present(key) if generator.random() < share]

    def object_source(self, category_id: int) -> TemplateSet:
        """The object's mesh or templates."""
        key = self._keys[category_id]
        path = self._objects / f"{key}.npz"
        try:
            with np.load(path) as data:
                arrays = {name: data[name] for name in ("images", "masks", "depths", "rotations")}
                return TemplateSet(**arrays, diameter=float(data["diameter"]), name=key)
        except (OSError, KeyError, ValueError) as error:
            raise DatasetError(f"'{path}' is not an object of the store: {error}.") from None

    def _index_shard(self, number: int, path: Path) -> None:
        try:
            with tarfile.open(path) as archive:
                members: dict[str, dict[str, tuple[int, int]]] = {}
                for member in archive:
                    key, _, kind = os.path.basename(member.name).partition(".")
                    if member.isfile():
                        members.setdefault(key, {})[kind] = member.offset_data, member.size
        except tarfile.TarError as error:
            raise DatasetError(f"'{path}' is not a readable .tar shard: {error}.") from None
        for image_id, files in enumerate(members.values()):
            if missing := {"rgb.jpg", "label.png", "json"} - files.keys():
                raise DatasetError(f"Image {image_id} of '{path}' has no {', '.join(sorted(missing))}.")
            self._entries[ImageKey(number, image_id)] = files

    def _read(self, key: ImageKey, kind: str) -> bytes:
        offset, size = self._entries[key][kind]
        with open(self._shards[key.scene_id], "rb") as shard:
            shard.seek(offset)
            return shard.read(size)

    def _meta(self, key: ImageKey) -> dict[str, Any]:
        return json.loads(self._read(key, "json"))


def open_dataset(
    path: str | Path,
    split: str = "test",
    targets: str | None = None,
    objects: str | None = None,
    absent: int | tuple[int, int] = 4,
    limit: int | None = None,
    asked: float | tuple[float, float] = 1.0,
    complete: float = 0.0,
) -> Dataset:
    """Open a data set folder: one with `.tar` shards as ShardDataset, anything else as BopDataset.

    Raises DatasetError: nothing readable there.
    """
    path = Path(path)
    if path.is_dir() and any(path.glob("*.tar")):
        store = Path(objects) if objects else path.resolve().parents[1] / "objects" / path.resolve().name
        return ShardDataset(path, store, absent, limit, asked, complete)
    dataset = BopDataset(path, split, targets)
    if limit is not None:
        dataset._images = dataset._images[:limit]
    return dataset
