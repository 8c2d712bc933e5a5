#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Generate, compile and install the Python binding of a ROS 2 message package, without CMake and colcon.

usage: .venv/bin/python scripts/build_interfaces.py FOLDER [--prefix DIR] [--depends NAME ...]

FOLDER holds package.xml and msg/*.msg and is named like the package. The interpreter has to be the one of an
environment with the ROS 2 wheels; gcc, g++ and the Python headers have to be there. The generators are those that
a ROS 2 build calls (rosidl), so the types and their RIHS01 hashes are those of the binary distribution.

Both type supports are made: Fast DDS serialises through rosidl_typesupport_fastrtps_c, but registers a topic's
type only if the introspection type support exists too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GENERATOR_C = "rosidl_generator_c"
GENERATOR_PY = "rosidl_generator_py"
TYPESUPPORT = "rosidl_typesupport_c"
FASTRTPS = "rosidl_typesupport_fastrtps_c"
INTROSPECTION = "rosidl_typesupport_introspection_c"


def generate(package: str, source: Path, depends: list[str], work: Path, ros: Path) -> Path:
    """Write the sources of every library below `work/<library>/<package>`; return the folder of the .idl files."""
    # The generators look up their templates through the ament index.
    os.environ["AMENT_PREFIX_PATH"] = str(ros)
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    idl_folder = work / "idl" / package
    interfaces = []
    for message in sorted(source.glob("msg/*.msg")):
        relative = message.relative_to(source)
        convert_msg_to_idl(source, package, relative, idl_folder / "msg")
        shutil.copy(message, idl_folder / "msg")
        interfaces.append(f"{idl_folder}:{relative.with_suffix('.idl')}")
    common = {
        "package_name": package,
        "interface_files": interfaces,
        "include_paths": [ros / "share" / name for name in depends],
    }
    hashes = HashTypeDescription("").generate_type_hashes(**common, output_path=idl_folder)
    GenerateC("").generate(
        **common, type_description_files=[str(path) for path in hashes], output_path=work / GENERATOR_C / package
    )
    GenerateFastRTPSCTypesupport("").generate(**common, output_path=work / FASTRTPS / package)
    GenerateIntrospectionCTypesupport("").generate(**common, output_path=work / INTROSPECTION / package)
    GenerateCTypesupport("", typesupport_implementations=[FASTRTPS, INTROSPECTION]).generate(
        **common, output_path=work / TYPESUPPORT / package
    )
    GeneratePython("", typesupport_implementations=[TYPESUPPORT]).generate(
        **common, output_path=work / GENERATOR_PY / package
    )
    return idl_folder


def run(*command: object) -> None:
    """Run a compiler; its own words go to the terminal, ours name the file."""
    words = [str(word) for word in command]
    if subprocess.run(words).returncode != 0:
        sys.exit(f"build_interfaces: this command failed: {' '.join(words)}")


def compile_sources(package: str, work: Path, ros: Path) -> None:
    """Compile every generated source to an object file beside it."""
    import numpy

    headers = ros / "include"
    folders = [path for path in work.iterdir() if path.is_dir()]
    folders += [headers, *(path for path in headers.iterdir() if path.is_dir())]
    folders += [Path(sysconfig.get_path("include")), Path(numpy.get_include())]
    flags = ["-O1", "-fPIC", "-w", f'-DROS_PACKAGE_NAME="{package}"', *(f"-I{path}" for path in folders)]

    def compile_one(path: Path) -> None:
        compiler = ["g++", "-std=c++17"] if path.suffix == ".cpp" else ["gcc", "-std=c11"]
        run(*compiler, *flags, "-c", path, "-o", f"{path}.o")

    sources = sorted(path for path in work.rglob("*") if path.suffix in (".c", ".cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))


def link(package: str, depends: list[str], work: Path, ros: Path) -> None:
    """Link the libraries into `work/lib`, and the Python extension into `work`."""
    built = work / "lib"
    built.mkdir()

    def link_one(
        target: Path, objects: list[Path], own: list[str], foreign: list[str], plain: list[str], rpath: str
    ) -> None:
        # own: libraries of this package; foreign: of every dependency; plain: of ROS itself
        run(
            *("g++", "-shared", "-s", "-o", target, *objects, f"-L{built}", f"-L{ros / 'lib'}"),
            *(f"-l{package}__{library}" for library in own),
            *(f"-l{name}__{library}" for name in depends for library in foreign),
            *(f"-l{library}" for library in plain),
            f"-Wl,--no-as-needed,-rpath,{rpath}",
        )

    table: list[tuple[str, list[str], list[str], list[str]]] = [
        (GENERATOR_C, [], [GENERATOR_C], ["rosidl_runtime_c", "rcutils"]),
        (
            FASTRTPS,
            [GENERATOR_C],
            [FASTRTPS, GENERATOR_C],
            [FASTRTPS, "rosidl_typesupport_fastrtps_cpp", "fastcdr", "rmw"],
        ),
        (INTROSPECTION, [GENERATOR_C], [INTROSPECTION, GENERATOR_C], [INTROSPECTION]),
        (TYPESUPPORT, [GENERATOR_C], [TYPESUPPORT], [TYPESUPPORT]),
        (GENERATOR_PY, [GENERATOR_C, TYPESUPPORT], [GENERATOR_PY, GENERATOR_C], []),
    ]
    for library, own, foreign, plain in table:
        # The extension's own object lies one level higher than the converters of the Python library.
        objects = sorted((work / library / package).glob("*/**/*.o"))
        link_one(built / f"lib{package}__{library}.so", objects, own, foreign, plain, "$ORIGIN")
    extension = work / f"{package}_s__{TYPESUPPORT}{sysconfig.get_config_var('EXT_SUFFIX')}"
    link_one(
        extension,
        sorted((work / GENERATOR_PY / package).glob("*.o")),
        [GENERATOR_PY, TYPESUPPORT, GENERATOR_C],
        [],
        [],
        "$ORIGIN/../../..",
    )


def install(package: str, source: Path, idl_folder: Path, work: Path, prefix: Path, ros: Path) -> None:
    """Copy libraries, Python package, share/ and ament index entries below `prefix`, replacing older ones."""
    site = prefix / Path(sysconfig.get_path("purelib")).relative_to(ros)
    python_package, share = site / package, prefix / "share" / package
    index = prefix / "share" / "ament_index" / "resource_index"
    for folder in (python_package, share):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (prefix / "lib", python_package, share, index / "packages", index / "rosidl_interfaces"):
        folder.mkdir(parents=True, exist_ok=True)
    for library in (work / "lib").iterdir():
        shutil.copy(library, prefix / "lib")
    for extension in work.glob("*.so"):
        shutil.copy(extension, python_package)
    (python_package / "__init__.py").touch()
    shutil.copytree(
        work / GENERATOR_PY / package / "msg", python_package / "msg", ignore=shutil.ignore_patterns("*.c", "*.o")
    )
    shutil.copytree(idl_folder / "msg", share / "msg")  # .msg, .idl and .json (the type's description and hash)
    shutil.copy(source / "package.xml", share)
    (index / "packages" / package).touch()
    names = [path.relative_to(source) for path in sorted(source.glob("msg/*.msg"))]
    (index / "rosidl_interfaces" / package).write_text(
        "\n".join(str(name.with_suffix(suffix)) for name in names for suffix in (".idl", ".msg"))
    )


def main() -> None:
    """Parse the command line and build one package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with package.xml and msg/, named like the package")
    parser.add_argument("--prefix", type=Path, default=Path(sys.prefix), help="where to install (the environment)")
    parser.add_argument(
        "--depends",
        nargs="*",
        default=["builtin_interfaces", "std_msgs", "geometry_msgs"],
        help="interface packages that the messages refer to",
    )
    arguments = parser.parse_args()
    source, prefix, ros = arguments.folder.resolve(), arguments.prefix.resolve(), Path(sys.prefix)
    if not any(source.glob("msg/*.msg")):
        parser.error(f"{source} holds no msg/*.msg")
    missing = [name for name in arguments.depends if not (ros / "share" / name).is_dir()]
    if missing:
        parser.error(f"{ros} has no {', '.join(missing)}: install the ROS 2 wheels of requirements/ros.in there")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        idl_folder = generate(source.name, source, arguments.depends, work, ros)
        compile_sources(source.name, work, ros)
        link(source.name, arguments.depends, work, ros)
        install(source.name, source, idl_folder, work, prefix, ros)
    print(f"{source.name}: {len(list(source.glob('msg/*.msg')))} messages installed", flush=True)


if __name__ == "__main__":
    main()
