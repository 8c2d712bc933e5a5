# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Images of several cameras at once: one batch of the network, and for each image what it gets alone."""

import dataclasses

import numpy as np
import pytest
from model_fixtures import firm_model
from segment_oracle import templates

from ocdit_ros.model import SamplerSettings
from ocdit_ros.segment import Segmenter, SegmenterSettings
from ocdit_ros.segment.network import Network
from ocdit_ros.templates import TemplateCache

SMALL = SegmenterSettings(
    score_threshold=0.0, coarse_size=64, crop_size=48, min_pixels=1, proposal_threshold=0.0, max_crops=4, steps=2
)


def texture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return firm_model()


@pytest.fixture
def segmenter(model, tmp_path):
    one = Segmenter(model, SMALL, TemplateCache(tmp_path))
    for n in range(3):
        one.add_templates(templates(f"object {n}"))
    return one


def runs(segmenter):
    """Numbers of images and rows of every batch from now on."""
    network, seen = segmenter.network, []
    run = network.run

    def watched(images, rows, *rest, **named):
        seen.append((len(images), len(rows)))
        return run(images, rows, *rest, **named)

    network.run = watched
    return seen


@pytest.mark.parametrize("changes", [
    {}, {"refine": False}, {"ensemble": 2, "augmentations": 2}, {"group_size": 2}, {"batch_tokens": 20},
    {"refine": False, "ensemble": 2, "augmentations": 2, "steps": 4, "solver": "heun"},
])  # fmt: skip
def test_each_image_gives_what_it_gives_alone(segmenter, changes):
    segmenter.settings = dataclasses.replace(SMALL, **changes)
    images = [texture(48, 64, seed) for seed in range(3)]
    alone = [segmenter.segment(one) for one in images]
    together = segmenter.segment_many(images)
    assert any(alone)
    for one, other in zip(alone, together, strict=True):
        assert [(i.name, i.object_id) for i in one] == [(i.name, i.object_id) for i in other]
        np.testing.assert_allclose([i.score for i in one], [i.score for i in other], atol=1e-4)
        for a, b in zip(one, other, strict=True):
            assert (a.mask != b.mask).mean() < 2e-3  # rounding may move a pixel of the border


def test_images_of_one_size_are_one_batch_and_others_have_their_own(segmenter):
    seen = runs(segmenter)
    segmenter.settings = dataclasses.replace(SMALL, refine=False, augmentations=1)
    segmenter.segment_many([texture(48, 64), texture(48, 64, 1)])
    assert seen == [(2, 2)]
    seen.clear()
    results = segmenter.segment_many([texture(48, 64), texture(64, 48), texture(48, 64, 1)])
    assert sorted(seen) == [(1, 1), (2, 2)]
    assert [one[0].mask.shape for one in results if one] == [(48, 64), (64, 48), (48, 64)]


def test_crops_of_all_images_are_one_batch_whatever_the_sizes(segmenter):
    seen = runs(segmenter)
    segmenter.segment_many([texture(48, 64), texture(64, 48)])
    assert len(seen) == 3  # two coarse looks, one batch of crops
    assert seen[2][0] >= 2


def test_nothing_in_nothing_out(segmenter):
    assert segmenter.segment_many([]) == []
    assert segmenter.segment_many([texture(48, 64)] * 2, []) == [[], []]


def test_the_noise_of_a_frame_does_not_depend_on_the_others(model):
    """Without it the second camera would see other noise than the first, and other results than alone."""
    network = Network(model)
    known = [network.onboard("a", 0.1, network.featurize(templates("a")))]
    picture = texture(48, 64)
    ask = {"sampler": SamplerSettings(1, "euler", 2), "targets": 1, "slots": [[0], [0]], "rows": [known, known]}
    same = network.run([picture, picture], image_of_row=[0, 1], frame_of_row=[0, 1], **ask).confidence
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    shared = network.run([picture, picture], image_of_row=[0, 1], **ask).confidence
    assert np.abs(shared[0] - shared[1]).max() > 1e-3
