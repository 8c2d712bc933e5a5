# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""BOP result files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as mask_utils

from ocdit_ros.evaluate import submission
from ocdit_ros.evaluate.datasets import ImageKey
from ocdit_ros.evaluate.submission import Detection, ResultFileError


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_run_lengths_decode_to_the_mask(mask):
    rle = submission.run_lengths(mask)
    decoded = mask_utils.decode(mask_utils.frPyObjects(rle, *mask.shape))
    assert np.array_equal(decoded.astype(bool), mask)


def test_round_trip(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:22] = True
    path = tmp_path / submission.file_name("ocdit", "realdev", "test")
    written = [Detection.from_mask(ImageKey(3, 14), 5, 0.25, mask, 1.5)]
    submission.write(path, written)
    (row,) = json.loads(path.read_text())
    assert list(row) == ["scene_id", "image_id", "category_id", "score", "bbox", "segmentation", "time"]
    assert row["bbox"] == [10, 5, 12, 4]
    (read,) = submission.read(path)
    assert np.array_equal(read.mask, mask)
    assert (read.key, read.category_id, read.score, read.box, read.time) == (
        ImageKey(3, 14),
        5,
        0.25,
        (10, 5, 12, 4),
        1.5,
    )


@given(st.sampled_from(["", "v2"]))
def test_file_name_rule(identifier):
    assert submission.file_name("ocdit", "ycbv", "test", identifier).split("_")[:2] == [
        "ocdit",
        "ycbv-test.json" if not identifier else "ycbv-test",
    ]


@pytest.mark.parametrize("method, dataset", [("oc_dit", "ycbv"), ("ocdit", "real_dev"), ("", "ycbv"), ("ocdit", "")])
def test_file_names_that_the_toolkit_would_misread_are_refused(method, dataset):
    with pytest.raises(ValueError, match="file name rule"):
        submission.file_name(method, dataset, "test")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scene_id": "1"}, "no valid 'scene_id'"),
        ({"segmentation": []}, "no valid 'segmentation'"),
        ({"segmentation": {"size": [4, 4]}}, "not in RLE format"),
        ({"segmentation": {"size": [4, 4], "counts": [3]}}, "do not add up"),
    ],
)
def test_entries_that_are_no_detections_are_named(tmp_path, change, message):
    row = {
        "scene_id": 1,
        "image_id": 0,
        "category_id": 1,
        "score": 0.5,
        "segmentation": {"size": [4, 4], "counts": [16]},
        **change,
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(ResultFileError, match=message):
        submission.read(path)
