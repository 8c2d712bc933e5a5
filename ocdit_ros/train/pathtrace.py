# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The second renderer: rigid-body piles and path tracing by Blender's Cycles (PyPI ``bpy``, extra ``path-tracing``).

Same interface as :mod:`~ocdit_ros.train.scenes`, whose scenes it takes: what is drawn, the sensor, labels and
annotations are the same code, so masks and poses are as exact; objects fall instead of being lowered, and light is
traced. ``bpy`` holds one scene per process: one process renders one picture at a time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from . import scenes as sc
from . import sensor as camera_sensor
from .objects import TrainObject

Random = np.random.Generator
Floats = NDArray[np.float32]
RENDERER = "cycles-1"
SAMPLES = 16  # paths per pixel; the denoiser does the rest
_LARGEST_TEXTURE = 768  # texels of a side: Cycles filters no textures, more of them would only alias
_HULL_DIRECTIONS = 120


def load_blender() -> Any:
    """The module ``bpy``; raises ValueError that says what to install where it is missing."""
    try:
        with _quiet():
            import bpy
    except ImportError as error:
        raise ValueError(f"path tracing needs Blender as a module: pip install 'bpy==4.5.*' ({error})") from error
    return bpy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what Blender prints past Python (file names, times of every picture) to nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


def _empty(bpy: Any) -> Any:
    """A factory scene with nothing in it."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    return bpy.context.scene


# --- physics -------------------------------------------------------------------------------------------------------


def _hull(item: TrainObject) -> tuple[Floats, NDArray[np.int32]]:
    """Corners and triangles of a convex hull of at most ``_HULL_DIRECTIONS`` corners."""
    i = np.arange(_HULL_DIRECTIONS) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / _HULL_DIRECTIONS), np.pi * (1 + 5**0.5) * i
    towards = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], 1)
    extreme = np.unique((item.vertices @ towards.astype(np.float32).T).argmax(0))
    points = item.vertices[extreme].astype(np.float64)
    try:
        hull = ConvexHull(points)
    except QhullError:  # flat: its box, a hundredth thick
        low, high = item.vertices.min(0), item.vertices.max(0)
        grow = np.maximum(0.01 * item.diameter - (high - low), 0) / 2
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        points = np.where(corners, high + grow, low - grow)
        hull = ConvexHull(points)
    used, faces = np.unique(hull.simplices, return_inverse=True)
    return points[used].astype(np.float32), faces.reshape(hull.simplices.shape).astype(np.int32)


def _box(bpy: Any, centre: Sequence[float], half: Sequence[float]) -> Any:
    # The mesh lies around the object's own origin: there the box shape of the physics is, wherever the mesh may be.
    corners = [[(2 * b - 1) * h for b, h in zip(bits, half)] for bits in np.ndindex(2, 2, 2)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    mesh = bpy.data.meshes.new("wall")
    mesh.from_pydata(corners, [], faces)
    box = bpy.data.objects.new("wall", mesh)
    box.location = centre
    return box


def drop(r: Random, items: Sequence[TrainObject], piled: bool, crowd: float) -> list[sc.Pose | None]:
    """Poses of objects after they fell onto the ground and one another; None for one that fell out of the picture.

    Bodies are convex hulls. Two of three piles fall between four walls that nobody sees, one object after the other;
    the others, and loose tables, start where :func:`scenes.place` lays them and settle.
    """
    bpy = load_blender()
    from mathutils import Matrix, Quaternion  # comes with bpy

    scene = _empty(bpy)
    sizes = np.array([item.diameter for item in items])
    radius = float(np.sqrt((sizes**2).sum()) * 0.5 * crowd)
    walled = piled and r.random() < 0.67
    start: list[sc.Pose] = []
    if walled:
        half = max(radius * float(r.uniform(0.75, 1.1)), 0.55 * float(sizes.max()))
        height = 0.02
        order = r.permutation(len(items))
        places: dict[int, sc.Pose] = {}
        for index in order:
            x, y = np.clip(r.normal(0, 0.4 * half, 2), -1, 1) * max(half - 0.5 * sizes[index], 0.0)
            height += 0.5 * sizes[index]
            places[int(index)] = (sc.random_rotation(r), np.array([x, y, height]))
            height += 0.15 * sizes[index]
        start = [places[i] for i in range(len(items))]
        frames = 150
    else:
        for rotation, position in sc.place(r, items, piled, crowd):
            start.append((rotation, position * [1, 1, 1.15] + [0, 0, 0.004]))
        frames = 90
    scene.frame_start, scene.frame_end = 1, frames
    group = bpy.data.collections.new("bodies")
    scene.collection.children.link(group)
    with _quiet():
        bpy.ops.rigidbody.world_add()
    world = scene.rigidbody_world
    world.collection = group
    world.substeps_per_frame, world.solver_iterations = 12, 12
    world.point_cache.frame_start, world.point_cache.frame_end = 1, frames
    boxes = [_box(bpy, (0, 0, -1), (20, 20, 1))]
    if walled:
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            centre = ((half + 0.5) * x, (half + 0.5) * y, 5)
            boxes.append(_box(bpy, centre, (0.5 if x else half + 1, 0.5 if y else half + 1, 5.5)))
    for box in boxes:
        group.objects.link(box)
        box.rigid_body.type, box.rigid_body.collision_shape = "PASSIVE", "BOX"
        box.rigid_body.friction = 0.8 if box is boxes[0] else 0.1
    bodies = []
    for item, (rotation, position) in zip(items, start):
        corners, faces = _hull(item)
        mesh = bpy.data.meshes.new(item.key)
        mesh.from_pydata(corners.tolist(), [], faces.tolist())
        body = bpy.data.objects.new(item.key, mesh)
        group.objects.link(body)
        body.matrix_world = Matrix.Translation(position.tolist()) @ Matrix(rotation.tolist()).to_4x4()
        rigid = body.rigid_body
        rigid.type, rigid.collision_shape, rigid.mass = "ACTIVE", "CONVEX_HULL", 0.4
        rigid.friction, rigid.restitution = 0.8, 0.0
        rigid.linear_damping, rigid.angular_damping = 0.1, 0.3
        rigid.use_margin, rigid.collision_margin = True, 0.0005
        bodies.append(body)
    bpy.context.view_layer.update()
    for frame in range(1, frames + 1):
        scene.frame_set(frame)
    found: list[sc.Pose | None] = []
    reach = 3 * radius + float(sizes.max())
    for body in bodies:
        place_, turned, _ = body.matrix_world.decompose()
        rotation = np.array(Quaternion(turned).normalized().to_matrix(), np.float64)
        position = np.array(place_, np.float64)
        u, _, vt = np.linalg.svd(rotation)  # single precision in Blender
        inside = np.isfinite(position).all() and position[2] > 0 and np.abs(position[:2]).max() < reach
        found.append((u @ vt, position) if inside else None)
    if all(pose is None for pose in found):
        raise RuntimeError("every object was thrown out of the scene: the physics engine failed")
    return found


def draw_scene(
    r: Random,
    catalogue: sc.Catalogue,
    load: Callable[[str], TrainObject],
    photos: Sequence[sc.Image8] = (),
    size: tuple[int, int] = (256, 256),
    copies: tuple[int, int] | None = None,
) -> sc.Scene:
    """As :func:`scenes.draw_scene`, with objects that fell."""
    return sc.draw_scene(r, catalogue, load, photos, size, copies, drop)


# --- rendering -----------------------------------------------------------------------------------------------------


def _image(bpy: Any, pixels: sc.Image8 | Floats, name: str) -> Any:
    """A picture [H, W, 3] for shaders: sRGB in 8 bits, made smaller where it is large, or linear in floats."""
    linear = pixels.dtype == np.float32
    height, width = pixels.shape[:2]
    if not linear and max(height, width) > _LARGEST_TEXTURE:
        scale = _LARGEST_TEXTURE / max(height, width)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    image = bpy.data.images.new(name, width, height, float_buffer=linear)
    flat = np.ones((height, width, 4), np.float32)
    flat[..., :3] = pixels[::-1]  # Blender's first row is the lowest
    if not linear:
        flat[..., :3] /= np.float32(255)
    image.pixels.foreach_set(flat.ravel())
    return image


def _mesh(bpy: Any, name: str, corners: Floats, faces: NDArray[Any], uv: Floats, normals: Floats | None) -> Any:
    """Mesh object of vertices [V, 3], triangles or quads [F, K], uv [F, K, 2] and corner normals [F, K, 3]."""
    mesh = bpy.data.meshes.new(name)
    count, sides = faces.shape
    mesh.vertices.add(len(corners))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(corners, np.float32).ravel())
    mesh.loops.add(count * sides)
    mesh.loops.foreach_set("vertex_index", np.ascontiguousarray(faces, np.int32).ravel())
    mesh.polygons.add(count)
    mesh.polygons.foreach_set("loop_start", np.arange(0, count * sides, sides, dtype=np.int32))
    mesh.uv_layers.new(name="uv").uv.foreach_set("vector", np.ascontiguousarray(uv, np.float32).ravel())
    mesh.update(calc_edges=True)
    if normals is not None:
        mesh.polygons.foreach_set("use_smooth", np.ones(count, np.bool_))
        mesh.normals_split_custom_set(normals.reshape(-1, 3).tolist())
    thing = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(thing)
    return thing


def _material(bpy: Any, thing: Any, image: Any, roughness: float, level: float, coat: float, mirrored: bool) -> None:
    material = bpy.data.materials.new(thing.name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = next(node for node in nodes if node.type == "BSDF_PRINCIPLED")
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = image
    picture.extension = "MIRROR" if mirrored else "EXTEND"
    links.new(picture.outputs["Color"], shader.inputs["Base Color"])
    shader.inputs["Roughness"].default_value = roughness
    shader.inputs["Specular IOR Level"].default_value = level
    shader.inputs["Coat Weight"].default_value = coat
    shader.inputs["Coat Roughness"].default_value = 0.08
    thing.data.materials.append(material)


def _roughness(shininess: float) -> float:
    """Of Principled, for a Blinn-Phong exponent n: alpha^2 = 2 / (n + 2) (Walter et al. 2007), alpha = roughness^2."""
    return float((2 / (shininess + 2)) ** 0.25)


def _tinted(placed: sc.Placed) -> sc.Image8:
    """The texture of an object under its tint, as the ray caster applies it."""
    texture = placed.item.texture
    if texture.shape[0] > _LARGEST_TEXTURE:
        texture = cv2.resize(texture, (_LARGEST_TEXTURE, _LARGEST_TEXTURE), interpolation=cv2.INTER_AREA)
    linear = camera_sensor.to_linear(texture) @ placed.tint.T
    return (camera_sensor.to_srgb(linear.clip(0.002, 0.95)) * 255 + 0.5).astype(np.uint8)


def _world(bpy: Any, scene: Any, drawn: sc.Scene) -> None:
    """Surroundings: sky and earth and the backdrop give light, the camera sees the backdrop alone."""
    rows = (np.arange(32, dtype=np.float32) + 0.5) / 32
    up = np.cos(np.pi * rows)[:, None, None]  # first row: zenith
    gradient = drawn.earth + (drawn.sky - drawn.earth) * (up + 1) / 2 * np.ones((32, 64, 1), np.float32)
    azimuth = np.abs((np.arange(64) + 0.5) / 32 - 1).astype(np.float32)  # mirrored, so that it closes
    x, y = np.meshgrid(azimuth, rows)
    height, width = drawn.backdrop.shape[:2]
    seen = cv2.remap(drawn.backdrop, x * (width - 1), y * (height - 1), cv2.INTER_LINEAR)
    backdrop = camera_sensor.to_linear(cv2.GaussianBlur(seen, (3, 3), 0))
    backdrop = backdrop * (float(gradient.mean()) / max(float(backdrop.mean()), 1e-4))
    lighting = _image(bpy, (0.6 * gradient + 0.4 * np.minimum(backdrop, 8)).astype(np.float32), "lighting")
    wide = np.concatenate([drawn.backdrop, drawn.backdrop[:, ::-1]], 1)
    picture = _image(bpy, wide, "backdrop")
    world = bpy.data.worlds.new("world")
    scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    nodes.clear()
    output, mix, path = (nodes.new(f"ShaderNode{name}") for name in ("OutputWorld", "MixShader", "LightPath"))
    bright = float(drawn.sky.mean() + drawn.lights[0].colour.mean() * 0.5)
    for socket, image, strength in ((1, lighting, 1.0), (2, picture, bright)):
        environment, background = nodes.new("ShaderNodeTexEnvironment"), nodes.new("ShaderNodeBackground")
        environment.image = image
        background.inputs["Strength"].default_value = strength
        links.new(environment.outputs["Color"], background.inputs["Color"])
        links.new(background.outputs["Background"], mix.inputs[socket])
    # Where the light comes from is tabulated once per picture: at the backdrop's size that took a quarter of all time.
    world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 64
    links.new(path.outputs["Is Camera Ray"], mix.inputs["Fac"])
    links.new(mix.outputs["Shader"], output.inputs["Surface"])


def _lamp(bpy: Any, scene: Any, light: sc.Light, target: NDArray[np.float64], channel: Floats) -> None:
    """A disk towards the pile with the irradiance of the drawn lamp there (a Lambertian emitter: E = P / (pi d^2))."""
    from mathutils import Vector

    data = bpy.data.lights.new("lamp", "AREA")
    data.shape, data.size = "DISK", 2 * max(light.radius, 0.01)
    distance = float(np.linalg.norm(light.position - target))
    brightest = float(channel.max())
    data.color = (channel / brightest).tolist()
    # The ray caster counts a lamp of colour 1 as reflected light of 1 from white, which is an irradiance of pi.
    data.energy = brightest * np.pi**2 * distance**2
    lamp = bpy.data.objects.new("lamp", data)
    lamp.location = light.position.tolist()
    lamp.rotation_euler = Vector((target - light.position).tolist()).to_track_quat("-Z", "Y").to_euler()
    lamp.visible_camera = False
    scene.collection.objects.link(lamp)


def _build(bpy: Any, drawn: sc.Scene, r: Random, size: tuple[int, int]) -> Any:
    """The drawn scene in Blender."""
    from mathutils import Matrix

    scene = _empty(bpy)
    width, height = size
    images: dict[int, Any] = {}
    for number, placed in enumerate(drawn.instances):
        item = placed.item
        thing = _mesh(bpy, f"object{number}", item.vertices, item.faces, item.uv, item.normals)
        pose = Matrix(placed.rotation.tolist()).to_4x4()
        thing.matrix_world = Matrix.Translation(placed.position.tolist()) @ pose
        coat = float(r.uniform(0.1, 0.6)) if placed.specular > 0.06 and r.random() < 0.5 else 0.0
        level = float(np.clip(0.25 + 2.5 * placed.specular, 0, 1))
        image = _image(bpy, _tinted(placed), thing.name)
        _material(bpy, thing, image, _roughness(placed.shininess), level, coat, False)
    for number, surface in enumerate(drawn.surfaces):
        c, u, v = surface.corner, surface.u, surface.v
        lu, lv = float(np.linalg.norm(u)), float(np.linalg.norm(v))
        corners = np.stack([c, c + u, c + u + v, c + v]).astype(np.float32)
        across, along = lu / (surface.tile or lu), lv / (surface.tile or lv)
        # First image row where v is 0; in Blender it is the last.
        uv = np.array([[[0, 1], [across, 1], [across, 1 - along], [0, 1 - along]]], np.float32)
        thing = _mesh(bpy, f"surface{number}", corners, np.array([[0, 1, 2, 3]]), uv, None)
        if id(surface.texture) not in images:
            reflected = camera_sensor.to_linear(surface.texture) * np.float32(0.9)
            painted = (camera_sensor.to_srgb(reflected) * 255 + 0.5).astype(np.uint8)
            images[id(surface.texture)] = _image(bpy, painted, thing.name)
        rough = float(r.uniform(0.12, 0.5)) if surface.gloss > 0 else float(r.uniform(0.6, 0.95))
        level = float(np.clip(0.3 + surface.gloss, 0, 1)) if surface.gloss > 0 else 0.2
        _material(bpy, thing, images[id(surface.texture)], rough, level, 0.0, bool(surface.tile))
    target = np.median([p.position for p in drawn.instances], axis=0)
    _world(bpy, scene, drawn)
    for light in drawn.lights:
        _lamp(bpy, scene, light, target, light.colour)
    data = bpy.data.cameras.new("camera")
    k = drawn.intrinsics
    data.sensor_fit, data.sensor_width = "HORIZONTAL", 36.0
    data.lens = float(k[0, 0]) / width * 36.0
    data.shift_x = -(float(k[0, 2]) - (width - 1) / 2) / width
    data.shift_y = (float(k[1, 2]) - (height - 1) / 2) / width
    data.clip_start, data.clip_end = 0.005, 100.0
    camera = bpy.data.objects.new("camera", data)
    pose = np.eye(4)
    pose[:3, :3] = drawn.rotation.T @ np.diag([1.0, -1.0, -1.0])  # Blender's cameras look along -z with y up
    pose[:3, 3] = -drawn.rotation.T @ drawn.translation
    camera.matrix_world = Matrix(pose.tolist())
    scene.collection.objects.link(camera)
    scene.camera = camera
    return scene


def _trace(bpy: Any, scene: Any, size: tuple[int, int], samples: int, seed: int) -> Floats:
    """Linear light [H, W, 3]."""
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    render.resolution_x, render.resolution_y, render.resolution_percentage = size[0], size[1], 100
    render.threads_mode, render.threads = "FIXED", 1
    render.use_persistent_data = False
    render.filter_size = 1.0
    cycles.device, cycles.samples, cycles.seed = "CPU", samples, seed
    cycles.use_adaptive_sampling = cycles.use_light_tree = False  # few lamps: the tree costs a quarter more
    cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
    cycles.denoising_input_passes, cycles.denoising_prefilter = "RGB_ALBEDO_NORMAL", "FAST"
    cycles.denoising_quality = "BALANCED"
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 4, 3, 2
    cycles.transmission_bounces = cycles.transparent_max_bounces = cycles.volume_bounces = 0
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_indirect = 5.0
    render.image_settings.file_format, render.image_settings.color_depth = "OPEN_EXR", "32"
    render.image_settings.exr_codec = "NONE"
    with tempfile.TemporaryDirectory() as folder:
        render.filepath = str(Path(folder) / "light.exr")
        with _quiet():
            bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(render.filepath)
        flat = np.empty(size[0] * size[1] * 4, np.float32)
        image.pixels.foreach_get(flat)
        bpy.data.images.remove(image)
    return np.ascontiguousarray(flat.reshape(size[1], size[0], 4)[::-1, :, :3])


def render_scene(scene: sc.Scene, r: Random, size: tuple[int, int] = (256, 256), samples: int = SAMPLES) -> sc.Rendered:
    """Path-traced picture, exact labels and annotations of a scene, as :func:`scenes.render_scene`."""
    bpy = load_blender()
    width, height = size
    built = _build(bpy, scene, r, size)
    colour = _trace(bpy, built, size, samples, int(r.integers(2**31 - 1)))
    colour = np.minimum(colour, 6 * max(float(colour.mean()), 1e-6))  # one bright glint must not darken the picture
    luminance = float((colour @ sc.LUMINANCE).mean())
    linear = np.ascontiguousarray(colour * np.float32(scene.brightness / max(luminance, 1e-6)))
    rgb = camera_sensor.expose(linear, scene.sensor, r)
    caster = sc.Caster(scene)
    x, y = (grid.ravel().astype(np.float32) for grid in np.meshgrid(np.arange(width), np.arange(height)))
    directions = caster.directions(x, y)
    geometry = caster.cast(directions)["geometry_ids"].astype(np.int64)
    label, entries = sc.annotate(scene, caster, directions, geometry, size)
    camera = {"K": [round(float(v), 6) for v in scene.intrinsics.ravel()]}
    return sc.Rendered(rgb, label, entries, camera, scene.sensor.jpeg, RENDERER)
