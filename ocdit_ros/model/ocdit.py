# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""OC-DiT: an object-conditioned diffusion transformer over mask latents (arXiv 2508.04122, Sec. 3.3).

Reading order follows the paper: features of templates -> `condition` (once per object) -> features of an image ->
`query_context` (once per image) -> `denoise` (once per noise level).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocdit_ros.model.backbone import Backbone, Features
from ocdit_ros.model.blocks import Block, Modulation
from ocdit_ros.model.config import ModelConfig
from ocdit_ros.model.edm import preconditioning
from ocdit_ros.model.embeddings import (
    BoxPrompt,
    FeatureEmbedding,
    FourierFeatures,
    NoiseEmbedding,
    PatchEncoding,
    SizeEncoding,
    TemplateCorrelation,
)
from ocdit_ros.model.vae import MaskVAE

#: Product of two appearances from which on the objects look the same. Same mesh in two sizes: 0.97 and more; same shape
#: with another print: up to 0.94; unrelated ones: up to 0.79 (objects of held-out scenes).
SAME_LOOK = 0.95


@dataclasses.dataclass(frozen=True)
class TemplateFeatures:
    """Backbone features of rendered templates; leading dimensions [B, N_O, N_T] or [N_O, N_T]."""

    maps: Features  # one [..., N_T, C_s, S/s, S/s] per stride
    coverage: Tensor  # [..., N_T, h_T, w_T], share of each /16 patch that shows the object, 0..1

    def to(self, device: torch.device | str) -> TemplateFeatures:
        """Move to a device, as float32."""
        return TemplateFeatures(
            tuple(m.to(device, torch.float32) for m in self.maps), self.coverage.to(device, torch.float32)
        )

    def appearance(self) -> Tensor:
        """Features [N_T, ...] of one object as one unit vector, float16: the scalar product of two objects' is the mean
        cosine of what their templates show at the same places.
        """
        tokens, share = self._shown()
        return (tokens * share.sqrt()[:, None]).flatten().half().cpu()

    def mean(self) -> Tensor:
        """Mean feature [C] of what the templates [N_T, ...] of one object show."""
        tokens, share = self._shown()
        return (tokens * share[:, None]).sum((0, 2, 3))

    def _shown(self) -> tuple[Tensor, Tensor]:
        """Features of the coarsest map as unit vectors, and the share of each in what is shown; shares add up to 1."""
        tokens = F.normalize(self.maps[-1].float(), dim=1)
        share = F.adaptive_avg_pool2d(self.coverage.float(), (tokens.shape[-2], tokens.shape[-1]))
        return tokens, share / share.sum().clamp_min(1e-6)

    @staticmethod
    def stack(parts: list[TemplateFeatures]) -> TemplateFeatures:
        """Join features of single objects [N_T, ...] (or of whole queries) along a new leading dimension."""
        return TemplateFeatures(
            tuple(torch.stack(m) for m in zip(*(p.maps for p in parts))), torch.stack([p.coverage for p in parts])
        )


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """All that the network needs of the objects of a query; depends on the objects alone, not on image or sigma."""

    keys: tuple[Tensor, ...]  # per block [B, N_O, heads, n, d_h]
    values: tuple[Tensor, ...]  # per block [B, N_O, heads, n, d_h]
    valid: Tensor  # [B, N_O, n] bool, False = padding
    query_encoding: Tensor  # [B, N_Q, d_e] object, instance and size encodings of the queries
    correlation_keys: Tensor | None  # [B, N_O, n, d_c] unit vectors

    @property
    def objects(self) -> int:
        """N_O."""
        return self.valid.shape[1]


@dataclasses.dataclass(frozen=True)
class QueryContext:
    """What the blocks need besides the noisy latents and sigma; made once per image and set of objects."""

    embedding: Tensor  # [B, N_Q, n_q, d_e]
    keys: tuple[Tensor, ...]  # per block [B * N_O, heads, n, d_h]
    values: tuple[Tensor, ...]
    mask: Tensor  # [B * N_O, 1, 1, n] bool
    grid: tuple[int, int]  # h, w
    best_cosines: Tensor | None = None  # `TemplateCorrelation.compare`, a row for each image and set of objects

    @property
    def shape(self) -> tuple[int, int]:
        """B, N_Q."""
        return self.embedding.shape[0], self.embedding.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.embedding.device


class OCDiT(nn.Module):
    """The denoiser D(y; sigma, image, templates) with its frozen backbone and mask VAE."""

    def __init__(self, config: ModelConfig) -> None:
        """Build with random weights; every block starts as the identity."""
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}  # how the weights came about; checkpoints carry it
        width = config.width
        self.backbone = Backbone(config.backbone, config.feature_strides)
        self.image_backbone = copy.deepcopy(self.backbone) if config.image_backbone else None
        if self.image_backbone is not None:
            self.image_backbone.trainable = True
        self.vae = MaskVAE(config.latent_channels, config.vae_channels, config.vae_blocks, config.sigma_data)
        backbones = [self.backbone] if self.image_backbone is None else [self.backbone, self.image_backbone]
        for convolutional in (*backbones, self.vae):  # a third faster on CPUs, and what tensor cores want
            convolutional.to(memory_format=torch.channels_last)
        channels, strides = self.backbone.channels, config.feature_strides
        # step 4: queries
        self.latent_embedding = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.image_embedding = FeatureEmbedding(channels, strides, width, config.embed_kernel)
        self.patch_encoding = PatchEncoding(config.max_grid, width)
        self.object_encoding = nn.Embedding(config.max_objects, width)
        self.instance_encoding = nn.Embedding(config.queries_per_object, width)
        self.size_encoding = SizeEncoding(width) if config.size_encoding else None
        self.box_prompt = BoxPrompt(width) if config.box_prompt else None
        # step 5: template tokens
        self.template_embedding = FeatureEmbedding(channels, strides, width, 1)
        self.template_patch_encoding = nn.Parameter(torch.randn(config.template_grid**2, width) * 0.1)
        self.template_encoding = nn.Embedding(config.templates, width)
        self.template_object_encoding = nn.Embedding(config.max_objects, width)
        self.correlation = (
            TemplateCorrelation(
                sum(channels),
                config.correlation_strides,
                strides,
                config.correlation_width,
                width,
                config.correlation_hidden,
                config.correlation_background,
            )
            if config.correlation_width
            else None
        )
        # steps 6 to 8
        self.noise_embedding = NoiseEmbedding(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, config.self_attention) for _ in range(config.depth)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = Modulation(width, 2)
        self.final = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.latent_channels))
        self.uncertainty = nn.Sequential(FourierFeatures(width), nn.Linear(width, 1))  # EDM2's u(sigma)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the blocks, small encodings; then zero for adaLN, output, uncertainty and size encoding."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedding in (
            self.object_encoding,
            self.instance_encoding,
            self.template_encoding,
            self.template_object_encoding,
        ):
            nn.init.normal_(embedding.weight, std=0.1)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset_to_zero()
        silent = [self.final[-1], self.uncertainty[-1]]
        if self.size_encoding is not None:
            silent.append(self.size_encoding.mlp[-1])
        for linear in silent:
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)

    def start_image_backbone(self) -> None:
        """Make the backbone of images equal to that of templates, where training begins to tune it."""
        if self.image_backbone is not None:
            self.image_backbone.load_state_dict(self.backbone.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.backbone.rgb_mean.device

    # ---------------------------------------------------------------- once per object

    @torch.no_grad()
    def template_features(self, images: Tensor, masks: Tensor) -> TemplateFeatures:
        """Steps 1 and 3 for templates: images [..., N_T, 3, S, S] and masks [..., N_T, S, S], both in 0..1."""
        lead = images.shape[:-3]
        maps = self.backbone(images.reshape(-1, *images.shape[-3:]))
        coverage = F.avg_pool2d(masks.reshape(-1, 1, *masks.shape[-2:]), self.config.stride)
        return TemplateFeatures(
            tuple(m.reshape(*lead, *m.shape[1:]) for m in maps), coverage.reshape(*lead, *coverage.shape[-2:])
        )

    def _template_tokens(self, features: TemplateFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens [B, N_O, n, d_e], valid [B, N_O, n] and correlation keys, for features with leading [B, N_O, N_T].

        Background patches are left out. Training draws `max_template_tokens` of the rest at random; evaluation takes
        them evenly spaced, all of them if they are fewer. In evaluation n depends on the configuration and N_T alone,
        so that what one object shows never changes another's arithmetic, not even its rounding.
        """
        config = self.config
        batch, objects, templates = features.coverage.shape[:3]
        if templates > config.templates:
            raise ValueError(f"{templates} templates given, the model was built for at most {config.templates}")
        if features.coverage.shape[3:] != (config.template_grid, config.template_grid):
            raise ValueError(
                f"templates of {features.coverage.shape[-1] * config.stride} pixels given, the model was built "
                f"for {config.template_size}"
            )
        foreground = (features.coverage >= config.min_coverage).flatten(2)  # [B, N_O, N_T h_T w_T]
        # an object too thin to cover any patch keeps its best-covered one
        best = F.one_hot(features.coverage.flatten(2).argmax(-1), foreground.shape[-1]).bool()
        foreground = torch.where(foreground.any(-1, keepdim=True), foreground, best)
        count = foreground.sum(-1)  # [B, N_O]
        keep = int(count.max()) if self.training else foreground.shape[-1]
        if config.max_template_tokens:
            keep = min(keep, config.max_template_tokens)
        if self.training:
            order = torch.rand(foreground.shape, device=foreground.device).masked_fill(~foreground, 2.0).argsort(-1)
            index = order[..., :keep]
            valid = torch.arange(keep, device=count.device) < count[..., None]
        else:
            order = torch.argsort((~foreground).to(torch.uint8), dim=-1, stable=True)  # foreground first, in order
            place = torch.arange(keep, device=count.device).expand(*count.shape, keep)
            index = order.gather(-1, place * count[..., None].clamp_min(keep) // keep)
            valid = place < count[..., None]

        # each map as patches on the /16 grid, gathered before they are embedded: background costs nothing
        patches = []
        for feature, stride in zip(features.maps, config.feature_strides):
            x = F.pixel_unshuffle(feature.flatten(0, 2), config.stride // stride)  # [B N_O N_T, C r^2, h_T, w_T]
            x = x.view(batch, objects, templates, x.shape[1], -1).transpose(3, 4).flatten(2, 3)
            patches.append(x.gather(2, index[..., None].expand(*index.shape, x.shape[-1])))
        tokens = self.template_embedding.embed_patches(patches)  # [B, N_O, n, d_e]
        patches_per_template = config.template_grid**2
        tokens = (
            tokens
            + self.template_patch_encoding[index % patches_per_template]
            + self.template_encoding(index.div(patches_per_template, rounding_mode="floor"))
        )
        return tokens, valid, None if self.correlation is None else self.correlation.describe_patches(patches)

    def condition(
        self, template_features: TemplateFeatures, diameters: Tensor, object_slots: Tensor | None = None
    ) -> Conditioning:
        """Template tokens, and from them the keys and values of every block: once per set of objects, exact.

        `template_features` with leading [B, N_O, N_T] or [N_O, N_T] (then B = 1); `diameters` [B, N_O] or [N_O] in
        metres; `object_slots` [B, N_O] or [N_O] chooses each object's row of the object encoding; by default random
        rows in random intervals during training (so that all rows are trained), evenly spread rows in evaluation.
        Raises ValueError for more than `max_objects` objects.
        """
        if template_features.coverage.dim() == 4:
            template_features = TemplateFeatures(
                tuple(m[None] for m in template_features.maps), template_features.coverage[None]
            )
        batch, objects = template_features.coverage.shape[:2]
        if objects > self.config.max_objects:
            raise ValueError(
                f"{objects} objects in one query, the model has encodings for {self.config.max_objects}; "
                "split them into groups"
            )
        device = template_features.coverage.device
        diameters = diameters.to(device, torch.float32).view(-1, objects).expand(batch, objects)
        if object_slots is None:
            object_slots = self.default_slots(batch, objects).to(device)
        object_slots = object_slots.view(-1, objects).expand(batch, objects)
        tokens, valid, correlation_keys = self._template_tokens(template_features)
        tokens = tokens + self.template_object_encoding(object_slots)[:, :, None]
        pairs = [block.keys_values(tokens) for block in cast("Iterable[Block]", self.blocks)]
        return Conditioning(
            tuple(k for k, _ in pairs),
            tuple(v for _, v in pairs),
            valid,
            self.query_encoding(object_slots, diameters),
            correlation_keys,
        )

    def query_encoding(self, object_slots: Tensor, diameters: Tensor) -> Tensor:
        """Sum of object, size and instance encodings [B, N_Q, d_e] for slots and diameters, each [B, N_O].

        Queries of one object are neighbours.
        """
        encoding = self.object_encoding(object_slots)  # [B, N_O, d_e]
        if self.size_encoding is not None:
            encoding = encoding + self.size_encoding(diameters)
        return (encoding[:, :, None] + self.instance_encoding.weight).flatten(1, 2)

    def default_slots(self, batch: int, objects: int) -> Tensor:
        """Rows of the object encoding [B, N_O]: random intervals in training, evenly spread in evaluation."""
        slots = self.config.max_objects
        if self.training:
            return torch.rand(batch, slots).argsort(1)[:, :objects].sort(1).values
        return ((torch.arange(objects) + 0.5) * slots / objects).long().expand(batch, objects)

    # ---------------------------------------------------------------- once per image

    def image_features(self, images: Tensor) -> Features:
        """Step 3 for images [B, 3, H, W] in 0..1; H and W multiples of 16."""
        return (self.image_backbone or self.backbone)(images)

    def query_context(
        self, image_features: Features, conditioning: Conditioning, repeat: int = 1, boxes: Tensor | None = None
    ) -> QueryContext:
        """Step 4 without the noisy latents: image embedding, encodings, correlation; `repeat` rows for each image.

        A single image serves every row of the conditioning, and a single row of conditioning serves every image.
        `boxes` [B, N_O, 4] as in `BoxPrompt`. Raises ValueError where a model without it is given boxes.
        """
        grid = (image_features[-1].shape[-2], image_features[-1].shape[-1])
        image = self.image_embedding(image_features).flatten(2).transpose(1, 2)  # [B, n_q, d_e]
        image = image + self.patch_encoding(*grid)
        rows = max(image.shape[0], conditioning.valid.shape[0])
        if {image.shape[0], conditioning.valid.shape[0]} - {1, rows}:
            raise ValueError(
                f"features of {image.shape[0]} images and {conditioning.valid.shape[0]} rows of objects: give as many "
                "of both, or one of either"
            )
        encoding = conditioning.query_encoding
        embedding = image[:, None] + encoding[:, :, None]  # [B, N_Q, n_q, d_e]
        best = None
        if self.correlation is not None:
            if conditioning.correlation_keys is None:
                raise ValueError("this conditioning was made by a model without template correlation")
            extra, best = self.correlation.compare(
                image_features,
                conditioning.correlation_keys.expand(rows, -1, -1, -1),
                conditioning.valid.expand(rows, -1, -1),
            )
            embedding = embedding + extra.repeat_interleave(self.config.queries_per_object, 1)
        if self.box_prompt is None:
            if boxes is not None:
                raise ValueError("this model takes no boxes (box_prompt is off)")
        elif boxes is not None or self.training:  # in training always, so that its parameters have gradients
            if boxes is None:
                boxes = embedding.new_full((rows, conditioning.objects, 4), torch.nan, dtype=torch.float32)
            prompt = self.box_prompt(boxes, *grid)
            embedding = embedding + prompt.repeat_interleave(self.config.queries_per_object, 1)
        if embedding.shape[0] != rows:
            embedding = embedding.expand(rows, -1, -1, -1)

        def lay_out(x: Tensor) -> Tensor:  # [B or 1, N_O, ...] -> [B * repeat * N_O, ...]
            x = x.expand(rows, *x.shape[1:])
            return (x.repeat_interleave(repeat, 0) if repeat > 1 else x).flatten(0, 1)

        if repeat > 1:
            embedding = embedding.repeat_interleave(repeat, 0)
        return QueryContext(
            embedding,
            tuple(map(lay_out, conditioning.keys)),
            tuple(map(lay_out, conditioning.values)),
            lay_out(conditioning.valid)[:, None, None],
            grid,
            best,
        )

    # ---------------------------------------------------------------- once per noise level

    def denoise_in_context(self, noisy_latents: Tensor, sigma: Tensor, context: QueryContext) -> Tensor:
        """D(y; sigma) [B, N_Q, d, h, w] for noisy latents of that shape and sigma [B] or [1], all else prepared.

        One noise level for all rows takes less time than as many equal ones.
        """
        batch, queries = context.shape
        height, width = context.grid
        sigma = sigma.to(noisy_latents.dtype)
        c_skip, c_out, c_in = (c.view(-1, 1, 1, 1, 1) for c in preconditioning(sigma, self.config.sigma_data))
        latent = self.latent_embedding((c_in * noisy_latents).flatten(0, 1)).flatten(2).transpose(1, 2)
        x = latent.reshape(batch, queries, height * width, -1) + context.embedding
        noise = self.noise_embedding(sigma)
        for block, keys, values in zip(self.blocks, context.keys, context.values):
            x = block(x, noise, keys, values, context.mask)
        shift, scale = self.final_modulation(noise)
        x = self.final(self.final_norm(x) * (1 + scale) + shift)
        output = x.transpose(2, 3).reshape(batch, queries, -1, height, width)
        return c_skip * noisy_latents + c_out * output.to(noisy_latents.dtype)

    def denoise(
        self, noisy_latents: Tensor, sigma: Tensor, image_features: Features, conditioning: Conditioning
    ) -> Tensor:
        """D(y; sigma) [B, N_Q, d, h, w] for noisy latents of that shape and sigma [B], or [1] for all.

        Features of B images (or of one) and B rows of objects (or one); B may also be a multiple of both, whose rows
        are then repeated. Raises ValueError when the sizes do not fit together.
        """
        rows = max(image_features[-1].shape[0], conditioning.valid.shape[0])
        context = self.query_context(image_features, conditioning, max(1, noisy_latents.shape[0] // rows))
        expected = (*context.shape, self.config.latent_channels, *context.grid)
        if noisy_latents.shape != expected or sigma.shape not in (expected[:1], (1,)):
            raise ValueError(
                f"noisy latents {tuple(noisy_latents.shape)} and sigma {tuple(sigma.shape)} do not fit the image and "
                f"objects, which need {expected} and {expected[:1]}"
            )
        return self.denoise_in_context(noisy_latents, sigma, context)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Learned uncertainty u(sigma) [B] of the loss (EDM2, Eq. 14)."""
        return self.uncertainty(sigma.log() / 4)[:, 0]

    # ---------------------------------------------------------------- masks

    def confidence(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Step 9: decode latents [..., d, h, w] to confidences [..., H, W] in 0..1, all in one call."""
        return self.vae.decode(latents, size).squeeze(-3).sigmoid()
