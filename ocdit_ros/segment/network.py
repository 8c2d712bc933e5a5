# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The model behind a NumPy face: templates in, conditioning kept; images and objects in, confidences out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocdit_ros.model import Backbone, Conditioning, Features, OCDiT, SamplerSettings, TemplateFeatures, sample
from ocdit_ros.templates import TemplateSet

# A CPU is fastest where what is in work stays in its cache and no fresh memory is asked for; a GPU wants much at once.
BATCH_TOKENS = {"cpu": 6912, "gpu": 49152}
BATCH_PIXELS = {"cpu": 2**17, "gpu": 2**24}
EMPTY_CONFIDENCE = 0.01  # what is decoded must stay below for latents to count as the empty mask
EMPTY_RADII = (1.0, 0.5, 0.25)  # distances from the empty mask's latents, per token, that are tried for that


@dataclass(eq=False)
class KnownObject:
    """An object of the catalogue: its template features, and its conditioning for the slots it was used in."""

    name: str
    diameter: float  # metres
    features: TemplateFeatures  # maps [N_T, C_s, S/s, S/s], coverage [N_T, h_T, w_T]
    slot: int = 0  # row of the object encoding that it has wherever no neighbour has it
    appearance: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float16))  # unit vector, of the templates
    alike: list[KnownObject] = field(default_factory=list)  # others of the catalogue that look the same in another size
    rows: dict[int, Conditioning] = field(default_factory=dict)  # by slot of the object encoding; B = N_O = 1


@dataclass(frozen=True, eq=False)
class Output:
    """What the network says about the targets of every row of a batch."""

    confidence: np.ndarray  # float32 [B, E, T, Q, H, W], T targets of Q queries each
    # float32 [B, T, 2, H/16, W/16]: cosine of image and template features, mean of the five best; and highest cosine of
    # image features with the model's background (the same number again for a model without)
    similarity: np.ndarray


@dataclass
class Timings:
    """Seconds spent per stage since the last reset; costs two clock reads a stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, since: float) -> float:
        """Book the time since `since` under `stage`; returns the time now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


class Network:
    """OC-DiT for inference: one process, one device, no gradients."""

    def __init__(self, model: OCDiT, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.config = model.config
        self._kind = "cpu" if self.device.type == "cpu" else "gpu"
        self.timings = Timings()
        self._backbone = (self.model.image_backbone or self.model.backbone).folded()  # of images
        self._empties: dict[tuple[int, int], Tensor] = {}
        self._empty_radius = self._find_empty_radius()

    @property
    def feature_key(self) -> str:
        """Names the backbone and its weights: features that were cached under this key can be used again."""
        digest = hashlib.sha256(repr((self.config.backbone, self.config.feature_strides, "float16")).encode())
        for name, tensor in sorted(self.model.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @torch.inference_mode()
    def featurize(self, templates: TemplateSet) -> dict[str, np.ndarray]:
        """Backbone features of one object's templates as float16 arrays, in the form that the cache keeps.

        Raises ValueError when there are more templates than the model has encodings for.
        """
        if len(templates.images) > self.config.templates:
            raise ValueError(
                f"'{templates.name}' has {len(templates.images)} templates, the model takes {self.config.templates}"
            )
        images = torch.from_numpy(templates.images).to(self.device).movedim(-1, -3).float() / 255
        masks = torch.from_numpy(templates.masks).to(self.device).float() / 255
        features = self.model.template_features(images, masks)
        maps = {f"map_{s}": m for s, m in zip(self.config.feature_strides, features.maps, strict=True)}
        return {name: t.half().cpu().numpy() for name, t in {**maps, "coverage": features.coverage}.items()}

    @torch.inference_mode()
    def onboard(self, name: str, diameter: float, features: dict[str, np.ndarray], slot: int = 0) -> KnownObject:
        """An object of the catalogue from the arrays that `featurize` made."""
        maps = tuple(torch.from_numpy(features[f"map_{s}"]) for s in self.config.feature_strides)
        known = TemplateFeatures(maps, torch.from_numpy(features["coverage"])).to(self.device)
        return KnownObject(name, diameter, known, slot, known.appearance().numpy())

    def condition(self, rows: Sequence[Sequence[KnownObject]], slots: Sequence[Sequence[int]]) -> Conditioning:
        """Conditioning of B rows of N_O objects each, put together from what is kept of every object.

        Equal to `OCDiT.condition` of the same objects and slots: tokens, keys and values of an object do not
        depend on its neighbours; only the size encoding does, and is made here.
        """
        parts = [
            [self._row(o, s) for o, s in zip(row, slot, strict=True)] for row, slot in zip(rows, slots, strict=True)
        ]
        longest = max(p.valid.shape[-1] for row in parts for p in row)

        def stack(
            pick: Callable[[Conditioning], Tensor], axis: int
        ) -> Tensor:  # tokens lie along `axis` of [1, 1, ...]
            padded = []
            for row in parts:
                for part in row:
                    x = pick(part)[0, 0]
                    missing = longest - x.shape[axis]
                    padded.append(F.pad(x, (0, 0) * (x.dim() - 1 - axis) + (0, missing)) if missing else x)
            return torch.stack(padded).unflatten(0, (len(parts), len(parts[0])))

        blocks = range(len(parts[0][0].keys))
        correlation = None
        if parts[0][0].correlation_keys is not None:
            correlation = stack(lambda p: p.correlation_keys, 0)  # type: ignore[arg-type, return-value]
        return Conditioning(
            keys=tuple(stack(lambda p, b=b: p.keys[b], 1) for b in blocks),  # type: ignore[misc]
            values=tuple(stack(lambda p, b=b: p.values[b], 1) for b in blocks),  # type: ignore[misc]
            valid=stack(lambda p: p.valid, 0),
            query_encoding=self.model.query_encoding(
                torch.tensor([list(s) for s in slots], device=self.device),
                torch.tensor([[o.diameter for o in row] for row in rows], dtype=torch.float32, device=self.device),
            ),
            correlation_keys=correlation,
        )

    @torch.inference_mode()
    def run(
        self,
        images: Sequence[np.ndarray],
        rows: Sequence[Sequence[KnownObject]],
        slots: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        targets: int,
        sampler: SamplerSettings,
        seed: int = 0,
        batch_tokens: int = 0,
        on_step: Callable[[int, np.ndarray], None] | None = None,
        frame_of_row: Sequence[int] | None = None,
        origin: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
    ) -> Output:
        """Sample and decode masks.

        Args:
            images: uint8 [H, W, 3] each, one size for all, sides multiples of 16.
            rows: the objects that the network sees together, the same number in every row.
            slots: their rows of the object encoding, all different within a row.
            image_of_row: index of the image that a row looks at.
            targets: the first so many objects of every row are decoded, the others are there to compete.
            sampler: how latents are drawn.
            seed: of the noise.
            batch_tokens: bounds the query tokens that are in work at once; 0 takes what suits the device.
            on_step: receives (step, confidences of the state) [B, E, T, Q, H, W] when all rows fit into one
            batch.
            frame_of_row: rows of different frames draw from noises of their own, each the one that it would have
            alone; None: all are of one frame.
            origin: confidences [B, N_O, Q, H, W] that the sampler starts from, under the noise of sampler.sigma_max.
            boxes: float32 [B, 4] in which the first object of every row is asked for, as shares of the image's sides:
            left, top, right, bottom; NaN: anywhere. For models with `box_prompt`.
        """
        clock = time.perf_counter()
        height, width = images[0].shape[:2]
        features = self.image_features(images)
        clock = self.timings.add("backbone", clock)
        tokens = (height // 16) * (width // 16) * len(rows[0]) * sampler.ensemble * self.config.queries_per_object
        size = max((batch_tokens or BATCH_TOKENS[self._kind]) // tokens, 1)
        frames = [0] * len(rows) if frame_of_row is None else list(frame_of_row)
        # of the CPU: the same noise on every device
        generators = {frame: torch.Generator().manual_seed(seed) for frame in frames}
        shape = (len(rows), sampler.ensemble, targets, self.config.queries_per_object, height, width)
        confidence = np.empty(shape, np.float32)
        similarity = np.empty((len(rows), targets, 2, height // 16, width // 16), np.float32)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            index = torch.as_tensor(image_of_row[part], device=self.device)
            single = bool((index == index[0]).all())
            seen = tuple(m[index[:1]] if single else m[index] for m in features)
            conditioning = self.condition(rows[part], slots[part])
            clock = self.timings.add("conditioning", clock)
            watch = None
            if on_step is not None and size >= len(rows):

                def watch(step: int, state: Tensor) -> None:
                    on_step(step, self._decode(state, targets))

            noise = [generators[frame] for frame in frames[part]]  # row by row, however they are cut into batches
            first = None if origin is None else self._encode(origin[part])
            prompt = None if boxes is None else self._prompt(boxes[part], len(rows[0]))
            latents = sample(self.model, seen, conditioning, sampler, noise, watch, first, prompt)
            similarity[part] = self._similarity(seen, rows[part], conditioning, targets)
            clock = self.timings.add("sampling", clock)
            confidence[part] = self._decode(latents, targets)
            clock = self.timings.add("decoder", clock)
        return Output(confidence, similarity)

    def _row(self, known: KnownObject, slot: int) -> Conditioning:
        if slot not in known.rows:
            features = TemplateFeatures(tuple(m[None] for m in known.features.maps), known.features.coverage[None])
            known.rows[slot] = self.model.condition(
                features, torch.tensor([known.diameter]), torch.tensor([[slot]], device=self.device)
            )
        return known.rows[slot]

    def _decode(self, latents: Tensor, targets: int) -> np.ndarray:
        """[B, E, N_Q, d, h, w] -> float32 [B, E, T, Q, H, W]; queries of one object lie side by side.

        Objects that are absent give the latents of the empty mask; those are not decoded.
        """
        queries = self.config.queries_per_object
        latents = latents[:, :, : targets * queries]
        lead, (height, width) = latents.shape[:3], latents.shape[-2:]
        flat = latents.flatten(0, 2)
        if self._empty_radius:
            distance = (flat - self._empty_latents(height, width)).pow(2).sum(1).amax((1, 2)).sqrt()
            shown = (distance > self._empty_radius).nonzero()[:, 0]
        else:
            shown = torch.arange(len(flat), device=flat.device)
        confidence = flat.new_zeros(len(flat), 16 * height, 16 * width)
        if len(shown):
            confidence[shown] = self.model.confidence(flat[shown]).to(confidence.dtype)
        return confidence.unflatten(0, lead).unflatten(2, (targets, queries)).float().cpu().numpy()

    def _empty_latents(self, height: int, width: int) -> Tensor:
        """Latents of a mask that shows nothing: [1, d, height, width]."""
        if (height, width) not in self._empties:
            empty = torch.zeros(1, 1, 16 * height, 16 * width, device=self.device)
            self._empties[height, width] = self.model.vae.encode_latent(empty)
        return self._empties[height, width]

    @torch.inference_mode()
    def _find_empty_radius(self) -> float:
        """Largest of EMPTY_RADII around the empty mask's latents within which this decoder shows nothing; 0: none.

        Tried in random directions; an untrained decoder shows something anywhere.
        """
        empty = self._empty_latents(8, 8)
        noise = torch.randn(16, *empty.shape[1:], generator=torch.Generator().manual_seed(0)).to(empty)
        noise = noise / noise.norm(dim=1, keepdim=True)
        for radius in EMPTY_RADII:
            if float(self.model.confidence(empty + radius * noise).max()) < EMPTY_CONFIDENCE:
                return radius
        return 0.0

    def _encode(self, confidence: np.ndarray) -> Tensor:
        """Latents [B, N_Q, d, h, w] of confidences [B, N_O, Q, H, W]: the inverse of `_decode`, of firm masks."""
        masks = torch.from_numpy(confidence > 0.5).to(self.device).flatten(1, 2)
        latents = self.model.vae.encode_latent(masks.flatten(0, 1)[:, None].float())
        return latents.unflatten(0, masks.shape[:2])

    def _prompt(self, boxes: np.ndarray, objects: int) -> Tensor:
        """Boxes [B, N_O, 4] of all objects from those of the first ones [B, 4]."""
        prompt = np.full((len(boxes), objects, 4), np.nan, np.float32)
        prompt[:, 0] = boxes
        return torch.from_numpy(prompt).to(self.device)

    def _similarity(
        self, features: Features, rows: Sequence[Sequence[KnownObject]], conditioning: Conditioning, targets: int
    ) -> np.ndarray:
        """Cosine of the correlation features where the model has them, else of the raw backbone features; and with the
        background: [B, T, 2, h, w].
        """
        correlation = self.model.correlation
        if correlation is not None and conditioning.correlation_keys is not None:
            keys, valid = conditioning.correlation_keys[:, :targets], conditioning.valid[:, :targets]
            scene = correlation.describe(features, 16)
            own = correlation.similarity(scene, keys, valid)[1]
            common = own
            if correlation.background_lead is not None:
                common = correlation.commonness(scene)[:, None].expand_as(own)
            return torch.stack([own, common], 2).cpu().numpy()
        maps = [self.raw_similarity(features, row[:targets]) for row in rows] if features[0].shape[0] == 1 else [
            self.raw_similarity(tuple(f[i : i + 1] for f in features), row[:targets]) for i, row in enumerate(rows)
        ]  # fmt: skip
        return np.stack(maps)[:, :, None].repeat(2, 2)

    @torch.inference_mode()
    def raw_similarity(self, features: Features, objects: Sequence[KnownObject]) -> np.ndarray:
        """Cosine of the frozen features themselves, mean of the five best: float32 [T, H/16, W/16] of one
        image.
        """
        scene = F.normalize(_on_latent_grid(features), dim=1)[0]  # [C, h, w]
        maps = []
        for known in objects:
            tokens = F.normalize(_on_latent_grid(known.features.maps), dim=1).movedim(1, -1)  # [N_T, h_T, w_T, C]
            covered = known.features.coverage >= min(self.config.min_coverage, float(known.features.coverage.max()))
            cosine = torch.einsum("nc,chw->nhw", tokens[covered], scene)
            maps.append(cosine.topk(min(5, cosine.shape[0]), dim=0).values.mean(0))
        return torch.stack(maps).cpu().numpy()

    def image_features(self, images: Sequence[np.ndarray]) -> Features:
        """Features of uint8 images [H, W, 3] of one size, as the network takes them."""
        return self._features(self._backbone, images)

    def frozen_features(self, images: Sequence[np.ndarray]) -> Features:
        """Features of uint8 images [H, W, 3] of one size by the backbone of the templates."""
        return self._features(self.model.backbone, images)

    @torch.inference_mode()
    def _features(self, backbone: Backbone, images: Sequence[np.ndarray]) -> Features:
        size = max(BATCH_PIXELS[self._kind] // (images[0].shape[0] * images[0].shape[1]), 1)
        parts = []
        for start in range(0, len(images), size):
            batch = torch.from_numpy(np.stack(images[start : start + size])).to(self.device)
            parts.append(backbone(batch.movedim(-1, 1).float() / 255))
        return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))


def _on_latent_grid(maps: Features) -> Tensor:
    """All strides concatenated on the /16 grid: [B, sum C_s, h, w]."""
    size = (maps[-1].shape[-2], maps[-1].shape[-1])
    return torch.cat([F.adaptive_avg_pool2d(m, size) if m.shape[-2:] != size else m for m in maps], 1)
