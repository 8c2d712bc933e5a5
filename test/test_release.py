# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Files for releases, containers and the forge: checked without docker, bloom or a server."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import pytest
import yaml

from ocdit_ros.node import parameters

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("segment_node", "image_folder_publisher", "ocdit")


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, comments left out, continued lines joined."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    rows = [row.split(None, 1) for row in text.replace("\\\n", " ").splitlines() if row.strip()]
    return [(name.upper(), rest.strip()) for name, rest in rows]


def version() -> str:
    """Of package.xml."""
    found = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert found
    return found


@pytest.fixture(scope="module")
def dockerfile():
    return instructions(ROOT / "docker" / "Dockerfile")


def test_image_starts_from_a_named_release_of_ros(dockerfile):
    (base,) = [rest for name, rest in dockerfile if name == "FROM"]
    assert re.fullmatch(r"ros:jazzy-ros-base-noble", base)
    assert not [name for name, _ in dockerfile if name in ("ADD", "MAINTAINER", "SHELL")]


def test_shell_of_the_image_is_shell_and_leaves_no_package_lists(dockerfile):
    runs = [rest for name, rest in dockerfile if name == "RUN"]
    for run in runs:
        subprocess.run(["sh", "-n", "-c", run], check=True)
        if "apt-get install" in run:
            assert "apt-get update" in run
            assert "-y --no-install-recommends" in run
        if "apt-get install" in run or "make env" in run:
            assert run.rstrip().endswith("rm -rf /var/lib/apt/lists/*")
    assert any("make env" in run for run in runs)


def test_image_installs_what_make_env_asks_for(dockerfile):
    """Libraries of the table in make_env.sh by name; packages of ROS as package.xml declares them, for this release."""
    (run,) = [rest for name, rest in dockerfile if name == "RUN" and "apt-get install" in rest]
    packages = set(re.search(r"--no-install-recommends(.*?)&&", run)[1].split())
    table = re.search(r"<<'TABLE'\n(.*?)\nTABLE\n", (ROOT / "scripts" / "make_env.sh").read_text(), re.S)[1]
    libraries = {line.split()[1] for line in table.splitlines()}
    assert len(libraries) >= 5
    assert libraries | {"make", "python3-venv"} <= packages
    declared = {depend.text for depend in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}
    ros = {name.removeprefix("ros-jazzy-").replace("-", "_") for name in packages if name.startswith("ros-")}
    assert ros - {"rmw_fastrtps_cpp"} <= declared  # the middleware is nobody's dependency
    assert {"vision_msgs", "cv_bridge"} <= ros  # of what the node imports, ros-base lacks these
    assert not packages - libraries - {"make", "python3-venv"} - {n for n in packages if n.startswith("ros-jazzy-")}


def test_what_the_image_names_is_in_the_tree_that_it_copies(dockerfile):
    """Paths below the working directory, in ENV, RUN, ENTRYPOINT and CMD; what git has is what COPY finds."""
    (folder,) = [rest for name, rest in dockerfile if name == "WORKDIR"]
    assert [rest for name, rest in dockerfile if name == "COPY"] == [". ."]
    order = [name for name, rest in dockerfile]
    assert order.index("WORKDIR") < order.index("COPY") < order.index("USER") < order.index("ENTRYPOINT")
    text = " ".join(rest for name, rest in dockerfile)
    named = re.findall(rf"{folder}/([\w./-]+)", text)
    named += re.findall(r"\b(?:bash|sh) ([\w./-]+\.sh)", text)
    assert {"config/fastdds_shm.xml", "docker/entrypoint.sh", "sample/models", "scripts/make_preview.sh"} == set(named)
    for path in named:
        assert (ROOT / path).exists(), path
    script = (ROOT / "docker" / "entrypoint.sh").read_text()
    assert f"source {folder}/.venv/setup.bash" in script  # made by make env
    assert script.rstrip().endswith('exec "$@"')


def test_image_does_not_run_as_root_and_starts_a_program_of_the_package(dockerfile):
    assert [rest for name, rest in dockerfile if name == "USER"] == ["ocdit"]
    (entry,) = [rest for name, rest in dockerfile if name == "ENTRYPOINT"]
    script = ROOT / yaml.safe_load(entry)[0].removeprefix("/opt/ocdit_ros/")
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    (command,) = [yaml.safe_load(rest) for name, rest in dockerfile if name == "CMD"]
    check_program(command)


def test_what_is_built_or_private_stays_out_of_the_image():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    for name in (".git", ".venv", ".venv-docs", "build", "demo_out", "runs"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    for name in ("ocdit_ros", "weights", "scripts", "requirements", "config", "sample", "Makefile", "setup.py"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def check_program(words: list[str]) -> None:
    """A command line of a container: a program of setup.py, and for nodes parameters they have."""
    assert words[0] in PROGRAMS
    assert f'"{words[0]} = ' in (ROOT / "setup.py").read_text()
    for option, value in zip(words, words[1:]):
        name, _, text = value.partition(":=")
        if option == "-r":
            assert name == "image"
        if option == "-p" and words[0] == "segment_node":
            row = parameters.find(name)
            assert row is not None
            row.check(yaml.safe_load(text))
        if option == "-p" and words[0] == "image_folder_publisher":
            source = (ROOT / "ocdit_ros" / "node" / "image_folder.py").read_text()
            assert f'declare_parameter("{name}"' in source


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compositions_follow_the_specification(name):
    schema = json.loads((ROOT / "third_party" / "compose-spec" / "compose-spec.json").read_text())
    content = yaml.safe_load((ROOT / "docker" / name).read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]
    content["services"]["node"]["cmd"] = ["segment_node"]
    assert not validator.is_valid(content)  # the schema knows what a service may have


def test_images_of_the_composition_are_built_here_or_have_a_tag(services):
    for name, service in services.items():
        if service["image"].startswith("ocdit_ros:"):
            assert service["image"] == f"ocdit_ros:{version()}"
        else:
            assert re.fullmatch(r"osrf/ros:jazzy-desktop-noble", service["image"]), name
    build = services["node"]["build"]
    context = (ROOT / "docker" / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    assert f"-t ocdit_ros:{version()} " in (ROOT / "docker" / "Dockerfile").read_text()


def test_volumes_with_a_name_are_declared_and_written_by_the_user_of_the_image(services, dockerfile):
    declared = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["volumes"]
    targets = {}
    for service in services.values():
        for volume in service.get("volumes", []):
            source, target, *_ = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")
            if not source.startswith((".", "/")):
                targets[source] = target
    assert targets.keys() == declared.keys()
    owned = " ".join(rest for name, rest in dockerfile if name == "RUN")
    for target in targets.values():
        assert f"install -d -o ocdit {target}" in owned


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def test_camera_and_node_of_the_composition_meet(services):
    assert {"node", "camera", "rviz"} <= set(services)
    topics = set()
    for name in ("node", "camera"):
        check_program(services[name]["command"])
        topics |= {word for word in services[name]["command"] if word.startswith("image:=")}
    assert topics == {"image:=/camera/color/image_raw"}
    domains = {service["environment"]["ROS_DOMAIN_ID"] for service in services.values()}
    assert len(domains) == 1
    assert {(s["network_mode"], s["ipc"]) for s in services.values()} == {("host", "host")}


def test_volumes_of_the_composition_exist(services):
    seen = 0
    for service in services.values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("."):
                assert (ROOT / "docker" / source).resolve().exists(), volume
                seen += 1
    assert seen >= 4
    (config,) = [word for word in services["rviz"]["command"] if word.endswith(".rviz")]
    assert (ROOT / "config" / Path(config).name).is_file()


def test_gpu_composition_adds_to_services_that_there_are(services):
    gpu = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())["services"]
    assert {"node"} <= set(gpu) <= set(services)


# --- forge ------------------------------------------------------------------------------------------------------------


def test_workflow_does_what_ci_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    jobs = workflow["jobs"]
    for name in ("wheels", "jazzy"):
        assert "bash .ci/run" in [step.get("run") for step in jobs[name]["steps"]]
    assert jobs["jazzy"]["container"] == "ros:jazzy-ros-base-noble"
    assert workflow["permissions"] == {"contents": "read"}
    for job in jobs.values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_workflow_audits_the_lock_as_a_release_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    install, audit = (step["run"] for step in workflow["jobs"]["vulnerabilities"]["steps"] if "run" in step)
    script = (ROOT / "scripts" / "supply_chain.sh").read_text()
    assert install.removeprefix("pip install ") in script
    assert audit.removeprefix("pip-audit ") in script
    assert "--require-hashes" in audit


def test_workflow_tests_the_pythons_that_are_locked():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    locked = re.search(r"For (.*) on", (ROOT / "requirements" / "lock.txt").read_text())[1]
    matrix = workflow["jobs"]["wheels"]["strategy"]["matrix"]["python"]
    assert matrix == re.findall(r"python(3\.\d+)", locked)


def test_pre_commit_takes_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo.get("rev", "") for repo in config["repos"]}
    requirements = (ROOT / "requirements" / "test.in").read_text() + (ROOT / "requirements" / "docs.in").read_text()
    for repository, package in (("ruff-pre-commit", "ruff"), ("codespell", "codespell")):
        assert f"{package}=={revisions[repository].removeprefix('v')}\n" in requirements


def test_issue_forms_are_complete():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"))
    assert len(forms) >= 2
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert content["name"]
        assert content["description"]
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
    assert "ocdit doctor" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yaml").read_text()


# --- release ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:nodes.Node.traverse:DeprecationWarning")
def test_the_release_tools_of_ros_read_the_changelog():
    """As catkin_prepare_release does: "Forthcoming" gets version and date, and bloom's parser reads the result."""
    reason = "catkin_pkg is missing (make env brings it)"
    changelog = pytest.importorskip("catkin_pkg.changelog", reason=reason)
    release = pytest.importorskip("catkin_pkg.package_version", reason=reason)
    version = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())[1]
    text = (ROOT / "CHANGELOG.rst").read_text()
    if label := release.get_forthcoming_label(text):
        text = release.rename_section(text, label, f"{version} (2026-01-31)")
    read = changelog.Changelog("ocdit_ros")
    changelog.populate_changelog_from_rst(read, text)
    newest, date, content = next(iter(read.foreach_version()))
    assert newest == version
    assert date is not None
    assert len(str(content[0])) > 100


def test_package_xml_has_what_a_release_needs():
    text = (ROOT / "package.xml").read_text()
    for tag in ("maintainer email=", 'license file="LICENSE"', "description", "author"):
        assert f"<{tag}" in text
    assert re.search(r"<version>\d+\.\d+\.\d+</version>", text)


def test_rosdoc2_builds_the_pages_that_make_docs_builds():
    _, config = yaml.safe_load_all((ROOT / "rosdoc2.yaml").read_text())
    (sphinx,) = [builder["sphinx"] for builder in config["builders"] if "sphinx" in builder]
    assert (ROOT / sphinx["sphinx_sourcedir"] / "conf.py").is_file()
    assert 'docs "docs/_build/' in (ROOT / "scripts" / "make_docs.sh").read_text()
