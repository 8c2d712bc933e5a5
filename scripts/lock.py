#!/usr/bin/env python3
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Write the lock files, requirements/lock*.txt, from requirements/*.in.

usage: python3 scripts/lock.py [--upgrade] [--python PYTHON ...]

pip itself resolves, once per Python version, without installing anything (``pip install --dry-run --report``);
the versions have to come out the same for all of them, the hashes of their files are put together. Versions of an
existing lock file are kept where the .in files allow it, unless --upgrade says otherwise.

lock.txt         ROS 2 from wheels: runtime, ros, train and test
lock-distro.txt  on top of an installed ROS 2: the same without ros, and with the NumPy of Ubuntu 24.04, since the
                 compiled modules of ROS 2 Jazzy (rclpy messages, cv_bridge) are built against NumPy 1
lock-docs.txt    the environment in which `make docs` builds the pages; it has nothing to do with the others
lock-preview.txt what `ocdit preview` adds to lock.txt, with the versions that are there already
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
# name of the lock file: (.in files, further pins, Python versions)
LOCKS = {
    "lock.txt": (("runtime", "ros", "train", "test"), (), ("python3.11", "python3.12")),
    "lock-distro.txt": (("runtime", "train", "test"), ("numpy==1.26.4",), ("python3.12",)),
    "lock-docs.txt": (("docs",), (), ("python3.11", "python3.12")),
    "lock-preview.txt": (("preview",), (), ("python3.11", "python3.12")),
}
#: Lock files that are installed on top of another: they take its versions and leave out what it has.
ON_TOP_OF = {"lock-preview.txt": "lock.txt"}
HEADER = """\
# Written by scripts/lock.py from {sources}; do not edit.
# For {pythons} on x86_64 Linux. Every file is named by its hash: pip refuses any other.
"""


def normalised(name: str) -> str:
    """Return the name of a distribution as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(
    python: str, sources: tuple[str, ...], pins: tuple[str, ...], keep: dict[str, str]
) -> dict[tuple[str, str], set[str]]:
    """Return {(name, version): hashes} of everything that pip would install with this Python."""
    # Only the public index counts: no local configuration, no local folders of wheels.
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        # The pip of older interpreters downloads every wheel in order to resolve.
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True, env=environment)
        report = Path(folder, "report.json")
        command = [*pip, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), *pins]
        for source in sources:
            command += ["-r", str(REQUIREMENTS / f"{source}.in")]
        if keep:
            constraints = Path(folder, "constraints.txt")
            constraints.write_text("\n".join(f"{name}=={version}" for name, version in keep.items()))
            command += ["-c", str(constraints)]
        subprocess.run(command, check=True, env=environment)
        resolved = json.loads(report.read_text())["install"]
    return {
        (normalised(item["metadata"]["name"]), item["metadata"]["version"]): {
            item["download_info"]["archive_info"]["hashes"]["sha256"]
        }
        for item in resolved
    }


def versions(path: Path) -> dict[str, str]:
    """Return {name: version} of a lock file."""
    return dict(re.findall(r"^([\w.-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE))


def lock(name: str, upgrade: bool, pythons: tuple[str, ...]) -> None:
    """Write one lock file; exit with a sentence where the Python versions disagree."""
    sources, pins, default_pythons = LOCKS[name]
    pythons = pythons or default_pythons
    target = REQUIREMENTS / name
    base = versions(REQUIREMENTS / ON_TOP_OF[name]) if name in ON_TOP_OF else {}
    keep = {**(versions(target) if target.exists() and not upgrade else {}), **base}
    merged: dict[tuple[str, str], set[str]] = {}
    for python in pythons:
        print(f"{name}: resolving with {python} (a few minutes)", flush=True)
        resolved = resolve(python, sources, pins, keep)
        resolved = {key: hashes for key, hashes in resolved.items() if key[0] not in base}
        if merged and merged.keys() != resolved.keys():
            different = ", ".join(sorted("==".join(key) for key in merged.keys() ^ resolved.keys()))
            sys.exit(f"{name}: the Python versions need different packages ({different}); pin them in a .in file")
        for key, hashes in resolved.items():
            merged.setdefault(key, set()).update(hashes)
    text = HEADER.format(sources=", ".join(f"{source}.in" for source in sources), pythons=" and ".join(pythons))
    for (package, version), hashes in sorted(merged.items()):
        text += f"{package}=={version}" + "".join(f" \\\n    --hash=sha256:{h}" for h in sorted(hashes)) + "\n"
    target.write_text(text)
    print(f"{target.relative_to(ROOT)}: {len(merged)} packages")


def main() -> None:
    """Parse the command line and write the lock files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the .in files allow")
    parser.add_argument("--python", action="append", default=[], help="interpreter to resolve with (repeatable)")
    parser.add_argument("--only", choices=sorted(LOCKS), help="write this lock file only")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else LOCKS:
        lock(name, arguments.upgrade, tuple(arguments.python))


if __name__ == "__main__":
    main()
