# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Design studies: variants x seeds at equal processor time, judged on held-out scenes, as a table and curves.

Every run starts anew, with nothing but backbone, feature statistics and mask VAE of a checkpoint. Finished runs are
kept, cut ones go on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ocdit_ros.model import OCDiT, load_checkpoint
from ocdit_ros.train.bop import open_scenes
from ocdit_ros.train.dataset import ObjectStore, SampleSettings, SampleSource, SceneShards
from ocdit_ros.train.trainer import Trainer, TrainerSettings

MEASURES = {"mean IoU": "mean_iou", "AP": "ap", "presence AUROC": "presence_auroc"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A name and what it changes; plain words are fields of the model configuration."""

    name: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trainer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sample: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scenes: tuple[str, ...] = ()  # as for --scenes, instead of DATA/scenes/train

    @classmethod
    def parse(cls, words: Sequence[str]) -> Variant:
        """From ``NAME [FIELD=JSON | trainer.FIELD=JSON | sample.FIELD=JSON | scenes=WORD ...]``, or ValueError."""
        if not words or "=" in words[0]:
            raise ValueError("a variant begins with its name")
        groups: dict[str, dict[str, Any]] = {"model": {}, "trainer": {}, "sample": {}}
        scenes: list[str] = []
        for word in words[1:]:
            field, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"variant {words[0]}: {word!r} is not FIELD=JSON")
            if field == "scenes":
                scenes.append(value)
                continue
            group, _, rest = field.rpartition(".")
            known = {"": "model", "trainer": "trainer", "sample": "sample"}
            if group not in known:
                raise ValueError(f"variant {words[0]}: {field!r} belongs to neither the model, trainer. nor sample.")
            try:
                parsed = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"variant {words[0]}: {value!r} is not JSON") from error
            groups[known[group]][rest] = tuple(parsed) if isinstance(parsed, list) else parsed
        return cls(words[0], groups["model"], groups["trainer"], groups["sample"], tuple(scenes))


def fresh_model(init: OCDiT, changes: Mapping[str, Any], seed: int) -> OCDiT:
    """A new model of `init`'s configuration with `changes`, keeping backbone, statistics and VAE alone."""
    torch.manual_seed(seed)
    model = OCDiT(dataclasses.replace(init.config, **changes))
    given = init.state_dict()
    kept = {k: v for k, v in given.items() if k.startswith(("backbone.", "vae."))}
    own = model.state_dict()
    lost = [k for k, v in kept.items() if k not in own or own[k].shape != v.shape]
    if lost:
        raise ValueError(f"a variant may not change the backbone or the VAE of the checkpoint ({lost[0]} does not fit)")
    model.load_state_dict({**own, **kept})
    model.start_image_backbone()
    model.provenance = {"study": True}
    return model


def run_study(
    init: Path | str,
    data: Path | str,
    out: Path | str,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    minutes: float,
    batch_size: int = 4,
    size: int = 192,
    validation_scenes: int = 40,
    points: int = 4,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train every variant with every seed for `minutes` of processor time; the entries of ``OUT/results.jsonl``.

    `points`: measurements on the way, evenly in processor time, for the curves. The same scenes, samples and noises are
    met by all variants of one seed as far as their settings allow. Raises ValueError for names that are not unique.
    """
    if len({v.name for v in variants}) != len(variants) or not variants or not seeds:
        raise ValueError("a study needs variants with names of their own, and seeds")
    data, out = Path(data), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    done = {(e["variant"], e["seed"]) for e in known}
    begun = load_checkpoint(init)
    for seed in seeds:
        for variant in variants:
            if (variant.name, seed) in done:
                continue
            model = fresh_model(begun, variant.model, seed)
            sampling = SampleSettings(
                **{
                    "size": size,
                    "objects": model.config.train_objects,
                    "queries_per_object": model.config.queries_per_object,
                    **variant.sample,
                }
            )
            store = ObjectStore(data / "objects" / "train", model, out / "features" / "train")
            for key in store.keys:  # made once and kept; the first run must not pay for all
                store.features(key)
            store.memory.clear()
            scenes = open_scenes(variant.scenes or [str(data / "scenes" / "train")], store.index)
            held_out = SampleSource(
                SceneShards(data / "scenes" / "val"),
                ObjectStore(data / "objects" / "val", model, out / "features" / "val"),
                dataclasses.replace(sampling, zoom=0.0, jitter=False),
                seed=1,
            )
            count = min(validation_scenes, len(held_out.scenes))
            settings = TrainerSettings(
                **{
                    "time_budget": minutes * 60, "clock": "cpu", "batch_size": batch_size, "seed": seed,
                    "validate_every": minutes * 60 / points, "warmup": 50, **variant.trainer,
                }
            )  # fmt: skip
            trainer = Trainer(
                model,
                SampleSource(scenes, store, sampling, seed),
                out / f"{variant.name}-{seed}",
                settings,
                [held_out.batch(list(range(i, min(i + 4, count)))) for i in range(0, count, 4)],
                None,
                held_out.objects,
            )
            trainer.run(quiet)
            entry = {
                "variant": variant.name, "seed": seed, "minutes": minutes, "steps": trainer.step,
                "views": trainer.views,
                "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
                "history": read_history(out / f"{variant.name}-{seed}"),
            }  # fmt: skip
            known.append(entry)
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
    return known


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What a run measured on its way; of a step that was measured twice (a cut run) the last."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return list({entry["step"]: entry for entry in map(json.loads, lines)}.values())


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one row per variant; means over the seeds, and how far the seeds lie apart."""
    names = list(dict.fromkeys(e["variant"] for e in entries))
    lines = [
        "| variant | parameters | seeds | steps | views | " + " | ".join(f"{m} (range)" for m in MEASURES) + " |",
        "|---|---|---|---|---|" + "---|" * len(MEASURES),
    ]
    for name in names:
        mine = [e for e in entries if e["variant"] == name]
        cells = [name, f"{mine[0]['parameters'] / 1e6:.2f} M", str(len(mine))]
        cells += [f"{np.mean([e[k] for e in mine]):.0f}" for k in ("steps", "views")]
        for key in MEASURES.values():
            values = np.array([e["history"][-1]["1 step"][key] for e in mine])
            cells.append(f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(entries: Sequence[Mapping[str, Any]], target: Path | str) -> None:
    """Mean IoU and AP against minutes of processor time, a colour per variant and a line per seed, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    names = list(dict.fromkeys(e["variant"] for e in entries))
    for axis, (measure, key) in zip(axes, list(MEASURES.items())[:2]):
        for entry in entries:
            place = names.index(entry["variant"])
            x = [point["seconds"] / 60 for point in entry["history"]]
            y = [point["1 step"][key] for point in entry["history"]]
            first = entry is next(e for e in entries if e["variant"] == entry["variant"])
            axis.plot(x, y, "o-", color=f"C{place}", markersize=3, label=entry["variant"] if first else None)
        axis.set_xlabel("minutes of processor time")
        axis.set_ylabel(f"{measure}, held-out scenes")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(target, dpi=110)
