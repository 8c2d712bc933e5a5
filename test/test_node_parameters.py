# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The table of parameters, and that the files in the repository are the ones it writes."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from ocdit_ros.node import backend, parameters
from ocdit_ros.node.parameters import OBJECT_PARAMETERS, PARAMETERS, ParameterError, Takes, Type, find
from ocdit_ros.segment import SegmenterSettings

ROOT = Path(__file__).resolve().parents[1]
ROWS = {row.name: row for row in PARAMETERS}


@pytest.mark.parametrize("file, option", [("config/segment.yaml", "--yaml"), ("docs/parameters.md", "--markdown")])
def test_the_files_in_the_repository_are_the_generated_ones(file, option, capsys):
    parameters.main([option])
    assert capsys.readouterr().out == (ROOT / file).read_text(), (
        f"run: python -m ocdit_ros.node.parameters {option} > {file}"
    )


def test_the_yaml_file_holds_every_parameter_at_its_default():
    content = yaml.safe_load((ROOT / "config/segment.yaml").read_text())
    given = content["/**"]["ros__parameters"]
    assert list(given) == [row.name for row in PARAMETERS]
    for name, value in given.items():
        assert find(name).check(value) == (ROWS[name].default or ([""] if value == [""] else ROWS[name].default))
        assert type(value) is type(ROWS[name].default)


def test_every_parameter_is_in_the_reference_page():
    page = (ROOT / "docs/parameters.md").read_text()
    for row in (*PARAMETERS, *OBJECT_PARAMETERS):
        assert f"| `{row.name}` |" in page


def test_names_are_unique_and_descriptions_are_sentences():
    assert len(ROWS) == len(PARAMETERS)
    for row in (*PARAMETERS, *OBJECT_PARAMETERS):
        assert row.description.endswith("."), row.name
        assert row.check(row.default) == row.default


@pytest.mark.parametrize("row", [row for row in PARAMETERS if row.minimum is not None], ids=lambda row: row.name)
def test_bounds_hold(row):
    low, high = (int(row.minimum), int(row.maximum)) if row.type is Type.INTEGER else (row.minimum, row.maximum)
    last = low + (high - low) // row.step * row.step if row.step else high
    assert row.check(low) == low
    assert row.check(last) == last
    for wrong in (low - 1, high + (row.step or 1)):
        with pytest.raises(ParameterError, match=rf"'{row.name}'.*must be"):
            row.check(wrong)


def test_no_bound_lets_nan_through():
    for row in PARAMETERS:
        if row.type is Type.DOUBLE:
            with pytest.raises(ParameterError):
                row.check(math.nan)


@pytest.mark.parametrize(
    "name, value",
    [
        ("score_threshold", "0.5"),
        ("score_threshold", True),
        ("steps", 2.0),
        ("steps", True),
        ("refine", 1),
        ("weights", 3),
        ("objects", "mug"),
        ("objects", ["mug", 3]),
        ("objects", b"mug"),
    ],
)
def test_wrong_types_are_refused_by_name(name, value):
    with pytest.raises(ParameterError, match=rf"parameter '{name}' is .*, but needs "):
        find(name).check(value)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("mode", "straem", "one of stream, trigger"),
        ("image_transport", "theora", "one of raw, compressed"),
        ("device", "gpu", "cuda:N"),
        ("device", "cuda:", "cuda:N"),
        ("objects", ["mug", "a cup"], "a cup"),
        ("cameras", ["left", "2nd"], "2nd"),
        ("selected_object", "a/b", "a/b"),
        ("coarse_size", 500, "multiple of 16"),
    ],
)
def test_wrong_values_are_refused_with_what_is_accepted(name, value, words):
    with pytest.raises(ParameterError, match=words):
        find(name).check(value)


@pytest.mark.parametrize(
    "name, given, taken",
    [
        ("score_threshold", 1, 1.0),
        ("objects", None, []),
        ("objects", ("a", "b"), ["a", "b"]),
        ("device", "cuda:1", "cuda:1"),
        ("objects.mug.scale", 1, 1.0),
    ],
)
def test_values_are_taken_in_their_own_type(name, given, taken):
    value = find(name).check(given)
    assert value == taken
    assert type(value) is type(taken)


def test_the_parameters_of_an_object_are_found_under_its_name():
    row = find("objects.mug-2.mesh")
    assert (row.name, row.type, row.takes) == ("objects.mug-2.mesh", Type.STRING, Takes.RELOAD)
    assert find("objects.mug.scale").default == 1.0
    with pytest.raises(ParameterError, match=r"objects\.mug\.scale"):
        find("objects.mug.scale").check(0.0)


@pytest.mark.parametrize("name", ["use_sim_time", "start_type_description_service", "qos_overrides./image.depth"])
def test_parameters_of_rclpy_are_left_alone(name):
    assert find(name) is None


@pytest.mark.parametrize(
    "name, hint",
    [("score_treshold", "score_threshold"), ("object", "objects"), ("objects.mug.mehs", None), ("xyz", None)],
)
def test_unknown_parameters_are_named_with_a_guess(name, hint):
    with pytest.raises(ParameterError, match=f"no parameter '{name}'") as caught:
        find(name)
    assert (f"did you mean '{hint}'" in str(caught.value)) == (hint is not None)


@pytest.mark.parametrize("row", (*PARAMETERS, *OBJECT_PARAMETERS), ids=lambda row: row.name)
def test_descriptors_say_what_the_table_says(row):
    from rcl_interfaces.msg import ParameterType

    descriptor = row.descriptor()
    assert descriptor.type == getattr(ParameterType, f"PARAMETER_{row.type.name}")
    assert row.description in descriptor.description
    assert descriptor.read_only == (row.takes is Takes.START)
    ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
    assert len(ranges) == (row.minimum is not None)
    if ranges:
        assert (ranges[0].from_value, ranges[0].to_value) == (row.minimum, row.maximum)


def test_defaults_are_those_of_the_segmenter():
    settings = SegmenterSettings()
    for name in backend.SETTINGS:
        assert ROWS[name].default == getattr(settings, name), name
        assert ROWS[name].takes is Takes.NOW


@pytest.mark.parametrize("name", backend.SETTINGS)
def test_the_segmenter_accepts_whatever_the_table_accepts(name):
    row = ROWS[name]
    values = [True, False] if row.type is Type.BOOL else [row.minimum, row.maximum]
    for value in values:
        kind = type(row.default)
        assert getattr(dataclasses.replace(SegmenterSettings(), **{name: kind(value)}), name) == value


def test_apply_settings_changes_only_what_is_different():
    class Holder:
        settings = SegmenterSettings(solver="heun", steps=3)

    values = {**parameters.defaults(), "steps": 3}
    before = Holder.settings
    backend.apply_settings(Holder, values)
    assert Holder.settings is before
    backend.apply_settings(Holder, {**values, "score_threshold": 0.25})
    assert Holder.settings == dataclasses.replace(before, score_threshold=0.25)


def test_empty_names_in_lists_do_not_count():
    assert parameters.names_in({"objects": ["", "mug", " ", "box", "mug"]}, "objects") == ["mug", "box"]


def test_what_the_weights_say_of_themselves_is_told_in_one_line():
    told = backend.describe(
        {"steps": 1000, "ap": {"real": 0.123456, "synthetic": 0.5}, "note": "early"}, "w.safetensors", "cpu"
    )
    assert told == "weights w.safetensors on cpu; steps: 1000; ap: real 0.1235, synthetic 0.5; note: early"
    with_summary = backend.describe({"summary": "trained for an hour", "steps": 1000}, "w.safetensors", "cuda")
    assert with_summary == "weights w.safetensors on cuda; trained for an hour"
    assert "does not say how it was trained" in backend.describe({}, "w.safetensors", "cpu")


def test_a_device_that_is_not_there_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.resolve_device("auto") == "cpu"
    with pytest.raises(backend.BackendError, match="'device' is 'cuda:0'"):
        backend.resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert backend.resolve_device("auto") == "cuda"
    assert backend.resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(backend.BackendError, match="only 2"):
        backend.resolve_device("cuda:2")
