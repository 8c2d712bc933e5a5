# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What docs/model.md says of the network, measured.

    python3 benchmark/model.py table                       # runs the tests of 'Must show' and prints their numbers
    python3 benchmark/model.py attention [--repeat N]      # joint against factorised self-attention
    python3 benchmark/model.py paper [--device cuda]       # one evaluation of the paper's network, all twelve blocks

Times are medians of CPU time on one thread (of wall time on CUDA): on a busy machine wall time says more about the
neighbours.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout

from ocdit_ros.model import ModelConfig, OCDiT, TemplateFeatures

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Point:
    """One line of the table: values that a test recorded with pytest's `record_property`, and how to sum them up."""

    number: str
    what: str
    bound: str
    test: str  # <file>::<test> of test/test_model_<file>.py
    value: str  # name of the recorded property
    show: Callable[[list[str]], str]


def worst(values: list[str]) -> str:
    """Largest of the recorded numbers."""
    return f"{max(map(float, values)):.2g}"


def lowest(values: list[str]) -> str:
    """Smallest of the recorded numbers."""
    return f"{min(map(float, values)):.4f}"


def each(values: list[str]) -> str:
    """All recorded numbers, as integers or with three digits."""
    numbers = sorted({round(float(v), 3) for v in values})
    return ", ".join(f"{n:g}" for n in numbers)


def text(values: list[str]) -> str:
    """What was recorded, as it is."""
    return ", ".join(sorted(set(values)))


POINTS = [
    Point(
        "1",
        "million parameters of `paper`'s denoiser",
        "322 +- 3 %",
        "paper::test_paper_preset_has_322_million_parameters",
        "parameters",
        each,
    ),
    Point(
        "1",
        "its output for 8 objects x 12 templates at 480 x 640 (one block)",
        "runs",
        "paper::test_eight_objects_of_twelve_templates_at_480_by_640",
        "output",
        text,
    ),
    Point(
        "2",
        "variance of network input and target, off 1; sigma 0.002 to 80",
        "0.02",
        "edm::test_network_input_and_target_have_unit_variance",
        "deviation",
        worst,
    ),
    Point(
        "2",
        "D(x; sigma) - x at sigma 1e-6",
        "1e-5",
        "edm::test_denoiser_is_the_identity_in_the_limit_of_no_noise",
        "difference",
        worst,
    ),
    Point(
        "3",
        "order of Euler, two ranges of sigma",
        "1 +- 0.15",
        "sampler::test_observed_order_on_gaussian_data",
        "euler",
        each,
    ),
    Point("3", "order of Heun", "2 +- 0.15", "sampler::test_observed_order_on_gaussian_data", "heun", each),
    Point(
        "3", "order of DPM-Solver++(2M)", "2 +- 0.15", "sampler::test_observed_order_on_gaussian_data", "dpmpp_2m", each
    ),
    Point(
        "3",
        "distance to the right one of two points",
        "1e-6",
        "sampler::test_two_points_end_at_the_right_one",
        "difference",
        worst,
    ),
    Point(
        "4",
        "cached against uncached; every solver, ensembles of 1 to 5",
        "1e-5",
        "network::test_cached_conditioning_equals_uncached",
        "difference",
        worst,
    ),
    Point(
        "5",
        "permuted objects against permuted output",
        "1e-5",
        "network::test_permuting_objects_with_their_encodings_permutes_the_output",
        "difference",
        worst,
    ),
    Point(
        "5",
        "cross-attention of the others when one object changes",
        "0",
        "network::test_cross_attention_of_other_objects_is_bit_equal_whatever_one_object_shows",
        "difference",
        worst,
    ),
    Point("5", "numbers of objects", "run", "network::test_runs_with_any_number_of_objects", "objects", each),
    Point(
        "6", "block(x) - x at initialisation", "0", "network::test_initial_blocks_are_identities", "difference", worst
    ),
    Point(
        "7",
        "a sample in other batches and places",
        "1e-5",
        "network::test_result_does_not_depend_on_batch_neighbours_or_place",
        "difference",
        worst,
    ),
    Point(
        "8",
        "VAE: mean IoU, masks of the sample's photographs",
        "0.97",
        "vae::test_shipped_vae_reconstructs_held_out_masks_of_real_objects",
        "iou",
        lowest,
    ),
    Point(
        "8",
        "VAE: mean IoU, the whole photographs at 256 x 256",
        "none",
        "vae::test_shipped_vae_reconstructs_held_out_masks_of_real_objects",
        "whole",
        lowest,
    ),
    Point(
        "8",
        "VAE: mean IoU, silhouettes of rendered objects",
        "0.97",
        "vae::test_shipped_vae_reconstructs_rendered_shapes_it_never_saw",
        "iou",
        lowest,
    ),
    Point(
        "8",
        "VAE: deviation of the photographs' latents",
        "0.5 +- 5 %",
        "vae::test_shipped_vae_reconstructs_held_out_masks_of_real_objects",
        "deviation",
        lowest,
    ),
    Point("8", "VAE: calls that decode 32 masks", "1", "vae::test_decodes_every_mask_in_one_call", "calls", each),
    Point(
        "9",
        "IoU of bfloat16 with float32",
        "0.99",
        "precision::test_bfloat16_autocast_gives_the_masks_of_float32",
        "iou",
        lowest,
    ),
    Point(
        "9",
        "IoU of compiled with plain",
        "0.99",
        "precision::test_compiled_blocks_give_the_masks_of_the_plain_ones",
        "iou",
        lowest,
    ),
    Point("9", "lowest IoU of CUDA with CPU", "0.99", "precision::test_cuda_gives_the_masks_of_the_cpu", "iou", lowest),
    Point(
        "10",
        "steps of the paper that `model/__init__.py` lists in order",
        "10",
        "paper::test_the_ten_steps_are_listed_in_order_and_every_name_exists",
        "steps",
        each,
    ),
]


def table() -> int:
    """Run the tests and print one line for each point; returns pytest's exit status."""
    tests = dict.fromkeys(f"test/test_model_{point.test.replace('::', '.py::')}" for point in POINTS)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run = [sys.executable, "-m", "pytest", "-q", "--timeout=0", f"--junitxml={report}", *tests]
        status = subprocess.run(run, cwd=ROOT, stdout=sys.stderr, check=False).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  # just written by pytest
    print("| | measured | bound | value | test |\n|---|---|---|---|---|")
    for point in POINTS:
        file, test = point.test.split("::")
        own = [case for case in cases if case.get("name", "").split("[")[0] == test]
        values = [str(p.get("value")) for case in own for p in case.iter("property") if p.get("name") == point.value]
        failed = any(case.find(outcome) is not None for case in own for outcome in ("failure", "error"))
        shown = "FAILED" if failed else point.show(values) if values else "not run: no CUDA device"
        print(f"| {point.number} | {point.what} | {point.bound} | {shown} | `{test}` (`test_model_{file}.py`) |")
    return status


def live(preset: str, device: str = "cpu", **changes: object) -> OCDiT:
    """A network with random weights whose blocks are not the identity."""
    torch.manual_seed(0)
    model = OCDiT(ModelConfig.preset(preset, **changes)).eval().requires_grad_(False)
    for block in model.blocks:
        block.get_parameter("modulation.linear.weight").normal_(std=0.02)
    return model.to(device)


def inputs(model: OCDiT, objects: int, height: int, width: int) -> tuple[TemplateFeatures, tuple[torch.Tensor, ...]]:
    """Random features of templates that are three quarters covered, and of one image of height x width tokens."""
    config, device = model.config, model.device
    side, grids = config.template_grid, [config.stride // s for s in config.feature_strides]
    maps = [
        torch.randn(objects, config.templates, c, side * r, side * r) for c, r in zip(model.backbone.channels, grids)
    ]
    coverage = (torch.rand(objects, config.templates, side, side) < 0.75).float()
    image = [torch.randn(1, c, height * r, width * r) for c, r in zip(model.backbone.channels, grids)]
    return TemplateFeatures(tuple(maps), coverage).to(device), tuple(m.to(device) for m in image)


def clock(device: str) -> float:
    """Seconds: of this process' CPU time, or of the wall once CUDA is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def attention(repeat: int) -> None:
    """Print cost of one evaluation of `small` with either self-attention, 16 x 16 tokens an object."""
    print("| objects | joint, GFLOP | factorised, GFLOP | CPU time joint / factorised |\n|---|---|---|---|")
    models = [live("small", self_attention=a) for a in ("joint", "factorised")]
    for objects in (1, 4, 8, 16, 32):
        prepared, work = [], []
        for model in models:
            templates, image = inputs(model, objects, 16, 16)
            context = model.query_context(image, model.condition(templates, torch.ones(objects)))
            latents = torch.randn(1, objects, model.config.latent_channels, 16, 16)
            # written out, because the counter does not know the fused attention of CPUs
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model.denoise_in_context(latents, torch.ones(1), context)
            work.append(counter.get_total_flops() / 1e9)
            prepared.append((model, latents, context))
        ratios = []
        for _ in range(repeat):  # turn by turn, so that both meet the same neighbours
            spent = []
            for model, latents, context in prepared:
                began = clock("cpu")
                model.denoise_in_context(latents, torch.ones(1), context)
                spent.append(clock("cpu") - began)
            ratios.append(spent[0] / spent[1])
        print(f"| {objects} | {work[0]:.2f} | {work[1]:.2f} | {statistics.median(ratios):.2f} |", flush=True)


@torch.inference_mode()
def paper(device: str) -> None:
    """Print the time of one evaluation of all of `paper`: 8 objects x 12 templates at 480 x 640."""
    model = live("paper", device)
    model.final[-1].get_parameter("weight").normal_(std=0.02)
    templates, image = inputs(model, 8, 30, 40)
    began = clock(device)
    conditioning = model.condition(templates, torch.ones(8))
    middle = clock(device)
    noisy = 80 * torch.randn(1, 8, model.config.latent_channels, 30, 40, device=device)
    denoised = model.denoise(noisy, torch.full((1,), 80.0, device=device), image, conditioning)
    end = clock(device)
    fine = bool(denoised.isfinite().all()) and float(denoised.std()) > 0.01
    print(f"{tuple(denoised.shape)}, finite and not constant: {fine}")
    print(f"conditioning {middle - began:.2f} s, one evaluation {end - middle:.2f} s on {device}")


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure the network.")
    parser.add_argument("what", choices=("table", "attention", "paper"))
    parser.add_argument("--repeat", type=int, default=5, help="evaluations of which the median is taken (attention)")
    parser.add_argument("--device", default="cpu", help="where `paper` runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "table":
        return table()
    if arguments.what == "attention":
        attention(arguments.repeat)
    else:
        paper(arguments.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
