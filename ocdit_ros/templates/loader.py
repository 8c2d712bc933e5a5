# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Read mesh files. The parsing is trimesh's; here its many outcomes become one plain value or one clear sentence.

trimesh forgives much: a texture that is missing or broken is skipped, a list that is too short is cut. For templates
that would mean a wrong colour or shape that nobody notices, so what it forgives is looked for here and refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .mesh import NEUTRAL_GREY, Mesh, diameter
from .source import IMAGE_FORMATS, MeshError, is_beside, read_file, resolve

if TYPE_CHECKING:
    import trimesh

FORMATS = ("ply", "obj", "stl", "gltf", "glb", "dae", "off")

# Bounds on time and memory, beside that of read_file.
MAX_TEXTURE_PIXELS = 64 * 1024**2
MAX_TEXTURE_SIDE = 16384
MAX_FACES = 10_000_000
DIAMETER_RANGE = (1e-5, 1e3)  # metres

_BLANK = b"P6 1 1 255\n\0\0\0"  # a PPM image of one black pixel, harmless as any other kind of file
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".dds")
# glTF extensions that change nothing that matters here, or that trimesh applies
_GLTF_EXTENSIONS = re.compile(r"KHR_materials_\w+|KHR_lights_punctual|KHR_mesh_quantization|EXT_texture_webp|KHR_xmp.*")


@dataclass
class _Part:
    """One placed geometry of a file."""

    vertices: NDArray[np.float64]  # [v, 3] mesh units
    faces: NDArray[np.int64]  # [f, 3]
    colors: NDArray[np.uint8]  # [f, 3, 3]
    uv: NDArray[np.float32] | None = None  # [f, 3, 2]
    image: Image.Image | None = None


@dataclass
class _Files:
    """Serves the files a mesh refers to (the resolver protocol of trimesh) and remembers what came of it."""

    directory: Path  # of the mesh, as it was named
    libraries: list[str] = field(default_factory=list)  # OBJ: all material files, of which trimesh asks for the first
    read: list[tuple[Path, str]] = field(default_factory=list)
    problem: str = ""

    def get(self, name: str) -> bytes:
        if name in self.libraries:
            names, self.libraries = self.libraries, []
            return b"\n".join(self._one(n) for n in dict.fromkeys(names))
        return self._one(name)

    def _one(self, name: str) -> bytes:
        text = name.strip().replace("\\", "/")
        if len(text) > 1000 or not text.isprintable():
            return self._fail("it refers to a file whose name is none")
        wanted = [text, unquote(text)]
        if text.startswith("-"):  # options of an MTL texture statement come before the name
            wanted.append(text.split()[-1])
        for candidate in dict.fromkeys(wanted):
            try:
                path = resolve(candidate if "://" in candidate else self.directory / candidate)
                if not candidate.startswith("package://") and not is_beside(path, self.directory):
                    raise MeshError("it is neither in the folder of the mesh nor in that above it")
            except MeshError as error:
                return self._fail(f"it refers to {candidate!r}, which cannot be followed ({_clean(error)})")
            if not os.path.lexists(path):
                continue
            try:
                data = read_file(path)
            except MeshError as error:
                reason = str(error).removeprefix(f"{path}: it ").rstrip(".")
                return self._fail(f"it refers to {candidate!r}, which {reason}")
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                problem = _image_problem(data)
                if problem:
                    return self._fail(f"its texture {candidate!r} {problem}")
            self.read.append((path, hashlib.sha256(data).hexdigest()))
            return data
        return self._fail(f"it refers to {text!r}, which does not exist")

    def _fail(self, problem: str) -> bytes:
        """Note the problem, which load_mesh raises; until then trimesh gets something that it can digest."""
        self.problem = self.problem or problem
        return _BLANK

    __getitem__ = get

    def __contains__(self, name: str) -> bool:
        return False

    def keys(self) -> list[str]:
        return []


def load_mesh(source: str | os.PathLike[str], scale: float = 1.0) -> Mesh:
    """Read a PLY, OBJ, STL, glTF, GLB, DAE or OFF file with its colours, materials and textures.

    `source` is a path, a file:// or a package:// URI; `scale` is in metres per mesh unit. The unit that a DAE file
    declares is applied before `scale`, as RViz and Gazebo do; its up axis is not, and neither is that of any other
    format: the object frame is the frame of the file.

    Raises MeshError: one sentence naming the file and the reason.
    """
    path = resolve(source)
    data = read_file(path)
    kind = path.suffix.lower().lstrip(".")
    files = _Files(path.parent)
    try:
        if kind not in FORMATS:
            raise MeshError(f"unknown mesh format {path.suffix!r}, known are {', '.join(FORMATS)}")
        if not (np.isfinite(scale) and scale > 0):
            raise MeshError(f"the scale must be a positive number of metres per mesh unit, not {scale}")
        parts = list(_read(path, kind, data, files))
        return _assemble(parts, scale, ((path, hashlib.sha256(data).hexdigest()), *dict.fromkeys(files.read)))
    except MeshError as error:
        raise MeshError(f"{path}: {error}.") from error.__cause__
    except MemoryError as error:
        raise MeshError(f"{path}: it does not fit into memory.") from error


def _read(path: Path, kind: str, data: bytes, files: _Files) -> Iterator[_Part]:
    import trimesh

    header: dict[str, Any] = {}
    options: dict[str, Any] = {"process": False}
    if kind == "ply":
        options["fix_texture"] = _check_ply(data)
    elif kind == "stl":
        _check_stl(data)
    elif kind == "obj":
        files.libraries = _check_obj(data)
    elif kind == "off":
        _check_off(data)
    elif kind == "dae":
        _check_dae(data)
    elif kind in ("gltf", "glb"):
        header = _check_gltf(kind, data)
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, resolver=files, **options)
    except Exception as error:  # the parsers raise whatever they stumble over
        if files.problem:
            raise MeshError(files.problem) from error
        if isinstance(error, ImportError):
            raise MeshError(f"reading {kind.upper()} files needs a missing Python package ({_clean(error)})") from error
        raise MeshError(f"it cannot be read as {kind.upper()} ({_clean(error)})") from error
    if files.problem:
        raise MeshError(files.problem)
    if header:
        _check_gltf_textures(header, scene)
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or len(geometry.faces) == 0:
            continue
        try:
            yield _part(geometry, transform, kind, data)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, MeshError):
                raise
            raise MeshError(f"its parts contradict each other ({_clean(error)})") from error


def _part(geometry: trimesh.Trimesh, transform: NDArray[np.float64], kind: str, data: bytes) -> _Part:
    if kind == "ply":
        _check_ply_faces(geometry.metadata.get("_ply_raw"))
    faces = np.asarray(geometry.faces, np.int64)
    vertices = np.asarray(geometry.vertices, np.float64)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise MeshError(f"its vertices have {vertices.shape[-1]} coordinates instead of 3")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(f"a face refers to vertex {faces.max()}, but there are {len(vertices)} vertices")
    if len(faces) > MAX_FACES:
        raise MeshError(f"it has more than {MAX_FACES} faces")
    part = _appearance(geometry, faces, kind)
    if kind == "off" and re.match(rb"\s*C", data):
        part.colors = _off_colors(data, len(vertices))[faces]
    elif kind == "off":
        part.colors = _off_face_colors(data, part.colors)
    with np.errstate(all="ignore"):  # what overflows here is refused later
        part.vertices = vertices @ transform[:3, :3].T + transform[:3, 3]
        if kind == "dae":
            part.vertices *= _declared_unit(geometry)
    return part


def _appearance(geometry: trimesh.Trimesh, faces: NDArray[np.int64], kind: str) -> _Part:
    """The geometry's colours at the corners of its faces, texture coordinates and image."""
    from trimesh.visual.color import to_rgba

    visual: Any = geometry.visual
    part = _Part(np.empty((0, 3)), faces, np.full((len(faces), 3, 3), NEUTRAL_GREY, np.uint8))
    stl = np.asarray(geometry.face_attributes.get("stl", ()))
    if kind == "stl" and len(stl) == len(faces):
        part.colors = _stl_colors(stl.reshape(-1))
    elif visual.kind == "face":
        part.colors = np.repeat(np.asarray(visual.face_colors)[:, None, :3], 3, axis=1)
    elif visual.kind == "vertex":
        part.colors = np.asarray(visual.vertex_colors)[faces][..., :3]
        if kind in ("gltf", "glb"):
            part.colors = _from_linear(part.colors)
    elif visual.kind == "texture":
        material = visual.material
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if image is not None and visual.uv is not None:
            part.image = image
            uv = np.asarray(visual.uv, np.float32)
            if uv.ndim != 2 or uv.shape[1] < 2:
                raise MeshError(f"its texture coordinates have {uv.shape[-1]} numbers instead of 2")
            if len(uv) != len(geometry.vertices):
                raise MeshError(f"it has {len(uv)} texture coordinates for {len(geometry.vertices)} vertices")
            part.uv = uv[:, :2][faces]  # OBJ allows a third
        vertex = visual.vertex_attributes.get("color", geometry.vertex_attributes.get("color"))
        base = _base_color(material, part.image is not None, kind)
        part.colors = np.broadcast_to(base, part.colors.shape)
        if vertex is not None and len(vertex) == len(geometry.vertices):
            colors = to_rgba(np.asarray(vertex))[faces][..., :3]
            if kind in ("gltf", "glb"):  # glTF 2.0, 3.7.2.1: COLOR_0 is linear, and a factor of the base colour
                part.colors = np.rint(_from_linear(colors) * (base / 255.0)).astype(np.uint8)
            elif part.image is None:
                part.colors = colors
    return part


def _base_color(material: Any, textured: bool, kind: str) -> NDArray[np.uint8]:
    """Colour uint8 [3], sRGB, that multiplies the texture, or stands alone."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        base = np.asarray(factor)[:3]
        base = base if base.dtype == np.uint8 else np.rint(np.clip(base, 0, 1) * 255.0).astype(np.uint8)
        return _from_linear(base) if kind in ("gltf", "glb") else base
    if textured or kind in ("gltf", "glb"):
        # With map_Kd, exporters leave Kd at 0.8, at 0 or at whatever it was; viewers ignore it, and so do we.
        return np.full(3, 255, np.uint8)
    if "kd" in getattr(material, "kwargs", {}):
        return np.asarray(material.diffuse, np.uint8)[:3]
    return np.full(3, NEUTRAL_GREY, np.uint8)


def _from_linear(linear: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Linear light, in which glTF gives colour factors, to sRGB (IEC 61966-2-1)."""
    value = linear / 255.0
    encoded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255.0).astype(np.uint8)


def _stl_colors(attribute: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Five bits a channel in the attribute of a binary STL face; VisCAM's order, valid where the top bit is set."""
    channels = np.stack([(attribute >> shift) & 31 for shift in (10, 5, 0)], axis=1) * (255.0 / 31.0)
    valid = (attribute & 0x8000) != 0
    colors = np.where(valid[:, None], np.rint(channels), NEUTRAL_GREY).astype(np.uint8)
    return np.repeat(colors[:, None], 3, axis=1)


def _off_rows(data: bytes) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Words of the lines of vertices and of faces. Raises ValueError, IndexError."""
    lines = [line for line in (raw.split(b"#")[0].split() for raw in data.splitlines()) if line]
    counts = lines[0][1:] or lines[1]
    first = 1 if lines[0][1:] else 2
    middle = first + int(counts[0])
    return lines[first:middle], lines[middle : middle + int(counts[1])]


def _off_values(rows: list[list[bytes]]) -> NDArray[np.uint8]:
    """Colours of three words each: whole numbers up to 255, or fractions up to 1. Raises ValueError, OverflowError."""
    values = np.array([[float(word) for word in words] for words in rows])
    if not (values >= 0.0).all() or not (values <= 255.0).all():
        raise MeshError("it has colours outside 0 to 255")
    whole = np.array([all(word.isdigit() for word in words) for words in rows])
    values[~whole] *= 255.0
    return np.rint(np.minimum(values, 255.0)).astype(np.uint8)


def _off_colors(data: bytes, count: int) -> NDArray[np.uint8]:
    """Vertex colours [count, 3] of a COFF file, which trimesh leaves out; they end the lines of the vertices."""
    try:
        # x y z, with NOFF a normal, then three or four values
        skip = 6 if re.match(rb"\s*\w*NOFF", data) else 3
        rows = [row[skip:] for row in _off_rows(data)[0]]
        if len(rows) != count or any(len(row) not in (3, 4) for row in rows):
            raise MeshError("it announces vertex colours (COFF), but not every vertex has one")
        return _off_values([row[:3] for row in rows])
    except (ValueError, IndexError) as error:
        if isinstance(error, MeshError):
            raise
        raise MeshError(f"its vertex colours cannot be read ({_clean(error)})") from error


def _off_face_colors(data: bytes, unknown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of the corners of faces, from what follows the indices in their lines; trimesh leaves it out.

    Three or four values a face; `unknown` [F, 3, 3] where there are none.
    """
    try:
        rows = _off_rows(data)[1]
        given = [row[1 + int(row[0]) :][:3] for row in rows]
        colored = np.array([len(words) == 3 for words in given])
        if not colored.any():
            return unknown
        if len(given) != len(unknown) or any(row[0] != b"3" for row in rows):
            raise MeshError("it has coloured faces of more than three corners, which are not supported in OFF files")
        colors = unknown.copy()
        colors[colored] = _off_values([words for words in given if len(words) == 3])[:, None]
        return colors
    except (ValueError, IndexError) as error:
        if isinstance(error, MeshError):
            raise
        raise MeshError(f"the colours of its faces cannot be read ({_clean(error)})") from error


def _declared_unit(geometry: trimesh.Trimesh) -> float:
    words = str(geometry.metadata.get("units", "")).split()
    try:
        unit = float(words[0])
    except (IndexError, ValueError):
        return 1.0
    return unit if np.isfinite(unit) and unit > 0 else 1.0


def _assemble(parts: list[_Part], scale: float, files: tuple[tuple[Path, str], ...]) -> Mesh:
    if not parts:
        raise MeshError("it has no faces")
    if sum(len(p.faces) for p in parts) > MAX_FACES:
        raise MeshError(f"it has more than {MAX_FACES} faces")
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts])
    textures: list[NDArray[np.uint8]] = []
    numbers: dict[int, int] = {}
    for image in (p.image for p in parts if p.image is not None):
        if id(image) not in numbers:
            numbers[id(image)] = len(textures)
            textures.append(_pixels(image))
    index = [np.full(len(p.faces), -1 if p.image is None else numbers[id(p.image)], np.int32) for p in parts]
    uv = [np.zeros((len(p.faces), 3, 2), np.float32) if p.uv is None else p.uv for p in parts]
    faces = np.concatenate([p.faces + offset for p, offset in zip(parts, offsets, strict=False)])
    vertices = np.concatenate([p.vertices for p in parts])

    used = np.zeros(len(vertices), bool)  # files carry stray vertices, which must not count for the size
    used[faces.reshape(-1)] = True
    number = np.cumsum(used) - 1
    vertices = vertices[used] * scale
    faces = number[faces]
    _check_shape(vertices, faces)
    size = diameter(vertices)
    _check_size(size)
    coordinates = np.concatenate(uv)
    if not (np.abs(coordinates) < 1e6).all():
        raise MeshError("it has texture coordinates that are not finite or absurdly large")
    return Mesh(
        vertices=vertices,
        faces=np.ascontiguousarray(faces, np.uint32),
        colors=np.concatenate([p.colors for p in parts]),
        uv=coordinates,
        texture_index=np.concatenate(index),
        textures=tuple(textures),
        diameter=size,
        files=files,
    )


def _check_shape(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> None:
    if not np.isfinite(vertices).all():
        raise MeshError("it has vertices that are not finite numbers")
    if len(faces) < 2:
        raise MeshError("it has only one triangle, which is not an object")
    extent = np.ptp(vertices, axis=0).max()
    _check_size(extent)
    corner = vertices[faces] / extent
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 1e-9:
        raise MeshError("all its faces have zero area")


def _check_size(size: float) -> None:
    low, high = DIAMETER_RANGE
    if size == 0.0:
        raise MeshError("all its vertices are at the same place")
    if not low <= size <= high:
        raise MeshError(
            f"it would be {size:.3g} m large, outside {low:g} to {high:g} m, so check the scale (metres per mesh unit)"
        )


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    problem = _size_problem(image)
    if problem:
        raise MeshError(f"its texture {problem}")
    try:
        if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scaling
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise MeshError(f"its texture cannot be read ({_clean(error)})") from error


def _image_problem(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return _size_problem(image)
    except Image.UnidentifiedImageError:
        return "is not an image"
    except Exception as error:
        return f"cannot be read ({_clean(error)})"


def _size_problem(image: Image.Image) -> str:
    if image.format not in (None, "MPO", *IMAGE_FORMATS):  # embedded; opened, but not yet read. MPO: several JPEG
        return f"is of the kind {image.format}, which is not supported"
    width, height = image.size
    if width * height > MAX_TEXTURE_PIXELS or max(width, height) > MAX_TEXTURE_SIDE:
        return f"has {width} x {height} pixels, more than can be handled"
    return ""


# What trimesh would pass over in silence, format by format --------------------------------------------------------


def _check_ply(data: bytes) -> bool:
    """Whether texture coordinates are given for the corners of faces, so that vertices must be split."""
    end = data.find(b"end_header", 0, 65536)
    if not data.startswith(b"ply") or end < 0:
        raise MeshError("it is not a PLY file (no PLY header)")
    header = data[:end]
    counts = {m[1]: int(m[2]) for m in re.finditer(rb"(?m)^element\s+(\S+)\s+(\d+)\s*$", header)}
    if not counts.get(b"face"):
        raise MeshError("it has no faces")
    ascii_rows = re.search(rb"(?m)^format\s+ascii", header)
    # A row takes a line, or at least a byte: this refuses cut files, and headers that claim what is not there.
    if sum(counts.values()) > (data.count(b"\n", end) if ascii_rows else len(data) - end):
        raise MeshError("it is cut short: the header announces more data than the file has")
    if ascii_rows and data[end + len(b"end_header") :].translate(None, b"0123456789+-.eE \t\r\nnaNityfIF"):
        raise MeshError("it has words where numbers should be")
    return b"texcoord" in header


def _check_ply_faces(elements: dict[str, Any] | None) -> None:
    """Indices as they were in the file: on the way to the mesh, NumPy has taken negative ones from the end."""
    if elements is None:
        return
    data, count = elements["face"]["data"], elements["vertex"]["length"]
    for name in ("vertex_indices", "vertex_index"):
        try:
            rows = data[name]
            rows = rows["f1"] if getattr(rows.dtype, "names", None) else rows
        except (KeyError, ValueError, IndexError, TypeError):
            continue
        flat = np.concatenate([np.ravel(r) for r in rows]) if rows.dtype == object else np.ravel(rows)
        if flat.size and (flat.min() < 0 or flat.max() >= count):
            bad = flat.min() if flat.min() < 0 else flat.max()
            raise MeshError(f"a face refers to vertex {bad}, but there are {count} vertices")


def _check_stl(data: bytes) -> None:
    text = data.lower() if b"facet" in data[:4096].lower() else b""
    if not text:
        if len(data) < 84 or len(data) != 84 + 50 * struct.unpack("<I", data[80:84])[0]:
            raise MeshError("it is not an STL file, or cut short (its size does not match its number of faces)")
    elif b"endsolid" not in text or len(re.findall(rb"\bfacet\b", text)) != text.count(b"endfacet"):
        raise MeshError("it is cut short: the last face or the end of the solid is missing")


def _check_obj(data: bytes) -> list[str]:
    """Names of the material files."""
    relative = re.search(rb"(?m)^f[ \t][^\n]*-", data)
    if relative and re.search(rb"(?m)^v[ \t]", data[relative.start() :]):
        raise MeshError("it mixes vertices with relative face indices, which is not supported")
    if re.search(rb"(?m)^f(?=[ \t])[^\n#]*[ \t]0+(?![0-9.])", data):  # trimesh would take the last vertex
        raise MeshError("a face refers to vertex 0, but OBJ files count from 1")
    return [m[1].decode(errors="replace").strip() for m in re.finditer(rb"(?m)^mtllib[ \t]+([^\r\n]+)", data)]


def _check_off(data: bytes) -> None:
    lines = [line for line in (raw.split(b"#")[0].strip() for raw in data.split(b"\n", 200)[:200]) if line]
    if not lines or not re.match(rb"(ST)?C?N?OFF", lines[0]):
        raise MeshError("it is not a text OFF file (no OFF header)")
    words = (lines[0].split()[1:] or lines[1].split() if len(lines) > 1 else [])[:2]
    if len(words) == 2 and all(w.isdigit() for w in words) and int(words[0]) + int(words[1]) > data.count(b"\n"):
        raise MeshError("it is cut short: the header announces more data than the file has")


def _check_dae(data: bytes) -> None:
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"<") or b"\0" in text:  # pycollada would unpack an archive, of whatever size
        raise MeshError("it cannot be read as DAE (it is no XML in UTF-8)")
    encoding = re.match(rb"""<\?xml[^>]*?encoding\s*=\s*["']([^"']*)""", text)
    if encoding and encoding[1].lower() not in (b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1"):
        raise MeshError("it is in an encoding other than UTF-8, which is not supported")
    if re.search(rb"<!(ENTITY|DOCTYPE)", data):
        raise MeshError("it declares XML entities or a document type, which are not accepted")


def _check_gltf(kind: str, data: bytes) -> dict[str, Any]:
    """The JSON header, after a look for what would load wrongly."""
    if kind == "glb":
        if len(data) < 20 or data[:4] != b"glTF" or data[16:20] != b"JSON":
            raise MeshError("it is not a binary glTF file (no glTF 2.0 header)")
        total, length = struct.unpack("<8xI I", data[:16])
        if total > len(data):
            raise MeshError("it is cut short: the header announces more data than the file has")
        data = data[20 : 20 + length]
    try:
        header = json.loads(data)
        for extension in header.get("extensionsRequired", ()):
            if not _GLTF_EXTENSIONS.fullmatch(extension):
                raise MeshError(f"it needs the glTF extension {extension}, which is not supported")
        accessors = header.get("accessors", ())
        for accessor in accessors:
            if "bufferView" not in accessor or "sparse" in accessor:
                raise MeshError("it has sparse or empty glTF accessors, which are not supported")
        for mesh in header.get("meshes", ()):
            for primitive in mesh["primitives"]:
                if primitive.get("mode", 4) == 6:
                    raise MeshError("it has triangle fans, which are not supported")
                texcoord = primitive.get("attributes", {}).get("TEXCOORD_0")
                if texcoord is not None and accessors[texcoord]["componentType"] != 5126:
                    raise MeshError("it has integer texture coordinates, which are not supported")
        for material in header.get("materials", ()):
            texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
            if texture.get("texCoord", 0) != 0:
                raise MeshError("it uses a second set of texture coordinates, which is not supported")
            if "KHR_texture_transform" in texture.get("extensions", {}):  # not always among those required
                raise MeshError("it uses the glTF extension KHR_texture_transform, which is not supported")
    except MeshError:
        raise
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise MeshError(f"it is not a glTF 2.0 file ({_clean(error)})") from error
    return dict(header)


def _check_gltf_textures(header: dict[str, Any], scene: trimesh.Scene) -> None:
    """A base colour texture that the file names must have arrived (trimesh drops embedded images it cannot read)."""
    materials = header.get("materials", [])
    triangles = [p for m in header.get("meshes", []) for p in m["primitives"] if p.get("mode", 4) in (4, 5)]
    if len(triangles) != len(scene.geometry):
        return
    for primitive, geometry in zip(triangles, scene.geometry.values(), strict=True):
        if "material" not in primitive:
            continue
        wanted = materials[primitive["material"]].get("pbrMetallicRoughness", {}).get("baseColorTexture")
        material = getattr(geometry.visual, "material", None)
        if wanted is not None and getattr(material, "baseColorTexture", None) is None:
            raise MeshError("one of its textures is missing or cannot be read")


def _clean(error: object) -> str:
    """The first line of an error, short, without the full stop: it becomes part of a sentence."""
    text = (str(error).strip() or "its parts contradict each other").splitlines()[0].replace(". ", ", ")
    return (text[:120] + "..." if len(text) > 120 else text).rstrip(".! ")
