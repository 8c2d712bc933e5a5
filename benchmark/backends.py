# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The three networks of a look under PyTorch eager, inductor, ONNX Runtime and OpenVINO, on one CPU thread.

    python3 benchmark/backends.py [--repeat 9] [--only eager openvino]

Backbone, one evaluation of the denoiser (8 objects) and decoder, for a look of 384 x 288 pixels, in float32. A backend
that is not installed is left out; none of them is a dependency (`pip install openvino onnxruntime onnx onnxscript`).
Median CPU time of the process; the largest difference from eager stands beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.model import OCDiT, load_checkpoint
from ocdit_ros.model.ocdit import QueryContext
from ocdit_ros.segment.weights import default_weights

GRID = (18, 24)
OBJECTS = 8


class Evaluation(nn.Module):
    """One evaluation of the denoiser with flat inputs, as exporters want them."""

    def __init__(self, model: OCDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, embedding: Tensor, valid: Tensor, *pairs: Tensor) -> Tensor:
        """Keys of all blocks, then values."""
        half = len(pairs) // 2
        context = QueryContext(embedding, pairs[:half], pairs[half:], valid, GRID)
        return self.model.denoise_in_context(x, sigma, context)


class Decoder(nn.Module):
    """Latents to confidences."""

    def __init__(self, model: OCDiT) -> None:
        super().__init__()
        self.vae = model.vae

    def forward(self, latents: Tensor) -> Tensor:
        """Map [N, d, h, w] -> [N, 1, H, W]."""
        return self.vae.decode(latents).sigmoid()


def parts(model: OCDiT) -> list[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Name, module and example inputs of each part."""
    config = model.config
    latents = torch.randn(1, OBJECTS, config.latent_channels, *GRID)
    embedding = torch.randn(1, OBJECTS, GRID[0] * GRID[1], config.width)
    shape = (OBJECTS, config.heads, config.max_template_tokens, config.width // config.heads)
    pairs = [torch.randn(shape) for _ in range(2 * config.depth)]
    valid = torch.ones(OBJECTS, 1, 1, config.max_template_tokens, dtype=torch.bool)
    return [
        ("backbone", model.backbone.folded(), (torch.rand(1, 3, 16 * GRID[0], 16 * GRID[1]),)),
        ("one evaluation", Evaluation(model), (latents, torch.tensor([5.0]), embedding, valid, *pairs)),
        ("decoder", Decoder(model), (latents[0],)),
    ]


def eager(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """As the package runs it."""
    return lambda: module(*inputs)


def inductor(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """torch.compile; needs a C++ compiler where it runs."""
    compiled = torch.compile(module)
    return lambda: compiled(*inputs)


def onnxruntime(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Export to ONNX, run by ONNX Runtime."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/part.onnx"
        torch.onnx.export(module, inputs, dynamo=True, verbose=False).save(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(path, options)
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def openvino(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Export by torch.export, run by OpenVINO in float32."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(ov.convert_model(torch.export.export(module, inputs)), "CPU", settings)
    request, arrays = compiled.create_infer_request(), [x.numpy() for x in inputs]
    return lambda: list(request.infer(arrays, share_inputs=True).values())


BACKENDS = {"eager": eager, "inductor": inductor, "onnxruntime": onnxruntime, "openvino": openvino}


def main() -> None:
    """Time every part under every backend that is there and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_checkpoint(default_weights()).eval().requires_grad_(False)
    print("| part | backend | ms | times eager's speed | largest difference |")
    print("|---|---|---:|---:|---:|")
    for name, module, inputs in parts(model):
        expected, first = None, None
        for backend in arguments.only:
            if backend in ("onnxruntime", "openvino") and importlib.util.find_spec(backend) is None:
                continue
            with torch.no_grad():
                work = BACKENDS[backend](module, inputs)
                result = work()
                result = np.asarray(result[0] if isinstance(result, (tuple, list)) else result)
                work()
                times = []
                for _ in range(arguments.repeat):
                    start = time.process_time()
                    work()
                    times.append(time.process_time() - start)
            taken = statistics.median(times)
            if expected is None:
                expected, first = result, taken
            difference = float(np.abs(result.reshape(expected.shape) - expected).max())
            print(f"| {name} | {backend} | {1e3 * taken:.0f} | {first / taken:.2f} | {difference:.1g} |", flush=True)


if __name__ == "__main__":
    main()
