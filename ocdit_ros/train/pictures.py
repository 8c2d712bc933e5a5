# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Sample pictures of a training run: what went in, what should come out, what does."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ocdit_ros.model import OCDiT, SamplerSettings, sample
from ocdit_ros.segment import draw
from ocdit_ros.train.dataset import Batch, ObjectStore
from ocdit_ros.train.validation import score_queries

Picture = NDArray[np.uint8]
_GAP = 4


def _tinted(image: Picture, shares: NDArray[np.floating], colour: NDArray[np.uint8]) -> Picture:
    """The image, grey and dim, with `colour` where shares [H, W] in 0..1 are high."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, -1) * 0.4
    mixed = grey + shares[..., None] * (0.25 * grey + 0.75 * colour - grey)
    return np.asarray(mixed.clip(0, 255), np.uint8)


def _cell(image: Picture, side: int, text: str = "", frame: NDArray[np.uint8] | None = None) -> Picture:
    cell = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < len(image) else cv2.INTER_LINEAR)
    if frame is not None:
        cell[:3], cell[-3:], cell[:, :3], cell[:, -3:] = frame, frame, frame, frame
    if text:
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(cell, text, (6, side - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA)
    return np.asarray(cell)


def strip(
    image: Picture, templates: list[Picture], targets: NDArray[np.bool_], predicted: NDArray[np.floating],
    scores: NDArray[np.floating], side: int = 128,
) -> Picture:  # fmt: skip
    """One sample as a picture [3 side, (1 + N_O) side, 3].

    Rows: templates (a frame in the colour of the object, "absent" where it has no target), target masks, confidences
    with score and IoU. First column: the image [S, S, 3], all targets, all masks (confidence above 0.5). `targets` and
    `predicted` are [N_O, S, S].
    """
    colours = [np.array(draw.colour(number), np.uint8) for number in range(1, len(templates) + 1)]
    rows: list[list[Picture]] = [[_cell(image, side)], [], []]
    for row, masks in ((1, targets), (2, predicted > 0.5)):
        whole = _tinted(image, np.zeros(image.shape[:2], np.float32), colours[0])
        for mask, colour in zip(masks, colours):
            whole[mask] = (0.35 * whole[mask] + 0.65 * colour).astype(np.uint8)
        rows[row].append(_cell(whole, side, ("", "target", "predicted")[row]))
    for template, target, confidence, score, colour in zip(templates, targets, predicted, scores, colours):
        mask = confidence > 0.5
        union = (mask | target).sum()
        iou = (mask & target).sum() / union if union else 1.0
        rows[0].append(_cell(template, side, "" if target.any() else "absent", colour))
        rows[1].append(_cell(_tinted(image, target.astype(np.float32), colour), side))
        said = f"{score:.2f}" + (f"  IoU {iou:.2f}" if target.any() else "")
        rows[2].append(_cell(_tinted(image, confidence, colour), side, said))
    return np.concatenate([np.concatenate(row, 1) for row in rows], 0)


@torch.inference_mode()
def sample_sheet(
    model: OCDiT, batch: Batch, objects: ObjectStore, settings: SamplerSettings, count: int = 4, seed: int = 0
) -> Picture:
    """The first `count` samples of a batch one below the other, uint8 [H, W, 3]; the model's mode is restored."""
    was_training = model.training
    model.eval()
    batch = batch.to(model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    conditioning = model.condition(batch.templates, batch.diameters)
    latents = sample(model, model.image_features(batch.images), conditioning, settings, generator)
    mean, score = score_queries(model.confidence(latents).transpose(1, 2))
    model.train(was_training)
    number = len(batch.keys[0])
    # Several queries of one object are shown as one.
    confidence = mean.unflatten(1, (number, -1)).amax(2).float().cpu().numpy()
    scores = score.unflatten(1, (number, -1)).amax(2).float().cpu().numpy()
    targets = (batch.masks > 0).unflatten(1, (number, -1)).any(2).cpu().numpy()
    images = (batch.images.movedim(1, -1).float().cpu().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
    strips: list[Picture] = []
    for i in range(min(count, len(images))):
        views = [objects.picture(key) for key in batch.keys[i]]
        made = strip(np.ascontiguousarray(images[i]), views, targets[i], confidence[i], scores[i])
        strips += [made, np.full((_GAP, made.shape[1], 3), 255, np.uint8)]
    return np.concatenate(strips[:-1], 0)
