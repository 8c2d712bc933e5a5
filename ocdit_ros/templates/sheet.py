# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""All templates of an object in one picture, to see at a glance whether a mesh was understood."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .types import TemplateSet

_GAP = 4  # pixels between the views
_TITLE = 22  # pixels above them
_GREY = 38  # behind them, so that black objects and the black background differ


def contact_sheet(templates: TemplateSet, columns: int = 0) -> Image.Image:
    """Picture of the views in rows of `columns` (0: about 4:3), under a line with the name and the diameter."""
    count, size = templates.masks.shape[:2]
    columns = min(columns or math.ceil(math.sqrt(count * 4 / 3)), count)
    rows = math.ceil(count / columns)
    step = size + _GAP
    sheet = np.full((rows * step + _GAP + _TITLE, columns * step + _GAP, 3), _GREY, np.uint8)
    for n, (image, mask) in enumerate(zip(templates.images, templates.masks, strict=True)):
        top, left = _TITLE + _GAP + n // columns * step, _GAP + n % columns * step
        behind = (255 - mask.astype(np.uint16))[..., None] * _GREY // 255
        sheet[top : top + size, left : left + size] = image + behind
    picture = Image.fromarray(sheet)
    text = f"{templates.name}   {templates.diameter * 1000:.4g} mm"
    ImageDraw.Draw(picture).text((_GAP + 2, 5), text, (235, 235, 235), font=ImageFont.load_default(12))
    return picture
