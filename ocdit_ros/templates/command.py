# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit templates`: render the templates of meshes, look at them, and look after the cache."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .cache import Featurize, TemplateCache, default_directory
from .renderer import RenderSettings
from .source import MeshError
from .types import ObjectSpec


@dataclass(frozen=True)
class Featurizer:
    """The backbone, which this room does not know: what makes features, its key, and the templates that it takes."""

    featurize: Featurize
    feature_key: str
    views: int
    size: int  # pixels


#: Makes a Featurizer from a checkpoint (None: the shipped one), in each worker process anew; can be pickled.
MakeFeaturizer = Callable[[str | None], Featurizer]

_featurizer: Featurizer | None = None  # of this process


@dataclass(frozen=True)
class _Result:
    """What became of one mesh."""

    spec: ObjectSpec
    error: str = ""
    problem: str = ""
    cached: bool = False
    seconds: float = 0.0
    diameter: float = 0.0


def add_parser(subparsers: Any, make_featurizer: MakeFeaturizer | None = None) -> argparse.ArgumentParser:
    """Add the sub-command to the `subparsers` of argparse; its options go to `run`.

    With `make_featurizer` there are the options --features and --weights.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "templates",
        help="render templates of meshes and look at them",
        description="Render the templates of meshes into the cache. With --out, also write a contact sheet (PNG) and "
        "the metadata (JSON) of each.",
    )
    parser.add_argument("meshes", nargs="*", metavar="MESH", help="path, file:// or package:// URI")
    parser.add_argument("--out", metavar="DIR", help="folder for contact sheets and metadata")
    parser.add_argument("--scale", type=_positive, default=1.0, help="metres per mesh unit, 0.001 for mm (default: 1)")
    parser.add_argument("--views", type=_count, help=f"templates per object ({RenderSettings.views})")
    parser.add_argument("--size", type=_count, help=f"pixels of a side ({RenderSettings.size})")
    parser.add_argument(
        "--max-faces", type=_count, default=RenderSettings.max_faces, help="simplify meshes with more (%(default)s)"
    )
    parser.add_argument("--jobs", type=_count, metavar="N", help="worker processes (default: one per CPU core)")
    parser.add_argument("--cache", metavar="DIR", help=f"folder of the cache (default: {default_directory()})")
    if make_featurizer is not None:
        parser.add_argument(
            "--features", action="store_true", help="also compute the backbone's features, as a node keeps them"
        )
        parser.add_argument("--weights", metavar="FILE", help="checkpoint for --features; default: the shipped weights")
    parser.add_argument("--list", action="store_true", help="print what is in the cache")
    parser.add_argument("--clear", action="store_true", help="empty the cache")
    parser.set_defaults(run=run, make_featurizer=make_featurizer)
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the options say; 0 if all went well, 1 if a mesh failed, 2 if the options make no sense."""
    cache = TemplateCache(args.cache)
    if not (args.meshes or args.list or args.clear):
        print("ocdit templates: name at least one MESH, or use --list or --clear.", file=sys.stderr)
        return 2
    if args.clear:
        count = cache.clear()
        print(f"Removed {count} {'entry' if count == 1 else 'entries'} from {cache.directory}.")
    failed = 0
    if args.meshes:
        make = partial(args.make_featurizer, args.weights) if getattr(args, "features", False) else None
        if make is not None and (args.views or args.size):
            print("ocdit templates: with --features, the weights decide on --views and --size.", file=sys.stderr)
            return 2
        _use(make)  # in this process too: weights that cannot be read are reported once
        model = _featurizer or RenderSettings
        views, size = args.views or model.views, args.size or model.size
        try:
            settings = RenderSettings(views=views, size=size, max_faces=args.max_faces)
        except ValueError as error:
            print(f"ocdit templates: {error}.", file=sys.stderr)
            return 2
        specs = [ObjectSpec(n, m, args.scale) for n, m in zip(_names(args.meshes), args.meshes, strict=True)]
        out = Path(args.out) if args.out else None
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                print(f"ocdit templates: {out}: cannot be made a folder ({error.strerror}).", file=sys.stderr)
                return 1
        failed = _report(_render_all(specs, settings, cache.directory, out, args.jobs, make), len(specs))
    if args.list:
        _print_list(cache)
    return 1 if failed else 0


def _render_all(
    specs: Sequence[ObjectSpec],
    settings: RenderSettings,
    directory: Path,
    out: Path | None,
    jobs: int | None,
    make: Callable[[], Featurizer] | None,
) -> Iterator[_Result]:
    """Results as they come, from worker processes if that pays."""
    jobs = min(jobs or _cores(), len(specs))
    if jobs == 1:
        yield from (_render_one(spec, settings, directory, out) for spec in specs)
        return
    work = partial(_render_one, settings=_replace_threads(settings, 1), directory=directory, out=out)
    # Forking would copy a process in which Open3D or PyTorch may have started threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _use, (make,)) as pool:
        waiting = {pool.submit(work, spec): spec for spec in specs}
        for done in as_completed(waiting):
            try:
                yield done.result()
            except BrokenProcessPool:
                yield _Result(waiting[done], error=f"{waiting[done].mesh}: a worker process died, try --jobs 1.")


def _use(make: Callable[[], Featurizer] | None) -> None:
    """Make the featurizer of this process."""
    global _featurizer
    _featurizer = make() if make is not None else None


def _render_one(spec: ObjectSpec, settings: RenderSettings, directory: Path, out: Path | None) -> _Result:
    began = time.perf_counter()
    try:
        what = (_featurizer.featurize, _featurizer.feature_key) if _featurizer is not None else ()
        entry = TemplateCache(directory).get(spec, settings, *what)
        if out is not None:
            from .sheet import contact_sheet

            contact_sheet(entry.templates).save(out / f"{spec.name}.png")
            metadata = {
                "name": spec.name,
                "mesh": spec.mesh,
                "scale": spec.scale,
                "diameter": entry.templates.diameter,
                "settings": {name: value for name, value in asdict(settings).items() if name != "threads"},
                "rotations": entry.templates.rotations.astype(float).round(7).tolist(),
                "coverage": [round(float(m.mean()) / 255.0, 5) for m in entry.templates.masks],
            }
            (out / f"{spec.name}.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    except MeshError as error:
        return _Result(spec, error=str(error))
    except OSError as error:
        return _Result(spec, error=f"{error.filename or out}: cannot be written ({error.strerror}).")
    seconds = time.perf_counter() - began
    return _Result(spec, "", entry.problem, entry.cached, seconds, entry.templates.diameter)


def _report(results: Iterable[_Result], count: int) -> int:
    """Print the results under a progress bar; returns how many meshes failed."""
    from tqdm import tqdm

    failed = 0
    with tqdm(total=count, unit="mesh", disable=None if count > 1 else True, leave=False) as bar:
        for result in results:
            for line in filter(None, (result.error, result.problem)):
                tqdm.write(f"ocdit templates: {line}", file=sys.stderr)
            failed += bool(result.error)
            if not result.error:
                how = "from the cache" if result.cached else "rendered"
                size = f"{result.diameter * 1000:.4g} mm"
                tqdm.write(f"{result.spec.name}: {size}, {how} in {result.seconds:.2f} s", file=sys.stdout)
            bar.update()
    return failed


def _print_list(cache: TemplateCache) -> None:
    entries = cache.entries()
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        print(f"{when}  {entry.size / 1e6:8.1f} MB  {entry.name or '(unreadable)'}  {entry.mesh or entry.path}")
    total = sum(entry.size for entry in entries)
    print(f"{len(entries)} in {cache.directory}, {total / 1e6:.1f} of {cache.max_bytes / 1e6:.0f} MB")


def _names(meshes: Sequence[str]) -> list[str]:
    """File names without suffix; numbered where they are the same."""
    names: list[str] = []
    for mesh in meshes:
        stem = Path(mesh).stem or "mesh"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def _replace_threads(settings: RenderSettings, threads: int) -> RenderSettings:
    return RenderSettings(**(asdict(settings) | {"threads": threads}))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
