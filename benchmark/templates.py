# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""How long templates take: cold, from the cache, and where the time goes.

    python3 benchmark/templates.py [--repeat N] [--objects N] [--threads N] [--brief] [--folder DIR] [--json FILE]

The mesh is made here: a textured blob of 50,000 faces with a texture of 1024 x 1024 pixels. Cold means: read the
files, render 12 templates of 128 px, write the cache entry to disk and sync it. Imports are paid once per process and
listed apart. Medians of wall time and of CPU time (all threads of this process) are printed: on a busy machine the
wall time says more about the neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.templates import (
    Mesh,
    ObjectSpec,
    RenderSettings,
    TemplateCache,
    TemplateSet,
    decimate,
    load_mesh,
    render,
    viewpoints,
)


def blob(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bumpy closed surface of 2 rows x columns faces: vertices [V, 3] m, faces [F, 3], uv [V, 2]."""
    rng = np.random.default_rng(seed)
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    theta, phi = np.pi * v, 2 * np.pi * u
    a, b = rng.uniform(0.05, 0.15, 2)
    radius = 0.05 * (1 + a * np.sin(3 * phi) * np.sin(theta) ** 3 + b * np.cos(2 * phi + seed) * np.sin(theta) ** 2)
    x, y, z = radius * np.sin(theta) * np.cos(phi), radius * np.sin(theta) * np.sin(phi), -0.06 * np.cos(theta)
    corner = np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
    below = corner + columns + 1
    halves = [(corner, corner + 1, below + 1), (corner, below + 1, below)]
    faces = np.concatenate([np.stack(h, axis=-1).reshape(-1, 3) for h in halves])
    return np.stack([x, y, z], -1).reshape(-1, 3), faces, np.stack([u, v], -1).reshape(-1, 2)


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Coarse colour patches with fine stripes, uint8 [side, side, 3]."""
    patches = np.random.default_rng(seed).integers(30, 226, (16, 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)).copy()
    image[:: side // 64] //= 2
    return image


def write_ply(path: Path, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, pixels: np.ndarray) -> Path:
    """Binary PLY with a texture beside it, the way BOP data sets have it."""
    Image.fromarray(pixels).save(path.with_suffix(".png"), compress_level=1)
    names = ["x", "y", "z", "texture_u", "texture_v"]
    header = ["ply", "format binary_little_endian 1.0", f"comment TextureFile {path.with_suffix('.png').name}"]
    header += [f"element vertex {len(vertices)}", *(f"property float {n}" for n in names)]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    rows = np.zeros(len(faces), [("count", "u1"), ("index", "<i4", 3)])
    rows["count"], rows["index"] = 3, faces
    body = np.hstack([vertices, uv]).astype("<f4").tobytes() + rows.tobytes()
    path.write_bytes("\n".join(header).encode() + body)
    return path


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, pixels: np.ndarray) -> Path:
    """OBJ with its material and texture."""
    Image.fromarray(pixels).save(path.with_suffix(".png"), compress_level=1)
    path.with_suffix(".mtl").write_text(f"newmtl m\nmap_Kd {path.with_suffix('.png').name}\n")
    lines = [f"mtllib {path.with_suffix('.mtl').name}", "usemtl m"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices] + [f"vt {a:.6f} {b:.6f}" for a, b in uv]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in faces + 1]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_stl(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    """Binary STL."""
    rows = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows["corners"] = vertices[faces]
    path.write_bytes(bytes(80) + struct.pack("<I", len(faces)) + rows.tobytes())
    return path


def measure(repeat: int, work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> dict[str, float]:
    """Medians and the least of wall and CPU time of `work`, in milliseconds; `before` is not counted."""
    wall, cpu = [], []
    for _ in range(repeat):
        before()
        w, c = time.perf_counter(), time.process_time()
        work()
        wall.append(1000 * (time.perf_counter() - w))
        cpu.append(1000 * (time.process_time() - c))
    return {"wall": statistics.median(wall), "wall_min": min(wall), "cpu": statistics.median(cpu), "cpu_min": min(cpu)}


def features(templates: TemplateSet) -> dict[str, np.ndarray]:
    """As large as the backbone features of the shipped model: 12 x 64 x 16 x 16 and 12 x 128 x 8 x 8 half floats."""
    rng = np.random.default_rng(0)
    shapes = {"map_8": (len(templates.images), 64, 16, 16), "map_16": (len(templates.images), 128, 8, 8)}
    return {name: rng.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}


def importing(modules: str) -> dict[str, float]:
    """CPU time of an import in a fresh process, milliseconds."""
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    root = Path(__file__).resolve().parents[1]
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
            for _ in range(3)]  # fmt: skip
    cpu = [1000 * float(run.stdout) for run in runs]
    return {"wall": float("nan"), "wall_min": float("nan"), "cpu": statistics.median(cpu), "cpu_min": min(cpu)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=11, help="measurements of each kind (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=200, help="objects of the catalogue (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the renderer, 0: all (default)")
    parser.add_argument("--brief", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--folder", metavar="DIR", help="keep the meshes and the cache there for the next call")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    settings = RenderSettings(threads=args.threads)

    with contextlib.ExitStack() as stack:
        folder = Path(args.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        vertices, faces, uv = blob(125, 200)
        pixels = texture(1024)
        ply = write_ply(folder / "blob.ply", vertices, faces, uv, pixels)
        obj = write_obj(folder / "blob_obj.obj", vertices, faces, uv, pixels)
        stl = write_stl(folder / "blob.stl", vertices, faces)
        cache = TemplateCache(folder / "cache")
        spec = ObjectSpec("blob", str(ply))

        def get() -> None:
            cache.get(spec, settings, features, "benchmark")

        def forget() -> None:
            shutil.rmtree(cache.directory, ignore_errors=True)

        get()  # imports Open3D and trimesh
        rows["cold: load, render, store"] = measure(args.repeat, get, forget)
        rows["from the cache"] = measure(args.repeat, get)
        mesh = load_mesh(ply)
        rotations = viewpoints(12)
        rows["load PLY"] = measure(args.repeat, lambda: load_mesh(ply))
        rows["load OBJ"] = measure(args.repeat, lambda: load_mesh(obj))
        rows["load STL"] = measure(args.repeat, lambda: load_mesh(stl))
        rows["render 12 x 128 px"] = measure(args.repeat, lambda: render(mesh, rotations, settings))
        one = RenderSettings(threads=1)
        rows["render, 1 thread"] = measure(args.repeat, lambda: render(mesh, rotations, one))

        specs = []
        for n in range(args.objects):
            path = folder / "many" / f"{n:03d}" / "mesh.ply"
            if not path.exists():
                path.parent.mkdir(parents=True)
                write_ply(path, *blob(50, 100, n), texture(256, n))
            specs.append(ObjectSpec(f"object {n}", str(path)))
        many = TemplateCache(folder / "many_cache")

        def get_all() -> None:
            for each in specs:
                many.get(each, settings, features, "benchmark")

        if len(many.entries()) < len(specs):
            rows[f"{args.objects} objects, cold"] = measure(1, get_all)
        rows[f"{args.objects} objects from the cache"] = measure(min(args.repeat, 5), get_all)
        entry_bytes = sum(e.size for e in many.entries()) / max(len(specs), 1)

        if not args.brief:
            vertices, faces, uv = blob(500, 1000)
            big = Mesh.from_arrays(vertices, faces, uv=uv, texture=pixels)
            rows["decimate 1,000,000 faces to 500,000"] = measure(1, lambda: decimate(big, 500_000, args.threads))
            rows["render 1,000,000 faces as they are"] = measure(1, lambda: render(big, rotations, settings))
            rows |= {f"import {m}": importing(m) for m in ("ocdit_ros.templates", "open3d, trimesh")}

    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, {args.threads=}")
    print(f"one entry of the cache: {entry_bytes / 1e6:.2f} MB")
    print(f"{'milliseconds':36}  {'wall':>9} {'(least)':>9}  {'CPU':>9} {'(least)':>9}")
    for label, row in rows.items():
        print(f"{label:36}  {row['wall']:9.1f} {row['wall_min']:9.1f}  {row['cpu']:9.1f} {row['cpu_min']:9.1f}")
    if args.json:
        Path(args.json).write_text(json.dumps({"load": load, "cores": os.cpu_count(), "milliseconds": rows}, indent=1))


if __name__ == "__main__":
    main()
