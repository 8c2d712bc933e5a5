# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A short run of every fuzzer of fuzzing.py, whether a fuzzer sees what it should, and what longer runs have found."""

import array
import contextlib
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import torch
from fuzzing import FindingError
from model_fixtures import new_model
from node_harness import FAKE_NODE, environment
from sensor_msgs.msg import CompressedImage
from templates_meshes import textured_blob, write_bop_ply, write_obj
from test_templates_bad_meshes import little_memory

from ocdit_ros.evaluate.datasets import DatasetError, open_dataset, read_rgb
from ocdit_ros.model import CheckpointError, ModelConfig, load_checkpoint, save_checkpoint
from ocdit_ros.node.images import ImageError, to_rgb
from ocdit_ros.templates import MeshError, load_mesh
from ocdit_ros.templates.source import read_file

SHORT = {"images": 1500, "parameters": 80, "meshes": 150, "cache": 500, "checkpoints": 8, "bop": 100}


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_a_short_run_of_every_fuzzer_finds_nothing(name):
    outcomes, findings = fuzzing.campaign(name, SHORT[name], seed=7)
    assert findings == []
    assert sum(outcomes.values()) == SHORT[name]
    # A fuzzer of which everything is refused at the door tests nothing behind it.
    assert any(word in outcome for outcome in outcomes for word in ("used", "configure success")), outcomes


class Broken(fuzzing.Target):
    """Does everything that is a finding."""

    def case(self, rng):
        return rng.randrange(5)

    def run(self, case):
        if case == 0:
            raise KeyError("nobody foresaw this")
        if case == 1:
            os.kill(os.getpid(), 9)
        if case == 2:
            return str(len(bytearray(8 * fuzzing.MEMORY)))
        fuzzing.expect(case != 3, "a wrong result")
        return "used"


def test_a_fuzzer_tells_errors_crashes_memory_and_wrong_results(monkeypatch, tmp_path):
    target = Broken(tmp_path)
    seen = set()
    with little_memory(fuzzing.MEMORY):
        for number in range(30):
            pid = os.fork()
            if not pid:
                code = 9
                try:
                    code = 0 if fuzzing.attempt(target, number, 0) else 8
                except FindingError as error:
                    text = str(error)
                    code = 1 + ["KeyError", "MemoryError", "a wrong result"].index(
                        next(word for word in ("KeyError", "MemoryError", "a wrong result") if word in text)
                    )
                finally:
                    os._exit(code)
            seen.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert seen == {0, 1, 2, 3, -9}


def test_the_same_seed_is_the_same_case(tmp_path):
    import random

    one, other = (fuzzing.Images(tmp_path).case(random.Random("3/14")) for _ in range(2))
    assert one == other


# Found by the fuzzers, or while they were written -------------------------------------------------------------------


def png_header(width, height, chunks=b""):
    """A PNG file of a few bytes that announces an image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunks + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30000, 30000), (40000, 4), (2**31 - 1, 2**31 - 1), (8193, 8193)])
def test_a_small_compressed_image_that_announces_gigabytes_is_refused_before_it_is_decoded(size, monkeypatch):
    import cv2

    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"which cannot be right|damaged"):
        to_rgb(CompressedImage(format="png", data=array.array("B", png_header(*size))))


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt"])
def test_a_png_whose_parts_announce_gigabytes_is_refused_before_it_is_decoded(kind, monkeypatch):
    """OpenCV would take 4 GB for these 100 bytes."""
    import cv2

    data = png_header(7, 6)
    at = data.index(b"IDAT")
    bad = data[: at - 4] + b"\xff\xff\xff\x7f" + kind + data[at + 4 :]
    animated = data[: at - 4] + b"\0\0\0\x08acTL\0\0\0\2\0\0\0\0\xf3\x8d\x93\x70" + data[at - 4 :]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for one in (bad, animated, data[:-1], data[:-12]):
        with pytest.raises(ImageError, match="damaged"):
            to_rgb(CompressedImage(format="png", data=array.array("B", one)))


def test_an_image_file_that_announces_gigabytes_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(12000, 12000))
    with little_memory(256 * 1024**2), pytest.raises(ValueError, match="12000 x 12000"):
        read_rgb(tmp_path / "a.png")


def test_names_of_encodings_stay_in_their_line():
    from sensor_msgs.msg import Image

    with pytest.raises(ImageError) as caught:
        to_rgb(Image(encoding="a\nb" + "x" * 5000, width=1, height=1, step=3, data=array.array("B", bytes(3))))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_reading_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"x" * 1000)
    with little_memory(64 * 1024**2):
        assert read_file(tmp_path / "a.ply") == b"x" * 1000


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "a.ply", "wb") as file:
        file.truncate(2 * 1024**3)  # sparse
    with little_memory(64 * 1024**2), pytest.raises(MeshError, match="larger than 256 MiB"):
        read_file(tmp_path / "a.ply")
    with pytest.raises(MeshError, match="grows while it is read"):
        read_file(Path("/proc/self/maps"))


VERTICES, FACES, UV, TEXTURE = textured_blob(3, 5)


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("beside.png", True), ("below/beside.png", True), ("../textures/beside.png", True),
        ("file://{mesh}/beside.png", True), ("../../beside.png", False), ("{root}/beside.png", False),
        ("file://{root}/beside.png", False), ("link.png", False), ("linked/beside.png", False),
    ],
)  # fmt: skip
def test_a_mesh_does_not_reach_files_elsewhere(tmp_path, name, allowed):
    """What a mesh file names is read from its own folder and from below the folder above it, nowhere else."""
    mesh = tmp_path / "part" / "meshes"
    for folder in (mesh, mesh / "below", tmp_path / "part" / "textures", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        write_bop_ply(folder / "beside.ply", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    (mesh / "link.png").symlink_to(tmp_path / "beside.png")
    (mesh / "linked").symlink_to(tmp_path)
    path = write_bop_ply(mesh / "mesh.ply", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    name = name.format(mesh=mesh, root=tmp_path)
    path.write_bytes(path.read_bytes().replace(b"TextureFile mesh.png", f"TextureFile {name}".encode()))
    if allowed:
        assert len(load_mesh(path).textures) == 1
    else:
        with pytest.raises(MeshError, match="neither in the folder of the mesh nor in that above it"):
            load_mesh(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\x04b", "a\x1bb"])
def test_names_of_files_that_are_none(tmp_path, name):
    path = write_obj(tmp_path / "mesh.obj", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    path.write_text(path.read_text().replace("material.mtl", name))
    with pytest.raises(MeshError, match="refers to a file whose name is none"):
        load_mesh(path)


def test_a_material_file_does_not_reach_files_elsewhere(tmp_path):
    path = write_obj(tmp_path / "mesh.obj", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    (tmp_path / "material.mtl").write_text("newmtl material\nmap_Kd /etc/hostname\n")
    with pytest.raises(MeshError, match="neither in the folder"):
        load_mesh(path)


def off(colors, head="COFF", values=255):
    rows = [f"{x} {y} {z} {' '.join(map(str, c))}" for (x, y, z), c in zip(VERTICES, colors)]
    return "\n".join([head, f"{len(VERTICES)} {len(FACES)} 0", *rows, *(f"3 {a} {b} {c}" for a, b, c in FACES)]) + "\n"


def test_no_native_reader_of_meshes_is_asked(tmp_path):
    """Colours of COFF files were Open3D's to read, in C++ inside the process of the node."""
    colors = np.random.default_rng(0).integers(0, 256, (len(VERTICES), 3))
    (tmp_path / "a.off").write_text(off(colors))
    program = (
        "import sys; from ocdit_ros.templates import load_mesh; mesh = load_mesh(sys.argv[1]);"
        "assert 'open3d' not in sys.modules; print(mesh.colors[0].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.off"], env=environment(), capture_output=True, text=True
    )
    assert json.loads(done.stdout) == colors[FACES[0]].tolist(), done.stderr


def test_colours_of_off_files_as_fractions_and_what_is_wrong_with_them(tmp_path):
    path = tmp_path / "a.off"
    fractions = np.full((len(VERTICES), 4), [0.5, 1.0, 0.0, 0.25])
    path.write_text(off(fractions))
    assert load_mesh(path).colors[0, 0].tolist() == [128, 255, 0]
    for colors, words in (
        (np.full((len(VERTICES), 3), 256), "outside 0 to 255"),
        (np.full((len(VERTICES), 3), -1), "outside 0 to 255"),
        (np.full((len(VERTICES), 2), 7), "not every vertex has one"),
        ([["a", "b", "c"]] * len(VERTICES), "cannot be read"),
    ):
        path.write_text(off(colors))
        with pytest.raises(MeshError, match=words):
            load_mesh(path)


@pytest.mark.parametrize(
    "old, new, words",
    [
        (r"(?m)^v (\S+) (\S+) (\S+)$", r"v \1 \2", "2 coordinates instead of 3"),
        (r"(?m)^v .*$", "v 0", "coordinates instead of 3|1 coordinates|cannot be read"),
        (r"(?m)^vt (\S+) (\S+)$", r"vt \1", "texture coordinates have 1 numbers"),
    ],
)
def test_lines_of_obj_files_that_are_too_short_are_named(tmp_path, old, new, words):
    import re

    path = write_obj(tmp_path / "mesh.obj", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    path.write_text(re.sub(old, new, path.read_text()))
    with pytest.raises(MeshError, match=words):
        load_mesh(path)


def test_a_third_texture_coordinate_is_left_out(tmp_path):
    path = write_obj(tmp_path / "mesh.obj", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    before = load_mesh(path).uv
    path.write_text("\n".join(f"{line} 0" if line.startswith("vt") else line for line in path.read_text().splitlines()))
    np.testing.assert_array_equal(load_mesh(path).uv, before)


def test_accessors_of_a_gltf_file_that_do_not_fit_each_other(tmp_path):
    data = json.loads((fuzzing.CORPUS / "meshes" / "gltf" / "a.gltf").read_text())
    texcoord = data["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]
    data["accessors"][texcoord]["count"] = 1
    for file in (fuzzing.CORPUS / "meshes" / "gltf").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "a.gltf").write_text(json.dumps(data))
    with pytest.raises(MeshError, match=r"1 texture coordinates for|contradict each other"):
        load_mesh(tmp_path / "a.gltf")


@pytest.mark.parametrize(
    "change",
    [
        {"diameter": "nan"}, {"diameter": "inf"}, {"diameter": "0.0"}, {"diameter": "-1"}, {"dtype": "I8"},
        {"shape": [2, 8, 24]}, {"shape": [1, 16, 8, 3]},
    ],
)  # fmt: skip
def test_cache_entries_with_a_right_checksum_and_wrong_content_are_made_anew(tmp_path, change):
    target = fuzzing.Cache(tmp_path)
    block = target.good[target.cache._START :]
    length = struct.unpack("<Q", block[:8])[0]
    header = json.loads(block[8 : 8 + length])
    place = header["__metadata__"] if "diameter" in change else header["images"]
    assert place.keys() >= change.keys()
    place.update(change)
    text = json.dumps(header).encode()
    block = struct.pack("<Q", len(text)) + text + block[8 + length :]
    assert target.run(target.cache._MAGIC + target.sha(block).digest() + block) == "sealed, made anew"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(new_model(), path, {}, torch.float16)
    return path


def changed(path, folder, **config):
    """The checkpoint with another configuration."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["config"] = json.dumps(json.loads(header["__metadata__"]["config"]) | config)
    text = json.dumps(header).encode()
    (folder / "changed.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return folder / "changed.safetensors"


@pytest.mark.parametrize(
    "config, words",
    [
        ({"width": 2**40}, "width is .* must be at most"),
        ({"depth": 10**9}, "depth is .* must be at most"),
        ({"vae_channels": [8, 2**62, 32]}, "vae_channels is .* must be at most"),
        ({"max_objects": 10**12}, "max_objects is .* must be at most"),
        ({"mlp_ratio": 1e30}, "mlp_ratio is .* must be at most"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"width": 4096, "depth": 128}, "larger than the file"),
    ],
)
def test_weights_that_ask_for_more_than_there_is_are_refused(weights, tmp_path, config, words):
    with little_memory(1024**3), pytest.raises(CheckpointError, match=words):
        load_checkpoint(changed(weights, tmp_path, **config))


def test_what_stands_in_a_checkpoint_stays_in_its_line(weights, tmp_path):
    data = weights.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["version"] = "a\nb" * 1000
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    (tmp_path / "b").write_bytes(data.replace(b'"F16"', b'"a\\nb"', 1))
    for name in "ab":
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_presets_are_within_the_limits():
    for name in ("tiny", "small", "base", "paper"):
        ModelConfig.preset(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weights, tmp_path, value):
    """They would give masks of nothing, without a word."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[5] = value
    with open(weights, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    save_file(tensors, tmp_path / "bad.safetensors", header["__metadata__"])
    with pytest.raises(CheckpointError, match=rf"'{name}' has values that are not finite numbers"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_a_wrong_type_of_a_parameter_of_rclpy_ends_the_start_in_one_line():
    done = subprocess.run(
        [*FAKE_NODE, "--ros-args", "-p", "use_sim_time:=maybe"], env=environment(), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("segment_node: Trying to set parameter 'use_sim_time'")


def bop(folder, **files):
    target = fuzzing.Bop(folder)
    scene = "test/000001"
    places = {"gt": f"{scene}/scene_gt.json", "info": f"{scene}/scene_gt_info.json",
              "targets": "test_targets_bop19.json", "image": f"{scene}/rgb/000000.png",
              "mask": f"{scene}/mask_visib/000000_000000.png"}  # fmt: skip
    content = {**target.files, **{places[name]: data for name, data in files.items()}}
    for name, data in content.items():
        if data is not None:
            (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "set" / name).write_bytes(data)
    return folder / "set"


def walk(folder):
    dataset = open_dataset(folder)
    for key in dataset.images:
        dataset.rgb(key)
        dataset.ground_truth(key)


def test_the_folder_that_is_changed_here_is_a_good_one(tmp_path):
    walk(bop(tmp_path))


@pytest.mark.parametrize(
    "files, words",
    [
        ({"targets": b'{"a": 1}'}, "must be a list of rows"),
        ({"targets": b'[{"scene_id": 1, "im_id": 1e99}]'}, "must be a list of rows|No image"),
        ({"targets": b"\xff"}, "not valid JSON"),
        ({"targets": b"[" * 100000}, "not valid JSON"),
        ({"gt": b"[]"}, "must map images"),
        ({"targets": None, "gt": b'{"x": []}'}, "keys that are no numbers"),
        ({"gt": b'{"0": 3, "1": []}'}, "disagree about image 0"),
        ({"gt": b'{"0": [{"obj_id": 9}], "1": []}'}, "names object 9, which has no mesh"),
        ({"info": b'{"0": [{"visib_fract": Infinity}], "1": []}'}, "visib_fract"),
        ({"info": b'{"0": [{}], "1": []}'}, "visib_fract"),
        ({"image": b"no image"}, "cannot be read as an image"),
        ({"image": png_header(12000, 12000)}, "cannot be read as an image.*12000"),
        ({"mask": b"no image"}, "cannot be read as a mask"),
        ({"mask": png_header(3, 3)}, "cannot be read as a mask: it has"),
    ],
)
def test_what_is_wrong_with_a_bop_folder_is_named(tmp_path, files, words):
    with pytest.raises(DatasetError, match=words) as caught:
        walk(bop(tmp_path, **files))
    with contextlib.suppress(AttributeError):
        assert len(str(caught.value)) < 1000
