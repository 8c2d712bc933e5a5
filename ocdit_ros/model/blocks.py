# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Step 7 of the paper: the decoder block, and the attention it is made of."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Map [N, n, d_e] -> [N, heads, n, d_e / heads]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def gated_linear(x: Tensor, linear: nn.Linear, gate: Tensor) -> Tensor:
    """Return gate [d_out] * linear(x), without a pass over the result."""
    return F.linear(x, linear.weight * gate[:, None], linear.bias * gate)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of [..., n, d_h] over [..., m, d_h]; True in the mask [..., 1 or n, m] means look.

    Training on a CPU with bfloat16 takes products of matrices: the gradient of the fused kernel is slower there than in
    float32 (docs/performance.md).
    """
    if not (query.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


class CrossAttention(nn.Module):
    """Queries of object j look at the template tokens of object j alone. Keys and values are made once per object."""

    def __init__(self, width: int, heads: int) -> None:
        """Multi-head attention with separate query and key/value inputs."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, N_O, heads, n, d_h], of template tokens [B, N_O, n, d_e]. Independent of sigma."""
        key, value = self.key_value(self.norm(tokens)).chunk(2, -1)
        shape = (*tokens.shape[:3], self.heads, -1)
        return key.view(shape).transpose(2, 3), value.view(shape).transpose(2, 3)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Map x [B * N_O, n, d_e] -> the same; keys, values [B * N_O, heads, n_T, d_h], mask [B * N_O, 1, 1, n_T].

        n is the number of query tokens of one object (all its queries together); True in the mask means look.
        """
        return self.out(self.look(x, keys, values, mask))

    def look(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """`forward` before the output projection."""
        query = split_heads(self.query(x), self.heads)
        return merge_heads(attention(query, keys, values, mask))


class JointSelfAttention(nn.Module):
    """Every query token of every object sees every other (the paper's form)."""

    def __init__(self, width: int, heads: int) -> None:
        """Multi-head self-attention."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def look(self, x: Tensor) -> Tensor:
        """Self-attention within each row of x [N, n, d_e], before the output projection."""
        query, key, value = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, -1))
        return merge_heads(attention(query, key, value))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N_Q, n_q, d_e] -> the same."""
        return self.out(self.look(x.flatten(1, 2))).view_as(x)

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """Add gate [d_e] * forward(y) to x, with the gate in the weights of the last layer."""
        return gated_linear(self.look(y.flatten(1, 2)), self.out, gate).view_as(x).add_(x)


class FactorisedSelfAttention(JointSelfAttention):
    """Within each object over space, then an exchange of mean and maximum between objects at each place: O(N_O)."""

    def __init__(self, width: int, heads: int) -> None:
        """Add the exchange to the attention's own weights."""
        super().__init__(width, heads)
        self.exchange = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N_Q, n_q, d_e] -> the same."""
        others = torch.cat([x.mean(1), x.amax(1)], -1)  # [B, n_q, 2 d_e]
        return self.out(self.look(x.flatten(0, 1))).view_as(x) + self.exchange(others)[:, None]

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """Add gate [d_e] * forward(y) to x, with the gate in the weights of the last layers."""
        others = torch.cat([y.mean(1), y.amax(1)], -1)
        own = gated_linear(self.look(y.flatten(0, 1)), self.out, gate).view_as(x)
        return own.add_(x).add_(gated_linear(others, self.exchange, gate)[:, None])


class Modulation(nn.Module):
    """adaLN-zero: shifts, scales and gates of sub-layers from the noise embedding; all zero at the start."""

    def __init__(self, width: int, count: int) -> None:
        """Project to `count` vectors of `width`."""
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def reset_to_zero(self) -> None:
        """Make the block an identity; called after every other initialisation."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, noise: Tensor) -> tuple[Tensor, ...]:
        """Map noise embedding [B, d_e] -> `count` tensors [B, 1, 1, d_e]."""
        return self.linear(noise)[:, None, None].chunk(self.count, -1)


class Block(nn.Module):
    """Cross-attention to the object's own templates, self-attention over all queries, MLP; each under adaLN-zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, self_attention: str) -> None:
        """Build the three sub-layers; `self_attention` is 'joint' or 'factorised'."""
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.cross = CrossAttention(width, heads)
        self.self = (JointSelfAttention if self_attention == "joint" else FactorisedSelfAttention)(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = Modulation(width, 9)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of this block's cross-attention, for the cache; see `CrossAttention.keys_values`."""
        return self.cross.keys_values(tokens)

    def forward(self, x: Tensor, noise: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, N_Q, n_q, d_e] under noise [B, d_e] or [1, d_e].

        `keys`, `values` and `mask` as `CrossAttention.forward` takes them.
        Queries are ordered by object, so the N_Q / N_O queries of one object form one row of the cross-attention.
        """
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)  # residuals stay float32 there
        if noise.shape[0] == 1 and not plain:
            return self._at_one_level(x, noise, keys, values, mask)
        shift_c, scale_c, gate_c, shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = self.modulation(noise)
        y = (self.norm(x) * (1 + scale_c) + shift_c).reshape(keys.shape[0], -1, x.shape[-1])
        x = x + gate_c * self.cross(y, keys, values, mask).view_as(x)
        x = x + gate_s * self.self(self.norm(x) * (1 + scale_s) + shift_s)
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)

    def _at_one_level(self, x: Tensor, noise: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """`forward` for one noise embedding [1, d_e]: scales, shifts and gates become weights: fewer passes."""
        shape = self.norm.normalized_shape
        shift_c, scale_c, gate_c, shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = (
            part.flatten() for part in self.modulation(noise)
        )
        y = F.layer_norm(x, shape, 1 + scale_c, shift_c, self.norm.eps).view(keys.shape[0], -1, x.shape[-1])
        x = gated_linear(self.cross.look(y, keys, values, mask), self.cross.out, gate_c).view_as(x).add_(x)
        x = self.self.add_gated(x, F.layer_norm(x, shape, 1 + scale_s, shift_s, self.norm.eps), gate_s)
        y = self.mlp[1](self.mlp[0](F.layer_norm(x, shape, 1 + scale_m, shift_m, self.norm.eps)))
        return gated_linear(y, cast("nn.Linear", self.mlp[2]), gate_m).add_(x)


def closed(block: Block) -> Block:
    """A copy that hands its input on unchanged, with the gates of all three sub-layers closed."""
    copied = copy.deepcopy(block)
    for part in (copied.modulation.linear.weight, copied.modulation.linear.bias):
        gates = part.data.unflatten(0, (copied.modulation.count, -1))
        gates[2::3] = 0  # shift, scale, gate of each sub-layer
    return copied
