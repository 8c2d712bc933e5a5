# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Where a mesh is: plain paths, file:// and package:// URIs, without importing ROS."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit


class MeshError(ValueError):
    """A mesh that cannot be used; the message is one sentence naming the file and the reason."""


#: Kinds of images that are read, as Pillow calls them. Others are left alone: Pillow gives PostScript to a program.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TGA", "TIFF", "WEBP", "GIF", "PPM", "DDS", "JPEG2000")

#: Files beyond this size are refused: template pixels are few, whatever is larger was not meant for this.
MAX_FILE_BYTES = 256 * 1024**2


def read_file(path: Path) -> bytes:
    """All bytes of a regular file.

    Raises MeshError if there is none, it may not be read, is empty, or larger than MAX_FILE_BYTES.
    """
    try:
        mode = os.stat(path).st_mode  # first, since opening a pipe would wait for its other end
        if stat.S_ISDIR(mode):
            raise MeshError(f"{path}: it is a directory, not a mesh file.")
        if not stat.S_ISREG(mode):
            raise MeshError(f"{path}: it is a device or pipe, not a mesh file.")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise MeshError(f"{path}: it is larger than {MAX_FILE_BYTES // 1024**2} MiB.")
            data = stream.read(size + 1)  # read(n) takes n bytes of memory at once, however short the file is
    except FileNotFoundError as error:
        raise MeshError(f"{path}: it does not exist.") from error
    except PermissionError as error:
        raise MeshError(f"{path}: it may not be read (no permission).") from error
    except OSError as error:
        raise MeshError(f"{path}: it cannot be read ({error.strerror or error}).") from error
    if len(data) > size:  # also files of /proc, whose size is 0
        raise MeshError(f"{path}: it grows while it is read.")
    if not data:
        raise MeshError(f"{path}: it is empty.")
    return data


def resolve(source: str | os.PathLike[str]) -> Path:
    """Turn a path, file:// URI or package:// URI into an absolute path; the file need not exist.

    package://NAME/rest is looked up as `<prefix>/share/NAME/rest` in every prefix of AMENT_PREFIX_PATH,
    first match wins, which is what `ament_index` does. The result must stay inside the share directory of
    the package (see _inside).

    Raises MeshError for other schemes, remote hosts, unknown packages and paths that leave their package.
    """
    text = os.fspath(source)
    if not isinstance(text, str):
        raise MeshError(f"{text!r}: give the mesh as text, not bytes.")
    if not text.strip():
        raise MeshError("The mesh name is empty; give a path, a file:// or a package:// URI.")
    if "\0" in text:
        raise MeshError(f"{text!r}: a mesh name cannot contain a null character.")
    if "://" not in text:
        return Path(os.path.abspath(os.path.expanduser(text)))
    parts = urlsplit(text)
    path = unquote(parts.path)
    if "\0" in path:
        raise MeshError(f"{text!r}: a mesh name cannot contain a null character.")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise MeshError(f"{text}: only local files can be read; write file:///absolute/path.")
        return Path(os.path.abspath(path))
    if parts.scheme == "package":
        return _in_package(text, unquote(parts.netloc), path.lstrip("/"))
    raise MeshError(f"{text}: unknown scheme {parts.scheme!r}; use a path, file:// or package://.")


def _in_package(uri: str, package: str, relative: str) -> Path:
    if not package or not relative or not package.replace("_", "").replace("-", "").isalnum():
        raise MeshError(f"{uri}: write package://PACKAGE/path/inside/its/share/directory.")
    if ".." in relative.replace("\\", "/").split("/"):
        raise MeshError(f"{uri}: '..' is not allowed in a package:// URI.")
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in prefixes:
        share = Path(prefix, "share", package)
        if not share.is_dir():
            continue
        path = share / relative
        if not _inside(path, share):
            raise MeshError(f"{uri}: the path leaves the package through a symbolic link.")
        return Path(os.path.abspath(path))
    where = "AMENT_PREFIX_PATH is not set" if not prefixes else "it is not in AMENT_PREFIX_PATH"
    raise MeshError(f"{uri}: package {package!r} not found ({where}); source the workspace first.")


def is_beside(path: Path, directory: Path) -> bool:
    """Whether a file that a mesh in `directory` refers to is in that folder or below the one above it.

    That is where materials and textures are kept (meshes/ beside textures/); a file from elsewhere must not steer what
    is read. Links are judged as in packages.
    """
    try:
        home = directory.resolve()
        relative = os.path.relpath(path, os.path.abspath(directory))
    except (OSError, RuntimeError, ValueError):
        return False
    top = home.parent if len(home.parts) > 2 else home  # a folder in / has everything beside it
    return _inside(home / relative, top)


def _inside(path: Path, share: Path) -> bool:
    """Whether the folder of `path` is in `share`, and the file too or linked to one of the same name.

    The latter is how `colcon build --symlink-install` installs files; no other link may lead out of a
    package.
    """
    try:
        if not path.parent.resolve().is_relative_to(share.resolve()):
            return False
        target = path.resolve()
        return target.is_relative_to(share.resolve()) or (path.is_symlink() and target.name == path.name)
    except (OSError, RuntimeError):  # a loop of links
        return False
