# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with a mesh file: one sentence that names the file and the reason, soon and without much memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from templates_meshes import (
    textured_blob,
    write_bop_ply,
    write_coff,
    write_dae,
    write_gltf,
    write_obj,
    write_stl,
)

from ocdit_ros.templates import MeshError, ObjectSpec, RenderSettings, TemplateCache, load_mesh, render, viewpoints

VERTICES, FACES, UV, TEXTURE = textured_blob(8, 16)


def blob(path, **changes):
    given = {"vertices": VERTICES, "faces": FACES, "uv": UV, "texture": TEXTURE} | changes
    return write_bop_ply(path / "blob.ply", **given)


def changed(array, place, value):
    array = np.array(array, float)
    array[place] = value
    return array


def text(path, name, content):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path / name


def cut(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    return file


def replaced(file, old, new):
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    return file


def edited(file, change):
    """A .gltf with its JSON header changed in place."""
    header = json.loads(file.read_text())
    change(header)
    file.write_text(json.dumps(header))
    return file


def glb(path, change=lambda header: None, junk_image=False):
    file = write_gltf(path / "blob.glb", VERTICES, FACES, UV, TEXTURE)
    data = file.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    header, rest = json.loads(data[20 : 20 + length]), bytearray(data[20 + length :])
    change(header)
    if junk_image:
        view = header["bufferViews"][header["images"][0]["bufferView"]]
        start = 8 + view.get("byteOffset", 0)
        rest[start : start + view["byteLength"]] = b"\x55" * view["byteLength"]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    file.write_bytes(head + text + rest)
    return file


def png_header(width, height, data=b""):
    """A PNG that claims a size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def with_texture(path, content):
    file = blob(path)
    (path / "blob.png").write_bytes(content)
    return file


def loop(path):
    (path / "a.ply").symlink_to(path / "b.ply")
    (path / "b.ply").symlink_to(path / "a.ply")
    return path / "a.ply"


def pipe(path):
    os.mkfifo(path / "pipe.ply")
    return path / "pipe.ply"


def large(path):
    with open(path / "large.stl", "wb") as stream:
        stream.truncate(40 * 1024**3)
    return path / "large.stl"


def folder(path):
    (path / "folder.ply").mkdir()
    return path / "folder.ply"


def ascii_stl(path):
    (path / "a.stl").write_text(trimesh.exchange.stl.export_stl_ascii(trimesh.Trimesh(VERTICES, FACES, process=False)))
    return path / "a.stl"


def linked_texture_loop(path):
    file = blob(path)
    (path / "blob.png").unlink()
    (path / "blob.png").symlink_to(path / "blob.png")
    return file


HEAD = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
BILLION = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x0 "x">'
    + "".join(f'<!ENTITY x{i + 1} "&x{i};&x{i};&x{i};&x{i};&x{i};&x{i};&x{i};&x{i};&x{i};&x{i};">' for i in range(12))
    + "]><COLLADA>&x12;</COLLADA>"
)
GLTF = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}


def bufferless(count):
    return GLTF | {
        "accessors": [{"componentType": 5126, "type": "VEC3", "count": count}],
        "bufferViews": [],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    }


# name: (function that makes the file, words the sentence must have)
BAD = {
    "no such file": (lambda p: p / "nothing.ply", "does not exist"),
    "empty file": (lambda p: text(p, "a.ply", ""), "empty"),
    "a directory": (folder, "directory"),
    "a symlink loop": (loop, "symbolic links"),
    "a pipe": (pipe, "pipe"),
    "a device": (lambda p: "/dev/zero", "device"),
    "unknown extension": (lambda p: text(p, "a.blend", "x"), "unknown mesh format"),
    "no extension": (lambda p: text(p, "mesh", "x"), "unknown mesh format"),
    "an archive": (lambda p: text(p, "a.zip", "PK"), "unknown mesh format"),
    "text renamed to ply": (lambda p: text(p, "a.ply", "Dear reader,\nthis is no mesh.\n"), "not a PLY"),
    "text renamed to obj": (lambda p: text(p, "a.obj", "Dear reader,\nthis is no mesh.\n"), "no faces|cannot be read"),
    "text renamed to stl": (lambda p: text(p, "a.stl", "Dear reader,\nthis is no mesh.\n"), "not an STL"),
    "text renamed to off": (lambda p: text(p, "a.off", "Dear reader,\nthis is no mesh.\n"), "not a text OFF"),
    "text renamed to dae": (lambda p: text(p, "a.dae", "Dear reader,\nthis is no mesh.\n"), "cannot be read as DAE"),
    "text renamed to glb": (lambda p: text(p, "a.glb", "Dear reader,\nthis is no mesh.\n"), "not a binary glTF"),
    "text renamed to gltf": (lambda p: text(p, "a.gltf", "Dear reader"), "not a glTF"),
    "random bytes": (lambda p: text(p, "a.stl", np.random.default_rng(0).bytes(4000)), "not an STL"),
    "no faces": (lambda p: text(p, "a.ply", HEAD.format(1) + FACE.format(0) + "0 0 0\n"), "no faces"),
    "points only": (lambda p: text(p, "a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n"), "no faces"),
    "NaN vertices": (lambda p: blob(p, vertices=changed(VERTICES, (5, 1), np.nan)), "not finite"),
    "infinite vertices": (lambda p: blob(p, vertices=changed(VERTICES, (5, 1), np.inf)), "not finite"),
    "index out of range": (lambda p: blob(p, faces=changed(FACES, (3, 0), 9999)), "vertex 9999|out of bounds"),
    "index out of range, untextured": (
        lambda p: blob(p, faces=changed(FACES, (3, 0), 9999), uv=None, texture=None),
        "vertex 9999",
    ),
    "negative index": (lambda p: blob(p, faces=changed(FACES, (3, 0), -2)), "vertex -2"),
    "negative index, ascii": (
        lambda p: blob(p, faces=changed(FACES, (3, 0), -2).astype(int), ascii_rows=True),
        "vertex -2",
    ),
    "index out of range, obj": (
        lambda p: text(p, "a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\nf 1 2 7\n"),
        "vertex|out of bounds",
    ),
    "index out of range, off": (
        lambda p: text(p, "a.off", "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n3 0 1 9\n"),
        "range",
    ),
    "zero area": (lambda p: blob(p, vertices=VERTICES * [1, 0, 0]), "zero area"),
    "all vertices at one place": (lambda p: blob(p, vertices=VERTICES * 0), "same place"),
    "one triangle": (lambda p: blob(p, faces=FACES[:1]), "one triangle"),
    "a million kilometres": (lambda p: blob(p, vertices=VERTICES * 1e10), "check the scale"),
    "beyond float32": (
        lambda p: text(p, "a.obj", "v 0 0 0\nv 1e200 0 0\nv 0 1e200 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"),
        "check the scale",
    ),
    "below all sizes": (lambda p: blob(p, vertices=VERTICES * 1e-9), "check the scale"),
    "missing texture": (
        lambda p: (blob(p), (p / "blob.png").unlink())[0],
        "blob.png' *, which does not exist|blob.png",
    ),
    "missing material file": (
        lambda p: (write_obj(p / "a.obj", VERTICES, FACES, UV, TEXTURE), (p / "material.mtl").unlink())[0],
        "material.mtl",
    ),
    "missing texture of a material": (
        lambda p: (write_obj(p / "a.obj", VERTICES, FACES, UV, TEXTURE), (p / "material.png").unlink())[0],
        "material.png",
    ),
    "missing texture of a dae": (
        lambda p: (write_dae(p / "a.dae", VERTICES, FACES, UV, TEXTURE), (p / "a_dae.png").unlink())[0],
        "a_dae.png",
    ),
    "texture larger than possible": (lambda p: with_texture(p, png_header(60000, 60000)), "pixels"),
    "texture larger than allowed": (lambda p: with_texture(p, png_header(16384, 8192)), "16384 x 8192"),
    "texture with less data than its size": (lambda p: with_texture(p, png_header(64, 64, b"\0" * 99)), "texture"),
    "texture without pixels": (lambda p: with_texture(p, png_header(0, 0)), "texture"),
    "texture cut short": (lambda p: (blob(p), cut(p / "blob.png", 0.5))[0], "texture"),
    "texture that is text": (lambda p: with_texture(p, b"hello"), "texture"),
    "texture that is empty": (lambda p: with_texture(p, b""), "blob.png.*empty"),
    "texture that is a link to itself": (linked_texture_loop, "blob.png"),
    "texture coordinates that are NaN": (lambda p: blob(p, uv=changed(UV, (4, 0), np.nan)), "texture coordinates"),
    "ply cut short": (lambda p: cut(blob(p), 0.7), "cannot be read|cut short"),
    "ply cut within the header": (lambda p: cut(blob(p), 0.02), "no PLY header"),
    "ascii ply cut short": (lambda p: cut(blob(p, ascii_rows=True), 0.7), "cut short"),
    "ascii ply with words": (
        lambda p: replaced(blob(p, ascii_rows=True), b"\n3 0 1 ", b"\n3 nought 1 "),
        "words where numbers",
    ),
    "obj with words in a face": (
        lambda p: replaced(write_obj(p / "a.obj", VERTICES, FACES, UV, TEXTURE), b"\nf 1/1 2/2", b"\nf 1/1 two/2"),
        "cannot be read",
    ),
    "obj with words in a vertex": (
        lambda p: text(p, "a.obj", "v 0 0 0\nv 1 zero 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"),
        "cannot be read|no faces|vertex|out of bounds",
    ),
    "ascii stl with words": (
        lambda p: replaced(ascii_stl(p), b"vertex 0.0 0.0", b"vertex nought 0.0"),
        "cannot be read|no faces",
    ),
    "ply announcing 10^15 vertices": (lambda p: text(p, "a.ply", HEAD.format(10**15) + FACE.format(4)), "cut short"),
    "binary ply announcing 10^15 faces": (
        lambda p: replaced(blob(p), b"element face 256", b"element face 1000000000000000"),
        "cut short",
    ),
    "ply with lists of 2 billion": (
        lambda p: text(
            p,
            "a.ply",
            HEAD.format(1).replace("ascii", "binary_little_endian")
            + FACE.format(1).replace("uchar", "int").encode().decode()
            + "\0" * 12
            + "\xff\xff\xff\x7f",
        ),
        "cannot be read|cut short",
    ),
    "obj cut short": (lambda p: cut(write_obj(p / "a.obj", VERTICES, FACES, UV, TEXTURE), 0.3), "no faces|cannot"),
    "stl cut short": (lambda p: cut(write_stl(p / "a.stl", VERTICES, FACES), 0.7), "cut short"),
    "ascii stl cut short": (lambda p: cut(ascii_stl(p), 0.7), "cut short"),
    "off cut short": (
        lambda p: cut(write_coff(p / "a.off", VERTICES, FACES, np.zeros((153, 3), int)), 0.7),
        "cut short",
    ),
    "off announcing 10^15 faces": (lambda p: text(p, "a.off", f"OFF\n4 {10**15} 0\n0 0 0\n"), "cut short"),
    "dae cut short": (
        lambda p: cut(write_dae(p / "a.dae", VERTICES, FACES, UV, TEXTURE), 0.7),
        "cannot be read as DAE",
    ),
    "dae with a billion laughs": (lambda p: text(p, "a.dae", BILLION), "entities"),
    "glb cut short": (lambda p: cut(write_gltf(p / "a.glb", VERTICES, FACES, UV, TEXTURE), 0.7), "cut short"),
    "glb with a broken image": (lambda p: glb(p, junk_image=True), "texture"),
    "glb with accessors beyond the buffer": (
        lambda p: glb(p, lambda h: h["accessors"][0].update(count=10**9)),
        "cannot be read",
    ),
    "glb with a needed extension": (
        lambda p: glb(p, lambda h: h.update(extensionsRequired=["KHR_draco_mesh_compression"])),
        "KHR_draco",
    ),
    "gltf with missing buffers": (
        lambda p: (write_gltf(p / "a.gltf", VERTICES, FACES, UV, TEXTURE), *(b.unlink() for b in p.glob("*.bin")))[0],
        "bin",
    ),
    "gltf with a cut buffer": (
        lambda p: (
            write_gltf(p / "a.gltf", VERTICES, FACES, UV, TEXTURE),
            *(cut(b, 0.5) for b in p.glob("*.bin")),
        )[0],
        "cannot be read",
    ),
    "gltf claiming 10^11 zeros": (lambda p: text(p, "a.gltf", json.dumps(bufferless(10**11))), "accessors"),
    "gltf with nothing in it": (lambda p: text(p, "a.gltf", "{}"), "cannot be read|no faces"),
    "gltf that is a list": (lambda p: text(p, "a.gltf", "[1, 2]"), "not a glTF"),
    "gltf nested a million deep": (lambda p: text(p, "a.gltf", "[" * 10**6), "not a glTF"),
    "40 GiB": (large, "larger than"),
    "vertex 0 in an obj": (
        lambda p: text(p, "a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 0/1 2\n"),
        "vertex 0",
    ),
    "off with words for colours": (
        lambda p: text(p, "a.off", "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 1 0 0\n3 0 1 2 red 0 0\n"),
        "colours",
    ),
    "off with colours out of range": (
        lambda p: text(p, "a.off", "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 1 0 0\n3 0 1 2 nan 0 0\n"),
        "colours",
    ),
    "off with coloured quadrilaterals": (
        lambda p: text(p, "a.off", "OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3 255 0 0\n3 0 1 2 255 0 0\n"),
        "three corners",
    ),
    "glb with a moved texture": (
        lambda p: glb(
            p,
            lambda h: h["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"].update(
                extensions={"KHR_texture_transform": {"scale": [2, 2]}}
            ),
        ),
        "KHR_texture_transform",
    ),
    "a texture on another machine": (
        lambda p: replaced(blob(p), b"TextureFile blob.png", b"TextureFile file://elsewhere/blob.png"),
        "local files",
    ),
    "a texture of an unknown package": (
        lambda p: replaced(blob(p), b"TextureFile blob.png", b"TextureFile package://no_such_package/blob.png"),
        "no_such_package",
    ),
}


@contextlib.contextmanager
def little_memory(more):
    """Nobody gets more than that many bytes of address space beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_one_sentence(tmp_path, kind):
    make, words = BAD[kind]
    path = make(tmp_path)
    start = time.process_time()
    with little_memory(1024**3), pytest.raises(MeshError, match=words) as caught:
        load_mesh(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert "\n" not in message and message.endswith(".") and len(message) < 400 + len(str(path)), message
    assert ". " not in message.removeprefix(f"{path}: "), f"more than one sentence: {message}"
    assert time.process_time() - start < 30
    assert "memory" not in message and "allocate" not in message, f"refused only when memory was gone: {message}"


def test_memory_is_bounded_in_these_tests():
    with little_memory(1024**3), pytest.raises(MemoryError):
        np.ones(2 * 1024**3, np.uint8)


def test_nodes_that_are_their_own_children_do_no_harm(tmp_path):
    def knot(header):
        for number, node in enumerate(header["nodes"]):
            node["children"] = [number, 0]

    path = edited(write_gltf(tmp_path / "a.gltf", VERTICES, FACES, UV, TEXTURE), knot)
    with contextlib.suppress(MeshError):
        assert len(load_mesh(path).faces) == len(FACES)


def test_there_are_at_least_thirty():
    assert len(BAD) >= 30


@contextlib.contextmanager
def as_nobody():
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("locked", ["blob.ply", "blob.png"])
def test_no_permission(tmp_path, locked):
    path = blob(tmp_path)
    load_mesh(path)
    for parent in [tmp_path, *tmp_path.parents][:3]:  # pytest makes its folders private
        parent.chmod(0o755)
    (tmp_path / locked).chmod(0)
    with as_nobody(), pytest.raises(MeshError, match=f"{locked}.*no permission"):
        load_mesh(path)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale(tmp_path, scale):
    with pytest.raises(MeshError, match="scale"):
        load_mesh(blob(tmp_path), scale)


def test_a_bad_mesh_leaves_nothing_in_the_cache(tmp_path):
    cache = TemplateCache(tmp_path / "cache")
    with pytest.raises(MeshError):
        cache.get(ObjectSpec("blob", str(blob(tmp_path, vertices=VERTICES * 0))))
    assert not list((tmp_path / "cache").glob("*.templates"))


@pytest.mark.parametrize(
    "vertices, faces",
    [
        (VERTICES * [1, 1, 0], FACES),  # flat
        (np.vstack([VERTICES, VERTICES]), np.vstack([FACES, FACES + len(VERTICES)])),  # everything twice
        (VERTICES, np.vstack([FACES, FACES[:, ::-1]])),  # both windings
        (VERTICES, np.vstack([FACES, FACES[:20, [0, 0, 1]]])),  # some degenerate faces
        (VERTICES + 1e4, FACES),  # far from the origin
        (np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) * 0.1, np.array([[0, 1, 2], [0, 2, 3]])),  # a card
    ],
)
def test_odd_but_good(tmp_path, vertices, faces):
    path = tmp_path / "odd.stl"
    trimesh.Trimesh(vertices, faces, process=False).export(path)
    templates = render(load_mesh(path), viewpoints(12), RenderSettings(size=64, threads=1))
    assert (templates.masks > 127).sum(axis=(1, 2)).max() > 200
    seen = templates.masks == 255
    assert templates.images[seen].min() > 20
    assert np.isfinite(templates.depths).all()


def test_one_texel_is_enough(tmp_path):
    path = blob(tmp_path, texture=np.full((1, 1, 3), [200, 40, 40], np.uint8))
    templates = render(load_mesh(path), viewpoints(2), RenderSettings(size=64, threads=1))
    red, green, _ = templates.images[templates.masks == 255].mean(axis=0)
    assert red > 2 * green


def test_images_are_not_kept_open(tmp_path):
    path = blob(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        load_mesh(path)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert Image.open(tmp_path / "blob.png").size == (512, 256)
