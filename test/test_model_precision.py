# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Reduced precision, compilation and CUDA give the masks of float32 on the CPU, measured with the weights that ship.

Untrained weights would compare noise with noise, so these tests need trained ones and a scene with objects in it.
"""

import copy
import shutil

import numpy as np
import pytest
import torch
from model_fixtures import SHIPPED
from model_scenes import pasted_scene, template_sets

from ocdit_ros.model import SamplerSettings, load_checkpoint, sample

pytestmark = pytest.mark.timeout(1200)  # half a minute of one free core
trained = pytest.mark.skipif(not SHIPPED, reason="there are no trained weights in weights/")
cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]
SETTINGS = SamplerSettings(steps=4, solver="euler", ensemble=3)
SCENES, OBJECTS = (0,), 3  # bfloat16 is emulated, slowly, on most CPUs


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(SHIPPED[0]).requires_grad_(False)


def confidences(model, device="cpu", denoiser=None):
    """Mean confidence [scenes, N_O, H, W] of the ensemble, from pixels on; the noise is the same everywhere."""
    count = model.config.templates
    sets = template_sets(OBJECTS)
    images = torch.stack([torch.from_numpy(s.images[:count]) for s in sets]).movedim(-1, -3).float() / 255
    masks = torch.stack([torch.from_numpy(s.masks[:count]) for s in sets]).float() / 255
    conditioning = model.condition(
        model.template_features(images.to(device), masks.to(device)), torch.tensor([s.diameter for s in sets])
    )
    scenes = torch.stack([pasted_scene(s, count=OBJECTS)[0] for s in SCENES]).to(device)
    if denoiser:
        model.denoise_in_context, plain = denoiser, model.denoise_in_context
    latents = sample(model, model.image_features(scenes), conditioning, SETTINGS, torch.Generator().manual_seed(0))
    if denoiser:
        model.denoise_in_context = plain
    queries = latents[:, :, :: model.config.queries_per_object]
    return model.confidence(queries).float().mean(1).cpu()


@pytest.fixture(scope="module")
def expected(model):
    """Float32 on the CPU; its masks are worth comparing: they find the objects."""
    with torch.inference_mode():
        found = confidences(model)
    truth = torch.stack([pasted_scene(s, count=OBJECTS)[1] for s in SCENES])
    values = iou(found > 0.5, truth)
    assert float(np.mean(values)) > 0.5, values
    return found


def iou(a, b):
    """IoU of each pair of masks [..., H, W] of which at least one shows something."""
    a, b = a.flatten(0, -3).flatten(1), b.flatten(0, -3).flatten(1)
    union = (a | b).sum(1)
    return ((a & b).sum(1)[union > 0] / union[union > 0]).tolist()


def assert_same_masks(found, expected, record):
    values = iou(found > 0.5, expected > 0.5)
    assert len(values) == len(SCENES) * OBJECTS
    record("iou", float(np.mean(values)))
    assert float(np.mean(values)) >= 0.99, values


@trained
def test_bfloat16_autocast_gives_the_masks_of_float32(model, expected, record_property):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = confidences(model)
    assert not found.equal(expected)  # it did compute in another precision
    assert_same_masks(found, expected, record_property)


@trained
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_compiled_blocks_give_the_masks_of_the_plain_ones(model, expected, record_property):
    # block by block, as PyTorch advises for networks that repeat one; the CUDA test compiles the whole network
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        found = confidences(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1  # it did compile
    assert_same_masks(found, expected, record_property)


@pytest.mark.parametrize("marked", [pytest.param(True, marks=[*cuda, trained])])
def test_cuda_gives_the_masks_of_the_cpu(model, expected, marked, record_property):
    other = load_checkpoint(SHIPPED[0], "cuda").requires_grad_(False)
    with torch.inference_mode():
        assert_same_masks(confidences(other, "cuda"), expected, record_property)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert_same_masks(confidences(other, "cuda"), expected, record_property)
    with torch.inference_mode():
        compiled = torch.compile(other.denoise_in_context)
        assert_same_masks(confidences(other, "cuda", compiled), expected, record_property)
