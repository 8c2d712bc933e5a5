# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Fuzzers of whatever comes from outside: image messages, parameters, meshes, cache, checkpoints, BOP folders.

    python test/fuzzing.py TARGET --count N [--seed S] [--findings DIR]      random, repeatable
    python test/fuzzing.py TARGET --atheris [-max_total_time=60 ...]         guided by coverage (pip install atheris)

A case is good when it is used as the interface promises, or refused by the error that the interface promises, in one
line. Everything else is a finding: another error, a result of wrong shape, type or content, memory beyond the limit, a
hang, a crash. Cases run in a child process, so that a native library that crashes is a finding and not the end.
test_fuzzing.py runs a short part of each; docs/reliability.md says what longer runs found.
"""

from __future__ import annotations

import abc
import argparse
import array
import contextlib
import copy
import importlib
import io
import json
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).with_name("corpus")
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: What a case may take: bytes of memory beyond the most that the process had, seconds of processor time, seconds of
#: hanging. Four times the memory is there, so that code which only notes that there is no more is found out.
MEMORY, SLOW, HANG = 1024**3, 10.0, 120.0


class FindingError(AssertionError):
    """The code under test did something that it should not."""


def expect(condition: Any, text: str) -> None:
    """A check that holds also under python -O."""
    if not condition:
        raise FindingError(text)


def one_line(error: Exception) -> str:
    """An error must explain itself in one line; returns the name of its class."""
    text = str(error)
    expect(len(text.strip()) > 0 and "\n" not in text and len(text) < 2000, f"no sentence: {text!r}")
    return f"refused ({type(error).__name__})"


# Mutations ------------------------------------------------------------------------------------------------------------

NUMBERS = [
    "0", "-1", "1", "2", "3", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967295", "-2147483648",
    "9223372036854775807", "18446744073709551616", "1e9", "1e308", "1e-320", "1e999", "-1e999", "nan", "inf", "-inf",
    "0.5", "1e5", "9" * 40, "0x10", "١", "",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 65536, 2**31, 2**32, 2**63, 2**64, -(2**63), 0.5, 1e308, 1e-300,
    float("nan"), float("inf"), "", "x", "0", "../../../etc/passwd", "/etc/passwd", "a\nb", "\0", "ü" * 300, [], {},
    [0], [[]], {"a": 0}, [1, 2, 3], "package://a/../b", "http://localhost/x",
    "I8", "F16", "F32", "BF16", "F64", "BOOL", "F8_E4M3", [8, 2, 8, 3], [1, 16, 8, 3], [2, 8, 24],
]  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def mutate(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to a few changes of the kinds that damaged, foreign and hostile files have."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        size = len(result)
        place = rng.randrange(size + 1)
        # Headers decide most, and are short.
        if rng.random() < 0.4:
            place = min(place, rng.randrange(200))
        kind = rng.randrange(11)
        if kind == 0 and size:
            result[min(place, size - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            result[min(place, size - 1)] = rng.choice((0, 1, 9, 10, 32, 48, 57, 127, 128, 254, 255))
        elif kind == 2:
            value = rng.choice((0, 1, 2**7, 2**8, 2**15, 2**16, 2**24, 2**31, 2**32 - 1, 2**31 - 1))
            word = struct.pack(rng.choice("<>") + "I", value)
            result[place : place + 4] = word
        elif kind == 3:
            result[place : place + 4] = struct.pack("<f", rng.choice((0.0, float("nan"), float("inf"), 1e38, 1e-45)))
        elif kind == 4:
            del result[place : place + rng.choice((1, 2, 4, 16, 200))]
        elif kind == 5:
            piece = result[place : place + rng.choice((1, 4, 16, 200))]
            result[place:place] = piece * rng.choice((1, 2, 50))
        elif kind == 6:
            del result[place:]
        elif kind == 7:
            result[place:place] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 8 and other:
            start = rng.randrange(len(other))
            result[place : place + rng.choice((0, 64))] = other[start : start + rng.choice((8, 64, 1000))]
        elif kind >= 9:  # a number in a text
            found = list(_NUMBER.finditer(result, 0, 4000 if rng.random() < 0.5 else size))
            if found:
                match = rng.choice(found)
                result[match.start() : match.end()] = rng.choice(NUMBERS).encode()
    return bytes(result)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three of its parts changed, removed, doubled or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        parts: list[tuple[Any, Any]] = []
        todo = [value]
        while todo:
            node = todo.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            for key in keys:
                parts.append((node, key))
                todo.append(node[key])
        if not parts or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(VALUES))
        node, key = rng.choice(parts)
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(("", "x", "0", "-1", "1", "2", "999999", str(key) + "0"))] = node.pop(key)
        elif kind == 2 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))  # which later changes must not reach
    return value


def to_text(value: Any) -> bytes:
    """As a careless program writes it: with NaN and Infinity, which are no JSON, and with lone surrogates."""
    return json.dumps(value).encode()


# Targets --------------------------------------------------------------------------------------------------------------


class Target(abc.ABC):
    """Something to fuzz: `case` makes input out of chance, `run` tries it and says what came of it."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and may be filled."""
        self.folder = folder

    @abc.abstractmethod
    def case(self, rng: random.Random) -> Any:
        """An input."""

    @abc.abstractmethod
    def run(self, case: Any) -> str:
        """Try it; the outcome in a few words. Raises whatever is a finding."""

    def from_bytes(self, data: bytes) -> Any:
        """A case for a fuzzer that thinks in bytes."""
        return self.case(random.Random(data))

    def seeds(self) -> list[bytes]:
        """Where a fuzzer that thinks in bytes begins."""
        return []


def read_corpus(name: str) -> dict[str, bytes]:
    """Files of a corpus by their path in it."""
    folder = CORPUS / name
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


class Images(Target):
    """sensor_msgs/Image and CompressedImage through ocdit_ros.node.images.to_rgb."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from ocdit_ros.node import images

        self.images = images
        self.names = [*images.ENCODINGS, "nv21", "32FC1", "16UC1", "bayer_rggb16", "", "RGB8", "rgb8 ", "ü", "a\nb",
                      "x" * 5000]  # fmt: skip
        self.packed = list(read_corpus("images").values())

    def case(self, rng: random.Random) -> Any:
        return self.compressed(rng) if rng.random() < 0.5 else self.raw(rng)

    def raw(self, rng: random.Random) -> dict[str, Any]:
        """Mostly right, with something wrong about it."""
        name = rng.choice(self.names)
        row = self.images.ENCODINGS.get(name)
        pixel = row.channels * int(row.dtype[1:]) if row else 3
        height, width = (rng.choice((0, 1, 2, 3, 5, 8, 17)) for _ in range(2))
        step = width * pixel + rng.choice((0, 0, 0, 1, 2, 7))
        size = step * height
        odd = (0, 1, 2**15, 2**15 + 1, 2**16, 2**31, 2**32 - 1)
        for _ in range(rng.choice((0, 0, 1, 2))):
            kind = rng.randrange(5)
            if kind == 0:
                height = rng.choice(odd)
            elif kind == 1:
                width = rng.choice(odd)
            elif kind == 2:
                step = rng.choice((*odd, max(step - 1, 0)))
            elif kind == 3:
                size = max(size + rng.choice((-8, -1, 1, 100)), 0)
            else:
                size = 0
        big = rng.choice((0, 0, 1, 2, 255))
        return {
            "encoding": name, "height": height, "width": width, "step": step, "is_bigendian": big,
            "data": rng.randbytes(size),
        }  # fmt: skip

    def compressed(self, rng: random.Random) -> dict[str, Any]:
        """A damaged file, most of the time."""
        data = rng.choice(self.packed)
        if rng.random() < 0.95:
            data = mutate(data, rng, rng.choice(self.packed))
        kinds = ("jpeg", "png", "rgb8; jpeg compressed bgr8", "", "ü", "16UC1; compressedDepth png", "tiff", "x" * 500)
        return {"format": rng.choice(kinds), "data": data}

    def run(self, case: dict[str, Any]) -> str:
        from sensor_msgs.msg import CompressedImage, Image

        message = (CompressedImage if "format" in case else Image)()
        for name, value in case.items():
            setattr(message, name, array.array("B", value) if name == "data" else value)
        try:
            rgb = self.images.to_rgb(message)
        except self.images.ImageError as error:
            return one_line(error)
        expect(rgb.dtype == "uint8" and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size, f"{rgb.dtype} {rgb.shape}")
        expect(rgb.shape[0] * rgb.shape[1] <= 100e6, f"{rgb.shape} is larger than any camera")
        if "format" in case:
            return "compressed image used"
        expect(rgb.shape[:2] == (case["height"], case["width"]), f"{rgb.shape} instead of what was announced")
        self._compare(case, rgb)
        return "image used"

    @staticmethod
    def _compare(case: dict[str, Any], rgb: Any) -> None:
        """Every pixel, read one by one by the definition of the encoding."""
        order = {"rgb8": (3, 0, 1, 2), "bgr8": (3, 2, 1, 0), "rgba8": (4, 0, 1, 2), "bgra8": (4, 2, 1, 0),
                 "mono8": (1, 0, 0, 0)}.get(case["encoding"])  # fmt: skip
        if order is None or rgb.size > 3000:
            return
        size, *channels = order
        for y in range(case["height"]):
            for x in range(case["width"]):
                at = y * case["step"] + x * size
                wanted = [case["data"][at + c] for c in channels]
                expect(rgb[y, x].tolist() == wanted, f"pixel {y} {x} is {rgb[y, x]}, not {wanted}")

    def from_bytes(self, data: bytes) -> Any:
        if not data or data[0] % 2:
            return {"format": "jpeg", "data": data[1:]}
        head, rest = data[1:14].ljust(13, b"\0"), data[14:]
        name = self.names[head[12] % len(self.names)]
        height, width, step = struct.unpack("<III", head[:12])
        return {
            "encoding": name, "height": height, "width": width, "step": step, "is_bigendian": data[0] >> 1 & 1,
            "data": rest,
        }  # fmt: skip

    def seeds(self) -> list[bytes]:
        raw = [b"\0" + struct.pack("<III", 2, 4, 12) + bytes([n]) + bytes(24) for n in range(len(self.names))]
        return [b"\1" + data for data in self.packed] + raw


class Parameters(Target):
    """Sets of parameters, given to a node at its start or while it is in one of its states, then configured."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import rclpy
        import trimesh
        from rclpy.exceptions import ParameterException
        from rclpy.parameter import Parameter

        from ocdit_ros.node import lifecycle_node, parameters

        self.of_rclpy = ParameterException
        os.environ.setdefault("ROS_LOG_DIR", str(folder))
        if not rclpy.ok():
            rclpy.init(args=["--ros-args", "--log-level", "fatal", "--disable-rosout-logs"])
        trimesh.creation.box((100, 100, 100)).export(folder / "obj_000001.ply")
        (folder / "names.json").write_text('{"1": "mug"}')
        self.table = {row.name: row for row in parameters.PARAMETERS}
        self.error, self.parameters = parameters.ParameterError, parameters
        self.kind, self.make = Parameter, lifecycle_node.SegmentNode
        self.node: Any = None
        self.left = 0

    def _segmenter(self, values: Any) -> Any:
        from node_fakes import make_fake

        return make_fake({**values, "weights": ""})

    def case(self, rng: random.Random) -> Any:
        words = ["", "mug", "box", "a b", "..", "/", "~", "ü", "\n", "x" * 3000, "package://x/y", "http://x/y",
                 "cuda:99", "cpu", "trigger", "stream", "raw", str(self.folder), "\0", "/dev/zero",
                 "/proc/self/mem"]  # fmt: skip
        plain: list[Any] = [
            *(None, True, False, 0, 1, -1, 2, 16, 2**31, 2**63 - 1, -(2**63)),
            *(0.0, 0.5, 1.0, -1.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
            *words, [], [""], ["mug"], ["mug", "mug"], ["left", "right"], ["a/b"], [1, 2], [True], [0.5], b"\1\2",
        ]  # fmt: skip
        names = [*self.table, "objects.mug.mesh", "objects.mug.scale", "objects..mesh", "objects.a.b", "objects.mug",
                 "use_sim_time", "unknown", "Objects", "qos_overrides./x", "objects.a b.mesh", "a" * 300]  # fmt: skip
        values = {}
        for _ in range(rng.choice((1, 1, 2, 4, 10))):
            name = rng.choice(names)
            row = self.table.get(name)
            value = rng.choice(plain)
            if row is not None and rng.random() < 0.5:
                number = row.minimum is not None and row.maximum is not None
                value = rng.choice(row.choices) if row.choices else row.default
                if number and rng.random() < 0.8:
                    value = rng.choice((row.minimum, row.maximum, row.minimum - 1, row.maximum + 1, row.default))
                    value = int(value) if isinstance(row.default, int) and rng.random() < 0.9 else value
            values[name] = value
        return {"values": values, "start": rng.random() < 0.1, "step": rng.choice(("", "", "", *"cadu"))}

    def run(self, case: dict[str, Any]) -> str:
        given = []
        for name, value in case["values"].items():
            # Not every value is one that ROS can carry.
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                given.append(self.kind(name, value=value))
        if self.node is None or self.left <= 0 or case["start"]:
            if self.node is not None:
                self._end()
            self.left = 200
            base = {"models_dir": str(self.folder), "warm_up": False}
            overrides = [self.kind(name, value=value) for name, value in base.items() if name not in case["values"]]
            try:
                self.node = self.make(self._segmenter, parameter_overrides=[*overrides, *given])
            except self.of_rclpy as error:  # segment_node.main ends with this sentence
                expect("use_sim_time" in str(error), f"the node does not start: {error}")
                return one_line(ValueError(" ".join(str(error).split())[:1000]))
            outcome = "started"
        else:
            result = self.node.set_parameters_atomically(given)
            outcome = "accepted" if result.successful else "refused"
            if not result.successful:
                expect(result.reason.strip(), "refused without a reason")
        self.left -= 1
        states = ("unconfigured", "inactive", "active")
        step = {"c": "trigger_configure", "a": "trigger_activate", "d": "trigger_deactivate", "u": "trigger_cleanup"}
        legal = {"unconfigured": "c", "inactive": "au", "active": "d"}[self.node.state]
        if case["step"] and case["step"] in legal:
            done = getattr(self.node, step[case["step"]])()
            expect(done.name in ("SUCCESS", "FAILURE"), f"{step[case['step']]}: {done}")
            outcome += f", {step[case['step']][8:]} {done.name.lower()}"
        expect(self.node.state in states, f"state {self.node.state}")
        for name, value in self.node._values.items():
            row = self.parameters.find(name)
            expect(row is not None and row.check(value) == value, f"{name} is {value!r}")
        return outcome

    def _end(self) -> None:
        self.node.close()
        self.node.destroy_node()
        self.node = None


class Meshes(Target):
    """Mesh files of every format with their materials and textures, and links out of their folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import collada  # noqa: F401  # libraries do not count as memory of a case
        import trimesh

        from ocdit_ros.templates import Mesh, MeshError, RenderSettings, load_mesh, renderer, viewpoints

        self.load, self.error = load_mesh, MeshError
        box = trimesh.creation.box((0.1, 0.1, 0.1))
        self.render = lambda mesh: renderer.render(mesh, viewpoints(2), RenderSettings(size=16, views=2, threads=1))
        self.render(Mesh.from_arrays(box.vertices, box.faces))
        self.files = read_corpus("meshes")
        self.sets: dict[str, list[str]] = {}
        for name in self.files:
            self.sets.setdefault(name.split("/")[0], []).append(name)
        self.number = 0

    def case(self, rng: random.Random) -> Any:
        kind = rng.choice(sorted(self.sets))
        names = self.sets[kind]
        main = next(n for n in names if Path(n).suffix not in (".png", ".mtl", ".bin"))
        changed = main if rng.random() < 0.75 else rng.choice(names)
        files = {Path(n).name: self.files[n] for n in names}
        name, data = Path(changed).name, self.files[changed]
        if name.endswith(".gltf") and rng.random() < 0.7:
            data = to_text(mutate_json(json.loads(data), rng))
        elif name.endswith(".glb") and rng.random() < 0.7:
            length = struct.unpack("<I", data[12:16])[0]
            header = to_text(mutate_json(json.loads(data[20 : 20 + length]), rng))
            header = header.ljust(-(-len(header) // 4) * 4)
            rest = data[20 + length :]
            data = struct.pack("<4sIIII", b"glTF", 2, 20 + len(header) + len(rest), len(header), 0x4E4F534A)
            data += header + rest
        else:
            data = mutate(data, rng, self.files[rng.choice(sorted(self.files))])
        files[name] = data
        return {"main": Path(main).name, "files": files}

    def run(self, case: dict[str, Any]) -> str:
        import numpy as np

        place = self.folder / "mesh"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in case["files"].items():
            (place / name).write_bytes(data)
        path = place / case["main"]
        try:
            mesh = self.load(path, 0.1)
        except self.error as error:
            expect(str(error).startswith(f"{path}: "), f"the file is not named: {error}")
            expect("memory" not in str(error), "refused only when memory was gone")
            return one_line(error)
        count, faces = len(mesh.vertices), len(mesh.faces)
        expect(mesh.vertices.shape == (count, 3) and np.isfinite(mesh.vertices).all(), "vertices")
        expect(mesh.faces.shape == (faces, 3) and faces > 0 and mesh.faces.max() < count, "faces")
        expect(mesh.colors.shape == (faces, 3, 3) and mesh.colors.dtype == np.uint8, "colours")
        expect(mesh.uv.shape == (faces, 3, 2) and np.isfinite(mesh.uv).all(), "texture coordinates")
        expect(mesh.texture_index.shape == (faces,), "texture index")
        expect(mesh.texture_index.min() >= -1 and mesh.texture_index.max() < len(mesh.textures), "texture index")
        expect(
            all(t.ndim == 3 and t.shape[2] == 3 and t.dtype == np.uint8 and t.size for t in mesh.textures), "texture"
        )
        expect(1e-5 <= mesh.diameter <= 1e3, f"diameter {mesh.diameter}")
        expect(all(str(file).startswith(str(place)) for file, _ in mesh.files), f"read {mesh.files}")
        self.number += 1
        if self.number % 20:
            return "mesh used"
        seen = self.render(mesh)
        expect(np.isfinite(seen.depths).all() and (seen.depths >= 0).all(), "depths")
        return "mesh used and rendered"

    def from_bytes(self, data: bytes) -> Any:
        suffixes = ("ply", "obj", "stl", "gltf", "glb", "dae", "off")
        name = f"a.{suffixes[(data[0] if data else 0) % len(suffixes)]}"
        return {"main": name, "files": {name: data[1:]}}

    def seeds(self) -> list[bytes]:
        suffixes = (".ply", ".obj", ".stl", ".gltf", ".glb", ".dae", ".off")
        return [
            bytes([suffixes.index(Path(n).suffix)]) + d for n, d in self.files.items() if Path(n).suffix in suffixes
        ]


class Cache(Target):
    """Entries of the template cache: damaged, and sealed anew with a right checksum by somebody else."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import numpy as np

        from ocdit_ros.templates import ObjectSpec, RenderSettings, TemplateSet, cache

        self.np, self.cache = np, cache
        rng = np.random.default_rng(3)
        self.settings = RenderSettings(size=8, views=2)
        self.mesh = folder / "mesh.ply"
        self.mesh.write_bytes(b"never parsed")
        self.texture = folder / "mesh.png"
        self.texture.write_bytes(b"never parsed either")
        self.spec = ObjectSpec("mesh", str(self.mesh))
        self.truth = TemplateSet(
            images=rng.integers(0, 256, (2, 8, 8, 3), np.uint8), masks=rng.integers(0, 256, (2, 8, 8), np.uint8),
            depths=rng.random((2, 8, 8), np.float32), rotations=rng.random((2, 3, 3), np.float32), diameter=0.1,
            name="mesh",
        )  # fmt: skip
        self.features = {"map": rng.random((2, 4), np.float32).astype(np.float16)}
        self.store = cache.TemplateCache(folder / "cache")
        made = cache.CacheEntry(self.truth, self.features)
        self.store._make = lambda *_: made  # type: ignore[method-assign]
        import hashlib

        self.sha = hashlib.sha256
        digest = self.sha(self.mesh.read_bytes()).hexdigest()
        prefix = cache._prefix(self.mesh, digest, 1.0, self.settings, "key")
        others = [(self.texture.name, self.sha(self.texture.read_bytes()).hexdigest())]
        self.store._store(prefix, self.mesh, others, self.truth, self.features)
        (self.path,) = self.store.directory.glob("*.templates")
        self.good = self.path.read_bytes()
        expect(self.store.get(self.spec, self.settings, feature_key="key").cached, "the entry is found")

    def case(self, rng: random.Random) -> Any:
        start = self.cache._START
        if rng.random() < 0.5:
            return mutate(self.good, rng)
        block = self.good[start:]
        if rng.random() < 0.7:
            length = struct.unpack("<Q", block[:8])[0]
            header = json.loads(block[8 : 8 + length])
            files = header["__metadata__"]["files"]
            header = mutate_json(header, rng)
            if rng.random() < 0.3 and isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
                header["__metadata__"]["files"] = json.dumps(mutate_json(json.loads(files), rng))
            text = to_text(header)
            block = struct.pack("<Q", len(text)) + text + block[8 + length :]
        else:
            block = mutate(block, rng)
        return self.cache._MAGIC + self.sha(block).digest() + block

    def run(self, case: bytes) -> str:
        self.path.write_bytes(case)
        for listed in self.store.entries():  # before the lookup, which removes what is damaged
            listed.problem()
        entry = self.store.get(self.spec, self.settings, feature_key="key")
        np, sealed = self.np, case[self.cache._START :] and self._is_sealed(case)
        for name in ("images", "masks", "depths", "rotations"):
            ours, wanted = getattr(entry.templates, name), getattr(self.truth, name)
            expect(ours.dtype == wanted.dtype and ours.shape == wanted.shape, f"{name}: {ours.dtype} {ours.shape}")
            if not sealed:
                expect(np.array_equal(ours, wanted), f"{name} is not what was stored")
        expect(0 < entry.templates.diameter < float("inf"), f"diameter {entry.templates.diameter}")
        if not sealed:
            expect(entry.features.keys() == self.features.keys(), "features")
        return f"{'sealed' if sealed else 'damaged'}, {'used' if entry.cached else 'made anew'}"

    def _is_sealed(self, case: bytes) -> bool:
        magic, start = self.cache._MAGIC, self.cache._START
        return case.startswith(magic) and self.sha(case[start:]).digest() == case[len(magic) : start] and (
            case != self.good
        )  # fmt: skip

    def from_bytes(self, data: bytes) -> Any:
        block = data[1:]
        if data[:1] and data[0] % 2:
            return self.cache._MAGIC + self.sha(block).digest() + block
        return block

    def seeds(self) -> list[bytes]:
        return [b"\0" + self.good, b"\1" + self.good[self.cache._START :]]


class Checkpoints(Target):
    """Weights files: damaged, of other sizes, with impossible configurations."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from model_fixtures import new_model

        from ocdit_ros.model import CheckpointError, load_checkpoint, save_checkpoint

        torch.set_num_threads(1)
        self.torch, self.load, self.error = torch, load_checkpoint, CheckpointError
        self.path = folder / "weights.safetensors"
        save_checkpoint(new_model(), self.path, {"summary": "none"}, torch.float16)
        self.good = self.path.read_bytes()
        self.length = struct.unpack("<Q", self.good[:8])[0]
        self.header = json.loads(self.good[8 : 8 + self.length])

    def case(self, rng: random.Random) -> Any:
        kind = rng.random()
        if kind < 0.2:
            head = mutate(self.good[: 8 + self.length], rng)
            return head, self.good[8 + self.length :]
        if kind < 0.3:
            size = rng.randrange(len(self.good))
            return self.good[:size], b""
        if kind < 0.4:  # numbers that are none, somewhere in the weights
            body = bytearray(self.good[8 + self.length :])
            place = rng.randrange(len(body) // 2) * 2
            body[place : place + 2] = struct.pack("<e", rng.choice((float("nan"), float("inf"))))
            return self.good[: 8 + self.length], bytes(body)
        header = json.loads(json.dumps(self.header))
        if kind < 0.7:
            header["__metadata__"]["config"] = json.dumps(
                mutate_json(json.loads(header["__metadata__"]["config"]), rng)
            )
        elif kind < 0.8:
            header["__metadata__"] = mutate_json(header["__metadata__"], rng)
        else:
            header = mutate_json(header, rng)
        text = to_text(header)
        return struct.pack("<Q", len(text)) + text, self.good[8 + self.length :]

    def run(self, case: tuple[bytes, bytes]) -> str:
        self.path.write_bytes(b"".join(case))
        try:
            model = self.load(self.path)
        except self.error as error:
            return one_line(error)
        expect(all(p.isfinite().all() for p in model.state_dict().values()), "weights that are not finite numbers")
        return "weights used"

    def from_bytes(self, data: bytes) -> Any:
        return struct.pack("<Q", len(data)) + data, self.good[8 + self.length :]

    def seeds(self) -> list[bytes]:
        return [self.good[8 : 8 + self.length]]


class Bop(Target):
    """BOP folders, through the evaluation's reader and through the node's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import numpy as np
        import trimesh
        from PIL import Image

        from ocdit_ros.evaluate.datasets import DatasetError, open_dataset
        from ocdit_ros.node.objects import ObjectsError, read_models_dir
        from ocdit_ros.templates import MeshError

        self.open, self.errors, self.np = open_dataset, (DatasetError,), np
        self.models, self.models_errors = read_models_dir, (ObjectsError, MeshError)
        rng = np.random.default_rng(5)

        def png(pixels: Any) -> bytes:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            return file.getvalue()

        annotation = {"obj_id": 1, "cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0, 0, 500]}
        scene, target = "test/000001", {"scene_id": 1, "obj_id": 1, "inst_count": 1}
        self.files: dict[str, bytes] = {
            "test_targets_bop19.json": to_text([{**target, "im_id": n} for n in (0, 1)]),
            "models/names.json": to_text({"1": "mug"}),
            "models/obj_000001.ply": trimesh.creation.box((50, 50, 50)).export(file_type="ply"),
            f"{scene}/scene_gt.json": to_text({"0": [annotation], "1": [annotation, annotation]}),
            f"{scene}/scene_gt_info.json": to_text({"0": [{"visib_fract": 0.9}], "1": [{"visib_fract": 0.5}] * 2}),
        }  # fmt: skip
        for image, count in ((0, 1), (1, 2)):
            self.files[f"{scene}/rgb/{image:06d}.png"] = png(rng.integers(0, 256, (6, 8, 3), np.uint8))
            for n in range(count):
                self.files[f"{scene}/mask_visib/{image:06d}_{n:06d}.png"] = png(
                    np.where(rng.random((6, 8)) > 0.5, 255, 0).astype(np.uint8)
                )

    def case(self, rng: random.Random) -> Any:
        files = dict(self.files)
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(sorted(files))
            kind = rng.random()
            if kind < 0.1:
                del files[name]
                if not files:
                    break
            elif name.endswith(".json") and kind < 0.8:
                try:
                    files[name] = to_text(mutate_json(json.loads(files[name]), rng))
                except ValueError:
                    files[name] = mutate(files[name], rng)
            else:
                files[name] = mutate(files[name], rng)
        return files

    def run(self, case: dict[str, bytes]) -> str:
        root = self.folder / "set"
        shutil.rmtree(root, ignore_errors=True)
        for name, data in case.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        try:
            self.models(str(root / "models"), 0.001)
        except self.models_errors as error:
            one_line(error)
        try:
            dataset = self.open(root)
            for key in dataset.images:
                rgb = dataset.rgb(key)
                expect(rgb.dtype == "uint8" and rgb.ndim == 3 and rgb.shape[2] == 3, f"{rgb.dtype} {rgb.shape}")
                for truth in dataset.ground_truth(key):
                    expect(truth.mask.dtype == bool and truth.mask.shape == rgb.shape[:2], "a mask of another size")
                    expect(0 <= truth.visible_fraction <= 1, f"visible fraction {truth.visible_fraction}")
                    expect(truth.category_id in dataset.categories, f"object {truth.category_id}")
        except self.errors as error:
            return one_line(error)
        return "data set used"


TARGETS: dict[str, type[Target]] = {
    "images": Images, "parameters": Parameters, "meshes": Meshes, "cache": Cache, "checkpoints": Checkpoints,
    "bop": Bop,
}  # fmt: skip


# Running --------------------------------------------------------------------------------------------------------------


def attempt(target: Target, number: int, seed: int) -> str:
    """Case `number`; returns the outcome, raises FindingError with all that is known."""
    case = target.case(random.Random(f"{seed}/{number}"))
    begin, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = target.run(case)
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024
        expect(taken < MEMORY, f"took {taken / 2**20:.0f} MiB of memory")
        expect(time.process_time() - begin < SLOW, f"took {time.process_time() - begin:.0f} s")
        return outcome
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise FindingError(f"case {number} of seed {seed}: {type(error).__name__}: {error}") from error


def limit_memory(more: int) -> None:
    """No more than that many bytes of address space beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


def _work(name: str, seed: int, first: int, end: int, at: Any, report: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="ocdit_fuzz_") as folder, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # native libraries complain there
        target = TARGETS[name](Path(folder))
        for number in (-1, -2, -3):  # what is imported and made only once does not count
            with contextlib.suppress(FindingError):
                attempt(target, number, seed)
        limit_memory(4 * MEMORY)
        outcomes: Counter[str] = Counter()
        for number in range(first, end):
            at[:8] = struct.pack("<q", number)
            try:
                outcomes[attempt(target, number, seed)] += 1
            except FindingError as error:
                report.put(("finding", number, f"{error}\n{traceback.format_exc()}"))
            if number % 100 == 99:
                report.put(("outcomes", number, outcomes))
                outcomes = Counter()
        report.put(("outcomes", end, outcomes))
        report.put(("end", end, None))


def campaign(name: str, count: int, seed: int, talk: Callable[[str], None] = print) -> tuple[Counter[str], list[str]]:
    """Run so many cases in child processes; outcomes, and findings with how to repeat them."""
    fork = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    first = 0
    with tempfile.NamedTemporaryFile() as shared:
        shared.write(bytes(8))
        shared.flush()
        at = mmap.mmap(shared.fileno(), 8)
        while first < count:
            at[:8] = struct.pack("<q", -1)
            report: Any = fork.Queue()
            child = fork.Process(target=_child, args=(name, seed, first, count, shared.name, report))
            child.start()
            last, since, ended = -1, time.monotonic(), False
            while not ended:
                try:
                    kind, number, what = report.get(timeout=1.0)
                except Exception:
                    now = struct.unpack("<q", at[:8])[0]
                    if now != last:
                        last, since = now, time.monotonic()
                    if not child.is_alive() and report.empty():
                        break
                    if last >= 0 and time.monotonic() - since > HANG:
                        child.kill()
                        findings.append(f"case {last} of seed {seed}: hangs")
                        break
                    continue
                if kind == "outcomes":
                    outcomes.update(what)
                    if number % 5000 == 4999:
                        talk(f"{name}: {number + 1} of {count}, {len(findings)} findings")
                elif kind == "finding":
                    findings.append(what)
                    talk(f"{name}: {what.splitlines()[0]}")
                else:
                    ended = True
            child.join(30)
            if ended:
                break
            now = struct.unpack("<q", at[:8])[0]
            if child.exitcode and child.exitcode < 0 and not (findings and findings[-1].endswith("hangs")):
                findings.append(f"case {now} of seed {seed}: {signal.Signals(-child.exitcode).name}")
                talk(f"{name}: {findings[-1]}")
            elif now < 0:
                raise RuntimeError(f"the child ended with {child.exitcode} before its first case")
            first = now + 1
    return outcomes, findings


def _child(name: str, seed: int, first: int, end: int, shared: str, report: Any) -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "test")]
    with open(shared, "r+b") as file:
        _work(name, seed, first, end, mmap.mmap(file.fileno(), 8), report)


def guided(name: str, arguments: list[str]) -> None:
    """Hand the target to atheris, which looks for inputs that reach new code."""
    atheris = importlib.import_module("atheris")  # no dependency: whoever wants it installs it
    sys.path[:0] = [str(ROOT), str(ROOT / "test")]
    with atheris.instrument_imports(include=["ocdit_ros", "trimesh", "PIL"]), tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        corpus = Path(folder, "seeds")
        corpus.mkdir()
        for n, data in enumerate(target.seeds()):
            (corpus / f"{n:03d}").write_bytes(data)
        log = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            if not any("verbosity" in a for a in arguments):
                os.dup2(log, nowhere.fileno())
        atheris.Setup([sys.argv[0], str(corpus), *arguments], lambda data: target.run(target.from_bytes(data)))
        atheris.Fuzz()


def main() -> int:
    """Fuzz one target; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=1000, help="cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="N", help="case N alone, in this process")
    parser.add_argument("--findings", metavar="FILE", help="write the findings here too")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; other arguments go to libFuzzer")
    options, rest = parser.parse_known_args()
    if options.atheris:
        guided(options.target, rest)
        return 0
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    sys.path[:0] = [str(ROOT), str(ROOT / "test")]
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[options.target](Path(folder))
            print(target.run(target.case(random.Random(f"{options.seed}/{options.only}"))))
        return 0
    begin = time.monotonic()
    outcomes, findings = campaign(options.target, options.count, options.seed)
    print(f"{options.target}: {options.count} cases of seed {options.seed}, {time.monotonic() - begin:.0f} s")
    for outcome, number in outcomes.most_common():
        print(f"  {number:7d}  {outcome}")
    print(f"  {len(findings):7d}  findings")
    if options.findings:
        Path(options.findings).write_text("\n\n".join(findings) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
