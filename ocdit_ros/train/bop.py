# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training data of others: BOP training sets (folders of scenes) and the MegaPose shards (GSO, ShapeNetCore).

Both become what :class:`~ocdit_ros.train.dataset.SceneShards` is, so the sampler, the trainer and the presets stay as
they are. Objects are named ``<prefix>-<obj_id, six digits>`` in scenes and in the object store, which
:func:`import_objects` fills from the meshes. Formats: ``docs/bop_datasets_format.md`` and ``bop_webdataset.py`` of the
BOP toolkit; the pages of the BOP Challenge 2023 training sets.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdit_ros.train.dataset import Scene, Scenes, SceneShards, TarSamples

NEVER = ("ycbv", "ycb", "lm", "lmo", "hope", "hopev2", "tyol")  # evaluation data: not even their training images


def object_key(prefix: str, obj_id: int) -> str:
    """Name of an object of a foreign set."""
    return f"{prefix}-{obj_id:06d}"


def _check_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+", prefix):
        raise ValueError(f"a prefix of objects is made of small letters and digits, got {prefix!r}")
    if prefix in NEVER:
        raise ValueError(f"'{prefix}' is a set that this package is evaluated on; it is not trained on")
    return prefix


def assemble_label(
    shape: tuple[int, int],
    masks: Sequence[NDArray[np.bool_]],
    keys: Sequence[str],
    known: Collection[str] | None,
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Label image [H, W] and instances of visible masks [H, W] bool; instances of unknown objects become background.

    Visible masks do not overlap, save for a pixel at edges, which the later one gets. Beyond 255 instances the smallest
    are left out. Raises ValueError for a mask of another shape.
    """
    chosen = [i for i, key in enumerate(keys) if known is None or key in known]
    if len(chosen) > 255:
        largest = sorted(chosen, key=lambda i: -int(masks[i].sum()))[:255]
        chosen = sorted(largest)
    label = np.zeros(shape, np.uint8)
    instances = []
    for number, index in enumerate(chosen, 1):
        if masks[index].shape != shape:
            raise ValueError(f"a mask of {masks[index].shape} belongs to a picture of {shape}")
        label[masks[index]] = number
        instances.append({"object": keys[index]})
    return label, instances


def _picture(data: Path | bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(image.convert("RGB"))


class BopScenes:
    """A split of a BOP set, for example ``train_pbr``: folders of scenes with ``scene_gt.json``, ``mask_visib/``."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prefix: str,
        known: Collection[str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Read the annotations of every scene.

        `known`: keys of the objects that have templates; others become background. Raises ValueError when no scene is
        there or an annotation file cannot be read.
        """
        self.folder, self.prefix, self.known = Path(folder), _check_prefix(prefix), known
        self.images: list[tuple[Path, int, tuple[int, ...]]] = []  # scene, image id, object of each instance
        for scene in sorted(path.parent for path in self.folder.glob("*/scene_gt.json")):
            try:
                truth = json.loads((scene / "scene_gt.json").read_text())
                rows = sorted((int(i), tuple(int(e["obj_id"]) for e in entries)) for i, entries in truth.items())
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"'{scene / 'scene_gt.json'}' is not an annotation file of BOP: {error}") from error
            self.images += [(scene, number, objects) for number, objects in rows]
        if not self.images:
            raise ValueError(f"no BOP scenes (*/scene_gt.json) in '{folder}'")
        self.images = self.images[:limit]

    def __len__(self) -> int:
        """Count of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        """Image uint8 [H, W, 3], label uint8 [H, W] (k = k-th instance, from 1) and the list of instances."""
        scene, number, objects = self.images[index]
        found = [p for kind in ("rgb", "gray") for p in sorted((scene / kind).glob(f"{number:06d}.*"))]
        if not found:
            raise ValueError(f"image {number} of '{scene}' is missing in rgb/ and gray/")
        rgb = _picture(found[0])
        masks = []
        for instance in range(len(objects)):
            path = scene / "mask_visib" / f"{number:06d}_{instance:06d}.png"
            if not path.is_file():
                raise ValueError(f"'{path}' is missing; the scenes need their visible masks")
            with Image.open(path) as image:
                masks.append(np.asarray(image.convert("L")) > 0)
        keys = [object_key(self.prefix, i) for i in objects]
        label, instances = assemble_label(rgb.shape[:2], masks, keys, self.known)
        return rgb, label, instances


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask [H, W] of COCO's run lengths, as a list of numbers or compressed."""
    from pycocotools import mask as coco

    height, width = rle["size"]
    encoded = coco.frPyObjects(rle, height, width) if isinstance(rle["counts"], list) else rle
    return np.asarray(coco.decode(encoded)).astype(np.bool_)


class MegaPoseShards(TarSamples):
    """The shards of MegaPose-GSO and MegaPose-ShapeNetCore, or any set in the toolkit's ``bop-webdataset`` format.

    A sample is ``<key>.rgb.jpg`` (or png), ``<key>.gt.json`` (a list of instances), ``<key>.mask_visib.json``
    ({"instance": run lengths}); camera, depth and the other masks are not read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prefix: str,
        known: Collection[str] | None = None,
        limit: int | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        """As :class:`BopScenes`; `index` is a file that keeps the places of the samples in the shards."""
        self.prefix, self.known = _check_prefix(prefix), known
        super().__init__(folder, limit, index)

    def __getitem__(self, index: int) -> Scene:
        """Image uint8 [H, W, 3], label uint8 [H, W] (k = k-th instance, from 1) and the list of instances."""
        picture = next((s for s in ("rgb.jpg", "rgb.png") if s in self.scenes[index][1]), "rgb.jpg")
        image, truth, masks = self.read(index, picture, "gt.json", "mask_visib.json")
        rgb = _picture(image)
        entries, runs = json.loads(truth), json.loads(masks)
        keys = [object_key(self.prefix, int(entry["obj_id"])) for entry in entries]
        empty = np.zeros(rgb.shape[:2], np.bool_)
        found = [decode_rle(runs[str(i)]) if str(i) in runs else empty for i in range(len(keys))]
        label, instances = assemble_label(rgb.shape[:2], found, keys, self.known)
        return rgb, label, instances


class JoinedScenes:
    """Several sets of scenes as one, for epochs over all of them."""

    def __init__(self, parts: Sequence[Scenes]) -> None:
        """Raises ValueError when there is no part."""
        if not parts:
            raise ValueError("there are no scenes to join")
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        """Count of scenes."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Scene:
        """Scene `index` of all parts, one after the other."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]


def open_scenes(words: Sequence[str], known: Collection[str] | None = None) -> Scenes:
    """Scenes named on a command line: ``FOLDER`` of our shards, ``bop:PREFIX:FOLDER`` or ``megapose:PREFIX:FOLDER``.

    `known`: keys of the objects in the store. Raises ValueError for another word or an empty folder.
    """
    parts: list[Scenes] = []
    for word in words:
        kind, _, rest = word.partition(":")
        prefix, _, folder = rest.partition(":")
        if kind in ("bop", "megapose") and folder:
            if kind == "bop":
                parts.append(BopScenes(folder, prefix, known))
            else:
                parts.append(MegaPoseShards(folder, prefix, known))
        elif Path(word).is_dir():
            parts.append(SceneShards(word))
        else:
            raise ValueError(f"{word!r} is neither a folder of shards nor bop:PREFIX:FOLDER nor megapose:PREFIX:FOLDER")
    return parts[0] if len(parts) == 1 else JoinedScenes(parts)


# --- objects -------------------------------------------------------------------------------------------------------


def bop_meshes(models: Path, ids: Collection[int] | None = None) -> Iterator[tuple[int, Path]]:
    """Id and file of every ``obj_<id>.ply`` of a BOP ``models`` folder."""
    for path in sorted(models.glob("obj_*.ply")):
        number = int(path.stem.partition("_")[2])
        if ids is None or number in ids:
            yield number, path


def megapose_meshes(mapping: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """Id and mesh of every entry of ``gso_models.json`` or ``shapenet_models.json`` whose mesh is below `root`.

    GSO: ``root/<gso_id>/meshes/model.obj``; ShapeNetCore.v2: ``root/<synset>/<model>/models/model_normalized.obj``.
    """
    for entry in json.loads(mapping.read_text()):
        if "gso_id" in entry:
            path = root / str(entry["gso_id"]) / "meshes" / "model.obj"
        else:
            folder = root / str(entry["shapenet_synset_id"]) / str(entry["shapenet_source_id"])
            path = folder / "models" / "model_normalized.obj"
        if path.is_file():
            yield int(entry["obj_id"]), path


def import_objects(
    out: Path | str,
    split: str,
    prefix: str,
    meshes: Iterator[tuple[int, Path]],
    scale: float = 0.001,
    unit_sphere: bool = False,
    licence: str = "see the data set",
) -> int:
    """Render the templates of foreign objects into ``out``/objects/``split``; finished ones are kept.

    `scale` takes mesh units to metres. With `unit_sphere` a mesh is first scaled to fit a sphere of radius 1 around the
    middle of its bounding box (MegaPose-GSO; then `scale` is 0.1). Returns the number of objects of the set.
    """
    from ocdit_ros.templates import MeshError, RenderSettings, load_mesh, render, viewpoints
    from ocdit_ros.train import objects as ob

    _check_prefix(prefix)
    folder = Path(out) / "objects" / split
    folder.mkdir(parents=True, exist_ok=True)
    index = ob.read_index(folder) if (folder / "index.json").is_file() else {}
    count, fresh = 0, {}
    for number, path in meshes:
        key = object_key(prefix, number)
        if key not in index:
            factor = scale
            try:
                if unit_sphere:
                    vertices = load_mesh(path).vertices
                    middle = (vertices.min(0) + vertices.max(0)) / 2
                    factor /= float(np.linalg.norm(vertices - middle, axis=1).max())
                mesh = load_mesh(path, factor)
                templates = render(mesh, viewpoints(12), RenderSettings(size=128, threads=1), name=key)
            except MeshError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            ob.save_templates(folder, templates)
            fresh[key] = {
                "family": key, "source": f"{prefix}/{path.name}", "licence": licence,
                "diameter": round(float(templates.diameter), 6), "colour": ob.mean_colour(templates),
            }  # fmt: skip
        count += 1
        if len(fresh) >= 50:
            ob.update_index(folder, fresh)
            fresh = {}
    ob.update_index(folder, fresh)
    if not count:
        raise ValueError(f"no mesh of the set '{prefix}' was found or could be read")
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m ocdit_ros.train.bop``: templates of a foreign set's objects."""
    parser = argparse.ArgumentParser(prog="python -m ocdit_ros.train.bop", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="train", choices=("train", "val"))
    parser.add_argument("--prefix", required=True, help="name of the set in object keys, for example gso")
    parser.add_argument("--models", type=Path, help="BOP: folder with obj_*.ply, in millimetres")
    parser.add_argument("--mapping", type=Path, help="MegaPose: gso_models.json or shapenet_models.json")
    parser.add_argument("--meshes", type=Path, help="MegaPose: folder of the meshes (GSO or ShapeNetCore.v2)")
    parser.add_argument("--licence", default="see the data set")
    a = parser.parse_args(argv)
    try:
        if a.models:
            count = import_objects(a.out, a.split, a.prefix, bop_meshes(a.models), 0.001, False, a.licence)
        elif a.mapping and a.meshes:
            scanned = "gso_id" in json.loads(a.mapping.read_text())[0]
            found = megapose_meshes(a.mapping, a.meshes)
            count = import_objects(a.out, a.split, a.prefix, found, 0.1, scanned, a.licence)
        else:
            raise ValueError("give --models (BOP), or --mapping and --meshes (MegaPose)")
    except (ValueError, OSError) as error:
        print(f"ocdit_ros.train.bop: {error}", file=sys.stderr)
        return 2
    print(f"{count} objects of {a.prefix} in {a.out / 'objects' / a.split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
