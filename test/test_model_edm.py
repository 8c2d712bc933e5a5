# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Preconditioning and loss of EDM: unit variances, limits, and what the loss is minimised by."""

import math

import pytest
import torch
from model_fixtures import denoise, live_model, random_query

from ocdit_ros.model.edm import denoising_loss, draw_sigma, loss_weight, preconditioning

SIGMAS = torch.logspace(math.log10(0.002), math.log10(80), 9).tolist()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_network_input_and_target_have_unit_variance(sigma, record_property):
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(400_000, generator=generator)
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    c_skip, c_out, c_in = preconditioning(torch.tensor(sigma, dtype=torch.float64))
    target = (clean.double() - c_skip * noisy) / c_out
    record_property("deviation", max(abs(float(x.var()) - 1) for x in (c_in * noisy, target)))
    assert float((c_in * noisy).var()) == pytest.approx(1, abs=0.02)
    assert float(target.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_model_feeds_its_network_what_the_formulas_say(sigma):
    model = live_model()
    query = random_query(model, batch=1, objects=8, height=40, width=40)
    clean = 0.5 * torch.randn(query.latents.shape, generator=torch.Generator().manual_seed(1))
    noisy = clean + sigma * query.latents
    seen = {}
    hooks = [
        model.latent_embedding.register_forward_pre_hook(lambda _, x: seen.update(input=x[0])),
        model.final.register_forward_hook(lambda _, x, y: seen.update(output=y)),
    ]
    denoised = denoise(model, query, sigma, noisy)
    for hook in hooks:
        hook.remove()
    assert float(seen["input"].var()) == pytest.approx(1, abs=0.02)
    output = seen["output"][0].transpose(1, 2).view(noisy.shape[1:])
    assert float(output.std()) > 0.01  # the network does contribute
    variance = sigma**2 + 0.25
    expected = 0.25 / variance * noisy[0] + 0.5 * sigma / variance**0.5 * output
    torch.testing.assert_close(denoised[0], expected, rtol=1e-5, atol=1e-5)


def test_denoiser_is_the_identity_in_the_limit_of_no_noise(record_property):
    model = live_model()
    query = random_query(model)
    clean = 0.5 * query.latents
    errors = [float((denoise(model, query, sigma, clean) - clean).abs().max()) for sigma in (1e-2, 1e-4, 1e-6)]
    record_property("difference", errors[-1])
    assert errors[0] > 1e-3  # at a visible level the network speaks
    assert errors[1] < errors[0] / 20 and errors[2] < 1e-5


def test_loss_of_the_skip_connection_alone_is_one_at_every_sigma():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor(SIGMAS)
    clean = 0.5 * torch.randn(len(SIGMAS), 1, 40, 50, 50, generator=generator, dtype=torch.float64)
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    skip = preconditioning(sigma.double())[0].view(-1, 1, 1, 1, 1) * noisy
    for i in range(len(SIGMAS)):
        part = slice(i, i + 1)
        loss = denoising_loss(skip[part], clean[part], sigma[part].double(), torch.zeros(1))
        assert float(loss) == pytest.approx(1, abs=0.02)


def test_learned_log_variance_settles_at_the_log_of_the_error():
    clean = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    denoised = clean + torch.tensor([0.1, 0.4]).view(2, 1, 1, 1, 1)
    sigma = torch.tensor([0.3, 2.0])
    error = torch.tensor([0.01, 0.16]) * loss_weight(sigma)
    uncertainty = error.log().requires_grad_()
    denoising_loss(denoised, clean, sigma, uncertainty).backward()
    assert float(uncertainty.grad.abs().max()) < 1e-5
    beside = (error.log() + 0.5).requires_grad_()
    denoising_loss(denoised, clean, sigma, beside).backward()
    assert float(beside.grad.min()) > 0.01


def test_training_noise_levels_follow_p_mean_and_p_std():
    levels = draw_sigma(200_000, 2.0, 1.6, torch.Generator().manual_seed(0)).log()
    assert float(levels.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(levels.std()) == pytest.approx(1.6, abs=0.02)


def test_log_variance_starts_at_zero_and_learns():
    model = live_model()
    with torch.no_grad():
        model.uncertainty[-1].weight.zero_()
        model.uncertainty[-1].bias.zero_()
    sigma = torch.tensor([0.01, 1.0, 50.0])
    assert model.log_variance(sigma).tolist() == [0, 0, 0]
    model.log_variance(sigma).sum().backward()
    assert float(model.uncertainty[-1].weight.grad.abs().max()) > 0
