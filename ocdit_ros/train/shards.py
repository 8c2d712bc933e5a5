# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Write training data: object stores and WebDataset shards of scenes, with worker processes, resumable.

``python -m ocdit_ros.train.shards objects|scenes --help``. The layout is that of docs/training-data.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset
from tqdm import tqdm

from . import objects as ob
from . import pathtrace, sensor, shards_command
from . import scenes as sc
from .objects_meshes import draw_mesh_family, mesh_sources
from .objects_photos import load_photos, photo_files

RENDERERS = ("fast", "cycles")
_worker: dict[str, Any] = {}


def _start_objects(folder: str, split: str, seed: int, prefix: str, photos: str | None, meshes: str | None) -> None:
    cv2.setNumThreads(0)  # one process is one thread: the processes are the parallelism
    _worker.update(folder=Path(folder), split=split, seed=seed, prefix=prefix, photos=load_photos(photos, split))
    _worker["sources"] = None if meshes is None else mesh_sources(meshes, split)


def _keep(items: Iterable[ob.TrainObject]) -> dict[str, dict[str, Any]]:
    """Objects and their templates to the worker's folder; their entries of the index."""
    made = {}
    for item in items:
        templates = ob.templates_of(item)
        ob.save_object(_worker["folder"], item)
        ob.save_templates(_worker["folder"], templates)
        made[item.key] = dict(item.info, colour=ob.mean_colour(templates))
    return made


def _make_family(number: int) -> dict[str, dict[str, Any]]:
    w = _worker
    if w["sources"] is None:
        family = ob.draw_family(w["seed"], w["split"], number, w["prefix"], w["photos"])
    else:
        family = draw_mesh_family(w["seed"], w["split"], number, w["sources"][number], w["prefix"], w["photos"])
    return _keep(family)


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)


def _photo_names(photos: Path | str | None, split: str) -> list[str]:
    return [] if photos is None else [path.relative_to(photos).as_posix() for path in photo_files(photos, split)]


def _map(function: Any, work: Sequence[Any], workers: int, start: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Results in the order of the work; in this process when there is one worker."""
    if workers <= 1:
        start(*arguments)
        yield from map(function, work)
        return
    with multiprocessing.get_context("spawn").Pool(workers, start, arguments) as pool:
        yield from pool.imap(function, work, chunksize=1)


def generate_objects(
    out: Path | str,
    split: str,
    families: int,
    seed: int = 0,
    prefix: str = "p0",
    photos: Path | str | None = None,
    meshes: Path | str | None = None,
    workers: int = 1,
    progress: bool = True,
) -> int:
    """Add families 0..families-1 to the store ``out``/objects/``split``; finished families are kept.

    Families are procedural, or, where a folder ``meshes`` is given, made from its first ``families`` meshes in a
    random order (see :mod:`~ocdit_ros.train.objects_meshes` for the layout of that folder).
    ``prefix`` makes the keys of different rounds (other seeds, other generators) unique; ``round-<prefix>.json`` keeps
    its seed and the names of the photographs that labels may show. Returns the number of objects in the store.
    """
    if split not in ob.SPLITS:
        raise ValueError(f"split must be one of {', '.join(ob.SPLITS)}, got {split!r}")
    folder = Path(out) / "objects" / split
    folder.mkdir(parents=True, exist_ok=True)
    known = {v["family"] for v in ob.read_index(folder).values()} if (folder / "index.json").is_file() else set()
    work = [n for n in range(families) if f"{prefix}-{split[0]}{n:06d}" not in known]
    if meshes is not None:
        order = ob.seeded(seed, split, "meshes").permutation(len(mesh_sources(meshes, split)))
        families = min(families, len(order))
        work = [int(n) for n in order[:families] if f"{prefix}-{split[0]}{n:06d}" not in known]
    note = {"seed": seed, "photos": _photo_names(photos, split)}
    ob.write_whole(folder / f"round-{prefix}.json", lambda file: file.write(json.dumps(note).encode()))
    fresh: dict[str, dict[str, Any]] = {}
    bar = tqdm(total=families, initial=families - len(work), unit="family", disable=not progress, mininterval=5.0)
    arguments = (str(folder), split, seed, prefix, _text(photos), _text(meshes))
    for done, made in enumerate(_map(_make_family, work, workers, _start_objects, arguments), 1):
        fresh.update(made)
        bar.update()
        if done % 20 == 0 or done == len(work):
            ob.update_index(folder, fresh)
            fresh = {}
    bar.close()
    return len(ob.read_index(folder)) if (folder / "index.json").is_file() else 0


def _start_twins(store: str, folder: str, ratio: float) -> None:
    cv2.setNumThreads(0)
    _worker.update(store=store, folder=Path(folder), ratio=ratio)


def _make_twins(key: str) -> dict[str, dict[str, Any]]:
    item = ob.load_object(_worker["store"], key)
    return _keep((item, ob.enlarged(item, _worker["ratio"])))


def generate_twins(
    out: Path | str, split: str, count: int, twins_of: Path | str, ratio: float = 1.5, seed: int = 0, workers: int = 1,
    progress: bool = True,
) -> int:  # fmt: skip
    """Objects of the store ``twins_of``, each beside itself ``ratio`` times as large, into ``out``/objects/``split``.

    Shape and print are the same, so only the size tells the two, of one family, apart. ``count`` objects are
    drawn, one of a family at most, none that would be larger than 0.35 m. The two stores may be one. Returns the number
    of objects.
    """
    if split not in ob.SPLITS:
        raise ValueError(f"split must be one of {', '.join(ob.SPLITS)}, got {split!r}")
    if not 1 < ratio <= 4:
        raise ValueError(f"ratio must be above 1 and at most 4, got {ratio:g}")
    index = ob.read_index(twins_of)
    first = {row["family"]: key for key, row in sorted(index.items(), reverse=True)}
    fitting = sorted(key for key in first.values() if index[key]["diameter"] * ratio <= 0.35)
    if len(fitting) < count:
        raise ValueError(f"{twins_of} has {len(fitting)} objects that can be enlarged {ratio:g} times, not {count}.")
    keys = sorted(str(key) for key in ob.seeded(seed, split, "twins").choice(fitting, count, replace=False))
    folder = Path(out) / "objects" / split
    folder.mkdir(parents=True, exist_ok=True)
    made = _map(_make_twins, keys, workers, _start_twins, (str(twins_of), str(folder), ratio))
    fresh: dict[str, dict[str, Any]] = {}
    for pair in tqdm(made, total=count, unit="pair", disable=not progress, mininterval=5.0):
        fresh |= pair
    ob.update_index(folder, fresh)
    return len(fresh)


def _start_templates(folder: str) -> None:
    cv2.setNumThreads(0)
    _worker.update(folder=Path(folder))


def _make_templates(key: str) -> tuple[str, list[int]]:
    templates = ob.templates_of(ob.load_object(_worker["folder"], key))
    ob.save_templates(_worker["folder"], templates)
    return key, ob.mean_colour(templates)


def render_templates(out: Path | str, split: str, workers: int = 1, progress: bool = True) -> int:
    """Render the templates of all objects of a store anew, in place: after a change of the template renderer.

    Scenes stay valid, as they name objects only. Returns the number of objects.
    """
    folder = Path(out) / "objects" / split
    index = ob.read_index(folder)
    made = _map(_make_templates, sorted(index), workers, _start_templates, (str(folder),))
    fresh = {}
    for key, colour in tqdm(made, total=len(index), unit="object", disable=not progress, mininterval=5.0):
        fresh[key] = dict(index[key], colour=colour)
    ob.update_index(folder, fresh)
    return len(index)


def encode_sample(key: str, rendered: sc.Rendered, seed: int) -> dict[str, Any]:
    """One WebDataset sample: ``<key>.rgb.jpg``, ``<key>.label.png`` and ``<key>.json``."""
    done, label = cv2.imencode(".png", rendered.label)
    if not done:
        raise ValueError(f"the label image of {key} cannot be encoded")
    note = {"camera": rendered.camera, "instances": rendered.instances, "seed": seed, "renderer": rendered.renderer}
    return {
        "__key__": key,
        "rgb.jpg": sensor.encode_jpeg(rendered.rgb, rendered.jpeg_quality),
        "label.png": bytes(label),
        "json": json.dumps(note, separators=(",", ":")).encode(),
    }


def _start_scenes(
    store: str,
    keys: Sequence[str],
    split: str,
    seed: int,
    prefix: str,
    photos: str | None,
    size: tuple[int, int],
    copies: tuple[int, int] | None,
    samples: int | None,
) -> None:
    cv2.setNumThreads(0)
    index = ob.read_index(store)
    missing = [key for key in keys if key not in index]
    if missing:
        raise ValueError(f"{store} lacks object {missing[0]!r} of the round's catalogue; was it removed?")
    _worker.update(
        catalogue=sc.Catalogue.from_index({key: index[key] for key in keys}),
        load=functools.lru_cache(maxsize=800)(functools.partial(ob.load_object, store)),
        split=split, seed=seed, prefix=prefix, photos=load_photos(photos, split), size=size, copies=copies,
        draw=sc.draw_scene if samples is None else pathtrace.draw_scene,
        render=sc.render_scene if samples is None else functools.partial(pathtrace.render_scene, samples=samples),
    )  # fmt: skip


def _make_shard(job: tuple[str, int, int]) -> int:
    """Scenes first..last-1 into one tar; the name appears when it is whole."""
    target, first, last = job
    w = _worker
    temporary = f"{target}.part{os.getpid()}"
    with open(temporary, "wb") as file:
        with webdataset.TarWriter(file, mtime=0, user="root", group="root") as tar:
            for number in range(first, last):
                r = ob.seeded(w["seed"], w["split"], "scene", number)
                scene = w["draw"](r, w["catalogue"], w["load"], w["photos"], w["size"], w["copies"])
                rendered = w["render"](scene, r, w["size"])
                tar.write(encode_sample(f"{w['prefix']}-{w['split'][0]}{number:07d}", rendered, w["seed"]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    return last - first


def generate_scenes(
    out: Path | str,
    split: str,
    count: int,
    seed: int = 0,
    prefix: str = "s0",
    photos: Path | str | None = None,
    workers: int = 1,
    per_shard: int = 250,
    first_shard: int = 0,
    size: tuple[int, int] = (256, 256),
    progress: bool = True,
    copies: tuple[int, int] | None = None,
    renderer: str = "fast",
    samples: int = pathtrace.SAMPLES,
) -> int:
    """Render ``count`` scenes of objects in ``out``/objects/``split`` into shards under ``out``/scenes/``split``.

    Whole shards that exist are kept, so a killed run goes on where it was. The catalogue of objects is fixed when a
    round (``prefix``) starts, with the settings and the names of the photographs, in ``<prefix>.json`` beside the
    shards: objects added later enter later rounds only, and the same seed gives the same bytes. ``size`` is (width,
    height). With ``copies`` (lowest, highest) one object of each scene is there so often and all others once: sets
    that show whether several instances of an object are told apart. ``renderer`` "cycles" lets the objects fall and
    traces ``samples`` paths a pixel (:mod:`~ocdit_ros.train.pathtrace`). Returns the number of scenes of the round.
    """
    if split not in ob.SPLITS:
        raise ValueError(f"split must be one of {', '.join(ob.SPLITS)}, got {split!r}")
    if count < 1 or per_shard < 1:
        raise ValueError("count and per_shard must be at least 1")
    if copies is not None and not 1 <= copies[0] <= copies[1]:
        raise ValueError(f"copies must be two numbers from 1 on, the lower first, got {copies}")
    if renderer not in RENDERERS:
        raise ValueError(f"renderer must be one of {', '.join(RENDERERS)}, got {renderer!r}")
    traced = renderer == "cycles"
    if traced and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if traced:
        pathtrace.load_blender()  # before anything is written
    store, folder = Path(out) / "objects" / split, Path(out) / "scenes" / split
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "seed": seed,
        "per_shard": per_shard,
        "first_shard": first_shard,
        "size": list(size),
        "renderer": pathtrace.RENDERER if traced else sc.RENDERER,
        "photos": _photo_names(photos, split),
        "copies": None if copies is None else list(copies),
    }
    if traced:
        settings["samples"] = samples
    note = folder / f"{prefix}.json"
    if note.is_file():
        known = json.loads(note.read_text())
        if {k: known.get(k) for k in settings} != settings:
            raise ValueError(f"{note} was made with other settings; use them again or take another prefix.")
        keys = known["objects"]
    else:
        keys = sorted(ob.read_index(store))
        ob.write_whole(note, lambda file: file.write(json.dumps(dict(settings, objects=keys)).encode()))
    jobs = []
    for number, first in enumerate(range(0, count, per_shard)):
        target = folder / f"shard-{first_shard + number:06d}.tar"
        if not target.is_file():
            jobs.append((str(target), first, min(first + per_shard, count)))
    left = sum(last - first for _, first, last in jobs)
    bar = tqdm(total=count, initial=count - left, unit="scene", disable=not progress, mininterval=5.0)
    arguments = (str(store), keys, split, seed, prefix, _text(photos), size, copies, samples if traced else None)
    for made in _map(_make_shard, jobs, workers, _start_scenes, arguments):
        bar.update(made)
    bar.close()
    return count


def scene_statistics(samples: Iterable[tuple[Any, Sequence[Mapping[str, Any]]]], side: int = 256) -> dict[str, float]:
    """Numbers that say how pictures are composed, comparable between data sets.

    ``samples`` yields (rgb uint8 [H, W, 3], instances with "pixels" and "visib_fract"). Pixel counts are scaled to a
    picture of ``side`` x ``side`` pixels (a wide one letterboxed into it).
    """
    count, sizes, fractions, means, deviations, colourful = [], [], [], [], [], []
    for rgb, instances in samples:
        scale = (side / max(rgb.shape[:2])) ** 2
        shown = [entry for entry in instances if entry["pixels"] > 0]
        count.append(len(shown))
        sizes += [entry["pixels"] * scale for entry in shown]
        fractions += [entry["visib_fract"] for entry in shown]
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        means.append(float(grey.mean()))
        deviations.append(float(grey.std()))
        colourful.append(float(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1].mean()))
    if not count:
        raise ValueError("there are no samples to take statistics of")
    sizes_, fractions_ = np.asarray(sizes), np.asarray(fractions)
    result = {"images": float(len(count)), "objects per image": float(np.mean(count))}
    for q in (5, 25, 50, 75, 95):
        result[f"pixels p{q}"] = float(np.percentile(sizes_, q))
    result["smaller than 300 px"] = float((sizes_ < 300).mean())
    result["visible fraction"] = float(fractions_.mean())
    result["visible fraction < 0.5"] = float((fractions_ < 0.5).mean())
    result["visible fraction > 0.95"] = float((fractions_ > 0.95).mean())
    result["brightness"] = float(np.mean(means))
    result["brightness sd over images"] = float(np.std(means))
    result["contrast"] = float(np.mean(deviations))
    result["saturation"] = float(np.mean(colourful))
    return {name: round(value, 3) for name, value in result.items()}


def read_scenes(folder: Path | str, limit: int | None = None) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Pictures and instances of all shards of a folder, for statistics and contact sheets."""
    seen = 0
    for path in sorted(Path(folder).glob("shard-*.tar")):
        for sample in _read_shard(path):
            if limit is not None and seen >= limit:
                return
            seen += 1
            yield sample


def _read_shard(path: Path, limit: int | None = None) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    for number, sample in enumerate(webdataset.WebDataset(str(path), shardshuffle=False)):
        if number == limit:
            return
        picture = cv2.imdecode(np.frombuffer(sample["rgb.jpg"], np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{path}: the picture of {sample['__key__']} cannot be read")
        yield np.ascontiguousarray(picture[..., ::-1]), json.loads(sample["json"])["instances"]


def read_bop(folder: Path | str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Pictures and instances of a BOP split (``<folder>/<scene>/rgb``), for statistics."""
    for scene in sorted(path for path in Path(folder).iterdir() if (path / "scene_gt_info.json").is_file()):
        info = json.loads((scene / "scene_gt_info.json").read_text())
        for number, entries in info.items():
            files = [p for p in (scene / "rgb").iterdir() if p.stem == f"{int(number):06d}"]
            picture = cv2.imread(str(files[0]), cv2.IMREAD_COLOR)
            if picture is None:
                raise ValueError(f"{files[0]} cannot be read as a picture")
            shown = [{"pixels": e["px_count_visib"], "visib_fract": e["visib_fract"]} for e in entries]
            yield np.ascontiguousarray(picture[..., ::-1]), shown


def contact_sheet(pictures: Sequence[Any], columns: int = 8) -> Any:
    """Pictures of one size [H, W, 3] side by side, rgb uint8."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures) - len(pictures) % columns, columns)]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def write_sheet(out: Path | str, split: str, target: Path | str, count: int = 64, seed: int = 0) -> int:
    """A contact sheet of scenes and, beside it (``<name>-objects``), one of as many objects; how many of each.

    Scenes are the first ones of shards spread over all rounds; objects are drawn with ``seed``.
    """
    target = Path(target)
    shards = sorted((Path(out) / "scenes" / split).glob("shard-*.tar"))
    folder = Path(out) / "objects" / split
    index = ob.read_index(folder)
    r = ob.seeded(seed, "sheet")
    scenes: list[Any] = []
    if shards:
        share = -(-count // len(shards))
        step = max(1, len(shards) * share // count)
        for path in shards[::step]:
            scenes += [rgb for rgb, _ in _read_shard(path, share)]
    objects = []
    for key in r.permutation(sorted(index))[:count]:
        with np.load(folder / f"{key}.npz") as stored:
            objects.append(stored["images"][int(r.integers(len(stored["images"])))])
    for pictures, name in ((scenes, target), (objects, target.with_stem(f"{target.stem}-objects"))):
        if len(pictures) >= 8:
            cv2.imwrite(str(name), contact_sheet(pictures[:count])[..., ::-1])
    return min(count, len(scenes), len(objects))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m ocdit_ros.train.shards``."""
    parser = argparse.ArgumentParser(prog="python -m ocdit_ros.train.shards", description=__doc__)
    shards_command.add_arguments(parser)
    return shards_command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
