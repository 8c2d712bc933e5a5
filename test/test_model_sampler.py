# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Samplers on distributions whose denoiser is known in closed form: order, end points, cost."""

import math

import numpy as np
import pytest
import torch
from model_fixtures import live_model, random_query

from ocdit_ros.model import SamplerSettings, sample
from ocdit_ros.model.sampler import SOLVERS, dpmpp_2m, euler, heun, noise_levels, trajectory

MEAN, SPREAD = 0.3, 0.5  # of the Gaussian data


def gaussian_denoiser(x, sigma):
    """E[x_0 | x] of data N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def gaussian_flow(x, start, end):
    """Solution of the probability-flow ODE from noise level `start` to `end`."""
    return MEAN + (x - MEAN) * ((SPREAD**2 + end**2) / (SPREAD**2 + start**2)).sqrt()


def last(states):
    """Final state of a solver."""
    *_, x = states
    return x


def observed_order(solver, start, end, rho, counts=(8, 11, 16, 23, 32, 45, 64)):
    """Minus the slope of log(error) over log(steps)."""
    x = torch.linspace(-3, 3, 64, dtype=torch.float64) * start
    errors = []
    for count in counts:
        sigmas = noise_levels(count + 1, end, start, rho)[:-1]  # `count` steps from start to end > 0
        errors.append(
            float((last(solver(gaussian_denoiser, x, sigmas)) - gaussian_flow(x, sigmas[0], sigmas[-1])).abs().max())
        )
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("solver, order", [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
@pytest.mark.parametrize("start, end", [(80.0, 0.002), (5.0, 0.05)])
def test_observed_order_on_gaussian_data(solver, order, start, end, record_property):
    observed = observed_order(solver, start, end, rho=7.0)
    record_property(solver.__name__, observed)
    assert observed == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rho", [7.0, 9.0])
def test_two_points_end_at_the_right_one(solver, rho, record_property):
    # data are the points a and b; the flow cannot cross their bisector
    a, b = torch.tensor([0.5, -0.2], dtype=torch.float64), torch.tensor([-0.4, 0.3], dtype=torch.float64)

    def denoiser(x, sigma):
        near = torch.stack([-((x - p) ** 2).sum(-1) for p in (a, b)], -1) / (2 * sigma**2)
        weight = near.softmax(-1)
        return weight[..., :1] * a + weight[..., 1:] * b

    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    side = (80 * noise - (a + b) / 2) @ (a - b)
    noise, side = noise[side.abs() > 1.0], side[side.abs() > 1.0]  # not those that start on the bisector
    assert len(noise) > 450
    end = last(trajectory(denoiser, noise, SamplerSettings(17, solver), 0.002, 80.0, rho))
    expected = torch.where(side[:, None] > 0, a, b)
    record_property("difference", float((end - expected).abs().max()))
    assert float((end - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
def test_steps_counts_network_evaluations_exactly(solver, steps):
    calls = []

    def denoiser(x, sigma):
        calls.append(float(sigma))
        return gaussian_denoiser(x, sigma)

    end = last(trajectory(denoiser, torch.ones(3), SamplerSettings(steps, solver), 0.002, 80.0, 7.0))
    assert len(calls) == steps
    assert calls[0] == pytest.approx(80.0) and calls == sorted(calls, reverse=True)
    assert bool(end.isfinite().all())


def test_nine_heun_steps_are_the_papers_seventeen_evaluations():
    states = list(trajectory(gaussian_denoiser, torch.ones(3), SamplerSettings(17, "heun"), 0.002, 80.0, 9.0))
    assert len(states) == 9


def test_one_step_of_every_solver_is_the_denoiser_at_sigma_max():
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solver in SOLVERS:
        end = last(trajectory(gaussian_denoiser, x, SamplerSettings(1, solver), 0.002, 80.0, 7.0))
        torch.testing.assert_close(end, gaussian_denoiser(80 * x, torch.tensor(80.0, dtype=torch.float64)))


def test_which_solver_suits_which_number_of_evaluations():
    # docs/model.md gives the table: Heun needs many evaluations, the multistep solver wins among few
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = gaussian_flow(80 * x, torch.tensor(80.0, dtype=torch.float64), torch.tensor(0.0))

    def error(solver, steps):
        end = last(trajectory(gaussian_denoiser, x, SamplerSettings(steps, solver), 0.002, 80.0, 7.0))
        return float((end - exact).abs().max())

    assert error("dpmpp_2m", 9) < 0.6 * error("euler", 9) < 0.6 * error("heun", 9)
    assert error("heun", 65) < 0.5 * error("euler", 65)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("churn", [5.0, 40.0])
def test_churn_keeps_the_distribution_and_forgets_the_start(solver, churn):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, generator=generator, dtype=torch.float64)
    steps = {"euler": 513, "heun": 129}[solver]  # churn is first-order under Euler
    settings = SamplerSettings(steps, solver, churn=churn)
    end = last(trajectory(gaussian_denoiser, x, settings, 0.002, 80.0, 7.0, generator))
    still = last(trajectory(gaussian_denoiser, x, SamplerSettings(steps, solver), 0.002, 80.0, 7.0))
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(end.std()) == pytest.approx(SPREAD, rel=0.05)
    assert float(torch.corrcoef(torch.stack([x, still]))[0, 1]) > 0.999
    assert float(torch.corrcoef(torch.stack([x, end]))[0, 1]) < (0.95 if churn == 5.0 else 0.5)


def test_noise_levels_follow_the_formula():
    sigmas = noise_levels(9, 0.002, 80.0, 9.0)
    assert sigmas.dtype == torch.float64 and len(sigmas) == 10 and float(sigmas[-1]) == 0
    for i in range(9):
        expected = (80 ** (1 / 9) + i / 8 * (0.002 ** (1 / 9) - 80 ** (1 / 9))) ** 9
        assert float(sigmas[i]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "values, named",
    [
        ({"steps": 0}, "steps"),
        ({"solver": "rk4"}, "solver"),
        ({"ensemble": 0}, "ensemble"),
        ({"churn": -1.0}, "churn"),
        ({"solver": "dpmpp_2m", "churn": 1.0}, "churn"),
    ],
)
def test_impossible_settings_are_refused_by_name(values, named):
    with pytest.raises(ValueError, match=named):
        SamplerSettings(**values)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sample_evaluates_the_network_as_often_as_it_says(solver, monkeypatch):
    model = live_model()
    query = random_query(model, batch=1)
    calls = []
    inner = model.denoise_in_context
    monkeypatch.setattr(model, "denoise_in_context", lambda *a: calls.append(a[0]) or inner(*a))
    conditioning = model.condition(query.templates, query.diameters)
    seen = []
    latents = sample(
        model,
        query.image,
        conditioning,
        SamplerSettings(6, solver, ensemble=3),
        torch.Generator().manual_seed(0),
        lambda step, state: seen.append((step, state)),
    )
    assert len(calls) == 6 and all(x.shape[0] == 3 for x in calls)  # three members in one batch
    assert latents.shape == (1, 3, *query.latents.shape[1:]) and not latents.requires_grad
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][1].equal(latents)


def test_sample_is_reproduced_by_its_generator():
    model = live_model()
    query = random_query(model)
    conditioning = model.condition(query.templates, query.diameters)

    def draw(seed):
        return sample(model, query.image, conditioning, SamplerSettings(3), torch.Generator().manual_seed(seed))

    assert draw(1).equal(draw(1)) and not draw(1).equal(draw(2))
    first = draw(1)
    assert not math.isclose(float(first[0, 0].sum()), float(first[0, 1].sum()))  # members differ
