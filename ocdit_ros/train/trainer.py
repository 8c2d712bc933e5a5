# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Training of the mask VAE and of the denoiser: PyTorch with accelerate, from one CPU process to torchrun on many
machines.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ocdit_ros.model import OCDiT, SamplerSettings, load_checkpoint, save_checkpoint
from ocdit_ros.model.blocks import Block, closed
from ocdit_ros.model.edm import denoising_loss
from ocdit_ros.train.dataset import Batch, MixedSource, ObjectStore, SampleSource
from ocdit_ros.train.matching import MatchingLoss, unite
from ocdit_ros.train.pictures import sample_sheet
from ocdit_ros.train.validation import encode_masks, noise_curve, validate


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """How the denoiser is trained. Give `steps`, or `time_budget` (seconds of training, over all resumptions), or
    both.
    """

    steps: int | None = None
    time_budget: float | None = None
    batch_size: int = 4  # views per step over all processes, times SampleSettings.batch_share
    learning_rate: float = 1e-3
    backbone_rate: float = 0.3  # learning rate of the backbone of images, relative to that of all else; 0 freezes it
    warmup: int = 200  # steps
    decay: float = 0.3  # last share of the run over which the rate falls to 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.999
    matching: float = 0.0  # weight of the matching loss on the template correlation
    gap_weight: float = 0.0  # further weight of patches in which a mask has a narrow gap or hole (`gap_tokens`)
    checkpoint_every: float = 180.0  # seconds
    validate_every: float = 900.0  # seconds
    mixed_precision: str = "no"  # 'no', 'bf16' or 'fp16'
    seed: int = 0
    clock: str = "wall"  # 'cpu': the budget and validate_every count processor time, as studies on busy machines need


class TrainingLoss(nn.Module):
    """One forward pass of training: (batch, sigma, noise) -> loss. Kept apart so that DDP can wrap it."""

    def __init__(self, model: OCDiT, matching: float = 0.0, gap_weight: float = 0.0) -> None:
        """Wrap `model`; `matching` is the weight of the second loss, raises ValueError without template correlation."""
        super().__init__()
        if matching and model.correlation is None:
            raise ValueError("a matching loss needs template correlation (correlation_width above 0)")
        self.model, self.weight, self.gap_weight = model, matching, gap_weight
        self.matching = MatchingLoss() if matching else None

    def forward(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        """Loss at noise levels sigma [B] with unit noise [B, N_Q, d, h, w]."""
        model = self.model
        clean = encode_masks(model, batch.masks)
        conditioning = model.condition(batch.templates, batch.diameters)
        # on CPUs the gradient of a depthwise convolution can be many times slower in bfloat16
        with torch.autocast("cpu", enabled=False):
            features = model.image_features(batch.images)
        context = model.query_context(features, conditioning, boxes=batch.boxes)
        denoised = model.denoise_in_context(clean + sigma.view(-1, 1, 1, 1, 1) * noise, sigma, context)
        tokens = 1 + self.gap_weight * gap_tokens(batch.masks) if self.gap_weight else None
        loss = denoising_loss(
            denoised.float(), clean, sigma, model.log_variance(sigma), model.config.sigma_data, tokens
        )
        if self.matching is not None:
            best = cast(Tensor, context.best_cosines)
            loss = loss + self.weight * self.matching(best, unite(batch.everything, conditioning.objects))
        return loss


def gap_tokens(masks: Tensor, width: int = 9, least: int = 8) -> Tensor:
    """Patches of 16 x 16 pixels in which a mask has a gap or hole narrower than `width`, of at least `least` pixels.

    Those between copies that touch (`dataset.keep_apart`) are among them, and few. `masks` [B, N_Q, H, W]
    of 0 and 1; float [B, N_Q, H/16, W/16] of 0 and 1.
    """

    def highest(x: Tensor) -> Tensor:
        for side in ((1, width), (width, 1)):
            x = F.max_pool2d(x, side, 1, (side[0] // 2, side[1] // 2))
        return x

    closed = -highest(-highest(masks.float()))
    return (F.avg_pool2d(closed - masks, 16) * 16**2 >= least).float()


def mean_of(model: OCDiT, others: Sequence[OCDiT]) -> OCDiT:
    """`model` with the mean of all their weights; its configuration and provenance stay.

    Of models that were trained from one another such a mean is often better than each (Wortsman et al. 2022, "Model
    soups"). Where others were trained without the box prompt of `model`, it stays as it is. Raises ValueError for
    networks of another shape.
    """
    own = model.state_dict()
    mean = AveragedModel(model, use_buffers=True)
    mean.update_parameters(model)
    for other in others:
        state = {name: value for name, value in own.items() if name.startswith("box_prompt.")} | other.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise ValueError("a mean of weights needs networks of one shape; these checkpoints differ in it")
        filled = copy.deepcopy(model)
        filled.load_state_dict(state)
        mean.update_parameters(filled)
    return cast(OCDiT, mean.module)


def stratified_sigma(step: int, batch: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Noise levels [batch] with ln(sigma) ~ N(mean, std^2), one from each of `batch` equally likely strata: less
    variance.
    """
    place = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    level = torch.special.ndtri(place.clamp(1e-4, 1 - 1e-4))[torch.randperm(batch, generator=generator)]
    return (mean + std * level).exp()


class Trainer:
    """Trains the denoiser of a model whose VAE is trained; checkpoints to `folder` and resumes from there exactly."""

    def __init__(
        self,
        model: OCDiT,
        source: SampleSource | MixedSource,
        folder: str | os.PathLike[str],
        settings: TrainerSettings,
        validation: list[Batch] | None = None,
        probe: list[Batch] | None = None,
        held_out_objects: ObjectStore | None = None,
    ) -> None:
        """`validation`: held-out batches; `probe`: batches of training scenes for the noise curve.

        `held_out_objects`: where the objects of the validation come from, for sample pictures in TensorBoard.
        """
        if settings.steps is None and settings.time_budget is None:
            raise ValueError("give the trainer a number of steps or a time budget")
        self.settings, self.source, self.folder = settings, source, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.validation, self.probe = validation or [], probe or []
        self.held_out_objects = held_out_objects
        # told apart by accelerate only when it is said: without, every process of a torchrun on CPUs would train alone
        no_gpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(cpu=no_gpu, mixed_precision=settings.mixed_precision)
        for size in {self.batch_size(kind) for kind in source.kinds}:
            if size % self.accelerator.num_processes:
                raise ValueError(f"batch size {size} is not a multiple of {self.accelerator.num_processes} processes")
        model.requires_grad_(True)
        model.vae.requires_grad_(False)
        model.backbone.requires_grad_(False)
        if model.image_backbone is not None and not settings.backbone_rate:
            model.image_backbone.requires_grad_(False)
            model.image_backbone.trainable = False  # half of a step's time
        self.model = model.train()
        model.vae.eval()
        self.ema = copy.deepcopy(model).eval().requires_grad_(False).to(self.accelerator.device)
        loss = TrainingLoss(model, settings.matching, settings.gap_weight)
        tuned = (
            [] if model.image_backbone is None else [p for p in model.image_backbone.parameters() if p.requires_grad]
        )
        mine = {id(p) for p in tuned}
        others = [p for p in loss.parameters() if p.requires_grad and id(p) not in mine]
        groups = [
            {"params": [p for p in members if (p.dim() > 1) == matrices], "weight_decay": decay, "relative_rate": rate}
            for members, rate in ((others, 1.0), (tuned, settings.backbone_rate))
            for matrices, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self.optimizer: Any = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
        )
        self.loss, self.optimizer = self.accelerator.prepare(loss, self.optimizer)
        self.started_from = model.provenance
        self.step, self.elapsed, self.views = 0, 0.0, 0
        self.history: list[dict[str, Any]] = []
        if self.state_file.is_file():
            self.restore()

    @property
    def state_file(self) -> Path:
        """Everything needed to go on."""
        return self.folder / "state.pt"

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        shares = []
        if self.settings.steps is not None:
            shares.append(self.step / self.settings.steps)
        if self.settings.time_budget is not None:
            shares.append(self.elapsed / self.settings.time_budget)
        return max(shares)

    def learning_rate(self) -> float:
        """Warm-up, stable, decay (1 - sqrt)."""
        warm = min((self.step + 1) / max(self.settings.warmup, 1), 1.0)
        late = max(0.0, (self.progress() - (1 - self.settings.decay)) / max(self.settings.decay, 1e-9))
        return self.settings.learning_rate * warm * (1 - math.sqrt(min(late, 1.0)))

    def batch_size(self, source: SampleSource) -> int:
        """Views in a step whose samples come from `source`."""
        return max(round(self.settings.batch_size * source.settings.batch_share), 1)

    def train_step(self) -> float:
        """One update; a pure function of the state and the step number. Returns the loss."""
        settings, accelerator = self.settings, self.accelerator
        source = self.source.at_step(self.step)
        size = self.batch_size(source)
        local = size // accelerator.num_processes
        first = self.step * settings.batch_size
        # drawn for the global batch, so that any number of processes sees the same noise
        generator = torch.Generator().manual_seed((settings.seed << 32) + self.step)
        sigma = stratified_sigma(self.step, size, self.model.config.noise_mean, self.model.config.noise_std, generator)
        queries = source.settings.objects * source.settings.queries_per_object
        side = source.settings.size // self.model.config.stride
        noise = torch.randn(size, queries, self.model.config.latent_channels, side, side, generator=generator)
        own = slice(accelerator.process_index * local, (accelerator.process_index + 1) * local)
        batch = source.batch(list(range(first, first + size))[own]).to(accelerator.device)
        torch.manual_seed((settings.seed << 32) + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["relative_rate"]
        with accelerator.autocast():
            loss = self.loss(batch, sigma[own].to(accelerator.device), noise[own].to(accelerator.device))
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.loss.parameters(), settings.clip)
        self.optimizer.step()
        self.step += 1
        self.views += size
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.model.parameters()):
                if fast.requires_grad:
                    slow.lerp_(fast, 1 - decay)
        return float(loss.detach())

    def run(self, quiet: bool = False) -> OCDiT:
        """Train to the end of the budget and return the averaged (EMA) model."""
        from torch.utils.tensorboard import SummaryWriter

        main = self.accelerator.is_main_process
        writer = SummaryWriter(str(self.folder / "tensorboard")) if main else None
        bar = tqdm(
            total=1.0,
            initial=self.progress(),
            disable=quiet or not main,
            unit="run",
            bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}",
        )
        clock = time.process_time if self.settings.clock == "cpu" else time.monotonic
        saved = began = time.monotonic()
        validated = self.elapsed
        smooth, first = math.nan, self.views
        while self.progress() < 1:
            start = clock()
            loss = self.train_step()
            self.elapsed = self._of_main(self.elapsed + clock() - start)
            now = time.monotonic()
            smooth = loss if math.isnan(smooth) else 0.99 * smooth + 0.01 * loss
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {self.step}; the last good state is in {self.state_file}"
                )
            if writer and self.step % 20 == 0:
                writer.add_scalar("loss", smooth, self.step)
                writer.add_scalar("learning_rate", self.learning_rate(), self.step)
                rate = (self.views - first) / (now - began)
                bar.set_postfix_str(f"step {self.step} loss {smooth:.4f} {rate:.1f} views/s")
                bar.update(min(self.progress(), 1.0) - bar.n)
            if main and self.elapsed - validated > self.settings.validate_every:
                self.report(writer, smooth)
                validated = self.elapsed
            if main and now - saved > self.settings.checkpoint_every:
                self.save()
                saved = time.monotonic()
        if main:
            self.report(writer, smooth)
            self.save()
        bar.close()
        return self.ema

    def _of_main(self, value: float) -> float:
        """What the main process says: where clocks decide, processes would end or slow down at different steps."""
        if self.accelerator.num_processes == 1:
            return value
        said: Tensor = broadcast(torch.tensor([value], dtype=torch.float64, device=self.accelerator.device))
        return float(said)

    def leave(self) -> None:
        """End this process of several, all together; a process that is alone goes on.

        Past the interpreter's own end: gloo's threads abort a process now and then while that is taken down
        (https://github.com/pytorch/pytorch/pull/179291), and all there is to keep is on disk.
        """
        if self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def report(self, writer: Any, loss: float) -> None:
        """Measure the averaged model on the validation batches and log it."""
        if not self.validation:
            return
        entry: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.elapsed),
            "loss": loss,
            "views": self.views,
        }
        for name, sampler in (("1 step", SamplerSettings(1, ensemble=4)), ("4 steps", SamplerSettings(4, ensemble=4))):
            entry[name] = dataclasses.asdict(validate(self.ema, self.validation, sampler))
        entry["noise_curve"] = noise_curve(self.ema, self.probe or self.validation)
        self.history.append(entry)
        with open(self.folder / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for name in ("1 step", "4 steps"):
            for key, value in entry[name].items():
                writer.add_scalar(f"validation {name}/{key}", value, self.step)
        for sigma, value in entry["noise_curve"].items():
            writer.add_scalar(f"noise curve/{sigma}", value, self.step)
        if self.held_out_objects is not None:
            sheet = sample_sheet(self.ema, self.validation[0], self.held_out_objects, SamplerSettings(4, ensemble=4))
            writer.add_image("validation/samples", sheet, self.step, dataformats="HWC")
        one, four = entry["1 step"], entry["4 steps"]
        tqdm.write(
            f"step {self.step} ({self.elapsed / 60:.0f} min) loss {loss:.4f} | 1 step IoU {one['mean_iou']:.3f} "
            f"AP {one['ap']:.3f} presence {one['presence_auroc']:.3f} | 4 steps IoU {four['mean_iou']:.3f} "
            f"AP {four['ap']:.3f} presence {four['presence_auroc']:.3f} | clean latent + noise "
            + " ".join(f"{s:g}:{v:.2f}" for s, v in entry["noise_curve"].items())
        )

    def save(self) -> None:
        """Write the state to a temporary name, sync, rename: a kill at any moment leaves the old or the new one."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "matching": self.matching_state(),
            "step": self.step,
            "elapsed": self.elapsed,
            "views": self.views,
            "config": self.model.config.to_json(),
        }
        temporary = self.state_file.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.state_file)
        save_checkpoint(
            self.ema,
            self.folder / "ema.safetensors",
            {
                "started_from": self.started_from,
                "steps": self.step,
                "views": self.views,
                "training_hours": round(self.elapsed / 3600, 3),
                "validation": self.history[-1] if self.history else None,
            },
        )

    def matching_state(self) -> dict[str, Tensor] | None:
        """What the matching loss has learned; None without one."""
        matching = self.accelerator.unwrap_model(self.loss).matching
        return None if matching is None else matching.state_dict()

    def restore(self) -> None:
        """Load the state; raises ValueError when it belongs to another configuration."""
        device = self.accelerator.device
        where = "cpu" if device.type == "cpu" else device  # torch.load does not know a "cpu:0"
        state = torch.load(self.state_file, map_location=where, weights_only=True)
        if state["config"] != self.model.config.to_json():
            raise ValueError(f"'{self.state_file}' was made with another model configuration; use another folder")
        kept, own = state.get("matching"), self.matching_state()
        if (kept is None) != (own is None):
            without = "without" if kept is None else "with"
            raise ValueError(f"'{self.state_file}' was made {without} a matching loss; use another folder")
        if kept is not None:
            self.accelerator.unwrap_model(self.loss).matching.load_state_dict(kept)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.views = state["step"], state["elapsed"], state["views"]


def start_model(init: str | os.PathLike[str], config_changes: dict[str, Any] | None = None) -> OCDiT:
    """Model to train on from the checkpoint `init`; with `config_changes`, tensors that still fit are kept, the rest
    start new.

    With a larger `depth` the blocks that come on top are copies of the last ones whose gates are closed, so that the
    network computes what it did (depth growth by stacking, Gong et al. 2019; closed gates as in adaLN-zero).
    """
    model = load_checkpoint(init)
    if not config_changes:
        return model
    fresh = OCDiT(dataclasses.replace(model.config, **config_changes))
    own, given = fresh.state_dict(), model.state_dict()
    for n in range(model.config.depth, fresh.config.depth):
        source = model.blocks[model.config.depth - 1 - (fresh.config.depth - 1 - n) % model.config.depth]
        given |= {f"blocks.{n}.{name}": value for name, value in closed(cast(Block, source)).state_dict().items()}
    fresh.load_state_dict({k: given[k] if k in given and given[k].shape == v.shape else v for k, v in own.items()})
    if model.image_backbone is None:
        fresh.start_image_backbone()
    fresh.provenance = model.provenance
    return fresh
