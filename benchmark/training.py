# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Time of a training step of the denoiser on a CPU: float32, and bfloat16 with and without what it needs there.

    python3 benchmark/training.py [--repeat 5] [--threads 1]

Forward and backward of the loss on made-up views, those of the refine pass (4 views of 192 x 192 pixels, 4 objects) and
those of the coarse pass (2 of 288 x 288, 8 objects). `autocast alone` is bfloat16 with the fused attention and with
the backbone in bfloat16, too. Medians, in turn in one process; ratios are what counts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.model import OCDiT, TemplateFeatures, blocks, load_checkpoint
from ocdit_ros.segment.weights import default_weights
from ocdit_ros.train.dataset import Batch
from ocdit_ros.train.trainer import TrainingLoss

VIEWS = {"refine pass": (4, 192, 4), "coarse pass": (2, 288, 8)}  # count, side in pixels, objects


def made_up(model: OCDiT, count: int, side: int, objects: int) -> Batch:
    """A batch whose numbers mean nothing and whose sizes are those of training."""
    config = model.config
    with torch.no_grad():
        maps = model.backbone(torch.rand(config.templates, 3, config.template_size, config.template_size))
    coverage = torch.ones(count, objects, config.templates, *maps[-1].shape[-2:])
    features = TemplateFeatures(tuple(m.expand(count, objects, *m.shape).clone() for m in maps), coverage)
    masks = (torch.rand(count, objects, side // 16, side // 16) > 0.8).byte().repeat_interleave(16, 2)
    keys = [[str(n) for n in range(objects)]] * count
    return Batch(
        torch.rand(count, 3, side, side),
        masks.repeat_interleave(16, 3),
        torch.rand(count, objects) + 0.1,
        keys,
        features,
    )


@contextmanager
def autocast_alone(model: OCDiT) -> Iterator[None]:
    """bfloat16 wherever PyTorch takes it."""
    plain = model.image_features

    def rough(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(images)

    def fused(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    with mock.patch.object(model, "image_features", rough), mock.patch.object(blocks, "attention", fused):
        yield


def step(loss: TrainingLoss, batch: Batch, sigma: torch.Tensor, noise: torch.Tensor, bfloat16: bool) -> float:
    """Seconds of forward and backward."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        value = loss(batch, sigma, noise)
    loss.zero_grad(set_to_none=True)
    value.backward()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = copy.deepcopy(load_checkpoint(arguments.weights or default_weights())).train()
    for name, part in model.named_children():
        part.requires_grad_(name not in ("vae", "backbone"))
    loss = TrainingLoss(model, matching=0.5)
    print(f"{torch.get_num_threads()} threads, medians of {arguments.repeat}")
    for title, (count, side, objects) in VIEWS.items():
        batch = made_up(model, count, side, objects)
        noise = torch.randn(count, objects, model.config.latent_channels, side // 16, side // 16)
        sigma = torch.full((count,), 10.0)

        def alone(batch: Batch = batch, sigma: torch.Tensor = sigma, noise: torch.Tensor = noise) -> float:
            with autocast_alone(model):
                return step(loss, batch, sigma, noise, True)

        ways: dict[str, Callable[[], float]] = {
            "float32": lambda b=batch, s=sigma, n=noise: step(loss, b, s, n, False),
            "bfloat16, autocast alone": alone,
            "bfloat16": lambda b=batch, s=sigma, n=noise: step(loss, b, s, n, True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.repeat + 1):  # the first warms up
            for name, way in ways.items():
                took = way()
                if turn:
                    seconds[name].append(took)
        middle = {name: statistics.median(some) for name, some in seconds.items()}
        for name, took in middle.items():
            print(f"{title}: {name} {took:.2f} s, {middle['float32'] / took:.2f} times float32")


if __name__ == "__main__":
    main()
