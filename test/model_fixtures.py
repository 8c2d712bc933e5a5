# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""What the tests of `ocdit_ros.model` share: small live networks, random queries, and a naive reference."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ocdit_ros.model import Backbone, Features, ModelConfig, OCDiT, TemplateFeatures

# the weights in the tree; another file can be named to test it before it ships
SHIPPED = sorted((Path(__file__).parents[1] / "weights").glob("*.safetensors"))
if "OCDIT_TEST_WEIGHTS" in os.environ:
    SHIPPED = [Path(os.environ["OCDIT_TEST_WEIGHTS"])]


@functools.cache
def one_backbone(name: str, strides: tuple[int, ...]) -> Backbone:
    """Building a timm network takes longer than all the rest of a small model."""
    torch.manual_seed(0)
    return Backbone(name, strides)


def new_model(seed: int = 0, **changes: Any) -> OCDiT:
    """A freshly initialised `tiny` network."""
    with mock.patch("ocdit_ros.model.ocdit.Backbone", lambda *a: copy.deepcopy(one_backbone(*a))):
        config = ModelConfig.preset("tiny", **changes)
        one_backbone(config.backbone, config.feature_strides)
        torch.manual_seed(seed)
        return OCDiT(config).eval()


def live_model(seed: int = 0, **changes: Any) -> OCDiT:
    """A `tiny` network whose adaLN, output and size encodings are not zero, so that every part of it has an effect."""
    model = new_model(seed, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("backbone.", "vae.")) and not parameter.any():
                parameter.normal_(std=0.2)
    return model


def firm_model(**changes: Any) -> OCDiT:
    """A `live_model` whose masks are firm: an untrained decoder is undecided everywhere."""
    model = live_model(**changes)
    with torch.no_grad():
        model.vae.decoder[10].weight *= 60.0
    return model


@dataclasses.dataclass
class Query:
    """Random features of B images and of N_O objects each, as the backbone would give them."""

    image: Features
    templates: TemplateFeatures
    diameters: Tensor
    slots: Tensor
    latents: Tensor  # unit noise [B, N_Q, d, h, w]

    def rows(self, index: list[int]) -> Query:
        """Some of the B rows."""
        return Query(
            tuple(m[index] for m in self.image),
            TemplateFeatures(tuple(m[index] for m in self.templates.maps), self.templates.coverage[index]),
            self.diameters[index],
            self.slots[index],
            self.latents[index],
        )


def random_query(
    model: OCDiT,
    batch: int = 2,
    objects: int = 3,
    height: int = 5,
    width: int = 4,
    seed: int = 0,
    templates: int | None = None,
) -> Query:
    """Draw a query with about half of every template's patches covered."""
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count = templates or config.templates
    grids = [16 // s for s in config.feature_strides]
    image = tuple(draw(batch, c, height * r, width * r) for c, r in zip(model.backbone.channels, grids))
    side = config.template_grid
    maps = tuple(draw(batch, objects, count, c, side * r, side * r) for c, r in zip(model.backbone.channels, grids))
    coverage = torch.rand(batch, objects, count, side, side, generator=generator).sub(0.15).clamp_min(0)
    slots = torch.stack([torch.randperm(config.max_objects, generator=generator)[:objects] for _ in range(batch)])
    return Query(
        image,
        TemplateFeatures(maps, coverage),
        torch.rand(batch, objects, generator=generator) * 0.3 + 0.05,
        slots,
        draw(batch, objects * config.queries_per_object, config.latent_channels, height, width),
    )


def denoise(model: OCDiT, query: Query, sigma: float | Tensor, latents: Tensor | None = None) -> Tensor:
    """D(y; sigma) with y = sigma * query.latents unless given."""
    levels = torch.as_tensor(sigma, dtype=torch.float32).expand(query.latents.shape[0])
    if latents is None:
        latents = levels.view(-1, 1, 1, 1, 1) * query.latents
    conditioning = model.condition(query.templates, query.diameters, query.slots)
    with torch.no_grad():
        return model.denoise(latents, levels, query.image, conditioning)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention, spelled out, of query [n, c] to key and value [m, c]."""
    parts = [
        (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1))
    ]
    return torch.cat(parts, -1)


def reference_denoise(model: OCDiT, query: Query, row: int, noisy: Tensor, sigma: float) -> Tensor:
    """D(noisy [N_Q, d, h, w]; sigma) for one row, as the paper writes it: nothing cached, batched, padded or masked.

    An independent second implementation on the same parameters. It has no template correlation and keeps every
    foreground patch.
    """
    config = model.config
    assert not config.correlation_width and not config.max_template_tokens
    side, (height, width) = config.template_grid, noisy.shape[-2:]
    variance = sigma**2 + config.sigma_data**2
    noise = model.noise_embedding(torch.tensor([sigma]))[0]

    encodings, memories = [], []
    for j in range(query.templates.coverage.shape[1]):
        slot = int(query.slots[row, j])
        tokens = []
        for t in range(query.templates.coverage.shape[2]):
            embedded = sum(
                p(m[row, j, t][None])[0] for p, m in zip(model.template_embedding.projections, query.templates.maps)
            )
            for y in range(side):
                for x in range(side):
                    if query.templates.coverage[row, j, t, y, x] >= config.min_coverage:
                        tokens.append(
                            embedded[:, y, x]
                            + model.template_patch_encoding[y * side + x]
                            + model.template_encoding.weight[t]
                            + model.template_object_encoding.weight[slot]
                        )
        memories.append(torch.stack(tokens))
        encoding = model.object_encoding.weight[slot]
        if model.size_encoding is not None:
            encoding = encoding + model.size_encoding(query.diameters[row][None])[0, j]
        encodings += [encoding + model.instance_encoding.weight[i] for i in range(config.queries_per_object)]

    table = model.patch_encoding.table
    top, left = (table.shape[0] - height) // 2, (table.shape[1] - width) // 2
    place = table[top : top + height, left : left + width].flatten(0, 1)
    image = model.image_embedding(tuple(m[row][None] for m in query.image))[0].flatten(1).T
    latent = model.latent_embedding(noisy / variance**0.5).flatten(2).transpose(1, 2)
    states = [latent[q] + image + place + encodings[q] for q in range(noisy.shape[0])]  # each [n_q, d_e]

    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift

    for block in model.blocks:
        parts = block.modulation.linear(noise).chunk(9)
        for q in range(len(states)):
            memory = block.cross.norm(memories[q // config.queries_per_object])
            key, value = block.cross.key_value(memory).chunk(2, -1)
            seen = attend(block.cross.query(modulate(states[q], parts[0], parts[1])), key, value, config.heads)
            states[q] = states[q] + parts[2] * block.cross.out(seen)
        inputs = [modulate(s, parts[3], parts[4]) for s in states]
        if config.self_attention == "joint":
            mixed = torch.cat(inputs)
            seen = block.self.out(attend(*block.self.qkv(mixed).chunk(3, -1), config.heads)).chunk(len(states))
        else:
            together = torch.stack(inputs)
            exchange = block.self.exchange(torch.cat([together.mean(0), together.max(0).values], -1))
            seen = [block.self.out(attend(*block.self.qkv(x).chunk(3, -1), config.heads)) + exchange for x in inputs]
        states = [s + parts[5] * y for s, y in zip(states, seen)]
        states = [s + parts[8] * block.mlp(modulate(s, parts[6], parts[7])) for s in states]
    shift, scale = model.final_modulation.linear(noise).chunk(2)
    output = torch.stack([model.final(modulate(s, shift, scale)).T.view(-1, height, width) for s in states])
    skip, out = config.sigma_data**2 / variance, sigma * config.sigma_data / variance**0.5
    return skip * noisy + out * output
