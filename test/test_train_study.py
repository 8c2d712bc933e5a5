# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""Design studies: what a variant says, what runs share, equal budgets, tables."""

import json

import pytest
import torch
from test_train_trainer import tiny, write_data

from ocdit_ros.model import save_checkpoint
from ocdit_ros.train import study
from ocdit_ros.train.command import main


def test_variants_are_read_from_words():
    words = ["wide", "width=64", 'self_attention="joint"', "trainer.ema=0.9", "sample.absent=[0.5,0.5]", "scenes=a:b=c"]
    variant = study.Variant.parse(words)
    assert variant.name == "wide" and variant.model == {"width": 64, "self_attention": "joint"}
    assert variant.trainer == {"ema": 0.9} and variant.sample == {"absent": (0.5, 0.5)}
    assert variant.scenes == ("a:b=c",)
    for words, message in (
        (["width=3"], "begins with its name"),
        (["a", "width"], "not FIELD=JSON"),
        (["a", "data.x=1"], "belongs to neither"),
        (["a", "width=wide"], "not JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            study.Variant.parse(words)


def test_runs_share_backbone_and_vae_and_nothing_else():
    given = tiny()
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.add_(0.01)
    new = study.fresh_model(given, {"self_attention": "joint"}, 3)
    same = study.fresh_model(given, {"self_attention": "joint"}, 3)
    other = study.fresh_model(given, {"self_attention": "joint"}, 4)
    assert new.config.self_attention == "joint"
    changed = 0
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
        if name.startswith(("backbone.", "vae.")):
            assert torch.equal(tensor, given.state_dict()[name]), name
        elif tensor.is_floating_point() and tensor.dim() > 1:
            changed += not torch.equal(tensor, other.state_dict()[name])
    assert changed > 5
    with pytest.raises(ValueError, match="may not change the backbone or the VAE"):
        study.fresh_model(given, {"latent_channels": 2 * given.config.latent_channels}, 0)


def test_a_study_trains_each_variant_writes_its_table_and_goes_on(tmp_path, monkeypatch, capsys):
    data = write_data(tmp_path / "data")
    for part in ("objects", "scenes"):
        (data / part / "val").symlink_to(data / part / "train")
    save_checkpoint(tiny(), tmp_path / "init.safetensors", {})
    words = ["ocdit", "train", "study", "--init", str(tmp_path / "init.safetensors"), "--data", str(data), "--out",
             str(tmp_path / "out"), "--variant", "plain", "--variant", "joint", 'self_attention="joint"',
             "trainer.steps=3", "--seeds", "0", "--minutes", "0.01", "--size", "64", "--batch-size", "2",
             "--validation-scenes", "4", "--points", "1", "--threads", "1", "--quiet"]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "| plain |" in printed and "| joint |" in printed
    assert (tmp_path / "out" / "table.md").read_text() in printed
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [e["variant"] for e in results] == ["plain", "joint"] and results[1]["steps"] <= 3
    used = results[0]["history"][-1]["seconds"]
    assert used <= 5  # 0.6 seconds of processor time, and the step that passes them
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        main()
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before  # finished runs are kept


def test_a_table_has_means_and_ranges():
    def entry(name, seed, value):
        measured = {"mean_iou": value, "ap": value / 2, "presence_auroc": 0.5}
        return {"variant": name, "seed": seed, "steps": 10, "views": 40, "parameters": 2_500_000,
                "history": [{"step": 10, "seconds": 60, "1 step": measured}]}  # fmt: skip

    text = study.table([entry("a", 0, 0.2), entry("a", 1, 0.4), entry("b", 0, 0.5)]).splitlines()
    assert len(text) == 4
    assert text[2].startswith("| a | 2.50 M | 2 | 10 | 40 | 0.300 (0.200 to 0.400) | 0.150 (0.100 to 0.200) |")
    assert text[3].startswith("| b | 2.50 M | 1 | 10 | 40 | 0.500 (0.500 to 0.500)")
    with pytest.raises(ValueError, match="names of their own"):
        study.run_study("x", "y", "nowhere", [], [0], 1)
