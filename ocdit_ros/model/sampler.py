# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Step 9 of the paper: samplers of the probability-flow ODE, as pure functions of a denoiser.

A denoiser maps (x, sigma) -> D(x; sigma) with sigma a 0-d tensor on the CPU. Every function takes the noise levels
it visits, from the first to the last, where the last may be 0. Costs are counted in evaluations of the denoiser, the
only thing that takes time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ocdit_ros.model.backbone import Features
    from ocdit_ros.model.ocdit import Conditioning, OCDiT

Denoiser = Callable[[Tensor, Tensor], Tensor]
SOLVERS = ("euler", "heun", "dpmpp_2m")


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How latents are drawn.

    `steps` counts network evaluations of one sample, whatever the solver. `ensemble` independent samples are drawn
    for each query (N_ensemble of the paper). None takes the model's own value. The paper: 17 evaluations of Heun,
    3 samples, rho 9. `churn` is S_churn of Karras et al. 2022, Alg. 2, with its S_noise = 1 and no bounds; it needs
    a one-step solver.
    """

    steps: int = 4
    solver: str = "euler"
    ensemble: int = 4
    churn: float = 0.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values, naming the field."""
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, at least 1 network evaluation is needed")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is '{self.solver}', expected one of {', '.join(SOLVERS)}")
        if self.ensemble < 1:
            raise ValueError(f"ensemble is {self.ensemble}, at least 1 sample is needed")
        if self.churn < 0:
            raise ValueError(f"churn is {self.churn}, must not be negative")
        if self.churn > 0 and self.solver == "dpmpp_2m":
            raise ValueError(
                "churn needs solver 'euler' or 'heun': 'dpmpp_2m' reuses the step before, which churn disturbs"
            )


def noise_levels(count: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """`count` levels from sigma_max down to sigma_min, then 0 (Karras et al. 2022, Eq. 5): [count + 1], float64."""
    ramp = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


#: Where noise comes from: one source, one for each of the B rows of a batch, or PyTorch's own.
Noise = torch.Generator | Sequence[torch.Generator] | None


def normal(like: Tensor, generator: Noise) -> Tensor:
    """Unit noise of the shape, kind and place of `like`; a CPU generator gives the same on all.

    With several generators, `like` is shared out over them along its first axis in equal parts.
    """
    if isinstance(generator, Sequence):
        return torch.cat([normal(part, one) for part, one in zip(like.chunk(len(generator)), generator, strict=True)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def churned(x: Tensor, sigma: Tensor, churn: float, steps: int, generator: Noise) -> tuple[Tensor, Tensor]:
    """Raise the noise level by gamma = min(churn / steps, sqrt(2) - 1) with fresh noise.

    Karras et al. 2022, Alg. 2, l. 4-6.
    """
    gamma = min(churn / steps, math.sqrt(2) - 1)
    if gamma <= 0:
        return x, sigma
    raised = sigma * (1 + gamma)
    return x + (raised**2 - sigma**2).sqrt() * normal(x, generator), raised


def euler(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, churn: float = 0.0, generator: Noise = None
) -> Iterator[Tensor]:
    """First order, one evaluation a step. Yields x at every noise level after the first."""
    for now, after in zip(sigmas[:-1], sigmas[1:]):
        x, now = churned(x, now, churn, len(sigmas) - 1, generator)
        denoised = denoise(x, now)
        x = denoised + (x - denoised) * (after / now)
        yield x


def heun(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    churn: float = 0.0,
    generator: Noise = None,
    euler_steps: int = 0,
) -> Iterator[Tensor]:
    """Second order, two evaluations a step, one for a step to sigma = 0.

    Karras et al. 2022, Alg. 1; Alg. 2 with churn. The first `euler_steps` steps are Euler's, so that an even number
    of evaluations can be spent exactly.
    """
    for i, (now, after) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        x, now = churned(x, now, churn, len(sigmas) - 1, generator)
        slope = (x - denoise(x, now)) / now
        following = x + (after - now) * slope
        if after > 0 and i >= euler_steps:
            second = (following - denoise(following, after)) / after
            following = x + (after - now) * (slope + second) / 2
        x = following
        yield x


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Second-order multistep in log-sigma, one evaluation a step: DPM-Solver++(2M), Lu et al. 2022, for alpha = 1."""
    before = None
    width_before = 0.0
    for now, after in zip(sigmas[:-1], sigmas[1:]):
        denoised = denoise(x, now)
        if after == 0:
            x = denoised
        else:
            width = float((now / after).log())
            direction = denoised
            if before is not None:
                direction = denoised + (denoised - before) * (width / (2 * width_before))
            x = x * (after / now) + direction * -math.expm1(-width)
            before, width_before = denoised, width
        yield x


def trajectory(
    denoise: Denoiser,
    x: Tensor,
    settings: SamplerSettings,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    generator: Noise = None,
) -> Iterator[Tensor]:
    """States of the chosen solver, which spends `settings.steps` evaluations; x is unit noise, scaled here."""
    count = settings.steps // 2 + 1 if settings.solver == "heun" else settings.steps
    # they stay on the CPU: reading them never waits for a GPU
    sigmas = noise_levels(count, sigma_min, sigma_max, rho).to(x.dtype)
    x = x * sigmas[0]
    if settings.solver == "euler":
        return euler(denoise, x, sigmas, settings.churn, generator)
    if settings.solver == "heun":
        return heun(denoise, x, sigmas, settings.churn, generator, euler_steps=1 - settings.steps % 2)
    return dpmpp_2m(denoise, x, sigmas)


@torch.inference_mode()
def sample(
    model: OCDiT,
    image_features: Features,
    conditioning: Conditioning,
    settings: SamplerSettings | None = None,
    generator: Noise = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    start: Tensor | None = None,
    boxes: Tensor | None = None,
) -> Tensor:
    """Draw latents [B, E, N_Q, d, h, w] for B images and E = settings.ensemble noises.

    What does not depend on sigma (image embedding, template keys and values, correlation) is computed once. `on_step`
    receives (solver steps so far, state [B, E, N_Q, d, h, w]) for those who want to watch. `start` [B, N_Q, d, h, w]:
    latents that are guessed already; the noise of settings.sigma_max, which then is an intermediate level, goes on top.
    `boxes` as for `query_context`.
    """
    settings = settings or SamplerSettings()
    config = model.config
    context = model.query_context(image_features, conditioning, repeat=settings.ensemble, boxes=boxes)
    shape = (*context.shape[:2], config.latent_channels, *context.grid)  # [B * E, N_Q, d, h, w]
    x = normal(context.embedding.new_empty(shape, dtype=torch.float32), generator)
    sigma_max = settings.sigma_max if settings.sigma_max is not None else config.sigma_max
    if start is not None:
        x = x + start.repeat_interleave(settings.ensemble, 0) / sigma_max  # trajectory() scales by sigma_max

    def unfold(state: Tensor) -> Tensor:
        return state.view(-1, settings.ensemble, *state.shape[1:])

    states = trajectory(
        lambda state, sigma: model.denoise_in_context(state, sigma.to(state.device)[None], context),
        x,
        settings,
        settings.sigma_min if settings.sigma_min is not None else config.sigma_min,
        sigma_max,
        settings.rho if settings.rho is not None else config.rho,
        generator,
    )
    for step, x in enumerate(states, 1):
        if on_step is not None:
            on_step(step, unfold(x))
    return unfold(x)
