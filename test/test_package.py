# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""The package as such: metadata, dependencies, message types, environment, installation, sample."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ocdit_ros"

#: Type hashes of vision_msgs 4.1.1 as ROS 2 Jazzy distributes it.
VISION_MSGS = {
    "BoundingBox2D": "RIHS01_008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
    "BoundingBox2DArray": "RIHS01_2464e82838009386d371b523211c21c91d74d313fcdd6788223c531d621cf691",
    "BoundingBox3D": "RIHS01_bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698",
    "BoundingBox3DArray": "RIHS01_a81938db9576b10c2eecd7c5a5da3eac496efd00221b25ed051dfbc81fb56da6",
    "Classification": "RIHS01_f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143",
    "Detection2D": "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
    "Detection2DArray": "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "Detection3D": "RIHS01_ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b",
    "Detection3DArray": "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "LabelInfo": "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
    "ObjectHypothesis": "RIHS01_51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90",
    "ObjectHypothesisWithPose": "RIHS01_41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc",
    "Point2D": "RIHS01_eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "Pose2D": "RIHS01_b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648",
    "VisionClass": "RIHS01_1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
    "VisionInfo": "RIHS01_95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284",
}

#: Distribution that provides a module, where the two names differ; None: comes with ROS.
PROVIDED_BY = {
    "PIL": "pillow",
    "collada": "pycollada",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "mathutils": "bpy",
}

ROS_PACKAGES = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "rosgraph_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "vision_msgs",
}


in_own_environment = pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="the tests run in another environment than the one that make env made"
)


# --- files of the tree ------------------------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    """What is under version control; in an export without it, everything that is not built."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        built = {".venv", "build", "install", "log", "demo_out", "mutants", ".git", "__pycache__"}
        files = [path for path in ROOT.rglob("*") if not built & set(path.relative_to(ROOT).parts)]
    return [path for path in files if path.is_file()]


def plain_files(folder: Path) -> set[str]:
    """Names of the files in a folder that may not exist, hidden ones left out."""
    return {path.name for path in folder.glob("[!.]*") if path.is_file()}


def text_of(path: Path) -> str | None:
    """Content of a text file, None of any other."""
    data = path.read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


HEADER = re.compile(
    r"\A(#![^\n]*\n)?# Copyright 20\d\d ocdit_ros contributors\n#\n# SPDX-License-Identifier: Apache-2\.0\n"
)


def test_every_program_has_the_licence_header():
    programs = [path for path in tracked_files() if path.suffix in (".py", ".sh") or path.name in ("Makefile", "run")]
    assert len(programs) > 30
    missing = [str(path.relative_to(ROOT)) for path in programs if not HEADER.match(path.read_text())]
    assert not missing


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    for number in range(1, 10):
        assert re.search(rf"^\s+{number}\. [A-Z]", text, re.MULTILINE), f"section {number} is missing"
    assert "END OF TERMS AND CONDITIONS" in text


# Absolute paths into somebody's machine. /opt/ros, /usr, /etc, /dev and the like are the same everywhere.
MACHINE_PATH = re.compile(r"(?<![\w.\-/:<>$}])/(?:work|root|home|Users|tmp|mnt|private)/[\w.]+")
# Written so that they do not find themselves.
UNFINISHED = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX)\b")
REGISTRY_HOST = re.compile(r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org")


@pytest.mark.parametrize(
    "text, found",
    [
        ("open('/" + "home/jo/data.ply')", True),
        ("path: /" + "work/main/x", True),
        ("see `/" + "tmp/x`", True),
        ("/opt/ros/jazzy/setup.bash", False),
        ("../shared/data/real_dev", False),
        ("https://example.org/home/page", False),
        ("`~/detections` and /diagnostics", False),
    ],
)
def test_machine_paths_are_recognised(text, found):
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_machine_path_and_nothing_unfinished_in_the_tree():
    found = []
    for path in tracked_files():
        text = text_of(path)
        for number, line in enumerate((text or "").splitlines(), 1):
            if any(pattern.search(line) for pattern in (MACHINE_PATH, UNFINISHED, REGISTRY_HOST)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


# --- metadata ---------------------------------------------------------------------------------------------------------


def setup_arguments() -> dict:
    """The arguments that setup.py passes to setuptools, without running a command."""
    program = (
        "import json, setuptools; setuptools.setup = lambda **k: print(json.dumps(k, default=str)); "
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def setup():
    return setup_arguments()


@pytest.fixture(scope="module")
def manifest():
    """package.xml as ROS tools read it."""
    catkin_package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is missing (make env brings it)")
    warnings: list[str] = []
    package = catkin_package.parse_package(str(ROOT / "package.xml"), warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings
    return package


def test_package_xml_is_valid_and_agrees_with_setup(manifest, setup):
    assert manifest.package_format == 3
    assert (manifest.name, manifest.version) == (setup["name"], setup["version"]) == (PACKAGE, setup["version"])
    assert manifest.get_build_type() == "ament_python"
    assert list(manifest.licenses) == [setup["license"]] == ["Apache-2.0"]
    assert manifest.maintainers[0].email == setup["maintainer_email"]
    assert (ROOT / "resource" / PACKAGE).is_file()


def test_changelog_has_this_version(setup):
    lines = (ROOT / "CHANGELOG.rst").read_text().splitlines()
    assert f"Changelog for package {PACKAGE}" in lines
    versions = [
        line
        for line, below in zip(lines, lines[1:])
        if re.match(r"\d+\.\d+\.\d+|Forthcoming$", line) and len(below) >= len(line) and set(below) == {"-"}
    ]
    assert versions[0].split()[0] in (setup["version"], "Forthcoming")


def test_scripts_go_where_ros2_run_looks():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["develop"]["script_dir"] == parser["install"]["install_scripts"] == f"$base/lib/{PACKAGE}"


def test_data_files_exist_and_cover_launch_config_and_weights(setup):
    installed = dict(setup["data_files"])
    assert installed["share/ament_index/resource_index/packages"] == [f"resource/{PACKAGE}"]
    for files in installed.values():
        assert all((ROOT / name).is_file() for name in files)
    share = f"share/{PACKAGE}"
    for folder in ("launch", "config", "weights"):
        assert {Path(name).name for name in installed[f"{share}/{folder}"]} == plain_files(ROOT / folder)


def test_every_room_is_a_package_that_setup_installs(setup):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(setup["packages"])


def programs(setup: dict) -> list[str]:
    """Names of the programs that setup.py declares."""
    return [text.partition("=")[0].strip() for text in setup["entry_points"]["console_scripts"]]


def test_entry_points_are_importable_programs(setup):
    scripts = {e.name: e for e in importlib.metadata.distribution(PACKAGE).entry_points if e.group == "console_scripts"}
    assert set(scripts) == set(programs(setup)) >= {"ocdit", "segment_node"}
    for entry in scripts.values():
        assert callable(getattr(importlib.import_module(entry.module), entry.attr))


# --- dependencies -----------------------------------------------------------------------------------------------------


def imported_modules(folder: str) -> dict[str, set[str]]:
    """{top-level module: files} of everything that the Python files below a folder import."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


def third_party(folder: str) -> dict[str, set[str]]:
    """The same without the standard library, this package and the modules of the tests themselves."""
    own = {PACKAGE, *(path.stem for path in (ROOT / "test").glob("*.py"))}
    return {
        name: files
        for name, files in imported_modules(folder).items()
        if name not in sys.stdlib_module_names and name not in own
    }


def pins(*names: str) -> dict[str, Requirement]:
    """Requirements of requirements/<name>.in by canonical name."""
    lines = [line for name in names for line in (ROOT / "requirements" / f"{name}.in").read_text().splitlines()]
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def locked(name: str) -> dict[str, Version]:
    """Versions of a lock file; every entry has to have a hash."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
            assert match, f"{name}: {line[:80]}"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


def test_everything_the_package_imports_is_declared(setup, manifest):
    runtime = {canonicalize_name(Requirement(r).name) for r in setup["install_requires"]}
    extras = setup["extras_require"]["train"] + setup["extras_require"]["path-tracing"]
    train = {canonicalize_name(Requirement(r).name) for r in extras}
    preview = {canonicalize_name(Requirement(r).name) for r in setup["extras_require"]["preview"]}
    ros = {depend.name for depend in manifest.exec_depends}
    undeclared = []
    for module, files in third_party(PACKAGE).items():
        if module in ROS_PACKAGES:
            # builtin_interfaces and geometry_msgs come with every message package that uses them
            if module not in ros | {"builtin_interfaces", "geometry_msgs"}:
                undeclared.append(f"{module}: package.xml ({min(files)})")
            continue
        distribution = canonicalize_name(PROVIDED_BY.get(module, module))
        only_training = all(name.startswith(f"{PACKAGE}/train/") for name in files)
        only_preview = files == {f"{PACKAGE}/preview.py"}
        extra = train if only_training else preview if only_preview else set()
        if distribution not in runtime | extra:
            undeclared.append(f"{module}: setup.py ({min(files)})")
    undeclared += [f"{module}: package.xml (launch)" for module in third_party("launch") if module not in ros]
    assert not undeclared


def test_everything_the_tests_import_is_pinned():
    pinned = set(pins("runtime", "train", "test"))
    # packaging comes with pytest, catkin_pkg with colcon-ros
    missing = [
        module
        for folder in ("test", "scripts")
        for module in third_party(folder)
        if module not in ROS_PACKAGES | {"packaging", "catkin_pkg"}
        and not module.startswith("rosidl_")
        and canonicalize_name(PROVIDED_BY.get(module, module)) not in pinned
    ]
    assert not missing


def test_ranges_of_setup_admit_the_locked_versions(setup):
    declared = setup["install_requires"] + setup["extras_require"]["train"] + setup["extras_require"]["test"]
    for lock_file in ("lock.txt", "lock-distro.txt"):
        versions = locked(lock_file)
        for text in declared:
            requirement = Requirement(text)
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{lock_file}: {version} does not fit '{text}'"


def test_locks_hold_the_direct_requirements():
    for lock_file, names in (
        ("lock.txt", ("runtime", "ros", "train", "test")),
        ("lock-distro.txt", ("runtime", "train", "test")),
        ("lock-docs.txt", ("docs",)),
        ("lock-preview.txt", ("preview",)),
    ):
        versions = locked(lock_file)
        for name, requirement in pins(*names).items():
            assert name in versions, f"{lock_file} lacks {name}: run make lock"
            assert requirement.specifier.contains(versions[name]), f"{lock_file}, {name}: run make lock"
    assert not [name for name in locked("lock-distro.txt") if name.startswith("ros-")]


def unmet_requirements(versions: dict[str, Version], roots: dict[str, Requirement], python: str, requires) -> list[str]:
    """What pip would still have to fetch for `roots` if it took `versions` as they are.

    `requires` gives the requirements of a distribution by its canonical name, None where they are not known.
    """
    unmet, seen, queue = [], set(), [(name, frozenset(r.extras)) for name, r in roots.items()]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in requires(name) or ():
            one = Requirement(text)
            markers = [
                {"python_version": python, "python_full_version": f"{python}.0", "extra": e} for e in extras or {""}
            ]
            if one.marker and not any(one.marker.evaluate(marker) for marker in markers):
                continue
            needed = canonicalize_name(one.name)
            if needed not in versions:
                unmet.append(f"{name} needs {one.name}, which is not locked")
            elif not one.specifier.contains(versions[needed], prereleases=True):
                unmet.append(f"{name} needs {one.name}{one.specifier}, locked is {versions[needed]}")
            else:
                queue.append((needed, frozenset(one.extras)))
    return unmet


@pytest.fixture(scope="module")
def installed():
    """{canonical name: (version, requirements)} of what is installed here."""
    return {canonicalize_name(d.name): (d.version, d.requires or []) for d in importlib.metadata.distributions()}


def test_unmet_requirements_are_recognised():
    known = {
        "a": ["b[x]>=2", "c; python_version < '3.12'", "d; extra == 'y'"],
        "b": ["e>=1; extra == 'x'", "f; extra == 'z'"],
    }
    versions = {name: Version("2") for name in "abe"}
    roots = {"a": Requirement("a==2")}
    assert unmet_requirements(versions, roots, "3.12", known.get) == []
    assert unmet_requirements(versions, roots, "3.11", known.get) == ["a needs c, which is not locked"]
    assert unmet_requirements({**versions, "e": Version("0.9")}, roots, "3.12", known.get) == [
        "b needs e>=1, locked is 0.9"
    ]
    assert unmet_requirements(versions, {"a": Requirement("a[y]")}, "3.12", known.get) == [
        "a needs d, which is not locked"
    ]


@pytest.mark.parametrize(
    "lock_file, python, names",
    [
        ("lock.txt", "3.11", ("runtime", "ros", "train", "test")),
        ("lock.txt", "3.12", ("runtime", "ros", "train", "test")),
        ("lock-distro.txt", "3.12", ("runtime", "train", "test")),
    ],
)
def test_the_locks_are_complete(installed, lock_file, python, names):
    """With extras and what they need: make env installs a lock with --no-deps, so what is not in it is missing."""
    versions = locked(lock_file)
    known = {
        name: installed[name][1]
        for name, v in versions.items()
        if name in installed and Version(installed[name][0]) == v
    }
    if len(known) < 0.9 * len(versions):
        pytest.skip(f"of {len(versions)} packages in {lock_file}, {len(known)} are installed here in that version")
    assert unmet_requirements(versions, pins(*names), python, known.get) == []


@in_own_environment
def test_compiled_packages_are_locked_for_both_pythons():
    """A wheel for one version of Python alone needs a sister with a hash of its own; any other is the same for both."""
    text = (ROOT / "requirements" / "lock.txt").read_text().replace("\\\n", " ")
    hashes = {line.partition("==")[0]: line.count("--hash=") for line in text.splitlines() if "==" in line}
    for distribution in importlib.metadata.distributions():
        tags = re.findall(r"^Tag: (\S+)", distribution.read_text("WHEEL") or "", re.MULTILINE)
        name = canonicalize_name(distribution.name)
        if tags and name in hashes:
            assert hashes[name] == 1 + any(re.match(r"cp(3\d+)-cp\1-", tag) for tag in tags), f"{name}: run make lock"


def test_numpy_fits_ros_binaries_and_wheels(setup):
    (declared,) = [Requirement(r) for r in setup["install_requires"] if r.startswith("numpy")]
    assert declared.specifier == pins("runtime")["numpy"].specifier == SpecifierSet(">=1.26,<3")
    assert locked("lock-distro.txt")["numpy"] == Version("1.26.4")  # Ubuntu 24.04, which ROS 2 Jazzy is built on
    assert locked("lock.txt")["numpy"].major == 2


def test_dependencies_page_has_a_reason_for_each_direct_dependency():
    rows = {}
    for line in (ROOT / "docs" / "dependencies.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and set(cells[0]) != {"-"} and cells[0] != "package":
            rows[canonicalize_name(cells[0])] = cells
    direct = pins("runtime", "ros", "train", "test", "docs", "preview")
    assert set(rows) == set(direct)
    for name, (_, version, licence, reason) in rows.items():
        assert SpecifierSet(version if version[0] in "<>" else f"=={version}") == direct[name].specifier, name
        assert licence, name
        assert len(reason) > 8, name


# --- message types ----------------------------------------------------------------------------------------------------


def test_message_definitions_are_the_interface_alone():
    files = sorted((ROOT / "third_party" / "vision_msgs" / "msg").glob("*.msg"))
    assert [path.stem for path in files] == sorted(VISION_MSGS)
    for path in files:
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[\w/]+(\[\])? \w+", line), f"{path.name}: {line}"


def test_vision_msgs_types_are_those_of_the_release():
    """All 16, as DDS announces them: an endpoint of each type is made and its type hash read from the graph."""
    import rclpy
    import vision_msgs.msg
    from rclpy.context import Context

    context = Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("type_hashes", context=context)
        publishers = {name: node.create_publisher(getattr(vision_msgs.msg, name), name, 1) for name in VISION_MSGS}
        hashes = {}
        for name in publishers:
            deadline = time.monotonic() + 10
            while not (endpoints := node.get_publishers_info_by_topic(name)) and time.monotonic() < deadline:
                time.sleep(0.02)
            kind = endpoints[0].topic_type_hash
            hashes[name] = f"RIHS{kind.version:02d}_{bytes(kind.value).hex()}" if hasattr(kind, "value") else str(kind)
        node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
    assert hashes == VISION_MSGS


def test_vision_msgs_survive_serialisation():
    from rclpy.serialization import deserialize_message, serialize_message
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

    detection = Detection2D(id="7")
    detection.bbox.center.position.x, detection.bbox.size_y = 12.5, 40.0
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = "mug", 0.75
    detection.results = [hypothesis]
    message = Detection2DArray(detections=[detection, Detection2D()])
    message.header.frame_id, message.header.stamp.nanosec = "camera", 999_999_999
    assert deserialize_message(serialize_message(message), Detection2DArray) == message


# --- make env ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_tree(tmp_path):
    """A copy of what make env reads, without .venv, and a folder of programs that stand before those of the machine."""
    tree, programs = tmp_path / "tree", tmp_path / "programs"
    programs.mkdir()
    for name in ("scripts", "requirements", "third_party", "resource", "config", "launch"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "package.xml", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)

    def put(name, text):
        path = programs / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def environment(**variables):
        """What a shell has that sourced nothing, with the programs of the test in front."""
        foreign = ("ROS_", "AMENT_", "OCDIT_", "PYTHON", "PIP_", "VIRTUAL_ENV", "_ROS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {"PATH": f"{programs}:{kept['PATH']}"} | variables

    def run(*arguments, **variables):
        return subprocess.run(
            ["bash", str(tree / "scripts" / "make_env.sh"), *arguments],
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    run.tree, run.environment = tree, environment
    return put, run


def error_of(result: subprocess.CompletedProcess) -> str:
    """The one sentence of a run that has to have failed."""
    assert result.returncode != 0, result.stdout
    errors = [line for line in result.stderr.splitlines() if "ERROR" in line]
    assert len(errors) == 1, result.stderr
    return errors[0]


def test_missing_system_packages_are_named_to_who_is_not_root(bare_tree):
    put, run = bare_tree
    put("id", "echo 1000")
    put("ldconfig", "echo '\tlibX11.so.6 (libc6,x86-64) => libX11.so.6'")
    error = error_of(run(OCDIT_ROS="wheels"))
    assert "libusb-1.0-0 libgl1 libegl1 libgomp1" in error
    assert "libx11" not in error
    assert "sudo apt-get install" in error


def test_missing_system_packages_are_installed_by_root(bare_tree, tmp_path):
    put, run = bare_tree
    put("id", "echo 0")
    put("ldconfig", "true")
    put("apt-get", f'echo "$@" >> {tmp_path}/apt.log; [[ $1 == update ]]')  # the installation itself fails
    error = error_of(run(OCDIT_ROS="wheels"))
    calls = (tmp_path / "apt.log").read_text().splitlines()
    assert calls[0] == "update"
    assert calls[1].startswith("install -y --no-install-recommends libusb-1.0-0 libgl1 libegl1 libx11-6 libgomp1")
    assert "apt-get could not install" in error


def test_machines_without_ros_wheels_are_told_what_to_install(bare_tree):
    put, run = bare_tree
    put("uname", "echo aarch64")
    error = error_of(run(OCDIT_ROS="wheels"))
    assert "aarch64" in error
    assert "ros-jazzy-ros-base" in error


def test_a_python_without_wheels_is_refused(bare_tree):
    put, run = bare_tree
    put(
        "python3.9",
        'case "$2" in *version_info*) echo 3.9;; *_base_exec*) echo "$0";; *version.split*) echo 3.9.18;; esac',
    )
    put("ldconfig", LIBRARIES)
    put("apt-get", "true")
    error = error_of(run(OCDIT_ROS="wheels", PYTHON="python3.9"))
    assert "3.9.18" in error
    assert "3.11 and 3.12" in error


def test_an_older_sourced_ros_is_refused(bare_tree, tmp_path):
    _, run = bare_tree
    error = error_of(run(ROS_DISTRO="humble", AMENT_PREFIX_PATH=str(tmp_path)))
    assert "humble" in error
    assert "Jazzy or newer" in error


LIBRARIES = 'for l in usb-1.0.so.0 GL.so.1 EGL.so.1 X11.so.6 gomp.so.1; do echo "lib$l (x)"; done'


@pytest.fixture
def fake_ros(bare_tree, tmp_path):
    """A ROS 2 distribution as far as make env looks: setup.bash, modules that can be found, a pip that takes notes."""
    put, _ = bare_tree
    put("id", "echo 1000")
    put("ldconfig", LIBRARIES)
    prefix = tmp_path / "jazzy"

    def add(*modules):
        for module in modules:
            (prefix / module).mkdir(parents=True)
            (prefix / module / "__init__.py").write_text("__version__ = '1.26.4'\n")

    add("rclpy", "sensor_msgs", "std_msgs", "numpy", "pip")
    (prefix / "pip" / "__main__.py").write_text(
        f"import sys; open({str(tmp_path / 'pip.log')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    )
    variables = {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": str(prefix), "PYTHONPATH": str(prefix)}
    (prefix / "setup.bash").write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))
    return prefix, add, variables


def test_what_a_sourced_ros_lacks_is_named(bare_tree, fake_ros):
    _, run = bare_tree
    prefix, _, variables = fake_ros
    result = run(**variables)
    error = error_of(result)
    assert f"ROS 2 jazzy ({prefix}/setup.bash)" in result.stdout
    assert "ros-jazzy-vision-msgs" in error
    assert "ros-jazzy-cv-bridge" not in error  # does without
    assert "ros-jazzy-rclpy" not in error
    assert "ros-jazzy-sensor-msgs" not in error


def test_a_sourced_ros_is_used_with_its_numpy(bare_tree, fake_ros, tmp_path):
    _, run = bare_tree
    prefix, add, variables = fake_ros
    add("lifecycle_msgs", "std_srvs", "diagnostic_msgs", "rcl_interfaces", "vision_msgs", "ament_index_python")
    result = run(**variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ros-jazzy-cv-bridge ros-jazzy-launch-ros" in result.stdout  # said, not insisted on
    packages, itself = (tmp_path / "pip.log").read_text().splitlines()
    if sys.version_info[:2] == (3, 12):
        assert "--require-hashes" in packages
        assert packages.endswith("requirements/lock-distro.txt")
    else:
        assert " numpy==1.26.4 " in packages
        assert "--require-hashes" not in packages
    assert "ros.in" not in packages
    assert itself.endswith(f"--editable {run.tree}")
    venv = run.tree / ".venv"
    assert "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text()

    again = run(**variables)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 2

    shell = "source .venv/setup.bash && echo $ROS_DISTRO $AMENT_PREFIX_PATH && command -v python"
    out = subprocess.run(
        ["bash", "-c", shell], cwd=run.tree, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == ["jazzy", f"{venv}:{prefix}", str(venv / "bin" / "python")]


@pytest.fixture
def fake_python(bare_tree, tmp_path):
    """Python 3.12 as far as make env looks, without a ROS: venv copies it, pip takes notes.

    Its pip fails when one of the words in the file `broken` is said to it, and takes long when there is a file `slow`.
    """
    put, run = bare_tree
    put("id", "echo 1000")
    put("ldconfig", LIBRARIES)
    for compiler in ("gcc", "g++"):
        put(compiler, "true")
    put(
        "python3.12",
        f"""case "$*" in
            *_base_executable*) echo "$0";;
            *version_info*) echo 3.12;;
            *version.split*) echo 3.12.3;;
            "-m venv "*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python";;
            "-m pip "*) echo "$*" >>{tmp_path}/pip.log
                if [[ -e {tmp_path}/slow ]]; then echo $$ >{tmp_path}/pip.pid; exec sleep 120; fi
                for word in $(cat {tmp_path}/broken 2>/dev/null); do
                    if [[ " $* " == *" $word "* ]]; then echo "no luck with $word"; exit 1; fi
                done;;
            *build_interfaces.py*) echo generated >>{tmp_path}/pip.log;;
            *"import "*ocdit_ros*) echo "imported, ${{PYTHONDONTWRITEBYTECODE-with byte code}}" >>{tmp_path}/pip.log;;
        esac""",
    )

    def make(*arguments):
        return run(*arguments, **make.variables)

    make.variables = {"OCDIT_ROS": "wheels", "PYTHON": "python3.12", "PYTHONDONTWRITEBYTECODE": "1"}
    return make


def test_without_ros_the_lock_and_nothing_else_is_installed(fake_python, bare_tree, tmp_path):
    result = fake_python()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout
    packages, messages, itself, check, imports = (tmp_path / "pip.log").read_text().splitlines()
    # Older pips look beyond the pins for a requirement with extras, unless they are told not to.
    assert {"--no-deps", "--require-hashes"} <= set(packages.split())
    assert packages.endswith(f"-r {bare_tree[1].tree}/requirements/lock.txt")
    assert messages == "generated"
    assert itself.endswith(f"--editable {bare_tree[1].tree}")
    assert check.endswith(" check")
    assert imports == "imported, with byte code"  # although the test forbids it to whoever inherits its environment
    again = fake_python()
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 5


def test_packages_that_do_not_fit_together_are_told(fake_python, tmp_path):
    (tmp_path / "broken").write_text("check")
    result = fake_python()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING: packages in .venv do not fit together" in result.stdout
    assert "no luck with check" in result.stdout


def test_a_failing_pip_is_told_and_leaves_work_for_the_next_run(fake_python, tmp_path):
    (tmp_path / "broken").write_text("--require-hashes")
    result = fake_python()
    assert "pip could not install the Python packages" in error_of(result)
    assert "no luck with --require-hashes" in result.stderr
    (tmp_path / "broken").unlink()
    again = fake_python()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "creating .venv" in again.stdout


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is missing"),
        ),
    ],
)
def test_make_env_takes_pip_along_when_it_is_stopped(fake_python, bare_tree, tmp_path, number):
    _, run = bare_tree
    (tmp_path / "slow").touch()
    script = subprocess.Popen(
        ["bash", str(run.tree / "scripts" / "make_env.sh")],
        env=run.environment(**fake_python.variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit it ignored
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pip.pid").exists() or not (tmp_path / "pip.pid").read_text():
            assert script.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pip = int((tmp_path / "pip.pid").read_text())
        assert Path(f"/proc/{pip}").exists()
        script.send_signal(number)
        assert script.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pip}").exists():
            assert time.monotonic() < deadline, "pip goes on without make env"
            time.sleep(0.05)
    finally:
        script.kill()
        script.wait(10)
    # What pip was writing cannot be trusted: the next run starts over.
    assert (run.tree / ".venv" / ".unfinished").exists()
    (tmp_path / "slow").unlink()
    again = fake_python()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "creating .venv" in again.stdout
    assert not (run.tree / ".venv" / ".unfinished").exists()


@in_own_environment
def test_a_second_make_env_would_do_nothing():
    """--check: what would change the environment must not do so under the tests that run in it."""
    script = ["bash", str(ROOT / "scripts" / "make_env.sh"), "--check"]
    result = subprocess.run(script, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing to do" in result.stdout


def test_check_sees_what_is_missing_and_touches_nothing(bare_tree):
    _, run = bare_tree
    result = run("--check", OCDIT_ROS="wheels")
    assert result.returncode == 1
    assert "run make env" in result.stdout
    assert not (run.tree / ".venv").exists()


@in_own_environment
def test_setup_file_works_in_an_empty_shell_from_anywhere(tmp_path, setup):
    program = (
        f"set -eu; source {ROOT}/.venv/setup.bash; cd {tmp_path}; ocdit --help >/dev/null; python - <<'PY'\n"
        "import rclpy, vision_msgs.msg, ocdit_ros\n"
        "from ament_index_python import get_package_share_directory\n"
        "print(get_package_share_directory('ocdit_ros'))\n"
        "PY"
    )
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(
        ["bash", "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    share = Path(result.stdout.strip().splitlines()[-1])
    assert (share / "package.xml").samefile(ROOT / "package.xml")
    for folder in ("launch", "config", "weights"):
        assert plain_files(share / folder) == plain_files(ROOT / folder)
    for name in programs(setup):
        assert os.access(ROOT / ".venv" / "lib" / PACKAGE / name, os.X_OK), f"ros2 run would not find {name}"


# --- colcon -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The package as docs/quick-start.md has colcon build it, from a copy of the tree; returns the install folder."""
    pytest.importorskip("colcon_core", reason="colcon is not installed (make env brings it)")
    pytest.importorskip("colcon_ros", reason="colcon-ros is not installed (make env brings it)")
    folder = tmp_path_factory.mktemp("colcon_ws")
    source = folder / "src" / PACKAGE
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (PACKAGE, "launch", "config", "weights", "resource", "test"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "setup.cfg", "package.xml", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLCON_HOME": str(folder / "home")}
    (options,) = re.findall(r"python -m colcon build ([^&\n]*) &&", (ROOT / "docs" / "quick-start.md").read_text())
    build = subprocess.run(
        [sys.executable, "-m", "colcon", "build", *options.split(), "--event-handlers", "console_direct+"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    assert f"Finished <<< {PACKAGE}" in build.stdout
    assert "WARNING" not in build.stderr
    return folder / "install"


def in_workspace(workspace: Path, command: str) -> list[str]:
    """Command line that runs a command as somebody does who has sourced the workspace, from another folder."""
    # A checkout that PYTHONPATH names would stand before the installed package.
    return [
        "bash",
        "-c",
        f"unset PYTHONPATH; export PATH={Path(sys.prefix, 'bin')}:$PATH; cd /; "
        f"source {workspace}/setup.bash && {command}",
    ]


@pytest.mark.colcon
def test_colcon_installs_the_package_as_ros_expects_it(workspace, setup):
    prefix = workspace / PACKAGE
    share = prefix / "share" / PACKAGE
    assert (prefix / "share" / "ament_index" / "resource_index" / "packages" / PACKAGE).is_file()
    for target, files in setup["data_files"]:
        for name in files:
            assert (prefix / target / Path(name).name).is_file(), f"{target} lacks {name}"
    assert ElementTree.parse(share / "package.xml").findtext("name") == PACKAGE
    for program in programs(setup):
        path = prefix / "lib" / PACKAGE / program
        assert os.access(path, os.X_OK)
        # env finds the interpreter of the environment that is active when the program starts
        assert path.read_text().splitlines()[0] == "#!/usr/bin/env python3"
    python = (
        "import ament_index_python as index, ocdit_ros; "
        "print(ocdit_ros.__file__, index.get_package_prefix('ocdit_ros'))"
    )
    out = subprocess.run(
        in_workspace(workspace, f'python3 -c "{python}"'), capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert Path(out[0]).is_relative_to(prefix)
    assert Path(out[1]) == prefix


@in_own_environment
@pytest.mark.colcon
def test_setup_file_of_the_workspace_brings_the_environment_along(workspace, tmp_path):
    python = "import torch, rclpy, ocdit_ros; print(ocdit_ros.__file__)"
    program = f"source {workspace}/setup.bash && cd / && python3 -c '{python}'"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    out = subprocess.run(
        ["bash", "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert Path(out.strip()).is_relative_to(workspace / PACKAGE)


@pytest.mark.colcon
@pytest.mark.integration
def test_installed_segment_node_runs_from_the_install_space(workspace):
    """It appears on the graph, answers its lifecycle service over DDS, and ends cleanly on SIGINT."""
    import rclpy
    from lifecycle_msgs.msg import State
    from lifecycle_msgs.srv import GetState
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor

    command = f"exec {workspace}/{PACKAGE}/lib/{PACKAGE}/segment_node --ros-args -r __node:=installed"
    process = subprocess.Popen(
        in_workspace(workspace, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    context = Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("asks_installed", context=context)
        executor = SingleThreadedExecutor(context=context)
        client = node.create_client(GetState, "/installed/get_state")
        deadline = time.monotonic() + 120
        while not client.wait_for_service(timeout_sec=1.0):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the node did not appear within 120 s"
        future = client.call_async(GetState.Request())
        executor.add_node(node)
        executor.spin_until_future_complete(future, timeout_sec=30)
        assert future.done()
        assert future.result().current_state.id == State.PRIMARY_STATE_UNCONFIGURED
        executor.shutdown()
        node.destroy_node()
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 0, output
    finally:
        rclpy.try_shutdown(context=context)
        if process.poll() is None:
            process.kill()
            process.wait(10)


# --- sample, README ---------------------------------------------------------------------------------------------------


def test_sample_is_complete_small_and_attributed():
    sample = ROOT / "sample"
    files = [path for path in sample.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    scene = sample / "test" / "000004"
    truth = json.loads((scene / "scene_gt.json").read_text())
    info = json.loads((scene / "scene_gt_info.json").read_text())
    models = json.loads((sample / "models" / "models_info.json").read_text())
    names = json.loads((sample / "models" / "names.json").read_text())
    shown = {entry["obj_id"] for entries in truth.values() for entry in entries}
    assert shown == {int(key) for key in models} == {int(key) for key in names}
    for number in shown:
        mesh, texture = (sample / "models" / f"obj_{number:06d}{suffix}" for suffix in (".ply", ".png"))
        assert f"comment TextureFile {texture.name}".encode() in mesh.read_bytes()[:400]
        assert texture.is_file()
        assert names[str(number)].startswith("ycb_")
    for image, entries in truth.items():
        assert len(info[image]) == len(entries)
        assert (scene / "rgb" / f"{int(image):06d}.png").is_file()
        for index in range(len(entries)):
            assert (scene / "mask_visib" / f"{int(image):06d}_{index:06d}.png").is_file()
    attribution = (sample / "ATTRIBUTION.md").read_text()
    for words in ("CC BY 4.0", "MIT", "yuxng/PoseCNN", "YCB Object and Model Set", "elpis-lab/YCB_Dataset"):
        assert words in attribution


def test_readme_names_commands_and_files_that_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z]+)\b", text))
    assert {"env", "demo", "test"} <= used <= targets
    first_screen = "\n".join(text.splitlines()[:45])
    for words in ("make env", "make demo", "ros2 launch ocdit_ros segment.launch.py", "demo_out/"):
        assert words in first_screen
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
