# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Operations and bytes of each stage of one frame, the least time they imply, and how far from it the package is.

    python3 benchmark/roofline.py [--objects 8] [--threads 1] [--repeat 5]

Operations are those of convolutions, linear layers and attention (torch.utils.flop_counter). Bytes are what each of
all operations must read and write once, as they are run; fusing more of them would need fewer. The machine's peaks are
measured here: the best of several matrix products, and of a copy that no cache holds. For the H100 the makers' figures
stand in (SXM, dense): 989 TFLOP/s in bfloat16, 3.35 TB/s, half the bytes.

Times are CPU time of the process where it runs one thread, wall time otherwise; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.model.sampler import noise_levels
from ocdit_ros.segment import Segmenter
from ocdit_ros.segment.benchmark import benchmark as fill
from ocdit_ros.segment.benchmark import random_image
from ocdit_ros.segment.views import tiled, whole_image

H100 = (989e12, 3.35e12)


class Bytes(TorchDispatchMode):
    """Sum of the sizes of all tensors that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return result


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Median time of `work`, after one that does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    times = []
    for _ in range(repeat):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def peaks(repeat: int) -> tuple[float, float]:
    """FLOP/s of matrix products and bytes/s of a copy on this machine."""
    rates = []
    for side in (512, 1024, 2048):
        x = torch.rand(side, side)
        rates.append(2 * side**3 / seconds(lambda x=x: x @ x, repeat))
    much = torch.rand(2**26)
    target = torch.empty_like(much)
    return max(rates), 2 * much.numel() * 4 / seconds(lambda: target.copy_(much), repeat)


def count(work: Callable[[], Any]) -> tuple[int, int]:
    """FLOPs and bytes of `work`."""
    # the CPU's attention is not among those that the counter knows
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as flops:
        work()
    with Bytes() as moved:
        work()
    return flops.get_total_flops(), moved.total


@torch.no_grad()
def main() -> None:
    """Count, time and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--crops", type=int, default=8, help="proposals that the refine pass looks at")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    segmenter = Segmenter.from_checkpoint()
    fill(segmenter, random_image(48, 64), [arguments.objects], 1)  # fills the catalogue
    network, model, settings = segmenter.network, segmenter.network.model, segmenter.settings
    config = model.config
    view = whole_image(480, 640, settings.coarse_size)
    looks = len([view, *tiled(view, settings.tiles)])
    peak, bandwidth = peaks(arguments.repeat)
    print(f"{arguments.objects} objects, 640 x 480, {arguments.crops} crops; {arguments.threads} thread(s)")
    print(f"peaks measured: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    print(
        "| stage | times a frame | GFLOP | MB | least here, ms | measured, ms | share of the peak | H100, least, ms |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    totals = np.zeros(4)
    passes = (
        ("coarse", view.canvas, settings.group_size, looks * -(-arguments.objects // settings.group_size), None),
        ("refine", (settings.crop_size,) * 2, settings.crop_objects, arguments.crops * settings.augmentations, 1),
    )
    for name, canvas, group, times, targets in passes:
        known = segmenter._catalogue[: min(group, arguments.objects)]
        image = torch.from_numpy(np.ascontiguousarray(random_image(*canvas))).movedim(-1, 0)[None].float() / 255
        maps = network._backbone(image)
        conditioning = network.condition([known], [segmenter._slots(range(len(known)))])
        context = model.query_context(maps, conditioning)
        grid = (canvas[0] // 16, canvas[1] // 16)
        shown = len(known) if targets is None else targets
        latents = torch.randn(1, len(known), config.latent_channels, *grid)
        sigma = noise_levels(1, config.sigma_min, config.sigma_max, config.rho).float()[:1]
        stages: tuple[tuple[str, Callable[[], Any]], ...] = (
            ("backbone", lambda image=image: network._backbone(image)),
            (
                "embedding, correlation",
                lambda maps=maps, conditioning=conditioning: model.query_context(maps, conditioning),
            ),
            (
                "one evaluation",
                lambda latents=latents, sigma=sigma, context=context: model.denoise_in_context(
                    latents * 80, sigma, context
                ),
            ),
            ("decoder", lambda latents=latents, shown=shown: model.confidence(latents[0, :shown])),
        )
        for stage, work in stages:
            flops, moved = count(work)
            taken = seconds(work, arguments.repeat)
            here = max(flops / peak, moved / bandwidth)
            there = max(flops / H100[0], moved / 2 / H100[1])
            totals += np.array([flops, here, taken, there]) * times
            print(
                f"| {name}: {stage} | {times} | {flops / 1e9:.2f} | {moved / 1e6:.0f} | {1e3 * here:.1f} "
                f"| {1e3 * taken:.1f} | {100 * flops / peak / taken:.0f} % | {1e3 * there:.4f} |",
                flush=True,
            )
    flops, here, taken, there = totals
    print(
        f"| **a frame** | | {flops / 1e9:.0f} | | {1e3 * here:.0f} | {1e3 * taken:.0f} "
        f"| {100 * flops / peak / taken:.0f} % | {1e3 * there:.2f} |"
    )


if __name__ == "__main__":
    main()
