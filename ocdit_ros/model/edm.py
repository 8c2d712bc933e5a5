# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Step 8 of the paper: EDM preconditioning and loss (Karras et al. 2022, Tab. 1), uncertainty of Karras et al. 2024."""

from __future__ import annotations

import torch
from torch import Tensor

SIGMA_DATA = 0.5


def preconditioning(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in for noise levels `sigma` of any shape: D(x) = c_skip x + c_out F(c_in x)."""
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), 1 / variance.sqrt()


def draw_sigma(
    count: int, mean: float, std: float, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Training noise levels [count]: ln(sigma) ~ N(P_mean, P_std^2)."""
    return (mean + std * torch.randn(count, generator=generator, device=device)).exp()


def loss_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(
    denoised: Tensor, clean: Tensor, sigma: Tensor, log_variance: Tensor, sigma_data: float = SIGMA_DATA,
    tokens: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted squared error with learned uncertainty (EDM2, Eq. 14), averaged.

    `denoised`, `clean` [B, N_Q, d, h, w]; `sigma`, `log_variance` [B]; `tokens`: further weights [B, N_Q, h, w], which
    leave what minimises the error of each token as it is.
    """
    squares = (denoised - clean) ** 2
    if tokens is not None:
        squares = squares * tokens[:, :, None]
    error = squares.mean((1, 2, 3, 4)) * loss_weight(sigma, sigma_data)
    return (error * (-log_variance).exp() + log_variance).mean()
