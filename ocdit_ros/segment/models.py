# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A folder of meshes as BOP lays it out: obj_000001.ply and so on, and optionally names.json."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ocdit_ros.segment.types import SegmentError
from ocdit_ros.templates import ObjectSpec, resolve

_MESH = re.compile(r"obj_(\d+)\.(ply|obj)")


def read_models(folder: str | os.PathLike[str], scale: float = 0.001) -> dict[int, ObjectSpec]:
    """Objects of a models folder by their number.

    An object is called as names.json ({"1": "mug"}) says, else like its file. Of a .ply and a .obj with the
    same number the .ply is taken, the one that BOP defines. `folder` may be a path, a file:// or a package://
    URI; `scale` is metres per mesh unit, 0.001 for BOP's millimetres. Raises SegmentError when there is no
    such folder, no mesh in it, or two objects of one name; MeshError when the URI cannot be resolved.
    """
    path = resolve(folder)
    if not path.is_dir():
        raise SegmentError(f"'{path}' is not a folder; give the folder with the meshes obj_NNNNNN.ply.")
    meshes = {int(m[1]): f for f in sorted(path.iterdir()) if (m := _MESH.fullmatch(f.name))}
    if not meshes:
        raise SegmentError(f"'{path}' has no mesh named obj_NNNNNN.ply or obj_NNNNNN.obj.")
    names = _read_names(path / "names.json")
    models: dict[int, ObjectSpec] = {}
    for number, file in sorted(meshes.items()):
        name = names.get(number, file.stem)
        if any(spec.name == name for spec in models.values()):
            raise SegmentError(f"'{path / 'names.json'}' gives the name '{name}' to more than one object.")
        models[number] = ObjectSpec(name, str(file), scale)
    return models


def _read_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    try:
        return {int(number): str(name) for number, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SegmentError(f'"{path}" must map object numbers to names, as in {{"1": "mug"}}: {error}') from None
