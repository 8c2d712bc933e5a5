# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""The loss on the template correlation."""

import json
import subprocess
import sys

import pytest
import torch
from test_train_trainer import source, tiny, write_data

from ocdit_ros.model import ModelConfig, OCDiT
from ocdit_ros.train.matching import (
    IGNORED,
    MatchingLoss,
    background_patches,
    measure_matching,
    patch_targets,
    train_matching,
)
from ocdit_ros.train.trainer import Trainer, TrainerSettings, start_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set on disk."""
    return write_data(tmp_path_factory.mktemp("data"))


def adapted(**changes):
    """A tiny model whose correlation has hidden units, and whose images have a backbone of their own."""
    changes.setdefault("image_backbone", True)
    torch.manual_seed(0)
    return OCDiT(ModelConfig.preset("tiny", train_objects=3, correlation_hidden=32, **changes)).eval()


def held_out(data, model, count=4):
    """Batches to measure on."""
    samples = source(data, model, zoom=0.0, jitter=False)
    return [samples.batch(list(range(i, i + 4))) for i in range(0, 4 * count, 4)]


def test_patches_show_what_covers_them():
    masks = torch.zeros(1, 2, 16, 32, dtype=torch.uint8)
    masks[0, 0, :, :8] = 1  # all of the first column of patches
    masks[0, 1, :4, 8:16] = 1  # half of one patch
    masks[0, 1, 8:11, 8:16] = 1  # three eighths of another: unclear
    masks[0, 0, :1, 16:24] = 1  # an eighth: nothing
    assert patch_targets(masks, 8)[0].tolist() == [[0, 1, 2, 2], [0, IGNORED, 2, 2]]


def test_loss_is_low_when_the_right_object_matches_best():
    masks = torch.zeros(1, 2, 16, 32, dtype=torch.uint8)
    masks[0, 0, :8, :16], masks[0, 1, 8:, :16] = 1, 1
    best = torch.full((1, 2, 2, 4), 0.2)
    best[0, 0, 0, :2], best[0, 1, 1, :2] = 0.95, 0.95
    loss = MatchingLoss()
    right, swapped, silent = loss(best, masks), loss(best.flip(1), masks), loss(torch.full_like(best, 0.2), masks)
    assert right.item() < 0.01 < silent.item() < swapped.item()
    everywhere = loss(torch.full_like(best, 0.95), masks)  # fires where nothing is
    assert everywhere.item() > 0.5
    assert torch.isfinite(loss(best, torch.zeros_like(masks)))


def test_hidden_units_start_as_nothing_and_learn(data, tmp_path):
    model, plain = adapted(image_backbone=False), tiny()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "adapter" not in k})
    batch = source(data, model).batch([0, 1]).to("cpu")

    def best(some):
        conditioning = some.condition(batch.templates, batch.diameters)
        features = some.image_features(batch.images)
        return some.correlation.cosines(
            some.correlation.describe(features, 8), conditioning.correlation_keys, conditioning.valid
        ).amax(2)

    assert torch.equal(best(model), best(plain))
    settings = TrainerSettings(steps=40, batch_size=2, warmup=2, matching=1.0, ema=0.5)
    trainer = Trainer(model, source(data, model), tmp_path, settings)
    loss = MatchingLoss()
    with torch.no_grad():
        before = float(loss(best(model), batch.masks))
    while trainer.step < 40:
        trainer.train_step()
    model.eval()
    with torch.no_grad():
        after = float(loss(best(model), batch.masks))
    assert after < 0.8 * before
    assert float(model.correlation.adapter[2].weight.abs().max()) > 0
    assert float((trainer.matching_state()["nothing"] - 0.6).abs()) > 0


def test_what_the_loss_has_learned_is_resumed(data, tmp_path):
    def train(folder, until, matching=0.1):
        model = adapted()
        settings = TrainerSettings(steps=6, batch_size=2, warmup=2, matching=matching)
        trainer = Trainer(model, source(data, model), folder, settings)
        while trainer.step < until:
            trainer.train_step()
        trainer.save()
        return trainer

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "cut", 3)
    cut = train(tmp_path / "cut", 6)
    for one, other in (
        (whole.model.state_dict(), cut.model.state_dict()),
        (whole.matching_state(), cut.matching_state()),
    ):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(ValueError, match="with a matching loss"):
        train(tmp_path / "cut", 6, matching=0.0)


def test_several_queries_of_an_object_count_together(data, tmp_path):
    model = adapted(queries_per_object=2)
    samples = source(data, model, queries_per_object=2)
    trainer = Trainer(model, samples, tmp_path, TrainerSettings(steps=1, batch_size=2, matching=1.0))
    assert torch.isfinite(torch.tensor(trainer.train_step()))


def test_without_correlation_there_is_nothing_to_match(data, tmp_path):
    model = OCDiT(ModelConfig.preset("tiny", train_objects=3, correlation_width=0)).eval()
    with pytest.raises(ValueError, match="needs template correlation"):
        Trainer(model, source(data, model), tmp_path, TrainerSettings(steps=1, matching=0.1))


def test_matching_alone_tunes_descriptors_and_the_backbone_of_images(data):
    model = adapted()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = held_out(data, model)
    result = train_matching(model, source(data, model), steps=60, batch_size=2, validation=batches, quiet=True)
    assert result["steps"] == 60 and result["views"] == 120
    assert result["after"]["loss"] < 0.8 * result["before"]["loss"]
    assert result["after"]["accuracy"] > result["before"]["accuracy"]
    assert measure_matching(model, MatchingLoss(), batches).accuracy == pytest.approx(result["after"]["accuracy"])
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])
    }
    assert changed == {
        "correlation",
        "image_backbone",
    }  # the frozen backbone of the templates, above all, is not touched
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_matching_without_correlation_or_limit_is_refused(data):
    with pytest.raises(ValueError, match="steps or a time budget"):
        train_matching(adapted(), source(data, adapted()))
    model = OCDiT(ModelConfig.preset("tiny", train_objects=3, correlation_width=0)).eval()
    with pytest.raises(ValueError, match="needs template correlation"):
        train_matching(model, source(data, model), steps=1)
    with pytest.raises(ValueError, match="needs template correlation"):
        measure_matching(model, MatchingLoss(), [source(data, model).batch([0])])


def test_the_denoiser_tunes_the_backbone_of_images_more_slowly(data, tmp_path):
    model = adapted()
    settings = TrainerSettings(steps=3, batch_size=2, warmup=1, decay=0.0, matching=0.1, backbone_rate=0.25)
    trainer = Trainer(model, source(data, model), tmp_path, settings)
    for _ in range(3):
        trainer.train_step()
    rates = {round(group["lr"] / settings.learning_rate, 4) for group in trainer.optimizer.param_groups}
    assert rates == {1.0, 0.25}
    frozen, tuned = model.backbone.state_dict(), model.image_backbone.state_dict()
    assert any(not torch.equal(frozen[name], tuned[name]) for name in frozen)
    assert all(torch.equal(tensor, adapted().backbone.state_dict()[name]) for name, tensor in frozen.items())
    statistics = [name for name in frozen if "running" in name]
    assert statistics and all(torch.equal(frozen[name], tuned[name]) for name in statistics)
    averaged = trainer.ema.image_backbone.state_dict()
    assert any(not torch.equal(frozen[name], averaged[name]) for name in frozen)


def test_weights_without_hidden_units_go_on_with_them(tmp_path):
    from ocdit_ros.model import save_checkpoint

    save_checkpoint(tiny(), tmp_path / "plain.safetensors", {})
    grown = start_model(tmp_path / "plain.safetensors", {"correlation_hidden": 32, "image_backbone": True})
    for name, tensor in tiny().backbone.state_dict().items():
        assert torch.equal(grown.image_backbone.state_dict()[name], tensor)
    assert grown.config.correlation_hidden == 32
    assert torch.equal(grown.correlation.projection.weight, tiny().correlation.projection.weight)
    assert float(grown.correlation.adapter[2].weight.abs().max()) == 0


def test_patches_of_a_background_are_drawn_evenly(data):
    model = tiny()
    store = source(data, model).objects
    patches = background_patches(model, store, 12, objects=4, seed=1)
    assert torch.equal(patches, background_patches(model, store, 12, objects=4, seed=1))
    assert not torch.equal(patches, background_patches(model, store, 12, objects=4, seed=2))
    owners = []
    for patch in patches:  # three of each of four objects, all of them patches that show it
        found = set()
        for key in store.keys:
            features = store.features(key)
            maps = [torch.nn.functional.avg_pool2d(m.float(), 16 // s)
                    for m, s in zip(features.maps, model.config.feature_strides)]  # fmt: skip
            near = (torch.cat(maps, 1).movedim(1, -1) - patch).abs().amax(-1) < 1e-5
            if (near & (features.coverage >= model.config.min_coverage)).any():
                found.add(key)
        assert found
        owners.append(found)
    assert len(set().union(*owners[:4])) == 4
    with pytest.raises(ValueError, match=r"1 objects show \d+ patches, fewer than the 5000 asked for"):
        background_patches(model, store, 5000, objects=1)


def test_a_background_as_a_command_changes_nothing_until_it_is_trained(data, tmp_path, monkeypatch):
    from ocdit_ros.model import load_checkpoint, save_checkpoint
    from ocdit_ros.train.command import main

    save_checkpoint(tiny(), tmp_path / "plain.safetensors", {"stage": "denoiser"})
    words = ["background", "--init", tmp_path / "plain.safetensors", "--data", data, "--patches", 20,
             "--out", tmp_path / "wide.safetensors"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train", "train", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    plain, model = tiny(), load_checkpoint(tmp_path / "wide.safetensors")
    assert model.provenance["background"]["patches"] == 20 and model.provenance["stage"] == "denoiser"
    store = source(data, plain).objects
    assert torch.equal(model.correlation.background, background_patches(plain, store, 20))
    batch = held_out(data, plain, 1)[0].to("cpu")
    contexts = [m.query_context(m.image_features(batch.images), m.condition(batch.templates, batch.diameters))
                for m in (plain, model)]  # fmt: skip
    assert torch.allclose(contexts[0].embedding, contexts[1].embedding, atol=1e-6)
    # the denoiser learns what to make of it, and leaves the patches alone
    trainer = Trainer(model, source(data, model), tmp_path / "run", TrainerSettings(steps=3, batch_size=2, warmup=1))
    trainer.run(quiet=True)
    assert float(trainer.model.correlation.background_lead.weight.detach().abs().max()) > 0
    assert torch.equal(trainer.ema.correlation.background, background_patches(plain, store, 20))


def test_matching_as_a_command_then_the_denoiser(data, tmp_path, monkeypatch, capsys):
    import shutil

    from ocdit_ros.model import load_checkpoint, save_checkpoint
    from ocdit_ros.train.command import main

    shutil.copytree(data, tmp_path / "data")
    for part in ("objects", "scenes"):
        shutil.copytree(data / part / "train", tmp_path / "data" / part / "val")
    save_checkpoint(tiny(), tmp_path / "plain.safetensors", {})

    def run(*words):
        monkeypatch.setattr("sys.argv", ["train", "train", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0

    common = ["--data", tmp_path / "data", "--size", 64, "--objects", 3, "--validation-scenes", 4,
              "--coarse-share", 0.3, "--coarse-size", 80, "--coarse-objects", 4, "--batch-size", 4,
              "--quiet"]  # fmt: skip
    matched = tmp_path / "matched.safetensors"
    run("matching", "--init", tmp_path / "plain.safetensors", "--out", matched, "--minutes", 0.02, *common,
        "--set", "correlation_hidden=16", "image_backbone=true")  # fmt: skip
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"steps", "views", "minutes", "before", "after"}
    model = load_checkpoint(matched)
    assert model.config.correlation_hidden == 16 and model.provenance["matching"]["steps"] > 0
    # as docs/training.md starts it on several processes
    words = ["-m", "ocdit_ros.train.command", "--", "train", "denoiser", "--init", matched, "--run", tmp_path / "run",
             "--steps", 2, "--matching", 0.5, *common]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, *map(str, words)], check=True, timeout=600, capture_output=True)
    trained = load_checkpoint(tmp_path / "run" / "ema.safetensors")
    assert trained.config == model.config
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 1  # one of them keeps the books
