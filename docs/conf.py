# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration of the documentation; `make docs` builds it, and rosdoc2 wraps it (rosdoc2.yaml)."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
manifest = ElementTree.parse(ROOT / "package.xml").getroot()  # noqa: S314 (our own file)

project = manifest.findtext("name")
author = manifest.findtext("author")
version = release = manifest.findtext("version")
project_copyright = f"2026 {author}"

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ "

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["pages.css"]

linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2

#: Pages that are read in the repository too, where they lie elsewhere.
BORROWED = {
    "weights": "weights/README.md",
    "sample": "sample/ATTRIBUTION.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.rst",
}


def write_borrowed() -> None:
    """Copy the pages that lie outside of this folder into it, with their links made to fit; git ignores them."""
    for name, source in BORROWED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        folder = (ROOT / source).parent

        def fit(match: re.Match[str], folder: Path = folder) -> str:
            target, hash_, anchor = match[1].partition("#")
            return f"]({here((folder / target).resolve())}{hash_}{anchor})"

        suffix = Path(source).suffix
        if suffix == ".md":
            text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", fit, text)
        target = Path(__file__).with_name(f"_{name}{suffix}")
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def here(path: Path) -> str:
    """Link from this folder to a file of the repository; to its copy if it has one."""
    relative = path.relative_to(ROOT).as_posix()
    for name, source in BORROWED.items():
        if relative == source:
            return f"_{name}{Path(source).suffix}"
    return relative.removeprefix("docs/") if relative.startswith("docs/") else f"../{relative}"


def on_source_read(app: object, name: str, source: list[str]) -> None:
    """Links of the pages to files outside of this folder: to the copy that is a page. A new page gets into the menu."""
    if name == "index":
        pages = sorted({path.stem for path in Path(__file__).parent.glob("*.md")} - {"index"})
        others = [page for page in pages if not re.search(rf"^{page}$", source[0], re.MULTILINE)]
        source[0] = source[0].replace("%others", "\n".join(others))
    for copy, original in BORROWED.items():
        source[0] = source[0].replace(f"](../{original})", f"](_{copy}{Path(original).suffix})")


def setup(app: object) -> None:
    """Called by Sphinx."""
    write_borrowed()
    app.connect("source-read", on_source_read)  # type: ignore[attr-defined]
