# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Templates and their features on disk, one file per object, found again by the content they were made from.

A file is a magic number, the SHA-256 of the rest, and a safetensors block: arrays and a JSON header, nothing is ever
unpickled. It is called `<A>-<B>.templates`. A hashes the bytes of the mesh file, its scale, the renderer settings and
the feature key; B hashes the files that the mesh refers to (materials, textures). Which these are is known only after
a mesh was read, so the entry carries the list: a lookup finds candidates by A, and compares their B with the files as
they are now.

Writers write under a temporary name, sync and rename, so a reader sees a whole entry or none, whoever is killed when.
Locks only spare two processes the same work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from .renderer import RENDERER_VERSION, RenderSettings, render
from .source import MeshError, read_file, resolve
from .types import ObjectSpec, TemplateSet
from .views import viewpoints

log = logging.getLogger(__name__)

_MAGIC = b"OCDITTPL0001\n\0\0\0"
_START = len(_MAGIC) + hashlib.sha256().digest_size
_SUFFIX = ".templates"
_ARRAYS = ("images", "masks", "depths", "rotations")
#: Age in seconds at which a temporary file that nobody holds a lock on is removed, and at which one is where there are
#: no locks. A writer that is killed again and again must not fill the disk.
_ABANDONED_SECONDS, _STALE_SECONDS = 60.0, 3600.0

Featurize = Callable[[TemplateSet], dict[str, NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class CacheEntry:
    """What the cache holds of one object."""

    templates: TemplateSet
    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    cached: bool = False  # it came from the disk
    problem: str = ""  # what was wrong with the cache on the way, one sentence


@dataclass(frozen=True)
class StoredEntry:
    """A line of the cache's table of contents."""

    path: Path
    name: str  # of the object when the entry was made; empty if the entry cannot be read
    mesh: str  # path of the mesh then
    size: int  # bytes
    last_used: float  # seconds since the epoch

    def problem(self) -> str:
        """What is wrong with the file, all of which is read, in a few words; empty if it is sound, or gone by now."""
        try:
            _read(self.path)
        except FileNotFoundError:
            return ""
        except (OSError, _DamagedError) as error:
            return str(error)
        return ""


class _DamagedError(Exception):
    """An entry that is not what was once written."""


class TemplateCache:
    """Disk cache of limited size, least recently used out first, safe for several processes at once.

    `directory` defaults to `$XDG_CACHE_HOME/ocdit_ros/templates` (XDG Base Directory Specification). A cache that
    cannot be read or written is reported, by a warning and in `CacheEntry.problem`, and is otherwise no error: the
    work is then done each time.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, max_bytes: int = 2 * 1024**3) -> None:
        self.directory = default_directory() if directory is None else Path(directory).expanduser()
        self.max_bytes = max_bytes

    def get(
        self,
        spec: ObjectSpec,
        settings: RenderSettings | None = None,
        featurize: Featurize | None = None,
        feature_key: str = "",
    ) -> CacheEntry:
        """Templates and features of an object, from the disk or made now.

        `featurize` is called only on a miss; `feature_key` must name everything its result depends on (backbone and
        weights). Raises MeshError if the mesh cannot be used.
        """
        settings = settings or RenderSettings()
        path = resolve(spec.mesh)
        prefix = _prefix(path, hashlib.sha256(read_file(path)).hexdigest(), spec.scale, settings, feature_key)
        entry, _ = self._find(prefix, path, spec.name)
        if entry is not None:
            return entry
        with self._lock(prefix[:2]):
            entry, problem = self._find(prefix, path, spec.name, repair=True)
            if entry is not None:  # another process has made it meanwhile
                return entry
            return self._make(spec, path, settings, featurize, feature_key, problem)

    def entries(self) -> list[StoredEntry]:
        """What is in the cache, most recently used first."""
        found = []
        for path in self._paths():
            with contextlib.suppress(OSError):
                status = path.stat()
                try:
                    metadata = _metadata(path)
                except (OSError, _DamagedError):
                    metadata = {}
                name, mesh = metadata.get("name", ""), metadata.get("mesh", "")
                found.append(StoredEntry(path, name, mesh, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: -entry.last_used)

    def clear(self) -> int:
        """Remove every entry; returns how many there were."""
        count = 0
        for path in self._paths():
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
        with contextlib.suppress(OSError):
            self._tidy()
        return count

    def _paths(self) -> list[Path]:
        try:
            return [self.directory / name for name in os.listdir(self.directory) if name.endswith(_SUFFIX)]
        except OSError:
            return []

    def _find(self, prefix: str, mesh: Path, name: str, repair: bool = False) -> tuple[CacheEntry | None, str]:
        """The entry, if there is a sound one, and what was wrong; `repair` removes and reports damaged ones."""
        problem = ""
        for path in self._paths():
            if not path.name.startswith(prefix):
                continue
            try:
                metadata, arrays = _read(path)
                files = [(file, _digest(mesh.parent / file)) for file, _ in json.loads(metadata["files"])]
                if path.name != _entry_name(prefix, files):
                    continue  # the same mesh with other textures
                entry = _entry(metadata, arrays, name)
            except FileNotFoundError:
                continue  # evicted after it was listed
            except (_DamagedError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
                if repair:
                    problem = f"{path}: the entry was damaged or foreign and is made anew ({error})."
                    log.warning(problem)
                    with contextlib.suppress(OSError):
                        path.unlink()
                continue
            with contextlib.suppress(OSError):
                os.utime(path)  # the time of last use, for eviction
            return entry, ""
        return None, problem

    def _make(
        self,
        spec: ObjectSpec,
        path: Path,
        settings: RenderSettings,
        featurize: Featurize | None,
        feature_key: str,
        problem: str,
    ) -> CacheEntry:
        from .decimation import decimate
        from .loader import load_mesh

        mesh = load_mesh(path, spec.scale)
        (_, digest), *files = mesh.files  # as they were loaded, should they have changed since they were looked up
        small = decimate(mesh, settings.max_faces, settings.threads)
        templates = render(small, viewpoints(settings.views), settings, spec.name)
        templates = dataclasses.replace(templates, diameter=mesh.diameter)
        features = featurize(templates) if featurize is not None else {}
        prefix = _prefix(path, digest, spec.scale, settings, feature_key)
        others = [(os.path.relpath(file, path.parent), digest) for file, digest in files]
        try:
            self._store(prefix, path, others, templates, features)
        except OSError as error:
            problem = f"{self.directory}: templates are not cached ({error.strerror or error})."
            log.warning(problem)
        return CacheEntry(templates, features, problem=problem)

    def _store(
        self,
        prefix: str,
        mesh: Path,
        files: list[tuple[str, str]],
        templates: TemplateSet,
        features: dict[str, NDArray[Any]],
    ) -> None:
        arrays = {name: np.ascontiguousarray(getattr(templates, name)) for name in _ARRAYS}
        arrays |= {f"features/{name}": np.ascontiguousarray(value) for name, value in features.items()}
        metadata = {
            "files": json.dumps(files),
            "diameter": repr(float(templates.diameter)),
            "name": templates.name,
            "mesh": os.fspath(mesh),
        }
        block = safetensors.numpy.save(arrays, metadata=metadata)
        path = self.directory / _entry_name(prefix, files)
        temporary = self.directory / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                with contextlib.suppress(OSError):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its writer lives
                stream.write(_MAGIC + hashlib.sha256(block).digest())
                stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_directory(self.directory)
        self._tidy(keep=path.name)

    def _tidy(self, keep: str | None = None) -> None:
        """Remove what was used longest ago until the limit holds, and what killed writers have left."""
        entries = []
        with os.scandir(self.directory) as items:
            for item in items:
                with contextlib.suppress(OSError):
                    status = item.stat(follow_symlinks=False)
                    if item.name.endswith(_SUFFIX):
                        entries.append((item.name == keep, status.st_mtime_ns, status.st_size, item.path))
                    elif item.name.endswith(".tmp") and _abandoned(item.path, time.time() - status.st_mtime):
                        os.unlink(item.path)
        total = sum(size for _, _, size, _ in entries)
        for kept, _, size, path in sorted(entries):
            if kept or total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size

    @contextlib.contextmanager
    def _lock(self, stripe: str) -> Iterator[None]:
        """Advisory lock, which the kernel releases when a process dies. Its few files are never removed."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # no locks here: entries stay whole, work may be done twice
                directory = self.directory / "locks"
                directory.mkdir(parents=True, exist_ok=True)
                stream = stack.enter_context((directory / stripe).open("ab"))
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def default_directory() -> Path:
    """`$XDG_CACHE_HOME/ocdit_ros/templates`; `~/.cache/...` where the variable is unset or not absolute."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "ocdit_ros" / "templates"


def _abandoned(path: str, age: float) -> bool:
    """Whether the writer of a temporary file is gone; `age`: seconds since it last wrote."""
    if age <= _ABANDONED_SECONDS:
        return False
    try:
        with open(path, "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return age > _STALE_SECONDS


def _prefix(path: Path, digest: str, scale: float, settings: RenderSettings, feature_key: str) -> str:
    parts = dataclasses.asdict(settings)
    del parts["threads"]  # changes nothing in the images
    what = [RENDERER_VERSION, path.suffix.lower(), digest, repr(float(scale)), parts, feature_key]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _entry_name(prefix: str, files: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256(json.dumps([list(file) for file in files]).encode()).hexdigest()
    return f"{prefix}-{digest[:16]}{_SUFFIX}"


def _digest(path: Path) -> str:
    """SHA-256 of a file that a mesh refers to; empty, which matches nothing, if it cannot be read now."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except MeshError:
        return ""


def _header(block: bytes | memoryview) -> dict[str, str]:
    """Metadata of a safetensors block: 8 bytes of length, then JSON."""
    length = int.from_bytes(block[:8], "little")
    if not 2 <= length <= len(block) - 8:
        raise _DamagedError("it is cut short")
    try:
        metadata = json.loads(bytes(block[8 : 8 + length]))["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _DamagedError("it has no header") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _DamagedError("its header is no list of texts by name")
    return metadata


def _block(data: bytes) -> bytes:
    """What follows the checksum."""
    if not data.startswith(_MAGIC):
        raise _DamagedError("it was not written by this version")
    return data[_START:]


def _metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as stream:
        return _header(_block(stream.read(1 << 16)))


def _read(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    data = path.read_bytes()
    block = _block(data)
    if hashlib.sha256(block).digest() != data[len(_MAGIC) : _START]:
        raise _DamagedError("its checksum does not match")
    try:
        return _header(block), safetensors.numpy.load(block)
    except (SafetensorError, KeyError) as error:  # KeyError: numbers that NumPy has no type for
        raise _DamagedError(f"it cannot be decoded, {error}") from error


def _entry(metadata: dict[str, str], arrays: dict[str, NDArray[Any]], name: str) -> CacheEntry:
    templates = TemplateSet(**{key: arrays[key] for key in _ARRAYS}, diameter=float(metadata["diameter"]), name=name)
    count, side = templates.images.shape[:2]
    shapes = {
        "images": (np.uint8, (count, side, side, 3)), "masks": (np.uint8, (count, side, side)),
        "depths": (np.float32, (count, side, side)), "rotations": (np.float32, (count, 3, 3)),
    }  # fmt: skip
    for key, (dtype, shape) in shapes.items():
        if arrays[key].dtype != dtype or arrays[key].shape != shape:
            raise _DamagedError(f"its {key} are {arrays[key].dtype} {arrays[key].shape}")
    if not (count and side and 0.0 < templates.diameter < np.inf):
        raise _DamagedError("it holds no object")
    features = {k.removeprefix("features/"): v for k, v in arrays.items() if k.startswith("features/")}
    return CacheEntry(templates, features, cached=True)


def _sync_directory(path: Path) -> None:
    """Make the rename last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
