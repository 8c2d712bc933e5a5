# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Runs over a data set: records, resumption, sharing out, analysis, report."""

import dataclasses
import json
import re

import numpy as np
import pytest
from segment_oracle import OracleNetwork, position_image, templates

from ocdit_ros.evaluate import command, run, submission
from ocdit_ros.evaluate.analysis import Kin, analyse
from ocdit_ros.evaluate.datasets import GroundTruth, ImageKey
from ocdit_ros.evaluate.report import write_report
from ocdit_ros.segment import Segmenter, SegmenterSettings


def rectangle(x, y, w, h):
    mask = np.zeros((192, 256), bool)
    mask[y : y + h, x : x + w] = True
    return mask


CUP, BOX, TOY = 1, 2, 7
PLACES = {CUP: (20, 30, 50, 40), BOX: (150, 100, 40, 60), TOY: (90, 10, 30, 30)}


class PlainDataset:
    """Four images, all alike; the cup is in all, the box in the first two, the toy in none."""

    name, split = "plain", "test"
    categories = {CUP: "cup", BOX: "box & <lid>", TOY: "toy"}  # noqa: RUF012
    families = {}  # noqa: RUF012
    images = [ImageKey(1, n) for n in range(4)]  # noqa: RUF012

    def rgb(self, key):
        return position_image()

    def ground_truth(self, key):
        present = [CUP, BOX] if key.image_id < 2 else [CUP]
        return [GroundTruth(c, rectangle(*PLACES[c]), 1.0) for c in present]

    def candidates(self, key):
        return list(self.categories)

    def object_source(self, category_id):
        return templates(self.categories[category_id])


def segmenter(**truth):
    """Sees the cup where it is and the box everywhere, so it is wrong about the box in two images."""
    seen = {CUP: rectangle(*PLACES[CUP]) * 0.95, BOX: rectangle(*PLACES[BOX]) * 0.8}
    maps = {str(c): m.astype(np.float32)[None] for c, m in seen.items()}
    return Segmenter(
        OracleNetwork(maps), SegmenterSettings(coarse_size=128, crop_size=64, score_threshold=0.01, tiles=1)
    )


HEADER = {
    "method": "ocdit",
    "weights": "w",
    "weights_sha256": "0" * 64,
    "settings": dataclasses.asdict(SegmenterSettings()),
}


@pytest.fixture
def finished(tmp_path):
    data = PlainDataset()
    run.run(data, segmenter(), tmp_path, HEADER)
    return data, tmp_path, run.read_records(tmp_path)


def test_a_run_keeps_a_record_of_every_image(finished):
    data, _, records = finished
    assert {r.key for r in records} == set(data.images)
    for record in records:
        assert record.candidates == (CUP, BOX, TOY)
        assert {d.category_id for d in record.detections} == {CUP, BOX}
        assert len(record.evidence) == len(record.detections) == 2
        assert record.seconds == record.timings["total"] > 0


def test_records_survive_their_own_format(finished):
    for record in finished[2]:
        again = run.Record.from_json(record.to_json())
        assert again == record


def test_analysis_by_hand(finished):
    data, _, records = finished
    a = analyse(data, records, 0.5)
    assert (a.images, a.instances, a.found, a.wrong) == (4, 6, 6, 2)
    # the box is absent from two images and reported there; the toy is absent from four and never reported
    assert (a.absent_pairs, a.absent_fired) == (6, 2)
    assert a.errors == {"background": 2}
    assert a.scores.ap50 == pytest.approx((1.0 + (1 + 1) / 2) / 2)  # ties: both true boxes come first
    assert [(s.instances, s.found) for s in a.by_copies] == [(6, 6), (0, 0), (0, 0)]
    sizes = {s.label: s.instances for s in a.by_size}
    assert sizes["32-64 px"] == 6
    assert [q.quality > 0.9 for q in a.per_image] == [True, True, False, False]
    assert analyse(data, records, 0.99).found == 0


def test_mix_ups_are_named(finished):
    _, _, records = finished

    class Swapped(PlainDataset):
        def ground_truth(self, key):  # what is called a cup is a toy
            return [GroundTruth(TOY, rectangle(*PLACES[CUP]), 1.0)]

    a = analyse(Swapped(), records, 0.5)
    assert a.confusion == ((CUP, TOY, 4),)
    assert a.errors == {"another object": 4, "background": 4}


def test_members_of_a_family_are_told_apart_or_not(finished):
    _, _, records = finished

    class Relatives(PlainDataset):
        families = {CUP: "a", BOX: "b", TOY: "a"}  # noqa: RUF012

        def ground_truth(self, key):  # a cup where the cup is seen; a toy where the box is, once where the cup is
            toy = PLACES[CUP] if key.image_id == 3 else PLACES[BOX]
            found = [GroundTruth(CUP, rectangle(*PLACES[CUP]), 1.0), GroundTruth(TOY, rectangle(*toy), 1.0)]
            return found[: 1 if key.image_id == 0 else 2]

    # images 1 to 3 have both: the toy is shown in 3 alone, and there it is taken for the cup
    assert analyse(Relatives(), records, 0.5).kin == Kin(6, 4, 3)
    assert analyse(PlainDataset(), records, 0.5).kin == Kin(0, 0, 0)


def test_an_ignored_instance_is_neither_missed_nor_wrong(finished):
    _, _, records = finished

    class Hidden(PlainDataset):
        def ground_truth(self, key):
            return [GroundTruth(c, rectangle(*PLACES[c]), f) for c, f in ((CUP, 1.0), (BOX, 0.05))]

    a = analyse(Hidden(), records, 0.5)
    assert (a.instances, a.found, a.wrong) == (4, 4, 0)
    assert (a.absent_pairs, a.absent_fired) == (4, 0)  # a hidden box is not an absent one


def test_resume_does_what_is_left(tmp_path):
    data = PlainDataset()
    run.run(data, segmenter(), tmp_path, HEADER)
    file = tmp_path / "records-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1] + lines[2][:50])  # cut while the third was written
    worker = segmenter()
    run.run(data, worker, tmp_path, HEADER, resume=True)
    assert len([c for c in worker.network.calls if c == (1, 3)]) == 2
    assert {r.key for r in run.read_records(tmp_path)} == set(data.images)


def test_runs_are_not_mixed(tmp_path):
    data = PlainDataset()
    run.run(data, segmenter(), tmp_path, HEADER)
    with pytest.raises(run.RunError, match="add --resume"):
        run.run(data, segmenter(), tmp_path, HEADER)
    with pytest.raises(run.RunError, match="other settings"):
        run.run(data, segmenter(), tmp_path, {**HEADER, "weights": "other"}, resume=True)


def test_processes_share_the_images_out(tmp_path, monkeypatch):
    data = PlainDataset()
    run.prepare(tmp_path, HEADER, False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        run.run(data, segmenter(), tmp_path, HEADER, resume=True)
        done.append({r.key.image_id for r in run.read_records(tmp_path)})
    assert done == [{1, 3}, {0, 1, 2, 3}]


def test_the_catalogue_stays_small():
    class Many(PlainDataset):
        categories = {n: f"object {n}" for n in range(1, 20)}  # noqa: RUF012

    worker = segmenter()
    shelf = run.ObjectShelf(Many(), worker, limit=5)
    assert shelf.require([3, 1]) == ["3", "1"]
    for first in range(4, 18):
        shelf.require([1, first])
    assert len(worker.objects) == 5
    assert "1" in worker.objects
    assert len(shelf.require(range(1, 9))) == 8


def test_finish_writes_result_scores_and_report(finished):
    data, folder, _ = finished
    command.finish(data, folder, "ocdit", HEADER, 0.5)
    detections = submission.read(folder / "ocdit_plain-test.json")
    assert len(detections) == 8
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["AP50"] == pytest.approx(1.0)
    assert scores["absent_fired"] == 2
    assert [o["object"] for o in scores["objects"]] == ["cup", "box & <lid>"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert "box &amp; &lt;lid&gt;" in page
    assert "box & <lid>" not in page
    assert "nan" not in page.lower()


@pytest.mark.parametrize("count, captions", [(1, ["Best and median and worst"]), (2, ["Best", "Median and worst"])])
def test_report_of_few_images_shows_each_once(finished, count, captions):
    class Few(PlainDataset):
        images = PlainDataset.images[:count]

    records = [record for record in finished[2] if record.key in Few.images]
    page = write_report(Few(), records, analyse(Few(), records, 0.5), "few", "how")
    assert re.findall(r"([A-Z][a-z ]+): scene", page) == captions
    assert page.count("data:image/jpeg") == count


def test_fitted_scores_come_back(finished, tmp_path):
    data, _, records = finished
    command.fit_scores(data, records, tmp_path / "scores.json")
    from ocdit_ros.segment.scoring import Scorer

    scorer = Scorer.from_metadata(json.loads((tmp_path / "scores.json").read_text()))
    assert len(scorer.weights) == len(command.Evidence.names())
    right = records[0].evidence[[d.category_id for d in records[0].detections].index(CUP)]
    assert 0.5 < scorer(command.Evidence(*right)) <= 1


def test_a_run_without_any_detection(tmp_path):
    data = PlainDataset()
    run.run(data, Segmenter(OracleNetwork({})), tmp_path, HEADER)
    a = command.finish(data, tmp_path, "ocdit", HEADER, 0.5)
    assert (a.found, a.wrong, a.scores.ap) == (0, 0, 0)
    assert json.loads((tmp_path / "scores.json").read_text())["ECE"] is None
    assert "nan" not in (tmp_path / "report.html").read_text().lower()
