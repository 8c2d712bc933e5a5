# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Backbones: every family on the /16 grid, the model's own normalisation, local weights only."""

import socket

import pytest
import timm
import torch
from model_fixtures import one_backbone
from safetensors.torch import load_file, save_file

from ocdit_ros.model import Backbone, ModelConfig


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a backbone went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


FAMILIES = [
    ("tf_efficientnet_lite0", (8, 16), (67, 112)),
    ("tf_efficientnet_lite0", (16,), (179,)),
    ("vit_small_patch14_dinov2", (16,), (384,)),
    ("vit_small_patch16_dinov3", (16,), (384,)),
    ("resnet18", (8, 16), (195, 256)),
    ("swin_tiny_patch4_window7_224", (16,), (675,)),
]


@pytest.mark.parametrize("name, strides, channels", FAMILIES)
def test_features_lie_on_the_latent_grid(name, strides, channels):
    backbone = one_backbone(name, strides)
    assert backbone.channels == channels and not backbone.training
    for height, width in ((48, 80), (112, 64)):
        maps = backbone(torch.rand(2, 3, height, width))
        assert [tuple(m.shape) for m in maps] == [(2, c, height // s, width // s) for c, s in zip(channels, strides)]
        assert all(bool(m.isfinite().all()) and not m.requires_grad for m in maps)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "tf_efficientnet_lite0"])
def test_a_change_of_the_image_shows_at_its_place(name):
    backbone = one_backbone(name, (16,))
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    changed = image.clone()
    changed[:, :, 64:80, 112:128] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    difference = (backbone(changed)[0] - backbone(image)[0]).norm(dim=1)[0]
    y, x = divmod(int(difference.argmax()), 10)
    reach = 0 if backbone.is_plain else 1  # an untrained convolutional net may weigh its neighbours more
    assert abs(y - 4) <= reach and abs(x - 7) <= reach
    assert float(difference[y, x]) > 5 * float(difference[0, 0])


def test_patch_14_sees_the_image_resized_so_that_the_grids_agree():
    backbone = one_backbone("vit_small_patch14_dinov2", (16,))
    assert backbone.patch == 14
    seen = []
    hook = backbone.net.patch_embed.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    backbone(torch.rand(1, 3, 128, 160))
    hook.remove()
    assert seen == [(1, 3, 112, 140)]


@pytest.mark.parametrize(
    "name, mean, std",
    [
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vit_small_patch14_dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_the_models_own(name, mean, std):
    backbone = one_backbone(name, (16,))
    assert backbone.rgb_mean.flatten().tolist() == pytest.approx(mean)
    assert backbone.rgb_std.flatten().tolist() == pytest.approx(std)
    seen = []
    first = backbone.net.patch_embed if backbone.is_plain else backbone.net.conv_stem
    hook = first.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    backbone(torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    backbone(torch.tensor([m + s for m, s in zip(mean, std)]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    hook.remove()
    assert float(seen[0].abs().max()) < 1e-5
    assert float((seen[1] - 1).abs().max()) < 1e-5


def test_statistics_standardise_every_channel():
    backbone = Backbone("tf_efficientnet_lite0", (8, 16))
    images = torch.rand(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    backbone.fit_statistics(images)
    for m, raw in zip(backbone(images), backbone.raw(images)):
        alive = raw.std((0, 2, 3)) > 1e-3
        assert float(m.mean((0, 2, 3))[alive].abs().max()) < 1e-2
        assert float((m.std((0, 2, 3))[alive] - 1).abs().max()) < 1e-3


def test_frozen_network_stays_in_evaluation_mode_and_without_gradients():
    backbone = Backbone("tf_efficientnet_lite0", (8, 16))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert not backbone.train().net.training
    backbone(torch.rand(4, 3, 64, 64))
    assert all(v.equal(before[k]) for k, v in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_deeper_stages_are_not_even_built():
    backbone = one_backbone("tf_efficientnet_lite0", (8, 16))
    assert len(backbone.net.blocks) == 5  # up to stride 16
    assert sum(p.numel() for p in backbone.parameters()) < 1e6


@pytest.mark.parametrize(
    "name, strides",
    [
        ("tf_efficientnet_lite0", (8, 16)),
        ("vit_small_patch14_dinov2", (16,)),
        ("vit_small_patch16_dinov3", (16,)),
        ("resnet18", (8, 16)),
        ("convnext_atto", (8, 16)),  # timm names the stages of a feature network differently: stages_0, not stages.0
    ],
)
def test_pretrained_file_as_timm_publishes_it_is_read_from_disk(name, strides, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(name)  # the whole classifier, under timm's own names, as its published files are
    path = tmp_path / "backbone.safetensors"
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, path)
    backbone = Backbone(name, strides)
    image = torch.rand(1, 3, 64, 96)
    before = backbone.raw(image)[-1]
    backbone.load_pretrained_file(path)
    after = backbone.raw(image)[-1]
    if backbone.is_plain:
        side = (64 // 16 * backbone.patch, 96 // 16 * backbone.patch)
        x = torch.nn.functional.interpolate(
            (image - backbone.rgb_mean) / backbone.rgb_std, side, mode="bicubic", antialias=True, align_corners=False
        )
        whole = timm.create_model(name, dynamic_img_size=True)
        whole.load_state_dict(load_file(path))
        with torch.no_grad():
            expected = whole.eval().forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    else:
        with torch.no_grad():
            x = (image - backbone.rgb_mean) / backbone.rgb_std
            maps = whole.eval().forward_intermediates(x, intermediates_only=True)
        expected = next(m for m in maps if m.shape[-1] == 96 // 16)
        after = after[:, -expected.shape[1] :]
        before = before[:, -expected.shape[1] :]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert float((before - expected).abs().max()) > 1e-2


def test_pretrained_tensors_of_other_names_are_taken_in_order():
    source, target = one_backbone("tf_efficientnet_lite0", (8, 16)), Backbone("tf_efficientnet_lite0", (8, 16))
    renamed = {f"module.{i}": v for i, (k, v) in enumerate(source.net.state_dict().items()) if "num_batches" not in k}
    renamed["classifier"] = torch.zeros(1000, 1280)
    target.load_pretrained(renamed)
    image = torch.rand(1, 3, 32, 32)
    assert target.raw(image)[0].equal(source.raw(image)[0])


def test_unfit_pretrained_files_are_refused_by_name(tmp_path):
    backbone = Backbone("tf_efficientnet_lite0", (8, 16))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"no backbone weights at '.*absent.safetensors'"):
        backbone.load_pretrained_file(tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(ValueError, match=r"bad.safetensors.*not a readable safetensors"):
        backbone.load_pretrained_file(tmp_path / "bad.safetensors")
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"other.safetensors' does not fit.*'conv_stem.weight' is \(32, 3, 3, 3\): it has none"
    ):
        backbone.load_pretrained_file(tmp_path / "other.safetensors")
    whole = list(backbone.net.state_dict().items())
    save_file(dict(whole[:20]), tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors' does not fit.*it has none"):
        backbone.load_pretrained_file(tmp_path / "part.safetensors")
    whole[0] = (whole[0][0], torch.zeros(32, 3, 5, 5))
    save_file(dict(whole), tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match=r"shape.safetensors' does not fit.*it holds \(32, 3, 5, 5\)"):
        backbone.load_pretrained_file(tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match="1 pretrained tensors given"):
        backbone.load_pretrained({"a": torch.zeros(32, 3, 3, 3)})
    assert all(v.equal(before[k]) for k, v in backbone.state_dict().items())  # nothing half-loaded


def test_unusable_backbones_are_refused_when_built():
    with pytest.raises(ValueError, match="has no model 'resnet9000'"):
        Backbone("resnet9000")
    with pytest.raises(ValueError, match=r"one feature grid: feature_strides must be \(16,\)"):
        Backbone("vit_small_patch14_dinov2", (8, 16))
    with pytest.raises(ValueError, match=r"beit_base_patch16_224.*does not take images of every size"):
        Backbone("beit_base_patch16_224")
    with pytest.raises(ValueError, match="image is 100x96, both sides must be multiples of 16"):
        one_backbone("tf_efficientnet_lite0", (16,))(torch.zeros(1, 3, 100, 96))


def test_presets_name_the_backbones_of_the_paper_and_of_the_shipped_weights():
    assert ModelConfig.preset("paper").backbone == "vit_small_patch14_dinov2"
    assert ModelConfig.preset("small").backbone == "tf_efficientnet_lite0"
