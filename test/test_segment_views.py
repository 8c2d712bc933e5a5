# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Views of the image and the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocdit_ros.segment.views import (
    AUGMENTATIONS,
    View,
    align,
    augmented,
    crop_around,
    finer,
    tiled,
    to_image,
    whole_image,
)


def disc(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (np.hypot(columns - x, rows - y) < radius).astype(np.uint8)


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 256, 512]))
def test_the_whole_image_fits_the_canvas_in_steps_of_16(height, width, longest):
    view = whole_image(height, width, longest)
    assert (view.x, view.y, view.width, view.height) == (0, 0, width, height)
    assert all(side % 16 == 0 and 16 <= side <= longest for side in view.canvas)
    assert view.canvas[0] <= 2 * height + 16
    assert view.canvas[1] <= 2 * width + 16


@given(
    st.tuples(st.floats(0, 200), st.floats(0, 150), st.floats(1, 200), st.floats(1, 150)),
    st.integers(8, 300), st.integers(8, 300),
)  # fmt: skip
def test_crops_stay_in_the_image_where_they_fit(box, height, width):
    crop = crop_around(box, 2.2, 64, height, width)
    assert crop.width == crop.height <= max(height, width)
    if crop.width <= width:
        assert crop.x >= 0
        assert crop.x + crop.width <= width
    if crop.height <= height:
        assert crop.y >= 0
        assert crop.y + crop.height <= height


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("view", [View(20, 10, 60, 60, (64, 64)), View(-15, 40, 128, 128, (64, 64)),
                                  View(30, 20, 40, 40, (256, 256)), View(0, 0, 120, 90, (96, 128))])  # fmt: skip
def test_a_mask_comes_back_to_where_it_was(view, mirrored):
    """Through the network's canvas and back, at growing and shrinking scale, inside and beyond the image."""
    view = View(view.x, view.y, view.width, view.height, view.canvas, mirrored)
    picture = disc(90, 120, 52, 44, 17)
    canvas = view.sample(np.repeat(picture[..., None] * 255, 3, 2))[..., 0].astype(np.float32) / 255
    assert canvas.shape == view.canvas
    patch, x, y = to_image(canvas, view, (0, 0, view.canvas[1], view.canvas[0]), 90, 120)
    back = np.zeros((90, 120), bool)
    back[y : y + patch.shape[0], x : x + patch.shape[1]] = patch > 0.5
    inside = np.zeros((90, 120), bool)
    inside[max(view.y, 0) : view.y + view.height, max(view.x, 0) : view.x + view.width] = True
    assert iou(back, (picture > 0) & inside) > 0.9


@given(st.integers(0, 40), st.integers(0, 30))
@settings(max_examples=20)
def test_boxes_go_there_and_back(x, y):
    view = View(5, -3, 80, 60, (96, 128), mirrored=True)
    x0, y0, x1, y1 = view.box_on_canvas((x + 5, y, 20, 15))
    bx, by, bw, bh = view.box_in_image((x0, y0, x1, y1))
    assert bx <= x + 5.001
    assert by <= y + 0.001
    assert bx + bw >= x + 24.999
    assert by + bh >= y + 14.999
    assert bw <= 20 + 2
    assert bh <= 15 + 2


def test_augmented_views_agree_after_alignment():
    picture = np.repeat(disc(192, 256, 120, 90, 28)[..., None] * 255, 3, 2)
    plain = View(60, 30, 128, 128, (128, 128))
    views = augmented(plain, len(AUGMENTATIONS))
    assert views[0] == plain
    assert len(set(views)) == len(AUGMENTATIONS)
    reference = plain.sample(picture)[..., 0] > 127
    for view in views[1:]:
        moved = align(view.sample(picture)[..., 0].astype(np.float32) / 255, view, plain)
        seen = ~np.isnan(moved)
        assert seen.mean() > 0.7
        assert iou((moved > 0.5) & seen, reference & seen) > 0.93


def test_alignment_marks_what_a_view_does_not_see():
    there = align(np.ones((32, 32), np.float32), View(0, 0, 32, 32, (32, 32)), View(16, 0, 32, 32, (32, 32)))
    assert np.isnan(there[:, 17:]).all()
    assert (there[:, :15] == 1).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 4), st.sampled_from([64, 384]))
def test_tiles_see_every_pixel_on_canvases_of_one_size(height, width, count, longest):
    view = whole_image(height, width, longest)
    tiles = tiled(view, count)
    assert tiles or view.canvas[1] > 0.89 * width or view.canvas[0] > 0.89 * height * (count < 3)  # it would only grow
    for part in tiles:
        assert part.canvas == view.canvas
        assert 0 <= part.x <= part.x + part.width <= width and 0 <= part.y <= part.y + part.height <= height
    if tiles:
        assert {p.x for p in tiles} >= {0, width - tiles[0].width}
        lefts, tops = sorted({p.x for p in tiles}), sorted({p.y for p in tiles})
        assert all(b - a <= tiles[0].width for a, b in zip(lefts, lefts[1:]))
        assert all(b - a <= tiles[0].height for a, b in zip(tops, tops[1:]))


def test_one_tile_is_none_and_the_common_canvas_is_finer():
    view = whole_image(480, 640, 384)
    assert tiled(view, 1) == []
    assert view.canvas == (288, 384) and finer(view).canvas == (384, 512)
    assert [(t.x, t.y, t.width, t.height) for t in tiled(view, 2)] == [
        (0, 0, 384, 288), (256, 0, 384, 288), (0, 192, 384, 288), (256, 192, 384, 288)
    ]  # fmt: skip


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_in_shares_of_a_view(mirrored):
    view = View(20, 10, 100, 50, (64, 128), mirrored)
    left, top, right, bottom = view.shares((30, 20, 50, 50))  # reaches beyond the view
    assert (left, right) == pytest.approx((0.4, 0.9) if mirrored else (0.1, 0.6))
    assert (top, bottom) == pytest.approx((0.2, 1.2))


@pytest.mark.parametrize(
    ("other", "overlap"),
    [((0, 0, 10, 10), 1.0), ((5, 0, 10, 10), 1 / 3), ((10, 0, 5, 5), 0.0), ((2, 2, 5, 5), 0.25), ((40, 40, 3, 3), 0.0)],
)
def test_overlap_of_views_is_their_iou(other, overlap):
    one, two = View(0, 0, 10, 10, (16, 16)), View(*other, (32, 16))
    assert one.overlap(two) == two.overlap(one) == pytest.approx(overlap)
