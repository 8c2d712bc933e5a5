# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""From parameters to objects: a BOP folder, meshes of one's own, both; and when to read them again."""

import json
import os

import pytest

from ocdit_ros.node import parameters
from ocdit_ros.node.objects import ObjectsError, catalogue, check_size, fingerprint, read_models_dir
from ocdit_ros.templates import MeshError, ObjectSpec


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (
        "obj_000001.ply",
        "obj_000001.obj",
        "obj_000002.obj",
        "obj_000010.ply",
        "models_info.json",
        "obj_x.ply",
    ):
        (folder / name).write_text("content does not matter here")
    return folder


def read(own=None, **values):
    own = own or {}
    return catalogue(
        {**parameters.defaults(), **values},
        lambda name, field: own.get(f"{name}.{field}", "" if field == "mesh" else 1.0),
    )


def test_a_bop_folder_in_the_order_of_its_numbers(models):
    specs = read(models_dir=str(models))
    assert [spec.name for spec in specs] == ["obj_000001", "obj_000002", "obj_000010"]
    assert specs[0] == ObjectSpec("obj_000001", str(models / "obj_000001.ply"), 0.001)
    assert specs[1].mesh.endswith("obj_000002.obj")


def test_names_json_gives_the_names(models):
    (models / "names.json").write_text(json.dumps({"1": "mug", "10": "box", "99": "not here"}))
    assert list(read_models_dir(str(models), 1.0)) == ["mug", "obj_000002", "box"]


def test_a_choice_of_the_folder_in_the_order_asked_for(models):
    specs = read(models_dir=f"file://{models}", objects=["obj_000010", "", "obj_000001"], models_scale=1.0)
    assert [(spec.name, spec.scale) for spec in specs] == [("obj_000010", 1.0), ("obj_000001", 1.0)]


def test_objects_with_meshes_of_their_own_beside_those_of_the_folder(models):
    own = {
        "drill.mesh": "package://robot/meshes/drill.stl",
        "drill.scale": 0.01,
        "obj_000001.mesh": "/other.ply",
    }
    specs = read(own, models_dir=str(models), objects=["drill", "obj_000002", "obj_000001"])
    assert specs[0] == ObjectSpec("drill", "package://robot/meshes/drill.stl", 0.01)
    assert specs[1].mesh == str(models / "obj_000002.obj")
    assert specs[2] == ObjectSpec("obj_000001", "/other.ply", 1.0)


def test_a_package_uri_as_folder(models, tmp_path, monkeypatch):
    share = tmp_path / "prefix" / "share" / "parts"
    share.mkdir(parents=True)
    models.rename(share / "models")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "prefix"))
    assert len(read(models_dir="package://parts/models")) == 3


@pytest.mark.parametrize(
    "values, own, words",
    [
        ({}, {}, ["no object", "models_dir", "objects"]),
        ({"objects": ["mug"]}, {}, ["'objects'", "'mug'", "objects.mug.mesh"]),
        ({"models_dir": "{models}", "objects": ["mug"]}, {}, ["'mug'", "objects.mug.mesh", "obj_000002"]),
        ({"models_dir": "{models}/nowhere"}, {}, ["models_dir", "nowhere", "not a folder"]),
        ({"models_dir": "{models}/obj_000001.ply"}, {}, ["models_dir", "not a folder"]),
        ({"models_dir": "{models}/.."}, {}, ["models_dir", "obj_NNNNNN.ply"]),
        ({"models_dir": "http://x/y"}, {}, ["models_dir", "http"]),
        ({"models_dir": "package://no_such_package/x"}, {}, ["models_dir", "no_such_package"]),
    ],
)
def test_what_is_missing_is_named(models, values, own, words):
    values = {k: v.format(models=models) if isinstance(v, str) else v for k, v in values.items()}
    with pytest.raises(ObjectsError) as caught:
        read(own, **values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "cannot be read"),
        ("[]", "must map"),
        ('{"1": 3}', "must map"),
        ('{"1": "a", "2": "a"}', "more than one"),
    ],
)
def test_a_bad_names_file_is_named(models, content, words):
    (models / "names.json").write_text(content)
    with pytest.raises(ObjectsError, match=words) as caught:
        read(models_dir=str(models))
    assert "names.json" in str(caught.value)


def test_a_fingerprint_changes_with_mesh_scale_and_the_files_of_the_mesh(models):
    spec = ObjectSpec("mug", str(models / "obj_000001.obj"), 1.0)
    first = fingerprint(spec)
    assert fingerprint(spec) == first
    assert fingerprint(ObjectSpec("mug", spec.mesh, 0.1)) != first
    assert fingerprint(ObjectSpec("mug", str(models / "obj_000002.obj"), 1.0)) != first
    (models / "obj_000001.png").write_text("a texture")
    second = fingerprint(spec)
    assert second != first
    os.utime(models / "obj_000001.obj", (1, 1))
    assert fingerprint(spec) != second
    (models / "obj_000002.mtl").write_text("of another object")
    assert fingerprint(spec) == fingerprint(spec)


def test_a_fingerprint_of_a_mesh_that_is_not_there_is_still_one(tmp_path):
    assert fingerprint(ObjectSpec("mug", str(tmp_path / "none" / "mug.ply")))
    with pytest.raises(MeshError):
        fingerprint(ObjectSpec("mug", "ftp://host/mug.ply"))


@pytest.mark.parametrize(
    "diameter, fine", [(0.05, True), (2.0, True), (150.0, False), (0.00015, False), (float("nan"), False)]
)
def test_an_impossible_size_is_a_wrong_unit(diameter, fine):
    if fine:
        check_size("mug", diameter, 1.0)
        return
    with pytest.raises(ObjectsError, match=r"'mug'.*scale"):
        check_size("mug", diameter, 1.0)
