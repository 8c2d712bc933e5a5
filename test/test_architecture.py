# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The picture of the architecture shows the rooms and imports that there are, and these are the allowed ones."""

import configparser
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def program():
    return runpy.run_path(str(ROOT / "scripts" / "architecture.py"))


def test_the_picture_in_the_tree_is_up_to_date(program):
    assert (ROOT / "docs" / "images" / "architecture.svg").read_text() == program["picture"](), (
        "run python scripts/architecture.py"
    )


def test_the_picture_has_every_room_once_and_every_arrow(program):
    tree = ElementTree.fromstring(program["picture"]())
    texts = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "room"]
    rooms = {
        path.stem
        for path in (ROOT / "ocdit_ros").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and path.stem != "__init__"
    }
    assert sorted(texts) == sorted(rooms)
    lines = [path.get("class") for path in tree.iter("{http://www.w3.org/2000/svg}path") if path.get("marker-end")]
    assert len(lines) == len(program["drawn"]()) + 2  # and the key


def test_arrows_are_read_from_the_code(program):
    every = program["arrows"]()
    assert every["segment", "model"]
    assert every["node", "segment"]
    assert every["cli", "train"] is False  # loaded for its command alone
    assert every["doctor", "node"] is False  # where rclpy is
    assert ("segment", "node") not in every
    assert ("templates", "model") not in every


def test_imports_point_down_as_import_linter_has_it(program):
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    layers = config["importlinter:contract:layers"]["layers"].split("\n")
    level = {
        room.strip().removeprefix("ocdit_ros."): number
        for number, layer in enumerate(filter(None, layers))
        for room in layer.split("|")
    }
    assert set(level) == set(program["ROOMS"])
    for (who, whom), statement in program["arrows"]().items():
        assert not statement or level[who] < level[whom], (who, whom)
