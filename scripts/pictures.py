#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of docs/how-it-works.md and the animation of README.md from the sample and the shipped weights.

    python scripts/pictures.py [--out docs/images] [--object ycb_power_drill] [--image PHOTO]

Everything shown is what the code computes: templates as they are rendered, latents and masks after each step of the
sampler, attention weights of one query token to the template tokens of its object.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from ocdit_ros.model.blocks import split_heads  # noqa: E402
from ocdit_ros.segment import Segmenter, SegmenterSettings, draw  # noqa: E402
from ocdit_ros.segment.models import read_models  # noqa: E402
from ocdit_ros.templates import TemplateCache  # noqa: E402

STEPS = 10
PAPER = 255  # white, between the parts of a picture


def titled(picture: np.ndarray, text: str, width: int) -> np.ndarray:
    """The picture at that width, with a line of text above."""
    height = round(picture.shape[0] * width / picture.shape[1])
    smaller = width < picture.shape[1]
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
    head = np.full((20, width, 3), PAPER, np.uint8)
    cv2.putText(head, text, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([head, resized])


def beside(pictures: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures of one height in a row."""
    space = np.full((pictures[0].shape[0], gap, 3), PAPER, np.uint8)
    row = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)


def below(rows: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Rows one below the other, filled up to one width."""
    width = max(row.shape[1] for row in rows)
    filled = []
    for row in rows:
        filled += [np.full((gap, width, 3), PAPER, np.uint8)] if filled else []
        filled.append(np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER))
    return np.concatenate(filled)


def colours_of(latents: list[torch.Tensor]) -> list[np.ndarray]:
    """Latents [d, h, w] as pictures: the three directions in which the last one varies most, as red, green, blue."""
    last = latents[-1].flatten(1)
    mean = last.mean(1, keepdim=True)
    axes = torch.linalg.svd(last - mean, full_matrices=False).U[:, :3].T  # [3, d]
    spread = 3 * (axes @ (last - mean)).std(1, keepdim=True)
    pictures = []
    for latent in latents:
        shown = 0.5 + 0.5 * (axes @ (latent.flatten(1) - mean)) / spread
        grid = shown.clamp(0, 1).view(3, *latent.shape[1:]).movedim(0, -1).numpy()
        pictures.append((255 * grid).astype(np.uint8))
    return pictures


def token_patches(coverage: torch.Tensor, minimum: float, most: int) -> torch.Tensor:
    """Patch [n] of each template token of an object in evaluation, as `OCDiT` picks them; coverage [N_T, h, w]."""
    foreground = (coverage >= minimum).flatten().nonzero().flatten()
    keep = min(most, len(foreground)) if most else len(foreground)
    return foreground[torch.arange(keep) * len(foreground) // keep]


def main() -> None:
    """Parse the command line and write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--image", type=Path, default=ROOT / "sample" / "test" / "000004" / "rgb" / "000000.png")
    parser.add_argument("--models", type=Path, default=ROOT / "sample" / "models")
    parser.add_argument("--object", default="ycb_power_drill")
    parser.add_argument("--cache", type=Path, help="folder of templates; default: the node's")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    segmenter = Segmenter.from_checkpoint(None, "cpu", SegmenterSettings(), TemplateCache(options.cache))
    specs = {spec.name: spec for spec in read_models(options.models).values()}
    for spec in specs.values():
        segmenter.add_object(spec)
    number = list(specs).index(options.object)
    network = segmenter.network
    rgb = np.asarray(Image.open(options.image).convert("RGB"))
    templates = TemplateCache(options.cache).get(specs[options.object]).templates

    # Templates: six of them, colour above coverage.
    some = range(0, len(templates.images), 2)
    sheet = below(
        [
            beside([titled(templates.images[i], f"view {i + 1}", 128) for i in some]),
            beside([np.repeat(templates.masks[i][..., None], 3, axis=2) for i in some]),
        ]
    )
    save(sheet, options.out / "how-templates.jpg")

    # Denoising: what `Segmenter.trace` decodes, recorded together with the latents.
    states: list[torch.Tensor] = []
    decode = network._decode

    def record(latents: torch.Tensor, targets: int) -> np.ndarray:
        states.append(latents.clone())
        return decode(latents, targets)

    seen_by: dict[int, tuple[torch.Tensor, ...]] = {}

    def watch(number: int, look: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(*given: torch.Tensor) -> torch.Tensor:
            seen_by[number] = given
            return look(*given)

        return watched

    for b, block in enumerate(network.model.blocks):
        block.cross.look = watch(b, block.cross.look)
    network._decode = record  # type: ignore[method-assign]
    view, frames = segmenter.trace(rgb, STEPS)
    for block in network.model.blocks:
        del block.cross.look
    seen = view.sample(rgb)
    rows, _, places = segmenter._groups(range(len(specs)))
    row, column = places[number]
    latents = [state[row, 0, column] for state in states[:STEPS]]
    chosen = [0, 2, 4, 6, 7, STEPS - 1]
    shown = colours_of([latents[i] for i in chosen])
    masks = [draw.trace_frame(seen, frames[i][number : number + 1], [number + 1]) for i in chosen]
    everything = [draw.trace_frame(seen, frames[i], range(1, len(specs) + 1)) for i in chosen]
    names = [f"after step {i + 1}" for i in chosen]
    save(
        below(
            [
                beside([titled(p, n, 200) for p, n in zip(shown, names)]),
                beside([titled(p, "decoded: " + options.object.removeprefix("ycb_"), 200) for p in masks]),
                beside([titled(p, "decoded: all objects", 200) for p in everything]),
            ]
        ),
        options.out / "how-denoising.jpg",
    )

    # Attention: from the place where the object is surest to its template tokens, last step, each block.
    network._decode = decode  # type: ignore[method-assign]
    final = frames[-1][number]
    height, width = (side // 16 for side in seen.shape[:2])
    sure = final.reshape(height, 16, width, 16).mean((1, 3))
    y, x = np.unravel_index(int(sure.argmax()), sure.shape)
    known = rows[row][column]
    coverage = known.features.coverage.float().cpu()
    patches = token_patches(coverage, network.config.min_coverage, network.config.max_template_tokens)
    index = row * len(rows[0]) + column
    weights = torch.zeros(coverage.numel())
    last = len(seen_by) - 1
    attention = network.model.blocks[last].cross
    tokens, keys, _, mask = seen_by[last]
    with torch.inference_mode():
        query = split_heads(attention.query(tokens[index : index + 1]), attention.heads)[:, :, y * width + x]
        key = keys[index : index + 1]
        score = torch.einsum("bhd,bhnd->bhn", query, key) / query.shape[-1] ** 0.5
        score = score.masked_fill(~mask[index : index + 1, 0], -torch.inf).softmax(-1).mean(1)[0]
    weights[patches] = score[: len(patches)]
    heat = weights.view(coverage.shape).numpy()
    order = np.argsort(-heat.max((1, 2)))[:6]
    tiles = []
    for i in order:
        picture = templates.images[i]
        side = picture.shape[0]
        glow = cv2.resize(heat[i] / heat.max(), (side, side), interpolation=cv2.INTER_NEAREST)[..., None]
        tinted = picture * 0.55 * (1 - 0.75 * glow) + np.array([255, 140, 0]) * 0.75 * glow
        tiles.append(titled(tinted.astype(np.uint8), f"view {i + 1}: {100 * heat[i].sum():.0f} %", 160))
    marked = seen.copy()
    corner, end = (int(x) * 16, int(y) * 16), (int(x) * 16 + 15, int(y) * 16 + 15)
    cv2.rectangle(marked, corner, end, (255, 140, 0), 2)
    size = 2 * tiles[0].shape[0] + 6 - 20
    side = beside([titled(marked, "query token", round(size * marked.shape[1] / marked.shape[0]))])
    right = below([beside(tiles[:3]), beside(tiles[3:])])
    side = np.pad(side[: right.shape[0]], ((0, max(0, right.shape[0] - side.shape[0])), (0, 0), (0, 0)),
                  constant_values=PAPER)  # fmt: skip
    save(beside([side, right]), options.out / "how-attention.jpg")

    # The animation: steps, then the result of the whole Segmenter.
    result = draw.overlay(rgb, segmenter.segment(rgb))
    shape = (480, round(480 * rgb.shape[0] / rgb.shape[1]))
    film = [cv2.resize(rgb, shape, interpolation=cv2.INTER_AREA)]
    for frame in frames:
        film.append(cv2.resize(draw.trace_frame(seen, frame, range(1, len(specs) + 1)), shape))
    film.append(cv2.resize(result, shape, interpolation=cv2.INTER_AREA))
    pictures = [Image.fromarray(one) for one in film]
    durations = [1200, *[220] * STEPS, 3000]
    target = options.out / "emerge.webp"
    pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=78)
    print(f"{target}: {target.stat().st_size / 1024:.0f} kB")


def save(picture: np.ndarray, path: Path) -> None:
    """Write a JPEG and say so."""
    Image.fromarray(picture).save(path, quality=88, optimize=True)
    print(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
