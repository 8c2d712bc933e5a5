# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Step 3 of the paper: features of a pretrained backbone, on the latent grid.

Any timm model serves. A convolutional network gives one group of maps per stride; a vision transformer with patch p
sees the image resized by p / 16, so that its token grid is the /16 grid of the latents.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Features = tuple[Tensor, ...]  # one map per stride, finest first: [B, C_s, H/s, W/s]


class Backbone(nn.Module):
    """A timm model as a source of standardised feature maps at the given strides.

    Weights are random until `load_state_dict` (checkpoints carry them) or `load_pretrained`; nothing is downloaded.
    The network is frozen unless `trainable` is set, which lets gradients through; batch-norm statistics never change.
    """

    rgb_mean: Tensor
    rgb_std: Tensor

    def __init__(self, name: str, strides: tuple[int, ...] = (16,)) -> None:
        """Build the timm model `name`; raises ValueError when timm does not know it."""
        super().__init__()
        self.name, self.strides, self.trainable = name, strides, False
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no model '{name}'")
        self.net: Any = self._create(num_classes=0)
        reductions: set[int] = {level["reduction"] for level in getattr(self.net, "feature_info", ())}
        self.is_plain = len(reductions) == 1  # a plain transformer: one patch size at every depth
        if self.is_plain:
            if strides != (16,):
                raise ValueError(f"'{name}' gives one feature grid: feature_strides must be (16,), got {strides}")
            self.patch = int(reductions.pop())
            channels = [int(self.net.num_features)]
        else:
            info = self._create(features_only=True).feature_info
            levels = [i for i, r in enumerate(info.reduction()) if 4 <= r <= max(strides)]
            self.net = self._create(features_only=True, out_indices=tuple(levels))
            self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            last = info.module_name(levels[-1])
            if last.startswith("blocks.") and isinstance(getattr(self.net, "blocks", None), nn.Sequential):
                self.net.blocks = self.net.blocks[: int(last.split(".")[1]) + 1]  # timm would run the deeper stages too
            # each map joins the finest grid that it fits on; RGB itself joins the finest of all
            self.reductions = [info.reduction()[i] for i in levels]
            self.level_stride = [min(s for s in strides if s >= r) for r in self.reductions]
            counts = [info.channels()[i] for i in levels]
            channels = [sum(c for c, s in zip(counts, self.level_stride) if s == stride) for stride in strides]
            channels[0] += 3
        self.channels = tuple(channels)
        config = timm.data.resolve_model_data_config(self.net)
        self.register_buffer("rgb_mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("rgb_std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        for stride, count in zip(strides, self.channels):
            self.register_buffer(f"mean_{stride}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"std_{stride}", torch.ones(1, count, 1, 1))
        self.requires_grad_(False)
        self.eval()
        try:
            self.raw(torch.zeros(1, 3, 64, 96))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"'{name}' does not take images of every size ({error}); choose another backbone"
            ) from None

    def _create(self, **options: Any) -> Any:
        """Build the timm network for images of any size, where the family knows how."""
        for any_size in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
            try:
                return timm.create_model(self.name, **options, **any_size)
            except TypeError:  # this family does not take the option
                continue
        raise ValueError(f"timm cannot build '{self.name}' with {options}")

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: batches of training are too small for batch-norm statistics."""
        return super().train(False)

    def _own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename what timm calls 'stages.0.x' in a whole network and 'stages_0.x' in one that gives features."""
        published = {re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key): key for key in self.net.state_dict()}
        return {published.get(key, key): value for key, value in state.items()}

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Copy pretrained tensors, by name where the names agree, else in order where the shapes agree.

        Classifier and deeper stages that this backbone lacks are ignored. Raises ValueError when a tensor finds no
        partner.
        """
        state = self._own_names(state)
        own = self.net.state_dict()
        keys = [k for k in own if not k.endswith("num_batches_tracked")]
        if all(key in state and state[key].shape == own[key].shape for key in keys):
            self.net.load_state_dict({**own, **{key: state[key] for key in keys}})
            return
        given = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
        for key, value in zip(keys, given):
            if own[key].shape != value.shape:
                raise ValueError(f"{self.name}: tensor '{key}' is {tuple(own[key].shape)}, given {tuple(value.shape)}")
        if len(given) < len(keys):
            raise ValueError(f"{self.name}: {len(given)} pretrained tensors given, {len(keys)} needed")
        self.net.load_state_dict({**own, **dict(zip(keys, given))})

    def load_pretrained_file(self, path: str | os.PathLike[str]) -> None:
        """Copy pretrained tensors, by name, from a local safetensors file as timm publishes them; nothing else is read.

        Raises ValueError naming the file when it is absent, not safetensors, or does not fit this network.
        """
        if not os.path.isfile(path):
            raise ValueError(f"no backbone weights at '{path}'")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{path}' is not a readable safetensors file: {error}") from None
        state = self._own_names(state)
        for key, value in self.net.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            if key not in state or state[key].shape != value.shape:
                found = f"holds {tuple(state[key].shape)}" if key in state else "has none"
                raise ValueError(
                    f"'{path}' does not fit '{self.name}', whose tensor '{key}' is {tuple(value.shape)}: it {found}"
                )
        self.load_pretrained(state)

    def raw(self, images: Tensor) -> Features:
        """Maps before standardisation; `images` [B, 3, H, W] in 0..1, H and W multiples of 16."""
        height, width = images.shape[-2:]
        if height % 16 or width % 16:
            raise ValueError(f"image is {height}x{width}, both sides must be multiples of 16")
        x = ((images - self.rgb_mean) / self.rgb_std).contiguous(memory_format=torch.channels_last)
        if self.is_plain:
            size = (height // 16 * self.patch, width // 16 * self.patch)
            if size != (height, width):
                x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
            return tuple(self.net.forward_intermediates(x, indices=1, norm=True, intermediates_only=True))
        maps = self.net(x)
        grouped: dict[int, list[Tensor]] = {s: [] for s in self.strides}
        for feature, reduction, stride in zip(maps, self.reductions, self.level_stride):
            if self.channels_last:
                feature = feature.movedim(-1, 1)
            if reduction != stride:
                feature = F.avg_pool2d(feature, stride // reduction)
            grouped[stride].append(feature)
        grouped[self.strides[0]].append(F.avg_pool2d(x, self.strides[0]))
        return tuple(torch.cat(grouped[s], 1) for s in self.strides)

    def forward(self, images: Tensor) -> Features:
        """Standardised maps: [B, 3, H, W] in 0..1 -> one [B, C_s, H/s, W/s] per stride."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return tuple(
                (x - getattr(self, f"mean_{s}")) / getattr(self, f"std_{s}")
                for x, s in zip(self.raw(images), self.strides)
            )

    @torch.no_grad()
    def folded(self) -> Backbone:
        """A copy for inference whose batch norms are part of the convolutions before them: the same maps, sooner.

        Modules count as neighbours by their order within their parent, as timm's convolutional families are written;
        a network for which that changes the maps by more than rounding is returned as it is.
        """
        fused = copy.deepcopy(self).eval()
        for parent in list(fused.net.modules()):
            children = list(parent.named_children())
            for (first, convolution), (second, norm) in zip(children, children[1:]):
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, first, fuse_conv_bn_eval(convolution, norm))
                    # timm's norms bring the activation along
                    setattr(parent, second, getattr(norm, "act", nn.Identity()))
        probe = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(self.rgb_mean.device)
        for own, other in zip(self(probe), fused(probe)):
            if not torch.allclose(own, other, rtol=1e-3, atol=1e-3):
                return self
        return fused.requires_grad_(False)

    @torch.no_grad()
    def fit_statistics(self, images: Tensor) -> None:
        """Set mean and deviation of every channel from a batch of ordinary images [B, 3, H, W]."""
        for x, s in zip(self.raw(images), self.strides):
            getattr(self, f"mean_{s}").copy_(x.mean((0, 2, 3)).view(1, -1, 1, 1))
            getattr(self, f"std_{s}").copy_(x.std((0, 2, 3)).clamp_min(1e-4).view(1, -1, 1, 1))
