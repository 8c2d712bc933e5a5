# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit templates`, as a user calls it."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from templates_meshes import box, textured_blob, write_bop_ply, write_obj

from ocdit_ros import cli
from ocdit_ros.segment import Segmenter
from ocdit_ros.segment.network import Network
from ocdit_ros.templates import MeshError, ObjectSpec, TemplateCache, cache, command, load_mesh, render, viewpoints
from ocdit_ros.templates.sheet import contact_sheet

VERTICES, FACES, UV, TEXTURE = textured_blob(8, 16)


def ocdit(*words):
    parser = argparse.ArgumentParser(prog="ocdit")
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["templates", *map(str, words)])
    return args.run(args)


@pytest.fixture
def meshes(tmp_path):
    (tmp_path / "other").mkdir()
    return [
        write_bop_ply(tmp_path / "blob.ply", VERTICES * 1000, FACES, UV, TEXTURE),
        write_obj(tmp_path / "other" / "blob.obj", VERTICES * 1000, FACES, UV, TEXTURE),
        write_bop_ply(tmp_path / "box.ply", box().vertices * 1000, box().faces),
    ]


def test_contact_sheets_and_metadata(tmp_path, meshes, capsys):
    options = ["--scale", "0.001", "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--jobs", "1"]
    assert ocdit(*meshes, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["blob", "blob_2", "box"]
    assert all("rendered in" in line for line in lines)
    for name, mesh in zip(("blob", "blob_2", "box"), meshes, strict=True):
        sheet = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert sheet.shape[1] > 4 * 128
        assert sheet.shape[0] > 3 * 128
        metadata = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert metadata["name"] == name
        assert metadata["mesh"] == str(mesh)
        assert metadata["diameter"] == pytest.approx(load_mesh(mesh, 0.001).diameter)
        np.testing.assert_allclose(metadata["rotations"], viewpoints(12), atol=1e-6)
        assert len(metadata["coverage"]) == 12
        assert metadata["settings"]["size"] == 128
    assert ocdit(*meshes, *options) == 0
    assert capsys.readouterr().out.count("from the cache") == 3


def test_sheet_shows_the_templates(meshes):
    templates = render(load_mesh(meshes[0], 0.001), viewpoints(7), name="blob")
    sheet = np.asarray(contact_sheet(templates, columns=3))
    for n, (image, mask) in enumerate(zip(templates.images, templates.masks, strict=True)):
        top, left = 26 + n // 3 * 132, 4 + n % 3 * 132
        seen = sheet[top : top + 128, left : left + 128]
        np.testing.assert_array_equal(seen[mask == 255], image[mask == 255])
        assert (seen[mask == 0] == 38).all()
    assert (sheet[:20] > 200).any()  # the title


def test_worker_processes(tmp_path, meshes, capsys):
    bad = tmp_path / "bad.ply"
    bad.write_text("no mesh")
    options = ["--scale", "0.001", "--cache", tmp_path / "cache", "--jobs", "2", "--views", "2", "--size", "32"]
    assert ocdit(*meshes, bad, tmp_path / "nothing.stl", *options) == 1
    out, err = capsys.readouterr()
    assert out.count("rendered in") == 3
    assert f"{bad}: it is not a PLY file" in err
    assert f"{tmp_path / 'nothing.stl'}: it does not exist." in err
    assert "Traceback" not in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_on_a_terminal(tmp_path, meshes, monkeypatch, capsys):
    options = ["--scale", "0.001", "--cache", tmp_path / "cache", "--jobs", "1", "--views", "2", "--size", "32"]
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert ocdit(*meshes, *options) == 0
    assert "/3 [" in sys.stderr.getvalue()  # fast ones are not all drawn
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert ocdit(*meshes, *options) == 0
    assert sys.stderr.getvalue() == ""  # not into files and pipes
    assert capsys.readouterr().out.count("blob_2:") == 2


def test_features_are_those_of_the_segmenter(tmp_path, meshes, monkeypatch, capsys):
    """After `ocdit templates --features` a Segmenter needs neither renderer nor backbone."""
    words = ["templates", *meshes[:1], "--scale", "0.001", "--features", "--cache", tmp_path / "cache"]
    assert cli.main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.count("rendered in") == 1
    segmenter = Segmenter.from_checkpoint(cache=TemplateCache(tmp_path / "cache"))
    monkeypatch.setattr(cache, "render", lambda *_: pytest.fail("rendered again"))
    monkeypatch.setattr(Network, "featurize", lambda *_: pytest.fail("went through the backbone again"))
    segmenter.add_object(ObjectSpec("a", str(meshes[0]), 0.001))
    with pytest.raises(BaseException, match="rendered again"):  # so the guard works
        segmenter.add_object(ObjectSpec("c", str(meshes[2]), 0.001))
    # What worker processes are sent; starting them with PyTorch takes longer than this test may.
    assert pickle.loads(pickle.dumps(cli._featurizer)) is cli._featurizer


def test_features_go_with_their_weights(tmp_path, meshes, capsys):
    assert cli.main(["templates", str(meshes[0]), "--features", "--views", "3", "--cache", str(tmp_path)]) == 2
    words = ["templates", str(meshes[0]), "--features", "--weights", str(meshes[0]), "--cache", str(tmp_path)]
    assert cli.main(words) == 1
    assert str(meshes[0]) in capsys.readouterr().err


def test_list_and_clear(tmp_path, meshes, capsys):
    where = ["--cache", tmp_path / "cache"]
    assert ocdit(meshes[0], "--views", "2", "--size", "32", *where) == 0
    assert ocdit("--list", *where) == 0
    out = capsys.readouterr().out
    assert str(meshes[0]) in out
    assert f"1 in {tmp_path / 'cache'}" in out
    assert ocdit("--clear", "--list", *where) == 0
    out = capsys.readouterr().out
    assert "Removed 1 entry" in out
    assert "0 in" in out


def test_default_place_is_the_user_cache(tmp_path, meshes, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ocdit(meshes[0], "--views", "2", "--size", "32") == 0
    assert len(list((tmp_path / "xdg" / "ocdit_ros" / "templates").glob("*.templates"))) == 1


def test_nothing_to_do(tmp_path, capsys):
    assert ocdit("--cache", tmp_path) == 2
    assert "at least one MESH" in capsys.readouterr().err


def test_settings_that_cannot_be(tmp_path, meshes, capsys):
    assert ocdit(meshes[0], "--size", "4", "--cache", tmp_path) == 2
    assert "size" in capsys.readouterr().err
    assert ocdit(meshes[0], "--max-faces", "50", "--cache", tmp_path) == 2
    assert "max_faces" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--scale", "0"], ["--scale", "-1"], ["--views", "0"], ["--jobs", "0"]])
def test_refused_by_the_parser(words, meshes):
    with pytest.raises(SystemExit) as caught:
        ocdit(meshes[0], *words)
    assert caught.value.code == 2


def test_out_is_a_file(tmp_path, meshes, capsys):
    (tmp_path / "file").write_text("")
    assert ocdit(meshes[0], "--out", tmp_path / "file", "--cache", tmp_path / "cache") == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def real_models() -> list[Path]:
    root = os.environ.get("OCDIT_SHARED_DATA", "")
    return sorted(Path(root, "real_dev", "models").glob("obj_*.ply")) if root else []


@pytest.mark.skipif(not real_models(), reason="OCDIT_SHARED_DATA does not lead to real_dev/models")
def test_scanned_objects():
    """Sizes as BOP gives them, and templates that are neither empty, dark nor grey where the scan is coloured."""
    info = json.loads((real_models()[0].parent / "models_info.json").read_text())
    for path in real_models():
        mesh = load_mesh(path, 0.001)
        expected = info[str(int(path.stem[4:]))]["diameter"] / 1000
        assert mesh.diameter == pytest.approx(expected, rel=1e-4)
        templates = render(mesh, viewpoints(4))
        assert 0.05 < (templates.masks == 255).mean() < 0.8
        pixels = templates.images[templates.masks == 255]
        assert 30 < pixels.mean() < 230
        assert pixels.std() > 8
    with pytest.raises(MeshError, match="scale"):
        load_mesh(real_models()[0], 1e6)
