# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The commands of `ocdit` (see ocdit --help). What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ocdit_ros.segment import Instance, Segmenter, SegmenterSettings
    from ocdit_ros.templates import ObjectSpec
    from ocdit_ros.templates.command import Featurizer

#: Commands that live in another room: command -> (module with add_parser and run, help).
ELSEWHERE = {
    "doctor": ("ocdit_ros.doctor", "check this machine, weights, meshes and camera"),
    "templates": ("ocdit_ros.templates.command", "render templates of meshes and look at them"),
    "train": ("ocdit_ros.train.command", "make weights: start, vae, denoiser, study, export"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(words[0] if words else "")
    options = parser.parse_args(words)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        print(f"ocdit: {error}", file=sys.stderr)
        return 1


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is meant for the user.

    Their modules are loaded by now, or they cannot have been raised.
    """
    places = {
        "ocdit_ros.segment.types": ("SegmentError",),
        "ocdit_ros.templates.source": ("MeshError",),
        "ocdit_ros.model.checkpoint": ("CheckpointError",),
        "ocdit_ros.evaluate.datasets": ("DatasetError",),
        "ocdit_ros.evaluate.run": ("RunError",),
    }
    found: list[type[Exception]] = [CommandError]
    for module, names in places.items():
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


class CommandError(Exception):
    """Arguments that cannot be used together, or files that cannot be read; one sentence."""


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ocdit", description="Instance masks of objects that are known by their CAD mesh."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in ELSEWHERE.items():
        if command == name:  # only then is its module loaded, which may be slow
            before = set(commands.choices)
            joined = {"make_featurizer": _featurizer} if name == "templates" else {}
            importlib.import_module(module).add_parser(commands, **joined)
            for added in set(commands.choices) - before:
                if commands.choices[added].get_default("run") is None:
                    commands.choices[added].set_defaults(run=importlib.import_module(module).run)
        else:
            commands.add_parser(name, help=text)
    _add_segment(commands)
    _add_preview(commands)
    _add_evaluate(commands)
    _add_benchmark(commands)
    return parser


# --------------------------------------------------------------------------- options


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--weights", metavar="FILE", help="checkpoint (safetensors); default: the shipped weights")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    group.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch; 0: its own choice")
    group.add_argument("--cache", metavar="DIR", help="folder that keeps templates and features between runs")
    group.add_argument("--no-refine", action="store_true", help="leave out the second look at enlarged crops")
    group.add_argument(
        "--no-compare-sizes", action="store_true", help="scores do not expect objects to be about equally far away"
    )
    for name, kind, text in (
        ("steps", int, "network evaluations of one sample"),
        ("solver", str, "euler, heun or dpmpp_2m"),
        ("ensemble", int, "noises per view"),
        ("augmentations", int, "shifted, scaled and mirrored views per crop, 1 to 8"),
        ("coarse-size", int, "longer side of a look of the coarse pass, pixels"),
        ("tiles", int, "a side that the coarse pass looks at besides the whole image; 1: none"),
        ("crop-size", int, "side of a crop in the refine pass, pixels"),
        ("group-size", int, "objects that the network sees together"),
        ("seed", int, "of the noise"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar=name.upper().replace("-", "_"), help=text)


def _settings(options: argparse.Namespace, **changes: Any) -> SegmenterSettings:
    from ocdit_ros.segment import SegmenterSettings

    names = ("steps", "solver", "ensemble", "augmentations", "coarse_size", "tiles", "crop_size", "group_size", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"refine": not options.no_refine, "compare_sizes": not options.no_compare_sizes}
    return SegmenterSettings(**{**given, **changes})


def _segmenter(
    options: argparse.Namespace, settings: SegmenterSettings, kind: type[Segmenter] | None = None
) -> Segmenter:
    import torch

    from ocdit_ros.segment import Segmenter
    from ocdit_ros.templates import TemplateCache

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise CommandError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu.")
        if device == "cuda":
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    cache = TemplateCache(options.cache) if options.cache else None
    return (kind or Segmenter).from_checkpoint(options.weights, device, settings, cache)


def _featurizer(weights: str | None) -> Featurizer:
    """What `ocdit templates --features` needs of the network."""
    import torch

    from ocdit_ros.model import load_checkpoint
    from ocdit_ros.segment.network import Network
    from ocdit_ros.segment.weights import default_weights
    from ocdit_ros.templates.command import Featurizer

    torch.set_num_threads(1)  # there is a worker process for each core
    network = Network(load_checkpoint(weights or default_weights(), "cpu"))
    config = network.config
    return Featurizer(network.featurize, network.feature_key, config.templates, config.template_size)


def _unit_interval(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def _count_or_range(text: str) -> int | tuple[int, int]:
    numbers = text.split("-")
    if not 1 <= len(numbers) <= 2 or not all(n.isdecimal() for n in numbers) or int(numbers[0]) > int(numbers[-1]):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of objects nor a range such as 2-28")
    return int(text) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def _share_or_range(text: str) -> float | tuple[float, float]:
    try:
        shares = [float(part) for part in text.split("-")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 2 or not 0 <= shares[0] <= shares[-1] <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a share in 0..1 nor a range such as 0.2-1")
    return shares[0] if len(shares) == 1 else (shares[0], shares[1])


# --------------------------------------------------------------------------- segment


def _add_object_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--models", metavar="DIR", help="folder of meshes obj_NNNNNN.ply (BOP), optionally names.json")
    what.add_argument("--mesh", nargs="+", metavar="FILE", help="meshes, each called like its file")
    parser.add_argument(
        "--scale", type=float, help="metres per mesh unit (default: 0.001 with --models, 1.0 with --mesh)"
    )
    parser.add_argument("--objects", nargs="+", metavar="NAME", help="look for these objects only")


def _add_segment(commands: Any) -> None:
    parser = commands.add_parser(
        "segment",
        help="find objects in images",
        description="Find objects in images and write overlay, labels and COCO JSON.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    _add_object_options(parser)
    parser.add_argument("--threshold", type=_unit_interval, metavar="SCORE", help="leave out instances scored below")
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: beside each image)")
    parser.add_argument("--trace", action="store_true", help="also animate the masks as they emerge from noise (WebP)")
    parser.add_argument(
        "--trace-steps", type=int, default=12, metavar="N", help="steps of the animation (default: %(default)s)"
    )
    _add_network_options(parser)
    parser.set_defaults(run=_segment)


def _segment(options: argparse.Namespace) -> int:
    specs = _specs(options)
    images = [(Path(path), _read_image(path)) for path in options.images]
    _refuse_name_clash(options, [path for path, _ in images])
    changes = {} if options.threshold is None else {"score_threshold": options.threshold}
    segmenter = _segmenter(options, _settings(options, **changes))
    for spec in specs.values():
        segmenter.add_object(spec)
    numbers = list(specs)
    for path, rgb in images:
        instances = segmenter.segment(rgb)
        folder = Path(options.out) if options.out else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        _write_results(folder, path.stem, rgb, instances, numbers)
        print(f"{path}: {len(instances)} instances in {segmenter.last_timings['total']:.2f} s")
        _print_table(instances)
        if options.trace:
            _write_trace(folder / f"{path.stem}_trace.webp", segmenter, rgb, options.trace_steps)
    return 0


def _specs(options: argparse.Namespace) -> dict[int, ObjectSpec]:
    """Objects to look for, by the number that the COCO JSON calls them."""
    from ocdit_ros.segment.models import read_models
    from ocdit_ros.templates import ObjectSpec

    if options.scale is not None and not options.scale > 0:
        raise CommandError(f"--scale is {options.scale:g}, but must be above 0.")
    if options.models:
        specs = read_models(options.models, 0.001 if options.scale is None else options.scale)
    else:
        scale = 1.0 if options.scale is None else options.scale
        specs = {n: ObjectSpec(Path(mesh).stem, mesh, scale) for n, mesh in enumerate(options.mesh, start=1)}
        names = [spec.name for spec in specs.values()]
        if double := {name for name in names if names.count(name) > 1}:
            raise CommandError(f"Two meshes are called '{sorted(double)[0]}'; rename one file.")
    if options.objects:
        known = {spec.name: number for number, spec in specs.items()}
        if missing := [name for name in options.objects if name not in known]:
            raise CommandError(f"There is no object '{missing[0]}'; there are {', '.join(known)}.")
        specs = {known[name]: specs[known[name]] for name in dict.fromkeys(options.objects)}
    return specs


def _read_image(path: str) -> np.ndarray:
    from PIL import UnidentifiedImageError

    from ocdit_ros.evaluate.datasets import read_rgb

    try:
        return read_rgb(path)
    except FileNotFoundError:
        raise CommandError(f"There is no image '{path}'.") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise CommandError(f"'{path}' cannot be read as an image: {error}") from None


def _refuse_name_clash(options: argparse.Namespace, paths: list[Path]) -> None:
    places = [(Path(options.out) if options.out else path.parent).resolve() / path.stem for path in paths]
    if len(set(places)) < len(places):
        raise CommandError("Two images have the same name, so their results would overwrite each other; use two calls.")


def _write_results(folder: Path, stem: str, rgb: np.ndarray, instances: list[Instance], numbers: list[int]) -> None:
    from PIL import Image

    from ocdit_ros.evaluate.submission import run_lengths
    from ocdit_ros.segment import draw

    Image.fromarray(draw.overlay(rgb, instances)).save(folder / f"{stem}_overlay.png")
    labels = draw.label_image(instances, *rgb.shape[:2])
    Image.fromarray(labels).save(folder / f"{stem}_labels.png")
    names = {numbers[i.object_id - 1]: i.name for i in instances}
    coco = {
        "images": [{"id": 1, "file_name": stem, "width": rgb.shape[1], "height": rgb.shape[0]}],
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": numbers[i.object_id - 1],
                "score": round(i.score, 6),
                "bbox": list(i.box),
                "area": int(i.mask.sum()),
                "iscrowd": 0,
                "segmentation": run_lengths(i.mask),
            }
            for n, i in enumerate(instances, start=1)
        ],
    }
    (folder / f"{stem}.json").write_text(json.dumps(coco))


def _print_table(instances: list[Instance]) -> None:
    if not instances:
        return
    width = max(len(i.name) for i in instances)
    print(f"  {'object':<{width}}  score  {'x':>5} {'y':>5} {'width':>5} {'height':>6} {'pixels':>8}")
    for i in instances:
        x, y, w, h = i.box
        print(f"  {i.name:<{width}}  {i.score:5.2f}  {x:5d} {y:5d} {w:5d} {h:6d} {int(i.mask.sum()):8d}")


def _write_trace(path: Path, segmenter: Segmenter, rgb: np.ndarray, steps: int) -> None:
    from PIL import Image

    from ocdit_ros.segment import draw

    view, frames = segmenter.trace(rgb, steps)
    seen = view.sample(rgb)
    ids = range(1, len(segmenter.objects) + 1)
    pictures = [Image.fromarray(draw.trace_frame(seen, frame, ids)) for frame in frames]
    durations = [250] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=80)
    print(f"  {path}: {len(pictures)} steps")


# --------------------------------------------------------------------------- preview


def _add_preview(commands: Any) -> None:
    parser = commands.add_parser(
        "preview",
        help="try meshes on images or a camera topic, in the browser",
        description="Serve a web page on this machine: drop an image or watch a topic, choose objects, move threshold "
        "and steps, see masks, scores and denoising. From afar: ssh -L 8080:127.0.0.1:8080 ROBOT. Needs the extra "
        "'preview'.",
    )
    _add_object_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; whoever reaches it can use it "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    _add_network_options(parser)
    parser.set_defaults(run=_preview)


def _preview(options: argparse.Namespace) -> int:
    try:
        importlib.import_module("nicegui")
    except ImportError:
        raise CommandError(
            "The preview needs NiceGUI: `make preview` adds it, or pip install -r requirements/lock-preview.txt."
        ) from None
    from ocdit_ros import preview
    from ocdit_ros.templates import TemplateCache

    specs = _specs(options)
    segmenter = _segmenter(options, _settings(options))
    cache = TemplateCache(options.cache)
    thumbnails = {}
    for spec in specs.values():
        segmenter.add_object(spec)
        thumbnails[spec.name] = cache.get(spec).templates.images[0]
    preview.serve(segmenter, thumbnails, options.host, options.port)
    return 0


# --------------------------------------------------------------------------- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score the weights on a BOP data set",
        description="Segment the images of a data set and score the result as BOP does: COCO AP, result file, report. "
        "For several processes use --workers, or start this command by torchrun.",
    )
    parser.add_argument(
        "dataset", metavar="DATASET", help="folder of a BOP data set, or of synthetic scene shards (.tar)"
    )
    parser.add_argument("--method", choices=("ocdit", "correlation"), default="ocdit",
                        help="correlation: the same backbone without diffusion, a baseline")  # fmt: skip
    parser.add_argument("--split", default="test", help="folder of the images in a BOP data set (default: %(default)s)")
    parser.add_argument("--targets", metavar="FILE", help="targets file in the data set's folder (default: BOP's)")
    parser.add_argument("--object-store", metavar="DIR", help="templates of the objects of synthetic scenes")
    parser.add_argument("--absent", type=_count_or_range, default=4, metavar="N or N-M",
                        help="absent objects asked for per synthetic scene; a range draws a number for each "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--asked", type=_share_or_range, default=1.0, metavar="P or P-Q",
                        help="share of the objects in view of a synthetic scene that are asked for; a range draws one "
                        "for each (default: all)")  # fmt: skip
    parser.add_argument(
        "--complete",
        type=_unit_interval,
        default=0.0,
        metavar="P",
        help="share of the synthetic scenes that ask for all that is in view, whatever --asked says",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--threshold", type=_unit_interval, metavar="SCORE",
                        help="score that counts as a detection in the report (default: the Segmenter's)")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: evaluation/METHOD_DATASET)")
    parser.add_argument("--resume", action="store_true", help="continue a run that was cut")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, one GPU each where there are GPUs"
    )
    parser.add_argument("--fit-scores", metavar="FILE",
                        help="fit the scores on this run and write them to FILE (JSON, for `ocdit train export "
                        "--provenance`); held-out synthetic scenes only")  # fmt: skip
    parser.add_argument("--scores", metavar="FILE", help="use these fitted scores instead of the checkpoint's own")
    _add_network_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from ocdit_ros.evaluate.command import evaluate

    if options.workers > 1 and "RANK" not in os.environ:
        words = _without(sys.argv[1:], "--workers")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
        return subprocess.run([sys.executable, *launch, "-m", "ocdit_ros.cli", *words], check=False).returncode
    settings = _settings(options, score_threshold=0.01)
    threshold = options.threshold if options.threshold is not None else _settings(options).score_threshold
    return evaluate(options, lambda kind: _segmenter(options, settings, kind), settings, threshold)


def _without(words: Sequence[str], option: str) -> list[str]:
    """Command line without `--option VALUE` or `--option=VALUE`."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


# --------------------------------------------------------------------------- benchmark


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark", help="time the stages", description="Time the stages of the Segmenter on an image."
    )
    parser.add_argument("--image", metavar="IMAGE", help="default: random texture of --size")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="of the random image (default: %(default)s)")
    parser.add_argument("--models", metavar="DIR", help="folder of meshes; default: made-up templates")
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[1, 8, 21], metavar="N", help="catalogue sizes to time"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="images per measurement; the median counts")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    _add_network_options(parser)
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from ocdit_ros.segment.benchmark import benchmark, random_image

    try:
        width, height = (int(v) for v in options.size.lower().split("x"))
    except ValueError:
        raise CommandError(f"--size is '{options.size}'; write it like 640x480.") from None
    rgb = _read_image(options.image) if options.image else random_image(height, width)
    specs = []
    if options.models:
        from ocdit_ros.segment.models import read_models

        specs = list(read_models(options.models).values())
    segmenter = _segmenter(options, _settings(options))
    rows = benchmark(segmenter, rgb, options.objects, options.repeat, specs)
    stages = list(rows[0].seconds)
    print("  ".join(["objects", *(f"{s:>12}" for s in stages), f"{'memory':>10}"]))
    for row in rows:
        cells = (f"{1000 * row.seconds[s]:9.0f} ms" for s in stages)
        print("  ".join([f"{row.objects:7d}", *cells, f"{row.peak_bytes / 2**20:6.0f} MiB"]))
    if options.json:
        table = [{"objects": r.objects, "seconds": r.seconds, "peak_bytes": r.peak_bytes} for r in rows]
        Path(options.json).write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
