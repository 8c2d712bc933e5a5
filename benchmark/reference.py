# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The package beside a straightforward rendering of the paper's loop, on the same weights and the same noise.

    python3 benchmark/reference.py loop [--objects 8] [--repeat 5]      # same settings, same masks: how much sooner
    python3 benchmark/reference.py paper [--objects 8] [--evaluations 2]  # the default beside the paper's settings

`loop`: the reference takes crops and groups one after the other, makes the tokens, keys and values of all templates
anew at each evaluation, and decodes masks one by one. Backbone features of templates are kept in both, those of a crop
are made once in both. `paper`: 17 evaluations, 3 samples, joint self-attention over the tokens of all objects at the
image's own resolution, by a network of the same width and depth; `--evaluations` of the 17 are timed and scaled up.

Times are medians, alternating between the two in one process; ratios are what counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.model import SamplerSettings, TemplateFeatures, load_checkpoint
from ocdit_ros.model.ocdit import OCDiT
from ocdit_ros.model.sampler import normal, trajectory
from ocdit_ros.segment import Segmenter, SegmenterSettings
from ocdit_ros.segment.models import read_models
from ocdit_ros.segment.network import KnownObject, Network, Output
from ocdit_ros.segment.weights import default_weights

ROOT = Path(__file__).resolve().parents[1]


class ReferenceNetwork(Network):
    """The same network without any of the savings."""

    def __init__(self, model: OCDiT, device: str = "cpu") -> None:
        super().__init__(model, device)
        self._backbone = model.image_backbone or model.backbone

    @torch.enable_grad()  # there is nothing to record, and the model keeps off its shorter ways
    def run(
        self,
        images: Sequence[np.ndarray],
        rows: Sequence[Sequence[KnownObject]],
        slots: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        targets: int,
        sampler: SamplerSettings,
        seed: int = 0,
        *_: Any,
    ) -> Output:
        """As `Network.run`, row by row, for one frame."""
        clock = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        confidences, similarities = [], []
        model, config, made = self.model, self.config, {}
        for row, slot, number in zip(rows, slots, image_of_row, strict=True):
            if number not in made:
                image = torch.from_numpy(images[number]).to(self.device).movedim(-1, 0)[None].float() / 255
                made = {number: model.image_features(image)}
            seen = made[number]
            templates = TemplateFeatures.stack([known.features for known in row])
            diameters = torch.tensor([[known.diameter for known in row]])
            places = torch.tensor([slot])

            def denoise(x: torch.Tensor, sigma: torch.Tensor, templates=templates, diameters=diameters,
                        places=places, seen=seen) -> torch.Tensor:  # fmt: skip
                conditioning = model.condition(templates, diameters, places)
                return torch.cat([model.denoise(one[None], sigma.reshape(1), seen, conditioning) for one in x])

            height, width = seen[-1].shape[-2:]
            shape = (len(row) * config.queries_per_object, config.latent_channels, height, width)
            noise = normal(torch.empty(sampler.ensemble, *shape, device=self.device), generator)
            for x in trajectory(denoise, noise, sampler, config.sigma_min, config.sigma_max, config.rho, generator):
                latents = x
            shown = latents[:, : targets * config.queries_per_object]
            masks = [[model.confidence(query[None])[0] for query in one] for one in shown]
            confidence = torch.stack([torch.stack(one) for one in masks])
            confidences.append(confidence.unflatten(1, (targets, config.queries_per_object)).cpu().numpy())
            conditioning = model.condition(templates, diameters, places)
            similarities.append(self._similarity(seen, [row], conditioning, targets)[0])
        self.timings.add("sampling", clock)
        return Output(np.stack(confidences).astype(np.float32), np.stack(similarities))


def segmenters(arguments: argparse.Namespace, *networks: Network) -> list[Segmenter]:
    """One Segmenter for each network, with the same objects."""
    specs = list(read_models(arguments.models).values())
    while len(specs) < arguments.objects:
        specs = [*specs, *(dataclasses.replace(s, name=f"{s.name} again {len(specs)}") for s in specs)]
    made = []
    for network in networks:
        segmenter = Segmenter(network)
        segmenter.scorer = Segmenter(network.model).scorer
        for spec in specs[: arguments.objects]:
            segmenter.add_object(spec)
        made.append(segmenter)
    return made


def loop(arguments: argparse.Namespace, rgb: np.ndarray) -> None:
    """Same architecture, evaluations and machine."""
    ours, reference = segmenters(
        arguments, Network(load_checkpoint(arguments.weights)), ReferenceNetwork(load_checkpoint(arguments.weights))
    )
    print(f"{arguments.objects} objects, {rgb.shape[1]} x {rgb.shape[0]}, {torch.get_num_threads()} threads")
    print("| settings | pass | reference, s | ours, s | ratio | instances | lowest IoU of masks |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for title, changes in (
        ("default", {}),
        ("4 evaluations, 3 noises", {"steps": 4, "ensemble": 3, "coarse_ensemble": 3}),
    ):
        settings = SegmenterSettings(**changes)
        times: dict[str, dict[str, list[float]]] = {"reference": {}, "ours": {}}
        found = {}
        for turn in range(arguments.repeat + 1):
            for name, segmenter in (("reference", reference), ("ours", ours)):
                segmenter.settings = settings
                found[name] = segmenter.segment(rgb)
                if turn:  # the first fills caches
                    for stage, seconds in segmenter.last_timings.items():
                        times[name].setdefault(stage, []).append(seconds)
        same = [
            float((a.mask & b.mask).sum() / max((a.mask | b.mask).sum(), 1)) if a.name == b.name else 0.0
            for a, b in zip(found["ours"], found["reference"], strict=True)
        ]
        for stage in ("coarse", "refine", "total"):
            slow, fast = (statistics.median(times[name][stage]) for name in ("reference", "ours"))
            print(
                f"| {title} | {stage} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {len(same)} "
                f"| {min(same, default=1.0):.4f} |",
                flush=True,
            )


@torch.inference_mode()
def paper(arguments: argparse.Namespace, rgb: np.ndarray) -> None:
    """The default settings beside the paper's: 17 evaluations of 3 samples with joint self-attention."""
    shipped = load_checkpoint(arguments.weights)
    (ours,) = segmenters(arguments, Network(shipped))
    joint = OCDiT(dataclasses.replace(shipped.config, self_attention="joint")).eval().requires_grad_(False)
    own = joint.state_dict()
    joint.load_state_dict({name: shipped.state_dict()[name] for name in own})
    network = Network(joint)
    rows = [ours._catalogue]
    slots = [ours._slots(range(len(ours._catalogue)))]
    sides = tuple(side // 16 * 16 for side in rgb.shape[:2])
    picture = np.ascontiguousarray(rgb[: sides[0], : sides[1]])
    coarse, crop, evaluated = [], [], []
    for turn in range(arguments.repeat + 1):
        start = time.perf_counter()
        found = ours.segment(rgb)
        middle = time.perf_counter()
        network.run([picture], rows, slots, [0], len(rows[0]), SamplerSettings(arguments.evaluations, "euler", 1))
        after = time.perf_counter()
        patch = picture[:192, :192].copy()
        few = [ours._catalogue[:4]]
        network.run([patch], few, [ours._slots(range(len(few[0])))], [0], 1, SamplerSettings(17, "heun", 3))
        end = time.perf_counter()
        if turn:
            coarse.append(middle - start)
            evaluated.append((after - middle) / arguments.evaluations)
            crop.append(end - after)
    default, one, refine = (statistics.median(times) for times in (coarse, evaluated, crop))
    crops = max(len(found), 1)
    whole = one * 17 * 3 + refine * crops
    print(f"{arguments.objects} objects, {rgb.shape[1]} x {rgb.shape[0]}, {torch.get_num_threads()} threads")
    print(f"default, measured: {default:.2f} s")
    print(f"one evaluation with joint self-attention: {one:.2f} s, of 17 x 3: {one * 51:.0f} s")
    print(f"one crop of 192 x 192 with 4 objects, 17 evaluations of 3 samples: {refine:.1f} s, here {crops} crops")
    print(f"the paper's settings: {whole:.0f} s; ratio {whole / default:.0f}")


def main() -> None:
    """Parse the command line and print."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("loop", "paper"))
    parser.add_argument("--image", default=str(ROOT / "sample/test/000004/rgb/000001.png"))
    parser.add_argument("--models", default=str(ROOT / "sample/models"))
    parser.add_argument("--weights", default=None)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=2)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    arguments.weights = arguments.weights or default_weights()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rgb = np.array(Image.open(arguments.image).convert("RGB"))
    {"loop": loop, "paper": paper}[arguments.what](arguments, rgb)


if __name__ == "__main__":
    main()
