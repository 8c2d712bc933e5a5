# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Training of the mask VAE on the instance masks of scene shards."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ocdit_ros.model import MaskVAE
from ocdit_ros.train.dataset import Scenes


def draw_masks(scenes: Scenes, count: int, size: int, rng: np.random.Generator, empty: float = 0.05) -> Tensor:
    """Masks [count, 1, size, size] float 0/1: visible parts of random instances, at random zoom, mirrored and turned;
    some empty.
    """
    masks = np.zeros((count, 1, size, size), np.float32)
    number = 0
    while number < count:
        if rng.random() < empty:
            number += 1
            continue
        _, label, _ = scenes[int(rng.integers(len(scenes)))]
        ids = np.unique(label[label > 0])
        for k in rng.permutation(ids)[:4]:
            if number == count:
                break
            ys, xs = np.nonzero(label == k)
            side = int(np.exp(rng.uniform(np.log(64), np.log(min(label.shape)))))
            pick = rng.integers(len(ys))
            top = int(np.clip(ys[pick] - rng.uniform(0, side), 0, label.shape[0] - side))
            left = int(np.clip(xs[pick] - rng.uniform(0, side), 0, label.shape[1] - side))
            part = (label[top : top + side, left : left + side] == k).astype(np.uint8) * 255
            smooth = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
            mask = np.rot90(smooth > 127, int(rng.integers(4)))
            masks[number, 0] = mask[:, ::-1] if rng.random() < 0.5 else mask
            number += 1
    return torch.from_numpy(masks)


@torch.inference_mode()
def reconstruction_iou(vae: MaskVAE, masks: Tensor, noise: float = 0.0) -> Tensor:
    """IoU [n] of the non-empty masks [N, 1, H, W] with their reconstructions, with `noise` added to the standardised
    latents.
    """
    masks = masks[masks.flatten(1).any(1)]
    latents = torch.cat([vae.encode_latent(part) for part in masks.split(64)])
    latents = latents + noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([vae.decode(part, (masks.shape[-2], masks.shape[-1])) for part in latents.split(64)])
    predicted, truth = logits > 0, masks > 0
    return (predicted & truth).flatten(1).sum(1) / (predicted | truth).flatten(1).sum(1)


def train_vae(
    vae: MaskVAE,
    scenes: Scenes,
    held_out: Scenes,
    seconds: float | None = None,
    steps: int | None = None,
    size: int = 128,
    batch: int = 16,
    learning_rate: float = 2e-3,
    beta: float = 2e-3,
    seed: int = 0,
) -> dict[str, float]:
    """Train in place for `steps` updates or `seconds`, whichever ends first, set the latent statistics, and return the
    reconstruction IoU on held-out masks. Raises ValueError when neither is given.

    The VAE is convolutional without global terms, so small crops (`size`) teach what whole images need.
    """
    if seconds is None and steps is None:
        raise ValueError("give the VAE's training a number of steps or of seconds")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-3)
    test = draw_masks(held_out, 192, 256, np.random.default_rng(seed + 1), empty=0)
    vae.train()
    pool = draw_masks(scenes, 2048, size, rng)
    began = time.monotonic()
    bar = tqdm(total=1000, unit="permille", desc="mask VAE")
    step = 0

    def progress() -> float:
        by_time = (time.monotonic() - began) / seconds if seconds is not None else 0.0
        return max(by_time, step / steps if steps is not None else 0.0)

    while (done := progress()) < 1:
        if step % 100 == 99:  # an eighth of the pool is new every hundred steps
            part = rng.choice(len(pool), 256, replace=False)
            pool[part] = draw_masks(scenes, 256, size, rng)
        masks = pool[rng.choice(len(pool), batch, replace=False)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        loss, _ = vae.loss(masks, beta)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            bar.set_postfix_str(f"step {step} loss {loss.item():.4f}")
            bar.update(int(1000 * done) - bar.n)
    bar.close()
    vae.eval()
    vae.fit_statistics(draw_masks(scenes, 512, 256, rng))
    clean, noisy = reconstruction_iou(vae, test), reconstruction_iou(vae, test, 0.1)
    return {
        "steps": step,
        "iou": float(clean.mean()),
        "iou_p10": float(clean.quantile(0.1)),
        "iou_noise_0.1": float(noisy.mean()),
    }
