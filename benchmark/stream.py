# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What a stream gains over full sampling of each frame, and what it costs: docs/performance.md.

    python benchmark/stream.py --objects DATA/objects/val [--sequences 30] [--frames 20] [--store FOLDER]

Camera paths are rendered from held-out objects of the training data (docs/training-data.md): the camera moves around
a scene of procedural objects, one object comes and one goes in the middle, and every other sequence is cut to another
scene of the same objects. Each frame is segmented in full and by a `Stream`, both in this process; times are CPU time.

Ids are judged as in tracking benchmarks: a true instance is matched to a detection of its object with an IoU of 0.5 or
more, and an id switch is a match whose id differs from that of its last match. With --store a run that was cut goes on
where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.evaluate.coco import evaluate
from ocdit_ros.evaluate.datasets import GroundTruth, ImageKey
from ocdit_ros.evaluate.submission import Detection, encode_mask
from ocdit_ros.segment import Instance, Segmenter, SegmenterSettings, StreamSettings
from ocdit_ros.segment.stream import Effort
from ocdit_ros.segment.weights import default_weights
from ocdit_ros.train.objects import load_object, read_index, templates_of
from ocdit_ros.train.scenes import Catalogue, Placed, Scene, draw_scene, render_scene

MATCH = 0.5  # IoU at which a detection is a true instance's


@dataclass(frozen=True, eq=False)
class Truth:
    """One visible instance of one frame."""

    track: int  # the same physical thing in all frames of a sequence
    key: str
    mask: np.ndarray  # bool [H, W]
    visible: float  # share of it that nothing hides


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a sequence."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    truth: tuple[Truth, ...]
    scene: int  # counts up at a cut


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A camera path, and the objects that are asked for."""

    keys: tuple[str, ...]
    frames: tuple[Frame, ...]


# --------------------------------------------------------------------------- rendering


def choose_keys(r: np.random.Generator, index: dict[str, dict[str, Any]], count: int) -> list[str]:
    """Objects of similar size that one sequence knows; those that are in no scene are asked for in vain."""
    keys = sorted(index)
    first = keys[int(r.integers(len(keys)))]
    near = [k for k in keys if 0.5 < index[k]["diameter"] / index[first]["diameter"] < 2.0 and k != first]
    return sorted([first, *(str(k) for k in r.choice(near, count - 1, replace=False))])


def moved(scene: Scene, angle: float, nearer: float, shift: np.ndarray) -> Scene:
    """The camera turned around the middle of the objects, about the vertical, and brought nearer."""
    middle = np.median([p.position for p in scene.instances], axis=0) + shift
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    eye = -scene.rotation.T @ scene.translation
    eye = middle + turn @ (eye - middle) * nearer
    rotation = scene.rotation @ turn.T
    return dataclasses.replace(scene, rotation=rotation, translation=-rotation @ eye)


def walk(
    r: np.random.Generator, scene: Scene, frames: int, size: tuple[int, int], first_track: int, number: int
) -> Iterator[Frame]:
    """Frames of a camera path around one scene; one instance comes at a third, another goes at two thirds."""
    swing = np.radians(r.uniform(0.6, 1.6) * r.choice([-1, 1]))  # a frame
    zoom = float(np.exp(r.uniform(-0.008, 0.008)))
    drift = r.normal(0, 0.004, 3) * np.array([1, 1, 0.3])
    count = len(scene.instances)
    comes, goes = (int(i) for i in r.choice(count, 2, replace=False)) if count > 2 else (-1, -1)
    for step in range(frames):
        there = [
            n for n in range(count)
            if not (n == comes and step < frames // 3) and not (n == goes and step >= 2 * frames // 3)
        ]  # fmt: skip
        hand = r.normal(0, 0.0015, 3)  # nobody holds a camera still
        view = moved(scene, swing * step, zoom**step, drift * step + hand)
        view = dataclasses.replace(view, instances=tuple(scene.instances[n] for n in there))
        picture = render_scene(view, r, size)
        found = []
        for k, entry in enumerate(picture.instances, start=1):
            which = nearest(view, entry["t"])
            found.append(
                Truth(first_track + there[which], entry["object"], picture.label == k, float(entry["visib_fract"]))
            )
        yield Frame(jpeg(picture.rgb, picture.jpeg_quality), tuple(found), number)


def nearest(scene: Scene, place: Sequence[float]) -> int:
    """Which instance is at this place in the camera frame."""

    def distance(p: Placed) -> float:
        return float(np.linalg.norm(scene.rotation @ p.position + scene.translation - np.array(place)))

    return min(range(len(scene.instances)), key=lambda n: distance(scene.instances[n]))


def jpeg(rgb: np.ndarray, quality: int) -> np.ndarray:
    """As a camera would send it."""
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def sequence(folder: Path, index: dict[str, dict[str, Any]], seed: int, number: int, frames: int,
             size: tuple[int, int], objects: int) -> CameraPath:  # fmt: skip
    """Camera path `number`; depends on the seed, the number and the objects only."""
    r = np.random.default_rng([seed, number])
    keys = choose_keys(r, index, objects)
    load = functools.lru_cache(maxsize=None)(lambda key: load_object(folder, key))
    known = Catalogue.from_index({key: index[key] for key in keys})
    lengths = [frames] if number % 2 else [frames // 2, frames - frames // 2]
    found: list[Frame] = []
    first = 1
    for part, length in enumerate(lengths):
        scene = draw_scene(r, known, load, (), size, copies=(1, 2))
        found += walk(r, scene, length, size, first, part)
        first += len(scene.instances)
    return CameraPath(tuple(keys), tuple(found))


def rendered(folder: Path, index: dict[str, dict[str, Any]], store: Path, *which: Any) -> CameraPath:
    """`sequence`, kept in a file."""
    seed, number, frames, (width, height), objects = which
    path = store / f"sequence-{seed}-{number:03d}-{frames}-{width}x{height}-{objects}.npz"
    if not path.exists():
        made = sequence(folder, index, *which)
        rows = [(n, t) for n, f in enumerate(made.frames) for t in f.truth]
        store.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, keys=np.array(made.keys), rgb=np.stack([f.rgb for f in made.frames]),
            scene=np.array([f.scene for f in made.frames]), frame=np.array([n for n, _ in rows]),
            track=np.array([t.track for _, t in rows]), key=np.array([t.key for _, t in rows]),
            visible=np.array([t.visible for _, t in rows]), mask=np.packbits(np.stack([t.mask for _, t in rows]), -1),
        )  # fmt: skip
    with np.load(path) as data:
        masks = np.unpackbits(data["mask"], -1, width).astype(bool)
        rows = list(zip(data["frame"], data["track"], data["key"], masks, data["visible"], strict=True))
        return CameraPath(tuple(map(str, data["keys"])), tuple(
            Frame(rgb, tuple(Truth(int(t), str(k), m, float(v)) for f, t, k, m, v in rows if f == n), int(scene))
            for n, (rgb, scene) in enumerate(zip(data["rgb"], data["scene"], strict=True))
        ))  # fmt: skip


# --------------------------------------------------------------------------- segmenting


def catalogue(segmenter: Segmenter, folder: Path, keys: Sequence[str]) -> None:
    """Make these the objects of the segmenter."""
    for name in segmenter.objects:
        segmenter.remove_object(name)
    for key in keys:
        templates = templates_of(load_object(folder, key), segmenter.config.templates, segmenter.config.template_size)
        segmenter.add_templates(templates)


@dataclass(frozen=True, eq=False)
class Results:
    """What came out of every frame of a sequence."""

    instances: list[list[Instance]]
    seconds: list[float]  # of CPU time
    efforts: list[Effort]  # empty for full sampling

    def save(self, path: Path) -> None:
        """To a file."""
        flat = [(n, i) for n, found in enumerate(self.instances) for i in found]
        shape = (1, 1, 1)
        masks = np.packbits(np.stack([i.mask for _, i in flat]), -1) if flat else np.zeros(shape, np.uint8)
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(
            partial, frame=np.array([n for n, _ in flat]), mask=masks, seconds=np.array(self.seconds),
            rest=np.str_(json.dumps({
                "instances": [[i.object_id, i.name, i.score, [int(v) for v in i.box], i.track_id] for _, i in flat],
                "efforts": [dataclasses.astuple(e) for e in self.efforts],
            })),
        )  # fmt: skip
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, width: int) -> Results:
        """From a file; `width` of the images in pixels."""
        with np.load(path) as data:
            rest = json.loads(str(data["rest"]))
            found: list[list[Instance]] = [[] for _ in data["seconds"]]
            rows = rest["instances"]
            masks = np.unpackbits(data["mask"], -1, width).astype(bool) if rows else []
            for n, mask, (number, name, score, box, track) in zip(data["frame"], masks, rows, strict=True):
                found[n].append(Instance(number, name, score, mask, tuple(box), None, track))
            efforts = [Effort(*values) for values in rest["efforts"]]
            return cls(found, [float(s) for s in data["seconds"]], efforts)


def segmented(
    segmenter: Segmenter, folder: Path, one: CameraPath, settings: StreamSettings, files: tuple[Path, Path]
) -> tuple[Results, Results]:
    """Every frame in full and as the next of a stream, in turn; kept in two files."""
    width = one.frames[0].rgb.shape[1]
    if not all(path.exists() for path in files):
        catalogue(segmenter, folder, one.keys)
        stream = segmenter.stream(settings)
        both = Results([], [], []), Results([], [], [])
        for frame in one.frames:
            for results, segment in zip(both, (segmenter.segment, stream.segment), strict=True):
                start = time.process_time()
                results.instances.append(segment(frame.rgb))
                results.seconds.append(time.process_time() - start)
            assert stream.effort is not None
            both[1].efforts.append(stream.effort)
        for results, path in zip(both, files, strict=True):
            results.save(path)
    full, streamed = (Results.load(path, width) for path in files)
    return full, streamed


# --------------------------------------------------------------------------- measuring


@dataclass
class Ids:
    """How true to the truth ids are, added up over sequences."""

    tracks: int = 0  # true instances that were found in two frames or more
    switched: int = 0  # of these, whose id changed at least once
    switches: int = 0
    matches: int = 0  # (true instance, frame) pairs that were found


def matched(truth: Sequence[Truth], found: Sequence[Instance]) -> dict[int, Instance]:
    """Detections of the true instances of one frame, by track; each serves one, the best IoU first."""
    pairs = []
    for n, one in enumerate(truth):
        for m, instance in enumerate(found):
            if instance.name == one.key:
                iou = (instance.mask & one.mask).sum() / (instance.mask | one.mask).sum()
                if iou >= MATCH:
                    pairs.append((iou, n, m))
    result: dict[int, Instance] = {}
    used: set[int] = set()
    for _, n, m in sorted(pairs, reverse=True):
        if truth[n].track not in result and m not in used:
            result[truth[n].track] = found[m]
            used.add(m)
    return result


def count_ids(one: CameraPath, instances: Sequence[Sequence[Instance]], threshold: float) -> Ids:
    """Id switches of a sequence; what a user sees: scores from `threshold` on."""
    last: dict[int, int] = {}
    found: dict[int, int] = {}
    switched: dict[int, int] = {}
    for frame, some in zip(one.frames, instances, strict=True):
        for track, instance in matched(frame.truth, [i for i in some if i.score >= threshold]).items():
            if track in last and last[track] != instance.track_id:
                switched[track] = switched.get(track, 0) + 1
            last[track] = instance.track_id
            found[track] = found.get(track, 0) + 1
    tracks = sum(count > 1 for count in found.values())
    return Ids(tracks, len(switched), sum(switched.values()), sum(found.values()))


def unsteadiness(one: CameraPath, instances: Sequence[Sequence[Instance]], threshold: float) -> list[float]:
    """By how much the IoU of a mask with the truth changes from a frame to the next, of all that are found in both.

    The camera moves, so that successive masks cannot be compared with each other.
    """
    changes = []
    before: dict[int, float] = {}
    for frame, some in zip(one.frames, instances, strict=True):
        now = {}
        masks = {t.track: t.mask for t in frame.truth}
        for track, instance in matched(frame.truth, [i for i in some if i.score >= threshold]).items():
            mask = masks[track]
            now[track] = float((instance.mask & mask).sum() / (instance.mask | mask).sum())
            if track in before:
                changes.append(abs(now[track] - before[track]))
        before = now
    return changes


def flicker(one: CameraPath, instances: Sequence[Sequence[Instance]], threshold: float) -> tuple[int, int]:
    """How often a true instance that is visible in two successive frames is found in just one; of how many pairs."""
    count = total = 0
    for n in range(1, len(one.frames)):
        seen = [
            matched(frame.truth, [i for i in some if i.score >= threshold])
            for frame, some in zip(one.frames[n - 1 : n + 1], instances[n - 1 : n + 1], strict=True)
        ]
        both = {t.track for t in one.frames[n - 1].truth} & {t.track for t in one.frames[n].truth}
        total += len(both)
        count += sum((track in seen[0]) != (track in seen[1]) for track in both)
    return count, total


def recovery(one: CameraPath, full: Results, streamed: Results, threshold: float) -> list[int]:
    """For each cut, after how many frames the stream finds as many true instances as full sampling: 1 is at once."""
    taken = []
    for cut in range(1, len(one.frames)):
        if one.frames[cut].scene == one.frames[cut - 1].scene:
            continue
        count = 0
        for n in range(cut, len(one.frames)):
            count += 1
            a, b = (
                len(matched(one.frames[n].truth, [i for i in r.instances[n] if i.score >= threshold]))
                for r in (full, streamed)
            )
            if b >= a:
                break
        taken.append(count)
    return taken


def precision(
    paths: Sequence[CameraPath], instances: Sequence[Sequence[Sequence[Instance]]], threshold: float = 0.0,
    frames: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """AP (IoU 0.5 to 0.95, as in BOP) of all frames together, in points; `frames`: of these numbers only."""
    numbers: dict[str, int] = {}
    truth: dict[ImageKey, list[GroundTruth]] = {}
    detections = []
    for n, (one, results) in enumerate(zip(paths, instances, strict=True)):
        for m, (frame, some) in enumerate(zip(one.frames, results, strict=True)):
            if frames is not None and m not in frames:
                continue
            key = ImageKey(n, m)
            truth[key] = [
                GroundTruth(numbers.setdefault(t.key, len(numbers) + 1), t.mask, t.visible) for t in frame.truth
            ]
            detections += [
                Detection(key, numbers.setdefault(i.name, len(numbers) + 1), i.score, encode_mask(i.mask), i.box, 0.0)
                for i in some if i.score >= threshold
            ]  # fmt: skip
    return 100 * evaluate(truth, detections, list(numbers.values())).ap


def report(paths: Sequence[CameraPath], full: Sequence[Results], streamed: Sequence[Results], threshold: float) -> str:
    """The table, in Markdown; `threshold`: score from which on a user sees a detection."""
    efforts = [e for one in streamed for e in one.efforts]
    # evaluations of a full frame: all its looks, and all views of its crops
    whole = statistics.mean(e.evaluations for e in efforts if e.full and e.crops)
    rows: list[tuple[str, str, str]] = [
        ("network evaluations of a place, mean of all frames", f"{whole:.2f}",
         f"{statistics.mean(e.evaluations for e in efforts):.2f}"),
        ("the same, of frames that continue", "",
         f"{statistics.mean(e.evaluations for e in efforts if not e.full):.2f}"),
    ]  # fmt: skip
    seconds = [[second for r in some for second in r.seconds] for some in (full, streamed)]
    continuing = [not e.full for e in efforts]
    rows += [
        ("CPU time of a frame, median", "1", f"1 / {np.median(seconds[0]) / np.median(seconds[1]):.2f}"),
        ("crops a frame, mean", "", f"{statistics.mean(e.crops for e in efforts):.1f}"),
        ("frames segmented in full", f"{len(efforts)}", f"{len(efforts) - sum(continuing)}"),
    ]
    results = [[r.instances for r in some] for some in (full, streamed)]
    for least in (0.0, threshold):
        values = [precision(paths, some, least) for some in results]
        name = f"AP, scores from {least:g}" if least else "AP"
        rows.append((name, *(f"{value:.1f}" for value in values)))  # type: ignore[arg-type]
    steady = [[v for p, i in zip(paths, some) for v in unsteadiness(p, i, threshold)] for some in results]
    rows.append(("change of a mask's IoU from frame to frame, mean", *(f"{np.mean(v):.3f}" for v in steady)))  # type: ignore[arg-type]
    blinks = [np.sum([flicker(p, i, threshold) for p, i in zip(paths, some)], axis=0) for some in results]
    rows.append(("found in just one of two successive frames", *(f"{100 * a / b:.1f} %" for a, b in blinks)))  # type: ignore[arg-type]
    ids = [count_ids(p, r.instances, threshold) for p, r in zip(paths, streamed)]
    tracks, switched = sum(i.tracks for i in ids), sum(i.switched for i in ids)
    rows.append((
        "tracks with an id switch", "", f"{100 * switched / max(tracks, 1):.1f} % ({switched} of {tracks})",
    ))  # fmt: skip
    cuts = [count for three in zip(paths, full, streamed) for count in recovery(*three, threshold)]
    at_once = sum(count == 1 for count in cuts)
    rows.append(
        ("cuts recovered in the very frame", "", f"{at_once} of {len(cuts)}; the slowest in {max(cuts, default=0)}")
    )
    change = [
        e.surprise for one, path in zip(streamed, paths) for n, e in enumerate(one.efforts)
        if n and path.frames[n].scene != path.frames[n - 1].scene
    ]  # fmt: skip
    calm = [
        e.surprise for one, path in zip(streamed, paths) for n, e in enumerate(one.efforts)
        if n and path.frames[n].scene == path.frames[n - 1].scene
    ]  # fmt: skip
    rows.append(("surprise at cuts, lowest; elsewhere, highest", "", f"{min(change, default=0):.2f}; {max(calm):.2f}"))
    lines = ["| | full sampling | stream |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def main() -> None:
    """Render, segment, measure, print."""
    parser = argparse.ArgumentParser(description="What a stream gains over full sampling, and what it costs.")
    parser.add_argument("--objects", type=Path, required=True, help="object store of the held-out split")
    parser.add_argument("--weights", default=None, help="checkpoint; default: that of the package")
    parser.add_argument("--sequences", type=int, default=30)
    parser.add_argument("--frames", type=int, default=20, help="of a sequence")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--known", type=int, default=5, help="objects in the catalogue of a sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, default=StreamSettings.start_sigma, help="StreamSettings.start_sigma")
    parser.add_argument("--no-average", action="store_true", help="crops of known instances from their new view alone")
    parser.add_argument("--store", type=Path, help="folder for pictures and results, so that a run can be continued")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    index = read_index(options.objects)
    settings = StreamSettings(start_sigma=options.sigma, average=not options.no_average)
    # what is remembered is what is looked at here: AP wants weaker detections than a user does
    segmenter = Segmenter.from_checkpoint(
        options.weights, settings=SegmenterSettings(score_threshold=settings.track_score)
    )
    # so that results of other weights do not pass for those of these (those of other code do: delete them)
    digest = hashlib.sha256(Path(options.weights or default_weights()).read_bytes()).hexdigest()[:8]
    with tempfile.TemporaryDirectory() as temporary:
        store = options.store or Path(temporary)
        paths, full, streamed = [], [], []
        for number in range(options.sequences):
            which = (options.seed, number, options.frames, tuple(options.size), options.known)
            path = rendered(options.objects, index, store, *which)
            name = f"{options.seed}-{number:03d}-{options.frames}-{options.size[0]}-{options.known}"
            kind = f"{options.sigma:g}-{'new' if options.no_average else 'average'}-{digest}"
            files = store / f"full-{name}-{kind}.npz", store / f"stream-{name}-{kind}.npz"
            a, b = segmented(segmenter, options.objects, path, settings, files)
            paths.append(path)
            full.append(a)
            streamed.append(b)
            print(f"sequence {number + 1} of {options.sequences}", file=sys.stderr, flush=True)
        print(report(paths, full, streamed, SegmenterSettings().score_threshold))


if __name__ == "__main__":
    main()
