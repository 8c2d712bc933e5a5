# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Sizes of the system as one frozen dataclass; `paper` is that of arXiv 2508.04122, others are for small computers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Every number that shapes the network. Symbols of the paper stand behind the fields they name.

    `queries_per_object` > 1 lets one object own several query masks, one for each visible instance (an extension; the
    paper has one). `self_attention` is `joint` (every query token sees every other, the paper's form, quadratic in the
    number of objects) or `factorised` (within an object over space, then a mean/max exchange between objects at each
    place, linear in the number of objects).
    """

    # images and templates
    max_objects: int = 32  # slots of the 1-D object encoding; N_O <= max_objects
    train_objects: int = 4  # N_O during training (8 in the paper)
    templates: int = 12  # N_T
    template_size: int = 128  # pixels
    max_grid: int = 64  # largest side of the latent grid, in tokens
    queries_per_object: int = 1  # instances that one object may own
    # backbone (Sec. 3.2: frozen features)
    backbone: str = "tf_efficientnet_lite0"
    feature_strides: tuple[int, ...] = (8, 16)
    image_backbone: bool = (
        False  # images have a copy of the backbone that training tunes; templates keep the frozen one
    )
    # mask VAE (Sec. 3.1)
    latent_channels: int = 16  # d
    vae_channels: tuple[int, ...] = (32, 64, 128)  # at strides 4, 8, 16
    vae_blocks: int = 1
    # OC-DiT (Sec. 3.3)
    width: int = 128  # d_e
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    self_attention: str = "factorised"
    embed_kernel: int = 3  # convolution that embeds the image features
    # template tokens
    min_coverage: float = 0.35  # template patches covered less than this are background, and left out
    max_template_tokens: int = 192  # tokens kept of one object; 0 keeps all
    # template correlation (extension, off in `paper`)
    correlation_width: int = 0  # 0 switches it off
    correlation_strides: tuple[int, ...] = (16,)
    correlation_hidden: int = 0  # hidden units beside the linear projection of the features; 0: linear alone
    correlation_background: int = 0  # patches of other objects that image patches are compared with too; 0: none
    size_encoding: bool = True
    box_prompt: bool = False  # an object may be asked for in a box: its mask is that of the instance there (extension)
    # EDM (Karras et al. 2022, Tab. 1)
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    noise_mean: float = -0.4  # P_mean
    noise_std: float = 1.2  # P_std

    stride = 16  # H / h = W / w, fixed by the VAE

    def __post_init__(self) -> None:
        """Refuse sizes that cannot fit together, naming the field at fault."""
        for name in (
            "max_objects",
            "templates",
            "template_size",
            "max_grid",
            "queries_per_object",
            "latent_channels",
            "width",
            "depth",
            "heads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name, most in _MOST.items():  # a file of a few bytes may not ask for all the memory there is
            value = getattr(self, name)
            if max(value, default=0) > most if isinstance(value, tuple) else not value <= most:
                raise ValueError(f"{name} is {value}, must be at most {most:g}")
        if self.correlation_width and (
            not self.correlation_strides or any(s < 1 or 16 % s for s in self.correlation_strides)
        ):
            raise ValueError(f"correlation_strides {self.correlation_strides} must be divisors of {self.stride}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.self_attention not in ("joint", "factorised"):
            raise ValueError(f"self_attention is '{self.self_attention}', expected 'joint' or 'factorised'")
        if self.template_size % self.stride:
            raise ValueError(f"template_size {self.template_size} is not a multiple of {self.stride}")
        if self.feature_strides[-1:] != (self.stride,) or any(s < 1 or self.stride % s for s in self.feature_strides):
            raise ValueError(
                f"feature_strides {self.feature_strides} must be divisors of {self.stride} that end at "
                f"{self.stride}, the latent grid"
            )
        if len(self.vae_channels) != 3:
            raise ValueError("vae_channels needs three entries, for strides 4, 8 and 16")
        if not 1 <= self.train_objects <= self.max_objects:
            raise ValueError(f"train_objects {self.train_objects} is not in 1..max_objects ({self.max_objects})")

    @property
    def template_grid(self) -> int:
        """Side of a template's token grid, h_T = w_T."""
        return self.template_size // self.stride

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """Return a named configuration with `changes` applied; raises ValueError for an unknown name."""
        if name not in PRESETS:
            raise ValueError(f"no preset '{name}'; there are {', '.join(sorted(PRESETS))}")
        return cls(**{**PRESETS[name], **changes})

    def to_json(self) -> str:
        """Serialise to one line of JSON (the form stored in checkpoints)."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of `to_json`; raises ValueError naming a field that is unknown or of the wrong type.

        An absent field takes its default: a field added later must default to what the network did before.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("the configuration is not a JSON object")
        defaults = dataclasses.asdict(cls())
        for name, value in values.items():
            if name not in defaults:
                raise ValueError(f"unknown configuration field '{name}'")
            expected = type(defaults[name])
            if expected is tuple:
                good = isinstance(value, list) and all(type(v) is int for v in value)
            else:
                good = type(value) is expected or (expected is float and type(value) is int)
            if not good:
                raise ValueError(f"configuration field '{name}' is {value!r}, expected {expected.__name__}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


#: Far beyond the paper's network and all that fits a GPU.
_MOST: dict[str, float] = {
    "max_objects": 65536, "train_objects": 65536, "templates": 1024, "template_size": 1024, "max_grid": 1024,
    "queries_per_object": 1024, "latent_channels": 1024, "vae_channels": 2048, "vae_blocks": 64, "width": 4096,
    "depth": 128, "mlp_ratio": 16.0, "embed_kernel": 15, "correlation_width": 4096, "correlation_hidden": 4096,
    "correlation_background": 65536,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # Tab. 1 of the paper and the authors' configuration: 322 M parameters.
    "paper": {
        "train_objects": 8,
        "backbone": "vit_small_patch14_dinov2",
        "feature_strides": (16,),
        "latent_channels": 32,
        "vae_channels": (128, 256, 256),
        "vae_blocks": 2,
        "embed_kernel": 1,
        "width": 1024,
        "depth": 12,
        "heads": 16,
        "self_attention": "joint",
        "max_template_tokens": 0,
        "correlation_width": 0,
        "size_encoding": False,
        "rho": 9.0,
        "noise_mean": -0.4,
        "noise_std": 1.2,
    },
    # The shipped one: trained on CPUs, runs on them.
    "small": {
        "correlation_width": 64,
        "correlation_strides": (16, 8),
        "correlation_hidden": 256,
        "image_backbone": True,
        "noise_mean": 2.0,
        "noise_std": 1.6,
    },
    # For an embedded GPU.
    "base": {
        "train_objects": 8,
        "width": 256,
        "depth": 8,
        "heads": 8,
        "correlation_width": 64,
        "correlation_strides": (16, 8),
        "correlation_hidden": 256,
        "image_backbone": True,
        "noise_mean": 2.0,
        "noise_std": 1.6,
    },
    # For tests: every part there, nothing large.
    "tiny": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "vae_channels": (8, 16, 32),
        "latent_channels": 8,
        "templates": 4,
        "template_size": 64,
        "max_template_tokens": 64,
        "correlation_width": 16,
        "correlation_strides": (16, 8),
        "noise_mean": 2.0,
        "noise_std": 1.6,
    },
}
