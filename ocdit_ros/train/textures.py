# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Paint for training objects: solid textures, printed labels, and a texture atlas baked from them.

Paint is a function of a surface point: ``paint(points, normals) -> rgb`` in the frame of the part, all float32
[M, 3], colours in 0..1 (sRGB). :func:`bake` evaluates it once for every texel of an atlas in which each triangle
owns a patch, so any surface, with or without a natural parametrisation, becomes a plain textured mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Random = np.random.Generator
Floats = NDArray[np.float32]
Image8 = NDArray[np.uint8]
Paint = Callable[[Floats, Floats], Floats]


# --- atlas ---------------------------------------------------------------------------------------------------------

_SIZES = np.array([1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 180, 256, 362, 508])
_PAD = 4  # one texel around a triangle, and two between the long sides of the two that share a cell


def _layout(
    legs: Floats, texel: float, side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Cells of all triangles for a texel length, or None when they do not fit a square atlas.

    Two triangles of one size class share a cell, the second one turned by half a turn. Returns size [F, 2] (texels
    along both legs), corner [F, 2] (x, y of the cell) and turned [F].
    """
    wanted = np.ceil(legs / texel)
    if wanted.max() > _SIZES[-1]:
        return None
    size = _SIZES[np.searchsorted(_SIZES, wanted)]
    code = size[:, 1] * 1000 + size[:, 0]
    order = np.argsort(-code, kind="stable")
    corner = np.zeros((len(legs), 2), np.int64)
    turned = np.zeros(len(legs), np.int64)
    x = y = shelf = 0
    starts = np.flatnonzero(np.r_[True, np.diff(code[order]) != 0, True])
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        w, h = size[order[first]] + _PAD
        cells = -(-(last - first) // 2)
        if shelf and h < 0.7 * shelf:
            x, y, shelf = 0, y + shelf, 0
        shelf = max(shelf, h)
        index = 0
        spots = []
        while index < cells:
            if x + w > side:
                x, y, shelf = 0, y + shelf, h
            count = min((side - x) // w, cells - index)
            if count <= 0:
                return None
            spots.append(np.stack([x + w * np.arange(count), np.full(count, y)], -1))
            x += w * count
            index += count
        if y + shelf > side:
            return None
        spot = np.concatenate(spots)
        members = order[first:last]
        corner[members] = np.repeat(spot, 2, axis=0)[: last - first]
        turned[members] = np.arange(last - first) % 2
    return size, corner, turned


def bake(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    paint: Callable[[Floats, Floats, NDArray[np.int64]], Floats],
    metric: NDArray[np.float64],
    finest: float,
    sides: Sequence[int] = (64, 128, 192, 256, 384, 512),
) -> tuple[Image8, Floats]:
    """Evaluate paint on all triangles.

    ``vertices`` [V, 3] is where paint is evaluated, ``metric`` [V, 3] the same vertices as they will be seen: it
    decides the share of each triangle. Texels are ``finest`` long (in the metric unit), longer where that does not
    fit the largest of the atlas ``sides``. ``paint(points, normals, face_indices) -> rgb``. Returns the atlas uint8
    [side, side, 3] and texture coordinates float32 [F, 3, 2] of the face corners, first image row at v = 0.
    """
    corners = metric[faces].astype(np.float32)
    edges = np.linalg.norm(corners[:, [1, 2, 0]] - corners[:, [2, 0, 1]], axis=2)  # edge opposite to each corner
    apex = np.argmax(edges, axis=1)
    roll = (apex[:, None] + np.arange(3)) % 3
    rows = np.arange(len(faces))[:, None]
    tri = corners[rows, roll]
    source = vertices[faces].astype(np.float32)[rows, roll]
    legs = np.stack([np.linalg.norm(tri[:, 1] - tri[:, 0], axis=1), np.linalg.norm(tri[:, 2] - tri[:, 0], axis=1)], -1)
    normal = np.cross(source[:, 1] - source[:, 0], source[:, 2] - source[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    texel = max(finest, float(legs.max()) / _SIZES[-1] * 1.001)
    side = sides[0]
    packed = None
    for side in sides:
        if (packed := _layout(legs, texel, side)) is not None:
            break
    while packed is None:
        texel *= 1.08
        if texel > 1e3 * float(legs.max()):
            raise ValueError(f"{len(faces)} triangles do not fit a {side} x {side} atlas")
        packed = _layout(legs, texel, side)
    size, corner, turned = packed

    atlas = np.full((side, side, 3), 0.5, np.float32)
    code = size[:, 1] * 1000 + size[:, 0]
    points, normals, index, target = [], [], [], []
    for value in np.unique(code):
        member = np.flatnonzero(code == value)
        w, h = size[member[0]]
        n, m = w + _PAD, h + _PAD
        i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="xy")
        # The line midway between both long sides parts the cell: bilinear lookups on either stay on their side.
        side_of = (i - 1.5) / w + (j - 1.5) / h
        for half in (0, 1):
            select = member[turned[member] == half]
            if not len(select):
                continue
            keep = side_of <= 1 + 1e-9 if half == 0 else side_of < 1 - 1e-9
            ii, jj = i[keep], j[keep]
            b1, b2 = (ii - 0.5) / w, (jj - 0.5) / h
            point = (
                (1 - b1 - b2)[None, :, None] * source[select, None, 0]
                + b1[None, :, None] * source[select, None, 1]
                + b2[None, :, None] * source[select, None, 2]
            )
            px = ii if half == 0 else n - 1 - ii
            py = jj if half == 0 else m - 1 - jj
            points.append(point.reshape(-1, 3))
            normals.append(np.repeat(normal[select], len(ii), axis=0))
            index.append(np.repeat(select, len(ii)))
            target.append(((corner[select, 1, None] + py) * side + corner[select, 0, None] + px).reshape(-1))
    where = np.concatenate(target)
    rgb = paint(
        np.concatenate(points).astype(np.float32), np.concatenate(normals).astype(np.float32), np.concatenate(index)
    )
    atlas.reshape(-1, 3)[where] = rgb

    # Corner texels: the first triangle of a cell starts one texel in, the second one mirrors it.
    w, h = size[:, 0], size[:, 1]
    local = np.zeros((len(faces), 3, 2))
    local[:, :, 0] = np.stack([np.zeros_like(w), w, np.zeros_like(w)], -1) + 1.0
    local[:, :, 1] = np.stack([np.zeros_like(h), np.zeros_like(h), h], -1) + 1.0
    flipped = np.stack([w + _PAD, h + _PAD], -1)[:, None] - local
    local = np.where(turned[:, None, None] == 1, flipped, local) + corner[:, None]
    uv = np.zeros((len(faces), 3, 2), np.float32)
    uv[rows, roll] = local / side
    return (atlas.clip(0, 1) * 255 + 0.5).astype(np.uint8), uv


# --- colours -------------------------------------------------------------------------------------------------------


def hsv(h: float, s: float, v: float) -> Floats:
    """One sRGB colour, float32 [3]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * h) % 6.0
    return (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def colour(r: Random) -> Floats:
    """A colour as things have them: many are white, black, grey or strongly saturated."""
    kind = r.choice(["saturated", "muted", "white", "black", "grey", "brown"], p=[0.42, 0.2, 0.13, 0.1, 0.08, 0.07])
    if kind == "saturated":
        hue = r.choice(
            [r.uniform(), r.normal(0.0, 0.03) % 1, r.normal(0.13, 0.03) % 1, r.normal(0.6, 0.04) % 1],
            p=[0.5, 0.2, 0.15, 0.15],
        )
        return hsv(hue, r.uniform(0.65, 1), r.uniform(0.35, 0.95))
    if kind == "muted":
        return hsv(r.uniform(), r.uniform(0.15, 0.6), r.uniform(0.25, 0.9))
    if kind == "brown":
        return hsv(r.uniform(0.05, 0.12), r.uniform(0.3, 0.75), r.uniform(0.25, 0.8))
    value = {"white": r.uniform(0.82, 0.97), "black": r.uniform(0.04, 0.16), "grey": r.uniform(0.2, 0.8)}[str(kind)]
    return (value * (1 + r.normal(0, 0.015, 3))).clip(0, 1).astype(np.float32)


def palette(r: Random) -> Floats:
    """Five colours that may stand together on one object, float32 [5, 3]; neighbours differ."""
    first = colour(r)
    chosen = [first]
    while len(chosen) < 5:
        other = colour(r)
        if np.abs(other - chosen[-1]).max() > 0.25:
            chosen.append(other)
    return np.stack(chosen)


# --- solid textures ------------------------------------------------------------------------------------------------


def _noise(r: Random, points: Floats, scale: float, octaves: int = 3) -> Floats:
    """Value noise in -1..1 at points [M, 3]; ``scale`` is the coarsest cell in the points' unit."""
    from scipy.ndimage import map_coordinates

    lattice = r.uniform(-1, 1, (16, 16, 16)).astype(np.float32)
    total = np.zeros(len(points), np.float32)
    for octave in range(octaves):
        where = points.T * (2**octave / scale) + 5.3 * octave
        total += map_coordinates(lattice, where, order=1, mode="grid-wrap").astype(np.float32) * 0.5**octave
    return total / 1.5


def _mix(a: Floats, b: Floats, t: Floats) -> Floats:
    return a + (b - a) * t[:, None]


def _plain(r: Random, colours: Floats, extent: Floats) -> Paint:
    return lambda p, n: np.broadcast_to(colours[0], p.shape)


def _two_tone(r: Random, colours: Floats, extent: Floats) -> Paint:
    axis, cut = r.choice([0, 1, 2], p=[0.2, 0.2, 0.6]), r.uniform(-0.3, 0.3)
    return lambda p, n: np.where((p[:, axis : axis + 1] / extent[axis]) > cut, colours[0], colours[1])


def _stripes(r: Random, colours: Floats, extent: Floats) -> Paint:
    direction = np.eye(3)[r.integers(3)] if r.random() < 0.6 else r.normal(size=3)
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)
    period, duty = float(extent.max() * r.uniform(0.08, 0.5)), r.uniform(0.2, 0.6)
    pick = int(r.integers(2, 4))

    def paint(p: Floats, n: Floats) -> Floats:
        phase = p @ direction / period
        band = (np.floor(phase).astype(int) % (pick - 1)) + 1
        return np.where(((phase % 1) < duty)[:, None], colours[band], colours[0])

    return paint


def _checks(r: Random, colours: Floats, extent: Floats) -> Paint:
    period = float(extent.max() * r.uniform(0.1, 0.4))
    dots = r.random() < 0.5

    def paint(p: Floats, n: Floats) -> Floats:
        # Drop the axis the surface faces, so that the pattern lies on it.
        q = p / period
        if dots:
            q = q - np.floor(q) - 0.5
            q = np.where(np.abs(n) == np.abs(n).max(1, keepdims=True), 0, q)
            inside = (q**2).sum(1) < 0.09
        else:
            q = np.where(np.abs(n) > 0.8, 0.5, q)
            inside = np.floor(q).astype(int).sum(1) % 2 == 0
        return np.where(inside[:, None], colours[1], colours[0])

    return paint


def _cloudy(r: Random, colours: Floats, extent: Floats) -> Paint:
    scale, sharp = float(extent.max() * r.uniform(0.1, 0.6)), r.uniform(0.6, 6)
    seed = int(r.integers(2**31))

    def paint(p: Floats, n: Floats) -> Floats:
        value = _noise(np.random.default_rng(seed), p, scale, 4)
        return _mix(colours[0], colours[1], (0.5 + sharp * value).clip(0, 1))

    return paint


def _marble(r: Random, colours: Floats, extent: Floats) -> Paint:
    seed, scale = int(r.integers(2**31)), float(extent.max() * r.uniform(0.15, 0.5))
    direction = r.normal(size=3).astype(np.float32)
    warp = r.uniform(1, 5)

    def paint(p: Floats, n: Floats) -> Floats:
        value = np.sin(p @ direction / scale * 4 + warp * _noise(np.random.default_rng(seed), p, scale, 4))
        return _mix(colours[0], colours[1], (0.5 + 0.5 * value).clip(0, 1) ** 2)

    return paint


def _wood(r: Random, colours: Floats, extent: Floats) -> Paint:
    seed = int(r.integers(2**31))
    light, dark = (
        hsv(r.uniform(0.06, 0.11), r.uniform(0.3, 0.6), r.uniform(0.6, 0.9)),
        hsv(0.07, 0.6, r.uniform(0.25, 0.5)),
    )
    centre, period = r.uniform(-1, 1, 2).astype(np.float32) * extent[:2], float(extent.max() * r.uniform(0.03, 0.1))

    def paint(p: Floats, n: Floats) -> Floats:
        radius = np.hypot(p[:, 0] - centre[0], p[:, 1] - centre[1]) / period
        value = radius + 1.5 * _noise(
            np.random.default_rng(seed), p * np.array([1, 1, 0.15], np.float32), period * 5, 2
        )
        return _mix(light, dark, ((value % 1.0) ** 2 * 0.8).astype(np.float32))

    return paint


def _speckles(r: Random, colours: Floats, extent: Floats) -> Paint:
    seed, scale, level = int(r.integers(2**31)), float(extent.max() * r.uniform(0.03, 0.12)), r.uniform(0.1, 0.4)

    def paint(p: Floats, n: Floats) -> Floats:
        value = _noise(np.random.default_rng(seed), p, scale, 1)
        return np.where((value > level)[:, None], colours[1], colours[0])

    return paint


def _gradient(r: Random, colours: Floats, extent: Floats) -> Paint:
    direction = r.normal(size=3).astype(np.float32)
    direction /= np.linalg.norm(direction) * extent.max()
    return lambda p, n: _mix(colours[0], colours[1], (0.5 + p @ direction).clip(0, 1))


def _brushed(r: Random, colours: Floats, extent: Floats) -> Paint:
    seed, base = int(r.integers(2**31)), np.float32(r.uniform(0.35, 0.8))
    squeeze = np.array([1, 1, 0.05] if r.random() < 0.5 else [0.05, 1, 1], np.float32)

    def paint(p: Floats, n: Floats) -> Floats:
        value = _noise(np.random.default_rng(seed), p * squeeze, float(extent.max()) * 0.05, 2)
        return (base * (1 + 0.15 * value))[:, None] * np.array([1, 1, 1.02], np.float32)

    return paint


SOLIDS: dict[str, tuple[Callable[[Random, Floats, Floats], Paint], float]] = {
    "plain": (_plain, 30),
    "two-tone": (_two_tone, 10),
    "stripes": (_stripes, 10),
    "checks": (_checks, 5),
    "cloudy": (_cloudy, 8),
    "marble": (_marble, 5),
    "wood": (_wood, 6),
    "speckles": (_speckles, 5),
    "gradient": (_gradient, 5),
    "brushed": (_brushed, 6),
}


def solid_paint(r: Random, colours: Floats, extent: Floats, kind: str | None = None) -> Paint:
    """Solid texture for a part of the given extent [3]."""
    names = list(SOLIDS)
    weights = np.array([SOLIDS[name][1] for name in names], float)
    kind = kind or str(r.choice(names, p=weights / weights.sum()))
    return SOLIDS[kind][0](r, colours, np.asarray(extent, np.float32))


# --- printed matter ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def font_files() -> tuple[str, ...]:
    """Fonts for labels: those of matplotlib (always there), so that labels do not depend on the system."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = sorted(p for p in folder.glob("*.ttf") if not p.name.startswith(("cmex", "cmsy", "STIXNonUni", "STIXSiz")))
    return tuple(str(p) for p in names)


@functools.lru_cache(maxsize=256)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


_SYLLABLES = [
    "ba",
    "be",
    "bo",
    "bra",
    "ca",
    "chi",
    "co",
    "cre",
    "da",
    "de",
    "do",
    "dri",
    "el",
    "fa",
    "fi",
    "flo",
    "fre",
    "ga",
    "go",
    "gra",
    "ha",
    "ho",
    "in",
    "ka",
    "ki",
    "ko",
    "la",
    "le",
    "lo",
    "lu",
    "ma",
    "me",
    "mi",
    "mo",
    "na",
    "ne",
    "no",
    "nu",
    "or",
    "pa",
    "pe",
    "pi",
    "pro",
    "qua",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "si",
    "so",
    "sta",
    "su",
    "ta",
    "te",
    "ti",
    "to",
    "tra",
    "tri",
    "u",
    "va",
    "ve",
    "vi",
    "vo",
    "wa",
    "we",
    "xa",
    "yo",
    "za",
    "zi",
    "zo",
]
_WORDS = [
    "NET",
    "WT",
    "FRESH",
    "ORIGINAL",
    "CLASSIC",
    "EXTRA",
    "LIGHT",
    "ORGANIC",
    "NATURAL",
    "SUPER",
    "MIX",
    "CRUNCHY",
    "SOUP",
    "SAUCE",
    "COFFEE",
    "TEA",
    "SUGAR",
    "RICE",
    "MILK",
    "JUICE",
    "TOMATO",
    "BEANS",
    "PASTA",
    "CLEAN",
    "POWER",
    "TOOL",
    "SET",
    "PRO",
    "MAX",
    "500g",
    "250ml",
    "1kg",
    "12oz",
    "NEW",
    "FREE",
    "100%",
    "BIO",
    "SOAP",
    "OIL",
    "SALT",
    "CRACKERS",
]


def _word(r: Random) -> str:
    if r.random() < 0.3:
        return str(r.choice(_WORDS))
    text = "".join(r.choice(_SYLLABLES, int(r.integers(2, 4))))
    return text.upper() if r.random() < 0.5 else text.capitalize()


def _text(
    r: Random,
    draw: ImageDraw.ImageDraw,
    text: str,
    centre: tuple[float, float],
    width: float,
    fill: tuple[int, ...],
    height: float,
    outline: int = 0,
    edge: tuple[int, ...] = (0, 0, 0),
) -> None:
    path = str(r.choice(font_files()))
    size = max(5, min(int(height), int(width / max(1, len(text)) * 1.5)))
    draw.text(centre, text, font=_font(path, size), fill=fill, anchor="mm", stroke_width=outline, stroke_fill=edge)


def _as_rgb(value: Floats) -> tuple[int, int, int]:
    return tuple(int(v * 255) for v in np.clip(value, 0, 1))  # type: ignore[return-value]


def _barcode(r: Random, draw: ImageDraw.ImageDraw, x: float, y: float, w: float, h: float) -> None:
    draw.rectangle([x, y, x + w, y + h], fill=(250, 250, 250))
    position = x + 0.06 * w
    while position < x + 0.92 * w:
        bar = r.uniform(0.01, 0.03) * w
        draw.rectangle([position, y + 0.08 * h, position + bar, y + 0.85 * h], fill=(15, 15, 15))
        position += bar + r.uniform(0.01, 0.04) * w


def _picture(r: Random, width: int, height: int, photos: Sequence[Image8]) -> Image.Image:
    """A crop of a photograph, or, without any, blobs that read as fruit, bowls and leaves."""
    if photos and r.random() < 0.5:
        photo = photos[int(r.integers(len(photos)))]
        side = int(min(photo.shape[:2]) * r.uniform(0.2, 0.8))
        top, left = (int(r.integers(0, size - side + 1)) for size in photo.shape[:2])
        return Image.fromarray(
            cv2.resize(photo[top : top + side, left : left + side], (width, height), interpolation=cv2.INTER_AREA)
        )
    base = np.broadcast_to(colour(r), (height, width, 3)).copy()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(int(r.integers(3, 12))):
        cx, cy = r.uniform(0, width), r.uniform(0, height)
        a, b = r.uniform(0.08, 0.4, 2) * max(width, height)
        angle = r.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        radius = (u / a) ** 2 + (v / b) ** 2
        shade = np.clip(1.15 - 0.6 * ((u / a + 0.3) ** 2 + (v / b + 0.3) ** 2), 0.3, 1.2)[..., None]
        base = np.where((radius < 1)[..., None], colour(r) * shade, base)
    return Image.fromarray((base.clip(0, 1) * 255).astype(np.uint8))


def label(
    r: Random, colours: Floats, width: int, height: int, brand: str = "", photos: Sequence[Image8] = ()
) -> Image8:
    """A front panel or wrap-around label, uint8 [height, width, 3]: blocks, a brand, small print, a picture."""
    image = Image.new("RGB", (width, height), _as_rgb(colours[0]))
    draw = ImageDraw.Draw(image)
    brand = brand or _word(r)
    for _ in range(int(r.integers(0, 4))):
        c = _as_rgb(colours[int(r.integers(1, 5))])
        kind = r.integers(5)
        x0, x1 = np.sort(r.uniform(-0.1, 1.1, 2)) * width
        y0, y1 = np.sort(r.uniform(-0.1, 1.1, 2)) * height
        if kind == 0:
            draw.rectangle([0, y0, width, y1], fill=c)
        elif kind == 1:
            draw.rectangle([x0, y0, x1, y1], fill=c)
        elif kind == 2:
            draw.ellipse([x0, y0, x1, y1], fill=c, outline=_as_rgb(colours[2]))
        elif kind == 3:
            draw.polygon([(float(a * width), float(b * height)) for a, b in r.uniform(-0.2, 1.2, (3, 2))], fill=c)
        else:
            draw.rectangle([x0, 0, x1, height], fill=c)
    if r.random() < 0.6:
        w, h = max(4, int(width * r.uniform(0.3, 0.9))), max(4, int(height * r.uniform(0.2, 0.55)))
        spot = (int(r.uniform(0, width - w)), int(r.uniform(0.3 * height, height - h)))
        image.paste(_picture(r, w, h, photos), spot)
    if r.random() < 0.35:  # the product again and again: biscuits, beans, drops
        edge = max(6, int(r.uniform(0.1, 0.3) * min(width, height)))
        stamp = _picture(r, edge, edge, photos)
        shape = Image.new("L", stamp.size, 255 if r.random() < 0.4 else 0)
        ImageDraw.Draw(shape).ellipse([0, 0, stamp.size[0] - 1, stamp.size[1] - 1], fill=255)
        low = r.uniform(0.3, 0.7)
        for _ in range(int(r.integers(3, 14))):
            spot = (int(r.uniform(-0.1, 1) * width), int(r.uniform(low, 1) * height))
            image.paste(stamp.rotate(float(r.uniform(0, 360))), spot, shape)
    ink = _as_rgb(colours[int(r.integers(1, 3))])
    y = r.uniform(0.15, 0.45) * height
    big = r.uniform(0.12, 0.42) * height
    if r.random() < 0.4:
        draw.rectangle([0, y - 0.6 * big, width, y + 0.6 * big], fill=_as_rgb(colours[3]))
        ink = _as_rgb(colours[4] if np.abs(colours[4] - colours[3]).max() > 0.3 else 1 - colours[3])
    outline = int(r.choice([0, max(1, big // 12)], p=[0.6, 0.4]))
    _text(r, draw, brand, (width / 2, y), width * r.uniform(0.7, 1.0), ink, big, outline, _as_rgb(colours[4]))
    for _ in range(int(r.integers(1, 6))):
        _text(r, draw, " ".join(_word(r) for _ in range(int(r.integers(1, 4)))),
              (r.uniform(0.2, 0.8) * width, r.uniform(0.05, 0.97) * height), width * r.uniform(0.2, 0.7),
              _as_rgb(colours[int(r.integers(1, 5))]), r.uniform(0.03, 0.09) * height)  # fmt: skip
    if r.random() < 0.3:
        _barcode(r, draw, r.uniform(0, 0.7) * width, r.uniform(0.6, 0.85) * height, 0.25 * width, 0.13 * height)
    return np.asarray(image)


def small_print(r: Random, colours: Floats, width: int, height: int, brand: str) -> Image8:
    """A side or back panel: lines of text, a table, a barcode."""
    image = Image.new("RGB", (width, height), _as_rgb(colours[0]))
    draw = ImageDraw.Draw(image)
    ink = _as_rgb(colours[1])
    if r.random() < 0.5:
        draw.rectangle([0, 0, width, height * r.uniform(0.1, 0.35)], fill=_as_rgb(colours[int(r.integers(1, 4))]))
    if r.random() < 0.7:
        _text(
            r, draw, brand, (width / 2, height * r.uniform(0.08, 0.3)), width * 0.8, _as_rgb(colours[2]), 0.2 * height
        )
    y, line = height * r.uniform(0.35, 0.5), max(5.0, height * 0.04)
    while y < height * r.uniform(0.6, 0.95):
        draw.rectangle([width * 0.1, y, width * r.uniform(0.3, 0.9), y + 0.45 * line], fill=ink)
        y += line
    if r.random() < 0.5:
        x, w = r.uniform(0.05, 0.4) * width, r.uniform(0.3, 0.5) * width
        draw.rectangle([x, height * 0.4, x + w, height * 0.8], fill=(245, 245, 245), outline=(10, 10, 10))
        for row in range(8):
            draw.line([x, height * (0.4 + 0.05 * row), x + w, height * (0.4 + 0.05 * row)], fill=(10, 10, 10))
    if r.random() < 0.6:
        _barcode(r, draw, r.uniform(0.05, 0.6) * width, r.uniform(0.65, 0.82) * height, 0.35 * width, 0.15 * height)
    return np.asarray(image)


def _look_up(image: Image8, u: Floats, v: Floats) -> Floats:
    """Bilinear lookup, u to the right and v upwards in 0..1, clamped."""
    x = (u * image.shape[1] - 0.5).clip(0, image.shape[1] - 1).astype(np.float32)
    y = ((1 - v) * image.shape[0] - 0.5).clip(0, image.shape[0] - 1).astype(np.float32)
    found = np.empty((len(x), 3), np.float32)
    for start in range(0, len(x), 32000):  # cv2.remap holds its maps to 32767 rows
        part = slice(start, start + 32000)
        found[part] = cv2.remap(image, x[part, None], y[part, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[
            :, 0
        ] / np.float32(255)
    return found


def printed_box(r: Random, colours: Floats, low: Floats, high: Floats, photos: Sequence[Image8] = ()) -> Paint:
    """Six panels on a box-like part that spans low..high [3] in its frame."""
    extent = np.maximum(high - low, 1e-6)
    unit = 300.0 / float(extent.max())
    brand = _word(r)
    front_axis = int(np.argmin(extent[:2])) if r.random() < 0.9 else int(r.integers(2))
    panels: list[Image8] = []
    front: Image8 | None = None
    for axis in range(3):
        u, v = ((1, 2), (0, 2), (0, 1))[axis]
        w, h = max(12, int(extent[u] * unit)), max(12, int(extent[v] * unit))
        for _ in range(2):
            if axis == front_axis:
                if front is None or r.random() < 0.4:
                    front = label(r, colours, w, h, brand, photos)
                panels.append(front)
            elif r.random() < 0.6:
                panels.append(small_print(r, colours, w, h, brand))
            else:
                panels.append(
                    label(r, colours, w, h, brand, photos)
                    if r.random() < 0.6
                    else np.full((h, w, 3), _as_rgb(colours[int(r.integers(0, 3))]), np.uint8)
                )

    def paint(p: Floats, n: Floats) -> Floats:
        q = (p - low) / extent
        axis = np.argmax(np.abs(n), axis=1)
        positive = n[np.arange(len(n)), axis] > 0
        rgb = np.empty_like(p)
        for a in range(3):
            u, v = ((1, 2), (0, 2), (0, 1))[a]
            for sign in (0, 1):
                mine = (axis == a) & (positive == bool(sign))
                if mine.any():
                    # Text reads left to right seen from outside.
                    mirror = (sign == 0) if a != 1 else (sign == 1)
                    along = 1 - q[mine, u] if mirror else q[mine, u]
                    rgb[mine] = _look_up(panels[2 * a + sign], along, q[mine, v])
        return rgb

    return paint


def printed_wrap(
    r: Random, colours: Floats, low: Floats, high: Floats, photos: Sequence[Image8] = (), whole: bool = False
) -> Paint:
    """A label around the z axis between two heights; the rest of the part is plain."""
    extent = np.maximum(high - low, 1e-6)
    bottom, top = (0.04, 0.96) if whole else (r.uniform(0.05, 0.35), r.uniform(0.5, 0.92))
    around = float(np.pi * (extent[0] + extent[1]) / 2)
    height = float(extent[2] * (top - bottom))
    unit = 512.0 / max(around, height)
    repeats = int(r.choice([1, 2]))
    w, h = max(16, int(around * unit / repeats)), max(16, int(height * unit))
    art = label(r, colours, w, h, "", photos)
    rest = colours[0] if r.random() < 0.4 else colour(r)
    span = r.choice([1.0, r.uniform(0.35, 0.7)], p=[0.7, 0.3])
    centre = (low + high) / 2

    def paint(p: Floats, n: Floats) -> Floats:
        angle = np.arctan2((p[:, 1] - centre[1]) / extent[1], (p[:, 0] - centre[0]) / extent[0]) / (2 * np.pi) + 0.5
        v = ((p[:, 2] - low[2]) / extent[2] - bottom) / (top - bottom)
        u = (angle * repeats) % 1.0 if span == 1.0 else (angle - 0.5) / span + 0.5
        inside = (v > 0) & (v < 1) & (u >= 0) & (u <= 1) & (np.abs(n[:, 2]) < 0.8)
        rgb = np.broadcast_to(rest, p.shape).copy()
        if inside.any():
            rgb[inside] = _look_up(art, u[inside], v[inside])
        return rgb

    return paint


def printed_flat(r: Random, colours: Floats, low: Floats, high: Floats, photos: Sequence[Image8] = ()) -> Paint:
    """Front and back print on a flat thing (pouch, tube) that faces +-y."""
    extent = np.maximum(high - low, 1e-6)
    unit = 400.0 / float(max(extent[0], extent[2]))
    w, h = max(16, int(extent[0] * unit)), max(16, int(extent[2] * unit))
    brand = _word(r)
    front = label(r, colours, w, h, brand, photos)
    back = front if r.random() < 0.3 else small_print(r, colours, w, h, brand)

    def paint(p: Floats, n: Floats) -> Floats:
        u, v = (p[:, 0] - low[0]) / extent[0], (p[:, 2] - low[2]) / extent[2]
        return np.where((n[:, 1] < 0)[:, None], _look_up(front, u, v), _look_up(back, 1 - u, v))

    return paint


def with_decal(
    r: Random, base: Paint, colours: Floats, low: Floats, high: Floats, photos: Sequence[Image8] = ()
) -> Paint:
    """A sticker projected along a random axis onto the side that faces it."""
    extent = np.maximum(high - low, 1e-6)
    axis, sign = int(r.integers(3)), float(r.choice([-1, 1]))
    u, v = [a for a in range(3) if a != axis]
    w = r.uniform(0.3, 0.9)
    art = label(
        r,
        colours[::-1],
        200,
        max(20, int(200 * extent[v] / extent[u])) if extent[v] < 4 * extent[u] else 400,
        "",
        photos,
    )
    cu, cv = r.uniform(0.35, 0.65, 2)
    mirrored = (sign < 0) != (axis == 1)  # text reads left to right seen from outside

    def paint(p: Floats, n: Floats) -> Floats:
        rgb = np.array(base(p, n), np.float32)
        a = ((p[:, u] - low[u]) / extent[u] - cu) / w + 0.5
        b = ((p[:, v] - low[v]) / extent[v] - cv) / w + 0.5
        a = 1 - a if mirrored else a
        inside = (n[:, axis] * sign > 0.35) & (a > 0) & (a < 1) & (b > 0) & (b < 1)
        if inside.any():
            rgb[inside] = _look_up(art, a[inside], b[inside])
        return rgb

    return paint


def with_wear(r: Random, base: Paint, extent: Floats) -> Paint:
    """Slight uneven tone, as no surface is perfectly uniform."""
    seed, strength, scale = (
        int(r.integers(2**31)),
        np.float32(r.uniform(0.02, 0.12)),
        float(np.max(extent)) * r.uniform(0.1, 0.5),
    )

    def paint(p: Floats, n: Floats) -> Floats:
        return base(p, n) * (1 + strength * _noise(np.random.default_rng(seed), p, scale, 3))[:, None]

    return paint
