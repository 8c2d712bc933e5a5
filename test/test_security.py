# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Files of strangers run nothing and reach nothing; the node talks to nobody but the robot."""

import ast
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from node_harness import environment
from PIL import EpsImagePlugin, Image
from templates_meshes import textured_blob, write_bop_ply, write_dae, write_gltf

from ocdit_ros.evaluate.datasets import read_rgb
from ocdit_ros.model import CheckpointError, load_checkpoint
from ocdit_ros.node.images import ImageError, to_rgb
from ocdit_ros.templates import MeshError, load_mesh

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(p for folder in ("ocdit_ros", "launch", "examples") for p in (ROOT / folder).rglob("*.py"))
VERTICES, FACES, UV, TEXTURE = textured_blob(3, 5)

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "pty", "ftplib", "http.client",
    "smtplib", "telnetlib", "urllib.request", "requests", "httpx", "aiohttp", "socket", "huggingface_hub", "torch.hub",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.hub.load", "pty.spawn", "__import__"}


def dangers(source):
    """What a program contains that could run or fetch what a file tells it to."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            found += sorted(names & FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                name in FORBIDDEN_CALLS
                or words.get("shell", "False") != "False"
                or words.get("allow_pickle", "False") != "False"
                or (name.split(".")[0] in ("timm", "models") and words.get("pretrained", "False") != "False")
                or (name == "torch.load" and words.get("weights_only") != "True")
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from urllib import request", "eval(x)", "import os\nos.system(x)", "run(x, shell=True)",
        "np.load(x, allow_pickle=True)", "torch.load(x)", "torch.load(x, weights_only=False)",
        "timm.create_model(x, pretrained=True)",
    ],
)  # fmt: skip
def test_dangers_are_recognised(source):
    assert dangers(source)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_runs_or_fetches_what_a_file_tells_it_to(program):
    """Training states are read by torch.load(weights_only=True), which builds tensors and plain values alone."""
    assert dangers(program.read_text()) == []


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickled_weights_file_is_refused_and_not_run(tmp_path):
    torch.save({"weights": Trap(tmp_path / "run")}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "weights.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_training_state_with_code_in_it_is_refused_and_not_run(tmp_path):
    torch.save({"step": Trap(tmp_path / "run")}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        torch.load(tmp_path / "state.pt", weights_only=True)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def postscript(monkeypatch):
    """A picture in PostScript, which Pillow has another program (gs) run; here that is a failure."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "eps")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("PostScript was run"))
    return file.getvalue()


def test_pictures_in_postscript_are_not_run(tmp_path, postscript):
    path = write_bop_ply(tmp_path / "mesh.ply", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    (tmp_path / "mesh.png").write_bytes(postscript)
    with pytest.raises(MeshError, match="is not an image"):
        load_mesh(path)
    path = write_gltf(tmp_path / "mesh.gltf", VERTICES, FACES, UV, TEXTURE[::16, ::16])
    header = json.loads(path.read_text())
    view = header["bufferViews"][header["images"][0]["bufferView"]]
    buffer = header["buffers"][view["buffer"]]
    (tmp_path / buffer["uri"]).write_bytes(postscript)
    view.update(byteOffset=0, byteLength=len(postscript))
    buffer["byteLength"] = len(postscript)
    path.write_text(json.dumps(header))
    with pytest.raises(MeshError, match=r"the kind EPS|missing or cannot be read"):
        load_mesh(path)
    (tmp_path / "image.png").write_bytes(postscript)
    with pytest.raises(OSError, match="cannot identify"):
        read_rgb(tmp_path / "image.png")
    from array import array

    from sensor_msgs.msg import CompressedImage

    with pytest.raises(ImageError, match="not supported"):
        to_rgb(CompressedImage(format="png", data=array("B", postscript)))


def test_a_dae_file_is_no_archive(tmp_path):
    """pycollada would unpack it, of whatever size its content is."""
    with zipfile.ZipFile(tmp_path / "a.dae", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.dae", write_dae(tmp_path / "model.dae", VERTICES, FACES).read_bytes())
        archive.writestr("bomb", bytes(10**7))
    with pytest.raises(MeshError, match="no XML in UTF-8"):
        load_mesh(tmp_path / "a.dae")


@pytest.mark.parametrize(
    "encoding, words",
    [("utf-8", "entities"), ("utf-16", "no XML in UTF-8"), ("utf-7", "an encoding other than UTF-8")],
)
def test_entities_are_refused_in_every_encoding(tmp_path, encoding, words):
    text = write_dae(tmp_path / "a.dae", VERTICES, FACES).read_text()
    entities = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
    body = text[text.index("<COLLADA") :]
    (tmp_path / "a.dae").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{entities}{body}'.encode(encoding))
    with pytest.raises(MeshError, match=words):
        load_mesh(tmp_path / "a.dae")


def test_a_document_type_of_another_file_is_refused(tmp_path):
    path = write_dae(tmp_path / "a.dae", VERTICES, FACES)
    text = path.read_text()
    at = text.index("<COLLADA")
    path.write_text(text[:at] + '<!DOCTYPE x SYSTEM "http://localhost/x.dtd">' + text[at:])
    with pytest.raises(MeshError, match="document type"):
        load_mesh(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n "])
def test_usual_dae_files_are_read(tmp_path, mark):
    path = write_dae(tmp_path / "a.dae", VERTICES, FACES)
    data = path.read_bytes()
    path.write_bytes(mark + (data if mark != b"\n " else data[data.index(b"<COLLADA") :]))
    assert len(load_mesh(path).faces) == len(FACES)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".zae", ".3mf", ".3dxml", ".xaml", ".npz"])
def test_archives_are_no_meshes(tmp_path, suffix):
    box = trimesh.creation.box((0.1, 0.1, 0.1)).export(file_type="ply")
    with zipfile.ZipFile(tmp_path / f"a{suffix}", "w") as archive:
        archive.writestr("../a.ply", box)
    with pytest.raises(MeshError, match="unknown mesh format"):
        load_mesh(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("uri", ["http://localhost/a.ply", "ftp://localhost/a.ply", "file://elsewhere/a.ply"])
def test_no_address_is_fetched(uri):
    with pytest.raises(MeshError, match=r"unknown scheme|only local files"):
        load_mesh(uri)


@pytest.mark.integration
def test_the_node_sends_nothing_to_other_machines():
    """Its whole life with the real network, where whatever leaves the machine is read by the test."""
    unshare = ["unshare", "--map-root-user", "--net"]
    try:
        can = subprocess.run([*unshare, "test", "-c", "/dev/net/tun"], capture_output=True, text=True, timeout=20)
    except OSError:
        pytest.skip("there is no unshare on this machine")
    if can.returncode:
        pytest.skip(f"this machine gives no network name space with a tun device: {can.stderr.strip()}")
    done = subprocess.run(
        [*unshare, sys.executable, Path(__file__).with_name("no_network.py")],
        env=environment(), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert any(one.startswith("198.51.100.7 ") for one in seen["on purpose"]), "the trap does not work"
    assert seen["results"] == 1
    assert seen["attempts"] == []


def locked():
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    return dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", lock))


def test_licences_of_all_locked_packages_are_listed_and_known():
    rows = re.findall(r"(?m)^\| (\S+) \| (\S+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text())
    rows = [row for row in rows if row[0] not in ("package", "---")]
    assert {name: version for name, version, _ in rows} == locked(), "run python scripts/licences.py"
    assert all(licence != "not told" for _, _, licence in rows)


def test_the_bill_of_materials_is_that_of_the_lock():
    """Made by cyclonedx-bom, from the lock, with the hashes of the files."""
    bill = json.loads((ROOT / "requirements" / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert {part["name"]: part["version"] for part in bill["components"]} == locked(), "run scripts/supply_chain.sh"
    assert all(reference["hashes"] for part in bill["components"] for reference in part["externalReferences"])


def test_an_image_for_the_command_line_is_bounded(tmp_path):
    from ocdit_ros.cli import CommandError, _read_image

    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert _read_image(str(tmp_path / "a.png")).shape == (4, 4, 3)
    from test_fuzzing import png_header

    for size in ((12000, 12000), (60000, 60000)):
        (tmp_path / "a.png").write_bytes(png_header(*size))
        with pytest.raises(CommandError, match=r"12000 x 12000|exceeds limit"):
            _read_image(str(tmp_path / "a.png"))
