# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: one safetensors file with weights, configuration, provenance and measured scores. No pickle anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ocdit_ros.model.config import ModelConfig
from ocdit_ros.model.ocdit import OCDiT

FORMAT, VERSION = "ocdit_ros", 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason."""


def save_checkpoint(
    model: OCDiT,
    path: str | os.PathLike[str],
    provenance: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model` to `path`: to a temporary name, synced, then renamed.

    `provenance` (JSON-serialisable) says how the weights came about and what they score. `dtype` applies to matrices
    and kernels; vectors and statistics stay float32, where half precision would lose range.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach()
        .cpu()
        .to(
            dtype
            if tensor.dim() > 1
            and tensor.is_floating_point()
            and not name.rpartition(".")[2].startswith(("mean_", "std_", "latent_"))
            else tensor.dtype
        )
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": model.config.to_json(),
        "provenance": json.dumps(provenance or {}, sort_keys=True),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors creates files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and provenance of a checkpoint, without its tensors; raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at '{path}'")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        reason = _line(error)
        raise CheckpointError(
            f"'{path}' is not a readable safetensors file (truncated or damaged?): {reason}"
        ) from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is a safetensors file, but not a checkpoint of {FORMAT}")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"'{path}' has checkpoint version {_line(metadata.get('version'))}, this package reads {VERSION}"
        )
    try:
        return ModelConfig.from_json(metadata["config"]), json.loads(metadata.get("provenance", "{}"))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{path}' holds an unusable configuration: {_line(error)}") from None


def _line(text: object) -> str:
    """As part of a sentence: what comes out of a file may hold line ends, and have any length."""
    words = " ".join(str(text).split())
    return words if len(words) <= 300 else f"{words[:300]}..."


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> OCDiT:
    """Read a model in evaluation mode, float32, on `device`; its `provenance` attribute holds what was saved with it.

    Raises CheckpointError naming the file and what is wrong: not found, truncated, another format or version, a
    missing, unexpected or misshapen tensor.
    """
    config, provenance = read_metadata(path)
    if 2 * config.depth * config.width**2 > Path(path).stat().st_size:  # at least a matrix in every block, of 2 bytes
        raise CheckpointError(f"'{path}' holds an unusable configuration: its network is larger than the file")
    try:
        model = OCDiT(config)
    except (ValueError, TypeError, RuntimeError, MemoryError, ZeroDivisionError, OverflowError) as error:
        reason = _line(error) or type(error).__name__
        raise CheckpointError(f"'{path}' holds an unusable configuration: {reason}") from None
    own = model.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, tensor in own.items():
                if name not in names:
                    raise CheckpointError(f"'{path}' lacks the tensor '{name}'")
                given = file.get_tensor(name)
                if given.shape != tensor.shape:
                    raise CheckpointError(
                        f"'{path}': tensor '{name}' is {tuple(given.shape)}, expected {tuple(tensor.shape)}"
                    )
                if given.is_floating_point() != tensor.is_floating_point():
                    raise CheckpointError(f"'{path}': tensor '{name}' is {given.dtype}, expected {tensor.dtype}")
                if not torch.isfinite(given).all():
                    raise CheckpointError(f"'{path}': tensor '{name}' has values that are not finite numbers")
                tensors[name] = given.to(tensor.dtype)
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' cannot be read: {_line(error)}") from None
    unexpected = sorted(names - set(own))
    if unexpected:
        raise CheckpointError(f"'{path}' holds the unexpected tensor '{unexpected[0]}'")
    model.load_state_dict(tensors)
    model.provenance = provenance
    return model.to(device).eval()
