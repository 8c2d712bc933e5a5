# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A data folder with a few procedural objects, for the tests of both renderers."""

import functools
from pathlib import Path

from ocdit_ros.train import objects as ob
from ocdit_ros.train import scenes as sc


def write_objects(out: Path, families: int) -> Path:
    """Meshes and index of so many families; scenes need no templates."""
    folder = out / "objects" / "train"
    index = {}
    for number in range(families):
        for item in ob.draw_family(3, "train", number, "t0"):
            ob.save_object(folder, item)
            index[item.key] = dict(item.info, colour=[100, 100, 100])
    ob.update_index(folder, index)
    return out


def open_objects(out: Path):
    """Catalogue, and what loads an object by its key."""
    folder = out / "objects" / "train"
    load = functools.lru_cache(None)(functools.partial(ob.load_object, folder))
    return sc.Catalogue.from_index(ob.read_index(folder)), load
