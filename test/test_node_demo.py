# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The demo: what it prints and writes, what it says when it cannot, and that it leaves no process behind."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from model_fixtures import firm_model
from node_harness import Program, environment, wait_until

from ocdit_ros.model import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "scripts" / "demo.py"
MARK = "OCDIT_ROS_TEST_MARK"


@pytest.fixture(scope="module")
def demo():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("ocdit_demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ocdit_demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ocdit_demo"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A BOP folder with two images, three meshes (one of them not in the images), and quick weights."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("models", "test/000007/rgb"):
        (folder / name).mkdir(parents=True)
    for number in (1, 2, 5):
        trimesh.creation.box((60, 80, 100)).export(folder / "models" / f"obj_{number:06d}.ply")
    (folder / "models" / "names.json").write_text('{"1": "box", "5": "crate"}')
    rng = np.random.default_rng(0)
    for number in (3, 12):
        picture = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        cv2.imwrite(str(folder / "test/000007/rgb" / f"{number:06d}.png"), picture)
    truth = {"3": [{"obj_id": 1}, {"obj_id": 5}], "12": [{"obj_id": 1}], "99": [{"obj_id": 2}]}
    (folder / "test/000007/scene_gt.json").write_text(json.dumps(truth))
    save_checkpoint(firm_model(), folder / "tiny.safetensors", {"trained": "not at all"})
    return folder


def options(data, tmp_path, *more):
    quick = (
        "coarse_size=128",
        "score_threshold=0.0",
        "min_pixels=1",
        "cpu_threads=1",
        f"cache_dir={tmp_path / 'cache'}",
    )
    given = ["--weights", str(data / "tiny.safetensors"), "--out", str(tmp_path / "out")]
    for pair in quick:
        given += ["--set", pair]
    return [*given, *more]


def choose(demo, *arguments):
    return demo.choose(demo.parse([str(argument) for argument in arguments]))


def test_a_bop_folder_gives_its_images_and_the_objects_that_they_show(demo, data):
    job = choose(demo, data)
    assert [name for name, _ in job.images] == ["000007_000003", "000007_000012"]
    assert job.parameters == {"models_dir": str(data / "models"), "objects": ["box", "crate"]}
    assert choose(demo, data, "--max-images", 1).images == job.images[:1]


def test_the_default_is_the_sample_of_the_package(demo):
    job = choose(demo)
    assert all(file.is_relative_to(ROOT / "sample") for _, file in job.images)
    assert len(job.images) == 2
    assert len(job.parameters["objects"]) == 9
    folder = Path(job.parameters["models_dir"])
    assert set(job.parameters["objects"]) <= set(json.loads((folder / "names.json").read_text()).values())


def test_one_image_and_meshes(demo, data):
    image = data / "test/000007/rgb/000003.png"
    mesh = data / "models" / "obj_000001.ply"
    for arguments in ((image, "--mesh", mesh), ("--image", image, "--mesh", mesh)):
        job = choose(demo, *arguments)
        assert job.images == [("000003", image)]
        assert job.parameters == {
            "objects": ["obj_000001"], "objects.obj_000001.mesh": str(mesh), "objects.obj_000001.scale": 0.001,
        }  # fmt: skip


def test_a_folder_without_ground_truth_looks_for_every_mesh(demo, data, tmp_path):
    (tmp_path / "models").symlink_to(data / "models")
    (tmp_path / "test" / "000001").mkdir(parents=True)
    (tmp_path / "test" / "000001" / "rgb").symlink_to(data / "test/000007/rgb")
    assert "objects" not in choose(demo, tmp_path).parameters


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{tmp}/nowhere"], "there is no"),
        (["{tmp}"], "models/"),
        (["{data}/models/names.json"], "neither a folder nor an image"),
        (["{data}/test/000007/rgb/000003.png"], "--mesh"),
        (["{data}/test/000007/rgb/000003.png", "--mesh", "{tmp}/cup.ply"], "cup.ply"),
        (["{data}/test/000007/rgb/000003.png", "--mesh", *["{data}/models/obj_000001.ply"] * 2], "rename"),
    ],
)
def test_what_cannot_be_shown_is_named(demo, data, tmp_path, arguments, words):
    given = [argument.format(data=data, tmp=tmp_path) for argument in arguments]
    with pytest.raises(demo.DemoError, match=re.escape(words)):
        choose(demo, *given)


@pytest.mark.integration
def test_the_demo_prints_a_table_and_writes_overlays(data, tmp_path):
    program = Program([sys.executable, str(DEMO), str(data), *options(data, tmp_path)])
    try:
        assert program.wait(240) == 0, program.text
    finally:
        program.end()
    for words in (
        "2 images; looking for box, crate",
        "not at all",
        "object 2 of 2: crate is ready",
        "the node is active",
    ):
        assert words in program.text
    table = [line for line in program.lines if re.match(r"000007_0000(03|12) ", line)]
    assert {line.split()[0] for line in table} == {"000007_000003", "000007_000012"}
    for line in table:
        row = re.fullmatch(
            r"(?P<image>\S+) +(?P<object>box|crate) +(?P<score>[01]\.\d\d) +(?P<box>\d+ +\d+ +\d+ +\d+)"
            r" +(?P<pixels>\d+) +(?P<latency>\d+\.\d\d) s",
            line,
        )
        assert row, line
        _, _, width, height = map(int, row["box"].split())
        assert 0 < int(row["pixels"]) <= width * height
        assert float(row["latency"]) > 0
    for number in (3, 12):
        photo = cv2.imread(str(data / "test/000007/rgb" / f"{number:06d}.png"))
        overlay = cv2.imread(str(tmp_path / "out" / f"000007_{number:06d}.png"))
        assert overlay.shape == photo.shape
        assert (overlay != photo).any()


@pytest.mark.integration
@pytest.mark.parametrize(
    "change, words",
    [
        (["--weights", "/nowhere.safetensors"], "parameter 'weights': no weights file at '/nowhere.safetensors'"),
        (["--set", "score_threshold=7"], "parameter 'score_threshold' is 7"),
        (["--set", "mode=trigger", "--timeout", "2"], "no result arrived within 2 s"),
    ],
)
def test_without_a_result_the_demo_fails_with_a_sentence(data, tmp_path, change, words):
    program = Program([sys.executable, str(DEMO), str(data), *options(data, tmp_path, *change)])
    try:
        assert program.wait(240) == 1, program.text
    finally:
        program.end()
    error = next(line for line in program.lines if line.startswith("[demo] ERROR: "))
    assert words in error
    assert "Traceback" not in program.text


def marked(mark):
    """Processes that inherited the mark of a test."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(folder.name)] if state != "Z" else []
            except OSError:  # gone meanwhile
                pass
    return found


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for left-over processes in /proc (Linux)")
@pytest.mark.parametrize(
    "number, moment",
    [
        (signal.SIGINT, "at once"),
        (signal.SIGINT, "configuring"),
        (signal.SIGINT, "segmenting"),
        (signal.SIGTERM, "starting"),
        (signal.SIGKILL, "starting"),
        (signal.SIGKILL, "segmenting"),
    ],
)
def test_however_it_ends_no_process_is_left(data, tmp_path, number, moment):
    mark = uuid.uuid4().hex
    slow = ("--set", "ensemble=64", "--set", "steps=50", "--set", "coarse_size=512")
    program = Program([sys.executable, str(DEMO), str(data), *options(data, tmp_path, *slow)], **{MARK: mark})
    try:
        if moment == "at once":
            time.sleep(0.3)
        else:
            said = {"starting": "process of its own", "configuring": "configuring:", "segmenting": "publishing images"}
            program.wait_for(said[moment], 120)
            time.sleep(0.5)
        program.send(number)
        status = program.wait(40)
        wait_until(lambda: not marked(mark), 10, f"the end of {marked(mark)}")
    finally:
        for left in marked(mark):
            os.kill(left, signal.SIGKILL)
        program.end()
    if number == signal.SIGKILL or moment == "at once":  # at once: before the demo could ask to be told
        # 1: an interpreter that is interrupted while it still reads its start-up files ends like that
        assert status in (-number, 128 + number, *([1] if number == signal.SIGINT else []))
    else:
        assert status == 128 + number
        assert f"ended by {number.name}" in program.text
        assert "Traceback" not in program.text


@pytest.mark.integration
def test_make_takes_the_demo_along_when_it_is_killed(data, tmp_path):
    """As `make demo` runs it: make, then a shell that the program replaces."""
    mark = uuid.uuid4().hex
    makefile = tmp_path / "Makefile"
    command = " ".join([sys.executable, str(DEMO), str(data), *options(data, tmp_path)])
    makefile.write_text(f"demo:\n\t@exec {command}\n")
    program = Program(["make", "-f", str(makefile)], **{MARK: mark})
    try:
        program.wait_for("process of its own", 60)
        program.send(signal.SIGKILL)
        program.process.wait(10)
        wait_until(lambda: not marked(mark), 40, f"the end of {marked(mark)}")
    finally:
        for left in marked(mark):
            os.kill(left, signal.SIGKILL)
        program.end()


def test_help_names_the_ways_to_use_it():
    told = subprocess.run(
        [sys.executable, str(DEMO), "--help"], env=environment(), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for words in ("sample that ships", "bop_folder", "--mesh", "demo_out"):
        assert words in told
