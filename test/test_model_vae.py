# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""The mask VAE: sizes, batching and statistics of any, reconstruction by the one that ships."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_fixtures import SHIPPED
from model_scenes import photo_labels, silhouettes

from ocdit_ros.model import MaskVAE, load_checkpoint
from ocdit_ros.train.vae import draw_masks

trained = pytest.mark.skipif(not SHIPPED, reason="there are no trained weights in weights/")


@pytest.fixture
def vae():
    """Small and untrained, with residual blocks that do something."""
    torch.manual_seed(0)
    vae = MaskVAE(8, (8, 16, 32)).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if "conv2" in name:
            parameter.normal_(std=0.1)
    vae.latent_mean.normal_()
    vae.latent_std.uniform_(0.5, 2)
    return vae


@pytest.fixture(scope="module")
def masks():
    return silhouettes(48, sides=(50, 220))[:, None].float()


def balanced(latents, masks):
    """Mean [d] and variance [d] of tokens, half weight to those at a mask and half to the rest (see MaskVAE)."""
    near = F.max_pool2d(F.max_pool2d(masks, 16), 3, 1, 1)[:, 0] > 0
    tokens = latents.movedim(1, -1)
    inside, outside = tokens[near], tokens[~near]
    mean = (inside.mean(0) + outside.mean(0)) / 2
    return mean, (((inside - mean) ** 2).mean(0) + ((outside - mean) ** 2).mean(0)) / 2


@pytest.mark.parametrize("size", [(256, 256), (16, 16), (480, 640), (100, 37), (1, 1), (31, 33)])
def test_any_image_size_by_padding(vae, size):
    masks = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    latents = vae.encode_latent(masks)
    assert latents.shape == (2, 8, -(-size[0] // 16), -(-size[1] // 16))
    assert vae.decode(latents, size).shape == (2, 1, *size)
    padded = F.pad(masks, (0, -size[1] % 16, 0, -size[0] % 16))
    assert latents.equal(vae.encode_latent(padded))  # padding is background
    assert vae.decode(latents).shape[-2:] == padded.shape[-2:]


def test_decodes_every_mask_in_one_call(vae, record_property):
    latents = torch.randn(2, 16, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    calls = []
    hook = vae.decoder.register_forward_hook(lambda _, x, y: calls.append(x[0].shape))
    logits = vae.decode(latents)
    hook.remove()
    record_property("calls", len(calls))
    assert calls == [(32, 8, 4, 5)] and logits.shape == (2, 16, 1, 64, 80)
    torch.testing.assert_close(logits[1, 3], vae.decode(latents[1, 3][None])[0], rtol=1e-5, atol=1e-5)


def test_statistics_standardise_balanced_tokens(vae, masks):
    vae.fit_statistics(masks)
    mean, variance = balanced(vae.encode_latent(masks), masks)
    torch.testing.assert_close(mean, torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance.sqrt(), torch.full((8,), 0.5), atol=1e-3, rtol=0)


def test_standardisation_is_undone_by_the_decoder(vae, masks):
    raw = vae.posterior(masks[:4])[0]
    torch.testing.assert_close(vae.decode(vae.encode_latent(masks[:4])), vae.decode_raw(raw), rtol=1e-4, atol=1e-4)
    assert float((vae.encode_latent(masks[:4]) - raw).abs().max()) > 0.1


def test_parts_far_from_a_change_keep_their_code(vae):
    masks = torch.zeros(1, 1, 512, 512)
    changed = masks.clone()
    changed[..., :64, :64] = 1
    difference = (vae.encode_latent(changed) - vae.encode_latent(masks)).abs().amax(1)[0]
    assert float(difference[:4, :4].max()) > 0.01 and float(difference[8:, 8:].max()) < 1e-6


def test_sixty_steps_of_training_show_that_it_learns(masks):
    torch.manual_seed(0)
    vae = MaskVAE(8, (8, 16, 32))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    part = F.avg_pool2d(masks, 4).round()[:32]  # 64 x 64
    losses = []
    for _ in range(60):
        loss, logits = vae.loss(part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    found = logits > 0
    assert float((found & (part > 0)).sum() / (found | (part > 0)).sum()) > 0.7


def test_loss_weighs_outlines_and_counts_the_divergence(masks):
    vae = MaskVAE(8, (8, 16, 32))
    torch.manual_seed(0)
    free, _ = vae.loss(masks[:4], beta=0)
    torch.manual_seed(0)
    bound, _ = vae.loss(masks[:4], beta=1.0)
    mean, log_variance = vae.posterior(masks[:4])
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0, 1)
    ).mean()
    torch.testing.assert_close(bound - free, divergence, rtol=1e-3, atol=1e-4)


def reconstruction_iou(vae, masks):
    """IoU [N] of masks [N, 1, H, W] with what encoding and decoding leaves of them."""
    found, truth = vae.decode(vae.encode_latent(masks)) > 0, masks > 0
    return (found & truth).flatten(1).sum(1) / (found | truth).flatten(1).sum(1)


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(SHIPPED[0]).vae.requires_grad_(False)


@trained
def test_shipped_vae_reconstructs_held_out_masks_of_real_objects(shipped, record_property):
    # windows of 64 to 480 pixels of the photographs, at the camera's own resolution, resized to 256
    masks = draw_masks(photo_labels(480), 96, 256, np.random.default_rng(0), empty=0)
    masks = masks[masks.flatten(1).any(1)]
    assert len(masks) > 80 and masks.shape[-2:] == (256, 256)
    found = float(reconstruction_iou(shipped, masks).mean())
    record_property("iou", found)
    assert found >= 0.97
    mean, variance = balanced(shipped.encode_latent(masks), masks)
    record_property("deviation", float(variance.mean().sqrt()))
    assert float(variance.mean().sqrt()) == pytest.approx(0.5, rel=0.05)
    assert float(mean.square().mean().sqrt()) < 0.05
    whole = [torch.from_numpy(label == k) for _, label, _ in photo_labels(256) for k in np.unique(label[label > 0])]
    small = reconstruction_iou(
        shipped, torch.stack(whole)[:, None].float()
    )  # small objects lose more: known, not bound
    record_property("whole", float(small.mean()))
    assert len(small) == 10 and float(small.min()) > 0.8


@trained
def test_shipped_vae_reconstructs_rendered_shapes_it_never_saw(shipped, masks, record_property):
    found = float(reconstruction_iou(shipped, masks).mean())
    record_property("iou", found)
    assert found >= 0.97
    assert not bool((shipped.decode(shipped.encode_latent(torch.zeros(1, 1, 256, 256))) > 0).any())


@trained
def test_shipped_vae_decodes_the_32_masks_of_a_frame_in_one_call(shipped, masks):
    latents = shipped.encode_latent(masks[:32]).unflatten(0, (1, 32))
    found = shipped.decode(latents, (250, 240))
    assert found.shape == (1, 32, 1, 250, 240)
    assert float(((found[0] > 0) == (masks[:32, :, :250, :240] > 0)).float().mean()) > 0.99
