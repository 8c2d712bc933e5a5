# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: what is written comes back, and every kind of damage is one clear error naming the file."""

import json
import os
import pickle
import struct

import pytest
import torch
from model_fixtures import denoise, live_model, random_query
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ocdit_ros.model import CheckpointError, ModelConfig, load_checkpoint, read_metadata, save_checkpoint
from ocdit_ros.model import checkpoint as checkpoint_module

PROVENANCE = {"scenes": 1200, "validation": {"ap": 0.5}, "note": "größer"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    model = live_model(queries_per_object=2)
    save_checkpoint(model, path, PROVENANCE)
    return path, model


def parts(path):
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def fails(path, *words):
    """Loading raises CheckpointError, in one line, that names the file and says `words`."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    for word in words:
        assert word in message, message


def test_round_trip_is_exact(saved):
    path, model = saved
    loaded = load_checkpoint(path)
    assert loaded.config == model.config and loaded.provenance == PROVENANCE and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    query = random_query(model)
    assert denoise(loaded, query, 2.0).equal(denoise(model, query, 2.0))
    assert read_metadata(path) == (model.config, PROVENANCE)


def test_half_precision_keeps_vectors_and_statistics_in_float32(saved, tmp_path):
    _, model = saved
    path = tmp_path / "half.safetensors"
    save_checkpoint(model, path, dtype=torch.float16)
    tensors, _ = parts(path)
    half = {n for n, t in tensors.items() if t.dtype == torch.float16}
    assert "blocks.0.mlp.0.weight" in half and "backbone.net.conv_stem.weight" in half
    for name in (
        "vae.latent_std",
        "vae.latent_mean",
        "backbone.mean_8",
        "backbone.std_16",
        "noise_embedding.fourier.frequency",
        "blocks.0.mlp.0.bias",
        "backbone.net.bn1.running_var",
    ):
        assert tensors[name].dtype == torch.float32, name
    loaded = load_checkpoint(path)
    assert all(t.dtype == model.state_dict()[n].dtype for n, t in loaded.state_dict().items())
    query = random_query(model)
    torch.testing.assert_close(denoise(loaded, query, 2.0), denoise(model, query, 2.0), rtol=0, atol=0.02)


def test_missing_tensor_is_named(saved, tmp_path):
    tensors, metadata = parts(saved[0])
    del tensors["blocks.1.cross.key_value.weight"]
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    fails(tmp_path / "x.safetensors", "lacks the tensor 'blocks.1.cross.key_value.weight'")


def test_misshapen_tensor_is_named_with_both_shapes(saved, tmp_path):
    tensors, metadata = parts(saved[0])
    tensors["patch_encoding.table"] = tensors["patch_encoding.table"][:32].contiguous()
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    fails(tmp_path / "x.safetensors", "'patch_encoding.table'", "(32, 64, 32)", "(64, 64, 32)")


def test_unexpected_tensor_is_named(saved, tmp_path):
    tensors, metadata = parts(saved[0])
    tensors["blocks.7.extra"] = torch.zeros(3)
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    fails(tmp_path / "x.safetensors", "unexpected tensor 'blocks.7.extra'")


@pytest.mark.parametrize("version", ["0", "2", "99", "x"])
def test_wrong_version_is_named(saved, tmp_path, version):
    tensors, metadata = parts(saved[0])
    save_file(tensors, tmp_path / "x.safetensors", {**metadata, "version": version})
    fails(tmp_path / "x.safetensors", f"version {version}", "reads 1")


def test_truncation_at_any_length_is_an_error(saved, tmp_path):
    data = saved[0].read_bytes()
    header = struct.unpack("<Q", data[:8])[0]
    lengths = {
        0,
        1,
        7,
        8,
        9,
        100,
        header // 2,
        header + 7,
        header + 8,
        header + 9,
        len(data) // 2,
        len(data) - 4,
        len(data) - 1,
    }
    lengths |= {len(data) * i // 40 for i in range(40)}
    path = tmp_path / "cut.safetensors"
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        fails(path)
        with pytest.raises(CheckpointError, match=path.name):
            read_metadata(path)
    path.write_bytes(data + b"\0")
    fails(path)
    path.write_bytes(data)
    load_checkpoint(path)


def test_files_of_other_kinds_are_refused(saved, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    fails(foreign, "not a checkpoint of ocdit_ros")
    save_file({"weight": torch.zeros(2)}, foreign, {"format": "pt"})
    fails(foreign, "not a checkpoint of ocdit_ros")
    text = tmp_path / "notes.safetensors"
    text.write_text("these are not weights\n" * 50)
    fails(text, "safetensors")
    fails(tmp_path / "nowhere.safetensors", "no weights file")
    fails(tmp_path, "no weights file")  # a directory


def test_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    fails(tmp_path / "model.pt", "safetensors")
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    fails(tmp_path / "bomb.pt", "safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "config, word",
    [
        ("{", "configuration"),
        ("[1]", "configuration"),
        ("null", "configuration"),
        ('{"depth": "4"}', "depth"),
        ('{"depht": 4}', "depht"),
        ('{"width": 1.5}', "width"),
        ('{"width": 30, "heads": 4}', "width"),
        ('{"feature_strides": [8, "16"]}', "feature_strides"),
        ('{"feature_strides": [0, 16]}', "feature_strides"),
        ('{"backbone": "resnet9000"}', "resnet9000"),
        ('{"heads": 0}', "heads"),
    ],
)
def test_unusable_configuration_is_named(saved, tmp_path, config, word):
    tensors, metadata = parts(saved[0])
    save_file(tensors, tmp_path / "x.safetensors", {**metadata, "config": config})
    fails(tmp_path / "x.safetensors", word)
    del metadata["config"]
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    fails(tmp_path / "x.safetensors", "config")


def test_configuration_of_an_older_checkpoint_takes_defaults_for_new_fields(saved):
    values = json.loads(saved[1].config.to_json())
    assert ModelConfig.from_json(json.dumps(values)) == saved[1].config
    del values["correlation_width"]
    assert ModelConfig.from_json(json.dumps(values)).correlation_width == ModelConfig().correlation_width


@pytest.mark.parametrize("stage", ["save_file", "replace"])
def test_interrupted_writing_leaves_the_old_file(saved, tmp_path, monkeypatch, stage):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved[0].read_bytes())
    before = path.read_bytes()

    def break_off(*arguments):
        if stage == "save_file":
            arguments[1].write_bytes(b"half of a file")
        raise OSError("disk full")

    monkeypatch.setattr(
        *((checkpoint_module, "save_file") if stage == "save_file" else (checkpoint_module.os, "replace")), break_off
    )
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(live_model(seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # nothing half-written beside it


def test_new_file_appears_only_by_rename(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    seen = []
    inner = os.replace
    monkeypatch.setattr(
        checkpoint_module.os,
        "replace",
        lambda a, b: seen.append((path.exists(), a.parent == path.parent)) or inner(a, b),
    )
    save_checkpoint(saved[1], path)
    assert seen == [(False, True)]
    load_checkpoint(path)
