# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Steps 4 to 6 of the paper: query and template tokens, their encodings, the noise embedding; template correlation."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocdit_ros.model.backbone import Features


def sincos_grid(side: int, width: int) -> Tensor:
    """2-D sine-cosine table [side, side, width], the starting value of the learned patch encoding."""
    quarter = width // 4
    frequency = torch.exp(-math.log(2 * side) * torch.arange(quarter) / max(quarter - 1, 1))
    angle = torch.arange(side)[:, None] * frequency * math.pi / 2
    line = torch.cat([angle.sin(), angle.cos()], 1)  # [side, width/2]
    grid = torch.cat([line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)], -1)
    return F.pad(grid, (0, width - grid.shape[-1]))


class PatchEncoding(nn.Module):
    """Learned 2-D encoding of a token's place, read from a random window of a larger table during training.

    Every entry of the table is therefore trained, whatever the training resolution, and any grid up to max_grid works.
    """

    def __init__(self, max_grid: int, width: int) -> None:
        """Start from sines and cosines."""
        super().__init__()
        self.table = nn.Parameter(0.5 * sincos_grid(max_grid, width))

    def forward(self, height: int, width: int) -> Tensor:
        """Encodings [height * width, d_e]; the centred window in evaluation, a random one in training."""
        side = self.table.shape[0]
        if height > side or width > side:
            raise ValueError(
                f"a grid of {height}x{width} tokens is larger than the encoding table ({side}x{side}); "
                f"give an image of at most {side * 16} pixels a side"
            )
        if self.training:
            top = int(torch.randint(side - height + 1, ()))
            left = int(torch.randint(side - width + 1, ()))
        else:
            top, left = (side - height) // 2, (side - width) // 2
        return self.table[top : top + height, left : left + width].flatten(0, 1)


class FourierFeatures(nn.Module):
    """Magnitude-preserving Fourier features (EDM2, Eq. 75): unit variance whatever the input."""

    frequency: Tensor
    phase: Tensor

    def __init__(self, count: int, bandwidth: float = 1.0) -> None:
        """Draw fixed random frequencies and phases."""
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi * bandwidth * torch.randn(count))
        self.register_buffer("phase", 2 * math.pi * torch.rand(count))

    def forward(self, x: Tensor) -> Tensor:
        """Map [...] -> [..., count]."""
        return math.sqrt(2) * torch.cos(x[..., None] * self.frequency + self.phase)


class NoiseEmbedding(nn.Module):
    """c_noise = ln(sigma) / 4 -> Fourier features -> linear -> SiLU (step 6)."""

    def __init__(self, width: int) -> None:
        """Embed into `width` channels."""
        super().__init__()
        self.fourier = FourierFeatures(width)
        self.linear = nn.Linear(width, width)

    def forward(self, sigma: Tensor) -> Tensor:
        """Map sigma [B] -> [B, d_e]."""
        return F.silu(self.linear(self.fourier(sigma.log() / 4)))


class FeatureEmbedding(nn.Module):
    """Convolutions from backbone features at several strides to one /16 grid of d_e channels."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], width: int, kernel: int) -> None:
        """Give each stride its own convolution; a second one with `kernel` > 1 sees the neighbourhood."""
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(c, width, 16 // s, 16 // s) for c, s in zip(channels, strides))
        self.context = nn.Conv2d(width, width, kernel, padding=kernel // 2) if kernel > 1 else None

    def forward(self, features: Features) -> Tensor:
        """Map one [B, C_s, H/s, W/s] per stride -> [B, d_e, H/16, W/16]."""
        x = torch.stack([p(f) for p, f in zip(self.projections, features)]).sum(0)
        return x if self.context is None else x + self.context(F.silu(x))

    def embed_patches(self, patches: list[Tensor]) -> Tensor:
        """The same convolutions, without context, on patches cut out already.

        One [..., C_s (16/s)^2] per stride -> [..., d_e].
        """
        weights = [(p.get_parameter("weight").flatten(1), p.get_parameter("bias")) for p in self.projections]
        return torch.stack([F.linear(x, *weight) for weight, x in zip(weights, patches)]).sum(0)


class SizeEncoding(nn.Module):
    """Metric size of an object relative to the others of its query (extension).

    Templates are tight crops, so the paper's system cannot tell a small box from a large one of the same print.
    """

    octaves: Tensor

    def __init__(self, width: int) -> None:
        """Embed log2 of the ratio to the geometric mean; the model's initialisation makes it start silent."""
        super().__init__()
        self.register_buffer("octaves", 0.5 * 2.0 ** torch.arange(4))
        self.mlp = nn.Sequential(nn.Linear(9, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, diameters: Tensor) -> Tensor:
        """Map diameters [B, N_O] in metres -> [B, N_O, d_e]."""
        ratio = diameters.clamp_min(1e-6).log2()
        ratio = (ratio - ratio.mean(1, keepdim=True)).clamp(-4, 4)[..., None]
        return self.mlp(torch.cat([ratio, (ratio * self.octaves).sin(), (ratio * self.octaves).cos()], -1))


class BoxPrompt(nn.Module):
    """Where the one instance is that is meant, as further input of the query (extension).

    Without it the mask of an object is the union of its instances, which cannot be told apart where they touch. The
    box of a prompt is rough: it says which instance, not where it ends.
    """

    inputs = 8

    def __init__(self, width: int) -> None:
        """Embed into `width` channels; starts silent."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.inputs, width), nn.SiLU(), nn.Linear(width, width))
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Query input [B, N_O, height * width, d_e] from boxes [B, N_O, 4]: left, top, right, bottom as shares of the
        picture's sides, NaN for objects without one, whose input is zero.
        """
        given = ~boxes.isnan().any(-1)
        boxes = torch.where(given[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        axes = []
        for low, high, count in ((boxes[..., 1], boxes[..., 3], height), (boxes[..., 0], boxes[..., 2], width)):
            low, high = low[..., None], torch.maximum(high, low + 1e-3)[..., None]
            edges = torch.arange(count + 1, device=boxes.device, dtype=boxes.dtype) / count
            covered = (torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)).clamp_min(0) * count
            place = ((edges[1:] + edges[:-1] - low - high) / (high - low)).clamp(-3, 3)  # -1..1 inside
            axes.append((covered, place, (high - low).log2()))
        (cover_y, y, tall), (cover_x, x, wide) = axes
        shape = (*boxes.shape[:2], height, width)
        maps = [
            cover_y[..., :, None] * cover_x[..., None, :], y[..., :, None], x[..., None, :], y[..., :, None] ** 2,
            x[..., None, :] ** 2, tall[..., None], wide[..., None], torch.ones_like(wide)[..., None],
        ]  # fmt: skip
        features = torch.stack([one.expand(shape) for one in maps], -1).flatten(2, 3)
        return self.mlp(features) * given[..., None, None].to(features.dtype)


def highest(x: Tensor, count: int) -> Tensor:
    """The `count` highest values along the third dimension of [B, N_O, n, H, W], highest first.

    PyTorch's selection on the CPU takes every place on its own; without gradients, insertion into `count` running
    maps gives the same values in half the time.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return x.topk(count, dim=2).values
    best = [x.new_full((*x.shape[:2], *x.shape[3:]), -math.inf) for _ in range(count)]
    for value in x.unbind(2):
        for k in range(count):
            value, best[k] = torch.minimum(best[k], value), torch.maximum(best[k], value)
    return torch.stack(best, 2)


class TemplateCorrelation(nn.Module):
    """Similarity of every image patch to the object's template tokens, as further input of the query (extension).

    A learned projection shared by image and templates (linear, and with `hidden` units a small MLP beside it, which
    starts at zero), then cosine similarity. Five numbers per patch: the best
    match, the mean of the five best, the lead over the best other object, and two comparisons with the rest of the
    image. With a background, a sixth: the lead over the best of its patches, which other objects show. A patch that
    many objects could show says little about one of them, and a list need not name what is in view.
    """

    background: Tensor  # [K, channels] features of patches, so that their descriptors follow those of the image

    statistics = 5

    def __init__(
        self,
        channels: int,
        strides: tuple[int, ...],
        feature_strides: tuple[int, ...],
        width: int,
        out_width: int,
        hidden: int = 0,
        background: int = 0,
    ) -> None:
        """Project `channels` (all strides concatenated) to `width`, embed the statistics into `out_width`.

        The lead over a background of K patches starts without weight; the patches are to be filled in.
        """
        super().__init__()
        self.strides, self.feature_strides = strides, feature_strides
        self.projection = nn.Linear(channels, width, bias=False)
        nn.init.orthogonal_(self.projection.weight)
        self.adapter = (
            nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, width)) if hidden else None
        )
        if self.adapter is not None:
            for parameter in self.adapter[-1].parameters():
                nn.init.zeros_(parameter)
        inputs = sum(self.statistics * (16 // s) ** 2 for s in strides)
        self.mlp = nn.Sequential(nn.Linear(inputs, out_width), nn.SiLU(), nn.Linear(out_width, out_width))
        self.background_lead: nn.Linear | None = None
        self._described: tuple[tuple, Tensor] | None = None  # state of the parameters, descriptors of the background
        if background:
            self.register_buffer("background", torch.zeros(background, channels))
            self.background_lead = nn.Linear(sum((16 // s) ** 2 for s in strides), out_width, bias=False)
            nn.init.zeros_(self.background_lead.weight)

    def describe(self, features: Features, stride: int) -> Tensor:
        """Unit vectors [B, H/stride, W/stride, width] of features at `stride`; float32 even under autocast."""
        # the matches that matter differ in the third digit, which bfloat16 does not have
        with torch.autocast(features[0].device.type, enabled=False):
            return self._unit_vectors(self.gather(features, stride))

    def gather(self, features: Features, stride: int) -> Tensor:
        """What is described: all maps brought to `stride`, float32 [B, H/stride, W/stride, channels]."""
        size = tuple(side * self.feature_strides[0] // stride for side in features[0].shape[-2:])
        maps = []
        for feature, s in zip(features, self.feature_strides):
            if s < stride:
                feature = F.avg_pool2d(feature, stride // s)
            elif s > stride:
                feature = F.interpolate(feature, size, mode="bilinear", align_corners=False)
            maps.append(feature)
        return torch.cat(maps, 1).movedim(1, -1).float()

    def describe_patches(self, patches: list[Tensor]) -> Tensor:
        """Unit vectors [..., width] of patches on the /16 grid: one [..., C_s (16/s)^2] per stride."""
        pooled = [x.unflatten(-1, (-1, (16 // s) ** 2)).mean(-1) for x, s in zip(patches, self.feature_strides)]
        with torch.autocast(patches[0].device.type, enabled=False):
            return self._unit_vectors(torch.cat(pooled, -1).float())

    def _unit_vectors(self, features: Tensor) -> Tensor:
        """Descriptors [..., width] of features [..., channels]."""
        vectors = self.projection(features)
        if self.adapter is not None:
            vectors = vectors + self.adapter(features)
        return F.normalize(vectors, dim=-1)

    def cosines(self, scene: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        """Cosine of every patch of `describe` with every template token [B, N_O, n, H/s, W/s]; -1 for padding.

        `keys` [B, N_O, n, width], `valid` [B, N_O, n]; one image serves all rows.
        """
        scene = scene.expand(keys.shape[0], -1, -1, -1)
        # padding has a vector of zeros, and an addend of -1: no pass over all the cosines
        padding = ~valid.flatten(1)[..., None]  # [B, N_O n, 1]
        with torch.autocast(scene.device.type, enabled=False):
            cosine = torch.baddbmm(
                -padding.to(scene.dtype),
                keys.float().flatten(1, 2).masked_fill(padding, 0.0),
                scene.flatten(1, 2).transpose(1, 2),
            )
        return cosine.view(*keys.shape[:3], *scene.shape[1:3])

    def similarity(self, scene: Tensor, keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Best and mean-of-five-best cosine, each [B, N_O, H/stride, W/stride].

        An object of fewer than five tokens has the mean of what it has, so that padding never counts.
        """
        cosine = self.cosines(scene, keys, valid)
        top = highest(cosine, min(5, cosine.shape[2]))
        present = torch.arange(top.shape[2], device=top.device) < valid.sum(-1)[..., None]  # [B, N_O, 5]
        weight = (present / present.sum(-1, keepdim=True)).to(top.dtype)
        return top[:, :, 0], (top * weight[..., None, None]).sum(2)

    def commonness(self, scene: Tensor) -> Tensor:
        """Highest cosine of every patch of `describe` with the background [B, H/stride, W/stride], without gradient.

        Raises ValueError for a model without one.
        """
        if self.background_lead is None:
            raise ValueError("this model has no background to compare patches with (correlation_background is 0)")
        # gradients to descriptors, which the cosines with the templates train, would cost a fifth of a step
        with torch.no_grad(), torch.autocast(scene.device.type, enabled=False):
            keys = self._background_vectors()
            return torch.stack([(scene @ part.T).amax(-1) for part in keys.split(1024)]).amax(0)

    def _background_vectors(self) -> Tensor:
        """Descriptors of the background [K, width], made anew only when it or what describes it has changed."""
        sources = [self.background, *self.projection.parameters()]
        sources += self.adapter.parameters() if self.adapter is not None else []
        # tensors made in inference mode count no changes, and there is no need to: they are not trained
        state = tuple((id(s), s.data_ptr(), 0 if s.is_inference() else s._version) for s in sources)
        if self._described is None or self._described[0] != state:
            self._described = state, self._unit_vectors(self.background)
        return self._described[1]

    def forward(self, features: Features, keys: Tensor, valid: Tensor) -> Tensor:
        """Query input [B, N_O, n_q, d_e] from image features [B or 1, ...] and template keys."""
        return self.compare(features, keys, valid)[0]

    def compare(self, features: Features, keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and the best cosine of every patch with each object [B, N_O, H/s, W/s]; s: the finest stride."""
        inputs, leads, finest = [], [], None
        for stride in self.strides:
            scene = self.describe(features, stride)
            best, five = self.similarity(scene, keys, valid)
            if finest is None or best.shape[-1] > finest.shape[-1]:
                finest = best
            if best.shape[1] > 1:
                two, where = best.topk(2, dim=1)
                index = torch.arange(best.shape[1], device=best.device).view(1, -1, 1, 1)
                lead = best - torch.where(where[:, :1] == index, two[:, 1:], two[:, :1])
            else:
                lead = torch.zeros_like(best)
            spread = best.flatten(2).std(-1, correction=0).clamp_min(1e-3)[..., None, None]
            standard = (best - best.mean((2, 3), keepdim=True)) / spread
            x = torch.stack([best, five, lead, 0.5 * standard, five - five.amax((2, 3), keepdim=True)], 2)
            x = F.pixel_unshuffle(x.flatten(0, 1), 16 // stride)  # [B * N_O, 5 (16/stride)^2, h, w]
            inputs.append(x.view(*best.shape[:2], x.shape[1], -1))
            if self.background_lead is not None:
                lead = F.pixel_unshuffle(best - self.commonness(scene)[:, None], 16 // stride)
                leads.append(lead.view(*best.shape[:2], (16 // stride) ** 2, -1))
        hidden = self.mlp[0](torch.cat(inputs, 2).transpose(2, 3))
        if self.background_lead is not None:
            hidden = hidden + self.background_lead(torch.cat(leads, 2).transpose(2, 3))
        return self.mlp[2](self.mlp[1](hidden)), cast(Tensor, finest)
