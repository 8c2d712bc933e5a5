# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Rendered templates against closed forms: silhouettes, depth, poses, viewpoints and light."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import maximum_filter
from templates_meshes import box, cylinder, sphere, textured_blob

from ocdit_ros.templates import Mesh, RenderSettings, cameras, decimate, render, renderer, viewpoints

VIEWS = viewpoints(12)[::2]
SETTINGS = RenderSettings(threads=1)


# Depth along the optical axis where the ray origin + t direction enters the shape, inf where it misses.


def enter_sphere(origin, direction, radius):
    a, b = (direction**2).sum(-1), (origin * direction).sum(-1)
    root = b * b - a * ((origin**2).sum(-1) - radius**2)
    return np.where(root >= 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def enter_box(origin, direction, half):
    with np.errstate(divide="ignore"):
        sides = np.stack([(-half - origin) / direction, (half - origin) / direction])
    near, far = sides.min(axis=0).max(axis=-1), sides.max(axis=0).min(axis=-1)
    return np.where(near <= far, near, np.inf)


def enter_cylinder(origin, direction, radius, height):
    flat = direction[..., :2]
    a, b = (flat**2).sum(-1), (origin[..., :2] * flat).sum(-1)
    root = b * b - a * ((origin[..., :2] ** 2).sum(-1) - radius**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        wall = np.stack([(-b - np.sqrt(np.maximum(root, 0))) / a, (-b + np.sqrt(np.maximum(root, 0))) / a])
        caps = np.sort(np.stack([(s * height / 2 - origin[..., 2]) / direction[..., 2] for s in (-1, 1)]), axis=0)
    near, far = np.maximum(wall[0], caps[0]), np.minimum(wall[1], caps[1])
    return np.where((root >= 0) & (near <= far), near, np.inf)


SHAPES = {
    "sphere": (sphere(0.05, 6), lambda o, d: enter_sphere(o, d, 0.05)),
    "cube": (box((0.1, 0.1, 0.1)), lambda o, d: enter_box(o, d, np.full(3, 0.05))),
    "slab": (box((0.2, 0.1, 0.01)), lambda o, d: enter_box(o, d, np.array([0.1, 0.05, 0.005]))),
    "cylinder": (cylinder(0.03, 0.1, 1024), lambda o, d: enter_cylinder(o, d, 0.03, 0.1)),
}


def analytic_depth(mesh, enter, offset=(0.0, 0.0)):
    """Depth [N_T, S, S] at pixel centres + offset."""
    intrinsics, translations = cameras(mesh, VIEWS, SETTINGS)
    rotations = VIEWS.astype(float)
    y, x = np.mgrid[0 : SETTINGS.size, 0 : SETTINGS.size].astype(float)
    pixels = np.stack([x + offset[0], y + offset[1], np.ones_like(x)], axis=-1)
    result = []
    for k, r, t in zip(intrinsics, rotations, translations, strict=True):
        direction = pixels @ np.linalg.inv(k).T @ r  # to camera (z = 1), then to object frame
        result.append(enter(np.broadcast_to(-r.T @ t, direction.shape), direction))
    return np.stack(result)


@pytest.mark.parametrize("name", SHAPES)
def test_silhouette(name):
    mesh, enter = SHAPES[name]
    masks = render(mesh, VIEWS, SETTINGS).masks
    steps = (np.arange(7) - 3) / 7
    coverage = np.mean([np.isfinite(analytic_depth(mesh, enter, (x, y))) for x in steps for y in steps], axis=0)
    for drawn, true in zip(masks, coverage, strict=True):
        inside, expected = drawn >= 128, true >= 0.5
        assert (inside & expected).sum() / (inside | expected).sum() >= (
            0.99 if name == "slab" else 0.995
        )  # mostly rim
        soft = drawn / 255.0
        assert np.minimum(soft, true).sum() / np.maximum(soft, true).sum() >= 0.98
        # Coverage is anti-aliased, not just on or off, and unbiased.
        assert soft.sum() == pytest.approx(true.sum(), rel=0.005)


@pytest.mark.parametrize("name", SHAPES)
def test_depth(name):
    mesh, enter = SHAPES[name]
    templates = render(mesh, VIEWS, SETTINGS)
    true = analytic_depth(mesh, enter)
    both = np.isfinite(true) & (templates.depths > 0) & (templates.masks == 255)
    assert both.sum() > 0.8 * np.isfinite(true).sum()  # the rest is rim, most of all on the slab's
    assert (np.abs(templates.depths[both] / true[both] - 1) <= 1e-3).all()
    # Much better than that away from the rim: in terms of the object's own size.
    assert np.median(np.abs(templates.depths[both] - true[both])) < 1e-4 * mesh.diameter
    assert ((templates.depths > 0) <= (templates.masks > 0)).all()


def test_projected_vertices_fall_into_the_mask():
    vertices, faces, uv, texture = textured_blob()
    blob = Mesh.from_arrays(vertices + [0.3, -0.2, 0.1], faces, uv=uv, texture=texture)
    for mesh in (blob, box(), cylinder()):
        masks = render(mesh, VIEWS, SETTINGS).masks
        for mask, rotation, k, t in zip(masks, VIEWS, *cameras(mesh, VIEWS, SETTINGS), strict=True):
            seen = mesh.vertices @ rotation.T + t
            assert (seen[:, 2] > 0).all()
            x, y = np.rint((seen @ k.T)[:, :2] / seen[:, 2:]).astype(int).T
            assert (maximum_filter(mask, 3)[y, x] > 0).all()
            assert mesh is not blob or (mask[y, x] > 0).mean() > 0.98  # those of the others are all on the rim


def test_depth_and_pose_give_points_of_the_surface():
    mesh = sphere(0.05, 6)
    moved = Mesh.from_arrays(mesh.vertices + [0.1, 0.2, -0.3], mesh.faces)
    templates = render(moved, VIEWS, SETTINGS)
    for depth, mask, rotation, k, t in zip(
        templates.depths, templates.masks, templates.rotations, *cameras(moved, VIEWS, SETTINGS), strict=True
    ):
        y, x = np.nonzero((depth > 0) & (mask == 255))
        camera = np.stack([x, y, np.ones_like(x)], axis=1) @ np.linalg.inv(k).T * depth[y, x, None]
        points = (camera - t) @ rotation
        radius = np.linalg.norm(points - [0.1, 0.2, -0.3], axis=1)
        np.testing.assert_allclose(radius, 0.05, rtol=2e-3)


def test_crop_is_tight_and_centred():
    for mesh in (box(), cylinder(), sphere()):
        for mask in render(mesh, VIEWS, SETTINGS).masks:
            y, x = np.nonzero(mask >= 128)
            low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
            assert (high - low + 1).max() == pytest.approx(128 * (1 - 2 * SETTINGS.margin), abs=1.5)
            np.testing.assert_allclose((low + high) / 2, 63.5, atol=1.0)
            assert mask[:4].max() == mask[-4:].max() == mask[:, :4].max() == mask[:, -4:].max() == 0


def test_axes_are_those_of_the_optical_frame():
    """With the identity rotation, object x is to the right in the image, y down, and z away from the camera."""
    mesh = sphere()
    centre = mesh.vertices[mesh.faces].mean(axis=1) / 0.05
    colors = np.full((len(mesh.faces), 3), 60, np.uint8)
    colors[centre[:, 0] > 0.5] = [255, 0, 0]
    colors[centre[:, 1] > 0.5] = [0, 255, 0]
    colors[centre[:, 2] < -0.8] = [0, 0, 255]
    painted = Mesh.from_arrays(mesh.vertices, mesh.faces, colors=colors[:, None].repeat(3, axis=1))
    image = render(painted, np.eye(3)[None], SETTINGS).images[0].astype(int)
    red, green, blue = (image[..., c] - image.sum(axis=-1) / 3 > 40 for c in range(3))
    assert np.nonzero(red)[1].min() > 70
    assert np.nonzero(green)[0].min() > 70
    np.testing.assert_allclose(np.mean(np.nonzero(blue), axis=1), 63.5, atol=2)


@pytest.mark.parametrize("count", [1, 2, 3, 12, 42, 162])
def test_viewpoints(count):
    rotations = viewpoints(count)
    assert rotations.shape == (count, 3, 3)
    assert rotations.dtype == np.float32
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-6)
    np.testing.assert_array_equal(rotations, viewpoints(count))
    for seed in (0, 1, 2):
        towards = -viewpoints(count, seed)[:, 2].astype(float)
        if count >= 12:
            # Nearest neighbours are about as far apart as equal shares of the sphere, and no hole is large.
            share = 4 * np.pi / count
            angles = np.arccos(np.clip(towards @ towards.T, -1, 1)) + 9 * np.eye(count)
            assert angles.min() > 0.75 * np.sqrt(share)
            probes = np.random.default_rng(0).normal(size=(5000, 3))
            probes /= np.linalg.norm(probes, axis=1, keepdims=True)
            assert np.arccos(np.clip(probes @ towards.T, -1, 1)).min(axis=1).max() < 1.1 * np.sqrt(share)
    if count >= 12:  # the roll about the optical axis covers the circle as well
        up = np.array([0.0, 0.0, 1.0])
        roll = np.sort(np.arctan2(rotations[:, 0] @ up, -rotations[:, 1] @ up))
        gaps = np.diff(np.append(roll, roll[0] + 2 * np.pi))
        assert gaps.max() < 4 * 2 * np.pi / count
    assert count == 1 or not np.allclose(viewpoints(count, 1), viewpoints(count, 2))


def test_no_viewpoints():
    with pytest.raises(ValueError, match="at least 1"):
        viewpoints(0)


class TestLight:
    def shade(self, value):
        mesh = sphere()
        templates = render(Mesh.from_arrays(mesh.vertices, mesh.faces, colors=[value] * 3), viewpoints(3), SETTINGS)
        return templates.images[templates.masks == 255].astype(float)

    def test_white_objects_keep_their_shading(self):
        white = self.shade(255)
        assert white.max() < 255
        assert white.max() > 230
        assert np.ptp(white) > 40

    def test_black_objects_keep_their_shading(self):
        black = self.shade(0)
        assert np.ptp(black) > 30
        assert black.max() < 80

    def test_order_of_greys(self):
        means = [self.shade(v).mean() for v in (0, 60, 120, 180, 255)]
        assert (np.diff(means) > 20).all()

    def test_image_is_premultiplied_by_coverage(self):
        mesh = box()
        flat = RenderSettings(threads=1, ambient=0.5, head=0.0, key=0.0, sheen=0.0)
        templates = render(Mesh.from_arrays(mesh.vertices, mesh.faces, colors=[200, 100, 50]), VIEWS, flat)
        full = templates.images[templates.masks == 255].astype(float)
        assert np.ptp(full, axis=0).max() == 0
        coverage = templates.masks[..., None] / 255.0
        np.testing.assert_allclose(templates.images, full[0] * coverage, atol=1.0)
        edge = (templates.masks > 0) & (templates.masks < 255)
        assert edge.sum() > len(VIEWS) * 100
        assert not templates.images[templates.masks == 0].any()

    def test_winding_does_not_matter(self):
        mesh = sphere()
        turned = Mesh.from_arrays(mesh.vertices, mesh.faces[:, ::-1])
        mixed = np.where(np.arange(len(mesh.faces))[:, None] % 2 == 0, mesh.faces, mesh.faces[:, ::-1])
        reference = render(mesh, VIEWS, SETTINGS).images
        assert np.abs(render(turned, VIEWS, SETTINGS).images.astype(int) - reference).max() <= 1
        mixed_images = render(Mesh.from_arrays(mesh.vertices, mixed), VIEWS, SETTINGS).images
        assert np.abs(mixed_images.astype(int) - reference).mean() < 3  # shaded flat, but lit as well


class TestSame:
    """What must not change the pixels."""

    vertices, faces, uv, texture = textured_blob(40, 80)
    mesh = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture)
    reference = render(mesh, VIEWS, SETTINGS)

    def assert_same(self, templates, atol=0):
        assert np.abs(templates.images.astype(int) - self.reference.images).max() <= atol
        assert np.abs(templates.masks.astype(int) - self.reference.masks).mean() < 0.01

    def test_threads(self):
        self.assert_same(render(self.mesh, VIEWS, RenderSettings(threads=2)))
        self.assert_same(render(self.mesh, VIEWS, RenderSettings(threads=0)))

    def test_one_view_at_a_time(self):
        for n, rotation in enumerate(VIEWS[:3]):
            one = render(self.mesh, rotation[None], SETTINGS)
            np.testing.assert_array_equal(one.images[0], self.reference.images[n])
            np.testing.assert_array_equal(one.depths[0], self.reference.depths[n])

    def test_several_casts(self, monkeypatch):
        monkeypatch.setattr(renderer, "_MAX_RAYS", 5 * 128 * 128 * 5)
        self.assert_same(render(self.mesh, VIEWS, SETTINGS))

    @pytest.mark.parametrize("factor", [1e-3, 1e3])
    def test_size(self, factor):
        templates = render(
            Mesh.from_arrays(self.vertices * factor, self.faces, uv=self.uv, texture=self.texture), VIEWS, SETTINGS
        )
        # Rounding may put a sample on the other side of an edge; nothing else may happen.
        assert np.mean(np.abs(templates.images.astype(int) - self.reference.images) > 2) < 1e-3
        assert templates.diameter == pytest.approx(factor * self.reference.diameter)
        np.testing.assert_allclose(templates.depths.max(), factor * self.reference.depths.max(), rtol=1e-4)

    def test_hidden_inner_geometry(self):
        rng = np.random.default_rng(1)
        inner = self.vertices.mean(axis=0) + rng.uniform(-0.015, 0.015, (3000, 3))
        extra = rng.permutation(3000).reshape(-1, 3) + len(self.vertices)
        mesh = Mesh(
            vertices=np.vstack([self.vertices, inner]),
            faces=np.vstack([self.faces, extra]).astype(np.uint32),
            colors=np.concatenate([self.mesh.colors, np.full((1000, 3, 3), [255, 0, 255], np.uint8)]),
            uv=np.concatenate([self.mesh.uv, np.zeros((1000, 3, 2), np.float32)]),
            texture_index=np.append(self.mesh.texture_index, np.full(1000, -1, np.int32)),
            textures=self.mesh.textures,
            diameter=self.mesh.diameter,
        )
        self.assert_same(render(mesh, VIEWS, SETTINGS), atol=1)


class TestDecimation:
    def compare(self, mesh, faces, colour=3.0, overlap=0.99):
        small = decimate(mesh, faces, threads=1)
        assert len(small.faces) <= faces
        assert small.diameter == pytest.approx(mesh.diameter, rel=0.01)
        before, after = render(mesh, VIEWS, SETTINGS), render(small, VIEWS, SETTINGS)
        soft = np.minimum(before.masks, after.masks).sum() / np.maximum(before.masks, after.masks).sum()
        assert soft >= overlap
        inside = (before.masks == 255) & (after.masks == 255)
        difference = np.abs(before.images[inside].astype(int) - after.images[inside])
        assert difference.mean() <= colour
        return difference

    def test_small_meshes_stay(self):
        mesh = box()
        assert decimate(mesh, 100) is mesh
        with pytest.raises(ValueError, match="max_faces"):
            decimate(mesh, 10)

    def test_texture_is_kept(self):
        vertices, faces, uv, texture = textured_blob(100, 200)
        fine = np.random.default_rng(0).integers(0, 2, (32, 64, 1), np.uint8).repeat(8, 0).repeat(8, 1)
        texture = np.where(fine, texture, texture // 2)  # hard edges, to see that they stay where they are
        mesh = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture)
        difference = self.compare(mesh, 4000, colour=4.0)
        assert np.mean(difference > 60) < 0.01
        wrong = Mesh.from_arrays(vertices, faces, uv=uv[:, ::-1], texture=texture)
        with pytest.raises(AssertionError):
            assert (
                np.abs(render(wrong, VIEWS, SETTINGS).images.astype(int) - render(mesh, VIEWS, SETTINGS).images).mean()
                <= 4.0
            )

    def test_flat_printed_faces(self):
        """A box of a few faces after decimation must still show its print."""
        side = 40
        line = np.linspace(-0.05, 0.05, side)
        x, y = (a.reshape(-1) for a in np.meshgrid(line, line, indexing="ij"))
        corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1, 1)
        quads = np.concatenate([corner + [0, side, side + 1], corner + [0, side + 1, 1]])
        vertices, faces = [], []
        for axis in range(3):
            for sign in (-1, 1):
                faces.append(quads + len(vertices) * side * side)
                plane = [np.full_like(x, 0.05 * sign), x, y]
                vertices.append(np.stack([plane[(k - axis) % 3] for k in range(3)], axis=1))
        stripes = ((np.arange(128)[:, None] // 8 + np.arange(128) // 16) % 2 * 180 + 40).astype(np.uint8)
        uv = np.tile(np.stack([x, y], axis=1) * 10 + 0.5, (6, 1)) * 0.98 + 0.01
        mesh = Mesh.from_arrays(np.vstack(vertices), np.vstack(faces), uv=uv, texture=stripes[..., None].repeat(3, 2))
        assert len(mesh.faces) > 18000
        self.compare(mesh, 200, colour=6.0, overlap=0.995)

    def test_several_textures_and_vertex_colours(self):
        vertices, faces, uv, texture = textured_blob(80, 160)
        part = np.digitize(vertices[faces].mean(axis=1)[:, 2], [-0.01, 0.015]) - 1  # three bands
        colors = np.full((len(faces), 3, 3), 255, np.uint8)
        colors[part < 0] = [30, 160, 60]
        mesh = Mesh(
            vertices=vertices,
            faces=faces.astype(np.uint32),
            colors=colors,
            uv=uv[faces].astype(np.float32),
            texture_index=part.astype(np.int32),
            textures=(texture, texture[:, ::-1].copy()),
            diameter=Mesh.from_arrays(vertices, faces).diameter,
        )
        assert set(np.unique(mesh.texture_index)) == {-1, 0, 1}
        self.compare(mesh, 4000)

    @staticmethod
    def with_part(mesh, vertices, faces, color):
        """The mesh and another part of one colour."""
        return Mesh(
            vertices=np.vstack([mesh.vertices, vertices]),
            faces=np.vstack([mesh.faces, faces + len(mesh.vertices)]).astype(np.uint32),
            colors=np.concatenate([mesh.colors, np.full((len(faces), 3, 3), color, np.uint8)]),
            uv=np.concatenate([mesh.uv, np.zeros((len(faces), 3, 2), np.float32)]),
            texture_index=np.append(mesh.texture_index, np.full(len(faces), -1, np.int32)),
            textures=mesh.textures,
            diameter=mesh.diameter,
        )

    @pytest.mark.parametrize("size", [0.5, 0.999])
    def test_hidden_parts_take_nothing_away(self, size):
        """Neither faces nor, just below the surface, their colour."""
        vertices, faces, uv, texture = textured_blob(60, 120)
        blob = Mesh.from_arrays(vertices, faces, uv=uv, texture=texture)
        hidden = self.with_part(blob, vertices * size, faces, [255, 0, 255])
        self.compare(hidden, 3000)
        small = decimate(hidden, 3000, threads=1)
        alone = decimate(blob, 3000, threads=1)
        assert len(small.faces) == len(alone.faces)
        np.testing.assert_allclose(small.vertices, alone.vertices, atol=1e-6)

    @staticmethod
    def below(height):
        """The textured part of a blob below a height, and its vertices and faces."""
        vertices, faces, uv, texture = textured_blob(60, 120)
        used, faces = np.unique(faces[vertices[faces].mean(axis=1)[:, 2] < height], return_inverse=True)
        faces = faces.reshape(-1, 3)
        return Mesh.from_arrays(vertices[used], faces, uv=uv[used], texture=texture), vertices[used], faces

    def test_part_behind_an_opening_is_kept(self):
        shell, _, _ = self.below(0.03)
        vertices, faces, _, _ = textured_blob(60, 120)
        mesh = self.with_part(shell, vertices * 0.4, faces, [255, 0, 255])
        self.compare(mesh, 4000)
        inside = render(decimate(mesh, 4000, threads=1), VIEWS, SETTINGS).images.astype(int)
        assert ((inside[..., 0] - inside[..., 1] > 100) & (inside[..., 2] - inside[..., 1] > 100)).sum() > 300

    def test_thin_wall_has_two_sides(self):
        """A bowl with a coloured inside, less thick than the simplification is exact."""
        outside, vertices, faces = self.below(0.0)
        bowl = self.with_part(outside, vertices * 0.998, faces[:, ::-1], [255, 0, 255])
        difference = self.compare(bowl, 2000, colour=4.0)
        assert np.mean(difference > 60) < 0.02

    def test_everything_twice(self):
        vertices, faces, uv, texture = textured_blob(60, 120)
        twice = np.vstack([faces, faces]), np.concatenate([uv[faces], uv[faces]])
        self.compare(Mesh.from_arrays(vertices, twice[0], uv=twice[1], texture=texture), 3000)


@pytest.mark.parametrize(
    "rotations", [np.eye(3), np.zeros((0, 3, 3)), np.zeros((2, 4, 4))], ids=["one matrix", "none", "4 x 4"]
)
def test_bad_rotations(rotations):
    with pytest.raises(ValueError, match="N_T"):
        render(box(), rotations)


@pytest.mark.parametrize(
    "settings", [{"size": 4}, {"margin": 0.5}, {"margin": -0.1}, {"distance": 0.5}, {"views": 0}, {"max_faces": 99}]
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="RenderSettings"):
        RenderSettings(**settings)
