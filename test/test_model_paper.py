# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""The paper's own configuration: its size, its numbers, one evaluation; and its ten steps where a reader looks."""

import importlib
import re

import pytest
import torch

import ocdit_ros.model
from ocdit_ros.model import ModelConfig, OCDiT, SamplerSettings, TemplateFeatures


def count(module):
    """Parameters of a module, in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_paper_preset_has_322_million_parameters(record_property):
    with torch.device("meta"):
        model = OCDiT(ModelConfig.preset("paper"))
    assert count(model.backbone) == pytest.approx(22.06, rel=0.01)  # DINOv2 ViT-S/14
    assert count(model.vae) == pytest.approx(14.0, rel=0.03)
    denoiser = count(model) - count(model.backbone) - count(model.vae)
    record_property("parameters", denoiser)
    assert denoiser == pytest.approx(322, rel=0.03)


def test_all_twelve_blocks_take_eight_objects_of_twelve_templates_at_480_by_640():
    # shapes alone: the numbers take minutes on a CPU (`benchmark/model.py paper` computes them, the CUDA test too)
    with torch.device("meta"):
        model = OCDiT(ModelConfig.preset("paper")).eval()
        templates = model.template_features(torch.empty(8, 12, 3, 128, 128), torch.empty(8, 12, 128, 128))
        conditioning = model.condition(templates, torch.empty(8))
        features = model.image_features(torch.empty(1, 3, 480, 640))
        denoised = model.denoise(torch.empty(1, 8, 32, 30, 40), torch.empty(1), features, conditioning)
    assert len(conditioning.keys) == 12 and conditioning.keys[11].shape == (1, 8, 16, 12 * 64, 64)
    assert denoised.shape == (1, 8, 32, 30, 40)


def test_paper_preset_has_the_papers_numbers():
    config = ModelConfig.preset("paper")
    expected = {
        "width": 1024,
        "depth": 12,
        "heads": 16,
        "latent_channels": 32,
        "stride": 16,
        "train_objects": 8,
        "templates": 12,
        "template_size": 128,
        "noise_mean": -0.4,
        "noise_std": 1.2,
        "sigma_data": 0.5,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "rho": 9.0,
        "queries_per_object": 1,
        "self_attention": "joint",
        "correlation_width": 0,
        "size_encoding": False,
        "backbone": "vit_small_patch14_dinov2",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert SamplerSettings(17, "heun", ensemble=3, churn=0.0).steps == 17


@pytest.mark.timeout(1200)  # twenty seconds of one free core
@pytest.mark.parametrize(
    "device, depth",
    [
        ("cpu", 1),  # full width, grid and token counts, one of the twelve equal blocks
        pytest.param(
            "cuda",
            12,
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
            ],
        ),
    ],
)
def test_eight_objects_of_twelve_templates_at_480_by_640(device, depth, record_property):
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset("paper", depth=depth)).eval()
    assert not any(block.modulation.linear.weight.any() for block in model.blocks)  # adaLN-zero
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.linear.weight.normal_(std=0.02)
        model.final[-1].weight.normal_(std=0.02)
    model.to(device)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    masks = ((x**2 + y**2) < 0.7).float().expand(12, -1, -1)
    with torch.inference_mode():
        one = model.template_features(torch.rand(12, 3, 128, 128, device=device), masks.to(device))
        others = [TemplateFeatures((one.maps[0] + torch.randn_like(one.maps[0]),), one.coverage) for _ in range(7)]
        templates = TemplateFeatures.stack([one, *others])
        assert templates.maps[0].shape == (8, 12, 384, 8, 8)
        conditioning = model.condition(templates, torch.full((8,), 0.1))
        tokens = int((templates.coverage[0, 0] >= model.config.min_coverage).sum())
        assert conditioning.valid.sum(-1).tolist() == [[12 * tokens] * 8] and 30 < tokens < 64
        features = model.image_features(torch.rand(1, 3, 480, 640, device=device))
        assert features[0].shape == (1, 384, 30, 40)
        noisy = 80 * torch.randn(1, 8, 32, 30, 40, device=device)
        denoised = model.denoise(noisy, torch.tensor([80.0], device=device), features, conditioning)
        assert denoised.shape == (1, 8, 32, 30, 40) and bool(denoised.isfinite().all())
        assert float(denoised.std()) > 0.01
        record_property("output", "x".join(map(str, denoised.shape)))


def test_the_ten_steps_are_listed_in_order_and_every_name_exists(record_property):
    text = ocdit_ros.model.__doc__
    assert re.findall(r"^ ?(\d+)\. ", text, re.MULTILINE) == [str(i) for i in range(1, 11)]
    names = re.findall(r"`(\w+)\.(\w+)(?:\.(\w+))?`", text)
    assert len(names) >= 14
    for module, name, attribute in names:
        if name == "py":
            importlib.import_module(f"ocdit_ros.model.{module}")
            continue
        found = getattr(importlib.import_module(f"ocdit_ros.model.{module}"), name)
        if attribute:
            getattr(found, attribute)
    record_property("steps", 10)


def test_public_names_are_those_other_rooms_are_promised():
    promised = {
        "ModelConfig",
        "OCDiT",
        "Conditioning",
        "sample",
        "SamplerSettings",
        "MaskVAE",
        "load_checkpoint",
        "save_checkpoint",
        "CheckpointError",
    }
    assert promised <= set(ocdit_ros.model.__all__)
    assert all(hasattr(ocdit_ros.model, name) for name in ocdit_ros.model.__all__)
