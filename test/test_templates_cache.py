# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The cache gives back what was put in, or makes it anew: whatever was damaged, killed or run at the same time."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from templates_meshes import box, sphere, textured_blob, write_bop_ply, write_obj

from ocdit_ros.templates import ObjectSpec, RenderSettings, TemplateCache, TemplateSet, cache

SETTINGS = RenderSettings(size=32, views=3, threads=1)
VERTICES, FACES, UV, TEXTURE = textured_blob(8, 16)


def features(templates: TemplateSet) -> dict[str, np.ndarray]:
    """Stands for a backbone: depends on every pixel."""
    return {
        "map": np.cumsum(templates.images.astype(np.float32), axis=1)[:, ::4, ::4],
        "half": (templates.masks / 255.0).astype(np.float16),
        "empty": np.zeros((3, 0), np.int64),
    }


def assert_equal(entry, other):
    for name in ("images", "masks", "depths", "rotations"):
        ours, theirs = getattr(entry.templates, name), getattr(other.templates, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert entry.templates.diameter == other.templates.diameter
    assert entry.features.keys() == other.features.keys()
    for name in entry.features:
        np.testing.assert_array_equal(entry.features[name], other.features[name])
        assert entry.features[name].dtype == other.features[name].dtype


@pytest.fixture
def mesh(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    return write_bop_ply(folder / "blob.ply", VERTICES, FACES, UV, TEXTURE)


@pytest.fixture
def store(tmp_path):
    return TemplateCache(tmp_path / "cache")


def get(store, mesh, **changes):
    arguments = {"settings": SETTINGS, "featurize": features, "feature_key": "test"} | changes
    return store.get(ObjectSpec("blob", str(mesh)), **arguments)


def files(store):
    return sorted(store.directory.glob("*.templates"))


def test_second_time_from_disk(store, mesh, monkeypatch):
    first = get(store, mesh)
    assert not first.cached
    assert first.problem == ""
    assert first.templates.name == "blob"
    assert_equal(first, cache.CacheEntry(first.templates, features(first.templates)))
    monkeypatch.setattr(cache, "render", lambda *_: pytest.fail("rendered again"))
    second = get(store, mesh, featurize=lambda _: pytest.fail("featurized again"))
    assert second.cached
    assert not second.problem
    assert_equal(first, second)
    other_name = store.get(ObjectSpec("other", str(mesh)), SETTINGS, None, "test")
    assert other_name.cached
    assert other_name.templates.name == "other"
    assert len(files(store)) == 1


def test_warm_start_loads_neither_renderer_nor_parsers(store, mesh):
    get(store, mesh)
    code = f"""
import sys
from ocdit_ros.templates import ObjectSpec, RenderSettings, TemplateCache
entry = TemplateCache({str(store.directory)!r}).get(
    ObjectSpec("blob", {str(mesh)!r}), RenderSettings(size=32, views=3), feature_key="test")
assert entry.cached and entry.features
print(sorted({{"open3d", "trimesh", "torch"}} & set(sys.modules)))
"""
    here = Path(cache.__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here).stdout
    assert output.strip() == "[]"


def test_what_the_key_depends_on(store, mesh, tmp_path):
    first = get(store, mesh)
    assert get(store, mesh, settings=dataclasses.replace(SETTINGS, threads=2)).cached
    copy = shutil.copytree(mesh.parent, tmp_path / "elsewhere") / mesh.name
    assert get(store, copy).cached  # content, not place
    for field in dataclasses.fields(RenderSettings):
        if field.name not in ("threads", "key_direction"):
            value = getattr(SETTINGS, field.name)
            changed = dataclasses.replace(SETTINGS, **{field.name: value + 1 if value >= 1 else value + 0.1})
            assert not get(store, mesh, settings=changed).cached, field.name
    assert not get(store, mesh, feature_key="another").cached
    half = store.get(ObjectSpec("blob", str(mesh), 0.5), SETTINGS, features, "test")
    assert not half.cached
    assert half.templates.diameter == pytest.approx(first.templates.diameter / 2)
    write_bop_ply(mesh, VERTICES * 1.01, FACES, UV, TEXTURE)
    changed = get(store, mesh)
    assert not changed.cached
    assert changed.templates.diameter != first.templates.diameter


def test_templates_without_features(store, mesh):
    """Neither a backbone nor its name has to be given."""
    first = get(store, mesh, featurize=None, feature_key="")
    assert (first.cached, first.features) == (False, {})
    again = store.get(ObjectSpec("blob", str(mesh)), SETTINGS)
    assert again.cached
    assert_equal(first, again)


def test_settings_are_those_of_the_renderer_unless_given(store, mesh, monkeypatch):
    seen = []

    def render(mesh, rotations, settings, name):
        seen.append((len(rotations), settings))
        return blank(rotations, mesh.diameter, name)

    monkeypatch.setattr(cache, "render", render)
    store.get(ObjectSpec("blob", str(mesh)))
    assert seen == [(RenderSettings().views, RenderSettings())]
    assert store.get(ObjectSpec("blob", str(mesh)), RenderSettings()).cached


def blank(rotations, diameter, name):
    """Templates of four pixels."""
    shape = (len(rotations), 2, 2)
    return TemplateSet(
        images=np.zeros((*shape, 3), np.uint8), masks=np.zeros(shape, np.uint8), depths=np.ones(shape, np.float32),
        rotations=np.asarray(rotations, np.float32), diameter=diameter, name=name,
    )  # fmt: skip


def test_names_of_entries_are_those_of_earlier_versions():
    """Another name for the same content would make every user's templates anew, without a word.

    Where this fails for a reason (templates that look different, a setting more), write the new names here.
    """
    settings = RenderSettings(size=64, views=6)
    for path in ("mesh.obj", "elsewhere/other.OBJ"):
        prefix = cache._prefix(Path(path), "ab" * 32, 0.001, settings, "backbone")
        assert prefix == "3f99f5a33e01ad612560a4d63b3393c7"
    assert cache._entry_name(prefix, []) == f"{prefix}-4f53cda18c2baa0c.templates"
    assert cache._entry_name(prefix, [("a.png", "cd" * 32)]) == f"{prefix}-9d0e5c78fdfeb19c.templates"


def test_many_faces_are_simplified(store, mesh, monkeypatch):
    seen = []
    original = cache.render
    monkeypatch.setattr(cache, "render", lambda m, *rest: (seen.append(len(m.faces)), original(m, *rest))[1])
    simple = get(store, mesh, settings=dataclasses.replace(SETTINGS, max_faces=120))
    whole = get(store, mesh)
    assert 60 < seen[0] <= 120
    assert seen[1] == len(FACES)
    assert simple.templates.diameter == whole.templates.diameter  # of the original, not of what is left
    assert not np.array_equal(simple.templates.images, whole.templates.images)
    assert np.abs(simple.templates.images.astype(int) - whole.templates.images).mean() < 12


def test_textures_count(store, tmp_path):
    """The same mesh file with other textures beside it is another object; each keeps its own entry."""
    red, blue = tmp_path / "red", tmp_path / "blue"
    for folder, channel in ((red, 0), (blue, 2)):
        folder.mkdir()
        texture = np.zeros_like(TEXTURE)
        texture[..., channel] = 200
        write_obj(folder / "blob.obj", VERTICES, FACES, UV, texture)
    assert (red / "blob.obj").read_bytes() == (blue / "blob.obj").read_bytes()
    for cached in (False, True):
        for folder, channel in ((red, 0), (blue, 2)):
            entry = get(store, folder / "blob.obj")
            assert entry.cached == cached
            assert entry.templates.images.sum(axis=(0, 1, 2)).argmax() == channel
    shutil.copy(red / "material.png", blue / "material.png")
    entry = get(store, blue / "blob.obj")
    assert entry.cached
    assert entry.templates.images.sum(axis=(0, 1, 2)).argmax() == 0
    (red / "material.mtl").write_text("newmtl material\nKd 0 1 0\n")
    entry = get(store, red / "blob.obj")
    assert not entry.cached
    assert entry.templates.images.sum(axis=(0, 1, 2)).argmax() == 1


def test_file_that_changes_while_it_is_used(store, mesh, monkeypatch):
    """Templates are filed under the bytes they were made of."""
    original = mesh.read_bytes()
    write_bop_ply(mesh, VERTICES * 2, FACES, UV, TEXTURE)
    doubled = mesh.read_bytes()
    mesh.write_bytes(original)
    find = TemplateCache._find

    def find_and_change(self, *arguments, **options):
        mesh.write_bytes(doubled)
        return find(self, *arguments, **options)

    monkeypatch.setattr(TemplateCache, "_find", find_and_change)
    large = get(store, mesh)
    monkeypatch.undo()
    mesh.write_bytes(original)
    small = get(store, mesh)
    assert not small.cached
    assert large.templates.diameter == pytest.approx(2 * small.templates.diameter)


@pytest.mark.parametrize("first", ["gone", "damaged", "other textures", "other mesh"])
def test_what_is_listed_before_an_entry_does_not_hide_it(store, mesh, monkeypatch, first):
    wanted = get(store, mesh)
    (path,) = files(store)
    prefix, _, rest = path.name.partition("-")
    before = path.with_name(f"{prefix}-{rest[::-1][10:]}.templates")
    if first == "damaged":
        before.write_bytes(b"x")
    elif first == "other textures":
        shutil.copy(path, before)
    elif first == "other mesh":
        before = path.with_name("a-b.templates")
        before.write_bytes(b"x")
    monkeypatch.setattr(TemplateCache, "_paths", lambda _: [before, path])
    found = get(store, mesh, featurize=lambda _: pytest.fail("made again"))
    assert found.cached
    assert found.problem == ""
    assert_equal(found, wanted)


def test_made_by_another_process_while_this_one_waits_for_the_lock(store, mesh, monkeypatch):
    lock, stripes = TemplateCache._lock, []

    def taken(self, stripe):
        stripes.append(stripe)
        monkeypatch.undo()
        get(TemplateCache(store.directory), mesh)
        return lock(self, stripe)

    monkeypatch.setattr(TemplateCache, "_lock", taken)
    entry = get(store, mesh, featurize=lambda _: pytest.fail("made again"))
    assert entry.cached
    assert entry.problem == ""
    assert entry.templates.name == "blob"
    (file,) = (store.directory / "locks").iterdir()
    assert stripes == [file.name]
    assert len(file.name) == 2  # 256 files at most


def test_an_entry_of_another_user_is_read(store, mesh, monkeypatch):
    get(store, mesh)

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert get(store, mesh).cached


def test_a_damaged_entry_that_cannot_be_removed_is_reported(store, mesh, monkeypatch):
    good = get(store, mesh)
    (path,) = files(store)
    path.write_bytes(b"x")
    unlink = Path.unlink

    def refuse(self, **options):
        if self == path:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    again = get(store, mesh)
    assert str(path) in again.problem
    assert_equal(again, good)
    assert get(store, mesh).cached  # it was replaced


def test_the_folder_vanishes_while_templates_are_made(tmp_path, mesh):
    store = TemplateCache(tmp_path / "a" / "b" / "c")

    def remove(templates):
        shutil.rmtree(tmp_path / "a")
        return features(templates)

    assert get(store, mesh, featurize=remove).problem == ""
    assert get(store, mesh).cached


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


DAMAGE = {
    "first byte": lambda d: flip(d, 0),
    "checksum": lambda d: flip(d, 20),
    "header": lambda d: flip(d, 60),
    "a pixel": lambda d: flip(d, len(d) // 2),
    "last byte": lambda d: flip(d, len(d) - 1),
    "cut by one": lambda d: d[:-1],
    "cut in half": lambda d: d[: len(d) // 2],
    "cut to the magic": lambda d: d[:16],
    "cut in the magic": lambda d: d[:7],
    "empty": lambda d: b"",
    "longer": lambda d: d + b"\0",
    "zeros": lambda d: bytes(len(d)),
    "text": lambda d: b"not a cache entry\n",
    "a pickle": lambda d: b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "header length": lambda d: d[:48] + b"\xff" * 8 + d[56:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_repaired_and_reported(store, mesh, caplog, kind):
    good = get(store, mesh)
    (path,) = files(store)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = get(store, mesh)
    assert not again.cached
    assert_equal(good, again)
    assert str(path) in again.problem
    assert [str(path) in r.message for r in caplog.records] == [True]
    third = get(store, mesh)
    assert third.cached
    assert not third.problem
    assert_equal(good, third)


def test_sealed_but_foreign(store, mesh):
    """Right magic and checksum, wrong content: another program, or another version."""
    import hashlib

    import safetensors.numpy

    good = get(store, mesh)
    (path,) = files(store)
    for arrays, metadata in [
        ({"images": np.zeros(3)}, {"files": "[]"}),
        ({}, None),
        ({"images": np.zeros(3)}, {"files": '[["blob.png", "x"]]', "diameter": "nought"}),
        ({"images": np.zeros(3)}, {"files": "[1]"}),
    ]:
        block = safetensors.numpy.save(arrays, metadata)
        path.write_bytes(cache._MAGIC + hashlib.sha256(block).digest() + block)
        again = get(store, mesh)
        assert not again.cached
        assert_equal(good, again)


@pytest.mark.parametrize("where", ["file", "below a file", "read only"])
def test_cache_that_cannot_be_written(tmp_path, mesh, where, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    place = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "cache", "read only": tmp_path / "ro"}[
        where
    ]
    if where == "read only":  # to root no folder is, so the refusal is played

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with caplog.at_level(logging.WARNING):
        entry = get(TemplateCache(place), mesh)
    assert not entry.cached
    assert entry.problem.startswith(f"{place}: templates are not cached (")
    assert [record.message for record in caplog.records] == [entry.problem]
    assert_equal(entry, get(TemplateCache(tmp_path / "cache2"), mesh) if where != "read only" else entry)


def test_full_disk(store, mesh, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    entry = get(store, mesh)
    assert entry.problem == f"{store.directory}: templates are not cached (No space left on device)."
    monkeypatch.undo()
    assert not list(store.directory.glob("*.tmp")) + list(store.directory.glob(".*.tmp")) + files(store)
    assert_equal(entry, get(store, mesh))


def test_least_recently_used_goes_first(tmp_path, mesh):
    store = TemplateCache(tmp_path / "cache")
    keys = "abcdef"
    for n, key in enumerate(keys[:4]):
        get(store, mesh, feature_key=key)
        for path in files(store):  # the clock of some file systems is coarse
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9 * (4 - n)))
    size = files(store)[0].stat().st_size
    store.max_bytes = int(3.5 * size)
    assert get(store, mesh, feature_key="a").cached  # now used last
    get(store, mesh, feature_key="e")
    assert len(files(store)) == 3
    assert sum(p.stat().st_size for p in files(store)) <= store.max_bytes
    kept = {key for key in keys if get(TemplateCache(store.directory), mesh, feature_key=key).cached}
    assert "a" in kept
    assert "e" in kept
    assert "b" not in kept


def test_a_cache_that_is_just_full_keeps_all(tmp_path, mesh):
    store = TemplateCache(tmp_path / "cache")
    get(store, mesh, feature_key="a")
    size = files(store)[0].stat().st_size
    store.max_bytes = 2 * size
    get(store, mesh, feature_key="b")
    assert len(files(store)) == 2
    get(store, mesh, feature_key="c")
    assert len(files(store)) == 2


def test_a_link_to_a_large_file_pushes_nothing_out(tmp_path, mesh):
    store = TemplateCache(tmp_path / "cache")
    get(store, mesh, feature_key="a")
    size = files(store)[0].stat().st_size
    store.max_bytes = 3 * size
    (tmp_path / "large").write_bytes(bytes(4 * size))
    (store.directory / "link.templates").symlink_to(tmp_path / "large")
    get(store, mesh, feature_key="b")
    assert len(files(store)) == 3


def test_room_is_made_past_what_cannot_be_removed(tmp_path, mesh, monkeypatch):
    store = TemplateCache(tmp_path / "cache")
    for age, key in ((30, "a"), (20, "b")):
        known = set(files(store))
        get(store, mesh, feature_key=key)
        (path,) = set(files(store)) - known
        os.utime(path, (time.time() - age,) * 2)
    oldest, older = sorted(files(store), key=lambda path: path.stat().st_mtime)
    left = store.directory / ".dead.1.tmp"
    left.write_bytes(b"x")
    os.utime(left, (time.time() - 90,) * 2)
    unlink = os.unlink

    def refuse(path, **options):
        if os.fspath(path) in (str(oldest), str(left)):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    store.max_bytes = 10
    entry = get(store, mesh, feature_key="c")
    assert entry.problem == ""
    assert oldest.exists()
    assert left.exists()
    assert not older.exists()
    assert get(store, mesh, feature_key="c").cached


def test_entry_larger_than_the_cache(tmp_path, mesh):
    store = TemplateCache(tmp_path / "cache", max_bytes=10)
    get(store, mesh, feature_key="a")
    get(store, mesh, feature_key="b")
    assert len(files(store)) == 1
    assert get(store, mesh, feature_key="b").cached


def test_old_temporary_files_are_removed(store, mesh):
    get(store, mesh)
    old, new = store.directory / ".old.1.tmp", store.directory / ".new.2.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    get(store, mesh, feature_key="other")
    assert not old.exists()
    assert new.exists()


def test_temporary_files_of_the_living_stay(store, mesh, monkeypatch):
    """A writer holds a lock on its file; what a killed one has left goes after a minute."""
    get(store, mesh)
    ages = {"fresh": 5, "dead": 90, "alive": 7200}
    paths = {name: store.directory / f".{name}.1.tmp" for name in ages}

    def lay_out():
        for name, age in ages.items():
            paths[name].write_bytes(b"x")
            os.utime(paths[name], (time.time() - age,) * 2)

    lay_out()
    with paths["alive"].open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        get(store, mesh, feature_key="other")
    assert [name for name in ages if paths[name].exists()] == ["fresh", "alive"]

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    lay_out()
    monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    get(store, mesh, feature_key="third")
    assert [name for name in ages if paths[name].exists()] == ["fresh", "dead"]  # "alive" is two hours old


def test_a_writer_holds_a_lock_on_its_file(store, mesh, monkeypatch):
    seen, replace = [], os.replace

    def look(temporary, path):
        with open(temporary, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append("free once it is written")
        replace(temporary, path)

    def locked(descriptor):
        (temporary,) = store.directory.glob("*.tmp")
        with temporary.open("rb") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append("locked while it is written")
        monkeypatch.setattr(cache.os, "fsync", fsync)

    fsync = os.fsync
    monkeypatch.setattr(cache.os, "fsync", locked)
    monkeypatch.setattr(cache.os, "replace", look)
    assert not get(store, mesh).problem
    assert seen == ["locked while it is written", "free once it is written"]


def test_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TemplateCache().directory == tmp_path / "ocdit_ros" / "templates"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert TemplateCache().directory == tmp_path / "home" / ".cache" / "ocdit_ros" / "templates"
    assert TemplateCache("~/x").directory == tmp_path / "home" / "x"


def test_contents_and_clear(store, mesh):
    assert store.entries() == []
    assert store.clear() == 0
    get(store, mesh)
    get(store, mesh, feature_key="other")
    (store.directory / "foreign.templates").write_bytes(b"x")
    (store.directory / "notes.txt").write_text("keep me")
    found = store.entries()
    assert sorted(entry.name for entry in found) == ["", "blob", "blob"]
    assert {entry.mesh for entry in found if entry.name} == {str(mesh)}
    assert all(entry.size == entry.path.stat().st_size for entry in found)
    assert store.clear() == 3
    assert files(store) == []
    assert (store.directory / "notes.txt").exists()


def test_contents_are_listed_from_the_last_used(store, mesh):
    for key in "abc":
        get(store, mesh, feature_key=key)
    for age, path in enumerate(files(store)):  # in an order that is not that of the names
        os.utime(path, (1000.0 + (age + 1) % 3,) * 2)
    found = store.entries()
    assert [entry.last_used for entry in found] == [1002.0, 1001.0, 1000.0]
    assert {entry.path for entry in found} == set(files(store))


def test_what_cannot_be_read_is_listed_without_names(store, mesh):
    store.directory.mkdir()
    (store.directory / "foreign.templates").write_bytes(b"x")
    (entry,) = store.entries()
    assert (entry.name, entry.mesh, entry.size) == ("", "", 1)
    assert entry.problem() == "it was not written by this version"
    os.symlink(store.directory / "nowhere", store.directory / "gone.templates")
    assert store.entries() == [entry]  # evicted by another process after it was listed


def test_an_entry_tells_what_is_wrong_with_it(store, mesh):
    get(store, mesh)
    (entry,) = store.entries()
    assert entry.problem() == ""
    good = entry.path.read_bytes()
    for kind, reason in {
        "first byte": "it was not written by this version",
        "a pixel": "its checksum does not match",
        "cut by one": "its checksum does not match",
    }.items():
        entry.path.write_bytes(DAMAGE[kind](good))
        assert entry.problem() == reason
        assert f"({reason})" in get(store, mesh).problem
    entry.path.unlink()
    assert entry.problem() == ""


def header_of(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "block, reason",
    [
        (b"", "it is cut short"),
        (b"\1\0\0", "it is cut short"),
        (header_of(b"1"), "it is cut short"),
        (header_of(b"{} ")[:-1], "it is cut short"),
        (header_of(b"{}"), "it has no header"),
        (header_of(b"[]"), "it has no header"),
        (header_of(b"\xff\xff"), "it has no header"),
        (header_of(b"[" * 50_000), "it has no header"),
        (header_of(b'{"__metadata__": [1]}'), "its header is no list of texts by name"),
        (header_of(b'{"__metadata__": {"name": 5}}'), "its header is no list of texts by name"),
    ],
)
def test_headers_that_are_none(store, mesh, block, reason):
    """With the right magic and checksum; listed, read and told without a traceback."""
    import hashlib

    good = get(store, mesh)
    (path,) = files(store)
    path.write_bytes(cache._MAGIC + hashlib.sha256(block).digest() + block)
    (entry,) = store.entries()
    assert (entry.name, entry.mesh) == ("", "")
    assert entry.problem() == reason
    again = get(store, mesh)
    assert f"({reason})" in again.problem
    assert_equal(good, again)


@pytest.mark.parametrize(
    "array",
    [
        b'{"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}',  # outside
        b'{"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}',  # NumPy has no such numbers
    ],
)
def test_a_sealed_entry_whose_arrays_cannot_be_read(store, mesh, array):
    import hashlib

    get(store, mesh)
    (path,) = files(store)
    block = header_of(b'{"__metadata__": {"files": "[]"}, "a": ' + array + b"}")
    path.write_bytes(cache._MAGIC + hashlib.sha256(block).digest() + block)
    (entry,) = store.entries()
    assert entry.problem().startswith("it cannot be decoded, ")
    assert "it cannot be decoded, " in get(store, mesh).problem


def test_a_list_of_textures_that_is_nested_without_end(store, mesh):
    import hashlib

    import safetensors.numpy

    good = get(store, mesh)
    (path,) = files(store)
    block = safetensors.numpy.save({"images": np.zeros(3)}, {"files": "[" * 50_000})
    path.write_bytes(cache._MAGIC + hashlib.sha256(block).digest() + block)
    assert_equal(good, get(store, mesh))


def test_clear_goes_on_past_what_it_cannot_remove(store, mesh, monkeypatch):
    for key in "abc":
        get(store, mesh, feature_key=key)
    stuck, unlink = files(store)[1], Path.unlink

    def refuse(path, **options):
        if path == stuck:
            raise PermissionError(13, "Permission denied")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert store.clear() == 2
    assert files(store) == [stuck]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda a, m: a.update(images=a["images"].astype(np.int16)), "its images are int16 (3, 32, 32, 3)"),
        (lambda a, m: a.update(images=a["images"][:, :, :20]), "its images are uint8 (3, 32, 20, 3)"),
        (lambda a, m: a.update(images=a["images"][..., :2]), "its images are uint8 (3, 32, 32, 2)"),
        (lambda a, m: a.update(masks=a["masks"].astype(np.float32)), "its masks are float32 (3, 32, 32)"),
        (lambda a, m: a.update(masks=a["masks"][:2]), "its masks are uint8 (2, 32, 32)"),
        (lambda a, m: a.update(depths=a["depths"].astype(np.float64)), "its depths are float64 (3, 32, 32)"),
        (lambda a, m: a.update(depths=a["depths"][:, :9]), "its depths are float32 (3, 9, 32)"),
        (lambda a, m: a.update(rotations=a["rotations"].astype(np.float16)), "its rotations are float16 (3, 3, 3)"),
        (lambda a, m: a.update(rotations=a["rotations"][:, :2]), "its rotations are float32 (3, 2, 3)"),
        (lambda a, m: a.update({name: a[name][:0] for name in cache._ARRAYS}), "it holds no object"),
        (lambda a, m: m.update(diameter="0.0"), "it holds no object"),
        (lambda a, m: m.update(diameter="-1.0"), "it holds no object"),
        (lambda a, m: m.update(diameter="inf"), "it holds no object"),
        (lambda a, m: m.update(diameter="nan"), "it holds no object"),
        (lambda a, m: m.pop("diameter"), "'diameter'"),
        (lambda a, m: a.pop("depths"), "'depths'"),
    ],
)
def test_sealed_with_arrays_that_do_not_fit(store, mesh, change, reason):
    import hashlib

    import safetensors.numpy

    good = get(store, mesh)
    (path,) = files(store)
    metadata, arrays = cache._read(path)
    change(arrays, metadata)
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    block = safetensors.numpy.save(arrays, metadata)
    path.write_bytes(cache._MAGIC + hashlib.sha256(block).digest() + block)
    again = get(store, mesh)
    assert f"({reason})" in again.problem
    assert_equal(good, again)


def test_place_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TemplateCache().directory == tmp_path / ".cache" / "ocdit_ros" / "templates"


# Several processes ------------------------------------------------------------------------------------------------
#
# Children are forked with a stand-in for the renderer (Open3D's threads do not survive a fork): its pixels are drawn
# from a generator that is seeded by the mesh, so any mixture of two entries is found out.

fork = multiprocessing.get_context("fork")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Four meshes, and entries large enough that writing them takes a while."""

    def draw(mesh, rotations, settings, name):
        rng = np.random.default_rng(int(mesh.diameter * 1e9))
        shape = (len(rotations), settings.size, settings.size)
        return TemplateSet(
            images=rng.integers(0, 256, (*shape, 3), np.uint8),
            masks=rng.integers(0, 256, shape, np.uint8),
            depths=rng.random(shape, np.float32),
            rotations=rotations,
            diameter=mesh.diameter,
            name=name,
        )

    monkeypatch.setattr(cache, "render", draw)
    paths = []
    for n in range(4):
        shape = box((0.05, 0.06, 0.07 + 0.01 * n)) if n % 2 else sphere(0.05 + 0.01 * n, 2)
        paths.append(write_bop_ply(tmp_path / f"mesh{n}.ply", shape.vertices, shape.faces))
    return paths


def large_features(templates):
    rng = np.random.default_rng(int(templates.images.astype(np.int64).sum()))
    return {"map": rng.integers(0, 256, 2_000_000, np.uint8)}


def expected_entries(paths, folder):
    fresh = TemplateCache(folder)
    return [get(fresh, path, featurize=large_features) for path in paths]


def run_forked(work, *arguments):
    process = fork.Process(target=work, args=arguments)
    process.start()
    return process


def test_killed_while_writing(drawn, tmp_path):
    """Fifty times, at a random moment between the first byte and the rename."""
    drawn = drawn[:2]
    expected = expected_entries(drawn, tmp_path / "expected")
    store = TemplateCache(tmp_path / "cache", max_bytes=5_000_000)
    flag = mmap.mmap(-1, 1)  # 1 while a child writes

    def write_for_ever():
        original = TemplateCache._store

        def watched(*arguments):
            flag[0] = 1
            original(*arguments)
            flag[0] = 0

        TemplateCache._store = watched
        rng = random.Random(os.getpid())
        while True:
            store.clear()
            get(store, rng.choice(drawn), featurize=large_features)

    began = time.perf_counter()
    store._store("x", drawn[0], [], expected[0].templates, expected[0].features)
    duration = time.perf_counter() - began
    rng = random.Random(5)
    during = after = 0
    for _ in range(50):
        flag[0] = 0
        child = run_forked(write_for_ever)
        for _ in range(rng.randint(1, 2)):
            while not flag[0]:
                assert child.is_alive()
                time.sleep(duration / 50)
        time.sleep(rng.uniform(0, duration))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        during, after = during + flag[0], after + (1 - flag[0])
        for path, wanted in zip(drawn, expected, strict=True):
            assert_equal(get(TemplateCache(store.directory), path, featurize=large_features), wanted)
    assert during >= 15, f"only {during} of {during + after} kills fell into writing: the test shows nothing"


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "after replace"])
def test_killed_at_every_step(drawn, tmp_path, step):
    expected = expected_entries(drawn[:1], tmp_path / "expected")[0]
    store = TemplateCache(tmp_path / "cache")

    def write_until():
        fsync, replace = os.fsync, os.replace

        def fsync_or_die(descriptor):
            if step == "write":  # what reached the disk may be any part of the file
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            if step in ("write", "fsync"):
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        def replace_or_die(*paths):
            if step == "after replace":
                replace(*paths)
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync, os.replace = fsync_or_die, replace_or_die
        get(store, drawn[0], featurize=large_features)

    child = run_forked(write_until)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    entry = get(store, drawn[0], featurize=large_features)
    assert entry.cached == (step == "after replace")
    assert not entry.problem
    assert_equal(entry, expected)


def test_eight_processes_at_once(drawn, tmp_path):
    """With too little room, a process that clears, one that damages entries, and some that are killed."""
    expected = expected_entries(drawn, tmp_path / "expected")
    folder = tmp_path / "cache"

    def use(number):
        logging.disable(logging.WARNING)  # damage is reported a few dozen times here
        rng = random.Random(number)
        store = TemplateCache(folder, max_bytes=5_000_000)
        for _ in range(25):
            n = rng.randrange(len(drawn))
            assert_equal(get(store, drawn[n], featurize=large_features), expected[n])
            if number == 6 and rng.random() < 0.1:
                store.clear()
            found = files(store)
            if number == 7 and found:
                with open(rng.choice(found), "r+b") as stream:
                    stream.seek(rng.randrange(2_000_000))
                    stream.write(b"damage")

    children = [run_forked(guarded, use, n) for n in range(8)]
    children += [run_forked(guarded, use, n) for n in (100, 101)]
    time.sleep(0.5)
    for child in children[8:]:
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children[:8]] == [0] * 8
    for path, wanted in zip(drawn, expected, strict=True):
        assert_equal(get(TemplateCache(folder), path, featurize=large_features), wanted)


def guarded(work, number):
    """FileNotFoundError of the vandal's own open is not the cache's doing."""
    while True:
        try:
            return work(number)
        except FileNotFoundError as error:
            if number != 7 or "templates" not in str(error.filename):
                raise


def test_the_work_is_done_once(drawn, tmp_path):
    """Processes that want the same object at the same time wait for the first."""
    folder = tmp_path / "cache"
    log = tmp_path / "log"

    def featurize(templates):
        with open(log, "a") as stream:
            stream.write("x")
        time.sleep(0.3)
        return large_features(templates)

    children = [run_forked(get_once, folder, drawn[0], featurize) for _ in range(6)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 6
    assert log.read_text() == "x"


def get_once(folder, path, featurize):
    get(TemplateCache(folder), path, featurize=featurize)
