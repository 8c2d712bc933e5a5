# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Step 2 of the paper: a beta-VAE between binary masks [N, 1, H, W] and latents [N, d, H/16, W/16]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity; no normalisation, so that a code does not depend on the image's size."""

    def __init__(self, channels: int) -> None:
        """Start as the identity (zero second convolution)."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        if self.conv2.bias is not None:
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] -> [N, C, H, W]."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class MaskVAE(nn.Module):
    """Encoder and decoder of masks (Sec. 3.1). Latents are standardised to mean 0 and deviation sigma_data.

    The statistics are those of tokens drawn half from the neighbourhood of masks and half from background, because an
    ordinary mask is mostly background, whose code is almost constant.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        latent_channels: int = 16,
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: int = 1,
        sigma_data: float = 0.5,
    ) -> None:
        """Build for `channels` at strides 4, 8 and 16."""
        super().__init__()
        self.sigma_data = sigma_data
        c4, c8, c16 = channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16, c4, 3, padding=1),
            *(ResidualBlock(c4) for _ in range(blocks)),
            nn.Conv2d(c4, c8, 4, 2, 1),
            *(ResidualBlock(c8) for _ in range(blocks)),
            nn.Conv2d(c8, c16, 4, 2, 1),
            *(ResidualBlock(c16) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(c16, 2 * latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, c16, 3, padding=1),
            *(ResidualBlock(c16) for _ in range(blocks + 1)),
            nn.Conv2d(c16, 4 * c8, 1),
            nn.PixelShuffle(2),
            *(ResidualBlock(c8) for _ in range(blocks)),
            nn.Conv2d(c8, 4 * c4, 1),
            nn.PixelShuffle(2),
            *(ResidualBlock(c4) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(c4, 16, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.full((1, latent_channels, 1, 1), sigma_data))

    def posterior(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(x | b), each [N, d, h, w]; `masks` [N, 1, H, W] in 0..1 are padded to /16."""
        height, width = masks.shape[-2:]
        masks = F.pad(masks, (0, -width % 16, 0, -height % 16))
        mean, log_variance = self.encoder((2 * masks - 1).contiguous(memory_format=torch.channels_last)).chunk(2, 1)
        return mean, log_variance.clamp(-20, 4)

    def encode_latent(self, masks: Tensor) -> Tensor:
        """Standardised latents [N, d, ceil(H/16), ceil(W/16)] of masks [N, 1, H, W]; deterministic (posterior mean)."""
        return (self.posterior(masks)[0] - self.latent_mean) * (self.sigma_data / self.latent_std)

    def decode_raw(self, codes: Tensor) -> Tensor:
        """Logits [N, 1, 16h, 16w] of codes before standardisation."""
        return self.decoder(codes.contiguous(memory_format=torch.channels_last))

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Logits [..., 1, H, W] of standardised latents [..., d, h, w], all in one call; `size` (H, W) cuts padding."""
        lead = latents.shape[:-3]
        x = latents.reshape(-1, *latents.shape[-3:])
        logits = self.decode_raw(x * (self.latent_std / self.sigma_data) + self.latent_mean)
        if size is not None:
            logits = logits[..., : size[0], : size[1]]
        return logits.reshape(*lead, *logits.shape[1:])

    def loss(self, masks: Tensor, beta: float = 2e-3) -> tuple[Tensor, Tensor]:
        """Training loss and the logits: BCE weighted towards boundaries, plus Dice, plus beta * KL per latent value.

        `masks` [N, 1, H, W] float 0/1, sides multiples of 16.
        """
        mean, log_variance = self.posterior(masks)
        codes = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = self.decode_raw(codes)
        boundary = F.max_pool2d(masks, 5, 1, 2) + F.max_pool2d(-masks, 5, 1, 2)
        weight = 1 + 8 * boundary
        cross_entropy = (
            weight * F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        ).sum() / weight.sum()
        probability = logits.sigmoid()
        intersection = (probability * masks).sum((1, 2, 3))
        dice = 1 - (2 * intersection + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return cross_entropy + dice.mean() + beta * kl, logits

    @torch.no_grad()
    def fit_statistics(self, masks: Tensor) -> None:
        """Set latent_mean and latent_std from masks [N, 1, H, W]: tokens near a mask weigh as much as all others."""
        codes = self.posterior(masks)[0]
        touched = F.max_pool2d(masks, 16, ceil_mode=True)  # [N, 1, h, w], 1 where the patch shows any of the mask
        near = F.max_pool2d(touched, 3, 1, 1) > 0
        tokens = codes.movedim(1, -1)
        inside, outside = tokens[near[:, 0]], tokens[~near[:, 0]]
        mean = (inside.mean(0) + outside.mean(0)) / 2
        variance = (((inside - mean) ** 2).mean(0) + ((outside - mean) ** 2).mean(0)) / 2
        self.latent_mean.copy_(mean.view(1, -1, 1, 1))
        self.latent_std.copy_(variance.sqrt().clamp_min(1e-4).view(1, -1, 1, 1))
