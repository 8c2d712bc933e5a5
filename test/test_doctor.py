# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit doctor`: each check on something sound, and on each kind of thing that is wrong."""

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from ocdit_ros import cli, doctor
from ocdit_ros.doctor import Level, Request
from ocdit_ros.model import ModelConfig, OCDiT, save_checkpoint
from ocdit_ros.templates import ObjectSpec, RenderSettings, TemplateCache

ROOT = Path(__file__).resolve().parents[1]


def levels(findings):
    return [finding.level for finding in findings]


def only(findings):
    (finding,) = findings
    if finding.level in (Level.WARN, Level.FAIL):
        assert finding.mend, finding
    return finding


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint of the smallest network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(OCDiT(ModelConfig.preset("tiny")), path, {"summary": "random"})
    return path


@pytest.fixture
def crate(tmp_path):
    path = tmp_path / "crate.ply"
    mesh = trimesh.creation.box((40, 60, 80))
    mesh.visual.vertex_colors = np.arange(32, dtype=np.uint8).reshape(8, 4) * 7
    mesh.export(path)
    return path


@pytest.mark.parametrize("version, level", [((3, 9), "fail"), ((3, 10), "warn"), ((3, 11), "ok"), ((3, 14), "warn")])
def test_python(version, level, monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0))
    assert only(doctor.check_python(Request())).level.value == level


def test_packages_missing_or_out_of_range_are_named():
    def installed(name):
        if name == "gone":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.5"

    wanted = ["good>=1", "old>=2", "gone", "extra>=9; extra == 'train'", "other>=9; python_version < '3'"]
    assert list(doctor.unmet(wanted, installed)) == ["old is 1.5, needed is >=2", "gone is missing"]


def test_the_environment_of_the_tests_is_sound():
    for check in (doctor.check_packages, doctor.check_numpy, doctor.check_renderer):
        assert only(check(Request())).level is Level.OK


def test_numpy_that_torch_was_not_built_for(monkeypatch):
    def refuse(array):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    assert only(doctor.check_numpy(Request())).level is Level.FAIL


def test_a_renderer_that_measures_wrongly(monkeypatch):
    import open3d

    class Scene:
        def __init__(self, nthreads):
            pass

        def add_triangles(self, *arrays):
            pass

        def cast_rays(self, rays):
            return {"t_hit": open3d.core.Tensor(np.array([np.inf], np.float32))}

    monkeypatch.setattr(open3d.t.geometry, "RaycastingScene", Scene)
    assert "measures inf where 2 is right" in only(doctor.check_renderer(Request())).what


def test_threads_that_are_left_unused(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    finding = only(doctor.check_torch(Request()))
    assert finding.level is Level.WARN
    assert "1 of 4 CPU cores" in finding.what


@pytest.mark.parametrize("device, level", [("auto", "ok"), ("cpu", "ok"), ("cuda", "fail"), ("cuda:1", "fail")])
def test_cuda_where_there_is_none(device, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.Path, "exists", lambda self: False)
    assert only(doctor.check_cuda(Request(device=device))).level.value == level


def test_a_card_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.Path, "exists", lambda self: str(self) == "/dev/nvidia0")
    assert only(doctor.check_cuda(Request())).level is Level.WARN
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in only(doctor.check_cuda(Request(device="cuda"))).mend


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_device_computes():
    assert only(doctor.check_cuda(Request(device="cuda:0"))).level is Level.OK
    assert only(doctor.check_cuda(Request(device="cuda:99"))).level is Level.FAIL


def test_the_shipped_weights_are_the_published_ones():
    """Fails when weights/README.md does not name the file beside it."""
    (path,) = (ROOT / "weights").glob("*.safetensors")
    assert only(doctor.check_weights(Request(weights=str(path)))).level is Level.OK


def test_weights_that_are_not_the_published_ones(tiny, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny.read_bytes())
    assert only(doctor.check_weights(Request(weights=str(other)))).level is Level.OK
    (tmp_path / "README.md").write_text("`other.safetensors` has SHA-256 " + 64 * "0")
    assert "not the file that was published" in only(doctor.check_weights(Request(weights=str(other)))).what


@pytest.mark.parametrize("damage, words", [
    (lambda data: data[: len(data) // 2], "truncated or damaged"),
    (lambda data: b"", "damaged"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    (None, "no weights file"),
])  # fmt: skip
def test_damaged_weights(tiny, tmp_path, damage, words):
    path = tmp_path / "weights.safetensors"
    if damage:
        path.write_bytes(damage(tiny.read_bytes()))
    finding = only(doctor.check_weights(Request(weights=str(path))))
    assert finding.level is Level.FAIL
    assert words in finding.what


def test_weights_with_a_nan(tmp_path):
    model = OCDiT(ModelConfig.preset("tiny"))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    save_checkpoint(model, tmp_path / "nan.safetensors")
    assert "not finite" in only(doctor.check_weights(Request(weights=str(tmp_path / "nan.safetensors")))).what


def test_cache(tmp_path, crate):
    folder = tmp_path / "cache"
    request = Request(cache=str(folder))
    assert "0 objects" in only(doctor.check_cache(request)).what
    assert not folder.exists()  # only looked
    TemplateCache(folder).get(ObjectSpec("crate", str(crate), 0.001), RenderSettings(views=2, size=16))
    assert only(doctor.check_cache(request)).level is Level.OK
    (entry,) = folder.glob("*.templates")
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)
    finding = only(doctor.check_cache(request))
    assert finding.level is Level.WARN
    assert f"damaged: {entry.name} (its checksum does not match)" in finding.what
    assert {path.name for path in folder.iterdir()} == {entry.name, "locks"}  # nothing left behind


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is not a folder" in only(doctor.check_cache(Request(cache=str(tmp_path / "file" / "cache")))).what

    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "Permission denied" in only(doctor.check_cache(Request(cache=str(tmp_path)))).what


def test_meshes(crate, tmp_path):
    plain = tmp_path / "plain.stl"
    trimesh.creation.box((0.1, 0.1, 0.1)).export(plain)
    (tmp_path / "bad.ply").write_text("ply\n")
    specs = [
        ObjectSpec("crate", str(crate), 0.001),
        ObjectSpec("crate", str(crate), 1.0),
        ObjectSpec("plain", str(plain), 1.0),
        ObjectSpec("bad", str(tmp_path / "bad.ply"), 1.0),
        ObjectSpec("none", str(tmp_path / "none.ply"), 1.0),
    ]
    found = list(doctor.check_meshes(Request(meshes=tuple(specs))))
    assert levels(found) == [Level.OK, Level.FAIL, Level.WARN, Level.FAIL, Level.FAIL]
    assert "10.8 cm across" in found[0].what  # sqrt(40² + 60² + 80²) = 107.7 mm
    assert "0.001 (millimetres) would make it 10.8 cm" in found[1].mend
    assert "one colour" in found[2].what
    assert "does not exist" in found[4].what
    assert only(doctor.check_meshes(Request())).level is Level.SKIP


def test_a_check_that_breaks_is_a_finding_and_the_rest_goes_on(monkeypatch):
    def broken(request):
        raise OSError("libGL.so.1: cannot open shared object file")

    for name in ("packages", "numpy", "torch", "cuda", "weights", "cache", "meshes", "ros"):
        monkeypatch.setattr(doctor, f"check_{name}", lambda request: iter(()))
    monkeypatch.setattr(doctor, "check_renderer", broken)
    found = list(doctor.examine(Request()))
    assert [finding.check for finding in found] == ["python", "renderer"]
    assert "libGL.so.1" in found[1].what


def test_a_machine_without_ros(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: iter(()))
    assert only(doctor.check_ros(Request())).level is Level.WARN
    assert only(doctor.check_ros(Request(image="/camera"))).level is Level.FAIL
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: iter([Path("/opt/ros/jazzy/setup.bash")]))
    assert "source /opt/ros/jazzy/setup.bash" in only(doctor.check_ros(Request())).mend


def test_parameter_file(crate, tmp_path):
    pytest.importorskip("rclpy", reason="reading a parameter file takes rclpy")
    file = tmp_path / "objects.yaml"

    def read(text):
        file.write_text("/**:\n  ros__parameters:\n" + text)
        names = {"weights": "", "device": "auto", "cache": "", "models": None, "mesh": [], "scale": None, "wait": 1.0}
        return doctor.read_request(argparse.Namespace(**names, image="", params_file=str(file)))

    request = read(f'    objects: [crate]\n    objects.crate.mesh: "{crate}"\n    objects.crate.scale: 0.001\n'
                   "    device: cpu\n    cache_dir: /nowhere\n")  # fmt: skip
    assert request.meshes == (ObjectSpec("crate", str(crate), 0.001),)
    assert (request.device, request.cache) == ("cpu", "/nowhere")
    assert levels(request.trouble) == [Level.OK]
    for text, words in (
        ("    score_treshold: 0.4\n", "did you mean 'score_threshold'"),
        ("    steps: 1000\n", "'steps' is 1000, but must be 1 to 100"),
        ("    objects: [mug]\n", "'objects.mug.mesh' is not set"),
        ("    objects: [mug\n", ""),
    ):
        finding = only(read(text).trouble)
        assert finding.level is Level.FAIL
        assert words in finding.what


def test_command_prints_findings_and_fails_when_one_failed(tiny, crate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_ros", lambda request: iter(()))
    words = ["doctor", "--weights", str(tiny), "--cache", str(tmp_path / "cache"), "--mesh", str(crate)]
    assert cli.main([*words, "--scale", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "ok    weights" in printed
    assert "nothing failed." in printed
    assert cli.main([*words, "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert [row["check"] for row in table if row["level"] == "fail"] == ["meshes"]


def test_module_runs_where_the_command_is_not_found():
    result = subprocess.run(
        [sys.executable, "-m", "ocdit_ros.doctor", "--help"], capture_output=True, text=True, check=True
    )
    assert "--params-file" in result.stdout
