# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""What is measured while training: mask quality, presence, AP on held-out scenes, and the noise curve."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocdit_ros.model import OCDiT, SamplerSettings, sample
from ocdit_ros.train.dataset import Batch

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)


@dataclasses.dataclass(frozen=True)
class Validation:
    """Scores over all queries of the validation samples; one query = one (object, image) pair."""

    mean_iou: float  # of present objects, confidence > 0.5
    iou_50: float  # share of present objects with IoU > 0.5
    presence_auroc: float  # score of present against absent objects
    ap: float  # COCO-like: queries ranked by score, mean over IoU 0.5..0.95
    ap_50: float
    absent_rate: float  # share of absent objects with score above the one that 90 % of present objects exceed


def average_precision(
    score: NDArray[np.float64], iou: NDArray[np.float64], present: NDArray[np.bool_], threshold: float
) -> float:
    """Area under the interpolated precision-recall curve (101 points) when each query is one candidate detection."""
    order = np.argsort(-score, kind="stable")
    hit = (iou[order] >= threshold) & present[order]
    true, total = np.cumsum(hit), max(int(present.sum()), 1)
    precision = true / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = true / total
    place = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.where(place < len(precision), precision[np.minimum(place, len(precision) - 1)], 0).mean())


def score_queries(confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Mean confidence [..., H, W] and score [...] of sampled confidences [..., E, H, W] with E in front of the image.

    Score: mean confidence inside the mask, mixed half and half with the agreement (mean IoU) of the samples with it.
    """
    mean = confidence.mean(-3)
    mask = mean > 0.5
    area = mask.flatten(-2).sum(-1)
    inside = (mean * mask).flatten(-2).sum(-1) / area.clamp_min(1)
    members = confidence > 0.5
    both = (members & mask.unsqueeze(-3)).flatten(-2).sum(-1)
    either = (members | mask.unsqueeze(-3)).flatten(-2).sum(-1)
    agreement = (both / either.clamp_min(1)).mean(-1)
    return mean, torch.where(area > 0, (inside + agreement) / 2, 0.1 * mean.flatten(-2).amax(-1))


@torch.inference_mode()
def validate(model: OCDiT, batches: list[Batch], settings: SamplerSettings, seed: int = 0) -> Validation:
    """Sample every query of `batches` and score the masks; the model's mode is restored."""
    was_training = model.training
    model.eval()
    scores, ious, presents = [], [], []
    generator = torch.Generator(model.device).manual_seed(seed)
    for batch in batches:
        batch = batch.to(model.device)
        conditioning = model.condition(batch.templates, batch.diameters)
        features = model.image_features(batch.images)
        latents = sample(model, features, conditioning, settings, generator, boxes=batch.boxes)
        mean, score = score_queries(model.confidence(latents).transpose(1, 2))
        truth = batch.masks > 0
        predicted = mean > 0.5
        iou = (predicted & truth).flatten(2).sum(-1) / (predicted | truth).flatten(2).sum(-1).clamp_min(1)
        scores.append(score.flatten().cpu())
        ious.append(iou.flatten().cpu())
        presents.append(truth.flatten(2).any(-1).flatten().cpu())
    model.train(was_training)
    all_scores = torch.cat(scores).numpy().astype(np.float64)
    all_ious = torch.cat(ious).numpy().astype(np.float64)
    present = torch.cat(presents).numpy()
    yes, no = all_scores[present], all_scores[~present]
    pairs = (yes[:, None] > no[None]).mean() + 0.5 * (yes[:, None] == no[None]).mean() if len(no) else np.nan
    aps = [average_precision(all_scores, all_ious, present, t) for t in IOU_THRESHOLDS]
    return Validation(
        float(all_ious[present].mean()),
        float((all_ious[present] > 0.5).mean()),
        float(pairs),
        float(np.mean(aps)),
        aps[0],
        float((no > np.quantile(yes, 0.1)).mean()) if len(no) else np.nan,
    )


@torch.inference_mode()
def noise_curve(
    model: OCDiT, batches: list[Batch], sigmas: tuple[float, ...] = (0.2, 1.0, 2.0, 80.0), seed: int = 0
) -> dict[float, float]:
    """Mean IoU of present objects when the clean latent plus noise of each sigma is denoised once and decoded.

    High at small sigma whether or not the templates are used, since the latent itself gives the mask away; the value at
    sigma_max shows how much the conditioning contributes.
    """
    was_training = model.training
    model.eval()
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    found: dict[float, list[Tensor]] = {s: [] for s in sigmas}
    for batch in batches:
        batch = batch.to(device)
        context = model.query_context(
            model.image_features(batch.images),
            model.condition(batch.templates, batch.diameters),
            boxes=batch.boxes,
        )
        clean = encode_masks(model, batch.masks)
        truth = batch.masks > 0
        for sigma in sigmas:
            noisy = clean + sigma * torch.randn(clean.shape, generator=generator, device=device)
            level = torch.full((clean.shape[0],), sigma, device=device)
            predicted = model.confidence(model.denoise_in_context(noisy, level, context)) > 0.5
            iou = (predicted & truth).flatten(2).sum(-1) / (predicted | truth).flatten(2).sum(-1).clamp_min(1)
            found[sigma].append(iou[truth.flatten(2).any(-1)])
    model.train(was_training)
    return {s: float(torch.cat(v).mean()) for s, v in found.items()}


@torch.no_grad()
def encode_masks(model: OCDiT, masks: Tensor) -> Tensor:
    """Standardised latents [B, N_Q, d, h, w] of masks [B, N_Q, H, W]."""
    latents = model.vae.encode_latent(masks.flatten(0, 1)[:, None].float())
    return latents.unflatten(0, masks.shape[:2])
