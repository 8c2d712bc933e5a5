# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The `ocdit` command, with the smallest network and random weights."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ocdit_ros import cli
from ocdit_ros.model import ModelConfig, OCDiT, save_checkpoint

CUBE = "".join(f"v {x} {y} {z}\n" for x in (0, 40) for y in (0, 60) for z in (0, 80)) + "".join(
    f"f {a} {b} {c}\n"
    for a, b, c in [(1, 2, 4), (1, 4, 3), (5, 7, 8), (5, 8, 6), (1, 5, 6), (1, 6, 2), (3, 4, 8), (3, 8, 7), (1, 3, 7),
                    (1, 7, 5), (2, 6, 8), (2, 8, 4)]
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weights, a BOP data set of one scene with two images, and an image of its own."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset("tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_checkpoint(model, root / "tiny.safetensors")
    models, scene = root / "set" / "models", root / "set" / "test" / "000001"
    for folder in (models, scene / "rgb", scene / "mask_visib"):
        folder.mkdir(parents=True)
    for number in (1, 2):
        (models / f"obj_{number:06d}.obj").write_text(CUBE)
    (models / "names.json").write_text(json.dumps({"1": "crate"}))
    generator = np.random.default_rng(0)
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 255
    for image in range(2):
        picture = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        picture.save(scene / "rgb" / f"{image:06d}.png")
        Image.fromarray(mask).save(scene / "mask_visib" / f"{image:06d}_000000.png")
    (scene / "scene_gt.json").write_text(json.dumps({str(n): [{"obj_id": 1}] for n in range(2)}))
    (scene / "scene_gt_info.json").write_text(json.dumps({str(n): [{"visib_fract": 1.0}] for n in range(2)}))
    picture.save(root / "photo.jpg")
    return root


@pytest.fixture
def network(place):
    return ["--weights", str(place / "tiny.safetensors"), "--cache", str(place / "cache"), "--device", "cpu",
            "--coarse-size", "64", "--crop-size", "32"]  # fmt: skip


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from ocdit_ros import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'cv2', 'open3d', 'scipy', 'pycocotools', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    for command in ("templates", "segment", "evaluate", "train", "benchmark"):
        assert command in result.stdout


def test_without_a_command_it_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert "segment" in capsys.readouterr().out


def test_segment_writes_overlay_labels_json_and_trace(place, network, tmp_path, capsys):
    words = ["segment", str(place / "photo.jpg"), "--models", str(place / "set" / "models"), "--threshold", "0",
             "--out", str(tmp_path), "--trace", "--trace-steps", "3", *network]  # fmt: skip
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "instances in" in printed
    rgb = np.asarray(Image.open(tmp_path / "photo_overlay.png"))
    labels = np.asarray(Image.open(tmp_path / "photo_labels.png"))
    assert rgb.shape == (48, 64, 3)
    assert labels.shape == (48, 64)
    coco = json.loads((tmp_path / "photo.json").read_text())
    assert labels.max() == len(coco["annotations"])
    for annotation in coco["annotations"]:
        assert annotation["area"] == (labels == annotation["id"]).sum()
        assert sum(annotation["segmentation"]["counts"]) == 48 * 64
    with Image.open(tmp_path / "photo_trace.webp") as animation:
        assert 2 <= animation.n_frames <= 3  # equal neighbours are merged


def test_meshes_are_called_like_their_files(place, network, tmp_path):
    mesh = tmp_path / "crate.obj"
    mesh.write_text(CUBE)
    words = ["segment", str(place / "photo.jpg"), "--mesh", str(mesh), "--scale", "0.001", "--threshold", "0",
             "--out", str(tmp_path), *network]  # fmt: skip
    assert cli.main(words) == 0
    coco = json.loads((tmp_path / "photo.json").read_text())
    assert {c["name"] for c in coco["categories"]} <= {"crate"}


@pytest.mark.parametrize("words, message", [
    (["missing.png", "--models", "{root}/set/models"], "There is no image 'missing.png'"),
    (["{root}/tiny.safetensors", "--models", "{root}/set/models"], "cannot be read as an image"),
    (["{root}/photo.jpg", "--models", "{root}"], "has no mesh named obj_NNNNNN.ply"),
    (["{root}/photo.jpg", "--models", "{root}/none"], "is not a folder"),
    (["{root}/photo.jpg", "--mesh", "{root}/none.ply"], "none.ply"),
    (["{root}/photo.jpg", "--mesh", "{root}/a/x.ply", "{root}/b/x.ply"], "Two meshes are called 'x'"),
    (["{root}/photo.jpg", "{root}/photo.jpg", "--models", "{root}/set/models"], "Two images have the same name"),
    (["{root}/photo.jpg", "--models", "{root}/set/models", "--objects", "cup"], "no object 'cup'; there are crate"),
    (["{root}/photo.jpg", "--models", "{root}/set/models", "--scale", "-1"], "--scale is -1"),
    (["{root}/photo.jpg", "--models", "{root}/set/models", "--steps", "0"], "steps is 0"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(place, network, words, message, capsys):
    assert cli.main(["segment", *(w.format(root=place) for w in words), *network]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("ocdit: ")
    assert error.count("\n") == 1


def test_a_missing_checkpoint_is_named(place, capsys):
    words = [
        "segment",
        str(place / "photo.jpg"),
        "--models",
        str(place / "set" / "models"),
        "--weights",
        "none.safetensors",
    ]
    assert cli.main(words) == 1
    assert "no weights file at 'none.safetensors'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ocdit", "correlation"])
def test_evaluate_writes_result_scores_and_report(place, network, tmp_path, method, capsys):
    words = ["evaluate", str(place / "set"), "--method", method, "--out", str(tmp_path), *network]
    assert cli.main(words) == 0
    assert "AP " in capsys.readouterr().out
    assert (tmp_path / f"{method}_set-test.json").is_file()
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 2
    assert "crate" in (tmp_path / "report.html").read_text()
    assert cli.main(words) == 1
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0


def test_workers_give_the_same_scores(place, network, tmp_path):
    words = ["evaluate", str(place / "set"), *network]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "ocdit_ros.cli", *words, "--workers", "2", "--out", str(tmp_path / "two")]
    result = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "two").glob("records-*.jsonl"))) == 2
    one, two = (json.loads((tmp_path / n / "scores.json").read_text()) for n in ("one", "two"))
    for key in ("AP", "AP50", "AR", "found", "wrong", "absent_fired"):
        assert one[key] == two[key]


def test_evaluate_names_what_is_no_data_set(tmp_path, network, capsys):
    assert cli.main(["evaluate", str(tmp_path), *network]) == 1
    assert "has no folder 'test'" in capsys.readouterr().err


def test_benchmark_times_growing_catalogues(network, tmp_path, capsys):
    file = tmp_path / "times.json"
    words = ["benchmark", "--size", "64x48", "--objects", "1", "3", "--repeat", "1", "--json", str(file), *network]
    assert cli.main(words) == 0
    assert "coarse" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert [row["objects"] for row in rows] == [1, 3]
    assert all(row["seconds"]["total"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert cli.main(["benchmark", "--size", "big", *network]) == 1


@pytest.mark.parametrize("command", ["train", "templates"])
def test_commands_of_other_rooms_are_reached(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"ocdit {command}" in capsys.readouterr().out


@pytest.mark.parametrize("absent", ["many", "5-2", "-1", "1-2-3"])
def test_a_number_of_absent_objects_that_is_none_is_refused(absent, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path), f"--absent={absent}"])
    assert "neither a number of objects nor a range" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["much", "1.5", "0.6-0.2", "0-0.5-1", "-0.1", ""])
def test_shares_that_are_none(share, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "somewhere", f"--asked={share}"])
    assert "neither a share in 0..1 nor a range" in capsys.readouterr().err
