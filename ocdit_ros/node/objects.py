# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Which objects the parameters ask for, and what became different since the last time they were read."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ocdit_ros.node.parameters import names_in
from ocdit_ros.templates import PLAUSIBLE_DIAMETER, MeshError, ObjectSpec, resolve

_BOP_MESH = re.compile(r"obj_(\d+)\.(ply|obj)")


class ObjectsError(ValueError):
    """The objects asked for cannot be had; the message names the parameter or file at fault."""


def catalogue(values: Mapping[str, Any], own: Callable[[str, str], Any]) -> list[ObjectSpec]:
    """The objects that `models_dir`, `models_scale` and `objects` ask for, in order.

    `own(name, field)` gives the parameter objects.<name>.<field>, field being mesh or scale.

    Raises ObjectsError.
    """
    wanted = names_in(values, "objects")
    folder = values["models_dir"]
    models = read_models_dir(folder, values["models_scale"]) if folder else {}
    if not wanted:
        if not models:
            raise ObjectsError("there is no object to look for: set parameter 'models_dir' or 'objects'")
        return list(models.values())
    specs = []
    for name in wanted:
        if mesh := own(name, "mesh"):
            specs.append(ObjectSpec(name, mesh, own(name, "scale")))
        elif name in models:
            specs.append(models[name])
        elif folder:
            raise ObjectsError(
                f"parameter 'objects' names '{name}', but 'objects.{name}.mesh' is not set and models_dir "
                f"'{folder}' has only {', '.join(models)}"
            )
        else:
            raise ObjectsError(f"parameter 'objects' names '{name}', but 'objects.{name}.mesh' is not set")
    return specs


def read_models_dir(folder: str, scale: float) -> dict[str, ObjectSpec]:
    """Meshes of a BOP models folder by name: that of names.json ({"1": "mug"}), else that of the file.

    Of a .ply and a .obj with the same number, the .ply is taken, the one that BOP defines. Raises
    ObjectsError.
    """
    try:
        path = resolve(folder)
    except MeshError as error:
        raise ObjectsError(f"parameter 'models_dir': {error}") from None
    if not path.is_dir():
        raise ObjectsError(f"parameter 'models_dir': '{path}' is not a folder")
    meshes: dict[int, Path] = {}
    for file in sorted(path.iterdir()):  # .ply comes after .obj and stays
        if match := _BOP_MESH.fullmatch(file.name):
            meshes[int(match[1])] = file
    if not meshes:
        raise ObjectsError(f"parameter 'models_dir': there is no obj_NNNNNN.ply or .obj in '{path}'")
    names = _read_names(path / "names.json")
    models: dict[str, ObjectSpec] = {}
    for number, file in sorted(meshes.items()):
        name = names.get(str(number), file.stem)
        if name in models:
            raise ObjectsError(f"'{path / 'names.json'}' gives the name '{name}' to more than one object")
        models[name] = ObjectSpec(name, str(file), scale)
    return models


def _read_names(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ObjectsError(f"'{path}' cannot be read: {error}") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise ObjectsError(f'\'{path}\' must map object numbers to names, as in {{"1": "mug"}}')
    return names


def fingerprint(spec: ObjectSpec) -> tuple[Any, ...]:
    """Changes when the object has to be read again: another mesh or scale, or other content of its files.

    The files beside it are its material and texture, which BOP and OBJ name like the mesh. Raises MeshError.
    """
    path = resolve(spec.mesh)
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*")) if path.parent.is_dir() else []
    stats = tuple((file.name, status.st_mtime_ns, status.st_size) for file in beside if (status := file.stat()))
    return spec, str(path), stats


def check_size(name: str, diameter: float, scale: float) -> None:
    """Raise ObjectsError if an object is so large or small (metres) that its unit must be wrong."""
    smallest, largest = PLAUSIBLE_DIAMETER
    if not smallest <= diameter <= largest:
        raise ObjectsError(
            f"object '{name}' would be {diameter:g} m across, so its scale of {scale:g} m per mesh unit "
            f"must be wrong (1.0 for a mesh in metres, 0.001 for one in millimetres)"
        )
