# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""A second loss, for the template correlation: the denoising loss reaches it through a small MLP only. An extension, as
the correlation is.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ocdit_ros.model import Conditioning, Features, OCDiT
from ocdit_ros.train.dataset import Batch, MixedSource, ObjectStore, SampleSource

IGNORED = -100  # of torch's cross-entropy


def patch_targets(masks: Tensor, stride: int) -> Tensor:
    """Which of N_O objects every patch shows [B, H/stride, W/stride]: its index, N_O for none, IGNORED where unclear.

    `masks` [B, N_O, H, W]. A patch shows an object that covers half of it, and none when all cover at most a fifth.
    """
    cover = F.avg_pool2d(masks.float(), stride)
    most, index = cover.max(1)
    nothing = torch.full_like(index, cover.shape[1])
    index = torch.where(most >= 0.5, index, nothing)
    return torch.where((most < 0.5) & (cover.sum(1) > 0.2), IGNORED, index)


class MatchingLoss(nn.Module):
    """Cross-entropy over the objects of a query, and none of them, of each patch's best cosine with their templates.

    Patches of objects and of nothing count as much on average, however many there are of either. The temperature and
    the cosine at which nothing wins are learned; they are of no use after training.
    """

    def __init__(self, scale: float = 20.0, nothing: float = 0.6) -> None:
        """`scale` and `nothing`: where the inverse temperature and the cosine of nothing start."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.nothing = nn.Parameter(torch.tensor(nothing))

    def forward(self, best: Tensor, masks: Tensor) -> Tensor:
        """Loss [] of best cosines [B, N_O, h, w] under masks [B, N_O, H, W]."""
        objects = best.shape[1]
        target = patch_targets(masks, masks.shape[-1] // best.shape[-1])
        nothing = self.nothing.expand(best.shape[0], 1, *best.shape[2:])
        error = F.cross_entropy(self.log_scale.exp() * torch.cat([best, nothing], 1), target, reduction="none")
        seen, empty = (target >= 0) & (target < objects), target == objects
        mean = (error * seen).sum() / seen.sum().clamp_min(1)
        return mean + 0.5 * (error * empty).sum() / empty.sum().clamp_min(1)


@dataclasses.dataclass(frozen=True)
class Matching:
    """How well patches of held-out views find their object."""

    accuracy: float  # share of the patches that show an object of the query which match it better than the others
    loss: float


def best_cosines(model: OCDiT, features: Features, conditioning: Conditioning) -> Tensor:
    """Best cosine of every patch with each object's templates [B, N_O, H/s, W/s]; s: the finest stride correlated.

    Raises ValueError when the model has no template correlation.
    """
    if model.correlation is None or conditioning.correlation_keys is None:
        raise ValueError("matching needs template correlation (correlation_width above 0)")
    stride = min(model.correlation.strides)
    scene = model.correlation.describe(features, stride)
    return model.correlation.cosines(scene, conditioning.correlation_keys, conditioning.valid).amax(2)


def _best_of_batch(model: OCDiT, batch: Batch) -> Tensor:
    return best_cosines(model, model.image_features(batch.images), model.condition(batch.templates, batch.diameters))


def unite(masks: Tensor, objects: int) -> Tensor:
    """Union of the queries of each object: masks [B, N_Q, H, W] -> [B, N_O, H, W]."""
    return masks.unflatten(1, (objects, -1)).amax(2)


@torch.no_grad()
def measure_matching(model: OCDiT, loss: MatchingLoss, batches: list[Batch]) -> Matching:
    """Accuracy and loss, averaged over the batches; the model's mode is restored."""
    was_training = model.training
    model.eval()
    right, losses = [], []
    for batch in batches:
        batch = batch.to(model.device)
        best = _best_of_batch(model, batch)
        masks = unite(batch.everything, best.shape[1])
        target = patch_targets(masks, masks.shape[-1] // best.shape[-1])
        shown = (target >= 0) & (target < best.shape[1])
        right.append((best.argmax(1) == target)[shown].float().mean())
        losses.append(loss(best, masks))
    model.train(was_training)
    return Matching(float(torch.stack(right).nanmean()), float(torch.stack(losses).mean()))


def background_patches(model: OCDiT, store: ObjectStore, count: int, objects: int = 600, seed: int = 0) -> Tensor:
    """Features [count, channels] of template patches that `objects` objects of the store show, evenly drawn.

    What `TemplateCorrelation.background` takes. Of a store with many more objects most are in no patch, and meet the
    background in training as unknown objects do in use. Raises ValueError when the objects show too few patches, or
    without template correlation.
    """
    if model.correlation is None:
        raise ValueError("a background needs template correlation (correlation_width above 0)")
    generator = np.random.default_rng(seed)
    keys = [store.keys[i] for i in generator.permutation(len(store.keys))[:objects]]
    rows = []
    for key in keys:
        features = store.features(key)
        patches = model.correlation.gather(tuple(m.float() for m in features.maps), model.config.stride)
        shown = patches[features.coverage >= model.config.min_coverage]
        rows.append(shown[generator.permutation(len(shown))])
    order = [(place, n) for n, row in enumerate(rows) for place in range(len(row))]
    if len(order) < count:
        raise ValueError(f"{len(keys)} objects show {len(order)} patches, fewer than the {count} asked for")
    return torch.stack([rows[n][place] for place, n in sorted(order)[:count]])


def train_matching(
    model: OCDiT,
    source: SampleSource | MixedSource,
    seconds: float | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    backbone_rate: float = 0.3,
    validation: list[Batch] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train descriptors, and the backbone of images where the model has one, on the matching loss alone.

    A step takes a fifth of the time of a step of the denoiser, so descriptors are best trained before it. The rate
    falls linearly over the last 40 % of `seconds` or `steps`. Returns steps, views, minutes and, for held-out batches,
    accuracy and loss before and after. Raises ValueError when neither limit is given, or without template
    correlation.
    """
    if seconds is None and steps is None:
        raise ValueError("give the matching a number of steps or a time budget")
    if model.correlation is None:
        raise ValueError("matching needs template correlation (correlation_width above 0)")
    loss = MatchingLoss().to(model.device)
    model.requires_grad_(False)
    model.correlation.requires_grad_(True)
    model.correlation.mlp.requires_grad_(False)  # what the denoiser makes of the cosines is not asked for here
    groups = [([*model.correlation.parameters(), *loss.parameters()], learning_rate)]
    if model.image_backbone is not None:
        model.image_backbone.requires_grad_(True)
        groups.append((list(model.image_backbone.parameters()), learning_rate * backbone_rate))
    members = [p for parameters, _ in groups for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.requires_grad], "lr": rate} for parameters, rate in groups],
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    before = measure_matching(model, loss, validation) if validation else None
    model.train()
    step = views = 0
    start = time.monotonic()
    bar = tqdm(total=1.0, disable=quiet, unit="run", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
    while True:
        done = max(step / steps if steps else 0.0, (time.monotonic() - start) / seconds if seconds else 0.0)
        if done >= 1:
            break
        for group, (_, rate) in zip(optimizer.param_groups, groups):
            group["lr"] = rate * min(1.0, (step + 1) / 50) * min(1.0, (1 - done) / 0.4)
        here = source.at_step(step)
        count = max(round(batch_size * here.settings.batch_share), 1)
        batch = here.batch(list(range(step * batch_size, step * batch_size + count))).to(model.device)
        best = _best_of_batch(model, batch)
        value = loss(best, unite(batch.everything, best.shape[1]))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(members, 1.0)
        optimizer.step()
        step, views = step + 1, views + count
        if step % 20 == 0:
            bar.set_postfix_str(f"step {step} loss {float(value.detach()):.3f}")
            bar.update(min(done, 1.0) - bar.n)
    bar.close()
    model.eval().requires_grad_(False)
    result: dict[str, Any] = {"steps": step, "views": views, "minutes": round((time.monotonic() - start) / 60, 1)}
    if before is not None and validation:
        result |= {"before": dataclasses.asdict(before)}
        result |= {"after": dataclasses.asdict(measure_matching(model, loss, validation))}
    return result
