# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""A mesh goes in once; its rendered templates (and what a backbone made of them) are ready for ever after.

>>> mesh = load_mesh("package://parts/meshes/bracket.ply", scale=0.001)   # a mesh in millimetres
>>> templates = render(mesh, viewpoints(12))
>>> templates.images.shape
(12, 128, 128, 3)
"""

from .cache import CacheEntry, TemplateCache
from .decimation import decimate
from .loader import load_mesh
from .mesh import PLAUSIBLE_DIAMETER, Mesh, MeshError
from .renderer import RenderSettings, cameras, render
from .source import IMAGE_FORMATS, resolve
from .types import ObjectSpec, TemplateSet
from .views import viewpoints

__all__ = [
    "IMAGE_FORMATS",
    "PLAUSIBLE_DIAMETER",
    "CacheEntry",
    "Mesh",
    "MeshError",
    "ObjectSpec",
    "RenderSettings",
    "TemplateCache",
    "TemplateSet",
    "cameras",
    "decimate",
    "load_mesh",
    "render",
    "resolve",
    "viewpoints",
]
